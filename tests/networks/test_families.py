"""One small network of every family of timm, with random weights: the layers found are right, or the family is refused."""

import gc
import math

import pytest
import timm
import torch
from timm.models.hiera import Unroll
from torch import nn

from refinecam_lib.capture import Capture
from refinecam_lib.errors import InputError
from refinecam_lib.networks.layers import layers_of
from refinecam_lib.networks.layout import layer_map

SMALL = {  # family -> network, side of the images, options
    "beit": ("beit_base_patch16_224", 96, {"img_size": 96, "depth": 4}),
    "byoanet": ("halonet_h1", 256, {}),
    "byobnet": ("test_byobnet", 160, {}),
    "cait": ("cait_xxs24_224", 96, {"img_size": 96}),
    "coat": ("coat_tiny", 224, {}),
    "convit": ("convit_tiny", 224, {}),
    "convmixer": ("convmixer_768_32", 70, {}),
    "convnext": ("test_convnext", 160, {}),
    "cpubone": ("cpubone_nano", 224, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "csatv2": ("csatv2", 512, {}),
    "cspnet": ("cs3darknet_focus_s", 128, {}),
    "cspnext": ("cspnext_tiny", 128, {}),
    "davit": ("davit_tiny", 224, {}),
    "deepseek_vit": ("deepseek_vit_412m", 252, {"img_size": 252, "depth": 4}),
    "deit": ("deit_tiny_distilled_patch16_224", 224, {}),
    "densenet": ("densenet121", 128, {}),
    "dla": ("dla46x_c", 128, {}),
    "dpn": ("dpn48b", 128, {}),
    "edgenext": ("edgenext_xx_small", 256, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 224, {}),
    "efficientnet": ("test_efficientnet", 160, {}),
    "efficientvim": ("efficientvim_m1", 224, {}),
    "efficientvit_mit": ("efficientvit_b0", 224, {}),
    "efficientvit_msra": ("efficientvit_m0", 224, {}),
    "eva": ("eva02_tiny_patch14_336", 168, {"img_size": 168}),
    "fasternet": ("fasternet_t0", 224, {}),
    "fastvit": ("fastvit_t8", 256, {}),
    "focalnet": ("focalnet_tiny_srf", 128, {}),
    "gcvit": ("gcvit_xxtiny", 224, {}),
    "gemma4_vit": ("gemma4_vit_167m", 192, {"img_size": 192, "depth": 4}),
    "ghostnet": ("ghostnet_050", 224, {}),
    "hardcorenas": ("hardcorenas_b", 224, {}),
    "hgnet": ("hgnetv2_b0", 224, {}),
    "hiera": ("hiera_tiny_224", 224, {}),
    "hieradet_sam2": ("hieradet_small", 256, {}),
    "hrnet": ("hrnet_w18_small", 224, {}),
    "iformer": ("iformer_t", 224, {}),
    "inception_next": ("inception_next_atto", 224, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 160, {}),
    "inception_v3": ("inception_v3", 160, {}),
    "inception_v4": ("inception_v4", 160, {}),
    "lcnetv2": ("lcnetv2_small", 224, {}),
    "levit": ("levit_128s", 224, {}),
    "lowformer": ("lowformer_b0", 224, {}),
    "mambaout": ("test_mambaout", 160, {}),
    "maxxvit": ("test_coatnet", 160, {}),
    "metaformer": ("poolformerv2_s12", 224, {}),
    "mlp_mixer": ("gmlp_ti16_224", 224, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 224, {}),
    "mobilenetv5": ("mobilenetv5_base", 256, {}),
    "mobilevit": ("mobilevit_xxs", 256, {}),
    "mvitv2": ("mvitv2_tiny", 224, {}),
    "naflexvit": ("naflexvit_base_patch16_gap", 128, {"depth": 4}),
    "nasnet": ("nasnetalarge", 160, {}),
    "nest": ("nest_tiny", 224, {}),
    "nextvit": ("nextvit_small", 224, {}),
    "nfnet": ("test_nfnet", 160, {}),
    "pit": ("pit_ti_224", 224, {}),
    "pnasnet": ("pnasnet5large", 160, {}),
    "pvt_v2": ("pvt_v2_b0", 224, {}),
    "qwen3_vit": ("qwen3_vit_88m", 192, {"img_size": 192, "depth": 4}),
    "rdnet": ("rdnet_tiny", 128, {}),
    "regnet": ("regnetx_002", 224, {}),
    "repghost": ("repghostnet_050", 224, {}),
    "repvit": ("repvit_m1", 224, {}),
    "res2net": ("res2next50", 128, {}),
    "resnest": ("resnest14d", 128, {}),
    "resnet": ("test_resnet", 160, {}),
    "resnetv2": ("resnetv2_18", 128, {}),
    "rexnet": ("rexnet_100", 224, {}),
    "selecsls": ("selecsls42", 224, {}),
    "senet": ("legacy_seresnet18", 128, {}),
    "sequencer": ("sequencer2d_s", 224, {}),
    "shvit": ("shvit_s1", 224, {}),
    "sknet": ("skresnet18", 128, {}),
    "starnet": ("starnet_s050", 224, {}),
    "swiftformer": ("swiftformer_xs", 224, {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 224, {}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 256, {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 224, {}),
    "tiny_vit": ("tiny_vit_5m_224", 224, {}),
    "tnt": ("tnt_s_legacy_patch16_224", 224, {}),
    "tresnet": ("tresnet_m", 128, {}),
    "twins": ("twins_svt_small", 224, {}),
    "vgg": ("vgg11", 128, {}),
    "visformer": ("visformer_tiny", 224, {}),
    "vision_transformer": ("test_vit", 160, {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 224, {}),
    "vision_transformer_relpos": ("test_vit_relpos", 160, {}),
    "vision_transformer_sam": (
        "samvit_base_patch16_224",
        96,
        {"img_size": 96, "depth": 4, "global_attn_indexes": (3,)},
    ),
    "vitamin": ("vitamin_small_224", 128, {"img_size": 128}),
    "volo": ("volo_d1_224", 224, {}),
    "vovnet": ("ese_vovnet19b_slim_dw", 224, {}),
    "xception": ("legacy_xception", 160, {}),
    "xception_aligned": ("xception41p", 160, {}),
    "xcit": ("xcit_nano_12_p8_224", 224, {}),
}
REFUSED: dict[str, str] = {}
"""Family -> words of the message."""
CHANNELS_LAST = (
    "swin_transformer",
    "swin_transformer_v2",
    "hieradet_sam2",
    "vision_transformer_sam",
    "volo",
    "sequencer",
    "deepseek_vit",
    "mambaout",
)
"""Families whose layers return (B,h,w,C)."""


def test_every_family_of_timm_is_tested():
    assert not set(timm.list_modules()) - set(SMALL), "add a small network of the new family"


def random_network(name: str, side: int, options: dict) -> nn.Module:
    """Return a network with random weights. Its signal neither vanishes nor explodes in batch norms."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=6, **options).eval()
    for weight in model.parameters():  # some networks start with a head or branches of zeros
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4 if norms else 1, 3, side, side))
    return model.eval()


def as_map(tensor: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Return a layer's output as (B,C,h,w), by the documentation of its family."""
    if tensor.ndim == 3:
        side = math.isqrt(tensor.shape[1])
        return tensor[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    return tensor.permute(0, 3, 1, 2) if channels_last else tensor


def in_raster_order(model: nn.Module, layer: str, tokens: torch.Tensor) -> torch.Tensor:
    """Put Hiera's tokens in order: each goes where the network's first step took it from."""
    side, left = math.isqrt(tokens.shape[1]), len(model.unroll.schedule)
    left -= round(math.log2(56 / side))  # each pooling undoes a step
    order = Unroll([side, side], [1, 1], model.unroll.schedule[:left])(torch.arange(side**2.0).view(1, -1, 1))
    return tokens[:, order.flatten().long().argsort()]


def by_hand(model: nn.Module, layers: tuple[str, ...], inputs: torch.Tensor, family: str) -> list[torch.Tensor]:
    """Return (activations, gradients) of each layer for class 2, by hooks and autograd."""
    outputs = {}

    def keep(name):
        def hook(module, args, output):
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    logits = model(inputs)
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(logits[:, 2].sum(), [outputs[name] for name in layers])
    pairs = []
    for name, gradient in zip(layers, gradients):
        pair = [outputs[name].detach(), gradient]
        if family == "hiera":
            pair = [in_raster_order(model, name, tokens) for tokens in pair]
        pairs.append([as_map(tensor, family in CHANNELS_LAST) for tensor in pair])
    return pairs


def ends_in_space(model: nn.Module, inputs: torch.Tensor) -> list[str]:
    """Return the modules that return more than one place, in the order in which they end."""
    names = []

    def note(name):
        def hook(module, args, output):
            if isinstance(output, torch.Tensor) and output.ndim in (3, 4) and 1 not in output.shape[1:]:
                names.append(name)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return names


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
def test_grad_cam_at_the_layers_found_equals_one_by_hand(family):
    name, side, options = SMALL[family]
    model, inputs = random_network(name, side, options), torch.randn(2, 3, side, side)
    if family in REFUSED:
        with pytest.raises(InputError, match=REFUSED[family]):
            layers_of(model, side)
        return
    layers = layers_of(model, side)
    capture, pairs = Capture(model, inputs, [2, 2], layers), by_hand(model, layers, inputs, family)
    for ours, (activation, gradient) in zip(zip(capture.activations, capture.gradients), pairs, strict=True):
        assert ours[0].shape == activation.shape and min(activation.shape[2:]) > 1
        sums = [(g.mean((2, 3), keepdim=True) * a).sum(1) for a, g in (ours, (activation, gradient))]  # before the ReLU
        assert float(sums[1].abs().max()) > 0
        assert float((sums[0] - sums[1]).abs().max() / sums[1].abs().max()) < 1e-3
    grids = [math.prod(activation.shape[2:]) for activation, _ in pairs]
    assert grids == sorted(set(grids), reverse=True) or len(set(grids)) == 1, "the resolutions fall or are all equal"
    order = ends_in_space(model, inputs)
    place = (order.index(layers[-1]) + 1) / len(order)
    print(f"| {family} | {name} | {', '.join(layers)} | {', '.join(str(math.isqrt(g)) for g in grids)} | {place:.2f} |")
    assert place > 0.7, "the last layer is near the end"
    del model, capture, pairs
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in SMALL if family not in REFUSED])
def test_a_place_of_the_shallowest_map_depends_most_on_that_place_of_the_image(family):
    name, side, options = SMALL[family]
    model = random_network(name, side, options)
    layer = layers_of(model, side)[0]
    # Two images, because torch mixes up the places of one image's gradient, see `sound_norms`.
    recorded, inputs = [], torch.randn(2, 3, side, side, requires_grad=True)
    capture = Capture(model, inputs, [0, 0], (layer,))
    height, width = capture.activations[0].shape[2:]
    row, column = height // 4, width * 3 // 4
    # The network's own output, read as the capture reads it, for a gradient at the image.
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: recorded.append(
            layer_map(model, layer, output[0] if isinstance(output, tuple) else output, (side, side))
        )
    )
    model(inputs)
    handle.remove()
    value = recorded[0][0, :, row, column]
    weights = torch.randn(len(value), generator=torch.Generator().manual_seed(0))
    gradient = torch.autograd.grad((value * weights).sum(), inputs)[0][:1].abs().sum(1)
    most = nn.functional.adaptive_avg_pool2d(gradient, (height, width))[0].argmax()
    found = divmod(int(most), width)
    assert max(abs(found[0] - row), abs(found[1] - column)) <= max(1, height // 5), (found, (row, column))
