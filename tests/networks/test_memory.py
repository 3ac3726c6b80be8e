"""Memory of one layer's output is used again for the next, given back when asked, and no more for larger work."""

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

for _ in range(4):  # until a block of the size is free that nothing has been put behind
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
from refinecam_lib.cam import Capture, score_cam

def work(channels):
    pool, head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(channels, 3)
    model = nn.Sequential(nn.Conv2d(3, channels, 4, 16), pool, head).eval()
    score_cam(Capture(model, torch.randn(1, 3, 224, 224), [0], ["0"]))
"""
SWEEP = """
from pathlib import Path
sys.path.insert(0, {tests!r})
import toys
from refinecam_lib.sweep import sweep

toys.register(Path({folder!r}))

def work(images):
    assert len(sweep(toys.plan(images=images, size=1))) == 3 * images
"""


def last_line(code: str) -> list[int]:
    """The numbers on the last line that a process prints."""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [int(number) for number in out.splitlines()[-1].split()]


def growth(work: str, little: int, much: int) -> int:
    """Bytes by which a process's peak grows where it does much work after little of it."""
    return last_line(PEAK.format(work=work, little=little, much=much))[0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows doesn't tell a process's peak")
def test_the_peak_does_not_grow_with_channels_images_or_shards(tmp_path):
    """All 1,024 masked images at once make it grow by 2.5 GB, chunks by some 50 MB; a sweep grows by 4 MB."""
    assert growth(SCORE_CAM, 64, 1024) < 300e6
    assert growth(SWEEP.format(tests=str(Path(__file__).parent.parent), folder=str(tmp_path)), 2, 32) < 30e6


@pytest.mark.skipif(not memory.KEEPS, reason="the C library isn't glibc")
def test_freed_memory_is_used_again_without_new_pages_and_can_be_given_back():
    def run(keep, give_back):
        return last_line(PAGES.format(keep=keep, give_back=give_back))

    fresh, returned = run("from refinecam_lib import cam, memory", "memory.give_back()")
    assert fresh < 5e6 and returned > 80e6
    assert run("", "")[0] > 80e6, "without it every block is new"


def test_chunks_are_small_where_memory_is_not_kept(monkeypatch):
    sizes = []
    for keeps in (True, False):
        monkeypatch.setattr("refinecam_lib.cams.KEEPS", keeps)
        sizes.append(forward_chunk(torch.device("cpu")))
    assert sizes == [32, 8] and forward_chunk(torch.device("meta")) == 256
