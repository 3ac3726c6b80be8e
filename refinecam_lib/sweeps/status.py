"""Measure ahead of the notebooks, or say what is measured and what is missing."""

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import joblib

from .. import paths
from ..errors import InputError
from .experiments import plan_of
from .run import Stopped, sweep
from .shard import Shard
from .store import commit_rows, look_up

if TYPE_CHECKING:
    from ..reproduce.parameters import Notebook


WAIT = 600
"""Seconds to wait for a first dask worker: a queue may let it wait."""


def status(notebooks: "Sequence[Notebook]", values: Mapping[str, Mapping[str, object]]) -> list[str]:
    """One line a notebook that sweeps: rows done and missing, failures and why; and one for all together.

    Notebooks share rows, so the last line is less than the sum. A file that is not whole counts as missing.
    """
    lines, every = [], []
    for book in notebooks:
        if shards := plan_of(book.name, values[book.name]):
            lines.append(f"{book.name}: {_summary(shards)}")
            every += shards
    return [*lines, f"together: {_summary(every)}"]


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
    """Let sweeps inside run on the workers of the dask scheduler at `address`, or here where it is None.

    Raises InputError where dask or the scheduler is not there, Stopped where no worker comes or all of them die.
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
        raise InputError(f"no dask scheduler at {address!r}: {' '.join(str(error).split())}") from error
    try:
        with client, joblib.parallel_config(backend="dask", wait_for_workers_timeout=WAIT):
            yield
    except TimeoutError:
        raise Stopped(f"no worker joined the dask scheduler at {address!r} within {WAIT} s") from None
    except (distributed.KilledWorker, distributed.client.FutureCancelledError) as error:
        raise Stopped(
            f"the dask workers died ({type(error).__name__}): killed, or out of memory? What is measured is kept: "
            "run the same again"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from ..reproduce.parameters import chosen  # not above: notebooks import plans, and this is slow

    parser = argparse.ArgumentParser(prog="python -m refinecam_lib.sweeps.status", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="standard", help="standard (default), photographs, paper")
    several: dict = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument("--only", metavar="07", help="what these notebooks measure", **several)
    parser.add_argument("--set", metavar="NAME=VALUE", dest="settings", help="parameters", **several)
    parser.add_argument("--status", action="store_true", help="say what is done and missing; measure nothing")
    parser.add_argument(
        "--retry-failed", action="store_true", help="measure the shards that failed again, and no other"
    )
    parser.add_argument("--commit", action="store_true", help="put what is measured into data/rows; measure nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1; -1 for one a core)")
    parser.add_argument("--dask", metavar="ADDRESS", help="let the workers of this dask scheduler measure")
    options = parser.parse_args(arguments)
    try:
        notebooks, values = chosen(options.profile, options.only, options.settings)
        if options.status:
            print("\n".join(status(notebooks, values)))
            return 0
        shards = [shard for book in notebooks for shard in plan_of(book.name, values[book.name])]
        if options.commit:
            for path in commit_rows(list(dict.fromkeys(shards))):
                print(f"wrote {paths.shown(path)}, {path.stat().st_size:,} bytes")
            return 0
        if options.retry_failed:
            planned, failed = set(look_up(shards).missing), look_up(shards, retry_failed=True).missing
            shards = [shard for shard in dict.fromkeys(failed) if shard not in planned]
        if not shards:
            print("nothing failed" if options.retry_failed else "these notebooks measure nothing ahead")
            return 0
        with engine(options.dask):
            sweep(shards, options.jobs, options.retry_failed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is measured is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
