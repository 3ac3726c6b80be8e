"""Explain a batch by a named method, alone (Base) or combined over layers (RefineCAM).

>>> capture = Capture(model, inputs, target, layers)
>>> explain(capture, "LayerCAM", REFINED).maps                   # (B,H,W) in [0,1]
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from . import cams, controls
from .baselines import captum_methods, full_grad, guided_filter, poly_cam
from .capture import Capture, Maps
from .errors import InputError, one_of
from .refinement import Power, known_aggregates, refine, resized, to_map

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])


@dataclass(frozen=True)
class Method:
    """A method of the registry."""

    function: Callable[[Capture], Maps]
    """Returns raw maps."""
    refines: bool = True
    """Whether it returns one map per layer."""
    double: bool = False
    """Whether it runs in float64, on a float64 copy of the network."""

    def raw_maps(self, capture: Capture) -> Maps:
        """Return the raw maps of the capture, one per layer if the method refines."""
        return (capture.double if self.double else capture).maps(self.function)


METHODS: dict[str, Method] = {
    "GradCAM": Method(cams.grad_cam),
    "HiResCAM": Method(cams.hires_cam),
    "GradCAM++": Method(cams.grad_cam_pp, double=True),
    "LayerCAM": Method(cams.layer_cam),
    "ScoreCAM": Method(cams.score_cam),
    "ShapleyCAM": Method(cams.shapley_cam),
    "GuidedGradCAM": Method(captum_methods.guided_grad_cam),
    "LIME": Method(captum_methods.lime, refines=False),
    "DeepLift": Method(captum_methods.deep_lift, refines=False, double=True),
    "InputXGradient": Method(captum_methods.input_x_gradient, refines=False),
    "IntegratedGradients": Method(captum_methods.integrated_gradients, refines=False),
    "KernelShap": Method(captum_methods.kernel_shap, refines=False),
    "PolyCAM": Method(poly_cam.poly_cam, refines=False),
    "FullGrad": Method(full_grad.full_grad, refines=False),
    "GuidedFilter": Method(guided_filter.guided_layer_cam, refines=False),
    "RandomCAM": Method(controls.random_cam, refines=False),
    "HalfCAM": Method(controls.half_cam, refines=False),
    "All1sCAM": Method(controls.all_ones_cam, refines=False),
}
"""Name -> method. Add your own here to use it by name everywhere."""

CAMS = ("GradCAM++", "LayerCAM", "ScoreCAM", "ShapleyCAM", "GuidedGradCAM")
"""The paper's five methods with a map for each layer."""
OTHERS = ("LIME", "DeepLift", "InputXGradient", "IntegratedGradients", "KernelShap")
"""The paper's five methods with one map."""
SLOW = ("ScoreCAM", "PolyCAM", "LIME", "KernelShap", "IntegratedGradients")
"""Methods that need dozens to hundreds of forward passes per map."""
TRIVIAL = ("RandomCAM", "HalfCAM", "All1sCAM")
"""The paper's trivial maps, which explain nothing."""

CONTROLS: dict[str, Method] = {
    "GroundTruth": Method(controls.ground_truth, refines=False),
    "InvertedTruth": Method(controls.inverted_truth, refines=False),
    "CentreGaussian": Method(controls.centre_gaussian, refines=False),
    "EdgeDetector": Method(controls.edge_detector, refines=False),
}
"""Maps that explain nothing or know the answer. They test the metrics."""
LIBRARY = METHODS | CONTROLS
"""The methods of this library, whatever is registered later."""


def method_of(method: str | Callable[[Capture], Maps]) -> Method:
    """Return the method of this name, or wrap a function of your own.

    "LayerCAM^0.125" raises LayerCAM's maps to that power.

    Raises:
        InputError: The name is unknown. The message suggests the nearest name.
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
    """Which map of a method: that of one layer, alone or combined with the maps of all deeper layers."""

    layer: int = 0
    """The number of the layer; 0 is the shallowest."""
    aggregate: str = "none"
    """"none" for the layer alone (Base), "product" for RefineCAM, or another name in AGGREGATES or COMBINATIONS."""

    def __post_init__(self) -> None:
        one_of("aggregate", self.aggregate, ["none", *known_aggregates()])

    def layers(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the layers that this variant needs, out of all `names`."""
        if not 0 <= self.layer < len(names):
            raise InputError(f"layer number {self.layer}; allowed: 0..{len(names) - 1} ({', '.join(names)})")
        return tuple(names[self.layer : self.layer + 1] if self.aggregate == "none" else names[self.layer :])


BASE, REFINED = Variant(), Variant(aggregate="product")


@dataclass(frozen=True, eq=False)
class Explanation:
    """The maps of a batch, and what they were made from."""

    capture: Capture
    method: str | Callable[[Capture], Maps]
    variant: Variant
    maps: Tensor
    """(B,H,W) in [0,1]. A map without contrast is 0 everywhere. A map that is not finite holds NaN. Finished maps may
    also be a NumPy array, (B,1,H,W), (H,W) for one image, or smaller than the images."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", _checked(self.maps, self.capture))


def _checked(maps: Tensor | np.ndarray, capture: Capture) -> Tensor:
    """Return maps (B,H,W) in the images' type. Raises InputError if they are no maps in [0,1] of the images."""
    given = torch.as_tensor(maps, device=capture.inputs.device).detach()
    whole = given[:, 0] if given.ndim == 4 and given.shape[1] == 1 else given[None] if given.ndim == 2 else given
    if whole.ndim != 3 or len(whole) != len(capture.inputs) or 0 in whole.shape:
        size = ", ".join(map(str, capture.size))
        raise InputError(
            f"maps of shape {tuple(given.shape)}; allowed: ({len(capture.inputs)}, {size}), one map an image"
        )
    known = whole[torch.isfinite(whole)]
    low, high = (float(known.min()), float(known.max())) if known.numel() else (0, 1)
    if low < 0 or high > 1:
        raise InputError(
            f"maps with values {low:.4g}..{high:.4g}; allowed: values in [0,1]. Scale each map, for example with to_map."
        )
    whole = whole.to(torch.promote_types(capture.inputs.dtype, torch.float32))
    return whole if whole.shape[1:] == capture.size else resized(whole, capture.size)


def explain(
    capture: Capture, method: str | Callable[[Capture], Maps] = "LayerCAM", variant: Variant = BASE
) -> Explanation:
    """Explain a batch by a method, for one variant.

    Args:
        capture: The batch. It must contain the variant's layer and, to refine, every deeper layer. Only captured layers
            are combined.
        method: A name in METHODS or CONTROLS, or a function of a capture.
        variant: The layer and the aggregate.

    Raises:
        InputError: The name is unknown, the layer was not captured, or a method with one map should be refined.
    """
    entry = method_of(method)
    raw = entry.raw_maps(capture)
    start = variant.layer - capture.first_layer
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
    return Explanation(capture, method, variant, maps)


@dataclass(frozen=True)
class Explainer:
    """A network with a method. `attribute` follows captum, so captum's metrics and visualisers accept it.

    >>> explainer = Explainer(model, "LayerCAM", layers, aggregate="product")
    >>> explainer.attribute(inputs, target=208)                   # (B,1,H,W) in [0,1]
    """

    model: nn.Module
    method: str | Callable[[Capture], Maps]
    layers: tuple[str, ...]
    aggregate: str = "none"
    layer: int = 0
    """The number of the layer in `layers`; 0 is the shallowest."""

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            object.__setattr__(self, "layers", (self.layers,))
        method_of(self.method)
        self.variant.layers(self.layers)

    @property
    def variant(self) -> Variant:
        """The variant of the method."""
        return Variant(self.layer, self.aggregate)

    def attribute(self, inputs: Inputs, target: int | Tensor | None = None, seed: int = 0) -> Inputs:
        """Return maps (B,1,H,W) in [0,1] of normalised images (B,C,H,W) for one class, or for one class per image.

        None explains the predicted classes. As in captum, a tuple of one tensor gives a tuple of one tensor.
        """
        if isinstance(inputs, tuple):
            if len(inputs) != 1:
                raise InputError(f"a tuple of {len(inputs)} inputs; allowed: one tensor (B,C,H,W)")
            return (self.attribute(inputs[0], target, seed),)
        classes = None if target is None else torch.as_tensor(target)
        if classes is not None and classes.numel() == 1:
            classes = classes.reshape(1).expand(len(inputs))
        capture = Capture(self.model, inputs, classes, self.variant.layers(self.layers), seed=seed)
        return explain(capture, self.method, Variant(0, self.aggregate)).maps[:, None]
