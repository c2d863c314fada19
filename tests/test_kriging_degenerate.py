"""Kriging of awkward input: a right answer or one clear line, never a silent hole or a fault inside a solver."""

import itertools
import warnings

import numpy as np
import pytest

from smscale import InverseDistance, Kriging, Variogram
from smscale.errors import InputError
from smscale.kernels.sphere import chord_points, pair_distance

RNG = np.random.default_rng(0)
BASE = np.column_stack([RNG.uniform(100, 102, 20), RNG.uniform(29.5, 31, 20)])
Z = RNG.normal(0.25, 0.08, 20)
LON, LAT = np.linspace(100, 102, 40), np.linspace(31, 29.5, 30)

PLACES = {
    "spread": (BASE, Z),
    "at one place": (np.tile(BASE[:1], (20, 1)), Z),
    "pairs at one place": (np.repeat(BASE[:10], 2, axis=0), Z),
    "one": (BASE[:1], Z[:1]),
    "two": (BASE[:2], Z[:2]),
    "two at one place": (BASE[[0, 0]], Z[:2]),
    "constant": (BASE, np.full(20, 0.3)),
    "on a parallel": (np.column_stack([100 + np.arange(20) * 0.01, np.full(20, 30.0)]), Z),
    "a cluster a metre wide": (np.vstack([BASE[:1] + RNG.normal(0, 1e-5, (10, 2)), BASE[10:]]), Z),
    "values of 1e12": (BASE, Z * 1e12),
    "all silent": (BASE, np.full(20, np.nan)),
}
MODELS = {
    "usual": ("exponential", 0.005, 40.0, 0.001),
    "no noise": ("exponential", 0.005, 40.0, 0.0),
    "smooth, no noise": ("gaussian", 0.005, 40.0, 0.0),
    "far too smooth": ("gaussian", 0.005, 1e6, 0.0),
    "range of a million km": ("exponential", 0.005, 1e6, 0.0),
    "range of a metre": ("exponential", 0.005, 1e-3, 0.0005),
    "huge noise": ("exponential", 0.005, 40.0, 1e6),
    "pure noise": ("exponential", 0.0, 40.0, 1.0),
    "rough": ("matern", 0.005, 1e4, 0.0, 0.3),
}
FORMS = {"all": {}, "nearest": {"neighbours": 5}, "no negative": {"neighbours": 5, "negative_weights": "zero"}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_cell_has_a_value_or_the_fit_is_refused_in_one_line(name: str, form: str) -> None:
    for (place, (coords, values)), exact in itertools.product(PLACES.items(), (False, True)):
        ours, refused = Kriging(Variogram(*MODELS[name]), exact=exact, **FORMS[form]), ""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                field, variance = ours.fit(coords, values).predict(coords, return_variance=True)
                found = ours.predict_grid(LON, LAT), ours.variance_grid(LON, LAT), field, variance
            except InputError as error:
                refused, found = str(error), ()
        if refused:
            assert "no noise" in name or "far too" in name, place
            assert "give the variogram a nugget" in refused
            assert "\n" not in refused
            continue
        silent = place == "all silent"
        assert all((np.isnan(part) if silent else np.isfinite(part)).all() for part in found), place
        assert silent or min(found[1].min(), variance.min()) >= 0.0


@pytest.mark.parametrize("form", FORMS)
def test_a_range_far_beyond_the_network_is_the_linear_variogram(form: str) -> None:
    """Of ever longer ranges the field converges; the largest weights that cancel are then 50 000 times the values."""
    grids = [
        Kriging(Variogram("exponential", 0.005, km, 0.0), **FORMS[form]).fit(BASE, Z).predict_grid(LON, LAT)
        for km in (1e5, 1e6)
    ]
    np.testing.assert_allclose(grids[0], grids[1], rtol=0, atol=1e-4)
    assert grids[1].min() > Z.min() - 0.05
    assert grids[1].max() < Z.max() + 0.05


@pytest.mark.parametrize("form", FORMS)
def test_a_range_far_below_the_station_distance_gives_the_mean_and_at_stations_their_values(form: str) -> None:
    ours = Kriging(Variogram("exponential", 0.005, 1e-4), exact=True, **FORMS[form]).fit(BASE, Z)
    assert ours.predict(BASE) == pytest.approx(Z, abs=1e-12)
    away = ours.predict([[101.0, 30.2]])[0]
    order = np.argsort(pair_distance(chord_points([101.0], [30.2]), chord_points(*BASE.T))[0])
    assert away == pytest.approx(Z.mean() if form == "all" else Z[order[:5]].mean(), abs=1e-12)


def test_two_stations_by_hand() -> None:
    """Weights 1/2 + (c_1 - c_2) / (2 (C(0) + noise - c_12)) and the rest."""
    variogram = Variogram("exponential", 2.0, 50.0, 0.3)
    coords, z = np.array([[100.0, 30.0], [100.4, 30.1]]), np.array([1.0, 5.0])
    target = np.array([[100.1, 29.9]])
    away = pair_distance(chord_points(*target.T), chord_points(*coords.T))[0]
    c1, c2 = 2.0 * np.exp(-away / 50.0)
    c12 = 2.0 * np.exp(-pair_distance(chord_points(*coords.T), chord_points(*coords.T))[0, 1] / 50.0)
    w = 0.5 + (c1 - c2) / (2 * (2.3 - c12))
    spread = 2.0 - 2 * (w * c1 + (1 - w) * c2) + (w**2 + (1 - w) ** 2) * 2.3 + 2 * w * (1 - w) * c12
    for settings in FORMS.values():
        field, variance = Kriging(variogram, **settings).fit(coords, z).predict(target, return_variance=True)
        assert field[0] == pytest.approx(w + 5 * (1 - w), abs=1e-12)
        assert variance[0] == pytest.approx(spread, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("west", "north", "step"), [(179.0, 30.0, 0.04), (-180.8, 30.0, 0.04), (-180.0, 90.0, 7.3), (0.0, -85.0, 7.3)]
)
def test_date_line_and_poles(form: str, west: float, north: float, step: float) -> None:
    rng = np.random.default_rng(3)
    lon, lat = west + step * np.arange(50), north - 0.04 * np.arange(40)
    coords = np.column_stack([rng.uniform(lon[0], lon[-1], 25), rng.uniform(lat[-1], lat[0], 25)])
    coords[:, 0] = (coords[:, 0] + 180) % 360 - 180
    ours = Kriging(Variogram("exponential", 0.005, 60.0, 0.001), **FORMS[form]).fit(coords, rng.normal(0.25, 0.08, 25))
    x, y = np.meshgrid(lon, lat)
    field, variance = ours.predict(np.column_stack([x.ravel() % 360, y.ravel()]), return_variance=True)
    np.testing.assert_allclose(ours.predict_grid(lon, lat).ravel(), field, rtol=0, atol=3e-7)
    np.testing.assert_allclose(ours.variance_grid(lon, lat).ravel(), variance, rtol=0, atol=3e-8)


def test_what_cannot_be_is_refused_by_name() -> None:
    variogram = Variogram("exponential", 0.005, 40.0)
    holes, infinite = BASE.copy(), Z.copy()
    holes[3, 1], infinite[4] = np.nan, -np.inf
    for interpolator in (Kriging(variogram), Kriging(variogram, 5), InverseDistance(5)):
        with pytest.raises(InputError, match="1 of 20 stations have no finite coordinates"):
            interpolator.fit(holes, Z)
        with pytest.raises(InputError, match="1 infinite"):
            interpolator.fit(BASE, infinite)
        with pytest.raises(InputError, match="no station"):
            interpolator.fit(np.empty((0, 2)), np.empty(0))
        with pytest.raises(InputError, match="longitude"):
            interpolator.fit(BASE, Z).predict([[100.0, 91.0]])
    with pytest.raises(InputError, match="do not vary"):
        Kriging().fit(BASE, np.full(20, 0.3))


@pytest.mark.parametrize("settings", [{}, {"neighbours": 5}, {"neighbours": 80}])
def test_an_empty_grid_and_a_target_without_a_place(settings: dict[str, int]) -> None:
    ours = Kriging(Variogram("exponential", 0.005, 40.0), **settings).fit(BASE, np.column_stack([Z, Z]))
    assert ours.predict_grid(LON[:0], LAT).shape == (2, 30, 0)
    assert ours.variance_grid(LON, LAT[:0]).shape == (2, 0, 40)
    field, variance = ours.predict([[100.5, 30.0], [np.nan, 30.0]], return_variance=True)
    assert np.isnan(field).any(axis=1).tolist() == [False, True]
    assert np.isnan(variance).any(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("exact", [False, True])
def test_more_neighbours_than_tiles_are_made_for_equal_each_day_by_itself(exact: bool) -> None:
    """Beyond `interpolators.NEAR` cells are solved point by point."""
    rng = np.random.default_rng(5)
    coords = np.column_stack([rng.uniform(100, 102, 120), rng.uniform(29.5, 31, 120)])
    values = rng.normal(0.25, 0.08, (120, 3))
    values[rng.random(values.shape) < 0.2] = np.nan
    variogram = Variogram("exponential", 0.005, 40.0, 0.001)
    ours = Kriging(variogram, 80, exact).fit(coords, values)
    lon, lat = LON[::4], LAT[::4]
    grid, spread = ours.predict_grid(lon, lat), ours.variance_grid(lon, lat)
    x, y = np.meshgrid(lon, lat)
    targets = np.column_stack([x.ravel(), y.ravel()])
    away = pair_distance(chord_points(*targets.T), chord_points(*coords.T))
    for day, column in enumerate(values.T):
        known = np.flatnonzero(np.isfinite(column))
        for i in (0, 37, len(targets) - 1):
            near = known[np.argsort(away[i, known])[:80]]
            field, variance = (
                Kriging(variogram, exact=exact).fit(coords[near], column[near]).predict(targets[[i]], True)
            )
            assert grid[day].ravel()[i] == pytest.approx(field[0], abs=1e-7)
            assert spread[day].ravel()[i] == pytest.approx(variance[0], abs=1e-8)
