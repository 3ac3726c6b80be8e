"""The birds: reproducible drawings, exact part maps, and files in FunnyBirds' layout."""

import hashlib
import json

import numpy as np
import pytest
import torch

from refinecam_lib import paths
from refinecam_lib.errors import InputError
from refinecam_lib.funnybirds import dataset as funnybirds
from refinecam_lib.funnybirds import drawing as birds
from refinecam_lib.funnybirds.dataset import PARTS, FunnyBirds


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    birds.write(root, train=2, test=2)
    return root


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.delenv("FUNNYBIRDS_ROOT", raising=False)
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    return FunnyBirds()


def test_written_files_equal_drawings_on_demand(written, own):
    read = FunnyBirds(written)
    assert len(read) == 2 and len(own) == 500 and read.classes == own.classes
    for index in range(2):
        assert torch.equal(read[index].image, own[index].image) and read[index].target == own[index].target
        assert torch.equal(read.interventions(index), own.interventions(index))
        assert torch.equal(read.without_objects(index), own.without_objects(index))
        masks, others = read.masks(index), own.masks(index)
        assert masks.keys() == others.keys() and all(torch.equal(masks[name], others[name]) for name in masks)
        assert torch.equal(read.train(index).image, own.train(index).image)
    assert torch.equal(own.intervention(0, PARTS), own[0].image)


def test_a_part_changes_the_picture_only_where_its_map_says(own):
    for index in range(6):
        bird = own.scene(index)
        labels = birds.part_map(bird).astype(int) @ (65536, 256, 1)
        for part in PARTS:
            less = frozenset(PARTS) - {part}
            fewer = birds.part_map(bird, less).astype(int) @ (65536, 256, 1)
            changed = (birds.draw(bird).astype(int) != birds.draw(bird, less)).any(-1)
            assert changed.sum() > 20, "the part is visible"
            mask = own.masks(index)[part].numpy()  # widened by 5 x 5, so it contains the part's soft edge
            assert not (changed & ~mask).any(), (index, part)
            assert ((labels != fewer) <= mask).all()


def test_scenes_and_drawings_are_reproducible():
    assert birds.scene("train", 7) == birds.scene("train", 7) != birds.scene("train", 57)
    first, again = (hashlib.sha256(birds.draw(birds.scene("test", 3)).tobytes()).hexdigest() for _ in range(2))
    assert first == again
    small = birds.draw(birds.scene("test", 3), side=128)
    assert small.shape == (128, 128, 3) and small.dtype == np.uint8


def test_classes_differ_in_two_parts_and_training_birds_lack_parts():
    for k, one in enumerate(birds.CLASSES):
        for other in birds.CLASSES[:k]:
            assert sum(one[part] != other[part] for part in PARTS) >= 2
    lacking = [sum(birds.scene("train", i)[f"{p}_model"] == birds.PLACEHOLDER for p in PARTS) for i in range(400)]
    assert set(lacking) == set(range(6)) and 0.35 < np.mean(np.array(lacking) > 0) < 0.5


def test_compatible_classes_have_all_visible_parts(own):
    for index in range(60):
        sample, bird = own.train(index, side=64), own.scene(index, "train")
        shown = [part for part in PARTS if bird[f"{part}_model"] != birds.PLACEHOLDER]
        label = own.classes[sample.target]
        expected = [k for k, one in enumerate(own.classes) if all(one[part] == label[part] for part in shown)]
        assert sample.info["compatible"] == ",".join(map(str, expected)) and sample.image.shape == (3, 64, 64)


def test_errors_of_a_malformed_set_name_the_file(tmp_path):
    birds.write(tmp_path, train=1, test=1)
    read = FunnyBirds(tmp_path)
    (tmp_path / birds.intervention_name(read.scene(0), 0, ("beak",))).unlink()
    with pytest.raises(InputError, match="body_beak.png is missing or not a picture"):
        read.interventions(0)
    name = tmp_path / birds.image_name("test_part_map", read.scene(0), 0)
    colours = birds.part_map(read.scene(0))
    colours[:9] = (1, 2, 3)
    birds.save(name, colours)
    with pytest.raises(
        InputError, match=r"3.5% of the pixels have colours of no part .* such as \(1, 2, 3\); expected at most 3%"
    ):
        read.masks(0)
    (tmp_path / "dataset_test.json").write_text("[]")
    with pytest.raises(InputError, match=r"dataset_test.json: expected a list with items, got \[\]"):
        FunnyBirds(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps([{"class_idx": 0}]))
    with pytest.raises(InputError, match="classes.json: expected a beak from 0 to 3 for class 0, got None"):
        FunnyBirds(tmp_path)
    assert funnybirds.SPREAD == 5
