"""The book: pages, notebooks with their figures, and the API as a searchable site that opens from the file system.

The sources are staged in a temporary folder with the layout of the checkout, so their links stay as they are. Sphinx
builds the site. It loads nothing from the network.
"""

import ast
import importlib
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .. import paths
from ..errors import InputError, one_of
from ..toolbox.extras import of_extra
from .links import relink, targets, without_targets
from .parameters import find_notebooks, profiles

with of_extra("book"):
    import nbformat
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

PAGES = {
    "Results": ["docs/findings.md", "docs/departures.md"],
    "Guides": ["docs/adapting.md", "docs/installation.md", "docs/training.md", "docs/cluster.md", "docs/scaling.md"],
    "Reference": ["api.rst", "docs/architecture.md", "docs/performance.md", "docs/benchmark.md"],
    "About": ["data/README.md", "CHANGELOG.md"],
}
"""Caption of the contents -> its pages. The notebooks come after the first."""
CONFIGURATION = {
    "project": "How to evaluate and refine your CAM, reproduced",
    "html_title": "RefineCAM and ARCC",
    "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"],
    "html_theme": "furo",
    "language": "en",
    "nb_execution_mode": "off",
    "nb_code_prompt_show": "Show the code",
    "nb_code_prompt_hide": "Hide the code",
    "nb_ipywidgets_js": {},  # widgets are shown as pictures, so the scripts that draw them are not needed
    "nb_mime_priority_overrides": [("html", "image/png", 5), ("html", "text/html", 15)],
    "myst_heading_anchors": 4,
    "suppress_warnings": ["mystnb.unknown_mime_type", "myst.header"],
    "default_role": "code",
    "add_module_names": False,
    "autodoc_typehints": "none",
    "autodoc_member_order": "bysource",
    "html_copy_source": False,
    "html_show_sphinx": False,
    "html_show_copyright": False,
    "html_show_search_summary": False,  # it fetches pages, which a browser refuses on a file system
    "html_css_files": ["book.css"],
    "exclude_patterns": [],
}
STYLE = """
.content {width: 51.5em}
@media (max-width: 67em) {.content {width: 100%}}
.cell_output {overflow-x: auto} .cell_output img {max-width: 100%; background: white} .cell_output pre {white-space: pre-wrap}
.cell_output table {border: none; border-collapse: collapse; font-size: .85em; margin-bottom: 1em}
.cell_output :is(td, th) {border: none; border-bottom: 1px solid var(--color-background-border); padding: .25em .45em; text-align: right}
.cell_output .dataframe :is(td, th) {white-space: nowrap} .cell_output tbody th {text-align: left}
.cell_output th.row_heading {white-space: nowrap} .cell_output th[colspan] {text-align: center}
.cell details.hide {background: none; border: none; box-shadow: none; margin: 0; padding: 0}
.cell details.hide p.admonition-title {background: none; margin: 0; padding: 0; font-size: .75em; font-weight: normal}
.cell details.hide p.admonition-title {color: var(--color-foreground-muted)}
.cell details.hide p.admonition-title::before {display: none}
"""
READ_FIRST = ("capture", "explanation", "refinement", "metrics", "scoring", "networks", "datasets")
"""The order of modules on the page of the API. The others follow."""


def _executed(name: str, profile: str, own: bool) -> Path:
    """Return the executed copy of a notebook: the reader's, the profile's reference, or the standard reference."""
    folders = [paths.FIGURES / profile] if own else []
    folders += [paths.REFERENCE / profile, paths.REFERENCE / "standard"]
    copies = [folder / "notebooks" / f"{name}.ipynb" for folder in folders]
    return next((copy for copy in copies if copy.exists()), paths.NOTEBOOKS / f"{name}.ipynb")


def _stage_notebook(copy: Path, source: Path, target: Path) -> list[str]:
    """Write an executed copy with folded code and the links of its source. Return its Markdown texts."""
    book = nbformat.read(copy, as_version=4)
    book.metadata.pop("widgets", None)
    book.metadata.setdefault("language_info", {"name": "python"})
    texts = [cell.source for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "markdown"]
    originals = {without_targets(text): text for text in texts}
    for cell in book.cells:
        if cell.cell_type == "markdown":
            original = originals.get(without_targets(cell.source))  # none if the notebook has changed since
            text, start = (cell.source, copy.parent) if original is None else (original, source.parent)
            cell.source = relink(text, start, lambda path: _place(path, Path("notebooks")))
            cell.source = re.sub(r" · \[executed copy\]\([^)]*\)", "", cell.source)  # the page is one
        else:
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
            for output in cell.get("outputs", []):
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, target)
    return texts


def _place(path: Path, folder: Path) -> str | None:
    """Return the link to a path of the checkout from a page in `folder` of the book. A folder has no page."""
    if path.is_dir() or not path.is_relative_to(paths.ROOT):
        return None
    inside = path.relative_to(paths.ROOT)
    if inside.suffix == ".ipynb":
        inside = Path("notebooks", inside.name)  # one copy of each
    if inside == Path("README.md"):
        inside = Path("index.md")
    return "../" * len(folder.parts) + inside.as_posix()


def _stage_page(page: Path, target: Path, folder: Path) -> str:
    """Write a page with links for the book, and return its text."""
    text = page.read_text(encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(relink(text, page.parent, lambda path: _place(path, folder)), encoding="utf-8")
    return text


def _stage_files(text: str, start: Path, stage: Path) -> None:
    """Copy the pictures and files that a text links to."""
    for target in targets(text):
        file = (start / target).resolve()
        inside = file.is_relative_to(paths.ROOT) and file.is_file() and file.suffix not in (".ipynb", ".md")
        if inside and not (copy := stage / file.relative_to(paths.ROOT)).exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _contents(caption: str, pages: Iterable[str]) -> str:
    lines = [page.removesuffix(".md").removesuffix(".rst") for page in pages]
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""])


def _api() -> str:
    """Write the page of the public names, those of `__init__.pyi`. Names of one module stand together."""
    package = __package__.partition(".")[0]
    tree = ast.parse(Path(sys.modules[package].__file__ or "").with_suffix(".pyi").read_text(encoding="utf-8"))
    nodes: dict[str, list[str]] = {}
    for node in (node for node in tree.body if isinstance(node, ast.ImportFrom)):
        nodes.setdefault(node.module or "", []).extend(alias.name for alias in node.names)

    def order(module: str) -> int:
        first = module.partition(".")[0]
        return READ_FIRST.index(first) if first in READ_FIRST else len(READ_FIRST)

    parts = [
        "API",
        "===",
        "",
        "``import refinecam_lib as rc`` gives these names: ``rc.explain``, ``rc.measure`` ...",
        "",
    ]
    for name in sorted(nodes, key=order):
        module = importlib.import_module(f"{package}.{name}")
        heading = f"rc.{', rc.'.join(nodes[name])}"
        parts += [heading, "-" * len(heading), ""]
        for public in nodes[name]:
            found = getattr(module, public)
            kind = "class" if isinstance(found, type) else "function" if callable(found) else "data"
            options = {"class": ["   :members:"], "data": ["   :no-value:"]}.get(kind, [])
            parts += [f".. auto{kind}:: {module.__name__}.{public}", *options, ""]
    return "\n".join(parts)


def build(target: Path, profile: str = "standard", own: bool = False) -> list[str]:
    """Build the site into a folder, with one copy of each notebook.

    Args:
        target: The folder. It is emptied first, if it holds a book.
        profile: Whose executed copies are taken. Notebooks that a profile leaves out come from the standard one.
        own: Prefer the reader's own last run in figures/ to the committed reference.

    Returns:
        Sphinx's warnings, one a line.

    Raises:
        InputError: The profile is unknown, the target is a file, or a folder with something else in it.
    """
    one_of("profile", profile, profiles())
    if target.exists() and not target.is_dir():
        raise InputError(f"Expected a folder, new or not, got the file {str(target)!r}.")
    if target.exists() and any(target.iterdir()) and not (target / "index.html").exists():
        raise InputError(f"Expected a new folder or one with a book, got {str(target)!r} with other files.")
    warnings = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="book_") as work:
        stage, built = Path(work, "source"), Path(work, "html")
        notebooks = find_notebooks()
        for book in notebooks:
            texts = _stage_notebook(
                _executed(book.name, profile, own), book.path, stage / "notebooks" / f"{book.name}.ipynb"
            )
            for text in texts:
                _stage_files(text, paths.NOTEBOOKS, stage)
        contents = ""
        for caption, pages in PAGES.items():
            there = [name for name in pages if name == "api.rst" or (paths.ROOT / name).exists()]
            for name in (name for name in there if name != "api.rst"):
                page = paths.ROOT / name
                _stage_files(_stage_page(page, stage / name, Path(name).parent), page.parent, stage)
            contents += _contents(caption, there)
            if not contents.count("Notebooks"):
                numbered = {book.name: f"{book.name.partition('_')[0]} {book.title}" for book in notebooks}
                contents += _contents("Notebooks", [f"{title} <notebooks/{name}>" for name, title in numbered.items()])
        text = _stage_page(paths.ROOT / "README.md", stage / "index.md", Path())
        _stage_files(text, paths.ROOT, stage)
        with (stage / "index.md").open("a", encoding="utf-8") as index:
            index.write(contents)
        (stage / "api.rst").write_text(_api(), encoding="utf-8")
        (stage / "_static").mkdir()
        (stage / "_static" / "book.css").write_text(STYLE, encoding="utf-8")
        options = CONFIGURATION | {"html_static_path": [str(stage / "_static")]}
        with patch_docutils(), docutils_namespace():  # so that a process may build several books
            site = Sphinx(stage, None, built, Path(work, "doctrees"), "html", options, status=None, warning=warnings)
            site.build(force_all=True)
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(built, target, ignore=shutil.ignore_patterns(".buildinfo", "_sources", "objects.inv", "*.map"))
    return re.sub(r"\x1b\[[\d;]*m", "", warnings.getvalue()).replace(f"{stage}/", "").splitlines()
