"""Evaluate and refine class activation maps: the library behind the notebooks of arXiv 2605.14641."""

import importlib
import sys

import torch

__version__ = "0.1.0"


_declared: list[torch.library.Library] = []


def _import_torchvision() -> None:
    """Import torchvision also beside a CPU build of torch, where the compiled operators of PyPI's CUDA wheel can't load.

    Its import then stops at operators that only detection models use; declaring them, without a kernel, lets it pass.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)  # the declaration lives as long as this object
        importlib.import_module("torchvision")


_import_torchvision()
