"""ROAD's linear imputation: every removed pixel becomes the weighted mean of its neighbours (Rong et al. 2022).

For each removed pixel p, sum over its neighbours n inside the image of w_n (x_p - x_n) = 0, with w = 2 for the four
edge neighbours and 1 for the four corner ones (1/6 and 1/12, scaled by 12). With S = [1 2 1] in both directions, zeros
outside the image, that is s_i s_j x - S x = 0, where s = 4 inside, 3 on a border: no matrix is ever stored.

Both solvers are conjugate gradients preconditioned by one multigrid V-cycle (Jacobi smoothing), started from a pyramid
fill. What makes the cycle work on scattered masks is the coarse operator: the weights between two cells are added up,
and so is each cell's weight towards known pixels, kept as a sink on the diagonal. `_solve` is compiled for the CPU, one
mask and channel at a time; `_solve_batched` is the same in torch, for other devices.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit

from .checks import InputError

# Largest last correction over the range of the known values, at which a system counts as solved.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
MAX_ITERATIONS = {torch.float32: 30, torch.float64: 100}


def impute(images: torch.Tensor, keep: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Fill the removed pixels of each image, once for each of its M masks, by noisy linear imputation (ROAD).

    images (N,C,H,W) float32 or float64, normalised; keep (N,M,H,W) bool, True = kept; noise (N,C,H,W), added to removed
    pixels only, the same for every mask of an image. Returns (N,M,C,H,W), same device and type: kept pixels unchanged,
    removed ones within about 1e-4 of the range of the kept values of the exact solution (1e-9 in float64).
    The first call on a machine compiles, some 15 s; later processes find the result on disk.
    A mask that keeps nothing gives 0, the mean colour of normalised images, plus noise.
    Raises InputError on other shapes or types, and on images that are not finite.
    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", 2022.
    """
    if images.ndim != 4 or keep.ndim != 4 or keep.shape[0] != images.shape[0] or keep.shape[2:] != images.shape[2:]:
        raise InputError(
            f"images {tuple(images.shape)} with keep {tuple(keep.shape)}; allowed: (N, C, H, W) with (N, M, H, W)"
        )
    if images.dtype not in TOLERANCE or keep.dtype != torch.bool:
        raise InputError(f"images {images.dtype} with keep {keep.dtype}; allowed: float32 or float64 with bool")
    if noise is not None and noise.shape != images.shape:
        raise InputError(f"noise {tuple(noise.shape)} for images {tuple(images.shape)}; allowed: the same shape")
    if not bool(torch.isfinite(images).all()):
        raise InputError("images hold NaN or infinite values; allowed: finite values")
    images, keep = images.detach(), keep.to(images.device)
    n, channels, height, width = images.shape
    masks = keep.shape[1]
    if keep.numel() == 0:
        return images.new_empty(n, masks, channels, height, width)
    solve = _solve_on_cpu if images.device.type == "cpu" else _solve_batched
    filled = solve(images, keep)
    if noise is not None:
        filled += noise[:, None].to(filled) * ~keep[:, :, None]
    return filled


# --------------------------------------------------------------------------------------------------- compiled, CPU


def _compiled(function: Callable) -> Callable:
    """Compile without the GIL; kept on disk for the next process where any cache folder can be written."""
    options = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to: compile once in each process
        return njit(**options)(function)


def _solve_on_cpu(images: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The compiled solver over all (image, mask) pairs, on as many threads as torch uses."""
    n, channels, height, width = images.shape
    filled = torch.empty(n, keep.shape[1], channels, height, width, dtype=images.dtype)
    arrays = images.contiguous().numpy(), keep.contiguous().numpy(), filled.numpy()
    limits = TOLERANCE[images.dtype], MAX_ITERATIONS[images.dtype]
    threads = min(torch.get_num_threads(), n * keep.shape[1])
    if threads == 1:
        _solve(*arrays, *limits, 0, 1)
        return filled
    # Python threads rather than numba's: its work queue aborts when two threads of the user's program call it.
    with ThreadPoolExecutor(threads) as pool:
        for job in [pool.submit(_solve, *arrays, *limits, first, threads) for first in range(threads)]:
            job.result()
    return filled


# Rows of the array of operators: one flat buffer each, all levels.
REMOVED, INVERSE, KNOWN, DIAGONAL, SINK, RIGHT, BELOW, BELOW_RIGHT, BELOW_LEFT = range(9)


@_compiled
def _grids(height, width):
    """Each level's height, width and offset in a flat buffer, fine to coarse; the last row's offset is its length."""
    levels = np.zeros((64, 3), np.int64)
    levels[0] = height, width, 0
    last = 0
    while True:
        height, width, offset = levels[last]
        # One zero row and column before, two after, so that odd sizes coarsen like even ones.
        offset += (height + 3) * (width + 3)
        last += 1
        levels[last] = (height + 1) // 2, (width + 1) // 2, offset
        if max(height, width) == 1:
            return levels[: last + 1]


@_compiled
def _flat(buffer, levels, k):
    """Level k's part of a flat buffer."""
    return buffer[levels[k, 2] : levels[k + 1, 2]]


@_compiled
def _at(buffer, levels, k):
    """Level k's padded grid in a flat buffer."""
    return buffer[levels[k, 2] : levels[k + 1, 2]].reshape(levels[k, 0] + 3, levels[k, 1] + 3)


@_compiled
def _build(keep, levels, ops):
    """Fill all levels' operators from one mask; weights are those among removed pixels, the sink that to known ones."""
    height, width = keep.shape
    u, inv, known, sink = (_at(ops[REMOVED], levels, 0), _at(ops[INVERSE], levels, 0),
                           _at(ops[KNOWN], levels, 0), _at(ops[SINK], levels, 0))
    right, below, se, sw = (_at(ops[RIGHT], levels, 0), _at(ops[BELOW], levels, 0),
                            _at(ops[BELOW_RIGHT], levels, 0), _at(ops[BELOW_LEFT], levels, 0))
    for i in range(height):
        for j in range(width):
            known[i + 1, j + 1] = keep[i, j]
            u[i + 1, j + 1] = not keep[i, j]
    for i in range(1, height + 1):
        for j in range(1, width + 1):
            own = (2 + (i > 1) + (i < height)) * (2 + (j > 1) + (j < width)) - 4
            edges = u[i - 1, j] + u[i + 1, j] + u[i, j - 1] + u[i, j + 1]
            corners = u[i - 1, j - 1] + u[i - 1, j + 1] + u[i + 1, j - 1] + u[i + 1, j + 1]
            sink[i, j] = u[i, j] * (own - edges - edges - corners)
            inv[i, j] = u[i, j] / max(own, 1)
            right[i, j] = u[i, j] * (u[i, j + 1] + u[i, j + 1])
            below[i, j] = u[i, j] * (u[i + 1, j] + u[i + 1, j])
            se[i, j] = u[i, j] * u[i + 1, j + 1]
            sw[i, j] = u[i, j] * u[i + 1, j - 1]
    for k in range(1, len(levels) - 1):
        fine_right, fine_below, fine_se, fine_sw = right, below, se, sw
        # Cells are twice as far apart, which halves the weights between them; /3 as the corners' share is kept whole.
        scale = ops.dtype.type(1 / 3 if min(levels[k, 0], levels[k, 1]) > 1 else 1 / 2)
        right, below, se, sw = (_at(ops[RIGHT], levels, k), _at(ops[BELOW], levels, k),
                                _at(ops[BELOW_RIGHT], levels, k), _at(ops[BELOW_LEFT], levels, k))
        for row in (REMOVED, KNOWN, SINK):
            _sum_cells(_at(ops[row], levels, k - 1), _at(ops[row], levels, k), levels[k, 0], levels[k, 1])
        u, inv, sink, total = (_at(ops[REMOVED], levels, k), _at(ops[INVERSE], levels, k),
                               _at(ops[SINK], levels, k), _at(ops[DIAGONAL], levels, k))
        for i in range(1, levels[k, 0] + 1):
            for j in range(1, levels[k, 1] + 1):
                y, x = 2 * i - 1, 2 * j - 1
                u[i, j] = u[i, j] > 0
                right[i, j] = scale * (
                    fine_right[y, x + 1] + fine_right[y + 1, x + 1] + fine_se[y, x + 1] + fine_sw[y, x + 2]
                )
                below[i, j] = scale * (
                    fine_below[y + 1, x] + fine_below[y + 1, x + 1] + fine_se[y + 1, x] + fine_sw[y + 1, x + 1]
                )
                se[i, j] = fine_se[y + 1, x + 1]
                sw[i, j] = fine_sw[y + 1, x]
        for i in range(1, levels[k, 0] + 1):
            for j in range(1, levels[k, 1] + 1):
                straight = right[i, j] + right[i, j - 1] + below[i, j] + below[i - 1, j]
                total[i, j] = sink[i, j] + straight + se[i, j] + se[i - 1, j - 1] + sw[i, j] + sw[i - 1, j + 1]
                inv[i, j] = 1 / total[i, j] if total[i, j] > 0 else 0
    for i in range(ops.shape[1]):
        ops[KNOWN, i] = 1 / ops[KNOWN, i] if ops[KNOWN, i] > 0 else 0  # from here on: one over the number of known


@_compiled
def _fine_residual(x, b, factor, out):
    """out = factor * (b - (s_i s_j x - S x)) on the image's own grid; b = None means 0."""
    height, width = x.shape[0] - 3, x.shape[1] - 3
    sums, own = np.empty(width + 2, x.dtype), np.empty(width, x.dtype)
    for i in range(1, height + 1):
        if i < 3 or i == height:
            for j in range(width):
                own[j] = (2 + (i > 1) + (i < height)) * (2 + (j > 0) + (j < width - 1))
        up, here, down = x[i - 1], x[i], x[i + 1]
        for j in range(width + 2):
            sums[j] = up[j] + here[j] + here[j] + down[j]
        left, mid, right, centre, f, o = sums, sums[1:], sums[2:], here[1:], factor[i, 1:], out[i, 1:]
        if b is None:
            for j in range(width):
                o[j] = f[j] * (left[j] + mid[j] + mid[j] + right[j] - own[j] * centre[j])
        else:
            rhs = b[i, 1:]
            for j in range(width):
                o[j] = f[j] * (rhs[j] + left[j] + mid[j] + mid[j] + right[j] - own[j] * centre[j])


@_compiled
def _coarse_residual(x, b, factor, out, diagonal, right, below, se, sw, stride):
    """out = factor * (b - A x) with stored weights, over the flat padded grid, in two loops: one wouldn't vectorise."""
    first, n = stride + 1, len(x) - 2 * stride - 2
    up, here, down = x[first - stride - 1 :], x[first - 1 :], x[first + stride - 1 :]
    below_up, se_up, sw_up = below[first - stride :], se[first - stride - 1 :], sw[first - stride + 1 :]
    below, se, sw, o = below[first:], se[first:], sw[first:], out[first:]
    for j in range(n):
        o[j] = (below[j] * down[j + 1] + se[j] * down[j + 2] + sw[j] * down[j]
                + below_up[j] * up[j + 1] + se_up[j] * up[j] + sw_up[j] * up[j + 2])
    rhs, g, f, w = b[first:], diagonal[first:], factor[first:], right[first - 1 :]
    for j in range(n):
        o[j] = f[j] * (rhs[j] - g[j] * here[j + 1] + w[j + 1] * here[j + 2] + w[j] * here[j] + o[j])


@_compiled
def _sum_cells(fine, coarse, height, width):
    """coarse = sums of 2x2 cells of fine."""
    for i in range(1, height + 1):
        top, bottom, o = fine[2 * i - 1, 1:], fine[2 * i, 1:], coarse[i, 1:]
        for j in range(width):
            o[j] = top[2 * j] + top[2 * j + 1] + bottom[2 * j] + bottom[2 * j + 1]


@_compiled
def _add_interpolated(coarse, fine, factor, height, width):
    """fine += factor * bilinear upsampling of coarse; factor is 0 beyond an odd edge."""
    near, far = coarse.dtype.type(0.75), coarse.dtype.type(0.25)
    row = np.empty(width + 2, coarse.dtype)
    for i in range(2 * height):
        here = coarse[i // 2 + 1, 1:]
        other = coarse[min(max(i // 2 + i % 2 * 2, 1), height), 1:]
        for j in range(width):
            row[j + 1] = near * here[j] + far * other[j]
        row[0], row[width + 1] = row[1], row[width]
        f, o = factor[i + 1, 1:], fine[i + 1, 1:]
        for j in range(width):
            o[2 * j] += f[2 * j] * (near * row[j + 1] + far * row[j])
            o[2 * j + 1] += f[2 * j + 1] * (near * row[j + 1] + far * row[j + 2])


@_compiled
def _residual(k, x, b, factor, out, levels, ops):
    """out = factor * (b - A x) on level k."""
    if k == 0:
        _fine_residual(_at(x, levels, 0), _at(b, levels, 0), _at(ops[factor], levels, 0), _at(out, levels, 0))
    else:
        _coarse_residual(
            _flat(x, levels, k), _flat(b, levels, k), _flat(ops[factor], levels, k), _flat(out, levels, k),
            _flat(ops[DIAGONAL], levels, k), _flat(ops[RIGHT], levels, k), _flat(ops[BELOW], levels, k),
            _flat(ops[BELOW_RIGHT], levels, k), _flat(ops[BELOW_LEFT], levels, k), levels[k, 1] + 3,
        )


@_compiled
def _smooth(k, x, b, spare, levels, ops):
    """One Jacobi sweep on level k."""
    _residual(k, x, b, INVERSE, spare, levels, ops)
    x, spare = _flat(x, levels, k), _flat(spare, levels, k)
    for i in range(len(x)):
        x[i] += spare[i]


@_compiled
def _interpolate(k, x, levels, ops):
    """Add level k + 1 of x to its level k."""
    coarse, fine, factor = _at(x, levels, k + 1), _at(x, levels, k), _at(ops[REMOVED], levels, k)
    _add_interpolated(coarse, fine, factor, levels[k + 1, 0], levels[k + 1, 1])


@_compiled
def _cycle(x, b, spare, levels, ops):
    """x ~ A^-1 b on the finest level, by one V-cycle."""
    last = len(levels) - 2
    for k in range(last + 1):
        inverse, rhs, start = _flat(ops[INVERSE], levels, k), _flat(b, levels, k), _flat(x, levels, k)
        for i in range(len(start)):
            start[i] = inverse[i] * rhs[i]
        if k < last:
            if k > 0:
                _smooth(k, x, b, spare, levels, ops)
            _residual(k, x, b, REMOVED, spare, levels, ops)
            _sum_cells(_at(spare, levels, k), _at(b, levels, k + 1), levels[k + 1, 0], levels[k + 1, 1])
    for k in range(last - 1, -1, -1):
        _interpolate(k, x, levels, ops)
        for _ in range(1 if k == 0 else 2):
            _smooth(k, x, b, spare, levels, ops)


@_compiled
def _first_guess(x, values, levels, ops):
    """x on the finest level: the removed pixels from known means of ever larger cells, interpolated."""
    last = len(levels) - 2
    for k in range(last):
        _sum_cells(_at(values, levels, k), _at(values, levels, k + 1), levels[k + 1, 0], levels[k + 1, 1])
    for k in range(last, -1, -1):
        x[levels[k, 2] : levels[k + 1, 2]] = 0
        if k < last:
            _interpolate(k, x, levels, ops)
        if k > 0:
            fill, v, known = _flat(x, levels, k), _flat(values, levels, k), _flat(ops[KNOWN], levels, k)
            for i in range(len(fill)):
                fill[i] = v[i] * known[i] if known[i] > 0 else fill[i]


@_compiled
def _products(a, b, c):
    """a.b, a.c and the largest |a|, in one pass."""
    ab, ac, largest = a.dtype.type(0), a.dtype.type(0), a.dtype.type(0)
    for i in range(len(a)):
        ab += a[i] * b[i]
        ac += a[i] * c[i]
        largest = max(largest, abs(a[i]))
    return ab, ac, largest


@_compiled
def _conjugate_gradients(x, r, limit, max_iterations, p, q, z, spare, levels, ops):
    """Solve A x = b from the residual r of a first x, both on the finest level, until a cycle changes x by <= limit."""
    z0, r0 = _flat(z, levels, 0), _flat(r, levels, 0)
    step, rz_before = x.dtype.type(0), x.dtype.type(1)
    p[:] = 0
    for _ in range(max_iterations):
        _cycle(z, r, spare, levels, ops)
        rz, qz, change = _products(z0, r0, q)
        if change <= limit:
            for i in range(len(x)):
                x[i] += z0[i]
            return
        # The cycle isn't symmetric, hence the flexible form: beta = z.(r - r_before) / rz_before.
        beta = step * qz / rz_before
        for i in range(len(x)):
            p[i] = z0[i] + beta * p[i]
        _fine_residual(_at(p, levels, 0), None, _at(ops[REMOVED], levels, 0), _at(q, levels, 0))  # q = -A p
        rp, pq, _ = _products(p, r0, q)
        if not (rz > 0 and pq < 0):  # solved to the last place before the limit
            return
        step, rz_before = -rp / pq, rz
        for i in range(len(x)):
            x[i] += step * p[i]
            r0[i] += step * q[i]


@_compiled
def _solve(images, keep, filled, tolerance, max_iterations, first, step):
    """Fill systems first, first + step, ... of the N*M: images (N,C,H,W), keep (N,M,H,W) -> filled (N,M,C,H,W)."""
    _, masks, channels, height, width = filled.shape
    levels = _grids(height, width)
    ops = np.zeros((9, levels[-1, 2]), images.dtype)
    z, r, spare = np.zeros_like(ops[0]), np.zeros_like(ops[0]), np.zeros_like(ops[0])
    x, p, q = np.zeros_like(z[: levels[1, 2]]), np.zeros_like(z[: levels[1, 2]]), np.zeros_like(z[: levels[1, 2]])
    values, guess, known = _at(spare, levels, 0), _at(x, levels, 0), _at(ops[KNOWN], levels, 0)
    beyond = images.dtype.type(1e30)
    for system in range(first, filled.shape[0] * masks, step):
        _build(keep[system // masks, system % masks], levels, ops)
        for channel in range(channels):
            image, out = images[system // masks, channel], filled[system // masks, system % masks, channel]
            low, high = beyond, -beyond
            for i in range(height):
                given, kept, v = image[i], known[i + 1, 1:], values[i + 1, 1:]
                for j in range(width):
                    v[j] = given[j] * kept[j]
                    low = min(low, given[j] if kept[j] > 0 else beyond)
                    high = max(high, given[j] if kept[j] > 0 else -beyond)
            _first_guess(z, spare, levels, ops)
            for i in range(len(x)):
                x[i] = z[i]
                q[i] = z[i] + spare[i]
            _fine_residual(_at(q, levels, 0), None, _at(ops[REMOVED], levels, 0), _at(r, levels, 0))
            # The floor: rounding leaves corrections of some units in the last place.
            limit = max(tolerance * (high - low), 1e-2 * tolerance * max(abs(low), abs(high)))
            if high > low:  # else the guess, a constant, is the solution
                _conjugate_gradients(x, r, limit, max_iterations, p, q, z, spare, levels, ops)
            for i in range(height):
                given, kept, found, o = image[i], known[i + 1, 1:], guess[i + 1, 1:], out[i]
                for j in range(width):
                    o[j] = given[j] if kept[j] > 0 else found[j]


# ------------------------------------------------------------------------------------------------ torch, any device


def _shifted(t: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """t[i + dy, j + dx], zero outside."""
    height, width = t.shape[-2:]
    return F.pad(t, (1, 1, 1, 1))[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def _weighted_sum(t: torch.Tensor) -> torch.Tensor:
    """S t: [1 2 1] in both directions, zeros outside."""
    t = F.pad(t, (1, 1, 1, 1))
    t = t[..., :-2, :] + 2 * t[..., 1:-1, :] + t[..., 2:, :]
    return t[..., :-2] + 2 * t[..., 1:-1] + t[..., 2:]


def _cell_sums(t: torch.Tensor) -> torch.Tensor:
    """Sums of 2x2 cells, zeros beyond an odd edge."""
    return 4 * F.avg_pool2d(F.pad(t, (0, t.shape[-1] % 2, 0, t.shape[-2] % 2)), 2)


def _upsampled(coarse: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    up = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return up[..., : like.shape[-2], : like.shape[-1]]


@dataclass(frozen=True)
class _Level:
    """Operators of one grid; `weights` is empty on the finest."""

    removed: torch.Tensor
    inverse: torch.Tensor
    diagonal: torch.Tensor
    known: torch.Tensor
    weights: tuple[tuple[int, int, torch.Tensor], ...]

    def residual(self, x: torch.Tensor, b: torch.Tensor | float = 0.0) -> torch.Tensor:
        """b - A x, to be masked by the caller."""
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
    """All grids' operators from masks (K,1,H,W) of 0 and 1, fine to coarse; see `_build`."""
    removed = 1 - keep
    own = _weighted_sum(torch.ones_like(keep[:1]))
    levels = [_Level(removed, removed / (own - 4).clamp_min(1), own, keep, ())]
    sink = removed * (own - _weighted_sum(removed))
    right, below = 2 * removed * _shifted(removed, 0, 1), 2 * removed * _shifted(removed, 1, 0)
    se, sw = removed * _shifted(removed, 1, 1), removed * _shifted(removed, 1, -1)
    known = keep
    while max(removed.shape[-2:]) > 1:
        odd = (0, removed.shape[-1] % 2, 0, removed.shape[-2] % 2)
        scale = 1 / 3 if min(removed.shape[-2:]) > 2 else 1 / 2
        right, below, se, sw, next_sw = (F.pad(t, odd) for t in (right, below, se, sw, _shifted(sw, 0, 1)))
        # The weights that cross a cell's right side, lower side, and its two lower corners.
        right, below, se, sw = (
            (right[..., ::2, 1::2] + right[..., 1::2, 1::2] + (se + next_sw)[..., ::2, 1::2]) * scale,
            (below[..., 1::2, ::2] + below[..., 1::2, 1::2] + se[..., 1::2, ::2] + sw[..., 1::2, 1::2]) * scale,
            se[..., 1::2, 1::2],
            sw[..., 1::2, ::2],
        )
        removed, known, sink = (_cell_sums(removed) > 0).to(keep), _cell_sums(known), _cell_sums(sink)
        weights = tuple(
            (sign * dy, sign * dx, weight if sign > 0 else _shifted(weight, -dy, -dx))
            for dy, dx, weight in ((0, 1, right), (1, 0, below), (1, 1, se), (1, -1, sw))
            for sign in (1, -1)
        )
        diagonal = sink + sum(weight for _, _, weight in weights)
        inverse = torch.where(diagonal > 0, removed / diagonal.where(diagonal > 0, 1), 0)
        levels.append(_Level(removed, inverse, diagonal, known, weights))
    return levels


def _batched_cycle(levels: list[_Level], b: torch.Tensor) -> torch.Tensor:
    """x ~ A^-1 b by one V-cycle; see `_cycle`."""
    level, coarser = levels[0], levels[1:]
    x = level.inverse * b
    if not coarser:
        return x
    if level.weights:
        x = level.smooth(x, b)
    x = x + level.removed * _upsampled(_batched_cycle(coarser, _cell_sums(level.removed * level.residual(x, b))), x)
    for _ in range(2 if level.weights else 1):
        x = level.smooth(x, b)
    return x


def _batched_guess(levels: list[_Level], values: torch.Tensor) -> torch.Tensor:
    """Known means where there are known pixels, else interpolated from the next coarser grid; see `_first_guess`."""
    level, coarser = levels[0], levels[1:]
    means = values / level.known.clamp_min(1)
    if not coarser:
        return means
    return torch.where(level.known > 0, means, _upsampled(_batched_guess(coarser, _cell_sums(values)), values))


def _solve_batched(images: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """All (image, mask) pairs at once, on the images' device; each stops by itself, whatever else is in the batch."""
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
    running = high > low  # else the guess, a constant, is the solution
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
    return (values + x).view(n, masks, -1, height, width)
