"""How far networks may depart from a ridge regression."""

import numpy as np
import pytest

from smscale.models.blend import blend


def test_by_hand() -> None:
    """Departures 1 and 1, of which the truth bears out 0.5 and 0.7: s = 0.6, its standard error sqrt(2 0.02) / 2 = 0.1."""
    found = blend(np.array([[1.0, 2.0]]), np.array([0.0, 1.0]), np.array([0.5, 1.7]), np.ones(2), np.arange(2), 1)
    assert found.share == pytest.approx(0.6 * (1 - 2 * (0.1 / 0.6) ** 2))
    assert found.mse == pytest.approx(((found.share - 0.5) ** 2 + (found.share - 0.7) ** 2) / 2)


def test_a_gain_that_one_group_makes_is_chance() -> None:
    """Fifty rows gain, and all lie at one place of ten; at ten places, five rows each, they are believed."""
    departure = np.random.default_rng(0).choice([-1.0, 1.0], 500)
    gains = np.arange(500) < 50
    y = np.where(gains, 4 * departure, 0)
    at_one, at_all = (
        blend(departure[None], np.zeros(500), y, np.ones(500), group, 1)
        for group in (np.arange(500) // 50, np.arange(500) % 10)
    )
    assert at_one.share < 0.1
    assert at_all.share == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(("slope", "share"), [(-0.5, 0.0), (0.4, 0.4), (1.7, 1.0)])
def test_share_stays_between_nothing_and_all(slope: float, share: float) -> None:
    rng = np.random.default_rng(0)
    ridge, departure, weight = rng.normal(size=(3, 500))
    y = ridge + slope * departure
    found = blend((ridge + departure)[None], ridge, y, weight**2, np.arange(500), members=1)
    assert found.share == pytest.approx(share, rel=0.01)
    share = found.share
    error = (1 - share) * ridge + share * (ridge + departure) - y
    assert found.mse == pytest.approx(weight**2 @ error**2 / (weight**2).sum(), abs=1e-12)


@pytest.mark.parametrize("judges", [2, 4])
def test_scatter_of_judges_is_taken_off(judges: int) -> None:
    """y = ridge + signal; networks are signal + noise of variance 2: the mean of many wants share 1 / (1 + 2 / members)."""
    rng = np.random.default_rng(1)
    ridge, signal = rng.normal(size=(2, 40_000))
    networks = ridge + signal + np.sqrt(2) * rng.normal(size=(judges, 40_000))
    found = blend(networks, ridge, ridge + signal, np.ones(40_000), np.arange(40_000), members=20)
    assert found.share == pytest.approx(1 / 1.1, abs=0.02)
    assert found.mse == pytest.approx(1 - 1 / 1.1, abs=0.02)
    assert blend(
        networks[:1], ridge, ridge + signal, np.ones(40_000), np.arange(40_000), members=1
    ).share == pytest.approx(1 / 3, abs=0.02)


def test_rows_have_the_judges_that_they_have() -> None:
    rng = np.random.default_rng(2)
    ridge, signal = rng.normal(size=(2, 1000))
    networks = np.stack([ridge + signal, ridge + signal])
    networks[0, ::2] = np.nan
    assert blend(networks, ridge, ridge + signal, np.ones(1000), np.arange(1000), 2).share == pytest.approx(1)


def test_a_share_that_is_given_is_kept_and_its_error_told() -> None:
    y = np.array([1.0, 3.0])
    found = blend(np.array([[1.5, 2.0]]), np.zeros(2), y, np.ones(2), np.arange(2), members=1, share=1.0)
    assert found == (1.0, pytest.approx((0.25 + 1) / 2))


def test_networks_that_say_what_the_ridge_says_change_nothing() -> None:
    ridge, y = np.random.default_rng(0).normal(size=(2, 50))
    found = blend(ridge[None], ridge, y, np.ones(50), np.arange(50), members=3)
    assert found.share == 0
    assert found.mse == pytest.approx(np.mean((ridge - y) ** 2))


def test_one_observation_says_nothing_and_two_places_are_two() -> None:
    """A gain of two places is judged by their scatter, G / (G - 1) of it: fifty rows at each do not make it surer."""
    assert blend(np.ones((1, 1)), np.zeros(1), np.ones(1), np.ones(1), np.zeros(1, np.int64), 1).share == 0
    y = np.repeat([0.8, 0.4], 50)
    found = blend(np.ones((1, 100)), np.zeros(100), y, np.ones(100), np.repeat([0, 1], 50), 1)
    error = np.std([0.8, 0.4], ddof=1) / np.sqrt(2)
    assert found.share == pytest.approx(0.6 * (1 - 2 * (error / 0.6) ** 2))


def test_departures_whose_square_vanishes_change_nothing() -> None:
    """1e-161 from the ridge, in a gain of 1e-162: its square is 0 in double precision."""
    found = blend(np.full((1, 100), 1e-161), np.zeros(100), np.full(100, 1e-3), np.ones(100), np.arange(100), 1)
    assert found == (0.0, pytest.approx(1e-6))
