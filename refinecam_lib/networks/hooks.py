"""Record layers' outputs, and copy networks in float64."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(model: nn.Module) -> threading.RLock:
    """Return the lock of a network. Its wrappers have the same one, because hooks and modes belong to its modules."""
    with _making:
        return _locks.setdefault(_first_with_weights(model), threading.RLock())


def _first_with_weights(model: nn.Module) -> nn.Module:
    return next((module for module in model.modules() if module._parameters), model)


def tensor_of(returned: object) -> Tensor | None:
    """Return the output of a layer: a tensor, or that at the start of a tuple with no other; otherwise None."""
    if isinstance(returned, tuple) and sum(isinstance(value, Tensor) for value in returned) == 1:
        returned = returned[0]
    return returned if isinstance(returned, Tensor) else None


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end, also after an exception."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def recording(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of `layers` in the forward passes inside. No hook outlives the context.

    The first layer's output becomes a leaf that requires a gradient, so autograd keeps nothing below it.
    """
    outputs: dict[str, Tensor] = {}
    thread = threading.get_ident()

    def record(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, returned: object) -> object:
            if threading.get_ident() != thread:  # a forward pass of somebody else
                return None
            output = tensor_of(returned)
            if output is None or output.is_inference():
                given = type(returned).__name__ if output is None else "tensor made in torch.inference_mode()"
                raise InputError(
                    f"layer {name!r} returns a {given}; allowed: layers that return a tensor with gradients"
                )
            if name in outputs:
                raise InputError(f"layer {name!r} runs more than once in a forward pass; allowed: layers that run once")
            outputs[name] = output if outputs and output.requires_grad else output.detach().requires_grad_()
            torch.set_grad_enabled(True)  # the network may run this part under no_grad
            later = outputs[name].clone()  # later modules may work in place
            return (later, *returned[1:]) if isinstance(returned, tuple) else later

        return hook

    with hooked(model.get_submodule(name).register_forward_hook(record(name)) for name in layers):
        yield outputs


@contextmanager
def sound_norms(model: nn.Module) -> Iterator[None]:
    """Correct the gradient of batch norms for one image in the forward passes inside.

    On CPUs torch 2.13 mixes up places if one image, or its gradient, was made from tokens. Its first stride then does
    not span the image. XCiT's stem receives such gradients. A copy in the usual layout avoids that.
    """

    def before(module: nn.Module, args: tuple) -> tuple | None:
        copied = usual(args[0]) if torch.is_grad_enabled() else None
        return None if copied is None else (copied, *args[1:])

    def after(module: nn.Module, args: tuple, output: Tensor) -> None:
        if output.requires_grad and len(output) == 1:
            output.register_hook(usual)

    def usual(tensor: Tensor) -> Tensor | None:
        odd = len(tensor) == 1 and tensor.stride(0) != tensor.numel()
        return tensor.clone(memory_format=torch.contiguous_format) if odd else None

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(before) for norm in norms]
    with hooked([*handles, *(norm.register_forward_hook(after) for norm in norms)]):
        yield


def double_copy(model: nn.Module) -> nn.Module:
    """Copy a network in float64 and leave `model` as it was.

    The copy shares its hooks with `model`: a hook added to `model` later runs in both, and a removed one in neither.
    """
    attributes = [(name, value) for module in model.modules() for name, value in vars(module).items()]
    tensors = [*model.parameters(), *model.buffers(), *(v for _, v in attributes if isinstance(v, Tensor))]
    memo: dict[int, object] = {id(tensor): _double(tensor) for tensor in tensors}
    memo |= {id(value): value for name, value in attributes if "_hooks" in name}
    lock = lock_of(model)
    with lock:
        double = copy.deepcopy(model, memo=memo)
    _locks[_first_with_weights(double)] = lock
    return double


def _double(tensor: Tensor) -> Tensor:
    # In channels-last, torch's float64 convolutions take twice as long.
    value = tensor.detach().double().contiguous() if tensor.is_floating_point() else tensor
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
