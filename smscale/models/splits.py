"""Splits of the sample table, as scikit-learn splitters: random, and by blocks of time, space, station, or both.

A random split leaks, since neighbours and neighbouring days sit on both sides (Han et al., GMD 2023: RMSE 0.038 random,
0.060 new times, 0.079 new stations). Blocks should be no shorter than the correlation: ten days and three coarse cells
are the least that is taken without a word.

Every splitter has `split(X, y=None, groups=None)` yielding (train, test) row numbers and `get_n_splits()`; X is the sample
table (a DataFrame with the columns that the splitter names). All are deterministic for their seed, and no row is ever on
both sides. Rows in a gap are on neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smscale.errors import InputError, RecipeError

Labels = NDArray[np.int64]
Rows = NDArray[np.intp]

#: Least block sizes of the blocked splits: days, and coarse cells along a side.
LEAST_DAYS, LEAST_CELLS = 10, 3


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

    days : length of a block, at least ten
    gap : days between the two sides; 0 lets neighbours touch
    """

    days: int = LEAST_DAYS
    gap: int = 3

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side; reads `local_date`."""
        day = _days(X)
        block = time_blocks(X, self.days)
        _enough(np.unique(block).size, self.n_splits, f"time blocks of {self.days} days", "days")
        fold = np.unique(block, return_inverse=True)[1] % self.n_splits
        for number in range(self.n_splits):
            test = fold == number
            yield _sides(~_near_in_time(day, test, self.gap), test)


@dataclass(frozen=True)
class SpaceBlockSplit(_Folds):
    """Folds of square blocks of coarse cells; training cells within `gap` cells of a test cell are left out.

    cells : side of a block in coarse cells, at least three
    gap : cells between the two sides (along row or column, whichever is more); 0 lets neighbours touch
    """

    cells: int = LEAST_CELLS
    gap: int = 0

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side; reads `row` and `col`."""
        fold = _dealt(space_blocks(X, self.cells), self.n_splits, self.seed, f"blocks of {self.cells} coarse cells")
        for number in range(self.n_splits):
            test = fold == number
            yield _sides(~_near_in_space(X, test, self.gap), test)


@dataclass(frozen=True)
class StationBlockSplit(_Folds):
    """Folds of whole stations (or whatever `column` holds): no station is on both sides.

    column : column of the labels; where `split` gets `groups`, those are taken instead
    """

    column: str = "station"

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side."""
        labels = _column(X, self.column) if groups is None else np.asarray(groups)
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
        """Yield row numbers of the training and of the test side; reads `row`, `col` and `local_date`."""
        space = SpaceBlockSplit(self.n_splits, self.seed, self.cells).split(X)
        time = TimeBlockSplit(self.n_splits, self.seed, self.days, self.gap).split(X)
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
    """Number (n,) of each row's block of `days` local dates, from 0 on the table's first date."""
    if days < LEAST_DAYS:
        raise BlockError(f"time blocks must last at least {LEAST_DAYS} days; got {days}")
    day = _days(table)
    return (day - day.min()) // days


def space_blocks(table: pd.DataFrame, cells: int) -> Labels:
    """Label (n,) of each row's square of `cells` by `cells` coarse cells, anchored on the grid's first cell."""
    if cells < LEAST_CELLS:
        raise BlockError(f"space blocks must be at least {LEAST_CELLS} coarse cells wide; got {cells}")
    row, col = (_column(table, name).astype(np.int64) // cells for name in ("row", "col"))
    return _codes(row * (np.abs(col).max() + 1) + col)


def _column(table: Any, name: str) -> NDArray[Any]:
    if not hasattr(table, "columns") or name not in table.columns:
        raise InputError(f"the split needs the table's column {name!r}; pass the sample table as X")
    return np.asarray(table[name])


def _days(table: Any) -> Labels:
    return _column(table, "local_date").astype("datetime64[D]").astype(np.int64)


def _codes(labels: NDArray[Any]) -> Labels:
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _enough(blocks: int, folds: int, what: str, setting: str) -> None:
    if folds < 2 or blocks < folds:
        raise BlockError(
            f"{folds} folds need at least two and as many blocks; the table has {blocks} {what}: "
            f"ask for n_splits of 2 to {max(blocks, 2)}, or widen the {setting} of the table"
        )


def _dealt(labels: Labels, folds: int, seed: int, what: str) -> Labels:
    """Fold (n,) of each row: blocks in random order within equal sizes, the largest first, to the lightest fold."""
    counts = np.bincount(labels)
    _enough(counts.size, folds, what, "region")
    order = np.random.default_rng(seed).permutation(counts.size)
    order = order[np.argsort(-counts[order], kind="stable")]
    load, fold_of = np.zeros(folds, np.int64), np.empty(counts.size, np.int64)
    for block in order:
        fold_of[block] = np.argmin(load)
        load[fold_of[block]] += counts[block]
    return fold_of[labels]


def _near_in_time(day: Labels, test: NDArray[np.bool_], gap: int) -> NDArray[np.bool_]:
    """(n,) bool: the row's day is a test row's, or within `gap` days of one."""
    days = np.unique(day[test])
    after = np.searchsorted(days, day - gap)
    return (after < days.size) & (days[np.minimum(after, days.size - 1)] <= day + gap)


def _near_in_space(table: Any, test: NDArray[np.bool_], gap: int) -> NDArray[np.bool_]:
    """(n,) bool: the row's cell is a test row's, or at most `gap` rows and columns from one."""
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
