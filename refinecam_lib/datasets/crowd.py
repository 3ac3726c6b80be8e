"""Draw procedural crowd scenes that are as busy as pages of a hidden-picture book.

>>> crowd_scene(seed=3).shape
(256, 256, 3)

A scene has the same bytes on every machine. Its random numbers come from `random.Random(int).random()` and NumPy's
PCG64 bit stream, which are stable across versions. Pillow (pinned) draws at integer coordinates, without sines or fonts,
on a canvas of three times the size. The canvas is averaged in integers.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from skimage import color, feature, filters

from ..errors import InputError, seed_of
from .figures import OBJECTS, PROPS, bush, figure
from .pen import GROUNDS, INKS, SCALE, Chance, Pen


class Target(NamedTuple):
    """The allowed range of a statistic's mean over scenes, and its mean and standard deviation over 29 real crops."""

    low: float
    high: float
    real_mean: float
    real_spread: float


TARGETS = {
    "canny edges": Target(0.22, 0.30, 0.261, 0.043),
    "sobel > .1": Target(0.49, 0.59, 0.537, 0.108),
    "grey mean": Target(0.46, 0.74, 0.605, 0.138),
    "grey std": Target(0.22, 0.28, 0.250, 0.027),
    "ink": Target(0.08, 0.14, 0.108, 0.106),
    "paper": Target(0.10, 0.18, 0.140, 0.141),
    "spectrum slope": Target(-1.85, -1.35, -1.624, 0.238),
}
KINDS = ("paper",) * 5 + ("yellow",) * 6 + ("sand",) * 3 + ("green",) * 3 + ("forest",) * 3
"""Kinds of ground. Repetition sets the frequency."""


def scene_statistics(image: np.ndarray) -> dict[str, float]:
    """Measure how busy, dark and rough an image is.

    Args:
        image: uint8 (H,H,3).

    Returns:
        Statistics of the luminance in [0,1], under the names of TARGETS: the share of Canny edges (sigma 1, thresholds
        .1 and .2), the share of Sobel magnitudes above .1, mean, standard deviation, the shares below .2 (ink) and
        above .943 (paper, 14 % of real crops), and the slope of log power against log frequency (Hann window, 2 to H/2
        cycles per image). No direction is better.

    Raises:
        InputError: The shape or type is wrong.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1] or image.dtype != np.uint8:
        raise InputError(f"Expected an image (H, H, 3) of uint8, got shape {image.shape} of {image.dtype}.")
    grey = color.rgb2gray(image)
    n = len(grey)
    window = np.hanning(n)
    power = np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(window, window))) ** 2
    cycles = np.fft.fftfreq(n, 1 / n)
    ring = np.hypot(cycles[:, None], cycles[None, :]).round().astype(int).ravel()
    radial = np.bincount(ring, power.ravel()) / np.bincount(ring)
    frequency = np.arange(2, n // 2)
    return {
        "canny edges": float(feature.canny(grey, 1.0, 0.1, 0.2).mean()),
        "sobel > .1": float((filters.sobel(grey) > 0.1).mean()),
        "grey mean": float(grey.mean()),
        "grey std": float(grey.std()),
        "ink": float((grey < 0.2).mean()),
        "paper": float((grey > 0.943).mean()),
        "spectrum slope": float(np.polyfit(np.log(frequency), np.log(radial[frequency]), 1)[0]),
    }


@dataclass(frozen=True)
class Thing:
    """A drawing function with the foot point and the height or length of what it draws, in image pixels."""

    paint: Callable[[Pen, int, int, int], None]
    x: float
    y: float
    height: float


def layout(seed: int, size: int = 256) -> tuple[str, list[Thing]]:
    """Plan scene number `seed`: its kind of ground, and its figures, props and objects from back to front."""
    chance = Chance(random.Random(seed_of("crowd layout", int(seed))).random)
    things: list[Thing] = []

    def place() -> tuple[float, float]:
        return chance.span(-5, size + 5), chance.span(5, size + 20)

    kind = chance.pick(KINDS)
    area, typical, jitter = (size / 256) ** 2, chance.span(30, 50), chance.span(0.05, 0.3)
    count = int(min(150, max(30, chance.span(0.6, 1.9) * 65536 / (0.4 * typical * typical))) * area)
    clearings = [(*place(), chance.span(20, 80)) for _ in range(int(chance.rand() * 4))]
    for k in range(count):
        # Shifted rows cover the ground evenly. Jitter makes crowds and gaps. Figures move out of clearings.
        x = (k * 0.618034 + chance.span(-jitter, jitter)) % 1 * (size + 10) - 5
        y = 5 + (k + chance.rand()) / count * (size + 15)
        if any((x - cx) ** 2 + 2 * (y - cy) ** 2 < r * r for cx, cy, r in clearings):
            x, y = place()
        things.append(Thing(figure, x, y, min(60, max(15, typical * chance.span(0.75, 1.3)))))
    for _ in range(int(chance.span(0, 12) * area)):
        things.append(Thing(chance.pick(PROPS), *place(), typical * chance.span(0.5, 0.9)))
    if kind == "forest":
        for _ in range(int(chance.span(30, 60) * area)):
            things.append(Thing(bush, *place(), chance.span(25, 60)))
    if chance.rand() < 0.2:
        for _ in range(1 + int(chance.rand() * 2)):
            paint, x, y = chance.pick(OBJECTS), chance.rand() * size, chance.span(0.4, 1.1) * size
            things.append(Thing(paint, x, y, chance.span(90, 170)))
    return kind, sorted(things, key=lambda thing: thing.y)


def ground(pen: Pen, side: int, kind: str) -> None:
    """Draw the ground: a flat colour, sometimes a second region behind an inked border, and texture."""
    pen.draw.rectangle((0, 0, side, side), pen.pick(GROUNDS[kind]))
    if pen.rand() < 0.4:
        level, slope = pen.span(0.2, 0.8), pen.span(-0.3, 0.3)
        border = [(x, pen.about(int(side * level + slope * (x - side // 2)), 12)) for x in range(-20, side + 60, 40)]
        floor = side + 50 if pen.rand() < 0.5 else -50
        beyond = kind if kind == "forest" else pen.pick(tuple(GROUNDS)[:4])
        pen.shape([*border, (side + 60, floor), (-60, floor)], pen.pick(GROUNDS[beyond]))
    texture = pen.rand()
    for _ in range(int(pen.span(0.05, 1.5) * side * side / 700)):
        x, y = int(pen.rand() * side), int(pen.rand() * side)
        if texture < 0.4:
            pen.line([(x - 8, y - 6), (x - 3, y), (x, y - 9), (x + 4, y), (x + 9, y - 6)])
        elif texture < 0.7:
            pen.line([(x - 10, y), (x - 3, y - 5), (x + 5, y), (x + 12, y - 3)])
        else:
            pen.draw.ellipse((x - 6, y - 3, x + 6, y + 5), None, pen.ink, 3)


def drawing(seed: int, size: int = 256) -> Image.Image:
    """Draw scene number `seed` without grain, at SCALE times `size`. See `crowd_scene`."""
    if not isinstance(seed, (int, np.integer)) or not isinstance(size, (int, np.integer)) or size < 32:
        raise InputError(f"Expected whole numbers and a size of 32 px or more, got seed {seed!r} and size {size!r}.")
    rand = random.Random(seed_of("crowd", int(seed))).random
    side = size * SCALE
    canvas = Image.new("RGB", (side, side))
    kind, things = layout(seed, size)
    dark = kind == "forest"
    ink = INKS[0 if dark else int(rand() * len(INKS))]
    pen = Pen(rand, ImageDraw.Draw(canvas), ink, 4 if dark else 3, 0.55 + 0.4 * rand() if dark else 1.0)
    ground(pen, side, kind)
    for thing in things:
        thing.paint(pen, int(thing.x * SCALE), int(thing.y * SCALE), int(thing.height * SCALE))
    return canvas


def crowd_scene(seed: int, size: int = 256) -> np.ndarray:
    """Draw a crowd scene. The same seed gives the same bytes on every machine.

    It shows 30 to 150 figures per 256 x 256 px, 15 to 60 px tall. A fifth of the scenes has one or two objects of 80 to
    200 px. No region above 20 px is a clean circle, square or triangle.

    Args:
        seed: The number of the scene.
        size: Side in pixels, 32 or more.

    Returns:
        RGB pixels, uint8 (size,size,3).

    Raises:
        InputError: `seed` or `size` is not a whole number, or `size` is below 32.
    """
    flat = np.asarray(drawing(seed, size).reduce(SCALE))
    # Grain: one small step for all channels of a pixel. Its mean is slightly above zero, so paper stays white.
    bits = np.random.PCG64(seed_of("crowd grain", int(seed))).random_raw(1 + -(-size * size // 8)).astype("<u8")
    strength, grain = 8 + int(bits[0] % 44), bits[1:].view(np.uint8)[: size * size].reshape(size, size, 1)
    return np.clip(flat + (grain.astype(np.int16) * strength // 256 - strength // 3), 0, 255).astype(np.uint8)
