"""Checkpoints: a network's weights as fp16 safetensors, with a JSON card that says how they were made."""

import hashlib
import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from .. import paths
from ..errors import InputError

SHIPPED = ("synthetic", "birds", "scenes_objects", "scenes_badges")
"""The weights that files are shipped of: for the shapes, the birds, and the twins of the scenes."""


def checkpoint_path(name: str, weights: str = "synthetic") -> Path:
    """Return the path of a network's shipped weights, a name in SHIPPED."""
    return paths.CHECKPOINTS / (f"{name}.safetensors" if weights == "synthetic" else f"{name}_{weights}.safetensors")


def write_checkpoint(model: nn.Module, path: Path, card: dict) -> dict:
    """Write a network as fp16 safetensors with its card beside it. Return the card with the file's sha256 and size."""
    state = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in model.state_dict().items()}
    paths.write_whole(path, lambda part: safetensors.torch.save_file(state, part))
    card = card | {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    paths.write_whole(path.with_suffix(".json"), lambda part: part.write_text(json.dumps(card, indent=1) + "\n"))
    return card


def sha256_of(path: Path) -> str:
    """Compute the file's sha256 as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Read the tensors and the card of a checkpoint.

    Raises:
        InputError: A file is missing or damaged, or the sha256 differs from the card's.
    """
    card_path = path.with_suffix(".json")
    for file in (path, card_path):
        if not file.is_file():
            shipped = ", ".join(sorted(p.stem for p in paths.CHECKPOINTS.glob("*.safetensors"))) or "none"
            cure = "" if shipped != "none" else ". Set REFINECAM_ROOT to a checkout of this project's repository"
            raise InputError(f"no checkpoint file {str(file)!r}; shipped checkpoints: {shipped}{cure}")
    try:
        card = json.loads(card_path.read_text())
        expected = card["sha256"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"checkpoint card {card_path.name} is not a card: {error}; restore it from git") from error
    content = path.read_bytes()  # read once, because the file may be replaced meanwhile
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(f"checkpoint {path.name} has sha256 {found[:12]}..., its card says {expected[:12]}...")
    try:
        return safetensors.torch.load(content), card
    except safetensors.SafetensorError as error:
        raise InputError(f"checkpoint {path.name} is not a safetensors file: {error}") from error
