"""ROAD's linear imputation: every removed pixel becomes the weighted mean of its neighbours (Rong et al. 2022).

For each removed pixel p, sum over its neighbours n inside the image of w_n (x_p - x_n) = 0, with w = 2 for the four
edge neighbours and 1 for the four corner ones (1/6 and 1/12, scaled by 12). With S = [1 2 1] in both directions, zeros
outside the image, that is s_i s_j x - S x = 0, where s = 4 inside, 3 on a border: no matrix is ever stored.

Both solvers are conjugate gradients preconditioned by one multigrid V-cycle (Jacobi smoothing), started from a pyramid
fill. What makes the cycle work on scattered masks is the coarse operator: the weights between two cells are added up,
and so is each cell's weight towards known pixels, kept as a sink on the diagonal. `multigrid_numba` is compiled for the
CPU, one mask and channel at a time; `multigrid_torch` is the same in batches, for other devices.
"""

import torch

from ..errors import InputError


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
    from .batched import solve_batched
    from .cpu import TOLERANCE, solve_on_cpu  # numba takes a while to import

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
    if 1 in (height, width):  # Jacobi's sweeps leave a line's pixels alternating; two equal lines have its solution
        twice = (1, 1, 1 + (height == 1), 1 + (width == 1))
        noise = noise if noise is None else noise.repeat(twice)
        return impute(images.repeat(twice), keep.repeat(twice), noise)[..., :height, :width]
    solve = solve_on_cpu if images.device.type == "cpu" else solve_batched
    return solve(images, keep, None if noise is None else noise.detach().to(images))
