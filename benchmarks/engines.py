"""Compare engines for passes without gradients: python -m benchmarks.engines [--networks ...].

It needs onnxruntime and onnxscript. All engines run in turn on the same 16 images, on one thread.
"""

import argparse
import io
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from refinecam_lib.datasets.sample import batch_of
from refinecam_lib.datasets.shapes import SyntheticShapes
from refinecam_lib.networks.inference import VARIABLE, forward
from refinecam_lib.networks.layers import evaluating, fast_pointwise
from refinecam_lib.networks.loading import load_model, normalise
from refinecam_lib.networks.memory import keep_memory
from refinecam_lib.networks.zoo import MODELS, spec_of

from .__main__ import FOLDER

IMAGES = 16


def by_torch(model: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    """Return a function that runs torch. The functions below do the same for other engines."""

    def run() -> Tensor:
        with torch.no_grad(), evaluating(model):
            return model(inputs)

    return run


def by_openvino(model: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    os.environ[VARIABLE] = "openvino"
    return lambda: forward(model, inputs)


def by_onnxruntime(model: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    import onnxruntime

    stored, plain = io.BytesIO(), inputs.contiguous()
    axes = {"input": {0: "n"}}
    torch.onnx.export(model, (plain,), stored, input_names=["input"], dynamic_axes=axes, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(stored.getvalue(), options)
    return lambda: torch.from_numpy(session.run(None, {"input": plain.numpy()})[0])


def compiled(model: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    faster = torch.compile(model)

    def run() -> Tensor:
        with torch.no_grad():
            return faster(inputs)

    return run


ENGINES = {"torch": by_torch, "openvino": by_openvino, "onnxruntime": by_onnxruntime, "torch.compile, frozen": compiled}


def compare(name: str, rounds: int) -> list[dict]:
    """Return one record per engine: ms per image, torch's time divided by its own, largest difference of a probability."""
    images, _, _ = batch_of(list(SyntheticShapes("test", IMAGES)))
    inputs = normalise(images, spec_of(name)).contiguous(memory_format=torch.channels_last)
    runs, records, exact = {}, [], torch.empty(0)
    for engine, make in ENGINES.items():
        start = time.perf_counter()
        runs[engine] = make(load_model(name), inputs)
        probabilities = runs[engine]().softmax(1)
        exact = probabilities if engine == "torch" else exact  # torch comes first
        largest = float((probabilities - exact).abs().max())
        records.append(
            {"network": name, "engine": engine, "prepare_s": time.perf_counter() - start, "difference": largest}
        )
    seconds: dict[str, list[float]] = {engine: [] for engine in runs}
    for _ in range(rounds):
        for engine, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[engine].append(time.perf_counter() - start)
    for record in records:
        own = seconds[record["engine"]]
        record["ms"] = 1000 * statistics.median(own) / IMAGES
        record["ratio"] = statistics.median(t / o for t, o in zip(seconds["torch"], own))
    return records


def main() -> None:
    """Compare the engines and write benchmarks/results/engines.json and engines.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    keep_memory()
    fast_pointwise()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    records = []
    for name in chosen.networks:
        records += compare(name, chosen.rounds)
        lines = [
            "| network | engine | ms an image | torch / engine | largest difference | first call, s |",
            "|---|---|---|---|---|---|",
        ]
        for r in records:
            lines.append(
                f"| {r['network']} | {r['engine']} | {r['ms']:.1f} | {r['ratio']:.2f} | {r['difference']:.0e} | {r['prepare_s']:.1f} |"
            )
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "engines.json").write_text(json.dumps(records, indent=1) + "\n")
        (FOLDER / "engines.md").write_text("\n".join(lines) + "\n")
        print("\n".join(lines[-len(ENGINES) :]), flush=True)


if __name__ == "__main__":
    main()
