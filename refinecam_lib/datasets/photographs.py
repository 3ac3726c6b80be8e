"""Read photographs: ImageNet's validation images, Imagenette, a folder of yours, or four pictures of scikit-image.

>>> samples = photographs("imagenet", 100, transform_of(spec_of("resnet18")))
>>> x = transform_of(spec_of("resnet18"))(open_picture("holiday.jpg"))      # (3,H,W) in [0,1]
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import scipy.io
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .. import paths
from ..errors import InputError, folder, one_of, rng
from .sample import PICTURES, PREDICTED, UNREADABLE, Sample, files_below, pictures_below

BUNDLED = ("chelsea", "coffee", "rocket", "camera")
"""Pictures that scikit-image installs. data/README.md lists the credits."""
ROOTS = {"imagenet": "IMAGENET_ROOT", "folder": "IMAGES_ROOT"}
"""Source -> the environment variable that names its folder."""
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "validation"
)
"""Name of a folder -> the split that it holds. Images of two splits are never mixed."""


@dataclass(frozen=True)
class Photograph:
    """One file of a source."""

    path: Path | None
    """None where only the committed listing is available."""
    target: int
    """The ImageNet class, or PREDICTED."""
    name: str
    """Unique in the source."""
    known: str = ""
    """The digest, where `path` is None."""

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the file's sha256."""
        return self.known or _digest(self.path, self.path.stat().st_mtime_ns)  # type: ignore[union-attr,arg-type]


@cache
def _digest(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Photographs:
    """A sequence of Samples. Each is read when it is asked for."""

    files: tuple[Photograph, ...]
    transform: Callable[[Image.Image], torch.Tensor]
    """Image -> float (3,H,W) in [0,1]."""
    upright: bool = False
    """Whether to rotate by Exif. ImageNet's evaluation does not."""

    def __len__(self) -> int:
        return len(self.files)

    def id_of(self, index: int) -> str:
        """Return the name of photograph `index` and the hash of its file."""
        return f"{self.files[index].name}@{self.files[index].digest}"

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        if file.path is None:
            raise InputError(
                f"Photograph {file.name!r} is not here. Only its rows are committed. "
                f"Set {ROOTS['imagenet']} to the folder with the pictures."
            )
        try:
            with Image.open(file.path) as opened:
                image = self.transform(_rgb(ImageOps.exif_transpose(opened) if self.upright else opened))
        except UNREADABLE as error:
            raise InputError(f"Photograph {file.name!r} is not a readable picture: {error}") from error
        return Sample(image, file.target, file.name, info={"file": file.digest})


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode[0] in "IF":  # Pillow would clip 16 bits or floats at 255
        raise OSError(f"Expected 8 bits per channel, got Pillow's mode {picture.mode!r}.")
    return picture.convert("RGB")


def open_picture(source: str | Path | bytes) -> Image.Image:
    """Open one picture as RGB, rotated by its Exif orientation.

    Args:
        source: A name in BUNDLED, a path, or the bytes of a file.

    Raises:
        InputError: There is no such file, or it is not a picture with 8 bits per channel.
    """
    name = "that was uploaded" if isinstance(source, bytes) else repr(str(source))
    file: io.BytesIO | Path
    if isinstance(source, bytes):
        file = io.BytesIO(source)
    else:
        file = _bundled_file(str(source)) if str(source) in BUNDLED else Path(source).expanduser()
        if not file.is_file():
            raise InputError(f"Picture {name} is not a file. Give a path, or one of {', '.join(BUNDLED)}.")
    try:
        with Image.open(file) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise InputError(f"Picture {name} cannot be read. Pillow does not know its format.") from error
    except UNREADABLE as error:
        raise InputError(f"Picture {name} cannot be read: {error}") from error


def photographs(source: str, n: int, transform: Callable[[Image.Image], torch.Tensor], seed: int = 0) -> Photographs:
    """Take the first n photographs of a source. A smaller n is part of a larger one.

    Args:
        source: "imagenet" (the folder IMAGENET_ROOT: ILSVRC's validation images with the devkit or
            LOC_val_solution.csv, one folder per wnid, or file names that begin with a wnid), "imagenette" (torchvision
            downloads it once), "folder" (any images in IMAGES_ROOT) or "bundled". The last two explain the class that
            the network predicts.
        n: How many.
        transform: Image -> float (3,H,W) in [0,1], see `networks.loading.transform_of`.
        seed: Seed of the order. The bundled pictures and the committed listing have a fixed order.

    Raises:
        InputError: The source or a label is unknown, or the folder is missing or has too few images.
    """
    one_of("source of photographs", source, SOURCES)
    if listed := not available(source) and _listing(source).exists():
        with _listing(source).open(newline="") as lines:
            files: Sequence[Photograph] = [
                Photograph(None, int(row["target"]), row["image"], row["file"]) for row in csv.DictReader(lines)
            ]
    else:
        files = file_list(source)
    if not 1 <= n <= len(files):
        more = f" Only these are committed. Set {ROOTS[source]} for others." if listed else ""
        raise InputError(f"Expected 1 to {len(files)} photographs of {source!r}, got n = {n}.{more}")
    if listed and seed:
        raise InputError(f"Only the photographs of seed 0 are committed, got seed = {seed}. Set {ROOTS[source]}.")
    if listed:
        return Photographs(tuple(files[:n]), transform)
    order = rng("photographs", source, seed).permutation(len(files)) if source != "bundled" else range(n)
    return Photographs(tuple(files[i] for i in order[:n]), transform, upright=source == "folder")


def _listing(source: str) -> Path:
    """Return the path of the committed list of photographs: names, classes and hashes, in order."""
    return paths.ROWS / f"photographs-{source}.csv"


def available(dataset: str) -> bool:
    """Return whether the images of a data set can be read or drawn. If not, it has at most a listing."""
    return dataset not in ROOTS or bool(os.environ.get(ROOTS[dataset]))


def write_listing(source: str, ids: Sequence[str]) -> Path | None:
    """Write the list of a source's first photographs, given by `Photographs.id_of`.

    Returns:
        The path, or None if the source needs no folder or its folder is not set.
    """
    if source not in ROOTS or not available(source):
        return None
    targets = {file.name: file.target for file in file_list(source)}
    lines = [f"{name},{digest},{targets[name]}" for name, _, digest in (each.rpartition("@") for each in ids)]
    paths.write_whole(_listing(source), lambda part: part.write_text("\n".join(["image,file,target", *lines]) + "\n"))
    return _listing(source)


def file_list(source: str) -> Sequence[Photograph]:
    """List all photographs of a source by name. Raises InputError if its folder is missing or has none."""
    if source not in ROOTS:
        return SOURCES[source](paths.DATA / source)
    root = os.environ.get(ROOTS[source])
    if not root:
        raise InputError(f"Source {source!r} needs a folder of images. Set the environment variable {ROOTS[source]}.")
    return _read(source, folder(ROOTS[source], root).resolve())


@lru_cache(maxsize=4)
def _read(source: str, root: Path) -> Sequence[Photograph]:
    found = SOURCES[source](root)
    if not found:
        raise InputError(f"{ROOTS[source]}: no image in {str(root)!r}. Expected {', '.join(sorted(PICTURES))}.")
    paths_inside = [file.path.relative_to(root) for file in found if file.path]
    splits = {part: SPLITS[part.lower()] for path in paths_inside for part in path.parts[:-1] if part.lower() in SPLITS}
    if len(set(splits.values())) > 1:
        mixed = ", ".join(sorted(splits))
        raise InputError(
            f"{ROOTS[source]}: {str(root)!r} has images of several splits: {mixed}. Give the folder of one."
        )
    return found


@cache
def _info() -> Any:
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k")  # reads files


@cache
def wnids() -> dict[str, int]:
    """Map WordNet ids to class indices of ImageNet's 1000 classes."""
    return {wnid: index for index, wnid in enumerate(_info().label_names())}


def class_name(index: int) -> str:
    """Return the English name of an ImageNet class: its first synonym."""
    return _info().index_to_description(index).split(",")[0]


def _imagenet(root: Path) -> tuple[Photograph, ...]:
    labels, files = _official_labels(root), []
    for path in pictures_below(root):
        if labels and path.stem not in labels:  # for example a training image
            continue
        names = [labels.get(path.stem, ""), path.name[:9], path.parent.name]
        wnid = next((name for name in names if name in wnids()), None)
        if wnid is None:
            raise InputError(
                f"{ROOTS['imagenet']}: the class of {path.name!r} is not known. Give validation images with their devkit "
                "or LOC_val_solution.csv, folders named by wnid, or file names that begin with a wnid."
            )
        name = path.relative_to(root).with_suffix("").as_posix()  # stems need not be unique
        files.append(Photograph(path, wnids()[wnid], name))
    known = Counter(file.name for file in files)  # a.jpg and a.png keep their endings
    return tuple(f if known[f.name] == 1 else replace(f, name=f.name + f.path.suffix) for f in files if f.path)


def _official_labels(root: Path) -> dict[str, str]:
    """Map file stems to wnids, from the devkit's list or from Kaggle's, anywhere in the folder."""
    from scipy.io.matlab import MatReadError

    files = files_below(root)
    readers = {"LOC_val_solution.csv": _kaggle, "ILSVRC2012_validation_ground_truth.txt": _devkit}
    for name, read in readers.items():
        for found in (path for path in files if path.name == name):
            try:
                return read(found)
            except (OSError, ValueError, KeyError, IndexError, TypeError, MatReadError) as error:
                reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                raise InputError(
                    f"{ROOTS['imagenet']}: labels {name} cannot be read ({reason}). Give ImageNet's own file. The devkit's "
                    "needs its meta.mat beside it."
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
    return tuple(Photograph(path, PREDICTED, path.relative_to(root).as_posix()) for path in pictures_below(root))


def _bundled_file(name: str) -> Path:
    import skimage.data

    return next(Path(skimage.data.__file__).parent.glob(f"{name}.*"))


SOURCES: dict[str, Callable[[Path], tuple[Photograph, ...]]] = {
    "imagenet": _imagenet,
    "imagenette": _imagenette,
    "folder": _folder,
    "bundled": lambda root: tuple(Photograph(_bundled_file(name), PREDICTED, name) for name in BUNDLED),
}
"""Source -> function of its folder that lists its photographs."""
