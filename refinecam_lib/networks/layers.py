"""Find a network's layers, and bring their outputs from any layout into (B,C,h,w).

>>> layers_of(torchvision.models.resnet50())         # the end of each stage, shallow to deep
('layer1', 'layer2', 'layer3', 'layer4')
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError, one_of

_fast_pointwise = False


def fast_pointwise() -> None:
    """Let `evaluating` speed up 1x1 convolutions in this process: in float32, on one CPU thread.

    torch computes those of fewer than 16 images by a slow path, and EfficientNet takes 1.5 times as long. A dilation
    avoids that path. A kernel of one pixel ignores the dilation, so only rounding differs.
    """
    global _fast_pointwise
    _fast_pointwise = True


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` in evaluation mode. Each gets its own mode back, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        if any(training for _, training in modes):
            model.eval()
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode. After a call of `fast_pointwise`, also speed up its 1x1 convolutions."""
    with in_evaluation_mode(model):
        # Inside, because in training mode reading a parametrised weight changes its state.
        pointwise = _pointwise(model) if _fast_pointwise and torch.get_num_threads() == 1 else []
        try:
            for convolution in pointwise:
                convolution.dilation = (2, 2)
            yield
        finally:
            for convolution in pointwise:
                convolution.dilation = (1, 1)


def _pointwise(model: nn.Module) -> list[nn.Conv2d]:
    """Return the 1x1 convolutions in float32 on the CPU that have no dilation."""
    plain = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == m.dilation == (1, 1)]
    return [m for m in plain if m.weight.dtype == torch.float32 and m.weight.device.type == "cpu"]


def named_layers(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the modules of `model` called `names`. Raises InputError for unknown or repeated names."""
    if isinstance(names, str) or not names:
        raise InputError(f"layers {names!r}; allowed: a non-empty sequence of dotted names, shallow to deep")
    modules = dict(model.named_modules())
    valid = [name for name in modules if name]
    found = [modules[one_of("layer", name, valid)] for name in names]
    if len(set(map(id, found))) < len(found):
        raise InputError(f"layers {list(names)} name a module twice; allowed: each layer once")
    return found


def is_channels_last(model: nn.Module) -> bool:
    """Return whether the network's own layout is (B,h,w,C), as in timm's and torchvision's Swin."""
    torchvision = sys.modules.get("torchvision")  # imported already if the network comes from it
    swin = torchvision and isinstance(model, torchvision.models.SwinTransformer)
    return bool(swin) or str(getattr(model, "output_fmt", "")).endswith("NHWC")


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


@dataclass(frozen=True)
class _Seen:
    """A module that runs once and returns a map."""

    name: str
    order: int
    """Its place in the order in which modules end."""
    grid: tuple[int, int]
    tokens: bool
    """Whether the map comes as tokens (B,N,C)."""
    live: bool
    """Whether the map receives a gradient."""


# They pass their input through or resize it for the head.
_NOT_STAGES = (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def layers_of(model: nn.Module, image_size: int | tuple[int, int] = 224, count: int = 4) -> tuple[str, ...]:
    """Find the layers to explain, shallow to deep, by one forward and backward pass on noise.

    In networks of several resolutions it is the last layer of each of the `count` coarsest ones. In plain ViTs it is
    `count` evenly spaced blocks. Of a block on tokens it is the first norm inside, because the patch tokens that leave
    the last block get no gradient from a class token. The paper's own layers for its networks are in `zoo.MODELS`.

    Args:
        model: A classifier (B,3,H,W) -> (B,K). It comes back unchanged.
        image_size: Side, or height and width, of images that the network accepts.
        count: The largest number of layers.

    Returns:
        Dotted names. Each layer runs once, returns one tensor that `to_nchw` reads, and receives a gradient.

    Raises:
        InputError: No layer returns a map, or an argument is not allowed.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1 or count < 1:
        raise InputError(
            f"image_size {image_size!r}, count {count!r}; allowed: a side or (height, width), and count >= 1"
        )
    seen = _probe(model, size)
    ends = _stage_ends(model, seen, resolutions=3)
    if len(ends) == 1:
        blocks = _blocks(model, seen)
        if len(blocks) >= count:
            chosen = [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]
            return tuple(
                _first_inside(block, seen) if block.tokens or not block.live else block.name for block in chosen
            )
        ends = _stage_ends(model, seen, resolutions=2)
    if not ends:
        raise InputError(
            f"no layer of {type(model).__name__} gives a map on images of {size[0]}x{size[1]} px; allowed: networks with "
            "a module that runs once and returns (B, C, h, w), (B, h, w, C) or tokens (B, N, C)"
        )
    return tuple(end.name for end in ends[-count:])


def _probe(model: nn.Module, size: tuple[int, int]) -> dict[str, _Seen]:
    """Return the modules that run once and return a map, by name, in the order in which they end."""
    batch = 2  # Swin also puts windows of an image into the first dimension
    shapes: dict[str, list[torch.Size | None]] = {}
    live: set[str] = set()
    channels_last, prefix = is_channels_last(model), getattr(model, "num_prefix_tokens", None)

    def as_map(tensor: Tensor) -> Tensor | None:
        try:
            return to_nchw(tensor, size, prefix, channels_last) if len(tensor) == batch else None
        except InputError:
            return None

    def watch(name: str) -> Callable:
        def receive(gradient: Tensor) -> None:
            on_map = as_map(gradient)
            if on_map is not None and bool((on_map != 0).any()):
                live.add(name)

        def hook(module: nn.Module, args: tuple, output: object) -> None:
            found = output if isinstance(output, Tensor) and output.ndim > 0 else None
            shapes.setdefault(name, []).append(None if found is None else found.shape)
            if found is not None and found.requires_grad:
                found.register_hook(receive)

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if name and not isinstance(module, _NOT_STAGES)
    ]
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 3, *size, generator=generator).to(like.detach()).requires_grad_()
    try:
        with torch.enable_grad(), evaluating(model):
            logits = model(inputs)
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise InputError(
                    f"{type(model).__name__} returns {given}; allowed: a classifier that returns logits (B, K)"
                )
            weights = torch.randn(logits.shape, generator=generator).to(logits)
            torch.autograd.grad((logits * weights).sum(), inputs)
    finally:
        for handle in handles:
            handle.remove()
    seen = {}
    for order, (name, found) in enumerate(shapes.items()):
        if len(found) == 1 and found[0] is not None:
            on_map = as_map(torch.empty(found[0], device="meta"))
            if on_map is not None and min(on_map.shape[2:]) > 1:
                # If the head is zero, no layer receives a gradient. Then none is required.
                grid, is_live = (on_map.shape[2], on_map.shape[3]), name in live or not live
                seen[name] = _Seen(name, order, grid, len(found[0]) == 3, is_live)
    return seen


def _stage_ends(model: nn.Module, seen: dict[str, _Seen], resolutions: int) -> list[_Seen]:
    """Return the last layer of each resolution between image and logits, each coarser than the one before."""

    def inside(module: nn.Module, prefix: str) -> list[tuple[_Seen, nn.Module]]:
        """Return the outermost modules in `module` that can be a stage."""
        found = []
        for child_name, child in module.named_children():
            each = seen.get(prefix + child_name)
            found += [(each, child)] if each and each.live else inside(child, prefix + child_name + ".")
        return found

    def trunk(module: nn.Module, prefix: str) -> list[_Seen]:
        found = []
        for each, child in inside(module, prefix):
            found += trunk(child, each.name + ".") if holds_stages(child, each.name + ".") else [each]
        return found

    def holds_stages(module: nn.Module, prefix: str) -> bool:
        # A container of stages has many resolutions. A stage or a strided block has fewer.
        members = inside(module, prefix)
        many = len({each.grid for each, _ in members}) >= resolutions
        return many or any(holds_stages(child, each.name + ".") for each, child in members)

    last = {each.grid: each for each in sorted(trunk(model, ""), key=lambda each: each.order)}
    ends: list[_Seen] = []
    for end in sorted(last.values(), key=lambda each: each.order):
        if not ends or math.prod(end.grid) < math.prod(ends[-1].grid):
            ends.append(end)
    return ends


def _blocks(model: nn.Module, seen: dict[str, _Seen]) -> list[_Seen]:
    """Return the longest run of siblings of one type: the blocks of a network with one resolution."""
    modules = dict(model.named_modules())
    siblings: dict[tuple[str, type], list[_Seen]] = {}
    for each in seen.values():
        siblings.setdefault((each.name.rpartition(".")[0], type(modules[each.name])), []).append(each)
    return max(siblings.values(), key=len)


def _first_inside(block: _Seen, seen: dict[str, _Seen]) -> str:
    """Return the first module inside a block that returns a map and receives a gradient."""
    inside = (each for each in seen.values() if each.live and each.name.startswith(block.name + "."))
    return next((each.name for each in inside), block.name)
