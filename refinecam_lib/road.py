"""ROAD (eq. 5): remove pixels most relevant first and least relevant first, impute them, and ask the network again."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from . import checks
from .cam import forward_chunk
from .checks import InputError
from .imputation import impute
from .inference import forward

__all__ = [
    "FRACTIONS",
    "impute",
    "keep_masks",
    "keep_percentiles",
    "keep_ranks",
    "removal_order",
    "road_noise",
    "road_probabilities",
]

FRACTIONS = (0.2, 0.4, 0.6, 0.8)


def removal_order(maps: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Rank of each pixel by relevance, 0 = most relevant; ties in an order drawn from each map's seed.

    maps (B,H,W) finite; seeds: B integers. Returns ranks (B,H,W) int64, each of 0..H*W-1 once, on the maps' device.
    A constant map gives a random order. Raises InputError on a wrong shape, NaN, infinities or a wrong number of seeds.
    Departs from the published code, which cuts at percentiles and so removes wrong shares of maps with ties.
    """
    if maps.ndim != 3 or 0 in maps.shape:
        raise InputError(f"maps of shape {tuple(maps.shape)}; allowed: (B, H, W), not empty")
    if not bool(torch.isfinite(maps).all()):
        raise InputError("maps hold NaN or infinite values; allowed: finite values")
    if len(seeds) != len(maps):
        raise InputError(f"{len(seeds)} seeds for {len(maps)} maps; allowed: one for each map")
    flat = maps.detach().flatten(1)
    size = flat.shape[1]
    shuffled = torch.from_numpy(np.stack([_ties(int(seed), size) for seed in seeds])).to(flat.device)
    order = shuffled.gather(1, _descending(flat.gather(1, shuffled)))
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(size, device=flat.device).expand_as(order))
    return ranks.view(maps.shape)


@lru_cache(maxsize=32)  # the maps of an image are measured one after the other, with its seed
def _ties(seed: int, size: int) -> np.ndarray:
    return checks.rng(seed, "ties").permutation(size)


def _descending(values: torch.Tensor) -> torch.Tensor:
    """Indices that sort each row of values (B,N), the largest first, equal ones in the order in which they come."""
    if values.dtype != torch.float32 or values.device.type != "cpu":
        return values.argsort(dim=1, descending=True, stable=True)
    # Whole numbers in the order of the values and then of their places: no two are equal, so numpy's fastest sort will do.
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes one zero of two
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys = (~ascending << 32) | torch.arange(values.shape[1])
    return torch.from_numpy(np.sort(keys.numpy(), 1)) & 0xFFFFFFFF


def keep_masks(ranks: torch.Tensor, fractions: Sequence[float] = FRACTIONS) -> torch.Tensor:
    """Masks of the kept pixels: K with the most relevant pixels removed (MoRF), then K with the least relevant (LeRF).

    ranks (B,H,W) from `removal_order`; fractions: K shares k in (0, 1). Returns bool (B,2K,H,W), True = kept; exactly
    round(k*H*W) pixels are removed, LeRF in exactly the reverse order of MoRF. Raises InputError on other fractions.
    """
    _check(fractions)
    size = ranks[0].numel()
    removed = torch.tensor([round(k * size) for k in fractions], device=ranks.device)[:, None, None]
    ranks = ranks[:, None]
    return torch.cat([ranks >= removed, ranks < size - removed], 1)


def _check(fractions: Sequence[float]) -> None:
    if not fractions or not all(0 < k < 1 for k in fractions):
        raise InputError(f"fractions {tuple(fractions)}; allowed: one or more, each between 0 and 1, both excluded")


def keep_ranks(maps: torch.Tensor, seeds: Sequence[int], fractions: Sequence[float]) -> torch.Tensor:
    """Masks (B,2K,H,W) of the pixels that ROAD keeps, by rank: `keep_masks` of `removal_order`."""
    return keep_masks(removal_order(maps, seeds), fractions)


def keep_percentiles(maps: torch.Tensor, seeds: Sequence[int], fractions: Sequence[float]) -> torch.Tensor:
    """The same masks as the published code makes them, by thresholds at percentiles; for the audit.

    Of a map with ties they remove other shares than asked for, up to all; an image without a known pixel is imputed
    by 0, the mean colour, where the published code has a singular system. `seeds` decide nothing.
    """
    kept = 1 - torch.tensor(list(fractions), dtype=torch.double, device=maps.device)
    parts = []
    for values in (maps.double().flatten(1), 1 - maps.double().flatten(1)):
        thresholds = torch.quantile(values, kept, dim=1).T
        parts.append(values[:, None] < thresholds[:, :, None])
    return torch.cat(parts, 1).unflatten(2, maps.shape[1:])


def road_noise(seeds: Sequence[int], shape: tuple[int, ...], std: float = 0.01) -> torch.Tensor:
    """The noise of noisy linear imputation: one normal field for each seed, float32 (B, *shape).

    shape (C,H,W); std in units of the normalised image. The same field serves all masks of an image: common random
    numbers, so that the noise doesn't blur the difference of LeRF and MoRF.
    """
    return torch.from_numpy(np.stack([_noise(int(seed), shape) for seed in seeds])) * std


@lru_cache(maxsize=32)
def _noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return checks.rng(seed, "road noise").standard_normal(shape, dtype="float32")


def road_probabilities(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    target: torch.Tensor,
    maps: torch.Tensor,
    seeds: Sequence[int],
    fractions: Sequence[float] = FRACTIONS,
    chunk: int | None = None,
    keep: Callable[[torch.Tensor, Sequence[int], Sequence[float]], torch.Tensor] = keep_ranks,
    without: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax probability of the target after MoRF and after LeRF removal; ROAD = mean(lerf - morf) (eq. 5).

    inputs (B,C,H,W) normalised; target (B,) int; maps (B,H,W), higher = more relevant; seeds: B integers, for ties and
    noise; fractions: K shares removed; chunk: images in one forward, so that memory stays flat (None: `forward_chunk`);
    keep: which pixels stay. without: the inputs without their object, where that is known, whose pixels removed ones
    then show instead of imputed ones ("exact removal").
    Returns (morf (B,K), lerf (B,K)). Raises InputError as `removal_order`,
    `keep_masks` and `impute` do, and where the batch sizes differ.
    Source: Rong et al. 2022. Departs from the published code, which halves the difference and cuts at percentiles.
    """
    sizes = {len(inputs), len(target), len(maps), len(seeds)}
    if inputs.ndim != 4 or len(sizes) > 1 or 0 in sizes or inputs.shape[2:] != maps.shape[1:]:
        raise InputError(
            f"inputs {tuple(inputs.shape)}, target {tuple(target.shape)}, maps {tuple(maps.shape)}, {len(seeds)} "
            "seeds; allowed: (B, C, H, W), (B,), (B, H, W), B seeds, B >= 1"
        )
    _check(fractions)
    rows, chunk = [], chunk or forward_chunk(inputs.device)
    with torch.inference_mode():
        for first in range(0, len(inputs), step := max(1, chunk // (2 * len(fractions)))):
            part = slice(first, first + step)
            kept = keep(maps[part], seeds[part], fractions)
            if without is None:
                filled = impute(inputs[part], kept, road_noise(seeds[part], tuple(inputs.shape[1:])))
            else:
                filled = torch.where(kept[:, :, None].to(inputs.device), inputs[part, None], without[part, None])
            filled = filled.flatten(0, 1)
            classes = target[part].to(inputs.device).repeat_interleave(2 * len(fractions))
            for images, wanted in zip(filled.split(chunk), classes.split(chunk), strict=True):
                probabilities = forward(model, images).softmax(1)
                rows.append(probabilities.gather(1, wanted[:, None])[:, 0])
    morf, lerf = torch.cat(rows).view(len(inputs), 2, -1).unbind(1)
    return morf, lerf
