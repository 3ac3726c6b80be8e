"""Measurements compared with the package grad-cam, scores with values by hand and by scipy."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pytorch_grad_cam import LayerCAM
from pytorch_grad_cam.metrics import arcc, cam_mult_image, road
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from tiny_networks import LAYERS, batch, tiny_net

from refinecam_lib.cams import layer_cam
from refinecam_lib.capture import Capture
from refinecam_lib.errors import InputError
from refinecam_lib.explanation import BASE, REFINED, Explanation, explain
from refinecam_lib.metrics import complexity, cosine_similarity, measure, pearson
from refinecam_lib.refinement import Power
from refinecam_lib.scoring import CONVENTIONS, scores


def measured(method="LayerCAM", variant=BASE, n=3, **options):
    inputs, target = batch(n)
    capture = Capture(tiny_net(), inputs, target, LAYERS)
    explanation = explain(capture, method, variant)
    return measure(explanation, **options), explanation.maps


@pytest.fixture
def noiseless(monkeypatch):
    """Remove ROAD's noise on both sides. In the package grad-cam a caller cannot set it."""
    start = road.NoisyLinearImputer.__init__
    monkeypatch.setattr(road.NoisyLinearImputer, "__init__", lambda self: start(self, noise=0.0))
    monkeypatch.setattr("refinecam_lib.road.road_noise", lambda seeds, shape: torch.zeros(len(seeds), *shape))


def test_arcc_and_its_terms_match_grad_cam(noiseless):
    inputs, target = batch(3)
    model = tiny_net()
    frame, maps = measured()
    ours = scores(frame)
    logit = [ClassifierOutputTarget(int(c)) for c in target]
    softmax = [ClassifierOutputSoftmaxTarget(int(c)) for c in target]
    cam = LayerCAM(model, [model.layer1])
    theirs = maps.numpy()
    np.testing.assert_allclose(ours["complexity"], arcc.Complexity()(theirs), atol=1e-5)
    np.testing.assert_allclose(ours["coherency"], arcc.Coherency()(inputs, theirs, logit, model, cam), atol=1e-5)
    halved = road.ROADCombined(percentiles=[20, 40, 60, 80])
    np.testing.assert_allclose(ours["road"], 2 * halved(inputs, theirs, softmax, model), atol=1e-3)
    drop = cam_mult_image.DropInConfidence()(inputs, theirs, softmax, model) / frame["probability"]
    np.testing.assert_allclose(ours["average_drop"], drop, atol=1e-5)
    assert ours["road"].abs().max() > 0.02 and ours["average_drop"].max() > 0.02  # otherwise the comparison is of zeros


def test_arcc_is_the_clipped_harmonic_mean():
    table = scores(measured(n=6)[0])
    for _, row in table.iterrows():
        terms = [row.coherency, 1 - row.complexity, row.road]
        expected = scipy.stats.hmean(np.clip(terms, 0, 1)) if row.road > 0 else 0
        assert row.arcc == pytest.approx(expected, abs=1e-9)
        assert row.adcc == pytest.approx(scipy.stats.hmean([row.coherency, 1 - row.complexity, 1 - row.average_drop]))


def test_conventions_on_one_row_by_hand():
    row = pd.DataFrame({"probability": [0.8], "probability_masked": [0.5], "mean_activation": [0.25], "pearson": [0.6]})
    row["morf_20"], row["morf_80"], row["lerf_20"], row["lerf_80"] = 0.5, 0.1, 0.9, 0.5
    ours, paper, code = (scores(row, name).iloc[0] for name in CONVENTIONS)
    assert ours.average_drop == pytest.approx(0.3 / 0.8) and paper.average_drop == pytest.approx(0.3 / 0.5)
    assert ours.coherency == code.coherency == pytest.approx(0.8) and paper.coherency == pytest.approx(0.6)
    assert ours.road == paper.road == pytest.approx(0.4) and code.road == pytest.approx(0.2)
    assert ours.arcc == pytest.approx(3 / (1 / 0.8 + 1 / 0.75 + 1 / 0.4))
    assert paper.arcc == pytest.approx(3 / (1 / 0.6 + 1 / 0.75 + 1 / 0.4))
    assert code.arcc == pytest.approx(3 / (1 / 0.8 + 1 / 0.75 + 1 / 0.2))


def test_negative_road_is_zero_under_ours_and_undefined_as_printed():
    row = pd.DataFrame({"probability": [0.8], "probability_masked": [0.5], "mean_activation": [0.2], "pearson": [0.6]})
    row["morf_50"], row["lerf_50"] = 0.9, 0.45  # ROAD is -.45, near the pole of the unclipped harmonic mean
    assert scores(row).iloc[0].arcc == 0
    assert np.isnan(scores(row, "paper").iloc[0].arcc)


def test_magnitude_changes_arcc_but_not_road():
    """M and M^(1/8) have the same order of pixels and so the same ROAD (Fig. 4). Their ARCC differs."""
    inputs, _ = batch(8)
    model = tiny_net()
    capture = Capture(model, inputs, model(inputs).argmax(1), LAYERS)
    tables = []
    for method in (layer_cam, Power(layer_cam, 1 / 8)):
        maps = explain(capture, method).maps
        tables.append((scores(measure(Explanation(capture, method, BASE, maps))), maps))
    (a, plain), (b, flat) = tables
    torch.testing.assert_close(flat, plain**0.125)
    assert a["road"].abs().max() > 0.05
    np.testing.assert_allclose(a["road"], b["road"], atol=1e-6)
    assert (b["complexity"] > a["complexity"] + 0.1).all()
    assert (a["arcc"] - b["arcc"]).abs().max() > 0.05


def test_trivial_maps():
    ones, _ = measured("All1sCAM", n=4)
    table = scores(ones)
    assert table["average_drop"].max() < 0.02 and table["complexity"].min() > 0.999
    np.testing.assert_allclose(table["coherency"], 1)
    half = scores(measured("HalfCAM", n=4)[0])
    np.testing.assert_allclose(half["complexity"], 0.5)
    np.testing.assert_allclose(half["coherency"], 1)


def test_random_cam_draws_another_map_for_the_masked_image():
    np.testing.assert_allclose(scores(measured("RandomCAM", n=4)[0])["coherency"], 0.5, atol=0.05)


def test_refined_coherency_explains_every_layer_of_the_masked_image():
    frame, maps = measured("LayerCAM", REFINED)
    inputs, target = batch(3)
    again = explain(Capture(tiny_net(), inputs * maps[:, None], target, LAYERS), "LayerCAM", REFINED).maps
    expected = [scipy.stats.pearsonr(a.flatten(), m.flatten())[0] for a, m in zip(again, maps)]
    np.testing.assert_allclose(frame["pearson"], expected, atol=1e-5)


def test_constant_and_non_finite_maps_are_rows_with_a_status():
    inputs, target = batch(3)
    capture = Capture(tiny_net(), inputs, target, LAYERS)
    maps = explain(capture, "LayerCAM", BASE).maps.clone()
    maps[1], maps[2, 0, 0] = 0, torch.nan
    frame = measure(Explanation(capture, "LayerCAM", BASE, maps))
    assert list(frame["status"]) == ["ok", "constant", "not finite"]
    table = scores(frame)
    assert table.iloc[1]["arcc"] == 0 and table.iloc[2].isna().all()


def test_a_map_that_is_not_finite_is_a_row_with_that_status():
    def broken(capture):
        first, *rest = layer_cam(capture)
        for i, value in enumerate((torch.nan, torch.inf)):
            first[i, 0, 0] = value
        return [first, *rest]

    for variant in (BASE, REFINED):
        frame, _ = measured(broken, variant)
        assert list(frame["status"]) == ["not finite", "not finite", "ok"]
        assert list(scores(frame)["arcc"].isna()) == [True, True, False]


@pytest.mark.parametrize("method", ["LayerCAM", "RandomCAM"])
def test_measurements_do_not_depend_on_the_batch(method):
    whole, _ = measured(method, n=3)
    inputs, target = batch(3)
    for i in range(3):
        one = measure(explain(Capture(tiny_net(), inputs[i : i + 1], target[i : i + 1], LAYERS), method))
        numbers = one.select_dtypes(float).columns
        np.testing.assert_allclose(one.loc[0, numbers].astype(float), whole.loc[i, numbers].astype(float), atol=1e-4)


@given(st.integers(0, 2**31))
def test_pearson_cosine_and_complexity_match_scipy_and_numpy(seed):
    a, b = (torch.from_numpy(m) for m in np.random.default_rng(seed).random((2, 2, 5, 7)))
    np.testing.assert_allclose(
        pearson(a, b), [scipy.stats.pearsonr(x.ravel(), y.ravel())[0] for x, y in zip(a, b)], atol=1e-9
    )
    distance = [scipy.spatial.distance.cosine(x.ravel(), y.ravel()) for x, y in zip(a, b)]
    np.testing.assert_allclose(cosine_similarity(a, b), 1 - np.array(distance), atol=1e-9)
    np.testing.assert_allclose(complexity(a), a.numpy().mean((1, 2)), atol=1e-12)


def test_bad_input():
    with pytest.raises(InputError, match="unknown convention 'recomended'. Did you mean 'recommended'"):
        scores(measured()[0], "recomended")
    with pytest.raises(InputError, match="differ in whole percents"):
        measured(fractions=(0.201, 0.204))
    with pytest.raises(InputError, match="without the columns pearson"):
        scores(measured()[0].drop(columns="pearson"))


def as_given(kind, maps):
    """Return the same maps as people have them."""
    return {
        "tensor": maps,
        "NumPy": maps.numpy(),
        "float64": maps.double(),
        "NumPy float64": maps.double().numpy(),
        "channel": maps[:, None],
        "NumPy channel": maps[:, None].numpy(),
        "with a graph": maps.clone().requires_grad_() * 1,
        "float16": maps.half(),
    }[kind]


def two_images():
    model, (inputs, target) = tiny_net(), batch(2)
    return Capture(model, inputs, target, LAYERS)


KINDS = ["NumPy", "float64", "NumPy float64", "channel", "NumPy channel", "with a graph", "float16"]


@pytest.mark.parametrize("kind", KINDS)
def test_finished_maps_are_measured_in_every_form_that_is_clear(kind):
    capture = two_images()
    maps = explain(capture, "LayerCAM", REFINED).maps
    maps = maps.half().float() if kind == "float16" else maps
    expected, row = (measure(Explanation(capture, "LayerCAM", REFINED, as_given(k, maps))) for k in ("tensor", kind))
    pd.testing.assert_frame_equal(row, expected)


def test_smaller_maps_are_resized_and_one_map_needs_no_batch_axis():
    capture = two_images()
    small = torch.rand(2, 12, 16, generator=torch.Generator().manual_seed(0))
    found = Explanation(capture, "LayerCAM", BASE, small).maps
    assert found.shape == (2, 48, 48)
    assert torch.equal(found, F.interpolate(small[:, None], (48, 48), mode="bilinear", align_corners=False)[:, 0])
    one = Capture(capture.model, capture.inputs[:1], [0], LAYERS)
    assert torch.equal(Explanation(one, "LayerCAM", BASE, found[0].numpy()).maps, found[:1])
    mask = found > 0.5
    assert torch.equal(Explanation(capture, "LayerCAM", BASE, mask).maps, mask.float())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: 255 * m, r"values 0\.\.255; allowed: values in \[0,1\]"),
        (lambda m: (255 * m).to(torch.uint8), r"values 0\.\.255"),
        (lambda m: 2 * m - 1, r"values -1\.\.1;"),
        (lambda m: m + 0.01, r"values 0\.01\.\.1\.01"),
        (lambda m: -m.numpy(), r"values -1\.\.-?0;"),
        (lambda m: torch.where(m > 0.5, torch.nan, 3 * m), "allowed: values"),
        (lambda m: m[:1], r"shape \(1, 48, 48\); allowed: \(2, 48, 48\), one map an image"),
        (lambda m: m[0], r"shape \(48, 48\); allowed: \(2"),
        (lambda m: m[[0, 1, 1]], r"shape \(3, 48, 48\)"),
        (lambda m: m[:, None].expand(-1, 3, -1, -1), r"shape \(2, 3, 48, 48\)"),
        (lambda m: m.flatten(1), r"shape \(2, 2304\)"),
        (lambda m: m[:, :0], r"shape \(2, 0, 48\)"),
    ],
)
def test_what_is_no_map_of_each_image_is_refused(change, words):
    capture = two_images()
    maps = explain(capture, "LayerCAM").maps
    with pytest.raises(InputError, match=words):
        Explanation(capture, "LayerCAM", BASE, change(maps))
