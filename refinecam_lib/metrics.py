"""Measure explanations: raw measurements only. `scoring` turns them into scores under a named convention.

>>> measure(explain(capture, "LayerCAM", REFINED))                # one row per image
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .capture import Capture
from .errors import InputError
from .explanation import Explanation, explain
from .road import FRACTIONS, Keep, keep_ranks, road_probabilities

EXACT_FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""The shares of pixels that exact removal removes. An object may cover a hundredth of the picture."""


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Compute Pearson's r of each pair of maps (B,H,W): (B,) in [-1,1], NaN where a map is constant."""
    a, b = (m.flatten(1).double() for m in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosine of the angle between each pair of maps (B,H,W): (B,) in [0,1], higher is better."""
    a, b = (m.flatten(1).double() for m in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-300)


def complexity(maps: Tensor) -> Tensor:
    """Compute the mean of each map (B,H,W), eq. 2 as a fraction: (B,) in [0,1], lower is better."""
    return maps.double().mean((1, 2))


def average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """Compute the average precision of a map's pixels (B,H,W) against a mask: (B,) in [0,1], NaN for an empty mask.

    Higher is better.
    """
    from sklearn.metrics import average_precision_score

    pairs = zip(masks.flatten(1).bool().cpu().numpy(), maps.flatten(1).cpu().numpy())
    return torch.tensor([average_precision_score(*pair) if pair[0].any() else float("nan") for pair in pairs])


def mass_on_truth(maps: Tensor, masks: Tensor) -> Tensor:
    """Compute the share of each map's sum (B,H,W) on a mask: (B,) in [0,1], NaN for a blank map, higher is better."""
    return (maps.double() * masks).sum((1, 2)) / maps.double().sum((1, 2))


def truth_covered(maps: Tensor, masks: Tensor) -> Tensor:
    """Compute the mean of each map (B,H,W) over the pixels of a mask: (B,) in [0,1], 0 where it misses the mask."""
    return (maps.double() * masks).sum((1, 2)) / masks.double().sum((1, 2))


def agreement(maps: Tensor, masks: Tensor | None) -> dict[str, Tensor]:
    """Compare maps (B,H,W) with ground-truth masks (B,H,W) by the four measures above; {} without masks."""
    if masks is None:
        return {}
    return {
        "cosine": cosine_similarity(maps, masks),
        "average_precision": average_precision(maps, masks).to(maps.device),
        "truth_covered": truth_covered(maps, masks),
        "mass_on_truth": mass_on_truth(maps, masks),
    }


def explain_again(explanation: Explanation, masked: Capture) -> Tensor:
    """Explain the masked image by the same method and variant, for Coherency: maps (B,H,W)."""
    return explain(masked, explanation.method, explanation.variant).maps


def measure(
    explanation: Explanation,
    without: Tensor | None = None,
    fractions: tuple[float, ...] = FRACTIONS,
    keep: Keep = keep_ranks,
    again: Callable[[Explanation, Capture], Tensor] = explain_again,
) -> pd.DataFrame:
    """Measure maps: one row per image.

    Args:
        explanation: The maps. Masks in its capture (`truth`) add the columns about the ground truth.
        without: The inputs without their object (B,3,H,W), where known. It adds the columns of exact removal.
        fractions: The shares of pixels that ROAD removes.
        keep: Which pixels ROAD keeps. The audit passes the published code's choice.
        again: Explains the masked image for Coherency. The audit passes the published code's way.

    Returns:
        A frame with the columns
        probability, probability_masked: of the target, before and after multiplying the image by its map.
        mean_activation, pearson: the mean of the map; its correlation with the map of the masked image.
        morf_20 .. lerf_80: probabilities after removing 20 % .. 80 % of the pixels.
        exact_morf_0.5 .. exact_lerf_40: the same, where removed pixels show what lies behind the object.
        cosine, average_precision, truth_covered, mass_on_truth: agreement with the masks.
        prediction, correct: the predicted class, and whether it is the target.
        status: "ok"; "constant" for a map without contrast, whose pearson is undefined; "not finite" for a map that
        was not measured.

    Raises:
        InputError: Two fractions share a column, or `keep` refuses them.

    Departs from the published code, which multiplies by the deep maps of the unmasked image.
    """
    capture, variant, maps = explanation.capture, explanation.variant, explanation.maps
    percents = [round(100 * k) for k in fractions]
    if len(set(percents)) < len(percents):
        raise InputError(f"fractions {tuple(fractions)}; allowed: shares that differ in whole percents")
    usable, status = usable_maps(maps)
    masked = capture.masked(usable, capture.layers and variant.layers(capture.layers))
    map_of_masked = again(explanation, masked)  # before `masked.probability`, which then needs no pass of its own
    seeds = capture.seeds_of("road")

    def removal(shares: tuple[float, ...], behind: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return road_probabilities(
            capture.classifier, capture.inputs, capture.target, usable, seeds, shares, keep=keep, without=behind
        )

    columns = {
        "probability": capture.probability,
        "probability_masked": masked.probability,
        "mean_activation": complexity(usable),
        "pearson": pearson(map_of_masked, usable),
    }
    for order, values in zip(("morf", "lerf"), removal(fractions)):
        columns |= {f"{order}_{k}": values[:, i] for i, k in enumerate(percents)}
    if without is not None:
        for order, values in zip(("morf", "lerf"), removal(EXACT_FRACTIONS, without)):
            columns |= {f"exact_{order}_{100 * k:g}": values[:, i] for i, k in enumerate(EXACT_FRACTIONS)}
    columns |= agreement(usable, capture.truth)
    return frame_of(columns, capture, status)


def usable_maps(maps: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return maps (B,H,W), 0 instead of one that is not finite, and the status of each, see `measure`."""
    finite = torch.isfinite(maps).flatten(1).all(1)
    usable = torch.where(finite[:, None, None], maps, 0)
    constant = usable.flatten(1).amin(1) == usable.flatten(1).amax(1)
    return usable, np.select([~finite.cpu().numpy(), constant.cpu().numpy()], ["not finite", "constant"], "ok")


def frame_of(columns: dict[str, Tensor], capture: Capture, status: np.ndarray) -> pd.DataFrame:
    """Return one row per image with the columns (B,), NaN where a map is not finite, and with `measure`'s last three."""
    values = {name: np.where(status == "not finite", np.nan, c.double().cpu().numpy()) for name, c in columns.items()}
    prediction = capture.logits.argmax(1)
    correct = (prediction == capture.target).cpu().numpy()
    return pd.DataFrame(values).assign(prediction=prediction.cpu().numpy(), correct=correct, status=status)
