"""Which rows of a table are one place, told from the predictors alone: what folds should keep whole for who gave no groups.

What is static at a place (longitude, latitude, elevation, slope, land cover ...) shows in the table: the values of one such
column repeat, and fix those of the others. The day shows likewise, but days lie on a curve where places scatter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

#: Names of columns that say where a row is, whatever its values look like.
PLACE_NAMES = ("longitude", "latitude", "lon", "lat", "station", "row", "col", "x", "y", "easting", "northing", "cell")
#: A column labels places or days where each value has this many rows on average ...
REPEATS = 3
#: ... and the labels are so even: 1 / sum of squared shares, over their number. Precipitation is mostly zero: not even.
EVEN = 0.2
#: A column is fixed by another where it keeps less than this share of its diversity within the other's values.
LEFT = 0.05
#: Values nearer than this share of a column's standard deviation may be one, measured again (a station's GPS).
JITTER = 1e-3
#: Half the mean squared step of a column along a family's order, over its variance: 1 at random, 6 / m^2 for m even steps on a
#: line, 20 / m^2 on a circle (days, in a year). Below (ROUGH / m^2, between the two others) the family lies on a curve.
ROUGH, LEAST_ROUGH, MOST_ROUGH = 40.0, 0.02, 0.3
#: Points that are tried in the order of their angle too, which alone makes few points look smooth.
ANGLES = 20
#: Fewest places or days that are taken for a structure; more places than `MOST` are gathered into `BLOCKS` groups.
FEWEST, MOST, BLOCKS = 3, 500, 100
#: Side of a block of grid cells, as in the splits; days of a block where only days repeat; and the fewest blocks.
BLOCK_CELLS, BLOCK_DAYS, FEWEST_BLOCKS = 3, 10, 5
#: Rows and columns looked at for the structure; the groups are of all rows.
ROWS, COLUMNS = 20_000, 40


class Family(NamedTuple):
    """Columns that one label fixes: the label (n,) of each row, and the columns' numbers."""

    label: Labels
    columns: tuple[int, ...]


def place_groups(X: Floats, seed: int, names: Sequence[str] | None = None) -> Labels | None:
    """Groups (n,) of rows of X (n, k) that share a place (or a block of neighbouring ones), None where none shows.

    Stations are groups of their own. Cells of a grid, neighbours all, are gathered into squares of about three by three;
    more than `MOST` places into `BLOCKS` groups; where days alone repeat, ten consecutive ones are a group. `names`
    (k,), where known, say which columns are coordinates. Deterministic, whatever the order of the rows.
    """
    if len(X) < FEWEST * REPEATS:
        return None
    rows, where = np.unique(X, axis=0, return_inverse=True)
    where = where.ravel().astype(np.int64)
    if len(rows) <= len(X) / REPEATS:
        found = _place_of_rows(X, where, seed) if len(rows) >= FEWEST else None
    else:
        found = _place_groups(rows, seed, names)
        found = None if found is None else found[where]
    return found


def _place_of_rows(X: Floats, where: Labels, seed: int) -> Labels:
    """Groups (n,) where all columns are static: distinct rows are places."""
    return _gathered(X, Family(where, tuple(range(X.shape[1]))), repeating(X), seed)


def _place_groups(X: Floats, seed: int, names: Sequence[str] | None) -> Labels | None:
    labels = repeating(X)
    named = _named(X, labels, names)
    if named is not None:
        return _gathered(X, named, labels, seed)
    families = _families(labels, seed)
    curved = {family: _is_curve(X, families[family]) for family in families}
    places = {number: family for number, family in families.items() if not curved[number]}
    if places:
        return _gathered(X, _coarsest(places, labels), labels, seed)
    lattice = _lattice(labels, tuple(number for number in labels if not curved.get(number, False)), None)
    if lattice is not None and _fixes_another(lattice, labels):
        return _gathered(X, lattice, labels, seed)
    if families:
        days = max(families.values(), key=_worth)
        return _blocks(X, days, days.columns, (days.label.max() + 1) // BLOCK_DAYS, seed)
    return None


def repeating(X: Floats) -> dict[int, Labels]:
    """Labels (n,) of the columns of X (n, k) whose values repeat, by column; values within `JITTER` may count as one."""
    found = {}
    for number in range(X.shape[1]):
        label = _codes(X[:, number])
        if label is not None and label.max() > 0:
            found[number] = label
    return dict(list(found.items())[:COLUMNS])


def _codes(column: Floats) -> Labels | None:
    values, label = np.unique(column, return_inverse=True)
    most = column.size / REPEATS
    if values.size > most:
        near = JITTER * column.std()
        apart = np.diff(values) > near
        label = np.concatenate([[0], np.cumsum(apart)])[label]
        first, last = values[np.concatenate([[True], apart])], values[np.concatenate([apart, [True]])]
        if first.size > most or (last - first).max() > 10 * near:
            return None
    return label.astype(np.int64)


def _families(labels: Mapping[int, Labels], seed: int) -> dict[int, Family]:
    """Of each column that could name a place or a day: the columns that it fixes, where there is one beside itself."""
    rows = _drawn(labels, seed)
    found = {}
    for number, label in labels.items():
        if label.max() + 1 < FEWEST or not _even(label):
            continue
        fixed = tuple(other for other in labels if left(label[rows], labels[other][rows]) < LEFT)
        if len(fixed) > 1:
            found[number] = Family(label, fixed)
    return found


def _drawn(labels: Mapping[int, Labels], seed: int) -> NDArray[np.intp]:
    count = len(next(iter(labels.values()))) if labels else 0
    if count <= ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, ROWS, replace=False))


def left(label: Labels, other: Labels) -> float:
    """The chance that two rows of one `label` differ in `other` (both (n,)), over that of any two rows; 1 where no two share one."""
    pairs = label.size * (label.size - 1)
    within = _equal_pairs(label)
    free = 1 - _equal_pairs(other) / pairs
    if within == 0 or free == 0:
        return 1.0
    return float((1 - _equal_pairs(_joint(label, other)) / within) / free)


def _equal_pairs(label: Labels) -> float:
    counts = np.unique(label, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1)).sum())


def _joint(a: Labels, b: Labels) -> Labels:
    return np.unique(a * (b.max() + 1) + b, return_inverse=True)[1].astype(np.int64)


def _even(label: Labels) -> bool:
    share = np.bincount(label) / label.size
    return bool(1 / (share**2).sum() >= EVEN * share.size)


def _worth(family: Family) -> tuple[int, int]:
    """More columns first, then fewer labels."""
    return len(family.columns), -int(family.label.max())


def _coarsest(families: Mapping[int, Family], labels: Mapping[int, Labels]) -> Family:
    """The family of most columns; or a coarser one inside it that holds most of them (a cell, not a cell in a fortnight)."""
    best = max(families.values(), key=_worth)
    half = len(best.columns) / 2
    coarser = [families[n] for n in best.columns if n in families and len(families[n].columns) > half]
    lattice = _lattice(labels, best.columns, None)
    if lattice is not None and sum(left(lattice.label, labels[n]) < LEFT for n in best.columns) >= half:
        coarser.append(lattice)
    return min(coarser, key=lambda family: (int(family.label.max()), -len(family.columns)), default=best)


def _is_curve(X: Floats, family: Family) -> bool:
    """In the order of one of the family's columns (or of two, as an angle) all of them are smooth, as days are."""
    points = _standard(_means(X[:, list(family.columns)], family.label))
    few = points.shape[0]
    orders = list(points.T)
    if few >= ANGLES:
        orders += [np.arctan2(one, two) for one, two in combinations(points.T, 2)]
    rough = min(float((np.diff(points[np.argsort(by)], axis=0) ** 2).mean(axis=0).max()) / 2 for by in orders)
    return rough < min(max(ROUGH / few**2, LEAST_ROUGH), MOST_ROUGH)


def _means(values: Floats, label: Labels) -> Floats:
    """Mean (groups, k) of values (n, k) over the rows of each label."""
    sums = np.column_stack([np.bincount(label, weights=column) for column in values.T])
    return sums / np.bincount(label)[:, None]


def _standard(points: Floats) -> Floats:
    spread = points.std(axis=0)
    return (points - points.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def _named(X: Floats, labels: Mapping[int, Labels], names: Sequence[str] | None) -> Family | None:
    """The family of the columns whose names say place; rows that never repeat there are each a place."""
    columns = tuple(i for i, name in enumerate(() if names is None else names) if str(name).lower() in PLACE_NAMES)
    if not columns:
        return None
    label = np.zeros(len(X), np.int64)
    for column in columns:
        own = labels.get(column)
        label = _joint(label, np.unique(X[:, column], return_inverse=True)[1].astype(np.int64) if own is None else own)
    return Family(label, columns) if label.max() + 1 >= FEWEST else None


def _lattice(labels: Mapping[int, Labels], columns: Sequence[int], places: int | None) -> Family | None:
    """The two columns whose values cross into a grid of cells: each has far fewer values than there are cells.

    places : how many cells they must tell apart; None takes any number that repeats
    """
    best, fullest = None, 0.0
    for a, b in combinations([c for c in columns if labels[c].max() + 1 >= FEWEST], 2):
        label = _joint(labels[a], labels[b])
        count, one, two = (int(part.max()) + 1 for part in (label, labels[a], labels[b]))
        enough = count >= 0.9 * places if places else count <= label.size / REPEATS
        full = count / (one * two)
        if enough and max(one, two) <= count / 2 and _even(label) and full > fullest:
            best, fullest = Family(label, (a, b)), full
    return best


def _fixes_another(lattice: Family, labels: Mapping[int, Labels]) -> bool:
    return any(left(lattice.label, other) < LEFT for number, other in labels.items() if number not in lattice.columns)


def _gathered(X: Floats, family: Family, labels: Mapping[int, Labels], seed: int) -> Labels:
    """Places as they are, or gathered into blocks where they are cells of a grid, or very many."""
    places = int(family.label.max()) + 1
    lattice = _lattice(labels, [c for c in family.columns if c in labels], places)
    if lattice is not None:
        return _blocks(X, family, lattice.columns, min(BLOCKS, places // BLOCK_CELLS**2), seed)
    return family.label if places <= MOST else _blocks(X, family, family.columns, BLOCKS, seed)


def _blocks(X: Floats, family: Family, columns: Sequence[int], count: int, seed: int) -> Labels:
    """Labels (n,) of `count` compact clusters of a family's places (or days), near in `columns`."""
    from sklearn.cluster import KMeans

    points = _standard(_means(X[:, list(columns)], family.label))
    count = min(max(count, FEWEST_BLOCKS), len(np.unique(points, axis=0)))
    block = KMeans(count, n_init=1, random_state=seed % 2**32).fit(points).labels_
    return block[family.label].astype(np.int64)
