"""Measure many explanations: shards of work, each one atomic file of rows, so that nothing done is ever lost or redone.

>>> rows = sweep(plan("efficientnet_lite0", ["GradCAM", "LayerCAM"], images=24, variants=[BASE, REFINED]))
"""

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import joblib
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..errors import InputError
from ..networks.memory import give_back
from ..paths import commit
from .shard import Shard
from .store import failures, finished, load_shard, look_up, table, write_rows


class Stopped(RuntimeError):
    """A sweep that can't go on, through no fault of its input; what is measured is kept, and the same call goes on."""


class Done(NamedTuple):
    """What a finished shard has: its number of rows, and how many of them failed."""

    rows: int
    failed: int


@contextmanager
def reproducibly() -> Iterator[None]:
    """Let torch compute the same bits every time inside: one thread, full precision, deterministic algorithms.

    Another number of threads takes sums in another order and moves the last bits. Use more processes instead. On a GPU
    convolutions use full precision, not TF32's 10 bits.
    """
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    torch.set_num_threads(1)
    cudnn.allow_tf32, cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.allow_tf32, cudnn.deterministic = before


def run_shard(shard: Shard, retry_failed: bool = False) -> Done:
    """Measure a shard and write its rows; a shard that is done is left alone, so submitting a sweep again resumes it.

    retry_failed: measure it again where rows of it failed. A shard that raises is written as rows with status "failed"
    and the reason; bad input, and a folder that can't be written to, raise InputError instead.
    """
    rows = finished(shard, retry_failed)
    if rows is None:
        try:
            rows = measured(shard)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - kept as rows, counted and shown; never silently dropped
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
    """The rows of a shard, measured now and written nowhere. rounding: see `measurements.Work`."""
    from .measurements import measure_shard  # here, for drawing committed rows needs no networks

    with reproducibly():
        return measure_shard(shard, rounding)


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
    found = look_up(shards, retry_failed)
    missing = list(dict.fromkeys(found.missing))
    work = joblib.Parallel(n_jobs=min(n_jobs, max(1, len(missing))), return_as="generator_unordered")(
        joblib.delayed(run_shard)(s, retry_failed) for s in random.Random().sample(missing, len(missing))
    )
    try:
        with reproducibly():  # also round threads that measure in this process at once
            _follow(work, len(missing))
    except BrokenProcessPool:
        raise Stopped(
            "a process of the sweep died: killed, or out of memory (fewer n_jobs need less). "
            "What is measured is kept: run the same again"
        ) from None
    new = table(load_shard(shard) for shard in missing)
    rows = table([found.rows, new])
    read, here = found.committed, len(found.rows) - found.committed
    print(
        f"{len(rows):,} rows: {read:,} committed, {here:,} measured here before, {len(new):,} measured now; "
        f"{failures(rows)} failed"
    )
    return rows


def _follow(work: Iterable[Done], total: int) -> None:
    """Draw the progress line of a sweep: shards done, time, rate, time left, rows and failures; none in CI."""
    quiet = bool(os.environ.get("CI") or os.environ.get("REFINECAM_QUIET"))
    line = "{n_fmt} of {total_fmt} shards, {elapsed} so far, {rate_fmt}, {remaining} left{postfix}"
    rows = failed = 0
    with tqdm(work, total=total, unit="shard", smoothing=0, bar_format=line, disable=quiet or not total) as bar:
        for shard in bar:
            rows, failed = rows + shard.rows, failed + shard.failed
            bar.set_postfix_str(f"{rows} rows, {failed} failed", refresh=False)
