"""Layers' outputs are read in the layout and order that the network has, also inside wrappers."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from refinecam_lib import cams
from refinecam_lib.capture import Capture
from refinecam_lib.errors import InputError
from refinecam_lib.networks.layers import layers_of
from refinecam_lib.networks.layout import layer_map


def timm_swin(channels: int = 14) -> nn.Module:
    """Return a Swin whose first maps fit both layouts: `channels` places a side."""
    return timm.models.swin_transformer.SwinTransformer(
        img_size=4 * channels, embed_dim=channels, depths=(1, 1), num_heads=(1, 2), num_classes=6
    )


def vision_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 14, [1, 1], [1, 2], [7, 7], num_classes=6)


class Own(nn.Module):
    """A wrapper as people write them."""

    def __init__(self, network):
        super().__init__()
        self.backbone, self.scale = network, nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.backbone(x) * self.scale


class Both(nn.Module):
    """An ensemble of a CNN and a Swin. Maps of both fit both layouts."""

    def __init__(self, network):
        super().__init__()
        self.swin, self.cnn = network, nn.Sequential(nn.Conv2d(3, 14, 4, 4), nn.GELU(), nn.Conv2d(14, 14, 1))
        self.fc = nn.Linear(14, 6)

    def forward(self, x):
        return self.swin(x) + self.fc(self.cnn(x).mean((2, 3)))


WRAPPERS = {
    "Sequential": (lambda net: nn.Sequential(nn.Identity(), net), "1."),
    "DataParallel": (nn.DataParallel, "module."),
    "own": (Own, "backbone."),
    "own in own": (lambda net: Own(nn.Sequential(net)), "backbone.0."),
    "beside a CNN": (Both, "swin."),
}
SWINS = {"timm": (timm_swin, "layers.0"), "torchvision": (vision_swin, "features.1")}


@pytest.mark.parametrize("swin", SWINS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_does_not_change_how_a_layer_is_read(wrapper, swin):
    torch.manual_seed(0)
    (build, layer), (wrap, prefix) = SWINS[swin], WRAPPERS[wrapper]
    network, inputs = build().eval(), torch.randn(2, 3, 56, 56)
    raw = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda module, args, output: raw.append(output.detach())
    )
    direct = Capture(network, inputs, [4, 1], (layer,))
    assert torch.equal(direct.activations[0], raw[0].permute(0, 3, 1, 2)) and raw[0].shape == (2, 14, 14, 14)
    handle.remove()
    wrapped = Capture(wrap(network).eval(), inputs, [4, 1], (prefix + layer,))
    assert torch.equal(wrapped.activations[0], direct.activations[0])
    assert torch.allclose(cams.grad_cam(wrapped)[0], cams.grad_cam(direct)[0], rtol=1e-4)


def test_layers_beside_each_other_are_read_in_their_own_layouts():
    model, inputs = Both(timm_swin()).eval(), torch.randn(1, 3, 56, 56)
    capture = Capture(model, inputs, [0], ("cnn",))
    assert torch.allclose(capture.activations[0], model.cnn(inputs).detach(), atol=1e-5)


@pytest.mark.slow
def test_swin_at_384_px_in_a_wrapper():
    torch.manual_seed(0)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=384, num_classes=6).eval()
    inputs, layers = torch.randn(1, 3, 384, 384), ("layers.0", "layers.1")
    wrapped = Capture(nn.Sequential(nn.Identity(), swin), inputs, [2], [f"1.{name}" for name in layers])
    for a, b in zip(cams.grad_cam(wrapped), cams.grad_cam(Capture(swin, inputs, [2], layers))):
        assert torch.allclose(a, b, rtol=1e-4)


class Blocks(nn.Module):
    """Linear layers on maps (B,h,w,C) that say nothing of their layout."""

    def __init__(self, side: int = 8):
        super().__init__()
        self.embed = nn.Conv2d(3, side, 4, 4)
        self.mix = nn.Sequential(nn.LayerNorm(side), nn.Linear(side, side), nn.GELU(), nn.Linear(side, side))
        self.fc = nn.Linear(side, 6)

    def forward(self, x):
        return self.fc(self.mix(self.embed(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_linear_layers_have_channels_last_where_a_shape_fits_both_layouts():
    model, inputs = Blocks().eval(), torch.randn(1, 3, 32, 32)
    embedded = model.embed(inputs)
    assert torch.allclose(Capture(model, inputs, [0], ("embed",)).activations[0], embedded.detach(), atol=1e-6)
    mixed = model.mix(embedded.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).detach()
    assert torch.allclose(Capture(model, inputs, [0], ("mix",)).activations[0], mixed, atol=1e-6)


def test_the_prefix_of_a_wrapped_transformer_is_left_out_on_any_grid():
    """On 3x4 patches with 4 class and register tokens, 16 tokens would also be a grid of 4x4 for square images."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=(48, 64), depth=2, num_classes=6, reg_tokens=3).eval()
    tokens = torch.randn(1, 16, 192)
    direct = layer_map(vit, "blocks.1", tokens, (48, 64))
    assert direct.shape == (1, 192, 3, 4)
    assert torch.equal(layer_map(nn.Sequential(Own(vit)), "0.backbone.blocks.1", tokens, (48, 64)), direct)


class Ordered(nn.Module):
    """A transformer for 64 patches that keeps its tokens in another order."""

    def __init__(self, order: torch.Tensor, depth: int = 2):
        super().__init__()
        self.register_buffer("order", order)
        self.embed, self.pos = nn.Conv2d(3, 32, 4, 4), nn.Parameter(0.02 * torch.randn(1, 64, 32))
        layers = [nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True) for _ in range(depth)]
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(32, 6)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.pos
        return self.fc(self.layers(tokens[:, self.order]).mean(1))


GRID = torch.arange(64).view(8, 8)
ORDERS = {
    "columns": GRID.T.flatten(),
    "windows": GRID.view(2, 4, 2, 4).transpose(1, 2).flatten(),
    "upside down": GRID.flip(0).flatten(),
    "random": torch.randperm(64, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("order", [*ORDERS, "raster"])
@pytest.mark.parametrize("wrap", [nn.Sequential, Own], ids=["Sequential", "own"])
def test_tokens_in_another_order_are_refused(order, wrap):
    torch.manual_seed(0)
    network = wrap(Ordered(ORDERS.get(order, GRID.flatten()))).eval()
    name = next(name for name, module in network.named_modules() if isinstance(module, nn.TransformerEncoderLayer))
    name = name.rpartition(".")[0] + ".1"
    inputs = torch.randn(2, 3, 32, 32)
    if order == "raster":
        assert cams.grad_cam(Capture(network, inputs, [0, 1], (name,)))[0].shape == (2, 8, 8)
        assert layers_of(network, 32)
        return
    for _ in range(2):  # what was refused once is refused again
        with pytest.raises(InputError, match="not in raster order") as caught:
            cams.grad_cam(Capture(network, inputs, [0, 1], (name,)))
    assert name in str(caught.value) and not any(m._forward_hooks for m in network.modules())
    with pytest.raises(InputError, match="not in raster order"):
        layers_of(network, 32)


def hiera() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("hiera_tiny_224", num_classes=6, stages=(1, 1, 2, 1), embed_dim=16).eval()


@pytest.mark.parametrize("layer", ["blocks.0", "blocks.1", "blocks.3", "blocks.1.norm1", "blocks.1.norm2", "blocks.4"])
def test_hieras_tokens_are_put_back_in_raster_order(layer):
    """A mark in the image changes the map most where it is."""
    network, image = hiera(), torch.zeros(1, 3, 224, 224)
    marked = image.clone()
    marked[:, :, 120:128, 40:48] += 3
    for model, name in ((network, layer), (Own(network), f"backbone.{layer}")):
        maps = [Capture(model, x, [0], (name,)).activations[0] for x in (image, marked)]
        moved, stride = (maps[1] - maps[0]).norm(dim=1)[0], 224 / maps[0].shape[2]
        row, column = (int(place) * stride + stride / 2 for place in divmod(int(moved.argmax()), moved.shape[1]))
        assert abs(row - 124) <= max(8, stride) and abs(column - 44) <= max(8, stride), "the place of the mark"


def test_hieras_maps_equal_those_that_it_returns_itself():
    network, inputs = hiera(), torch.randn(2, 3, 224, 224)
    layers = layers_of(network)
    assert layers == ("blocks.0", "blocks.1", "blocks.3", "blocks.4")
    own = network.forward_intermediates(inputs, intermediates_only=True)
    for ours, its in zip(Capture(network, inputs, [0, 1], layers).activations, own, strict=True):
        assert torch.allclose(ours, its.detach(), atol=1e-5)
