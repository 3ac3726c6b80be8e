"""Figures of the scenes: what is drawn, what the certificate shows a network, and what scores are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..datasets.scenes import CONDITIONS, LAYERS, TWINS, Scene, Scenes
from .grids import Cell, image_grid
from .plots import MEAN_AND_INTERVAL, TITLES, legend, new_figure, note, palette_of, title_of, unique
from .scene_tables import EVERY, PARTS, TRUTHS
from .tables import COMPARED

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def certificate_figure(table: pd.DataFrame) -> Figure:
    """Draw `pass_shares`: one panel per part, one line per condition, one marker per network and twin."""
    conditions = [name for name in [*CONDITIONS, EVERY] if name in set(table["condition"])]
    figure, axes = new_figure(len(PARTS), 1, 2.6, 0.36 * len(conditions) + 1.1, sharey=True)
    networks = list(dict.fromkeys(zip(table["model"], table["twin"], strict=True)))
    places, colours = np.arange(len(conditions))[::-1], palette_of()
    for axis, (part, title) in zip(axes[0], PARTS.items(), strict=True):
        for k, (model, twin) in enumerate(networks):
            own = table[(table["part"] == part) & (table["model"] == model) & (table["twin"] == twin)]
            own = own.set_index("condition").reindex(conditions)
            y = places - 0.18 * (k - (len(networks) - 1) / 2)
            axis.hlines(y, own["low"], own["high"], color=colours[k], lw=2)
            axis.plot(own["mean"], y, "osD^"[k % 4], color=colours[k], ms=4, label=f"{model}, {twin}")
        axis.set(xlim=(-0.03, 1.03), yticks=places, yticklabels=conditions)
        axis.set_title(title, fontsize=9)
        axis.grid(axis="y", visible=False)
    legend(figure, axes[0, 0], len(networks))
    return note(figure, "marker: share of correctly classified images that pass, line: 95 % interval.")


def factor_figure(table: pd.DataFrame) -> Figure:
    """Draw `by_factor`: one panel per truth, one row per score, one column per condition. The best is bold.

    Args:
        table: The result of `by_factor`. Pooled correlations are averaged over networks and twins.
    """
    conditions, truths = unique(table["condition"]), unique(table["truth"])
    pooled = table[table["level"] == "pooled"].groupby(["truth", "score", "condition"])["value"].mean()
    scenes = table.drop_duplicates(["condition", "model"]).groupby("condition")["images"].sum()
    figure, axes = new_figure(1, len(truths), 0.62 * len(conditions) + 2.6, 0.34 * len(COMPARED) + 1.0)
    for axis, truth in zip(axes[:, 0], truths, strict=True):
        own = pooled[truth].unstack("condition").reindex(index=list(COMPARED), columns=conditions)
        axis.imshow(own, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        for i, j in np.ndindex(own.shape):
            value = own.iat[i, j]
            best = value == own.iloc[:, j].max()
            colour = "white" if abs(value) > 0.6 else "black"
            text = "" if np.isnan(value) else f"{value:.2f}"
            axis.text(j, i, text, ha="center", va="center", size=7.5, color=colour, weight="bold" if best else "normal")
        axis.set(yticks=range(len(COMPARED)), xticks=range(len(conditions)))
        axis.set_yticklabels([title_of(score) for score in COMPARED], fontsize=8)
        names = [f"{name.replace(' ', chr(10))}\nn = {scenes[name]}" for name in conditions]
        axis.set_xticklabels(names, fontsize=7.5)
        axis.set_title(f"truth: {TRUTHS[truth]}", fontsize=9.5)
        axis.grid(False)
    return note(
        figure,
        "Spearman's correlation over maps, mean over networks and twins. Bold: a column's highest. "
        "n: base scenes, summed over networks.",
    )


def lines(tables: dict[str, pd.DataFrame], middle: dict[str, float], rows: str = "score") -> Figure:
    """Draw means with their intervals: one panel per table, one line per value of a column, one marker per network.

    Args:
        tables: Title -> columns `rows`, model, mean, low, high.
        middle: Title -> a value that means nothing was found, drawn as a line.
        rows: The column that names the lines.
    """
    names = unique(next(iter(tables.values()))[rows])
    figure, axes = new_figure(len(tables), 1, 3.4, 0.34 * len(names) + 1.1, sharey=True)
    places, colours = np.arange(len(names))[::-1], palette_of()
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        models = unique(table["model"])
        for k, model in enumerate(models):
            own = table[table["model"] == model].set_index(rows).reindex(names)
            y = places + 0.12 * ((len(models) - 1) / 2 - k)
            axis.hlines(y, own["low"], own["high"], color=colours[k], lw=2)
            axis.plot(own["mean"], y, "osD^vP"[k % 6], color=colours[k], ms=5, label=model)
        axis.axvline(middle[title], color="0.4", lw=0.8)
        axis.set(yticks=places, yticklabels=[title_of(name) if name in TITLES else name for name in names])
        axis.set_title(title, fontsize=9.5)
        axis.grid(axis="y", visible=False)
    legend(figure, axes[0, 0], 3, "outside upper center")
    return note(figure, MEAN_AND_INTERVAL)


def condition_sheet(number: int = 2, columns: int = 5) -> Figure:
    """Draw a test scene in every condition with the outlines of both twins' truths."""
    scenes = {name: Scenes("test", number + 1, condition=name).scene(number) for name in CONDITIONS}
    cells: list[Cell] = [
        (scene.drawn() / 255, None, (scene.visible("object") | scene.visible("badge")).astype(float))
        for scene in scenes.values()
    ]
    rows = range(0, len(cells), columns)
    grid, names = [cells[k : k + columns] for k in rows], [list(scenes)[k : k + columns] for k in rows]
    figure = image_grid(grid, [""] * columns, [""] * len(grid), notes=names)
    figure.set_dpi(64)
    return figure


def redraw_sheet(scene: Scene, twin: str = "objects", count: int = 6) -> Figure:
    """Draw what the certificate shows a network: the scene, C1's redraws, C2's removal and swaps, C3's redraws."""
    layer, name = TWINS[twin][0], "sheet"
    others = [other for other in LAYERS if other != layer]
    truth = scene.visible(layer).astype(np.float32)

    def kept(layers: Sequence[str], k: int) -> np.ndarray:
        return scene.kept_on(scene.redrawn(layers, name, k), layer)

    swaps = [scene.swapped(layer, name, k) for k in range(count - 1)]
    alone = [other for other in reversed(others) if other == "background" or scene.things[other]][: count - 1]
    rows: list[list[Cell]] = [
        [(scene.drawn() / 255, None, truth), *((kept(others, k) / 255, None) for k in range(count - 1))],
        [(scene.drawn(without=[layer]) / 255, None), *((swap.drawn() / 255, None) for swap in swaps)],
        [*((kept([other], 0) / 255, None) for other in alone), *[(None, None)] * (count - len(alone))],
    ]
    notes = [
        ["the scene and its truth", *["all else drawn again"] * (count - 1)],
        ["truth removed", *(f"swapped: {swap.kind(layer)}" for swap in swaps)],
        [*(f"{other} drawn again" for other in alone), *[""] * (count - len(alone))],
    ]
    figure = image_grid(rows, [""] * count, ["C1", "C2", "C3"], notes=notes)
    figure.set_dpi(64)
    return figure
