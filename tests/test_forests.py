"""Forests as arrays against the libraries' own predictions, trees on a ridge, what their search chooses, and bad input."""

import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xgboost
from dask_ml.wrappers import ParallelPostFit
from distributed import Client, LocalCluster
from scipy.stats import uniform
from sklearn.base import clone
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_info, threadpool_limits

from smscale import blocks
from smscale.errors import InputError, RecipeError
from smscale.models import boosting_dask, load_model, residual_trees, save_model, zoo
from smscale.models.boosting import BoostedTrees, TunedXGB, stages, xgb_from_arrays, xgb_to_arrays
from smscale.models.forests import PAPER_FOLDS, PAPER_GRID, TunedForest, rf_from_arrays, rf_to_arrays
from smscale.models.residual_trees import ResidualTrees, Shrunk, Tuned, varying
from smscale.models.ridge import ridge_coefficients
from smscale.models.samples import Samples

FOREST = {"grid": {"min_samples_leaf": (2, 8), "max_features": (0.5,)}, "folds": 3, "trees": 30}
BOOSTING = {"grid": {"max_depth": (2, 3), "min_child_weight": (5,)}, "folds": 3, "rounds": 64}
TUNED = [TunedForest(**FOREST), TunedXGB(**BOOSTING)]
ARRAYS = {TunedForest: (rf_to_arrays, rf_from_arrays), TunedXGB: (xgb_to_arrays, xgb_from_arrays)}


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 4)).astype(np.float32)
    return X, 0.2 + 0.05 * np.sin(X[:, 0] * 2) + 0.02 * X[:, 1] * (X[:, 2] > 0), np.repeat(np.arange(12), 20)


def stations(signal: str, places: int = 40, days: int = 12, seed: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places with coordinates, an offset of their own that nothing tells, and a "linear" or a "curved" signal."""
    rng = np.random.default_rng(seed)
    place = np.repeat(np.arange(places), days)
    coordinates = rng.uniform(0, 10, (places, 2))[place]
    a, b = rng.normal(size=(2, place.size))
    shape = a if signal == "linear" else np.abs(a) * np.sign(b)
    y = 0.2 + 0.04 * shape + 0.04 * rng.normal(size=places)[place] + 0.01 * rng.normal(size=place.size)
    return np.column_stack([coordinates, a, b]), y, place


# --- arrays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"max_leaf_nodes": 7}, {"bootstrap": False, "max_features": 0.5}])
def test_flattened_forest_equals_scikit_learns_prediction(table: tuple, settings: dict) -> None:
    X, y, _ = table
    forest = RandomForestRegressor(15, random_state=0, n_jobs=1, **settings).fit(X, y)
    flat = rf_from_arrays(*rf_to_arrays(forest))
    query = np.random.default_rng(1).normal(size=(1300, 4)).astype(np.float32)
    np.testing.assert_array_equal(flat.predict(query), forest.predict(query).astype(np.float32))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(flat)).predict(query), flat.predict(query))


def test_flattened_forest_decides_values_on_a_threshold_as_scikit_learn() -> None:
    X = np.float32([[0.1], [np.nextafter(np.float32(0.1), np.float32(1))], [0.3], [0.30000004]])
    forest = RandomForestRegressor(10, random_state=0, bootstrap=False).fit(X, [0.0, 1.0, 2.0, 3.0])
    flat = rf_from_arrays(*rf_to_arrays(forest))
    query = np.sort(np.concatenate([X, np.nextafter(X, np.float32(-1)), np.nextafter(X, np.float32(1))]), axis=0)
    np.testing.assert_array_equal(flat.predict(query), forest.predict(query).astype(np.float32))


@pytest.mark.parametrize("trees", [RandomForestRegressor(12, random_state=0), BoostedTrees(rounds=30)])
@pytest.mark.parametrize("columns", ["all", "varying"])
def test_arrays_hold_the_linear_part_the_columns_and_the_share(trees: object, columns: str) -> None:
    X, y, place = stations("curved")
    model = ResidualTrees(trees, "ridge", columns, share=0.4).fit(X, y, place)
    assert list(model.columns_) == ([2, 3] if columns == "varying" else [0, 1, 2, 3])
    to_arrays, from_arrays = ARRAYS[TunedForest if isinstance(trees, RandomForestRegressor) else TunedXGB]
    arrays, meta = to_arrays(model)
    query = np.random.default_rng(2).uniform(-20, 20, (500, 4)).astype(np.float32)
    loaded = pickle.loads(pickle.dumps(from_arrays(arrays, meta)))
    np.testing.assert_array_equal(loaded.predict(query), model.predict(query).astype(np.float32))
    base, grown = model.parts(query, staged=False)
    np.testing.assert_allclose(model.predict(query), base + 0.4 * grown[:, -1], rtol=1e-12)
    assert grown.std() > 0
    assert base.std() > 0


def test_forged_forest_arrays_are_refused(table: tuple) -> None:
    X, y, _ = table
    arrays, meta = rf_to_arrays(ResidualTrees(RandomForestRegressor(3, random_state=0)).fit(X, y))
    loop, endless = arrays["left"].copy(), arrays["value"].copy()
    loop[0], endless[1] = 0, np.inf
    for name, wrong in (
        ("left", loop),
        ("feature", arrays["feature"] + 4),
        ("value", arrays["value"][:-1]),
        ("value", endless),
    ):
        with pytest.raises(InputError, match="do not describe trees"):
            rf_from_arrays(arrays | {name: wrong}, meta)
    # A chain whose every node has the next one twice: each walk ends, but it is deeper than any tree of so many nodes.
    chain = np.append(np.arange(1, 41), -1).astype(np.int32)
    inner = chain >= 0
    forged = {
        "feature": np.where(inner, 0, -1).astype(np.int32),
        "left": chain,
        "right": chain,
        "root": np.array([0, 41]),
    }
    forged |= {"threshold": np.zeros(41, np.float32), "value": np.zeros(41)}
    with pytest.raises(InputError, match="do not describe trees"):
        rf_from_arrays(arrays | forged, meta)
    with pytest.raises(InputError, match="lacks 'root'"):
        rf_from_arrays({name: values for name, values in arrays.items() if name != "root"}, meta)
    with pytest.raises(InputError, match="4 predictors"):
        rf_from_arrays(arrays, meta).predict(X[:, :3])


@pytest.mark.parametrize("kind", ["rf", "xgb"])
def test_a_forged_linear_part_is_refused(table: tuple, kind: str) -> None:
    X, y, _ = table
    trees = RandomForestRegressor(3, random_state=0) if kind == "rf" else BoostedTrees(rounds=3)
    to_arrays, from_arrays = ARRAYS[TunedForest if kind == "rf" else TunedXGB]
    arrays, meta = to_arrays(ResidualTrees(trees).fit(X, y))
    for name, wrong in (
        ("coefficients", arrays["coefficients"][:-1]),
        ("coefficients", arrays["coefficients"] * np.nan),
        ("intercept", np.zeros((1, 1))),
        ("share", np.array([1.5])),
        ("low", arrays["high"] + 1),
    ):
        with pytest.raises(InputError, match=f"linear part of an {kind} artefact"):
            from_arrays(arrays | {name: wrong}, meta)
    with pytest.raises(InputError, match=f"an {kind} artefact lacks 'share'"):
        from_arrays({name: values for name, values in arrays.items() if name != "share"}, meta)


def test_xgboost_bytes_predict_as_the_estimator(table: tuple) -> None:
    X, y, _ = table
    model = xgboost.XGBRegressor(n_estimators=60, early_stopping_rounds=3, learning_rate=0.5, n_jobs=1)
    model.fit(X[:160], y[:160], eval_set=[(X[160:], y[160:])], verbose=False)
    arrays, meta = xgb_to_arrays(model)
    assert arrays["ubj"].dtype == np.uint8
    assert meta["rounds"] == model.best_iteration + 1 < 60
    loaded = xgb_from_arrays(arrays, meta)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(loaded)).predict(X), model.predict(X))
    with pytest.raises(InputError, match="no XGBoost model"):
        xgb_from_arrays({"ubj": arrays["ubj"][:50]})
    with pytest.raises(InputError, match="4 predictors"):
        loaded.predict(X[:, :3])


# --- trees on a ridge ----------------------------------------------------------------------------------------------


def test_share_is_the_least_squares_one_of_held_out_residuals_less_its_error() -> None:
    rng = np.random.default_rng(0)

    class Known:
        def parts(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return X[:, 0], X[:, 1:]

    X = rng.normal(size=(300, 2))
    y = X[:, 0] + 0.3 * X[:, 1] + 0.1 * rng.normal(size=300)
    weight = rng.uniform(0.5, 2, 300)
    folds = np.array_split(np.arange(300), 5)
    group = np.arange(300) % 50 + 100 * np.repeat(np.arange(5), 60)  # no group in two folds
    sums = np.array([Shrunk().sums(Known(), X[f], y[f], weight[f], group[f]) for f in folds])
    expected = np.linalg.lstsq(np.sqrt(weight)[:, None] * X[:, 1:], np.sqrt(weight) * (y - X[:, 0]), rcond=None)[0][0]
    found = Shrunk(caution=0).summary(sums)
    assert found["share"] == pytest.approx(expected, rel=1e-9)
    error = y - X[:, 0] - expected * X[:, 1]
    assert found["rmse"] == pytest.approx(np.sqrt(np.average(error**2, weights=weight)), rel=1e-9)
    # the clustered standard error, from its definition: one score for each group
    score = np.bincount(group, weight * error * X[:, 1])
    groups, power = np.unique(group).size, np.sum(weight * X[:, 1] ** 2)
    deviation = np.sqrt(np.sum(score**2) * groups / (groups - 1)) / power
    assert Shrunk(caution=2).summary(sums)["share"] == pytest.approx(expected - 2 * deviation, rel=1e-9)
    assert Shrunk(shrink=False).summary(sums)["share"] == 1


def test_columns_that_tell_the_groups_apart_are_found() -> None:
    X, _, place = stations("linear")
    assert varying(X, place).tolist() == [2, 3]
    assert varying(X, np.arange(len(X))).tolist() == [0, 1, 2, 3]  # every row its own group: none tells
    assert varying(X[:, :2], place).tolist() == [0, 1]  # nothing would be left


def errors_on_unseen_places(models: dict, signal: str, given: bool) -> dict[str, float]:
    """RMSE on 90 places of models fitted on 30 others, over three worlds; with or without the places told."""
    errors: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for seed in range(3):
        X, y, place = stations(signal, places=120, seed=seed)
        known = place < 30
        for name, model in models.items():
            groups = {"groups": place[known]} if given and name == "tuned" else {}
            fitted = clone(model).fit(X[known], y[known], **groups)
            errors[name].append(fitted.predict(X[~known]) - y[~known])
    return {name: float(np.sqrt(np.mean(np.concatenate(parts) ** 2))) for name, parts in errors.items()}


RIDGE = make_pipeline(StandardScaler(), Ridge(1.0))
QUICK = [TunedForest(trees=30, folds=4), TunedXGB(rounds=64, folds=4)]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("tuned", QUICK)
def test_where_the_signal_is_linear_it_does_as_well_as_ridge_and_a_plain_forest_does_not(
    tuned: TunedForest | TunedXGB, given: bool
) -> None:
    plain = RandomForestRegressor(60, random_state=0)
    rmse = errors_on_unseen_places({"ridge": RIDGE, "plain": plain, "tuned": tuned}, "linear", given)
    assert rmse["tuned"] < 1.01 * rmse["ridge"]  # the choice is made on 30 places: it cannot be free
    assert rmse["plain"] > 1.03 * rmse["ridge"]


@pytest.mark.parametrize("tuned", QUICK)
def test_where_the_signal_is_curved_it_beats_ridge_on_places_held_out(tuned: TunedForest | TunedXGB) -> None:
    rmse = errors_on_unseen_places({"ridge": RIDGE, "tuned": tuned}, "curved", False)
    assert rmse["tuned"] < 0.95 * rmse["ridge"]  # most of both is the places' own offset, which nothing tells


def test_the_ridge_is_level_beyond_what_it_has_seen() -> None:
    X, y, place = stations("linear")
    model = ResidualTrees(RandomForestRegressor(5, random_state=0), share=0.0).fit(X, y, place)
    far, farther = X[:1].copy(), X[:1].copy()
    far[0, 2], farther[0, 2] = 50, 5000
    assert model.predict(far) == model.predict(farther)
    assert model.predict(far) < y.max() + 0.1


# --- search --------------------------------------------------------------------------------------------------------


def test_plain_grid_agrees_with_scikit_learns_grid_search(table: tuple) -> None:
    X, y, groups = table
    order = np.lexsort(np.column_stack([X, y])[:, ::-1].T)  # as the rows are sorted before they are fitted
    X, y, groups = X[order], y[order], groups[order]
    grid = {"min_samples_leaf": (1, 8), "max_features": (0.5, 1.0)}
    tuned = TunedForest(
        {"base": ("mean",), "columns": ("all",), **grid}, folds=3, trees=10, shrink=False, random_state=4
    )
    tuned.fit(X, y, groups=groups)
    from smscale.models.samples import inner_folds

    folds = inner_folds(groups, 3, np.random.default_rng(4))
    theirs = GridSearchCV(
        RandomForestRegressor(10, random_state=4), grid, cv=folds, scoring="neg_mean_squared_error"
    ).fit(X, y, sample_weight=np.ones(len(X)))  # a forest draws its rows in another way where weights are given
    # a forest of y - mean(y) is that of y but where rounding decides between equal splits
    np.testing.assert_allclose(tuned.inner_table_["rmse"] ** 2, -theirs.cv_results_["mean_test_score"], rtol=0.02)
    assert {name: tuned.best_params_[name] for name in grid} == theirs.best_params_
    assert np.std(tuned.predict(X) - theirs.predict(X)) < 0.02 * y.std()


def test_every_stage_of_a_boosting_is_scored_and_the_chosen_one_is_grown(table: tuple) -> None:
    X, y, groups = table
    tuned = TunedXGB(**BOOSTING).fit(X, y, groups=groups)
    assert stages(64) == [4, 8, 16, 32, 64]
    assert stages(1) == [1]
    chosen = tuned.inner_table_.loc[tuned.inner_table_["chosen"]].iloc[0]
    assert tuned.best_params_["rounds"] == stages(64)[int(chosen["stage"])]
    assert tuned.best_estimator_.trees_.booster_.num_boosted_rounds() == tuned.best_params_["rounds"]
    once = BoostedTrees(rounds=64).fit(X, y)
    np.testing.assert_array_equal(once.staged(X)[:, 1], BoostedTrees(rounds=8).fit(X, y).predict(X))


def test_noise_that_groups_share_is_not_learnt() -> None:
    """Targets that are the group's own, readable from its own value of a predictor: nothing carries over."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    X, y = np.column_stack([groups, rng.normal(size=400)]), rng.normal(size=40)[groups]
    blocked = TunedXGB(folds=4).fit(X, y, groups=groups)
    leaking = TunedXGB(folds=4, validation="rows").fit(X, y)
    assert np.std(blocked.predict(X)) < 0.5 * np.std(leaking.predict(X))


def test_the_papers_preset_is_a_plain_forest_of_twenty_folds(table: tuple) -> None:
    X, y, _ = table
    paper = zoo.build("rf", {"preset": "paper", "trees": 5}, seed=2)
    assert (paper.grid, paper.folds, paper.validation, paper.shrink) == (PAPER_GRID, PAPER_FOLDS, "rows", False)
    paper.set_params(grid={"base": ("mean",), "columns": ("all",), "max_depth": (2, None)}).fit(X, y)
    assert paper.best_params_["share"] == 1
    assert not paper.best_estimator_.linear_.coefficients.any()
    assert len(paper.inner_table_) == 2


@pytest.mark.parametrize("kind", TUNED)
def test_tuned_estimators_become_artefacts(table: tuple, kind: TunedForest | TunedXGB) -> None:
    X, y, groups = table
    model = clone(kind).fit(X, y, groups=groups, sample_weight=np.ones(len(X)))
    assert model.inner_score_ == model.inner_table_["rmse"].min() < y.std()
    to_arrays, from_arrays = ARRAYS[type(kind)]
    arrays, meta = to_arrays(model)
    assert meta["best_params"] == model.best_params_
    np.testing.assert_array_equal(from_arrays(arrays, meta).predict(X), model.predict(X).astype(np.float32))


@pytest.mark.parametrize("kind", TUNED)
def test_order_repetition_and_unit_of_weights_change_nothing(table: tuple, kind: TunedForest | TunedXGB) -> None:
    X, y, groups = table
    weight = np.random.default_rng(1).integers(1, 3, len(X))
    order = np.random.default_rng(2).permutation(len(X))
    fits = [
        clone(kind).fit(X, y, groups, weight),
        clone(kind).fit(X[order], y[order], groups[order], 0.25 * weight[order]),
        clone(kind).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight), np.repeat(groups, weight)),
    ]
    for other in fits[1:]:
        np.testing.assert_allclose(fits[0].predict(X), other.predict(X), rtol=1e-6)


@pytest.mark.parametrize("name", ["rf", "xgb"])
def test_importances_are_of_all_predictors_whatever_the_trees_see(name: str) -> None:
    X, y, place = stations("curved")
    settings = {"grid": {"columns": ["varying"], "base": ["ridge"]}, "folds": 3}
    model = zoo.build(name, settings | ({"trees": 30} if name == "rf" else {"rounds": 50})).fit(X, y, groups=place)
    found = zoo.importances(model, X, y, ["lon", "lat", "a", "b"], repeats=2)
    assert found.loc[["lon", "lat"], "impurity"].tolist() == [0, 0]
    assert found["impurity"].sum() == pytest.approx(1)
    assert found.index[0] == "b"
    assert (found.loc[["a", "b"], ["impurity", "permutation"]] > 0).all(axis=None)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TUNED)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(table: tuple, kind: TunedForest | TunedXGB, wrong: float) -> None:
    X, y, _ = table
    holed, target = X.copy(), y.copy()
    holed[3, 1], target[5] = wrong, wrong
    for rows, values in ((holed, y), (X, target)):
        with pytest.raises(ValueError, match=r"contains (NaN|infinity)|Input [Xy] contains"):
            clone(kind).fit(rows, values)
    with pytest.raises(ValueError, match="contains"):
        clone(kind).fit(X, y).predict(holed)


@pytest.mark.parametrize("kind", TUNED)
@pytest.mark.parametrize(
    "rows", [{"rows": 5}, {"constant": True}, {"one group": True}, {"two a fold": True}, {"duplicates": True}]
)
def test_poor_tables_give_finite_predictions(table: tuple, kind: TunedForest | TunedXGB, rows: dict) -> None:
    X, y, groups = (part[: rows.get("rows", 60)] for part in table)
    X = X.copy()
    if "constant" in rows:
        X[:, 0] = 3
        y = np.full(len(y), 0.25)
    if "one group" in rows:
        groups = np.zeros(len(y), int)
    if "two a fold" in rows:
        X, y, groups = X[:6], y[:6], np.repeat([0, 1, 2], 2)
    if "duplicates" in rows:
        X, y = np.repeat(X[:10], 6, axis=0), np.repeat(y[:10], 6)
    model = clone(kind).fit(X, y, groups=groups)
    predicted = model.predict(table[0])
    assert np.isfinite(predicted).all()
    if "constant" in rows:
        np.testing.assert_allclose(predicted, 0.25, rtol=1e-6)


@pytest.mark.parametrize("kind", TUNED)
def test_too_few_rows_and_groups_of_another_length_are_one_line(table: tuple, kind: TunedForest | TunedXGB) -> None:
    X, y, groups = table
    with pytest.raises(ValueError, match="minimum of 2"):
        clone(kind).fit(X[:1], y[:1])
    with pytest.raises(InputError, match="one label a row"):
        clone(kind).fit(X, y, groups=groups[:5])
    with pytest.raises(InputError, match="two distinct rows"):
        clone(kind).fit(np.repeat(X[:1], 9, axis=0), np.repeat(y[:1], 9))


@pytest.mark.parametrize("kind", TUNED)
def test_a_class_never_seen_is_predicted_as_its_nearest(table: tuple, kind: TunedForest | TunedXGB) -> None:
    X, y, _ = table
    X = X.copy()
    X[:, 3] = np.arange(len(X)) % 3 + 5
    model = clone(kind).fit(X, y + 0.05 * X[:, 3])
    seen, unseen = X.copy(), X.copy()
    seen[:, 3], unseen[:, 3] = 7, 17
    np.testing.assert_array_equal(model.predict(unseen), model.predict(seen))


def test_settings_that_cannot_be_fitted_are_named_and_all_of_them_an_error(table: tuple) -> None:
    X, y, _ = table
    grid = {"min_samples_leaf": (-1, 2), "base": ("mean",), "columns": ("all",)}
    with pytest.warns(match=r"1 of 2 settings could not be fitted.*min_samples_leaf': -1"):
        model = TunedForest(grid, folds=2, trees=5).fit(X, y)
    assert model.best_params_["min_samples_leaf"] == 2
    assert np.isnan(model.inner_table_["rmse"][0])
    assert "InvalidParameter" in model.inner_table_["failure"][0]
    with pytest.raises(InputError, match="none of 1 settings could be fitted on 240 rows"):
        TunedForest(grid | {"min_samples_leaf": (-1,)}, folds=2, trees=5).fit(X, y)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("rf", {"preset": "fast"}, "no preset 'fast'"),
        ("xgb", {"preset": "paper"}, "no preset 'paper'"),
        ("rf", {"trees": 0}, "models.rf: .*trees must be a whole number of at least 1, got 0"),
        ("rf", {"folds": 1}, "folds must be a whole number of at least 2, got 1"),
        ("rf", {"validation": "days"}, "validation must be one of blocks, rows, got 'days'"),
        ("rf", {"shrink": 1}, "shrink: found 1, expected true or false"),
        ("rf", {"grid": {"base": ["forest"]}}, "grid.base must be among mean, ridge, got"),
        ("xgb", {"grid": {"depth": [2]}}, "grid: depth is unknown"),
        ("xgb", {"grid": {"n_jobs": [2]}}, "grid: n_jobs is unknown"),
        ("xgb", {"grid": {}}, "grid must have at least one value .*got {}"),
        ("xgb", {"grid": {"max_depth": 3}}, "grid must have at least one value for max_depth, as a list, got 3"),
        ("xgb", {"distributed": "yes"}, "distributed must be one of auto, True, False, got 'yes'"),
        ("xgb", {"rounds": 1.5}, "rounds: found 1.5, expected a whole number"),
        ("xgb", {"records": "here"}, "no setting records"),
    ],
)
def test_wrong_settings_are_one_line(name: str, settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        zoo.build(name, settings)


WRONG = [
    ({"how": "x"}, "how must be one of grid, random, got 'x'"),
    ({"grid": {}}, "grid must have at least one value for each of one or more names, got {}"),
    ({"grid": "max_depth"}, "grid must have at least one value .* got 'max_depth'"),
    ({"grid": {"depth": [3]}}, "grid: depth is unknown; expected among base, "),
    ({"grid": {"max_depth": "23"}}, "at least one value for max_depth, as a list, got '23'"),
    ({"grid": {"max_depth": uniform(1, 3)}}, "max_depth is a distribution; how must be random"),
    ({"grid": {"base": ["forest"]}}, "grid.base must be among mean, ridge"),
    ({"candidates": 0}, "candidates must be a whole number of at least 1, got 0"),
    ({"folds": 1}, "folds must be a whole number of at least 2, got 1"),
    ({"folds": True}, "folds must be a whole number of at least 2, got True"),
    ({"validation": "days"}, "validation must be one of blocks, rows, got 'days'"),
    ({"shrink": "no"}, "shrink must be one of True, False, got 'no'"),
    ({"random_state": -1}, "random_state must be None, a RandomState or a whole number from 0 to 4294967295; got -1"),
    ({"random_state": "0"}, "random_state must be .* got '0'"),
]


@pytest.mark.parametrize("kind", TUNED)
@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_settings_that_cannot_be_are_one_line_and_nothing_is_fitted(
    table: tuple, kind: TunedForest | TunedXGB, wrong: dict, message: str
) -> None:
    X, y, _ = table
    model = clone(kind).set_params(**wrong)
    for use in (model.fit, model.search):
        with pytest.raises(InputError, match=message) as error:
            use(X, y)
        assert "\n" not in str(error.value)
    assert not hasattr(model, "inner_table_")


@pytest.mark.parametrize("kind", TUNED)
@pytest.mark.parametrize(
    "target", [["a"] * 240, np.array(["0.1"] * 240), np.array(["wet"] * 240, object)], ids=["list", "digits", "object"]
)
def test_a_target_of_words_is_refused(table: tuple, kind: TunedForest | TunedXGB, target: object) -> None:
    with pytest.raises(InputError, match=r"y must hold numbers|could not convert string") as error:
        clone(kind).fit(table[0], target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ({"max_depth": (-1, 2)}, "max_depth': -1.*greater equal to 0"),
        ({"subsample": (0.5, 2.0)}, "subsample': 2.0.*exceed bound"),
        ({"learning_rate": ("fast", 0.1)}, "learning_rate': 'fast'"),
        ({"rounds": (0, 5)}, "rounds': 0.*rounds must be a whole number of at least 1, got 0"),
    ],
)
def test_a_value_that_xgboost_refuses_is_named(table: tuple, grid: dict, reason: str) -> None:
    X, y, _ = table
    with pytest.warns(FitFailedWarning, match=f"1 of 2 settings could not be fitted.*{reason}") as warned:
        model = TunedXGB(grid | {"columns": ("all",)}, folds=2, rounds=5).fit(X, y)
    assert len(str(warned[0].message)) < 500
    ((name, values),) = grid.items()
    assert model.best_params_[name] in values
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize("kind", TUNED)
def test_random_states_are_scikit_learns(table: tuple, kind: TunedForest | TunedXGB) -> None:
    X, y, groups = table

    def predicted(random_state: object) -> np.ndarray:
        return clone(kind).set_params(random_state=random_state).fit(X, y, groups).predict(X)

    np.testing.assert_array_equal(predicted(np.random.RandomState(3)), predicted(np.random.RandomState(3)))
    np.testing.assert_array_equal(predicted(np.int64(3)), predicted(3))
    assert not np.array_equal(predicted(None), predicted(None))


def test_what_both_share_is_stated_once() -> None:
    shared = set(Tuned().get_params())
    assert set(TunedForest().get_params()) - shared == {"trees"}
    assert set(TunedXGB().get_params()) - shared == {"rounds", "distributed"}
    own = TunedForest({"max_depth": (2,)}, folds=3, trees=7)
    assert repr(own) == "TunedForest(folds=3, grid={'max_depth': (2,)}, trees=7)"
    assert clone(own).get_params() == own.get_params()
    assert own != clone(own)


# --- the same on every run and machine -----------------------------------------------------------------------------


@pytest.mark.parametrize("trees", [RandomForestRegressor(5, random_state=0), BoostedTrees(rounds=5)])
def test_the_threads_of_the_process_change_nothing(trees: object) -> None:
    """Of a fit outside any search, which no other limit guards."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(1500, 100))  # enough for BLAS to divide the work
    y = X @ rng.normal(size=100) + rng.normal(size=1500)
    fits = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            fits.append(ResidualTrees(trees).fit(X, y, np.arange(1500) // 100))
    np.testing.assert_array_equal(fits[0].linear_.coefficients, fits[1].linear_.coefficients)
    np.testing.assert_array_equal(fits[0].predict(X), fits[1].predict(X))


def test_the_linear_part_is_solved_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def told(*arguments: object) -> np.ndarray:
        seen.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
        return ridge_coefficients(*arguments)

    monkeypatch.setattr(residual_trees, "ridge_coefficients", told)
    X, y, place = stations("linear")
    with threadpool_limits(2):
        ResidualTrees(BoostedTrees(rounds=1)).fit(X, y, place)
    assert seen == [{1}]


FIT = """
    import hashlib, sys
    import numpy as np
    from pathlib import Path
    from smscale.models import save_model, zoo
    X, y, place = (np.load(Path(sys.argv[1]) / f"{name}.npy") for name in ("X", "y", "place"))
    for name, size in (("rf", "trees"), ("xgb", "rounds")):
        settings = {"folds": 2, size: 10, "grid": {"columns": ["all", "varying"]}}
        model = zoo.build(name, settings, seed=3).fit(X, y, groups=place)
        folder = save_model(Path(sys.argv[2]) / name, model, list("abcd"), X)
        print(*sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()))
"""


def test_artefacts_have_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    for name, values in zip(("X", "y", "place"), stations("curved"), strict=True):
        np.save(tmp_path / f"{name}.npy", values)
    printed = []
    for run, threads in (("one", "1"), ("two", "2")):
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(FIT), str(tmp_path), str(tmp_path / run)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
        )
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout)
    assert printed[0] == printed[1]
    assert len(printed[0].split()) == 4


def test_artefacts_of_boosting_have_the_same_bytes_for_no_one_and_two_workers(tmp_path: Path) -> None:
    X, y, place = stations("curved")
    model = TunedXGB(**BOOSTING | {"grid": {"columns": ("varying",), "max_depth": (2, 3)}})
    unlike = clone(model).set_params(random_state=1)

    def bytes_of(name: str, fitted: TunedXGB) -> list[bytes]:
        folder = save_model(tmp_path / name, fitted, list("abcd"), X)
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    found = {"none": bytes_of("none", clone(model).fit(X, y, place))}
    for workers in (1, 2):
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
        ):
            found[f"{workers}"] = bytes_of(f"{workers}", clone(model).fit(X, y, place))
            if workers == 1:  # grown by xgboost.dask itself: the same on every run
                grown = [clone(model).set_params(distributed=True).fit(X, y, place) for _ in range(2)]
    assert found["1"] == found["none"]
    assert found["2"] == found["none"]
    assert bytes_of("unlike", unlike.fit(X, y, place)) != found["none"]
    assert bytes_of("first", grown[0]) == bytes_of("second", grown[1])


# --- scikit-learn and dask -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        TunedForest({"min_samples_leaf": (5,), "columns": ("all",)}, folds=2, trees=5),
        TunedXGB({"max_depth": (2,), "min_child_weight": (1,), "columns": ("all",)}, folds=2, rounds=30),
    ],
)
def test_scikit_learns_checks_pass(kind: TunedForest | TunedXGB) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(kind, on_fail=None)
    assert [r["check_name"] for r in results if r["status"] in ("failed", "xfail")] == []


@pytest.mark.parametrize("kind", TUNED)
def test_tuned_estimators_work_where_scikit_learn_and_dask_put_them(table: tuple, kind: TunedForest | TunedXGB) -> None:
    X, y, _ = table
    model = clone(kind).set_params(grid={"columns": ("all",), "base": ("mean", "ridge")})
    piped = make_pipeline(StandardScaler(), clone(model)).fit(X, y)
    again = pickle.loads(pickle.dumps(piped))
    np.testing.assert_array_equal(piped.predict(X), again.predict(X))
    assert cross_val_score(clone(model), X, y, cv=2).mean() > 0
    outer = GridSearchCV(clone(model), {"folds": [2, 3]}, cv=2).fit(X, y)
    assert outer.best_params_["folds"] in (2, 3)
    import dask.array as da

    fitted = clone(model).fit(X, y)
    lazy = ParallelPostFit(fitted).predict(da.from_array(X, chunks=(100, 4)))
    np.testing.assert_array_equal(lazy.compute(), fitted.predict(X))


def test_distributed_boosting_agrees_with_the_local_one(table: tuple, tmp_path) -> None:
    from smscale.models.boosting_dask import fit_distributed, outgrows

    X, y, place = stations("curved")
    frame = pd.DataFrame(X, columns=list("abcd")).assign(y=y, w=1.5, place=place)
    for part in range(4):
        frame.iloc[part::4].to_parquet(tmp_path / f"{part}.parquet")
    trees = BoostedTrees(max_depth=3, subsample=1.0, colsample_bytree=1.0, rounds=60)
    model = ResidualTrees(trees, columns="varying", share=0.9)
    local = model.fit(X, y, place)
    columns = (list("abcd"), "y", "w", "place")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        grown = fit_distributed(client, tmp_path, *columns, model=model, stop=False)
        stopped = fit_distributed(client, tmp_path, *columns, model=model)
        settings = BOOSTING | {"grid": {"columns": ("varying",), "base": ("ridge",), "max_depth": (3,)}}
        here, there = (TunedXGB(**settings, distributed=how).fit(X, y, place) for how in (False, True))
        assert not outgrows(X.nbytes, client)
        assert outgrows(1 << 60, client)
        frame.assign(a=np.nan).to_parquet(tmp_path / "0.parquet")
        with pytest.raises(InputError, match=r"a in \d+ of \d+ rows"):
            fit_distributed(client, tmp_path, *columns, model=model)
    # workers sketch a predictor's quantiles each for itself: bins differ a little
    for one, two in ((local, grown), (here, there)):
        difference = two.predict(X) - one.predict(X)
        assert 0 < np.sqrt(np.mean(difference**2)) < 0.1 * (y - one.predict(X)).std()
    assert grown.trees_.workers_ == there.best_estimator_.trees_.workers_ == 2
    assert stopped.trees_.booster_.num_boosted_rounds() <= 60
    arrays, meta = xgb_to_arrays(there)
    assert meta["workers"] == 2
    assert "tolerance" in meta["reproducible"]
    assert set(arrays) == set(xgb_to_arrays(here)[0])
    np.testing.assert_array_equal(xgb_from_arrays(arrays, meta).predict(X), there.predict(X).astype(np.float32))
    for name, model in (("grown", grown), ("there", there)):  # trees of some of the columns
        saved = load_model(save_model(tmp_path / name, model, list("abcd"), X, kind="xgb"))
        np.testing.assert_array_equal(saved.predict(X), model.predict(X).astype(np.float32))


def _train(X: np.ndarray, y: np.ndarray, place: np.ndarray) -> int:
    settings = BOOSTING | {"grid": {"columns": ("all",), "base": ("ridge",), "max_depth": (3,)}}
    model = TunedXGB(**settings, distributed=True).fit(X, y, place)
    assert np.isfinite(model.predict(X)).all()
    return model.best_estimator_.trees_.workers_


def test_distributed_boosting_is_a_task_of_the_run_in_this_process(tmp_path) -> None:
    """The engine sets a scheduler of its own around a task; the workers at hand are asked all the same."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
        client.as_current(),
    ):
        tasks = [blocks.Task("xgb", _train, stations("curved"))]
        assert blocks.run(tasks, blocks.Ledger(tmp_path), None, progress=False).results == {"xgb": 2}


def test_the_linear_part_is_the_same_however_the_table_is_divided(monkeypatch) -> None:
    X, y, place = stations("curved")
    frame = pd.DataFrame(X, columns=list("abcd")).assign(y=y, place=place)
    monkeypatch.setattr(boosting_dask, "SAMPLE_ROWS", len(frame) // 3)
    model = ResidualTrees(BoostedTrees(rounds=2), columns="varying")
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:

        def fitted(parts: int, seed: int = 0) -> ResidualTrees:
            lazy = dd.from_pandas(frame, npartitions=parts)
            return boosting_dask.fit_distributed(client, lazy, list("abcd"), "y", None, "place", model, seed)

        whole, halves, quarters, other = fitted(1), fitted(2), fitted(4), fitted(1, seed=1)
        sample = boosting_dask._sampled(dd.from_pandas(frame, npartitions=2), len(frame), 0)
    for divided in (halves, quarters):
        assert divided.linear_.intercept == whole.linear_.intercept
        np.testing.assert_array_equal(divided.linear_.coefficients, whole.linear_.coefficients)
        np.testing.assert_array_equal(divided.columns_, whole.columns_)
    assert other.linear_.intercept != whole.linear_.intercept  # the seed draws
    assert len(sample) == pytest.approx(len(frame) / 3, rel=0.3)
    assert sample.merge(frame).shape == sample.shape


def test_workers_get_the_linear_part_of_all_rows_that_are_here(monkeypatch) -> None:
    X, y, place = stations("curved")
    monkeypatch.setattr(boosting_dask, "SAMPLE_ROWS", 50)
    local = ResidualTrees(BoostedTrees(rounds=3), columns="varying").fit(X, y, place)
    samples = Samples(X.astype(np.float32).astype(np.float64), y, np.ones(len(y)), place)
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        grown = boosting_dask.fit_in_memory(client, local, samples)
    np.testing.assert_array_equal(grown.linear_.coefficients, local.linear_.coefficients)
    np.testing.assert_array_equal(grown.columns_, local.columns_)
