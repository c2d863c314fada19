"""Inverse distance weights among the nearest points that report."""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from smscale.kernels import neighbours as near
from smscale.kernels.neighbour_ranks import LANES
from smscale.kernels.radial import Radial
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


def inverse_distance(
    points: Floats, values: Floats, targets: Floats, neighbours: int, power: float, others: bool = False
) -> Floats:
    """Mean of the nearest reporting points with weights distance**-power (Shepard 1968); at a reporting point its value.

    Reporting points that share a target's place are averaged. The value of a target depends on nothing but the points.

    Parameters
    ----------
    points : (n, d); values : (n, t) float64, NaN where silent; targets : (m, d)
    others : the targets are the points themselves, each left out of its own neighbours

    Returns
    -------
    (t, m) float64, NaN where no point reports or a target's coordinate is NaN
    """
    out = np.full((values.shape[1], len(targets)), np.nan)
    rows = np.flatnonzero(np.isfinite(targets).all(axis=1))
    tree, n = cKDTree(points), len(points) - others
    candidates = min(CANDIDATES * neighbours, n)
    while rows.size:
        short = np.zeros(rows.size, bool)
        step = max(1, QUERY_NUMBERS // candidates)
        for start in range(0, rows.size, step):
            part = slice(start, start + step)
            distance, index = near.nearest_points(tree, targets[rows[part]], candidates + others)
            if others:
                distance, index = _without_own(distance, index, rows[part])
            _weigh(index, distance, values, neighbours, float(power), rows[part], out, short[part])
        rows = rows[short] if candidates < n else rows[:0]
        candidates = min(4 * candidates, n)
    return out


def leave_one_out(points: Floats, values: Floats, neighbours: int, power: float) -> Floats:
    """(n, t) float64: each value predicted from all other points of its column; NaN where silent or alone."""
    if len(points) < 2:
        return np.full(values.shape, np.nan)
    prediction = inverse_distance(points, values, points, neighbours, power, others=True).T
    return np.where(np.isfinite(values), prediction, np.nan)


def _without_own(distance: Floats, index: near.Integers, own: near.Integers) -> tuple[Floats, near.Integers]:
    """Candidates (m, c) without the target's own point, or without the last where that is not among them (many at one place)."""
    kept = index != own[:, None]
    kept[kept.all(axis=1), -1] = False
    return distance[kept].reshape(len(own), -1), index[kept].reshape(len(own), -1)


def fill(
    out: NDArray[np.float32],
    cells: near.Cells,
    points: Floats,
    values: Floats,
    neighbours: int,
    power: float,
    wanted: NDArray[np.bool_] | None = None,
) -> None:
    """Fill `out` (t, rows, cols) with what `inverse_distance` gives for the cells of a grid.

    Parameters
    ----------
    wanted : (d, rows, cols), time t is at t % d: cells that are needed, others may be NaN; None: all are
    """
    some = np.empty((0, 0, 0), np.bool_) if wanted is None else np.ascontiguousarray(wanted)

    def finish(out: NDArray[np.float32], axes: near.Axes, chunk: near.Chunk, group: near.Group) -> NDArray[np.bool_]:
        short = np.zeros((len(chunk.tiles), len(group.silence.reporting)), bool)
        _fill_tiles(out, axes, chunk, group.points, group.silence, short, LANES, some)
        return short

    weight = None if power == 2.0 else Radial(partial(_weights, power=power), None)
    near.fill(out, cells, points, values, neighbours, weight, finish)


def _weights(distance: Floats, power: float) -> Floats:
    """distance**-power; 0 at the place of a point, where the weight has no meaning."""
    with np.errstate(divide="ignore"):
        weights = distance**-power
    weights[distance <= COLOCATED] = 0.0
    return weights


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_tiles(out, axes, chunk, points, silence, short, lanes, wanted):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """All tiles of a chunk; says in `short` (tiles, patterns) where candidates were too few."""
    desk = near.desk_of(chunk, silence, lanes)
    for p in range(len(chunk.tiles)):
        tile = chunk.tiles[p]
        ground = near.open_tile(p, axes, chunk, points, len(silence.reporting), desk, lanes)
        own, at = ground.own, _at_points(ground)
        some = at.any()
        for pattern in range(len(silence.reporting)):
            _, members, runs = near.sets_of(pattern, tile, ground, silence, desk, lanes)
            if len(runs) == 0:
                short[p, pattern] = True
                continue
            days, k, sets = near.columns_of(pattern, silence), silence.needed[pattern], len(members)
            level, shares = np.zeros((sets, days.size)), np.zeros((sets, days.size, members.shape[1]))
            for s in range(sets):
                for day in range(days.size):
                    for j in range(k):
                        shares[s, day, j] = silence.values[own[members[s, j]], days[day]]
            present = np.zeros(members.shape[1])
            present[:k] = 1.0
            near.sum_runs(out, tile, lanes, runs, members, level, shares, ground.weights, present, days, wanted)
            if some:
                _repair(out, tile, at, runs, members[:, :k], ground.distance, silence.values, own, days)


@njit(nogil=True, cache=True)
def _at_points(ground):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(m,) bool: cells that lie at the place of a candidate."""
    m = ground.placed.size
    at = np.zeros(m, np.bool_)
    for j in range(ground.own.size):
        if ground.away[j] - ground.radius <= COLOCATED:
            for i in range(m):
                at[i] |= ground.distance[j * m + i] <= COLOCATED
    return at


@njit(nogil=True, cache=True)
def _repair(out, tile, at, runs, members, distance, values, own, days):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The mean of the values at a cell's own place, where its set has any."""
    m, width = at.size, tile[3] - tile[2]
    for r in range(len(runs)):
        a, b, s = runs[r]
        for i in range(a, b):
            if s < 0 or not at[i]:
                continue
            for day in days:
                total, count = 0.0, 0
                for j in members[s]:
                    if distance[j * m + i] <= COLOCATED:
                        total += values[own[j], day]
                        count += 1
                if count:
                    out[day, tile[0] + i // width, tile[2] + i % width] = total / count
