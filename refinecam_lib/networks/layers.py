"""Find a network's layers, and put it in evaluation mode.

>>> layers_of(torchvision.models.resnet50())         # the end of each stage, shallow to deep
('layer1', 'layer2', 'layer3', 'layer4')
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, one_of
from .classifier import Classifier, channels_of, find_logits, like_weights
from .hooks import lock_of, tensor_of
from .layout import check_order, layer_map

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
    """Put every module of `model` in evaluation mode. Each gets its own mode back, also after an exception.

    Inside, other threads that want the network wait, modules of torch.compile run without it so that hooks fire, and
    nothing is checkpointed.
    """
    with lock_of(model), contextlib.ExitStack() as after:
        modes = [(module, module.training) for module in model.modules()]
        if any(_is_compiled(module) for module, _ in modes):
            after.enter_context(torch.compiler.set_stance("force_eager"))
        for module, mode in modes:
            for name in _CHECKPOINTING:
                if vars(module).get(name) is True:
                    after.callback(setattr, module, name, True)
                    setattr(module, name, False)
        try:
            if any(training for _, training in modes):
                model.eval()
            yield
        finally:
            for module, mode in modes:
                if module.training != mode:
                    module.training = mode


_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing", "memory_efficient")
"""Attributes of timm's, Hugging Face's and torchvision's modules that switch on checkpointing."""


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


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


def layers_of(
    model: nn.Module,
    image_size: int | tuple[int, int] = 224,
    count: int = 4,
    logits_of: Callable[[Any], Any] = find_logits,
) -> tuple[str, ...]:
    """Find the layers to explain, shallow to deep, by one forward and backward pass on noise.

    In networks of several resolutions it is the last layer of each of the `count` coarsest ones: those that timm's
    `feature_info` names, if the network has it and they give maps. In plain ViTs it is
    `count` evenly spaced blocks. Of a block on tokens it is the first norm inside, because the patch tokens that leave
    the last block get no gradient from a class token. The paper's own layers for its networks are in `zoo.MODELS`.

    Args:
        model: A classifier (B,C,H,W) -> (B,K). It comes back unchanged. C is that of its first convolution, else 3.
        image_size: Side, or height and width, of images that the network accepts.
        count: The largest number of layers.
        logits_of: Reads logits from another output, as in `Capture`.

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
    classifier = Classifier(model, logits_of)
    seen = _probe(model, classifier, size)
    names = _chosen(model, seen, size, count)
    with evaluating(model):
        tokens = [name for name in names if seen[name].tokens]
        check_order(model, classifier, _noise(model, 1, size), tokens)
    return names


def _noise(model: nn.Module, images: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, channels_of(model), *size, generator=generator).to(like_weights(model))


def _chosen(model: nn.Module, seen: dict[str, _Seen], size: tuple[int, int], count: int) -> tuple[str, ...]:
    ends = _declared_ends(model, seen) or _stage_ends(model, seen, resolutions=3)
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


def _declared_ends(model: nn.Module, seen: dict[str, _Seen]) -> list[_Seen]:
    """Return the last layer of each resolution by timm's `feature_info`; empty if it is missing or not of such maps."""
    for prefix, module in model.named_modules():
        info = getattr(module, "feature_info", None)
        if isinstance(info, list) and all(
            isinstance(each, dict) and {"module", "reduction"} <= each.keys() for each in info
        ):
            last = {each["reduction"]: f"{prefix}.{each['module']}".lstrip(".") for each in info}
            ends = [seen[name] for name in last.values() if name in seen and seen[name].live]
            falls = all(a.order < b.order and math.prod(a.grid) > math.prod(b.grid) for a, b in pairwise(ends))
            return ends if len(ends) == len(last) > 1 and falls else []
    return []


def _probe(model: nn.Module, classifier: Classifier, size: tuple[int, int]) -> dict[str, _Seen]:
    """Return the modules that run once and return a map, by name, in the order in which they end."""
    batch = 2  # Swin also puts windows of an image into the first dimension
    shapes: dict[str, list[torch.Size | None]] = {}
    live: set[str] = set()

    def as_map(name: str, tensor: Tensor) -> Tensor | None:
        try:
            return layer_map(model, name, tensor, size) if len(tensor) == batch else None
        except InputError:
            return None

    def watch(name: str) -> Callable:
        def receive(gradient: Tensor) -> None:
            on_map = as_map(name, gradient)
            if on_map is not None and bool((on_map != 0).any()):
                live.add(name)

        def hook(module: nn.Module, args: tuple, output: object) -> None:
            found = tensor_of(output)
            found = found if found is not None and found.ndim > 0 else None
            shapes.setdefault(name, []).append(None if found is None else found.shape)
            if found is not None and found.requires_grad:
                found.register_hook(receive)

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if name and not isinstance(module, _NOT_STAGES)
    ]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            inputs = _noise(model, batch, size).requires_grad_()
            logits = classifier(inputs)
            weights = torch.randn(logits.shape, generator=generator).to(logits)
            torch.autograd.grad((logits * weights).sum(), inputs)
    finally:
        for handle in handles:
            handle.remove()
    seen = {}
    for order, (name, found) in enumerate(shapes.items()):
        if len(found) == 1 and found[0] is not None:
            on_map = as_map(name, torch.empty(found[0], device="meta"))
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
