"""Terrain of a finer elevation model on the cells of a fine grid, block by block."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from smscale import schema
from smscale.errors import InputError
from smscale.grid import Grid, coords_of, grid_of
from smscale.kernels import overlap
from smscale.kernels.terrain import even_step, metres_per_degree, slope_facing

Floats = NDArray[np.float32]

#: Elevation cells that `static_layers` holds at once.
_DEM_CELLS_AT_ONCE = 1_000_000


def static_layers(dem: xr.DataArray, grid: Grid, min_valid_fraction: float = 0.5) -> xr.Dataset:
    """Elevation, slope and aspect of a finer elevation model on the cells of `grid`.

    Slope and aspect are those of the model's own cells; elevation and slope are averaged by area, aspect on the circle. The
    model is read in blocks, each with its halo: the result for a part of the grid is that for the whole.

    Parameters
    ----------
    dem : (lat, lon) metres, NaN where missing, on any evenly spaced grid or EASE-2 grid, lazy or not. It should cover `grid`
        and one cell more on each side: slope and aspect are missing on its outermost cells.
    grid : the fine grid or a window of it
    min_valid_fraction : share of a cell's area that must be valid

    Returns
    -------
    Dataset elevation, slope, aspect (lat, lon) float32
    """
    source = grid_of(dem)
    dem = dem.transpose("lat", "lon")
    layers = {name: np.full(grid.shape, np.nan, dtype=np.float32) for name in ("elevation", "slope", "aspect")}
    met = False
    for rows, cols in _blocks(source, grid):
        block = grid.window(rows, cols)
        used = _span(source.lat_edges[::-1], block.lat_edges[::-1], flip=True), _span(source.lon_edges, block.lon_edges)
        if any(s.start >= s.stop for s in used):
            continue
        met = True
        tile = np.asarray(dem[used].values, dtype=np.float32)
        for name, values in _reduced(tile, source.window(*used), block, min_valid_fraction).items():
            layers[name][rows, cols] = values
    if not met:
        raise InputError(f"the elevation model does not meet the grid: it covers {source}, the grid is {grid}")
    data = {name: (("lat", "lon"), values, schema.VARIABLES[name].attrs) for name, values in layers.items()}
    return xr.Dataset(data, coords_of(grid), {"crs": grid.crs})


def _blocks(source: Grid, grid: Grid) -> list[tuple[slice, slice]]:
    """Blocks of `grid` that lie over no more than `_DEM_CELLS_AT_ONCE` cells of `source`."""
    cells = [np.diff(g.lat_edges).mean() * np.diff(g.lon_edges).mean() for g in (grid, source)]
    side = max(int(np.sqrt(_DEM_CELLS_AT_ONCE / max(cells[0] / cells[1], 1.0))), 1)
    m, n = grid.shape
    return [
        (slice(i, min(i + side, m)), slice(j, min(j + side, n))) for i in range(0, m, side) for j in range(0, n, side)
    ]


def _span(edges: NDArray[np.float64], wanted: NDArray[np.float64], flip: bool = False) -> slice:
    """Cells between ascending `edges` that overlap the span of `wanted`, and one more on each side; counted from the end if flipped."""
    size = edges.size - 1
    first = int(np.searchsorted(edges, wanted[0], side="right")) - 1
    last = int(np.searchsorted(edges, wanted[-1], side="left"))
    if last <= 0 or first >= size:
        return slice(0, 0)
    first, last = max(first - 1, 0), min(last + 1, size)
    return slice(size - last, size - first) if flip else slice(first, last)


def _reduced(tile: Floats, source: Grid, block: Grid, least: float) -> dict[str, Floats]:
    lat, lon = (overlap.without_slivers(matrix) for matrix in source.overlap(block))
    part = overlap.overlap_of(lat, lon)
    area = overlap.cell_areas(block.lat_edges, block.lon_edges)
    per_lon, per_lat = metres_per_degree(source.lat)
    dy = even_step(source.lat_edges) if source.x is None else -np.diff(source.lat_edges)
    slope, east, north = slope_facing(tile, even_step(source.lon_edges) * per_lon, dy * per_lat)
    states = (
        overlap.mean_state(tile[None], part),
        overlap.mean_state(slope[None], part),
        overlap.vector_state(east[None], north[None], part),
    )
    merged = [overlap.merge([state], [part], block.shape) for state in states]
    elevation, _ = overlap.mean_of(merged[0], area, least)
    mean_slope, _ = overlap.mean_of(merged[1], area, least)
    # Flat ground has a slope but no aspect: what is not flat gives the cell's aspect.
    direction, _ = overlap.direction_of(merged[2], area, 0.0)
    facing = np.where(np.isnan(mean_slope), np.float32(np.nan), direction)
    return {"elevation": elevation[0], "slope": mean_slope[0], "aspect": facing[0]}
