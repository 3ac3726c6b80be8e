"""What there is to measure: the data sets by name, and pieces of a sweep, by names and seeds alone.

>>> shards = plan("efficientnet_lite0", ["GradCAM", "LayerCAM"], images=24, variants=[BASE, REFINED])
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import paths
from ..datasets.photographs import SOURCES
from ..datasets.sample import id_of
from ..errors import InputError, one_of, seed_of
from ..explanation import BASE, Variant, method_of
from ..networks.loading import weights_hash
from ..networks.zoo import spec_of
from ..road import FRACTIONS
from .published import DEFECTS
from .registry import DATASETS, _must_know_birds, fingerprint, weights_of
from .version import code_version

RESULTS_VERSION = {"scores": 3, "predictions": 1, "maps": 2, "randomisation": 2, "rounding": 1}
"""What is measured -> the version of its rows. Raise it when a row's numbers change: rows of another version are ignored."""


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
    published.DEFECTS, to measure with. measurement: which columns, a name in RESULTS_VERSION.
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
