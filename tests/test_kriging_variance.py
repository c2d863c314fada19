"""Kriging variance of many times on a grid: the solution of each time by itself, identities, blocks, memory."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from smscale import Kriging, Variogram
from smscale.kernels import kriging, kriging_sets, kriging_variance, node_tiles
from smscale.kernels.sphere import chord_points, pair_distance

LON = 97.0 + 0.025 + 0.05 * np.arange(60)
LAT = 33.0 - 0.025 - 0.05 * np.arange(50)
#: A grid whose tiles have few stations near them; station 0 is on one of its cells.
FINE_LON, FINE_LAT = 97.675 + 0.01 * np.arange(96), 31.875 - 0.01 * np.arange(77)
#: Shares of the sill; what the weights of a Gaussian model without noise lose is the largest.
CLOSE = 1e-5


class Network:
    """Stations, one variogram, and which of them report when."""

    def __init__(self, variogram: Variogram, present: np.ndarray, exact: bool = False, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        n = len(present)
        places = np.column_stack([rng.uniform(96, 100.5, n), rng.uniform(30, 34, n)])
        places[0] = LON[20], LAT[30]
        self.points, self.present = chord_points(*places.T), present
        self.kink = variogram.range if variogram.model == "spherical" else np.inf
        self.sill = variogram.partial_sill + variogram.nugget
        self.prior = self.sill if exact else variogram.partial_sill
        self.covariance = variogram.covariance_with_nugget if exact else variogram.covariance
        self.k = self.covariance(pair_distance(self.points, self.points))
        np.fill_diagonal(self.k, self.sill)
        distinct = np.unique(present, axis=1).T
        same = (present[:, :, None] == distinct.T[:, None]).all(axis=0)
        patterns = [(np.flatnonzero(p), np.flatnonzero(same[:, i])) for i, p in enumerate(distinct) if p.any()]
        self.system = kriging_variance.solve(self.points, self.covariance, self.k, self.prior, patterns)

    def grid(self, lon: np.ndarray = LON, lat: np.ndarray = LAT) -> np.ndarray:
        out = np.full((self.present.shape[1], lat.size, lon.size), -9.0, np.float32)
        kriging_variance.fill(out, cells_of(lon, lat), self.system)
        return out

    def by_nodes(self, lon: np.ndarray = FINE_LON, lat: np.ndarray = FINE_LAT) -> np.ndarray:
        out = np.full((self.present.shape[1], lat.size, lon.size), -9.0, np.float32)
        kriging_variance.fill_grid(out, lon, lat, self.system, self.kink)
        return out

    def by_itself(self, time: int, lon: np.ndarray = LON, lat: np.ndarray = LAT) -> np.ndarray:
        """One time from the reporting stations alone, in float64."""
        on = self.present[:, time]
        cross = self.covariance(pair_distance(self.points[on], cells_of(lon, lat)(slice(None), slice(None))))
        return kriging.prediction_variance(self.k[np.ix_(on, on)], cross, self.prior).reshape(lat.size, lon.size)


def cells_of(lon: np.ndarray, lat: np.ndarray) -> Callable[[slice, slice], np.ndarray]:
    def targets(rows: slice, columns: slice) -> np.ndarray:
        y, x = np.meshgrid(lat[rows], lon[columns], indexing="ij")
        return chord_points(x.ravel(), y.ravel())

    return targets


def reporting(n: int, times: int, silent: float, seed: int = 1) -> np.ndarray:
    """(n, times) bool, as many silent at each time, others each time."""
    order = np.random.default_rng(seed).random((n, times)).argsort(axis=0)
    return order >= round(silent * n)


VARIOGRAMS = [
    Variogram("exponential", 0.002, 80.0, 0.0005),
    Variogram("exponential", 0.002, 900.0, 0.0005),
    Variogram("exponential", 0.002, 80.0),
    Variogram("spherical", 0.002, 150.0, 0.0005),
    Variogram("gaussian", 0.002, 120.0, 0.0005),
    Variogram("gaussian", 0.002, 150.0, 2e-6),
    Variogram("gaussian", 0.002, 300.0),
    Variogram("matern", 0.002, 40.0, 0.0005, smoothness=0.7),
    Variogram("matern", 0.002, 100.0, 1e-5, smoothness=2.5),
]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("silent", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("variogram", VARIOGRAMS, ids=lambda v: f"{v.model}-{v.range:g}-{v.nugget:g}")
def test_every_time_is_as_if_it_were_the_only_one(variogram: Variogram, silent: float, exact: bool) -> None:
    network = Network(variogram, reporting(60, 6, silent), exact)
    assert node_tiles.suits(FINE_LON, FINE_LAT)
    for grid, axes in ((network.grid(), (LON, LAT)), (network.by_nodes(), (FINE_LON, FINE_LAT))):
        assert grid.min() >= 0.0
        for time in range(6):
            assert np.abs(grid[time] - network.by_itself(time, *axes)).max() < CLOSE * network.sill


def test_at_nodes_far_parts_are_smooth_and_those_that_cancel_are_not_taken() -> None:
    """A tile is left to its cells where parts of both signs are much larger than the variance, or many stations are near."""

    def part(network: Network) -> object:
        tiles = node_tiles.tiles_of(FINE_LON, FINE_LAT, network.points)
        far = np.empty((6, node_tiles.NODES, tiles.columns[0].cells.stop), np.float32)
        batches = kriging_variance._batches(network.system)
        return kriging_variance._at_nodes(far, tiles, 0, 0, network.system, batches, network.kink)

    assert part(Network(VARIOGRAMS[0], reporting(60, 6, 0.1))) is not None
    assert part(Network(Variogram("gaussian", 0.002, 300.0), reporting(60, 6, 0.1))) is None
    assert part(Network(VARIOGRAMS[0], reporting(2000, 6, 0.1))) is None


def test_which_way_and_which_precision_a_time_takes() -> None:
    """Few silent: less the silent ones. Few reporting: those. Near to singular: each time by itself, in float64."""

    def ways(variogram: Variogram, silent: float) -> set[tuple[bool, str]]:
        shares = Network(variogram, reporting(60, 6, silent)).system.shares
        return {(share.lacking, share.root.dtype.name) for share in shares}

    assert ways(VARIOGRAMS[0], 0.1) == {(True, "float32")}
    assert ways(VARIOGRAMS[0], 0.9) == {(False, "float32")}
    assert ways(Variogram("gaussian", 0.002, 300.0), 0.1) == {(False, "float64")}


def test_a_silent_station_is_left_out_in_closed_form() -> None:
    """At its place, plus its own noise, the variance is the leave-one-out one of Dubrule (1983)."""
    variogram, n = VARIOGRAMS[0], 20
    network = Network(variogram, ~np.eye(n, dtype=bool))
    out = np.empty((n, 1, n), np.float32)
    kriging_variance.fill(out, lambda rows, columns: network.points[columns], network.system)
    _, variance = kriging_sets.leave_one_out(network.k, np.zeros((n, 1)))
    np.testing.assert_allclose(np.diag(out[:, 0]) + variogram.nugget, variance[:, 0], rtol=1e-6)


def test_one_station_by_hand() -> None:
    """The mean is its value: E(z(x) - z_1 - e)**2 = 2 (C(0) - c) + noise."""
    network = Network(VARIOGRAMS[0], np.ones((1, 1), bool))
    h = pair_distance(network.points, cells_of(LON, LAT)(slice(None), slice(None)))[0]
    by_hand = 2 * 0.002 * (1 - np.exp(-h / 80.0)) + 0.0005
    np.testing.assert_allclose(network.grid().ravel(), by_hand, rtol=1e-5)


def test_no_station_is_nan_and_no_other_time_suffers() -> None:
    present = reporting(30, 4, 0.2)
    present[:, 2] = False
    network = Network(VARIOGRAMS[0], present)
    nobody = Network(VARIOGRAMS[0], np.zeros((3, 2), bool))
    for grid, empty in ((network.grid(), nobody.grid()), (network.by_nodes(), nobody.by_nodes())):
        assert np.isnan(grid[2]).all()
        assert np.isfinite(grid[[0, 1, 3]]).all()
        assert np.isnan(empty).all()


@pytest.mark.parametrize("silent", [0.1, 0.9])
def test_an_exact_field_is_certain_at_a_station_just_while_it_reports(silent: float) -> None:
    present = reporting(60, 8, silent)
    present[0] = np.arange(8) % 2 == 0
    network = Network(VARIOGRAMS[0], present, exact=True)
    for at_station in (network.grid()[:, 30, 20] / 0.0025, network.by_nodes()[:, 40, 35] / 0.0025):
        assert at_station[::2].max() < 1e-6
        assert at_station[1::2].min() > 0.2


def test_a_station_more_never_adds_variance() -> None:
    present = np.arange(60)[:, None] < np.arange(1, 61)
    grid = Network(VARIOGRAMS[0], present).grid()
    assert np.diff(grid, axis=0).max() < 1e-6 * 0.0025
    assert grid[-1].mean() < 0.8 * grid[0].mean()


def test_times_that_share_their_stations_share_the_field() -> None:
    """Also if some stations never report, which then do not count."""
    present = np.zeros((60, 9), bool)
    present[:40] = True
    network = Network(VARIOGRAMS[0], present)
    assert len(network.system.shares) == 1
    assert len(network.system.points) == 40
    for grid in (network.grid(), network.by_nodes()):
        np.testing.assert_array_equal(grid, np.broadcast_to(grid[:1], grid.shape))
    np.testing.assert_allclose(network.grid()[0], network.by_itself(0), rtol=0, atol=1e-6 * network.sill)


def test_a_cell_does_not_depend_on_the_block_it_is_asked_for_with(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(VARIOGRAMS[0], np.hstack([reporting(60, 5, 0.1), reporting(60, 5, 0.9)]))
    whole = network.grid()
    rounding = 1e-6 * network.sill
    for rows, columns in ((slice(0, 7), slice(0, 60)), (slice(13, 50), slice(21, 22)), (slice(49, 50), slice(0, 3))):
        block = network.grid(LON[columns], LAT[rows])
        np.testing.assert_allclose(block, whole[:, rows, columns], rtol=0, atol=rounding)
    np.testing.assert_allclose(network.grid(LON, LAT[::-1])[:, ::-1], whole, rtol=0, atol=rounding)
    monkeypatch.setattr(kriging_variance, "TILE_CELLS", 47)
    np.testing.assert_allclose(network.grid(), whole, rtol=0, atol=rounding)
    for rows, columns in ((slice(0, 61), slice(0, 60)), (slice(13, 77), slice(21, 75))):
        block = network.by_nodes(FINE_LON[columns], FINE_LAT[rows])
        np.testing.assert_allclose(block, network.by_nodes()[:, rows, columns], rtol=0, atol=rounding)


def test_threads_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kriging_variance, "TILE_CELLS", 500)
    network = Network(VARIOGRAMS[0], reporting(60, 5, 0.1))
    for fill in (network.grid, network.by_nodes):
        fields = []
        for threads in (1, 2):
            with threadpool_limits(threads, user_api="blas"):
                fields.append(fill())
        np.testing.assert_array_equal(*fields)


def test_a_cell_without_a_place_is_nan_alone() -> None:
    network = Network(VARIOGRAMS[0], reporting(60, 3, 0.1))
    lon = LON.copy()
    lon[7] = np.nan
    grid, whole = network.grid(lon), network.grid()
    assert np.isnan(grid[:, :, 7]).all()
    np.testing.assert_allclose(np.delete(grid, 7, 2), np.delete(whole, 7, 2), rtol=0, atol=1e-6 * network.sill)


def test_working_memory_does_not_grow_with_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kriging_variance, "TILE_CELLS", 1024)
    network = Network(VARIOGRAMS[0], reporting(60, 3, 0.1))

    def peak(factor: int) -> int:
        lon = np.linspace(97, 100, 60 * factor)
        out = np.empty((3, LAT.size, lon.size), np.float32)
        tracemalloc.start()
        with threadpool_limits(1, user_api="blas"):
            kriging_variance.fill(out, cells_of(lon, LAT), network.system)
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    small, large = peak(3), peak(30)
    assert large < 1.2 * small


@pytest.mark.parametrize("settings", [{}, {"exact": True}, {"neighbours": 8}, {"vertical_scale": 50.0}], ids=str)
@pytest.mark.parametrize("days", [None, 6])
def test_a_grid_of_variances_is_what_single_points_have(settings: dict[str, Any], days: int | None) -> None:
    rng = np.random.default_rng(8)
    lon, lat = np.linspace(100, 101, 23), np.linspace(31, 30, 19)
    coords = np.column_stack([rng.uniform(100, 101, 25), rng.uniform(30, 31, 25), rng.uniform(200, 3000, 25)])
    values = rng.normal(0, 0.05, (25, days or 1))
    values[rng.random(values.shape) < 0.3] = np.nan
    model = Kriging(Variogram("exponential", 0.002, 40.0, 0.0005), **settings).fit(
        coords, values if days else values[:, 0]
    )
    height = rng.uniform(200, 3000, (19, 23))
    x, y = np.meshgrid(lon, lat)
    _, points = model.predict(np.column_stack([x.ravel(), y.ravel(), height.ravel()]), return_variance=True)
    grid = model.variance_grid(lon, lat, height)
    expected = points.T.reshape(grid.shape)
    np.testing.assert_allclose(grid, expected, rtol=0, atol=1e-5 * 0.002)
    out = np.empty(grid.shape, np.float32)
    assert model.variance_grid(lon, lat, height, out=out) is out
    np.testing.assert_array_equal(out, grid)
