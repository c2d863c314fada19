"""Tiles of a regular grid, with a few Chebyshev nodes each: what is smooth is computed there and interpolated to the cells.

What points far from a tile add is smooth in it: interpolated, it is exact to an error that falls geometrically with the number of
nodes, the faster the further the points (Trefethen 2013, Approximation Theory and Approximation Practice, chapter 8). Tiles have
their places on the globe, not in the grid: a cell's value does not depend on what is asked for with it, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smscale.kernels.sphere import chord_points, pair_distance

Floats = NDArray[np.float64]

#: Nodes along each side of a tile, and cells, about: what is far is then within 4e-7 of the field, as float32 sums are.
NODES, CELLS = 12, 50
#: A point is far from a tile from so many half diagonals of it on, from its middle.
FAR = 1.5


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


def groups(spans: list[Span], most: int) -> Iterator[list[Span]]:
    """Runs of neighbouring tiles of at most so many cells, or of one tile."""
    group: list[Span] = []
    for span in spans:
        if group and span.cells.stop - group[0].cells.start > most:
            yield group
            group = []
        group.append(span)
    yield group


def within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def nodes_and_near(row: Span, column: Span, points: Floats, kink: float) -> tuple[Floats, NDArray[np.bool_]]:
    """A tile's nodes (NODES**2, 3) in km, and which of the points (n,) are near it.

    Near is also what may be as far as `kink`, a distance (km) at which the covariance is not smooth, beside 0.
    """
    y, x = np.meshgrid(row.nodes, column.nodes, indexing="ij")
    # Nodes, corners and the middle of the tile.
    east = np.hstack([x.ravel(), [column.low, column.high] * 2, (column.low + column.high) / 2])
    north = np.hstack([y.ravel(), np.repeat([row.low, row.high], 2), (row.low + row.high) / 2])
    places = chord_points(east, north)
    nodes, corner, centre = places[:-5], places[-5:-1], places[-1:]
    reach = float(pair_distance(centre, corner).max())
    away = pair_distance(centre, points)[0]
    return nodes, (away < FAR * reach) | (np.abs(away - kink) < reach)


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
