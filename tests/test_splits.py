"""Splits: no row, block, station or neighbouring day on both sides; clear refusal of too few blocks."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score

from smscale.errors import InputError, RecipeError
from smscale.models.splits import (
    SPLITS,
    BlockError,
    RandomSplit,
    SpaceBlockSplit,
    SpaceTimeSplit,
    StationBlockSplit,
    TimeBlockSplit,
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


def test_scikit_learn_takes_the_splitters() -> None:
    table = made()
    scores = cross_val_score(
        Ridge(), table[["row", "col", "day"]], table["row"] * 1.0, cv=list(TimeBlockSplit(3).split(table))
    )
    assert scores.shape == (3,)


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
    ],
)
def test_too_few_or_too_small_blocks_are_refused(splitter: Any, table: pd.DataFrame, message: str) -> None:
    with pytest.raises(BlockError, match=message):
        list(splitter.split(table))


def test_missing_column_and_unknown_names_are_told() -> None:
    with pytest.raises(InputError, match="'station'"):
        list(StationBlockSplit(2).split(made().drop(columns="station")))
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
