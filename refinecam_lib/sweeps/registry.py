"""The data sets by name, and what identifies each."""

import os
from collections.abc import Callable
from functools import lru_cache, partial
from hashlib import sha256

from ..datasets.photographs import SOURCES, photographs
from ..datasets.sample import Samples
from ..datasets.shapes import ShiftedShapes, SyntheticShapes
from ..errors import InputError, seed_of
from ..funnybirds import drawing as birds
from ..funnybirds.dataset import FunnyBirds
from ..funnybirds.rows import BirdImages
from ..networks.checkpoints import checkpoint_path, read_checkpoint
from ..networks.loading import transform_of
from ..networks.zoo import ModelSpec


def _photographs(source: str, n: int, seed: int, spec: ModelSpec) -> Samples:
    return photographs(source, n, transform_of(spec), seed)


DATASETS: dict[str, Callable[[int, int, ModelSpec], Samples]] = {
    "synthetic": lambda n, seed, spec: SyntheticShapes("test", n),
    "synthetic_raw": lambda n, seed, spec: SyntheticShapes("test", n, background="raw"),
    "synthetic_imputed": lambda n, seed, spec: SyntheticShapes("test", n, background="imputed"),
    "synthetic_leaked": lambda n, seed, spec: SyntheticShapes("train", n, seed=1),
    "synthetic_shifted": lambda n, seed, spec: ShiftedShapes(SyntheticShapes("test", n)),
    "birds": lambda n, seed, spec: BirdImages(n, seed),
    "birds_labelled": lambda n, seed, spec: BirdImages(n, seed, labelled=True),
    **{source: partial(_photographs, source) for source in SOURCES},
}
"""Name -> the data set's first n samples, as a network's `spec` wants them. Photographs come in an order drawn by seed.

raw, imputed: every test image on one kind of background. leaked: images on training scenes (D1). shifted: images cropped
and masks not, as in the published code (D11). birds: the predicted class is explained; birds_labelled: the label is.
"""


def weights_of(dataset: str) -> str:
    """Which weights explain a data set: "imagenet" for photographs, "birds" for birds, else "synthetic"."""
    return "imagenet" if dataset in SOURCES else "birds" if dataset.startswith("birds") else "synthetic"


def fingerprint(dataset: str, seed: int, spec: ModelSpec) -> str:
    """A hash of a data set's first four samples, so that rows of another data set never mix in.

    Birds: also of the list of their scenes. Photographs have none, because each of their rows names its file's hash.
    """
    if dataset in SOURCES:
        return ""
    roots = tuple(os.environ.get(name) for name in ("WALDO_ROOT", "FUNNYBIRDS_ROOT"))
    return _fingerprint(dataset, DATASETS[dataset], seed, spec, roots)


@lru_cache(maxsize=32)
def _fingerprint(dataset: str, make: Callable, seed: int, spec: ModelSpec, roots: tuple) -> str:
    names = []
    if weights_of(dataset) == "birds":
        names = [sha256((FunnyBirds().root / "dataset_test.json").read_bytes()).hexdigest()]
    samples = make(4, seed, spec)
    parts = [(s.id, s.target, sha256(s.image.numpy().tobytes()).hexdigest()) for s in (samples[i] for i in range(4))]
    return f"{seed_of(dataset, parts, names):016x}"


def _must_know_birds(model: str) -> None:
    """Raise InputError where the network learnt the project's own birds and the set is another, or the reverse."""
    path, given = checkpoint_path(model, "birds"), FunnyBirds()
    learnt = read_checkpoint(path)[1].get("data", "")
    make = f"a network of those, python -m refinecam_lib.training --shipped --task birds --model {model} --out {path}"
    if given.classes != birds.CLASSES and learnt.startswith("the procedural birds"):
        raise InputError(
            f"{model} was trained on this project's own birds, FUNNYBIRDS_ROOT has others; allowed: {make}"
        )
    if given.drawn and learnt.startswith("FunnyBirds"):
        raise InputError(
            f"{model} was trained on the birds of FUNNYBIRDS_ROOT, which is not set, so that the project's own stand in; "
            f"allowed: that set, or {make}"
        )
