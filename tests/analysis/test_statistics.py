"""Compare intervals, tests and correlations with scipy and with known cases."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from refinecam_lib.analysis import statistics
from refinecam_lib.analysis.statistics import bootstrap_interval, correlation, correlations, holm, paired_test, summary
from refinecam_lib.errors import InputError


def test_bootstrap_interval_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2, size=80)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", random_state=1).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(values), (theirs.low, theirs.high), atol=0.04)
    assert bootstrap_interval(np.append(values, np.nan)) == bootstrap_interval(values)
    with pytest.raises(InputError, match="Expected at least one finite value"):
        bootstrap_interval([np.nan])


def test_summary_counts_and_averages():
    rows = pd.DataFrame({"method": ["a", "a", "b", "b"], "arcc": [0.2, 0.4, 1.0, np.nan]})
    table = summary(rows, "arcc", ["method"])
    assert table.loc["a", "mean"] == pytest.approx(0.3) and table.loc["a", "std"] == pytest.approx(0.1)
    assert list(table["n"]) == [2, 1]


def test_rows_of_several_networks_are_drawn_by_image():
    values = np.random.default_rng(0).random(30)
    alone = bootstrap_interval(values)
    assert bootstrap_interval(np.tile(values, 4), np.tile(np.arange(30), 4)) == pytest.approx(alone)
    assert np.isnan(bootstrap_interval([0.3, 0.5], [7, 7])).all(), "one image gives no interval"
    low, high = bootstrap_interval(np.tile(values, 4))
    assert high - low < 0.6 * (alone[1] - alone[0])


def test_paired_test_finds_a_planted_gain_and_no_other():
    generator = np.random.default_rng(0)
    rows = []
    for method, gain in (("better", 0.1), ("same", 0.0)):
        for image in range(40):
            base = generator.random()
            rows.append([method, f"i{image}", "none", base])
            rows.append([method, f"i{image}", "product", base + gain + 0.05 * generator.standard_normal()])
    table = paired_test(
        pd.DataFrame(rows, columns=["method", "image", "aggregate", "arcc"]), "arcc", ["method"], ("none", "product")
    ).set_index("method")
    assert table.loc["better", "p_holm"] < 0.001 and table.loc["better", "effect"] > 0.8
    assert table.loc["better", "low"] < 0.1 < table.loc["better", "high"]
    assert table.loc["same", "p_holm"] > 0.05
    assert list(table["n"]) == [40, 40]


def test_paired_test_refuses_several_networks_in_one_group():
    rows = pd.DataFrame(
        [[model, i, aggregate, i / 9] for model in "ab" for i in range(3) for aggregate in ("none", "product")],
        columns=["model", "image", "aggregate", "arcc"],
    ).assign(method="m")
    assert len(paired_test(rows, "arcc", ["model", "method"], ("none", "product"))) == 2
    with pytest.raises(InputError, match="Expected one row per image and aggregate in a group by method, got several"):
        paired_test(rows, "arcc", ["method"], ("none", "product"))


def test_paired_test_keeps_groups_without_a_pair():
    rows = pd.DataFrame(
        [(m, i, a, (i + (a == "product")) / 10) for m in "xyz" for i in range(5) for a in ("none", "product")],
        columns=["method", "image", "aggregate", "arcc"],
    )
    rows.loc[rows["method"] == "y", "arcc"] = np.nan
    table = paired_test(rows, "arcc", ["method"], ("none", "product")).set_index("method")
    assert table["n"].to_dict() == {"x": 5, "y": 0, "z": 5}
    assert table.loc["y"].drop(["n", "nonzero"]).isna().all()
    assert table.loc["x", "p_holm"] == pytest.approx(2 * table.loc["x", "p"])  # two tests, not three
    nothing = paired_test(rows.assign(arcc=np.nan), "arcc", ["method"], ("none", "product"))
    assert len(nothing) == 3 and (nothing["n"] == 0).all()
    with pytest.raises(InputError, match="Expected rows to average arcc over, got none"):
        summary(rows[:0], "arcc", ["method"])


def test_correlations_leave_out_networks_on_which_a_score_has_none():
    rows = planted_rows(("a", "b"))
    alone = correlations(rows[rows["model"] == "a"], ["arcc", "road"], draws=20)
    rows.loc[rows["model"] == "b", "road"] = 0.5  # a constant has no correlation
    assert correlations(rows, ["arcc", "road"], draws=20)["n"].tolist() == [150] * 12
    pd.testing.assert_series_equal(correlations(rows, ["arcc", "road"], draws=20)["value"], alone["value"])
    rows["road"] = 0.5
    both = correlations(rows, ["arcc", "road"], draws=20).set_index("score")
    assert both.loc["road", "value"].isna().all() and both.loc["arcc", "value"].notna().all()
    assert (both["n"] == len(rows)).all()


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    np.testing.assert_allclose(holm([0.04, np.nan, 0.01]), [0.04, np.nan, 0.02])


def test_correlations_match_scipy():
    x, y = np.random.default_rng(0).random((2, 30))
    assert correlation(x, y, "spearman") == pytest.approx(scipy.stats.spearmanr(x, y)[0])
    assert correlation(x, x**3, "kendall") == pytest.approx(1)
    assert np.isnan(correlation(x, np.ones(30)))
    with pytest.raises(InputError, match="unknown correlation"):
        correlation(x, y, "peerson")


def planted_rows(models=("a",), n=30):
    generator, rows = np.random.default_rng(1), []
    for model in models:
        for image in range(n):
            for method in range(5):
                truth = generator.random() + method / 4
                arcc, road = truth + 0.1 * generator.standard_normal(), truth + 1.5 * generator.standard_normal()
                rows.append(
                    {"model": model, "image": image, "method": method, "cosine": truth, "arcc": arcc, "road": road}
                )
    return pd.DataFrame(rows)


def test_correlations_are_those_of_scipy_and_their_difference_has_an_interval():
    rows = planted_rows()
    table = correlations(rows, ["arcc", "road"], draws=100).set_index(["level", "kind", "score"])
    expected = scipy.stats.kendalltau(rows["road"], rows["cosine"])[0]
    assert table.loc[("explanation", "kendall", "road"), "value"] == pytest.approx(expected)
    means = rows.groupby("method")[["road", "cosine"]].mean()
    expected = scipy.stats.pearsonr(means["road"], means["cosine"])[0]
    assert table.loc[("method mean", "pearson", "road"), "value"] == pytest.approx(expected)
    row = table.loc[("explanation", "spearman", "road")]
    assert (
        0 < row["low_difference"] < row["difference"] < row["high_difference"]
        and row["low"] < row["value"] < row["high"]
    )


def test_a_single_image_has_no_interval():
    rows = planted_rows()
    table = correlations(rows[rows["image"] == rows["image"].iloc[0]], ["arcc", "road"], draws=20)
    assert (
        table["value"].notna().any() and table[["low", "high", "low_difference", "high_difference"]].isna().all().all()
    )


def test_correlations_average_over_models_and_leave_out_the_undefined():
    rows = planted_rows(("a", "b"))
    rows.loc[rows["model"] == "b", "arcc"] *= -1
    rows.loc[0, "road"] = np.nan
    table = correlations(rows, ["arcc", "road"], draws=3).set_index(["level", "kind", "score"])
    row = table.loc[("explanation", "pearson", "arcc")]
    assert abs(row["value"]) < 0.1 and row["std"] > 0.9
    assert table.loc[("explanation", "pearson", "road"), "n"] == len(rows) - 1
    with pytest.raises(InputError, match="unknown reference 'adcc'"):
        correlations(rows, ["arcc", "road"], reference="adcc")
    with pytest.raises(InputError, match="Expected rows in which cosine and every score are defined"):
        correlations(rows.assign(road=np.nan), ["arcc", "road"])


@pytest.mark.parametrize("n", [2, 3, 12, statistics.FEW, statistics.FEW + 1])
def test_all_columns_at_once_give_the_correlations_of_each(n):
    table = np.random.default_rng(n).normal(size=(n, 5)).round(1)  # with ties
    table[:, 3] = 1.0
    tests = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau}
    for kind, test in tests.items():
        found = statistics.with_first(table, kind)
        alone = [np.nan if n < 3 or np.ptp(column) == 0 else test(table[:, 0], column)[0] for column in table[:, 1:].T]
        np.testing.assert_allclose(found, alone, atol=1e-12)
        lacking = np.vstack([table, np.full(5, np.nan)])
        assert np.array_equal(statistics.with_first(lacking, kind), found, equal_nan=True)
        np.testing.assert_allclose(statistics.correlation(*table[:, :2].T, kind), found[0], atol=1e-12)
