"""Record layers' outputs, and copy networks in float64."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ..errors import InputError


@contextmanager
def recording(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of `layers` in the forward passes inside. No hook outlives the context.

    The first layer's output becomes a leaf that requires a gradient, so autograd keeps nothing below it.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            if not isinstance(output, Tensor):
                raise InputError(
                    f"layer {name!r} returns a {type(output).__name__}; allowed: layers that return a tensor"
                )
            if name in outputs:
                raise InputError(f"layer {name!r} runs more than once in a forward pass; allowed: layers that run once")
            outputs[name] = output if outputs and output.requires_grad else output.detach().requires_grad_()
            return outputs[name].clone()  # later modules may work in place

        return hook

    handles = [model.get_submodule(name).register_forward_hook(record(name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def double_copy(model: nn.Module) -> nn.Module:
    """Copy a network in float64 and leave `model` as it was.

    The copy shares its hooks with `model`: a hook added to `model` later runs in both, and a removed one in neither.
    """
    attributes = [(name, value) for module in model.modules() for name, value in vars(module).items()]
    tensors = [*model.parameters(), *model.buffers(), *(v for _, v in attributes if isinstance(v, Tensor))]
    memo: dict[int, object] = {id(tensor): _double(tensor) for tensor in tensors}
    memo |= {id(value): value for name, value in attributes if "_hooks" in name}
    return copy.deepcopy(model, memo=memo)


def _double(tensor: Tensor) -> Tensor:
    # In channels-last, torch's float64 convolutions take twice as long.
    value = tensor.detach().double().contiguous() if tensor.is_floating_point() else tensor
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
