"""First weights by images, for networks of layer norms.

With random ones ConvNeXt and Swin sit at chance where networks of batch norms soon learn: layer norms leave each channel
its mean over the images, and patches of 4 x 4 pixels are nearly all brightness.
"""

import itertools
import math
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

NOISE = 0.01
"""Variance that whitening leaves out: about that of the faintest quarter of a patch's components."""

BRANCH = 0.2
"""Standard deviation of what a transformer's block adds to its input, for which a ConvNeXt has its layer scale."""

PLACES = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
"""Steps from the eight neighbours of a token, which attention heads look at in turn."""

FALL = 2.0
"""How fast attention falls off: the logit at a distance of one token from its place is lower by this."""

LEAST = -6.0
"""The lowest such logit: far tokens are not out of sight for ever."""

MATCH = 0.5
"""Standard deviation of queries and keys, so that at first places decide more than likeness."""


def set_by_images(model: nn.Module, images: Tensor) -> nn.Module:
    """The untrained network, its weights set by a batch of its inputs, float (B,3,H,W), in place.

    The first convolution, one of patches side by side, whitens them: half of its channels give the components of largest
    variance, the other half the same with the other sign. Then, in the order of computation, each layer norm and each
    linear layer but the classifier gives every channel mean 0 and variance 1 over the batch (Krähenbühl et al. 2016);
    the last of a transformer's branches, timm's `proj` and `fc2`, standard deviation .2. Source: arXiv 1511.06856.
    A shifted-window transformer's heads start out looking at one neighbour each (as ConViT's, arXiv 2103.10697): left
    to learn it, positions counted for next to nothing after 120,000 images.
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
        model(images)
        for hook in hooks:
            hook.remove()
    return model


def _look_nearby(model: nn.Module) -> None:
    """Let the relative position biases (P,heads) fall off with the squared distance from a neighbour, one for each head."""
    places = itertools.cycle(PLACES)
    for name, table in model.named_parameters():
        if not name.endswith("relative_position_bias_table"):
            continue
        side = math.isqrt(len(table))  # of all steps within a window, its middle being none
        steps = torch.cartesian_prod(*[torch.arange(side) - side // 2] * 2)
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
    """A hook that gives each channel of the layer mean 0 and its standard deviation; returns its output from now on."""
    axis = 1 if isinstance(layer, LayerNorm2d) else output.ndim - 1
    others = [k for k in range(output.ndim) if k != axis]
    std, mean = torch.std_mean(output, others, keepdim=True)
    deviation = deviation.view(-1, *[1] * (std.ndim - 1 - axis))
    scale, mean = deviation / (std + 1e-3), mean if layer.bias is not None else torch.zeros_like(mean)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    if layer.bias is not None:
        layer.bias.sub_(mean.flatten()).mul_(scale.flatten())
    return (output - mean) * scale
