"""Pass one of closure: sums of a map over the coarse cells, block by block, and how fine cells lie in coarse ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.grid import Grid, authalic_q
from smscale.kernels import closure as kernel
from smscale.kernels import overlap as areas

Floats = NDArray[np.float64]

#: Shares of area that differ by less than this are equal: they are sums of some thousand float64 products.
TIE = 1e-9


@dataclass(frozen=True)
class Frame:
    """How the cells of a fine grid lie in a coarse grid; overlaps (n_coarse, n_fine)."""

    rows: kernel.Places
    cols: kernel.Places
    lat_overlap: Floats
    lon_overlap: Floats

    @property
    def window(self) -> tuple[slice, slice]:
        """The coarse rows and columns that the fine grid touches."""
        found = [np.flatnonzero(o.any(axis=1)) for o in (self.lat_overlap, self.lon_overlap)]
        return slice(int(found[0][0]), int(found[0][-1]) + 1), slice(int(found[1][0]), int(found[1][-1]) + 1)


def frame_of(grid: Grid, coarse: Grid) -> Frame:
    (west, south, east, north), box = coarse.bounds, grid.bounds
    if west > box[0] + TIE or south > box[1] + TIE or east < box[2] - TIE or north < box[3] - TIE:
        raise InputError(f"closure needs a coarse grid that covers the fine one: {coarse} does not cover {grid}")
    lat, lon = (areas.without_slivers(o) for o in grid.overlap(coarse))
    if max((lat > 0).sum(axis=0).max(), (lon > 0).sum(axis=0).max()) > 2:
        raise InputError(f"closure needs fine cells smaller than the coarse ones: fine is {grid}, coarse is {coarse}")
    return Frame(
        kernel.places(lat, _southward(grid.lat, coarse), _southward(coarse.lat_edges, coarse)),
        kernel.places(lon, grid.lon, coarse.lon_edges),
        lat,
        lon,
    )


def _southward(lat: Floats, coarse: Grid) -> Floats:
    """Latitudes in the measure in which the coarse rows are evenly spaced: only so does the surface have a continuous slope."""
    return -authalic_q(lat) if coarse.crs == "EPSG:6933" else -lat


@dataclass(frozen=True)
class Sums:
    """Sums of a block of a map over the coarse cells that it touches.

    Parameters
    ----------
    key : first step, first row and first column of the block; merging goes in their order
    row0, col0 : first touched coarse row and column
    values : (10 | 2, t, r, c) float64: map x area, then area x spline for 3 x 3 splines (or the area alone), the whole
        coarse cell counting as area 1
    """

    key: tuple[int, int, int]
    row0: int
    col0: int
    values: Floats

    @property
    def steps(self) -> int:
        return int(self.values.shape[1])

    def area(self) -> Floats:
        """(t, r, c) share of each coarse cell that is valid; what lies outside the fine grid is not."""
        return self.values[1:].sum(axis=0)

    def mean(self) -> Floats:
        """(t, r, c) mean of the map over the valid part of each coarse cell, NaN where none is."""
        area = self.area()
        return np.divide(self.values[0], area, out=np.full(area.shape, np.nan), where=area > 0)

    def to_arrays(self) -> dict[str, NDArray]:
        """Plain arrays that `from_arrays` takes back."""
        return {"place": np.array([*self.key, self.row0, self.col0], np.int64), "values": self.values}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Sums:
        step, row, col, row0, col0 = (int(i) for i in arrays["place"])
        return cls((step, row, col), row0, col0, np.asarray(arrays["values"]))


def block_sums(field: NDArray, grid: Grid, coarse: Grid, step0: int = 0, spline: bool = True) -> Sums:
    """The sums of one block of a map.

    Parameters
    ----------
    field : (t, m, n) float32, m3 m-3, NaN where missing
    grid : the block's part of the fine grid; coarse : the whole coarse grid, which must cover it
    step0 : number of the block's first step
    spline : False for what `errors` needs alone
    """
    field = np.asarray(field)
    if field.ndim != 3 or field.shape[1:] != grid.shape:
        raise InputError(f"a block must be (t, {grid.shape[0]}, {grid.shape[1]}) as its grid; got {field.shape}")
    frame = frame_of(grid, coarse)
    rows, cols = frame.window
    heights, widths = -np.diff(authalic_q(coarse.lat_edges))[rows], np.diff(coarse.lon_edges)[cols]
    lat, lon = frame.lat_overlap[rows], frame.lon_overlap[cols]
    if spline:
        along = kernel.axis(lat, heights, frame.rows, rows.start), kernel.axis(lon, widths, frame.cols, cols.start)
        values = kernel.sums(field, *along)
    else:
        values = areas.mean_state(field, areas.overlap_of(lat / heights[:, None], lon / widths[:, None]))
    return Sums((step0, grid.row0, grid.col0), rows.start, cols.start, values)


def merge(parts: Iterable[Sums], coarse: Grid) -> Sums:
    """The sums of all blocks on the whole coarse grid: the same bytes for any order of the parts.

    Returns
    -------
    Sums from the first step of all parts to the last

    Raises
    ------
    InputError
        if there are none, one is given twice, or some have splines and others not.
    """
    ordered = sorted(parts, key=lambda part: part.key)
    if not ordered:
        raise InputError("there are no sums to merge: give those of at least one block")
    for a, b in pairwise(ordered):
        if a.key == b.key:
            raise InputError(f"the block at step, row, column {a.key} is given twice: each block may be merged once")
    if len({len(part.values) for part in ordered}) > 1:
        raise InputError("sums with and without splines do not merge")
    first, last = ordered[0].key[0], max(part.key[0] + part.steps for part in ordered)
    total = np.zeros((len(ordered[0].values), last - first, *coarse.shape))
    for part in ordered:
        step, (r, c) = part.key[0] - first, part.values.shape[2:]
        where = (slice(step, step + part.steps), slice(part.row0, part.row0 + r), slice(part.col0, part.col0 + c))
        total[(slice(None), *where)] += part.values
    return Sums((first, 0, 0), 0, 0, total)
