"""Maps that explain nothing: the paper's trivial maps, and controls that test the metrics.

Each function returns a list of one raw map (B,H,W), because these maps have no layers.
"""

import torch

from .capture import Capture, Maps
from .errors import InputError, rng


def random_cam(capture: Capture) -> Maps:
    """RandomCAM, trivial: each pixel is uniform in [0,1], drawn from the image's seed."""
    draws = [torch.from_numpy(rng(seed, "RandomCAM").random(capture.size)) for seed in capture.seeds]
    return [torch.stack(draws).to(capture.inputs)]


def half_cam(capture: Capture) -> Maps:
    """HalfCAM, trivial: 0.5 everywhere, except 0 at the first pixel and 1 at the last."""
    maps = torch.full((len(capture.inputs), *capture.size), 0.5).to(capture.inputs)
    maps[:, 0, 0], maps[:, -1, -1] = 0, 1
    return [maps]


def all_ones_cam(capture: Capture) -> Maps:
    """All1sCAM, trivial: 1 everywhere, except 0 at the first pixel."""
    maps = torch.ones((len(capture.inputs), *capture.size)).to(capture.inputs)
    maps[:, 0, 0] = 0
    return [maps]


def centre_gaussian(capture: Capture) -> Maps:
    """A Gaussian at the centre with a standard deviation of a quarter of the side. It ignores image and network."""
    height, width = capture.size
    y, x = (torch.linspace(-2, 2, side, dtype=torch.double) for side in (height, width))
    bump = torch.exp(-(y[:, None] ** 2 + x[None] ** 2) / 2)
    return [bump.to(capture.inputs).expand(len(capture.inputs), -1, -1)]


def edge_detector(capture: Capture) -> Maps:
    """The magnitude of the image's gradient, averaged over channels. It ignores the network."""
    down, right = torch.gradient(capture.inputs.mean(1), dim=(1, 2))
    return [torch.hypot(down, right)]


def ground_truth(capture: Capture) -> Maps:
    """The ground-truth mask as a map. Raises InputError if the capture has none."""
    if capture.truth is None:
        raise InputError(
            "Expected images with ground-truth masks, got none. Pass `truth` to Capture, or use a data set with masks."
        )
    return [capture.truth.to(capture.inputs)]


def inverted_truth(capture: Capture) -> Maps:
    """One minus the ground-truth mask. Raises InputError if the capture has none."""
    return [1 - ground_truth(capture)[0]]
