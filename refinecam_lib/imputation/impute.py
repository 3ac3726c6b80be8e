"""ROAD's linear imputation: every removed pixel becomes the weighted mean of its neighbours.

For each removed pixel p, the sum of w_n (x_p - x_n) over its neighbours n inside the image is 0. The weight w is 2 for
the four edge neighbours and 1 for the four corner neighbours (1/6 and 1/12, times 12). Let S be [1 2 1] in both
directions with zeros outside the image. Then s_i s_j x - S x = 0, where s is 4 inside and 3 on a border. No matrix is
stored.

Both solvers are conjugate gradients, preconditioned by one multigrid V-cycle with Jacobi smoothing. They start from a
pyramid fill. On a coarse grid the weights between two cells are added up. So are each cell's weights towards known
pixels, a sink on the diagonal, which makes the cycle work on scattered masks. `cpu` is compiled and solves one mask and channel
at a time. `batched` does the same in batches on other devices.

Source: Rong et al. 2022, https://arxiv.org/abs/2202.00449
"""

import torch

from ..errors import InputError


def impute(images: torch.Tensor, keep: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Fill the removed pixels of each image, once for each of its M masks, by noisy linear imputation.

    The first call on a machine compiles for about 15 s. Later processes use the cached code.

    Args:
        images: Normalised images (N,C,H,W), float32 or float64.
        keep: Masks (N,M,H,W), bool, True where a pixel stays.
        noise: (N,C,H,W), added to removed pixels. All masks of an image share it.

    Returns:
        (N,M,C,H,W) on the images' device and in their type. Kept pixels are unchanged. Removed pixels differ from the
        exact solution by about 1e-4 of the range of the kept values (1e-9 in float64). A mask that keeps nothing gives
        0, the mean colour, plus noise.

    Raises:
        InputError: A shape or type is wrong, or an image is not finite.
    """
    from .batched import solve_batched
    from .cpu import TOLERANCE, solve_on_cpu  # numba is slow to import

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
    if 1 in (height, width):  # Jacobi sweeps alternate on a line of pixels; two equal lines have the same solution
        twice = (1, 1, 1 + (height == 1), 1 + (width == 1))
        noise = noise if noise is None else noise.repeat(twice)
        return impute(images.repeat(twice), keep.repeat(twice), noise)[..., :height, :width]
    solve = solve_on_cpu if images.device.type == "cpu" else solve_batched
    return solve(images, keep, None if noise is None else noise.detach().to(images))
