"""Choose and compare ways to combine layers, from rows of `experiments.combination_plan`.

The rule of choice, fixed before its rows were measured: of each family (soft AND with a floor e, power mean with an
exponent p) take the candidate with the highest average precision on validation images of the shapes. Average precision
is averaged over the correctly classified images of each method, then over methods, then over networks. A blank map counts
with its own average precision, which is the share of the mask. No other score and no test image has a say.

The finalists, whose ROAD, ARCC and exact removal are measured too, are the best of the combinations that average maps or
take their maximum, and the best of those that multiply them, by average precision on validation images. This second rule was
fixed when average precision was known, before ROAD, ARCC and exact removal were measured.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import pandas as pd

from ..refinement import AGGREGATES, COMBINATIONS
from ..scoring import ROAD_SCALES, UNDEFINED, scores
from ..sweeps.experiments import FINALISTS
from .plots import unique
from .statistics import holm, paired_test
from .tables import correct, intervals, scored, shown, summaries

FAMILIES = ("soft_and", "power_mean")
"""The combinations with a parameter."""
KINDS = {"add": ("mean", "power_mean", "tanh_max"), "multiply": ("soft_and", "mean_x_deepest")}
"""What a combination does with the maps -> its names without a number. The paper's aggregates are not candidates."""

ARCC = {
    f"arcc_{r.replace(' ', '_')}{'_halved' * (road == 'halved')}": f"undefined r {r}, ROAD {road}"
    for road in ROAD_SCALES
    for r in UNDEFINED
}
"""Column -> the convention of the grid under which it is ARCC."""
MEASURES = (*ARCC, "road", "exact_road", "average_precision", "cosine", "mass_on_truth")
"""What finalists are compared by. Higher is better."""

FIRST = ("none", "deepest", "product")
"""The maps that stand above the finalists in tables and figures."""
SEEN = ("arcc_0", "road", "exact_road", "average_precision")
"""The measures of `data_means` that its figure shows."""


def candidates(rows: pd.DataFrame, measure: str = "average_precision") -> pd.Series:
    """Return the mean of a measure by aggregate, from the shallowest layer on: over images, then methods, then networks."""
    known = correct(rows[rows["layer"] == 0])
    means = known.groupby(["aggregate", "model", "method"])[measure].mean()
    return means.groupby(["aggregate", "model"]).mean().groupby("aggregate").mean()


def chosen(rows: pd.DataFrame) -> dict[str, str]:
    """Return the chosen candidate of each family by the rule above: {"soft_and": "soft_and_0.1", ...}."""
    means = candidates(rows)
    return {family: str(means[means.index.str.startswith(f"{family}_")].idxmax()) for family in FAMILIES}


def finalists(rows: pd.DataFrame) -> list[str]:
    """Return the best candidate of each of KINDS by the rule above, on rows of validation images."""
    means = candidates(rows)
    return [str(means[[n for n in means.index if family_of(n) in kind]].idxmax()) for kind in KINDS.values()]


def family_of(name: str) -> str:
    """Return a combination's name without the number of a candidate: "soft_and" for "soft_and_0.2"."""
    return next((family for family in FAMILIES if name.startswith(f"{family}_")), name)


def contenders(rows: pd.DataFrame, picked: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows that compete: Base, the deepest Base map as "deepest", and each combination once.

    Args:
        rows: Rows of combinations, of correctly classified images or of all.
        picked: The result of `chosen`. Its candidates lose their number; the other candidates are left out.
    """
    last = rows["layer"] == rows.groupby("model")["layer"].transform("max")
    names = {candidate: family for family, candidate in picked.items()}
    fixed = [name for name in ("none", *AGGREGATES, *COMBINATIONS) if not name.startswith(FAMILIES)]
    shallow = rows[~last & rows["aggregate"].isin([*fixed, *names])]
    deepest = rows[last].assign(aggregate="deepest")
    return pd.concat([shallow.assign(aggregate=shallow["aggregate"].replace(names)), deepest], ignore_index=True)


def contests(
    rows: pd.DataFrame, measures: Sequence[str] = ("average_precision",), by: Sequence[str] = ("model",)
) -> pd.DataFrame:
    """Test every combination against the product and against the deepest map, image by image.

    Args:
        rows: The result of `contenders`, of correctly classified images.
        measures: The columns to compare, higher is better. A network without any value in a column has no test of it.
        by: The columns that name a group. Values of an image are averaged within it. Explanations for which either map's
            value is undefined are left out for both.

    Returns:
        The rows of `statistics.paired_test` for each group, with the columns measure, aggregate and against. p_holm is
        corrected over the whole table, and shown is 1 or -1 where a difference is shown, see `tables.shown`. The product
        is not tested against the deepest map again.
    """
    parts, by = [], list(by)
    keys = ["model", "method", "image", *(["condition"] if "condition" in rows.dropna(axis=1) else [])]
    for measure in measures:
        wide = rows.pivot_table(index=keys, columns="aggregate", values=measure, sort=False)
        for against, name in product(("product", "deepest"), unique(rows["aggregate"])):
            if name == against or (name, against) == ("product", "deepest") or not {against, name} <= set(wide):
                continue
            images = wide[[against, name]].dropna().groupby([*by, "image"], sort=False).mean()
            if len(images):
                long = images.stack().rename(measure).reset_index()
                tests = paired_test(long, measure, by, (against, name))
                parts.append(tests.assign(measure=measure, aggregate=name, against=against))
    table = pd.concat(parts, ignore_index=True)
    table["p_holm"] = holm(table["p"].to_numpy())
    return table.assign(shown=shown(table))


def ranking(rows: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """Rank combinations: one row each, the best first.

    Returns:
        average_precision, cosine and mass_on_truth: means over images, then methods, then networks; higher is better.
        worst network: the lowest of the networks' average precisions. blank: the share of maps without contrast.
        "> product" and so on: in how many networks a difference in average precision is shown.
    """
    blank = rows.assign(blank=rows["status"] == "constant")
    names = ["average_precision", "cosine", "mass_on_truth", "blank"]
    means = blank.groupby(["aggregate", "model", "method"], sort=False)[names].mean()
    by_network = means.groupby(["aggregate", "model"], sort=False).mean()
    table = by_network.groupby("aggregate", sort=False).mean()
    table.insert(1, "worst network", by_network["average_precision"].groupby("aggregate").min())
    return table.join(won_and_lost(tests)).sort_values("average_precision", ascending=False)


def won_and_lost(tests: pd.DataFrame) -> pd.DataFrame:
    """Count in how many groups a difference is shown: one row per combination, in their order.

    Args:
        tests: The result of `contests`, of one measure.

    Returns:
        The columns "> product", "< product", "> deepest" and "< deepest", and tests, the number of groups.
    """
    columns = {}
    for against, part in tests.groupby("against", sort=False):
        for sign, word in ((1, ">"), (-1, "<")):
            columns[f"{word} {against}"] = (part["shown"] == sign).groupby(part["aggregate"]).sum()
    counts = pd.DataFrame(columns).assign(
        tests=tests.groupby(["against", "aggregate"]).size().groupby("aggregate").max()
    )
    return counts.reindex(unique(tests["aggregate"])).astype("Int64")


def rated(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the contenders of correctly classified images with MEASURES and blank, whether a map has no contrast.

    Args:
        rows: Rows of `experiments.finalist_plan`.
    """
    kept = contenders(scored(rows), {family_of(name): name for name in FINALISTS})
    kept = kept.assign(**{name: scores(kept, convention)["arcc"] for name, convention in ARCC.items()})
    return kept.assign(blank=(kept["status"] == "constant").astype(float))


def averages(rows: pd.DataFrame) -> pd.DataFrame:
    """Average MEASURES and blank over images: the rows of `tables.summaries` by network and combination.

    Each image counts once: its values are averaged over methods first, without those that are undefined.

    Args:
        rows: The result of `rated`.
    """
    by = ["model", "aggregate"]
    order = list(dict.fromkeys([*FIRST, *rows["aggregate"]]))
    rows = rows.sort_values("aggregate", key=lambda names: names.map(order.index), kind="stable")
    images = rows.groupby([*by, "image"], sort=False)[[*MEASURES, "blank"]].mean().reset_index()
    return summaries(images, [*MEASURES, "blank"], by)


def scoreboard(long: pd.DataFrame) -> pd.DataFrame:
    """Lay the result of `averages` out: one row per network and combination, `mean [low, high]`, and n images."""
    text = long.assign(cell=intervals(long).where(long["n"] > 0, ""))
    wide = text.pivot_table(index=["model", "aggregate"], columns="score", values="cell", sort=False, aggfunc="first")
    wide = wide[unique(long["score"])].rename_axis(columns=None)
    return wide.assign(n=long.groupby(["model", "aggregate"], sort=False)["n"].max())


def outcome(tests: pd.DataFrame) -> pd.DataFrame:
    """Count what the result of `contests` shows: one row per measure and combination, see `won_and_lost`."""
    parts = {measure: won_and_lost(part) for measure, part in tests.groupby("measure", sort=False)}
    return pd.concat(parts, names=["measure"])


def joined(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the rated rows of several data sets, with networks named like "birds: small_vgg".

    Args:
        parts: Data set -> rows of its finalists. A measure that a data set does not have is NaN there.
    """
    tables = [
        rated(rows).assign(model=lambda own, name=name: f"{name}: " + own["model"]) for name, rows in parts.items()
    ]
    rows = pd.concat(tables, ignore_index=True)
    return rows.reindex(columns=[*rows, *(name for name in MEASURES if name not in rows)])


def data_of(models: pd.Series) -> pd.Series:
    """Return the data sets of `joined`'s networks."""
    return models.str.split(": ").str[0].rename("data")


def data_means(long: pd.DataFrame) -> pd.DataFrame:
    """Average the result of `averages` over networks: one row per data set and combination, and n networks."""
    by = [data_of(long["model"]), "aggregate"]
    wide = long.pivot_table(index=by, columns="score", values="mean", sort=False)[unique(long["score"])]
    return wide.rename_axis(columns=None).assign(networks=long.groupby(by, sort=False)["model"].nunique())


def data_contests(
    rows: pd.DataFrame, measures: Sequence[str] = MEASURES, by: Sequence[str] = ("model",)
) -> pd.DataFrame:
    """Return `contests` of `joined` rows, each data set corrected alone, as in its own notebook."""
    parts = (contests(part, measures, by) for _, part in rows.groupby(data_of(rows["model"]), sort=False))
    return pd.concat(parts, ignore_index=True)


def data_outcome(tests: pd.DataFrame) -> pd.DataFrame:
    """Count what the result of `data_contests` shows, data set by data set, see `outcome`."""
    parts = {name: outcome(part) for name, part in tests.groupby(data_of(tests["model"]), sort=False)}
    return pd.concat(parts, names=["data"])
