"""codecheck.yml: which file shows which claim, and which command makes the file (CODECHECK, specification 2.0).

The manifests of the committed reference say which files there are. The person who checks adds name, summary, report and
certificate.
"""

from pathlib import Path

import yaml

from .. import paths
from .reference import command_of, read_manifest

SPECIFICATION = "https://codecheck.org.uk/spec/config/2.0/"
SHOWN = (".png", ".csv")
"""The kinds of files in the list. The others repeat a figure or table in another format."""


def path() -> Path:
    """Return where the file lies."""
    return paths.ROOT / "codecheck.yml"


def codecheck() -> str:
    """Return the text of codecheck.yml for the committed reference: one item per figure and table."""
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    (preprint,) = (each["value"] for each in citation["identifiers"] if each["value"].startswith("arXiv:"))
    paper = {
        "title": citation["title"],
        "authors": [{"name": author["family-names"]} for author in citation["authors"]],
        "reference": f"https://arxiv.org/abs/{preprint.removeprefix('arXiv:')}",
    }
    items = []
    for manifest in sorted(paths.REFERENCE.glob("*/manifest.json"), key=lambda path: path.parts, reverse=True):
        folder = manifest.parent
        for name, entry in sorted(read_manifest(folder)["notebooks"].items()):
            command = command_of(folder.name, [name.partition("_")[0]])
            for product in sorted(file for file in entry["products"] if file.endswith(SHOWN)):
                file = (folder / product).relative_to(paths.ROOT).as_posix()
                items.append({"file": file, "comment": entry["title"], "command": command})
    content = {"version": SPECIFICATION, "paper": paper, "manifest": items}
    return yaml.safe_dump(content, sort_keys=False, explicit_start=True, allow_unicode=True, width=1000)


def write() -> None:
    """Write codecheck.yml, if the reference is the checkout's."""
    if not paths.REFERENCE.is_relative_to(paths.ROOT):
        return
    paths.write_whole(path(), lambda part: part.write_text(codecheck(), encoding="utf-8"))


def outdated() -> list[str]:
    """Return one message if codecheck.yml is not the one of the committed reference."""
    if not paths.REFERENCE.is_relative_to(paths.ROOT):
        return []
    if path().exists() and path().read_text(encoding="utf-8") == codecheck():
        return []
    command = "python -m refinecam_lib.reproduce codecheck"
    return [f"Expected {paths.shown(path())} to list the files of the reference, but it does not. Write it: {command}."]
