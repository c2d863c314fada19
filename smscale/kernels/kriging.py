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
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Covariance = Callable[[Floats], Floats]
#: What is added to the diagonal when a factorisation fails, as shares of it, one after the other.
JITTERS = (1e-12, 1e-10, 1e-8, 1e-6)
#: A factorisation fails if what a point adds to those before it is less than this share of the variance: it would be rounding.
PIVOT = 1e-13
#: By how much, as a share of the largest residual, a field may miss the values because the system was lifted.
MISFIT = 1e-3


class SingularSystemError(ValueError):
    """The covariance matrix cannot be factored, even with the largest of `JITTERS` on its diagonal."""


def factor(k: Floats) -> tuple[tuple[Floats, bool], float]:
    """Cholesky factor of (n, n) `k`, and the jitter (share of the mean diagonal) that it took: 0 as a rule."""
    scale = np.trace(k) / len(k)
    for jitter in (0.0, *JITTERS):
        try:
            cho = cho_factor(k if jitter == 0.0 else k + np.eye(len(k)) * (jitter * scale), lower=True)
        except np.linalg.LinAlgError:
            continue
        if np.diag(cho[0]).min() ** 2 > PIVOT * scale:
            return cho, jitter
    raise SingularSystemError(f"the covariance matrix of {len(k)} points is not positive definite")


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
