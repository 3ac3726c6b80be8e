"""Read FunnyBirds (Hesse et al. 2023, https://arxiv.org/abs/2308.06248): images, part maps and interventions.

>>> birds = FunnyBirds()
>>> birds[3].image.shape, birds.interventions(3).shape, list(birds.masks(3))[:2]
(torch.Size([3, 256, 256]), torch.Size([32, 3, 256, 256]), ['beak', 'eye'])

FUNNYBIRDS_ROOT is the folder of the official set. Without it the project's own birds are used. They have the same
layout. A missing file is drawn and written when it is first read.
"""

import json
import os
from collections.abc import Callable, Iterable
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

PARTS = tuple(birds.PARTS)
"""The parts of a bird. Bit k of a subset's number tells whether it contains PARTS[k]. 31 is the whole bird."""
SPREAD = 5
"""A part's mask is widened by the maximum over squares of this side, in pixels."""
UNKNOWN = 0.03
"""Largest share of a part map's pixels with a colour of no label. Antialiased edges have such colours."""

Scene = dict[str, Any]


class NoSuchImage(InputError, IndexError):
    """An index beyond the list. As an IndexError it also ends a loop over the set."""


class FunnyBirds:
    """The test images of a set in FunnyBirds' layout: a sequence of Samples with part maps and interventions.

    Args:
        root: The folder of the official set or of another set in its layout. None takes FUNNYBIRDS_ROOT if it is set,
            else the project's own set.

    Raises:
        InputError: A list is malformed, contradicts classes.json or does not match the folder of the images. The
            message names the file.
    """

    def __init__(self, root: str | Path | None = None):
        given = root or os.environ.get("FUNNYBIRDS_ROOT")
        self.drawn = not given
        """Whether it is the project's own set."""
        self.root = folder("FunnyBirds (root or FUNNYBIRDS_ROOT)", given) if given else _own()
        self.variants = _variants(self.root / "parts.json")
        """Part -> its variants."""
        self.classes = _classes(self.root / "classes.json", self.variants)
        """For each class, part -> index of its variant."""
        self._lists: dict[str, list[Scene]] = {}
        if given:
            self._list("test")

    def __len__(self) -> int:
        return len(self._list("test"))

    def __getitem__(self, index: int) -> Sample:
        return self.test(index + len(self) if -len(self) <= index < 0 else index)

    def train_length(self) -> int:
        """Return the number of training images: 0 without a list, 50,000 for the project's own set, which has no end."""
        if self.drawn:
            return birds.SPLITS["train"]
        return len(self._list("train")) if (self.root / "dataset_train.json").exists() else 0

    def _list(self, split: str) -> list[Scene]:
        """Read the scenes of a split once, and check those of a given set."""
        if split not in self._lists:
            path = self.root / f"dataset_{split}.json"
            scenes = _json(path, list)
            wanted = {"class_idx", "bg_objects"} | {f"{part}_model" for part in PARTS}
            for i, bird in enumerate(scenes if not self.drawn else ()):
                if lacking := sorted(wanted - set(bird if isinstance(bird, dict) else ())):
                    raise InputError(f"{path}: scene {i} has no {', '.join(lacking)}.")
                if (k := bird["class_idx"]) not in range(len(self.classes)):
                    raise InputError(
                        f"{path}: expected a class from 0 to {len(self.classes) - 1}, got {k!r} in scene {i}."
                    )
                for part, variant in self._shown(bird).items():
                    if variant != self.classes[k][part]:
                        raise InputError(
                            f"{path}: scene {i} shows {part} {variant}, but its class {k} has {part} "
                            f"{self.classes[k][part]} in classes.json."
                        )
            if not self.drawn:
                there = {f"{split}/{file.parent.name}/{file.name}" for file in (self.root / split).glob("*/*.png")}
                names = [birds.image_name(split, bird, i) for i, bird in enumerate(scenes)]
                if missing := [name for name in names if name not in there]:
                    raise InputError(
                        f"{path} lists {len(names)} images, but {len(missing)} are missing, the first is "
                        f"{self.root / missing[0]}."
                    )
                if len(there) > len(names):
                    raise InputError(f"{path} lists {len(names)} images, but {split}/ holds {len(there)}.")
            self._lists[split] = scenes
        return self._lists[split]

    def scene(self, index: int, split: str = "test") -> Scene:
        """Return the scene of an image. Raises InputError if the split is unknown or the index is beyond the list."""
        one_of("split", split, birds.SPLITS)
        if self.drawn and split == "train":
            return birds.scene(split, index)
        scenes = self._list(split)
        if not 0 <= index < len(scenes):
            raise NoSuchImage(f"Expected a {split} image from 0 to {len(scenes) - 1}, got {index}.")
        return scenes[index]

    def test(self, index: int) -> Sample:
        """Return test image `index`: float32 (3,256,256) in [0,1]. The target is its class."""
        bird = self.scene(index)
        pixels = self._pixels(birds.image_name("test", bird, index), lambda: birds.draw(bird))
        return sample_of(pixels, bird, f"test-{index:06d}")

    def train(self, index: int, side: int = SIDE) -> Sample:
        """Return training image `index`.

        Args:
            index: Its number.
            side: Side in pixels. The project's own birds are drawn at this side. Files are averaged to it.

        Returns:
            A sample of float32 (3,side,side). info["compatible"] lists the classes that its visible parts allow, such as
            "3,17", or all classes if no part is visible.
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

    def compatible(self, bird: Scene) -> list[int]:
        """List the classes that have all parts that a scene shows. Raises InputError if it shows an unknown part."""
        visible = self._shown(bird)
        return [k for k, own in enumerate(self.classes) if all(own[part] == index for part, index in visible.items())]

    def _shown(self, bird: Scene) -> dict[str, int]:
        """Return the variant of each part that a scene shows."""
        found = {}
        for part, variants in self.variants.items():
            shown = {key: bird.get(f"{part}_{key}") for key in variants[0]}
            if PLACEHOLDER in shown.values():
                continue
            if shown not in variants:
                raise InputError(
                    f"{self.root}: a scene of class {bird['class_idx']} shows a {part} {shown} that is not in parts.json."
                )
            found[part] = variants.index(shown)
        return found

    def masks(self, index: int, framework: bool = False) -> dict[str, torch.Tensor]:
        """Return where each part and background object of a test image is visible, widened by 5 x 5 pixels.

        Args:
            index: The number of the test image.
            framework: Count as FunnyBirds' framework does: pixels near both eyes, feet or wings count twice.

        Returns:
            "beak", ..., "object_00", ... -> bool (256,256), or int64 with `framework`. Hidden parts have empty masks.

        Raises:
            InputError: More than 3 % of the part map has colours that belong to no label. Fewer are ignored.
        """
        bird = self.scene(index)
        name = birds.image_name("test_part_map", bird, index)
        pixels = self._pixels(name, lambda: birds.part_map(bird)).astype(np.int64) @ (65536, 256, 1)
        labels = {part: [colour for label, colour in LABELS.items() if label.startswith(part)] for part in PARTS}
        labels |= {f"object_{i:02d}": [(204, 204, 204 + i)] for i in range(len(listed(bird, "bg_objects")))}
        colours = [colour for each in labels.values() for colour in each]
        codes = np.array([*colours, LABELS["body"], (0, 0, 0)]) @ (65536, 256, 1)
        unknown = pixels[~np.isin(pixels, codes)]
        if unknown.size > UNKNOWN * pixels.size:
            raise InputError(
                f"{self.root / name}: {unknown.size / pixels.size:.1%} of the pixels have colours of no part or background "
                f"object of this scene, such as {tuple(int(unknown[0]).to_bytes(3, 'big'))}; expected at most {UNKNOWN:.0%}."
            )
        found = torch.from_numpy(pixels == codes[: len(colours), None, None])
        wide = max_pool2d(found.float(), SPREAD, stride=1, padding=SPREAD // 2) > 0
        groups = wide.split([len(each) for each in labels.values()])
        return {part: group.sum(0) if framework else group.any(0) for part, group in zip(labels, groups, strict=True)}

    def intervention(self, index: int, kept: Iterable[str]) -> torch.Tensor:
        """Return test image `index` with only these parts kept: float32 (3,256,256)."""
        bird, parts = self.scene(index), tuple(one_of("part", part, PARTS) for part in kept)
        return tensor_of(self._pixels(birds.intervention_name(bird, index, parts), lambda: birds.draw(bird, parts)))

    def interventions(self, index: int) -> torch.Tensor:
        """Return test image `index` with each subset of the parts kept, by its number: float32 (32,3,256,256)."""
        return torch.stack([self.intervention(index, parts) for parts in subsets()])

    def without_object(self, index: int, number: int) -> torch.Tensor:
        """Return test image `index` without one background object: float32 (3,256,256)."""
        bird = self.scene(index)
        if not 0 <= number < (count := len(listed(bird, "bg_objects"))):
            raise InputError(
                f"Test image {index} has {count} background objects, counted from 0, but not number {number}."
            )
        name = birds.without_object_name(bird, index, number)
        return tensor_of(self._pixels(name, lambda: birds.draw(bird, without_object=number)))

    def without_objects(self, index: int) -> torch.Tensor:
        """Return test image `index` without each of its background objects in turn: float32 (objects,3,256,256)."""
        count = len(listed(self.scene(index), "bg_objects"))
        return (
            torch.stack([self.without_object(index, i) for i in range(count)])
            if count
            else torch.empty(0, 3, SIDE, SIDE)
        )

    def _pixels(self, name: str, drawing: Callable[[], np.ndarray] | None = None) -> np.ndarray:
        """Read a file without its alpha channel, uint8 (256,256,3). Draw it first if the set is the project's own."""
        path = self.root / name
        if self.drawn and drawing and not path.exists():
            birds.save(path, drawing())
        try:
            with Image.open(path) as opened:
                pixels = np.asarray(opened)
        except UNREADABLE as error:
            raise InputError(f"{path} is missing or not a picture: {error}") from error
        if pixels.dtype != np.uint8 or pixels.shape not in {(SIDE, SIDE, 3), (SIDE, SIDE, 4)}:
            raise InputError(f"{path}: expected RGB or RGBA of {SIDE} x {SIDE} px, got shape {pixels.shape}.")
        return pixels[..., :3]


def _own() -> Path:
    """Return the folder of the project's own set, and write its lists where they are missing."""
    root = paths.RESULTS / "birds" / f"{birds.VERSION}-pillow-{PIL.__version__}"
    if not (root / "parts.json").exists():  # written last
        birds.save_lists(root, test=[birds.scene("test", i) for i in range(birds.SPLITS["test"])])
    return root


def sample_of(pixels: np.ndarray, bird: Scene, name: str, **info: str) -> Sample:
    """Turn a picture of a bird, uint8 (H,W,3), into a Sample."""
    return Sample(
        tensor_of(pixels), int(bird["class_idx"]), name, info={"class": f"bird {bird['class_idx']:02d}"} | info
    )


def _json(path: Path, kind: type) -> Any:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or not json: {error}") from error
    if not isinstance(content, kind) or not content:
        raise InputError(f"{path}: expected a {kind.__name__} with items, got {str(content)[:40]}.")
    return content


def _variants(path: Path) -> dict[str, list[dict[str, str]]]:
    parts = _json(path, dict)
    for part in PARTS:
        known = parts.get(part)
        if not isinstance(known, list) or not known or not all(isinstance(v, dict) and "model" in v for v in known):
            raise InputError(f"{path}: expected a list of variants with a 'model' for the part {part!r}.")
    return {part: parts[part] for part in PARTS}


def _classes(path: Path, variants: dict[str, list[dict[str, str]]]) -> tuple[dict[str, int], ...]:
    classes = _json(path, list)
    for k, one in enumerate(classes):
        one = one if isinstance(one, dict) else {}
        if one.get("class_idx", k) != k:
            raise InputError(f"{path}: expected class_idx {k} at position {k}, got {one['class_idx']!r}.")
        parts = one.get("parts", {})
        for part in PARTS:
            if parts.get(part) not in range(len(variants[part])):
                allowed = f"0 to {len(variants[part]) - 1}"
                raise InputError(f"{path}: expected a {part} from {allowed} for class {k}, got {parts.get(part)!r}.")
    return tuple({part: one["parts"][part] for part in PARTS} for one in classes)
