"""Passes without gradients: OpenVINO gives what torch gives, or torch is used."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from refinecam_lib import paths
from refinecam_lib.cams import score_cam
from refinecam_lib.capture import Capture
from refinecam_lib.datasets.sample import batch_of
from refinecam_lib.datasets.shapes import SyntheticShapes
from refinecam_lib.errors import InputError
from refinecam_lib.networks import inference
from refinecam_lib.networks.inference import forward
from refinecam_lib.networks.loading import load_model, normalise
from refinecam_lib.networks.zoo import MODELS, SMALL, spec_of
from refinecam_lib.road import road_probabilities

openvino = pytest.importorskip("openvino", reason="the extra `fast` is not installed")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setenv(inference.VARIABLE, "openvino")
    return tmp_path / "converted"


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 5)
        self.ran = 0

    def forward(self, x):
        self.ran += 1
        return self.head(self.body(x).mean((2, 3)))


class Twice(Toy):
    def forward(self, x):
        return 2 * super().forward(x)


def toy(kind=Toy):
    torch.manual_seed(0)
    return kind().eval()


def by_torch(model, inputs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv(inference.VARIABLE, "torch")
        return forward(model, inputs)


def probabilities_differ(model, inputs, monkeypatch):
    fast = forward(model, inputs)
    assert inference._known[model][tuple(inputs.shape[1:])][1] is not None, "it was not converted"
    return (fast.softmax(1) - by_torch(model, inputs, monkeypatch).softmax(1)).abs().max().item()


@pytest.mark.parametrize("name", list(MODELS))
def test_shipped_networks_give_the_same_probabilities(name, monkeypatch):
    images, _, _ = batch_of(list(SyntheticShapes("test", 3)))
    limit = 1e-4 if name == "swin_tiny" else 1e-5
    assert probabilities_differ(load_model(name), normalise(images, spec_of(name)), monkeypatch) < limit


@pytest.mark.parametrize("name", list(SMALL))
def test_the_networks_of_the_birds_do(name, monkeypatch):
    images = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert probabilities_differ(load_model(name, "birds"), images, monkeypatch) < 1e-5


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=7),
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=7),
        lambda: torchvision.models.get_model("mobilenet_v2", num_classes=7),
    ],
)
def test_so_does_any_classifier_of_timm_or_torchvision(build, monkeypatch):
    torch.manual_seed(0)
    model, inputs = build().eval(), torch.randn(5, 3, 224, 224)
    assert probabilities_differ(model, inputs, monkeypatch) < 1e-5
    assert probabilities_differ(model, inputs[:1], monkeypatch) < 1e-5


def test_maps_and_road_are_those_of_torch(monkeypatch):
    model, inputs = toy(), torch.randn(2, 3, 40, 40)
    target, maps = torch.tensor([1, 2]), torch.rand(2, 40, 40)

    def both():
        scored = score_cam(Capture(model, inputs, target, ["body"]))[0]
        return scored, *road_probabilities(model, inputs, target, maps, [0, 1])

    fast = both()
    with monkeypatch.context() as patch:
        patch.setenv(inference.VARIABLE, "torch")
        slow = both()
    for a, b in zip(fast, slow):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_stored_network_is_read_and_not_converted_again(folder, monkeypatch):
    inputs = torch.randn(4, 3, 32, 32)
    first = forward(toy(), inputs)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(inference, "_convert", lambda *_: pytest.fail("converted again"))
    assert torch.equal(forward(toy(), inputs), first)


def test_a_damaged_or_wrong_store_is_made_again(folder, monkeypatch):
    inputs = torch.randn(4, 3, 32, 32)
    wanted = forward(toy(), inputs)
    (stored,) = folder.iterdir()
    (stored / "network.bin").write_bytes(b"")
    torch.testing.assert_close(forward(toy(), inputs), wanted)
    monkeypatch.setattr(inference, "_key", lambda *_: stored.name)  # another network under the same key
    torch.testing.assert_close(forward(toy(Twice), inputs), 2 * wanted, rtol=1e-4, atol=1e-5)


def test_changed_weights_and_other_sizes_are_noticed(monkeypatch):
    model = toy()
    for size in (32, 40, 32):
        assert probabilities_differ(model, torch.randn(3, 3, size, size), monkeypatch) < 1e-5
    with torch.no_grad():
        model.head.weight += torch.randn(5, 8)
    assert probabilities_differ(model, torch.randn(3, 3, 32, 32), monkeypatch) < 1e-5
    model.head.weight = nn.Parameter(torch.randn(5, 8))
    assert probabilities_differ(model, torch.randn(3, 3, 32, 32), monkeypatch) < 1e-5


def test_the_network_comes_back_as_it_was_and_is_evaluated():
    model = toy().train()
    before, inputs = copy.deepcopy(model.state_dict()), torch.randn(4, 3, 32, 32)
    assert torch.equal(forward(model, inputs), forward(model, inputs))  # without dropout
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not forward(model, inputs.requires_grad_()).requires_grad


def test_hooks_run():
    model, seen = toy(), []
    forward(model, torch.randn(1, 3, 32, 32))
    handle = model.body.register_forward_hook(lambda *_: seen.append(1))
    forward(model, torch.randn(1, 3, 32, 32))
    assert seen == [1]
    handle.remove()
    ran = model.ran
    forward(model, torch.randn(1, 3, 32, 32))
    assert model.ran == ran, "torch ran, though the hook is gone"


def test_other_types_run_in_torch():
    model = toy().double()
    assert forward(model, torch.randn(1, 3, 32, 32).double()).dtype == torch.float64
    assert model not in inference._known


def test_what_cannot_be_converted_runs_in_torch_and_one_line_says_so(capfd):
    class Odd(Toy):
        def forward(self, x):
            return super().forward(x) if x.shape[0] < 0 else torch.from_numpy(super().forward(x).numpy() + x.shape[0])

    model, inputs = toy(Odd), torch.randn(5, 3, 32, 32)
    for _ in range(2):
        torch.testing.assert_close(forward(model, inputs), Toy.forward(model, inputs).detach() + 5)
    lines = [line for line in capfd.readouterr().err.splitlines() if "OpenVINO" in line]
    assert len(lines) == 1 and "Odd runs in torch" in lines[0]


def test_the_switch_turns_it_off_and_refuses_other_names(monkeypatch):
    model = toy()
    monkeypatch.setenv(inference.VARIABLE, "torch")
    forward(model, torch.randn(1, 3, 32, 32))
    assert model not in inference._known and inference.engine_version().startswith("torch 2.")
    monkeypatch.setenv(inference.VARIABLE, "onnx")
    with pytest.raises(InputError, match=r"REFINECAM_ENGINE.*torch, openvino"):
        inference.engine()


def test_an_engine_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package openvino, which is not installed"):
        forward(toy(), torch.randn(2, 3, 32, 32))


def test_torch_is_the_default(monkeypatch):
    monkeypatch.delenv(inference.VARIABLE)
    assert inference.engine() == "torch"


def test_a_network_of_one_batch_size_runs_in_torch(monkeypatch):
    class Two(Toy):
        def forward(self, x):
            return super().forward(x) + torch.zeros(len(x), 5)

    class Baked(Toy):
        def forward(self, x):
            return super().forward(x) + torch.zeros(int(x.shape[0]) + 0 * x.size(0), 5).numpy().shape[0]

    for kind in (Two, Baked):
        model = toy(kind)
        for n in (1, 3, 4):
            inputs = torch.randn(n, 3, 32, 32)
            torch.testing.assert_close(forward(model, inputs), model(inputs).detach(), rtol=1e-4, atol=1e-4)
