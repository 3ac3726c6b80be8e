"""Prove committed rows: measure some of them again and compare, or compare all rows of a run that measured afresh.

A row counts as different only if rounding cannot explain it. Where a value differs by more than `WITHIN`, the row is
measured again and again, each time with the input moved by one float32 rounding step at random. Once the difference is
at most `FACTOR` times the largest move, the row is ill-conditioned: it is counted and listed, and no failure.
Methods that are computed in float64 have no such excuse: on every processor their maps are the same.
"""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pandas as pd
import scipy

from ..datasets.photographs import available
from ..errors import InputError
from ..explanation import SLOW, method_of
from ..sweeps.run import measured
from ..sweeps.shard import Pair, Shard
from ..sweeps.store import committed_only, committed_rows, local_rows, look_up, pairs_of
from ..sweeps.version import KEYS
from .compare import differences

WITHIN = 1e-3
"""Two values this close are the same; above 1 the difference is relative."""
ROUNDINGS = 3, 40
"""How often a row that differs is measured with a moved input: at least, and at most while there is time.

Two pixels may be so close that one rounding in a dozen swaps them, so a few are not enough.
"""
MINUTES = 10
"""For so long a fresh run, which compares all rows, moves inputs more than the fewest times."""
FACTOR = 5.0
"""How many times the largest move a difference may be. Another processor rounds in every operation, not in the input alone."""
LIMIT, CHANCE = 0.05, 0.01
"""More than this share of ill-conditioned rows is a failure, if chance explains it in less than one of 100 samples."""
UNCOMPARED = {*KEYS, "seed", "commit", "file", "reason", "column"}
LIGHT = "efficientnet_lite0"
"""The network on which slow methods are measured again, which take a minute a row on others."""


@dataclass(frozen=True)
class Proof:
    """What a proof found: lines for the screen, details for the report, and whether all is well."""

    lines: tuple[str, ...]
    details: tuple[str, ...]
    ok: bool


@dataclass(frozen=True)
class Verdict:
    """What came of one row. kind: same, ill-conditioned or differs; of the column that differs most what was found."""

    name: str
    kind: str
    column: str = ""
    stored: str = ""
    found: str = ""
    moved: float = 0.0

    @property
    def line(self) -> str:
        if self.kind == "same":
            return f"{self.name}: same"
        return (
            f"{self.name}: {self.kind}: {self.column} is {self.found}, stored is {self.stored}; "
            f"rounding moves the row by {self.moved:.2g}"
        )


def stored(shards: Sequence[Shard]) -> dict[str, int]:
    """How many of the shards' rows are committed, were measured here, or are missing."""
    found = look_up(dict.fromkeys(shards))
    missing = {(shard.setup, pair) for shard in found.missing for pair in shard.pairs}
    return {"committed": found.committed, "local": len(found.rows) - found.committed, "missing": len(missing)}


def check(shard: Shard, row: pd.Series, until: float = np.inf) -> Verdict:
    """Measure the one row of a shard again and compare it with `row`, see `compare`."""
    return compare(shard, row, measured(shard), until)


def compare(shard: Shard, row: pd.Series, here: pd.DataFrame, until: float = np.inf) -> Verdict:
    """Compare the committed `row` of a shard of one row with the one `here`. until: when the time for many moves is up."""
    name = ", ".join(str(part) for part in (shard.measurement, shard.dataset, shard.model, shard.method) if part)
    variant = shard.variants[0]
    name += f", {shard.images[0]}, layer {variant.layer}, {variant.aggregate}"
    name += f", defects {', '.join(shard.defects)}" if shard.defects else ""
    columns = [c for c in row.index if c not in UNCOMPARED]
    here = here.reindex(columns=columns)
    gap = _gaps(row[columns], here)
    worst = max(columns, key=lambda c: gap[c])
    if gap[worst] <= WITHIN:
        return Verdict(name, "same")
    moved, (fewest, most) = 0.0, ROUNDINGS
    if not shard.method or not method_of(shard.method).double:
        for number in range(most):
            if gap[worst] <= FACTOR * moved or (number >= fewest and time.time() > until):
                break
            again = _gaps(measured(shard, rounding=number).reindex(columns=columns).iloc[0], here)
            moved = max(moved, *again.values())
    kind = "ill-conditioned" if gap[worst] <= FACTOR * moved else "differs"
    return Verdict(name, kind, worst, _text(row[worst]), _text(here[worst].iloc[0]), moved)


def _gaps(row: pd.Series, here: pd.DataFrame) -> dict[str, float]:
    """How far each value of a row is from the one measured row. Whole numbers, which count or name, are equal or not."""

    def gap(there: object, value: pd.Series) -> float:
        found = value.iloc[0]
        if _whole(there) and _whole(found):
            return 0.0 if there == found else np.inf
        return float(differences(value.reset_index(drop=True), pd.Series([there], dtype=object).infer_objects())[0])

    return {c: gap(row[c], here[c]) for c in here}


def _whole(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and float(value).is_integer()


def _text(value: object) -> str:
    if isinstance(value, (list, np.ndarray)):
        return "[" + ", ".join(f"{v:.4g}" for v in np.asarray(value, float)[:8]) + "]"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _places(shards: Sequence[Shard]) -> list[tuple[Shard, int]]:
    """Every committed row of the shards: a shard of that row alone, and its place in `committed_rows`.

    But for those that say what rounding does to another row: each processor has its own.
    """
    setups: dict[str, dict[Pair, Shard]] = {}
    for shard in dict.fromkeys(s for s in shards if s.measurement != "rounding"):
        setups.setdefault(shard.setup, {}).update(dict.fromkeys(shard.pairs, shard))
    places = []
    for wanted in setups.values():
        rows = committed_rows(next(iter(wanted.values())))
        if len(rows):
            places += [
                (wanted[pair].only({pair}), place) for place, pair in enumerate(pairs_of(rows)) if pair in wanted
            ]
    return places


def _sample(places: Sequence[tuple[Shard, int]], draw: random.Random) -> tuple[list[tuple[Shard, int]], ...]:
    """Rows to measure in any case, which bring a network, data set or aggregate each; and others, kinds of rows in turn."""
    light = [p for p in places if p[0].method not in SLOW or p[0].model == LIGHT]
    shuffled = draw.sample(light, len(light))
    first: list[tuple[Shard, int]] = []
    seen: set[object] = set()
    for shard, place in shuffled:
        kinds: set[object] = {shard.model, (shard.measurement, shard.dataset), shard.variants[0].aggregate}
        if not kinds <= seen:
            first.append((shard, place))
            seen |= kinds
    groups: dict[tuple, list[tuple[Shard, int]]] = {}
    for entry in shuffled:
        if entry not in first:
            shard = entry[0]
            groups.setdefault((shard.measurement, shard.dataset, shard.model, shard.method), []).append(entry)
    order = draw.sample(list(groups.values()), len(groups))
    turns = [entry for turn in zip_longest(*order) for entry in turn if entry]
    return first, turns


def _check(shard: Shard, place: int, until: float, in_any_case: bool) -> Verdict | None:
    """One row of a sample, or None once the time is up."""
    late = time.time() > until and not in_any_case
    return None if late else check(shard, committed_rows(shard).iloc[place], until)


def _each(work: Sequence[tuple[Shard, int, float, bool]], n_jobs: int) -> Iterator[Verdict | None]:
    """`_check` of each, in order. Not joblib's processes: those start anew where a process holds several networks."""
    if n_jobs == 1:
        yield from (_check(*one) for one in work)
        return
    try:
        with ProcessPoolExecutor(n_jobs, multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_check, *zip(*work))
    except BrokenProcessPool:
        raise InputError(
            "a process that measures rows again died; was there too little memory? Two of them need 6 GB"
        ) from None


def prove(shards: Sequence[Shard], minutes: float, seed: int | None = None, n_jobs: int = 2) -> Proof:
    """Measure committed rows of the shards again, drawn at random, for so many minutes.

    Every network and every aggregate has a row among the first, which are measured even where the time is short.
    seed: of the sample; None draws one.
    """
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    start = time.time()
    here = [shard for shard in shards if available(shard.dataset)]
    away = sorted({shard.dataset for shard in shards} - {shard.dataset for shard in here})
    places = _places(here)
    if not places:
        return Proof(("no committed row was measured again: there is none to be measured here", *_away(away)), (), True)
    first, turns = _sample(places, random.Random(seed))
    order = first + turns[: int(60 * minutes * n_jobs * 4)]  # more than there is time for
    work = [(*entry, start + 60 * minutes, k < len(first)) for k, entry in enumerate(order)]
    verdicts = [verdict for verdict in _each(work, n_jobs) if verdict]
    models, methods = ({getattr(s, what) for (s, _), v in zip(order, verdicts) if v} for what in ("model", "method"))
    took = time.time() - start
    what = (
        f"measured {len(verdicts)} of {len(places):,} committed rows again ({len(models)} networks, "
        f"{len(methods - {''})} methods, {took:.0f} s; the same sample: --seed {seed})"
    )
    return _proof(what, verdicts, away)


def compared(shards: Sequence[Shard]) -> Proof:
    """Compare every row that a fresh run measured with the committed one."""
    verdicts, until = [], time.time() + 60 * MINUTES
    with committed_only():
        places = _places(shards)
        committed = {(shard.setup, shard.pairs[0]): committed_rows(shard).iloc[place] for shard, place in places}
    found = {}
    for setup_shard in {shard.setup: shard for shard in shards}.values():
        for rows in local_rows(setup_shard):
            found.update({(setup_shard.setup, pair): rows.iloc[k] for k, pair in enumerate(pairs_of(rows))})
    for shard, _ in places:
        key = shard.setup, shard.pairs[0]
        if key in found:
            verdicts.append(compare(shard, committed[key], found[key].to_frame().T.infer_objects(), until))
    what = f"compared {len(verdicts):,} rows that were measured afresh with the committed ones, of {len(places):,}"
    return _proof(what, verdicts, [])


def _away(datasets: Sequence[str]) -> list[str]:
    return (
        [f"rows of {', '.join(datasets)} can't be verified here: set IMAGENET_ROOT to the pictures"] if datasets else []
    )


def _proof(what: str, verdicts: Sequence[Verdict], away: Sequence[str]) -> Proof:
    kinds = Counter(verdict.kind for verdict in verdicts)
    ill, wrong = ([v.line for v in verdicts if v.kind == kind] for kind in ("ill-conditioned", "differs"))
    lines = [
        what,
        f"  {kinds['same']} are the same within {WITHIN:g}, {len(ill)} are ill-conditioned, {len(wrong)} differ",
    ]
    many = bool(ill) and scipy.stats.binomtest(len(ill), len(verdicts), LIMIT, alternative="greater").pvalue < CHANCE
    if many:
        lines.append(f"  more than {LIMIT:.0%} are ill-conditioned, for example {ill[0]}")
    lines += [f"  {line}" for line in wrong[:2]] + ([f"  and {len(wrong) - 2} more"] if len(wrong) > 2 else [])
    return Proof((*lines, *_away(away)), tuple(verdict.line for verdict in verdicts), not wrong and not many)
