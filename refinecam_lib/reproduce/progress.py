"""One line that says how far the notebooks are: in place in a terminal, else a line now and then."""

import contextlib
import shutil
import sys
import time
from collections.abc import Mapping

EVERY = 30
"""Seconds between two lines where there is no terminal."""
HEAD_START = 20
"""How many seconds of the reference's run its pace counts for. After that, this run's own pace counts more."""


class Progress:
    """Follow the notebooks by events, and write to standard error.

    Args:
        cells: how many cells of code each notebook has, by its name, in the order of the run.
        seconds: how long each took in the reference's run; a notebook that is missing counts as much as their mean.
        at_once: how many notebooks run at the same time.

    A display that fails is dropped: it never stops a run.
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

    def __call__(self, event: str, name: str = "") -> None:
        """Take an event, as `run_notebooks` tells it ("started", "cell", "waiting"), or "ended" of a notebook."""
        with contextlib.suppress(Exception):
            if event == "started":
                self._running.append(name)
            elif event == "cell":
                self._done[name] = min(self._done[name] + 1, self._cells[name])
            elif event == "ended":
                self._running.remove(name)
                self._done[name] = self._cells[name]
                self._ended += 1
            self._show(event == "ended")

    def say(self, text: str) -> None:
        """Print a line above the progress."""
        with contextlib.suppress(Exception):
            print(f"{self._clear()}{text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line in the terminal."""
        with contextlib.suppress(Exception):
            print(self._clear(), end="", file=sys.stderr, flush=True)

    def _clear(self) -> str:
        return "\r\x1b[K" if self._terminal else ""

    def _show(self, ended: bool) -> None:
        now = time.monotonic()
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"{self._clear()}{self.line(now - self._start)[:width]}", end="", file=sys.stderr, flush=True)
        elif ended or now - self._shown >= EVERY:
            self._shown = now
            print(self.line(now - self._start), file=sys.stderr, flush=True)

    def line(self, elapsed: float) -> str:
        """Return the line after so many seconds."""
        cells = f"{sum(self._done.values())} of {sum(self._cells.values())} cells"
        text = f"{self._ended} of {len(self._cells)} notebooks, {cells}, {_clock(elapsed)} so far"
        left = self._left(elapsed) if self._ended < len(self._cells) else None
        text += f", about {_clock(left)} left" if left is not None else ""
        names = ", ".join(name.partition("_")[0] for name in self._running)
        return text + (f"; running {names}" if names else "")

    def _left(self, elapsed: float) -> float | None:
        """Return the seconds left, or None while nothing is known."""
        done = sum(work * self._done[name] / max(self._cells[name], 1) for name, work in self._work.items())
        before = HEAD_START if self._known else 0.0
        if not done + before:
            return None
        pace = (elapsed + before / self._at_once) / (done + before)
        return (sum(self._work.values()) - done) * pace


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
