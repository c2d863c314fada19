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
    """Corrected cells within bounds, why each is what it is, and how many; parameters and counts as `correct_in_place`.

    Returns
    -------
    values : (t, rows, cols) float32, NaN where the background is not finite
    status : (t, rows, cols) uint32; counts : (3,) int64
    """
    values, status = np.array(field, np.float32), np.empty(background.shape, np.uint32)
    return values, status, correct_in_place(background, values, method, floor, bounds, status)


def correct_in_place(
    background: NDArray,
    field: NDArray[np.float32],
    method: NDArray[np.uint32],
    floor: float | None,
    bounds: tuple[float, float],
    status: NDArray[np.uint32],
    why: NDArray[np.uint32] | None = None,
) -> NDArray[np.int64]:
    """A field of residuals becomes the corrected map, NaN where the background is not finite.

    Parameters
    ----------
    background, field : (t, rows, cols), NaN where missing; method : (t,) the steps' `Status` bits
    floor : of a ratio's background; None for differences
    status : (t, rows, cols), filled with why each cell is what it is; why : (t, rows, cols) of the background, which is added

    Returns
    -------
    (3,) int64: cells corrected, left as they are, clipped
    """
    counts, row = np.zeros(3, np.int64), np.empty(background.shape[-1], np.float32)
    given = np.empty((0, 0, 0), np.uint32) if why is None else why
    low, high = float(bounds[0]), float(bounds[1])
    _correct(background, field, method, floor is not None, floor or 0.0, low, high, status, given, row, counts)
    return counts


@njit(cache=True, nogil=True)
def _correct(background, field, method, ratio, floor, low, high, status, why, row, counts):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    steps, rows, _ = background.shape
    for t in range(steps):
        for i in range(rows):
            if ratio:
                _row_by_ratio(background[t, i], field[t, i], floor, row)
            else:
                _row_by_difference(background[t, i], field[t, i], row)
            _bound_row(background[t, i], row, method[t], low, high, field[t, i], status[t, i], counts)
            if why.size > 0:
                for j in range(row.size):
                    status[t, i, j] |= why[t, i, j]


@njit(cache=True, nogil=True)
def _row_by_difference(ground, field, row):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for j in range(ground.size):
        change = field[j]
        change = change if abs(change) < np.inf else 0.0
        row[j] = ground[j] + change


@njit(cache=True, nogil=True)
def _row_by_ratio(ground, field, floor, row):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for j in range(ground.size):
        change = field[j] - 1.0
        change = change if abs(change) < np.inf else 0.0
        scale = ground[j] if ground[j] > floor else floor
        row[j] = ground[j] + change * scale


@njit(cache=True, nogil=True)
def _bound_row(ground, row, bit, low, high, field, status, counts):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Corrected values within bounds in place of the field, their status, and the counts; without branches, so that it runs several
    cells at a time."""
    corrected, kept, clipped = np.int64(0), np.int64(0), np.int64(0)
    for j in range(row.size):
        raw = row[j]
        known, given = abs(ground[j]) < np.inf, abs(field[j]) < np.inf
        fused, outside = known & given, known & ((raw < low) | (raw > high))
        within = low if raw < low else raw
        within = high if within > high else within
        field[j] = within if known else np.nan
        status[j] = (bit if fused else _NOT_FUSED) | (_CLIPPED if outside else np.uint32(0))
        corrected += fused
        kept += known
        clipped += outside
    counts[0] += corrected
    counts[1] += kept - corrected
    counts[2] += clipped


def vary_in_place(background: NDArray, variance: NDArray[np.float32], floor: float | None) -> None:
    """A residual's variance (t, rows, cols) becomes that of the corrected map, NaN where the background is not finite.

    For differences that is the variance itself, for ratios variance * max(background, floor)**2.
    """
    _vary(background, variance, floor is not None, np.float32(floor or 0.0))


@njit(cache=True, nogil=True)
def _vary(background, variance, ratio, floor):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for t in range(background.shape[0]):
        for i in range(background.shape[1]):
            ground, row = background[t, i], variance[t, i]
            for j in range(ground.size):
                scale = ground[j] if ground[j] > floor else floor
                changed = row[j] * (scale * scale) if ratio else row[j]
                row[j] = changed if abs(ground[j]) < np.inf else np.nan


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
