"""Check what a network's layers are worth to CAM methods: blank maps, signs before the ReLU, agreement with the truth."""

from collections.abc import Sequence

import pandas as pd
from torch import nn

from ..capture import Capture
from ..datasets.sample import Samples, batch_of
from ..metrics import average_precision
from ..networks.loading import normalise
from ..networks.zoo import ModelSpec
from ..refinement import to_map


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
