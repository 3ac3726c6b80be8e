"""A toy data set, network and checkpoint. A sweep measures a shard of them in milliseconds."""

import json

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from tiny_networks import LAYERS, TinyNet, batch, tiny_net

from refinecam_lib import paths
from refinecam_lib.datasets import sample as datasets
from refinecam_lib.explanation import BASE, REFINED
from refinecam_lib.networks import checkpoints, zoo
from refinecam_lib.sweeps import registry, shard
from refinecam_lib.training.recipe import Recipe


class Toy:
    """Sixteen small labelled images with masks."""

    def __init__(self, n, seed, spec):
        self.n = n

    def __getitem__(self, i):
        image = batch(1, seed=i)[0][0].clamp(-2, 2) / 4 + 0.5
        mask = torch.zeros(48, 48, dtype=torch.bool)
        mask[8:24, 8 + i : 24 + i] = True
        return datasets.Sample(image, i % 6, f"toy-{i}", mask, {"size": "small"})


TOY = registry.DataSet("toy", Toy)
SPEC = zoo.ModelSpec("tiny", lambda classes, pretrained: TinyNet(classes), LAYERS)


def write_checkpoint(folder, seed):
    file = folder / "tiny.safetensors"
    safetensors.torch.save_file(tiny_net(seed).state_dict(), file)
    card = {"model": "tiny", "classes": list("abcdef"), "sha256": checkpoints.sha256_of(file)}
    (folder / "tiny.json").write_text(json.dumps(card))


def register(folder):
    """Register the toys in this process. Their checkpoint and results go into a folder."""
    paths.RESULTS, paths.ROWS, paths.CHECKPOINTS = folder / "results", folder / "committed", folder
    registry.DATASETS["toy"], zoo.MODELS["tiny"] = TOY, SPEC
    write_checkpoint(folder, seed=0)


def plan(images=6, size=2, methods=("LayerCAM", "RandomCAM"), **options):
    return shard.plan("tiny", methods, images, [BASE, REFINED], dataset="toy", size=size, **options)


def same(a, b):
    """Check that rows are equal, and numbers equal within 1e-4."""
    numbers = a.select_dtypes(float).columns
    np.testing.assert_allclose(a[numbers], b[numbers], atol=1e-4)
    pd.testing.assert_frame_equal(a.drop(columns=numbers), b.drop(columns=numbers))


def files(folder):
    """Return name -> content of the results files in a folder."""
    return {path.name: path.read_bytes() for path in sorted((folder / "rows").rglob("*.parquet"))}


TINY_RECIPE = Recipe(
    weights="none",
    images=24,
    batch=4,
    lr=1e-2,
    stages=((32, 0.5), (48, 0.5)),
    validation=6,
    validate_every=8,
)
