"""Combine the map of a layer with the maps of all deeper layers (eqs. 7 to 9)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .capture import Capture, Maps
from .errors import one_of


def min_max(maps: Tensor) -> Tensor:
    """Scale each map (...,H,W) to [0,1]. A constant map becomes 0. A map that is not finite holds NaN."""
    low = maps.amin((-2, -1), keepdim=True)
    span = maps.amax((-2, -1), keepdim=True) - low
    return torch.where(span == 0, 0, (maps - low) / torch.where(span == 0, 1, span))


def to_map(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """Turn raw maps (B,h,w) into maps (B,H,W) in [0,1]: ReLU, min-max, bilinear interpolation, min-max."""
    return min_max(resized(min_max(raw.relu()), size))


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (B,h,w) by bilinear interpolation."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def product(maps: Tensor) -> Tensor:
    """Multiply maps (N,B,H,W) in [0,1] over the first axis, RefineCAM (eq. 7)."""
    return maps.prod(0)


def geometric_mean(maps: Tensor) -> Tensor:
    """Take the N-th root of the product of maps (N,B,H,W) in [0,1] (eq. 8)."""
    return maps.log().mean(0).exp()  # the product itself would underflow


def inverse_exp_mean(maps: Tensor) -> Tensor:
    """Compute 1 / ln(mean(exp(1/L))) over maps L (N,B,H,W) in [0,1] (eq. 9). It is 0 where a factor is 0.

    Departs from the published code, where exp(1/L) overflows below L = 0.0113. This is a log-sum-exp.
    """
    return 1 / ((1 / maps).logsumexp(0) - math.log(len(maps)))


def mean(maps: Tensor) -> Tensor:
    """Average maps (N,B,H,W), the default of the package grad-cam for several layers."""
    return maps.mean(0)


def tanh_max(maps: Tensor) -> Tensor:
    """Take the largest tanh(2 L) of maps L (N,B,H,W), LayerCAM's fusion (Jiang et al. 2021)."""
    return (2 * maps).tanh().amax(0)


def mean_x_deepest(maps: Tensor) -> Tensor:
    """Multiply the mean of maps (N,B,H,W) by the deepest map, so that it alone can rule a pixel out."""
    return maps.mean(0) * maps[-1]


@dataclass(frozen=True)
class SoftAnd:
    """The product of e + (1 - e) L over maps L (N,B,H,W): with a floor e above 0 no layer can rule a pixel out."""

    floor: float

    def __call__(self, maps: Tensor) -> Tensor:
        return (self.floor + (1 - self.floor) * maps).prod(0)


@dataclass(frozen=True)
class PowerMean:
    """(mean of L^p)^(1/p) over maps L (N,B,H,W): the mean for p = 1, nearer to the geometric mean the smaller p is."""

    p: float

    def __call__(self, maps: Tensor) -> Tensor:
        return maps.pow(self.p).mean(0).pow(1 / self.p)


AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "product": product,
    "geometric_mean": geometric_mean,
    "inverse_exp_mean": inverse_exp_mean,
}
"""Name -> function of maps (N,B,H,W) that returns (B,H,W): the paper's. Add your own here to use it by name everywhere."""
COMBINATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": mean,
    "tanh_max": tanh_max,
    "mean_x_deepest": mean_x_deepest,
    **{f"soft_and_{floor:g}": SoftAnd(floor) for floor in (0.02, 0.05, 0.1, 0.2)},
    **{f"power_mean_{p:g}": PowerMean(p) for p in (0.25, 0.5, 0.75)},
}
"""Name -> further ways to combine layers. Those with a number are candidates, of which validation images choose one."""
BEST = "mean"
"""The combination with the highest average precision on validation images, because no network is bad with it. `rc.explain`
of a network and the explorer start with it."""
LIBRARY_AGGREGATES = AGGREGATES | COMBINATIONS
AUDITED: dict[str, Callable[[Tensor], Tensor]] = {}
"""Aggregates that only the audit uses. `sweeps.published` adds them."""


def known_aggregates() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return all aggregates by name."""
    return COMBINATIONS | AGGREGATES | AUDITED


def refine(maps: Sequence[Tensor], aggregate: str = "product") -> Tensor:
    """Combine maps (B,H,W) in [0,1] of a layer and all deeper layers, then min-max. One map stays as it is."""
    known = known_aggregates()
    return min_max(known[one_of("aggregate", aggregate, known)](torch.stack(list(maps))))


@dataclass(frozen=True)
class Power:
    """A method whose maps are raised to a power: the same order of pixels, other magnitudes (Fig. 4)."""

    method: Callable[[Capture], Maps]
    exponent: float = 1 / 8

    def __call__(self, capture: Capture) -> Maps:
        return [to_map(raw, capture.size) ** self.exponent for raw in capture.maps(self.method)]
