"""Fields on a regular grid that are sums of one covariance over points, for many columns of coefficients at once.

A point far from a tile of the grid adds something smooth to it: the sum over all far points is taken at a few Chebyshev
nodes of the tile and interpolated from there (Trefethen 2013, Approximation Theory and Approximation Practice, chapter 8:
the error falls geometrically with the number of nodes, the faster the further the points). Points near the tile are summed
cell by cell. Tiles have their places on the globe, not in the grid: a cell's value does not depend on what is asked for
with it, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smscale.kernels.node_tiles import NODES, Tiles, groups, tiles_of, within
from smscale.kernels.sphere import pair_distance
from smscale.kernels.threads import in_threads

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.int64]
Covariance = Callable[[Floats], Floats]

#: Columns of the grid that are finished at once: bounds memory.
COLUMNS = 2048
#: Columns of coefficients that are finished at once: a strip of them stays in cache while near points are added.
SLAB = 16
#: Far sums, or the sizes of the near points' terms, so many times as large as the field cancel: float32 would show it.
CANCELLING, CANCELLING_TERMS = 4.0, 64.0


class Sources(NamedTuple):
    """What is summed: points (n, 3) in km, coefficients (n, t), level (t,) added to all; `kink`: a distance (km) at which the
    covariance is not smooth, beside 0; `scale`: size of the values that the field has at the points."""

    points: Floats
    coefficients: Floats
    level: Floats
    covariance: Covariance
    kink: float
    scale: float


def fill(out: Singles, lon: Floats, lat: Floats, sources: Sources, times: Integers | None = None) -> None:
    """Fill `out` (t, m, n) with the field at lat (m,) and lon (n,) degrees, each ascending or descending.

    As many strips of tiles are summed at once as BLAS has threads, which it gives up meanwhile.

    Parameters
    ----------
    times : (t,) which of a longer `out` (s, m, n) are filled, if not all
    """
    tiles = tiles_of(lon, lat, sources.points)
    used = np.flatnonzero(sources.coefficients.any(axis=1))
    in_threads(lambda row: _strip(out, times, tiles, row, sources, used), range(len(tiles.rows)), uses_blas=True)


def _strip(
    out: Singles, times: Integers | None, tiles: Tiles, row: int, sources: Sources, used: NDArray[np.intp]
) -> None:
    """All tiles between two parallels; `used` are the points that add something."""
    size = sources.level.size
    weights, rows = tiles.down[row].astype(np.float32), tiles.rows[row].cells
    for group in groups(tiles.columns, COLUMNS):
        cells = slice(tiles.columns[group[0]].cells.start, tiles.columns[group[-1]].cells.stop)
        strip = np.empty((size, NODES, cells.stop - cells.start), np.float32)
        near, exact = [], []
        for number in group:
            column = tiles.columns[number].cells
            close, cancels = _far(strip[:, :, within(column, cells)], tiles, row, number, sources, used)
            if cancels:
                exact.append(number)
            elif close.size:
                shares = np.ascontiguousarray(sources.coefficients[close].T, dtype=np.float32)
                cross = _cross(tiles, row, number, sources, close).astype(np.float32)
                near.append((column, shares, cross.reshape(close.size, -1, column.stop - column.start)))
        for start in range(0, size, SLAB):
            slab = slice(start, start + SLAB)
            if times is None:
                part = out[slab, rows, cells]
            else:
                part = np.empty((min(SLAB, size - start), rows.stop - rows.start, cells.stop - cells.start), np.float32)
            np.matmul(weights, strip[slab], out=part)
            for column, shares, cross in near:
                _add(part[:, :, within(column, cells)], shares[slab], cross)
            if times is not None:
                out[times[slab], rows, cells] = part
        for number in exact:
            columns = tiles.columns[number].cells
            whole = sources.coefficients[used].T @ _cross(tiles, row, number, sources, used) + sources.level[:, None]
            found = whole.reshape(size, -1, columns.stop - columns.start)
            out[slice(None) if times is None else times, rows, columns] = found


def _far(
    strip: Singles, tiles: Tiles, row: int, column: int, sources: Sources, used: NDArray[np.intp]
) -> tuple[NDArray[np.intp], bool]:
    """Far points' sum and the level at the tile's nodes along latitude and cells along longitude, into `strip` (t, NODES, c).

    Returns
    -------
    the points that are near, and whether far ones cancel so that the tile must be summed cell by cell instead
    """
    seen = tiles.seen(row, column)
    close = seen.near(sources.kink)[used]
    far, near = used[~close], used[close]
    values = sources.covariance(seen.distance[:, far]) @ sources.coefficients[far]
    terms = np.abs(sources.coefficients[near]).sum(axis=0) * sources.covariance(np.zeros(1))
    cancels = bool(
        np.abs(values).max(initial=0.0) > CANCELLING * sources.scale
        or terms.max(initial=0.0) > CANCELLING_TERMS * sources.scale
    )
    at_nodes = (values + sources.level).T.reshape(-1, NODES)
    strip[...] = (at_nodes @ tiles.along[column].T).reshape(strip.shape)
    return near, cancels


def _cross(tiles: Tiles, row: int, column: int, sources: Sources, points: NDArray[np.intp]) -> Floats:
    """Covariance (k, r * c) of some points and a tile's cells."""
    return sources.covariance(pair_distance(sources.points[points], tiles.cells(row, column)))


@njit(nogil=True, cache=True, fastmath={"contract"})
def _add(out, shares, cross):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """out (t, r, c) += shares (t, k) x cross (k, r, c), row by row while it is at hand."""
    for t in range(out.shape[0]):
        for i in range(out.shape[1]):
            line = out[t, i]
            for k in range(cross.shape[0]):
                share = shares[t, k]
                if share != 0.0:
                    part = cross[k, i]
                    for j in range(line.shape[0]):
                        line[j] += share * part[j]
