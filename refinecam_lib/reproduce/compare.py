"""Compare the tables that a run made with the committed ones, and columns of measured rows with each other."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..errors import InputError

CELLS_WITHIN = 0.005
"""How far a number of a table may be from the reference's: absolute up to 1, relative above."""
_UNCOMPARED = re.compile(r"(?<![a-z])(commit|seconds|date)(?![a-z])", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


class Verdict(NamedTuple):
    """Whether two tables are close enough, and the largest difference in words."""

    close: bool
    text: str


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
    return Verdict(close, f"largest difference {largest:.2g} at {where}" if largest else "identical")


def differences(here: pd.Series, there: pd.Series) -> np.ndarray:
    """Return how far apart two columns of equal length are, one number >= 0 a row.

    Numbers and arrays: the largest absolute difference, relative to `there` above 1. 0 where both are missing, infinite
    where one is, where shapes differ, and where text differs.
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


def read_rows(path: Path) -> pd.DataFrame:
    """Read what `save_rows` wrote; InputError if the file is cut short or isn't parquet."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(f"rows {path.name!r} can't be read as parquet: {str(error).splitlines()[0]}") from error
