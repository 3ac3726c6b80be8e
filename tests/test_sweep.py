"""The sweep: one row an explanation, resumed without loss, and the same rows whatever the shards."""

import json

import joblib
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from networks import LAYERS, TinyNet, batch, tiny_net

from refinecam_lib import checks, datasets, models, paths, sweep
from refinecam_lib.checks import InputError
from refinecam_lib.explain import BASE, REFINED


class Toy:
    """Sixteen small labelled images with masks."""

    def __init__(self, n, seed, spec):
        self.n = n

    def __getitem__(self, i):
        image = batch(1, seed=i)[0][0].clamp(-2, 2) / 4 + 0.5
        mask = torch.zeros(48, 48, dtype=torch.bool)
        mask[8:24, 8 + i : 24 + i] = True
        return datasets.Sample(image, i % 6, f"toy-{i}", mask, {"size": "small"})


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A toy data set, network and checkpoint under names of their own, and results in a folder of their own."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    monkeypatch.setitem(sweep.DATASETS, "toy", Toy)
    spec = models.ModelSpec("tiny", lambda classes, pretrained: TinyNet(classes), LAYERS)
    monkeypatch.setitem(models.MODELS, "tiny", spec)
    write_checkpoint(tmp_path, seed=0)
    sweep._model.cache_clear()
    yield tmp_path
    sweep._model.cache_clear()


def write_checkpoint(folder, seed):
    file = folder / "tiny.safetensors"
    safetensors.torch.save_file(tiny_net(seed).state_dict(), file)
    card = {"model": "tiny", "classes": list("abcdef"), "sha256": models.sha256_of(file)}
    (folder / "tiny.json").write_text(json.dumps(card))


def plan(images=6, size=2, methods=("LayerCAM", "RandomCAM"), **options):
    return sweep.plan("tiny", methods, images, [BASE, REFINED], dataset="toy", size=size, **options)


def same(a, b):
    numbers = a.select_dtypes(float).columns
    np.testing.assert_allclose(a[numbers], b[numbers], atol=1e-4)
    pd.testing.assert_frame_equal(a.drop(columns=numbers), b.drop(columns=numbers))


def test_one_row_an_explanation(toy):
    rows = sweep.sweep(plan())
    assert len(rows) == 6 * 2 + 6  # RandomCAM has no map for each layer: measured once
    assert not rows.duplicated(sweep.KEYS).any()
    assert set(rows["status"]) == {"ok"}
    assert {"probability", "probability_masked", "mean_activation", "pearson", "morf_20", "lerf_80", "cosine"} <= set(
        rows
    )


def test_rows_do_not_depend_on_shards_or_order(toy):
    rows = sweep.sweep(plan(size=6))
    for path in (paths.RESULTS / "rows").iterdir():
        path.unlink()
    same(sweep.sweep(plan(size=1)[::-1]), rows)


def test_parallel_workers_give_the_same_rows(toy):
    rows = sweep.sweep(plan(size=2))
    for path in (paths.RESULTS / "rows").iterdir():
        path.unlink()
    with joblib.parallel_config(backend="threading"):
        same(sweep.sweep(plan(size=2), n_jobs=2), rows)


def test_stopped_and_started_again_recomputes_only_the_open_shard(toy, monkeypatch):
    shards = plan()
    undisturbed = sweep.sweep(shards)
    for path in (paths.RESULTS / "rows").iterdir():
        path.unlink()
    measure, done = sweep._measure, []

    def stop_in_the_third(shard):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(shard)
        return measure(shard)

    monkeypatch.setattr(sweep, "_measure", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(shards)
    assert len(list((paths.RESULTS / "rows").glob("*.parquet"))) == 2
    assert not list((paths.RESULTS / "rows").glob("*.part"))
    again = []
    monkeypatch.setattr(sweep, "_measure", lambda shard: again.append(shard) or measure(shard))
    same(sweep.sweep(shards), undisturbed)
    assert set(again) == set(shards) - set(done) and len(again) == len(shards) - 2


def test_a_truncated_file_is_said_and_computed_again(toy, capsys):
    rows = sweep.sweep(plan())
    file = min((paths.RESULTS / "rows").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="is not whole"):
        sweep.load_results(plan())
    same(sweep.sweep(plan()), rows)
    assert f"results file {file.name} is not whole" in capsys.readouterr().out


def test_a_failure_is_a_row_with_its_reason_and_can_be_tried_again(toy, monkeypatch, capsys):
    measure = sweep._measure

    def fails(shard):
        if shard.start == 2:
            raise RuntimeError("out of luck")
        return measure(shard)

    monkeypatch.setattr(sweep, "_measure", fails)
    rows = sweep.sweep(plan())
    failed = rows[rows["status"] == "failed"]
    assert len(failed) == 2 * 2 + 2 and set(failed["reason"]) == {"RuntimeError: out of luck"}
    assert "6 rows failed" in capsys.readouterr().out
    monkeypatch.setattr(sweep, "_measure", measure)
    assert (sweep.sweep(plan())["status"] == "failed").sum() == 6
    assert set(sweep.sweep(plan(), retry_failed=True)["status"]) == {"ok"}


def test_another_checkpoint_or_seed_is_another_shard(toy):
    before = plan()
    assert {s.key for s in before}.isdisjoint(s.key for s in plan(seed=1))
    write_checkpoint(toy, seed=1)
    assert {s.key for s in before}.isdisjoint(s.key for s in plan())
    sweep._model.cache_clear()
    with pytest.raises(InputError, match="changed during the sweep"):
        sweep.sweep(before)


def test_corrupt_and_missing_checkpoints(toy):
    file = toy / "tiny.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="checkpoint tiny.safetensors has sha256"):
        plan()
    file.unlink()
    with pytest.raises(InputError, match="no checkpoint file"):
        plan()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"methods": ["LayerCamm"]}, "unknown method 'LayerCamm'. Did you mean 'LayerCAM'?"),
        ({"images": 0}, "images = 0; allowed: 1 or more"),
    ],
)
def test_bad_names(toy, options, message):
    with pytest.raises(InputError) as error:
        plan(**options)
    assert message in str(error.value)


def test_seeds_differ_by_part_and_are_stable():
    assert checks.seed_of(0, "toy-1", "clean") == checks.seed_of(0, "toy-1", "clean")
    assert len({checks.seed_of(0, f"toy-{i}", step) for i in range(50) for step in ("clean", "masked")}) == 100
    assert checks.seed_of(0, "test-000000", "clean") == 6424010260562978918
