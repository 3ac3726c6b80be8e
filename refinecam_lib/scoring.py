"""Turn measurements into scores under a named convention (eqs. 1 to 6).

Scores are never stored, so every figure can be drawn under another convention without measuring again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .errors import InputError, one_of


@dataclass(frozen=True)
class Convention:
    """How scores follow from measurements."""

    average_drop: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """Takes the target's probability on the clean and on the masked image."""
    coherency: Callable[[np.ndarray], np.ndarray]
    """Takes Pearson's r, NaN where it is undefined."""
    road_scale: float
    harmonic: Callable[..., np.ndarray]
    """The harmonic mean of its arguments."""


def drop_of_clean(clean: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Divide the drop in probability by the clean image's probability."""
    return np.maximum(clean - masked, 0) / np.where(clean > 0, clean, 1)


def drop_of_masked(clean: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Divide the drop in probability by the masked image's probability, as eq. 1 is printed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(clean > masked, (clean - masked) / masked, 0.0)


def coherency(undefined: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function (r + 1) / 2 that gives `undefined` where r is not defined."""
    return lambda r: np.where(np.isnan(r), undefined, (r + 1) / 2)


def harmonic(*terms: np.ndarray) -> np.ndarray:
    """Compute the harmonic mean of terms clipped to [0,1]. It is 0 where a term is 0, and NaN where a term is NaN."""
    shares = np.clip(np.stack(terms), 0, 1)
    positive = (shares > 0).all(0)
    mean = np.where(positive, len(terms) / (1 / np.where(shares > 0, shares, 1)).sum(0), 0.0)
    return np.where(np.isnan(shares).any(0), np.nan, mean)


def harmonic_as_printed(*terms: np.ndarray) -> np.ndarray:
    """Compute the harmonic mean without clipping. It is NaN where a term is not positive or not finite."""
    printed = np.stack(terms)
    defined = (np.isfinite(printed) & (printed > 0)).all(0)
    return np.where(defined, len(terms) / (1 / np.where(defined, printed, 1)).sum(0), np.nan)


UNDEFINED = {"0": 0.0, "one half": 0.5, "left out": np.nan}
"""What Coherency is where Pearson's r is undefined, because a map or the map of the masked image has no contrast."""
ROAD_SCALES = {"eq. 5": 1.0, "halved": 0.5}
GRID: dict[str, Convention] = {
    f"undefined r {r}, ROAD {road}": Convention(drop_of_clean, coherency(value), scale, harmonic)
    for r, value in UNDEFINED.items()
    for road, scale in ROAD_SCALES.items()
}
"""Every combination of the two choices that the paper leaves open. `analysis.conventions` compares them."""
RECOMMENDED = "undefined r 0, ROAD eq. 5"
CONVENTIONS: dict[str, Convention] = {
    "recommended": GRID[RECOMMENDED],
    "paper": Convention(drop_of_masked, lambda r: r, 1.0, harmonic_as_printed),
    "published_code": GRID["undefined r one half, ROAD halved"],
}
"""recommended: ours (see docs/departures.md). paper: eqs. 1 to 6 as printed. published_code: the official code's, clipped."""
EVERY = (*GRID, "paper")
"""The conventions under which a verdict is tested. `recommended` and `published_code` are two of the grid."""

TITLES = {
    "average_drop": "Average Drop ↓",
    "complexity": "Complexity ↓",
    "coherency": "Coherency ↑",
    "road": "ROAD ↑",
    "adcc": "ADCC ↑",
    "arcc": "ARCC ↑",
}
"""Score -> its title. The arrow shows which direction is better."""
SCORES = ("average_drop", "complexity", "coherency", "road", "adcc", "arcc")


def scores(rows: pd.DataFrame, convention: str = "recommended") -> pd.DataFrame:
    """Compute scores of measured rows under a named convention.

    Args:
        rows: Rows that `metrics.measure` made.
        convention: A name in CONVENTIONS or GRID.

    Returns:
        A frame with the index of `rows` and the columns average_drop and complexity (lower is better), coherency, road,
        adcc and arcc (higher is better). Rows without a measurement ("not finite") have NaN. Where the map or the map of
        the masked image has no contrast, `recommended` gives Coherency 0, and so ADCC and ARCC 0.

    Raises:
        InputError: The convention is unknown, or a column is missing.
    """
    known = CONVENTIONS | GRID
    rules = known[one_of("convention", convention, known)]
    morf = [name for name in rows if str(name).startswith("morf_")]
    lerf = [name for name in rows if str(name).startswith("lerf_")]
    needed = ["probability", "probability_masked", "mean_activation", "pearson"]
    missing = [name for name in needed if name not in rows] + ([] if morf and lerf else ["morf_*", "lerf_*"])
    if missing:
        raise InputError(f"rows without the columns {', '.join(missing)}; allowed: rows that `measure` made")
    clean, masked, mean, r = (rows[name].to_numpy(float) for name in needed)
    drop = rules.average_drop(clean, masked)
    agreement = rules.coherency(r)
    road = rules.road_scale * (rows[lerf].to_numpy(float) - rows[morf].to_numpy(float)).mean(1)
    table = pd.DataFrame(
        {
            "average_drop": drop,
            "complexity": mean,
            "coherency": agreement,
            "road": road,
            "adcc": rules.harmonic(agreement, 1 - mean, 1 - drop),
            "arcc": rules.harmonic(agreement, 1 - mean, road),
        },
        index=rows.index,
    )
    table.loc[np.isnan(clean)] = np.nan
    return table


def exact_road(rows: pd.DataFrame) -> pd.Series:
    """Compute ROAD with exact removal, in [-1,1] (higher is better): a removed pixel shows what lies behind the object.

    It is the mean of LeRF - MoRF over `road.EXACT_FRACTIONS`, NaN where it was not measured.
    """
    morf, lerf = (rows[[n for n in rows if str(n).startswith(f"exact_{order}_")]] for order in ("morf", "lerf"))
    return pd.Series(lerf.to_numpy(float).sum(1) - morf.to_numpy(float).sum(1), rows.index) / (morf.shape[1] or np.nan)
