"""The executed notebooks as HTML pages that open from the file system, with an index."""

import html
from pathlib import Path

import nbconvert
import nbformat

from .. import paths
from ..errors import InputError
from .parameters import find_notebooks

STYLE = (
    "body {font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em} td {padding: .2em 1em .2em 0}"
)


def page(executed: Path, home: str = "../index.html") -> str:
    """Return an executed notebook as one HTML page with its pictures inside. Nothing is loaded from elsewhere.

    Args:
        executed: the notebook. Widgets are shown as the static pictures beside them.
        home: where the link to the index leads.
    """
    book = nbformat.read(executed, as_version=4)
    book.metadata.pop("widgets", None)  # without their state nbconvert takes the picture, which needs no script
    book.cells.insert(0, nbformat.v4.new_markdown_cell(f"[All notebooks]({home})"))
    # These scripts would draw formulas and diagrams and come from the network. The notebooks have neither.
    exporter = nbconvert.HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    text, _ = exporter.from_notebook_node(book, {"metadata": {"name": executed.stem}})
    return text.replace(".ipynb", ".html")


def build(target: Path) -> list[Path]:
    """Write `target/<profile>/<notebook>.html` for every committed executed notebook, and `target/index.html`.

    Returns:
        The pages, the index first.

    Raises:
        InputError: the reference has no executed notebook, or the target is a file.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"Expected a folder, new or not, got the file {str(target)!r}.")
    titles = {notebook.name: notebook.title for notebook in find_notebooks()}
    pages, rows = [target / "index.html"], []
    for folder in sorted(paths.REFERENCE.glob("*/notebooks")):
        profile = folder.parent.name
        rows.append(f"<tr><th colspan=2 align=left>profile {html.escape(profile)}</th></tr>")
        for executed in sorted(folder.glob("*.ipynb")):
            written = target / profile / f"{executed.stem}.html"
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(page(executed), encoding="utf-8")
            pages.append(written)
            link = f'<a href="{profile}/{written.name}">{executed.stem}</a>'
            rows.append(f"<tr><td>{link}</td><td>{html.escape(titles.get(executed.stem, ''))}</td></tr>")
    if len(pages) == 1:
        raise InputError(f"No executed notebook in {paths.REFERENCE}/*/notebooks. `make accept` puts them there.")
    body = f"<h1>How to evaluate and refine your CAM, reproduced</h1><table>{''.join(rows)}</table>"
    head = f"<meta charset=utf-8><title>Notebooks</title><style>{STYLE}</style>"
    pages[0].write_text(f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>", encoding="utf-8")
    return pages
