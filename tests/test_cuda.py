"""On a GPU: the CPU's numbers, on the device from the images to the metrics. Skipped where there is no GPU."""

import pandas as pd
import pytest
import torch
from tiny_networks import LAYERS, batch, tiny_net
from toys import SPEC, TOY, plan, write_checkpoint
from toys import TINY_RECIPE as TINY

from refinecam_lib import paths
from refinecam_lib.capture import Capture
from refinecam_lib.datasets.sample import batch_of
from refinecam_lib.datasets.shapes import SyntheticShapes
from refinecam_lib.explanation import BASE, CONTROLS, METHODS, REFINED, Explanation, explain
from refinecam_lib.imputation import cpu as multigrid_numba
from refinecam_lib.metrics import measure
from refinecam_lib.networks import zoo
from refinecam_lib.networks.checkpoints import checkpoint_path
from refinecam_lib.networks.loading import load_model, normalise
from refinecam_lib.networks.zoo import MODELS, spec_of
from refinecam_lib.sweeps import measurements, registry
from refinecam_lib.sweeps import run as sweep
from refinecam_lib.training import loop as fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
GPU = "cuda"


def captured(device: str, dtype: torch.dtype = torch.float64) -> Capture:
    images, target = batch(3)
    truth = torch.zeros(3, 48, 48, dtype=torch.bool)
    truth[:, 10:20, 12:30] = True
    model = tiny_net().to(device, dtype)
    return Capture(model, images.to(device, dtype), target.to(device), LAYERS, [4, 5, 6], truth.to(device))


@pytest.mark.parametrize("method", [*METHODS, *CONTROLS])
def test_every_method_gives_the_cpus_maps_on_the_device(method):
    refines = (METHODS | CONTROLS)[method].refines
    for variant in (BASE, REFINED) if refines else (BASE,):
        here, there = (explain(captured(device), method, variant).maps for device in ("cpu", GPU))
        assert there.device.type == GPU and there.dtype == torch.float64
        # LIME's regression stops at a duality gap, not at the last bit.
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-5 if method == "LIME" else 1e-7)


def compare(here: pd.DataFrame, there: pd.DataFrame, atol: float) -> None:
    """Rows of both devices are alike; the average precision, of pixels in order, as far as rounding makes another order."""
    assert set(there["status"]) == set(here["status"]) == {"ok"}
    numbers = [frame.select_dtypes("number") for frame in (here, there)]
    for column in numbers[0]:
        wide = 10 if column == "average_precision" else 1
        pd.testing.assert_series_equal(numbers[0][column], numbers[1][column], rtol=0, atol=wide * atol)


@pytest.mark.parametrize("method, variant", [("LayerCAM", REFINED), ("GradCAM++", BASE), ("InputXGradient", BASE)])
def test_every_measurement_is_the_cpus(method, variant, monkeypatch):
    solve, solved = multigrid_numba.solve_on_cpu, []
    monkeypatch.setattr(multigrid_numba, "solve_on_cpu", lambda *given: solved.append(len(solved)) or solve(*given))
    frames, on_cpu = [], []
    for device in ("cpu", GPU):
        capture = captured(device)
        frames.append(
            measure(Explanation(capture, method, variant, explain(capture, method, variant).maps), capture.truth)
        )
        on_cpu.append(len(solved))
    compare(*frames, atol=1e-6)
    assert on_cpu[1] == on_cpu[0] > 0, "the GPU's imputation is its own"


@pytest.mark.parametrize("name", [name for name in MODELS if checkpoint_path(name).is_file()])
def test_shipped_networks_measure_alike(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images, target, masks = batch_of(list(SyntheticShapes("test", 2)))
    frames, spec = [], spec_of(name)
    for device in ("cpu", GPU):
        inputs = normalise(images.to(device), spec).contiguous(memory_format=torch.channels_last)
        capture = Capture(load_model(name, device=device), inputs, target.to(device), spec.layers)
        maps = explain(capture, "LayerCAM", REFINED).maps
        assert maps.device.type == torch.device(device).type
        frames.append(measure(Explanation(capture, "LayerCAM", REFINED, maps), masks.to(device)))
    compare(*frames, atol=1e-3)


def test_a_sweep_runs_on_the_device_and_gives_the_cpus_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    monkeypatch.setitem(registry.DATASETS, "toy", TOY)
    monkeypatch.setitem(zoo.MODELS, "tiny", SPEC)
    write_checkpoint(tmp_path, seed=0)
    measured, devices = measurements.measure, []

    def remember(capture, *rest):
        devices.append(capture.inputs.device.type)
        return measured(capture, *rest)

    monkeypatch.setattr(measurements, "measure", remember)
    rows = []
    for device in ("cpu", GPU):
        measurements.load_once.cache_clear()
        monkeypatch.setattr(paths, "RESULTS", tmp_path / device)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda device=device: device == GPU)
            rows.append(sweep.sweep(plan()))
    measurements.load_once.cache_clear()
    assert set(devices) == {"cpu", GPU}
    compare(*rows, atol=1e-3)


def test_memory_of_the_device_stays_flat():
    held = []
    for _ in range(12):
        capture = captured(GPU, torch.float32)
        measure(explain(capture, "LayerCAM", REFINED))
        del capture
        held.append(torch.cuda.memory_allocated())
    assert held[2] == held[-1]


def test_training_resumes_in_mixed_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0)
    learn = fit._Run.learn

    def dies(run, images, *rest):
        assert images.device.type == GPU and images.is_contiguous(memory_format=torch.channels_last)
        if run.record["step"] == 3:
            raise KeyboardInterrupt
        learn(run, images, *rest)

    monkeypatch.setattr(fit._Run, "learn", dies)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(TINY, GPU, 0, tmp_path, progress=False)
    monkeypatch.setattr(fit._Run, "learn", learn)
    model, record = fit.fit(TINY, GPU, 2, tmp_path, progress=False)
    assert record["step"] == TINY.steps and fit.half_of(torch.device(GPU)) in (torch.bfloat16, None)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
