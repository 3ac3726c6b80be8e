"""Clear refusals of bad input, and the seeds that make results independent of batch, order and machine."""

import difflib
import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch


class InputError(ValueError):
    """Bad input, said in one line: what was wrong, what was given, what is allowed."""


PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
"""The endings of files that are taken for pictures."""
UNREADABLE = (OSError, SyntaxError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is no whole picture; SyntaxError for broken png chunks, struct.error for Exif."""


def one_of(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return `name` if it is one of `allowed`, else raise InputError with the nearest valid name."""
    allowed = list(allowed)
    if name in allowed:
        return name
    near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown {kind} {name!r}.{hint} Allowed: {', '.join(allowed)}")


def folder(kind: str, path: str | Path) -> Path:
    """Return `path` as a Path if it is an existing folder, else raise InputError."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise InputError(f"{kind}: {str(path)!r} is not a folder; give one that exists")
    return path


def images(inputs: "torch.Tensor") -> "torch.Tensor":
    """Return `inputs` if it is a finite float batch (B,3,H,W) of one image or more, else raise InputError."""
    import torch  # not above: command lines that check their arguments need no torch

    if inputs.ndim != 4 or inputs.shape[1] != 3 or 0 in inputs.shape:
        raise InputError(f"images of shape {tuple(inputs.shape)}; allowed: (B, 3, H, W), not empty")
    if not inputs.is_floating_point():
        raise InputError(f"images of type {inputs.dtype}; allowed: a floating type")
    if not bool(torch.isfinite(inputs).all()):
        raise InputError("images hold NaN or infinite values; allowed: finite values")
    return inputs


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any printable parts, the same on every machine: seed_of(seed, image_id, method, step)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def rng(*parts: object) -> np.random.Generator:
    """A NumPy generator seeded by `seed_of(*parts)`."""
    return np.random.default_rng(seed_of(*parts))
