"""Loading networks: the real code, with only the download replaced."""

import urllib.error

import httpx
import huggingface_hub.constants
import huggingface_hub.errors
import pytest
import timm.models._builder
import torch
import torchvision
from tiny_networks import batch

from refinecam_lib import paths
from refinecam_lib.cams import layer_cam
from refinecam_lib.capture import Capture
from refinecam_lib.datasets.photographs import open_picture
from refinecam_lib.errors import InputError
from refinecam_lib.networks import loading, zoo
from refinecam_lib.networks.checkpoints import read_checkpoint, write_checkpoint
from refinecam_lib.training.loop import fit
from refinecam_lib.training.recipe import Recipe

CATS = range(281, 286)
"""ImageNet's classes of cats that people keep."""


@pytest.fixture
def downloads(monkeypatch):
    """Let every download return seeded random weights. Return what was asked for."""
    asked = []

    def state(name):
        torch.manual_seed(1)
        build = timm.create_model if name.startswith("swin") else torchvision.models.get_model
        return build(name).state_dict()

    def torchvision_download(url, *args, **kwargs):
        asked.append(url)
        return state(next(name for name in ("resnet18", "vgg11", "convnext_tiny") if name in url))

    def timm_download(hub_id, *args, **kwargs):
        asked.append(hub_id)
        return state("swin_tiny_patch4_window7_224")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", torchvision_download)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", timm_download)
    loading._imagenet_hash.cache_clear()
    yield asked
    loading._imagenet_hash.cache_clear()


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "swin_tiny", "convnext_tiny"])
def test_the_papers_networks_load_imagenet_weights(name, downloads):
    model = loading.load_model(name, "imagenet")
    assert len(downloads) == 1 and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    inputs = batch(1, 224, 224)[0]
    capture = Capture(model, inputs, [7], zoo.spec_of(name).layers)
    assert capture.logits.shape == (1, 1000) and len(layer_cam(capture)) == 4
    other = zoo.spec_of(name).build(1000, False)
    assert not torch.equal(next(iter(model.state_dict().values())), next(iter(other.state_dict().values())))


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "swin_tiny", "convnext_tiny"])
def test_imagenet_weights_are_fine_tuned_from_the_first_explained_layer_on(name, downloads, tmp_path):
    recipe = Recipe(name, images=4, batch=2, stages=((64, 1.0),), validation=2)
    model, record = fit(recipe, "cpu", 0, tmp_path, progress=False)
    torch.manual_seed(0)
    before, after = zoo.spec_of(name).build(6, True).state_dict(), model.state_dict()
    assert len(downloads) == 2 and record["step"] == 2
    first, *_, last = [key for key in before if key.endswith("weight")]
    assert torch.equal(before[first], after[first]) and not torch.equal(before[last], after[last])


@pytest.mark.parametrize("name", ["vgg11", "swin_tiny"])
def test_batch_norms_of_a_learner_are_folded_into_the_explained_network(name, tmp_path):
    spec, path = zoo.spec_of(name), tmp_path / "v.safetensors"
    learner = spec.learner(3)
    generator = torch.Generator().manual_seed(0)
    for module in learner.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                values.data.uniform_(0.5, 1.5, generator=generator)
    write_checkpoint(learner, path, {"model": name, "classes": ["a", "b", "c"]})
    folded, restored = loading.load_model(name, path), loading.restore(name, path)[0].eval()
    assert folded.state_dict().keys() == spec.build(3, False).state_dict().keys()
    assert restored.state_dict().keys() == learner.state_dict().keys()
    images = torch.rand(2, 3, 224, 224, generator=generator)
    torch.testing.assert_close(folded(images), restored(images), rtol=1e-4, atol=1e-4)
    # A network that was trained without them, for example from ImageNet weights, is loaded unchanged.
    plain = spec.build(3, False)
    write_checkpoint(plain.half().float(), path, {"model": name, "classes": ["a", "b", "c"]})
    loaded = loading.load_model(name, path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("name", zoo.MODELS)
def test_loading_a_shipped_network_draws_no_random_weights(name):
    before = torch.random.get_rng_state()
    loaded = loading.load_model(name).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    card = read_checkpoint(paths.CHECKPOINTS / f"{name}.safetensors")[1]
    built = zoo.spec_of(name).build(len(card["classes"]), False).state_dict()
    assert not torch.equal(torch.random.get_rng_state(), before), "building draws weights"
    assert loaded.keys() == built.keys()
    same = [key for key, value in loaded.items() if value.is_floating_point() and torch.equal(value, built[key])]
    assert not [key for key in same if key.endswith("weight") and loaded[key].ndim > 1], (
        "all weights are the checkpoint's"
    )


@pytest.mark.parametrize("name", ["efficientnet_lite0", *zoo.LARGER])
def test_efficientnet_needs_no_download(downloads, name):
    model, spec = loading.load_model(name, "imagenet"), zoo.spec_of(name)
    assert not downloads and model.get_classifier().out_features == 1000
    inputs = loading.normalise(loading.transform_of(spec)(open_picture("chelsea")), spec)
    assert model(inputs[None]).argmax() in CATS


@pytest.mark.parametrize("name", ["efficientnet_lite0", *zoo.LARGER])
def test_efficientnets_are_prepared_as_timm_does(name):
    spec, config = zoo.spec_of(name), timm.get_pretrained_cfg(f"tf_{name}")
    assert (spec.size, spec.resize) == (config.input_size[1], int(config.input_size[1] / config.crop_pct))
    assert (spec.mean, spec.std, spec.interpolation) == (config.mean, config.std, config.interpolation)


def test_each_set_of_weights_has_its_own_hash(downloads):
    ours = loading.weights_hash("efficientnet_lite0"), loading.weights_hash("efficientnet_lite0", "imagenet")
    assert ours[0] == read_checkpoint(paths.CHECKPOINTS / "efficientnet_lite0.safetensors")[1]["sha256"]
    assert ours[0] != ours[1] and len(ours[1]) == 64
    assert loading.weights_hash("resnet18", "imagenet") != ours[1]
    with pytest.raises(InputError, match="unknown model 'resnet81'. Did you mean 'resnet18'"):
        loading.weights_hash("resnet81", "imagenet")


@pytest.mark.parametrize("name", [*zoo.SMALL, "resnet18", "vgg11", "swin_tiny", "convnext_tiny"])
def test_a_network_for_birds_takes_windows_and_whole_images_without_normalisation(name):
    spec = zoo.spec_of(name, "birds")
    model = spec.build(50, False).eval()
    image = torch.rand(1, 3, spec.size, spec.size)
    assert spec.size == 256 and torch.equal(loading.normalise(image, spec), image)
    assert model(image[..., :128, :128]).shape == (1, 50)
    capture = Capture(model, image, [7], spec.layers)
    assert [a.shape[-1] for a in capture.activations] == [64, 32, 16, 8]
    assert all(maps.shape[0] == 1 and bool(torch.isfinite(maps).all()) for maps in layer_cam(capture))


FAILURES = {
    "no connection": ConnectionError("Network is unreachable"),
    "torchvision": urllib.error.URLError("Name or service not known"),
    "hub": huggingface_hub.errors.LocalEntryNotFoundError("cannot find the requested files\nin the cache"),
    "client": httpx.ConnectError("connection refused"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_download_names_the_network_and_the_cure(failure, monkeypatch):
    def fail(*args, **options):
        raise FAILURES[failure]

    monkeypatch.setattr("timm.create_model", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    for name, load in (
        ("resnet34", lambda: loading.load_classifier("resnet34")),
        ("resnet18", lambda: loading.load_classifier("resnet18")),
        ("vgg11", lambda: loading.load_model("vgg11", "imagenet")),
    ):
        with pytest.raises(
            InputError, match=f"weights of '{name}' could not be downloaded: .*pretrained=False"
        ) as caught:
            load()
        assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_named_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    words = (
        r"weights of 'regnetx_002' could not be downloaded: http://127.0.0.1:9 does not answer \(.*refused\)\. Connect"
    )
    with pytest.raises(InputError, match=words):
        loading.load_classifier("regnetx_002")
    assert not waits and not huggingface_hub.constants.HF_HUB_OFFLINE
    assert loading.load_classifier("regnetx_002", pretrained=False)[0].size == 224


def test_other_errors_while_building_a_network_are_its_own(monkeypatch):
    def fail(*args, **options):
        raise KeyError("depth")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(KeyError, match="depth"):
        loading.load_classifier("resnet34")
