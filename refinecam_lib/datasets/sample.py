"""A labelled image with its ground truth, and batches of them."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ..errors import InputError

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
"""File endings of pictures."""
UNREADABLE = (OSError, SyntaxError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a broken picture: SyntaxError for png chunks, struct.error for Exif."""

PREDICTED = -1
"""The target of an image without a label: the class that the network predicts is explained."""


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    image: float32 (3,H,W) in [0,1], not normalised; target: class index or PREDICTED; id: unique in its data set and split;
    mask: bool (H,W), True on the object, or None where no ground truth is known; info: columns to keep in results.
    without: the same picture without its object, as `image`, or None where nobody knows it; for exact removal.
    """

    image: torch.Tensor
    target: int
    id: str
    mask: torch.Tensor | None = None
    info: dict[str, str] = field(default_factory=dict)
    without: torch.Tensor | None = None


def tensor_of(pixels: np.ndarray) -> torch.Tensor:
    """Turn bytes (H,W,3) into an image: float32 (3,H,W) in [0,1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255


class Samples(Protocol):
    """A data set: what has a length and gives the Sample of a number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def id_of(samples: Samples, index: int) -> str:
    """The id that tells sample `index` from all others, from the data set's own `id_of` where it has one.

    Such a data set need not draw or read the sample. Photographs add their file's hash: "n01440764_tench@0f3a...".
    """
    own = getattr(samples, "id_of", None)
    return own(index) if own else samples[index].id


def batch_of(samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Images (B,3,H,W) in [0,1], targets (B,) and masks (B,H,W), or None where a sample has none.

    Raises InputError where the samples differ in size or have another number of channels than three.
    """
    shapes = {tuple(sample.image.shape) for sample in samples}
    if len(shapes) != 1 or next(iter(shapes))[0] != 3:
        raise InputError(f"images of shapes {sorted(shapes)} in one batch; allowed: one shape (3, H, W)")
    for sample in samples:
        if sample.mask is not None and sample.mask.shape != sample.image.shape[1:]:
            raise InputError(
                f"sample {sample.id!r} has a mask {tuple(sample.mask.shape)} for an image {tuple(sample.image.shape)}; "
                "allowed: a mask of the image's height and width"
            )
    masks = [sample.mask for sample in samples if sample.mask is not None]
    return (
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.target for sample in samples]),
        torch.stack(masks) if len(masks) == len(samples) else None,
    )
