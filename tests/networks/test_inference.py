"""Passes without gradients: each engine gives what torch gives, and torch runs what OpenVINO cannot."""

import copy
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor

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
from refinecam_lib.networks import convert, inference
from refinecam_lib.networks.inference import forward
from refinecam_lib.networks.loading import load_model, normalise
from refinecam_lib.networks.zoo import MODELS, SMALL, spec_of
from refinecam_lib.road import road_probabilities

fast = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the extra `fast` is not installed")
ENGINES = ["torch", pytest.param("openvino", marks=fast)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(autouse=True)
def results(shared, monkeypatch):
    """Networks of any size are converted, and kept from one test to the next."""
    monkeypatch.setattr(paths, "RESULTS", shared)
    monkeypatch.setattr(inference, "LARGE", 0)
    monkeypatch.setenv(inference.VARIABLE, "openvino")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A test's own folder of converted networks."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    return tmp_path / "converted"


@pytest.fixture
def made(monkeypatch):
    """The sizes of the images for which a network was made. Torch runs all of them."""
    sizes = []
    monkeypatch.setattr(inference, "engine", lambda: "openvino")
    monkeypatch.setattr(inference, "_stored_or_made", lambda model, inputs: sizes.append(inputs.shape[-1]))
    return sizes


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


def images(n=3, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def by_torch(model, inputs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv(inference.VARIABLE, "torch")
        return forward(model, inputs)


def converted(model):
    """Whether OpenVINO runs the network, on every size of image that it has seen."""
    return model in inference._known and all(network for _, network in inference._known[model].values())


def stored(folder):
    """The entries of a folder, without the lock's file."""
    return [path for path in folder.iterdir() if path.name != ".lock"]


def probabilities_differ(model, inputs, monkeypatch):
    found = forward(model, inputs)
    assert converted(model)
    return (found.softmax(1) - by_torch(model, inputs, monkeypatch).softmax(1)).abs().max().item()


@fast
@pytest.mark.parametrize("name", list(MODELS))
def test_shipped_networks_give_the_same_probabilities(name, monkeypatch):
    shapes, _, _ = batch_of(list(SyntheticShapes("test", 3)))
    limit = 1e-4 if name == "swin_tiny" else 1e-5
    assert probabilities_differ(load_model(name), normalise(shapes, spec_of(name)), monkeypatch) < limit


@fast
@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL))
def test_the_networks_of_the_birds_do(name, monkeypatch):
    assert probabilities_differ(load_model(name, "birds"), images(size=256).sigmoid(), monkeypatch) < 1e-5


@fast
@pytest.mark.slow
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
    model, inputs = build().eval(), images(5, 224)
    assert probabilities_differ(model, inputs, monkeypatch) < 1e-5
    assert probabilities_differ(model, inputs[:1], monkeypatch) < 1e-5


@fast
def test_maps_and_road_are_those_of_torch(monkeypatch):
    model, inputs = toy(), images(2, 40)
    target, maps = torch.tensor([1, 2]), torch.rand(2, 40, 40)

    def both():
        scored = score_cam(Capture(model, inputs, target, ["body"]))[0]
        return scored, *road_probabilities(model, inputs, target, maps, [0, 1])

    found = both()
    assert converted(model)
    with monkeypatch.context() as patch:
        patch.setenv(inference.VARIABLE, "torch")
        wanted = both()
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@fast
def test_a_stored_network_is_read_and_not_converted_again(folder, monkeypatch):
    first = forward(toy(), images())
    assert len(stored(folder)) == 1, "the folder holds the converted network and nothing else"
    monkeypatch.setattr(inference, "convert", lambda *_: pytest.fail("converted again"))
    assert torch.equal(forward(toy(), images()), first)


@fast
def test_a_damaged_or_wrong_store_is_made_again(folder, monkeypatch):
    wanted = forward(toy(), images())
    (network,) = stored(folder)
    (network / "network.bin").write_bytes(b"")
    torch.testing.assert_close(forward(toy(), images()), wanted)
    monkeypatch.setattr(inference, "_key", lambda *_: network.name)  # another network under the same key
    torch.testing.assert_close(forward(toy(Twice), images()), 2 * wanted, rtol=1e-4, atol=1e-5)


@fast
def test_those_that_want_the_same_network_convert_it_once(folder, monkeypatch):
    ran, run = [], convert.subprocess.run
    monkeypatch.setattr(convert.subprocess, "run", lambda *given, **named: (ran.append(1), run(*given, **named))[1])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: convert.convert(toy(), images(), folder / "network"), range(2)))
    assert len(ran) == 1 and (folder / "network" / "network.xml").exists()


def test_changed_weights_and_other_sizes_are_noticed(made):
    model = toy()
    for size in (32, 40, 32):
        forward(model, images(size=size))
    assert made == [32, 40]
    with torch.no_grad():
        model.head.weight += torch.randn(5, 8)
    forward(model, images())
    model.head.weight = nn.Parameter(torch.randn(5, 8))
    for n in (3, 1):
        forward(model, images(n))
    assert made == [32, 40, 32, 32]


@fast
def test_a_changed_network_gives_its_own_outputs(monkeypatch):
    model = toy()
    assert probabilities_differ(model, images(), monkeypatch) < 1e-5
    with torch.no_grad():
        model.head.weight += torch.randn(5, 8)
    assert probabilities_differ(model, images(), monkeypatch) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_the_network_comes_back_as_it_was_and_is_evaluated(engine, monkeypatch):
    monkeypatch.setenv(inference.VARIABLE, engine)
    model = toy().train()
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(forward(model, images()), forward(model, images()))  # without dropout
    assert converted(model) == (engine == "openvino")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not forward(model, images().requires_grad_()).requires_grad


@fast
def test_no_pass_is_bound_to_a_core():
    model = toy()
    forward(model, images())
    (networks,) = inference._known[model].values()
    assert [c.get_property("ENABLE_CPU_PINNING") for c in networks[1].compiled_for.values()] == [False]


@pytest.mark.parametrize("engine", ENGINES)
def test_hooks_run(engine, monkeypatch):
    monkeypatch.setenv(inference.VARIABLE, engine)
    model, seen = toy(), []
    forward(model, images())
    handle = model.body.register_forward_hook(lambda *_: seen.append(1))
    forward(model, images())
    assert seen == [1]
    handle.remove()
    ran = model.ran
    forward(model, images())
    assert seen == [1] and (model.ran == ran) == (engine == "openvino"), "OpenVINO runs again, once the hook is gone"


def test_other_types_and_small_networks_run_in_torch(made, monkeypatch):
    assert forward(toy().double(), images().double()).dtype == torch.float64
    with torch.inference_mode():
        forward(toy(), images())
    monkeypatch.setattr(inference, "LARGE", 1 + sum(p.numel() for p in toy().state_dict().values()))
    forward(toy(), images())
    assert not made
    monkeypatch.setattr(inference, "LARGE", inference.LARGE - 1)
    forward(toy(), images())
    assert made == [32]


def one_line(kind, capfd, calls=2):
    """Run a network, check that torch ran it, and return the one line that says so."""
    model = toy(kind)
    for _ in range(calls):
        torch.testing.assert_close(forward(model, images()), model(images()).detach(), rtol=1e-5, atol=1e-5)
    assert not converted(model)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "OpenVINO" in line]
    assert line.startswith(f"{kind.__name__} runs in torch, because OpenVINO cannot take it: ")
    return line


@fast
def test_what_cannot_be_exported_runs_in_torch_and_one_line_says_so(capfd):
    class Odd(Toy):
        def forward(self, x):
            return super().forward(x) if x.shape[0] < 0 else torch.from_numpy(super().forward(x).detach().numpy() + 5)

    one_line(Odd, capfd)


@fast
@pytest.mark.parametrize(
    "script, status", [("kill -SEGV $$", "-11"), ("echo 'no such operator' >&2; exit 3", "3. no such operator")]
)
def test_a_conversion_that_crashes_or_fails_does_so_in_its_own_process(
    script, status, folder, tmp_path, monkeypatch, capfd
):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert f"the conversion ended with status {status}" in one_line(Toy, capfd)
    assert not stored(folder)


@fast
def test_a_conversion_that_hangs_is_stopped(folder, monkeypatch, capfd):
    monkeypatch.setattr(convert, "MINUTES", 1e-4)
    assert "the conversion took more than 0.0001 minutes" in one_line(Toy, capfd)
    assert not stored(folder)


@fast
@pytest.mark.parametrize("save", ["fails", "writes another file"])
def test_a_program_that_cannot_be_stored_or_read_runs_in_torch(save, folder, monkeypatch, capfd):
    def saved(program, path):
        if save == "fails":
            raise RuntimeError("no place left")
        path.write_bytes(b"another file")

    monkeypatch.setattr(torch.export, "save", saved)
    assert ("no place left" if save == "fails" else "status 1. ") in one_line(Toy, capfd)


@fast
def test_a_network_whose_outputs_differ_runs_in_torch(folder, monkeypatch, capfd):
    monkeypatch.setattr(inference, "convert", lambda model, few, place: convert.convert(toy(Twice), few, place))
    assert "its outputs are not torch's" in one_line(Toy, capfd)


def test_the_switch_turns_it_off_and_refuses_other_names(monkeypatch):
    model = toy()
    monkeypatch.setenv(inference.VARIABLE, "torch")
    forward(model, images())
    assert model not in inference._known and inference.engine_version().startswith("torch 2.")
    monkeypatch.setenv(inference.VARIABLE, "onnx")
    with pytest.raises(InputError, match=r"REFINECAM_ENGINE.*torch, openvino"):
        inference.engine()


def test_an_engine_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package openvino, which is not installed"):
        forward(toy(), images())


@pytest.mark.parametrize(
    "machine, installed, engine",
    [("x86_64", True, "openvino"), ("AMD64", True, "openvino"), ("arm64", True, "torch"), ("x86_64", False, "torch")],
)
def test_openvino_is_the_default_where_it_is_installed(machine, installed, engine, monkeypatch):
    monkeypatch.delenv(inference.VARIABLE)
    monkeypatch.setattr(inference.platform, "machine", lambda: machine)
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda name: object() if installed else None)
    assert inference.engine() == engine


@fast
def test_an_output_that_is_no_tensor_runs_in_torch_in_silence(capfd):
    class Named(Toy):
        def forward(self, x):
            return {"logits": super().forward(x)}

    torch.testing.assert_close(forward(toy(Named), images()), toy()(images()).detach(), rtol=1e-5, atol=1e-5)
    assert "OpenVINO" not in capfd.readouterr().err


@fast
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
            inputs = images(n)
            torch.testing.assert_close(forward(model, inputs), model(inputs).detach(), rtol=1e-4, atol=1e-4)
