"""Say in one line whether a claim holds, under which conventions, and with how many images.

>>> print(verdict("ARCC agrees best with the truth", holds, n=100))
ARCC agrees best with the truth: reproduced (n = 100 images)
"""

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from ..explanation import TRIVIAL
from ..scoring import CONVENTIONS
from .tables import FEWEST, LOWER, scored, summaries

HOLDS = ("holds", "fails")
"""The words for a claim that the paper does not make."""
SMALL = 0.15
"""A trivial map's mean ARCC should not exceed this."""
FIG1 = ("average_drop", "adcc", "road", "arcc")
"""The scores of Fig. 1."""


def verdict(
    claim: str,
    holds: bool | Mapping[str, bool | str],
    n: int,
    unit: str = "images",
    words: tuple[str, str] = ("reproduced", "not reproduced"),
) -> str:
    """Return the claim, the verdict and n. Below FEWEST images the verdict is "too few images".

    Args:
        claim: The claim in words.
        holds: Whether it holds; or convention -> whether it holds, or a word such as "undecided".
        n: How many images it was tested on.
        unit: What was counted.
        words: The verdicts of a claim that holds and of one that fails.
    """
    each = holds if isinstance(holds, Mapping) else {"": holds}
    found = {name: value if isinstance(value, str) else HOLDS[not value] for name, value in each.items()}
    held = [value == "holds" for value in found.values()]
    word = words[0] if all(held) else "depends on the convention" if any(held) else words[1]
    names = ", ".join(f"{name} {value}" for name, value in found.items() if name)
    return f"{claim}: {word if n >= FEWEST else 'too few images'} (n = {n:,} {unit}{'; ' * bool(names)}{names})"


def shown(tests: pd.DataFrame, level: float = 0.05) -> pd.Series:
    """Return 1 or -1 where a difference is shown, and 0 where it is not.

    A difference is shown if its corrected p value is below `level`, its 95 % interval excludes 0, and it rests on at
    least FEWEST images.

    Args:
        tests: The result of `statistics.paired_test`, corrected over the family that the table shows.
        level: Upper limit of the corrected p value.
    """
    apart = (tests["low"] > 0).astype(int) - (tests["high"] < 0).astype(int)
    return apart.where((tests["p_holm"] < level) & (tests["n"] >= FEWEST), 0)


def in_networks(outcomes: Iterable[int]) -> str:
    """Say in how many networks a difference is shown, such as "2 of 5 (opposite in 1)"."""
    values = list(outcomes)
    opposite = values.count(-1)
    return f"{values.count(1)} of {len(values)}" + (f" (opposite in {opposite})" if opposite else "")


def under_conventions(claim: Callable[[pd.DataFrame], bool], rows: pd.DataFrame) -> dict[str, bool]:
    """Test a claim about scored rows under every convention."""
    return {name: claim(scored(rows, name)) for name in CONVENTIONS}


def fooled_by(table: pd.DataFrame, score: str) -> list[str]:
    """List the trivial maps that a score ranks above a method. table: summaries with columns score, method, mean."""
    mean = (-1 if score in LOWER else 1) * table[table["score"] == score].set_index("method")["mean"]
    trivial = mean.index.isin(TRIVIAL)
    return [f"{t} above {m}" for t in mean.index[trivial] for m in mean.index[~trivial] if mean[t] > mean[m]]


def trivial_maps_fool(rows: pd.DataFrame) -> bool:
    """Tell whether trivial maps fool Average Drop or ADCC, but not ARCC (Fig. 1).

    ARCC is not fooled if each trivial map's mean is at most SMALL and below every method's 95 % interval.
    """
    table = summaries(rows, FIG1, ["method"])
    arcc = table[table["score"] == "arcc"].set_index("method")
    trivial = arcc.index.isin(TRIVIAL)
    highest, lowest = arcc.loc[trivial, "mean"].max(), arcc.loc[~trivial, "low"].min()
    fooled = fooled_by(table, "average_drop") or fooled_by(table, "adcc")
    return bool(fooled) and highest <= SMALL and highest < lowest
