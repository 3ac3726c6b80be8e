"""Layers found in any network, and every layout read as (B,C,h,w), compared with grad-cam and a manual reshape."""

import pytest
import pytorch_grad_cam
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from refinecam_lib import cams
from refinecam_lib.capture import Capture
from refinecam_lib.errors import InputError
from refinecam_lib.networks import layers
from refinecam_lib.networks.layers import evaluating, layers_of
from refinecam_lib.networks.layout import to_nchw

vision = torchvision.models


def nchw(tensor):
    return tensor


def nhwc(tensor):
    return tensor.permute(0, 3, 1, 2)


def tokens(prefix: int, side: int):
    return lambda tensor: tensor[:, prefix:].reshape(len(tensor), side, side, -1).permute(0, 3, 1, 2)


def timm_net(name: str, **options):
    return lambda: timm.create_model(name, num_classes=6, **options)


def vision_net(name: str, **options):
    return lambda: vision.get_model(name, num_classes=6, **options)


def vision_vit():
    return vision.VisionTransformer(64, 16, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=6)


def norms(*numbers: int) -> tuple[str, ...]:
    return tuple(f"blocks.{n}.norm1" for n in numbers)


STAGES, SWIN = ("stages.0", "stages.1", "stages.2", "stages.3"), tuple(f"layers.{n}" for n in range(4))
RESNET = ("layer1", "layer2", "layer3", "layer4")
LNS = tuple(f"encoder.layers.encoder_layer_{n}.ln_1" for n in range(4))
DENSE = ("features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5")
NETWORKS = {  # build, side of the images, reshape of the first and of the third layer, expected layers
    "resnet50": (vision_net("resnet50"), 64, nchw, nchw, RESNET),
    "timm resnet50": (timm_net("resnet50"), 64, nchw, nchw, RESNET),
    "densenet121": (vision_net("densenet121"), 64, nchw, nchw, DENSE),
    "vgg11": (vision_net("vgg11"), 64, nchw, nchw, ("features.9", "features.14", "features.19", "features.20")),
    "mobilenet_v3": (vision_net("mobilenet_v3_small"), 64, nchw, nchw, tuple(f"features.{n}" for n in (1, 3, 8, 12))),
    "regnet": (timm_net("regnetx_002"), 64, nchw, nchw, ("s1", "s2", "s3", "s4")),
    "vit": (timm_net("vit_tiny_patch16_224", img_size=80), 80, tokens(1, 5), tokens(1, 5), norms(2, 5, 8, 11)),
    "vit_b_16": (vision_vit, 64, tokens(1, 4), tokens(1, 4), LNS),
    "deit distilled": (
        timm_net("deit_tiny_distilled_patch16_224", img_size=80),
        80,
        tokens(2, 5),
        tokens(2, 5),
        norms(2, 5, 8, 11),
    ),
    "registers vit": (
        timm_net("vit_small_patch14_reg4_dinov2", img_size=70, depth=4),
        70,
        tokens(5, 5),
        tokens(5, 5),
        norms(0, 1, 2, 3),
    ),
    "swin_v2": (timm_net("swinv2_tiny_window8_256", img_size=64, depths=(1, 1, 2, 1)), 64, nhwc, nhwc, SWIN),
    "swin_t": (vision_net("swin_t"), 64, nhwc, nhwc, ("features.1", "features.3", "features.5", "permute")),
    "swin_tiny": (timm_net("swin_tiny_patch4_window7_224", img_size=56), 56, nhwc, nhwc, SWIN),
    "convnext_v2": (timm_net("convnextv2_atto"), 64, nchw, nchw, STAGES),
    "convnext_tiny": (vision_net("convnext_tiny"), 64, nchw, nchw, tuple(f"features.{n}" for n in (1, 3, 5, 7))),
    "maxvit": (timm_net("maxvit_rmlp_pico_rw_256", img_size=64), 64, nchw, nchw, STAGES),
    "efficientnet_b0": (vision_net("efficientnet_b0"), 64, nchw, nchw, tuple(f"features.{n}" for n in (2, 3, 5, 8))),
    "efficientnet_lite0": (
        timm_net("tf_efficientnet_lite0"),
        64,
        nchw,
        nchw,
        ("blocks.1", "blocks.2", "blocks.4", "blocks.6"),
    ),
    "inception_v3": (
        vision_net("inception_v3", init_weights=False),
        139,
        nchw,
        nchw,
        ("Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"),
    ),
    "pvt_v2": (timm_net("pvt_v2_b0"), 64, nchw, nchw, STAGES),
    "cait": (timm_net("cait_xxs24_224", img_size=64, depth=8), 64, tokens(0, 4), tokens(0, 4), norms(1, 3, 5, 7)),
    "convmixer": (
        lambda: timm.models.ConvMixer(64, 8, 7, 7, num_classes=6),
        56,
        nchw,
        nchw,
        ("blocks.1", "blocks.3", "blocks.5", "blocks.7"),
    ),
}
SLOW = ("resnet50", "densenet121", "swin_t", "swin_tiny", "convnext_tiny", "inception_v3", "vgg11", "efficientnet_b0")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NETWORKS])
def test_layers_of_a_network_and_their_maps_equal_grad_cam(name):
    build, side, first, third, expected = NETWORKS[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build().eval()
    for weight in model.parameters():  # some networks start with a head or branches of zeros
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    norms_of_batch = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms_of_batch:  # otherwise the signal vanishes in deep networks
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 3, side, side))
    model.eval()
    layers = layers_of(model, side)
    assert layers == expected
    assert not any(module._forward_hooks for module in model.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    model, inputs = model.double(), torch.randn(2, 3, side, side).double()
    maps = dict(zip(layers, zip(*(m(Capture(model, inputs, [4, 1], layers)) for m in (cams.grad_cam, cams.layer_cam)))))
    for layer, reshape in ((layers[0], first), (layers[2], third)):
        for ours, package in zip(maps[layer], (pytorch_grad_cam.GradCAM, pytorch_grad_cam.LayerCAM)):
            oracle = package_raw(package, model, layer, inputs, reshape)
            assert ours.shape == oracle.shape and min(ours.shape[1:]) > 1 and float(oracle.max()) > 0
            assert float((ours - oracle).abs().max() / oracle.max()) < 1e-9


def package_raw(kind, model, layer, inputs, reshape) -> torch.Tensor:
    """Return the raw map of the package grad-cam, before it scales and resizes."""
    explain = kind(model, [model.get_submodule(layer)], reshape)
    raw, original = [], explain.get_cam_image
    explain.get_cam_image = lambda *args: raw.append(original(*args)) or raw[-1]
    explain(inputs.clone().requires_grad_(), [ClassifierOutputTarget(4), ClassifierOutputTarget(1)])
    for handle in explain.activations_and_grads.handles:
        handle.remove()
    explain.activations_and_grads.gradients.clear()
    explain.activations_and_grads.activations.clear()
    model.zero_grad()
    return torch.from_numpy(raw[0]).clamp_min(0)


def test_the_papers_layers_are_found_or_equivalent_ones():
    """ResNet18's layers are the paper's. For VGG11 it is the ReLU before each pool instead of the pool."""
    assert layers_of(vision.resnet18(), 64) == RESNET


def test_networks_with_few_stages_and_another_count():
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    assert layers_of(net, 32) == ("0", "1")
    assert layers_of(net, (32, 48), count=1) == ("1",)
    assert layers_of(nn.Sequential(nn.Sequential(*net[:2]), *net[2:]), 32) == ("0.0", "0.1")


def test_the_layers_of_a_wrapped_transformer_are_found():
    """The wrapper hides the number of prefix tokens. The smallest number that leaves a grid is used."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=3, reg_tokens=4).eval()
    wrapped = nn.Sequential(nn.Identity(), vit)
    layers = layers_of(wrapped, 64)
    assert layers == tuple(f"1.blocks.{n}.norm1" for n in range(4))
    inputs = torch.randn(2, 3, 64, 64)
    ours, direct = (
        cams.grad_cam(Capture(m, inputs, [0, 1], names))
        for m, names in ((wrapped, layers), (vit, [n[2:] for n in layers]))
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, direct)) and ours[0].shape == (2, 4, 4)


def test_a_shape_that_fits_both_layouts_is_read_in_the_networks_own():
    """(B,14,14,14) is (B,h,w,C) in a Swin and (B,C,h,w) in a CNN."""
    torch.manual_seed(0)
    swin = timm.models.swin_transformer.SwinTransformer(
        img_size=56, embed_dim=14, depths=(1, 1), num_heads=(1, 2), num_classes=3
    ).eval()
    inputs = torch.randn(2, 3, 56, 56)
    capture = Capture(swin, inputs, [0, 2], ("layers.0", "layers.1"))
    recorded = []
    swin.layers[0].register_forward_hook(lambda module, args, output: recorded.append(output))
    with torch.no_grad():
        swin(inputs)
    assert recorded[0].shape == (2, 14, 14, 14)
    assert torch.allclose(capture.activations[0], recorded[0].permute(0, 3, 1, 2), atol=1e-6)
    activation = torch.randn(2, 14, 14, 14)
    assert torch.equal(to_nchw(activation, (56, 56)), activation)
    assert torch.equal(to_nchw(activation, (56, 56), channels_last=True), activation.permute(0, 3, 1, 2))


@given(
    st.integers(2, 20),
    st.integers(2, 20),
    st.sampled_from([4, 8, 14, 16, 32]),
    st.integers(0, 8),
    st.sampled_from(["nchw", "nhwc", "tokens"]),
)
def test_every_layout_is_read_as_nchw(h, w, stride, prefix, layout):
    maps = torch.randn(2, 64, h, w)
    size = (h * stride, w * stride)
    if layout == "nchw":
        given_ = maps
    elif layout == "nhwc":
        given_ = maps.permute(0, 2, 3, 1)
    else:
        given_ = torch.cat([torch.randn(2, prefix, 64), maps.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(to_nchw(given_, size, prefix), maps)


@given(st.integers(5, 16), st.integers(0, 6))
def test_the_number_of_prefix_tokens_is_found_for_square_images(side, prefix):
    maps = torch.randn(2, 8, side, side)
    given_ = torch.cat([torch.randn(2, prefix, 8), maps.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(to_nchw(given_, (16 * side, 16 * side)), maps)


@pytest.mark.parametrize("shape", [(2, 64), (2, 63, 14), (2, 5, 3, 40), (2, 64, 30, 14), (2, 3, 8, 8, 8), (2, 220, 9)])
def test_an_output_that_is_no_map_is_refused(shape):
    with pytest.raises(InputError, match="is no map; allowed") as caught:
        to_nchw(torch.zeros(shape), (224, 224))
    assert str(shape) in str(caught.value)


def test_windows_of_an_image_are_refused():
    """Swin's attention has windows in the batch dimension, which are not maps of images."""
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, num_classes=3).eval()
    with pytest.raises(InputError, match="one output an image"):
        cams.grad_cam(Capture(swin, torch.randn(1, 3, 56, 56), [0], ("layers.0.blocks.0.attn.proj",)))


def test_networks_without_a_map_are_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3 * 16 * 16, 3)

        def forward(self, x):
            return self.fc(x.flatten(1))

    with pytest.raises(InputError, match="no layer of Flat gives a map on images of 16x16 px"):
        layers_of(Flat(), 16)
    segmenter = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(InputError, match=r"Expected logits \(2, K\), got .* of shape \(2, 4, 14, 14\)"):
        layers_of(segmenter, 16)
    for size, count in (((1, 2, 3), 4), (0, 4), (32, 0)):
        with pytest.raises(InputError, match="image_size"):
            layers_of(vision.resnet18(), size, count)


def test_a_layer_that_runs_twice_is_not_chosen_and_the_network_is_unchanged():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
            self.relu, self.fc, self.norm = nn.ReLU(inplace=True), nn.Linear(4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.relu(self.c(self.relu(self.b(self.norm(self.relu(self.a(x)))))))
            return self.fc(x.mean((2, 3)))

    model = Shared().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert layers_of(model, 32) == ("norm", "b", "c")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    model.fc.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layers_of(model, 32)
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("threads", "fast"), [(1, True), (2, True), (1, False)])
def test_evaluating_restores_modes_and_speeds_up_pointwise_convolutions_where_asked(threads, fast, monkeypatch):
    monkeypatch.setattr(layers, "_fast_pointwise", False)
    if fast:
        layers.fast_pointwise()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 4, 1))
    images, before = torch.randn(2, 3, 16, 16), torch.get_num_threads()
    expected = model.double().eval()(images.double())
    model.float().train()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(KeyError), evaluating(model):
            pointwise = (2, 2) if fast and threads == 1 else (1, 1)
            assert [model[k].dilation for k in (0, 2, 3)] == [pointwise, (2, 2), pointwise]
            assert not model[1].training
            torch.testing.assert_close(model(images).double(), expected, rtol=0, atol=1e-5)
            raise KeyError
    finally:
        torch.set_num_threads(before)
    assert [model[k].dilation for k in (0, 2, 3)] == [(1, 1), (2, 2), (1, 1)]
    assert model[1].training


def test_evaluating_changes_no_state_of_a_network_in_training_mode(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(layers, "_fast_pointwise", True)
    model = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with evaluating(model):
        model(torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
