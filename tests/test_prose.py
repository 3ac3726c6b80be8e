"""README and docs state what the committed rows and tables say, word by word."""

import functools
import itertools
import json
import re
import shlex

import pandas as pd
import pytest

from refinecam_lib import paths
from refinecam_lib.analysis import contest, ratings, scene_tables
from refinecam_lib.analysis.conventions import winner
from refinecam_lib.analysis.plots import TITLES, title_of
from refinecam_lib.analysis.statistics import correlation, correlations, paired_test
from refinecam_lib.analysis.tables import COMPARED
from refinecam_lib.analysis.truths import correlated
from refinecam_lib.analysis.verdicts import in_networks, word_of
from refinecam_lib.explanation import CAMS, TRIVIAL
from refinecam_lib.funnybirds.score import per_explanation
from refinecam_lib.funnybirds.score import summary as bird_summary
from refinecam_lib.networks.checkpoints import checkpoint_path
from refinecam_lib.networks.zoo import MODELS
from refinecam_lib.refinement import BEST
from refinecam_lib.reproduce import __main__ as reproduce
from refinecam_lib.reproduce import parameters
from refinecam_lib.scoring import EVERY, RECOMMENDED, scores
from refinecam_lib.sweeps import experiments
from refinecam_lib.sweeps.store import look_up

STANDARD = paths.REFERENCE / "standard"
ROWS = {
    "fig1": ("03_trivial_cams", experiments.fig1_plan, True),
    "stress": ("03_trivial_cams", experiments.stress_plan, False),
    "fig3a": ("04_metric_correlation", experiments.table1_plan, True),
    "fig3b": ("04_metric_correlation", experiments.birds_plan, False),
    "table1": ("07_refinecam_benchmark", experiments.table1_plan, False),
}
"""Figure -> its notebook, its plan, and whether it uses only the shallowest layer's Base maps."""

NETWORKS = {
    "efficientnet_lite0": "EfficientNet-Lite0",
    "resnet18": "ResNet18",
    "vgg11": "VGG11",
    "swin_tiny": "Swin-Tiny",
    "convnext_tiny": "ConvNeXt-Tiny",
    "efficientnet_lite1": "EfficientNet-Lite1",
    "efficientnet_lite2": "EfficientNet-Lite2",
}


@functools.cache
def committed(name, profile="standard", model="efficientnet_lite0"):
    """Return the committed rows of a figure, with the notebook's own parameters. The birds keep all their networks."""
    book, planned, base = ROWS[name]
    values = parameters.chosen(profile, [book])[1][book]
    found = look_up(experiments.planned(planned, values))
    assert not found.missing and found.committed == len(found.rows), f"rows of {name} that are not committed"
    rows = found.rows if name == "fig3b" else found.rows[found.rows["model"] == model]
    return rows[(rows["layer"] == 0) & (rows["aggregate"] == "none")] if base else rows


def rows_of(name, profile="standard", model="efficientnet_lite0", convention="recommended"):
    rows = committed(name, profile, model)
    rows = rows[rows["correct"] == True].reset_index(drop=True)
    return rows.join(scores(rows, convention))


def number(value):
    """Write a number as the pages do: .45, -.03, 1.20."""
    text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
    return re.sub(r"^-(?=\.?0*$)", "", text)


def with_interval(row):
    return f"{number(row['value'])} [{number(row['low'])}, {number(row['high'])}]"


def listed(names):
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def cells(*values):
    """Write a line of a table. A list becomes names, or a dash if it is empty."""
    return f"| {' | '.join((', '.join(v) or '-') if isinstance(v, list) else v for v in values)} |"


def fig1_means(profile="standard", model="efficientnet_lite0"):
    mean = rows_of("fig1", profile, model).groupby("method")[["average_drop", "adcc", "road", "arcc"]].mean()
    return mean.loc[list(TRIVIAL)], mean.drop(index=list(TRIVIAL))


def stress_means(profile="standard", model="efficientnet_lite0"):
    return rows_of("stress", profile, model).groupby("method")["arcc"].mean()


def fig1():
    for model in networks("03_trivial_cams"):
        trivial, real = fig1_means(model=model)
        drop = [t for t in TRIVIAL if trivial.loc[t, "average_drop"] < real["average_drop"].min()]
        adcc = [t for t in TRIVIAL if trivial.loc[t, "adcc"] > real["adcc"].max()]
        yield cells(NETWORKS[model], drop, adcc, number(trivial["arcc"].max()), number(real["arcc"].min()))


def stress():
    real, more = fig1_means()[1]["arcc"], stress_means()
    side = "above" if more["CentreGaussian"] > real.max() else "below"
    yield f"It has an ARCC of {number(more['CentreGaussian'])}, {side} the best method's {number(real.max())} ({real.idxmax()})."
    yield f"The ground truth has {number(more['GroundTruth'])}."
    real, more = fig1_means("photographs")[1]["arcc"], stress_means("photographs")
    for name, title in {"EdgeDetector": "On photographs an edge detector", "CentreGaussian": "The Gaussian"}.items():
        yield f"{title} has {number(more[name])}, above {listed(real.index[real < more[name]])}."


def correlations_of(rows, truth):
    rows["one_minus_average_drop"] = 1 - rows["average_drop"]
    rows["one_minus_complexity"] = 1 - rows["complexity"]
    compared = ["arcc", "road", "coherency", "one_minus_complexity", "adcc", "one_minus_average_drop"]
    return rows, correlations(rows, compared, truth).set_index(["level", "kind", "score"]).sort_index()


@functools.cache
def truth_correlations():
    return correlations_of(rows_of("fig3a"), "cosine")


@functools.cache
def bird_correlations():
    raw = committed("fig3b")
    raw = raw[raw["status"] != "failed"].reset_index(drop=True)
    rows = raw.join(per_explanation(raw).rename(columns={"score": "funnybirds"})).join(scores(raw))
    rows = rows[(rows["layer"] == 0) & (rows["correct"] == True) & ~rows["method"].isin(TRIVIAL)]
    return raw, *correlations_of(rows[rows["aggregate"] == "none"].reset_index(drop=True), "funnybirds")


def fig3():
    rows, table = truth_correlations()
    each, means = table.loc["explanation", "spearman"], table.loc["method mean", "spearman"]
    rival, road = each.loc[each.drop(index="arcc")["value"].idxmax()], means.loc["road"]
    value = each["value"].map(number)
    yield (
        f"Over {len(rows):,} explanations, Spearman's correlation with the cosine similarity to the ground truth is "
        f"{value['arcc']} for ARCC, {value['road']} for ROAD, {value['coherency']} for Coherency, {value['adcc']} for "
        f"ADCC and {value['one_minus_average_drop']} for 1 - Average Drop."
    )
    lead = rival[["difference", "low_difference", "high_difference"]].set_axis(["value", "low", "high"])
    yield f"ARCC's lead over the next best is {with_interval(lead)}."
    verb = "excludes" if road["low_difference"] > 0 or road["high_difference"] < 0 else "includes"
    yield (
        f"Over the means of the ten methods it is {number(means.loc['arcc', 'value'])} for ARCC and "
        f"{number(road['value'])} for ROAD. The interval of their difference {verb} 0."
    )


def funnybirds():
    raw, rows, table = bird_correlations()
    each = table.loc["explanation", "spearman"]
    others = each.drop(index="arcc")
    rival = others.loc[others["value"].idxmax()]
    text = {name: with_interval(row) for name, row in each.iterrows()}
    yield (
        f"Over {len(rows):,} explanations of birds by {rows['model'].nunique()} networks, Spearman's correlation with the "
        f"FunnyBirds score is {text['arcc']} for ARCC, {text['road']} for ROAD, {text['coherency']} for Coherency, "
        f"{text['adcc']} for ADCC, {text['one_minus_average_drop']} for 1 - Average Drop and "
        f"{text['one_minus_complexity']} for 1 - Complexity."
    )
    verdicts = [("significantly higher than", rival["low_difference"] > 0)]
    verdicts += [("significantly lower than", rival["high_difference"] < 0), ("not significantly different from", True)]
    verdict = next(text for text, true in verdicts if true)
    yield f"{TITLES[each['value'].idxmax()].rstrip(' ↑')}'s is the highest. ARCC's is {verdict} the best of the others."
    pooled = [number(correlation(rows[score], rows["funnybirds"], "spearman")) for score in ("arcc", "road")]
    yield f"These are means over the networks. Over all explanations together it is {pooled[0]} for ARCC and {pooled[1]} for ROAD."
    means = bird_summary(raw, draws=2).query("layer == 0").groupby(["method", "aggregate"])
    means = means[["score", "completeness"]].mean()
    base = means.xs("none", level="aggregate")
    real, random = base.drop(index=list(TRIVIAL)), base.loc["RandomCAM"]
    fooled = listed(real.index[real["completeness"] < random["completeness"]])
    yield f"RandomCAM has a Completeness of {number(random['completeness'])}, above {fooled}."
    yield (
        f"Its FunnyBirds score is {number(random['score'])}. The best method, {real['score'].idxmax()}, has "
        f"{number(real['score'].max())}."
    )
    gain = (means.xs("product", level="aggregate")["score"] - base["score"]).loc[list(CAMS)]
    above, below = listed(gain.index[gain > 0]), listed(gain.index[gain < 0])
    yield f"RefineCAM's mean score is above Base's for {above}. It is below for {below}."


def refined(rows, score, other="none"):
    pair = rows[(rows["layer"] == 0) & rows["aggregate"].isin([other, "product"]) & rows["method"].isin(CAMS)]
    tests = paired_test(pair, score, ["method"], (other, "product")).set_index("method")
    return tests.loc[[method for method in CAMS if method in tests.index]]


def changed(tests):
    """Return the methods that rise (1) and fall (-1) significantly: by Holm's test and by the interval of the mean."""
    real = (tests["p_holm"] < 0.05) & (tests["low"] * tests["high"] > 0)
    return {sign: tests.index[real & (sign * tests["difference"] > 0)] for sign in (1, -1)}


def networks(book="07_refinecam_benchmark", profile="standard", key="models"):
    return parameters.chosen(profile, [book])[1][book][key]


def shares(rows, column):
    base, product = (rows[(rows["layer"] == 0) & (rows["aggregate"] == name)] for name in ("none", "product"))
    return [part[part["method"].isin(CAMS)].groupby("method")[column].mean() for part in (base, product)]


def table1():
    for model in networks():
        rows = rows_of("table1", model=model)
        changes = {score: changed(refined(rows, score)) for score in ("arcc", "average_precision", "road", "coherency")}
        up, down = ({score: list(both[sign]) for score, both in changes.items()} for sign in (1, -1))
        counts = rows[rows["aggregate"] == "product"].groupby("method")["image"].nunique()
        images = f"{counts['LayerCAM']}" + (f" (ScoreCAM {counts['ScoreCAM']})" if "ScoreCAM" in counts else "")
        yield cells(
            NETWORKS[model], images, *(side[score] for score in ("arcc", "average_precision") for side in (up, down))
        )
        deepest = rows[
            (rows["layer"] == rows["layer"].max()) & (rows["aggregate"] == "none") & rows["method"].isin(CAMS)
        ]
        shallow = rows[(rows["layer"] == 0) & (rows["aggregate"] == "product") & rows["method"].isin(CAMS)]
        deep, product = (part.groupby("method")["arcc"].mean() for part in (deepest, shallow))
        undefined = shallow["pearson"].isna().groupby(shallow["method"]).mean()
        base, refined_mass = (part.get("LayerCAM", float("nan")) for part in shares(rows, "mass_on_truth"))
        yield cells(
            NETWORKS[model],
            up["road"],
            down["coherency"],
            f"{undefined.min():.0%} to {undefined.max():.0%}",
            "-" if pd.isna(base) else f"{number(base)} to {number(refined_mass)}",
            f"{(deep > product).sum()} of {len(deep)}",
        )
    gain = pd.read_csv(STANDARD / "table_claims_numbers.csv")
    gain = gain[gain["claim"] == "RefineCAM beats Base in ARCC"].set_index(["condition", "model"]).sort_index()
    names = ("undefined r 0, ROAD eq. 5", "undefined r one half, ROAD eq. 5")
    for model in networks():
        yield cells(NETWORKS[model], *(with_interval(gain.loc[name, model]) for name in names))


def convention():
    table = pd.read_csv(STANDARD / "table_convention.csv")
    by = table.groupby(["convention", "model"])["spearman"].mean().unstack()
    half, mean = "undefined r one half, ROAD eq. 5", by.mean(axis=1)
    assert winner(table) == RECOMMENDED == "undefined r 0, ROAD eq. 5", "the page says that 0 wins"
    yield (
        f"Averaged over {by.shape[1]} networks, Spearman's correlation of ARCC with the truth is {number(mean[RECOMMENDED])} "
        f"if an undefined r counts as 0, and {number(mean[half])} if it counts as one half."
    )
    better = by.loc[half] > by.loc[RECOMMENDED]
    known = [model for model in NETWORKS if model in by]
    names = [listed(NETWORKS[model] for model in known if better[model] == side) for side in (True, False)]
    yield f"One half agrees better on {names[0]}, 0 on {names[1]}."
    yield f"Halving ROAD gives {mean['undefined r 0, ROAD halved']:.3f} instead of {mean[RECOMMENDED]:.3f}.".replace(
        "0.", "."
    )
    left = table[table["convention"].str.contains("left out")]
    yield f"Leaving these rows out would drop up to {1 - left['scored'].min():.0%} of a network's rows."


def resolution():
    table = pd.read_csv(STANDARD / "table_resolution.csv").set_index(["model", "map"])
    own = table.loc["resnet18"]
    text = own.map(lambda value: number(value) if isinstance(value, float) else value)
    truth, blob, deep = (text.loc[name] for name in ("GroundTruth", "CentreGaussian", "deepest Base maps"))
    assert own.loc["deepest Base maps", "arcc"] > own.loc["GroundTruth", "arcc"], "the page says above"
    yield (
        f"On ResNet18 the deepest layer's Base maps have an ARCC of {deep['arcc']}, above the ground truth's {truth['arcc']}. "
        f"The Gaussian has {blob['arcc']}."
    )
    yield (
        f"With exact removal the ground truth has {truth['exact_road']}, the deepest maps {deep['exact_road']} and the "
        f"Gaussian {blob['exact_road']}."
    )


def truths():
    table = (
        pd.read_csv(STANDARD / "table_fig3a_truths.csv")
        .set_index(["model", "truth", "level", "score"])["value"]
        .sort_index()
    )
    exact = table["resnet18", "exact_road"]
    yield (
        f"On ResNet18 ARCC's correlation with exact removal is {number(exact['pooled', 'arcc'])} and ROAD's is "
        f"{number(exact['pooled', 'road'])}. Within methods they are {number(exact['within methods', 'arcc'])} and "
        f"{number(exact['within methods', 'road'])}."
    )
    lead = pd.read_csv(STANDARD / "table_fig3a_leads.csv")
    for truth, title in (
        ("cosine", "cosine similarity"),
        ("average_precision", "average precision"),
        ("exact_road", "exact removal"),
    ):
        own = lead[lead["truth"] == truth]
        counts = [in_networks(own[own["level"] == level]["shown"]) for level in ("pooled", "within methods")]
        yield f"Networks in which its lead in {title} is shown: {counts[0]} over all explanations, {counts[1]} within methods."


def claims_table():
    return pd.read_csv(STANDARD / "table_claims.csv").set_index("claim")


def audit():
    found = claims_table()
    counts = found["verdict"].value_counts()
    yield (
        f"Of the {len(found)} claims, {counts.get('reproduced', 0)} are reproduced, "
        f"{counts.get('depends on the convention', 0)} depend on the convention and {counts.get('not reproduced', 0)} are "
        "not reproduced."
    )
    for claim in found.index[found["verdict"] == "not reproduced"]:
        yield f"- {claim}"
    table = pd.read_csv(STANDARD / "table_claims_numbers.csv")
    undefined = table[table["condition"] == "paper"].groupby("model")["undefined"].first()
    yield (
        f"The paper's equations as printed leave {undefined.min():.0%} to {undefined.max():.0%} of a network's ARCC scores "
        "undefined."
    )
    table = pd.read_csv(STANDARD / "table_pipeline.csv")
    gain = table[table["claim"] == "RefineCAM beats Base in ARCC"].set_index("model")
    each = " and ".join(f"{with_interval(row)} on {NETWORKS[model]}" for model, row in gain.iterrows())
    yield f"With all of them and its convention at once, RefineCAM's mean gain in ARCC is {each}, on {gain['n'].min()} images."
    defects = pd.read_csv(STANDARD / "table_audit_numbers.csv")
    gain = defects[defects["claim"] == "RefineCAM beats Base in ARCC"].set_index("condition")
    yield (
        f"The mean gain is {with_interval(gain.loc['deep maps'])} with this defect and "
        f"{with_interval(gain.loc['none, few images'])} without it, on the same images and methods."
    )


def test_the_finalists_are_those_of_the_rule():
    rows = planned_rows("13_combinations", experiments.parameter_plan)
    assert tuple(contest.finalists(rows)) == experiments.FINALISTS


MAPS = {"mean": "mean", "soft_and": "soft AND", "product": "product", "deepest": "deepest map", "none": "Base"}
"""Combination -> the pages' words."""


def combinations():
    table = pd.read_csv(STANDARD / "table_combinations.csv").set_index("aggregate").map(number)
    for name, title in MAPS.items():
        row = table.loc[name]
        yield cells(
            title,
            *(row[column] for column in ("average_precision", "worst network", "cosine", "mass_on_truth", "blank")),
        )
    for name, against in (("mean", "product"), ("soft_and", "product"), ("mean", "deepest")):
        row = pd.read_csv(STANDARD / "table_combinations.csv").set_index("aggregate").loc[name]
        yield (
            f"The {MAPS[name]} is better than the {MAPS[against]} in {row[f'> {against}']:.0f} of {row['tests']:.0f} "
            f"networks, and worse in {row[f'< {against}']:.0f}."
        )


def rivals():
    table = pd.read_csv(STANDARD / "combinations_rivals.csv").set_index(["method", "model"])["average_precision"]
    rows = planned_rows("13_combinations", experiments.combination_plan)
    own = rows[(rows["aggregate"] == "mean") & rows["method"].isin(experiments.COMBINED) & (rows["correct"] == True)]
    mean = own.groupby(["model", "method"])["average_precision"].mean().groupby("model").mean()
    names = {"FullGrad": "FullGrad", "the guided filter": "GuidedFilter"}
    for title, name in names.items():
        above = [
            NETWORKS[model] for model in networks("13_combinations", key="networks") if table[name, model] > mean[model]
        ]
        span = f"{number(table[name].min())} to {number(table[name].max())}"
        yield f"{title} has {span}, more than the mean on {listed(above)}"
    yield f"the mean has {number(mean.min())} to {number(mean.max())}"
    best = pd.read_csv(STANDARD / "combinations_networks.csv").set_index(["method", "model"]).loc["ScoreCAM"].iloc[0]
    yield (
        f"On EfficientNet-Lite0 PolyCAM has {number(table['PolyCAM', 'efficientnet_lite0'])}; ScoreCAM's best combination, "
        f"{best['best'].replace('_', ' ')}, has {number(best['highest'])}."
    )


def planned_rows(book, plan, measurement=None):
    """Return the committed rows of a plan, or those of one measurement, with the notebook's own parameters."""
    shards = experiments.planned(plan, parameters.chosen("standard", [book])[1][book])
    found = look_up([shard for shard in shards if measurement in (None, shard.measurement)])
    assert not found.missing, f"rows of {plan.__name__} that are not committed"
    return found.rows


@functools.cache
def final():
    return contest.rated(planned_rows("13_combinations", experiments.finalist_plan))


@functools.cache
def final_counts():
    """How often the mean of the layers is better, by measure."""
    return contest.outcome(contest.contests(final(), contest.MEASURES)).xs("mean", level="aggregate")


def test_the_default_won_on_validation_images():
    assert contest.candidates(planned_rows("13_combinations", experiments.parameter_plan)).idxmax() == BEST


def finals():
    means = contest.averages(final()).groupby(["aggregate", "score"])["mean"].mean().unstack()
    measures = ("arcc_0", "arcc_one_half", "arcc_left_out", "road", "exact_road", "blank")
    for name, title in MAPS.items():
        yield cells(title, *(number(means.loc[name, measure]) for measure in measures))
    titles = {
        "arcc_0": "ARCC",
        "arcc_left_out": "ARCC without undefined r",
        "road": "ROAD",
        "exact_road": "exact removal",
    }
    for measure, title in titles.items():
        row = final_counts().loc[measure]
        yield (
            f"By {title} the mean is better than the product in {row['> product']} of {row['tests']} networks and worse in "
            f"{row['< product']}; against the deepest map it is {row['> deepest']} and {row['< deepest']}."
        )


def scores_compared():
    book, values = "14_scores", parameters.chosen("standard", ["14_scores"])[1]["14_scores"]
    parts = [planned_rows(book, experiments.choice_plan, name) for name in ("scores", "faithfulness")]
    choice = ratings.pairs(ratings.rated(*parts))
    table = ratings.rated(
        planned_rows(book, experiments.finalist_plan), planned_rows(book, experiments.faithfulness_plan)
    )
    bootstrap = {name: values[name] for name in ("draws", "seed")}
    yield f"They chose {' and '.join(title_of(name) for name in ratings.best_pair(choice))}."
    for model, row in ratings.checked(table, choice, **bootstrap).iterrows():
        lead = with_interval({"value": row["lead"], "low": row["low"], "high": row["high"]})
        yield (
            f"On test images of {NETWORKS[model]} this pair has {number(row['chosen pair'])} and ARCC {number(row['ARCC'])}; "
            f"the difference is {lead}."
        )
        yield f"The best single score of the validation images, {title_of(ratings.best_score(choice))}, has {number(row['chosen score'])}."
    values = (
        correlated(table, ratings.ALL, **bootstrap).set_index(["level", "truth", "score", "model"])["value"].unstack()
    )
    kinds = list(itertools.product(("pooled", "within methods"), ("average_precision", "exact_road")))
    for score in ratings.ALL:
        each = [number(values.loc[(level, truth, score), model]) for model in values for level, truth in kinds]
        yield cells(title_of(score), *each)


TWIN = {"objects": "A, objects", "badges": "B, badges"}


def scene_values():
    return parameters.chosen("standard", ["16_scene_scores"])[1]["16_scene_scores"]


@functools.cache
def scene_certificates():
    return scene_tables.certified(planned_rows("15_scenes", experiments.certificate_plan))


def scenes():
    tested, every = scene_certificates(), scene_tables.EVERY
    shares = scene_tables.pass_shares(tested).set_index(["model", "twin", "condition", "part"])["mean"].sort_index()
    for (model, twin), card in scene_tables.cards(tested["model"].unique()).items():
        test, own = card["test"], shares[model, twin, every]
        accuracy = test["accuracy"], test["hidden"]["0"]["accuracy"], test["size"]["small"]["accuracy"]
        yield cells(f"{NETWORKS[model]} {TWIN[twin]}", *(f"{100 * a:.1f}%" for a in accuracy))
        yield cells(f"{NETWORKS[model]} {TWIN[twin]}", *(f"{own[part]:.0%}" for part in scene_tables.PARTS))
    row = scene_tables.fresh_failures(tested).set_index("model").loc["all"]
    yield (
        f"{row['failures']} of {row['fresh redraws']:,} changed the prediction, "
        f"{row['share']:.2%}, with a 95 % upper bound of {row['upper bound']:.2%}."
    )
    layers = scene_tables.by_layer(tested).loc["efficientnet_lite0", "objects"]
    hidden = layers.loc["occluder"]
    yield (
        f"In the scenes with an occluder, A's prediction stays in {hidden['if all are drawn again']:.0%} of C1's redraws, and "
        f"in {hidden['prediction stays']:.0%} if the occluder alone is drawn again."
    )
    change = scene_tables.after_redraws(tested)["change"].groupby("layer_redrawn").agg(lambda c: c.abs().max())
    yield (
        f"Another badge changes A's accuracy by {100 * change['badge']:.1f} points, and another object B's by "
        f"{100 * change['object']:.1f}."
    )


def scene_correlations():
    """Spearman's correlation of each score with each truth over all conditions, averaged over the two networks."""
    every = pd.read_csv(STANDARD / "table_scene_factors.csv")
    every = every.query("level == 'pooled' and condition == @scene_tables.EVERY")
    return every.groupby(["score", "truth"])["value"].mean().unstack()[list(scene_tables.TRUTHS)]


def scene_leads(truth, level="pooled"):
    """ARCC's lead over the best other score over all conditions, network by network."""
    table = pd.read_csv(STANDARD / "table_scene_leads.csv")
    return table.query("level == @level and condition == @scene_tables.EVERY and truth == @truth")


def scene_scores():
    twins = pd.read_csv(STANDARD / "table_scene_twins.csv").groupby("score")[["mean twin test", "mean ladder"]].mean()
    for score, row in scene_correlations().join(twins).loc[list(COMPARED)].iterrows():
        yield cells(title_of(score), *(number(value) for value in row))
    for truth, title in scene_tables.TRUTHS.items():
        yield cells(title, *(in_networks(scene_leads(truth, level)["shown"]) for level in ("pooled", "within methods")))
    close = pd.read_csv(STANDARD / "table_scene_imputers.csv")
    close = close[close["measure"] == scene_tables.IMPUTER_MEASURES[1]].set_index(["maps", "model", "imputer"])["mean"]
    data = [f"efficientnet_lite0, {name}" for name in ("objects", "badges", "shapes")]
    for name in scene_tables.IMPUTERS:
        yield cells(name, *(number(close[maps, model, name]) for maps in scene_tables.IMPUTER_MAPS for model in data))


@functools.cache
def scene_finals():
    values = scene_values()
    rows = planned_rows("16_scene_scores", experiments.scenes_plan)
    own = scene_tables.only_certified(rows, scene_certificates(), values["part"])
    return contest.rated(scene_tables.by_base_scene(own[own["method"].isin(CAMS)]))


@functools.cache
def scene_means():
    return contest.averages(scene_finals()).groupby(["aggregate", "score"])["mean"].mean().unstack()


def scene_combinations():
    for name, title in MAPS.items():
        row = scene_means().loc[name, ["average_precision", "exact_road", "road", "arcc_0", "mass_on_truth", "blank"]]
        yield cells(title, *(number(value) for value in row))


DATA = ("shapes", "birds", "photographs", "scenes")


def better_in(row, against):
    """Say in how many networks a combination is better than another map, such as "2 of 4 (worse in 1)"."""
    worse = f" (worse in {row[f'< {against}']:.0f})" if row[f"< {against}"] else ""
    return f"{row[f'> {against}']:.0f} of {row['tests']:.0f}{worse}"


def worse_in(outcomes):
    """Say in how many networks a difference is shown, such as "2 of 14 (worse in 1)"."""
    return in_networks(outcomes).replace("opposite", "worse")


def method_tests():
    """The tests of the mean of the layers, method by method and network by network."""
    return pd.read_csv(STANDARD / "contest_data_methods.csv").query("aggregate == 'mean'").sort_values("method")


def data_counts():
    """How often a combination is better than another map, by data set, measure and combination."""
    return pd.read_csv(STANDARD / "contest_data_counts.csv").set_index(["data", "measure", "aggregate"]).sort_index()


def contest_data():
    means = pd.read_csv(STANDARD / "contest_data.csv").set_index(["data", "aggregate"])
    for data in DATA:
        for name, title in MAPS.items():
            row = means.loc[(data, name)]
            values = ["-" if pd.isna(row[m]) else number(row[m]) for m in (*contest.SEEN, "blank")]
            yield cells(f"{data}, {row['networks']:.0f}", title, *values)
    counts = data_counts()
    for data in DATA:
        rows = [counts.loc[key] if (key := (data, m, "mean")) in counts.index else None for m in contest.SEEN[:3]]
        yield cells(data, *("-" if row is None else better_in(row, a) for a in ("product", "deepest") for row in rows))
    lowest = []
    for data in DATA:
        rows = counts.loc[[(data, convention, "mean") for convention in contest.ARCC]]
        lowest.append((rows["> product"].min(), rows["tests"].max(), rows["< product"].max()))
    yield (
        f"Over six of them, the mean is better than the product in at least {listed(f'{a:.0f} of {n:.0f}' for a, n, _ in lowest)} "
        f"networks, and worse in at most {listed(f'{b:.0f}' for *_, b in lowest)}."
    )
    for method, part in method_tests().groupby("method", sort=False):
        kinds = itertools.product(("product", "deepest"), ("arcc_0", "road"))
        own = part.set_index(["against", "measure"])["shown"]
        yield cells(method, *(worse_in(own[kind]) for kind in kinds))


def rounding():
    table = pd.read_csv(STANDARD / "table_rounding.csv")
    table["moved"] = (table["share"] * table["rows"]).round().astype(int)
    networks = table.groupby("model", sort=False)[["moved", "rows"]].sum()
    each = ", ".join(f"{r.moved} of {r.rows} on {NETWORKS[name]}" for name, r in networks.iterrows())
    product = table[table["aggregate"] == "product"]
    yield (
        f"On {table['rows'].max()} images per network, {table['moved'].sum()} of {table['rows'].sum()} rows change by more "
        f"than .001: {each}."
    )
    yield f"Of RefineCAM's rows, {product['moved'].sum()} of {product['rows'].sum()} change."


def photographs():
    for model in networks(profile="photographs"):
        rows = rows_of("table1", "photographs", model)
        arcc = refined(rows, "arcc")
        up, down = (listed(changed(arcc)[sign]) for sign in (1, -1))
        n, few = (rows[rows["method"] == method]["image"].nunique() for method in ("LayerCAM", "ScoreCAM"))
        yield (
            f"On {NETWORKS[model]} it raises ARCC for {up} and lowers it for {down}, on {n} photographs ({few} for ScoreCAM)."
        )


def outcome(name, profile="standard"):
    """Return in how many networks a claim is shown under our convention, and under how many conventions it holds."""
    table = pd.read_csv(paths.REFERENCE / profile / f"{name}.csv").set_index("convention")
    table = (table.replace({"True": 1, "False": 0}).astype(int)).loc[list(EVERY)]
    holds = {str(convention): bool(share > 0.5) for convention, share in (table == 1).mean(axis=1).items()}
    return in_networks(table.loc[RECOMMENDED]), f"{sum(holds.values())} of {len(holds)}", word_of(holds, 100)


TITLE = {
    "a trivial map beats the average CAM in Average Drop": "Trivial maps fool Average Drop (Fig. 1)",
    "a trivial map beats the average CAM in ADCC": "Trivial maps fool ADCC (Fig. 1)",
    "no trivial map beats the average CAM in ARCC": "Trivial maps do not fool ARCC (Fig. 1)",
    "ARCC agrees with the truth better than any other score": "ARCC agrees best with the ground truth (Fig. 3a)",
    "ROAD is blind to magnitude": "ROAD does not see the values of a map (Fig. 4)",
    "ARCC is not blind to magnitude": "ARCC sees them (Fig. 4)",
    "RefineCAM beats Base in ARCC": "RefineCAM raises the mean ARCC of five methods (Table 1)",
    "the product beats the geometric mean": "The product has a higher ARCC than the geometric mean (Table 2)",
    "the product beats the inverse-exp mean": "The product has a higher ARCC than the inverse-exponential mean (Table 2)",
}
"""Claim of the audit -> the README's words."""


def summary():
    """The lines of the README's table."""
    table = pd.read_csv(STANDARD / "table_claims_numbers.csv")
    own = table[table["condition"] == RECOMMENDED].set_index(["claim", "model"])["value"]
    found = claims_table()
    for claim, title in TITLE.items():
        row = found.loc[claim]
        each = ", ".join(
            f"{own[claim, model]:+.2f}".replace("0.", ".")
            for model in networks("09_conventions_audit")
            if pd.notna(own[claim, model])
        )
        yield (
            f"| {title} | {each} | {row['shown in networks']} | {row['conventions under which it holds']} | "
            f"**{row['verdict']}** |"
        )
    shown, holds, word = outcome("table_fig3b_outcomes")
    each = bird_correlations()[2].loc["explanation", "spearman"]["value"]
    lead = each["arcc"] - each.drop(index="arcc").max()
    yield (
        f"| ARCC agrees best with the FunnyBirds score (Fig. 3b), on birds | {lead:+.2f} | {shown} | {holds} | **{word}** |"
    ).replace("0.", ".")
    shown, holds, word = outcome("table1_outcomes", "photographs")
    gains = []
    for model in networks(profile="photographs"):
        gains.append(refined(rows_of("table1", "photographs", model), "arcc")["difference"].mean())
    each = ", ".join(f"{gain:+.2f}".replace("0.", ".") for gain in gains)
    yield f"| RefineCAM raises ARCC of most methods, on photographs (Table 1) | {each} | {shown} | {holds} | **{word}** |"
    counts = data_counts()
    assert not pd.read_csv(STANDARD / "contest_data.csv").set_index("aggregate").loc["mean", "blank"].any(), (
        "never blank"
    )
    road = {data: counts.loc[(data, "road", "mean")] for data in ("shapes", "birds", "photographs")}
    better = listed(f"{row['> product']:.0f} of {row['tests']:.0f} networks for {data}" for data, row in road.items())
    scenes = counts.loc[("scenes", "exact_road", "mean")]
    yield (
        f"It is never blank. By ROAD it is shown to be better than the product on {better}, and by exact removal on "
        f"{scenes['> product']:.0f} of {scenes['tests']:.0f} for scenes"
    )
    own = method_tests().query("measure == 'road' and against == 'deepest'").groupby("method")["shown"]
    layer_cam, grad_cam = (worse_in(own.get_group(method)) for method in ("LayerCAM", "GradCAM++"))
    yield (
        f"With LayerCAM the mean is shown to be better than the deepest map on {layer_cam} networks, with GradCAM++ on "
        f"{grad_cam}"
    )
    exact = scene_correlations()["exact_road"]
    counts = [in_networks(scene_leads("exact_road", level)["shown"]) for level in ("pooled", "within methods")]
    yield (
        f"Over all explanations {title_of(exact.idxmax())} has the highest correlation with exact removal, "
        f"{number(exact.max())}; its lead is shown on {counts[0]} networks, and within methods on {counts[1]}"
    )


FINDINGS = [
    convention,
    fig1,
    stress,
    resolution,
    fig3,
    truths,
    funnybirds,
    table1,
    combinations,
    rivals,
    finals,
    contest_data,
    scores_compared,
    scenes,
    scene_scores,
    scene_combinations,
    rounding,
    audit,
    photographs,
]


def page(name):
    return (paths.ROOT / name).read_text(encoding="utf-8")


def words(text):
    return " ".join(text.replace("**", "").split())


def texts():
    """Yield the functions above with the page that must state what they yield."""
    yield [summary], words(re.search(r"## What we found(.*?)\n## ", page("README.md"), re.DOTALL)[1])
    yield FINDINGS, words(page("docs/findings.md"))


@pytest.mark.parametrize("finding", [summary, *FINDINGS], ids=lambda finding: finding.__name__)
def test_the_pages_state_what_was_found(finding):
    (text,) = (text for findings, text in texts() if finding in findings)
    missing = [sentence for sentence in finding() if words(sentence) not in text]
    assert not missing


def test_the_findings_have_no_other_number_of_a_result():
    """Every decimal and percentage there is in a tested sentence."""
    for findings, text in texts():
        for sentence in (sentence for finding in findings for sentence in finding()):
            text = text.replace(words(sentence), "")
        text = re.sub(r"\]\([^)]*\)|`[^`]*`", "", text)
        assert not re.findall(r"-?\d*\.\d+|\d+ ?%", text)


def test_the_index_has_the_runtimes_of_the_last_accepted_run():
    books = json.loads((paths.REFERENCE / "standard" / "manifest.json").read_text())["notebooks"]
    for name, entry in books.items():
        row = re.search(rf"\[{name.replace('_', ' ', 1)}\].*\| (\d+) s \|", page("README.md"))
        assert row, f"{name} is not in the README's index"
        assert int(row[1]) == pytest.approx(entry["seconds"], abs=0.5)


def test_hand_measured_numbers_are_those_written_down():
    measured = json.loads(page("docs/measured.json"))
    m = measured["installation"]
    install = words(page("docs/installation.md"))
    for sentence in (
        f"downloads {m['download_gb']} GB ({m['cuda_gb']} GB are CUDA's libraries)",
        f"takes {m['disk_gb']} GB of disk and took {m['seconds']} s",
        f"beside a CPU build of torch `.venv` takes {m['venv_beside_cpu_torch_gb']} GB",
        f"compiles for about {measured['imputation_compiles_seconds']} s",
    ):
        assert sentence in install
    assert f"takes {measured['reproduce_minutes']} minutes on two cores, not counting" in words(page("README.md"))


def test_the_speed_is_that_of_the_committed_benchmark():
    rows = json.loads(page("docs/benchmark.json"))["rows"]
    six = {row["network"]: row["ratio"][0] for row in rows if row["part"] == "six" and row["threads"] == 1}
    sentence = f"{six['efficientnet_lite0']:.0f} times faster than public code on EfficientNet-Lite0 and {six['resnet18']:.0f} times on ResNet18"
    assert sentence in words(page("README.md"))
    assert all(row["agrees"] for row in rows)


def test_the_networks_have_the_accuracy_of_their_cards():
    rows = page("docs/training.md").splitlines()
    for name in MODELS:
        card = json.loads(checkpoint_path(name).with_suffix(".json").read_text())
        fresh, hours = card["fresh"], card["seconds_in_all"] / 3600
        cells = (
            f"| {100 * fresh['accuracy']:.1f} % | {100 * fresh['size']['small']['accuracy']:.1f} % | {hours:.1f} h |"
        )
        (row,) = (row for row in rows if row.startswith(f"| {NETWORKS[name]} |"))
        assert cells in row


def test_the_networks_of_the_scenes_have_the_accuracy_of_their_cards():
    rows = page("docs/training.md").splitlines()
    for (model, twin), card in scene_tables.cards(["efficientnet_lite0"]).items():
        fresh = card["fresh"]
        parts = fresh, fresh["hidden"]["0"], fresh["hidden"]["50"], fresh["size"]["small"]
        each = [f"{100 * part['accuracy']:.1f} %" for part in parts]
        assert cells(f"{NETWORKS[model]}, {twin}", *each, f"{card['seconds'] / 3600:.1f} h") in rows


def test_every_command_of_the_pages_names_existing_notebooks_and_parameters():
    commands = re.findall(r'make reproduce ARGS="([^"]*)"', page("README.md"))
    assert len(commands) > 2
    for command in commands:
        given = [word for word in shlex.split(command) if word != "--fresh"]  # it would run, despite --list
        assert reproduce.main([*given, "--list"]) == 0, command
    assert reproduce.main(["--only", "00", "--set", "own_image=x", "--list"]) == 2, "--list checks parameters"
