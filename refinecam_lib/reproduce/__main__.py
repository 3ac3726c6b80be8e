"""Run the notebooks and say whether their tables and a sample of measured rows are the committed ones.

    python -m refinecam_lib.reproduce --profile photographs --only 07 --set n_images=50

Notebooks draw from the rows in data/rows; --fresh measures everything again, from generating the images on.
Exit codes: 0 done; 1 a notebook failed; 2 bad input; 3 done, but results differ from the committed ones.
"""

import argparse
import math
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from .. import paths
from ..errors import InputError
from . import manifest, reference
from .parameters import Notebook, cells_of, chosen
from .progress import Progress
from .screen import Run, report, screen, verdict

# Torch and pandas are imported inside functions: --help, --list and refusals don't wait for them.
if TYPE_CHECKING:
    from ..sweeps.shard import Shard
    from .runner import Outcome
    from .verify import Proof

Values = Mapping[str, Mapping[str, object]]


def run(
    notebooks: Sequence[Notebook],
    profile: str,
    values: Values,
    at_once: int = 1,
    minutes: float = 0.0,
    seed: int = 0,
    fresh: bool = False,
) -> int:
    """Run the notebooks, write their manifest and report.txt into `figures/<profile>`, and print the last screen.

    A failed notebook leaves its earlier products and their lines in the manifest alone.

    Args:
        notebooks: in the order in which they start.
        profile: names the folder, and the reference to compare with.
        values: each notebook's parameters, by its name.
        at_once: how many notebooks run at the same time.
        minutes: how long a sample of stored rows is measured again; 0 for not at all.
        seed: draws that sample.
        fresh: compare all rows with the committed ones instead. The kernels know by paths.FRESH.

    Returns:
        The exit code.
    """
    folder = paths.FIGURES / profile
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    print(f"{len(notebooks)} notebooks; looking up their measured rows", file=sys.stderr, flush=True)
    shards = planned(notebooks, values)
    stored = _stored(shards)
    outcomes = _outcomes(notebooks, profile, values, at_once)
    passed = [name for name, outcome in outcomes.items() if not outcome.code]
    tables = list(reference.compared(profile, passed))
    sampled = bool(minutes) and not fresh
    proof = None
    if shards and (sampled or fresh) and len(passed) == len(outcomes):
        proof = _proof(shards, minutes, seed, fresh)
    done = Run(profile, outcomes, tables, stored, proof, fresh, time.monotonic() - start)
    (folder / "report.txt").write_text(report(done), encoding="utf-8")
    print("\n".join(screen(done)))
    return verdict(done)[0]


def planned(notebooks: Sequence[Notebook], values: Values) -> "list[Shard]":
    """Return the shards that the notebooks sweep, without repeats. One that can't be planned says so when it runs."""
    from ..sweeps.experiments import plan_of

    shards: dict[Shard, None] = {}
    for book in notebooks:
        try:
            shards |= dict.fromkeys(plan_of(book.name, values[book.name]))
        except InputError:
            continue
    return list(shards)


def _stored(shards: "Sequence[Shard]") -> dict[str, int]:
    from .verify import stored

    return stored(shards)


def _outcomes(notebooks: Sequence[Notebook], profile: str, values: Values, at_once: int) -> "dict[str, Outcome]":
    """Run the notebooks, enter each into the manifest as it ends, and return the outcomes in the notebooks' order."""
    from .runner import run_notebooks

    folder, outcomes = paths.FIGURES / profile, {}
    cells = {
        book.name: sum(cell["cell_type"] == "code" and bool(cell["source"].strip()) for cell in cells_of(book.path))
        for book in notebooks
    }
    known = manifest.read(paths.REFERENCE / profile)["notebooks"]
    progress = Progress(cells, {name: entry["seconds"] for name, entry in known.items()}, at_once)
    try:
        for book, outcome in run_notebooks(notebooks, values, folder, at_once, progress):
            outcomes[book.name] = outcome
            progress("ended", book.name)
            if outcome.code:
                progress.say(f"error: {book.name}: {outcome.error}")
            manifest.note(folder, profile, book, values[book.name], outcome)
    finally:
        progress.close()
    return {book.name: outcomes[book.name] for book in notebooks}


def _proof(shards: "Sequence[Shard]", minutes: float, seed: int, fresh: bool) -> "Proof":
    """Measure a sample again, or compare a fresh run's rows. Bad input is a failed proof: the run's screen still comes."""
    from . import verify

    try:
        if fresh:
            return verify.compared(shards)
        print(f"measuring stored rows again for {minutes:g} min, sample {seed}", file=sys.stderr, flush=True)
        return verify.prove(shards, minutes, seed)
    except InputError as error:
        return verify.Proof((f"stopped: {error}",), (), ok=False)


def verify_only(notebooks: Sequence[Notebook], profile: str, values: Values, minutes: float, seed: int) -> int:
    """Measure a sample of the stored rows again, print how it compares, and return the exit code."""
    shards = planned(notebooks, values)
    if not shards:
        names = ", ".join(book.name for book in notebooks)
        raise InputError(f"Expected notebooks that measure rows, got {names}. Leave out --only to verify all rows.")
    proof = _proof(shards, minutes, seed, fresh=False)
    path = paths.FIGURES / profile / "verify.txt"
    paths.write_whole(
        path, lambda part: part.write_text("\n".join([*proof.lines, *proof.details]) + "\n", encoding="utf-8")
    )
    print("\n".join(proof.lines))
    print(f"details in {paths.shown(path)}")
    print(f"samples: {int(proof.ok)} passed, {int(not proof.ok)} failed")
    agree = "verified: rows measured again agree with" if proof.details else "done: no row was measured again of"
    print(f"{agree if proof.ok else 'DIFFERS (exit code 3): rows measured again differ from'} the committed ones")
    return 0 if proof.ok else 3


def _room() -> int:
    """How many notebooks have room at once: each takes some 5 GB, and leaves a core idle for much of its time."""
    import psutil

    return 2 if (os.cpu_count() or 1) > 1 and psutil.virtual_memory().total > 15e9 else 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def _list(notebooks: Sequence[Notebook], values: Values) -> None:
    for book in notebooks:
        print(f"{book.name}: {book.title}")
        for name, value in values[book.name].items():
            print(f"    {name}: {book.types[name]} = {value!r}")


def _parser() -> _Parser:
    about, *_, rows, codes = (__doc__ or "").splitlines()
    parser = _Parser(prog="python -m refinecam_lib.reproduce", description=f"{about} {rows}", epilog=codes)
    several: dict = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument(
        "--profile", default="standard", help="standard (default), photographs, paper: what is measured"
    )
    parser.add_argument("--only", metavar="05", help="these notebooks alone", **several)
    parser.add_argument(
        "--set", metavar="NAME=VALUE", dest="settings", help="parameters, in every notebook that has them", **several
    )
    parser.add_argument(
        "--at-once", type=int, default=_room(), metavar="N",
        help="notebooks that run at the same time; default 2 where there are two cores and 16 GB of memory, else 1",
    )  # fmt: skip
    parser.add_argument(
        "--verify", type=float, default=3.0, metavar="MINUTES",
        help="after the notebooks, measure a random sample of the stored rows again; default 3, 0 for none",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="draws that sample; default: another one each time")
    parser.add_argument("--verify-only", action="store_true", help="run no notebook; only measure such a sample again")
    parser.add_argument(
        "--fresh", action="store_true",
        help="don't read data/rows: measure everything again, from generating the images on, and compare all rows",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="run nothing; show the notebooks and their parameters")
    parser.add_argument("--status", action="store_true", help="run nothing; say what is measured and what is missing")
    parser.add_argument("--accept", action="store_true", help="run nothing; make the last run the committed reference")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raise InputError for options that are out of range or exclude each other."""
    if options.at_once < 1:
        raise InputError(f"Expected 1 notebook or more after --at-once, got {options.at_once}. Pass 1 or 2.")
    if not (math.isfinite(options.verify) and options.verify >= 0):
        raise InputError(
            f"Expected minutes of 0 or more after --verify, got {options.verify:g}. Pass a number such as 3, or 0 for none."
        )
    if options.seed is not None and options.seed < 0:
        raise InputError(f"Expected a whole number of 0 or more after --seed, got {options.seed}. Pass one such as 7.")
    actions = [f"--{name.replace('_', '-')}" for name in ("list", "status", "accept", "verify_only", "fresh")
               if getattr(options, name)]  # fmt: skip
    if len(actions) > 1:
        raise InputError(f"Expected one of {', '.join(actions)}, got {len(actions)} of them. Pass one.")
    if options.verify_only and not options.verify:
        raise InputError("Expected some minutes to verify in, got --verify 0 with --verify-only. Pass --verify 3.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        options = _parser().parse_args(arguments)
        _check(options)
        notebooks, values = chosen(options.profile, options.only, options.settings)
        seed = random.randrange(1_000_000) if options.seed is None else options.seed
        if options.list:
            _list(notebooks, values)
        elif options.status:
            from ..sweeps.status import status

            print("\n".join(status(notebooks, values)))
        elif options.accept:
            reference.accept(options.profile, options.only)
        elif options.verify_only:
            return verify_only(notebooks, options.profile, values, options.verify, seed)
        else:
            if options.fresh:
                os.environ[paths.FRESH] = "1"
            fresh = bool(os.environ.get(paths.FRESH))
            return run(notebooks, options.profile, values, options.at_once, options.verify, seed, fresh)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the notebooks that had finished keep their results", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
