"""Hints: the teacher's maps as they are, an error that means something, and a student that learns from it."""

import pytest
import torch

from refinecam_lib.errors import InputError
from refinecam_lib.networks import loading, zoo
from refinecam_lib.training.distillation import Hints, maps_of
from refinecam_lib.training.loop import _Run, fit
from refinecam_lib.training.recipe import Recipe

CPU = torch.device("cpu")
TEACHER = "efficientnet_lite0"


def _images(n: int = 6, side: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def _maps(model: torch.nn.Module, spec: zoo.ModelSpec, images: torch.Tensor) -> list[torch.Tensor]:
    with maps_of(model, spec.layers) as maps:
        model(loading.normalise(images, spec))
    return maps


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "swin_tiny", "vgg11"])
def test_the_error_is_1_at_first_whatever_the_network_and_teaches_every_layer(name):
    spec, images = zoo.spec_of(name), _images()
    student = spec.build(6, False).train()
    hints = Hints(TEACHER, student, spec, CPU)
    maps = _maps(student.train(), spec, images)
    assert [m.shape[1] for m in maps] == [head[0].num_features for head in hints.heads]
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2]
    error = hints(maps, images)
    assert error.item() == pytest.approx(1, abs=0.02)  # a channel that is the same everywhere has no variance to miss
    for head in hints.heads:
        torch.nn.init.normal_(head[1].weight)
    hints(maps, images).backward()
    assert all(float(next(student.get_submodule(layer).parameters()).grad.abs().sum()) > 0 for layer in
               spec.layers if list(student.get_submodule(layer).parameters()))  # fmt: skip
    assert not any(p.requires_grad for p in hints.teacher.parameters()) and not hints.teacher.training


def test_the_error_is_0_for_the_teacher_itself():
    spec, images = zoo.spec_of(TEACHER), _images()
    student = loading.load_model(TEACHER)
    hints = Hints(TEACHER, student, spec, CPU)
    maps = _maps(student, spec, images)
    assert all(torch.equal(a, b) for a, b in zip(maps, hints.known(images), strict=True))
    for head in hints.heads:
        head[1].weight.data = torch.eye(len(head[1].weight))[..., None, None]
        torch.nn.init.zeros_(head[1].bias)
    assert hints(maps, images).item() < 1e-6
    assert hints([m.flip(0) for m in maps], images).item() > 0.5, "of other images"


def test_no_hook_is_left_behind():
    model = zoo.spec_of("swin_tiny").build(6, False)
    with pytest.raises(RuntimeError), maps_of(model, zoo.spec_of("swin_tiny").layers):
        model(torch.zeros(1, 5, 64, 64))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_recipe_with_a_teacher_brings_the_maps_closer(tmp_path, monkeypatch):
    errors = []
    forward = Hints.forward

    def watched(hints, *given):
        error = forward(hints, *given)
        errors.append(error.item())
        return error

    monkeypatch.setattr(Hints, "forward", watched)
    recipe = Recipe("resnet18", weights="none", freeze=False, images=64, batch=4, lr=3e-3, stages=((48, 1.0),),
                    validation=2, teacher=TEACHER)  # fmt: skip
    model, record = fit(recipe, "cpu", 0, tmp_path, progress=False)
    assert len(errors) == record["step"] == 16 and sum(errors[-4:]) / 4 < 0.97 < errors[0]
    assert 0.8 < record["history"][-1]["hints"] < 1.1
    assert model.state_dict().keys() == zoo.spec_of("resnet18").build(6, False).state_dict().keys()


def test_at_first_classes_teach_only_what_lies_behind_the_maps():
    recipe = Recipe("resnet18", weights="none", freeze=False, images=8, batch=4, teacher=TEACHER, maps_first=0.5)
    images = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    spec = zoo.spec_of("resnet18")

    def learnt(step, target):
        torch.manual_seed(0)
        model = spec.build(6, False)
        hints = Hints(TEACHER, model, spec, CPU)
        for head in hints.heads:
            torch.nn.init.normal_(head[1].weight)
        averaged = {key: value.clone() for key, value in model.state_dict().items()}
        run = _Run(
            model.train(), torch.optim.SGD(model.parameters(), 1.0), averaged, {}, {"step": step, "losses": []}, hints
        )
        run.learn(images, torch.tensor(target), recipe, spec, None)
        return model.state_dict()

    for step, apart in ((0, {"fc.weight", "fc.bias"}), (1, set(dict(spec.build(6, False).named_parameters())))):
        one, other = learnt(step, [0, 1, 2, 3]), learnt(step, [5, 4, 3, 2])
        differ = {key for key in one if not torch.equal(one[key], other[key])}
        assert differ == apart, f"step {step}"


def test_bad_teachers():
    with pytest.raises(InputError, match="maps_first = 0.5 without a teacher; allowed: 0"):
        Recipe(maps_first=0.5)
    with pytest.raises(InputError, match="unknown teacher 'resnet19'. Did you mean 'resnet18'"):
        Recipe(teacher="resnet19")
    with pytest.raises(InputError, match="teacher = 'resnet18' for the task 'birds'; allowed: of the shapes only"):
        Recipe(task="birds", teacher="resnet18")
