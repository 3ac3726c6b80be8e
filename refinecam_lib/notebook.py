"""A notebook's products: saving its figures and tables, captions, and the comparison with the committed reference.

>>> save(figure, "fig1", profile, caption=caption(profile, n=24))
>>> save(table, "table1", profile, caption=caption(profile, n=24))
>>> save_rows(results, "rows_fig1", profile)
"""

import functools
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from refinecam_lib import paths
from refinecam_lib.checks import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRODUCTS = "REFINECAM_PRODUCTS"
"""The environment variable by which the runner has a notebook save to a folder of its own until it has succeeded."""


def products_folder(profile: str = "quick") -> Path:
    """Return the folder that `save` writes to: the runner's, else `figures/<profile>`; it is made if missing."""
    folder = Path(os.environ.get(PRODUCTS) or paths.FIGURES / profile)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def commit() -> str:
    """Return the commit computed from, `abc1234` or `abc1234-dirty`; `unknown` outside a git checkout.

    Changes under `figures/` don't make it dirty: they are what is computed, not what it is computed from.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "--short=7", "HEAD")
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)figures")
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def caption(profile: str, n: int, what: str = "images") -> str:
    """Return the line that stands under every figure and table, `profile quick, n = 24 images, commit abc1234`."""
    return f"profile {profile}, n = {n:,} {what}, commit {commit()}"


def save(product: "Figure | pd.DataFrame", name: str, profile: str = "quick", caption: str = "") -> None:
    """Save a figure as png and pdf, or a table as csv, md and tex; equal input, equal bytes.

    A table's cells may be text: `**.55 ± .30**` is bold in md and tex, and plain in csv. Numbers keep their full
    precision in csv and have two decimals in md and tex. A table's index, where it has one that says something, is
    its first column. `caption` stands below the table, and in the figure's metadata.
    Raises InputError if the product is neither, or the name isn't letters, digits, `_` and `-`.
    """
    target = products_folder(profile) / _checked(name)
    if hasattr(product, "savefig"):  # a Figure, told without importing matplotlib
        # No dates and no program versions: a file changes only where the picture does.
        png = {"Software": None, "Description": caption} if caption else {"Software": None}
        pdf = {"CreationDate": None, "Creator": None, "Producer": None, "Subject": caption or None}
        product.savefig(target.with_suffix(".png"), dpi=150, bbox_inches="tight", metadata=png)
        product.savefig(target.with_suffix(".pdf"), bbox_inches="tight", metadata=pdf)
    elif isinstance(product, pd.DataFrame):
        table = _flat(product)
        plain = table.map(lambda cell: cell.replace("**", "") if isinstance(cell, str) else cell)
        plain.to_csv(target.with_suffix(".csv"), index=False, lineterminator="\n")
        target.with_suffix(".md").write_text(_markdown(table, caption), encoding="utf-8")
        target.with_suffix(".tex").write_text(_latex(table, caption), encoding="utf-8")
    else:
        raise InputError(
            f"product {name!r} is a {type(product).__name__}; allowed: a matplotlib Figure, a pandas DataFrame"
        )


def save_rows(frame: pd.DataFrame, name: str, profile: str = "quick") -> None:
    """Save the rows behind a figure or table as `<name>.parquet`; the name begins with `rows`."""
    if not name.startswith("rows"):
        raise InputError(f"rows named {name!r}; allowed: a name that begins with 'rows', such as 'rows_{name}'")
    frame.to_parquet(products_folder(profile) / f"{_checked(name)}.parquet", index=False, compression="zstd")


def read_rows(path: Path) -> pd.DataFrame:
    """Read what `save_rows` wrote; InputError if the file is cut short or isn't parquet."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(f"rows {path.name!r} can't be read as parquet: {str(error).splitlines()[0]}") from error


def _checked(name: str) -> str:
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"product name {name!r}; allowed: letters, digits, '_' and '-', without a folder or an ending")
    return name


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """One level of text columns, and no index: a plain range is dropped, any other becomes the first columns."""
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    names = [
        " ".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name) for name in frame
    ]
    return frame.set_axis(names, axis="columns")


def _cell(value: object) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _markdown(table: pd.DataFrame, caption: str) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    lines = ["| " + " | ".join(_cell(value).replace("|", "\\|") for value in row) + " |" for row in rows]
    return "\n".join(lines + (["", caption] if caption else [])) + "\n"


def _latex(table: pd.DataFrame, caption: str) -> str:
    """A tabular for the package booktabs."""

    def cell(value: object) -> str:
        text = _cell(value)
        bold = re.fullmatch(r"\*\*(.*)\*\*", text)
        special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
        special |= {"±": r"$\pm$", "−": "$-$", "<": "$<$", ">": "$>$"}
        text = "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in (bold[1] if bold else text))
        return rf"\textbf{{{text}}}" if bold else text

    def line(values: Iterable[object]) -> str:
        return " & ".join(cell(value) for value in values) + r" \\"

    body = [line(row) for row in table.itertuples(index=False)]
    tabular = [
        rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
        r"\toprule",
        line(table.columns),
        r"\midrule",
        *body,
    ]
    note = [f"% {caption}"] if caption else []
    return "\n".join([*note, *tabular, r"\bottomrule", r"\end{tabular}"]) + "\n"


ROWS_WITHIN = 1e-3
ROWS_SHARE = 0.99
CELLS_WITHIN = 0.005
"""A run reproduces the reference if this share of its rows and all cells of its tables are this close."""
_UNCOMPARED = re.compile(r"(?<![a-z])(commit|seconds|date)(?![a-z])", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def compare_tables(made: Path, reference: Path) -> tuple[bool, str]:
    """Compare two csv tables cell by cell and return (close enough, what to print).

    Every number may differ by .005, or by .005 of itself where it is above 1; a rounded one, in a cell with other
    text (.37 ± .29), also by a unit of its last decimal, for .374 and .376 are .37 and .38. The text is equal.
    Columns named commit, seconds or date are left out.
    """
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in (made, reference)]
    ours, theirs = (table.drop(columns=[c for c in table if _UNCOMPARED.search(c)]) for table in tables)
    if list(ours.columns) != list(theirs.columns) or len(ours) != len(theirs):
        shapes = " and ".join(f"{len(table)} rows of ({', '.join(table.columns)})" for table in (ours, theirs))
        return False, f"other rows or columns, here and in the reference: {shapes}"
    close, largest, where = True, 0.0, ""
    for row, column in np.argwhere((ours != theirs).to_numpy()):
        here, there = ours.iat[row, column], theirs.iat[row, column]
        place = f"{theirs.iat[row, 0]}, {theirs.columns[column]}: {here!r} here, {there!r} in the reference"
        if _NUMBER.sub("#", here) != _NUMBER.sub("#", there):
            return False, f"other text at {place}"
        for a, b in zip(_NUMBER.findall(here), _NUMBER.findall(there)):
            difference = abs(float(a) - float(b))
            decimals = len(b.partition(".")[2])
            rounding = 10.0**-decimals if decimals and b != there else 0.0
            close &= difference <= max(CELLS_WITHIN * max(1.0, abs(float(b))), rounding) + 1e-9
            if difference > largest:
                largest, where = difference, place
    return close, f"largest difference {largest:.2g} at {where}" if largest else "identical"


def compare_rows(
    made: pd.DataFrame, reference: pd.DataFrame, keys: Sequence[str], subset: bool = False
) -> tuple[bool, str]:
    """Compare two frames of rows joined on `keys` and return (99 % of the rows within 1e-3, what to print).

    With `subset` the reference may hold rows that `made` doesn't; else such a row counts as different, as does a
    row that the reference lacks. Differences above 1 are relative. Columns commit, seconds and date are left out.
    """
    keys = [key for key in keys if key in made and key in reference]
    ours, theirs = (frame.astype({key: str for key in keys}) for frame in (made, reference))
    if not keys or ours.duplicated(keys).any() or theirs.duplicated(keys).any():
        return False, f"not comparable: the columns ({', '.join(keys)}) don't tell the rows apart"
    joined = ours.merge(theirs, on=keys, how="left" if subset else "outer", suffixes=("", "|there"), indicator=True)
    worst = pd.DataFrame(index=joined.index)
    for column in [c for c in ours if c in theirs and c not in keys and not _UNCOMPARED.search(c)]:
        worst[column] = _differences(joined[column], joined[f"{column}|there"])
    both = joined["_merge"] == "both"
    largest = worst.max(axis="columns").where(both, np.inf)
    share = float((largest <= ROWS_WITHIN).mean()) if len(joined) else 0.0
    if len(joined) and not largest.any():
        return True, f"identical, {len(joined):,} rows"
    text = f"{share:.1%} of {len(joined):,} rows within {ROWS_WITHIN:g}"
    if not both.all():
        text += f"; {int((~both).sum()):,} rows are on one side only"
    if both.any() and largest[both].any():
        row = largest[both].idxmax()
        place = ", ".join(f"{key} {joined.at[row, key]}" for key in keys)
        text += f"; largest difference {largest[row]:.2g} in {worst.loc[row].idxmax()!r} at {place}"
    return share >= ROWS_SHARE, text


def _differences(here: pd.Series, there: pd.Series) -> np.ndarray:
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
