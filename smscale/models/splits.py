"""Splits of the sample table, as scikit-learn splitters: random, and by blocks of time, space, station, or both.

A random split leaks, since neighbours and neighbouring days sit on both sides (Han et al., GMD 2023: RMSE 0.038 random,
0.060 new times, 0.079 new stations). Blocks should be no shorter than the correlation: ten days and three coarse cells
are the least that is taken without a word.

Every splitter has `split(X, y=None, groups=None)` yielding (train, test) row numbers and `get_n_splits()`; X is the sample
table (a DataFrame with the columns that the splitter names), or, where X has predictors alone, `groups` is:
`cross_val_score(model, X, y, cv=TimeBlockSplit(5), groups=table)`. All are deterministic for their seed, and no row is ever
on both sides. Rows in a gap are on neither. Blocks do not depend on the order of the rows. What a splitter cannot work with,
`split` refuses in one line. `hold_out` makes the splitter that holds out a share of the rows once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smscale.errors import InputError, RecipeError
from smscale.models import row_blocks
from smscale.models.row_blocks import LEAST_CELLS, LEAST_DAYS, BlockError, Labels, space_blocks, time_blocks
from smscale.models.samples import deal

Rows = NDArray[np.intp]

#: Steps of this share of a circle lie as even as any, however many are taken (three-distance theorem).
GOLDEN = (np.sqrt(5) - 1) / 2


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

    def _check(self, least: int = 2) -> None:
        """Refuse settings that are no whole numbers, or too small; the sizes of blocks are refused where they are cut."""
        row_blocks.require_whole("n_splits", self.n_splits, least)
        for name in ("seed", "gap"):
            row_blocks.require_whole(name, getattr(self, name, 0), 0)


@dataclass(frozen=True)
class RandomSplit(_Folds):
    """The paper's split: `fraction` of the rows at random, drawn anew for each of `n_splits`. It leaks.

    fraction : share of rows on the test side, 0 < fraction < 1
    """

    n_splits: int = 1
    fraction: float = 0.3

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side."""
        self._check(least=1)
        _share(self.fraction)
        rows = len(X)
        test = int(np.ceil(self.fraction * rows))
        if not 0 < test < rows:
            raise BlockError(f"a random split of {rows} rows with fraction {self.fraction} leaves one side empty")
        for repeat in range(self.n_splits):
            order = np.random.default_rng([self.seed, repeat]).permutation(rows)
            yield np.sort(order[test:]), np.sort(order[:test])


@dataclass(frozen=True)
class _Blocked(_Folds):
    """Folds of whole blocks; what a splitter adds is its blocks, how they are dealt, and which rows lie too near."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side."""
        self._check()
        table = _table(X, groups)
        block = self._blocks(table, groups)
        _enough(int(block.max()) + 1, self.n_splits, self._called())
        fold = self._deal(block)
        for number in range(self.n_splits):
            yield _sides(~self._near(table, fold == number), fold == number)

    def _blocks(self, table: Any, groups: Any) -> Labels:
        """Block (n,) of each row, counted from 0."""
        raise NotImplementedError

    def _called(self) -> tuple[str, str]:
        """What the blocks are called, and what a table needs for more of them."""
        raise NotImplementedError

    def _deal(self, block: Labels) -> Labels:
        """Fold (n,) of each row."""
        return deal(block, self.n_splits, np.random.default_rng(self.seed))

    def _order(self, blocks: int) -> Rows:
        """All blocks in the order in which `Holdout` draws them."""
        return np.random.default_rng(self.seed).permutation(blocks)

    def _near(self, table: Any, test: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(n,) bool: the row is a test row (n,), or within the gap of one."""
        return test


@dataclass(frozen=True)
class TimeBlockSplit(_Blocked):
    """Folds of blocks of consecutive days; training rows within `gap` days of a test block are left out.

    Blocks count from the table's first day; every `n_splits`-th is tested together, so that a fold sees all seasons. It reads
    `local_date`.

    days : length of a block, at least ten; a last one of less than half of that belongs to the one before
    gap : days between the two sides; 0 lets neighbours touch
    """

    days: int = LEAST_DAYS
    gap: int = 3

    def _blocks(self, table: Any, groups: Any) -> Labels:
        return row_blocks.codes(time_blocks(table, self.days))

    def _called(self) -> tuple[str, str]:
        return f"time block[s] of {self.days} days", "a longer time"

    def _deal(self, block: Labels) -> Labels:
        return block % self.n_splits

    def _order(self, blocks: int) -> Rows:
        """Spread over the whole time, from a drawn beginning."""
        start = np.random.default_rng(self.seed).random()
        return np.argsort((start + GOLDEN * np.arange(blocks)) % 1.0)

    def _near(self, table: Any, test: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return row_blocks.near_in_time(row_blocks.local_days(table), test, self.gap)


@dataclass(frozen=True)
class SpaceBlockSplit(_Blocked):
    """Folds of square blocks of coarse cells; training cells within `gap` cells of a test cell are left out.

    It reads `row` and `col`. Rows that have none but longitude and latitude (stations) go by squares as large, in km.

    cells : side of a block in coarse cells, at least three
    gap : cells between the two sides (along row or column, whichever is more; their size in km for stations); 0 lets
        neighbours touch
    """

    cells: int = LEAST_CELLS
    gap: int = 0

    def _blocks(self, table: Any, groups: Any) -> Labels:
        return space_blocks(table, self.cells)

    def _called(self) -> tuple[str, str]:
        return f"block[s] of {self.cells} coarse cells", "a larger region"

    def _near(self, table: Any, test: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return row_blocks.near_in_space(table, test, self.gap) if self.gap else test


@dataclass(frozen=True)
class StationBlockSplit(_Blocked):
    """Folds of whole stations (or whatever `column` holds): no station is on both sides.

    column : column of the labels; where `split` gets `groups` (n,), those are taken instead
    """

    column: str = "station"

    def _blocks(self, table: Any, groups: Any) -> Labels:
        if groups is None or table is groups:
            return row_blocks.codes(row_blocks.column(table, self.column))
        labels = np.asarray(groups)
        if labels.shape != (len(table),):
            raise InputError(f"groups must be one label a row, shape ({len(table)},); got shape {labels.shape}")
        return row_blocks.codes(row_blocks.known(labels, "groups"))

    def _called(self) -> tuple[str, str]:
        return f"group[s] of {self.column}", f"more groups of {self.column}"


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
        self._check()
        table = _table(X, groups)
        space, time = self.parts()
        for one, other in zip(space.split(table), time.split(table), strict=True):
            yield _both(one, other)

    def parts(self) -> tuple[SpaceBlockSplit, TimeBlockSplit]:
        """Its split of places, and that of times."""
        space = SpaceBlockSplit(self.n_splits, self.seed, self.cells)
        return space, TimeBlockSplit(self.n_splits, self.seed, self.days, self.gap)


@dataclass(frozen=True)
class Holdout(Splitter):
    """One pair of sides: whole blocks of `folds`, drawn until they have the share of the rows nearest to `fraction`.

    Blocks come in random order, those of time spread over all of it; one that would lead further away is passed over. The gap of
    `folds` is kept; its `n_splits` counts for nothing. Of a SpaceTimeSplit `fraction` of the places in `fraction` of the time
    are tested, and neither trains.

    fraction : share of rows on the test side, 0 < fraction < 1
    """

    folds: _Blocked | SpaceTimeSplit
    fraction: float = 0.3

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """One."""
        return 1

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of the training and of the test side."""
        replace(self.folds, n_splits=2)._check()
        _share(self.fraction)
        table = _table(X, groups)
        if isinstance(self.folds, SpaceTimeSplit):
            yield _both(*(next(Holdout(part, self.fraction).split(table)) for part in self.folds.parts()))
            return
        block = self.folds._blocks(table, groups)
        sizes = np.bincount(block)
        _enough(sizes.size, 2, self.folds._called())
        test = np.isin(block, _drawn(sizes, self.folds._order(sizes.size), self.fraction))
        yield _sides(~self.folds._near(table, test), test)


def _drawn(sizes: Labels, order: Rows, fraction: float) -> list[int]:
    """Blocks of `sizes` (b,) rows, taken in `order` while that brings their rows nearer to a fraction; one at least, and not all."""
    taken: list[int] = []
    wanted, held = fraction * float(sizes.sum()), 0.0
    for block in order[: sizes.size - 1]:
        if abs(held + sizes[block] - wanted) < abs(held - wanted):
            taken.append(int(block))
            held += float(sizes[block])
    return taken or [int(order[np.argmin(sizes[order])])]


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


def hold_out(splitter: Splitter, fraction: float) -> Splitter:
    """The splitter that holds out `fraction` of the rows once: rows of a RandomSplit, else whole blocks of `splitter`."""
    if isinstance(splitter, RandomSplit):
        return replace(splitter, n_splits=1, fraction=fraction)
    assert isinstance(splitter, _Blocked | SpaceTimeSplit)
    return Holdout(splitter, fraction)


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
        return row_blocks.codes(time_blocks(table, days))
    if how == "station-block":
        return row_blocks.codes(row_blocks.column(table, column))
    return row_blocks.codes(space_blocks(table, cells))


def _table(X: Any, groups: Any) -> Any:
    """What has the columns: `groups` where it is a DataFrame, else X."""
    return groups if hasattr(groups, "columns") else X


def _share(fraction: Any) -> None:
    if isinstance(fraction, bool) or not isinstance(fraction, int | float | np.number) or not 0 < fraction < 1:
        raise BlockError(f"fraction must be a share of the rows between 0 and 1; got {fraction!r}")


def _enough(blocks: int, folds: int, called: tuple[str, str]) -> None:
    if blocks < folds:
        what, more = called[0].replace("[s]", "" if blocks == 1 else "s"), called[1]
        if blocks < 2:
            raise BlockError(f"the table has {blocks} {what}: nothing can be held out; give a table with {more}")
        fewer = f"2 to {blocks}" if blocks > 2 else "2"
        raise BlockError(
            f"{folds} folds need as many blocks; the table has {blocks} {what}: ask for {fewer} folds, or give a table with {more}"
        )


def _sides(train: NDArray[np.bool_], test: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    if not train.any() or not test.any():
        raise BlockError(
            "a fold has an empty side: the gap takes all training rows; shorten the gap, take more folds or a longer table"
        )
    return np.flatnonzero(train), np.flatnonzero(test)


def _both(space: Sequence[Rows], time: Sequence[Rows]) -> tuple[Rows, Rows]:
    """Sides that lie on their own side in space and in time."""
    train, test = np.intersect1d(space[0], time[0]), np.intersect1d(space[1], time[1])
    if not train.size or not test.size:
        raise BlockError("a space-time split has an empty side; ask for fewer folds, or give a longer table")
    return train, test
