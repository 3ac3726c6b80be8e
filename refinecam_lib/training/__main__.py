"""Train a network on the shapes or the birds and write its checkpoint: python -m refinecam_lib.training --model resnet18

The test set is read once, with the finished fp16 file. A killed run goes on from its last state when the same command
is given. On few cores put `OMP_WAIT_POLICY=passive` before it: threads that wait in a loop keep the process that draws
from its core (Swin's windows of 56 px on two cores: 41 ms an image instead of 52).
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision

from ..errors import InputError, one_of
from ..networks.checkpoints import checkpoint_path, read_checkpoint, write_checkpoint
from ..networks.loading import load_model
from ..networks.zoo import spec_of
from ..paths import commit
from .loop import device_of, evaluate, fit, half_of
from .recipe import Recipe, training_folder
from .shipped import SHIPPED
from .tasks import TASKS, task_of


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    transfer: str | Path | None = None,
    progress: bool | None = None,
    tested: bool = True,
) -> dict:
    """Train, write the checkpoint, test the written file once, and return its card (also written, as JSON).

    out: the .safetensors file, by default results/training/<checkpoint>/<checkpoint>.safetensors, so that the shipped
    one is safe; transfer: a folder of pictures for one more test of the shapes, on backgrounds of another kind; tested:
    False leaves the tests to a later run. The card holds the data set's own test and, where items can be drawn, that on
    6,000 fresh ones, with 95 % intervals, for the shapes also per size, class and kind of background.
    """
    shipped_as = checkpoint_path(recipe.model, recipe.task).name
    out = Path(out) if out else training_folder(recipe) / shipped_as
    if out.suffix != ".safetensors":
        raise InputError(f"out {out.name!r}; allowed: a name that ends in .safetensors")
    task = task_of(recipe.task, recipe.seed, scenes=recipe.scenes, shares=recipe.shares, transfer=transfer)
    model, record = fit(recipe, device, workers, progress=progress)
    place = device_of(device)
    hyper = json.loads(json.dumps(asdict(recipe)))  # with lists for tuples, as it is read back
    for name, plain in (("scenes", ("crowd",)), ("weights", ("imagenet", "none"))):
        if hyper[name] not in plain:  # a folder on somebody's machine
            hyper[name] = Path(hyper[name]).name
    card = {
        "model": recipe.model,
        "task": recipe.task,
        "architecture": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "classes": list(task.classes),
        "data_seed": recipe.seed,
        "data": task.data,
        "task_data": task.task_data,
        "images_seen": record["step"] * recipe.batch,
        "chosen_after_images": record["best_step"] * recipe.batch,
        "epochs": 1,  # every training item is new
        "seconds": round(record["seconds"]),
        "hyper_parameters": hyper,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        "precision": str(half_of(place) or torch.float32).removeprefix("torch."),
        "validation": {"n": record["judged_on"], "accuracy": record["best"]},
        "history": record["history"],
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0],
                     "torchvision": torchvision.__version__.split("+")[0], "timm": timm.__version__,
                     "numpy": np.__version__},
    }  # fmt: skip
    card |= {"images_in_all": card["images_seen"], "seconds_in_all": card["seconds"], "test_readings": int(tested)}
    if recipe.weights not in ("imagenet", "none"):
        earlier = read_checkpoint(Path(recipe.weights))[1]
        same = ("model", "task", "architecture", "classes", "data", "task_data", "versions", "bytes")
        card["started_from"] = {name: fact for name, fact in earlier.items() if name not in same}
        for name in ("images_in_all", "seconds_in_all", "test_readings"):
            card[name] += earlier.get(name, 0)
    card = write_checkpoint(model, out, card)
    if not tested:
        return card
    shipped, spec = load_model(recipe.model, out, place), spec_of(recipe.model, recipe.task)
    for name, items in task.tests().items():
        card[name] = evaluate(shipped, items, spec, workers=workers)
    return write_checkpoint(model, out, card)


def retrain(
    name: str,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    transfer: str | Path | None = None,
    progress: bool | None = None,
) -> dict:
    """Make a shipped network again by its recipes in `SHIPPED`; arguments and result as of `train`.

    A killed call goes on where it was. Only the last recipe's network is tested.
    """
    recipes = SHIPPED[one_of("network with recipes", name, SHIPPED)]
    folder = training_folder(recipes[0])
    weights = recipes[0].weights
    for number, recipe in enumerate(recipes[:-1], 1):
        part = folder / f"{name}-{number}.safetensors"
        train(replace(recipe, weights=weights), part, device, workers, progress=progress, tested=False)
        weights = str(part)
    return train(replace(recipes[-1], weights=weights), out, device, workers, transfer, progress)


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
    """The command line; returns 0, 2 for bad input, or 130 when it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m refinecam_lib.training", description=__doc__.splitlines()[0])
    defaults = {field.name: field.default for field in fields(Recipe)}
    plain = {name: float if d is None else type(d) for name, d in defaults.items() if not isinstance(d, (bool, tuple))}
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
    parser.add_argument("--shipped", action="store_true", help="make the shipped network again, by its own recipes")
    options = parser.parse_args(arguments)
    rest = (options.out, options.device, options.workers, options.transfer)
    try:
        recipe = {name: getattr(options, name) for name in [*plain, "freeze"]}
        if options.stages:
            recipe["stages"] = _stages(options.stages)
        if options.shares:
            recipe["shares"] = _shares(options.shares)
        name = checkpoint_path(options.model, one_of("task", options.task, TASKS)).stem
        given = [key for key, value in recipe.items() if value != defaults[key] and key not in ("model", "task")]
        if options.shipped and given:
            raise InputError(f"{', '.join(given)} with --shipped; allowed: model and task, the rest is in its recipes")
        card = retrain(name, *rest) if options.shipped else train(Recipe(**recipe), *rest)
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
