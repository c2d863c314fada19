"""Kriging on a grid by Chebyshev nodes: equal to the sum over all stations cell by cell, whatever the block."""

import numpy as np
import pytest

from smscale import Kriging, Variogram
from smscale.kernels import node_tiles

LON = 97.0 + 0.005 + 0.01 * np.arange(230)
LAT = 33.0 - 0.005 - 0.01 * np.arange(210)
#: Rounding of float32 sums beside residuals of 0.05; a Gaussian field without much noise sums large numbers of both signs.
CLOSE, CLOSE_GAUSSIAN = 2e-7, 6e-7


def stations(n: int, times: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) places in and around the grid, one of them on a cell's centre; (n, times) values, some silent, one time all silent."""
    rng = np.random.default_rng(seed)
    places = np.column_stack([rng.uniform(96, 100.5, n), rng.uniform(30, 34, n)])
    places[0] = LON[100], LAT[90]
    values = rng.normal(0, 0.05, (n, times))
    values[rng.random(values.shape) < 0.3] = np.nan
    values[:, -1] = np.nan
    return places, values


def cell_by_cell(model: Kriging, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """The field by `predict`, which sums all stations for each target in float64."""
    x, y = np.meshgrid(lon, lat)
    return model.predict(np.column_stack([x.ravel(), y.ravel()])).T.reshape(-1, lat.size, lon.size)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "variogram",
    [
        Variogram("exponential", 0.002, 80.0, 0.0005),
        Variogram("exponential", 0.002, 4.0, 0.0005),
        Variogram("exponential", 0.002, 900.0, 0.0005),
        Variogram("spherical", 0.002, 150.0, 0.0005),
        Variogram("gaussian", 0.002, 120.0, 0.0005),
        Variogram("matern", 0.002, 40.0, 0.0005, smoothness=0.7),
        Variogram("matern", 0.002, 60.0, 0.0005, smoothness=2.5),
    ],
    ids=lambda v: f"{v.model}-{v.range:g}-{v.smoothness:g}",
)
def test_a_grid_is_what_single_points_are(variogram: Variogram, exact: bool) -> None:
    places, values = stations(40, 5)
    model = Kriging(variogram, exact=exact).fit(places, values)
    assert node_tiles.suits(LON, LAT)
    grid, points = model.predict_grid(LON, LAT), cell_by_cell(model, LON, LAT)
    assert np.isnan(grid[-1]).all()
    error = np.abs(grid[:-1] - points[:-1]).max()
    assert error < (CLOSE_GAUSSIAN if variogram.model == "gaussian" else CLOSE)


def test_weights_that_cancel_are_summed_in_float64() -> None:
    """A smooth field almost without noise through rough values: weights of thousands of both signs."""
    places, values = stations(60, 3)
    model = Kriging(Variogram("gaussian", 0.002, 150.0, 2e-6)).fit(places, values)
    weights = np.abs(model.coefficients_).sum(axis=0).max() * 0.002
    assert weights > 1e3 * np.nanmax(np.abs(values))
    points = cell_by_cell(model, LON, LAT)[:-1]
    assert np.abs(model.predict_grid(LON, LAT)[:-1] - points).max() < 2e-7 * np.abs(points).max() + 1e-7


def test_a_cell_does_not_depend_on_the_block_it_is_asked_for_with() -> None:
    places, values = stations(40, 4)
    model = Kriging(Variogram("exponential", 0.002, 80.0, 0.0005)).fit(places, values)
    whole = model.predict_grid(LON, LAT)
    for rows, cols in (
        (slice(0, 100), slice(0, 100)),
        (slice(37, 171), slice(111, 230)),
        (slice(90, 210), slice(3, 99)),
    ):
        np.testing.assert_allclose(model.predict_grid(LON[cols], LAT[rows]), whole[:, rows, cols], rtol=0, atol=3e-8)
    upside = model.predict_grid(LON, LAT[::-1])
    np.testing.assert_allclose(upside[:, ::-1], whole, rtol=0, atol=3e-8)


@pytest.mark.parametrize("west", [179.0, -180.9, 357.9])
def test_the_date_line_and_the_other_way_to_count_degrees(west: float) -> None:
    rng = np.random.default_rng(1)
    lon, lat = west + 0.005 + 0.01 * np.arange(200), 70.0 - 0.005 - 0.01 * np.arange(150)
    places = np.column_stack([rng.uniform(west - 1, west + 3, 20), rng.uniform(68, 70.5, 20)])
    places[:, 0] = (places[:, 0] + 180) % 360 - 180
    model = Kriging(Variogram("exponential", 0.002, 60.0, 0.0005)).fit(places, rng.normal(0, 0.05, (20, 3)))
    assert np.abs(model.predict_grid(lon, lat) - cell_by_cell(model, lon, lat)).max() < CLOSE


def test_single_values_fill_what_is_given_and_small_grids_are_summed_directly() -> None:
    places, values = stations(30, 2)
    model = Kriging(Variogram("exponential", 0.002, 80.0, 0.0005)).fit(places, values[:, 0])
    out = np.full((LAT.size, LON.size), 9.0, np.float32)
    assert model.predict_grid(LON, LAT, out=out) is out
    np.testing.assert_allclose(out, cell_by_cell(model, LON, LAT)[0], atol=CLOSE)
    coarse = np.arange(97.0, 99.0, 0.1)
    assert not node_tiles.suits(coarse, coarse - 66)


def test_threads_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_limits

    places, values = stations(40, 4)
    model = Kriging(Variogram("exponential", 0.002, 80.0, 0.0005)).fit(places, values)
    fields = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            fields.append(model.predict_grid(LON, LAT))
    np.testing.assert_array_equal(*fields)


@pytest.mark.parametrize("neighbours", [None, 4])
@pytest.mark.parametrize("model", ["exponential", "gaussian"])
def test_times_go_where_they_belong_in_a_longer_array(model: str, neighbours: int | None) -> None:
    """As those of one variogram among steps of two; what is near and what cancels is computed cell by cell."""
    places, values = stations(40, 20)
    kriging = Kriging(Variogram(model, 0.002, 80.0, 2e-6), neighbours=neighbours).fit(places, values)
    lon, lat = LON[:120], LAT[:130]
    steps = np.delete(np.arange(24), [0, 7, 8, 21])
    field, variance = (np.full((24, lat.size, lon.size), -9.0, np.float32) for _ in range(2))
    kriging.fill_steps(field, steps, lon, lat)
    kriging.fill_variance(variance, steps, lon, lat)
    np.testing.assert_array_equal(field[steps], kriging.predict_grid(lon, lat))
    np.testing.assert_array_equal(variance[steps], kriging.variance_grid(lon, lat))
    others = np.setdiff1d(np.arange(24), steps)
    assert (field[others] == -9.0).all()
    assert (variance[others] == -9.0).all()


def test_distances_from_nodes_are_kept_for_the_same_points_where_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    places, values = stations(30, 2)
    model = Kriging(Variogram("exponential", 0.002, 80.0, 0.0005)).fit(places, values)
    found = model.predict_grid(LON, LAT)
    tiles = node_tiles.tiles_of(LON, LAT, model.points_)
    assert tiles.seen(1, 2) is tiles.seen(1, 2)
    node_tiles._tiles_of.cache_clear()
    monkeypatch.setattr(node_tiles, "KEPT", 1000)
    tiles = node_tiles.tiles_of(LON, LAT, model.points_)
    assert tiles.seen(1, 2) is not tiles.seen(1, 2)
    np.testing.assert_array_equal(model.predict_grid(LON, LAT), found)
    node_tiles._tiles_of.cache_clear()
