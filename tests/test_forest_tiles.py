"""Forests: the bits of scikit-learn with one thread and of a plain walk, from planes and tables, whatever the pieces."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from smscale.errors import InputError
from smscale.kernels import forest_tiles
from smscale.kernels import threads as threads_of_blas
from smscale.models import make_predictor
from smscale.models.forests import rf_from_arrays, rf_to_arrays
from smscale.models.residual_trees import ResidualTrees
from smscale.models.tree_arrays import ForestPredictor

PLANES = 5


def grown(trees: int = 12, **settings: object) -> RandomForestRegressor:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, PLANES)).astype(np.float32)
    y = np.sin(2 * X[:, 0]) + X[:, 1] * (X[:, 2] > 0) + 0.3 * X[:, 4] + 0.3 * rng.normal(size=400)
    return RandomForestRegressor(trees, random_state=1, n_jobs=1, **settings).fit(X, y)


def flat(forest: object) -> ForestPredictor:
    return rf_from_arrays(*rf_to_arrays(forest))


def planes(shape: tuple[int, int, int], kind: str = "smooth", seed: int = 2) -> list[np.ndarray]:
    """Longitude, latitude, a static field, a field of each day, and a number of each day."""
    rng = np.random.default_rng(seed)
    days, rows, columns = shape
    x, y = np.linspace(-2, 2, columns)[None, None], np.linspace(2, -2, rows)[None, :, None]
    noise = {"smooth": 0.05, "rough": 2.0}[kind]
    static = np.sin(x) * np.cos(y) + noise * rng.normal(size=(1, rows, columns))
    daily = np.cos(x + y) + 0.3 * rng.normal(size=(days, 1, 1)) + noise * rng.normal(size=shape)
    return [p.astype(np.float32) for p in (x, y, static, daily, rng.normal(size=(days, 1, 1)))]


def walked(model: ForestPredictor, X: np.ndarray) -> np.ndarray:
    """(n,) float32: every row by itself down each tree, leaves added in the order of the trees."""
    total = np.zeros(len(X))
    for root in model.root[:-1]:
        node = np.full(len(X), root)
        while (inner := model.feature[node] >= 0).any():
            below = X[np.arange(len(X)), np.maximum(model.feature[node], 0)] <= model.threshold[node]
            node = np.where(inner, np.where(below, model.left[node], model.right[node]), node)
        total += model.value[node]
    return (total / (len(model.root) - 1)).astype(np.float32)


def rows(fields: list[np.ndarray]) -> np.ndarray:
    """(n, k) of all cells."""
    return np.stack([p.ravel() for p in np.broadcast_arrays(*fields)], axis=1)


@pytest.mark.parametrize("kind", ["smooth", "rough"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"trees": 1}, {"max_depth": 1}, {"max_leaf_nodes": 9}, {"bootstrap": False, "max_features": 0.4}, {"max_depth": 3}],
)  # fmt: skip
def test_planes_give_the_bits_of_scikit_learn(settings: dict, kind: str) -> None:
    forest, fields = grown(**settings), planes((3, 41, 37), kind)
    found = flat(forest).predict_planes(fields)
    np.testing.assert_array_equal(found.ravel(), forest.predict(rows(fields)).astype(np.float32))
    assert np.ptp(found) > 0


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 90), (2, 90, 1), (40, 9, 8), (1, 64, 64), (17, 65, 66), (1, 300, 20)]
)
def test_any_shape_and_border_gives_the_bits_of_rows(shape: tuple[int, int, int]) -> None:
    model, fields = flat(grown()), planes(shape)
    np.testing.assert_array_equal(model.predict_planes(fields).ravel(), walked(model, rows(fields)))


@pytest.mark.parametrize("piece", [(1, 8, 8), (3, 5, 16), (2, 24, 40), (64, 128, 128)])
@pytest.mark.parametrize("days", [1, 5, 7])
def test_pieces_and_days_beside_change_no_bit(
    piece: tuple[int, int, int], days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fields = flat(grown()), planes((7, 50, 45))
    monkeypatch.setattr(forest_tiles, "PIECE", piece)
    monkeypatch.setattr(forest_tiles, "TOGETHER", 1000)
    found = model.predict_planes(fields)
    np.testing.assert_array_equal(found.ravel(), walked(model, rows(fields)))
    np.testing.assert_array_equal(model.predict_planes([p[:days] for p in fields]), found[:days])


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 9000])
def test_a_table_gives_the_bits_of_scikit_learn_and_of_a_plain_walk(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scattered rows, of which no two need be alike; 9 000 are run in parts."""
    forest = grown(max_features=0.5)
    X = np.random.default_rng(5).normal(size=(count, PLANES)).astype(np.float32)
    monkeypatch.setattr(forest_tiles, "TOGETHER", 1 << 12)
    found = flat(forest).predict(X)
    assert found.shape == (count,)
    np.testing.assert_array_equal(found, walked(flat(forest), X))
    if count:
        np.testing.assert_array_equal(found, forest.predict(X).astype(np.float32))


def test_missing_and_infinite_cells_are_nan_and_change_no_neighbour() -> None:
    model, fields = flat(grown()), planes((4, 33, 30))
    whole = model.predict_planes(fields)
    rng = np.random.default_rng(3)
    static, daily = fields[2].copy(), fields[3].astype(np.float64)
    static[0, 5:20, 3:28] = np.nan
    for value in (np.nan, np.inf, -np.inf, 1e300):
        daily[rng.random(daily.shape) < 0.1] = value
    daily[2] = np.nan
    found = model.predict_planes([*fields[:2], static, daily, fields[4]])
    with np.errstate(over="ignore"):
        known = np.isfinite(static) & np.isfinite(daily.astype(np.float32))
    np.testing.assert_array_equal(found, np.where(known, whole, np.nan))
    assert 0 < known.sum() < known.size
    assert np.isnan(model.predict_planes([*fields[:4], np.full((1, 1, 1), np.nan)])).all()


def test_values_on_a_threshold_go_left_as_in_scikit_learn() -> None:
    forest = grown()
    cuts = np.concatenate([tree.tree_.threshold[tree.tree_.feature == 0] for tree in forest.estimators_])[:600]
    single = cuts.astype(np.float32)
    values = np.stack([np.nextafter(single, np.float32(-9)), single, np.nextafter(single, np.float32(9))])
    assert (single == cuts).any()  # exactly there
    assert (single > cuts).any()  # and rounded to beyond it
    fields = [values[None], *(np.float32([[[v]]]) for v in (0.1, 0.2, -0.1, 0.3))]
    expected = forest.predict(rows(fields)).astype(np.float32)
    np.testing.assert_array_equal(flat(forest).predict_planes(fields).ravel(), expected)


def test_largest_float32_is_a_value() -> None:
    largest = np.finfo(np.float32).max
    fields = [np.float32([[[-largest, largest, np.inf]]]), *[np.zeros((1, 1, 1), np.float32)] * 4]
    found = flat(forest := grown()).predict_planes(fields).ravel()
    np.testing.assert_array_equal(found[:2], forest.predict(rows(fields)[:2]).astype(np.float32))
    assert np.isnan(found[2])


def test_linear_part_and_share_lie_under_planes() -> None:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(300, PLANES)).astype(np.float32)
    model = ResidualTrees(RandomForestRegressor(9, random_state=0), "ridge", share=0.4).fit(
        X, X[:, 0] + np.abs(X[:, 1])
    )
    arrays = pickle.loads(pickle.dumps(flat(model)))
    fields = [3 * plane for plane in planes((2, 19, 23))]
    found = arrays.predict_planes(fields).ravel()
    np.testing.assert_array_equal(found, arrays.predict(rows(fields)))
    np.testing.assert_array_equal(found, model.predict(rows(fields)).astype(np.float32))
    assert arrays.linear.coefficients.any()


def test_axes_types_and_layouts_do_not_matter() -> None:
    model, fields = flat(grown()), planes((6, 12, 11))
    expected = model.predict_planes(fields)
    np.testing.assert_array_equal(model.predict_planes([p.astype(np.float64) for p in fields]), expected)
    full = [np.asfortranarray(np.broadcast_to(p, expected.shape)) for p in fields]
    np.testing.assert_array_equal(model.predict_planes(full), expected)
    for day in range(len(expected)):
        np.testing.assert_array_equal(model.predict_planes([p[day % len(p)] for p in fields]), expected[day])
    four = [p.reshape(2, 3, *p.shape[1:]) if len(p) > 1 else p for p in fields]
    np.testing.assert_array_equal(model.predict_planes(four), expected.reshape(2, 3, 12, 11))
    columns = list(rows(fields).T)
    np.testing.assert_array_equal(model.predict_planes(columns), expected.ravel())
    assert model.predict_planes([p[:0] for p in full]).shape == (0, 12, 11)
    assert model.predict_planes([np.float32(0.5)] * PLANES).shape == ()
    with pytest.raises(InputError, match="5 predictors; got 4 planes"):
        model.predict_planes(fields[:4])


def test_a_predictor_takes_planes_tables_and_integers() -> None:
    rng = np.random.default_rng(0)
    X = np.round(4 * rng.normal(size=(200, PLANES))).astype(np.float32)
    forest = RandomForestRegressor(5, random_state=0).fit(X, X[:, 0] * X[:, 3])
    predictor = make_predictor(forest, list("abcde"), X)
    fields = [np.round(4 * p) for p in planes((3, 20, 21))]
    expected = forest.predict(rows(fields)).astype(np.float32)
    found = predictor.predict_planes([fields[0].astype(np.int16), *fields[1:]])
    np.testing.assert_array_equal(found.ravel(), expected)
    np.testing.assert_array_equal(predictor.predict(rows(fields)), expected)
    holed = rows(fields)
    holed[::3, 2] = np.nan
    np.testing.assert_array_equal(predictor.predict(holed), np.where(np.arange(len(holed)) % 3, expected, np.nan))


def test_arrays_that_cannot_be_written_are_read() -> None:
    model, fields = flat(grown()), planes((2, 20, 20))
    expected = model.predict_planes(fields)
    for name in ("feature", "threshold", "left", "right", "value", "root"):
        getattr(model, name).setflags(write=False)
    for field in fields:
        field.setflags(write=False)
    np.testing.assert_array_equal(model.predict_planes(fields), expected)


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fields = flat(grown()), planes((2, 200, 150))
    found = []
    for count in (1, 4):
        monkeypatch.setattr(threads_of_blas, "blas_threads", lambda n=count: n)
        found.append(model.predict_planes(fields))
    np.testing.assert_array_equal(*found)
