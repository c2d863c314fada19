"""Blocks of a sample table's rows, in time and in space, and which rows lie near others: what the splits are made of.

Columns that say where and when a row is are read here, and refused in one line where they cannot say it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from smscale.errors import InputError
from smscale.grid import EARTH_RADIUS_KM, EASE2_GRIDS
from smscale.kernels.sphere import chord_points

Labels = NDArray[np.int64]

#: Least block sizes of the blocked splits: days, and coarse cells along a side.
LEAST_DAYS, LEAST_CELLS = 10, 3
#: Side of a coarse cell, km: what `cells` counts where a table has places but no grid.
CELL_KM = EASE2_GRIDS[36][2] / 1000
KM_PER_DEGREE = np.pi * EARTH_RADIUS_KM / 180
#: Rows and columns of a grid are less than this: an Earth of cells of 0.1 m has fewer.
MOST_CELLS = 10**9


class BlockError(InputError):
    """A table has too few blocks for a split, or the blocks asked for are too small."""


def time_blocks(table: pd.DataFrame, days: int) -> Labels:
    """Number (n,) of each row's block of `days` local dates, from 0 on the table's first date.

    A last block of less than half of `days` is part of the one before.
    """
    require_whole("days", days, LEAST_DAYS, "time blocks must last at least {} days")
    day = local_days(table)
    since = day - day.min()
    whole, rest = divmod(int(since.max()) + 1, days)
    last = whole if 2 * rest >= days or whole == 0 else whole - 1
    return np.minimum(since // days, last)


def space_blocks(table: pd.DataFrame, cells: int) -> Labels:
    """Label (n,) of each row's square of `cells` by `cells` coarse cells, anchored on the grid's first cell.

    Without `row` and `col`: of each row's square of as many km, in bands of latitude counted from the equator, in each from
    180 degrees west.
    """
    require_whole("cells", cells, LEAST_CELLS, "space blocks must be at least {} coarse cells wide")
    if on_grid(table):
        row, col = (_cells(table, name) // cells for name in ("row", "col"))
    else:
        row, col = _squares(*_degrees(table), cells * CELL_KM)
    return codes((row - row.min()) * (np.ptp(col) + 1) + col - col.min())


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


def column(table: Any, name: str) -> NDArray[Any]:
    """Values (n,) of a column, none of them missing."""
    needed = {"row": "'row' (with 'col', or longitude and latitude)"}.get(name, repr(name))
    if not hasattr(table, "columns"):
        raise InputError(f"the split needs a column {needed}, and X has none; pass the sample table as X or as groups")
    if name not in table.columns:
        there = ", ".join(map(str, table.columns))
        raise InputError(f"the split needs a column {needed}; the table has {there}: add it, or take another split")
    return known(np.asarray(table[name]), name)


def known(labels: NDArray[Any], name: str) -> NDArray[Any]:
    """The labels (n,) themselves, where there are any and none is missing or infinite."""
    missing = int(pd.isna(labels).sum())
    if labels.dtype.kind == "f":
        missing += int(np.isinf(labels).sum())
    if missing or not labels.size:
        what = f"{missing} of {labels.size} rows have no {name}" if missing else "the table has no rows"
        raise InputError(f"{what}: no split can place them; leave those rows out, or give them one")
    return labels


def local_days(table: Any) -> Labels:
    """Day (n,) of each row's local date, counted from 1970."""
    dates = column(table, "local_date")
    if dates.dtype.kind in "iufb":
        raise InputError(f"local_date holds numbers, as {dates[0]}; expected dates, as 2017-06-10")
    try:
        found = pd.to_datetime(pd.Series(dates), format="ISO8601")
        zone = found.dt.tz
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise InputError(f"local_date holds no dates, as {dates[0]!r}; expected them as 2017-06-10") from None
    if zone is not None:
        raise InputError("local_date has a time zone; expected the local solar date, without one")
    return known(found.to_numpy("datetime64[D]"), "local_date").astype(np.int64)


def _numbers(table: Any, name: str) -> NDArray[np.float64]:
    values = column(table, name)
    try:
        return known(values.astype(np.float64), name)
    except (ValueError, TypeError):
        raise InputError(f"{name} holds no numbers, as {values[0]!r}; no split can place its rows") from None


def _cells(table: Any, name: str) -> Labels:
    """Row or column (n,) of each row's cell."""
    values = _numbers(table, name)
    wrong = (values != np.floor(values)) | (np.abs(values) >= MOST_CELLS)
    if wrong.any():
        raise InputError(f"{name} holds {values[wrong][0]:g}; expected whole numbers below 1e9, the {name}s of a grid")
    return values.astype(np.int64)


def _degrees(table: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude and latitude (n,) of each row."""
    lon, lat = _numbers(table, "longitude"), _numbers(table, "latitude")
    for name, values, least, most in (("longitude", lon, -180, 360), ("latitude", lat, -90, 90)):
        wrong = (values < least) | (values > most)
        if wrong.any():
            raise InputError(f"{name} holds {values[wrong][0]:g}; expected degrees between {least} and {most}")
    return lon, lat


def codes(labels: NDArray[Any]) -> Labels:
    """Labels (n,) counted from 0, in their order."""
    if labels.dtype == object:  # of several types, which have no order
        labels = labels.astype(str)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def positions(table: Any) -> NDArray[np.float64]:
    """Row and column (n, 2) of each row's cell; without a grid its point (n, 3) on the sphere, km."""
    if on_grid(table):
        return np.column_stack([_cells(table, "row"), _cells(table, "col")]).astype(np.float64)
    return chord_points(*_degrees(table))


def near_in_time(day: Labels, test: NDArray[np.bool_], gap: int) -> NDArray[np.bool_]:
    """(n,) bool: the row's day is a test row's, or within `gap` days of one."""
    days = np.unique(day[test])
    after = np.searchsorted(days, day - gap)
    return (after < days.size) & (days[np.minimum(after, days.size - 1)] <= day + gap)


def near_in_space(table: Any, test: NDArray[np.bool_], gap: int) -> NDArray[np.bool_]:
    """(n,) bool: the row's cell is a test row's, or at most `gap` rows and columns (or as many cells' km) from one."""
    metric, reach = (np.inf, gap) if on_grid(table) else (2.0, gap * CELL_KM)
    places, at = np.unique(positions(table), axis=0, return_inverse=True)
    at = at.ravel()
    held = np.zeros(len(places), bool)
    held[at[test]] = True
    return test | (cKDTree(places[held]).query(places, p=metric)[0] <= reach)[at]


def require_whole(name: str, value: Any, least: int, expected: str = "") -> None:
    """Refuse a setting that is no whole number, or less than the `least`, which fills `expected`."""
    text = (expected or f"{name} must be at least {{}}").format(least)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise BlockError(f"{text}, a whole number; got {value!r}")
    if value < least:
        raise BlockError(f"{text}; got {value}")
