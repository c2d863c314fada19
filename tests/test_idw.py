"""Inverse distance weighting against hand-computed values, brute force and identities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale.errors import InputError
from smscale.fusion import interpolators
from smscale.fusion.interpolators import InverseDistance
from smscale.kernels.idw import inverse_distance
from smscale.kernels.sphere import chord_points, pair_distance

LON, LAT = np.linspace(100.0, 102.0, 15), np.linspace(31.0, 29.5, 11)


def network(n=30, t=8, seed=0, silent=0.0):
    rng = np.random.default_rng(seed)
    coords = np.column_stack([rng.uniform(100, 102, n), rng.uniform(29.5, 31, n)])
    values = rng.normal(0.25, 0.08, (n, t))
    values[rng.random(values.shape) < silent] = np.nan
    return coords, values


def brute(coords, values, targets, k, power):
    """(m, t): one target and one time after another."""
    distance = pair_distance(chord_points(*targets.T), chord_points(*coords.T))
    out = np.full((len(targets), values.shape[1]), np.nan)
    for i, row in enumerate(distance):
        for t, column in enumerate(values.T):
            known = np.flatnonzero(np.isfinite(column))
            known = known[np.argsort(row[known], kind="stable")][:k]
            if known.size:
                weight = row[known] ** -power
                out[i, t] = (weight * column[known]).sum() / weight.sum()
    return out


def test_two_points_by_hand():
    points, values = np.array([[0.0], [3.0]]), np.array([[1.0], [4.0]])
    out = inverse_distance(points, values, np.array([[1.0], [0.0], [7.0]]), 2, 2.0)
    assert out[0] == pytest.approx([(1 + 4 / 4) / (1 + 1 / 4), 1.0, (1 / 49 + 4 / 16) / (1 / 49 + 1 / 16)])


@pytest.mark.parametrize("silent", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("k", "power"), [(12, 2.0), (4, 1.5), (1, 2.0), (99, 3.0)])
def test_nearest_among_the_reporting_equals_brute_force(silent, k, power):
    coords, values = network(silent=silent)
    targets = np.random.default_rng(9).uniform([100, 29.5], [102, 31], (20, 2))
    ours = InverseDistance(k, power).fit(coords, values).predict(targets)
    assert ours == pytest.approx(brute(coords, values, targets, k, power), abs=1e-12, nan_ok=True)


def test_silent_stations_equal_a_refit_without_them():
    coords, values = network(silent=0.5)
    grid = InverseDistance().fit(coords, values).predict_grid(LON, LAT)
    for day in range(values.shape[1]):
        reported = np.isfinite(values[:, day])
        alone = InverseDistance().fit(coords[reported], values[reported, day]).predict_grid(LON, LAT)
        assert np.array_equal(grid[day], alone)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 15), power=st.floats(0.5, 4))
def test_constant_stays_and_the_field_stays_within_the_values(seed, k, power):
    coords, values = network(10, 2, seed)
    values[:, 1] = 0.3
    grid = InverseDistance(k, power).fit(coords, values).predict_grid(LON, LAT)
    assert grid[1] == pytest.approx(np.full((11, 15), 0.3), abs=1e-7)
    assert grid[0].min() >= values[:, 0].min() - 1e-7
    assert grid[0].max() <= values[:, 0].max() + 1e-7


def test_exact_at_reporting_stations_and_the_mean_where_two_share_a_place():
    coords, values = network(silent=0.2)
    coords[3] = coords[8]
    values[[3, 8], 0], values[[3, 8], 1] = [0.1, 0.3], [np.nan, 0.4]
    at_stations = InverseDistance().fit(coords, values).predict(coords)
    alone = np.isfinite(values)
    alone[[3, 8]] = False
    assert np.array_equal(at_stations[alone], values[alone])
    assert at_stations[3, :2] == pytest.approx([0.2, 0.4])
    assert np.isfinite(at_stations).all()


def test_many_sensors_at_one_silent_place_do_not_hide_the_others():
    coords = np.vstack([np.tile([[100.0, 30.0]], (40, 1)), [[100.5, 30.0]]])
    values = np.full((41, 1), np.nan)
    values[40] = 0.7
    assert InverseDistance(3).fit(coords, values).predict([[100.0, 30.0]])[0, 0] == pytest.approx(0.7)


def test_grid_is_the_same_in_any_tile_and_window(monkeypatch):
    coords, values = network(silent=0.4)
    ours = InverseDistance(5).fit(coords, values)
    whole = ours.predict_grid(LON, LAT)
    assert np.array_equal(ours.predict_grid(LON[2:9], LAT[4:6]), whole[:, 4:6, 2:9])
    assert np.array_equal(ours.at_times([5, 0]).predict_grid(LON, LAT), whole[[5, 0]])
    monkeypatch.setattr(interpolators, "TILE_NUMBERS", 1)
    assert np.array_equal(ours.predict_grid(LON, LAT), whole)


def test_leave_one_out_equals_brute_force():
    coords, values = network(12, 4, silent=0.3)
    left = InverseDistance(5).fit(coords, values).leave_one_out()
    for i in range(12):
        others = np.arange(12) != i
        again = InverseDistance(5).fit(coords[others], values[others]).predict(coords[i : i + 1])[0]
        assert left[i] == pytest.approx(np.where(np.isfinite(values[i]), again, np.nan), abs=1e-12, nan_ok=True)


def test_shapes_empty_days_and_cells_without_elevation():
    coords, values = network(6, 2)
    values[:, 1] = np.nan
    high = np.column_stack([coords, np.linspace(0, 3000, 6)])
    elevation = np.full((11, 15), 1000.0)
    elevation[2, 3] = np.nan
    grid = InverseDistance(vertical_scale=20.0).fit(high, values).predict_grid(LON, LAT, elevation)
    assert np.isnan(grid[1]).all()
    assert np.isnan(grid[0]).sum() == 1
    assert InverseDistance().fit(coords, values[:, 0]).predict_grid(LON, LAT).shape == (11, 15)
    assert InverseDistance(None).fit(coords, values[:, 0]).predict(coords).shape == (6,)


def test_wrong_settings_are_named():
    coords, values = network()
    with pytest.raises(InputError, match="power"):
        InverseDistance(power=0).fit(coords, values)
    with pytest.raises(InputError, match="neighbours"):
        InverseDistance(0).fit(coords, values)
    with pytest.raises(InputError, match="needs the elevation of every cell"):
        InverseDistance(vertical_scale=1.0).fit(np.column_stack([coords, coords[:, 0]]), values).predict_grid(LON, LAT)


@pytest.mark.parametrize("kind", ["spread", "clustered", "collinear", "duplicated", "at one place"])
@pytest.mark.parametrize(
    ("n", "k", "power", "silent"),
    [(40, 5, 2.0, 0.3), (90, 12, 2.0, 0.1), (8, 12, 1.5, 0.2), (70, 1, 3.0, 0.5), (90, 4, 2.0, 0.93)],
)
def test_field_of_a_grid_equals_brute_force(kind, n, k, power, silent):
    rng = np.random.default_rng(n + k)
    coords, values = network(n, 5, n, silent)
    if kind == "clustered":
        coords[: n // 2] = coords[0] + rng.normal(0, 0.003, (n // 2, 2))
    if kind == "collinear":
        coords[:, 1] = 30.0
    if kind == "duplicated":
        coords[n // 2 :] = coords[: n - n // 2]
    if kind == "at one place":
        coords[:] = coords[0]
    values[:, 3] = np.nan
    values[1:, 4] = np.nan  # at most one reports
    lon, lat = np.linspace(99.8, 102.2, 37), np.linspace(31.2, 29.3, 41)
    grid = InverseDistance(k, power).fit(coords, values).predict_grid(lon, lat)
    rows, cols = rng.integers(0, 41, 60), rng.integers(0, 37, 60)
    expected = brute(coords, values, np.column_stack([lon[cols], lat[rows]]), k, power)
    assert grid[:, rows, cols] == pytest.approx(expected.T, abs=1e-7, nan_ok=True)  # float32 of values near 0.3


def test_cells_at_stations_have_their_values_and_at_silent_ones_the_others():
    coords, values = network(20, 4, silent=0.3)
    coords[11] = coords[5]
    grid = np.stack([InverseDistance(6).fit(coords, values).predict_grid([lon], [lat])[:, 0, 0] for lon, lat in coords])
    assert grid == pytest.approx(InverseDistance(6).fit(coords, values).predict(coords), abs=1e-7)
    alone = np.isfinite(values)
    alone[[5, 11]] = False
    assert np.array_equal(grid[alone], values[alone].astype(np.float32))


@pytest.mark.parametrize("silent", [0.0, 0.5, 0.85])
def test_what_is_wanted_is_as_if_all_were(silent):
    """Patterns of several octaves of silence share candidates; two ways share their mask."""
    coords, values = network(40, 12, 3, silent)
    values[:, 4:8] = np.where(np.random.default_rng(4).random((40, 4)) < 0.7, np.nan, values[:, 4:8])
    values[7] = np.nan  # a station that never reports
    model = InverseDistance(6).fit(coords, values)
    lon, lat = np.linspace(100, 102, 50), np.linspace(31, 29.5, 40)
    whole = model.predict_grid(lon, lat)
    shifted = np.hypot(*np.meshgrid(lon - 101, lat - 30))
    wanted = np.stack([(shifted + 0.1 * t) % 0.5 < 0.1 for t in range(6)])
    found, where = model.predict_wanted(lon, lat, wanted), np.concatenate([wanted, wanted])
    np.testing.assert_array_equal(found[where], whole[where])
    beside = found[~where]
    assert np.isnan(beside).any()
    np.testing.assert_array_equal(beside[~np.isnan(beside)], whole[~where][~np.isnan(beside)])
    np.testing.assert_array_equal(model.predict_wanted(lon, lat, None), whole)
