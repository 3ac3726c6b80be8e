"""Shards: pieces of a sweep, described by names and seeds alone.

>>> shards = plan("efficientnet_lite0", ["GradCAM", "LayerCAM"], images=24, variants=[BASE, REFINED])
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import paths
from ..datasets.sample import id_of
from ..errors import InputError, one_of, seed_of
from ..explanation import BASE, LIBRARY, Variant, method_of
from ..networks.loading import weights_hash
from ..networks.zoo import ModelSpec, spec_of
from ..refinement import AUDITED, LIBRARY_AGGREGATES, known_aggregates
from ..road import FRACTIONS
from .published import DEFECTS
from .registry import DATASETS, DataSet
from .source import source_of
from .version import code_version

RESULTS_VERSION = {
    "scores": 3,
    "agreement": 1,
    "faithfulness": 2,
    "imputers": 1,
    "predictions": 1,
    "maps": 2,
    "randomisation": 2,
    "rounding": 1,
    "certificate": 1,
}
"""Measurement -> version of its rows. Raise it when a row's numbers change. Rows of other versions are ignored."""
NO_METHOD = ""
"""The method of a measurement without an explanation, such as a prediction."""
Pair = tuple[str, int, str]
"""Names a row of a setup: image, layer, aggregate."""


@dataclass(frozen=True)
class Shard:
    """One method and its variants on a few images. Every field is part of the key.

    Attributes:
        measurement: which columns, a name in RESULTS_VERSION.
        dataset: a name in DATASETS.
        data: the data set's fingerprint.
        numbers: the images' positions in the data set.
        images: their ids, see `id_of`.
        model: the network's name.
        checkpoint: sha256 of its weights.
        reading: a hash of its layers and of how it reads an image.
        method: a name in METHODS, or NO_METHOD.
        variants: layers and aggregates.
        fractions: of pixels that ROAD removes.
        seed: of everything random.
        defects: of the published code, names in `published.DEFECTS`.
        version: of the rows.
        source: a hash of the method's and the aggregates' code, where it is not this library's. It is part of the key only then.
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
    source: str = ""

    def _fields(self) -> dict:
        fields = asdict(self)
        return fields if self.source else {name: value for name, value in fields.items() if name != "source"}

    @property
    def conditions(self) -> dict:
        """What a row depends on besides its image and variant."""
        fields = self._fields()
        return {name: fields[name] for name in fields if name not in ("numbers", "images", "variants")}

    @property
    def setup(self) -> str:
        """A hash of the conditions. Rows of one setup belong together."""
        return f"{seed_of(json.dumps(self.conditions, sort_keys=True)):016x}"

    @property
    def key(self) -> str:
        """A hash of every field."""
        return f"{seed_of(json.dumps(self._fields(), sort_keys=True)):016x}"

    @property
    def folder(self) -> Path:
        """The folder for rows of this setup that today's code measures."""
        name = f"{self.measurement}-{self.dataset}-{self.model}-{self.method}-{self.setup}"
        return paths.RESULTS / "rows" / code_version() / name

    @property
    def path(self) -> Path:
        """The file for its rows."""
        return self.folder / f"{self.numbers[0]:05d}-{self.key}.parquet"

    @property
    def pairs(self) -> list[Pair]:
        """The names of its rows."""
        return [(image, v.layer, v.aggregate) for v in self.variants for image in self.images]

    @property
    def data_set(self) -> DataSet:
        """The data set by that name."""
        return DATASETS[self.dataset]

    @property
    def spec(self) -> ModelSpec:
        """The network's spec for the data set's weights."""
        return spec_of(self.model, self.data_set.weights)

    def only(self, pairs: set[Pair]) -> "Shard":
        """Return the part of the shard that measures these rows."""
        images, kinds = {image for image, _, _ in pairs}, {(layer, aggregate) for _, layer, aggregate in pairs}
        places = [k for k, image in enumerate(self.images) if image in images]
        variants = tuple(v for v in self.variants if (v.layer, v.aggregate) in kinds)
        numbers, ids = tuple(self.numbers[k] for k in places), tuple(self.images[k] for k in places)
        return replace(self, numbers=numbers, images=ids, variants=variants)


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
    """Return the shards that measure methods on the first images of a data set.

    Args:
        model: the network's name.
        methods: names in METHODS. A method without one map per layer is measured once, without refinement.
        images: how many.
        variants: layers and aggregates.
        dataset: a name in DATASETS.
        size: images per shard.
        seed: of everything random.
        defects: of the published code, names in `published.DEFECTS`.
        measurement: which columns, a name in RESULTS_VERSION.

    Raises:
        InputError: a name is unknown, there are too few images, or the network cannot know the data set's classes.
    """
    one_of("measurement", measurement, RESULTS_VERSION)
    data = DATASETS[one_of("dataset", dataset, DATASETS)]
    spec = spec_of(model, data.weights)
    if images < 1:
        raise InputError(f"Expected 1 image or more, got images = {images}.")
    for variant in variants:
        variant.layers(spec.layers)
    for name in defects:
        one_of("defect", name, DEFECTS)
    data.check_network(model)
    samples = data.samples(images, seed, spec)
    names = [id_of(samples, i) for i in range(images)]
    common = Shard(
        measurement,
        dataset,
        data.fingerprint(seed, spec),
        numbers=(),
        images=(),
        model=model,
        checkpoint=weights_hash(model, data.weights),
        reading=f"{seed_of(*data.reading(spec)):016x}",
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
        for source, alike in _by_source(method, own).items():
            for start in range(0, images, size):
                numbers = tuple(range(start, min(start + size, images)))
                ids = tuple(names[i] for i in numbers)
                shard = replace(common, method=method, variants=alike, numbers=numbers, images=ids, source=source)
                shards.append(shard)
    return shards


def _by_source(method: str, variants: Sequence[Variant]) -> dict[str, tuple[Variant, ...]]:
    """Group variants by a hash of the code that makes their maps, "" for this library's own."""
    name = method.partition("^")[0]
    entries = [] if method == NO_METHOD or method_of(name) is LIBRARY.get(name) else [method_of(name)]
    groups: dict[str, tuple[Variant, ...]] = {}
    for variant in variants:
        aggregate = known_aggregates().get(variant.aggregate)
        own = [] if aggregate is (LIBRARY_AGGREGATES | AUDITED).get(variant.aggregate) else [aggregate]
        source = source_of(*entries, *own)
        groups[source] = (*groups.get(source, ()), variant)
    return groups
