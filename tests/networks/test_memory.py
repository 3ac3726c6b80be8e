"""Freed memory is reused and can be returned, and the peak does not grow with the work."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refinecam_lib.networks import memory
from refinecam_lib.networks.inference import forward_chunk

PAGES = """
import resource
import psutil
import torch
{keep}

def touched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25_000_000)  # 100 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(12):  # until a large enough free block is reused
    touched()
again = touched()
kept = psutil.Process().memory_info().rss
{give_back}
print(again * resource.getpagesize(), kept - psutil.Process().memory_info().rss)
"""

PEAK = """
import resource
import sys

{work}

work({little})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work({much})
unit = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit)
"""
SCORE_CAM = """
import torch
from torch import nn
from refinecam_lib.cams import score_cam
from refinecam_lib.capture import Capture
from refinecam_lib.networks.memory import keep_memory
keep_memory()

def work(channels):
    pool, head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(channels, 3)
    model = nn.Sequential(nn.Conv2d(3, channels, 4, 16), pool, head).eval()
    score_cam(Capture(model, torch.randn(1, 3, 224, 224), [0], ["0"]))
"""
SWEEP = """
from pathlib import Path
sys.path.insert(0, {tests!r})
import toys
from refinecam_lib.sweeps.run import sweep

toys.register(Path({folder!r}))

def work(images):
    assert len(sweep(toys.plan(images=images, size=1))) == 3 * images
"""


def last_line(code: str) -> list[int]:
    """Return the numbers on the last line that a process prints."""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [int(number) for number in out.splitlines()[-1].split()]


def growth(work: str, little: int, much: int) -> int:
    """Return by how many bytes a process's peak grows from little work to much."""
    return last_line(PEAK.format(work=work, little=little, much=much))[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no peak of a process on Windows")
def test_the_peak_does_not_grow_with_channels_images_or_shards(tmp_path):
    """All 1,024 masked images at once take 2.5 GB more, chunks about 50 MB. A sweep takes 4 MB more."""
    assert growth(SCORE_CAM, 64, 1024) < 300e6
    assert growth(SWEEP.format(tests=str(Path(__file__).parent.parent), folder=str(tmp_path)), 2, 32) < 30e6


def test_importing_the_library_does_not_keep_memory():
    code = "from refinecam_lib.networks import memory\nimport refinecam_lib.sweeps.run, refinecam_lib.training.__main__"
    assert last_line(f"{code}\nprint(int(memory.keeps()), int(memory.keep_memory()), int(memory.keeps()))")[0] == 0


def test_freed_memory_is_reused_without_new_pages_and_can_be_returned():
    def run(keep, give_back):
        return last_line(PAGES.format(keep=keep, give_back=give_back))

    if not last_line("from refinecam_lib.networks import memory\nprint(int(memory.keep_memory()))")[0]:
        pytest.skip("the C library is not glibc")
    kept, returned = run("from refinecam_lib.networks import memory\nmemory.keep_memory()", "memory.give_back()")
    assert kept < 5e6 and returned > 80e6
    assert run("", "")[0] > 80e6, "by default every block is new"


def test_chunks_are_small_where_memory_is_not_kept(monkeypatch):
    sizes = []
    for keeping in (True, False):
        monkeypatch.setattr(memory, "_keeping", keeping)
        sizes.append(forward_chunk(torch.device("cpu")))
    assert sizes == [32, 8] and forward_chunk(torch.device("meta")) == 256
