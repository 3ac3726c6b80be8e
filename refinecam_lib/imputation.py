"""ROAD's linear imputation: every removed pixel becomes the weighted mean of its neighbours (Rong et al. 2022).

For each removed pixel p, sum over its neighbours n inside the image of w_n (x_p - x_n) = 0, with w = 2 for the four edge
neighbours and 1 for the four corner ones (1/6 and 1/12, scaled by 12). With S = [1 2 1] in both directions and zeros
outside the image, that is s_i s_j x - S x = 0, where s = 4 inside, 3 on a border: no matrix is ever stored.

Both solvers are conjugate gradients preconditioned by one multigrid V-cycle (Jacobi smoothing), started from a pyramid
fill. What makes the cycle work on scattered masks is the coarse operator: the weights between two cells are added up, and
so is each cell's weight towards known pixels, kept as a sink on the diagonal. `_solve` is compiled for the CPU, one
mask and channel at a time; `_solve_batched` is the same in torch, for other devices.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit

from refinecam_lib.checks import InputError

# Largest last correction over the range of the known values, at which a system counts as solved.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
MAX_ITERATIONS = {torch.float32: 30, torch.float64: 100}


def impute(images: torch.Tensor, keep: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Fill the removed pixels of each image, once for each of its M masks, by noisy linear imputation (ROAD).

    images (N,C,H,W) float32 or float64, normalised; keep (N,M,H,W) bool, True = kept; noise (N,C,H,W), added to removed
    pixels only, the same for every mask of an image. Returns (N,M,C,H,W), same device and type: kept pixels unchanged,
    removed ones within about 1e-4 of the range of the kept values of the exact solution (1e-9 in float64).
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
def _at(flat, levels, k):
    """Level k's padded grid in a flat buffer."""
    return flat[levels[k, 2] : levels[k + 1, 2]].reshape(levels[k, 0] + 3, levels[k, 1] + 3)


@_compiled
def _build(keep, levels, ops):
    """Fill all levels' operators from one mask; weights are those among removed pixels, the sink that to known ones."""
    third = ops.dtype.type(1 / 3)
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
        fine_right, fine_below = right, below
        fine_se, fine_sw = se, sw
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
                # A cell is twice as wide: 2 edges and 2 corners cross each side, 3 times too stiff for their length.
                right[i, j] = third * (
                    fine_right[y, x + 1] + fine_right[y + 1, x + 1] + fine_se[y, x + 1] + fine_sw[y, x + 2]
                )
                below[i, j] = third * (
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
def _fine_residual(x, b, factor, out, height, width):
    """out = factor * (b - (s_i s_j x - S x)) on the image's own grid."""
    sums, own = np.empty(width + 2, x.dtype), np.empty(width, x.dtype)
    for i in range(1, height + 1):
        if i < 3 or i == height:
            for j in range(width):
                own[j] = (2 + (i > 1) + (i < height)) * (2 + (j > 0) + (j < width - 1))
        up, here, down = x[i - 1, : width + 2], x[i, : width + 2], x[i + 1, : width + 2]
        for j in range(width + 2):
            sums[j] = up[j] + here[j] + here[j] + down[j]
        left, mid, right = sums[:width], sums[1 : width + 1], sums[2:]
        centre, rhs, f, o = here[1:], b[i, 1:], factor[i, 1:], out[i, 1:]
        for j in range(width):
            o[j] = f[j] * (rhs[j] - own[j] * centre[j] + left[j] + mid[j] + mid[j] + right[j])


@_compiled
def _coarse_residual(x, b, factor, out, diagonal, right, below, se, sw, height, width):
    """out = factor * (b - A x) with the level's stored weights; one loop for each weight, so that they vectorise."""
    total = np.empty(width, x.dtype)
    for i in range(1, height + 1):
        rhs, g, x0 = b[i, 1:], diagonal[i, 1:], x[i]
        for j in range(width):
            total[j] = rhs[j] - g[j] * x0[j + 1]
        w = right[i]
        for j in range(width):
            total[j] += w[j + 1] * x0[j + 2] + w[j] * x0[j]
        w, v, xa, xb = below[i], below[i - 1], x[i + 1], x[i - 1]
        for j in range(width):
            total[j] += w[j + 1] * xa[j + 1] + v[j + 1] * xb[j + 1]
        w, v = se[i], se[i - 1]
        for j in range(width):
            total[j] += w[j + 1] * xa[j + 2] + v[j] * xb[j]
        w, v = sw[i], sw[i - 1]
        for j in range(width):
            total[j] += w[j + 1] * xa[j] + v[j + 2] * xb[j + 2]
        f, o = factor[i, 1:], out[i, 1:]
        for j in range(width):
            o[j] = f[j] * total[j]


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
    height, width, _ = levels[k]
    x, b, out, factor = _at(x, levels, k), _at(b, levels, k), _at(out, levels, k), _at(ops[factor], levels, k)
    if k == 0:
        _fine_residual(x, b, factor, out, height, width)
    else:
        diagonal, right, below = _at(ops[DIAGONAL], levels, k), _at(ops[RIGHT], levels, k), _at(ops[BELOW], levels, k)
        se, sw = _at(ops[BELOW_RIGHT], levels, k), _at(ops[BELOW_LEFT], levels, k)
        _coarse_residual(x, b, factor, out, diagonal, right, below, se, sw, height, width)


@_compiled
def _smooth(k, x, b, spare, levels, ops):
    """One Jacobi sweep on level k."""
    _residual(k, x, b, INVERSE, spare, levels, ops)
    for i in range(levels[k, 2], levels[k + 1, 2]):
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
        for i in range(levels[k, 2], levels[k + 1, 2]):
            x[i] = ops[INVERSE, i] * b[i]
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
            for i in range(levels[k, 2], levels[k + 1, 2]):
                x[i] = values[i] * ops[KNOWN, i] if ops[KNOWN, i] > 0 else x[i]


@_compiled
def _dot(a, b):
    total = a.dtype.type(0)
    for i in range(min(len(a), len(b))):
        total += a[i] * b[i]
    return total


@_compiled
def _conjugate_gradients(x, r, limit, max_iterations, p, q, z, spare, levels, ops):
    """Solve A x = b from the residual r of a first x, both on the finest level, until a V-cycle changes x by <= limit."""
    n = len(x)
    zero, step, rz, qz = np.zeros_like(x), x.dtype.type(0), x.dtype.type(1), x.dtype.type(0)
    p[:] = 0
    for _ in range(max_iterations):
        _cycle(z, r, spare, levels, ops)
        change = x.dtype.type(0)
        for i in range(n):
            change = max(change, abs(z[i]))
        if change <= limit:
            for i in range(n):
                x[i] += z[i]
            return
        # The cycle isn't symmetric, hence the flexible form: beta = z.(r - r_old) / (z_old.r_old), r - r_old = step q.
        beta = step * _dot(z, q) / rz
        rz = _dot(z, r)
        for i in range(n):
            p[i] = z[i] + beta * p[i]
        _residual(0, p, zero, REMOVED, q, levels, ops)  # q = -A p
        step = -_dot(p, r) / _dot(p, q)
        for i in range(n):
            x[i] += step * p[i]
            r[i] += step * q[i]


@_compiled
def _solve(images, keep, filled, tolerance, max_iterations, first, step):
    """Fill systems first, first + step, ... of the N*M: images (N,C,H,W), keep (N,M,H,W) -> filled (N,M,C,H,W)."""
    _, masks, channels, height, width = filled.shape
    levels = _grids(height, width)
    ops = np.zeros((9, levels[-1, 2]), images.dtype)
    z, r, spare = np.zeros_like(ops[0]), np.zeros_like(ops[0]), np.zeros_like(ops[0])
    n = levels[1, 2]
    x, p, q, zero = np.zeros_like(z[:n]), np.zeros_like(z[:n]), np.zeros_like(z[:n]), np.zeros_like(z[:n])
    for system in range(first, filled.shape[0] * masks, step):
        mask = keep[system // masks, system % masks]
        _build(mask, levels, ops)
        for channel in range(channels):
            image, out = images[system // masks, channel], filled[system // masks, system % masks, channel]
            values, guess = _at(spare, levels, 0), _at(x, levels, 0)
            low, high, largest = image.max(), image.min(), images.dtype.type(0)
            for i in range(height):
                for j in range(width):
                    values[i + 1, j + 1] = image[i, j] if mask[i, j] else 0
                    if mask[i, j]:
                        low, high = min(low, image[i, j]), max(high, image[i, j])
                        largest = max(largest, abs(image[i, j]))
            _first_guess(z, spare, levels, ops)
            for i in range(n):
                x[i] = z[i]
                q[i] = z[i] + spare[i]
            _residual(0, q, zero, REMOVED, r, levels, ops)
            # Rounding leaves corrections of some units in the last place, also where all known values are equal.
            limit = max(tolerance * (high - low), 1e-2 * tolerance * largest)
            _conjugate_gradients(x, r, limit, max_iterations, p, q, z, spare, levels, ops)
            for i in range(height):
                for j in range(width):
                    out[i, j] = image[i, j] if mask[i, j] else guess[i + 1, j + 1]


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
        # Weights that cross a cell's right side, lower side and lower corners; zeros beyond an odd edge.
        odd = (0, removed.shape[-1] % 2, 0, removed.shape[-2] % 2)
        right, below, se, sw, sw_next = (F.pad(t, odd) for t in (right, below, se, sw, _shifted(sw, 0, 1)))
        right, below, se, sw = (
            (right + se + sw_next)[..., 0::2, 1::2] / 3 + right[..., 1::2, 1::2] / 3,
            (below + se + sw)[..., 1::2, 1::2] / 3 + 0 * below[..., 1::2, 0::2],
            se[..., 1::2, 1::2],
            sw[..., 1::2, 0::2],
        )
        raise NotImplementedError
    return levels
