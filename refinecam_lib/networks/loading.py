"""Load networks with their weights, and prepare images for them."""

import difflib
import hashlib
import math
from collections.abc import Callable
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
from .checkpoints import checkpoint_path, read_checkpoint
from .layers import layers_of
from .zoo import MODELS, ModelSpec, spec_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class _Undrawn(TorchFunctionMode):
    """Networks built inside draw no first weights, for a checkpoint's follow: VGG11's and Swin's would take seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (init.uniform_, init.normal_, init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        if func in (Tensor.uniform_, Tensor.normal_):  # zeros, for truncated draws are drawn until they are in bounds
            return args[0].zero_()
        return func(*args, **kwargs)


def transform_of(spec: ModelSpec) -> Callable[[Image.Image], torch.Tensor]:
    """The network's preprocessing of a photograph: resized and cropped at the centre, float32 (3,size,size) in [0,1]."""
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
    """Images (...,3,H,W) in [0,1] -> what the network expects; 0 is the mean colour."""
    mean = torch.tensor(spec.mean, dtype=images.dtype, device=images.device).view(3, 1, 1)
    std = torch.tensor(spec.std, dtype=images.dtype, device=images.device).view(3, 1, 1)
    return (images - mean) / std


def load_model(name: str, weights: str | Path = "synthetic", device: str | torch.device = "cpu") -> nn.Module:
    """A network in evaluation mode, its weights frozen and channels-last, ready to be explained.

    weights: "synthetic" (the shipped checkpoint, 6 classes), "birds" (that of the 50 birds), "imagenet" (1000 classes;
    downloaded where no installed package carries them), or the path of a .safetensors file with its .json card. Raises
    InputError for an unknown model, a missing or corrupt checkpoint, or one whose sha256 is not its card's.
    """
    spec = spec_of(name)
    if weights == "imagenet":
        model = spec.build(1000, True)
    else:
        path = checkpoint_path(name, str(weights)) if weights in ("synthetic", "birds") else Path(weights)
        model, card = restore(name, path)
        if spec.learner and any(isinstance(module, NORMS) for module in model.modules()):
            with _Undrawn():
                plain = spec.build(len(card["classes"]), False)
            model = _folded(model, plain)
    return on_device(model.eval().requires_grad_(False), device)


def restore(name: str, path: Path) -> tuple[nn.Module, dict]:
    """The network of a checkpoint in the form that it was trained in, in float32, and its card.

    Raises InputError for a missing or corrupt checkpoint, or one of another network than `name`.
    """
    state, card = read_checkpoint(path)
    if card["model"] != name:
        raise InputError(f"checkpoint {path.name} is of model {card['model']!r}; {name!r} was asked for")
    spec, classes = spec_of(name), len(card["classes"])
    with _Undrawn():
        model = spec.learner(classes) if spec.learner else spec.build(classes, False)
        if model.state_dict().keys() != state.keys():  # a plain network that was fine-tuned
            model = spec.build(classes, False)
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model, card


def _folded(model: nn.Module, plain: nn.Module) -> nn.Module:
    """`plain` with the weights of `model`, its norms folded: 2-d ones into the layer before them, 1-d into that after."""
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
    """A module's own, without its parts'."""
    return list(module.parameters(recurse=False))


def load_classifier(name: str, pretrained: bool = True) -> tuple[ModelSpec, nn.Module]:
    """A network for photographs and its spec: one of MODELS with ImageNet's 1000 classes, or any timm classifier.

    A timm network gets timm's own preprocessing and the layers that `layers_of` finds. pretrained: with its default
    weights, downloaded once where no package carries them; else with random ones, whose maps mean nothing.
    Raises InputError for an unknown name, and for a timm network without such weights or classes, or for images that
    are not square.
    """
    if name in MODELS:
        spec = MODELS[name]
        return spec, on_device(spec.build(1000, pretrained).eval().requires_grad_(False), "cpu")
    import timm

    every = timm.list_models()
    if name.partition(".")[0] not in every:
        near = "".join(f" Did you mean {match!r}?" for match in difflib.get_close_matches(name, [*MODELS, *every], n=1))
        allowed = f"{', '.join(MODELS)}, and the {len(every)} names of timm.list_models()"
        raise InputError(f"unknown network {name!r}.{near} Allowed: {allowed}")
    try:
        model = timm.create_model(name, pretrained=pretrained)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("pretrained tag", "No pretrained weights")):
            raise
        weights = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        allowed = weights or "a network of which timm has weights"
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
    """The network on a device, its weights channels-last."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub


@lru_cache(maxsize=16)
def _imagenet_hash(name: str) -> str:
    digest = hashlib.sha256()
    for key, value in load_model(name, "imagenet").state_dict().items():
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_hash(name: str, weights: str = "synthetic") -> str:
    """The sha256 that tells a network's weights from all others': its checkpoint file's, or of ImageNet's tensors."""
    if weights == "imagenet":
        return _imagenet_hash(spec_of(name).name)
    return read_checkpoint(checkpoint_path(name, weights))[1]["sha256"]
