"""A training table as the estimators see it: canonical order, standardised, and cut into inner folds of whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data

from smscale.errors import InputError
from smscale.models.places import place_groups

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Rows = NDArray[np.intp]
Fold = tuple[Rows, Rows]

#: Without groups, rows are clustered by their predictors: at most so many clusters, of this many rows on average.
CLUSTERS, CLUSTER_ROWS = 25, 5
#: Rows without which nothing can be trained.
LEAST_TRAINING = 2
#: What rounding leaves of a constant column, as a share of its mean.
ROUNDING = 1e-12
#: Between these a standard deviation and what is multiplied by its inverse have room in float32.
SMALLEST, LARGEST = 1e-30, 1e30
#: Deviations below this have no squares.
LEAST_SQUARED = 1e-150


class Samples(NamedTuple):
    """A training table in canonical order: X (n, k), y (n,), weight (n,), group (n,) int64."""

    X: Floats
    y: Floats
    weight: Floats
    group: Labels


class Scaling(NamedTuple):
    """Weighted means and standard deviations of the predictors (k,) and of the target; 1 where constant."""

    mean: Floats
    scale: Floats
    target_mean: float
    target_scale: float


def checked_table(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None,
    least: int = 1,
    reset: bool = True,
    dtype: Any = np.float64,
) -> tuple[NDArray[Any], Floats, Floats]:
    """X (n, k) of `dtype`, y (n,) and weights (n,) float64 of an estimator's `fit`, which learns its features' names and number.

    Raises
    ------
    InputError : scikit-learn's refusal, in one line; fewer than `least` rows; a target that holds no numbers; weights whose
        sum is infinite
    """
    name = type(estimator).__name__
    try:
        table, target = validate_data(
            estimator, X, y, dtype=dtype, y_numeric=True, ensure_min_samples=least, reset=reset
        )
        weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
    except ValueError as error:
        raise InputError(f"{name}: {str(error).splitlines()[0]}") from error
    if target.dtype.kind not in "biuf":
        raise InputError(f"{name}: y must hold numbers; got {target.dtype}, such as {str(target.flat[0])!r}")
    with np.errstate(over="ignore"):
        if not np.isfinite(weight.sum()):
            raise InputError(
                f"{name}: sample_weight adds up to infinity; its largest is {weight.max():.3g}; rescale it"
            )
    return table, target.astype(np.float64, copy=False), weight


def seed_of(random_state: Any) -> int:
    """What seeds a training, drawn from a setting as scikit-learn's `check_random_state` takes it."""
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError as error:
        raise InputError(
            f"random_state must be None, an integer from 0 to 2^32 - 1 or a RandomState; got {random_state!r}"
        ) from error


def group_labels(groups: ArrayLike | None, rows: int) -> Labels | None:
    """Labels (rows,) counted from 0, None for None; InputError where there is not one label a row."""
    if groups is None:
        return None
    labels = np.asarray(groups)
    if labels.shape != (rows,):
        raise InputError(f"groups must be one label a row, shape ({rows},); got shape {labels.shape}")
    if missing := int(pd.isna(labels).sum()):
        raise InputError(f"{missing} of {rows} groups are missing; leave those rows out, or give them a group")
    if labels.dtype == object:  # of several types, which have no order
        labels = labels.astype(str)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def merge_rows(X: Floats, y: Floats, weight: Floats, group: Labels | None) -> Samples:
    """Rows sorted, equal rows merged with their weights added, rows without weight left out.

    What is fitted on it depends neither on the order of the rows nor on whether a row is repeated or weighted. Without
    `group` (n,) every merged row is a group of its own.

    Raises
    ------
    InputError : fewer than two distinct rows have weight
    """
    labels = np.zeros(y.size) if group is None else group.astype(np.float64)
    used = weight > 0
    table = np.column_stack([X, y, labels])[used]
    rows, where = np.unique(table, axis=0, return_inverse=True)
    if len(rows) < 2:
        raise InputError(f"training needs two distinct rows with weight; got {len(rows)} of {len(y)}")
    total = np.bincount(where.ravel(), weights=weight[used], minlength=len(rows))
    own: Labels = np.arange(len(rows), dtype=np.int64) if group is None else rows[:, -1].astype(np.int64)
    return Samples(np.ascontiguousarray(rows[:, :-2]), rows[:, -2].copy(), total.astype(np.float64), own)


def scaling_of(samples: Samples) -> Scaling:
    """The standardiser of a table.

    Raises
    ------
    InputError : a variance overflows, or vanishes though values differ
    """
    share = samples.weight / samples.weight.sum()
    with np.errstate(over="ignore", invalid="ignore"):
        mean, target_mean = share @ samples.X, float(share @ samples.y)
        scale = np.sqrt(share @ (samples.X - mean) ** 2)
        target_scale = float(np.sqrt(share @ (samples.y - target_mean) ** 2))
    if not (np.isfinite(scale).all() and np.isfinite(target_scale)):
        raise InputError(
            "a predictor or the target is too large to be standardised (its variance overflows); rescale it"
        )
    deviation = np.append(np.abs(samples.X - mean).max(axis=0), np.abs(samples.y - target_mean).max())
    centre = np.abs(np.append(mean, target_mean))
    if ((deviation < LEAST_SQUARED) & (deviation > ROUNDING * centre)).any():
        raise InputError(
            f"a predictor or the target varies by no more than {LEAST_SQUARED:g}, too little to be standardised; rescale it"
        )
    least = np.finfo(float).tiny
    constant = scale <= ROUNDING * np.maximum(np.abs(mean), least)
    target_constant = target_scale <= ROUNDING * max(abs(target_mean), least)
    return Scaling(mean, np.where(constant, 1.0, scale), target_mean, 1.0 if target_constant else target_scale)


def standardised(samples: Samples, scaling: Scaling) -> Samples:
    """The table with mean 0, standard deviation 1 and a mean weight of 1."""
    x = (samples.X - scaling.mean) / scaling.scale
    y = (samples.y - scaling.target_mean) / scaling.target_scale
    return Samples(x, y, samples.weight / samples.weight.mean(), samples.group)


def held_within(samples: Samples, deviations: float | None) -> tuple[Samples, Floats, Floats]:
    """The table with predictors within so many standard deviations and their range, and these bounds (k,); None: no bounds.

    A rare extreme (rain, a place far away) would lead a line, and a model beyond its range, where no sample says anything.
    """
    X = samples.X
    if deviations is None:
        nowhere = np.full(X.shape[1], np.inf)
        return samples, -nowhere, nowhere
    scaling = scaling_of(samples)
    reach = deviations * scaling.scale
    lower = np.maximum(X.min(axis=0), scaling.mean - reach)
    upper = np.minimum(X.max(axis=0), scaling.mean + reach)
    return samples._replace(X=np.clip(X, lower, upper)), lower, upper


def check_single(samples: Samples, scaling: Scaling) -> None:
    """Raise InputError for a table that does not fit float32, in which predictions are computed: they would be NaN."""
    with np.errstate(over="ignore"):
        farthest = max(float(np.abs(samples.X).max()), float(np.abs(samples.y).max()))
    spread = np.append(scaling.scale, scaling.target_scale)
    if farthest > LARGEST or spread.min() < SMALLEST:
        raise InputError(
            f"predictors and target must stay below {LARGEST:g} and vary by more than {SMALLEST:g}; they reach "
            f"{farthest:.3g}, the least standard deviation is {spread.min():.3g}; rescale them"
        )


def by_appearance(group: Labels) -> Labels:
    """The same groups numbered in the order of the rows, so that it does not matter what they are called."""
    _, first, index = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index].astype(np.int64)


def implied_groups(samples: Samples, seed: int, names: Sequence[str] | None = None) -> Labels:
    """Labels (n,) of what inner folds keep whole for who has no groups.

    Places, where the predictors show them (`places.place_groups`; `names` are the k predictors', where known); else clusters
    in predictor space; each row its own where there are too few rows. It depends on the rows of X and the seed, not on their
    order nor, but for clusters, on their weights.
    """
    from sklearn.cluster import KMeans

    found = place_groups(samples.X, seed, names)
    if found is not None:
        return found
    rows, where = np.unique(samples.X, axis=0, return_inverse=True)
    where = where.ravel()
    count = min(CLUSTERS, len(samples.y) // CLUSTER_ROWS, len(rows))
    if count < 2:
        return np.arange(len(samples.y), dtype=np.int64)
    weight = np.bincount(where, weights=samples.weight)
    clusters = KMeans(count, n_init=1, random_state=seed % 2**32).fit(rows, sample_weight=weight)
    return clusters.labels_.astype(np.int64)[where]


def deal(labels: Labels, folds: int, rng: np.random.Generator) -> Labels:
    """Fold (n,) of each row: whole labels, the largest first (in random order of equals), each to the lightest fold."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = rng.permutation(counts.size)
    order = order[np.argsort(-counts[order], kind="stable")]
    load, owner = np.zeros(folds, np.int64), np.empty(counts.size, np.int64)
    for label in order:
        owner[label] = np.argmin(load)
        load[owner[label]] += counts[label]
    return owner[index.ravel()]


def inner_folds(group: Labels, folds: int, rng: np.random.Generator) -> list[Fold]:
    """(training, held-out) rows of each fold of whole groups, dealt by `deal`.

    As many folds as there are groups where `folds` is more. Where one group has all rows but one, or all of them, rows are
    dealt one by one: nothing could be trained on what it leaves.
    """
    counts = np.unique(group, return_counts=True)[1]
    if counts.max() > group.size - LEAST_TRAINING:
        group, counts = np.arange(group.size, dtype=np.int64), np.ones(group.size, np.int64)
    folds = min(folds, counts.size)
    held = deal(group, folds, rng)
    return [(np.flatnonzero(held != number), np.flatnonzero(held == number)) for number in range(folds)]


def inner_split(group: Labels, fraction: float, rng: np.random.Generator) -> Fold:
    """Training and validation rows: whole groups, drawn until `fraction` of the rows is reached.

    One group alone is split by rows. At least one row lies on each side.
    """
    labels, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    if labels.size == 1:
        index, counts = np.arange(group.size), np.ones(group.size, dtype=np.intp)
    order = rng.permutation(counts.size)
    wanted = max(1, int(np.searchsorted(np.cumsum(counts[order]), fraction * group.size)))
    held_out = np.isin(index, order[: min(wanted, counts.size - 1)])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
