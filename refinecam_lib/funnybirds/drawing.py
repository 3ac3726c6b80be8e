"""Draw the project's own birds, in the layout of FunnyBirds (Hesse et al. 2023, https://arxiv.org/abs/2308.06248).

>>> bird = scene("test", 3)
>>> draw(bird).shape, part_map(bird).shape, CLASSES[bird["class_idx"]]
((256, 256, 3), (256, 256, 3), {'beak': 2, 'eye': 1, 'foot': 3, 'tail': 4, 'wing': 4})

All classes share a body. A class is a choice of beak, eye, foot, tail and wing. A scene depends on (split, index, seed)
alone, and a drawing on its scene alone. Pillow fills polygons with integer corners on a larger canvas, which is then
averaged. Only the layout and the keys of a scene come from FunnyBirds. The drawing is this project's own.
"""

import argparse
import json
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError, one_of, rng
from ..paths import write_whole
from .outlines import BODY, EYE_REACH, SHAPES, Group, cloud, oval, polygon, star

VERSION = "1"
"""Part of the name of the folder of the drawn pictures. Raise it when a drawing changes."""
SIDE = 256
SPLITS = {"train": 50_000, "test": 500}
PLACEHOLDER = "placeholder"
"""The model of a part that a scene lacks, as in FunnyBirds."""
PARTS: dict[str, list[dict[str, str]]] = {
    "beak": [{"model": f"beak0{k + 1}.glb", "color": c} for k, c in enumerate(("yellow", "orange", "red", "black"))],
    "eye": [{"model": f"eye0{k + 1}.glb"} for k in range(3)],
    "foot": [{"model": f"foot0{k + 1}.glb"} for k in range(4)],
    "tail": [{"model": f"tail0{k + 1}.glb", "color": c} for k in range(3) for c in ("red", "green", "blue")],
    "wing": [{"model": f"wing0{k + 1}.glb", "color": c} for k in range(3) for c in ("yellow", "violet")],
}
"""Part -> its variants, as in parts.json."""
LABELS = {
    "eye01": (255, 255, 253),
    "eye02": (255, 255, 254),
    "beak": (255, 255, 0),
    "foot01": (255, 0, 1),
    "foot02": (255, 0, 2),
    "wing01": (0, 255, 1),
    "wing02": (0, 255, 2),
    "tail": (0, 0, 255),
    "body": (170, 170, 170),
}
"""Colours of the part map. Background object i has (204, 204, 204 + i). Empty pixels are black."""
MAX_OBJECTS = 34
REACH = 230.0
"""The camera distance at which a bird has the size of its outlines."""
ORDER = ("wing02", "tail", "foot02", "foot01", "body", "beak", "eye02", "eye01", "wing01")
"""Drawing order, from back to front. Background objects come first."""

PALETTE = {
    "yellow": (250, 201, 44),
    "orange": (244, 136, 36),
    "red": (222, 52, 48),
    "black": (66, 62, 84),
    "green": (44, 158, 84),
    "blue": (44, 104, 214),
    "violet": (136, 72, 180),
}
OBJECTS = {"red": (226, 140, 128), "green": (142, 188, 130), "blue": (136, 170, 214), "yellow": (238, 212, 132)}
SKIES = ((214, 232, 240), (246, 230, 210), (224, 236, 214), (238, 220, 232), (226, 224, 240), (240, 238, 222))
INK = (52, 44, 54)


def _classes(n: int = 50) -> tuple[dict[str, int], ...]:
    """Draw random classes. Any two differ in two parts or more, so an eye alone never decides."""
    generator, chosen = rng("birds", "classes"), list[dict[str, int]]()
    while len(chosen) < n:
        new = {part: int(generator.integers(len(variants))) for part, variants in PARTS.items()}
        if all(sum(new[part] != old[part] for part in PARTS) >= 2 for old in chosen):
            chosen.append(new)
    return tuple(chosen)


CLASSES = _classes()
"""The 50 classes: part -> index of its variant."""


def scene(split: str, index: int, seed: int = 0) -> dict[str, Any]:
    """Make a scene with the keys of FunnyBirds' json files. Its class is index % 50.

    In half of the training scenes, 0 to 5 random parts are missing (PLACEHOLDER). So networks learn birds without parts.

    Args:
        split: "train" or "test".
        index: 0 or more.
        seed: Another seed gives other scenes.

    Returns:
        Lengths in pixels of a 256 px image and angles in radians. camera_x and camera_y (the bird's position) and bg_sky
        are not in FunnyBirds.

    Raises:
        InputError: The split is unknown, or the index is negative.
    """
    one_of("split", split, SPLITS)
    if index < 0:
        raise InputError(f"Expected a scene's index of 0 or more, got {index}.")
    generator = rng("birds", split, index, seed)
    turn = 2 * math.pi

    def uniform(low: float, high: float) -> float:
        return round(float(generator.uniform(low, high)), 3)

    lacking: set[str] = set()
    if split == "train" and generator.integers(2):
        lacking = set(generator.permutation(list(PARTS))[: generator.integers(len(PARTS) + 1)].tolist())
    bird: dict[str, Any] = {"class_idx": index % len(CLASSES), "camera_distance": uniform(220, 300)}
    room = np.maximum(SIDE / 2 - np.array((112, 98)) * REACH / bird["camera_distance"], 4)
    bird["camera_x"], bird["camera_y"] = (uniform(-r, r) for r in room)
    bird |= {"camera_pitch": uniform(0, turn), "camera_roll": uniform(-0.42, 0.42)}
    bird |= {"light_distance": 300, "light_pitch": uniform(0, turn), "light_roll": uniform(0, turn)}
    for part, variant in CLASSES[bird["class_idx"]].items():
        for key, value in PARTS[part][variant].items():
            bird[f"{part}_{key}"] = PLACEHOLDER if part in lacking else value
    count = int(generator.integers(MAX_OBJECTS + 1, size=2).min())
    objects = {
        "bg_objects": generator.integers(len(_OBJECTS), size=count),
        "bg_radius": generator.integers(70, 165, count),
        "bg_roll": generator.uniform(0, turn, count).round(3),
        "bg_scale_x": generator.integers(8, 27, count),
        "bg_scale_y": generator.integers(8, 27, count),
        "bg_rot_z": generator.uniform(0, turn, count).round(3),
        "bg_color": np.array(list(OBJECTS))[generator.integers(len(OBJECTS), size=count)],
    }
    bird |= {key: "".join(f"{value}," for value in values.tolist()) for key, values in objects.items()}
    return bird | {"bg_sky": int(generator.integers(len(SKIES)))}


def is_whole(bird: dict[str, Any]) -> bool:
    """Return whether a scene shows all parts of its bird."""
    return all(bird[f"{part}_model"] != PLACEHOLDER for part in PARTS)


_OBJECTS = (oval(0, 0, 1, 1), polygon(-1, -1, 1, -1, 1, 1, -1, 1), polygon(0, -1.1, 1, 1, -1, 1), cloud(), star())


def listed(bird: dict[str, Any], key: str) -> list[str]:
    """Split a comma-terminated entry of a scene into its values."""
    return [value for value in str(bird[key]).split(",") if value]


def _affine(angle: float, x_scale: float, y_scale: float) -> np.ndarray:
    # Sines may differ in the last bit between machines, so they are rounded.
    cosine, sine = round(math.cos(angle) * 4096) / 4096, round(math.sin(angle) * 4096) / 4096
    return np.array([[cosine * x_scale, sine * x_scale], [-sine * y_scale, cosine * y_scale]])


def _groups(bird: dict[str, Any], kept: frozenset[str], yaw: float) -> Iterable[tuple[str, Group]]:
    """Yield the labels and outlines of a bird that faces right, from back to front."""
    for label in ORDER:
        part = label.rstrip("012")
        if part == "body":
            yield from ((label, group) for group in BODY)
            continue
        model = bird[f"{part}_model"]
        if part not in kept or model == PLACEHOLDER or (label == "eye02" and yaw < 0.3):
            continue
        colour = PALETTE[bird.get(f"{part}_color", "black")]
        shift = {"eye01": (-EYE_REACH * yaw, 0.0), "eye02": (2 * EYE_REACH * yaw, -2.0)}.get(label, (0.0, 0.0))
        for group in SHAPES[label, int(model[len(part) : len(part) + 2]) - 1]:
            fills = tuple((points + shift, colour if fill is None else fill) for points, fill in group.fills)
            yield label, Group(fills, group.ink, group.bends)


def _paint(
    bird: dict[str, Any], kept: Iterable[str] | None, without_object: int | None, side: int, labels: bool
) -> tuple[Image.Image, int]:
    """Paint a scene in colour or in label colours. Return the canvas and how many times larger than `side` it is."""
    count = len(listed(bird, "bg_objects"))
    if without_object is not None and not 0 <= without_object < count:
        raise InputError(f"Expected a background object from 0 to {count - 1}, got {without_object}.")
    shown = frozenset(PARTS if kept is None else (one_of("part", part, PARTS) for part in kept))
    over = 3 if side > 160 else 4
    size = side * over
    unit = size / SIDE
    stroke = max(1, round(2.4 * unit) * 2)
    mirror, yaw = math.cos(bird["camera_pitch"]) < 0, abs(math.sin(bird["camera_pitch"]))
    warm, bright = math.sin(bird["light_roll"]), 0.93 + 0.1 * math.sin(bird["light_pitch"])
    light = np.array((1 + 0.06 * warm, 1, 1 - 0.06 * warm)) * bright

    def lit(colour: tuple[int, int, int]) -> tuple[int, int, int]:
        red, green, blue = (min(255, round(c * f)) for c, f in zip(colour, light, strict=True))
        return red, green, blue

    if labels:
        canvas = Image.new("RGB", (size, size))
    else:
        sky = np.array(lit(SKIES[bird["bg_sky"]]))
        fall = sky - np.linspace(0, 26, side)[:, None]
        canvas = Image.fromarray(fall.round().astype(np.uint8)[:, None]).resize((size, size), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)

    def corners(points: np.ndarray, matrix: np.ndarray, place: tuple[float, float]) -> list[int]:
        return np.rint((points @ matrix + place) * unit).astype(int).ravel().tolist()

    columns = [listed(bird, k) for k in ("bg_objects", "bg_radius", "bg_roll", "bg_scale_x", "bg_scale_y", "bg_rot_z")]
    for number, (values, name) in enumerate(zip(zip(*columns, strict=True), listed(bird, "bg_color"), strict=True)):
        if number == without_object:
            continue
        kind, radius, roll, width, height, turn = (float(value) for value in values)
        place = (SIDE / 2 + radius * math.cos(roll), SIDE / 2 + radius * math.sin(roll))
        points = corners(_OBJECTS[int(kind)], _affine(turn, width, height), place)
        pen.polygon(points, (204, 204, 204 + number) if labels else lit(OBJECTS[name]))

    scale = REACH / bird["camera_distance"]
    matrix = _affine(0, -1 if mirror else 1, 1) @ _affine(bird["camera_roll"], scale, scale)
    matrix = np.diag((1 - 0.15 * yaw, 1.0)) @ matrix
    place = (SIDE / 2 + bird["camera_x"], SIDE / 2 + bird["camera_y"])
    for label, group in _groups(bird, shown, yaw):
        shapes = [(corners(points, matrix, place), colour) for points, colour in group.fills]
        ink = LABELS[label] if labels else lit(INK)
        for (points, _), bends in zip(shapes, group.bends if group.ink else (), strict=group.ink):
            pen.line(points + points[:4], ink, stroke)
            for k in bends:  # Pillow's lines have notches where they bend, and its option to fill them is slow
                pen.circle((points[2 * k], points[2 * k + 1]), stroke / 2, ink)
        for points, colour in shapes:  # _groups has replaced every None by a colour
            pen.polygon(points, LABELS[label] if labels else lit(cast(tuple[int, int, int], colour)))
    return canvas, over


def draw(
    bird: dict[str, Any], kept: Iterable[str] | None = None, without_object: int | None = None, side: int = SIDE
) -> np.ndarray:
    """Draw a scene. What is left out shows what lies behind it. Nothing else changes.

    Args:
        bird: A scene.
        kept: The parts to draw. None draws all.
        without_object: The number of a background object to leave out.
        side: Side of the image in pixels.

    Returns:
        RGB pixels, uint8 (side,side,3).

    Raises:
        InputError: A part or object is unknown.
    """
    canvas, over = _paint(bird, kept, without_object, side, labels=False)
    return np.asarray(canvas.reduce(over))


def part_map(
    bird: dict[str, Any], kept: Iterable[str] | None = None, without_object: int | None = None, side: int = SIDE
) -> np.ndarray:
    """Return what lies at the centre of each pixel of `draw`, in the colours of LABELS: uint8 (side,side,3)."""
    canvas, over = _paint(bird, kept, without_object, side, labels=True)
    return np.asarray(canvas)[over // 2 :: over, over // 2 :: over].copy()


def image_name(folder: str, bird: dict[str, Any], index: int) -> str:
    """Return the path in the layout of image `index` of the folder train, test or test_part_map."""
    return f"{folder}/{bird['class_idx']}/{index:06d}.png"


def intervention_name(bird: dict[str, Any], index: int, kept: Iterable[str]) -> str:
    """Return the path in the layout of the test image with only these parts kept."""
    return f"test_interventions/{bird['class_idx']}/{index:06d}/body_{'_'.join(sorted(kept))}.png"


def without_object_name(bird: dict[str, Any], index: int, number: int) -> str:
    """Return the path in the layout of the test image without this background object."""
    return f"test_interventions/{bird['class_idx']}/{index:06d}/background_interventions/{number}.png"


def save(path: Path, picture: np.ndarray) -> None:
    """Write an image (H,W,3) as RGBA png. A reader never sees half of it."""
    opaque = Image.fromarray(picture).convert("RGBA")
    write_whole(path, lambda part: opaque.save(part, "PNG", compress_level=1), synced=False)


def save_lists(root: Path, **scenes: list[dict[str, Any]]) -> None:
    """Write classes.json, parts.json and a dataset_<split>.json for each of the given splits."""
    content: dict[str, Any] = {f"dataset_{split}": birds for split, birds in scenes.items()}
    content["classes"] = [{"class_idx": k, "parts": parts} for k, parts in enumerate(CLASSES)]
    for name, value in (content | {"parts": PARTS}).items():
        write_whole(root / f"{name}.json", partial(Path.write_text, data=json.dumps(value), encoding="utf-8"))


def subsets() -> list[tuple[str, ...]]:
    """Return the 32 subsets of the parts. Bit k of a subset's number tells whether it contains part k."""
    return [tuple(part for k, part in enumerate(PARTS) if number >> k & 1) for number in range(2 ** len(PARTS))]


def write(root: str | Path, train: int, test: int) -> None:
    """Write the first scenes of both splits to a folder in FunnyBirds' layout: images, part maps and interventions."""
    root = Path(root)
    scenes = {split: [scene(split, i) for i in range(n)] for split, n in (("train", train), ("test", test))}
    for split, chosen in scenes.items():
        for i, bird in enumerate(chosen):
            save(root / image_name(split, bird, i), draw(bird))
    for i, bird in enumerate(scenes["test"]):
        save(root / image_name("test_part_map", bird, i), part_map(bird))
        for kept in subsets():
            save(root / intervention_name(bird, i, kept), draw(bird, kept))
        for number in range(len(listed(bird, "bg_objects"))):
            save(root / without_object_name(bird, i, number), draw(bird, without_object=number))
    save_lists(root, **scenes)


def main(arguments: list[str] | None = None) -> int:
    """Write the set to a folder: `python -m refinecam_lib.funnybirds.drawing --out FOLDER --train N --test N`."""
    parser = argparse.ArgumentParser(prog="refinecam_lib.funnybirds.drawing", description=main.__doc__)
    parser.add_argument("--out", required=True, help="the folder to write to")
    for split, n in SPLITS.items():
        parser.add_argument(f"--{split}", type=int, default=n, help=f"number of {split} images (default {n:,})")
    given = parser.parse_args(arguments)
    if min(given.train, given.test) < 0:
        parser.error(f"Expected 0 images or more, got --train {given.train} --test {given.test}.")
    write(given.out, given.train, given.test)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
