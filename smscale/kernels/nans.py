"""NaNs by their bits: of many bit patterns only one is written, so that equal data are equal bytes."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

#: Unsigned integer of a float's size, its bits without the sign, of infinity, and of NumPy's NaN.
_BITS = {
    4: (np.uint32, 0x7FFFFFFF, 0x7F800000, 0x7FC00000),
    8: (np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000000),
}


def one_nan(values: NDArray) -> NDArray:
    """Contiguous float32 or float64 values with every NaN as NumPy writes it; the same array where that is so already."""
    kind, unsigned, infinity, nan = _BITS[values.dtype.itemsize]
    bits = values.reshape(-1).view(kind)
    if not _has_other(bits, kind(unsigned), kind(infinity), kind(nan)):
        return values
    return np.where(np.isnan(values), values.dtype.type(np.nan), values)


@njit(nogil=True, cache=True)
def _has_other(bits, unsigned, infinity, nan):  # type: ignore[no-untyped-def]
    found = False
    for i in range(bits.size):
        found |= ((bits[i] & unsigned) > infinity) & (bits[i] != nan)
    return found
