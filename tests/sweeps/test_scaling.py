"""The arithmetic of docs/scaling.md: counted passes match its formulas, and its tables follow from them."""

import re
import threading

import pandas as pd
import pytest
import toys

from benchmarks import scaling
from refinecam_lib import paths
from refinecam_lib.networks import zoo
from refinecam_lib.sweeps import registry
from refinecam_lib.sweeps.measurements import load_once
from refinecam_lib.sweeps.run import measured

DOCUMENT = (paths.ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "method, forward, back",
    [
        ("LayerCAM", 1 + 2 * (1 + 8), 3),
        ("ShapleyCAM", 1 + 2 * (1 + 8), 5 + 2 + 5),  # a gradient, and a product per layer
        ("ScoreCAM", 80 + (8 + 80) + 1 + 2 * (1 + 8), 0),  # the layers have 8, 16, 24 and 32 channels
        ("RandomCAM", 1 + 1 + 8, 0),  # one map, so one variant
    ],
)
def test_passes_are_counted_as_the_formulas_say(tmp_path, monkeypatch, method, forward, back):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    monkeypatch.setitem(registry.DATASETS, "toy", toys.TOY)
    monkeypatch.setitem(zoo.MODELS, "tiny", toys.SPEC)
    toys.write_checkpoint(tmp_path, seed=0)
    load_once.cache_clear()
    shard = toys.plan(images=3, size=3, methods=[method])[0]
    network = load_once("tiny", "synthetic", shard.checkpoint, threading.get_ident())
    with scaling.counted(network) as seen:
        measured(shard)
    load_once.cache_clear()
    assert (seen["forward"], seen["back"]) == (3 * forward, 3 * back)
    assert not network._forward_hooks


def test_only_the_passes_per_channel_depend_on_the_network():
    own = {"forward": 1.0, "back": 2.0, "channels": 80, "shallowest": 8}
    costs = pd.DataFrame({"forward": [19.0, 187.0], "back": [3.0, 0.0]})
    assert scaling.network_cost(own, own, costs) == (206, 206 + 6)
    wider = {"forward": 10.0, "back": 20.0, "channels": 160, "shallowest": 16}
    assert scaling.network_cost(wider, own, costs) == (206 + 168, 3740 + 60)


def test_the_tables_of_the_document_follow_from_each_other():
    """Each network's forwards and operations follow from the passes in the first table and the second table."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in DOCUMENT.splitlines() if line.startswith("|")
    ]
    costs = pd.DataFrame(
        [
            [float(cell.replace(",", "")) for cell in row[1:4]]
            for row in rows
            if row[0] in (*scaling.CAMS, *scaling.OTHERS)
        ],
        columns=["rows", "forward", "back"],
    )
    assert len(costs) == 10 and costs["rows"].sum() == 15
    networks = {
        row[0]: [float(n) for n in re.findall(r"[\d.]+", " ".join(row[1:]).replace(",", ""))]
        for row in rows
        if len(row) > 3 and "(" in row[3]
    }
    networks.pop("network")
    facts = {name: dict(zip(("forward", "back", "channels", "shallowest"), row)) for name, row in networks.items()}
    total = 0.0
    for name, (*_, forwards, tera) in networks.items():
        forward, gigas = scaling.network_cost(facts[name], facts["EfficientNet-Lite0"], costs)
        assert forward == forwards and gigas / 1e3 == pytest.approx(tera, abs=0.1), name
        total += tera if name != "EfficientNet-Lite0" else 0
    peta, hours = (
        next(row for row in rows if row[0].startswith("operations")),
        next(r for r in rows if r[0].startswith("GPU hours")),
    )
    for column, images in ((1, 1_000), (2, 50_000)):
        assert float(peta[column].split()[0].replace(",", "")) == pytest.approx(total * images / 1e3, rel=0.01)
        assert float(hours[column]) == pytest.approx(total * images / scaling.SUSTAINED / 3600, rel=0.01)
