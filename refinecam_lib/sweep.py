"""Measure many explanations: shards of work, each one atomic file of rows, so that nothing done is ever lost or redone.

>>> rows = sweep(plan("efficientnet_lite0", ["GradCAM", "LayerCAM"], images=24, variants=[BASE, REFINED]))
"""

import os
import random
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from typing import NamedTuple, cast

import joblib
import pandas as pd
import torch
from tqdm.auto import tqdm

from . import paths
from .bird_rows import BirdImages, SeenBirds
from .cam import Capture
from .checks import InputError, seed_of
from .datasets import PREDICTED, Sample, Samples, batch_of
from .explain import Variant, variant_maps
from .memory import give_back
from .metrics import measure
from .models import load_model, normalise, spec_of, weights_hash
from .photographs import SOURCES
from .results import failures, finished, load_shard, table, write_rows
from .shards import DATASETS, Shard, weights_of


class Stopped(RuntimeError):
    """A sweep that can't go on, through no fault of its input; what is measured is kept, and the same call goes on."""


class Done(NamedTuple):
    """What a finished shard has: its number of rows, and how many of them failed."""

    rows: int
    failed: int


@lru_cache(maxsize=3)  # joblib would take the memory of more for a leak, and start the process anew
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


def _read(shard: Shard) -> tuple[Samples, list[Sample]]:
    """The shard's data set, and its own samples of it."""
    dataset = DATASETS[shard.dataset](shard.stop, shard.seed, spec_of(shard.model, weights_of(shard.dataset)))
    return dataset, [dataset[i] for i in range(shard.start, shard.stop)]


def _measure(shard: Shard) -> pd.DataFrame:
    """One row an explanation: who, what, and the raw measurements."""
    weights = weights_of(shard.dataset)
    spec = spec_of(shard.model, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model(shard.model, weights, shard.checkpoint, threading.get_ident()).to(device)
    dataset, samples = _read(shard)
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
        key = f"{shard.model}-{shard.checkpoint[:16]}-{shard.reading}-{shard.data}"
        seen = SeenBirds(capture, cast(BirdImages, dataset), range(shard.start, shard.stop), key, shard.seed)
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


def _use_cudnn(tf32: bool, deterministic: bool) -> None:
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = tf32, deterministic


def run_shard(shard: Shard, retry_failed: bool = False) -> Done:
    """Measure a shard and write its rows; a shard that is done is left alone, so submitting a sweep again resumes it.

    retry_failed: measure it again where rows of it failed. A shard that raises is written as rows with status "failed"
    and the reason; bad input, and a folder that can't be written to, raise InputError instead.
    Torch is set to one thread, because another number takes sums in another order and moves the last bits. Use more
    processes instead. On a GPU convolutions use full precision, not TF32's 10 bits, and deterministic algorithms.
    """
    rows = finished(shard, retry_failed)
    if rows is None:
        torch.set_num_threads(1)
        _use_cudnn(tf32=False, deterministic=True)
        try:
            rows = _measure(shard)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - kept as rows, counted and shown; never silently dropped
            _, samples = _read(shard)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            rows = pd.concat([_names(shard, v, samples).assign(status="failed", reason=reason) for v in shard.variants])
        rows.attrs["shard"] = shard.key
        write_rows(rows, shard.path)
        give_back()
    return Done(len(rows), failures(rows))


def sweep(shards: Sequence[Shard], n_jobs: int = 1, retry_failed: bool = False) -> pd.DataFrame:
    """Measure the shards that are not done yet, and return the rows of all: one row an explanation.

    n_jobs: processes, through joblib; `joblib.parallel_config(backend=...)` around the call picks another engine.
    retry_failed: measure shards that failed earlier again. The rows do not depend on any of these.
    Shards are taken in random order: so the time left is a fair guess, though methods differ in cost, and two sweeps
    of the same shards at once share the work. Raises InputError for bad input, and Stopped where a worker process died.
    """
    if n_jobs == 0:
        raise InputError("n_jobs = 0; allowed: 1 or more, or -1 for one a core")
    shards = list(dict.fromkeys(shards))
    done = {shard: rows for shard in shards if (rows := finished(shard, retry_failed)) is not None}
    missing = [shard for shard in shards if shard not in done]
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    work = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        joblib.delayed(run_shard)(s, retry_failed) for s in random.Random().sample(missing, len(missing))
    )
    try:
        _follow(work, len(shards), len(done))
    except BrokenProcessPool:
        raise Stopped(
            "a process of the sweep died: killed, or out of memory (fewer n_jobs need less). "
            "What is measured is kept: run the same again"
        ) from None
    finally:
        torch.set_num_threads(threads)
        _use_cudnn(*before)
    rows = table(done[s] if s in done else load_shard(s) for s in shards)
    _list_photographs(rows)
    failed = failures(rows)
    print(f"{len(rows)} rows from {len(shards)} shards, {len(missing)} of them measured now; {failed} rows failed")
    return rows


def _list_photographs(rows: pd.DataFrame) -> None:
    """Write which photographs were drawn, and the class explained, to results/photographs-<source>-seed<seed>-<n>.csv."""
    measured = rows[rows["dataset"].isin(SOURCES) & (rows["status"] != "failed")]
    for (source, seed), part in measured.groupby(["dataset", "seed"]):
        listed = part.drop_duplicates(["model", "image"])[["image", "model", "target", "correct"]]
        name = f"photographs-{source}-seed{seed}-{listed['image'].nunique()}.csv"
        paths.write_whole(paths.RESULTS / name, partial(listed.to_csv, index=False))


def _follow(work: Iterable[Done], total: int, done: int) -> None:
    """Draw the progress line of a sweep: shards done, time, rate, time left, rows and failures; none in CI."""
    quiet = bool(os.environ.get("CI") or os.environ.get("REFINECAM_QUIET"))
    line = "{n_fmt} of {total_fmt} shards, {elapsed} so far, {rate_fmt}, {remaining} left{postfix}"
    rows = failed = 0
    with tqdm(work, total=total, initial=done, unit="shard", smoothing=0, bar_format=line, disable=quiet) as bar:
        for shard in bar:
            rows, failed = rows + shard.rows, failed + shard.failed
            bar.set_postfix_str(f"{rows} rows, {failed} failed", refresh=False)
