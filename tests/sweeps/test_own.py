"""A network and samples of your own go through a sweep into a row of Table 1, also in worker processes."""

import copy
import os
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from tiny_networks import LAYERS, TinyNet, batch, tiny_net
from torch import nn
from toys import same

import refinecam_lib as rc
from refinecam_lib import paths
from refinecam_lib.analysis import tables
from refinecam_lib.networks import zoo
from refinecam_lib.sweeps import experiments, measurements, own, registry, shard

SPEC = rc.ModelSpec("mine", lambda classes, pretrained: TinyNet(), LAYERS, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """Keep results in a temporary folder, and registries as they were."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("REFINECAM_RESULTS", str(tmp_path / "results"))  # for new processes
    before = [(r, dict(r)) for r in (rc.METHODS, rc.AGGREGATES, registry.DATASETS, zoo.OWN)]
    measurements.load_once.cache_clear()
    yield
    get_reusable_executor().shutdown()
    for registered, entries in before:
        registered.clear(), registered.update(entries)


def samples(n=5):
    """Return images of 48 px whose class is what the network of seed 0 predicts."""
    images = (batch(n)[0] / 4 + 0.5).clamp(0, 1)
    target = tiny_net()((images - 0.5) / 0.25).argmax(1)
    mask = torch.zeros(48, 48, dtype=torch.bool)
    mask[8:24, 8:24] = True
    return [rc.Sample(image, int(t), f"photo {i}", mask) for i, (image, t) in enumerate(zip(images, target))]


def remove_rows():
    for path in (paths.RESULTS / "rows").rglob("*.parquet"):
        path.unlink()


def test_a_hand_written_classifier_gets_a_row_of_table_1():
    rows = rc.sweep(rc.own_plan((SPEC, tiny_net()), samples(), ["LayerCAM", "InputXGradient"]))
    assert set(rows["model"]) == {"mine"} and set(rows["dataset"]) == {"own"} and set(rows["status"]) == {"ok"}
    assert rows["correct"].all() and rows["cosine"].notna().all()
    spec_row = rows.query("method == 'LayerCAM' and layer == 0 and aggregate == 'product'")
    images, target, masks = rc.batch_of(samples())
    capture = rc.Capture(tiny_net(), (images - 0.5) / 0.25, target, LAYERS, truth=masks)
    alone = rc.measure(rc.explain(capture, "LayerCAM", rc.REFINED))
    for name in ("probability", "mean_activation", "pearson", "cosine"):
        assert spec_row[name].to_numpy() == pytest.approx(alone[name].to_numpy(), abs=1e-5), name
    kept = tables.scored(rows, "recommended").query("layer == 0")
    summaries = tables.summaries(kept, ["arcc"], ["model", "method", "aggregate"])
    text = tables.beside_paper(summaries, "table1", ["LayerCAM", "InputXGradient"]).to_string()
    mean = rc.scores(alone)["arcc"].mean()
    assert "mine" in text and "LayerCAM" in text and f"{mean:.2f}" in text


def test_rows_belong_to_weights_code_and_samples(capsys):
    def measured(network, items):
        rc.sweep(rc.own_plan((SPEC, network), items, ["LayerCAM"]))
        return int(capsys.readouterr().out.rsplit(" measured now", 1)[0].split()[-1])

    class Doubled(TinyNet):
        def forward(self, x):
            return 2 * super().forward(x)

    network, items, every = tiny_net(), samples(), 5 * 8  # Base and RefineCAM of each layer
    every = measured(network, items)
    assert every == 5 * 7  # Base of 4 layers, RefineCAM of 3
    assert measured(copy.deepcopy(network).train(), items[::-1]) == 0, "neither the mode nor the order counts"
    assert measured(tiny_net(1), items) == every
    doubled = Doubled().eval()
    doubled.load_state_dict(network.state_dict())
    assert measured(doubled, items) == every, "the same weights in other code"
    brighter = replace(items[0], image=items[0].image.clamp(0.1, 1))
    assert measured(network, [brighter, *items[1:]]) == every / 5, "only the changed sample"
    assert measured(network, [replace(items[0], target=5 - items[0].target), *items[1:]]) == every / 5
    assert measured(network, [replace(items[0], mask=~items[0].mask), *items[1:]]) == every / 5
    with torch.no_grad():
        network.fc.bias += 1
    assert measured(network, items) == every, "trained further in place"
    assert network.fc.weight.requires_grad, "the network comes back unchanged"


def test_a_network_that_is_trained_after_planning_does_not_change_the_plan():
    network, plain = tiny_net(), None
    shards = rc.own_plan((SPEC, network), samples(), ["LayerCAM"])
    plain = rc.sweep(shards)
    remove_rows()
    measurements.load_once.cache_clear()
    nn.init.normal_(network.fc.weight)
    same(rc.sweep(shards), plain)


def test_a_name_with_other_content_after_planning_is_refused():
    first = rc.own_plan((SPEC, tiny_net()), samples(), ["LayerCAM"])
    rc.own_plan((SPEC, tiny_net()), samples()[1:], ["LayerCAM"])
    with pytest.raises(rc.InputError, match="Expected 5 samples or more, got 4"):
        rc.sweep(first)
    rc.own_plan((SPEC, tiny_net()), samples()[::-1], ["LayerCAM"])
    with pytest.raises(
        rc.InputError, match="'own' changed after they were planned: expected photo 0@.*name of its own"
    ):
        rc.sweep(first)
    shards = rc.own_plan((SPEC, tiny_net()), samples(), ["LayerCAM"])
    rc.own_plan((SPEC, tiny_net(1)), samples(), ["LayerCAM"])
    measurements.load_once.cache_clear()
    with pytest.raises(rc.InputError, match="checkpoint of mine changed during the sweep"):
        rc.sweep(shards)


def test_a_name_of_the_library_stays_its_own():
    rc.own_plan((replace(SPEC, name="resnet18"), tiny_net()), samples(), ["LayerCAM"])
    assert rc.spec_of("resnet18").layers == LAYERS and rc.spec_of("resnet18").mean != SPEC.mean
    with pytest.raises(rc.InputError, match="Expected a new name for your samples, got 'synthetic'"):
        rc.own_plan((SPEC, tiny_net()), samples(), ["LayerCAM"], name="synthetic")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: [s[0], s[0]], "Expected one sample with id 'photo 0', got two"),
        (lambda s: [replace(s[0], image=s[0].image * 255)], r"in \[0, 1\] in the image of sample 'photo 0'"),
        (lambda s: [replace(s[0], image=s[0].image - 1)], "Pass it without normalisation"),
        (lambda s: [replace(s[0], image=s[0].image.double())], "got torch.float64"),
        (lambda s: [], "Expected 1 image or more"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change, words):
    with pytest.raises(rc.InputError, match=words):
        rc.own_plan((SPEC, tiny_net()), change(samples()), ["LayerCAM"])


def mean_map(capture):
    """Average the channels, by a helper of this module."""
    return [average(a) for a in capture.activations]


def average(activation):
    return activation.mean(1)


def test_worker_processes_measure_what_is_yours():
    rc.METHODS["Mean"], rc.AGGREGATES["minimum"] = rc.Method(mean_map), lambda maps: maps.amin(0)

    def planned():
        shards = rc.own_plan((SPEC, tiny_net()), samples(), ["Mean", "LayerCAM", "Mean^0.5"])
        return shards + shard.plan("mine", ["Mean"], 5, [rc.Variant(0, "minimum")], dataset="own")

    rows = rc.sweep(planned())
    remove_rows()
    same(rc.sweep(planned(), n_jobs=2), rows)
    rc.METHODS["Mean"] = rc.Method(lambda capture: [a.amax(1) for a in capture.activations])
    rc.AGGREGATES["minimum"] = lambda maps: maps.amax(0)
    edited = rc.sweep(planned(), n_jobs=2)  # the same processes
    moved = (edited["mean_activation"] - rows["mean_activation"]).abs() > 1e-6
    assert set(rows["method"][moved]) == {"Mean", "Mean^0.5"} and moved[rows["aggregate"] == "minimum"].all()
    for path in (paths.RESULTS / "rows").rglob("*.parquet"):
        path.unlink()
    same(rc.sweep(planned()), edited)


def test_what_cannot_be_sent_says_n_jobs_1():
    lock = threading.Lock()
    rc.METHODS["Locked"] = rc.Method(lambda capture: [a.mean(1) for a in capture.activations if not lock.locked()])
    shards = rc.own_plan((SPEC, tiny_net()), samples(2), ["Locked", "InputXGradient"])
    with pytest.raises(rc.InputError, match=r"'Locked'.* cannot be sent to other processes: .*lock.*Pass n_jobs=1\."):
        rc.sweep(shards, n_jobs=2)
    assert len(rc.sweep(shards)) == 2 * 8
    assert own.pack(rc.own_plan((SPEC, tiny_net()), samples(2), ["LayerCAM"])), "only what is used is sent"


def test_nothing_is_sent_if_everything_is_of_the_library():
    shards = experiments.fig1_plan(["efficientnet_lite0"], 2, 2)
    assert own.pack(shards) is None


def test_the_same_hash_in_every_process():
    text = """
        import timm, torch, torchvision
        from refinecam_lib.sweeps.source import source_of
        torch.manual_seed(0)
        nets = torchvision.models.resnet18(), timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
        print(*(source_of(net.eval()) for net in nets))
    """
    runs = {
        subprocess.run([sys.executable, "-c", textwrap.dedent(text)], env=os.environ | {"PYTHONHASHSEED": str(seed)},
                       capture_output=True, text=True, check=True).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert len(runs) == 1 and len(set(runs.pop().split())) == 2
