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

from ..errors import rng
from ..sweeps.version import KEYS
from .plots import NAMES, name_of, unique
from .statistics import middle, with_first
from .tables import COMPARED, scored

RIVALS = {
    "insertion": "insertion",
    "one_minus_deletion": "deletion",
    "srg": "srg",
    "mu_fidelity": "mu_fidelity",
    "minus_infidelity": "infidelity",
    "network_sensitivity": "network_sensitivity",
}
"""Score (higher is better) -> the measured column that it is made from."""
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
    kinds = table["aggregate"].map(name_of).mask(deepest, NAMES["deepest"])
    return table.assign(method=table["method"] + ", " + kinds)


def pairs(table: pd.DataFrame, truths: Sequence[str] = MASKS, compared: Sequence[str] = ALL) -> pd.Series:
    """Compute how well each score, and each pair of scores by its mean rank, agrees with the truth.

    Args:
        table: The result of `rated`, with one network or more. Explanations without one of the scores or truths are left
            out.
        truths: The columns that know the truth.
        compared: The scores.

    Returns:
        Spearman's correlation over all explanations of a network, averaged over truths, then over networks. It is
        indexed by (first score, second score), the highest first. A single score stands twice.
    """
    table = complete(table, [*compared, *truths])
    every = [*((name, name) for name in compared), *combinations(compared, 2)]
    means = [np.mean([_agreement(own, pair, truths) for _, own in table.groupby("model")]) for pair in every]
    index = pd.MultiIndex.from_tuples(every, names=["first", "second"])
    return pd.Series(means, index, name="spearman").sort_values(ascending=False)


def complete(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Keep the rows in which all these columns are finite."""
    return table[np.isfinite(table[list(names)].to_numpy(float)).all(1)]


def _agreement(own: pd.DataFrame, pair: Sequence[str], truths: Sequence[str]) -> float:
    """Return Spearman's correlation of the pair's mean rank with each truth, averaged over truths."""
    ranks = own[list(pair)].rank().mean(axis=1).to_numpy()
    return float(np.mean([with_first(np.column_stack([ranks, own[truth]]))[0] for truth in truths]))


def best_pair(table: pd.Series) -> tuple[str, str]:
    """Return the best two scores of the result of `pairs`."""
    first, second = table[table.index.get_level_values(0) != table.index.get_level_values(1)].index[0]
    return first, second


def best_score(table: pd.Series) -> str:
    """Return the best single score of the result of `pairs`."""
    return str(table[table.index.get_level_values(0) == table.index.get_level_values(1)].index[0][0])


def checked(
    table: pd.DataFrame, choice: pd.Series, truths: Sequence[str] = MASKS, draws: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Compare what was chosen on other rows with ARCC on these rows: one row per network.

    Args:
        table: The result of `rated`.
        choice: The result of `pairs` on other rows. Its best pair and its best single score were chosen.
        truths: The columns that know the truth.
        draws: Draws of the bootstrap over images.
        seed: Seeds the draws.

    Returns:
        The correlations of `pairs` of the chosen pair, the chosen score and ARCC; lead, the chosen pair's minus ARCC's,
        with its 95 % interval low, high; n explanations, and images.
    """
    pair, score = best_pair(choice), best_score(choice)
    kept, records = complete(table, [*ALL, *truths]), {}
    for model in unique(kept["model"]):
        own = kept[kept["model"] == model]
        rows_of = list(own.groupby("image").indices.values())
        picks = rng("ratings", seed).integers(len(rows_of), size=(draws, len(rows_of)))
        drawn = (own.iloc[np.concatenate([rows_of[i] for i in pick])] for pick in picks)
        leads = [_agreement(each, pair, truths) - _agreement(each, ["arcc"], truths) for each in drawn]
        found = {
            name: _agreement(own, each, truths)
            for name, each in (("pair", pair), ("score", [score]), ("ARCC", ["arcc"]))
        }
        low, high = middle(np.array(leads))
        records[model] = {"chosen pair": found["pair"], "chosen score": found["score"], "ARCC": found["ARCC"]}
        records[model] |= {"lead": found["pair"] - found["ARCC"], "low": low, "high": high}
        records[model] |= {"n": len(own), "images": len(rows_of)}
    return pd.DataFrame.from_dict(records, orient="index").rename_axis("model")
