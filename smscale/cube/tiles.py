"""MODIS tiles on the cells of a fine grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.grid import Grid
from smscale.kernels import overlap, resample

Tile = tuple[int, int]


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
