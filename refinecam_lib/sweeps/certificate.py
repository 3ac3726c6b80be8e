"""The certificate of a ground truth: draw a scene again and watch the network, without imputing anything.

C1, sufficiency: everything but the visible pixels V of the truth is drawn again. The prediction should stay.
C2, necessity: if the truth is removed, so that what lies behind it shows, the probability should fall. If another class is
drawn in its place, that class should be predicted.
C3, irrelevance: each other layer is drawn again alone. The logit should move little, compared with C2.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..datasets.sample import tensor_of
from ..datasets.scenes import LAYERS, Scene

REDRAWS = 8
"""How often each part is drawn again."""
Logits = Callable[[Tensor], Tensor]
"""Images (N,3,H,W) in [0,1] -> logits (N,C)."""


def certify(
    logits_of: Logits, scene: Scene, layer: str, classes: Sequence[str], name: str, redraws: int = REDRAWS
) -> dict[str, float]:
    """Measure the certificate of one scene. It sets no threshold.

    A class counts as predicted if its logit is the highest. For the object of a scene with two objects, it may also be the
    second highest.

    Args:
        logits_of: The network.
        scene: The scene.
        layer: The truth's layer, "object" or "badge".
        classes: The network's classes.
        name: Seeds everything that is drawn, together with a number.
        redraws: How often each part is drawn again.

    Returns:
        logit, probability, correct: of the layer's class in the scene as it is.
        redraws: how often each part was drawn again.
        kept, kept_fresh: the number of redraws in which the class was predicted (C1), in two independent sets.
        probability_without, logit_without: after removing the truth (C2).
        swapped: the number of redraws in which the class drawn in its place was predicted (C2).
        moved_<layer>: the largest change of the logit when this layer was drawn again (C3). NaN for the truth's
            layer and for empty layers.
        kept_<layer>: the number of these redraws in which the class was predicted. NaN in the same places.
    """
    target = classes.index(scene.kind(layer))
    shown = 2 if layer == "object" and scene.things["second"] else 1
    others = [other for other in LAYERS if other != layer]

    def seen(images: Sequence[np.ndarray], wanted: Sequence[int]) -> tuple[list[float], list[float], list[bool]]:
        """Return logit and probability of each image's wanted class, and whether it is predicted."""
        logits, columns = logits_of(torch.stack([tensor_of(image) for image in images])).double(), torch.tensor(wanted)
        own = logits.gather(1, columns[:, None])
        probability = logits.softmax(1).gather(1, columns[:, None])
        return own[:, 0].tolist(), probability[:, 0].tolist(), ((logits > own).sum(1) < shown).tolist()

    def again(layers: Sequence[str], kind: str) -> tuple[list[float], list[float], list[bool]]:
        fresh = (scene.redrawn(layers, "certificate", kind, name, k) for k in range(redraws))
        return seen([scene.kept_on(each, layer) for each in fresh], [target] * redraws)

    logit, probability, correct = seen([scene.drawn(), scene.drawn(without=[layer])], [target] * 2)
    found: dict[str, float] = {"logit": logit[0], "probability": probability[0], "correct": correct[0]}
    found |= {"redraws": redraws, "logit_without": logit[1], "probability_without": probability[1]}
    found |= {"kept": sum(again(others, "first")[2]), "kept_fresh": sum(again(others, "fresh")[2])}
    swaps = [scene.swapped(layer, "certificate", name, k) for k in range(redraws)]
    taken = seen([swap.drawn() for swap in swaps], [classes.index(swap.kind(layer)) for swap in swaps])[2]
    found["swapped"] = sum(taken)
    for factor in LAYERS:
        found |= {f"moved_{factor}": np.nan, f"kept_{factor}": np.nan}
        if factor in others and (factor == "background" or scene.things[factor]):
            logits, _, kept = again([factor], "alone")
            found |= {f"moved_{factor}": max(abs(each - logit[0]) for each in logits), f"kept_{factor}": sum(kept)}
    return found
