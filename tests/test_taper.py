"""The weight that fades away from stations: by hand, by brute force, in any window, at times of silence."""

import numpy as np
import pytest

from smscale.kernels import taper
from smscale.kernels.sphere import chord_points, pair_distance

LON, LAT = 100.0 + 0.01 * np.arange(75), 31.0 - 0.01 * np.arange(50)


def network(n: int, times: int, silent: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 3) in and around the grid and who reports (n, times), nobody at the last time."""
    rng = np.random.default_rng(seed)
    reporting = rng.random((n, times)) >= silent
    reporting[:, -1] = False
    return chord_points(rng.uniform(99.5, 101.5, n), rng.uniform(30, 31.5, n)), reporting


def brute(points: np.ndarray, reporting: np.ndarray, km: float, lon: np.ndarray = LON, lat: np.ndarray = LAT):
    """(t, rows, cols): the cosine of the distance to the nearest of those that report, time by time."""
    y, x = np.meshgrid(lat, lon, indexing="ij")
    distance = pair_distance(points, chord_points(x.ravel(), y.ravel()))
    out = np.zeros((reporting.shape[1], y.size))
    for time, on in enumerate(reporting.T):
        if on.any():
            d = distance[on].min(axis=0)
            edge = (1 + np.cos(np.pi * (d - km) / km)) / 2
            out[time] = np.where(d <= km, 1.0, np.where(d >= 2 * km, 0.0, edge))
    return out.reshape(-1, lat.size, lon.size)


def test_one_station_by_hand() -> None:
    km = 10.0
    apart = np.array([0.0, 10.0, 12.5, 15.0, 17.5, 20.0, 400.0])
    half = np.sqrt(0.125)
    by_hand = [1.0, 1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.0]
    np.testing.assert_allclose(taper.taper(apart, km), by_hand, atol=1e-15)


@pytest.mark.parametrize("n", [1, 20, 300])
@pytest.mark.parametrize("km", [0.4, 8.0, 30.0, 900.0])
@pytest.mark.parametrize("silent", [0.2, 0.9])
def test_weights_are_those_of_the_nearest_that_reports(n: int, km: float, silent: float) -> None:
    points, reporting = network(n, 6, silent)
    found = taper.weights(LON, LAT, points, reporting, km)
    expected = brute(points, reporting, km)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
    y, x = np.meshgrid(LAT, LON, indexing="ij")
    at_points = taper.weights_at(chord_points(x.ravel(), y.ravel()), points, reporting, km)
    np.testing.assert_allclose(at_points.reshape(found.shape), expected, rtol=0, atol=1e-7)
    assert not found[-1].any()


def test_any_window_has_the_same_bytes_and_height_does_not_count() -> None:
    points, reporting = network(25, 5, 0.5)
    whole = taper.weights(LON, LAT, points, reporting, 12.0)
    for rows, cols in ((slice(0, 1), slice(0, 75)), (slice(7, 50), slice(31, 33)), (slice(49, 50), slice(74, 75))):
        np.testing.assert_array_equal(
            taper.weights(LON[cols], LAT[rows], points, reporting, 12.0), whole[:, rows, cols]
        )
    raised = np.column_stack([points, np.linspace(0, 90, 25)])
    np.testing.assert_array_equal(taper.weights(LON, LAT, raised, reporting, 12.0), whole)


@pytest.mark.parametrize("lon", [179.7 + 0.01 * np.arange(60), -180.3 + 0.01 * np.arange(60)])
@pytest.mark.parametrize("lat", [10.0 - 0.01 * np.arange(40), 90.0 - 0.01 * np.arange(40)])
def test_date_line_and_pole(lon: np.ndarray, lat: np.ndarray) -> None:
    points = chord_points([-179.9, 179.95, 10.0], [lat[0] - 0.1, lat[0] - 0.3, 89.9])
    reporting = np.array([[True, False], [True, True], [False, True]])
    np.testing.assert_allclose(
        taper.weights(lon, lat, points, reporting, 9.0), brute(points, reporting, 9.0, lon, lat), rtol=0, atol=1e-7
    )


def test_nobody_at_all_and_an_empty_window() -> None:
    nobody = np.zeros((0, 3), bool)
    assert not taper.weights(LON, LAT, np.empty((0, 3)), nobody, 5.0).any()
    points, reporting = network(5, 3, 0.0)
    assert taper.weights(LON[:0], LAT, points, reporting, 5.0).shape == (3, 50, 0)
    assert taper.weights_at(points[:0], points, reporting, 5.0).shape == (3, 0)
