"""Settings of all tests: plots without a window, and property tests with the same examples on every machine."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import torch

import refinecam_lib  # noqa: F401 - it repairs the import of torchvision on CPU builds
from tests.browser import page  # noqa: F401 - a fixture

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    torch.set_num_threads(1)

hypothesis.settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("project")
