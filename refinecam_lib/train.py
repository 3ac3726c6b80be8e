"""Train a network on the synthetic set and write its checkpoint: python -m refinecam_lib.train --model efficientnet_lite0

Training items are drawn fresh, first as small windows round the shape at native resolution, which cost a third of a
whole frame, then as whole frames. Weights are an exponential moving average, chosen on validation alone; the test set
is read once, with the finished fp16 file. A killed run goes on from its last state when the same command is given.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Subset

from . import paths
from .checks import InputError, rng, seed_of
from .datasets import Sample
from .models import ModelSpec, load_model, normalise, read_checkpoint, sha256_of, spec_of
from .synthetic import BACKGROUNDS, CLASSES, SIZE, SIZES, SyntheticShapes

try:
    from tqdm.auto import tqdm
except ImportError:  # a convenience
    tqdm = None

TEST_ITEMS, FRESH_ITEMS, TRANSFER_ITEMS = 600, 6000, 600
SAVE_SECONDS = 60


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights.

    weights: "imagenet", "none" or a .safetensors file to start from; freeze: with trained weights, keep those up to the
    shallowest explained layer, which halves the cost; stages: (window in pixels, share of the images), in order;
    shares: how often small, medium and large shapes come; ema: decay of the averaged weights per step.
    Departs from the paper, which fine-tunes at lr 1e-4 for up to 40 x 4096 images on whole frames.
    """

    model: str = "efficientnet_lite0"
    weights: str = "imagenet"
    freeze: bool = True
    images: int = 32_000
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.04
    smoothing: float = 0.0
    ema: float = 0.99
    stages: tuple[tuple[int, float], ...] = ((128, 0.6), (224, 0.4))
    shares: tuple[float, float, float] = (2, 1, 1)
    seed: int = 0
    scenes: str = "crowd"
    validation: int = 600
    validate_every: int = 3200

    def __post_init__(self):
        spec_of(self.model)
        for name in ("images", "batch", "validation", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; allowed: 1 or more")
        if self.batch > self.images or self.batch < 2:
            raise InputError(f"batch = {self.batch} with {self.images} images; allowed: 2 to the number of images")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise InputError(f"lr = {self.lr}; allowed: a positive number")
        if abs(sum(share for _, share in self.stages) - 1) > 1e-6 or any(not 32 <= w <= SIZE for w, _ in self.stages):
            raise InputError(f"stages {self.stages}; allowed: windows of 32 to {SIZE} px with shares that add up to 1")

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.images // self.batch

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then a cosine down to 0."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

    def window(self, step: int) -> int:
        """Side of the windows at a step."""
        done = 0.0
        for side, share in self.stages:
            done += share
            if step < done * self.steps:
                return side
        return self.stages[-1][0]


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    p = right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def evaluate(model: nn.Module, dataset: Sequence[Sample], spec: ModelSpec, batch: int = 50, workers: int = 0) -> dict:
    """Accuracy of a network on a data set, in [0,1]: n, accuracy, its Wilson 95 % interval, and by size, class, background.

    dataset: a sequence of Samples with size, class and background in `info`. The network runs where its weights are.
    """
    device = next(model.parameters()).device
    model.eval()
    right: list[bool] = []
    infos: list[dict[str, str]] = []
    with torch.inference_mode():
        for samples in DataLoader(dataset, batch, collate_fn=list, num_workers=workers):
            images = torch.stack([s.image for s in samples]).to(device, memory_format=torch.channels_last)
            found = model(normalise(images, spec)).argmax(1).cpu()
            right += (found == torch.tensor([s.target for s in samples])).tolist()
            infos += [s.info for s in samples]

    def score(chosen: list[bool]) -> dict:
        low, high = wilson(sum(chosen), len(chosen))
        return {"n": len(chosen), "accuracy": sum(chosen) / len(chosen), "interval": [round(low, 5), round(high, 5)]}

    result = score(right)
    for key, names in (("size", SIZES), ("class", CLASSES), ("background", BACKGROUNDS)):
        parts = {name: [r for r, info in zip(right, infos, strict=True) if info[key] == name] for name in names}
        result[key] = {name: score(part) for name, part in parts.items() if part}
    return result


def _crop(samples: list[Sample], side: int, generator: np.random.Generator) -> torch.Tensor:
    """Windows of `side` px, each anywhere that holds the whole shape, or as much as fits: (B,3,side,side)."""
    windows = []
    for sample in samples:
        corner = []
        for axis in (1, 0):
            inside = torch.nonzero(sample.mask.any(axis)).flatten()
            low, high = max(0, int(inside[-1]) + 1 - side), min(SIZE - side, int(inside[0]))
            corner.append(int(generator.integers(min(low, high), max(low, high) + 1)))
        windows.append(sample.image[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side])
    return torch.stack(windows)


def _batches(recipe: Recipe, first: int, workers: int, progress: bool | None) -> Iterable[list[Sample]]:
    """The batches of samples from step `first` on, the same whatever the number of workers, behind a progress bar."""
    items = SyntheticShapes("train", recipe.images, recipe.seed, scenes=recipe.scenes, shares=recipe.shares)
    rest = Subset(items, range(first * recipe.batch, recipe.steps * recipe.batch))
    loader = DataLoader(rest, recipe.batch, collate_fn=list, num_workers=workers)
    if tqdm is None or not (progress if progress is not None else not os.environ.get("CI")):
        return loader
    return tqdm(loader, recipe.model, total=recipe.steps, initial=first, unit="step", mininterval=1)


def _start(recipe: Recipe) -> nn.Module:
    torch.manual_seed(seed_of("train", recipe.seed))  # of the new classifier's weights
    spec = spec_of(recipe.model)
    model = spec.build(len(CLASSES), recipe.weights == "imagenet")
    if recipe.weights not in ("imagenet", "none"):
        state, card = read_checkpoint(Path(recipe.weights))
        if card["model"] != recipe.model:
            raise InputError(f"weights are of model {card['model']!r}; {recipe.model!r} was asked for")
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model


def _freeze(model: nn.Module, last: str) -> list[nn.Module]:
    """Fix all parameters up to those of the layer `last`; returns the modules whose statistics must stay as well."""
    named = list(model.named_parameters())
    end = max(k for k, (name, _) in enumerate(named) if name.startswith(last + "."))
    for _, parameter in named[: end + 1]:
        parameter.requires_grad_(False)
    own = ((module, list(module.parameters(recurse=False))) for module in model.modules())
    return [module for module, parameters in own if parameters and not any(p.requires_grad for p in parameters)]


def _average(averaged: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            averaged[key].lerp_(value, 1 - decay)
        else:
            averaged[key].copy_(value)


def _write(path: Path, save) -> None:
    """Let `save(path)` write beside the file, then put it in place: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    save(part)
    os.replace(part, path)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} can't be used here: {reason}; allowed: auto, cpu, cuda ...") from error


@dataclass
class _Run:
    """A training run at one step: all that a resumed run needs."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    record: dict

    def save(self, path: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimiser", "scaler")}
        content = parts | {"averaged": self.averaged, "best": self.best, "record": self.record}
        _write(path, lambda part: torch.save(content, part))

    def load(self, path: Path, device: torch.device) -> None:
        saved = torch.load(path, map_location=device, weights_only=True)
        for name in ("model", "optimiser", "scaler"):
            getattr(self, name).load_state_dict(saved[name])
        self.averaged, self.best = saved["averaged"], saved["best"]
        self.record |= saved["record"]

    def learn(self, images: torch.Tensor, target: torch.Tensor, recipe: Recipe, half: torch.dtype) -> None:
        """One optimiser step, in half precision where the device is CUDA."""
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate(self.record["step"])
        with torch.autocast(images.device.type, half, enabled=images.device.type == "cuda"):
            loss = nn.functional.cross_entropy(self.model(images), target, label_smoothing=recipe.smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.record["step"] += 1
        self.record["losses"].append(loss.item())
        _average(self.averaged, self.model, min(recipe.ema, self.record["step"] / (self.record["step"] + 9)))

    def judge(self, scores: dict, batch: int) -> None:
        """Write a line of history from the scores of the averaged weights, and keep these if none were better."""
        record = self.record
        line = {"images": record["step"] * batch, "loss": sum(record["losses"]) / max(1, len(record["losses"]))}
        line |= {"validation": scores["accuracy"]} | {k: v["accuracy"] for k, v in scores["size"].items()}
        print(f"{record['seconds']:6.0f} s  " + "  ".join(f"{k} {v:.4g}" for k, v in line.items()), flush=True)
        record["history"].append(line)
        record["losses"] = []
        if scores["accuracy"] >= record["best"]:  # of equals the later: it has seen more
            self.best = {k: v.clone() for k, v in self.averaged.items()}
            record |= {"best": scores["accuracy"], "best_step": record["step"]}


def fit(
    recipe: Recipe, device: str = "auto", workers: int = 1, folder: Path | None = None, progress: bool | None = None
) -> tuple[nn.Module, dict]:
    """Train by a recipe; returns the network with the weights best on validation, and the record of the run.

    folder: where the state is kept (results/training/<model>), written about once a minute and removed by no one: the
    same recipe goes on from it. progress: whether to draw a bar; None draws one unless the variable CI is set.
    Raises InputError for a device that can't be used here and weights that can't be read.
    """
    device = _device(device)
    spec = spec_of(recipe.model)
    key = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:12]
    state = (folder or paths.RESULTS / "training" / recipe.model) / f"{key}.pt"
    model = _start(recipe).to(device, memory_format=torch.channels_last)
    frozen = _freeze(model, spec.layers[0]) if recipe.freeze and recipe.weights != "none" else []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    half = torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
    run = _Run(
        model,
        torch.optim.AdamW(trained, recipe.lr, weight_decay=recipe.weight_decay),
        torch.amp.GradScaler(device.type, enabled=half == torch.float16),
        averaged={k: v.clone() for k, v in model.state_dict().items()},
        best={},
        record={"step": 0, "seconds": 0.0, "best": -1.0, "best_step": 0, "losses": [], "history": []},
    )
    if state.is_file():
        run.load(state, device)
    examined = spec.build(len(CLASSES), False).to(device, memory_format=torch.channels_last)
    # Drawn once and kept in memory: the same items judge every state.
    exam = list(SyntheticShapes("validation", recipe.validation, scenes=recipe.scenes))
    every = max(1, recipe.validate_every // recipe.batch)
    before, begun = run.record["seconds"], time.monotonic()
    saved_at = begun
    for samples in _batches(recipe, run.record["step"], workers, progress):
        step = run.record["step"]
        torch.manual_seed(seed_of("step", recipe.seed, step))  # of dropout and stochastic depth
        images = _crop(samples, recipe.window(step), rng("window", recipe.seed, step))
        images = normalise(images.to(device, memory_format=torch.channels_last), spec)
        model.train()
        for module in frozen:
            module.eval()
        run.learn(images, torch.tensor([s.target for s in samples], device=device), recipe, half)
        run.record["seconds"] = before + time.monotonic() - begun
        if run.record["step"] % every == 0 or run.record["step"] == recipe.steps:
            examined.load_state_dict(run.averaged)
            run.judge(evaluate(examined, exam, spec), recipe.batch)
        elif time.monotonic() - saved_at < SAVE_SECONDS:
            continue
        run.save(state)
        saved_at = time.monotonic()
    examined.load_state_dict(run.best)
    return examined.eval(), run.record


def commit() -> str:
    """The short git commit of the checkout, with -dirty where tracked files differ, or "unknown"."""
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_checkpoint(model: nn.Module, path: Path, card: dict) -> dict:
    """Write a network as fp16 safetensors with its JSON card beside it; returns the card with its sha256."""
    state = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in model.state_dict().items()}
    _write(path, lambda part: safetensors.torch.save_file(state, part))
    path.chmod(0o644)  # safetensors leaves it to its owner alone
    card = card | {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    _write(path.with_suffix(".json"), lambda part: part.write_text(json.dumps(card, indent=1) + "\n"))
    return card


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    transfer: str | Path | None = None,
    progress: bool | None = None,
) -> dict:
    """Train, write the checkpoint, test the written file once, and return its card (also written, as JSON).

    out: the .safetensors file, by default results/training/<model>/<model>.safetensors, so that the shipped one is
    safe; transfer: a folder of pictures for one more test on backgrounds of another kind. The card holds the test on
    600 items and on 6,000 fresh ones, overall, per shape size, class and kind of background, with 95 % intervals.
    """
    out = Path(out) if out else paths.RESULTS / "training" / recipe.model / f"{recipe.model}.safetensors"
    if out.suffix != ".safetensors":
        raise InputError(f"out {out.name!r}; allowed: a name that ends in .safetensors")
    others = SyntheticShapes("all", TRANSFER_ITEMS, scenes=transfer) if transfer else None
    model, record = fit(recipe, device, workers, progress=progress)
    hyper = json.loads(json.dumps(asdict(recipe)))  # with lists for tuples, as it is read back
    for name, plain in (("scenes", ("crowd",)), ("weights", ("imagenet", "none"))):
        if hyper[name] not in plain:  # a folder on somebody's machine
            hyper[name] = Path(hyper[name]).name
    card = {
        "model": recipe.model,
        "architecture": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "classes": list(CLASSES),
        "data_seed": recipe.seed,
        "backgrounds": f"scenes {hyper['scenes']}; training half raw, half Perlin-mask imputed",
        "images_seen": record["step"] * recipe.batch,
        "chosen_after_images": record["best_step"] * recipe.batch,
        "epochs": 1,  # every training item is new
        "seconds": round(record["seconds"]),
        "hyper_parameters": hyper,
        "validation": {"n": recipe.validation, "accuracy": record["best"]},
        "history": record["history"],
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0],
                     "torchvision": torchvision.__version__.split("+")[0], "timm": timm.__version__,
                     "numpy": np.__version__},
    }  # fmt: skip
    if recipe.weights not in ("imagenet", "none"):
        kept = ("images_seen", "chosen_after_images", "seconds", "hyper_parameters", "validation", "history", "commit")
        earlier = read_checkpoint(Path(recipe.weights))[1]
        card["started_from"] = {name: earlier[name] for name in (*kept, "sha256", "started_from") if name in earlier}
    card = write_checkpoint(model, out, card)
    shipped, spec = load_model(recipe.model, out, _device(device)), spec_of(recipe.model)
    tests = {"test": SyntheticShapes("test", TEST_ITEMS, scenes=recipe.scenes)}
    # Another seed: other shapes, flips, colours and masks over the scenes of the test split.
    tests["fresh"] = SyntheticShapes("test", FRESH_ITEMS, seed=1, scenes=recipe.scenes)
    if others:
        tests["transfer"] = others
    for name, items in tests.items():
        card[name] = evaluate(shipped, items, spec, workers=workers)
    return write_checkpoint(model, out, card)


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"shares {text!r}; allowed: three numbers such as 2,1,1") from error


def _stages(text: str) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((int(side), float(share)) for side, share in (part.split(":") for part in text.split(",")))
    except ValueError as error:
        raise InputError(f"stages {text!r}; allowed: window:share,... such as 128:.6,224:.4") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m refinecam_lib.train", description=__doc__.splitlines()[0])
    plain = {"model": str, "weights": str, "images": int, "batch": int, "lr": float, "seed": int, "ema": float,
             "smoothing": float, "weight_decay": float, "scenes": str, "validation": int, "validate_every": int}  # fmt: skip
    defaults = {field.name: field.default for field in fields(Recipe)}
    for name, kind in plain.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, default=defaults[name], help=f"default {defaults[name]}")
    parser.add_argument("--freeze", action=argparse.BooleanOptionalAction, default=True, help="keep the first layers")
    parser.add_argument("--stages", default=None, help="window:share,... (default 128:.6,224:.4)")
    parser.add_argument("--shares", default=None, help="of small, medium and large shapes (default 2,1,1)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw items (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--out", type=Path, default=None, help="the .safetensors file to write")
    parser.add_argument("--transfer", default=None, help="a folder of pictures to test on as well")
    options = parser.parse_args(arguments)
    try:
        recipe = {name: getattr(options, name) for name in [*plain, "freeze"]}
        if options.stages:
            recipe["stages"] = _stages(options.stages)
        if options.shares:
            recipe["shares"] = _shares(options.shares)
        card = train(Recipe(**recipe), options.out, options.device, options.workers, options.transfer)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last state", file=sys.stderr)
        return 130
    for name in ("test", "fresh", "transfer"):
        if name in card:
            low, high = card[name]["interval"]
            print(f"{name}: {card[name]['accuracy']:.2%} of {card[name]['n']} ({low:.2%} to {high:.2%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
