"""Residual fields: pooling of variograms, stations at one place, the taper, the variance."""

import json

import numpy as np
import pytest
from fields import field_of
from scipy.optimize import nnls

from smscale.errors import InputError
from smscale.fusion import variogram
from smscale.fusion.apply import apply_residual_field
from smscale.fusion.field import evaluate_each
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.ladder import pooling_groups, pooling_levels
from smscale.fusion.residuals import Ratio
from smscale.fusion.solve import pose
from smscale.fusion.variogram import Variogram, empirical_variogram, fit_recorded, fit_variogram
from smscale.kernels.sphere import chord_points, pair_distance
from smscale.schema import Status

MODEL = Variogram("exponential", 0.003, 60.0, 0.0005)
LON, LAT = np.linspace(100.05, 102.95, 30), np.linspace(31.95, 30.05, 20)
TIME = np.datetime64("2017-08-30", "ns") + np.arange(8) * np.timedelta64(12, "h")


def network(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(100, 103, n), rng.uniform(30, 32, n)])


def correlated(coords, t, seed=0, model=MODEL):
    points = chord_points(*coords.T)
    root = np.linalg.cholesky(model.covariance(pair_distance(points, points)) + 1e-10 * np.eye(len(coords)))
    rng = np.random.default_rng(seed)
    return root @ rng.normal(size=(len(coords), t)) + np.sqrt(model.nugget) * rng.normal(size=(len(coords), t))


# -- variograms --------------------------------------------------------------------------------


def test_nugget_and_sill_in_closed_form_are_those_of_nnls():
    rng = np.random.default_rng(0)
    lag = np.linspace(5, 120, 12)
    weight = rng.uniform(0.1, 1, 12)
    weight /= weight.sum()
    reach = np.geomspace(1, 400, 25)
    rises = 1 - np.exp(-lag / reach[:, None])
    ends = set()
    for _ in range(40):
        height = np.abs(rng.normal(1, 0.3, 12) + rng.normal() * np.linspace(-1, 1, 12))
        nugget, sill, squares = variogram._nugget_and_sill(rises, height, weight)
        for i, rise in enumerate(rises):
            root = np.sqrt(weight)
            wanted, left = nnls(root[:, None] * np.column_stack([np.ones(12), rise]), root * height)
            assert squares[i] == pytest.approx(left**2, rel=1e-9, abs=1e-14)
            if reach[i] > 2:  # below, rise is 1 at every lag, and only the sum of the two is settled
                assert (nugget[i], sill[i]) == pytest.approx(tuple(wanted), abs=1e-6 * max(wanted))
            ends.add((nugget[i] > 0, sill[i] > 0))
    assert ends == {(True, True), (True, False), (False, True)}


def test_fits_that_the_data_do_not_settle_say_at_which_bound_they_stand():
    coords = network(60)
    points = chord_points(*coords.T)
    whole = fit_recorded(points, correlated(coords, 300))
    assert whole.at_bound == ""
    assert whole.pairs > 1000
    trend = np.repeat(((coords[:, 0] - 100) ** 2)[:, None], 2, axis=1)
    assert fit_recorded(points, trend, "exponential").at_bound == "range at its upper bound"
    noise = np.random.default_rng(0).normal(size=(60, 12))
    ends = [fit_recorded(points, noise[:, k : k + 1]).at_bound for k in range(12)]
    assert sum(end in ("no partial sill", "range at its lower bound") for end in ends) > 4


def test_many_stations_give_pairs_by_a_sample_of_them(monkeypatch):
    coords = network(300, 3)
    values = correlated(coords, 200, 3)
    whole = fit_variogram(coords, values)
    monkeypatch.setattr(variogram, "MAX_STATIONS", 150)
    sampled = fit_variogram(coords, values)
    assert empirical_variogram(coords, values)[2].sum() < 0.3 * 300 * 299 / 2 * 200
    assert sampled != whole
    assert sampled.range == pytest.approx(whole.range, rel=0.15)
    assert sampled == fit_variogram(coords, values)


def test_levels_of_pooling_run_from_the_finest():
    levels = pooling_levels(TIME, ["AM", "PM"] * 4, "step")
    assert levels.shape == (2, 8)
    assert len(set(levels[0])) == 8
    assert set(levels[1]) == {"JJA AM", "JJA PM", "SON AM", "SON PM"}
    assert np.array_equal(pooling_levels(TIME, ["AM", "PM"] * 4)[0], levels[1])
    assert pooling_levels(TIME, by="all").shape == (0, 8)
    with pytest.raises(InputError, match="pooling"):
        pooling_levels(TIME, by="month")
    with pytest.raises(InputError, match="pooling"):
        pooling_groups(TIME, by="week")


def test_a_step_has_its_own_variogram_where_its_data_settle_it_and_steps_down_where_not():
    coords = network(60)
    values = correlated(coords, 8, 4, Variogram("exponential", 0.003, 60.0, 0.0002))
    rng = np.random.default_rng(1)
    values[:, 1] = rng.permutation(correlated(coords, 1, 5, Variogram("exponential", 1e-9, 1.0, 0.003))[:, 0])
    values[6:, 2] = np.nan  # too few for a model of its own, and for kriging
    values[:, 3] = (coords[:, 0] - 100) ** 2 * 0.05  # a trend
    levels = pooling_levels(TIME, by="step")
    field = field_of(coords, values, "kriging", levels)
    records = [field.variograms[label] for label in levels[0]]
    assert records[2]["pooled"] == records[3]["pooled"] == "group"
    assert "stations report" in records[2]["passed_over"][0]
    assert records[3]["passed_over"] == ["step: range at its upper bound"]
    own = [r for r in records if r["pooled"] == "step"]
    assert own
    assert all(r["at_bound"] == "" for r in own)
    k = next(i for i, r in enumerate(records) if r["pooled"] == "step")
    alone = Kriging(fit_variogram(coords, values[:, k])).fit(coords, values[:, k]).predict_grid(LON, LAT)
    assert field.evaluate(LON, LAT, [k])[0] == pytest.approx(alone, abs=1e-7)
    fits = field.to_dict()["variogram_fits"]
    assert fits["step"] + fits["group"] + fits.get("all steps", 0) == 8
    assert fits["stepped_down"] == 8 - fits["step"]
    json.dumps(field.to_dict(), allow_nan=False)


def test_a_group_without_a_fit_takes_that_of_all_steps_and_none_is_left_to_inverse_distance():
    coords = network(30)
    values = correlated(coords, 8)
    values[:, 4:] = 0.02
    levels = np.array([["a"] * 4 + ["b"] * 4])
    field = field_of(coords, values, "kriging", levels)
    assert field.variograms["b"]["pooled"] == "all steps"
    assert "do not vary" in field.variograms["b"]["passed_over"][0]
    constant = field_of(coords, np.full((30, 2), 0.02), "kriging", levels[:, :2])
    assert constant.variograms["a"]["pooled"] == "none"
    assert (constant.method == Status.FUSED_IDW).all()


def test_groups_of_a_wrong_shape_are_named():
    with pytest.raises(InputError, match="label the 8 steps"):
        field_of(network(), correlated(network(), 8), groups=["a"] * 7)


# -- stations ----------------------------------------------------------------------------------


def test_stations_at_one_place_are_one_and_left_out_together():
    coords = network(15)
    background = np.full((17, 4), 0.25)
    observed = background + np.vstack([correlated(coords, 4), np.zeros((2, 4))])
    observed[15], observed[16] = observed[0] + 0.02, np.nan
    twice = np.vstack([coords, coords[:1], coords[3:4]])
    field = pose(twice, observed, background, interpolator=Kriging(MODEL)).solve()
    assert field.left_out["stations_sharing_a_place"] == 2
    assert field.counts.tolist() == [15] * 4
    single = observed[:15].copy()
    single[0] += 0.01
    alone = pose(coords, single, background[:15], interpolator=Kriging(MODEL)).solve()
    assert field.evaluate(LON, LAT) == pytest.approx(alone.evaluate(LON, LAT), abs=1e-8)
    left = field.leave_one_out()
    assert left[0] == pytest.approx(alone.leave_one_out()[0])
    assert np.array_equal(left[0], left[15])
    assert np.isnan(left[16]).all()


def test_what_cannot_be_used_is_left_out_and_counted():
    coords = network(12)
    coords[0] = np.nan
    coords[1, 1] = np.inf
    observed, background = np.full((12, 3), 0.3), np.full((12, 3), 0.25)
    observed[2, 0], background[3, 1] = np.inf, -np.inf
    observed[4], background[5] = np.nan, np.nan
    field = pose(coords, observed, background, interpolator="idw").solve()
    counted = {name: n for name, n in field.left_out.items() if n}
    assert counted == {
        "stations_without_coordinates": 2,
        "observations_infinite": 1,
        "background_infinite": 1,
        "stations_silent": 1,
        "stations_never_compared": 2,
        "observations_without_background": 4,
    }
    assert field.counts.tolist() == [7, 7, 8]
    assert field.evaluate(LON, LAT) == pytest.approx(np.full((3, LAT.size, LON.size), 0.05), abs=1e-7)
    assert np.isnan(field.leave_one_out()[:2]).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"observed": np.zeros((3, 2))}, "observed and background"),
        ({"observed": np.zeros(4)}, "observed and background"),
        ({"coords": np.array([[100.0, 130.0]] * 4)}, "longitude"),
        ({"coords": np.zeros((4, 5))}, "coords must be"),
        ({"taper_km": 0.0}, "taper_km"),
        ({"taper_km": np.nan}, "taper_km"),
        ({"systematic": "median"}, "systematic must be"),
        ({"interpolator": 3}, "interpolator must be"),
        ({"residual": np.zeros(3)}, "residual must be"),
        ({"residual": Ratio, "interpolator": "idw"}, "residual must be"),
        ({"interpolator": Kriging(vertical_scale=10.0)}, "vertical_scale"),
    ],
)
def test_arguments_that_cannot_be_are_named(given, words):
    usual = {"coords": network(4), "observed": np.full((4, 2), 0.3), "background": np.full((4, 2), 0.2)}
    with pytest.raises(InputError, match=words):
        pose(**{**usual, **given}).solve()


# -- the taper ---------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolator", [Kriging(MODEL), InverseDistance(), "kriging"])
@pytest.mark.parametrize("residual", ["difference", "ratio"])
def test_far_from_reporting_stations_the_map_stays_and_the_status_says_so(interpolator, residual):
    coords = network(12)
    coords[:, 0] = 100 + (coords[:, 0] - 100) / 4  # all in the west
    observed, background = np.full((12, 3), 0.3), np.full((12, 3), 0.25)
    observed[:, 1] = np.where(np.arange(12) == 2, 0.3, np.nan)
    observed[:, 2] = np.nan
    field = pose(coords, observed, background, residual, interpolator, taper_km=40.0).solve()
    found = field.evaluate(LON, LAT)
    y, x = np.meshgrid(LAT, LON, indexing="ij")
    distance = pair_distance(chord_points(x.ravel(), y.ravel()), chord_points(*coords.T))
    nothing, whole = (0.0, 0.05) if residual == "difference" else (1.0, 1.2)
    for step, used in ((0, np.arange(12)), (1, np.array([2]))):
        d = distance[:, used].min(axis=1).reshape(found.shape[1:])
        weight = (1 + np.cos(np.pi * np.clip(d / 40.0 - 1, 0, 1))) / 2
        assert np.array_equal(np.isnan(found[step]), weight == 0)
        near = weight > 0
        assert found[step][near] == pytest.approx(nothing + (whole - nothing) * weight[near], abs=1e-6)
        assert (weight[near] < 1).any()
    assert np.isnan(found[2]).all()
    ground = np.full(found.shape, 0.25)
    fused, status, counts = apply_residual_field(ground, found, field.method, field.residual)
    untouched = np.isnan(found)
    assert fused[untouched] == pytest.approx(0.25)
    assert (status[untouched] == int(Status.NOT_FUSED)).all()
    assert counts["not_fused"] == untouched.sum()
    points = np.column_stack([x.ravel(), y.ravel()])
    at = field.evaluate_points(points).reshape(found.shape)
    assert at == pytest.approx(found, abs=1e-6, nan_ok=True)


def test_taper_of_a_bias_field_counts_every_station_and_of_anomalies_those_that_report():
    coords = network(30)
    values = correlated(coords, 8) + 0.1
    background = np.full(values.shape, 0.2)
    observed = background + values
    observed[:, 5] = np.nan
    field = pose(coords, observed, background, "difference", Kriging(MODEL), "spatial-bias", taper_km=15.0).solve()
    silent = field.evaluate(LON, LAT, [5])[0]
    free = pose(coords, observed, background, "difference", Kriging(MODEL), "spatial-bias").solve()
    y, x = np.meshgrid(LAT, LON, indexing="ij")
    distance = pair_distance(chord_points(x.ravel(), y.ravel()), chord_points(*coords.T)).min(axis=1)
    weight = ((1 + np.cos(np.pi * np.clip(distance / 15.0 - 1, 0, 1))) / 2).reshape(silent.shape)
    expected = np.where(weight > 0, weight * free.evaluate(LON, LAT, [5])[0], np.nan)
    assert silent == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert np.isnan(silent).any()
    variance = field.variance(LON, LAT, [4, 5])
    assert np.array_equal(np.isnan(variance[1]), np.isnan(silent))
    assert np.isfinite(variance[1]).any()


# -- the variance ------------------------------------------------------------------------------


def test_variance_is_that_of_kriging_and_missing_on_other_rungs():
    coords = network(20)
    values = correlated(coords, 4)
    values[5:, 2] = np.nan
    values[1:, 3] = np.nan
    field = field_of(coords, values, Kriging(MODEL))
    variance = field.variance(LON, LAT)
    assert variance.dtype == np.float32
    expected = Kriging(MODEL).fit(coords, values[:, :2]).variance_grid(LON, LAT)
    assert variance[:2] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(variance[2:]).all()
    assert np.isnan(field_of(coords, values, "idw").variance(LON, LAT)).all()
    assert field.variance(LON[3:7], LAT[2:4], [1])[0] == pytest.approx(variance[1, 2:4, 3:7], rel=1e-5)


# -- several fields at once --------------------------------------------------------------------


@pytest.mark.parametrize(("silent", "taper_km"), [(0.0, None), (0.6, None), (0.95, None), (0.6, 40.0)])
def test_fields_evaluated_together_are_those_evaluated_alone(silent, taper_km):
    """Differences and ratios share their weights, steps with few stations their mean, and other fields nothing."""
    rng = np.random.default_rng(1)
    coords = network()
    ground = 0.25 + 0.02 * rng.normal(size=(40, 8))
    observed = np.where(rng.random((40, 8)) < silent, np.nan, ground + correlated(coords, 8))
    fields = [
        pose(coords, observed, ground, residual, how, taper_km=taper_km).solve()
        for residual in ("difference", "ratio")
        for how in ("kriging", "idw", InverseDistance(5))
    ]
    found = list(evaluate_each(fields, LON, LAT, slice(1, 7)))
    for field, values in zip(fields, found, strict=True):
        np.testing.assert_allclose(values, field.evaluate(LON, LAT, slice(1, 7)), atol=1e-7, equal_nan=True)
    assert np.isfinite(found[0]).any()
