"""Trees on what a ridge regression leaves, and only the share of them that holds on rows not seen.

A forest cannot follow a slope beyond what it has seen, and it recognises a place by whatever does not change there
(its coordinates, its elevation): on places held out it then does worse than a ridge regression. So trees grow on what a
ridge leaves, and the inner folds choose two things beside the trees' own settings: whether they may split on predictors
that tell the groups apart, and how much of them to take. A share of 0 is the ridge itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from smscale.errors import InputError
from smscale.models.ridge import PENALTIES, penalty_shares, ridge_coefficients
from smscale.models.samples import (
    Floats,
    Labels,
    Samples,
    checked_table,
    group_labels,
    inner_folds,
    merge_rows,
    scaling_of,
    standardised,
)
from smscale.models.search.records import one_thread
from smscale.models.search.settings import misfits, plain_seed, spaces
from smscale.models.search.trials import CANDIDATES, FOLDS, VALIDATIONS, candidates, search, with_groups
from smscale.models.setting_kinds import is_real
from smscale.models.tree_arrays import Linear

Grid = Mapping[str, Sequence[Any]]

BASES = ("mean", "ridge")
COLUMNS = ("all", "varying")
#: What a grid that does not name them searches too. The mean under the trees is there for who asks: on our tables it gained
#: 2 % at best, and on a few dozen places it was chosen by luck where ridge was better.
CHOICES: Grid = {"base": ("ridge",), "columns": COLUMNS}
#: Parameters of trees that change where they grow, not what they are.
NOT_SEARCHED = {"random_state", "n_jobs", "verbose", "warm_start"}
#: Ours: a predictor of whose variance less lies within groups tells the groups apart.
WITHIN = 0.15
#: Ours: the share of the trees is its least-squares estimate less so many standard errors: where trees help by luck alone,
#: little is taken of them.
CAUTION = 2.0


class ResidualTrees(RegressorMixin, BaseEstimator):
    """y = base(X) + share x trees(X), the trees fitted to what the base leaves.

    Parameters
    ----------
    trees : regressor of one target that takes sample_weight; `staged(X)` -> (n, s), where it has it, gives its predictions
        after fewer and fewer trees left out, the whole last
    base : "mean" or "ridge" (its penalty chosen on whole groups)
    columns : what the trees may split on: "all", or "varying" (those with at least WITHIN of their variance inside groups)
    share : in [0, 1]
    random_state : int, RandomState or None, of the ridge's folds

    Attributes
    ----------
    linear_ : Linear;  columns_ : (c,) int, those that the trees see;  trees_ : fitted
    """

    def __init__(
        self,
        trees: BaseEstimator,
        base: str = "ridge",
        columns: str = "all",
        share: float = 1.0,
        random_state: int = 0,
    ):
        self.trees = trees
        self.base = base
        self.columns = columns
        self.share = share
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> ResidualTrees:
        """Fit the base, then the trees on X (n, k), y (n,); groups (n,) are kept whole where the penalty is chosen."""
        wrong = misfits(self, {}, {"base": BASES, "columns": COLUMNS})
        if not is_real(self.share) or not 0 <= self.share <= 1:
            wrong.append(f"share must be a number from 0 to 1, got {self.share!r}")
        if wrong:
            raise InputError(f"ResidualTrees: {'; '.join(wrong)}")
        table, y, weight = checked_table(self, X, y, sample_weight, least=2, dtype=np.float32)
        labels = group_labels(groups, len(table))
        group = np.arange(len(table), dtype=np.int64) if labels is None else labels
        samples = Samples(table.astype(np.float64), y, weight, group)
        self.linear_ = linear_part(samples, self.base == "ridge", self.share, plain_seed(self.random_state))
        self.columns_ = np.arange(table.shape[1])
        if self.columns == "varying":
            self.columns_ = varying(samples.X, samples.group)
        rest = samples.y - self.linear_.under(np.ascontiguousarray(table))
        self.trees_ = clone(self.trees).fit(table[:, self.columns_], rest, sample_weight=weight)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n,), units of y, for X (n, k)."""
        base, trees = self.parts(X, staged=False)
        return base + self.share * trees[:, -1]

    def parts(self, X: ArrayLike, staged: bool = True) -> tuple[Floats, Floats]:
        """Of X (n, k): base (n,) and trees (n, s) at each stage, units of y."""
        check_is_fitted(self)
        table = np.ascontiguousarray(validate_data(self, X, dtype=np.float32, reset=False))
        seen = table[:, self.columns_]
        if staged and hasattr(self.trees_, "staged"):
            trees = self.trees_.staged(seen)
        else:
            trees = self.trees_.predict(seen)[:, None]
        return self.linear_.under(table), trees.astype(np.float64)


def linear_part(samples: Samples, ridge: bool, share: float, seed: int) -> Linear:
    """The weighted mean, or a ridge regression whose penalties whole groups weigh, in the predictors' own units.

    In one thread: the last bits of BLAS follow their number, and the trees would follow those.

    The ridge is level beyond the range of each predictor: on our tables (stations held out) that is never worse than going
    on, and 18 % better where one station lies far from the others.
    """
    predictors = samples.X.shape[1]
    if not ridge:
        return Linear.flat(float(np.average(samples.y, weights=samples.weight)), predictors, share)
    with one_thread():
        scaling = scaling_of(samples)
        x, y, weight, group = standardised(samples, scaling)
        slopes = ridge_coefficients(x, y, weight, PENALTIES) @ penalty_shares(x, y, weight, group, seed)
        slopes = slopes * scaling.target_scale / scaling.scale
        intercept = float(scaling.target_mean - slopes @ scaling.mean)
    return Linear(intercept, slopes, samples.X.min(axis=0), samples.X.max(axis=0), share)


def varying(X: Floats, group: Labels) -> NDArray[np.intp]:
    """Columns (c,) with at least WITHIN of their variance inside the groups (n,); all where none has, or a group is a row."""
    count = np.bincount(group)
    centred = X - X.mean(axis=0)
    between = np.zeros(X.shape[1])
    for column in range(X.shape[1]):
        sums = np.bincount(group, weights=centred[:, column])
        between[column] = np.sum(sums**2 / np.maximum(count, 1))
    total = np.sum(centred**2, axis=0)
    inside = np.flatnonzero(total - between >= WITHIN * total)
    told = inside.size and count.max() > 1
    return inside if told else np.arange(X.shape[1])


class Shrunk(BaseEstimator):
    """Squared error of base + share x trees, at the stage and the share that the held-out rows of all folds ask for.

    For a stage, the share in [0, 1] is the least-squares estimate sum(w r t) / sum(w t^2) (r what the base leaves, t the
    trees), less `caution` standard errors of it, rows of one group taken as one draw (the clustered error of a regression
    through the origin); `shrink` False takes 1.
    """

    def __init__(self, shrink: bool = True, caution: float = CAUTION):
        self.shrink = shrink
        self.caution = caution

    def sums(self, model: ResidualTrees, X: Floats, y: Floats, weight: Floats, group: Labels) -> Floats:
        """Weight, sum of w r^2, groups; then by stage w r t, w t^2, and over groups the squares and products of those."""
        base, trees = model.parts(X)
        rest = y - base
        _, label = np.unique(group, return_inverse=True)
        weighted = trees * weight[:, None]
        cross, power = _by_group(rest[:, None] * weighted, label), _by_group(trees * weighted, label)
        stages = [cross, power, cross**2, cross * power, power**2]
        return np.concatenate([[weight.sum(), weight @ rest**2, len(cross)], *(each.sum(axis=0) for each in stages)])

    def summary(self, sums: Floats) -> dict[str, float]:
        """rmse, spread, share and stage (number from 0)."""
        weight, squares = sums[:, 0], sums[:, 1]
        cross, power = np.split(sums[:, 3:], 5, axis=1)[:2]
        share = self._shares(sums.sum(axis=0))
        errors = np.maximum(squares[:, None] - 2 * share * cross + share**2 * power, 0)
        rmse = np.sqrt(errors.sum(axis=0) / weight.sum())
        stage = int(np.argmin(rmse))
        spread = float(np.sqrt(errors[:, stage] / weight).std())
        return {"rmse": float(rmse[stage]), "spread": spread, "share": float(share[stage]), "stage": stage}

    def _shares(self, total: Floats) -> Floats:
        cross, power, cross2, product, power2 = np.split(total[3:], 5)
        if not self.shrink:
            return np.ones(cross.size)
        groups, power = max(total[2], 2), np.maximum(power, np.finfo(float).tiny)
        share = cross / power
        variance = np.maximum(cross2 - 2 * share * product + share**2 * power2, 0) * groups / (groups - 1)
        return np.clip(share - self.caution * np.sqrt(variance) / power, 0, 1)


def _by_group(values: Floats, label: Labels) -> Floats:
    """Sums (g, s) of values (n, s) over the rows of each label (n,)."""
    return np.stack([np.bincount(label, weights=column) for column in values.T], axis=1)


@dataclass(eq=False, repr=False, kw_only=True)
class Tuned(RegressorMixin, BaseEstimator):
    """ResidualTrees whose setting is chosen on inner folds; what TunedForest and TunedXGB share.

    A dataclass, so that a subclass states its own parameters alone; scikit-learn reads all of them off the constructor.

    Parameters
    ----------
    grid : values to try of the trees' parameters, of `base` ("ridge" or "mean": what lies under the trees; the ridge where it
        is not named) and of `columns` ("all" or "varying": what they may split on; both are tried where it is not named);
        None takes ours
    folds : inner folds, of whole groups
    validation : what inner folds keep whole when `fit` gets no groups: "blocks" (as `samples.implied_groups` finds them) or
        "rows" (each its own)
    shrink : take the share of the trees that the inner folds ask for, not all of them
    how, candidates : "grid", or "random" for so many settings drawn from the grid
    records : folder that keeps finished fits, so that a killed search goes on; None keeps none
    progress : a bar on stderr
    random_state : int, RandomState or None; with `records`, an int: others draw new folds each time

    Attributes
    ----------
    best_estimator_ : ResidualTrees, fitted on all rows;  best_params_ : the setting chosen, and the `share`
    inner_table_ : as `search.search` returns;  inner_score_ : lowest inner RMSE, units of y
    """

    grid: Grid | None = field(default=None, kw_only=False)
    folds: int = FOLDS
    validation: str = "blocks"
    shrink: bool = True
    how: str = "grid"
    candidates: int = CANDIDATES
    records: Path | str | None = None
    progress: bool = False
    random_state: int | np.random.RandomState | None = 0

    #: Of settings: least whole numbers, and words.
    _least: ClassVar[Mapping[str, int]] = {"folds": 2, "candidates": 1}
    _words: ClassVar[Mapping[str, Sequence[Any]]] = {
        "how": ("grid", "random"),
        "validation": VALIDATIONS,
        "shrink": (True, False),
    }

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Any:
        """Search and fit on X (n, k), y (n,); inner folds keep `groups` (n,) whole.

        Raises
        ------
        InputError : a setting, a value or a label that cannot be, or a grid none of whose settings can be fitted
        """
        with one_thread():
            samples, seed = self._samples(X, y, groups, sample_weight)
            settings, self.inner_table_ = self._searched(samples, seed)
            chosen = self.inner_table_.loc[self.inner_table_["chosen"]].iloc[0]
            number = int(np.flatnonzero(self.inner_table_["chosen"])[0])
            self.inner_score_, self.best_params_ = float(chosen["rmse"]), settings[number] | self._found(chosen)
            model = self._model(seed, final=True).set_params(**self._prefixed(self.best_params_))
            self.best_estimator_ = self._fitted(model, samples)
        return self

    def search(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> pd.DataFrame:
        """The table of the search alone: with `records`, a later `fit` on the same rows finds every fit done."""
        with one_thread():
            return self._searched(*self._samples(X, y, groups, sample_weight))[1]

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n,), units of y, for X (n, k)."""
        check_is_fitted(self)
        return self.best_estimator_.predict(validate_data(self, X, dtype=np.float32, reset=False))

    def check_settings(self) -> None:
        """Raise InputError, in one line, for settings that cannot be."""
        wrong = misfits(self, self._least, self._words)
        own = self._model(0, final=True).trees.get_params(deep=False)
        known = sorted({"base", "columns", *own} - NOT_SEARCHED)
        if self.grid is not None:
            wrong += spaces(self.grid, known, "grid", distributions=self.how == "random")
        if not wrong:
            named = {"base": BASES, "columns": COLUMNS}
            wrong += [
                f"grid.{name} must be among {', '.join(words)}, got {list(self._space()[name])}"
                for name, words in named.items()
                if not set(map(str, self._space()[name])) <= set(words)
            ]
        if wrong:
            raise InputError(f"{type(self).__name__}: {'; '.join(wrong)}")

    def _samples(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None, sample_weight: ArrayLike | None
    ) -> tuple[Samples, int]:
        """The table, and the seed of all that is drawn."""
        self.check_settings()
        seed = plain_seed(self.random_state)
        table, values, weight = checked_table(self, X, y, sample_weight, least=2, dtype=np.float32)
        labels = group_labels(groups, len(table))
        samples = merge_rows(table.astype(np.float64), values, weight, labels)
        if labels is None:
            samples = with_groups(samples, self.validation, seed, getattr(self, "feature_names_in_", None))
        return samples, seed

    def _searched(self, samples: Samples, seed: int) -> tuple[list[dict[str, Any]], pd.DataFrame]:
        settings = candidates(self._space(), self.how, self.candidates, seed)
        table = search(
            self._model(seed, final=False),
            [self._prefixed(setting) for setting in settings],
            samples.X,
            samples.y,
            inner_folds(samples.group, self.folds, np.random.default_rng(seed)),
            samples.group,
            samples.weight,
            Shrunk(self.shrink),
            self.records,
            self.progress,
        )
        return settings, table.rename(columns=lambda name: name.removeprefix("trees__"))

    def _space(self) -> Grid:
        grid = self._grid if self.grid is None else self.grid
        return {name: values for name, values in CHOICES.items() if name not in grid} | dict(grid)

    def _prefixed(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of ResidualTrees by name, those of its trees behind `trees__`."""
        own = ("base", "columns", "share")
        return {name if name in own else f"trees__{name}": value for name, value in setting.items()}

    def _fitted(self, model: ResidualTrees, samples: Samples) -> ResidualTrees:
        """The chosen model, on all rows."""
        return model.fit(samples.X, samples.y, samples.group, samples.weight)

    def _found(self, chosen: pd.Series) -> dict[str, Any]:
        """What the search found beside the setting."""
        return {"share": float(chosen["share"])}

    @property
    def _grid(self) -> Grid:
        """Ours."""
        raise NotImplementedError

    def _model(self, seed: int, final: bool) -> ResidualTrees:
        """To be grown whole, or for the search."""
        raise NotImplementedError
