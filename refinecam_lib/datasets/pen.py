"""A pen for comics: ink outlines, flat colours, uneven lines and random choices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[int, int]

SCALE = 3
"""Canvas pixels per image pixel. Drawing functions measure lengths in canvas pixels."""
INKS = ((24, 18, 20), (40, 30, 32), (52, 42, 42), (60, 50, 48))
SKINS = ((252, 212, 176), (248, 196, 152), (234, 172, 122), (255, 226, 200), (186, 122, 82), (134, 86, 60))
HAIRS = ((52, 36, 30), (112, 68, 36), (214, 160, 60), (184, 84, 40), (84, 60, 50), (206, 202, 196))
CLOTHS = (
    (232, 60, 56), (58, 110, 196), (60, 168, 100), (250, 218, 64), (255, 254, 250), (246, 142, 60), (84, 188, 204),
    (160, 100, 164), (176, 120, 76), (246, 170, 188), (40, 130, 136), (84, 88, 120), (172, 212, 96), (206, 204, 200),
    (196, 56, 70), (136, 172, 224), (255, 255, 252), (240, 228, 192), (255, 254, 250),
)  # fmt: skip
LEAVES = ((98, 176, 70), (146, 204, 84), (76, 150, 96), (60, 126, 74), (170, 196, 76))
GROUNDS = {
    "paper": ((255, 254, 252), (252, 251, 247), (255, 255, 255)),
    "yellow": ((254, 244, 140), (253, 236, 110), (254, 248, 172)),
    "sand": ((248, 224, 180), (240, 212, 172), (232, 194, 156)),
    "green": ((206, 232, 120), (172, 212, 108), (136, 186, 100)),
    "forest": ((62, 98, 58), (48, 84, 60), (96, 108, 56)),
}
UNIT = ((256, 0), (237, 98), (181, 181), (98, 237), (0, 256), (-98, 237), (-181, 181), (-237, 98),
        (-256, 0), (-237, -98), (-181, -181), (-98, -237), (0, -256), (98, -237), (181, -181), (237, -98))  # fmt: skip
"""Sixteen directions, as integers over 256."""


@dataclass(frozen=True)
class Chance:
    """Random choices, made from a stream of uniform numbers in [0,1)."""

    rand: Callable[[], float]

    def span(self, low: float, high: float) -> float:
        """Return a uniform number between `low` and `high`."""
        return low + (high - low) * self.rand()

    def about(self, x: int, reach: float) -> int:
        """Return a uniform integer at most `reach` away from `x`."""
        return x + int(self.span(-reach, reach))

    def pick(self, items: Sequence):
        """Return one of `items`, each with the same probability."""
        return items[int(self.rand() * len(items))]


@dataclass(frozen=True)
class Pen(Chance):
    """A canvas with an ink colour, a line width and the brightness of the scene (`tone`, 1 is full)."""

    draw: ImageDraw.ImageDraw
    ink: Colour
    width: int
    tone: float

    def shade(self, colours: Sequence[Colour]) -> Colour:
        """Return one of `colours`, darkened by the tone and by a random factor."""
        c = self.pick(colours)
        t = self.tone * min(1.0, self.span(0.88, 1.04))
        return int(c[0] * t), int(c[1] * t), int(c[2] * t)

    def line(self, points: Sequence[Point], fill: Colour | None = None, width: int | None = None) -> None:
        """Draw a polyline."""
        self.draw.line(points, fill or self.ink, width or self.width)

    def shape(self, points: Sequence[Point], fill: Colour) -> None:
        """Draw a filled polygon with an ink outline."""
        self.draw.polygon(points, fill)
        self.draw.line([*points, points[0], points[1]], self.ink, self.width)

    def rough(self, points: Sequence[Point], fill: Colour, wobble: int = 5) -> None:
        """Draw a filled polygon whose edges bend by up to `wobble` pixels."""
        bent = []
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            bent.append((x0, y0))
            for k in (1, 2, 3):
                x, y = (x0 * (4 - k) + x1 * k) // 4, (y0 * (4 - k) + y1 * k) // 4
                bent.append((self.about(x, wobble), self.about(y, wobble)))
        self.shape(bent, fill)

    def dot(self, x: int, y: int, rx: int, ry: int, fill: Colour) -> None:
        """Draw an ellipse with an ink outline."""
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill, self.ink, self.width)

    def limb(self, points: Sequence[Point], fill: Colour, width: int) -> None:
        """Draw an arm or a leg: a thick line with inked sides."""
        self.draw.line(points, self.ink, width + 2 * self.width)
        self.draw.line(points, fill, width)
