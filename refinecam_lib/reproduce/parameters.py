"""The numbered notebooks and their parameters: defaults in the first cell, a profile's yaml, and settings by hand."""

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


@dataclass(frozen=True)
class Notebook:
    """A numbered notebook: its path, its title (the H1) and its parameters with their defaults."""

    path: Path
    title: str
    defaults: Mapping[str, object]
    types: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.path.stem


def cells_of(path: Path) -> list[dict]:
    """Return the cells of a notebook as its json has them, each `source` as one text.

    Raises:
        InputError: the file is not a notebook of format 4.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells]
    except (ValueError, KeyError, TypeError) as error:  # nbformat would do, but its import takes more than a second
        raise InputError(
            f"notebook {path.name} can't be read ({type(error).__name__}: {error}). Open it in JupyterLab and save it again."
        ) from error


def read_notebook(path: Path) -> Notebook:
    """Read a notebook's title and parameters; InputError if its first code cell isn't the one tagged `parameters`."""
    cells = cells_of(path)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1 or tagged[0] is not code[0]:
        raise InputError(
            f"notebook {path.name} has {len(tagged)} cells tagged 'parameters'; its first code cell alone must be"
        )
    defaults, types = {}, {}
    try:
        lines = ast.parse(tagged[0]["source"]).body
    except SyntaxError as error:
        raise InputError(f"notebook {path.name}, line {error.lineno} of its parameters: {error.msg}") from error
    for line in lines:
        if isinstance(line, (ast.Assign, ast.AnnAssign)) and line.value is not None:
            name = ast.unparse(line.target if isinstance(line, ast.AnnAssign) else line.targets[0])
            try:
                defaults[name] = ast.literal_eval(line.value)
            except ValueError:
                raise InputError(f"notebook {path.name}, parameter {name}; allowed: a literal as its default") from None
            types[name] = (
                ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) else type(defaults[name]).__name__
            )
    titles = (line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"].splitlines())
    title = next((line[2:].strip() for line in titles if line.startswith("# ")), path.stem)
    return Notebook(path, title, defaults, types)


def find_notebooks(only: Sequence[str] = ()) -> list[Notebook]:
    """Return the notebooks `NN_name.ipynb` or `NNb_name.ipynb` in order, or those of `only`: numbers (`5`, `05`) or names."""
    found = {path.stem: path for path in sorted(paths.NOTEBOOKS.glob("[0-9][0-9]*_*.ipynb"))}
    if not found:
        raise InputError(f"no notebooks named NN_name.ipynb in {str(paths.NOTEBOOKS)!r}")
    chosen = set()
    for wanted in only:
        number = [name for name in found if name.partition("_")[0].lstrip("0") == wanted.lstrip("0")]
        chosen.update(number or [one_of("notebook", wanted, found)])
    return [read_notebook(path) for name, path in found.items() if not only or name in chosen]


def profiles() -> list[str]:
    """Return the profiles' names: standard, the notebooks' own defaults, and one for each yaml file beside them."""
    return [STANDARD, *sorted({path.stem for path in paths.NOTEBOOKS.glob("*.yaml")} - {STANDARD})]


def only_of(profile: str) -> list[str]:
    """Return the numbers of the notebooks that a profile is for, its yaml's `only`; empty means all."""
    one_of("profile", profile, profiles())
    return [] if profile == STANDARD else _read_yaml(paths.NOTEBOOKS / f"{profile}.yaml")[0]


def chosen(
    profile: str, only: Sequence[str] = (), settings: Sequence[str] = ()
) -> tuple[list[Notebook], dict[str, dict[str, object]]]:
    """Return the notebooks of `only`, else those that the profile is for, and their parameters."""
    notebooks = find_notebooks(only or only_of(profile))
    return notebooks, parameters(notebooks, profile, settings)


def parameters(
    notebooks: Sequence[Notebook], profile: str, settings: Sequence[str] = ()
) -> dict[str, dict[str, object]]:
    """Return each notebook's parameters: its defaults, the profile's yaml (`all`, then its own), then `name=value`s.

    The standard profile has no yaml. Everything is checked before anything runs: InputError for an unknown profile, notebook or parameter, with the
    nearest valid name, and for a value that isn't of its default's type.
    """
    one_of("profile", profile, profiles())
    every = {book.name: set(book.defaults) - {"profile"} for book in find_notebooks()}
    every["all"] = set().union(*every.values())
    overrides = _read_yaml(paths.NOTEBOOKS / f"{profile}.yaml")[1] if profile != STANDARD else {}
    for section, values in overrides.items():
        one_of(f"section of {profile}.yaml", section, every)
        for name in values:
            one_of(f"parameter in {profile}.yaml, {section},", name, sorted(every[section]))
    given: dict[str, object] = {}
    allowed = sorted(set().union(*(every[book.name] for book in notebooks)))
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"setting {setting!r}; allowed: name=value")
        given[one_of("parameter", name, allowed)] = text
    result = {}
    for book in notebooks:
        values = dict(book.defaults)
        for name, value in {**overrides.get("all", {}), **overrides.get(book.name, {}), **given}.items():
            if name in values:
                values[name] = typed(name, value, book.types[name], text=name in given)
        if "profile" in values:
            values["profile"] = profile
        result[book.name] = values
    return result


def typed(name: str, value: object, kind: str, text: bool = False) -> object:
    """Return `value` as a parameter of type `kind`: `int`, `float`, `str`, `bool`, `list`, `list[str]`, `str | None`.

    With `text` the value was typed on the command line: `50`, `.5`, `true`, `a,b`, and a text that names a file here is
    made an absolute path, for a notebook runs in a folder of its own. InputError if it doesn't fit.
    """
    base = kind.replace("| None", "").strip().partition("[")[0]
    if "None" in kind and (value is None or (text and value == "None")):
        return None
    if text and base != "str":
        value = _parsed(str(value), base)
    elif text and os.path.isfile(os.path.expanduser(str(value))):
        value = os.path.abspath(os.path.expanduser(str(value)))
    if base == "float" and type(value) is int:
        value = float(value)
    accepted = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}.get(base, object)
    if not isinstance(value, accepted) or (base == "int" and isinstance(value, bool)):
        raise InputError(f"parameter {name} = {value!r}; allowed: a value of type {kind}")
    return value


def _parsed(text: str, base: str) -> object:
    try:
        value = ast.literal_eval(text.title() if base == "bool" else text)
    except (ValueError, SyntaxError):
        value = [part.strip() for part in text.split(",")] if base == "list" else text
    if base == "list" and not isinstance(value, list):
        value = list(value) if isinstance(value, tuple) else [value]
    return value


def _read_yaml(path: Path) -> tuple[list[str], dict[str, dict[str, object]]]:
    """A profile's `only`, and its sections."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is not yaml: {' '.join(str(error).split())}") from error
    content = {section: values or {} for section, values in content.items()} if isinstance(content, dict) else {"": ""}
    only = content.pop("only", [])
    if not isinstance(only, list) or not all(isinstance(values, dict) for values in content.values()):
        raise InputError(
            f"{path.name}; allowed: sections 'all' or a notebook's name, each with lines 'parameter: value', and 'only', "
            "a list of notebooks' numbers"
        )
    return [str(number) for number in only], content
