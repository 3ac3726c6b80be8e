"""What there is to measure: the data sets by name, and pieces of a sweep, by names and seeds alone.

>>> shards = plan("efficientnet_lite0", ["GradCAM", "LayerCAM"], images=24, variants=[BASE, REFINED])
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from . import birds, paths
from .bird_rows import BirdImages
from .checkpoints import checkpoint_path, read_checkpoint
from .checks import InputError, one_of, seed_of
from .datasets import Samples
from .explain import BASE, Variant, method_of
from .funnybirds import FunnyBirds
from .metrics import DEFECTS
from .models import ModelSpec, spec_of, transform_of, weights_hash
from .photographs import SOURCES, file_list, photographs
from .road import FRACTIONS
from .synthetic import ShiftedShapes, SyntheticShapes

RESULTS_VERSION = 2
"""Part of every cache key: raise it when what a row means changes, as by another way to take a bird's parts away."""


def _photographs(source: str, n: int, seed: int, spec: ModelSpec) -> Samples:
    return photographs(source, n, transform_of(spec), seed)


DATASETS: dict[str, Callable[[int, int, ModelSpec], Samples]] = {
    "synthetic": lambda n, seed, spec: SyntheticShapes("test", n),
    "synthetic_leaked": lambda n, seed, spec: SyntheticShapes("train", n, seed=1),
    "synthetic_shifted": lambda n, seed, spec: ShiftedShapes(SyntheticShapes("test", n)),
    "birds": lambda n, seed, spec: BirdImages(n, seed),
    **{source: partial(_photographs, source) for source in SOURCES},
}
"""Name -> the data set's first n samples, as a network's `spec` wants them, the photographs in an order drawn by seed.

Leaked: on scenes that were trained on (D1). Shifted: images cropped and masks not, as by the published code (D11).
"""


def weights_of(dataset: str) -> str:
    """Which weights explain a data set: "imagenet" for photographs, "birds" for birds, else "synthetic"."""
    return "imagenet" if dataset in SOURCES else "birds" if dataset == "birds" else "synthetic"


def fingerprint(dataset: str, seed: int, spec: ModelSpec) -> str:
    """A hash of a data set's first samples, so that rows of another data set, or of one drawn otherwise, never mix in.

    Of photographs also the hash of the names of all the source's files, of birds that of the list of their scenes.
    """
    names, n = [], 4
    if dataset in SOURCES:
        names = [photograph.name for photograph in file_list(dataset)]
        n = min(n, len(names))
    elif dataset == "birds":
        names = [sha256((FunnyBirds().root / "dataset_test.json").read_bytes()).hexdigest()]
    samples = DATASETS[dataset](n, seed, spec)
    parts = [(s.id, s.target, sha256(s.image.numpy().tobytes()).hexdigest()) for s in (samples[i] for i in range(n))]
    return f"{seed_of(dataset, parts, names):016x}"


def _must_know_birds(model: str) -> None:
    """Raise InputError where the network learnt the project's own birds and the set is another, or the reverse."""
    path, given = checkpoint_path(model, "birds"), FunnyBirds()
    learnt = read_checkpoint(path)[1].get("data", "")
    make = f"a network of those, python -m refinecam_lib.train --shipped --task birds --model {model} --out {path}"
    if given.classes != birds.CLASSES and learnt.startswith("the procedural birds"):
        raise InputError(
            f"{model} was trained on this project's own birds, FUNNYBIRDS_ROOT has others; allowed: {make}"
        )
    if given.drawn and learnt.startswith("FunnyBirds"):
        raise InputError(
            f"{model} was trained on the birds of FUNNYBIRDS_ROOT, which is not set, so that the project's own stand in; "
            f"allowed: that set, or {make}"
        )


@dataclass(frozen=True)
class Shard:
    """A piece of a sweep, by names and seeds alone: one method and its variants on images start..stop-1.

    checkpoint: sha256 of the network's weights; reading: a hash of its layers and of how it wants its input normalised;
    data: the data set's fingerprint. All are part of the key, so that a change of one never mixes stale rows in.
    """

    dataset: str
    data: str
    start: int
    stop: int
    model: str
    checkpoint: str
    reading: str
    method: str
    variants: tuple[Variant, ...]
    fractions: tuple[float, ...] = FRACTIONS
    seed: int = 0
    defects: tuple[str, ...] = ()
    version: int = RESULTS_VERSION

    @property
    def key(self) -> str:
        """The cache key: a hash of every field."""
        return f"{seed_of(json.dumps(asdict(self), sort_keys=True)):016x}"

    @property
    def path(self) -> Path:
        """The file its rows are in, once they are measured."""
        return paths.RESULTS / "rows" / f"{self.dataset}-{self.model}-{self.method}-{self.start:05d}-{self.key}.parquet"


def plan(
    model: str,
    methods: Sequence[str],
    images: int,
    variants: Sequence[Variant] = (BASE,),
    dataset: str = "synthetic",
    size: int = 8,
    seed: int = 0,
    defects: Sequence[str] = (),
) -> list[Shard]:
    """The shards that measure `methods` on the first `images` images of a data set, `size` images a shard.

    A method without a map for each layer is measured as it is, once. defects: of the published code's, names in
    metrics.DEFECTS, to measure with. Raises InputError for an unknown name, and for birds that the network can't know.
    """
    one_of("dataset", dataset, DATASETS)
    spec = spec_of(model, weights_of(dataset))
    if images < 1:
        raise InputError(f"images = {images}; allowed: 1 or more")
    for variant in variants:
        variant.layers(spec.layers)
    for name in defects:
        one_of("defect", name, DEFECTS)
    if dataset == "birds":
        _must_know_birds(model)
    DATASETS[dataset](images, seed, spec)  # refuses more images than there are
    checkpoint = weights_hash(model, weights_of(dataset))
    reading = f"{seed_of(spec.layers, spec.mean, spec.std):016x}"
    data = fingerprint(dataset, seed, spec)
    return [
        Shard(
            dataset,
            data,
            start,
            min(start + size, images),
            model,
            checkpoint,
            reading,
            method,
            tuple(variants) if method_of(method).refines else (BASE,),
            seed=seed,
            defects=tuple(defects),
        )
        for method in methods
        for start in range(0, images, size)
    ]
