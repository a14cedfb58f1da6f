"""Keeps freed memory in the process, which on Linux CPUs is a large part of a convolutional step's time.

glibc gives blocks of some megabytes back to the kernel as soon as they are freed; the next activation then costs one
page fault per 4 KiB. Raising two thresholds keeps them. Results do not change, only the time; the process holds on to
its peak memory.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT = 2**30 - 1


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to reuse large blocks; the command line calls it, scripts may.

    Returns:
        Whether the allocator took the settings; False where it is not glibc's.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LIMIT)) and bool(mallopt(_M_TRIM_THRESHOLD, _LIMIT))
