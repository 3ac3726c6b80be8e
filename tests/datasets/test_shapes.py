"""The synthetic set: reproducible items, exact masks, disjoint splits, and backgrounds independent of the class."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from refinecam_lib.datasets import shapes as synthetic
from refinecam_lib.datasets.shapes import CLASSES, SIZES, Shape, ShiftedShapes, SyntheticShapes, footprint, render
from refinecam_lib.errors import InputError, rng


@pytest.fixture(autouse=True)
def _no_own_backgrounds(monkeypatch):
    monkeypatch.delenv("WALDO_ROOT", raising=False)


def digest(split: str = "test", n: int = 6, **options) -> str:
    hashed = hashlib.sha256()
    for sample in SyntheticShapes(split, n, **options):
        hashed.update(sample.image.numpy().tobytes() + sample.mask.numpy().tobytes())
        hashed.update(repr((sample.target, sample.id, sorted(sample.info.items()))).encode())
    return hashed.hexdigest()


def test_two_processes_draw_the_same_bytes():
    code = "from test_shapes import digest; print(digest())"
    environment = {key: value for key, value in os.environ.items() if key != "WALDO_ROOT"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    other = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, env=environment
    )
    assert other.stdout.strip() == digest()


def test_items_do_not_depend_on_order_or_length():
    few, many = SyntheticShapes("test", 3), SyntheticShapes("test", 500)
    late = many[2]
    for index in (2, 0, 1):
        assert torch.equal(few[index].image, many[index].image)
    assert torch.equal(late.image, few[-1].image)
    assert len(list(few)) == 3


def test_split_and_seed_change_the_items():
    assert len({digest("test", 2), digest("validation", 2), digest("train", 2), digest("test", 2, seed=1)}) == 4


def test_a_sample_has_the_documented_fields():
    for background in ("raw", "imputed"):
        sample = SyntheticShapes("validation", 4, background=background)[3]
        assert sample.image.shape == (3, 224, 224) and sample.image.dtype == torch.float32
        assert 0 <= sample.image.min() and sample.image.max() <= 1
        assert sample.mask.shape == (224, 224) and sample.mask.dtype == torch.bool and sample.mask.any()
        assert sample.id == "validation-000003"
        assert set(sample.info) == {"class", "size", "background", "scene"}
        assert CLASSES[sample.target] == sample.info["class"] and sample.info["size"] in SIZES
        assert sample.info["background"] == background and sample.info["scene"].startswith("crowd-validation-")


SHAPES = [
    Shape(name, size, 100, 140, angle, (255, 255, 255))
    for name in CLASSES
    for size, angle in ((20, 0.0), (24, 77.0), (45, 200.0), (99, 45.0))
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.name} {s.size}")
def test_the_mask_marks_the_drawn_pixels(shape):
    """On black, the bright pixels are the mask, up to the blur of the resize, with the same centre."""
    picture, mask = render(np.zeros((256, 256, 3), np.uint8), shape)
    bright = picture[..., 0] >= 128
    assert (bright & mask).sum() / (bright | mask).sum() > 0.8
    # Tolerance of two pixels: one for the bilinear blur, one because nearest skips every eighth row and column.
    padded = np.pad(mask, 2)
    around = np.stack([padded[2 + i : 226 + i, 2 + j : 226 + j] for i in range(-2, 3) for j in range(-2, 3)])
    assert picture[~around.any(0)].max() < 40, "pixels drawn outside the mask"
    assert picture[around.all(0)].min(initial=255) == 255, "pixels of the mask that were not drawn"
    weights = picture[..., 0] / picture[..., 0].sum()
    for axis in (0, 1):
        position = np.arange(224) + 0.5
        image_centre = (weights.sum(1 - axis) * position).sum()
        assert abs(image_centre - (mask.sum(1 - axis) * position).sum() / mask.sum()) < 0.35


def test_footprints_have_the_right_area():
    for name, filled in (("circle", math.pi / 4), ("square", 1.0), ("triangle", 0.5)):
        for angle in (0.0, 33.0):
            shape = Shape(f"filled {name}", 90, 128, 128, angle, (0, 0, 0))
            assert footprint(shape).sum() == pytest.approx(filled * 90**2, rel=0.03)
            empty = footprint(Shape(f"empty {name}", 90, 128, 128, angle, (0, 0, 0)))
            perimeter = {"circle": math.pi, "square": 4.0, "triangle": 1 + math.sqrt(5)}[name] * 90
            assert empty.sum() == pytest.approx(perimeter * (90 // 5), rel=0.06)
            assert not empty[128, 128], "an empty shape has an empty centre"


def test_every_shape_fits_on_the_canvas():
    generator = rng("fit")
    for _ in range(200):
        mask = footprint(synthetic.draw_shape(generator)[2])
        assert mask.any() and not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def test_classes_and_sizes_are_uniform():
    """Each count lies within 4 standard deviations of its binomial mean."""
    n = 6000
    drawn = [synthetic.draw_shape(rng("uniform", k)) for k in range(n)]
    for values, kinds in (([t for t, _, _ in drawn], range(6)), ([s for _, s, _ in drawn], SIZES)):
        p = 1 / len(kinds)
        for kind in kinds:
            assert abs(values.count(kind) - n * p) < 4 * math.sqrt(n * p * (1 - p))
    assert all(SIZES[name][0] <= shape.size < SIZES[name][1] for _, name, shape in drawn)
    small = [synthetic.draw_shape(rng("shares", k), (2, 1, 1))[1] for k in range(2000)].count("small")
    assert abs(small - 1000) < 4 * math.sqrt(500)


def test_half_of_mixed_backgrounds_are_imputed(monkeypatch):
    monkeypatch.setattr(synthetic, "crowd_scene", lambda seed, size: np.full((size, size, 3), 90, np.uint8))
    synthetic._crowd.cache_clear()
    monkeypatch.setattr(synthetic, "impute_background", lambda background, generator: background)
    kinds = [sample.info["background"] for sample in SyntheticShapes("train", 400)]
    synthetic._crowd.cache_clear()
    assert abs(kinds.count("imputed") - 200) < 40


def test_imputation_changes_only_the_background():
    raw, imputed = (SyntheticShapes("test", 12, background=kind) for kind in ("raw", "imputed"))
    for a, b in zip(raw, imputed, strict=True):
        assert a.target == b.target and a.info["scene"] == b.info["scene"] and torch.equal(a.mask, b.mask)
        inner = a.mask & (torch.nn.functional.avg_pool2d(a.mask[None].float(), 5, 1, 2)[0] == 1)
        assert torch.equal(a.image[:, inner], b.image[:, inner])
        changed = (a.image != b.image).any(0)[~a.mask].float().mean()
        assert 0.02 < changed <= 1


def test_imputed_areas_are_smooth_and_vary_in_size():
    background = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    shares = []
    for seed in range(8):
        threshold = synthetic.THRESHOLDS[rng("t", seed).integers(6)]
        generator = rng("t", seed)
        generator.integers(6)
        below = synthetic.perlin(generator) < threshold
        found = synthetic.impute_background(background, rng("t", seed))
        assert np.array_equal(found[~below], background[~below])
        assert found[below].std() < background[below].std()
        shares.append(below.mean())
    assert min(shares) > 0 and max(shares) < 1 and max(shares) - min(shares) > 0.2


def test_perlin_noise_is_zero_on_its_lattice():
    noise = synthetic.perlin(rng("perlin"))
    assert noise.min() == 0 and noise.max() == 1
    lattice = noise[::32, ::32]
    assert np.ptp(lattice) < 1e-12, "gradient noise is zero at all lattice points"
    assert np.abs(np.diff(noise, axis=0)).max() < 0.2


def test_augmentation_flips_and_changes_brightness_within_bounds():
    grey = np.full((256, 256, 3), 120, np.uint8)
    means = [synthetic.augment(grey, rng("augment", k)).mean() for k in range(60)]
    assert 120 * 0.74 < min(means) < 105 and 135 < max(means) < 120 * 1.26
    ramp = np.zeros((256, 256, 3), np.uint8)
    ramp[:128, :128] = 200
    corners = {tuple(np.argwhere(synthetic.augment(ramp, rng("flip", k))[..., 0] > 60).min(0)) for k in range(40)}
    assert corners == {(0, 0), (0, 128), (128, 0), (128, 128)}


def test_crowd_splits_share_no_scene():
    hashes = synthetic.split_hashes("crowd", limit=60)
    assert all(len(part) == 60 for part in hashes.values())
    assert not (hashes["train"] & hashes["test"] or hashes["train"] & hashes["validation"])
    assert not hashes["validation"] & hashes["test"]


def test_all_crowd_scene_seeds_differ(monkeypatch):
    """A scene depends on its seed alone, so distinct seeds are enough."""
    monkeypatch.setattr(synthetic, "crowd_scene", lambda seed, size: seed)
    draw = synthetic._crowd.__wrapped__
    seeds = [draw(split, k) for split, n in synthetic.SPLITS.items() for k in range(n)]
    assert len(set(seeds)) == sum(synthetic.SPLITS.values())


def picture(seed: int, width: int = 256, height: int = 256) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.fixture
def pages(tmp_path):
    for book in (1, 2):
        for scene in range(1, 6):
            for tile in (0, 256):
                picture(100 * book + 10 * scene + tile).save(tmp_path / f"book{book}_s{scene}_{tile}_512.png")
    picture(1, 530, 300).save(tmp_path / "plain photo.png")
    # The published set repeats a tile under the name of another scene.
    picture(110).save(tmp_path / "book9_s9_0_0.png")
    return tmp_path


def test_a_folder_is_split_by_scene(pages):
    hashes = synthetic.split_hashes(pages)
    assert sum(map(len, hashes.values())) == 22 == len(set.union(*hashes.values()))
    scenes = {split: {s.info["scene"] for s in SyntheticShapes(split, 60, scenes=pages)} for split in hashes}
    assert not (scenes["train"] & scenes["test"] or scenes["train"] & scenes["validation"])
    assert not scenes["validation"] & scenes["test"]
    assert len(set.union(*scenes.values())) == 11
    assert len(scenes["train"]) == 7 and len(scenes["test"]) == len(scenes["validation"]) == 2
    assert len({s.info["scene"] for s in SyntheticShapes("all", 120, scenes=pages)}) == 11


def test_waldo_root_is_used(pages, monkeypatch):
    monkeypatch.setenv("WALDO_ROOT", str(pages))
    assert not SyntheticShapes("test", 1)[0].info["scene"].startswith("crowd")
    assert SyntheticShapes("test", 1, scenes="crowd")[0].info["scene"].startswith("crowd")
    monkeypatch.setenv("WALDO_ROOT", str(pages / "nowhere"))
    with pytest.raises(InputError, match="WALDO_ROOT.*nowhere.*not a folder"):
        SyntheticShapes("test", 1)


def test_the_background_is_independent_of_the_class():
    """A classifier that sees only the scene is right in 1/6 of the cases, within 4 standard deviations."""
    small = {}

    def features(split: str, index: int) -> np.ndarray:
        name, scene = SyntheticShapes(split, 10_000, background="raw").scene(index)
        if name not in small:
            small[name] = np.asarray(Image.fromarray(scene).resize((6, 6), Image.Resampling.BOX)).ravel() / 255
        return small[name]

    def table(start: int, n: int) -> tuple[np.ndarray, list[int]]:
        # The 300 validation scenes repeat often enough for a leak to be learned.
        targets = [synthetic.draw_shape(rng("shape", "validation", k, 0))[0] for k in range(start, start + n)]
        return np.stack([features("validation", k) for k in range(start, start + n)]), targets

    assert [SyntheticShapes("validation", 5)[k].target for k in range(5)] == table(0, 5)[1]
    classifier = LogisticRegression(max_iter=200).fit(*table(0, 1500))
    accuracy = classifier.score(*table(1500, 1500))
    assert abs(accuracy - 1 / 6) < 4 * math.sqrt(5 / 36 / 1500)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "tset"}, "unknown split 'tset'. Did you mean 'test'"),
        ({"split": "all"}, "unknown split 'all'"),
        ({"background": "blur"}, "unknown background 'blur'"),
        ({"n": 0}, "Expected 1 item or more, got n = 0"),
        ({"shares": (0, 0, 0)}, "Expected three weights"),
        ({"scenes": "no such folder"}, "'no such folder' is not a folder"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        SyntheticShapes(**({"split": "test", "n": 1} | options))


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="Expected 3 source scenes or more, one per split, got 0"):
        SyntheticShapes("test", 1, scenes=tmp_path)
    small, broken = tmp_path / "small", tmp_path / "broken"
    small.mkdir(), broken.mkdir()
    picture(0, 200, 300).save(small / "a.png")
    with pytest.raises(InputError, match="Expected backgrounds of 256x256 px or more, got 'a.png' of 200x300"):
        SyntheticShapes("test", 1, scenes=small)
    (broken / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="'a.png' is not a readable picture"):
        SyntheticShapes("test", 1, scenes=broken)


def test_an_index_beyond_the_end_is_refused():
    items = SyntheticShapes("test", 2)
    with pytest.raises(IndexError):
        items[2]


def test_the_image_without_its_shape_differs_only_on_the_shape():
    for sample in SyntheticShapes("test", 4):
        changed = (sample.image != sample.without).any(0)
        near = torch.nn.functional.max_pool2d(sample.mask[None].float(), 3, 1, 1)[0] > 0
        assert not (changed & ~near).any(), "resizing blends one pixel around the shape"
        assert changed[sample.mask].float().mean() > 0.95
    assert ShiftedShapes(SyntheticShapes("test", 1))[0].without is None
