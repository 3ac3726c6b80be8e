"""Score maps as other papers do: by changing the image and watching the class's probability.

>>> drops = drops_without(capture)                               # 200 forward passes an image, for all of its maps
>>> table = faithfulness(capture, explanation.maps, drops)       # column -> (B,)

Removed pixels show the mean colour of the image. Deletion and insertion: Petsiuk et al. 2018. Symmetric relevance gain
(SRG): Bluecher et al. 2024. mu-Fidelity: Bhatt et al. 2020. Infidelity: Yeh et al. 2019, normalised as in captum.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ..capture import Capture
from ..errors import rng
from ..networks.inference import forward, forward_chunk
from ..road import removal_order, road_probabilities

STEPS = 20
"""How often deletion and insertion look at the probability, beside the whole image."""
BLUR = 0.05
"""Insertion starts from the image under a Gaussian blur of this share of its height, 11 of 224 pixels."""
GRID = 9
"""mu-Fidelity removes squares of a grid of this many rows and columns."""
SUBSETS, SHARE = 200, 0.2
"""How many sets of squares are drawn, and the share of the squares in each."""
PERTURBED = 50
"""Infidelity takes the first of these sets."""


def faithfulness(capture: Capture, maps: Tensor, drops: Tensor) -> dict[str, Tensor]:
    """Score finite maps (B,H,W) in [0,1] by 48 forward passes each: (B,) per column.

    Args:
        capture: The images.
        maps: Their maps.
        drops: The result of `drops_without`.

    Returns:
        deletion: mean probability while the most relevant pixels are removed, in [0,1]; lower is better.
        insertion: mean probability while they are put into the blurred image, in [0,1]; higher is better.
        srg: mean of LeRF - MoRF at ROAD's shares without imputation, in [-1,1]; higher is better.
        mu_fidelity: correlation of a set's relevance with the drop in probability, in [-1,1]; higher is better.
        infidelity: mean squared error of the scaled relevance as a prediction of that drop; lower is better.
    """
    inputs, seeds = capture.inputs, capture.seeds_of("faithfulness")
    grey, ranks = grey_of(inputs), removal_order(maps, seeds)
    morf, lerf = road_probabilities(capture.classifier, inputs, capture.target, maps, seeds, without=grey)
    relevance = relevance_of(maps, subsets_of(capture))
    return {
        "deletion": _area(capture, ranks, inputs, grey),
        "insertion": _area(capture, ranks, blurred(inputs), inputs),
        "srg": (lerf - morf).mean(1),
        "mu_fidelity": correlation(relevance, drops),
        "infidelity": infidelity(relevance[:, :PERTURBED], drops[:, :PERTURBED]),
    }


def drops_without(capture: Capture) -> Tensor:
    """Return how much the target's probability falls without each set of squares, (B,SUBSETS) in float64."""
    drops, grey = [], grey_of(capture.inputs)
    for i, masks in enumerate(subsets_of(capture)):
        removed = torch.where(_pixels(masks, capture.size), grey[i], capture.inputs[i])
        drops.append(capture.probability[i].double() - _probabilities(capture, removed, [i]))
    return torch.stack(drops)


def grey_of(inputs: Tensor) -> Tensor:
    """Return images of the same size that show the mean colour of each image (B,C,H,W)."""
    return inputs.mean((2, 3), keepdim=True).expand_as(inputs)


def blurred(inputs: Tensor) -> Tensor:
    """Blur images (B,C,H,W), from which insertion starts, see BLUR."""
    sigma = BLUR * inputs.shape[2]
    return gaussian_blur(inputs, [2 * round(2 * sigma) + 1] * 2, [sigma])


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Compute Pearson's r of each pair of rows (B,n): (B,), NaN where a row is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def infidelity(removed: Tensor, drops: Tensor) -> Tensor:
    """Compute mean((beta * removed - drops)^2) over rows (B,n) with the best factor beta: (B,), lower is better."""
    beta = (removed * drops).mean(1) / removed.square().mean(1).clamp_min(1e-300)
    return (beta[:, None] * removed - drops).square().mean(1)


def subsets_of(capture: Capture) -> Tensor:
    """Draw SUBSETS sets of squares for each image: masks (B,SUBSETS,GRID,GRID)."""
    cells = GRID * GRID
    drawn = [rng(seed, "subsets").random((SUBSETS, cells)).argsort(1) for seed in capture.seeds_of("subsets")]
    return (
        torch.from_numpy(np.stack(drawn) < round(SHARE * cells)).view(-1, SUBSETS, GRID, GRID).to(capture.inputs.device)
    )


def relevance_of(maps: Tensor, subsets: Tensor) -> Tensor:
    """Sum maps (B,H,W) over the pixels of each set of squares (B,n,GRID,GRID): (B,n) in float64."""
    return torch.stack(
        [
            _pixels(sets, maps.shape[1:])[:, 0].flatten(1).double() @ each.flatten().double()
            for each, sets in zip(maps, subsets)
        ]
    )


def _pixels(squares: Tensor, size: Sequence[int]) -> Tensor:
    """Return masks (n,GRID,GRID) of squares as masks of pixels (n,1,H,W)."""
    rows, columns = (torch.arange(n, device=squares.device) * GRID // n for n in size)
    return squares[:, rows][:, :, columns][:, None]


def _probabilities(capture: Capture, images: Tensor, numbers: Sequence[int]) -> Tensor:
    """Return the probability of the targets of some images (n,C,H,W): (n,) in float64. One number serves all."""
    target = capture.target[list(numbers)].expand(len(images))
    logits = torch.cat([forward(capture.classifier, part) for part in images.split(forward_chunk(images.device))])
    return logits.softmax(1).gather(1, target[:, None])[:, 0].double()


def _area(capture: Capture, ranks: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the area under the probability while pixels of `end` replace those of `start`, the top ranks first."""
    size, everyone, curve = ranks[0].numel(), range(len(ranks)), []
    for step in range(STEPS + 1):
        if (start if step == 0 else end if step == STEPS else None) is capture.inputs:
            curve.append(capture.probability.double())
        else:
            swapped = (ranks < round(step / STEPS * size))[:, None]
            curve.append(_probabilities(capture, torch.where(swapped, end, start), everyone))
    return torch.trapezoid(torch.stack(curve, 1), dx=1 / STEPS, dim=1)
