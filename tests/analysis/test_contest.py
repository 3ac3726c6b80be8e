"""The choice of the combinations' parameters follows its rule."""

import itertools

import numpy as np
import pandas as pd

from refinecam_lib.analysis.contest import (
    MEASURES,
    SEEN,
    averages,
    candidates,
    chosen,
    contenders,
    contests,
    data_contests,
    data_means,
    data_outcome,
    finalists,
    joined,
    outcome,
    ranking,
    rated,
    scoreboard,
)
from refinecam_lib.analysis.grids import combination_dots, data_dots
from refinecam_lib.refinement import AGGREGATES, COMBINATIONS


def rows(values):
    """Rows with the same average precision for each network and method, by aggregate."""
    return pd.DataFrame(
        [
            {
                "layer": 0,
                "aggregate": a,
                "model": m,
                "method": k,
                "correct": True,
                "average_precision": values.get(a, 0.5),
            }
            for a, m, k in itertools.product(COMBINATIONS, ("a", "b"), ("x", "y"))
        ]
    )


def test_the_highest_average_precision_wins_in_each_family():
    found = chosen(rows({"soft_and_0.05": 0.6, "power_mean_0.75": 0.51, "mean": 0.9}))
    assert found == {"soft_and": "soft_and_0.05", "power_mean": "power_mean_0.75"}


def test_the_best_of_each_kind_are_the_finalists():
    assert finalists(rows({"soft_and_0.05": 0.6, "power_mean_0.75": 0.51, "product": 0.9})) == [
        "power_mean_0.75",
        "soft_and_0.05",
    ]
    assert finalists(rows({"mean_x_deepest": 0.8, "tanh_max": 0.7})) == ["tanh_max", "mean_x_deepest"]
    deepest = rows({"soft_and_0.1": 1.0}).assign(layer=3)
    assert finalists(pd.concat([rows({"soft_and_0.2": 0.6}), deepest]))[1] == "soft_and_0.2", "deep maps do not compete"


def test_methods_networks_and_wrong_images_have_their_weight():
    table = rows({"soft_and_0.1": 0.6})
    more = pd.concat([table] + [table[(table["model"] == "a") & (table["aggregate"] == "soft_and_0.1")]] * 9)
    assert candidates(more)["soft_and_0.1"] == candidates(table)["soft_and_0.1"]
    wrong = rows({"soft_and_0.2": 1.0}).assign(correct=False)
    assert chosen(pd.concat([table, wrong]))["soft_and"] == "soft_and_0.1"


def field(images=40):
    """Rows in which mean beats the product everywhere, the deepest map is best, and Base has blank maps."""
    generator, records = np.random.default_rng(0), []
    level = {"none": 0.2, "product": 0.4, "mean": 0.6}
    for model, method, image in itertools.product(("a", "b"), ("x", "y"), range(images)):
        for layer, aggregate in [(0, "none"), (3, "none"), *((0, name) for name in (*AGGREGATES, *COMBINATIONS))]:
            value = 0.8 if layer else level.get(aggregate, 0.4)
            records.append(
                {
                    "model": model,
                    "method": method,
                    "image": image,
                    "layer": layer,
                    "aggregate": aggregate,
                    "correct": True,
                }
                | {name: value + generator.normal(0, 0.01) for name in ("average_precision", "cosine", "mass_on_truth")}
                | {"status": "constant" if aggregate == "none" and not layer and image < 10 else "ok"}
            )
    return pd.DataFrame(records)


def test_the_field_has_each_combination_once():
    rows = contenders(field(2), {"soft_and": "soft_and_0.1", "power_mean": "power_mean_0.5"})
    assert not rows.duplicated(["model", "method", "image", "aggregate"]).any()
    assert set(rows["aggregate"]) == {"none", "deepest", *AGGREGATES, "mean", "tanh_max", "mean_x_deepest"} | {
        "soft_and",
        "power_mean",
    }


def test_the_ranking_counts_what_is_shown_against_the_product_and_the_deepest_map():
    rows = contenders(field(), {"soft_and": "soft_and_0.1", "power_mean": "power_mean_0.5"})
    tests = contests(rows)
    assert len(tests) == (9 + 8) * 2 and (tests["p_holm"] >= tests["p"]).all()
    table = ranking(rows, tests)
    assert list(table.index[:2]) == ["deepest", "mean"]
    assert table.loc["mean", ["> product", "< product", "> deepest", "< deepest", "tests"]].tolist() == [2, 0, 0, 2, 2]
    assert len(contests(rows, by=["model", "method"])) == (9 + 8) * 4
    assert table.loc["none", "< product"] == 2 and table.loc["none", "blank"] == 0.25
    means = rows.groupby(["model", "method", "aggregate"], as_index=False)["average_precision"].mean()
    axis = combination_dots(means.rename(columns={"average_precision": "mean"}), table["blank"]).axes[0]
    assert "Base (25%)" in [label.get_text() for label in axis.get_yticklabels()]
    few = contests(rows[rows["image"] < 20])
    assert (few["shown"] == 0).all(), "no difference is shown on fewer than 30 images"


def scores_of(table):
    """The same rows with what scores are computed from. The product's r is undefined on every other image."""
    blank = (table["aggregate"] == "product") & (table["image"] % 2 == 0)
    probabilities = {
        "probability": 0.9,
        "probability_masked": 0.5,
        "mean_activation": 0.2,
        "morf_20": 0.1,
        "lerf_20": 0.6,
    }
    exact = {"exact_morf_20": 0.1, "exact_lerf_20": np.where(table["model"] == "a", 0.4, np.nan)}
    return table.assign(**probabilities, **exact, pearson=np.where(blank, np.nan, 0.6), status="ok")


def test_finalists_are_rated_under_every_convention():
    table = rated(scores_of(field()))
    assert set(table["aggregate"]) == {"none", "deepest", *AGGREGATES, "mean", "tanh_max", "mean_x_deepest", "soft_and"}
    mean = table[table["aggregate"] == "product"].groupby("model")[list(MEASURES)].mean().loc["a"]
    full, half = 3 / (1 / 0.8 + 1 / 0.8 + 1 / 0.5), 3 / (1 / 0.5 + 1 / 0.8 + 1 / 0.5)
    assert np.allclose(mean[["arcc_0", "arcc_one_half", "arcc_left_out"]], [full / 2, (full + half) / 2, full])
    assert np.allclose(mean[["road", "exact_road"]], [0.5, 0.3])
    board = scoreboard(averages(table))
    assert board.loc[("a", "product"), "arcc_left_out"] == f"{full:.2f} [{full:.2f}, {full:.2f}]"
    assert board.loc[("b", "product"), "exact_road"] == "" and set(board["n"]) == {40}
    tests = contests(table, ["arcc_0", "exact_road"])
    assert set(tests[tests["measure"] == "exact_road"]["model"]) == {"a"}, "b has no exact removal"
    counts = outcome(tests)
    assert counts.loc[("arcc_0", "mean"), ["> product", "< product", "> deepest", "tests"]].tolist() == [2, 0, 0, 2]
    assert (counts.loc["exact_road", "tests"] == 1).all()
    one = tests[tests["measure"] == "exact_road"]
    assert (one["p_holm"] == 1).all() and not one["shown"].any()


def test_explanations_without_a_value_of_one_map_count_for_neither():
    rows = contenders(field(), {"soft_and": "soft_and_0.1", "power_mean": "power_mean_0.5"})
    rows.loc[(rows["method"] == "x") & (rows["aggregate"] == "product"), "average_precision"] = np.nan
    rows.loc[(rows["method"] == "x") & (rows["aggregate"] == "mean"), "average_precision"] = 0.0
    tests = contests(rows).set_index(["against", "aggregate", "model"])["difference"]
    assert np.isclose(tests["product", "mean", "a"], 0.6 - 0.4, atol=0.01)
    assert np.isclose(tests["deepest", "mean", "a"], 0.3 - 0.8, atol=0.01), "here both have values"


def test_data_sets_stand_beside_each_other_with_what_they_have():
    shapes = scores_of(field())
    shapes["average_precision"] -= 0.2 * (shapes["model"] == "b")
    shapes = shapes[(shapes["model"] == "a") | (shapes["image"] < 34)]
    photographs = shapes.drop(
        columns=["average_precision", "cosine", "mass_on_truth", "exact_morf_20", "exact_lerf_20"]
    )
    photographs = photographs[photographs["model"] == "a"]
    rows = joined({"shapes": shapes.assign(condition="base"), "photographs": photographs})
    assert set(rows["model"]) == {"shapes: a", "shapes: b", "photographs: a"}
    means = data_means(averages(rows))
    assert means["networks"].groupby("data").first().to_dict() == {"shapes": 2, "photographs": 1}
    assert means.loc[("photographs", "mean"), ["average_precision", "exact_road"]].isna().all()
    assert np.isclose(means.loc[("shapes", "mean"), "average_precision"], 0.5, atol=0.003), "networks count alike"
    assert np.isclose(*means.loc[[("photographs", "mean"), ("shapes", "mean")], "arcc_0"])
    tests = data_contests(rows, ["arcc_0", "average_precision"])
    alone = contests(rows[rows["model"] != "photographs: a"], ["arcc_0", "average_precision"])
    assert tests[tests["model"] != "photographs: a"]["p_holm"].tolist() == alone["p_holm"].tolist()
    counts = data_outcome(tests)
    assert counts.loc[("shapes", "average_precision", "mean"), ["> product", "tests"]].tolist() == [2, 2]
    assert counts.loc[("photographs", "arcc_0", "mean"), ["> product", "tests"]].tolist() == [1, 1]
    assert ("photographs", "average_precision") not in counts.index.droplevel("aggregate")
    figure = data_dots(averages(rows), SEEN)
    assert next(axis.get_title() for axis in figure.axes).startswith("ARCC") and len(figure.axes) == len(SEEN)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["shapes", "photographs"]
