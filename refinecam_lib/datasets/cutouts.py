"""Cut things out of pictures and draw badges, for the scenes. Every pixel belongs to a thing or does not.

>>> cut_out("bird-owl", size=60, angle=-20, flipped=True, gains=(256, 256, 256)).pixels.shape
(62, 60, 3)

The bytes are equal on every machine. Pillow decodes and resizes in integers, and the rest is integer arithmetic.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from .. import paths
from ..errors import InputError, one_of

FOLDER = paths.DATA / "scenes"
"""The pictures. data/README.md lists their sources and licences."""
CLASSES = (
    "aircraft",
    "ball",
    "bird",
    "building",
    "fish",
    "flower",
    "four_legged",
    "fruit",
    "insect",
    "instrument",
    "road_vehicle",
    "shoe",
)
"""The classes of objects, each a group of 6 to 19 pictures. Whales and dolphins count as fish, rockets as aircraft."""
DISTRACTORS = ("cake", "clock", "drink", "furniture", "garment", "hat", "ship", "tool", "tree")
"""Groups of pictures that are no class."""
BADGES = {
    "plus": "00100 00100 11111 00100 00100",
    "saltire": "10001 11011 01110 11011 10001",
    "square": "11111 11111 11111 11111 11111",
    "frame": "11111 10001 10001 10001 11111",
    "rows": "11111 00000 11111 00000 11111",
    "columns": "10101 10101 10101 10101 10101",
    "checks": "10101 01010 10101 01010 10101",
    "up": "00100 01110 01110 11111 11111",
    "down": "11111 11111 01110 01110 00100",
    "left": "00011 01111 11111 01111 00011",
    "corner": "11000 11000 11000 11111 11111",
    "dots": "11011 11011 00000 11011 11011",
}
"""Kinds of badges: a glyph of 5 x 5 cells on a round plate."""
PLATE, GLYPH = 166, 230
"""Opacities in 256ths."""
_FINE = 3  # Pictures are turned at three times their size, then averaged.


class Cutout(NamedTuple):
    """What a thing looks like in its own box."""

    pixels: np.ndarray
    """uint8 (h,w,3)."""
    opacity: np.ndarray
    """int32 (h,w), from 0 (not the thing) to 256 (hides what lies behind)."""

    def onto(self, x: int, y: int, canvas: np.ndarray) -> np.ndarray:
        """Paint the thing with its centre at (x, y) onto pixels (H,W,3), in place. Return its pixels, bool (H,W)."""
        (height, width), (rows, columns) = self.opacity.shape, canvas.shape[:2]
        top, left = y - height // 2, x - width // 2
        inside = np.s_[max(0, top) : max(0, min(rows, top + height)), max(0, left) : max(0, min(columns, left + width))]
        own = np.s_[inside[0].start - top : inside[0].stop - top, inside[1].start - left : inside[1].stop - left]
        opacity, there = self.opacity[own], np.zeros((rows, columns), bool)
        behind = canvas[inside].astype(np.int32)
        shown = self.pixels[own].astype(np.int32)
        canvas[inside] = behind + ((shown - behind) * opacity[..., None] >> 8)
        there[inside] = opacity > 0
        return there


@lru_cache
def pictures(group: str) -> tuple[str, ...]:
    """Return the names of a group's pictures.

    Raises:
        InputError: The group is unknown, or its files are missing.
    """
    one_of("group of pictures", group, (*CLASSES, *DISTRACTORS))
    found = tuple(sorted(path.stem for path in (FOLDER / "objects").glob(f"{group}-*.webp")))
    if not found:
        raise InputError(
            f"Expected pictures {group}-*.webp in {paths.shown(FOLDER / 'objects')}; restore them from git."
        )
    return found


@lru_cache(maxsize=256)
def _picture(name: str) -> Image.Image:
    """Read a picture with colours multiplied by its alpha channel, cropped to what is not transparent."""
    with Image.open(FOLDER / "objects" / f"{name}.webp") as opened:
        whole = opened.convert("RGBA")
    return whole.crop(whole.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)).getbbox()).convert("RGBa")


def _turned(pixels: np.ndarray, angle: int) -> np.ndarray:
    """Turn pixels (h,w,4) by `angle` degrees to the nearest pixels. The sides become multiples of _FINE."""
    cosine, sine = (round(part(math.radians(angle)) * 4096) for part in (math.cos, math.sin))
    height, width = pixels.shape[:2]
    new_width = (width * abs(cosine) + height * abs(sine)) // 4096 // _FINE * _FINE + _FINE
    new_height = (height * abs(cosine) + width * abs(sine)) // 4096 // _FINE * _FINE + _FINE
    x = 2 * np.arange(new_width, dtype=np.int32)[None] + 1 - new_width
    y = 2 * np.arange(new_height, dtype=np.int32)[:, None] + 1 - new_height
    column = ((cosine * x + sine * y >> 12) + width >> 1) + 1
    row = ((cosine * y - sine * x >> 12) + height >> 1) + 1
    whole = np.zeros((height + 2, width + 2), np.uint32)  # outside is transparent
    whole[1:-1, 1:-1] = np.ascontiguousarray(pixels).view(np.uint32)[..., 0]
    place = row.clip(0, height + 1) * (width + 2) + column.clip(0, width + 1)
    return whole.ravel()[place].view(np.uint8).reshape(new_height, new_width, 4)


@lru_cache(maxsize=64)
def cut_out(name: str, size: int, angle: int, flipped: bool, gains: tuple[int, int, int]) -> Cutout:
    """Cut a thing out of its picture. A pixel is the thing where at least half of it is covered.

    Args:
        name: A name in `pictures`.
        size: The longest side before turning, in pixels.
        angle: In degrees, clockwise.
        flipped: Mirror it first.
        gains: Factors of red, green and blue in 256ths.
    """
    picture = _picture(name)
    longest = max(picture.size)
    width, height = (max(_FINE, side * size * _FINE // longest) for side in picture.size)
    fine = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    fine = _turned(fine[:, ::-1] if flipped else fine, angle)
    small = np.asarray(Image.fromarray(fine, "RGBa").reduce(_FINE)).astype(np.int32)
    alpha = small[..., 3:]
    colour = (small[..., :3] * 255 // np.maximum(alpha, 1)) * np.array(gains, np.int32) >> 8
    opacity = np.where(alpha[..., 0] >= 128, 256, 0).astype(np.int32)
    return Cutout(colour.clip(0, 255).astype(np.uint8), opacity)


@lru_cache(maxsize=64)
def badge(kind: str, size: int, colour: tuple[int, int, int]) -> Cutout:
    """Draw a badge: a translucent round plate of a colour with a white glyph.

    Args:
        kind: A name in BADGES.
        size: The diameter in pixels.
        colour: Red, green and blue from 0 to 255.
    """
    glyph = np.array([[int(cell) for cell in row] for row in BADGES[one_of("badge", kind, BADGES)].split()], bool)
    cell = max(1, size * 2 // 15)  # the glyph's diagonal is then below the diameter
    glyph = glyph.repeat(cell, 0).repeat(cell, 1)
    start = (size - len(glyph)) // 2
    away = 2 * np.arange(size) + 1 - size
    opacity = np.where(away[:, None] ** 2 + away[None] ** 2 <= size * size, PLATE, 0).astype(np.int32)
    pixels = np.broadcast_to(np.array(colour, np.uint8), (size, size, 3)).copy()
    inside = np.s_[start : start + len(glyph), start : start + len(glyph)]
    pixels[inside][glyph] = 255
    opacity[inside][glyph] = GLYPH
    return Cutout(pixels, opacity)
