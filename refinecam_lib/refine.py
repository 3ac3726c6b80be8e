"""RefineCAM: the map of a layer combined with the maps of all deeper ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cam import Capture, Maps
from .checks import one_of


def min_max(maps: Tensor) -> Tensor:
    """Scale each map (...,H,W) to [0,1]; a constant map becomes 0, one that is not finite holds NaN."""
    low = maps.amin((-2, -1), keepdim=True)
    span = maps.amax((-2, -1), keepdim=True) - low
    return torch.where(span == 0, 0, (maps - low) / torch.where(span == 0, 1, span))


def to_map(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """Raw maps (B,h,w) -> maps (B,H,W) in [0,1]: ReLU, min-max, bilinear (corners not aligned), min-max."""
    scaled = min_max(raw.relu())
    return min_max(F.interpolate(scaled[:, None], size=size, mode="bilinear", align_corners=False)[:, 0])


def product(maps: Tensor) -> Tensor:
    """Eq. 7: the product over the first axis; maps (N,B,H,W) in [0,1] -> (B,H,W) in [0,1], <= every factor."""
    return maps.prod(0)


def geometric_mean(maps: Tensor) -> Tensor:
    """Eq. 8: the N-th root of the product; maps (N,B,H,W) in [0,1] -> (B,H,W) in [0,1]."""
    return maps.log().mean(0).exp()  # the product itself would underflow


def inverse_exp_mean(maps: Tensor) -> Tensor:
    """Eq. 9: 1 / ln(mean exp(1/L)), 0 where a factor is 0; maps (N,B,H,W) in [0,1] -> (B,H,W) in [0,1].

    Computed as a log-sum-exp. Departs from the published code, where exp(1/L) overflows below L = 0.0113.
    """
    return 1 / ((1 / maps).logsumexp(0) - math.log(len(maps)))


def inverse_exp_mean_published(maps: Tensor) -> Tensor:
    """Eq. 9 as the published code computes it, in single precision: 0 wherever a factor is below 0.0113; for the audit."""
    return 1 / (1 / maps.float()).exp().mean(0).log()


AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "product": product,
    "geometric_mean": geometric_mean,
    "inverse_exp_mean": inverse_exp_mean,
}
PUBLISHED_AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "inverse_exp_mean_published": inverse_exp_mean_published,
}


def refine(maps: Sequence[Tensor], aggregate: str = "product") -> Tensor:
    """Combine maps (B,H,W) in [0,1] of a layer and all deeper ones, then min-max; refining one map is the identity."""
    known = AGGREGATES | PUBLISHED_AGGREGATES
    return min_max(known[one_of("aggregate", aggregate, known)](torch.stack(list(maps))))


@dataclass(frozen=True)
class RefineCAM:
    """RefineCAM (eq. 7) of a method, and itself a method: its l-th map combines the maps of layers l, l+1, ... .

    >>> sharp, *_ = RefineCAM(layer_cam)(capture)      # (B,H,W) in [0,1], from the shallowest layer
    """

    method: Callable[[Capture], Maps]
    aggregate: str = "product"

    def __post_init__(self) -> None:
        one_of("aggregate", self.aggregate, AGGREGATES)

    def __call__(self, capture: Capture) -> Maps:
        maps = [to_map(raw, capture.size) for raw in capture.maps(self.method)]
        return [refine(maps[start:], self.aggregate) for start in range(len(maps))]


@dataclass(frozen=True)
class Power:
    """A method's maps raised to a power, and itself a method: the same order of pixels, other magnitudes (Fig. 4)."""

    method: Callable[[Capture], Maps]
    exponent: float = 1 / 8

    def __call__(self, capture: Capture) -> Maps:
        return [to_map(raw, capture.size) ** self.exponent for raw in capture.maps(self.method)]
