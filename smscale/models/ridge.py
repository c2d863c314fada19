"""Ridge regression whose penalty is chosen on whole groups: what every model may start from, and must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from smscale.models.samples import (
    Floats,
    Fold,
    Labels,
    Samples,
    Scaling,
    checked_table,
    group_labels,
    implied_groups,
    inner_folds,
    merge_rows,
    scaling_of,
    standardised,
)

#: Ridge penalties tried, as shares of a standardised predictor's variance.
PENALTIES = np.logspace(-4, 1, 21)
RIDGE_FOLDS = 5
#: Folds that tell how penalties share.
SHARE_FOLDS = 20


class Line(NamedTuple):
    """A ridge regression and its intercept, or p of them: slopes (k,) or (k, p), level () or (p,)."""

    slopes: Floats
    level: Floats

    def at(self, X: Floats) -> Floats:
        """(n,) or (n, p), of X (n, k)."""
        return X @ self.slopes + self.level


def ridge_coefficients(X: Floats, y: Floats, weight: Floats, penalty: float | Floats) -> Floats:
    """Coefficients (k,), or (k, p) for p penalties, of a weighted ridge regression through the origin.

    X (n, k) and y (n,) standardised; a penalty is a share of a standardised predictor's variance, infinity gives zeros.
    """
    share = weight / weight.sum()
    eigenvalues, vectors = np.linalg.eigh((X.T * share) @ X)
    moments = vectors.T @ (X.T @ (share * y))
    shrunk = moments[:, None] / (np.maximum(eigenvalues, 0)[:, None] + np.atleast_1d(penalty))
    return (vectors @ shrunk).reshape(-1, *np.shape(penalty))


def held_out_lines(
    X: Floats, y: Floats, weight: Floats, folds: Sequence[Fold], penalties: float | Floats
) -> list[Line]:
    """For each fold the ridge regression of its training rows, or p of them for p penalties.

    Centred on the fold's own training rows: the means of all rows would tell each fold of those that it holds out.
    """
    found = []
    for train, _ in folds:
        share = weight[train] / weight[train].sum()
        centre, level = share @ X[train], share @ y[train]
        slopes = ridge_coefficients(X[train] - centre, y[train] - level, share, penalties)
        found.append(Line(slopes, level - centre @ slopes))
    return found


def ridge_penalty(X: Floats, y: Floats, weight: Floats, group: Labels, seed: int, folds: int = RIDGE_FOLDS) -> float:
    """The one of `PENALTIES` that is best in cross-validation on up to `folds` folds of whole groups (n,)."""
    dealt = inner_folds(group, folds, np.random.default_rng(seed))
    errors = np.zeros(PENALTIES.size)
    for (_, held), lines in zip(dealt, held_out_lines(X, y, weight, dealt, PENALTIES), strict=True):
        errors += weight[held] @ (lines.at(X[held]) - y[held, None]) ** 2
    return float(PENALTIES[np.argmin(errors)])


def penalty_shares(X: Floats, y: Floats, weight: Floats, group: Labels, seed: int) -> Floats:
    """Share (p,) of each of `PENALTIES` in a mean of their ridge regressions, told by up to `SHARE_FOLDS` folds of whole groups.

    Akaike's weights, (least error / error)^(G / 2) over their sum, G being the number of groups: what so many places can tell
    apart (Burnham and Anderson 2002, Model selection and multimodel inference, section 2.9). Where they tell little, the best
    of them is so by chance.
    """
    dealt = inner_folds(group, SHARE_FOLDS, np.random.default_rng(seed))
    errors = np.zeros(PENALTIES.size)
    for (_, held), lines in zip(dealt, held_out_lines(X, y, weight, dealt, PENALTIES), strict=True):
        errors += weight[held] @ (lines.at(X[held]) - y[held, None]) ** 2
    least = errors.min()
    if not least > 0:
        return (errors == least) / np.count_nonzero(errors == least)
    shares = (least / errors) ** (np.unique(group).size / 2)
    return np.asarray(shares / shares.sum())


class MeanBaseline(RegressorMixin, BaseEstimator):
    """The weighted mean of the target, whatever the predictors.

    Attributes
    ----------
    mean_ : float, units of y
    n_features_in_ : int
    """

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> MeanBaseline:
        """Learn from y (n,); X (n, k) and `groups` change nothing."""
        _, values, weight = checked_table(self, X, y, sample_weight)
        self.mean_ = float(np.average(values, weights=weight))
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """(n,) float64, units of y."""
        check_is_fitted(self)
        return np.full(len(validate_data(self, X, dtype=np.float64, reset=False)), self.mean_)

    def __sklearn_tags__(self) -> Tags:
        """It scores 0 by its nature."""
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags


class RidgeBaseline(RegressorMixin, BaseEstimator):
    """Ridge regression on standardised predictors; its penalty is chosen on five inner folds of whole groups.

    Parameters
    ----------
    random_state : int, of the folds

    Attributes
    ----------
    penalty_ : share of a standardised predictor's variance
    coef_ : (k,), of standardised predictors and target; scaling_ : `samples.Scaling`
    n_features_in_ : int
    """

    def __init__(self, random_state: int = 0):
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> RidgeBaseline:
        """Learn from X (n, k), y (n,); `groups` (n,) are labels that inner folds keep whole, `sample_weight` (n,) >= 0."""
        table, values, weight = checked_table(self, X, y, sample_weight, least=2)
        labels = group_labels(groups, len(table))
        rows = merge_rows(table, values, weight, labels)
        with threadpool_limits(1):
            self._learn(rows, labels is not None)
        return self

    def _learn(self, rows: Samples, grouped: bool) -> None:
        self.scaling_: Scaling = scaling_of(rows)
        scaled = standardised(rows, self.scaling_)
        if not grouped:
            names = getattr(self, "feature_names_in_", None)
            scaled = scaled._replace(group=implied_groups(scaled, self.random_state, names))
        X, y, weight, group = scaled
        self.penalty_ = ridge_penalty(X, y, weight, group, self.random_state)
        self.coef_ = ridge_coefficients(X, y, weight, self.penalty_)

    def predict(self, X: ArrayLike) -> Floats:
        """(n,) float64, units of y, for X (n, k)."""
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, reset=False)
        scaling = self.scaling_
        return scaling.target_mean + scaling.target_scale * (((table - scaling.mean) / scaling.scale) @ self.coef_)
