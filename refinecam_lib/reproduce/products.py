"""Save a notebook's figures, tables and rows, each with a caption that says what it was made from.

>>> report = rc.Report("fig1", profile, "shallowest layer", rows=rows)
>>> report.figure(figure)                                         # fig1.png and fig1.pdf; returns the figure
>>> report.table(table)                                           # table_fig1.csv, .md and .tex; returns the table
>>> report.rows(rows)                                             # rows_fig1.parquet
"""

import os
import re
import textwrap
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
    from pandas.io.formats.style import Styler

PRODUCTS = "REFINECAM_PRODUCTS"
"""The environment variable that names the folder for products. The runner moves them to figures/ when a notebook ends."""


def products_folder(profile: str = STANDARD) -> Path:
    """Return the folder that products are saved to, and make it if it is missing.

    Outside the runner it is `figures/interactive/<profile>`, so a cell run by hand never replaces what the runner made.

    Raises:
        InputError: It cannot be written to.
    """
    return paths.writable(Path(os.environ.get(PRODUCTS) or paths.FIGURES / "interactive" / profile))


class Report:
    """The products of one figure or table of the paper: files named after it, all with the same caption."""

    def __init__(
        self,
        name: str,
        profile: str = STANDARD,
        *details: str,
        rows: pd.DataFrame | None = None,
        n: str = "",
        unit: str = "images",
        every_class: bool = False,
    ):
        """Compose the caption, such as `profile standard, n = 24 images, resnet18, commit abc1234`.

        It also makes networks faster in this process, see `networks.memory` and `networks.layers.fast_pointwise`.

        Args:
            name: Names the files: letters, digits, "_" and "-".
            profile: The notebook's profile.
            details: What else the caption says, such as the convention and the layer.
            rows: All rows behind the product. The caption counts their images, failures and correct classifications,
                and names their data sets and networks.
            n: What was counted, such as "6 scenes", for a product without rows or with a count of its own.
            unit: What the images show.
            every_class: Rows of wrongly classified images are used, too.
        """
        from ..networks.layers import fast_pointwise  # imports torch, which the runner does not need
        from ..networks.memory import keep_memory

        keep_memory()  # a kernel that the runner starts has these, too; this one may be of JupyterLab
        fast_pointwise()
        self.name, self.profile = name, profile
        counts = [] if rows is None else _counts(rows, every_class)
        n = n if n or rows is None else _number_of_images(rows, unit)
        parts = [f"profile {profile}", n and f"n = {n}", *counts, *details, f"commit {commit()}"]
        self.caption = ", ".join(filter(None, parts))

    def figure(self, figure: "Figure", name: str = "") -> "Figure":
        """Write the caption below a figure, save it as `<name>.png` and `.pdf`, and return it.

        Equal figures give equal bytes: the files hold no date and no program's version.
        """
        if not hasattr(figure, "savefig"):  # so that matplotlib need not be imported
            raise InputError(f"Expected a matplotlib Figure, got a {type(figure).__name__}.")
        note = " ".join(figure.get_supxlabel().split()).removesuffix(self.caption)  # a cell may run twice
        lines = textwrap.wrap(f"{note} {self.caption}", int(figure.get_figwidth() * 16), break_on_hyphens=False)
        figure.supxlabel("\n".join(lines), fontsize=8, color="0.35")
        target = self._path(name or self.name)
        png = {"Software": None, "Description": self.caption}
        pdf = {"CreationDate": None, "Creator": None, "Producer": None, "Subject": self.caption}
        figure.savefig(target.with_suffix(".png"), dpi=150, bbox_inches="tight", metadata=png)
        figure.savefig(target.with_suffix(".pdf"), bbox_inches="tight", metadata=pdf)
        return figure

    def table(self, table: pd.DataFrame, name: str = "") -> "pd.DataFrame | Styler":
        """Save a table as `table_<name>.csv`, `.md` and `.tex`, and return it for display.

        Numbers keep their precision in csv and have two decimals elsewhere. A cell's text may be bold (`**.55 ± .30**`);
        csv drops the asterisks. An index other than a plain range becomes the first columns.

        Args:
            table: The table.
            name: The files' name, instead of `table_` and the report's name.

        Returns:
            The table. One with bold cells comes back as the paper prints it, methods x networks, see `layout.printed`.
        """
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"Expected a pandas DataFrame, got a {type(table).__name__}.")
        from ..analysis.layout import printed  # imports torch

        target, flat = self._path(name or f"table_{self.name}"), _flat(table)
        plain = flat.map(lambda cell: cell.replace("**", "") if isinstance(cell, str) else cell)
        plain.to_csv(target.with_suffix(".csv"), index=False, lineterminator="\n")
        target.with_suffix(".md").write_text(f"{_markdown(flat)}\n{self.caption}\n", encoding="utf-8")
        target.with_suffix(".tex").write_text(f"% {self.caption}\n{_latex(flat)}", encoding="utf-8")
        bold = flat.map(lambda cell: isinstance(cell, str) and cell.startswith("**")).any(axis=None)
        return printed(flat.map(_cell), self.caption) if bold else table

    def rows(self, rows: pd.DataFrame) -> None:
        """Save the rows behind the products as `rows_<name>.parquet`.

        Raises:
            InputError: Two rows have the same values in all columns of KEYS.
        """
        keys = [key for key in KEYS if key in rows]
        if not keys or rows.duplicated(keys).any():
            raise InputError(
                f"Expected rows that differ in {', '.join(keys) or ', '.join(KEYS)}, got duplicates. Drop the duplicates."
            )
        rows.to_parquet(self._path(f"rows_{self.name}").with_suffix(".parquet"), index=False, compression="zstd")

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[\w-]+", name):
            raise InputError(
                f"Expected a name of letters, digits, '_' and '-', got {name!r}. Leave out folder and ending."
            )
        return products_folder(self.profile) / name


def _number_of_images(rows: pd.DataFrame, unit: str) -> str:
    """Return the largest number of images of a method, and the methods and networks with fewer."""
    images = rows.groupby(["method", "model"], sort=False)["image"].nunique().unstack()
    each, most = images.max(axis=1), int(images.max().max())
    fewer = [f"{count:.0f} for {', '.join(each.index[each == count])}" for count in sorted(set(each)) if count < most]
    own = images.max()
    fewer += [f"{count:.0f} on {', '.join(own.index[own == count])}" for count in sorted(set(own)) if count < most]
    lacking = images.isna().apply(lambda row: ", ".join(images.columns[row]), axis=1)
    fewer += [f"{', '.join(lacking.index[lacking == names])} not on {names}" for names in sorted(set(lacking)) if names]
    return f"{most:,} {unit}" + (f" ({'; '.join(fewer)})" if fewer else "")


def _counts(rows: pd.DataFrame, every_class: bool) -> list[str]:
    """Return how many rows failed, how many classifications are correct, and the data sets and networks."""
    parts = [f"{(rows['status'] == 'failed').sum():,} of {len(rows):,} rows failed"]
    seen, right = (len(part[["model", "image"]].drop_duplicates()) for part in (rows, rows[rows["correct"] == True]))
    if right < seen and not every_class:
        parts.append(f"{right:,} of {seen:,} classifications correct and kept")
    return [*parts, *dict.fromkeys(rows["dataset"]), *dict.fromkeys(rows["model"])]


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table with one level of text columns and no index."""
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


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "".join("| " + " | ".join(_cell(value).replace("|", "\\|") for value in row) + " |\n" for row in rows)


def _latex(table: pd.DataFrame) -> str:
    """Return a tabular for the package booktabs."""

    def cell(value: object) -> str:  # pandas has escaped the text
        text = _cell(value).replace("±", r"$\pm$").replace("<", "$<$").replace(">", "$>$").replace("−", "$-$")
        return re.sub(r"^\*\*(.*)\*\*$", r"\\textbf{\1}", text)

    styled = table.style.hide(axis="index").format(cell, escape="latex").format_index(cell, escape="latex", axis=1)
    return styled.to_latex(hrules=True, column_format="l" * len(table.columns))
