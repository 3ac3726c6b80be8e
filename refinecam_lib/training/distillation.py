"""Feature distillation: a student learns the maps of a trained teacher along with the classes.

A class is one number per image. Maps say at every place what is there. Without them ConvNeXt and Swin, which start from
patches of 4x4 pixels, stay at chance for thousands of images.

Source: FitNets, Romero et al. 2015, https://arxiv.org/abs/1412.6550
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks.hooks import hooked
from ..networks.layout import layer_map
from ..networks.loading import load_model, normalise
from ..networks.zoo import ModelSpec, spec_of


class Distillation(nn.Module):
    """The distance between a student's maps and those of a shipped teacher.

    Its own weights are linear heads, which bring the student's channels to the teacher's.

    Args:
        teacher: Name of a shipped network for the shapes.
        student: The network that learns, on `device`.
        spec: The student's specification.
        device: Where the heads and the teacher are put.

    Raises:
        InputError: The teacher is unknown or its checkpoint is not whole.
    """

    def __init__(self, teacher: str, student: nn.Module, spec: ModelSpec, device: torch.device):
        super().__init__()
        self.spec, self.teacher = spec_of(teacher), load_model(teacher, device=device)
        images = torch.zeros(1, 3, 64, 64, device=device)  # only to count channels
        with torch.no_grad(), maps_of(student.eval(), spec.layers) as maps:
            student(images)
        pairs = zip(maps, self.teacher_maps(images), strict=True)
        self.heads = nn.ModuleList(_head(own.shape[1], wanted.shape[1]) for own, wanted in pairs).to(device)

    def teacher_maps(self, images: Tensor) -> list[Tensor]:
        """Return the teacher's maps (B,C,h,w) of images (B,3,H,W) in [0,1]."""
        with torch.no_grad(), maps_of(self.teacher, self.spec.layers) as maps:
            self.teacher(normalise(images, self.spec))
        return maps

    def forward(self, maps: Sequence[Tensor], images: Tensor) -> Tensor:
        """Compute the mean squared error between the heads' outputs and the teacher's standardised maps.

        Args:
            maps: The student's maps (B,C,h,w), one per layer.
            images: (B,3,H,W) in [0,1].

        Returns:
            A scalar. 0 is best, and about 1 is chance.
        """
        errors = []
        for head, own, wanted in zip(self.heads, maps, self.teacher_maps(images), strict=True):
            wanted = functional.adaptive_avg_pool2d(wanted.float(), (own.shape[2], own.shape[3]))
            wanted = functional.batch_norm(wanted, None, None, training=True)
            errors.append(functional.mse_loss(head(own).float(), wanted))
        return torch.stack(errors).mean()


def _head(channels: int, wanted: int) -> nn.Module:
    last = nn.Conv2d(channels, wanted, 1)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.BatchNorm2d(channels), last)


@contextmanager
def maps_of(model: nn.Module, layers: Sequence[str]) -> Iterator[list[Tensor]]:
    """Record the maps (B,C,h,w) of `layers` in the forward pass inside, attached to its graph.

    No hook outlives the context.
    """
    maps: list[Tensor] = []
    size: list[tuple[int, int]] = []

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        size.append(cast(tuple[int, int], tuple(inputs[0].shape[2:])))

    def leave(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        maps.append(layer_map(model, name, output, size[-1]).to(output.dtype))

    handles = [model.register_forward_pre_hook(enter)]
    handles += [model.get_submodule(name).register_forward_hook(partial(leave, name)) for name in layers]
    with hooked(handles):
        yield maps
