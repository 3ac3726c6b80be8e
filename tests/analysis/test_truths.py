"""Scores against several truths, on planted rows."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from refinecam_lib.analysis import grids
from refinecam_lib.analysis.tables import COMPARED
from refinecam_lib.analysis.truths import CONTROLS, agreement, leads, resolution
from refinecam_lib.scoring import exact_road


def rows(n=40):
    """ARCC follows exact removal within each method. It follows the cosine between methods only."""
    generator, records = np.random.default_rng(0), []
    for image in range(n):
        for level, method in enumerate(["GradCAM++", "LayerCAM"]):
            inner = generator.random()
            names = {"image": image, "model": "net", "method": method, "layer": 0, "aggregate": "none"}
            other = dict.fromkeys(COMPARED, generator.random())
            truths = {"cosine": level + 0.1 * generator.random(), "average_precision": generator.random()}
            records.append(
                names | other | truths | {"arcc": level + inner, "mass_on_truth": np.nan, "exact_road": inner}
            )
    return pd.DataFrame(records)


def test_correlations_are_pooled_and_within_methods():
    table = rows()
    found = agreement(table, draws=50).set_index(["truth", "level", "score"])["value"]
    pooled, within = (found["cosine", level, "arcc"] for level in ("pooled", "within methods"))
    expected = scipy.stats.spearmanr(table["arcc"], table["cosine"])[0]
    each = [scipy.stats.spearmanr(own["arcc"], own["cosine"])[0] for _, own in table.groupby("method")]
    assert pooled == pytest.approx(expected) and within == pytest.approx(np.mean(each))
    assert pooled > 0.7 and abs(within) < 0.3, "only methods differ in the cosine"
    assert found["exact_road", "within methods", "arcc"] == pytest.approx(1)
    assert "mass_on_truth" not in found.index.get_level_values("truth"), "it was not measured"


def test_intervals_contain_the_value_and_shrink_with_images():
    few, many = (agreement(rows(n), draws=100) for n in (30, 300))
    assert (many["low"] <= many["value"] + 1e-9).all() and (many["value"] <= many["high"] + 1e-9).all()
    middle = many["score"] == "adcc"
    assert (many["high"] - many["low"])[middle].mean() < (few["high"] - few["low"])[middle].mean() / 2
    assert grids.truth_grid(many).axes[0].get_title() == "net, pooled"


def test_leads_are_those_over_the_best_other_score():
    table = agreement(rows(), draws=100)
    found = leads(table)
    inner = found.loc["net", "exact_road", "within methods"]
    assert inner["shown"] == 1 and inner["difference"] == pytest.approx(1 - inner["value"])
    cosine = found.loc["net", "cosine", "within methods"]
    assert cosine["low_difference"] < cosine["difference"] < cosine["high_difference"]
    few = leads(agreement(rows(29), draws=100))
    assert not few["shown"].any(), "no verdict below 30 images"


def test_resolution_compares_controls_with_shallow_and_deep_maps():
    base = rows().assign(road=0.5)
    deep, refined = base.assign(layer=3, arcc=0.9), base.assign(aggregate="product", arcc=0.2)
    controls = [base[base["method"] == "LayerCAM"].assign(method=name, arcc=0.7) for name in CONTROLS]
    table = resolution(pd.concat([base, deep, refined, *controls]), ["LayerCAM", "GradCAM++"]).loc["net"]
    assert list(table.index) == [*CONTROLS, "deepest Base maps", "shallowest Base maps", "RefineCAM"]
    assert table["arcc"].round(6).tolist() == [0.7, 0.7, 0.9, round(base["arcc"].mean(), 6), 0.2]
    assert (table["n"] == 40).all()
    assert "cosine" not in resolution(base.drop(columns=["cosine"]), ["LayerCAM"]), "photographs have no truth"


def test_exact_road_is_the_mean_over_fractions():
    frame = pd.DataFrame({"exact_morf_1": [0.2], "exact_morf_5": [0.4], "exact_lerf_1": [0.9], "exact_lerf_5": [0.9]})
    assert exact_road(frame).tolist() == pytest.approx([0.6])
    assert exact_road(pd.DataFrame({"morf_20": [0.1]})).isna().all()
