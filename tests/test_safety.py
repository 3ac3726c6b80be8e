"""Data files are never run as code, and a notebook writes nothing outside its checkout."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import torchvision

from refinecam_lib import paths
from refinecam_lib.errors import InputError
from refinecam_lib.networks import checkpoints, zoo

UNSAFE_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_READERS = {"yaml.load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle", "joblib.load", "os.system"}


def dangers(source):
    """Yield (line, what) for each statement that could run code from a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in UNSAFE_IMPORTS:
                    yield node.lineno, f"import {name}"
        elif isinstance(node, ast.Call):
            called, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in UNSAFE_CALLS | UNSAFE_READERS or options.get("shell") == "True":
                yield node.lineno, called
            readers = ("load_url", "load_state_dict_from_url", "get_state_dict")
            if called.split(".")[-1] in readers or called == "torch.load":
                yield from (
                    ()
                    if options.get("weights_only") == "True"
                    else [(node.lineno, f"{called} without weights_only=True")]
                )
            if options.get("allow_pickle", "False") != "False":
                yield node.lineno, f"{called} with allow_pickle"


def test_no_code_from_data_files():
    assert [what for _, what in dangers("import pickle\ntorch.load(f)\nx.eval()\neval(y)\nnp.load(f, allow_pickle=True)")] == [
        "import pickle", "torch.load without weights_only=True", "eval", "np.load with allow_pickle",
    ]  # fmt: skip
    modules = sorted((paths.ROOT / "refinecam_lib").rglob("*.py"))
    found = {str(path): list(dangers(path.read_text(encoding="utf-8"))) for path in modules}
    parcels = found.pop(str(paths.ROOT / "refinecam_lib" / "sweeps" / "own.py"))
    assert [what for _, what in parcels] == ["import pickle", "import cloudpickle"], (
        "between a sweep's processes, no file"
    )
    assert len(found) > 60 and not {name: hits for name, hits in found.items() if hits}
    loads = [path.name for path in modules if re.search(r"(?<!safetensors\.)torch\.load\(", path.read_text("utf-8"))]
    assert loads == ["zoo.py", "loop.py"], "our own training state, and one third-party file"


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_that_is_a_pickle_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "ran"
    torch.save({"weight": Bomb(mark)}, tmp_path / "efficientnet_lite0.safetensors")
    digest = checkpoints.sha256_of(tmp_path / "efficientnet_lite0.safetensors")
    card = f'{{"model": "efficientnet_lite0", "classes": [], "sha256": "{digest}"}}'
    (tmp_path / "efficientnet_lite0.json").write_text(card)
    with pytest.raises(InputError, match="is not a safetensors file"):
        checkpoints.read_checkpoint(tmp_path / "efficientnet_lite0.safetensors")
    assert not mark.exists()


def test_imagenet_weights_are_read_as_tensors_alone(monkeypatch):
    asked = []

    def download(url, *arguments, **options):
        asked.append(options)
        return torchvision.models.resnet18().state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    zoo.MODELS["resnet18"].build(6, True)
    assert asked == [{"check_hash": True, "weights_only": True}]


def state(folder):
    """Return path -> (time of change, size) of every file below a folder, except git's and bytecode."""
    skipped = {".git", "__pycache__"}
    return {
        path: (found.st_mtime_ns, found.st_size)
        for path in folder.rglob("*")
        if not skipped & set(path.relative_to(folder).parts) and path.is_file() and (found := path.stat())
    }


@pytest.mark.slow
def test_a_notebook_writes_only_inside_the_checkout(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=paths.ROOT, capture_output=True, text=True, check=True
    ).stdout
    copy, home, temporary = (tmp_path / name for name in ("copy", "home", "temporary"))
    for name in filter(None, listed.split("\0")):
        if not name.startswith("figures/") and (paths.ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(paths.ROOT / name, copy / name)
    home.mkdir()
    temporary.mkdir()
    own = {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(copy), "PATH": os.environ["PATH"]}
    before = state(copy)
    command = [sys.executable, "-m", "refinecam_lib.reproduce", "--only", "05", "06"]
    command += ["--set", "n_images=2", "n_jobs=2", "image=0", "methods=LayerCAM,GradCAM++", "shown=LayerCAM"]
    done = subprocess.run(command, cwd=copy, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(home.rglob("*")), "nothing is written to the user's home"
    # Importing torch makes an empty folder there for a compiler that isn't used.
    assert not [path for path in temporary.rglob("*") if path.is_file()], "nothing temporary is left"
    changed = {path.relative_to(copy) for path, facts in state(copy).items() if before.get(path) != facts}
    assert {path.parts[0] for path in changed} == {".cache", "data", "figures"}
    assert {path.parts[:2] for path in changed if path.parts[0] == "data"} == {("data", "results")}
