"""captum's methods compared with direct captum calls, with a known linear model, and with their definitions."""

import copy
import warnings

import captum.attr
import numpy as np
import pytest
import timm
import torch
from torch import nn

from refinecam_lib import cams
from refinecam_lib.baselines import captum_methods as methods
from refinecam_lib.capture import Capture
from refinecam_lib.datasets.sample import batch_of
from refinecam_lib.datasets.shapes import SyntheticShapes
from refinecam_lib.errors import InputError, rng, seed_of
from refinecam_lib.explanation import METHODS, explain
from refinecam_lib.networks.checkpoints import checkpoint_path
from refinecam_lib.networks.layers import evaluating
from refinecam_lib.networks.loading import load_model, normalise
from refinecam_lib.networks.zoo import MODELS, spec_of
from refinecam_lib.refinement import to_map
from refinecam_lib.road import removal_order

TARGET = torch.tensor([3, 1])
FAMILIES = [
    "resnet18",
    pytest.param("efficientnet_lite0", marks=pytest.mark.slow),
    pytest.param("vgg11", marks=pytest.mark.slow),
    pytest.param("convnext_tiny", marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def _quiet_and_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum warns about its own hooks
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> Capture:
    torch.manual_seed(0)
    spec, side = MODELS[request.param], 64
    model = spec.build(5, False)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
            nn.init.normal_(norm.bias, std=0.3)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, side, side))
    return Capture(model.eval(), torch.randn(2, 3, side, side), TARGET, spec.layers, ids=[7, 8])


class Curved(nn.Module):
    """An activation module that works in place and runs twice, and a pool. DeepLift cannot handle it unchanged."""

    def __init__(self, activation: nn.Module, pool: type[nn.Module] = nn.MaxPool2d):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.act, self.pool, self.fc = activation, pool(2), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.act(self.pool(self.conv2(self.act(self.conv1(x))))).mean((2, 3)))


@pytest.fixture
def curved() -> Capture:
    torch.manual_seed(0)
    return Capture(Curved(nn.ReLU(inplace=True)).eval(), torch.randn(2, 3, 32, 24), TARGET, ("conv1", "conv2"), [7, 8])


def close(ours: torch.Tensor, oracle: torch.Tensor, tolerance: float) -> bool:
    assert ours.shape == oracle.shape and float(oracle.abs().max()) > 0
    return float((ours - oracle).abs().max() / oracle.abs().max()) <= tolerance


def test_guided_grad_cam_equals_captum(family):
    ours = methods.guided_grad_cam(family)
    assert len(ours) == 4
    for layer, raw in list(zip(family.layers, ours))[::3]:
        model = copy.deepcopy(family.model)
        for module in model.modules():  # captum's hooks need activations that are not in place
            if isinstance(module, nn.ReLU):
                module.inplace = False
        oracle = captum.attr.GuidedGradCam(model, model.get_submodule(layer))
        with evaluating(model):
            oracle = oracle.attribute(family.inputs.clone().requires_grad_(), target=TARGET)
        assert close(raw, oracle.detach().sum(1).abs(), 1e-6 if raw.abs().max() > 1e-3 else 1e-5)


def test_guided_gradients_differ_from_plain_ones_only_in_networks_with_relus(family):
    guided = methods.guided_gradient(family)
    inputs = family.inputs.clone().requires_grad_()
    plain = torch.autograd.grad(family.model(inputs).gather(1, TARGET[:, None]).sum(), inputs)[0]
    has_relu = any(isinstance(module, nn.ReLU) for module in family.model.modules())
    assert close(guided, plain, 1e-5) != has_relu


def test_guided_grad_cam_of_channels_last_layers_permutes_first():
    """captum reads Swin's (B,h,w,C) as (B,C,h,w) (D12). Here Grad-CAM has the map's 14x14."""
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, num_classes=5).eval()
    capture = Capture(model, torch.randn(2, 3, 56, 56), TARGET, ("layers.0.blocks.1.norm1", "layers.3.blocks.1.norm1"))
    gradient = methods.guided_gradient(capture).sum(1)
    for raw, grad_cam in zip(methods.guided_grad_cam(capture), cams.grad_cam(capture)):
        up = grad_cam.repeat_interleave(56 // grad_cam.shape[1], 1).repeat_interleave(56 // grad_cam.shape[2], 2)
        assert close(raw, (gradient * up).abs(), 1e-6)


def test_the_guided_gradient_is_computed_once_for_all_layers(curved):
    calls = []
    curved.model.fc.register_forward_hook(lambda *_: calls.append(None))
    explain(curved, "GuidedGradCAM")
    assert len(curved.maps(methods.guided_grad_cam)) == 2
    assert len(calls) == 2  # Grad-CAM's pass and the guided pass


def test_input_x_gradient_and_integrated_gradients_equal_captum(family):
    model, inputs = copy.deepcopy(family.model).double(), family.inputs.double().requires_grad_()
    family = Capture(model, inputs, TARGET, family.layers)
    oracle = captum.attr.InputXGradient(model).attribute(inputs, target=TARGET)
    assert close(methods.input_x_gradient(family)[0], oracle.detach().sum(1).abs(), 1e-9)
    oracle = captum.attr.IntegratedGradients(model).attribute(inputs, target=TARGET, n_steps=4)
    assert close(methods.integrated_gradients(family, steps=4, chunk=3)[0], oracle.detach().sum(1).abs(), 1e-9)


def test_integrated_gradients_sum_to_the_difference_of_the_outputs(curved):
    """Completeness, on a network where the plain gradient does not have it."""
    model = Curved(nn.Tanh(), nn.AvgPool2d).eval()
    capture = Capture(model.double(), curved.inputs.double(), TARGET, curved.layers)
    with torch.no_grad():
        difference = (model(capture.inputs) - model(torch.zeros_like(capture.inputs))).gather(1, TARGET[:, None])[:, 0]
    signed = captum.attr.IntegratedGradients(model).attribute(capture.inputs, target=TARGET, n_steps=50)
    assert torch.allclose(signed.sum((1, 2, 3)), difference, rtol=1e-3)
    assert close(methods.integrated_gradients(capture)[0], signed.sum(1).abs(), 1e-9)


def baselines(capture: Capture) -> torch.Tensor:
    shape = tuple(capture.inputs.shape[1:])
    noise = [rng(seed_of(seed, "DeepLift")).standard_normal(shape, dtype="float32") for seed in capture.seeds]
    return 1e-3 * torch.from_numpy(np.stack(noise))


@pytest.mark.parametrize("name", ["vgg11", pytest.param("convnext_tiny", marks=pytest.mark.slow)])
def test_deep_lift_equals_captum_where_captum_handles_the_network(name):
    torch.manual_seed(0)
    model = MODELS[name].build(5, False).eval()
    capture = Capture(model, torch.randn(2, 3, 64, 64), TARGET, MODELS[name].layers, ids=[7, 8])
    ours = methods.deep_lift(capture)[0]
    separate = copy.deepcopy(model)
    for module in separate.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    explain = captum.attr.DeepLift(separate).attribute
    for x, base, target, each in zip(capture.inputs, baselines(capture), TARGET, ours):
        oracle = explain(x[None].clone(), base[None], target=target)
        assert close(each, oracle[0].detach().sum(0).abs(), 1e-5)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.ELU(), nn.LeakyReLU(0.1, True)]
)
def test_deep_lift_attributions_sum_to_the_difference_of_the_outputs(curved, activation):
    """Completeness holds only if each call of the shared in-place activation keeps its own inputs and outputs."""
    model = Curved(activation, nn.AvgPool2d).eval()
    with torch.no_grad():
        model.conv1.weight *= 5  # beyond 6, where ReLU6 is flat
    capture = Capture(model.double(), 3 * curved.inputs.double(), TARGET, curved.layers, ids=[7, 8])
    twin = methods.deep_lift_copy(model, capture.inputs[:1])
    base = baselines(capture).double()
    with torch.no_grad():
        assert torch.allclose(twin(capture.inputs), model(capture.inputs), atol=1e-12)
        difference = (model(capture.inputs) - model(base)).gather(1, TARGET[:, None])[:, 0]
    signed = captum.attr.DeepLift(twin).attribute(capture.inputs.clone(), base, target=TARGET)
    assert torch.allclose(signed.sum((1, 2, 3)), difference, rtol=1e-6)
    assert close(methods.deep_lift(capture)[0], signed.detach().sum(1).abs(), 1e-6)


def test_deep_lift_keeps_the_gradient_of_other_readers_of_an_activations_input(curved):
    """captum alone loses the gradient of a second module that reads an activation's input."""

    class Gated(nn.Module):
        def forward(self, x):
            return x + self.act(x)

        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

    model = Curved(Gated(), nn.AvgPool2d).double().eval()
    capture = Capture(model, curved.inputs.double(), TARGET, curved.layers, ids=[7, 8])
    base = baselines(capture).double()
    with torch.no_grad():
        difference = (model(capture.inputs) - model(base)).gather(1, TARGET[:, None])[:, 0]
    explain = captum.attr.DeepLift(methods.deep_lift_copy(model, capture.inputs[:1])).attribute
    assert torch.allclose(explain(capture.inputs.clone(), base, target=TARGET).sum((1, 2, 3)), difference, rtol=1e-6)


@pytest.mark.parametrize(("name", "tolerance"), [("resnet18", 5e-3), ("efficientnet_lite0", 1e-6)])
def test_deep_lift_attributions_of_whole_networks_sum_to_the_difference(name, tolerance):
    torch.manual_seed(0)
    model = MODELS[name].build(5, False).eval().double()
    inputs, base = torch.randn(2, 3, 64, 64).double(), 1e-3 * torch.randn(2, 3, 64, 64).double()
    signed = captum.attr.DeepLift(methods.deep_lift_copy(model, inputs[:1])).attribute(inputs, base, target=TARGET)
    with torch.no_grad():
        difference = (model(inputs) - model(base)).gather(1, TARGET[:, None])[:, 0]
    assert torch.allclose(signed.sum((1, 2, 3)), difference, rtol=tolerance)


def test_the_copy_for_deep_lift_shares_weights_and_the_model_is_unchanged(curved):
    model = curved.model.train()
    before = {name: id(module) for name, module in model.named_modules()}
    twin = methods.deep_lift_copy(model, curved.inputs[:1])
    assert before == {name: id(module) for name, module in model.named_modules()}
    assert model.act.inplace and all(module.training for module in model.modules())
    assert [id(p) for p in twin.parameters()] == [id(p) for p in model.parameters()]
    assert not any(getattr(module, "inplace", False) for module in twin.modules())
    relus = [module for module in twin.modules() if isinstance(module, nn.ReLU)]
    assert len(relus) == 2 and not any(module.training for module in twin.modules())


def moved_by_rounding(capture: Capture, method: str) -> float:
    """Return the largest change of a map if each pixel moves by one rounding step, in the method's precision."""
    entry = METHODS[method]
    given = capture.double if entry.double else capture
    up = torch.rand(given.inputs.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    inputs = torch.nextafter(given.inputs, torch.where(up, torch.inf, -torch.inf).to(given.inputs))
    other = Capture(given.model, inputs, given.target, given.layers, given.ids)
    maps = [to_map(each.maps(entry.function)[0], each.size) for each in (given, other)]
    return float((maps[1] - maps[0]).abs().max())


def test_deep_lift_of_swin_does_not_depend_on_rounding():
    """In float32 captum's rule for the softmax of attention gives only rounding noise."""
    if not checkpoint_path("swin_tiny").is_file():
        pytest.skip("needs the checkpoint of swin_tiny")
    images, target, _ = batch_of([SyntheticShapes("test", 1)[0]])
    spec = spec_of("swin_tiny")
    capture = Capture(load_model("swin_tiny"), normalise(images, spec), target, spec.layers)
    assert moved_by_rounding(capture, "DeepLift") < 1e-6


class Additive(nn.Module):
    """Logits that are a weighted sum of the superpixels kept. LIME and KernelShap must find the weights."""

    def __init__(self, mask: torch.Tensor, weights: torch.Tensor):
        super().__init__()
        self.layer, self.mask, self.weights = nn.Identity(), mask, weights

    def forward(self, x):
        kept = (self.layer(x).abs().sum(1) > 0).to(x)
        counts = torch.zeros(len(x), len(self.weights)).index_add_(1, self.mask.flatten(), kept.flatten(1))
        share = counts / torch.bincount(self.mask.flatten(), minlength=len(self.weights))
        return torch.stack([share @ self.weights, -(share @ self.weights)], 1)


def known_weights() -> tuple[Capture, torch.Tensor]:
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 5, 5), size=(40, 40), mode="bicubic")
    mask = methods.superpixels(image[0])
    weights = 3 * torch.randn(int(mask.max()) + 1)
    return Capture(Additive(mask, weights), image, [0], ("layer",), ids=[11]), weights[mask].abs()


def test_kernel_shap_recovers_known_weights():
    torch.manual_seed(0)
    capture, expected = known_weights()
    enough = methods.kernel_shap(capture, samples=200)
    assert close(enough[0][0], expected, 2e-2)  # captum's regression is in float32
    few = methods.kernel_shap(capture)[0][0]  # 25 forward passes for about 90 unknowns
    assert not close(few, expected, 0.3)


def test_lime_recovers_known_weights_up_to_its_penalty():
    torch.manual_seed(0)
    capture, expected = known_weights()
    maps = methods.lime(capture, samples=600)[0][0]
    assert np.corrcoef(maps.flatten(), expected.flatten())[0, 1] > 0.99
    assert close(maps, expected, 0.1)


@pytest.mark.parametrize("name", ["LIME", "KernelShap"])
def test_superpixel_methods_equal_captum_with_the_same_draws(name):
    torch.manual_seed(0)
    capture, _ = known_weights()
    ours = METHODS[name].function(capture)[0]
    rng = torch.random.get_rng_state()
    torch.manual_seed(seed_of(capture.seeds[0], name))
    kind = {"LIME": captum.attr.Lime, "KernelShap": captum.attr.KernelShap}[name]
    mask = methods.superpixels(capture.inputs[0])[None, None]
    oracle = kind(capture.model).attribute(capture.inputs, target=0, feature_mask=mask, n_samples=25)
    torch.random.set_rng_state(rng)
    # The paper sums over three channels with equal weights.
    assert close(3 * ours, oracle.sum(1).abs(), 1e-5)


def test_weights_that_differ_only_by_rounding_tie():
    weights = torch.tensor([0.5, 2.0, 0.5 + 1e-6, 0.0, 1e-7, 0.3, 0.3001])
    tied = methods.with_ties(weights)
    assert tied[0] == tied[2] and tied[3] == tied[4] and len(tied.unique()) == 5
    assert torch.allclose(tied, weights, atol=1e-6)
    assert torch.equal(methods.with_ties(weights.flip(0)), tied.flip(0))
    assert torch.equal(methods.with_ties(torch.zeros(3)), torch.zeros(3))


def test_superpixels_masked_together_have_one_value_and_rounding_keeps_the_order():
    torch.manual_seed(0)
    capture, _ = known_weights()
    maps = methods.kernel_shap(capture, samples=8)[0]
    assert len(maps.unique()) < 15
    generator = torch.Generator().manual_seed(0)
    capture.model.weights = capture.model.weights * (
        1 + 1e-7 * torch.randn(capture.model.weights.shape, generator=generator)
    )
    again = methods.kernel_shap(Capture(capture.model, capture.inputs, [0], ("layer",), capture.ids), samples=8)[0]
    assert torch.equal(removal_order(maps, [0]), removal_order(again, [0]))


@pytest.mark.parametrize("name", ["LIME", "KernelShap", "DeepLift"])
def test_random_draws_depend_only_on_the_images_seed(curved, name):
    with torch.no_grad():
        curved.model.fc.weight *= 30

    def maps(inputs, seeds):
        target = torch.full((len(inputs),), 2)
        return Capture(curved.model, inputs, target, curved.layers, seeds).maps(METHODS[name].function)[0]

    x = curved.inputs
    torch.manual_seed(1)
    first = maps(x, [7, 8])
    torch.manual_seed(2)
    # The network has max-pools, whose rule in captum would mix images of a batch.
    assert torch.allclose(first[1:], maps(x[1:], [8]), rtol=1e-3, atol=1e-5 * float(first.max()))
    assert not torch.allclose(first[1:], maps(x[1:], [9]), rtol=1e-3, atol=1e-5 * float(first.max()))


def test_superpixels_are_about_a_hundred_connected_and_do_not_depend_on_normalisation():
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 9, 9), size=(96, 128), mode="bicubic")[0]
    mask = methods.superpixels(image)
    assert mask.shape == (96, 128) and mask.dtype == torch.int64
    assert 60 <= len(mask.unique()) <= 140 and torch.equal(mask.unique(), torch.arange(int(mask.max()) + 1))
    assert torch.equal(mask, methods.superpixels(4 * image - 1))
    assert len(methods.superpixels(torch.zeros(3, 96, 128)).unique()) > 60  # a constant image is divided too


@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples_are_refused(curved, samples):
    with pytest.raises(InputError, match=f"{samples} samples for LIME; allowed: 2 or more"):
        methods.lime(curved, samples=samples)


@pytest.mark.parametrize(
    "name", ["GuidedGradCAM", "LIME", "DeepLift", "InputXGradient", "IntegratedGradients", "KernelShap"]
)
def test_bad_targets_are_refused_by_every_method(curved, name):
    bad = Capture(curved.model, curved.inputs, torch.tensor([0, 4]), curved.layers)
    with pytest.raises(InputError, match=r"0\.\.4 for outputs of shape \(2, 4\)"):
        explain(bad, name)
