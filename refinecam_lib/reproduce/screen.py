"""What a run says at its end: a screen of at most 25 lines, and a report with everything else."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import paths
from ..paths import commit
from . import manifest
from .reference import Compared

if TYPE_CHECKING:
    from .runner import Outcome
    from .verify import Proof

WIDTH = 150
"""Longer lines are cut off on the screen. The report has them whole."""
MOST = 5
"""How many differing tables, and how many failed notebooks, have a line of their own on the screen."""


@dataclass(frozen=True)
class Run:
    """What came of a run of one notebook or more.

    stored: how many planned rows there were before it, by "committed", "local" and "missing".
    proof: how rows that were measured again compare with the committed ones; None, or without details, where none were.
    """

    profile: str
    outcomes: Mapping[str, "Outcome"]
    tables: Sequence[Compared]
    stored: Mapping[str, int]
    proof: "Proof | None"
    fresh: bool
    seconds: float

    @property
    def folder(self) -> Path:
        return paths.FIGURES / self.profile

    @property
    def failed(self) -> dict[str, "Outcome"]:
        return {name: outcome for name, outcome in self.outcomes.items() if outcome.code}

    @property
    def products(self) -> list[str]:
        return [file for outcome in self.outcomes.values() for file in outcome.products]

    def tables_that(self, state: str) -> list[Compared]:
        return [table for table in self.tables if table.state == state]


def verdict(run: Run) -> tuple[int, str]:
    """Return the exit code of a run and its last line. Only this decides whether it passed."""
    codes = {outcome.code for outcome in run.outcomes.values()}
    agree, differ = (len(run.tables_that(state)) for state in ("agrees", "differs"))
    differences = []
    if differ:
        differences.append(f"{_count(differ, 'table')} {'differs' if differ == 1 else 'differ'} from the reference")
    if run.proof and not run.proof.ok:
        differences.append("rows measured again differ from the committed ones")
    if run.failed:
        code, word = (1, "FAILED") if 1 in codes else (2, "BAD INPUT")
        reasons = [f"{len(run.failed)} of {_count(len(run.outcomes), 'notebook')} failed", *differences]
        return code, f"{word} (exit code {code}): {', and '.join(reasons)}"
    if differences:
        return 3, f"DIFFERS (exit code 3): {', and '.join(differences)}"
    rows = (
        "rows measured again agree with the committed ones"
        if run.proof and run.proof.details
        else "no row was measured again"
    )
    if agree:
        verb = "agrees" if agree == 1 else "agree"
        return 0, f"reproduced: {_count(agree, 'table')} {verb} with the reference, and {rows}"
    return 0, f"done: no table was compared with a reference, and {rows}"


def screen(run: Run) -> list[str]:
    """Return what to print after a run: at most 25 lines, the verdict last."""
    report = paths.shown(run.folder / "report.txt")
    blocks = {
        "figures": _figures(run),
        "rows": _rows(run),
        "tables": list(_tables(run)),
        "measured": list(run.proof.lines[:6]) if run.proof else [],
        "failed": _listed([f"{name}: {outcome.error}" for name, outcome in run.failed.items()]),
        "time": [_duration(run.seconds)],
        "details": [f"{report} lists every figure, table, comparison and re-measured row"],
        "next": [_next(run, report)],
    }
    lines = [f"{label if first else '':<10}{line}" for label, block in blocks.items()
             for first, line in zip([True] + [False] * len(block), block)]  # fmt: skip
    lines = [line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines]
    return [
        *lines,
        f"notebooks: {len(run.outcomes) - len(run.failed)} passed, {len(run.failed)} failed",
        verdict(run)[1],
    ]


def report(run: Run) -> str:
    """Return the text of report.txt: the screen, and every product, comparison, error and version."""
    lines = [*screen(run), "", f"profile {run.profile}, commit {commit()}", "", "NOTEBOOKS"]
    for name, outcome in run.outcomes.items():
        state = f"failed: {outcome.error}" if outcome.code else "passed"
        lines.append(f"{name}: {outcome.seconds:.1f} s, {state}")
        lines += [f"    {paths.shown(run.folder / file)}" for file in outcome.products]
    lines += ["", "TABLES, COMPARED WITH THE REFERENCE"]
    lines += [f"{table.file}: {table.state}: {table.text}" for table in run.tables] or ["none"]
    lines += ["", "ROWS MEASURED AGAIN"]
    lines += [*run.proof.lines, *run.proof.details] if run.proof else ["none"]
    lines += ["", "VERSIONS", *(f"{name} {version}" for name, version in manifest.versions().items())]
    return "\n".join(lines) + "\n"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _duration(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"


def _listed(lines: Sequence[str]) -> list[str]:
    """The first few lines, and how many more there are."""
    return [*lines[:MOST], *([f"and {len(lines) - MOST} more"] if len(lines) > MOST else [])]


def _figures(run: Run) -> list[str]:
    kinds = Counter(Path(file).suffix for file in run.products)
    if not kinds and len(run.failed) == len(run.outcomes):
        return ["none were made; those of earlier runs are left as they were"]
    made = f"{_count(kinds['.png'], 'figure')} and {_count(kinds['.csv'], 'table')} in {paths.shown(run.folder)}"
    return [f"{made}, executed notebooks in {paths.shown(run.folder / 'notebooks')}"]


def _rows(run: Run) -> list[str]:
    if not sum(run.stored.values()):
        return ["these notebooks read no measured rows"]
    if run.fresh:
        return [f"{sum(run.stored.values()):,} measured in this run, from the images on; data/rows was not read"]
    read = f"{run.stored['committed']:,} read from data/rows, {run.stored['local']:,} from your earlier runs"
    missing = f"{run.stored['missing']:,} {'missing before this run' if run.failed else 'measured now'}"
    return [f"{read}, {missing}", "make reproduce ARGS=--fresh measures them all again, from generating the images on"]


def _tables(run: Run) -> Iterator[str]:
    agree, differ, skipped = (run.tables_that(state) for state in ("agrees", "differs", "not compared"))
    reference = paths.shown(paths.REFERENCE / run.profile)
    if not run.tables:
        yield "none were made"
    if agree:
        yield f"{len(agree)} of {len(run.tables)} agree with {reference}, their numbers within .005"
    if skipped:
        reasons = list(dict.fromkeys(table.text for table in skipped))
        more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
        yield f"{len(skipped)} not compared: {reasons[0]}{more}"
    yield from _listed([f"DIFFERS: {table.file}: {table.text}" for table in differ])


def _next(run: Run, report: str) -> str:
    if run.failed:
        copy = run.folder / "notebooks" / f"{next(iter(run.failed))}.failed.ipynb"
        return f"open {paths.shown(copy)}: it ends at the cell that failed" if copy.exists() else f"read {report}"
    if differ := run.tables_that("differs"):
        file = differ[0].file
        return f"read {report}; then {paths.shown(run.folder / file)} beside {paths.shown(paths.REFERENCE / run.profile / file)}"
    if run.proof and not run.proof.ok:
        return f"read {report}: it names each row that differs"
    figure = next((file for file in run.products if file.endswith(".png")), "")
    return f"open {paths.shown(run.folder / figure)}; `make lab` opens the notebooks; `make test` runs the tests"
