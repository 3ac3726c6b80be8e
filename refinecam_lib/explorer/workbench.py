"""Compute what the explorer shows: maps, measurements, a table of scores, and code that gives the same maps.

>>> bench = Workbench(["holiday.jpg"], NETWORKS)
>>> pairs = (("LayerCAM", "none"), ("LayerCAM", "product"))
>>> score_table(bench.explain(Choice("holiday.jpg", "efficientnet_lite0", 285, 0, pairs)).rows)
"""

from collections.abc import Callable, Mapping, Sequence
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
"""Name -> function that loads a network with ImageNet weights."""


@dataclass(frozen=True)
class Choice:
    """What the reader chose."""

    picture: str
    network: str
    target: int | None
    """The index of the explained class. None only while the network's prediction is unknown."""
    layer: int
    """The number of the layer that maps start from; 0 is the shallowest."""
    pairs: tuple[tuple[str, str], ...]
    """The compared maps: a method and an aggregate each. "none" is the layer's map alone."""

    @property
    def columns(self) -> dict[str, tuple[str, Variant]]:
        """Column name -> method and variant. Equal maps share a column. A method with one map is not refined."""
        several, columns = len({method for method, _ in self.pairs}) > 1, {}
        for method, aggregate in self.pairs:
            variant = Variant(self.layer, aggregate) if method_of(method).refines else Variant()
            name = NAMES.get(variant.aggregate, variant.aggregate.replace("_", " "))
            columns[f"{method}, {name}" if several else name] = method, variant
        return columns


@dataclass(frozen=True)
class Explained:
    """What a choice gave."""

    choice: Choice
    title: str
    """One line: picture, network, predicted class, explained class, methods and layer."""
    picture: Tensor
    """(3,H,W) in [0,1], as the network sees it."""
    maps: dict[str, Tensor]
    """Column name -> map (H,W) in [0,1]."""
    factors: dict[str, Tensor]
    """Name -> map (H,W) of each layer that a refined map combines, shallow to deep."""
    rows: pd.DataFrame
    """The measurements, one row per column name."""


class Workbench:
    """Compute what choices ask for, and keep it. Each map is measured once. It needs no widgets.

    Args:
        pictures: Names in BUNDLED or paths.
        networks: Name -> function that returns (spec, model). It is called at the first use.
    """

    def __init__(self, pictures: Sequence[str | Path], networks: Mapping[str, Load]):
        keep_memory()
        fast_pointwise()
        self.pictures: dict[str, Image.Image] = {}
        self._sources: dict[str, str] = {}
        for source in pictures:
            self.add(Path(source).name, source)
        self.networks = dict(networks)
        self._loaded: dict[str, tuple[ModelSpec, nn.Module]] = {}
        self._capture: tuple[tuple, Capture] | None = None  # only the latest, because it holds a graph
        self._maps: dict[tuple, Tensor] = {}
        self._rows: dict[tuple, pd.DataFrame] = {}

    def network(self, name: str) -> tuple[ModelSpec, nn.Module]:
        """Return a network's spec and the network. Load it at the first call."""
        if name not in self._loaded:
            self._loaded[name] = self.networks[name]()
        return self._loaded[name]

    def add(self, name: str, source: str | Path | bytes) -> str:
        """Add a picture and return the name that it got. Raises InputError if `source` is not a picture."""
        picture, unique = open_picture(source), name
        while unique in self.pictures:  # maps of the other picture are kept under its name
            unique = f"{Path(unique).stem}'{Path(unique).suffix}"
        self.pictures[unique] = picture
        self._sources[unique] = name if isinstance(source, bytes) else str(source)
        return unique

    def picture(self, choice: Choice) -> Tensor:
        """Return the picture as the network sees it, (3,H,W) in [0,1]."""
        return transform_of(self.network(choice.network)[0])(self.pictures[choice.picture])

    def _inputs(self, choice: Choice) -> Tensor:
        spec, model = self.network(choice.network)
        return normalise(self.picture(choice)[None], spec).to(next(model.parameters()).device)

    def probabilities(self, choice: Choice) -> Tensor:
        """Compute the probability of each class, (K,)."""
        return forward(self.network(choice.network)[1], self._inputs(choice)).softmax(1)[0]

    def capture(self, choice: Choice) -> Capture:
        """Return the capture of the picture, network and class. All methods share it."""
        key = (choice.picture, choice.network, choice.target)
        if self._capture is None or self._capture[0] != key:
            spec, model = self.network(choice.network)
            self._capture = key, Capture(model, self._inputs(choice), torch.tensor([choice.target]), spec.layers)
        return self._capture[1]

    def map(self, choice: Choice, method: str, variant: Variant) -> Tensor:
        """Return a map (H,W) in [0,1]."""
        key = (choice.picture, choice.network, choice.target, method, variant)
        if key not in self._maps:
            self._maps[key] = explain(self.capture(choice), method, variant).maps[0].cpu()
        return self._maps[key]

    def row(self, choice: Choice, method: str, variant: Variant) -> pd.DataFrame:
        """Return the measurements of a map, one row."""
        key = (choice.picture, choice.network, choice.target, method, variant)
        if key not in self._rows:
            capture = self.capture(choice)
            maps = self.map(choice, method, variant)[None].to(capture.inputs.device)
            self._rows[key] = measure(Explanation(capture, method, variant, maps))
        return self._rows[key]

    def explain(self, choice: Choice, say: Callable[[str, int], None] = lambda step, images: None) -> Explained:
        """Compute the maps and measurements of a choice that has a class.

        say: Called at each step with its name and the number of images that it sends through the network.
        """
        capture, maps, factors, rows = self.capture(choice), {}, {}, []
        several = len({method for method, _ in choice.columns.values()}) > 1
        for name, (method, variant) in choice.columns.items():
            slow = method_of(method).function is score_cam  # one forward pass per channel
            channels = [activation.shape[1] for activation in capture.activations] if slow else [0]
            say(f"{method}: maps of every layer", sum(channels) or 50)
            maps[name] = self.map(choice, method, variant)
            if variant.aggregate != "none":
                for number, layer in enumerate(capture.layers[choice.layer :], choice.layer):
                    factors[f"{method}, {layer}" if several else layer] = self.map(choice, method, Variant(number))
            say(f"{method}: scores of {name}", 9 + sum(channels[choice.layer :]))
            rows.append(self.row(choice, method, variant).set_axis([name]))
        return Explained(choice, self._title(choice), self.picture(choice), maps, factors, pd.concat(rows))

    def _title(self, choice: Choice) -> str:
        capture = self.capture(choice)
        probabilities = capture.logits.softmax(1)[0]

        def named(index: int) -> str:
            return f"{name_of(index, len(probabilities))} ({probabilities[index]:.2f})"

        predicted, target = int(probabilities.argmax()), int(capture.target[0])
        explained = "" if target == predicted else f"; explained: {named(target)}"
        start = f" from layer {capture.layers[choice.layer]}"
        made = {method + start * method_of(method).refines: None for method, _ in choice.columns.values()}
        return f"{choice.picture}: {choice.network} predicts {named(predicted)}{explained}; {' and '.join(made)}"

    def code(self, choice: Choice, convention: str = "recommended") -> str:
        """Write the lines that give the same maps and scores. They cannot load a network or an upload of your own."""
        load = self.networks[choice.network]
        spec = f"# `spec, model` is your network {choice.network!r}"
        if isinstance(load, partial) and load.func is load_classifier:
            spec = f"spec, model = rc.load_classifier({', '.join(map(repr, load.args))})"
        columns = [
            f"    {name!r}: rc.explain(capture, {method!r}, rc.Variant({variant.layer}, {variant.aggregate!r})),"
            for name, (method, variant) in choice.columns.items()
        ]
        lines = [
            "import refinecam_lib as rc",
            "",
            spec,
            f"photo = rc.transform_of(spec)(rc.open_picture({self._sources[choice.picture]!r}))",
            f"capture = rc.Capture(model, rc.normalise(photo[None], spec), [{choice.target}], spec.layers)",
            *["explanations = {", *columns, "}"],
            "for name, explanation in explanations.items():",
            f"    print(name, rc.scores(rc.measure(explanation), {convention!r}), sep='\\n')",
        ]
        return "\n".join(lines)


def name_of(index: int, classes: int) -> str:
    """Return a class's name. A network with 1000 classes is taken to have ImageNet's."""
    return class_name(index) if classes == 1000 else f"class {index}"


def class_options(probabilities: Tensor, k: int = 5) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Return the k most probable classes as (text, index), and the index of every class by its unique name."""
    classes = len(probabilities)
    names = [name_of(index, classes) for index in range(classes)]
    best, indices = probabilities.topk(min(k, classes))
    top = [(f"{names[i]} {p:.2f}", i) for p, i in zip(best.tolist(), indices.tolist())]
    return top, {f"{name} ({index})": index for index, name in enumerate(names)}


def score_table(rows: pd.DataFrame, convention: str = "recommended") -> pd.DataFrame:
    """Write the scores of measured rows as text.

    Args:
        rows: One row per compared map; the index holds their names.
        convention: A name in CONVENTIONS.

    Returns:
        One row per score, one column per map, and "made of". The best value is in <b></b>. A score without a value is
        "undefined".
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
