"""Fields on a regular grid that are sums of one covariance over points, for many columns of coefficients at once.

A point far from a tile of the grid adds something smooth to it: the sum over all far points is taken at a few Chebyshev
nodes of the tile and interpolated from there (Trefethen 2013, Approximation Theory and Approximation Practice, chapter 8:
the error falls geometrically with the number of nodes, the faster the further the points). Points near the tile are summed
cell by cell. Tiles have their places on the globe, not in the grid: a cell's value does not depend on what is asked for
with it, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from smscale.kernels.sphere import chord_points, pair_distance

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Covariance = Callable[[Floats], Floats]

#: Nodes along each side of a tile, and cells, about: what is far is then within 4e-7 of the field, as float32 sums are.
NODES, CELLS = 12, 50
#: A point is far from a tile from so many half diagonals of it on, from its middle.
FAR = 1.5
#: Columns of the grid that are finished at once: bounds memory.
COLUMNS = 2048
#: Columns of coefficients that are finished at once: a strip of them stays in cache while near points are added.
SLAB = 16
#: Far sums so many times as large as the field cancel against near ones: float32 would show it.
CANCELLING = 4.0


class Sources(NamedTuple):
    """What is summed: points (n, 3) in km, coefficients (n, t), level (t,) added to all; `kink`: a distance (km) at which the
    covariance is not smooth, beside 0; `scale`: size of the values that the field has at the points."""

    points: Floats
    coefficients: Floats
    level: Floats
    covariance: Covariance
    kink: float
    scale: float


class Span(NamedTuple):
    """Part of an axis: which cells, between which degrees its tile lies."""

    cells: slice
    low: float
    high: float

    @property
    def nodes(self) -> Floats:
        """(NODES,) degrees."""
        return (self.low + self.high) / 2 + (self.high - self.low) / 2 * _nodes()


def suits(lon: Floats, lat: Floats) -> bool:
    """Whether a grid has enough cells in a tile for nodes to be worth their while."""
    steps = [float(np.median(np.abs(np.diff(axis)))) for axis in (lon, lat) if axis.size > 1]
    return len(steps) == 2 and lon.size * lat.size >= 4 * NODES**2 and (_width(lon) / max(steps)) ** 2 >= 4 * NODES**2


def fill(out: Singles, lon: Floats, lat: Floats, sources: Sources) -> None:
    """Fill `out` (t, m, n) with the field at lat (m,) and lon (n,) degrees, each ascending or descending.

    As many strips of tiles are summed at once as BLAS has threads, which it gives up meanwhile.
    """
    width = _width(lon)
    columns, rows = list(_spans(lon, width)), list(_spans(lat, width))
    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    if threads == 1 or len(rows) == 1:
        for row in rows:
            _strip(out, lon, lat, row, columns, sources)
        return
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda row: _strip(out, lon, lat, row, columns, sources), rows))


def _strip(out: Singles, lon: Floats, lat: Floats, row: Span, columns: list[Span], sources: Sources) -> None:
    """All tiles between two parallels."""
    weights = _weights(lat[row.cells], row).astype(np.float32)
    for group in _groups(columns):
        cells = slice(group[0].cells.start, group[-1].cells.stop)
        strip = np.empty((len(out), NODES, cells.stop - cells.start), np.float32)
        near, exact = [], []
        for column in group:
            close, cancels = _far(strip[:, :, _within(column.cells, cells)], lon[column.cells], row, column, sources)
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
    y, x = np.meshgrid(row.nodes, column.nodes, indexing="ij")
    # Nodes, corners and the middle of the tile.
    east = np.hstack([x.ravel(), [column.low, column.high] * 2, (column.low + column.high) / 2])
    north = np.hstack([y.ravel(), np.repeat([row.low, row.high], 2), (row.low + row.high) / 2])
    places = chord_points(east, north)
    nodes, corner, centre = places[:-5], places[-5:-1], places[-1:]
    reach = float(pair_distance(centre, corner).max())
    away = pair_distance(centre, sources.points)[0]
    close = (away < FAR * reach) | (np.abs(away - sources.kink) < reach)
    values = sources.covariance(pair_distance(nodes, sources.points[~close])) @ sources.coefficients[~close]
    cancels = bool(np.abs(values).max(initial=0.0) > CANCELLING * sources.scale)
    at_nodes = (values + sources.level).T.reshape(-1, NODES)
    strip[...] = (at_nodes @ _weights(lon, column).T).reshape(strip.shape)
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


def _width(lon: Floats) -> float:
    """Side of a tile in degrees: a power of two, so that blocks of one grid agree on it."""
    return float(2.0 ** np.round(np.log2(CELLS * np.median(np.abs(np.diff(lon))))))


def _spans(axis: Floats, width: float) -> Iterator[Span]:
    tile = np.floor(axis / width).astype(np.int64)
    starts = np.flatnonzero(np.diff(tile, prepend=tile[0] - 1))
    for start, stop in zip(starts, [*starts[1:], axis.size], strict=True):
        yield Span(slice(int(start), int(stop)), float(tile[start] * width), float((tile[start] + 1) * width))


def _groups(spans: list[Span]) -> Iterator[list[Span]]:
    """Runs of neighbouring tiles of at most `COLUMNS` cells."""
    group: list[Span] = []
    for span in spans:
        if group and span.cells.stop - group[0].cells.start > COLUMNS:
            yield group
            group = []
        group.append(span)
    yield group


def _within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _nodes() -> Floats:
    """Chebyshev points of the first kind, (NODES,) in -1 to 1."""
    return np.cos((np.arange(NODES) + 0.5) * np.pi / NODES)


def _weights(axis: Floats, span: Span) -> Floats:
    """(cells, NODES): the interpolating polynomial through the span's nodes at the cells."""
    x = np.clip((axis - (span.low + span.high) / 2) / ((span.high - span.low) / 2), -1.0, 1.0)
    order = np.arange(NODES)
    at_cells = np.cos(order * np.arccos(x)[:, None])
    at_nodes = np.cos(order * np.arccos(_nodes())[:, None])
    halved = np.where(order == 0, 0.5, 1.0)
    return 2.0 / NODES * (at_cells * halved) @ at_nodes.T
