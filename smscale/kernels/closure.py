"""A smooth surface whose means over the valid parts of coarse cells are given: sums, solution, evaluation.

The surface is a sum of products of uniform quadratic B-splines, one per coarse cell and one ring of cells around the grid
(de Boor 2001, A Practical Guide to Splines, chapter IX). In cell i, at t from -1/2 to 1/2 of its width, three of them differ
from zero: (1/2 - t)^2 / 2 of cell i - 1, 3/4 - t^2 of i, (1/2 + t)^2 / 2 of i + 1. They sum to one and join with a
continuous slope. The mean of the surface over the valid fine cells of a coarse cell therefore is a weighted mean of 3 x 3
coefficients a, whose weights are what blocks add up. With one row of M per closed cell,

    minimise |a|^2 subject to M a = r:    a = M' (M M')^-1 r,

solved by conjugate gradients (Hestenes & Stiefel 1952). Taking the a as independent and of one variance, it is kriging of a
field of that covariance from its areal means (Kyriakidis 2004, Geographical Analysis 36, 259-289): local, and zero from
two cells beyond the last closed one.

A fine cell that two coarse cells share counts in both by its area; the surface is read there on their common edge, so that no
mean reaches further than 3 x 3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smscale.kernels.overlap import bands

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.int64]

#: Added to the diagonal of M M', which has 0.25 there and no eigenvalue below 1/81 where footprints are whole.
RIDGE = 1e-8
#: The residual norm, as a share of that of r, at which conjugate gradients stop; and their most steps.
TOLERANCE, MOST_STEPS = 1e-10, 1000
#: The splines' control points on both halves of a cell (their polar forms at -1/2 -1/2, -1/2 0, 0 0, 0 1/2, 1/2 1/2): a surface
#: lies within the range of its control points (Farin 2002, Curves and Surfaces for CAGD, section 4.3).
CONTROL = np.array([[0.5, 0.5, 0], [0.25, 0.75, 0], [0.125, 0.75, 0.125], [0, 0.75, 0.25], [0, 0.5, 0.5]])
#: Sums may be reordered for vector instructions; NaN keeps its meaning.
_REORDER = {"reassoc", "contract", "nsz"}


class Places(NamedTuple):
    """Where along one axis the surface is read for each fine cell.

    cell : (k,) int64, coarse cell; offset : (k,) float64, from its centre in its widths, -0.5 to 0.5
    holder : (k,) int64, the coarse cell that holds most of the fine cell
    """

    cell: Integers
    offset: Floats
    holder: Integers


class Axis(NamedTuple):
    """The fine cells of each coarse cell along one axis.

    start, stop : (n,) int64, first fine cell and one past the last
    weights : (n, widest, 4) float64, share of the coarse cell that a fine cell covers, and that times the three splines there
    """

    start: Integers
    stop: Integers
    weights: Floats


def places(overlap: Floats, centres: Floats, edges: Floats) -> Places:
    """Where the surface is read along one axis.

    Parameters
    ----------
    overlap : (n, k) float64, common lengths of coarse and fine cells; one or two coarse cells for each fine one
    centres : (k,) float64, of the fine cells; edges : (n + 1,) float64 ascending, of the coarse ones, in one measure
    """
    touched = overlap > 0
    cell = touched.argmax(axis=0)
    offset = np.clip((centres - edges[cell]) / (edges[cell + 1] - edges[cell]) - 0.5, -0.5, 0.5)
    return Places(cell, np.where(touched.sum(axis=0) > 1, 0.5, offset), overlap.argmax(axis=0))


def splines(offset: Floats) -> Floats:
    """(..., 3) float64: the three quadratic B-splines at offsets from a cell's centre."""
    return np.stack([(0.5 - offset) ** 2 / 2, 0.75 - offset**2, (0.5 + offset) ** 2 / 2], axis=-1)


def axis(overlap: Floats, widths: Floats, where: Places, first: int) -> Axis:
    """The weights of the sums along one axis.

    Parameters
    ----------
    overlap : (n, k) float64, rows of the touched coarse cells, from number `first` on; widths : (n,) float64, of those
    """
    start, stop, shares = bands(overlap / widths[:, None])
    weights = np.zeros((*shares.shape, 4))
    weights[..., 0] = shares
    for i in range(start.size):
        fine = slice(start[i], stop[i])
        offset = np.where(where.cell[fine] == first + i, where.offset[fine], -0.5)
        weights[i, : offset.size, 1:] = shares[i, : offset.size, None] * splines(offset)
    return Axis(start, stop, weights)


# -- sums ---------------------------------------------------------------------------------------


def sums(values: NDArray, rows: Axis, cols: Axis) -> Floats:
    """Area-weighted sums of the valid values, and of the 3 x 3 splines over the valid fine cells.

    Parameters
    ----------
    values : (t, m, n) float32 or float64, NaN where missing

    Returns
    -------
    (10, t, r, c) float64: value x area, then area x spline, north-west to south-east; areas are shares of the coarse cell
    """
    out = np.zeros((10, values.shape[0], rows.start.size, cols.start.size))
    if out.size:
        _add_sums(np.ascontiguousarray(values), *rows, *cols, out)
    return out


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _add_sums(values, row_start, row_stop, row_weights, col_start, col_stop, col_weights, out):  # type: ignore[no-untyped-def]
    left, right = col_start.min(), col_stop.max()
    work = np.empty((4, right - left))
    total, north, middle, south = work[0], work[1], work[2], work[3]
    for t in range(values.shape[0]):
        for k in range(row_start.size):
            work[:] = 0.0
            first, last = row_start[k], row_stop[k]
            pairs = first + (last - first) // 2 * 2
            for y in range(first, pairs, 2):
                upper, lower = values[t, y, left:right], values[t, y + 1, left:right]
                a, an, am, az = row_weights[k, y - first]
                b, bn, bm, bz = row_weights[k, y + 1 - first]
                for x in range(total.size):
                    f, g = np.float64(upper[x]), np.float64(lower[x])
                    total[x] += (a * f if f == f else 0.0) + (b * g if g == g else 0.0)
                    north[x] += (an if f == f else 0.0) + (bn if g == g else 0.0)
                    middle[x] += (am if f == f else 0.0) + (bm if g == g else 0.0)
                    south[x] += (az if f == f else 0.0) + (bz if g == g else 0.0)
            for y in range(pairs, last):
                row = values[t, y, left:right]
                a, an, am, az = row_weights[k, y - first]
                for x in range(total.size):
                    f = np.float64(row[x])
                    total[x] += a * f if f == f else 0.0
                    north[x] += an if f == f else 0.0
                    middle[x] += am if f == f else 0.0
                    south[x] += az if f == f else 0.0
            for j in range(col_start.size):
                value = 0.0
                nw, nn, ne, ww, cc, ee, sw, ss, se = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
                offset = col_start[j] - left
                for i in range(col_stop[j] - col_start[j]):
                    w, ow, oc, oe = (
                        col_weights[j, i, 0],
                        col_weights[j, i, 1],
                        col_weights[j, i, 2],
                        col_weights[j, i, 3],
                    )
                    p, q, s = north[offset + i], middle[offset + i], south[offset + i]
                    value += w * total[offset + i]
                    nw += ow * p
                    nn += oc * p
                    ne += oe * p
                    ww += ow * q
                    cc += oc * q
                    ee += oe * q
                    sw += ow * s
                    ss += oc * s
                    se += oe * s
                out[0, t, k, j] = value
                out[1, t, k, j], out[2, t, k, j], out[3, t, k, j] = nw, nn, ne
                out[4, t, k, j], out[5, t, k, j], out[6, t, k, j] = ww, cc, ee
                out[7, t, k, j], out[8, t, k, j], out[9, t, k, j] = sw, ss, se


# -- solution -----------------------------------------------------------------------------------


def solve(weights: Floats, wanted: Floats) -> tuple[Floats, Floats]:
    """Coefficients of the surface of least norm with the wanted means.

    Parameters
    ----------
    weights : (9, t, r, c) float64, mean of each spline over the valid part of each cell; used where `wanted` is
    wanted : (t, r, c) float64, NaN where a cell asks for nothing

    Returns
    -------
    coefficients : (t, r + 2, c + 2) float64, with a ring around the grid
    highest : (t, r, c) float64, what the surface's absolute value does not exceed in each cell that asks; 0 in others
    """
    t, r, c = wanted.shape
    coefficients, highest = np.zeros((t, r + 2, c + 2)), np.zeros((t, r, c))
    _solve(weights, wanted, CONTROL, coefficients, highest)
    return coefficients, highest


@njit(nogil=True, cache=True, error_model="numpy")
def _solve(weights, wanted, at, coefficients, highest):  # type: ignore[no-untyped-def]
    # one kernel with all loops: a kernel that calls others would round differently when loaded from numba's cache
    for t in range(wanted.shape[0]):
        where = np.argwhere(np.isfinite(wanted[t]))
        n = len(where)
        if n == 0:
            continue
        matrix, rest = np.empty((n, 9)), np.empty(n)
        for k in range(n):
            i, j = where[k]
            rest[k] = wanted[t, i, j]
            matrix[k] = weights[:, t, i, j]
        a, direction, size = coefficients[t], rest.copy(), (rest * rest).sum()
        target = TOLERANCE**2 * size
        steps = 0
        while size > target and steps < MOST_STEPS:
            spread = np.zeros(a.shape)
            for k in range(n):
                i, j = where[k]
                for p in range(3):
                    for q in range(3):
                        spread[i + p, j + q] += matrix[k, 3 * p + q] * direction[k]
            image = RIDGE * direction
            for k in range(n):
                i, j = where[k]
                for p in range(3):
                    for q in range(3):
                        image[k] += matrix[k, 3 * p + q] * spread[i + p, j + q]
            length = size / (direction * image).sum()
            a += length * spread
            rest -= length * image
            before, size = size, (rest * rest).sum()
            direction = rest + size / before * direction
            steps += 1
        for k in range(n):
            i, j = where[k]
            for u in range(len(at)):
                for v in range(len(at)):
                    value = 0.0
                    for p in range(3):
                        for q in range(3):
                            value += at[u, p] * at[v, q] * a[i + p, j + q]
                    highest[t, i, j] = max(highest[t, i, j], abs(value))


# -- evaluation ---------------------------------------------------------------------------------


def add(
    values: Singles,
    coefficients: Singles,
    rows: Places,
    cols: Places,
    closed: NDArray[np.bool_],
    limit: float,
    bounds: tuple[float, float],
    bits: tuple[int, int],
    out: Singles,
    status: NDArray[np.uint32],
) -> Integers:
    """The surface added to a field, within the limit and the bounds.

    Parameters
    ----------
    values : (t, m, n) float32, NaN where missing
    coefficients : (t, r + 2, c + 2) float32; closed : (t, r, c) bool
    bits : status of cells that no closed coarse cell holds, and of those that the bounds clip
    out : (t, m, n) float32, may be `values`; status : (t, m, n) uint32, the bits are added to it

    Returns
    -------
    (4,) int64: valid cells within closed coarse cells, without, held by the limit, clipped
    """
    p, q = splines(rows.offset).astype(np.float32), splines(cols.offset).astype(np.float32)
    counts, single = np.zeros(4, np.int64), np.float32
    # strided views are no food for vector instructions: they are worked on in copies
    result, state = np.ascontiguousarray(out), np.ascontiguousarray(status)
    _add(
        np.ascontiguousarray(values), np.ascontiguousarray(coefficients), rows.cell, p, cols.cell, q,
        rows.holder, cols.holder, np.ascontiguousarray(closed), single(limit), single(bounds[0]), single(bounds[1]),
        np.uint32(bits[0]), np.uint32(bits[1]), result, state, counts,
    )  # fmt: skip
    for given, made in ((out, result), (status, state)):
        if given is not made:
            given[:] = made
    return counts


@njit(nogil=True, cache=True, error_model="numpy")
def _add(  # type: ignore[no-untyped-def]
    values, coefficients, row_cell, p, col_cell, q, row_holder, col_holder, closed,
    limit, low, high, apart, clipped, out, status, counts,
):  # fmt: skip
    m, n = row_cell.size, col_cell.size
    first, last = row_cell.min(), row_cell.max() + 3
    along = np.empty((last - first, n), np.float32)
    outside = np.empty(n, np.uint32)
    n_valid, n_apart, n_limited, n_clipped = 0, 0, 0, 0
    for t in range(values.shape[0]):
        for r in range(first, last):
            for x in range(n):
                j = col_cell[x]
                a = coefficients[t, r]
                along[r - first, x] = (q[x, 0] * a[j] + q[x, 1] * a[j + 1]) + q[x, 2] * a[j + 2]
        for y in range(m):
            if y == 0 or row_holder[y] != row_holder[y - 1]:
                for x in range(n):
                    outside[x] = np.uint32(0) if closed[t, row_holder[y], col_holder[x]] else apart
            i = row_cell[y] - first
            north, middle, south = along[i], along[i + 1], along[i + 2]
            pn, pm, ps = p[y, 0], p[y, 1], p[y, 2]
            row, result, state = values[t, y], out[t, y], status[t, y]
            for x in range(n):
                raw = (pn * north[x] + pm * middle[x]) + ps * south[x]
                lift = min(max(raw, -limit), limit)
                value = row[x] + lift
                valid = value == value
                beyond = (value < low) | (value > high)
                result[x] = low if value < low else (high if value > high else value)
                state[x] |= (outside[x] if valid else np.uint32(0)) | (clipped if beyond else np.uint32(0))
                n_valid += valid
                n_apart += valid & (outside[x] != 0)
                n_limited += valid & (raw != lift)
                n_clipped += beyond
    counts[0], counts[1], counts[2], counts[3] = n_valid - n_apart, n_apart, n_limited, n_clipped


def at_points(coefficients: Singles, cell: tuple[Integers, Integers], offset: tuple[Floats, Floats]) -> Singles:
    """(t, k) float32: the surface at k places, in the order of operations of `add`: the same bytes."""
    (i, j), p, q = cell, splines(offset[0]).astype(np.float32), splines(offset[1]).astype(np.float32)
    along = [
        (q[:, 0] * coefficients[:, i + r, j] + q[:, 1] * coefficients[:, i + r, j + 1])
        + q[:, 2] * coefficients[:, i + r, j + 2]
        for r in range(3)
    ]
    return (p[:, 0] * along[0] + p[:, 1] * along[1]) + p[:, 2] * along[2]
