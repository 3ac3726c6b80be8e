"""What is measured of a map, and the scores computed from it under a named convention.

Raw measurements are stored, scores never: every figure can be redrawn under another convention without recomputing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .cam import Capture, Maps
from .checks import InputError, one_of
from .explain import Variant, combined, variant_maps
from .road import FRACTIONS, keep_percentiles, keep_ranks, road_probabilities

DEFECTS = ("percentiles", "deep_maps_unmasked", "one_seed")
"""What the published code does wrong and a measurement can be told to do as well, for the audit: ROAD cut at
percentiles (D4), RefineCAM's Coherency with the deep maps of the unmasked image, one seed for both passes (D13)."""


EXACT_FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""The shares of pixels that exact removal removes: an object may be a hundredth of the picture."""


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's r of each pair of maps, (B,H,W) x (B,H,W) -> (B,) in [-1,1], NaN where a map is constant."""
    a, b = (m.flatten(1).double() for m in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between maps, |a·b| / |a||b|, (B,H,W) x (B,H,W) -> (B,) in [0,1]; higher is better."""
    a, b = (m.flatten(1).double() for m in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-300)


def complexity(maps: Tensor) -> Tensor:
    """Eq. 2 as a fraction: the mean activation, L1 / HW, (B,H,W) -> (B,) in [0,1]; lower is better."""
    return maps.double().mean((1, 2))


def average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """Area under precision over recall of a map's pixels against the mask, (B,H,W) x (B,H,W) -> (B,) in [0,1]; higher is better."""
    from sklearn.metrics import average_precision_score

    pairs = zip(masks.flatten(1).bool().cpu().numpy(), maps.flatten(1).cpu().numpy())
    return torch.tensor([average_precision_score(mask, values) for mask, values in pairs])


def mass_on_truth(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of a map's sum that lies on the mask, (B,H,W) x (B,H,W) -> (B,) in [0,1], NaN for a map of zeros; higher is better."""
    return (maps.double() * masks).sum((1, 2)) / maps.double().sum((1, 2))


def truth_covered(maps: Tensor, masks: Tensor) -> Tensor:
    """The mean of a map over the pixels of the mask, (B,H,W) x (B,H,W) -> (B,) in [0,1]: 0 where it leaves the truth out."""
    return (maps.double() * masks).sum((1, 2)) / masks.double().sum((1, 2))


def measure(
    capture: Capture,
    method: str | Callable[[Capture], Maps],
    variant: Variant,
    maps: Tensor,
    masks: Tensor | None = None,
    masked_seeds: list[int] | None = None,
    road_seeds: list[int] | None = None,
    fractions: tuple[float, ...] = FRACTIONS,
    defects: tuple[str, ...] = (),
    without: Tensor | None = None,
) -> pd.DataFrame:
    """The raw measurements of maps (B,H,W) that `method` and `variant` gave on `capture`: one row an image.

    masks: ground truth (B,H,W), for the cosine similarity, average precision and share of it covered. masked_seeds: B
    seeds for explaining the masked image; None takes the capture's, which methods that draw random numbers must not
    share (defect D13). road_seeds: B seeds of ROAD's noise and of the order of ties; None takes the capture's.
    fractions: the shares of pixels that ROAD removes. without: the inputs without their object, for exact removal.
    Coherency explains the masked image with every layer the variant uses, and its forward gives Average Drop as well.
    Departs from the paper's published code, which multiplies by the deep maps of the unmasked image; `defects`, names
    in DEFECTS, ask for what it does.
    Columns: probability, probability_masked, mean_activation, pearson, morf_20 .. lerf_80 (probabilities after removing
    20 % .. 80 % of the pixels), prediction, correct, where masks are known cosine, average_precision, truth_covered and
    mass_on_truth, where `without` is known exact_morf_0.5 .. exact_lerf_40 (as ROAD, but `EXACT_FRACTIONS` of the
    pixels are replaced by what lies behind the object), and status: "ok", "constant" (no contrast; its pearson is
    undefined) or "not finite" (no measurement). Raises
    InputError for an unknown defect, and for fractions as `keep_masks` or that share a column.
    """
    finite = torch.isfinite(maps).flatten(1).all(1)
    usable = torch.where(finite[:, None, None], maps, 0)
    constant = usable.flatten(1).amin(1) == usable.flatten(1).amax(1)
    for name in defects:
        one_of("defect", name, DEFECTS)
    percents = [round(100 * k) for k in fractions]
    if len(set(percents)) < len(percents):
        raise InputError(f"fractions {tuple(fractions)}; allowed: shares that differ in whole percents")
    masked = capture.masked(
        usable, layers=variant.layers(capture.layers), seeds=None if "one_seed" in defects else masked_seeds
    )
    if "deep_maps_unmasked" in defects and variant.aggregate != "none":
        again = combined(variant_maps(masked, method, Variant(variant.layer)), capture, method, variant)
    else:
        again = variant_maps(masked, method, variant)
    keep = keep_percentiles if "percentiles" in defects else keep_ranks
    seeds = capture.seeds if road_seeds is None else road_seeds
    morf, lerf = road_probabilities(capture.model, capture.inputs, capture.target, usable, seeds, fractions, keep=keep)
    columns = {
        "probability": capture.probability,
        "probability_masked": masked.probability,
        "mean_activation": complexity(usable),
        "pearson": pearson(again, usable),
        **{f"morf_{k}": morf[:, i] for i, k in enumerate(percents)},
        **{f"lerf_{k}": lerf[:, i] for i, k in enumerate(percents)},
    }
    if without is not None:
        exact = road_probabilities(
            capture.model, capture.inputs, capture.target, usable, seeds, EXACT_FRACTIONS, keep=keep, without=without
        )
        for order, values in zip(("morf", "lerf"), exact):
            columns |= {f"exact_{order}_{100 * k:g}": values[:, i] for i, k in enumerate(EXACT_FRACTIONS)}
    if masks is not None:
        columns["cosine"] = cosine_similarity(usable, masks)
        columns["average_precision"] = average_precision(usable, masks).to(usable.device)
        columns["truth_covered"] = truth_covered(usable, masks)
        columns["mass_on_truth"] = mass_on_truth(usable, masks)
    measured = {name: torch.where(finite, column, torch.nan).double().cpu().numpy() for name, column in columns.items()}
    prediction = capture.logits.argmax(1)
    frame = pd.DataFrame(measured)
    frame["prediction"] = prediction.cpu().numpy()
    frame["correct"] = (prediction == capture.target).cpu().numpy()
    frame["status"] = np.select([~finite.cpu().numpy(), constant.cpu().numpy()], ["not finite", "constant"], "ok")
    return frame


def _share(x: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(x, nan=0.0), 0, 1)


def _harmonic(*terms: np.ndarray) -> np.ndarray:
    """The harmonic mean of terms in [0,1], 0 where a term is 0."""
    shares = np.stack([_share(term) for term in terms])
    positive = (shares > 0).all(0)
    return np.where(positive, len(terms) / (1 / np.where(shares > 0, shares, 1)).sum(0), 0.0)


def _harmonic_as_printed(*terms: np.ndarray) -> np.ndarray:
    """The harmonic mean without clipping; NaN, "undefined", where a term is not positive or not finite."""
    printed = np.stack(terms)
    defined = (np.isfinite(printed) & (printed > 0)).all(0)
    return np.where(defined, len(terms) / (1 / np.where(defined, printed, 1)).sum(0), np.nan)


@dataclass(frozen=True)
class Convention:
    """How scores follow from measurements: Average Drop, Coherency, the scale of ROAD, and the harmonic mean."""

    average_drop: Callable[[np.ndarray, np.ndarray], np.ndarray]
    coherency: Callable[[np.ndarray], np.ndarray]
    road_scale: float
    harmonic: Callable[..., np.ndarray]


def _drop_of_clean(clean: np.ndarray, masked: np.ndarray) -> np.ndarray:
    return np.maximum(clean - masked, 0) / np.where(clean > 0, clean, 1)


def _drop_of_masked(clean: np.ndarray, masked: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(clean > masked, (clean - masked) / masked, 0.0)


def _half(r: np.ndarray) -> np.ndarray:
    """(r+1)/2; 0 where r is undefined, for the map or that of the masked image has no contrast."""
    return (np.nan_to_num(r, nan=-1.0) + 1) / 2


def _half_of_zero(r: np.ndarray) -> np.ndarray:
    """(r+1)/2 with an undefined r taken as 0, as in the published code."""
    return (np.nan_to_num(r, nan=0.0) + 1) / 2


CONVENTIONS: dict[str, Convention] = {
    "recommended": Convention(_drop_of_clean, _half, 1.0, _harmonic),
    "paper": Convention(_drop_of_masked, lambda r: r, 1.0, _harmonic_as_printed),
    "published_code": Convention(_drop_of_clean, _half_of_zero, 0.5, _harmonic),
}
"""recommended: ours (docs in README). paper: eqs. 1-6 as printed. published_code: the official code's, composed by us."""

SCORES = ("average_drop", "complexity", "coherency", "road", "adcc", "arcc")


def scores(rows: pd.DataFrame, convention: str = "recommended") -> pd.DataFrame:
    """The scores of measured rows: average_drop and complexity (lower is better), coherency, road, adcc, arcc (higher).

    Equations 1-6 under a named convention. Rows without a measurement ("not finite") have NaN scores; where a map or
    that of the masked image has no contrast, Coherency is 0 and so are ADCC and ARCC under `recommended`.
    Raises InputError for an unknown convention or for rows without a needed column.
    """
    rules = CONVENTIONS[one_of("convention", convention, CONVENTIONS)]
    morf = [name for name in rows if str(name).startswith("morf_")]
    lerf = [name for name in rows if str(name).startswith("lerf_")]
    needed = ["probability", "probability_masked", "mean_activation", "pearson"]
    missing = [name for name in needed if name not in rows] + ([] if morf and lerf else ["morf_*", "lerf_*"])
    if missing:
        raise InputError(f"rows without the columns {', '.join(missing)}; allowed: rows that `measure` made")
    clean, masked, mean, r = (rows[name].to_numpy(float) for name in needed)
    drop = rules.average_drop(clean, masked)
    chn = rules.coherency(r)
    road = rules.road_scale * (rows[lerf].to_numpy(float) - rows[morf].to_numpy(float)).mean(1)
    table = pd.DataFrame(
        {
            "average_drop": drop,
            "complexity": mean,
            "coherency": chn,
            "road": road,
            "adcc": rules.harmonic(chn, 1 - mean, 1 - drop),
            "arcc": rules.harmonic(chn, 1 - mean, road),
        },
        index=rows.index,
    )
    table.loc[np.isnan(clean)] = np.nan
    return table
