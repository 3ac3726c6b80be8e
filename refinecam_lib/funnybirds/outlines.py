"""The outlines of the birds: polygons with x towards the beak and y down, in pixels of a 256 px image.

The origin is the centre of the body. A fill of None stands for the colour of the part's variant.
"""

import math
from typing import NamedTuple

import numpy as np

Colour = tuple[int, int, int]
WHITE, DARK, CREAM, PINK = (255, 255, 255), (44, 38, 50), (246, 232, 206), (244, 176, 164)


class Group(NamedTuple):
    """Polygons that are drawn together."""

    fills: tuple[tuple[np.ndarray, Colour | None], ...]
    """Polygons (N,2) with their colours."""
    ink: bool = True
    """Whether one ink line runs around all of them."""
    bends: tuple[tuple[int, ...], ...] = ()
    """For each polygon, the numbers of the corners that turn by more than 9 degrees."""


def polygon(*numbers: float) -> np.ndarray:
    """Return the corners x, y, x, y ... as float64 (N,2)."""
    return np.array(numbers, float).reshape(-1, 2)


def oval(x: float, y: float, width: float, height: float, degrees: float = 0, n: int = 28) -> np.ndarray:
    """Return an ellipse with these half axes, rotated clockwise: float64 (n,2)."""
    angle, turn = np.arange(n) * 2 * np.pi / n, math.radians(degrees)
    along, across = width * np.cos(angle), height * np.sin(angle)
    turned = (along * math.cos(turn) - across * math.sin(turn), along * math.sin(turn) + across * math.cos(turn))
    return np.round(np.stack(turned, 1), 3) + (x, y)


def curve(*numbers: float, steps: int = 6) -> np.ndarray:
    """Return a closed Catmull-Rom curve through the points x, y, x, y ...: float64 (N * steps,2)."""
    p = polygon(*numbers)
    before, after, later = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (v[:, None] for v in (before, p, after, later))
    points = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * b - a - 3 * c + d)))
    return np.round(points.reshape(-1, 2), 3)


def turned(points: np.ndarray, degrees: float, x: float, y: float) -> np.ndarray:
    """Rotate points clockwise about (x, y)."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.round((points - (x, y)) @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y), 3)


def star() -> np.ndarray:
    """Return a star with five points in the unit circle."""
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, 0.5, 1.15)
    return np.round(np.stack((radius * np.sin(angle), -radius * np.cos(angle)), 1), 3)


def cloud() -> np.ndarray:
    """Return a cloud with five lobes, about as large as the unit circle."""
    angle = np.arange(40) * np.pi / 20
    radius = 0.75 + 0.4 * np.abs(np.sin(2.5 * angle))
    return np.round(np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1), 3)


def _bends(points: np.ndarray) -> tuple[int, ...]:
    edges = np.roll(points, -1, 0) - points
    heading = np.arctan2(edges[:, 1], edges[:, 0])
    turn = np.abs((heading - np.roll(heading, 1) + np.pi) % (2 * np.pi) - np.pi)
    return tuple(np.flatnonzero(turn > np.radians(9)).tolist())


def _solid(*points: np.ndarray, fill: Colour | None = None) -> Group:
    return Group(tuple((p, fill) for p in points), True, tuple(_bends(p) for p in points))


def _mark(*points: np.ndarray, fill: Colour | None) -> Group:
    return Group(tuple((p, fill) for p in points), ink=False)


BODY = (
    _solid(
        curve(40, -72, 30, -88, 43, -80, 46, -93, 53, -79, 66, -84, 58, -70),
        oval(-6, 10, 62, 45, -14),
        oval(46, -40, 35, 34),
        polygon(-30, -30, 14, -48, 60, -10, 40, 30),
        fill=CREAM,
    ),
    _mark(oval(0, 26, 44, 26, -10), fill=(254, 246, 228)),
    _mark(oval(40, -22, 9, 7), fill=PINK),
)
EYE_REACH = 9.0
"""How far the eyes move apart when the bird turns to the viewer, in pixels."""


def _eye(variant: int, x: float, y: float, r: float) -> tuple[Group, ...]:
    if variant == 0:
        return (
            _solid(oval(x, y, r, r), fill=WHITE),
            _mark(oval(x + 3, y + 1, r * 0.5, r * 0.5), fill=DARK),
            _mark(oval(x + 5, y - 2, r * 0.17, r * 0.17), fill=WHITE),
        )
    if variant == 1:
        lid = oval(x, y, r, r)
        return (
            _solid(lid, fill=(250, 240, 150)),
            _mark(oval(x + 2, y + 4, r * 0.42, r * 0.42), fill=DARK),
            _mark(lid[lid[:, 1] <= y + 0.01], fill=(36, 160, 168)),
            _mark(polygon(x - r, y, x + r, y, x + r, y + 2.4, x - r, y + 2.4), fill=DARK),
        )
    return (
        _solid(oval(x, y, r, r), fill=(232, 70, 40)),
        _mark(oval(x, y, r * 0.62, r * 0.62), fill=(255, 206, 60)),
        _mark(oval(x, y, r * 0.24, r * 0.56), fill=DARK),
    )


def _beak(variant: int) -> tuple[Group, ...]:
    if variant == 0:  # a finch's cone
        return _solid(polygon(74, -52, 102, -36, 74, -20)), _mark(polygon(76, -37, 98, -36, 76, -34), fill=DARK)
    if variant == 1:  # a heron's spear
        return (_solid(polygon(74, -46, 116, -30, 114, -26, 73, -28)),)
    if variant == 2:  # a parrot's hook
        return (_solid(curve(70, -54, 92, -54, 104, -36, 98, -14, 91, -26, 72, -22)),)
    bill = curve(70, -50, 92, -54, 112, -44, 112, -26, 92, -20, 70, -22)  # a toucan's, with a yellow tip
    return _solid(bill), _mark(curve(98, -49, 109, -43, 109, -28, 98, -24, 102, -36), fill=(250, 201, 44))


def _foot(variant: int, x: float) -> tuple[Group, ...]:
    if variant == 0:  # three toes
        orange = (246, 150, 40)
        leg = polygon(x - 2.5, 44, x + 2.5, 44, x + 2.5, 76, x - 2.5, 76)
        toes = [polygon(x - 2, 72, x + 2, 72, x + 2 + dx, 86, x - 2 + dx, 86) for dx in (-9, 4, 16)]
        return (_solid(leg, *toes, fill=orange),)
    if variant == 1:  # webbed
        red = (226, 60, 70)
        web = curve(x - 3, 66, x + 8, 72, x + 24, 84, x + 12, 82, x + 4, 87, x - 2, 82, x - 12, 86)
        return (_solid(polygon(x - 4, 44, x + 4, 44, x + 4, 72, x - 4, 72), web, fill=red),)
    if variant == 2:  # balls
        leg = polygon(x - 2.5, 44, x + 2.5, 44, x + 2.5, 66, x - 2.5, 66)
        return (_solid(leg, oval(x, 74, 12, 12), fill=(54, 110, 220)), _mark(oval(x + 3, 70, 3, 3), fill=WHITE))
    boot = curve(x - 9, 56, x + 8, 56, x + 9, 70, x + 24, 76, x + 23, 87, x - 9, 87, steps=5)
    leg = polygon(x - 4, 44, x + 4, 44, x + 4, 58, x - 4, 58)
    cuff = polygon(x - 9, 55, x + 9, 55, x + 9, 62, x - 9, 62)
    return _solid(leg, fill=CREAM), _solid(boot, fill=(40, 150, 92)), _mark(cuff, fill=(250, 240, 210))


def _tail(variant: int) -> tuple[Group, ...]:
    if variant == 0:  # a fan
        feathers = [turned(oval(-82, 4, 30, 10), angle, -52, 4) for angle in (-28, 0, 28, 56)]
        return tuple(_solid(feather) for feather in feathers)
    if variant == 1:  # a fork
        return (
            _solid(polygon(-48, -10, -106, -40, -84, -4, -108, 20, -46, 22)),
            _mark(polygon(-58, 2, -92, -26, -78, -2), polygon(-58, 6, -92, 14, -78, 2), fill=WHITE),
        )
    plume = curve(-46, 10, -66, -14, -72, -44, -94, -60, -114, -42, -106, -18, -90, -22, -84, 6, -60, 28)
    return _solid(plume), _mark(oval(-93, -40, 12, 12), fill=WHITE), _mark(oval(-93, -40, 6, 6), fill=None)


def _wing(variant: int, far: bool) -> tuple[Group, ...]:
    groups: tuple[Group, ...]
    if variant == 0:  # pointed
        groups = (
            _solid(curve(20, -6, 4, -20, -20, -12, -46, 8, -68, 34, -36, 34, 0, 30, 18, 14)),
            _mark(curve(8, -4, -14, -2, -40, 20, -10, 12), fill=WHITE),
        )
    elif variant == 1:  # round, with dots
        groups = (
            _solid(oval(-16, 8, 37, 27, -14)),
            _mark(oval(-36, 12, 6, 6), oval(-14, 8, 6, 6), oval(6, 2, 6, 6), fill=WHITE),
        )
    else:  # fingers
        fingers = [turned(oval(-28, 4, 40, 9), angle, 12, 0) for angle in (-46, -23, 0)]
        groups = (*(_solid(finger) for finger in fingers), _solid(oval(6, 0, 15, 15)))
    if not far:
        return groups
    return tuple(
        Group(
            tuple((turned(points, 62, 14, 0) + (-6, -22), fill) for points, fill in group.fills), group.ink, group.bends
        )
        for group in groups
    )


SHAPES: dict[tuple[str, int], tuple[Group, ...]] = (
    {("beak", k): _beak(k) for k in range(4)}
    | {("eye01", k): _eye(k, 54, -46, 14.0) for k in range(3)}
    | {("eye02", k): _eye(k, 54, -46, 13.0) for k in range(3)}
    | {("foot01", k): _foot(k, -18) for k in range(4)}
    | {("foot02", k): _foot(k, 16) for k in range(4)}
    | {("tail", k): _tail(k) for k in range(3)}
    | {("wing01", k): _wing(k, far=False) for k in range(3)}
    | {("wing02", k): _wing(k, far=True) for k in range(3)}
)
