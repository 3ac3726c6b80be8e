"""Photographs: ImageNet's validation images, Imagenette, anyone's folder of images, and the pictures in scikit-image.

>>> samples = photographs("imagenet", 100, transform_of(spec_of("resnet18")))
"""

import csv
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import scipy.io
import torch
from PIL import Image, ImageOps

from .. import paths
from ..errors import InputError, folder, one_of, rng
from .sample import PICTURES, PREDICTED, UNREADABLE, Sample

BUNDLED = ("chelsea", "coffee", "rocket", "camera")
"""Pictures that scikit-image installs; credits are in data/README.md."""
ROOTS = {"imagenet": "IMAGENET_ROOT", "folder": "IMAGES_ROOT"}
"""Source -> the environment variable that names its folder."""


@dataclass(frozen=True)
class Photograph:
    """A file, its ImageNet class or PREDICTED, and its name among the source's files.

    path: None where only its committed listing is here; known: then the hash of the file's bytes.
    """

    path: Path | None
    target: int
    name: str
    known: str = ""

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the file's sha256."""
        return self.known or _digest(self.path, self.path.stat().st_mtime_ns)  # type: ignore[union-attr,arg-type]


@cache
def _digest(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Photographs:
    """A sequence of Samples read from files when they are asked for, each through `transform`: image -> (3,H,W).

    upright: turn each as its camera noted it, which ImageNet's pictures are never.
    """

    files: tuple[Photograph, ...]
    transform: Callable[[Image.Image], torch.Tensor]
    upright: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def id_of(self, index: int) -> str:
        """The name of photograph `index` and the hash of its file."""
        return f"{self.files[index].name}@{self.files[index].digest}"

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        if file.path is None:
            raise InputError(
                f"photograph {file.name!r} is not here, only its committed rows are. Set "
                f"{ROOTS['imagenet']} to the folder with the pictures"
            )
        try:
            with Image.open(file.path) as opened:
                turned = ImageOps.exif_transpose(opened) if self.upright else opened
                image = self.transform(rgb(turned))
        except UNREADABLE as error:
            raise InputError(f"photograph {file.name!r} is not a readable picture: {error}") from error
        return Sample(image, file.target, file.name, info={"file": file.digest})


def rgb(picture: Image.Image) -> Image.Image:
    """In RGB; OSError for 16 bits or floats a channel, which Pillow would cut off at 255 without a word."""
    if picture.mode[0] in "IF":
        raise OSError(f"its pixels are of Pillow's mode {picture.mode!r}; allowed: 8 bits a channel")
    return picture.convert("RGB")


def photographs(source: str, n: int, transform: Callable[[Image.Image], torch.Tensor], seed: int = 0) -> Photographs:
    """The first n photographs of a source in an order drawn by `seed`, so that a smaller n is part of a larger one.

    source: "imagenet" (the folder IMAGENET_ROOT: ILSVRC's validation images with its devkit or LOC_val_solution.csv,
    one folder a wnid, or files whose names begin with a wnid), "imagenette" (downloaded once, by torchvision),
    "folder" (the folder IMAGES_ROOT, any images) or "bundled"; the class explained is the network's prediction in both.
    Raises InputError for an unknown source, a folder that isn't one or has too few images, and an unknown label.
    """
    one_of("source of photographs", source, SOURCES)
    if listed := not available(source) and _listing(source).exists():
        files: Sequence[Photograph] = _listed(source)
    else:
        files = file_list(source)
    if not 1 <= n <= len(files):
        there = f"committed; set {ROOTS[source]} for others" if listed else "as many as there are"
        raise InputError(f"n = {n} photographs of {source!r}; allowed: 1..{len(files)}, {there}")
    if listed and seed:
        raise InputError(f"seed = {seed} draws other photographs than the committed ones. Set {ROOTS[source]}")
    if listed:
        return Photographs(tuple(files[:n]), transform)
    order = rng("photographs", source, seed).permutation(len(files)) if source != "bundled" else range(n)
    return Photographs(tuple(files[i] for i in order[:n]), transform, upright=source == "folder")


def _listing(source: str) -> Path:
    """The committed list of the photographs whose rows are committed, in their order: names, classes, hashes."""
    return paths.ROWS / f"photographs-{source}.csv"


def _listed(source: str) -> list[Photograph]:
    with _listing(source).open(newline="") as file:
        return [Photograph(None, int(row["target"]), row["image"], row["file"]) for row in csv.DictReader(file)]


def available(dataset: str) -> bool:
    """Whether a data set's images are here: of photographs only a listing may be."""
    return dataset not in ROOTS or bool(os.environ.get(ROOTS[dataset]))


def write_listing(source: str, ids: Sequence[str]) -> Path | None:
    """Write the list of a source's first photographs, by `Photographs.id_of`; None where it has no folder to miss."""
    if source not in ROOTS or not available(source):
        return None
    targets = {file.name: file.target for file in file_list(source)}
    lines = [f"{name},{digest},{targets[name]}" for name, _, digest in (each.rpartition("@") for each in ids)]
    paths.write_whole(_listing(source), lambda part: part.write_text("\n".join(["image,file,target", *lines]) + "\n"))
    return _listing(source)


def file_list(source: str) -> Sequence[Photograph]:
    """All photographs of a source, in the order of their names; InputError where its folder is missing or unusable."""
    if source not in ROOTS:
        return SOURCES[source](paths.DATA / source)
    variable = ROOTS[source]
    root = os.environ.get(variable)
    if not root:
        raise InputError(f"source {source!r} needs the environment variable {variable}, the folder with the images")
    return _read(source, folder(variable, root).resolve())


@lru_cache(maxsize=4)
def _read(source: str, root: Path) -> Sequence[Photograph]:
    found = SOURCES[source](root)
    if not found:
        raise InputError(f"{ROOTS[source]}: no image in {str(root)!r}; allowed: {', '.join(sorted(PICTURES))}")
    return found


def _images(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())


@lru_cache
def wnids() -> dict[str, int]:
    """WordNet id -> class index of ImageNet's 1000 classes."""
    from timm.data import ImageNetInfo

    return {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def class_name(index: int) -> str:
    """The English name of an ImageNet class: its first synonym."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").index_to_description(index).split(",")[0]


def _imagenet(root: Path) -> tuple[Photograph, ...]:
    labels, files = _official_labels(root), []
    for path in _images(root):
        if labels and path.stem not in labels:  # training images, say
            continue
        names = [labels.get(path.stem, ""), path.name[:9], path.parent.name]
        wnid = next((name for name in names if name in wnids()), None)
        if wnid is None:
            raise InputError(
                f"{ROOTS['imagenet']}: the class of {path.name!r} is not known; allowed: validation images with their "
                "devkit or LOC_val_solution.csv, folders named by wnid, or file names that begin with one"
            )
        name = path.relative_to(root).with_suffix("").as_posix()  # unique, where stems need not be
        files.append(Photograph(path, wnids()[wnid], name))
    return tuple(files)


def _official_labels(root: Path) -> dict[str, str]:
    """File stem -> wnid, of the official devkit's list or of Kaggle's, wherever it lies in the folder."""
    from scipy.io.matlab import MatReadError

    readers = {"LOC_val_solution.csv": _kaggle, "ILSVRC2012_validation_ground_truth.txt": _devkit}
    for name, read in readers.items():
        for found in root.rglob(name):
            try:
                return read(found)
            except (OSError, ValueError, KeyError, IndexError, TypeError, MatReadError) as error:
                reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                raise InputError(
                    f"{ROOTS['imagenet']}: labels {name} can't be read ({reason}); allowed: ImageNet's own file, the "
                    "devkit's with its meta.mat beside it"
                ) from error
    return {}


def _kaggle(table: Path) -> dict[str, str]:
    with table.open(newline="") as file:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}


def _devkit(truth: Path) -> dict[str, str]:
    synsets = scipy.io.loadmat(truth.parent / "meta.mat", squeeze_me=True)["synsets"]
    by_id = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
    lines = truth.read_text().split()
    return {f"ILSVRC2012_val_{i:08d}": by_id[int(line)] for i, line in enumerate(lines, 1)}


def _imagenette(root: Path) -> tuple[Photograph, ...]:
    images = root / "imagenette2-320" / "val"
    if not images.is_dir():
        import torchvision

        torchvision.datasets.Imagenette(root, split="val", size="320px", download=True)
    return _imagenet(images)


def _folder(root: Path) -> tuple[Photograph, ...]:
    return tuple(Photograph(path, PREDICTED, path.relative_to(root).as_posix()) for path in _images(root))


def _bundled(root: Path) -> tuple[Photograph, ...]:
    import skimage.data

    installed = Path(skimage.data.__file__).parent
    return tuple(Photograph(next(installed.glob(f"{name}.*")), PREDICTED, name) for name in BUNDLED)


SOURCES: dict[str, Callable[[Path], tuple[Photograph, ...]]] = {
    "imagenet": _imagenet,
    "imagenette": _imagenette,
    "folder": _folder,
    "bundled": _bundled,
}
