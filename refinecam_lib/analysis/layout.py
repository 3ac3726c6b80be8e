"""Lay a long table of text out as the paper prints it: methods in rows, networks in columns."""

import hashlib
import re
from typing import TYPE_CHECKING

import pandas as pd

from .plots import unique

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

SMALL = '<small style="font-weight: normal; opacity: 0.75">{}</small>'
_PAPER = re.compile(r"(.+?), paper\b.*")
"""The name of a column that `tables.beside_paper` fills with the paper's numbers."""


def printed(table: pd.DataFrame, caption: str = "") -> "Styler":
    """Return a table with the paper's number in small print below ours.

    Args:
        table: Text columns, one row per network and method, as `tables.beside_paper` returns it. Cells in `**` are bold.
            Without the columns model and method only the bold type changes.
        caption: Stands below the table.
    """
    wide = _methods_by_networks(table) if {"model", "method"} <= set(table) else table
    bold = wide.map(lambda cell: "font-weight: bold" if cell.startswith("**") else "")
    styled = wide.map(lambda cell: cell.replace("**", "")).style.apply(lambda frame: bold, axis=None)
    own = hashlib.sha256(wide.to_csv().encode()).hexdigest()[:8]  # two tables of a page must not share their style
    styled = styled.set_uuid(own).set_properties(**{"white-space": "nowrap"})
    gap = " (ours - it)" if any("(ours - it)" in str(name) for name in table) else ""
    note = f"; small print: the paper{gap}" if wide.map(lambda cell: "<small" in cell).any(axis=None) else ""
    selectors = {"caption": "caption-side: bottom; text-align: left", "th.row_heading": "text-align: left"}
    styles: list = [{"selector": name, "props": props} for name, props in selectors.items()]
    return styled.set_table_styles(styles).set_caption(caption + note)


def _methods_by_networks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the text of each cell, with the paper's number on a second line. The columns are (network, column)."""
    paper = {name: match[1] for name in table if (match := _PAPER.fullmatch(str(name)))}
    own = [name for name in table if name not in paper and name not in ("model", "method")]
    parts = {}
    for model in unique(table["model"]):
        part = table[table["model"] == model].set_index("method")
        for name in own:
            cells = part[name]
            for column in (column for column, of in paper.items() if of == name):
                cells = cells + part[column].map(lambda text: f"<br>{SMALL.format(text)}" if text else "")
            parts[model, name] = cells
    wide = pd.concat(parts, axis=1).reindex(unique(table["method"])).fillna("")
    return wide.rename_axis(index=None, columns=[None, None])
