"""Load networks with their weights, and prepare images for them."""

import copy
import difflib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import init
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from .checkpoints import SHIPPED, checkpoint_path, read_checkpoint
from .hub import from_timm
from .layers import layers_of
from .zoo import LARGER, MODELS, OWN, ModelSpec, spec_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class _Undrawn(TorchFunctionMode):
    """Build networks without drawing weights, because a checkpoint replaces them. Saves seconds for VGG11 and Swin."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (init.uniform_, init.normal_, init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        if func in (Tensor.uniform_, Tensor.normal_):  # zeros, because truncated draws repeat until they are in bounds
            return args[0].zero_()
        return func(*args, **kwargs)


def transform_of(spec: ModelSpec) -> Callable[[Image.Image], torch.Tensor]:
    """Return the preprocessing of a photograph: resize and crop at the centre, to float32 (3,size,size) in [0,1]."""
    import torchvision

    mode = torchvision.transforms.InterpolationMode(spec.interpolation)
    resize = (spec.resize, spec.resize) if spec.squash else spec.resize
    return torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(resize, interpolation=mode),
            torchvision.transforms.CenterCrop(spec.size),
            torchvision.transforms.ToTensor(),
        ]
    )


def normalise(images: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    """Normalise images (...,3,H,W) in [0,1] for a network. 0 is then the mean colour."""
    mean = torch.tensor(spec.mean, dtype=images.dtype, device=images.device).view(3, 1, 1)
    std = torch.tensor(spec.std, dtype=images.dtype, device=images.device).view(3, 1, 1)
    return (images - mean) / std


def load_model(name: str, weights: str | Path = "synthetic", device: str | torch.device = "cpu") -> nn.Module:
    """Load a network in evaluation mode, with frozen weights in channels-last.

    Args:
        name: A name in MODELS, LARGER or SMALL.
        weights: "synthetic" for the shipped checkpoint of the 6 shapes, "birds" for that of the 50 birds,
            "scenes_objects" or "scenes_badges" for those of the scenes, "imagenet" for 1000 classes, "own" for a copy of
            a network in OWN, or the path of a .safetensors file with its card. ImageNet weights are downloaded unless
            an installed package has them.
        device: Where to put it.

    Raises:
        InputError: The network is unknown, or the checkpoint is missing or damaged.
    """
    spec = spec_of(name, str(weights))
    if weights == "own":
        model = copy.deepcopy(OWN[name].network)
    elif weights == "imagenet":
        with _downloading(name):
            model = spec.build(1000, True)
    else:
        path = checkpoint_path(name, str(weights)) if weights in SHIPPED else Path(weights)
        model, card = restore(name, path)
        if spec.learner and any(isinstance(module, NORMS) for module in model.modules()):
            with _Undrawn():
                plain = spec.build(len(card["classes"]), False)
            model = _folded(model, plain)
    return on_device(model.eval().requires_grad_(False), device)


def restore(name: str, path: Path) -> tuple[nn.Module, dict]:
    """Load a checkpoint's network as it was trained, in float32, and its card.

    Raises:
        InputError: The checkpoint is missing or damaged, or of another network.
    """
    state, card = read_checkpoint(path)
    if card["model"] != name:
        raise InputError(f"checkpoint {path.name} is of model {card['model']!r}; {name!r} was asked for")
    spec, classes = spec_of(name), len(card["classes"])
    with _Undrawn():
        model = spec.learner(classes) if spec.learner else spec.build(classes, False)
        if model.state_dict().keys() != state.keys():  # fine-tuned from ImageNet weights
            model = spec.build(classes, False)
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model, card


def _folded(model: nn.Module, plain: nn.Module) -> nn.Module:
    """Copy the weights of `model` into `plain`. Fold 2-d norms into the layer before, 1-d norms into the one after."""
    parts = [module for module in model.eval().modules() if _weights(module)]
    folded = []
    for before, part, after in zip([None, *parts[:-1]], parts, [*parts[1:], None], strict=True):
        if isinstance(after, nn.BatchNorm2d):
            folded.append(_weights(fuse_conv_bn_eval(cast(nn.Conv2d, part), after)))
        elif isinstance(before, nn.BatchNorm1d):
            scale = before.weight / (cast(torch.Tensor, before.running_var) + before.eps).sqrt()
            shift = before.bias - cast(torch.Tensor, before.running_mean) * scale
            weight, bias = _weights(part)
            folded.append([weight * scale, bias + weight @ shift])
        elif not isinstance(part, NORMS):
            folded.append(_weights(part))
    with torch.no_grad():
        for module, values in zip(filter(_weights, plain.modules()), folded, strict=True):
            for own, value in zip(_weights(module), values, strict=True):
                own.copy_(value)
    return plain


def _weights(module: nn.Module) -> list[torch.Tensor]:
    return list(module.parameters(recurse=False))


def load_classifier(name: str, pretrained: bool = True) -> tuple[ModelSpec, nn.Module]:
    """Load a network for photographs, with its specification.

    Args:
        name: A name in MODELS or LARGER, or of any timm classifier. A timm network gets timm's preprocessing and the layers that
            `layers_of` finds.
        pretrained: Load ImageNet weights, which are downloaded unless an installed package has them. With random
            weights the maps mean nothing.

    Raises:
        InputError: The name is unknown, timm has no such weights, or the network has no classes or images that are not
            square.
    """
    known = MODELS | LARGER
    if name in known:
        spec = known[name]
        with _downloading(name):
            model = spec.build(1000, pretrained)
        return spec, on_device(model.eval().requires_grad_(False), "cpu")
    import timm

    every = timm.list_models()
    if name.partition(".")[0] not in every:
        near = "".join(f" Did you mean {match!r}?" for match in difflib.get_close_matches(name, [*known, *every], n=1))
        allowed = f"{', '.join(known)}, and the {len(every)} names of timm.list_models()"
        raise InputError(f"unknown network {name!r}.{near} Allowed: {allowed}")
    try:
        with _downloading(name):
            model = from_timm(name, pretrained)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("pretrained tag", "No pretrained weights")):
            raise
        weights = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        allowed = weights or "a network with weights in timm"
        raise InputError(f"network {name!r}: timm has no such weights; allowed: {allowed}") from None
    if not model.num_classes:
        raise InputError(f"timm network {name!r} gives features, not classes; allowed: a classifier")
    config = timm.data.resolve_model_data_config(model)
    _, height, width = config["input_size"]
    if height != width:
        raise InputError(f"timm network {name!r} takes images of {height}x{width} px; allowed: square ones")
    spec = ModelSpec(
        name,
        lambda classes, pretrained: timm.create_model(name, pretrained=pretrained, num_classes=classes),
        layers_of(model, height),
        config["mean"],
        config["std"],
        size=height,
        resize=math.floor(height / config["crop_pct"]),
        squash=config["crop_mode"] == "squash",
        interpolation=config["interpolation"],
    )
    return spec, on_device(model.eval().requires_grad_(False), "cpu")


def on_device(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Move a network to a device, with weights (O,I,h,w) in channels-last."""
    model.to(device=device)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    """Turn a failed download inside into an InputError that names the network and the cure."""
    try:
        yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and package not in ("httpx", "httpcore", "huggingface_hub", "requests"):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise InputError(
            f"The weights of {name!r} could not be downloaded: {reason}. Connect to the network and try again, copy the "
            "folders HF_HOME and TORCH_HOME from a machine that has them, or pass pretrained=False for random weights."
        ) from error


@lru_cache(maxsize=16)
def _imagenet_hash(name: str) -> str:
    digest = hashlib.sha256()
    for key, value in load_model(name, "imagenet").state_dict().items():
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_hash(name: str, weights: str = "synthetic") -> str:
    """Return the sha256 of a network's checkpoint file, or of its ImageNet tensors; or the hash of a network in OWN."""
    if weights == "own":
        return OWN[name].hash
    if weights == "imagenet":
        return _imagenet_hash(spec_of(name).name)
    return read_checkpoint(checkpoint_path(name, weights))[1]["sha256"]
