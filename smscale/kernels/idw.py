"""Inverse distance weights among the nearest points that report."""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from smscale.kernels import neighbours as near
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
            distance, index = near.nearest_points(tree, targets[rows[part]], candidates)
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


def fill(
    out: NDArray[np.float32], cells: near.Cells, points: Floats, values: Floats, neighbours: int, power: float
) -> None:
    """Fill `out` (t, rows, cols) with what `inverse_distance` gives for the cells of a grid."""

    def finish(out: NDArray[np.float32], chunk: near.Chunk, group: near.Group) -> NDArray[np.bool_]:
        short = np.zeros((len(chunk.tiles), len(group.reporting)), bool)
        weights = near.in_pieces(partial(_weights, power=power), chunk.distance)
        shared = (group.values, group.reporting, group.needed, group.columns, group.first)
        _fill_tiles(out, *chunk, weights, *shared, short)
        return short

    near.fill(out, cells, points, values, neighbours, finish)


def _weights(distance: Floats, power: float) -> Floats:
    """distance**-power; 0 at the place of a point, where the weight has no meaning."""
    with np.errstate(divide="ignore"):
        weights = 1.0 / (distance * distance) if power == 2.0 else distance**-power
    weights[distance <= COLOCATED] = 0.0
    return weights


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_tiles(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    out, tiles, start, candidates, first, distance, base, _pairs, _square, safe,
    weights, values, reporting, needed, columns, column_first, short,
):  # fmt: skip
    """All tiles of a chunk; says in `short` (tiles, patterns) where candidates were too few."""
    lanes = distance.size - base[-1]
    for p in range(len(tiles)):
        own = candidates[first[p] : first[p + 1]]
        c, m, width = own.size, start[p + 1] - start[p], tiles[p, 3] - tiles[p, 2]
        apart = distance[base[p] : base[p + 1]].reshape(c, m)
        nearest, certain = near.rank(apart, safe[start[p] : start[p + 1]], len(reporting), needed[0])
        own_weights = weights[base[p] : base[p + 1] + lanes]
        at = _at_points(apart)
        some = at.any()
        bits, runs = np.empty((m, nearest.shape[2]), np.uint64), np.empty((m, 3), np.int64)
        members = np.zeros((m, (needed.max() + 3) // 4 * 4), np.int64)
        for pattern in range(len(reporting)):
            k = needed[pattern]
            mask = near.mask_of(reporting[pattern], own)
            sets, found = near.find_sets(nearest, certain, mask, k, width, bits, members, runs)
            if found < 0:
                short[p, pattern] = True
                continue
            days = columns[column_first[pattern] : column_first[pattern + 1]]
            level, shares = np.zeros((sets, days.size)), np.zeros((sets, days.size, members.shape[1]))
            for s in range(sets):
                for day in range(days.size):
                    for j in range(k):
                        shares[s, day, j] = values[own[members[s, j]], days[day]]
            present = np.zeros(members.shape[1])
            present[:k] = 1.0
            near.evaluate(out, tiles[p], m, lanes, runs[:found], members, level, shares, own_weights, present, days)
            if some:
                _repair(out, tiles[p], at, runs[:found], members[:, :k], apart, values, own, days)


@njit(nogil=True, cache=True)
def _at_points(apart):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(m,) bool: cells that lie at the place of a candidate."""
    at = np.zeros(apart.shape[1], np.bool_)
    for j in range(apart.shape[0]):
        for i in range(apart.shape[1]):
            at[i] |= apart[j, i] <= COLOCATED
    return at


@njit(nogil=True, cache=True)
def _repair(out, tile, at, runs, members, apart, values, own, days):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The mean of the values at a cell's own place, where its set has any."""
    width = tile[3] - tile[2]
    for r in range(len(runs)):
        a, b, s = runs[r]
        for i in range(a, b):
            if s < 0 or not at[i]:
                continue
            for day in days:
                total, count = 0.0, 0
                for j in members[s]:
                    if apart[j, i] <= COLOCATED:
                        total += values[own[j], day]
                        count += 1
                if count:
                    out[day, tile[0] + i // width, tile[2] + i % width] = total / count
