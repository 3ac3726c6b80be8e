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
from .hooks import hooked, lock_of, sound_norms, tensor_of
from .layout import layer_map
from .places import check_order, places_of

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

    Inside, other threads that want the network wait, modules of torch.compile run without it so that hooks fire,
    nothing is checkpointed, and norms have the right gradient, see `sound_norms`.
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
        after.enter_context(sound_norms(model))
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
        every = model.modules() if _fast_pointwise and torch.get_num_threads() == 1 else ()
        plain = [m for m in every if isinstance(m, nn.Conv2d) and m.kernel_size == m.dilation == (1, 1)]
        pointwise = [m for m in plain if m.weight.dtype == torch.float32 and m.weight.device.type == "cpu"]
        try:
            for convolution in pointwise:
                convolution.dilation = (2, 2)
            yield
        finally:
            for convolution in pointwise:
                convolution.dilation = (1, 1)


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
    classifier, channels = Classifier(model, logits_of), channels_of(model)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        inputs = torch.randn(2, 3, *size, generator=generator).to(like_weights(model))
        try:
            seen = _probe(model, classifier, inputs)
        except (RuntimeError, InputError):
            if channels == 3:
                raise
            inputs = inputs.mean(1, keepdim=True).expand(-1, channels, -1, -1).contiguous()
            seen = _probe(model, classifier, inputs)
        with evaluating(model):
            declared = [end.name for end in _declared_ends(model, seen)[-count:]]
            names = declared or _chosen(model, seen, count)
            check_order(model, classifier, inputs[:1], [name for name in names if seen[name].tokens])
            if not declared:
                names = _chosen(model, _local(model, classifier, inputs[:1], seen, names), count)
    if not names:
        raise InputError(
            f"no layer of {type(model).__name__} gives a map on images of {size[0]}x{size[1]} px; allowed: networks with "
            "a module that runs once and returns (B, C, h, w), (B, h, w, C) or tokens (B, N, C)"
        )
    return tuple(names)


def _local(
    model: nn.Module, classifier: Classifier, image: Tensor, seen: dict[str, _Seen], names: list[str]
) -> dict[str, _Seen]:
    """Return `seen`; without the tokens that mix the whole image, if layers in `names` do."""
    for tokens in (names, list(seen)):
        places = places_of(model, classifier, image, [name for name in tokens if seen[name].tokens])
        lost = {name for name, found in places.items() if not found.local}
        if not lost:
            break
    return {name: each for name, each in seen.items() if name not in lost}


def _chosen(model: nn.Module, seen: dict[str, _Seen], count: int) -> list[str]:
    """Return the names of the layers to explain, shallow to deep; none if there is no map."""
    ends = _stage_ends(model, seen, resolutions=3)
    if len(ends) == 1 or sum(end.tokens for end in ends) == 1:  # the other maps may be of a stem of convolutions
        blocks = _blocks(model, seen, count, least=0 if len(ends) == 1 else len(seen) // 2)
        if blocks:
            return [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]
    if len(ends) == 1:
        ends = _stage_ends(model, seen, resolutions=2)
    return [end.name for end in ends[-count:]]


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


def _probe(model: nn.Module, classifier: Classifier, inputs: Tensor) -> dict[str, _Seen]:
    """Return the modules that run once and return a map, by name, in the order in which they end."""
    batch, size = (
        len(inputs),
        (inputs.shape[2], inputs.shape[3]),
    )  # 2, as Swin also puts windows into the first dimension
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

    stages = [(n, m) for n, m in model.named_modules() if n and not isinstance(m, _NOT_STAGES)]
    generator = torch.Generator().manual_seed(0)
    handles = [module.register_forward_hook(watch(name)) for name, module in stages]
    with hooked(handles), torch.enable_grad(), evaluating(model):
        inputs = inputs.clone().requires_grad_()
        logits = classifier(inputs)
        weights = torch.randn(logits.shape, generator=generator).to(logits)
        torch.autograd.grad((logits * weights).sum(), inputs)
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
            if each and each.live:
                found.append((each, child))
            elif not (each and each.tokens and found and found[-1][0].tokens and type(child) is not type(found[-1][1])):
                found += inside(child, prefix + child_name + ".")
            # Else the patch tokens that leave it get no gradient. The norm before it is preferred to a part of it.
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


def _blocks(model: nn.Module, seen: dict[str, _Seen], count: int, least: int) -> list[str]:
    """Return a layer of each block of a network with one resolution; none if there are fewer than `count` blocks.

    Blocks are the modules of one type that together hold most maps of one grid, and more than `least`. A layer is the
    block itself, or its first map with a gradient: for blocks on tokens, and where the block's own map has no gradient.
    """
    held: dict[str, list[_Seen]] = {}
    for each in seen.values():
        if each.live:
            for end in (place for place, letter in enumerate(each.name + ".") if letter == "."):
                held.setdefault(each.name[:end], []).append(each)
    kinds: dict[tuple[type, tuple[int, int], str], list[str]] = {}
    for name, inside in held.items():
        kind = type(model.get_submodule(name))
        parent = name.rpartition(".")[0] if kind in (nn.Sequential, nn.ModuleList) else ""  # they differ elsewhere
        kinds.setdefault((kind, inside[0].grid, parent), []).append(name)

    def size(blocks: list[str]) -> int:
        return sum(len(held[name]) for name in blocks)

    blocks = max((names for names in kinds.values() if len(names) >= count), key=size, default=[])
    itself = [name for name in blocks if name in seen and seen[name].live and not seen[name].tokens]
    if size(blocks) <= least:
        return []
    # a block itself, else the first map with a gradient inside it
    return [name if name in itself else next((m.name for m in held[name] if m.name != name), name) for name in blocks]
