"""Let glibc reuse freed memory for the next layer's output, and return it after a piece of work.

By default glibc maps each output of tens of MB again and the system clears its pages. That takes a third of many
networks' time on a CPU.

>>> keep_memory()                                # once per process
True
"""

import contextlib
import ctypes

KEPT = 512 << 20
"""Threshold in bytes. glibc keeps freed blocks up to this size for reuse, and at most this much free memory."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_keeping = False


def keep_memory() -> bool:
    """Make this process keep freed memory from now on.

    Returns:
        Whether it does. Only glibc can do it.
    """
    global _keeping
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        _keeping = all(mallopt(option, KEPT) == 1 for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
    return _keeping


def keeps() -> bool:
    """Return whether `keep_memory` has taken effect in this process."""
    return _keeping


def give_back() -> None:
    """Return free memory to the system, if the C library can.

    joblib takes kept memory for a leak and then restarts the process.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
