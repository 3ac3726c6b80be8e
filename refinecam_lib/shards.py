"""What there is to measure: the data sets by name, and pieces of a sweep, by names and seeds alone.

>>> shards = plan("efficientnet_lite0", ["GradCAM", "LayerCAM"], images=24, variants=[BASE, REFINED])
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path

from . import birds, paths
from .bird_rows import BirdImages
from .checkpoints import checkpoint_path, read_checkpoint
from .checks import InputError, one_of, seed_of
from .datasets import Samples, id_of
from .explain import BASE, Variant, method_of
from .funnybirds import FunnyBirds
from .metrics import DEFECTS
from .models import ModelSpec, spec_of, transform_of, weights_hash
from .photographs import SOURCES, photographs
from .provenance import code_version
from .road import FRACTIONS
from .synthetic import ShiftedShapes, SyntheticShapes

RESULTS_VERSION = {"scores": 3, "predictions": 1, "maps": 2, "randomisation": 2, "rounding": 1}
"""What is measured -> the version of its rows. Raise it when a row's numbers change: rows of another version are ignored."""


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


Pair = tuple[str, int, str]
"""A row of a setup: image, layer, aggregate."""


@dataclass(frozen=True)
class Shard:
    """A piece of a sweep, by names and seeds alone: one method and its variants on a few images.

    measurement: which columns, a name in RESULTS_VERSION; data: the data set's fingerprint; numbers: of the images in
    the data set; images: their ids, see `id_of`; checkpoint: sha256 of the network's weights; reading: a hash of its
    layers and of how it reads an image. All are part of the key, so a change of one never mixes old rows in.
    """

    measurement: str
    dataset: str
    data: str
    numbers: tuple[int, ...]
    images: tuple[str, ...]
    model: str
    checkpoint: str
    reading: str
    method: str
    variants: tuple[Variant, ...]
    fractions: tuple[float, ...] = ()
    seed: int = 0
    defects: tuple[str, ...] = ()
    version: int = 0

    @property
    def conditions(self) -> dict:
        """What a row depends on besides its image and variant."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name not in ("numbers", "images", "variants")}

    @property
    def setup(self) -> str:
        """A hash of the conditions: rows of one setup belong together, whatever shard measured them."""
        return f"{seed_of(json.dumps(self.conditions, sort_keys=True)):016x}"

    @property
    def key(self) -> str:
        """A hash of every field."""
        return f"{seed_of(json.dumps(asdict(self), sort_keys=True)):016x}"

    @property
    def folder(self) -> Path:
        """Where rows of this setup are that today's code measured here."""
        name = f"{self.measurement}-{self.dataset}-{self.model}-{self.method}-{self.setup}"
        return paths.RESULTS / "rows" / code_version() / name

    @property
    def path(self) -> Path:
        """The file its rows are in, once they are measured here."""
        return self.folder / f"{self.numbers[0]:05d}-{self.key}.parquet"

    @property
    def pairs(self) -> list[Pair]:
        """Its rows, by image, layer and aggregate."""
        return [(image, v.layer, v.aggregate) for v in self.variants for image in self.images]

    def only(self, pairs: set[Pair]) -> "Shard":
        """The part of the shard that measures these of its rows."""
        images, kinds = {image for image, _, _ in pairs}, {(layer, aggregate) for _, layer, aggregate in pairs}
        places = [k for k, image in enumerate(self.images) if image in images]
        variants = tuple(v for v in self.variants if (v.layer, v.aggregate) in kinds)
        numbers, ids = tuple(self.numbers[k] for k in places), tuple(self.images[k] for k in places)
        return replace(self, numbers=numbers, images=ids, variants=variants)

    def singly(self) -> "list[Shard]":
        """One shard for each of its rows."""
        return [self.only({pair}) for pair in self.pairs]


NO_METHOD = ""
"""The method of a measurement that explains nothing, such as a prediction."""


def plan(
    model: str,
    methods: Sequence[str],
    images: int,
    variants: Sequence[Variant] = (BASE,),
    dataset: str = "synthetic",
    size: int = 8,
    seed: int = 0,
    defects: Sequence[str] = (),
    measurement: str = "scores",
) -> list[Shard]:
    """The shards that measure `methods` on the first `images` images of a data set, `size` images a shard.

    A method without a map for each layer is measured as it is, once. defects: of the published code's, names in
    metrics.DEFECTS, to measure with. measurement: which columns, a name in RESULTS_VERSION.
    Raises InputError for an unknown name, and for birds that the network can't know.
    """
    one_of("measurement", measurement, RESULTS_VERSION)
    one_of("dataset", dataset, DATASETS)
    spec = spec_of(model, weights_of(dataset))
    if images < 1:
        raise InputError(f"images = {images}; allowed: 1 or more")
    for variant in variants:
        variant.layers(spec.layers)
    for name in defects:
        one_of("defect", name, DEFECTS)
    if weights_of(dataset) == "birds":
        _must_know_birds(model)
    samples = DATASETS[dataset](images, seed, spec)  # refuses more images than there are
    names = [id_of(samples, i) for i in range(images)]
    reading: tuple = (spec.layers, spec.mean, spec.std)
    if dataset in SOURCES:
        reading += (spec.size, spec.resize, spec.squash, spec.interpolation)
    common = Shard(
        measurement,
        dataset,
        fingerprint(dataset, seed, spec),
        numbers=(),
        images=(),
        model=model,
        checkpoint=weights_hash(model, weights_of(dataset)),
        reading=f"{seed_of(*reading):016x}",
        method="",
        variants=(),
        fractions=FRACTIONS if measurement in ("scores", "rounding") else (),
        seed=seed,
        defects=tuple(defects),
        version=RESULTS_VERSION[measurement],
    )
    shards = []
    for method in methods:
        own = tuple(variants) if method == NO_METHOD or method_of(method).refines else (BASE,)
        for start in range(0, images, size):
            numbers = tuple(range(start, min(start + size, images)))
            ids = tuple(names[i] for i in numbers)
            shards.append(replace(common, method=method, variants=own, numbers=numbers, images=ids))
    return shards
