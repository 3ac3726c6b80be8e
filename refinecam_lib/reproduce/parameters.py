"""The numbered notebooks and their parameters: defaults in the first cell, a profile's yaml, and `--set`."""

import ast
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from .. import paths
from ..errors import InputError, one_of

STANDARD = "standard"
"""The profile of the notebooks' own defaults. It has no yaml file."""
Values = dict[str, dict[str, object]]
"""Notebook -> parameter -> value."""


@dataclass(frozen=True)
class Notebook:
    """A numbered notebook: its path, its title (the H1), and its parameters' defaults and types."""

    path: Path
    title: str
    defaults: Mapping[str, object]
    types: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.path.stem


def cells_of(path: Path) -> list[dict]:
    """Return the cells of a notebook as in its JSON, each `source` as one text.

    Raises:
        InputError: the file is not a notebook of format 4.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells]
    except (ValueError, KeyError, TypeError) as error:  # importing nbformat takes more than a second
        problem = f"notebook {path.name} can't be read ({type(error).__name__}: {error})"
        raise InputError(f"{problem}. Open it in JupyterLab and save it again.") from error


def read_notebook(path: Path) -> Notebook:
    """Read a notebook's title and parameters.

    Raises:
        InputError: the first code cell is not the only one tagged `parameters`, or a default is not a literal.
    """
    cells = cells_of(path)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1 or tagged[0] is not code[0]:
        problem = f"notebook {path.name} has {len(tagged)} cells tagged 'parameters'"
        raise InputError(f"{problem}. Tag its first code cell, and no other.")
    try:
        lines = ast.parse(tagged[0]["source"]).body
    except SyntaxError as error:
        raise InputError(f"notebook {path.name}, line {error.lineno} of its parameters: {error.msg}") from error
    defaults: dict[str, object] = {}
    types = {}
    for line in lines:
        if isinstance(line, (ast.Assign, ast.AnnAssign)) and line.value is not None:
            annotated = isinstance(line, ast.AnnAssign)
            name = ast.unparse(line.target if annotated else line.targets[0])  # type: ignore[union-attr]
            try:
                defaults[name] = ast.literal_eval(line.value)
            except ValueError:
                raise InputError(f"notebook {path.name}, parameter {name}: its default is not a literal") from None
            types[name] = ast.unparse(line.annotation) if annotated else type(defaults[name]).__name__  # type: ignore[union-attr]
    titles = (line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"].splitlines())
    title = next((line[2:].strip() for line in titles if line.startswith("# ")), path.stem)
    return Notebook(path, title, defaults, types)


def find_notebooks(only: Sequence[str] = ()) -> list[Notebook]:
    """Return the notebooks `NN_name.ipynb` or `NNb_name.ipynb` in order.

    Args:
        only: numbers (`5`, `05`) or names; empty for all.

    Raises:
        InputError: there are no notebooks, or one of `only` is unknown.
    """
    found = {path.stem: path for path in sorted(paths.NOTEBOOKS.glob("[0-9][0-9]*_*.ipynb"))}
    if not found:
        raise InputError(
            f"No notebooks named NN_name.ipynb in {str(paths.NOTEBOOKS)!r}. "
            "Set REFINECAM_ROOT to a checkout of this project's repository."
        )
    wanted = set()
    for each in only:
        number = [name for name in found if name.partition("_")[0].lstrip("0") == each.lstrip("0")]
        wanted.update(number or [one_of("notebook", each, found)])
    return [read_notebook(path) for name, path in found.items() if not only or name in wanted]


def profiles() -> list[str]:
    """Return the names of the profiles: standard, and one per yaml file beside the notebooks."""
    return [STANDARD, *sorted({path.stem for path in paths.NOTEBOOKS.glob("*.yaml")} - {STANDARD})]


def chosen(profile: str, only: Sequence[str] = (), settings: Sequence[str] = ()) -> tuple[list[Notebook], Values]:
    """Return the notebooks of `only`, or else those of the profile, and their parameters. See `parameters`."""
    one_of("profile", profile, profiles())
    notebooks = find_notebooks(only or _read_yaml(profile)[0])
    return notebooks, parameters(notebooks, profile, settings)


def parameters(notebooks: Sequence[Notebook], profile: str, settings: Sequence[str] = ()) -> Values:
    """Return each notebook's parameters: its defaults, the profile's yaml (`all`, then its own section), the settings.

    Args:
        notebooks: whose parameters.
        profile: a name in `profiles()`.
        settings: `name=value` texts.

    Raises:
        InputError: a profile, notebook or parameter is unknown, or a value is not of its default's type.
    """
    one_of("profile", profile, profiles())
    every = {book.name: set(book.defaults) - {"profile"} for book in find_notebooks()}
    every["all"] = set().union(*every.values())
    overrides = _read_yaml(profile)[1]
    for section, values in overrides.items():
        one_of(f"section of {profile}.yaml", section, every)
        for name in values:
            one_of(f"parameter in {profile}.yaml, {section},", name, sorted(every[section]))
    given: dict[str, object] = {}
    allowed = sorted(set().union(*(every[book.name] for book in notebooks)))
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"Expected --set name=value, got {setting!r}.")
        given[one_of("parameter", name, allowed)] = text
    result = {}
    for book in notebooks:
        values = dict(book.defaults)
        for name, value in {**overrides.get("all", {}), **overrides.get(book.name, {}), **given}.items():
            if name in values:
                values[name] = typed(name, value, book.types[name], text=name in given)
        result[book.name] = values | ({"profile": profile} if "profile" in values else {})
    return result


def typed(name: str, value: object, kind: str, text: bool = False) -> object:
    """Convert a value to a parameter's type.

    Args:
        name: of the parameter.
        value: as in the yaml, or as typed on the command line.
        kind: `int`, `float`, `str`, `bool`, `list`, `list[str]`, `str | None` and the like.
        text: whether it was typed: `50`, `.5`, `true`, `a,b`. A file's path becomes absolute, because a notebook runs
            in a folder of its own.

    Raises:
        InputError: the value does not fit.
    """
    base = kind.replace("| None", "").strip().partition("[")[0]
    if "None" in kind and (value is None or (text and value == "None")):
        return None
    if text and base == "str":
        path = os.path.expanduser(str(value))
        value = os.path.abspath(path) if os.path.isfile(path) else value
    elif text:
        typed_in = str(value)
        try:
            value = ast.literal_eval(typed_in.title() if base == "bool" else typed_in)
        except (ValueError, SyntaxError):
            value = [part.strip() for part in typed_in.split(",")] if base == "list" else typed_in
        if base == "list" and not isinstance(value, list):
            value = list(value) if isinstance(value, tuple) else [value]
    if base == "float" and type(value) is int:
        value = float(value)
    accepted = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}.get(base, object)
    if not isinstance(value, accepted) or (base == "int" and isinstance(value, bool)):
        raise InputError(f"Expected a value of type {kind} for parameter {name}, got {value!r}.")
    return value


def _read_yaml(profile: str) -> tuple[list[str], Values]:
    """Read a profile's `only` (empty for all notebooks), and its sections. The standard profile has neither."""
    if profile == STANDARD:
        return [], {}
    path = paths.NOTEBOOKS / f"{profile}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is not yaml: {' '.join(str(error).split())}") from error
    content = {section: values or {} for section, values in content.items()} if isinstance(content, dict) else {"": ""}
    only = content.pop("only", [])
    if not isinstance(only, list) or not all(isinstance(values, dict) for values in content.values()):
        raise InputError(
            f"Expected in {path.name}: sections 'all' or a notebook's name with lines 'parameter: value', and 'only', "
            "a list of notebooks' numbers."
        )
    return [str(number) for number in only], content
