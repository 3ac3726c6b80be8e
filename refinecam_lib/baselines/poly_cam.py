"""PolyCAM: bring the deepest map of ScoreCAM to the resolution of the shallowest layer, layer by layer."""

import torch.nn.functional as F

from ..cams import score_cam
from ..capture import Capture, Maps
from ..refinement import resized


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
        (height, width), (h, w) = layer.shape[-2:], maps[-1].shape[-2:]
        mean = resized(F.adaptive_avg_pool2d(layer, (h, w)), (height, width))  # 0 where it is 0
        maps.append(layer / mean.clamp_min(1e-12) * resized(maps[-1], (height, width)))
    return maps[::-1]
