"""Second derivatives of a network whose weights are constants, without those of the weights.

Asked for the second derivative of a convolution, torch works out what it would be for the weights too, one group of
channels at a time, also where nobody asks: tens of thousands of small convolutions for a network of depthwise ones.
A convolution with constant weights is linear but for its bias, so derivatives of every order are itself and its adjoint.
The same holds for a batch norm with constant statistics. What is computed from the image is left to torch.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode


class _Affine(Function):
    """An affine function of a tensor, given with its linear part and the adjoint of that, which its derivatives are."""

    @staticmethod
    def forward(ctx, x: Tensor, function: Callable, linear: Callable, adjoint: Callable) -> Tensor:
        ctx.derivative = adjoint, adjoint, linear
        return function(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return _Affine.apply(gradient, *ctx.derivative), None, None, None


class ConstantWeights(TorchFunctionMode):
    """Take weights and statistics of convolutions and batch norms inside as constants: their outputs are the same."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = {torch.conv2d: _convolution, F.batch_norm: _batch_norm}.get(func, func)
        return func(*args, **(kwargs or {}))


def _constant(*values: Tensor | None) -> bool:
    """Whether nothing here was computed from something else, as weights that depend on the image are."""
    return all(value is None or value.is_leaf for value in values)


def _convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """torch.conv2d; torch's own for padding by name, a single image, and where types change on the way."""
    convolve = partial(torch.conv2d, stride=stride, padding=padding, dilation=dilation, groups=groups)
    other = isinstance(padding, str) or input.ndim != 4 or torch.is_autocast_enabled(input.device.type)
    if other or not _constant(weight, bias):
        return convolve(input, weight, bias)
    shape = input.shape
    return _Affine.apply(
        input,
        lambda x: convolve(x, weight, bias),
        lambda x: convolve(x, weight),
        lambda y: conv2d_input(shape, weight, y, stride, padding, dilation, groups),
    )


def _batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """F.batch_norm; torch's own where it takes the statistics of the batch."""
    norm = partial(F.batch_norm, weight=weight, bias=bias, training=training, momentum=momentum, eps=eps)
    if training or running_mean is None or running_var is None or not _constant(weight, bias):
        return norm(input, running_mean, running_var)
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    scale = scale[(slice(None),) + (None,) * (input.ndim - 2)]
    return _Affine.apply(input, lambda x: norm(x, running_mean, running_var), scale.mul, scale.mul)
