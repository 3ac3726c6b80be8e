"""A labelled image with its ground truth, and batches of them."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
"""The target of an image without a label. The class that the network predicts is explained."""


@dataclass(frozen=True)
class Sample:
    """One image of a data set."""

    image: torch.Tensor
    """float32 (3,H,W) in [0,1], not normalised."""
    target: int
    """The class index, or PREDICTED."""
    id: str
    """Unique in its data set and split."""
    mask: torch.Tensor | None = None
    """bool (H,W), True on the object. None if the ground truth is unknown."""
    info: dict[str, str] = field(default_factory=dict)
    """Columns to keep in the results."""
    without: torch.Tensor | None = None
    """The image without its object, for exact removal. None if unknown."""


def files_below(root: Path) -> list[Path]:
    """Return all files below a folder, sorted. Linked folders are followed, except back into a folder around them."""

    def walk(folder: Path, around: frozenset[Path]) -> Iterator[Path]:
        for path in folder.iterdir():
            if path.is_file():
                yield path
            elif path.is_dir() and (real := path.resolve()) not in around:
                yield from walk(path, around | {real})

    return sorted(walk(root, frozenset({root.resolve()})))


def pictures_below(root: Path) -> list[Path]:
    """Return all pictures below a folder, sorted, also in linked folders."""
    return [path for path in files_below(root) if path.suffix.lower() in PICTURES]


def tensor_of(pixels: np.ndarray) -> torch.Tensor:
    """Turn bytes (H,W,3) into an image: float32 (3,H,W) in [0,1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255


class Samples(Protocol):
    """A data set: a length, and a Sample for each index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def id_of(samples: Samples, index: int) -> str:
    """Return the id of a sample, from the data set's `id_of` if it has one. Then the sample need not be drawn or read.

    Photographs add the hash of their file: "n01440764_tench@0f3a...".
    """
    own = getattr(samples, "id_of", None)
    return own(index) if own else samples[index].id


def batch_of(samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Stack samples into a batch.

    Returns:
        Images (B,3,H,W) in [0,1], targets (B,) and masks (B,H,W). Masks are None if a sample has none.

    Raises:
        InputError: The samples differ in size, or an image does not have three channels.
    """
    shapes = {tuple(sample.image.shape) for sample in samples}
    if len(shapes) != 1 or next(iter(shapes))[0] != 3:
        raise InputError(f"Expected images of one shape (3, H, W) in a batch, got {sorted(shapes)}.")
    for sample in samples:
        if sample.mask is not None and sample.mask.shape != sample.image.shape[1:]:
            raise InputError(
                f"Sample {sample.id!r} has a mask {tuple(sample.mask.shape)} for an image {tuple(sample.image.shape)}. "
                "Give the mask the image's height and width."
            )
    masks = [sample.mask for sample in samples if sample.mask is not None]
    return (
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.target for sample in samples]),
        torch.stack(masks) if len(masks) == len(samples) else None,
    )
