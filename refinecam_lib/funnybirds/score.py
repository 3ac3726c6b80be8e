"""The FunnyBirds score (Hesse et al., ICCV 2023): what a map says of a bird's parts against what the network does.

>>> rows = importances(maps, masks).assign(**pd.DataFrame([facts(*each, classes) for each in logits]))
>>> summary(rows.assign(model=..., method=..., layer=..., aggregate=...))

Rows are raw, one an explanation; every score is arithmetic on their columns. A set of parts is a frozenset of names in
PARTS, or, in an integer column, its bits: bit k stands for PARTS[k], and bit s of a set of subsets for the subset s.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor

from ..analysis.statistics import middle
from ..errors import InputError, one_of, rng
from .dataset import PARTS

OBJECTS = 35
"""Columns of background objects, object_00 .. object_34."""

PART_COLUMNS = [f"part_{part}" for part in PARTS]
DROP_COLUMNS = [f"drop_{part}" for part in PARTS]
OBJECT_COLUMNS = [f"object_{n:02d}" for n in range(OBJECTS)]
TARGET_COLUMNS = ["ts_1A", "ts_2A", "ts_1B", "ts_2B"]
NEEDED = [*PART_COLUMNS, *OBJECT_COLUMNS, "map_sum", "correct", "keeps", *DROP_COLUMNS]
NEEDED += ["irrelevant", "objects", "distinguishing", "ts_kept", *TARGET_COLUMNS]

GROUP = ("model", "method", "layer", "aggregate")
THRESHOLDS = np.linspace(0.01, 0.50, 80)
NEGLIGIBLE = 0.05
"""Share of the target's logit below which a change of it is none."""
WHOLE = 2 ** len(PARTS) - 1
_SUBSETS = np.arange(WHOLE + 1)
_COVERED = np.bitwise_count(_SUBSETS[:, None] & _SUBSETS) / np.maximum(np.bitwise_count(_SUBSETS), 1)[:, None]

TERMS = ("csdc", "pc", "dc", "d", "sd", "ts")
COMPOSED = ("completeness", "correctness", "contrastivity", "score")

Classes = Sequence[Mapping[str, int]]
"""For each class, part name -> variant."""


def importances(maps: Tensor, masks: Sequence[Mapping[str, Tensor]]) -> pd.DataFrame:
    """The sum of each map over each part and background object: one row a map, the columns part_*, object_* and map_sum.

    maps: (B,H,W). masks: for each map, name in PARTS or object_00 .. object_34 -> (H,W), already dilated; bool, or how
    often a pixel counts, for the published code counts those twice that lie near both eyes. A part without a mask is
    hidden and has 0, an object without one isn't in the scene and has NaN. Raises InputError for a wrong name or shape.
    """
    if maps.ndim != 3 or len(masks) != len(maps):
        raise InputError(f"maps of shape {tuple(maps.shape)} with {len(masks)} masks; allowed: (B, H, W) with B")
    columns = dict(zip((*PARTS, *OBJECT_COLUMNS), (*PART_COLUMNS, *OBJECT_COLUMNS)))
    records = []
    for pixels, named in zip(maps.detach().double().cpu(), masks):
        record = dict.fromkeys(PART_COLUMNS, 0.0) | dict.fromkeys(OBJECT_COLUMNS, np.nan)
        for name, mask in named.items():
            one_of("part or object", name, columns)
            if mask.shape != pixels.shape:
                raise InputError(f"mask {name} {tuple(mask.shape)} for a map {tuple(pixels.shape)}; allowed: its shape")
            mask = mask.cpu()
            inside = pixels[mask] if mask.dtype == torch.bool else pixels * mask
            record[columns[name]] = float(inside.sum())
        records.append(record | {"map_sum": float(pixels.sum())})
    return pd.DataFrame(records)


def distinguishing(classes: Classes) -> list[list[frozenset[str]]]:
    """For each class its sets of parts that no other class has alike and none of whose subsets will do.

    A class that another one equals has none. Raises InputError where a class lacks a part.
    """
    return [[_names(subset) for subset in subsets] for subsets in _distinguishing(_variants(classes))]


def sensitivity_pair(label: int, classes: Classes) -> tuple[int, int, frozenset[str], frozenset[str]] | None:
    """The two classes of target sensitivity and the parts that the label shares with the one (A) and the other (B).

    The first pair, in the order of the indices, of classes that differ from the label in exactly three parts and share
    no common one with it; None where there is none, for which the published code takes the last pair that it tried.
    """
    pair = _pair(label, _variants(classes))
    return None if pair is None else (pair[0], pair[1], _names(pair[2]), _names(pair[3]))


def facts(
    logits: Tensor | np.ndarray, objects: Tensor | np.ndarray, label: int, classes: Classes
) -> dict[str, bool | int | float]:
    """What a network makes of one bird: the columns of its rows that no map changes.

    logits: (32,C), row s for the image with the subset s of parts kept. objects: (n,C), row i for the image without
    background object i. correct, label, target: the predicted class, which is explained; keeps: bit s set where the
    prediction on subset s is the target; drop_*: by how much the target's logit is lower without this part; irrelevant:
    bits 0-4 parts, 5+i objects without which the target's logit moves by less than 5 % of it or rises; objects: n;
    distinguishing: bit s set for each subset s of `distinguishing`; ts_kept: the label has a `sensitivity_pair`, and
    the logits of its classes fall as they should. Departs from the published code, whose single deletion and
    distractibility follow the logit of the label also where another class is predicted.
    """
    logits, objects = (np.asarray(each, float) for each in (logits, objects))
    if logits.ndim != 2 or len(logits) != WHOLE + 1 or logits.shape[1] != len(classes):
        raise InputError(f"logits of shape {logits.shape}; allowed: ({WHOLE + 1}, {len(classes)})")
    objects = objects.reshape(-1, len(classes)) if objects.size == 0 else objects
    if objects.ndim != 2 or objects.shape[1] != len(classes) or len(objects) > OBJECTS:
        raise InputError(f"logits without objects of shape {objects.shape}; allowed: (0..{OBJECTS}, {len(classes)})")
    if not 0 <= label < len(classes):
        raise InputError(f"label {label}; allowed: 0..{len(classes) - 1}")
    variants = _variants(classes)
    predicted = logits.argmax(1)
    target = int(predicted[WHOLE])
    without = logits[[WHOLE ^ 1 << k for k in range(len(PARTS))], target]
    clean = logits[WHOLE, target]
    change = clean - np.concatenate([without, objects[:, target]])
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
    """csdc, pc, dc and d of each row at each threshold (n,T), sd and ts (n,1), all in [0,1], higher is better.

    A part is important above t of the map's sum. csdc: the largest share of a distinguishing set of parts that is
    important. pc: 1 where the important parts alone keep the prediction; dc: 1 where it changes without them. d: 1 less
    the share of irrelevant parts and objects that are important. sd: Spearman's rank correlation of the parts' drops
    and importances, moved to [0,1]. ts: the share of two comparisons, A more important for class 1 and B for class 2.
    NaN where a map isn't finite, and where undefined: csdc of a wrong prediction or a class with a twin, d without an
    irrelevant thing, sd of equal values, ts where not kept. Raises InputError for rows without a needed column.
    """
    missing = [name for name in NEEDED if name not in rows]
    if missing:
        raise InputError(f"rows without the columns {', '.join(missing)}; allowed: those of `importances` and `facts`")
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
    judged = finite & rows["correct"].to_numpy(bool)[:, None] & (subsets != 0)
    harmless = np.bitwise_count(irrelevant)
    parts, drops = (np.stack([number[name] for name in names], 1) for names in (PART_COLUMNS, DROP_COLUMNS))
    one_a, two_a, one_b, two_b = (number[name] for name in TARGET_COLUMNS)
    asked = rows["ts_kept"].to_numpy(bool) & np.isfinite(one_a + two_a + one_b + two_b)
    return {
        "csdc": np.where(judged, covered[which.reshape(-1, 1), important], np.nan),
        "pc": np.where(finite, keeps >> important & 1, np.nan),
        "dc": np.where(finite, 1 - (keeps >> (WHOLE ^ important) & 1), np.nan),
        "d": np.where(finite & (harmless > 0), 1 - mistaken / np.maximum(harmless, 1), np.nan),
        "sd": (1 + _spearman(parts, drops)[:, None]) / 2,
        "ts": np.where(asked, ((one_a > two_a) + 0.0 + (two_b > one_b)) / 2, np.nan)[:, None],
    }


def threshold(rows: pd.DataFrame) -> float:
    """The t* of the rows of one explanation method and network: where (CSDC+PC+DC)/3 + D of their means is largest.

    The smallest where several are; NaN where no map is finite. A score that no row has is left out.
    """
    return _at_best(_means(scores(rows)))[1]


def per_explanation(rows: pd.DataFrame, by: Sequence[str] = GROUP) -> pd.DataFrame:
    """The scores of each row at the t* of its group, in [0,1], higher is better, with column threshold, t*.

    Columns csdc .. ts, completeness, correctness, contrastivity and score, each of which is the mean of those of its
    terms that the row has.
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
    """One row a group: csdc .. ts, completeness, correctness, contrastivity and score from the means at the group's t*.

    All in [0,1], higher is better. With threshold (t*), the bootstrap 95 % interval of the score (low, high), which
    draws images and chooses t* anew for each draw (NaN for a single image), accuracy, background_independence (the share of all background
    objects that are irrelevant), ts_kept (the share of images on which target sensitivity is defined) and n. A score
    that no row has is NaN, and so is what is composed of it.
    """
    records = []
    for group, places in _groups(rows, by).items():
        part = rows.iloc[places]
        terms = scores(part)
        at, best = _at_best(_means(terms))
        at |= _composed(at, _mean)
        weights = rng("bird score", seed).multinomial(len(part), np.full(len(part), 1 / len(part)), draws)
        drawn = _at_best(_means(terms, weights))[0]
        low, high = middle(_composed(drawn, _mean)["score"]) if len(part) > 1 else (np.nan, np.nan)
        objects = part["objects"].sum()
        harmless = np.bitwise_count(part["irrelevant"].to_numpy(np.int64) >> len(PARTS)).sum()
        record = dict(zip(by, group)) | {name: float(at[name][0]) for name in (*TERMS, *COMPOSED)}
        record |= {"low": low, "high": high, "threshold": best, "accuracy": part["correct"].mean()}
        record |= {"background_independence": harmless / objects if objects else np.nan}
        records.append(record | {"ts_kept": part["ts_kept"].mean(), "n": len(part)})
    return pd.DataFrame(records)


Values = dict[str, np.ndarray]


def _means(terms: Values, weights: np.ndarray | None = None) -> Values:
    """The mean over rows of each term (n,T) for each weighting (draws,n) of the rows, (draws,T), without NaN values."""
    weights = np.ones((1, len(terms["pc"]))) if weights is None else weights.astype(float)
    table = {}
    for name, values in terms.items():
        counts = weights @ np.isfinite(values[:, :1])
        table[name] = weights @ np.nan_to_num(values) / np.where(counts > 0, counts, np.nan)
    return table


def _at_best(means: Values) -> tuple[Values, float]:
    """Means (draws,T) at the best threshold of each draw, (draws,), and that threshold of the first one."""
    complete = _composed(means, _mean_of_defined)["completeness"].round(12)  # a tie is one whatever the rounding
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
    """Completeness ((CSDC+PC+DC)/3 + D)/2, Correctness SD, Contrastivity TS, and the score, their mean."""
    completeness = mean(mean(terms["csdc"], terms["pc"], terms["dc"]), terms["d"])
    composed = (completeness, terms["sd"], terms["ts"])
    return dict(zip(COMPOSED, (*composed, mean(*composed))))


def _groups(rows: pd.DataFrame, by: Sequence[str]) -> dict[tuple, np.ndarray]:
    """For each group of `by`, in the order in which they come, the positions of its rows."""
    for name in by:
        one_of("column", name, rows.columns)
    codes = rows.groupby(list(by), sort=False, dropna=False).ngroup().to_numpy()
    places = [np.flatnonzero(codes == code) for code in range(codes.max(initial=-1) + 1)]
    return {tuple(rows[name].iloc[each[0]] for name in by): each for each in places}


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each pair of rows (n,k), in [-1,1]; NaN where one is constant or not finite."""
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
    """Each class as its variants in the order of PARTS."""
    for label, parts in enumerate(classes):
        if set(parts) != set(PARTS):
            raise InputError(f"class {label} with the parts {', '.join(parts)}; allowed: {', '.join(PARTS)}")
    return tuple(tuple(int(parts[part]) for part in PARTS) for parts in classes)


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return _bits([k for k in range(len(PARTS)) if one[k] == other[k]])


@lru_cache
def _distinguishing(variants: Variants) -> tuple[tuple[int, ...], ...]:
    """`distinguishing` in bits."""
    table = []
    for label, own in enumerate(variants):
        shared = [_shared(own, other) for k, other in enumerate(variants) if k != label]
        alone = [s for s in range(1, WHOLE + 1) if not any(s & each == s for each in shared)]
        table.append(tuple(s for s in alone if not any(s & each == each != s for each in alone)))
    return tuple(table)


@lru_cache
def _pair(label: int, variants: Variants) -> tuple[int, int, int, int] | None:
    """`sensitivity_pair` in bits."""
    shared = [(k, _shared(variants[label], other)) for k, other in enumerate(variants)]
    near = [(k, bits) for k, bits in shared if bits.bit_count() == len(PARTS) - 3]
    return next(((i, j, a, b) for (i, a), (j, b) in combinations(near, 2) if not a & b), None)
