"""RefineCAM and its aggregates compared with the package grad-cam and with direct references, and their properties."""

import math

import mpmath
import numpy as np
import pytest
import pytorch_grad_cam
import scipy.stats
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pytorch_grad_cam.refine_cam import RefineCAM as PackageRefineCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from refinecam_lib import cams
from refinecam_lib.capture import Capture
from refinecam_lib.errors import InputError
from refinecam_lib.explanation import METHODS, Variant, explain
from refinecam_lib.networks.zoo import MODELS
from refinecam_lib.refinement import AGGREGATES, COMBINATIONS, inverse_exp_mean, min_max, refine, to_map

unit = st.floats(0, 1, allow_subnormal=False)
stacks = arrays(np.float64, array_shapes(min_dims=4, max_dims=4, max_side=4), elements=unit).map(torch.from_numpy)


@given(stacks)
def test_the_product_is_at_most_each_factor(maps):
    assert (AGGREGATES["product"](maps) <= maps).all()


@given(stacks, st.sampled_from(list(AGGREGATES)))
def test_an_aggregate_lies_between_the_product_and_the_largest_map(maps, name):
    result = AGGREGATES[name](maps)
    assert (result >= maps.prod(0) - 1e-12).all() and (result <= maps.amax(0) + 1e-12).all()


@given(stacks, st.sampled_from(list(AGGREGATES)), st.randoms(use_true_random=False))
def test_the_order_of_layers_does_not_matter(maps, name, random):
    order = random.sample(range(len(maps)), len(maps))
    assert torch.allclose(AGGREGATES[name](maps[order]), AGGREGATES[name](maps), rtol=1e-9, atol=1e-12)


@given(stacks, st.sampled_from(list(AGGREGATES)))
def test_a_zero_in_one_layer_is_a_zero(maps, name):
    maps[0, 0, 0, 0] = 0
    assert AGGREGATES[name](maps)[0, 0, 0] == 0


@given(stacks, st.integers(1, 4))
def test_means_of_equal_maps_are_that_map_and_all_aggregates_keep_its_order(maps, layers):
    equal = maps[:1].expand(layers, -1, -1, -1)
    for name in ("geometric_mean", "inverse_exp_mean"):
        assert torch.allclose(AGGREGATES[name](equal), maps[0], rtol=1e-9, atol=1e-12)
    assert torch.allclose(AGGREGATES["product"](equal), maps[0] ** layers, rtol=1e-9, atol=1e-12)


@given(stacks, st.sampled_from(list(AGGREGATES)))
def test_refining_one_layer_is_the_identity(maps, name):
    one = min_max(maps[0])
    assert torch.allclose(refine([one], name), one, rtol=1e-9, atol=1e-12)


@given(arrays(np.float64, array_shapes(min_dims=4, max_dims=4, max_side=4), elements=st.floats(1e-12, 1)))
def test_the_geometric_mean_is_scipys(maps):
    ours = AGGREGATES["geometric_mean"](torch.from_numpy(maps)).numpy()
    np.testing.assert_allclose(ours, scipy.stats.gmean(maps, axis=0), rtol=1e-9)


@given(st.lists(st.one_of(st.floats(1e-30, 1), st.floats(1e-4, 0.02)), min_size=1, max_size=5))
def test_the_inverse_exp_mean_is_equation_9_even_if_its_exponential_overflows(values):
    with mpmath.workdps(60):
        exact = 1 / mpmath.log(sum(mpmath.exp(1 / mpmath.mpf(v)) for v in values) / len(values))
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            maps = torch.tensor(values, dtype=dtype)[:, None, None, None]
            assert abs(float(inverse_exp_mean(maps)) / float(exact) - 1) < tolerance


def test_the_inverse_exp_mean_below_the_published_codes_overflow():
    """In float32, 1 / ln(mean exp(1/L)) is 0 below L = 0.0113. The exact value is nearly L."""
    values = torch.tensor([0.011, 0.9])[:, None, None, None]
    naive = 1 / (1 / values).exp().mean(0).log()
    assert float(naive) == 0
    assert float(inverse_exp_mean(values)) == pytest.approx(1 / (1 / 0.011 - math.log(2)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_geometric_mean_does_not_underflow(dtype):
    tiny = torch.full((8, 1, 1, 2), torch.finfo(dtype).tiny * 4, dtype=dtype)
    assert torch.allclose(AGGREGATES["geometric_mean"](tiny), tiny[0], rtol=1e-4, atol=0)


@given(stacks)
def test_min_max_reaches_0_and_1_and_makes_a_constant_map_0(maps):
    scaled = min_max(maps).flatten(2)
    flat = maps.flatten(2)
    constant = flat.amin(2) == flat.amax(2)
    assert torch.equal(scaled.amin(2), torch.zeros_like(scaled[..., 0]))
    assert torch.equal(scaled.amax(2), torch.where(constant, 0.0, 1.0).to(scaled))


def test_to_map_is_relu_min_max_bilinear_min_max():
    raw = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]]])
    # With half-pixel centres the corners of a 4x4 map keep the values of the 2x2 one.
    expected = torch.nn.functional.interpolate((raw.relu() / 3)[:, None], size=(4, 4), mode="bilinear")[:, 0]
    assert torch.allclose(to_map(raw, (4, 4)), expected)
    assert float(to_map(-raw.abs(), (4, 4)).abs().max()) == 0


# ---- whole networks ----


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", "GradCAM"),
        ("efficientnet_lite0", "GradCAM++"),
        pytest.param("vgg11", "GradCAM++", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "LayerCAM", marks=pytest.mark.slow),
        ("swin_tiny", "GradCAM"),
    ],
)
def test_refinecam_equals_the_package(name, kind):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = 112 if name == "swin_tiny" else 64
    if name == "swin_tiny":
        model = timm.create_model("swin_tiny_patch4_window7_224", img_size=side, num_classes=5)
    else:
        model = MODELS[name].build(5, False)
    model, inputs, layers = model.eval().double(), torch.randn(2, 3, side, side).double(), MODELS[name].layers
    reshape = (lambda tensor: tensor.permute(0, 3, 1, 2)) if name == "swin_tiny" else None
    with torch.no_grad():  # so that the 1e-7 that the package adds is negligible
        list(model.parameters())[-2].mul_(1e6)
        list(model.parameters())[-1].mul_(1e6)
    package = {"GradCAM": pytorch_grad_cam.GradCAM, "GradCAM++": pytorch_grad_cam.GradCAMPlusPlus}
    package_explain = PackageRefineCAM(
        model, [model.get_submodule(layer) for layer in layers], reshape, package.get(kind, pytorch_grad_cam.LayerCAM)
    )
    oracle = package_explain(inputs.clone().requires_grad_(), targets=[ClassifierOutputTarget(c) for c in (3, 1)])
    capture = Capture(model, inputs, [3, 1], layers)
    ours = explain(capture, kind, Variant(0, "product")).maps
    oracle = min_max(torch.from_numpy(oracle).double())  # its last scaling adds 1e-7 to a maximum that may be small
    assert float((ours - oracle).abs().max()) < 1e-5
    assert float((ours - explain(capture, kind).maps).abs().max()) > 1e-2  # refining changes the map


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.Conv2d(6, 8, 3, 2, 1)
        self.layer3, self.fc = torch.nn.Conv2d(8, 10, 3, 2, 1), torch.nn.Linear(10, 4)

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(x).tanh()).tanh()).tanh().mean((2, 3)))


@pytest.fixture
def capture() -> Capture:
    torch.manual_seed(0)
    return Capture(Small().eval(), torch.randn(2, 3, 32, 40), [0, 3], ("layer1", "layer2", "layer3"))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_variant_combines_a_layer_with_all_deeper_ones(capture, aggregate):
    single = [to_map(raw, (32, 40)) for raw in cams.layer_cam(capture)]
    maps = [explain(capture, "LayerCAM", Variant(layer, aggregate)).maps for layer in range(3)]
    assert torch.allclose(maps[2], single[2], atol=1e-6)
    for layer in range(3):
        assert torch.equal(maps[layer], refine(single[layer:], aggregate))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.refines])
def test_every_method_with_a_map_for_each_layer_refines(capture, name):
    single = [explain(capture, name, Variant(layer)).maps for layer in range(3)]
    refined = explain(capture, name, Variant(0, "product")).maps
    assert torch.allclose(refined, min_max(single[0] * single[1] * single[2]), atol=1e-6)
    assert refined.shape == (2, 32, 40)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("aggregate", ["none", "product", "geometric_mean"])
def test_the_masked_image_needs_only_the_layers_of_the_variant(capture, layer, aggregate):
    """Coherency captures only these layers of the masked image, and a variant still counts from the first layer."""
    variant, halved = Variant(layer, aggregate), torch.full((2, 32, 40), 0.5)
    needed = capture.masked(halved, variant.layers(capture.layers))
    every = Capture(capture.model, capture.inputs / 2, capture.target, capture.layers)
    assert needed.layers == capture.layers[layer : layer + 1 if aggregate == "none" else None]
    assert torch.allclose(explain(needed, "GradCAM", variant).maps, explain(every, "GradCAM", variant).maps, atol=1e-5)


def test_a_variant_of_a_layer_that_was_not_captured_is_refused(capture):
    with pytest.raises(InputError, match="allowed: one of its layers"):
        explain(capture.masked(torch.ones(2, 32, 40), capture.layers[1:]), "GradCAM", Variant(0))
    with pytest.raises(InputError, match="allowed: one of its layers"):
        explain(capture, "GradCAM", Variant(3))


def test_unknown_aggregates_are_refused():
    for refuse in (lambda: Variant(0, "median"), lambda: refine([], "median")):
        with pytest.raises(InputError, match="unknown aggregate 'median'.*product"):
            refuse()


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("mean", [0.5, 0.4]),
        ("tanh_max", [np.tanh(2.0), np.tanh(1.2)]),
        ("mean_x_deepest", [0.5, 0.4 * 0.6]),
        ("soft_and_0.1", [0.1 * 1.0, (0.1 + 0.9 * 0.2) * (0.1 + 0.9 * 0.6)]),
        ("power_mean_0.5", [0.25, ((0.2**0.5 + 0.6**0.5) / 2) ** 2]),
    ],
)
def test_each_combination_is_its_formula(name, wanted):
    maps = torch.tensor([[0.0, 0.2], [1.0, 0.6]], dtype=torch.double).view(2, 1, 1, 2)
    assert COMBINATIONS[name](maps).flatten().tolist() == pytest.approx(wanted)


def test_no_combination_with_a_floor_or_a_mean_is_blank_where_one_layer_is():
    maps = [torch.zeros(1, 4, 4), torch.rand(1, 4, 4)]
    blank = {name for name in COMBINATIONS if refine(maps, name).max() == 0}
    assert refine(maps, "product").max() == 0 and not blank
