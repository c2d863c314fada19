"""Predictors as separate planes: what is gathered, skipped and marked, against NumPy on full arrays."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from smscale.kernels import planes, threads

SHAPES = [(7,), (1, 40), (3, 5, 60), (2, 3, 4, 5), (4, 1, 9), (5, 700, 1), (2, 90, 1100)]


def fields(shape: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    """A full plane, one of each axis alone, a number, and full ones whose layout or type is another."""
    rng = np.random.default_rng(seed)
    axes = [rng.normal(size=tuple(n if i == axis else 1 for i, n in enumerate(shape))) for axis in range(len(shape))]
    full = rng.normal(size=shape)
    turned = np.asfortranarray(rng.normal(size=shape).astype(np.float32))
    back = rng.normal(size=shape).astype(np.float32)[..., ::-1]
    return [full.astype(np.float32), *(a.astype(np.float32) for a in axes), np.float32(0.5), turned, back, full]


def holed(given: list[np.ndarray], seed: int = 1) -> list[np.ndarray]:
    """The first plane with NaN and infinity in places; the last with numbers that float32 does not hold."""
    rng = np.random.default_rng(seed)
    first, last = given[0].copy(), given[-1].copy()
    for value in (np.nan, np.inf, -np.inf):
        first[rng.random(first.shape) < 0.2] = value
    last[rng.random(last.shape) < 0.1] = 1e300
    return [first, *given[1:-1], last]


def stacked(given: list[np.ndarray]) -> np.ndarray:
    """(..., k) float32."""
    with np.errstate(over="ignore"):
        return np.stack(np.broadcast_arrays(*given), axis=-1).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_those_cells_that_have_all_predictors(shape: tuple[int, ...]) -> None:
    given = holed(fields(shape))
    whole = stacked(given)
    known = np.isfinite(whole).all(axis=-1)
    seen: list[np.ndarray] = []

    def predict(rows: np.ndarray) -> np.ndarray:
        seen.append(rows)
        return rows @ np.arange(1, rows.shape[1] + 1, dtype=np.float32)

    with threadpool_limits(1):  # so that the rows come one slab after the other
        found = planes.by_rows(given, predict)
    np.testing.assert_array_equal(np.concatenate([*seen, np.empty((0, len(given)), np.float32)]), whole[known])
    np.testing.assert_array_equal(np.isnan(found), ~known)
    expected = whole[known] @ np.arange(1, len(given) + 1)
    np.testing.assert_allclose(found[known], expected, rtol=1e-5, atol=1e-5)  # float32 sums


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(1, 200),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_slabs_change_nothing(shape: list[int], table: int, seed: int) -> None:
    given_ = holed(fields(tuple(shape), seed), seed)
    whole = stacked(given_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planes, "TABLE", table)
        found = planes.by_rows(given_, lambda rows: rows[:, 0])
    np.testing.assert_array_equal(found, np.where(np.isfinite(whole).all(axis=-1), whole[..., 0], np.nan))


def test_nothing_is_predicted_where_nothing_is_known() -> None:
    def never(rows: np.ndarray) -> np.ndarray:
        raise AssertionError(rows)

    found = planes.by_rows([np.full((3, 50), np.nan, np.float32), np.ones(50)], never)
    assert found.shape == (3, 50)
    assert np.isnan(found).all()
    assert planes.by_rows([np.ones((0, 4)), np.ones(4)], never).shape == (0, 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_outside_is_comparison_with_the_range(shape: tuple[int, ...]) -> None:
    given = holed(fields(shape))
    whole = stacked(given)
    low, high = np.full(len(given), -1.2, np.float32), np.linspace(0.4, 2, len(given)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = planes.outside(given, low, high, [None] * len(given))
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, ((whole < low) | (whole > high)).any(axis=-1))
    assert 0 < found.sum() < found.size or found.size < 50


@pytest.mark.parametrize("full", [False, True])
def test_a_plane_may_be_judged_by_itself_at_its_own_size(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if full:
        monkeypatch.setattr(planes, "SLAB", 8)
    classes = np.array([[1, 2, 3, 2, np.nan]], np.float32)
    other = np.array([[0], [9], [0]], np.float32)
    low, high = np.array([-np.inf, -1], np.float32), np.array([np.inf, 1], np.float32)
    found = planes.outside([np.repeat(classes, 3, axis=0), other], low, high, [lambda plane: plane == 2, None])
    np.testing.assert_array_equal(found, (classes == 2) | (other > 1))


@given(shape=st.lists(st.integers(0, 9), min_size=1, max_size=4), cells=st.integers(1, 200))
def test_slabs_cover_every_cell_once(shape: list[int], cells: int) -> None:
    count = np.zeros(shape, np.int64)
    for index in planes.slabs(tuple(shape), cells):
        assert count[index].size <= cells or count[index].size == 1
        count[index] += 1
    assert (count == 1).all()


def test_threads_follow_those_of_blas_and_pass_on_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        assert threads.blas_threads() == 1
    monkeypatch.setattr(threads, "blas_threads", lambda: 3)
    done: list[int] = []
    threads.in_threads(done.append, range(20), uses_blas=True)
    assert sorted(done) == list(range(20))
    with pytest.raises(ZeroDivisionError):
        threads.in_threads(lambda part: 1 // part, [1, 0, 2])
    given = holed(fields((3, 300, 400)))
    together = planes.by_rows(given, lambda rows: rows.sum(axis=1))
    monkeypatch.setattr(threads, "blas_threads", lambda: 1)
    np.testing.assert_array_equal(planes.by_rows(given, lambda rows: rows.sum(axis=1)), together)
