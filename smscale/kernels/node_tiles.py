"""Tiles of a regular grid, with a few Chebyshev nodes each: what is smooth is computed there and interpolated to the cells.

What points far from a tile add is smooth in it: interpolated, it is exact to an error that falls geometrically with the number of
nodes, the faster the further the points (Trefethen 2013, Approximation Theory and Approximation Practice, chapter 8). Tiles have
their places on the globe, not in the grid: a cell's value does not depend on what is asked for with it, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smscale.kernels.sphere import chord_points, grid_points, pair_distance

Floats = NDArray[np.float64]

#: Nodes along each side of a tile, and cells, about: what is far is then within 4e-7 of the field, as float32 sums are.
NODES, CELLS = 12, 50
#: A point is far from a tile from so many half diagonals of it on, from its middle.
FAR = 1.5
#: Distances from the nodes of a grid's tiles to points that are kept for the next who ask for the same ones: 16 MB.
KEPT = 2_000_000


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
    return (
        len(steps) == 2 and lon.size * lat.size >= 4 * NODES**2 and (tile_width(lon) / max(steps)) ** 2 >= 4 * NODES**2
    )


def tile_width(lon: Floats) -> float:
    """Side of a tile in degrees: a power of two, so that blocks of one grid agree on it."""
    return float(2.0 ** np.round(np.log2(CELLS * np.median(np.abs(np.diff(lon))))))


def spans(axis: Floats, width: float) -> Iterator[Span]:
    tile = np.floor(axis / width).astype(np.int64)
    starts = np.flatnonzero(np.diff(tile, prepend=tile[0] - 1))
    for start, stop in zip(starts, [*starts[1:], axis.size], strict=True):
        yield Span(slice(int(start), int(stop)), float(tile[start] * width), float((tile[start] + 1) * width))


def groups(spans: list[Span], most: int) -> Iterator[range]:
    """Numbers of neighbouring tiles of at most so many cells together, or of one tile."""
    start = 0
    for number, span in enumerate(spans):
        if number > start and span.cells.stop - spans[start].cells.start > most:
            yield range(start, number)
            start = number
    yield range(start, len(spans))


def within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


class Seen(NamedTuple):
    """Points (n,) as a tile sees them: km from its nodes (NODES**2, n), km from its middle (n,), the tile's own half diagonal."""

    distance: Floats
    away: Floats
    reach: float

    def near(self, kink: float) -> NDArray[np.bool_]:
        """(n,): which are near; also what may be as far as `kink`, a distance (km) at which the covariance is not smooth, beside 0."""
        return (self.away < FAR * self.reach) | (np.abs(self.away - kink) < self.reach)


class Tiles:
    """A grid's tiles, and some points (n, 3) in km as they see them; `tiles_of` keeps those that were asked for last.

    rows, columns : spans of latitude and longitude; down, along : `node_weights` of each
    """

    def __init__(self, lon: Floats, lat: Floats, points: Floats) -> None:
        width = tile_width(lon)
        self.lon, self.lat, self.points = lon, lat, points
        self.rows, self.columns = list(spans(lat, width)), list(spans(lon, width))
        self.down = [node_weights(lat[span.cells], span) for span in self.rows]
        self.along = [node_weights(lon[span.cells], span) for span in self.columns]
        self._seen: dict[tuple[int, int], Seen] = {}
        self._keeps = len(self.rows) * len(self.columns) * NODES**2 * len(points) <= KEPT

    def seen(self, row: int, column: int) -> Seen:
        """The points from one tile."""
        found = self._seen.get((row, column))
        if found is None:
            found = _seen(self.rows[row], self.columns[column], self.points)
            if self._keeps:
                self._seen[row, column] = found
        return found

    def cells(self, row: int, column: int) -> Floats:
        """(m * n, 3) km of a tile's cells, row by row."""
        return grid_points(self.lon[self.columns[column].cells], self.lat[self.rows[row].cells])


def tiles_of(lon: Floats, lat: Floats, points: Floats) -> Tiles:
    """The tiles of a grid: lon (n,) and lat (m,) degrees, each ascending or descending."""
    return _tiles_of(lon.tobytes(), lat.tobytes(), np.ascontiguousarray(points).tobytes())


@lru_cache(maxsize=1)
def _tiles_of(lon: bytes, lat: bytes, points: bytes) -> Tiles:
    return Tiles(np.frombuffer(lon), np.frombuffer(lat), np.frombuffer(points).reshape(-1, 3))


def _seen(row: Span, column: Span, points: Floats) -> Seen:
    nodes = grid_points(column.nodes, row.nodes)
    corner = chord_points([column.low, column.high] * 2, np.repeat([row.low, row.high], 2))
    middle = chord_points([(column.low + column.high) / 2], [(row.low + row.high) / 2])
    reach = float(pair_distance(middle, corner).max())
    return Seen(pair_distance(nodes, points), pair_distance(middle, points)[0], reach)


def _nodes() -> Floats:
    """Chebyshev points of the first kind, (NODES,) in -1 to 1."""
    return np.cos((np.arange(NODES) + 0.5) * np.pi / NODES)


def node_weights(axis: Floats, span: Span) -> Floats:
    """(cells, NODES): the interpolating polynomial through the span's nodes at the cells."""
    x = np.clip((axis - (span.low + span.high) / 2) / ((span.high - span.low) / 2), -1.0, 1.0)
    order = np.arange(NODES)
    at_cells = np.cos(order * np.arccos(x)[:, None])
    at_nodes = np.cos(order * np.arccos(_nodes())[:, None])
    halved = np.where(order == 0, 0.5, 1.0)
    return 2.0 / NODES * (at_cells * halved) @ at_nodes.T
