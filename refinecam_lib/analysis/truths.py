"""Compare scores with several truths: what the mask says, and what removal without imputation says.

>>> table = agreement(scored(rows))                               # score x truth x level, with intervals
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import rng
from .plots import FEWEST, unique
from .statistics import middle, with_first
from .tables import COMPARED, shallow_base

TRUTHS = ("cosine", "average_precision", "mass_on_truth", "exact_road")
"""Columns that know the truth. The first three compare the map with the mask. `exact_road` asks the network."""
LEVELS = ("pooled", "within methods")
CONTROLS = ("GroundTruth", "CentreGaussian")
"""The maps between which a score must choose: the truth, and a blob that ignores image and network."""


def agreement(rows: pd.DataFrame, draws: int = 200, seed: int = 0, truths: Sequence[str] = TRUTHS) -> pd.DataFrame:
    """Correlate each score of COMPARED with each truth, over the shallowest layer's Base maps, see `correlated`."""
    return correlated(shallow_base(rows), COMPARED, truths, draws, seed)


def correlated(
    rows: pd.DataFrame, compared: Sequence[str], truths: Sequence[str] = TRUTHS, draws: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Correlate each score with each truth (Spearman).

    "pooled" is over all explanations. "within methods" is the mean over methods of the correlation within each, so
    that differences between methods do not count.

    Args:
        rows: Scored rows of correctly classified images, one per network, method and image.
        compared: The scores; arcc is one of them.
        truths: The columns that know the truth.
        draws: Draws of the bootstrap over images.
        seed: Seeds the draws.

    Returns:
        One row per network, truth, level and score: value with its 95 % interval low, high; difference, ARCC's value
        minus it, with low_difference, high_difference; n explanations, and images.
    """
    records, arcc = [], list(compared).index("arcc")
    for model in unique(rows["model"]):
        for truth in truths:
            names = [truth, *compared]
            own = rows[(rows["model"] == model) & np.isfinite(rows[names].to_numpy(float)).all(1)]
            if own.empty:
                continue
            table = _by_image(own, names)
            generator = rng("truths", seed)
            picks = [np.arange(len(table)), *generator.integers(len(table), size=(draws, len(table)))]
            drawn = np.stack([_levels(table[pick]) for pick in picks])
            for i, level in enumerate(LEVELS):
                for k, score in enumerate(compared):
                    value, lead = drawn[:, i, k], drawn[:, i, arcc] - drawn[:, i, k]
                    (low, high), (low_lead, high_lead) = middle(value[1:]), middle(lead[1:])
                    records.append(
                        {"model": model, "truth": truth, "level": level, "score": score}
                        | {"value": value[0], "low": low, "high": high, "difference": lead[0]}
                        | {"low_difference": low_lead, "high_difference": high_lead}
                        | {"n": len(own), "images": own["image"].nunique()}
                    )
    return pd.DataFrame(records)


def _by_image(rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return the columns as an array (images, methods, columns), NaN where a method did not measure an image."""
    wide = rows.pivot(index="image", columns="method", values=names)
    return np.stack([wide[name].to_numpy(float) for name in names], axis=2)


def _levels(table: np.ndarray) -> np.ndarray:
    """Return the correlations (levels, scores) of a table (images, methods, 1 + scores)."""
    within = np.stack([with_first(table[:, k]) for k in range(table.shape[1])])
    counts = np.isfinite(within).sum(axis=0)
    mean = np.where(counts > 0, np.nansum(within, axis=0) / np.maximum(counts, 1), np.nan)
    return np.stack([with_first(table.reshape(-1, table.shape[2])), mean])


def leads(table: pd.DataFrame) -> pd.DataFrame:
    """Compare ARCC with the best other score: one row per network, truth and level.

    Args:
        table: The result of `agreement` or `correlated`.

    Returns:
        The best other score and its value, ARCC's lead with its interval, and shown: 1 if the interval is above 0, -1 if
        it is below, else 0. It is 0 below FEWEST images.
    """
    by = ["model", "truth", "level"]
    others = table[(table["score"] != "arcc") & table["value"].notna()]
    best = others.loc[others.groupby(by, sort=False)["value"].idxmax()].set_index(by)
    sign = (best["low_difference"] > 0).astype(int) - (best["high_difference"] < 0).astype(int)
    best["shown"] = sign.where(best["images"] >= FEWEST, 0)
    return best.drop(columns=["low", "high"])


def resolution(rows: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Show whether ARCC tells a sharp map from a blob, beside the truths that do.

    Args:
        rows: Scored rows: the controls, and Base maps of the shallowest and the deepest layer.
        methods: The methods whose maps are averaged.

    Returns:
        One row per network and map: the mean of ARCC, ROAD and each truth that was measured, and n images.
    """
    deepest = rows["layer"] == rows["layer"].max()
    base = (rows["aggregate"] == "none") & rows["method"].isin(methods)
    names = {name: rows["method"] == name for name in CONTROLS}
    names |= {"deepest Base maps": base & deepest, "shallowest Base maps": base & (rows["layer"] == 0)}
    names |= {"RefineCAM": (rows["aggregate"] == "product") & (rows["layer"] == 0) & rows["method"].isin(methods)}
    columns = [name for name in ("arcc", "road", *TRUTHS) if name in rows]
    parts = []
    for name, picked in names.items():
        own = rows[picked].groupby("model", sort=False)
        parts.append(own[columns].mean().assign(n=own["image"].nunique(), map=name).reset_index())
    return pd.concat(parts).set_index(["model", "map"]).sort_index(level="model", sort_remaining=False)
