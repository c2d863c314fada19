"""XGBoost: tuned on nested folds, on top of a ridge where that is better, stored as its own bytes.

The number of rounds is no early stop on one held-out part: every inner fold scores each stage of its boosting, and the
stage that is best on all folds together is grown again on all rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import xgboost
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from smscale.errors import InputError
from smscale.models.residual_trees import Grid, ResidualTrees, Tuned
from smscale.models.samples import Samples, checked_table
from smscale.models.search.records import active_client
from smscale.models.search.settings import misfits, plain_seed
from smscale.models.tree_arrays import Arrays, Linear, as_planes, is_plain

#: Ours: shallow, slow, subsampled trees.
XGB_GRID: Grid = {"max_depth": (2, 4), "min_child_weight": (30, 150)}
XGB_FIXED = {"learning_rate": 0.05, "subsample": 0.7, "colsample_bytree": 0.6, "reg_lambda": 5.0}
ROUNDS = 400
#: Shares of the rounds after which a boosting is scored.
STAGES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
#: Bins of a predictor's values.
BINS = 128


class BoostedTrees(RegressorMixin, BaseEstimator):
    """XGBoost of one thread and a given number of rounds; no base score: what it learns should have a mean of 0.

    Parameters
    ----------
    max_depth, min_child_weight, learning_rate, subsample, colsample_bytree, reg_lambda : XGBoost's; weights are scaled to
        a mean of 1, so that they count rows
    rounds : of boosting
    random_state : int, RandomState or None

    Attributes
    ----------
    booster_ : xgboost.Booster
    workers_ : how many dask workers grew it, where `boosting_dask` did
    """

    def __init__(
        self,
        max_depth: int = 4,
        min_child_weight: float = 30,
        learning_rate: float = XGB_FIXED["learning_rate"],
        subsample: float = XGB_FIXED["subsample"],
        colsample_bytree: float = XGB_FIXED["colsample_bytree"],
        reg_lambda: float = XGB_FIXED["reg_lambda"],
        rounds: int = ROUNDS,
        random_state: int = 0,
    ):
        self.max_depth = max_depth
        self.min_child_weight = min_child_weight
        self.learning_rate = learning_rate
        self.subsample = subsample
        self.colsample_bytree = colsample_bytree
        self.reg_lambda = reg_lambda
        self.rounds = rounds
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> BoostedTrees:
        """Boost on X (n, k), y (n,)."""
        if wrong := misfits(self, {"rounds": 1}, {}):
            raise InputError(f"BoostedTrees: {'; '.join(wrong)}")
        table, values, weight = checked_table(self, X, y, sample_weight, least=2, dtype=np.float32)
        whole = xgboost.DMatrix(table, values, weight=weight / weight.mean(), nthread=1)
        self.booster_ = xgboost.train(self.parameters() | {"nthread": 1}, whole, self.rounds)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """(n,) float32, units of y, for X (n, k)."""
        check_is_fitted(self)
        return self.booster_.inplace_predict(validate_data(self, X, dtype=np.float32, reset=False))

    def staged(self, X: ArrayLike) -> NDArray[np.float32]:
        """(n, s) float32: predictions after each of `stages(rounds)`."""
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float32, reset=False)
        each = [self.booster_.inplace_predict(table, iteration_range=(0, stage)) for stage in stages(self.rounds)]
        return np.stack(each, axis=1)

    def parameters(self) -> dict[str, Any]:
        """What xgboost.train takes, but for the threads."""
        names = ("max_depth", "min_child_weight", "learning_rate", "subsample", "colsample_bytree", "reg_lambda")
        fixed = {"objective": "reg:squarederror", "tree_method": "hist", "max_bin": BINS, "base_score": 0.0}
        return {name: getattr(self, name) for name in names} | fixed | {"seed": plain_seed(self.random_state)}


def stages(rounds: int) -> list[int]:
    """Rounds after which a boosting of so many is scored, each once, the last last."""
    return sorted({max(1, round(share * rounds)) for share in STAGES})


@dataclass(eq=False, repr=False, kw_only=True)
class TunedXGB(Tuned):
    """XGBoost, its setting chosen on inner folds.

    Parameters
    ----------
    grid : of BoostedTrees' parameters; None takes XGB_GRID
    rounds : the most; the inner folds choose among `stages(rounds)` too, and `best_params_` has the number found
    distributed : grow the chosen trees on all workers of the active dask client (`boosting_dask`): True, False, or "auto",
        where the table would outgrow a worker; without a client, and inside a dask task, they grow here

    Others, and what `fit` learns, as `residual_trees.Tuned`.
    """

    rounds: int = ROUNDS
    distributed: bool | str = "auto"
    _least: ClassVar[Mapping[str, int]] = {**Tuned._least, "rounds": 1}
    _words: ClassVar[Mapping[str, Sequence[Any]]] = {**Tuned._words, "distributed": ("auto", True, False)}

    @property
    def _grid(self) -> Grid:
        return XGB_GRID

    def _model(self, seed: int, final: bool) -> ResidualTrees:
        return ResidualTrees(BoostedTrees(rounds=self.rounds, random_state=seed), random_state=seed)

    def _fitted(self, model: ResidualTrees, samples: Samples) -> ResidualTrees:
        client = active_client() if self.distributed in (True, "auto") else None
        if client is None:
            return super()._fitted(model, samples)
        from smscale.models.boosting_dask import fit_in_memory, outgrows

        if self.distributed is True or outgrows(samples.X.nbytes, client):
            return fit_in_memory(client, model, samples)
        return super()._fitted(model, samples)

    def _found(self, chosen: pd.Series) -> dict[str, Any]:
        rounds = int(chosen["rounds"]) if "rounds" in chosen else self.rounds
        return super()._found(chosen) | {"rounds": stages(rounds)[int(chosen["stage"])]}


# --- artefacts -----------------------------------------------------------------------------------------------------


class BoosterPredictor:
    """An XGBoost booster from its own UBJ bytes, on its linear part; predicts in one thread. Pickles as those bytes."""

    def __init__(self, ubj: bytes, linear: Linear | None = None):
        self.ubj = ubj
        try:
            self.booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(ubj))
        except xgboost.core.XGBoostError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"the bytes of an xgb artefact are no XGBoost model; train and save it again ({reason})"
            ) from None
        self.predictors = self.booster.num_features()
        self.linear = Linear.none(self.predictors) if linear is None else linear
        if self.linear.coefficients.size != self.predictors:
            raise InputError("the linear part of an xgb artefact is not that of its booster; train and save it again")

    def __reduce__(self) -> tuple[Any, ...]:
        return BoosterPredictor, (self.ubj, self.linear)

    def predict(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """(n,) float32 for X (n, k) finite."""
        X = as_planes(X, self.predictors, "booster")
        trees = self.booster.inplace_predict(X).astype(np.float64)
        return (self.linear.under(X) + self.linear.share * trees).astype(np.float32)


def widened(booster: xgboost.Booster, columns: NDArray[np.intp], predictors: int) -> xgboost.Booster:
    """The same trees, as if grown on all `predictors`, of which the booster saw `columns` (c,)."""
    model = json.loads(booster.save_raw("json"))
    learner = model["learner"]
    learner |= {"feature_names": [], "feature_types": []}
    learner["learner_model_param"]["num_feature"] = str(predictors)
    for tree in learner["gradient_booster"]["model"]["trees"]:
        tree["tree_param"]["num_feature"] = str(predictors)
        tree["split_indices"] = [int(columns[number]) for number in tree["split_indices"]]
    return xgboost.Booster(model_file=bytearray(json.dumps(model).encode()))


def xgb_to_arrays(
    estimator: xgboost.XGBRegressor | BoostedTrees | ResidualTrees | TunedXGB,
) -> tuple[Arrays, dict[str, Any]]:
    """UBJ bytes (uint8), linear part and settings of a fitted XGBoost regressor, for an artefact.

    Of an XGBRegressor that stopped early, rounds after the best are left out; it has no linear part.
    """
    tuned = getattr(estimator, "best_params_", None)
    model: Any = getattr(estimator, "best_estimator_", estimator)
    check_is_fitted(model)
    arrays: Arrays = {}
    if isinstance(model, ResidualTrees):
        arrays, trees = model.linear_.arrays(), model.trees_
        booster = widened(trees.booster_, model.columns_, model.n_features_in_)
        model = trees
    else:
        booster = model.booster_ if isinstance(model, BoostedTrees) else model.get_booster()
    stopped = getattr(model, "early_stopping_rounds", None)
    rounds = model.best_iteration + 1 if stopped else booster.num_boosted_rounds()
    ubj = bytes(booster[:rounds].save_raw("ubj"))
    settings = {name: value for name, value in model.get_params().items() if is_plain(value)}
    workers = getattr(model, "workers_", 1)
    meta = {"settings": settings, "best_params": tuned, "rounds": int(rounds), "workers": workers}
    if workers > 1:
        meta["reproducible"] = "to a tolerance: several workers add up in no fixed order"
    return arrays | {"ubj": np.frombuffer(ubj, np.uint8).copy()}, meta


def xgb_from_arrays(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any] | None = None) -> BoosterPredictor:
    """The predictor of what `xgb_to_arrays` gave; `meta` is not needed.

    Raises
    ------
    InputError : the bytes are missing or no XGBoost model, or the linear part is none of it
    """
    if "ubj" not in arrays:
        raise InputError("an xgb artefact lacks the array 'ubj'; train and save it again")
    if arrays["ubj"].dtype != np.uint8 or arrays["ubj"].ndim != 1:
        raise InputError("the array 'ubj' of an xgb artefact is no row of bytes; train and save it again")
    ubj = arrays["ubj"].tobytes()
    booster = BoosterPredictor(ubj)
    return BoosterPredictor(ubj, Linear.from_arrays(arrays, booster.predictors, "xgb"))
