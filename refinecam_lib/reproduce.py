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
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import nbformat

from . import notebook, paths
from .checks import InputError
from .compare import ILL_CONDITIONED, Verdict, compare_rows, compare_tables, read_rows
from .parameters import Notebook, chosen, find_notebooks
from .plans import status
from .provenance import KEYS, commit

PACKAGES = ("torch", "torchvision", "timm", "captum", "numpy", "scipy", "pandas", "numba", "scikit-image", "papermill")
"""The packages whose versions the manifest notes."""
FOLDERS = (
    *(f"REFINECAM_{name}" for name in ("ROOT", "DATA", "CHECKPOINTS", "RESULTS", "FIGURES", "NOTEBOOKS")),
    *(f"{name}_ROOT" for name in ("FUNNYBIRDS", "IMAGENET", "IMAGES", "WALDO")),
)
"""The environment variables that name a folder."""
HOMES = (
    "IPYTHONDIR",
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "MPLCONFIGDIR",
    "NUMBA_CACHE_DIR",
)
"""Where tools write beside the results; the runner moves all into the checkout's ignored `.cache`."""


@dataclass(frozen=True)
class Outcome:
    """What came of running one notebook: its exit code (0, 1 or 2), its error's line, its seconds and its products."""

    code: int
    error: str
    seconds: float
    products: tuple[str, ...] = ()


@contextlib.contextmanager
def _environment(products: Path) -> Iterator[None]:
    """What the kernel inherits: where products go, this library first, and every tool's files in the checkout's cache."""
    cache = paths.ROOT / ".cache"
    values = {name: str(cache / name.lower()) for name in HOMES}
    for home in values.values():
        Path(home).mkdir(parents=True, exist_ok=True)
    library = str(Path(__file__).resolve().parent.parent)
    values["PYTHONPATH"] = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
    values["JUPYTER_PREFER_ENV_PATH"] = "1"  # this Python's kernel, not one that the user's home has by the same name
    values[notebook.PRODUCTS] = str(products)
    # The kernel runs in the notebooks' folder, and would look there for folders that are given relative to this one.
    for name in FOLDERS:
        if (given := os.environ.get(name)) and given != "crowd":  # WALDO_ROOT's word for no folder
            values[name] = str(Path(given).expanduser().absolute())
    values["REFINECAM_QUIET"] = "1"  # no progress bars in executed copies
    values["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # or the user's own would leave the figures out
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run_notebook(book: Notebook, values: Mapping[str, object], folder: Path) -> Outcome:
    """Run one notebook in a temporary folder and move its products into `folder` only once it has succeeded.

    The executed copy goes to `folder/notebooks`; that of a failed run is `NN_name.failed.ipynb`, beside the earlier one.
    """
    import papermill  # slow to import, and not needed to list or to refuse
    from nbclient.exceptions import DeadKernelError

    executed = folder / "notebooks" / book.path.name
    failed = executed.with_suffix(".failed.ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    changed = {name: value for name, value in values.items() if value != book.defaults[name]}
    start = time.perf_counter()
    code, error, made = 0, "", []
    with tempfile.TemporaryDirectory(prefix=".making_", dir=folder) as work:
        copy, products = Path(work, "executed.ipynb"), Path(work, "products")
        products.mkdir()
        try:
            with _environment(products):
                papermill.execute_notebook(
                    *(book.path, copy, changed), kernel_name="python3", language="python", cwd=book.path.parent,
                    progress_bar=sys.stderr.isatty(), start_timeout=300, extra_arguments=["--IPKernelApp.log_level=40"],
                )  # fmt: skip
        except papermill.PapermillExecutionError as stop:
            reason = next(iter(stop.evalue.splitlines()), "")
            refused = stop.ename == InputError.__name__
            place = f"cell {stop.cell_index + 1} of {_shown(failed)}"
            code, error = (2, reason) if refused else (1, f"{place}: {stop.ename}: {reason}")
        except DeadKernelError:
            code, error = 1, "the kernel died; did it run out of memory?"
        seconds = round(time.perf_counter() - start, 1)
        if copy.exists():
            (failed if code else executed).write_text(_without_traces(copy, products, folder), encoding="utf-8")
        for path in sorted(products.iterdir()) if code == 0 else ():
            path.replace(folder / path.name)
            made.append(path.name)
    return Outcome(code, error, seconds, tuple(made))


def _without_traces(copy: Path, products: Path, folder: Path) -> str:
    """An executed notebook without times, and with this machine's paths made relative: it may be committed."""
    book = nbformat.read(copy, as_version=4)
    for part in (book, *book.cells):
        part.metadata.pop("papermill", None)
        part.metadata.pop("execution", None)

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {k: v if k.startswith("image/") else plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        if not isinstance(value, str):
            return value
        text = value.replace(str(products), _shown(folder)).replace(f"{paths.ROOT}{os.sep}", "")
        text = re.sub(re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/", "ipykernel/", text)
        return text.replace(f"{home}{os.sep}", f"~{os.sep}") if home.name else text

    home = Path.home()
    return nbformat.writes(nbformat.from_dict(plain(book))) + "\n"


def run(notebooks: Sequence[Notebook], profile: str, values: Mapping[str, Mapping[str, object]]) -> int:
    """Run the notebooks one after the other, write `figures/<profile>/manifest.json`, print the index and the verdict.

    Returns the exit code. A failed notebook leaves its earlier products and their lines in the manifest alone.
    """
    folder = paths.FIGURES / profile
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for number, book in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {book.name} ...", end=" ", flush=True)
        outcome = outcomes[book.name] = run_notebook(book, values[book.name], folder)
        print(f"{outcome.seconds:.1f} s" if outcome.code == 0 else f"failed after {outcome.seconds:.1f} s", flush=True)
        if outcome.code:
            print(f"error: {book.name}: {outcome.error}", file=sys.stderr, flush=True)
        _note(folder, profile, book, values[book.name], outcome)
    done = {name: outcome for name, outcome in outcomes.items() if outcome.code == 0}

    print()
    index = [(product, files, done[name].seconds) for name in done for product, files in _grouped(done[name].products)]
    for product, files, seconds in index:
        print(f"{product:<24} {_shown(folder / files):<60} {seconds:>8.1f} s")
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


def _shown(path: Path) -> str:
    return str(path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path)


def _manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    if not path.exists():
        return {"notebooks": {}}
    try:
        return {"notebooks": {}, **json.loads(path.read_text(encoding="utf-8"))}
    except json.JSONDecodeError as error:
        raise InputError(f"{_shown(path)} is not json ({error}); delete it, a run makes it again") from error


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
    print(f"{len(entries)} notebooks of profile {profile} are now the reference in {_shown(target)}")


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
    parser.add_argument("--list", action="store_true", help="show the notebooks and their parameters, run nothing")
    parser.add_argument("--status", action="store_true", help="run nothing; say what is measured and what is missing")
    parser.add_argument("--accept", action="store_true", help="run nothing; make the last run the committed reference")
    try:
        options = parser.parse_args(arguments)
        notebooks, values = chosen(options.profile, options.only, options.settings)
        if options.list:
            _list(notebooks, values)
        elif options.status:
            print("\n".join(status(notebooks, values)))
        elif options.accept:
            accept(options.profile, options.only)
        else:
            return run(notebooks, options.profile, values)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the notebooks that had finished keep their results", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
