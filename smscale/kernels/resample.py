"""Gather scattered pixels into cells: k x k sub-points of each cell look up one pixel each, then are reduced.

The look-up (`flat`) is made once for a window and serves every day. Positions below 0 are missing pixels.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

#: What a missing class is written as.
CLASS_FILL = 255


def gather_mean(pixels: NDArray[np.float32], flat: NDArray[np.int32], k: int) -> NDArray[np.float32]:
    """Mean of the valid sub-points of each cell.

    Parameters
    ----------
    pixels : (p,) float32, NaN where missing
    flat : (m k, n k) int32, position in `pixels` of each sub-point; negative where there is none
    k : sub-points along each side of a cell

    Returns
    -------
    (m, n) float32, NaN where no sub-point is valid
    """
    cells = np.empty((flat.shape[0] // k, flat.shape[1] // k), dtype=np.float32)
    _mean(np.ascontiguousarray(pixels, dtype=np.float32), flat, k, cells)
    return cells


def gather_majority(pixels: NDArray[np.uint8], flat: NDArray[np.int32], k: int) -> NDArray[np.uint8]:
    """The most frequent valid class of each cell's sub-points; of equal counts the lowest class.

    Parameters
    ----------
    pixels : (p,) uint8, 255 where missing
    flat, k : as `gather_mean`

    Returns
    -------
    (m, n) uint8, 255 where no sub-point is valid
    """
    cells = np.empty((flat.shape[0] // k, flat.shape[1] // k), dtype=np.uint8)
    _majority(np.ascontiguousarray(pixels, dtype=np.uint8), flat, k, cells)
    return cells


def gather_nearest(pixels: NDArray, flat: NDArray[np.int32], k: int, fill: object) -> NDArray:
    """The pixel under the middle sub-point of each cell (for even `k` the one south-east of the middle).

    Returns
    -------
    (m, n) of the type of `pixels`, `fill` where there is no pixel
    """
    middle = flat[k // 2 :: k, k // 2 :: k]
    return np.where(middle >= 0, pixels[np.maximum(middle, 0)], np.asarray(fill, dtype=pixels.dtype))


@njit(nogil=True, cache=True)
def _mean(pixels, flat, k, cells):  # type: ignore[no-untyped-def]
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            total = 0.0
            count = 0
            for y in range(i * k, i * k + k):
                for x in range(j * k, j * k + k):
                    if flat[y, x] >= 0:
                        value = pixels[flat[y, x]]
                        if value == value:
                            total += value
                            count += 1
            cells[i, j] = total / count if count else np.nan


@njit(nogil=True, cache=True)
def _majority(pixels, flat, k, cells):  # type: ignore[no-untyped-def]
    counts = np.zeros(256, dtype=np.int64)
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            counts[:] = 0
            for y in range(i * k, i * k + k):
                for x in range(j * k, j * k + k):
                    if flat[y, x] >= 0:
                        counts[pixels[flat[y, x]]] += 1
            winner = np.argmax(counts[:CLASS_FILL])
            cells[i, j] = winner if counts[winner] else CLASS_FILL
