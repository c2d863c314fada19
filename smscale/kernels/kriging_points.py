"""Ordinary kriging of single points from their nearest reporting points, set by set.

Targets that share their set of neighbours share its factorisation. With K the covariance among the neighbours, B the inverse of
[[K, 1], [1', 0]] and c the covariance to a target, (w, -lagrange) = B (c, 1): the weights and the Lagrange term.

Negative weights, where they are not wanted, are corrected after Deutsch (1996, Computers & Geosciences 22, 765-773): they become
zero, and with them each weight that is smaller than the mean size of the negative ones at a point whose covariance to
the target is smaller than their mean covariance; what is left is scaled to a sum of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from smscale.kernels import neighbours as near
from smscale.kernels.kriging import PIVOT, factor
from smscale.kernels.radial import Radial

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Nearest points looked up once for all times, as a multiple of the neighbours wanted: enough where few are silent.
CANDIDATES = 3


class Rule(NamedTuple):
    """How a neighbourhood is kriged: covariance of distance, its value at 0 (`prior`), variance of the measurement error that is on
    the diagonal of K besides (`noise`), how many neighbours, and whether negative weights are corrected."""

    covariance: Radial
    prior: float
    noise: float
    neighbours: int
    nonnegative: bool = False


class Neighbours(NamedTuple):
    """Distinct sets (s, k) of points, ascending; and of each target (m,) which it has, -1 where it has no place."""

    sets: Integers
    label: Integers


def nearest_candidates(points: Floats, targets: Floats, neighbours: int, others: bool = False) -> Integers:
    """(m, c) int64: the `CANDIDATES` x `neighbours` nearest points of each target, ranked in float64; -1 where it has NaN."""
    wanted = min(CANDIDATES * neighbours + others, len(points))
    finite = np.flatnonzero(np.isfinite(targets).all(axis=1))
    nearest = np.full((len(targets), wanted - others), -1, np.int64)
    if finite.size:
        found = near.nearest_points(cKDTree(points), targets[finite], wanted)[1]
        nearest[finite] = _without(found, finite) if others else found
    return nearest


def nearest_sets(
    points: Floats, targets: Floats, nearest: Integers, reporting: Integers, neighbours: int, others: bool = False
) -> Neighbours:
    """The distinct sets of nearest reporting points that the targets have.

    Parameters
    ----------
    points : (n, d); targets : (m, d); nearest : (m, c) of `nearest_candidates`
    reporting : (p,) int64, indices of the points that report
    others : as in `field_at`
    """
    k = min(neighbours, reporting.size - others)
    label = np.full(len(targets), -1, dtype=np.int64)
    if k == 0:
        return Neighbours(np.empty((0, 0), np.int64), label)
    mask = np.zeros(len(points), bool)
    mask[reporting] = True
    rows, found = _first_reporting(nearest, mask, k)
    known = np.flatnonzero(nearest[:, 0] >= 0)
    short = known[found[known] < k]
    if short.size:
        index = reporting[near.nearest_points(cKDTree(points[reporting]), targets[short], k + others)[1]]
        rows[short] = np.sort(_without(index, short) if others else index, axis=1)
    label[known], first = _label_rows(rows[known])
    return Neighbours(rows[known[first]], label)


def _without(index: Integers, own: Integers) -> Integers:
    """Each row of (m, c) less its own number, or if that is not in it less its last."""
    order = np.argsort(index == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1)[:, :-1]


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


def field_at(
    points: Floats, values: Floats, patterns: list[near.Pattern], targets: Floats, rule: Rule, others: bool = False
) -> Floats:
    """(t, m) float64: the field at single targets; NaN where no point reports or a target has no place.

    Parameters
    ----------
    points : (n, d); values : (n, t), NaN where silent; patterns : of `silence_patterns(values)`; targets : (m, d)
    others : the targets are the points themselves, each left out of its own neighbours
    """
    out = np.full((values.shape[1], len(targets)), np.nan)
    for found, columns, known, weights, _, _ in _weighed(points, patterns, targets, rule, others):
        own = found.sets[found.label[known]]
        for column in columns:
            z = values[own, column]
            level = z[:, 0]  # so that a constant stays one, however well the weights sum to one
            out[column, known] = level + np.einsum("mk,km->m", z - level[:, None], weights[:-1])
    return out


def variance_at(points: Floats, patterns: list[near.Pattern], targets: Floats, times: int, rule: Rule) -> Floats:
    """(times, m) float64: variance of the predicted signal at single targets, as `field_at`."""
    out = np.full((times, len(targets)), np.nan)
    for found, columns, known, weights, cross, matrices in _weighed(points, patterns, targets, rule, False):
        if rule.nonnegative:
            among = matrices[found.label[known]]
            spread = np.einsum("km,mkq,qm->m", weights[:-1], among, weights[:-1], optimize=True)
            variance = rule.prior - 2.0 * np.einsum("km,km->m", weights[:-1], cross) + spread
        else:
            variance = rule.prior - np.einsum("km,km->m", weights[:-1], cross) - weights[-1]
        out[np.ix_(columns, known)] = np.maximum(variance, 0.0)
    return out


def _weighed(
    points: Floats, patterns: list[near.Pattern], targets: Floats, rule: Rule, others: bool
) -> Iterator[tuple[Neighbours, Integers, Integers, Floats, Floats, Floats]]:
    """For each pattern: neighbours, columns, targets that have any (p,), their weights (k + 1, p), covariances (k, p) and K (s, k, k)."""
    nearest = nearest_candidates(points, targets, rule.neighbours, others)
    for reporting, columns in patterns:
        found = nearest_sets(points, targets, nearest, reporting, rule.neighbours, others)
        known = np.flatnonzero(found.label >= 0)
        if known.size == 0:
            continue
        matrices, inverses = _bordered_inverses(points[found.sets], rule)
        label = found.label[known]
        cross = rule.covariance.function(_set_distance(points, found.sets, label, targets[known]))
        weights = np.empty((cross.shape[0] + 1, cross.shape[1]))
        _weigh_targets(weights, cross, inverses, label)
        if rule.nonnegative:
            nonnegative(weights, cross)
        yield found, columns, known, weights, cross, matrices


def _bordered_inverses(places: Floats, rule: Rule) -> tuple[Floats, Floats]:
    """K (s, k, k) of sets of points (s, k, d), and B (s, k + 1, k + 1)."""
    apart = np.sqrt(((places[:, :, None, :] - places[:, None, :, :]) ** 2).sum(axis=-1))
    k = places.shape[1]
    matrices = _factorable(rule.covariance.function(apart) + rule.noise * np.eye(k))
    inverse = np.linalg.inv(matrices)
    ones = inverse.sum(axis=2)
    total = ones.sum(axis=1)
    bordered = np.empty((len(matrices), k + 1, k + 1))
    bordered[:, :k, :k] = inverse - ones[:, :, None] * (ones / total[:, None])[:, None, :]
    bordered[:, :k, k] = bordered[:, k, :k] = ones / total[:, None]
    bordered[:, k, k] = -1.0 / total
    return matrices, bordered


@njit(nogil=True, cache=True)
def _set_distance(points, sets, label, targets):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(k, m) float64: distances of (m, d) targets to the points of their own set, sets[label]."""
    m, k = targets.shape[0], sets.shape[1]
    out = np.empty((k, m))
    for i in range(m):
        for j in range(k):
            total = 0.0
            for axis in range(targets.shape[1]):
                step = points[sets[label[i], j], axis] - targets[i, axis]
                total += step * step
            out[j, i] = np.sqrt(total)
    return out


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def _weigh_targets(weights, cross, inverses, label):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """weights (k + 1, m) = B (c, 1) of each target's set."""
    k, m = cross.shape
    own = np.ones(k + 1)
    for i in range(m):
        for j in range(k):
            own[j] = cross[j, i]
        inverse = inverses[label[i]]
        for j in range(k + 1):
            total = 0.0
            for q in range(k + 1):
                total += inverse[j, q] * own[q]
            weights[j, i] = total


@njit(nogil=True, cache=True)
def nonnegative(weights, cross):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Weights (>= k, m) corrected after Deutsch (1996), covariances (k, m) to the target given; the Lagrange term is left alone."""
    k, m = cross.shape
    for i in range(m):
        size, level, count = 0.0, 0.0, 0
        for j in range(k):
            if weights[j, i] < 0.0:
                size, level, count = size - weights[j, i], level + cross[j, i], count + 1
        if count == 0:
            continue
        size, level, total, first = size / count, level / count, 0.0, 0.0
        for j in range(k):
            weight = weights[j, i]
            if weight > 0.0:
                first += weight
                total += 0.0 if weight < size and cross[j, i] < level else weight
        all_small = total == 0.0  # then the small ones are all there is: they stay
        for j in range(k):
            weight = weights[j, i]
            if weight <= 0.0 or (not all_small and weight < size and cross[j, i] < level):
                weights[j, i] = 0.0
            else:
                weights[j, i] = weight / (first if all_small else total)


def _factorable(matrices: Floats) -> Floats:
    """The (s, k, k) matrices, each that is not positive definite lifted by the smallest of `JITTERS` that makes it so."""
    scale = np.trace(matrices, axis1=1, axis2=2) / matrices.shape[1]
    try:
        pivots = np.diagonal(np.linalg.cholesky(matrices), axis1=1, axis2=2)
        weak = np.flatnonzero(pivots.min(axis=1) ** 2 <= PIVOT * scale)
    except np.linalg.LinAlgError:
        weak = np.arange(len(matrices))
    lifted = matrices.copy() if weak.size else matrices
    for i in weak:
        lifted[i] += factor(matrices[i])[1] * scale[i] * np.eye(matrices.shape[1])
    return lifted
