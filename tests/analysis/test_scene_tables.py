"""Tables of the scenes: parts of the certificate, failures with their bound, twins, ladder and factors."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from refinecam_lib.analysis import scene_figures
from refinecam_lib.analysis import scene_tables as scenes
from refinecam_lib.analysis.statistics import correlation
from refinecam_lib.analysis.tables import COMPARED, scored
from refinecam_lib.datasets.scenes import CONDITIONS, LAYERS, Scenes
from refinecam_lib.errors import rng
from refinecam_lib.road import FRACTIONS

PLAIN = {"model": "net", "dataset": "scenes_objects", "condition": "base", "correct": True, "redraws": 8}
PASSES = {"logit": 10.0, "logit_without": 0.0, "probability": 0.9, "probability_without": 0.1, "kept": 8, "swapped": 8}
NOTHING = {f"{name}_{layer}": np.nan for name in ("moved", "kept") for layer in LAYERS}


def certificates(*changes):
    rows = [
        PLAIN | PASSES | NOTHING | {"moved_badge": 0.1, "kept_badge": 8, "kept_fresh": 8, "image": str(k)} | change
        for k, change in enumerate(changes)
    ]
    return pd.DataFrame(rows)


def test_each_part_of_the_certificate_has_its_threshold():
    rows = scenes.certified(
        certificates(
            {},
            {"kept": 7},
            {"probability_without": 0.46},
            {"swapped": 7},
            {"moved_background": 0.51},
            {"moved_background": 0.5},
            {"correct": False},
            {"logit_without": 12.0},
        )
    )
    found = {part: rows[part].tolist() for part in scenes.PARTS}
    assert found["c1"] == [True, False, True, True, True, True, False, True]
    assert found["c2_removed"] == [True, True, False, True, True, True, False, True]
    assert found["c2_swapped"] == [True, True, True, False, True, True, False, True]
    assert found["c3"] == [True, True, True, True, False, True, False, False]
    assert found["certified"] == [True, False, False, False, True, True, False, True]
    assert scenes.certified(rows, fall=0.4)["c2_removed"][2]


def test_shares_count_correctly_classified_images_only():
    rows = scenes.certified(certificates({}, {"kept": 7}, {"correct": False}, {"condition": "small"}))
    table = scenes.pass_shares(rows).set_index(["condition", "part"])
    assert table.loc[("base", "c1"), "mean"] == 0.5 and table.loc[("base", "c1"), "n"] == 2
    assert table.loc[("all conditions", "c1"), "mean"] == pytest.approx(2 / 3)
    assert list(table.index.get_level_values("condition").unique()) == ["base", "small", "all conditions"]
    interval = binomtest(1, 2).proportion_ci(method="wilson")
    assert table.loc[("base", "c1"), ["low", "high"]].tolist() == [interval.low, interval.high]
    text = scenes.pass_text(table.reset_index())
    assert text["n"].tolist() == [2, 1, 3] and text.iloc[0, 0].startswith("0.50 [")
    assert scene_figures.certificate_figure(table.reset_index()).axes[0].get_title() == scenes.PARTS["c1"]


def test_failures_of_fresh_redraws_have_an_exact_upper_bound():
    rows = scenes.certified(certificates({}, {}, {"kept": 7, "kept_fresh": 0}))
    table = scenes.fresh_failures(rows).set_index("model")
    assert table.loc["net", ["images", "fresh redraws", "failures"]].tolist() == [2, 16, 0]
    assert table.loc["all", "upper bound"] == pytest.approx(1 - 0.05 ** (1 / 16))
    failed = scenes.fresh_failures(scenes.certified(certificates({"kept_fresh": 5})))
    assert failed["failures"].tolist() == [3, 3] and failed["share"][0] == 3 / 8


def test_the_accuracy_after_the_other_layer_is_drawn_again():
    objects = certificates({}, {"correct": False, "kept_badge": 4})
    badges = certificates({"kept_object": 2}).assign(dataset="scenes_badges")
    table = scenes.after_redraws(pd.concat([objects, badges]))
    assert table.loc[("net", "objects", "badge"), ["before", "after", "change"]].tolist() == [0.5, 0.75, 0.25]
    assert table.loc[("net", "badges", "object"), ["before", "after", "change"]].tolist() == [1, 0.25, -0.75]
    assert table["lost"].tolist() == [0, 0.75] and table["gained"].tolist() == [0.25, 0]


def test_each_layer_tells_what_drawing_it_again_does():
    one = {"kept_background": 4, "moved_background": 0.5, "moved_badge": 2.0}
    rows = scenes.certified(
        certificates(one, {"kept": 6, "kept_background": 8, "moved_background": 1.5}, {"correct": False})
    )
    table = scenes.by_layer(rows).loc["net", "objects"]
    assert table.index.tolist() == ["background", "badge"], "layers that no scene has are left out"
    assert table["prediction stays"].tolist() == [12 / 16, 1] and (table["n"] == 2).all()
    assert table["if all are drawn again"].tolist() == [14 / 16, 14 / 16]
    assert table.loc["background", ["within C3", "median move"]].tolist() == [0.5, pytest.approx(0.1)]
    assert table.loc["badge", ["within C3", "median move"]].tolist() == [0.5, pytest.approx(0.105)]


def scored_twins(rows):
    """Return scored rows that know their twin."""
    return scored(rows).assign(twin=lambda kept: scenes.twin_of(kept["dataset"]))


def measured(n=40, **columns):
    """Return rows of scores with random values, except the given columns."""
    generator = rng("scores")
    names = ["probability", "probability_masked", "mean_activation", "pearson", "cosine"]
    names += ["average_precision", "mass_on_truth"]
    names += [f"{order}_{round(100 * k)}" for order in ("morf", "lerf") for k in FRACTIONS]
    names += [f"exact_{order}_{k:g}" for order in ("morf", "lerf") for k in (0.5, 1, 40)]
    rows = pd.DataFrame({name: generator.random(n) for name in names})
    rows = rows.assign(image=[str(k) for k in range(n)], correct=True, layer=0, aggregate="none", distractors="5")
    return rows.assign(model="net", dataset="scenes_objects", method="GradCAM++", condition="base").assign(**columns)


def test_a_score_that_ignores_the_network_prefers_the_truth_half_of_the_time():
    parts = []
    for twin, area in (("objects", 0.3), ("badges", 0.1)):
        truth = scored_twins(measured(dataset=f"scenes_{twin}", mean_activation=area, method="GroundTruth"))
        other = scored_twins(measured(dataset=f"scenes_{twin}_other", mean_activation=0.4 - area))
        parts.append((truth.assign(road=0.8), other.assign(road=0.1)))
    table = scenes.twin_test(*(pd.concat(both) for both in zip(*parts, strict=True))).set_index("score")
    assert table.loc["one_minus_complexity", "mean"] == 0.5 and table.loc["road", "mean"] == 1
    assert table.loc["coherency", "mean"] == 0.5, "ties count one half"
    assert (table["n"] == 80).all()
    one = [pd.concat(both) for both in zip(*parts, strict=True)]
    table = scenes.twin_test(one[0][(one[0]["twin"] == "objects") | (one[0]["image"] != "3")], one[1])
    assert (table["n"] == 78).all(), "scenes of one twin alone do not count"


def test_only_certified_scenes_are_scored_twins():
    rows = pd.concat([measured(4), measured(4, dataset="scenes_badges")])
    found = scenes.certified(certificates({}, {"swapped": 0}, {"correct": False}, {"kept": 1}))
    kept = scenes.only_certified(rows, found)
    assert kept[["twin", "image"]].to_numpy().tolist() == [["objects", "0"]]
    assert scenes.only_certified(rows, found, "c1")["image"].tolist() == ["0", "1"]


def test_the_methods_stand_beside_each_other_by_twin():
    objects, badges = measured(20, cosine=0.5), measured(20, dataset="scenes_badges", cosine=0.25)
    table = scenes.method_table(scored_twins(pd.concat([objects, badges, objects.assign(aggregate="product")])))
    assert table.index.tolist() == [("net", "GradCAM++", "Base"), ("net", "GradCAM++", "RefineCAM")]
    cosine = table.xs("cosine similarity to the mask", axis=1, level=1)
    assert cosine.loc[("net", "GradCAM++", "Base")].tolist() == ["0.50 [0.50, 0.50]", "0.25 [0.25, 0.25]"]


def test_the_ladder_ranks_maps_of_known_order():
    rungs = {"": 0.9, "_half": 0.7, "_more": 0.5, "_distractors": 0.3}
    parts = [
        scored_twins(
            measured(
                12,
                dataset=f"scenes_objects{mark}",
                pearson=2 * value - 1,
                mean_activation=value,
                method="GroundTruth",
            )
        )
        for mark, value in rungs.items()
    ]
    marked = pd.concat(parts[1:])
    marked.loc[marked["image"] == "3", "distractors"] = "0"
    random = scored_twins(measured(12, method="RandomCAM", pearson=-0.8, mean_activation=0.1))
    table = scenes.ladder(pd.concat([parts[0], random]), marked).set_index("score")
    assert table.loc["coherency", "mean"] == pytest.approx(1) and (table["n"] == 11).all()
    assert table.loc["one_minus_complexity", "mean"] == pytest.approx(-1)
    figure = scene_figures.lines({"ladder": table.reset_index()}, {"ladder": 0.0})
    assert len(figure.axes[0].get_yticklabels()) == len(COMPARED)


def test_correlations_by_factor_are_those_of_the_conditions_rows():
    rows = measured(60, image=[f"test-{k % 2}-{k // 2:06d}" for k in range(60)])
    rows["condition"] = np.where(np.arange(60) % 2, "base", "small")
    kept = scored_twins(rows)
    table = scenes.by_factor(kept, draws=20)
    assert set(table["condition"]) == {"all conditions", "base", "small"} and set(table["truth"]) == set(scenes.TRUTHS)
    part = kept[kept["condition"] == "small"]
    own = table[(table["condition"] == "small") & (table["truth"] == "exact_road") & (table["level"] == "pooled")]
    own = own.set_index("score")
    assert own.loc["road", "value"] == pytest.approx(correlation(part["road"], part["exact_road"], "spearman"))
    assert own.loc["road", "n"] == 30 and own.loc["road", "low"] < own.loc["road", "value"] < own.loc["road", "high"]
    best = scenes.leads(table).loc[("small", "net, objects", "exact_road", "pooled")]
    others = own.drop("arcc")["value"]
    lead = own.loc["arcc", "value"] - others.max()
    assert best["score"] == others.idxmax() and best["difference"] == pytest.approx(lead)
    figure = scene_figures.factor_figure(table)
    assert len(figure.axes) == 4 and figure.axes[0].get_xticklabels()[1].get_text() == "base\nn = 30"
    few = scenes.by_factor(kept[(kept["condition"] == "base") | (kept.index < 18)], draws=20)
    assert set(few["condition"]) == {"all conditions", "base"}
    every = table[table["condition"] == "all conditions"]
    assert (every["images"] == 30).all() and (every["n"] == 60).all(), "base scenes are drawn"


def test_imputers_are_ranked_by_their_distance_from_exact_removal():
    exact = rng("exact").random(40)
    values = {"linear": exact + 0.1, "mean": 1 - exact, "blur": exact - 0.2, "black": rng("black").random(40)}
    rows = measured(40, exact=exact, dataset="scenes_badges", **values)
    table = scenes.imputer_table(rows, draws=20).set_index(["measure", "imputer"])["mean"]
    alike, far = (table[name] for name in scenes.IMPUTER_MEASURES)
    assert scenes.imputer_table(rows, draws=20)["maps"].unique() == ["CAMs"]
    controls = scenes.imputer_table(rows.assign(method="CentreGaussian"), draws=20)
    assert controls["maps"].unique() == ["controls"]
    assert alike[["linear", "mean", "blur"]].tolist() == pytest.approx([1, -1, 1])
    assert far[["linear", "blur"]].tolist() == pytest.approx([0.1, 0.2]) and far["black"] > 0.2
    assert scenes.imputer_table(rows, draws=20)["model"].unique().tolist() == ["net, badges"]
    tables = {"distance": far.rename("mean").reset_index().assign(model="net", low=0.0, high=0.5)}
    figure = scene_figures.lines(tables, {"distance": 0.0}, "imputer")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(scenes.IMPUTERS)


def test_cards_become_a_table():
    part = {"n": 10, "accuracy": 0.9, "interval": [0.6, 0.98]}
    test = part | {"hidden": {"0": part | {"accuracy": 1.0}}, "size": {"small": part}}
    table = scenes.card_accuracies({("net", "objects"): {"test": test, "fresh": test}})
    assert table["scenes"].tolist() == ["test, 10", "fresh, 10"]
    assert table["0 % hidden"][0] == "1.000 [0.600, 0.980]" and table["all"][1] == "0.900 [0.600, 0.980]"


def test_sheets_show_every_condition_and_every_redraw():
    figure = scene_figures.condition_sheet(0)
    assert len(figure.axes) == len(CONDITIONS)
    scene = Scenes("test", 3, condition="hidden").scene(2)
    figure = scene_figures.redraw_sheet(scene, count=5)
    shown = [axis.get_xlabel() for axis in figure.axes if axis.axison]
    assert shown[0] == "the scene and its truth" and shown[5] == "truth removed"
    assert [text for text in shown[10:] if text] == [
        f"{layer} drawn again" for layer in ("badge", "occluder", "background")
    ]
    pictures = [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]
    kept = scene.visible("object")
    assert all(np.array_equal(picture[kept], pictures[0][kept]) for picture in pictures[1:5])
