"""Run the notebooks, and measure, check and accept what they stand on.

    python -m refinecam_lib.reproduce --profile photographs --only 07 --set n_images=50

Exit codes: 0 done; 1 stopped or a notebook failed; 2 bad input; 3 results differ from the committed ones; 130 Ctrl-C.
"""

import argparse
import contextlib
import math
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .. import paths
from ..errors import InputError, Stopped
from . import codecheck, reference
from .links import mend_copies
from .parameters import Notebook, cells_of, chosen
from .screen import Progress, Run, report, screen, verdict

# Torch and pandas are imported inside functions, so --help, --list and refusals are fast.
if TYPE_CHECKING:
    from ..sweeps.shard import Shard
    from .runner import Outcome
    from .verify import Proof

Parameters = Mapping[str, Mapping[str, object]]


def run(options: argparse.Namespace, notebooks: Sequence[Notebook], values: Parameters) -> int:
    """Run the notebooks and compare their tables with the reference.

    Products, manifest and report.txt go to `figures/<profile>`. A failed notebook's earlier products stay.
    """
    if options.list:
        for book in notebooks:
            print(f"{book.name}: {book.title}")
            for name, value in values[book.name].items():
                print(f"    {name}: {book.types[name]} = {value!r}")
        return 0
    if options.at_once < 1:
        raise InputError(f"Expected 1 notebook or more after --at-once, got {options.at_once}. Pass 1 or 2.")
    if options.fresh:
        os.environ[paths.FRESH] = "1"
    fresh = bool(os.environ.get(paths.FRESH))
    from . import verify

    folder = paths.writable(paths.FIGURES / options.profile)
    start = time.monotonic()
    print(f"{len(notebooks)} notebooks; looking up their measured rows", file=sys.stderr, flush=True)
    shards = planned(notebooks, values)
    stored = verify.stored(shards)
    outcomes = _outcomes(notebooks, options.profile, values, options.at_once)
    passed = [name for name, outcome in outcomes.items() if not outcome.code]
    tables = list(reference.compared(options.profile, passed))
    wanted = shards and (options.minutes or fresh) and len(passed) == len(outcomes)
    proof = _proof(shards, options.minutes, options.seed, fresh) if wanted else None
    done = Run(options.profile, outcomes, tables, stored, proof, fresh, time.monotonic() - start)
    (folder / "report.txt").write_text(report(done), encoding="utf-8")
    print("\n".join(screen(done)))
    return verdict(done)[0]


def planned(notebooks: Sequence[Notebook], values: Parameters) -> "list[Shard]":
    """Return the shards that the notebooks sweep, without repeats. A notebook with bad input says so when it runs."""
    shards: dict[Shard, None] = {}
    for book in notebooks:
        with contextlib.suppress(InputError):
            shards |= dict.fromkeys(chain(*_plans([book], values).values()))
    return list(shards)


def _outcomes(notebooks: Sequence[Notebook], profile: str, values: Parameters, at_once: int) -> "dict[str, Outcome]":
    """Run the notebooks, enter each into the manifest as it ends, and return the outcomes in the notebooks' order."""
    from .runner import run_notebooks

    folder, outcomes = paths.FIGURES / profile, {}
    cells = {
        book.name: sum(cell["cell_type"] == "code" and bool(cell["source"].strip()) for cell in cells_of(book.path))
        for book in notebooks
    }
    known = reference.read_manifest(paths.REFERENCE / profile)["notebooks"]
    progress = Progress(cells, {name: entry["seconds"] for name, entry in known.items()}, at_once)
    try:
        for book, outcome in run_notebooks(notebooks, values, folder, at_once, progress):
            outcomes[book.name] = outcome
            progress("ended", book.name)
            if outcome.code:
                progress.say(f"error: {book.name}: {outcome.error}")
            reference.note(folder, profile, book, values[book.name], outcome)
    finally:
        progress.say(end="")
    mend_copies(folder / "notebooks")
    return {book.name: outcomes[book.name] for book in notebooks}


def _proof(shards: "Sequence[Shard]", minutes: float, seed: int, fresh: bool = False) -> "Proof":
    """Measure a sample again, or compare a fresh run's rows. Bad input fails the proof, not the run."""
    from . import verify

    try:
        if fresh:
            return verify.compared(shards)
        print(f"measuring stored rows again for {minutes:g} min, sample {seed}", file=sys.stderr, flush=True)
        return verify.prove(shards, minutes, seed)
    except InputError as error:
        return verify.Proof((f"stopped: {error}",), (), ok=False)


def verify_rows(options: argparse.Namespace, notebooks: Sequence[Notebook], values: Parameters) -> int:
    """Measure a sample of the committed rows again and print how it compares."""
    if not options.minutes:
        raise InputError("Expected minutes above 0 after --minutes, got 0. Pass a number such as 3.")
    shards = planned(notebooks, values)
    if not shards:
        names = ", ".join(book.name for book in notebooks)
        raise InputError(f"Expected notebooks that measure rows, got {names}. Leave out --only to verify all rows.")
    proof = _proof(shards, options.minutes, options.seed)
    path = paths.FIGURES / options.profile / "verify.txt"
    text = "\n".join([*proof.lines, *proof.details]) + "\n"
    paths.write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    print("\n".join(proof.lines))
    print(f"details in {paths.shown(path)}")
    print(f"samples: {int(proof.ok)} passed, {int(not proof.ok)} failed")
    agree = "verified: rows measured again agree with" if proof.details else "done: no row was measured again of"
    print(f"{agree if proof.ok else 'DIFFERS (exit code 3): rows measured again differ from'} the committed ones")
    return 0 if proof.ok else 3


def _plans(notebooks: Sequence[Notebook], values: Parameters) -> "dict[str, list[Shard]]":
    from ..sweeps.experiments import plan_of

    return {book.name: plan_of(book.name, values[book.name]) for book in notebooks}


def measure(options: argparse.Namespace, notebooks: Sequence[Notebook], values: Parameters) -> int:
    """Measure the rows that the notebooks need."""
    from ..sweeps.run import sweep
    from ..sweeps.status import engine
    from ..sweeps.store import look_up

    shards = list(dict.fromkeys(chain(*_plans(notebooks, values).values())))
    if options.retry_failed:
        open_, failed = set(look_up(shards).missing), look_up(shards, retry_failed=True).missing
        shards = [shard for shard in failed if shard not in open_]
    if not shards:
        print("nothing failed" if options.retry_failed else "these notebooks measure no rows")
        return 0
    with engine(options.dask):
        sweep(shards, options.jobs, options.retry_failed)
    return 0


def status(options: argparse.Namespace, notebooks: Sequence[Notebook], values: Parameters) -> int:
    """Print what is measured, what is missing, and what failed and why."""
    from ..sweeps.status import status

    print("\n".join(status(_plans(notebooks, values))))
    return 0


def commit(options: argparse.Namespace, notebooks: Sequence[Notebook], values: Parameters) -> int:
    """Put the measured rows into data/rows, to be committed."""
    from ..sweeps.store import commit_rows

    for path in commit_rows(list(dict.fromkeys(chain(*_plans(notebooks, values).values())))):
        print(f"wrote {paths.shown(path)}, {path.stat().st_size:,} bytes")
    return 0


def accept(options: argparse.Namespace, notebooks: Sequence[Notebook], values: Parameters) -> int:
    """Make the last run's products the committed reference."""
    reference.accept(options.profile, options.only)
    codecheck.write()
    return 0


def check(options: argparse.Namespace) -> int:
    """Check that the reference's executed notebooks are copies of today's notebooks, and that codecheck.yml lists it."""
    problems = reference.outdated_reference() + codecheck.outdated()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 3 if problems else 0


def list_files(options: argparse.Namespace) -> int:
    """Write codecheck.yml: each file of the reference, the claim that it shows, and the command that makes it."""
    codecheck.write()
    print(f"wrote {paths.shown(codecheck.path())}")
    return 0


def book(options: argparse.Namespace) -> int:
    """Build a site of the pages, the executed notebooks and the API, which opens from the file system."""
    try:
        from .book import build
    except ModuleNotFoundError as error:
        install = "pip install -e '.[book]'"
        raise InputError(f"Expected the package {error.name}, which builds the book. Install it: {install}.") from error
    for warning in build(options.to, options.shown, options.own):
        print(warning, file=sys.stderr)
    print(f"{paths.shown(options.to / 'index.html')} is the book; open it in a browser")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def _minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)) and value >= 0:
            return value
    raise argparse.ArgumentTypeError(f"Expected minutes of 0 or more, got {text}. Pass a number such as 3")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"Expected a whole number of 0 or more, got {text}. Pass one such as 7")
    return int(text)


def _at_once() -> int:
    """Return how many notebooks fit at once. Each takes about 5 GB and leaves a core idle for much of its time."""
    import psutil

    return 2 if (os.cpu_count() or 1) > 1 and psutil.virtual_memory().total > 15e9 else 1


def _parser() -> _Parser:
    about, *_, codes = (__doc__ or "").splitlines()
    several: dict = {"nargs": "+", "action": "extend", "default": []}
    notebooks = _Parser(add_help=False)
    notebooks.add_argument("--profile", default="standard", help="standard (default), photographs, paper: the scale")
    notebooks.add_argument("--only", metavar="05", help="only these notebooks", **several)
    values = _Parser(add_help=False)
    values.add_argument("--set", metavar="NAME=VALUE", dest="settings", help="parameters of the notebooks", **several)
    sample = _Parser(add_help=False)
    sample.add_argument(
        "--verify", "--minutes", type=_minutes, default=3.0, metavar="MINUTES", dest="minutes",
        help="how long to measure a random sample of committed rows again; default 3",
    )  # fmt: skip
    drawn = random.randrange(1_000_000)
    sample.add_argument("--seed", type=_seed, metavar="N", default=drawn, help="of that sample; default: drawn")
    parser = _Parser(
        prog="python -m refinecam_lib.reproduce",
        description=f"{about} Without a command: run. `COMMAND --help` shows a command's options.",
        epilog=codes,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(function, *parents: _Parser, name: str = "", more: str = "") -> _Parser:
        text = function.__doc__.splitlines()[0]
        made = commands.add_parser(
            name or function.__name__, parents=parents, help=text[0].lower() + text[1:], description=text + more
        )
        made.set_defaults(command=function)
        return made

    own = command(run, notebooks, values, sample, more=" Then measure a sample of the rows again (0 minutes: don't).")
    own.add_argument(
        "--at-once", type=int, default=_at_once(), metavar="N",
        help="notebooks that run at the same time; default 2 with two cores and 16 GB of memory, else 1",
    )  # fmt: skip
    either = own.add_mutually_exclusive_group()
    either.add_argument("--list", action="store_true", help="only show the notebooks and their parameters")
    either.add_argument(
        "--fresh", action="store_true",
        help="do not read data/rows: measure everything again, starting from the images, and compare all rows",
    )  # fmt: skip
    own = command(measure, notebooks, values)
    own.add_argument("--retry-failed", action="store_true", help="measure only the shards that failed")
    own.add_argument("--jobs", type=int, default=1, help="processes (default 1; -1 for one per core)")
    own.add_argument("--dask", metavar="ADDRESS", help="measure on the workers of this dask scheduler")
    command(status, notebooks, values)
    command(commit, notebooks, values)
    command(verify_rows, notebooks, values, sample, name="verify")
    command(accept, notebooks)
    command(check)
    command(list_files, name="codecheck")
    own = command(book)
    own.add_argument("--to", type=Path, default=paths.ROOT / "book", help="folder to write, default book/")
    own.add_argument("--own", action="store_true", help="show your last run in figures/ instead of the reference")
    own.add_argument("--profile", default="standard", dest="shown", help="whose notebooks to show, default standard")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "run")
    try:
        options = _parser().parse_args(words)
        if not hasattr(options, "profile"):
            return options.command(options)
        return options.command(options, *chosen(options.profile, options.only, getattr(options, "settings", ())))
    except (InputError, Stopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except PermissionError as error:
        print(f"error: {paths.unwritable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what is finished is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
