"""A toy data set, network and checkpoint for sweeps."""

import pytest
from toys import SPEC, TOY, write_checkpoint

from refinecam_lib import paths
from refinecam_lib.networks import zoo
from refinecam_lib.sweeps import measurements, registry


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Register the toys under names of their own, with results in a temporary folder. Returns that folder."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "ROWS", tmp_path / "committed")
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    monkeypatch.setitem(registry.DATASETS, "toy", TOY)
    monkeypatch.setitem(zoo.MODELS, "tiny", SPEC)
    write_checkpoint(tmp_path, seed=0)
    measurements.load_once.cache_clear()
    yield tmp_path
    measurements.load_once.cache_clear()
