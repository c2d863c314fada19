"""Splits: no row, block, station or neighbouring day on both sides; clear refusal of too few blocks."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score

from smscale.errors import InputError, RecipeError
from smscale.kernels.sphere import chord_points
from smscale.models.row_blocks import CELL_KM, BlockError, space_blocks, time_blocks
from smscale.models.splits import (
    SPLITS,
    RandomSplit,
    SpaceBlockSplit,
    SpaceTimeSplit,
    StationBlockSplit,
    TimeBlockSplit,
    hold_out,
    inner_groups,
    make_split,
)


def made(side: int = 12, days: int = 60, every: int = 4) -> pd.DataFrame:
    """Every cell of a `side` x `side` grid on every fourth day; twelve stations."""
    day, row, col = (a.ravel() for a in np.meshgrid(np.arange(0, days, every), np.arange(side), np.arange(side)))
    date = pd.Timestamp("2017-06-10") + pd.to_timedelta(day, unit="D")
    return pd.DataFrame({"local_date": date, "row": row, "col": col, "station": row % 12, "day": day})


@pytest.mark.parametrize("how", list(SPLITS))
def test_every_split_is_disjoint_deterministic_and_counts_its_folds(how: str) -> None:
    table = made()
    splitter = make_split(how, n_splits=3)
    first, second = list(splitter.split(table)), list(splitter.split(table))
    assert len(first) == 3 == splitter.get_n_splits()
    for (train, test), (train_again, test_again) in zip(first, second, strict=True):
        np.testing.assert_array_equal(train, train_again)
        np.testing.assert_array_equal(test, test_again)
        assert not np.intersect1d(train, test).size
        assert train.size
        assert test.size


@pytest.mark.parametrize("how", ["time-block", "space-block", "station-block"])
def test_folds_of_blocks_test_every_row_once(how: str) -> None:
    table = made()
    tested = np.concatenate([test for _, test in make_split(how, n_splits=4).split(table)])
    np.testing.assert_array_equal(np.sort(tested), np.arange(len(table)))


@settings(max_examples=30, deadline=None)
@given(days=st.integers(10, 20), gap=st.integers(0, 4), folds=st.integers(2, 3))
def test_time_blocks_are_apart_by_more_than_the_gap(days: int, gap: int, folds: int) -> None:
    table = made(side=3, days=80, every=2)
    day = table["day"].to_numpy()
    for train, test in TimeBlockSplit(folds, days=days, gap=gap).split(table):
        assert np.abs(day[train][:, None] - day[test][None, :]).min() > gap
        apart = np.abs(day[:, None] - day[test][None, :]).min(axis=1)
        assert train.size == (apart > gap).sum()


@settings(max_examples=20, deadline=None)
@given(cells=st.integers(3, 5), gap=st.integers(0, 2), seed=st.integers(0, 3))
def test_space_blocks_are_whole_and_apart_by_more_than_the_gap(cells: int, gap: int, seed: int) -> None:
    table = made(side=12, days=1)
    row, col = table["row"].to_numpy(), table["col"].to_numpy()
    block = row // cells * 100 + col // cells
    for train, test in SpaceBlockSplit(4, seed, cells, gap).split(table):
        far = np.maximum(np.abs(row[train][:, None] - row[test]), np.abs(col[train][:, None] - col[test]))
        assert far.min() > gap
        assert not np.isin(block[test], np.delete(block, test)).any()


def test_space_time_split_shares_neither_place_nor_time() -> None:
    table = made()
    block = (table["row"] // 3 * 10 + table["col"] // 3).to_numpy()
    for train, test in SpaceTimeSplit(3, gap=2).split(table):
        assert not set(block[train]) & set(block[test])
        assert np.abs(table["day"].to_numpy()[train][:, None] - table["day"].to_numpy()[test]).min() > 2


def test_stations_stay_whole_and_folds_are_even() -> None:
    table = made()
    sizes = []
    for train, test in StationBlockSplit(4).split(table):
        assert not set(table["station"].iloc[train]) & set(table["station"].iloc[test])
        sizes.append(test.size)
    assert max(sizes) == min(sizes)
    own = np.arange(len(table)) // 100
    for train, test in StationBlockSplit(4).split(table, groups=own):
        assert not set(own[train]) & set(own[test])


def test_random_split_takes_its_fraction() -> None:
    table = made(days=1)
    ((train, test),) = RandomSplit(fraction=0.3).split(table)
    assert (train.size, test.size) == (100, 44)
    ((_, other),) = RandomSplit(fraction=0.3, seed=1).split(table)
    assert not np.array_equal(test, other)


@settings(max_examples=40, deadline=None)
@given(
    how=st.sampled_from(["time-block", "space-block", "station-block"]),
    fraction=st.floats(0.1, 0.6),
    seed=st.integers(0, 9),
    keep=st.floats(0.3, 1.0),
)
def test_a_holdout_has_whole_blocks_and_a_share_as_near_as_blocks_allow(
    how: str, fraction: float, seed: int, keep: float
) -> None:
    table = made(side=12, days=200).sample(frac=keep, random_state=seed)
    splitter = hold_out(make_split(how, seed=seed), fraction)
    ((train, test),) = splitter.split(table)
    assert splitter.get_n_splits() == 1
    block = inner_groups(table, how)
    assert not set(block[train]) & set(block[test])
    assert set(block[test]).isdisjoint(np.delete(block, test))
    sizes = np.bincount(block)
    assert abs(test.size - fraction * len(table)) <= sizes.max() / 2  # no block more, none less
    if how == "time-block":  # the gap: no training row within three days
        day = table["day"].to_numpy()
        assert np.abs(np.unique(day[train])[:, None] - np.unique(day[test])).min() > 3
    else:
        assert train.size + test.size == len(table)
    order = np.random.default_rng(seed).permutation(len(table))
    ((train_moved, test_moved),) = splitter.split(table.iloc[order])
    np.testing.assert_array_equal(np.sort(order[train_moved]), train)
    np.testing.assert_array_equal(np.sort(order[test_moved]), test)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_held_out_days_are_spread_over_the_whole_time(fraction: float) -> None:
    table = made(side=2, days=400, every=1)
    for seed in range(10):
        ((_, test),) = hold_out(TimeBlockSplit(days=10, gap=0, seed=seed), fraction).split(table)
        quarter = np.bincount(table["day"].to_numpy()[test] // 100, minlength=4) / 400
        assert np.abs(quarter - fraction).max() <= 0.1 + 1e-9  # one block in a quarter of ten, more or less


def test_a_holdout_draws_other_blocks_for_another_seed_and_new_places_at_new_times() -> None:
    table = made()
    for how in SPLITS:
        sides = [next(iter(hold_out(make_split(how, seed=seed), 0.3).split(table)))[1] for seed in (0, 0, 1)]
        np.testing.assert_array_equal(sides[0], sides[1])
        assert not np.array_equal(sides[0], sides[2])
    ((train, test),) = hold_out(SpaceTimeSplit(gap=0), 0.3).split(table)
    place, time = space_blocks(table, 3), time_blocks(table, 10)
    assert not set(place[train]) & set(place[test])
    assert not set(time[train]) & set(time[test])
    ((train, test),) = hold_out(RandomSplit(n_splits=3), 0.25).split(table)
    assert test.size == 0.25 * len(table)


def test_a_holdout_takes_one_block_at_least_and_never_all() -> None:
    two = pd.DataFrame({"station": ["a"] * 9 + ["b"]})
    for fraction in (0.01, 0.3, 0.99):
        for seed in range(4):
            ((train, test),) = hold_out(StationBlockSplit(seed=seed), fraction).split(two)
            assert sorted((train.size, test.size)) == [1, 9]
    with pytest.raises(BlockError, match="has 1 group of station: nothing can be held out; give a table with more"):
        list(hold_out(StationBlockSplit(), 0.3).split(two.iloc[:9]))


@pytest.mark.parametrize("fraction", [0, 1, np.nan, -0.1, 2, np.inf, "0.3", None, True])
def test_a_fraction_that_is_no_share_is_refused(fraction: Any) -> None:
    for splitter in (RandomSplit(fraction=fraction), hold_out(StationBlockSplit(), fraction)):
        with pytest.raises(BlockError, match="fraction must be a share of the rows between 0 and 1; got"):
            list(splitter.split(made()))


NO_WHOLE_NUMBERS = {
    "n_splits": [2.5, "3", True, np.nan, None],
    "seed": [1.5, -1, None],
    "gap": [-1, 0.5],
    "days": [10.5, 9],
    "cells": [np.nan, 2],
}


@pytest.mark.parametrize(
    ("how", "setting"), [(how, name) for how in SPLITS for name in NO_WHOLE_NUMBERS if hasattr(make_split(how), name)]
)
def test_settings_that_are_no_whole_numbers_are_refused(how: str, setting: str) -> None:
    for value in NO_WHOLE_NUMBERS[setting]:
        splitter = replace(make_split(how), **{setting: value})
        for wrong in (splitter, hold_out(splitter, 0.3))[: 1 if setting == "n_splits" else 2]:
            with pytest.raises(BlockError, match=rf"at least \d+.*; got {value!r}") as caught:
                list(wrong.split(made()))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("splitter", "changes", "message"),
    [
        (SpaceBlockSplit(2, gap=1), {"row": 1e18}, r"row holds 1e\+18; expected whole numbers below 1e9"),
        (SpaceBlockSplit(2), {"col": 10**18}, r"col holds 1e\+18"),
        (SpaceBlockSplit(2), {"col": 2.5}, "col holds 2.5; expected whole numbers"),
        (SpaceBlockSplit(2), {"row": "north"}, "row holds no numbers, as 'north'"),
        (SpaceBlockSplit(2), {"row": "3"}, None),
        (SpaceTimeSplit(2), {"row": np.inf}, "2160 of 2160 rows have no row"),
        (TimeBlockSplit(2), {"local_date": 20170610}, "local_date holds numbers, as 20170610"),
        (TimeBlockSplit(2), {"local_date": "10.06.2017"}, "local_date holds no dates, as '10.06.2017'"),
        (TimeBlockSplit(2), {"local_date": ""}, "2160 of 2160 rows have no local_date"),
        (TimeBlockSplit(2), {"local_date": pd.Timestamp("2017-06-10", tz="UTC")}, "local_date has a time zone"),
        (TimeBlockSplit(2), {"local_date": pd.Period("2017-06")}, "local_date holds no dates"),
    ],
)
def test_places_and_dates_that_cannot_be_are_refused_in_one_line(
    splitter: Any, changes: dict[str, Any], message: str | None
) -> None:
    table = made().assign(**changes)
    if message is None:  # numbers as text are numbers
        assert [len(test) for _, test in splitter.split(table)] == [1080, 1080]
        return
    for one in (splitter, hold_out(splitter, 0.3)):
        with pytest.raises(InputError, match=message) as caught:
            list(one.split(table))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("latitude", 95), ("longitude", -999), ("latitude", "48 N")])
def test_stations_off_the_earth_are_refused(name: str, value: Any) -> None:
    table = stations(20, 0)
    table[name] = table[name].astype(object)
    table.loc[3, name] = value
    with pytest.raises(InputError, match=f"{name} holds ({value}; expected degrees|no numbers)"):
        list(SpaceBlockSplit(2).split(table))


def test_cells_far_apart_cost_no_memory() -> None:
    table = made(side=6, days=4).assign(row=lambda t: t["row"] * 10**8, col=lambda t: t["col"] * 10**8)
    tracemalloc.start()
    pairs = list(SpaceBlockSplit(2, gap=3).split(table))
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert all(train.size + test.size == len(table) for train, test in pairs)


def test_groups_of_several_types_and_lengths() -> None:
    table = made(3, 12)
    mixed = np.array([1, "a", 2.5], dtype=object)[np.arange(len(table)) % 3]
    for train, test in StationBlockSplit(3).split(table, groups=mixed):
        assert not set(map(str, mixed[train])) & set(map(str, mixed[test]))
    with pytest.raises(InputError, match=r"groups must be one label a row, shape \(27,\); got shape \(3,\)"):
        list(StationBlockSplit(3).split(table, groups=[1, 2, 3]))


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Any sample table: cells of a region anywhere, some rows missing, in any order, under any index."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    table = made(draw(st.integers(9, 14)), draw(st.integers(50, 90)), draw(st.integers(1, 6)))
    table["row"] += draw(st.integers(0, 400))
    table["col"] += draw(st.integers(0, 900))
    table = table.sample(frac=draw(st.floats(0.3, 1.0)), random_state=int(rng.integers(1000)))
    table.index = rng.integers(0, 50, len(table))
    return table


@settings(max_examples=40, deadline=None)
@given(table=tables(), how=st.sampled_from(sorted(SPLITS)), folds=st.integers(2, 4), seed=st.integers(0, 5))
def test_no_row_is_on_both_sides_and_blocks_follow_rows_in_any_order(
    table: pd.DataFrame, how: str, folds: int, seed: int
) -> None:
    splitter = make_split(how, n_splits=folds, seed=seed)
    pairs = list(splitter.split(table))
    assert len(pairs) == folds
    for train, test in pairs:
        assert not np.intersect1d(train, test).size
        assert train.size
        assert test.size
        assert np.unique(np.append(train, test)).size == train.size + test.size <= len(table)
    if how in ("time-block", "space-block", "station-block"):
        np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in pairs])), np.arange(len(table)))
    if how != "random":
        order = np.random.default_rng(seed).permutation(len(table))
        for (train, test), (train_moved, test_moved) in zip(pairs, splitter.split(table.iloc[order]), strict=True):
            np.testing.assert_array_equal(np.sort(order[train_moved]), train)
            np.testing.assert_array_equal(np.sort(order[test_moved]), test)


@settings(max_examples=30, deadline=None)
@given(
    table=tables(), folds=st.integers(2, 4), gap=st.integers(0, 3), days=st.integers(10, 11)
)  # four blocks in 45 days
def test_space_time_folds_are_new_places_at_new_times(table: pd.DataFrame, folds: int, gap: int, days: int) -> None:
    block, day = space_blocks(table, 3), table["day"].to_numpy()
    for train, test in SpaceTimeSplit(folds, gap=gap, days=days).split(table):
        assert not set(block[train]) & set(block[test])
        assert np.abs(np.unique(day[train])[:, None] - np.unique(day[test])).min() > gap


@settings(max_examples=30, deadline=None)
@given(days=st.integers(10, 40), last=st.integers(0, 200), first=st.integers(-5000, 20_000))
def test_no_time_block_is_shorter_than_half_of_what_was_asked(days: int, last: int, first: int) -> None:
    day = pd.Timestamp("1970-01-01") + pd.to_timedelta(first + np.arange(last + 1), unit="D")
    lengths = np.bincount(time_blocks(pd.DataFrame({"local_date": day}), days))
    assert lengths.size == 1 or lengths.min() >= days / 2
    assert (lengths[:-1] == days).all()
    assert lengths.max() < 1.5 * days or lengths.size == 1


def stations(count: int, seed: int) -> pd.DataFrame:
    """Stations of a region of 10 by 8 degrees, five days each; no rows and columns of a grid."""
    rng = np.random.default_rng(seed)
    places = np.repeat(np.arange(count), 5)
    lon, lat = rng.uniform(97, 107, count)[places], rng.uniform(26, 34, count)[places]
    date = pd.Timestamp("2017-06-10") + pd.to_timedelta(np.tile(np.arange(0, 50, 10), count), unit="D")
    return pd.DataFrame({"longitude": lon, "latitude": lat, "station": places, "local_date": date})


@settings(max_examples=30, deadline=None)
@given(count=st.integers(40, 120), cells=st.integers(3, 6), gap=st.integers(0, 2), seed=st.integers(0, 5))
def test_stations_go_by_squares_of_as_many_km(count: int, cells: int, gap: int, seed: int) -> None:
    table = stations(count, seed)
    points = chord_points(table["longitude"], table["latitude"])
    block = space_blocks(table, cells)
    for number in np.unique(block):
        inside = points[block == number]
        diagonal = np.linalg.norm(inside[:, None] - inside, axis=2).max()
        assert diagonal <= 1.03 * np.sqrt(2) * cells * CELL_KM  # a band's lower edge is a little longer than its middle
    for train, test in SpaceBlockSplit(3, seed, cells, gap).split(table):
        assert not set(block[train]) & set(block[test])
        assert np.linalg.norm(points[train][:, None] - points[test], axis=2).min() > gap * CELL_KM


def test_squares_of_stations_are_as_large_as_those_of_cells_everywhere() -> None:
    rng = np.random.default_rng(0)
    lat = np.rad2deg(np.arcsin(rng.uniform(-0.97, 0.97, 200_000)))
    block = space_blocks(pd.DataFrame({"longitude": rng.uniform(-180, 180, lat.size), "latitude": lat}), 30)
    sphere = 4 * np.pi * 6371.0088**2 * 0.97
    assert sphere / np.unique(block).size == pytest.approx((30 * CELL_KM) ** 2, rel=0.1)


@pytest.mark.parametrize("how", list(SPLITS))
def test_scikit_learn_takes_the_splitters_with_the_table_as_groups(how: str) -> None:
    table = made().sample(frac=1, random_state=0)
    splitter = make_split(how, n_splits=3)
    X, y = table[["row", "col", "day"]].to_numpy(float), table["row"].to_numpy(float)
    scores = cross_val_score(Ridge(), X, y, cv=splitter, groups=table, error_score="raise")
    by_hand = [Ridge().fit(X[a], y[a]).score(X[b], y[b]) for a, b in splitter.split(table)]
    np.testing.assert_allclose(scores, by_hand)
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 10.0]}, cv=splitter, error_score="raise").fit(X, y, groups=table)
    assert search.n_splits_ == splitter.get_n_splits(X, y, table) == 3
    assert clone(search).get_params()["cv"] == splitter
    assert clone(splitter, safe=False) == splitter == eval(repr(splitter), {type(splitter).__name__: type(splitter)})


def test_scikit_learn_predicts_every_row_of_a_blocked_table_once() -> None:
    table = made()
    columns = ["row", "col", "day", "local_date"]
    number = Ridge().fit(table[columns[:3]], table["row"])

    class Days(Ridge):
        def fit(self, X: pd.DataFrame, y: Any) -> "Days":
            return super().fit(X[columns[:3]], y)

        def predict(self, X: pd.DataFrame) -> Any:
            return super().predict(X[columns[:3]])

    found = cross_val_predict(Days(), table[columns], table["row"] * 1.0, cv=TimeBlockSplit(3))
    np.testing.assert_allclose(found, number.predict(table[columns[:3]]), atol=0.01)


@pytest.mark.parametrize(
    ("splitter", "table", "message"),
    [
        (TimeBlockSplit(5), made(3, 20), "2 time blocks of 10 days"),
        (TimeBlockSplit(2, days=5), made(3), "at least 10 days"),
        (TimeBlockSplit(2, gap=40), made(3), "empty side"),
        (SpaceBlockSplit(5), made(5, 1), "4 blocks of 3 coarse cells"),
        (SpaceBlockSplit(2, cells=2), made(5, 1), "at least 3 coarse cells"),
        (StationBlockSplit(13), made(12, 1), "12 groups of station"),
        (RandomSplit(fraction=0.3), made(1, 1), "one side empty"),
        (RandomSplit(0), made(3, 1), "n_splits must be at least 1; got 0"),
        (StationBlockSplit(1), made(3, 1), "n_splits must be at least 2; got 1"),
        (SpaceBlockSplit(2), made(3, 1), "has 1 block of 3 coarse cells: nothing can be held out"),
        (TimeBlockSplit(2), made(3, 4), "has 1 time block of 10 days: nothing can be held out"),
    ],
)
def test_too_few_or_too_small_blocks_are_refused(splitter: Any, table: pd.DataFrame, message: str) -> None:
    with pytest.raises(BlockError, match=message):
        list(splitter.split(table))


@pytest.mark.parametrize(
    ("splitter", "column"),
    [
        (TimeBlockSplit(2), "local_date"),
        (SpaceBlockSplit(2), "col"),
        (StationBlockSplit(2), "station"),
        (SpaceTimeSplit(2), "row"),
    ],
)
def test_rows_without_a_place_or_a_date_are_told(splitter: Any, column: str) -> None:
    table = made()
    table[column] = table[column].where(table.index != 7)
    with pytest.raises(InputError, match=f"1 of 2160 rows have no {column}"):
        list(splitter.split(table))
    with pytest.raises(InputError, match="the table has no rows"):
        list(splitter.split(table.iloc[:0]))


def test_missing_column_and_unknown_names_are_told() -> None:
    with pytest.raises(InputError, match="column 'station'; the table has local_date, row, col, day: add it"):
        list(StationBlockSplit(2).split(made().drop(columns="station")))
    with pytest.raises(InputError, match="'row' \\(with 'col', or longitude and latitude\\); the table has"):
        list(SpaceBlockSplit(2).split(made().drop(columns=["row", "col"])))
    with pytest.raises(InputError, match="X has none; pass the sample table as X or as groups"):
        list(TimeBlockSplit(2).split(np.eye(3)))
    with pytest.raises(RecipeError, match="'blocked' is unknown"):
        make_split("blocked")
    with pytest.raises(RecipeError, match="no setting size"):
        make_split("random", size=3)
    with pytest.raises(RecipeError, match="unknown"):
        inner_groups(made(), "blocked")


@pytest.mark.parametrize(
    ("how", "groups"),
    [("random", 2160), ("time-block", 6), ("space-block", 16), ("station-block", 12), ("space-time", 16)],
)
def test_inner_groups_are_the_blocks_of_the_split(how: str, groups: int) -> None:
    labels = inner_groups(made(), how)
    assert labels.dtype == np.int64
    assert np.unique(labels).size == groups
