"""What can be measured of a batch of images: each kind of measurement gives rows with columns of its own.

>>> rows = measure_shard(shard)                  # one row for each image and variant
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..capture import Capture
from ..datasets.sample import PREDICTED, Sample, Samples, batch_of
from ..datasets.shapes import SyntheticShapes
from ..errors import InputError
from ..explanation import Variant, explain, method_of
from ..funnybirds.rows import BirdImages, SeenBirds
from ..metrics import measure
from ..networks.inference import forward
from ..networks.loading import load_model, normalise, weights_hash
from ..networks.zoo import ModelSpec, spec_of
from ..refinement import to_map
from ..reproduce.compare import differences
from .published import instructions
from .randomisation import cascade, similarity
from .registry import DATASETS, weights_of
from .shard import Shard
from .version import KEYS


@lru_cache(maxsize=3)  # joblib would take the memory of more for a leak, and start the process anew
def load_once(name: str, weights: str, checkpoint: str, thread: int) -> nn.Module:
    """The network, one for each thread: hooks that record a forward pass must not see another's."""
    before, model, after = weights_hash(name, weights), load_model(name, weights), weights_hash(name, weights)
    for found in (before, after):  # and in between, for the file may be replaced at any moment
        if found != checkpoint:
            raise InputError(
                f"checkpoint of {name} changed during the sweep: {found[:12]}..., planned {checkpoint[:12]}...; "
                "start it again, or put the earlier file back"
            )
    return model


def read_samples(shard: Shard) -> tuple[Samples, list[Sample]]:
    """The shard's data set, and its own samples of it."""
    spec = spec_of(shard.model, weights_of(shard.dataset))
    dataset = DATASETS[shard.dataset](max(shard.numbers) + 1, shard.seed, spec)
    return dataset, [dataset[i] for i in shard.numbers]


def names_of(shard: Shard, variant: Variant, samples: list[Sample]) -> pd.DataFrame:
    """The columns that say what a row is of."""
    names = pd.DataFrame([{"image": s.id, **s.info} for s in samples])
    fixed = {"dataset": shard.dataset, "model": shard.model, "method": shard.method, "seed": shard.seed}
    return names.assign(**fixed, layer=variant.layer, aggregate=variant.aggregate)


@dataclass
class Work:
    """A shard with its network and images in memory.

    rounding: None, or a seed: every value of the normalised input is then moved by one float32 rounding step, up or
    down at random. Rows that this moves are ill-conditioned.
    """

    shard: Shard
    rounding: int | None = None

    def __post_init__(self) -> None:
        shard, weights = self.shard, weights_of(self.shard.dataset)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.spec: ModelSpec = spec_of(shard.model, weights)
        self.model = load_once(shard.model, weights, shard.checkpoint, threading.get_ident()).to(device)
        self.dataset, self.samples = read_samples(shard)
        images, target, masks = batch_of(self.samples)
        inputs = normalise(images.to(device), self.spec)
        if self.rounding is not None:
            inputs = rounded(inputs, self.rounding)
        self.inputs = inputs.contiguous(memory_format=torch.channels_last)
        known = [s.without for s in self.samples if s.without is not None]
        self.without = normalise(torch.stack(known).to(device), self.spec) if len(known) == len(self.samples) else None
        self.masks = None if masks is None else masks.to(device)
        if (target == PREDICTED).any():
            target = torch.where(target == PREDICTED, forward(self.model, self.inputs).argmax(1).cpu(), target)
        self.target = target

    @cached_property
    def capture(self) -> Capture:
        """The capture that all of the shard's variants share."""
        ids = [s.id for s in self.samples]
        return Capture(self.model, self.inputs, self.target, self.spec.layers, ids, self.shard.seed, self.masks)


def rounded(inputs: Tensor, seed: int) -> Tensor:
    """The inputs with each value moved to the next float32 above or below it, at random."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.rand(inputs.shape, generator=generator) < 0.5
    return torch.where(up.to(inputs.device), torch.nextafter(inputs, inputs + 1), torch.nextafter(inputs, inputs - 1))


def scores(work: Work) -> pd.DataFrame:
    """What the scores are computed from, see `metrics.measure`; of birds also what `bird_score` needs."""
    shard, capture, frames = work.shard, work.capture, []
    seen = None
    if shard.dataset == "birds":
        key = f"{shard.model}-{shard.checkpoint[:16]}-{shard.reading}-{shard.data}"
        seen = SeenBirds(capture, cast(BirdImages, work.dataset), shard.numbers, key)
    keep, again = instructions(shard.defects)
    for variant in shard.variants:
        explanation = explain(capture, shard.method, variant)
        frame = measure(explanation, work.without, shard.fractions, keep, again)
        frame = frame.assign(target=work.target.numpy())
        if seen:  # whose `correct` is of the label, not of the class that is explained
            frame = frame.assign(**seen.columns(explanation))
        frames.append(pd.concat([names_of(shard, variant, work.samples), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def predictions(work: Work) -> pd.DataFrame:
    """The class that the network predicts, and the probability of the image's own class."""
    logits = forward(work.model, work.inputs).cpu()
    prediction = logits.argmax(1)
    return names_of(work.shard, Variant(), work.samples).assign(
        target=work.target.numpy(),
        prediction=prediction.numpy(),
        correct=(prediction == work.target).numpy(),
        probability=logits.softmax(1).gather(1, work.target[:, None])[:, 0].double().numpy(),
        status="ok",
    )


def maps(work: Work) -> pd.DataFrame:
    """The raw map of a method at each variant's layer, divided by its maximum: float16 values, and their height and width."""
    frames, capture = [], work.capture
    raw = method_of(work.shard.method).raw_maps(capture)
    for variant in work.shard.variants:
        layer = raw[variant.layer].cpu().float()
        scaled = (layer / layer.amax((1, 2), keepdim=True).clamp_min(torch.finfo(layer.dtype).tiny)).numpy()
        frames.append(
            names_of(work.shard, variant, work.samples).assign(
                map=[each.astype(np.float16).ravel() for each in scaled],
                height=layer.shape[1],
                width=layer.shape[2],
                target=work.target.numpy(),
                probability=capture.probability.double().cpu().numpy(),
                correct=(capture.logits.argmax(1) == capture.target).cpu().numpy(),
                status=np.where(np.isfinite(scaled).all((1, 2)), "ok", "not finite"),
            )
        )
    return pd.concat(frames, ignore_index=True)


def stored_maps(rows: pd.DataFrame, size: tuple[int, int]) -> Tensor:
    """The maps (L,B,H,W) in [0,1], shallow to deep, of one method's rows of `maps`; images in the order of the rows."""
    layers = []
    for _, own in rows.groupby("layer"):
        raw = [np.reshape(r["map"], (r["height"], r["width"])).astype(np.float32) for _, r in own.iterrows()]
        layers.append(to_map(torch.from_numpy(np.stack(raw)), size))
    return torch.stack(layers)


CALIBRATION = 8
"""Validation images on which the batch norms of a randomised network are set anew."""


@lru_cache(maxsize=1)
def _cascaded(shard_model: str, weights: str, checkpoint: str, thread: int, seed: int) -> list[tuple[str, nn.Module]]:
    """The networks of the model-randomisation check, in float64, the same for all images."""
    spec = spec_of(shard_model, weights)
    data = SyntheticShapes("validation", CALIBRATION)
    images, _, _ = batch_of([data[i] for i in range(CALIBRATION)])
    inputs = normalise(images, spec).double()
    return list(cascade(load_once(shard_model, weights, checkpoint, thread), inputs, spec.layers, seed))


def randomisation(work: Work) -> pd.DataFrame:
    """How like its maps are to those of networks with more and more random weights, see `randomisation.similarity`.

    Columns spearman and ssim hold a list each, one value a network, in the order of `cascade`.
    """
    shard = work.shard
    place = shard.model, weights_of(shard.dataset), shard.checkpoint, threading.get_ident(), shard.seed
    networks = _cascaded(*place)
    found = similarity(work.model, networks, work.inputs, work.target, work.spec.layers, [shard.method], shard.variants)
    frames = []
    for variant in shard.variants:
        own = found[(found["layer"] == variant.layer) & (found["aggregate"] == variant.aggregate)]
        lists = own.sort_values("stage").groupby("image")[["spearman", "ssim"]].agg(list).reset_index(drop=True)
        frame = pd.concat([names_of(shard, variant, work.samples), lists], axis=1)
        prediction = work.capture.logits.argmax(1).cpu()
        frames.append(frame.assign(correct=(prediction == work.target).numpy(), status="ok"))
    return pd.concat(frames, ignore_index=True)


ROUNDINGS = 2
"""How often `rounding` moves the input."""


def rounding(work: Work) -> pd.DataFrame:
    """How far rounding moves a row of `scores`: the largest change of any column, and of which.

    The input is moved by one float32 rounding step at random, `ROUNDINGS` times. A large value in column `moved`, lower
    is better, says that another processor may measure another row.
    """
    plain = scores(work)
    columns = [c for c in plain if c not in (*KEYS, "seed")]
    gaps = {c: np.zeros(len(plain)) for c in columns}
    for number in range(ROUNDINGS):
        again = scores(Work(work.shard, rounding=number))
        gaps = {c: np.maximum(gaps[c], differences(again[c], plain[c])) for c in columns}
    table = pd.DataFrame(gaps)
    return plain[[*KEYS, "seed", "correct", "status"]].assign(moved=table.max(axis=1), column=table.idxmax(axis=1))


MEASUREMENTS: dict[str, Callable[[Work], pd.DataFrame]] = {
    "scores": scores,
    "predictions": predictions,
    "maps": maps,
    "randomisation": randomisation,
    "rounding": rounding,
}
"""Name -> function of a shard's work that returns its rows. `shards.RESULTS_VERSION` has the version of each."""


def measure_shard(shard: Shard, rounding: int | None = None) -> pd.DataFrame:
    """The rows of a shard, measured now. rounding: see `Work`."""
    return MEASUREMENTS[shard.measurement](Work(shard, rounding))
