"""The columns of the birds' rows equal their definitions, and the network runs only once per intervention."""

import json

import numpy as np
import official_birds
import pandas as pd
import pytest
import safetensors.torch
import torch
from tiny_networks import LAYERS, TinyNet, batch, tiny_net

from refinecam_lib import paths
from refinecam_lib.cams import grad_cam, score_cam
from refinecam_lib.capture import Capture
from refinecam_lib.controls import random_cam
from refinecam_lib.datasets.sample import PREDICTED
from refinecam_lib.errors import InputError
from refinecam_lib.explanation import BASE, REFINED, explain
from refinecam_lib.funnybirds import drawing as birds
from refinecam_lib.funnybirds import rows as bird_rows
from refinecam_lib.funnybirds.rows import BirdImages, SeenBirds, logits_of
from refinecam_lib.funnybirds.score import NEEDED, facts, importances, sensitivity_pair, summary
from refinecam_lib.networks import checkpoints, loading, zoo
from refinecam_lib.scoring import scores
from refinecam_lib.sweeps import run as sweep
from refinecam_lib.sweeps.shard import plan

SPEC = zoo.ModelSpec("tiny", lambda classes, pretrained: TinyNet(classes), LAYERS)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.delenv("FUNNYBIRDS_ROOT", raising=False)
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    monkeypatch.setitem(zoo.SMALL, "tiny", SPEC)
    file = tmp_path / "tiny_birds.safetensors"
    safetensors.torch.save_file(tiny_net(num_classes=50).state_dict(), file)
    card = {"model": "tiny", "classes": list("birds" * 10), "sha256": checkpoints.sha256_of(file)}
    file.with_suffix(".json").write_text(json.dumps(card))


def forwards(model):
    """Return a list that grows by the number of images of each forward pass."""
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


def captured(n=3):
    model, images = loading.load_model("tiny", "birds"), BirdImages(n)
    inputs = torch.stack([images[i].image for i in range(n)])
    target = model(inputs).argmax(1)
    return Capture(model, inputs, target, LAYERS), images


def test_another_class_takes_the_same_forward_pass():
    inputs, target = batch(2)
    model = tiny_net()
    seen = forwards(model)
    capture = Capture(model, inputs, target, LAYERS)
    first = [capture.maps(method) for method in (grad_cam, score_cam, random_cam)]
    before = len(seen)
    other = capture.of_target(torch.tensor([4, 2]), [8, 9])
    again = [other.maps(method) for method in (grad_cam, score_cam, random_cam)]
    assert len(seen) == before, "no forward pass is repeated, not even ScoreCAM's"
    fresh = Capture(model, inputs, torch.tensor([4, 2]), LAYERS, ids=[8, 9])
    for one, two, own in zip(again, (fresh.maps(m) for m in (grad_cam, score_cam, random_cam)), first):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, two))
        assert not torch.allclose(one[0], own[0])
    assert torch.allclose(other.probability, fresh.probability) and capture.target.tolist() == target.tolist()
    with pytest.raises(InputError, match=r"target \[6, 0\]; allowed: 2 classes of 0..5"):
        capture.of_target(torch.tensor([6, 0]))


def test_logits_are_computed_once(tmp_path):
    model, images = loading.load_model("tiny", "birds"), BirdImages(1)
    number, cpu = images.numbers[0], torch.device("cpu")
    seen = forwards(model)
    found = logits_of(model, images.birds, number, cpu, "net")
    objects = images.birds.without_objects(number)
    assert sum(seen) == len(found) == 32 + len(objects)
    with torch.no_grad():
        whole = model(torch.cat([images.birds.interventions(number), objects]))
    np.testing.assert_allclose(found, whole.numpy(), atol=1e-5)
    seen.clear()
    assert np.array_equal(logits_of(model, images.birds, number, cpu, "net"), found) and not seen
    assert not np.array_equal(logits_of(tiny_net(1, num_classes=50), images.birds, number, cpu, "other"), found)
    file = tmp_path / "bird_logits" / "net" / f"{number:06d}.npy"
    for content in (b"", file.read_bytes()[:200]):
        file.write_bytes(content)
        assert np.array_equal(logits_of(model, images.birds, number, cpu, "net"), found), (
            "a truncated file is computed again"
        )


@pytest.mark.parametrize("method, variant", [("LayerCAM", BASE), ("GradCAM", REFINED), ("InputXGradient", BASE)])
def test_columns_equal_their_definitions(method, variant):
    capture, images = captured()
    explanation = explain(capture, method, variant)
    found, maps = SeenBirds(capture, images, range(3), "net").columns(explanation), explanation.maps
    assert set(NEEDED) <= set(found)
    for i, number in enumerate(images.numbers):
        masks, label = images.birds.masks(number), images.birds[number].target
        with torch.no_grad():
            parts, objects = (
                capture.model(x) for x in (images.birds.interventions(number), images.birds.without_objects(number))
            )
        wanted = facts(parts, objects, label, images.birds.classes)
        assert found.loc[i, list(wanted)].to_list() == pytest.approx(list(wanted.values()), abs=1e-5)
        sums = importances(maps[i : i + 1], [masks]).iloc[0]
        assert found.loc[i, sums.index].to_list() == pytest.approx(sums.to_list(), nan_ok=True)
        one, two, a, b = sensitivity_pair(label, images.birds.classes)
        for which, label in ((1, one), (2, two)):
            alone = Capture(capture.model, capture.inputs[i : i + 1], torch.tensor([label]), LAYERS)
            own = importances(explain(alone, method, variant).maps, [masks]).iloc[0]
            for letter, subset in (("A", a), ("B", b)):
                expected = sum(own[f"part_{part}"] for part in subset)
                assert found.loc[i, f"ts_{which}{letter}"] == pytest.approx(expected, rel=1e-4)
    assert (found[["ts_1A", "ts_1B"]].to_numpy() != found[["ts_2A", "ts_2B"]].to_numpy()).any(), (
        "the maps of the two classes differ"
    )


def test_random_maps_differ_between_classes():
    capture, images = captured()
    seen = SeenBirds(capture, images, range(3), "net")
    found = seen.columns(explain(capture, "RandomCAM"))
    assert (found["ts_1A"] != found["ts_2A"]).all()
    capture.seed = 1
    again = SeenBirds(capture, images, range(3), "net").columns(explain(capture, "RandomCAM"))
    assert (found["ts_1A"] != again["ts_1A"]).all()


def test_a_sweep_over_birds_gives_scores_and_is_independent_of_shards():
    def swept(size, methods=("LayerCAM", "RandomCAM")):
        return sweep.sweep(plan("tiny", methods, 5, [BASE, REFINED], "birds", size))

    rows, other = swept(2), swept(5)
    assert len(rows) == 5 * 3 and (rows["status"] != "failed").all()
    numbers = rows.select_dtypes(float).columns
    np.testing.assert_allclose(rows[numbers], other[numbers], atol=1e-4)
    pd.testing.assert_frame_equal(rows.drop(columns=numbers), other.drop(columns=numbers))
    model, images = loading.load_model("tiny", "birds"), BirdImages(5)
    assert [s.target for s in images] == [PREDICTED] * 5 and len({s.id for s in images}) == 5
    truth = {s.id: images.birds[number].target for s, number in zip(images, images.numbers)}
    predicted = {s.id: int(model(s.image[None]).argmax()) for s in images}
    assert rows["label"].to_list() == [truth[i] for i in rows["image"]]
    assert rows["target"].to_list() == rows["prediction"].to_list() == [predicted[i] for i in rows["image"]]
    assert (rows["correct"] == (rows["label"] == rows["target"])).all()
    assert scores(rows)["arcc"].between(0, 1).all()
    table = summary(rows, draws=20)
    assert len(table) == 3 and (table["n"] == 5).all() and table["pc"].between(0, 1).all()


def test_another_set_of_birds_has_other_keys(tmp_path, monkeypatch):
    first = plan("tiny", ["LayerCAM"], 2, dataset="birds")
    birds.write(tmp_path / "set", train=1, test=5)
    monkeypatch.setenv("FUNNYBIRDS_ROOT", str(tmp_path / "set"))
    assert plan("tiny", ["LayerCAM"], 2, dataset="birds")[0].key != first[0].key
    with pytest.raises(InputError, match="Expected at most 5 birds, the test images of the set, got 6"):
        bird_rows.BirdImages(6)


def test_a_plan_refuses_a_network_of_other_birds(tmp_path, monkeypatch):
    card_path = tmp_path / "tiny_birds.json"
    birds.write(tmp_path / "copy", train=1, test=5)
    monkeypatch.setenv("FUNNYBIRDS_ROOT", str(tmp_path / "copy"))
    card = json.loads(card_path.read_text())
    card_path.write_text(json.dumps(card | {"task_data": "own birds"}))
    assert plan("tiny", ["LayerCAM"], 2, dataset="birds"), "the network knows a copy of the project's own birds"
    monkeypatch.setenv("FUNNYBIRDS_ROOT", str(official_birds.write(tmp_path / "official")))
    for dataset in ("birds", "birds_labelled"):
        with pytest.raises(
            InputError, match="tiny was trained on this project's own birds, but FUNNYBIRDS_ROOT has others"
        ):
            plan("tiny", ["LayerCAM"], 2, dataset=dataset)
    card_path.write_text(json.dumps(card | {"task_data": "FunnyBirds"}))
    assert plan("tiny", ["LayerCAM"], 2, dataset="birds")
    monkeypatch.delenv("FUNNYBIRDS_ROOT")
    with pytest.raises(
        InputError, match="tiny was trained on the birds of FUNNYBIRDS_ROOT, but the variable is not set"
    ):
        plan("tiny", ["LayerCAM"], 2, dataset="birds")
