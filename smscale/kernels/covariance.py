"""Correlation models and pooled semivariances: arrays of distances in, arrays out.

The models follow gstat (Pebesma 2004, Computers & Geosciences 30, 683-691): `range` is the model's own parameter, not
the practical range, so the exponential is exp(-h / range).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import gammaln, kve

from smscale.kernels.sphere import COLOCATED, pair_distance

Floats = NDArray[np.float64]

MODELS = ("exponential", "spherical", "gaussian", "matern")
#: Table of a Matern correlation: below its span 1 is within 1e-10 for smoothness from 0.15 on, above it 0 is; a step is half an
#: octave, and its Chebyshev polynomial is within 1e-12.
MATERN_SPAN, MATERN_STEP, MATERN_NODES = (2.0**-110, 2.0**8), 0.5, 12
MATERN_START = -110.0  # log2


def correlation(model: str, scaled: Floats, smoothness: float = 1.5) -> Floats:
    """Correlation at distances in units of the range.

    Parameters
    ----------
    model : one of `MODELS`
    scaled : any shape, distance / range, >= 0
    smoothness : kappa of the Matern model, u**k K_k(u) / (2**(k-1) Gamma(k))

    Returns
    -------
    float64, the shape of `scaled`, 1 at 0.
    """
    if model == "exponential":
        return np.exp(-scaled)
    if model == "gaussian":
        return np.exp(-(scaled**2))
    if model == "spherical":
        u = np.minimum(scaled, 1.0)
        return 1.0 - u * (1.5 - 0.5 * u * u)
    return _matern(scaled, smoothness)


def _matern(u: Floats, kappa: float) -> Floats:
    if kappa == 0.5:
        return np.exp(-u)
    if kappa == 1.5:
        return (1.0 + u) * np.exp(-u)
    if kappa == 2.5:
        return (1.0 + u + u * u / 3.0) * np.exp(-u)
    table = _matern_table(float(kappa))
    return _look_up(np.ascontiguousarray(u, np.float64).ravel(), table).reshape(np.shape(u))


def _matern_exactly(u: Floats, kappa: float) -> Floats:
    """u**k K_k(u) / (2**(k-1) Gamma(k)), in logarithms; where K_k overflows, near 0, by its first terms."""
    safe = np.maximum(u, MATERN_SPAN[0])
    with np.errstate(divide="ignore"):
        log = kappa * np.log(safe) + np.log(kve(kappa, safe)) - safe - (kappa - 1.0) * np.log(2.0) - gammaln(kappa)
    near_zero = -safe * safe / (4.0 * max(kappa - 1.0, 1.0))
    return np.exp(np.where(np.isfinite(log), log, near_zero))


@lru_cache(maxsize=16)
def _matern_table(kappa: float) -> Floats:
    """(s, MATERN_NODES): powers' coefficients of the correlation on equal steps of log2 u over `MATERN_SPAN`.

    In log u the function is analytic everywhere, also where its derivatives by u are not bounded, near 0.
    """
    steps = np.arange(np.log2(MATERN_SPAN[0]), np.log2(MATERN_SPAN[1]), MATERN_STEP)
    angle = (np.arange(MATERN_NODES) + 0.5) * np.pi / MATERN_NODES
    nodes = steps[:, None] + MATERN_STEP * (0.5 + 0.5 * np.cos(angle))
    values = _matern_exactly(2.0**nodes, kappa)
    return np.linalg.solve(np.vander(np.cos(angle), increasing=True), values.T).T.copy()


@njit(nogil=True, cache=True)
def _look_up(u, table):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The function of a table at (n,) numbers: 1 below its span, 0 above."""
    out = np.empty(u.size)
    low, high = MATERN_SPAN
    for i in range(u.size):
        if low < u[i] < high:
            place = (np.log2(u[i]) - MATERN_START) / MATERN_STEP
            row = min(int(place), len(table) - 1)
            x, value = 2.0 * (place - row) - 1.0, 0.0
            for q in range(MATERN_NODES - 1, -1, -1):
                value = value * x + table[row, q]
            out[i] = value
        else:
            out[i] = 1.0 if u[i] <= low else (0.0 if u[i] >= high else np.nan)
    return out


def pooled_pairs(points: Floats, values: Floats) -> tuple[Floats, Floats, Floats]:
    """Semivariance of every pair of points, pooled over the columns (times) at which both report.

    Only differences within one column count, so a level that changes from column to column cancels.

    Parameters
    ----------
    points : (n, d) float64
    values : (n, t) float64, NaN where silent

    Returns
    -------
    distance, summed, count : (p,) float64 for each pair that ever reports together and does not share one place:
        distance; sum over columns of (z_i - z_j)**2 / 2; number of columns.
    """
    present = np.isfinite(values)
    mask = present.astype(np.float64)
    with np.errstate(invalid="ignore"):
        level = np.where(present, values, 0.0).sum(axis=0) / np.maximum(mask.sum(axis=0), 1.0)
    z = np.where(present, values - level, 0.0)
    square = (z * z) @ mask.T
    count = mask @ mask.T
    summed = (square + square.T - 2.0 * (z @ z.T)) / 2.0
    i, j = np.triu_indices(len(points), k=1)
    distance = pair_distance(points, points)[i, j]
    keep = (count[i, j] > 0) & (distance > COLOCATED)
    return distance[keep], np.maximum(summed[i, j][keep], 0.0), count[i, j][keep]


def bin_pairs(
    distance: Floats, summed: Floats, count: Floats, width: float, n_lags: int
) -> tuple[Floats, Floats, Floats]:
    """Matheron's estimator in lags ((l - 1) * width, l * width]: mean distance, semivariance, count; empty lags left out.

    Parameters
    ----------
    distance, summed, count : (p,) float64 from `pooled_pairs`

    Returns
    -------
    lag, gamma, n : (<= n_lags,) float64
    """
    lag = np.ceil(distance / width).astype(np.int64) - 1
    inside = (lag >= 0) & (lag < n_lags)
    lag = lag[inside]
    n = np.bincount(lag, count[inside], n_lags).astype(np.float64)
    h = np.bincount(lag, (distance * count)[inside], n_lags)
    g = np.bincount(lag, summed[inside], n_lags)
    filled = n > 0
    return h[filled] / n[filled], g[filled] / n[filled], n[filled]
