"""Prepare a network for captum's DeepLift."""

import copy

import torch
from torch import Tensor, nn

from .hooks import hooked, lock_of


class _CallByCall(nn.Module):
    """An activation with a module of its own for each call in a forward pass."""

    def __init__(self, activation: nn.Module, calls: int):
        super().__init__()
        self.calls = nn.ModuleList([_separate(activation) for _ in range(calls)])
        self.next = 0

    def forward(self, x: Tensor) -> Tensor:
        self.next = (self.next + 1) % len(self.calls)
        # captum sets the gradient of the activation's input, which other modules may read too, hence the clone. A
        # max-pool keeps its input. If that is an activation's output, captum passes on the plain gradient, and so do we.
        return self.calls[self.next - 1](x if isinstance(self.calls[0], nn.MaxPool2d) else x.clone())


class _ReLU6(nn.Module):
    """min(max(x, 0), 6) by two ReLUs, for which DeepLift has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.low(x.clone()) - self.high(x - 6)


def _separate(activation: nn.Module) -> nn.Module:
    """Copy an activation. The copy does not work in place."""
    if isinstance(activation, nn.ReLU6):
        return _ReLU6()
    fresh = copy.deepcopy(activation)
    if hasattr(fresh, "inplace"):
        fresh.inplace = False  # type: ignore[assignment]
    return fresh


def deep_lift_copy(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Copy a network for DeepLift. In the copy no activation works in place or runs twice in a forward pass.

    DeepLift pairs an activation's inputs and outputs. In-place activations overwrite the inputs. A module that runs twice
    keeps only those of the last call.

    Args:
        model: The network. It comes back unchanged.
        inputs: Images (B,3,H,W) for one forward pass, which counts the calls.

    Returns:
        A network with the same weights and outputs.
    """
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    weights = [*model.parameters(), *model.buffers()]
    with lock_of(model):
        twin = copy.deepcopy(model, memo={id(tensor): tensor for tensor in weights}).eval()
    kinds = (*SUPPORTED_NON_LINEAR, nn.ReLU6)
    calls = {module: 0 for module in twin.modules() if type(module) in kinds}

    def count(module: nn.Module, args: tuple) -> None:
        calls[module] += 1

    with torch.no_grad(), hooked(module.register_forward_pre_hook(count) for module in calls):
        twin(inputs)
    fresh = {module: _CallByCall(module, n) for module, n in calls.items() if n}
    for parent in list(twin.modules()):
        for name, child in parent._modules.items():  # by every name, because a module may have two
            if child in fresh:
                setattr(parent, name, fresh[child])
    return twin.eval()
