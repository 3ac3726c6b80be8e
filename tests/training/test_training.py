"""Training: resuming is exact, the card is true, and the shipped networks do what their cards say."""

import json
import math
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import TINY_RECIPE as TINY

from refinecam_lib import paths
from refinecam_lib.datasets.sample import Sample
from refinecam_lib.datasets.scenes import TWINS, Scenes
from refinecam_lib.datasets.shapes import CLASSES, SyntheticShapes
from refinecam_lib.errors import InputError, rng
from refinecam_lib.funnybirds import drawing as birds
from refinecam_lib.networks import checkpoints, loading, zoo
from refinecam_lib.training import __main__ as train
from refinecam_lib.training import loop as fit
from refinecam_lib.training import tasks
from refinecam_lib.training.recipe import Recipe, shipped_recipes


@pytest.fixture(autouse=True)
def _no_user_data(monkeypatch):
    monkeypatch.delenv("WALDO_ROOT", raising=False)
    monkeypatch.delenv("FUNNYBIRDS_ROOT", raising=False)


@pytest.mark.parametrize("teacher", ["", "resnet18"])
def test_a_killed_run_continues_with_equal_results(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "SAVE_SECONDS", math.inf)  # only validation saves, and the run dies one step later
    recipe = replace(TINY, teacher=teacher)
    whole, record = fit.fit(recipe, "cpu", 0, tmp_path / "whole", progress=False)
    assert record["step"] == TINY.steps == 6 and len(record["history"]) == 3

    learn, calls = fit._Run.learn, []

    def dies(run, *arguments):
        calls.append(run.record["step"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        learn(run, *arguments)

    monkeypatch.setattr(fit._Run, "learn", dies)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(recipe, "cpu", 0, tmp_path / "killed", progress=False)
    resumed, after = fit.fit(recipe, "cpu", 2, tmp_path / "killed", progress=False)
    assert calls == [0, 1, 2, 3, 2, 3, 4, 5], "the last saved state is of step 2"
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert after["history"] == record["history"] and after["best_step"] == record["best_step"]
    assert after["seconds"] > 0
    # A finished run is not repeated.
    fit.fit(recipe, "cpu", 0, tmp_path / "killed", progress=False)
    assert len(calls) == 8
    assert len(list((tmp_path / "killed").iterdir())) == 1


def test_the_latest_of_the_best_weights_are_kept(monkeypatch):
    accuracies = [0.5, 0.9, 0.9, 0.7]
    monkeypatch.setattr(fit, "evaluate", lambda *_: {"accuracy": accuracies[run.record["step"]], "size": {}})
    run = fit._Run(TINY, tasks.Shapes(), torch.device("cpu"))
    for step in range(4):
        run.averaged.module.classifier.bias.data.fill_(step)
        run.record |= {"step": step, "losses": [[1.0, 0.0]]}
        run.validate()
    assert run.best["classifier.bias"].tolist() == [2.0] * 6 and run.record["best_step"] == 2


def test_averaged_weights_are_a_moving_average_whose_decay_grows():
    model = nn.Linear(1, 1, bias=False)
    averaged, expected = fit.AveragedModel(model, avg_fn=fit._average(0.3), use_buffers=True), model.weight.item()
    averaged.n_averaged += 1
    for step, decay in ((1, 0.1), (2, 2 / 11), (3, 0.25), (4, 0.3), (5, 0.3)):
        model.weight.data.fill_(step)
        averaged.update_parameters(model)
        expected = decay * expected + (1 - decay) * step
        assert averaged.module.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("able", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_f": True}, None])
def test_a_cpu_with_bfloat16_trains_in_mixed_precision(able, monkeypatch, tmp_path):
    if able is None:  # as in torch 2.11
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    mixed = bool(able) and "avx512_f" not in able
    seen = []
    learn = fit._Run.learn

    def watched(run, *arguments):
        run.model.fc.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
        learn(run, *arguments)

    monkeypatch.setattr(fit._Run, "learn", watched)
    recipe = replace(TINY, model="resnet18", images=4, stages=((32, 1.0),), validation=2)
    model, record = fit.fit(recipe, "cpu", 0, tmp_path, progress=False)
    assert seen == [torch.bfloat16 if mixed else torch.float32]
    assert {p.dtype for p in model.parameters()} == {torch.float32} and math.isfinite(record["history"][0]["loss"])


def test_freezing_keeps_the_first_layers_and_their_statistics():
    spec = zoo.MODELS["efficientnet_lite0"]
    model = spec.build(6, False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    frozen = fit._freeze(model, "blocks.1")
    model.train()
    for module in frozen:
        module.eval()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1)
    model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimiser.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    early = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")
    assert not [key for key in changed if key.startswith(early)]
    late = {key for key in before if not key.startswith(early)}
    assert {key for key in late if "running" in key or "tracked" in key} <= changed
    assert {"blocks.2.0.conv_pw.weight", "conv_head.weight", "classifier.weight", "classifier.bias"} <= changed


def test_windows_hold_the_whole_shape_at_native_resolution():
    samples = list(SyntheticShapes("train", 12, background="raw", shares=(1, 1, 0)))
    marked = [Sample(torch.stack([s.mask.float()] * 3), s.target, s.id, s.mask, s.info) for s in samples]
    windows = [tasks._window(s, 128, rng("w", s.id)) for s in marked]
    assert {w.image.shape for w in windows} == {(3, 128, 128)} and windows[0].mask.shape == (128, 128)
    assert [float(w.image[0].sum()) for w in windows] == [float(s.mask.sum()) for s in samples]
    assert all(torch.equal(w.image[0].bool(), w.mask) for w in windows)
    others = [tasks._window(s, 128, rng("other", s.id)) for s in marked]
    assert not all(torch.equal(a.image, b.image) for a, b in zip(windows, others))
    assert torch.equal(tasks._window(samples[0], 224, rng("w")).image, samples[0].image)


def test_the_contrast_of_backgrounds_grows_over_the_first_images():
    recipe = replace(TINY, images=40, batch=4, faint=0.5, stages=((224, 1.0),))
    items = fit._Training(recipe, tasks.Shapes(), 0)
    task = tasks.Shapes()
    for index, contrast in ((0, 0.0), (10, 0.5), (20, 1.0), (39, 1.0)):
        plain, seen = task.item(index, 224), items[index].image
        mean = plain.image.mean((1, 2), keepdim=True)
        torch.testing.assert_close(seen[:, plain.mask], plain.image[:, plain.mask], rtol=0, atol=0)
        expected = mean + contrast * (plain.image - mean)
        torch.testing.assert_close(seen[:, ~plain.mask], expected[:, ~plain.mask])
    with pytest.raises(InputError, match="faint = 0.5 for the task 'birds'; allowed: 0 to 1 for the shapes, else 0"):
        Recipe(task="birds", faint=0.5)


def test_windows_are_enlarged_by_a_random_factor():
    recipe = replace(TINY, images=60, batch=4, zoom=2.0, stages=((64, 1.0),), shares=(1, 0, 0))
    task, items = tasks.Shapes(shares=(1, 0, 0)), fit._Training(recipe, tasks.Shapes(shares=(1, 0, 0)), 0)
    seen = [items[k] for k in range(60)]
    assert {s.image.shape for s in seen} == {(3, 64, 64)} and {s.mask.shape for s in seen} == {(64, 64)}
    factors = [float((s.mask.sum() / task.item(k, 224).mask.sum()).sqrt()) for k, s in enumerate(seen)]
    assert 0.97 < min(factors) < 1.2 and 1.8 < max(factors) < 2.1, "from their own size to twice that"
    assert torch.equal(fit._Training(recipe, task, 5)[1].image, seen[21].image), "resuming changes nothing"
    for s in (task.item(k, 60) for k in range(6)):  # image and mask are enlarged equally
        larger = tasks.enlarged(replace(s, image=torch.stack([s.mask.float()] * 3)), 120)
        assert torch.equal(larger.image[0] > 0.5, larger.mask) and larger.mask.sum() == 4 * s.mask.sum()
    with pytest.raises(InputError, match="zoom = 2.0 for the task 'birds'; allowed: 1 to 4 for the shapes, else 1"):
        Recipe(task="birds", zoom=2.0)
    with pytest.raises(InputError, match="zoom = 0.5 for the task 'synthetic'; allowed: 1 to 4"):
        Recipe(zoom=0.5)


def test_validation_can_use_windows(tmp_path, monkeypatch):
    whole, windows = tasks.Shapes().validation(6, 224), tasks.Shapes().validation(6, 64)
    assert [s.image.shape[-1] for s in (*whole, *windows)] == [224] * 6 + [64] * 6
    assert all(torch.equal(a.image, b.image) for a, b in zip(windows, tasks.Shapes(seed=9).validation(6, 64)))
    assert all(a.mask.sum() == b.mask.sum() for a, b in zip(whole, windows) if a.info["size"] == "small")
    sides = []
    monkeypatch.setattr(
        fit, "evaluate", lambda model, items, spec: sides.append(items[0].image.shape[-1]) or {"accuracy": 1.0}
    )
    for side in (0, 48):
        fit.fit(replace(TINY, exam=side), "cpu", 0, tmp_path, progress=False)
    assert set(sides[: len(sides) // 2]) == {224} and set(sides[len(sides) // 2 :]) == {48}
    with pytest.raises(InputError, match="exam = 20; allowed: windows of 32 to 224 px, or 0 for whole images"):
        Recipe(exam=20)


def test_batch_norms_are_recomputed_before_validation_by_items_after_the_last(tmp_path):
    recipe = replace(TINY, freeze=False, exam=48, validate_every=TINY.images)
    averaged, recomputed = (fit.fit(replace(recipe, norms=n), "cpu", 0, tmp_path, progress=False)[0] for n in (0, 8))
    assert all(map(torch.equal, averaged.parameters(), recomputed.parameters()))
    task = tasks.Shapes(recipe.seed, shares=recipe.shares)
    items = torch.stack([task.item(TINY.images + k, 48).image for k in range(8)])
    with torch.no_grad():
        mean = recomputed.conv_stem(loading.normalise(items, zoo.spec_of(TINY.model))).mean((0, 2, 3))
    assert torch.allclose(recomputed.bn1.running_mean, mean, atol=1e-5)
    assert not torch.allclose(averaged.bn1.running_mean, mean, atol=1e-2)


def test_integer_and_float_shares_are_one_recipe():
    assert repr(Recipe(shares=(2, 1, 0))) == repr(Recipe(shares=(2.0, 1.0, 0.0)))


def test_schedule():
    recipe = Recipe(images=3200, batch=32, lr=1.0, warmup=0.1, stages=((64, 0.25), (224, 0.75)))
    rates = [recipe.rate(step) for step in range(recipe.steps)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1 and rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert [recipe.window(step) for step in (0, 24, 25, 99)] == [64, 64, 224, 224]


def test_batches_do_not_depend_on_workers_or_start():
    def drawn(first: int, workers: int) -> list[tuple]:
        batches = fit._batches(TINY, tasks.Shapes(), first, workers, False)
        return [(images.sum((1, 2, 3)).tolist(), target.tolist(), infos) for images, target, infos in batches]

    assert drawn(0, 0)[3:] == drawn(3, 2) and len(drawn(0, 0)) == 6


class _LateFirst(torch.utils.data.Dataset):
    def __len__(self):
        return 12 * 32

    def __getitem__(self, index):
        if index == 0:
            time.sleep(2)
        return Sample(torch.zeros(3, 4, 4), 0, str(index), torch.zeros(4, 4, dtype=torch.bool))


def test_waiting_for_a_late_batch_does_not_exhaust_open_files(monkeypatch):
    resource = pytest.importorskip("resource")  # not on Windows
    monkeypatch.setattr(fit, "_Training", lambda *_: _LateFirst())
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 150, allowed[1]))
    try:
        batches = fit._batches(replace(TINY, batch=32, images=384), tasks.Shapes(), 0, 4, False)
        assert [len(images) for images, _, _ in batches] == [32] * 12
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)


def test_the_target_of_a_bird_is_every_class_that_fits():
    task = tasks.Birds()
    samples = [task.item(i, 64) for i in range(40)]
    target = fit._target(*fit._collate(samples)[1:], 50)
    assert target.shape == (40, 50) and torch.allclose(target.sum(1), torch.ones(40))
    for row, sample, i in zip(target, samples, range(40)):
        bird = birds.scene("train", i)
        visible = [p for p in birds.PARTS if bird[f"{p}_model"] != birds.PLACEHOLDER]
        own = birds.CLASSES[sample.target]
        fits = [k for k, c in enumerate(birds.CLASSES) if all(c[p] == own[p] for p in visible)]
        assert row.nonzero().flatten().tolist() == fits
    assert (target.max(1).values < 1).any() and (target.max(1).values == 1).any()
    shapes = fit._collate([Sample(torch.zeros(3, 2, 2), 4, "a"), Sample(torch.zeros(3, 2, 2), 1, "b")])
    assert fit._target(*shapes[1:], 6).tolist() == [4, 1]


def test_validation_birds_are_whole_and_never_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    task = tasks.Birds()
    items = task.validation(30, 256)
    assert len(items) == 30 and all("," not in s.info["compatible"] for s in items)
    assert items[0].image.shape[-1] == 256 and task.validation(1, 64)[0].image.shape[-1] == 64
    held_out = {s.id for s in items}
    around = range(task.seen - 3, task.seen + 3)  # training items next to the held-out ones
    assert not held_out & {task.item(i, 32).id for i in around}
    assert len({task.item(i, 32).id for i in around}) == 6
    later = tasks.Birds(seed=1)
    assert not {later.item(i, 32).id for i in range(5)} & {task.item(i, 32).id for i in range(5)}
    tests, again = task.tests(), later.tests()
    assert len(tests["test"]) == 500 and len(tests["fresh"]) == tasks.FRESH_ITEMS
    assert not torch.equal(tests["fresh"][0].image, again["fresh"][0].image)
    assert not torch.equal(tests["fresh"][0].image, tests["test"][0].image)
    with pytest.raises(IndexError):
        tests["fresh"][len(tests["fresh"])]


def test_files_come_in_a_new_order_each_epoch(tmp_path, monkeypatch):
    birds.write(tmp_path, train=20, test=1)
    monkeypatch.setenv("FUNNYBIRDS_ROOT", str(tmp_path))
    task = tasks.Birds()
    epochs = [[task.item(i, 64).id for i in range(18 * k, 18 * k + 18)] for k in range(2)]
    held_out = {s.id for s in task.validation(9, 256)}
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1] and len(held_out) == 2
    assert {*epochs[0]} | held_out == {f"train-{i:06d}" for i in range(20)} and not {*epochs[0]} & held_out
    assert task.tests().keys() == {"test"}, "what is read from files has no fresh items"
    monkeypatch.setattr(tasks, "HELD_OUT", 0)
    with pytest.raises(InputError, match="expected 10 training birds or more, some with all parts, got 20"):
        tasks.Birds()


def test_a_network_for_birds_is_trained_written_and_tested(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(tasks, "FRESH_ITEMS", 5)
    monkeypatch.setitem(birds.SPLITS, "test", 3)
    monkeypatch.setattr(tasks, "HELD_OUT", 20)
    whole = len(tasks.Birds().validation(20, 64))
    recipe = Recipe("small_resnet", "birds", "none", images=12, batch=6, stages=((32, 0.5), (64, 0.5)), validation=4)
    card = train.train(recipe, device="cpu", workers=0, progress=False)
    path = tmp_path / "training" / "small_resnet_birds" / "small_resnet_birds.safetensors"
    assert checkpoints.read_checkpoint(path)[1] == card and len(card["classes"]) == 50 and card["task"] == "birds"
    assert card["test"]["n"] == 3 and card["fresh"]["n"] == 5 and "size" not in card["test"]
    assert card["validation"]["n"] == 4
    many = replace(recipe, validation=999)
    card = train.train(many, tmp_path / "b.safetensors", "cpu", 0, progress=False, tested=False)
    assert card["validation"]["n"] == whole, "all that there are"
    model = loading.load_model("small_resnet", path)
    assert model(torch.zeros(1, 3, 256, 256)).shape == (1, 50)


class Oracle(nn.Module):
    """Reads the class from the image's first pixel, and confuses class 5 with class 4."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = (inputs[:, 0, 0, 0] * 0.5 + 0.5).mul(10).round().long().clamp(max=4)
        return nn.functional.one_hot(found, 6) * self.scale


def test_evaluate_counts_by_size_class_and_background():
    samples = [
        Sample(
            torch.full((3, 8, 8), target / 10),
            target,
            str(k),
            None,
            {"class": CLASSES[target], "size": size, "background": background},
        )
        for k, (target, size, background) in enumerate(
            (t, s, b) for t in range(6) for s in ("small", "large") for b in ("raw", "imputed", "raw")
        )
    ]
    spec = zoo.MODELS["efficientnet_lite0"]
    found = fit.evaluate(Oracle(), samples, spec, batch=5)
    assert found["n"] == 36 and found["accuracy"] == pytest.approx(5 / 6)
    assert found["interval"] == [0.68109, 0.9213]  # Wilson's, of 30 in 36
    assert found["class"]["empty triangle"]["accuracy"] == 0 and found["class"]["empty square"]["accuracy"] == 1
    assert found["size"].keys() == {"small", "large"} and found["size"]["small"]["n"] == 18
    assert found["background"]["raw"]["n"] == 24 and found["background"]["imputed"]["n"] == 12


def test_train_writes_a_checkpoint_and_tests_the_written_file(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    for name, n in (("TEST_ITEMS", 8), ("FRESH_ITEMS", 10)):
        monkeypatch.setattr(tasks, name, n)
    tested, evaluate = [], fit.evaluate

    def remember(model, dataset, spec, **options):
        if isinstance(dataset, SyntheticShapes):
            tested.append((dataset.split, dataset.seed, dataset.n, next(model.parameters()).clone()))
        return evaluate(model, dataset, spec, **options)

    monkeypatch.setattr(train, "evaluate", remember)
    card = train.train(TINY, device="cpu", workers=0, progress=False)
    path = tmp_path / "training" / TINY.model / f"{TINY.model}.safetensors"
    state, read = checkpoints.read_checkpoint(path)
    assert read == card == json.loads(path.with_suffix(".json").read_text())
    assert [entry[:3] for entry in tested] == [("test", 0, 8), ("test", 1, 10)], "the test is read once"
    first = state["conv_stem.weight"]
    assert first.dtype == torch.float16 and torch.equal(first.float(), tested[0][3]), (
        "what is tested is what was written"
    )
    assert card["classes"] == list(CLASSES) and card["images_seen"] == 24 and card["hyper_parameters"]["lr"] == 1e-2
    assert card["test"]["n"] == 8 and card["fresh"]["n"] == 10 and "transfer" not in card
    assert card["device"] == "cpu" and card["seconds"] == card["seconds_in_all"]
    model = loading.load_model(TINY.model, path)
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 6)
    # Training can continue from the file. The card then describes both runs, and fresh items are new.
    again = Recipe(weights=str(path), images=4, batch=4, stages=((32, 1.0),), validation=2, seed=1)
    assert torch.equal(next(fit._start(again, tasks.Shapes(), zoo.spec_of(again.model)).parameters()), first.float())
    second = train.train(again, tmp_path / "second.safetensors", "cpu", 0, progress=False)
    assert second["started_from"]["sha256"] == card["sha256"] != second["sha256"]
    assert second["started_from"]["test"] == card["test"]
    assert str(tmp_path) not in json.dumps(second), "the card names no folder of this machine"
    assert [entry[:2] for entry in tested[2:]] == [("test", 0), ("test", 2)]
    # Other weights under the same name start another training.
    other = loading.restore(TINY.model, path)[0]
    with torch.no_grad():
        other.classifier.bias += 9 * torch.arange(6.0)
    checkpoints.write_checkpoint(other, path, card)
    third = train.train(again, tmp_path / "third.safetensors", "cpu", 0, progress=False, tested=False)
    assert third["started_from"]["sha256"] not in (card["sha256"], third["sha256"])
    assert checkpoints.read_checkpoint(tmp_path / "third.safetensors")[0]["classifier.bias"][5] > 40


def test_retraining_chains_the_recipes_and_tests_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    calls = []

    def remember(recipe, out, *_, tested=True, **__):
        calls.append((recipe, out, tested))
        return {"out": out}

    monkeypatch.setattr(train, "train", remember)
    assert train.main(["--shipped", "--out", "x.safetensors"]) == 0
    parts = [tmp_path / "training" / TINY.model / f"{TINY.model}-{k}.safetensors" for k in range(1, len(calls))]
    assert [out for _, out, _ in calls] == [*parts, Path("x.safetensors")]
    assert [recipe.weights for recipe, _, _ in calls] == ["imagenet", *map(str, parts)]
    assert [tested for _, _, tested in calls] == [False] * len(parts) + [True]
    assert len({recipe.seed for recipe, _, _ in calls}) == len(calls) == 4, "each recipe draws new items"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "eficientnet_lite0"], "unknown model 'eficientnet_lite0'. Did you mean 'efficientnet_lite0'?"),
        (["--task", "bird"], "unknown task 'bird'. Did you mean 'birds'?"),
        (["--task", "birds", "--transfer", "x"], "a transfer test of birds; allowed: of the task synthetic"),
        (["--task", "birds", "--weights", "imagenet", "--model", "small_vgg"], "ImageNet weights of small_vgg"),
        (["--images", "0"], "images = 0; allowed: 1 or more"),
        (["--batch", "64", "--images", "32"], "batch = 64 with 32 images"),
        (["--lr", "-1"], "lr = -1.0; allowed: a positive number"),
        (["--stages", "128"], "stages '128'; allowed: window:share"),
        (["--stages", "128:.5"], "shares that add up to 1"),
        (["--stages", "128:1.5,64:-.5"], "positive shares that add up to 1"),
        (["--clip", "-1"], "clip = -1.0; allowed: a positive norm, or none"),
        (["--weight-decay", "nan"], "weight_decay = nan; allowed: 0 or more"),
        (["--smoothing", "2"], "smoothing = 2.0; allowed: 0 to 1"),
        (["--norms", "64"], "norms = 64; allowed: 0, or whole batches of 32 without freezing"),
        (["--norms", "40", "--no-freeze"], "norms = 40; allowed: 0, or whole batches of 32"),
        (["--shipped", "--model", "alexnet"], "unknown shipped network 'alexnet'"),
        (["--shipped", "--model", "vgg11", "--lr", ".1"], "lr with --shipped; allowed: model and task"),
        (["--device", "abacus"], "device 'abacus' can't be used here"),
        (["--weights", "nowhere.safetensors"], "no checkpoint file 'nowhere.safetensors'"),
        (
            ["--model", "small_vgg", "--weights", str(paths.CHECKPOINTS / "small_vgg_birds.safetensors")],
            "of 50 classes",
        ),
        (["--out", "network.bin"], "out 'network.bin'; allowed: a name that ends in .safetensors"),
        (["--scenes", "nowhere"], "'nowhere' is not a folder"),
        (["--transfer", "nowhere"], "'nowhere' is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name != "birds"]  # the list of the birds' scenes


SHIPPED_FOR_BIRDS = sorted(paths.CHECKPOINTS.glob("*_birds.safetensors"))
SHIPPED_FOR_SCENES = sorted(paths.CHECKPOINTS.glob("*_scenes_*.safetensors"))
SHIPPED = sorted({*paths.CHECKPOINTS.glob("*.safetensors")}.difference(SHIPPED_FOR_BIRDS, SHIPPED_FOR_SCENES))


@pytest.mark.parametrize("path", SHIPPED + SHIPPED_FOR_BIRDS + SHIPPED_FOR_SCENES, ids=lambda p: p.stem)
def test_the_recipes_of_a_shipped_network_are_those_of_its_card(path):
    card, recipes = json.loads(path.with_suffix(".json").read_text()), shipped_recipes(path.stem)
    assert recipes[0].weights in ("imagenet", "none")
    for task in {recipe.task for recipe in recipes}:
        seeds = [recipe.seed for recipe in recipes if recipe.task == task]
        assert seeds == list(range(len(seeds))), "no training item is seen twice"
    for recipe in reversed(recipes):
        known = json.loads(json.dumps(asdict(recipe)))
        assert card["hyper_parameters"] == {key: known[key] for key in card["hyper_parameters"]}
        assert card["images_seen"] == recipe.steps * recipe.batch
        card = card.get("started_from")
    assert card is None


@pytest.mark.parametrize("path", SHIPPED_FOR_BIRDS, ids=lambda p: p.stem)
def test_shipped_network_for_birds_is_what_its_card_says(path):
    name, card = path.stem.removesuffix("_birds"), checkpoints.read_checkpoint(path)[1]
    assert card["model"] == name and card["task"] == "birds" and card["classes"] == list(tasks.Birds.classes)
    assert path.stat().st_size < 8e6
    assert card["test"]["n"] == 500 and card["fresh"]["n"] == 6000
    assert card["test_readings"] <= len(shipped_recipes(path.stem))
    assert card["test"]["accuracy"] >= 0.95 and card["fresh"]["accuracy"] >= 0.95 and card["seconds_in_all"] < 3600
    unseen = tasks.FreshBirds(seed=1000)
    found = fit.evaluate(loading.load_model(name, "birds"), [unseen[i] for i in range(60)], zoo.spec_of(name, "birds"))
    assert found["accuracy"] >= 0.9


@pytest.mark.parametrize("path", SHIPPED_FOR_SCENES, ids=lambda p: p.stem)
def test_shipped_network_for_scenes_is_what_its_card_says(path):
    name, _, twin = path.stem.rpartition("_scenes_")
    weights, card = f"scenes_{twin}", checkpoints.read_checkpoint(path)[1]
    assert card["model"] == name and card["task"] == weights and card["classes"] == list(TWINS[twin][1])
    assert card["test"]["n"] == 600 and card["fresh"]["n"] == 6000 and card["test_readings"] == 1
    assert card["test"]["accuracy"] >= 0.9 and card["test"]["hidden"]["0"]["accuracy"] >= 0.97
    unseen = Scenes("test", 60, twin, "mixed", seed=1000)
    found = fit.evaluate(loading.load_model(name, weights), unseen, zoo.spec_of(name, weights))
    assert found["accuracy"] >= 0.85


def test_both_twins_ship():
    names = sorted({path.stem.rpartition("_scenes_")[0] for path in SHIPPED_FOR_SCENES})
    assert [path.stem for path in SHIPPED_FOR_SCENES] == [
        f"{name}_scenes_{twin}" for name in names for twin in sorted(TWINS)
    ]


def test_the_four_families_ship_for_the_birds():
    names = [path.stem.removesuffix("_birds") for path in SHIPPED_FOR_BIRDS]
    assert names == ["small_convnext", "small_resnet", "small_swin", "small_vgg"] == sorted(zoo.SMALL)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_checkpoint_is_what_its_card_says(path):
    spec = zoo.MODELS[path.stem]
    model, card = loading.load_model(path.stem), checkpoints.read_checkpoint(path)[1]
    assert card["model"] == path.stem and card["classes"] == list(CLASSES)
    assert {
        "test",
        "fresh",
        "transfer",
        "commit",
        "seconds_in_all",
        "test_readings",
        "hyper_parameters",
        "versions",
        "data_seed",
    } <= card.keys()
    assert card["test"]["n"] == 600 and card["fresh"]["n"] == 6000
    for part in (card["test"], card["fresh"]):
        assert set(part["size"]) == {"small", "medium", "large"} and set(part["background"]) == {"raw", "imputed"}
        assert part["interval"][0] < part["accuracy"] <= part["interval"][1]  # equal where all are right
    found = fit.evaluate(model, SyntheticShapes("test", 60), spec)
    assert found["accuracy"] >= 0.95 and min(card[name]["accuracy"] for name in ("test", "fresh")) >= 0.985


def test_the_papers_networks_ship_beside_the_efficientnet():
    assert [path.stem for path in SHIPPED] == sorted(zoo.MODELS)
