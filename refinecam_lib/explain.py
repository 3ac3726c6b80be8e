"""The methods by name, the variants of a method that are compared, and the maps they give.

>>> explainer = Explainer(model, "LayerCAM", layers, aggregate="product")
>>> maps = explainer.attribute(inputs, target=208)       # (B,1,H,W) in [0,1], captum's convention
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from . import cam, captum_methods
from .cam import Capture, Maps
from .checks import InputError, one_of
from .refine import AGGREGATES, PUBLISHED_AGGREGATES, Power, refine, to_map

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])


@dataclass(frozen=True)
class Method:
    """A method of the registry.

    function: takes a capture and returns raw maps. refines: whether it returns one map for each layer. double: whether
    its maps are computed in float64, on a float64 copy of the network.
    """

    function: Callable[[Capture], Maps]
    refines: bool = True
    double: bool = False

    def on(self, capture: Capture) -> Capture:
        """The capture that the function is given: `capture`, or the same in float64."""
        return capture.double if self.double else capture


METHODS: dict[str, Method] = {
    "GradCAM": Method(cam.grad_cam),
    "HiResCAM": Method(cam.hires_cam),
    "GradCAM++": Method(cam.grad_cam_pp, double=True),
    "LayerCAM": Method(cam.layer_cam),
    "ScoreCAM": Method(cam.score_cam),
    "ShapleyCAM": Method(cam.shapley_cam),
    "GuidedGradCAM": Method(captum_methods.guided_grad_cam),
    "LIME": Method(captum_methods.lime, refines=False),
    "DeepLift": Method(captum_methods.deep_lift, refines=False, double=True),
    "InputXGradient": Method(captum_methods.input_x_gradient, refines=False),
    "IntegratedGradients": Method(captum_methods.integrated_gradients, refines=False),
    "KernelShap": Method(captum_methods.kernel_shap, refines=False),
    "RandomCAM": Method(cam.random_cam, refines=False),
    "HalfCAM": Method(cam.half_cam, refines=False),
    "All1sCAM": Method(cam.all_ones_cam, refines=False),
}

CAMS = ("GradCAM++", "LayerCAM", "ScoreCAM", "ShapleyCAM", "GuidedGradCAM")
OTHERS = ("LIME", "DeepLift", "InputXGradient", "IntegratedGradients", "KernelShap")
"""The paper's ten methods: five that have a map for each layer, and five that have one map."""
SLOW = ("ScoreCAM", "LIME", "KernelShap", "IntegratedGradients")
"""Those of hundreds of forward passes a map."""
TRIVIAL = ("RandomCAM", "HalfCAM", "All1sCAM")
"""Its maps that explain nothing."""

CONTROLS: dict[str, Method] = {
    "GroundTruth": Method(cam.ground_truth, refines=False),
    "InvertedTruth": Method(cam.inverted_truth, refines=False),
    "CentreGaussian": Method(cam.centre_gaussian, refines=False),
    "EdgeDetector": Method(cam.edge_detector, refines=False),
}
"""Maps that explain nothing, or are told the answer: to be measured as methods are, as a test of the metrics."""


def method_of(method: str | Callable[[Capture], Maps]) -> Method:
    """The Method called so, or one made of your own function; raises InputError with the nearest valid name.

    "LayerCAM^0.125" is LayerCAM with its maps raised to that power.
    """
    if callable(method):
        return Method(method)
    name, raised, exponent = str(method).partition("^")
    known = METHODS | CONTROLS
    entry = known[one_of("method", name, known)]
    if not raised:
        return entry
    with contextlib.suppress(ValueError):
        if 0 < (power := float(exponent)) < math.inf:
            return Method(Power(entry.function, power), entry.refines, entry.double)
    raise InputError(f"method {method!r}; allowed: a number above 0 after '^', as in 'LayerCAM^0.125'")


@dataclass(frozen=True)
class Variant:
    """Which map of a method: that of layer number `layer` (0 = shallowest), alone or combined with all deeper ones.

    aggregate: "none" for the layer alone (Base), or a name in AGGREGATES (RefineCAM).
    """

    layer: int = 0
    aggregate: str = "none"

    def __post_init__(self) -> None:
        one_of("aggregate", self.aggregate, ["none", *AGGREGATES, *PUBLISHED_AGGREGATES])

    def layers(self, names: Sequence[str]) -> tuple[str, ...]:
        """The layers this variant needs, of all `names`."""
        if not 0 <= self.layer < len(names):
            raise InputError(f"layer number {self.layer}; allowed: 0..{len(names) - 1} ({', '.join(names)})")
        return tuple(names[self.layer : self.layer + 1] if self.aggregate == "none" else names[self.layer :])


BASE, REFINED = Variant(), Variant(aggregate="product")


def variant_maps(capture: Capture, method: str | Callable[[Capture], Maps], variant: Variant = BASE) -> Tensor:
    """The method's maps (B,H,W) in [0,1] for one variant: 0 everywhere without contrast, NaN in one that is not finite.

    The capture holds the variant's layer and all deeper ones, for those that it has are combined. Raises InputError for
    a layer that it hasn't.
    """
    entry = method_of(method)
    raw = entry.on(capture).maps(entry.function)
    start = variant.layer - capture.first
    if not entry.refines:
        if variant != BASE:
            raise InputError(
                f"method {method!r} has no map for each layer, so {variant} has no meaning; allowed: {BASE}"
            )
        start = 0
    if not 0 <= start < len(raw):
        raise InputError(f"{variant} of a capture with layers {list(capture.layers)}; allowed: one of its layers")
    if variant.aggregate == "none":
        maps = to_map(raw[start], capture.size)
    else:
        maps = refine([to_map(each, capture.size) for each in raw[start:]], variant.aggregate)
    return maps.to(capture.inputs.dtype)


def combined(shallow: Tensor, capture: Capture, method: str | Callable[[Capture], Maps], variant: Variant) -> Tensor:
    """A map (B,H,W) in the place of the variant's shallowest one, combined with the deeper ones of `capture`.

    It is what the published code takes for RefineCAM of a masked image: `shallow` is masked, the others are not.
    """
    entry = method_of(method)
    deeper = entry.on(capture).maps(entry.function)[variant.layer - capture.first + 1 :]
    maps = [shallow.to(deeper[0]), *(to_map(each, capture.size) for each in deeper)]
    return refine(maps, variant.aggregate).to(capture.inputs.dtype)


@dataclass(frozen=True)
class Explainer:
    """A model, a method and a variant; `attribute` is captum's, so captum's metrics and visualisers accept it.

    layer: number of the layer in `layers`, 0 = shallowest. Raises InputError for an unknown method, layer or aggregate.
    """

    model: nn.Module
    method: str | Callable[[Capture], Maps]
    layers: tuple[str, ...]
    aggregate: str = "none"
    layer: int = 0

    def __post_init__(self) -> None:
        method_of(self.method)
        self.variant.layers(self.layers)

    @property
    def variant(self) -> Variant:
        """The variant of the method that is explained."""
        return Variant(self.layer, self.aggregate)

    def attribute(self, inputs: Inputs, target: int | Tensor, seed: int = 0) -> Inputs:
        """Maps (B,1,H,W) in [0,1] for normalised images (B,3,H,W) and a class, or one class an image.

        As in captum, a tuple of one tensor gives a tuple of one tensor; captum's metrics pass their inputs so.
        """
        if isinstance(inputs, tuple):
            if len(inputs) != 1:
                raise InputError(f"a tuple of {len(inputs)} inputs; allowed: one tensor (B,3,H,W)")
            return (self.attribute(inputs[0], target, seed),)
        if (target := torch.as_tensor(target)).numel() == 1:
            target = target.reshape(1).expand(len(inputs))
        seeds = range(seed, seed + len(inputs))
        capture = Capture(self.model, inputs, target, self.variant.layers(self.layers), seeds)
        return variant_maps(capture, self.method, Variant(0, self.aggregate))[:, None]
