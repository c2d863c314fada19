"""Random forest and XGBoost: tuned by grid search on nested folds, stored as arrays, run without the libraries' pickles.

Chen et al. 2023 tune scikit-learn's random forest by grid search with 20-fold cross-validation, without naming the grid.
The search runs through dask-ml, on the active dask client or, where there is none, in this thread: the same estimators on
the same folds, so what is chosen is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pandas as pd
import xgboost
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold, KFold
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from smscale.errors import InputError
from smscale.models.samples import inner_split

Arrays = dict[str, NDArray[Any]]
Grid = Mapping[str, Sequence[Any]]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]

#: Ours: leaves from fine to coarse, so that blocked inner folds can ask for a smooth forest.
FOREST_GRID: Grid = {"min_samples_leaf": (2, 5, 15, 40), "max_features": (0.33, 0.8)}
FOREST_TREES = 150
#: Ours: shallow, slow, subsampled trees; the number of rounds is found by early stopping.
XGB_GRID: Grid = {"max_depth": (2, 4, 6), "min_child_weight": (5, 30)}
XGB_FIXED = {"learning_rate": 0.05, "subsample": 0.7, "colsample_bytree": 0.6, "reg_lambda": 5.0}
FOLDS = 5
#: Rows that walk one tree after another, so that a tree's nodes stay in cache.
ROWS = 512
LEAF = -1


# --- search --------------------------------------------------------------------------------------------------------


def inner_folds(rows: int, groups: ArrayLike | None, folds: int, seed: int) -> list[Fold]:
    """Cross-validation folds (training, scoring), shuffled by `seed`; groups stay whole where given.

    As many folds as there are groups (or rows) where `folds` is more; one group alone is split by rows.
    """
    labels = np.arange(rows) if groups is None else np.asarray(groups)
    if labels.shape != (rows,):
        raise InputError(f"groups must be one label a row, shape ({rows},); got shape {labels.shape}")
    if rows < 2 or folds < 2:
        raise InputError(f"cross-validation needs two rows and two folds; got {rows} rows, {folds} folds")
    kinds = np.unique(labels).size
    if groups is None or kinds == 1:
        return list(KFold(min(folds, rows), shuffle=True, random_state=seed).split(labels))
    return list(GroupKFold(min(folds, kinds), shuffle=True, random_state=seed).split(labels, groups=labels))


def search(
    estimator: BaseEstimator,
    grid: Grid,
    X: NDArray[Any],
    y: NDArray[Any],
    folds: list[Fold],
    fit_params: Mapping[str, NDArray[Any]],
) -> pd.DataFrame:
    """Score every setting of `grid` on `folds`.

    Returns
    -------
    DataFrame, a row per setting in grid order: the setting's columns, `rmse` (units of y, pooled over the folds' rows),
    `rmse_spread` (standard deviation of the folds' RMSE) and `chosen` (True on the first of the lowest).
    """
    from dask_ml.model_selection import GridSearchCV

    # dask-ml runs a task that raised again, for ever: a fit that fails must come back as NaN.
    found = GridSearchCV(
        estimator,
        dict(grid),
        scoring=_negative_mse,
        cv=folds,
        refit=False,
        iid=False,
        error_score=np.nan,
        scheduler=_client() or "sync",
    ).fit(X, y, **fit_params)
    mse = -np.array([found.cv_results_[f"split{i}_test_score"] for i in range(len(folds))])
    sizes = np.array([test.size for _, test in folds])
    rmse = np.sqrt(sizes @ mse / sizes.sum())
    if not np.isfinite(rmse).any():
        raise InputError(f"no setting of the grid {dict(grid)} could be fitted on {len(X)} rows")
    table = pd.DataFrame(found.cv_results_["params"])
    table["rmse"], table["rmse_spread"] = rmse, np.sqrt(mse).std(axis=0)
    table["chosen"] = np.arange(len(table)) == np.nanargmin(rmse)
    return table


def _negative_mse(estimator: Any, X: NDArray[Any], y: NDArray[Any]) -> float:
    return -float(np.mean((np.asarray(estimator.predict(X), np.float64) - y) ** 2))


def _client() -> Any:
    """The active dask client of this process; None without one, and inside a dask task (which must not wait for others)."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        distributed.get_worker()
    except ValueError:
        pass
    else:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


def _best(table: pd.DataFrame, grid: Grid) -> dict[str, Any]:
    """The chosen setting, in the grid's own Python types."""
    row = table.loc[table["chosen"]].iloc[0]
    return {name: next(value for value in values if value == row[name]) for name, values in grid.items()}


def tune_forest(
    X: NDArray[Any],
    y: NDArray[Any],
    groups: ArrayLike | None = None,
    weight: NDArray[Any] | None = None,
    grid: Grid | None = None,
    folds: int = FOLDS,
    seed: int = 0,
    trees: int = FOREST_TREES,
) -> tuple[RandomForestRegressor, pd.DataFrame]:
    """Random forest of the setting that is best on inner folds, fitted on all rows; and the table of `search`.

    X (n, k), y (n,), groups (n,) labels kept whole, weight (n,). The grid holds RandomForestRegressor's parameters. The search
    grows a third of the `trees` (at least 30): settings rank the same, in a third of the time.
    """
    grid = grid or FOREST_GRID
    forest = RandomForestRegressor(trees, random_state=seed, n_jobs=1)
    fit_params = {} if weight is None else {"sample_weight": np.asarray(weight, np.float64)}
    small = clone(forest).set_params(n_estimators=min(trees, max(30, trees // 3)))
    table = search(small, grid, X, y, inner_folds(len(X), groups, folds, seed), fit_params)
    return clone(forest).set_params(**_best(table, grid)).fit(X, y, **fit_params), table


def tune_xgb(
    X: NDArray[Any],
    y: NDArray[Any],
    groups: ArrayLike | None = None,
    weight: NDArray[Any] | None = None,
    grid: Grid | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> tuple[StoppedXGBRegressor, pd.DataFrame]:
    """XGBoost of the setting that is best on inner folds, and the table of `search`.

    Inside each fold the number of rounds is found on a part of the fold's training rows, never on those that score it.
    Arguments as in `tune_forest`; the grid holds StoppedXGBRegressor's parameters.
    """
    grid = grid or XGB_GRID
    model = StoppedXGBRegressor(random_state=seed, refit=False)
    fit_params = {} if weight is None else {"sample_weight": np.asarray(weight, np.float64)}
    if groups is not None:
        fit_params["blocks"] = np.asarray(groups)
    table = search(model, grid, X, y, inner_folds(len(X), groups, folds, seed), fit_params)
    return clone(model).set_params(refit=True, **_best(table, grid)).fit(X, y, **fit_params), table


class StoppedXGBRegressor(RegressorMixin, BaseEstimator):
    """XGBoost, one thread, whose number of rounds is found by early stopping on an inner part of the training rows.

    Parameters
    ----------
    max_depth, min_child_weight, learning_rate, subsample, colsample_bytree, reg_lambda : XGBoost's
    rounds : most boosting rounds
    patience : rounds without improvement after which boosting stops
    validation_fraction : share of rows (whole blocks, where `fit` gets them) that stops the boosting
    refit : fit again on all rows with the rounds found
    random_state : int

    Attributes
    ----------
    booster_ : xgboost.Booster;  rounds_ : int
    """

    def __init__(
        self,
        max_depth: int = 4,
        min_child_weight: float = 10,
        learning_rate: float = XGB_FIXED["learning_rate"],
        subsample: float = XGB_FIXED["subsample"],
        colsample_bytree: float = XGB_FIXED["colsample_bytree"],
        reg_lambda: float = XGB_FIXED["reg_lambda"],
        rounds: int = 600,
        patience: int = 30,
        validation_fraction: float = 0.2,
        refit: bool = True,
        random_state: int = 0,
    ):
        self.max_depth = max_depth
        self.min_child_weight = min_child_weight
        self.learning_rate = learning_rate
        self.subsample = subsample
        self.colsample_bytree = colsample_bytree
        self.reg_lambda = reg_lambda
        self.rounds = rounds
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.refit = refit
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: ArrayLike, blocks: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> StoppedXGBRegressor:
        """Boost on X (n, k), y (n,); `blocks` (n,) are labels that the stopping part keeps whole."""
        table, values = validate_data(self, X, y, dtype=np.float32, y_numeric=True, ensure_min_samples=2)
        weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
        weight = weight / weight.mean()  # min_child_weight and reg_lambda count rows, whatever the unit of the weights
        labels = np.arange(len(table)) if blocks is None else np.asarray(blocks)
        rng = np.random.default_rng(self.random_state)
        training, stopping = inner_split(labels, self.validation_fraction, rng)
        parts = [xgboost.DMatrix(table[i], values[i], weight=weight[i], nthread=1) for i in (training, stopping)]
        booster = xgboost.train(
            self._parameters(),
            parts[0],
            self.rounds,
            evals=[(parts[1], "stopping")],
            early_stopping_rounds=self.patience,
            verbose_eval=False,
        )
        self.rounds_ = booster.best_iteration + 1
        if self.refit:
            whole = xgboost.DMatrix(table, values, weight=weight, nthread=1)
            self.booster_ = xgboost.train(self._parameters(), whole, self.rounds_)
        else:
            self.booster_ = booster[: self.rounds_]
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """(n,) float32, units of y, for X (n, k)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        return self.booster_.inplace_predict(X)

    def _parameters(self) -> dict[str, Any]:
        names = ("max_depth", "min_child_weight", "learning_rate", "subsample", "colsample_bytree", "reg_lambda")
        settings = {name: getattr(self, name) for name in names}
        fixed = {"objective": "reg:squarederror", "tree_method": "hist", "nthread": 1, "seed": self.random_state}
        return settings | fixed


class TunedForest(RegressorMixin, BaseEstimator):
    """`tune_forest` as an estimator: grid None takes FOREST_GRID.

    Attributes
    ----------
    best_estimator_, best_params_, inner_table_ (as `search` returns), inner_score_ (lowest inner RMSE, units of y)
    """

    def __init__(self, grid: Grid | None = None, folds: int = FOLDS, trees: int = FOREST_TREES, random_state: int = 0):
        self.grid = grid
        self.folds = folds
        self.trees = trees
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> TunedForest:
        """Search and fit on X (n, k), y (n,); inner folds keep `groups` (n,) whole."""
        table, values = validate_data(self, X, y, dtype=np.float32, y_numeric=True, ensure_min_samples=2)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, table, dtype=np.float64)
        settings = (self.grid, self.folds, self.random_state)
        return _learned(
            self, *tune_forest(table, values, groups, weight, *settings, self.trees), self.grid or FOREST_GRID
        )

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n,), units of y, for X (n, k)."""
        check_is_fitted(self)
        return self.best_estimator_.predict(validate_data(self, X, dtype=np.float32, reset=False))


class TunedXGB(RegressorMixin, BaseEstimator):
    """`tune_xgb` as an estimator: grid None takes XGB_GRID. Attributes as TunedForest's."""

    def __init__(self, grid: Grid | None = None, folds: int = FOLDS, random_state: int = 0):
        self.grid = grid
        self.folds = folds
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> TunedXGB:
        """Search and fit on X (n, k), y (n,); inner folds keep `groups` (n,) whole."""
        table, values = validate_data(self, X, y, dtype=np.float32, y_numeric=True, ensure_min_samples=2)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, table, dtype=np.float64)
        settings = (self.grid, self.folds, self.random_state)
        return _learned(self, *tune_xgb(table, values, groups, weight, *settings), self.grid or XGB_GRID)

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """(n,) float32, units of y, for X (n, k)."""
        check_is_fitted(self)
        return self.best_estimator_.predict(validate_data(self, X, dtype=np.float32, reset=False))


def _learned(tuned: Any, model: BaseEstimator, table: pd.DataFrame, grid: Grid) -> Any:
    tuned.best_estimator_, tuned.inner_table_ = model, table
    tuned.best_params_ = _best(table, grid)
    tuned.inner_score_ = float(table["rmse"].min())
    return tuned


# --- artefacts -----------------------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True)
def _walk(
    X: NDArray[np.float32],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float32],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    value: NDArray[np.float64],
    root: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Mean of all trees for each row; sums in tree order, as scikit-learn with one thread."""
    total = np.empty(ROWS)
    for start in range(0, X.shape[0], ROWS):
        stop = min(start + ROWS, X.shape[0])
        total[:] = 0.0
        for tree in range(root.size - 1):
            for row in range(start, stop):
                node = root[tree]
                while feature[node] != LEAF:
                    if X[row, feature[node]] <= threshold[node]:
                        node = left[node]
                    else:
                        node = right[node]
                total[row - start] += value[node]
        for row in range(start, stop):
            out[row] = total[row - start] / (root.size - 1)


@dataclass(frozen=True, eq=False)
class ForestPredictor:
    """A forest as arrays, all trees in a row: feature (-1 at a leaf), threshold, left, right, value; root of each tree."""

    predictors: int
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    root: NDArray[np.int64]

    def predict(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """(n,) float32 for X (n, k) finite."""
        X = np.ascontiguousarray(X, dtype=np.float32)
        if X.ndim != 2 or X.shape[1] != self.predictors:
            raise InputError(f"the forest was trained on {self.predictors} predictors; got an array of shape {X.shape}")
        out = np.empty(len(X), dtype=np.float32)
        _walk(X, self.feature, self.threshold, self.left, self.right, self.value, self.root, out)
        return out


def rf_to_arrays(estimator: RandomForestRegressor | TunedForest) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and settings of a fitted forest of one target, for an artefact.

    scikit-learn compares float32 values with float64 thresholds; the largest float32 that does not exceed a threshold
    decides the same, so that is what is kept.
    """
    tuned = getattr(estimator, "best_params_", None)
    forest: RandomForestRegressor = getattr(estimator, "best_estimator_", estimator)
    check_is_fitted(forest)
    if forest.n_outputs_ != 1:
        raise InputError(f"a forest artefact holds one target; this forest has {forest.n_outputs_}")
    trees = [tree.tree_ for tree in forest.estimators_]
    root = np.concatenate([[0], np.cumsum([tree.node_count for tree in trees])]).astype(np.int64)
    pairs = list(zip(trees, root, strict=False))
    leaf = np.concatenate([tree.children_left for tree in trees]) == LEAF
    arrays: Arrays = {
        "feature": np.where(leaf, LEAF, np.concatenate([tree.feature for tree in trees])).astype(np.int32),
        "threshold": _float32_below(np.concatenate([tree.threshold for tree in trees])),
        "left": np.where(leaf, LEAF, np.concatenate([tree.children_left + at for tree, at in pairs])).astype(np.int32),
        "right": np.where(leaf, LEAF, np.concatenate([tree.children_right + at for tree, at in pairs])).astype(
            np.int32
        ),
        "value": np.concatenate([tree.value[:, 0, 0] for tree in trees]).astype(np.float64),
        "root": root,
    }
    settings = {name: value for name, value in forest.get_params().items() if _is_plain(value)}
    return arrays, {"predictors": int(forest.n_features_in_), "settings": settings, "best_params": tuned}


def _float32_below(threshold: NDArray[np.float64]) -> NDArray[np.float32]:
    single = threshold.astype(np.float32)
    return np.where(single > threshold, np.nextafter(single, np.float32(-np.inf)), single)


def _is_plain(value: Any) -> bool:
    """JSON takes it."""
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and np.isfinite(value))


def rf_from_arrays(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> ForestPredictor:
    """The predictor of what `rf_to_arrays` gave.

    Raises
    ------
    InputError : arrays are missing, or do not describe trees.
    """
    names = ("feature", "threshold", "left", "right", "value", "root")
    types = (np.int32, np.float32, np.int32, np.int32, np.float64, np.int64)
    try:
        parts = [np.ascontiguousarray(arrays[name], dtype) for name, dtype in zip(names, types, strict=True)]
        forest = ForestPredictor(int(meta["predictors"]), *parts)
    except KeyError as error:
        raise InputError(f"an rf artefact lacks {error}; train and save it again") from None
    if not _are_trees(forest):
        raise InputError("the arrays of an rf artefact do not describe trees; train and save it again")
    return forest


def _are_trees(forest: ForestPredictor) -> bool:
    """Every walk ends inside its tree: children lie after their parent and before the tree's end."""
    nodes = forest.feature.size
    if {forest.threshold.size, forest.left.size, forest.right.size, forest.value.size} != {nodes}:
        return False
    if forest.root.size < 2 or forest.root[0] != 0 or forest.root[-1] != nodes or (np.diff(forest.root) < 1).any():
        return False
    inner = np.flatnonzero(forest.feature != LEAF)
    end = np.repeat(forest.root[1:], np.diff(forest.root))[inner]
    used = forest.feature[inner]
    children = (forest.left[inner], forest.right[inner])
    return bool(
        ((used >= 0) & (used < forest.predictors)).all() and all(((c > inner) & (c < end)).all() for c in children)
    )


class BoosterPredictor:
    """An XGBoost booster from its own UBJ bytes; predicts in one thread. Pickles as those bytes."""

    def __init__(self, ubj: bytes):
        self.ubj = ubj
        try:
            self.booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(ubj))
        except xgboost.core.XGBoostError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"the bytes of an xgb artefact are no XGBoost model; train and save it again ({reason})"
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return BoosterPredictor, (self.ubj,)

    def predict(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """(n,) float32 for X (n, k) finite."""
        X = np.ascontiguousarray(X, dtype=np.float32)
        if X.ndim != 2 or X.shape[1] != self.booster.num_features():
            wanted = self.booster.num_features()
            raise InputError(f"the booster was trained on {wanted} predictors; got an array of shape {X.shape}")
        return self.booster.inplace_predict(X)


def xgb_to_arrays(
    estimator: xgboost.XGBRegressor | StoppedXGBRegressor | TunedXGB,
) -> tuple[Arrays, dict[str, Any]]:
    """UBJ bytes (uint8) and settings of a fitted XGBoost regressor, for an artefact; rounds after the best are left out."""
    tuned = getattr(estimator, "best_params_", None)
    model: Any = getattr(estimator, "best_estimator_", estimator)
    check_is_fitted(model)
    if isinstance(model, StoppedXGBRegressor):
        booster, rounds = model.booster_, model.rounds_
    else:
        booster = model.get_booster()
        rounds = model.best_iteration + 1 if model.early_stopping_rounds else booster.num_boosted_rounds()
    ubj = bytes(booster[:rounds].save_raw("ubj"))
    settings = {name: value for name, value in model.get_params().items() if _is_plain(value)}
    meta = {"settings": settings, "best_params": tuned, "rounds": int(rounds)}
    return {"ubj": np.frombuffer(ubj, np.uint8).copy()}, meta


def xgb_from_arrays(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any] | None = None) -> BoosterPredictor:
    """The predictor of what `xgb_to_arrays` gave; `meta` is not needed.

    Raises
    ------
    InputError : the bytes are missing or no XGBoost model.
    """
    if "ubj" not in arrays:
        raise InputError("an xgb artefact lacks the array 'ubj'; train and save it again")
    return BoosterPredictor(np.asarray(arrays["ubj"], np.uint8).tobytes())
