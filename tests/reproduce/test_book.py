"""The book is one site: it opens without a network, has one copy of each notebook, and all its links lead somewhere."""

import re
from html import unescape
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from refinecam_lib import paths
from refinecam_lib.reproduce import links
from refinecam_lib.reproduce.__main__ import main
from tests.browser import needs_chromium

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
FIRST = "# One?\n\n[all](../README.md#a-part) · [executed copy](../figures/reference/standard/notebooks/00_one.ipynb) · [two](01_two.ipynb)"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout: a README, two pages, two notebooks, an executed copy and the reader's own run of it."""
    places = {"ROOT": "", "NOTEBOOKS": "notebooks", "FIGURES": "figures", "REFERENCE": "figures/reference"}
    for name, place in places.items():
        (tmp_path / "house" / place).mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(paths, name, tmp_path / "house" / place)
    (paths.ROOT / "docs").mkdir()
    (paths.ROOT / "LICENSE").write_text("free")
    (paths.ROOT / "README.md").write_text(
        "# Home\n\n## A part\n\n[one](notebooks/00_one.ipynb), [found](docs/findings.md), [free](LICENSE), [dir](docs)"
    )
    (paths.ROOT / "docs" / "findings.md").write_text(
        "# What was found\n\n[home](../README.md#a-part) [adapting](adapting.md)"
    )
    (paths.ROOT / "docs" / "adapting.md").write_text("# Adapting\n\nA walrus is rare.")
    parameters = nbformat.v4.new_code_cell('profile: str = "standard"', metadata={"tags": ["parameters"]})
    for name, text in (("00_one", FIRST), ("01_two", "# Two?")):
        cells = [nbformat.v4.new_markdown_cell(text), parameters, nbformat.v4.new_code_cell("Explorer()")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), paths.NOTEBOOKS / f"{name}.ipynb")
    for folder, shown in ((paths.REFERENCE, "of the reference"), (paths.FIGURES, "of the reader")):
        book = nbformat.read(paths.NOTEBOOKS / "00_one.ipynb", as_version=4)
        data = {WIDGET: {"model_id": "a", "version_major": 2, "version_minor": 0}, "image/png": PIXEL}
        outputs = [nbformat.v4.new_output("display_data", data), nbformat.v4.new_output("stream", text=shown)]
        book.cells[2].outputs = outputs
        book.metadata["widgets"] = {STATE: {"version_major": 2, "version_minor": 0, "state": {"a": {}}}}
        (folder / "standard" / "notebooks").mkdir(parents=True)
        nbformat.write(book, folder / "standard" / "notebooks" / "00_one.ipynb")
    return tmp_path


def pages(folder):
    return {page.relative_to(folder).as_posix(): page.read_text(encoding="utf-8") for page in folder.rglob("*.html")}


def broken(folder):
    """Return the links of all pages that lead nowhere, and everything that would come from the network."""
    found = []
    for name, text in pages(folder).items():
        for kind, address in re.findall(r'<(a|link|script|img)\b[^>]*?\b(?:href|src)="([^"]*)"', text):
            parts = urlsplit(unescape(address))
            if parts.scheme or parts.netloc:
                found += [(name, address)] if kind != "a" and parts.scheme != "data" else []
                continue
            target = (folder / name).parent / unquote(parts.path) if parts.path else folder / name
            ids = target.suffix != ".html" or not parts.fragment or not target.exists()
            if not target.exists() or not (ids or f'id="{parts.fragment}"' in target.read_text(encoding="utf-8")):
                found.append((name, address))
    return found


def test_the_book_has_pages_notebooks_and_the_api_and_no_broken_link(checkout, capsys):
    book = checkout / "book"
    assert main(["book", "--to", str(book)]) == 0
    out = capsys.readouterr()
    assert "index.html is the book; open it in a browser" in out.out and out.err == ""
    site = pages(book)
    assert {"index.html", "api.html", "search.html", "docs/findings.html", "notebooks/01_two.html"} <= set(site)
    assert broken(book) == []
    one = site["notebooks/00_one.html"]
    assert "of the reference" in one and "executed copy" not in one and "Show the code" in one
    assert "<img" in one and WIDGET not in one and "require" not in one
    assert '<a class="next-page" href="01_two.html">' in one and 'class="prev-page"' in one
    assert "Keep the rows of correctly classified images" in site["api.html"]
    assert "walrus" in (book / "searchindex.js").read_text(encoding="utf-8"), "every word can be searched"


def test_the_reader_s_own_run_may_be_shown_and_a_second_book_replaces_the_first(checkout):
    book = checkout / "book"
    for options, shown in (([], "of the reference"), (["--own"], "of the reader")):
        assert main(["book", "--to", str(book), *options]) == 0
        assert shown in (book / "notebooks" / "00_one.html").read_text(encoding="utf-8")


def test_a_target_that_is_no_book_is_refused_and_left_alone(checkout, capsys):
    (checkout / "mine").mkdir()
    (checkout / "mine" / "letter.txt").touch()
    assert main(["book", "--to", str(checkout / "mine")]) == 2
    assert "Expected a new folder or one with a book, got " in capsys.readouterr().err
    assert (checkout / "mine" / "letter.txt").exists()
    assert main(["book", "--to", str(checkout / "mine" / "letter.txt")]) == 2
    assert "Expected a folder, new or not, got the file" in capsys.readouterr().err
    assert main(["book", "--to", str(checkout / "new"), "--profile", "papr"]) == 2
    assert "unknown profile 'papr'" in capsys.readouterr().err


def test_without_sphinx_it_says_what_to_install(checkout, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "refinecam_lib.reproduce.book", None)
    assert main(["book", "--to", str(checkout / "book")]) == 2
    assert "Install it: pip install -e '.[book]'" in capsys.readouterr().err


def test_links_of_an_executed_copy_lead_somewhere(checkout):
    folder = paths.REFERENCE / "standard" / "notebooks"
    links.mend_copies(folder)
    text = nbformat.read(folder / "00_one.ipynb", as_version=4).cells[0].source
    assert "](../../../../README.md#a-part)" in text and "[executed copy](00_one.ipynb)" in text
    assert "[two](../../../../notebooks/01_two.ipynb)" in text, "it has no executed copy"
    before = (folder / "00_one.ipynb").read_bytes()
    links.mend_copies(folder)
    assert (folder / "00_one.ipynb").read_bytes() == before
    assert (
        links.relink("[no](no.md) [web](https://a.b) `x`", folder, lambda path: "new")
        == "[no](no.md) [web](https://a.b) `x`"
    )


def test_every_link_of_the_repository_leads_somewhere():
    """Of the pages, the notebooks and their committed executed copies."""
    texts = [(page.parent, page.read_text(encoding="utf-8")) for page in paths.ROOT.glob("*.md")]
    texts += [(page.parent, page.read_text(encoding="utf-8")) for page in (paths.ROOT / "docs").glob("*.md")]
    for file in [*paths.NOTEBOOKS.glob("*.ipynb"), *paths.REFERENCE.glob("*/notebooks/*.ipynb")]:
        cells = nbformat.read(file, as_version=4).cells
        texts += [(file.parent, cell.source) for cell in cells if cell.cell_type == "markdown"]
    assert len(texts) > 200
    dead = [
        (folder, target) for folder, text in texts for target in links.targets(text) if not (folder / target).exists()
    ]
    assert dead == []


@pytest.mark.slow
def test_the_book_of_this_repository_has_no_warning_and_no_broken_link(tmp_path, capsys):
    assert main(["book", "--to", str(tmp_path / "book")]) == 0
    assert capsys.readouterr().err == "" and broken(tmp_path / "book") == []
    names = {f"notebooks/{path.stem}.html" for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb")}
    assert names == {name for name in pages(tmp_path / "book") if name.startswith("notebooks/")}


@pytest.mark.slow
@needs_chromium
def test_the_book_is_searched_and_read_in_a_browser_without_a_network(checkout, page):
    assert main(["book", "--to", str(checkout / "book")]) == 0
    page.send("Network.enable")
    page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    page.send("Page.navigate", url=f"file://{checkout}/book/search.html?q=walrus")
    page.until("""[...document.querySelectorAll("#search-results a")].some(a => a.innerText === "Adapting")""")
    for theme in ("light", "dark"):
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        for width in (1400, 420):
            page.resize(width, 1200)
            page.send("Page.navigate", url=f"file://{checkout}/book/notebooks/00_one.html")
            page.until("document.readyState === 'complete' && document.querySelectorAll('details').length === 2")
            assert page.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
            light = page.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
            assert light == (theme == "light")
    assert page.js("document.querySelector('details').innerText").strip() == "Show the code"
    assert not page.js("document.querySelector('details').open"), "code is folded"
