"""Run the notebooks in order, keep what they made with a manifest, and say whether it equals the committed reference.

    python -m refinecam_lib.reproduce --profile quick --only 05 --set n_images=50

Exit codes: 0 done; 1 a notebook failed; 2 bad input; 3 done, but the results differ from the reference.
"""

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import psutil

from . import paths
from .checks import InputError
from .compare import ILL_CONDITIONED, Verdict, compare_rows, compare_tables, read_rows
from .parameters import Notebook, chosen, find_notebooks
from .plans import status
from .provenance import KEYS, commit
from .running import Outcome, run_notebooks

PACKAGES = ("torch", "torchvision", "timm", "captum", "numpy", "scipy", "pandas", "numba", "scikit-image", "papermill")
"""The packages whose versions the manifest notes."""


def run(
    notebooks: Sequence[Notebook], profile: str, values: Mapping[str, Mapping[str, object]], at_once: int = 1
) -> int:
    """Run the notebooks, write `figures/<profile>/manifest.json`, print the index and the verdict.

    Returns the exit code. A failed notebook leaves its earlier products and their lines in the manifest alone.
    """
    folder = paths.FIGURES / profile
    folder.mkdir(parents=True, exist_ok=True)
    outcomes, left = {}, [book.name for book in notebooks]
    print(f"[0/{len(notebooks)}] running {', '.join(left[:at_once])}", flush=True)
    for book, outcome in run_notebooks(notebooks, values, folder, at_once):
        outcomes[book.name] = outcome
        left.remove(book.name)
        took = f"{outcome.seconds:.1f} s" if outcome.code == 0 else f"failed after {outcome.seconds:.1f} s"
        also = f"; running {', '.join(left[:at_once])}" if left else ""
        print(f"[{len(outcomes)}/{len(notebooks)}] {book.name} {took}{also}", flush=True)
        if outcome.code:
            print(f"error: {book.name}: {outcome.error}", file=sys.stderr, flush=True)
        _note(folder, profile, book, values[book.name], outcome)
    done = {book.name: outcomes[book.name] for book in notebooks if outcomes[book.name].code == 0}

    print()
    index = [(product, files, done[name].seconds) for name in done for product, files in _grouped(done[name].products)]
    for product, files, seconds in index:
        print(f"{product:<24} {paths.shown(folder / files):<60} {seconds:>8.1f} s")
    verdicts = list(_compared(profile, done))
    for _, line in verdicts:
        print(line)
    print(f"notebooks: {len(done)} passed, {len(outcomes) - len(done)} failed")
    codes = {outcome.code for outcome in outcomes.values()}
    return 1 if 1 in codes else 2 if 2 in codes else 0 if all(close for close, _ in verdicts) else 3


def _grouped(files: Sequence[str]) -> list[tuple[str, str]]:
    """fig1.pdf, fig1.png -> (fig1, fig1.{pdf,png})"""
    endings: dict[str, list[str]] = {}
    for file in files:
        endings.setdefault(Path(file).stem, []).append(Path(file).suffix[1:])
    return [(stem, f"{stem}.{{{','.join(e)}}}" if len(e) > 1 else f"{stem}.{e[0]}") for stem, e in endings.items()]


def _manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    if not path.exists():
        return {"notebooks": {}}
    try:
        return {"notebooks": {}, **json.loads(path.read_text(encoding="utf-8"))}
    except json.JSONDecodeError as error:
        raise InputError(f"{paths.shown(path)} is not json ({error}); delete it, a run makes it again") from error


def _write_manifest(folder: Path, manifest: Mapping) -> None:
    temporary = folder / ".manifest.json"
    temporary.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / "manifest.json")


def _note(folder: Path, profile: str, book: Notebook, values: Mapping[str, object], outcome: Outcome) -> None:
    """Enter one notebook's outcome into the manifest; of a failed one only that it failed and why."""
    manifest = _manifest(folder)
    entry = manifest["notebooks"].get(book.name, {})
    if outcome.code:
        entry |= {"status": "failed", "error": outcome.error}
    else:
        for stale in set(entry.get("products", ())) - set(outcome.products):
            (folder / stale).unlink(missing_ok=True)
        hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in outcome.products}
        entry = {"status": "done", "title": book.title, "seconds": outcome.seconds, "date": _now()}
        entry |= {"commit": commit(), "parameters": dict(values), "products": hashes}
    manifest["notebooks"][book.name] = entry
    manifest |= {"profile": profile, "date": _now(), "commit": commit(), "versions": _versions()}
    _write_manifest(folder, manifest)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _compared(profile: str, outcomes: Mapping[str, Outcome]) -> Iterator[tuple[bool, str]]:
    """Compare the tables and rows of the notebooks that were run with the committed ones: (close enough, line) each.

    Rows that this profile's reference lacks are looked up in standard's, of whose images quick has a subset.
    """
    reference, standard = paths.REFERENCE / profile, paths.REFERENCE / "standard"
    if not reference.is_dir() and not standard.is_dir():
        yield True, f"no reference for profile {profile} to compare with (`make accept` makes this run the reference)"
        return
    ours, theirs = _manifest(paths.FIGURES / profile)["notebooks"], _manifest(reference)["notebooks"]
    for name in outcomes:
        known = theirs.get(name, {})
        there = known.get("parameters", {})
        other = [f"{key} = {value!r}, not {there[key]!r}" for key, value in ours[name]["parameters"].items()
                 if key in there and there[key] != value]  # fmt: skip
        moved = False  # rows come before tables
        for file in sorted({*outcomes[name].products, *known.get("products", ())}):
            made, kept, rows = paths.FIGURES / profile / file, reference / file, file.endswith(".parquet")
            subset = rows and not kept.exists()
            kept = standard / file if subset else kept
            if made.suffix not in (".csv", ".parquet"):
                continue
            if other and not subset:
                yield True, f"{file}: not compared: {'; '.join(other)} as in the reference"
            elif not made.exists():
                yield False, f"{file}: in the reference, but not made"
            elif not kept.exists():
                yield True, f"{file}: not in the reference"
            elif rows:
                verdict = compare_rows(read_rows(made), read_rows(kept), KEYS, subset)
                moved |= verdict.moved
                yield _labelled(file, verdict, " (standard's rows)" if subset else "")
            else:
                verdict = compare_tables(made, kept)
                if moved and verdict.moved:
                    verdict = Verdict(True, f"moved with {ILL_CONDITIONED}'s rows: {verdict.text}")
                yield _labelled(file, verdict)


def _labelled(file: str, verdict: Verdict, note: str = "") -> tuple[bool, str]:
    return verdict.close, f"{file}: {'' if verdict.close else 'DIFFERS: '}{verdict.text}{note}"


def accept(profile: str, only: Sequence[str] = ()) -> None:
    """Make the last run's products, executed notebooks and manifest the committed reference of `profile`.

    Notebooks that the run left out keep their reference. InputError if there was no run, or one failed in it.
    """
    source, target = paths.FIGURES / profile, paths.REFERENCE / profile
    manifest, reference = _manifest(source), _manifest(target)
    names = {book.name for book in find_notebooks(only)}
    entries = {name: entry for name, entry in manifest["notebooks"].items() if name in names}
    failed = [name for name, entry in entries.items() if entry["status"] != "done"]
    if failed or not entries:
        problem = f"failed in it: {', '.join(failed)}" if failed else "there is none"
        raise InputError(
            f"accepting the last run of profile {profile}: {problem}; allowed: a run whose notebooks passed"
        )
    (target / "notebooks").mkdir(parents=True, exist_ok=True)
    for name, entry in entries.items():
        for stale in reference["notebooks"].get(name, {}).get("products", ()):
            (target / stale).unlink(missing_ok=True)
        for file in [*entry["products"], f"notebooks/{name}.ipynb"]:
            shutil.copyfile(source / file, target / file)
    _write_manifest(target, manifest | {"notebooks": reference["notebooks"] | entries})
    print(f"{len(entries)} notebooks of profile {profile} are now the reference in {paths.shown(target)}")


def _room() -> int:
    """How many notebooks have room at once: each takes some 5 GB, and leaves a core idle for much of its time."""
    return 2 if (os.cpu_count() or 1) > 1 and psutil.virtual_memory().total > 15e9 else 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def _list(notebooks: Sequence[Notebook], values: Mapping[str, Mapping[str, object]]) -> None:
    for book in notebooks:
        print(f"{book.name}: {book.title}")
        for name, value in values[book.name].items():
            print(f"    {name}: {book.types[name]} = {value!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _Parser(
        prog="python -m refinecam_lib.reproduce", description=__doc__.splitlines()[0], epilog=__doc__.splitlines()[-1]
    )
    parser.add_argument(
        "--profile", default="quick", help="quick (default), standard, paper: how many images and models"
    )
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="05", help="these notebooks alone")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="settings",
        help="parameters, in every notebook that has them",
    )  # fmt: skip
    parser.add_argument(
        "--at-once", type=int, default=_room(), metavar="N",
        help="notebooks that run at once; 2 where there are two cores and 16 GB of memory, else 1",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show the notebooks and their parameters, run nothing")
    parser.add_argument("--status", action="store_true", help="run nothing; say what is measured and what is missing")
    parser.add_argument("--accept", action="store_true", help="run nothing; make the last run the committed reference")
    try:
        options = parser.parse_args(arguments)
        if options.at_once < 1:
            raise InputError(f"--at-once {options.at_once}; allowed: 1 or more")
        notebooks, values = chosen(options.profile, options.only, options.settings)
        if options.list:
            _list(notebooks, values)
        elif options.status:
            print("\n".join(status(notebooks, values)))
        elif options.accept:
            accept(options.profile, options.only)
        else:
            return run(notebooks, options.profile, values, options.at_once)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the notebooks that had finished keep their results", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
