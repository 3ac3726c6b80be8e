"""Measure birds: what the network does without each part, and how important an explanation finds each part.

>>> seen = SeenBirds(capture, BirdImages(8), range(8), key="name of the network")
>>> scores(seen.columns(explain(capture, "LayerCAM")))          # see `funnybirds.score`

The network's logits on a bird's 32 subsets of parts, and without each background object, are computed once and stored.
All methods and variants share them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from .. import paths
from ..capture import Capture
from ..datasets.sample import PREDICTED, Sample
from ..errors import InputError, rng
from ..explanation import Explanation, explain
from ..networks.inference import forward, forward_chunk
from .dataset import PARTS, FunnyBirds
from .score import PART_COLUMNS, TARGET_COLUMNS, facts, importances, sensitivity_pair


class BirdImages(Sequence[Sample]):
    """The first n test birds in a random order, of FUNNYBIRDS_ROOT or else of the project's own set.

    Args:
        n: How many.
        seed: Seed of the order.
        labelled: Whether the target is the label. Otherwise it is PREDICTED.

    Raises:
        InputError: n is larger than the set.
    """

    def __init__(self, n: int, seed: int = 0, labelled: bool = False):
        self.birds, self.labelled = FunnyBirds(), labelled
        if n > len(self.birds):
            raise InputError(f"Expected at most {len(self.birds)} birds, the test images of the set, got {n}.")
        self.numbers = rng("birds", "test order", seed).permutation(len(self.birds))[:n].tolist()
        """The numbers of the test images."""

    def __len__(self) -> int:
        return len(self.numbers)

    def id_of(self, index: int) -> str:
        """Return the id of bird `index` without drawing it."""
        return f"test-{self.numbers[index]:06d}"

    def __getitem__(self, index):
        bird = self.birds[self.numbers[index]]
        return bird if self.labelled else replace(bird, target=PREDICTED)


def logits_of(model: nn.Module, birds: FunnyBirds, number: int, device: torch.device, key: str) -> np.ndarray:
    """Compute a network's logits on the interventions of a test bird, or read them if they are stored.

    Args:
        model: The network, on `device`.
        birds: The set.
        number: The number of the test image.
        device: Where to compute.
        key: Names the network, its precision and the set. Stored logits of another key are not used.

    Returns:
        Logits (32 + objects, classes) in the network's precision. Row s is for subset s of the parts. Row 32 + i
        is for the image without background object i.
    """
    path = paths.RESULTS / "bird_logits" / key / f"{number:06d}.npy"
    if path.is_file():
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # truncated
            path.unlink(missing_ok=True)
    images = torch.cat([birds.interventions(number), birds.without_objects(number)])
    images = images.to(next(model.parameters()).dtype)
    parts = [forward(model, part.to(device)).cpu() for part in images.split(forward_chunk(device))]
    logits = torch.cat(parts).numpy()
    paths.write_whole(path, partial(_save, logits))
    return logits


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # np.save would add an ending to a file name
        np.save(file, array, allow_pickle=False)


class SeenBirds:
    """A batch of birds and a network's logits on their interventions.

    Args:
        capture: Captures the images images[i] for i in `places`, not normalised, as the networks for birds take them.
        images: The birds.
        places: Positions in `images`.
        key: See `logits_of`.
        framework: Measure as FunnyBirds' framework does: pixels near both eyes, feet or wings count twice, and drops
            follow the label's logit. To get the framework's numbers, also pass signed maps for the label to
            `columns_of`. PC and DC of misclassified birds still differ: there the framework explains the prediction.
    """

    def __init__(self, capture: Capture, images: BirdImages, places: Sequence[int], key: str, framework: bool = False):
        self.capture = capture
        birds, numbers = images.birds, [images.numbers[i] for i in places]
        self.ids = [f"bird {number}" for number in numbers]
        self.masks = [birds.masks(number, framework) for number in numbers]
        labels = [birds[number].target for number in numbers]
        device = capture.inputs.device
        logits = [logits_of(capture.model, birds, number, device, key) for number in numbers]
        found = [facts(each[:32], each[32:], k, birds.classes, framework) for each, k in zip(logits, labels)]
        self.facts = pd.DataFrame(found)
        self.pairs = [sensitivity_pair(label, birds.classes) for label in labels]

    @cached_property
    def _sensitivity(self) -> list[Capture]:
        """The same birds with the first and with the second class of their pair as target."""
        captures = []
        for which in (0, 1):
            own = self.capture.target.tolist()
            target = [c if pair is None else pair[which] for c, pair in zip(own, self.pairs)]
            captures.append(self.capture.of_target(torch.tensor(target), self.ids, [f"class {c}" for c in target]))
        return captures

    def columns(self, explanation: Explanation) -> pd.DataFrame:
        """Return the columns of `columns_of` for an explanation of the capture."""

        def again(capture: Capture) -> torch.Tensor:
            return explain(capture, explanation.method, explanation.variant).maps

        return self.columns_of(explanation.maps, again)

    def columns_of(self, maps: torch.Tensor, again: Callable[[Capture], torch.Tensor]) -> pd.DataFrame:
        """Return one row per bird with the columns of `facts`, `importances` and target sensitivity (ts_*).

        Departs from the published code, which compares a map with itself. As in FunnyBirds' framework, maps are made
        for both classes of the pair.

        Args:
            maps: Maps (B,H,W). They may be signed.
            again: Returns the maps of the same method for another target: capture -> (B,H,W).
        """
        found = importances(maps, self.masks)
        by_class = []
        for capture in self._sensitivity:
            sums = importances(again(capture), self.masks)[PART_COLUMNS]
            by_class.append(sums.set_axis(list(PARTS), axis=1))
        for name in TARGET_COLUMNS:  # ts_1A: importance of the parts A for class 1
            sums, letter = by_class[int(name[3]) - 1], name[4]
            found[name] = [
                np.nan if pair is None else float(sums.loc[i, list(pair[2] if letter == "A" else pair[3])].sum())
                for i, pair in enumerate(self.pairs)
            ]
        return pd.concat([self.facts, found], axis=1)
