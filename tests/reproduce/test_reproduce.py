"""The command line: it runs real notebooks, refuses bad input first, keeps products and compares the reference."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from refinecam_lib import paths
from refinecam_lib.datasets import photographs
from refinecam_lib.errors import InputError
from refinecam_lib.paths import commit
from refinecam_lib.reproduce import __main__ as reproduce
from refinecam_lib.reproduce import parameters, products, reference, runner, verify

PARAMETERS = 'profile: str = "standard"\nn_images: int = 4  # how many\nmethods: list = ["a", "b"]\nscale: float = 1.0\nfail: bool = False'
TABLE = """import pandas as pd
import refinecam_lib as rc
rows = pd.DataFrame({"image": [str(i) for i in range(n_images)], "method": "a", "value": [i * scale for i in range(n_images)]})
report = rc.Report("one", profile, n=f"{n_images} images")
report.rows(rows)
report.table(rows.groupby("method", as_index=False)["value"].mean())"""
FAIL = "if fail:\n    raise ZeroDivisionError('one\\ntwo')"


def write(folder, name, *cells, first=PARAMETERS):
    tagged = nbformat.v4.new_code_cell(first, metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_markdown_cell("# A claim\n\nProse."), tagged, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(book, folder / f"{name}.ipynb")


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Empty folders for notebooks and figures, for this process and for the kernels that it starts."""
    for name in ("NOTEBOOKS", "FIGURES"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
        monkeypatch.setenv(f"REFINECAM_{name}", str(tmp_path / name.lower()))
    monkeypatch.setattr(paths, "REFERENCE", paths.FIGURES / "reference")
    return tmp_path


def made(name):
    return paths.FIGURES / "standard" / name


def by_hand(name):
    return paths.FIGURES / "interactive" / "standard" / name


def test_products_manifest_report_and_the_reference(house, capsys):
    show = "import warnings\nfrom refinecam_lib import paths\nwarnings.warn('careful')"
    show += "\nprint(paths.ROOT / 'README.md')"
    write(paths.NOTEBOOKS, "01_one", TABLE, FAIL, show)
    assert reproduce.main([]) == 0
    out = capsys.readouterr().out
    assert "1 not compared: it is not in the reference" in out
    assert out.splitlines()[-2:] == [
        "notebooks: 1 passed, 0 failed",
        "done: no table was compared with a reference, and no row was measured again",
    ]
    entry = json.loads(made("manifest.json").read_text())["notebooks"]["01_one"]
    assert entry["status"] == "done" and entry["parameters"]["n_images"] == 4 and entry["commit"] == commit()
    assert sorted(entry["products"]) == ["rows_one.parquet", "table_one.csv", "table_one.md", "table_one.tex"]
    executed = made("notebooks/01_one.ipynb").read_text()
    assert "papermill" not in executed and '"README.md\\n"' in executed and "ipykernel/" in executed
    assert not any(str(path) in executed for path in (paths.ROOT, Path.home(), Path(tempfile.gettempdir(), "ipyk")))
    files = [*entry["products"], "manifest.json", "notebooks", "report.txt"]
    assert sorted(path.name for path in made("").iterdir()) == sorted(files)
    report = made("report.txt").read_text()
    assert all(str(made(file)) in report for file in entry["products"]) and "\nVERSIONS\npython 3." in report

    assert reproduce.main(["accept"]) == 0
    kept = sorted(path.name for path in (paths.REFERENCE / "standard").iterdir())
    assert kept == ["manifest.json", "notebooks", "table_one.csv", "table_one.md", "table_one.tex"], "without rows"
    assert "rows_one.parquet" not in (paths.REFERENCE / "standard" / "manifest.json").read_text()
    assert list(reference.compared("standard", ["01_one"])) == [("table_one.csv", "agrees", "identical")]
    capsys.readouterr()
    assert reproduce.main(["--set", "n_images=2", "--only", "1"]) == 0
    assert "1 not compared: n_images = 2, not 4 as in the reference" in capsys.readouterr().out
    made("manifest.json").write_text((paths.REFERENCE / "standard" / "manifest.json").read_text())
    text = "largest difference 1 at a, value: '0.5' here, '1.5' in the reference"
    assert list(reference.compared("standard", ["01_one"])) == [("table_one.csv", "differs", text)]
    made("table_one.csv").unlink()
    assert [table.state for table in reference.compared("standard", ["01_one"])] == ["differs"]


def test_a_run_by_hand_leaves_the_runners_products_alone(house, monkeypatch):
    write(paths.NOTEBOOKS, "01_one", TABLE)
    assert reproduce.main([]) == 0
    before = made("table_one.csv").read_bytes()
    monkeypatch.delenv(products.PRODUCTS, raising=False)
    products.Report("one").table(pd.DataFrame({"value": [9]}))
    assert made("table_one.csv").read_bytes() == before and by_hand("table_one.csv").read_text() == "value\n9\n"


def break_product(folder):
    (folder / "table_one.csv").write_text("method,value\na,1.6\n")


def lose_product(folder):
    (folder / "table_one.md").unlink()


def lose_copy(folder):
    (folder / "notebooks" / "01_one.ipynb").unlink()


def edit_source(folder):
    write(paths.NOTEBOOKS, "01_one", TABLE.replace("mean()", "max()"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_product, "table_one.csv with the sha256 "),
        (lose_product, "table_one.md as 01_one made it, but the file is missing. "),
        (lose_copy, "01_one.ipynb as 01_one made it, but the file is missing. "),
        (edit_source, "01_one.ipynb to have the cells of today's 01_one.ipynb, but they differ"),
    ],
)
def test_only_what_a_run_made_becomes_the_reference(house, capsys, change, words):
    write(paths.NOTEBOOKS, "01_one", TABLE)
    assert reproduce.main(["--set", "n_images=3"]) == 0
    change(made(""))
    capsys.readouterr()
    assert reproduce.main(["accept"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Expected ") and words in error and error.count("\n") == 1
    assert error.endswith('Run it again: make reproduce ARGS="--only 01".\n') and not paths.REFERENCE.exists()


def test_executed_copies_of_other_sources_are_named(house, capsys):
    write(paths.NOTEBOOKS, "01_one", "x = 1")
    write(paths.NOTEBOOKS, "02_two", "x = 1")
    assert reproduce.main(["--set", "n_images=3"]) == 0
    assert "injected-parameters" in made("notebooks/01_one.ipynb").read_text()
    assert reference.outdated(made("notebooks")) == []
    assert reproduce.main(["accept"]) == 0 and reproduce.main(["check"]) == 0
    write(paths.NOTEBOOKS, "02_two", "x = 2")
    capsys.readouterr()
    assert reference.outdated(made("notebooks")) == ["02_two"] and reproduce.main(["check"]) == 3
    assert 'but 02_two differ. Run and accept them: make reproduce ARGS="--only 02", then' in capsys.readouterr().err
    (paths.NOTEBOOKS / "01_one.ipynb").unlink()
    assert reference.outdated(made("notebooks")) == ["01_one", "02_two"]


def test_another_result_with_the_same_parameters_is_exit_code_3(house, capsys):
    write(paths.NOTEBOOKS, "01_one", TABLE)
    kept = paths.REFERENCE / "standard"
    kept.mkdir(parents=True)
    (kept / "table_one.csv").write_text("method,value\na,1.6\n")
    assert reproduce.main([]) == 3
    out = capsys.readouterr().out
    assert "DIFFERS: table_one.csv: largest difference 0.1 at a, value" in out
    assert out.endswith("\nDIFFERS (exit code 3): 1 table differs from the reference\n")


def test_a_failure_leaves_others_and_earlier_results_alone(house, capsys):
    write(paths.NOTEBOOKS, "01_one", TABLE, FAIL)
    write(paths.NOTEBOOKS, "02_two", "x = 1", first='profile: str = "standard"')
    assert reproduce.main(["--only", "1"]) == 0
    before = made("table_one.csv").read_bytes(), made("notebooks/01_one.ipynb").read_bytes()
    assert reproduce.main(["--set", "fail=true", "scale=9"]) == 1
    assert (made("table_one.csv").read_bytes(), made("notebooks/01_one.ipynb").read_bytes()) == before
    assert made("notebooks/01_one.failed.ipynb").exists() and made("notebooks/02_two.ipynb").exists()
    out, err = capsys.readouterr()
    failed = made("notebooks/01_one.failed.ipynb")
    assert "notebooks: 1 passed, 1 failed" in out
    line = f"01_one: cell 5 of {failed}: ZeroDivisionError: one"
    assert f"error: {line}\n" in err and f"failed    {line[:100]}" in out and line[8:] in made("report.txt").read_text()
    assert out.endswith("\nFAILED (exit code 1): 1 of 2 notebooks failed\n")
    entries = json.loads(made("manifest.json").read_text())["notebooks"]
    assert entries["01_one"]["status"] == "failed" and entries["01_one"]["parameters"]["scale"] == 1.0
    assert entries["02_two"]["status"] == "done"
    assert reproduce.main(["accept"]) == 2 and "01_one" in capsys.readouterr().err


MEET = """
import time
from pathlib import Path
from refinecam_lib import paths
Path(paths.FIGURES, f"{mine}.here").touch()
end = time.monotonic() + 60
while not Path(paths.FIGURES, f"{other}.here").exists():
    assert time.monotonic() < end, "the other never came"
    time.sleep(0.05)
import pandas as pd
import refinecam_lib as rc
rc.Report(mine).table(pd.DataFrame({"name": [mine]}))"""


def test_notebooks_run_at_once_and_keep_their_products_apart(house, capsys):
    write(paths.NOTEBOOKS, "01_one", MEET, first='mine: str = "one"\nother: str = "two"')
    write(paths.NOTEBOOKS, "02_two", MEET, first='mine: str = "two"\nother: str = "one"')
    assert reproduce.main(["--at-once", "2"]) == 0
    assert "2 of 2 notebooks, 4 of 4 cells, 0:" in capsys.readouterr().err
    report = made("report.txt").read_text()
    assert report.index("table_one") < report.index("table_two")
    entries = json.loads(made("manifest.json").read_text())["notebooks"]
    assert {name: min(entry["products"]) for name, entry in entries.items()} == {
        "01_one": "table_one.csv",
        "02_two": "table_two.csv",
    }


def test_a_runner_that_is_killed_is_a_failure_of_its_notebook_alone(house, capsys):
    write(paths.NOTEBOOKS, "01_one", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    write(paths.NOTEBOOKS, "02_two", "x = 1")
    assert reproduce.main(["--at-once", "2"]) == 1
    out, err = capsys.readouterr()
    assert "error: 01_one: its process died; did it run out of memory?\n" in err
    assert "notebooks: 1 passed, 1 failed" in out


def test_bad_input_inside_a_notebook_is_exit_code_2(house):
    write(
        paths.NOTEBOOKS, "01_one", "from refinecam_lib.errors import one_of\none_of('model', 'resnt18', ['resnet18'])"
    )
    command = [sys.executable, "-m", "refinecam_lib.reproduce"]
    done = subprocess.run(command, cwd=paths.ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "\nerror: 01_one: unknown model 'resnt18'. Did you mean 'resnet18'?" in done.stderr
    assert "Traceback" not in done.stderr and "notebooks: 0 passed, 1 failed" in done.stdout
    assert done.stdout.endswith("\nBAD INPUT (exit code 2): 1 of 1 notebook failed\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--set", "n_image=3"], "unknown parameter 'n_image'. Did you mean 'n_images'?"),
        (["--set", "n_images=3.5"], "Expected a value of type int for parameter n_images, got 3.5."),
        (["--set", "fail=maybe"], "Expected a value of type bool for parameter fail, got 'maybe'."),
        (["--set", "profile=paper"], "unknown parameter 'profile'."),
        (["--set", "n_images"], "Expected --set name=value, got 'n_images'."),
        (["--profile", "standart"], "unknown profile 'standart'. Did you mean 'standard'?"),
        (["--profile", "paper"], "unknown parameter in paper.yaml, 01_one, 'n_imags'. Did you mean 'n_images'?"),
        (["--only", "01_on"], "unknown notebook '01_on'. Did you mean '01_one'?"),
        (["--at-once", "0"], "Expected 1 notebook or more after --at-once, got 0. "),
        (["--verify", "-1"], "argument --verify/--minutes: Expected minutes of 0 or more, got -1. "),
        (["--verify", "nan"], "argument --verify/--minutes: Expected minutes of 0 or more, got nan. "),
        (["--verify", "long"], "argument --verify/--minutes: Expected minutes of 0 or more, got long. "),
        (["--seed", "-1"], "argument --seed: Expected a whole number of 0 or more, got -1. "),
        (["verify", "--minutes", "0"], "Expected minutes above 0 after --minutes, got 0. "),
        (["verify"], "Expected notebooks that measure rows, got 01_one. "),
        (["--list", "--fresh"], "argument --fresh: not allowed with argument --list"),
        (["verify", "--fresh"], "unrecognized arguments: --fresh"),
        (["acept"], "argument COMMAND: invalid choice: 'acept'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["accept"], "Expected a run of profile standard to accept, found none. Run it first: make reproduce."),
    ],
)
def test_bad_input_is_refused_before_anything_runs(house, capsys, arguments, line):
    write(paths.NOTEBOOKS, "01_one", "raise SystemExit")
    (paths.NOTEBOOKS / "paper.yaml").write_text("01_one:\n  n_imags: 1000\n")
    assert reproduce.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {line}") and err.count("\n") == 1 and out == ""
    assert not list(paths.FIGURES.iterdir())


def test_parameters_by_profile_and_by_hand(house, capsys, monkeypatch):
    write(paths.NOTEBOOKS, "01_one", "x = 1")
    write(paths.NOTEBOOKS, "02_two", "x = 1", first="weights: str | None = None\nscale: float = 2.0")
    (paths.NOTEBOOKS / "large.yaml").write_text("all:\n  scale: 3\n01_one:\n  n_images: 100\n")
    books = parameters.find_notebooks()
    values = parameters.parameters(books, "large", ["methods=x,y", "weights=here"])
    one = {"profile": "large", "n_images": 100, "methods": ["x", "y"], "scale": 3.0, "fail": False}
    assert values == {"01_one": one, "02_two": {"weights": "here", "scale": 3.0}}
    assert parameters.parameters(books, "standard", ["methods=['x']"])["01_one"]["methods"] == ["x"]
    (house / "mine.png").touch()
    monkeypatch.chdir(house)
    files = [
        parameters.parameters(books, "standard", [f"weights={text}"])["02_two"]["weights"] for text in ("mine.png", "a")
    ]
    assert files == [str(house / "mine.png"), "a"], "a notebook finds a file of this folder"
    assert reproduce.main(["--list", "--profile", "large"]) == 0
    assert "01_one: A claim\n" in (out := capsys.readouterr().out) and "    n_images: int = 100\n" in out


def test_a_notebook_needs_its_parameters_first(house, capsys):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell("x = 1")]
    nbformat.write(book, paths.NOTEBOOKS / "01_one.ipynb")
    assert reproduce.main(["--list"]) == 2
    assert "01_one.ipynb has 0 cells tagged 'parameters'" in capsys.readouterr().err
    write(paths.NOTEBOOKS, "01_one", first="n: int = len('abc')")
    assert reproduce.main(["--list"]) == 2
    assert "01_one.ipynb, parameter n: its default is not a literal" in capsys.readouterr().err
    write(paths.NOTEBOOKS, "01_one", first="profile: str = 'standard'\nn: int =")
    assert reproduce.main(["--list"]) == 2
    assert "notebook 01_one.ipynb, line 2 of its parameters: invalid syntax" in capsys.readouterr().err


def test_links_of_executed_copies_lead_somewhere_after_a_run_and_after_accept(house):
    (house / "README.md").touch()
    write(paths.NOTEBOOKS, "01_one", "1")
    book = nbformat.read(paths.NOTEBOOKS / "01_one.ipynb", as_version=4)
    book.cells[0].source += "\n\n[all](../README.md#notebooks) [me](01_one.ipynb)"
    nbformat.write(book, paths.NOTEBOOKS / "01_one.ipynb")
    assert reproduce.main(["--minutes", "0"]) == 0
    text = nbformat.read(made("notebooks/01_one.ipynb"), as_version=4).cells[0].source
    assert "[all](../../../README.md#notebooks) [me](01_one.ipynb)" in text
    assert reproduce.main(["accept"]) == 0
    text = nbformat.read(paths.REFERENCE / "standard" / "notebooks" / "01_one.ipynb", as_version=4).cells[0].source
    assert "[all](../../../../README.md#notebooks) [me](01_one.ipynb)" in text


def test_saved_files_depend_on_the_content_alone(house):
    table = pd.DataFrame({"method": ["A_1", "B"], "score": [0.123456, np.nan], "text": ["**.55 ± .30**", "5 %"]})
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    contents = []
    for _ in range(2):
        report = products.Report("f", n="2 images")
        shown = report.table(table, "t")
        report.figure(figure)
        contents.append({path.name: path.read_bytes() for path in by_hand("").iterdir()})
    plt.close(figure)
    assert sorted(contents[0]) == ["f.pdf", "f.png", "t.csv", "t.md", "t.tex"] and contents[0] == contents[1]
    assert "**" not in shown.to_html() and "font-weight: bold" in shown.to_html() and report.caption in shown.to_html()
    assert report.table(table[["method", "score"]], "u").equals(table[["method", "score"]]), "a plain table stays"
    assert b"CreationDate" not in contents[0]["f.pdf"] and b"Software" not in contents[0]["f.png"]
    assert by_hand("t.csv").read_text() == "method,score,text\nA_1,0.123456,.55 ± .30\nB,,5 %\n"
    assert by_hand("t.md").read_text().splitlines()[2] == "| A_1 | 0.12 | **.55 ± .30** |"
    assert r"A\_1 & 0.12 & \textbf{.55 $\pm$ .30} \\" in by_hand("t.tex").read_text()
    with pytest.raises(InputError, match="Expected a pandas DataFrame, got a dict"):
        report.table({})
    with pytest.raises(InputError, match="Expected a matplotlib Figure, got a DataFrame"):
        report.figure(table)
    with pytest.raises(InputError, match="Expected a name of letters"):
        report.table(table, "../t")


def test_a_report_makes_the_networks_of_its_kernel_faster():
    code = "import refinecam_lib as rc; from refinecam_lib.networks import layers, memory; "
    code += (
        "print(layers._fast_pointwise, memory.keeps()); rc.Report('x'); print(layers._fast_pointwise, memory.keeps())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, after = done.stdout.splitlines()
    assert before == "False False" and after in ("True True", "True False")  # only glibc keeps memory
    assert after == "True True" or platform.libc_ver()[0] != "glibc"


def test_the_caption_says_what_a_product_was_made_from():
    assert products.Report("x", n="1,000 scenes").caption == f"profile standard, n = 1,000 scenes, commit {commit()}"
    rows = pd.DataFrame(
        {"model": list("aabb"), "image": list("xyxy"), "status": "ok", "correct": [True, True, True, False]}
    )
    rows = pd.concat([rows.assign(method="LIME"), rows[:1].assign(method="ScoreCAM")]).assign(dataset="toy")
    words = products.Report("x", "standard", "convention paper", rows=rows).caption
    assert words == (
        "profile standard, n = 2 images (1 for ScoreCAM; ScoreCAM not on b), 0 of 5 rows failed, "
        f"3 of 4 classifications correct and kept, toy, a, b, convention paper, commit {commit()}"
    )
    assert "classifications" not in products.Report("x", rows=rows, every_class=True).caption


@pytest.mark.parametrize("home", ["/", "/somebody"])
def test_an_executed_copy_names_no_folder_of_this_machine_and_keeps_its_pictures(tmp_path, monkeypatch, home):
    monkeypatch.setattr(runner.Path, "home", lambda: Path(home))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    data = {"image/png": "iVB/somebody/abc/+d", "text/plain": f"/somebody/x.png {tmp_path}{os.sep}data"}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    book.cells[0].outputs = [nbformat.v4.new_output("display_data", data)]
    copy = tmp_path / "copy.ipynb"
    nbformat.write(book, copy)
    text = runner._without_traces(copy, tmp_path / "products", tmp_path / "figures")
    kept = nbformat.reads(text, as_version=4).cells[0].outputs[0]["data"]
    assert kept["image/png"] == data["image/png"]
    assert kept["text/plain"] == ("/somebody/x.png data" if home == "/" else "~/x.png data")


def test_folders_by_environment_variables_may_be_relative_or_at_home(tmp_path):
    code = "from refinecam_lib import paths; print(paths.RESULTS, paths.FIGURES, paths.REFERENCE, sep='\\n')"
    given = os.environ | {"REFINECAM_RESULTS": "kept", "REFINECAM_FIGURES": "~/drawn", "HOME": str(tmp_path / "me")}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env=given, capture_output=True, text=True
    )
    reference = paths.ROOT / "figures" / "reference"  # figures may go elsewhere, the reference stays
    assert done.stdout.splitlines() == [str(tmp_path / "kept"), str(tmp_path / "me" / "drawn"), str(reference)]


def test_a_notebook_finds_relative_folders_where_the_runner_does(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {"REFINECAM_RESULTS": "kept", "IMAGES_ROOT": "mine", "WALDO_ROOT": "crowd"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code = "import os; from refinecam_lib import paths; print(paths.RESULTS, *map(os.environ.get, ['IMAGES_ROOT', 'WALDO_ROOT']))"
    with runner._environment(tmp_path / "products"):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, check=True, cwd=tmp_path / "notebooks", capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "kept"), str(tmp_path / "mine"), "crowd"]
    assert {name: os.environ[name] for name in given} == given


def test_tables_are_compared_cell_by_cell(tmp_path):
    def compared(cell, other, columns="method,score,seconds"):
        (tmp_path / "a.csv").write_text(f"{columns}\nLayerCAM,{cell},1\n")
        (tmp_path / "b.csv").write_text(f"method,score,seconds\nLayerCAM,{other},2\n")
        return reference.compare_tables(tmp_path / "a.csv", tmp_path / "b.csv")

    def agrees(*given):
        return compared(*given).state == "agrees"

    assert compared("0.5", "0.5") == ("a.csv", "agrees", "identical")
    assert agrees("0.504", "0.5") and not agrees("0.506", "0.5")
    assert agrees(".37 ± .29", ".38 ± .29") and not agrees(".37 ± .29", ".39 ± .29")
    assert not agrees("24", "25") and agrees("1000.5", "1001")
    assert not agrees("holds", "fails") and not agrees("", "0.5")
    assert not agrees("0.5", "0.5", "method,scores,seconds")
    text = "largest difference 0.1 at LayerCAM, score: '0.6' here, '0.5' in the reference"
    assert compared("0.6", "0.5") == ("a.csv", "differs", text)


def test_rows_are_saved_for_the_reader(house):
    rows = pd.DataFrame({"image": range(3), "value": np.linspace(0, 1, 3)})
    products.Report("x").rows(rows)
    pd.testing.assert_frame_equal(pd.read_parquet(by_hand("rows_x.parquet")), rows)


def test_a_profile_can_be_for_some_notebooks_only(house, capsys):
    write(paths.NOTEBOOKS, "01_one", "x = 1")
    write(paths.NOTEBOOKS, "02_two", "x = 1")
    (paths.NOTEBOOKS / "few.yaml").write_text('only: ["02"]\n02_two: {n_images: 7}\n')
    assert reproduce.main(["--list", "--profile", "few"]) == 0
    assert "01_one" not in (out := capsys.readouterr().out) and "n_images: int = 7" in out
    assert reproduce.main(["--list", "--profile", "few", "--only", "1"]) == 0
    assert "01_one" in capsys.readouterr().out
    (paths.NOTEBOOKS / "few.yaml").write_text("only: 2\n")
    assert reproduce.main(["--list", "--profile", "few"]) == 2
    assert "and 'only', a list of notebooks' numbers" in capsys.readouterr().err


class Verified:
    """Replaces `verify` and the notebooks' shards, and notes what is asked."""

    def __init__(self, monkeypatch, ok=True):
        self.asked, self.ok = [], ok
        monkeypatch.setattr(reproduce, "planned", lambda notebooks, values: ["shard"])
        monkeypatch.setattr(verify, "stored", lambda shards: {"committed": 36, "local": 0, "missing": 4})
        monkeypatch.setattr(verify, "prove", lambda *asked: self.answer(*asked))
        monkeypatch.setattr(verify, "compared", lambda *asked: self.answer("compared", *asked))

    def answer(self, *asked):
        self.asked.append(asked)
        return verify.Proof(("12 rows measured again",), ("image 3: 0.5 here",), self.ok)


def test_a_sample_of_rows_is_measured_again_unless_a_notebook_failed(house, capsys, monkeypatch):
    write(paths.NOTEBOOKS, "01_one", TABLE, FAIL)
    verified = Verified(monkeypatch)
    assert reproduce.main(["--verify", "0.5", "--seed", "7"]) == 0 and verified.asked == [(["shard"], 0.5, 7)]
    out = capsys.readouterr().out
    assert "36 read from data/rows, 0 from your earlier runs, 4 measured now" in out
    assert "measured  12 rows measured again\n" in out and "image 3" in made("report.txt").read_text()
    assert reproduce.main(["--set", "fail=true"]) == 1 and len(verified.asked) == 1
    assert reproduce.main(["--verify", "0"]) == 0 and len(verified.asked) == 1
    verified.ok = False
    capsys.readouterr()
    assert reproduce.main([]) == 3 and verified.asked[1][1] == 3.0
    assert capsys.readouterr().out.endswith(
        "\nDIFFERS (exit code 3): rows measured again differ from the committed ones\n"
    )


def test_a_sample_alone_is_drawn_by_its_seed_and_counted_for_ci(house, capsys, monkeypatch):
    write(paths.NOTEBOOKS, "01_one", "raise SystemExit")
    verified = Verified(monkeypatch)
    assert reproduce.main(["verify", "--verify", "1", "--seed", "7"]) == 0
    assert verified.asked == [(["shard"], 1.0, 7)] and not made("notebooks").exists()
    out = capsys.readouterr().out
    assert "12 rows measured again\n" in out and "\nsamples: 1 passed, 0 failed\n" in out
    assert "image 3: 0.5 here" in made("verify.txt").read_text()
    verified.ok = False
    assert reproduce.main(["verify"]) == 3 and "\nsamples: 0 passed, 1 failed\nDIFFERS" in capsys.readouterr().out
    seeds = {reproduce.main(["verify"]) and verified.asked[-1][2] for _ in range(5)}
    assert len(seeds) > 1, "each call draws another sample"


def test_a_fresh_run_tells_its_kernels_and_compares_all_rows(house, capsys, monkeypatch):
    write(paths.NOTEBOOKS, "01_one", TABLE, "import os\nassert os.environ['REFINECAM_FRESH'] == '1'")
    verified = Verified(monkeypatch)
    monkeypatch.setenv(paths.FRESH, "")  # restored after the test
    assert reproduce.main(["--fresh"]) == 0 and verified.asked == [("compared", ["shard"])]
    assert "40 measured in this run" in capsys.readouterr().out


def test_the_runner_passes_on_every_folder_that_a_source_of_photographs_has():
    assert set(photographs.ROOTS.values()) <= set(runner.FOLDERS)


def test_a_checkout_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "file" / "figures")
    monkeypatch.delenv("REFINECAM_PRODUCTS", raising=False)
    words = "cannot be written: Not a directory. REFINECAM_FIGURES moves figures and tables to another folder, "
    assert reproduce.main(["--only", "00"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    with pytest.raises(InputError, match=words):
        products.Report("fig1", "standard").table(pd.DataFrame({"x": [1]}))
