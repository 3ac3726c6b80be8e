"""What a network learns and is tested on: the shapes of the synthetic set, or the birds.

>>> task = task_of("birds", seed=0)
>>> task.item(7, side=128).image.shape, len(task.exam(500, side=64))
(torch.Size([3, 128, 128]), 500)

A task gives training items in windows of any side, the items that choose among states of a run, and the tests.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Protocol, cast

import numpy as np
import torch
from torch import nn

from ..datasets import shapes as synthetic
from ..datasets.sample import Sample, Samples
from ..datasets.shapes import SyntheticShapes
from ..errors import InputError, one_of, rng
from ..funnybirds import drawing as birds
from ..funnybirds.dataset import FunnyBirds, sample_of

TEST_ITEMS, FRESH_ITEMS, TRANSFER_ITEMS = 600, 6000, 600
HELD_OUT = 1000
"""The last training images of the birds, which choose among states instead."""


class Task(Protocol):
    """Training items by number, and the items that judge; `side` is a whole image's, `data` says what it is made of."""

    classes: ClassVar[tuple[str, ...]]
    side: ClassVar[int]
    data: str
    task_data: str

    def item(self, index: int, side: int) -> Sample:
        """Training item `index`, each a new one, in a window of `side` px."""

    def exam(self, n: int, side: int) -> list[Sample]:
        """The first n items that choose among states, in windows of `side` px; neither trained nor tested on."""

    def tests(self) -> dict[str, Samples]:
        """The tests by name: "test", the data set's own, and "fresh", items that another seed has never looked at."""


class Shapes:
    """Six shapes over crowded backgrounds, windows at native resolution that hold the shape, or as much as fits.

    scenes, shares: as for SyntheticShapes. transfer: a folder of pictures for one more test, "transfer".
    """

    classes: ClassVar[tuple[str, ...]] = synthetic.CLASSES
    side: ClassVar[int] = synthetic.SIZE
    task_data = "own shapes"

    def __init__(
        self,
        seed: int = 0,
        scenes: str | Path = "crowd",
        shares: tuple[float, float, float] = (1, 1, 1),
        transfer: str | Path | None = None,
    ):
        self.seed, self.scenes = seed, scenes
        name = scenes if scenes == "crowd" else Path(scenes).name  # a folder on somebody's machine
        self.data = f"scenes {name}; training half raw, half Perlin-mask imputed"
        self.training = SyntheticShapes("train", 10**9, seed, scenes=scenes, shares=shares)
        self.others = SyntheticShapes("all", TRANSFER_ITEMS, scenes=transfer) if transfer else None

    def item(self, index: int, side: int) -> Sample:
        return _window(self.training[index], side, rng("window", self.seed, index))

    def exam(self, n: int, side: int) -> list[Sample]:
        validation = SyntheticShapes("validation", n, scenes=self.scenes)
        return [_window(validation[i], side, rng("exam", i)) for i in range(n)]

    def tests(self) -> dict[str, Samples]:
        tests: dict[str, Samples] = {"test": SyntheticShapes("test", TEST_ITEMS, scenes=self.scenes)}
        # Other shapes, flips, colours and masks over the scenes of the test split; of another seed for each recipe's
        # seed, so that training on from a tested network meets items that nobody has looked at.
        tests["fresh"] = SyntheticShapes("test", FRESH_ITEMS, self.seed + 1, scenes=self.scenes)
        return tests | ({"transfer": self.others} if self.others else {})


def _window(sample: Sample, side: int, generator: np.random.Generator) -> Sample:
    """A window of `side` px, anywhere that holds the whole shape, or as much as fits."""
    corner, mask = [], cast(torch.Tensor, sample.mask)
    whole = mask.shape[-1]
    for axis in (1, 0):
        inside = torch.nonzero(mask.any(axis)).flatten()
        low, high = max(0, int(inside[-1]) + 1 - side), min(whole - side, int(inside[0]))
        corner.append(int(generator.integers(min(low, high), max(low, high) + 1)))
    rows, columns = (slice(start, start + side) for start in corner)
    return Sample(sample.image[:, rows, columns], sample.target, sample.id, mask[rows, columns], sample.info)


def faded(sample: Sample, contrast: float) -> Sample:
    """The sample with its background, all outside its mask, drawn towards its mean colour: contrast 1 leaves it as it is."""
    image, mask = sample.image, cast(torch.Tensor, sample.mask)
    mean = image.mean((1, 2), keepdim=True)
    return replace(sample, image=torch.where(mask, image, mean + contrast * (image - mean)))


def enlarged(sample: Sample, side: int) -> Sample:
    """The sample at `side` px, its image bilinear, its mask by nearest neighbours; as it is where that is its side."""
    if sample.image.shape[-1] == side:
        return sample
    image = nn.functional.interpolate(sample.image[None], size=side, mode="bilinear", align_corners=False)[0]
    mask = cast(torch.Tensor, sample.mask)
    larger = nn.functional.interpolate(mask[None, None].float(), size=side)[0, 0] > 0
    return replace(sample, image=image, mask=larger)


class Birds:
    """FunnyBirds or the project's own birds, whole ones and such that lack parts, drawn or averaged to a window's side.

    Training items carry the classes that their visible parts allow, all of which are their target ("multi-target", as
    Hesse et al. train for the interventions). The project's own birds never end; files come in a new order each epoch.
    """

    classes: ClassVar[tuple[str, ...]] = tuple(f"bird {k:02d}" for k in range(len(birds.CLASSES)))
    side: ClassVar[int] = birds.SIDE

    def __init__(self, seed: int = 0):
        self.seed, self.birds = seed, FunnyBirds()
        self.data = f"{'the procedural birds' if self.birds.drawn else 'FunnyBirds'}; targets: all classes that fit"
        self.task_data = "own birds" if self.birds.drawn else "FunnyBirds"
        self.seen = self.birds.train_length() - HELD_OUT
        if self.seen < 1:
            raise InputError(f"{self.seen + HELD_OUT} training birds; allowed: more than the {HELD_OUT} held out")

    def item(self, index: int, side: int) -> Sample:
        if not self.birds.drawn:
            epoch, place = divmod(index, self.seen)
            return self.birds.train(int(_order(self.seen, self.seed, epoch)[place]), side)
        index += self.seed * 10**8
        return self.birds.train(index if index < self.seen else index + HELD_OUT, side)

    def exam(self, n: int, side: int) -> list[Sample]:
        held_out = range(self.seen, self.seen + HELD_OUT)
        whole = [i for i in held_out if birds.is_whole(self.birds.scene(i, "train"))]
        return [self.birds.train(i, side) for i in whole[:n]]

    def tests(self) -> dict[str, Samples]:
        return {"test": self.birds} | ({"fresh": FreshBirds(self.seed)} if self.birds.drawn else {})


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return rng("birds", "order", seed, epoch).permutation(n)


class FreshBirds(Sequence[Sample]):
    """Whole birds of the project's own set that no split lists, others for each seed."""

    def __init__(self, seed: int):
        self.seed = seed

    def __len__(self) -> int:
        return FRESH_ITEMS

    def __getitem__(self, index):
        if not 0 <= index < FRESH_ITEMS:
            raise IndexError(f"item {index} of {FRESH_ITEMS}")
        bird = birds.scene("test", birds.SPLITS["test"] + self.seed * FRESH_ITEMS + index)
        return sample_of(birds.draw(bird), bird, f"fresh-{index:06d}")


TASKS: dict[str, type[Shapes] | type[Birds]] = {"synthetic": Shapes, "birds": Birds}
"""Task by name, which is also the name of the weights that it gives."""


def task_of(name: str, seed: int = 0, **options: object) -> Task:
    """The task called so; options: those of Shapes.

    Raises InputError for an unknown name, and for a transfer test of the birds, whose other options mean nothing.
    """
    one_of("task", name, TASKS)
    if name == "birds":
        if options.get("transfer"):
            raise InputError("a transfer test of birds; allowed: of the task synthetic")
        return Birds(seed)
    return Shapes(seed, **options)  # type: ignore[arg-type]
