"""A shard's key names its committed rows, so moving or renaming code must not change it."""

import pytest

from refinecam_lib.explanation import BASE, REFINED, Variant
from refinecam_lib.sweeps.shard import plan

DATA = {
    "synthetic": "36959efdf9f7db58",
    "synthetic_validation": "502c92e373c23833",
    "synthetic_raw": "061b6d6a9cd5ea1d",
    "synthetic_imputed": "3f9487b7d169f78a",
    "synthetic_leaked": "472714a452dae4c7",
    "synthetic_published": "0971d00f812b6910",
    "synthetic_shifted": "2c5f545afdd061fd",
    "birds": "522fa2ba015accfd",
    "birds_labelled": "633b5ec7482db090",
    "scenes_objects": "08d2231398b42af1",
    "scenes_badges": "75a6c71d4e11dc9b",
    "scenes_badges_half": "532e12529ae7f4c7",
    "imagenet": "165dee462889a39f",
    "bundled": "1d3308cf3c6176ef",
}
MEASUREMENTS = {
    "agreement": "7d3ff763ff087dcc",
    "faithfulness": "36bd34a717c3cf1e",
    "imputers": "1747c853d4cd5462",
    "scores": "1f9d7be945644515",
    "predictions": "40c1835b88bd17e2",
    "maps": "45e610fd22461bb3",
    "randomisation": "466d80aa1f9ecc6f",
    "rounding": "5dfca94f77175d94",
}


@pytest.fixture(autouse=True)
def usual_data(monkeypatch):
    for name in ("WALDO_ROOT", "FUNNYBIRDS_ROOT", "IMAGENET_ROOT", "IMAGES_ROOT", "REFINECAM_FRESH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("dataset", DATA)
def test_keys_of_every_data_set(dataset):
    model = "small_resnet" if dataset.startswith("birds") else "efficientnet_lite0"
    assert plan(model, ["LayerCAM"], 2, [BASE, REFINED], dataset)[0].key == DATA[dataset]


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_keys_of_every_measurement(measurement):
    method = "" if measurement == "predictions" else "LayerCAM"
    assert plan("efficientnet_lite0", [method], 2, [BASE], measurement=measurement)[0].key == MEASUREMENTS[measurement]


def test_key_of_every_field():
    shard = plan("swin_tiny", ["GradCAM++^0.125"], 2, [Variant(3)], seed=7, defects=("percentiles", "one_seed"))[0]
    assert (shard.key, shard.setup) == ("3e9160e52310d107", "1fabf7092e9256a8")
