"""Read the output of any classifier as logits (B,K) with K of 2 or more.

>>> Classifier(hugging_face_network)(inputs).shape               # from output.logits
(B, K)
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

CURE = "Pass logits_of=f, where f takes the network's output and returns logits (B, K)."


def find_logits(output: Any) -> Any:
    """Return the logits in a network's output.

    Args:
        output: A tensor, an output with `.logits` or ["logits"] as in Hugging Face's transformers, or a mapping or
            sequence that holds one tensor (B,K).

    Raises:
        InputError: Another output, or one with several tensors (B,K).
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    tables = [value for value in values if isinstance(value, Tensor) and value.ndim == 2]
    if len(tables) == 1:
        return tables[0]
    raise InputError(f"The network returns a {type(output).__name__} with {len(tables)} tensors (B, K). {CURE}")


class Classifier(nn.Module):
    """A network that returns logits (B,K).

    A single logit z becomes two classes, with the logits -z/2 and z/2: class 1 has the probability sigmoid(z).

    Args:
        network: Any network (B,C,H,W) -> an output that `logits_of` reads.
        logits_of: Takes the network's output and returns logits.

    Raises:
        InputError: In a forward pass: the inputs do not fit the weights, or the output is not of logits.
    """

    def __init__(self, network: nn.Module, logits_of: Callable[[Any], Any] = find_logits):
        super().__init__()
        self.network, self.logits_of = network, logits_of

    def forward(self, inputs: Tensor) -> Tensor:
        try:
            output = self.network(inputs)
        except RuntimeError as error:
            if reason := _misfit(self.network, inputs, str(error)):
                raise InputError(reason) from error
            raise
        return checked_logits(self.logits_of(output), len(inputs))


def like_weights(network: nn.Module) -> Tensor:
    """Return a weight of the network, for its type and device; a float32 scalar if it has none."""
    return next((p.detach() for p in network.parameters() if p.is_floating_point()), torch.zeros(()))


def channels_of(network: nn.Module) -> int:
    """Return how many channels the network's images have: those of its first convolution, otherwise 3."""
    return next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 3)


def _misfit(network: nn.Module, inputs: Tensor, error: str) -> str | None:
    weights = like_weights(network)
    if any(tensor.is_inference() for tensor in (*network.parameters(), *network.buffers())):
        return "The weights were made in torch.inference_mode(), so no gradient exists. Make the network outside it."
    if weights.dtype != inputs.dtype:
        name = str(weights.dtype).removeprefix("torch.")
        return f"The images are {inputs.dtype}, the weights {weights.dtype}. Pass inputs.to(torch.{name})."
    if weights.device != inputs.device:
        return f"The images are on {inputs.device}, the weights on {weights.device}. Pass inputs.to({str(weights.device)!r})."
    if "channels" in error and inputs.shape[1] != (channels := channels_of(network)):
        return f"The images have {inputs.shape[1]} channels, the network takes {channels}. Pass inputs (B, {channels}, H, W)."
    return None


def checked_logits(output: Any, images: int) -> Tensor:
    """Return logits (B,K) of `images` images, in float32 or float64. Raises InputError for any other output."""
    if not isinstance(output, Tensor):
        raise InputError(f"Expected logits (B, K), got a {type(output).__name__}. {CURE}")
    if output.ndim == 1:
        output = output[:, None]
    if output.ndim != 2 or len(output) != images or not output.shape[1] or not output.is_floating_point():
        given = f"{output.dtype} output of shape {tuple(output.shape)}"
        raise InputError(f"Expected logits ({images}, K), got a {given}. {CURE}")
    slack = 8 * torch.finfo(output.dtype).eps * output.shape[1] ** 0.5
    last, output = _last_step(output), output.to(torch.promote_types(output.dtype, torch.float32))
    if output.shape[1] > 1 and bool((output >= 0).all() & ((output.sum(1) - 1).abs() < slack).all()):
        raise InputError(
            "The network returns probabilities: each row sums to 1. Remove its softmax, or pass logits_of=torch.log to "
            "explain log-probabilities."
        )
    if last.startswith("Sigmoid"):
        raise InputError(
            "The network returns sigmoid probabilities. Remove its sigmoid, or pass logits_of=torch.logit, which undoes it."
        )
    return torch.cat([-output, output], 1) / 2 if output.shape[1] == 1 else output


def _last_step(output: Tensor) -> str:
    """Return the name of the operation that computed a tensor's values, without views and copies."""
    step = output.grad_fn
    while step is not None and step.name().startswith(
        ("View", "Reshape", "UnsafeView", "Squeeze", "Unsqueeze", "ToCopy")
    ):
        step = step.next_functions[0][0]
    return step.name() if step is not None else ""
