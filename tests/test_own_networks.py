"""Networks and inputs as people have them: each is explained right, or refused in one clear sentence."""

import copy
import threading

import numpy as np
import pytest
import torch
from tiny_networks import LAYERS, TinyNet, batch, tiny_net
from torch import nn
from torch.utils.checkpoint import checkpoint

from refinecam_lib.capture import Capture
from refinecam_lib.errors import InputError
from refinecam_lib.explanation import BASE, METHODS, REFINED, Explainer, explain
from refinecam_lib.metrics import measure
from refinecam_lib.networks.layers import layers_of
from refinecam_lib.networks.loading import on_device

SOME = ["GradCAM", "GradCAM++", "ScoreCAM", "ShapleyCAM", "GuidedGradCAM", "DeepLift", "InputXGradient", "LIME"]
LAYERWISE = ["GradCAM", "GradCAM++", "LayerCAM", "ScoreCAM", "ShapleyCAM"]


def maps_of(model, method, inputs=None, target=(0, 1), layers=LAYERS):
    inputs = batch(2)[0] if inputs is None else inputs
    capture = Capture(
        model, inputs, target if target is None else list(target), layers, ids=list("abcd")[: len(inputs)]
    )
    return explain(capture, method, REFINED if METHODS[method].refines else BASE).maps


@pytest.mark.parametrize("method", SOME)
def test_inference_mode_changes_nothing(method):
    model = tiny_net()
    expected = maps_of(model, method)
    with torch.inference_mode():
        inputs = batch(2)[0] * 1
        assert inputs.is_inference()
        assert torch.equal(maps_of(model, method, inputs), expected)
        row = measure(explain(Capture(model, inputs, None, LAYERS), "LayerCAM", REFINED))
    assert (row["status"] == "ok").all()
    assert torch.equal(maps_of(model, method, inputs), expected), "inputs made in inference mode, used outside"
    with torch.inference_mode():
        assert layers_of(model, 48) == LAYERS


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = tiny_net()
    with pytest.raises(InputError, match="weights were made in torch.inference_mode"):
        maps_of(model, "GradCAM")


class Frozen(TinyNet):
    """The usual transfer learning: no graph in the backbone."""

    def __init__(self, context, whole=True):
        super().__init__()
        self.load_state_dict(tiny_net().state_dict())
        self.context, self.whole = context, whole
        self.eval()

    def forward(self, x):
        with self.context():
            for name in LAYERS[:3]:
                x = getattr(self, name)(x)
            if self.whole:
                x = self.layer4(x)
        if not self.whole:
            x = self.layer4(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("method", LAYERWISE)
def test_a_backbone_under_no_grad_is_explained(method, whole):
    assert torch.allclose(maps_of(Frozen(torch.no_grad, whole), method), maps_of(tiny_net(), method), atol=1e-5)
    row = measure(explain(Capture(Frozen(torch.no_grad, whole), batch(1)[0], None, LAYERS), method, REFINED))
    assert (row["status"] == "ok").all()


@pytest.mark.parametrize("method", ["GuidedGradCAM", "InputXGradient", "IntegratedGradients", "DeepLift"])
def test_images_without_a_gradient_are_refused(method):
    with pytest.raises(InputError, match="no gradient at the images.*no_grad"):
        maps_of(Frozen(torch.no_grad), method)


@pytest.mark.parametrize("method", LAYERWISE[:1])
def test_a_backbone_in_inference_mode_is_refused(method):
    with pytest.raises(InputError, match="made in torch.inference_mode"):
        maps_of(Frozen(torch.inference_mode), method)


class Branches(TinyNet):
    """A network with a layer that the logits do not depend on, and one that is detached."""

    def __init__(self, cut):
        super().__init__()
        self.load_state_dict(tiny_net().state_dict())
        self.extra, self.idle, self.cut = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), cut
        self.eval()

    def forward(self, x):
        x = self.layer1(x)
        self.auxiliary = self.extra(x)
        x = self.layer2(x)
        x = self.layer4(self.layer3(x.detach() if self.cut else x))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM", "ShapleyCAM"])
@pytest.mark.parametrize(
    ("layers", "cut"), [(("extra",), 0), (("extra", "layer3"), 0), (("layer2", "layer3"), 1), (("layer1",), 1)]
)
def test_layers_that_do_not_reach_the_logits_are_named(method, layers, cut):
    with pytest.raises(InputError, match=f"no gradient at layers .'{layers[0]}'.*Choose other layers"):
        maps_of(Branches(cut), method, layers=layers)
    assert torch.isfinite(maps_of(Branches(cut), method, layers=("layer3", "layer4"))).all()


def test_layers_that_do_not_run_are_named():
    with pytest.raises(InputError, match=r"layers \['idle'\] do not run"):
        maps_of(Branches(0), "GradCAM", layers=("layer1", "idle"))


MISFITS = {
    "float64 images": (tiny_net, lambda x: x.double(), r"images are torch.float64, the weights torch.float32. Pass inputs.to\(torch.float32\)"),
    "float64 weights": (lambda: tiny_net().double(), lambda x: x, "the weights torch.float64"),
    "float16 images": (tiny_net, lambda x: x.half(), "images are torch.float16"),
    "bfloat16 weights": (lambda: tiny_net().bfloat16(), lambda x: x, "the weights torch.bfloat16"),
    "another device": (lambda: tiny_net().to("meta"), lambda x: x, r"images are on cpu, the weights on meta. Pass inputs.to\('meta'\)"),
    "grey images": (tiny_net, lambda x: x[:, :1], "images have 1 channels, the network takes 3"),
    "four channels": (tiny_net, lambda x: torch.cat([x, x[:, :1]], 1), "images have 4 channels, the network takes 3"),
    "channels last": (tiny_net, lambda x: x.permute(0, 2, 3, 1), "images have 48 channels, the network takes 3"),
    "a list": (tiny_net, lambda x: [x], "images of type list"),
    "bytes": (tiny_net, lambda x: x.byte().numpy(), "uint8"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
@pytest.mark.parametrize("method", ["GradCAM", "ScoreCAM", "InputXGradient"])
def test_images_that_do_not_fit_the_weights_are_refused(case, method):
    build, change, words = MISFITS[case]
    with pytest.raises(InputError, match=words):
        maps_of(build(), method, change(batch(2)[0]))


def test_other_errors_of_a_network_are_its_own():
    model = tiny_net()
    model.fc = nn.Linear(7, 3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        maps_of(model, "GradCAM")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", [*LAYERWISE, "GuidedGradCAM", "DeepLift", "LIME"])
def test_half_precision_gives_nearly_the_maps_of_single_precision(method, kind):
    model, inputs = tiny_net(), batch(2)[0]
    half = copy.deepcopy(model).to(kind)
    capture = Capture(half, inputs.to(kind), [0, 1], LAYERS, ids=["a", "b"])
    variant = REFINED if METHODS[method].refines else BASE
    explanation, expected = explain(capture, method, variant), maps_of(model, method)
    assert explanation.maps.dtype == torch.float32 and bool(torch.isfinite(explanation.maps).all())
    correlation = np.corrcoef(explanation.maps.flatten(), expected.flatten())[0, 1]
    assert correlation > 0.97 or method == "LIME", "its Lasso sets most weights to 0 or not"
    row, single = (
        measure(explanation),
        measure(explain(Capture(model, inputs, [0, 1], LAYERS, ids=["a", "b"]), method, variant)),
    )
    assert (row["status"] == "ok").all()
    for column in ("probability", "morf_20", "lerf_80", "mean_activation"):
        assert np.allclose(row[column], single[column], atol=0.2), column


def test_no_target_means_the_predicted_classes():
    model, inputs = tiny_net(), batch(4)[0]
    predicted = model(inputs).argmax(1)
    assert len(set(predicted.tolist())) > 1
    assert torch.equal(Capture(model, inputs, None, LAYERS).target, predicted)
    explainer = Explainer(model, "LayerCAM", LAYERS, "product")
    assert torch.equal(explainer.attribute(inputs), explainer.attribute(inputs, predicted))
    assert torch.equal(
        maps_of(model, "GradCAM++", inputs, None), maps_of(model, "GradCAM++", inputs, predicted.tolist())
    )
    assert measure(explain(Capture(model, inputs, None, LAYERS)))["correct"].all()


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_numpy_images_are_taken(kind):
    model, inputs = tiny_net(), batch(2)[0]
    assert torch.allclose(maps_of(model, "GradCAM", inputs.numpy().astype(kind)), maps_of(model, "GradCAM"), atol=1e-6)
    assert Explainer(model, "GradCAM", LAYERS).attribute(inputs.numpy(), 0).shape == (2, 1, 48, 48)


def with_channels(channels: int) -> nn.Module:
    model = TinyNet().eval()
    model.layer1[0] = nn.Conv2d(channels, 8, 3, 2, 1)
    return model


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_any_number_of_channels_is_explained(channels):
    model = with_channels(channels)
    assert layers_of(model, 48) == layers_of(TinyNet().eval(), 48)
    inputs = torch.randn(2, channels, 48, 48)
    for method in SOME:
        assert maps_of(model, method, inputs).shape == (2, 48, 48)
    row = measure(explain(Capture(model, inputs, None, LAYERS), "LayerCAM", REFINED))
    assert row["morf_20"].notna().all()


def test_one_name_of_a_layer_is_one_layer():
    model, inputs = tiny_net(), batch(2)[0]
    assert Capture(model, inputs, [0, 1], "layer4").layers == ("layer4",)
    assert torch.equal(maps_of(model, "GradCAM", layers="layer4"), maps_of(model, "GradCAM", layers=("layer4",)))
    explainer = Explainer(model, "GradCAM", "layer4")
    assert torch.equal(explainer.attribute(inputs, 0), Explainer(model, "GradCAM", ("layer4",)).attribute(inputs, 0))
    with pytest.raises(InputError, match="unknown layer 'layer5'. Did you mean 'layer"):
        Explainer(model, "GradCAM", "layer5").attribute(inputs, 0)


class Checkpointed(TinyNet):
    """Blocks that are computed again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.load_state_dict(tiny_net().state_dict())
        self.reentrant = reentrant
        self.eval()

    def forward(self, x):
        for name in LAYERS:
            x = checkpoint(getattr(self, name), x, use_reentrant=self.reentrant)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("layers", [LAYERS, ("layer1.0", "layer2.0", "layer3.1", "layer4.1")])
@pytest.mark.parametrize(
    ("reentrant", "method", "words"),
    [
        (True, "GradCAM", "in a checkpoint"),
        (True, "ScoreCAM", None),
        (True, "InputXGradient", "in a checkpoint"),
        (False, "GradCAM", None),
        (False, "GradCAM++", None),
        (False, "ShapleyCAM", "Switch it off"),
        (False, "GuidedGradCAM", None),
    ],
)
def test_checkpointed_blocks_are_explained_or_refused(reentrant, method, layers, words):
    if words:
        with pytest.raises(InputError, match=words):
            maps_of(Checkpointed(reentrant), method, layers=layers)
    else:
        expected = maps_of(tiny_net(), method, layers=layers)
        assert torch.allclose(maps_of(Checkpointed(reentrant), method, layers=layers), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_checkpointing_by_timm_is_left_as_it_was(name):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=6).eval()
    inputs, layers = torch.randn(1, 3, 160, 160), layers_of(model, 160)
    expected = Capture(model, inputs, [1], layers).gradients
    model.set_grad_checkpointing()
    assert layers_of(model, 160) == layers
    for a, b in zip(Capture(model, inputs, [1], layers).gradients, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6 * float(b.abs().max()))
    assert any(getattr(module, "grad_checkpointing", False) for module in model.modules())


class Part(TinyNet):
    """A network whose third block is compiled."""

    def __init__(self):
        super().__init__()
        self.load_state_dict(tiny_net().state_dict())
        self.eval()
        self.layer3.compile(backend="eager")


COMPILED = {
    "torch.compile": (lambda: torch.compile(tiny_net(), backend="eager"), "_orig_mod."),
    "module.compile": (lambda: (model := tiny_net()).compile(backend="eager") or model, ""),
    "part": (Part, ""),
}


@pytest.mark.parametrize("kind", COMPILED)
def test_compiled_networks_are_explained_for_any_layers_and_stay_compiled(kind):
    (build, prefix), inputs = COMPILED[kind], batch(2)[0]
    model = build()
    expected = model(inputs)
    for layers in (LAYERS, ("layer2", "layer4"), ("layer3.0", "layer4")):
        for method in ("GradCAM", "ScoreCAM", "GuidedGradCAM"):
            found = maps_of(model, method, layers=[prefix + name for name in layers])
            assert torch.allclose(found, maps_of(tiny_net(), method, layers=layers), atol=1e-5)
    assert layers_of(model, 48) == tuple(prefix + name for name in layers_of(tiny_net(), 48))
    assert torch.allclose(model(inputs), expected, atol=1e-5)
    assert measure(explain(Capture(model, inputs, None, [prefix + "layer4"]), "GradCAM++"))["status"].eq("ok").all()


def test_four_threads_explain_with_one_network():
    model, inputs = tiny_net().train(), batch(4)[0]
    expected = {
        m: maps_of(model, m, inputs, None) for m in ("GradCAM", "GradCAM++", "GuidedGradCAM", "DeepLift", "ScoreCAM")
    }
    found, problems = [], []

    def work(number):
        try:
            for method in [*expected][number:] + [*expected][:number]:
                layers = LAYERS if number % 2 else LAYERS[::-1][::-1]
                found.append((method, maps_of(model, method, inputs, None, layers)))
                found.append(("rows", measure(explain(Capture(model, inputs[:1], [0], LAYERS), "GradCAM", REFINED))))
        except Exception as error:  # noqa: BLE001 - reported below
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]
    assert len(found) == 40
    for method, result in found:
        if method != "rows":
            assert torch.allclose(result, expected[method], atol=1e-5), method
    assert all(module.training for module in model.modules()), "its mode is restored"
    assert not any(module._forward_hooks for module in model.modules())


def test_a_forward_pass_of_another_thread_is_not_recorded():
    model, inputs = tiny_net(), batch(1)[0]
    seen = []

    def other(module, args):
        if threading.current_thread() is threading.main_thread() and not seen:
            thread = threading.Thread(target=lambda: seen.append(model(inputs + 1)))
            thread.start()
            thread.join()

    model.layer3.register_forward_pre_hook(other)
    capture = Capture(model, inputs, [0], LAYERS)
    assert torch.allclose(capture.activations[3], Capture(tiny_net(), inputs, [0], LAYERS).activations[3], atol=1e-6)
    assert len(seen) == 1


def test_weights_of_any_number_of_dimensions_move_to_a_device():
    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.conv = tiny_net(), nn.Conv3d(3, 3, 1)
            self.table = nn.Parameter(torch.randn(2, 3, 4, 5, 6))
            self.register_buffer("index", torch.zeros(1, 2, 3, 4, 5, dtype=torch.long))

        def forward(self, x):
            return self.net(self.conv(x[:, :, None])[:, :, 0])

    model = on_device(Video().eval(), "cpu")
    convolution = model.net.layer2[0].weight
    assert convolution.is_contiguous(memory_format=torch.channels_last) and not convolution.is_contiguous()
    assert model.conv.weight.is_contiguous() and model.table.shape == (2, 3, 4, 5, 6)
    layers = [f"net.{name}" for name in LAYERS]
    assert torch.isfinite(maps_of(model, "GradCAM++", layers=layers)).all()


class Tokens(TinyNet):
    """A stem of convolutions and norms whose output becomes tokens, as in XCiT. Places have different weights."""

    def __init__(self):
        super().__init__()
        self.load_state_dict(tiny_net().state_dict())
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
        self.eval()

    def forward(self, x):
        for name in LAYERS:
            x = getattr(self, name)(x)
        tokens = x.flatten(2).transpose(1, 2)
        return self.fc((tokens * torch.linspace(0, 4, tokens.shape[1])[:, None]).mean(1))


@pytest.mark.parametrize("method", ["LayerCAM", "GradCAM++", "ShapleyCAM", "InputXGradient", "DeepLift"])
def test_one_image_has_the_map_that_it_has_in_a_batch(method):
    torch.manual_seed(0)
    model, inputs = Tokens(), batch(2)[0]
    both = maps_of(model, method, inputs)
    assert torch.allclose(maps_of(model, method, inputs[:1], target=(0,)), both[:1], atol=1e-4)
    assert float(both.std()) > 0.01 and not [hook for m in model.modules() for hook in m._forward_hooks.values()]
