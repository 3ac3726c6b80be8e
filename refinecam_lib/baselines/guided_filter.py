"""The guided filter: bring the deepest map to the image's resolution by the image's own edges, without other layers."""

import torch.nn.functional as F
from torch import Tensor

from ..cams import layer_cam
from ..capture import Capture, Maps
from ..refinement import min_max, to_map

RADIUS, EPS = 8, 1e-3
"""The half width of the window in pixels, and the variance below which the image counts as flat."""


def guided_layer_cam(capture: Capture) -> Maps:
    """Filter the deepest LayerCAM, guided by the image. It tells what edges alone can do for a coarse map.

    Returns:
        One raw map (B,H,W), not negative.

    Source: He et al. 2010, https://doi.org/10.1007/978-3-642-15549-9_1
    """
    deepest = to_map(capture.maps(layer_cam)[-1], capture.size)
    return [guided_filter(min_max(capture.inputs.float().mean(1)), deepest).relu()]


def guided_filter(guide: Tensor, maps: Tensor, radius: int = RADIUS, eps: float = EPS) -> Tensor:
    """Fit each map (B,H,W) in every window as a linear function of the guide (B,H,W), and average the fits."""

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values[:, None], 2 * radius + 1, 1, radius, count_include_pad=False)[:, 0]

    of_guide, of_maps = mean(guide), mean(maps)
    slope = (mean(guide * maps) - of_guide * of_maps) / (mean(guide**2) - of_guide**2 + eps)
    return mean(slope) * guide + mean(of_maps - slope * of_guide)
