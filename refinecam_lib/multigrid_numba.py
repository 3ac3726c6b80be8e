"""The imputation systems of `imputation`, solved by compiled code on the CPU, one mask and channel at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit

from .multigrid_torch import MAX_ITERATIONS, TOLERANCE


def _compiled(function: Callable) -> Callable:
    """Compile without the GIL; kept on disk for the next process where any cache folder can be written."""
    options: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to: compile once in each process
        return njit(**options)(function)


def solve_on_cpu(images: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
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
    u, inv, known, sink = (
        _at(ops[REMOVED], levels, 0),
        _at(ops[INVERSE], levels, 0),
        _at(ops[KNOWN], levels, 0),
        _at(ops[SINK], levels, 0),
    )
    right, below, se, sw = (
        _at(ops[RIGHT], levels, 0),
        _at(ops[BELOW], levels, 0),
        _at(ops[BELOW_RIGHT], levels, 0),
        _at(ops[BELOW_LEFT], levels, 0),
    )
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
        right, below, se, sw = (
            _at(ops[RIGHT], levels, k),
            _at(ops[BELOW], levels, k),
            _at(ops[BELOW_RIGHT], levels, k),
            _at(ops[BELOW_LEFT], levels, k),
        )
        for row in (REMOVED, KNOWN, SINK):
            _sum_cells(_at(ops[row], levels, k - 1), _at(ops[row], levels, k), levels[k, 0], levels[k, 1])
        u, inv, sink, total = (
            _at(ops[REMOVED], levels, k),
            _at(ops[INVERSE], levels, k),
            _at(ops[SINK], levels, k),
            _at(ops[DIAGONAL], levels, k),
        )
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
    """a.b and a.c, in one pass."""
    ab, ac = a.dtype.type(0), a.dtype.type(0)
    for i in range(len(a)):
        ab += a[i] * b[i]
        ac += a[i] * c[i]
    return ab, ac


@_compiled
def _within(a, limit):
    """Whether no |a| is larger than the limit; far from the solution that's known after a few elements."""
    for i in range(len(a)):
        if abs(a[i]) > limit:
            return False
    return True


@_compiled
def _conjugate_gradients(x, r, limit, max_iterations, p, q, z, spare, levels, ops):
    """Solve A x = b from the residual r of a first x, both on the finest level, until a cycle changes x by <= limit."""
    z0, r0 = _flat(z, levels, 0), _flat(r, levels, 0)
    step, rz_before = x.dtype.type(0), x.dtype.type(1)
    p[:] = 0
    for _ in range(max_iterations):
        _cycle(z, r, spare, levels, ops)
        if _within(z0, limit):
            for i in range(len(x)):
                x[i] += z0[i]
            return
        rz, qz = _products(z0, r0, q)
        # The cycle isn't symmetric, hence the flexible form: beta = z.(r - r_before) / rz_before.
        beta = step * qz / rz_before
        for i in range(len(x)):
            p[i] = z0[i] + beta * p[i]
        _fine_residual(_at(p, levels, 0), None, _at(ops[REMOVED], levels, 0), _at(q, levels, 0))  # q = -A p
        rp, pq = _products(p, r0, q)
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
