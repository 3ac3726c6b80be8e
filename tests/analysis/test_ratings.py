"""Scores of several papers against the truth, on planted rows."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from refinecam_lib.analysis.ratings import ALL, MASKS, RIVALS, best_pair, best_score, checked, pairs, rated
from refinecam_lib.analysis.truths import correlated
from refinecam_lib.sweeps.version import KEYS


def rows(images=30):
    """ROAD and insertion each know half of the truth; every other score is noise."""
    generator, scores, rivals = np.random.default_rng(0), [], []
    for image, (layer, aggregate) in itertools.product(range(images), [(0, "none"), (0, "soft_and_0.2"), (3, "none")]):
        keys = dict(zip(KEYS, ["synthetic", image, "net", "LayerCAM", layer, aggregate]))
        half, other, noise = generator.random(), generator.random(), generator.random(8)
        raw = {"probability": 0.9, "probability_masked": noise[0], "mean_activation": noise[1], "pearson": noise[2]}
        truths = dict.fromkeys([*MASKS, "exact_morf_5"], half + other) | {"exact_lerf_5": 0.0}
        scores.append(keys | raw | truths | {"morf_20": 0.0, "lerf_20": half, "correct": image > 0, "status": "ok"})
        rivals.append(keys | dict(zip(RIVALS.values(), noise[2:])) | {"insertion": other})
    return pd.DataFrame(scores), pd.DataFrame(rivals)


def test_rows_are_joined_and_every_score_is_better_when_it_is_higher():
    scores, rivals = rows()
    table = rated(scores, rivals.sample(frac=1, random_state=0))
    assert len(table) == 29 * 3 and not table.duplicated(["method", "image"]).any(), "image 0 is misclassified"
    assert set(table["method"]) == {"LayerCAM, Base", "LayerCAM, soft and 0.2", "LayerCAM, deepest layer"}
    assert np.allclose(table["one_minus_deletion"] + table["deletion"], 1)
    assert np.allclose(table["minus_infidelity"], -table["infidelity"])
    assert set(correlated(table, ALL, MASKS, draws=5)["score"]) == set(ALL)


def test_the_best_pair_knows_more_than_the_best_score():
    table = rated(*rows())
    found = pairs(table, MASKS)
    assert best_pair(found) == ("road", "insertion") and found.index[0] == ("road", "insertion")
    ranks = table[["road", "insertion"]].rank().mean(axis=1)
    assert found.iloc[0] == pytest.approx(scipy.stats.spearmanr(ranks, table["cosine"])[0])
    alone = found["road", "road"]
    assert (
        alone == pytest.approx(scipy.stats.spearmanr(table["road"], table["cosine"])[0]) and alone < found.iloc[0] - 0.1
    )
    assert len(found) == len(ALL) * (len(ALL) + 1) // 2
    row = checked(table, found, draws=100).loc["net"]
    assert row["chosen pair"] == pytest.approx(found.iloc[0]) and row["ARCC"] == pytest.approx(found["arcc", "arcc"])
    assert best_score(found) in ("road", "insertion") and row["chosen score"] < row["chosen pair"]
    assert row["low"] < row["lead"] < row["high"] and row["low"] > 0 and row["images"] == 29


def test_networks_count_alike_however_many_rows_they_have():
    scores, rivals = rows()
    few = scores["image"] < 10
    both = [each.assign(model="other") for each in (scores[few], rivals[few])]
    table = rated(pd.concat([scores, both[0]]), pd.concat([rivals, both[1]]))
    alone = [pairs(own)["road", "road"] for _, own in table.groupby("model")]
    assert pairs(table)["road", "road"] == pytest.approx(np.mean(alone))
