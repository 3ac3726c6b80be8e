"""Choose and compare ways to combine layers, from rows of `experiments.combination_plan`.

The rule of choice, fixed before its rows were measured: of each family (soft AND with a floor e, power mean with an
exponent p) take the candidate with the highest average precision on validation images of the shapes. Average precision
is averaged over the correctly classified images of each method, then over methods, then over networks. A blank map counts
with its own average precision, which is the share of the mask. No other score and no test image has a say.
"""

import pandas as pd

FAMILIES = ("soft_and", "power_mean")
"""The combinations with a parameter."""


def candidates(rows: pd.DataFrame, measure: str = "average_precision") -> pd.Series:
    """Return the mean of a measure by aggregate: over images, then methods, then networks."""
    known = rows[rows["correct"]]
    means = known.groupby(["aggregate", "model", "method"])[measure].mean()
    return means.groupby(["aggregate", "model"]).mean().groupby("aggregate").mean()


def chosen(rows: pd.DataFrame) -> dict[str, str]:
    """Return the chosen candidate of each family by the rule above: {"soft_and": "soft_and_0.1", ...}."""
    means = candidates(rows)
    return {family: str(means[means.index.str.startswith(f"{family}_")].idxmax()) for family in FAMILIES}
