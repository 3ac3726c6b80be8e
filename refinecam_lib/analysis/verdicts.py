"""One definition of a shown difference, and one verdict for a claim."""

from collections.abc import Iterable, Mapping

import pandas as pd

ENOUGH = 30
"""Images below which there is no verdict."""
VERDICTS = ("reproduced", "depends on the convention", "not reproduced", "not comparable", "too few images")


def shown(tests: pd.DataFrame, level: float = 0.05) -> pd.Series:
    """Return 1 or -1 where a difference is shown, and 0 where it is not.

    A difference is shown if its corrected p value is below `level`, its 95 % interval excludes 0, and it rests on at
    least `ENOUGH` images.

    Args:
        tests: The result of `statistics.paired_test`, corrected over the family that the table shows.
        level: Upper limit of the corrected p value.
    """
    apart = (tests["low"] > 0).astype(int) - (tests["high"] < 0).astype(int)
    return apart.where((tests["p_holm"] < level) & (tests["n"] >= ENOUGH), 0)


def verdict(outcomes: Mapping[str, int], n: int, comparable: bool = True) -> str:
    """Return the verdict on a claim.

    Args:
        outcomes: Convention -> 1 if the claim is shown under it, -1 if its opposite is, else 0.
        n: The number of images that the outcomes rest on.
        comparable: False if our setting lacks what the claim is about.
    """
    if not comparable:
        return "not comparable"
    if n < ENOUGH:
        return "too few images"
    holds = [value == 1 for value in outcomes.values()]
    return "reproduced" if all(holds) else "depends on the convention" if any(holds) else "not reproduced"


def in_networks(outcomes: Iterable[int]) -> str:
    """Say in how many networks a claim is shown, such as "2 of 5 (opposite in 1)"."""
    values = list(outcomes)
    opposite = values.count(-1)
    return f"{values.count(1)} of {len(values)}" + (f" (opposite in {opposite})" if opposite else "")
