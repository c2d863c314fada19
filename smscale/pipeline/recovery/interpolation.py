"""A coarse field at fine centres, by interpolation alone: what every map must be compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from smscale.errors import InputError
from smscale.grid import EASE2_GRIDS, Grid, ease2_forward
from smscale.pipeline.layout import COARSE_KM

Floats = NDArray[np.float64]

#: Interpolations of the coarse field that every map is compared with.
BASELINES = ("nearest", "bilinear", "cubic", "cubic_spline")
#: Second derivative of the cubic convolution kernel at its first zero (Keys 1981 finds -0.5 for smooth fields; torch and OpenCV take -0.75).
KEYS = -0.75


def interpolate(values: Floats, coarse: Grid, fine: Grid, how: str) -> Floats:
    """A coarse field at the centres of fine cells.

    Parameters
    ----------
    values : (m, n) on an EASE-Grid 2.0 window; gaps take the nearest value first
    how : "nearest", "bilinear", "cubic" (cubic convolution, Keys 1981, doi:10.1109/TASSP.1981.1163711, equation 4 with his a as
        `KEYS`) or "cubic_spline" (interpolating cubic B-spline); the outermost cells are repeated outwards

    Returns
    -------
    (M, N) float64
    """
    row, col = _positions(coarse, fine)
    filled = _filled(values)
    if how == "cubic_spline":
        places = np.meshgrid(row, col, indexing="ij")
        return ndimage.map_coordinates(filled, places, order=3, mode="nearest")
    return _weights(row, values.shape[0], how) @ filled @ _weights(col, values.shape[1], how).T


def _positions(coarse: Grid, fine: Grid) -> tuple[Floats, Floats]:
    """Rows and columns of the coarse grid, as real numbers, at which fine centres lie."""
    if coarse.x is None or coarse.y is None:
        raise InputError(f"interpolation needs a coarse EASE-Grid 2.0, got {coarse}")
    size = EASE2_GRIDS[COARSE_KM][2]
    x, y = ease2_forward(fine.lon, np.zeros(fine.shape[1]))[0], ease2_forward(np.zeros(fine.shape[0]), fine.lat)[1]
    return (coarse.y[0] - y) / size, (x - coarse.x[0]) / size


def _filled(values: Floats) -> Floats:
    """Gaps filled with the nearest value."""
    missing = ~np.isfinite(values)
    nearest = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
    return np.asarray(values[tuple(nearest)], np.float64)


def _weights(positions: Floats, size: int, how: str) -> Floats:
    """(k, size): weights of the cells along one axis at k positions; each row sums to one."""
    weights = np.zeros((positions.size, size))
    first = np.floor(positions).astype(int)
    for shift in range(-1, 3):
        cell = first + shift
        np.add.at(
            weights, (np.arange(positions.size), np.clip(cell, 0, size - 1)), _KERNELS[how](np.abs(positions - cell))
        )
    return weights


def _keys(d: Floats, a: float = KEYS) -> Floats:
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


_KERNELS: dict[str, Callable[[Floats], Floats]] = {
    "nearest": lambda d: (d < 0.5).astype(np.float64),
    "bilinear": lambda d: np.maximum(1 - d, 0.0),
    "cubic": _keys,
}
