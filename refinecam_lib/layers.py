"""A network's layers by dotted name, and their outputs as (B,C,h,w) whatever layout the network uses."""

import math

import torch
from torch import nn

from .checks import InputError, one_of


def named_layers(model: nn.Module, names: tuple[str, ...] | list[str]) -> list[nn.Module]:
    """The modules of `model` called `names`; raises InputError with the nearest valid name."""
    if isinstance(names, str) or not names:
        raise InputError(f"layers {names!r}; allowed: a non-empty sequence of dotted names, shallow to deep")
    modules = dict(model.named_modules())
    valid = [name for name in modules if name]
    return [modules[one_of("layer", name, valid)] for name in names]


def to_nchw(activation: torch.Tensor, image_size: tuple[int, int], prefix_tokens: int | None = None) -> torch.Tensor:
    """A layer's output as (B,C,h,w), from (B,C,h,w), (B,h,w,C) or tokens (B,N,C), by the image's aspect ratio.

    prefix_tokens: class and register tokens to leave out; None finds the smallest number that leaves a grid.
    Raises InputError for an output that is none of the three.
    """
    if activation.ndim == 4:
        _, a, b, c = activation.shape
        if _is_grid(b, c, image_size):
            return activation
        if _is_grid(a, b, image_size):
            return activation.permute(0, 3, 1, 2)
    if activation.ndim == 3:
        tokens = activation.shape[1]
        for prefix in range(9) if prefix_tokens is None else (prefix_tokens,):
            grid = _grid(tokens - prefix, image_size)
            if grid:
                return activation[:, prefix:].transpose(1, 2).unflatten(2, grid)
    raise InputError(
        f"a layer's output of shape {tuple(activation.shape)} on images of {image_size[0]}x{image_size[1]} px is no map; "
        "allowed: (B, C, h, w), (B, h, w, C) or tokens (B, N, C) over a grid of the image's aspect ratio"
    )


def _is_grid(h: int, w: int, image_size: tuple[int, int]) -> bool:
    """Whether h x w is the image reduced by one stride in both directions, give or take a pixel of rounding."""
    height, width = image_size
    if not (1 <= h <= height and 1 <= w <= width):
        return False
    return abs(h * width - w * height) <= 2 * max(height, width)


def _grid(tokens: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """The (h,w) with h*w = tokens that has the image's aspect ratio, or None."""
    if tokens < 4:
        return None
    height, width = image_size
    h = round(math.sqrt(tokens * height / width))
    return (h, tokens // h) if h and tokens % h == 0 and _is_grid(h, tokens // h, image_size) else None
