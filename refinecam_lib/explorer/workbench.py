"""What one choice of picture, network, class, method and layer gives: maps, measurements and their scores as a table.

>>> bench = Workbench(["holiday.jpg"], NETWORKS)
>>> explained = bench.explain(Choice("holiday.jpg", "efficientnet_lite0", 285, "LayerCAM", 0, "product"))
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from ..analysis.plots import NAMES, TITLES
from ..cams import score_cam
from ..capture import Capture
from ..datasets.photographs import class_name, open_picture
from ..explanation import Explanation, Variant, explain, method_of
from ..metrics import measure
from ..networks.inference import forward
from ..networks.layers import fast_pointwise
from ..networks.loading import load_classifier, normalise, transform_of
from ..networks.memory import keep_memory
from ..networks.zoo import MODELS, ModelSpec
from ..scoring import SCORES, scores

Load = Callable[[], tuple[ModelSpec, nn.Module]]


NETWORKS: dict[str, Load] = {
    name: partial(load_classifier, name)
    for name in sorted(MODELS, key=lambda name: name != "efficientnet_lite0")  # first the one that needs no download
}
"""Name -> loads a network with ImageNet weights; loaded when it is chosen."""


@contextmanager
def watched(model: nn.Module, tick: Callable[[int], None]) -> Iterator[None]:
    """Call `tick` with the number of images before each forward pass inside; what it raises ends the pass."""
    handle = model.register_forward_pre_hook(lambda module, args: tick(len(args[0])))
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Choice:
    """What is explained: names, a class index or None for the predicted one, and the number of the shallowest layer."""

    picture: str
    network: str
    target: int | None
    method: str
    layer: int
    aggregate: str

    @property
    def variants(self) -> dict[str, Variant]:
        """The compared variants by their column's name: Base, and RefineCAM where the method has a map a layer."""
        if not method_of(self.method).refines:
            return {NAMES["none"]: Variant()}
        return {NAMES["none"]: Variant(self.layer), "RefineCAM": Variant(self.layer, self.aggregate)}


@dataclass(frozen=True)
class Explained:
    """What one choice gave: the picture (3,H,W) in [0,1], maps (H,W) by name, and measured rows, one a variant."""

    choice: Choice
    picture: Tensor
    class_name: str
    probability: float
    maps: dict[str, Tensor]
    factors: dict[str, Tensor]
    rows: pd.DataFrame


class Workbench:
    """Computes what choices ask for and keeps it, so that a variant is measured once; works without widgets too."""

    def __init__(self, pictures: Sequence[str | Path], networks: Mapping[str, Load]):
        keep_memory()
        fast_pointwise()
        self.pictures: dict[str, Image.Image] = {}
        for source in pictures:
            self.add(Path(source).name, source)
        self.networks = dict(networks)
        self._loaded: dict[str, tuple[ModelSpec, nn.Module]] = {}
        self._capture: tuple[tuple, Capture] | None = None  # of the last picture, network and class: it holds a graph
        self._maps: dict[tuple, Tensor] = {}
        self._rows: dict[tuple, pd.DataFrame] = {}

    def network(self, name: str) -> tuple[ModelSpec, nn.Module]:
        """The network called so and its spec, loaded when first asked for."""
        if name not in self._loaded:
            self._loaded[name] = self.networks[name]()
        return self._loaded[name]

    def picture(self, choice: Choice) -> Tensor:
        """The chosen picture as the chosen network sees it, (3,H,W) in [0,1]."""
        return transform_of(self.network(choice.network)[0])(self.pictures[choice.picture])

    def add(self, name: str, source: str | Path | bytes) -> str:
        """Take in a picture and return the name it got; raises InputError where `source` is none."""
        picture, unique = open_picture(source), name
        while unique in self.pictures:  # what was kept of the other picture stays true
            unique = f"{Path(unique).stem}'{Path(unique).suffix}"
        self.pictures[unique] = picture
        return unique

    def top(self, choice: Choice, k: int = 5) -> list[tuple[str, int]]:
        """The k most probable classes, (name and probability, index) each."""
        spec, model = self.network(choice.network)
        probabilities = forward(model, _input(self.picture(choice), spec, model)).softmax(1)[0]
        best, index = probabilities.topk(min(k, len(probabilities)))
        return [(f"{name_of(int(i), len(probabilities))} {p:.2f}", int(i)) for p, i in zip(best, index)]

    def capture(self, choice: Choice) -> Capture:
        """The capture of the chosen picture, network and class; all methods share it."""
        key = (choice.picture, choice.network, choice.target)
        if self._capture is None or self._capture[0] != key:
            spec, model = self.network(choice.network)
            inputs = _input(self.picture(choice), spec, model)
            self._capture = key, Capture(model, inputs, torch.tensor([choice.target]), spec.layers)
        return self._capture[1]

    def map(self, choice: Choice, variant: Variant) -> Tensor:
        """The chosen method's map (H,W) in [0,1] for a variant."""
        key = (choice.picture, choice.network, choice.target, choice.method, variant)
        if key not in self._maps:
            self._maps[key] = explain(self.capture(choice), choice.method, variant).maps[0].cpu()
        return self._maps[key]

    def row(self, choice: Choice, variant: Variant) -> pd.DataFrame:
        """The measurements of that map, one row."""
        key = (choice.picture, choice.network, choice.target, choice.method, variant)
        if key not in self._rows:
            capture = self.capture(choice)
            maps = self.map(choice, variant)[None].to(capture.inputs.device)
            self._rows[key] = measure(Explanation(capture, choice.method, variant, maps))
        return self._rows[key]

    def explain(self, choice: Choice, say: Callable[[str, int], None] = lambda step, images: None) -> Explained:
        """Maps and measurements of a choice with a class; `say(step, images)` hears of each step and its forwards."""
        capture, method = self.capture(choice), method_of(choice.method)
        slow = method.function is score_cam  # one forward a channel
        channels = [activation.shape[1] if slow else 0 for activation in capture.activations]
        say(f"{choice.method}: maps of every layer", sum(channels) or 50)
        maps = {name: self.map(choice, variant) for name, variant in choice.variants.items()}
        numbers = range(choice.layer, len(capture.layers)) if method.refines else ()
        factors = {capture.layers[number]: self.map(choice, Variant(number)) for number in numbers}
        rows = []
        for name, variant in choice.variants.items():
            say(f"{choice.method}: scores of {name}", 9 + sum(channels[number] for number in numbers))
            rows.append(self.row(choice, variant).set_axis([name]))
        name = name_of(int(capture.target[0]), capture.logits.shape[1])
        probability = float(capture.probability[0])
        return Explained(choice, self.picture(choice), name, probability, maps, factors, pd.concat(rows))


def _input(picture: Tensor, spec: ModelSpec, model: nn.Module) -> Tensor:
    """The picture (3,H,W) as a batch of one, where the network is."""
    return normalise(picture[None], spec).to(next(model.parameters()).device)


def name_of(index: int, classes: int) -> str:
    """A class's name; networks with 1000 classes are taken to have ImageNet's."""
    return class_name(index) if classes == 1000 else f"class {index}"


def score_table(rows: pd.DataFrame, convention: str = "recommended") -> pd.DataFrame:
    """The scores of measured rows under a convention, as text: a row a score, a column a variant, and what made it.

    The better value of two is in <b></b>. rows: index Base[, RefineCAM]. A score without a value is "undefined".
    """
    values = scores(rows, convention)

    def pair(column: pd.Series) -> str:
        return " / ".join(f"{value:.2f}" for value in column)

    morf, lerf = (rows[[c for c in rows if str(c).startswith(kind)]].mean(axis=1) for kind in ("morf_", "lerf_"))
    terms = {
        "average_drop": f"probability {rows['probability'].iloc[0]:.2f}, with the map as mask {pair(rows['probability_masked'])}",
        "complexity": "mean of the map",
        "coherency": f"Pearson's r with the map of the masked picture {pair(rows['pearson'])}",
        "road": f"probability, least relevant pixels gone {pair(lerf)}, most relevant gone {pair(morf)}",
        "adcc": "harmonic mean of Coherency, 1 - Complexity, 1 - Average Drop",
        "arcc": "harmonic mean of Coherency, 1 - Complexity, ROAD",
    }
    records = []
    for score in SCORES:
        column = values[score].astype(float).round(2)
        best = column.min() if TITLES[score].endswith("↓") else column.max()
        cells = {name: "undefined" if np.isnan(v) else f"{v:.2f}" for name, v in column.items()}
        if column.nunique() > 1:
            cells = {name: f"<b>{cell}</b>" if column[name] == best else cell for name, cell in cells.items()}
        records.append({"score": TITLES[score], **cells, "made of": terms[score]})
    return pd.DataFrame(records).set_index("score")
