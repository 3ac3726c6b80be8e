"""Tables as the paper prints them: mean ± standard deviation, the best in bold, n, and the paper's number beside ours."""

from collections.abc import Sequence

import pandas as pd

from .. import paths
from ..errors import one_of
from .plots import NAMES


def cells(table: pd.DataFrame) -> pd.Series:
    """`mean ± std` as text, for a table with the columns mean, std and n: the value alone where n is 1, nothing where 0."""
    columns = zip(table["mean"], table["std"], table["n"])
    texts = ["" if n == 0 else f"{m:z.2f} ± {s:.2f}" if n > 1 else f"{m:z.2f}" for m, s, n in columns]
    return pd.Series(texts, index=table.index)


def paper_table(name: str) -> pd.DataFrame:
    """The paper's printed numbers from data/reference: "table1" or "table2", columns method, [model,] aggregate, mean, std."""
    return pd.read_csv(paths.PAPER / f"{one_of('table of the paper', name, ['table1', 'table2'])}.csv")


def beside_paper(table: pd.DataFrame, name: str, methods: Sequence[str]) -> pd.DataFrame:
    """One text row a method and network: ours for each aggregate, n, and the paper's number with the difference.

    table: a summary with columns model, method, aggregate, mean, std, n, which is said for each aggregate where they
    differ. The best of a network is in bold. A network that the paper doesn't have stands beside the mean over the
    paper's four, marked so in the column's name.
    """
    printed = paper_table(name)
    aggregates = list(dict.fromkeys(table["aggregate"]))
    records = []
    for model, part in table.groupby("model", sort=False):
        own = printed[printed["model"] == model] if "model" in printed else printed
        source = "paper" if len(own) and "model" in printed else "paper, mean of 4 networks"
        theirs = (own if len(own) else printed).groupby(["method", "aggregate"])["mean"].mean()
        text, best = cells(part), part["mean"].max()
        for method in methods:
            record, counts = {"model": model, "method": method}, []
            for aggregate in aggregates:
                row = part[(part["method"] == method) & (part["aggregate"] == aggregate)]
                if len(row):
                    value, shown = row["mean"].iloc[0], text[row.index[0]]
                    record[NAMES.get(aggregate, aggregate)] = f"**{shown}**" if value == best else shown
                    counts.append(str(row["n"].iloc[0]))
                else:
                    record[NAMES.get(aggregate, aggregate)] = "N.A."
            record["n"] = " / ".join(counts if len(set(counts)) > 1 else counts[:1])
            for aggregate in aggregates:
                row = part[(part["method"] == method) & (part["aggregate"] == aggregate)]
                if len(row) and (method, aggregate) in theirs.index:
                    number = theirs[method, aggregate]
                    difference = row["mean"].iloc[0] - number
                    record[f"{NAMES[aggregate]}, {source} (ours - it)"] = f"{number:.2f} ({difference:+z.2f})"
            records.append(record)
    return pd.DataFrame(records, dtype=object).fillna("")
