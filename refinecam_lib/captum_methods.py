"""The paper's methods beyond CAM, by captum: GuidedGradCAM, LIME, DeepLift, InputXGradient, IntegratedGradients, KernelShap.

Each is a function of a Capture like those of `cam`. All but GuidedGradCAM give one map at full resolution, the absolute
value of the sum over channels, and have nothing to refine. captum and scikit-image are imported when first used.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cams import grad_cam
from .capture import Capture, Maps
from .errors import InputError, rng, seed_of
from .networks.inference import forward
from .networks.layers import evaluating

SAMPLES = 25
"""Forwards of LIME and KernelShap an image: captum's default, which for about 100 superpixels is under-determined."""


def _network(capture: Capture) -> nn.Module:
    """The capture's network, after its own forward has refused layers and targets that do not fit."""
    _ = capture.logits
    return capture.model


def _leaf(capture: Capture) -> Tensor:
    """The images as a fresh leaf that requires a gradient."""
    return capture.inputs.clone().requires_grad_()


def _channel_sum(attributions: Tensor) -> Maps:
    """Attributions (B,3,H,W) -> one map (B,H,W), as in the paper: the absolute value of the sum over channels."""
    return [attributions.detach().sum(1).abs()]


@contextmanager
def _guided(model: nn.Module) -> Iterator[None]:
    """Let only positive gradients through the ReLU modules of `model`; no hook outlives the context."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(torch.relu)

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.ReLU)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def guided_gradient(capture: Capture) -> Tensor:
    """Guided backpropagation (Springenberg et al. 2015): gradient of the target's logit at the images, (B,3,H,W).

    Each ReLU module passes on only positive gradients. Networks without ReLU modules (GELU: Swin, ConvNeXt; ReLU6:
    EfficientNet-Lite0; functional ReLUs) have no such rule, there or in captum, and give the plain gradient.
    """
    model, inputs = _network(capture), _leaf(capture)
    with torch.enable_grad(), evaluating(model), _guided(model):
        score = model(inputs).gather(1, capture.target[:, None]).sum()
        return torch.autograd.grad(score, inputs)[0]


def guided_grad_cam(capture: Capture) -> Maps:
    """GuidedGradCAM (Selvaraju et al. 2017): |sum over channels of guided gradient x Grad-CAM|, one map a layer.

    Grad-CAM is upsampled by nearest neighbours, as in captum; the maps (B,H,W) have the image's size and refine. The
    guided gradient is computed once for all layers. Departs from the paper's code, which takes a (B,h,w,C) layer for
    (B,C,h,w). See `guided_gradient` for networks without ReLU modules.
    """
    gradient = guided_gradient(capture).sum(1)
    return [(gradient * F.interpolate(m[:, None], size=capture.size)[:, 0]).abs() for m in capture.maps(grad_cam)]


def input_x_gradient(capture: Capture) -> Maps:
    """InputXGradient (Shrikumar et al. 2016): the image times the gradient of the target's logit, one map (B,H,W)."""
    from captum.attr import InputXGradient

    model = _network(capture)
    with evaluating(model):
        return _channel_sum(InputXGradient(model).attribute(_leaf(capture), target=capture.target))


def integrated_gradients(capture: Capture, steps: int = 50, chunk: int = 25) -> Maps:
    """IntegratedGradients (Sundararajan et al. 2017) from the mean colour, 0, one map (B,H,W).

    steps: points on the path, one forward and backward each, `chunk` at a time.
    """
    from captum.attr import IntegratedGradients

    model = _network(capture)
    with evaluating(model):
        explain = IntegratedGradients(model).attribute
        # One image at a time: memory stays that of one chunk.
        each = [
            explain(x[None], target=target, n_steps=steps, internal_batch_size=chunk).to(x)
            for x, target in zip(_leaf(capture), capture.target)
        ]
    return _channel_sum(torch.cat(each))


class _CallByCall(nn.Module):
    """The same activation, a fresh module for each time it is called in a forward pass."""

    def __init__(self, activation: nn.Module, calls: int):
        super().__init__()
        self.calls = nn.ModuleList([_separate(activation) for _ in range(calls)])
        self.next = 0

    def forward(self, x: Tensor) -> Tensor:
        self.next = (self.next + 1) % len(self.calls)
        # captum sets the gradient of the tensor an activation reads, which others may read too. A max-pool keeps its
        # input: where that is another activation's output, captum passes on the plain gradient, and so do we.
        return self.calls[self.next - 1](x if isinstance(self.calls[0], nn.MaxPool2d) else x.clone())


class _ReLU6(nn.Module):
    """min(max(x, 0), 6) from two ReLUs, for which DeepLift has a rule; it then holds for ReLU6 as well."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.low(x.clone()) - self.high(x - 6)


def _separate(activation: nn.Module) -> nn.Module:
    """A copy of an activation that does not work in place."""
    if isinstance(activation, nn.ReLU6):
        return _ReLU6()
    fresh = copy.deepcopy(activation)
    if hasattr(fresh, "inplace"):
        fresh.inplace = False  # type: ignore[assignment]  # the stub knows no plain attributes of modules
    return fresh


def deep_lift_copy(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy of `model` for DeepLift, sharing its weights: activations neither in place nor called twice in a forward.

    inputs: images (B,3,H,W) for one forward, which counts the calls. DeepLift pairs what goes into an activation with
    what comes out; an in-place activation overwrites the first, and a module that runs twice keeps only the last.
    The copy computes what `model` computes, and `model` is left as it was.
    """
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    weights = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, memo={id(tensor): tensor for tensor in weights}).eval()
    kinds = (*SUPPORTED_NON_LINEAR, nn.ReLU6)
    calls = {module: 0 for module in twin.modules() if type(module) in kinds}

    def count(module: nn.Module, args: tuple) -> None:
        calls[module] += 1

    handles = [module.register_forward_pre_hook(count) for module in calls]
    with torch.no_grad():
        twin(inputs)
    for handle in handles:
        handle.remove()
    fresh = {module: _CallByCall(module, n) for module, n in calls.items() if n}
    for parent in list(twin.modules()):
        for name, child in parent._modules.items():  # by every name, also where one module has two
            if child in fresh:
                setattr(parent, name, fresh[child])
    return twin.eval()


def deep_lift(capture: Capture) -> Maps:
    """DeepLift (Shrikumar et al. 2017), the Rescale rule, against a baseline of faint noise, one map (B,H,W).

    The baseline is normal with standard deviation .001, drawn from each image's seed. It works on a copy of the network
    (`deep_lift_copy`). Activations captum has no rule for (GELU, SiLU, functional ones) pass on their plain gradient;
    ReLU6 is given the rule, which captum lacks. Max-pools right behind an activation have no rule in captum either, so
    there attributions sum to the difference of the outputs only roughly (ResNet18: .2 %).
    """
    from captum.attr import DeepLift

    explain = DeepLift(deep_lift_copy(_network(capture), capture.inputs[:1])).attribute
    each = []
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting forward, backward hooks")  # they are set on the copy
        # One image at a time: captum's rule for max-pools takes the first image's gradient for all of a batch.
        for x, target, seed in zip(_leaf(capture), capture.target, capture.seeds):
            baseline = 1e-3 * _normal(x, seed_of(seed, "DeepLift"))
            each.append(explain(x[None], baseline[None], target=target).detach())
    return _channel_sum(torch.cat(each))


def _normal(like: Tensor, seed: int) -> Tensor:
    """Standard normal noise in the shape of `like`, the same on every device and processor.

    NumPy draws it, because the last bits of torch.randn depend on the processor.
    """
    return torch.from_numpy(rng(seed).standard_normal(tuple(like.shape), dtype="float32")).to(like)


def superpixels(image: Tensor, n_segments: int = 100) -> Tensor:
    """SLIC superpixels (Achanta et al. 2012) of an image (3,H,W), numbers 0, 1, ... as int64 (H,W).

    The image is scaled to [0,1] by its own minimum and maximum; compactness 10, sigma 1, as in the paper.
    """
    from skimage.segmentation import slic

    low, high = image.amin(), image.amax()
    scaled = ((image - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).double().cpu().numpy()
    labels = slic(scaled, n_segments=n_segments, compactness=10, sigma=1, start_label=0)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(labels.shape)).long()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generator, from which captum draws its samples, and put it back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _over_superpixels(capture: Capture, method: Callable, name: str, samples: int, chunk: int) -> Maps:
    """The absolute weight of each pixel's superpixel, by captum's Lime or a class like it, an image at a time."""
    if samples < 2:
        raise InputError(f"{samples} samples for {name}; allowed: 2 or more")
    maps, model = [], _network(capture)
    attribute = method(partial(forward, model)).attribute
    with torch.no_grad():
        for x, target, seed in zip(capture.inputs, capture.target, capture.seeds):
            mask = superpixels(x).to(x.device)
            with _seeded(seed_of(seed, name)):
                weights = attribute(
                    x[None],
                    target=target,
                    feature_mask=mask[None, None],
                    n_samples=samples,
                    perturbations_per_eval=min(chunk, samples),
                    return_input_shape=False,
                )
            # The same in every channel: their sum would only triple it.
            maps.append(with_ties(weights[0].to(x).abs())[mask])
    return [torch.stack(maps)]


def with_ties(weights: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Give weights (N,) that differ by rounding alone the same value, their mean.

    tolerance: neighbours in sorted order tie where they differ by at most this share of the largest absolute weight.
    Superpixels that no sample tells apart have the same weight in exact arithmetic. A regression in float32 splits such
    ties in an order that depends on the processor. ROAD removes tied pixels in an order drawn from the image's seed.
    """
    values, order = weights.sort()
    group = F.pad(values.diff() > tolerance * values.abs().max(), (1, 0)).cumsum(0)
    sums = torch.zeros_like(values).index_add(0, group, values)
    return torch.empty_like(weights).index_put(
        (order,), (sums / group.bincount(minlength=len(group)).clamp_min(1))[group]
    )


def lime(capture: Capture, samples: int = SAMPLES, chunk: int = 25) -> Maps:
    """LIME (Ribeiro et al. 2016): |weights| of a Lasso(.01) on superpixels kept or greyed, one map (B,H,W).

    samples: random subsets of the about 100 superpixels, one forward each, `chunk` at a time; `SAMPLES`, captum's
    default, leaves most weights to the Lasso's zero. Draws depend on each image's seed alone.
    """
    from captum._utils.models.linear_model import SkLearnLasso
    from captum.attr import Lime

    # captum's own Lasso, whose 1,000 rounds are not always enough
    method = partial(Lime, interpretable_model=SkLearnLasso(alpha=0.01, max_iter=100_000))
    return _over_superpixels(capture, method, "LIME", samples, chunk)


def kernel_shap(capture: Capture, samples: int = SAMPLES, chunk: int = 25) -> Maps:
    """KernelShap (Lundberg and Lee 2017): |Shapley values| of superpixels by weighted regression, one map (B,H,W).

    samples: as in `lime`; with fewer samples than superpixels the regression takes its shortest solution.
    Departs from captum: weights that differ by rounding alone become equal, see `with_ties`.
    """
    from captum.attr import KernelShap

    return _over_superpixels(capture, KernelShap, "KernelShap", samples, chunk)
