"""A small set in the layout of the official FunnyBirds, with its difficulties: antialiased part maps, no or many objects,
hidden parts, missing parts, and scenes ordered by class."""

import json

import numpy as np

from refinecam_lib.funnybirds import drawing
from refinecam_lib.funnybirds.drawing import CLASSES, PARTS, PLACEHOLDER, listed

NUMBERS = {"usual": 3, "empty": 7, "crowded": 12, "hidden": 20, "lacking": 33}
"""Kind of test bird -> the number of the scene that it is made from, one of another class each."""
KINDS = tuple(NUMBERS)
HIDDEN, LACKING = "wing", "tail"
OBJECTS = 34


def class_of(bird):
    """Return the class in this set. The order of classes is the reverse of the project's own set."""
    return len(CLASSES) - 1 - bird["class_idx"]


def scene_of(kind):
    """Return the scene of a kind of test bird, and the parts that are visible in it."""
    bird = drawing.scene("test", NUMBERS[kind])
    keys = [key for key in bird if key.startswith("bg_") and key != "bg_sky"]
    if kind == "empty":
        bird |= dict.fromkeys(keys, "")
    if kind == "crowded":
        more = [drawing.scene("test", k) for k in range(100)]
        values = {key: [value for one in more for value in listed(one, key)][:OBJECTS] for key in keys}
        bird |= {key: "".join(f"{value}," for value in each) for key, each in values.items()}
    if kind == "lacking":
        bird |= {f"{LACKING}_{key}": PLACEHOLDER for key in PARTS[LACKING][0]}
    return bird, frozenset(PARTS) - ({HIDDEN} if kind == "hidden" else set())


def antialiased(bird, visible):
    """Return the part map as the mean over pairs of pixels, so that edges have colours of no label."""
    fine = drawing.part_map(bird, visible, side=2 * drawing.SIDE)[::2].astype(int)
    return (fine.reshape(drawing.SIDE, drawing.SIDE, 2, 3).sum(2) // 2).astype(np.uint8)


def write(root, train=0, kinds=KINDS):
    """Write the set to a folder: one test bird of each kind, and `train` training birds of each class."""
    lists, numbers = {"train": [], "test": []}, range(len(CLASSES) * train)
    for number in sorted(numbers, key=lambda k: class_of(drawing.scene("train", k))):
        bird, index = drawing.scene("train", number), len(lists["train"])
        picture = drawing.draw(bird)
        bird["class_idx"] = class_of(bird)
        drawing.save(root / drawing.image_name("train", bird, index), picture)
        lists["train"].append(bird)
    for index, kind in enumerate(sorted(kinds, key=lambda kind: class_of(scene_of(kind)[0]))):
        bird, visible = scene_of(kind)
        named = bird | {"class_idx": class_of(bird)}
        drawing.save(root / drawing.image_name("test", named, index), drawing.draw(bird, visible))
        drawing.save(root / drawing.image_name("test_part_map", named, index), antialiased(bird, visible))
        for kept in drawing.subsets():
            path = root / drawing.intervention_name(named, index, kept)
            drawing.save(path, drawing.draw(bird, visible & set(kept)))
        for number in range(len(listed(bird, "bg_objects"))):
            path = root / drawing.without_object_name(named, index, number)
            drawing.save(path, drawing.draw(bird, visible, without_object=number))
        lists["test"].append(named)
    own = ("camera_x", "camera_y", "bg_sky")
    content = {f"dataset_{split}": [{k: v for k, v in bird.items() if k not in own} for bird in birds]
               for split, birds in lists.items() if birds}  # fmt: skip
    content |= {"parts": PARTS, "classes": [{"class_idx": k, "parts": p} for k, p in enumerate(CLASSES[::-1])]}
    for name, value in content.items():
        (root / f"{name}.json").write_text(json.dumps(value))
    return root


def number_of(kind, kinds=KINDS):
    """Return the number of a kind's test bird."""
    return sorted(kinds, key=lambda kind: class_of(scene_of(kind)[0])).index(kind)
