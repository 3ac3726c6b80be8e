"""Three lines for any classifier, and explainers of other packages under our scores."""

import captum.attr
import numpy as np
import pandas as pd
import pytest
import pytorch_grad_cam
import timm
import torch
import torchcam.methods
import torchvision
import transformers
from PIL import Image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tiny_networks import LAYERS, batch, tiny_net

import refinecam_lib as rc
from refinecam_lib.explanation import BASE, METHODS, REFINED, Variant
from refinecam_lib.toolbox.evaluation import TITLES, WITHOUT_AGAIN
from refinecam_lib.toolbox.pictures import inputs_of

SCORES = list(TITLES.values())


def close(a: pd.DataFrame, b: pd.DataFrame, tolerance: float = 1e-5) -> None:
    pd.testing.assert_frame_equal(a, b, rtol=0, atol=tolerance, check_dtype=False)


@pytest.fixture
def network():
    return tiny_net(), *batch(3)


def test_explain_takes_a_network_or_a_capture(network):
    model, inputs, target = network
    capture = rc.Capture(model, inputs, target, LAYERS)
    for refine, variant in (("product", REFINED), ("none", Variant(len(LAYERS) - 1))):
        ours = rc.explain(model, inputs, method="LayerCAM", refine=refine, target=target, layers=LAYERS)
        assert torch.equal(ours.maps, rc.explain(capture, "LayerCAM", variant).maps)
    one = rc.explain(model, inputs, "GradCAM", target=1, layers=LAYERS[-1])
    assert one.capture.target.tolist() == [1, 1, 1] and one.capture.layers == LAYERS[-1:]
    assert rc.explain(model, inputs, layers=LAYERS).capture.target.tolist() == model(inputs).argmax(1).tolist()


def test_an_explanation_is_scored_under_titles_with_arrows(network):
    model, inputs, target = network
    explanation = rc.explain(model, inputs, refine="product", target=target, layers=LAYERS)
    table = rc.evaluate(explanation)
    assert list(table) == SCORES and len(table) == 3
    close(table.set_axis(list(TITLES), axis=1), rc.scores(rc.measure(explanation)))
    other = rc.evaluate(explanation, convention="published_code")
    assert other["ROAD ↑"].to_numpy() == pytest.approx(table["ROAD ↑"].to_numpy() / 2)


def test_finished_maps_have_no_coherency(network):
    model, inputs, target = network
    explanation = rc.explain(model, inputs, target=target, layers=LAYERS)
    with pytest.warns(UserWarning, match="Coherency, ADCC and ARCC are left out"):
        table = rc.evaluate(model, inputs, maps=explanation.maps.numpy(), target=target, layers=LAYERS)
    lacking = [TITLES[name] for name in WITHOUT_AGAIN]
    close(table, rc.evaluate(explanation).drop(columns=lacking))


def test_maps_from_elsewhere_need_no_layers():
    torch.manual_seed(0)
    model, (inputs, target) = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 48 * 48, 6)), batch(2)
    maps = inputs.square().mean(1) / inputs.square().mean(1).amax((1, 2), keepdim=True)
    table = rc.evaluate(model, inputs, maps=maps, target=target)
    again = rc.evaluate(model, inputs, explainer=lambda images, classes: maps, target=target)
    close(table, again[list(table)])
    assert again["Coherency ↑"].tolist() == pytest.approx([1, 1]) and torch.is_grad_enabled()
    with pytest.raises(rc.InputError, match="no layer of Sequential gives a map"):
        rc.evaluate(model, inputs, explainer="LayerCAM", target=target)
    with pytest.raises(rc.InputError, match="allowed: one of its layers"):
        rc.explain(rc.Capture(model, inputs, target, ()), "LayerCAM")


def test_a_callable_is_explained_again_on_the_masked_image(network):
    model, inputs, target = network
    seen = []

    def layer_cam(images, classes):
        seen.append(images)
        return rc.explain(rc.Capture(model, images, classes, LAYERS), "LayerCAM", BASE).maps

    table = rc.evaluate(model, inputs, explainer=layer_cam, target=target, layers=LAYERS)
    ours = rc.explain(rc.Capture(model, inputs, target, LAYERS), "LayerCAM", BASE)
    close(table, rc.evaluate(ours))
    assert len(seen) == 2 and torch.allclose(seen[1], inputs * ours.maps[:, None])


def test_the_best_combination_is_the_default(network):
    model, inputs, target = network
    capture = rc.Capture(model, inputs, target, LAYERS)
    mean = rc.explain(capture, "LayerCAM", Variant(0, "mean"))
    ours = rc.explain(model, inputs, "LayerCAM", target=target, layers=LAYERS)
    assert torch.equal(ours.maps, mean.maps) and not torch.equal(ours.maps, rc.explain(capture, "LayerCAM").maps)
    close(rc.evaluate(model, inputs, explainer="LayerCAM", target=target, layers=LAYERS), rc.evaluate(mean))
    one = rc.explain(model, inputs, "InputXGradient", target=target, layers=LAYERS)
    assert one.variant == BASE, "a method with one map has nothing to combine"
    with pytest.raises(rc.InputError, match="no map for each layer"):
        rc.explain(model, inputs, "InputXGradient", refine="mean", target=target, layers=LAYERS)


def test_masks_add_the_agreement_with_the_truth(network):
    model, inputs, target = network
    masks = torch.zeros(inputs.shape[0], *inputs.shape[2:], dtype=torch.bool)
    masks[:, :8, :8] = True
    table = rc.evaluate(model, inputs, maps=masks.float(), masks=masks, target=target, layers=LAYERS)
    assert table["cosine ↑"].tolist() == pytest.approx([1, 1, 1]) and (table["average precision ↑"] == 1).all()


def test_a_grad_cam_object_gives_the_scores_of_ours(network):
    model, inputs, target = network
    layer = dict(model.named_modules())[LAYERS[-1]]
    theirs = pytorch_grad_cam.GradCAM(model, [layer])
    table = rc.evaluate(model, inputs, explainer=theirs, target=target, layers=LAYERS[-1])
    close(table, rc.evaluate(rc.explain(model, inputs, "GradCAM", target=target, layers=LAYERS[-1])), 1e-4)


def test_attributions_of_captum_give_the_scores_of_ours(network):
    model, inputs, target = network
    ours = rc.evaluate(rc.explain(model, inputs, "InputXGradient", target=target, layers=LAYERS))
    theirs = captum.attr.InputXGradient(model)
    close(rc.evaluate(model, inputs, explainer=theirs, target=target, layers=LAYERS), ours, 1e-4)
    cam = captum.attr.LayerGradCam(model, dict(model.named_modules())[LAYERS[-1]])
    ours = rc.evaluate(rc.explain(model, inputs, "GradCAM", target=target, layers=LAYERS[-1]))
    close(rc.evaluate(model, inputs, explainer=cam, target=target, layers=LAYERS[-1]), ours, 1e-4)


def test_a_torch_cam_object_gives_the_scores_of_ours(network):
    model, inputs, target = network
    ours = rc.evaluate(rc.explain(model, inputs, "GradCAM", target=target, layers=LAYERS[-1]))
    with torchcam.methods.GradCAM(model, target_layer=LAYERS[-1]) as theirs:
        table = rc.evaluate(model, inputs, explainer=theirs, target=target, layers=LAYERS[-1])
    smaller = ["Complexity ↓", "Coherency ↑"]  # torch-cam scales before it resizes, so its maxima are below 1
    assert (table[smaller] - ours[smaller]).abs().to_numpy().max() < 0.1
    assert table["ROAD ↑"].to_numpy() == pytest.approx(ours["ROAD ↑"].to_numpy(), abs=1e-3), "ROAD sees the order"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Expected images, and maps or an explainer"),
        ({"explainer": 3}, "Expected an explainer that can be called, got a int"),
        ({"maps": torch.full((3, 32, 32), 255.0)}, r"values 255..255; allowed: values in \[0,1\]"),
        ({"maps": torch.rand(2, 32, 32)}, "one map an image"),
        (
            {"maps": torch.rand(3, 48, 48), "explainer": "LayerCAM"},
            "Expected maps or the name of a method, got maps and",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(network, arguments, message):
    model, inputs, target = network
    with pytest.raises(rc.InputError, match=message):
        rc.evaluate(model, inputs, target=target, layers=LAYERS, **arguments)


def test_pictures_go_through_the_networks_own_preprocessing(tmp_path):
    model = timm.create_model("resnet18", num_classes=5).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 260, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    expected = transform(Image.fromarray(pixels))[None]
    for images in (pixels, Image.fromarray(pixels), str(tmp_path / "photo.png"), [tmp_path / "photo.png"]):
        assert torch.equal(inputs_of(torch.nn.Sequential(model), images), expected)
    assert torch.equal(inputs_of(model, expected[0].numpy()), expected), "arrays of floats are normalised inputs"
    with pytest.raises(rc.InputError, match="preprocessing of CNN is not known|is not known, so pictures"):
        inputs_of(tiny_net(), pixels)
    with pytest.raises(rc.InputError, match=r"Expected a uint8 array \(H, W, 3\), got uint8 of shape \(300, 260\)"):
        inputs_of(model, pixels[:, :, 0])


def hugging_face() -> torch.nn.Module:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    return transformers.ResNetForImageClassification(config)


class LogitsOnly(torch.nn.Module):
    """What the other packages need of a network whose output holds its logits."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images):
        found = self.model(images)
        return getattr(found, "logits", found)


CLASSIFIERS = {
    "timm": (lambda: timm.create_model("resnet10t", num_classes=5), "layer1"),
    "torchvision": (lambda: torchvision.models.resnet18(num_classes=5), "layer1"),
    "Hugging Face": (hugging_face, "resnet.encoder.stages.0"),
    "hand-written": (tiny_net, "layer2"),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_three_lines_explain_any_classifier(kind):
    torch.manual_seed(0)
    model, (images, _) = CLASSIFIERS[kind][0]().eval(), batch(2, 64, 64)
    explanation = rc.explain(model, images, method="LayerCAM", refine="product")
    assert explanation.maps.shape == (2, 64, 64) and explanation.maps.amax((1, 2)).tolist() == [1, 1]
    assert len(explanation.capture.layers) > 1, f"the layers of a {kind} network are found"
    assert list(rc.evaluate(explanation)) == SCORES


@pytest.mark.parametrize("method", ["GradCAM", "GradCAM++", "LayerCAM", "HiResCAM", "ScoreCAM"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_maps_equal_those_of_grad_cam_and_torch_cam(kind, method):
    torch.manual_seed(0)
    make, layer = CLASSIFIERS[kind]
    model, (images, target) = make().eval().double(), batch(2, 64, 64)
    images = images.double()  # float32 alone moves some maps by 1e-5
    ours = rc.explain(model, images, method, target=target, layers=layer)
    theirs = LogitsOnly(model)
    found = getattr(pytorch_grad_cam, method.replace("++", "PlusPlus"))(theirs, [model.get_submodule(layer)])
    maps = found(images, [ClassifierOutputTarget(i) for i in target.tolist()])
    assert 0 < np.abs(maps).max() and np.abs(ours.maps.numpy() - maps).max() < 1e-5
    if method in ("GradCAM", "LayerCAM"):  # torch-cam defines the others otherwise, and returns small maps from 0 to 1
        small = METHODS[method].raw_maps(ours.capture)[0].relu()
        small = small - small.amin((1, 2), keepdim=True)
        small = small / small.amax((1, 2), keepdim=True).clamp_min(1e-30)  # a blank map is 0 for both
        for i, image in enumerate(images):
            with getattr(torchcam.methods, method)(theirs, target_layer=f"model.{layer}") as cam:
                single = cam(int(target[i]), theirs(image[None]))[0][0].detach()
            single = single / single.max().clamp_min(1e-30)  # torch-cam adds a constant to the maximum
            assert (small[i] - single).abs().max() < 1e-5


def test_an_overlay_leaves_the_photo_where_the_map_is_zero():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    heat = torch.zeros(20, 30)
    heat[:, 20:] = 1
    mixed = np.asarray(rc.overlay(pixels, heat))
    assert mixed.shape == pixels.shape and np.array_equal(mixed[:, :36], pixels[:, :36])
    assert np.abs(mixed[:, 44:].astype(int) - pixels[:, 44:]).mean() > 20
