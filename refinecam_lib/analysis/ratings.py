"""Compare this paper's scores with those of other papers: which of them agree with the truth?

>>> table = rated(rows, rivals)                                   # all scores, higher is better for each
>>> pairs(table, MASKS).head()                                    # the best two scores together

The rule for the two scores that a user should report, fixed before their rows were measured: on validation images of
one network, the pair whose mean rank over all explanations has the highest Spearman correlation with the truth, averaged
over MASKS. Its agreement is reported on test images, and on another network.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from ..sweeps.version import KEYS
from .plots import NAMES, unique
from .statistics import correlation
from .tables import COMPARED, scored

RIVALS = {
    "insertion": "insertion",
    "one_minus_deletion": "deletion",
    "srg": "srg",
    "mu_fidelity": "mu_fidelity",
    "minus_infidelity": "infidelity",
    "network_sensitivity": "network_sensitivity",
}
"""Score, of which higher is better -> the measured column that it is made from."""
ALL = (*COMPARED, *RIVALS)
MASKS = ("cosine", "average_precision", "mass_on_truth")
"""The truths that compare a map with the mask."""


def rated(rows: pd.DataFrame, rivals: pd.DataFrame, convention: str = "recommended") -> pd.DataFrame:
    """Join both kinds of rows, keep correctly classified images, and turn every score so that higher is better.

    Args:
        rows: Rows of the measurement "scores".
        rivals: Rows of the measurement "faithfulness" of the same explanations.
        convention: The convention of ARCC and its terms.

    Returns:
        The rows with the columns ALL. `method` names the method and which of its maps it is.
    """
    table = scored(rows, convention).merge(rivals[[*KEYS, *RIVALS.values()]], on=KEYS, validate="one_to_one")
    table["one_minus_deletion"], table["minus_infidelity"] = 1 - table["deletion"], -table["infidelity"]
    deepest = table["layer"] == table.groupby("model")["layer"].transform("max")
    kinds = table["aggregate"].map(lambda name: NAMES.get(name, name.replace("_", " "))).mask(deepest, NAMES["deepest"])
    return table.assign(method=table["method"] + ", " + kinds)


def pairs(table: pd.DataFrame, truths: Sequence[str], compared: Sequence[str] = ALL) -> pd.Series:
    """Compute how well each score, and each pair of scores by its mean rank, agrees with the truth.

    Args:
        table: The result of `rated`. Explanations without one of the scores or truths are left out.
        truths: The columns that know the truth.
        compared: The scores.

    Returns:
        Spearman's correlation over all explanations of a network, averaged over truths, then over networks. It is
        indexed by (first score, second score), the highest first. A single score stands twice.
    """
    table = table[np.isfinite(table[[*compared, *truths]].to_numpy(float)).all(1)]
    found: dict[tuple[str, str], list[float]] = {}
    for model in unique(table["model"]):
        own = table[table["model"] == model]
        ranks = own[list(compared)].rank()
        for pair in [*((name, name) for name in compared), *combinations(compared, 2)]:
            mean = ranks[list(pair)].mean(axis=1)
            values = [correlation(mean, own[truth], "spearman") for truth in truths]
            found.setdefault(pair, []).append(float(np.mean(values)))
    means = pd.Series({pair: float(np.mean(values)) for pair, values in found.items()}, name="spearman")
    return means.rename_axis(["first", "second"]).sort_values(ascending=False)


def best_pair(table: pd.Series) -> tuple[str, str]:
    """Return the best two scores of the result of `pairs`."""
    first, second = table[table.index.get_level_values(0) != table.index.get_level_values(1)].index[0]
    return first, second


def checked(table: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """Compare a chosen pair with the best pair, the best score and ARCC on these rows: one row per network.

    Args:
        table: The result of `rated`.
        pair: The result of `best_pair` on other rows.

    Returns:
        The correlations of `pairs`, and the names of the best pair and of the best score.
    """
    records = {}
    for model in unique(table["model"]):
        found = pairs(table[table["model"] == model], MASKS)
        alone = found[found.index.get_level_values(0) == found.index.get_level_values(1)]
        best = best_pair(found)
        records[model] = {"chosen pair": found[pair], "best pair": found[best], "its scores": " and ".join(best)}
        records[model] |= {"best score": alone.iloc[0], "its name": alone.index[0][0], "ARCC": found["arcc", "arcc"]}
    return pd.DataFrame.from_dict(records, orient="index").rename_axis("model")
