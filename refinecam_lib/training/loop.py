"""Fit a network to a task by a recipe: the resumable run, and the accuracy by size, class and background.

Training items are drawn fresh, first as small windows, which cost a third of a whole frame or less, then as whole
frames. Weights are an exponential moving average, chosen on validation alone.
"""

import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .. import paths
from ..datasets.sample import Sample, Samples, batch_of
from ..datasets.shapes import BACKGROUNDS, CLASSES, SIZES
from ..errors import InputError, rng, seed_of
from ..networks import memory  # noqa: F401  # memory that is kept takes a seventh off a step on the CPU
from ..networks.checkpoints import checkpoint_path, read_checkpoint
from ..networks.loading import normalise, on_device, restore
from ..networks.zoo import ModelSpec, spec_of
from .distillation import Hints, maps_of
from .initialisation import set_by_images
from .recipe import Recipe, training_folder
from .tasks import Task, enlarged, faded, task_of

SAVE_SECONDS = 60
SET_BY = 256
"""Training items that set the first weights of a network of layer norms."""


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    p = right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


Batch = tuple[torch.Tensor, torch.Tensor, list[dict[str, str]]]


def _collate(samples: list[Sample]) -> Batch:
    """Images, targets and infos, put together by the worker that draws them: each tensor that it passes is an open file."""
    images, target, _ = batch_of(samples)
    return images, target, [s.info for s in samples]


def evaluate(model: nn.Module, dataset: Samples, spec: ModelSpec, batch: int = 50, workers: int = 0) -> dict:
    """Accuracy of a network on a data set, in [0,1]: n, accuracy, its Wilson 95 % interval, and by size, class, background.

    dataset: a sequence of Samples with size, class and background in `info`. The network runs where its weights are.
    """
    device = next(model.parameters()).device
    model.eval()
    right: list[bool] = []
    infos: list[dict[str, str]] = []
    with torch.inference_mode():
        for images, target, of_batch in DataLoader(
            cast(Dataset, dataset), batch, collate_fn=_collate, num_workers=workers
        ):
            inputs = normalise(images.to(device, memory_format=torch.channels_last), spec)
            right += (model(inputs).argmax(1).cpu() == target).tolist()
            infos += of_batch

    def score(chosen: list[bool]) -> dict:
        low, high = wilson(sum(chosen), len(chosen))
        return {"n": len(chosen), "accuracy": sum(chosen) / len(chosen), "interval": [round(low, 5), round(high, 5)]}

    result = score(right)
    for key, names in (("size", SIZES), ("class", CLASSES), ("background", BACKGROUNDS)):
        parts = {name: [r for r, info in zip(right, infos, strict=True) if info.get(key) == name] for name in names}
        if any(parts.values()):
            result[key] = {name: score(part) for name, part in parts.items() if part}
    return result


class _Training(Dataset):
    """The training items of a recipe, each in the window of its step."""

    def __init__(self, recipe: Recipe, task: Task, first: int):
        self.recipe, self.task, self.first = recipe, task, first * recipe.batch

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch - self.first

    def __getitem__(self, index: int) -> Sample:
        index += self.first
        side = self.recipe.window(index // self.recipe.batch)
        factor = self.recipe.zoom ** rng("zoom", self.recipe.seed, index).random()
        sample = enlarged(self.task.item(index, round(side / factor)), side)
        full = self.recipe.faint * self.recipe.images
        return faded(sample, index / full) if index < full else sample


def _batches(recipe: Recipe, task: Task, first: int, workers: int, progress: bool | None) -> Iterable[Batch]:
    """The batches from step `first` on, the same whatever the number of workers, behind a progress bar."""
    loader = DataLoader(_Training(recipe, task, first), recipe.batch, collate_fn=_collate, num_workers=workers)
    if not (progress if progress is not None else not os.environ.get("CI")):
        return loader
    return tqdm(loader, recipe.model, total=recipe.steps, initial=first, unit="step", mininterval=1)


def _target(target: torch.Tensor, infos: list[dict[str, str]], classes: int) -> torch.Tensor:
    """The targets (B,), or where several classes fit a sample, as its info's "compatible" says, even shares (B,C)."""
    if "compatible" not in infos[0]:
        return target
    shares = torch.zeros(len(infos), classes)
    for row, info in zip(shares, infos, strict=True):
        fitting = [int(k) for k in info["compatible"].split(",")]
        row[fitting] = 1 / len(fitting)
    return shares


def _start(recipe: Recipe, task: Task, spec: ModelSpec) -> nn.Module:
    torch.manual_seed(seed_of("train", recipe.seed))  # of the new classifier's weights
    classes = len(task.classes)
    if recipe.weights == "none" and spec.learner:
        model = spec.learner(classes)
        if any(isinstance(module, nn.LayerNorm) for module in model.modules()):
            images = torch.stack([task.item(k, recipe.window(0)).image for k in range(SET_BY)])
            model = set_by_images(model, normalise(images, spec))
        return model
    if recipe.weights in ("imagenet", "none"):
        return spec.build(classes, recipe.weights == "imagenet")
    model, card = restore(recipe.model, Path(recipe.weights))
    if len(card["classes"]) != classes:
        raise InputError(
            f"weights {Path(recipe.weights).name} of {len(card['classes'])} classes; allowed: of {classes}"
        )
    return model


def _freeze(model: nn.Module, last: str) -> list[nn.Module]:
    """Fix all parameters up to those of the layer `last`; returns the modules whose statistics must stay as well."""
    named = list(model.named_modules())
    end = max(k for k, (name, _) in enumerate(named) if f"{name}.".startswith(f"{last}."))  # may be a pooling
    for _, module in named[: end + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    own = ((module, list(module.parameters(recurse=False))) for module in model.modules())
    return [module for module, parameters in own if parameters and not any(p.requires_grad for p in parameters)]


def _average(averaged: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            averaged[key].lerp_(value, 1 - decay)
        else:
            averaged[key].copy_(value)


def device_of(name: str) -> torch.device:
    """The device called `name`, or the best one for "auto"; raises InputError where it can't be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} can't be used here: {reason}; allowed: auto, cpu, cuda ...") from error


def half_of(device: torch.device) -> torch.dtype | None:
    """The type that a device computes faster in than in float32, for mixed precision; None where there is none.

    Processors with bfloat16 instructions take VGG11 through a step in half the time, ConvNeXt and Swin in a third. GPUs
    older than Ampere have none, and float16 would need its losses scaled.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    fast = able.get("avx512_bf16") or able.get("amx_bf16")
    return torch.bfloat16 if device.type == "cpu" and fast else None


@dataclass
class _Run:
    """A training run at one step: all that a resumed run needs."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    averaged: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    record: dict
    hints: Hints | None = None

    @property
    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        parts: dict[str, nn.Module | torch.optim.Optimizer] = {"model": self.model, "optimiser": self.optimiser}
        return parts | ({"heads": self.hints.heads} if self.hints else {})

    def save(self, path: Path) -> None:
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        content = parts | {"averaged": self.averaged, "best": self.best, "record": self.record}
        paths.write_whole(path, lambda part: torch.save(content, part))

    def load(self, path: Path, device: torch.device) -> None:
        saved = torch.load(path, map_location=device, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        self.averaged, self.best = saved["averaged"], saved["best"]
        self.record |= saved["record"]

    def learn(
        self, images: torch.Tensor, target: torch.Tensor, recipe: Recipe, spec: ModelSpec, half: torch.dtype | None
    ) -> None:
        """One optimiser step on images in [0,1], in mixed precision where `half` is a type."""
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate(self.record["step"])
        with (
            torch.autocast(images.device.type, half, enabled=half is not None),
            maps_of(self.model, spec.layers if self.hints else ()) as maps,
        ):
            logits = self.model(normalise(images, spec))
            apart = self.hints(maps, images) if self.hints else torch.zeros(())
        loss = nn.functional.cross_entropy(logits.float(), target, label_smoothing=recipe.smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        if self.record["step"] < recipe.maps_first * recipe.steps:
            apart.backward(retain_graph=True)
            behind = [p for p in self.model.parameters() if p.requires_grad and p.grad is None]
            loss.backward(inputs=behind)
        else:
            (loss + apart).backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimiser.step()
        self.record["step"] += 1
        self.record["losses"].append([loss.item(), apart.item()])
        _average(self.averaged, self.model, min(recipe.ema, self.record["step"] / (self.record["step"] + 9)))

    def judge(self, scores: dict, state: dict[str, torch.Tensor], batch: int) -> None:
        """Write a line of history from the scores of a state, the averaged weights, and keep it if none was better."""
        record = self.record
        loss, apart = torch.tensor(record["losses"]).mean(0).tolist()
        line = {"images": record["step"] * batch, "loss": loss} | ({"hints": apart} if self.hints else {})
        line |= {"validation": scores["accuracy"]} | {k: v["accuracy"] for k, v in scores.get("size", {}).items()}
        print(f"{record['seconds']:6.0f} s  " + "  ".join(f"{k} {v:.4g}" for k, v in line.items()), flush=True)
        record["history"].append(line)
        record["losses"] = []
        if scores["accuracy"] >= record["best"]:  # of equals the later: it has seen more
            self.best = {k: v.clone() for k, v in state.items()}
            record |= {"best": scores["accuracy"], "best_step": record["step"]}


def _sources(recipe: Recipe) -> list[str]:
    """The sha256 of the checkpoints that a training starts from and learns from: with others it is another training."""
    start = [Path(recipe.weights)] if recipe.weights not in ("imagenet", "none") else []
    teacher = [checkpoint_path(recipe.teacher)] if recipe.teacher else []
    return [read_checkpoint(path)[1]["sha256"] for path in start + teacher]


def fit(
    recipe: Recipe, device: str = "auto", workers: int = 1, folder: Path | None = None, progress: bool | None = None
) -> tuple[nn.Module, dict]:
    """Train by a recipe; returns the network with the weights best on validation, and the record of the run.

    folder: where the state is kept (results/training/<checkpoint>), written about once a minute and removed by no one: the
    same recipe goes on from it. progress: whether to draw a bar; None draws one unless the variable CI is set.
    Raises InputError for a device that can't be used here and weights that can't be read.
    """
    place = device_of(device)
    spec = spec_of(recipe.model, recipe.task)
    task = task_of(recipe.task, recipe.seed, scenes=recipe.scenes, shares=recipe.shares)
    model = on_device(_start(recipe, task, spec), place)
    frozen = _freeze(model, spec.layers[0]) if recipe.freeze and recipe.weights != "none" else []
    hints = Hints(recipe.teacher, model, spec, place) if recipe.teacher else None
    made_of = json.dumps([asdict(recipe), task.data, *_sources(recipe)], sort_keys=True)
    state = (folder or training_folder(recipe)) / f"{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.pt"
    parameters = [*model.parameters(), *(hints.heads.parameters() if hints else ())]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    half = half_of(place)
    run = _Run(
        model,
        torch.optim.AdamW(trained, recipe.lr, weight_decay=recipe.weight_decay, fused=True),
        averaged={k: v.clone() for k, v in model.state_dict().items()},
        best={},
        record={"step": 0, "seconds": 0.0, "best": -1.0, "best_step": 0, "losses": [], "history": []},
        hints=hints,
    )
    if state.is_file():
        run.load(state, place)
    examined = copy.deepcopy(model)
    # Drawn once and kept in memory: the same items judge every state.
    side = recipe.exam or task.side
    exam = task.exam(recipe.validation, side)
    others = [task.item(recipe.images + k, side).image for k in range(recipe.norms)]
    unseen = normalise(torch.stack(others), spec).split(recipe.batch) if others else ()
    every = max(1, recipe.validate_every // recipe.batch)
    before, begun = run.record["seconds"], time.monotonic()
    saved_at = begun
    for images, target, infos in _batches(recipe, task, run.record["step"], workers, progress):
        step = run.record["step"]
        torch.manual_seed(seed_of("step", recipe.seed, step))  # of dropout and stochastic depth
        images = images.to(place, memory_format=torch.channels_last)
        model.train()
        for module in frozen:
            module.eval()
        run.learn(images, _target(target, infos, len(task.classes)).to(place), recipe, spec, half)
        run.record["seconds"] = before + time.monotonic() - begun
        if run.record["step"] % every == 0 or run.record["step"] == recipe.steps:
            examined.load_state_dict(run.averaged)
            if unseen:
                update_bn(unseen, examined, place)
            run.judge(evaluate(examined, exam, spec), examined.state_dict(), recipe.batch)
        elif time.monotonic() - saved_at < SAVE_SECONDS:
            continue
        run.save(state)
        saved_at = time.monotonic()
    examined.load_state_dict(run.best)
    run.record["judged_on"] = len(exam)
    return examined.eval(), run.record
