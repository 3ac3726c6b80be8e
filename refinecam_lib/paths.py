"""Where data, results, figures and notebooks are, how a file is written, and the commit."""

import errno
import functools
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

from .errors import InputError

VARIABLES: list[str] = []
"""The environment variables that move these folders."""


def _place(variable: str, usual: Path) -> Path:
    """Return an absolute folder, because a notebook runs in a folder of its own."""
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
"""The paper's printed numbers as csv."""
REFERENCE = _place("REFINECAM_REFERENCE", ROOT / "figures" / "reference")
"""This project's committed results, one folder per profile. They stay in the checkout when FIGURES is elsewhere."""
FRESH = "REFINECAM_FRESH"
"""The environment variable that makes sweeps ignore committed rows."""


def writable(folder: Path) -> Path:
    """Make a folder if it is missing, and return it. Raises InputError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
    except OSError as error:
        raise InputError(unwritable(error)) from error
    return folder


def unwritable(error: OSError) -> str:
    """Return the message for a failed write."""
    return (
        f"{str(error.filename)!r} cannot be written: {error.strerror}. REFINECAM_FIGURES moves figures and tables to another "
        "folder, REFINECAM_RESULTS moves rows."
    )


def shown(path: Path) -> str:
    """Return a path for messages, relative to the checkout if it lies inside."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def write_whole(path: Path, save: Callable[[Path], object], synced: bool = True) -> None:
    """Call `save` on a temporary path, then move the file into place. A kill leaves the old file or the new one.

    synced: Also survive a power cut. It costs some milliseconds per file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # unique, also across machines
    try:
        save(part)
        part.chmod(0o644)  # safetensors lets only the owner read
        if synced:
            with part.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@functools.cache
def commit() -> str:
    """Return the current commit, `abc1234` or `abc1234-dirty`, or `unknown` outside a git checkout.

    Changes in figures/ and data/rows/ do not count as dirty, because they are results.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "--short=7", "HEAD")
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    outputs = (":(exclude)figures", ":(exclude)data/rows")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *outputs)
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
