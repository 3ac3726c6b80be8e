"""Measure many explanations: shards of work, each one atomic file of rows, so that nothing done is ever lost or redone.

>>> rows = sweep(plan("efficientnet_lite0", ["GradCAM", "LayerCAM"], images=24, variants=[BASE, REFINED]))
"""

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path

import joblib
import pandas as pd
import pyarrow
import pyarrow.parquet
import torch
from tqdm.auto import tqdm

from . import paths
from .cam import Capture
from .checks import InputError, one_of, seed_of
from .datasets import PREDICTED, Sample, Samples, batch_of
from .explain import BASE, Variant, method_of, variant_maps
from .metrics import DEFECTS, measure
from .models import ModelSpec, load_model, normalise, spec_of, transform_of, weights_hash
from .photographs import SOURCES, file_list, photographs
from .provenance import KEYS
from .refine import AGGREGATES
from .road import FRACTIONS
from .synthetic import ShiftedShapes, SyntheticShapes

RESULTS_VERSION = 2
"""Part of every cache key: raise it when what a row means changes."""


def _photographs(source: str, n: int, seed: int, spec: ModelSpec) -> Samples:
    return photographs(source, n, transform_of(spec), seed)


DATASETS: dict[str, Callable[[int, int, ModelSpec], Samples]] = {
    "synthetic": lambda n, seed, spec: SyntheticShapes("test", n),
    "synthetic_leaked": lambda n, seed, spec: SyntheticShapes("train", n, seed=1),
    "synthetic_shifted": lambda n, seed, spec: ShiftedShapes(SyntheticShapes("test", n)),
    **{source: partial(_photographs, source) for source in SOURCES},
}
"""Name -> the data set's first n samples, as a network's `spec` wants them, the photographs in an order drawn by seed.

Leaked: on scenes that were trained on (D1). Shifted: images cropped and masks not, as by the published code (D11).
"""


def weights_of(dataset: str) -> str:
    """Which weights explain a data set: "imagenet" for photographs, else "synthetic"."""
    return "imagenet" if dataset in SOURCES else "synthetic"


def fingerprint(dataset: str, seed: int, spec: ModelSpec) -> str:
    """A hash of a data set's first samples, so that rows of another data set, or of one drawn otherwise, never mix in.

    Of photographs also the hash of the names of all the source's files.
    """
    names = [photograph.name for photograph in file_list(dataset)] if dataset in SOURCES else []
    n = min(4, len(names) or 4)
    samples = DATASETS[dataset](n, seed, spec)
    parts = [(s.id, s.target, sha256(s.image.numpy().tobytes()).hexdigest()) for s in (samples[i] for i in range(n))]
    return f"{seed_of(dataset, parts, names):016x}"


@dataclass(frozen=True)
class Shard:
    """A piece of a sweep, by names and seeds alone: one method and its variants on images start..stop-1.

    checkpoint: sha256 of the network's weights; data: the data set's fingerprint. Both are part of the key, so that a
    change of either never mixes stale rows in.
    """

    dataset: str
    data: str
    start: int
    stop: int
    model: str
    checkpoint: str
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
    metrics.DEFECTS, to measure with. Raises InputError for an unknown name.
    """
    spec = spec_of(model)
    one_of("dataset", dataset, DATASETS)
    if images < 1:
        raise InputError(f"images = {images}; allowed: 1 or more")
    for variant in variants:
        variant.layers(spec.layers)
    for name in defects:
        one_of("defect", name, DEFECTS)
    checkpoint = weights_hash(model, weights_of(dataset))
    data = fingerprint(dataset, seed, spec)
    return [
        Shard(
            dataset,
            data,
            start,
            min(start + size, images),
            model,
            checkpoint,
            method,
            tuple(variants) if method_of(method).refines else (BASE,),
            seed=seed,
            defects=tuple(defects),
        )
        for method in methods
        for start in range(0, images, size)
    ]


def paper_plan(
    models: Sequence[str], images: Mapping[str, int], seed: int = 0, dataset: str = "synthetic"
) -> list[Shard]:
    """The shards behind Fig. 1, Table 1 and Table 2, which so share their rows.

    images: method -> number of images, the cheap methods being worth more of them. Base and RefineCAM from every
    layer, and every aggregate from the shallowest; ScoreCAM, whose cost is in its channels, has the shallowest layer's
    variants and the deepest Base map alone.
    """
    shards = []
    for model in models:
        deepest = len(spec_of(model).layers) - 1
        first = [Variant(0, aggregate) for aggregate in ("none", *AGGREGATES)] + [Variant(deepest)]
        others = [Variant(layer, aggregate) for layer in range(1, deepest) for aggregate in ("none", "product")]
        for method, n in images.items():
            variants = first if method == "ScoreCAM" else first + others
            size = 2 if method == "ScoreCAM" else 8
            shards += plan(model, [method], n, variants, dataset, size, seed)
    return shards


@lru_cache(maxsize=8)
def _model(name: str, weights: str, checkpoint: str, thread: int) -> torch.nn.Module:
    """The network, one for each thread: hooks that record a forward pass must not see another's."""
    model = load_model(name, weights)
    found = weights_hash(name, weights)
    if found != checkpoint:
        raise InputError(
            f"checkpoint of {name} changed during the sweep: {found[:12]}..., planned {checkpoint[:12]}..."
        )
    return model


def _samples(shard: Shard) -> list[Sample]:
    samples = DATASETS[shard.dataset](shard.stop, shard.seed, spec_of(shard.model))
    return [samples[i] for i in range(shard.start, shard.stop)]


def _measure(shard: Shard) -> pd.DataFrame:
    """One row an explanation: who, what, and the raw measurements."""
    spec = spec_of(shard.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = weights_of(shard.dataset)
    model = _model(shard.model, weights, shard.checkpoint, threading.get_ident()).to(device)
    samples = _samples(shard)
    images, target, masks = batch_of(samples)
    inputs = normalise(images.to(device), spec).contiguous(memory_format=torch.channels_last)
    masks = None if masks is None else masks.to(device)
    seeds = {step: [seed_of(shard.seed, s.id, step) for s in samples] for step in ("clean", "masked", "road")}
    if (target == PREDICTED).any():
        with torch.inference_mode():
            target = torch.where(target == PREDICTED, model(inputs).argmax(1).cpu(), target)
    capture = Capture(model, inputs, target, spec.layers, seeds["clean"], masks)
    frames = []
    for variant in shard.variants:
        maps = variant_maps(capture, shard.method, variant)
        frame = measure(
            capture, shard.method, variant, maps, masks, seeds["masked"], seeds["road"], shard.fractions, shard.defects
        )
        frames.append(pd.concat([_names(shard, variant, samples), frame.assign(target=target.numpy())], axis=1))
    return pd.concat(frames, ignore_index=True)


def _names(shard: Shard, variant: Variant, samples: list) -> pd.DataFrame:
    names = pd.DataFrame([{"image": s.id, **s.info} for s in samples])
    fixed = {"dataset": shard.dataset, "model": shard.model, "method": shard.method, "seed": shard.seed}
    return names.assign(**fixed, layer=variant.layer, aggregate=variant.aggregate)


def run_shard(shard: Shard) -> Path:
    """Measure a shard and write its rows; a shard that is done is left alone, so submitting a sweep again resumes it.

    A shard that raises is written as rows with status "failed" and the reason; bad input raises InputError instead.
    """
    if _is_done(shard.path):
        return shard.path
    try:
        rows = _measure(shard)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - kept as rows, counted and shown; never silently dropped
        samples = _samples(shard)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        rows = pd.concat([_names(shard, v, samples).assign(status="failed", reason=reason) for v in shard.variants])
    write_rows(rows, shard.path)
    return shard.path


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """Write rows as parquet in one step: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            rows.to_parquet(file, index=False)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _is_done(path: Path) -> bool:
    """Whether the shard's file is there and whole; one that is not whole is said so and computed again."""
    if not path.exists():
        return False
    try:
        pyarrow.parquet.read_metadata(path)
        return True
    except (pyarrow.ArrowInvalid, OSError) as error:
        tqdm.write(f"results file {path.name} is not whole ({str(error).splitlines()[0]}); its shard is computed again")
        path.unlink()
        return False


def load_results(shards: Iterable[Shard]) -> pd.DataFrame:
    """The rows of finished shards, sorted by KEYS; raises InputError where one is missing or not whole."""
    frames = []
    for shard in shards:
        try:
            frames.append(pd.read_parquet(shard.path))
        except FileNotFoundError:
            raise InputError(f"no results file {shard.path.name}; run the sweep first") from None
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise InputError(f"results file {shard.path.name} is not whole ({error}); run the sweep again") from error
    return pd.concat(frames, ignore_index=True).sort_values(KEYS, ignore_index=True)


def sweep(shards: Sequence[Shard], n_jobs: int = 1, retry_failed: bool = False) -> pd.DataFrame:
    """Measure the shards that are not done yet, and return the rows of all: one row an explanation.

    n_jobs: processes, through joblib; `joblib.parallel_config(backend=...)` around the call picks another engine.
    retry_failed: measure shards that failed earlier again. The rows do not depend on any of these.
    """
    shards = list(dict.fromkeys(shards))
    if retry_failed:
        for shard in shards:
            if _is_done(shard.path) and (pd.read_parquet(shard.path)["status"] == "failed").any():
                shard.path.unlink()
    missing = [shard for shard in shards if not _is_done(shard.path)]
    quiet = bool(os.environ.get("CI") or os.environ.get("REFINECAM_QUIET"))
    work = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        joblib.delayed(run_shard)(s) for s in missing
    )
    with tqdm(work, total=len(shards), initial=len(shards) - len(missing), unit="shard", disable=quiet) as bar:
        for _ in bar:
            pass
    rows = load_results(shards)
    failed = int((rows["status"] == "failed").sum())
    print(f"{len(rows)} rows from {len(shards)} shards, {len(missing)} of them measured now; {failed} rows failed")
    return rows
