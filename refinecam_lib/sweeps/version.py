"""What tells results apart: the columns that name a row, and the state of the code that it was computed from."""

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
    """Return a hash of the source of every module that measuring a row passes through.

    Comments and docstrings don't count, nor do modules that only draw, train or run notebooks.
    """
    sources = sources_of(MEASURES)
    return hashlib.sha256("\n".join(f"{name}\n{sources[name]}" for name in sorted(sources)).encode()).hexdigest()[:12]


def sources_of(module: str) -> dict[str, str]:
    """The code of a module and of all modules of this library that it imports, by name, without comments and docstrings."""
    waiting, sources = [module], {}
    while waiting:
        name = waiting.pop()
        found = importlib.util.find_spec(name)
        if name in sources or found is None or not found.origin:
            continue
        tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
        waiting += [each for node in ast.walk(tree) for each in _imports(node, found.parent or "")]
        sources[name] = ast.unparse(_without_docstrings(tree))
    return sources


def _imports(node: ast.AST, package: str) -> list[str]:
    """The modules of this library that an import statement may name."""
    if not isinstance(node, ast.ImportFrom) or not node.level:
        return []
    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name for name in (base, *names) if importlib.util.find_spec(name)] if not node.module else [base]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree
