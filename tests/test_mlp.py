"""The fused network against NumPy in float64."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smscale.kernels import mlp, threads

Network = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]


def random_network(k: int, h: int, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(k, h)), rng.normal(size=h), rng.normal(size=h), float(rng.normal())


def reference(x: NDArray[np.floating], network: Network) -> NDArray[np.float64]:
    w1, b1, w2, b2 = network
    return np.asarray(np.tanh(x.astype(np.float64) @ w1 + b1) @ w2 + b2)


def test_tanh_is_as_exact_as_its_comment_says() -> None:
    x = np.concatenate([np.linspace(-12, 12, 200_001), [0.0, 1e-20, -1e-6, 1e9, -np.inf]]).astype(np.float32)
    error = np.abs(mlp.tanh(x) - np.tanh(x.astype(np.float64)))
    assert error.max() < 6e-7  # 4e-7 of the fraction, 3.4e-7 where it is cut off
    small = np.abs(x) < 1
    assert np.all(error[small] <= 5e-7 * np.abs(x[small]))


@given(n=st.integers(0, 1300), k=st.integers(1, 14), h=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_table_agrees_with_numpy(n: int, k: int, h: int, seed: int) -> None:
    network = random_network(k, h, seed)
    x = np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)
    # 1e-6 per neuron: tanh 4e-7, and float32 rounding of a sum of k products of size 1
    np.testing.assert_allclose(mlp.predict(x, *network), reference(x, network), atol=2e-6 * (h + k))


def test_one_neuron_by_hand() -> None:
    found = mlp.predict([[0.5, 2.0]], w1=[[1.0], [-0.25]], b1=[0.5], w2=[3.0], b2=-1.0)
    assert found[0] == pytest.approx(3 * np.tanh(0.5) - 1, abs=1e-6)


@given(n=st.integers(0, 1300), k=st.integers(1, 14), h=st.integers(0, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_linear_part_and_bounds_agree_with_numpy(n: int, k: int, h: int, seed: int) -> None:
    network, rng = random_network(k, h, seed), np.random.default_rng(seed)
    x = rng.normal(size=(n, k)).astype(np.float32)
    linear, shift = rng.normal(size=(2, k))
    lower, upper = -rng.uniform(0.2, 2, k), rng.uniform(0.2, 2, k)
    moved = np.clip(x, lower, upper) - shift
    found = mlp.predict(x, *network, shift=shift, linear=linear, lower=lower, upper=upper)
    np.testing.assert_allclose(found, reference(moved, network) + moved @ linear, atol=3e-6 * (h + k))


def test_missing_and_infinite_predictors_give_nan_within_bounds_too() -> None:
    network = random_network(3, 2)
    x = np.random.default_rng(1).normal(size=(1000, 3))
    x[3, 0], x[700, 2], x[999, 1] = np.nan, np.inf, -np.inf
    found = mlp.predict(x, *network, linear=np.ones(3), lower=np.full(3, -2.0), upper=np.full(3, 2.0))
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 700, 999]


def test_missing_and_infinite_predictors_give_nan_and_nothing_else_does() -> None:
    network = random_network(4, 5)
    x = np.random.default_rng(1).normal(size=(2000, 4))
    x[3, 0], x[700, 3], x[1999, 1] = np.nan, np.inf, -np.inf
    found = mlp.predict(x, *network)
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 700, 1999]


def test_shift_is_taken_off_before_rounding() -> None:
    """A predictor of 2e6 that varies by 1: without the shift float32 would leave steps of 0.25."""
    x = 2e6 + np.random.default_rng(0).uniform(-1, 1, size=(500, 1))
    w1, b1, w2, b2 = random_network(1, 4)
    planes = mlp.predict_planes([x[:, 0]], w1, b1, w2, b2, shift=[2e6])
    np.testing.assert_allclose(planes, reference(x - 2e6, (w1, b1, w2, b2)), atol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (3, 400), (5, 60, 70), (2, 3, 4, 5), (1, 40_000), (40_000, 1), (0, 4)])
def test_planes_agree_with_the_table(shape: tuple[int, ...]) -> None:
    network = random_network(3, 4)
    rng = np.random.default_rng(2)
    planes = [rng.normal(size=shape).astype(np.float32) for _ in range(3)]
    found = mlp.predict_planes(planes, *network)
    assert found.shape == shape
    table = np.stack([plane.ravel() for plane in planes], axis=1)
    np.testing.assert_array_equal(found.ravel(), mlp.predict(table, *network))


def test_planes_broadcast_scalars_rows_and_columns() -> None:
    network = random_network(4, 3)
    time, lat, lon = np.array([1.0, 2.0]), np.linspace(0, 1, 5), np.linspace(-1, 1, 6)
    cube = np.random.default_rng(0).normal(size=(2, 5, 6))
    found = mlp.predict_planes([time[:, None, None], lat[:, None], lon[None, :], cube], *network)
    full = np.stack(np.broadcast_arrays(time[:, None, None], lat[:, None], lon[None, :], cube), axis=-1)
    np.testing.assert_allclose(found, reference(full.reshape(-1, 4), network).reshape(2, 5, 6), atol=1e-5)


def test_a_cell_does_not_depend_on_where_it_stands() -> None:
    """Blocks of work are always whole: the same bytes whatever the chunking."""
    network = random_network(5, 7)
    x = np.random.default_rng(0).normal(size=(1500, 5)).astype(np.float32)
    whole = mlp.predict(x, *network)
    for cut in (1, 13, 511, 512, 777):
        parts = [mlp.predict(x[i : i + cut], *network) for i in range(0, 1500, cut)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(mlp.predict_planes(list(x.T), *network), whole)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("masked", [0.05, 0.85, 1.0])
def test_masked_cells_are_skipped_whatever_they_hold(masked: float, bounded: bool) -> None:
    """The bits of a table of the other cells alone, with numbers and poison in what is masked, over several slabs."""
    network, rng = random_network(6, 9), np.random.default_rng(3)
    shape = (3, 170, 331)
    row, column = rng.normal(size=(1, 170, 1)), rng.normal(size=(1, 1, 331))
    full = [rng.normal(size=shape).astype(np.float32) for _ in range(3)]
    hidden = rng.random(shape) < masked
    full[0][hidden] = np.nan
    full[1][hidden & (rng.random(shape) < 0.5)] = np.inf
    full[2][hidden & (rng.random(shape) < 0.5)] = -3e38
    bounds = {"shift": rng.normal(size=6), "lower": np.full(6, -0.8), "upper": np.full(6, 1.1)} if bounded else {}
    found = mlp.predict_planes([row, full[0], column, full[1], 0.25, full[2]], *network, **bounds)
    views = np.broadcast_arrays(row, full[0], column, full[1], 0.25, full[2])
    table = np.stack([view[~hidden] for view in views], axis=1)
    np.testing.assert_array_equal(found[~hidden], mlp.predict(table, *network, **bounds))
    assert np.isnan(found[hidden]).all()
    assert np.isfinite(found[~hidden]).all()


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 127, 500])
def test_runs_of_masked_cells_may_begin_and_end_anywhere(columns: int) -> None:
    """Whole words of bits, parts of them and runs over their borders, in rows of any width, from planes of any layout."""
    network, rng = random_network(3, 4), np.random.default_rng(6)
    full = rng.normal(size=(3, 40, columns)).astype(np.float32)
    first, length = rng.integers(0, columns, (2, 40, 1))
    hidden = (np.arange(columns) >= first) & (np.arange(columns) < first + length)
    full[1][hidden] = np.nan
    expected = np.where(hidden, np.nan, reference(full.reshape(3, -1).T, network).reshape(40, columns))
    for planes in (list(full), [full[0].T.copy().T, full[1], full[2, :, ::-1].copy()[:, ::-1]]):
        np.testing.assert_allclose(mlp.predict_planes(planes, *network), expected, atol=2e-5)


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = random_network(3, 5), np.random.default_rng(0).normal(size=(3, 2, 300, 400)).astype(np.float32)
    found = []
    for count in (1, 4):
        monkeypatch.setattr(threads, "blas_threads", lambda n=count: n)
        found.append(mlp.predict_planes(list(x), *network))
    np.testing.assert_array_equal(*found)


def test_predictors_are_not_changed_by_bounds() -> None:
    x = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
    before = x.copy()
    mlp.predict_planes(list(x.T), *random_network(2, 3), lower=[-0.1, -0.1], upper=[0.1, 0.1])
    np.testing.assert_array_equal(x, before)


def test_what_single_precision_cannot_hold_is_missing_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mlp.predict([[1e39], [-1e300], [3e38]], [[1.0]], [0.0], [2.0], 0.5, lower=[-1.0], upper=[1.0])
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(0.5 + 2 * np.tanh(1.0), rel=1e-6)
