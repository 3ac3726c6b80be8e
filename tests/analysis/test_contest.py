"""The choice of the combinations' parameters follows its rule."""

import itertools

import pandas as pd

from refinecam_lib.analysis.contest import candidates, chosen
from refinecam_lib.refinement import COMBINATIONS


def rows(values):
    """Rows with the same average precision for each network and method, by aggregate."""
    return pd.DataFrame(
        [
            {"aggregate": a, "model": m, "method": k, "correct": True, "average_precision": values.get(a, 0.5)}
            for a, m, k in itertools.product(COMBINATIONS, ("a", "b"), ("x", "y"))
        ]
    )


def test_the_highest_average_precision_wins_in_each_family():
    found = chosen(rows({"soft_and_0.05": 0.6, "power_mean_0.75": 0.51, "mean": 0.9}))
    assert found == {"soft_and": "soft_and_0.05", "power_mean": "power_mean_0.75"}


def test_methods_networks_and_wrong_images_have_their_weight():
    table = rows({"soft_and_0.1": 0.6})
    more = pd.concat([table] + [table[(table["model"] == "a") & (table["aggregate"] == "soft_and_0.1")]] * 9)
    assert candidates(more)["soft_and_0.1"] == candidates(table)["soft_and_0.1"]
    wrong = rows({"soft_and_0.2": 1.0}).assign(correct=False)
    assert chosen(pd.concat([table, wrong]))["soft_and"] == "soft_and_0.1"
