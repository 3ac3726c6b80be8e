"""What a sweep costs, counted and timed: python -m benchmarks.scaling [--networks resnet18 ...] [--images 2]

Counts a network's operations, and the images that each method sends through it, forward and back; times the shards of
a small sweep; and multiplies. docs/scaling.md shows the arithmetic with the numbers that this prints.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from refinecam_lib.cam import Capture
from refinecam_lib.checks import seed_of
from refinecam_lib.explain import METHODS, Variant, variant_maps
from refinecam_lib.metrics import measure
from refinecam_lib.models import spec_of
from refinecam_lib.refine import AGGREGATES
from refinecam_lib.sweep import plan

from .__main__ import subject
from .timing import Floor  # noqa: F401 - so that both commands refuse alike where a part is missing
