"""Explain and score images of any classifier in one call, also with maps and explainers of other packages.

>>> explanation = explain(model, images, method="LayerCAM", refine="product")
>>> evaluate(explanation)                                         # one row per image, one column per score
>>> evaluate(model, images, maps=array)                           # finished maps; Coherency is left out
>>> evaluate(model, images, explainer=other)                      # a callable, captum, grad-cam or torch-cam
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from .. import explanation as core
from ..capture import Capture, Maps
from ..errors import InputError
from ..explanation import Explanation, Variant
from ..metrics import measure
from ..networks.layers import layers_of
from ..refinement import BEST, to_map
from ..scoring import SCORES, TITLES, exact_road, scores
from .pictures import inputs_of

Images = Tensor | np.ndarray | Image.Image | str | Path | Sequence[Image.Image | str | Path]
WITHOUT_AGAIN = ("coherency", "adcc", "arcc")
"""Scores that need an explainer, because the masked image is explained again."""
TRUTHS = ("cosine", "average_precision", "mass_on_truth")


def explain(subject: Capture | nn.Module, *arguments: Any, **options: Any) -> Explanation:
    """Explain images by a method.

    There are two forms. The first returns one layer's map, the second by default the mean of the layers' maps:
        explain(capture, method, variant): see `explanation.explain`. Many methods can share a capture.
        explain(model, images, method="LayerCAM", refine="mean", ...): see `explain_images`.
    """
    return (core.explain if isinstance(subject, Capture) else explain_images)(subject, *arguments, **options)  # type: ignore[arg-type]


def explain_images(
    model: nn.Module,
    images: Images,
    method: str | Callable[[Capture], Maps] = "LayerCAM",
    refine: str | None = None,
    target: int | Sequence[int] | Tensor | None = None,
    layers: Sequence[str] | str | None = None,
    layer: int | None = None,
    **options: Any,
) -> Explanation:
    """Explain images of any classifier.

    Args:
        model: A classifier of timm, torchvision, Hugging Face or your own.
        images: Normalised inputs (B,C,H,W); or pictures, uint8 arrays (H,W,3) and paths, for which the network's own
            preprocessing must be known (timm).
        method: A name in METHODS, or a function of a capture.
        refine: How the maps of a layer and of all deeper layers are combined, a name in AGGREGATES or COMBINATIONS, such
            as "product" (RefineCAM); "none" for one layer's map. None takes `refinement.BEST`, the winner of notebook 13.
        target: The class, or one per image. None takes the predicted classes.
        layers: Dotted names, shallow to deep. None takes those of `layers_of`.
        layer: The layer to start from, by number. None is the deepest with refine="none", else the shallowest.
        **options: Further arguments of `Capture`, such as seed and logits_of.

    Raises:
        InputError: The network, the images, the method or the layers do not fit together.
    """
    capture, refines = _capture(model, images, target, layers, **options), core.method_of(method).refines
    refine = refine or (BEST if refines else "none")
    start = layer if layer is not None else 0 if refine != "none" else len(capture.layers) - 1
    if not refines:
        start = 0
    return core.explain(capture, method, Variant(start, refine))


def evaluate(
    subject: Explanation | nn.Module,
    images: Images | None = None,
    *,
    maps: Tensor | np.ndarray | None = None,
    explainer: Any = None,
    target: int | Sequence[int] | Tensor | None = None,
    masks: Tensor | None = None,
    layers: Sequence[str] | str | None = None,
    convention: str = "recommended",
    **options: Any,
) -> pd.DataFrame:
    """Score explanations: one row per image, one column per score, whose arrow shows which direction is better.

    Args:
        subject: An explanation, or a network whose maps come from `maps` or `explainer`.
        images: See `explain_images`.
        maps: Finished maps (B,H,W) in [0,1]. Without an explainer, Coherency, ADCC and ARCC are left out, and a warning
            says so.
        explainer: A name in METHODS, explained as by `explain_images` and its options; a callable (inputs, target) ->
            maps, an attribution of captum, or a CAM object of the packages grad-cam or torch-cam. Maps in [0,1] are taken
            as they are. Others are summed over channels, clipped at 0 and scaled to [0,1]; attributions of the image's
            channels by their absolute value.
        target: The class, or one per image. None takes the predicted classes.
        masks: Ground-truth masks (B,H,W), for the agreement with them.
        layers: Layers of the network, for a name in METHODS.
        convention: How scores follow from measurements, a name in CONVENTIONS.
        **options: Further arguments of `Capture`, such as seed and logits_of; for a name also refine and layer.

    Raises:
        InputError: The arguments do not fit together, or the maps are not maps of the images.
    """
    if isinstance(subject, Explanation):
        return _table(measure(subject), convention)
    if images is None or (maps is None and explainer is None):
        raise InputError("Expected images, and maps or an explainer. Pass evaluate(model, images, explainer=...).")
    if masks is not None:
        options["truth"] = masks
    if isinstance(explainer, str):
        if maps is not None:
            raise InputError(
                f"Expected maps or the name of a method, got maps and {explainer!r}. Leave one of them out."
            )
        explanation = explain_images(subject, images, explainer, target=target, layers=layers, **options)
        return _table(measure(explanation), convention)
    capture = _capture(subject, images, target, (), **options)  # maps from elsewhere need no layers
    source = partial(_maps_of, explainer)
    found = Explanation(capture, "LayerCAM", core.BASE, source(capture) if maps is None else torch.as_tensor(maps))
    if explainer is not None:
        rows = measure(found, again=lambda _, masked: Explanation(masked, "LayerCAM", core.BASE, source(masked)).maps)
        return _table(rows, convention)
    warnings.warn(
        "Coherency, ADCC and ARCC are left out, because they need the masked image explained again. Pass explainer=.",
        stacklevel=2,
    )
    rows = measure(found, again=lambda _, masked: torch.zeros_like(masked.inputs[:, 0]))
    return _table(rows, convention).drop(columns=[TITLES[name] for name in WITHOUT_AGAIN])


def _capture(
    model: nn.Module, images: Images, target: Any, layers: Sequence[str] | str | None, **options: Any
) -> Capture:
    inputs = inputs_of(model, images)
    if isinstance(target, int):
        target = [target] * len(inputs)
    return Capture(model, inputs, target, layers_of(model, inputs.shape[-1]) if layers is None else layers, **options)


def _table(rows: pd.DataFrame, convention: str) -> pd.DataFrame:
    """Return scores with titles, agreement with the truth where it was measured, and a status that is not "ok"."""
    table = scores(rows, convention).rename(columns=TITLES)[[TITLES[name] for name in SCORES]]
    for name in TRUTHS:
        if name in rows:
            table[f"{name.replace('_', ' ')} ↑"] = rows[name]
    if any(str(name).startswith("exact_") for name in rows):
        table["exact removal ↑"] = exact_road(rows)
    return table if (rows["status"] == "ok").all() else table.assign(status=rows["status"])


def _maps_of(explainer: Any, capture: Capture) -> Tensor:
    """Return an explainer's maps (B,H,W) in [0,1] of a capture's images and targets."""
    inputs, target = capture.inputs.clone().contiguous().requires_grad_(), capture.target  # the weights may be frozen
    with torch.enable_grad():
        if hasattr(explainer, "attribute"):  # captum
            raw = explainer.attribute(inputs, target=target)
        elif hasattr(explainer, "compute_cams"):  # torch-cam reads the activations of the last forward pass
            own = explainer(target.tolist(), explainer.model(inputs))
            raw = own[0] if len(own) == 1 else explainer.fuse_cams(own)
        elif hasattr(explainer, "activations_and_grads"):  # grad-cam
            raw = explainer(inputs, targets=[lambda output, c=int(c): output[..., c] for c in target])
        elif callable(explainer):
            raw = explainer(inputs, target)
        else:
            raise InputError(
                f"Expected an explainer that can be called, got a {type(explainer).__name__}. Pass a function "
                "(inputs, target) -> maps (B, H, W)."
            )
    maps = torch.as_tensor(raw, device=inputs.device).detach()
    if maps.ndim == 4:
        maps = maps.sum(1).abs() if maps.shape[1] == inputs.shape[1] > 1 else maps.sum(1)
    known = maps[torch.isfinite(maps)]
    scaled = known.numel() and 0 <= float(known.min()) and float(known.max()) <= 1
    return maps if scaled or maps.ndim != 3 else to_map(maps.to(inputs.dtype), capture.size)
