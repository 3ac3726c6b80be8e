"""Draw the synthetic set: one shape with its exact mask on a crowded background (Section 3.4 of the paper).

>>> sample = SyntheticShapes("test", n=600)[0]
>>> sample.image.shape, sample.mask.shape, sample.info["class"]
(torch.Size([3, 224, 224]), torch.Size([224, 224]), 'empty square')

Item i depends on (split, i, seed) alone and has the same bytes on every machine. Shapes are rasterised in integers,
imputation runs in float64 and is rounded to 8 bits, and Pillow resizes 8-bit images in fixed point.
"""

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from ..errors import InputError, folder, one_of, rng, seed_of
from ..imputation.impute import impute
from .crowd import crowd_scene
from .sample import UNREADABLE, Sample, pictures_below, tensor_of

CLASSES = ("filled circle", "filled square", "filled triangle", "empty circle", "empty square", "empty triangle")
SIZES = {"small": (20, 25), "medium": (40, 50), "large": (80, 100)}
"""Half-open ranges of the shape's size in pixels of the canvas."""
SPLITS = {"train": 2000, "validation": 300, "test": 600}
"""Number of procedural scenes of each split. Their seeds differ, so the splits share no scene."""
BACKGROUNDS = ("raw", "imputed", "mixed")
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Pixels whose Perlin noise in [0,1] lies below the threshold are imputed."""
CANVAS, SIZE = 256, 224
"""Side in pixels when drawn, and of a sample."""
_UNIT = 16  # Corners are rounded to 1/16 px, so the rasterisation needs only integers.


@dataclass(frozen=True)
class Shape:
    """One shape: class name, size and centre in pixels of the canvas, angle in degrees, and RGB colour."""

    name: str
    size: int
    x: int
    y: int
    angle: float
    colour: tuple[int, int, int]


def footprint(shape: Shape) -> np.ndarray:
    """Return the pixels that a shape covers, bool (256,256). Pixel centres are tested in integers.

    `size` is the diameter of a circle, the side of a square, or the base and height of an isosceles triangle. An empty
    shape is a line of size // 5 px along the outline with round corners, as in the published code.
    """
    y, x = np.ogrid[:CANVAS, :CANVAS]
    x, y = (x - shape.x) * _UNIT, (y - shape.y) * _UNIT
    half, band = shape.size * _UNIT // 2, shape.size // 5 * _UNIT // 2
    empty = shape.name.startswith("empty")
    if shape.name.endswith("circle"):
        squared = x * x + y * y
        if empty:
            return (squared <= (half + band) ** 2) & (squared >= (half - band) ** 2)
        return squared <= half * half
    corners = [(0, -half), (half, half), (-half, half)]
    if shape.name.endswith("square"):
        corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
    cosine, sine = math.cos(math.radians(shape.angle)), math.sin(math.radians(shape.angle))
    corners = [(round(u * cosine - v * sine), round(u * sine + v * cosine)) for u, v in corners]
    inside, near = np.ones((CANVAS, CANVAS), bool), np.zeros((CANVAS, CANVAS), bool)
    for (u, v), (next_u, next_v) in zip(corners, corners[1:] + corners[:1], strict=True):
        edge_u, edge_v = next_u - u, next_v - v
        length = edge_u * edge_u + edge_v * edge_v
        across, along = edge_u * (y - v) - edge_v * (x - u), edge_u * (x - u) + edge_v * (y - v)
        inside &= across >= 0
        near |= (across * across <= band * band * length) & (along >= 0) & (along <= length)
        near |= (x - u) ** 2 + (y - v) ** 2 <= band * band
    return near if empty else inside


def render(background: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Draw a shape on a background and resize the image and its mask together.

    Departs from the published code, which crops the image and leaves the mask.

    Args:
        background: uint8 (256,256,3).
        shape: The shape.

    Returns:
        The image, uint8 (224,224,3), resized bilinearly, and the mask, bool (224,224), by nearest neighbour.
    """
    drawn = footprint(shape)
    canvas = background.copy()
    canvas[drawn] = shape.colour
    mask = Image.fromarray(drawn.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    return _shrunk(canvas), np.asarray(mask).astype(bool)


def _shrunk(canvas: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(canvas).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def perlin(generator: np.random.Generator, size: int = CANVAS, periods: int = 8) -> np.ndarray:
    """Draw Perlin noise with `periods` cells per side: float64 (size,size), min-max scaled to [0,1]."""
    angles = generator.uniform(0, 2 * np.pi, (periods + 1, periods + 1))
    # Sines may differ in the last bit between machines, so they are rounded.
    gradient_x, gradient_y = np.round(np.cos(angles) * 4096) / 4096, np.round(np.sin(angles) * 4096) / 4096
    cell, step = np.divmod(np.arange(size) * periods, size)
    step = step / size
    fade = step * step * step * (step * (step * 6 - 15) + 10)

    def corner(down: int, right: int) -> np.ndarray:
        at = np.ix_(cell + down, cell + right)
        return gradient_x[at] * (step[None, :] - right) + gradient_y[at] * (step[:, None] - down)

    top = corner(0, 0) + fade[None, :] * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + fade[None, :] * (corner(1, 1) - corner(1, 0))
    noise = top + fade[:, None] * (bottom - top)
    return (noise - noise.min()) / (noise.max() - noise.min())


def impute_background(background: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Impute a background where Perlin noise lies below a random threshold.

    Networks train on imputed areas, so ROAD does not measure their reaction to unknown textures. The imputation is
    ROAD's, with noise of standard deviation .01 on the imputed pixels. Departs from the paper, whose code imputes every
    background, and before the colour jitter.

    Args:
        background: uint8 (256,256,3). The result has the same shape.
        generator: Source of the threshold and of both kinds of noise.
    """
    threshold = THRESHOLDS[generator.integers(len(THRESHOLDS))]
    keep = torch.from_numpy(perlin(generator) >= threshold)
    noise = torch.from_numpy(generator.standard_normal((1, 3, CANVAS, CANVAS)) * 0.01)
    image = torch.from_numpy(background / 255.0).permute(2, 0, 1)[None]
    filled = impute(image.contiguous(), keep[None, None], noise)[0, 0].clamp(0, 1)
    return (filled * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def augment(background: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Flip a background at random in both directions and jitter its colours: uint8 (256,256,3) to the same.

    Brightness changes by up to .25, then contrast, saturation and hue by up to .15.
    """
    flips, turn = generator.integers(2, size=2), generator.uniform(-1, 1, 4)
    picture = Image.fromarray(np.ascontiguousarray(background[:: 1 - 2 * flips[0], :: 1 - 2 * flips[1]]))
    picture = ImageEnhance.Brightness(picture).enhance(1 + 0.25 * turn[0])
    picture = ImageEnhance.Contrast(picture).enhance(1 + 0.15 * turn[1])
    picture = ImageEnhance.Color(picture).enhance(1 + 0.15 * turn[2])
    hsv = np.array(picture.convert("HSV"))
    hsv[..., 0] += np.uint8(round(0.15 * 255 * turn[3]) % 256)  # hue is a circle, so overflow is right
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def draw_shape(generator: np.random.Generator, shares: Sequence[float] = (1, 1, 1)) -> tuple[int, str, Shape]:
    """Draw a class index, a size name and a shape. Classes are uniform. `shares` weights small, medium and large."""
    target = int(generator.integers(len(CLASSES)))
    ends = np.cumsum(shares) / np.sum(shares)
    size_name = tuple(SIZES)[int(np.searchsorted(ends[:-1], generator.random(), side="right"))]
    low, high = SIZES[size_name]
    # The published margins. Larger shapes come closer to the border.
    first, last = (low, CANVAS - low) if low > CANVAS // 4 else (2 * low, CANVAS - 2 * high)
    x, y = (int(v) for v in generator.integers(first, last, 2))
    red, green, blue = (int(v) for v in generator.integers(0, 256, 3))
    colour = (red, green, blue)
    shape = Shape(CLASSES[target], int(generator.integers(low, high)), x, y, float(generator.uniform(0, 360)), colour)
    return target, size_name, shape


@lru_cache(maxsize=max(SPLITS.values()))
def _crowd(split: str, index: int) -> np.ndarray:
    return crowd_scene(seed_of("synthetic", split, index), CANVAS)


@lru_cache
def _folder_splits(root: Path) -> dict[str, tuple[tuple[str, np.ndarray], ...]]:
    """Map each split to (scene, tile) pairs of a folder. Repeated tiles are left out, so splits share none."""
    scenes: dict[str, list[np.ndarray]] = {}
    seen = set()
    for file in sorted(pictures_below(root), key=lambda p: (p.name, str(p))):
        try:
            with Image.open(file) as opened:
                page = np.asarray(opened.convert("RGB"))
        except UNREADABLE as error:
            raise InputError(f"Background {file.name!r} is not a readable picture: {error}") from error
        height, width = page.shape[:2]
        if min(height, width) < CANVAS:
            raise InputError(
                f"Expected backgrounds of {CANVAS}x{CANVAS} px or more, got {file.name!r} of {width}x{height}."
            )
        name = re.sub(r"([_-]\d+){2}$", "", file.stem)  # book1_s3_256_512 -> book1_s3
        for top in range(0, height - CANVAS + 1, CANVAS):
            for left in range(0, width - CANVAS + 1, CANVAS):
                tile = np.ascontiguousarray(page[top : top + CANVAS, left : left + CANVAS])
                digest = hashlib.sha256(tile.tobytes()).digest()
                if digest not in seen:
                    seen.add(digest)
                    scenes.setdefault(name, []).append(tile)
    if len(scenes) < 3:
        raise InputError(f"Expected 3 source scenes or more, one per split, got {len(scenes)} in {str(root)!r}.")
    order = sorted(scenes, key=lambda name: seed_of("scene", name))
    held_out = max(1, round(len(order) * 0.2))
    parts = {"test": order[:held_out], "validation": order[held_out : 2 * held_out], "train": order[2 * held_out :]}
    splits = {split: tuple((name, tile) for name in names for tile in scenes[name]) for split, names in parts.items()}
    return splits | {"all": sum(splits.values(), ())}


def split_hashes(scenes: str | Path | None = None, limit: int | None = None) -> dict[str, set[str]]:
    """Return the sha256 of the backgrounds of each split, to check that splits share none.

    Args:
        scenes: As for SyntheticShapes.
        limit: How many procedural scenes of each split to hash. All take a minute.
    """
    source = _source(scenes)
    if source == "crowd":
        tiles = {split: [_crowd(split, k) for k in range(min(n, limit or n))] for split, n in SPLITS.items()}
    else:
        pages = _folder_splits(Path(source))
        tiles = {split: [tile for _, tile in pages[split]] for split in SPLITS}
    return {split: {hashlib.sha256(tile.tobytes()).hexdigest() for tile in part} for split, part in tiles.items()}


def _source(scenes: str | Path | None) -> str:
    """Return "crowd" or the path of an existing folder."""
    scenes = scenes or os.environ.get("WALDO_ROOT") or "crowd"
    return "crowd" if scenes == "crowd" else str(folder("backgrounds (scenes or WALDO_ROOT)", scenes).resolve())


@dataclass(frozen=True)
class SyntheticShapes:
    """A sequence of n Samples: images of 224 px with exact masks. `info` holds class, size, background and scene.

    Raises:
        InputError: A value is not allowed, or the folder has too few or unreadable pictures.
    """

    split: str
    """train, validation or test, on disjoint scenes. With a folder also "all", for a transfer test."""
    n: int
    """How many, 1 or more."""
    seed: int = 0
    """Another seed draws other shapes and other variations of the split's scenes."""
    background: str = "mixed"
    """"raw", "imputed", or "mixed" (each item is either with probability .5). The shape does not depend on it."""
    scenes: str | Path | None = None
    """A folder of pictures of at least 256 px, or "crowd", the procedural scenes. None takes WALDO_ROOT if it is set, else
    "crowd". Files whose names differ only in the tile position (book1_s3_256_512) are one scene. 60 % of a folder's
    scenes are for training, 20 % for validation and 20 % for testing."""
    shares: tuple[float, float, float] = (1, 1, 1)
    """Weights of small, medium and large shapes."""

    def __post_init__(self):
        object.__setattr__(self, "scenes", _source(self.scenes))
        one_of("split", self.split, SPLITS if self.scenes == "crowd" else [*SPLITS, "all"])
        one_of("background", self.background, BACKGROUNDS)
        if self.n < 1:
            raise InputError(f"Expected 1 item or more, got n = {self.n}.")
        if len(self.shares) != 3 or min(self.shares) < 0 or sum(self.shares) <= 0:
            raise InputError(f"Expected three weights of at least 0 and not all 0, got shares = {self.shares}.")
        if self.scenes != "crowd":
            _folder_splits(Path(self.scenes))

    def __len__(self) -> int:
        return self.n

    def scene(self, index: int) -> tuple[str, np.ndarray]:
        """Return the name of the scene of item `index` and its unchanged background, uint8 (256,256,3)."""
        generator = rng("background", self.split, index, self.seed)
        if self.scenes == "crowd":
            k = int(generator.integers(SPLITS[self.split]))
            return f"crowd-{self.split}-{k}", _crowd(self.split, k)
        tiles = _folder_splits(Path(str(self.scenes)))[self.split]
        return tiles[int(generator.integers(len(tiles)))]

    def id_of(self, index: int) -> str:
        """Return the id of item `index` without drawing it."""
        return f"{self.split}-{index:06d}" if self.seed == 0 else f"{self.split}-{self.seed}-{index:06d}"

    def __getitem__(self, index: int) -> Sample:
        if not -self.n <= index < self.n:
            raise IndexError(f"item {index} of {self.n}")
        index %= self.n
        key = (self.split, index, self.seed)
        # Each decision has its own generator, so the class and the scene are independent.
        target, size_name, shape = draw_shape(rng("shape", *key), self.shares)
        scene, background = self.scene(index)
        background = augment(background, rng("augment", *key))
        kind = self.background
        if kind == "mixed":
            kind = ("raw", "imputed")[rng("kind", *key).integers(2)]
        if kind == "imputed":
            background = impute_background(background, rng("impute", *key))
        picture, mask = render(background, shape)
        return Sample(
            image=tensor_of(picture),
            target=target,
            id=self.id_of(index),
            mask=torch.from_numpy(mask),
            info={"class": CLASSES[target], "size": size_name, "background": kind, "scene": scene},
            without=tensor_of(_shrunk(background)),
        )


@dataclass(frozen=True)
class ShiftedShapes:
    """Samples whose images are resized to 256 px and cropped to 224, and whose masks are not (D11).

    The published code shifts its ground truth in this way. The audit measures the effect.
    """

    samples: SyntheticShapes

    def __len__(self) -> int:
        return len(self.samples)

    def id_of(self, index: int) -> str:
        """Return the id of sample `index` without drawing it."""
        return self.samples.id_of(index)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        picture = Image.fromarray((sample.image * 255).round().byte().permute(1, 2, 0).numpy())
        edge = (CANVAS - SIZE) // 2
        larger = picture.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)
        cropped = larger.crop((edge, edge, edge + SIZE, edge + SIZE))
        return replace(sample, without=None, image=tensor_of(np.asarray(cropped)))
