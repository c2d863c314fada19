"""How far a target is correlated in time and space, measured on the sample table; and how large blocks must be for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

from smscale.errors import InputError
from smscale.models import row_blocks

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

#: A distance class of fewer pairs tells nothing.
PAIRS = 50
#: Distance classes are one day or cell wide, then grow by this share of the distance.
GROWTH = 0.15
#: Rows, and of each time places, from which pairs are drawn; times that are looked at.
ROWS, PLACES, TIMES = 20_000, 150, 80
#: Steps between the rows of a place that make a pair: all up to this, then ever fewer.
STEPS = 40
#: Distance classes without which no length is fitted, lengths that are tried, and the least share of variance that counts.
CLASSES, LENGTHS, LEAST_SHARE = 4, 200, 0.1
DAYS_PER_YEAR = 365.25


class Lengths(NamedTuple):
    """e-folding lengths of the target's correlation: days, and coarse cells; NaN where it cannot be measured."""

    days: float
    cells: float


class BlockSizes(NamedTuple):
    """Sides of blocks, what was measured for them, and a line that says both."""

    days: int
    cells: int
    measured: Lengths
    line: str


def correlation_lengths(table: pd.DataFrame, target: str, seed: int = 0) -> Lengths:
    """Correlation lengths of a target in a sample table.

    In time: pairs of rows of one place, of what is left of the target without the mean annual cycle of all places (which a
    model knows from other days). In space: pairs of places at one time. Noise of single values (a nugget) counts for nothing,
    and no length is more than half the table's extent; 0 where there is nothing but noise, NaN where too few rows pair.

    Parameters
    ----------
    table : the target, and of `local_date`; `row`, `col`, or `longitude`, `latitude`; `station`; `overpass` what it has
    seed : of the pairs that are drawn from a large table

    Raises
    ------
    InputError : the target is absent, or a value is missing
    """
    values = _finite(table, target)
    rng = np.random.default_rng(seed)
    place, points = _places(table), _points(table)
    days = _in_time(values, row_blocks.local_days(table), place, rng) if "local_date" in table else np.nan
    cells = _in_space(values, _times(table), place, points, rng) if points is not None else np.nan
    return Lengths(days, cells)


def block_sizes(
    table: pd.DataFrame,
    target: str,
    folds: int,
    least_cells: int = row_blocks.LEAST_CELLS,
    least_days: int = row_blocks.LEAST_DAYS,
    seed: int = 0,
) -> BlockSizes:
    """Blocks as long as the target is correlated, no smaller than the least, cut down to what leaves enough of them.

    Enough are `folds`, and three, so that what trains has two to choose by. A table without dates, or without places, has the
    least size there.

    Parameters
    ----------
    table, target, seed : as in `correlation_lengths`
    folds : into how many the blocks are dealt
    """
    measured = correlation_lengths(table, target, seed)
    enough = max(folds, 3)
    days, cells = (least_days, False), (least_cells, False)
    if "local_date" in table:
        days = _size(table, measured.days, least_days, enough, row_blocks.time_blocks)
    if _points(table) is not None:
        cells = _size(table, measured.cells, least_cells, enough, row_blocks.space_blocks)
    line = "; ".join(
        _said(what, length, *size, least, enough)
        for what, length, size, least in (
            ("days", measured.days, days, least_days),
            ("cells", measured.cells, cells, least_cells),
        )
    )
    return BlockSizes(days[0], cells[0], measured, line)


def _size(
    table: pd.DataFrame, length: float, least: int, enough: int, blocks: Callable[[pd.DataFrame, int], Labels]
) -> tuple[int, bool]:
    """The side of a block, and whether the table's extent has cut it down."""
    wanted = max(least, int(np.ceil(length))) if np.isfinite(length) else least
    size = wanted
    while size > least and np.unique(blocks(table, size)).size < enough:
        size -= 1
    return size, size < wanted


def _said(what: str, length: float, size: int, capped: bool, least: int, enough: int) -> str:
    found = f"correlated over {length:.1f} {what}" if np.isfinite(length) else f"correlation in {what} not measurable"
    why = ""
    if capped:
        why = f", capped: longer ones would leave fewer than {enough}"
    elif size == least:
        why = ", the least"
    return f"{found}, blocks of {size} {what}{why}"


def _finite(table: pd.DataFrame, target: str) -> Floats:
    if target not in table:
        raise InputError(f"the sample table lacks {target}; it has {', '.join(map(str, table.columns))}")
    values = table[target].to_numpy(np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad or not len(values):
        raise InputError(f"{target} is not finite in {bad} of {len(values)} rows; leave those rows out")
    return values


def _places(table: pd.DataFrame) -> Labels:
    """Label (n,) of each row's place: its cell, station or coordinates; one for all where the table says none."""
    for names in (("row", "col"), ("station",), ("longitude", "latitude")):
        if set(names) <= set(table):
            return _label(table, names)
    return np.zeros(len(table), np.int64)


def _times(table: pd.DataFrame) -> Labels:
    """Label (n,) of each row's step: the date, and the overpass where there is one."""
    return _label(table, [name for name in ("local_date", "overpass") if name in table])


def _label(table: pd.DataFrame, names: Sequence[str]) -> Labels:
    columns = [row_blocks.codes(row_blocks.column(table, name)) for name in names] or [np.zeros(len(table), np.int64)]
    return np.unique(np.column_stack(columns), axis=0, return_inverse=True)[1].ravel().astype(np.int64)


def _points(table: pd.DataFrame) -> Floats | None:
    """Coordinates (n, 2) or (n, 3) whose distances are in coarse cells; None where the table has none."""
    if {"row", "col"} <= set(table):
        return row_blocks.positions(table)
    if {"longitude", "latitude"} <= set(table):
        return row_blocks.positions(table) / row_blocks.CELL_KM
    return None


def _in_time(values: Floats, day: Labels, place: Labels, rng: np.random.Generator) -> float:
    order = np.lexsort((day, place))
    day, place = day[order], place[order]
    left = _without_annual_cycle(values[order], day)
    starts = np.arange(day.size)
    if starts.size > ROWS:
        starts = np.sort(rng.choice(starts.size, ROWS, replace=False))
    longest = np.ptp(day) / 2
    one, two = [], []
    step = 1
    while step < day.size:
        a = starts[starts + step < day.size]
        a = a[(place[a + step] == place[a]) & (day[a + step] - day[a] <= longest)]
        if not a.size:
            break
        one.append(a)
        two.append(a + step)
        step = step + 1 if step < STEPS else int(step * (1 + GROWTH / 3))
    if not one:
        return np.nan
    a, b = np.concatenate(one), np.concatenate(two)
    return _length((day[b] - day[a]).astype(np.float64), left[a], left[b])


def _without_annual_cycle(values: Floats, day: Labels) -> Floats:
    """What a sine and a cosine of the year leave; all where the table does not last half a year, as they would fit anything."""
    if np.ptp(day) < DAYS_PER_YEAR / 2:
        return values
    angle = 2 * np.pi * day / DAYS_PER_YEAR
    waves = np.column_stack([np.ones(day.size), np.sin(angle), np.cos(angle)])
    return values - waves @ np.linalg.lstsq(waves, values, rcond=None)[0]


def _in_space(values: Floats, time: Labels, place: Labels, points: Floats, rng: np.random.Generator) -> float:
    order = np.lexsort((place, time))
    bounds = np.searchsorted(time[order], np.arange(time.max() + 2))
    times = rng.permutation(time.max() + 1)[:TIMES]
    one, two = [], []
    for number in times:
        rows = order[bounds[number] : bounds[number + 1]]
        if rows.size > PLACES:
            rows = rng.choice(rows, PLACES, replace=False)
        a, b = np.triu_indices(rows.size, 1)
        one.append(rows[a])
        two.append(rows[b])
    a, b = np.concatenate(one), np.concatenate(two)
    distance = np.sqrt(((points[a] - points[b]) ** 2).sum(axis=1))
    near = distance <= float(np.ptp(points, axis=0).max()) / 2
    return _length(distance[near], values[a[near]], values[b[near]])


def _length(distance: Floats, a: Floats, b: Floats) -> float:
    """e-folding length of the correlation of values a and b (n,) at a distance (n,), by an exponential variogram.

    Half the mean squared difference at distance h is fitted by nugget + sill (1 - exp(-h / length)), least squares with weights
    pairs / h^2 (Pebesma 2004, doi:10.1016/j.cageo.2004.03.012): a mean taken off before leaves it as it is.
    """
    near = distance >= 0.5
    distance, squares = distance[near], (a[near] - b[near]) ** 2 / 2
    if distance.size < PAIRS:
        return np.nan
    edges = [0.5]
    while edges[-1] <= distance.max():
        edges.append(edges[-1] + max(1.0, GROWTH * edges[-1]))
    which = np.searchsorted(edges, distance, side="right") - 1
    pairs = np.bincount(which)
    kept = pairs >= PAIRS
    if kept.sum() < CLASSES:
        return np.nan
    at, half = (np.bincount(which, weights=part)[kept] / pairs[kept] for part in (distance, squares))
    return _fitted(at, half, np.sqrt(pairs[kept]) / at)


def _fitted(at: Floats, half: Floats, weight: Floats) -> float:
    """The best of many lengths, for each of which nugget and sill are a linear problem; 0 where the sill is next to nothing."""
    found = []
    for length in np.geomspace(at[0] / 3, at[-1], LENGTHS):
        terms = np.column_stack([np.ones(at.size), 1 - np.exp(-at / length)])
        (nugget, sill), error = nnls(terms * weight[:, None], half * weight)
        found.append((error, length, sill / max(nugget + sill, np.finfo(float).tiny)))
    _, length, share = min(found)
    return float(length) if share >= LEAST_SHARE else 0.0
