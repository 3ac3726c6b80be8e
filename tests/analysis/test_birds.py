"""The tables about birds, on committed rows."""

import numpy as np
import pytest

from refinecam_lib.analysis import birds
from refinecam_lib.analysis.statistics import correlation
from refinecam_lib.analysis.tables import COMPARED, correct, shallow_base
from refinecam_lib.explanation import TRIVIAL
from refinecam_lib.scoring import EVERY
from refinecam_lib.sweeps.experiments import birds_plan
from refinecam_lib.sweeps.store import look_up


@pytest.fixture(scope="module")
def rows():
    return look_up(birds_plan(["small_resnet"], 64, 30, 32)).rows


def test_leads_have_the_sign_of_the_difference_in_correlation(rows):
    table = birds.arcc_leads(rows, draws=40)
    assert list(table.index) == list(EVERY) and list(table.columns) == ["small_resnet"]
    told = birds.scored_birds(rows)
    alone = correct(shallow_base(told[~told["method"].isin(TRIVIAL)]))
    alone = alone[np.isfinite(alone[["funnybirds", *COMPARED]]).all(axis=1)]
    value = {name: correlation(alone[name], alone["funnybirds"], "spearman") for name in COMPARED}
    lead = value.pop("arcc") - max(value.values())
    shown = table.loc["undefined r 0, ROAD eq. 5", "small_resnet"]
    assert shown in (0, np.sign(lead)) and set(table["small_resnet"]) <= {-1, 0, 1}


def test_planted_arcc_leads(rows, monkeypatch):
    monkeypatch.setattr(
        birds,
        "scored_birds",
        lambda rows, name: told.assign(funnybirds=told["arcc"] if name == "paper" else -told["arcc"]),
    )
    told = scored_without_gaps(rows)
    table = birds.arcc_leads(rows, draws=40)["small_resnet"]
    assert table["paper"] == 1 and (table.drop("paper") == -1).all()


def scored_without_gaps(rows, scored=birds.scored_birds):
    told = scored(rows)
    return told[np.isfinite(told[list(COMPARED)]).all(axis=1)]
