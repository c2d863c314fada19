"""Correlation models at distances: the Matern table against its definition, closed forms, what lies near 0 and far away."""

import numpy as np
import pytest
from scipy.special import gamma, kv

from smscale.kernels.covariance import MODELS, correlation


@pytest.mark.parametrize("smoothness", [0.15, 0.3, 0.7, 1.0, 1.9, 3.7, 12.0])
def test_matern_is_its_definition(smoothness: float) -> None:
    u = np.concatenate([np.geomspace(1e-12, 300.0, 4000), np.linspace(0.01, 30.0, 3001)])
    with np.errstate(under="ignore"):
        by_bessel = u**smoothness * kv(smoothness, u) / (2.0 ** (smoothness - 1.0) * gamma(smoothness))
    known = np.isfinite(by_bessel)  # K overflows near 0
    assert known.mean() > 0.8
    assert np.abs(correlation("matern", u, smoothness) - by_bessel)[known].max() < 1e-9


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_the_table_meets_the_closed_forms(smoothness: float) -> None:
    u = np.geomspace(1e-6, 50.0, 3000)
    beside = correlation("matern", u, smoothness * (1 + 1e-12))
    assert np.abs(beside - correlation("matern", u, smoothness)).max() < 1e-10


@pytest.mark.parametrize("smoothness", [0.2, 0.9, 4.0, 60.0])
def test_matern_falls_from_one_to_zero(smoothness: float) -> None:
    u = np.concatenate([[0.0, 1e-300], np.geomspace(1e-40, 1e4, 20_000), [np.inf]])
    found = correlation("matern", u, smoothness)
    assert found[0] == 1.0
    assert found[-1] == 0.0
    assert np.diff(found).max() < 1e-9
    assert np.isnan(correlation("matern", np.array([np.nan]), smoothness)).all()


@pytest.mark.parametrize("model", MODELS)
def test_any_shape_is_kept(model: str) -> None:
    u = np.linspace(0, 3, 24).reshape(2, 3, 4)
    assert correlation(model, u, 0.8).shape == u.shape
    np.testing.assert_array_equal(correlation(model, u, 0.8).ravel(), correlation(model, u.ravel(), 0.8))
    assert correlation(model, np.empty((0, 3)), 0.8).shape == (0, 3)
