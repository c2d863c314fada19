"""Station coordinates and values as users give them, checked and turned into Euclidean points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from smscale.errors import InputError
from smscale.kernels.sphere import COLOCATED, chord_points

Floats = NDArray[np.float64]


def station_points(coords: ArrayLike, vertical_scale: float | None) -> Floats:
    """(n, 3 | 4) Euclidean points in km of (n, 2 | 3) longitude, latitude (degrees) and elevation (m); all finite."""
    points = target_points(coords, vertical_scale)
    broken = int((~np.isfinite(points).all(axis=1)).sum())
    if broken:
        raise InputError(
            f"{broken} of {len(points)} stations have no finite coordinates: leave them out or complete them"
        )
    return points


def target_points(coords: ArrayLike, vertical_scale: float | None) -> Floats:
    """As `station_points`, but a target with a NaN coordinate is allowed: its result is NaN."""
    coords = np.asarray(coords, np.float64)
    if coords.ndim != 2 or coords.shape[1] not in (2, 3):
        raise InputError(
            f"coords must be (n, 2) longitude, latitude or (n, 3) with elevation in m; got shape {coords.shape}"
        )
    if coords.shape[1] == 2 and vertical_scale is not None:
        raise InputError(f"vertical_scale {vertical_scale} needs elevations: coords must be (n, 3), got {coords.shape}")
    if np.any(np.abs(coords[:, 1]) > 90) or np.any(np.abs(coords[:, 0]) > 360):
        raise InputError(
            "coords must be longitude (-180..360), then latitude (-90..90), in degrees; found values outside"
        )
    elevation = coords[:, 2] if coords.shape[1] == 3 else None
    return chord_points(coords[:, 0], coords[:, 1], elevation, vertical_scale)


def places(points: Floats) -> NDArray[np.int64]:
    """(n,) int64: one label for all points within `COLOCATED` of one another, in order of first appearance."""
    n = len(points)
    pairs = cKDTree(points).query_pairs(COLOCATED, output_type="ndarray") if n else np.empty((0, 2), np.int64)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64) if n else np.empty(0, np.int64)


def as_values(coords: ArrayLike, values: ArrayLike) -> Floats:
    """(n, t) float64 of (n,) or (n, t) values, infinite ones refused."""
    table = np.asarray(values, np.float64)
    n = len(np.asarray(coords))
    if table.ndim not in (1, 2) or len(table) != n:
        raise InputError(f"values must be ({n},) or ({n}, t), one row per station of coords; got shape {table.shape}")
    if np.isinf(table).any():
        raise InputError(
            f"values hold {int(np.isinf(table).sum())} infinite numbers: use NaN where a station is silent"
        )
    return table[:, None] if table.ndim == 1 else table


def row_tiles(rows: int, cols: int, width: int, limit: int) -> Iterator[slice]:
    """Slices of rows so that rows x cols x width stays within `limit` numbers (one row at least)."""
    step = max(1, limit // max(1, cols * width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def grid_points(
    lon: Floats, lat: Floats, elevation: Floats | None, rows: slice, vertical_scale: float | None
) -> Floats:
    """((rows) * lon, 3 | 4) points of some rows of a grid, row by row."""
    y, x = np.meshgrid(lat[rows], lon, indexing="ij")
    height = None if elevation is None or vertical_scale is None else np.asarray(elevation[rows], np.float64).ravel()
    if height is None and vertical_scale is not None:
        raise InputError(f"vertical_scale {vertical_scale} needs the elevation of every cell, (lat, lon) in m")
    return chord_points(x.ravel(), y.ravel(), height, vertical_scale)


def as_grid(lon: ArrayLike, lat: ArrayLike, elevation: ArrayLike | None) -> tuple[Floats, Floats, Floats | None]:
    """1-D float64 axes, and the (lat, lon) elevation if given."""
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    if lon.ndim != 1 or lat.ndim != 1:
        raise InputError(f"a grid is given by 1-D lon and lat; got shapes {lon.shape} and {lat.shape}")
    if elevation is None:
        return lon, lat, None
    height = np.asarray(elevation, np.float64)
    if height.shape != (lat.size, lon.size):
        raise InputError(f"elevation must be (lat, lon) = ({lat.size}, {lon.size}); got {height.shape}")
    return lon, lat, height


def as_output(out: NDArray[np.float32] | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`out`, checked, or a new array of that shape."""
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32:
        raise InputError(f"out must be float32 of shape {shape}; got {out.dtype} {out.shape}")
    return out
