"""A search over an estimator's settings, as an estimator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, RegressorMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from smscale.errors import InputError
from smscale.models.samples import (
    Samples,
    checked_table,
    group_labels,
    inner_folds,
    merge_rows,
)
from smscale.models.search.records import one_thread
from smscale.models.search.settings import misfits, plain_seed, spaces
from smscale.models.search.trials import (
    CALLS,
    CANDIDATES,
    FOLDS,
    VALIDATIONS,
    WAYS,
    Space,
    as_they_are,
    candidates,
    fit_with,
    search,
    with_groups,
)


class Searched(MetaEstimatorMixin, RegressorMixin, BaseEstimator):
    """Any regressor, its settings chosen on inner folds of whatever rows it is fitted on: nested wherever it stands.

    Parameters
    ----------
    estimator : regressor
    space : name -> values to try (or, for how "random", a scipy distribution)
    how : "grid", "random" or "hyperband" (dask-ml's, for estimators with partial_fit; needs a dask client)
    candidates : settings that a random search draws
    folds : inner folds; Hyperband holds one of them out
    calls : calls of partial_fit that Hyperband's longest run gets
    validation : what inner folds keep whole when `fit` gets no groups: "blocks" (as `samples.implied_groups` finds
        them) or "rows" (each its own)
    records : folder that keeps finished fits, so that a killed search goes on; None keeps none
    progress : a bar on stderr
    random_state : int, RandomState or None; with `records`, an int: others draw new folds each time

    Attributes
    ----------
    best_estimator_ : fitted on all rows
    best_params_ : the setting chosen;  inner_table_ : as `search` returns;  inner_score_ : its rmse, units of y
    """

    def __init__(
        self,
        estimator: BaseEstimator,
        space: Space,
        how: str = "grid",
        candidates: int = CANDIDATES,
        folds: int = FOLDS,
        calls: int = CALLS,
        validation: str = "blocks",
        records: Path | str | None = None,
        progress: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.estimator = estimator
        self.space = space
        self.how = how
        self.candidates = candidates
        self.folds = folds
        self.calls = calls
        self.validation = validation
        self.records = records
        self.progress = progress
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Searched:
        """Search, then fit the best on all rows of X (n, k), y (n,); inner folds keep `groups` (n,) whole."""
        with one_thread():
            samples, given, seed = self._samples(X, y, groups, sample_weight)
            settings, self.inner_table_ = self._searched(samples, given, seed)
            chosen = int(np.flatnonzero(self.inner_table_["chosen"])[0])
            self.best_params_, self.inner_score_ = dict(settings[chosen]), float(self.inner_table_["rmse"].iloc[chosen])
            model = clone(self.estimator).set_params(**self.best_params_)
            labels = samples.group if given else None
            self.best_estimator_ = fit_with(model, samples.X, samples.y, labels, samples.weight)
        return self

    def search(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> pd.DataFrame:
        """The table of the search alone: with `records`, a later `fit` on the same rows finds every fit done."""
        with one_thread():
            return self._searched(*self._samples(X, y, groups, sample_weight))[1]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """(n,), units of y, for X (n, k)."""
        check_is_fitted(self)
        return self.best_estimator_.predict(validate_data(self, X, dtype=np.float64, reset=False))

    def check_settings(self) -> None:
        """Raise InputError, in one line, for settings that cannot be."""
        wrong = misfits(self, {"candidates": 1, "folds": 2, "calls": 1}, {"how": WAYS, "validation": VALIDATIONS})
        known = [name for name in self.estimator.get_params() if "__" not in name]
        plain = self.space
        if isinstance(plain, Mapping):  # of a part's setting, the part: another part may take its place
            plain = {str(name).partition("__")[0]: values for name, values in plain.items()}
        wrong += spaces(plain, known, "space", distributions=self.how != "grid")
        if wrong:
            raise InputError(f"Searched: {'; '.join(wrong)}")

    def _samples(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None, sample_weight: ArrayLike | None
    ) -> tuple[Samples, bool, int]:
        """The table, whether its groups were given, and the seed of all that is drawn."""
        self.check_settings()
        seed = plain_seed(self.random_state)
        table, values, weight = checked_table(self, X, y, sample_weight, least=2)
        weighs = has_fit_parameter(self.estimator, "sample_weight")
        if sample_weight is not None and not weighs:
            raise InputError(f"{type(self.estimator).__name__} takes no sample_weight")
        labels = group_labels(groups, len(table))
        samples = (merge_rows if weighs else as_they_are)(table, values, weight, labels)
        if labels is None:
            samples = with_groups(samples, self.validation, seed, getattr(self, "feature_names_in_", None))
        return samples, groups is not None, seed

    def _searched(self, samples: Samples, given: bool, seed: int) -> tuple[list[dict[str, Any]], pd.DataFrame]:
        folds = inner_folds(samples.group, self.folds, np.random.default_rng(seed))
        groups = samples.group if given else None
        if self.how == "hyperband":
            from smscale.models.search.hyperband import hyperband

            return hyperband(
                self.estimator, self.space, samples.X, samples.y, folds[0], groups, samples.weight,
                self.calls, self.records, self.progress, seed,
            )  # fmt: skip
        settings = candidates(self.space, self.how, self.candidates, seed)
        table = search(
            self.estimator, settings, samples.X, samples.y, folds, groups, samples.weight,
            records=self.records, progress=self.progress,
        )  # fmt: skip
        return settings, table

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags = get_tags(self.estimator).regressor_tags
        return tags
