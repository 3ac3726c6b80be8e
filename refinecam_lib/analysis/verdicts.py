"""Say in one line whether a claim holds, under which conventions, and with how many images.

>>> print(verdict("ARCC agrees best with the truth", holds, n=100))
ARCC agrees best with the truth: reproduced (n = 100 images)
"""

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from ..explanation import TRIVIAL
from ..scoring import EVERY, RECOMMENDED
from .plots import FEWEST, unique
from .tables import LOWER, mostly_real, scored, summaries

HOLDS = ("holds", "fails")
"""The words for a claim that the paper does not make."""
MIXED = "depends on the convention"
SMALL = 0.15
"""A trivial map's mean ARCC should not exceed this."""
FIG1 = ("average_drop", "adcc", "road", "arcc")
"""The scores of Fig. 1."""


def word_of(holds: Mapping[str, bool | str], n: int, words: tuple[str, str] = ("reproduced", "not reproduced")) -> str:
    """Return the verdict on a claim.

    Args:
        holds: Convention -> whether the claim holds, or a word such as "undecided".
        n: The number of images. Below FEWEST the verdict is "too few images".
        words: The verdicts of a claim that holds under every convention, and under none.
    """
    held = [value is True or value == "holds" for value in holds.values()]
    return "too few images" if n < FEWEST else words[0] if all(held) else MIXED if any(held) else words[1]


def verdict(
    claim: str,
    holds: bool | Mapping[str, bool | str],
    n: int,
    unit: str = "images",
    words: tuple[str, str] = ("reproduced", "not reproduced"),
    networks: str = "",
) -> str:
    """Return the claim, the verdict and n.

    Args:
        claim: The claim in words.
        holds: Whether it holds; or convention -> whether it holds, see `word_of`.
        n: How many images it was tested on, at least.
        unit: What was counted.
        words: The verdicts of a claim that holds and of one that fails.
        networks: In how many networks it is shown, see `in_networks`.
    """
    each = holds if isinstance(holds, Mapping) else {"": bool(holds)}
    details = [f"n = {n:,} {unit}"] + ([f"shown in {networks} networks"] if networks else [])
    if isinstance(holds, Mapping):
        held = [name for name, value in holds.items() if value is True or value == "holds"]
        rest = "; ".join(name for name in holds if name not in held)
        details.append(
            f"holds under {len(held)} of {len(holds)} conventions" + f", not under {rest}" * bool(held and rest)
        )
    return f"{claim}: {word_of(each, n, words)} ({'; '.join(details)})"


def outcomes(claim: Callable[[pd.DataFrame], bool], rows: pd.DataFrame) -> pd.DataFrame:
    """Test a claim about one network's scored rows: one row per convention, one column per network, True if it holds."""
    models = unique(rows["model"])
    return pd.DataFrame(
        {model: {name: claim(scored(rows[rows["model"] == model], name)) for name in EVERY} for model in models}
    )


def tested_outcomes(test: Callable[[pd.DataFrame], pd.DataFrame], rows: pd.DataFrame) -> pd.DataFrame:
    """Tell whether most tests find a real gain: one row per convention, one column per network.

    Args:
        test: Scored rows of all networks -> tests with the columns of `tables.tested`, corrected together.
        rows: Measured rows.
    """
    tests = {name: test(scored(rows, name)) for name in EVERY}
    return pd.DataFrame(
        {m: {name: mostly_real(t[t["model"] == m]) for name, t in tests.items()} for m in unique(rows["model"])}
    )


def over_networks(claim: str, table: pd.DataFrame, n: int) -> str:
    """Return the verdict on a claim over networks. It holds under a convention if it does in more than half of them.

    Args:
        claim: The claim in words.
        table: The result of `outcomes` or `tested_outcomes`; or 1 where the claim is shown and -1 where its opposite is.
        n: The smallest number of images.
    """
    holds = {str(name): bool(share > 0.5) for name, share in (table == 1).mean(axis=1).items()}
    return verdict(claim, holds, n, networks=in_networks(table.loc[RECOMMENDED].astype(int)))


def in_networks(outcomes: Iterable[int]) -> str:
    """Say in how many networks a difference is shown, such as "2 of 5 (opposite in 1)"."""
    values = list(outcomes)
    opposite = values.count(-1)
    return f"{values.count(1)} of {len(values)}" + (f" (opposite in {opposite})" if opposite else "")


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
