"""Did it reproduce? Tables and rows that a run made, beside those that are committed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from .checks import InputError

ROWS_WITHIN = 1e-3
ROWS_SHARE = 0.99
CELLS_WITHIN = 0.005
"""A run reproduces the reference if this share of its rows and all cells of its tables are this close."""
ILL_CONDITIONED = "GradCAM++"
"""The method whose maps rounding decides where activations are signed (docs/cluster.md), here and at powers of it.

Another processor moves its rows, so they don't count, and where they moved nor do the numbers of tables made of them."""
_UNCOMPARED = re.compile(r"(?<![a-z])(commit|seconds|date)(?![a-z])", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


class Verdict(NamedTuple):
    """Whether two products are close enough, what to print, and whether what is ill-conditioned has moved.

    Of a table `moved` says that it isn't close, but by its numbers alone.
    """

    close: bool
    text: str
    moved: bool = False


def compare_tables(made: Path, reference: Path) -> Verdict:
    """Compare two csv tables cell by cell.

    Every number may differ by .005, or by .005 of itself where it is above 1; a rounded one, in a cell with other
    text (.37 ± .29), also by a unit of its last decimal, for .374 and .376 are .37 and .38. The text is equal.
    Columns named commit, seconds or date are left out.
    """
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in (made, reference)]
    ours, theirs = (table.drop(columns=[c for c in table if _UNCOMPARED.search(c)]) for table in tables)
    if list(ours.columns) != list(theirs.columns) or len(ours) != len(theirs):
        shapes = " and ".join(f"{len(table)} rows of ({', '.join(table.columns)})" for table in (ours, theirs))
        return Verdict(False, f"other rows or columns, here and in the reference: {shapes}")
    close, largest, where = True, 0.0, ""
    for row, column in np.argwhere((ours != theirs).to_numpy()):
        here, there = ours.iat[row, column], theirs.iat[row, column]
        place = f"{theirs.iat[row, 0]}, {theirs.columns[column]}: {here!r} here, {there!r} in the reference"
        if _NUMBER.sub("#", here) != _NUMBER.sub("#", there):
            return Verdict(False, f"other text at {place}")
        for a, b in zip(_NUMBER.findall(here), _NUMBER.findall(there)):
            difference = abs(float(a) - float(b))
            decimals = len(b.partition(".")[2])
            rounding = 10.0**-decimals if decimals and b != there else 0.0
            close &= difference <= max(CELLS_WITHIN * max(1.0, abs(float(b))), rounding) + 1e-9
            if difference > largest:
                largest, where = difference, place
    return Verdict(close, f"largest difference {largest:.2g} at {where}" if largest else "identical", not close)


def compare_rows(made: pd.DataFrame, reference: pd.DataFrame, keys: Sequence[str], subset: bool = False) -> Verdict:
    """Compare two frames of rows joined on `keys`: close are 99 % of the rows within 1e-3, but for ILL_CONDITIONED's.

    With `subset` the reference may hold rows that `made` doesn't; else such a row counts as different, as does a
    row that the reference lacks. Differences above 1 are relative. Columns commit, seconds and date are left out.
    """
    keys = [key for key in keys if key in made and key in reference]
    # Copied, since a column that changes its type leaves a frame in pieces, of which pandas warns.
    ours, theirs = (frame.astype({key: str for key in keys}).copy() for frame in (made, reference))
    if not keys or ours.duplicated(keys).any() or theirs.duplicated(keys).any():
        return Verdict(False, f"not comparable: the columns ({', '.join(keys)}) don't tell the rows apart")
    joined = ours.merge(theirs, on=keys, how="left" if subset else "outer", suffixes=("", "|there"), indicator=True)
    compared = [c for c in ours if c in theirs and c not in keys and not _UNCOMPARED.search(c)]
    worst = pd.DataFrame({c: differences(joined[c], joined[f"{c}|there"]) for c in compared}, joined.index)
    both = joined["_merge"] == "both"
    largest = worst.max(axis="columns").where(both, np.inf)
    if len(joined) and not largest.any():
        return Verdict(True, f"identical, {len(joined):,} rows")
    ill = joined["method"].str.startswith(ILL_CONDITIONED) if "method" in keys else ~both
    apart = ill & both & (largest > ROWS_WITHIN)
    largest, moved = largest[~apart], int(apart.sum())
    share = float((largest <= ROWS_WITHIN).mean()) if len(largest) else float(moved > 0)
    text = f"{share:.1%} of {len(largest):,} rows within {ROWS_WITHIN:g}"
    if moved:
        text += f", {moved:,} of {ILL_CONDITIONED}'s {int(ill.sum()):,}, whose maps rounding decides, left out"
    if not both.all():
        text += f"; {int((~both).sum()):,} rows are on one side only"
    if largest[both].any():
        row = largest[both].idxmax()
        place = ", ".join(f"{key} {joined.at[row, key]}" for key in keys)
        text += f"; largest difference {largest[row]:.2g} in {worst.loc[row].idxmax()!r} at {place}"
    return Verdict(share >= ROWS_SHARE, text, moved > 0)


def differences(here: pd.Series, there: pd.Series) -> np.ndarray:
    """How far apart two columns are in each row: 0 where both are missing, infinite where only one is, or text differs."""

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


def read_rows(path: Path) -> pd.DataFrame:
    """Read what `save_rows` wrote; InputError if the file is cut short or isn't parquet."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(f"rows {path.name!r} can't be read as parquet: {str(error).splitlines()[0]}") from error
