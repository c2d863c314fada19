"""Ridge regression whose penalty is chosen on whole groups: what every model may start from."""

from __future__ import annotations

import numpy as np

from smscale.models.samples import Floats, Labels

#: Ridge penalties tried, as shares of a standardised predictor's variance.
PENALTIES = np.logspace(-4, 1, 21)
RIDGE_FOLDS = 5


def ridge_coefficients(X: Floats, y: Floats, weight: Floats, penalty: float | Floats) -> Floats:
    """Coefficients (k,), or (k, p) for p penalties, of a weighted ridge regression through the origin.

    X (n, k) and y (n,) standardised; a penalty is a share of a standardised predictor's variance, infinity gives zeros.
    """
    share = weight / weight.sum()
    eigenvalues, vectors = np.linalg.eigh((X.T * share) @ X)
    moments = vectors.T @ (X.T @ (share * y))
    shrunk = moments[:, None] / (np.maximum(eigenvalues, 0)[:, None] + np.atleast_1d(penalty))
    return (vectors @ shrunk).reshape(-1, *np.shape(penalty))


def ridge_penalty(X: Floats, y: Floats, weight: Floats, group: Labels, seed: int) -> float:
    """The one of `PENALTIES` that is best in cross-validation on up to five folds of whole groups (n,)."""
    _, labels = np.unique(group, return_inverse=True)
    if labels.max() == 0:
        labels = np.arange(y.size)
    fold = np.random.default_rng(seed).permutation(labels.max() + 1)[labels] % RIDGE_FOLDS
    errors = np.zeros(PENALTIES.size)
    for number in np.unique(fold):
        inside = fold != number
        candidates = ridge_coefficients(X[inside], y[inside], weight[inside], PENALTIES)
        errors += weight[~inside] @ (X[~inside] @ candidates - y[~inside, None]) ** 2
    return float(PENALTIES[np.argmin(errors)])
