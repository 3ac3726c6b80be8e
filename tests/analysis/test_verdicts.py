"""Verdicts on claims, and the rule that chooses a convention."""

import numpy as np
import pandas as pd
import pytest

from refinecam_lib.analysis.conventions import agreement, winner
from refinecam_lib.analysis.tables import shown
from refinecam_lib.analysis.verdicts import in_networks
from refinecam_lib.scoring import GRID, scores


def test_a_difference_is_shown_by_interval_corrected_p_and_enough_images():
    tests = pd.DataFrame(
        {
            "low": [0.1, -0.3, 0.1, -0.1, 0.1, np.nan],
            "high": [0.2, -0.1, 0.2, 0.1, 0.2, np.nan],
            "p_holm": [0.01, 0.01, 0.2, 0.01, 0.01, np.nan],
            "n": [100, 100, 100, 100, 29, 0],
        }
    )
    assert list(shown(tests)) == [1, -1, 0, 0, 0, 0]


def test_networks_are_counted():
    assert in_networks([1, 0, -1, 1]) == "2 of 4 (opposite in 1)" and in_networks([1, 0]) == "1 of 2"


def rows(truth_follows_half: bool) -> pd.DataFrame:
    """Maps whose r is undefined in a third; their truth is middling if one half should win, else the worst."""
    generator = np.random.default_rng(0)
    n = 90
    r = generator.uniform(-0.5, 1, n)
    truth = (r + 1) / 2
    undefined = np.arange(n) % 3 == 0
    truth[undefined] = 0.5 if truth_follows_half else 0.0
    frame = pd.DataFrame({"model": ["a", "b"] * (n // 2), "correct": True, "layer": 0, "aggregate": "none"})
    frame = frame.assign(pearson=np.where(undefined, np.nan, r), cosine=truth, average_precision=truth)
    return frame.assign(probability=0.9, probability_masked=0.9, mean_activation=0.3, morf_20=0.2, lerf_20=0.9)


@pytest.mark.parametrize(("half", "expected"), [(True, "undefined r one half"), (False, "undefined r 0")])
def test_the_rule_finds_the_convention_that_agrees_with_the_truth(half, expected):
    table = agreement(rows(half))
    assert set(table["convention"]) == set(GRID) and winner(table).startswith(expected)
    out = table[table["convention"].str.startswith("undefined r left out")]
    assert (out["scored"] < 0.9).all() and (out["n"] == 30).all() and out["spearman"].min() > 0.99


def test_left_out_rows_have_no_score():
    frame = rows(True)
    arcc = scores(frame, "undefined r left out, ROAD eq. 5")["arcc"]
    assert (arcc.isna() == frame["pearson"].isna()).all()
    assert (scores(frame, "undefined r 0, ROAD eq. 5")["arcc"][frame["pearson"].isna()] == 0).all()
