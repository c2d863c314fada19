"""The four models by name, under one manner of fitting; and how much each predictor matters to one."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.inspection import permutation_importance

from smscale.errors import InputError, RecipeError

#: Names of the models, in the order in which they are shown.
MODELS = ("gabp", "cnn", "rf", "xgb")
#: Those whose own fit is a search.
SEARCHING = ("rf", "xgb")
#: What a recipe's `search` may say.
SEARCH_NAMES = ("how", "space", "candidates", "folds", "calls")
#: Arguments that are given here, not in recipes.
NOT_IN_RECIPES = {"random_state", "records", "progress"}


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


def build(
    name: str,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    records: Path | str | None = None,
    progress: bool = False,
) -> Model:
    """An unfitted model.

    Parameters
    ----------
    name : "gabp", "cnn", "rf" or "xgb"
    settings : arguments of GABPRegressor, CNNRegressor, TunedForest or TunedXGB; `preset: paper` starts from the paper's
        settings, which the others then change; `search` asks for a search over others of them, on inner folds:
        {how: grid | random | hyperband, space: {name: values}, candidates: of a random search, folds, calls: of Hyperband's
        longest run}
    seed : random_state
    records : folder in which a search keeps its finished fits, so that it goes on where it was killed; None keeps none
    progress : a search shows a bar on stderr

    Raises
    ------
    RecipeError : an unknown name, preset or setting.
    """
    if name not in MODELS:
        raise RecipeError(f"model {name!r} is unknown; expected one of {', '.join(MODELS)}")
    chosen = dict(settings or {})
    wanted = chosen.pop("search", None)
    preset = chosen.pop("preset", "best")
    kind = _estimator(name)
    if preset not in ("best", "paper") or (preset == "paper" and not hasattr(kind, "paper")):
        raise RecipeError(f"model {name!r} has no preset {preset!r}; expected best, or paper for gabp, cnn and rf")
    model = kind.paper() if preset == "paper" else kind()  # type: ignore[attr-defined]
    searching = name in SEARCHING
    if wanted is not None and searching:
        chosen |= _own_search(name, wanted, chosen)
    _refuse_unknown(name, chosen, model)
    if searching:
        chosen |= {"records": records, "progress": progress}
    model.set_params(**chosen, random_state=seed)
    try:
        _check_values(name, model)
    except InputError as error:
        raise RecipeError(f"models.{name}: {error}") from None
    if wanted is not None and not searching:
        return _searched(name, wanted, model, seed, records, progress)
    return model


def fitted(model: Any) -> Any:
    """The estimator that a search fitted and kept, or the model itself: what traces and artefacts are made from."""
    from smscale.models.search import Searched

    return model.best_estimator_ if isinstance(model, Searched) else model


def _searched(name: str, wanted: Any, model: Any, seed: int, records: Any, progress: bool) -> Model:
    from smscale.models.search import Searched

    how = _checked_search(name, wanted)
    for key, values in how["space"].items():
        for value in values:
            _refuse_unknown(name, {key: value}, model, where=f"models.{name}.search.space")
    if how.get("how") == "hyperband" and not hasattr(model, "partial_fit"):
        raise RecipeError(f"models.{name}.search.how: hyperband needs a model with partial_fit; use grid or random")
    return Searched(model, **how, records=records, progress=progress, random_state=seed)


def _own_search(name: str, wanted: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A search over a forest's settings is the one that it does anyway."""
    how = _checked_search(name, wanted)
    how["grid"] = how.pop("space")
    if twice := sorted(set(how) & set(chosen)):
        raise RecipeError(f"models.{name}: {', '.join(twice)} stands in search and beside it; expected one of them")
    if how.get("how") == "hyperband" or "calls" in how:
        raise RecipeError(f"models.{name}.search.how: hyperband needs a model with partial_fit; use grid or random")
    return how


def _checked_search(name: str, wanted: Any) -> dict[str, Any]:
    from smscale.models.search.trials import WAYS

    where = f"models.{name}.search"
    if not isinstance(wanted, Mapping) or "space" not in wanted:
        raise RecipeError(f"{where}: found {wanted!r}, expected space (lists of values by name) and how it is searched")
    if unknown := sorted(map(str, set(wanted) - set(SEARCH_NAMES))):
        raise RecipeError(f"{where}: {', '.join(unknown)} is unknown; expected among {', '.join(SEARCH_NAMES)}")
    space = wanted["space"]
    if not isinstance(space, Mapping) or not space or not _are_lists(space):
        raise RecipeError(f"{where}.space: found {space!r}, expected lists of values by name")
    if wanted.get("how", "grid") not in WAYS:
        raise RecipeError(f"{where}.how: found {wanted['how']!r}, expected one of {', '.join(WAYS)}")
    for key, least in (("candidates", 1), ("folds", 2), ("calls", 3)):
        value = wanted.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RecipeError(f"{where}.{key}: found {value!r}, expected a whole number of at least {least}")
    return {key: value for key, value in wanted.items() if key != "space"} | {
        "space": {key: list(values) for key, values in space.items()}
    }


def _are_lists(space: Mapping[str, Any]) -> bool:
    return all(isinstance(values, list | tuple) and values for values in space.values())


def _refuse_unknown(name: str, chosen: Mapping[str, Any], model: Any, where: str | None = None) -> None:
    """Refuse settings that the model does not have, or that are of another kind than its own."""
    where = where or f"models.{name}"
    defaults = model.get_params(deep=False)
    known = sorted(set(defaults) - NOT_IN_RECIPES)
    if unknown := sorted(map(str, set(chosen) - set(known))):
        prefix = f"model {name!r}" if where == f"models.{name}" else where
        raise RecipeError(f"{prefix} has no setting {', '.join(unknown)}; it takes {', '.join(known)}")
    # a dataclass has the hints of its constructor as its own, each to be read in the module that states it
    hints = typing.get_type_hints(type(model) if dataclasses.is_dataclass(model) else type(model).__init__)
    for key, value in chosen.items():
        if key != "grid" and not _fits(hints[key], value):
            raise RecipeError(f"{where}.{key}: found {value!r}, expected {_in_words(hints[key])}")


def _check_values(name: str, model: Any) -> None:
    """Raise InputError for values that the model's own `fit` would refuse."""
    if name in SEARCHING:
        model.check_settings()
    elif name == "gabp":
        from smscale.models.gabp import settings as gabp_settings

        gabp_settings.check(model.get_params(deep=False))
    else:
        from smscale.models.cnn import settings as cnn_settings

        cnn_settings.check(model.get_params(deep=False))


def _fits(hint: Any, value: Any) -> bool:
    """Whether a recipe's value is what an argument's type hint says; numbers are finite, a path is text."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(arg, value) for arg in args)
    if origin in (tuple, collections.abc.Sequence):
        return isinstance(value, list | tuple) and all(_fits(args[0], item) for item in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(
            isinstance(name, str) and _fits(args[1], item) for name, item in value.items()
        )
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
    if hint in (type(None), bool, int, str):
        return type(value) is hint
    return False


def _in_words(hint: Any) -> str:
    """A type hint for who writes a recipe."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(words for arg in args if (words := _in_words(arg))))
    if origin in (tuple, collections.abc.Sequence):
        return f"a list, each {_in_words(args[0])}"
    if origin is collections.abc.Mapping:
        return "keys and values"
    known = {type(None): "nothing", bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return known.get(hint, "")


def _estimator(name: str) -> type[Any]:
    """The class behind a name; torch and XGBoost are loaded only for who needs them."""
    if name == "gabp":
        from smscale.models.gabp import GABPRegressor

        return GABPRegressor
    if name == "cnn":
        from smscale.models.cnn import CNNRegressor

        return CNNRegressor
    if name == "rf":
        from smscale.models.forests import TunedForest

        return TunedForest
    from smscale.models.boosting import TunedXGB

    return TunedXGB


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
    random forest, or of the total gain in XGBoost; of its trees alone, which may stand on a ridge, and 0 for predictors
    that they do not see; NaN for networks), `permutation` and `permutation_std` (rise of the RMSE, units of y, when the
    predictor is shuffled; of the whole model).
    """
    drawn = np.arange(len(X))
    if len(X) > rows:
        drawn = np.sort(np.random.default_rng(seed).choice(len(X), rows, replace=False))
    found = permutation_importance(
        model, X[drawn], y[drawn], scoring="neg_root_mean_squared_error", n_repeats=repeats, random_state=seed
    )
    table = pd.DataFrame(
        {
            "impurity": _impurity(model, len(features)),
            "permutation": found.importances_mean,
            "permutation_std": found.importances_std,
        },
        index=pd.Index(list(features), name="feature"),
    )
    return table.sort_values("permutation", ascending=False, kind="stable")


def _impurity(model: Any, predictors: int) -> NDArray[np.float64]:
    while hasattr(model, "best_estimator_"):
        model = model.best_estimator_
    if hasattr(model, "columns_") and hasattr(model, "trees_"):
        values = np.zeros(predictors)
        values[model.columns_] = _impurity(model.trees_, model.columns_.size)
        return values
    if hasattr(model, "booster_"):
        gain = model.booster_.get_score(importance_type="total_gain")
        values = np.array([gain.get(f"f{number}", 0.0) for number in range(predictors)], np.float64)
        return values / (values.sum() or 1.0)
    if hasattr(model, "feature_importances_"):
        return np.asarray(model.feature_importances_, np.float64)
    return np.full(predictors, np.nan)
