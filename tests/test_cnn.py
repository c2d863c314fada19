"""The convolutional network: its estimator contract, its inner fold, and NumPy prediction against torch."""

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from smscale.errors import InputError
from smscale.models.cnn import ROWS, CNNRegressor, cnn_from_arrays, cnn_to_arrays
from smscale.models.ridge import PENALTIES, ridge_coefficients, ridge_penalty
from smscale.models.samples import inner_split, merge_rows

SMALL: dict[str, Any] = {"epochs": 15, "filters": (4, 4, 4, 4), "dropout": 0.0, "learning_rate": 0.01, "patience": 15}


def made(rows: int = 120, predictors: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, predictors))
    return X, 0.25 + 0.05 * np.tanh(X[:, 0]) * X[:, 1] + 0.002 * rng.normal(size=rows)


@parametrize_with_checks([CNNRegressor(random_state=0, **(SMALL | {"epochs": 4}))])
def test_estimator_passes_scikit_learns_checks(estimator: CNNRegressor, check: Any) -> None:
    check(estimator)


def test_import_of_module_does_not_load_torch() -> None:
    code = "import sys, smscale.models.cnn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("predictors", [1, 2, 3, 5, 12, 17, 33])
def test_numpy_prediction_equals_torch_for_any_number_of_predictors(predictors: int) -> None:
    import torch

    from smscale.models.cnn_lightning import Network

    torch.manual_seed(predictors)
    network = Network(predictors, (3, 5, 4, 6), 0.5, seed=1).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, (torch.nn.Conv1d, torch.nn.Linear)):
                torch.nn.init.normal_(layer.bias)
        torch.nn.init.normal_(network.dense.weight)
    rng = np.random.default_rng(predictors)
    mean, scale, target = rng.normal(size=predictors), rng.uniform(0.5, 2, predictors), np.array([0.2, 0.05])
    X = rng.normal(size=(ROWS + 3, predictors)).astype(np.float32)
    arrays = network.to_arrays() | {
        "mean": mean,
        "scale": scale,
        "target": target,
        "linear": rng.normal(size=predictors),
    }
    got = cnn_from_arrays(arrays).predict(X)
    with torch.no_grad():
        inside = network(torch.from_numpy(((X - mean) / scale).astype(np.float32))).numpy()
    assert got.dtype == np.float32
    inside = inside + (X - mean) / scale @ arrays["linear"]
    # float32 sums of a few products in another order, times the target's scale
    np.testing.assert_allclose(got, inside * 0.05 + 0.2, rtol=1e-5, atol=1e-6)


def test_paper_settings_are_the_papers() -> None:
    paper = CNNRegressor.paper(random_state=3)
    assert (paper.epochs, paper.random_state, len(paper.filters), paper.weight_decay) == (1500, 3, 4, 0.0)
    assert set(CNNRegressor.PAPER_ASSUMED) <= set(paper.get_params())


@pytest.fixture(scope="module")
def fitted() -> CNNRegressor:
    X, y = made()
    return CNNRegressor(random_state=1, **SMALL).fit(X, y)


def test_fit_learns_what_ridge_cannot() -> None:
    X, y = made(320)
    network = CNNRegressor(random_state=0, epochs=40, learning_rate=0.01).fit(X[:260], y[:260])
    error = np.sqrt(np.mean((network.predict(X[260:]) - y[260:]) ** 2))
    ridge = RidgeCV().fit(X[:260], y[:260])
    assert error < 0.6 * np.sqrt(np.mean((ridge.predict(X[260:]) - y[260:]) ** 2))


def test_same_seed_gives_the_same_bytes_and_leaves_global_generators_alone(fitted: CNNRegressor) -> None:
    import torch

    X, y = made()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002
    again = CNNRegressor(random_state=1, **SMALL).fit(X, y)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002
    for name, values in fitted.arrays_.items():
        np.testing.assert_array_equal(values, again.arrays_[name])
    other = CNNRegressor(random_state=2, **SMALL).fit(X, y)
    assert not np.array_equal(other.arrays_["weight_0"], fitted.arrays_["weight_0"])


def test_kept_epoch_is_the_best_of_the_inner_fold(fitted: CNNRegressor) -> None:
    validation = fitted.history_["validation_mse"]
    assert fitted.best_epoch_ == 1 + int(np.argmin(validation))
    assert fitted.inner_score_ == pytest.approx(np.sqrt(min(validation)))
    assert len(fitted.history_["training_mse"]) == len(validation) <= SMALL["epochs"]


def test_pickle_and_artefact_predict_the_same(fitted: CNNRegressor) -> None:
    X, _ = made(seed=5)
    expected = fitted.predict(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), expected)
    arrays, meta = cnn_to_arrays(fitted)
    np.testing.assert_array_equal(cnn_from_arrays(arrays, meta).predict(X), expected)


@pytest.mark.parametrize(("name", "value"), [("weight_3", None), ("scale", np.ones(3)), ("dense_weight", np.ones(9))])
def test_arrays_that_do_not_fit_are_refused(fitted: CNNRegressor, name: str, value: np.ndarray | None) -> None:
    arrays = dict(fitted.arrays_)
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    with pytest.raises(InputError, match="cnn artefact"):
        cnn_from_arrays(arrays)


def test_merge_rows_adds_weights_of_equal_rows_and_drops_those_without() -> None:
    X = np.array([[2.0], [1.0], [2.0], [3.0]])
    merged = merge_rows(X, np.array([5.0, 4.0, 5.0, 6.0]), np.array([1.0, 2.0, 0.5, 0.0]), None)
    np.testing.assert_array_equal(merged.X[:, 0], [1, 2])
    np.testing.assert_array_equal(merged.y, [4, 5])
    np.testing.assert_array_equal(merged.weight, [2, 1.5])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.floats(0.05, 0.9), st.integers(0, 5))
def test_inner_split_keeps_groups_whole_and_covers_all_rows(labels: list[int], fraction: float, seed: int) -> None:
    group = np.array(labels)
    training, validation = inner_split(group, fraction, np.random.default_rng(seed))
    assert training.size
    assert validation.size
    np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), np.arange(group.size))
    if np.unique(group).size > 1:
        assert not set(group[training]) & set(group[validation])


def test_ridge_equals_scikit_learns_for_every_penalty() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 3)) @ rng.normal(size=(3, 3))
    y = X @ [0.5, -0.2, 0.1] + rng.normal(size=90)
    weight = rng.uniform(0.5, 2, 90)
    ours = ridge_coefficients(X, y, weight, PENALTIES)
    for number, penalty in enumerate(PENALTIES):
        theirs = Ridge(penalty * weight.sum(), fit_intercept=False).fit(X, y, weight)
        np.testing.assert_allclose(ours[:, number], theirs.coef_, rtol=1e-9)
    np.testing.assert_array_equal(ridge_coefficients(X, y, weight, np.inf), np.zeros(3))


def test_ridge_penalty_grows_when_groups_tell_that_nothing_carries_over() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(12), 30)
    X = rng.normal(size=(12, 6))[group]
    y = rng.normal(size=12)[group]
    blocked = ridge_penalty(X, y, np.ones(360), group, 0)
    assert blocked > 100 * ridge_penalty(X, y, np.ones(360), np.arange(360), 0)


def test_groups_and_weights_change_the_fit_and_bad_ones_are_refused(fitted: CNNRegressor) -> None:
    X, y = made()
    fast = SMALL | {"epochs": 2}
    blocked = CNNRegressor(random_state=1, **fast).fit(X, y, groups=np.repeat(np.arange(6), 20))
    plain = CNNRegressor(random_state=1, **fast).fit(X, y)
    assert blocked.inner_score_ != plain.inner_score_
    with pytest.raises(InputError, match="one label a row"):
        CNNRegressor(**fast).fit(X, y, groups=[1, 2])
    with pytest.raises(InputError, match="two distinct rows"):
        CNNRegressor(**fast).fit(X, y, sample_weight=np.eye(120)[0])


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("filters", (4, 4)), ("dropout", 1.0), ("averaging", 1.0)])
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    X, y = made(20)
    with pytest.raises(InputError, match=name):
        CNNRegressor(**{name: value}).fit(X, y)


def test_diverging_network_is_an_error_not_a_nan_model() -> None:
    X, y = made()
    with pytest.raises(InputError, match="diverged"):
        CNNRegressor(**(SMALL | {"learning_rate": 1e30, "averaging": 0.0, "epochs": 5})).fit(X, y)


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_handful_of_rows_gives_finite_predictions(rows: int) -> None:
    X, y = made(rows)
    assert np.isfinite(CNNRegressor(**(SMALL | {"epochs": 3})).fit(X, y).predict(X)).all()
