"""Time the library against public code: python -m benchmarks [--images 8] [--threads 1 2] [--networks ...].

It writes benchmark.json and benchmark.md. Both sides run in turn in one process. The result is the ratio of their times;
the seconds depend on the machine.
"""

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

import refinecam_lib  # noqa: F401 - it repairs the import of torchvision
from refinecam_lib.capture import Capture
from refinecam_lib.datasets.sample import batch_of
from refinecam_lib.datasets.shapes import SyntheticShapes
from refinecam_lib.errors import InputError, one_of
from refinecam_lib.explanation import REFINED, explain
from refinecam_lib.networks.inference import engine_version
from refinecam_lib.networks.layers import fast_pointwise
from refinecam_lib.networks.loading import load_model, normalise
from refinecam_lib.networks.memory import keep_memory
from refinecam_lib.networks.zoo import MODELS, spec_of
from refinecam_lib.training.loop import device_of

from .parts import PARTS, Subject
from .timing import Floor, Row, compare

FOLDER = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "torchvision", "timm", "grad-cam", "numba", "scipy", "numpy")


def subject(name: str, images: int, device: str = "cpu") -> Subject:
    """Return a shipped network and the first test images. Raises InputError if the network is not shipped."""
    inputs, target, _ = batch_of(list(SyntheticShapes("test", images)))
    spec, model = spec_of(name), load_model(name, device=device)
    return Subject(name, model, normalise(inputs, spec).to(device), target.to(device), spec.layers)


def resident() -> float:
    """Return the resident memory of this process in MB."""
    import psutil

    return psutil.Process().memory_info().rss / 1e6


def memory(model: torch.nn.Module, inputs: torch.Tensor, layers: Sequence[str], explanations: int, mark: int) -> dict:
    """Measure resident memory after `mark` explanations and after all, GradCAM++ refined, one image each."""
    after = {}
    for i in range(explanations):
        capture = Capture(model, inputs[i % len(inputs)][None], torch.tensor([0]), layers)
        explain(capture, "GradCAM++", REFINED)
        if i + 1 in (mark, explanations):
            del capture
            gc.collect()
            after[i + 1] = resident()
    return {"explanations": explanations, "mark": mark, "mb_at_mark": after[mark], "mb_at_end": after[explanations]}


def environment() -> dict:
    """Return the versions, the processor and the GPU, if there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.machine()
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "processor": processor,
        "engine": engine_version(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _interval(values: tuple[float, float, float] | None) -> str:
    return "-" if values is None else f"{values[0]:.3g} ({values[1]:.3g}-{values[2]:.3g})"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3g}"


def table(result: dict) -> str:
    """Write the result as markdown, one table per network, device and number of threads."""
    lines, rows = [], result["rows"]
    for key in dict.fromkeys((row["network"], row["device"], row["threads"]) for row in rows):
        network, device, threads = key
        lines += ["", f"**{network}, {f'{threads} thread(s)' if device == 'cpu' else device}**", ""]
        lines += ["| part | public, s | ours, s | public / ours | floor, s | ours / floor | n | largest differences |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for row in (row for row in rows if (row["network"], row["device"], row["threads"]) == key):
            differences = ", ".join(
                f"{name} {value:.1e}" + (f" (<= {row['tolerances'][name]:.0e})" if name in row["tolerances"] else "")
                for name, value in row["differences"].items()
            )
            cells = [
                row["title"],
                _time(row["public_s"]),
                _time(row["ours_s"]),
                _interval(row["ratio"]),
                _time(row["floor_s"]),
                _interval(row["over_floor"]),
                str(row["images"]),
                differences + ("" if row["agrees"] else " **DISAGREE**"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    used = result["environment"]
    where = f"{used['processor']}, {used['cores']} cores; {used['engine']}, torch {used['torch']}, grad-cam {used['grad-cam']}"
    gpu = used["cuda"] or "none here, so no CUDA table"
    return "\n".join(lines + ["", f"{where}; Python {used['python']}. GPU: {gpu}.", ""]).lstrip()


def run(
    subjects: Sequence[Subject],
    parts: Sequence[str],
    images: int,
    batch: int,
    score_images: int,
    checked: int,
    both: bool = True,
) -> Iterator[Row]:
    """Yield the rows of every part for each subject, on the current device and number of threads."""
    # TF32 has a mantissa of 10 bits. With it both sides would differ.
    exact = partial(torch.backends.cudnn.flags, enabled=True, allow_tf32=False)
    for each in subjects:
        with exact():
            floor = Floor(each)
        for part in parts:
            n = score_images if part == "scorecam" else images
            with exact():
                row = compare(each, floor, part, PARTS[part], n, batch, 0 if part == "scorecam" else checked, both)
            yield row


def report(rows: Sequence[Row], settings: dict) -> dict:
    """Return the content of benchmark.json."""
    return {
        "environment": environment(),
        "settings": settings,
        "rows": [dataclasses.asdict(row) | {"agrees": row.agrees} for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return 1 if the two sides disagree or memory grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="images timed per part (default 8)")
    parser.add_argument("--score-images", type=int, default=2, help="images timed for ScoreCAM (default 2)")
    parser.add_argument("--batch", type=int, default=4, help="images in a batch of our side (default 4)")
    parser.add_argument("--networks", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--devices", nargs="+", default=None, help="cpu, cuda (default: all that exist)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), help=f"any of {', '.join(PARTS)}")
    parser.add_argument(
        "--checked", type=int, default=2, help="images whose maps and Coherency are compared in float64 (default 2)"
    )
    parser.add_argument("--ours", action="store_true", help="only our side and the floor: minutes, not hours")
    parser.add_argument(
        "--memory", type=int, nargs="?", const=1000, help="only check memory, over this many explanations"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the results")
    chosen = parser.parse_args(arguments)
    keep_memory()
    fast_pointwise()
    try:
        for part in chosen.parts:
            one_of("part", part, PARTS)
        present = ["cpu"] + ["cuda"] * torch.cuda.is_available()
        devices = [str(device_of(device)) for device in chosen.devices or present]
        if not 1 <= chosen.score_images <= chosen.images or min(chosen.batch, chosen.checked, *chosen.threads) < 1:
            raise InputError(
                "--images, --batch, --checked and --threads must be at least 1, and --score-images at most --images"
            )
        if chosen.memory is not None:
            return _memory(chosen)
        settings = {key: value for key, value in vars(chosen).items() if key not in ("out", "memory")}
        rows: list[Row] = []
        for device, threads in [(d, n) for d in devices for n in (chosen.threads if d == "cpu" else [1])]:
            torch.set_num_threads(threads)
            subjects = [subject(name, chosen.images, device) for name in chosen.networks]
            counts = chosen.images, chosen.batch, chosen.score_images, chosen.checked
            for row in run(subjects, chosen.parts, *counts, not chosen.ours):
                rows.append(row)
                verdict = "" if chosen.ours else ", agrees" if row.agrees else ", DISAGREES"
                print(
                    f"{row.network}, {device}, {threads}: {row.title}: public / ours {_interval(row.ratio)}, "
                    f"ours / floor {_interval(row.over_floor)}{verdict}",
                    flush=True,
                )
                _write(report(rows, settings), chosen.out)  # a stopped run keeps what it has measured
    except InputError as error:
        parser.error(str(error))
    print("\n" + table(report(rows, settings)))
    return 0 if all(row.agrees for row in rows) else 1


def _write(result: dict, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "benchmark.md").write_text(table(result))


def _memory(chosen: argparse.Namespace) -> int:
    """Check memory on the first network and number of threads. Growth above 5 % is a failure."""
    torch.set_num_threads(chosen.threads[0])
    each = subject(chosen.networks[0], chosen.images)
    found = memory(each.model, each.inputs, each.layers, max(51, chosen.memory), 50)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "memory.json").write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{each.name}: {found['mb_at_mark']:.0f} MB after {found['mark']} explanations, "
        f"{found['mb_at_end']:.0f} MB after {found['explanations']}"
    )
    return 0 if found["mb_at_end"] <= 1.05 * found["mb_at_mark"] else 1


if __name__ == "__main__":
    sys.exit(main())
