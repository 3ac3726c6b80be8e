"""Check what a network's layers are worth to CAM methods: blank maps, signs before the ReLU, agreement with the truth."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import nn

from ..capture import Capture
from ..datasets.sample import Samples, batch_of
from ..metrics import average_precision
from ..networks.loading import normalise
from ..networks.zoo import ModelSpec
from ..refinement import to_map
from .plots import legend, new_figure, note
from .statistics import summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "average_precision": "average precision ↑",
    "blank": "share of blank maps ↓",
    "positive": "share of positive places",
}


def layer_check(
    model: nn.Module, spec: ModelSpec, layers: Sequence[str], samples: Samples, count: int, batch: int = 8
) -> pd.DataFrame:
    """Compute maps before the ReLU at several layers, from one forward and one backward pass per batch.

    Args:
        model: A classifier.
        spec: Its preprocessing.
        layers: Dotted names of modules, in the order in which they run.
        samples: Images with masks.
        count: How many of them.
        batch: Images per pass.

    Returns:
        One row per image, layer and method (GradCAM, HiResCAM): `positive`, the share of places with a positive value;
        `blank`, whether the ReLU leaves nothing; `average_precision` of the map against the mask, higher is better.
    """
    records = []
    for start in range(0, count, batch):
        few = [samples[i] for i in range(start, min(start + batch, count))]
        images, target, masks = batch_of(few)
        capture = Capture(model, normalise(images, spec), target, layers, [sample.id for sample in few])
        assert masks is not None
        for layer, a, g in zip(layers, capture.activations, capture.gradients):
            signed = {"GradCAM": (g.mean((2, 3), keepdim=True) * a).sum(1), "HiResCAM": (g * a).sum(1)}
            for method, values in signed.items():
                precision = average_precision(to_map(values, capture.size), masks)
                for i, sample in enumerate(few):
                    records.append(
                        {"image": sample.id, "layer": layer, "method": method}
                        | {"positive": float((values[i] > 0).float().mean()), "blank": bool(values[i].amax() <= 0)}
                        | {"average_precision": float(precision[i])}
                    )
    return pd.DataFrame(records)


def layer_check_figure(rows: pd.DataFrame) -> "Figure":
    """Draw the result of `layer_check`: one panel per quantity, one line per layer, one marker per method."""
    layers, methods = list(dict.fromkeys(rows["layer"])), list(dict.fromkeys(rows["method"]))
    figure, axes = new_figure(len(PANELS), 1, 3.0, 0.4 * len(layers) + 1.0, sharey=True)
    for axis, (column, title) in zip(axes[0], PANELS.items()):
        table = summary(rows.assign(**{column: rows[column].astype(float)}), column, ["layer", "method"])
        for k, (method, marker) in enumerate(zip(methods, "oD")):
            own = table.xs(method, level="method").reindex(layers)
            y = np.arange(len(layers))[::-1] + 0.12 * (1 - 2 * k)
            axis.hlines(y, own["low"], own["high"], color=f"C{k}", lw=2)
            axis.plot(own["mean"], y, marker, color=f"C{k}", label=method)
        axis.set(title=title, xlim=(-0.05, 1.05), yticks=np.arange(len(layers))[::-1], yticklabels=layers)
        axis.grid(axis="y", visible=False)
    legend(figure, axes[0, -1], len(methods))
    return note(figure, "marker: mean, line: 95 % interval over images; layers from the image to the classifier.")
