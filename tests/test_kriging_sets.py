"""Kriging systems of many times, by one inverse of all points or each by itself: the same numbers, brute force included."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from smscale.kernels import kriging, kriging_sets


def network(n=60, t=40, silent=0.1, nugget=0.1, seed=0):
    """(n, n) exponential covariance of points in a square, and values with gaps."""
    rng = np.random.default_rng(seed)
    points = rng.random((n, 2)) * 300
    k = np.exp(-np.linalg.norm(points[:, None] - points[None], axis=2) / 80) + nugget * np.eye(n)
    values = 0.2 + 0.05 * rng.normal(size=(n, t))
    values[rng.random((n, t)) < silent] = np.nan
    return k, values


def one_by_one(k, values):
    """Mean (t,), dual coefficients, left-out predictions and their variances (n, t), each time's system inverted by NumPy."""
    mean, dual = np.full(values.shape[1], np.nan), np.zeros(values.shape)
    prediction, variance = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    for t, column in enumerate(values.T):
        here = np.flatnonzero(np.isfinite(column))
        if not here.size:
            continue
        z, inverse = column[here], np.linalg.inv(k[np.ix_(here, here)])
        ones = inverse.sum(axis=1)
        mean[t] = ones @ z / ones.sum()
        dual[here, t] = inverse @ (z - mean[t])
        if here.size > 1:
            q = inverse - np.outer(ones, ones) / ones.sum()
            prediction[here, t], variance[here, t] = z - q @ z / np.diag(q), 1 / np.diag(q)
    return mean, dual, prediction, variance


@pytest.fixture
def counted(monkeypatch):
    """How many sets each way solved."""
    count = {"_by_inverse": 0, "_direct": 0}
    for name in count:
        real = getattr(kriging_sets, name)

        def call(*args, name=name, real=real):
            count[name] += 1
            return real(*args)

        monkeypatch.setattr(kriging_sets, name, call)
    return count


@pytest.mark.parametrize(("silent", "way"), [(0.1, "_by_inverse"), (0.9, "_direct"), (0.45, None), (0.0, None)])
def test_each_way_gives_what_every_set_factored_by_itself_gives(silent, way, counted):
    k, values = network(silent=silent)
    values[:, 3], values[1:, 4], values[:7] = np.nan, np.nan, np.nan
    values[:, 5] = values[:, 6]  # two times of one set
    mean, dual, prediction, variance = one_by_one(k, values)
    for ours, theirs in zip(kriging_sets.solve_dual(k, values), (mean, dual, 0.0), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(kriging_sets.leave_one_out(k, values), (prediction, variance), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    if way is not None:
        assert counted[way] > 60, "the way that is meant to be tested"


def test_left_out_equals_solving_without_the_point():
    k, values = network(n=30, t=20, silent=0.1)
    prediction, variance = kriging_sets.leave_one_out(k, values)
    for i, j in [(0, 0), (7, 3), (29, 19)]:
        z = values[:, j]
        others = np.flatnonzero(np.isfinite(z) & (np.arange(30) != i))
        cross = k[others, i][:, None]
        weights, _ = kriging.ordinary_weights(k[np.ix_(others, others)], cross)
        expected = kriging.prediction_variance(k[np.ix_(others, others)], cross, k[i, i])
        if np.isfinite(z[i]):
            assert prediction[i, j] == pytest.approx(float(weights[:, 0] @ z[others]))
            assert variance[i, j] == pytest.approx(float(expected[0]))
        else:
            assert np.isnan(prediction[i, j])
            assert np.isnan(variance[i, j])


@pytest.mark.parametrize("silent", [0.1, 0.5])
def test_the_bytes_do_not_depend_on_the_threads(silent):
    k, values = network(n=300, t=40, silent=silent)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            found.append([*kriging_sets.solve_dual(k, values)[:2], *kriging_sets.leave_one_out(k, values)])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_constant_is_a_constant_however_many_are_silent():
    k, values = network(silent=0.2)
    constant = np.where(np.isnan(values), np.nan, 0.237)
    mean, coefficients, _ = kriging_sets.solve_dual(k, constant)
    assert (mean == 0.237).all()
    assert not coefficients.any()


def test_an_inverse_that_would_not_be_exact_enough_is_not_used(counted):
    points = np.linspace(0, 100, 40)[:, None]
    smooth = np.exp(-(((points - points.T) / 30) ** 2)) + 1e-9 * np.eye(40)
    values = np.sin(points / 20) + np.zeros((40, 60))
    values[np.arange(40)[:, None] == np.arange(60) % 40] = np.nan
    mean, dual, jitter = kriging_sets.solve_dual(smooth, values)
    assert counted["_by_inverse"] == 0
    there = np.isfinite(values)
    np.testing.assert_allclose(
        (smooth @ dual + mean)[there], values[there], atol=1e-6
    )  # it meets what it was solved for
    assert jitter == 0


def test_a_system_that_contradicts_itself_is_refused():
    values = np.array([[0.1, 0.2], [0.3, 0.2]])
    with pytest.raises(kriging.SingularSystemError, match="2 points is singular to rounding"):
        kriging_sets.solve_dual(np.ones((2, 2)), values)


def test_a_time_without_any_point_and_a_point_alone_have_nothing():
    k, values = network(n=5, t=3)
    mean, coefficients, _ = kriging_sets.solve_dual(k, np.full((5, 3), np.nan))
    assert np.isnan(mean).all()
    assert not coefficients.any()
    assert np.isnan(kriging_sets.leave_one_out(k, np.where(np.arange(5)[:, None] == 2, values, np.nan))[0]).all()
