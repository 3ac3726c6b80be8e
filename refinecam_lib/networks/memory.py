"""The C library's memory: kept from one layer's output to the next, and given back when a piece of work is done.

Without being told, glibc maps each output of tens of MB anew and the system clears its pages, which takes a third of
many networks' time on a CPU, or forces chunks so small that torch takes slower kernels.
"""

import contextlib
import ctypes

KEPT = 512 << 20
"""Bytes: blocks up to here are taken from memory that is kept, of which so much may lie free; larger ones as before."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def _keep() -> bool:
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        return all(mallopt(option, KEPT) == 1 for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
    return False


def give_back() -> None:
    """Return what is free to the system, where the C library can be asked to.

    joblib starts a process anew whose memory grows, and would take what is kept for a leak.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


KEEPS = _keep()
"""Whether this process keeps memory, from the import of this module on; elsewhere than on glibc it does not."""
