"""Which of the paper's claims hold, under each convention and with each defect of the published code switched on.

>>> table = audit(conditions(audit_plan("efficientnet_lite0", 100, 30, 100, n_defects=40)))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import rng
from ..explanation import CAMS, OTHERS, TRIVIAL
from ..scoring import CONVENTIONS, scores
from ..sweeps.experiments import EIGHTH_ROOT
from ..sweeps.run import sweep
from ..sweeps.shard import Shard
from .statistics import correlation

REAL = ("GradCAM++", "LayerCAM", "ScoreCAM")
"""The methods of Fig. 1."""
TERMS = ("one_minus_average_drop", "one_minus_complexity", "coherency", "road", "adcc")
"""What ARCC competes with in Fig. 3, each higher is better."""
LEVEL = 0.01
"""A score that a change of magnitude moves by less than this is called blind to it."""


class Draw:
    """Scores of one bootstrap draw of images: means and paired differences of a method's variants.

    values: score -> array (images, series), NaN where not measured or undefined; series: (method, aggregate) -> column.
    """

    def __init__(self, values: Mapping[str, np.ndarray], series: Mapping[tuple[str, str], int], pick: np.ndarray):
        self.values = {name: array[pick] for name, array in values.items()}
        self.series = series

    def of(self, score: str, method: str, aggregate: str = "none") -> np.ndarray:
        """The score of each image; all NaN where it was not measured."""
        column = self.series.get((method, aggregate))
        values = self.values[score]
        return np.full(len(values), np.nan) if column is None else values[:, column]

    def mean(self, score: str, method: str, aggregate: str = "none") -> float:
        return _mean(self.of(score, method, aggregate))

    def best_trivial(self, score: str) -> float:
        return _max([self.mean(score, method) for method in TRIVIAL])

    def average_real(self, score: str) -> float:
        return _mean(np.array([self.mean(score, method) for method in REAL]))

    def gain(self, better: str, worse: str) -> float:
        """Mean over methods of the mean over images of ARCC's difference between two aggregates."""
        return _mean(np.array([_mean(self.of("arcc", m, better) - self.of("arcc", m, worse)) for m in CAMS]))

    def agreement(self, score: str) -> float:
        """Spearman's correlation of the score with the cosine similarity to the truth, over explanations."""
        methods = [method for method in CAMS + OTHERS if (method, "none") in self.series]
        x, y = (np.concatenate([self.of(name, method) for method in methods]) for name in (score, "cosine"))
        arcc = np.concatenate([self.of("arcc", method) for method in methods])  # rivals on the rows where it is defined
        return correlation(np.where(np.isfinite(arcc), x, np.nan), y, "spearman")

    def moved(self, score: str) -> float:
        """How far the haze of Fig. 4 moves a score, the mean over images of the absolute change."""
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
        d.agreement("arcc") - _max([d.agreement(score) for score in TERMS])
    ),
    "RefineCAM beats Base in ARCC": lambda d: d.gain("product", "none"),
    "the product beats the geometric mean": lambda d: d.gain("product", "geometric_mean"),
    "the product beats the inverse-exp mean": lambda d: d.gain("product", "inverse_exp_mean"),
    "ROAD is blind to magnitude": lambda d: LEVEL - d.moved("road"),
    "ARCC is not blind to magnitude": lambda d: d.moved("arcc") - LEVEL,
}
"""Claim -> by how much it holds: it holds above 0, and fails below."""


@dataclass(frozen=True)
class Condition:
    """Measured rows and the convention that scores them; `name` and `note` say what is different from ours."""

    name: str
    rows: pd.DataFrame
    convention: str = "recommended"
    note: str = ""


def conditions(shards: Mapping[str, Sequence[Shard]], n_jobs: int = 1) -> list[Condition]:
    """Measure, or read, the rows of every condition of the audit; shards: of `plans.audit_plan`."""
    found = {name: sweep(list(part), n_jobs) for name, part in shards.items()}
    ours = found["ours"]
    few = sorted(ours["image"].unique())[: found["D4"]["image"].nunique()]

    def replaced(rows: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
        """The base rows, with `rows` in the place of those of the same name."""
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


def audit(found: Sequence[Condition], draws: int = 400, seed: int = 0) -> pd.DataFrame:
    """One row a condition and claim: by how much the claim holds, its bootstrap 95 % interval over images, the verdict.

    Columns: condition, note, claim, value, low, high, verdict ("holds", "fails", "undecided", or "no value" where
    nothing was measured or no score is defined), n images, and undefined, the share of ARCC scores that the convention
    leaves undefined.
    """
    records = []
    for condition in found:
        values, series, undefined = _scored(condition)
        n = len(values["arcc"])
        generator = rng("audit", seed)
        picks = [np.arange(n), *generator.integers(n, size=(draws, n))]
        with np.errstate(invalid="ignore"):
            for claim, by_how_much in CLAIMS.items():
                value, *drawn = (by_how_much(Draw(values, series, pick)) for pick in picks)
                known = np.isfinite(value) and n > 1  # of one image nothing can be told
                low, high = np.nanquantile(drawn, [0.025, 0.975]) if known else (np.nan, np.nan)
                records.append(
                    {"condition": condition.name, "note": condition.note, "claim": claim}
                    | {"value": value, "low": low, "high": high, "verdict": _verdict(value, low, high)}
                    | {"n": n, "undefined": undefined}
                )
    return pd.DataFrame(records)


def _verdict(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "no value"
    return "holds" if low > 0 else "fails" if high < 0 else "undecided"


def _scored(condition: Condition) -> tuple[dict[str, np.ndarray], dict[tuple[str, str], int], float]:
    """Each score as an array (images, series) of the shallowest layer's maps of images that are classified correctly."""
    rows = condition.rows[(condition.rows["correct"] == True) & (condition.rows["layer"] == 0)]
    rows = rows.reset_index(drop=True)
    table = scores(rows, condition.convention)
    undefined = float(table["arcc"].isna().mean())
    table = table.assign(
        one_minus_average_drop=1 - table["average_drop"],
        one_minus_complexity=1 - table["complexity"],
        cosine=rows["cosine"],
        **{name: rows[name] for name in ("image", "method", "aggregate")},
    )
    wide = {
        score: table.pivot(index="image", columns=["method", "aggregate"], values=score)
        for score in ("arcc", "cosine", *TERMS)
    }
    series = {name: k for k, name in enumerate(wide["arcc"].columns)}
    return {score: frame.to_numpy(float) for score, frame in wide.items()}, series, undefined
