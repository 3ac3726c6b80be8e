"""Score maps as other papers do: by changing the image and watching the class's probability.

>>> drops = drops_without(capture)                               # 200 forward passes an image, for all of its maps
>>> table = faithfulness(capture, explanation.maps, drops)       # column -> (B,)

Removed pixels show the mean colour of the image.

Sources:
    Deletion and insertion: Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421
    Symmetric relevance gain (SRG): Bluecher et al. 2024, https://arxiv.org/abs/2401.06654
    mu-Fidelity: Bhatt et al. 2020, https://arxiv.org/abs/2005.00631
    Infidelity: Yeh et al. 2019, https://arxiv.org/abs/1901.09392, scaled as by captum's normalize=True

Departs from the papers: SRG is taken at ROAD's four shares. Infidelity counts a removed pixel by its relevance alone, not
by its change of colour.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ..capture import Capture
from ..errors import rng
from ..metrics import pearson
from ..networks.inference import forward, forward_chunk
from ..road import removal_order, road_probabilities

STEPS = 20
"""Forward passes of deletion, and of insertion. The unchanged image needs none."""
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
    inputs, seeds = capture.inputs, capture.seeds_of("road")  # ties break as in ROAD
    grey, ranks = grey_of(inputs), removal_order(maps, seeds)
    morf, lerf = road_probabilities(capture.classifier, inputs, capture.target, maps, seeds, without=grey)
    relevance = relevance_of(maps, subsets_of(capture))
    return {
        "deletion": _area(capture, ranks, inputs, grey),
        "insertion": _area(capture, ranks, blurred(inputs), inputs),
        "srg": (lerf - morf).mean(1),
        "mu_fidelity": pearson(relevance[:, None], drops[:, None]),
        "infidelity": infidelity(relevance[:, :PERTURBED], drops[:, :PERTURBED]),
    }


def drops_without(capture: Capture) -> Tensor:
    """Return how much the target's probability falls without each set of squares, (B,SUBSETS) in float64."""
    drops, grey = [], grey_of(capture.inputs)
    clean = _of_target(capture.logits, capture.target)
    for i, masks in enumerate(subsets_of(capture)):
        removed = torch.where(_pixels(masks, capture.size), grey[i], capture.inputs[i])
        drops.append(clean[i] - _probabilities(capture, removed, [i]))
    return torch.stack(drops)


def grey_of(inputs: Tensor) -> Tensor:
    """Return images of the same size that show the mean colour of each image (B,C,H,W)."""
    return inputs.mean((2, 3), keepdim=True).expand_as(inputs)


def blurred(inputs: Tensor) -> Tensor:
    """Blur images (B,C,H,W), from which insertion starts, see BLUR."""
    sigma = BLUR * inputs.shape[2]
    return gaussian_blur(inputs, [2 * round(2 * sigma) + 1] * 2, [sigma])


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
    rows, columns = (
        torch.nn.functional.one_hot(_square_of(n, maps.device), GRID).double() for n in maps.shape[1:]
    )  # (H,GRID) and (W,GRID)
    squares = torch.einsum("bhw,hg,wk->bgk", maps.double(), rows, columns)
    return torch.einsum("bngk,bgk->bn", subsets.double(), squares)


def _square_of(size: int, device: torch.device) -> Tensor:
    """Return the row of the grid in which each row of pixels lies, (size,)."""
    return torch.arange(size, device=device) * GRID // size


def _pixels(squares: Tensor, size: Sequence[int]) -> Tensor:
    """Return masks (n,GRID,GRID) of squares as masks of pixels (n,1,H,W)."""
    rows, columns = (_square_of(n, squares.device) for n in size)
    return squares[:, rows][:, :, columns][:, None]


def _probabilities(capture: Capture, images: Tensor, numbers: Sequence[int]) -> Tensor:
    """Return the target's probability for images (n,C,H,W): (n,) in float64.

    Args:
        numbers: Their positions in the batch; a single one applies to all.
    """
    logits = torch.cat([forward(capture.classifier, part) for part in images.split(forward_chunk(images.device))])
    return _of_target(logits, capture.target[list(numbers)].expand(len(images)))


def _of_target(logits: Tensor, target: Tensor) -> Tensor:
    """Return the targets' probabilities (n,) in float64. In float32 a confident network's would all be 1."""
    return logits.double().softmax(1).gather(1, target[:, None])[:, 0]


def _area(capture: Capture, ranks: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the area under the probability while pixels of `end` replace those of `start`, the top ranks first.

    One of the two is the images themselves, whose probability is known.
    """
    clean, everyone = _of_target(capture.logits, capture.target), range(len(ranks))
    steps = range(1, STEPS + 1) if start is capture.inputs else range(STEPS)
    swapped = [(ranks < round(step / STEPS * ranks[0].numel()))[:, None] for step in steps]
    curve = [_probabilities(capture, torch.where(each, end, start), everyone) for each in swapped]
    whole = [clean, *curve] if start is capture.inputs else [*curve, clean]
    return torch.trapezoid(torch.stack(whole, 1), dx=1 / STEPS, dim=1)
