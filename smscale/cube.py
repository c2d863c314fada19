"""From tiles to the fine grid: MODIS tiles resampled, terrain reduced, local days untangled.

Arrays here lie on windows of a fine `Grid`; nothing needs more than the tiles and the part of the elevation model that a
window touches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from smscale import schema, sinusoidal
from smscale.errors import InputError
from smscale.grid import Grid, coords_of, grid_of
from smscale.kernels import overlap, resample
from smscale.kernels.terrain import even_step, metres_per_degree, slope_facing

Floats = NDArray[np.float32]
Tile = tuple[int, int]

#: Local solar hours of Aqua's equator crossings: the night view serves the AM step, the day view the PM step.
AQUA_HOURS = {"AM": 1.5, "PM": 13.5}

#: Elevation cells that `static_layers` holds at once.
_DEM_CELLS_AT_ONCE = 1_000_000


# -- MODIS tiles on the fine grid ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TileWindow:
    """Which pixel of which MODIS tile lies under each sub-point of a grid's cells; made once, used for every day.

    grid : the window
    pixels : pixels along a tile's side (1200 for 1 km products, 2400 for 500 m)
    k : sub-points along a cell's side
    tiles : the tiles (h, v) that the window touches, sorted
    flat : (m k, n k) int32, position in the tiles laid end to end
    """

    grid: Grid
    pixels: int
    k: int
    tiles: tuple[Tile, ...]
    flat: NDArray[np.int32]


def tile_window(grid: Grid, pixels: int, k: int = 1) -> TileWindow:
    """Look up the MODIS pixels under k x k evenly spaced sub-points of each cell of `grid`.

    One sub-point (the cell's centre) suits 1 km products on 0.01 degree cells, 3 suit 500 m products.
    """
    if pixels < 1 or k < 1:
        raise InputError(f"pixels and k must be at least 1; got pixels {pixels}, k {k}")
    lon, lat = _subpoints(grid.lon_edges, k), _subpoints(grid.lat_edges, k)
    row, col = sinusoidal.pixel_index(lon[None, :], lat[:, None], pixels)
    v, h = row // pixels, col // pixels
    codes, slot = np.unique(h * 18 + v, return_inverse=True)
    within = (row - v * pixels) * pixels + (col - h * pixels)
    if codes.size * pixels**2 > np.iinfo(np.int32).max:
        raise InputError(
            f"the window touches {codes.size} MODIS tiles of {pixels} pixels, too many for one; use smaller windows"
        )
    flat = slot.reshape(row.shape) * pixels**2 + within
    tiles = tuple((int(code) // 18, int(code) % 18) for code in codes)
    return TileWindow(grid, pixels, k, tiles, flat.astype(np.int32))


def _subpoints(edges: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    share = (np.arange(k) + 0.5) / k
    return (edges[:-1, None] + np.diff(edges)[:, None] * share).ravel()


def sample_tiles(
    tiles: Mapping[Tile, NDArray], window: TileWindow, kind: Literal["mean", "majority", "nearest"] = "mean"
) -> tuple[NDArray, int]:
    """Values of MODIS tiles on the cells of a window.

    Parameters
    ----------
    tiles : (h, v) -> (pixels, pixels) array, as read: float with NaN, or uint8 classes with 255. What the window does not
        touch is ignored.
    window : from `tile_window`
    kind : "mean" of the valid sub-points, "majority" of classes (of equal counts the lowest), or the pixel "nearest" to the
        cell's centre (for times and flags)

    Returns
    -------
    values : (m, n) float32; uint8 for "majority"; the tiles' own type for "nearest"
    without_tile : number of cells of which at least one sub-point lies in a tile that is not there

    Raises
    ------
    InputError
        if a tile has another shape.
    """
    for tile in window.tiles:
        if tile in tiles and tiles[tile].shape != (window.pixels, window.pixels):
            expected = f"{window.pixels} x {window.pixels}"
            raise InputError(
                f"tile h{tile[0]:02d}v{tile[1]:02d} must be {expected} pixels; got shape {tiles[tile].shape}"
            )
    dtype = _dtype_of(tiles, window, kind)
    fill = _fill_of(dtype)
    laid = np.full((len(window.tiles), window.pixels**2), fill, dtype=dtype)
    for slot, tile in enumerate(window.tiles):
        if tile in tiles:
            laid[slot] = (overlap.as_classes(tiles[tile]) if kind == "majority" else np.asarray(tiles[tile])).ravel()
    absent = np.array([t not in tiles for t in window.tiles])
    pixels, k = laid.ravel(), window.k
    if kind == "mean":
        values: NDArray = resample.gather_mean(pixels, window.flat, k)
    elif kind == "majority":
        values = resample.gather_majority(pixels, window.flat, k)
    elif kind == "nearest":
        values = resample.gather_nearest(pixels, window.flat, k, fill)
    else:
        raise InputError(f"kind must be 'mean', 'majority' or 'nearest'; got {kind!r}")
    return values, _cells_without_tile(window, absent)


def _dtype_of(tiles: Mapping[Tile, NDArray], window: TileWindow, kind: str) -> np.dtype:
    if kind == "majority":
        return np.dtype(np.uint8)
    given = [tiles[t].dtype for t in window.tiles if t in tiles]
    return given[0] if kind == "nearest" and given else np.dtype(np.float32)


def _fill_of(dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return np.nan
    return np.datetime64("NaT") if dtype.kind in "mM" else np.iinfo(dtype).max


def _cells_without_tile(window: TileWindow, absent: NDArray[np.bool_]) -> int:
    if not absent.any():
        return 0
    lost = absent[window.flat // window.pixels**2]
    m, n = window.grid.shape
    return int(lost.reshape(m, window.k, n, window.k).any(axis=(1, 3)).sum())


# -- terrain on the fine grid -------------------------------------------------------------------


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


# -- local days ---------------------------------------------------------------------------------


def lst_local_day_offset(view_time: ArrayLike, lon: ArrayLike) -> NDArray[np.int64]:
    """Days from a MxD11A1 file's date, which is a UTC day, to the local solar date of each of its views.

    The observation's UTC hour is (view_time - lon / 15) mod 24; its local date is that of UTC + lon / 15 hours, so that
    the offset is -floor((view_time - lon / 15) / 24). Over Sichuan the night view (01:30) of the file dated D belongs to the
    local date D + 1, the day view (13:30) to D.

    Parameters
    ----------
    view_time : hours of local solar time, 0 to 24, as in Day_view_time and Night_view_time; NaN where missing
    lon : degrees east, broadcast against it; longitudes beyond 180 wrap

    Returns
    -------
    int64, -1, 0 or 1; 0 where the view time is missing
    """
    wrapped = (np.asarray(lon, dtype=np.float64) + 180.0) % 360.0 - 180.0
    hour = np.asarray(view_time, dtype=np.float64) - wrapped / 15.0
    return np.where(np.isnan(hour), 0.0, -np.floor(hour / 24.0)).astype(np.int64)


def _day(date: np.datetime64 | str) -> np.datetime64:
    day: np.datetime64 = np.asarray(date, dtype="datetime64[D]")[()]  # type: ignore[assignment]
    return day


def lst_file_dates(local_date: np.datetime64 | str) -> tuple[np.datetime64, np.datetime64, np.datetime64]:
    """UTC dates of the MxD11A1 files that can hold a view of a step of `local_date`, somewhere on Earth."""
    day = _day(local_date)
    return day - 1, day, day + 1


def select_lst(
    local_date: np.datetime64 | str,
    overpass: str,
    fields: Mapping[np.datetime64, tuple[Floats, Floats]],
    lon: ArrayLike,
) -> tuple[Floats, Floats]:
    """The LST field of one step, from the UTC-day files that hold parts of it.

    A night view belongs to the night that ends on its AM step: views from local noon on count towards the next morning.

    Parameters
    ----------
    local_date : the step's local solar date
    overpass : "AM" (night views) or "PM" (day views)
    fields : UTC date of the file -> (lst K, view_time hours of local solar time), (m, n) on the grid, NaN where missing:
        the night fields for AM, the day fields for PM. `lst_file_dates` names the dates that matter; others are ignored.
    lon : (n,) or (m, n) degrees east

    Returns
    -------
    lst, view_time : (m, n) float32. Where two files offer a view, the one nearer to 01:30 or 13:30; of equals the earlier file.

    Raises
    ------
    InputError
        if there is no field at all, or the overpass is neither.
    """
    if overpass not in AQUA_HOURS:
        raise InputError(f"overpass must be one of {', '.join(AQUA_HOURS)}; got {overpass!r}")
    if not fields:
        raise InputError(f"no LST field given for {local_date} {overpass}")
    day = _day(local_date)
    by_date = {_day(date): field for date, field in fields.items()}
    shape = next(iter(by_date.values()))[0].shape
    lst, view_time = np.full((2, *shape), np.nan, dtype=np.float32)
    away = np.full(shape, np.inf)
    for date in lst_file_dates(day):
        if date not in by_date:
            continue
        found, time = by_date[date]
        offset = lst_local_day_offset(time, lon) + ((overpass == "AM") & (np.asarray(time) >= 12.0))
        distance = np.abs((np.asarray(time, np.float64) - AQUA_HOURS[overpass] + 12.0) % 24.0 - 12.0)
        take = np.isfinite(found) & (offset == (day - date).astype(int)) & (distance < away)
        lst[take], view_time[take], away[take] = found[take], time[take], distance[take]
    return lst, view_time
