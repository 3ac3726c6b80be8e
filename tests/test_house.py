"""Rules for the repository: one pinned dependency list, stripped notebooks, no machine's path, no registry's host."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from refinecam_lib import __version__, paths
from refinecam_lib.paths import commit
from refinecam_lib.reproduce import __main__ as reproduce
from refinecam_lib.reproduce import codecheck, parameters, reference

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]


def requirements(*extras):
    listed = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in listed}


def pins():
    lines = (line.partition("#")[0].strip() for line in (paths.ROOT / "constraints.txt").read_text().splitlines())
    pairs = (line.partition("==") for line in lines if line)  # also "===", which allows no other build
    return {canonicalize_name(name): version.lstrip("=") for name, _, version in pairs}


def committed():
    """Yield name and text of files that are committed or will be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, done.stdout.split("\0")):
        try:
            yield name, (paths.ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # a picture, or a deletion not yet committed
            continue


def test_conda_installs_the_one_list_and_its_pins():
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "channels", "dependencies"}
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["--constraint constraints.txt", "-e .[dev]"]}
    makefile = (paths.ROOT / "Makefile").read_text()
    assert "-c constraints.txt -e '.[dev]'" in makefile


def test_the_one_list_is_pinned_and_its_pins_satisfy_it():
    every = requirements("notebooks", "book", "dev", "cluster")
    every.pop("refinecam-lib")
    unpinned = sorted(set(every) - set(pins()))
    assert not unpinned
    assert not [str(wanted) for name, wanted in every.items() if not wanted.specifier.contains(pins()[name])]
    assert all(re.fullmatch(r"[\d.]+(b\d+|post\d+)?", version) for version in pins().values())
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_library_alone_needs_no_notebook_packages():
    core = requirements()
    assert not core.keys() & {"jupyterlab", "papermill", "ipywidgets", "seaborn", "grad-cam", "pytest"}
    assert Requirement("refinecam-lib[notebooks]") in [Requirement(r) for r in PROJECT["optional-dependencies"]["dev"]]
    for unwanted in ("opencv", "hydra", "quantus"):
        assert not [name for name in requirements("notebooks", "dev", "cluster") if name.startswith(unwanted)]
    assert (paths.ROOT / "refinecam_lib" / "py.typed").exists()


def test_citation_and_licence_agree_with_the_package():
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__ and citation["license"] == PROJECT["license"] == "MIT"
    assert citation["preferred-citation"]["title"] == "How to Evaluate and Refine your CAM"
    assert (paths.ROOT / "LICENSE").read_text().startswith("MIT License")


# In pieces, so that this file passes its own test.
HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "download.py" + "torch.org",
    "conda." + "anaconda.org",
    "index" + "-url",
]
FOLDERS = "|".join(["wor" + "k", "tm" + "p", "roo" + "t", "op" + "t", "User" + "s"])


def forbidden(text):
    """Return the registries' hosts and machines' paths in a text."""
    found = [host for host in HOSTS if host in text]
    return found + [m[0] for m in re.finditer(rf"(?<![\w.~$}}/+-])/(?:{FOLDERS})/[\w.-]+", text)]


def test_no_file_names_a_registry_or_this_machine():
    assert forbidden("see " + "/tm" + "p/x and https://" + HOSTS[0]) == [HOSTS[0], "/tm" + "p/x"]
    found = {name: forbidden(text) for name, text in committed()}
    assert not {name: hits for name, hits in found.items() if hits}


def test_notebooks_are_stripped_and_begin_with_their_parameters():
    names = [path.name for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]
    books = [parameters.read_notebook(paths.NOTEBOOKS / name) for name in names]  # raises for a wrong parameters cell
    for book in books:
        content = json.loads(book.path.read_text(encoding="utf-8"))
        code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]], book.name
        assert book.title != book.name, f"{book.name} has no title"
        assert set(book.defaults) and book.defaults.get("profile", "standard") == "standard", book.name
    if books:
        for profile in parameters.profiles():
            parameters.parameters(books, profile)


def test_the_reference_is_what_its_manifest_says():
    for path in sorted(paths.REFERENCE.glob("*/manifest.json")):
        for name, entry in json.loads(path.read_text(encoding="utf-8"))["notebooks"].items():
            assert entry["status"] == "done", f"{path.parent.name}: {name}"
            for product, digest in entry["products"].items():
                assert hashlib.sha256((path.parent / product).read_bytes()).hexdigest() == digest, product
            executed = path.parent / "notebooks" / f"{name}.ipynb"
            assert executed.stat().st_size <= 1_000_000, f"{executed.name} is above 1 MB"
            assert '"output_type": "error"' not in executed.read_text(encoding="utf-8")


def test_executed_notebooks_of_the_reference_are_copies_of_todays():
    assert reference.outdated_reference() == []


def test_codecheck_lists_every_figure_and_table_of_the_reference(tmp_path, monkeypatch):
    assert codecheck.outdated() == []
    text = (paths.ROOT / "codecheck.yml").read_text(encoding="utf-8")
    listed = yaml.safe_load(text)
    assert text.startswith("---\n") and listed["version"].endswith("/config/2.0/")
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert len(listed["paper"]["authors"]) == len(citation["authors"]) and "2605.14641" in listed["paper"]["reference"]
    files = [item["file"] for item in listed["manifest"]]
    there = [path for kind in ("png", "csv") for path in paths.REFERENCE.glob(f"*/*.{kind}")]
    assert sorted(files) == sorted(path.relative_to(paths.ROOT).as_posix() for path in there)
    for command in {item["command"] for item in listed["manifest"]}:
        words = re.fullmatch(r'make reproduce ARGS="(.*)"', command)[1].split()
        assert reproduce.main([*words, "--list"]) == 0, command
    for folder in ("data", "figures"):  # in another checkout without figures the list is wrong
        (tmp_path / folder).mkdir()
    (tmp_path / "CITATION.cff").write_bytes((paths.ROOT / "CITATION.cff").read_bytes())
    (tmp_path / "codecheck.yml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "REFERENCE", tmp_path / "figures")
    assert "Write it: python -m refinecam_lib.reproduce codecheck" in codecheck.outdated()[0]
    assert reproduce.main(["codecheck"]) == 0 and codecheck.outdated() == []


def test_every_make_target_is_listed():
    done = subprocess.run(["make", "help"], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^make ([a-z-]+) ", done.stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (paths.ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert sorted(listed) == sorted(phony) and {"reproduce", "test", "lint", "bench", "lab", "clean"} <= set(listed)


def test_a_python_that_is_too_old_is_one_clear_line(tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    (tmp_path / "python").chmod(0o755)
    command = ["make", "-C", str(tmp_path), "-f", str(paths.ROOT / "Makefile"), f"PYTHON={tmp_path / 'python'}", "test"]
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("refinecam needs Python 3.11 or newer; ")
    assert "is Python 3.9.1. Give one: make PYTHON=" in done.stderr and not (tmp_path / ".venv").exists()


def test_the_commit_says_where_it_comes_from():
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?|unknown", commit())


def test_importing_what_a_notebook_imports_leaves_heavy_packages_alone():
    cell = json.loads((paths.NOTEBOOKS / "07_refinecam_benchmark.ipynb").read_text())["cells"][2]["source"]
    heavy = ("torchvision.models", "timm.models", "matplotlib.pyplot", "scipy.stats", "sklearn", "numba", "captum")
    code = "".join(cell) + f"\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    assert "refinecam_lib" in code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
