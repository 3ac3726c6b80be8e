"""A notebook's products: saving its figures and tables, and their captions.

>>> save(figure, "fig1", profile, caption=caption(profile, n=24))
>>> save(table, "table1", profile, caption=caption(profile, n=24))
>>> save_rows(results, "rows_fig1", profile)
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from .. import paths
from ..errors import InputError
from ..paths import commit
from ..sweeps.version import KEYS
from .parameters import STANDARD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRODUCTS = "REFINECAM_PRODUCTS"
"""The environment variable by which the runner has a notebook save to a folder of its own until it has succeeded."""


def products_folder(profile: str = STANDARD) -> Path:
    """Return the folder that `save` writes to, and make it if it is missing.

    The runner gives it. Outside the runner it is `figures/interactive/<profile>`, so that a cell run by hand never
    replaces what `make reproduce` made.
    """
    folder = Path(os.environ.get(PRODUCTS) or paths.FIGURES / "interactive" / profile)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def caption(
    profile: str, n: int, what: str = "images", rows: pd.DataFrame | None = None, kept: pd.DataFrame | None = None
) -> str:
    """Return the line that stands under every figure and table, `profile standard, n = 24 images, commit abc1234`.

    rows: those of the sweep; the line then says how many of them failed, `0 of 1,200 rows failed`. kept: those of
    images that are classified correctly, where the others are left out; it then says how many there are, if not all.
    """
    words = f"profile {profile}, n = {n:,} {what}"
    if rows is not None:
        words += f", {(rows['status'] == 'failed').sum():,} of {len(rows):,} rows failed"
    if rows is not None and kept is not None:
        seen, right = (len(part[["model", "image"]].drop_duplicates()) for part in (rows, kept))
        if right < seen:
            words += f", {right:,} of {seen:,} classifications correct and kept"
    return f"{words}, commit {commit()}"


def save(product: "Figure | pd.DataFrame", name: str, profile: str = STANDARD, caption: str = "") -> None:
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


def save_rows(frame: pd.DataFrame, name: str, profile: str = STANDARD) -> None:
    """Save the rows behind a figure or table as `<name>.parquet`, for the reader; the name begins with `rows`.

    Raises InputError for another name, and where two rows have the same values in the columns of KEYS.
    """
    if not name.startswith("rows"):
        raise InputError(f"rows named {name!r}; allowed: a name that begins with 'rows', such as 'rows_{name}'")
    keys = [key for key in KEYS if key in frame]
    if not keys or frame.duplicated(keys).any():
        raise InputError(
            f"rows {name!r}: their columns ({', '.join(keys)}) don't tell them apart; allowed: one row a key"
        )
    frame.to_parquet(products_folder(profile) / f"{_checked(name)}.parquet", index=False, compression="zstd")


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
    return f"{value:z.2f}" if isinstance(value, float) else str(value)


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
