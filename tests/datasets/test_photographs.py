"""Photographs: labels from the official and other layouts, seeded subsets, and errors that name a bad folder."""

import csv
import shutil

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from refinecam_lib import paths
from refinecam_lib.datasets.photographs import BUNDLED, class_name, file_list, photographs, wnids
from refinecam_lib.datasets.sample import PREDICTED
from refinecam_lib.errors import InputError
from refinecam_lib.networks.loading import transform_of
from refinecam_lib.networks.zoo import MODELS, spec_of
from refinecam_lib.sweeps.shard import plan

TENCH, CHURCH = "n01440764", "n03028079"


def picture(path, shade=100, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)


def labels(source, n):
    samples = photographs(source, n, transform_of(spec_of("resnet18")))
    return {file.name: file.target for file in samples.files}


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGENET_ROOT", str(tmp_path))
    monkeypatch.setenv("IMAGES_ROOT", str(tmp_path))
    return tmp_path


def test_wnids_are_imagenets():
    assert len(wnids()) == 1000 and wnids()[TENCH] == 0 and wnids()[CHURCH] == 497
    assert class_name(497) == "church"


def test_labels_from_folders_named_by_wnid(root):
    picture(root / TENCH / "a.JPEG")
    picture(root / CHURCH / "b.JPEG")
    picture(root / CHURCH / "a.JPEG")  # same name, other photograph
    assert labels("imagenet", 3) == {f"{TENCH}/a": 0, f"{CHURCH}/a": 497, f"{CHURCH}/b": 497}


def test_labels_from_file_names(root):
    picture(root / f"{CHURCH}_church.JPEG")
    assert labels("imagenet", 1) == {f"{CHURCH}_church": 497}


def test_labels_from_the_devkit(root):
    picture(root / "val" / "ILSVRC2012_val_00000001.JPEG")
    picture(root / "val" / "ILSVRC2012_val_00000002.JPEG")
    picture(root / "train" / TENCH / "n01440764_10026.JPEG")  # not a validation image
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("7\n3\n")
    synsets = np.array([(3, TENCH), (7, CHURCH)], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    scipy.io.savemat(devkit / "meta.mat", {"synsets": synsets})
    assert labels("imagenet", 2) == {"val/ILSVRC2012_val_00000001": 497, "val/ILSVRC2012_val_00000002": 0}


def test_labels_from_kaggles_list(root):
    picture(root / "CLS-LOC" / "val" / "ILSVRC2012_val_00000001.JPEG")
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["ImageId", "PredictionString"], ["ILSVRC2012_val_00000001", f"{CHURCH} 1 2 3 4 {CHURCH} 5 6 7 8"]]
        )
    assert labels("imagenet", 1) == {"CLS-LOC/val/ILSVRC2012_val_00000001": 497}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,\n"),
        ("LOC_val_solution.csv", "a,b\n1,2\n"),
        ("ILSVRC2012_validation_ground_truth.txt", "490\n"),  # meta.mat is missing
    ],
)
def test_a_broken_list_of_labels_is_named(root, name, text):
    picture(root / "ILSVRC2012_val_00000001.JPEG")
    (root / name).write_text(text)
    with pytest.raises(InputError, match=f"IMAGENET_ROOT: labels {name} cannot be read"):
        file_list("imagenet")
    if name.endswith("txt"):
        (root / "meta.mat").write_bytes(b"no Matlab file")
        with pytest.raises(InputError, match=f"labels {name} cannot be read"):
            file_list("imagenet")


def test_torchvision_downloads_imagenette_once(monkeypatch, tmp_path):
    ten = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    downloads = []

    def unpack(self):
        downloads.append(self._url)
        for target in ten:
            picture(self._size_root / "val" / list(wnids())[target] / f"{target}.JPEG")

    monkeypatch.setattr(torchvision.datasets.Imagenette, "_download", unpack)
    monkeypatch.setattr(paths, "DATA", tmp_path)
    assert (
        labels("imagenette", 10)
        == labels("imagenette", 10)
        == {f"{list(wnids())[target]}/{target}": target for target in ten}
    )
    assert len(downloads) == 1


def test_a_folder_has_no_labels_and_smaller_subsets_are_part_of_larger_ones(root):
    for k in range(9):
        picture(root / f"sub{k % 2}" / f"{k}.png")
    transform = transform_of(spec_of("resnet18"))
    few, many = (photographs("folder", n, transform, seed=3).files for n in (3, 9))
    assert few == many[:3] and {file.target for file in many} == {PREDICTED}
    assert photographs("folder", 9, transform, seed=4).files != many


def test_exif_rotates_your_pictures_but_not_imagenets(root):
    file = root / TENCH / "a.jpg"
    file.parent.mkdir()
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated by 90 degrees
    Image.fromarray(pixels).save(file, exif=exif, quality=95)
    own, theirs = (photographs(source, 1, pil_to_tensor)[0].image.float() for source in ("folder", "imagenet"))
    assert theirs[:, :16].mean() > 250 and theirs[:, 16:].mean() < 5
    assert own[:, :, 16:].mean() > 250 and own[:, :, :16].mean() < 5


def test_a_plan_refuses_more_photographs_than_there_are():
    with pytest.raises(InputError, match=r"Expected 1 to 4 photographs of 'bundled', got n = 48"):
        plan("efficientnet_lite0", ["GradCAM"], 48, dataset="bundled")


def test_each_network_crops_as_in_the_paper():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 500, 3), dtype=np.uint8))
    for spec in MODELS.values():
        pixels = transform_of(spec)(image)
        assert pixels.shape == (3, 224, 224) and 0 <= pixels.min() < pixels.max() <= 1
    assert spec_of("vgg11").squash and spec_of("swin_tiny").resize == 248


def test_the_bundled_pictures_are_installed():
    assert tuple(labels("bundled", 4)) == BUNDLED
    samples = photographs("bundled", 4, transform_of(spec_of("efficientnet_lite0")))
    assert all(sample.image.std() > 0.1 for sample in samples)


def test_a_bad_folder_is_named(root, monkeypatch):
    with pytest.raises(InputError, match="IMAGENET_ROOT: no image in"):
        file_list("imagenet")
    picture(root / "cat.png")
    with pytest.raises(InputError, match="the class of 'cat.png' is not known"):
        file_list("imagenet")
    with pytest.raises(InputError, match=r"Expected 1 to 1 photographs of 'folder', got n = 2"):
        labels("folder", 2)
    (root / "cat.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="'cat.png' is not a readable picture"):
        photographs("folder", 1, transform_of(spec_of("resnet18")))[0]
    picture(root / "cat.png")
    cut = (root / "cat.png").read_bytes()
    (root / "cat.png").write_bytes(cut.replace(b"IDAT", b"!DAT"))  # Pillow raises a SyntaxError
    with pytest.raises(InputError, match="'cat.png' is not a readable picture"):
        photographs("folder", 1, transform_of(spec_of("resnet18")))[0]
    shutil.rmtree(root)
    with pytest.raises(InputError, match="IMAGES_ROOT: .* is not a folder"):
        file_list("folder")
    monkeypatch.delenv("IMAGENET_ROOT")
    with pytest.raises(InputError, match="Set the environment variable IMAGENET_ROOT"):
        file_list("imagenet")


@pytest.mark.parametrize("source", ["imagenet", "folder"])
def test_linked_folders_and_files_are_read(root, tmp_path_factory, source):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "church" / "b.JPEG")
    picture(elsewhere / "deep" / TENCH / "c.JPEG", 30)
    picture(root / TENCH / "a.JPEG", 10)
    (root / CHURCH).symlink_to(elsewhere / "church", target_is_directory=True)
    (root / "more").symlink_to(elsewhere / "deep", target_is_directory=True)
    (root / TENCH / "d.JPEG").symlink_to(elsewhere / "church" / "b.JPEG")
    (root / TENCH / "gone.JPEG").symlink_to(elsewhere / "gone.JPEG")
    (root / "again").symlink_to(root, target_is_directory=True)  # a loop
    (root / CHURCH / "up").symlink_to(root, target_is_directory=True)
    names = {file.path.relative_to(root).as_posix() for file in file_list(source)}
    assert names == {f"{TENCH}/a.JPEG", f"{CHURCH}/b.JPEG", f"more/{TENCH}/c.JPEG", f"{TENCH}/d.JPEG"}
    if source == "imagenet":
        assert labels(source, 4)[f"{CHURCH}/b"] == 497


def test_labels_are_found_in_a_linked_folder(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    (elsewhere / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\nb,{CHURCH} 1 2 3 4\n")
    picture(root / "images" / "b.JPEG")
    (root / "lists").symlink_to(elsewhere, target_is_directory=True)
    assert labels("imagenet", 1) == {"images/b": 497}


@pytest.mark.parametrize("source", ["imagenet", "folder"])
@pytest.mark.parametrize(
    "splits", [("train", "val"), ("Training", "validation"), ("data/test", "data/train"), ("val", "test")]
)
def test_splits_are_never_mixed(root, source, splits):
    for shade, split in enumerate(splits):
        picture(root / split / TENCH / "a.JPEG", shade)
    with pytest.raises(
        InputError, match=f"{'IMAGENET_ROOT' if source == 'imagenet' else 'IMAGES_ROOT'}.*several splits"
    ) as caught:
        file_list(source)
    assert all(split.split("/")[-1] in str(caught.value) for split in splits)


@pytest.mark.parametrize("names", [("valid", "val"), ("test", "tests"), ("train", "trains", "wagons")])
def test_other_folders_beside_one_split_are_read(root, names):
    for shade, name in enumerate(names):
        picture(root / name / TENCH / "a.JPEG", shade)
    assert len(file_list("imagenet")) == len(file_list("folder")) == len(names)


def test_training_images_beside_official_labels_are_left_out(root):
    picture(root / "train" / TENCH / f"{TENCH}_1.JPEG")
    picture(root / "val" / "b.JPEG")
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\nb,{CHURCH} 1 2 3 4\n")
    assert labels("imagenet", 1) == {"val/b": 497}


def test_files_with_one_stem_have_different_ids(root):
    for shade, ending in enumerate(("jpg", "png", "JPEG", "jpeg")):
        picture(root / TENCH / f"a.{ending}", 10 * shade)
    picture(root / TENCH / "b.jpg")
    assert set(labels("imagenet", 5)) == {f"{TENCH}/a.{e}" for e in ("jpg", "png", "JPEG", "jpeg")} | {f"{TENCH}/b"}
    samples = photographs("imagenet", 5, transform_of(spec_of("resnet18")))
    assert len({samples[i].id for i in range(5)}) == len({samples.id_of(i) for i in range(5)}) == 5
