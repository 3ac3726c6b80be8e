"""Tables hold what was measured, the best in bold, and the paper's number. Figures show every row of their frame."""

import re

import numpy as np
import pandas as pd
import pytest

import refinecam_lib as rc
from refinecam_lib.analysis import birds, defects, grids, layout, plots, tables, verdicts
from refinecam_lib.analysis.tables import beside_paper, cells, paper_table
from refinecam_lib.errors import InputError


def summary(models=("resnet18",), methods=("LayerCAM", "ScoreCAM"), aggregates=("none", "product")):
    rows = [(m, k, a) for m in models for k in methods for a in aggregates]
    table = pd.DataFrame(rows, columns=["model", "method", "aggregate"])
    table["mean"] = np.linspace(0.2, 0.8, len(table))
    return table.assign(std=0.1, n=12, low=table["mean"] - 0.05, high=table["mean"] + 0.05)


def test_the_papers_tables_are_complete():
    one, two = paper_table("table1"), paper_table("table2")
    assert len(one) == 5 * 4 * 2 + 5 * 4 and len(two) == 15
    gains = one.pivot(index=["method", "model"], columns="aggregate", values="mean").dropna()
    assert (gains["product"] > gains["none"]).sum() == 13 and len(gains) == 20
    with pytest.raises(InputError, match="unknown table of the paper 'table3'"):
        paper_table("table3")


def test_table_1_is_beside_the_paper():
    table = beside_paper(summary(), "table1", ["LayerCAM", "ScoreCAM", "LIME"], photographs=True).set_index("method")
    assert table.loc["LayerCAM", "Base"] == "0.20 ± 0.10"
    assert table.loc["ScoreCAM", "RefineCAM"] == "**0.80 ± 0.10**"  # only the best of the network
    assert table.astype(str).apply(lambda c: c.str.contains(r"\*\*")).to_numpy().sum() == 1
    assert table.loc["LayerCAM", "Base, paper (ours - it)"] == "0.52 (-0.32)"
    assert table.loc["LayerCAM", "n"] == "12", "the aggregates' counts are the same"
    fewer = summary()
    fewer.loc[(fewer["method"] == "LayerCAM") & (fewer["aggregate"] == "product"), "n"] = 7
    assert beside_paper(fewer, "table1", ["LayerCAM"])["n"][0] == "12 / 7"
    assert table.loc["LIME", "RefineCAM"] == "N.A."


def test_a_printed_table_has_methods_in_rows_and_networks_in_columns():
    methods = ["LayerCAM", "ScoreCAM", "LIME"]
    flat = beside_paper(summary(["resnet18", "vgg11"], methods[:2]), "table1", methods)
    style = layout.printed(flat, "n = 12")
    assert list(style.data.index) == methods
    assert list(style.data) == [(m, c) for m in ("resnet18", "vgg11") for c in ("Base", "RefineCAM", "n")]
    cell = style.data.loc["LayerCAM", ("resnet18", "Base")]
    ours, theirs = re.sub(r"<small[^>]*>|</small>", "", cell).split("<br>")
    expected = flat.iloc[0]
    assert ours == expected["Base"] and theirs == expected["Base, paper"] == "0.52"
    bold = [style.data.iat[place] for place, rules in style._compute().ctx.items() if ("font-weight", "bold") in rules]
    best = [text.strip("*") for text in flat["RefineCAM"] if "**" in text]
    assert len(best) == 2 and [cell.partition("<br>")[0] for cell in bold] == best
    assert "small print: the paper" in style.caption and style.to_html() == layout.printed(flat, "n = 12").to_html()


def test_one_value_has_no_deviation():
    counts = summary().assign(n=[0, 1, 2, 12])
    assert list(cells(counts)) == ["", "0.40", "0.60 ± 0.10", "0.80 ± 0.10"]


def test_an_unknown_network_is_beside_the_papers_mean():
    table = beside_paper(summary(["efficientnet_lite0"]), "table1", ["LayerCAM"], photographs=True)
    mean = np.mean([0.28, 0.52, 0.30, 0.58])
    assert table["Base, paper, mean of 4 networks (ours - it)"][0] == f"{mean:.2f} ({0.2 - mean:+.2f})"


def test_shapes_are_not_subtracted_from_photographs():
    table = beside_paper(summary(), "table1", ["LayerCAM"])
    assert table["Base, paper"][0] == "0.52" and not [name for name in table if "ours - it" in name]


def test_the_papers_numbers_are_hollow_markers():
    figure = plots.pair_bars(
        summary(["resnet18", "efficientnet_lite0"]), ["LayerCAM", "ScoreCAM"], paper=paper_table("table1")
    )
    hollow = [[line for line in axis.lines if line.get_markerfacecolor() == "none"] for axis in figure.axes]
    assert [len(lines) for lines in hollow] == [2, 0] and hollow[0][0].get_xdata().tolist() == [0.52, 0.37]


def test_score_bars_mark_trivial_maps():
    methods = ["LayerCAM", "RandomCAM"]
    frame = pd.concat([summary(["a", "b"], methods, ["none"]).assign(score=s) for s in ("road", "arcc")])
    figure = plots.score_bars(frame.reset_index(drop=True))
    assert [axis.get_title() for axis in figure.axes] == ["ROAD ↑", "ARCC ↑", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["a", "", "b", ""]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == methods
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours == [plots.REAL, plots.FAKE]


def test_pair_bars_and_curves_draw_the_means():
    frame = summary(models=("resnet18", "vgg11"))
    figure = plots.pair_bars(frame, ["ScoreCAM", "LayerCAM"])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["ScoreCAM", "LayerCAM"]
    drawn = np.concatenate([line.get_xdata() for axis in figure.axes for line in axis.lines])
    assert sorted(drawn) == pytest.approx(sorted(frame["mean"]))
    powers = pd.DataFrame({"power": [0.125, 1.0], "score": "road", "mean": [-0.2, -0.2], "low": -0.3, "high": -0.1})
    axis = plots.magnitude_curves(powers).axes[0]
    assert axis.get_ylim()[0] < -0.3 and [t.get_text() for t in axis.get_xticklabels()] == ["1/8", "1"]


def test_image_grid_keeps_its_order_and_wraps_a_long_caption():
    picture, heat = np.zeros((4, 4, 3)), np.eye(4)
    figure = grids.image_grid(
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
    figure = plots.correlation_bars(frame)
    drawn = np.concatenate([axis.lines[0].get_xdata() for axis in figure.axes])
    np.testing.assert_allclose(drawn, frame["value"])
    table = pd.DataFrame(
        {"claim": ["a", "a"], "condition": ["x", "y"], "verdict": ["holds", "fails"], "value": [0.5, -0.25]}
    ).assign(note="")
    axis = grids.verdict_grid(table).axes[0]
    assert [text.get_text() for text in axis.texts] == ["holds\n+0.5", "fails\n-0.25"]
    assert len({patch.get_facecolor() for patch in axis.patches}) == 2


def test_rank_grid_writes_means_and_ranks():
    frame = pd.DataFrame({"map": ["truth", "noise"], "score": "arcc", "mean": [0.8, 0.1], "rank": [1.0, 2.0]})
    texts = [text.get_text() for text in grids.rank_grid(frame).axes[0].texts]
    assert texts == ["0.80  #1", "0.10  #2"]


def test_randomisation_curves_draw_base_and_refined():
    frame = pd.DataFrame(
        [("LayerCAM", a, stage) for a in ("none", "product") for stage in ("nothing", "everything")],
        columns=["method", "aggregate", "random"],
    ).assign(mean=[1, 0.5, 1, 0.25], low=0.2, high=1.0)
    lines = plots.randomisation_curves(frame).axes[0].lines
    assert [list(line.get_ydata()) for line in lines[:2]] == [[1, 0.5], [1, 0.25]]


def measured(methods=("GradCAM++", "LayerCAM", "RandomCAM"), n=40):
    """Return rows in which LayerCAM's map agrees best with the truth and RandomCAM keeps the probability."""
    generator, rows = np.random.default_rng(0), []
    for k, method in enumerate(methods):
        for image in range(n):
            random = method == "RandomCAM"
            road = 0.0 if random else 0.3 + 0.1 * k + 0.2 * generator.random()
            rows.append({"model": "a", "image": image, "method": method, "layer": 0, "aggregate": "none", "status": "ok",
                         "correct": image > 0, "background": "raw", "cosine": road, "probability": 0.9,
                         "probability_masked": 0.9 if random else 0.1 * generator.random(), "mean_activation": 0.3,
                         "pearson": 0.2 * generator.random(), "morf_20": 0.1, "lerf_20": 0.1 + road})  # fmt: skip
    return pd.DataFrame(rows)


def test_correct_keeps_the_correctly_classified_images_and_adds_nothing():
    rows = measured()
    kept = rc.correct(rows)
    assert list(kept) == list(rows) and set(rows["image"]) - set(kept["image"]) == {0}
    assert rc.correct(rows.astype({"correct": object}).assign(correct=None)).empty, "a failed row knows no class"
    scored = tables.scored(rows)
    assert scored["one_minus_complexity"].tolist() == pytest.approx([0.7] * len(scored))


def test_a_verdict_names_n_and_the_conventions():
    assert verdicts.verdict("X", True, 30) == "X: reproduced (n = 30 images)"
    assert verdicts.verdict("X", False, 1200, "birds") == "X: not reproduced (n = 1,200 birds)"
    assert verdicts.verdict("X", True, 29) == "X: too few images (n = 29 images)"
    assert verdicts.verdict("X", False, 50, words=verdicts.HOLDS) == "X: fails (n = 50 images)"
    mixed = verdicts.verdict("X", {"a": True, "b": False}, 50)
    assert mixed == "X: depends on the convention (n = 50 images; holds under 1 of 2 conventions, not under b)"
    none = verdicts.verdict("X", {"a": "undecided"}, 50, networks="1 of 4")
    assert none == "X: not reproduced (n = 50 images; shown in 1 of 4 networks; holds under 0 of 1 conventions)"


def test_a_claim_is_counted_over_networks():
    rows = pd.concat([measured().assign(model=name) for name in ("a", "b", "c")], ignore_index=True)
    rows["pearson"] = rows["pearson"].where(rows["model"] != "c", np.nan)
    table = verdicts.outcomes(lambda own: own["coherency"].mean() > 0, rows)
    assert table.loc["undefined r 0, ROAD eq. 5"].tolist() == [True, True, False]
    text = verdicts.over_networks("X", table, 40)
    assert text.startswith("X: reproduced (n = 40 images; shown in 2 of 3 networks; holds under")
    split = verdicts.over_networks("X", table[["a", "c"]], 40)
    assert split.startswith("X: depends on the convention") and "not under undefined r 0" in split, "half is too few"


def test_trivial_maps_fool_average_drop_only_if_planted():
    rows = measured()
    table = tables.summaries(tables.scored(rows), verdicts.FIG1, ["method"])
    assert verdicts.fooled_by(table, "average_drop") == ["RandomCAM above GradCAM++", "RandomCAM above LayerCAM"]
    assert verdicts.fooled_by(table, "arcc") == []
    assert verdicts.trivial_maps_fool(tables.scored(rows))
    honest = rows.assign(probability_masked=np.where(rows["method"] == "RandomCAM", 0.0, 0.9))
    assert not verdicts.trivial_maps_fool(tables.scored(honest.assign(pearson=-1.0)))


def test_ranks_and_correlations_follow_the_planted_truth():
    rows = tables.scored(measured())
    ranks = tables.stress_ranks(rows, ["LayerCAM", "GradCAM++", "RandomCAM"])[1]
    assert ranks[ranks["score"] == "road"]["rank"].tolist() == [1, 2, 3]
    assert ranks[ranks["score"] == "average_drop"]["rank"].tolist()[2] == 1, "lower is better"
    table = tables.fig3(rows, {"all": "cosine", "photos": "raw"}, draws=20)
    text = tables.correlation_text(table, "all", spread=True)
    assert text.loc[("explanation", "spearman"), "ROAD"] == "1.00 [1.00, 1.00] ± 0.00"
    others = table[(table["group"] == "all") & (table["score"] != "arcc")].set_index(["level", "kind", "score"])
    each = others.loc[("explanation", "spearman")]
    assert each["value"].idxmax() == "road" and each.loc["road", "high_difference"] < 0, "ARCC is worse"
    pd.testing.assert_series_equal(table["value"][:6], table["value"][36:42], check_index=False)


def test_deepest_maps_get_a_name_of_their_own():
    rows = pd.DataFrame(
        {"layer": [0, 0, 0, 1], "aggregate": ["none", "product", "geometric_mean", "none"], "v": range(4)}
    )
    more = tables.with_deepest(rows, "deepest layer")
    assert more["v"].tolist() == [0, 1, 2, 3, 3] and more["aggregate"].iloc[-1] == "deepest layer"


def test_the_papers_own_tables_disagree():
    gap = defects.paper_gap()
    assert gap["gap"].to_numpy() == pytest.approx(gap.iloc[:, 0] - gap.iloc[:, 1])
    assert defects.paper_counts().iloc[0] == "13 of 20"


def test_classes_that_share_parts_are_counted():
    classes = [dict.fromkeys(("beak", "eye", "foot", "tail", "wing"), 0) | {"beak": k} for k in range(3)]
    counts = birds.class_counts(classes)
    assert counts.iloc[:, 0].tolist() == [3, 0, 0, 0, 0] and counts.iloc[:, 1].tolist() == [3, 0, 0, 0, 0]
