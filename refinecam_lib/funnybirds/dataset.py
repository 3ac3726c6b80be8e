"""FunnyBirds (Hesse et al., ICCV 2023), read from its files: images, part maps and interventions.

>>> birds = FunnyBirds()
>>> birds[3].image.shape, birds.interventions(3).shape, list(birds.masks(3))[:2]
(torch.Size([3, 256, 256]), torch.Size([32, 3, 256, 256]), ['beak', 'eye'])

FUNNYBIRDS_ROOT is the folder of the official set. Without it the project's own birds stand in, in the same layout: a
file that is read and isn't there yet is drawn and written first.
"""

import json
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch.nn.functional import max_pool2d

from .. import paths
from ..datasets.sample import UNREADABLE, Sample, tensor_of
from ..errors import InputError, folder, one_of
from . import drawing as birds
from .drawing import LABELS, PLACEHOLDER, SIDE, listed, subsets

PARTS = ("beak", "eye", "foot", "tail", "wing")
"""The parts of a bird; bit k of a subset's number tells whether it holds PARTS[k], 31 is the whole bird."""
SPREAD = 5
"""Side, in pixels, of the square by whose maximum a part's mask is widened."""


class FunnyBirds:
    """The test images of a set in FunnyBirds' layout, a sequence of Samples, with their part maps and interventions.

    root: the folder of the official set or of another in its layout; None means FUNNYBIRDS_ROOT if that is set, else
    the project's own set, which is drawn as it is read and kept in the folder of the results.
    classes: the part -> variant of each class. Raises InputError, naming the file, for a set that is malformed.
    """

    def __init__(self, root: str | Path | None = None):
        given = root or os.environ.get("FUNNYBIRDS_ROOT")
        self.drawn = not given
        self.root = folder("FunnyBirds (root or FUNNYBIRDS_ROOT)", given) if given else _own()
        self.variants = _variants(self.root / "parts.json")
        self.classes = _classes(self.root / "classes.json", self.variants)
        if given:
            images, lines = len(list((self.root / "test").glob("*/*.png"))), len(self._scenes["test"])
            if images > lines:
                raise InputError(
                    f"{self.root / 'dataset_test.json'} lists {lines} images, but test/ holds {images}; "
                    "allowed: a line for each"
                )

    def __len__(self) -> int:
        return len(self._scenes["test"])

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.test(index % len(self))

    @cached_property
    def _scenes(self) -> dict[str, list[dict[str, Any]]]:
        return {"test": _scenes(self.root / "dataset_test.json", len(self.classes))}

    def train_length(self) -> int:
        """How many training images there are; the project's own set is endless, and meant to be used so far."""
        return birds.SPLITS["train"] if self.drawn else len(self._split("train"))

    def _split(self, split: str) -> list[dict[str, Any]]:
        if split not in self._scenes:
            self._scenes[split] = _scenes(self.root / f"dataset_{split}.json", len(self.classes))
        return self._scenes[split]

    def scene(self, index: int, split: str = "test") -> dict[str, Any]:
        """The scene of an image; InputError for an unknown split or an index that isn't there."""
        one_of("split", split, birds.SPLITS)
        if self.drawn and split == "train":
            return birds.scene(split, index)
        scenes = self._split(split)
        if not 0 <= index < len(scenes):
            raise InputError(f"{split} image {index}; allowed: 0 to {len(scenes) - 1}")
        return scenes[index]

    def test(self, index: int) -> Sample:
        """Test image `index`: float32 (3,256,256) in [0,1], its class the target."""
        bird = self.scene(index)
        image = self._image(birds.image_name("test", bird, index), lambda: birds.draw(bird))
        return _sample(image, bird, f"test-{index:06d}")

    def train(self, index: int, side: int = SIDE) -> Sample:
        """Training image `index`: float32 (3,side,side), with the classes that its visible parts allow in `info`.

        info["compatible"] lists them as "3,17", all of them where no part is visible. The project's own set is drawn at
        that side, files are read and averaged to it.
        """
        bird = self.scene(index, "train")
        if self.drawn:
            pixels = birds.draw(bird, side=side)
        else:
            pixels = self._pixels(birds.image_name("train", bird, index))
            if side != SIDE:
                pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))
        compatible = ",".join(map(str, self.compatible(bird)))
        return sample_of(pixels, bird, f"train-{index:06d}", compatible=compatible)

    def compatible(self, bird: dict[str, Any]) -> list[int]:
        """The classes that have all parts that a scene shows; InputError for a scene that shows an unknown part."""
        visible = {part: index for part in PARTS if (index := self._variant(bird, part)) is not None}
        return [k for k, own in enumerate(self.classes) if all(own[part] == index for part, index in visible.items())]

    def _variant(self, bird: dict[str, Any], part: str) -> int | None:
        shown = {key: bird.get(f"{part}_{key}") for key in self.variants[part][0]}
        if PLACEHOLDER in shown.values():
            return None
        if shown not in self.variants[part]:
            raise InputError(f"a scene of {self.root} has the {part} {shown}; allowed: those of parts.json")
        return self.variants[part].index(shown)

    def masks(self, index: int) -> dict[str, torch.Tensor]:
        """The pixels of each part and background object, bool (256,256), widened by 5 x 5: "beak" .., "object_00" ..

        A part's colours (two eyes, feet, wings) are one mask; what is hidden has an empty one. Raises InputError for a
        part map with another colour.
        """
        bird = self.scene(index)
        name = birds.image_name("test_part_map", bird, index)
        pixels = self._pixels(name, lambda: birds.part_map(bird)).astype(np.int64) @ (65536, 256, 1)
        colours = {label: [_code(colour)] for label, colour in LABELS.items()}
        wanted = {
            part: [code for label, codes in colours.items() if label[: len(part)] == part for code in codes]
            for part in PARTS
        }
        objects = range(len(listed(bird, "bg_objects")))
        wanted |= {f"object_{i:02d}": [_code((204, 204, 204 + i))] for i in objects}
        known = {code for codes in (*wanted.values(), *colours.values(), [0]) for code in codes}
        if unknown := sorted(set(np.unique(pixels).tolist()) - known):
            colour = tuple(unknown[0].to_bytes(3, "big"))
            raise InputError(
                f"{self.root / name} has the colour {colour}; allowed: those of the parts, of the scene's {len(objects)} "
                "background objects, and black"
            )
        masks = np.stack([np.isin(pixels, codes) for codes in wanted.values()])
        wide = max_pool2d(torch.from_numpy(masks).float(), SPREAD, stride=1, padding=SPREAD // 2) > 0
        return dict(zip(wanted, wide, strict=True))

    def intervention(self, index: int, kept: Iterable[str]) -> torch.Tensor:
        """Test image `index` with only these parts kept: float32 (3,256,256)."""
        bird, parts = self.scene(index), tuple(one_of("part", part, PARTS) for part in kept)
        return self._image(birds.intervention_name(bird, index, parts), lambda: birds.draw(bird, parts))

    def interventions(self, index: int) -> torch.Tensor:
        """Test image `index` with each subset of the parts, by its number: float32 (32,3,256,256)."""
        return torch.stack([self.intervention(index, parts) for parts in subsets()])

    def without_object(self, index: int, number: int) -> torch.Tensor:
        """Test image `index` without one background object: float32 (3,256,256)."""
        bird = self.scene(index)
        there = len(listed(bird, "bg_objects"))
        if not 0 <= number < there:
            raise InputError(f"background object {number} of test image {index}; it has {there}, counted from 0")
        name = birds.without_object_name(bird, index, number)
        return self._image(name, lambda: birds.draw(bird, without_object=number))

    def without_objects(self, index: int) -> torch.Tensor:
        """Test image `index` without each of its background objects in turn: float32 (objects,3,256,256)."""
        there = range(len(listed(self.scene(index), "bg_objects")))
        images = [self.without_object(index, number) for number in there]
        return torch.stack(images) if images else torch.empty(0, 3, SIDE, SIDE)

    def _image(self, name: str, drawing: Callable[[], np.ndarray]) -> torch.Tensor:
        return tensor_of(self._pixels(name, drawing))

    def _pixels(self, name: str, drawing: Callable[[], np.ndarray] | None = None) -> np.ndarray:
        """A file's pixels without alpha: uint8 (256,256,3)."""
        path = self.root / name
        if self.drawn and drawing and not path.exists():
            birds.save(path, drawing())
        try:
            with Image.open(path) as opened:
                pixels = np.asarray(opened)
        except UNREADABLE as error:
            raise InputError(f"{path} is missing or not a picture: {error}") from error
        if pixels.dtype != np.uint8 or pixels.shape not in {(SIDE, SIDE, 3), (SIDE, SIDE, 4)}:
            raise InputError(f"{path} has {pixels.shape} values; allowed: RGB or RGBA of {SIDE} x {SIDE} px")
        return pixels[..., :3]


def _own() -> Path:
    """Return the folder of the project's own set, and write its lists where they are missing."""
    root = paths.RESULTS / "birds" / f"{birds.VERSION}-pillow-{PIL.__version__}"
    if not (root / "parts.json").exists():  # the last that is written
        birds.save_lists(root, test=[birds.scene("test", i) for i in range(birds.SPLITS["test"])])
    return root


def sample_of(pixels: np.ndarray, bird: dict[str, Any], name: str, **info: str) -> Sample:
    """The Sample of a bird's picture, uint8 (H,W,3)."""
    return _sample(tensor_of(pixels), bird, name, **info)


def _sample(image: torch.Tensor, bird: dict[str, Any], name: str, **info: str) -> Sample:
    return Sample(image, int(bird["class_idx"]), name, info={"class": f"bird {bird['class_idx']:02d}"} | info)


def _code(colour: tuple[int, int, int]) -> int:
    return int.from_bytes(bytes(colour), "big")


def _json(path: Path, kind: type) -> Any:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or not json: {error}") from error
    if not isinstance(content, kind) or not content:
        given = f"{type(content).__name__} of {len(content) if isinstance(content, list | dict) else 1}"
        raise InputError(f"{path} holds {given}; allowed: a {kind.__name__} with items")
    return content


def _variants(path: Path) -> dict[str, list[dict[str, str]]]:
    parts = _json(path, dict)
    for part in PARTS:
        if not isinstance(parts.get(part), list) or not all(isinstance(v, dict) and "model" in v for v in parts[part]):
            raise InputError(f"{path} has no list of variants with their 'model' for the part {part!r}")
    return {part: parts[part] for part in PARTS}


def _classes(path: Path, variants: dict[str, list[dict[str, str]]]) -> tuple[dict[str, int], ...]:
    classes = _json(path, list)
    for k, one in enumerate(classes):
        parts = one.get("parts", {}) if isinstance(one, dict) else {}
        for part in PARTS:
            if parts.get(part) not in range(len(variants[part])):
                allowed = f"0 to {len(variants[part]) - 1}"
                raise InputError(f"{path}: class {k} has the {part} {parts.get(part)!r}; allowed: {allowed}")
    return tuple({part: one["parts"][part] for part in PARTS} for one in classes)


def _scenes(path: Path, classes: int) -> list[dict[str, Any]]:
    scenes = _json(path, list)
    wanted = {"class_idx", "bg_objects"} | {f"{part}_model" for part in PARTS}
    for i, bird in enumerate(scenes):
        if lacking := sorted(wanted - set(bird)):
            raise InputError(f"{path}: scene {i} has no {', '.join(lacking)}")
        if bird["class_idx"] not in range(classes):
            raise InputError(f"{path}: scene {i} has the class {bird['class_idx']!r}; allowed: 0 to {classes - 1}")
    return scenes
