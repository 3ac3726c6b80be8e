"""Tables hold what was measured, the best in bold and the paper's number; figures show every row of their frame."""

import numpy as np
import pandas as pd
import pytest

from refinecam_lib.analysis import plots
from refinecam_lib.analysis.tables import beside_paper, cells, paper_table
from refinecam_lib.errors import InputError


def summary(models=("resnet18",), methods=("LayerCAM", "ScoreCAM"), aggregates=("none", "product")):
    rows = [(m, k, a) for m in models for k in methods for a in aggregates]
    table = pd.DataFrame(rows, columns=["model", "method", "aggregate"])
    table["mean"] = np.linspace(0.2, 0.8, len(table))
    return table.assign(std=0.1, n=12, low=table["mean"] - 0.05, high=table["mean"] + 0.05)


def test_the_papers_numbers_are_whole():
    one, two = paper_table("table1"), paper_table("table2")
    assert len(one) == 5 * 4 * 2 + 5 * 4 and len(two) == 15
    gains = one.pivot(index=["method", "model"], columns="aggregate", values="mean").dropna()
    assert (gains["product"] > gains["none"]).sum() == 13 and len(gains) == 20
    with pytest.raises(InputError, match="unknown table of the paper 'table3'"):
        paper_table("table3")


def test_table_1_stands_beside_the_paper():
    table = beside_paper(summary(), "table1", ["LayerCAM", "ScoreCAM", "LIME"]).set_index("method")
    assert table.loc["LayerCAM", "Base"] == "0.20 ± 0.10"
    assert table.loc["ScoreCAM", "RefineCAM"] == "**0.80 ± 0.10**"  # the best of the network, and it alone
    assert table.astype(str).apply(lambda c: c.str.contains(r"\*\*")).to_numpy().sum() == 1
    assert table.loc["LayerCAM", "Base, paper (ours - it)"] == "0.52 (-0.32)"
    assert table.loc["LayerCAM", "n"] == "12", "the aggregates' counts are the same"
    fewer = summary()
    fewer.loc[(fewer["method"] == "LayerCAM") & (fewer["aggregate"] == "product"), "n"] = 7
    assert beside_paper(fewer, "table1", ["LayerCAM"])["n"][0] == "12 / 7"
    assert table.loc["LIME", "RefineCAM"] == "N.A."


def test_one_value_has_no_deviation():
    counts = summary().assign(n=[0, 1, 2, 12])
    assert list(cells(counts)) == ["", "0.40", "0.60 ± 0.10", "0.80 ± 0.10"]


def test_a_network_that_the_paper_lacks_stands_beside_its_mean():
    table = beside_paper(summary(["efficientnet_lite0"]), "table1", ["LayerCAM"])
    mean = np.mean([0.28, 0.52, 0.30, 0.58])
    assert table["Base, paper, mean of 4 networks (ours - it)"][0] == f"{mean:.2f} ({0.2 - mean:+.2f})"


def test_score_bars_set_trivial_maps_apart():
    methods = ["LayerCAM", "RandomCAM"]
    frame = pd.concat([summary(methods=methods, aggregates=["none"]).assign(score=s) for s in ("road", "arcc")])
    figure = plots.score_bars(frame.reset_index(drop=True), "caption")
    assert [axis.get_title() for axis in figure.axes] == ["ROAD ↑", "ARCC ↑"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == methods
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours == [plots.REAL, plots.FAKE]


def test_pair_bars_and_curves_draw_the_means():
    frame = summary(models=("resnet18", "vgg11"))
    figure = plots.pair_bars(frame, ["ScoreCAM", "LayerCAM"], "caption")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["ScoreCAM", "LayerCAM"]
    drawn = np.concatenate([line.get_xdata() for axis in figure.axes for line in axis.lines])
    assert sorted(drawn) == pytest.approx(sorted(frame["mean"]))
    powers = pd.DataFrame({"power": [0.125, 1.0], "score": "road", "mean": [-0.2, -0.2], "low": -0.3, "high": -0.1})
    axis = plots.magnitude_curves(powers, "caption").axes[0]
    assert axis.get_ylim()[0] < -0.3 and [t.get_text() for t in axis.get_xticklabels()] == ["1/8", "1"]


def test_image_grid_keeps_its_order_and_wraps_a_long_caption():
    picture, heat = np.zeros((4, 4, 3)), np.eye(4)
    figure = plots.image_grid(
        [[(picture, None), (None, heat, heat > 0)]], ["a", "b"], ["row"], "word " * 60, [["x", "y"]]
    )
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), heat)
    assert "\n" in figure.get_supxlabel()


def test_correlation_bars_and_verdicts_show_every_row():
    frame = pd.DataFrame(
        [
            ("raw", level, kind, s)
            for level in ("explanation", "method mean")
            for kind in ("pearson", "kendall")
            for s in ("arcc", "road")
        ],
        columns=["group", "level", "kind", "score"],
    )
    frame = frame.assign(value=np.linspace(-0.5, 0.9, len(frame)), low=-0.9, high=0.95)
    figure = plots.correlation_bars(frame, "caption")
    drawn = np.concatenate([axis.lines[0].get_xdata() for axis in figure.axes])
    np.testing.assert_allclose(drawn, frame["value"])
    table = pd.DataFrame(
        {"claim": ["a", "a"], "condition": ["x", "y"], "verdict": ["holds", "fails"], "value": [0.5, -0.25]}
    )
    axis = plots.verdict_grid(table, "caption").axes[0]
    assert [text.get_text() for text in axis.texts] == ["holds\n+0.5", "fails\n-0.25"]
    assert len({patch.get_facecolor() for patch in axis.patches}) == 2


def test_rank_grid_writes_means_and_ranks():
    frame = pd.DataFrame({"map": ["truth", "noise"], "score": "arcc", "mean": [0.8, 0.1], "rank": [1.0, 2.0]})
    texts = [text.get_text() for text in plots.rank_grid(frame, "caption").axes[0].texts]
    assert texts == ["0.80  #1", "0.10  #2"]


def test_randomisation_curves_draw_base_and_refined():
    frame = pd.DataFrame(
        [("LayerCAM", a, stage) for a in ("none", "product") for stage in ("nothing", "everything")],
        columns=["method", "aggregate", "random"],
    ).assign(mean=[1, 0.5, 1, 0.25], low=0.2, high=1.0)
    lines = plots.randomisation_curves(frame, "caption").axes[0].lines
    assert [list(line.get_ydata()) for line in lines[:2]] == [[1, 0.5], [1, 0.25]]
