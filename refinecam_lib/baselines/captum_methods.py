"""The paper's methods by captum: GuidedGradCAM, LIME, DeepLift, InputXGradient, IntegratedGradients, KernelShap.

Each is a function of a Capture, like those of `cams`. GuidedGradCAM returns one map (B,H,W) per layer. The others
return one map (B,H,W) in all, the absolute value of the sum over channels. captum and scikit-image are imported when used.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cams import grad_cam
from ..capture import Capture, Maps
from ..errors import InputError, rng, seed_of
from ..networks.deep_lift import deep_lift_copy
from ..networks.hooks import hooked
from ..networks.inference import forward
from ..networks.layers import evaluating

SAMPLES = 25
"""Forward passes of LIME and KernelShap per image, captum's default. They cannot determine about 100 superpixels."""


def _network(capture: Capture) -> nn.Module:
    """Return the capture's network, which returns logits."""
    _ = capture.logits  # refuses layers and targets that do not fit
    return capture.classifier


@contextmanager
def differentiable(capture: Capture) -> Iterator[nn.Module]:
    """Yield the network in evaluation mode. Raises InputError inside if the image gets no gradient."""
    model = _network(capture)  # before it waits for the network's lock, because the capture has locks of its own
    try:
        with torch.enable_grad(), evaluating(capture.model):
            yield model
    except RuntimeError as error:
        if not any(words in str(error) for words in ("does not require grad", "not have been used", "checkpoint")):
            raise
        raise InputError(
            "The logits give no gradient at the images: a step is under torch.no_grad(), in a checkpoint or detached. "
            "Change that step, or choose a method of layers, such as LayerCAM."
        ) from error


def leaf(capture: Capture) -> Tensor:
    """Return the images as a new leaf that requires a gradient."""
    return capture.inputs.clone().requires_grad_()


def _channel_sum(attributions: Tensor) -> Maps:
    """Turn attributions (B,3,H,W) into one map (B,H,W) as in the paper: the absolute sum over channels."""
    return [attributions.detach().sum(1).abs()]


def _guide(module: nn.Module, args: tuple, output: Tensor) -> None:
    """Let only positive gradients through a module (a forward hook)."""
    if output.requires_grad:
        output.register_hook(torch.relu)


def guided_gradient(capture: Capture) -> Tensor:
    """Guided backpropagation: the gradient of the target's logit at the images, (B,3,H,W).

    Each ReLU module passes on only positive gradients. Networks without ReLU modules give the plain gradient, as in
    captum. These are networks with GELU (Swin, ConvNeXt), ReLU6 (EfficientNet-Lite0) or functional ReLUs.

    Source: Springenberg et al. 2015, https://arxiv.org/abs/1412.6806
    """
    inputs = leaf(capture)
    relus = (module for module in capture.model.modules() if isinstance(module, nn.ReLU))
    with differentiable(capture) as model, hooked(relu.register_forward_hook(_guide) for relu in relus):
        score = model(inputs).gather(1, capture.target[:, None]).sum()
        return torch.autograd.grad(score, inputs)[0]


def guided_grad_cam(capture: Capture) -> Maps:
    """GuidedGradCAM: |sum over channels of guided gradient x Grad-CAM|, one map (B,H,W) per layer.

    Grad-CAM is upsampled by nearest neighbours, as in captum. See `guided_gradient` for networks without ReLU modules.
    Departs from the published code, which reads a (B,h,w,C) layer as (B,C,h,w).

    Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391
    """
    gradient = guided_gradient(capture).sum(1)
    return [(gradient * F.interpolate(m[:, None], size=capture.size)[:, 0]).abs() for m in capture.maps(grad_cam)]


def input_x_gradient(capture: Capture) -> Maps:
    """InputXGradient: the image times the gradient of the target's logit, one map (B,H,W).

    Source: Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713
    """
    from captum.attr import InputXGradient

    with differentiable(capture) as model:
        return _channel_sum(InputXGradient(model).attribute(leaf(capture), target=capture.target))


def integrated_gradients(capture: Capture, steps: int = 50, chunk: int = 25) -> Maps:
    """IntegratedGradients from the mean colour, 0, to the image, one map (B,H,W).

    Args:
        capture: The batch.
        steps: Points on the path. Each costs a forward and a backward pass.
        chunk: Points per pass.

    Source: Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365
    """
    from captum.attr import IntegratedGradients

    with differentiable(capture) as model:
        explain = IntegratedGradients(model).attribute
        # One image at a time, so memory stays that of one chunk.
        each = [
            explain(x[None], target=target, n_steps=steps, internal_batch_size=chunk).to(x)
            for x, target in zip(leaf(capture), capture.target)
        ]
    return _channel_sum(torch.cat(each))


def deep_lift(capture: Capture) -> Maps:
    """DeepLift with the Rescale rule, one map (B,H,W).

    The baseline is normal noise with standard deviation .001, drawn from each image's seed. The method works on
    `deep_lift_copy`. Activations without a rule in captum (GELU, SiLU, functional ones) pass on their plain gradient.
    So do max-pools right behind an activation. Attributions then sum to the difference of the outputs only roughly
    (ResNet18: .2 %).
    Departs from captum, which has no rule for ReLU6.

    Source: Shrikumar et al. 2017, https://arxiv.org/abs/1704.02685
    """
    from captum.attr import DeepLift

    each = []
    with differentiable(capture) as model, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting forward, backward hooks")
        explain = DeepLift(deep_lift_copy(model, capture.inputs[:1])).attribute
        # One image at a time, because captum's rule for max-pools uses the first image's gradient for all of a batch.
        for x, target, seed in zip(leaf(capture), capture.target, capture.seeds):
            # By NumPy, because the last bits of torch.randn depend on the processor.
            noise = rng(seed_of(seed, "DeepLift")).standard_normal(tuple(x.shape), dtype="float32")
            baseline = 1e-3 * torch.from_numpy(noise).to(x)
            each.append(explain(x[None], baseline[None], target=target).detach())
    return _channel_sum(torch.cat(each))


def superpixels(image: Tensor, n_segments: int = 100) -> Tensor:
    """Divide an image into SLIC superpixels with compactness 10 and sigma 1, as in the paper.

    Args:
        image: (3,H,W). It is scaled to [0,1] by its own minimum and maximum.
        n_segments: The approximate number of superpixels.

    Returns:
        The number of each pixel's superpixel, from 0 on, int64 (H,W).

    Source: Achanta et al. 2012, https://doi.org/10.1109/TPAMI.2012.120
    """
    from skimage.segmentation import slic

    low, high = image.amin(), image.amax()
    scaled = ((image - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).double().cpu().numpy()
    labels = slic(scaled, n_segments=n_segments, compactness=10, sigma=1, start_label=0)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(labels.shape)).long()


def _over_superpixels(capture: Capture, method: Callable, name: str, samples: int, chunk: int) -> Maps:
    """Return the absolute weight of each pixel's superpixel, by captum's Lime or a class like it."""
    if samples < 2:
        raise InputError(f"{samples} samples for {name}; allowed: 2 or more")
    maps, model = [], _network(capture)
    attribute = method(partial(forward, model)).attribute
    with torch.no_grad():
        for x, target, seed in zip(capture.inputs, capture.target, capture.seeds):
            mask = superpixels(x).to(x.device)
            with torch.random.fork_rng(devices=[]):  # captum uses the global CPU generator
                torch.default_generator.manual_seed(seed_of(seed, name))
                weights = attribute(
                    x[None],
                    target=target,
                    feature_mask=mask[None, None],
                    n_samples=samples,
                    perturbations_per_eval=min(chunk, samples),
                    return_input_shape=False,
                )
            # The weight is the same in every channel. The sum would only triple it.
            maps.append(with_ties(weights[0].to(x).abs())[mask])
    return [torch.stack(maps)]


def with_ties(weights: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Give weights that differ only by rounding the same value, their mean.

    Superpixels that are always masked together have the same weight in exact arithmetic. A float32 regression splits
    such ties in an order that depends on the processor. ROAD removes tied pixels in an order drawn from the seed.

    Args:
        weights: (N,).
        tolerance: Neighbours in sorted order tie up to this share of the largest absolute weight.
    """
    values, order = weights.sort()
    group = F.pad(values.diff() > tolerance * values.abs().max(), (1, 0)).cumsum(0)
    sums = torch.zeros_like(values).index_add(0, group, values)
    return torch.empty_like(weights).index_put(
        (order,), (sums / group.bincount(minlength=len(group)).clamp_min(1))[group]
    )


def lime(capture: Capture, samples: int = SAMPLES, chunk: int = 25) -> Maps:
    """LIME: |weights| of a Lasso(.01) on superpixels that are kept or set to 0, one map (B,H,W).

    Args:
        capture: The batch. Its seeds decide the samples.
        samples: Random subsets of about 100 superpixels. Each costs a forward pass. With `SAMPLES` most weights are 0.
        chunk: Images per forward pass.

    Raises:
        InputError: There are fewer than 2 samples.

    Source: Ribeiro et al. 2016, https://arxiv.org/abs/1602.04938
    """
    from captum._utils.models.linear_model import SkLearnLasso
    from captum.attr import Lime

    # captum's own Lasso stops after 1,000 rounds, which are not always enough
    method = partial(Lime, interpretable_model=SkLearnLasso(alpha=0.01, max_iter=100_000))
    return _over_superpixels(capture, method, "LIME", samples, chunk)


def kernel_shap(capture: Capture, samples: int = SAMPLES, chunk: int = 25) -> Maps:
    """KernelShap: |Shapley values| of superpixels by weighted regression, one map (B,H,W).

    Departs from captum: weights that differ only by rounding become equal, see `with_ties`.

    Args:
        capture: The batch. Its seeds decide the samples.
        samples: As in `lime`. With fewer samples than superpixels the regression takes its shortest solution.
        chunk: Images per forward pass.

    Raises:
        InputError: There are fewer than 2 samples.

    Source: Lundberg and Lee 2017, https://arxiv.org/abs/1705.07874
    """
    from captum.attr import KernelShap

    return _over_superpixels(capture, KernelShap, "KernelShap", samples, chunk)
