"""The explorer in a real browser: JupyterLab on localhost, its controls driven in headless Chromium."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from PIL import Image

from refinecam_lib import paths
from tests.browser import needs_chromium

pytestmark = [pytest.mark.slow, needs_chromium]


CONTROL = '[...document.querySelectorAll(".widget-inline-hbox")].find(c => c.innerText.trim().startsWith("%s"))'
TABLE = """(() => {
    const texts = [...document.querySelectorAll(".jp-OutputArea .widget-html-content")].map(e => e.innerText);
    return [texts.find(t => t.includes(" predicts ")), texts.find(t => t.includes("made of"))].join(" ");
})()"""
STATUS = '[...document.querySelectorAll(".widget-html-content")].map(e => e.innerText).join(" | ").slice(0, 400)'
IDLE = '[...document.querySelectorAll("button")].find(b => b.innerText.trim() === "stop").disabled'
IMAGES = '[...document.querySelectorAll(".jp-OutputArea img")].map(i => i.src)'
OVERFLOW = """[...document.querySelectorAll(".jp-OutputArea-output .jupyter-widgets")]
    .filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).map(e => e.className)"""


def choose(page, label, option):
    """Choose an option of the dropdown with this label, as a user does."""
    assert page.js(f"""(() => {{
        const select = {CONTROL % label}.querySelector("select");
        const option = [...select.options].find(o => o.text.startsWith({json.dumps(option)}));
        if (!option) return false;
        select.value = option.value;
        select.dispatchEvent(new Event("change", {{bubbles: true}}));
        return true;
    }})()"""), f"no {option!r} in {label!r}"


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab that serves a notebook with the explorer; yields its address."""
    cell = nbformat.v4.new_code_cell("import refinecam_lib as rc\n\nrc.explore()")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", f"--notebook-dir={tmp_path}"]
    options += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--IdentityProvider.token="]
    options += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    home = {
        name: str(tmp_path / "jupyter") for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    environment = os.environ | home | {"PYTHONPATH": str(paths.ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    environment |= {"REFINECAM_FIGURES": str(tmp_path / "figures")}
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api", timeout=5):
                    break
                assert server.poll() is None, (tmp_path / "lab.log").read_text()
                time.sleep(0.1)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def test_the_explorer_answers_in_a_browser(lab, page, tmp_path):
    page.send("Page.navigate", url=f"{lab}/lab/tree/explorer.ipynb")
    page.until('!!window.jupyterapp && !!document.querySelector(".jp-CodeCell")')
    page.until("""[...window.jupyterapp.shell.widgets("main")].some(
        w => w.sessionContext?.session?.kernel?.status === "idle" && (window.jupyterapp.shell.activateById(w.id), true)
    )""")
    page.js("window.jupyterapp.commands.execute('notebook:run-all-cells'); 0")  # does not wait for the cells
    page.until(f'{TABLE}.includes("ARCC") && {IMAGES}.length === 7', 180)
    assert page.js(TABLE).startswith("chelsea: efficientnet_lite0 predicts tiger cat")
    tables, pictures = [page.js(TABLE)], [page.js(IMAGES)]

    def changed(what):
        took = page.until(f"{TABLE} !== {json.dumps(tables[-1])} && {IDLE}")  # title and table change one by one
        tables.append(page.js(TABLE))
        pictures.append(page.js(IMAGES))
        print(f"{what}: {took:.2f} s")

    choose(page, "method", "LayerCAM")
    changed("another method")
    assert "LayerCAM from layer blocks.1" in tables[-1] and pictures[-1][1:3] != pictures[-2][1:3]
    choose(page, "from layer", "2:")
    changed("a deeper layer")
    page.until(f"{IMAGES}.length === 5")  # two factors less
    choose(page, "2nd aggregate", "geometric")
    changed("another aggregate")
    choose(page, "2nd method", "HiResCAM")
    changed("a second method")
    choose(page, "2nd method", "the")  # ipywidgets writes spaces as no-break spaces
    changed("one method")
    choose(page, "picture", "coffee")
    changed("another picture")
    assert "predicts espresso" in tables[-1] and pictures[-1][0] != pictures[-2][0]
    upload = tmp_path / "mine.png"
    Image.linear_gradient("L").resize((300, 260)).save(upload)
    page.js("HTMLInputElement.prototype.click = function () { window.chooser = this; }; 0")  # instead of a dialogue
    page.click("your picture")
    chooser = page.send("Runtime.evaluate", expression="window.chooser")["result"]["objectId"]
    page.send("DOM.setFileInputFiles", objectId=chooser, files=[str(upload)])
    changed("an upload")
    assert tables[-1].startswith("mine.png: ")
    choose(page, "picture", "coffee")
    changed("back")
    choose(page, "class", "cup")
    changed("another class")
    assert "predicts espresso" in tables[-1] and "explained: cup" in tables[-1]
    page.js("""(() => {
        const search = document.querySelector("input[placeholder='search all classes']");
        search.value = "teapot (849)";
        search.dispatchEvent(new Event("input", {bubbles: true}));
        search.dispatchEvent(new Event("change", {bubbles: true}));
    })()""")
    changed("a class of all")
    assert "explained: teapot" in tables[-1]
    choose(page, "convention", "paper")
    changed("another convention")
    assert "[849]" in page.js('document.querySelector("textarea").value')
    page.send("Emulation.setFocusEmulationEnabled", enabled=True)  # only a page with the focus reads the clipboard
    page.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    copied = 'document.querySelector("button[data-code]").dataset.code'  # widgets change one by one
    page.until(f"""{copied}.includes("'paper'") && {copied} === document.querySelector("textarea").value""")
    page.click("copy code")
    assert page.js("navigator.clipboard.readText()") == page.js('document.querySelector("textarea").value')
    page.until("""[...document.querySelectorAll("button")].some(b => b.innerText === "copied")""")
    page.click("save picture")
    page.until(f'{STATUS}.includes("saved ")', 20)
    assert list((tmp_path / "figures").rglob("coffee*.png"))

    choose(page, "method", "ScoreCAM")
    page.until(f'{STATUS}.includes("images through the network")')
    page.screenshot(tmp_path / "progress.png")
    page.click("stop")
    page.until(f'{STATUS}.includes("stopped after")', 10)
    assert "ScoreCAM" not in page.js(TABLE)
    choose(page, "method", "HiResCAM")
    changed("another method after a stop")
    assert len(set(tables)) == len(tables) - 2  # `one method` and `back` repeat a table

    choose(page, "picture", "chelsea")
    choose(page, "from layer", "0:")
    page.until(f'{IMAGES}.length === 7 && {TABLE}.startsWith("chelsea")')
    page.js("window.jupyterapp.commands.execute('application:toggle-left-area'); 0")
    for theme in ("Light", "Dark"):
        page.js(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        for width, height in ((1400, 1500), (420, 2400)):
            page.resize(width, height)
            page.until(f"{OVERFLOW}.length === 0", 20)  # nothing is too wide
            page.screenshot(tmp_path / f"{theme.lower()}_{width}.png")
