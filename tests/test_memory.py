"""Memory of one layer's output is used again for the next, and given back when asked."""

import subprocess
import sys

import pytest
import torch

from refinecam_lib import memory
from refinecam_lib.cam import forward_chunk

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


@pytest.mark.skipif(not memory.KEEPS, reason="the C library isn't glibc")
def test_freed_memory_is_used_again_without_new_pages_and_can_be_given_back():
    def run(keep, give_back):
        code = PAGES.format(keep=keep, give_back=give_back)
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        return [int(number) for number in out.split()]

    fresh, returned = run("from refinecam_lib import memory", "memory.give_back()")
    assert fresh < 5e6 and returned > 80e6
    assert run("", "")[0] > 80e6, "without it every block is new"


def test_chunks_are_small_where_memory_is_not_kept(monkeypatch):
    sizes = []
    for keeps in (True, False):
        monkeypatch.setattr("refinecam_lib.cam.KEEPS", keeps)
        sizes.append(forward_chunk(torch.device("cpu")))
    assert sizes == [32, 8] and forward_chunk(torch.device("meta")) == 32
