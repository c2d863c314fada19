"""Area-weighted reductions from one rectilinear grid to another, as mergeable sums.

The common area of two cells is the product of a latitude and a longitude overlap (`Grid.overlap`), so that a coarse
cell's sum is two small banded products. Each fine value is read once: a fine row is summed along longitude into coarse
columns, then added to the one or two coarse rows that it touches.

A *state* is a (s, t, m, n) float64 array of sums over the cells of one block; states of blocks add up (`merge`), and
are finished by `mean_of`, `direction_of`, `majority_of` or `shares_of`. Splitting the fine grid otherwise changes only rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from smscale.grid import authalic_q

Floats = NDArray[np.float64]
Classes = NDArray[np.uint8]

#: What a missing class is written as.
CLASS_FILL = 255
#: Length of the mean unit vector below which a mean direction says nothing.
MIN_RESULTANT = 1e-6
#: Shares of area that differ by less than this are a tie: areas are sums of some thousand float64 products.
_TIE = 1e-9
#: Overlaps below this share of the widest are rounding: EASE-2 edges of 9 and 36 km agree to 1e-12.
_SLIVER = 1e-9
#: Sums may be reordered for vector instructions; NaN keeps its meaning.
_REORDER = {"reassoc", "contract", "nsz"}


class Bands(NamedTuple):
    """The nonzero entries of each row of a banded matrix.

    start, stop : (n,) int64, first nonzero column and one past the last (both 0 in an empty row)
    weights : (n, widest) float64, the entries from `start` on, zero after `stop`
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    weights: Floats


class Overlap(NamedTuple):
    """How a block of fine cells lies in the coarse cells that it touches.

    rows : for each touched coarse row, the fine rows that touch it
    cols : for each touched coarse column, the fine columns that touch it
    row0, col0 : first touched coarse row and column
    shape : number of touched coarse rows and columns
    """

    rows: Bands
    cols: Bands
    row0: int
    col0: int
    shape: tuple[int, int]


def bands(matrix: Floats) -> Bands:
    """The band of nonzero entries of each row of `matrix` (n, k)."""
    nonzero = matrix > 0
    occupied = nonzero.any(axis=1)
    start = np.where(occupied, nonzero.argmax(axis=1), 0)
    stop = np.where(occupied, matrix.shape[1] - nonzero[:, ::-1].argmax(axis=1), 0)
    widest = max(int((stop - start).max(initial=0)), 1)
    weights = np.zeros((matrix.shape[0], widest))
    for i, (a, b) in enumerate(zip(start, stop, strict=True)):
        weights[i, : b - a] = matrix[i, a:b]
    return Bands(start.astype(np.int64), stop.astype(np.int64), weights)


def without_slivers(matrix: Floats) -> Floats:
    """An overlap matrix without the slivers that edges leave which are equal but for rounding."""
    return np.where(matrix > _SLIVER * matrix.max(initial=0.0), matrix, 0.0)


def overlap_of(lat_overlap: Floats, lon_overlap: Floats) -> Overlap:
    """The overlap of a block of fine cells, from its columns of `Grid.overlap`'s matrices.

    Parameters
    ----------
    lat_overlap : (m_coarse, m_fine) float64, any measure of area along latitude
    lon_overlap : (n_coarse, n_fine) float64, degrees
    """
    row0, row1 = _touched(lat_overlap)
    col0, col1 = _touched(lon_overlap)
    if row0 == row1 or col0 == col1:
        nothing = Bands(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 1)))
        return Overlap(nothing, nothing, 0, 0, (0, 0))
    rows, cols = bands(lat_overlap[row0:row1]), bands(lon_overlap[col0:col1])
    return Overlap(rows, cols, row0, col0, (row1 - row0, col1 - col0))


def _touched(matrix: Floats) -> tuple[int, int]:
    found = np.flatnonzero((matrix > 0).any(axis=1))
    return (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)


def cell_areas(lat_edges: Floats, lon_edges: Floats) -> Floats:
    """Areas of cells between descending latitude and ascending longitude edges, in the measure of `Grid.overlap`: (m, n)."""
    return np.outer(-np.diff(authalic_q(lat_edges)), np.diff(lon_edges))


# -- states -------------------------------------------------------------------------------------


def mean_state(values: NDArray, overlap: Overlap) -> Floats:
    """Area-weighted sums of the valid values, and their areas.

    Parameters
    ----------
    values : (t, m_fine, n_fine) float32 or float64, NaN where missing

    Returns
    -------
    (2, t, m, n) float64: sum of value x area, sum of area; m, n the touched coarse cells
    """
    state = np.zeros((2, values.shape[0], *overlap.shape))
    if state.size:
        _add_sums(np.ascontiguousarray(values), *overlap.rows, *overlap.cols, state[0], state[1])
    return state


def direction_state(degrees: NDArray, overlap: Overlap) -> Floats:
    """Area-weighted sums of the unit vectors of directions.

    Parameters
    ----------
    degrees : (t, m_fine, n_fine) float32 or float64, clockwise from north, NaN where missing

    Returns
    -------
    (3, t, m, n) float64: east component, north component, area
    """
    angle = np.deg2rad(degrees)
    return vector_state(np.sin(angle), np.cos(angle), overlap)


def vector_state(east: NDArray, north: NDArray, overlap: Overlap) -> Floats:
    """`direction_state` of directions given as unit vectors: (t, m_fine, n_fine) each, NaN where missing in both."""
    sum_north, area = mean_state(north, overlap)
    sum_east, _ = mean_state(east, overlap)
    return np.stack([sum_east, sum_north, area])


def class_state(values: Classes, overlap: Overlap, classes: Classes) -> Floats:
    """Area of each class.

    Parameters
    ----------
    values : (t, m_fine, n_fine) uint8; what is not in `classes` is missing
    classes : (k,) uint8, ascending

    Returns
    -------
    (k, t, m, n) float64, areas
    """
    slot = np.full(256, -1, dtype=np.int64)
    slot[classes] = np.arange(classes.size)
    state = np.zeros((values.shape[0], *overlap.shape, classes.size))
    if state.size:
        _add_class_areas(np.ascontiguousarray(values), slot, *overlap.rows, *overlap.cols, state)
    return np.moveaxis(state, -1, 0)


def merge(states: Sequence[Floats], overlaps: Sequence[Overlap], shape: tuple[int, int]) -> Floats:
    """The sum of the blocks' states on the whole coarse grid of `shape`, added in the order given."""
    s, t = states[0].shape[:2]
    total = np.zeros((s, t, *shape))
    for state, part in zip(states, overlaps, strict=True):
        m, n = part.shape
        total[:, :, part.row0 : part.row0 + m, part.col0 : part.col0 + n] += state
    return total


# -- results ------------------------------------------------------------------------------------


def mean_of(state: Floats, area: Floats, min_valid_fraction: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Area-weighted mean of a merged `mean_state`.

    Parameters
    ----------
    state : (2, t, m, n) float64
    area : (m, n) float64, what counts as a whole cell, in the state's measure of area
    min_valid_fraction : share of the cell that must be valid; some of it must be, always

    Returns
    -------
    mean : (t, m, n) float32, NaN where too little is valid
    valid_fraction : (t, m, n) float32, 0 to 1
    """
    fraction, enough = _valid(state[1], area, min_valid_fraction)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(enough, state[0] / state[1], np.nan)
    return mean.astype(np.float32), fraction


def direction_of(
    state: Floats, area: Floats, min_valid_fraction: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean direction of a merged `direction_state`: degrees clockwise from north, 0 to 360.

    The direction of the mean unit vector (Mardia & Jupp 2000, equation 2.2.4); NaN where the vectors cancel, and as
    `mean_of`.
    """
    fraction, enough = _valid(state[2], area, min_valid_fraction)
    with np.errstate(invalid="ignore", divide="ignore"):
        resultant = np.hypot(state[0], state[1]) / state[2]
    degrees = np.rad2deg(np.arctan2(state[0], state[1])) % 360.0
    degrees = np.where(enough & (resultant > MIN_RESULTANT), degrees, np.nan).astype(np.float32)
    return np.where(degrees >= 360, np.float32(0), degrees), fraction


def majority_of(
    state: Floats, area: Floats, min_valid_fraction: float, classes: Classes
) -> tuple[Classes, NDArray[np.float32]]:
    """The class of largest area of a merged `class_state`; of equal areas the lowest class.

    Returns
    -------
    classes : (t, m, n) uint8, 255 where too little is valid
    valid_fraction : (t, m, n) float32
    """
    fraction, enough = _valid(state.sum(axis=0), area, min_valid_fraction)
    winner = np.argmax(state >= state.max(axis=0) * (1 - _TIE), axis=0)
    return np.where(enough, classes[winner], np.uint8(CLASS_FILL)), fraction


def shares_of(
    state: Floats, area: Floats, min_valid_fraction: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of the valid area that each class has, of a merged `class_state`.

    Returns
    -------
    shares : (k, t, m, n) float32, 0 to 1 and 1 in sum; NaN where too little is valid
    valid_fraction : (t, m, n) float32
    """
    valid = state.sum(axis=0)
    fraction, enough = _valid(valid, area, min_valid_fraction)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(enough, state / valid, np.nan).astype(np.float32), fraction


def _valid(valid: Floats, area: Floats, least: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    fraction = np.divide(valid, area, out=np.zeros_like(valid), where=np.broadcast_to(area > 0, valid.shape))
    return np.clip(fraction, 0.0, 1.0).astype(np.float32), (valid > 0) & (fraction >= least - _TIE)


def as_classes(values: ArrayLike) -> Classes:
    """Classes as uint8; NaN, infinite and what does not fit 0..254 becomes 255, missing."""
    values = np.asarray(values)
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid="ignore"):
        known = (values >= 0) & (values < CLASS_FILL)
        return np.where(known, values, CLASS_FILL).astype(np.uint8)


# -- compiled -----------------------------------------------------------------------------------


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _add_sums(values, row_start, row_stop, row_weights, col_start, col_stop, col_weights, sums, areas):  # type: ignore[no-untyped-def]
    left, right = col_start.min(), col_stop.max()
    column_sums, column_areas = np.empty(right - left), np.empty(right - left)
    for t in range(values.shape[0]):
        for k in range(row_start.size):
            column_sums[:] = 0.0
            column_areas[:] = 0.0
            first, last = row_start[k], row_stop[k]
            fours = first + (last - first) // 4 * 4
            for y in range(first, fours, 4):
                _add_four_rows(values[t], y, row_weights[k, y - first :], left, column_sums, column_areas)
            for y in range(fours, last):
                _add_row(values[t, y, left:right], row_weights[k, y - first], column_sums, column_areas)
            for j in range(col_start.size):
                offset = col_start[j] - left
                total = 0.0
                area = 0.0
                for i in range(col_stop[j] - col_start[j]):
                    total += col_weights[j, i] * column_sums[offset + i]
                    area += col_weights[j, i] * column_areas[offset + i]
                sums[t, k, j] += total
                areas[t, k, j] += area


@njit(inline="always")  # a kernel that calls others would round differently when loaded from numba's cache
def _add_row(row, weight, sums, areas):  # type: ignore[no-untyped-def]
    for x in range(sums.size):
        value = np.float64(row[x])
        sums[x] += weight * value if value == value else 0.0
        areas[x] += weight if value == value else 0.0


@njit(inline="always")  # a kernel that calls others would round differently when loaded from numba's cache
def _add_four_rows(values, y, weights, left, sums, areas):  # type: ignore[no-untyped-def]
    """Four rows at a time: the column sums are loaded and stored a quarter as often."""
    row_a, row_b, row_c, row_d = values[y, left:], values[y + 1, left:], values[y + 2, left:], values[y + 3, left:]
    weight_a, weight_b, weight_c, weight_d = weights[0], weights[1], weights[2], weights[3]
    for x in range(sums.size):
        a, b, c, d = np.float64(row_a[x]), np.float64(row_b[x]), np.float64(row_c[x]), np.float64(row_d[x])
        sums[x] += ((weight_a * a if a == a else 0.0) + (weight_b * b if b == b else 0.0)) + (
            (weight_c * c if c == c else 0.0) + (weight_d * d if d == d else 0.0)
        )
        areas[x] += ((weight_a if a == a else 0.0) + (weight_b if b == b else 0.0)) + (
            (weight_c if c == c else 0.0) + (weight_d if d == d else 0.0)
        )


@njit(nogil=True, cache=True, error_model="numpy")
def _add_class_areas(values, slot, row_start, row_stop, row_weights, col_start, col_stop, col_weights, state):  # type: ignore[no-untyped-def]
    for t in range(values.shape[0]):
        for k in range(row_start.size):
            for y in range(row_start[k], row_stop[k]):
                row, weight = values[t, y], row_weights[k, y - row_start[k]]
                for j in range(col_start.size):
                    areas, widths = state[t, k, j], col_weights[j]
                    part = row[col_start[j] : col_stop[j]]
                    for x in range(part.size):
                        s = slot[part[x]]
                        if s >= 0:
                            areas[s] += weight * widths[x]
