"""The model-randomisation check: does a map change when what the network has learned is taken away?

Adebayo et al., "Sanity Checks for Saliency Maps", 2018: layers are given random weights, from the output down.
"""

import copy
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from ..analysis.statistics import correlation
from ..capture import Capture
from ..errors import seed_of
from ..explanation import Variant, explain
from ..networks.layers import named_layers


def cascade(model: nn.Module, inputs: Tensor, layers: Sequence[str], seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a model with more and more of it at random, from the output down to the first of `layers` and below.

    Yields (what is random, model): all that follows the deepest layer, then what follows the next one, and last
    everything. Batch norms' statistics are taken anew on `inputs`: with the old ones a random network would be
    constant, which no map survives. The copies are of the type of `inputs`; the model given stays as it is.
    """
    changed = copy.deepcopy(model).eval().requires_grad_(False).double()  # float32 draws differ between processors
    order = list(changed.named_modules())
    ends = [_last(order, layer) for layer in layers]
    done = len(order)
    for number in reversed(range(-1, len(layers))):
        start = ends[number] + 1 if number >= 0 else 0
        for name, module in order[start:done]:
            _reset(module, seed_of("cascade", seed, name))
        done = start
        copied = copy.deepcopy(changed).to(inputs.dtype)
        _calibrate(copied, inputs)
        yield (f"above {layers[number]}" if number >= 0 else "everything"), copied


def _last(order: Sequence[tuple[str, nn.Module]], layer: str) -> int:
    """Position of the last module of a layer in the order in which modules are listed."""
    return max(k for k, (name, _) in enumerate(order) if name == layer or name.startswith(layer + "."))


def _reset(module: nn.Module, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.trunc_normal_(parameter, std=0.02)


def _calibrate(model: nn.Module, inputs: Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over what it sees
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
    """How like the maps of a randomised network are to those of the trained one, one row an image, method, variant, stage.

    randomised: what `cascade` gave, in float64. Columns: stage (0 is the trained network, with itself), random (what is), method, layer, aggregate, image (its
    number), spearman (rank correlation of the pixels, NaN where a map has no contrast) and ssim (structural
    similarity); both 1 for equal maps. Lower is better: a map that stays does not show what the network has learned.
    All is computed in float64: Grad-CAM++ divides by a sum that crosses zero, where rounding would decide the map.
    """
    from skimage.metrics import structural_similarity

    named_layers(model, layers)
    inputs, trained = inputs.double(), copy.deepcopy(model).double()
    pairs = [(method, variant) for method in methods for variant in variants]

    def explained(network: nn.Module) -> dict[tuple[str, Variant], Tensor]:
        """All maps, a few images at a time, for a capture keeps every activation."""
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
                    | {"aggregate": variant.aggregate, "image": image}
                    | {"spearman": correlation(a.ravel(), b.ravel(), "spearman")}
                    | {"ssim": float(structural_similarity(a, b, data_range=1.0))}
                )
    return pd.DataFrame(records)
