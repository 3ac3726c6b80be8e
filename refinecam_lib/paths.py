"""Where data, results, figures and notebooks are, each moved by an environment variable; and how a file is written."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

VARIABLES: list[str] = []
"""The environment variables that move these folders."""


def _place(variable: str, usual: Path) -> Path:
    """Absolute, for a notebook runs in a folder of its own."""
    VARIABLES.append(variable)
    return Path(os.environ.get(variable) or usual).expanduser().absolute()


ROOT = _place("REFINECAM_ROOT", Path(__file__).resolve().parent.parent)
DATA = _place("REFINECAM_DATA", ROOT / "data")
CHECKPOINTS = _place("REFINECAM_CHECKPOINTS", DATA / "checkpoints")
RESULTS = _place("REFINECAM_RESULTS", DATA / "results")
ROWS = _place("REFINECAM_ROWS", DATA / "rows")
"""Committed measurements."""
FIGURES = _place("REFINECAM_FIGURES", ROOT / "figures")
NOTEBOOKS = _place("REFINECAM_NOTEBOOKS", ROOT / "notebooks")
PAPER = DATA / "reference"
"""The paper's printed numbers, as csv."""
REFERENCE = FIGURES / "reference"
"""The committed results of this project, one folder a profile."""
FRESH = "REFINECAM_FRESH"
"""The environment variable by which the runner has sweeps ignore committed rows."""


def shown(path: Path) -> str:
    """A path for people: relative to the checkout where it lies in it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def write_whole(path: Path, save: Callable[[Path], object], synced: bool = True) -> None:
    """Let `save(path)` write beside the file, then put it in place: a kill leaves the old file or the new one.

    synced: so does a power cut; where many small files can be made again, some ms each are better saved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # of this writer alone, on whatever machine
    try:
        save(part)
        part.chmod(0o644)  # safetensors leaves it to its owner alone
        if synced:
            with part.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
