"""Every executed notebook is a page that needs no network, and an index links to each."""

import re

import nbformat
import pytest

from refinecam_lib import paths
from refinecam_lib.reproduce.__main__ import main

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def reference(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "REFERENCE", tmp_path / "reference")
    folder = tmp_path / "reference" / "standard" / "notebooks"
    folder.mkdir(parents=True)
    return folder


def links(page):
    return re.findall(r'<a [^>]*href="([^"#]+)"', page)


def test_pages_open_from_the_file_system_and_show_pictures_for_widgets(reference, tmp_path, capsys):
    shown = {WIDGET: {"model_id": "a", "version_major": 2, "version_minor": 0}, "image/png": PIXEL}
    cell = nbformat.v4.new_code_cell("Explorer()", outputs=[nbformat.v4.new_output("display_data", shown)])
    written = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# One\n\n[two](05_two.ipynb)"), cell])
    written.metadata["widgets"] = {STATE: {"version_major": 2, "version_minor": 0, "state": {"a": {}}}}
    nbformat.write(written, reference / "00_quickstart.ipynb")
    nbformat.write(nbformat.v4.new_notebook(), reference / "05_two.ipynb")
    assert main(["book", "--to", str(tmp_path / "book")]) == 0
    assert "2 notebooks in " in capsys.readouterr().out
    index = (tmp_path / "book" / "index.html").read_text(encoding="utf-8")
    assert (
        links(index) == ["standard/00_quickstart.html", "standard/05_two.html"]
        and "how good is the explanation" in index
    )
    page = (tmp_path / "book" / "standard" / "00_quickstart.html").read_text(encoding="utf-8")
    assert f"data:image/png;base64,{PIXEL}" in page and WIDGET not in page
    assert {"../index.html", "05_two.html"} <= set(links(page))
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=.?http[^>]+>", page)


def test_without_executed_notebooks_it_says_how_to_get_them(reference, tmp_path, capsys):
    assert main(["book", "--to", str(tmp_path / "book")]) == 2
    assert "`make accept` puts them there" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["book", "--to", str(tmp_path / "file")]) == 2
    assert "Expected a folder, new or not, got the file" in capsys.readouterr().err
