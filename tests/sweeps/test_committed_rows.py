"""The committed rows are those of the notebooks' own parameters, and today's code gives the same rows."""

import pandas as pd
import pytest

from refinecam_lib import paths
from refinecam_lib.reproduce import verify
from refinecam_lib.reproduce.parameters import chosen, profiles
from refinecam_lib.sweeps.experiments import plan_of
from refinecam_lib.sweeps.shard import RESULTS_VERSION
from refinecam_lib.sweeps.store import look_up


def planned(profile):
    books, values = chosen(profile)
    return {book.name: plan_of(book.name, values[book.name]) for book in books}


@pytest.mark.parametrize("profile", sorted({"standard", "photographs"} & set(profiles())))
def test_the_notebooks_draw_from_committed_rows_alone(profile):
    for name, shards in planned(profile).items():
        found = look_up(shards)
        assert not found.missing and found.committed == len(found.rows), f"{profile}, {name}: rows are missing"
        assert not len(found.rows) or (found.rows["status"] != "failed").all()


def test_rows_measured_again_are_the_committed_ones():
    """Measure one row of every kind, network and aggregate. If the code moves them, raise RESULTS_VERSION."""
    shards = [shard for part in planned("standard").values() for shard in part]
    proof = verify.prove(shards, minutes=0, seed=0)
    kinds = {line.partition(",")[0] for line in proof.details}
    assert proof.ok, "\n".join(["rows moved, but RESULTS_VERSION did not:", *proof.lines])
    planned_kinds = {shard.measurement for shard in shards}
    assert kinds == planned_kinds - {"rounding"}, "rows of `rounding` depend on the CPU"
    assert planned_kinds == set(RESULTS_VERSION)


def test_every_committed_file_is_planned_and_small():
    files = {path.name: path for path in paths.ROWS.glob("*.parquet")}
    assert files and sum(path.stat().st_size for path in paths.ROWS.iterdir()) < 40e6
    for name, path in files.items():
        kind, dataset, model = name.removesuffix(".parquet").split("-")
        rows = pd.read_parquet(path)
        assert kind in RESULTS_VERSION and set(rows["dataset"]) == {dataset} and set(rows["model"]) == {model}
        assert not rows.duplicated(["setup", "image", "layer", "aggregate"]).any()
