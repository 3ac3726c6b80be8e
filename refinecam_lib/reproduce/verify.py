"""Measure committed rows again and compare: a random sample of them, or all rows of a run that read none of them.

A row differs only if rounding cannot explain it. If a value is off by more than WITHIN, the row is measured again, each
time with its input moved by one float32 rounding step at random. If the difference is at most FACTOR times the largest
move, the row is ill-conditioned. Such rows are counted and listed, and are no failure. Methods that run in float64 can be
ill-conditioned too: in a flat area all pixels of a max-pool tie, and DeepLift's map follows the one that rounding picks.
"""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pandas as pd
import scipy

from ..errors import InputError
from ..explanation import SLOW
from ..sweeps.run import measured
from ..sweeps.shard import Pair, Shard
from ..sweeps.store import committed_rows, differences, local_rows, look_up, pairs_of
from ..sweeps.version import KEYS

WITHIN = 1e-3
"""Two values this close are the same. Above 1 the difference is relative."""
ROUNDINGS = 3, 40
"""How often a row that differs is measured with a moved input: at least, and at most while there is time.

Two pixels may be so close that only one rounding in twelve swaps them, so a few roundings are not enough.
"""
MINUTES = 10
"""How long a run that compares all rows may move inputs more often than the minimum."""
FACTOR = 5.0
"""A difference up to this many times the largest move is rounding. Another CPU rounds in every operation."""
LIMIT, CHANCE = 0.05, 0.01
"""The sample fails if its share of ill-conditioned rows is above LIMIT, unless chance explains it (p >= CHANCE)."""
UNCOMPARED = {*KEYS, "seed", "commit", "file", "reason", "column"}
LIGHT = "efficientnet_lite0"
"""The only network on which slow methods are measured again. They take a minute per row on others."""


@dataclass(frozen=True)
class Proof:
    """What was found: lines for the screen, one line per row for the report, and whether all rows agree."""

    lines: tuple[str, ...]
    details: tuple[str, ...]
    ok: bool


@dataclass(frozen=True)
class Verdict:
    """How one row compares: kind is same, ill-conditioned or differs, and text says it for people."""

    kind: str
    text: str
    column: str = ""


Place = tuple[Shard, int]
"""A shard of one committed row, and the row's position in `committed_rows`."""


def stored(shards: Sequence[Shard]) -> dict[str, int]:
    """Count the shards' rows that are committed, were measured on this machine, or are missing."""
    found = look_up(dict.fromkeys(shards))
    missing = {(shard.setup, pair) for shard in found.missing for pair in shard.pairs}
    return {"committed": found.committed, "local": len(found.rows) - found.committed, "missing": len(missing)}


def compare(shard: Shard, row: pd.Series, here: pd.DataFrame, until: float = np.inf) -> Verdict:
    """Compare a committed row with the same row measured again.

    Args:
        shard: of this row alone.
        row: as committed.
        here: as measured again, one row.
        until: the time after which the input is moved only the minimum number of times.
    """
    variant = shard.variants[0]
    parts = [*filter(None, (shard.measurement, shard.dataset, shard.model, shard.method)), shard.images[0]]
    name = ", ".join([*parts, f"layer {variant.layer}", variant.aggregate])
    name += f", defects {', '.join(shard.defects)}" if shard.defects else ""
    columns = [c for c in row.index if c not in UNCOMPARED and c not in _not_measured(row)]
    here = here.reindex(columns=columns)
    gap = _gaps(row[columns], here)
    worst = max(columns, key=lambda c: gap[c])
    if gap[worst] <= WITHIN:
        return Verdict("same", f"{name}: same")
    moved, (fewest, most) = 0.0, ROUNDINGS
    for number in range(most):
        if gap[worst] <= FACTOR * moved or (number >= fewest and time.time() > until):
            break
        again = _gaps(measured(shard, rounding=number).reindex(columns=columns).iloc[0], here)
        moved = max(moved, *again.values())
    kind = "ill-conditioned" if gap[worst] <= FACTOR * moved else "differs"
    values = f"{worst} is {_text(here[worst].iloc[0])}, stored is {_text(row[worst])}"
    return Verdict(kind, f"{name}: {kind}: {values}; rounding moves the row by {moved:.2g}", worst)


def _not_measured(row: pd.Series) -> list[str]:
    """Return the empty columns of a row that is older than exact removal, which came together with mass_on_truth."""
    exact = [c for c in row.index if c.startswith("exact_")]
    older = bool(exact) and bool(row[exact].isna().all())
    return [c for c in [*exact, "mass_on_truth"] if c in row.index and pd.isna(row[c])] if older else []


def _gaps(row: pd.Series, here: pd.DataFrame) -> dict[str, float]:
    """Return column -> how far `row` is from the one row of `here`. Whole numbers are counts or names: equal or not."""

    def whole(value: object) -> bool:
        return isinstance(value, (int, float, np.integer, np.floating)) and float(value).is_integer()

    def gap(there: object, value: pd.Series) -> float:
        found = value.iloc[0]
        if whole(there) and whole(found):
            return 0.0 if there == found else np.inf
        return float(differences(value.reset_index(drop=True), pd.Series([there], dtype=object).infer_objects())[0])

    return {c: gap(row[c], here[c]) for c in here}


def _text(value: object) -> str:
    if isinstance(value, (list, np.ndarray)):
        return "[" + ", ".join(f"{v:.4g}" for v in np.asarray(value, float)[:8]) + "]"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _places(shards: Sequence[Shard]) -> list[Place]:
    """Return every committed row of the shards. Rows of `rounding` are left out, because they depend on the CPU."""
    setups: dict[str, dict[Pair, Shard]] = {}
    for shard in dict.fromkeys(s for s in shards if s.measurement != "rounding"):
        setups.setdefault(shard.setup, {}).update(dict.fromkeys(shard.pairs, shard))
    places = []
    for wanted in setups.values():
        rows = committed_rows(next(iter(wanted.values())), always=True)
        if len(rows):
            places += [(wanted[p].only({p}), place) for place, p in enumerate(pairs_of(rows)) if p in wanted]
    return places


def _sample(places: Sequence[Place], draw: random.Random) -> tuple[list[Place], list[Place]]:
    """Draw rows: first one for each network, data set and aggregate, then others of every kind in turn."""
    light = [p for p in places if p[0].method not in SLOW or p[0].model == LIGHT]
    shuffled = draw.sample(light, len(light))
    first: list[Place] = []
    seen: set[object] = set()
    for shard, place in shuffled:
        kinds: set[object] = {shard.model, (shard.measurement, shard.dataset), shard.variants[0].aggregate}
        if not kinds <= seen:
            first.append((shard, place))
            seen |= kinds
    groups: dict[tuple, list[Place]] = {}
    for entry in shuffled:
        if entry not in first:
            shard = entry[0]
            groups.setdefault((shard.measurement, shard.dataset, shard.model, shard.method), []).append(entry)
    order = draw.sample(list(groups.values()), len(groups))
    return first, [entry for turn in zip_longest(*order) for entry in turn if entry]


def _check(shard: Shard, place: int, until: float, always: bool) -> Verdict | None:
    """Measure one row again and compare it. Returns None if the time is up, unless it is `always` measured."""
    late = time.time() > until and not always
    return None if late else compare(shard, committed_rows(shard, always=True).iloc[place], measured(shard), until)


def prove(shards: Sequence[Shard], minutes: float, seed: int | None = None, n_jobs: int = 2) -> Proof:
    """Measure a random sample of the shards' committed rows again.

    Args:
        shards: what to sample from.
        minutes: for how long. Every network, data set and aggregate has a row even if the time is too short.
        seed: of the sample; None draws one.
        n_jobs: processes.

    Raises:
        InputError: a process died.
    """
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    start = time.time()
    until = start + 60 * minutes
    places = _places([shard for shard in shards if shard.data_set.available()])
    absent = sorted({shard.dataset for shard in shards if not shard.data_set.available()})
    notes = (
        [f"Rows of {', '.join(absent)} can't be verified here: set IMAGENET_ROOT to the pictures."] if absent else []
    )
    if not places:
        return Proof(("no committed row was measured again, because none can be measured here", *notes), (), True)
    first, turns = _sample(places, random.Random(seed))
    order = first + turns[: int(60 * minutes * n_jobs * 4)]  # more than there is time for
    work = [(*entry, until, k < len(first)) for k, entry in enumerate(order)]
    if n_jobs == 1:
        found = [_check(*one) for one in work]
    else:
        try:  # joblib's processes would restart whenever they hold several networks
            with ProcessPoolExecutor(n_jobs, multiprocessing.get_context("spawn")) as pool:
                found = list(pool.map(_check, *zip(*work)))
        except BrokenProcessPool:
            raise InputError("A process that measures rows again died. Two processes need 6 GB of memory.") from None
    verdicts = [verdict for verdict in found if verdict]
    models, methods = ({getattr(s, what) for (s, _), v in zip(order, found) if v} for what in ("model", "method"))
    what = (
        f"measured {len(verdicts)} of {len(places):,} committed rows again ({len(models)} networks, "
        f"{len(methods - {''})} methods, {time.time() - start:.0f} s; the same sample: --seed {seed})"
    )
    return _proof(what, verdicts, notes)


def compared(shards: Sequence[Shard]) -> Proof:
    """Compare every row that a fresh run measured with the committed one."""
    verdicts, until = [], time.time() + 60 * MINUTES
    places, found = _places(shards), {}
    for one in {shard.setup: shard for shard in shards}.values():
        for rows in local_rows(one):
            found.update({(one.setup, pair): rows.iloc[k] for k, pair in enumerate(pairs_of(rows))})
    for shard, place in places:
        if (row := found.get((shard.setup, shard.pairs[0]))) is not None:
            committed = committed_rows(shard, always=True).iloc[place]
            verdicts.append(compare(shard, committed, row.to_frame().T.infer_objects(), until))
    return _proof(f"compared {len(verdicts):,} rows measured now with {len(places):,} committed rows", verdicts, [])


def _proof(what: str, verdicts: Sequence[Verdict], notes: Sequence[str]) -> Proof:
    kinds = Counter(verdict.kind for verdict in verdicts)
    ill, wrong = ([v.text for v in verdicts if v.kind == kind] for kind in ("ill-conditioned", "differs"))
    counts = f"{kinds['same']} are the same within {WITHIN:g}, {len(ill)} are ill-conditioned, {len(wrong)} differ"
    lines = [what, f"  {counts}"]
    many = bool(ill) and scipy.stats.binomtest(len(ill), len(verdicts), LIMIT, alternative="greater").pvalue < CHANCE
    if many:
        lines.append(f"  more than {LIMIT:.0%} are ill-conditioned, for example {ill[0]}")
    lines += [f"  {line}" for line in wrong[:2]] + ([f"  and {len(wrong) - 2} more"] if len(wrong) > 2 else [])
    return Proof((*lines, *notes), tuple(verdict.text for verdict in verdicts), not wrong and not many)
