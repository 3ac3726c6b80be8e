"""The manifest of a run, `figures/<profile>/manifest.json`: each notebook's parameters, and a hash of each product."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .. import paths
from ..errors import InputError
from ..paths import commit

if TYPE_CHECKING:
    from .parameters import Notebook
    from .runner import Outcome

PACKAGES = ("torch", "torchvision", "timm", "captum", "numpy", "scipy", "pandas", "numba", "scikit-image", "papermill")
"""The packages whose versions the manifest notes."""


def read(folder: Path) -> dict:
    """Return the manifest of a folder of products; one without notebooks where there is none yet."""
    path = folder / "manifest.json"
    if not path.exists():
        return {"notebooks": {}}
    try:
        return {"notebooks": {}, **json.loads(path.read_text(encoding="utf-8"))}
    except json.JSONDecodeError as error:
        raise InputError(f"{paths.shown(path)} is not json ({error}). Delete it: a run makes it again.") from error


def write(folder: Path, manifest: Mapping) -> None:
    """Write the manifest of a folder of products in one step."""
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    paths.write_whole(folder / "manifest.json", lambda part: part.write_text(text, encoding="utf-8"))


def note(folder: Path, profile: str, book: "Notebook", values: Mapping[str, object], outcome: "Outcome") -> None:
    """Enter a notebook's outcome into the manifest; of a failed one only that it failed, and why."""
    manifest = read(folder)
    entry = manifest["notebooks"].get(book.name, {})
    if outcome.code:
        entry |= {"status": "failed", "error": outcome.error}
    else:
        for stale in set(entry.get("products", ())) - set(outcome.products):
            (folder / stale).unlink(missing_ok=True)
        hashes = {name: digest(folder / name) for name in outcome.products}
        entry = {"status": "done", "title": book.title, "seconds": outcome.seconds, "date": _now()}
        entry |= {"commit": commit(), "parameters": dict(values), "products": hashes}
    manifest["notebooks"][book.name] = entry
    manifest |= {"profile": profile, "date": _now(), "commit": commit(), "versions": versions()}
    write(folder, manifest)


def digest(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python, of the platform, of PACKAGES and of the engine of passes without gradients."""
    from ..networks.inference import engine_version  # not above: it imports torch

    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    found["engine"] = engine_version()
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
