"""Ordinary kriging against gstat's printed results, PyKrige, brute force and identities."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale.errors import InputError
from smscale.fusion import interpolators
from smscale.fusion.interpolators import Kriging
from smscale.fusion.variogram import Variogram
from smscale.grid import EARTH_RADIUS_KM
from smscale.kernels import kriging, kriging_points, kriging_sets
from smscale.kernels.covariance import MODELS
from smscale.kernels.sphere import chord_points, pair_distance

LON, LAT = np.linspace(100.0, 102.0, 21), np.linspace(31.0, 29.5, 17)


def network(n=25, t=6, seed=0, silent=0.0):
    rng = np.random.default_rng(seed)
    coords = np.column_stack([rng.uniform(100, 102, n), rng.uniform(29.5, 31, n)])
    values = rng.normal(0.25, 0.08, (n, t))
    values[rng.random(values.shape) < silent] = np.nan
    return coords, values


def model(nugget=0.001, **settings):
    return Kriging(Variogram("exponential", 0.005, 40.0, nugget), **settings)


@pytest.fixture(scope="module")
def meuse(request):
    import rdata

    real = request.getfixturevalue("real")
    table = rdata.read_rda(str(real("geostat/sp_meuse.rda")))["meuse"]
    return table[["x", "y"]].to_numpy(float), table["zinc"].to_numpy(float)


# gstat_blockkr.Rout.save: krige(zinc ~ 1, meuse, new.locs, vgm(1.34e5, "Sph", 800, nug = 2.42e4), block = c(40, 40), nmax = 40),
# gstat's own 4 x 4 Gauss quadrature over the block; the last row is its run with a regular 4 x 4 discretisation.
GSTAT = [
    (181170, 333250, 268.7576, 19447.67, "gauss"),
    (180310, 332189, 663.4915, 16991.33, "gauss"),
    (180205, 331707, 251.4606, 21579.71, "gauss"),
    (178673, 330066, 532.5776, 73807.91, "gauss"),
    (178770, 330675, 664.4039, 23589.17, "gauss"),
    (178270, 331075, 565.5436, 155113.23, "gauss"),
    (181170, 333250, 268.7324, 19568.76, "regular"),
]


@pytest.mark.real_data
@pytest.mark.parametrize(("x", "y", "prediction", "variance", "rule"), GSTAT)
def test_block_mean_of_meuse_is_what_gstat_prints(meuse, x, y, prediction, variance, rule):
    points, zinc = meuse
    nodes, weights = np.polynomial.legendre.leggauss(4)
    if rule == "regular":
        nodes, weights = np.array([-0.75, -0.25, 0.25, 0.75]), np.full(4, 0.5)
    block = np.array([(x + 20 * a, y + 20 * b) for a in nodes for b in nodes])
    share = np.outer(weights, weights).ravel() / 4
    near = np.argsort(np.hypot(*(points - (x, y)).T))[:40]
    variogram = Variogram("spherical", 1.34e5, 800, 2.42e4)
    k = variogram.covariance(pair_distance(points[near], points[near])) + 2.42e4 * np.eye(40)
    mean, coefficients, _ = kriging_sets.solve_dual(k, zinc[near][:, None])
    cross = variogram.covariance(pair_distance(points[near], block)) @ share
    w, lagrange = kriging.ordinary_weights(k, cross[:, None])
    within = share @ variogram.covariance(pair_distance(block, block)) @ share
    assert mean[0] + cross @ coefficients[:, 0] == pytest.approx(prediction, abs=6e-5)  # printed digits
    assert within - w[:, 0] @ cross + lagrange[0] == pytest.approx(variance, abs=6e-3)


PYKRIGE = {"exponential": 3.0, "spherical": 1.0, "gaussian": 7.0 / 4.0}  # its range over gstat's


@pytest.mark.parametrize("family", PYKRIGE)
@pytest.mark.parametrize("neighbours", [None, 12])
def test_field_and_variance_agree_with_pykrige(family, neighbours):
    from pykrige.ok import OrdinaryKriging

    rng = np.random.default_rng(3)
    points, z, targets = rng.uniform(0, 100, (40, 2)), rng.normal(size=40), rng.uniform(0, 100, (200, 2))
    peer = OrdinaryKriging(*points.T, z, family, {"psill": 1.2, "range": 30.0 * PYKRIGE[family], "nugget": 0.1})
    near = {} if neighbours is None else {"n_closest_points": neighbours, "backend": "loop"}
    expected, expected_variance = peer.execute("points", *targets.T, **near)
    variogram = Variogram(family, 1.2, 30.0, 0.1)
    ours = Kriging(variogram, neighbours)._fit_points(points, z[:, None])
    assert ours._field(targets)[0] == pytest.approx(np.asarray(expected), abs=1e-9)
    assert ours._variance(targets)[0] + 0.1 == pytest.approx(np.asarray(expected_variance), abs=1e-9)
    exact = Kriging(variogram, neighbours, exact=True)._fit_points(points, z[:, None])
    assert exact._variance(targets)[0] == pytest.approx(np.asarray(expected_variance), abs=1e-9)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("family", ["exponential", "spherical", "gaussian", "matern"])
def test_field_and_variance_agree_with_gstools(family, exact):
    """Its Matern model has sqrt(smoothness) in the distance, and its variance without `exact` is the signal's plus the nugget."""
    gstools = pytest.importorskip("gstools")
    rng = np.random.default_rng(4)
    points, z, targets = rng.uniform(0, 100, (30, 2)), rng.normal(size=30), rng.uniform(0, 100, (60, 2))
    extra = {"gaussian": {"rescale": 1.0}, "matern": {"nu": 0.8}}.get(family, {})
    theirs = getattr(gstools, family.capitalize())(dim=2, var=1.2, len_scale=30.0, nugget=0.1, **extra)
    expected, expected_variance = gstools.krige.Ordinary(theirs, points.T, z, exact=exact)(targets.T)
    length = 30.0 / np.sqrt(0.8) if family == "matern" else 30.0
    ours = Kriging(Variogram(family, 1.2, length, 0.1, 0.8), exact=exact)._fit_points(points, z[:, None])
    assert ours._field(targets)[0] == pytest.approx(expected, abs=1e-9)
    assert ours._variance(targets)[0] + (0.0 if exact else 0.1) == pytest.approx(expected_variance, abs=1e-9)


def test_chord_is_the_sphere_s_and_height_counts_by_the_vertical_scale():
    quarter = pair_distance(chord_points([0.0], [0.0]), chord_points([90.0], [0.0]))[0, 0]
    assert quarter == pytest.approx(EARTH_RADIUS_KM * np.sqrt(2), rel=1e-14)
    across = pair_distance(chord_points([179.9], [10.0]), chord_points([-179.9], [10.0]))[0, 0]
    assert across == pytest.approx(2 * EARTH_RADIUS_KM * np.cos(np.deg2rad(10)) * np.sin(np.deg2rad(0.1)), rel=1e-12)
    up = pair_distance(chord_points([100.0], [30.0], [0.0], 20.0), chord_points([100.0], [30.0], [1500.0], 20.0))[0, 0]
    assert up == pytest.approx(30.0, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    level=st.floats(-5, 5), seed=st.integers(0, 1000), family=st.sampled_from(MODELS), near=st.sampled_from([None, 5])
)
def test_constant_in_is_constant_out(level, seed, family, near):
    coords, _ = network(12, 1, seed)
    ours = Kriging(Variogram(family, 1.0, 30.0, 0.1), near).fit(coords, np.full(12, level))
    assert ours.predict_grid(LON, LAT) == pytest.approx(np.full((17, 21), level), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), family=st.sampled_from(MODELS))
def test_weights_sum_to_one_and_give_the_dual_prediction(seed, family):
    rng = np.random.default_rng(seed)
    points, targets, z = rng.uniform(0, 100, (15, 2)), rng.uniform(0, 100, (7, 2)), rng.normal(size=(15, 1))
    variogram = Variogram(family, 1.0, 25.0, 0.05, smoothness=0.8)
    k = variogram.covariance(pair_distance(points, points)) + 0.05 * np.eye(15)
    cross = variogram.covariance(pair_distance(points, targets))
    weights, _ = kriging.ordinary_weights(k, cross)
    mean, coefficients, _ = kriging_sets.solve_dual(k, z)
    assert weights.sum(axis=0) == pytest.approx(np.ones(7), abs=1e-10)
    assert weights.T @ z == pytest.approx(mean + cross.T @ coefficients, abs=1e-9)


@pytest.mark.parametrize("neighbours", [None, 6])
@pytest.mark.parametrize("nugget", [0.0, 0.004])
def test_exact_honours_every_value_with_zero_variance(neighbours, nugget):
    coords, values = network(silent=0.2)
    field, variance = model(nugget, neighbours=neighbours, exact=True).fit(coords, values).predict(coords, True)
    reported = np.isfinite(values)
    assert field[reported] == pytest.approx(values[reported], abs=1e-9)
    assert variance[reported] == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(field).all()


def test_nugget_as_measurement_error_keeps_the_field_continuous_at_a_station():
    coords, values = network()
    ours = model(0.01).fit(coords, values)
    assert ours.predict(coords) == pytest.approx(ours.predict(coords + 1e-7), abs=1e-6)
    assert np.abs(ours.predict(coords) - values).max() > 0.01


@pytest.mark.parametrize("neighbours", [None, 7])
def test_silent_stations_equal_a_refit_without_them(neighbours):
    coords, values = network(silent=0.4)
    field, variance = model(neighbours=neighbours).fit(coords, values).predict(coords[:9] + 0.03, True)
    for day in range(values.shape[1]):
        reported = np.isfinite(values[:, day])
        alone = model(neighbours=neighbours).fit(coords[reported], values[reported, day])
        expected, expected_variance = alone.predict(coords[:9] + 0.03, True)
        assert field[:, day] == pytest.approx(expected, abs=1e-12)
        assert variance[:, day] == pytest.approx(expected_variance, abs=1e-12)


@pytest.mark.parametrize("neighbours", [None, 7])
@pytest.mark.parametrize("exact", [False, True])
def test_leave_one_out_equals_brute_force(neighbours, exact):
    coords, values = network(14, 4, silent=0.25)
    left = model(neighbours=neighbours, exact=exact).fit(coords, values).leave_one_out()
    for i in range(14):
        others = np.arange(14) != i
        brute = model(neighbours=neighbours, exact=exact).fit(coords[others], values[others]).predict(coords[i : i + 1])
        reported = np.isfinite(values[i])
        assert left[i, reported] == pytest.approx(brute[0, reported], abs=1e-12)
        assert np.isnan(left[i, ~reported]).all()


def test_leave_one_out_variance_is_that_of_the_value_left_out():
    coords, values = network(12, 1)
    ours = model(0.002).fit(coords, values)
    _, variance = kriging_sets.leave_one_out(ours._matrix(), ours.values_)
    _, signal = model(0.002).fit(coords[1:], values[1:]).predict(coords[:1], True)
    assert variance[0, 0] == pytest.approx(signal[0, 0] + 0.002, abs=1e-12)


@pytest.mark.parametrize("neighbours", [None, 5])
def test_grid_equals_points_for_any_tile_and_window(neighbours, monkeypatch):
    coords, values = network(silent=0.2)
    ours = model(neighbours=neighbours).fit(coords, values)
    whole = ours.predict_grid(LON, LAT)
    lon, lat = np.meshgrid(LON, LAT)
    points = ours.predict(np.column_stack([lon.ravel(), lat.ravel()])).T.reshape(whole.shape)
    assert whole == pytest.approx(points, abs=1e-7)  # float32 of values near 0.3
    assert ours.predict_grid(LON[3:11], LAT[5:9]) == pytest.approx(whole[:, 5:9, 3:11], abs=6e-8)
    monkeypatch.setattr(interpolators, "TILE_NUMBERS", 1)
    assert ours.predict_grid(LON, LAT) == pytest.approx(whole, abs=6e-8)


def test_neighbours_of_all_stations_is_the_global_field():
    coords, values = network(silent=0.3)
    local, everywhere = model(neighbours=99).fit(coords, values), model().fit(coords, values)
    assert local.predict_grid(LON, LAT) == pytest.approx(everywhere.predict_grid(LON, LAT), abs=1e-7)
    assert local.predict(coords, True)[1] == pytest.approx(everywhere.predict(coords, True)[1], abs=1e-12)


@pytest.mark.parametrize("neighbours", [None, 4])
def test_days_with_one_station_or_none(neighbours):
    coords, values = network(5, 3)
    values[:, 1], values[1:, 2] = np.nan, np.nan
    ours = model(neighbours=neighbours).fit(coords, values)
    grid = ours.predict_grid(LON, LAT)
    assert np.isfinite(grid[0]).all()
    assert np.isnan(grid[1]).all()
    assert grid[2] == pytest.approx(np.full((17, 21), values[0, 2]), abs=1e-7)
    assert np.isnan(ours.leave_one_out()[:, 1:]).all()
    assert np.isnan(ours.predict(coords, True)[1][:, 1]).all()


@pytest.mark.parametrize("exact", [False, True])
def test_stations_at_one_place(exact):
    coords, values = network(10, 3)
    coords[4] = coords[7]
    ours = model(0.001, exact=exact).fit(coords, values)
    assert len(ours.points_) == (9 if exact else 10)
    at_place = ours.predict(coords[4:5])[0]
    if exact:
        assert at_place == pytest.approx((values[4] + values[7]) / 2, abs=1e-9)
        assert ours.leave_one_out()[4] == pytest.approx(ours.leave_one_out()[7])
    merged, mean = np.delete(coords, 7, axis=0), values.copy()
    mean[4] = (values[4] + values[7]) / 2
    if not exact:  # two measurements of one place are one with half the error variance
        k = model(0.001).fit(merged, mean[np.arange(10) != 7])._matrix()
        k[4, 4] -= 0.0005
        level, b, _ = kriging_sets.solve_dual(k, mean[np.arange(10) != 7])
        cross = ours._covariance(pair_distance(chord_points(*merged.T), chord_points(*coords[4:5].T)))
        assert at_place == pytest.approx(level + cross[:, 0] @ b, abs=1e-10)


def test_all_stations_at_one_place_give_their_mean():
    coords = np.tile([[101.0, 30.0]], (4, 1))
    for nugget in (0.0, 0.001):
        grid = model(nugget).fit(coords, [0.1, 0.2, 0.3, 0.4]).predict_grid(LON, LAT)
        assert grid == pytest.approx(np.full((17, 21), 0.25), abs=1e-7)


def test_pure_nugget_gives_the_mean_of_the_reporting_stations():
    coords, values = network(silent=0.3)
    ours = Kriging(Variogram("exponential", 0.0, 10.0, 1.0)).fit(coords, values)
    assert ours.predict(coords[:2]) == pytest.approx(np.tile(np.nanmean(values, axis=0), (2, 1)), abs=1e-12)


def test_near_singular_system_is_lifted_and_says_so():
    coords = np.column_stack([100 + np.arange(30) * 0.002, np.full(30, 30.0)])
    ours = Kriging(Variogram("gaussian", 1.0, 200.0)).fit(coords, np.sin(np.arange(30) / 10))
    assert 0 < ours.jitter_ <= kriging.JITTERS[-1]
    assert np.isfinite(ours.predict(coords)).all()


def test_elevation_counts_by_the_vertical_scale():
    coords, values = network(10, 2)
    high = np.column_stack([coords, np.linspace(0, 4000, 10)])
    flat = model().fit(coords, values).predict(coords)
    assert model().fit(high, values).predict(high) == pytest.approx(flat)  # None: elevation does not count
    assert model(vertical_scale=0.0).fit(high, values).predict(high) == pytest.approx(flat, abs=1e-12)
    ours = model(vertical_scale=30.0).fit(high, values)
    elevation = np.full((17, 21), 2000.0)
    elevation[3, 4] = np.nan
    grid = ours.predict_grid(LON, LAT, elevation)
    assert np.isnan(grid[:, 3, 4]).all()
    assert np.isnan(grid).sum() == 2
    assert grid[:, 8, 9] == pytest.approx(ours.predict([[LON[9], LAT[8], 2000.0]])[0], abs=1e-7)
    local = model(vertical_scale=30.0, neighbours=5).fit(high, values).predict_grid(LON, LAT, elevation)
    assert np.isnan(local).sum() == 2


def test_shapes_follow_the_values_and_out_is_filled():
    coords, values = network()
    one = model().fit(coords, values[:, 0])
    assert one.predict(coords).shape == (25,)
    assert one.predict(coords, True)[1].shape == (25,)
    assert one.leave_one_out().shape == (25,)
    assert one.predict_grid(LON, LAT).shape == (17, 21)
    many = model().fit(coords, values)
    assert many.predict(coords[:3]).shape == (3, 6)
    out = np.zeros((6, 17, 21), np.float32)
    assert many.predict_grid(LON, LAT, out=out) is out
    assert out[0] == pytest.approx(one.predict_grid(LON, LAT), abs=1e-7)


def test_pickled_and_cut_to_some_times_it_predicts_the_same():
    coords, values = network(silent=0.2)
    for neighbours in (None, 6):
        ours = model(neighbours=neighbours).fit(coords, values)
        grid = ours.predict_grid(LON, LAT)
        assert np.array_equal(pickle.loads(pickle.dumps(ours)).predict_grid(LON, LAT), grid)
        some = ours.at_times([4, 1])
        assert some.predict_grid(LON, LAT) == pytest.approx(grid[[4, 1]], abs=6e-8)
        assert some.leave_one_out() == pytest.approx(ours.leave_one_out()[:, [4, 1]], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("coords", "values", "words"),
    [
        (np.zeros((3, 4)), np.zeros(3), "coords must be"),
        (np.zeros((3, 2)), np.zeros(4), "one row per station"),
        (np.array([[100.0, np.nan]] * 3), np.zeros(3), "3 of 3 stations have no finite coordinates"),
        (np.array([[30.0, 100.0]] * 3), np.zeros(3), "longitude"),
        (np.array([[100.0, 30.0]] * 3), np.array([0.1, np.inf, 0.2]), "infinite"),
    ],
)
def test_wrong_input_is_named(coords, values, words):
    with pytest.raises(InputError, match=words):
        model().fit(coords, values)


def test_wrong_settings_are_named():
    coords, values = network()
    with pytest.raises(InputError, match="neighbours"):
        model(neighbours=0).fit(coords, values)
    with pytest.raises(InputError, match="vertical_scale"):
        model(vertical_scale=10.0).fit(coords, values)
    with pytest.raises(InputError, match="out must be float32"):
        model().fit(coords, values).predict_grid(LON, LAT, out=np.zeros((17, 21), np.float32))
    with pytest.raises(InputError, match="not fitted"):
        Kriging().predict(coords)
    with pytest.raises(InputError, match="do not vary"):
        Kriging().fit(coords, np.ones(25))
    with pytest.raises(InputError, match="partial_sill"):
        Variogram("exponential", -1.0, 10.0)
    with pytest.raises(InputError, match="variogram model"):
        Variogram("linear", 1.0, 10.0)


@pytest.mark.parametrize(("rows", "width", "points"), [(1, 1, 2), (1000, 3, 5), (3000, 12, 20), (5000, 2, 300)])
def test_equal_neighbour_sets_share_one_label_and_no_others_do(rows, width, points):
    sets = np.sort(np.random.default_rng(rows).integers(0, points, (rows, width)), axis=1)
    label, first = kriging_points._label_rows(sets)
    assert np.array_equal(sets[first][label], sets)
    assert len(first) == len(np.unique(sets, axis=0))


def test_mostly_silent_stations_in_the_local_form_find_the_nearest_that_report():
    coords, values = network(60, 5, silent=0.9)
    values[:, 4] = np.nan
    values[[7, 50], 4] = [0.1, 0.2]
    targets = coords[:30] + 0.01
    field = model(neighbours=4).fit(coords, values).predict(targets)
    for day in range(5):
        reported = np.isfinite(values[:, day])
        alone = model(neighbours=4).fit(coords[reported], values[reported, day]).predict(targets)
        assert field[:, day] == pytest.approx(alone, abs=1e-12)


def places(kind, n, rng):
    """Station coordinates of the awkward kinds."""
    coords = np.column_stack([rng.uniform(100, 102, n), rng.uniform(29.5, 31, n)])
    if kind == "clustered":
        coords[: 2 * n // 3] = coords[:3].repeat(-(-n // 3), axis=0)[: 2 * n // 3] + rng.normal(
            0, 0.003, (2 * n // 3, 2)
        )
    if kind == "collinear":
        coords[:, 1] = 30.0
    if kind == "duplicated":
        coords[n // 2 :] = coords[: n - n // 2]
    if kind == "at one place":
        coords[:] = coords[0]
    return coords


def brute(ours, coords, values, targets):
    """(t, m): one target and one time after another, from distances to all stations, sorted; ties by number."""
    points, cells = chord_points(*coords.T), chord_points(*targets.T)
    distance = pair_distance(cells, points)
    out = np.full((values.shape[1], len(targets)), np.nan)
    for day, column in enumerate(values.T):
        known = np.flatnonzero(np.isfinite(column))
        for i in range(len(targets) if known.size else 0):
            near = known[np.argsort(distance[i, known], kind="stable")][: ours.neighbours]
            k = ours.variogram_.covariance(pair_distance(points[near], points[near])) + ours.noise_ * np.eye(near.size)
            mean, b, _ = kriging_sets.solve_dual(k, column[near][:, None])
            out[day, i] = mean[0] + ours.variogram_.covariance(distance[i, near]) @ b[:, 0]
    return out


KINDS = ("spread", "clustered", "collinear", "duplicated", "at one place")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "near", "silent"), [(40, 5, 0.3), (90, 12, 0.1), (8, 12, 0.2), (70, 1, 0.5), (90, 4, 0.93)]
)
def test_local_field_of_a_grid_equals_brute_force(kind, n, near, silent):
    rng = np.random.default_rng(n + near)
    coords, values = places(kind, n, rng), rng.normal(0.25, 0.08, (n, 5))
    values[rng.random(values.shape) < silent] = np.nan
    values[:, 3] = np.nan
    values[1:, 4] = np.nan  # at most one reports
    lon, lat = np.linspace(99.8, 102.2, 37), np.linspace(31.2, 29.3, 41)
    ours = model(neighbours=near).fit(coords, values)
    grid = ours.predict_grid(lon, lat)
    rows, cols = rng.integers(0, 41, 60), rng.integers(0, 37, 60)
    expected = brute(ours, coords, values, np.column_stack([lon[cols], lat[rows]]))
    assert grid[:, rows, cols] == pytest.approx(expected, abs=1e-7, nan_ok=True)  # float32 of values near 0.3
    assert np.isnan(grid[3]).all()


@pytest.mark.parametrize("family", MODELS)
def test_local_field_of_a_dense_network_equals_points_and_days_on_their_own(family):
    rng = np.random.default_rng(5)
    coords = np.column_stack([rng.uniform(100, 101, 3000), rng.uniform(30, 31, 3000)])
    coords[:1500] = np.array([100.4, 30.4]) + rng.normal(0, 0.002, (1500, 2))  # more than one tile's share
    values = rng.normal(size=(3000, 3))
    values[rng.random(values.shape) < 0.2] = np.nan
    lon, lat = np.linspace(100.1, 100.7, 45), np.linspace(30.6, 30.1, 50)
    ours = Kriging(Variogram(family, 1.0, 20.0, 0.1, smoothness=0.8), 8).fit(coords, values)
    grid = ours.predict_grid(lon, lat)
    x, y = np.meshgrid(lon, lat)
    points = ours.predict(np.column_stack([x.ravel(), y.ravel()])).T.reshape(grid.shape)
    assert grid == pytest.approx(points, abs=1e-6)
    assert ours.at_times([2]).predict_grid(lon, lat)[0] == pytest.approx(grid[2], abs=1e-6)


def test_stations_that_fail_in_one_region_leave_the_others_as_they_were():
    coords, values = network(150, 40, seed=3)
    west = coords[:, 0] < 100.9
    values[np.ix_(west, np.arange(10, 20))] = np.nan  # so that candidates shared by all days run out there
    lon, lat = np.linspace(100, 102, 80), np.linspace(31, 29.5, 60)
    ours = model(neighbours=6).fit(coords, values)
    grid = ours.predict_grid(lon, lat)
    east = model(neighbours=6).fit(coords[~west], values[~west, 12]).predict_grid(lon, lat)
    assert grid[12] == pytest.approx(east, abs=1e-7)
    assert grid[3] == pytest.approx(model(neighbours=6).fit(coords, values[:, 3]).predict_grid(lon, lat), abs=1e-7)


def test_a_tie_goes_to_the_station_with_the_lower_number():
    coords = np.array([[100.5, 30.0], [99.5, 30.0], [100.5, 30.0], [99.5, 30.0]]) - [100.0, 30.0]
    values = np.array([1.0, 2.0, 3.0, 4.0])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        ours = model(neighbours=1).fit(coords[order], values[order])
        assert ours.predict_grid([0.0], [0.0])[0, 0] == values[order][0]
        assert ours.predict_grid([0.2], [0.0])[0, 0] == values[order][np.flatnonzero(coords[order, 0] > 0)[0]]


def test_singular_local_systems_are_lifted():
    coords = np.column_stack([100 + np.arange(30) * 0.002, np.full(30, 30.0)])
    smooth = Kriging(Variogram("gaussian", 1.0, 200.0), 8).fit(coords, np.sin(np.arange(30) / 10))
    assert np.isfinite(smooth.predict_grid(LON, LAT)).all()


def test_working_memory_does_not_grow_with_the_grid():
    import tracemalloc

    coords, values = network(80, 3, silent=0.1)
    ours = model(neighbours=8).fit(coords, values)
    peaks = []
    for rows in (200, 800):
        out = np.empty((3, rows, 200), np.float32)
        tracemalloc.start()
        ours.predict_grid(np.linspace(100, 102, 200), np.linspace(31, 29.5, rows), out=out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2**20
