"""Compare scores with several truths: what the mask says, and what removal without imputation says.

>>> table = agreement(scored(rows))                               # score x truth x level, with intervals
"""

import numpy as np
import pandas as pd

from ..errors import rng
from .statistics import middle, spearman_with_first
from .tables import COMPARED, shallow_base, unique

TRUTHS = ("cosine", "average_precision", "mass_on_truth", "exact_road")
"""Columns that know the truth. The first three compare the map with the mask. `exact_road` asks the network."""
LEVELS = ("pooled", "within methods")
CONTROLS = ("GroundTruth", "CentreGaussian")
"""The maps between which a score must choose: the truth, and a blob that ignores image and network."""


def agreement(rows: pd.DataFrame, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """Correlate each score with each truth (Spearman), over the shallowest layer's Base maps.

    "pooled" is over all explanations. "within methods" is the mean over methods of the correlation within each, so
    that differences between methods do not count.

    Args:
        rows: Scored rows of correctly classified images.
        draws: Draws of the bootstrap over images.
        seed: Seeds the draws.

    Returns:
        One row per network, truth, level and score: value, its 95 % interval low, high, and n explanations.
    """
    records = []
    base = shallow_base(rows)
    for model in unique(base["model"]):
        for truth in TRUTHS:
            names = [truth, *COMPARED]
            own = base[(base["model"] == model) & np.isfinite(base[names].to_numpy(float)).all(1)]
            if own.empty:
                continue
            table = _by_image(own, names)
            generator = rng("truths", seed)
            picks = [np.arange(len(table)), *generator.integers(len(table), size=(draws, len(table)))]
            drawn = np.stack([_levels(table[pick]) for pick in picks])
            for i, level in enumerate(LEVELS):
                for k, score in enumerate(COMPARED):
                    low, high = middle(drawn[1:, i, k])
                    records.append(
                        {"model": model, "truth": truth, "level": level, "score": score}
                        | {"value": drawn[0, i, k], "low": low, "high": high, "n": len(own)}
                    )
    return pd.DataFrame(records)


def _by_image(rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return the columns as an array (images, methods, columns), NaN where a method did not measure an image."""
    wide = rows.pivot(index="image", columns="method", values=names)
    return np.stack([wide[name].to_numpy(float) for name in names], axis=2)


def _levels(table: np.ndarray) -> np.ndarray:
    """Return the correlations (levels, scores) of a table (images, methods, 1 + scores)."""
    within = np.stack([spearman_with_first(table[:, k]) for k in range(table.shape[1])])
    with np.errstate(invalid="ignore"):
        return np.stack([spearman_with_first(table.reshape(-1, table.shape[2])), np.nanmean(within, axis=0)])


def resolution(rows: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Show whether ARCC tells a sharp map from a blob, beside the truths that do.

    Args:
        rows: Scored rows: the controls, and Base maps of the shallowest and the deepest layer.
        methods: The methods whose maps are averaged.

    Returns:
        One row per network and map: the mean of ARCC, ROAD and each truth, and n images.
    """
    deepest = rows["layer"] == rows["layer"].max()
    base = (rows["aggregate"] == "none") & rows["method"].isin(methods)
    names = {name: rows["method"] == name for name in CONTROLS}
    names |= {"deepest Base maps": base & deepest, "shallowest Base maps": base & (rows["layer"] == 0)}
    names |= {"RefineCAM": (rows["aggregate"] == "product") & (rows["layer"] == 0) & rows["method"].isin(methods)}
    columns = ["arcc", "road", *TRUTHS]
    parts = []
    for name, picked in names.items():
        own = rows[picked].groupby("model", sort=False)
        parts.append(own[columns].mean().assign(n=own["image"].nunique(), map=name).reset_index())
    return pd.concat(parts).set_index(["model", "map"]).sort_index(level="model", sort_remaining=False)
