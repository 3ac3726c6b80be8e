"""Your own networks and samples in a sweep, and what worker processes need to measure them.

>>> rows = sweep(own_plan((spec, network), samples, ["LayerCAM", "GradCAM++"]), n_jobs=2)
"""

import copy
import pickle
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch
from torch import nn

from ..datasets.sample import Sample, Samples
from ..errors import InputError
from ..explanation import CAMS, LIBRARY, METHODS, OTHERS
from ..networks.zoo import OWN, ModelSpec, OwnNetwork
from ..refinement import AGGREGATES, LIBRARY_AGGREGATES
from .experiments import paper_plan
from .registry import DATASETS, LIBRARY_DATASETS, DataSet
from .shard import Shard
from .source import installed, source_of


def own_plan(
    network: tuple[ModelSpec, nn.Module],
    samples: Samples,
    methods: Sequence[str] = (*CAMS, *OTHERS),
    name: str = "own",
    seed: int = 0,
) -> list[Shard]:
    """Plan Table 1 of your network on your samples: every method, and RefineCAM for those with a map per layer.

    Rows belong to the network's weights and code, and to each sample's content. They are measured again only after a
    change of those. The network is copied, so changing it later does not change the plan.

    Args:
        network: The spec and a classifier (B,3,H,W) -> (B,K), as `load_classifier` returns them. Rows name it by
            `spec.name`.
        samples: Images of one size in [0,1] with unique ids. They are normalised by the spec.
        methods: Names in METHODS.
        name: Names the samples in rows.
        seed: Of everything random.

    Raises:
        InputError: The samples are not as described, or the name is that of a data set of this library.
    """
    spec, model = network
    if name in LIBRARY_DATASETS:
        raise InputError(f"Expected a new name for your samples, got {name!r} of this library. Pass another `name`.")
    own = OwnSamples(samples)
    ready = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    OWN[spec.name] = OwnNetwork(spec, ready, source_of(ready))
    DATASETS[name] = OwnData(name, lambda n, seed, spec: own.first(n), "own", own.masked)
    return paper_plan([spec.name], dict.fromkeys(methods, len(samples)), seed, name)


class OwnSamples:
    """Samples that name a hash of their content as their file.

    Args:
        samples: They are read once, to check and to hash them.

    Raises:
        InputError: An image is not in [0,1], or an id is not unique.
    """

    def __init__(self, samples: Samples):
        self.samples, self.ids, self.masked = samples, [], True
        known = set()
        for sample in (self[index] for index in range(len(samples))):
            if sample.id in known:
                raise InputError(f"Expected one sample with id {sample.id!r}, got two. Give each an id of its own.")
            known.add(sample.id)
            self.ids.append(f"{sample.id}@{sample.info['file']}")
            self.masked &= sample.mask is not None

    def first(self, n: int) -> "OwnSamples":
        """Return these samples. Raises InputError if there are fewer than n."""
        if n > len(self):
            raise InputError(
                f"Expected {n} samples or more, got {len(self)}. Plan and sweep again with today's samples."
            )
        return self

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        image = sample.image
        if image.dtype != torch.float32 or not 0 <= float(image.min()) <= float(image.max()) <= 1:
            raise InputError(
                f"Expected float32 values in [0, 1] in the image of sample {sample.id!r}, got {image.dtype} in "
                f"{float(image.min()):.3g}..{float(image.max()):.3g}. Pass it without normalisation: the spec has it."
            )
        parts: list[object] = [sample.id, sample.target, sorted(sample.info.items())]
        for tensor in (image, sample.mask, sample.without):
            parts.append(None if tensor is None else (tuple(tensor.shape), tensor.numpy().tobytes()))
        return replace(sample, info=sample.info | {"file": sha256(repr(parts).encode()).hexdigest()[:16]})

    def id_of(self, index: int) -> str:
        """Return the id and the hash of a sample."""
        return self.ids[index]


class OwnData(DataSet):
    """Samples of yours for networks of yours. Each row names the hash of its sample, so the set has no fingerprint."""

    def fingerprint(self, seed: int, spec: ModelSpec) -> str:
        return ""


class Parcel(NamedTuple):
    """Networks, samples, methods and aggregates that are not this library's, for other processes."""

    sender: str
    """The process that packed it. It has them already."""
    digest: str
    content: np.ndarray
    """Pickled bytes. joblib maps a large array into the memory of its processes, so it is not sent with every shard."""


PROCESS = uuid.uuid4().hex
"""Names this process. A process number could be that of a process on another machine."""
_received: list[str] = [""]
"""The digest of the latest parcel."""


def pack(shards: Sequence[Shard]) -> Parcel | None:
    """Pack what shards need of yours. None if they need nothing.

    Raises:
        InputError: It cannot be pickled.
    """
    used: list[tuple[dict[str, Any], dict[str, Any], set[str]]] = [
        (METHODS, LIBRARY, {shard.method.partition("^")[0] for shard in shards}),
        (AGGREGATES, LIBRARY_AGGREGATES, {variant.aggregate for shard in shards for variant in shard.variants}),
        (DATASETS, LIBRARY_DATASETS, {shard.dataset for shard in shards}),
        (OWN, {}, {shard.model for shard in shards if shard.data_set.weights == "own"}),
    ]
    own = [_foreign(registry, library, names) for registry, library, names in used]
    if not any(own):
        return None
    try:
        with _by_value():
            content = cloudpickle.dumps(own)
    except Exception as error:
        names = ", ".join(repr(name) for part in own for name in part)
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{names} cannot be sent to other processes: {reason}. Pass n_jobs=1.") from error
    return Parcel(PROCESS, sha256(content).hexdigest(), np.frombuffer(content, np.uint8))


def _foreign(registry: Mapping[str, Any], library: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    found = {name: registry[name] for name in sorted(names) if name in registry}
    return {name: value for name, value in found.items() if library.get(name) is not value}


@contextmanager
def _by_value() -> Iterator[None]:
    """Pickle the functions and classes of your modules with their code, as another process may not have today's."""
    modules = [m for name, m in list(sys.modules.items()) if getattr(m, "__file__", None) and not installed(name)]
    modules = [m for m in modules if m.__name__ != "__main__" and sys.modules.get(m.__name__) is m]  # as it does itself
    added = [m for m in modules if m.__name__ not in cloudpickle.list_registry_pickle_by_value()]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def unpack(parcel: Parcel | None) -> None:
    """Register what another process packed. Parcels follow each other, so the latest wins."""
    if parcel is None or parcel.sender == PROCESS or _received[0] == parcel.digest:
        return
    registries: tuple[dict[str, Any], ...] = METHODS, AGGREGATES, DATASETS, OWN
    for registry, entries in zip(registries, pickle.loads(parcel.content.tobytes()), strict=True):
        registry.update(entries)
    _received[0] = parcel.digest
