"""Relative links of Markdown texts: read them, and write them again for another folder.

A notebook's links start in notebooks/. Its executed copy lies in another folder, and the book in a third one.
"""

import os
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from .. import paths

_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s#:]+)(#[^()\s]*)?\)")
"""A relative link or picture: "!" or nothing, text, path, fragment. A colon marks an address of the web."""


def targets(text: str) -> list[str]:
    """Return the paths that a Markdown text links to, without fragments."""
    return [match[3] for match in _LINK.finditer(text)]


def without_targets(text: str) -> str:
    """Empty the paths of the links, so that a text can be compared with its copy in another folder."""
    return _LINK.sub(r"\1[\2]()", text)


def relink(text: str, start: Path, place: Callable[[Path], str | None]) -> str:
    """Write the links of a Markdown text again.

    Args:
        text: The text. A link to a path that does not exist stays as it is.
        start: The folder that its links start in.
        place: Takes the path that a link leads to, and returns the new link. None leaves only the link's text.
    """

    def link(match: re.Match[str]) -> str:
        picture, words, path, fragment = match.groups("")
        target = Path(os.path.normpath(start / path))
        if not target.exists():
            return match[0]
        new = place(target)
        return words if new is None else f"{picture}[{words}]({new}{fragment})"

    return _LINK.sub(link, text)


def of_a_copy(text: str, folder: Path, copies: Collection[str]) -> str:
    """Write the links of a notebook's text for its executed copy.

    Args:
        text: A Markdown cell of a notebook in notebooks/.
        folder: Where the executed copy lies.
        copies: The file names of the notebooks whose executed copies lie there, too. Links lead to these.
    """

    def place(target: Path) -> str:
        if target.parent == paths.NOTEBOOKS and target.name in copies:
            return target.name
        return Path(os.path.relpath(target, folder)).as_posix()

    return relink(text, paths.NOTEBOOKS, place)


def mend_copies(folder: Path) -> None:
    """Make the links of all executed copies in a folder lead somewhere. Copies of another version stay as they are."""
    import nbformat

    copies = [path.name for path in sorted(folder.glob("*.ipynb")) if not path.name.endswith(".failed.ipynb")]
    for name in copies:
        if not (source := paths.NOTEBOOKS / name).exists():
            continue
        book = nbformat.read(folder / name, as_version=4)
        prose = [cell for cell in book.cells if cell.cell_type == "markdown"]
        originals = [cell.source for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "markdown"]
        if [without_targets(cell.source) for cell in prose] != [without_targets(text) for text in originals]:
            continue
        for cell, text in zip(prose, originals):
            cell.source = of_a_copy(text, folder, copies)
        written = nbformat.writes(book) + "\n"
        if written != (folder / name).read_text(encoding="utf-8"):
            paths.write_whole(folder / name, partial(Path.write_text, data=written, encoding="utf-8"))
