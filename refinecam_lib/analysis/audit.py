"""Test every claim of the paper on each network, under each convention, and with each defect of the published code.

>>> table = audit(conditions(audit_plan("efficientnet_lite0", 100, 30, 100, n_defects=40)))
>>> claims(audit(under_every_convention(rows)))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import scipy

from ..errors import rng
from ..explanation import CAMS, OTHERS, TRIVIAL
from ..scoring import CONVENTIONS, EVERY, RECOMMENDED
from ..sweeps.experiments import EIGHTH_ROOT
from ..sweeps.run import sweep
from ..sweeps.shard import Shard
from .plots import FEWEST, unique
from .statistics import holm, middle, with_first
from .tables import scored, shown
from .verdicts import in_networks, word_of

REAL = ("GradCAM++", "LayerCAM", "ScoreCAM")
"""The methods of Fig. 1."""
TERMS = ("one_minus_average_drop", "one_minus_complexity", "coherency", "road", "adcc")
"""The other scores of Fig. 3. Higher is better for all of them."""
LEVEL = 0.01
"""A score is blind to magnitude if raising the map to a power moves it by less than this."""


class Draw:
    """The scores of one bootstrap draw of images."""

    def __init__(self, values: Mapping[str, np.ndarray], series: Mapping[tuple[str, str], int], pick: np.ndarray):
        """Draw images.

        Args:
            values: Score -> array (images, series), NaN where it was not measured or is undefined.
            series: (method, aggregate) -> its column in the arrays.
            pick: The drawn images.
        """
        self.values = {name: array[pick] for name, array in values.items()}
        self.series = series

    def of(self, score: str, method: str, aggregate: str = "none") -> np.ndarray:
        """Return the score of each image; all NaN if it was not measured."""
        column = self.series.get((method, aggregate))
        values = self.values[score]
        return np.full(len(values), np.nan) if column is None else values[:, column]

    def mean(self, score: str, method: str, aggregate: str = "none") -> float:
        """Return the mean of a score over images."""
        return _mean(self.of(score, method, aggregate))

    def best_trivial(self, score: str) -> float:
        """Return the highest mean of a trivial map."""
        return _max([self.mean(score, method) for method in TRIVIAL])

    def average_real(self, score: str) -> float:
        """Return the mean score of each method of Fig. 1, averaged over the methods."""
        return _mean(np.array([self.mean(score, method) for method in REAL]))

    def gain(self, better: str, worse: str) -> float:
        """Return by how much one aggregate's ARCC exceeds another's: the mean over images, then over methods."""
        return _mean(np.array([_mean(self.of("arcc", m, better) - self.of("arcc", m, worse)) for m in CAMS]))

    @cached_property
    def agreements(self) -> dict[str, float]:
        """Spearman's correlation of each score with the cosine similarity to the truth, over explanations.

        All scores use the rows that have every one of them.
        """
        methods = [method for method in CAMS + OTHERS if (method, "none") in self.series]
        names = ["arcc", *TERMS]
        table = [np.concatenate([self.of(name, method) for method in methods]) for name in ("cosine", *names)]
        return dict(zip(names, with_first(np.stack(table, 1)).tolist()))

    def moved(self, score: str) -> float:
        """Return the mean absolute change of a score when the map is raised to the power 1/8 (Fig. 4)."""
        return _mean(np.abs(self.of(score, EIGHTH_ROOT) - self.of(score, "GradCAM++")))


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


def _max(values: Sequence[float]) -> float:
    return max((value for value in values if np.isfinite(value)), default=np.nan)


CLAIMS: dict[str, Callable[[Draw], float]] = {
    "a trivial map beats the average CAM in Average Drop": lambda d: (
        d.best_trivial("one_minus_average_drop") - d.average_real("one_minus_average_drop")
    ),
    "a trivial map beats the average CAM in ADCC": lambda d: d.best_trivial("adcc") - d.average_real("adcc"),
    "no trivial map beats the average CAM in ROAD": lambda d: d.average_real("road") - d.best_trivial("road"),
    "no trivial map beats the average CAM in ARCC": lambda d: d.average_real("arcc") - d.best_trivial("arcc"),
    "ARCC agrees with the truth better than any other score": lambda d: (
        d.agreements["arcc"] - _max([d.agreements[score] for score in TERMS])
    ),
    "RefineCAM beats Base in ARCC": lambda d: d.gain("product", "none"),
    "the product beats the geometric mean": lambda d: d.gain("product", "geometric_mean"),
    "the product beats the inverse-exp mean": lambda d: d.gain("product", "inverse_exp_mean"),
    "ROAD is blind to magnitude": lambda d: LEVEL - d.moved("road"),
    "ARCC is not blind to magnitude": lambda d: d.moved("arcc") - LEVEL,
}
"""Claim -> by how much it holds. Above 0 it holds, below 0 it fails."""


@dataclass(frozen=True)
class Condition:
    """Measured rows and the convention that scores them."""

    name: str
    rows: pd.DataFrame
    convention: str = "recommended"
    note: str = ""
    """What is different from ours."""
    model: str = ""
    """The network, where conditions of several are tested together."""


def conditions(shards: Mapping[str, Sequence[Shard]], n_jobs: int = 1) -> list[Condition]:
    """Measure or read the rows of every condition. shards: those of `experiments.audit_plan`."""
    found = {name: sweep(list(part), n_jobs) for name, part in shards.items()}
    ours = found["ours"]
    few = sorted(ours["image"].unique())[: found["D4"]["image"].nunique()]

    def replaced(rows: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
        """Return the base rows, with `rows` instead of those with the same keys."""
        return pd.concat([rows, base]).drop_duplicates(["image", "method", "layer", "aggregate"])

    first = ours[ours["image"].isin(few) & ours["method"].isin(set(found["D4"]["method"]))]
    graphless = ours[ours["method"] == "GradCAM"].assign(method="ShapleyCAM")
    fp32 = found["fp32"].assign(aggregate="inverse_exp_mean")
    return [
        *(Condition(name, ours, name) for name in CONVENTIONS),
        Condition("D2", replaced(graphless, ours), note="ShapleyCAM that lost its graph, which is Grad-CAM"),
        Condition("D6", ours[ours["status"] == "ok"], note="maps without contrast or finite values dropped"),
        Condition("none, few images", first, note="ours, on the images and methods of the columns right of it"),
        Condition("D1", found["D1"], note="scenes that were trained on"),
        Condition("D4", replaced(found["D4"], first), note="ROAD cut at percentiles"),
        Condition("D11", found["D11"], note="ground truth shifted by a crop"),
        Condition("D13", replaced(found["D13"], first), note="one seed for both passes"),
        Condition(
            "deep maps", replaced(found["deep maps"], first), note="RefineCAM's Coherency with unmasked deep maps"
        ),
        Condition("fp32", replaced(fp32, first), note="inverse-exp mean in single precision"),
    ]


def under_every_convention(rows: pd.DataFrame) -> list[Condition]:
    """Return one condition per network and convention. rows: measured rows of any networks."""
    return [
        Condition(name, rows[rows["model"] == model], name, model=model)
        for model in unique(rows["model"])
        for name in EVERY
    ]


def published(rows: pd.DataFrame) -> list[Condition]:
    """Return one condition per network: the published pipeline with all its defects. rows: of `published_plan`."""
    own = rows[rows["status"] == "ok"].replace(
        {"method": {"GradCAM": "ShapleyCAM"}, "aggregate": {"inverse_exp_mean_published": "inverse_exp_mean"}}
    )
    return [
        Condition("published pipeline", own[own["model"] == model], "published_code", model=model)
        for model in unique(own["model"])
    ]


def audit(found: Sequence[Condition], draws: int = 400, seed: int = 0) -> pd.DataFrame:
    """Test every claim under every condition.

    Args:
        found: The conditions.
        draws: Draws of the bootstrap over images.
        seed: Seeds the bootstrap.

    Returns:
        One row per condition and claim with the columns model, condition, note, claim; value, by how much the claim
        holds, with its 95 % interval low, high; p, of a normal test with the bootstrap's standard error, and p_holm,
        corrected over the whole table; verdict: "holds" or "fails" if the interval excludes 0 and p_holm < .05, else
        "undecided"; "too few images" below FEWEST images; "no value" if no score is defined; n images; undefined: the
        share of ARCC scores that have no value.
    """
    records = []
    for condition in found:
        values, series, undefined = _scored(condition)
        n = len(values["arcc"])
        generator = rng("audit", seed)
        picks = [np.arange(n), *generator.integers(n, size=(draws, n))]
        samples = [Draw(values, series, pick) for pick in picks]
        with np.errstate(invalid="ignore"):
            for claim, by_how_much in CLAIMS.items():
                value, *drawn = (by_how_much(sample) for sample in samples)
                known = np.isfinite(value) and n > 1  # one image gives no interval
                low, high = middle(np.array(drawn)) if known else (np.nan, np.nan)
                error = max(float(np.nanstd(drawn)), 1e-12) if known else np.nan
                p = 2 * scipy.stats.norm.sf(abs(value) / error)
                records.append(
                    {"model": condition.model, "condition": condition.name, "note": condition.note, "claim": claim}
                    | {"value": value, "low": low, "high": high, "p": p, "n": n, "undefined": undefined}
                )
    table = pd.DataFrame(records)
    table["p_holm"] = holm(table["p"].to_numpy())
    conditions = [table["value"].isna(), table["n"] < FEWEST, shown(table) == 1, shown(table) == -1]
    return table.assign(verdict=np.select(conditions, ["no value", "too few images", "holds", "fails"], "undecided"))


SIGN = {"holds": 1, "fails": -1}


def claims(table: pd.DataFrame, ours: str = RECOMMENDED) -> pd.DataFrame:
    """Summarise the result of `audit` over networks and conventions.

    A claim holds under a convention if it is shown in more than half of the networks that have a value.

    Args:
        table: The audit of several networks under several conventions.
        ours: The convention whose networks are counted.

    Returns:
        One row per claim: the networks in which it is shown under `ours`, the smallest n, the conventions under which
        it holds, and the verdict.
    """
    known = table[table["verdict"] != "no value"].assign(sign=lambda t: t["verdict"].map(SIGN).fillna(0).astype(int))
    records = []
    for claim, part in known.groupby("claim", sort=False):
        holds = part.groupby("condition", sort=False)["sign"].apply(lambda s: (s == 1).mean() > 0.5)
        own = part[part["condition"] == ours]
        records.append(
            {"claim": claim, "shown in networks": in_networks(own["sign"]), "fewest images": own["n"].min()}
            | {
                "conventions under which it holds": f"{holds.sum()} of {len(holds)}",
                "verdict": word_of(holds.to_dict(), own["n"].min()),
            }
        )
    return pd.DataFrame(records).set_index("claim")


def _scored(condition: Condition) -> tuple[dict[str, np.ndarray], dict[tuple[str, str], int], float]:
    """Return each score as an array (images, series): the shallowest layer's maps of correctly classified images."""
    table = scored(condition.rows[condition.rows["layer"] == 0], condition.convention)
    undefined = float(table["arcc"].isna().mean())
    wide = {
        score: table.pivot(index="image", columns=["method", "aggregate"], values=score)
        for score in ("arcc", "cosine", *TERMS)
    }
    series = {name: k for k, name in enumerate(wide["arcc"].columns)}
    return {score: frame.to_numpy(float) for score, frame in wide.items()}, series, undefined
