"""Convert a network for OpenVINO in a process of its own: python -m refinecam_lib.networks.convert FOLDER.

OpenVINO's converter has crashed. Here a crash ends the conversion only. The caller reads the stored result.
"""

import os
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from torch import Tensor, nn

from .layers import in_evaluation_mode

if TYPE_CHECKING:
    import openvino

MINUTES = 10
"""A conversion that takes longer is stopped."""


@cache
def core() -> "openvino.Core":
    """Return this process's OpenVINO."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else OpenVINO reports each conversion
    import openvino

    made = openvino.Core()
    made.set_property({"ENABLE_MMAP": False})  # weights are ours then, whatever becomes of the file
    return made


def compiled(graph: "openvino.Model", threads: int) -> "openvino.CompiledModel":
    """Compile a network for float32 on so many threads."""
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # otherwise every worker of a sweep runs on the first core
    }
    return core().compile_model(graph, "CPU", settings)


def convert(model: nn.Module, few: Tensor, folder: Path) -> None:
    """Store the network, for any number of images of this size, as network.xml in `folder`.

    One process converts at a time. The others wait, because workers of a sweep want the same network at once.

    Args:
        model: Network in float32 on the CPU.
        few: Images (B,C,H,W), two or more.
        folder: Where to store it. A folder that exists is left alone.

    Raises:
        Exception: Of any kind, because tracing and code generation raise many. torch.export refuses networks that fit
            one number of images only.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / ".lock"), tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as part:
        if folder.is_dir():  # another process was first
            return
        with torch.no_grad(), in_evaluation_mode(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing tells of Python values that are the same for every image
            any_number = ({0: torch.export.Dim("n", min=1)},)
            program = torch.export.export(model, (few.contiguous(),), dynamic_shapes=any_number)
            torch.export.save(program, Path(part, "program.pt2"))
        command = [sys.executable, "-m", __name__, part]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        try:
            done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=60 * MINUTES)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the conversion took more than {MINUTES} minutes") from None
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise RuntimeError(f"the conversion ended with status {done.returncode}. {last}")
        Path(part, "network").rename(folder)


def main(part: Path) -> None:
    """Convert the program in a folder and run it once: a network that crashes OpenVINO crashes here."""
    core()
    import openvino

    program = torch.export.load(part / "program.pt2")
    few, graph = program.example_inputs[0][0], openvino.convert_model(program)
    graph.reshape([-1, *few.shape[1:]])
    steps = openvino.preprocess.PrePostProcessor(graph)
    steps.input().tensor().set_layout(openvino.Layout("NHWC"))  # torch's channels-last order
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    stored = part / "network" / "network.xml"
    openvino.save_model(steps.build(), stored, compress_to_fp16=False)
    compiled(core().read_model(stored), 1)(few.permute(0, 2, 3, 1).numpy())
    os._exit(0)  # without the converter's clean-up, which may crash after the work is done


if __name__ == "__main__":
    main(Path(sys.argv[1]))
