"""Ordinary kriging in its dual form, on Euclidean points.

With K the covariance among the reporting points (measurement error on its diagonal) and c(x) the covariance between x
and the points, the ordinary kriging prediction is (Chiles & Delfiner 2012, Geostatistics, section 3.4)

    z(x) = m + c(x) . b,    b = K^-1 (z - m 1),    m = (1' K^-1 z) / (1' K^-1 1),

where m is the generalised-least-squares mean. b and m do not depend on x, so a day costs one small solve, and all days of
a block of cells are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial import cKDTree

from smscale.kernels import neighbours as near
from smscale.kernels.neighbours import silence_patterns

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Covariance = Callable[[Floats], Floats]
#: What is added to the diagonal when a factorisation fails, as shares of it, one after the other.
JITTERS = (1e-12, 1e-10, 1e-8, 1e-6)

#: Nearest points looked up once for all times, as a multiple of the neighbours wanted: enough where few are silent.
CANDIDATES = 3


class SingularSystemError(ValueError):
    """The covariance matrix cannot be factored, even with the largest of `JITTERS` on its diagonal."""


def factor(k: Floats) -> tuple[tuple[Floats, bool], float]:
    """Cholesky factor of (n, n) `k`, and the jitter (share of the mean diagonal) that it took: 0 as a rule."""
    for jitter in (0.0, *JITTERS):
        try:
            lifted = k if jitter == 0.0 else k + np.eye(len(k)) * (jitter * np.trace(k) / len(k))
            return cho_factor(lifted, lower=True), jitter
        except np.linalg.LinAlgError:
            continue
    raise SingularSystemError(f"the covariance matrix of {len(k)} points is not positive definite")


def solve_dual(k: Floats, values: Floats) -> tuple[Floats, Floats, float]:
    """Means and dual coefficients of every column; a silent point has coefficient 0.

    Parameters
    ----------
    k : (n, n) float64, covariance among the points, measurement error on the diagonal
    values : (n, t) float64, NaN where silent

    Returns
    -------
    mean : (t,) float64, NaN where no point reports
    coefficients : (n, t) float64
    jitter : the largest that any system needed
    """
    mean, coefficients = np.full(values.shape[1], np.nan), np.zeros(values.shape)
    worst = 0.0
    for points, columns in silence_patterns(values):
        z = values[np.ix_(points, columns)]
        cho, jitter = factor(k[np.ix_(points, points)])
        ones = cho_solve(cho, np.ones(points.size))
        level = ones @ z / ones.sum()
        mean[columns] = level
        coefficients[np.ix_(points, columns)] = cho_solve(cho, z - level)
        worst = max(worst, jitter)
    return mean, coefficients, worst


def ordinary_weights(k: Floats, cross: Floats) -> tuple[Floats, Floats]:
    """Kriging weights, summing to one, and the Lagrange term (1 - 1'K^-1 c) / (1'K^-1 1).

    Parameters
    ----------
    k : (n, n) float64; cross : (n, m) float64, covariance between the points and the targets

    Returns
    -------
    weights : (n, m); lagrange : (m,). Prediction variance = C(0) - sum(weights * cross) + lagrange.
    """
    cho, _ = factor(k)
    ones = cho_solve(cho, np.ones(len(k)))
    simple = cho_solve(cho, cross)
    lagrange = (1.0 - ones @ cross) / ones.sum()
    return simple + np.outer(ones, lagrange), lagrange


def prediction_variance(k: Floats, cross: Floats, prior: float) -> Floats:
    """(m,) float64: variance of the predicted signal, C(0) - c'K^-1 c + (1 - 1'K^-1 c)**2 / (1'K^-1 1), never below 0."""
    weights, lagrange = ordinary_weights(k, cross)
    return np.maximum(prior - np.einsum("nm,nm->m", weights, cross) + lagrange, 0.0)


def leave_one_out(k: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Prediction of each value from all others of its column, in closed form, and the variance of that value's error.

    With Q = K^-1 - K^-1 1 1'K^-1 / (1'K^-1 1), the error is (Q z)_i / Q_ii and its variance 1 / Q_ii (Dubrule 1983,
    Mathematical Geology 15, 687-699), measurement error of the value itself included.

    Parameters
    ----------
    k : (n, n) float64; values : (n, t) float64, NaN where silent

    Returns
    -------
    prediction, variance : (n, t) float64, NaN where silent or where no other point reports
    """
    prediction, variance = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    for points, columns in silence_patterns(values):
        if points.size < 2:
            continue
        z = values[np.ix_(points, columns)]
        cho, _ = factor(k[np.ix_(points, points)])
        inverse = cho_solve(cho, np.eye(points.size))
        ones = inverse.sum(axis=1)
        q = inverse - np.outer(ones, ones) / ones.sum()
        own = np.diag(q)[:, None]
        prediction[np.ix_(points, columns)] = z - (q @ z) / own
        variance[np.ix_(points, columns)] = 1.0 / own
    return prediction, variance


def nearest_candidates(points: Floats, targets: Floats, neighbours: int) -> Integers:
    """(m, c) int64: the `CANDIDATES` x `neighbours` nearest points of each target, ranked in float64; -1 where it has NaN."""
    wanted = min(CANDIDATES * neighbours, len(points))
    finite = np.flatnonzero(np.isfinite(targets).all(axis=1))
    nearest = np.full((len(targets), wanted), -1, np.int64)
    if finite.size:
        nearest[finite] = near.nearest_points(cKDTree(points), targets[finite], wanted)[1]
    return nearest


def nearest_sets(
    points: Floats, targets: Floats, nearest: Integers, reporting: Integers, neighbours: int
) -> tuple[Integers, Integers]:
    """The distinct sets of nearest reporting points that the targets have.

    Parameters
    ----------
    points : (n, d); targets : (m, d); nearest : (m, c) of `nearest_candidates`
    reporting : (p,) int64, indices of the points that report

    Returns
    -------
    sets : (s, k) int64, ascending indices of points; label : (m,) int64, the set of each target, -1 where it has NaN.
    """
    k = min(neighbours, reporting.size)
    mask = np.zeros(len(points), bool)
    mask[reporting] = True
    rows, found = _first_reporting(nearest, mask, k)
    short = np.flatnonzero((found < k) & (nearest[:, 0] >= 0))
    if short.size:
        index = near.nearest_points(cKDTree(points[reporting]), targets[short], k)[1]
        rows[short] = np.sort(reporting[index], axis=1)
    label = np.full(len(targets), -1, dtype=np.int64)
    known = np.flatnonzero(nearest[:, 0] >= 0)
    label[known], first = _label_rows(rows[known])
    return rows[known[first]], label


@njit(nogil=True, cache=True)
def _first_reporting(nearest, reporting, k):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(m, k) ascending indices of the first k candidates that report, and how many there were."""
    m = nearest.shape[0]
    rows = np.full((m, k), -1, np.int64)
    found = np.zeros(m, np.int64)
    for i in range(m):
        n = 0
        for point in nearest[i]:
            if n == k or point < 0:
                break
            if reporting[point]:
                place = n
                while place > 0 and rows[i, place - 1] > point:
                    rows[i, place] = rows[i, place - 1]
                    place -= 1
                rows[i, place] = point
                n += 1
        found[i] = n
    return rows, found


@njit(nogil=True, cache=True)
def _label_rows(rows):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Label of each (m, k) row, equal rows alike, in order of first appearance; and where each label first appears.

    An open hash table of row numbers (FNV-1a); rows of neighbouring cells are mostly alike, so the last is tried first.
    """
    m, k = rows.shape
    size = 16
    while size < 2 * m:
        size *= 2
    table = np.full(size, -1, np.int64)
    label = np.empty(m, np.int64)
    first = np.empty(m, np.int64)
    found = 0
    for i in range(m):
        if i > 0 and np.array_equal(rows[i], rows[i - 1]):
            label[i] = label[i - 1]
            continue
        code = np.uint64(14695981039346656037)
        for j in range(k):
            code = (code ^ np.uint64(rows[i, j])) * np.uint64(1099511628211)
        slot = np.int64((code ^ (code >> np.uint64(32))) & np.uint64(size - 1))
        while table[slot] >= 0 and not np.array_equal(rows[i], rows[first[table[slot]]]):
            slot = (slot + 1) % size
        if table[slot] < 0:
            table[slot] = found
            first[found] = i
            found += 1
        label[i] = table[slot]
    return label, first[:found].copy()


@njit(nogil=True, cache=True)
def neighbour_distance(points, sets, label, targets):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(m, k) float64: distances of (m, d) targets to the points of their own set, sets[label]."""
    m, k = targets.shape[0], sets.shape[1]
    out = np.empty((m, k))
    for i in range(m):
        for j in range(k):
            total = 0.0
            for axis in range(targets.shape[1]):
                step = points[sets[label[i], j], axis] - targets[i, axis]
                total += step * step
            out[i, j] = np.sqrt(total)
    return out


def solve_sets(
    points: Floats, noise: float, covariance: Covariance, sets: Integers, rhs: Floats
) -> tuple[Floats, Floats, Floats]:
    """Systems of many neighbour sets at once, each factored once for all columns of `rhs`.

    Parameters
    ----------
    points : (n, d); sets : (s, k); rhs : (n, t), without NaN at the points of the sets
    noise : variance of the measurement error, on the diagonal

    Returns
    -------
    mean : (s, t); coefficients : (s, k, t); matrices : (s, k, k)
    """
    place = points[sets]
    k = covariance(np.sqrt(((place[:, :, None, :] - place[:, None, :, :]) ** 2).sum(axis=-1)))
    k = _factorable(k + noise * np.eye(sets.shape[1]))
    z = rhs[sets]
    solved = np.linalg.solve(k, np.concatenate([np.ones((*sets.shape, 1)), z], axis=2))
    ones, kz = solved[:, :, :1], solved[:, :, 1:]
    mean = np.einsum("sk,skt->st", ones[:, :, 0], z) / ones.sum(axis=1)
    return mean, kz - ones * mean[:, None, :], k


def _factorable(matrices: Floats) -> Floats:
    """The (s, k, k) matrices, each that is not positive definite lifted by the smallest of `JITTERS` that makes it so."""
    try:
        np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        eye = np.eye(matrices.shape[1])
        scale = np.trace(matrices, axis1=1, axis2=2) / matrices.shape[1]
        return np.stack([k + factor(k)[1] * s * eye for k, s in zip(matrices, scale, strict=True)])
    return matrices


def fill_local(
    out: NDArray[np.float32],
    cells: near.Cells,
    points: Floats,
    values: Floats,
    neighbours: int,
    covariance: Covariance,
    noise: float,
) -> None:
    """Fill `out` (t, rows, cols) with the field of a grid, each cell from its `neighbours` nearest points that report.

    Raises
    ------
    SingularSystemError
        where a set's covariance matrix cannot be factored.
    """

    def finish(out: NDArray[np.float32], chunk: near.Chunk, group: near.Group) -> NDArray[np.bool_]:
        short = np.zeros((len(chunk.tiles), len(group.reporting)), bool)
        shared = (group.values, group.reporting, group.needed, group.columns, group.first)
        weights, matrices = (near.in_pieces(covariance, numbers) for numbers in (chunk.distance, chunk.pairs))
        broken = _fill_tiles(out, *chunk, weights, matrices, noise, np.array(JITTERS), *shared, short)
        if broken:
            raise SingularSystemError(f"the covariance matrix of {broken} points is not positive definite")
        return short

    near.fill(out, cells, points, values, neighbours, finish)


@njit(nogil=True, cache=True)
def _fill_tiles(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    out, tiles, start, candidates, first, distance, base, _pairs, square, safe,
    weights, matrices, noise, jitters, values, reporting, needed, columns, column_first, short,
):  # fmt: skip
    """All tiles of a chunk; says in `short` (tiles, patterns) where candidates were too few, and returns the size of a system
    that could not be factored, 0 as a rule."""
    lanes = distance.size - base[-1]
    for p in range(len(tiles)):
        own = candidates[first[p] : first[p + 1]]
        c, m, width = own.size, start[p + 1] - start[p], tiles[p, 3] - tiles[p, 2]
        apart = distance[base[p] : base[p + 1]].reshape(c, m)
        nearest, certain = near.rank(apart, safe[start[p] : start[p + 1]], len(reporting), needed[0])
        cross = weights[base[p] : base[p + 1] + lanes]
        matrix = matrices[square[p] : square[p + 1]].reshape(c, c)
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
            level, shares = np.empty((sets, days.size)), np.zeros((sets, days.size, members.shape[1]))
            for s in range(sets):
                if not _solve_set(matrix, members[s, :k], noise, jitters, values, own, days, level[s], shares[s]):
                    return k
            near.evaluate(out, tiles[p], m, lanes, runs[:found], members, level, shares, cross, np.empty(0), days)
    return 0


@njit(nogil=True, cache=True)
def _solve_set(matrix, members, noise, jitters, values, own, days, level, shares):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Mean (c,) and dual coefficients (c, k) of one set for the columns `days` of values; False if it cannot be factored.

    With K = L L', u = L^-1 1 and v = L^-1 z, the mean is u'v / u'u and the coefficients are L'^-1 (v - mean u).
    """
    k = members.size
    lower = np.empty((k, k))
    lift, tried = 0.0, 0
    while not _cholesky(matrix, members, noise, lift, lower):
        if tried == jitters.size:
            return False
        trace = 0.0
        for i in range(k):
            trace += matrix[members[i], members[i]] + noise
        lift = jitters[tried] * trace / k
        tried += 1
    u, v = np.empty(k), np.empty((k, days.size))
    for i in range(k):
        one, row = 1.0, v[i]
        for c in range(days.size):
            row[c] = values[own[members[i]], days[c]]
        for j in range(i):
            part, other = lower[i, j], v[j]
            one -= part * u[j]
            for c in range(days.size):
                row[c] -= part * other[c]
        u[i] = one / lower[i, i]
        for c in range(days.size):
            row[c] /= lower[i, i]
    norm = (u * u).sum()
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
    return True


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
            elif total > 0.0:
                lower[i, i] = np.sqrt(total)
            else:
                return False
    return True
