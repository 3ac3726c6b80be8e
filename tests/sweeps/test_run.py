"""The sweep: one row per explanation, resumed without loss, and the same rows with any shards."""

import contextlib
import os
from dataclasses import replace

import joblib
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from toys import SPEC, plan, same, write_checkpoint

from refinecam_lib import paths
from refinecam_lib.baselines.faithfulness import drops_without, faithfulness
from refinecam_lib.errors import InputError, seed_of
from refinecam_lib.explanation import explain
from refinecam_lib.networks import zoo
from refinecam_lib.sweeps import measurements, store
from refinecam_lib.sweeps.run import run_shard, sweep
from refinecam_lib.sweeps.version import KEYS


def test_one_row_per_explanation(toy):
    rows = sweep(plan())
    assert len(rows) == 6 * 2 + 6  # RandomCAM has no map per layer, so it is measured once
    assert not rows.duplicated(KEYS).any()
    assert set(rows["status"]) == {"ok"}
    assert {"probability", "probability_masked", "mean_activation", "pearson", "morf_20", "lerf_80", "cosine"} <= set(
        rows
    )


def test_agreement_without_forward_passes_is_that_of_the_scores(toy):
    scores, agreement = (sweep(plan(measurement=measurement)) for measurement in ("scores", "agreement"))
    assert {"cosine", "average_precision", "mass_on_truth", "correct", "status"} <= set(agreement)
    assert "morf_20" not in agreement and len(agreement) == len(scores)
    same(agreement, scores[list(agreement)])


def test_rows_of_faithfulness_hold_its_scores_and_the_sensitivity_to_the_network(toy):
    first, *rest = plan(images=4, methods=["LayerCAM"], measurement="faithfulness")
    rows, work = sweep([first, *rest]), measurements.Work(first)
    for variant in first.variants:
        own = rows[rows["image"].isin(first.images) & (rows["aggregate"] == variant.aggregate)]
        maps = explain(work.capture, "LayerCAM", variant).maps
        for name, values in faithfulness(work.capture, maps, drops_without(work.capture)).items():
            assert own[name].to_numpy() == pytest.approx(values.numpy(), abs=1e-5), name
    assert len(rows) == 8 and rows["network_sensitivity"].between(0.05, 2).all()


def test_rows_do_not_depend_on_shards_or_order(toy):
    rows = sweep(plan(size=6))
    for path in (paths.RESULTS / "rows").rglob("*.parquet"):
        path.unlink()
    same(sweep(plan(size=1)[::-1]), rows)


def test_parallel_workers_give_the_same_rows(toy):
    rows = sweep(plan(size=2))
    for path in (paths.RESULTS / "rows").rglob("*.parquet"):
        path.unlink()
    with joblib.parallel_config(backend="threading"):
        same(sweep(plan(size=2), n_jobs=2), rows)


def test_after_a_stop_only_missing_shards_are_measured(toy, monkeypatch):
    shards = plan()
    undisturbed = sweep(shards)
    for path in (paths.RESULTS / "rows").rglob("*.parquet"):
        path.unlink()
    measure, done = measurements.measure_shard, []

    def stop_in_the_third(shard, rounding=None):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(shard)
        return measure(shard)

    monkeypatch.setattr(measurements, "measure_shard", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        sweep(shards)
    assert len(list((paths.RESULTS / "rows").rglob("*.parquet"))) == 2
    assert not list((paths.RESULTS / "rows").rglob("*.part"))
    again = []
    monkeypatch.setattr(
        measurements, "measure_shard", lambda shard, rounding=None: again.append(shard) or measure(shard)
    )
    same(sweep(shards), undisturbed)
    assert set(again) == set(shards) - set(done) and len(again) == len(shards) - 2


def test_a_truncated_file_is_reported_and_measured_again(toy, capsys):
    rows = sweep(plan())
    file = min((paths.RESULTS / "rows").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="is damaged"):
        store.table(map(store.load_shard, plan()))
    same(sweep(plan()), rows)
    assert f"results file {file.name} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["empty", "flipped", "no rows", "other columns", "another shard", "other method"])
def test_a_damaged_or_foreign_file_is_reported_and_measured_again(toy, capsys, damage):
    shards = plan(methods=["LayerCAM"])
    rows = sweep(shards)
    file, content = shards[0].path, bytearray(shards[0].path.read_bytes())
    frame = pd.read_parquet(file)
    frame.attrs = {}  # as if other code had written it
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "flipped":
        chunk = pyarrow.parquet.read_metadata(file).row_group(0).column(5)
        content[chunk.data_page_offset + chunk.total_compressed_size - chunk.total_compressed_size // 4] ^= 1
        file.write_bytes(content)
    elif damage == "no rows":
        frame.head(0).to_parquet(file)
    elif damage == "other columns":
        pd.DataFrame({"x": [1.0]}).to_parquet(file)
    elif damage == "another shard":
        file.write_bytes(shards[1].path.read_bytes())
    else:
        frame.assign(method="GradCAM").to_parquet(file)
    words = {"empty": "is damaged", "flipped": "is damaged", "another shard": "belongs to another shard"}
    words = words.get(damage, "belongs to another sweep")
    with pytest.raises(InputError, match=words) as refusal:
        store.table(map(store.load_shard, shards))
    assert "\n" not in str(refusal.value)
    capsys.readouterr()
    pd.testing.assert_frame_equal(sweep(shards), rows)
    out = capsys.readouterr().out
    assert (
        f"results file {file.name} {words}" in out
        and "12 rows: 0 committed, 8 measured here before, 4 measured now" in out
    )


def test_a_flipped_bit_is_never_read_as_another_number(toy):
    shard = plan()[0]
    rows = sweep([shard])
    whole, chunks = shard.path.read_bytes(), pyarrow.parquet.read_metadata(shard.path).row_group(0)
    chunk = next(c for c in map(chunks.column, range(chunks.num_columns)) if c.path_in_schema == "probability")
    first, unnoticed = chunk.dictionary_page_offset, 0
    for place in range(first, first + chunk.total_compressed_size):
        shard.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            pd.testing.assert_frame_equal(store.table([store.load_shard(shard)]), rows)
            continue
        with contextlib.suppress(Exception):
            pd.read_parquet(shard.path)
            unnoticed += 1
    assert unnoticed > 10, "only a checksum reveals these flips"


def test_rows_do_not_depend_on_the_number_of_threads(toy):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(sweep(plan(methods=["GradCAM++"]), retry_failed=True))
            assert torch.get_num_threads() == threads, "the caller's number of threads is restored"
            seen = run_shard(plan(methods=["GradCAM++"])[0])
            assert seen == (4, 0)
            for path in (paths.RESULTS / "rows").rglob("*.parquet"):
                path.unlink()
    finally:
        torch.set_num_threads(before)
    pd.testing.assert_frame_equal(*results)


def test_one_thread_while_measuring(toy, monkeypatch):
    before, seen, measure = torch.get_num_threads(), [], measurements.measure_shard
    monkeypatch.setattr(
        measurements,
        "measure_shard",
        lambda shard, rounding=None: seen.append(torch.get_num_threads()) or measure(shard),
    )
    try:
        torch.set_num_threads(2)
        sweep(plan())
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_sweeps_measure_in_full_precision_on_a_gpu_too(toy, monkeypatch):
    cudnn, seen, measure = torch.backends.cudnn, [], measurements.measure_shard
    before = cudnn.allow_tf32, cudnn.deterministic
    monkeypatch.setattr(
        measurements,
        "measure_shard",
        lambda shard, rounding=None: seen.append((cudnn.allow_tf32, cudnn.deterministic)) or measure(shard),
    )
    sweep(plan())
    assert set(seen) == {(False, True)} and before == (cudnn.allow_tf32, cudnn.deterministic) == (True, False)


def test_the_clock_has_no_effect(toy, monkeypatch):
    rows = sweep(plan())
    shards = plan()
    for shard, moment in zip(shards, (0, 4e9, 5e9)):  # 1970, 2096, 2128
        os.utime(shard.path, (moment, moment))
    shards[3].path.unlink()
    now = iter(range(10**6, 0, -1))
    monkeypatch.setattr("time.time", lambda: float(next(now)))  # backwards
    measured, measure = [], measurements.measure_shard
    monkeypatch.setattr(
        measurements, "measure_shard", lambda shard, rounding=None: measured.append(shard) or measure(shard)
    )
    pd.testing.assert_frame_equal(sweep(shards), rows)
    assert measured == [shards[3]]


def test_rows_of_a_checkpoint_replaced_during_a_sweep_are_never_mixed_in(toy, monkeypatch):
    shards, measure = plan(), measurements.measure_shard
    rows = sweep(shards)
    for shard in shards:
        shard.path.unlink()
    monkeypatch.setattr(
        measurements, "measure_shard", lambda shard, rounding=None: (measure(shard), write_checkpoint(toy, seed=1))[0]
    )
    pd.testing.assert_frame_equal(sweep(shards), rows)  # the planned network is in memory
    monkeypatch.setattr(measurements, "measure_shard", measure)
    shards[0].path.unlink()
    measurements.load_once.cache_clear()  # as in a new process
    with pytest.raises(InputError, match="changed during the sweep") as refusal:
        sweep(shards)
    assert "\n" not in str(refusal.value) and not shards[0].path.exists()
    write_checkpoint(toy, seed=0)
    pd.testing.assert_frame_equal(sweep(shards), rows)


def test_progress_is_shown_except_in_ci(toy, monkeypatch, capsys):
    for name in ("CI", "REFINECAM_QUIET"):
        monkeypatch.delenv(name, raising=False)
    sweep(plan())
    line = capsys.readouterr().err.split("\r")[-1]
    assert "6 of 6 shards, " in line and "shard/s" in line and " left, 18 rows, 0 failed" in line
    for shard in plan():
        shard.path.unlink()
    monkeypatch.setenv("CI", "1")
    sweep(plan())
    out, err = capsys.readouterr()
    assert err == "" and out == "18 rows: 0 committed, 0 measured here before, 18 measured now; 0 failed\n"


def test_a_failure_is_a_row_with_its_reason_and_can_be_retried(toy, monkeypatch, capsys):
    measure = measurements.measure_shard

    def fails(shard, rounding=None):
        if shard.numbers[0] == 2:
            raise RuntimeError("out of luck")
        return measure(shard)

    monkeypatch.setattr(measurements, "measure_shard", fails)
    rows = sweep(plan())
    failed = rows[rows["status"] == "failed"]
    assert len(failed) == 2 * 2 + 2 and set(failed["reason"]) == {"RuntimeError: out of luck"}
    assert "; 6 failed" in capsys.readouterr().out
    again = []
    monkeypatch.setattr(
        measurements, "measure_shard", lambda shard, rounding=None: again.append(shard) or measure(shard)
    )
    assert (sweep(plan())["status"] == "failed").sum() == 6 and not again
    assert set(sweep(plan(), retry_failed=True)["status"]) == {"ok"}
    assert {shard.numbers[0] for shard in again} == {2} and len(again) == 2, "only those that failed"


def test_other_layers_or_another_input_make_another_shard(toy, monkeypatch):
    before = {shard.key for shard in plan(methods=["RandomCAM"])}
    for changed in ({"layers": SPEC.layers[::-1]}, {"mean": (0.5, 0.5, 0.5)}, {"std": (1.0, 1.0, 1.0)}):
        monkeypatch.setitem(zoo.MODELS, "tiny", replace(SPEC, **changed))
        assert before.isdisjoint(shard.key for shard in plan(methods=["RandomCAM"])), changed
    monkeypatch.setitem(zoo.MODELS, "tiny", replace(SPEC))
    assert before == {shard.key for shard in plan(methods=["RandomCAM"])}


def test_another_checkpoint_or_seed_is_another_shard(toy):
    before = plan()
    assert {s.key for s in before}.isdisjoint(s.key for s in plan(seed=1))
    write_checkpoint(toy, seed=1)
    assert {s.key for s in before}.isdisjoint(s.key for s in plan())
    measurements.load_once.cache_clear()
    with pytest.raises(InputError, match="changed during the sweep"):
        sweep(before)


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
        ({"images": 0}, "Expected 1 image or more, got images = 0."),
    ],
)
def test_bad_names(toy, options, message):
    with pytest.raises(InputError) as error:
        plan(**options)
    assert message in str(error.value)


def test_seeds_differ_by_part_and_are_stable():
    assert seed_of(0, "toy-1", "clean") == seed_of(0, "toy-1", "clean")
    assert len({seed_of(0, f"toy-{i}", step) for i in range(50) for step in ("clean", "masked")}) == 100
    assert seed_of(0, "test-000000", "clean") == 6424010260562978918
