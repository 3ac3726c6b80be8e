"""Read a layer's output as (B,C,h,w), whatever its layout and the order of its tokens.

>>> layer_map(swin, "layers.3", output, (224, 224)).shape        # (B,h,w,C) in the network
(B, C, 7, 7)
"""

import math
import re
import sys
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import InputError


def layer_map(network: nn.Module, name: str, output: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Bring the output of the layer `name` into (B,C,h,w), in float32 or float64.

    The innermost module around the layer that declares its layout decides, so a wrapper changes nothing. timm's Hiera
    puts its tokens back into raster order.

    Raises:
        InputError: The output is no map.
    """
    parts = name.split(".")  # the layer and the modules around it, from the inside out
    around = [network.get_submodule(".".join(parts[:length])) for length in range(len(parts), -1, -1)]
    if not output.is_meta:
        output = output.to(torch.promote_types(output.dtype, torch.float32))  # sums in float16 lose their digits
    for depth, module in enumerate(around):
        block = re.match(r"blocks\.(\d+)", ".".join(name.split(".")[len(around) - 1 - depth :]))
        if block and output.ndim == 3 and isinstance(reroll := getattr(module, "reroll", None), nn.Module):
            schedule = cast(dict, reroll.schedule)
            for number in (int(block[1]), int(block[1]) - 1):  # a block may pool its tokens
                if math.prod(schedule.get(number, ((), (0,)))[1]) == output.shape[1]:
                    return reroll(output, number).permute(0, 3, 1, 2)
    prefixes = (getattr(module, "num_prefix_tokens", None) for module in around)
    declared = (each for module in around if (each := _declared_channels_last(module)) is not None)
    channels_last = next(declared, None)
    return to_nchw(
        output,
        image_size,
        next((each for each in prefixes if isinstance(each, int)), None),
        _works_on_the_last_axis(around[0]) if channels_last is None else channels_last,
    )


def _declared_channels_last(module: nn.Module) -> bool | None:
    """Return whether a module's maps are (B,h,w,C), as in timm's and torchvision's Swin; None if it does not say."""
    torchvision = sys.modules.get("torchvision")  # imported already if the network comes from it
    if torchvision and isinstance(module, torchvision.models.SwinTransformer):
        return True
    declared = str(getattr(module, "output_fmt", ""))
    return declared.endswith("NHWC") if declared.endswith(("NHWC", "NCHW")) else None


def _works_on_the_last_axis(layer: nn.Module) -> bool:
    """Return whether a layer is made of linear layers and layer norms, whose channels are the last axis."""
    own = [type(module).__name__ for module in layer.modules() if isinstance(module, (nn.Linear, nn.LayerNorm))]
    other = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
    return (
        bool(own) and not any("2d" in name for name in own) and not any(isinstance(m, other) for m in layer.modules())
    )


def to_nchw(
    activation: Tensor, image_size: tuple[int, int], prefix_tokens: int | None = None, channels_last: bool = False
) -> Tensor:
    """Bring a layer's output into (B,C,h,w).

    Args:
        activation: (B,C,h,w), (B,h,w,C) or tokens (B,N,C).
        image_size: Height and width of the image. A map has its aspect ratio.
        prefix_tokens: Class and register tokens to leave out. None takes the smallest number that leaves a grid.
        channels_last: Read a shape that fits both layouts, such as (B,96,96,96), as (B,h,w,C).

    Raises:
        InputError: The output has none of these layouts.
    """
    if activation.ndim == 4:
        _, a, b, c = activation.shape
        nchw, nhwc = _is_grid(b, c, image_size), _is_grid(a, b, image_size)
        if nchw and not (nhwc and channels_last):
            return activation
        if nhwc:
            return activation.permute(0, 3, 1, 2)
    if activation.ndim == 3:
        tokens = activation.shape[1]
        for prefix in range(9) if prefix_tokens is None else (prefix_tokens, 0):
            grid = _grid(tokens - prefix, image_size)
            if grid:
                return activation[:, prefix:].transpose(1, 2).unflatten(2, grid)
    raise InputError(
        f"a layer's output of shape {tuple(activation.shape)} on images of {image_size[0]}x{image_size[1]} px is no map; "
        "allowed: (B, C, h, w), (B, h, w, C) or tokens (B, N, C) over a grid of the image's aspect ratio"
    )


def _is_grid(h: int, w: int, image_size: tuple[int, int], roundings: int = 2) -> bool:
    """Return whether h x w is the image divided by one stride, up to rounding. Square images give square maps."""
    height, width = image_size
    if not (1 <= h <= height and 1 <= w <= width):
        return False
    if height == width:
        return h == w
    return abs(h * width - w * height) <= roundings * max(height, width)


def _grid(tokens: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return (h,w) with h*w = tokens and the image's aspect ratio, or None."""
    height, width = image_size
    if tokens < 4:
        return None
    middle = math.sqrt(tokens * height / width)
    grids = [(h, tokens // h) for h in range(max(1, math.floor(middle) - 1), math.ceil(middle) + 2) if tokens % h == 0]
    grids = [(h, w) for h, w in grids if _is_grid(h, w, image_size, 1)]
    return min(grids, key=lambda grid: abs(grid[0] * width - grid[1] * height), default=None)
