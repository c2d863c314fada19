"""Forests as arrays against the libraries' own predictions; the search against scikit-learn's and on any scheduler."""

import pickle

import numpy as np
import pytest
import xgboost
from distributed import Client, LocalCluster
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GridSearchCV

from smscale.errors import InputError
from smscale.models.forests import (
    StoppedXGBRegressor,
    TunedForest,
    TunedXGB,
    inner_folds,
    rf_from_arrays,
    rf_to_arrays,
    tune_forest,
    tune_xgb,
    xgb_from_arrays,
    xgb_to_arrays,
)

GRID = {"min_samples_leaf": (1, 8), "max_features": (0.5, 1.0)}


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 4)).astype(np.float32)
    return X, 0.2 + 0.05 * np.sin(X[:, 0] * 2) + 0.02 * X[:, 1] * (X[:, 2] > 0), np.repeat(np.arange(12), 20)


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


def test_forest_arrays_that_are_no_trees_are_refused(table: tuple) -> None:
    X, y, _ = table
    arrays, meta = rf_to_arrays(RandomForestRegressor(3, random_state=0).fit(X, y))
    loop = arrays["left"].copy()
    loop[0] = 0
    for name, wrong in (("left", loop), ("feature", arrays["feature"] + 4), ("value", arrays["value"][:-1])):
        with pytest.raises(InputError, match="do not describe trees"):
            rf_from_arrays(arrays | {name: wrong}, meta)
    with pytest.raises(InputError, match="lacks 'root'"):
        rf_from_arrays({name: values for name, values in arrays.items() if name != "root"}, meta)
    with pytest.raises(InputError, match="4 predictors"):
        rf_from_arrays(arrays, meta).predict(X[:, :3])


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


def test_search_agrees_with_scikit_learns_grid_search(table: tuple) -> None:
    X, y, groups = table
    forest, inner = tune_forest(X, y, groups, grid=GRID, folds=3, seed=4, trees=10)
    theirs = GridSearchCV(
        RandomForestRegressor(10, random_state=4),
        {name: list(values) for name, values in GRID.items()},
        cv=inner_folds(len(X), groups, 3, 4),
        scoring="neg_mean_squared_error",
    ).fit(X, y)
    # folds of equal size: pooled and averaged mean squares agree
    np.testing.assert_allclose(inner["rmse"] ** 2, -theirs.cv_results_["mean_test_score"], rtol=1e-12)
    assert {name: forest.get_params()[name] for name in GRID} == theirs.best_params_
    np.testing.assert_array_equal(forest.predict(X), theirs.predict(X))
    assert inner["chosen"].sum() == 1


def test_search_on_a_dask_client_chooses_the_same(table: tuple) -> None:
    X, y, groups = table
    weight = np.linspace(0.5, 1.5, len(X))
    alone, inner = tune_forest(X, y, groups, weight, GRID, folds=3, seed=4, trees=10)
    boosted, inner_boosted = tune_xgb(X, y, groups, weight, {"max_depth": (2, 3)}, folds=3, seed=4)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        fanned, inner_fanned = tune_forest(X, y, groups, weight, GRID, folds=3, seed=4, trees=10)
        boosted_fanned, inner_boosted_fanned = tune_xgb(X, y, groups, weight, {"max_depth": (2, 3)}, folds=3, seed=4)
        in_a_task, _ = client.submit(
            tune_forest, X, y, groups, weight, GRID, folds=3, seed=4, trees=10, pure=False
        ).result(timeout=60)
    np.testing.assert_array_equal(alone.predict(X), fanned.predict(X))
    np.testing.assert_array_equal(alone.predict(X), in_a_task.predict(X))
    np.testing.assert_array_equal(boosted.predict(X), boosted_fanned.predict(X))
    np.testing.assert_array_equal(inner["rmse"], inner_fanned["rmse"])
    np.testing.assert_array_equal(inner_boosted["rmse"], inner_boosted_fanned["rmse"])


@pytest.mark.parametrize("kind", [TunedForest(grid=GRID, folds=3, trees=10), TunedXGB({"max_depth": (2, 4)}, folds=3)])
def test_tuned_estimators_learn_and_become_artefacts(table: tuple, kind: TunedForest | TunedXGB) -> None:
    X, y, groups = table
    kind.fit(X, y, groups=groups, sample_weight=np.ones(len(X)))
    assert kind.inner_score_ == kind.inner_table_["rmse"].min() < y.std()
    assert all(kind.best_estimator_.get_params()[name] == value for name, value in kind.best_params_.items())
    to_arrays, from_arrays = (
        (rf_to_arrays, rf_from_arrays) if isinstance(kind, TunedForest) else (xgb_to_arrays, xgb_from_arrays)
    )
    np.testing.assert_array_equal(from_arrays(*to_arrays(kind)).predict(X), kind.predict(X).astype(np.float32))


def test_early_stopping_never_sees_a_block_of_both_sides(table: tuple) -> None:
    """Targets that are the block's own noise, readable from its own value of a predictor: nothing carries over."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    X = groups[:, None].astype(np.float32)
    y = rng.normal(size=40)[groups]
    blocked = StoppedXGBRegressor(min_child_weight=1).fit(X, y, blocks=groups)
    leaking = StoppedXGBRegressor(min_child_weight=1).fit(X, y)
    assert blocked.rounds_ < leaking.rounds_ / 4


def test_inner_folds_keep_groups_whole_and_step_down_when_few() -> None:
    groups = np.repeat(np.arange(3), 7)
    folds = inner_folds(21, groups, 5, 0)
    assert len(folds) == 3
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
    assert len(inner_folds(21, np.zeros(21), 5, 0)) == 5
    assert len(inner_folds(3, None, 5, 0)) == 3
    with pytest.raises(InputError, match="one label a row"):
        inner_folds(4, [1, 2], 2, 0)


def test_a_grid_that_cannot_be_fitted_is_an_error(table: tuple) -> None:
    X, y, _ = table
    with pytest.raises(InputError, match="no setting of the grid"):
        tune_forest(X, y, grid={"min_samples_leaf": (-1,)}, folds=2, trees=5)


def test_boosting_does_not_depend_on_the_unit_of_the_weights():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(120, 3))
    y = X[:, 0] + rng.normal(size=120)
    weight = rng.uniform(0.5, 1.5, 120)
    fits = [
        StoppedXGBRegressor(random_state=0, min_child_weight=20).fit(X, y, sample_weight=w)
        for w in (weight, 625 * weight)
    ]
    np.testing.assert_allclose(fits[0].predict(X), fits[1].predict(X), atol=1e-6)
