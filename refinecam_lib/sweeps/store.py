"""Rows on disk: committed rows in data/rows, and rows measured on this machine in data/results.

A row is found by setup, image, layer and aggregate. It does not matter which shard measured it.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from tqdm.auto import tqdm

from .. import paths
from ..errors import InputError
from .registry import DATASETS
from .shard import RESULTS_VERSION, Pair, Shard
from .version import KEYS

DAMAGED = (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError)
"""What pandas and pyarrow raise for a damaged file."""


class Found(NamedTuple):
    """The rows that exist, how many of them are committed, and the shards that still have to be measured."""

    rows: pd.DataFrame
    committed: int
    missing: list[Shard]


def failures(rows: pd.DataFrame) -> int:
    """Count the rows that failed."""
    return int((rows["status"] == "failed").sum()) if len(rows) else 0


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """Write rows as one parquet file. A reader sees the old file or the whole new one.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        paths.write_whole(path, lambda part: rows.to_parquet(part, index=False, write_page_checksum=True))
    except OSError as error:
        raise InputError(
            f"Results cannot be written to {str(path.parent)!r}: {error.strerror or error}. What is measured is kept. "
            "Make room or set REFINECAM_RESULTS to another folder, and run the same again."
        ) from error


def load_shard(shard: Shard) -> pd.DataFrame:
    """Read the rows of a shard that was measured on this machine.

    Raises:
        InputError: the file is missing or damaged, or it belongs to another shard.
    """
    if not shard.path.exists():
        raise InputError(f"Expected results file {shard.path.name}, found none. Run the sweep first.")
    rows = _read_local(shard.path, shard)
    if set(pairs_of(rows)) != set(shard.pairs):
        raise InputError(f"results file {shard.path.name} belongs to another shard. Run the sweep again.")
    return rows


def _read_local(path: Path, shard: Shard) -> pd.DataFrame:
    """Read a file of the shard's setup. Raises InputError if it is damaged or of another setup."""
    try:
        rows = pd.read_parquet(path, page_checksum_verification=True, partitioning=None)
    except DAMAGED as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"results file {path.name} is damaged ({reason}). Run the sweep again.") from error
    names = {"dataset": shard.dataset, "model": shard.model, "method": shard.method, "seed": shard.seed}
    absent = [name for name in (*KEYS, "seed", "status") if name not in rows]
    wrong = [] if absent else [f"{name} is not {value}" for name, value in names.items() if (rows[name] != value).any()]
    if (found := rows.attrs.get("setup")) != shard.setup:
        wrong = [f"its setup is {found}"]
    elif absent:
        wrong = [f"no columns {', '.join(absent)}"]
    if wrong:
        raise InputError(f"results file {path.name} belongs to another sweep ({wrong[0]}). Run the sweep again.")
    rows.attrs = {}
    return rows


def finished(shard: Shard, retry_failed: bool = False) -> pd.DataFrame | None:
    """Return the rows of a shard that was measured on this machine, or None.

    A damaged file is reported and counts as missing. It stays until a new one replaces it.
    """
    rows = _reported(load_shard, shard) if shard.path.exists() else None
    return None if rows is None or (retry_failed and failures(rows)) else rows


def local_rows(shard: Shard) -> list[pd.DataFrame]:
    """Return the rows of the shard's setup that today's code measured on this machine, one table per file."""
    files = sorted(shard.folder.glob("*.parquet"))
    return [rows for file in files if (rows := _reported(_read_local, file, shard)) is not None]


def _reported(read: Callable[..., pd.DataFrame], *arguments: object) -> pd.DataFrame | None:
    """Return what `read` returns, or print why it failed."""
    try:
        return read(*arguments)
    except InputError as problem:
        tqdm.write(f"{problem} It is measured again now.")
        return None


def look_up(shards: Iterable[Shard], retry_failed: bool = False) -> Found:
    """Find the rows of shards. Committed rows win over those measured on this machine.

    Args:
        shards: what to look for.
        retry_failed: count failed rows as missing.
    """
    setups: dict[str, list[Shard]] = {}
    for shard in shards:
        setups.setdefault(shard.setup, []).append(shard)
    frames: list[pd.DataFrame] = []
    missing: list[Shard] = []
    committed = 0
    for group in setups.values():
        parts = [rows for rows in (committed_rows(group[0]), *local_rows(group[0])) if len(rows)]
        known: dict[Pair, tuple[int, int]] = {}
        for failed in (False,) if retry_failed else (False, True):  # a failed row counts only if there is no other
            for number, rows in enumerate(parts):
                for place, (pair, status) in enumerate(zip(pairs_of(rows), rows["status"])):
                    if (status == "failed") == failed:
                        known.setdefault(pair, (number, place))
        wanted = dict.fromkeys(pair for shard in group for pair in shard.pairs)
        for shard in group:
            open_variants: dict[str, list[Pair]] = {}  # of each image
            for pair in shard.pairs:
                if pair not in known:
                    open_variants.setdefault(pair[0], []).append(pair)
            alike: dict[tuple, set[Pair]] = {}  # images with the same open variants share a shard
            for pairs in open_variants.values():
                alike.setdefault(tuple(pair[1:] for pair in pairs), set()).update(pairs)
            missing += [shard.only(pairs) for pairs in alike.values()]
        for number, rows in enumerate(parts):
            places = [known[pair][1] for pair in wanted if pair in known and known[pair][0] == number]
            frames.append(rows.iloc[sorted(places)])
            committed += len(places) if rows.attrs.get("committed") else 0
    return Found(table(frames), committed, missing)


def pairs_of(rows: pd.DataFrame) -> Iterator[Pair]:
    """Yield the image, layer and aggregate of each row. They tell the rows of a setup apart."""
    images = rows["image"].astype(str)
    if "file" in rows:
        images = images + "@" + rows["file"].astype(str)
    return zip(images, rows["layer"].astype(int), rows["aggregate"].astype(str))


def table(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Join tables of rows and sort them by KEYS."""
    frames = [frame for frame in frames if len(frame)]
    for frame in frames:
        frame.attrs = {}
    return pd.concat(frames, ignore_index=True).sort_values(KEYS, ignore_index=True) if frames else pd.DataFrame()


def differences(here: pd.Series, there: pd.Series) -> np.ndarray:
    """Compute how far two columns of equal length are apart.

    Returns:
        One number >= 0 per row. Numbers and arrays: the largest absolute difference, relative to `there` above 1.
        0 if both are missing. Infinite if one is missing, shapes differ or text differs.
    """

    def numbers(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            gap = np.abs(a - b) / np.maximum(1.0, np.abs(b))
        return np.where(equal, 0.0, np.where(np.isnan(gap), np.inf, gap))

    if pd.api.types.is_numeric_dtype(here) and pd.api.types.is_numeric_dtype(there):
        return numbers(here.to_numpy(dtype=float, na_value=np.nan), there.to_numpy(dtype=float, na_value=np.nan))
    result = np.full(len(here), np.inf)
    for row, (a, b) in enumerate(zip(here, there)):
        arrays = [isinstance(value, (list, np.ndarray)) for value in (a, b)]
        if all(arrays) and np.shape(a) == np.shape(b):
            result[row] = numbers(np.asarray(a, dtype=float), np.asarray(b, dtype=float)).max(initial=0.0)
        elif not any(arrays) and ((pd.isna(a) and pd.isna(b)) or a == b):
            result[row] = 0.0
    return result


def committed_file(shard: Shard) -> Path:
    """Return the file of data/rows for a shard's rows."""
    return paths.ROWS / f"{shard.measurement}-{shard.dataset}-{shard.model}.parquet"


def committed_rows(shard: Shard, always: bool = False) -> pd.DataFrame:
    """Return the committed rows of a shard's setup. A fresh run gets none, except with `always`."""
    path = committed_file(shard)
    if (os.environ.get(paths.FRESH) and not always) or not path.exists():
        return pd.DataFrame()
    rows = _read_committed(path, path.stat().st_mtime_ns)
    rows = rows[rows["setup"] == shard.setup].drop(columns="setup").reset_index(drop=True)
    rows.attrs = {"committed": True}
    return rows


@lru_cache(maxsize=32)
def _read_committed(path: Path, changed: int) -> pd.DataFrame:
    try:
        rows = pd.read_parquet(path, page_checksum_verification=True, partitioning=None)
    except DAMAGED as error:
        reason, shown = str(error).splitlines()[0], paths.shown(path)
        raise InputError(f"{shown} is damaged ({reason}). Restore it: git checkout {shown}") from error
    return rows.astype(dict.fromkeys(rows.select_dtypes("float32").columns, "float64"))


def commit_rows(shards: Sequence[Shard]) -> list[Path]:
    """Put all measured rows of these shards into data/rows.

    Rows of an outdated version are removed. Rows of other setups and images stay. A data set may list its images
    beside them, so that figures can be drawn without the images.

    Returns:
        The files that were written.
    """
    files: dict[Path, list[Shard]] = {}
    for shard in shards:
        files.setdefault(committed_file(shard), []).append(shard)
    changed = []
    for path, group in files.items():
        parts, setups = [], {}
        if path.exists():
            old = pd.read_parquet(path)
            setups = json.loads(pyarrow.parquet.read_schema(path).metadata[b"setups"])
            current = RESULTS_VERSION[group[0].measurement]
            setups = {name: conditions for name, conditions in setups.items() if conditions["version"] == current}
            parts.append(old[old["setup"].isin(setups)])
        for setup in dict.fromkeys(shard.setup for shard in group):
            own = [shard for shard in group if shard.setup == setup]
            found = look_up(own).rows
            if len(found):
                parts.append(found.assign(setup=setup))
                setups[setup] = own[0].conditions
        rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        if not len(rows):
            continue
        keys = ["setup", "image", "layer", "aggregate"]
        rows = rows.drop_duplicates([*keys, *(["file"] if "file" in rows else [])]).sort_values(keys, ignore_index=True)
        write_committed(rows, setups, path)
        changed.append(path)
    for name in dict.fromkeys(shard.dataset for shard in shards):
        ids = {number: image for s in shards if s.dataset == name for number, image in zip(s.numbers, s.images)}
        if listing := DATASETS[name].write_listing([ids[number] for number in sorted(ids)]):
            changed.append(listing)
    return changed


def write_committed(rows: pd.DataFrame, setups: dict, path: Path) -> None:
    """Write committed rows. Numbers with a fraction become float32.

    Whole numbers keep every bit, because some of them encode a set of bird parts.

    Args:
        rows: with column setup.
        setups: setup -> its conditions, for the file's metadata.
        path: the file.
    """
    double = [name for name in rows.select_dtypes("float64") if (rows[name].dropna() % 1 != 0).any()]
    arrow = pyarrow.Table.from_pandas(rows.astype(dict.fromkeys(double, np.float32)), preserve_index=False)
    metadata = (arrow.schema.metadata or {}) | {b"setups": json.dumps(setups, sort_keys=True).encode()}
    arrow, options = arrow.replace_schema_metadata(metadata), {"compression": "zstd", "compression_level": 19}
    paths.write_whole(path, lambda part: pyarrow.parquet.write_table(arrow, part, write_page_checksum=True, **options))
