"""ROAD (eq. 5): remove pixels most or least relevant first, impute them, and run the network again.

Source: Rong et al. 2022, https://arxiv.org/abs/2202.00449
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError, rng
from .imputation.impute import impute
from .networks.inference import forward, forward_chunk

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
"""The shares of pixels that ROAD removes."""
Keep = Callable[[Tensor, Sequence[int], Sequence[float]], Tensor]
"""Maps (B,H,W), B seeds and K fractions -> masks (B,2K,H,W) of the pixels that stay."""


def removal_order(maps: Tensor, seeds: Sequence[int]) -> Tensor:
    """Rank each pixel by relevance; 0 is the most relevant.

    Args:
        maps: Finite maps (B,H,W). A constant map gives a random order.
        seeds: One integer per map. Ties are broken in an order drawn from it.

    Returns:
        Ranks (B,H,W), int64, each of 0..H*W-1 once, on the maps' device.

    Raises:
        InputError: The shape is wrong, a value is NaN or infinite, or the number of seeds is wrong.

    Departs from the published code, which cuts at percentiles and so removes wrong shares of maps with ties.
    """
    if maps.ndim != 3 or 0 in maps.shape:
        raise InputError(f"maps of shape {tuple(maps.shape)}; allowed: (B, H, W), not empty")
    if not bool(torch.isfinite(maps).all()):
        raise InputError("maps hold NaN or infinite values; allowed: finite values")
    if len(seeds) != len(maps):
        raise InputError(f"Expected one seed per map, got {len(seeds)} seeds for {len(maps)} maps.")
    flat = maps.detach().flatten(1)
    size = flat.shape[1]
    shuffled = torch.from_numpy(np.stack([_ties(int(seed), size) for seed in seeds])).to(flat.device)
    order = shuffled.gather(1, _descending(flat.gather(1, shuffled)))
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(size, device=flat.device).expand_as(order))
    return ranks.view(maps.shape)


@lru_cache(maxsize=32)  # all maps of an image use its seed
def _ties(seed: int, size: int) -> np.ndarray:
    return rng(seed, "ties").permutation(size)


def _descending(values: Tensor) -> Tensor:
    """Return indices that sort each row of values (B,N) in descending order. Equal values keep their order."""
    if values.dtype != torch.float32 or values.device.type != "cpu":
        return values.argsort(dim=1, descending=True, stable=True)
    # Combine each value's bits with its place into one integer. No two are equal, so numpy's fastest sort is stable.
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys = (~ascending << 32) | torch.arange(values.shape[1])
    return torch.from_numpy(np.sort(keys.numpy(), 1)) & 0xFFFFFFFF


def keep_masks(ranks: Tensor, fractions: Sequence[float] = FRACTIONS) -> Tensor:
    """Mask the pixels that stay after removing the most relevant (MoRF) and after removing the least relevant (LeRF).

    Args:
        ranks: (B,H,W) from `removal_order`.
        fractions: K shares between 0 and 1. Exactly round(k*H*W) pixels are removed.

    Returns:
        Masks (B,2K,H,W), True where a pixel stays: K for MoRF, then K for LeRF, in exactly the reverse order.

    Raises:
        InputError: A fraction is not between 0 and 1.
    """
    _check(fractions)
    size = ranks[0].numel()
    removed = torch.tensor([round(k * size) for k in fractions], device=ranks.device)[:, None, None]
    ranks = ranks[:, None]
    return torch.cat([ranks >= removed, ranks < size - removed], 1)


def _check(fractions: Sequence[float]) -> None:
    if not fractions or not all(0 < k < 1 for k in fractions):
        raise InputError(f"fractions {tuple(fractions)}; allowed: one or more, each between 0 and 1, both excluded")


def keep_ranks(maps: Tensor, seeds: Sequence[int], fractions: Sequence[float]) -> Tensor:
    """Mask the pixels that stay, by rank: `keep_masks` of `removal_order`."""
    return keep_masks(removal_order(maps, seeds), fractions)


def road_noise(seeds: Sequence[int], shape: tuple[int, ...], std: float = 0.01) -> Tensor:
    """Draw the noise of noisy linear imputation: one normal field per seed, float32 (B, *shape).

    All masks of an image share one field (common random numbers), so noise does not blur LeRF - MoRF.

    Args:
        seeds: B integers.
        shape: (C,H,W).
        std: Standard deviation in units of the normalised image.
    """
    return torch.from_numpy(np.stack([_noise(int(seed), shape) for seed in seeds])) * std


@lru_cache(maxsize=32)
def _noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return rng(seed, "road noise").standard_normal(shape, dtype="float32")


def road_probabilities(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    maps: Tensor,
    seeds: Sequence[int],
    fractions: Sequence[float] = FRACTIONS,
    chunk: int | None = None,
    keep: Keep = keep_ranks,
    without: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the target's softmax probability after MoRF and after LeRF removal. ROAD is mean(lerf - morf) (eq. 5).

    Args:
        model: A classifier.
        inputs: Normalised images (B,C,H,W).
        target: Class indices (B,).
        maps: (B,H,W), higher is more relevant.
        seeds: B integers, for ties and noise.
        fractions: K shares of pixels to remove.
        chunk: Images per forward pass; None takes `forward_chunk`.
        keep: Which pixels stay.
        without: The inputs without their object (B,C,H,W), where known. Removed pixels then show it instead of imputed
            values ("exact removal").

    Returns:
        morf (B,K) and lerf (B,K), probabilities.

    Raises:
        InputError: Batch sizes differ, or a map or fraction is not allowed.

    Departs from the published code, which halves the difference and cuts at percentiles.
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
                pixels = inputs[part].to(torch.promote_types(inputs.dtype, torch.float32))
                filled = impute(pixels, kept, road_noise(seeds[part], tuple(inputs.shape[1:])))
            else:
                filled = torch.where(kept[:, :, None].to(inputs.device), inputs[part, None], without[part, None])
            filled = filled.flatten(0, 1).to(inputs.dtype)
            classes = target[part].to(inputs.device).repeat_interleave(2 * len(fractions))
            for images, wanted in zip(filled.split(chunk), classes.split(chunk), strict=True):
                probabilities = forward(model, images).softmax(1)
                rows.append(probabilities.gather(1, wanted[:, None])[:, 0])
    morf, lerf = torch.cat(rows).view(len(inputs), 2, -1).unbind(1)
    return morf, lerf
