"""Data-dependent initialisation of networks with layer norms.

From random weights ConvNeXt and Swin stay at chance where networks with batch norms soon learn. A layer norm does not
remove a channel's mean over the images, and patches of 4x4 pixels differ mostly in brightness.
"""

import itertools
import math
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from ..networks.hooks import hooked

NOISE = 0.01
"""Added to the variances before whitening. A quarter of a patch's components vary less than this."""
BRANCH = 0.2
"""Standard deviation of the output of a transformer's branch. ConvNeXt has its layer scale instead."""
PLACES = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
"""Steps to the eight neighbours of a token. Attention heads start at them in turn."""
FALL = 2.0
"""How much the attention logit falls at a distance of one token. It falls with the squared distance."""
LEAST = -6.0
"""The lowest such logit, so that far tokens keep a gradient."""
MATCH = 0.5
"""Standard deviation of queries and keys. It is small, so that positions decide at first."""


def set_by_images(model: nn.Module, images: Tensor) -> nn.Module:
    """Set the weights of an untrained network by a batch of its inputs, in place.

    The first convolution whitens its patches. Half of its channels are the components of largest variance, the others
    are their negatives. Then each layer norm and each linear layer, except the classifier, is scaled in the order of
    computation: every channel has mean 0 and variance 1 over the batch. The last layers of a transformer's branches,
    timm's `proj` and `fc2`, get the standard deviation .2. Each attention head of a Swin looks at one neighbour.

    Args:
        model: The network.
        images: Normalised images, float (B,3,H,W).

    Returns:
        The same network.

    Source: Krähenbühl et al. 2016, https://arxiv.org/abs/1511.06856; for attention ConViT, d'Ascoli et al. 2021,
    https://arxiv.org/abs/2103.10697
    """
    model.eval()
    _look_nearby(model)
    layers = [item for item in model.named_modules() if isinstance(item[1], (nn.LayerNorm, nn.Linear))][:-1]
    with torch.no_grad():
        _whiten(next(module for module in model.modules() if isinstance(module, nn.Conv2d)), images)
        hooks = []
        for name, layer in layers:
            deviation = torch.tensor(BRANCH if name.endswith((".proj", ".fc2")) else 1.0)
            if name.endswith(".qkv"):
                deviation = torch.tensor([MATCH, MATCH, 1.0]).repeat_interleave(layer.in_features)
            hooks.append(layer.register_forward_hook(partial(_rescale, deviation)))
        with hooked(hooks):
            model(images)
    return model


def _look_nearby(model: nn.Module) -> None:
    """Let each head's relative position biases (P,heads) fall with the squared distance from one neighbour."""
    places = itertools.cycle(PLACES)
    for name, table in model.named_parameters():
        if not name.endswith("relative_position_bias_table"):
            continue
        side = math.isqrt(len(table))
        steps = torch.cartesian_prod(*[torch.arange(side) - side // 2] * 2)  # all steps within a window
        for head in range(table.shape[1]):
            distance = (steps - torch.tensor(next(places))).square().sum(1)
            with torch.no_grad():
                table[:, head] = (-FALL * distance).clamp_min(LEAST)


def _whiten(layer: nn.Conv2d, images: Tensor) -> None:
    patches = nn.functional.unfold(images, layer.kernel_size, stride=layer.stride)
    patches = patches.transpose(1, 2).flatten(0, 1).double()
    variance, components = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    count = min(len(variance), layer.out_channels // 2)
    rows = (components / (variance + NOISE).sqrt()).T[-count:]
    shift = -rows @ patches.mean(0)
    for sign, part in ((1, slice(count)), (-1, slice(count, 2 * count))):
        layer.weight[part] = sign * rows.view(count, *layer.weight.shape[1:])
        cast(Tensor, layer.bias)[part] = sign * shift


def _rescale(deviation: Tensor, layer: nn.LayerNorm | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Give each output channel mean 0 and its standard deviation (a forward hook). Return the new output."""
    axis = 1 if isinstance(layer, LayerNorm2d) else output.ndim - 1
    others = [k for k in range(output.ndim) if k != axis]
    std, mean = torch.std_mean(output, others, keepdim=True)
    deviation = deviation.view(-1, *[1] * (std.ndim - 1 - axis))
    scale, mean = deviation / (std + 1e-3), mean if layer.bias is not None else torch.zeros_like(mean)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    if layer.bias is not None:
        layer.bias.sub_(mean.flatten()).mul_(scale.flatten())
    return (output - mean) * scale
