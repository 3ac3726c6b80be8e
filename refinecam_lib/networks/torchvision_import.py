"""Make PyPI's torchvision importable next to a CPU build of torch.

The wheel's operators are compiled for CUDA, and such a torch cannot load them. The import then stops at operators that
only detection models use. Declaring them without a kernel lets it pass.
"""

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_declared: list[object] = []


def _declaring(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Execute torchvision's module. If it misses its compiled operators, declare them and execute it again."""
    try:
        execute(module)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.startswith("torchvision.")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)  # the declaration lives as long as this object
        execute(module)


class _Torchvision(MetaPathFinder):
    """Takes part in the first import of torchvision only."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            spec.loader.exec_module = partial(_declaring, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Take part in the first import of torchvision."""
    sys.meta_path.insert(0, _Torchvision())
