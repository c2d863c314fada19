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

from smscale.kernels.node_tiles import (
    NODES,
    Span,
    groups,
    node_weights,
    nodes_and_near,
    spans,
    tile_width,
    within,
)
from smscale.kernels.sphere import chord_points, pair_distance
from smscale.kernels.threads import in_threads

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
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


def fill(out: Singles, lon: Floats, lat: Floats, sources: Sources) -> None:
    """Fill `out` (t, m, n) with the field at lat (m,) and lon (n,) degrees, each ascending or descending.

    As many strips of tiles are summed at once as BLAS has threads, which it gives up meanwhile.
    """
    width = tile_width(lon)
    columns, rows = list(spans(lon, width)), list(spans(lat, width))
    in_threads(lambda row: _strip(out, lon, lat, row, columns, sources), rows, uses_blas=True)


def _strip(out: Singles, lon: Floats, lat: Floats, row: Span, columns: list[Span], sources: Sources) -> None:
    """All tiles between two parallels."""
    weights = node_weights(lat[row.cells], row).astype(np.float32)
    for group in groups(columns, COLUMNS):
        cells = slice(group[0].cells.start, group[-1].cells.stop)
        strip = np.empty((len(out), NODES, cells.stop - cells.start), np.float32)
        near, exact = [], []
        for column in group:
            close, cancels = _far(strip[:, :, within(column.cells, cells)], lon[column.cells], row, column, sources)
            if cancels:
                exact.append(column)
            elif close.size:
                shares = np.ascontiguousarray(sources.coefficients[close].T, dtype=np.float32)
                cross = _cross(lon[column.cells], lat[row.cells], sources, close).astype(np.float32)
                near.append((column, shares, cross.reshape(close.size, -1, column.cells.stop - column.cells.start)))
        for start in range(0, len(out), SLAB):
            slab = slice(start, start + SLAB)
            np.matmul(weights, strip[slab], out=out[slab, row.cells, cells])
            for column, shares, cross in near:
                _add(out[slab, row.cells, column.cells], shares[slab], cross)
        for column in exact:
            tile = out[:, row.cells, column.cells]
            whole = _cross(lon[column.cells], lat[row.cells], sources, np.arange(len(sources.points)))
            tile[...] = (sources.coefficients.T @ whole + sources.level[:, None]).reshape(tile.shape)


def _far(strip: Singles, lon: Floats, row: Span, column: Span, sources: Sources) -> tuple[NDArray[np.intp], bool]:
    """Far points' sum and the level at the tile's nodes along latitude and cells along longitude, into `strip` (t, NODES, c).

    Returns
    -------
    the points that are near, and whether far ones cancel so that the tile must be summed cell by cell instead
    """
    nodes, close = nodes_and_near(row, column, sources.points, sources.kink)
    values = sources.covariance(pair_distance(nodes, sources.points[~close])) @ sources.coefficients[~close]
    near = np.abs(sources.coefficients[close]).sum(axis=0) * sources.covariance(np.zeros(1))
    cancels = bool(
        np.abs(values).max(initial=0.0) > CANCELLING * sources.scale
        or near.max(initial=0.0) > CANCELLING_TERMS * sources.scale
    )
    at_nodes = (values + sources.level).T.reshape(-1, NODES)
    strip[...] = (at_nodes @ node_weights(lon, column).T).reshape(strip.shape)
    return np.flatnonzero(close), cancels


def _cross(lon: Floats, lat: Floats, sources: Sources, points: NDArray[np.intp]) -> Floats:
    """Covariance (k, r * c) of some points and a tile's cells."""
    y, x = np.meshgrid(lat, lon, indexing="ij")
    return sources.covariance(pair_distance(sources.points[points], chord_points(x.ravel(), y.ravel())))


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
