"""Scenes: layers that can be drawn again alone, exact visible pixels, disjoint splits, and the same bytes everywhere."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from refinecam_lib.datasets import backdrops
from refinecam_lib.datasets.backdrops import PHOTOGRAPHS, backdrop
from refinecam_lib.datasets.cutouts import BADGES, CLASSES, DISTRACTORS, FOLDER, badge, cut_out, pictures
from refinecam_lib.datasets.scenes import CONDITIONS, LAYERS, SIZES, TWINS, Levels, Scenes, draw_scene
from refinecam_lib.errors import InputError, rng

GOLDEN = "429ae79ab326f869bcb0c6100a84742825aabcf62858a33a5e25a43fcd7441f7"
HARD = CONDITIONS["all, mosaic"]


def digest(n: int = 60, **options) -> str:
    hashed = hashlib.sha256()
    for sample in Scenes("test", n, **options):
        for part in (sample.image, sample.without, sample.mask):
            hashed.update(part.numpy().tobytes())
        hashed.update(repr((sample.target, sample.id, sorted(sample.info.items()))).encode())
    return hashed.hexdigest()


def test_every_processor_draws_the_same_bytes():
    assert digest() == GOLDEN
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F"}
    code = "from test_scenes import digest; print(digest())"
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert other.stdout.strip() == GOLDEN


def test_items_do_not_depend_on_order_or_length():
    few, many = Scenes("test", 3), Scenes("test", 600)
    late = many[2]
    assert torch.equal(late.image, few[-1].image) and late.id == few.id_of(2) == "test-mosaic-000000"
    assert len(list(few)) == 3
    assert len({digest(2), digest(2, seed=1), digest(2, twin="badges"), digest(2, condition="mixed")}) == 4


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_layer_is_drawn_again_alone(condition):
    """Pixels change only where the layer was or is. All other layers stay the same objects."""
    scene = Scenes("test", 1, condition=condition).scene(0)
    for layer in LAYERS:
        other = scene.redrawn([layer], "again")
        for name in LAYERS[1:]:
            assert (other.things[name] is scene.things[name]) == (name != layer or not scene.things[name])
        changed = (other.drawn() != scene.drawn()).any(2)
        if layer == "background":
            assert changed[scene.visible("background")].mean() > 0.9
            assert not changed[~scene.visible("background") & ~scene.covered("badge")].any()
            continue
        assert other.behind is scene.behind
        assert not changed[~(scene.covered(layer) | other.covered(layer))].any()
        assert changed.any() == bool(scene.things[layer])
        assert np.array_equal(scene.redrawn([layer], "again").drawn(), other.drawn())


@pytest.mark.parametrize("condition", CONDITIONS)
def test_each_pixel_belongs_to_one_layer(condition):
    scenes = Scenes("test", 4, condition=condition)
    for index in range(4):
        scene = scenes.scene(index)
        assert (np.sum([scene.visible(layer) for layer in LAYERS], 0) == 1).all()
        assert np.array_equal(scene.visible("badge"), scene.covered("badge"))
        assert not (scene.covered("badge") & scene.covered("object")).any(), "the badge lies on the object"
        covered, visible = scene.covered("object"), scene.visible("object")
        assert not (visible & ~covered).any()
        assert abs(1 - visible.sum() / covered.sum() - scene.levels.hidden / 100) < 0.06
        assert (len(scene.things["distractors"]), len(scene.things["second"])) == (
            scene.levels.distractors,
            scene.levels.objects - 1,
        )


@pytest.mark.parametrize("twin", TWINS)
def test_without_shows_what_lies_behind(twin):
    data = Scenes("test", 10, twin)
    layer = TWINS[twin][0]
    for index, sample in enumerate(data):
        changed = (sample.image != sample.without).any(0)
        assert not changed[~sample.mask].any()
        assert changed[sample.mask].float().mean() > 0.8
        scene = data.scene(index)
        nothing = type(scene)(scene.split, scene.levels, {**scene.things, layer: ()}, scene.behind)
        assert np.array_equal(nothing.drawn(), scene.drawn(without=[layer]))


def test_the_twins_show_the_same_images_and_two_truths():
    for a, b in zip(Scenes("test", 10), Scenes("test", 10, "badges"), strict=True):
        assert torch.equal(a.image, b.image) and a.id == b.id
        assert not (a.mask & b.mask).any() and a.mask.any() and b.mask.any()
        assert CLASSES[a.target] == a.info["object"] and tuple(BADGES)[b.target] == b.info["badge"]
        shown = a.info["compatible"].split(",")
        assert len(set(shown)) == int(a.info["objects"]) and int(shown[0]) == a.target
        assert b.info["compatible"] == str(b.target)


def test_the_badge_says_nothing_about_the_object():
    data, table = Scenes("train", 900, condition="photograph"), np.zeros((12, 12))
    for index in range(900):
        scene = data.scene(index)
        table[CLASSES.index(scene.kind("object")), list(BADGES).index(scene.kind("badge"))] += 1
    assert chi2_contingency(table).pvalue > 1e-4
    for counts in table.sum(0), table.sum(1):
        assert (abs(counts - 75) < 4 * np.sqrt(75 * 11 / 12)).all()


def test_a_swap_keeps_the_place():
    scene = draw_scene("test", HARD, 3)
    for layer in ("object", "badge"):
        other = scene.swapped(layer, 0)
        (before,), (after,) = scene.things[layer], other.things[layer]
        assert (before.x, before.y, before.size) == (after.x, after.y, after.size) and before.kind != after.kind
        assert after.kind != scene.kind("second")
        assert all(other.things[name] is scene.things[name] for name in LAYERS[1:] if name != layer)


@pytest.mark.parametrize("layer", ["object", "badge"])
def test_visible_pixels_are_kept_byte_by_byte(layer):
    scene = draw_scene("test", HARD, 4)
    others = [name for name in LAYERS if name != layer]
    image, kept = scene.kept_on(scene.redrawn(others, 1), layer), scene.visible(layer)
    assert np.array_equal(image[kept], scene.drawn()[kept])
    assert (image[~kept] != scene.drawn()[~kept]).any(1).mean() > 0.9


def test_the_splits_share_no_crowd_and_no_photograph(monkeypatch):
    monkeypatch.setattr(backdrops, "CROWDS", dict.fromkeys(PHOTOGRAPHS, 6))
    crowds = {split: {backdrops.crowd(split, k).tobytes() for k in range(6)} for split in PHOTOGRAPHS}
    files = {
        split: {hashlib.sha256((FOLDER / "photographs" / f"{name}.jpg").read_bytes()).hexdigest() for name in names}
        for split, names in PHOTOGRAPHS.items()
    }
    for parts, count in ((crowds, 18), (files, sum(map(len, PHOTOGRAPHS.values())))):
        assert len(set.union(*parts.values())) == count
    for split in PHOTOGRAPHS:
        sources = {backdrop("photograph", split, rng(k)).source for k in range(40)}
        assert sources == set(PHOTOGRAPHS[split])
        assert backdrop("crowd", split, rng(0)).source.startswith(f"crowd-{split}-")


def test_a_mosaic_is_made_of_its_own_splits_photographs(monkeypatch):
    read = []
    photograph = backdrops.photograph
    monkeypatch.setattr(backdrops, "photograph", lambda name: read.append(name) or photograph(name))
    for split in PHOTOGRAPHS:
        read.clear()
        backdrop("mosaic", split, rng("mosaic"))
        assert read and set(read) <= set(PHOTOGRAPHS[split])


def test_the_pictures_are_those_that_are_used():
    used = {name for group in (*CLASSES, *DISTRACTORS) for name in pictures(group)}
    assert used == {path.stem for path in (FOLDER / "objects").glob("*.webp")}
    assert {name for names in PHOTOGRAPHS.values() for name in names} == {
        path.stem for path in (FOLDER / "photographs").iterdir()
    }
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 6e6


def test_badges_differ_in_a_fifth_of_their_cells():
    looks = {kind: badge(kind, 24, (0, 0, 0)).opacity for kind in BADGES}
    for a in BADGES:
        for b in BADGES:
            assert a == b or (looks[a] != looks[b]).sum() >= 5 * 9


def test_a_cutout_has_the_size_asked_for():
    for name in ("bird-owl", "insect-butterfly"):
        look = cut_out(name, 60, 0, False, (256, 256, 256))
        rows, columns = (np.flatnonzero((look.opacity > 0).any(axis)) for axis in (1, 0))
        assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - 60) <= 2
        mirrored = cut_out(name, 60, 0, True, (256, 256, 256))
        assert ((mirrored.opacity > 0)[:, ::-1] == (look.opacity > 0)).mean() > 0.95


def test_mixtures_draw_every_level():
    data = Scenes("train", 400, condition="mixed", shares=(2, 1, 1))
    levels = [data[i].info for i in range(60)]
    for key, names in (("size", SIZES), ("hidden", ("0", "25", "50")), ("objects", "12"), ("distractors", "025")):
        assert {info[key] for info in levels} == set(names), key
    assert {Scenes("train", 60, condition="single")[i].info["objects"] for i in range(30)} == {"1"}


def test_a_test_image_takes_at_most_50_ms():
    data, times = Scenes("test", 60, condition="all, mosaic"), []
    for index in range(20):
        start = time.process_time()
        data[index]
        times.append(time.process_time() - start)
    assert np.median(times) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset'. Did you mean 'test'?"),
        ({"twin": "object"}, "unknown twin 'object'. Did you mean 'objects'?"),
        ({"condition": "smal"}, "unknown condition 'smal'. Did you mean 'small'?"),
        ({"n": 0}, "Expected 1 item or more, got n = 0."),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?").replace(".", r"\.")):
        Scenes(**{"split": "test", "n": 3} | options)


def test_unknown_layers_and_indices_are_refused():
    scene = draw_scene("test", Levels("photograph"), 0)
    with pytest.raises(InputError, match="unknown layer 'objekt'"):
        scene.redrawn(["objekt"], 0)
    with pytest.raises(InputError, match="unknown layer"):
        scene.visible("objekt")
    with pytest.raises(IndexError):
        Scenes("test", 3)[3]
