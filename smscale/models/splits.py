"""Splits of the sample table, as scikit-learn splitters: random, and by blocks of time, space, station, or both.

A random split leaks, since neighbours and neighbouring days sit on both sides (Han et al., GMD 2023: RMSE 0.038 random,
0.060 new times, 0.079 new stations). Blocks should be no shorter than the correlation: ten days and three coarse cells
are the least that is taken without a word.

Every splitter has `split(X, y=None, groups=None)` yielding (train, test) row numbers and `get_n_splits()`; X is the sample
table (a DataFrame with the columns that the splitter names), or, where X has predictors alone, `groups` is:
`cross_val_score(model, X, y, cv=TimeBlockSplit(5), groups=table)`. All are deterministic for their seed, and no row is ever
on both sides. Rows in a gap are on neither. Blocks do not depend on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from smscale.errors import InputError, RecipeError
from smscale.grid import EARTH_RADIUS_KM, EASE2_GRIDS
from smscale.kernels.sphere import chord_points
from smscale.models.samples import deal

Labels = NDArray[np.int64]
Rows = NDArray[np.intp]

#: Least block sizes of the blocked splits: days, and coarse cells along a side.
LEAST_DAYS, LEAST_CELLS = 10, 3
#: Side of a coarse cell, km: what `cells` counts where a table has places but no grid.
CELL_KM = EASE2_GRIDS[36][2] / 1000
KM_PER_DEGREE = np.pi * EARTH_RADIUS_KM / 180


class BlockError(InputError):
    """A table has too few blocks for a split, or the blocks asked for are too small."""


class Splitter(Protocol):
    """What scikit-learn calls a splitter."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side."""
        ...

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """How many pairs `split` yields."""
        ...


@dataclass(frozen=True)
class _Folds(Splitter):
    """Part that all share."""

    n_splits: int = 5
    seed: int = 0

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """How many pairs `split` yields."""
        return self.n_splits


@dataclass(frozen=True)
class RandomSplit(_Folds):
    """The paper's split: `fraction` of the rows at random, drawn anew for each of `n_splits`. It leaks.

    fraction : share of rows on the test side, 0 < fraction < 1
    """

    n_splits: int = 1
    fraction: float = 0.3

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side."""
        _at_least_two(self.n_splits, least=1)
        rows = len(X)
        test = int(np.ceil(self.fraction * rows))
        if not 0 < test < rows:
            raise BlockError(f"a random split of {rows} rows with fraction {self.fraction} leaves one side empty")
        for repeat in range(self.n_splits):
            order = np.random.default_rng([self.seed, repeat]).permutation(rows)
            yield np.sort(order[test:]), np.sort(order[:test])


@dataclass(frozen=True)
class TimeBlockSplit(_Folds):
    """Folds of blocks of consecutive days; training rows within `gap` days of a test block are left out.

    Blocks count from the table's first day; every `n_splits`-th is tested together, so that a fold sees all seasons.

    days : length of a block, at least ten; a last one of less than half of that belongs to the one before
    gap : days between the two sides; 0 lets neighbours touch
    """

    days: int = LEAST_DAYS
    gap: int = 3

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side; reads `local_date`."""
        table = _table(X, groups)
        day, block = _days(table), time_blocks(table, self.days)
        _enough(np.unique(block).size, self.n_splits, f"time blocks of {self.days} days", "days")
        fold = np.unique(block, return_inverse=True)[1] % self.n_splits
        for number in range(self.n_splits):
            test = fold == number
            yield _sides(~_near_in_time(day, test, self.gap), test)


@dataclass(frozen=True)
class SpaceBlockSplit(_Folds):
    """Folds of square blocks of coarse cells; training cells within `gap` cells of a test cell are left out.

    Rows that have no `row` and `col` but longitude and latitude (stations) go by squares as large, in km.

    cells : side of a block in coarse cells, at least three
    gap : cells between the two sides (along row or column, whichever is more; their size in km for stations); 0 lets
        neighbours touch
    """

    cells: int = LEAST_CELLS
    gap: int = 0

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side; reads `row` and `col`, or `longitude` and `latitude`."""
        table = _table(X, groups)
        fold = _dealt(space_blocks(table, self.cells), self.n_splits, self.seed, f"blocks of {self.cells} coarse cells")
        for number in range(self.n_splits):
            test = fold == number
            yield _sides(~_near_in_space(table, test, self.gap), test)


@dataclass(frozen=True)
class StationBlockSplit(_Folds):
    """Folds of whole stations (or whatever `column` holds): no station is on both sides.

    column : column of the labels; where `split` gets `groups` (n,), those are taken instead
    """

    column: str = "station"

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side."""
        table = _table(X, groups)
        labels = (
            _column(table, self.column) if groups is None or table is groups else _known(np.asarray(groups), "groups")
        )
        fold = _dealt(_codes(labels), self.n_splits, self.seed, f"groups of {self.column}")
        for number in range(self.n_splits):
            yield _sides(fold != number, fold == number)


@dataclass(frozen=True)
class SpaceTimeSplit(_Folds):
    """New places at new times: fold i tests the i-th space fold in the i-th time fold, and trains on neither.

    cells, days, gap : as in SpaceBlockSplit and TimeBlockSplit (the gap in days; in space the sides may touch)
    """

    cells: int = LEAST_CELLS
    days: int = LEAST_DAYS
    gap: int = 3

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side; reads what SpaceBlockSplit and TimeBlockSplit read."""
        table = _table(X, groups)
        space = SpaceBlockSplit(self.n_splits, self.seed, self.cells).split(table)
        time = TimeBlockSplit(self.n_splits, self.seed, self.days, self.gap).split(table)
        for (space_train, space_test), (time_train, time_test) in zip(space, time, strict=True):
            train, test = np.intersect1d(space_train, time_train), np.intersect1d(space_test, time_test)
            if not train.size or not test.size:
                raise BlockError(
                    f"a space-time split of {self.n_splits} folds has an empty side in {len(X)} rows; ask for fewer folds"
                )
            yield train, test


SPLITS: dict[str, type[_Folds]] = {
    "random": RandomSplit,
    "time-block": TimeBlockSplit,
    "space-block": SpaceBlockSplit,
    "station-block": StationBlockSplit,
    "space-time": SpaceTimeSplit,
}


def make_split(how: str, **settings: Any) -> Splitter:
    """The splitter named `how` (a key of SPLITS) with its own settings.

    Raises
    ------
    RecipeError : an unknown name or setting.
    """
    if how not in SPLITS:
        raise RecipeError(f"split {how!r} is unknown; expected one of {', '.join(SPLITS)}")
    known = SPLITS[how].__dataclass_fields__
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise RecipeError(f"split {how!r} has no setting {', '.join(unknown)}; it takes {', '.join(known)}")
    return SPLITS[how](**settings)


def inner_groups(
    table: pd.DataFrame, how: str, *, cells: int = LEAST_CELLS, days: int = LEAST_DAYS, column: str = "station"
) -> Labels:
    """Labels (n,) of the blocks that nested folds keep whole, so that what is chosen inside is chosen as it is scored.

    "random" gives every row its own label; "time-block" its block of `days`; "space-block" its square of `cells`;
    "station-block" its `column`; "space-time" the square as well, as new places are harder than new times.
    """
    if how not in SPLITS:
        raise RecipeError(f"split {how!r} is unknown; expected one of {', '.join(SPLITS)}")
    if how == "random":
        return np.arange(len(table), dtype=np.int64)
    if how == "time-block":
        return _codes(time_blocks(table, days))
    if how == "station-block":
        return _codes(_column(table, column))
    return _codes(space_blocks(table, cells))


def time_blocks(table: pd.DataFrame, days: int) -> Labels:
    """Number (n,) of each row's block of `days` local dates, from 0 on the table's first date.

    A last block of less than half of `days` is part of the one before.
    """
    if days < LEAST_DAYS:
        raise BlockError(f"time blocks must last at least {LEAST_DAYS} days; got {days}")
    day = _days(table)
    since = day - day.min()
    whole, rest = divmod(int(since.max()) + 1, days)
    last = whole if 2 * rest >= days or whole == 0 else whole - 1
    return np.minimum(since // days, last)


def space_blocks(table: pd.DataFrame, cells: int) -> Labels:
    """Label (n,) of each row's square of `cells` by `cells` coarse cells, anchored on the grid's first cell.

    Without `row` and `col`: of each row's square of as many km, in bands of latitude counted from the equator, in each from
    180 degrees west.
    """
    if cells < LEAST_CELLS:
        raise BlockError(f"space blocks must be at least {LEAST_CELLS} coarse cells wide; got {cells}")
    if on_grid(table):
        row, col = (_column(table, name).astype(np.int64) // cells for name in ("row", "col"))
    else:
        row, col = _squares(_column(table, "longitude"), _column(table, "latitude"), cells * CELL_KM)
    return _codes((row - row.min()) * (np.ptp(col) + 1) + col - col.min())


def on_grid(table: Any) -> bool:
    """The table has rows and columns of a grid, and not stations' longitudes and latitudes alone."""
    names = getattr(table, "columns", ())
    return ("row" in names and "col" in names) or not ("longitude" in names and "latitude" in names)


def _squares(lon: NDArray[Any], lat: NDArray[Any], side: float) -> tuple[Labels, Labels]:
    """Band of latitude and square in it (n,), `side` km wide, of longitudes and latitudes in degrees."""
    height = side / KM_PER_DEGREE
    band = np.floor(lat.astype(np.float64) / height).astype(np.int64)
    shrink = np.cos(np.deg2rad(np.clip((band + 0.5) * height, -89.0, 89.0)))
    return band, np.floor((lon.astype(np.float64) + 180) % 360 * shrink / height).astype(np.int64)


def _table(X: Any, groups: Any) -> Any:
    """What has the columns: `groups` where it is a DataFrame, else X."""
    return groups if hasattr(groups, "columns") else X


def _column(table: Any, name: str) -> NDArray[Any]:
    if not hasattr(table, "columns") or name not in table.columns:
        raise InputError(f"the split needs the table's column {name!r}; pass the sample table as X")
    return _known(np.asarray(table[name]), name)


def _known(labels: NDArray[Any], name: str) -> NDArray[Any]:
    missing = int(pd.isna(labels).sum())
    if labels.dtype.kind == "f":
        missing += int(np.isinf(labels).sum())
    if missing or not labels.size:
        what = f"{missing} of {labels.size} rows have no {name}" if missing else "the table has no rows"
        raise InputError(f"{what}: no split can place them; leave those rows out, or give them one")
    return labels


def _days(table: Any) -> Labels:
    return _column(table, "local_date").astype("datetime64[D]").astype(np.int64)


def _codes(labels: NDArray[Any]) -> Labels:
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _at_least_two(folds: int, least: int = 2) -> None:
    if folds < least:
        raise BlockError(f"n_splits must be at least {least}; got {folds}")


def _enough(blocks: int, folds: int, what: str, setting: str) -> None:
    _at_least_two(folds)
    if blocks < folds:
        fewer = f"ask for n_splits of 2 to {blocks}, or" if blocks > 1 else "nothing can be held out:"
        raise BlockError(
            f"{folds} folds need as many blocks; the table has {blocks} {what}: {fewer} widen its {setting}"
        )


def _dealt(labels: Labels, folds: int, seed: int, what: str) -> Labels:
    """Fold (n,) of each row of labels (n,) counted from 0, dealt by `samples.deal`; BlockError where they are too few."""
    _enough(int(labels.max()) + 1, folds, what, "region")
    return deal(labels, folds, np.random.default_rng(seed))


def _near_in_time(day: Labels, test: NDArray[np.bool_], gap: int) -> NDArray[np.bool_]:
    """(n,) bool: the row's day is a test row's, or within `gap` days of one."""
    days = np.unique(day[test])
    after = np.searchsorted(days, day - gap)
    return (after < days.size) & (days[np.minimum(after, days.size - 1)] <= day + gap)


def _near_in_space(table: Any, test: NDArray[np.bool_], gap: int) -> NDArray[np.bool_]:
    """(n,) bool: the row's cell is a test row's, or at most `gap` rows and columns (or as many cells' km) from one."""
    if not on_grid(table):
        points = chord_points(_column(table, "longitude"), _column(table, "latitude"))
        return test | (cKDTree(points[test]).query(points)[0] <= gap * CELL_KM)
    row, col = (_column(table, name).astype(np.int64) for name in ("row", "col"))
    row, col = row - row.min() + gap, col - col.min() + gap
    near = np.zeros((row.max() + gap + 1, col.max() + gap + 1), dtype=bool)
    for i in range(-gap, gap + 1):
        for j in range(-gap, gap + 1):
            near[row[test] + i, col[test] + j] = True
    return near[row, col]


def _sides(train: NDArray[np.bool_], test: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    if not train.any() or not test.any():
        raise BlockError("a fold has an empty side: the gap takes all training rows; shorten gap or take more folds")
    return np.flatnonzero(train), np.flatnonzero(test)
