"""What a worker keeps of the memory that it frees.

dask's nanny tells glibc's malloc to give back all but 64 kB at once (MALLOC_TRIM_THRESHOLD_). Arrays of a tile, some hundred kB
each, are then mapped anew by the system every time, page by page: a block of a season took half as long again, or more.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

#: glibc's parameters (malloc.h): freed memory at the end of the heap that is kept; size from which on an array is mapped by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Bytes that stay with the process: no more than a plan reserves for what kernels work in. Larger arrays than glibc lets be on the
#: heap are given back at once; those of a season's blocks are not, and are the next ones' memory (6 % of the time of a block).
KEPT, MAPPED = 64 << 20, 32 << 20


@cache
def keep_small_arrays() -> bool:
    """Let this process keep what small arrays leave free, where a nanny has forbidden it; whether that was done.

    Elsewhere malloc finds its thresholds by itself, and nothing is changed; nor with another C library.
    """
    if not os.environ.get("MALLOC_TRIM_THRESHOLD_") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
