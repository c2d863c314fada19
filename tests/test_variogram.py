"""Variograms against gstat's printed numbers, closed forms and known fields."""

import numpy as np
import pytest
from scipy.special import gamma, kv

from smscale.errors import InputError
from smscale.fusion.variogram import Variogram, empirical_variogram, fit_lags, fit_variogram
from smscale.kernels.covariance import bin_pairs, correlation, pooled_pairs
from smscale.kernels.sphere import chord_points, pair_distance

# gstat_variogram.Rout.save: variogram(log(zinc) ~ 1, ~ x + y, meuse): np, dist, gamma
GSTAT_MEUSE = np.array(
    [
        (57, 79.29244, 0.1234479),
        (299, 163.97367, 0.2162185),
        (419, 267.36483, 0.3027859),
        (457, 372.73542, 0.4121448),
        (547, 478.47670, 0.4634128),
        (533, 585.34058, 0.5646933),
        (574, 693.14526, 0.5689683),
        (564, 796.18365, 0.6186769),
        (589, 903.14650, 0.6471479),
        (543, 1011.29177, 0.6915705),
        (500, 1117.86235, 0.7033984),
        (477, 1221.32810, 0.6038770),
        (452, 1329.16407, 0.6517158),
        (457, 1437.25620, 0.5665318),
        (415, 1543.20248, 0.5748227),
    ]
)


@pytest.fixture(scope="module")
def meuse_pairs(request):
    import rdata

    real = request.getfixturevalue("real")
    table = rdata.read_rda(str(real("geostat/sp_meuse.rda")))["meuse"]
    points = table[["x", "y"]].to_numpy(float)
    return points, pooled_pairs(points, np.log(table["zinc"].to_numpy(float))[:, None])


@pytest.mark.real_data
def test_lags_of_meuse_are_what_gstat_prints(meuse_pairs):
    points, pairs = meuse_pairs
    cutoff = np.hypot(*np.ptp(points, axis=0)) / 3  # gstat's default: a third of the box's diagonal
    lag, semivariance, count = bin_pairs(*pairs, cutoff / 15, 15)
    assert np.array_equal(count, GSTAT_MEUSE[:, 0])
    assert lag == pytest.approx(GSTAT_MEUSE[:, 1], rel=1e-7)
    assert semivariance == pytest.approx(GSTAT_MEUSE[:, 2], abs=6e-8)


@pytest.mark.real_data
def test_fit_is_what_gstat_prints(meuse_pairs):
    # gstat_fit.Rout.save: five lags of 100 m with semivariances made up; nugget ends at its bound
    lag, _, count = bin_pairs(*meuse_pairs[1], 100.0, 5)
    fit = fit_lags(lag, np.array([0.5, 1, 2, 3, 3]), count, "spherical", (50.0, 5000.0))
    assert fit.nugget == 0.0
    assert fit.partial_sill == pytest.approx(7.878195, rel=1e-6)
    assert fit.range == pytest.approx(1567.77, rel=1e-6)


@pytest.mark.parametrize("family", ["exponential", "spherical", "gaussian", "matern"])
def test_fit_finds_the_model_that_made_the_lags(family):
    truth = Variogram(family, 0.8, 35.0, 0.15, 2.5)
    lag = np.linspace(5, 120, 15)
    fit = fit_lags(lag, truth.semivariance(lag), np.full(15, 40.0), family, (5.0, 300.0), 2.5)
    assert (fit.partial_sill, fit.range, fit.nugget) == pytest.approx((0.8, 35.0, 0.15), rel=1e-5)


def test_pairs_pooled_over_days_recover_the_field_s_model():
    rng = np.random.default_rng(5)
    coords = np.column_stack([rng.uniform(100, 104, 120), rng.uniform(28, 32, 120)])
    truth = Variogram("exponential", 0.003, 60.0, 0.001)
    points = chord_points(*coords.T)
    root = np.linalg.cholesky(truth.covariance(pair_distance(points, points)) + 1e-12 * np.eye(120))
    values = root @ rng.normal(size=(120, 300)) + np.sqrt(0.001) * rng.normal(size=(120, 300)) + np.arange(300)
    values[rng.random(values.shape) < 0.3] = np.nan
    fit = fit_variogram(coords, values)
    # 300 days of 120 stations leave some percent of sampling error
    assert fit.partial_sill == pytest.approx(0.003, rel=0.15)
    assert fit.range == pytest.approx(60.0, rel=0.2)
    assert fit.nugget == pytest.approx(0.001, rel=0.2)


def test_pooled_semivariance_is_the_mean_over_days_by_hand():
    coords = np.array([[100.0, 30.0], [100.1, 30.0], [100.0, 30.0]])
    values = np.array([[1.0, 2.0, np.nan], [3.0, 5.0, 4.0], [1.5, np.nan, 9.0]])
    lag, semivariance, count = empirical_variogram(coords, values, n_lags=1, cutoff=20.0)
    # pairs 0-1: 2 and 3 apart; 1-2: 1.5 and 5 apart; 0-2 share one place and form none
    assert count == pytest.approx([4])
    assert semivariance == pytest.approx([(4 + 9 + 2.25 + 25) / 2 / 4])
    assert lag == pytest.approx([pair_distance(*chord_points(coords[:2, 0], coords[:2, 1])[:, None])[0, 0]])


@pytest.mark.parametrize("kappa", [0.5, 1.5, 2.5])
def test_closed_matern_equals_its_bessel_form(kappa):
    u = np.linspace(0.01, 8, 50)
    bessel = u**kappa * kv(kappa, u) / (2 ** (kappa - 1) * gamma(kappa))
    assert correlation("matern", u, kappa) == pytest.approx(bessel, rel=1e-10)
    assert correlation("matern", np.array([0.0]), kappa + 0.1)[0] == 1.0


def test_models_are_gstat_s_parametrisation():
    assert Variogram("exponential", 2.0, 10.0, 0.5).semivariance(10.0) == pytest.approx(0.5 + 2 * (1 - np.exp(-1)))
    assert Variogram("gaussian", 2.0, 10.0).semivariance(20.0) == pytest.approx(2 * (1 - np.exp(-4)))
    assert Variogram("spherical", 2.0, 10.0).semivariance([5.0, 10.0, 50.0]) == pytest.approx([1.375, 2.0, 2.0])
    assert Variogram("exponential", 2.0, 10.0, 0.5).semivariance(0.0) == 0.0
    assert Variogram("exponential", 2.0, 10.0, 0.5).covariance(0.0) == 2.0
    assert Variogram("matern", 2.0, 10.0).to_dict()["smoothness"] == 1.5


def test_fit_stays_in_its_bounds_on_noise_and_on_a_trend():
    rng = np.random.default_rng(1)
    coords = np.column_stack([rng.uniform(100, 102, 40), rng.uniform(30, 32, 40)])
    longest = pair_distance(chord_points(*coords.T), chord_points(*coords.T)).max()
    for values in (rng.normal(size=(40, 20)), coords[:, 0] * 3):
        fit = fit_variogram(coords, values)
        assert fit.nugget >= 0
        assert fit.partial_sill >= 0
        assert 0 < fit.range <= 2 * longest * (1 + 1e-9)


@pytest.mark.parametrize(
    ("coords", "values", "words"),
    [
        (np.tile([[100.0, 30.0]], (5, 1)), np.arange(5.0), "no two stations at different places"),
        (np.array([[100.0, 30.0], [101.0, 30.0]]), np.array([1.0, 2.0]), "at least 3 lags"),
        (np.random.default_rng(0).uniform([100, 30], [102, 32], (30, 2)), np.ones(30), "do not vary"),
        (np.zeros((4, 2)), np.full((4, 3), np.nan), "no two stations"),
    ],
)
def test_fit_that_cannot_be_made_says_why(coords, values, words):
    with pytest.raises(InputError, match=words):
        fit_variogram(coords, values)
