"""Kriging systems of many times whose reporting points differ: one inverse of all serves the times that lack few.

With A = K^-1 of all points, R the points that report at a time and S the others (the inverse of a matrix less some rows and
columns, by the Schur complement of their block),

    K_RR^-1 = A_RR - A_RS A_SS^-1 A_SR,

so what the values and the ones become under K_RR^-1 is one product with A, the same for all times, and a system of the size
of S; and the diagonal of K_RR^-1, which leaving out one point after the other needs, is that of A less sums of squares of
L^-1 A_SR, L L' = A_SS. Where more points are silent than report, or A would not be exact enough, K_RR itself is factored. Times are grouped and
computed in an order that depends on nothing but the values, each by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri, dtrtri

from smscale.kernels.kriging import MISFIT, PIVOT, Floats, Integers, SingularSystemError, factor
from smscale.kernels.neighbours import silence_patterns
from smscale.kernels.threads import in_threads, one_blas_thread

#: The inverse of all is not used from this condition (of the 1-norm) on: what it gives would miss by a share of 1e-9.
CONDITION = 1e7
#: Sets whose products with the inverse are made at once.
BATCH = 16


class _Set(NamedTuple):
    """Times (c,) at which just `points` (m,) report, their values (m, c), and whether the inverse of all serves them."""

    points: Integers
    times: Integers
    values: Floats
    by_inverse: bool


class _Solution(NamedTuple):
    """Of one set: mean (c,), dual coefficients (m, c), diagonal (m,) of K_RR^-1 less its part along the ones, jitter."""

    level: Floats
    dual: Floats
    own: Floats
    jitter: float


def solve_dual(k: Floats, values: Floats) -> tuple[Floats, Floats, float]:
    """Means and dual coefficients of every column.

    Parameters
    ----------
    k : (n, n) float64, covariance among the points, measurement error on the diagonal
    values : (n, t) float64, NaN where silent

    Returns
    -------
    mean : (t,) float64, NaN where no point reports; coefficients : (n, t) float64, 0 where silent; jitter : the largest that
        any system needed

    Raises
    ------
    SingularSystemError
        if a system cannot be factored, or only so that the field would miss the values.
    """
    mean, coefficients = np.full(values.shape[1], np.nan), np.zeros(values.shape)
    jitters = [0.0]

    def keep(one: _Set, solution: _Solution) -> None:
        mean[one.times] = solution.level
        coefficients[np.ix_(one.points, one.times)] = solution.dual
        jitters.append(solution.jitter)
        missed = solution.jitter * np.trace(k) / len(k) * np.abs(solution.dual).max()
        if missed > MISFIT * np.abs(one.values - solution.level).max():
            raise SingularSystemError(f"the covariance matrix of {one.points.size} points is singular to rounding")

    _each(k, values, keep, diagonal=False)
    return mean, coefficients, max(jitters)


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

    def keep(one: _Set, solution: _Solution) -> None:
        if one.points.size > 1:
            where = np.ix_(one.points, one.times)
            prediction[where] = one.values - solution.dual / solution.own[:, None]
            variance[where] = 1.0 / solution.own[:, None]

    _each(k, values, keep, diagonal=True)
    return prediction, variance


def _each(k: Floats, values: Floats, keep: Callable[[_Set, _Solution], None], diagonal: bool) -> None:
    """Solve every set, as many at once as BLAS has threads; `keep` is told each. Points that never report count for nothing."""
    ever = np.flatnonzero(np.isfinite(values).any(axis=1))
    among = k if ever.size == len(k) else k[np.ix_(ever, ever)]
    sets = list(_sets(values, ever, diagonal))
    inverse = None
    if sum(_saved(one.points.size, ever.size, diagonal) for one in sets if one.by_inverse) > ever.size**3:
        with one_blas_thread():
            inverse = _inverse(among)

    def some(part: list[_Set]) -> None:
        with one_blas_thread():  # the same bytes on every machine
            for one, solution in _solutions(among, inverse, part, diagonal):
                keep(one._replace(points=ever[one.points]), solution)

    in_threads(some, [sets[start : start + BATCH] for start in range(0, len(sets), BATCH)], uses_blas=True)


def _sets(values: Floats, ever: Integers, diagonal: bool) -> Iterator[_Set]:
    """Times by the points that report, numbered among those that ever do."""
    for points, times in silence_patterns(values[ever]):
        found = values[np.ix_(ever[points], times)]
        yield _Set(points, times, found, _saved(points.size, ever.size, diagonal) > 0)


def _saved(m: int, n: int, diagonal: bool) -> float:
    """Multiplications that the inverse of all n points saves where m report; below 0 where it costs more."""
    direct, s = m**3 * (2 / 3 if diagonal else 1 / 3), n - m
    return direct - s**3 / 3 - (s * s * m if diagonal else 0)


def _inverse(k: Floats) -> Floats | None:
    """(n, n) of `k`; None where it would not be exact enough."""
    lower = _cholesky(k)
    if lower is None:
        return None
    inverse, failed = dpotri(lower, lower=1)
    if failed:
        return None
    inverse = np.tril(inverse)
    inverse += np.tril(inverse, -1).T
    return inverse if np.linalg.norm(k, 1) * np.linalg.norm(inverse, 1) <= CONDITION else None


def _cholesky(k: Floats) -> Floats | None:
    """Lower factor (the rest is undefined) of a symmetric `k`, which is kept; None where it is too near to singular."""
    lower, failed = dpotrf(k.T, lower=1, clean=0)
    return None if failed or np.diag(lower).min() ** 2 <= PIVOT * np.trace(k) / len(k) else lower


def _solutions(
    k: Floats, inverse: Floats | None, sets: Sequence[_Set], diagonal: bool
) -> Iterator[tuple[_Set, _Solution]]:
    """Some sets solved, those that the inverse serves by one product with it."""
    served = [one for one in sets if one.by_inverse] if inverse is not None else []
    if inverse is not None and served:
        whole = np.zeros((len(k), sum(one.times.size + 1 for one in served)))
        ends = np.cumsum([one.times.size + 1 for one in served])
        for one, end in zip(served, ends, strict=True):
            whole[one.points, end - 1] = 1.0
            whole[np.ix_(one.points, np.arange(end - 1 - one.times.size, end - 1))] = _centred(one.values)
        product = inverse @ whole
        for one, part in zip(served, np.split(product, ends[:-1], axis=1), strict=True):
            yield one, _by_inverse(inverse, one, part, diagonal)
    for one in sets:
        if inverse is None or not one.by_inverse:
            yield one, _direct(k, one, diagonal)


def _centred(values: Floats) -> Floats:
    """About the first of each time: a constant is then exactly nothing."""
    return values - values[:1]


def _by_inverse(inverse: Floats, one: _Set, product: Floats, diagonal: bool) -> _Solution:
    """From `product` (n, c + 1), the inverse of all times the values and the ones."""
    silent = np.setdiff1d(np.arange(len(inverse)), one.points)
    solved, own = product[one.points], np.diag(inverse)[one.points]
    if silent.size:
        lower = np.linalg.cholesky(inverse[np.ix_(silent, silent)])
        across = inverse[np.ix_(silent, one.points)]
        if diagonal:
            across = solve_triangular(lower, across, lower=True, check_finite=False, overwrite_b=True)
            solved = solved - across.T @ solve_triangular(lower, product[silent], lower=True, check_finite=False)
            own = own - np.einsum("sm,sm->m", across, across)
        else:
            solved = solved - across.T @ cho_solve((lower, True), product[silent], check_finite=False)
    return _solution(one, solved[:, :-1], solved[:, -1], own, 0.0)


def _direct(k: Floats, one: _Set, diagonal: bool) -> _Solution:
    """By a factor of the set's own system."""
    among = k[np.ix_(one.points, one.points)]
    lower, jitter = _cholesky(among), 0.0
    if lower is None:
        (lower, _), jitter = factor(among)
    right = np.column_stack([_centred(one.values), np.ones(one.points.size)])
    solved = cho_solve((lower, True), right, check_finite=False)
    own = np.ones(one.points.size)
    if diagonal:
        root, _ = dtrtri(lower, lower=1)
        own = np.einsum("im,im->m", *[np.tril(root)] * 2)
    return _solution(one, solved[:, :-1], solved[:, -1], own, jitter)


def _solution(one: _Set, solved: Floats, ones: Floats, own: Floats, jitter: float) -> _Solution:
    """The generalised mean and what is left, from K_RR^-1 times the centred values and times the ones."""
    level = solved.sum(axis=0) / ones.sum()
    with np.errstate(invalid="ignore"):
        own = own - ones**2 / ones.sum()
    return _Solution(one.values[0] + level, solved - ones[:, None] * level, own, jitter)
