"""Inverse distance weights among the nearest points that report."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from smscale.kernels.sphere import COLOCATED

Floats = NDArray[np.float64]

#: Candidates asked for at first, as a multiple of the neighbours wanted: enough where up to half of the points are silent.
CANDIDATES = 2
#: Candidates of all targets that are held at once.
QUERY_NUMBERS = 2_000_000


@njit(nogil=True, cache=True)
def _weigh(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    index, distance, values, neighbours, power, rows, out, short
):
    for i in range(index.shape[0]):
        candidates = index.shape[1]
        weight = np.empty(candidates)
        here = 0
        for j in range(candidates):
            if distance[i, j] <= COLOCATED:
                here += 1
                weight[j] = 1.0
            else:
                weight[j] = distance[i, j] ** -power
        short[i] = False
        for s in range(values.shape[1]):
            total, norm, used, exact = 0.0, 0.0, 0, False
            for j in range(candidates):
                exact = j == here and used > 0
                if exact or used == neighbours:
                    break
                value = values[index[i, j], s]
                if np.isfinite(value):
                    total += weight[j] * value
                    norm += weight[j]
                    used += 1
            if used > 0:
                out[s, rows[i]] = total / norm
            if used < neighbours and not exact:
                short[i] = True


def inverse_distance(points: Floats, values: Floats, targets: Floats, neighbours: int, power: float) -> Floats:
    """Mean of the nearest reporting points with weights distance**-power (Shepard 1968); at a reporting point its value.

    Reporting points that share a target's place are averaged. The value of a target depends on nothing but the points.

    Parameters
    ----------
    points : (n, d); values : (n, t) float64, NaN where silent; targets : (m, d)

    Returns
    -------
    (t, m) float64, NaN where no point reports or a target's coordinate is NaN
    """
    out = np.full((values.shape[1], len(targets)), np.nan)
    rows = np.flatnonzero(np.isfinite(targets).all(axis=1))
    tree, n = cKDTree(points), len(points)
    candidates = min(CANDIDATES * neighbours, n)
    while rows.size:
        short = np.zeros(rows.size, bool)
        step = max(1, QUERY_NUMBERS // candidates)
        for start in range(0, rows.size, step):
            part = slice(start, start + step)
            distance, index = tree.query(targets[rows[part]], k=np.arange(1, candidates + 1))
            _weigh(index, distance, values, neighbours, float(power), rows[part], out, short[part])
        rows = rows[short] if candidates < n else rows[:0]
        candidates = min(4 * candidates, n)
    return out


def leave_one_out(points: Floats, values: Floats, neighbours: int, power: float) -> Floats:
    """(n, t) float64: each value predicted from all other points of its column; NaN where silent or alone."""
    prediction = np.full(values.shape, np.nan)
    for i in range(len(points)):
        others = np.delete(np.arange(len(points)), i)
        if others.size:
            prediction[i] = inverse_distance(points[others], values[others], points[i : i + 1], neighbours, power)[:, 0]
    return np.where(np.isfinite(values), prediction, np.nan)
