"""Compute intervals, paired tests and correlations."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy

from ..errors import InputError, one_of, rng

CORRELATIONS = ("pearson", "spearman", "kendall")
FEW = 100
"""Up to this many rows Kendall's correlation is computed from all pairs, which is faster."""


def bootstrap_interval(
    values: np.ndarray, images: np.ndarray | None = None, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of a mean over images.

    Args:
        values: (n,). Values that are not finite are left out.
        images: The image of each value (n,), if images have several values. They are drawn together.
        level: The interval's coverage, in [0,1].
        draws: How many samples are drawn.
        seed: Seeds the draws.

    Returns:
        The lower and upper bound; NaN for a single image.

    Raises:
        InputError: No value is finite.
    """
    values = np.asarray(values, float)
    known = np.isfinite(values)
    if not known.any():
        raise InputError("Expected at least one finite value, got none. An interval needs measured values.")
    image = np.arange(known.sum()) if images is None else pd.factorize(np.asarray(images)[known])[0]
    sums, counts = np.bincount(image, values[known]), np.bincount(image)
    if len(sums) < 2:
        return np.nan, np.nan
    drawn = rng("bootstrap", seed).integers(0, len(sums), (draws, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return middle(means, level)


def summary(rows: pd.DataFrame, score: str, by: Sequence[str]) -> pd.DataFrame:
    """Summarise a score for each group.

    Args:
        rows: Columns `score` and those of `by`; and image, if an image has several rows in a group.
        score: The column to summarise. Values that are not finite are left out.
        by: The columns that name a group.

    Returns:
        One row per group: mean, std (standard deviation over images), n values, and the bootstrap 95 % interval low, high.

    Raises:
        InputError: There is no row.
    """
    if rows.empty:
        raise InputError(f"Expected rows to average {score} over, got none. Measure some images first.")
    rows = rows.reset_index(drop=True)
    images = rows["image"].to_numpy() if "image" in rows else np.arange(len(rows))

    def one(values: pd.Series) -> pd.Series:
        values = values[np.isfinite(values)]
        low, high = bootstrap_interval(values, images[values.index]) if len(values) else (np.nan, np.nan)
        return pd.Series({"mean": values.mean(), "std": values.std(ddof=0), "n": len(values), "low": low, "high": high})

    table = rows.groupby(list(by), sort=False)[score].apply(one).unstack()
    return table.astype({"n": int})


def paired_test(rows: pd.DataFrame, score: str, by: Sequence[str], pair: tuple[str, str]) -> pd.DataFrame:
    """Test one aggregate against another, image by image, by Wilcoxon's signed-rank test.

    Args:
        rows: Columns image, aggregate, `score` and those of `by`. Pairs with an undefined score are left out.
        score: The column to compare.
        by: The columns that name a group.
        pair: Two aggregates. The second is tested against the first.

    Returns:
        One row per group: n pairs; nonzero, the pairs that differ, which alone enter the test; difference, its mean, with the bootstrap 95 % interval low, high; effect, the
        matched-pairs rank-biserial correlation in [-1,1], positive if pair[1] is higher; p; p_holm, corrected by Holm
        over all groups. A group without a difference has p = 1. Groups without a pair come last, with n = 0 and NaN.

    Raises:
        InputError: No row has an aggregate of `pair`, or a group has several rows of an image and aggregate.
    """
    if rows.duplicated([*by, "image", "aggregate"]).any():
        raise InputError(
            f"Expected one row per image and aggregate in a group by {', '.join(by)}, got several. "
            "Add the column that tells them apart, such as model."
        )
    for name in pair:
        one_of("aggregate", name, rows["aggregate"].unique())
    wide = rows.pivot_table(index=[*by, "image"], columns="aggregate", values=score, sort=False)
    records = []
    for group, frame in wide.reindex(columns=list(pair)).dropna().groupby(list(by), sort=False):
        difference = (frame[pair[1]] - frame[pair[0]]).to_numpy()
        low, high = bootstrap_interval(difference)
        moved = difference[difference != 0]
        p, effect = 1.0, 0.0
        if len(moved):
            ranks = scipy.stats.rankdata(np.abs(moved))
            effect = float((ranks * np.sign(moved)).sum() / ranks.sum())
            p = float(scipy.stats.wilcoxon(moved).pvalue)
        records.append([*group, len(difference), len(moved), difference.mean(), low, high, effect, p])
    tested = {tuple(record[: len(by)]) for record in records}
    for group, aggregates in rows.groupby(list(by), sort=False)["aggregate"]:
        if set(pair) <= set(aggregates) and group not in tested:
            records.append([*group, 0, 0, *[np.nan] * 5])
    table = pd.DataFrame(records, columns=[*by, "n", "nonzero", "difference", "low", "high", "effect", "p"])
    table["p_holm"] = holm(table["p"].to_numpy())
    return table


def holm(p: np.ndarray) -> np.ndarray:
    """Correct p values (m,) by Holm's step-down method. NaN stays NaN and does not count as a test."""
    p = np.asarray(p, float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN come last
    stepped = np.maximum.accumulate((len(order) - np.arange(len(order))) * p[order])
    corrected = np.full_like(p, np.nan)
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def correlation(x: np.ndarray, y: np.ndarray, kind: str = "pearson") -> float:
    """Compute a correlation in CORRELATIONS over the pairs (n,) in which both values are finite.

    Returns:
        The correlation in [-1,1]; NaN below 3 pairs and for a constant.
    """
    return float(with_first(np.column_stack([np.asarray(x, float), np.asarray(y, float)]), kind)[0])


def with_first(table: np.ndarray, kind: str = "spearman") -> np.ndarray:
    """Compute a correlation in CORRELATIONS of the first column of a table (n,1+S) with each other column: (S,).

    It is faster than scipy.stats, because it computes no p values. Rows with a value that is not finite are left out. NaN
    below 3 rows and for a constant column.
    """
    table = table[np.isfinite(table).all(1)]
    if len(table) < 3:
        return np.full(table.shape[1] - 1, np.nan)
    if one_of("correlation", kind, CORRELATIONS) != "kendall":
        return _pearson(scipy.stats.rankdata(table, axis=0) if kind == "spearman" else table)
    if len(table) <= FEW:  # the signs of all pairs
        return _cosines(np.sign(table[:, None] - table[None]).reshape(-1, table.shape[1]))
    return np.array([scipy.stats.kendalltau(column, table[:, 0])[0] for column in table[:, 1:].T])


def _pearson(table: np.ndarray) -> np.ndarray:
    constant = np.ptp(table, axis=0) == 0
    found = _cosines(table - table.mean(0))
    return np.where(constant[0] | constant[1:], np.nan, found)


def _cosines(table: np.ndarray) -> np.ndarray:
    """Compute the cosine of the first column with each other column; NaN if one is zero."""
    norms = np.linalg.norm(table, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(table[:, 0] @ table[:, 1:] / (norms[0] * norms[1:]), -1, 1)


def correlations(
    rows: pd.DataFrame,
    scores: Sequence[str],
    truth: str = "cosine",
    reference: str = "arcc",
    draws: int = 400,
    seed: int = 0,
    kinds: Sequence[str] = CORRELATIONS,
) -> pd.DataFrame:
    """Correlate each score with the truth (Fig. 3), with intervals from a bootstrap over images.

    Args:
        rows: Columns image, model, method, `truth` and `scores`; higher is better for all scores. Rows in which a score
            is undefined are left out, so all scores are compared on the same rows.
        scores: The columns to correlate.
        truth: The column to correlate them with.
        reference: The score that the others are compared with.
        draws: Draws of the bootstrap.
        seed: Seeds the draws.
        kinds: Names in CORRELATIONS. Kendall's takes most of the time.

    Returns:
        One row per level ("explanation": over all rows; "method mean": over the means of methods), kind
        and score: value, the mean over networks; std, over networks; low, high; difference, the reference's correlation
        minus the score's, with low_difference, high_difference; n rows. A network on which a score has no correlation
        is left out, unless the score has none on any network; then the value is NaN. A single image has no interval.

    Raises:
        InputError: The reference is not one of the scores, or no row is left.
    """
    own = list(scores).index(one_of("reference", reference, scores))
    rows = rows[np.isfinite(rows[[truth, *scores]].to_numpy(float)).all(1)]
    if rows.empty:
        raise InputError(f"Expected rows in which {truth} and every score are defined, got none.")
    values = rows[[truth, *scores]].to_numpy(float)
    method, names = pd.factorize(rows["method"])
    image, images = pd.factorize(rows["image"])
    model, models = pd.factorize(rows["model"])
    rows_of = [np.flatnonzero(image == i) for i in range(len(images))]

    def measured(pick: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """Return (level, kind) -> correlations (models, scores)."""
        found: dict[tuple[str, str], list] = {}
        for k in range(len(models)):
            own = pick[model[pick] == k]
            levels = {"explanation": values[own], "method mean": _group_means(values[own], method[own], len(names))}
            for level, table in levels.items():
                for kind in kinds:
                    found.setdefault((level, kind), []).append(with_first(table, kind))
        return {key: np.array(tables) for key, tables in found.items()}

    generator = rng("correlations", seed)
    drawn_images = generator.integers(len(images), size=(draws, len(images)))
    resampled = [measured(np.concatenate([rows_of[i] for i in draw])) for draw in drawn_images]
    records = []
    for (level, kind), found in measured(np.arange(len(rows))).items():
        defined = np.isfinite(found)
        counted = (defined | ~defined.any(0)).all(1)
        found, n = found[counted], int(counted[model].sum())
        drawn = np.stack([each[level, kind][counted].mean(0) for each in resampled])
        if len(images) < 2:
            drawn = np.full_like(drawn, np.nan)
        value = found.mean(0)
        for k, score in enumerate(scores):
            low, high = middle(drawn[:, k])
            low_difference, high_difference = middle(drawn[:, own] - drawn[:, k])
            record = {"level": level, "kind": kind, "score": score, "value": value[k], "std": found[:, k].std()}
            record |= {"low": low, "high": high, "difference": value[own] - value[k]}
            record |= {"low_difference": low_difference, "high_difference": high_difference}
            records.append(record | {"n": n})
    return pd.DataFrame(records)


def _group_means(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Compute the mean of each column in each group; NaN for an empty group."""
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, groups, values)
    sizes = np.bincount(groups, minlength=count)[:, None]
    return sums / np.where(sizes > 0, sizes, np.nan)


def middle(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the bounds of the middle `level` of resampled values (n,). Values that are not finite are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def accuracy(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return n, accuracy in [0,1] and its Wilson 95 % interval (low, high) for each group."""

    def one(correct: pd.Series) -> pd.Series:
        low, high = scipy.stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
        return pd.Series({"n": len(correct), "accuracy": correct.mean(), "low": low, "high": high})

    table = rows.assign(correct=rows["correct"].astype(bool)).groupby(list(by), sort=False)["correct"].apply(one)
    return table.unstack().astype({"n": int})
