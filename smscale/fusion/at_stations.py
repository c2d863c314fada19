"""Stations beside a map: what they measured at its times, and which of its cells they lie in."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.grid import Grid

Floats = NDArray[np.float64]

#: A station value belongs to a background time if it is no further away than this.
TOLERANCE = np.timedelta64(90, "m")


def match_times(
    station_time: ArrayLike, values: Floats, time: ArrayLike, tolerance: np.timedelta64 = TOLERANCE
) -> Floats:
    """Each station's reported value nearest to each time, the earlier of two equally near; NaN beyond the tolerance.

    Parameters
    ----------
    station_time : (s,) datetime64, in any order; values : (n, s) NaN where silent; time : (t,) datetime64

    Returns
    -------
    (n, t) float64
    """
    station_time = np.asarray(station_time, "datetime64[ns]")
    order = np.argsort(station_time, kind="stable")
    clock, table = station_time[order], np.asarray(values, np.float64)[:, order]
    out = np.full((len(table), np.size(time)), np.nan)
    for step, moment in enumerate(np.atleast_1d(np.asarray(time, "datetime64[ns]"))):
        first, last = (
            np.searchsorted(clock, moment - tolerance, "left"),
            np.searchsorted(clock, moment + tolerance, "right"),
        )
        near = first + np.argsort(np.abs(clock[first:last] - moment), kind="stable")
        if near.size:
            window = table[:, near]
            out[:, step] = window[np.arange(len(table)), np.isfinite(window).argmax(axis=1)]
    return out


def cells_of_points(lon: ArrayLike, lat: ArrayLike, x: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
    """Row and column of points (x, y degrees) among cell centres lon ascending, lat descending; -1, -1 outside.

    A longitude of another turn (-100 for 260) is the same place.
    """
    grid = Grid(_edges(lon), _edges(lat))
    x = np.asarray(x, np.float64)
    middle = (grid.lon_edges[0] + grid.lon_edges[-1]) / 2
    return grid.index(x + 360.0 * np.round((middle - x) / 360.0), y)


def _edges(centres: ArrayLike) -> Floats:
    """Edges midway between centres; the outer ones as far out as the next edge is in."""
    centres = np.asarray(centres, np.float64)
    if centres.size < 2:
        raise InputError(f"a grid needs at least 2 cells along lat and lon to know their size; got {centres.size}")
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
