"""The benchmark on a tiny network: both sides agree, disagreement shows, and the JSON is complete. No test of times."""

import json
import math

import pytest
import torch
from pytorch_grad_cam.metrics.perturbation_confidence import RemoveMostRelevantFirst
from tiny_networks import LAYERS, batch, tiny_net

import benchmarks.parts
from benchmarks import gpu, public
from benchmarks.__main__ import main, memory, report, run, table
from benchmarks.parts import PARTS, Subject, tie_free
from benchmarks.timing import Floor, compare, ratio
from refinecam_lib import paths
from refinecam_lib.capture import Capture


@pytest.fixture(scope="module")
def subject():
    inputs, target = batch(2)
    return Subject("tiny", tiny_net(), inputs, target, LAYERS)


def test_every_part_agrees_and_the_report_is_complete(subject):
    rows = list(run([subject], list(PARTS), images=2, batch=2, score_images=1, checked=1))
    result = json.loads(json.dumps(report(rows, {"images": 2})))
    assert [row["part"] for row in result["rows"]] == list(PARTS)
    for row in result["rows"]:
        assert row["agrees"], (row["part"], row["differences"])
        assert set(row["tolerances"]) <= set(row["differences"])
        assert row["public_s"] > 0 and row["ours_s"] > 0
        middle, low, high = row["ratio"]
        assert low <= middle <= high
        assert (row["floor_s"] is None) == (row["over_floor"] is None) == (row["part"] in ("shapley", "imputation"))
    assert result["environment"]["cuda"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else None)
    written = table(result)
    assert "DISAGREE" not in written and all(part.title in written for part in PARTS.values())


def test_our_side_can_be_timed_alone(subject):
    (row,) = run([subject], ["road"], images=1, batch=1, score_images=1, checked=1, both=False)
    assert row.public_s is None and row.ratio is None and row.over_floor[0] > 0
    assert "| - | " in table(report([row], {"ours": True}))


@pytest.mark.parametrize("part", ["gradient", "coherency"])
def test_a_wrong_result_is_detected(subject, part, monkeypatch):
    truth = Capture.gradients.func
    wrong = property(lambda self: [g + 0.05 * g.abs().amax() for g in truth(self)])
    monkeypatch.setattr(benchmarks.parts.Capture, "gradients", wrong)
    row = compare(subject, Floor(subject, (1,)), part, PARTS[part], images=1, batch=1, checked=1)
    assert not row.agrees
    assert "DISAGREE" in table(report([row], {}))


def test_a_wrong_imputation_is_detected(subject, monkeypatch):
    monkeypatch.setattr(benchmarks.parts, "impute", lambda images, keep: images[:, None] * keep[:, :, None])
    row = compare(subject, Floor(subject, (1,)), "imputation", PARTS["imputation"], images=1, batch=1, checked=0)
    assert row.differences["pixel"] > 0.1 and row.differences["ROAD, same noise"] > 2e-4 and not row.agrees


def test_neither_side_changes_the_other(subject):
    """Our network stays frozen. Public code has another copy, whose weights require gradients."""
    assert not any(p.requires_grad for p in subject.model.parameters())
    assert all(p.requires_grad for p in subject.public.parameters())
    torch.testing.assert_close(subject.model(subject.inputs), subject.public(subject.inputs), atol=1e-5, rtol=1e-5)
    assert not any(module._forward_hooks for m in (subject.model, subject.public) for module in m.modules())


def test_maps_without_ties_keep_their_order():
    maps = torch.tensor([[[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]])
    made = tie_free(maps)
    assert made.unique().numel() == 6 and 0 <= float(made.min()) and float(made.max()) <= 1
    below = maps.flatten()[:, None] < maps.flatten()
    assert bool((made.flatten()[:, None] < made.flatten())[below].all())


def test_ratio_and_its_interval():
    assert ratio([2.0, 4.0], [1.0, 2.0]) == (2.0, 2.0, 2.0)
    middle, low, high = ratio([1.0, 9.0], [1.0, 1.0])
    assert (middle, low, high) == (5.0, 1.0, 9.0)


def test_memory_is_read_at_the_mark_and_at_the_end(subject):
    found = memory(subject.model, subject.inputs, LAYERS, explanations=60, mark=20)
    assert (found["mark"], found["explanations"]) == (20, 60)
    assert found["mb_at_end"] < found["mb_at_mark"] + 30 and not math.isnan(found["mb_at_end"])


def test_bad_options_are_refused(capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        main(["--parts", "gradiant"])
    assert "unknown part 'gradiant'. Did you mean 'gradient'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--images", "1", "--score-images", "2"])
    with pytest.raises(SystemExit):
        main(["--checked", "0"])
    assert "--images, --batch, --checked and --threads must be at least 1" in capsys.readouterr().err
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)  # no network is shipped
    with pytest.raises(SystemExit):
        main(["--networks", "vgg11", "--images", "1", "--score-images", "1"])
    assert "vgg11" in capsys.readouterr().err


@pytest.mark.parametrize("pixels", [6 * 7, 48 * 48, 224 * 224])
def test_shares_equal_those_of_the_package(pixels):
    seen = []
    maps = torch.randperm(pixels, generator=torch.Generator().manual_seed(0)).float()[None]
    for percentile in (80, 60, 40, 20):
        remove = RemoveMostRelevantFirst(percentile, lambda image, keep: seen.append(int((keep == 0).sum())))
        remove(maps, maps)
    assert seen == [round(share * pixels) for share in public.shares(pixels)]


def test_a_missing_device_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--devices", "warp"])
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("python -m benchmarks: error: device 'warp' can't be used")
    )


def test_the_gpu_page_names_what_it_left_out(tmp_path, capsys):
    arguments = ["--device", "cpu", "--minutes", "0", "--networks", "resnet18", "--out", str(tmp_path)]
    assert gpu.main(arguments) == 0
    written = (tmp_path / "gpu.md").read_text()
    assert "| method | resnet18 |" in written and "| ScoreCAM | - |" in written
    assert "left out: resnet18 gradient" in capsys.readouterr().out
    result = json.loads((tmp_path / "gpu.json").read_text())
    result["rates"] = [{"network": "resnet18", "method": "LayerCAM", "rows": 64, "seconds": 2.0}]
    assert "| LayerCAM | 32 |" in gpu.page(result)
