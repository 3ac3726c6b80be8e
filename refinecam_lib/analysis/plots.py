"""Draw figures of scores from long frames, in one style whose colours colour-blind readers can tell apart.

Each function returns a matplotlib Figure with a note that says what its marks mean. `rc.Report` adds the caption.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import scoring
from ..explanation import TRIVIAL
from ..toolbox.extras import of_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = scoring.TITLES | {
    "cosine": "cosine similarity to the truth ↑",
    "average_precision": "average precision ↑",
    "mass_on_truth": "share of the map's mass on the truth ↑",
    "exact_road": "exact removal ↑",
    "arcc_0": "ARCC, undefined r is 0 ↑",
    "arcc_one_half": "ARCC, undefined r is one half ↑",
    "arcc_left_out": "ARCC, undefined r left out ↑",
    "arcc_0_halved": "ARCC, undefined r is 0, ROAD halved ↑",
    "arcc_one_half_halved": "ARCC, undefined r is one half, ROAD halved ↑",
    "arcc_left_out_halved": "ARCC, undefined r left out, ROAD halved ↑",
    "blank": "share of blank maps ↓",
    "insertion": "insertion ↑",
    "one_minus_deletion": "1 - deletion",
    "srg": "SRG ↑",
    "mu_fidelity": "mu-Fidelity ↑",
    "minus_infidelity": "- infidelity",
    "network_sensitivity": "sensitivity to the network ↑",
    "one_minus_average_drop": "1 - Average Drop",
    "one_minus_complexity": "1 - Complexity",
}
"""Score -> its title. The arrow shows which direction is better."""
NAMES = {
    "none": "Base",
    "product": "RefineCAM",
    "geometric_mean": "geometric mean",
    "inverse_exp_mean": "inverse-exp mean",
    "mean_x_deepest": "mean x deepest",
    "soft_and": "soft AND",
    "deepest": "deepest layer",
}
"""Aggregate -> its name in figures and tables."""
REAL, FAKE = "#0173b2", "#de8f05"
"""The first two colours of seaborn's colour-blind palette."""
FEWEST = 30
"""With fewer images there is no interval and no verdict."""
MEAN_AND_BAND = "line: mean, band: 95 % interval over images."
MEAN_AND_INTERVAL = "mean and 95 % bootstrap interval over images."


def name_of(aggregate: str) -> str:
    """Return an aggregate's name in figures: "soft AND" for "soft_and"."""
    return NAMES.get(aggregate, aggregate.replace("_", " "))


def title_of(score: str) -> str:
    """Return a score's title without its arrow."""
    return TITLES[score].rstrip(" ↑")


def new_figure(columns: int, rows: int, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    """Return a figure in the project's style and its axes (rows, columns). `width`, `height`: inches per panel."""
    import matplotlib.pyplot as plt

    with of_extra("notebooks"):
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


def palette_of(n: int | None = None) -> list[tuple[float, float, float]]:
    """Return the first n colours of seaborn's palette for colour-blind readers; None returns all ten."""
    with of_extra("notebooks"):
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
    """Draw Fig. 1: one row of panels per network, one panel per score, one line per method.

    Trivial maps have another colour and marker.

    Args:
        table: Columns model, score, method, mean, std, low, high, n.
    """
    scores, models = unique(table["score"]), unique(table["model"])
    height = 0.3 * table["method"].nunique() + 0.6
    figure, axes = new_figure(len(scores), len(models), 2.6, height, sharey="row", sharex="col")
    for i, model in enumerate(models):
        for axis, score in zip(axes[i], scores):
            part = table[(table["model"] == model) & (table["score"] == score)].reset_index(drop=True)
            places, left = np.arange(len(part))[::-1], part["mean"] - part["std"]
            trivial = part["method"].isin(TRIVIAL).to_numpy()
            for pick, colour, marker, label in ((~trivial, REAL, "o", "method"), (trivial, FAKE, "D", "trivial map")):
                y, own = places[pick], part[pick]
                axis.barh(y, 2 * own["std"], left=left[pick], height=0.55, color=colour, alpha=0.22)
                many = (own["n"] >= FEWEST).to_numpy()
                axis.hlines(y[many], own["low"][many], own["high"][many], color=colour, lw=2.5)
                axis.plot(own["mean"], y, marker, color=colour, ms=6, label=label)
            axis.set(yticks=places, yticklabels=part["method"], ylim=(-0.6, len(part) - 0.4))
            axis.set_xlim(min(0, part["low"].min(), left.min(), axis.get_xlim()[0]) - 0.05, 1.05)
            axis.grid(axis="y", visible=False)
            if i == 0:
                axis.set_title(TITLES[score])
        axes[i, 0].set_ylabel(model, fontsize=10)
    legend(figure, axes[0, -1], 2)
    words = f"dot: mean, line: 95 % interval (from {FEWEST} images), bar: ± standard deviation over images."
    return note(figure, words)


def pair_bars(
    table: pd.DataFrame, methods: Sequence[str], score: str = "arcc", paper: pd.DataFrame | None = None
) -> Figure:
    """Draw Table 1 or 2: one panel per network, one line per method and aggregate.

    Args:
        table: Columns model, method, aggregate, mean, low, high, n.
        methods: The lines, from top to bottom.
        score: Names the axis.
        paper: The paper's numbers, see `tables.paper_table`. Those of the panel's network are drawn as hollow markers.
    """
    models = unique(table["model"])
    aggregates = [name for name in NAMES if name in set(table["aggregate"])]
    palette = dict(zip(NAMES, palette_of(len(NAMES))))
    columns = 2 if len(models) == 4 else min(3, len(models))
    figure, axes = new_figure(columns, -(-len(models) // columns), 5.2, 0.42 * len(methods) + 1.3, sharey=True)
    for axis in axes.flat[len(models) :]:
        axis.set_visible(False)
    places = np.arange(len(methods))[::-1]
    for axis, model in zip(axes.flat, models):
        for k, aggregate in enumerate(aggregates):
            part = table[(table["model"] == model) & (table["aggregate"] == aggregate)]
            part, y = part.set_index("method").reindex(methods), places - 0.16 * (k - (len(aggregates) - 1) / 2)
            many = part["n"] >= FEWEST
            axis.hlines(y[many], part["low"][many], part["high"][many], color=palette[aggregate], lw=2)
            axis.plot(part["mean"], y, "osD^"[k], color=palette[aggregate], ms=6, label=NAMES[aggregate])
            if paper is not None and len(own := paper[(paper["model"] == model) & (paper["aggregate"] == aggregate)]):
                printed = own.set_index("method")["mean"].reindex(methods)
                axis.plot(
                    printed,
                    y,
                    "osD^"[k],
                    color=palette[aggregate],
                    ms=6,
                    mfc="none",
                    label=f"{NAMES[aggregate]}, paper",
                )
        axis.set(title=model, xlabel=TITLES[score], yticks=places, yticklabels=methods, xlim=(-0.02, 1))
        axis.grid(axis="y", visible=False)
    legend(figure, axes.flat[len(models) - 1], len(aggregates))
    return note(figure, MEAN_AND_INTERVAL + f" No interval below {FEWEST} images.")


def correlation_dots(table: pd.DataFrame) -> Figure:
    """Draw Fig. 3a as the paper does, in one panel: one line per score, one dot per network.

    Args:
        table: Columns model, score, value, low, high, n.
    """
    models, scores = unique(table["model"]), unique(table["score"])
    figure, axes = new_figure(1, 1, 5.6, 0.42 * len(scores) + 1.2)
    axis, places = axes[0, 0], np.arange(len(scores))[::-1]
    wide = table.pivot(index="score", columns="model", values="value").loc[scores]
    axis.barh(places, wide.mean(axis=1), xerr=wide.std(axis=1, ddof=0), height=0.6, color="0.85", ecolor="0.6")
    for k, (model, colour) in enumerate(zip(models, palette_of())):
        part, y = (
            table[table["model"] == model].set_index("score").loc[scores],
            places - 0.2 * (k - len(models) / 2 + 0.5),
        )
        axis.hlines(y, part["low"], part["high"], color=colour, lw=2)
        axis.plot(part["value"], y, "osD^v"[k % 5], color=colour, ms=6, label=model)
    axis.axvline(0, color="0.4", lw=0.8)
    left = min(-0.05, table["low"].min() - 0.05)
    axis.set(yticks=places, yticklabels=[title_of(score) for score in scores], xlim=(left, 1.02))
    axis.set_xlabel("Spearman's correlation with the truth")
    axis.grid(axis="y", visible=False)
    legend(figure, axis, len(models))
    return note(
        figure,
        "dot and line: a network and its 95 % interval over images; bar: mean ± standard deviation over networks.",
    )


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
        for k, (group, colour) in enumerate(zip(groups, palette_of())):
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
    for colour, marker, (score, part) in zip(palette_of(), "osD^v", table.groupby("score", sort=False)):
        _curve(axis, part["power"], part, marker + "-", colour, TITLES[score])
    axis.set_xscale("log", base=2)
    bottom = min(0, table["low"].min() - 0.02)
    axis.set(xlabel="power p of the map, M^p", ylabel="score", ylim=(bottom, 1.02), xticks=powers)
    axis.set_xticklabels([f"1/{round(1 / p)}" if p < 1 else f"{p:g}" for p in powers])
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return note(figure, MEAN_AND_BAND)


def layer_curves(table: pd.DataFrame) -> Figure:
    """Draw scores against the layer that a map starts from: one row of panels per score, one panel per method.

    Args:
        table: Columns score, method, aggregate, layer, mean, low, high. Layer 0 is the shallowest.
    """
    scores, methods, layers = unique(table["score"]), unique(table["method"]), sorted(set(table["layer"]))
    figure, axes = new_figure(len(methods), len(scores), 2.3, 2.3, sharex=True, sharey=True)
    for i, score in enumerate(scores):
        for axis, method in zip(axes[i], methods):
            for aggregate, colour, style in (("none", REAL, "o--"), ("product", FAKE, "s-")):
                part = table[(table["score"] == score) & (table["method"] == method)]
                part = part[part["aggregate"] == aggregate].sort_values("layer")
                _curve(axis, part["layer"], part, style, colour, NAMES[aggregate], ms=5)
            axis.set(xticks=layers, ylim=(-0.02, 1))
            if i == 0:
                axis.set_title(method, fontsize=10)
        axes[i, 0].set_ylabel(textwrap.fill(TITLES[score], 20))
    for axis in axes[-1]:
        axis.set_xlabel("first layer")
    legend(figure, axes[0, 0], 2)
    return note(figure, "first layer: the one that the map starts from, 0 is the shallowest. " + MEAN_AND_BAND)


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
