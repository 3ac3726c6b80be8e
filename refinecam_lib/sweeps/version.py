"""The columns that name a row, and a hash of the code that computed it."""

import ast
import functools
import hashlib
import importlib.util
from pathlib import Path

KEYS = ["dataset", "image", "model", "method", "layer", "aggregate"]
"""The columns that name an explanation, and so a row."""
MEASURES = "refinecam_lib.sweeps.measurements"
"""The module that measures rows."""


@functools.cache
def code_version() -> str:
    """Hash the source of every module that measuring a row imports.

    Comments and docstrings do not count. Modules that only draw, train or run notebooks do not count either.
    """
    sources = sources_of(MEASURES)
    return hashlib.sha256("\n".join(f"{name}\n{sources[name]}" for name in sorted(sources)).encode()).hexdigest()[:12]


def sources_of(module: str) -> dict[str, str]:
    """Return the code of a module and of all modules of this library that it imports, directly or not.

    Returns:
        Module name -> source without comments and docstrings.
    """
    waiting, sources = [module], {}
    while waiting:
        name = waiting.pop()
        found = importlib.util.find_spec(name)
        if name in sources or found is None or not found.origin:
            continue
        tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), found.parent or "")
                package = (importlib.util.find_spec(base) or found).submodule_search_locations
                waiting += [base, *(f"{base}.{alias.name}" for alias in node.names if package)]
            body = getattr(node, "body", None)
            if isinstance(body, list):
                kept = [p for p in body if not (isinstance(p, ast.Expr) and isinstance(p.value, ast.Constant))]
                node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
        sources[name] = ast.unparse(tree)
    return sources
