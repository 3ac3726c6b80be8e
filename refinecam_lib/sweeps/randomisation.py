"""The model-randomisation check: does a map change when the network's weights become random?

Adebayo et al., "Sanity Checks for Saliency Maps", https://arxiv.org/abs/1810.03292. Layers are randomised from the
output down.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor, nn

from ..capture import Capture
from ..errors import seed_of
from ..explanation import Variant, explain
from ..networks.layers import named_layers


def cascade(model: nn.Module, inputs: Tensor, layers: Sequence[str], seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Yield copies of a model, each with more random layers than the one before.

    The first copy is random above the deepest layer, the next above the second deepest, the last everywhere. Batch
    norms take new statistics on `inputs`, because a random network with the old ones is constant.

    Args:
        model: it stays as it is.
        inputs: (B,3,H,W). The copies have its type.
        layers: names, shallow to deep.
        seed: draws the weights.

    Yields:
        What is random, and the network.
    """
    changed = copy.deepcopy(model).eval().requires_grad_(False).double()  # float32 draws differ between CPUs
    order = list(changed.named_modules())
    ends = [
        max(k for k, (name, _) in enumerate(order) if name == layer or name.startswith(layer + ".")) for layer in layers
    ]
    done = len(order)
    for number in reversed(range(-1, len(layers))):
        start = ends[number] + 1 if number >= 0 else 0
        for name, module in order[start:done]:
            _reset(module, seed_of("cascade", seed, name))
        done = start
        copied = copy.deepcopy(changed).to(inputs.dtype)
        _calibrate(copied, inputs)
        yield (f"above {layers[number]}" if number >= 0 else "everything"), copied


def _reset(module: nn.Module, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.trunc_normal_(parameter, std=0.02)


def _calibrate(model: nn.Module, inputs: Tensor) -> None:
    """Set the statistics of all batch norms to those of `inputs`."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    with torch.no_grad():
        model(inputs)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()


def similarity(
    model: nn.Module,
    randomised: Sequence[tuple[str, nn.Module]],
    inputs: Tensor,
    target: Tensor,
    layers: Sequence[str],
    methods: Sequence[str],
    variants: Sequence[Variant],
) -> pd.DataFrame:
    """Compare the maps of randomised networks with those of the trained one.

    Everything is computed in float64. Grad-CAM++ divides by a sum that crosses zero, so rounding would decide its map.

    Args:
        model: the trained network.
        randomised: what `cascade` yielded, in float64.
        inputs: (B,3,H,W).
        target: (B,), the classes to explain.
        layers: names, shallow to deep.
        methods: names in METHODS.
        variants: layers and aggregates.

    Returns:
        One row per stage, method, variant and image: stage (0 is the trained network itself), random (what is), method,
        layer, aggregate, image (its number), spearman (rank correlation of pixels in [-1,1], NaN for a map without
        contrast) and ssim (structural similarity). Both are 1 for equal maps. Lower is better: a map that stays does
        not show what the network has learned.
    """
    from skimage.metrics import structural_similarity

    named_layers(model, layers)
    inputs, trained = inputs.double(), copy.deepcopy(model).double()
    pairs = [(method, variant) for method in methods for variant in variants]

    def explained(network: nn.Module) -> dict[tuple[str, Variant], Tensor]:
        """Compute all maps, 8 images at a time, because a capture keeps every activation."""
        maps: dict[tuple[str, Variant], list[Tensor]] = {pair: [] for pair in pairs}
        for few, classes in zip(inputs.split(8), torch.as_tensor(target).split(8)):
            capture = Capture(network, few, classes, layers)
            for pair in pairs:
                maps[pair].append(explain(capture, *pair).maps.cpu())
        return {pair: torch.cat(parts) for pair, parts in maps.items()}

    before, records = explained(trained), []
    for stage, (random, network) in enumerate([("nothing", trained), *randomised]):
        after = before if stage == 0 else explained(network)
        for method, variant in pairs:
            both = before[method, variant].numpy(), after[method, variant].numpy()
            for image, (a, b) in enumerate(zip(*both)):
                records.append(
                    {"stage": stage, "random": random, "method": method, "layer": variant.layer}
                    | {"aggregate": variant.aggregate, "image": image, "spearman": _spearman(a, b)}
                    | {"ssim": float(structural_similarity(a, b, data_range=1.0))}
                )
    return pd.DataFrame(records)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the rank correlation of the finite pixels of two maps; NaN if one of them has no contrast."""
    finite = np.isfinite(a) & np.isfinite(b)
    x, y = (map_[finite].astype(float) for map_ in (a, b))
    constant = len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0
    return np.nan if constant else float(scipy.stats.spearmanr(x, y)[0])
