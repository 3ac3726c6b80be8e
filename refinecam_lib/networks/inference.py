"""Forward passes without gradients: by torch or, on request, by OpenVINO.

>>> logits = forward(model, inputs)              # (B,K), as of model(inputs) in evaluation mode

REFINECAM_ENGINE=openvino, with the extra `fast` installed, computes in float32 as torch does, up to twice as fast. It is
on trial: a process that has converted many networks crashed in OpenVINO twice. A network is converted once and kept
under data/results/converted, by a hash of its weights and structure.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import threading
import uuid
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import paths
from ..errors import InputError, one_of
from .classifier import Classifier, checked_logits
from .layers import evaluating, in_evaluation_mode
from .memory import keeps

if TYPE_CHECKING:
    import openvino

VARIABLE = "REFINECAM_ENGINE"
ENGINES = ("torch", "openvino")
AGREES = 1e-3
"""Probabilities of a converted network and of torch differ by less, or torch is used: then it is another network."""


def engine() -> str:
    """Return REFINECAM_ENGINE, torch by default; raises InputError for another name, and where it is not installed."""
    wanted = one_of(VARIABLE, os.environ.get(VARIABLE) or "torch", ENGINES)
    if importlib.util.find_spec(wanted) is None:
        raise InputError(
            f"{VARIABLE}={wanted} needs the package {wanted}, which is not installed. Install it with "
            "pip install -e '.[fast]', or unset the variable."
        )
    return wanted


def engine_version() -> str:
    """The engine with its version, for a manifest."""
    return f"{engine()} {importlib.metadata.version(engine())}"


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute a classifier's outputs in evaluation mode and without gradients.

    Args:
        model: Classifier (B,C,H,W) -> (B,K), or another output; it comes back unchanged. Networks with hooks, in another type than
            float32 or on a GPU run in torch, as do those that cannot be converted, of which one line says so.
            Weights changed in place are noticed, but not through `tensor.data`.
        inputs: Normalised images (B,C,H,W).

    Returns:
        Logits (B,K) with K >= 2, on the device of the inputs, see `classifier.Classifier`.
    """
    classifier = model if isinstance(model, Classifier) else Classifier(model)
    with torch.no_grad():
        if (fast := _converted(classifier.network, inputs)) is not None:
            return checked_logits(classifier.logits_of(fast(inputs)), len(inputs))
        with evaluating(classifier.network):
            return classifier(inputs.contiguous(memory_format=torch.channels_last))


@dataclass
class _Fast:
    """A converted network: compiled for each number of threads; calls wait for each other."""

    graph: "openvino.Model"
    compiled: dict[int, "openvino.CompiledModel"] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, inputs: Tensor) -> Tensor:
        with self.lock:
            threads = torch.get_num_threads()
            if threads not in self.compiled:
                self.compiled[threads] = _compile(self.graph, threads)
            found = self.compiled[threads](inputs.detach().permute(0, 2, 3, 1).contiguous().numpy())
            return torch.from_numpy(found[0].copy())


def _compile(graph: "openvino.Model", threads: int) -> "openvino.CompiledModel":
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    return _core().compile_model(graph, "CPU", settings)


def _openvino() -> ModuleType:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else OpenVINO reports each conversion
    return importlib.import_module("openvino")


@cache
def _core() -> "openvino.Core":
    core = _openvino().Core()
    core.set_property({"ENABLE_MMAP": False})  # weights are ours then, whatever becomes of the file
    return core


_known: "WeakKeyDictionary[nn.Module, dict[tuple, tuple[tuple, _Fast | None]]]" = WeakKeyDictionary()
"""Model -> size of the images -> the state of its weights, and the network converted from them."""
_making = threading.Lock()


def _converted(model: nn.Module, inputs: Tensor) -> _Fast | None:
    """The converted network, from this process, from disk, or made now; None where torch computes."""
    if engine() == "torch":
        return None
    tensors = [*model.parameters(), *model.buffers()]
    numbers = [inputs, *(t for t in tensors if t.is_floating_point())]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in numbers) or any(
        map(Tensor.is_inference, tensors)
    ):
        return None
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if hooks or not len(inputs):
        return None
    size, weights = tuple(inputs.shape[1:]), tuple((t.data_ptr(), t._version) for t in tensors)
    with _making:
        known = _known.setdefault(model, {})
        if known.get(size, (None, None))[0] != weights:  # new, or its weights have changed
            known[size] = weights, _checked(model, inputs)
        return known[size][1]


def _checked(model: nn.Module, inputs: Tensor) -> _Fast | None:
    """The network from disk or converted now, if it agrees with torch on one and on three of the inputs."""
    few = inputs[torch.arange(3) % len(inputs)].detach()
    with evaluating(model):
        wanted = model(few.contiguous(memory_format=torch.channels_last))
    if not isinstance(wanted, Tensor) or wanted.ndim != 2:
        return None
    wanted = wanted.softmax(1)
    folder = paths.RESULTS / "converted" / _key(model, inputs)
    reason = "its outputs are not torch's"
    for stored in (folder.is_dir(), False):
        try:
            if not stored:
                _convert(model, few, folder)
            fast = _Fast(_core().read_model(folder / "network.xml"))
            if all(_same(fast(few[:n]).softmax(1), wanted[:n]) for n in (3, 1)):
                return fast
        except Exception as error:  # noqa: BLE001 - of many kinds, from tracing to code generation, and all mean the same
            reason = " ".join(str(error).split())[:120]
        if not stored:
            break
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{type(model).__name__} runs in torch, for OpenVINO cannot take it: {reason}", file=sys.stderr)
    return None


def _same(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=AGREES, equal_nan=True)


def _key(model: nn.Module, inputs: Tensor) -> str:
    digest = hashlib.sha256(f"{engine_version()} {torch.__version__} {tuple(inputs.shape[1:])} {model}".encode())
    for name, tensor in model.state_dict(keep_vars=True).items():
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _convert(model: nn.Module, few: Tensor, folder: Path) -> None:
    """Convert the network for any number of images of this size, read in torch's channels-last order, and store it.

    Raises where the number of images is part of the network: torch.export refuses such a one.
    """
    openvino = _openvino()
    with in_evaluation_mode(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing tells of Python values that are the same for every image
        any_number = ({0: torch.export.Dim("n", min=1)},)
        graph = openvino.convert_model(torch.export.export(model, (few.contiguous(),), dynamic_shapes=any_number))
    graph.reshape([-1, *few.shape[1:]])
    steps = openvino.preprocess.PrePostProcessor(graph)
    steps.input().tensor().set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        openvino.save_model(steps.build(), part / "network.xml", compress_to_fp16=False)
        with contextlib.suppress(OSError):  # another process was first
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def forward_chunk(device: torch.device) -> int:
    """Images in one forward of many: many on a GPU, where each kernel has a price; few where memory is mapped anew."""
    return 256 if device.type != "cpu" else 32 if keeps() else 8
