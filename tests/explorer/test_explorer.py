"""The explorer without a browser. It shows what the library measures, and its work can be stopped."""

import base64
import datetime
import html
import io
import re

import numpy as np
import pandas as pd
import pytest
import torch
from captum.metrics import sensitivity_max
from matplotlib.figure import Figure
from PIL import Image
from tiny_networks import LAYERS, batch, tiny_net

from refinecam_lib import paths
from refinecam_lib.capture import Capture
from refinecam_lib.datasets.photographs import BUNDLED, open_picture
from refinecam_lib.errors import InputError
from refinecam_lib.explanation import METHODS, Explainer, Variant, explain
from refinecam_lib.explorer.widget import Explorer, explore
from refinecam_lib.explorer.workbench import NETWORKS, Choice, Workbench, class_options, score_table
from refinecam_lib.metrics import measure
from refinecam_lib.networks.loading import load_classifier, normalise, transform_of
from refinecam_lib.networks.zoo import ModelSpec
from refinecam_lib.reproduce import products as notebook
from refinecam_lib.scoring import scores
from refinecam_lib.toolbox.pictures import blend

SPEC = ModelSpec("tiny", lambda classes, pretrained: tiny_net(num_classes=classes), LAYERS, size=48, resize=56)
TINY = {"tiny": lambda: (SPEC, tiny_net()), "other": lambda: (SPEC, tiny_net(seed=1))}
PAIR = (("GradCAM", "none"), ("GradCAM", "product"))


@pytest.fixture
def explorer():
    return Explorer(["chelsea", "coffee"], TINY, "GradCAM", aggregate="product")


def test_it_shows_what_the_library_measures(explorer):
    explorer.layer.value = 1
    explorer.aggregate2.value = "geometric_mean"
    explorer.picture.value = "coffee"
    explorer.wait()
    model = tiny_net()
    picture = transform_of(SPEC)(open_picture("coffee"))
    inputs = normalise(picture[None], SPEC)
    target = model(inputs).argmax(1)
    assert int(target) == explorer.target.value and len(explorer.target.options) == 5
    capture = Capture(model, inputs, target, LAYERS)
    for name, variant in {"Base": Variant(1), "geometric mean": Variant(1, "geometric_mean")}.items():
        explanation = explain(capture, "GradCAM", variant)
        torch.testing.assert_close(explorer.shown.maps[name], explanation.maps[0])
        row = measure(explanation)
        pd.testing.assert_frame_equal(explorer.shown.rows.loc[[name]].reset_index(drop=True), row)
    assert list(explorer.shown.factors) == list(LAYERS[1:]) and "refined: the geometric mean of" in explorer.table.value


def test_a_network_in_training_mode_comes_back_as_it_was():
    model = tiny_net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bench = Workbench(["chelsea"], {"mine": lambda: (SPEC, model)})
    choice = Choice("chelsea", "mine", None, 0, PAIR)
    evaluating = Workbench(["chelsea"], {"mine": lambda: (SPEC, tiny_net())})
    assert torch.equal(bench.probabilities(choice), evaluating.probabilities(choice))
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_table_says_which_is_better_and_what_is_undefined(explorer):
    rows = explorer.shown.rows
    table, values = score_table(rows), scores(rows)
    for score, title in (("average_drop", "Average Drop ↓"), ("arcc", "ARCC ↑")):
        base, refined = values[score].round(2)
        best = min(base, refined) if "↓" in title else max(base, refined)
        bold = [cell for cell in table.loc[title, ["Base", "RefineCAM"]] if "<b>" in cell]
        assert bold == ([f"<b>{best:.2f}</b>"] if base != refined else [])
    negative = rows.assign(pearson=-0.5)
    assert list(score_table(negative, "paper").loc["ARCC ↑", ["Base", "RefineCAM"]]) == ["undefined", "undefined"]


def watched(model, tick):
    """Call `tick(number of images)` before each forward pass inside."""
    return model.register_forward_pre_hook(lambda module, args: tick(len(args[0])))


def test_a_new_convention_or_opacity_runs_nothing(explorer):
    calls = []
    _, model = explorer.bench.network("tiny")
    before = explorer.table.value, explorer.maps.children[1].children[1].value, len(explorer.maps.children)
    with watched(model, calls.append):
        explorer.convention.value, explorer.opacity.value = "published_code", 1.0
    explorer.wait()
    after = explorer.table.value, explorer.maps.children[1].children[1].value, len(explorer.maps.children)
    assert not calls and before[0] != after[0] and before[1] != after[1] and before[2] == after[2] == 3
    shown = np.asarray(Image.open(io.BytesIO(after[1])))
    assert shown.shape == (48, 48, 3)


def test_what_was_measured_is_kept(explorer):
    explorer.method.value = "ScoreCAM"
    explorer.wait()
    explorer.picture.value = "coffee"
    explorer.wait()
    calls = []
    with watched(explorer.bench.network("tiny")[1], calls.append):
        explorer.picture.value = "chelsea"
        explorer.wait()
    assert (
        explorer.shown.choice.pairs[0][0] == "ScoreCAM" and sum(calls) == 2
    )  # the classes, and the capture's forward pass


def test_random_maps_of_the_masked_picture_differ(explorer):
    explorer.method.value = "RandomCAM"
    explorer.wait()
    assert abs(explorer.shown.rows["pearson"].item()) < 0.1 and "nothing to refine" in explorer.table.value
    assert list(explorer.shown.maps) == ["Base"] and not explorer.factors.children


def test_slow_work_stops_between_forward_passes_and_leaves_no_hook(explorer):
    _, model = explorer.bench.network("tiny")
    shown, seen = explorer.shown, []

    def stop_at_the_third(images):
        seen.append(images)
        if len(seen) == 3:
            explorer.stop.click()

    with watched(model, stop_at_the_third):
        explorer.method.value = "ScoreCAM"
        explorer.wait()
    assert "stopped after" in explorer.status.value and 3 <= len(seen) <= 4
    assert explorer.shown is shown and explorer.stop.disabled and not model._forward_pre_hooks
    explorer.method.value = "LayerCAM"
    explorer.wait()
    assert explorer.shown.choice.pairs[0][0] == "LayerCAM"


def test_a_newer_choice_replaces_the_work_that_runs(explorer):
    explorer.method.value = "ScoreCAM"
    explorer.network.value = "other"
    explorer.method.value = "HiResCAM"
    explorer.wait()
    choice = explorer.shown.choice
    assert (choice.network, choice.pairs[0][0]) == ("other", "HiResCAM")
    assert choice.target == explorer.target.options[0][1] == explorer.target.value


def test_an_upload_is_shown_and_a_file_that_is_no_picture_is_refused(explorer):
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "png")
    about = {"type": "image/png", "size": 1, "last_modified": datetime.datetime.now(datetime.UTC)}
    explorer.upload.value = ({"name": "coffee", "content": file.getvalue(), **about},)
    explorer.wait()
    assert explorer.shown.choice.picture == "coffee'" and set(explorer.bench.pictures) == {
        "chelsea",
        "coffee",
        "coffee'",
    }
    explorer.upload.value = ({"name": "x.png", "content": b"no picture", **about},)
    assert "cannot be read" in explorer.status.value


def test_an_error_becomes_the_status_line():
    def fails():
        raise OSError("no route to <host>")

    explorer = Explorer(["chelsea"], {"tiny": TINY["tiny"], "far": fails}, "GradCAM")
    explorer.network.value = "far"
    explorer.wait()
    assert explorer.status.value == "OSError: no route to &lt;host&gt;" and explorer.shown.choice.network == "tiny"
    explorer.network.value = "tiny"
    explorer.wait()
    assert explorer.status.value.endswith(" s")


def test_where_widgets_do_not_run_it_is_a_picture(explorer, monkeypatch):
    bundle = explorer._repr_mimebundle_()
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(bundle)
    assert "chelsea: tiny predicts class" in bundle["text/plain"]
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).width > 300
    assert isinstance(explore(["chelsea"], TINY, "GradCAM"), Explorer)
    monkeypatch.setenv(notebook.PRODUCTS, "somewhere")  # as in the runner
    monkeypatch.setattr(Explorer, "__init__", None)  # a widget's state would stay in the executed copy
    figure = explore(["chelsea"], TINY, "GradCAM")
    assert isinstance(figure, Figure) and [axis.get_title() for axis in figure.axes][:3] == [
        "picture",
        "Base",
        "mean",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "GradCam"}, "Did you mean 'GradCAM'"),
        ({"aggregate": "sum"}, "unknown aggregate 'sum'"),
        ({"layer": 7}, "layer number 7; allowed: 0..3"),
        ({"pictures": []}, "Expected at least one picture and one network"),
        ({"method": "GroundTruth"}, "Expected images with ground-truth masks, got none"),
        ({"pictures": ["no/such.jpg"]}, "Picture 'no/such.jpg' is not a file. Give a path, or one of chelsea"),
    ],
)
def test_bad_input_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Explorer(**{"pictures": ["chelsea"], "networks": TINY, "method": "GradCAM"} | wrong)


def test_a_method_outside_the_list_is_offered_too():
    explorer = Explorer(["chelsea"], TINY, "LayerCAM^0.5")
    assert explorer.method.options == (*METHODS, "LayerCAM^0.5") and explorer.shown.choice.pairs[0][0] == "LayerCAM^0.5"


def test_every_method_can_be_chosen():
    bench = Workbench(["chelsea"], TINY)
    for method in METHODS:
        explained = bench.explain(Choice("chelsea", "tiny", 2, 0, ((method, "none"), (method, "product"))))
        assert set(explained.maps) == ({"Base", "RefineCAM"} if METHODS[method].refines else {"Base"}), method


def test_the_title_tells_the_predicted_from_the_explained_class(explorer):
    predicted, other = (index for _, index in explorer.target.options[:2])
    assert "explained" not in explorer.shown.title
    explorer.target.value = other
    explorer.wait()
    assert f"predicts class {predicted} (" in explorer.shown.title
    assert f"; explained: class {other} (" in explorer.shown.title


def test_every_class_can_be_searched_and_explained(explorer):
    offered = {index for _, index in explorer.target.options}
    (name,) = (name for name in explorer.search.options if explorer._classes[name] not in offered)
    explorer.search.value = "class"  # while the reader types
    before = explorer.target.value
    explorer.search.value = name
    explorer.wait()
    assert explorer.shown.choice.target == explorer.target.value == explorer._classes[name] != before
    assert explorer.search.value == "" and len(explorer.target.options) == 6
    top, every = class_options(torch.eye(1000)[282])
    assert top[0] == ("tiger cat 1.00", 282) and len(every) == 1000 and every["tiger cat (282)"] == 282


def test_two_methods_are_compared_side_by_side(explorer):
    explorer.method2.value, explorer.aggregate2.value, explorer.aggregate.value = "LayerCAM", "none", "product"
    explorer.wait()
    assert list(explorer.shown.maps) == ["GradCAM, RefineCAM", "LayerCAM, Base"]
    assert list(explorer.shown.factors) == [f"GradCAM, {layer}" for layer in LAYERS]
    assert "GradCAM from layer layer1 and LayerCAM from layer layer1" in explorer.shown.title
    explorer.method2.value, explorer.aggregate2.value = "RandomCAM", "product"
    explorer.wait()
    assert list(explorer.shown.maps) == ["GradCAM, RefineCAM", "RandomCAM, Base"]


def test_a_sparse_map_leaves_the_picture_visible():
    picture, heat = np.random.default_rng(0).random((8, 8, 3)), np.zeros((8, 8))
    heat[2, 3] = 1
    changed = np.abs(blend(picture, heat, 1.0) - picture).max(2) > 1e-6
    assert changed.sum() == 1 and changed[2, 3]
    assert blend(picture, heat, None)[0, 0].max() < 0.02  # without the picture, 0 is black


def test_the_code_gives_the_same_maps_and_scores(capsys):
    explorer = Explorer(["coffee"], {"lite": NETWORKS["efficientnet_lite0"]}, "GradCAM", layer=1)
    names = {}
    exec(explorer.code.value, names)  # noqa: S102 - the code that the reader copies is what is tested
    (copied,) = re.findall(r'data-code="([^"]*)"', explorer.copy.value)
    assert html.unescape(copied) == explorer.code.value
    assert list(names["explanations"]) == list(explorer.shown.maps)
    for name, heat in explorer.shown.maps.items():
        torch.testing.assert_close(names["explanations"][name].maps[0], heat)
    printed = capsys.readouterr().out
    assert all(f"{value:.6f}" in printed for value in scores(explorer.shown.rows)["complexity"])


def test_the_code_names_what_only_the_reader_has(explorer):
    assert "# `spec, model` is your network 'tiny'" in explorer.code.value
    names = {"spec": SPEC, "model": tiny_net()}
    exec(explorer.code.value, names)  # noqa: S102 - the code that the reader copies is what is tested
    torch.testing.assert_close(names["explanations"]["RefineCAM"].maps[0], explorer.shown.maps["RefineCAM"])


def test_the_picture_is_saved_and_its_place_shown(explorer, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    explorer.save.click()
    (file,) = tmp_path.rglob("*.png")
    assert explorer.status.value == f"saved {file}" and Image.open(file).width > 300
    monkeypatch.setattr(paths, "FIGURES", file)  # not a folder
    explorer.save.click()
    assert "cannot be written" in explorer.status.value and "REFINECAM_FIGURES" in explorer.status.value


def test_pictures_are_upright_and_rgb(tmp_path):
    for name in BUNDLED:
        assert open_picture(name).mode == "RGB"
    lying = Image.new("L", (40, 20))
    exif = lying.getexif()
    exif[0x0112] = 6  # the camera was held upright
    lying.save(tmp_path / "phone.jpg", exif=exif)
    assert open_picture(tmp_path / "phone.jpg").size == (20, 40)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text.png' cannot be read"):
        open_picture(tmp_path / "text.png")
    Image.fromarray(np.full((20, 20), 999, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep.png' cannot be read: Expected 8 bits per channel, got .*'I;16'"):
        open_picture(tmp_path / "deep.png")


def test_any_network_of_timm_comes_with_its_preprocessing_and_layers():
    spec, model = load_classifier("regnetx_002", pretrained=False)
    assert (spec.size, spec.resize, spec.interpolation, spec.squash) == (224, 256, "bicubic", False)
    assert len(spec.layers) == 4 and not model.training and not any(p.requires_grad for p in model.parameters())
    assert load_classifier("resnet18", pretrained=False)[0].layers == LAYERS
    with pytest.raises(InputError, match=r"unknown network 'resnt50'. Did you mean 'resnet50'\? Allowed: resnet18, "):
        load_classifier("resnt50")
    with pytest.raises(InputError, match=r"'resnet18.nope': timm has no such weights; allowed: .*resnet18\.tv_in1k"):
        load_classifier("resnet18.nope")
    with pytest.raises(InputError, match="has no such weights; allowed: a network with weights in timm"):
        load_classifier("ghostnet_050")
    with pytest.raises(InputError, match="gives features, not classes; allowed: a classifier"):
        load_classifier("vit_small_patch14_dinov2", pretrained=False)


def test_captums_metrics_take_the_explainer():
    inputs, target = batch(2)
    explainer = Explainer(tiny_net(), "GradCAM", LAYERS, aggregate="product")
    torch.manual_seed(0)
    change = sensitivity_max(explainer.attribute, inputs, n_perturb_samples=2, target=target)
    assert change.shape == (2,) and (change > 0).all()
    (maps,) = explainer.attribute((inputs,), target)
    torch.testing.assert_close(maps, explainer.attribute(inputs, target))
    with pytest.raises(InputError, match="a tuple of 2 inputs; allowed: one tensor"):
        explainer.attribute((inputs, inputs), target)
