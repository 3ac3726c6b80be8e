"""Run the code of docs/adapting.md, which notebook 11 repeats, and of the README as it is written."""

import json
import re

import nbformat
import pytest
import torch
from PIL import Image
from pytorch_grad_cam import XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tiny_networks import LAYERS, batch, tiny_net

import refinecam_lib as rc
from refinecam_lib import paths
from refinecam_lib.refinement import to_map
from refinecam_lib.reproduce import __main__ as reproduce


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (paths.ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def registries():
    """Remove what a page adds to the registries."""
    before = set(rc.METHODS), set(rc.AGGREGATES)
    yield
    for registry, names in zip((rc.METHODS, rc.AGGREGATES), before):
        for name in set(registry) - names:
            del registry[name]


def test_the_page_on_adapting_runs_as_written(registries, capsys):
    page = {}
    for block in blocks("docs/adapting.md"):
        exec(block, page)  # noqa: S102 - the test is about the page's code
    assert "torch.Size([2, 1, 224, 224])" in capsys.readouterr().out
    assert page["rows"]["correct"].all() and page["rows"]["cosine"].between(0.1, 1).all()
    energy = page["table"]["mean"]
    assert energy["LayerCAM", "none"] < energy["LayerCAM", "product"] < 1 and energy["XGradCAM", "minimum"] > 0
    # The published method is well-conditioned on activations that are not negative.
    model, (inputs, target) = tiny_net(activation=torch.nn.ReLU), batch()
    ours = page["xgrad_cam"](rc.Capture(model, inputs, target, LAYERS))
    for name, raw in zip(LAYERS, ours):
        oracle = XGradCAM(model, [getattr(model, name)])
        theirs = oracle(inputs, [ClassifierOutputTarget(int(t)) for t in target])
        torch.testing.assert_close(to_map(raw, (48, 48)), torch.from_numpy(theirs), atol=2e-5, rtol=0)


def test_notebook_11_is_the_page():
    cells = nbformat.read(paths.NOTEBOOKS / "11_adapting.ipynb", as_version=4).cells
    code = [cell.source.strip() for cell in cells if cell.cell_type == "code"]
    assert code[1:-1] == [block.strip() for block in blocks("docs/adapting.md")]


def test_the_example_of_the_readme_runs_as_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it saves a picture
    (example,) = blocks("README.md")
    page = {}
    exec(example, page)  # noqa: S102 - as above
    assert page["explanation"].maps.shape == (1, 224, 224) and "ARCC ↑" in capsys.readouterr().out
    assert Image.open(tmp_path / "cat.png").size == (451, 300)


@pytest.mark.slow
def test_the_quickstart_takes_a_file_and_any_network_of_timm(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    monkeypatch.setattr(paths, "REFERENCE", tmp_path / "reference")
    Image.linear_gradient("L").save(tmp_path / "mine.png")
    mine = [f"own_picture={tmp_path / 'mine.png'}", "own_model=regnetx_002", "pretrained=false"]
    assert reproduce.main(["--only", "00", "--set", *mine]) == 0
    executed = (tmp_path / "standard" / "notebooks" / "00_quickstart.ipynb").read_text(encoding="utf-8")
    assert "mine.png, regnetx_002, random weights, class " in executed
    assert "tiger cat 0.39" in executed, "the first network keeps its ImageNet weights"
    manifest = json.loads((tmp_path / "standard" / "manifest.json").read_text())
    assert manifest["notebooks"]["00_quickstart"]["parameters"]["pretrained"] is False
    caption = Image.open(tmp_path / "standard" / "quickstart_own.png").text["Description"]
    assert "regnetx_002, random weights, GradCAM from " in caption
    assert "random weights" not in Image.open(tmp_path / "standard" / "quickstart.png").text["Description"]
    assert "image/png" in executed and "jupyter.widget" not in executed  # the explorer, as a picture
