"""Time both sides in turn, image by image, and the floor. Compute ratios and their intervals."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from refinecam_lib import road

from . import public
from .parts import Part, Subject

CHUNKS = (4, 8, 16, 32)


def clock(device: torch.device, work: Callable) -> tuple[object, float]:
    """Return what `work()` returns, and its wall-clock seconds. It waits for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def ratio(above: list[float], below: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """Return sum(above) / sum(below) and the bounds of its 95 % interval, from a bootstrap over the pairs."""
    a, b = np.array(above), np.array(below)
    drawn = np.random.default_rng(0).integers(len(a), size=(draws, len(a)))
    low, high = np.quantile(a[drawn].sum(1) / b[drawn].sum(1), [0.025, 0.975])
    return float(a.sum() / b.sum()), float(low), float(high)


class Floor:
    """The passes alone: channels-last, without weight gradients, in the fastest chunk size."""

    def __init__(self, subject: Subject, chunks: tuple[int, ...] = CHUNKS):
        self.subject = subject
        images = subject.inputs
        while len(images) < max(chunks):
            images = torch.cat([images, subject.inputs])
        self.images = images.contiguous(memory_format=torch.channels_last)
        for chunk in chunks:  # a warm-up
            self._forward(chunk), self._both(chunk)
        self.forward = min(chunks, key=lambda chunk: min(self._forward(chunk) for _ in range(3)))
        self.both = min(chunks, key=lambda chunk: min(self._both(chunk) for _ in range(3)))

    def _forward(self, chunk: int) -> float:
        """Time a forward pass: seconds per image."""
        images = self.images[:chunk]
        with torch.inference_mode():
            return clock(self.subject.device, lambda: self.subject.model(images))[1] / chunk

    def _both(self, chunk: int) -> float:
        """Time a forward pass, and the backward pass from a logit to the shallowest layer: seconds per image."""
        leaf: list[torch.Tensor] = []

        def cut(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            leaf.append(output.detach().requires_grad_())
            return leaf[0].clone()

        def run() -> None:
            torch.autograd.grad(self.subject.model(self.images[:chunk])[:, 0].sum(), leaf)

        handle = self.subject.model.get_submodule(self.subject.layers[0]).register_forward_hook(cut)
        try:
            return clock(self.subject.device, run)[1] / chunk
        finally:
            handle.remove()

    def seconds(self, part: Part) -> float:
        """Time the passes that the part's definition needs per image. NaN if it has no floor."""
        if part.needs is None:
            return float("nan")
        both, forward = part.needs(self.subject)
        return both * (self._both(self.both) if both else 0) + forward * (self._forward(self.forward) if forward else 0)


@dataclass(frozen=True)
class Row:
    """A part on a network: mean seconds per image, ratios with their 95 % intervals, and differences.

    Those of public code are None if only our side ran.
    """

    network: str
    device: str
    threads: int
    part: str
    title: str
    images: int
    batch: int
    public_s: float | None
    ours_s: float
    floor_s: float | None
    ratio: tuple[float, float, float] | None
    over_floor: tuple[float, float, float] | None
    differences: dict[str, float]
    tolerances: dict[str, float]
    float64_checked: int

    @property
    def agrees(self) -> bool:
        """Whether every difference is within its tolerance."""
        return all(self.differences[name] <= limit for name, limit in self.tolerances.items())


def compare(
    subject: Subject, floor: Floor, part: str, rules: Part, images: int, batch: int, checked: int, both: bool = True
) -> Row:
    """Time a part on `images` images. For each image both sides run, and they take turns to be first.

    Args:
        subject: The network and its images.
        floor: The passes alone, on the same network.
        part: The part's name in PARTS.
        rules: The part.
        images: How many images the public code takes. Our batch starts with the same image.
        batch: The size of our batch.
        checked: How many images a part's `exact` difference takes, in float64 and not timed. Rounding decides Grad-CAM++
            of signed activations in float32, so float32 cannot compare two programs.
        both: Whether public code runs, too.
    """
    n = len(subject.inputs)
    size = 1 if rules.single else min(batch, n)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "floor": []}
    differences: dict[str, list[float]] = {}
    with public.noiseless():
        for work in (rules.ours(subject, list(range(size))), *([rules.theirs(subject, 0)] if both else [])):
            work()  # a warm-up: threads, caches, compiled code, and the GPU's kernels for this shape
        for i in range(images):
            sides = {"ours": rules.ours(subject, [(i + k) % n for k in range(size)])}
            if both:
                sides["theirs"] = rules.theirs(subject, i)
            results = {}
            for side in sorted(sides, reverse=bool(i % 2)):
                for cached in (road._ties, road._noise):  # the public code does not cache either
                    cached.cache_clear()
                results[side], time_taken = clock(subject.device, sides[side])
                seconds[side].append(time_taken / (size if side == "ours" else 1))
            seconds["floor"].append(floor.seconds(rules))
            if both:
                for name, value in rules.compare(subject, i, results["ours"], results["theirs"]).items():
                    differences.setdefault(name, []).append(value)
        largest = {name: max(values) for name, values in differences.items()}
        if rules.exact is None or not both:
            checked = 0
        elif checked:
            double = subject.double(checked)
            name, difference = rules.exact
            exact = max(difference(double, i) for i in range(len(double.inputs)))
            largest |= {f"{name}, float32": largest[name], name: exact}
    floored = None if rules.needs is None else ratio(seconds["ours"], seconds["floor"])
    return Row(
        subject.name,
        subject.device.type,
        torch.get_num_threads(),
        part,
        rules.title,
        images,
        size,
        float(np.mean(seconds["theirs"])) if both else None,
        float(np.mean(seconds["ours"])),
        None if rules.needs is None else float(np.mean(seconds["floor"])),
        ratio(seconds["theirs"], seconds["ours"]) if both else None,
        floored,
        largest,
        rules.tolerances if both else {},
        checked,
    )
