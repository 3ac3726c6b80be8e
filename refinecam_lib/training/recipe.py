"""The recipe of a training: all that decides a network's weights."""

import math
from dataclasses import dataclass
from pathlib import Path

from .. import paths
from ..errors import InputError, one_of
from ..networks.checkpoints import checkpoint_path
from ..networks.zoo import MODELS, spec_of
from .tasks import TASKS


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights.

    task: "synthetic", the shapes, or "birds"; weights: "imagenet", "none" or a .safetensors file to start from; freeze:
    with trained weights, keep those up to the shallowest explained layer, which halves the cost; stages: (window in
    pixels, share of the images), in order; faint: the share of the images over which the shapes' backgrounds gain
    contrast, from none to their own, without which a network that starts from nothing learns nothing; zoom: windows are
    enlarged by a random factor of 1 to this, without which networks that begin with patches of 4 px learn the outlines
    of larger shapes but not of small ones; warmup: the share of the steps over which the rate rises; smoothing: of the
    labels; clip: the norm to which gradients are cut, if to any; ema: decay of the averaged weights per step; scenes,
    shares: of the shapes, their backgrounds, and how often small, medium and large ones come; validation,
    validate_every: the items that judge, and after how many images they do; exam: the side of their windows, for
    recipes that end in windows, by which a network may forget whole images; 0 for whole images; teacher: a shipped
    network for the shapes whose maps are learnt besides the classes, or none; maps_first: the share of the images over
    which the classes teach only the layers behind the teacher's last map, which learn faster undisturbed; norms: the
    training images by which batch norms are set anew before averaged weights are judged, where these lag behind the
    features; 0 averages them as the weights.
    Departs from the paper, which fine-tunes at lr 1e-4 for up to 40 x 4096 images on whole frames.
    """

    model: str = "efficientnet_lite0"
    task: str = "synthetic"
    weights: str = "imagenet"
    freeze: bool = True
    images: int = 32_000
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.04
    smoothing: float = 0.0
    clip: float | None = None
    ema: float = 0.99
    stages: tuple[tuple[int, float], ...] = ((128, 0.6), (224, 0.4))
    shares: tuple[float, float, float] = (2, 1, 1)
    faint: float = 0.0
    zoom: float = 1.0
    seed: int = 0
    scenes: str = "crowd"
    validation: int = 600
    validate_every: int = 3200
    exam: int = 0
    teacher: str = ""
    maps_first: float = 0.0
    norms: int = 0

    def __post_init__(self):
        object.__setattr__(self, "shares", tuple(map(float, self.shares)))  # 2 and 2.0 are one recipe, and one state
        spec_of(self.model)
        side = TASKS[one_of("task", self.task, TASKS)].side
        for name in ("images", "batch", "validation", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; allowed: 1 or more")
        if self.batch > self.images or self.batch < 2:
            raise InputError(f"batch = {self.batch} with {self.images} images; allowed: 2 to the number of images")
        if self.norms and (self.norms % self.batch or self.norms < 0 or self.freeze):
            raise InputError(f"norms = {self.norms}; allowed: 0, or whole batches of {self.batch} without freezing")
        if self.exam and not 32 <= self.exam <= side:
            raise InputError(f"exam = {self.exam}; allowed: windows of 32 to {side} px, or 0 for whole images")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise InputError(f"lr = {self.lr}; allowed: a positive number")
        if not self.weight_decay >= 0:
            raise InputError(f"weight_decay = {self.weight_decay}; allowed: 0 or more")
        for name in ("warmup", "smoothing", "ema", "maps_first"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)}; allowed: 0 to 1")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip = {self.clip}; allowed: a positive norm, or none")
        if not 0 <= self.faint <= (1 if self.task == "synthetic" else 0):
            raise InputError(f"faint = {self.faint} for the task {self.task!r}; allowed: 0 to 1 for the shapes, else 0")
        if not 1 <= self.zoom <= (4 if self.task == "synthetic" else 1):
            raise InputError(f"zoom = {self.zoom} for the task {self.task!r}; allowed: 1 to 4 for the shapes, else 1")
        if self.teacher and self.task != "synthetic":
            raise InputError(f"teacher = {self.teacher!r} for the task {self.task!r}; allowed: of the shapes only")
        if self.maps_first and not self.teacher:
            raise InputError(f"maps_first = {self.maps_first} without a teacher; allowed: 0")
        if self.teacher:
            one_of("teacher", self.teacher, MODELS)
        fit = all(32 <= window <= side and share > 0 for window, share in self.stages)
        if not fit or abs(sum(share for _, share in self.stages) - 1) > 1e-6:
            allowed = f"windows of 32 to {side} px with positive shares that add up to 1"
            raise InputError(f"stages {self.stages}; allowed: {allowed}")

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


def training_folder(recipe: Recipe) -> Path:
    """Where a recipe's state and its finished network are kept unless told otherwise."""
    return paths.RESULTS / "training" / checkpoint_path(recipe.model, recipe.task).stem
