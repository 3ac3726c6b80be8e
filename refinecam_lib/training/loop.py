"""Train a network by a recipe, and measure its accuracy by size, class and background.

Every training item is new. They come as small windows first, which cost a third of a whole image or less. The result is
an exponential moving average of the weights, chosen on the validation set.
"""

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .. import paths
from ..datasets import backdrops, scenes, shapes
from ..datasets.sample import Sample, Samples, batch_of
from ..errors import InputError, rng, seed_of
from ..networks.checkpoints import checkpoint_path, read_checkpoint
from ..networks.loading import normalise, on_device, restore
from ..networks.zoo import ModelSpec, spec_of
from .distillation import Distillation, maps_of
from .initialisation import set_by_images
from .recipe import Recipe, training_folder
from .tasks import Task, enlarged, faded, task_of

SAVE_SECONDS = 60
"""Seconds between two saved states."""
SET_BY = 256
"""Number of training items that initialise a network with layer norms."""

PARTS: dict[str, tuple[str, ...]] = {
    "size": tuple(shapes.SIZES),
    "class": (*shapes.CLASSES, *scenes.CLASSES, *scenes.BADGES),
    "background": (*shapes.BACKGROUNDS, *backdrops.KINDS),
    "hidden": ("0", "25", "50"),
    "distractors": ("0", "2", "5"),
    "objects": ("1", "2"),
}
"""Columns of `info` whose values are counted apart."""

Batch = tuple[Tensor, Tensor, list[dict[str, str]]]


def _collate(samples: list[Sample]) -> Batch:
    """Join images, targets and infos in the worker, because each tensor that a worker passes is an open file."""
    images, target, _ = batch_of(samples)
    return images, target, [s.info for s in samples]


def evaluate(model: nn.Module, dataset: Samples, spec: ModelSpec, batch: int = 50, workers: int = 0) -> dict:
    """Measure a network's accuracy on a data set.

    Args:
        model: The network. It runs on the device of its weights.
        dataset: Samples with columns of PARTS in `info`. A class that "compatible" lists there is right too.
        spec: The network's specification.
        batch: Images per forward pass.
        workers: Processes that draw the samples.

    Returns:
        "n", "accuracy" in [0,1] and its 95 % Wilson "interval". "size", "class", "background" and so on hold the same
        for each size, class and background.
    """
    from scipy.stats import binomtest  # slow to import

    device = next(model.parameters()).device
    model.eval()
    right: list[bool] = []
    infos: list[dict[str, str]] = []
    loader = DataLoader(cast(Dataset, dataset), batch, collate_fn=_collate, num_workers=workers)
    with torch.inference_mode():
        for images, target, of_batch in loader:
            inputs = normalise(images.to(device, memory_format=torch.channels_last), spec)
            found = model(inputs).argmax(1).tolist()
            allowed = [i.get("compatible", str(t)).split(",") for i, t in zip(of_batch, target.tolist(), strict=True)]
            right += [str(one) in classes for one, classes in zip(found, allowed, strict=True)]
            infos += of_batch

    def score(chosen: list[bool]) -> dict:
        interval = binomtest(sum(chosen), len(chosen)).proportion_ci(method="wilson")
        bounds = [round(float(bound), 5) for bound in interval]
        return {"n": len(chosen), "accuracy": sum(chosen) / len(chosen), "interval": bounds}

    result = score(right)
    for key, names in PARTS.items():
        parts = {name: [r for r, info in zip(right, infos, strict=True) if info.get(key) == name] for name in names}
        if any(parts.values()):
            result[key] = {name: score(part) for name, part in parts.items() if part}
    return result


class _Training(Dataset):
    """The training items of a recipe from step `first` on, each in the window of its step."""

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
    """Yield the batches from step `first` on. They do not depend on the number of workers."""
    loader = _read(DataLoader(_Training(recipe, task, first), recipe.batch, collate_fn=_collate, num_workers=workers))
    if not (progress if progress is not None else not os.environ.get("CI")):
        return loader
    return tqdm(loader, recipe.model, total=recipe.steps, initial=first, unit="step", mininterval=1)


def _read(loader: Iterable[Batch]) -> Iterable[Batch]:
    """Yield the batches of a loader. An InputError of a worker loses the traceback that torch puts into its message."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from None


def _target(target: Tensor, infos: list[dict[str, str]], classes: int) -> Tensor:
    """Return the targets (B,), or equal shares (B,C) of the classes that a sample's "compatible" lists."""
    if "compatible" not in infos[0]:
        return target
    shares = torch.zeros(len(infos), classes)
    for row, info in zip(shares, infos, strict=True):
        fitting = [int(k) for k in info["compatible"].split(",")]
        row[fitting] = 1 / len(fitting)
    return shares


def _start(recipe: Recipe, task: Task, spec: ModelSpec) -> nn.Module:
    """Build the network with its first weights."""
    torch.manual_seed(seed_of("train", recipe.seed))  # for the new classifier
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
    if card.get("task", "synthetic") == "synthetic" != recipe.task:
        return _with_new_classifier(model, spec, classes)
    if len(card["classes"]) != classes:
        raise InputError(
            f"weights {Path(recipe.weights).name} of {len(card['classes'])} classes; allowed: of {classes}"
        )
    return model


def _with_new_classifier(model: nn.Module, spec: ModelSpec, classes: int) -> nn.Module:
    """Build the network for other classes. It has the weights of `model`, except in the classifier."""
    new = spec.build(classes, False)
    own, known = new.state_dict(), model.state_dict()
    new.load_state_dict(own | {key: value for key, value in known.items() if own[key].shape == value.shape})
    return new


def _freeze(model: nn.Module, last: str) -> list[nn.Module]:
    """Fix all parameters up to the layer `last`. Return the modules whose batch statistics must stay fixed too."""
    named = list(model.named_modules())
    end = max(k for k, (name, _) in enumerate(named) if f"{name}.".startswith(f"{last}."))
    for _, module in named[: end + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    own = ((module, list(module.parameters(recurse=False))) for module in model.modules())
    return [module for module, parameters in own if parameters and not any(p.requires_grad for p in parameters)]


def _average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return the moving average for AveragedModel. Its decay grows towards `decay` in the first steps."""

    def average(averaged: Tensor, value: Tensor, step: Tensor | int) -> Tensor:
        n = int(step)
        return averaged.lerp(value, 1 - min(decay, n / (n + 9))) if value.is_floating_point() else value

    return average


def device_of(name: str) -> torch.device:
    """Return the device of this name. "auto" takes a GPU if there is one.

    Raises:
        InputError: The device cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build without CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} can't be used here: {reason}; allowed: auto, cpu, cuda ...") from error


def half_of(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 if the device computes faster in it, for mixed precision, else None.

    On CPUs with bfloat16 instructions a step of VGG11 takes half the time, one of ConvNeXt or Swin a third. GPUs
    older than Ampere have no bfloat16. Their float16 would need loss scaling.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    fast = able.get("avx512_bf16") or able.get("amx_bf16")
    return torch.bfloat16 if device.type == "cpu" and fast else None


class _Run:
    """A training run: the network, its averaged and best weights, and the record."""

    def __init__(self, recipe: Recipe, task: Task, device: torch.device):
        self.recipe, self.spec, self.device = recipe, spec_of(recipe.model, recipe.task), device
        self.half = half_of(device)
        self.model = on_device(_start(recipe, task, self.spec), device)
        freeze = recipe.freeze and recipe.weights != "none"
        self.frozen = _freeze(self.model, self.spec.layers[0]) if freeze else []
        self.distillation = Distillation(recipe.teacher, self.model, self.spec, device) if recipe.teacher else None
        heads = self.distillation.heads.parameters() if self.distillation else ()
        learning = [parameter for parameter in (*self.model.parameters(), *heads) if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(learning, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        self.averaged = AveragedModel(self.model, avg_fn=_average(recipe.ema), use_buffers=True)
        self.averaged.n_averaged += 1  # at 0 torch would copy the first weights instead of averaging
        self.best: dict[str, Tensor] = {}
        self.record: dict = {"step": 0, "seconds": 0.0, "best": -1.0, "best_step": 0, "losses": [], "history": []}
        side = recipe.exam or task.side
        self.validation = task.validation(recipe.validation, side)
        others = [task.item(recipe.images + k, side).image for k in range(recipe.norms)]
        self.for_norms = normalise(torch.stack(others), self.spec).split(recipe.batch) if others else ()

    @property
    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        parts: dict[str, nn.Module | torch.optim.Optimizer]
        parts = {"model": self.model, "optimiser": self.optimiser, "averaged": self.averaged}
        return parts | ({"heads": self.distillation.heads} if self.distillation else {})

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        content = parts | {"best": self.best, "record": self.record}
        paths.write_whole(path, lambda part: torch.save(content, part))

    def load(self, path: Path) -> None:
        """Continue from a saved state."""
        saved = torch.load(path, map_location=self.device, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        self.best = saved["best"]
        self.record |= saved["record"]

    def learn(self, images: Tensor, target: Tensor) -> None:
        """Take one optimiser step on images in [0,1], in mixed precision if the device is faster in it."""
        recipe, step = self.recipe, self.record["step"]
        torch.manual_seed(seed_of("step", recipe.seed, step))  # for dropout and stochastic depth
        self.model.train()
        for module in self.frozen:
            module.eval()
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        with (
            torch.autocast(images.device.type, self.half, enabled=self.half is not None),
            maps_of(self.model, self.spec.layers if self.distillation else ()) as maps,
        ):
            logits = self.model(normalise(images, self.spec))
            map_loss = self.distillation(maps, images) if self.distillation else torch.zeros(())
        loss = nn.functional.cross_entropy(logits.float(), target, label_smoothing=recipe.smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        if step < recipe.maps_first * recipe.steps:
            map_loss.backward(retain_graph=True)
            behind = [p for p in self.model.parameters() if p.requires_grad and p.grad is None]
            loss.backward(inputs=behind)
        else:
            (loss + map_loss).backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimiser.step()
        self.record["step"] += 1
        self.record["losses"].append([loss.item(), map_loss.item()])
        self.averaged.update_parameters(self.model)

    def validate(self) -> None:
        """Measure the averaged weights on the validation set, add a line to the history, and keep the best weights."""
        record, network = self.record, copy.deepcopy(self.averaged.module)
        if self.for_norms:
            update_bn(self.for_norms, network, self.device)
        scores = evaluate(network, self.validation, self.spec)
        loss, map_loss = torch.tensor(record["losses"]).mean(0).tolist()
        line = {"images": record["step"] * self.recipe.batch, "loss": loss}
        line |= {"hints": map_loss} if self.distillation else {}  # the key in the shipped cards
        line |= {"validation": scores["accuracy"]} | {k: v["accuracy"] for k, v in scores.get("size", {}).items()}
        print(f"{record['seconds']:6.0f} s  " + "  ".join(f"{k} {v:.4g}" for k, v in line.items()), flush=True)
        record["history"].append(line)
        record["losses"] = []
        if scores["accuracy"] >= record["best"]:  # of equals the later one, which has seen more images
            self.best = network.state_dict()
            record |= {"best": scores["accuracy"], "best_step": record["step"]}


def _sources(recipe: Recipe) -> list[str]:
    """Return the sha256 of the checkpoints that a training starts from and learns from."""
    start = [Path(recipe.weights)] if recipe.weights not in ("imagenet", "none") else []
    teacher = [checkpoint_path(recipe.teacher)] if recipe.teacher else []
    return [read_checkpoint(path)[1]["sha256"] for path in start + teacher]


def fit(
    recipe: Recipe, device: str = "auto", workers: int = 1, folder: Path | None = None, progress: bool | None = None
) -> tuple[nn.Module, dict]:
    """Train a network by a recipe.

    Args:
        recipe: Everything that decides the weights.
        device: "auto", "cpu", "cuda" ...
        workers: Processes that draw training items.
        folder: Where the state is saved about once a minute. The same recipe continues from it. The default is
            results/training/<checkpoint>.
        progress: Whether to draw a bar. None draws one unless the variable CI is set.

    Returns:
        The network with the weights that are best on the validation set, and the record of the run.

    Raises:
        InputError: The device cannot be used, or weights cannot be read.
    """
    task = task_of(recipe.task, recipe.seed, scenes=recipe.scenes, shares=recipe.shares)
    run = _Run(recipe, task, device_of(device))
    made_of = json.dumps([asdict(recipe), task.data, *_sources(recipe)], sort_keys=True)
    state = (folder or training_folder(recipe)) / f"run_{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.pt"
    if state.is_file():
        run.load(state)
    every = max(1, recipe.validate_every // recipe.batch)
    before, begun = run.record["seconds"], time.monotonic()
    saved_at = begun
    for images, target, infos in _batches(recipe, task, run.record["step"], workers, progress):
        images = images.to(run.device, memory_format=torch.channels_last)
        run.learn(images, _target(target, infos, len(task.classes)).to(run.device))
        run.record["seconds"] = before + time.monotonic() - begun
        if run.record["step"] % every == 0 or run.record["step"] == recipe.steps:
            run.validate()
        elif time.monotonic() - saved_at < SAVE_SECONDS:
            continue
        run.save(state)
        saved_at = time.monotonic()
    run.model.load_state_dict(run.best)
    return run.model.eval(), run.record | {"validated_on": len(run.validation)}
