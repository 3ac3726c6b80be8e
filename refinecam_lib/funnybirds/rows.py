"""What a row of the birds holds besides a map's measurements: facts about the network, and what the map says of parts.

>>> seen = SeenBirds(capture, BirdImages(8), range(8), key="a name for the network", seed=0)
>>> columns = seen.columns("LayerCAM", BASE, maps)          # one row a bird, for `bird_score`

The network's logits on the 32 subsets of a bird's parts, and without each background object, are computed once, kept on
disk and shared by every method, variant and threshold.
"""

from collections.abc import Sequence
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
    """The first n test images of FunnyBirds, or of the project's own birds, in an order drawn by seed.

    The class that is explained is the predicted one, or where `labelled` the label.
    Raises InputError for more images than there are.
    """

    def __init__(self, n: int, seed: int = 0, labelled: bool = False):
        self.birds, self.labelled = FunnyBirds(), labelled
        if n > len(self.birds):
            raise InputError(f"{n} birds; allowed: up to the {len(self.birds)} test images of the set")
        self.numbers = rng("birds", "test order", seed).permutation(len(self.birds))[:n].tolist()

    def __len__(self) -> int:
        return len(self.numbers)

    def id_of(self, index: int) -> str:
        """The id of bird `index`, without drawing it."""
        return f"test-{self.numbers[index]:06d}"

    def __getitem__(self, index):
        bird = self.birds[self.numbers[index]]
        return bird if self.labelled else replace(bird, target=PREDICTED)


def logits_of(model: nn.Module, birds: FunnyBirds, number: int, device: torch.device, key: str) -> np.ndarray:
    """The network's logits on test bird `number`: float32 (32 + objects, classes), from disk once they are known.

    Row s is for the subset s of the parts, and those after 31 for each background object's removal. key: names the
    network and the data, so that no other's logits are taken.
    """
    path = paths.RESULTS / "bird_logits" / key / f"{number:06d}.npy"
    if path.is_file():
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # cut short
            path.unlink(missing_ok=True)
    images = torch.cat([birds.interventions(number), birds.without_objects(number)])
    parts = [forward(model, part.to(device)).cpu() for part in images.split(forward_chunk(device))]
    logits = torch.cat(parts).numpy()
    paths.write_whole(path, partial(_save, logits))
    return logits


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # given a name, numpy would put another ending to it
        np.save(file, array, allow_pickle=False)


class SeenBirds:
    """A batch of birds as a network sees them, for the columns that `bird_score` turns into scores.

    capture: of the images images[i] for i in `places`, unnormalised, as the bird networks take them. key: as for
    `logits_of`.
    """

    def __init__(self, capture: Capture, images: BirdImages, places: Sequence[int], key: str):
        self.capture = capture
        birds, numbers = images.birds, [images.numbers[i] for i in places]
        self.ids = [f"bird {number}" for number in numbers]
        self.masks = [birds.masks(number) for number in numbers]
        labels = [birds[number].target for number in numbers]
        device = capture.inputs.device
        logits = [logits_of(capture.model, birds, number, device, key) for number in numbers]
        self.facts = pd.DataFrame(
            [facts(each[:32], each[32:], label, birds.classes) for each, label in zip(logits, labels)]
        )
        self.pairs = [sensitivity_pair(label, birds.classes) for label in labels]

    @cached_property
    def _sensitivity(self) -> list[Capture]:
        """The same birds explained for the first and for the second class of their pair, where they have one."""
        captures = []
        for which in (0, 1):
            own = self.capture.target.tolist()
            target = [c if pair is None else pair[which] for c, pair in zip(own, self.pairs)]
            captures.append(self.capture.of_target(torch.tensor(target), self.ids, [f"class {c}" for c in target]))
        return captures

    def columns(self, explanation: Explanation) -> pd.DataFrame:
        """The columns of `facts` and `importances` for an explanation, and the ts_* of target sensitivity.

        Departs from the published code, which compares the map of the predicted class with itself: the maps are made
        anew for each of the two classes.
        """
        found = importances(explanation.maps, self.masks)
        by_class = []
        for capture in self._sensitivity:
            maps = explain(capture, explanation.method, explanation.variant).maps
            sums = importances(maps, self.masks)[PART_COLUMNS]
            by_class.append(sums.set_axis(list(PARTS), axis=1))
        for name in TARGET_COLUMNS:  # ts_1A: the importance, for class 1, of the parts A
            sums, letter = by_class[int(name[3]) - 1], name[4]
            found[name] = [
                np.nan if pair is None else float(sums.loc[i, list(pair[2] if letter == "A" else pair[3])].sum())
                for i, pair in enumerate(self.pairs)
            ]
        return pd.concat([self.facts, found], axis=1)
