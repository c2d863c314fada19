"""What inner folds keep whole: groups dealt evenly, and places found in a table that has no groups."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import check_estimator

from smscale.errors import InputError
from smscale.models.places import place_groups
from smscale.models.ridge import (
    PENALTIES,
    MeanBaseline,
    RidgeBaseline,
    held_out_lines,
    ridge_coefficients,
    ridge_penalty,
)
from smscale.models.samples import (
    CLUSTERS,
    Samples,
    deal,
    implied_groups,
    inner_folds,
    inner_split,
    merge_rows,
    scaling_of,
    seed_of,
    standardised,
)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def samples_of(X: Floats, y: Floats | None = None, weight: Floats | None = None) -> Samples:
    """As the estimators have it: merged, in canonical order, standardised."""
    y = X[:, -1] if y is None else y
    merged = merge_rows(X, y, np.ones(len(X)) if weight is None else weight, None)
    return standardised(merged, scaling_of(merged))


def weather(rng: np.random.Generator, place: Labels, day: Labels) -> Floats:
    """Three predictors that change from day to day: temperature, rain (mostly none) and its sum, rounded as gauges do."""
    temperature = 15 + 10 * np.sin(day / 58) + rng.normal(size=place.max() + 1)[place] + rng.normal(size=day.size)
    rain = np.round(np.where(rng.random(day.size) < 0.7, 0, rng.exponential(8, day.size)), 1)
    return np.column_stack([np.round(temperature, 1), rain, np.round(rain + rng.exponential(20, day.size), 1)])


def stations(count: int, days: int, seed: int, static: int = 4, dates: bool = True) -> tuple[Floats, Labels]:
    """(n, k) predictors and the station of each row: `static` columns, the day of year, weather; a tenth of the rows missing."""
    rng = np.random.default_rng(seed)
    place, day = (a.ravel() for a in np.meshgrid(np.arange(count), np.arange(0, 3 * days, 3), indexing="ij"))
    here = rng.random(place.size) > 0.1
    place, day = place[here], day[here]
    fields = rng.normal(size=(count, static)) * [3, 2, 800, 5][:static]
    when = np.column_stack([day, np.sin(day / 58.1), np.cos(day / 58.1)])[:, : 3 if dates else 0]
    return np.column_stack([fields[place], when, weather(rng, place, day)]), place


def cells(side: int, days: int, seed: int, elevation: bool = True) -> tuple[Floats, Labels, Labels]:
    """(n, k) predictors of a grid of cells, and the row and column of each: coordinates, elevation, land cover, 16-day NDVI, day."""
    rng = np.random.default_rng(seed)
    row, col, day = (
        a.ravel() for a in np.meshgrid(np.arange(side), np.arange(side), np.arange(0, 2 * days, 2), indexing="ij")
    )
    place = row * side + col
    height, cover = rng.uniform(300, 5000, side**2), rng.integers(1, 7, side**2)
    ndvi = rng.random((side**2, day.max() // 16 + 1))[place, day // 16]
    static = [100 + 0.4 * col, 30 - 0.35 * row, cover[place], *([height[place], height[place] ** 0.5 % 7] * elevation)]
    return np.column_stack([*static, ndvi, day, weather(rng, place, day)]), row, col


def found_in(X: Floats, seed: int = 0) -> Labels:
    groups = place_groups(X, seed)
    assert groups is not None
    return groups


# -- places -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    count=st.integers(5, 40),
    days=st.integers(10, 60),
    static=st.integers(2, 4),
    dates=st.booleans(),
    seed=st.integers(0, 9),
)
def test_stations_are_found_whatever_their_number(count: int, days: int, static: int, dates: bool, seed: int) -> None:
    X, station = stations(count, days, seed, static, dates)
    found = found_in(X)
    assert len(set(zip(station.tolist(), found.tolist(), strict=True))) == len(set(station.tolist()))  # none is cut
    if count >= 12 and days >= 20:  # fewer may be taken together: a larger block is the safe mistake
        assert adjusted_rand_score(station, found) == 1


@pytest.mark.parametrize("jitter", [1e-9, 1e-6, 1e-4])
def test_a_station_whose_coordinates_are_measured_again_stays_one(jitter: float) -> None:
    X, station = stations(25, 40, 3)
    X[:, :4] += X[:, :4].std(axis=0) * jitter * np.random.default_rng(0).uniform(-1, 1, (len(X), 4))
    assert adjusted_rand_score(station, found_in(X)) > 0.95


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("elevation", [True, False])
def test_cells_of_a_grid_are_gathered_into_compact_blocks(seed: int, elevation: bool) -> None:
    X, row, col = cells(9, 40, seed, elevation)
    groups = found_in(X, seed)
    assert adjusted_rand_score(row * 9 + col, groups) > 0
    blocks = [np.unique(np.column_stack([row, col])[groups == g], axis=0) for g in np.unique(groups)]
    assert len(blocks) == 9
    assert sum(map(len, blocks)) == 81  # no cell is in two
    assert max(np.ptp(block, axis=0).max() for block in blocks) <= 5
    assert min(map(len, blocks)) >= 3


def test_more_places_than_can_be_groups_are_gathered() -> None:
    X, station = stations(600, 6, 1)
    groups = found_in(X)
    assert np.unique(groups).size == 100
    assert np.unique(np.column_stack([groups, station]), axis=0).shape[0] == 600


def test_names_say_what_values_cannot() -> None:
    X, station = stations(20, 30, 2, static=1)
    table = np.column_stack([X, np.random.default_rng(0).normal(size=len(X))])
    names = ["latitude", "day", "sin", "cos", "temperature", "rain", "rain_sum", "own"]
    named = place_groups(table, 0, names)
    assert adjusted_rand_score(station, named) == 1
    unnamed = place_groups(table, 0)
    assert unnamed is None or adjusted_rand_score(station, unnamed) < 0.5


def test_where_days_alone_repeat_consecutive_days_are_a_group() -> None:
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(100), 8)
    when = np.column_stack([day, np.sin(day / 58.1), np.cos(day / 58.1)])
    groups = found_in(np.column_stack([when, rng.normal(size=(800, 3))]))
    assert 5 <= np.unique(groups).size <= 20
    assert np.count_nonzero(np.diff(groups)) == np.unique(groups).size - 1


@pytest.mark.parametrize("rows", [3, 8, 40, 400])
def test_a_table_without_structure_falls_back_on_clusters(rows: int) -> None:
    X = np.random.default_rng(rows).normal(size=(rows, 5))
    assert place_groups(X, 0) is None
    groups = implied_groups(samples_of(X), 0)
    assert groups.shape == (rows,)
    assert np.unique(groups).size == (rows if rows < 10 else min(CLUSTERS, rows // 5))


def test_gauges_that_mostly_read_zero_are_no_place() -> None:
    rng = np.random.default_rng(0)
    assert place_groups(weather(rng, np.zeros(900, np.int64), np.arange(900)), 0) is None


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 20), kind=st.sampled_from(["stations", "cells", "none"]))
def test_groups_depend_neither_on_order_nor_on_merging_nor_on_units(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    if kind == "stations":
        X = stations(8, 20, seed)[0]
    elif kind == "cells":
        X = cells(6, 12, seed)[0]
    else:
        X = rng.normal(size=(200, 4))
    y = rng.normal(size=len(X))
    plain = implied_groups(samples_of(X, y), seed)
    order = rng.permutation(len(X))
    np.testing.assert_array_equal(implied_groups(samples_of(X[order], y[order]), seed), plain)
    twice = samples_of(np.vstack([X, X]), np.append(y, y))
    np.testing.assert_array_equal(implied_groups(twice, seed), plain)
    np.testing.assert_array_equal(implied_groups(samples_of(X * 4.0, y), seed), plain)
    shuffled = samples_of(X, y)
    again = implied_groups(Samples(*(part[order] for part in shuffled)), seed)
    np.testing.assert_array_equal(again, plain[order])


# -- folds ------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=25), folds=st.integers(2, 7), seed=st.integers(0, 5))
def test_folds_hold_whole_groups_and_every_row_once_and_are_even(sizes: list[int], folds: int, seed: int) -> None:
    group = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7 - 3, sizes))
    made = inner_folds(group, folds, np.random.default_rng(seed))
    alone = max(sizes) > sum(sizes) - 2  # nothing could be trained on what the largest group leaves: row by row
    assert len(made) == min(folds, group.size if alone else len(sizes))
    assert sorted(np.concatenate([held for _, held in made])) == list(range(group.size))
    for train, held in made:
        assert sorted(np.append(train, held)) == list(range(group.size))
        assert alone or not set(group[train]) & set(group[held])
    loads = [held.size for _, held in made]
    assert max(loads) - min(loads) <= (1 if alone else max(sizes))  # the lightest fold takes the next group


def test_deal_is_random_among_equal_groups_and_follows_its_generator() -> None:
    group = np.repeat(np.arange(12), 5)
    one, same, other = (deal(group, 3, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert np.bincount(one).tolist() == [20, 20, 20]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=15), fraction=st.floats(0.05, 0.9), seed=st.integers(0, 5)
)
def test_inner_split_holds_whole_groups_out(sizes: list[int], fraction: float, seed: int) -> None:
    group = np.repeat(np.arange(len(sizes)), sizes)
    train, held = inner_split(group, fraction, np.random.default_rng(seed))
    assert train.size
    assert held.size
    assert not set(group[train]) & set(group[held])


# -- what it is for ---------------------------------------------------------------------------------


def test_ridge_shrinks_as_much_without_groups_as_with_them_where_places_differ() -> None:
    """Thirty static columns tell each of 40 stations apart, and none tells its offset: rows ask for little shrinkage, places for all."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(40), 25)
    day = np.tile(np.arange(25), 40)
    X = np.column_stack([rng.normal(size=(40, 30))[place], day, rng.normal(size=(1000, 2))])
    samples = samples_of(X, rng.normal(size=40)[place] + 0.1 * rng.normal(size=1000))
    true = np.unique(samples.X[:, 0], return_inverse=True)[1]
    by = {
        "rows": np.arange(1000),
        "implied": implied_groups(samples, 0),
        "true": true,
    }
    penalty = {how: ridge_penalty(samples.X, samples.y, samples.weight, group, 0) for how, group in by.items()}
    assert penalty["implied"] == penalty["true"]
    assert penalty["true"] > 30 * penalty["rows"]


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_ridge_coefficients_solve_the_normal_equations(penalty: float) -> None:
    rng = np.random.default_rng(0)
    X, y, weight = rng.normal(size=(50, 4)), rng.normal(size=50), rng.uniform(0.5, 2, 50)
    share = weight / weight.sum()
    expected = np.linalg.solve((X.T * share) @ X + penalty * np.eye(4), X.T @ (share * y))
    np.testing.assert_allclose(ridge_coefficients(X, y, weight, penalty), expected, rtol=1e-9)


def test_held_out_lines_are_scikit_learns_with_an_intercept_and_know_nothing_of_what_they_hold_out() -> None:
    rng = np.random.default_rng(0)
    X, y, weight = rng.normal(size=(60, 3)), rng.normal(size=60), rng.uniform(0.5, 2, 60)
    group = np.arange(60) // 10
    y += group
    folds = inner_folds(group, 3, rng)
    penalties = np.array([0.01, 0.5])
    for (train, held), lines in zip(folds, held_out_lines(X, y, weight, folds, penalties), strict=True):
        for column, penalty in enumerate(penalties):
            peer = Ridge(penalty * weight[train].sum()).fit(X[train], y[train], sample_weight=weight[train])
            np.testing.assert_allclose(lines.at(X[held])[:, column], peer.predict(X[held]), rtol=1e-9)


def test_ridge_penalty_is_that_of_scikit_learns_pipeline_on_the_same_folds() -> None:
    """Six stations whose offsets the means of all rows would tell; each fold is left to find its own intercept."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(6), 8)
        X = rng.normal(size=(6, 5))[group] + 0.5 * rng.normal(size=(48, 5))
        y = X @ rng.normal(size=5) + 3 * rng.normal(size=6)[group]
        X, y = (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()
        errors = np.zeros(PENALTIES.size)
        for train, held in inner_folds(group, 5, np.random.default_rng(0)):
            for number, penalty in enumerate(PENALTIES):
                peer = Ridge(penalty * train.size).fit(X[train], y[train])
                errors[number] += np.sum((peer.predict(X[held]) - y[held]) ** 2)
        assert ridge_penalty(X, y, np.ones(48), group, 0) == PENALTIES[errors.argmin()]


@pytest.mark.parametrize("baseline", [MeanBaseline(), RidgeBaseline()], ids=["mean", "ridge"])
def test_baselines_pass_scikit_learns_checks(baseline: MeanBaseline | RidgeBaseline) -> None:
    results = check_estimator(baseline, on_fail=None)
    assert not [result["check_name"] for result in results if result["status"] == "failed"]


def test_baselines_learn_the_weighted_mean_and_a_line() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    y = 0.2 + X @ [0.1, 0.0, -0.3]
    weight = rng.uniform(0, 2, 200)
    assert MeanBaseline().fit(X, y, sample_weight=weight).predict(X[:1]) == pytest.approx(np.average(y, weights=weight))
    np.testing.assert_allclose(RidgeBaseline().fit(X, y).predict(X), y, atol=1e-3)


def test_a_dataframes_column_names_say_what_a_place_is() -> None:
    rng = np.random.default_rng(0)
    places = np.repeat(np.arange(8), 15)
    frame = pd.DataFrame({"lon": 100.0 + places, "lat": 30.0 + places % 3, "warmth": rng.normal(size=places.size)})
    model = RidgeBaseline(random_state=0).fit(frame, frame["warmth"] + places)
    assert np.isfinite(model.predict(frame)).all()
    named = implied_groups(
        Samples(frame.to_numpy(), places.astype(float), np.ones(len(frame)), places), 0, frame.columns.to_numpy()
    )
    assert len({(a, b) for a, b in zip(named, places, strict=True)}) == len(set(places)) == len(set(named))


# -- what is no table -------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [MeanBaseline(), RidgeBaseline()], ids=["mean", "ridge"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.array(["wet", "dry", "dry"])}, "y must hold numbers; got <U3, such as 'wet'"),
        ({"y": np.array([0.1, np.nan, 0.2])}, "Input y contains NaN"),
        ({"X": np.array([[0.1], [np.inf], [0.2]])}, "Input X contains infinity"),
        ({"X": np.array([["a"], ["b"], ["c"]])}, "could not convert string to float"),
        ({"sample_weight": np.full(3, 1e308)}, "sample_weight adds up to infinity; its largest is 1e"),
        ({"sample_weight": np.array([1, 1, -1])}, "Negative values in data passed to `sample_weight`"),
    ],
)
def test_a_table_of_no_numbers_is_refused_in_one_line(
    baseline: MeanBaseline | RidgeBaseline, change: dict[str, Any], message: str
) -> None:
    given = {"X": np.arange(3.0)[:, None], "y": np.arange(3.0), **change}
    with pytest.raises(InputError, match=f"{type(baseline).__name__}: .*{message}") as error:
        clone(baseline).fit(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["x", -1, 2**32, 1.5])
def test_what_cannot_seed_is_refused_in_one_line(value: object) -> None:
    with pytest.raises(InputError, match=r"random_state must be None, .*; got"):
        seed_of(value)


@pytest.mark.parametrize(("factor", "what"), [(1e-300, "little"), (1e-155, "little"), (1e155, "large")])
def test_variances_that_vanish_or_overflow_are_refused(factor: float, what: str) -> None:
    X, y = np.random.default_rng(0).normal(size=(2, 50, 1))
    for table in ((X * factor, y[:, 0]), (X, y[:, 0] * factor)):
        with pytest.raises(InputError, match=f"too {what} to be standardised"):
            scaling_of(merge_rows(*table, np.ones(50), None))


@pytest.mark.parametrize("level", [0.0, 1e-300, 0.1, 1e100])
def test_a_constant_of_any_size_is_a_constant(level: float) -> None:
    X = np.column_stack([np.arange(50.0), np.full(50, level)])
    found = scaling_of(merge_rows(X, np.full(50, level), np.random.default_rng(0).uniform(0.5, 2, 50), None))
    assert found.scale[1] == found.target_scale == 1
    assert found.scale[0] > 10
