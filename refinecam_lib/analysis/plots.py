"""Draw figures of scores from long frames, in one style whose colours colour-blind readers can tell apart.

Each function returns a matplotlib Figure with a note that says what its marks mean. `rc.Report` adds the caption.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..explanation import TRIVIAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "average_drop": "Average Drop ↓",
    "complexity": "Complexity ↓",
    "coherency": "Coherency ↑",
    "road": "ROAD ↑",
    "adcc": "ADCC ↑",
    "arcc": "ARCC ↑",
    "cosine": "cosine similarity to the truth ↑",
    "average_precision": "average precision ↑",
    "exact_removal": "exact removal ↑",
    "deletion": "deletion, 1 - mean p ↑",
    "insertion": "insertion, mean p ↑",
    "one_minus_average_drop": "1 - Average Drop",
    "one_minus_complexity": "1 - Complexity",
}
"""Score -> its title. The arrow shows which direction is better."""
NAMES = {
    "none": "Base",
    "product": "RefineCAM",
    "geometric_mean": "geometric mean",
    "inverse_exp_mean": "inverse-exp mean",
}
"""Aggregate -> its name in figures and tables."""
REAL, FAKE = "#0173b2", "#de8f05"
"""The first two colours of seaborn's colour-blind palette."""
MEAN_AND_BAND = "line: mean, band: 95 % interval over images."
MEAN_AND_INTERVAL = "mean and 95 % bootstrap interval over images."


def title_of(score: str) -> str:
    """Return a score's title without its arrow."""
    return TITLES[score].rstrip(" ↑")


def new_figure(columns: int, rows: int, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    """Return a figure in the project's style and its axes (rows, columns). `width`, `height`: inches per panel."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.1):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained", **options
        )
    plt.close(figure)  # a notebook cell shows it once, as the cell's value
    return figure, axes


def note(figure: Figure, text: str) -> Figure:
    """Write a text below a figure, wrapped to the figure's width. It replaces the text that was there."""
    lines = textwrap.wrap(text, int(figure.get_figwidth() * 16), break_on_hyphens=False)
    figure.supxlabel("\n".join(lines), fontsize=8, color="0.35")
    return figure


def _palette(n: int | None = None) -> list[tuple[float, float, float]]:
    import seaborn as sns

    return sns.color_palette("colorblind", n)


def unique(column: pd.Series) -> list:
    """Return the values of a column in the order in which they first appear."""
    return list(dict.fromkeys(column))


def legend(figure: Figure, axis: Axes, columns: int = 1, place: Any = "outside upper right") -> None:
    """Draw one legend for the whole figure, with the labels of one panel."""
    handles, labels = axis.get_legend_handles_labels()
    named = dict(zip(labels, handles))
    figure.legend(list(named.values()), list(named), loc=place, ncols=columns, frameon=False)


def _curve(axis: Axes, x: Sequence | pd.Series, part: pd.DataFrame, style: str, colour: object, label: str, **options):
    """Draw the mean as a line and the interval as a band."""
    alpha = options.pop("alpha", 0.2)
    axis.plot(x, part["mean"], style, color=colour, label=label, **options)
    axis.fill_between(x, part["low"], part["high"], color=colour, alpha=alpha)


def score_bars(table: pd.DataFrame) -> Figure:
    """Draw Fig. 1: one panel per score, one line per method. Trivial maps have another colour and marker.

    Args:
        table: Columns score, method, mean, std, low, high.
    """
    scores = unique(table["score"])
    figure, axes = new_figure(len(scores), 1, 2.6, 0.36 * table["method"].nunique() + 1.1, sharey=True)
    for axis, score in zip(axes[0], scores):
        part = table[table["score"] == score].reset_index(drop=True)
        places, left = np.arange(len(part))[::-1], part["mean"] - part["std"]
        trivial = part["method"].isin(TRIVIAL).to_numpy()
        for pick, colour, marker, label in ((~trivial, REAL, "o", "method"), (trivial, FAKE, "D", "trivial map")):
            y, own = places[pick], part[pick]
            axis.barh(y, 2 * own["std"], left=left[pick], height=0.55, color=colour, alpha=0.22)
            axis.hlines(y, own["low"], own["high"], color=colour, lw=2.5)
            axis.plot(own["mean"], y, marker, color=colour, ms=6, label=label)
        axis.set(title=TITLES[score], yticks=places, yticklabels=part["method"], ylim=(-0.6, len(part) - 0.4))
        axis.set(xlim=(min(0, part["low"].min(), left.min()) - 0.05, 1.05))
        axis.grid(axis="y", visible=False)
    legend(figure, axes[0, -1], 2)
    return note(figure, "dot: mean, line: 95 % interval, bar: ± standard deviation over images.")


def pair_bars(table: pd.DataFrame, methods: Sequence[str], score: str = "arcc") -> Figure:
    """Draw Table 1 or 2: one panel per network, one line per method and aggregate.

    Args:
        table: Columns model, method, aggregate, mean, low, high.
        methods: The lines, from top to bottom.
        score: Names the axis.
    """
    models = unique(table["model"])
    aggregates = [name for name in NAMES if name in set(table["aggregate"])]
    palette = dict(zip(NAMES, _palette(len(NAMES))))
    columns = 2 if len(models) == 4 else min(3, len(models))
    figure, axes = new_figure(columns, -(-len(models) // columns), 5.2, 0.42 * len(methods) + 1.3, sharey=True)
    for axis in axes.flat[len(models) :]:
        axis.set_visible(False)
    places = np.arange(len(methods))[::-1]
    for axis, model in zip(axes.flat, models):
        for k, aggregate in enumerate(aggregates):
            part = table[(table["model"] == model) & (table["aggregate"] == aggregate)]
            part, y = part.set_index("method").reindex(methods), places - 0.16 * (k - (len(aggregates) - 1) / 2)
            axis.hlines(y, part["low"], part["high"], color=palette[aggregate], lw=2)
            axis.plot(part["mean"], y, "osD^"[k], color=palette[aggregate], ms=6, label=NAMES[aggregate])
        axis.set(title=model, xlabel=TITLES[score], yticks=places, yticklabels=methods, xlim=(-0.02, 1))
        axis.grid(axis="y", visible=False)
    legend(figure, axes[0, 0], len(aggregates))
    return note(figure, MEAN_AND_INTERVAL)


def correlation_bars(table: pd.DataFrame, truth: str = "the cosine similarity to the truth") -> Figure:
    """Draw Fig. 3: one panel per kind and level of correlation, one line per score, one colour per group.

    Args:
        table: Columns group, level, kind, score, value, low, high.
        truth: What the scores are correlated with, for the note.
    """
    groups, levels, kinds, scores = (unique(table[name]) for name in ("group", "level", "kind", "score"))
    figure, axes = new_figure(len(kinds), len(levels), 2.7, 0.3 * len(scores) + 0.9, sharex=True, sharey=True)
    places = np.arange(len(scores))[::-1]
    for (i, level), (j, kind) in ((a, b) for a in enumerate(levels) for b in enumerate(kinds)):
        axis = axes[i, j]
        for k, (group, colour) in enumerate(zip(groups, _palette())):
            part = table[(table["group"] == group) & (table["level"] == level) & (table["kind"] == kind)]
            part, y = part.set_index("score").reindex(scores), places - 0.22 * (k - (len(groups) - 1) / 2)
            axis.hlines(y, part["low"], part["high"], color=colour, lw=2)
            axis.plot(part["value"], y, "osD^v"[k], color=colour, ms=5, label=group)
        axis.axvline(0, color="0.4", lw=0.8)
        axis.set(yticks=places, yticklabels=[title_of(score) for score in scores], xlim=(-1.02, 1.02))
        axis.set_title(f"{kind.capitalize()}, per {level}", fontsize=9.5)
        axis.grid(axis="y", visible=False)
    legend(figure, axes[0, 0], len(groups))
    return note(figure, f"dot: correlation with {truth}, line: 95 % interval.")


def magnitude_curves(table: pd.DataFrame) -> Figure:
    """Draw Fig. 4 over many images: each score against the power that the map is raised to, on a log axis.

    Args:
        table: Columns power, score, mean, low, high.
    """
    figure, axes = new_figure(1, 1, 5, 3.4)
    axis, powers = axes[0, 0], sorted(set(table["power"]))
    for colour, marker, (score, part) in zip(_palette(), "osD^v", table.groupby("score", sort=False)):
        _curve(axis, part["power"], part, marker + "-", colour, TITLES[score])
    axis.set_xscale("log", base=2)
    bottom = min(0, table["low"].min() - 0.02)
    axis.set(xlabel="power p of the map, M^p", ylabel="score", ylim=(bottom, 1.02), xticks=powers)
    axis.set_xticklabels([f"1/{round(1 / p)}" if p < 1 else f"{p:g}" for p in powers])
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return note(figure, MEAN_AND_BAND)


def layer_curves(table: pd.DataFrame) -> Figure:
    """Draw scores against the layer that a map starts from: one panel per score, one colour per method.

    Args:
        table: Columns score, method, aggregate, layer, mean, low, high. Layer 0 is the shallowest.
    """
    scores, methods, layers = unique(table["score"]), unique(table["method"]), sorted(set(table["layer"]))
    palette = dict(zip(methods, _palette(len(methods))))
    figure, axes = new_figure(len(scores), 1, 4.6, 3.4)
    for axis, score in zip(axes[0], scores):
        for (method, aggregate), part in table[table["score"] == score].groupby(["method", "aggregate"], sort=False):
            part, style = part.sort_values("layer"), {"none": "--o", "product": "-s"}[aggregate]
            label = f"{method}, {NAMES[aggregate]}"
            _curve(axis, part["layer"], part, style, palette[method], label, ms=5, alpha=0.1)
        axis.set(xlabel="layer it starts from, 0 = shallowest", ylabel=TITLES[score], xticks=layers, ylim=(0, 1))
    legend(figure, axes[0, 0], place="outside right center")
    return note(figure, MEAN_AND_INTERVAL)


def randomisation_curves(table: pd.DataFrame) -> Figure:
    """Draw how similar maps stay while more of the network is random: one panel per method.

    Args:
        table: Columns method, aggregate, random, mean, low, high, in the order of the stages.
    """
    methods, stages = unique(table["method"]), unique(table["random"])
    figure, axes = new_figure(len(methods), 1, 2.5, 3.4, sharey=True)
    for axis, method in zip(axes[0], methods):
        for aggregate, colour, style in (("none", REAL, "o--"), ("product", FAKE, "s-")):
            part = table[(table["method"] == method) & (table["aggregate"] == aggregate)]
            _curve(axis, [stages.index(name) for name in part["random"]], part, style, colour, NAMES[aggregate], ms=4)
        axis.axhline(0, color="0.4", lw=0.8)
        axis.set(title=method, xticks=range(len(stages)))
        axis.set_xticklabels(stages, rotation=45, ha="right", fontsize=7.5)
    axes[0, 0].set_ylabel("Spearman's ρ with the map\nof the trained network")
    legend(figure, axes[0, 0], 2)
    return note(figure, MEAN_AND_BAND)
