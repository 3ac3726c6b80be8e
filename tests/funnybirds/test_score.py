"""The FunnyBirds score on an additive classifier, computed by hand, and against a slow implementation of its definition."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refinecam_lib.errors import InputError
from refinecam_lib.funnybirds.dataset import PARTS
from refinecam_lib.funnybirds.score import (
    COMPOSED,
    GROUP,
    NEEDED,
    OBJECTS,
    TERMS,
    THRESHOLDS,
    WHOLE,
    distinguishing,
    facts,
    importances,
    per_explanation,
    scores,
    sensitivity_pair,
    summary,
    threshold,
)

VARIANTS = [(0, 0, 0, 0, 0), (0, 0, 1, 1, 1), (1, 1, 0, 0, 1), (2, 2, 2, 2, 0)]
CLASSES = [dict(zip(PARTS, variants)) for variants in VARIANTS]
WEIGHTS = np.array([5.0, 4, 3, 2, 1])  # added to the logit of every class that has the part
BIAS = np.array([0, 0.25, 0, 0.5])
BEHIND = np.array([0.5, 0, 2])  # three background objects add this to every class


def planted(label=0, classes=CLASSES, weights=WEIGHTS, bias=BIAS, behind=BEHIND):
    """Return logits (32,C) and (n,C) of an additive classifier, and the true effects (5,C) of the parts."""
    variants = np.array([[parts[p] for p in PARTS] for parts in classes])
    effects = (weights * (variants == variants[label])).T
    kept = np.arange(WHOLE + 1)[:, None] >> np.arange(5) & 1
    logits = kept @ effects + bias + behind.sum()
    return logits, logits[WHOLE] - behind[:, None], effects


def drawn(effects, behind=BEHIND, side=16):
    """Return a map in [0,1] whose sum over each tile is proportional to the effect of its part or object, and the masks."""
    values = np.concatenate([effects, behind])
    masks, pixels = {}, torch.zeros(side, side)
    for k, name in enumerate([*PARTS, *(f"object_{n:02d}" for n in range(len(behind)))]):
        mask = torch.zeros(side, side, dtype=torch.bool)
        mask[2 * k : 2 * k + 2, : 3 + k] = True
        pixels[mask] = values[k] / float(mask.sum())
        masks[name] = mask
    return pixels / pixels.max(), masks


def target_columns(one, two, pair):
    """Return the ts_* columns. one, two: part -> importance in the maps for the classes of the pair."""
    _, _, a, b = pair
    columns = {"ts_1A": (one, a), "ts_2A": (two, a), "ts_1B": (one, b), "ts_2B": (two, b)}
    return {name: sum(values[part] for part in parts) for name, (values, parts) in columns.items()}


def true_row(label=0, classes=CLASSES, **world):
    """Return the row of an explanation with the true effects."""
    logits, objects, effects = planted(label, classes, **world)
    found = facts(logits, objects, label, classes)
    pixels, masks = drawn(effects[:, found["target"]], world.get("behind", BEHIND))
    row = importances(pixels[None], [masks]).iloc[0].to_dict() | found
    pair = sensitivity_pair(label, classes)
    one, two = (dict(zip(PARTS, effects[:, c])) for c in (pair[:2] if pair else (0, 0)))
    targets = (
        target_columns(one, two, pair) if found["ts_kept"] else dict.fromkeys(["ts_1A", "ts_2A", "ts_1B", "ts_2B"])
    )
    return row | targets | {"model": "planted", "method": "true", "layer": 0, "aggregate": "none"}


def random_rows(n, seed=0, classes=None, objects=6):
    """Return rows of random logits and importances, some equal, wrong, not finite or without objects."""
    generator = np.random.default_rng(seed)
    classes = classes or [dict(zip(PARTS, v)) for v in generator.integers(0, 3, (8, 5)).tolist()]
    rows, worlds = [], []
    for i in range(n):
        label, count = int(generator.integers(len(classes))), int(generator.integers(objects + 1))
        logits = generator.normal(3, 2, (WHOLE + 1, len(classes)))
        logits[WHOLE, label] += 4 * generator.integers(2)
        without = logits[WHOLE] - generator.normal(0, 0.3, (count, len(classes)))
        row = facts(logits, without, label, classes)
        parts = generator.integers(0, 6, 5) * 1.0
        row |= {f"part_{p}": v for p, v in zip(PARTS, parts)}
        row |= {f"object_{k:02d}": float(generator.integers(0, 4)) if k < count else np.nan for k in range(OBJECTS)}
        row["map_sum"] = np.nan if i % 19 == 18 else 25 * generator.random()
        for name in ("ts_1A", "ts_2A", "ts_1B", "ts_2B"):
            row[name] = float(generator.integers(0, 4)) if row["ts_kept"] else np.nan
        rows.append(row | {"model": "m", "method": f"k{i % 2}", "layer": 0, "aggregate": "none"})
        worlds.append((logits, without, label))
    return pd.DataFrame(rows), worlds, classes


def slow(row, logits, without, label, classes, t, of_label=False):
    """Compute the six terms of one explanation at one threshold with sets and loops."""
    nan = float("nan")
    target = int(np.argmax(logits[WHOLE]))

    def kept(parts):
        return logits[sum(2 ** PARTS.index(p) for p in parts)]

    names = {p: row[f"part_{p}"] for p in PARTS} | {k: row[f"object_{k:02d}"] for k in range(len(without))}
    important = {name for name, value in names.items() if value > t * row["map_sum"]}
    bird = important & set(PARTS)
    others = [c for k, c in enumerate(classes) if k != label]

    def alone(subset):
        return all(any(c[p] != classes[label][p] for p in subset) for c in others)

    sets = [set(s) for size in range(1, 6) for s in combinations(PARTS, size) if alone(s)]
    sets = [s for s in sets if not any(smaller < s for smaller in sets)]
    csdc = max(len(s & bird) / len(s) for s in sets) if sets and target == label else nan
    pc = float(np.argmax(kept(bird)) == target)
    dc = float(np.argmax(kept(set(PARTS) - bird)) != target)
    followed = label if of_label else target
    clean = logits[WHOLE, followed]
    gone = {p: kept(set(PARTS) - {p})[followed] for p in PARTS} | {k: z[followed] for k, z in enumerate(without)}
    irrelevant = {name for name, z in gone.items() if abs(clean - z) < 0.05 * abs(clean) or z > clean}
    d = 1 - len(important & irrelevant) / len(irrelevant) if irrelevant else nan
    drops, values = [clean - gone[p] for p in PARTS], [row[f"part_{p}"] for p in PARTS]
    sd = nan if len(set(values)) == 1 else (scipy.stats.spearmanr(drops, values).statistic + 1) / 2
    same = [{p for p in PARTS if c[p] == classes[label][p]} for c in classes]
    pairs = combinations([k for k in range(len(classes)) if len(same[k]) == 2], 2)
    pair = next(((i, j) for i, j in pairs if not same[i] & same[j]), None)
    ts = nan
    if pair:
        (one, two), a, b = pair, set(PARTS) - same[pair[0]], set(PARTS) - same[pair[1]]
        if kept(a)[one] < kept(b)[one] and kept(b)[two] < kept(a)[two]:
            ts = (float(row["ts_1A"] > row["ts_2A"]) + float(row["ts_2B"] > row["ts_1B"])) / 2
    if np.isnan(row["map_sum"]):
        csdc, pc, dc, d = (nan,) * 4
    return dict(zip(TERMS, (csdc, pc, dc, d, sd, ts)))


def test_distinguishing_sets():
    first, second, third, fourth = distinguishing(CLASSES)
    pairs = {frozenset(pair) for pair in combinations(PARTS, 2)}
    assert set(first) == pairs - {frozenset({"beak", "eye"}), frozenset({"foot", "tail"})} and len(first) == 8
    # The second class shares beak and eye with the first, and its wing with the third.
    assert set(second) == {
        frozenset({"foot"}),
        frozenset({"tail"}),
        frozenset({"beak", "wing"}),
        frozenset({"eye", "wing"}),
    }
    assert frozenset({"beak"}) in third and frozenset({"wing"}) not in fourth
    twin = [*CLASSES, CLASSES[0]]
    assert distinguishing(twin)[0] == distinguishing(twin)[4] == [] and distinguishing(twin)[1] == second


def test_sensitivity_pairs():
    assert sensitivity_pair(0, CLASSES) == (1, 2, frozenset({"beak", "eye"}), frozenset({"foot", "tail"}))
    assert sensitivity_pair(3, CLASSES) is None
    # The parts that the pair shares with the label must be disjoint.
    overlapping = dict(zip(PARTS, (0, 3, 0, 3, 3)))
    assert sensitivity_pair(1, [overlapping, *CLASSES]) == (
        2,
        3,
        frozenset({"beak", "eye"}),
        frozenset({"foot", "tail"}),
    )


def test_importance_is_the_sum_over_a_mask():
    maps = torch.arange(32.0).reshape(2, 4, 4)
    beak = torch.zeros(4, 4, dtype=torch.bool)
    beak[0, :2] = True
    twice = 2 * beak.int()
    rows = importances(maps, [{"beak": beak, "object_01": ~beak}, {"eye": twice}])
    assert list(rows["part_beak"]) == [1, 0] and list(rows["part_eye"]) == [0, 2 * 33]
    assert list(rows["map_sum"]) == [120, 376] and rows["object_01"][0] == 119
    assert rows["object_00"].isna().all() and np.isnan(rows["object_01"][1])


def test_facts_of_a_bird():
    logits, objects, _ = planted()
    found = facts(logits, objects, 0, CLASSES)
    assert found["correct"] and found["target"] == 0 and found["objects"] == 3
    assert [found[f"drop_{p}"] for p in PARTS] == [5, 4, 3, 2, 1]
    # The logit is 17.5. Drops of 0.5 and 0 are below 5 %, the wing's 1 and the third object's 2 are not.
    assert found["irrelevant"] == 0b011_00000
    assert found["ts_kept"] and found["distinguishing"].bit_count() == 8
    assert found["keeps"] >> WHOLE & 1 and not found["keeps"] & 1  # without parts, the last class wins by its bias
    wrong = facts(logits, objects, 3, CLASSES)
    assert not wrong["correct"] and wrong["target"] == 0 and wrong["label"] == 3 and not wrong["ts_kept"]
    assert facts(-logits[:, [3, 1, 2, 0]], np.zeros((0, 4)), 0, CLASSES)["objects"] == 0


def test_irrelevant_things_change_the_logit_little_or_raise_it():
    logits = np.zeros((WHOLE + 1, 4))
    logits[:, 0] = -1
    logits[:, 1:] = -9
    clean = -1.0
    objects = np.full((4, 4), -9.0)
    objects[:, 0] = clean - np.array([0.04, 0.06, -0.04, -0.06])  # without the last two it rises
    assert facts(logits, objects, 0, CLASSES)["irrelevant"] == 0b1101_11111


def test_target_sensitivity_needs_the_expected_order_of_logits():
    logits, objects, _ = planted()
    without_a = WHOLE ^ 0b00011  # beak and eye
    for change in ((without_a, 1, 99), (without_a, 2, -99)):
        other = logits.copy()
        other[change[0], change[1]] = change[2]
        assert not facts(other, objects, 0, CLASSES)["ts_kept"]


# importance / sum: beak .286, eye .229, foot .171, tail .114, third object .114, wing .057, first object .029
BY_HAND = [  # below t: csdc, pc, dc, d
    (0.5 / 17.5, (1, 1, 1, 0.5)),  # the first of two irrelevant objects is important
    (1 / 17.5, (1, 1, 1, 1)),  # without parts the class with a bias wins
    (2 / 17.5, (1, 1, 1, 1)),  # all but the wing, which alone loses 1 to 1.5
    (3 / 17.5, (1, 1, 0, 1)),  # beak, eye and foot, but tail and wing alone are enough
    (4 / 17.5, (0.5, 0, 0, 1)),  # beak and eye, which the second class shares, with a larger bias
    (5 / 17.5, (0.5, 0, 0, 1)),  # beak
    (1.0, (0, 0, 0, 1)),  # nothing
]


def test_true_effects_score_as_computed_by_hand_and_one_bird_has_no_interval():
    rows = pd.DataFrame([true_row()])
    found = scores(rows)
    wanted = np.array([next(values for below, values in BY_HAND if t < below) for t in THRESHOLDS])
    np.testing.assert_allclose(np.stack([found[name][0] for name in TERMS[:4]], 1), wanted)
    assert found["sd"].item() == found["ts"].item() == 1
    best = THRESHOLDS[THRESHOLDS > 0.5 / 17.5][0]
    assert threshold(rows) == best
    table = summary(rows).iloc[0]
    assert table["score"] == table["completeness"] == 1 and np.isnan(table["low"]) and table["threshold"] == best
    assert table["accuracy"] == table["ts_kept"] == table["n"] == 1
    assert table["background_independence"] == pytest.approx(2 / 3)


def test_true_effects_score_1_and_reversed_ones_0():
    generator = np.random.default_rng(3)
    classes = [dict(zip(PARTS, v)) for v in generator.integers(0, 2, (12, 5)).tolist()]
    kept = 0
    for label in range(len(classes)):
        row = true_row(label, classes, bias=np.zeros(12), weights=generator.permutation(WEIGHTS))
        if not row["correct"]:  # equals a class with a lower index
            continue
        found = scores(pd.DataFrame([row]))
        assert found["sd"].item() == pytest.approx(1)
        back = row | {f"part_{p}": -row[f"part_{p}"] for p in PARTS}
        back |= {"ts_1A": row["ts_2A"], "ts_2A": row["ts_1A"], "ts_1B": row["ts_2B"], "ts_2B": row["ts_1B"]}
        worst = scores(pd.DataFrame([back]))
        assert worst["sd"].item() == pytest.approx(0)
        if row["ts_kept"]:
            kept += 1
            assert found["ts"].item() == 1 and worst["ts"].item() == 0
    assert kept >= 3


def test_random_maps_score_one_half():
    generator, row, n = torch.Generator().manual_seed(0), true_row(), 400
    pair, masks = sensitivity_pair(0, CLASSES), drawn(WEIGHTS)[1]
    order = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        maps = torch.rand(3, 16, 16, generator=generator)
        shuffled = dict(
            zip(order.permutation(PARTS), (masks[p] for p in PARTS))
        )  # so that no part is always the largest
        own, one, two = (
            {p: found[f"part_{p}"] for p in PARTS} | {"map_sum": found["map_sum"]}
            for found in importances(maps, [shuffled] * 3).to_dict("records")
        )
        parts = {f"part_{p}": own[p] for p in PARTS} | {"map_sum": own["map_sum"]}
        rows.append(row | parts | target_columns(one, two, pair))
    found = scores(pd.DataFrame(rows))
    low, high = np.array(scipy.stats.binom.interval(0.99, 2 * n, 0.5)) / (2 * n)
    assert low <= found["ts"].mean() <= high
    low, high = np.array(scipy.stats.binom.interval(0.99, n, 0.5)) / n
    assert low <= found["sd"].mean() <= high and found["sd"].std() > 0.2


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_the_slow_implementation(seed):
    rows, worlds, classes = random_rows(60, seed)
    thresholds = THRESHOLDS[::7]
    found = scores(rows, thresholds)
    for i, world in enumerate(worlds):
        for k, t in enumerate(thresholds):
            wanted = slow(rows.iloc[i], *world, classes, t)
            for name in TERMS:
                value = found[name][i, k % found[name].shape[1]]
                assert value == pytest.approx(wanted[name], nan_ok=True), (name, i, t)
    for name in TERMS:  # each is defined for some rows and takes several values
        assert len(np.unique(found[name][np.isfinite(found[name])])) > 1, name
        assert name == "sd" or np.isnan(found[name]).any(), name  # equal importances are rare


def test_summaries_are_means_at_the_best_threshold():
    rows, worlds, classes = random_rows(50, 5)
    table, each = summary(rows, draws=50), per_explanation(rows)
    assert len(table) == 2 and list(each.index) == list(rows.index) and set(COMPOSED) < set(each)
    for _, line in table.iterrows():
        own = np.flatnonzero(rows["method"] == line["method"])
        at = {t: pd.DataFrame([slow(rows.iloc[i], *worlds[i], classes, t) for i in own]).mean() for t in THRESHOLDS}
        goal = {t: (m["csdc"] + m["pc"] + m["dc"]) / 3 + m["d"] for t, m in at.items()}
        best = max(goal, key=lambda t: round(goal[t], 12))
        assert line["threshold"] == best == threshold(rows.iloc[own])
        np.testing.assert_allclose(line[list(TERMS)].astype(float), at[best][list(TERMS)])
        assert line["completeness"] == pytest.approx(goal[best] / 2)
        assert line["score"] == pytest.approx((goal[best] / 2 + line["sd"] + line["ts"]) / 3)
        assert line["low"] < line["score"] < line["high"] and line["n"] == 25
        part = each.iloc[own]
        np.testing.assert_allclose(part[list(TERMS)].mean(), at[best][list(TERMS)])
        assert (part["threshold"] == best).all()
        checks = part[["csdc", "pc", "dc"]].mean(axis=1)
        complete = pd.concat([checks, part["d"]], axis=1).mean(axis=1)
        np.testing.assert_allclose(part["completeness"], complete)
        three = pd.concat([complete, part["sd"], part["ts"]], axis=1).mean(axis=1)
        np.testing.assert_allclose(part["score"], three)
        facts_of = rows.iloc[own]
        assert line["accuracy"] == facts_of["correct"].mean() and line["ts_kept"] == facts_of["ts_kept"].mean()


def test_the_interval_contains_the_score_of_the_whole_set():
    everything, _, _ = random_rows(4000, 11)
    everything["method"] = "one"
    truth = summary(everything, draws=2)["score"].item()
    inside = 0
    for k in range(20):
        part = summary(everything.iloc[200 * k : 200 * k + 200], draws=200).iloc[0]
        inside += part["low"] <= truth <= part["high"]
    assert inside >= 15


def test_a_missing_term_is_undefined_and_not_zero():
    rows = pd.DataFrame([true_row() | {"ts_kept": False}])
    assert np.isnan(summary(rows, draws=5)[["contrastivity", "score", "low"]].to_numpy(float)).all()
    assert per_explanation(rows)["score"].item() == 1  # the mean of the terms that it has
    lost = rows.assign(map_sum=np.nan, **{f"part_{p}": np.nan for p in PARTS})
    assert np.isnan(threshold(lost)) and per_explanation(lost).isna().all(axis=None)
    both = per_explanation(pd.concat([lost.assign(method="lost"), rows], ignore_index=True))
    assert both["score"].isna().tolist() == [True, False]


def test_groups_may_lack_a_layer():
    rows = pd.DataFrame([true_row() | {"layer": np.nan}, true_row() | {"layer": 1.0}, true_row() | {"layer": np.nan}])
    assert summary(rows, draws=2)["n"].tolist() == [2, 1]
    assert summary(rows, by=["method"], draws=2)["n"].tolist() == [3]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(-20, 20))
def test_the_scale_of_a_map_does_not_matter(seed, power):
    rows, _, _ = random_rows(6, seed)
    scaled = rows.copy()
    columns = [name for name in rows if name.startswith(("part_", "object_")) or name == "map_sum"]
    scaled[columns] *= 2.0**power
    for name, values in scores(rows).items():
        np.testing.assert_array_equal(scores(scaled)[name], values)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_scores_stay_in_range_and_fewer_parts_are_important_as_t_grows(seed):
    found = scores(random_rows(8, seed)[0])
    for values in found.values():
        defined = values[np.isfinite(values)]
        assert ((defined >= 0) & (defined <= 1)).all()
    steps = {name: np.nan_to_num(np.diff(found[name])) for name in ("csdc", "d")}
    assert (steps["csdc"] <= 0).all() and (steps["d"] >= 0).all()


def test_bad_input_is_refused_in_one_sentence():
    logits, objects, _ = planted()
    rows = pd.DataFrame([true_row()])
    mask = torch.zeros(4, 4, dtype=torch.bool)
    cases = {
        "unknown part or object 'beack'. Did you mean 'beak'": lambda: importances(
            torch.ones(1, 4, 4), [{"beack": mask}]
        ),
        r"shape \(5, 5\), got eye \(4, 4\)": lambda: importances(torch.ones(1, 5, 5), [{"eye": mask}]),
        r"B sets of masks, got \(1, 4, 4\) with 2": lambda: importances(torch.ones(1, 4, 4), [{}, {}]),
        r"logits of shape \(32, 4\), got \(31, 4\)": lambda: facts(logits[:31], objects, 0, CLASSES),
        r"without objects \(0..35, 4\), got \(3, 3\)": lambda: facts(logits, objects[:, :3], 0, CLASSES),
        "a label from 0 to 3, got 4": lambda: facts(logits, objects, 4, CLASSES),
        "of class 1, got beak": lambda: distinguishing([CLASSES[0], {"beak": 0}]),
        "without the columns keeps": lambda: scores(rows.drop(columns="keeps")),
        "unknown column 'stage'": lambda: summary(rows, by=["stage"]),
    }
    for message, wrong in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            wrong()
        assert "\n" not in str(caught.value)
    assert set(NEEDED) <= set(rows) and set(GROUP) <= set(rows)
