"""Rows are found by image. Committed rows come first. Rows of other versions and other code are ignored."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from toys import plan, same

from refinecam_lib import explanation, paths
from refinecam_lib import refinement as refine
from refinecam_lib.datasets import photographs
from refinecam_lib.errors import InputError
from refinecam_lib.explanation import BASE, METHODS, REFINED, Variant
from refinecam_lib.reproduce import verify
from refinecam_lib.sweeps import measurements, published, registry, shard, version
from refinecam_lib.sweeps import store as results
from refinecam_lib.sweeps.run import measured as measured_now
from refinecam_lib.sweeps.run import sweep

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def measured(monkeypatch):
    """Return the list of shards that are measured during the test."""
    seen, measure = [], measurements.measure_shard
    monkeypatch.setattr(
        measurements, "measure_shard", lambda shard, rounding=None: seen.append(shard) or measure(shard, rounding)
    )
    return seen


def committed(planned):
    rows = sweep(planned)
    results.commit_rows(planned)
    for file in paths.RESULTS.rglob("*.parquet"):
        file.unlink()
    return rows


@pytest.mark.parametrize("store", [committed, sweep])
def test_only_new_images_are_measured(measured, store):
    store(plan(images=5, size=2))
    measured.clear()
    rows = sweep(plan(images=7, size=3))
    assert sorted(i for shard in measured for i in shard.numbers) == [5, 5, 6, 6], "two methods"
    measured.clear()
    whole = committed(plan(images=7, size=7, seed=0))
    same(rows, whole)


def test_only_a_new_variant_is_measured(measured):
    sweep(shard.plan("tiny", ["LayerCAM"], 4, [BASE], "toy"))
    measured.clear()
    rows = sweep(shard.plan("tiny", ["LayerCAM"], 5, [BASE, REFINED], "toy"))
    wanted = {(shard.numbers, shard.variants) for shard in measured}
    assert wanted == {((0, 1, 2, 3), (REFINED,)), ((4,), (BASE, REFINED))} and len(rows) == 10


def test_fewer_methods_or_another_order_measure_nothing(measured):
    rows = committed(plan())
    measured.clear()
    fewer = sweep(plan(methods=["RandomCAM"], images=3, size=1)[::-1])
    assert not measured and set(fewer["image"]) == {"toy-0", "toy-1", "toy-2"}
    expected = rows[(rows["method"] == "RandomCAM") & rows["image"].isin(fewer["image"])].reset_index(drop=True)
    same(fewer, expected)


def test_committed_rows_win_over_local_ones_except_in_a_fresh_run(monkeypatch):
    rows = sweep(plan())
    results.commit_rows(plan())
    path = results.committed_file(plan()[0])
    setups = json.loads(pyarrow.parquet.read_schema(path).metadata[b"setups"])
    changed = pd.read_parquet(path).assign(probability=0.125)
    results.write_committed(changed, setups, path)
    assert (sweep(plan())["probability"] == 0.125).all()
    monkeypatch.setenv(paths.FRESH, "1")
    same(sweep(plan()), rows)
    assert len(results.committed_rows(plan()[0], always=True)) == 12
    assert len(results.committed_rows(plan()[0])) == 0


def test_rows_of_another_version_are_ignored_and_removed(monkeypatch, measured):
    committed(plan())
    monkeypatch.setitem(shard.RESULTS_VERSION, "scores", 99)
    measured.clear()
    sweep(plan())
    assert len(measured) == len(plan())
    results.commit_rows(plan())
    setups = json.loads(pyarrow.parquet.read_schema(results.committed_file(plan()[0])).metadata[b"setups"])
    assert {setup["version"] for setup in setups.values()} == {99}
    assert set(pd.read_parquet(results.committed_file(plan()[0]))["setup"]) == set(setups)


def test_local_rows_of_other_code_are_not_used(monkeypatch, measured):
    sweep(plan())
    measured.clear()
    sweep(plan())
    assert not measured
    for module in (version, shard):
        monkeypatch.setattr(module, "code_version", lambda: "another")
    sweep(plan())
    assert len(measured) == len(plan())


def test_the_code_version_covers_what_measures_rows():
    parts = version.sources_of(version.MEASURES)
    assert {"refinecam_lib.metrics", "refinecam_lib.road", "refinecam_lib.cams", "refinecam_lib.datasets.crowd"} <= set(
        parts
    )
    assert {"refinecam_lib.baselines.captum_methods", "refinecam_lib.networks.deep_lift"} <= set(parts)
    assert not {
        "refinecam_lib.analysis.plots",
        "refinecam_lib.reproduce",
        "refinecam_lib.explorer.widget",
        "refinecam_lib.training",
    } & set(parts)
    assert (
        "#" not in parts["refinecam_lib.networks.memory"]
        and "next layer's output" not in parts["refinecam_lib.networks.memory"]
    )


def test_committed_rows_keep_every_bit_of_a_whole_number():
    rows = sweep(plan()).assign(keeps=[float(2**33 + 1)] * 17 + [np.nan], setup=plan()[0].setup)
    path = paths.ROWS / "scores-toy-tiny.parquet"
    results.write_committed(rows, {}, path)
    kept = pd.read_parquet(path)
    assert kept["keeps"].dtype == "float64" and kept["keeps"].iloc[0] == 2**33 + 1 and kept["keeps"].isna().sum() == 1
    assert kept["probability"].dtype == "float32"


def test_a_damaged_committed_file_says_how_to_restore_it():
    committed(plan())
    path = results.committed_file(plan()[0])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="is damaged .*Restore it: git checkout"):
        sweep(plan())


def test_a_retried_failure_no_longer_counts(monkeypatch):
    measure = measurements.measure_shard
    monkeypatch.setattr(measurements, "measure_shard", lambda shard, rounding=None: 1 / 0)
    assert (sweep(plan(images=2))["status"] == "failed").all()
    monkeypatch.setattr(measurements, "measure_shard", measure)
    again = sweep(plan(images=2, size=1), retry_failed=True)
    assert set(again["status"]) == {"ok"} and set(sweep(plan(images=2))["status"]) == {"ok"}


def test_stored_maps_equal_computed_ones():
    layers = [Variant(k) for k in range(4)]
    rows = committed(shard.plan("tiny", ["LayerCAM"], 2, layers, "toy", measurement="maps"))
    maps = measurements.stored_maps(rows, (48, 48))
    work = measurements.Work(plan(methods=["LayerCAM"])[0])
    for variant in (BASE, REFINED):
        live = measurements.explain(work.capture, "LayerCAM", variant).maps
        stored = maps[0] if variant == BASE else refine.refine(list(maps), variant.aggregate)
        assert torch.allclose(stored, live, atol=2e-3)


def test_rounding_moves_only_rows_that_depend_on_the_last_bits(monkeypatch):
    planned = shard.plan("tiny", ["LayerCAM"], 2, [BASE, REFINED], "toy", measurement="rounding")
    assert (sweep(planned)["moved"] < 1e-3).all()
    plain, drawn = measurements.measure, np.random.default_rng(0)
    monkeypatch.setattr(measurements, "measure", lambda *a: plain(*a).assign(morf_40=drawn.uniform(0, 1, 2)))
    monkeypatch.setattr(paths, "RESULTS", paths.RESULTS / "other")
    moved = sweep(planned)
    assert (moved["moved"] > 0.01).all() and set(moved["column"]) == {"morf_40"}


def test_columns_are_compared_row_by_row():
    here = pd.Series([1.0, np.nan, np.nan, 1002.0, 0.5])
    there = pd.Series([1.0, np.nan, 2.0, 1000.0, 0.4])
    assert results.differences(here, there) == pytest.approx([0, 0, np.inf, 0.002, 0.1])
    curves = [np.array([0.1, 0.2]), np.array([0.1, 0.2]), "ok", "ok", None]
    others = [np.array([0.1, 0.21]), np.array([0.1]), "ok", "failed", None]
    found = results.differences(pd.Series(curves, dtype=object), pd.Series(others, dtype=object))
    assert found == pytest.approx([0.01, np.inf, 0, np.inf, 0])


def proof(**options):
    return verify.prove(plan(), minutes=0.2, seed=0, n_jobs=1, **options)


def test_the_proof_covers_networks_and_aggregates_and_finds_the_rows_the_same():
    committed(plan())
    found = proof()
    assert found.ok and "18 are the same" in found.lines[1] and len(found.details) == 18
    short = verify.prove(plan(), minutes=0, seed=0, n_jobs=1)
    assert {line.split(", ")[-1] for line in short.details} == {"none: same", "product: same"}
    assert [line for line in verify.prove(plan(), 0, seed=0, n_jobs=1).details] == list(short.details)


def breaks(monkeypatch, broken):
    if broken == "aggregate":
        monkeypatch.setattr(explanation, "refine", lambda maps, aggregate: torch.stack(list(maps)).mean(0))
    elif broken == "order":
        keep = published.keep_ranks
        monkeypatch.setattr(published, "keep_ranks", lambda maps, *rest: keep(-maps, *rest))
    else:
        normalise = measurements.normalise
        monkeypatch.setattr(measurements, "normalise", lambda images, spec: normalise(images, spec) * 1.05)


@pytest.mark.parametrize("broken", ["aggregate", "order", "normalisation"])
def test_the_proof_fails_where_the_code_is_wrong(monkeypatch, broken):
    committed(plan())
    breaks(monkeypatch, broken)
    found = proof()
    assert not found.ok
    assert any("LayerCAM, toy-" in line and "differs: " in line for line in found.lines)


def test_whole_numbers_are_equal_or_differ(monkeypatch):
    shard = plan(methods=["LayerCAM"])[0]
    single = shard.only({shard.pairs[0]})
    here = measured_now(single).assign(keeps=2.0**31)
    assert verify.compare(single, here.iloc[0], here).kind == "same"
    monkeypatch.setattr(verify, "measured", lambda shard, rounding=None: here)
    moved = here.assign(keeps=2.0**31 + 1).iloc[0]
    found = verify.compare(single, moved, here)
    assert found.kind == "differs" and found.column == "keeps"


def test_rows_older_than_exact_removal_are_compared_without_it():
    shard = plan(methods=["LayerCAM"])[0]
    single = shard.only({shard.pairs[0]})
    here = measured_now(single).assign(exact_morf_1=0.5, mass_on_truth=0.9)
    older = here.iloc[0].copy()
    older["exact_morf_1"] = older["mass_on_truth"] = float("nan")
    assert verify.compare(single, older, here).kind == "same"
    assert verify.compare(single, older, here.assign(morf_20=0.5)).kind != "same"
    newer = here.iloc[0].copy()
    newer["mass_on_truth"] = float("nan")
    assert verify.compare(single, newer, here).kind != "same", "a row with exact removal has the share of the mass, too"


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_an_ill_conditioned_row_is_counted_and_no_failure(monkeypatch, double):
    monkeypatch.setitem(METHODS, "LayerCAM", replace(METHODS["LayerCAM"], double=double))
    rows = committed(plan())
    measure, drawn = measurements.measure_shard, np.random.default_rng(0)

    def shaken(shard, rounding=None):  # one image's row depends on the last bits of its input
        row = measure(shard, rounding)
        decided = (row["image"] == "toy-1") & (row["aggregate"] == "product")
        return row.assign(morf_40=row["morf_40"].where(~decided, drawn.uniform(0, 1)))

    monkeypatch.setattr(measurements, "measure_shard", shaken)
    found = proof()
    (line,) = [line for line in found.details if "ill-conditioned" in line]
    assert found.ok and "LayerCAM, toy-1, layer 0, product" in line and "rounding moves the row by" in line
    monkeypatch.setattr(verify, "LIMIT", 0.0001)
    assert not proof().ok, "too many of them are a failure"
    assert len(rows) == 18


def test_a_fresh_run_is_compared_with_committed_rows(monkeypatch):
    committed(plan())
    monkeypatch.setenv(paths.FRESH, "1")
    sweep(plan())
    found = verify.compared(plan())
    assert found.ok and "18 are the same" in found.lines[1]
    for file in paths.RESULTS.rglob("*.parquet"):
        file.unlink()
    breaks(monkeypatch, "aggregate")
    sweep(plan())
    assert not verify.compared(plan()).ok
    assert verify.stored(plan()) == {"committed": 0, "local": 18, "missing": 0}


def test_photographs_are_drawn_but_not_measured_without_the_pictures(tmp_path, monkeypatch):
    root = tmp_path / "pictures"
    root.mkdir()
    from PIL import Image

    for name, shade in (("n01440764_tench", 20), ("n01484850_great_white_shark", 90), ("n01491361_tiger_shark", 160)):
        Image.new("RGB", (60, 50), (shade, 99, 30)).save(root / f"{name}.png")
    monkeypatch.setenv("IMAGENET_ROOT", str(root))
    monkeypatch.setitem(registry.DATASETS, "imagenet", replace(registry.DATASETS["imagenet"], weights="synthetic"))

    def planned(n):
        return shard.plan("tiny", ["RandomCAM"], n, [BASE], "imagenet", size=2)

    def ids(n):
        return [image for shard in planned(n) for image in shard.images]

    before = ids(2)
    photographs.write_listing("imagenet", before)
    listed = (paths.ROWS / "photographs-imagenet.csv").read_text()
    assert listed.startswith("image,file,target\n") and listed.count("\n") == 3 and "/" not in listed
    monkeypatch.delenv("IMAGENET_ROOT")
    assert ids(2) == before and not photographs.available("imagenet")
    with pytest.raises(
        InputError,
        match=r"Expected 1 to 2 photographs of 'imagenet', got n = 3. Only these are committed. Set IMAGENET_ROOT",
    ):
        planned(3)
    with pytest.raises(InputError, match="is not here. Only its rows are committed. Set IMAGENET_ROOT"):
        sweep(planned(2))
    assert "can't be verified here: set IMAGENET_ROOT" in verify.prove(planned(2), 0).lines[-1]
    other = root / f"{before[0].partition('@')[0]}.png"
    Image.new("RGB", (60, 50), (1, 2, 3)).save(other)
    monkeypatch.setenv("IMAGENET_ROOT", str(root))
    assert ids(2)[0] != before[0] and ids(2)[1] == before[1], "another file of the same name is another image"
