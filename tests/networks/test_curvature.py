"""Second derivatives with constant weights equal torch's, without the convolutions for the weights."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from refinecam_lib.networks.curvature import ConstantWeights

CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 4, 3),
    "strided, padded, without a bias": nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False),
    "dilated, in groups": nn.Conv2d(6, 6, 3, dilation=2, groups=3),
    "depthwise": nn.Conv2d(6, 12, (3, 5), padding=(0, 2), groups=6),
    "padding by name": nn.Conv2d(6, 4, 3, padding="same"),
    "other padding": nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
}
NORMS = {
    "with weights": nn.BatchNorm2d(6),
    "without weights": nn.BatchNorm2d(6, affine=False),
    "of the batch": nn.BatchNorm2d(6, track_running_stats=False),
}


class Convolutions(TorchDispatchMode):
    """Counts convolutions and their backward passes."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
        return func(*args, **(kwargs or {}))


def derivatives(model: nn.Module, x: torch.Tensor, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the output, a gradient, a Hessian-vector product and a third derivative of a curved function of it."""
    x = x.clone().requires_grad_()
    output = model(x)
    (gradient,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * vector).sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(product.square().sum(), x)
    return output.detach(), gradient.detach(), product.detach(), third


class Dynamic(nn.Module):
    """A convolution and a norm whose weights depend on the image, as in CondConv."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 6, 3, 3))
        self.register_buffer("mean", torch.ones(6))
        self.register_buffer("variance", torch.ones(6))

    def forward(self, x):
        x = nn.functional.conv2d(x, self.weight * x.mean().tanh())
        return nn.functional.batch_norm(x, self.mean, self.variance, x.mean((0, 2, 3)).tanh())


LAYERS = CONVOLUTIONS | NORMS | {"weights of the image": Dynamic()}


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_derivatives_of_every_order_are_torchs(layer, form):
    generator = torch.Generator().manual_seed(0)
    layer = layer.double().eval()
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
    x, vector = torch.randn(2, 2, 6, 9, 11, generator=generator, dtype=torch.double)
    x = x.contiguous(memory_format=form)
    expected = derivatives(layer, x, vector)
    with ConstantWeights():
        found = derivatives(layer, x, vector)
    assert torch.equal(found[0], expected[0])
    for ours, torchs in zip(found[1:], expected[1:], strict=True):
        assert float(torchs.abs().max()) > 1e-3
        torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-12)


def test_no_convolution_runs_for_weights():
    """One forward, one for the gradient and two for the product, for any number of groups."""
    for channels in (4, 32):
        layer, x = nn.Conv2d(channels, channels, 3, groups=channels), torch.randn(1, channels, 8, 8)
        with Convolutions() as plain:
            derivatives_of_two(layer, x)
        with Convolutions() as constant, ConstantWeights():
            derivatives_of_two(layer, x)
        assert constant.count == 4 and plain.count > channels


def derivatives_of_two(layer: nn.Module, x: torch.Tensor) -> None:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    torch.autograd.grad((gradient * x.detach()).sum(), x)


def test_single_images_and_autocast_are_left_to_torch():
    layer = nn.Conv2d(3, 4, 3)
    single = torch.randn(3, 8, 8)
    with ConstantWeights(), torch.autocast("cpu", torch.bfloat16):
        assert layer(single[None]).dtype == torch.bfloat16
    with ConstantWeights():
        assert torch.equal(layer(single), layer(single[None])[0])
