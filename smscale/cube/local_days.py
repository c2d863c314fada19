"""Local solar days of LST views, whose files are cut by UTC day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.cube.tiles import Tile, TileWindow, quality_words
from smscale.errors import InputError
from smscale.kernels import resample
from smscale.kernels.lookup import Coded

#: Local solar hours of Aqua's (and VIIRS') equator crossings: the night view serves the AM step, the day view the PM step.
NOMINAL_HOURS = {"AM": 1.5, "PM": 13.5}


def lst_local_day_offset(view_time: ArrayLike, lon: ArrayLike) -> NDArray[np.int64]:
    """Days from a LST file's date, which is a UTC day, to the local solar date of each of its views.

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
    hour = np.asarray(view_time, dtype=np.float64) - _wrapped(lon) / 15.0
    return np.where(np.isnan(hour), 0.0, -np.floor(hour / 24.0)).astype(np.int64)


def _wrapped(lon: ArrayLike) -> NDArray[np.float64]:
    return (np.asarray(lon, dtype=np.float64) + 180.0) % 360.0 - 180.0


def lst_file_dates(first: ArrayLike, last: ArrayLike, lon: ArrayLike) -> list[str]:
    """UTC dates (ISO) of the files that can hold a view of the local dates `first` to `last` at longitudes `lon`.

    A night begins in the evening before: east of Greenwich that evening and the morning after lie in files of the day before
    and the day; west of it in those of the day and the day after too.
    """
    east, west = bool((_wrapped(lon) > 0).any()), bool((_wrapped(lon) <= 0).any())
    begin, end = (int(np.asarray(day, "datetime64[D]").astype(np.int64)) for day in (first, last))
    days = np.arange(begin - 1, end + 1 + west).astype("datetime64[D]")
    return [str(day) for day in days] if east or west else []


@dataclass(eq=False)
class LocalViews:
    """The LST of some overpass steps on a window, as files come, file by file in order of date.

    A night view belongs to the night that ends on its AM step: views from local noon on count towards the next morning. Of two
    views of a cell and step the one nearer to 01:30 or 13:30 is kept, of equally near ones that of the file that came first.

    Parameters
    ----------
    window : (m, n) cells, one sub-point each
    steps : (local date, "AM" | "PM") of each step
    words : (65536,) counts of quality words by overpass, added to; windows may share them
    """

    window: TileWindow
    steps: Sequence[tuple[str, str]]
    words: dict[str, NDArray[np.int64]] = field(default_factory=lambda: quality_words(NOMINAL_HOURS))
    empty: int = 0
    valid: int = 0

    def __post_init__(self) -> None:
        if self.window.k != 1:
            raise InputError(f"views are taken at cell centres (k = 1); got k = {self.window.k}")
        unknown = {overpass for _, overpass in self.steps} - set(NOMINAL_HOURS)
        if unknown:
            raise InputError(f"overpass must be one of {', '.join(NOMINAL_HOURS)}; got {', '.join(sorted(unknown))}")
        self._step = {(np.datetime64(day, "D"), overpass): i for i, (day, overpass) in enumerate(self.steps)}
        self._views = resample.Views.none((len(self.steps), *self.window.grid.shape))
        self._lon = _wrapped(self.window.grid.lon)
        self._tables: tuple[NDArray, NDArray] | None = None

    def add(self, tile: Tile, date: str, overpass: str, lst: Coded, view_time: Coded, counted: bool = True) -> None:
        """The night (AM) or day (PM) view of one file: one tile that the window touches, of one UTC date.

        `counted` : whether its quality words are added to `words[overpass]` (a margin day is counted elsewhere)
        """
        lst, view_time = self.window.checked(tile, lst), self.window.checked(tile, view_time)
        self._check_tables(lst, view_time)
        day = np.datetime64(date, "D")
        step_of = np.array([self._step.get((day + offset, overpass), -1) for offset in (-1, 0, 1, 2)], np.int64)
        words = self.words[overpass] if counted else np.zeros(65536, np.int64)
        window = (self.window.flat, self.window.first(tile))
        empty = resample.add_views(
            lst, view_time, window, self._lon, NOMINAL_HOURS[overpass], overpass == "AM", step_of, self._views, words
        )
        self.empty += empty if counted else 0

    def _check_tables(self, lst: Coded, view_time: Coded) -> None:
        tables = (lst.values, view_time.values)
        held = self._tables or tables
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(held, tables, strict=True)):
            raise InputError("LST files of different encoding (product or version) do not mix: keep those of one")
        self._tables = held

    def result(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(t, m, n, 2) LST in K and its view time in hours of local solar time, NaN where there is no view; `valid` counts views.

        `out` : an array of that shape to fill, where there is one to use again
        """
        shape = (*self._views.lst.shape, 2)
        out = np.empty(shape, np.float32) if out is None or out.shape != shape else out
        if self._tables is None:
            out.fill(np.nan)
            self.valid = 0
        else:
            self.valid = resample.decode_views(self._views, *self._tables, out)
        return out
