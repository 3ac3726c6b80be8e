"""Defects of the published code, as functions that a measurement can be told to use. Only the audit does so."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..capture import Capture
from ..errors import one_of
from ..explanation import Explanation, Variant, explain, method_of
from ..metrics import explain_again
from ..refinement import AUDITED, refine, to_map
from ..road import Keep, keep_ranks

DEFECTS = ("percentiles", "deep_maps_unmasked", "one_seed")
"""percentiles: ROAD removes pixels beyond percentiles (D4). deep_maps_unmasked: RefineCAM's Coherency uses the deep maps
of the unmasked image. one_seed: the clean and the masked image share a seed (D13)."""


def inverse_exp_mean_published(maps: Tensor) -> Tensor:
    """Compute eq. 9 in single precision without a log-sum-exp: 0 wherever a factor is below 0.0113."""
    return 1 / (1 / maps.float()).exp().mean(0).log()


AUDITED["inverse_exp_mean_published"] = inverse_exp_mean_published


def keep_percentiles(maps: Tensor, seeds: Sequence[int], fractions: Sequence[float]) -> Tensor:
    """Mask the pixels that stay by thresholds at percentiles.

    A map with ties loses other shares than asked for, up to all pixels. An image without a known pixel is imputed by 0,
    the mean colour, where the published code has a singular system. `seeds` are not used.
    """
    kept = 1 - torch.tensor(list(fractions), dtype=torch.double, device=maps.device)
    parts = []
    for values in (maps.double().flatten(1), 1 - maps.double().flatten(1)):
        thresholds = torch.quantile(values, kept, dim=1).T
        parts.append(values[:, None] < thresholds[:, :, None])
    return torch.cat(parts, 1).unflatten(2, maps.shape[1:])


def with_unmasked_deep_maps(explanation: Explanation, masked: Capture) -> Tensor:
    """Combine the masked image's map of the variant's layer with the deeper maps of the unmasked image."""
    capture, method, variant = explanation.capture, explanation.method, explanation.variant
    if variant.aggregate == "none":
        return explain_again(explanation, masked)
    shallow = explain(masked, method, Variant(variant.layer)).maps
    deeper = method_of(method).raw_maps(capture)[variant.layer - capture.first_layer + 1 :]
    maps = [shallow.to(deeper[0]), *(to_map(each, capture.size) for each in deeper)]
    return refine(maps, variant.aggregate).to(capture.inputs.dtype)


def instructions(defects: Sequence[str]) -> tuple[Keep, Callable[[Explanation, Capture], Tensor]]:
    """Return `keep` and `again` for `metrics.measure` with these defects. Raises InputError for an unknown one."""
    for name in defects:
        one_of("defect", name, DEFECTS)
    explained = with_unmasked_deep_maps if "deep_maps_unmasked" in defects else explain_again

    def again(explanation: Explanation, masked: Capture) -> Tensor:
        if "one_seed" in defects:
            masked.steps = explanation.capture.steps
        return explained(explanation, masked)

    return keep_percentiles if "percentiles" in defects else keep_ranks, again
