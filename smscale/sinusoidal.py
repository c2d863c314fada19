"""The MODIS sinusoidal grid: 36 x 18 tiles of 10 degrees on a sphere.

Constants of the MODIS land grid (MODLAND; `GridStructure` of StructMetadata.0 in every tile): sphere radius
6371007.181 m, tiles of 1111950.5197 m a side, h from west to east, v from north to south.
x = R lon cos(lat), y = R lat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RADIUS = 6371007.181
TILE_SIZE = np.pi * RADIUS / 18
LEFT, TOP = -18 * TILE_SIZE, 9 * TILE_SIZE
CRS = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"


def forward(lon: ArrayLike, lat: ArrayLike) -> tuple[Floats, Floats]:
    """x, y in metres of longitudes and latitudes in degrees; longitudes beyond 180 wrap."""
    phi: Floats = np.deg2rad(np.asarray(lat, np.float64))
    lam: Floats = np.deg2rad((np.asarray(lon, np.float64) + 180.0) % 360.0 - 180.0)
    x, y = np.broadcast_arrays(RADIUS * lam * np.cos(phi), RADIUS * phi)
    return x, y


def inverse(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Longitude, latitude in degrees of x, y in metres; NaN off the globe's outline."""
    lat = np.asarray(y, np.float64) / RADIUS
    with np.errstate(divide="ignore", invalid="ignore"):
        lon = np.asarray(x, np.float64) / (RADIUS * np.cos(lat))
    on_globe = (np.abs(lat) <= np.pi / 2 * (1 + 1e-12)) & (np.abs(lon) <= np.pi * (1 + 1e-12))
    return np.where(on_globe, np.rad2deg(lon), np.nan), np.where(on_globe, np.rad2deg(lat), np.nan)


def tile_corners(h: int, v: int) -> tuple[float, float, float, float]:
    """x of the left, y of the top, x of the right, y of the bottom edge of a tile, metres."""
    left, top = LEFT + h * TILE_SIZE, TOP - v * TILE_SIZE
    return left, top, left + TILE_SIZE, top - TILE_SIZE


def pixel_centres(h: int, v: int, pixels: int) -> tuple[Floats, Floats]:
    """x (pixels,) and y (pixels,), metres, of the centres of a tile of `pixels` x `pixels`; y descends."""
    left, top, _, _ = tile_corners(h, v)
    step = TILE_SIZE / pixels
    centres = (np.arange(pixels, dtype=np.float64) + 0.5) * step
    return left + centres, top - centres


def pixel_index(lon: ArrayLike, lat: ArrayLike, pixels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column in the global mosaic (18 x `pixels` rows, 36 x `pixels` columns) of the pixels that hold the points.

    The tile is (column // pixels, row // pixels).
    """
    x, y = forward(lon, lat)
    step = TILE_SIZE / pixels
    row = np.clip(np.floor((TOP - y) / step).astype(np.int64), 0, 18 * pixels - 1)
    col = np.clip(np.floor((x - LEFT) / step).astype(np.int64), 0, 36 * pixels - 1)
    return row, col


def tiles_of_box(west: float, south: float, east: float, north: float) -> list[tuple[int, int]]:
    """Every tile (h, v) that a longitude-latitude box touches, in order of h, v."""
    lat = np.linspace(south, north, max(2, int((north - south) / 0.01) + 2))
    lat[0] += 1e-9  # a tile owns its northern edge: a box whose south is one does not touch the tile below
    row, one = pixel_index(np.full_like(lat, west), lat, 1)
    _, other = pixel_index(np.full_like(lat, east - 1e-9), lat, 1)
    low, high = np.minimum(one, other), np.maximum(one, other)
    found = []
    for v in range(int(row.min()), int(row.max()) + 1):
        here = row == v
        if here.any():
            # The edges are smooth in latitude: between their extremes every tile of the row is touched.
            found += [(h, v) for h in range(int(low[here].min()), int(high[here].max()) + 1)]
    return sorted(found)
