"""Turn measured rows into the tables behind the figures, with the paper's number beside ours.

>>> kept = scored(rows, "recommended")                            # correctly classified images, with their scores
>>> summaries(kept, ["road", "arcc"], ["method"])                 # mean, std, n and interval per score and method
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .. import paths
from ..errors import InputError, one_of
from ..explanation import CAMS, OTHERS
from ..refinement import AGGREGATES
from ..scoring import exact_road, scores
from .plots import FEWEST, NAMES, title_of, unique
from .statistics import accuracy, correlations, holm, paired_test, summary

BASE_AND_REFINED = ("none", "product")
"""The aggregates of Base and RefineCAM."""
COMPARED = ("arcc", "adcc", "road", "coherency", "one_minus_average_drop", "one_minus_complexity")
"""The scores of Fig. 3. Higher is better for all of them."""
LOWER = ("average_drop", "complexity")
"""Scores whose lower values are better."""


def correct(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of correctly classified images. Failed rows, which know no class, are left out."""
    return rows[rows["correct"] == True].reset_index(drop=True)


def scored(rows: pd.DataFrame, convention: str = "recommended") -> pd.DataFrame:
    """Keep the rows of correctly classified images and add their scores.

    Returns:
        The rows with the columns of `scores`, exact_road, one_minus_average_drop and one_minus_complexity.
    """
    kept = correct(rows)
    return turned(kept.join(scores(kept, convention)).assign(exact_road=exact_road(kept)))


def turned(rows: pd.DataFrame) -> pd.DataFrame:
    """Add 1 - Average Drop and 1 - Complexity, so that higher is better for every score."""
    return rows.assign(**{f"one_minus_{name}": 1 - rows[name] for name in LOWER})


def shallow_base(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the shallowest layer's Base maps."""
    return rows[(rows["layer"] == 0) & (rows["aggregate"] == "none")]


def cells(table: pd.DataFrame) -> pd.Series:
    """Write `mean ± std` of each row; the mean alone where n is 1, nothing where n is 0."""
    columns = zip(table["mean"], table["std"], table["n"])
    texts = ["" if n == 0 else f"{m:z.2f} ± {s:.2f}" if n > 1 else f"{m:z.2f}" for m, s, n in columns]
    return pd.Series(texts, index=table.index)


def intervals(table: pd.DataFrame, value: str = "mean") -> pd.Series:
    """Write `value [low, high]` of each row."""
    columns = zip(table[value], table["low"], table["high"])
    return pd.Series([f"{v:.2f} [{low:.2f}, {high:.2f}]" for v, low, high in columns], index=table.index)


def summaries(
    rows: pd.DataFrame, names: Sequence[str], by: Sequence[str], methods: Sequence[str] | None = None
) -> pd.DataFrame:
    """Summarise several scores: one row per score and group, see `statistics.summary`.

    Args:
        rows: Rows with the columns `names` and `by`.
        names: The scores.
        by: The columns that name a group.
        methods: The order of the methods, if `by` has them. Methods without rows are left out.
    """
    parts = {name: summary(rows, name, by) for name in names}
    if methods is not None:
        own = {name: part.index.get_level_values("method") for name, part in parts.items()}
        parts = {
            name: parts[name].iloc[np.argsort(own[name].map(list(methods).index), kind="stable")] for name in parts
        }
    return pd.concat([part.assign(score=name).reset_index() for name, part in parts.items()], ignore_index=True)


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """Lay summaries of several scores out as text: one row per network and method, one column per score, and n."""
    by, text = ["model", "method"], table.assign(cell=cells(table))
    text = text.pivot_table(index=by, columns="score", values="cell", sort=False, aggfunc="first")
    text = text[unique(table["score"])].rename_axis(columns=None)
    return text.assign(n=table.drop_duplicates(by, keep="last").set_index(by)["n"])


def accuracies(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return n, accuracy and its Wilson interval, as text, for each group."""
    table = accuracy(rows, by)
    return table.assign(interval=[f"{r.low:.3f} to {r.high:.3f}" for r in table.itertuples()]).drop(
        columns=["low", "high"]
    )


def shape_accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each network on each kind of background: of all shapes, by size and by class."""
    rows = rows.assign(background=rows["dataset"].str.removeprefix("synthetic_"))
    groups = [rows.assign(group="all"), *(rows.assign(group=rows[name]) for name in ("size", "class"))]
    return accuracies(pd.concat(groups), ["model", "background", "group"]).reset_index()


def bird_accuracies(rows: pd.DataFrame, cards: Mapping[str, Mapping]) -> pd.DataFrame:
    """Return the accuracy of each network on birds, beside what its card (network -> card) says."""
    table = accuracies(rows, ["model"])
    own = [cards[name] for name in table.index]
    fresh = [card.get("fresh", card["test"]) for card in own]  # the official set has no fresh birds
    table[f"accuracy on {fresh[0]['n']:,} birds, by its card"] = [test["accuracy"] for test in fresh]
    return table.assign(file=[f"{card['bytes'] / 1e6:.1f} MB" for card in own])


def stress_ranks(rows: pd.DataFrame, maps: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank maps by each score's mean, rounded to two decimals.

    Args:
        rows: Scored rows.
        maps: The methods, in the order to show.

    Returns:
        The means, one row per map and one column per score; and a long frame for `grids.rank_grid` with the columns
        map, score, mean, rank (1 is best).
    """
    names = [*LOWER, "coherency", "road", "adcc", "arcc", *(["cosine"] if "GroundTruth" in maps else [])]
    means = rows.groupby("method")[names].mean().reindex(list(maps))
    ranks = means.assign(**{name: -means[name] for name in LOWER}).round(2).rank(ascending=False, method="min")
    long = means.rename_axis("map").melt(ignore_index=False, var_name="score", value_name="mean").reset_index()
    return means, long.assign(rank=ranks.melt()["value"].to_numpy())


def fooled(long: pd.DataFrame, real: Sequence[str]) -> pd.DataFrame:
    """Say for each score where the ground truth ranks, and which control without a network beats the average CAM.

    Args:
        long: The long frame of `stress_ranks`.
        real: The CAMs.
    """
    records = {}
    for score, part in long[long["score"] != "cosine"].set_index("map").groupby("score", sort=False):
        sign = -1 if score in LOWER else 1
        average = sign * part.loc[list(real), "mean"].mean()
        above = [m for m in ("CentreGaussian", "EdgeDetector") if sign * part.loc[m, "mean"] > average]
        places = {name: f"#{rank:.0f} of {len(part)}" for name, rank in part["rank"].items() if name.endswith("Truth")}
        records[score] = places | {"above the average CAM": " and ".join(above) or "neither"}
    return pd.DataFrame(records).T.rename_axis("score")


def fig3(rows: pd.DataFrame, groups: Mapping[str, str], draws: int) -> pd.DataFrame:
    """Correlate the compared scores with the truth: one block of rows per group, see `statistics.correlations`.

    Args:
        rows: Scored rows.
        groups: Name of a group -> its truth, a column; or a background, whose truth is the ground-truth mask.
        draws: Draws of the bootstrap over images.
    """
    parts = []
    for name, key in groups.items():
        part, truth = (rows, key) if key in rows else (rows[rows["background"] == key], "cosine")
        parts.append(correlations(part, list(COMPARED), truth, draws=draws).assign(group=name))
    return pd.concat(parts, ignore_index=True)


def correlation_text(table: pd.DataFrame, group: str, spread: bool) -> pd.DataFrame:
    """Lay one group of Fig. 3 out as text: one row per level and kind, one column per score.

    Args:
        table: The table of `fig3`.
        group: The group's name.
        spread: Add the standard deviation over networks.
    """
    part = table[table["group"] == group].set_index(["level", "kind", "score"])
    text = intervals(part, "value") + (part["std"].map(" ± {:.2f}".format) if spread else "")
    return text.unstack("score")[list(COMPARED)].rename(columns=title_of)


def audit_text(table: pd.DataFrame) -> pd.DataFrame:
    """Lay the audit out as text: one row per claim, one column per condition."""
    cell = [f"{r.verdict}: {r.value:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in table.itertuples()]
    wide = table.assign(cell=cell).pivot(index="claim", columns="condition", values="cell")
    return wide.loc[unique(table["claim"]), unique(table["condition"])]


def shown(tests: pd.DataFrame, level: float = 0.05) -> pd.Series:
    """Return 1 or -1 where a difference is shown, and 0 where it is not.

    A difference is shown if its corrected p value is below `level`, its 95 % interval excludes 0, and it rests on at
    least FEWEST images.

    Args:
        tests: The result of `statistics.paired_test`, corrected over the family that the table shows.
        level: Upper limit of the corrected p value.
    """
    sign = (tests["low"] > 0).astype(int) - (tests["high"] < 0).astype(int)
    return sign.where((tests["p_holm"] < level) & (tests["n"] >= FEWEST), 0)


def tested(rows: pd.DataFrame) -> pd.DataFrame:
    """Test RefineCAM against Base in ARCC for each network and method, see `paired_test`, with a verdict for each."""
    return _judged(paired_test(rows, "arcc", ["model", "method"], BASE_AND_REFINED))


def product_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """Test the product against each other aggregate, named in the column `against`, with a verdict for each."""
    others = [name for name in AGGREGATES if name in set(rows["aggregate"]) and name != "product"]
    tests = {name: paired_test(rows, "arcc", ["model", "method"], (name, "product")) for name in others}
    table = pd.concat([table.assign(against=name) for name, table in tests.items()], ignore_index=True)
    return _judged(table.assign(p_holm=holm(table["p"].to_numpy())))


def _judged(tests: pd.DataFrame) -> pd.DataFrame:
    """Add a verdict: "too few images" below FEWEST pairs; "real" if the difference is `shown`; else "not shown"."""
    words = np.select([tests["n"] < FEWEST, shown(tests) != 0], ["too few images", "real"], "not shown")
    return tests.assign(verdict=words)


def mostly_real(tests: pd.DataFrame) -> bool:
    """Tell whether more than half of the tests found a real gain."""
    return bool(((tests["verdict"] == "real") & (tests["difference"] > 0)).mean() > 0.5)


def terms(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each term of ARCC, Base beside RefineCAM, and the share of undefined correlations."""
    names = ["coherency", "complexity", "road", "undefined r"]
    table = rows.assign(**{"undefined r": rows["pearson"].isna()})
    means = table.groupby(["model", "method", "aggregate"], sort=False)[names].mean()
    return means.unstack("aggregate").rename(columns=NAMES)


def truth_by_size(rows: pd.DataFrame) -> pd.DataFrame:
    """Return agreement with the ground-truth mask as text: one row per network, method and size of shape."""
    table = summaries(rows, ["cosine", "average_precision"], ["model", "method", "size", "aggregate"])
    table = table.assign(cell=cells(table))
    wide = table.pivot(index=["model", "method", "size"], columns=["score", "aggregate"], values="cell")
    return wide.reindex(["small", "medium", "large"], level="size").rename(columns=NAMES)


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare RefineCAM's gain in ARCC with its gain in agreement with the ground-truth mask.

    Returns:
        One row per network, method and size: n, each gain with its 95 % interval, and whether ARCC and a measure of
        truth "agree" or "disagree"; "not shown" if an interval contains 0.
    """
    by, truths = ["model", "method", "size"], ["cosine", "average_precision"]
    found = {s: paired_test(rows, s, by, BASE_AND_REFINED).set_index(by) for s in ("arcc", *truths)}
    table = found["arcc"][["n"]].copy()
    for name, gain in found.items():
        table[[name, f"{name} low", f"{name} high"]] = gain[["difference", "low", "high"]]
    sign = {name: (gain["low"] > 0).astype(int) - (gain["high"] < 0).astype(int) for name, gain in found.items()}
    words = {1: "agree", -1: "disagree", 0: "not shown"}
    return table.assign(**{f"ARCC and {truth}": (sign["arcc"] * sign[truth]).map(words) for truth in truths})


def mass_on_truth(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean share of each map's mass that lies on the shape, Base beside RefineCAM. Higher is better."""
    table = rows.pivot_table(index=["model", "method"], columns="aggregate", values="mass_on_truth", sort=False)
    return table.rename(columns=NAMES)


def with_deepest(rows: pd.DataFrame, aggregate: str) -> pd.DataFrame:
    """Add the deepest layer's Base maps a second time, under the name `aggregate`."""
    last = rows[(rows["layer"] == rows["layer"].max()) & (rows["aggregate"] == "none")]
    return pd.concat([rows, last.assign(aggregate=aggregate)], ignore_index=True)


def fig4(rows: pd.DataFrame) -> pd.DataFrame:
    """Return ROAD and ARCC of one image's map and of its power 1/8, beside the paper's numbers. rows: index power."""
    paper = pd.read_csv(paths.PAPER / "fig4.csv").pivot(index="score", columns="map", values="value")
    table = pd.DataFrame(
        {"M": rows.loc[1, ["road", "arcc"]], "M^(1/8)": rows.loc[1 / 8, ["road", "arcc"]]}, dtype=float
    )
    return table.assign(**{"paper, M": paper["map"], "paper, M^(1/8)": paper["power"]}).rename_axis("score")


def by_stage(rows: pd.DataFrame, layers: Sequence[str]) -> pd.DataFrame:
    """Turn the lists of the randomisation rows into one row per stage, with the columns random and stage.

    Args:
        rows: Rows of the measurement "randomisation".
        layers: The network's layers, shallow to deep.
    """
    names = ["nothing", *(f"above {layer}" for layer in reversed(layers)), "everything"]
    rows = rows.assign(random=[names] * len(rows), stage=[[*range(len(names))]] * len(rows))
    rows = rows.explode(["random", "stage", "spearman", "ssim"], ignore_index=True)
    return rows.astype({"spearman": float, "ssim": float})


def left_at_the_end(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the similarity of maps once the whole network is random. rows: those of `by_stage`."""
    left = rows[rows["random"] == "everything"]
    parts = [summary(left, s, ["method", "aggregate"]).add_prefix(f"{s} ") for s in ("spearman", "ssim")]
    return pd.concat(parts, axis=1).drop(columns=["spearman std", "ssim std", "ssim n"]).rename(index=NAMES)


def rounding_shares(rows: pd.DataFrame, networks: Sequence[str], within: float) -> pd.DataFrame:
    """Return the share of rows that rounding moves by more than `within`, per method, aggregate and network."""
    by = ["method", "aggregate", "model"]
    table = rows.assign(decided=rows["moved"] > within).groupby(by)["decided"].agg(share="mean", rows="size")
    order = {name: place for place, name in enumerate([*CAMS, *OTHERS, *BASE_AND_REFINED, *networks])}
    return table.reset_index().sort_values(by, key=lambda names: names.map(order), ignore_index=True)


def paper_table(name: str) -> pd.DataFrame:
    """Return the paper's "table1" or "table2": columns method, [model,] aggregate, mean, std.

    Raises:
        InputError: There is no such table, or no checkout.
    """
    path = paths.PAPER / f"{one_of('table of the paper', name, ['table1', 'table2'])}.csv"
    if not path.is_file():
        raise InputError(f"No file {str(path)!r}. Set REFINECAM_ROOT to a checkout of this project's repository.")
    return pd.read_csv(path)


def beside_paper(table: pd.DataFrame, name: str, methods: Sequence[str], photographs: bool = False) -> pd.DataFrame:
    """Set ours beside the paper's number: one text row per network and method.

    Args:
        table: A summary with the columns model, method, aggregate, mean, std, n.
        name: "table1" or "table2".
        methods: The rows.
        photographs: Ours are of photographs too, so ours minus the paper's is added.

    Returns:
        Ours for each aggregate, the best of a network in bold; n, or each aggregate's n if they differ; and the paper's
        number. A network that the paper doesn't have stands beside the mean of the paper's four.
    """
    printed = paper_table(name)
    aggregates = unique(table["aggregate"])
    records = []
    for model, part in table.groupby("model", sort=False):
        own = printed[printed["model"] == model] if "model" in printed else printed
        source = "paper" if len(own) and "model" in printed else "paper, mean of 4 networks"
        theirs = (own if len(own) else printed).groupby(["method", "aggregate"])["mean"].mean()
        best, part = part["mean"].max(), part.assign(cell=cells(part)).set_index(["method", "aggregate"])
        for method in methods:
            measured = {a: part.loc[(method, a)] for a in aggregates if (method, a) in part.index}
            bold = {a: f"**{row['cell']}**" if row["mean"] == best else row["cell"] for a, row in measured.items()}
            counts = list(dict.fromkeys(str(row["n"]) for row in measured.values()))
            counts = [str(row["n"]) for row in measured.values()] if len(counts) > 1 else counts
            record = {"model": model, "method": method} | {NAMES.get(a, a): bold.get(a, "N.A.") for a in aggregates}
            record["n"] = " / ".join(counts)
            for a, row in measured.items():
                if (method, a) in theirs.index:
                    gap = f" ({row['mean'] - theirs[method, a]:+z.2f})" if photographs else ""
                    title = f"{NAMES[a]}, {source}" + " (ours - it)" * photographs
                    record[title] = f"{theirs[method, a]:.2f}{gap}"
            records.append(record)
    return pd.DataFrame(records, dtype=object).fillna("")
