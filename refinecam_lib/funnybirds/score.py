"""The FunnyBirds score (Hesse et al. 2023, https://arxiv.org/abs/2308.06248): does a map find the parts a network uses?

>>> rows = seen.columns(explain(capture, "LayerCAM"))           # seen: a rows.SeenBirds
>>> summary(rows.assign(model=..., method=..., layer=..., aggregate=...))

There is one row per explanation. All scores are computed from its columns. A set of parts is a frozenset of names in
PARTS. As an integer, a set of parts has bit k for PARTS[k], and a set of subsets has bit s for subset s.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor

from ..errors import InputError, one_of, rng
from .dataset import PARTS

OBJECTS = 35
"""Number of columns of background objects, object_00 to object_34."""

PART_COLUMNS = [f"part_{part}" for part in PARTS]
DROP_COLUMNS = [f"drop_{part}" for part in PARTS]
OBJECT_COLUMNS = [f"object_{n:02d}" for n in range(OBJECTS)]
TARGET_COLUMNS = ["ts_1A", "ts_2A", "ts_1B", "ts_2B"]
NEEDED = [*PART_COLUMNS, *OBJECT_COLUMNS, "map_sum", "correct", "keeps", *DROP_COLUMNS]
NEEDED += ["irrelevant", "objects", "distinguishing", "ts_kept", *TARGET_COLUMNS]

GROUP = ("model", "method", "layer", "aggregate")
THRESHOLDS = np.linspace(0.01, 0.50, 80)
NEGLIGIBLE = 0.05
"""A change of the logit below this share of it counts as no change."""
WHOLE = 2 ** len(PARTS) - 1
_SUBSETS = np.arange(WHOLE + 1)
_COVERED = np.bitwise_count(_SUBSETS[:, None] & _SUBSETS) / np.maximum(np.bitwise_count(_SUBSETS), 1)[:, None]

TERMS = ("csdc", "pc", "dc", "d", "sd", "ts")
COMPOSED = ("completeness", "correctness", "contrastivity", "score")
_INTERVAL = ((1 - 0.95) / 2, (1 + 0.95) / 2)

Classes = Sequence[Mapping[str, int]]
"""For each class, part name -> variant."""


def importances(maps: Tensor, masks: Sequence[Mapping[str, Tensor]]) -> pd.DataFrame:
    """Sum each map over each part and background object.

    Args:
        maps: Maps (B,H,W).
        masks: For each map, name of a part or object_00 to object_34 -> mask (H,W), already widened. Bool, or how often
            a pixel counts (see `FunnyBirds.masks`).

    Returns:
        One row per map with the columns part_*, object_* and map_sum. A part without a mask has 0. An object without a
        mask has NaN.

    Raises:
        InputError: A name is unknown, or shapes do not fit.
    """
    if maps.ndim != 3 or len(masks) != len(maps):
        raise InputError(f"Expected maps (B, H, W) with B sets of masks, got {tuple(maps.shape)} with {len(masks)}.")
    columns = dict(zip((*PARTS, *OBJECT_COLUMNS), (*PART_COLUMNS, *OBJECT_COLUMNS)))
    records = []
    for pixels, named in zip(maps.detach().double().cpu(), masks):
        record = dict.fromkeys(PART_COLUMNS, 0.0) | dict.fromkeys(OBJECT_COLUMNS, np.nan)
        for name, mask in named.items():
            one_of("part or object", name, columns)
            if mask.shape != pixels.shape:
                raise InputError(
                    f"Expected a mask of the map's shape {tuple(pixels.shape)}, got {name} {tuple(mask.shape)}."
                )
            mask = mask.cpu()
            inside = pixels[mask] if mask.dtype == torch.bool else pixels * mask
            record[columns[name]] = float(inside.sum())
        records.append(record | {"map_sum": float(pixels.sum())})
    return pd.DataFrame(records)


def distinguishing(classes: Classes) -> list[list[frozenset[str]]]:
    """List for each class the smallest sets of parts that distinguish it from all other classes.

    A class with the same parts as another has none. Raises InputError if a class lacks a part.
    """
    return [[_names(subset) for subset in subsets] for subsets in _distinguishing(_variants(classes))]


def sensitivity_pair(label: int, classes: Classes) -> tuple[int, int, frozenset[str], frozenset[str]] | None:
    """Find two classes for target sensitivity, and the parts that the label shares with the first (A) and second (B).

    Both differ from the label in exactly three parts, and A and B are disjoint. The first such pair is taken.

    Departs from FunnyBirds' framework, which takes the last pair it tried if there is none. This returns None.
    """
    pair = _pair(label, _variants(classes))
    return None if pair is None else (pair[0], pair[1], _names(pair[2]), _names(pair[3]))


def facts(
    logits: Tensor | np.ndarray, objects: Tensor | np.ndarray, label: int, classes: Classes, of_label: bool = False
) -> dict[str, bool | int | float]:
    """Compute the columns of a bird's rows that do not depend on a map.

    Departs from FunnyBirds' framework, where single deletion and distractibility follow the label's logit even if
    another class is predicted. `of_label` does so too.

    Args:
        logits: (32,C). Row s is for the image with subset s of the parts.
        objects: (n,C). Row i is for the image without background object i.
        label: The class of the bird.
        classes: For each class, part -> variant.
        of_label: Follow the label's logit instead of the prediction's.

    Returns:
        label: as given. target: the predicted class. correct: whether both are equal. keeps: bit s is set if subset s
        has the same prediction. drop_*: how far the logit falls without a part. irrelevant: bits 0-4 are parts, bits
        5+i are objects; a bit is set if the logit without that part or object rises, or changes by less than 5 %.
        objects: n. distinguishing: bit s is set if subset s is in `distinguishing`. ts_kept: the label has a
        `sensitivity_pair`, and its logits fall as expected.

    Raises:
        InputError: Shapes or the label do not fit the classes.
    """
    logits, objects = (np.asarray(each, float) for each in (logits, objects))
    if logits.ndim != 2 or len(logits) != WHOLE + 1 or logits.shape[1] != len(classes):
        raise InputError(f"Expected logits of shape ({WHOLE + 1}, {len(classes)}), got {logits.shape}.")
    objects = objects.reshape(-1, len(classes)) if objects.size == 0 else objects
    if objects.ndim != 2 or objects.shape[1] != len(classes) or len(objects) > OBJECTS:
        raise InputError(f"Expected logits without objects (0..{OBJECTS}, {len(classes)}), got {objects.shape}.")
    if not 0 <= label < len(classes):
        raise InputError(f"Expected a label from 0 to {len(classes) - 1}, got {label}.")
    variants = _variants(classes)
    predicted = logits.argmax(1)
    target = int(predicted[WHOLE])
    followed = label if of_label else target
    without = logits[[WHOLE ^ 1 << k for k in range(len(PARTS))], followed]
    clean = logits[WHOLE, followed]
    change = clean - np.concatenate([without, objects[:, followed]])
    negligible = (np.abs(change) < NEGLIGIBLE * abs(clean)) | (change < 0)
    kept, pair = False, _pair(label, variants)
    if pair is not None:
        one, two, a, b = pair
        without_a, without_b = logits[WHOLE ^ a], logits[WHOLE ^ b]
        kept = bool(without_a[one] < without_b[one] and without_b[two] < without_a[two])
    return {
        "correct": target == label,
        "label": int(label),
        "target": target,
        "keeps": _bits(np.flatnonzero(predicted == target)),
        **dict(zip(DROP_COLUMNS, change[: len(PARTS)].tolist())),
        "irrelevant": _bits(np.flatnonzero(negligible)),
        "objects": len(objects),
        "distinguishing": _bits(_distinguishing(variants)[label]),
        "ts_kept": kept,
    }


def scores(rows: pd.DataFrame, thresholds: Sequence[float] | np.ndarray = THRESHOLDS) -> dict[str, np.ndarray]:
    """Compute the six terms of the score for each row. A part is important above a share t of the map's sum.

    Args:
        rows: n rows with the columns in NEEDED.
        thresholds: T values of t.

    Returns:
        csdc, pc, dc and d (n,T), sd and ts (n,1), all in [0,1], higher is better. They are NaN for maps that are not
        finite.
        csdc: The largest important share of a distinguishing set. NaN for wrong predictions and for equal classes.
        pc: 1 if the important parts alone keep the prediction.
        dc: 1 if the prediction changes without the important parts.
        d: 1 minus the important share of irrelevant parts and objects. NaN if nothing is irrelevant.
        sd: Spearman's rank correlation of drops and importances, scaled to [0,1]. NaN for constant values.
        ts: The share of two comparisons that hold: A is more important for class 1, and B for class 2. NaN unless ts_kept.

    Raises:
        InputError: A column is missing.
    """
    missing = [name for name in NEEDED if name not in rows]
    if missing:
        raise InputError(f"Expected rows of `SeenBirds.columns_of`, got rows without the columns {', '.join(missing)}.")
    number = {name: rows[name].to_numpy(float) for name in NEEDED if name.startswith(("part", "obj", "drop", "ts_"))}
    keeps, irrelevant, subsets = (
        rows[n].to_numpy(np.int64)[:, None] for n in ("keeps", "irrelevant", "distinguishing")
    )
    bar = rows["map_sum"].to_numpy(float)[:, None] * np.asarray(thresholds, float)
    finite = np.isfinite(bar)
    important, mistaken = np.zeros(bar.shape, np.int64), np.zeros(bar.shape)
    for bit, name in enumerate([*PART_COLUMNS, *OBJECT_COLUMNS]):
        above = number[name][:, None] > bar
        if bit < len(PARTS):
            important |= above.astype(np.int64) << bit
        mistaken += above & (irrelevant >> bit & 1 == 1)
    sets, which = np.unique(subsets, return_inverse=True)
    covered = np.array([_COVERED[_members(each)].max(0, initial=0) for each in sets]).reshape(-1, WHOLE + 1)
    defined = finite & rows["correct"].to_numpy(bool)[:, None] & (subsets != 0)
    harmless = np.bitwise_count(irrelevant)
    parts, drops = (np.stack([number[name] for name in names], 1) for names in (PART_COLUMNS, DROP_COLUMNS))
    one_a, two_a, one_b, two_b = (number[name] for name in TARGET_COLUMNS)
    asked = rows["ts_kept"].to_numpy(bool) & np.isfinite(one_a + two_a + one_b + two_b)
    return {
        "csdc": np.where(defined, covered[which.reshape(-1, 1), important], np.nan),
        "pc": np.where(finite, keeps >> important & 1, np.nan),
        "dc": np.where(finite, 1 - (keeps >> (WHOLE ^ important) & 1), np.nan),
        "d": np.where(finite & (harmless > 0), 1 - mistaken / np.maximum(harmless, 1), np.nan),
        "sd": (1 + _spearman(parts, drops)[:, None]) / 2,
        "ts": np.where(asked, ((one_a > two_a) + 0.0 + (two_b > one_b)) / 2, np.nan)[:, None],
    }


def threshold(rows: pd.DataFrame) -> float:
    """Find t*, where (CSDC+PC+DC)/3 + D of the means is largest, for the rows of one method and network.

    On a tie it is the smallest t. Terms that are NaN in all rows are left out. It is NaN if no map is finite.
    """
    return _at_best(_means(scores(rows)))[1]


def per_explanation(rows: pd.DataFrame, by: Sequence[str] = GROUP) -> pd.DataFrame:
    """Compute the scores of each row at the t* of its group.

    Args:
        rows: Rows with the columns in NEEDED and in `by`.
        by: Columns that name a group.

    Returns:
        csdc to ts, completeness, correctness, contrastivity and score in [0,1], higher is better. A composed score is the
        mean of the terms that the row has. threshold: t*.
    """
    table = pd.DataFrame(np.nan, index=rows.index, columns=[*TERMS, *COMPOSED, "threshold"])
    for places in _groups(rows, by).values():
        terms = scores(rows.iloc[places])
        best = _at_best(_means(terms))[1]
        column = 0 if np.isnan(best) else int(np.searchsorted(THRESHOLDS, best))
        own = {name: values[:, column % values.shape[1]] for name, values in terms.items()}
        own |= _composed(own, _mean_of_defined) | {"threshold": np.full(len(places), best)}
        table.iloc[places] = np.stack([own[name] for name in table], 1)
    return table


def summary(rows: pd.DataFrame, by: Sequence[str] = GROUP, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Compute the scores of each group from its mean terms at its t*.

    Args:
        rows: Rows with the columns in NEEDED and in `by`.
        by: Columns that name a group.
        draws: Draws of the bootstrap over images.
        seed: Seed of the bootstrap.

    Returns:
        One row per group: csdc to ts, completeness, correctness, contrastivity and score in [0,1], higher is better.
        low and high: the bootstrap 95 % interval of the score. Each draw chooses its own t*. NaN for a single image.
        threshold: t*. accuracy. background_independence: the irrelevant share of all background objects. ts_kept: the
        share of images with a target sensitivity. n. A term that no row has is NaN, and so is its composed score.
    """
    records = []
    for group, places in _groups(rows, by).items():
        part = rows.iloc[places]
        terms = scores(part)
        at, best = _at_best(_means(terms))
        at |= _composed(at, _mean)
        weights = rng("bird score", seed).multinomial(len(part), np.full(len(part), 1 / len(part)), draws)
        drawn = _at_best(_means(terms, weights))[0]
        drawn_score = _composed(drawn, _mean)["score"]
        drawn_score = drawn_score[np.isfinite(drawn_score)]
        low, high = np.quantile(drawn_score, _INTERVAL) if len(part) > 1 and len(drawn_score) else (np.nan, np.nan)
        objects = part["objects"].sum()
        harmless = np.bitwise_count(part["irrelevant"].to_numpy(np.int64) >> len(PARTS)).sum()
        record = dict(zip(by, group)) | {name: float(at[name][0]) for name in (*TERMS, *COMPOSED)}
        record |= {"low": low, "high": high, "threshold": best, "accuracy": part["correct"].mean()}
        record |= {"background_independence": harmless / objects if objects else np.nan}
        records.append(record | {"ts_kept": part["ts_kept"].mean(), "n": len(part)})
    return pd.DataFrame(records)


Values = dict[str, np.ndarray]


def _means(terms: Values, weights: np.ndarray | None = None) -> Values:
    """Average each term (n,T) over rows without NaN, for each weighting (draws,n) of the rows: (draws,T)."""
    weights = np.ones((1, len(terms["pc"]))) if weights is None else weights.astype(float)
    table = {}
    for name, values in terms.items():
        counts = weights @ np.isfinite(values[:, :1])
        table[name] = weights @ np.nan_to_num(values) / np.where(counts > 0, counts, np.nan)
    return table


def _at_best(means: Values) -> tuple[Values, float]:
    """Take means (draws,T) at the best threshold of each draw, (draws,). Also return the first draw's threshold."""
    complete = _composed(means, _mean_of_defined)["completeness"].round(12)  # so that rounding errors break no tie
    best = np.nan_to_num(complete, nan=-1).argmax(1)
    at = {name: values[np.arange(len(best)), best % values.shape[1]] for name, values in means.items()}
    return at, float(np.where(np.isfinite(complete[0]).any(), THRESHOLDS[best[0]], np.nan))


def _mean(*terms: np.ndarray) -> np.ndarray:
    return np.mean(np.broadcast_arrays(*terms), 0)


def _mean_of_defined(*terms: np.ndarray) -> np.ndarray:
    known = np.stack(np.broadcast_arrays(*terms))
    counts = np.isfinite(known).sum(0)
    return np.nansum(known, 0) / np.where(counts > 0, counts, np.nan)


def _composed(terms: Values, mean: Callable[..., np.ndarray]) -> Values:
    """Compose Completeness ((CSDC+PC+DC)/3 + D)/2, Correctness SD, Contrastivity TS, and the score, their mean."""
    completeness = mean(mean(terms["csdc"], terms["pc"], terms["dc"]), terms["d"])
    composed = (completeness, terms["sd"], terms["ts"])
    return dict(zip(COMPOSED, (*composed, mean(*composed))))


def _groups(rows: pd.DataFrame, by: Sequence[str]) -> dict[tuple, np.ndarray]:
    """Map each group of `by`, in order of appearance, to the positions of its rows."""
    for name in by:
        one_of("column", name, rows.columns)
    codes = rows.groupby(list(by), sort=False, dropna=False).ngroup().to_numpy()
    places = [np.flatnonzero(codes == code) for code in range(codes.max(initial=-1) + 1)]
    return {tuple(rows[name].iloc[each[0]] for name in by): each for each in places}


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute Spearman's rank correlation of each pair of rows (n,k). It is NaN if one is constant or holds NaN.

    scipy.stats.spearmanrho gives the same numbers, but needs a millisecond per row.
    """
    x, y = (scipy.stats.rankdata(values, axis=1) for values in (x, y))  # a NaN makes its row NaN
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    norms = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.clip((x * y).sum(1) / np.where(norms > 0, norms, np.nan), -1, 1)


def _names(subset: int) -> frozenset[str]:
    return frozenset(PARTS[k] for k in _members(subset))


def _members(bits: int) -> list[int]:
    return [k for k in range(int(bits).bit_length()) if bits >> k & 1]


def _bits(members: Sequence[int] | np.ndarray) -> int:
    return sum(1 << int(k) for k in members)


Variants = tuple[tuple[int, ...], ...]


def _variants(classes: Classes) -> Variants:
    """Return each class as its variants in the order of PARTS."""
    for label, parts in enumerate(classes):
        if set(parts) != set(PARTS):
            raise InputError(f"Expected the parts {', '.join(PARTS)} of class {label}, got {', '.join(parts)}.")
    return tuple(tuple(int(parts[part]) for part in PARTS) for parts in classes)


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return _bits([k for k in range(len(PARTS)) if one[k] == other[k]])


@lru_cache
def _distinguishing(variants: Variants) -> tuple[tuple[int, ...], ...]:
    """Compute `distinguishing` in bits."""
    table = []
    for label, own in enumerate(variants):
        shared = [_shared(own, other) for k, other in enumerate(variants) if k != label]
        alone = [s for s in range(1, WHOLE + 1) if not any(s & each == s for each in shared)]
        table.append(tuple(s for s in alone if not any(s & each == each != s for each in alone)))
    return tuple(table)


@lru_cache
def _pair(label: int, variants: Variants) -> tuple[int, int, int, int] | None:
    """Compute `sensitivity_pair` in bits."""
    shared = [(k, _shared(variants[label], other)) for k, other in enumerate(variants)]
    near = [(k, bits) for k, bits in shared if bits.bit_count() == len(PARTS) - 3]
    return next(((i, j, a, b) for (i, a), (j, b) in combinations(near, 2) if not a & b), None)
