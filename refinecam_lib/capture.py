"""Run a network once and keep what every method and every layer needs.

>>> capture = Capture(model, inputs, target, layers=("layer1", "layer2", "layer3", "layer4"))
>>> capture.activations[0].shape, capture.gradients[0].shape      # (B,C,h,w) each, shallow to deep
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError

from .errors import InputError, images, seed_of
from .networks.classifier import Classifier, find_logits, like_weights
from .networks.curvature import ConstantWeights
from .networks.hooks import double_copy, recording
from .networks.layers import evaluating, named_layers
from .networks.layout import layer_map
from .networks.places import check_order

Maps = list[Tensor]


class Capture:
    """One batch of images in one network: logits, activations, gradients and maps. Each is computed on first use.

    Args:
        model: A classifier (B,C,H,W) -> logits (B,K), or another output that `logits_of` reads. It comes back unchanged.
            A single logit z counts as two classes with the logits -z/2 and z/2; the probability of class 1 is sigmoid(z).
        inputs: Normalised images (B,C,H,W), of the weights' type and on their device. NumPy arrays are converted.
        target: Class indices (B,). None takes the predicted classes.
        layers: Dotted names of modules, shallow to deep, or one name; () for finished maps, which need none.
        ids: One id per image. Random numbers depend on it, not on the image's place in the batch. The default is a
            hash of the image.
        seed: Another seed draws other random numbers.
        truth: Ground-truth masks (B,H,W) for the metrics and for the controls that need them.
        logits_of: Takes the network's output and returns logits (B,K). The default reads tensors, `.logits`, and
            dicts and tuples with one tensor (B,K).

    Raises:
        InputError: Inputs, target, ids or layers do not fit together or do not fit the network.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor | np.ndarray,
        target: Tensor | Sequence[int] | None,
        layers: Sequence[str] | str,
        ids: Sequence[Hashable] | None = None,
        seed: int = 0,
        truth: Tensor | None = None,
        logits_of: Callable[[Any], Any] = find_logits,
    ):
        self.model, self.seed, self.truth, self.logits_of = model, seed, truth, logits_of
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        if isinstance(inputs, np.ndarray):
            inputs = torch.from_numpy(inputs)
            inputs = inputs.to(like_weights(model)) if inputs.is_floating_point() else inputs
        inputs = images(inputs)
        self.inputs = inputs.clone() if inputs.is_inference() else inputs.detach()
        wanted = getattr(getattr(model, "patch_embed", None), "img_size", None)  # timm's transformers
        if wanted and getattr(model.patch_embed, "strict_img_size", False) and self.size != tuple(wanted):
            raise InputError(
                f"images of {self.size[0]}x{self.size[1]} px; allowed by this model: {wanted[0]}x{wanted[1]}"
            )
        zeros = torch.zeros(len(inputs))  # any class, until the network has run
        self.target = torch.as_tensor(zeros if target is None else target, device=inputs.device).long().clone()
        if self.target.shape != (len(inputs),):
            raise InputError(
                f"target of shape {tuple(self.target.shape)} for {len(inputs)} images; allowed: one class each"
            )
        if ids is not None and len(ids) != len(inputs):
            raise InputError(f"Expected one id per image, got {len(ids)} ids for {len(inputs)} images.")
        self._ids = None if ids is None else list(ids)
        self.steps: list[str] = ["clean"] * len(inputs)
        self.first_layer = 0
        """The position of layers[0] among the layers that variants count. See `masked`."""
        self._maps: dict[Callable, Maps] = {}
        self.channel_logits: dict[int, list[Tensor]] = {}
        """Layer number -> logits of ScoreCAM's masked images. They do not depend on the target."""
        self._double_network: list[nn.Module] = []  # at most one; shared with captures made from this one
        self.layers and named_layers(model, self.layers)
        if target is None:
            self.target = self.logits.argmax(1)

    @property
    def classifier(self) -> Classifier:
        """The network with `logits_of`: images (B,C,H,W) -> logits (B,K)."""
        return Classifier(self.model, self.logits_of)

    @property
    def ids(self) -> list[Hashable]:
        """One id per image."""
        if self._ids is None:
            self._ids = [
                sha256(x.contiguous().cpu().view(torch.uint8).numpy().tobytes()).hexdigest()[:16] for x in self.inputs
            ]
        return self._ids

    def seeds_of(self, step: str) -> list[int]:
        """Return one seed per image for a step that draws random numbers."""
        return [seed_of(self.seed, each, step) for each in self.ids]

    @property
    def seeds(self) -> list[int]:
        """One seed per image, for methods that draw random numbers. The masked image has others."""
        return [seed_of(self.seed, each, step) for each, step in zip(self.ids, self.steps)]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.inputs.shape[-2], self.inputs.shape[-1]

    @cached_property
    def _forward(self) -> tuple[list[Tensor], Tensor]:
        return self._run()

    def _run(self) -> tuple[list[Tensor], Tensor]:
        """Run the network and return the layers' outputs and the logits, attached to the graph."""
        # The fused attention kernels have no second derivative, which ShapleyCAM needs.
        attention = sdpa_kernel(SDPBackend.MATH)
        with torch.inference_mode(False), torch.set_grad_enabled(bool(self.layers)), evaluating(self.model), attention:
            with recording(self.model, self.layers) as outputs:
                logits = self.classifier(self.inputs)
            if idle := [name for name in self.layers if name not in outputs]:
                raise InputError(f"layers {idle} do not run in a forward pass; allowed: layers that run")
            tokens = [name for name, output in outputs.items() if output.ndim == 3 and len(output) == len(self.inputs)]
            check_order(self.model, self.classifier, self.inputs[:1], tokens)
        if list(outputs) != list(self.layers):
            raise InputError(
                f"layers {list(self.layers)} run in the order {list(outputs)}; allowed: layers shallow to deep"
            )
        if not 0 <= int(self.target.min()) <= int(self.target.max()) < logits.shape[1]:
            raise InputError(
                f"target classes {int(self.target.min())}..{int(self.target.max())} for outputs of shape "
                f"{tuple(logits.shape)}; allowed: logits (B, K) and classes 0..K-1"
            )
        for name, output in outputs.items():
            if len(output) != len(self.inputs):  # for example the windows of an image
                raise InputError(
                    f"layer {name!r} returns shape {tuple(output.shape)} for {len(self.inputs)} images; "
                    "allowed: layers with one output an image"
                )
        return list(outputs.values()), logits

    @property
    def logits(self) -> Tensor:
        """(B,K), detached."""
        _, logits = self.graph if "graph" in self.__dict__ else self._forward  # both have the same
        return logits.detach()

    @property
    def probability(self) -> Tensor:
        """Softmax probability of the target class, (B,)."""
        return self.logits.softmax(1).gather(1, self.target[:, None])[:, 0]

    @cached_property
    def activations(self) -> Maps:
        """Each layer's output as (B,C,h,w), detached."""
        return self.as_maps([a.detach() for a in self._forward[0]])

    @cached_property
    def gradients(self) -> Maps:
        """The gradient of the target's logit at each layer's output, (B,C,h,w). One backward pass serves all layers."""
        outputs, logits = self._forward
        with torch.inference_mode(False), torch.enable_grad():
            score = logits.gather(1, self.target[:, None]).sum()
            return self.as_maps(self.gradients_of(score, outputs))

    def gradients_of(self, score: Tensor, outputs: Maps, create_graph: bool = False) -> Maps:
        """Return the gradients of a score at the layers' outputs. Raises InputError if a layer does not reach it."""
        found: Sequence[Tensor | None] = [None] * len(outputs)
        if score.requires_grad:
            try:
                found = torch.autograd.grad(score, outputs, None, True, create_graph, allow_unused=True)
            except CheckpointError as error:
                raise InputError("The network uses torch.utils.checkpoint. Switch it off to explain it.") from error
        if lost := [name for name, gradient in zip(self.layers, found) if gradient is None]:
            raise InputError(
                f"The logits give no gradient at layers {lost}: they do not depend on them, or the network computes a "
                "later step under torch.no_grad(), in a checkpoint or detached. Choose other layers or change that step."
            )
        return [gradient for gradient in found if gradient is not None]

    @cached_property
    def graph(self) -> tuple[list[Tensor], Tensor]:
        """The layers' outputs in their own layout and the logits, attached. It can be differentiated twice."""
        with ConstantWeights():
            return self._run()

    @property
    def double(self) -> "Capture":
        """The same capture in float64, on a float64 copy of the network that related captures share."""
        return self if self.inputs.dtype == torch.double else self._double

    @cached_property
    @torch.inference_mode(False)
    def _double(self) -> "Capture":
        if not self._double_network:
            self._double_network.append(double_copy(self.model))
        inputs = self.inputs.double().contiguous()
        twin = self._like(self._double_network[0], inputs, self.layers)
        twin.first_layer, twin.steps = self.first_layer, self.steps
        return twin

    def _like(self, model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> "Capture":
        return Capture(model, inputs, self.target, layers, self.ids, self.seed, self.truth, self.logits_of)

    def as_maps(self, tensors: Sequence[Tensor]) -> Maps:
        """Bring tensors from the layout of the layers' outputs into (B,C,h,w)."""
        return [layer_map(self.model, name, tensor, self.size) for name, tensor in zip(self.layers, tensors)]

    def maps(self, method: Callable[["Capture"], Maps]) -> Maps:
        """Return the method's raw maps, one per layer. They are computed once and serve every variant."""
        if method not in self._maps:
            with torch.inference_mode(False):
                self._maps[method] = method(self)
        return self._maps[method]

    @torch.inference_mode(False)
    def of_target(
        self, target: Tensor, ids: Sequence[Hashable] | None = None, steps: Sequence[str] | None = None
    ) -> "Capture":
        """Explain the same forward pass for other classes (B,). Other `ids` or `steps` draw other random numbers."""
        target = torch.as_tensor(target, device=self.inputs.device).long().clone()
        if target.shape != self.target.shape or not 0 <= int(target.min()) <= int(target.max()) < self.logits.shape[1]:
            raise InputError(
                f"target {target.tolist()}; allowed: {len(self.inputs)} classes of 0..{self.logits.shape[1] - 1}"
            )
        other = copy.copy(self)
        other.__dict__.pop("gradients", None)
        other.target, other._maps = target, {}
        other._ids, other.steps = list(ids or self.ids), list(steps or self.steps)
        if "_double" in self.__dict__:
            other._double = self._double.of_target(target, ids, steps)
        return other

    def masked(self, maps: Tensor, layers: Sequence[str] | None = None) -> "Capture":
        """Capture each image multiplied by its map (B,H,W): X ⊙ M, where 0 is the mean colour.

        layers: The last few of this capture's layers, where the maps of the others are not needed.
        """
        inputs = (self.inputs * maps[:, None]).to(self.inputs.dtype).contiguous(memory_format=torch.channels_last)
        masked = self._like(self.model, inputs, self.layers if layers is None else layers)
        masked.first_layer = self.first_layer + (self.layers.index(masked.layers[0]) if masked.layers else 0)
        masked.steps = ["masked"] * len(inputs)
        masked._double_network = self._double_network
        return masked
