"""Random forest: tuned on nested folds, on top of a ridge where that is better, stored as arrays.

Chen et al. 2023 tune scikit-learn's random forest by grid search with 20-fold cross-validation, without naming the grid:
`TunedForest.paper()`. Ours asks for more of a fold than its neighbours, and lets a ridge regression carry what is linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.utils.validation import check_is_fitted

from smscale.models.residual_trees import Grid, ResidualTrees, Tuned
from smscale.models.search import CANDIDATES, FOLDS
from smscale.models.tree_arrays import Arrays, ForestPredictor, Linear, flattened, forest_from, is_plain

#: Ours: leaves from fine to coarse, so that blocked inner folds can ask for a smooth forest.
FOREST_GRID: Grid = {"min_samples_leaf": (5, 40), "max_features": (0.33,)}
FOREST_TREES = 150
#: The paper names neither its grid nor its trees: assumed, around scikit-learn's defaults.
PAPER_GRID: Grid = {
    "base": ("mean",),
    "columns": ("all",),
    "max_depth": (10, 20, None),
    "min_samples_leaf": (1, 5),
    "max_features": (0.33, 1.0),
}
PAPER_FOLDS = 20


class TunedForest(Tuned):
    """scikit-learn's random forest, its setting chosen on inner folds.

    Parameters
    ----------
    grid : values to try of RandomForestRegressor's parameters, of `base` ("ridge" or "mean": what lies under the trees; the
        ridge where it is not named) and of `columns` ("all" or "varying": what they may split on; both are tried where it
        is not named); None takes FOREST_GRID
    folds : inner folds, of whole groups
    trees : of the forest; the search grows a third of them (at least 30), which ranks settings the same
    validation : what inner folds keep whole when `fit` gets no groups: "blocks" (as `samples.implied_groups` finds them) or
        "rows" (each its own)
    shrink : take the share of the trees that the inner folds ask for, not all of them
    how, candidates : "grid", or "random" for so many settings drawn from the grid
    records : folder that keeps finished fits, so that a killed search goes on; None keeps none
    progress : a bar on stderr
    random_state : int

    Attributes
    ----------
    best_estimator_ : ResidualTrees, fitted on all rows;  best_params_ : the setting chosen, and the `share`
    inner_table_ : as `search.search` returns;  inner_score_ : lowest inner RMSE, units of y
    """

    def __init__(
        self,
        grid: Grid | None = None,
        folds: int = FOLDS,
        trees: int = FOREST_TREES,
        validation: str = "blocks",
        shrink: bool = True,
        how: str = "grid",
        candidates: int = CANDIDATES,
        records: Path | str | None = None,
        progress: bool = False,
        random_state: int = 0,
    ):
        self.grid = grid
        self.folds = folds
        self.trees = trees
        self.validation = validation
        self.shrink = shrink
        self.how = how
        self.candidates = candidates
        self.records = records
        self.progress = progress
        self.random_state = random_state

    @classmethod
    def paper(cls, random_state: int = 0) -> TunedForest:
        """The paper's: a plain forest by grid search (the grid is assumed), 20 folds of single rows."""
        return cls(PAPER_GRID, PAPER_FOLDS, validation="rows", shrink=False, random_state=random_state)

    def _grid(self) -> Grid:
        return self.grid or FOREST_GRID

    def _model(self, final: bool) -> ResidualTrees:
        trees = self.trees if final else min(self.trees, max(30, self.trees // 3))
        forest = RandomForestRegressor(trees, random_state=self.random_state, n_jobs=1)
        return ResidualTrees(forest, random_state=self.random_state)


def rf_to_arrays(estimator: RandomForestRegressor | ResidualTrees | TunedForest) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and settings of a fitted forest of one target, for an artefact; a plain forest has no linear part."""
    tuned = getattr(estimator, "best_params_", None)
    model: Any = getattr(estimator, "best_estimator_", estimator)
    check_is_fitted(model)
    linear, columns, forest = _parts(model)
    arrays = flattened(forest, columns)
    if linear is not None:
        arrays |= linear.arrays()
    settings = {name: value for name, value in forest.get_params().items() if is_plain(value)}
    return arrays, {"predictors": int(model.n_features_in_), "settings": settings, "best_params": tuned}


def _parts(model: Any) -> tuple[Linear | None, NDArray[np.intp] | None, RandomForestRegressor]:
    if isinstance(model, ResidualTrees):
        return model.linear_, model.columns_, model.trees_
    return None, None, model


def rf_from_arrays(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> ForestPredictor:
    """The predictor of what `rf_to_arrays` gave; InputError where the arrays are no forest."""
    return forest_from(arrays, meta)
