"""FullGrad: what the image and every bias contribute to the logit, summed over all layers."""

import torch
from torch import Tensor, nn

from ..capture import Capture, Maps
from ..networks.hooks import hooked
from ..refinement import min_max, resized
from .captum_methods import differentiable, leaf


def full_grad(capture: Capture) -> Maps:
    """Sum the absolute contributions of the image and of every bias, see `contributions`.

    Each is min-max scaled over its channels, resized, and summed over channels.

    Returns:
        One raw map (B,H,W), not negative.

    Source: Srinivas and Fleuret 2019, https://arxiv.org/abs/1905.00780. The package grad-cam scales each channel alone.
    """
    return [torch.stack([_scaled(term, capture.size) for term in contributions(capture)]).sum(0)]


def contributions(capture: Capture) -> list[Tensor]:
    """Return x * dx, and b * db of each convolution and batch norm with a bias b: (B,C,h,w) each.

    In a ReLU network without other biases they add up to the logit.
    """
    outputs, factors = [], []

    def record(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        outputs.append(output)
        factors.append(biases[module][:, None, None])
        return output.clone()  # a later module may work in place

    with differentiable(capture) as model:
        biases = {module: bias for module in model.modules() if (bias := _bias(module)) is not None}
        with hooked(module.register_forward_hook(record) for module in biases):
            inputs = leaf(capture)
            score = model(inputs).gather(1, capture.target[:, None]).sum()
        gradients = torch.autograd.grad(score, [inputs, *outputs])
    return [factor * gradient for factor, gradient in zip([inputs.detach(), *factors], gradients, strict=True)]


def _bias(module: nn.Module) -> Tensor | None:
    """Return the bias (C,) of a convolution, or the one that a batch norm amounts to in evaluation; otherwise None."""
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
        scale = (module.running_var + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight.detach()
        return -module.running_mean * scale + (0 if module.bias is None else module.bias.detach())
    return module.bias.detach() if isinstance(module, nn.Conv2d) and module.bias is not None else None


def _scaled(terms: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale |terms| (B,C,h,w) of each image to [0,1] over all channels, resize them, and sum over channels: (B,H,W)."""
    flat = min_max(terms.abs().flatten(1)[:, None])[:, 0]
    return resized(flat.view_as(terms).flatten(0, 1), size).view(*terms.shape[:2], *size).sum(1)
