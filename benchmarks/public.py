"""The public side: the paper's published pipeline, built from the package grad-cam.

It makes one CAM object per method, layer and image. The batch size is 1, weights require gradients, and the memory layout
is torch's default. It uses `ROADCombined` at 20, 40, 60 and 80 %, `arcc.Coherency`, `arcc.Complexity` and
`DropInConfidence`.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import pytorch_grad_cam as package
import torch
from pytorch_grad_cam.metrics import arcc, cam_mult_image, road
from pytorch_grad_cam.refine_cam import RefineCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputReST,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)
from torch import Tensor, nn

CAMS = {
    "GradCAM": package.GradCAM,
    "GradCAM++": package.GradCAMPlusPlus,
    "LayerCAM": package.LayerCAM,
    "ShapleyCAM": package.ShapleyCAM,
    "ScoreCAM": package.ScoreCAM,
}


def layer_maps(model: nn.Module, image: Tensor, target: int, layers: Sequence[str], method: str) -> np.ndarray:
    """Compute the method's map of each layer for one image (1,3,H,W): float32 (L,H,W) in [0,1]."""
    wanted = ClassifierOutputReST(target) if method == "ShapleyCAM" else ClassifierOutputTarget(target)
    maps = []
    with open(os.devnull, "w") as silent, contextlib.redirect_stderr(silent):  # ScoreCAM draws a progress bar
        for layer in layers:
            with CAMS[method](model, [model.get_submodule(layer)]) as cam:
                maps.append(cam(image, [wanted])[0])
    return np.stack(maps)


def refined(maps: np.ndarray) -> np.ndarray:
    """Compute RefineCAM of maps (L,H,W): their product, scaled as the package scales it."""
    return scale_cam_image(maps.prod(0, keepdims=True))[0]


def impute(image: Tensor, keep: Tensor) -> Tensor:
    """Fill the removed pixels of an image (3,H,W) for masks (M,H,W), by the package's direct solver without noise."""
    imputer = road.NoisyLinearImputer(noise=0.0)
    return torch.stack([imputer(image, mask.float()) for mask in keep])


def road_score(model: nn.Module, image: Tensor, target: int, maps: np.ndarray) -> float:
    """Compute ROAD (eq. 5) of one image (1,3,H,W) and map (1,H,W). It is twice the package's value."""
    combined = road.ROADCombined(percentiles=[20, 40, 60, 80])
    return 2 * float(combined(image, maps, [ClassifierOutputSoftmaxTarget(target)], model)[0])


def shares(pixels: int) -> tuple[float, ...]:
    """Return the shares of pixels that the percentiles 80, 60, 40 and 20 remove from a map without ties.

    Pixels below the percentile stay. In the sorted map they are at places below (n-1)p/100.
    """
    return tuple((pixels - math.ceil((pixels - 1) * percentile / 100)) / pixels for percentile in (80, 60, 40, 20))


def coherency_and_drop(
    model: nn.Module, image: Tensor, target: int, maps: np.ndarray, layers: Sequence[str], method: str, refine: bool
) -> dict[str, float]:
    """Compute Coherency, Complexity and max(f(X) - f(X ⊙ M), 0) of one image (1,3,H,W) and map (1,H,W)."""
    modules = [model.get_submodule(layer) for layer in layers]
    logit, softmax = [ClassifierOutputTarget(target)], [ClassifierOutputSoftmaxTarget(target)]
    with contextlib.ExitStack() as hooks:
        if refine:
            cam = RefineCAM(model, modules, base_method=CAMS[method])
            for each in cam.base_cam_per_layer:
                hooks.enter_context(each)
        else:
            cam = hooks.enter_context(CAMS[method](model, modules[:1]))
        coherency = arcc.Coherency()(image, maps, logit, model, cam)
    return {
        "coherency": float(coherency[0]),
        "complexity": float(arcc.Complexity()(maps)[0]),
        "drop": float(cam_mult_image.DropInConfidence()(image, maps, softmax, model)[0]),
    }


@contextlib.contextmanager
def noiseless() -> Iterator[None]:
    """Remove ROAD's noise from both sides, so that they can be compared.

    The package draws it from the global generator. Both sides still draw it and multiply it by zero, so the work is the same.
    """
    from refinecam_lib.road import road_noise

    start = road.NoisyLinearImputer.__init__
    with (
        mock.patch.object(road.NoisyLinearImputer, "__init__", lambda self, noise=0.0: start(self, noise=0.0)),
        mock.patch("refinecam_lib.road.road_noise", lambda seeds, shape: 0 * road_noise(seeds, shape)),
    ):
        yield
