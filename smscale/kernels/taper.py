"""How much of a station's word counts far away from all stations: 1 near them, smoothly 0 further off.

The weight falls with the distance to the nearest station that reports, so it is the largest of the weights that each
reporting station would give by itself. Those are computed once for a small tile of cells, and serve every silence pattern.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from smscale.grid import EARTH_RADIUS_KM
from smscale.kernels.neighbours import silence_patterns
from smscale.kernels.threads import in_threads

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

#: Cells along a side of a tile.
SIDE = 32
#: What rounding of a distance may be at most, km (1 mm).
SLACK = 1e-6


def taper(distance: Floats, taper_km: float) -> Floats:
    """1 up to `taper_km`, (1 + cos(pi (d / taper_km - 1))) / 2 beyond, 0 from twice that on; the shape of `distance`, km."""
    beyond = np.clip(np.asarray(distance, np.float64) / taper_km - 1.0, 0.0, 1.0)
    return 0.5 + 0.5 * np.cos(np.pi * beyond)


def weights(lon: Floats, lat: Floats, points: Floats, reporting: NDArray[np.bool_], taper_km: float) -> Singles:
    """The weight of every cell of a grid, or of any window of one, at every time.

    Distances are chords, whatever coordinate of height the points have besides. A cell's weight is the same bytes in any window.

    Parameters
    ----------
    lon : (cols,), lat : (rows,) degrees, cell centres
    points : (n, 3 | 4) float64, km, of `chord_points`
    reporting : (n, t) bool
    taper_km : above 0

    Returns
    -------
    (t, rows, cols) float32, 0 to 1, never NaN; 0 at times without any station.
    """
    out = np.zeros((reporting.shape[1], lat.size, lon.size), np.float32)
    fill(out, lon, lat, points, reporting, taper_km)
    return out


def fill(out: Singles, lon: Floats, lat: Floats, points: Floats, reporting: NDArray[np.bool_], taper_km: float) -> None:
    """`weights` into `out` (t, rows, cols)."""
    patterns = list(silence_patterns(np.where(reporting, 0.0, np.nan)))
    out[~reporting.any(axis=0)] = 0.0
    heard = np.zeros((len(patterns), len(points)), bool)
    for i, (present, _) in enumerate(patterns):
        heard[i, present] = True
    times = np.concatenate([np.empty(0, np.int64), *(columns for _, columns in patterns)])
    first = np.concatenate([[0], np.cumsum([columns.size for _, columns in patterns])]).astype(np.int64)
    lam, phi = np.deg2rad(lon), np.deg2rad(lat)
    axes = (np.cos(lam), np.sin(lam), np.cos(phi), np.sin(phi))
    places = np.ascontiguousarray(points[:, :3], np.float64)
    strip = partial(_fill_strip, out, *axes, places, heard, times, first, float(taper_km), SIDE)
    in_threads(strip, range(0, lat.size, SIDE))


def weights_at(targets: Floats, points: Floats, reporting: NDArray[np.bool_], taper_km: float) -> Singles:
    """(t, m) float32, as `weights`, at (m, 3 | 4) points in km."""
    out = np.zeros((reporting.shape[1], len(targets)), np.float32)
    for present, times in silence_patterns(np.where(reporting, 0.0, np.nan)):
        distance, _ = cKDTree(points[present, :3]).query(targets[:, :3])
        out[times] = taper(distance, taper_km)
    return out


@njit(nogil=True, cache=True)
def _fill_strip(out, cos_lon, sin_lon, cos_lat, sin_lat, points, heard, times, first, taper_km, side, top):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """All tiles of the rows from `top` on."""
    bottom = min(top + side, out.shape[1])
    for left in range(0, out.shape[2], side):
        right = min(left + side, out.shape[2])
        place = _places(cos_lon[left:right], sin_lon[left:right], cos_lat[top:bottom], sin_lat[top:bottom])
        own, apart, radius = _candidates(place, points, 2.0 * taper_km)
        table = np.empty((own.size, place.shape[1]), np.float32)
        known = np.zeros(own.size, np.bool_)
        weight = np.empty((bottom - top, right - left), np.float32)
        for pattern in range(len(heard)):
            _largest(weight.ravel(), place, points, own, apart, radius, heard[pattern], taper_km, table, known)
            for time in times[first[pattern] : first[pattern + 1]]:
                out[time, top:bottom, left:right] = weight


@njit(nogil=True, cache=True)
def _places(cos_lon, sin_lon, cos_lat, sin_lat):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(3, rows * cols) km: the cells, row by row."""
    place = np.empty((3, cos_lat.size * cos_lon.size))
    i = 0
    for y in range(cos_lat.size):
        for x in range(cos_lon.size):
            place[0, i] = EARTH_RADIUS_KM * (cos_lat[y] * cos_lon[x])
            place[1, i] = EARTH_RADIUS_KM * (cos_lat[y] * sin_lon[x])
            place[2, i] = EARTH_RADIUS_KM * sin_lat[y]
            i += 1
    return place


@njit(nogil=True, cache=True)
def _candidates(place, points, reach):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Points within reach of any cell, the nearest to the tile's middle first; their distances from it; the tile's radius."""
    middle, radius = np.empty(3), 0.0
    for axis in range(3):
        middle[axis] = place[axis].sum() / place.shape[1]
    for i in range(place.shape[1]):
        radius = max(radius, _apart(place[0, i], place[1, i], place[2, i], middle))
    distance = np.empty(len(points))
    for j in range(len(points)):
        distance[j] = _apart(points[j, 0], points[j, 1], points[j, 2], middle)
    own = np.flatnonzero(distance < reach + radius + SLACK)
    own = own[np.argsort(distance[own])]
    return own, distance[own], radius


@njit(nogil=True, cache=True, inline="always")
def _apart(x, y, z, other):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return np.sqrt((x - other[0]) ** 2 + (y - other[1]) ** 2 + (z - other[2]) ** 2)


@njit(nogil=True, cache=True)
def _largest(weight, place, points, own, apart, radius, heard, taper_km, table, known):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The largest weight that a candidate that reports gives each cell; `table` (c, m) keeps what is computed, as `known` says.

    A candidate further off than the first that reports by a diameter of the tile is nearest to no cell: none is looked at beyond.
    """
    weight[:] = 0.0
    nearest = np.inf
    for j in range(own.size):
        if not heard[own[j]]:
            continue
        if apart[j] + radius < taper_km - SLACK:
            weight[:] = 1.0
            return
        nearest = min(nearest, apart[j])
        if apart[j] > nearest + 2.0 * radius + SLACK:
            return
        if not known[j]:
            _weigh(table[j], place, points[own[j]], taper_km)
            known[j] = True
        for i in range(weight.size):
            weight[i] = max(weight[i], table[j, i])


@njit(nogil=True, cache=True)
def _weigh(weight, place, point, taper_km):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The weight that one point gives each cell."""
    for i in range(weight.size):
        beyond = _apart(place[0, i], place[1, i], place[2, i], point) / taper_km - 1.0
        if beyond <= 0.0:
            weight[i] = 1.0
        elif beyond >= 1.0:
            weight[i] = 0.0
        else:
            weight[i] = 0.5 + 0.5 * np.cos(np.pi * beyond)
