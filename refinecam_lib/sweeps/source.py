"""Hash functions of yours, so that rows of an edited function are never taken for those of the new one."""

import functools
import hashlib
import sys
import sysconfig
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import torch

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def source_of(*values: object) -> str:
    """Hash values with all they refer to: code, defaults, closures, and global names outside installed packages.

    Returns:
        16 hexadecimal digits, or "" without values. Comments do not count.
    """
    text = repr([_described(value, ()) for value in values])
    return hashlib.sha256(text.encode()).hexdigest()[:16] if values else ""


def _described(value: object, around: tuple[int, ...]) -> object:
    """Return plain values that are equal in every process if and only if the value works alike."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in around:
        return "recursion"
    around = (*around, id(value))
    if isinstance(value, torch.Tensor | np.ndarray):
        array = value.detach().cpu().reshape(-1).view(torch.uint8).numpy() if isinstance(value, torch.Tensor) else value
        return str(value.dtype), tuple(value.shape), hashlib.sha256(array.tobytes()).hexdigest()
    if isinstance(value, list | tuple):
        return [_described(each, around) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_described(each, around)) for each in value)
    if isinstance(value, dict):
        return sorted((repr(_described(k, around)), repr(_described(v, around))) for k, v in value.items())
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, functools.partial):
        return _described((value.func, value.args, value.keywords), around)
    if isinstance(value, MethodType):
        return _described((value.__func__, value.__self__), around)
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if isinstance(value, FunctionType):
        return name if installed(value.__module__) else (_code(value.__code__), _reached(value, around))
    if isinstance(value, type):
        if installed(value.__module__):
            return name
        members = {key: each for key, each in vars(value).items() if key not in ("__dict__", "__weakref__", "__doc__")}
        return _described((members, value.__bases__), around)
    if isinstance(value, property | classmethod | staticmethod):
        return _described([getattr(value, part, None) for part in ("fget", "__func__")], around)
    return _described((type(value), getattr(value, "__dict__", {})), around)


def installed(module: str) -> bool:
    """Return whether a module belongs to this library, to Python or to an installed package."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    packaged = file.startswith(_INSTALLED) or not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return module.partition(".")[0] in ("refinecam_lib", "builtins") or (module != "__main__" and packaged)


def _code(code: CodeType) -> object:
    constants = [_code(each) if isinstance(each, CodeType) else _described(each, ()) for each in code.co_consts]
    return code.co_code.hex(), code.co_names, constants


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _reached(function: FunctionType, around: tuple[int, ...]) -> object:
    """Describe what a function refers to: defaults, closures, global names and attributes of your own modules."""
    names = sorted(_names(function.__code__))
    globals_ = {name: function.__globals__[name] for name in names if name in function.__globals__}
    modules = [each for each in globals_.values() if isinstance(each, ModuleType) and not installed(each.__name__)]
    inside = [vars(module)[name] for module in modules for name in names if name in vars(module)]
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return _described((function.__defaults__, function.__kwdefaults__, cells, globals_, inside), around)
