"""The certificate: networks that read the truth pass, networks that read anything else do not."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from tiny_networks import tiny_net

from refinecam_lib.datasets.cutouts import CLASSES
from refinecam_lib.datasets.scenes import LAYERS
from refinecam_lib.errors import InputError, rng
from refinecam_lib.explanation import BASE, CAMS, CONTROLS, OTHERS, SLOW, TRIVIAL
from refinecam_lib.metrics import EXACT_FRACTIONS
from refinecam_lib.networks import checkpoints, zoo
from refinecam_lib.road import removal_order
from refinecam_lib.sweeps import experiments, measurements, shard
from refinecam_lib.sweeps.certificate import REDRAWS, certify
from refinecam_lib.sweeps.run import sweep

PLACES = {layer: np.s_[6 * k : 6 * k + 4, 6 * k : 6 * k + 4] for k, layer in enumerate(LAYERS)}
KINDS = tuple("abcdefghijkl")


@dataclass(frozen=True)
class ToyScene:
    """One grey square per layer on a grey background. A class is a grey value. A bright occluder hides the object."""

    kinds: dict[str, int]

    @property
    def things(self):
        return {layer: (value,) if value is not None else () for layer, value in self.kinds.items()}

    def kind(self, layer):
        return KINDS[self.kinds[layer]]

    def drawn(self, without=()):
        image = np.full((40, 40, 3), 20 * self.kinds["background"], np.uint8)
        for layer in LAYERS[1:]:
            if layer not in without and self.kinds[layer] is not None:
                hides = layer == "occluder" and self.kinds[layer] >= 6
                image[PLACES["object" if hides else layer]] = 20 * self.kinds[layer]
        return image

    def redrawn(self, layers, *seed):
        other = {x: int(rng(x, *seed).integers(12)) for x in layers if self.kinds[x] is not None}
        return replace(self, kinds=self.kinds | other)

    def swapped(self, layer, *seed):
        other = [k for k in range(12) if k != self.kinds[layer]]
        return replace(self, kinds=self.kinds | {layer: other[int(rng("swap", *seed).integers(11))]})

    def kept_on(self, other, layer):
        image = other.drawn([layer])
        image[PLACES[layer]] = self.drawn()[PLACES[layer]]
        return image


SCENE = ToyScene(
    {"background": 0, "distractors": 3, "second": None, "object": 7, "occluder": 2, "badge": 5},
)


def reads(layer, seen=None):
    """Return a network that reads the grey value at a layer's place, with logits from 0 down."""

    def logits_of(images):
        if seen is not None:
            seen.extend(images.numpy().tobytes() for images in images)
        value = images[(slice(None), 0, *PLACES[layer])].mean((1, 2)) * 255 / 20
        return -4 * (value[:, None] - torch.arange(12)).abs()

    return logits_of


def test_a_network_that_reads_the_truth_is_certified():
    seen = []
    found = certify(reads("object", seen), SCENE, "object", KINDS, "image")
    assert found["correct"] and found["logit"] == 0
    assert found["redraws"] == found["kept"] == found["kept_fresh"] == found["swapped"] == REDRAWS == 8
    assert found["logit_without"] == -28 and found["probability_without"] < 0.01
    assert found["probability"] > 0.9
    for layer in LAYERS:
        there = layer not in ("second", "object")
        assert found[f"moved_{layer}"] == 0 if there else np.isnan(found[f"moved_{layer}"])
        assert found[f"kept_{layer}"] == 8 if there else np.isnan(found[f"kept_{layer}"])
    assert len(seen) == 2 + 8 + 8 + 8 + 4 * 8
    assert not set(seen[2:10]) & set(seen[10:18]), "fresh redraws are others"


def test_a_network_that_reads_something_else_is_not():
    background = certify(
        reads("background"), replace(SCENE, kinds=SCENE.kinds | {"background": 7}), "object", KINDS, "x"
    )
    assert background["correct"] and background["kept"] < 4 and background["kept_fresh"] < 4
    assert background["logit_without"] == background["logit"] and background["swapped"] == 0
    assert background["moved_background"] > 0 == background["moved_badge"]
    twin = certify(reads("object"), SCENE, "badge", KINDS, "x")
    assert not twin["correct"] and twin["moved_object"] > 0 and np.isnan(twin["moved_badge"])
    assert twin["logit_without"] == twin["logit"] == -8


def test_the_largest_move_of_the_logit_is_kept():
    def mixed(images):
        return reads("object")(images) + images[:, 0, -1, -1, None] * 3  # the background, for all classes alike

    found = certify(mixed, SCENE, "object", KINDS, "y")
    greys = [SCENE.redrawn(["background"], "certificate", "alone", "y", k).kinds["background"] for k in range(8)]
    assert found["moved_background"] == pytest.approx(max(greys) * 20 / 255 * 3, rel=1e-6)
    assert found["kept_background"] == 8


def test_with_two_objects_the_second_highest_class_counts_too():
    two = replace(SCENE, kinds=SCENE.kinds | {"second": 8})

    def both(images):
        return torch.maximum(reads("object")(images), reads("second")(images) + 0.5)

    found = certify(both, two, "object", KINDS, "z")
    assert found["correct"] and found["kept"] == 8 and found["kept_second"] == 8
    assert not certify(both, replace(two, kinds=two.kinds | {"badge": 7}), "badge", KINDS, "z")["correct"]


@pytest.fixture
def network(toy, monkeypatch):
    """Register an untrained network for both twins of the scenes."""
    spec = replace(zoo.MODELS["tiny"], build=lambda classes, pretrained: tiny_net(num_classes=classes))
    monkeypatch.setitem(zoo.MODELS, "tiny", spec)
    for twin in ("objects", "badges"):
        file = toy / f"tiny_scenes_{twin}.safetensors"
        safetensors.torch.save_file(tiny_net(num_classes=12).state_dict(), file)
        card = {"model": "tiny", "classes": list(CLASSES), "sha256": checkpoints.sha256_of(file)}
        file.with_suffix(".json").write_text(pd.Series(card).to_json())


@pytest.mark.parametrize("twin", ["objects", "badges"])
def test_rows_are_measured_like_others(network, twin):
    shards = shard.plan("tiny", [""], 4, dataset=f"scenes_{twin}", size=2, measurement="certificate")
    rows = sweep(shards).sort_values("image", ignore_index=True)
    assert rows["condition"].tolist() == ["base", "distractors", "mosaic", "photograph"]
    assert (rows["redraws"] == 8).all() and rows["status"].eq("ok").all()
    assert rows["moved_distractors"].notna().tolist() == [False, True, False, False]
    assert rows[f"moved_{twin[:-1]}"].isna().all() and rows["kept"].between(0, 8).all()
    again = sweep(shard.plan("tiny", [""], 4, dataset=f"scenes_{twin}", size=4, measurement="certificate"))
    again = again.sort_values("image", ignore_index=True)
    pd.testing.assert_frame_equal(again[rows.columns], rows, check_exact=False, atol=1e-5)
    moved = measurements.measure_shard(shards[0], rounding=1)
    gap = abs(moved["logit"] - rows["logit"][[0, 3]].to_numpy()).max()
    assert 0 < gap < 1e-3, "rounding moves a row by about a rounding step"


def test_rows_of_scores_know_factor_condition_and_both_objects(network):
    rows = sweep(shard.plan("tiny", ["GroundTruth"], 10, [BASE], "scenes_objects", size=5))
    assert rows["condition"].nunique() == 10 and set(rows["hidden"]) == {"0", "50"}
    assert {"exact_morf_0.5", "exact_lerf_40", "cosine", "morf_20", "badge", "objects", "size"} < set(rows)
    assert (rows["average_precision"] == 1).all()
    second = [int(shown.split(",")[-1]) for shown in rows["compatible"]]
    one = rows["objects"] == "1"
    assert (rows["correct"] == (rows["prediction"] == rows["target"]))[one].all()
    assert rows["correct"][~one & (rows["prediction"] == rows["target"])].all() and len(set(second)) > 1


def test_wrong_masks_mark_something_else(network):
    truth, other, half, more = (_shares(f"scenes_objects{mark}") for mark in ("", "_other", "_half", "_more"))
    badges = _shares("scenes_badges")
    assert np.allclose(other, badges) and np.allclose(half / truth, 0.5, atol=0.07)
    assert np.allclose(more[[0, 2, 3]], truth[[0, 2, 3]]) and more[1] > truth[1]


def _shares(dataset):
    """Return the share of the image that each mask marks, for base, distractors, mosaic and photograph."""
    rows = sweep(shard.plan("tiny", ["GroundTruth"], 4, [BASE], dataset, size=4))
    return rows.sort_values("image")["mean_activation"].to_numpy()


def test_other_data_sets_have_no_certificate(network):
    with pytest.raises(InputError, match="Expected scenes for a certificate, got the data set 'toy'"):
        sweep(shard.plan("tiny", [""], 2, dataset="toy", measurement="certificate"))


def test_plans_cover_both_twins_and_every_mark(network):
    twins, marks = {"scenes_objects", "scenes_badges"}, {"other", "half", "more", "distractors"}
    certificates = experiments.certificate_plan(["tiny"], 20)
    assert {each.dataset for each in certificates} == twins and {each.measurement for each in certificates} == {
        "certificate"
    }
    assert sorted(number for each in certificates for number in each.numbers) == sorted([*range(20)] * 2)
    images = {}
    for each in experiments.scenes_plan(["tiny"], 20, 2):
        images.setdefault(each.method, set()).update((each.dataset, number) for number in each.numbers)
    every = {*CAMS, *OTHERS, *TRIVIAL, *CONTROLS}
    wanted = {method: 4 if method in SLOW else 40 for method in every}
    assert {method: len(found) for method, found in images.items()} == wanted
    light = {each.method for each in experiments.scenes_plan(["tiny"], 20, 2, ["tiny"])}
    assert light == every.difference(SLOW)
    planned = {(each.dataset, each.method) for each in experiments.marks_plan(["tiny"], 20)}
    assert planned == {(f"{twin}_{mark}", "GroundTruth") for twin in twins for mark in marks}
    finalists = experiments.elsewhere_plan([], 1, [], 1, ["tiny"], 20)["scenes"]
    every = experiments.scenes_plan(["tiny"], 20, 2)
    assert {each.setup for each in finalists} < {each.setup for each in every}, "notebooks 13 and 16 share rows"
    pairs = {(each.setup, pair) for each in every for pair in each.pairs}
    assert all((each.setup, pair) in pairs for each in finalists for pair in each.pairs)
    imputers = experiments.imputers_plan(["tiny"], 20)
    assert {each.dataset for each in imputers} == {*twins, "synthetic"}


def test_imputers_are_compared_with_exact_removal(network):
    planned = [*shard.plan("tiny", ["GroundTruth"], 3, [BASE], "scenes_objects", measurement="imputers")]
    rows = sweep(planned).sort_values("image", ignore_index=True)
    work = measurements.Work(planned[0])
    known = {"exact": work.without, "black": measurements.normalise(torch.zeros_like(work.inputs), work.spec)}
    for name, filling in known.items():
        one = torch.zeros(3)
        for share in EXACT_FRACTIONS:
            count = round(share * work.masks[0].numel())
            order = removal_order(work.masks.double(), work.capture.seeds_of("road"))
            for gone, sign in ((order < count, -1), (order >= order[0].numel() - count, 1)):
                mixed = torch.where(gone[:, None], filling, work.inputs)
                one += sign * work.model(mixed).softmax(1)[torch.arange(3), work.target] / len(EXACT_FRACTIONS)
        order = [names.index(image) for names in [[s.id for s in work.samples]] for image in rows["image"]]
        assert np.allclose(rows[name], one[order].detach(), atol=1e-5)
    assert rows["linear"].between(-1, 1).all() and rows["mean"].nunique() == 3 and rows["blur"].nunique() == 3
    with pytest.raises(InputError, match="Expected images with a known background"):
        sweep(shard.plan("tiny", ["GroundTruth"], 2, dataset="toy", measurement="imputers"))
