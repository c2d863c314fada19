"""When SMAP sees which cell, and how wrong its retrieval is.

The orbit is the real one: sun-synchronous, 117 revolutions in exactly 8 days (SMAP Handbook, JPL 400-1567, section 2),
anchored at the ascending node of revolution 2801 at 118.68492 W (metadata of the SPL2SMP granule of that half orbit, whose
times are met within 12 s and whose swath within half a cell), from which every later pass follows.

Geometry, in the frame that turns with the orbital plane (x to the ascending node, z north). The plane follows the mean
sun, so the Earth turns in it by 360 degrees a solar day. A cell at geocentric latitude p and at longitude l from the node
is seen when the satellite is abeam, at argument of latitude u, from the cross-track angle c:

    sin p           = cos c sin u sin i + sin c cos i          (1)
    cos p cos l     = cos c cos u                              (2)
    cos p sin l     = cos c sin u cos i - sin c sin i          (3)

and the longitude on Earth is that of the node + l - 360 degrees t / day with t = u period / 360 degrees. The antenna's
cone sees each cell once looking forward and once backward; the mean of the two times is when it lies abeam.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.grid import EARTH_RADIUS_KM, EASE2_GRIDS, WGS84_F, Floats, Grid

#: Revolutions in one exact repeat of REPEAT_DAYS.
REVOLUTIONS, REPEAT_DAYS = 117, 8
#: Nodal period, seconds: 98.46 minutes.
PERIOD_S = REPEAT_DAYS * 86400.0 / REVOLUTIONS
INCLINATION_DEG = 98.12
#: Width of the band of cells that get a footprint: the 1 000 km swath of footprint centres and what the beam adds
#: (fitted to the same granule: at 1 040 km no cell is claimed that it lacks, on either side).
SWATH_KM = 1040.0
#: UTC and degrees east of the ascending node of revolution 2801: the median that fits the granule's own tb_time_utc
#: (its metadata give 67 s less, about the difference between terrestrial time and UTC).
NODE_TIME = np.datetime64("2015-08-11T01:57:47.300", "ns")
NODE_LON = -118.68492
#: Local solar hours that overlapping swaths of one day are judged by (SPL3SMP: the pass nearest to them is kept).
NOMINAL_HOUR = {"AM": 6.0, "PM": 18.0}

#: Longitude step of the swath table, degrees: 2.8 km at the equator, or 0.06 s of observation time.
_STEP = 0.025
_BINS = round(360 / _STEP)
_CROSS_TRACK_SAMPLES = 401


def _geocentric(lat: Floats) -> Floats:
    """Geocentric latitude in radians of geodetic latitudes in degrees."""
    return np.arctan((1 - WGS84_F) ** 2 * np.tan(np.deg2rad(lat)))


def _swath_of_row(lat: float, descending: bool) -> tuple[Floats, Floats]:
    """Longitude from the node (degrees, unwrapped) and seconds after the node of points across the swath at a latitude.

    `lat` is geocentric, radians. Both arrays are empty where the swath does not reach.
    """
    half_width = SWATH_KM / 2 / EARTH_RADIUS_KM
    c = np.linspace(-half_width, half_width, _CROSS_TRACK_SAMPLES)
    i = np.deg2rad(INCLINATION_DEG)
    sin_u = (np.sin(lat) - np.sin(c) * np.cos(i)) / (np.cos(c) * np.sin(i))
    reached = np.abs(sin_u) <= 1
    c, u = c[reached], np.arcsin(sin_u[reached])
    if descending:
        u = np.pi - u
    x = np.cos(c) * np.cos(u)
    y = np.cos(c) * np.sin(u) * np.cos(i) - np.sin(c) * np.sin(i)
    seconds = u / (2 * np.pi) * PERIOD_S
    lon = np.unwrap(np.arctan2(y, x)) - 2 * np.pi * seconds / 86400.0
    return np.rad2deg(lon), seconds


@lru_cache(maxsize=2)
def _swath_table(overpass: str) -> NDArray[np.float32]:
    """(406, bins) float32: seconds after the ascending node at which a cell is seen, by row of the 36 km grid and by
    longitude east of the node in steps of `_STEP`; NaN outside the swath."""
    lat = _geocentric(Grid.ease2(36).lat)
    table = np.full((lat.size, _BINS), np.nan, dtype=np.float32)
    for row, latitude in enumerate(lat):
        lon, seconds = _swath_of_row(float(latitude), overpass == "AM")
        if lon.size < 2:
            continue
        order = np.argsort(lon)
        first, last = int(np.ceil(lon.min() / _STEP)), int(np.floor(lon.max() / _STEP))
        bins = np.arange(first, min(last, first + _BINS - 1) + 1)
        table[row, bins % _BINS] = np.interp(bins * _STEP, lon[order], seconds[order])
    return table


def _nodes_of_day(day: np.datetime64) -> tuple[NDArray[np.int64], Floats]:
    """UTC (int64 nanoseconds) and longitude of every ascending node whose revolution may touch a UTC day."""
    start = day.astype("datetime64[ns]").astype(np.int64)
    period_ns = PERIOD_S * 1e9
    first = int(np.floor((start - NODE_TIME.astype(np.int64)) / period_ns)) - 1
    k = np.arange(first, first + int(86400 / PERIOD_S) + 4)
    time = NODE_TIME.astype(np.int64) + np.round(k * period_ns).astype(np.int64)
    lon = NODE_LON - (k * (360.0 * REPEAT_DAYS) / REVOLUTIONS) % 360.0
    return time, lon


def _check_grid(grid: Grid | None) -> Grid:
    if grid is None:
        return Grid.ease2(36)
    columns, rows, _ = EASE2_GRIDS[36]
    inside = grid.row0 + grid.shape[0] <= rows and grid.col0 + grid.shape[1] <= columns
    if grid.crs != "EPSG:6933" or not inside or not np.isclose(np.diff(grid.lon_edges[:2])[0] * columns, 360.0):
        raise InputError(
            f"observation times need a window of the 36 km EASE-Grid 2.0, as Grid.ease2(36, ...); got {grid}"
        )
    return grid


def observation_times(utc_day: object, grid: Grid | None = None) -> dict[str, NDArray[np.datetime64]]:
    """When each 36 km cell is seen in one UTC day, as SPL3SMP is cut.

    Parameters
    ----------
    utc_day : date, ISO string or datetime64: the UTC day
    grid : a window of `Grid.ease2(36)`; None for the whole globe (406, 964)

    Returns
    -------
    {"AM": ..., "PM": ...} : (rows, columns) datetime64[ns] each, NaT where the day's swaths do not reach. AM are the
    descending passes (near 06:00 local mean solar time), PM the ascending ones. Where swaths overlap, the pass nearest
    to 06:00 or 18:00 local solar time is kept.
    """
    grid = _check_grid(grid)
    day = np.datetime64(utc_day, "D")  # type: ignore[call-overload]
    node_time, node_lon = _nodes_of_day(day)
    start = int(day.astype("datetime64[ns]").astype(np.int64))
    return {overpass: _day_field(overpass, start, grid, node_time, node_lon) for overpass in ("AM", "PM")}


def _day_field(
    overpass: str, start: int, grid: Grid, node_time: NDArray[np.int64], node_lon: Floats
) -> NDArray[np.datetime64]:
    table = _swath_table(overpass)[grid.row0 : grid.row0 + grid.shape[0]]
    seconds = np.full(grid.shape, np.nan)
    distance = np.full(grid.shape, np.inf)
    for time, lon in zip(node_time.tolist(), node_lon.tolist(), strict=True):
        offset = (time - start) / 1e9
        if not -PERIOD_S <= offset < 86400.0 + PERIOD_S:
            continue
        bins = np.round((grid.lon - lon) / _STEP).astype(np.int64) % _BINS
        seen = table[:, bins] + offset
        solar = seen / 3600.0 + grid.lon / 15.0
        off = np.abs((solar - NOMINAL_HOUR[overpass] + 12.0) % 24.0 - 12.0)
        better = (seen >= 0) & (seen < 86400.0) & (off < distance)
        seconds[better], distance[better] = seen[better], off[better]
    observed = np.isfinite(seconds)
    milliseconds = np.minimum(np.round(np.where(observed, seconds, 0.0) * 1e3), 86_399_999).astype(np.int64)
    time = (start + milliseconds * 1_000_000).astype("datetime64[ns]")
    return np.where(observed, time, np.datetime64("NaT", "ns"))


# -- retrieval error ----------------------------------------------------------------------------

#: Correlation of the error of one cell and pass from day to day.
ERROR_CORRELATION = 0.7
#: Lags of the moving average that stands in for the AR(1) process: 0.7 ** 24 = 2e-4 of it is left out.
_LAGS = 24
#: Standard deviation without vegetation, m3 m-3, and its growth with opacity: 0.04 at 0.35 (SMAP's requirement is
#: 0.04 where vegetation water content stays under 5 kg m-2; Entekhabi et al. 2010, doi:10.1109/JPROC.2010.2043918).
ERROR_STD = 0.030
ERROR_GROWTH = 0.8
#: Dry bias, m3 m-3, reached where the surface is at 263 K (from nothing at 283 K), and at 4 500 m (from nothing at 2 500 m).
COLD_BIAS, COLD_FROM_K, COLD_TO_K = -0.02, 283.0, 263.0
HIGH_BIAS, HIGH_FROM_M, HIGH_TO_M = -0.02, 2500.0, 4500.0


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One round of the splitmix64 finaliser (Steele et al. 2014, doi:10.1145/2660193.2660195), modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed_normal(seed: int, *keys: ArrayLike) -> Floats:
    """Standard normal numbers that depend on the integers alone: the same whoever asks, in whatever order.

    Parameters
    ----------
    seed : integer
    *keys : integers of shapes that broadcast

    Returns
    -------
    float64 of the broadcast shape (Box-Muller on two hashed uniforms).
    """
    state = _mix(np.asarray([seed], dtype=np.int64).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    for key in keys:
        state = _mix(state * np.uint64(0x9E3779B97F4A7C15) + np.asarray(key, dtype=np.int64).astype(np.uint64))
    first, second = _mix(state + np.uint64(1)), _mix(state + np.uint64(2))
    u = ((first >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    v = (second >> np.uint64(11)).astype(np.float64) / 2.0**53
    normal = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
    return normal.reshape(np.broadcast_shapes(*(np.shape(key) for key in keys)))


def retrieval_error(
    seed: int,
    utc_day: object,
    overpass: str,
    row: ArrayLike,
    col: ArrayLike,
    vegetation_opacity: ArrayLike,
    surface_temperature: ArrayLike,
    elevation: ArrayLike,
    std: float = ERROR_STD,
) -> Floats:
    """Error to add to the true mean of each cell: correlated in time, larger under vegetation, dry where cold or high.

    The AR(1) process e(d) = r e(d-1) + sqrt(1 - r^2) w(d) is taken as its moving average over `_LAGS` days of hashed
    white noise w, so that any day can be had without the days before it.

    Parameters
    ----------
    seed : of the nature run
    utc_day : date, ISO string or datetime64
    overpass : "AM" or "PM"; their errors are independent
    row, col : int, position in the global 36 km grid; all arrays broadcast
    vegetation_opacity : float, nadir optical depth, 1; NaN counts as 0
    surface_temperature : float, K; NaN counts as warm
    elevation : float, m
    std : m3 m-3, standard deviation without vegetation; it grows as exp(ERROR_GROWTH * vegetation_opacity)

    Returns
    -------
    float64, m3 m-3
    """
    day = int(np.datetime64(utc_day, "D").astype(np.int64))  # type: ignore[call-overload]
    if overpass not in NOMINAL_HOUR:
        raise InputError(f"overpass must be AM or PM, got {overpass!r}")
    weights = ERROR_CORRELATION ** np.arange(_LAGS)
    weights /= np.sqrt(np.sum(weights**2))
    pass_key = int(overpass == "PM")
    noise = sum(w * hashed_normal(seed, day - k, pass_key, row, col) for k, w in enumerate(weights))
    opacity = np.nan_to_num(np.asarray(vegetation_opacity, np.float64), nan=0.0)
    temperature = np.nan_to_num(np.asarray(surface_temperature, np.float64), nan=COLD_FROM_K)
    cold = np.clip((COLD_FROM_K - temperature) / (COLD_FROM_K - COLD_TO_K), 0, 1)
    high = np.clip((np.asarray(elevation, np.float64) - HIGH_FROM_M) / (HIGH_TO_M - HIGH_FROM_M), 0, 1)
    bias = COLD_BIAS * cold + HIGH_BIAS * high
    return np.asarray(std * np.exp(ERROR_GROWTH * opacity) * noise + bias, dtype=np.float64)
