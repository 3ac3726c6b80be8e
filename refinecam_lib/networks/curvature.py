"""Second derivatives of networks with constant weights, without the derivatives of the weights.

For a second derivative through a convolution, torch also computes the weights' part, one group of channels at a time.
A depthwise network then runs tens of thousands of small convolutions. With constant weights a convolution is affine.
Its derivatives of every order are its linear part and the adjoint of that. A batch norm with constant statistics is
affine too. Layers whose weights depend on the image are left to torch.
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
    """An affine function of a tensor. Its derivatives alternate between the adjoint and the linear part."""

    @staticmethod
    def forward(ctx, x: Tensor, function: Callable, linear: Callable, adjoint: Callable) -> Tensor:
        ctx.derivative = adjoint, adjoint, linear
        return function(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return _Affine.apply(gradient, *ctx.derivative), None, None, None


class ConstantWeights(TorchFunctionMode):
    """Treat weights and statistics of convolutions and batch norms as constants. The outputs do not change."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = {torch.conv2d: _convolution, F.batch_norm: _batch_norm}.get(func, func)
        return func(*args, **(kwargs or {}))


def _constant(*values: Tensor | None) -> bool:
    """Return whether no value was computed from another tensor."""
    return all(value is None or value.is_leaf for value in values)


def _convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """Replace torch.conv2d, except for padding by name, single images and autocast."""
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
    """Replace F.batch_norm, except where it uses the statistics of the batch."""
    norm = partial(F.batch_norm, weight=weight, bias=bias, training=training, momentum=momentum, eps=eps)
    if training or running_mean is None or running_var is None or not _constant(weight, bias):
        return norm(input, running_mean, running_var)
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    scale = scale[(slice(None),) + (None,) * (input.ndim - 2)]
    return _Affine.apply(input, lambda x: norm(x, running_mean, running_var), scale.mul, scale.mul)
