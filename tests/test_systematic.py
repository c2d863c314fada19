"""Systematic error: distributions matched, means and their errors, and a persistent bias that is a field."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale.errors import InputError
from smscale.fusion.interpolators import Kriging
from smscale.fusion.residuals import Difference, Ratio
from smscale.fusion.scoring import raw_and_debiased
from smscale.fusion.solve import from_shared, pose, shared_arrays
from smscale.fusion.systematic import (
    MIN_CDF_PAIRS,
    QUANTILES,
    anomaly_interpolator,
    apply_quantiles,
    bias_interpolator,
    match_quantiles,
    mean_variance,
    station_means,
    systematic_residuals,
)
from smscale.fusion.variogram import Variogram
from smscale.kernels.sphere import chord_points, pair_distance
from smscale.schema import Status

BIAS = Variogram("exponential", 0.05**2, 250.0)
DAILY = Variogram("exponential", 0.03**2, 100.0)


def drawn(coords, model, t, rng):
    """(n, t) independent fields of a model at (n, 2) coords."""
    points = chord_points(*coords.T)
    root = np.linalg.cholesky(model.covariance(pair_distance(points, points)) + 1e-9 * np.eye(len(coords)))
    return root @ rng.normal(size=(len(coords), t))


def world(seed, n=100, t=50, silent=0.3, local=0.02):
    """Stations, what they report, the map at their cells and the truth: the map errs by a spatial bias and by daily fields."""
    rng = np.random.default_rng(seed)
    coords = np.column_stack([rng.uniform(98, 108, n), rng.uniform(26, 34, n)])
    background = 0.25 + 0.03 * rng.normal(size=(n, t))
    truth = background + drawn(coords, BIAS, 1, rng) + drawn(coords, DAILY, t, rng)
    observed = truth + local * rng.normal(size=(n, 1)) + 0.015 * rng.normal(size=(n, t))
    observed[rng.random((n, t)) < silent] = np.nan
    return coords, observed, background, truth


# -- distributions -----------------------------------------------------------------------------


@given(
    seed=st.integers(0, 1000),
    gain=st.floats(0.2, 3.0),
    offset=st.floats(-0.2, 0.2),
    n=st.integers(MIN_CDF_PAIRS, 300),
)
@settings(max_examples=40, deadline=None)
def test_a_linear_disagreement_is_matched_exactly_tails_included(seed, gain, offset, n):
    reference = np.random.default_rng(seed).gamma(3.0, 0.06, n)
    values = gain * reference + offset
    assert apply_quantiles(values, *match_quantiles(values, reference)) == pytest.approx(reference, abs=1e-10)


@given(seed=st.integers(0, 1000), n=st.integers(1, 200), levels=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_the_match_never_falls_and_is_finite_with_ties(seed, n, levels):
    rng = np.random.default_rng(seed)
    nodes = match_quantiles(rng.integers(0, levels, n) / 10, rng.normal(size=n))
    assert np.all(np.diff(nodes[0]) > 0)
    line = apply_quantiles(np.linspace(-1, 2, 301), *nodes)
    assert np.isfinite(line).all()
    assert np.all(np.diff(line) >= -1e-12)


def test_matched_values_have_the_distribution_of_the_map():
    rng = np.random.default_rng(0)
    background = rng.beta(2, 6, 4000)
    observed = np.sqrt(rng.permutation(background)) * 0.8  # another shape, and no correlation in time
    matched = apply_quantiles(observed, *match_quantiles(observed, background))
    at = np.array(QUANTILES)
    assert np.quantile(matched, at) == pytest.approx(np.quantile(background, at), abs=1e-4)
    between = np.linspace(0.12, 0.88, 30)
    assert np.quantile(matched, between) == pytest.approx(np.quantile(background, between), abs=0.01)
    assert np.isnan(apply_quantiles(np.array([np.nan]), *match_quantiles(observed, background))).all()


@pytest.mark.parametrize("kind", [Difference(), Ratio()])
def test_few_pairs_lose_the_network_mean_and_are_counted(kind):
    rng = np.random.default_rng(1)
    background = rng.uniform(0.1, 0.4, (3, 60))
    observed = background + 0.05
    observed[1, MIN_CDF_PAIRS - 1 :] = np.nan
    observed[2] = np.nan
    residuals, record, _ = systematic_residuals(observed, background, "cdf", kind)
    assert (record["stations_by_cdf"], record["stations_by_network_mean"]) == (1, 1)
    nothing = 0.0 if kind.name == "difference" else 1.0
    assert residuals[0] == pytest.approx(np.full(60, nothing), abs=1e-9)
    raw = kind.residual(observed, background)
    network = (np.nanmean(raw[0]) + np.nanmean(raw[1])) / 2
    expected = raw[1] - network if kind.name == "difference" else raw[1] / network
    assert residuals[1] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(residuals[2]).all()


def test_a_station_that_never_changes_is_only_shifted():
    values, reference = np.full(30, 0.4), np.linspace(0.1, 0.3, 30)
    assert apply_quantiles(np.array([0.4, 0.5]), *match_quantiles(values, reference)) == pytest.approx([0.2, 0.3])


def test_unknown_name_is_refused():
    with pytest.raises(InputError, match="spatial-bias"):
        systematic_residuals(np.zeros((1, 1)), np.zeros((1, 1)), "quantiles", Difference())


# -- means and their errors --------------------------------------------------------------------


def test_error_of_a_mean_is_the_variance_over_the_records_where_they_are_independent():
    residuals = np.array([[0.1, 0.3, np.nan, np.nan], [0.0, 0.2, 0.4, np.nan], [np.nan] * 4])
    means = station_means(residuals)
    assert means.correlation == 0.0
    variance = (0.02 + 0.08) / 3  # sums of squares 0.02 and 0.08, degrees of freedom 1 and 2
    assert means.mean == pytest.approx([0.2, 0.2, np.nan], nan_ok=True)
    assert means.error == pytest.approx([variance / 2, variance / 3, np.nan], nan_ok=True)
    assert means.records.tolist() == [2, 3, 0]


def test_error_of_means_of_days_that_resemble_one_another_counts_their_correlation():
    rng, rho, n, t = np.random.default_rng(2), 0.8, 1500, 60
    anomaly = np.empty((n, t))
    anomaly[:, 0] = rng.normal(size=n)
    for k in range(1, t):
        anomaly[:, k] = rho * anomaly[:, k - 1] + np.sqrt(1 - rho**2) * rng.normal(size=n)
    anomaly[rng.random((n, t)) < 0.4] = np.nan
    means = station_means(anomaly)
    true = np.nanmean(anomaly, axis=1).var()  # the true means are 0
    independent = np.mean(1 / means.records)
    assert means.error.mean() == pytest.approx(true, rel=0.25)
    assert true > 4 * independent


def test_kriging_of_means_with_errors_of_their_own_solves_the_dense_system():
    rng = np.random.default_rng(3)
    coords = np.column_stack([rng.uniform(100, 103, 25), rng.uniform(29, 32, 25)])
    values, error = rng.normal(size=25), rng.uniform(0.01, 0.8, 25)
    values[4] = error[4] = np.nan
    model = Variogram("exponential", 1.0, 80.0, 0.1)
    fitted = bias_interpolator(Kriging(), model, error).fit(coords, values)
    known, target = np.delete(np.arange(25), 4), np.array([[101.3, 30.4]])
    points = chord_points(*coords[known].T)
    k = np.zeros((25, 25))
    k[:24, :24] = model.covariance(pair_distance(points, points)) + np.diag(0.1 + error[known])
    k[24, :24] = k[:24, 24] = 1.0
    c = np.append(model.covariance(pair_distance(points, chord_points(*target.T)))[:, 0], 1.0)
    w = np.linalg.solve(k, c)
    assert fitted.predict(target)[0] == pytest.approx(w[:24] @ values[known], abs=1e-10)
    axes = np.array([target[0, 0], 102.0]), np.array([target[0, 1], 30.0])
    assert fitted.variance_grid(*axes)[0, 0] == pytest.approx(1.0 - w @ c, rel=1e-5)


def test_a_station_of_few_records_counts_less_in_the_bias_field():
    rng = np.random.default_rng(4)
    coords = np.column_stack([rng.uniform(100, 103, 30), rng.uniform(29, 32, 30)])
    residuals = 0.08 * rng.normal(size=(30, 40))
    residuals[0, 1:] = np.nan
    residuals[0, 0] = 0.2
    background = np.full(residuals.shape, 0.25)
    few = pose(
        coords, background + residuals, background, interpolator=Kriging(BIAS), systematic="spatial-bias"
    ).solve()
    residuals[0] = 0.2 + 0.08 * rng.normal(size=40)
    many = pose(
        coords, background + residuals, background, interpolator=Kriging(BIAS), systematic="spatial-bias"
    ).solve()
    here = [float(f.bias.evaluate_points(coords[:1], np.zeros(1, int))[0, 0]) for f in (few, many)]
    assert here[0] < 0.6 * here[1]
    assert few.left_out["stations_without_anomalies"] == 1


def simple(model, variance, points, values, target):
    """Field and variance at one point by the textbook: simple kriging, mean 0, with the common level in the covariance."""
    known = np.isfinite(values)
    c = variance + model.covariance(pair_distance(points[known], target[None]))[:, 0]
    k = variance + model.covariance(pair_distance(points[known], points[known])) + model.nugget * np.eye(known.sum())
    w = np.linalg.solve(k, c)
    return w @ values[known], model.partial_sill + variance - w @ c


@pytest.mark.parametrize(("variance", "level"), [(0.0, 0.0), (0.0004, 0.0), (0.0004, 1.0), (50.0, 0.0)])
def test_kriging_of_anomalies_is_simple_kriging_with_a_common_level(variance, level):
    rng = np.random.default_rng(3)
    coords = np.column_stack([rng.uniform(100, 103, 20), rng.uniform(29, 32, 20)])
    values = 0.03 * rng.normal(size=(20, 5)) + 0.02
    values[1:, 1] = np.nan
    values[10:, 2] = np.nan
    values[:, 3] = np.nan
    model = Variogram("exponential", 0.0009, 80.0, 0.0003)
    fitted = anomaly_interpolator(Kriging(), model, level, variance).fit(coords, level + values)
    lon, lat = np.linspace(100, 103, 7), np.linspace(32, 29, 6)
    variance, points = max(variance, 1e-6 * 0.0012), chord_points(*coords.T)
    field, errors = fitted.predict_grid(lon, lat), fitted.variance_grid(lon, lat)
    left = fitted.leave_one_out()
    for step in range(5):
        for row, col in ((0, 0), (3, 2), (5, 6)):
            target = chord_points(lon[col : col + 1], lat[row : row + 1])[0]
            expected = simple(model, variance, points, values[:, step], target)
            assert field[step, row, col] == pytest.approx(level + expected[0], abs=2e-7)
            assert errors[step, row, col] == pytest.approx(expected[1], rel=1e-4)
        others = np.delete(np.arange(20), 0)
        if np.isfinite(values[0, step]):
            expected = simple(model, variance, points[others], values[others, step], points[0])
            assert left[0, step] == pytest.approx(level + expected[0], abs=1e-8)
    if variance == 50.0:  # nothing is known of the mean: ordinary kriging
        assert field[:3] == pytest.approx(Kriging(model).fit(coords, values[:, :3]).predict_grid(lon, lat), abs=1e-5)


def test_variance_of_the_common_level_is_found():
    rng = np.random.default_rng(4)
    coords = np.column_stack([rng.uniform(100, 103, 40), rng.uniform(29, 32, 40)])
    points, model = chord_points(*coords.T), Variogram("exponential", 0.03**2, 60.0, 0.01**2)
    noise = drawn(coords, model, 600, rng) + 0.01 * rng.normal(size=(40, 600))
    noise[rng.random(noise.shape) < 0.6] = np.nan
    none = mean_variance(points, noise, [model], np.zeros(600, int))
    some = mean_variance(points, noise + 0.02 * rng.normal(size=600), [model], np.zeros(600, int))
    assert none < 0.1 * 0.02**2
    assert some == pytest.approx(0.02**2, rel=0.2)
    assert mean_variance(points, noise, [], np.full(600, -1)) == 0.0


# -- a bias that is a field --------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["difference", "ratio"])
def test_held_out_stations_gain_most_from_a_spatial_bias_and_raw_scores_say_so(residual):
    rmse = {}
    for seed in range(3):
        coords, observed, background, _ = world(seed)
        held = np.arange(len(coords)) % 4 == 0
        for how in ("none", "network-mean", "station-mean", "cdf", "spatial-bias"):
            field = pose(coords[~held], observed[~held], background[~held], residual, "kriging", how).solve()
            after = field.residual.apply(background[held], field.evaluate_points(coords[held]).T)
            scores = raw_and_debiased(observed[held], {"before": background[held], "after": after})
            rmse.setdefault(how, []).append(
                [scores[which][when]["rmse"] for which in ("raw", "debiased") for when in ("before", "after")]
            )
    raw_before, raw, debiased_before, debiased = (
        {how: np.mean([row[i] for row in rows]) for how, rows in rmse.items()} for i in range(4)
    )
    assert raw["spatial-bias"] < raw["none"] < raw["station-mean"]
    assert raw["spatial-bias"] < 0.8 * raw["station-mean"]
    assert raw["spatial-bias"] < 0.8 * raw_before["spatial-bias"]
    # what changes from day to day is followed as well by both: removed, the bias is no loss there
    assert debiased["spatial-bias"] == pytest.approx(debiased["station-mean"], rel=0.06)
    assert debiased["spatial-bias"] < debiased_before["spatial-bias"]


@pytest.mark.real_data
@pytest.mark.parametrize("residual", ["difference", "ratio"])
def test_a_spatial_bias_gains_most_at_real_stations_of_which_few_report(real, residual):
    import pandas as pd

    table = pd.read_parquet(real("stations/uscrn_daily_2020.parquet"))
    table = table[table["longitude"].between(-125, -66) & table["latitude"].between(24, 50)]
    days = table.pivot_table(index="wban", columns="lst_date", values="soil_moisture_5_daily")
    coords = table.groupby("wban")[["longitude", "latitude"]].first().loc[days.index].to_numpy()
    observed = np.where((days > 0) & (days < 0.7), days, np.nan)
    background = np.broadcast_to(np.nanmean(observed, axis=0), observed.shape)  # the day's mean: no detail in space
    few = np.where(np.random.default_rng(0).random(observed.shape) < 0.9, np.nan, observed)
    rmse = {}
    for how in ("none", "station-mean", "spatial-bias"):
        field = pose(coords, few, background, residual, systematic=how).solve()
        after = field.residual.apply(background, field.leave_one_out())
        scores = raw_and_debiased(few, {"before": background, "after": after})
        rmse[how] = [scores[which][when]["rmse"] for which in scores for when in ("before", "after")]
    assert rmse["spatial-bias"][1] < 0.9 * rmse["none"][1] < rmse["station-mean"][1]
    assert rmse["spatial-bias"][3] < rmse["spatial-bias"][2]
    assert rmse["none"][3] > rmse["none"][2]


@pytest.mark.parametrize("interpolator", ["kriging", "idw"])
def test_the_bias_field_reaches_steps_without_any_station(interpolator):
    coords, observed, background, _ = world(5, n=60)
    observed[:, 10:13] = np.nan
    field = pose(coords, observed, background, "difference", interpolator, "spatial-bias").solve()
    bit = Status.FUSED_KRIGING if interpolator == "kriging" else Status.FUSED_IDW
    assert (field.counts[10:13] == 0).all()
    assert (field.method[10:13] == bit).all()
    lon, lat = np.linspace(99, 107, 9), np.linspace(33, 27, 7)
    silent = field.evaluate(lon, lat, slice(10, 13))
    assert np.array_equal(silent[0], field.bias.evaluate(lon, lat, np.zeros(1, int))[0])
    other = field.evaluate(lon, lat, [3])[0]
    anomaly = field.daily.evaluate(lon, lat, np.array([3]))[0]
    assert other == pytest.approx(silent[0] + anomaly, abs=1e-7)
    assert field.to_dict()["systematic"]["by"] == interpolator


@pytest.mark.parametrize(("n", "by"), [(5, "idw"), (2, "mean"), (0, "none")])
def test_the_bias_field_steps_down_the_ladder(n, by):
    coords, observed, background, _ = world(6, n=12)
    field = pose(coords[:n], observed[:n], background[:n], systematic="spatial-bias").solve()
    assert field.to_dict()["systematic"]["by"] == by
    level = field.evaluate(np.array([100.0, 101.0]), np.array([30.0, 29.0]))
    assert np.isfinite(level).all() == (n > 0)


def test_ratio_bias_is_a_factor():
    coords, _, background, _ = world(7, n=40)
    observed = 1.4 * background
    field = pose(coords, observed, background, "ratio", "kriging", "spatial-bias").solve()
    assert field.evaluate_points(coords) == pytest.approx(np.full((50, 40), 1.4), abs=1e-6)


@pytest.mark.parametrize("taper_km", [None, 90.0])
def test_leave_one_out_leaves_the_station_out_of_bias_and_anomalies(taper_km):
    coords, observed, background, _ = world(8, n=40, t=12, silent=0.3)
    observed[3, 2:] = np.nan  # too few for anomalies of its own
    daily = Variogram("exponential", 0.0008, 100.0, 0.0003)
    field = pose(coords, observed, background, "difference", Kriging(daily), "spatial-bias", taper_km=taper_km).solve()
    residuals = observed - background
    means = station_means(residuals)
    anomalies = np.where((means.records >= 3)[:, None], residuals - means.mean[:, None], np.nan)
    persistent = field.bias.models.variograms[0]
    variance = max(field.daily.models.mean_variance, 1e-6 * 0.0011)
    points = chord_points(*coords.T)
    distance = pair_distance(points, points)
    np.fill_diagonal(distance, np.inf)
    expected = np.full(residuals.shape, np.nan)

    def weight(d):
        return 1.0 if taper_km is None else (1 + np.cos(np.pi * np.clip(d / taper_km - 1, 0, 1))) / 2

    for j in range(40):
        others = np.delete(np.arange(40), j)
        bias = bias_interpolator(Kriging(), persistent, means.error[others]).fit(coords[others], means.mean[others])
        left = [simple(daily, variance, points[others], anomalies[others, k], points[j])[0] for k in range(12)]
        level = bias.predict(coords[j : j + 1])[0] * weight(distance[j].min())
        for step in np.flatnonzero(np.isfinite(residuals[j])):
            near = distance[j][np.isfinite(anomalies[:, step]) & (np.arange(40) != j)].min()
            expected[j, step] = level + left[step] * weight(near)
            if weight(distance[j].min()) == 0 and weight(near) == 0:
                expected[j, step] = np.nan
    assert field.leave_one_out() == pytest.approx(expected, abs=1e-7, nan_ok=True)


def test_variance_of_bias_and_anomalies_is_as_large_as_the_errors_are():
    ratios, silent = [], []
    for seed in range(4):
        coords, observed, background, truth = world(20 + seed, n=160, t=40)
        observed[:, :8] = np.nan
        held = np.arange(160) % 3 == 0
        field = pose(coords[~held], observed[~held], background[~held], systematic="spatial-bias").solve()
        error = (truth - background)[held] - field.evaluate_points(coords[held]).T
        lon, lat = coords[held].T
        # one station a row and column of a grid: its diagonal
        order_lon, order_lat = np.argsort(lon), np.argsort(-lat)
        table = field.variance(lon[order_lon], lat[order_lat], np.array([2, 20]))
        at = table[:, np.argsort(order_lat), np.argsort(order_lon)]
        silent.append(np.mean(error[:, :8] ** 2) / at[0].mean())
        ratios.append(np.mean(error[:, 8:] ** 2) / at[1].mean())
    # the local part of a station is in neither, so truth is not the stations' own
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.4)
    assert np.mean(silent) == pytest.approx(1.0, abs=0.4)


def test_variance_of_a_ratio_is_that_of_a_product():
    coords, observed, background, _ = world(9, n=50, t=8)
    field = pose(coords, observed, background, "ratio", "kriging", "spatial-bias").solve()
    lon, lat, one = np.array([101.0, 104.0]), np.array([31.0, 28.0]), np.zeros(1, int)
    rng = np.random.default_rng(0)
    a = field.daily.evaluate(lon, lat, np.array([5]))[0, 0, 0]
    va = field.daily.variance(lon, lat, np.array([5]))[0, 0, 0]
    b, vb = field.bias.evaluate(lon, lat, one)[0, 0, 0], field.bias.variance(lon, lat, one)[0, 0, 0]
    product = (a + np.sqrt(va) * rng.normal(size=400_000)) * (b + np.sqrt(vb) * rng.normal(size=400_000))
    assert field.variance(lon, lat, [5])[0, 0, 0] == pytest.approx(product.var(), rel=0.02)


@pytest.mark.parametrize("systematic", ["none", "cdf", "spatial-bias"])
@pytest.mark.parametrize("interpolator", ["kriging", "idw", Kriging("spherical", neighbours=9), Kriging(DAILY)])
def test_plain_arrays_bring_the_same_field_back(tmp_path, systematic, interpolator):
    coords, observed, background, _ = world(10, n=30, t=20)
    coords = np.vstack([coords, coords[:1], [[np.nan, 30.0]]])
    observed, background = np.vstack([observed, observed[5:7]]), np.vstack([background, background[5:7]])
    labels = np.array([["a", "b"] * 10, ["c"] * 20])
    posed = pose(coords, observed, background, Ratio(floor=0.03), interpolator, systematic, labels, taper_km=150.0)
    field = posed.solve()
    np.savez(tmp_path / "field.npz", **shared_arrays(posed))
    with np.load(tmp_path / "field.npz", allow_pickle=False) as arrays:
        shared = from_shared(dict(arrays))
    again = shared.given(posed.residuals, posed.models.index).solve(field.daily.dual())
    lon, lat = np.linspace(98, 108, 12), np.linspace(34, 26, 9)
    assert np.array_equal(again.evaluate(lon, lat), field.evaluate(lon, lat), equal_nan=True)
    assert np.array_equal(again.variance(lon, lat), field.variance(lon, lat), equal_nan=True)
    assert np.array_equal(again.leave_one_out(), field.leave_one_out(), equal_nan=True)
    assert again.to_dict() == field.to_dict()
    assert (again.method == field.method).all()
    assert again.residual == Ratio(floor=0.03)


@pytest.mark.parametrize("systematic", ["none", "station-mean", "spatial-bias"])
@pytest.mark.parametrize("interpolator", ["kriging", "idw", Kriging("spherical", neighbours=9)])
def test_steps_solved_some_at_a_time_are_those_solved_together(systematic, interpolator):
    coords, observed, background, _ = world(11, n=30, t=20)
    observed[:, 7], observed[5:, 8] = np.nan, np.nan
    posed = pose(coords, observed, background, "difference", interpolator, systematic, ["a", "b"] * 10, taper_km=150.0)
    whole, lon, lat = posed.solve(), np.linspace(98, 108, 12), np.linspace(34, 26, 9)
    left = whole.leave_one_out()
    for steps in (slice(0, 7), slice(7, 9), slice(9, 20)):
        part = posed.at(steps).solve()
        assert (part.method == whole.method[steps]).all()
        assert (part.counts == whole.counts[steps]).all()
        np.testing.assert_allclose(part.evaluate(lon, lat), whole.evaluate(lon, lat, steps), atol=1e-7)
        np.testing.assert_allclose(part.variance(lon, lat), whole.variance(lon, lat, steps), atol=1e-7)
        np.testing.assert_allclose(part.leave_one_out(), left[:, steps], atol=1e-10)


def test_debiased_scores_take_off_each_station_s_own_difference():
    reference = np.array([[0.1, 0.2, 0.3, np.nan], [0.3, 0.2, 0.1, 0.2], [0.1, 0.2, np.nan, np.nan]])
    offset = np.array([[0.1], [-0.05], [0.3]])
    scores = raw_and_debiased(reference, {"before": reference + offset, "after": reference})
    assert scores["raw"]["before"]["n"] == 9
    assert scores["raw"]["before"]["rmse"] == pytest.approx(np.sqrt((3 * 0.01 + 4 * 0.0025 + 2 * 0.09) / 9))
    assert scores["debiased"]["before"]["n"] == 7
    assert scores["debiased"]["before"]["rmse"] == pytest.approx(0.0, abs=1e-12)
    assert scores["raw"]["after"]["rmse"] == 0.0
    with pytest.raises(InputError, match="alike"):
        raw_and_debiased(reference, {"x": reference[:2]})
