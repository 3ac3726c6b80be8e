"""Draw what lies behind a scene: a procedural crowd, a crop of a photograph, or a mosaic of small crops.

>>> backdrop("mosaic", "test", rng("example")).pixels.shape
(224, 224, 3)

The splits share no crowd and no photograph. The bytes are equal on every machine: Pillow decodes and resizes in integers.
"""

from collections.abc import Collection
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import one_of, seed_of
from .crowd import crowd_scene
from .cutouts import FOLDER

SIZE = 224
"""Side of a backdrop in pixels."""
KINDS = ("crowd", "photograph", "mosaic")
CROWDS = {"train": 1000, "validation": 200, "test": 300}
"""Number of crowds of each split. Their seeds differ from each other and from those of the shapes."""
PHOTOGRAPHS = {
    "train": ("aitzgorri", "friends", "picture_1a", "sunset"),
    "validation": ("picture_0b",),
    "test": ("life", "picosdeeuropa", "wine"),
}
"""The photographs of each split. They show nothing of any class. Mosaics are made of them too."""
CELLS = (3, 7)
"""Half-open range of a mosaic's rows and columns."""
GAINS = (212, 301)
"""Half-open range of the factor of each channel, in 256ths."""


class Backdrop(NamedTuple):
    """A background and where it comes from."""

    source: str
    pixels: np.ndarray
    """uint8 (224,224,3)."""


EMPTY = Backdrop("", np.zeros((SIZE, SIZE, 3), np.uint8))
"""Black, before the background is drawn."""


@lru_cache(maxsize=max(CROWDS.values()))
def crowd(split: str, index: int) -> np.ndarray:
    """Draw crowd number `index` of a split, uint8 (256,256,3)."""
    return crowd_scene(seed_of("scenes", "crowd", split, index))


@lru_cache
def photograph(name: str) -> Image.Image:
    """Read a photograph."""
    with Image.open(FOLDER / "photographs" / f"{name}.jpg") as opened:
        return opened.convert("RGB")


def backdrop(kind: str, split: str, generator: np.random.Generator) -> Backdrop:
    """Draw a backdrop.

    Args:
        kind: A name in KINDS.
        split: train, validation or test.
        generator: Decides the crop, flips and colours.

    Raises:
        InputError: The kind or the split is unknown.
    """
    one_of("split", split, PHOTOGRAPHS)
    if one_of("background", kind, KINDS) == "crowd":
        index = int(generator.integers(CROWDS[split]))
        whole = crowd(split, index)
        top, left = generator.integers(len(whole) - SIZE + 1, size=2)
        source, pixels = f"crowd-{split}-{index}", whole[top : top + SIZE, left : left + SIZE]
    elif kind == "photograph":
        source = one(generator, PHOTOGRAPHS[split])
        pixels = _crop(photograph(source), generator, (SIZE, 500), (SIZE, SIZE))
    else:
        source, pixels = "mosaic", _mosaic(split, generator)
    flips, gains = generator.integers(2, size=2), generator.integers(*GAINS, size=3)
    turned = pixels[:: 1 - 2 * flips[0] if kind == "mosaic" else 1, :: 1 - 2 * flips[1]]
    return Backdrop(source, (turned * gains.astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))


def one(generator: np.random.Generator, names: Collection[str]) -> str:
    return tuple(names)[int(generator.integers(len(names)))]


def _crop(
    whole: Image.Image, generator: np.random.Generator, sides: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Cut a random square with a side in `sides` out of a picture and resize it to `size` (width, height)."""
    side = min(int(generator.integers(*sides)), *whole.size)
    left, top = (int(generator.integers(length - side + 1)) for length in whole.size)
    return np.asarray(whole.crop((left, top, left + side, top + side)).resize(size, Image.Resampling.BILINEAR))


def _mosaic(split: str, generator: np.random.Generator) -> np.ndarray:
    """Fill a grid of cells of random sizes with small crops of the split's photographs."""
    pixels = np.empty((SIZE, SIZE, 3), np.uint8)
    rows, columns = (_cuts(generator) for _ in range(2))
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            whole = photograph(one(generator, PHOTOGRAPHS[split]))
            pixels[top:bottom, left:right] = _crop(whole, generator, (40, 180), (right - left, bottom - top))
    return pixels


def _cuts(generator: np.random.Generator) -> list[int]:
    """Cut the side into 3 to 6 parts. Return the borders, 0 and 224 included."""
    parts = int(generator.integers(*CELLS))
    moved = generator.integers(-SIZE // (4 * parts), SIZE // (4 * parts) + 1, size=parts - 1)
    return [0, *(SIZE * (k + 1) // parts + int(moved[k]) for k in range(parts - 1)), SIZE]
