"""Local solar days of MODIS views, whose files are cut by UTC day."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError

Floats = NDArray[np.float32]

#: Local solar hours of Aqua's equator crossings: the night view serves the AM step, the day view the PM step.
AQUA_HOURS = {"AM": 1.5, "PM": 13.5}


def lst_local_day_offset(view_time: ArrayLike, lon: ArrayLike) -> NDArray[np.int64]:
    """Days from a MxD11A1 file's date, which is a UTC day, to the local solar date of each of its views.

    The observation's UTC hour is (view_time - lon / 15) mod 24; its local date is that of UTC + lon / 15 hours, so that
    the offset is -floor((view_time - lon / 15) / 24). Over Sichuan the night view (01:30) of the file dated D belongs to the
    local date D + 1, the day view (13:30) to D.

    Parameters
    ----------
    view_time : hours of local solar time, 0 to 24, as in Day_view_time and Night_view_time; NaN where missing
    lon : degrees east, broadcast against it; longitudes beyond 180 wrap

    Returns
    -------
    int64, -1, 0 or 1; 0 where the view time is missing
    """
    wrapped = (np.asarray(lon, dtype=np.float64) + 180.0) % 360.0 - 180.0
    hour = np.asarray(view_time, dtype=np.float64) - wrapped / 15.0
    return np.where(np.isnan(hour), 0.0, -np.floor(hour / 24.0)).astype(np.int64)


def _day(date: np.datetime64 | str) -> np.datetime64:
    day: np.datetime64 = np.asarray(date, dtype="datetime64[D]")[()]  # type: ignore[assignment]
    return day


def lst_file_dates(local_date: np.datetime64 | str) -> tuple[np.datetime64, np.datetime64, np.datetime64]:
    """UTC dates of the MxD11A1 files that can hold a view of a step of `local_date`, somewhere on Earth."""
    day = _day(local_date)
    return day - 1, day, day + 1


def select_lst(
    local_date: np.datetime64 | str,
    overpass: str,
    fields: Mapping[np.datetime64, tuple[Floats, Floats]],
    lon: ArrayLike,
) -> tuple[Floats, Floats]:
    """The LST field of one step, from the UTC-day files that hold parts of it.

    A night view belongs to the night that ends on its AM step: views from local noon on count towards the next morning.

    Parameters
    ----------
    local_date : the step's local solar date
    overpass : "AM" (night views) or "PM" (day views)
    fields : UTC date of the file -> (lst K, view_time hours of local solar time), (m, n) on the grid, NaN where missing:
        the night fields for AM, the day fields for PM. `lst_file_dates` names the dates that matter; others are ignored.
    lon : (n,) or (m, n) degrees east

    Returns
    -------
    lst, view_time : (m, n) float32. Where two files offer a view, the one nearer to 01:30 or 13:30; of equals the earlier file.

    Raises
    ------
    InputError
        if there is no field at all, or the overpass is neither.
    """
    if overpass not in AQUA_HOURS:
        raise InputError(f"overpass must be one of {', '.join(AQUA_HOURS)}; got {overpass!r}")
    if not fields:
        raise InputError(f"no LST field given for {local_date} {overpass}")
    day = _day(local_date)
    by_date = {_day(date): field for date, field in fields.items()}
    shape = next(iter(by_date.values()))[0].shape
    lst, view_time = np.full((2, *shape), np.nan, dtype=np.float32)
    away = np.full(shape, np.inf)
    for date in lst_file_dates(day):
        if date not in by_date:
            continue
        found, time = by_date[date]
        offset = lst_local_day_offset(time, lon) + ((overpass == "AM") & (np.asarray(time) >= 12.0))
        distance = np.abs((np.asarray(time, np.float64) - AQUA_HOURS[overpass] + 12.0) % 24.0 - 12.0)
        take = np.isfinite(found) & (offset == (day - date).astype(int)) & (distance < away)
        lst[take], view_time[take], away[take] = found[take], time[take], distance[take]
    return lst, view_time
