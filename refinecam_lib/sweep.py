"""Measure many explanations: shards of work, each one atomic file of rows, so that nothing done is ever lost or redone.

>>> rows = sweep(plan("efficientnet_lite0", ["GradCAM", "LayerCAM"], images=24, variants=[BASE, REFINED]))
"""

import contextlib
import ctypes
import json
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, cast

import joblib
import pandas as pd
import pyarrow
import torch
from tqdm.auto import tqdm

from . import paths
from .bird_rows import BirdImages, SeenBirds
from .cam import Capture
from .checks import InputError, one_of, seed_of
from .datasets import PREDICTED, Sample, Samples, batch_of
from .explain import BASE, Variant, method_of, variant_maps
from .funnybirds import FunnyBirds
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
    one_of("dataset", dataset, DATASETS)
    spec = spec_of(model, weights_of(dataset))
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


class Stopped(RuntimeError):
    """A sweep that can't go on, through no fault of its input; what is measured is kept, and the same call goes on."""


class Done(NamedTuple):
    """What a finished shard has: its number of rows, and how many of them failed."""

    rows: int
    failed: int


@lru_cache(maxsize=8)
def _model(name: str, weights: str, checkpoint: str, thread: int) -> torch.nn.Module:
    """The network, one for each thread: hooks that record a forward pass must not see another's."""
    before, model, after = weights_hash(name, weights), load_model(name, weights), weights_hash(name, weights)
    for found in (before, after):  # and in between, for the file may be replaced at any moment
        if found != checkpoint:
            raise InputError(
                f"checkpoint of {name} changed during the sweep: {found[:12]}..., planned {checkpoint[:12]}...; "
                "start it again, or put the earlier file back"
            )
    return model


def _dataset(shard: Shard) -> Samples:
    return DATASETS[shard.dataset](shard.stop, shard.seed, spec_of(shard.model, weights_of(shard.dataset)))


def _samples(shard: Shard) -> list[Sample]:
    samples = _dataset(shard)
    return [samples[i] for i in range(shard.start, shard.stop)]


def _measure(shard: Shard) -> pd.DataFrame:
    """One row an explanation: who, what, and the raw measurements."""
    weights = weights_of(shard.dataset)
    spec = spec_of(shard.model, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model(shard.model, weights, shard.checkpoint, threading.get_ident()).to(device)
    samples = _samples(shard)
    images, target, masks = batch_of(samples)
    inputs = normalise(images.to(device), spec).contiguous(memory_format=torch.channels_last)
    masks = None if masks is None else masks.to(device)
    seeds = {step: [seed_of(shard.seed, s.id, step) for s in samples] for step in ("clean", "masked", "road")}
    if (target == PREDICTED).any():
        with torch.no_grad():  # a tensor of inference mode can't take part in what is differentiated
            target = torch.where(target == PREDICTED, model(inputs).argmax(1).cpu(), target)
    capture = Capture(model, inputs, target, spec.layers, seeds["clean"], masks)
    seen = None
    if shard.dataset == "birds":
        key = f"{shard.model}-{shard.checkpoint[:16]}-{shard.data}"
        seen = SeenBirds(capture, cast(BirdImages, _dataset(shard)), range(shard.start, shard.stop), key, shard.seed)
    frames = []
    for variant in shard.variants:
        maps = variant_maps(capture, shard.method, variant)
        frame = measure(
            capture, shard.method, variant, maps, masks, seeds["masked"], seeds["road"], shard.fractions, shard.defects
        )
        frame = frame.assign(target=target.numpy())
        if seen:  # whose `correct` is of the label, not of the class that is explained
            frame = frame.assign(**seen.columns(shard.method, variant, maps))
        frames.append(pd.concat([_names(shard, variant, samples), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def _names(shard: Shard, variant: Variant, samples: list) -> pd.DataFrame:
    names = pd.DataFrame([{"image": s.id, **s.info} for s in samples])
    fixed = {"dataset": shard.dataset, "model": shard.model, "method": shard.method, "seed": shard.seed}
    return names.assign(**fixed, layer=variant.layer, aggregate=variant.aggregate)


def run_shard(shard: Shard, retry_failed: bool = False) -> Done:
    """Measure a shard and write its rows; a shard that is done is left alone, so submitting a sweep again resumes it.

    retry_failed: measure it again where rows of it failed. A shard that raises is written as rows with status "failed"
    and the reason; bad input, and a folder that can't be written to, raise InputError instead.
    Torch is set to one thread: with another number sums are taken in another order, and Grad-CAM++ on signed
    activations, whose denominator crosses zero, makes another map of the last bits. Use more processes instead.
    """
    rows = _finished(shard, retry_failed)
    if rows is None:
        torch.set_num_threads(1)
        try:
            rows = _measure(shard)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - kept as rows, counted and shown; never silently dropped
            samples = _samples(shard)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            rows = pd.concat([_names(shard, v, samples).assign(status="failed", reason=reason) for v in shard.variants])
        rows.attrs["shard"] = shard.key
        write_rows(rows, shard.path)
        _give_back()
    return Done(len(rows), _failures(rows))


def _give_back() -> None:
    """Return freed memory to the system where the C library is asked to: it would keep it, and joblib, which starts a
    process anew whose memory grows, would take that for a leak and the network would be loaded again and again."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _failures(rows: pd.DataFrame) -> int:
    return int((rows["status"] == "failed").sum())


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """Write rows as parquet in one step: a reader sees the whole file or none. InputError where there is no writing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                rows.to_parquet(file, index=False, write_page_checksum=True)
                file.flush()
                os.fchmod(file.fileno(), 0o644)  # a temporary file is its owner's alone
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise InputError(
            f"results can't be written to {str(path.parent)!r}: {error.strerror or error}; allowed: a folder with room "
            "that may be written to. What is measured is kept: run the same again"
        ) from error


def load_shard(shard: Shard) -> pd.DataFrame:
    """The rows of a finished shard; raises InputError where its file is missing, not whole, or another shard's."""
    name = shard.path.name
    try:
        rows = pd.read_parquet(shard.path, page_checksum_verification=True, partitioning=None)
    except FileNotFoundError:
        raise InputError(f"no results file {name}; run the sweep first") from None
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:  # the last three by pandas
        reason = str(error).splitlines()[0]
        raise InputError(f"results file {name} is not whole ({reason}); run the sweep again") from error
    if stranger := _stranger(rows, shard):
        raise InputError(f"results file {name} is of another shard ({stranger}); run the sweep again")
    return rows


def _stranger(rows: pd.DataFrame, shard: Shard) -> str:
    """What in the rows can't be the shard's; empty where nothing is. Files of earlier code don't carry its key."""
    if rows.attrs.get("shard", shard.key) != shard.key:
        return f"its key is {rows.attrs['shard']}"
    names = {"dataset": shard.dataset, "model": shard.model, "method": shard.method, "seed": shard.seed}
    if missing := [name for name in (*KEYS, "seed", "status") if name not in rows]:
        return f"no columns {', '.join(missing)}"
    for name, value in names.items():
        if (rows[name] != value).any():
            return f"{name} is not {value}"
    n = shard.stop - shard.start
    if rows.groupby(["layer", "aggregate"]).size().to_dict() != {(v.layer, v.aggregate): n for v in shard.variants}:
        return f"not {n} rows for each of {len(shard.variants)} variants"
    return ""


def _finished(shard: Shard, retry_failed: bool = False) -> pd.DataFrame | None:
    """The rows of a shard that is done, else None; a file that is not whole is said so and taken as not there.

    It stays until the new one replaces it: another sweep may have put a whole one in its place by now.
    """
    if not shard.path.exists():
        return None
    try:
        rows = load_shard(shard)
    except InputError as problem:
        tqdm.write(f"{problem}: it is measured anew")
        return None
    return None if retry_failed and _failures(rows) else rows


def _table(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    frames = list(frames)
    for frame in frames:
        frame.attrs = {}
    return pd.concat(frames, ignore_index=True).sort_values(KEYS, ignore_index=True)


def load_results(shards: Iterable[Shard]) -> pd.DataFrame:
    """The rows of finished shards, sorted by KEYS; raises InputError as `load_shard`."""
    return _table(load_shard(shard) for shard in shards)


def sweep(shards: Sequence[Shard], n_jobs: int = 1, retry_failed: bool = False) -> pd.DataFrame:
    """Measure the shards that are not done yet, and return the rows of all: one row an explanation.

    n_jobs: processes, through joblib; `joblib.parallel_config(backend=...)` around the call picks another engine.
    retry_failed: measure shards that failed earlier again. The rows do not depend on any of these.
    Shards are taken in random order: so the time left is a fair guess, though methods differ in cost, and two sweeps
    of the same shards at once share the work. Raises InputError for bad input, and Stopped where a worker process died.
    """
    shards = list(dict.fromkeys(shards))
    finished = {shard: rows for shard in shards if (rows := _finished(shard, retry_failed)) is not None}
    missing = [shard for shard in shards if shard not in finished]
    threads = torch.get_num_threads()
    work = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        joblib.delayed(run_shard)(s, retry_failed) for s in random.Random().sample(missing, len(missing))
    )
    try:
        _follow(work, len(shards), len(finished))
    except BrokenProcessPool:
        raise Stopped(
            "a process of the sweep died: killed, or out of memory (fewer n_jobs need less). "
            "What is measured is kept: run the same again"
        ) from None
    finally:
        torch.set_num_threads(threads)
    rows = _table(finished[s] if s in finished else load_shard(s) for s in shards)
    _list_photographs(rows)
    failed = _failures(rows)
    print(f"{len(rows)} rows from {len(shards)} shards, {len(missing)} of them measured now; {failed} rows failed")
    return rows


def _list_photographs(rows: pd.DataFrame) -> None:
    """Write which photographs were drawn, and the class explained, to results/photographs-<source>-seed<seed>-<n>.csv."""
    for (source, seed), part in rows[rows["dataset"].isin(SOURCES)].groupby(["dataset", "seed"]):
        listed = part.drop_duplicates(["model", "image"])[["image", "model", "target", "correct"]]
        name = f"photographs-{source}-seed{seed}-{listed['image'].nunique()}.csv"
        listed.to_csv(paths.RESULTS / name, index=False)


def _follow(work: Iterable[Done], total: int, done: int) -> None:
    """Draw the progress line of a sweep: shards done, time, rate, time left, rows and failures; none in CI."""
    quiet = bool(os.environ.get("CI") or os.environ.get("REFINECAM_QUIET"))
    line = "{n_fmt} of {total_fmt} shards, {elapsed} so far, {rate_fmt}, {remaining} left{postfix}"
    rows = failed = 0
    with tqdm(work, total=total, initial=done, unit="shard", smoothing=0, bar_format=line, disable=quiet) as bar:
        for shard in bar:
            rows, failed = rows + shard.rows, failed + shard.failed
            bar.set_postfix_str(f"{rows} rows, {failed} failed", refresh=False)
