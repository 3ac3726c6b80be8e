"""Measure shards. Each writes one file of rows in one step, so an interrupted sweep resumes without loss.

>>> rows = sweep(plan("efficientnet_lite0", ["GradCAM", "LayerCAM"], images=24, variants=[BASE, REFINED]))
"""

import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import joblib
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..errors import InputError, Stopped
from ..networks.layers import fast_pointwise
from ..networks.memory import give_back, keep_memory
from ..paths import commit
from .own import Parcel, pack, unpack
from .shard import Shard
from .store import failures, finished, load_shard, look_up, table, write_rows


class Done(NamedTuple):
    """A finished shard's number of rows, and how many of them failed."""

    rows: int
    failed: int


@contextmanager
def reproducibly() -> Iterator[None]:
    """Let torch compute the same bits every time inside: one thread, full precision, deterministic algorithms.

    More threads add numbers in another order, which changes the last bits. Use more processes instead. On a GPU,
    convolutions use full precision instead of TF32's 10 bits.
    """
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    torch.set_num_threads(1)
    cudnn.allow_tf32, cudnn.deterministic = False, True
    keep_memory()
    fast_pointwise()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.allow_tf32, cudnn.deterministic = before


def run_shard(shard: Shard, retry_failed: bool = False, parcel: Parcel | None = None) -> Done:
    """Measure a shard and write its rows, unless they exist already.

    If measuring raises, every row is written with status "failed" and the reason.

    Args:
        shard: what to measure.
        retry_failed: measure it again if some of its rows failed.
        parcel: what the shard needs of yours, if another process plans it.

    Raises:
        InputError: the input is bad, or the folder cannot be written to.
    """
    unpack(parcel)
    rows = finished(shard, retry_failed)
    if rows is None:
        try:
            rows = measured(shard)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - kept as rows, counted and shown
            from .measurements import names_of, read_samples

            _, samples = read_samples(shard)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            rows = pd.concat(
                [names_of(shard, v, samples).assign(status="failed", reason=reason) for v in shard.variants]
            )
        rows["commit"] = commit()
        rows.attrs["setup"] = shard.setup
        write_rows(rows, shard.path)
        give_back()
    return Done(len(rows), failures(rows))


def measured(shard: Shard, rounding: int | None = None) -> pd.DataFrame:
    """Measure the rows of a shard without writing them. rounding: see `measurements.Work`."""
    from .measurements import measure_shard  # drawing committed rows needs no networks

    with reproducibly():
        return measure_shard(shard, rounding)


def sweep(shards: Sequence[Shard], n_jobs: int = 1, retry_failed: bool = False) -> pd.DataFrame:
    """Measure the shards that are missing and return the rows of all shards. The rows do not depend on n_jobs.

    Shards run in random order. Methods differ in cost, so this keeps the estimated time left fair. It also lets two
    sweeps of the same shards share the work.

    Args:
        shards: what to measure.
        n_jobs: processes; -1 for one per core. `joblib.parallel_config(backend=...)` around the call picks another
            engine.
        retry_failed: measure shards again that failed before.

    Returns:
        One row per explanation.

    Raises:
        InputError: the input is bad.
        Stopped: a worker process died.
    """
    if n_jobs == 0:
        raise InputError("Expected n_jobs of 1 or more, or -1 for one per core, got 0.")
    shards = list(dict.fromkeys(shards))
    found = look_up(shards, retry_failed)
    missing = list(dict.fromkeys(found.missing))
    n_jobs = min(n_jobs, max(1, len(missing)))
    parcel = pack(missing) if n_jobs != 1 else None
    work = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        joblib.delayed(run_shard)(s, retry_failed, parcel) for s in random.Random().sample(missing, len(missing))
    )
    quiet = bool(os.environ.get("CI") or os.environ.get("REFINECAM_QUIET")) or not missing
    line = "{n_fmt} of {total_fmt} shards, {elapsed} so far, {rate_fmt}, {remaining} left{postfix}"
    n_rows = failed = 0
    try:
        with (
            reproducibly(),  # also for joblib's threads in this process
            tqdm(work, total=len(missing), unit="shard", smoothing=0, bar_format=line, disable=quiet) as bar,
        ):
            for done in bar:
                n_rows, failed = n_rows + done.rows, failed + done.failed
                bar.set_postfix_str(f"{n_rows} rows, {failed} failed", refresh=False)
    except BrokenProcessPool:
        raise Stopped(
            "A process of the sweep died. It was killed or ran out of memory; a smaller n_jobs needs less. "
            "What is measured is kept: run the same again."
        ) from None
    new = table(load_shard(shard) for shard in missing)
    rows = table([found.rows, new])
    print(
        f"{len(rows):,} rows: {found.committed:,} committed, {len(found.rows) - found.committed:,} measured here before, "
        f"{len(new):,} measured now; {failures(rows)} failed"
    )
    return rows
