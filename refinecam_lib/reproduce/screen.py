"""What a run prints: one line of progress, a last screen of at most 25 lines, and a report with everything else."""

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import paths
from ..paths import commit
from .reference import Compared, versions

if TYPE_CHECKING:
    from .runner import Outcome
    from .verify import Proof

EVERY = 30
"""Seconds between two lines of progress without a terminal."""
HEAD_START = 20
"""How many seconds of the reference's run count for the time left, beside this run's own pace."""
WIDTH = 150
"""Longer lines are cut off on the screen. The report has them whole."""
MOST = 5
"""How many differing tables, and how many failed notebooks, get a line of their own on the screen."""


class Progress:
    """Follow the notebooks by events and write to standard error. A display that fails never stops a run.

    Args:
        cells: notebook -> its number of code cells, in the order of the run.
        seconds: notebook -> how long it took in the reference's run. Missing ones count as their mean.
        at_once: how many notebooks run at the same time.
    """

    def __init__(self, cells: Mapping[str, int], seconds: Mapping[str, float], at_once: int) -> None:
        known = [seconds[name] for name in cells if name in seconds]
        mean = sum(known) / len(known) if known else 1.0
        self._known, self._at_once = bool(known), min(at_once, len(cells))
        self._cells, self._work = dict(cells), {name: seconds.get(name, mean) for name in cells}
        self._done = dict.fromkeys(cells, 0)
        self._running: list[str] = []
        self._ended = 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._clear = "\r\x1b[K" if self._terminal else ""

    def __call__(self, event: str, name: str = "") -> None:
        """Take an event of `run_notebooks` ("started", "cell", "waiting"), or "ended", and show the line."""
        with contextlib.suppress(Exception):
            if event == "started":
                self._running.append(name)
            elif event == "cell":
                self._done[name] = min(self._done[name] + 1, self._cells[name])
            elif event == "ended":
                self._running.remove(name)
                self._done[name] = self._cells[name]
                self._ended += 1
            now = time.monotonic()
            if self._terminal:
                width = shutil.get_terminal_size().columns - 1
                self.say(self.line(now - self._start)[:width], end="")
            elif event == "ended" or now - self._shown >= EVERY:
                self._shown = now
                self.say(self.line(now - self._start))

    def say(self, text: str = "", end: str = "\n") -> None:
        """Print a text in place of the line of progress."""
        with contextlib.suppress(Exception):
            print(f"{self._clear}{text}", end=end, file=sys.stderr, flush=True)

    def line(self, elapsed: float) -> str:
        """Return the line of progress after so many seconds."""
        cells = f"{sum(self._done.values())} of {sum(self._cells.values())} cells"
        text = f"{self._ended} of {len(self._cells)} notebooks, {cells}, {_clock(elapsed)} so far"
        done = sum(work * self._done[name] / max(self._cells[name], 1) for name, work in self._work.items())
        before = HEAD_START if self._known else 0.0
        if done + before and self._ended < len(self._cells):
            pace = (elapsed + before / self._at_once) / (done + before)
            text += f", about {_clock((sum(self._work.values()) - done) * pace)} left"
        names = ", ".join(name.partition("_")[0] for name in self._running)
        return text + (f"; running {names}" if names else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass(frozen=True)
class Run:
    """What a run of notebooks gave.

    Attributes:
        profile: its name.
        outcomes: notebook -> its outcome.
        tables: how each table compares with the reference.
        stored: how many planned rows there were before, by "committed", "local" and "missing".
        proof: how rows measured again compare with the committed ones; None or without details if none were.
        fresh: whether everything was measured again.
        seconds: how long it took.
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
    """Return the exit code of a run and its last line. Only this decides whether the run passed."""
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
    measured = run.proof and run.proof.details
    rows = "rows measured again agree with the committed ones" if measured else "no row was measured again"
    if agree:
        verb = "agrees" if agree == 1 else "agree"
        return 0, f"reproduced: {_count(agree, 'table')} {verb} with the reference, and {rows}"
    return 0, f"done: no table was compared with a reference, and {rows}"


def screen(run: Run) -> list[str]:
    """Return what to print after a run: at most 25 lines, the verdict last."""
    report = paths.shown(run.folder / "report.txt")
    minutes = f"{run.seconds // 60:.0f} min {run.seconds % 60:.0f} s" if run.seconds >= 60 else f"{run.seconds:.0f} s"
    blocks = {
        "figures": [_figures(run)],
        "rows": _rows(run),
        "tables": list(_tables(run)),
        "measured": list(run.proof.lines[:6]) if run.proof else [],
        "failed": _first([f"{name}: {outcome.error}" for name, outcome in run.failed.items()]),
        "time": [minutes],
        "details": [f"{report} lists every figure, table, comparison and row measured again"],
        "next": [_next(run, report)],
    }
    lines = [
        f"{'' if number else label:<10}{line}" for label, block in blocks.items() for number, line in enumerate(block)
    ]
    counts = f"notebooks: {len(run.outcomes) - len(run.failed)} passed, {len(run.failed)} failed"
    return [*(line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines), counts, verdict(run)[1]]


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
    lines += ["", "VERSIONS", *(f"{name} {version}" for name, version in versions().items())]
    return "\n".join(lines) + "\n"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _first(lines: Sequence[str]) -> list[str]:
    """Return the first MOST lines, and how many more there are."""
    return [*lines[:MOST], *([f"and {len(lines) - MOST} more"] if len(lines) > MOST else [])]


def _figures(run: Run) -> str:
    kinds = Counter(Path(file).suffix for file in run.products)
    if not kinds and len(run.failed) == len(run.outcomes):
        return "none were made; those of earlier runs are unchanged"
    made = f"{_count(kinds['.png'], 'figure')} and {_count(kinds['.csv'], 'table')} in {paths.shown(run.folder)}"
    return f"{made}, executed notebooks in {paths.shown(run.folder / 'notebooks')}"


def _rows(run: Run) -> list[str]:
    if not sum(run.stored.values()):
        return ["these notebooks read no measured rows"]
    if run.fresh:
        return [f"{sum(run.stored.values()):,} measured in this run, starting from the images; data/rows was not read"]
    read = f"{run.stored['committed']:,} read from data/rows, {run.stored['local']:,} from your earlier runs"
    missing = f"{run.stored['missing']:,} {'missing before this run' if run.failed else 'measured now'}"
    return [f"{read}, {missing}", "make reproduce ARGS=--fresh measures all of them again, starting from the images"]


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
    yield from _first([f"DIFFERS: {table.file}: {table.text}" for table in differ])


def _next(run: Run, report: str) -> str:
    if run.failed:
        copy = run.folder / "notebooks" / f"{next(iter(run.failed))}.failed.ipynb"
        return f"open {paths.shown(copy)}: it ends at the cell that failed" if copy.exists() else f"read {report}"
    if differ := run.tables_that("differs"):
        ours, theirs = (paths.shown(folder / differ[0].file) for folder in (run.folder, paths.REFERENCE / run.profile))
        return f"read {report}; then compare {ours} with {theirs}"
    if run.proof and not run.proof.ok:
        return f"read {report}: it names each row that differs"
    figure = next((file for file in run.products if file.endswith(".png")), "")
    return f"open {paths.shown(run.folder / figure)}; `make lab` opens the notebooks; `make test` runs the tests"
