"""Hints: a network learns a trained one's maps besides the classes (FitNets, Romero et al. 2015, arXiv 1412.6550).

The class is one number an image; maps say at every place what is there. ConvNeXt and Swin, which start from patches of
4 x 4 pixels, sit at chance for thousands of images without them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks.layers import is_channels_last, to_nchw
from ..networks.loading import load_model, normalise
from ..networks.zoo import ModelSpec, spec_of

PROBE = 64
"""Side of the images that tell the channels of layers."""


class Hints(nn.Module):
    """How far a student's maps are from those of a shipped teacher; its own weights, the heads, fit one to the other.

    teacher: the name of a shipped network for the shapes; student, spec: the network that learns, on its device. Raises
    InputError as `load_model` does.
    """

    def __init__(self, teacher: str, student: nn.Module, spec: ModelSpec, device: torch.device):
        super().__init__()
        self.spec, self.teacher = spec_of(teacher), load_model(teacher, device=device)
        images = torch.zeros(1, 3, PROBE, PROBE, device=device)
        with torch.no_grad(), maps_of(student.eval(), spec.layers) as maps:
            student(images)
        pairs = zip(maps, self.known(images), strict=True)
        self.heads = nn.ModuleList(_head(own.shape[1], known.shape[1]) for own, known in pairs).to(device)

    def known(self, images: Tensor) -> list[Tensor]:
        """The teacher's maps (B,C,h,w) of images (B,3,H,W) in [0,1]."""
        with torch.no_grad(), maps_of(self.teacher, self.spec.layers) as maps:
            self.teacher(normalise(images, self.spec))
        return maps

    def forward(self, maps: Sequence[Tensor], images: Tensor) -> Tensor:
        """Mean squared error of the teacher's maps, standardised over the batch, by a linear function of the student's.

        maps: the student's, (B,C,h,w) a layer; images (B,3,H,W) in [0,1]. 1 or more where nothing is known, 0 is best.
        """
        errors = []
        for head, own, known in zip(self.heads, maps, self.known(images), strict=True):
            wanted = functional.adaptive_avg_pool2d(known.float(), (own.shape[2], own.shape[3]))
            wanted = functional.batch_norm(wanted, None, None, training=True)
            errors.append(functional.mse_loss(head(own).float(), wanted))
        return torch.stack(errors).mean()


def _head(channels: int, wanted: int) -> nn.Module:
    last = nn.Conv2d(channels, wanted, 1)
    nn.init.zeros_(last.weight)  # begins by knowing nothing
    return nn.Sequential(nn.BatchNorm2d(channels), last)


@contextmanager
def maps_of(model: nn.Module, layers: Sequence[str]) -> Iterator[list[Tensor]]:
    """The maps (B,C,h,w) of `layers` in the one forward pass inside, part of its graph; no hook outlives the context."""
    maps: list[Tensor] = []
    size: list[tuple[int, int]] = []
    channels_last = is_channels_last(model)

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        size.append(cast(tuple[int, int], tuple(inputs[0].shape[2:])))

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        maps.append(to_nchw(output, size[-1], None, channels_last))

    handles = [model.register_forward_pre_hook(enter)]
    handles += [model.get_submodule(name).register_forward_hook(leave) for name in layers]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
