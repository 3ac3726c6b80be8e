"""The committed reference: compare a run's tables with it, replace it by a run, and check its executed notebooks.

    python -m refinecam_lib.reproduce.reference

Exit codes: 0 every executed notebook of the reference is of today's sources; 1 some are not.
"""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from .. import paths
from ..errors import InputError
from . import manifest
from .parameters import STANDARD, cells_of, find_notebooks


class Compared(NamedTuple):
    """A table, whether it agrees with the reference, and the largest difference or why it is not compared."""

    file: str
    state: Literal["agrees", "differs", "not compared"]
    text: str


def compared(profile: str, names: Iterable[str]) -> Iterator[Compared]:
    """Compare the tables that the last run of these notebooks made with the reference of the profile."""
    from .compare import compare_tables  # pandas takes a while to import

    folder, reference = paths.FIGURES / profile, paths.REFERENCE / profile
    ours, theirs = manifest.read(folder)["notebooks"], manifest.read(reference)["notebooks"]
    for name in names:
        known = theirs.get(name, {})
        there = known.get("parameters", {})
        other = [f"{key} = {value!r}, not {there[key]!r}" for key, value in ours[name]["parameters"].items()
                 if key in there and there[key] != value]  # fmt: skip
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
                close, text = compare_tables(folder / file, reference / file)
                yield Compared(file, "agrees" if close else "differs", text)


def outdated(folder: Path) -> list[str]:
    """Return the names of the executed notebooks in a folder that are not copies of today's notebooks.

    Their cells are compared by type and source. Outputs, and the cell of parameters that papermill adds, do not count.
    """

    def cells(path: Path) -> list[tuple[str, str]]:
        kept = (cell for cell in cells_of(path) if "injected-parameters" not in cell["metadata"].get("tags", []))
        return [(cell["cell_type"], cell["source"]) for cell in kept]

    copies = [path for path in sorted(folder.glob("*.ipynb")) if not path.name.endswith(".failed.ipynb")]
    sources = {copy: paths.NOTEBOOKS / copy.name for copy in copies}
    return [c.stem for c, source in sources.items() if not source.exists() or cells(c) != cells(source)]


def accept(profile: str, only: Sequence[str] = ()) -> None:
    """Make the last run's products, executed notebooks and manifest the committed reference of `profile`.

    Rows are left out: data/rows has them. Notebooks that the run left out keep their reference.

    Raises:
        InputError: there was no run, a notebook failed in it, or a file is no longer what the run made.
    """
    source, target = paths.FIGURES / profile, paths.REFERENCE / profile
    last, reference = manifest.read(source), manifest.read(target)
    names = {book.name for book in find_notebooks(only)}
    entries = {name: entry for name, entry in last["notebooks"].items() if name in names}
    if not entries:
        raise InputError(
            f"Expected a run of profile {profile} to accept, found none. Run it first: {_command(profile, only)}."
        )
    for name, entry in entries.items():
        _must_be_as_made(source, profile, name, entry)
    (target / "notebooks").mkdir(parents=True, exist_ok=True)
    for name, entry in entries.items():
        for stale in reference["notebooks"].get(name, {}).get("products", ()):
            (target / stale).unlink(missing_ok=True)
        kept = {file: known for file, known in entry["products"].items() if not file.endswith(".parquet")}
        for file in [*kept, f"notebooks/{name}.ipynb"]:
            shutil.copyfile(source / file, target / file)
        entries[name] = entry | {"products": kept}
    manifest.write(target, last | {"notebooks": reference["notebooks"] | entries})
    print(f"{len(entries)} notebooks of profile {profile} are now the reference in {paths.shown(target)}")


def _must_be_as_made(folder: Path, profile: str, name: str, entry: dict) -> None:
    """Raise InputError unless a notebook of the last run succeeded and left exactly the files that are there now."""
    again = f"Run it again: {_command(profile, [name.partition('_')[0]])}."
    if entry["status"] != "done":
        raise InputError(f"Expected a run whose notebooks all passed, but {name} failed. {again}")
    for file, known in entry["products"].items():
        path = folder / file
        if not path.exists():
            raise InputError(f"Expected {paths.shown(path)} as {name} made it, but the file is missing. {again}")
        if (found := manifest.digest(path)) != known:
            raise InputError(
                f"Expected {paths.shown(path)} with the sha256 {known[:12]}... of its manifest.json, found "
                f"{found[:12]}...: it was changed after the run. {again}"
            )
    copy = folder / "notebooks" / f"{name}.ipynb"
    if not copy.exists():
        raise InputError(f"Expected the executed notebook {paths.shown(copy)}, but it is missing. {again}")
    if name in outdated(copy.parent):
        raise InputError(
            f"Expected {paths.shown(copy)} to have the cells of today's {name}.ipynb, but they differ: the notebook was "
            f"edited after the run. {again}"
        )


def _command(profile: str, only: Sequence[str]) -> str:
    """Return the command that runs these notebooks of a profile."""
    words = [] if profile == STANDARD else ["--profile", profile]
    words += ["--only", *only] if only else []
    return f'make reproduce ARGS="{" ".join(words)}"' if words else "make reproduce"


def main() -> int:
    """Name the executed notebooks of the reference that are not of today's sources; return the exit code."""
    code = 0
    for folder in sorted(paths.REFERENCE.glob("*/notebooks")):
        if names := outdated(folder):
            code, profile = 1, folder.parent.name
            numbers = [name.partition("_")[0] for name in names]
            print(
                f"error: Expected the executed notebooks in {paths.shown(folder)} to have the cells of today's sources, "
                f"but {', '.join(names)} differ. Run and accept them: {_command(profile, numbers)}, then "
                f"{_command(profile, numbers).replace('reproduce', 'accept')}.",
                file=sys.stderr,
            )
    return code


if __name__ == "__main__":
    sys.exit(main())
