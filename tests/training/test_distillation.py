"""Feature distillation: the teacher's maps, the scale of the loss, and a student that learns from it."""

import pytest
import torch

from refinecam_lib.errors import InputError
from refinecam_lib.networks import loading, zoo
from refinecam_lib.training import tasks
from refinecam_lib.training.distillation import Distillation, maps_of
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
def test_the_loss_starts_at_1_for_every_network_and_trains_every_layer(name):
    spec, images = zoo.spec_of(name), _images()
    student = spec.build(6, False).train()
    distillation = Distillation(TEACHER, student, spec, CPU)
    maps = _maps(student.train(), spec, images)
    assert [m.shape[1] for m in maps] == [head[0].num_features for head in distillation.heads]
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2]
    loss = distillation(maps, images)
    assert loss.item() == pytest.approx(1, abs=0.02)  # constant channels have no variance, so it may be less
    for head in distillation.heads:
        torch.nn.init.normal_(head[1].weight)
    distillation(maps, images).backward()
    assert all(float(next(student.get_submodule(layer).parameters()).grad.abs().sum()) > 0 for layer in
               spec.layers if list(student.get_submodule(layer).parameters()))  # fmt: skip
    assert not any(p.requires_grad for p in distillation.teacher.parameters())
    assert not distillation.teacher.training


def test_the_loss_is_0_for_the_teacher_itself():
    spec, images = zoo.spec_of(TEACHER), _images()
    student = loading.load_model(TEACHER)
    distillation = Distillation(TEACHER, student, spec, CPU)
    maps = _maps(student, spec, images)
    assert all(torch.equal(a, b) for a, b in zip(maps, distillation.teacher_maps(images), strict=True))
    for head in distillation.heads:
        head[1].weight.data = torch.eye(len(head[1].weight))[..., None, None]
        torch.nn.init.zeros_(head[1].bias)
    assert distillation(maps, images).item() < 1e-6
    assert distillation([m.flip(0) for m in maps], images).item() > 0.5, "maps of other images"


def test_no_hook_stays():
    model = zoo.spec_of("swin_tiny").build(6, False)
    with pytest.raises(RuntimeError), maps_of(model, zoo.spec_of("swin_tiny").layers):
        model(torch.zeros(1, 5, 64, 64))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_recipe_with_a_teacher_brings_the_maps_closer(tmp_path, monkeypatch):
    losses = []
    forward = Distillation.forward

    def watched(distillation, *given):
        loss = forward(distillation, *given)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(Distillation, "forward", watched)
    recipe = Recipe("resnet18", weights="none", freeze=False, images=64, batch=4, lr=3e-3, stages=((48, 1.0),),
                    validation=2, teacher=TEACHER)  # fmt: skip
    model, record = fit(recipe, "cpu", 0, tmp_path, progress=False)
    assert len(losses) == record["step"] == 16 and sum(losses[-4:]) / 4 < 0.97 < losses[0]
    assert 0.8 < record["history"][-1]["hints"] < 1.1
    assert model.state_dict().keys() == zoo.spec_of("resnet18").build(6, False).state_dict().keys()


def test_classes_first_train_only_the_layers_behind_the_maps():
    recipe = Recipe("resnet18", weights="none", freeze=False, images=8, batch=4, teacher=TEACHER,
                    validation=2, maps_first=0.5)  # fmt: skip
    images = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    spec = zoo.spec_of("resnet18")

    def learnt(step, target):
        run = _Run(recipe, tasks.Shapes(), CPU)
        for head in run.distillation.heads:
            torch.nn.init.ones_(head[1].weight)
        run.optimiser, run.record["step"] = torch.optim.SGD(run.model.parameters(), 1.0), step
        run.learn(images, torch.tensor(target))
        return run.model.state_dict()

    for step, expected in ((0, {"fc.weight", "fc.bias"}), (1, set(dict(spec.build(6, False).named_parameters())))):
        one, other = learnt(step, [0, 1, 2, 3]), learnt(step, [5, 4, 3, 2])
        assert {key for key in one if not torch.equal(one[key], other[key])} == expected, f"step {step}"


def test_bad_teachers():
    with pytest.raises(InputError, match="maps_first = 0.5 without a teacher; allowed: 0"):
        Recipe(maps_first=0.5)
    with pytest.raises(InputError, match="unknown teacher 'resnet19'. Did you mean 'resnet18'"):
        Recipe(teacher="resnet19")
    with pytest.raises(InputError, match="teacher = 'resnet18' for the task 'birds'; allowed: only for the shapes"):
        Recipe(task="birds", teacher="resnet18")
