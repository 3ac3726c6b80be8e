"""Class activation maps compared with the packages grad-cam and captum, and properties that no package has."""

import copy

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputTarget
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from refinecam_lib import cams, controls
from refinecam_lib import capture as captures
from refinecam_lib import errors as checks
from refinecam_lib.capture import Capture
from refinecam_lib.explanation import BASE, METHODS, REFINED, Explainer, explain
from refinecam_lib.networks.layers import evaluating
from refinecam_lib.networks.zoo import MODELS
from refinecam_lib.refinement import to_map

FAMILIES = tuple(MODELS)
TARGET = torch.tensor([4, 1])
GRADIENT_METHODS = {
    "GradCAM": pytorch_grad_cam.GradCAM,
    "HiResCAM": pytorch_grad_cam.HiResCAM,
    "GradCAM++": pytorch_grad_cam.GradCAMPlusPlus,
    "LayerCAM": pytorch_grad_cam.LayerCAM,
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def calibrated(model: nn.Module, size: tuple[int, int], seed: int = 0) -> nn.Module:
    """Give a network random weights and biases with activations of order 1."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "layer_scale" in name:  # at its first value 1e-6 ConvNeXt's blocks have no effect
            nn.init.uniform_(weight, 0.5, 1)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.normal_(norm.bias, std=0.3)
    with torch.no_grad():
        model.train()(noise(8, 3, *size, seed=9))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval().requires_grad_(False)


def network(name: str) -> tuple[nn.Module, tuple[str, ...], torch.Tensor]:
    """Return a random network of a family, its layers, and two images of a size that it takes."""
    torch.manual_seed(1)  # with seed 0 a whole map is 0
    if name == "swin_tiny":
        model, side = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, num_classes=7), 56
    else:
        model, side = MODELS[name].build(7, False), 64
    return calibrated(model, (side, side)), MODELS[name].layers, noise(2, 3, side, side)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, *network(request.param)


def reshape_of(name: str):
    """Return the manual reshape for grad-cam: Swin's (B,h,w,C) -> (B,C,h,w)."""
    return (lambda tensor: tensor.permute(0, 3, 1, 2)) if name == "swin_tiny" else None


def package_raw(kind, model, layer, inputs, targets, reshape=None) -> np.ndarray:
    """Return the raw map of the package grad-cam, before it scales and resizes."""
    explain = kind(model, [model.get_submodule(layer)], reshape)
    explain.batch_size = 64
    raw, original = [], explain.get_cam_image

    def keep(*args):
        if kind is pytorch_grad_cam.ShapleyCAM:  # it does not reshape the activations that it weights
            weights = explain.get_cam_weights(*args[:5])
            activations = args[3].detach()
            activations = activations if reshape is None else reshape(activations)
            raw.append((weights[:, :, None, None] * activations.numpy()).sum(1))
        else:
            raw.append(original(*args))
        return raw[-1]

    explain.get_cam_image = keep
    with evaluating(model), sdpa_kernel(SDPBackend.MATH):  # as in a Capture
        explain(inputs.clone().requires_grad_(), targets)
    for handle in explain.activations_and_grads.handles:  # its own release waits for garbage collection
        handle.remove()
    explain.activations_and_grads.gradients.clear()
    explain.activations_and_grads.activations.clear()
    model.zero_grad()
    return raw[0].clip(0)


def assert_close(ours: torch.Tensor, oracle, tolerance: float) -> None:
    """Assert that the largest difference is at most `tolerance` of the oracle's largest value."""
    oracle = torch.as_tensor(oracle)
    assert ours.shape == oracle.shape
    assert float(oracle.abs().max()) > 0
    assert float((ours - oracle).abs().max() / oracle.abs().max()) <= tolerance


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_gradient_methods_equal_grad_cam(family, method):
    name, model, layers, inputs = family
    layers = layers[::2] if method == "GradCAM++" else layers[1::2]
    model, inputs = copy.deepcopy(model).double(), inputs.double()
    ours = METHODS[method].function(Capture(model, inputs, TARGET, layers))
    for layer, raw in zip(layers, ours):
        targets = [ClassifierOutputTarget(int(c)) for c in TARGET]
        oracle = package_raw(GRADIENT_METHODS[method], model, layer, inputs, targets, reshape_of(name))
        assert_close(raw, oracle, 1e-9)


@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM"])
def test_gradient_methods_equal_grad_cam_in_single_precision(family, method):
    name, model, layers, inputs = family
    ours = METHODS[method].function(Capture(model, inputs, TARGET, layers[::3]))
    for layer, raw in zip(layers[::3], ours):
        targets = [ClassifierOutputTarget(int(c)) for c in TARGET]
        oracle = package_raw(GRADIENT_METHODS[method], model, layer, inputs, targets, reshape_of(name))
        assert raw.dtype == torch.float32
        assert_close(raw, oracle, 1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "efficientnet_lite0", "convnext_tiny"])
def test_odd_image_sizes_equal_grad_cam(name):
    model, layers, _ = network(name)
    inputs = noise(2, 3, 61, 83)
    for layer, raw in zip(layers, cams.layer_cam(Capture(model, inputs, TARGET, layers))):
        targets = [ClassifierOutputTarget(int(c)) for c in TARGET]
        assert_close(raw, package_raw(pytorch_grad_cam.LayerCAM, model, layer, inputs, targets), 1e-5)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_grad_cam_equals_captum(name):
    model, layers, inputs = network(name)
    for layer, raw in zip(layers, cams.grad_cam(Capture(model, inputs, TARGET, layers))):
        explain = captum.attr.LayerGradCam(model, model.get_submodule(layer))
        with evaluating(model):
            oracle = explain.attribute(inputs.clone().requires_grad_(), TARGET, relu_attributions=True)
        assert_close(raw, oracle[:, 0].detach(), 1e-5)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("efficientnet_lite0", (0, 1)),
        pytest.param("resnet18", (0,), marks=pytest.mark.slow),
        pytest.param("vgg11", (0,), marks=pytest.mark.slow),
        pytest.param("convnext_tiny", (0, 1), marks=pytest.mark.slow),
        pytest.param("swin_tiny", (0, 2), marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", (2, 3), marks=pytest.mark.slow),
    ],
)
def test_score_cam_equals_grad_cam(name, numbers, monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", lambda steps: steps)
    model, layers, inputs = network(name)
    layers = [layers[i] for i in numbers]
    ours = cams.score_cam(Capture(model, inputs, TARGET, layers), chunk=23)
    for layer, raw in zip(layers, ours):
        targets = [ClassifierOutputTarget(int(c)) for c in TARGET]
        oracle = package_raw(pytorch_grad_cam.ScoreCAM, model, layer, inputs, targets, reshape_of(name))
        assert_close(raw, oracle, 1e-5)


def test_shapley_cam_equals_grad_cam_package_with_rest(family):
    name, model, layers, inputs = family
    model, inputs, layers = copy.deepcopy(model).double(), inputs.double(), layers[1::2]
    for layer, raw in zip(layers, cams.shapley_cam(Capture(model, inputs, TARGET, layers))):
        targets = [ClassifierOutputReST(int(c)) for c in TARGET]
        oracle = package_raw(pytorch_grad_cam.ShapleyCAM, model, layer, inputs, targets, reshape_of(name))
        assert_close(raw, oracle, 1e-9)


@pytest.mark.parametrize("name", ["efficientnet_lite0"])
def test_shapley_cam_in_single_precision_and_different_from_grad_cam(name):
    model, layers, inputs = network(name)
    capture = Capture(model, inputs, TARGET, layers[1:])
    for layer, raw, plain in zip(layers[1:], cams.shapley_cam(capture), cams.grad_cam(capture)):
        targets = [ClassifierOutputReST(int(c)) for c in TARGET]
        assert_close(raw, package_raw(pytorch_grad_cam.ShapleyCAM, model, layer, inputs, targets), 1e-5)
        assert float((raw / raw.amax() - plain / plain.amax()).abs().max()) > 1e-2


def test_shapley_cam_is_grad_cam_where_the_hessian_is_zero():
    """On a ReLU network with the plain logit. The published code's ShapleyCAM therefore equals Grad-CAM (D2)."""
    model, layers, inputs = network("resnet18")
    model, inputs = model.double().requires_grad_(True), inputs.double()
    capture = Capture(model, inputs, TARGET, layers[1:3])
    for layer, plain, exact in zip(layers[1:3], cams.grad_cam(capture), cams.shapley_cam(capture)):
        targets = [ClassifierOutputTarget(int(c)) for c in TARGET]
        oracle = package_raw(pytorch_grad_cam.ShapleyCAM, model, layer, inputs, targets)
        assert_close(plain, oracle, 1e-9)
        assert float((exact / exact.amax() - plain / plain.amax()).abs().max()) > 1e-3  # ReST's Hessian is not zero


def test_hires_cam_vanishes_where_a_layer_norm_follows():
    """The norm undoes any scale of a pixel, so gradient times activation sums to 0 at ConvNeXt's stage ends."""
    model, layers, inputs = network("convnext_tiny")
    capture = Capture(model.double(), inputs.double(), TARGET, layers)
    for number, vanishes in ((0, True), (1, True), (2, True), (3, False)):
        terms = capture.gradients[number] * capture.activations[number]
        share = float(terms.sum(1).abs().max() / terms.abs().sum(1).max())
        assert (share < 1e-4) == vanishes


def test_grad_cam_plus_plus_is_ill_conditioned_where_its_denominator_crosses_zero():
    """With signed activations 2 g² + sum(A) g³ + eps can be 0. Rounding then decides the map."""
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(1, 2)).double().requires_grad_(False)
    model[0].weight.zero_()
    model[2].weight.fill_(0.5)
    vanishes = -(2 * 0.5**2 + 1e-6) / 0.5**3

    def raw(activation: float) -> float:
        model[0].bias.fill_(activation)
        return float(cams.grad_cam_pp(Capture(model, noise(1, 3, 1, 1).double(), [0], ("0",)))[0])

    assert raw(vanishes + 1e-6) == 0 and raw(vanishes - 1e-6) > 1e5
    assert raw(vanishes - 1) == pytest.approx(1 - vanishes)  # the weight is -1 there


def test_grad_cam_plus_plus_of_signed_activations_does_not_depend_on_rounding():
    """A rounding step in each pixel, in the method's precision, does not change the map of any layer."""
    model, layers, inputs = network("efficientnet_lite0")
    entry, capture = METHODS["GradCAM++"], Capture(model, inputs, TARGET, layers)
    given = capture.double if entry.double else capture
    assert all(float(each.min()) < 0 for each in given.activations[:3])
    up = torch.where(noise(*inputs.shape, seed=3) > 0, torch.inf, -torch.inf).to(given.inputs)
    other = Capture(given.model, torch.nextafter(given.inputs, up), TARGET, layers)
    for one, two in zip(given.maps(entry.function), other.maps(entry.function), strict=True):
        assert float((to_map(one, (64, 64)) - to_map(two, (64, 64))).abs().max()) < 1e-5


def test_trivial_maps_are_exact():
    capture = Capture(Tiny(), noise(3, 3, 20, 28), [0, 1, 2], ("stage1",), ids=[5, 6, 5])
    half, ones, random = (
        controls.half_cam(capture)[0],
        controls.all_ones_cam(capture)[0],
        controls.random_cam(capture)[0],
    )
    for maps, value, low in ((half, 0.5, 0.0), (ones, 1.0, 0.0)):
        assert maps.shape == (3, 20, 28)
        assert (maps[:, 0, 0] == low).all() and (maps[:, -1, -1] == 1).all()
        assert (maps.flatten(1)[:, 1:-1] == value).all()
    assert torch.equal(random[0], random[2]) and not torch.equal(random[0], random[1])
    assert abs(float(random.mean()) - 0.5) < 0.02
    assert 0 <= float(random.min()) < 0.01 and 0.99 < float(random.max()) <= 1
    assert torch.equal(explain(capture, "HalfCAM").maps, half) and torch.equal(explain(capture, "All1sCAM").maps, ones)


# ---- properties, on a small network that is difficult for hooks: batch norms, an in-place ReLU that runs twice ----


class Tiny(nn.Module):
    def __init__(self, classes: int = 5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.stage1 = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12))
        self.stage2 = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.GELU(), nn.Dropout(0.5))
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = self.relu(self.stage1(self.relu(self.stem(x))))
        return self.fc(self.stage2(x).mean((2, 3)))


LAYERS = ("stage1", "stage2")


@pytest.fixture
def tiny() -> nn.Module:
    model = calibrated(Tiny(), (48, 48)).requires_grad_(True)
    with torch.no_grad():
        model.fc.weight *= 30  # otherwise LIME's Lasso returns only zeros
    return model


def state(model: nn.Module) -> dict:
    """Return everything that a call could change in a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "weights": [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()],
        "values": [value.clone() for value in model.state_dict().values()],
    }


def assert_same_state(before: dict, after: dict) -> None:
    values = zip(before.pop("values"), after.pop("values"), strict=True)
    assert all(torch.equal(a, b) for a, b in values)
    assert before == after


@pytest.mark.parametrize("method", METHODS)
def test_the_model_comes_back_unchanged(tiny, method):
    tiny.train()
    tiny.stage2.eval()
    before, rng = state(tiny), torch.random.get_rng_state()
    capture = Capture(tiny, noise(2, 3, 48, 48), [0, 3], LAYERS)
    capture.maps(METHODS[method].function)
    capture.masked(torch.ones(2, 48, 48)).maps(METHODS[method].function)
    assert_same_state(before, state(tiny))
    assert torch.equal(rng, torch.random.get_rng_state())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("RandomCAM", "HalfCAM", "All1sCAM")])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_the_model_comes_back_unchanged_after_an_exception(tiny, method, fails_at):
    tiny.train()
    calls = []

    def fail(module, args):
        calls.append(None)
        if len(calls) >= fails_at:
            raise RuntimeError("on purpose")

    tiny.fc.register_forward_pre_hook(fail)
    before = state(tiny)
    try:
        Capture(tiny, noise(1, 3, 48, 48), [0], LAYERS).maps(METHODS[method].function)
    except RuntimeError as error:
        assert "on purpose" in str(error)
    else:
        assert len(calls) < fails_at
    assert_same_state(before, state(tiny))


def test_one_double_copy_serves_a_capture_and_all_captures_made_from_it(tiny, monkeypatch):
    copies, made = [], captures.double_copy
    monkeypatch.setattr(captures, "double_copy", lambda model: copies.append(made(model)) or copies[-1])
    tiny.train()
    tiny.stage2.eval()
    before, inputs = state(tiny), noise(2, 3, 48, 48)
    capture = Capture(tiny, inputs, [0, 3], LAYERS, ids=[5, 6], truth=torch.ones(2, 48, 48))
    masked = capture.masked(torch.rand(2, 48, 48), layers=LAYERS[1:])
    for each in (capture, masked, capture.of_target([1, 1]), masked.of_target([1, 1], [3, 4], ["other"] * 2)):
        assert not copies or each.double.model is copies[0]
        maps = explain(each, "DeepLift").maps
        assert maps.dtype == torch.float32 and torch.equal(explain(each, "DeepLift").maps, maps)
        for name in ("layers", "first_layer", "seeds", "size"):
            assert getattr(each.double, name) == getattr(each, name)
        assert torch.equal(each.double.target, each.target) and torch.equal(each.double.truth, each.truth)
        assert torch.allclose(each.double.logits, each.logits.double(), atol=1e-5)
        oracle = Capture(copy.deepcopy(tiny).double(), each.inputs.double(), each.target, each.layers, each.ids)
        oracle.steps = each.steps
        assert torch.equal(explain(oracle, "DeepLift").maps.float(), maps)
    assert len(copies) == 1
    assert_same_state(before, state(tiny))
    assert_same_state({**before, "hooks": [0] * len(before["hooks"]), "values": []}, {**state(tiny), "values": []})


def test_targets_share_the_forward_pass_in_float64(tiny):
    calls, capture = [], Capture(tiny, noise(2, 3, 48, 48), [0, 3], LAYERS)
    expected = cams.grad_cam(Capture(copy.deepcopy(tiny).double(), capture.inputs.double(), [1, 1], LAYERS))
    capture.double.maps(cams.grad_cam)
    tiny.fc.register_forward_hook(lambda *_: calls.append(None))  # the copy runs it too
    other = capture.of_target([1, 1])
    assert len(calls) == 1  # the logits of `capture`
    assert all(torch.equal(a, b) for a, b in zip(other.double.maps(cams.grad_cam), expected, strict=True))
    assert len(calls) == 1


def test_the_networks_hooks_also_run_in_its_double_copy(tiny):
    calls, capture = [], Capture(tiny, noise(1, 3, 48, 48), [0], LAYERS)
    twin = capture.double.model
    for module in (tiny, tiny.fc):
        with torch.no_grad():
            handle = module.register_forward_pre_hook(lambda module, args: calls.append(args[0].dtype))
            twin(capture.inputs.double())
            handle.remove()
            twin(capture.inputs.double())
    assert calls == [torch.float64] * 2


def test_a_float64_capture_is_its_own_double_and_a_users_function_gets_the_original(tiny):
    capture = Capture(tiny.double(), noise(1, 3, 48, 48).double(), [0], LAYERS)
    assert capture.double is capture and explain(capture, "DeepLift").maps.dtype == torch.float64
    capture, seen = Capture(tiny.float(), noise(1, 3, 48, 48), [0], LAYERS), []

    def own(capture):
        seen.append(capture)
        return cams.grad_cam(capture)

    explain(capture, own)
    assert seen == [capture] and "_double" not in vars(capture)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_training_mode_or_with_frozen_weights_gives_the_same_maps(tiny, method):
    inputs = noise(2, 3, 48, 48)

    def maps():
        return Capture(tiny, inputs, [0, 3], LAYERS).maps(METHODS[method].function)

    expected = [m.clone() for m in maps()]
    for change in (tiny.train, lambda: tiny.requires_grad_(False), lambda: torch.set_grad_enabled(False)):
        change()
        try:
            assert all(torch.equal(a, b) for a, b in zip(expected, maps(), strict=True))
        finally:
            torch.set_grad_enabled(True)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_batches_of_one(tiny, method):
    inputs, target, ids = noise(3, 3, 48, 40), [0, 3, 4], [11, 12, 13]
    variants = (BASE, REFINED) if METHODS[method].refines else (BASE,)
    batch = Capture(tiny, inputs, target, LAYERS, ids)
    for variant in variants:
        together = explain(batch, method, variant).maps
        alone = torch.cat(
            [
                explain(
                    Capture(tiny, inputs[i : i + 1], target[i : i + 1], LAYERS, ids[i : i + 1]), method, variant
                ).maps
                for i in (2, 1, 0)
            ]
        ).flip(0)
        assert together.shape == (3, 48, 40) and not together.requires_grad
        assert float((together - alone).abs().max()) < 1e-4
        assert float(together.amax((1, 2)).min()) == 1 and float(together.amin((1, 2)).max()) == 0


def test_activations_do_not_see_later_in_place_modules(tiny):
    """The ReLU behind stage1 overwrites its output."""
    inputs = noise(2, 3, 48, 48)
    separate = copy.deepcopy(tiny)
    separate.relu.inplace = False
    ours, expected = (Capture(m, inputs, [0, 3], LAYERS) for m in (tiny, separate))
    for key in ("activations", "gradients"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(ours, key), getattr(expected, key)))
    assert float(ours.activations[0].min()) < 0
    assert all(torch.equal(a, b) for a, b in zip(cams.shapley_cam(ours), cams.shapley_cam(expected)))


def test_memory_format_and_layout_do_not_change_maps():
    """One network in (B,h,w,C), in tokens behind a class token and in (B,C,h,w) gives the same maps."""

    class Layout(nn.Module):
        def __init__(self, layout: str):
            super().__init__()
            self.layout, self.conv, self.layer, self.fc = layout, nn.Conv2d(3, 6, 4, 4), nn.Identity(), nn.Linear(6, 4)

        def forward(self, x):
            x = self.conv(x).tanh()
            b, c, h, w = x.shape
            if self.layout == "nhwc":
                x = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif self.layout == "tokens":
                tokens = x.flatten(2).transpose(1, 2)
                tokens = self.layer(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
                x = tokens[:, 1:].transpose(1, 2).reshape(b, c, h, w)
            else:
                x = self.layer(x)
            return self.fc((x**2).mean((2, 3)))

    nets = {layout: Layout(layout) for layout in ("nchw", "nhwc", "tokens")}
    inputs = noise(2, 3, 32, 48)
    expected = None
    for net in nets.values():
        net.load_state_dict(nets["nchw"].state_dict())
        for form in (torch.contiguous_format, torch.channels_last):
            capture = Capture(net, inputs.contiguous(memory_format=form), [0, 2], ("layer",))
            maps = [METHODS[m].function(capture)[0] for m in ("GradCAM", "GradCAM++", "ScoreCAM", "ShapleyCAM")]
            expected = expected or maps
            for ours, oracle in zip(maps, expected):
                assert_close(ours, oracle, 1e-5)


def test_one_forward_and_one_backward_serve_every_gradient_method(tiny):
    calls = []
    tiny.fc.register_forward_hook(lambda *_: calls.append("forward"))
    tiny.fc.register_full_backward_hook(lambda *_: calls.append("backward"))
    capture = Capture(tiny, noise(2, 3, 48, 48), [0, 3], LAYERS)
    for method in GRADIENT_METHODS:
        explain(capture, method, BASE)
        explain(capture, method, REFINED)
    assert capture.probability.shape == (2,)
    assert calls == ["forward", "backward"] * 2  # in float32, and for Grad-CAM++ in float64


def test_one_forward_serves_shapley_cam_and_the_probability(tiny):
    calls, inputs = [], noise(2, 3, 48, 48)
    expected = Capture(tiny, inputs, [0, 3], LAYERS).logits
    tiny.fc.register_forward_hook(lambda *_: calls.append("forward"))
    capture = Capture(tiny, inputs, [0, 3], LAYERS)
    explain(capture, "ShapleyCAM", BASE)
    explain(capture.of_target([1, 1]), "ShapleyCAM", REFINED)
    assert torch.equal(capture.logits, expected)
    assert calls == ["forward"]


def test_probability_and_masking(tiny):
    inputs, maps = noise(2, 3, 48, 48), torch.rand(2, 48, 48)
    capture = Capture(tiny.eval(), inputs, [0, 3], LAYERS)
    with torch.no_grad():
        expected = [tiny(x).softmax(1)[[0, 1], [0, 3]] for x in (inputs, inputs * maps[:, None])]
    assert torch.allclose(capture.probability, expected[0], atol=1e-6)
    assert torch.allclose(capture.masked(maps).probability, expected[1], atol=1e-6)


def test_explainer_has_captums_attribute(tiny):
    inputs = noise(2, 3, 48, 48)
    maps = Explainer(tiny, "LayerCAM", LAYERS).attribute(inputs, target=2)
    assert torch.equal(maps, Explainer(tiny, "LayerCAM", LAYERS).attribute(inputs, torch.tensor([2])))
    raw = cams.layer_cam(Capture(tiny, inputs, [2, 2], LAYERS))[0]
    raw = F.interpolate(raw[:, None], size=(48, 48), mode="bilinear")
    low, high = raw.amin((2, 3), keepdim=True), raw.amax((2, 3), keepdim=True)
    assert torch.allclose(maps, (raw - low) / (high - low), atol=1e-5)


def test_random_numbers_follow_the_image_and_differ_for_the_masked_one(tiny):
    inputs, ones = noise(3, 3, 48, 48), torch.ones(3, 48, 48)
    capture, turned = Capture(tiny, inputs, [0, 1, 2], LAYERS), Capture(tiny, inputs.flip(0), [2, 1, 0], LAYERS)
    maps = capture.maps(controls.random_cam)[0]
    assert torch.equal(maps, turned.maps(controls.random_cam)[0].flip(0))
    assert capture.seeds_of("road") == turned.seeds_of("road")[::-1]
    assert not torch.equal(maps, capture.masked(ones).maps(controls.random_cam)[0])
    assert not torch.equal(maps, Capture(tiny, inputs, [0, 1, 2], LAYERS, seed=1).maps(controls.random_cam)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": torch.full((2, 3, 48, 48), torch.nan)}, "NaN"),
        ({"inputs": torch.zeros(2, 1, 48, 48)}, "have 1 channels, the network takes 3"),
        ({"inputs": torch.zeros(3, 48, 48)}, r"\(3, 48, 48\)"),
        ({"inputs": torch.zeros(2, 3, 48, 48, dtype=torch.uint8)}, "uint8"),
        ({"inputs": torch.zeros(0, 3, 48, 48), "target": []}, "not empty"),
        ({"target": [0]}, "one class each"),
        ({"ids": [7]}, "Expected one id per image, got 1 ids for 2 images"),
        ({"target": [0, 5]}, r"0\.\.5 .*\(2, 5\)"),
        ({"target": [-1, 2]}, r"-1\.\.2"),
        ({"layers": ("stage3",)}, "Did you mean 'stage"),
        ({"layers": "stage9"}, "unknown layer 'stage9'. Did you mean 'stage"),
        ({"layers": ("stage2", "stage1")}, "shallow to deep"),
        ({"layers": ("stage1", "stage1")}, "twice"),
        ({"layers": ("relu",)}, "more than once"),
        ({"layers": ("fc",)}, "no map"),
    ],
)
@pytest.mark.parametrize("method", ["GradCAM", "ScoreCAM", "LIME"])
def test_bad_input_is_refused_in_one_line(tiny, change, words, method):
    given = {"inputs": noise(2, 3, 48, 48), "target": [0, 3], "layers": LAYERS} | change
    if method == "LIME" and words == "no map":
        pytest.skip("needs no map of a layer")
    before = state(tiny)
    with pytest.raises(checks.InputError, match=words) as caught:
        Capture(tiny, **given).maps(METHODS[method].function)
    assert "\n" not in str(caught.value)
    assert_same_state(before, state(tiny))


def test_a_capture_without_layers_has_no_map_of_one(tiny):
    capture = Capture(tiny, noise(2, 3, 48, 48), [0, 3], ())
    with pytest.raises(checks.InputError, match="allowed: one of its layers"):
        explain(capture, "GradCAM")


def test_layers_that_return_no_tensor_or_do_not_run_are_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.unused, self.fc = Pair(), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.pair(x)[0].mean((2, 3)))

    for layer, words in (("pair", "returns a tuple"), ("unused", "layers that run")):
        with pytest.raises(checks.InputError, match=words):
            cams.grad_cam(Capture(Net(), noise(1, 3, 8, 8), [0], (layer,)))


def test_unknown_methods_and_variants_are_refused(tiny):
    capture = Capture(tiny, noise(1, 3, 48, 48), [0], LAYERS)
    with pytest.raises(checks.InputError, match="Did you mean 'LayerCAM'"):
        explain(capture, "LayerCam")
    with pytest.raises(checks.InputError, match="no map for each layer"):
        explain(capture, "LIME", REFINED)
    for power in ("nan", "-1", "0", "inf", "x"):
        with pytest.raises(checks.InputError, match="a number above 0"):
            explain(capture, f"LayerCAM^{power}")
    with pytest.raises(checks.InputError, match=r"allowed: 0\.\.1"):
        Explainer(tiny, "GradCAM", LAYERS, layer=2)
    with pytest.raises(checks.InputError, match="one class each"):
        Explainer(tiny, "GradCAM", LAYERS).attribute(noise(2, 3, 48, 48), torch.tensor([0, 1, 2]))
