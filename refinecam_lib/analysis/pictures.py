"""Prepare the pictures and maps that `grids.image_grid` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

from ..datasets.crowd import TARGETS, scene_statistics
from ..datasets.photographs import class_name
from ..datasets.sample import Sample
from ..datasets.shapes import CLASSES, SyntheticShapes
from ..funnybirds.dataset import PARTS, FunnyBirds
from ..metrics import complexity, cosine_similarity
from ..refinement import refine
from .grids import Cell, image_grid
from .plots import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pixels_of(image: Tensor) -> np.ndarray:
    """Turn an image (3,H,W) into pixels (H,W,3)."""
    return image.permute(1, 2, 0).numpy()


def one_of_each_class(dataset: SyntheticShapes) -> list[Sample]:
    """Return the first sample of each class in CLASSES, in turn a large, a medium and a small one."""
    found: dict[str, Sample] = {}
    for sample in (dataset[i] for i in range(len(dataset))):
        if sample.info["size"] == ("large", "medium", "small")[len(found) % 3]:
            found.setdefault(sample.info["class"], sample)
        if len(found) == len(CLASSES):
            break
    return [found[name] for name in CLASSES]


def backgrounds(scenes: Sequence[np.ndarray]) -> pd.DataFrame:
    """Compare the statistics of scenes with those of real pages: one row per statistic."""
    measured = pd.DataFrame([scene_statistics(scene) for scene in scenes])
    table = pd.DataFrame(
        {
            "ours": measured.mean(),
            "band": {name: f"{t.low:g} to {t.high:g}" for name, t in TARGETS.items()},
            "real pages": {name: t.real_mean for name, t in TARGETS.items()},
            "spread, ours": measured.std(),
            "spread, real": {name: t.real_spread for name, t in TARGETS.items()},
        }
    )
    return table.rename_axis("statistic")


def shared_scenes(hashes: Mapping[str, set[str]]) -> pd.DataFrame:
    """Count the scenes that each pair of splits shares. hashes: split -> hashes of its scenes."""
    names = list(hashes)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    columns = ["split", "other split", "scenes", "scenes of the other", "shared"]
    records = [(a, b, len(hashes[a]), len(hashes[b]), len(hashes[a] & hashes[b])) for a, b in pairs]
    return pd.DataFrame(records, columns=columns)


def bird_sheet(birds: Sequence[Sample], columns: int = 6) -> Figure:
    """Draw birds with their classes, `columns` per row."""
    rows = [birds[k : k + columns] for k in range(0, len(birds), columns)]
    cells = [[(pixels_of(sample.image), None) for sample in row] for row in rows]
    names = [[sample.info["class"] for sample in row] for row in rows]
    return image_grid(cells, [""] * columns, [""] * len(rows), notes=names)


def bird_apart(birds: FunnyBirds, index: int) -> Figure:
    """Draw a bird without each part, without all parts and without a background object; below, what changed."""
    whole, others = birds[index].image, birds.without_objects(index)[:1]
    changed = [birds.intervention(index, set(PARTS) - {part}) for part in PARTS]
    changed += [birds.intervention(index, ()), *others]
    titles = ["bird", *(f"no {part}" for part in PARTS), "body alone", *(["one thing less"] if len(others) else [])]
    masks = np.stack([mask.numpy() for mask in birds.masks(index).values()])
    part_map = np.where(masks.any(0), (masks.argmax(0) + 1) / len(masks), 0)
    above: list[Cell] = [(pixels_of(image), None) for image in [whole, *changed]]
    below: list[Cell] = [(None, part_map)]
    below += [(None, (whole - image).abs().amax(0).clamp(max=0.2).numpy() * 5) for image in changed]
    return image_grid([above, below], titles, ["picture", "parts, changes"])


def map_row(sample: Sample, maps: Sequence[Tensor | np.ndarray]) -> list[Cell]:
    """Return the cells of one image and its maps (H,W), each with the outline of the ground truth if it is known."""
    outline = () if sample.mask is None else (sample.mask.float().numpy(),)
    return [(pixels_of(sample.image), None), *((None, np.asarray(heat), *outline) for heat in maps)]


def values_of_maps(maps: Tensor, masks: Tensor | None) -> Tensor:
    """Return the cosine similarity of maps (B,H,W) to masks, or their Complexity if no mask is known: (B,)."""
    return complexity(maps) if masks is None else cosine_similarity(maps, masks)


def fig5(
    samples: Sequence[Sample],
    maps: Mapping[str, Tensor],
    masks: Tensor | None,
    predictions: pd.DataFrame,
    aggregate: str = "product",
) -> Figure:
    """Draw Fig. 5: images and their truth above; below, each method's map of the shallowest layer, alone and refined.

    Args:
        samples: The images.
        maps: Method -> maps (L,B,H,W) in [0,1], shallow to deep.
        masks: Ground-truth masks (B,H,W), or None.
        predictions: One row per image with the columns target and probability.
        aggregate: How the maps of the layers are combined.
    """
    known, what = masks is not None, "Complexity" if masks is None else "cosine"
    top: list[Cell] = []
    below: list[str] = []
    for sample, target, probability in zip(samples, predictions["target"], predictions["probability"]):
        truth = (None, sample.mask.float().numpy()) if sample.mask is not None else (None, None)
        name = sample.info.get("class") or class_name(int(target))
        top += [(pixels_of(sample.image), None), truth]
        below += [f"{name}, p {probability:.2f}", sample.info.get("size", "")]
    grid, notes = [top], [below]
    for layers in maps.values():
        pair = [layers[0], refine(list(layers), aggregate)]
        values = [values_of_maps(each, masks) for each in pair]
        grid.append([cell for i, s in enumerate(samples) for cell in map_row(s, [each[i] for each in pair])[1:]])
        notes.append([f"{what} {value[i]:.2f}" for i in range(len(samples)) for value in values])
    columns = ["image / Base", "truth / RefineCAM" if known else "RefineCAM"] * len(samples)
    return image_grid(grid, columns, ["image, truth" if known else "image", *maps], notes=notes)


def factors(sample: Sample, layers: Mapping[str, Tensor], aggregate: str, method: str) -> Figure:
    """Draw an image, one method's map of each layer (name -> (H,W), shallow to deep), and what they combine to."""
    refined = refine([each[None] for each in layers.values()], aggregate)[0]
    cells = map_row(sample, [*layers.values(), refined])
    return image_grid([cells], ["image", *layers, NAMES[aggregate]], [method])


def changes(maps: Mapping[str, Tensor], masks: Tensor | None, aggregate: str) -> pd.DataFrame:
    """Return the mean of `values_of_maps` of Base and RefineCAM and their difference: one row per method."""
    records = {}
    for method, layers in maps.items():
        base, refined = (values_of_maps(m, masks).mean().item() for m in (layers[0], refine(list(layers), aggregate)))
        records[method] = {"Base": base, NAMES[aggregate]: refined, "change": refined - base}
    return pd.DataFrame.from_dict(records, orient="index").rename_axis("method")
