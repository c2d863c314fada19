"""The four models by name, under one manner of fitting; and how much each predictor matters to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.inspection import permutation_importance

from smscale.errors import RecipeError

#: Names of the models, in the order in which they are shown.
MODELS = ("gabp", "cnn", "rf", "xgb")
#: What the grids of the forests may search.
GRID_NAMES = {
    "rf": ("max_depth", "max_features", "max_leaf_nodes", "max_samples", "min_samples_leaf", "min_samples_split"),
    "xgb": ("max_depth", "min_child_weight", "learning_rate", "subsample", "colsample_bytree", "reg_lambda", "rounds"),
}


class Model(Protocol):
    """What `build` gives: a scikit-learn estimator that takes groups and weights."""

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Any:
        """Learn from X (n, k), y (n,)."""
        ...

    def predict(self, X: ArrayLike) -> NDArray[np.floating[Any]]:
        """(n,) for X (n, k)."""
        ...


def build(name: str, settings: Mapping[str, Any] | None = None, seed: int = 0) -> Model:
    """An unfitted model.

    Parameters
    ----------
    name : "gabp", "cnn", "rf" or "xgb"
    settings : arguments of GABPRegressor, CNNRegressor, TunedForest or TunedXGB; for the networks `preset: paper` starts
        from the paper's settings, which the others then change
    seed : random_state

    Raises
    ------
    RecipeError : an unknown name, preset or setting.
    """
    if name not in MODELS:
        raise RecipeError(f"model {name!r} is unknown; expected one of {', '.join(MODELS)}")
    chosen = dict(settings or {})
    preset = chosen.pop("preset", "best")
    kind = _estimator(name)
    if preset not in ("best", "paper") or (preset == "paper" and not hasattr(kind, "paper")):
        raise RecipeError(f"model {name!r} has no preset {preset!r}; expected best, or paper for gabp and cnn")
    model = kind.paper() if preset == "paper" else kind()  # type: ignore[attr-defined]
    known = sorted(set(model.get_params(deep=False)) - {"random_state"})
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise RecipeError(f"model {name!r} has no setting {', '.join(unknown)}; it takes {', '.join(known)}")
    for key, value in chosen.items():
        _refuse_other_kind(name, key, value, model.get_params(deep=False)[key])
    return model.set_params(**chosen, random_state=seed)


def _refuse_other_kind(model: str, key: str, value: Any, default: Any) -> None:
    """Numbers where the default is one, at least 1 in a forest; lists of values in a grid."""
    if isinstance(default, int | float) and not isinstance(default, bool):
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise RecipeError(f"models.{model}.{key}: found {value!r}, expected a number")
        if key == "trees" and value is not None and value < 1:
            raise RecipeError(f"models.{model}.{key}: found {value!r}, expected at least 1")
    if key == "grid" and value is not None:
        if not isinstance(value, Mapping) or not all(isinstance(v, list | tuple) and v for v in value.values()):
            raise RecipeError(f"models.{model}.grid: found {value!r}, expected lists of values by name")
        known = GRID_NAMES[model]
        if unknown := sorted(set(value) - set(known)):
            raise RecipeError(
                f"models.{model}.grid: {', '.join(unknown)} is unknown; expected among {', '.join(known)}"
            )


def _estimator(name: str) -> type[Any]:
    """The class behind a name; torch and XGBoost are loaded only for who needs them."""
    if name == "gabp":
        from smscale.models.gabp import GABPRegressor

        return GABPRegressor
    if name == "cnn":
        from smscale.models.cnn import CNNRegressor

        return CNNRegressor
    from smscale.models.forests import TunedForest, TunedXGB

    return {"rf": TunedForest, "xgb": TunedXGB}[name]


def importances(
    model: Any,
    X: NDArray[Any],
    y: NDArray[Any],
    features: Sequence[str],
    seed: int = 0,
    repeats: int = 5,
    rows: int = 5000,
) -> pd.DataFrame:
    """How much each predictor matters, the paper's figure 3c.

    Parameters
    ----------
    model : fitted, from `build` (or any scikit-learn regressor)
    X, y : (n, k), (n,); rows that did not train it tell most. At most `rows` of them are drawn.
    features : k names

    Returns
    -------
    DataFrame indexed by `feature`, highest permutation importance first: `impurity` (share of the variance reduction in a
    random forest, or of the total gain in XGBoost; NaN for networks), `permutation` and `permutation_std` (rise of the RMSE, units
    of y, when the predictor is shuffled).
    """
    drawn = np.arange(len(X))
    if len(X) > rows:
        drawn = np.sort(np.random.default_rng(seed).choice(len(X), rows, replace=False))
    found = permutation_importance(
        model, X[drawn], y[drawn], scoring="neg_root_mean_squared_error", n_repeats=repeats, random_state=seed
    )
    table = pd.DataFrame(
        {
            "impurity": _impurity(getattr(model, "best_estimator_", model), len(features)),
            "permutation": found.importances_mean,
            "permutation_std": found.importances_std,
        },
        index=pd.Index(list(features), name="feature"),
    )
    return table.sort_values("permutation", ascending=False, kind="stable")


def _impurity(model: Any, predictors: int) -> NDArray[np.float64]:
    if hasattr(model, "booster_"):
        gain = model.booster_.get_score(importance_type="total_gain")
        values = np.array([gain.get(f"f{number}", 0.0) for number in range(predictors)], np.float64)
        return values / (values.sum() or 1.0)
    if hasattr(model, "feature_importances_"):
        return np.asarray(model.feature_importances_, np.float64)
    return np.full(predictors, np.nan)
