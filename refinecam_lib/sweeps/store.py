"""Measured rows on disk: those that are committed in data/rows, and those that were measured here.

Rows are looked up by setup, image, layer and aggregate, whatever shards measured them.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from tqdm.auto import tqdm

from .. import paths
from ..datasets.photographs import SOURCES, write_listing
from ..errors import InputError
from .shard import RESULTS_VERSION, Pair, Shard
from .version import KEYS

BROKEN = (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError)
"""What pandas and pyarrow raise for a file that is not whole."""


class Found(NamedTuple):
    """Rows that are there, of committed files and of files made here, and the shards that still have to be measured."""

    rows: pd.DataFrame
    committed: int
    missing: list[Shard]


def failures(rows: pd.DataFrame) -> int:
    """How many rows failed."""
    return int((rows["status"] == "failed").sum()) if len(rows) else 0


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
    """The rows of a shard that was measured here; raises InputError where its file is missing, not whole or foreign."""
    if not shard.path.exists():
        raise InputError(f"no results file {shard.path.name}; run the sweep first")
    rows = _read_local(shard.path, shard)
    if set(pairs_of(rows)) != set(shard.pairs):
        raise InputError(f"results file {shard.path.name} is of another shard (other images); run the sweep again")
    return rows


def _read_local(path: Path, shard: Shard) -> pd.DataFrame:
    """A file of the shard's setup."""
    try:
        rows = pd.read_parquet(path, page_checksum_verification=True, partitioning=None)
    except BROKEN as error:  # the last three by pandas
        reason = str(error).splitlines()[0]
        raise InputError(f"results file {path.name} is not whole ({reason}); run the sweep again") from error
    if stranger := _stranger(rows, shard):
        raise InputError(f"results file {path.name} is of another sweep ({stranger}); run the sweep again")
    rows.attrs = {}
    return rows


def _stranger(rows: pd.DataFrame, shard: Shard) -> str:
    """What in the rows can't be of the shard's setup; empty where nothing is."""
    if rows.attrs.get("setup") != shard.setup:
        return f"its setup is {rows.attrs.get('setup')}"
    names = {"dataset": shard.dataset, "model": shard.model, "method": shard.method, "seed": shard.seed}
    if missing := [name for name in (*KEYS, "seed", "status") if name not in rows]:
        return f"no columns {', '.join(missing)}"
    return next((f"{name} is not {value}" for name, value in names.items() if (rows[name] != value).any()), "")


def finished(shard: Shard, retry_failed: bool = False) -> pd.DataFrame | None:
    """The rows of a shard that was measured here, else None. A file that is not whole is said so and taken as not there.

    It stays until the new one replaces it: another sweep may have put a whole one in its place by now.
    """
    rows = _said(load_shard, shard) if shard.path.exists() else None
    return None if rows is None or (retry_failed and failures(rows)) else rows


def _said(read: Callable[..., pd.DataFrame], *arguments: object) -> pd.DataFrame | None:
    """What `read` gives, or None and a line that says why not."""
    try:
        return read(*arguments)
    except InputError as problem:
        tqdm.write(f"{problem}: it is measured anew")
        return None


def look_up(shards: Iterable[Shard], retry_failed: bool = False) -> Found:
    """Find the rows of shards. Committed ones win over those measured here.

    retry_failed: take rows that failed as missing.
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
        for failed in (False,) if retry_failed else (False, True):  # a failed row counts where there is no other
            for number, rows in enumerate(parts):
                for place, (pair, status) in enumerate(zip(pairs_of(rows), rows["status"])):
                    if (status == "failed") == failed:
                        known.setdefault(pair, (number, place))
        wanted = dict.fromkeys(pair for shard in group for pair in shard.pairs)
        for shard in group:
            missing += _open(shard, known.keys())
        for number, rows in enumerate(parts):
            places = [known[pair][1] for pair in wanted if pair in known and known[pair][0] == number]
            frames.append(rows.iloc[sorted(places)])
            committed += len(places) if rows.attrs.get("committed") else 0
    return Found(table(frames), committed, missing)


def _open(shard: Shard, known: AbstractSet[Pair]) -> Iterator[Shard]:
    """The parts of a shard whose rows are not known, each with the same open variants for all of its images."""
    variants: dict[str, list[Pair]] = {}
    for pair in shard.pairs:
        if pair not in known:
            variants.setdefault(pair[0], []).append(pair)
    alike: dict[tuple, set[Pair]] = {}
    for pairs in variants.values():
        alike.setdefault(tuple(pair[1:] for pair in pairs), set()).update(pairs)
    for group in alike.values():
        yield shard.only(group)


def pairs_of(rows: pd.DataFrame) -> Iterator[Pair]:
    """What tells the rows of a setup apart."""
    images = rows["image"].astype(str)
    if "file" in rows:
        images = images + "@" + rows["file"].astype(str)
    return zip(images, rows["layer"].astype(int), rows["aggregate"].astype(str))


def local_rows(shard: Shard) -> list[pd.DataFrame]:
    """The rows of the shard's setup that were measured here by today's code."""
    files = sorted(shard.folder.glob("*.parquet"))
    return [rows for file in files if (rows := _said(_read_local, file, shard)) is not None]


def table(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The rows of several shards as one table, sorted by KEYS."""
    frames = [frame for frame in frames if len(frame)]
    for frame in frames:
        frame.attrs = {}
    return pd.concat(frames, ignore_index=True).sort_values(KEYS, ignore_index=True) if frames else pd.DataFrame()


def committed_file(shard: Shard) -> Path:
    """The file of data/rows that holds a shard's rows once they are committed."""
    return paths.ROWS / f"{shard.measurement}-{shard.dataset}-{shard.model}.parquet"


@contextlib.contextmanager
def committed_only() -> Iterator[None]:
    """Read committed rows inside, also in a run that measures afresh."""
    fresh = os.environ.pop(paths.FRESH, None)
    try:
        yield
    finally:
        if fresh is not None:
            os.environ[paths.FRESH] = fresh


def committed_rows(shard: Shard) -> pd.DataFrame:
    """The committed rows of a shard's setup; none where the runner was told to measure afresh."""
    path = committed_file(shard)
    if os.environ.get(paths.FRESH) or not path.exists():
        return pd.DataFrame()
    rows = _read_committed(path, path.stat().st_mtime_ns)
    rows = rows[rows["setup"] == shard.setup].drop(columns="setup").reset_index(drop=True)
    rows.attrs = {"committed": True}
    return rows


@lru_cache(maxsize=32)
def _read_committed(path: Path, changed: int) -> pd.DataFrame:
    try:
        rows = pd.read_parquet(path, page_checksum_verification=True, partitioning=None)
    except BROKEN as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{paths.shown(path)} is not whole ({reason}). Restore it: git checkout {paths.shown(path)}"
        ) from error
    single = rows.select_dtypes("float32").columns
    return rows.astype(dict.fromkeys(single, "float64"))


def commit_rows(shards: Sequence[Shard]) -> list[Path]:
    """Put all rows of these shards that are there into data/rows, and return the files that changed.

    Rows of an outdated version go. Rows of other setups and other images stay. Photographs are listed beside them, so
    that figures can be drawn without the pictures.
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
    for source in dict.fromkeys(shard.dataset for shard in shards if shard.dataset in SOURCES):
        ids = {number: image for s in shards if s.dataset == source for number, image in zip(s.numbers, s.images)}
        if listing := write_listing(source, [ids[number] for number in sorted(ids)]):
            changed.append(listing)
    return changed


def write_committed(rows: pd.DataFrame, setups: dict, path: Path) -> None:
    """Write committed rows, numbers with a fraction in float32, the conditions of each setup in the file's metadata.

    Whole numbers stay as they are, because some are sets of bits: those of birds' parts.
    """
    double = [name for name in rows.select_dtypes("float64") if (rows[name].dropna() % 1 != 0).any()]
    arrow = pyarrow.Table.from_pandas(rows.astype(dict.fromkeys(double, np.float32)), preserve_index=False)
    metadata = (arrow.schema.metadata or {}) | {b"setups": json.dumps(setups, sort_keys=True).encode()}

    def save(part: Path) -> None:
        pyarrow.parquet.write_table(
            arrow.replace_schema_metadata(metadata), part, compression="zstd", compression_level=19, write_page_checksum=True
        )  # fmt: skip

    paths.write_whole(path, save)
