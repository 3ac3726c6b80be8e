"""Notebooks measure what their plans say, and the command line measures it and tells what is done."""

import ast
import inspect
import json
import re

import pandas as pd
import pytest
from toys import SPEC, Toy, write_checkpoint

from refinecam_lib import paths
from refinecam_lib.errors import InputError, Stopped
from refinecam_lib.explanation import BASE, CAMS, OTHERS, REFINED, SLOW, TRIVIAL, Variant
from refinecam_lib.networks import zoo
from refinecam_lib.paths import commit
from refinecam_lib.refinement import AGGREGATES
from refinecam_lib.reproduce import parameters
from refinecam_lib.reproduce.__main__ import main
from refinecam_lib.reproduce.products import Report
from refinecam_lib.sweeps import experiments, measurements, registry


def planned(book):
    """Return the calls of plans in a notebook, as text."""
    cells = json.loads(book.path.read_text(encoding="utf-8"))["cells"]
    trees = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if re.fullmatch(r"experiments\.\w+_plan", ast.unparse(call.func))]


def test_every_notebook_that_sweeps_calls_its_plans_with_its_parameters():
    books = parameters.find_notebooks()
    assert [book.name for book in books if planned(book)] == sorted(experiments.PLANS)
    for book in books:
        expected = []
        for plan in experiments.PLANS.get(book.name, ()):
            given = [name for name in inspect.signature(plan).parameters if name in book.defaults]
            expected.append(f"{plan.__name__}({', '.join(given)})")
        called = [call.removeprefix("experiments.") for call in planned(book)]
        assert sorted(called) == sorted(expected), book.name


def test_light_models_skip_slow_methods_and_middle_layers():
    found = experiments.table1_plan(["resnet18", "vgg11"], 4, 2, 2, ["vgg11"])
    assert {s.method for s in found if s.model == "vgg11"} == {*CAMS, *OTHERS} - {*SLOW}
    assert [s for s in found if s.model == "resnet18"] == experiments.table1_plan(["resnet18"], 4, 2, 2)
    variants = {(v.layer, v.aggregate) for s in found if s.model == "vgg11" for v in s.variants}
    assert variants == {(0, "none"), (0, "product"), (3, "none")}
    ablation = experiments.table2_plan(["vgg11"], 4, 2, ["vgg11"])
    variants = {(v.layer, v.aggregate) for s in ablation for v in s.variants}
    assert variants == {(0, "none"), *((0, name) for name in AGGREGATES), (3, "none")}, "Table 2 has every aggregate"
    with pytest.raises(InputError, match="unknown model 'vgg16'. Did you mean 'vgg11'"):
        experiments.fig1_plan(["vgg11"], 4, 2, ["vgg16"])


def test_birds_are_measured_by_ten_methods_and_the_trivial_maps():
    found = experiments.birds_plan(["small_resnet", "small_vgg"], 20, 4, 8)
    assert {shard.method for shard in found} == {*CAMS, *OTHERS, *TRIVIAL} and {s.dataset for s in found} == {"birds"}
    images = {(s.model, s.method): s.numbers[-1] + 1 for s in sorted(found, key=lambda s: s.numbers)}
    wanted = dict.fromkeys([*CAMS, *TRIVIAL], 20) | dict.fromkeys(OTHERS, 8) | {"ScoreCAM": 4}
    assert images == {(model, method): n for model in ("small_resnet", "small_vgg") for method, n in wanted.items()}
    assert {v for s in found if s.method in CAMS for v in s.variants} == {BASE, REFINED, Variant(3)}


def test_the_audit_measures_each_defect(toy):
    found = experiments.audit_plan("tiny", 4, 1, 2, 2)
    assert {shard.defects for shard in found["D4"]} == {("percentiles",)}
    assert {shard.dataset for shard in found["D1"]} == {"synthetic_leaked"}
    assert {shard.numbers for name, part in found.items() for shard in part if name != "ours"} == {(0, 1)}
    assert experiments.plan_of("09_conventions_audit", {"models": [], "light_models": [], "pipeline_models": [], "n_validation": 1, "model": "tiny", "n_images": 4, "n_score_cam": 1, "n_captum": 2,
                         "n_defects": 2, "seed": 0, "bird_models": [], "n_birds": 1,
                         "n_birds_score_cam": 1, "n_birds_captum": 1, "networks": [], "n_rounding": 1}) == [*dict.fromkeys(s for part in found.values() for s in part)]  # fmt: skip


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Let the notebooks' plans use a toy network and two methods, with results in a temporary folder."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "ROWS", tmp_path / "committed")
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    for name in ("synthetic", "synthetic_leaked", "synthetic_shifted"):
        monkeypatch.setitem(registry.DATASETS, name, registry.DataSet(name, Toy))
    monkeypatch.setitem(zoo.MODELS, "tiny", SPEC)
    monkeypatch.setattr(experiments, "CAMS", ("GradCAM++", "LayerCAM"))
    monkeypatch.setattr(experiments, "OTHERS", ("InputXGradient",))
    write_checkpoint(tmp_path, seed=0)
    measurements.load_once.cache_clear()
    yield
    measurements.load_once.cache_clear()


SETTINGS = [
    "--only",
    "7",
    "8",
    "--set",
    "models=tiny",
    "methods=GradCAM++,LayerCAM,ScoreCAM,InputXGradient",
    "n_images=10",
    "n_captum=4",
    "n_score_cam=1",
]


def test_measure_status_and_retry(toy, monkeypatch, capsys):
    def command(name, *arguments):
        assert main([name, *SETTINGS, *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    # 9 variants of two methods on 10 images, 7 of them in Table 1; 5 of ScoreCAM and 1 of the method without layers
    missing = "missing of tiny: GradCAM++ 90, LayerCAM 90, ScoreCAM 5"
    few = missing.replace("90", "70")
    assert command("status") == [
        f"07_refinecam_benchmark: 0 of 149 rows done, 0 of them committed; {few}, InputXGradient 4",
        f"08_aggregation_ablation: 0 of 185 rows done, 0 of them committed; {missing}",
        f"together: 0 of 189 rows done, 0 of them committed; {missing}, InputXGradient 4",
    ]
    measure = measurements.measure_shard

    def fails(shard, rounding=None):
        if shard.method == "InputXGradient":
            raise RuntimeError("out of luck")
        return measure(shard)

    monkeypatch.setattr(measurements, "measure_shard", fails)
    command("measure")
    done = ["together: 189 of 189 rows done, 0 of them committed; 4 rows failed (RuntimeError: out of luck)"]
    assert command("status")[-1:] == done
    damaged = min((paths.RESULTS / "rows").rglob("*LayerCAM*/00000*"))
    damaged.write_bytes(b"")
    assert "133 of 189 rows done, 0 of them committed; missing of tiny: LayerCAM 56; 4" in command("status")[-1]
    monkeypatch.setattr(measurements, "measure_shard", measure)
    assert (
        command("measure", "--retry-failed")[-1]
        == "4 rows: 0 committed, 0 measured here before, 4 measured now; 0 failed"
    )
    assert command("measure", "--retry-failed")[-1] == "nothing failed"
    command("measure")
    assert command("status")[-1] == "together: 189 of 189 rows done, 0 of them committed"
    assert [line.partition(", ")[0] for line in command("commit")] == [
        f"wrote {paths.ROWS / 'scores-synthetic-tiny.parquet'}"
    ]
    assert command("status")[-1] == "together: 189 of 189 rows done, 189 of them committed"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("Bad."), 2, "error: Bad."),
        (Stopped("A process died."), 1, "error: A process died."),
        (KeyboardInterrupt(), 130, "stopped; what is finished is kept"),
    ],
)
def test_errors_have_exit_codes(toy, monkeypatch, capsys, error, code, line):
    def fails(*arguments):
        raise error

    monkeypatch.setattr("refinecam_lib.sweeps.run.sweep", fails)
    assert main(["measure", *SETTINGS]) == code and capsys.readouterr().err.strip() == line


def test_nothing_to_measure_and_bad_input(toy, capsys):
    assert main(["measure", "--only", "1"]) == 0 and capsys.readouterr().out == "these notebooks measure no rows\n"
    assert main(["status", "--only", "03", *SETTINGS, "--set", "seed=3"]) == 0
    assert [line[:3] for line in capsys.readouterr().out.splitlines()] == ["03_", "07_", "08_", "tog"]
    assert main(["measure", *SETTINGS, "--jobs", "0"]) == 2
    assert capsys.readouterr().err == "error: Expected n_jobs of 1 or more, or -1 for one per core, got 0.\n"
    assert main(["measure", *SETTINGS, "n_image=3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown parameter 'n_image'. Did you mean 'n_images'?") and error.count("\n") == 1


def test_a_caption_counts_the_failures():
    rows = pd.DataFrame({"status": ["ok", "failed", "constant", "failed"], "image": list("abcd"), "correct": True})
    rows = rows.assign(method="GradCAM", model="tiny", dataset="toy")
    words = f"profile standard, n = 4 images, 2 of 4 rows failed, toy, tiny, commit {commit()}"
    assert Report("x", rows=rows).caption == words
