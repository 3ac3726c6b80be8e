"""What a network learns and is tested on: the shapes of the synthetic set, the birds, or the twins of the scenes.

>>> task = task_of("birds", seed=0)
>>> task.item(7, side=128).image.shape, len(task.validation(500, side=64))
(torch.Size([3, 128, 128]), 500)
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from torch import nn

from ..datasets import shapes as synthetic
from ..datasets.sample import Sample, Samples
from ..datasets.scenes import SIZE, TWINS, Scenes
from ..datasets.shapes import SyntheticShapes
from ..errors import InputError, one_of, rng
from ..funnybirds import drawing as birds
from ..funnybirds.dataset import FunnyBirds, sample_of

TEST_ITEMS, FRESH_ITEMS, TRANSFER_ITEMS = 600, 6000, 600
HELD_OUT = 1000
"""Number of training birds that are held out for validation."""


class Shapes:
    """Six shapes over crowded backgrounds, in windows at native resolution that hold as much of the shape as fits.

    Args:
        seed: Another seed draws other training and fresh items.
        scenes: Backgrounds, see SyntheticShapes.
        shares: How often small, medium and large shapes come.
        transfer: A folder of pictures for one more test, "transfer".
    """

    classes: ClassVar[tuple[str, ...]] = synthetic.CLASSES
    side: ClassVar[int] = synthetic.SIZE
    """Side of a whole image in pixels."""
    data: str
    """A description of the items, for the checkpoint's card."""
    task_data = "own shapes"
    """A key for the card: which data the network knows."""

    def __init__(
        self,
        seed: int = 0,
        scenes: str | Path = "crowd",
        shares: tuple[float, float, float] = (1, 1, 1),
        transfer: str | Path | None = None,
    ):
        self.seed, self.scenes = seed, scenes
        name = scenes if scenes == "crowd" else Path(scenes).name  # a card names no folder of a machine
        self.data = f"scenes {name}; training half raw, half Perlin-mask imputed"
        self.training = SyntheticShapes("train", 10**9, seed, scenes=scenes, shares=shares)
        self.others = SyntheticShapes("all", TRANSFER_ITEMS, scenes=transfer) if transfer else None

    def item(self, index: int, side: int) -> Sample:
        """Return training item `index` in a window of `side` px. Each index gives a new one."""
        return _window(self.training[index], side, rng("window", self.seed, index))

    def validation(self, n: int, side: int) -> list[Sample]:
        """Return the first n validation items in windows of `side` px. They are neither trained nor tested on."""
        items = SyntheticShapes("validation", n, scenes=self.scenes)
        return [_window(items[i], side, rng("exam", i)) for i in range(n)]

    def tests(self) -> dict[str, Samples]:
        """Return the test sets by name: "test", the data set's own, and "fresh", items that no other seed draws."""
        tests: dict[str, Samples] = {"test": SyntheticShapes("test", TEST_ITEMS, scenes=self.scenes)}
        # Other shapes, flips, colours and masks over the scenes of the test split. Each recipe's seed draws its own, so
        # a network that is trained further is tested on items that no earlier test has seen.
        tests["fresh"] = SyntheticShapes("test", FRESH_ITEMS, self.seed + 1, scenes=self.scenes)
        return tests | ({"transfer": self.others} if self.others else {})


def _window(sample: Sample, side: int, generator: np.random.Generator) -> Sample:
    """Cut a random window of `side` px that holds the whole shape, or as much as fits."""
    corner, mask = [], cast(torch.Tensor, sample.mask)
    whole = mask.shape[-1]
    for axis in (1, 0):
        inside = torch.nonzero(mask.any(axis)).flatten()
        low, high = max(0, int(inside[-1]) + 1 - side), min(whole - side, int(inside[0]))
        corner.append(int(generator.integers(min(low, high), max(low, high) + 1)))
    rows, columns = (slice(start, start + side) for start in corner)
    return Sample(sample.image[:, rows, columns], sample.target, sample.id, mask[rows, columns], sample.info)


def faded(sample: Sample, contrast: float) -> Sample:
    """Reduce the contrast of everything outside the mask. At 1 it is unchanged, at 0 it has the mean colour."""
    image, mask = sample.image, cast(torch.Tensor, sample.mask)
    mean = image.mean((1, 2), keepdim=True)
    return replace(sample, image=torch.where(mask, image, mean + contrast * (image - mean)))


def enlarged(sample: Sample, side: int) -> Sample:
    """Resize a sample to `side` px: the image bilinearly, the mask by nearest neighbours."""
    if sample.image.shape[-1] == side:
        return sample
    image = nn.functional.interpolate(sample.image[None], size=side, mode="bilinear", align_corners=False)[0]
    mask = cast(torch.Tensor, sample.mask)
    larger = nn.functional.interpolate(mask[None, None].float(), size=side)[0, 0] > 0
    return replace(sample, image=image, mask=larger)


class Birds:
    """FunnyBirds or the project's own birds, whole ones and ones that lack parts, averaged to a window's side.

    The target of a training item is every class that its visible parts allow (multi-target training). The project's own
    birds never end. Birds from files come in a new order each epoch.

    Source: Hesse et al. 2023, https://arxiv.org/abs/2308.06248

    Raises:
        InputError: There are no more training birds than the held-out ones.
    """

    classes: ClassVar[tuple[str, ...]] = tuple(f"bird {k:02d}" for k in range(len(birds.CLASSES)))
    side: ClassVar[int] = birds.SIDE

    def __init__(self, seed: int = 0):
        self.seed, self.birds = seed, FunnyBirds()
        self.data = f"{'the procedural birds' if self.birds.drawn else 'FunnyBirds'}; targets: all classes that fit"
        self.task_data = "own birds" if self.birds.drawn else "FunnyBirds"
        if self.birds.drawn:
            self.seen = self.birds.train_length() - HELD_OUT
            self.held_out: Sequence[int] = range(self.seen, self.seen + HELD_OUT)
        else:
            self.training, self.held_out = split_of(self.birds)
            self.seen = len(self.training)

    def item(self, index: int, side: int) -> Sample:
        """Return training item `index` in a window of `side` px, as Shapes do."""
        if not self.birds.drawn:
            epoch, place = divmod(index, self.seen)
            return self.birds.train(self.training[_order(self.seen, self.seed, epoch)[place]], side)
        index += self.seed * 10**8
        return self.birds.train(index if index < self.seen else index + HELD_OUT, side)

    def validation(self, n: int, side: int) -> list[Sample]:
        """Return the first n whole held-out birds in windows of `side` px."""
        whole = [i for i in self.held_out if birds.is_whole(self.birds.scene(i, "train"))]
        return [self.birds.train(i, side) for i in whole[:n]]

    def tests(self) -> dict[str, Samples]:
        """Return the test sets by name. Birds from files have no "fresh" ones."""
        return {"test": self.birds} | ({"fresh": FreshBirds(self.seed)} if self.birds.drawn else {})


def split_of(files: FunnyBirds) -> tuple[list[int], list[int]]:
    """Split the training images of a set of files into those for training and those for validation.

    The files are ordered by class. So whole birds are held out in random order, as many of each class as possible.

    Returns:
        Numbers of images. A tenth is held out, but at most HELD_OUT.

    Raises:
        InputError: There are fewer than 10 training images, or no bird with all parts.
    """
    scenes = [files.scene(i, "train") for i in range(files.train_length())]
    whole = [i for i, bird in enumerate(scenes) if birds.is_whole(bird)]
    seen: dict[int, int] = defaultdict(int)
    turns: list[tuple[int, int, int]] = []
    for i in rng("birds", "held out").permutation(whole).tolist():
        label = scenes[i]["class_idx"]
        turns.append((seen[label], len(turns), i))
        seen[label] += 1
    held_out = [i for _, _, i in sorted(turns)][: min(HELD_OUT, len(scenes) // 10)]
    if not held_out:
        raise InputError(
            f"{files.root / 'dataset_train.json'}: expected 10 training birds or more, some with all parts, "
            f"got {len(scenes)}, {len(whole)} with all parts."
        )
    return sorted({*range(len(scenes))}.difference(held_out)), held_out


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return rng("birds", "order", seed, epoch).permutation(n)


class FreshBirds(Sequence[Sample]):
    """Whole birds of the project's own set that are in no split. Each seed has its own."""

    def __init__(self, seed: int):
        self.seed = seed

    def __len__(self) -> int:
        return FRESH_ITEMS

    def __getitem__(self, index):
        if not 0 <= index < FRESH_ITEMS:
            raise IndexError(f"item {index} of {FRESH_ITEMS}")
        bird = birds.scene("test", birds.SPLITS["test"] + self.seed * FRESH_ITEMS + index)
        return sample_of(birds.draw(bird), bird, f"fresh-{index:06d}")


class SceneObjects:
    """The class of a scene's object, in windows that hold as much of the object as fits.

    With two objects, each class is half of the target. Windows smaller than the image show scenes with one object.

    Args:
        seed: Another seed draws other training and fresh items.
        shares: How often small, medium and large objects come.
    """

    twin: ClassVar[str] = "objects"
    classes: ClassVar[tuple[str, ...]] = TWINS[twin][1]
    side: ClassVar[int] = SIZE
    task_data = "own scenes"

    def __init__(self, seed: int = 0, shares: tuple[float, float, float] = (1, 1, 1)):
        self.seed, self.data = seed, f"scenes on crowds, photographs and mosaics; classes: {self.twin}"
        self.training = {
            condition: Scenes("train", 10**9, self.twin, condition, seed, shares) for condition in ("mixed", "single")
        }

    def item(self, index: int, side: int) -> Sample:
        """Return training item `index` in a window of `side` px. Each index gives a new one."""
        items = self.training["mixed" if side == self.side else "single"]
        return _window(items[index], side, rng("window", self.seed, index))

    def validation(self, n: int, side: int) -> list[Sample]:
        """Return the first n validation items in windows of `side` px."""
        items = Scenes("validation", n, self.twin, "mixed" if side == self.side else "single")
        return [_window(items[i], side, rng("exam", i)) for i in range(n)]

    def tests(self) -> dict[str, Samples]:
        """Return the test sets by name, as Shapes do."""
        return {
            "test": Scenes("test", TEST_ITEMS, self.twin, "mixed"),
            "fresh": Scenes("test", FRESH_ITEMS, self.twin, "mixed", self.seed + 1),
        }


class SceneBadges(SceneObjects):
    """The kind of a scene's badge, in windows that hold the badge. The images are those of SceneObjects."""

    twin: ClassVar[str] = "badges"
    classes: ClassVar[tuple[str, ...]] = TWINS[twin][1]


Task = Shapes | Birds | SceneObjects
TASKS: dict[str, type[Shapes] | type[Birds] | type[SceneObjects]] = {
    "synthetic": Shapes,
    "birds": Birds,
    "scenes_objects": SceneObjects,
    "scenes_badges": SceneBadges,
}
"""Task by name. The weights that a task gives have the same name."""


def task_of(name: str, seed: int = 0, **options: object) -> Task:
    """Return the task of a name.

    Args:
        name: A name in TASKS.
        seed: Another seed draws other items.
        options: Those of Shapes. The scenes use only `shares`, and the birds none.

    Raises:
        InputError: The name is unknown, or another task than the shapes should have a transfer test.
    """
    kind = TASKS[one_of("task", name, TASKS)]
    if kind is Shapes:
        return Shapes(seed, **options)  # type: ignore[arg-type]
    if options.get("transfer"):
        raise InputError(f"a transfer test of {name}; allowed: of the task synthetic")
    if kind is Birds:
        return Birds(seed)
    return kind(seed, options.get("shares", (1, 1, 1)))  # type: ignore[arg-type, call-arg]
