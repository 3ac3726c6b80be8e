"""The recipe of a training: everything that decides a network's weights."""

import math
from dataclasses import dataclass, fields
from pathlib import Path

from .. import paths
from ..errors import InputError, one_of
from ..networks.checkpoints import checkpoint_path, read_checkpoint
from ..networks.zoo import MODELS, spec_of
from .tasks import TASKS


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. Cards of checkpoints hold these fields by name.

    Departs from the paper, which fine-tunes at lr 1e-4 for up to 40 x 4096 images on whole frames.

    Raises:
        InputError: A value is not allowed.
    """

    model: str = "efficientnet_lite0"
    """A name in MODELS or SMALL."""
    task: str = "synthetic"
    """A name in TASKS: "synthetic" for the shapes, "birds", "scenes_objects" or "scenes_badges"."""
    weights: str = "imagenet"
    """"imagenet", "none", or a .safetensors file to start from."""
    freeze: bool = True
    """Keep trained weights up to the shallowest explained layer. It halves the cost."""
    images: int = 32_000
    """Number of training images."""
    batch: int = 32
    lr: float = 1e-3
    """Largest learning rate."""
    weight_decay: float = 1e-4
    warmup: float = 0.04
    """Share of the steps over which the learning rate rises."""
    smoothing: float = 0.0
    """Label smoothing."""
    clip: float | None = None
    """Largest norm of the gradient."""
    ema: float = 0.99
    """Decay of the averaged weights per step."""
    stages: tuple[tuple[int, float], ...] = ((128, 0.6), (224, 0.4))
    """Windows in pixels, each with its share of the images, in order."""
    shares: tuple[float, float, float] = (2, 1, 1)
    """How often small, medium and large shapes or objects come."""
    faint: float = 0.0
    """Share of the images over which the background's contrast grows from 0 to its own. ResNet18 and VGG11 need it to
    learn from random weights."""
    zoom: float = 1.0
    """Windows are enlarged by a random factor between 1 and this. Without it, networks on 4x4 patches learn only the
    outlines of large shapes."""
    seed: int = 0
    scenes: str = "crowd"
    """Backgrounds of the shapes: "crowd", or a folder of pictures."""
    validation: int = 600
    """Number of validation images."""
    validate_every: int = 3200
    """Images between two validations."""
    exam: int = 0
    """Side of validation windows in pixels, 0 for whole images. Recipes that end in small windows need it."""
    teacher: str = ""
    """A shipped network for the shapes whose maps are learnt as well (feature distillation)."""
    maps_first: float = 0.0
    """Share of the images over which classes train only the layers behind the teacher's last map. They learn faster."""
    norms: int = 0
    """Training images that recompute the batch norms of averaged weights before validation. 0 averages the norms."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(map(float, self.shares)))  # 2 and 2.0 are the same recipe

        def require(fine: bool, name: str, allowed: str, detail: str = "") -> None:
            if not fine:
                raise InputError(f"{name} = {getattr(self, name)!r}{detail}; allowed: {allowed}")

        spec_of(self.model)
        side = TASKS[one_of("task", self.task, TASKS)].side
        shapes, of_task = self.task == "synthetic", f" for the task {self.task!r}"
        for name in ("images", "batch", "validation", "validate_every"):
            require(getattr(self, name) >= 1, name, "1 or more")
        for name in ("warmup", "smoothing", "ema", "maps_first"):
            require(0 <= getattr(self, name) <= 1, name, "0 to 1")
        require(2 <= self.batch <= self.images, "batch", "2 to the number of images", f" with {self.images} images")
        norms = not self.norms or (self.norms > 0 and self.norms % self.batch == 0 and not self.freeze)
        require(norms, "norms", f"0, or whole batches of {self.batch} without freezing")
        require(not self.exam or 32 <= self.exam <= side, "exam", f"windows of 32 to {side} px, or 0 for whole images")
        require(0 < self.lr < math.inf, "lr", "a positive number")
        require(self.weight_decay >= 0, "weight_decay", "0 or more")
        require(self.clip is None or self.clip > 0, "clip", "a positive norm, or none")
        require(0 <= self.faint <= shapes, "faint", "0 to 1 for the shapes, else 0", of_task)
        require(1 <= self.zoom <= (4 if shapes else 1), "zoom", "1 to 4 for the shapes, else 1", of_task)
        require(not self.teacher or shapes, "teacher", "only for the shapes", of_task)
        require(not self.maps_first or bool(self.teacher), "maps_first", "0", " without a teacher")
        if self.teacher:
            one_of("teacher", self.teacher, MODELS)
        fit = all(32 <= window <= side and share > 0 for window, share in self.stages)
        whole = abs(sum(share for _, share in self.stages) - 1) <= 1e-6
        require(fit and whole, "stages", f"windows of 32 to {side} px with positive shares that add up to 1")

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.images // self.batch

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then a cosine down to 0."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

    def window(self, step: int) -> int:
        """Return the side of the training windows at a step, in pixels."""
        done = 0.0
        for side, share in self.stages:
            done += share
            if step < done * self.steps:
                return side
        return self.stages[-1][0]


def training_folder(recipe: Recipe) -> Path:
    """Return the default folder of a recipe's state and of its finished network."""
    return paths.RESULTS / "training" / checkpoint_path(recipe.model, recipe.task).stem


def shipped_recipes(name: str) -> list[Recipe]:
    """Read from a shipped network's card how it was made.

    Args:
        name: The stem of the checkpoint's file, such as "resnet18" or "small_vgg_birds".

    Returns:
        Recipes in order. Each starts from the weights of the one before. A field that the card does not know has its
        default.

    Raises:
        InputError: No such network is shipped, or its card is not whole.
    """
    one_of("shipped network", name, [path.stem for path in sorted(paths.CHECKPOINTS.glob("*.safetensors"))])
    card = read_checkpoint(paths.CHECKPOINTS / f"{name}.safetensors")[1]
    recipes: list[Recipe] = []
    known = {field.name for field in fields(Recipe)}
    while card:
        given = {key: value for key, value in card["hyper_parameters"].items() if key in known}
        given["stages"] = tuple((side, share) for side, share in given["stages"])
        recipes.insert(0, Recipe(**given))
        card = card.get("started_from", {})
    return recipes
