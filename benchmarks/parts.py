"""The parts of the work that are timed: this library takes a batch of images, public code takes one image."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from pytorch_grad_cam.utils.image import scale_cam_image
from torch import Tensor, nn

from refinecam_lib.capture import Capture, Maps
from refinecam_lib.explanation import BASE, METHODS, REFINED, Explanation, Variant, explain
from refinecam_lib.metrics import complexity, measure, pearson
from refinecam_lib.road import FRACTIONS, impute, keep_masks, removal_order, road_noise, road_probabilities

from . import public

GRADIENT = ("GradCAM", "GradCAM++", "LayerCAM")
SIX = [(method, variant) for method in GRADIENT for variant in (BASE, REFINED)]
Differences = dict[str, float]


def tie_free(maps: Tensor) -> Tensor:
    """Add a small slope to maps (B,H,W) in [0,1] along their own order, so that no two pixels are equal.

    Public code cuts at percentiles. With ties it removes wrong shares. Without ties both sides remove the same pixels.
    """
    ranks = removal_order(maps, range(len(maps)))
    return 0.95 * maps + 0.05 * (1 - ranks / ranks[0].numel()).to(maps)


class Subject:
    """A network and its images for both sides. Ours is frozen and channels-last; the public one is as it was built.

    Args:
        name: The network's name.
        model: A classifier.
        inputs: Normalised images (N,3,H,W).
        target: Class indices (N,).
        layers: Dotted names of modules, shallow to deep.
    """

    def __init__(self, name: str, model: nn.Module, inputs: Tensor, target: Tensor, layers: Sequence[str]):
        self.name, self.layers, self.target = name, tuple(layers), target
        self.device = inputs.device
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.public = copy.deepcopy(model).to(memory_format=torch.contiguous_format).requires_grad_(True)
        self.inputs = inputs.contiguous(memory_format=torch.channels_last)
        self.singles = [image[None].contiguous() for image in inputs]
        self.classes = target.tolist()

    def capture(self, batch: list[int]) -> Capture:
        """Make a new Capture of some images."""
        return Capture(self.model, self.inputs[batch], self.target[batch], self.layers)

    @cached_property
    def maps(self) -> Tensor:
        """The six maps that both sides measure, without ties, (6,N,H,W)."""
        capture = self.capture(list(range(len(self.inputs))))
        return torch.stack([tie_free(explain(capture, method, variant).maps) for method, variant in SIX])

    @property
    def fractions(self) -> tuple[float, ...]:
        """ROAD's shares, equal to the public code's to the pixel. On some networks one pixel changes the result."""
        return public.shares(self.inputs[0, 0].numel())

    @cached_property
    def channels(self) -> int:
        """The number of channels of all layers. ScoreCAM needs one forward pass per channel."""
        return sum(activations.shape[1] for activations in self.capture([0]).activations)

    def double(self, images: int) -> "Subject":
        """Return the network and the first images in float64."""
        model = copy.deepcopy(self.model).double()
        return Subject(self.name, model, self.inputs[:images].double(), self.target[:images], self.layers)


def _scaled(raw: Maps, size: tuple[int, int]) -> np.ndarray:
    """Scale the first image's raw maps as the package does, (L,H,W): ReLU, min-max, resize, min-max."""
    maps = [scale_cam_image(each[:1].relu().cpu().numpy(), size[::-1]) for each in raw]
    return np.concatenate([scale_cam_image(np.maximum(each, 0)) for each in maps])


def _largest(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())


@dataclass(frozen=True)
class Part:
    """A part of the work."""

    title: str
    ours: Callable[[Subject, list[int]], Callable]
    """Takes a subject and a batch of image numbers, prepares, and returns the function that is timed."""
    theirs: Callable[[Subject, int], Callable]
    """Takes a subject and one image number, prepares, and returns the function that is timed."""
    compare: Callable[[Subject, int, object, object], Differences]
    """Takes a subject, an image number and both results, and returns the differences by name."""
    tolerances: Differences
    """The largest differences at which both sides agree."""
    needs: Callable[[Subject], tuple[int, int]] | None = None
    """Passes forward and back, and forward passes alone, that the definition needs per image. None: no floor."""
    exact: tuple[str, Callable[[Subject, int], float]] | None = None
    """A difference that must be computed in float64: its name, and a function of a float64 subject and an image."""
    single: bool = False
    """Whether our side takes one image at a time too."""


def _cams(title: str, methods: Sequence[str], **options) -> Part:
    """Make the part that computes the maps of all layers by some methods. Both sides' maps are scaled alike."""

    def ours(s: Subject, batch: list[int]) -> Callable:
        def run() -> list[Maps]:
            capture = s.capture(batch)
            return [capture.maps(METHODS[method].function) for method in methods]

        return run

    def theirs(s: Subject, i: int) -> Callable:
        return lambda: [public.layer_maps(s.public, s.singles[i], s.classes[i], s.layers, method) for method in methods]

    def compare(s: Subject, i: int, a: list[Maps], b: list[np.ndarray]) -> Differences:
        size = s.singles[i].shape[-2:]
        return {"map": max(_largest(_scaled(raw, size), maps) for raw, maps in zip(a, b))}

    def exact(s: Subject, i: int) -> float:
        return compare(s, i, ours(s, [i])(), theirs(s, i)())["map"]

    return Part(title, ours, theirs, compare, {"map": 1e-5}, exact=("map", exact), **options)


def _keep(s: Subject, i: int) -> Tensor:
    """Return the eight masks of image i and the i-th kind of map, (1,8,H,W)."""
    return keep_masks(removal_order(s.maps[i % len(SIX), i : i + 1], [i]))


def _impute_ours(s: Subject, batch: list[int]) -> Callable:
    images, keep = s.inputs[batch], _keep(s, batch[0])
    return lambda: impute(images, keep)[0]


def _impute_theirs(s: Subject, i: int) -> Callable:
    image, keep = s.singles[i][0].cpu(), _keep(s, i)[0].cpu()
    return lambda: public.impute(image, keep)


def _impute_compare(s: Subject, i: int, ours: Tensor, exact: Tensor) -> Differences:
    """Compare the pixels, and ROAD under the same noise, of our solution and the direct solver's."""
    noise = road_noise([i], tuple(exact.shape[1:])) * ~_keep(s, i)[0, :, None].cpu()
    scores = []
    for filled in (ours.cpu(), exact):
        with torch.inference_mode():
            probabilities = s.model((filled + noise).to(s.inputs)).softmax(1)[:, s.classes[i]]
        morf, lerf = probabilities.chunk(2)
        scores.append(float((lerf - morf).mean()))
    return {"pixel": _largest(ours.cpu(), exact), "ROAD, same noise": abs(scores[0] - scores[1])}


def _road_ours(s: Subject, batch: list[int]) -> Callable:
    images, target, maps = s.inputs[batch], s.target[batch], s.maps[batch[0] % len(SIX), batch]
    return lambda: road_probabilities(s.model, images, target, maps, batch, s.fractions)


def _road_theirs(s: Subject, i: int) -> Callable:
    maps = s.maps[i % len(SIX), i : i + 1].cpu().numpy()
    return lambda: public.road_score(s.public, s.singles[i], s.classes[i], maps)


def _road_compare(s: Subject, i: int, ours: tuple[Tensor, Tensor], theirs: float) -> Differences:
    return {"ROAD": abs(float((ours[1][0] - ours[0][0]).mean()) - theirs)}


def _coherency_exact(kinds: Sequence[tuple[str, Variant]], s: Subject, i: int) -> float:
    """Return the largest difference of Coherency over some kinds of map."""
    capture, differences = s.capture([i]), []
    for method, variant in kinds:
        maps = s.maps[SIX.index((method, variant)), i : i + 1]
        again = explain(capture.masked(maps, layers=variant.layers(s.layers)), method, variant).maps
        theirs = public.coherency_and_drop(
            s.public, s.singles[i], s.classes[i], maps.cpu().numpy(), s.layers, method, variant == REFINED
        )
        differences.append(abs((float(pearson(again, maps)) + 1) / 2 - theirs["coherency"]))
    return max(differences)


def _coherency_ours(s: Subject, batch: list[int]) -> Callable:
    capture, maps = s.capture(batch), s.maps[SIX.index(("LayerCAM", BASE)), batch]
    before = capture.probability  # not timed: explaining the clean image gives it

    def run() -> dict[str, Tensor]:
        masked = capture.masked(maps, layers=s.layers[:1])
        again = explain(masked, "LayerCAM", BASE).maps
        drop = (before - masked.probability).clamp_min(0)
        return {"coherency": (pearson(again, maps) + 1) / 2, "complexity": complexity(maps), "drop": drop}

    return run


def _coherency_theirs(s: Subject, i: int) -> Callable:
    maps = s.maps[SIX.index(("LayerCAM", BASE)), i : i + 1].cpu().numpy()
    return lambda: public.coherency_and_drop(
        s.public, s.singles[i], s.classes[i], maps, s.layers, "LayerCAM", refine=False
    )


def _coherency_compare(s: Subject, i: int, ours: dict[str, Tensor], theirs: dict[str, float]) -> Differences:
    return {name: abs(float(ours[name][0]) - theirs[name]) for name in theirs}


def _six_ours(s: Subject, batch: list[int], as_in_rows: bool = False) -> Callable:
    """as_in_rows: compute Grad-CAM++ in float64, as sweeps do. Otherwise compute all in float32, as public code does."""
    maps = s.maps[:, batch]

    def run() -> list[dict[str, float]]:
        capture, rows = s.capture(batch), []
        for k, (name, variant) in enumerate(SIX):
            method = name if as_in_rows else METHODS[name].function
            explain(capture, method, variant)
            row = measure(Explanation(capture, method, variant, maps[k]), fractions=s.fractions).iloc[0]
            removed = [f"{order}_{round(100 * k)}" for order in ("lerf", "morf") for k in FRACTIONS]
            lerf, morf = np.split(row[removed].to_numpy(float), 2)
            drop = max(row["probability"] - row["probability_masked"], 0)
            values = (row["pearson"] + 1) / 2, row["mean_activation"], drop, (lerf - morf).mean()
            rows.append(dict(zip(("coherency", "complexity", "drop", "ROAD"), values)))
        return rows

    return run


def _six_theirs(s: Subject, i: int) -> Callable:
    image, target, given = s.singles[i], s.classes[i], s.maps[:, i : i + 1].cpu().numpy()

    def run() -> list[dict[str, float]]:
        rows = []
        for k, (method, variant) in enumerate(SIX):
            if variant == BASE:
                maps = public.layer_maps(s.public, image, target, s.layers, method)
            else:
                public.refined(maps)
            row = public.coherency_and_drop(s.public, image, target, given[k], s.layers, method, variant == REFINED)
            rows.append(row | {"ROAD": public.road_score(s.public, image, target, given[k])})
        return rows

    return run


def _six_compare(s: Subject, i: int, ours: list[dict], theirs: list[dict]) -> Differences:
    return {name: float(max(abs(a[name] - b[name]) for a, b in zip(ours, theirs))) for name in theirs[0]}


METRICS = {"coherency": 1e-5, "complexity": 1e-5, "drop": 1e-5}
SIX_MAPS = Part(
    "6 maps (3 gradient methods, base and refined), all metrics, an image",
    _six_ours,
    _six_theirs,
    _six_compare,
    METRICS | {"ROAD": 2e-4},
    needs=lambda s: (1 + len(SIX), 2 * len(FRACTIONS) * len(SIX)),
    exact=("coherency", partial(_coherency_exact, SIX)),
)
PARTS: dict[str, Part] = {
    "gradient": _cams("3 gradient CAMs x all layers, an image", GRADIENT, needs=lambda s: (1, 0)),
    "shapley": _cams("ShapleyCAM x all layers, an image", ["ShapleyCAM"]),
    "imputation": Part(
        "imputation for one ROAD (8 systems), a map",
        _impute_ours,
        _impute_theirs,
        _impute_compare,
        {"pixel": 1e-3, "ROAD, same noise": 2e-4},
        single=True,
    ),
    "road": Part(
        "ROAD with its forwards, a map",
        _road_ours,
        _road_theirs,
        _road_compare,
        {"ROAD": 2e-4},
        needs=lambda s: (0, 2 * len(FRACTIONS)),
    ),
    "coherency": Part(
        "Coherency + Average Drop, a map",
        _coherency_ours,
        _coherency_theirs,
        _coherency_compare,
        METRICS,
        needs=lambda s: (1, 0),
        exact=("coherency", partial(_coherency_exact, [("LayerCAM", BASE)])),
    ),
    "six": SIX_MAPS,
    "six_as_in_rows": replace(
        SIX_MAPS, title="the same 6 maps, Grad-CAM++ in float64 as in rows", ours=partial(_six_ours, as_in_rows=True)
    ),
    "scorecam": _cams(
        "ScoreCAM x all layers, an image", ["ScoreCAM"], needs=lambda s: (0, s.channels + 1), single=True
    ),
}
