"""The data sets that sweeps know, by name. Each describes itself."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import cast

import pandas as pd

from ..capture import Capture
from ..datasets.photographs import SOURCES, available, photographs, write_listing
from ..datasets.sample import Samples
from ..datasets.scenes import MARKS, TWINS, Scenes
from ..datasets.shapes import ShiftedShapes, SyntheticShapes
from ..errors import InputError, seed_of
from ..explanation import Explanation
from ..funnybirds import drawing
from ..funnybirds.dataset import FunnyBirds
from ..funnybirds.rows import BirdImages, SeenBirds
from ..networks.checkpoints import checkpoint_path, read_checkpoint
from ..networks.loading import transform_of
from ..networks.zoo import ModelSpec


@dataclass(frozen=True)
class DataSet:
    """A data set for sweeps. Subclasses override what differs.

    Attributes:
        name: its name in DATASETS and in rows.
        samples: (n, seed, spec) -> the first n samples, as the network of `spec` takes them.
        weights: the weights that explain it: "imagenet" or a name in checkpoints.SHIPPED.
        masked: whether its samples have ground-truth masks.
        exact: whether exact removal is measured, which takes 14 of a map's 23 forward passes.
    """

    name: str
    samples: Callable[[int, int, ModelSpec], Samples]
    weights: str = "synthetic"
    masked: bool = True
    exact: bool = True

    def fingerprint(self, seed: int, spec: ModelSpec) -> str:
        """Hash the first four samples, so that rows of a changed data set are never mixed with today's."""
        return _fingerprint(self, seed, spec, tuple(os.environ.get(name) for name in ("WALDO_ROOT", "FUNNYBIRDS_ROOT")))

    def listed(self) -> list[str]:
        """Return hashes of files that list the samples. They are part of the fingerprint."""
        return []

    def reading(self, spec: ModelSpec) -> tuple:
        """Return what a network's spec says about how it reads an image. It is part of a shard's key."""
        return spec.layers, spec.mean, spec.std

    def check_network(self, model: str) -> None:
        """Raise InputError if the network cannot know the data set's classes."""

    def columns(
        self, samples: Samples, capture: Capture, numbers: Sequence[int], key: str
    ) -> Callable[[Explanation], pd.DataFrame] | None:
        """Return a function that computes further columns of an explanation's rows, or None.

        Args:
            samples: what `samples` returned.
            capture: of the samples with these numbers.
            numbers: of the samples.
            key: names the network and the data, for what is kept on disk.
        """
        return None

    def available(self) -> bool:
        """Return whether the images are on this machine."""
        return True

    def write_listing(self, ids: Sequence[str]) -> Path | None:
        """Write a committed list of the first images and return its path, or None if the data set needs none."""
        return None


@lru_cache(maxsize=32)
def _fingerprint(data: DataSet, seed: int, spec: ModelSpec, roots: tuple) -> str:
    first = [data.samples(4, seed, spec)[i] for i in range(4)]
    parts = [(s.id, s.target, sha256(s.image.numpy().tobytes()).hexdigest()) for s in first]
    return f"{seed_of(data.name, parts, data.listed()):016x}"


def _photographs(source: str, n: int, seed: int, spec: ModelSpec) -> Samples:
    return photographs(source, n, transform_of(spec), seed)


class PhotographSet(DataSet):
    """Photographs. Each row names the hash of its file, so the set has no fingerprint."""

    def fingerprint(self, seed: int, spec: ModelSpec) -> str:
        return ""

    def reading(self, spec: ModelSpec) -> tuple:
        return *super().reading(spec), spec.size, spec.resize, spec.squash, spec.interpolation

    def available(self) -> bool:
        return available(self.name)

    def write_listing(self, ids: Sequence[str]) -> Path | None:
        return write_listing(self.name, ids)


class BirdSet(DataSet):
    """Birds. The network's predicted class is explained, and rows have the columns of the FunnyBirds score."""

    def listed(self) -> list[str]:
        return [sha256((FunnyBirds().root / "dataset_test.json").read_bytes()).hexdigest()]

    def check_network(self, model: str) -> None:
        path, birds = checkpoint_path(model, "birds"), FunnyBirds()
        learnt = read_checkpoint(path)[1].get("task_data")
        train = f"python -m refinecam_lib.training --shipped --task birds --model {model} --out {path}"
        if learnt == "own birds" and birds.classes != drawing.CLASSES:
            raise InputError(
                f"{model} was trained on this project's own birds, but FUNNYBIRDS_ROOT has others. "
                f"Train a network on those: {train}"
            )
        if learnt == "FunnyBirds" and birds.drawn:
            raise InputError(
                f"{model} was trained on the birds of FUNNYBIRDS_ROOT, but the variable is not set. "
                f"Set it, or train a network on the project's own birds: {train}"
            )

    def columns(
        self, samples: Samples, capture: Capture, numbers: Sequence[int], key: str
    ) -> Callable[[Explanation], pd.DataFrame] | None:
        return SeenBirds(capture, cast(BirdImages, samples), numbers, key).columns


class LabelledBirdSet(BirdSet):
    """Birds whose label is explained. Rows have no further columns."""

    def columns(self, samples: Samples, capture: Capture, numbers: Sequence[int], key: str) -> None:
        return None


class SceneSet(DataSet):
    """Scenes. With two objects, a row is correct if the class of its object is one of the two highest."""

    def columns(
        self, samples: Samples, capture: Capture, numbers: Sequence[int], key: str
    ) -> Callable[[Explanation], pd.DataFrame]:
        own = capture.logits.gather(1, capture.target[:, None])
        higher = (capture.logits > own).sum(1).tolist()
        shown = [len(samples[k].info["compatible"].split(",")) for k in numbers]
        correct = pd.DataFrame({"correct": [h < s for h, s in zip(higher, shown, strict=True)]})
        return lambda explanation: correct


def _scene_sets() -> Iterator[DataSet]:
    for twin in TWINS:
        for mark in MARKS:
            weights = f"scenes_{twin}"
            name = weights if mark == "truth" else f"{weights}_{mark}"
            yield SceneSet(name, partial(_scenes, twin, mark), weights)


def _scenes(twin: str, mark: str, n: int, seed: int, spec: ModelSpec) -> Samples:
    return Scenes("test", n, twin, marked=mark)


DATASETS: dict[str, DataSet] = {
    data.name: data
    for data in (
        DataSet("synthetic", lambda n, seed, spec: SyntheticShapes("test", n)),
        DataSet("synthetic_validation", lambda n, seed, spec: SyntheticShapes("validation", n), exact=False),
        DataSet("synthetic_raw", lambda n, seed, spec: SyntheticShapes("test", n, background="raw")),
        DataSet("synthetic_imputed", lambda n, seed, spec: SyntheticShapes("test", n, background="imputed")),
        DataSet("synthetic_leaked", lambda n, seed, spec: SyntheticShapes("train", n, seed=1)),
        DataSet("synthetic_shifted", lambda n, seed, spec: ShiftedShapes(SyntheticShapes("test", n))),
        DataSet("synthetic_published", lambda n, seed, spec: ShiftedShapes(SyntheticShapes("train", n, seed=1))),
        BirdSet("birds", lambda n, seed, spec: BirdImages(n, seed), "birds"),
        LabelledBirdSet("birds_labelled", lambda n, seed, spec: BirdImages(n, seed, labelled=True), "birds"),
        *_scene_sets(),
        *(PhotographSet(source, partial(_photographs, source), "imagenet", masked=False) for source in SOURCES),
    )
}
"""Data sets by name.

validation: images on other scenes, for choices that are reported on test images. raw, imputed: every test image has this
kind of background. leaked: test images on training scenes (D1). shifted: images are cropped but masks are not, as in the
published code (D11). published: leaked and shifted. The seed orders birds and photographs. scenes_objects and
scenes_badges: the same images with two truths, ten conditions in turn. scenes_objects_half and so on have wrong masks, see
`scenes.MARKS`.
"""
LIBRARY_DATASETS = dict(DATASETS)
"""The data sets of this library, whatever is registered later."""
