"""Choose a convention by its agreement with the truth, on validation images.

The rule. Rows: Base maps and RefineCAM's product of the shallowest layer, for all methods with a map per layer, on
correctly classified validation images: the first 24 per network, without ScoreCAM, which would take longer than all
others together (`sweeps.experiments.convention_plan`). For each network and each truth (cosine similarity, average precision), compute
Spearman's correlation of ARCC with the truth over all explanations. Average over truths, then over networks. Among
conventions that score at least 90 % of the rows in every network, the highest average wins. A convention that leaves out
more rows is reported beside its rivals on the rows that it scores, but it cannot win: it would compare methods on
different images.
"""

import pandas as pd

from ..scoring import GRID, scores
from .statistics import correlation

TRUTHS = ("cosine", "average_precision")
SCORED = 0.9
"""The share of rows that a convention must score in every network."""


def agreement(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute how well ARCC agrees with the truth, under each convention of the grid.

    Args:
        rows: Measured rows of shapes, with the columns of the metrics and of the truths.

    Returns:
        One row per convention, network and truth: `spearman` over all rows that the convention scores (higher is
        better), `reference`, the same rows under "undefined r 0, ROAD eq. 5", `n` rows, and `scored`, their share.
    """
    kept = rows[(rows["correct"] == True) & (rows["layer"] == 0) & rows["aggregate"].isin(["none", "product"])]
    arcc = {name: scores(kept, name)["arcc"] for name in GRID}
    first = arcc[next(iter(GRID))]
    records = []
    for name, values in arcc.items():
        for model, own in kept.groupby("model"):
            known = values[own.index].notna()
            index = own.index[known]
            for truth in TRUTHS:
                records.append(
                    {"convention": name, "model": model, "truth": truth}
                    | {"spearman": correlation(values[index], own.loc[index, truth], "spearman")}
                    | {"reference": correlation(first[index], own.loc[index, truth], "spearman")}
                    | {"n": len(index), "scored": known.mean()}
                )
    return pd.DataFrame(records)


def winner(table: pd.DataFrame) -> str:
    """Apply the rule to the result of `agreement` and return the name of the convention."""
    allowed = table.groupby("convention", sort=False)["scored"].min() >= SCORED
    by_network = table.groupby(["convention", "model"], sort=False)["spearman"].mean()
    mean = by_network.groupby("convention", sort=False).mean()
    return str(mean[allowed].idxmax())


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Lay the result of `agreement` out: one row per convention, one column per network, their mean, and `scored`."""
    wide = table.pivot_table(index="convention", columns="model", values="spearman", sort=False)
    least = table.groupby("convention", sort=False)["scored"].min()
    return wide.assign(mean=wide.mean(axis=1), **{"least share of rows scored": least})
