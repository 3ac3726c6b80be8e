"""What tells results apart: the columns that name a row, and the state of the code that it was computed from."""

import functools
import subprocess

from . import paths

KEYS = ["dataset", "image", "model", "method", "layer", "aggregate"]
"""The columns that name an explanation, and so a row."""


@functools.cache
def commit() -> str:
    """Return the commit computed from, `abc1234` or `abc1234-dirty`; `unknown` outside a git checkout.

    Changes under `figures/` don't make it dirty: they are what is computed, not what it is computed from.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "--short=7", "HEAD")
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)figures")
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
