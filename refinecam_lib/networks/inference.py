"""Forward passes without gradients: by OpenVINO where it is installed, else by torch.

>>> logits = forward(model, inputs)              # (B,K), as of model(inputs) in evaluation mode

The extra `fast` installs OpenVINO. It computes in float32 as torch does, up to 1.5 times as fast.
REFINECAM_ENGINE=torch switches it off. Each network is converted once, which takes 5 to 30 seconds. The result is kept
under data/results/converted, by a hash of the network's weights and structure.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import paths
from ..errors import InputError, one_of
from .classifier import Classifier, checked_logits
from .convert import compiled, convert, core
from .layers import evaluating
from .memory import keeps

if TYPE_CHECKING:
    import openvino

VARIABLE = "REFINECAM_ENGINE"
ENGINES = ("torch", "openvino")
LARGE = 500_000
"""Networks with fewer parameters run in torch. Converting them would take longer than running them."""
AGREES = 1e-3
"""The largest difference from torch's logits, as a share of the largest logit. Networks that differ more run in torch."""


def engine() -> str:
    """Return REFINECAM_ENGINE; by default openvino if it is installed and the processor is x86-64, else torch.

    Raises:
        InputError: The name is unknown, or the engine is not installed.
    """
    chosen = os.environ.get(VARIABLE)
    wanted = one_of(VARIABLE, chosen or "openvino", ENGINES)
    installed = importlib.util.find_spec(wanted) is not None
    if not chosen:
        return wanted if installed and platform.machine() in ("x86_64", "AMD64") else "torch"
    if not installed:
        raise InputError(
            f"{VARIABLE}={wanted} needs the package {wanted}, which is not installed. Install it with "
            "pip install -e '.[fast]', or unset the variable."
        )
    return wanted


def engine_version() -> str:
    """Return the engine with its version, for a manifest."""
    return f"{engine()} {importlib.metadata.version(engine())}"


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute a classifier's outputs in evaluation mode and without gradients.

    Args:
        model: Classifier (B,C,H,W) -> (B,K), or another output; it comes back unchanged. Torch runs networks that are
            small, on a GPU, have hooks or another type than float32. It also runs those that cannot be converted; one
            line says so. Weights changed in place are noticed, but not through `tensor.data`.
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
    compiled_for: dict[int, "openvino.CompiledModel"] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, inputs: Tensor) -> Tensor:
        with self.lock:
            threads = torch.get_num_threads()
            if threads not in self.compiled_for:
                with _making:
                    self.compiled_for[threads] = compiled(self.graph, threads)
            found = self.compiled_for[threads](inputs.detach().permute(0, 2, 3, 1).contiguous().numpy())
            return torch.from_numpy(found[0].copy())


_known: "WeakKeyDictionary[nn.Module, dict[tuple, tuple[tuple, _Fast | None]]]" = WeakKeyDictionary()
"""Model -> size of the images -> the state of its weights, and the network converted from them."""
_making = threading.RLock()
"""OpenVINO compiles one network at a time."""


def _converted(model: nn.Module, inputs: Tensor) -> _Fast | None:
    """Return the converted network, from this process, from disk, or made now; None where torch computes."""
    if engine() == "torch":
        return None
    tensors = [*model.parameters(), *model.buffers()]
    numbers = [inputs, *(t for t in tensors if t.is_floating_point())]
    ours = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in numbers)
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if not ours or hooks or not len(inputs) or any(map(Tensor.is_inference, tensors)):
        return None
    if sum(t.numel() for t in tensors) < LARGE:
        return None
    size, weights = tuple(inputs.shape[1:]), tuple((t.data_ptr(), t._version) for t in tensors)
    with _making:
        known = _known.setdefault(model, {})
        if known.get(size, (None, None))[0] != weights:  # new, or its weights have changed
            known[size] = weights, _stored_or_made(model, inputs)
        return known[size][1]


def _stored_or_made(model: nn.Module, inputs: Tensor) -> _Fast | None:
    """Return the network from disk, else converted now; None, and one line, if that fails.

    A network whose output is no tensor runs in torch without a line.
    """
    folder = paths.RESULTS / "converted" / _key(model, inputs)
    few = inputs[torch.arange(3) % len(inputs)].detach().contiguous(memory_format=torch.channels_last)
    with evaluating(model):
        wanted = model(few)
    if not isinstance(wanted, Tensor):
        return None
    try:
        with contextlib.suppress(RuntimeError):  # not stored, damaged, or another network's
            return _read(folder, few[:1], wanted[:1])
        shutil.rmtree(folder, ignore_errors=True)
        convert(model, few, folder)
        return _read(folder, few, wanted)
    except Exception as error:  # noqa: BLE001 - tracing and code generation raise many kinds, and all mean the same
        reason = " ".join(str(error).split())[:120]
        print(f"{type(model).__name__} runs in torch, because OpenVINO cannot take it: {reason}", file=sys.stderr)
        return None


def _read(folder: Path, few: Tensor, wanted: Tensor) -> _Fast:
    """Read a converted network; raises RuntimeError unless it gives the wanted outputs for all `few` images and for the first."""
    fast = _Fast(core().read_model(folder / "network.xml"))
    limit = AGREES * wanted.abs().max()
    for n in {1, len(few)}:
        found = fast(few[:n])
        if found.shape != wanted[:n].shape or not (found - wanted[:n]).abs().max() <= limit:
            raise RuntimeError("its outputs are not torch's")
    return fast


def _key(model: nn.Module, inputs: Tensor) -> str:
    digest = hashlib.sha256(f"{engine_version()} {torch.__version__} {tuple(inputs.shape[1:])} {model}".encode())
    for name, tensor in model.state_dict(keep_vars=True).items():
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def forward_chunk(device: torch.device) -> int:
    """Images in one forward of many: many on a GPU, where each kernel has a price; few where memory is mapped anew."""
    return 256 if device.type != "cpu" else 32 if keeps() else 8
