"""Tables of the scenes: the certificate, and what scores, imputers and methods are worth, factor by factor.

>>> own = only_certified(rows, certified(certificates))            # rows of scenes whose truth is certified
>>> leads(by_factor(scored(own)))                                  # who leads under which truth and condition?
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy

from ..datasets.scenes import CONDITIONS, LAYERS, TWINS
from ..errors import one_of
from ..explanation import CAMS
from ..networks.checkpoints import checkpoint_path, read_checkpoint
from . import truths
from .plots import NAMES
from .statistics import accuracy, correlations, summary
from .tables import BASE_AND_REFINED, COMPARED, correct, intervals, summaries

TRUTHS = {
    "cosine": "cosine similarity to the mask",
    "average_precision": "average precision against the mask",
    "mass_on_truth": "share of the map's mass on the mask",
    "exact_road": "exact removal",
}
"""Columns that scores are compared with, and their names. Higher is better."""
EVERY = "all conditions"
"""The name of all conditions together."""
FEW_SCENES = 10
"""With fewer scenes of a condition there is no correlation. Verdicts need more."""
IMPUTERS = ("linear", "mean", "blur", "black")
"""What a removed pixel shows instead of what lies behind the truth, see `measurements.imputers`."""
IMPUTER_MAPS = ("CAMs", "controls")
"""Maps that explain the network, and maps that do not."""
IMPUTER_MEASURES = ("rank correlation with exact removal", "mean distance from exact removal")
LADDER = ("truth", "half of it", "truth and distractors", "distractors", "random")
"""Maps of known order, from the best to the worst."""
_RUNGS = {"": LADDER[0], "half": LADDER[1], "more": LADDER[2], "distractors": LADDER[3]}
PARTS = {
    "c1": "C1: the rest is drawn again",
    "c2_removed": "C2: removed",
    "c2_swapped": "C2: swapped",
    "c3": "C3: one layer is drawn again",
    "certified": "certified",
}
"""Parts of the certificate, as `certified` adds them."""
C3_MOVE = 0.05
"""C3: the largest move of the logit, as a share of what removing the truth moves it."""


def twin_of(dataset: pd.Series) -> pd.Series:
    """Return "objects" or "badges" for each data set's name."""
    return dataset.str.split("_").str[1]


def certified(rows: pd.DataFrame, fall: float = 0.5, move: float = C3_MOVE) -> pd.DataFrame:
    """Add which parts of the certificate each image passes. Only correctly classified images can pass.

    Args:
        rows: Rows of the measurement "certificate".
        fall: Removing the truth must lower the probability at least by this share.
        move: Drawing any other layer again may move the logit by at most this share of what removing the truth moves.

    Returns:
        The rows with the columns twin, c1 (the prediction stayed in all redraws), c2_removed, c2_swapped (the prediction
        followed all swaps), c3, and certified (all of c1 and c2).
    """
    moved = rows[[f"moved_{layer}" for layer in LAYERS]].max(axis=1)
    effect = (rows["logit"] - rows["logit_without"]).clip(lower=0)
    correct = rows["correct"].astype(bool)
    found = {
        "twin": twin_of(rows["dataset"]),
        "c1": correct & (rows["kept"] == rows["redraws"]),
        "c2_removed": correct & (rows["probability_without"] <= (1 - fall) * rows["probability"]),
        "c2_swapped": correct & (rows["swapped"] == rows["redraws"]),
        "c3": correct & (moved <= move * effect),
    }
    found["certified"] = found["c1"] & found["c2_removed"] & found["c2_swapped"]
    return rows.assign(**found)


def only_certified(rows: pd.DataFrame, certificates: pd.DataFrame, part: str = "certified") -> pd.DataFrame:
    """Keep the rows of scenes whose truth passes a part of the certificate on the row's network, and add twin.

    Args:
        rows: Rows of any measurement of scenes.
        certificates: Those of `certified`, of the same scenes.
        part: A name in PARTS.
    """
    keys = ["model", "twin", "image"]
    passed = certificates.loc[certificates[one_of("part", part, PARTS)], keys]
    return rows.assign(twin=twin_of(rows["dataset"])).merge(passed, on=keys)


def by_base_scene(rows: pd.DataFrame) -> pd.DataFrame:
    """Name networks by their data set in the column model ("resnet18, objects"), and images by their base scene.

    Scene number 7 has the same object, badge and place in most conditions. So conditions are no independent images, and
    tables over all conditions draw base scenes.
    """
    number = rows["image"].str.rsplit("-", n=1).str[-1]
    return rows.assign(model=rows["model"] + ", " + rows["twin"], image=number)


def pass_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the share of correctly classified images that pass each part, with its 95 % Wilson interval.

    Args:
        rows: Those of `certified`.

    Returns:
        One row per network, twin, condition (also EVERY) and part: mean, low, high, n.
    """
    rows = rows[rows["correct"].astype(bool)]
    both = pd.concat([rows, rows.assign(condition=EVERY)]).drop(columns="correct")
    by = ["model", "twin", "condition"]
    passed = both.melt(by, list(PARTS), "part", "correct")
    table = accuracy(passed, [*by, "part"]).reset_index().rename(columns={"accuracy": "mean"})
    order = {name: place for place, name in enumerate([*CONDITIONS, EVERY])}
    return table.sort_values("condition", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def pass_text(table: pd.DataFrame) -> pd.DataFrame:
    """Lay `pass_shares` out as text: one row per network, twin and condition, one column per part."""
    by = ["model", "twin", "condition"]
    wide = table.assign(cell=intervals(table)).pivot(index=by, columns="part", values="cell")
    n = table.drop_duplicates(by).set_index(by)["n"]
    wide = wide.reindex(n.index)[list(PARTS)].rename(columns=PARTS).rename_axis(columns=None)
    return wide.assign(n=n).sort_index(level=["model", "twin"], sort_remaining=False, kind="stable")


def fresh_failures(rows: pd.DataFrame) -> pd.DataFrame:
    """Count failures among the fresh redraws of images that passed C1.

    Args:
        rows: Those of `certified`.

    Returns:
        One row per network and twin, and "all": images, fresh redraws, failures, and the failures' share with its exact
        one-sided 95 % upper bound. The bound takes redraws for independent.
    """
    rows = rows[rows["c1"]]
    both = pd.concat([rows, rows.assign(model="all", twin="")])
    records = []
    for (model, twin), group in both.groupby(["model", "twin"], sort=False):
        n, failed = int(group["redraws"].sum()), int((group["redraws"] - group["kept_fresh"]).sum())
        bound = scipy.stats.binomtest(failed, n, alternative="less").proportion_ci(method="exact").high
        record = {"model": model, "twin": twin, "images": len(group), "fresh redraws": n, "failures": failed}
        records.append(record | {"share": failed / n, "upper bound": float(bound)})
    return pd.DataFrame(records)


def by_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what drawing one layer again does to a network, beside drawing all layers but the truth's again.

    Args:
        rows: Those of `certified`. Only correctly classified images count.

    Returns:
        One row per network, twin and layer, over the images that have the layer: the share of redraws in which the
        prediction stays, its 95 % interval over images and n images; the same share if all layers but the truth's are drawn
        again (C1); the share of images in which this layer moves the logit by at most what C3 allows; and the median of the
        largest move, as a share of what removing the truth moves the logit.
    """
    rows = rows[rows["correct"].astype(bool)]
    effect, parts = (rows["logit"] - rows["logit_without"]).clip(lower=0), []
    for layer in LAYERS:
        moved, stays = rows[f"moved_{layer}"], rows[f"kept_{layer}"] / rows["redraws"]
        columns = {"within C3": (moved <= C3_MOVE * effect).astype(float), "move": moved / effect.replace(0, np.nan)}
        own = rows.assign(layer=layer, stays=stays, together=rows["kept"] / rows["redraws"], **columns)
        parts.append(own[stays.notna()])
    both, by = pd.concat(parts, ignore_index=True), ["model", "twin", "layer"]
    table = summary(both, "stays", by).drop(columns="std").rename(columns={"mean": "prediction stays"})
    groups = both.groupby(by, sort=False)
    more = groups[["together", "within C3"]].mean().rename(columns={"together": "if all are drawn again"})
    return table.join(more).join(groups["move"].median().rename("median move"))


def after_redraws(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare each twin's accuracy with that after the other twin's layer is drawn again.

    Returns:
        One row per network and twin: the layer, n, accuracy, accuracy after, the change with its interval, and how many of
        the redraws turn a right prediction wrong (lost) and a wrong one right (gained), as shares of all.
    """
    parts = []
    for twin, layer in (("objects", "badge"), ("badges", "object")):
        own = rows[twin_of(rows["dataset"]) == twin].assign(twin=twin, layer_redrawn=layer)
        before, after = own["correct"].astype(float), own[f"kept_{layer}"] / own["redraws"]
        lost, gained = before * (1 - after), (1 - before) * after
        parts.append(own.assign(before=before, after=after, lost=lost, gained=gained))
    both = pd.concat(parts, ignore_index=True)
    by = ["model", "twin", "layer_redrawn"]
    change = summary(both.assign(change=both["after"] - both["before"]), "change", by)
    means = both.groupby(by, sort=False)[["before", "after", "lost", "gained"]].mean()
    return means.join(change.drop(columns="std").rename(columns={"mean": "change"}))


def by_factor(rows: pd.DataFrame, draws: int = 100) -> pd.DataFrame:
    """Correlate each score with each truth, condition by condition (Fig. 3a), see `truths.agreement`.

    A network has no correlation in conditions with fewer than FEW_SCENES scenes.

    Args:
        rows: Scored rows with twin. The shallowest layer's Base maps are used.
        draws: Draws of the bootstrap over images.

    Returns:
        The rows of `truths.agreement` with the column condition. EVERY is one of the conditions. "within methods" is
        within a method and condition.
    """
    rows, parts = by_base_scene(rows), []
    rows = rows.assign(method=rows["method"] + ", " + rows["condition"])
    for condition in (EVERY, *CONDITIONS):
        part = rows if condition == EVERY else rows[rows["condition"] == condition]
        part = part[part.groupby("model")["image"].transform("nunique") >= FEW_SCENES]
        if len(part):
            parts.append(truths.agreement(part, draws, truths=tuple(TRUTHS)).assign(condition=condition))
    return pd.concat(parts, ignore_index=True)


def leads(table: pd.DataFrame) -> pd.DataFrame:
    """Compare ARCC with the best other score, see `truths.leads`: one row per condition, network, truth and level.

    Args:
        table: The result of `by_factor`.
    """
    parts = {
        name: truths.leads(part).drop(columns="condition") for name, part in table.groupby("condition", sort=False)
    }
    return pd.concat(parts, names=["condition"])


def imputer_table(rows: pd.DataFrame, draws: int = 100) -> pd.DataFrame:
    """Measure how close each of IMPUTERS comes to exact removal.

    Args:
        rows: Rows of the measurement "imputers".
        draws: Draws of the bootstrap over images.

    Returns:
        One row per kind of map (IMPUTER_MAPS), network and data set (both in the column model), measure and imputer: mean,
        with its 95 % interval low, high over images, and n maps. Measures: "rank correlation with exact removal" (Spearman,
        higher is better) and "mean distance from exact removal" (lower is better).
    """
    rows = correct(rows)
    data = rows["dataset"].str.removeprefix("scenes_").replace("synthetic", "shapes")
    maps = np.where(rows["method"].isin(CAMS), *IMPUTER_MAPS)
    rows = rows.assign(model=rows["model"] + ", " + data, maps=maps, method=rows["method"] + " " + rows["aggregate"])
    parts = []
    for (maps, model), part in rows.groupby(["maps", "model"], sort=False):
        alike = correlations(part, IMPUTERS, "exact", "linear", draws, kinds=["spearman"])
        alike = alike[alike["level"] == "explanation"].rename(columns={"value": "mean"})
        gaps = part.assign(**{name: (part[name] - part["exact"]).abs() for name in IMPUTERS})
        far = summaries(gaps, IMPUTERS, ["model"])
        for measure, table in zip(IMPUTER_MEASURES, (alike, far), strict=True):
            table = table[["score", "mean", "low", "high", "n"]].rename(columns={"score": "imputer"})
            parts.append(table.assign(maps=maps, model=model, measure=measure))
    return pd.concat(parts, ignore_index=True)[["maps", "model", "measure", "imputer", "mean", "low", "high", "n"]]


def twin_test(rows: pd.DataFrame, marked: pd.DataFrame) -> pd.DataFrame:
    """Measure how often a score prefers the truth to the other twin's truth. Ties count one half.

    A score that ignores the network prefers the same mask on both twins, so its mean over twins is one half. Only scenes
    that both twins have count.

    Args:
        rows: Scored rows with twin. The maps of the method GroundTruth are used.
        marked: Those of the same scenes with masks that mark something else.

    Returns:
        One row per score and network: mean over the images of both twins with its interval, and n.
    """
    keys = ["model", "twin", "image"]
    truth, other = rows[rows["method"] == "GroundTruth"], marked[marked["dataset"].str.endswith("_other")]
    own, others = (maps.set_index(keys)[list(COMPARED)] for maps in (truth, other))
    both = own.join(others.add_suffix(" other")).dropna()
    both = both[both.groupby(["model", "image"])["arcc"].transform("size") == len(TWINS)]
    records = [
        both.index.to_frame(index=False).assign(
            score=score, preferred=((np.sign(both[score] - both[f"{score} other"]) + 1) / 2).to_numpy()
        )
        for score in COMPARED
    ]
    found = pd.concat(records, ignore_index=True)
    return summary(found, "preferred", ["score", "model"]).drop(columns="std").reset_index()


def ladder(rows: pd.DataFrame, marked: pd.DataFrame) -> pd.DataFrame:
    """Measure how well each score orders maps of known order: Kendall's tau in [-1,1], image by image.

    A score that is the same for all maps has tau 0.

    Args:
        rows: Scored rows with twin. The maps of the methods GroundTruth and RandomCAM are used.
        marked: Those of the same scenes with masks that mark something else.

    Returns:
        One row per score and network: the mean tau over images with distractors, with its interval, and n.
    """
    both = pd.concat([rows[rows["method"].isin(["GroundTruth", "RandomCAM"])], marked])
    mark = both["dataset"].str.split("_").str[2].fillna("")
    both = both.assign(rung=mark.map(_RUNGS).mask(both["method"] == "RandomCAM", LADDER[-1]))
    both = both[(both["distractors"] != "0") & both["rung"].notna()]
    worth = dict(zip(LADDER, range(len(LADDER), 0, -1), strict=True))
    records = []
    for (model, twin, image), part in both.groupby(["model", "twin", "image"], sort=False):
        if len(part) == len(LADDER):
            order = part["rung"].map(worth)
            taus = {score: np.nan_to_num(scipy.stats.kendalltau(order, part[score]).statistic) for score in COMPARED}
            records += [{"model": model, "image": f"{twin} {image}", "score": s, "tau": tau} for s, tau in taus.items()]
    return summary(pd.DataFrame(records), "tau", ["score", "model"]).drop(columns="std").reset_index()


def method_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each truth with its interval: one row per network, method and aggregate, by twin.

    Args:
        rows: Scored rows with twin. The shallowest layer's Base and RefineCAM maps are used.
    """
    rows = rows[(rows["layer"] == 0) & rows["aggregate"].isin(BASE_AND_REFINED)]
    by = ["model", "method", "aggregate"]
    table = summaries(rows, list(TRUTHS), [*by, "twin"])
    wide = table.assign(cell=intervals(table), score=table["score"].map(TRUTHS))
    wide = wide.pivot(index=by, columns=["twin", "score"], values="cell").rename(columns=str)
    order = table.drop_duplicates(by).set_index(by).index
    return wide.reindex(order).rename(index=NAMES, level="aggregate")


def cards(models: Sequence[str]) -> dict[tuple[str, str], dict]:
    """Read the cards of networks that know the scenes: (network, twin) -> card."""
    return {(m, twin): read_checkpoint(checkpoint_path(m, f"scenes_{twin}"))[1] for m in models for twin in TWINS}


def card_accuracies(cards: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """Return the accuracy that cards state, with its interval: one row per network and twin, on groups of test scenes.

    Args:
        cards: (network, twin) -> its card.
    """
    records = []
    for (model, twin), card in cards.items():
        for test in ("test", "fresh"):
            parts = {"all": card[test]} | {f"{n} % hidden": card[test]["hidden"][n] for n in card[test]["hidden"]}
            parts |= {f"{size} objects": card[test]["size"][size] for size in card[test]["size"]}
            text = {
                name: f"{p['accuracy']:.3f} [{p['interval'][0]:.3f}, {p['interval'][1]:.3f}]"
                for name, p in parts.items()
            }
            records.append({"model": model, "twin": twin, "scenes": f"{test}, {card[test]['n']:,}"} | text)
    return pd.DataFrame(records)
