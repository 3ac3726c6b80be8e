"""Draw figures that are grids: pictures with maps, dots, and tables coloured by value."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..toolbox.extras import of_extra
from ..toolbox.pictures import HEAT
from .contest import data_of
from .plots import FAKE, FEWEST, NAMES, REAL, TITLES, legend, name_of, new_figure, note, palette_of, title_of, unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cell = tuple[np.ndarray | None, ...]
"""A picture (H,W,3) in [0,1] or None; a map (H,W) in [0,1] or None; optionally a ground-truth mask (H,W)."""

GAMMA = 0.5
"""Maps are drawn as their square root, because most values of a sparse map are small."""
VERDICTS = {"holds": REAL, "undecided": "#bbbbbb", "fails": FAKE, "no value": "#ffffff", "too few images": "#ffffff"}
"""Verdict of the audit -> its colour."""
BIRD_TERMS = {"csdc": "CSDC", "pc": "PC", "dc": "DC", "d": "D", "sd": "SD", "ts": "TS"}
"""Column of the FunnyBirds score -> the name of its axis."""


def image_grid(
    cells: Sequence[Sequence[Cell]],
    columns: Sequence[str],
    rows: Sequence[str],
    caption: str = "",
    notes: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Draw pictures and maps in a grid. A map covers its picture, or stands alone from black to light, see GAMMA.

    Args:
        cells: Rows of cells. A cell without picture and map stays empty. A mask is drawn as an outline.
        columns: The title above each column.
        rows: The title beside each row.
        caption: A text below the figure.
        notes: A text below each cell.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.patheffects import withStroke

    figure, axes = new_figure(len(columns), len(rows), 1.6, 1.65 + 0.2 * (notes is not None))
    figure.set_dpi(70)  # keeps the notebook's file small; saved files have their own resolution
    for i, row in enumerate(cells):
        for j, (picture, heat, *mask) in enumerate(row):
            axis = axes[i, j]
            if picture is None and heat is None:
                axis.set_axis_off()
                continue
            if picture is not None:
                axis.imshow(picture, vmin=0, vmax=1)
            if heat is not None:
                scale = PowerNorm(GAMMA, vmin=0, vmax=1)  # faint maps stay visible
                axis.imshow(heat, cmap=HEAT, norm=scale, alpha=None if picture is None else 0.55)
            if mask:
                outline = axis.contour(mask[0], levels=[0.5], colors="#0173b2", linewidths=1.2)
                outline.set_path_effects([withStroke(linewidth=2.8, foreground="white")])
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            if notes is not None:
                axis.set_xlabel(notes[i][j], fontsize=8)
        axes[i, 0].set_ylabel(rows[i], fontsize=9)
    for axis, name in zip(axes[0], columns):
        axis.set_title(name, fontsize=9)
    return note(figure, caption)


def bird_dots(table: pd.DataFrame) -> Figure:
    """Draw the terms of the FunnyBirds score: one panel per term, one line per method, one dot per aggregate.

    Args:
        table: Columns method, aggregate and those of BIRD_TERMS, in [0,1]; higher is better.
    """
    methods = unique(table["method"])
    figure, axes = new_figure(len(BIRD_TERMS), 1, 1.75, 0.34 * len(methods) + 1.1, sharey=True)
    places = np.arange(len(methods))[::-1]
    for axis, (term, name) in zip(axes[0], BIRD_TERMS.items()):
        for aggregate, colour, marker, shift in (("none", REAL, "o", 0.15), ("product", FAKE, "s", -0.15)):
            part = table[table["aggregate"] == aggregate].set_index("method").reindex(methods)
            axis.plot(part[term], places + shift, marker, color=colour, ms=5, label=NAMES[aggregate])
        axis.set(title=name, yticks=places, yticklabels=methods, xlim=(-0.08, 1.08), xticks=[0, 0.5, 1])
    legend(figure, axes[0, 0], 2)
    return note(figure, "CSDC, PC, DC, D: Completeness; SD: Correctness; TS: Contrastivity. Mean over the networks.")


def combination_dots(table: pd.DataFrame, blank: pd.Series) -> Figure:
    """Draw each combination's average precision: one panel per network, one line per combination, one dot per method.

    Args:
        table: Columns model, method, aggregate and mean, in the order of the lines.
        blank: The share of blank maps of each combination.
    """
    models, names = unique(table["model"]), unique(table["aggregate"])
    figure, axes = new_figure(len(models), 1, 2.1, 0.3 * len(names) + 1.1, sharey=True)
    places, colours = np.arange(len(names))[::-1], palette_of()
    for axis, model in zip(axes[0], models):
        wide = table[table["model"] == model].pivot(index="aggregate", columns="method", values="mean").loc[names]
        for k, method in enumerate(unique(table["method"])):
            axis.plot(wide[method], places, "osD^v"[k % 5], color=colours[k % 10], ms=4, alpha=0.7, label=method)
        axis.plot(wide.mean(axis=1), places, "|", color="0.1", ms=14, mew=2, label="mean of the methods")
        axis.set(title=model, xlim=(-0.02, 1), yticks=places)
        axis.set_yticklabels([f"{name_of(n)} ({blank[n]:.0%})" for n in names])
    legend(figure, axes[0, 0], 6, "outside upper center")
    text = "Average precision, mean over images; higher is better. In parentheses: share of blank maps, mean over networks. "
    return note(figure, text + "All combinations of a method cost the same.")


def finalist_dots(table: pd.DataFrame) -> Figure:
    """Draw measures of combinations: one panel per measure, one line per combination, one dot per network.

    Args:
        table: The result of `contest.averages`, in the order of panels and lines.
    """
    measures, models, names = (unique(table[column]) for column in ("score", "model", "aggregate"))
    columns = 3
    figure, axes = new_figure(columns, -(-len(measures) // columns), 3.2, 0.36 * len(names) + 0.9, sharey=True)
    places, colours = np.arange(len(names))[::-1], palette_of()
    for axis in axes.flat[len(measures) :]:
        axis.set_axis_off()
    for axis, measure in zip(axes.flat, measures):
        wide = table[table["score"] == measure].set_index(["model", "aggregate"])
        for k, model in enumerate(models):
            own = wide.loc[model].reindex(names)
            shifted, many = places + 0.13 * ((len(models) - 1) / 2 - k), own["n"] >= FEWEST
            axis.hlines(shifted[many], own["low"][many], own["high"][many], color=colours[k % 10], lw=1)
            axis.plot(own["mean"], shifted, "osD^v"[k % 5], color=colours[k % 10], ms=4, label=model)
        axis.set_title(textwrap.fill(TITLES[measure], 40), fontsize=9)
        axis.set(yticks=places, yticklabels=[name_of(name) for name in names])
    legend(figure, axes[0, 0], 5, "outside upper center")
    return note(figure, "Mean over methods, then images; bar: 95 % interval over images.")


def data_dots(table: pd.DataFrame, measures: Sequence[str]) -> Figure:
    """Draw measures of combinations on several data sets: one panel per measure, one small dot per network.

    Args:
        table: The result of `contest.averages` for `contest.joined` rows, in the order of lines.
        measures: The panels' columns.
    """
    data, names = data_of(table["model"]), unique(table["aggregate"])
    figure, axes = new_figure(len(measures), 1, 2.7, 0.62 * len(names) + 1.1, sharey=True)
    places, colours, kinds = np.arange(len(names))[::-1], palette_of(), unique(data)
    for axis, measure in zip(axes[0], measures):
        for k, kind in enumerate(kinds):
            own = table[(table["score"] == measure) & (data == kind)].pivot(
                index="aggregate", columns="model", values="mean"
            )
            own, y = own.reindex(names), places + 0.17 * ((len(kinds) - 1) / 2 - k)
            for model in own:
                axis.plot(own[model], y, ".", color=colours[k], ms=3, alpha=0.6)
            axis.plot(own.mean(axis=1), y, "osD^v"[k % 5], color=colours[k], ms=6, label=kind)
        axis.set_title(textwrap.fill(TITLES[measure], 26), fontsize=9)
        axis.set(yticks=places, yticklabels=[name_of(name) for name in names])
    legend(figure, axes[0, 0], len(kinds), "outside upper center")
    return note(figure, "Marker: mean over networks; dot: one network. Mean over methods, then images.")


def verdict_grid(table: pd.DataFrame) -> Figure:
    """Draw the audit: one row per claim, one column per condition, coloured by the verdict.

    Args:
        table: Columns claim, condition, note, verdict, value.
    """
    with of_extra("notebooks"):
        import seaborn as sns
    from matplotlib.patches import Rectangle

    claims, names = unique(table["claim"]), unique(table["condition"])
    figure, axes = new_figure(1, 1, 0.86 * len(names) + 3.2, 0.5 * len(claims) + 1.2)
    axis = axes[0, 0]
    for row in table.itertuples():
        x, y = names.index(row.condition), claims.index(row.claim)
        axis.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=VERDICTS[row.verdict], alpha=0.85, lw=0))
        text = row.verdict if row.verdict == "no value" else f"{row.verdict}\n{row.value:+.2g}"
        colour = "white" if row.verdict == "holds" else "black"
        axis.text(x, y, text, ha="center", va="center", fontsize=8.5, color=colour)
    axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(claims) - 0.5, -0.5))
    axis.set(xticks=range(len(names)), yticks=range(len(claims)))
    axis.set_xticklabels([textwrap.fill(name.replace("_", " "), 12) for name in names], fontsize=9)
    axis.set_yticklabels([textwrap.fill(claim, 36) for claim in claims], fontsize=9.5)
    axis.xaxis.tick_top()
    axis.grid(False)
    sns.despine(figure, left=True, bottom=True)
    notes = dict(zip(table["condition"], table["note"]))
    described = [f"{name}: {text}" for name, text in notes.items() if text]
    return note(figure, "; ".join(["number: by how much the claim holds", *described]) + ".")


def _heatmap(values: pd.DataFrame, width: float, height: float, **options) -> tuple[Figure, Axes]:
    with of_extra("notebooks"):
        import seaborn as sns

    figure, axes = new_figure(1, 1, width, height)
    axis = axes[0, 0]
    sns.heatmap(values, cbar=False, ax=axis, annot_kws={"fontsize": 8.5}, lw=1, **options)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.tick_params(axis="y", rotation=0)
    return figure, axis


def rank_grid(table: pd.DataFrame) -> Figure:
    """Draw the stress test: one row per map, one column per score, with mean and rank. Better ranks are darker.

    Args:
        table: Columns map, score, mean, rank (1 is best), in the order to show.
    """
    maps, scores = unique(table["map"]), unique(table["score"])
    rank, mean = (table.pivot(index="map", columns="score", values=v).loc[maps, scores] for v in ("rank", "mean"))
    text = mean.map("{:z.2f}".format) + rank.map("  #{:.0f}".format)
    width, height = 1.35 * len(scores) + 1.6, 0.34 * len(maps) + 1.0
    figure, axis = _heatmap(rank, width, height, annot=text, fmt="", cmap="mako")
    axis.set(xticklabels=[textwrap.fill(TITLES[score], 16) for score in scores])
    return note(figure, "mean over images, and rank among the maps (#1 is best; darker is better).")


def truth_grid(table: pd.DataFrame) -> Figure:
    """Draw the agreement of scores with several truths: one panel per network, one row per score.

    Args:
        table: Columns model, truth, level, score, value, in the order to show.
    """
    with of_extra("notebooks"):
        import seaborn as sns

    models, levels = unique(table["model"]), unique(table["level"])
    height = 0.34 * table["score"].nunique() + 1.5
    if len(models) > 1:
        figure, axes = new_figure(len(models), len(levels), 3.3, height, sharey=True)
    else:  # both levels side by side
        figure, axes = new_figure(len(levels), 1, 4.4, height, sharey=True)
        axes = axes.T
    for i, level in enumerate(levels):
        for axis, model in zip(axes[i], models):
            part = table[(table["model"] == model) & (table["level"] == level)]
            wide = part.pivot(index="score", columns="truth", values="value")
            wide = wide.loc[unique(part["score"])].reindex(columns=unique(table["truth"]))
            sns.heatmap(wide, annot=True, fmt=".2f", cbar=False, ax=axis, cmap="vlag", vmin=-1, vmax=1, lw=1)
            axis.set(xlabel="", ylabel="", yticklabels=[title_of(name) for name in wide.index])
            axis.set_title(f"{model}, {level}", fontsize=9.5)
            axis.set_xticklabels([textwrap.fill(name.replace("_", " "), 10) for name in wide], rotation=0, fontsize=8)
            axis.tick_params(axis="y", rotation=0)
            axis.grid(False)  # cells without a value stay empty
    return note(figure, "Spearman's correlation of a score with a truth. Higher is better.")


def rounding_grid(table: pd.DataFrame) -> Figure:
    """Draw the share of rows that rounding decides: one row per method and variant, one column per network.

    Args:
        table: Columns method, aggregate, model, share in [0,1], in the order to show.
    """
    shares = table.assign(aggregate=table["aggregate"].map(NAMES))
    shares = shares.pivot_table(index=["method", "aggregate"], columns="model", values="share", sort=False)
    shares.index = [" ".join(name) for name in shares.index]
    width, height = 1.25 * shares.shape[1] + 2.6, 0.3 * len(shares) + 1.2
    figure, axis = _heatmap(shares, width, height, annot=True, fmt=".0%", cmap="rocket_r", vmin=0, vmax=1)
    axis.set(xticklabels=[name.replace("_", "\n") for name in shares])
    axis.grid(False)  # cells without a value stay empty
    axis.tick_params(axis="x", rotation=0)
    return note(figure, "share of rows that rounding moves.")
