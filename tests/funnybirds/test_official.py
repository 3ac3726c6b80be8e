"""The official FunnyBirds: a set with its difficulties is read, measured as by its framework, and trained on."""

import json
from collections import Counter

import numpy as np
import official_birds
import pytest
import scipy.ndimage
import torch
from captum.attr import InputXGradient
from official_birds import HIDDEN, KINDS, LACKING, number_of
from PIL import Image
from test_score import slow, target_columns
from torch import nn

from refinecam_lib import paths
from refinecam_lib.capture import Capture
from refinecam_lib.errors import InputError
from refinecam_lib.explanation import BASE, REFINED
from refinecam_lib.funnybirds.dataset import PARTS, FunnyBirds
from refinecam_lib.funnybirds.drawing import LABELS, listed, subsets
from refinecam_lib.funnybirds.rows import BirdImages, SeenBirds
from refinecam_lib.funnybirds.score import TERMS, THRESHOLDS, per_explanation, scores, sensitivity_pair, summary
from refinecam_lib.networks import loading
from refinecam_lib.scoring import scores as arcc_scores
from refinecam_lib.sweeps.run import sweep
from refinecam_lib.sweeps.shard import plan
from refinecam_lib.training import __main__ as training
from refinecam_lib.training import loop, tasks
from refinecam_lib.training.recipe import Recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return official_birds.write(tmp_path_factory.mktemp("official"), train=2)


@pytest.fixture
def copy(root, tmp_path):
    """A copy of the lists whose pictures are links, to break."""
    for file in root.rglob("*.*"):
        target = tmp_path / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes()) if file.suffix == ".json" else target.symlink_to(file)
    return tmp_path


def part_map(root, kind):
    index, birds = number_of(kind), FunnyBirds(root)
    name = root / "test_part_map" / str(birds.scene(index)["class_idx"]) / f"{index:06d}.png"
    return np.asarray(Image.open(name))[..., :3].astype(int), birds.scene(index)


def widened(pixels, colour):
    return scipy.ndimage.maximum_filter((pixels == colour).all(-1).astype(int), 5, mode="constant")


@pytest.mark.parametrize("kind", KINDS)
def test_masks_ignore_the_colours_of_antialiased_edges(root, kind):
    pixels, bird = part_map(root, kind)
    count = len(listed(bird, "bg_objects"))
    known = [*LABELS.values(), (0, 0, 0), *((204, 204, 204 + i) for i in range(count))]
    mixed = ~np.any([(pixels == colour).all(-1) for colour in known], 0)
    assert 0.003 < mixed.mean() < 0.03
    masks = FunnyBirds(root).masks(number_of(kind))
    counted = FunnyBirds(root).masks(number_of(kind), framework=True)
    assert list(masks) == list(counted) == [*PARTS, *(f"object_{i:02d}" for i in range(count))]
    for part in PARTS:
        layers = [widened(pixels, colour) for label, colour in LABELS.items() if label.rstrip("012") == part]
        assert np.array_equal(masks[part], np.any(layers, 0)) and np.array_equal(counted[part], np.sum(layers, 0))
        hidden = part == {"hidden": HIDDEN, "lacking": LACKING}.get(kind)
        assert masks[part].any() != hidden
    for i in range(count):
        assert np.array_equal(masks[f"object_{i:02d}"], widened(pixels, (204, 204, 204 + i)) > 0)
    assert counted["eye"].max() == 2, "the eyes are close to each other"


def test_no_and_many_background_objects_are_read(root):
    birds = FunnyBirds(root)
    sizes = {kind: len(birds.without_objects(number_of(kind))) for kind in ("empty", "crowded")}
    assert sizes == {"empty": 0, "crowded": official_birds.OBJECTS}
    images = birds.interventions(number_of("hidden"))
    assert torch.equal(images[31], images[31 ^ 1 << PARTS.index(HIDDEN)]) and not torch.equal(images[31], images[30])


def test_a_part_map_of_other_colours_is_refused(copy):
    index, birds = number_of("usual"), FunnyBirds(copy)
    file = copy / "test_part_map" / str(birds.scene(index)["class_idx"]) / f"{index:06d}.png"
    file.unlink()
    Image.new("RGBA", (256, 256), (1, 2, 3, 255)).save(file)
    with pytest.raises(InputError, match=r"100.0% of the pixels have colours of no part .* such as \(1, 2, 3\)"):
        birds.masks(index)


def test_contradictions_are_refused_in_one_sentence_that_names_the_file(copy):
    def edited(name, change):
        path = copy / name
        before = path.read_text()
        path.write_text(json.dumps(change(json.loads(before))))
        with pytest.raises(InputError) as caught:
            FunnyBirds(copy).train_length()
        path.write_text(before)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def reversed_parts(classes):
        return [{"class_idx": k, "parts": one["parts"]} for k, one in enumerate(classes[::-1])]

    assert "dataset_test.json: scene 0 shows" in edited("classes.json", reversed_parts)
    assert "in classes.json" in edited("classes.json", reversed_parts)
    assert "expected class_idx 0 at position 0, got 49" in edited("classes.json", lambda classes: classes[::-1])
    assert "dataset_test.json lists 4 images, but test/ holds 5" in edited(
        "dataset_test.json", lambda birds: birds[:-1]
    )
    twice = edited("dataset_test.json", lambda birds: [*birds, birds[-1]])
    assert "dataset_test.json lists 6 images, but 1 are missing, the first is" in twice
    assert "scene 0 has no foot_model" in edited(
        "dataset_train.json", lambda birds: [{k: v for k, v in birds[0].items() if k != "foot_model"}]
    )
    file = next((copy / "train" / "49").glob("*.png"))
    file.unlink()
    with pytest.raises(InputError, match=f"dataset_train.json lists 100 images, but 1 are missing, .*{file.name}"):
        FunnyBirds(copy).train_length()


def test_an_index_beyond_the_list_is_refused_and_ends_a_loop(root):
    birds = FunnyBirds(root)
    for read in (birds.test, birds.masks, birds.interventions, birds.__getitem__):
        with pytest.raises(InputError, match="Expected a test image from 0 to 4, got 5"):
            read(5)
    assert len(list(birds)) == 5 and torch.equal(birds[-1].image, birds[4].image)


KINDS_BY_NUMBER = {number_of(kind): kind for kind in KINDS}


def logits(model, image):
    with torch.no_grad():
        return model(image[None].double())[0].numpy()


def sums(model, root, kind, target):
    """Sum signed InputXGradient over each part as FunnyBirds' framework does: label by label."""
    pixels, bird = part_map(root, kind)
    x = FunnyBirds(root)[number_of(kind)].image[None].double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0, target], x)
    attribution = (x * gradient).detach().numpy()[0]
    row = {f"part_{part}": 0.0 for part in PARTS} | {"map_sum": attribution.sum()}
    for label, colour in LABELS.items():
        if label != "body":
            row[f"part_{label.rstrip('012')}"] += (attribution * widened(pixels, colour)).sum()
    for k in range(len(listed(bird, "bg_objects"))):
        row[f"object_{k:02d}"] = (attribution * widened(pixels, (204, 204, 204 + k))).sum()
    return row


class Reversed(nn.Module):
    """The shipped network with its classes in the order of the small set."""

    def __init__(self):
        super().__init__()
        self.net = loading.load_model("small_resnet", "birds")

    def forward(self, inputs):
        return self.net(inputs).flip(1)


def test_signed_maps_with_the_frameworks_counting_give_the_frameworks_numbers(root, tmp_path, monkeypatch):
    """InputXGradient in float64 against an independent computation, part by part and intervention by intervention."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setenv("FUNNYBIRDS_ROOT", str(root))
    model, images = Reversed().double().eval(), BirdImages(len(KINDS), labelled=True)
    birds, labels = images.birds, torch.tensor([sample.target for sample in images])
    inputs = torch.stack([sample.image for sample in images]).double()

    def signed(capture):
        return InputXGradient(capture.model).attribute(capture.inputs, target=capture.target).sum(1).detach()

    capture = Capture(model, inputs, labels, ["net." + loading.spec_of("small_resnet", "birds").layers[0]])
    seen = SeenBirds(capture, images, range(len(KINDS)), "double", framework=True)
    rows = seen.columns_of(signed(capture), signed)
    found = scores(rows)
    assert rows["correct"].sum() >= 3, "the network is right on some birds"
    moved = SeenBirds(capture, images, range(len(KINDS)), "double").columns_of(signed(capture), signed)
    assert (moved[["part_eye", "part_foot"]] != rows[["part_eye", "part_foot"]]).any(axis=None)

    for i, number in enumerate(images.numbers):
        kind, label = KINDS_BY_NUMBER[number], int(labels[i])
        parts = np.stack([logits(model, birds.intervention(number, kept)) for kept in subsets()])
        without = [logits(model, image) for image in birds.without_objects(number)]
        own, pair = sums(model, root, kind, label), sensitivity_pair(label, birds.classes)
        if pair:
            made = [sums(model, root, kind, target) for target in pair[:2]]
            one, two = ({part: row[f"part_{part}"] for part in PARTS} for row in made)
            own |= target_columns(one, two, pair)
        for name, value in own.items():
            assert rows.loc[i, name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
        for k, t in enumerate(THRESHOLDS):
            wanted = slow(own, parts, without, label, birds.classes, t, of_label=True)
            for name in TERMS:
                value = found[name][i, k % found[name].shape[1]]
                assert value == pytest.approx(wanted[name], abs=1e-9, nan_ok=True), (number, name, t)


def test_every_class_of_an_ordered_list_is_trained_on_and_held_out(root, monkeypatch):
    monkeypatch.setenv("FUNNYBIRDS_ROOT", str(root))
    task = tasks.Birds()
    scenes = [{"class_idx": k // 1000, **{f"{p}_model": "x" for p in PARTS}} for k in range(50_000)]
    task.birds._lists["train"] = scenes
    training, held_out = tasks.split_of(task.birds)
    assert not set(training) & set(held_out) and len(training) + len(held_out) == 50_000
    assert set(Counter(k // 1000 for k in held_out).values()) == {tasks.HELD_OUT // 50}
    assert set(Counter(k // 1000 for k in held_out[:500]).values()) == {10}, "a part of them has every class, too"
    assert set(Counter(k // 1000 for k in training).values()) == {980}


def test_a_network_trained_on_the_set_is_measured_on_it(root, tmp_path, monkeypatch):
    """From the layout's files to the numbers behind Fig. 3b."""
    for name, value in (("RESULTS", tmp_path), ("CHECKPOINTS", tmp_path)):
        monkeypatch.setattr(paths, name, value)
    monkeypatch.setenv("FUNNYBIRDS_ROOT", str(root))
    recipe = Recipe("small_resnet", "birds", "none", images=12, batch=6, stages=((32, 1.0),), validation=50)
    card = training.train(recipe, tmp_path / "small_resnet_birds.safetensors", "cpu", 0, progress=False)
    assert card["data"].startswith("FunnyBirds") and card["test"]["n"] == 5 and card["validation"]["n"] > 0
    shards = plan("small_resnet", ["LayerCAM", "InputXGradient", "RandomCAM"], 5, [BASE, REFINED], "birds")
    rows = sweep(shards)
    assert (rows["status"] != "failed").all() and len(rows) == 5 * 4
    assert per_explanation(rows)["score"].notna().all() and arcc_scores(rows)["arcc"].between(0, 1).all()
    table = summary(rows, draws=10)
    assert len(table) == 4 and table["n"].eq(5).all() and table["pc"].between(0, 1).all()


def test_a_picture_that_disappears_while_training_is_one_sentence(copy, monkeypatch):
    monkeypatch.setenv("FUNNYBIRDS_ROOT", str(copy))
    recipe = Recipe("small_resnet", "birds", "none", images=90, batch=6, stages=((32, 1.0),))
    task = tasks.Birds()
    for file in (copy / "train").rglob("*.png"):
        file.unlink()
    with pytest.raises(InputError) as caught:
        list(loop._batches(recipe, task, 0, 1, False))
    assert "is missing or not a picture" in str(caught.value) and "\n" not in str(caught.value)
