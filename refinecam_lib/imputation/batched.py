"""Solve the systems of `impute` in batches by torch, on any device. The method is that of `cpu`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .cpu import MAX_ITERATIONS, RELAXATION, SINK_LEFT, TOLERANCE


def _shifted(t: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Return t[i + dy, j + dx], 0 outside."""
    height, width = t.shape[-2:]
    return F.pad(t, (1, 1, 1, 1))[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def _weighted_sum(t: torch.Tensor) -> torch.Tensor:
    """Return S t: [1 2 1] in both directions, 0 outside."""
    t = F.pad(t, (1, 1, 1, 1))
    t = t[..., :-2, :] + 2 * t[..., 1:-1, :] + t[..., 2:, :]
    return t[..., :-2] + 2 * t[..., 1:-1] + t[..., 2:]


def _cell_sums(t: torch.Tensor) -> torch.Tensor:
    """Sum 2x2 cells, with zeros beyond an odd edge."""
    return 4 * F.avg_pool2d(F.pad(t, (0, t.shape[-1] % 2, 0, t.shape[-2] % 2)), 2)


def _upsampled(coarse: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    up = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return up[..., : like.shape[-2], : like.shape[-1]]


@dataclass(frozen=True)
class _Level:
    """The operators of one grid. `weights` is empty on the finest."""

    removed: torch.Tensor
    inverse: torch.Tensor
    diagonal: torch.Tensor
    known: torch.Tensor
    weights: tuple[tuple[int, int, torch.Tensor], ...]

    def residual(self, x: torch.Tensor, b: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Return b - A x. The caller masks it."""
        if not self.weights:
            return b - self.diagonal * x + _weighted_sum(x)
        height, width = x.shape[-2:]
        padded, out = F.pad(x, (1, 1, 1, 1)), b - self.diagonal * x
        for dy, dx, weight in self.weights:
            out = out + weight * padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        return out

    def smooth(self, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return x + self.inverse * self.residual(x, b)


def _levels(keep: torch.Tensor) -> list[_Level]:
    """Build the operators of all grids, fine to coarse, from masks (K,1,H,W) of 0 and 1. See `cpu._build`."""
    removed = 1 - keep
    own = _weighted_sum(torch.ones_like(keep[:1]))
    levels = [_Level(removed, removed / (own - 4).clamp_min(1), own, keep, ())]
    sink = removed * (own - _weighted_sum(removed))
    right, below = 2 * removed * _shifted(removed, 0, 1), 2 * removed * _shifted(removed, 1, 0)
    se, sw = removed * _shifted(removed, 1, 1), removed * _shifted(removed, 1, -1)
    known = keep
    while max(removed.shape[-2:]) > 1:
        odd = (0, removed.shape[-1] % 2, 0, removed.shape[-2] % 2)
        scale, relaxation = (1 / 3, RELAXATION) if min(removed.shape[-2:]) > 2 else (1 / 2, 1.0)
        right, below, se, sw, next_sw = (F.pad(t, odd) for t in (right, below, se, sw, _shifted(sw, 0, 1)))
        # The weights across a cell's right side, lower side and two lower corners.
        right, below, se, sw = (
            (right[..., ::2, 1::2] + right[..., 1::2, 1::2] + (se + next_sw)[..., ::2, 1::2]) * scale,
            (below[..., 1::2, ::2] + below[..., 1::2, 1::2] + se[..., 1::2, ::2] + sw[..., 1::2, 1::2]) * scale,
            se[..., 1::2, 1::2],
            sw[..., 1::2, ::2],
        )
        removed, known, sink = (_cell_sums(removed) > 0).to(keep), _cell_sums(known), SINK_LEFT * _cell_sums(sink)
        weights = tuple(
            (sign * dy, sign * dx, weight if sign > 0 else _shifted(weight, -dy, -dx))
            for dy, dx, weight in ((0, 1, right), (1, 0, below), (1, 1, se), (1, -1, sw))
            for sign in (1, -1)
        )
        diagonal = sink + sum(weight for _, _, weight in weights)
        inverse = torch.where(diagonal > 0, relaxation * removed / diagonal.where(diagonal > 0, 1), 0)
        levels.append(_Level(removed, inverse, diagonal, known, weights))
    return levels


def _batched_cycle(levels: list[_Level], b: torch.Tensor) -> torch.Tensor:
    """Return x ~ A^-1 b by one V-cycle. See `cpu._cycle`."""
    level, coarser = levels[0], levels[1:]
    x = level.inverse * b
    if not coarser:
        return x
    x = x + level.removed * _upsampled(_batched_cycle(coarser, _cell_sums(level.removed * level.residual(x, b))), x)
    return level.smooth(x, b)


def _batched_guess(levels: list[_Level], values: torch.Tensor) -> torch.Tensor:
    """Return the mean of known pixels, or where there are none the next coarser grid's. See `cpu._first_guess`."""
    level, coarser = levels[0], levels[1:]
    means = values / level.known.clamp_min(1)
    if not coarser:
        return means
    return torch.where(level.known > 0, means, _upsampled(_batched_guess(coarser, _cell_sums(values)), values))


def solve_batched(images: torch.Tensor, keep: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Solve all (image, mask) pairs at once on the images' device. Each stops by itself. See `impute` for arguments."""
    n, masks, height, width = keep.shape
    levels = _levels(keep.reshape(n * masks, 1, height, width).to(images))
    fine = levels[0]
    values = images.repeat_interleave(masks, 0) * fine.known
    largest = values.abs().amax((-2, -1), keepdim=True)
    kept = keep.reshape(n * masks, 1, height, width)
    high = values.where(kept, -largest).amax((-2, -1), keepdim=True)
    low = values.where(kept, largest).amin((-2, -1), keepdim=True)
    tolerance = TOLERANCE[images.dtype]
    limit = torch.maximum(tolerance * (high - low), 1e-2 * tolerance * largest)

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    x = fine.removed * _batched_guess(levels, values)
    r = fine.removed * fine.residual(x + values)
    p, q = torch.zeros_like(x), torch.zeros_like(x)
    step, rz = torch.zeros_like(limit), torch.ones_like(limit)
    running = high > low  # otherwise the constant guess is the solution
    for _ in range(MAX_ITERATIONS[images.dtype]):
        z = _batched_cycle(levels, r)
        stop = running & (z.abs().amax((-2, -1), keepdim=True) <= limit)
        x = x + stop * z
        running = running & ~stop
        if not bool(running.any()):
            break
        beta = step * dot(z, q) / rz
        rz = dot(z, r)
        p = z + beta * p
        q = fine.removed * fine.residual(p)
        curvature = -dot(p, q)
        running = running & (rz > 0) & (curvature > 0)
        rz = rz.where(running, 1)
        step = torch.where(running, dot(p, r) / curvature.where(running, 1), 0)
        x, r = x + step * p, r + step * q
    if noise is not None:
        x = x + fine.removed * noise.repeat_interleave(masks, 0)
    return (values + x).view(n, masks, -1, height, width)
