"""The figures: functions from a long frame, or from pictures, to a Figure in one style, colour-blind safe."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..explanation import TRIVIAL

if TYPE_CHECKING:
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
    "one_minus_average_drop": "1 - Average Drop",
    "one_minus_complexity": "1 - Complexity",
}
"""Score -> its title, with the direction in which it is better."""

NAMES = {
    "none": "Base",
    "product": "RefineCAM",
    "geometric_mean": "geometric mean",
    "inverse_exp_mean": "inverse-exp mean",
}
"""Aggregate -> how figures and tables call it."""

REAL, FAKE = "#0173b2", "#de8f05"
"""The first colours of seaborn's palette for the colour-blind."""
HEAT = "inferno"


def _palette(n: int | None = None) -> list[tuple[float, float, float]]:
    import seaborn as sns  # here as elsewhere: it takes a second

    return sns.color_palette("colorblind", n)


def _figure(columns: int, rows: int, width: float, height: float, **kwargs) -> tuple[Figure, np.ndarray]:
    import matplotlib.pyplot as plt
    import seaborn as sns

    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.1):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained", **kwargs
        )
    plt.close(figure)  # shown once, as the value of a notebook cell
    return figure, axes


def _caption(figure: Figure, caption: str) -> Figure:
    lines = textwrap.wrap(caption, int(figure.get_figwidth() * 16))
    figure.supxlabel("\n".join(lines), fontsize=8, color="0.35")
    return figure


def score_bars(table: pd.DataFrame, caption: str) -> Figure:
    """Fig. 1: mean (dot), bootstrap interval (line) and standard deviation (bar) of each score for each method.

    table: columns score, method, mean, std, low, high; the trivial maps are set apart by colour and marker.
    """
    scores = list(dict.fromkeys(table["score"]))
    figure, axes = _figure(len(scores), 1, 2.6, 0.36 * table["method"].nunique() + 1.1, sharey=True)
    for axis, score in zip(axes[0], scores):
        part = table[table["score"] == score].reset_index(drop=True)
        y = np.arange(len(part))[::-1]
        for kind, colour, marker in ((False, REAL, "o"), (True, FAKE, "D")):
            pick = part["method"].isin(TRIVIAL).to_numpy() == kind
            axis.barh(
                y[pick],
                2 * part["std"][pick],
                left=(part["mean"] - part["std"])[pick],
                height=0.55,
                color=colour,
                alpha=0.22,
            )
            axis.hlines(y[pick], part["low"][pick], part["high"][pick], color=colour, lw=2.5)
            axis.plot(
                part["mean"][pick], y[pick], marker, color=colour, ms=6, label="trivial map" if kind else "method"
            )
        left = min(0, part["low"].min(), (part["mean"] - part["std"]).min()) - 0.05
        axis.set(
            title=TITLES[score], yticks=y, yticklabels=part["method"], ylim=(-0.6, len(part) - 0.4), xlim=(left, 1.05)
        )
        axis.grid(axis="y", visible=False)
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return _caption(figure, f"dot: mean, line: 95 % interval, bar: ± standard deviation over images. {caption}")


def image_grid(
    pictures: Sequence[Sequence[tuple[np.ndarray | None, ...]]],
    columns: Sequence[str],
    rows: Sequence[str],
    caption: str,
    notes: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """A grid of cells (picture (H,W,3) in [0,1] or None, map (H,W) or None[, ground truth (H,W)]).

    A cell with neither stays empty. A map alone is drawn from black to light; the ground truth's outline is laid over it. `notes` stand below each cell.
    """
    figure, axes = _figure(len(columns), len(rows), 1.6, 1.65 + 0.2 * (notes is not None))
    figure.set_dpi(70)  # in a notebook, whose file busy pictures would swell; saved files have their own
    for i, row in enumerate(pictures):
        for j, (picture, heat, *truth) in enumerate(row):
            axis = axes[i, j]
            if picture is None and heat is None:
                axis.set_axis_off()
                continue
            if picture is not None:
                axis.imshow(picture, vmin=0, vmax=1)
            if heat is not None:
                axis.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=None if picture is None else 0.55)
            if truth:
                axis.contour(truth[0], levels=[0.5], colors="#56b4e9", linewidths=0.7)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            if notes is not None:
                axis.set_xlabel(notes[i][j], fontsize=8)
        axes[i, 0].set_ylabel(rows[i], fontsize=9)
    for axis, name in zip(axes[0], columns):
        axis.set_title(name, fontsize=9)
    return _caption(figure, caption)


def pair_bars(table: pd.DataFrame, methods: Sequence[str], caption: str, score: str = "arcc") -> Figure:
    """Table 1 or 2 as a figure: for each of `methods`, the mean and its interval under each aggregate, a panel a model.

    table: columns model, method, aggregate, mean, low, high.
    """
    models = list(dict.fromkeys(table["model"]))
    aggregates = [name for name in NAMES if name in set(table["aggregate"])]
    palette = dict(zip(NAMES, _palette(len(NAMES))))
    columns = 2 if len(models) == 4 else min(3, len(models))
    figure, axes = _figure(columns, -(-len(models) // columns), 5.2, 0.42 * len(methods) + 1.3, sharey=True)
    for axis in axes.flat[len(models) :]:
        axis.set_visible(False)
    for axis, model in zip(axes.flat, models):
        for k, aggregate in enumerate(aggregates):
            part = (
                table[(table["model"] == model) & (table["aggregate"] == aggregate)]
                .set_index("method")
                .reindex(methods)
            )
            y = np.arange(len(methods))[::-1] - 0.16 * (k - (len(aggregates) - 1) / 2)
            axis.hlines(y, part["low"], part["high"], color=palette[aggregate], lw=2)
            axis.plot(part["mean"], y, "osD^"[k], color=palette[aggregate], ms=6, label=NAMES[aggregate])
        axis.set(
            title=model,
            xlabel=TITLES[score],
            yticks=np.arange(len(methods))[::-1],
            yticklabels=methods,
            xlim=(-0.02, 1),
        )
        axis.grid(axis="y", visible=False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(aggregates), frameon=False)
    return _caption(figure, f"mean and 95 % bootstrap interval over images. {caption}")


def magnitude_curves(table: pd.DataFrame, caption: str) -> Figure:
    """Fig. 4's finding over many images: each score of M raised to a power (log axis), mean and interval.

    table: columns power, score, mean, low, high.
    """
    figure, axes = _figure(1, 1, 5, 3.4)
    axis = axes[0, 0]
    for colour, marker, (score, part) in zip(_palette(), "osD^v", table.groupby("score", sort=False)):
        axis.plot(part["power"], part["mean"], marker + "-", color=colour, label=TITLES[score])
        axis.fill_between(part["power"], part["low"], part["high"], color=colour, alpha=0.2)
    axis.set_xscale("log", base=2)
    powers = sorted(set(table["power"]))
    bottom = min(0, table["low"].min() - 0.02)
    axis.set(xlabel="power p of the map, M^p", ylabel="score", ylim=(bottom, 1.02), xticks=powers)
    axis.set_xticklabels([f"1/{round(1 / p)}" if p < 1 else f"{p:g}" for p in powers])
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _caption(figure, f"line: mean, band: 95 % interval over images. {caption}")


def layer_curves(table: pd.DataFrame, caption: str) -> Figure:
    """Each score against the layer a map starts from: one panel a score, Base dashed, RefineCAM solid, colour a method.

    table: columns score, method, aggregate, layer, mean, low, high; 0 is the shallowest layer.
    """
    scores, methods = list(dict.fromkeys(table["score"])), list(dict.fromkeys(table["method"]))
    palette = dict(zip(methods, _palette(len(methods))))
    figure, axes = _figure(len(scores), 1, 4.6, 3.4)
    for axis, score in zip(axes[0], scores):
        for (method, aggregate), part in table[table["score"] == score].groupby(["method", "aggregate"], sort=False):
            style = {"none": "--o", "product": "-s"}[aggregate]
            part = part.sort_values("layer")
            axis.plot(
                part["layer"], part["mean"], style, color=palette[method], ms=5, label=f"{method}, {NAMES[aggregate]}"
            )
            axis.fill_between(part["layer"], part["low"], part["high"], color=palette[method], alpha=0.1)
        layers = sorted(set(table["layer"]))
        axis.set(xlabel="layer it starts from, 0 = shallowest", ylabel=TITLES[score], xticks=layers, ylim=(0, 1))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return _caption(figure, f"mean and 95 % bootstrap interval over images. {caption}")


def radar_grid(table: pd.DataFrame, terms: Mapping[str, str], caption: str) -> Figure:
    """The FunnyBirds picture: a panel a method, an axis a term in [0,1] (outside is better), a polygon an aggregate.

    table: columns method, aggregate and those of `terms`, whose values are the names of the axes.
    """
    methods = list(dict.fromkeys(table["method"]))
    columns = min(5, len(methods))
    figure, axes = _figure(columns, -(-len(methods) // columns), 2.15, 2.45, subplot_kw={"projection": "polar"})
    angles = np.linspace(0, 2 * np.pi, len(terms), endpoint=False)
    for axis, method in zip(axes.flat, methods):
        for aggregate, colour, style in (("none", REAL, "o-"), ("product", FAKE, "s--")):
            part = table[(table["method"] == method) & (table["aggregate"] == aggregate)]
            for values in part[list(terms)].to_numpy(float):
                closed = [np.append(each, each[0]) for each in (angles, values)]
                axis.plot(*closed, style, color=colour, lw=1.4, ms=3, label=NAMES[aggregate])
                axis.fill(angles, values, color=colour, alpha=0.12)
        axis.set_theta_offset(np.pi / 2)
        axis.set_theta_direction(-1)
        axis.set(ylim=(0, 1), xticks=angles, yticks=[0.25, 0.5, 0.75, 1])
        axis.set_xticklabels(terms.values(), fontsize=8)
        axis.set_yticklabels(["", ".5", "", "1"], fontsize=6.5, color="0.4")
        axis.tick_params(axis="x", pad=-1)
        axis.set_title(method, fontsize=9.5, pad=10)
    for axis in axes.flat[len(methods) :]:
        axis.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    shown = dict(zip(labels, handles))
    figure.legend(shown.values(), shown, loc="outside upper right", ncols=2, frameon=False)
    return _caption(figure, caption)


VERDICTS = {"holds": "#0173b2", "undecided": "#bbbbbb", "fails": "#de8f05", "no value": "#ffffff"}


def correlation_bars(table: pd.DataFrame, caption: str, truth: str = "the cosine similarity to the truth") -> Figure:
    """Fig. 3: how well each score agrees with the truth, a panel a kind of correlation and level, a colour a group.

    table: columns group, level, kind, score, value, low, high.
    """
    groups, panels = list(dict.fromkeys(table["group"])), table[["level", "kind"]].drop_duplicates()
    levels, kinds = list(dict.fromkeys(panels["level"])), list(dict.fromkeys(panels["kind"]))
    scores = list(dict.fromkeys(table["score"]))
    figure, axes = _figure(len(kinds), len(levels), 2.7, 0.3 * len(scores) + 0.9, sharex=True, sharey=True)
    colours = dict(zip(groups, _palette()))
    places = np.arange(len(scores))[::-1]
    for i, level in enumerate(levels):
        for j, kind in enumerate(kinds):
            axis = axes[i, j]
            for k, group in enumerate(groups):
                part = table[(table["group"] == group) & (table["level"] == level) & (table["kind"] == kind)]
                part = part.set_index("score").reindex(scores)
                y = places - 0.22 * (k - (len(groups) - 1) / 2)
                axis.hlines(y, part["low"], part["high"], color=colours[group], lw=2)
                axis.plot(part["value"], y, "osD^v"[k], color=colours[group], ms=5, label=group)
            axis.axvline(0, color="0.4", lw=0.8)
            axis.set(yticks=places, yticklabels=[TITLES[s].rstrip(" ↑") for s in scores], xlim=(-1.02, 1.02))
            axis.set_title(f"{kind.capitalize()}, per {level}", fontsize=9.5)
            axis.grid(axis="y", visible=False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(groups), frameon=False)
    return _caption(figure, f"dot: correlation with {truth}, line: 95 % interval. {caption}")


def verdict_grid(table: pd.DataFrame, caption: str) -> Figure:
    """The audit: a row a claim, a column a condition, coloured by the verdict, with by how much the claim holds.

    table: columns claim, condition, verdict, value, low, high.
    """
    import seaborn as sns
    from matplotlib.patches import Rectangle

    claims, names = list(dict.fromkeys(table["claim"])), list(dict.fromkeys(table["condition"]))
    figure, axes = _figure(1, 1, 0.86 * len(names) + 3.2, 0.5 * len(claims) + 1.2)
    axis = axes[0, 0]
    for row in table.itertuples():
        x, y = names.index(row.condition), claims.index(row.claim)
        axis.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=VERDICTS[row.verdict], alpha=0.85, lw=0))
        text = row.verdict if row.verdict == "no value" else f"{row.verdict}\n{row.value:+.2g}"
        axis.text(
            x, y, text, ha="center", va="center", fontsize=8.5, color="white" if row.verdict == "holds" else "black"
        )
    axis.set(
        xlim=(-0.5, len(names) - 0.5),
        ylim=(len(claims) - 0.5, -0.5),
        xticks=range(len(names)),
        yticks=range(len(claims)),
    )
    axis.set_xticklabels([textwrap.fill(name.replace("_", " "), 11) for name in names], fontsize=9)
    axis.set_yticklabels([textwrap.fill(claim, 36) for claim in claims], fontsize=9.5)
    axis.xaxis.tick_top()
    axis.grid(False)
    sns.despine(figure, left=True, bottom=True)
    return _caption(figure, f"each number: by how much the claim holds, above 0 it does. {caption}")


def rank_grid(table: pd.DataFrame, caption: str) -> Figure:
    """The stress test: a row a map, a column a score, its mean and rank among the maps; the darker, the better the rank.

    table: columns map, score, mean, rank (1 is best); the maps in the order in which they come.
    """
    import seaborn as sns

    maps, scores = list(dict.fromkeys(table["map"])), list(dict.fromkeys(table["score"]))
    rank = table.pivot(index="map", columns="score", values="rank").loc[maps, scores]
    mean = table.pivot(index="map", columns="score", values="mean").loc[maps, scores]
    text = mean.map("{:z.2f}".format) + rank.map("  #{:.0f}".format)
    figure, axes = _figure(1, 1, 1.35 * len(scores) + 1.6, 0.34 * len(maps) + 1.0)
    sns.heatmap(rank, annot=text, fmt="", cmap="mako", cbar=False, ax=axes[0, 0], annot_kws={"fontsize": 8.5}, lw=1)
    axes[0, 0].set(xlabel="", ylabel="", xticklabels=[textwrap.fill(TITLES[s], 16) for s in scores])
    axes[0, 0].tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    axes[0, 0].tick_params(axis="y", rotation=0)
    return _caption(figure, f"mean over images, and rank among the maps (#1 is best; darker is better). {caption}")


def randomisation_curves(table: pd.DataFrame, caption: str) -> Figure:
    """Similarity to the trained network's map as more of it is random: a panel a method, Base dashed, RefineCAM solid.

    table: columns method, aggregate, random, mean, low, high, in the order of the stages.
    """
    methods, stages = list(dict.fromkeys(table["method"])), list(dict.fromkeys(table["random"]))
    figure, axes = _figure(len(methods), 1, 2.5, 3.4, sharey=True)
    for axis, method in zip(axes[0], methods):
        for aggregate, colour, style in (("none", REAL, "o--"), ("product", FAKE, "s-")):
            part = table[(table["method"] == method) & (table["aggregate"] == aggregate)]
            x = [stages.index(name) for name in part["random"]]
            axis.plot(x, part["mean"], style, color=colour, ms=4, label=NAMES[aggregate])
            axis.fill_between(x, part["low"], part["high"], color=colour, alpha=0.2)
        axis.axhline(0, color="0.4", lw=0.8)
        axis.set(title=method, xticks=range(len(stages)))
        axis.set_xticklabels(stages, rotation=45, ha="right", fontsize=7.5)
    axes[0, 0].set_ylabel("Spearman's ρ with the map\nof the trained network")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return _caption(figure, f"line: mean, band: 95 % interval over images. {caption}")


def rounding_grid(table: pd.DataFrame, caption: str) -> Figure:
    """Which rows rounding decides: a row a method and variant, a column a network, the share of rows that move.

    table: columns method, aggregate, model, share in [0,1], in the order in which they come.
    """
    import seaborn as sns

    shares = table.assign(aggregate=table["aggregate"].map(NAMES)).pivot_table(
        index=["method", "aggregate"], columns="model", values="share", sort=False
    )
    shares.index = [" ".join(name) for name in shares.index]
    figure, axes = _figure(1, 1, 1.25 * shares.shape[1] + 2.6, 0.3 * len(shares) + 1.2)
    sns.heatmap(
        shares, annot=True, fmt=".0%", cmap="rocket_r", vmin=0, vmax=1, cbar=False, ax=axes[0, 0], lw=1,
        annot_kws={"fontsize": 8.5},
    )  # fmt: skip
    axes[0, 0].set(xlabel="", ylabel="", xticklabels=[name.replace("_", "\n") for name in shares])
    axes[0, 0].grid(False)  # cells without a value stay empty
    axes[0, 0].tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, rotation=0)
    axes[0, 0].tick_params(axis="y", rotation=0)
    return _caption(figure, caption)
