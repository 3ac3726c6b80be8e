"""Train a network on the shapes, the birds or the scenes: python -m refinecam_lib.training --model resnet18

The test set is read once, with the finished fp16 file. A stopped run continues when the same command is given. On few
cores put `OMP_WAIT_POLICY=passive` before it. Busy-waiting threads take the core of the process that draws items.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision

from ..errors import InputError, one_of
from ..networks.checkpoints import checkpoint_path, read_checkpoint, write_checkpoint
from ..networks.loading import load_model
from ..networks.memory import keep_memory
from ..networks.zoo import spec_of
from ..paths import commit
from .loop import device_of, evaluate, fit, half_of
from .recipe import Recipe, shipped_recipes, training_folder
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
    """Train a network, write its checkpoint, and test the written file once.

    Args:
        recipe: Everything that decides the weights.
        out: The .safetensors file. The default is results/training/<checkpoint>/<checkpoint>.safetensors, so that the
            shipped file stays.
        device: "auto", "cpu", "cuda" ...
        workers: Processes that draw items.
        transfer: A folder of pictures, for one more test of the shapes on other backgrounds.
        progress: Whether to draw a bar. None draws one unless the variable CI is set.
        tested: False leaves the tests to a later run.

    Returns:
        The card, which is also written as JSON beside the file. It has the accuracy on the data set's own test and, for
        drawn items, on 6,000 fresh ones.

    Raises:
        InputError: An argument is not allowed, or a file cannot be read.
    """
    keep_memory()  # a step on the CPU takes a seventh less time
    out = Path(out) if out else training_folder(recipe) / checkpoint_path(recipe.model, recipe.task).name
    if out.suffix != ".safetensors":
        raise InputError(f"out {out.name!r}; allowed: a name that ends in .safetensors")
    task = task_of(recipe.task, recipe.seed, scenes=recipe.scenes, shares=recipe.shares, transfer=transfer)
    model, record = fit(recipe, device, workers, progress=progress)
    place = device_of(device)
    hyper = json.loads(json.dumps(asdict(recipe)))  # tuples become lists, as in the file
    for name, plain in (("scenes", ("crowd",)), ("weights", ("imagenet", "none"))):
        if hyper[name] not in plain:  # a card names no folder of a machine
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
        "validation": {"n": record["validated_on"], "accuracy": record["best"]},
        "history": record["history"],
        "commit": commit(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "timm": timm.__version__}
        | {module.__name__: module.__version__.split("+")[0] for module in (torch, torchvision)},
    }
    card |= {"images_in_all": card["images_seen"], "seconds_in_all": card["seconds"], "test_readings": int(tested)}
    if recipe.weights not in ("imagenet", "none"):
        earlier = read_checkpoint(Path(recipe.weights))[1]
        same = ("model", "task", "architecture", "classes", "data", "task_data", "versions", "bytes")
        card["started_from"] = {name: fact for name, fact in earlier.items() if name not in same}
        for name in ("images_in_all", "seconds_in_all"):
            card[name] += earlier.get(name, 0)
        if earlier.get("task", "synthetic") == recipe.task:  # else it read another test set
            card["test_readings"] += earlier.get("test_readings", 0)
    card = write_checkpoint(model, out, card)
    if not tested:
        return card
    written, spec = load_model(recipe.model, out, place), spec_of(recipe.model, recipe.task)
    for name, items in task.tests().items():
        card[name] = evaluate(written, items, spec, workers=workers)
    return write_checkpoint(model, out, card)


def retrain(
    name: str,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    transfer: str | Path | None = None,
    progress: bool | None = None,
) -> dict:
    """Train a shipped network again by the recipes in its card. A stopped call continues where it was.

    Args:
        name: The stem of the checkpoint's file, such as "resnet18".
        out, device, workers, transfer, progress: As in `train`.

    Returns:
        The card of the last recipe's network, which alone is tested.

    Raises:
        InputError: No such network is shipped, or as in `train`.
    """
    *earlier, last = shipped_recipes(name)
    folder = training_folder(last)
    weights = (earlier or [last])[0].weights
    for number, recipe in enumerate(earlier, 1):
        part = folder / f"{name}-{number}.safetensors"
        train(replace(recipe, weights=weights), part, device, workers, progress=progress, tested=False)
        weights = str(part)
    return train(replace(last, weights=weights), out, device, workers, transfer, progress)


def _parsed(option: str, text: str, parse: Callable[[str], object], example: str) -> tuple:
    try:
        return tuple(parse(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text!r}; allowed: {example}") from error


def _stage(text: str) -> tuple[int, float]:
    side, share = text.split(":")
    return int(side), float(share)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return 0, 2 for bad input, or 130 if it was stopped."""
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
    parser.add_argument("--transfer", default=None, help="a folder of pictures for one more test")
    parser.add_argument("--shipped", action="store_true", help="train the shipped network again by its own recipes")
    options = parser.parse_args(arguments)
    rest = (options.out, options.device, options.workers, options.transfer)
    try:
        recipe = {name: getattr(options, name) for name in [*plain, "freeze"]}
        if options.stages:
            recipe["stages"] = _parsed("stages", options.stages, _stage, "window:share,... such as 128:.6,224:.4")
        if options.shares:
            recipe["shares"] = _parsed("shares", options.shares, float, "three numbers such as 2,1,1")
        name = checkpoint_path(options.model, one_of("task", options.task, TASKS)).stem
        given = [key for key, value in recipe.items() if value != defaults[key] and key not in ("model", "task")]
        if options.shipped and given:
            raise InputError(f"{', '.join(given)} with --shipped; allowed: model and task, the rest is in its recipes")
        card = retrain(name, *rest) if options.shipped else train(Recipe(**recipe), *rest)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command continues from the last state.", file=sys.stderr)
        return 130
    for name in ("test", "fresh", "transfer"):
        if name in card:
            low, high = card[name]["interval"]
            print(f"{name}: {card[name]['accuracy']:.2%} of {card[name]['n']} ({low:.2%} to {high:.2%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
