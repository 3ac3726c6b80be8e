"""Rows of a function of yours belong to its code: an edited method or aggregate is measured again."""

import functools
import importlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from toys import plan

from refinecam_lib import cams, explanation, refinement
from refinecam_lib.explanation import BASE, METHODS, REFINED, Method, Variant
from refinecam_lib.sweeps import shard
from refinecam_lib.sweeps.run import sweep
from refinecam_lib.sweeps.source import source_of


@pytest.fixture(autouse=True)
def registries():
    methods, aggregates = dict(METHODS), dict(refinement.AGGREGATES)
    yield
    METHODS.clear(), METHODS.update(methods)
    refinement.AGGREGATES.clear(), refinement.AGGREGATES.update(aggregates)


def defined(text: str, **names):
    """Return the function `f` of a notebook cell."""
    namespace = {"torch": torch, "np": np, "cams": cams, "__name__": "__main__", **names}
    exec(textwrap.dedent(text), namespace)  # noqa: S102
    return namespace["f"]


FIRST = "def f(capture):\n    return [a.mean(1) for a in capture.activations]"
EDITED = "def f(capture):\n    return [a.amax(1) for a in capture.activations]"


def test_an_edited_method_is_measured_again_and_the_same_one_is_not(toy, capsys):
    METHODS["Mine"] = Method(defined(FIRST))
    old = sweep(plan(methods=("Mine", "LayerCAM")))
    METHODS["Mine"] = Method(defined("# a comment\n" + FIRST))
    again = sweep(plan(methods=("Mine", "LayerCAM")))
    assert "0 measured now" in capsys.readouterr().out.splitlines()[-1] and again.equals(old)
    METHODS["Mine"] = Method(defined(EDITED))
    new = sweep(plan(methods=("Mine", "LayerCAM")))
    assert f"{(new['method'] == 'Mine').sum()} measured now" in capsys.readouterr().out.splitlines()[-1]
    differ = new["mean_activation"] != old["mean_activation"]
    assert differ[new["method"] == "Mine"].any() and not differ[new["method"] == "LayerCAM"].any()


def test_an_edited_aggregate_is_measured_again_alone(toy, capsys):
    def rows():
        variants = [BASE, REFINED, Variant(0, "minimum")]
        return sweep(shard.plan("tiny", ["LayerCAM"], 2, variants, dataset="toy"))

    refinement.AGGREGATES["minimum"] = lambda maps: maps.amin(0)
    old = rows()
    refinement.AGGREGATES["minimum"] = lambda maps: maps.amax(0)
    new = rows()
    assert "4 measured here before, 2 measured now" in capsys.readouterr().out.splitlines()[-1]
    changed = old["mean_activation"] != new["mean_activation"]
    assert set(old["aggregate"][changed]) == {"minimum"}


def test_a_replaced_method_of_the_library_is_not_taken_for_it(toy):
    keys = {plan(methods=("LayerCAM",))[0].key}
    for entry in (
        Method(cams.grad_cam),
        Method(cams.layer_cam, double=True),
        Method(defined(FIRST)),
        METHODS["GradCAM"],
    ):
        METHODS["LayerCAM"] = entry
        keys.add(plan(methods=("LayerCAM",))[0].key)
        keys.add(plan(methods=("LayerCAM^0.5",))[0].key)
    assert len(keys) == 7, "Grad-CAM alone comes twice"
    refinement.AGGREGATES["product"] = refinement.geometric_mean
    METHODS["LayerCAM"] = explanation.LIBRARY["LayerCAM"]
    assert [part.source != "" for part in plan(methods=("LayerCAM",), images=1)] == [False, True]


def test_methods_of_the_library_have_no_source():
    names = [*explanation.LIBRARY, "GradCAM++^0.125", shard.NO_METHOD]
    variants = [Variant(0, name) for name in ("none", *refinement.known_aggregates())]
    assert all(shard._by_source(name, variants).keys() == {""} for name in names)


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, capture):
        return [self.factor * a.mean(1) for a in capture.activations]

    def other(self, capture):
        return [self.factor + a.mean(1) for a in capture.activations]


def nested(factor):
    def f(capture):
        return [factor * a.mean(1) for a in capture.activations]

    return f


HELPED = "def f(capture):\n    return [helper(a) for a in capture.activations]"
DIFFERENT = {  # pairs of functions that work differently
    "constant": (defined("def f(c): return c * 2"), defined("def f(c): return c * 3")),
    "called name": (defined("def f(c): return c.sum()"), defined("def f(c): return c.prod()")),
    "default": (defined("def f(c, k=1): return c * k"), defined("def f(c, k=2): return c * k")),
    "keyword default": (defined("def f(c, *, k=1): return c * k"), defined("def f(c, *, k=2): return c * k")),
    "global number": (defined("def f(c): return c * k", k=1), defined("def f(c): return c * k", k=2)),
    "global table": (defined("def f(c): return k[c]", k={"a": 1}), defined("def f(c): return k[c]", k={"a": 2})),
    "global tensor": tuple(defined("def f(c): return c * k", k=torch.full((2,), n)) for n in (1.0, 2.0)),
    "global array": tuple(defined("def f(c): return c * k", k=np.full(2, n)) for n in (1.0, 2.0)),
    "helper": tuple(defined(HELPED, helper=defined(f"def f(a): return a.mean({n})")) for n in (1, 2)),
    "helper's helper": tuple(
        defined(HELPED, helper=defined("def f(a): return g(a)", g=defined(f"def f(a): return a + {n}"))) for n in (1, 2)
    ),
    "inner function": tuple(defined(f"def f(c):\n def g(a): return a + {n}\n return g(c)") for n in (1, 2)),
    "closure": (nested(1), nested(2)),
    "partial": (functools.partial(cams.score_cam, chunk=4), functools.partial(cams.score_cam, chunk=8)),
    "partial of others": (functools.partial(cams.grad_cam), functools.partial(cams.layer_cam)),
    "object": (Scaled(1), Scaled(2)),
    "method": (Scaled(1).other, Scaled(2).other),
    "methods": (Scaled(1).other, Scaled(1).__call__),
    "library": (cams.grad_cam, cams.layer_cam),
    "set": (defined("def f(c): return c in {1, 2}"), defined("def f(c): return c in {1, 3}")),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_whatever_changes_a_function_changes_its_source(case):
    a, b = DIFFERENT[case]
    assert source_of(a) == source_of(a) != source_of(b)
    assert len(source_of(a)) == 16


def test_an_edited_module_of_yours_changes_the_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "own_methods.py"
    found = []
    for text in (
        "def used(a): return a\ndef unused(a): return 1",
        "def used(a): return a\ndef unused(a): return 2",
        "def used(a): return -a",
    ):
        file.write_text(text + "  # " + "x" * len(found))
        importlib.invalidate_caches()
        sys.modules.pop("own_methods", None)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        module = importlib.import_module("own_methods")
        found.append(source_of(defined("def f(c): return own.used(c)", own=module)))
    assert found[0] == found[1] != found[2]


def test_the_source_is_the_same_in_every_process():
    text = """
        from refinecam_lib.sweeps.source import source_of
        names = {"a", "b", "c"}
        def helper(x, recursive=True): return f if x in {"p", "q", "r"} else names
        def f(capture): return [helper(a) for a in capture.activations if a in ("s", "t")]
        class C:
            k = {"u": 1, "v": {2, 3}}
            @property
            def p(self): return self.k
            def __call__(self, capture): return f(capture)
        print(source_of(f), source_of(C()))
    """
    runs = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(text)], env={**__import__("os").environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in (1, 2, 3)
    }  # fmt: skip
    assert len(runs) == 1 and len(runs.pop().split()) == 2
