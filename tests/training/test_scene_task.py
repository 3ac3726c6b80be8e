"""The twins of the scenes as tasks: their items, their targets, and the start from the shapes' weights."""

import json
from dataclasses import replace

import pytest
import torch
from toys import TINY_RECIPE as TINY

from refinecam_lib import paths
from refinecam_lib.datasets.cutouts import BADGES, CLASSES
from refinecam_lib.datasets.sample import Sample
from refinecam_lib.errors import InputError
from refinecam_lib.networks import checkpoints, loading, zoo
from refinecam_lib.training import __main__ as train
from refinecam_lib.training import loop, tasks
from refinecam_lib.training.recipe import Recipe

SHAPES = str(paths.CHECKPOINTS / "efficientnet_lite0.safetensors")


@pytest.mark.parametrize(("name", "classes"), [("scenes_objects", CLASSES), ("scenes_badges", tuple(BADGES))])
def test_windows_hold_what_the_class_is_about(name, classes):
    task = tasks.task_of(name, seed=3, shares=(1, 0, 0))
    assert task.classes == classes and tasks.TASKS[name].side == 224
    for index in range(4):
        small, whole = task.item(index, 64), task.item(index, 224)
        assert small.image.shape == (3, 64, 64) and whole.image.shape == (3, 224, 224)
        assert small.mask.any() and small.info["objects"] == "1" and small.without is None
        assert small.info["size"] == whole.info["size"] == "small"
        assert classes[whole.target] == whole.info["class"] and whole.id.startswith("train-mixed-3-")
    ids = [sample.id for sample in task.validation(3, 224)]
    assert ids == [f"validation-mixed-{k:06d}" for k in range(3)]
    tests = task.tests()
    assert [(each.split, each.seed, each.condition, len(each)) for each in tests.values()] == [
        ("test", 0, "mixed", 600),
        ("test", 4, "mixed", 6000),
    ]


def test_two_objects_share_the_target_and_either_is_right():
    task = tasks.SceneObjects()
    samples = [task.item(k, 224) for k in range(30)]
    infos = [sample.info for sample in samples]
    shares = loop._target(torch.tensor([sample.target for sample in samples]), infos, 12)
    assert torch.equal(shares.sum(1), torch.ones(30))
    two = torch.tensor([info["objects"] == "2" for info in infos])
    assert two.any() and torch.equal(shares.amax(1), torch.where(two, 0.5, 1.0))

    class Always(torch.nn.Linear):
        def forward(self, inputs):
            return torch.eye(12)[7].expand(len(inputs), 12)

    shown = [
        Sample(torch.zeros(3, 8, 8), 2, str(k), None, {"compatible": classes, "objects": str(len(classes.split(",")))})
        for k, classes in enumerate(("2,7", "2", "7,2", "2,1"))
    ]
    found = loop.evaluate(Always(1, 1), shown, zoo.spec_of("resnet18"))
    assert found["accuracy"] == 0.5
    assert (found["objects"]["1"]["accuracy"], found["objects"]["2"]["n"]) == (0, 3)


@pytest.mark.parametrize("model", ["efficientnet_lite0", "resnet18"])
def test_scenes_start_from_the_weights_of_the_shapes(model):
    path = paths.CHECKPOINTS / f"{model}.safetensors"
    recipe = Recipe(model, "scenes_badges", weights=str(path))
    networks = [loop._start(recipe, tasks.SceneBadges(), zoo.spec_of(model)) for _ in range(2)]
    known = loading.restore(model, path)[0].state_dict()
    head = "fc." if model == "resnet18" else "classifier."
    for key, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[key])
        assert key.startswith(head) or torch.equal(value, known[key]), key
    assert networks[0](torch.zeros(1, 3, 64, 64)).shape == (1, 12)
    with pytest.raises(InputError, match="of 6 classes; allowed: of 50"):
        birds = checkpoints.read_checkpoint(path)[1] | {"task": "birds"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "restore", lambda *_: (networks[0], birds))
            loop._start(replace(recipe, task="birds"), tasks.Birds(), zoo.spec_of(model, "birds"))


def test_a_twin_trains_from_the_shapes_and_its_card_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(tasks, "TEST_ITEMS", 4)
    monkeypatch.setattr(tasks, "FRESH_ITEMS", 6)
    recipe = replace(TINY, task="scenes_objects", weights=SHAPES, images=8, validation=3)
    card = train.train(recipe, device="cpu", workers=0, progress=False)
    path = tmp_path / "training" / "efficientnet_lite0_scenes_objects" / "efficientnet_lite0_scenes_objects.safetensors"
    assert json.loads(path.with_suffix(".json").read_text()) == card
    assert card["classes"] == list(CLASSES) and card["task"] == "scenes_objects" and card["task_data"] == "own scenes"
    assert card["test"]["n"] == 4 and card["fresh"]["n"] == 6
    assert {"size", "class", "background", "hidden", "distractors", "objects"} < card["fresh"].keys()
    assert card["test_readings"] == 1, "the shapes' test set is another one"
    assert card["images_in_all"] > 8 and card["started_from"]["sha256"]
    monkeypatch.setattr(paths, "CHECKPOINTS", path.parent)
    assert loading.load_model("efficientnet_lite0", "scenes_objects")(torch.zeros(1, 3, 224, 224)).shape == (1, 12)


def test_only_the_shapes_have_a_transfer_test():
    with pytest.raises(InputError, match="a transfer test of scenes_badges; allowed: of the task synthetic"):
        tasks.task_of("scenes_badges", transfer="x")
