"""Ordinary kriging of a grid from the nearest reporting points of each cell, tile by tile.

Cells that share their set of neighbours share its factorisation: with the dual form (`kriging`) where only the field is wanted, with
the weights of each cell (`kriging_points`) for the variance and where negative weights are corrected.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from smscale.kernels import neighbours as near
from smscale.kernels.kriging import JITTERS, PIVOT, SingularSystemError
from smscale.kernels.kriging_points import Rule, nonnegative
from smscale.kernels.neighbour_ranks import LANES

Floats = NDArray[np.float64]

#: Sets of a tile whose solution is kept for the next pattern of silence; columns below which each is solved by itself.
KEPT, FEW = 512, 4


def fill_field(out: NDArray[np.float32], cells: near.Cells, points: Floats, values: Floats, rule: Rule) -> None:
    """Fill `out` (t, rows, cols) with the field of a grid, each cell from its nearest points that report.

    Raises
    ------
    SingularSystemError
        where a set's covariance matrix cannot be factored.
    """
    _fill(out, cells, points, values, rule, False)


def fill_variance(out: NDArray[np.float32], cells: near.Cells, points: Floats, values: Floats, rule: Rule) -> None:
    """Fill `out` (t, rows, cols) with the variance of what `fill_field` gives; of `values` (n, t) only what is NaN counts."""
    _fill(out, cells, points, values, rule, True)


def _fill(
    out: NDArray[np.float32], cells: near.Cells, points: Floats, values: Floats, rule: Rule, variance: bool
) -> None:
    way = Way(rule.noise, rule.prior, rule.nonnegative, variance)

    def finish(out: NDArray[np.float32], axes: near.Axes, chunk: near.Chunk, group: near.Group) -> NDArray[np.bool_]:
        apart, start = near.pair_distances(chunk, group.points)
        short = np.zeros((len(chunk.tiles), len(group.silence.reporting)), bool)
        matrices = rule.covariance.in_pieces(apart)
        broken = _fill_tiles(
            out, axes, chunk, group.points, group.silence, matrices, start, way, np.array(JITTERS), short, LANES
        )
        if broken:
            raise SingularSystemError(f"the covariance matrix of {broken} points is not positive definite")
        return short

    near.fill(out, cells, points, values, rule.neighbours, rule.covariance, finish)


class Way(NamedTuple):
    """What compiled code must know of a `Rule`, and whether the variance is wanted, not the field."""

    noise: float
    prior: float
    nonnegative: bool
    variance: bool


@njit(nogil=True, cache=True)
def _fill_tiles(out, axes, chunk, points, silence, matrices, start, way, jitters, short, lanes):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """All tiles of a chunk; says in `short` (tiles, patterns) where candidates were too few, and returns the size of a system
    that could not be factored, 0 as a rule."""
    weighed = way.nonnegative or way.variance
    desk, every = near.desk_of(chunk, silence, lanes), np.empty((0, 0, 0), np.bool_)
    for p in range(len(chunk.tiles)):
        tile = chunk.tiles[p]
        ground = near.open_tile(p, axes, chunk, points, len(silence.reporting), desk, lanes)
        own, cross = ground.own, ground.weights
        matrix = matrices[start[p] : start[p + 1]].reshape(own.size, own.size)
        memory = _memory((own.size + 63) // 64, silence.needed.max(), len(silence.reporting))
        for pattern in range(len(silence.reporting)):
            bits, members, runs = near.sets_of(pattern, tile, ground, silence, desk, lanes)
            if len(runs) == 0:
                short[p, pattern] = True
                continue
            days, k, sets = near.columns_of(pattern, silence), silence.needed[pattern], len(members)
            inverses = np.empty((sets if weighed else 0, k + 1, _padded(k)))
            level, shares = np.empty((sets, days.size)), np.zeros((sets, days.size, members.shape[1]))
            for s in range(sets):
                row, known = _recall(bits[s], memory)
                kept = memory[2][row]
                if not known and not _solve(matrix, members[s, :k], way.noise, jitters, weighed, kept):
                    return k
                if weighed:
                    inverses[s] = kept[: k + 1, : _padded(k)]
                else:
                    _dual(kept, members[s, :k], silence.values, own, days, level[s], shares[s])
            if weighed:
                _weigh_runs(out, tile, lanes, runs, members, matrix, inverses, silence.values, own, cross, way, days)
            else:
                near.sum_runs(out, tile, lanes, runs, members, level, shares, cross, np.empty(0), days, every)
    return 0


@njit(nogil=True, cache=True)
def _padded(k):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The next multiple of 4 above k."""
    return (k + 4) // 4 * 4


@njit(nogil=True, cache=True)
def _memory(words, k, patterns):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Room for what is solved of some sets: an open hash table of rows, their bits, what is kept (n, k + 1, padded), and how many.

    Days on which other stations are silent have many sets in common.
    """
    most = KEPT if patterns > 1 else 1
    slots = np.full(4 * most, -1, np.int64)
    return slots, np.empty((most, words), np.uint64), np.empty((most, k + 1, _padded(k))), np.zeros(1, np.int64)


@njit(nogil=True, cache=True)
def _recall(bits, memory):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Row of a set in the memory, and whether it is known; a full memory forgets all (FNV-1a)."""
    slots, keys, _, count = memory
    code = np.uint64(14695981039346656037)
    for word in bits:
        code = (code ^ (word ^ (word >> np.uint64(29)))) * np.uint64(1099511628211)
    slot = np.int64((code ^ (code >> np.uint64(32))) & np.uint64(slots.size - 1))
    first = slot
    while slots[slot] >= 0:
        if np.array_equal(keys[slots[slot]], bits):
            return slots[slot], True
        slot = (slot + 1) % slots.size
    if count[0] == len(keys):
        slots[:] = -1
        count[0], slot = 0, first
    row = count[0]
    slots[slot], count[0] = row, row + 1
    keys[row] = bits
    return row, False


@njit(nogil=True, cache=True)
def _solve(matrix, members, noise, jitters, weighed, kept):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Of one set, K = L L': B into `kept` if `weighed`, else L and below it u = L^-1 1; False if it cannot be factored."""
    k = members.size
    lower = np.empty((k, k))
    if not _factor_set(matrix, members, noise, jitters, lower):
        return False
    if weighed:
        kept[: k + 1, : _padded(k)] = _bordered_inverse(lower)
        return True
    kept[:k, :k] = lower
    for i in range(k):
        one = 1.0
        for j in range(i):
            one -= lower[i, j] * kept[k, j]
        kept[k, i] = one / lower[i, i]
    return True


@njit(nogil=True, cache=True)
def _factor_set(matrix, members, noise, jitters, lower):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Lower factor of the members' part of a matrix, lifted by the smallest of `jitters` that makes it positive definite."""
    lift, tried = 0.0, 0
    while not _cholesky(matrix, members, noise, lift, lower):
        if tried == jitters.size:
            return False
        trace = 0.0
        for i in members:
            trace += matrix[i, i] + noise
        lift = jitters[tried] * trace / members.size
        tried += 1
    return True


@njit(nogil=True, cache=True)
def _dual(lower, members, values, own, days, level, shares):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Mean (c,) and dual coefficients (c, k) of one set for the columns `days` of values.

    With v = L^-1 z, the mean is u'v / u'u and the coefficients are L'^-1 (v - mean u); u is the row of `lower` below L.
    """
    k = members.size
    u = lower[k]
    norm = 0.0
    for i in range(k):
        norm += u[i] * u[i]
    if days.size < FEW:
        for c in range(days.size):
            _dual_day(lower, u, norm, members, values, own, days[c], level, shares, c)
        return
    v = np.empty((k, days.size))
    for i in range(k):
        row = v[i]
        for c in range(days.size):
            row[c] = values[own[members[i]], days[c]]
        for j in range(i):
            part, other = lower[i, j], v[j]
            for c in range(days.size):
                row[c] -= part * other[c]
        for c in range(days.size):
            row[c] /= lower[i, i]
    level[:] = 0.0
    for i in range(k):
        for c in range(days.size):
            level[c] += u[i] * v[i, c] / norm
    for i in range(k - 1, -1, -1):
        row = v[i]
        for c in range(days.size):
            row[c] -= level[c] * u[i]
        for j in range(i + 1, k):
            part, other = lower[j, i], v[j]
            for c in range(days.size):
                row[c] -= part * other[c]
        for c in range(days.size):
            row[c] /= lower[i, i]
            shares[c, i] = row[c]


@njit(nogil=True, cache=True)
def _dual_day(lower, u, norm, members, values, own, day, level, shares, c):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """As `_dual` for one column, without loops over columns."""
    k = members.size
    v, mean = shares[c], 0.0
    for i in range(k):
        total = values[own[members[i]], day]
        for j in range(i):
            total -= lower[i, j] * v[j]
        v[i] = total / lower[i, i]
        mean += u[i] * v[i]
    mean /= norm
    level[c] = mean
    for i in range(k - 1, -1, -1):
        total = v[i] - mean * u[i]
        for j in range(i + 1, k):
            total -= lower[j, i] * v[j]
        v[i] = total / lower[i, i]


@njit(nogil=True, cache=True)
def _bordered_inverse(lower):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """B (k + 1, q) from K = L L', q a multiple of 4 with zeros beyond k + 1."""
    k = len(lower)
    root = np.zeros((k, k))  # L^-1
    for i in range(k):
        root[i, i] = 1.0 / lower[i, i]
        for j in range(i):
            total = 0.0
            for q in range(j, i):
                total -= lower[i, q] * root[q, j]
            root[i, j] = total / lower[i, i]
    out = np.zeros((k + 1, _padded(k)))
    for q in range(k):
        for i in range(q + 1):
            for j in range(q + 1):
                out[i, j] += root[q, i] * root[q, j]
    ones = np.empty(k)
    for i in range(k):
        ones[i] = out[i, :k].sum()
    total = ones.sum()
    for i in range(k):
        for j in range(k):
            out[i, j] -= ones[i] * ones[j] / total
        out[i, k] = out[k, i] = ones[i] / total
    out[k, k] = -1.0 / total
    return out


@njit(nogil=True, cache=True)
def _weigh_runs(out, tile, lanes, runs, members, matrix, inverses, values, own, cross, way, days):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Field or variance by weights of each cell, run by run."""
    width = tile[3] - tile[2]
    m = (tile[1] - tile[0]) * width
    k, padded = inverses.shape[1] - 1, inverses.shape[2]
    near_cells, weights = np.ones((padded, lanes)), np.zeros((padded, lanes))
    total, z = np.empty((1, lanes)), np.zeros((1, padded))
    for r in range(len(runs)):
        a, b, s = runs[r]
        y, x = tile[0] + a // width, tile[2] + a % width
        if s < 0:
            for day in days:
                out[day, y, x : x + b - a] = np.nan
            continue
        for i in range(a, b, lanes):
            n = min(lanes, b - i)
            for j in range(k):
                near_cells[j] = cross[members[s, j] * m + i : members[s, j] * m + i + lanes]
            _combine(weights[: k + 1], inverses[s], near_cells)
            if way.nonnegative:
                nonnegative(weights[:, :n], near_cells[:k, :n])
            if way.variance:
                _spread(total[0], weights, near_cells, matrix, members[s, :k], way)
                for day in days:
                    out[day, y, x + i - a : x + i - a + n] = total[0, :n]
                continue
            for day in days:
                for j in range(k):
                    z[0, j] = values[own[members[s, j]], day]
                _combine(total, z, weights)
                out[day, y, x + i - a : x + i - a + n] = total[0, :n]


@njit(nogil=True, cache=True, fastmath={"contract"})
def _combine(out, matrix, columns):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """out (r, lanes) = matrix (r, q) . columns (q, lanes), q a multiple of 4."""
    lanes = np.uint64(out.shape[1])
    for j in range(len(matrix)):
        for lane in range(lanes):
            out[j, lane] = 0.0
        for q in range(0, matrix.shape[1], 4):
            s0, s1, s2, s3 = matrix[j, q], matrix[j, q + 1], matrix[j, q + 2], matrix[j, q + 3]
            for lane in range(lanes):
                out[j, lane] += (
                    s0 * columns[q, lane]
                    + s1 * columns[q + 1, lane]
                    + s2 * columns[q + 2, lane]
                    + s3 * columns[q + 3, lane]
                )


@njit(nogil=True, cache=True, fastmath={"contract"})
def _spread(out, weights, cross, matrix, members, way):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Variance (lanes,): C(0) - w'c - (B (c, 1))_k, or for corrected weights C(0) - 2 w'c + w'K w; never below 0."""
    k, lanes = members.size, np.uint64(out.size)
    factor = 2.0 if way.nonnegative else 1.0
    for lane in range(lanes):
        out[lane] = way.prior if way.nonnegative else way.prior - weights[k, lane]
    for j in range(k):
        for lane in range(lanes):
            out[lane] -= factor * weights[j, lane] * cross[j, lane]
    if way.nonnegative:
        for j in range(k):
            for q in range(k):
                share = matrix[members[j], members[q]] + (way.noise if j == q else 0.0)
                for lane in range(lanes):
                    out[lane] += share * weights[j, lane] * weights[q, lane]
    for lane in range(lanes):
        out[lane] = max(out[lane], 0.0)


@njit(nogil=True, cache=True)
def _cholesky(matrix, members, noise, lift, lower):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Lower factor of the members' part of the matrix, `noise` + `lift` on its diagonal; False if not positive definite."""
    for i in range(members.size):
        for j in range(i + 1):
            total = matrix[members[i], members[j]]
            if i == j:
                total += noise + lift
            for q in range(j):
                total -= lower[i, q] * lower[j, q]
            if i > j:
                lower[i, j] = total / lower[j, j]
            elif total > PIVOT * (matrix[members[i], members[i]] + noise):
                lower[i, i] = np.sqrt(total)
            else:
                return False
    return True
