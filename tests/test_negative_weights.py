"""Kriging without negative weights (Deutsch 1996): by hand, by brute force for fields, variances and points left out, within the values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale import Kriging, Variogram
from smscale.errors import InputError
from smscale.kernels.kriging_points import nonnegative
from smscale.kernels.sphere import chord_points, pair_distance

LON, LAT = np.linspace(100.0, 102.0, 70), np.linspace(31.0, 29.5, 60)
#: A smooth model almost without noise and clusters: many weights are negative.
SCREENING = Variogram("gaussian", 0.005, 60.0, 0.0002)


def network(n: int = 40, t: int = 4, seed: int = 0, silent: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    coords = np.column_stack([rng.uniform(100, 102, n), rng.uniform(29.5, 31, n)])
    coords[: n // 3] = coords[0] + rng.normal(0, 0.05, (n // 3, 2))
    values = rng.normal(0.25, 0.08, (n, t))
    values[rng.random(values.shape) < silent] = np.nan
    return coords, values


def model(neighbours: int = 9, exact: bool = False, variogram: Variogram = SCREENING) -> Kriging:
    return Kriging(variogram, neighbours, exact, negative_weights="zero")


def corrected(weights: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The published steps for one target, one after another."""
    negative = weights < 0
    if not negative.any():
        return weights
    size, level = np.abs(weights[negative]).mean(), covariance[negative].mean()
    out = weights.copy()
    out[negative] = 0.0
    out[(weights > 0) & (weights < size) & (covariance < level)] = 0.0
    return out / out.sum()


def brute(variogram: Variogram, points: np.ndarray, values: np.ndarray, target: np.ndarray, k: int, exact: bool):
    """Field and variance of one target and time, from the bordered system of all reporting points' nearest, and whether any
    weight was negative."""
    known = np.flatnonzero(np.isfinite(values))
    away = pair_distance(target[None], points)[0]
    near = known[np.argsort(away[known], kind="stable")][:k]
    covariance = variogram.covariance_with_nugget if exact else variogram.covariance
    among = covariance(pair_distance(points[near], points[near]))
    np.fill_diagonal(among, variogram.partial_sill + variogram.nugget)
    cross = covariance(away[near])
    system = np.block([[among, np.ones((near.size, 1))], [np.ones((1, near.size)), np.zeros((1, 1))]])
    raw = np.linalg.solve(system, np.append(cross, 1.0))[:-1]
    w = corrected(raw, cross)
    prior = variogram.partial_sill + (variogram.nugget if exact else 0.0)
    return w @ values[near], prior - 2 * w @ cross + w @ among @ w, bool((raw < 0).any())


def test_weights_by_hand() -> None:
    """Mean size of the negative ones 0.2, mean covariance 0.25: of the positive, 0.1 at 0.2 goes, 0.1 at 0.3 and 0.6 at 0.1 stay."""
    weights = np.array([[-0.1], [-0.3], [0.1], [0.1], [0.6], [0.6]])
    covariance = np.array([[0.2], [0.3], [0.2], [0.3], [0.1], [0.9]])
    nonnegative(weights, covariance)
    np.testing.assert_allclose(weights[:, 0], np.array([0, 0, 0, 0.1, 0.6, 0.6]) / 1.3, rtol=1e-14)


def test_where_all_positive_weights_are_small_and_far_they_stay() -> None:
    weights = np.array([[-1.2], [-0.6], *[[0.7]] * 4])
    covariance = np.array([[0.9], [0.9], *[[0.1]] * 4])
    nonnegative(weights, covariance)
    np.testing.assert_allclose(weights[:, 0], [0, 0, 0.25, 0.25, 0.25, 0.25], rtol=1e-14)


def test_positive_weights_are_left_alone() -> None:
    weights = np.array([[0.2], [0.0], [0.8]])
    nonnegative(weights, np.array([[0.1], [0.2], [0.9]]))
    np.testing.assert_array_equal(weights[:, 0], [0.2, 0.0, 0.8])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("k", [1, 4, 9, 99])
def test_field_and_variance_equal_brute_force_on_points_and_grids(exact: bool, k: int) -> None:
    coords, values = network()
    ours, points = model(k, exact).fit(coords, values), chord_points(*coords.T)
    rng = np.random.default_rng(k)
    rows, cols = rng.integers(0, LAT.size, 40), rng.integers(0, LON.size, 40)
    targets = np.column_stack([LON[cols], LAT[rows]])
    field, variance = ours.predict(targets, return_variance=True)
    grid, spread = ours.predict_grid(LON, LAT), ours.variance_grid(LON, LAT)
    negative = 0
    for i, place in enumerate(chord_points(*targets.T)):
        for day in range(values.shape[1]):
            z, v, any_negative = brute(SCREENING, points, values[:, day], place, k, exact)
            negative += any_negative
            assert field[i, day] == pytest.approx(z, abs=1e-8)
            assert variance[i, day] == pytest.approx(v, abs=1e-9)
            assert grid[day, rows[i], cols[i]] == pytest.approx(z, abs=1e-7)  # float32 of values near 0.3
            assert spread[day, rows[i], cols[i]] == pytest.approx(v, abs=1e-8)
    assert negative > 50 or k == 1


@pytest.mark.parametrize("exact", [False, True])
def test_points_left_out_equal_brute_force(exact: bool) -> None:
    coords, values = network(25)
    left = model(7, exact).fit(coords, values).leave_one_out()
    for i in range(25):
        others = np.arange(25) != i
        again = model(7, exact).fit(coords[others], values[others]).predict(coords[i : i + 1])[0]
        assert left[i] == pytest.approx(np.where(np.isfinite(values[i]), again, np.nan), abs=1e-10, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    family=st.sampled_from(["exponential", "spherical", "gaussian"]),
    length=st.floats(1.0, 400.0),
    noise=st.floats(1e-3, 1.0),
    exact=st.booleans(),
)
def test_the_field_stays_within_its_neighbours_values(
    seed: int, family: str, length: float, noise: float, exact: bool
) -> None:
    coords, values = network(18, 2, seed)
    ours = model(6, exact, Variogram(family, 0.005, length, 0.005 * noise)).fit(coords, values)
    lon, lat = LON[::9], LAT[::9]
    grid, points = ours.predict_grid(lon, lat), chord_points(*coords.T)
    x, y = np.meshgrid(lon, lat)
    away = pair_distance(chord_points(x.ravel(), y.ravel()), points)
    for day, column in enumerate(values.T):
        known = np.flatnonzero(np.isfinite(column))
        near = column[known[np.argsort(away[:, known], axis=1, kind="stable")[:, :6]]]
        field = grid[day].ravel()
        assert (field >= near.min(axis=1) - 1e-6).all()
        assert (field <= near.max(axis=1) + 1e-6).all()


def test_variance_of_corrected_weights_is_never_below_the_best() -> None:
    coords, values = network(silent=0.1)
    kept = Kriging(SCREENING, 9).fit(coords, values).variance_grid(LON, LAT)
    zeroed = model().fit(coords, values).variance_grid(LON, LAT)
    assert (zeroed - kept).min() > -1e-8
    assert (zeroed - kept).max() > 1e-5


def test_all_stations_together_keep_their_weights() -> None:
    coords, values = network()
    with pytest.raises(InputError, match="needs neighbours"):
        Kriging(SCREENING, negative_weights="zero").fit(coords, values)
    with pytest.raises(InputError, match="must be keep or zero"):
        Kriging(SCREENING, 9, negative_weights="none").fit(coords, values)
