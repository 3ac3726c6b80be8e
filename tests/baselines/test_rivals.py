"""FullGrad, PolyCAM and the guided filter compared with their definitions and with the package grad-cam."""

import pytest
import torch
from pytorch_grad_cam import FullGrad
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from refinecam_lib.baselines.full_grad import contributions, full_grad
from refinecam_lib.baselines.guided_filter import guided_filter, guided_layer_cam
from refinecam_lib.baselines.poly_cam import poly_cam
from refinecam_lib.cams import score_cam
from refinecam_lib.capture import Capture
from refinecam_lib.explanation import explain
from refinecam_lib.refinement import min_max


def small(channels: int = 8, colours: int = 3) -> nn.Module:
    """A ReLU network whose biases are those of convolutions and batch norms."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(colours, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 4, bias=False),
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.copy_(torch.rand(channels) + 0.1)
    return network.eval()


def capture_of(network: nn.Module, colours: int = 3) -> Capture:
    inputs = torch.randn(2, colours, 32, 32, generator=torch.Generator().manual_seed(1))
    return Capture(network, inputs, [1, 2], ["2", "6", "9"])


def test_the_contributions_of_full_grad_add_up_to_the_logit():
    capture = capture_of(small().double())
    capture.inputs = capture.inputs.double()
    total = sum(term.flatten(1).sum(1) for term in contributions(capture))
    torch.testing.assert_close(total, capture.logits.gather(1, capture.target[:, None])[:, 0])


def test_full_grad_is_that_of_grad_cam_where_each_layer_has_one_channel():
    # With more channels grad-cam scales each alone; the authors' code and ours scale a layer as a whole.
    network = small(1, 1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.abs_()
        network[-1].weight.abs_()
    capture = capture_of(network, 1)
    theirs = FullGrad(network, [])
    targets = [ClassifierOutputTarget(int(c)) for c in capture.target]
    wanted = torch.from_numpy(theirs(capture.inputs.clone().requires_grad_(), targets))
    theirs.activations_and_grads.release()
    torch.testing.assert_close(min_max(full_grad(capture)[0]), min_max(wanted), atol=1e-4, rtol=0)


def test_poly_cam_multiplies_local_contrast_with_the_deeper_map():
    capture = capture_of(small())
    first, second, deepest = poly_cam(capture)
    scored = score_cam(capture)
    assert torch.equal(deepest, scored[-1])
    assert first.shape == scored[0].shape and second.shape == scored[1].shape
    flat = torch.full_like(scored[1], 2.0)  # a layer without contrast adds nothing to the deeper map
    capture._maps.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refinecam_lib.baselines.poly_cam.score_cam", lambda _: [flat, scored[-1]])
        coarse, _ = poly_cam(capture)
    up = torch.nn.functional.interpolate(scored[-1][:, None], size=flat.shape[1:], mode="bilinear")[:, 0]
    torch.testing.assert_close(coarse, up)


def test_the_guided_filter_is_the_linear_fit_of_each_window():
    generator = torch.Generator().manual_seed(0)
    guide, maps = (torch.rand(1, 9, 9, generator=generator, dtype=torch.double) for _ in range(2))
    radius, eps = 2, 0.01
    slopes, offsets = torch.zeros(9, 9, dtype=torch.double), torch.zeros(9, 9, dtype=torch.double)

    def window(i: int, j: int) -> tuple[slice, slice]:
        return slice(max(0, i - radius), i + radius + 1), slice(max(0, j - radius), j + radius + 1)

    for i in range(9):
        for j in range(9):
            g, p = guide[0][window(i, j)].flatten(), maps[0][window(i, j)].flatten()
            slopes[i, j] = ((g - g.mean()) * (p - p.mean())).mean() / (g.var(correction=0) + eps)
            offsets[i, j] = p.mean() - slopes[i, j] * g.mean()
    wanted = torch.stack(
        [
            torch.stack([slopes[window(i, j)].mean() * guide[0, i, j] + offsets[window(i, j)].mean() for j in range(9)])
            for i in range(9)
        ]
    )
    torch.testing.assert_close(guided_filter(guide, maps, radius, eps)[0], wanted)


@pytest.mark.parametrize("name", ["PolyCAM", "FullGrad", "GuidedFilter"])
def test_each_is_a_method_by_name(name):
    maps = explain(capture_of(small()), name).maps
    assert maps.shape == (2, 32, 32) and maps.min() == 0 and maps.max() == 1


def test_a_map_that_follows_an_edge_is_sharper_after_the_filter():
    edge = torch.zeros(1, 32, 32)
    edge[:, :, 16:] = 1
    blurred = torch.linspace(0, 1, 32).expand(1, 32, 32)
    step = guided_filter(edge, blurred)[0, 16]
    assert step[16] - step[15] > 5 * (blurred[0, 0, 16] - blurred[0, 0, 15])
    assert guided_layer_cam(capture_of(small()))[0].shape == (2, 32, 32)
