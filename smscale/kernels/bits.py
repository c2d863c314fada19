"""How many values of a bit field carry each bit."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True, cache=True)
def count_bits(values: NDArray[np.uint32]) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """(32,) int64 for (n,) uint32; quick where equal values lie together, as they do on a map."""
    counts = np.zeros(32, np.int64)
    last, run = np.uint32(0), 0
    for value in values:
        if value == last:
            run += 1
            continue
        _add(counts, last, run)
        last, run = value, 1
    _add(counts, last, run)
    return counts


@njit(nogil=True, cache=True)
def _add(counts: NDArray[np.int64], value: np.uint32, run: int) -> None:  # pragma: no cover - compiled
    for bit in range(32):
        if value >> np.uint32(bit) & np.uint32(1):
            counts[bit] += run
