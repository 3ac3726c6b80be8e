"""Count and time what a sweep costs: python -m benchmarks.scaling [--images 2]

It counts each network's operations and each method's forward and backward passes. It times the passes, and one shard per
method on the shipped network, to check that the count predicts the time. It then extrapolates to the paper's sweep and
to ImageNet's validation set. docs/scaling.md explains the output.
"""

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import refinecam_lib  # noqa: F401 - it repairs the import of torchvision
from refinecam_lib.capture import Capture
from refinecam_lib.explanation import BASE, CAMS, OTHERS, REFINED
from refinecam_lib.networks.inference import forward_chunk
from refinecam_lib.networks.layers import fast_pointwise
from refinecam_lib.networks.loading import load_model
from refinecam_lib.networks.memory import keep_memory
from refinecam_lib.networks.zoo import spec_of
from refinecam_lib.sweeps.measurements import load_once
from refinecam_lib.sweeps.run import measured
from refinecam_lib.sweeps.shard import Shard, plan

PAPER = ("vgg11", "resnet18", "swin_tiny", "convnext_tiny")
"""The paper's four networks."""
OURS = "efficientnet_lite0"
SUSTAINED = 10.0
"""Assumed TFLOP/s of one GPU in float32: half the peak of an A100."""


def operations(name: str) -> dict[str, float]:
    """Count the GFLOP per image (2 per multiply-add): forward, and backward to the shallowest layer. Count channels too.

    The weights are random. They do not change a count.
    """
    spec = spec_of(name)
    model = spec.build(1000, False).eval().requires_grad_(False)
    capture = Capture(model, torch.randn(1, 3, spec.size, spec.size), torch.tensor([0]), spec.layers)
    with FlopCounterMode(display=False) as forward:
        channels = [activation.shape[1] for activation in capture.activations]
    with FlopCounterMode(display=False) as back:
        capture.gradients  # noqa: B018 - computed on first use
    gigas = [counter.get_total_flops() / 1e9 for counter in (forward, back)]
    return {"forward": gigas[0], "back": gigas[1], "channels": sum(channels), "shallowest": channels[0]}


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter]:
    """Count the images that pass forward through a network (`forward`) and backward from its output (`back`)."""
    seen: Counter = Counter()

    def count(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: seen.update(back=len(gradient)))

    handle = model.register_forward_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a piece of work, the minimum of five. CPU time does not count other programs."""
    times = []
    for _ in range(5):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


def shards(images: int) -> list[Shard]:
    """Plan one shard per method of Table 1: Base, and RefineCAM if the method refines. ScoreCAM's has 1 image."""
    sizes = {method: 1 if method == "ScoreCAM" else images for method in (*CAMS, *OTHERS)}
    return [s for method, n in sizes.items() for s in plan(OURS, [method], n, [BASE, REFINED], size=n)]


def methods(images: int) -> pd.DataFrame:
    """Measure each method per image: rows, passes, CPU seconds predicted from the passes, and measured CPU seconds."""
    model, spec = load_model(OURS), spec_of(OURS)
    batch = torch.randn(forward_chunk(torch.device("cpu")), 3, spec.size, spec.size)
    batch = batch.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        model(batch)
        forward = seconds(lambda: model(batch)) / len(batch)
    target = torch.zeros(len(batch), dtype=torch.long)
    both = seconds(lambda: Capture(model, batch, target, spec.layers).gradients) / len(batch)
    print(f"{OURS}: an image forward {1e3 * forward:.1f} ms, forward and back {1e3 * both:.1f} ms of CPU time")
    records, planned = [], shards(images)
    measured(planned[0])  # a warm-up
    for shard in planned:
        n = len(shard.numbers)
        with counted(load_once(OURS, "synthetic", shard.checkpoint, threading.get_ident())) as seen:
            begun = time.process_time()
            rows = measured(shard)
            taken = time.process_time() - begun
        passes = {way: seen[way] / n for way in ("forward", "back")}
        predicted = passes["forward"] * forward + passes["back"] * (both - forward)
        record = {"method": shard.method, "rows": len(rows) / n} | passes
        records.append(record | {"predicted_s": predicted, "measured_s": taken / n})
    return pd.DataFrame(records)


def network_cost(network: dict[str, float], own: dict[str, float], costs: pd.DataFrame) -> tuple[float, float]:
    """Compute the forward passes and GFLOP per image of all ten methods on a network, from the passes on our network.

    Only ScoreCAM's passes depend on the network. It needs one per channel: all channels for the image and for the masked
    image of RefineCAM, and the shallowest layer's for the masked image of Base.
    """

    def channel_passes(of: dict[str, float]) -> float:
        return 2 * of["channels"] + of["shallowest"]

    forward = costs["forward"].sum() + channel_passes(network) - channel_passes(own)
    return forward, forward * network["forward"] + costs["back"].sum() * network["back"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of docs/scaling.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2, help="images per shard; ScoreCAM has 1 (default 2)")
    options = parser.parse_args(arguments)
    keep_memory()
    fast_pointwise()
    torch.set_num_threads(1)
    networks = {name: operations(name) for name in (OURS, *PAPER)}
    print(pd.DataFrame(networks).T.round(2).to_string(), "\n")
    costs = methods(options.images)
    print(costs.round(2).to_string(index=False))
    sums = costs[["rows", "forward", "back", "predicted_s", "measured_s"]].sum()
    print(f"together: {', '.join(f'{name} {value:.1f}' for name, value in sums.items())}\n")
    total = 0.0
    for name, network in networks.items():
        forward, gigas = network_cost(network, networks[OURS], costs)
        total += gigas if name in PAPER else 0
        print(f"{name}: {forward:,.0f} forwards and {gigas / 1e3:.1f} TFLOP an image")
    for what, images in (("1,000 images", 1_000), ("ImageNet's 50,000", 50_000)):
        tera = total * images / 1e3
        rows = sums["rows"] * images * len(PAPER)
        print(
            f"{what}, {len(PAPER)} networks: {rows:,.0f} rows, {tera / 1e3:,.0f} PFLOP, "
            f"{tera / SUSTAINED / 3600:,.1f} GPU hours at {SUSTAINED:g} TFLOP/s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
