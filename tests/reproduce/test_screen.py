"""The last screen of a run is short and ends in the verdict. Progress never stops a run."""

import dataclasses
import io

import pytest

from refinecam_lib import paths
from refinecam_lib.reproduce import screen
from refinecam_lib.reproduce.reference import Compared
from refinecam_lib.reproduce.runner import Outcome
from refinecam_lib.reproduce.verify import Proof

STORED = {"committed": 29_000, "local": 80, "missing": 0}


def test_a_proof_without_rows_proves_nothing():
    result = dataclasses.replace(run(), proof=Proof(("no row is committed",), (), True))
    assert screen.verdict(result)[1].endswith(", and no row was measured again")


def run(failed=0, differ=0, agree=30, ok=True, fresh=False, stored=STORED, long=1):
    outcomes = {f"{i:02}_notebook": Outcome(0, "", 9.5, (f"fig{i}.pdf", f"fig{i}.png", f"t{i}.csv")) for i in range(13)}
    for name in list(outcomes)[13 - failed :]:
        outcomes[name] = Outcome(1, "cell 5 of it: ValueError: " + "no " * long, 1.0)
    tables = [Compared(f"same{i}.csv", "agrees", "identical") for i in range(agree)]
    tables += [Compared(f"other{i}.csv", "differs", "largest difference " + "0.1 " * long) for i in range(differ)]
    proof = None if failed else Proof(tuple(f"line {i}" for i in range(6)), ("row 1: 0.5 here",), ok)
    return screen.Run("standard", outcomes, tables, stored, proof, fresh, 192.0)


@pytest.mark.parametrize(
    ("given", "code", "last"),
    [
        (
            {},
            0,
            "reproduced: 30 tables agree with the reference, and rows measured again agree with the committed ones",
        ),
        ({"agree": 0}, 0, "done: no table was compared with a reference, and rows measured again agree with"),
        ({"differ": 1}, 3, "DIFFERS (exit code 3): 1 table differs from the reference"),
        ({"differ": 2, "ok": False}, 3, "DIFFERS (exit code 3): 2 tables differ from the reference, and rows measured"),
        ({"ok": False}, 3, "DIFFERS (exit code 3): rows measured again differ from the committed ones"),
        ({"failed": 2, "differ": 3}, 1, "FAILED (exit code 1): 2 of 13 notebooks failed, and 3 tables differ"),
    ],
)
def test_the_last_line_is_the_verdict(given, code, last):
    result = run(**given)
    assert screen.verdict(result)[0] == code
    *_, count, line = screen.screen(result)
    assert line.startswith(last)
    assert count == f"notebooks: {13 - len(result.failed)} passed, {len(result.failed)} failed"


@pytest.mark.parametrize(
    "given", [{}, {"failed": 13, "agree": 0}, {"failed": 12, "differ": 40}, {"differ": 40, "ok": False}]
)
def test_the_screen_has_at_most_25_lines_and_the_report_the_rest(given):
    result = run(**given, long=200)
    lines = screen.screen(result)
    assert len(lines) <= 25 and max(map(len, lines)) <= screen.WIDTH
    report = screen.report(result)
    every = [table.text for table in result.tables] + [outcome.error for outcome in result.outcomes.values()]
    assert all(text in report for text in every)
    assert ("row 1: 0.5 here" in report) == bool(result.proof)


def test_the_screen_says_where_rows_come_from_and_how_to_measure_them_all():
    text = "\n".join(screen.screen(run()))
    assert "29,000 read from data/rows, 80 from your earlier runs, 0 measured now" in text and "ARGS=--fresh" in text
    assert f"13 figures and 13 tables in {paths.shown(paths.FIGURES / 'standard')}" in text
    assert "measured  line 0\n          line 1\n" in text and "open figures/standard/fig0.png" in text
    fresh = "\n".join(screen.screen(run(fresh=True)))
    assert "29,080 measured in this run" in fresh
    none = "\n".join(screen.screen(run(stored=dict.fromkeys(STORED, 0))))
    assert "these notebooks read no measured rows" in none


class Terminal(io.StringIO):
    def isatty(self):
        return True


def follow(monkeypatch, stream, seconds):
    monkeypatch.setattr("sys.stderr", stream)
    clock = iter([0.0, *range(1, 1000)])
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    return screen.Progress({"01_one": 2, "02_two": 8}, seconds, at_once=2)


def test_progress_tells_cells_and_time_left(monkeypatch):
    stream = Terminal()
    shown = follow(monkeypatch, stream, {})
    for event, name in (("started", "01_one"), ("started", "02_two"), ("cell", "01_one"), ("cell", "01_one")):
        shown(event, name)
    shown("ended", "01_one")
    assert stream.getvalue().split("\r\x1b[K")[-1] == (
        "1 of 2 notebooks, 2 of 10 cells, 0:05 so far, about 0:05 left; running 02"
    )
    shown.say(end="")
    assert stream.getvalue().endswith("\r\x1b[K") and "\n" not in stream.getvalue()


def test_time_left_starts_from_the_references_run(monkeypatch):
    shown = follow(monkeypatch, Terminal(), {"01_one": 20.0, "02_two": 180.0})
    assert shown.line(0.0).endswith("about 1:40 left"), "200 seconds of work, two at once"
    shown("cell", "01_one")
    assert shown.line(10.0).endswith("about 2:07 left"), "slower than the reference's run"


def test_without_a_terminal_progress_is_a_line_every_30_seconds(monkeypatch):
    stream = io.StringIO()
    shown = follow(monkeypatch, stream, {})
    shown("started", "01_one")
    for _ in range(70):
        shown("waiting")
    shown("ended", "01_one")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and lines[-1].startswith("1 of 2 notebooks, 2 of 10 cells, 1:12 so far")


def test_progress_that_fails_stops_nothing(monkeypatch):
    class Broken(Terminal):
        def write(self, text):
            raise OSError("no more")

    shown = follow(monkeypatch, Broken(), {})
    shown("started", "01_one")
    shown("ended", "a notebook that is not there")
    shown.say("error")
