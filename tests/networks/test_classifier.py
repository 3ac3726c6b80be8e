"""Outputs of many kinds are read as logits. What is no logit is refused, and never explained."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from tiny_networks import LAYERS, batch, tiny_net
from torch import nn

from refinecam_lib.capture import Capture
from refinecam_lib.errors import InputError
from refinecam_lib.explanation import METHODS, REFINED, explain
from refinecam_lib.metrics import measure
from refinecam_lib.networks.classifier import Classifier, find_logits
from refinecam_lib.networks.inference import forward
from refinecam_lib.networks.layers import layers_of

Pair = namedtuple("Pair", ["logits", "aux"])


class Ends(nn.Module):
    """The tiny network with another end."""

    def __init__(self, end, **options):
        super().__init__()
        self.net, self.end = tiny_net(**options), end
        self.eval()

    def forward(self, x):
        return self.end(self.net(x))


IN_NET = tuple(f"net.{name}" for name in LAYERS)


def explained(model, method="GradCAM", target=(0, 1), **options):
    inputs, _ = batch(2)
    return explain(Capture(model, inputs, list(target), IN_NET, ids=["a", "b"], **options), method, REFINED)


READABLE = {
    "dict with logits": lambda z: {"features": z[:, :2], "logits": z},
    "dict of one": lambda z: {"out": z},
    "ordered dict": lambda z: OrderedDict(loss=z.sum(), logits=z, hidden=(z, z)),
    "tuple of one": lambda z: (z,),
    "tuple with other shapes": lambda z: (z, z[:, :, None, None], None),
    "list": lambda z: [z[:, None], z],
    "named tuple": lambda z: Pair(z, z[:, :2]),
}


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("method", ["GradCAM", "ScoreCAM", "ShapleyCAM", "GuidedGradCAM", "DeepLift", "KernelShap"])
def test_outputs_that_hold_logits_are_explained_as_the_logits_are(kind, method):
    variant = REFINED if METHODS[method].refines else None
    inputs, _ = batch(2)
    plain, other = (
        explain(Capture(model, inputs, [0, 1], IN_NET, ids=["a", "b"]), method, *([variant] if variant else []))
        for model in (Ends(nn.Identity()), Ends(READABLE[kind]))
    )
    assert torch.equal(plain.maps, other.maps) and float(plain.maps.max()) == 1
    if method == "GradCAM":
        a, b = measure(plain), measure(other)
        assert a.equals(b) and (a["status"] == "ok").all()
        assert layers_of(Ends(READABLE[kind]), 48) == layers_of(Ends(nn.Identity()), 48)


UNREADABLE = {
    "two tables": lambda z: (z, z[:, :2]),
    "dict of two": lambda z: {"a": z, "b": z},
    "nothing": lambda z: None,
    "empty": lambda z: (),
    "map": lambda z: z[:, :, None, None],
    "one image": lambda z: z[0],
    "whole numbers": lambda z: z.long(),
    "no class": lambda z: z[:, :0],
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_outputs_without_clear_logits_are_refused_with_the_cure(kind):
    for use in (explained, lambda model: layers_of(model, 48), lambda model: forward(model, batch(2)[0])):
        with pytest.raises(InputError, match="Pass logits_of=f"):
            use(Ends(UNREADABLE[kind]))


def test_a_function_of_your_own_reads_the_logits():
    both = Ends(lambda z: {"a": z[:, :2], "b": z})
    own = explained(both, logits_of=lambda output: output["b"])
    assert torch.equal(own.maps, explained(Ends(nn.Identity())).maps)
    assert own.capture.double.logits.shape == (2, 6)
    assert measure(own).equals(measure(explained(Ends(nn.Identity()))))
    with pytest.raises(InputError, match="Expected logits"):
        explained(both, logits_of=lambda output: output)
    assert layers_of(both, 48, logits_of=lambda output: output["a"]) == layers_of(Ends(nn.Identity()), 48)


SINGLE = {"(B,1)": lambda z: z[:, :1], "(B,)": lambda z: z[:, 0], "dict": lambda z: {"logits": z[:, :1]}}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_single_logit_is_explained_through_a_sigmoid(kind):
    model, (inputs, _) = Ends(SINGLE[kind]), batch(2)
    z = model.net(inputs)[:, 0].detach()
    for target, sign in ((1, 1), (0, -1)):
        capture = Capture(model, inputs, [target] * 2, IN_NET)
        assert torch.allclose(capture.probability, (sign * z).sigmoid(), atol=1e-6)
        gradients = hand_written_gradients(model.net, inputs)
        for ours, layer in zip(capture.gradients, gradients):
            assert torch.allclose(ours, sign * layer / 2, atol=1e-7)
    row = measure(explain(Capture(model, inputs, None, IN_NET), "LayerCAM", REFINED))
    assert (row["status"] == "ok").all() and row["correct"].all()
    assert row["prediction"].tolist() == (z > 0).long().tolist()
    assert row["probability"].between(0.5, 1, inclusive="neither").all()
    assert ((row["lerf_80"] - row["morf_20"]).abs() > 1e-4).any(), "ROAD is not 0"
    with pytest.raises(InputError, match=r"0\.\.2"):
        explained(model, target=(0, 2))


def hand_written_gradients(net, inputs):
    x, outputs = inputs, []
    for name in LAYERS:
        x = getattr(net, name)(x)
        outputs.append(x)
    return torch.autograd.grad(net.fc(x.mean((2, 3)))[:, 0].sum(), outputs)


class Shown(nn.Module):
    """A network that ends in probabilities by a function, in half precision or through a view."""

    def __init__(self, end):
        super().__init__()
        self.net, self.end = tiny_net(), end
        self.eval()

    forward = Ends.forward


PROBABILITIES = {
    "softmax module": (nn.Softmax(1), "softmax"),
    "softmax function": (lambda z: z.softmax(1), "softmax"),
    "in a dict": (lambda z: {"logits": z.softmax(-1)}, "softmax"),
    "float16": (lambda z: z.softmax(1).half(), "softmax"),
    "certain": (lambda z: (100 * z).softmax(1), "softmax"),
    "normalised by hand": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), "softmax"),
    "sigmoid": (lambda z: z[:, :1].sigmoid(), "sigmoid"),
    "sigmoid of one": (lambda z: z[:, :1].sigmoid().squeeze(1), "sigmoid"),
    "many labels": (nn.Sigmoid(), "sigmoid"),
}


@pytest.mark.parametrize("kind", PROBABILITIES)
def test_probabilities_are_refused_with_the_cure(kind):
    end, words = PROBABILITIES[kind]
    for use in (explained, lambda model: layers_of(model, 48)):
        with pytest.raises(InputError, match=f"Remove its {words}, or pass logits_of=torch"):
            use(Shown(end))
    if words == "softmax":
        with pytest.raises(InputError, match="Remove its softmax"):
            forward(Shown(end), batch(1)[0])


def test_logarithms_of_probabilities_have_the_same_probabilities():
    model = Shown(nn.Softmax(1))
    inputs, _ = batch(2)
    logs, plain = (
        Capture(m, inputs, [0, 1], IN_NET, logits_of=f)
        for m, f in ((model, torch.log), (Ends(nn.Identity()), find_logits))
    )
    assert torch.allclose(logs.probability, plain.probability, atol=1e-6)
    a, b = (measure(explain(each, "LayerCAM")) for each in (logs, plain))
    assert abs(a["mean_activation"] - b["mean_activation"]).max() < 0.5 and (a["status"] == "ok").all()
    single = Capture(Shown(lambda z: z[:, :1].sigmoid()), inputs, [1, 1], IN_NET, logits_of=torch.logit)
    assert torch.allclose(single.probability, model.net(inputs)[:, 0].sigmoid(), atol=1e-5)


def test_logits_that_only_look_like_probabilities_are_taken():
    for values in ([[0.2, 0.7], [0.5, 0.5]], [[1.5, -0.5]], [[0.0, 0.0]], [[0.4, 0.6], [0.4, 0.7]]):
        output = torch.tensor(values)
        network = Classifier(nn.Identity(), lambda _, output=output: output)
        assert torch.equal(network(torch.zeros(len(values), 3, 2, 2)), output)


def hugging_face(kind: str, **options) -> nn.Module:
    """Return a small classifier of transformers with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_labels": 6} | options
    if kind == "ResNet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=6)
        return transformers.ResNetForImageClassification(config).eval()
    config = getattr(transformers, f"{kind}Config")(
        num_hidden_layers=4, intermediate_size=64, image_size=48, patch_size=8, **small
    )
    return getattr(transformers, f"{kind}ForImageClassification")(config).eval()


@pytest.mark.parametrize("kind", ["ViT", "ResNet", "Dinov2", "DeiT"])
def test_networks_of_hugging_face_are_explained_as_by_hand(kind):
    model, inputs = hugging_face(kind), batch(2)[0]
    layers = layers_of(model, 48)
    capture = Capture(model, inputs, None, layers)
    assert torch.allclose(capture.logits, model(inputs).logits.detach(), atol=1e-5)
    recorded = []
    name = layers[-1]
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: recorded.append(output))
    logits = model(pixel_values=inputs).logits
    handle.remove()
    gradient = torch.autograd.grad(logits.amax(1).sum(), recorded[0])[0]
    as_map = lambda t: t if t.ndim == 4 else t[:, -36:].transpose(1, 2).unflatten(2, (6, 6))
    by_hand = (as_map(gradient).mean((2, 3), keepdim=True) * as_map(recorded[0].detach())).sum(1).relu()
    ours = METHODS["GradCAM"].function(capture)[-1]
    assert torch.allclose(ours, by_hand, atol=1e-6 * float(by_hand.max()) + 1e-9)
    row = measure(explain(capture, "LayerCAM", REFINED))
    assert row["status"].isin(["ok", "constant"]).all() and row["correct"].all()
