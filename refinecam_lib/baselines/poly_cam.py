"""PolyCAM: bring the deepest map of ScoreCAM to the resolution of the shallowest layer, layer by layer."""

import torch.nn.functional as F
from torch import Tensor

from ..cams import score_cam
from ..capture import Capture, Maps


def poly_cam(capture: Capture) -> Maps:
    """Multiply each layer's ScoreCAM, normalised locally, with the upsampled PolyCAM of the next layer.

    P_N = S_N and P_l = S_l / up(down(S_l)) * up(P_{l+1}), where down averages to the next layer's grid.

    Args:
        capture: The batch.

    Returns:
        One raw map (B,h,w) per layer, shallow to deep. Each contains those of all deeper layers, so it must not be
        refined.

    Source: Englebert et al. 2022, https://arxiv.org/abs/2204.13359. Departs from it: weights are those of `score_cam`,
    a softmax over channels. The paper compares the class's score with and without each channel.
    """
    *shallow, deepest = score_cam(capture)
    maps = [deepest]
    for layer in reversed(shallow):
        maps.append(_locally_normalised(layer, _size(maps[-1])) * _up(maps[-1], _size(layer)))
    return maps[::-1]


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _up(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _locally_normalised(maps: Tensor, coarse: tuple[int, int]) -> Tensor:
    """Divide maps (B,h,w) by themselves at a coarser grid; 0 where that is 0."""
    mean = _up(F.adaptive_avg_pool2d(maps, coarse), _size(maps))
    return maps / mean.clamp_min(1e-12)
