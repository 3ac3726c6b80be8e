"""Solve the systems of `impute` on the CPU by compiled code, one mask and channel at a time.

It is one module, because numba's cache of compiled code notices changes of its own file only.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}
"""A system is solved when the last correction is at most this share of the known values' range."""
MAX_ITERATIONS = {torch.float32: 30, torch.float64: 100}
SINK_LEFT = 0.8
"""Factor of a coarse cell's weight towards known pixels, because its centre is farther from them. Found by trial."""
RELAXATION = 1.25
"""Over-relaxation of Jacobi sweeps on coarse grids, except on a line of cells, where it diverges. Found by trial."""
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
ROWS = 8
"""Rows of the finest grid that are processed together, so that they stay in the fastest cache."""

_inlined = njit(inline="always", **OPTIONS)


def _compiled(function: Callable) -> Callable:
    """Compile without the GIL. The code is cached on disk if a cache folder can be written."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no such folder
        return njit(**OPTIONS)(function)


def solve_on_cpu(images: torch.Tensor, keep: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Solve all (image, mask) pairs, on as many threads as torch uses. See `impute` for the arguments."""
    n, channels, height, width = images.shape
    noise = torch.zeros_like(images) if noise is None else noise
    filled = torch.empty(n, keep.shape[1], channels, height, width, dtype=images.dtype)
    arrays = images.contiguous().numpy(), keep.contiguous().numpy(), noise.contiguous().numpy(), filled.numpy()
    limits = TOLERANCE[images.dtype], MAX_ITERATIONS[images.dtype]
    threads = min(torch.get_num_threads(), n * keep.shape[1])
    if threads == 1:
        _solve(*arrays, *limits, 0, 1)
        return filled
    # Not numba's threads: its work queue aborts if two threads of the user's program call it.
    with ThreadPoolExecutor(threads) as pool:
        for job in [pool.submit(_solve, *arrays, *limits, first, threads) for first in range(threads)]:
            job.result()
    return filled


# The rows of the array of operators. Each is one flat buffer for all levels.
REMOVED, INVERSE, KNOWN, DIAGONAL, SINK, RIGHT, BELOW, BELOW_RIGHT, BELOW_LEFT = range(9)


@_compiled
def _grids(height, width):
    """Return each level's height, width and offset in a flat buffer, fine to coarse. The last offset is its length."""
    levels = np.zeros((64, 3), np.int64)
    levels[0] = height, width, 0
    last = 0
    while True:
        height, width, offset = levels[last]
        # One row and column of zeros before and two after, so odd sizes coarsen like even ones.
        offset += (height + 3) * (width + 3)
        last += 1
        levels[last] = (height + 1) // 2, (width + 1) // 2, offset
        if max(height, width) == 1:
            return levels[: last + 1]


@_compiled
def _flat(buffer, levels, k):
    """Return level k of a flat buffer."""
    return buffer[levels[k, 2] : levels[k + 1, 2]]


@_compiled
def _at(buffer, levels, k):
    """Return level k of a flat buffer as a padded grid."""
    return buffer[levels[k, 2] : levels[k + 1, 2]].reshape(levels[k, 0] + 3, levels[k, 1] + 3)


@_compiled
def _build(keep, levels, ops):
    """Fill the operators of all levels from one mask: weights among removed pixels, and the sink towards known ones."""
    height, width = keep.shape
    u, inv = _at(ops[REMOVED], levels, 0), _at(ops[INVERSE], levels, 0)
    known, sink = _at(ops[KNOWN], levels, 0), _at(ops[SINK], levels, 0)
    right, below = _at(ops[RIGHT], levels, 0), _at(ops[BELOW], levels, 0)
    se, sw = _at(ops[BELOW_RIGHT], levels, 0), _at(ops[BELOW_LEFT], levels, 0)
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
        # Cells are twice as far from each other, which halves the weights. The corners' are kept, so it is a third.
        line = min(levels[k, 0], levels[k, 1]) == 1
        scale = ops.dtype.type(1 / 2 if line else 1 / 3)
        relaxation, left = ops.dtype.type(1 if line else RELAXATION), ops.dtype.type(SINK_LEFT)
        right, below = _at(ops[RIGHT], levels, k), _at(ops[BELOW], levels, k)
        se, sw = _at(ops[BELOW_RIGHT], levels, k), _at(ops[BELOW_LEFT], levels, k)
        for row in (REMOVED, KNOWN, SINK):
            _sum_cells(_at(ops[row], levels, k - 1), _at(ops[row], levels, k), levels[k, 0], levels[k, 1])
        u, inv = _at(ops[REMOVED], levels, k), _at(ops[INVERSE], levels, k)
        sink, total = _at(ops[SINK], levels, k), _at(ops[DIAGONAL], levels, k)
        for i in range(1, levels[k, 0] + 1):
            for j in range(1, levels[k, 1] + 1):
                y, x = 2 * i - 1, 2 * j - 1
                u[i, j] = u[i, j] > 0
                sink[i, j] *= left
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
                inv[i, j] = relaxation / total[i, j] if total[i, j] > 0 else 0
    for i in range(ops.shape[1]):
        ops[KNOWN, i] = 1 / ops[KNOWN, i] if ops[KNOWN, i] > 0 else 0  # now one over the number of known pixels


@_inlined
def _stencil(x, first, n, own, scale, sums, out):
    """out = S x - scale * own * x for n elements of x from `first` on, on the finest grid, flat and padded."""
    stride = len(own) // ROWS
    up, here, down = x[first - stride - 1 :], x[first - 1 :], x[first + stride - 1 :]
    for j in range(n + 2):
        sums[j] = up[j] + here[j] + here[j] + down[j]
    left, mid, right, centre = sums, sums[1:], sums[2:], x[first:]
    for j in range(n):
        out[j] = left[j] + mid[j] + mid[j] + right[j] - scale * own[j] * centre[j]


@_inlined
def _rows_alike(i, height):
    """Return how many rows from i on have the same s, at most ROWS. The first and the last row have their own."""
    return 1 if i == 1 or i == height else min(ROWS, height - i)


@_compiled
def _descend(b, inverse, x, coarse, ones, sums, rest):
    """x = inverse * b, and coarse = sums over cells of the residual, in one pass over the finest grid."""
    stride = len(ones) // ROWS
    height, ready, zero, four = len(x) // stride - 3, stride, x.dtype.type(0), x.dtype.type(4)
    for i in range(1, height + 1, ROWS):
        rows = min(ROWS, height + 1 - i)
        ahead, first = (i + rows + 1) * stride, i * stride + 1
        f, right_side, o = inverse[ready:ahead], b[ready:ahead], x[ready:ahead]
        for j in range(len(o)):
            o[j] = f[j] * right_side[j]
        ready = ahead
        _stencil(
            x, first, rows * stride - 1, ones, four, sums, rest
        )  # b - diagonal * x is 0, so only neighbours are left
        f = inverse[first:]
        for j in range(rows * stride - 1):
            rest[j] = rest[j] if f[j] > 0 else zero
        if rows % 2:
            rest[rows * stride - 1 : (rows + 1) * stride] = 0
        for k in range(0, rows, 2):
            _sum_row(rest[k * stride :], rest[(k + 1) * stride :], coarse[(i + k + 1) // 2, 1:], coarse.shape[1] - 3)


@_compiled
def _ascend(coarse, inverse, b, q, x, z, along, sums, rest, wide):
    """x += interpolated coarse and z = x smoothed once, in one pass over the finest grid. Return z.b and z.q."""
    stride = len(along) // ROWS
    height, ready, i = len(x) // stride - 3, 0, 1
    zb, zq = x.dtype.type(0), x.dtype.type(0)
    grids = x.reshape(-1, stride), inverse.reshape(-1, stride)
    while i <= height:
        rows = _rows_alike(i, height)
        upto = min(i + rows, height)
        _add_interpolated(coarse, grids[0], grids[1], ready, upto, wide)
        ready, first, n = upto, i * stride + 1, rows * stride - 1
        _stencil(x, first, n, along, x.dtype.type(2 + (i > 1) + (i < height)), sums, rest)
        here, f, right_side, before, o = x[first:], inverse[first:], b[first:], q[first:], z[first:]
        for j in range(n):
            value = here[j] + f[j] * (right_side[j] + rest[j])
            zb += value * right_side[j]
            zq += value * before[j]
            o[j] = value
        i += rows
    return zb, zq


@_compiled
def _advance(p, beta, z, r, inverse, q, along, sums, rest):
    """p = beta p + z and q = -A p, in one pass over the finest grid. Return p.r and p.q."""
    stride = len(along) // ROWS
    height, ready, i = len(p) // stride - 3, stride, 1
    zero = p.dtype.type(0)
    pr, pq = zero, zero
    while i <= height:
        rows = _rows_alike(i, height)
        ahead, first, n = (i + rows + 1) * stride, i * stride + 1, rows * stride - 1
        new, o = z[ready:ahead], p[ready:ahead]
        for j in range(len(o)):
            o[j] = beta * o[j] + new[j]
        ready = ahead
        _stencil(p, first, n, along, p.dtype.type(2 + (i > 1) + (i < height)), sums, rest)
        here, f, left, o = p[first:], inverse[first:], r[first:], q[first:]
        for j in range(n):
            value = rest[j] if f[j] > 0 else zero
            pr += here[j] * left[j]
            pq += here[j] * value
            o[j] = value
        i += rows
    return pr, pq


@_compiled
def _coarse_residual(x, b, factor, out, diagonal, right, below, se, sw, stride):
    """out = factor * (b - A x) with stored weights, on a flat padded grid. A single loop would not be vectorised."""
    first, n = stride + 1, len(x) - 2 * stride - 2
    up, here, down = x[first - stride - 1 :], x[first - 1 :], x[first + stride - 1 :]
    below_up, se_up, sw_up = below[first - stride :], se[first - stride - 1 :], sw[first - stride + 1 :]
    below, se, sw, o = below[first:], se[first:], sw[first:], out[first:]
    for j in range(n):
        o[j] = (
            below[j] * down[j + 1]
            + se[j] * down[j + 2]
            + sw[j] * down[j]
            + below_up[j] * up[j + 1]
            + se_up[j] * up[j]
            + sw_up[j] * up[j + 2]
        )
    rhs, g, f, w = b[first:], diagonal[first:], factor[first:], right[first - 1 :]
    for j in range(n):
        o[j] = f[j] * (rhs[j] - g[j] * here[j + 1] + w[j + 1] * here[j + 2] + w[j] * here[j] + o[j])


@_inlined
def _sum_row(top, bottom, out, width):
    """out = sums of 2x2 cells of two rows."""
    for j in range(width):
        out[j] = top[2 * j] + top[2 * j + 1] + bottom[2 * j] + bottom[2 * j + 1]


@_compiled
def _sum_cells(fine, coarse, height, width):
    """coarse = sums of 2x2 cells of fine."""
    for i in range(1, height + 1):
        _sum_row(fine[2 * i - 1, 1:], fine[2 * i, 1:], coarse[i, 1:], width)


@_compiled
def _add_interpolated(coarse, fine, inverse, first, last, wide):
    """Add the bilinear upsampling of coarse to rows first..last-1 of fine, where inverse > 0.

    wide: Two rows of coarse, upsampled along the row. Calls for successive rows share them.
    """
    height, width = coarse.shape[0] - 3, coarse.shape[1] - 3
    near, far, zero = coarse.dtype.type(0.75), coarse.dtype.type(0.25), coarse.dtype.type(0)
    for i in range(first, last):
        here = i // 2
        if i == 0 or (i % 2 and here + 1 < height):
            row = here + i % 2
            given, o = coarse[row + 1, 1:], wide[row % 2]
            for j in range(width - 1):
                o[2 * j + 1] = near * given[j] + far * given[j + 1]
                o[2 * j + 2] = far * given[j] + near * given[j + 1]
            o[0], o[2 * width - 1] = given[0], given[width - 1]
        other = min(max(here + i % 2 * 2 - 1, 0), height - 1)
        a, b, f, o = wide[here % 2], wide[other % 2], inverse[i + 1, 1:], fine[i + 1, 1:]
        for j in range(2 * width):
            o[j] += near * a[j] + far * b[j] if f[j] > 0 else zero


@_compiled
def _residual(k, x, b, factor, out, levels, ops):
    """out = factor * (b - A x) on level k > 0."""
    _coarse_residual(
        _flat(x, levels, k),
        _flat(b, levels, k),
        _flat(ops[factor], levels, k),
        _flat(out, levels, k),
        _flat(ops[DIAGONAL], levels, k),
        _flat(ops[RIGHT], levels, k),
        _flat(ops[BELOW], levels, k),
        _flat(ops[BELOW_RIGHT], levels, k),
        _flat(ops[BELOW_LEFT], levels, k),
        levels[k, 1] + 3,
    )


@_compiled
def _smooth(k, x, b, spare, levels, ops):
    """Do one Jacobi sweep on level k > 0."""
    _residual(k, x, b, INVERSE, spare, levels, ops)
    x, spare = _flat(x, levels, k), _flat(spare, levels, k)
    for i in range(len(x)):
        x[i] += spare[i]


@_compiled
def _interpolate(k, x, levels, ops, wide):
    """Add level k + 1 of x to its level k."""
    _add_interpolated(_at(x, levels, k + 1), _at(x, levels, k), _at(ops[INVERSE], levels, k), 0, levels[k, 0], wide)


@_compiled
def _cycle(x, b, q, z, spare, levels, ops, own, scratch):
    """z ~ A^-1 b on the finest level by one V-cycle. Return z.b and z.q."""
    inverse, start, right_side = _flat(ops[INVERSE], levels, 0), _flat(x, levels, 0), _flat(b, levels, 0)
    _descend(right_side, inverse, start, _at(b, levels, 1), own[0], scratch[0], scratch[1])
    last = len(levels) - 2
    for k in range(1, last + 1):
        f, given, o = _flat(ops[INVERSE], levels, k), _flat(b, levels, k), _flat(x, levels, k)
        for i in range(len(o)):
            o[i] = f[i] * given[i]
        if k < last:
            _residual(k, x, b, REMOVED, spare, levels, ops)
            _sum_cells(_at(spare, levels, k), _at(b, levels, k + 1), levels[k + 1, 0], levels[k + 1, 1])
    for k in range(last - 1, 0, -1):
        _interpolate(k, x, levels, ops, scratch[2:])
        _smooth(k, x, b, spare, levels, ops)
    return _ascend(_at(x, levels, 1), inverse, right_side, q, start, z, own[1], scratch[0], scratch[1], scratch[2:])


@_compiled
def _first_guess(x, values, levels, ops, wide):
    """Fill removed pixels with known means of ever larger cells, interpolated: x on the finest level."""
    last = len(levels) - 2
    for k in range(last):
        _sum_cells(_at(values, levels, k), _at(values, levels, k + 1), levels[k + 1, 0], levels[k + 1, 1])
    for k in range(last, -1, -1):
        x[levels[k, 2] : levels[k + 1, 2]] = 0
        if k < last:
            _interpolate(k, x, levels, ops, wide)
        if k > 0:
            fill, v, known = _flat(x, levels, k), _flat(values, levels, k), _flat(ops[KNOWN], levels, k)
            for i in range(len(fill)):
                fill[i] = v[i] * known[i] if known[i] > 0 else fill[i]


@_compiled
def _within(a, limit):
    """Return whether no |a| exceeds the limit. Far from the solution the first part decides."""
    for first in range(0, len(a), 1024):
        part, beyond = a[first : first + 1024], 0
        for i in range(len(part)):  # a count is vectorised, an early exit is not
            beyond += abs(part[i]) > limit
        if beyond:
            return False
    return True


@_compiled
def _conjugate_gradients(x, r, limit, max_iterations, p, q, z, start, spare, levels, ops, own, scratch):
    """Solve A x = b from a first x and its residual r, on the finest level, until a cycle changes x by <= limit."""
    r0, inverse = _flat(r, levels, 0), _flat(ops[INVERSE], levels, 0)
    step, rz_before = x.dtype.type(0), x.dtype.type(1)
    for _ in range(max_iterations):
        rz, qz = _cycle(start, r, q, z, spare, levels, ops, own, scratch)
        if _within(z, limit):
            for i in range(len(x)):
                x[i] += z[i]
            return
        # The cycle is not symmetric, so use flexible conjugate gradients: beta = z.(r - r_before) / rz_before.
        rp, pq = _advance(p, step * qz / rz_before, z, r0, inverse, q, own[1], scratch[0], scratch[1])
        if not (rz > 0 and pq < 0):  # solved to machine precision
            return
        step, rz_before = -rp / pq, rz
        for i in range(len(x)):
            x[i] += step * p[i]
            r0[i] += step * q[i]


@_compiled
def _solve(images, keep, noise, filled, tolerance, max_iterations, first, step):
    """Fill systems first, first + step, ... of N*M: images, noise (N,C,H,W), keep (N,M,H,W) -> filled (N,M,C,H,W)."""
    _, masks, channels, height, width = filled.shape
    levels = _grids(height, width)
    stride, finest = width + 3, levels[1, 2]
    own = np.ones((2, ROWS * stride), images.dtype)  # 1, and s along a row
    for j in range(ROWS * stride):
        own[1, j] = 2 + (j % stride > 0) + (j % stride < width - 1)
    scratch = np.zeros((4, (ROWS + 1) * stride), images.dtype)  # sums, residuals and two upsampled rows
    ops = np.zeros((9, levels[-1, 2]), images.dtype)
    start, r, spare = np.zeros_like(ops[0]), np.zeros_like(ops[0]), np.zeros_like(ops[0])
    fine = r[:finest]
    x, z, p, q = np.zeros_like(fine), np.zeros_like(fine), np.zeros_like(fine), np.zeros_like(fine)
    values, guess, known = _at(spare, levels, 0), _at(x, levels, 0), _at(ops[KNOWN], levels, 0)
    beyond, zero = images.dtype.type(1e30), images.dtype.type(0)
    least, most = np.empty(width, images.dtype), np.empty(width, images.dtype)
    for system in range(first, filled.shape[0] * masks, step):
        _build(keep[system // masks, system % masks], levels, ops)
        for channel in range(channels):
            image, out = images[system // masks, channel], filled[system // masks, system % masks, channel]
            least[:], most[:] = beyond, -beyond
            for i in range(height):
                given, kept, v = image[i], known[i + 1, 1:], values[i + 1, 1:]
                for j in range(width):
                    v[j] = given[j] * kept[j]
                for j in range(width):
                    least[j] = min(least[j], given[j] if kept[j] > 0 else beyond)
                    most[j] = max(most[j], given[j] if kept[j] > 0 else -beyond)
            low, high = least.min(), most.max()
            _first_guess(start, spare, levels, ops, scratch[2:])
            for i in range(finest):
                x[i] = start[i]
                z[i] = start[i] + spare[i]
            p[:] = 0
            q[:] = 0
            _advance(p, zero, z, z, _flat(ops[INVERSE], levels, 0), _flat(r, levels, 0), own[1], scratch[0], scratch[1])
            # Rounding leaves corrections of some units in the last place, so the limit has a lower bound.
            limit = max(tolerance * (high - low), 1e-2 * tolerance * max(abs(low), abs(high)))
            if high > low:  # otherwise the constant guess is the solution
                _conjugate_gradients(x, r, limit, max_iterations, p, q, z, start, spare, levels, ops, own, scratch)
            for i in range(height):
                given, kept, found, o = image[i], known[i + 1, 1:], guess[i + 1, 1:], out[i]
                added = noise[system // masks, channel, i]
                for j in range(width):
                    o[j] = given[j] if kept[j] > 0 else found[j] + added[j]
