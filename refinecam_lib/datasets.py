"""A labelled image with its ground truth."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    image: float32 (3,H,W) in [0,1], not normalised; target: class index; id: unique in its data set and split;
    mask: bool (H,W), True on the object, or None where no ground truth is known; info: columns to keep in results.
    """

    image: torch.Tensor
    target: int
    id: str
    mask: torch.Tensor | None = None
    info: dict[str, str] = field(default_factory=dict)
