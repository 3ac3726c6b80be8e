"""The rows of shards on disk: each a file written in one step, and read only where it is whole and the shard's own."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow
from tqdm.auto import tqdm

from . import paths
from .checks import InputError
from .provenance import KEYS
from .shards import Shard


def failures(rows: pd.DataFrame) -> int:
    """How many rows failed."""
    return int((rows["status"] == "failed").sum())


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """Write rows as parquet in one step: a reader sees the whole file or none. InputError where there is no writing."""
    try:
        paths.write_whole(path, lambda part: rows.to_parquet(part, index=False, write_page_checksum=True))
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


def finished(shard: Shard, retry_failed: bool = False) -> pd.DataFrame | None:
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
    return None if retry_failed and failures(rows) else rows


def table(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The rows of several shards as one table, sorted by KEYS."""
    frames = list(frames)
    for frame in frames:
        frame.attrs = {}
    return pd.concat(frames, ignore_index=True).sort_values(KEYS, ignore_index=True)
