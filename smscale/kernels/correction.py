"""A map corrected by a field of residuals, in one pass over the cells: arrays in, arrays out.

Both kinds of residual are one formula, corrected = background + (field - nothing) * max(background, floor)**kind: for
differences `nothing` is 0 and the factor 1, for ratios `nothing` is 1 and the factor the background from the floor up.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smscale.schema import Status

_NOT_FUSED, _CLIPPED = np.uint32(Status.NOT_FUSED), np.uint32(Status.CLIPPED)


def correct(
    background: NDArray, field: NDArray, method: NDArray[np.uint32], floor: float | None, bounds: tuple[float, float]
) -> tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.int64]]:
    """Corrected cells within bounds, why each is what it is, and how many.

    Parameters
    ----------
    background, field : (t, rows, cols), NaN where missing; method : (t,) the steps' `Status` bits
    floor : of a ratio's background; None for differences

    Returns
    -------
    values : (t, rows, cols) float32, NaN where the background is not finite
    status : (t, rows, cols) uint32
    counts : (3,) int64: cells corrected, left as they are, clipped
    """
    values, status = np.empty(background.shape, np.float32), np.empty(background.shape, np.uint32)
    counts = np.zeros(3, np.int64)
    low, high = float(bounds[0]), float(bounds[1])
    _correct(background, field, method, floor is not None, floor or 0.0, low, high, values, status, counts)
    return values, status, counts


@njit(cache=True, nogil=True)
def _correct(background, field, method, ratio, floor, low, high, values, status, counts):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    steps, rows, _ = background.shape
    for t in range(steps):
        for i in range(rows):
            if ratio:
                _row_by_ratio(background[t, i], field[t, i], floor, values[t, i])
            else:
                _row_by_difference(background[t, i], field[t, i], values[t, i])
            _bound_row(background[t, i], field[t, i], method[t], low, high, values[t, i], status[t, i], counts)


@njit(cache=True, nogil=True)
def _row_by_difference(ground, field, values):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for j in range(ground.size):
        change = field[j]
        change = change if abs(change) < np.inf else 0.0
        values[j] = ground[j] + change


@njit(cache=True, nogil=True)
def _row_by_ratio(ground, field, floor, values):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for j in range(ground.size):
        change = field[j] - 1.0
        change = change if abs(change) < np.inf else 0.0
        scale = ground[j] if ground[j] > floor else floor
        values[j] = ground[j] + change * scale


@njit(cache=True, nogil=True)
def _bound_row(ground, field, bit, low, high, values, status, counts):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Values within bounds, their status, and the counts; without branches, so that it runs several cells at a time."""
    corrected, kept, clipped = np.int64(0), np.int64(0), np.int64(0)
    for j in range(values.size):
        raw = values[j]
        known, given = abs(ground[j]) < np.inf, abs(field[j]) < np.inf
        fused, outside = known & given, known & ((raw < low) | (raw > high))
        within = low if raw < low else raw
        within = high if within > high else within
        values[j] = within if known else np.nan
        status[j] = (bit if fused else _NOT_FUSED) | (_CLIPPED if outside else np.uint32(0))
        corrected += fused
        kept += known
        clipped += outside
    counts[0] += corrected
    counts[1] += kept - corrected
    counts[2] += clipped


@njit(cache=True, nogil=True)
def draw_in(field, weight, nothing):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Draw a field (t, rows, cols) to `nothing` by weights of its shape, 0 to 1, in place; NaN where the weight is 0."""
    steps, rows, cols = field.shape
    for t in range(steps):
        for i in range(rows):
            for j in range(cols):
                drawn = nothing + weight[t, i, j] * (field[t, i, j] - nothing)
                field[t, i, j] = drawn if weight[t, i, j] > 0 else np.nan


@njit(cache=True, nogil=True)
def join(field, static, ratio):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Add a static (rows, cols) into every step of a field (t, rows, cols), or multiply, in place; NaN is nothing."""
    steps, rows, cols = field.shape
    for t in range(steps):
        for i in range(rows):
            for j in range(cols):
                rest, level = field[t, i, j], static[i, j]
                both = rest * level if ratio else rest + level
                both = level if rest != rest else both
                field[t, i, j] = rest if level != level else both
