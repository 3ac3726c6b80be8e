"""Build the tables about birds: their classes, the FunnyBirds score, and what removing a part changes."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ..explanation import CAMS, OTHERS, TRIVIAL
from ..funnybirds.dataset import PARTS, FunnyBirds
from ..funnybirds.score import distinguishing, per_explanation, summary
from ..scoring import EVERY, scores
from . import statistics, truths
from .plots import NAMES
from .tables import correct, intervals, shallow_base, turned

TRUTHS = {
    "FunnyBirds score": "funnybirds",
    "Completeness": "completeness",
    "Correctness": "correctness",
    "Contrastivity": "contrastivity",
}
"""Name -> column: the FunnyBirds score and its three sides, which Fig. 3b correlates the scores with."""


def scored_birds(rows: pd.DataFrame, convention: str = "recommended") -> pd.DataFrame:
    """Add the FunnyBirds score and all other scores to the rows that did not fail."""
    kept = rows[rows["status"] != "failed"].reset_index(drop=True)
    kept = kept.join(per_explanation(kept).rename(columns={"score": "funnybirds"}))
    return turned(kept.join(scores(kept, convention)))


def arcc_leads(rows: pd.DataFrame, draws: int, seed: int = 0) -> pd.DataFrame:
    """Tell whether ARCC agrees best with the FunnyBirds score: one row per convention, one column per network.

    Args:
        rows: Measured rows of birds.
        draws: Draws of the bootstrap over images.
        seed: Seeds the draws.

    Returns:
        1 where ARCC's correlation is above the best other score's, -1 where it is below, 0 where neither is shown.
    """
    found = {}
    for name in EVERY:
        told = scored_birds(rows, name)
        alone = correct(shallow_base(told[~told["method"].isin(TRIVIAL)]))
        lead = truths.leads(truths.agreement(alone, draws, seed, ["funnybirds"]))
        found[name] = lead.xs(("funnybirds", "pooled"), level=("truth", "level"))["shown"]
    return pd.DataFrame(found).T.fillna(0).astype(int).rename_axis("convention")


def class_counts(classes: Sequence[Mapping[str, int]]) -> pd.DataFrame:
    """Count pairs of classes by how many parts differ, and distinguishing sets by their size."""
    differ = [sum(a[p] != b[p] for p in PARTS) for i, a in enumerate(classes) for b in classes[:i]]
    sizes = [len(subset) for sets in distinguishing(classes) for subset in sets]
    columns = {
        "pairs of classes that differ in so many parts": pd.Series(differ).value_counts(),
        "distinguishing sets of so many parts": pd.Series(sizes).value_counts(),
    }
    return pd.DataFrame(columns, index=pd.Index([*range(1, len(PARTS) + 1)], name="parts")).fillna(0).astype(int)


def removals(birds: FunnyBirds, n: int) -> pd.DataFrame:
    """Count the pixels that each part's removal changes, inside and outside of the part's mask: one row per part."""
    records = []
    for number in range(min(n, len(birds))):
        image, masks = birds[number].image, birds.masks(number)
        for part in PARTS:
            moved = (image != birds.intervention(number, set(PARTS) - {part})).any(0)
            outside = int((moved & ~masks[part]).sum())
            records.append({"bird": number, "part": part, "changed": int(moved.sum()), "outside the mask": outside})
    return pd.DataFrame(records)


def bird_summary(rows: pd.DataFrame, models: Sequence[str], draws: int) -> pd.DataFrame:
    """Summarise the FunnyBirds score of the shallowest layer's maps: one row per network, method and aggregate.

    Args:
        rows: Rows of `scored_birds`.
        models: The order of the networks.
        draws: Draws of the bootstrap over images.
    """
    table = summary(rows, draws=draws)
    table = table[table["layer"] == 0].drop(columns="layer")
    for column, names in (("method", [*CAMS, *OTHERS, *TRIVIAL]), ("model", list(models))):
        table = table.sort_values(column, key=lambda values, names=names: values.map(names.index), kind="stable")
    return table.reset_index(drop=True)


def bird_table(table: pd.DataFrame) -> pd.DataFrame:
    """Lay the table of `bird_summary` out for reading."""
    interval = [f"{r.low:.2f} to {r.high:.2f}" for r in table.itertuples()]
    shown = table.assign(aggregate=table["aggregate"].map(NAMES), interval=interval)
    shown = shown.rename(columns={"ts_kept": "kept", "background_independence": "background independence"})
    columns = ["model", "method", "aggregate", "completeness", "correctness", "contrastivity", "score", "interval"]
    return shown[[*columns, "threshold", "kept", "accuracy", "background independence", "n"]]


def bird_terms(table: pd.DataFrame) -> pd.DataFrame:
    """Average the terms of the table of `bird_summary` over networks: one row per method and aggregate."""
    methods = [method for method in (*CAMS, *OTHERS) if method in set(table["method"])]
    means = table.groupby(["method", "aggregate"])[["csdc", "pc", "dc", "d", "sd", "ts"]].mean()
    return means.loc[methods].reset_index()


def contrastivity(rows: pd.DataFrame) -> pd.DataFrame:
    """Set Contrastivity beside the published code's, which compares each map with itself (D3).

    Args:
        rows: Measured rows of birds.
    """
    shallow = (rows["layer"] == 0) & (rows["aggregate"] == "none") & (rows["status"] != "failed")
    ours = rows[shallow].reset_index(drop=True)
    found = {"ours": ours, "published code": ours.assign(ts_2A=ours["ts_1A"], ts_2B=ours["ts_1B"])}
    made = {
        name: statistics.summary(birds.join(per_explanation(birds)), "contrastivity", ["method"])
        for name, birds in found.items()
    }
    table = pd.DataFrame({name: intervals(part) for name, part in made.items()})
    return table.assign(n=made["ours"]["n"]).reindex([*CAMS, *OTHERS, *TRIVIAL])
