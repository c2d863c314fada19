"""Points on the sphere as Euclidean points, so that distances are chords and every covariance model stays valid."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from smscale.grid import EARTH_RADIUS_KM

Floats = NDArray[np.float64]

#: Points nearer than this are one point, km (10 micrometres; a chord of equal coordinates is exactly 0).
COLOCATED = 1e-8


def chord_points(
    lon: ArrayLike, lat: ArrayLike, elevation: ArrayLike | None = None, vertical_scale: float | None = None
) -> Floats:
    """Points in km whose Euclidean distance is the chord of the sphere of radius `EARTH_RADIUS_KM`.

    Parameters
    ----------
    lon, lat : (n,) degrees
    elevation : (n,) metres; counts only with `vertical_scale`
    vertical_scale : how many horizontal km one km of elevation counts

    Returns
    -------
    (n, 3) float64, km: the unit vector times the radius; or (n, 4) with elevation in km times `vertical_scale` last,
    so that distance = sqrt(chord**2 + (vertical_scale * difference in elevation)**2).
    """
    lam, phi = np.deg2rad(np.asarray(lon, np.float64)), np.deg2rad(np.asarray(lat, np.float64))
    columns = [np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)]
    points = EARTH_RADIUS_KM * np.stack(columns, axis=-1)
    if elevation is None or vertical_scale is None:
        return points
    height = np.asarray(elevation, np.float64) / 1000.0 * vertical_scale
    return np.concatenate([points, height[..., None]], axis=-1)


def grid_points(lon: Floats, lat: Floats) -> Floats:
    """(m * n, 3) `chord_points` of a grid's cells, row by row: lon (n,), lat (m,) degrees."""
    lam, phi = np.deg2rad(lon), np.deg2rad(lat)[:, None]
    points = np.empty((phi.size, lam.size, 3))
    points[..., 0], points[..., 1], points[..., 2] = np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)
    points *= EARTH_RADIUS_KM
    return points.reshape(-1, 3)


def pair_distance(a: Floats, b: Floats) -> Floats:
    """(n, m) float64: Euclidean distances of (n, d) and (m, d) points, each from its own differences (no cancellation)."""
    return cdist(a, b)
