"""The manifest of a run, and the committed reference: compare tables with it, replace it, check its notebooks.

`figures/<profile>/manifest.json` holds each notebook's parameters and a hash of each product.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from .. import paths
from ..errors import InputError
from ..paths import commit
from .links import mend_copies, without_targets
from .parameters import STANDARD, cells_of, find_notebooks

if TYPE_CHECKING:
    from .parameters import Notebook
    from .runner import Outcome

PACKAGES = ("torch", "torchvision", "timm", "captum", "numpy", "scipy", "pandas", "numba", "scikit-image", "papermill")
"""The packages whose versions the manifest holds."""
CELLS_WITHIN = 0.005
"""How far a number in a table may be from the reference: absolute up to 1, relative above."""
_UNCOMPARED = re.compile(r"(?<![a-z])(commit|seconds|date)(?![a-z])", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


class Compared(NamedTuple):
    """A table, whether it agrees with the reference, and the largest difference or why it is not compared."""

    file: str
    state: Literal["agrees", "differs", "not compared"]
    text: str


def read_manifest(folder: Path) -> dict:
    """Read the manifest of a folder of products. Without a file it has no notebooks.

    Raises:
        InputError: the file is not JSON.
    """
    path = folder / "manifest.json"
    try:
        return {"notebooks": {}, **json.loads(path.read_text(encoding="utf-8"))}
    except FileNotFoundError:
        return {"notebooks": {}}
    except json.JSONDecodeError as error:
        raise InputError(f"{paths.shown(path)} is not JSON ({error}). Delete it; a run makes it again.") from error


def _write_manifest(folder: Path, manifest: Mapping) -> None:
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    paths.write_whole(folder / "manifest.json", lambda part: part.write_text(text, encoding="utf-8"))


def note(folder: Path, profile: str, book: "Notebook", values: Mapping[str, object], outcome: "Outcome") -> None:
    """Enter a notebook's outcome into the manifest, and delete its products that it no longer makes.

    A failed notebook keeps its earlier entry. Only its status and error are new.
    """
    manifest = read_manifest(folder)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = manifest["notebooks"].get(book.name, {})
    if outcome.code:
        entry |= {"status": "failed", "error": outcome.error}
    else:
        for stale in set(entry.get("products", ())) - set(outcome.products):
            (folder / stale).unlink(missing_ok=True)
        hashes = {name: _digest(folder / name) for name in outcome.products}
        entry = {"status": "done", "title": book.title, "seconds": outcome.seconds, "date": now}
        entry |= {"commit": commit(), "parameters": dict(values), "products": hashes}
    manifest["notebooks"][book.name] = entry
    _write_manifest(folder, manifest | {"profile": profile, "date": now, "commit": commit(), "versions": versions()})


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform, PACKAGES, and the engine of passes without gradients."""
    from ..networks.inference import engine_version  # imports torch

    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | {"engine": engine_version()}


def compared(profile: str, names: Iterable[str]) -> Iterator[Compared]:
    """Compare the tables of these notebooks' last run with the reference of the profile."""
    folder, reference = paths.FIGURES / profile, paths.REFERENCE / profile
    ours, theirs = read_manifest(folder)["notebooks"], read_manifest(reference)["notebooks"]
    for name in names:
        known = theirs.get(name, {})
        there = known.get("parameters", {})
        other = [
            f"{key} = {value!r}, not {there[key]!r}"
            for key, value in ours[name]["parameters"].items()
            if key in there and there[key] != value
        ]
        for file in sorted({*ours[name]["products"], *known.get("products", ())}):
            if not file.endswith(".csv"):
                continue
            if other:
                yield Compared(file, "not compared", f"{'; '.join(other)} as in the reference")
            elif not (folder / file).exists():
                yield Compared(file, "differs", "it is in the reference, but this run did not make it")
            elif not (reference / file).exists():
                yield Compared(file, "not compared", f"it is not in the reference, {paths.shown(reference)}")
            else:
                yield compare_tables(folder / file, reference / file)


def compare_tables(made: Path, reference: Path) -> Compared:
    """Compare two csv tables cell by cell.

    Text must be equal, and numbers within CELLS_WITHIN. A rounded number in a cell with text (.37 ± .29) may also
    differ by one unit of its last decimal. Columns named commit, seconds or date are left out.
    """
    import numpy as np
    import pandas as pd  # slow to import

    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in (made, reference)]
    ours, theirs = (table.drop(columns=[c for c in table if _UNCOMPARED.search(c)]) for table in tables)
    if list(ours.columns) != list(theirs.columns) or len(ours) != len(theirs):
        shapes = " and ".join(f"{len(table)} rows of ({', '.join(table.columns)})" for table in (ours, theirs))
        return Compared(made.name, "differs", f"other rows or columns, here and in the reference: {shapes}")
    close, largest, where = True, 0.0, ""
    for row, column in np.argwhere((ours != theirs).to_numpy()):
        here, there = ours.iat[row, column], theirs.iat[row, column]
        place = f"{theirs.iat[row, 0]}, {theirs.columns[column]}: {here!r} here, {there!r} in the reference"
        if _NUMBER.sub("#", here) != _NUMBER.sub("#", there):
            return Compared(made.name, "differs", f"other text at {place}")
        for a, b in zip(_NUMBER.findall(here), _NUMBER.findall(there)):
            difference = abs(float(a) - float(b))
            decimals = len(b.partition(".")[2])
            rounding = 10.0**-decimals if decimals and b != there else 0.0
            close &= difference <= max(CELLS_WITHIN * max(1.0, abs(float(b))), rounding) + 1e-9
            if difference > largest:
                largest, where = difference, place
    text = f"largest difference {largest:.2g} at {where}" if largest else "identical"
    return Compared(made.name, "agrees" if close else "differs", text)


def outdated(folder: Path) -> list[str]:
    """Return the names of the executed notebooks in a folder that are not copies of today's notebooks.

    Cells are compared by type and source. Outputs do not count, nor do the paths of links, nor the cell of parameters
    that papermill adds.
    """

    def cells(path: Path) -> list[tuple[str, str]]:
        kept = (cell for cell in cells_of(path) if "injected-parameters" not in cell["metadata"].get("tags", []))
        return [(cell["cell_type"], without_targets(cell["source"])) for cell in kept]

    copies = [path for path in sorted(folder.glob("*.ipynb")) if not path.name.endswith(".failed.ipynb")]
    sources = {copy: paths.NOTEBOOKS / copy.name for copy in copies}
    return [c.stem for c, source in sources.items() if not source.exists() or cells(c) != cells(source)]


def outdated_reference() -> list[str]:
    """Return one message per profile whose reference has executed notebooks that are not copies of today's."""
    problems = []
    for folder in sorted(paths.REFERENCE.glob("*/notebooks")):
        if names := outdated(folder):
            run = command_of(folder.parent.name, [name.partition("_")[0] for name in names])
            problems.append(
                f"Expected the executed notebooks in {paths.shown(folder)} to have the cells of today's notebooks, but "
                f"{', '.join(names)} differ. Run and accept them: {run}, then {run.replace('reproduce', 'accept')}."
            )
    return problems


def accept(profile: str, only: Sequence[str] = ()) -> None:
    """Make the last run's products, executed notebooks and manifest the committed reference of a profile.

    Rows stay out, because data/rows has them. Notebooks that the run left out keep their reference.

    Args:
        profile: whose run.
        only: numbers or names of notebooks; empty for all.

    Raises:
        InputError: there was no run, a notebook failed in it, or a file has changed since.
    """
    source, target = paths.FIGURES / profile, paths.REFERENCE / profile
    last, reference = read_manifest(source), read_manifest(target)
    names = {book.name for book in find_notebooks(only)}
    entries = {name: entry for name, entry in last["notebooks"].items() if name in names}
    if not entries:
        run = command_of(profile, only)
        raise InputError(f"Expected a run of profile {profile} to accept, found none. Run it first: {run}.")
    for name, entry in entries.items():
        if problem := _problem(source, name, entry):
            raise InputError(f"{problem} Run it again: {command_of(profile, [name.partition('_')[0]])}.")
    (target / "notebooks").mkdir(parents=True, exist_ok=True)
    for name, entry in entries.items():
        for stale in reference["notebooks"].get(name, {}).get("products", ()):
            (target / stale).unlink(missing_ok=True)
        kept = {file: known for file, known in entry["products"].items() if not file.endswith(".parquet")}
        for file in [*kept, f"notebooks/{name}.ipynb"]:
            shutil.copyfile(source / file, target / file)
        entries[name] = entry | {"products": kept}
    mend_copies(target / "notebooks")
    _write_manifest(target, last | {"notebooks": reference["notebooks"] | entries})
    print(f"{len(entries)} notebooks of profile {profile} are now the reference in {paths.shown(target)}")


def _problem(folder: Path, name: str, entry: Mapping) -> str:
    """Say why a notebook of the last run cannot be accepted; empty if it can."""
    if entry["status"] != "done":
        return f"Expected a run whose notebooks all passed, but {name} failed."
    copy = folder / "notebooks" / f"{name}.ipynb"
    for path in [*(folder / file for file in entry["products"]), copy]:
        if not path.exists():
            return f"Expected {paths.shown(path)} as {name} made it, but the file is missing."
    for file, known in entry["products"].items():
        if (found := _digest(folder / file)) != known:
            return (
                f"Expected {paths.shown(folder / file)} with the sha256 {known[:12]}... of its manifest.json, found "
                f"{found[:12]}...: it was changed after the run."
            )
    if name in outdated(copy.parent):
        return f"Expected {paths.shown(copy)} to have the cells of today's {name}.ipynb, but they differ."
    return ""


def command_of(profile: str, only: Sequence[str]) -> str:
    """Return the command that runs these notebooks of a profile."""
    words = [] if profile == STANDARD else ["--profile", profile]
    words += ["--only", *only] if only else []
    return f'make reproduce ARGS="{" ".join(words)}"' if words else "make reproduce"
