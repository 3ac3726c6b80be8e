"""Draw scenes: objects, distractors, an occluder and a badge on a background, with the exact pixels of each.

>>> sample = Scenes("test", n=600)[0]
>>> sample.image.shape, sample.info["condition"], sample.info["class"]
(torch.Size([3, 224, 224]), 'base', 'insect')

A scene is a stack of layers. Each has a seed of its own, so one can be drawn again while the others keep every byte. Item
i depends on (split, condition, i, seed) alone and has the same bytes on every machine.

Two data sets show the same images: the class is the object's or the badge's kind, and neither says anything about the
other. So an explanation that ignores the network cannot be right about both.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from ..errors import InputError, one_of, rng
from .backdrops import EMPTY, KINDS, PHOTOGRAPHS, SIZE, Backdrop, backdrop, one
from .cutouts import BADGES, CLASSES, DISTRACTORS, Cutout, badge, cut_out, pictures
from .sample import Sample, tensor_of

SIZES = {"small": (30, 43), "medium": (48, 65), "large": (76, 105)}
"""Half-open ranges of an object's longest side before turning, in pixels."""
BADGE_SIZES = {"small": (22, 28), "large": (38, 44)}
"""Half-open ranges of a badge's diameter in pixels."""
LAYERS = ("background", "distractors", "second", "object", "occluder", "badge")
"""From back to front."""
ORDER = ("object", "badge", "second", "occluder", "distractors", "background")
"""The order in which layers are drawn. Badge and second object keep clear of the object, the occluder hides a part."""
TWINS: dict[str, tuple[str, tuple[str, ...]]] = {"objects": ("object", CLASSES), "badges": ("badge", tuple(BADGES))}
"""Twin data set -> the layer that decides the class, and the classes."""
MARKS = ("truth", "other", "half", "more", "distractors")
"""What a data set's masks mark: the truth, the other twin's truth, the left half of the truth, the truth and all
distractors, or the distractors alone. Only the first is right. The others test scores."""
TURN = 30
"""Largest rotation of a thing in degrees."""
TRIES = 60
"""How often a place without overlap is looked for."""


@dataclass(frozen=True)
class Levels:
    """What is in a scene, factor by factor. The defaults are the easiest levels."""

    background: str = "crowd"
    """A name in backdrops.KINDS."""
    distractors: int = 0
    """Things of no class behind the objects."""
    size: str = "medium"
    """Of the object, a name in SIZES."""
    hidden: int = 0
    """Percent of the object's pixels that an occluder hides."""
    objects: int = 1
    """1, or 2 for a second object of another class."""
    badge: str = "small"
    """A name in BADGE_SIZES."""


_HARD = Levels("photograph", 5, "small", 50, 2, "large")
CONDITIONS = {
    "base": Levels(),
    "photograph": Levels(background="photograph"),
    "mosaic": Levels(background="mosaic"),
    "distractors": Levels(distractors=5),
    "hidden": Levels(hidden=50),
    "two objects": Levels(objects=2),
    "large badge": Levels(badge="large"),
    "small": Levels(size="small"),
    "all, photograph": _HARD,
    "all, mosaic": replace(_HARD, background="mosaic"),
}
"""Test conditions: the base, each factor alone at its hardest, and all factors together on both hard backgrounds."""
MIXTURES = ("mixed", "single")
"""Conditions that draw every factor at random. "single" has one object only."""


@dataclass(frozen=True)
class Thing:
    """An object, distractor or badge at a place."""

    kind: str
    """Its class, group or kind of badge."""
    name: str
    """Its picture, or "" for a badge."""
    size: int
    """Longest side, or a badge's diameter."""
    angle: int
    flipped: bool
    colour: tuple[int, int, int]
    """Gains in 256ths, or a badge's colour."""
    x: int = 0
    y: int = 0
    """The centre in pixels."""

    @property
    def look(self) -> Cutout:
        """What it looks like in its own box."""
        if not self.name:
            return badge(self.kind, self.size, self.colour)
        return cut_out(self.name, self.size, self.angle, self.flipped, self.colour)

    def footprint(self) -> np.ndarray:
        """Return the pixels that it covers, hidden ones too: bool (224,224)."""
        return self.look.onto(self.x, self.y, np.zeros((SIZE, SIZE, 3), np.uint8))


@dataclass(frozen=True, eq=False)
class Scene:
    """A stack of layers."""

    split: str
    levels: Levels
    things: Mapping[str, tuple[Thing, ...]] = field(default_factory=dict)
    """Layer -> its things from back to front. A layer may be empty."""
    behind: Backdrop = EMPTY
    """The background."""

    def kind(self, layer: str) -> str:
        """Return the class or kind of a layer's first thing, "" if the layer is empty."""
        found = self.things.get(layer)
        return found[0].kind if found else ""

    def covered(self, *layers: str) -> np.ndarray:
        """Return the pixels that layers cover, hidden ones too: bool (224,224)."""
        covered = np.zeros((SIZE, SIZE), bool)
        for thing in (thing for layer in layers for thing in self.things.get(layer, ())):
            covered |= thing.footprint()
        return covered

    def drawn(self, without: Collection[str] = ()) -> np.ndarray:
        """Draw the image without some layers, so that what lies behind them shows: uint8 (224,224,3)."""
        return self._paint(without)[0]

    def visible(self, layer: str) -> np.ndarray:
        """Return V(layer), the pixels of a layer that nothing hides: bool (224,224)."""
        return self._whole[1] == LAYERS.index(one_of("layer", layer, LAYERS))

    @cached_property
    def _whole(self) -> tuple[np.ndarray, np.ndarray]:
        return self._paint(())

    def _paint(self, without: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the image and the number of the frontmost layer at each pixel."""
        canvas, front = self.behind.pixels.copy(), np.zeros((SIZE, SIZE), np.int8)
        for number, layer in enumerate(LAYERS):
            for thing in () if layer in without else self.things.get(layer, ()):
                front[thing.look.onto(thing.x, thing.y, canvas)] = number
        return canvas, front

    def redrawn(self, layers: Collection[str], *seed: object) -> "Scene":
        """Draw some layers again. All other layers stay as they are.

        Args:
            layers: Names in LAYERS.
            seed: Any printable parts. Each layer has a generator of its own.

        Raises:
            InputError: A layer is unknown.
        """
        for layer in layers:
            one_of("layer", layer, LAYERS)
        scene = self
        for layer in (name for name in ORDER if name in layers):
            generator = rng("scenes", layer, *seed)
            if layer == "background":
                scene = replace(scene, behind=backdrop(self.levels.background, self.split, generator))
            else:
                scene = replace(scene, things={**scene.things, layer: _DRAW[layer](scene, generator)})
        return scene

    def swapped(self, layer: str, *seed: object) -> "Scene":
        """Put an object of another class, or another kind of badge, at the same place. All other layers stay."""
        (thing,) = self.things[layer]
        generator = rng("scenes", "swap", layer, *seed)
        taken = {thing.kind, self.kind("second")}
        kind = one(generator, [name for name in (BADGES if layer == "badge" else CLASSES) if name not in taken])
        name = "" if layer == "badge" else one(generator, pictures(kind))
        return replace(self, things={**self.things, layer: (replace(thing, kind=kind, name=name),)})

    def kept_on(self, other: "Scene", layer: str) -> np.ndarray:
        """Draw another scene without a layer, and put this scene's visible pixels of the layer on top, byte by byte."""
        pixels, kept = other.drawn(without=[layer]), self.visible(layer)
        pixels[kept] = self._whole[0][kept]
        return pixels


def draw_scene(split: str, levels: Levels, *seed: object) -> Scene:
    """Draw a scene. Each layer depends on the split, the levels, the seed, and the layers that it keeps clear of."""
    return Scene(split, levels).redrawn(LAYERS, split, *seed)


def _thing(generator: np.random.Generator, group: str, sizes: tuple[int, int]) -> Thing:
    """Draw a picture of a group, without a place."""
    name, size = one(generator, pictures(group)), int(generator.integers(*sizes))
    angle, flipped = int(generator.integers(-TURN, TURN + 1)), bool(generator.integers(2))
    red, green, blue = (int(gain) for gain in generator.integers(236, 277, 3))
    return Thing(group, name, size, angle, flipped, (red, green, blue))


def _placed(generator: np.random.Generator, thing: Thing, taken: np.ndarray) -> Thing:
    """Put a thing at a random place inside the image that overlaps the pixels `taken` least, at best not at all."""
    height, width = thing.look.opacity.shape
    best, least = thing, SIZE * SIZE
    for _ in range(TRIES):
        x, y = (
            int(generator.integers(side // 2, max(side // 2, SIZE - side) + side // 2 + 1)) for side in (width, height)
        )
        found = replace(thing, x=x, y=y)
        overlap = int((found.footprint() & taken).sum())
        if overlap < least:
            best, least = found, overlap
        if not least:
            break
    return best


def _object(scene: Scene, generator: np.random.Generator) -> tuple[Thing, ...]:
    group = one(generator, [name for name in CLASSES if name != scene.kind("second")])
    thing = _thing(generator, group, SIZES[scene.levels.size])
    return (_placed(generator, thing, scene.covered("second", "badge")),)


def _second(scene: Scene, generator: np.random.Generator) -> tuple[Thing, ...]:
    if scene.levels.objects == 1:
        return ()
    group = one(generator, [name for name in CLASSES if name != scene.kind("object")])
    thing = _thing(generator, group, SIZES[min(scene.levels.size, "medium", key=lambda name: SIZES[name])])
    return (_placed(generator, thing, scene.covered("object", "badge")),)


def _badge(scene: Scene, generator: np.random.Generator) -> tuple[Thing, ...]:
    kind, size = one(generator, BADGES), int(generator.integers(*BADGE_SIZES[scene.levels.badge]))
    red, green, blue = (int(part) for part in generator.integers(0, 130, 3))
    thing = Thing(kind, "", size, 0, False, (red, green, blue))
    return (_placed(generator, thing, scene.covered("object", "second")),)


def _distractors(scene: Scene, generator: np.random.Generator) -> tuple[Thing, ...]:
    groups = [one(generator, DISTRACTORS) for _ in range(scene.levels.distractors)]
    things = [_thing(generator, group, (28, 81)) for group in groups]
    return tuple(replace(thing, x=int(x), y=int(y)) for thing in things for x, y in [generator.integers(SIZE, size=2)])


def _occluder(scene: Scene, generator: np.random.Generator) -> tuple[Thing, ...]:
    """Slide distractors over the object until the wanted share of its pixels is hidden."""
    if not scene.levels.hidden:
        return ()
    (thing,), wanted = scene.things["object"], scene.levels.hidden / 100
    covered = thing.footprint()
    best, miss = None, 2.0
    for _ in range(6):
        found = _thing(generator, one(generator, DISTRACTORS), (thing.size * 9 // 10, thing.size * 14 // 10))
        down, right = (int(step) for step in generator.integers(-8, 9, 2))
        for step in range(0, 2 * thing.size, 2) if down or right else ():
            longest = max(abs(down), abs(right))
            moved = replace(found, x=thing.x + step * right // longest, y=thing.y + step * down // longest)
            share = (moved.footprint() & covered).sum() / covered.sum()
            if abs(share - wanted) < miss:
                best, miss = moved, abs(share - wanted)
            if share < wanted:
                break
        if miss < 0.03:
            break
    return (best,) if best else ()


_DRAW = {
    "object": _object,
    "second": _second,
    "badge": _badge,
    "distractors": _distractors,
    "occluder": _occluder,
}


def _levels(generator: np.random.Generator, single: bool, shares: tuple[float, float, float]) -> Levels:
    """Draw the level of every factor. `shares` weights the sizes small, medium and large."""
    ends = np.cumsum(shares) / np.sum(shares)
    size = tuple(SIZES)[int(np.searchsorted(ends[:-1], generator.random(), side="right"))]
    background = KINDS[int(generator.integers(len(KINDS)))]
    distractors = (0, 2, 5)[int(generator.integers(3))]
    hidden = (0, 0, 0, 25, 50)[int(generator.integers(5))]
    objects = 1 + int(generator.integers(6) == 0 and not single)
    return Levels(background, distractors, size, hidden, objects, ("small", "large")[int(generator.integers(4) == 0)])


def _marked(scene: Scene, layer: str, mark: str) -> np.ndarray:
    """Return the pixels that a mask marks, see MARKS: bool (224,224)."""
    truth = scene.visible(layer)
    if mark == "other":
        return scene.visible("badge" if layer == "object" else "object")
    if mark == "half":
        columns = np.sort(np.nonzero(truth)[1])
        return truth & (np.arange(SIZE) <= columns[(len(columns) - 1) // 2])
    distractors = scene.visible("distractors")
    return {"truth": truth, "more": truth | distractors, "distractors": distractors}[mark]


@dataclass(frozen=True)
class Scenes:
    """A sequence of n Samples: images of 224 px with exact masks and the same images without the masked layer.

    `info` holds the condition, the level of each factor, the class, the object's class and the badge's kind, the scene
    that the background comes from, and in "compatible" the numbers of all classes shown.

    Raises:
        InputError: A value is not allowed.
    """

    split: str
    """train, validation or test, on disjoint crowds and photographs."""
    n: int
    """How many, 1 or more."""
    twin: str = "objects"
    """"objects" or "badges": what the class and the mask are about. The images are the same."""
    condition: str = "each"
    """A name in CONDITIONS or MIXTURES, or "each", which takes the CONDITIONS in turn."""
    seed: int = 0
    """Another seed draws other scenes."""
    shares: tuple[float, float, float] = (1, 1, 1)
    """Weights of small, medium and large objects in MIXTURES."""
    marked: str = "truth"
    """What the masks mark, a name in MARKS."""

    def __post_init__(self) -> None:
        one_of("split", self.split, PHOTOGRAPHS)
        one_of("twin", self.twin, TWINS)
        one_of("condition", self.condition, [*CONDITIONS, *MIXTURES, "each"])
        one_of("mark", self.marked, MARKS)
        if self.n < 1:
            raise InputError(f"Expected 1 item or more, got n = {self.n}.")

    def __len__(self) -> int:
        return self.n

    def _place(self, index: int) -> tuple[str, int]:
        """Return the condition of item `index` and its number there."""
        if not -self.n <= index < self.n:
            raise IndexError(f"item {index} of {self.n}")
        index %= self.n
        if self.condition != "each":
            return self.condition, index
        number, place = divmod(index, len(CONDITIONS))
        return tuple(CONDITIONS)[place], number

    def id_of(self, index: int) -> str:
        """Return the id of item `index` without drawing it. Both twins have the same ids."""
        condition, number = self._place(index)
        name = condition.replace(", ", "_").replace(" ", "_")
        seed = f"-{self.seed}" if self.seed else ""
        return f"{self.split}-{name}{seed}-{number:06d}"

    def scene(self, index: int) -> Scene:
        """Return the scene of item `index`. Conditions share the seeds, so item i has the same object in most."""
        condition, number = self._place(index)
        levels = CONDITIONS.get(condition)
        if levels is None:
            levels = _levels(rng("scenes", "levels", self.split, number, self.seed), condition == "single", self.shares)
        return draw_scene(self.split, levels, number, self.seed)

    def __getitem__(self, index: int) -> Sample:
        layer, classes = TWINS[self.twin]
        scene, (condition, _) = self.scene(index), self._place(index)
        levels, target = scene.levels, classes.index(scene.kind(layer))
        shown = [target] + ([classes.index(scene.kind("second"))] if layer == "object" and levels.objects == 2 else [])
        info = {"condition": condition, "class": classes[target], "object": scene.kind("object")}
        info |= {"badge": scene.kind("badge"), "badge_size": levels.badge, "size": levels.size}
        info |= {"background": levels.background, "scene": scene.behind.source, "hidden": str(levels.hidden)}
        info |= {"distractors": str(levels.distractors), "objects": str(levels.objects)}
        return Sample(
            image=tensor_of(scene.drawn()),
            target=target,
            id=self.id_of(index),
            mask=torch.from_numpy(_marked(scene, layer, self.marked)),
            info=info | {"compatible": ",".join(map(str, shown))},
            without=tensor_of(scene.drawn(without=[layer])),
        )
