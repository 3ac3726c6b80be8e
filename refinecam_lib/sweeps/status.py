"""What of a sweep is measured and what is missing, and the dask cluster that may measure it."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import joblib

from ..errors import InputError, Stopped
from .shard import Shard
from .store import look_up

WAIT = 600
"""Seconds to wait for the first dask worker, because a cluster's queue may delay it."""


def status(plans: Mapping[str, Sequence[Shard]]) -> list[str]:
    """Return one line per notebook, and one for all together: rows done and missing, failures and their reasons.

    Notebooks share rows, so the last line's numbers are less than the sum of the others. A damaged file is missing.

    Args:
        plans: notebook -> its shards. Notebooks without shards get no line.
    """
    parts = {name: shards for name, shards in plans.items() if shards}
    parts["together"] = [shard for shards in parts.values() for shard in shards]
    return [f"{name}: {_summary(shards)}" for name, shards in parts.items()]


def _summary(shards: Sequence[Shard]) -> str:
    planned = dict.fromkeys((shard.setup, pair) for shard in shards for pair in shard.pairs)
    found = look_up(dict.fromkeys(shards))
    rows, missing = found.rows, dict.fromkeys((shard, pair) for shard in found.missing for pair in shard.pairs)
    text = f"{len(rows):,} of {len(planned):,} rows done, {found.committed:,} of them committed"
    for model in dict.fromkeys(shard.model for shard, _ in missing):
        counts = Counter(shard.method or shard.measurement for shard, _ in missing if shard.model == model)
        text += f"; missing of {model}: " + ", ".join(f"{method} {n}" for method, n in counts.items())
    failed = rows[rows["status"] == "failed"] if len(rows) else rows
    return text + (f"; {len(failed)} rows failed ({'; '.join(sorted(set(failed['reason'])))})" if len(failed) else "")


@contextlib.contextmanager
def engine(address: str | None) -> Iterator[None]:
    """Let sweeps inside run on the workers of a dask scheduler.

    Args:
        address: of the scheduler; None for this machine alone.

    Raises:
        InputError: dask is not installed, or the scheduler is not reachable.
        Stopped: no worker joins, or all workers die.
    """
    if not address:
        yield
        return
    try:
        import distributed
    except ImportError as error:
        raise InputError("--dask needs the packages of the extra 'cluster': pip install -e '.[cluster]'") from error
    try:
        client = distributed.Client(address)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise InputError(f"No dask scheduler at {address!r}: {' '.join(str(error).split())}") from error
    try:
        with client, joblib.parallel_config(backend="dask", wait_for_workers_timeout=WAIT):
            yield
    except TimeoutError:
        raise Stopped(f"No worker joined the dask scheduler at {address!r} within {WAIT} s.") from None
    except (distributed.KilledWorker, distributed.client.FutureCancelledError) as error:
        raise Stopped(
            f"The dask workers died ({type(error).__name__}). They were killed or ran out of memory. "
            "What is measured is kept: run the same again."
        ) from None
