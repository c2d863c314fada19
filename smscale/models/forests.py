"""Random forest: tuned on nested folds, on top of a ridge where that is better, stored as arrays.

Chen et al. 2023 tune scikit-learn's random forest by grid search with 20-fold cross-validation, without naming the grid:
`TunedForest.paper()`. Ours asks for more of a fold than its neighbours, and lets a ridge regression carry what is linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.utils.validation import check_is_fitted

from smscale.models.residual_trees import Grid, ResidualTrees, Tuned
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


@dataclass(eq=False, repr=False, kw_only=True)
class TunedForest(Tuned):
    """scikit-learn's random forest, its setting chosen on inner folds.

    Parameters
    ----------
    grid : of RandomForestRegressor's parameters; None takes FOREST_GRID
    trees : of the forest; the search grows a third of them (at least 30), which ranks settings the same

    Others, and what `fit` learns, as `residual_trees.Tuned`.
    """

    trees: int = FOREST_TREES
    _least: ClassVar[Mapping[str, int]] = {**Tuned._least, "trees": 1}

    @classmethod
    def paper(cls, random_state: int | np.random.RandomState | None = 0) -> TunedForest:
        """The paper's: a plain forest by grid search (the grid is assumed), 20 folds of single rows."""
        return cls(PAPER_GRID, folds=PAPER_FOLDS, validation="rows", shrink=False, random_state=random_state)

    @property
    def _grid(self) -> Grid:
        return FOREST_GRID

    def _model(self, seed: int, final: bool) -> ResidualTrees:
        trees = self.trees if final else min(self.trees, max(30, self.trees // 3))
        return ResidualTrees(RandomForestRegressor(trees, random_state=seed, n_jobs=1), random_state=seed)


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
