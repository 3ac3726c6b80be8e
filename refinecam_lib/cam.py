"""Class activation maps: one forward and one backward pass, shared by every method and every layer.

>>> capture = Capture(model, inputs, target, layers=("layer1", "layer2", "layer3", "layer4"))
>>> shallow, *_, deep = grad_cam(capture)          # raw maps (B,h,w), shallow to deep

A method is a function of a Capture; a new one reads `capture.activations` and `capture.gradients` and returns a list.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checks import InputError, images, rng
from .curvature import ConstantWeights
from .inference import forward
from .layers import evaluating, is_channels_last, named_layers, to_nchw
from .memory import KEEPS

Maps = list[Tensor]


@contextmanager
def recording(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of `layers` in the forward passes inside; no hook outlives the context.

    The first layer's output becomes a leaf that requires a gradient, so autograd keeps nothing of what lies below it.
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
            return outputs[name].clone()  # what follows may work in place

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
    # Channels-last, torch's float64 convolutions would take twice as long.
    value = tensor.detach().double().contiguous() if tensor.is_floating_point() else tensor
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


class Capture:
    """One batch seen by a network: activations, gradients and maps, each computed once, when first asked for.

    model: any classifier (B,3,H,W) -> logits (B,K); it comes back unchanged. inputs: normalised images (B,3,H,W).
    target: class indices (B,). layers: dotted names, shallow to deep. seeds: one integer an image, for methods that
    draw random numbers. truth: masks (B,H,W), for methods that are given the answer. Raises InputError for inputs,
    targets, seeds or layers that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Tensor,
        layers: Sequence[str],
        seeds: Sequence[int] | None = None,
        truth: Tensor | None = None,
    ):
        self.model, self.layers, self.truth = model, tuple(layers), truth
        self.inputs = images(inputs).detach()
        wanted = getattr(getattr(model, "patch_embed", None), "img_size", None)  # of timm's transformers
        if wanted and getattr(model.patch_embed, "strict_img_size", False) and self.size != tuple(wanted):
            raise InputError(
                f"images of {self.size[0]}x{self.size[1]} px; allowed by this model: {wanted[0]}x{wanted[1]}"
            )
        self.target = torch.as_tensor(target, device=inputs.device).long()
        if self.target.shape != (len(inputs),):
            raise InputError(
                f"target of shape {tuple(self.target.shape)} for {len(inputs)} images; allowed: one class each"
            )
        self.seeds = self._checked(range(len(inputs)) if seeds is None else seeds)
        self.first = 0  # the number of layers[0] among the layers that variants count, see `masked`
        self._maps: dict[Callable, Maps] = {}
        self._channel_logits: dict[int, list[Tensor]] = {}  # by number of the layer, see `score_cam`
        self._double_network: list[nn.Module] = []  # one at most, shared with captures made from this one
        named_layers(model, layers)

    def _checked(self, seeds: Sequence[int]) -> list[int]:
        if len(seeds) != len(self.inputs):
            raise InputError(f"{len(seeds)} seeds for {len(self.inputs)} images; allowed: one for each")
        return [int(seed) for seed in seeds]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.inputs.shape[-2], self.inputs.shape[-1]

    @cached_property
    def _forward(self) -> tuple[list[Tensor], Tensor]:
        return self._run()

    def _run(self) -> tuple[list[Tensor], Tensor]:
        """A forward pass: the layers' outputs and the logits, attached."""
        # The fused attention kernels have no second derivative, which ShapleyCAM needs.
        attention = sdpa_kernel(SDPBackend.MATH)
        with torch.enable_grad(), evaluating(self.model), attention, recording(self.model, self.layers) as outputs:
            logits = self.model(self.inputs)
        if list(outputs) != list(self.layers):
            raise InputError(
                f"layers {list(self.layers)} run in the order {list(outputs)}; allowed: layers that run, shallow to deep"
            )
        if logits.ndim != 2 or not 0 <= int(self.target.min()) <= int(self.target.max()) < logits.shape[1]:
            raise InputError(
                f"target classes {int(self.target.min())}..{int(self.target.max())} for outputs of shape "
                f"{tuple(logits.shape)}; allowed: logits (B, K) and classes 0..K-1"
            )
        for name, output in outputs.items():
            if len(output) != len(self.inputs):  # windows of an image, say
                raise InputError(
                    f"layer {name!r} returns shape {tuple(output.shape)} for {len(self.inputs)} images; "
                    "allowed: layers with one output an image"
                )
        return list(outputs.values()), logits

    @property
    def logits(self) -> Tensor:
        """(B,K), detached."""
        _, logits = self.graph if "graph" in self.__dict__ else self._forward  # one is enough: they have the same
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
        """Gradient of the target's logit at each layer's output, (B,C,h,w), all layers from one backward pass."""
        outputs, logits = self._forward
        with torch.enable_grad():
            score = logits.gather(1, self.target[:, None]).sum()
        return self.as_maps(torch.autograd.grad(score, outputs, retain_graph=True))

    @cached_property
    def graph(self) -> tuple[list[Tensor], Tensor]:
        """Layer outputs in the network's own layout and the logits, attached, of a forward pass to be derived twice."""
        with ConstantWeights():
            return self._run()

    @property
    def double(self) -> "Capture":
        """The same capture in float64, on a float64 copy of the network; itself where it is in float64 already.

        One copy serves this capture and all captures made from it by `masked` and `of_target`.
        """
        return self if self.inputs.dtype == torch.double else self._double

    @cached_property
    def _double(self) -> "Capture":
        if not self._double_network:
            self._double_network.append(double_copy(self.model))
        inputs = self.inputs.double().contiguous()
        twin = Capture(self._double_network[0], inputs, self.target, self.layers, self.seeds, self.truth)
        twin.first = self.first
        return twin

    def as_maps(self, tensors: Sequence[Tensor]) -> Maps:
        """Tensors in the layout of the layers' outputs -> (B,C,h,w)."""
        prefix = getattr(self.model, "num_prefix_tokens", None)
        channels_last = is_channels_last(self.model)
        return [to_nchw(tensor, self.size, prefix, channels_last) for tensor in tensors]

    def of_target(self, target: Tensor, seeds: Sequence[int] | None = None) -> "Capture":
        """The same forward pass, explained for other classes (B,); ScoreCAM's forwards are shared as well."""
        target = torch.as_tensor(target, device=self.inputs.device).long()
        if target.shape != self.target.shape or not 0 <= int(target.min()) <= int(target.max()) < self.logits.shape[1]:
            raise InputError(
                f"target {target.tolist()}; allowed: {len(self.inputs)} classes of 0..{self.logits.shape[1] - 1}"
            )
        other = copy.copy(self)
        other.__dict__.pop("gradients", None)
        other.target, other.seeds, other._maps = target, self._checked(self.seeds if seeds is None else seeds), {}
        if "_double" in self.__dict__:
            other._double = self._double.of_target(target, seeds)
        return other

    def maps(self, method: Callable[["Capture"], Maps]) -> Maps:
        """The method's maps, computed once: base, refined and every aggregate share them."""
        if method not in self._maps:
            self._maps[method] = method(self)
        return self._maps[method]

    def masked(
        self, maps: Tensor, layers: Sequence[str] | None = None, seeds: Sequence[int] | None = None
    ) -> "Capture":
        """The same batch with each image multiplied by its map (B,H,W): X ⊙ M, 0 being the mean colour.

        layers: some of this capture's, the last ones, where the others' maps are not needed.
        """
        inputs = (self.inputs * maps[:, None]).contiguous(memory_format=torch.channels_last)
        layers, seeds = self.layers if layers is None else layers, self.seeds if seeds is None else seeds
        masked = Capture(self.model, inputs, self.target, layers, seeds, self.truth)
        masked.first = self.first + self.layers.index(masked.layers[0])
        masked._double_network = self._double_network
        return masked


def _weighted(weights: Tensor, activations: Tensor) -> Tensor:
    return (weights * activations).sum(1).relu()


def grad_cam(capture: Capture) -> Maps:
    """Grad-CAM (Selvaraju et al. 2017): ReLU of the activations weighted by their mean gradient."""
    return [_weighted(g.mean((2, 3), keepdim=True), a) for a, g in zip(capture.activations, capture.gradients)]


def hires_cam(capture: Capture) -> Maps:
    """HiResCAM (Draelos and Carin 2020): ReLU of the sum over channels of gradient times activation."""
    return [_weighted(g, a) for a, g in zip(capture.activations, capture.gradients)]


def layer_cam(capture: Capture) -> Maps:
    """LayerCAM (Jiang et al. 2021): activations weighted, place by place, by their positive gradients."""
    return [_weighted(g.relu(), a) for a, g in zip(capture.activations, capture.gradients)]


def grad_cam_pp(capture: Capture, eps: float = 1e-6) -> Maps:
    """Grad-CAM++ (Chattopadhay et al. 2018), with the closed form for an exponential score that everyone uses.

    eps: added to the denominator of the weights. It is part of the definition in use: where gradients are small it
    decides the map. With signed activations the denominator crosses zero, and the map is ill-conditioned there. The
    registry therefore computes it in float64.
    """

    def one(a: Tensor, g: Tensor) -> Tensor:
        denominator = 2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + eps
        alpha = torch.where(g != 0, g**2 / denominator, 0)
        return _weighted((alpha * g.relu()).sum((2, 3), keepdim=True), a)

    return [one(a, g) for a, g in zip(capture.activations, capture.gradients)]


def shapley_cam(capture: Capture) -> Maps:
    """ShapleyCAM (Cai 2025): Grad-CAM weights corrected by half a Hessian-vector product, mean(g - H·A / 2).

    The score is ReST, logit plus log-softmax, exactly: with the plain logit the Hessian of a ReLU network is zero and
    the method is Grad-CAM. Departs from the published code, whose gradient loses its graph (see the audit notebook).
    """
    outputs, logits = capture.graph
    index = capture.target[:, None]
    weights = []
    with torch.enable_grad():
        score = (logits.gather(1, index) + logits.log_softmax(1).gather(1, index)).sum()
        gradients = torch.autograd.grad(score, outputs, create_graph=True)
        for output, gradient in zip(outputs, gradients):
            # One layer at a time: a product shared by all layers would mix in their cross derivatives.
            product = torch.autograd.grad((gradient * output.detach()).sum(), output, retain_graph=True)[0]
            weights.append(gradient.detach() - product / 2)
    activations = capture.as_maps([output.detach() for output in outputs])
    return [_weighted(w.mean((2, 3), keepdim=True), a) for w, a in zip(capture.as_maps(weights), activations)]


def forward_chunk(device: torch.device) -> int:
    """Images in one forward of many: many on a GPU, where each kernel has a price; few where memory is mapped anew."""
    return 256 if device.type != "cpu" else 32 if KEEPS else 8


def score_cam(capture: Capture, chunk: int | None = None) -> Maps:
    """ScoreCAM (Wang et al. 2020): channels weighted by the softmax of the target's logit on X ⊙ upsampled channel.

    Exact, over every channel, in chunks of `chunk` forwards (None: `forward_chunk`); memory does not grow with the
    number of channels but for their logits, kept for `of_target`. The channel is upsampled with aligned corners and
    min-max scaled; no baseline is taken off, which softmax ignores.
    """
    maps, chunk = [], chunk or forward_chunk(capture.inputs.device)
    with torch.no_grad():
        for number, activations in enumerate(capture.activations):
            if number not in capture._channel_logits:
                capture._channel_logits[number] = [
                    _channel_logits(capture.model, x, a, chunk) for x, a in zip(capture.inputs, activations)
                ]
            logits = capture._channel_logits[number]
            scores = torch.stack([each[:, c] for each, c in zip(logits, capture.target)])
            maps.append(_weighted(scores.softmax(1)[:, :, None, None], activations))
    return maps


def _channel_logits(model: nn.Module, x: Tensor, channels: Tensor, chunk: int) -> Tensor:
    """The logits (C,K) on the image (3,H,W) masked by each of its channels (C,h,w)."""
    logits = []
    for part in channels.split(chunk):
        up = F.interpolate(part[:, None], size=x.shape[-2:], mode="bilinear", align_corners=True)
        low, high = up.amin((2, 3), keepdim=True), up.amax((2, 3), keepdim=True)
        masked = x * ((up - low) / (high - low + 1e-8))
        logits.append(forward(model, masked))
    return torch.cat(logits)


def random_cam(capture: Capture) -> Maps:
    """RandomCAM, a trivial map: each pixel uniform in [0,1], drawn anew for every image and pass from its seed."""
    draws = [torch.from_numpy(rng(seed, "RandomCAM").random(capture.size)) for seed in capture.seeds]
    return [torch.stack(draws).to(capture.inputs)]


def half_cam(capture: Capture) -> Maps:
    """HalfCAM, a trivial map: 0.5 everywhere, but 0 at the first pixel and 1 at the last."""
    maps = torch.full((len(capture.inputs), *capture.size), 0.5).to(capture.inputs)
    maps[:, 0, 0], maps[:, -1, -1] = 0, 1
    return [maps]


def all_ones_cam(capture: Capture) -> Maps:
    """All1sCAM, a trivial map: 1 everywhere, but 0 at the first pixel."""
    maps = torch.ones((len(capture.inputs), *capture.size)).to(capture.inputs)
    maps[:, 0, 0] = 0
    return [maps]


def centre_gaussian(capture: Capture) -> Maps:
    """A Gaussian at the centre, its deviation a quarter of the side: the bias of photographers, blind to the image."""
    height, width = capture.size
    y, x = (torch.linspace(-2, 2, side, dtype=torch.double) for side in (height, width))
    bump = torch.exp(-(y[:, None] ** 2 + x[None] ** 2) / 2)
    return [bump.to(capture.inputs).expand(len(capture.inputs), -1, -1)]


def edge_detector(capture: Capture) -> Maps:
    """The magnitude of the image's gradient, the mean over channels: it sees the image, but not the network."""
    down, right = torch.gradient(capture.inputs.mean(1), dim=(1, 2))
    return [torch.hypot(down, right)]


def ground_truth(capture: Capture) -> Maps:
    """The mask itself: the answer, as a map. Raises InputError where the capture has no truth."""
    if capture.truth is None:
        raise InputError("the map of the ground truth of images without masks; allowed: a data set with masks")
    return [capture.truth.to(capture.inputs)]


def inverted_truth(capture: Capture) -> Maps:
    """Everything but the mask: the opposite of the answer. Raises InputError where the capture has no truth."""
    return [1 - ground_truth(capture)[0]]
