"""Why a cell of a map has no value, or what is to be known of the one it has: a bit each, in one pass over the cells."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smscale.schema import Status

Bools = NDArray[np.bool_]
Marks = NDArray[np.uint32]

_BEYOND, _CLIPPED, _FILLED = (
    np.uint32(bit) for bit in (Status.OUTSIDE_TRAINING_RANGE, Status.CLIPPED, Status.NEIGHBOURS_FILLED)
)


@njit(nogil=True, cache=True)
def mark_missing(status: Marks, plane: NDArray, bit: np.uint32) -> None:  # pragma: no cover - compiled
    """Add a bit to status (t, m, n) where a plane of that shape is not finite, in place."""
    for t in range(status.shape[0]):
        for i in range(status.shape[1]):
            for j in range(status.shape[2]):
                status[t, i, j] |= np.uint32(0) if abs(plane[t, i, j]) < np.inf else bit


def settle(
    raw: NDArray[np.float32],
    outside: Bools,
    filled: Bools | None,
    bounds: tuple[float, float],
    values: NDArray[np.float32],
    status: Marks,
) -> None:
    """What a model said becomes a map: within bounds, none where a cell is marked, and marked for what it is.

    Parameters
    ----------
    raw : (t, m, n) of the model; outside : whether a predictor is outside its training range; filled : whether one stood in for a
        neighbour's, None for nowhere; bounds : lowest and highest value
    values : (t, m, n), filled; status : (t, m, n) of what keeps a cell from having a value, added to
    """
    low, high = (np.float32(bound) for bound in bounds)
    said, beyond = (np.broadcast_to(array, values.shape) for array in (raw, outside))
    _settle(said, beyond, np.empty((0, 0, 0), np.bool_) if filled is None else filled, low, high, values, status)


@njit(nogil=True, cache=True)
def _settle(raw, outside, filled, low, high, values, status):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for t in range(values.shape[0]):
        for i in range(values.shape[1]):
            for j in range(values.shape[2]):
                found = raw[t, i, j] if status[t, i, j] == 0 else np.float32(np.nan)
                known = abs(found) < np.inf
                clipped = known & ((found < low) | (found > high))
                within = low if found < low else found
                values[t, i, j] = high if within > high else within
                mark = _CLIPPED if clipped else np.uint32(0)
                mark |= _BEYOND if known & outside[t, i, j] else np.uint32(0)
                if filled.size > 0:
                    mark |= _FILLED if known & filled[t, i, j] else np.uint32(0)
                status[t, i, j] |= mark
