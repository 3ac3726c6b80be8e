"""Errors about bad input, and seeds that do not depend on batch, order or machine."""

import difflib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class InputError(ValueError):
    """Bad input. The message says what was expected, what was given and what to do."""


class Stopped(RuntimeError):
    """Work that stopped although its input is good. Finished parts are kept, and the same call resumes."""


def one_of(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return `name` if it is allowed. Otherwise raise InputError and suggest the nearest allowed name."""
    allowed = list(allowed)
    if name in allowed:
        return name
    near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown {kind} {name!r}.{hint} Allowed: {', '.join(allowed)}")


def folder(kind: str, path: str | Path) -> Path:
    """Return `path` as a Path. Raises InputError if it is not an existing folder."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise InputError(f"{kind}: {str(path)!r} is not a folder; give one that exists")
    return path


def images(inputs: "torch.Tensor") -> "torch.Tensor":
    """Return `inputs`. Raises InputError if it is not a finite float batch (B,C,H,W) of one image or more."""
    import torch  # not at the top: command lines check their arguments without torch

    if not isinstance(inputs, torch.Tensor):
        raise InputError(f"images of type {type(inputs).__name__}; allowed: a tensor or NumPy array (B, C, H, W)")
    if inputs.ndim != 4 or 0 in inputs.shape:
        raise InputError(f"images of shape {tuple(inputs.shape)}; allowed: (B, C, H, W), not empty")
    if not inputs.is_floating_point():
        raise InputError(f"images of type {inputs.dtype}; allowed: a floating type")
    if not bool(torch.isfinite(inputs).all()):
        raise InputError("images hold NaN or infinite values; allowed: finite values")
    return inputs


def seed_of(*parts: object) -> int:
    """Compute a 63-bit seed from any printable parts, such as seed_of(seed, image_id, step)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def rng(*parts: object) -> np.random.Generator:
    """Return a NumPy generator seeded by `seed_of(*parts)`."""
    return np.random.default_rng(seed_of(*parts))
