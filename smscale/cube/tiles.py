"""Stored tiles on the cells of a fine grid: MODIS and VIIRS tiles, or one raster that covers a region."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.grid import Grid
from smscale.kernels import resample
from smscale.kernels.lookup import Coded

#: Column h and row v of the MODIS grid.
Tile = tuple[int, int]
#: What stands for the tile where one raster covers the region.
AREA: Tile = (-1, -1)


@dataclass(frozen=True)
class Lattice:
    """The pixels of one raster: x = a column + c, y = e row + f of their upper left corners, in degrees or sinusoidal metres."""

    transform: tuple[float, float, float, float, float, float]
    crs: str
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class TileWindow:
    """Which pixel of which tile lies under each sub-point of a grid's cells; made once, used for every day.

    grid : the window
    shape : pixels of one tile, rows and columns (1200 x 1200 for 1 km products, 2400 x 2400 for 500 m)
    k : sub-points along a cell's side
    tiles : the tiles that the window touches, (h, v) of the MODIS grid, sorted
    flat : (m k, n k) int32, position in the tiles laid end to end; negative where no tile can be
    """

    grid: Grid
    shape: tuple[int, int]
    k: int
    tiles: tuple[Tile, ...]
    flat: NDArray[np.int32]

    def first(self, tile: Tile) -> int:
        """Where a tile begins among the tiles laid end to end."""
        return self.tiles.index(tile) * self.shape[0] * self.shape[1]

    def checked(self, tile: Tile, pixels: Coded) -> Coded:
        """The tile's layer, if it has the window's shape."""
        if pixels.raw.shape != self.shape:
            expected = f"{self.shape[0]} x {self.shape[1]}"
            raise InputError(f"tile {name_of(tile)} must be {expected} pixels; got shape {pixels.raw.shape}")
        return pixels

    def cells_without(self, came: set[Tile]) -> int:
        """Number of cells of which at least one sub-point lies in a tile that is not among those that came."""
        absent = np.array([t not in came for t in self.tiles])
        if not absent.any() and AREA not in self.tiles:
            return 0
        lost = absent[np.maximum(self.flat, 0) // (self.shape[0] * self.shape[1])] | (self.flat < 0)
        m, n = self.grid.shape
        return int(lost.reshape(m, self.k, n, self.k).any(axis=(1, 3)).sum())


def name_of(tile: Tile) -> str:
    """A tile as file names write it: h26v05."""
    return "of the area" if tile == AREA else f"h{tile[0]:02d}v{tile[1]:02d}"


def tile_window(grid: Grid, pixels: int, k: int = 1) -> TileWindow:
    """Look up the MODIS pixels under k x k evenly spaced sub-points of each cell of `grid`.

    One sub-point (the cell's centre) suits 1 km products on 0.01 degree cells, 3 suit 500 m products. `pixels` lie along
    a tile's side.
    """
    if pixels < 1 or k < 1:
        raise InputError(f"pixels and k must be at least 1; got pixels {pixels}, k {k}")
    lon, lat = _subpoints(grid.lon_edges, k), _subpoints(grid.lat_edges, k)
    rows, _ = sinusoidal.pixel_index(0.0, lat, pixels)
    x, _ = sinusoidal.forward(lon, 0.0)
    step = sinusoidal.TILE_SIZE / pixels
    flat, codes = resample.positions(rows, x, np.cos(np.deg2rad(lat)), sinusoidal.LEFT, step, pixels)
    if codes.size * pixels**2 > np.iinfo(np.int32).max:
        raise InputError(
            f"the window touches {codes.size} MODIS tiles of {pixels} pixels, too many for one; use smaller windows"
        )
    tiles = tuple((int(code) // 18, int(code) % 18) for code in codes)
    return TileWindow(grid, (pixels, pixels), k, tiles, flat)


def _subpoints(edges: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    share = (np.arange(k) + 0.5) / k
    return (edges[:-1, None] + np.diff(edges)[:, None] * share).ravel()


def raster_window(grid: Grid, lattice: Lattice, k: int = 1) -> TileWindow:
    """As `tile_window`, for one raster that covers the region or a part of it: its only tile is `AREA`."""
    a, _, c, _, e, f = lattice.transform
    lon, lat = _subpoints(grid.lon_edges, k)[None, :], _subpoints(grid.lat_edges, k)[:, None]
    pixels = round(sinusoidal.TILE_SIZE / a) if lattice.crs == sinusoidal.CRS else 0
    if pixels and abs(sinusoidal.TILE_SIZE / a - pixels) < 1e-3:  # a part of whole tiles: the same pixels as in these
        rows, cols = sinusoidal.pixel_index(lon, lat, pixels)
        rows = rows - round((sinusoidal.TOP - f) / a)
        cols = cols - round((c - sinusoidal.LEFT) / a)
    else:
        x, y = sinusoidal.forward(lon, lat) if lattice.crs == sinusoidal.CRS else _about(lattice, lon, lat)
        rows, cols = np.floor((y - f) / e).astype(np.int64), np.floor((x - c) / a).astype(np.int64)
    inside = (rows >= 0) & (rows < lattice.shape[0]) & (cols >= 0) & (cols < lattice.shape[1])
    flat = np.where(inside, rows * lattice.shape[1] + cols, -1).astype(np.int32)
    return TileWindow(grid, lattice.shape, k, (AREA,), flat)


def _about(lattice: Lattice, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Longitudes within half a turn of the raster's middle, and latitudes."""
    centre = lattice.transform[2] + lattice.transform[0] * lattice.shape[1] / 2
    x, y = np.broadcast_arrays(centre + (lon - centre + 180.0) % 360.0 - 180.0, lat)
    return x, y


def quality_words(layers: Iterable[str]) -> dict[str, NDArray[np.int64]]:
    """Room to count the quality words of some layers: (65536,) each."""
    return {layer: np.zeros(65536, np.int64) for layer in layers}


@dataclass(eq=False)
class Mean:
    """The mean of the valid sub-points of each cell, as tiles come.

    words counts the quality words of the sub-points (windows may share it), empty those of accepted quality without a value.
    """

    window: TileWindow
    words: NDArray[np.int64] = field(default_factory=lambda: np.zeros(65536, np.int64))
    empty: int = 0
    came: set[Tile] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._sums = np.zeros((2, *self.window.grid.shape))

    def add(self, tile: Tile, pixels: Coded) -> None:
        """One tile that the window touches, once."""
        pixels = self.window.checked(tile, pixels)
        first = self.window.first(tile)
        self.empty += resample.add_mean(pixels, self.window.flat, first, self.window.k, self._sums, self.words)
        self.came.add(tile)

    def result(self) -> NDArray[np.float32]:
        """(m, n), NaN where nothing was valid."""
        return resample.mean_of(self._sums)


@dataclass(eq=False)
class Classes:
    """The classes of the sub-points of each cell, as tiles come; `count` of them, from 0 on."""

    window: TileWindow
    count: int
    came: set[Tile] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._counts = np.zeros((self.count, *self.window.grid.shape), np.uint16)

    def add(self, tile: Tile, pixels: Coded) -> None:
        """One tile that the window touches, once."""
        pixels = self.window.checked(tile, pixels)
        resample.add_classes(pixels, self.window.flat, self.window.first(tile), self.window.k, self._counts)
        self.came.add(tile)

    def majority(self) -> NDArray[np.uint8]:
        """(m, n) the most frequent class, of equal counts the lowest; 255 where none is known."""
        return resample.majority_of(self._counts)

    def percent(self) -> NDArray[np.uint8]:
        """(count, m, n) share of each class among the sub-points that are known, in percent; 255 where none is."""
        known = self._counts.sum(axis=0, dtype=np.int64)
        share = np.rint(100.0 * self._counts / np.maximum(known, 1))
        return np.where(known > 0, share, 255).astype(np.uint8)
