"""What can be measured of a batch of images. Each kind of measurement gives rows with its own columns.

>>> rows = measure_shard(shard)                  # one row per image and variant
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import metrics
from ..baselines import faithfulness as rivals
from ..capture import Capture
from ..datasets.sample import PREDICTED, Sample, Samples, batch_of
from ..datasets.scenes import TWINS, Scenes
from ..datasets.shapes import SyntheticShapes
from ..errors import InputError
from ..explanation import Variant, explain, method_of
from ..metrics import EXACT_FRACTIONS, complexity, frame_of, measure, usable_maps
from ..networks.inference import forward
from ..networks.loading import load_model, normalise, weights_hash
from ..networks.zoo import ModelSpec
from ..refinement import to_map
from ..road import road_probabilities
from .certificate import REDRAWS, certify
from .published import instructions
from .randomisation import cascade, similarity
from .shard import Shard
from .store import differences
from .version import KEYS

CALIBRATION = 8
"""Validation images that set the batch norms of a randomised network."""
ROUNDINGS = 2
"""How often `rounding` moves the input."""


@lru_cache(maxsize=3)  # joblib would take the memory of more networks for a leak and restart the process
def load_once(name: str, weights: str, checkpoint: str, thread: int) -> nn.Module:
    """Load a network, one per thread, because hooks must not see another thread's forward pass.

    Raises:
        InputError: the checkpoint file is not the planned one.
    """
    before, model, after = weights_hash(name, weights), load_model(name, weights), weights_hash(name, weights)
    for found in (before, after):  # the file may be replaced while it is read
        if found != checkpoint:
            raise InputError(
                f"The checkpoint of {name} changed during the sweep: planned {checkpoint[:12]}..., found {found[:12]}... "
                "Start the sweep again, or restore the earlier file."
            )
    return model


def read_samples(shard: Shard) -> tuple[Samples, list[Sample]]:
    """Return the shard's data set, and the shard's samples of it.

    Raises:
        InputError: they are not the planned ones.
    """
    samples = shard.data_set.samples(max(shard.numbers) + 1, shard.seed, shard.spec)
    own = [samples[i] for i in shard.numbers]
    for planned, sample in zip(shard.images, own):
        found = "@".join([sample.id, *([sample.info["file"]] if "file" in sample.info else [])])
        if found != planned:
            raise InputError(
                f"The images of {shard.dataset!r} changed after they were planned: expected {planned}, got {found}. "
                "Plan and sweep again; give each list of samples a name of its own."
            )
    return samples, own


def names_of(shard: Shard, variant: Variant, samples: list[Sample]) -> pd.DataFrame:
    """Return the columns that name each row."""
    names = pd.DataFrame([{"image": s.id, **s.info} for s in samples])
    fixed = {"dataset": shard.dataset, "model": shard.model, "method": shard.method, "seed": shard.seed}
    return names.assign(**fixed, layer=variant.layer, aggregate=variant.aggregate)


@dataclass
class Work:
    """A shard with its network and images in memory.

    Attributes:
        shard: what to measure.
        rounding: None, or a seed. Every value of the normalised input then moves by one float32 rounding step, up or
            down at random. A row that this moves is ill-conditioned.
    """

    shard: Shard
    rounding: int | None = None

    def __post_init__(self) -> None:
        shard, self.spec = self.shard, self.shard.spec
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.place = shard.data_set.weights, shard.checkpoint, threading.get_ident()
        self.model = load_once(shard.model, *self.place).to(device)
        self.dataset, self.samples = read_samples(shard)
        images, target, masks = batch_of(self.samples)
        inputs = normalise(images.to(device), self.spec)
        if self.rounding is not None:
            inputs = rounded(inputs, self.rounding)
        self.inputs = inputs.contiguous(memory_format=torch.channels_last)
        known = [s.without for s in self.samples if s.without is not None]
        exact = shard.data_set.exact and len(known) == len(self.samples)
        self.without = normalise(torch.stack(known).to(device), self.spec) if exact else None
        self.masks = None if masks is None else masks.to(device)
        if (target == PREDICTED).any():
            target = torch.where(target == PREDICTED, forward(self.model, self.inputs).argmax(1).cpu(), target)
        self.target = target

    @cached_property
    def capture(self) -> Capture:
        """The capture that all variants of the shard share."""
        ids = [s.id for s in self.samples]
        return Capture(self.model, self.inputs, self.target, self.spec.layers, ids, self.shard.seed, self.masks)


def rounded(inputs: Tensor, seed: int) -> Tensor:
    """Move each value to the next float32 above or below it, at random."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.rand(inputs.shape, generator=generator) < 0.5
    return torch.where(up.to(inputs.device), torch.nextafter(inputs, inputs + 1), torch.nextafter(inputs, inputs - 1))


def scores(work: Work) -> pd.DataFrame:
    """Measure what scores are computed from, see `metrics.measure`, and the data set's further columns."""
    shard, capture, frames = work.shard, work.capture, []
    key = f"{shard.model}-{shard.checkpoint[:16]}-{shard.reading}-{shard.data}"
    more = shard.data_set.columns(work.dataset, capture, shard.numbers, key)
    keep, again = instructions(shard.defects)
    for variant in shard.variants:
        explanation = explain(capture, shard.method, variant)
        frame = measure(explanation, work.without, shard.fractions, keep, again)
        frame = frame.assign(target=work.target.numpy())
        if more:  # for birds, `correct` then refers to the label, not to the class that is explained
            frame = frame.assign(**more(explanation))
        frames.append(pd.concat([names_of(shard, variant, work.samples), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def agreement(work: Work) -> pd.DataFrame:
    """Compare maps with the masks alone, see `metrics.agreement`. It takes no forward pass beyond the explanation's."""
    frames, capture = [], work.capture
    for variant in work.shard.variants:
        usable, status = usable_maps(explain(capture, work.shard.method, variant).maps)
        columns = {"mean_activation": complexity(usable)} | metrics.agreement(usable, capture.truth)
        frame = frame_of(columns, capture, status).assign(target=work.target.numpy())
        frames.append(pd.concat([names_of(work.shard, variant, work.samples), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def faithfulness(work: Work) -> pd.DataFrame:
    """Measure the scores of other papers, see `baselines.faithfulness`, and the sensitivity to the network.

    network_sensitivity is 1 - the rank correlation with the map of a network of random weights, in [0,2], NaN for a map
    without contrast; higher is better.
    """
    shard, capture, frames = work.shard, work.capture, []
    drops = rivals.drops_without(capture)
    randomised = _cascaded(work.spec, *work.place, shard.seed)[-1:]
    names = [shard.method], shard.variants
    found = similarity(work.model, randomised, work.inputs, work.target, work.spec.layers, *names)
    alike = found[found["stage"] == 1].sort_values("image").groupby(["layer", "aggregate"])["spearman"].agg(list)
    for variant in shard.variants:
        usable, status = usable_maps(explain(capture, shard.method, variant).maps)
        changed = 1 - torch.tensor(alike[variant.layer, variant.aggregate], dtype=torch.float64)
        columns = rivals.faithfulness(capture, usable, drops) | {"network_sensitivity": changed}
        frame = frame_of(columns, capture, status).assign(target=work.target.numpy())
        frames.append(pd.concat([names_of(shard, variant, work.samples), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def imputers(work: Work) -> pd.DataFrame:
    """Compare exact removal with imputers, at the shares of exact removal and over the same order of pixels.

    Columns exact (removed pixels show what lies behind the truth), linear (ROAD's noisy linear imputation), mean (the
    image's mean colour), blur (the blurred image) and black hold mean(LeRF - MoRF), in [-1,1]; higher is better.
    """
    if work.without is None:
        raise InputError(f"Expected images with a known background, got the data set {work.shard.dataset!r}.")
    black = normalise(torch.zeros_like(work.inputs), work.spec)
    fillings = {"exact": work.without, "linear": None, "mean": rivals.grey_of(work.inputs)}
    fillings |= {"blur": rivals.blurred(work.inputs), "black": black}
    capture, frames = work.capture, []
    for variant in work.shard.variants:
        usable, status = usable_maps(explain(capture, work.shard.method, variant).maps)
        place = capture.classifier, capture.inputs, capture.target, usable, capture.seeds_of("road"), EXACT_FRACTIONS
        columns = {}
        for name, filling in fillings.items():
            morf, lerf = road_probabilities(*place, without=filling)
            columns[name] = (lerf - morf).mean(1)
        frame = frame_of(columns, capture, status).assign(target=work.target.numpy())
        frames.append(pd.concat([names_of(work.shard, variant, work.samples), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def predictions(work: Work) -> pd.DataFrame:
    """Measure the predicted class and the probability of the image's own class."""
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
    """Store the raw map at each variant's layer as float16, divided by its maximum, with its height and width."""
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
    """Return the maps (L,B,H,W) in [0,1] of one method's rows of `maps`, shallow to deep, images in the rows' order."""
    layers = []
    for _, own in rows.groupby("layer"):
        raw = [np.reshape(r["map"], (r["height"], r["width"])).astype(np.float32) for _, r in own.iterrows()]
        layers.append(to_map(torch.from_numpy(np.stack(raw)), size))
    return torch.stack(layers)


@lru_cache(maxsize=1)
def _cascaded(spec: ModelSpec, weights: str, checkpoint: str, thread: int, seed: int) -> list[tuple[str, nn.Module]]:
    """Return the networks of the model-randomisation check, in float64. They are the same for all images."""
    data = SyntheticShapes("validation", CALIBRATION)
    images, _, _ = batch_of([data[i] for i in range(CALIBRATION)])
    model = load_once(spec.name, weights, checkpoint, thread)
    inputs = normalise(images.to(next(model.parameters()).device), spec).double()
    return list(cascade(model, inputs, spec.layers, seed))


def randomisation(work: Work) -> pd.DataFrame:
    """Compare maps with those of ever more random networks, see `randomisation.similarity`.

    Columns spearman and ssim hold a list each: one value per network, in the order of `cascade`.
    """
    shard = work.shard
    networks = _cascaded(work.spec, *work.place, shard.seed)
    found = similarity(work.model, networks, work.inputs, work.target, work.spec.layers, [shard.method], shard.variants)
    prediction, frames = work.capture.logits.argmax(1).cpu(), []
    for variant in shard.variants:
        own = found[(found["layer"] == variant.layer) & (found["aggregate"] == variant.aggregate)]
        lists = own.sort_values("stage").groupby("image")[["spearman", "ssim"]].agg(list).reset_index(drop=True)
        frame = pd.concat([names_of(shard, variant, work.samples), lists], axis=1)
        frames.append(frame.assign(correct=(prediction == work.target).numpy(), status="ok"))
    return pd.concat(frames, ignore_index=True)


def rounding(work: Work) -> pd.DataFrame:
    """Measure how far rounding moves a row of `scores`.

    The input moves by one float32 rounding step at random, ROUNDINGS times. Column `moved` is the largest change of any
    column (lower is better), `column` its name. If `moved` is large, the row may differ on another CPU.
    """
    plain = scores(work)
    columns = [c for c in plain if c not in (*KEYS, "seed")]
    gaps = {c: np.zeros(len(plain)) for c in columns}
    for number in range(ROUNDINGS):
        again = scores(Work(work.shard, rounding=number))
        gaps = {c: np.maximum(gaps[c], differences(again[c], plain[c])) for c in columns}
    table = pd.DataFrame(gaps)
    return plain[[*KEYS, "seed", "correct", "status"]].assign(moved=table.max(axis=1), column=table.idxmax(axis=1))


def certificate(work: Work) -> pd.DataFrame:
    """Measure the certificate of each scene, see `certificate.certify`. Other data sets have none."""
    if not isinstance(data := work.dataset, Scenes):
        raise InputError(f"Expected scenes for a certificate, got the data set {work.shard.dataset!r}.")
    layer, classes = TWINS[data.twin]

    def logits_of(images: Tensor) -> Tensor:
        inputs = normalise(images.to(work.inputs.device), work.spec)
        if work.rounding is not None:
            inputs = rounded(inputs, work.rounding)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        return torch.cat([forward(work.model, few) for few in inputs.split(REDRAWS)]).cpu()

    found = [
        certify(logits_of, data.scene(number), layer, classes, sample.id)
        for number, sample in zip(work.shard.numbers, work.samples, strict=True)
    ]
    names = names_of(work.shard, Variant(), work.samples)
    return pd.concat([names, pd.DataFrame(found)], axis=1).assign(status="ok")


MEASUREMENTS: dict[str, Callable[[Work], pd.DataFrame]] = {
    "scores": scores,
    "agreement": agreement,
    "faithfulness": faithfulness,
    "imputers": imputers,
    "predictions": predictions,
    "maps": maps,
    "randomisation": randomisation,
    "rounding": rounding,
    "certificate": certificate,
}
"""Name -> function of a shard's work that returns its rows. `shard.RESULTS_VERSION` has their versions."""


def measure_shard(shard: Shard, rounding: int | None = None) -> pd.DataFrame:
    """Measure the rows of a shard. rounding: see `Work`."""
    return MEASUREMENTS[shard.measurement](Work(shard, rounding))
