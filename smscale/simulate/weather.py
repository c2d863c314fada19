"""The weather of one local day at any points: storms, clouds, air temperature, sun on the slope.

Broad fields are evaluated on a lattice anchored on the globe and interpolated, fine ones at the points: the same
weather whatever window asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtr

from smscale.kernels import noise
from smscale.simulate.spec import KM_PER_DEGREE, World
from smscale.simulate.terrain import Land, field_seed

Floats = NDArray[np.float64]

#: Seeds of the fields (those that are drawn anew each half-day leave room for 10 million of them).
SEED_REGIME, SEED_SYNOPTIC, SEED_CLOUD, SEED_STORM, SEED_DETAIL, SEED_CLOUD_DETAIL = (
    4_000,
    4_100,
    4_200,
    10_000,
    20_000,
    500_000,
)
#: Day from which time is counted (any fixed day).
EPOCH = pd.Timestamp("2000-01-01")
#: Standard lapse rate, K per m (ICAO standard atmosphere).
LAPSE = 6.5e-3
#: Scale height of pressure, m.
SCALE_HEIGHT = 8400.0
#: Solar constant, W m-2 (Kopp and Lean 2011, doi:10.1029/2010GL045777).
SOLAR = 1361.0
#: Clear-sky transmissivity of the vertical path (Campbell and Norman 1998, chapter 11: 0.6 to 0.75) and share scattered down.
TRANSMISSIVITY, SCATTERED = 0.72, 0.3
#: Share of the short waves that a full cover of cloud takes (Kasten and Czeplak 1980, doi:10.1016/0038-092X(80)90391-6: 0.75).
CLOUD_TAKES = 0.75
#: Local solar hours at which the daily sun is summed.
_SUN_HOURS = np.arange(6.0, 18.1, 1.5)
#: Degrees between the nodes of the broad fields.
_LATTICE = 0.1
#: Storms: degrees of their lattice, candidates per node and half-day, share that forms at a mean regime, reach in deviations.
_STORM_LATTICE, _CANDIDATES, _REACH = 0.8, 2, 3.0
#: Storms: km, deviation across and along their track (smallest, largest); logarithmic spread of the amount.
_ACROSS, _ALONG, _SPREAD = (8.0, 22.0), (18.0, 50.0), 0.6
#: Share of the rain that storms bring, the rest is light rain where the regime is wet; regime above which light rain falls.
_STORM_SHARE, _LIGHT_FROM = 0.75, 0.8
#: Mean of max(z - 0.8, 0) of a standard normal z.
_LIGHT_MEAN = 0.1202


@dataclass(frozen=True)
class Weather:
    """One local day; first axis of `rain` and `detail`: the night half (18 to 06) and the day half (06 to 18)."""

    day: pd.Timestamp
    rain: Floats
    detail: Floats
    air: Floats
    swing: Floats
    cloud_night: Floats
    cloud_day: Floats
    sun: Floats
    sun_at_view: Floats


@njit(cache=True, nogil=True)
def _add_storms(x, y, storms, out):  # type: ignore[no-untyped-def]
    """Add the storms (n: x, y, cos, sin, across, along, amount) at the points; nothing beyond `_REACH` deviations."""
    for k in range(storms.shape[0]):
        cx, cy, c, s, across, along, amount = storms[k]
        reach = 3.0 * along
        for i in range(x.size):
            dx, dy = x[i] - cx, y[i] - cy
            if abs(dx) < reach and abs(dy) < reach:
                r2 = ((dx * c + dy * s) / along) ** 2 + ((dy * c - dx * s) / across) ** 2
                if r2 < 9.0:
                    out[i] += amount * (np.exp(-0.5 * r2) - 0.011108996538242306)


class Sky:
    """The weather over the cells of one piece of land."""

    def __init__(self, world: World, land: Land) -> None:
        self.world, self.land = world, land
        self.x, self.y = world.plane(land.lon, land.lat)
        self._lattice = _Lattice.over(land.lon, land.lat)
        self._sun_cache: dict[int, tuple[Floats, Floats]] = {}
        z = land.elevation
        self._height = 0.75 + 0.6 * np.exp(-(((z - 1500.0) / 1300.0) ** 2))

    def day(self, day: pd.Timestamp) -> Weather:
        """The weather of one local day."""
        world, land = self.world, self.land
        number = (day - EPOCH).days
        regimes = [self._broad(SEED_REGIME, 420.0, 3.5, number + shift, 2) for shift in (0.0, 0.5)]
        rain = np.stack([self._rain(number, half, regimes[half], day) for half in (0, 1)])
        detail = np.stack(
            [
                noise.fbm(self.x / 9.0, self.y / 9.0, field_seed(world, SEED_DETAIL + 8 * (2 * number + half)), 3, 0.7)
                for half in (0, 1)
            ]
        )
        clouds = [self._cloud(number, half, regimes[half], rain[half]) for half in (0, 1)]
        season = _season(day, land.lat)
        sea_level = 292.0 - 0.4 * (np.abs(land.lat) - 30.0) + 0.38 * np.abs(land.lat) * season
        synoptic = self._broad(SEED_SYNOPTIC, 600.0, 4.0, number, 1)
        air = sea_level - LAPSE * land.elevation + 2.2 * synoptic - 1.2 * regimes[1]
        swing = 4.5 + 1.0e-3 * np.clip(land.elevation, 0, 5000)
        sun, at_view = self._sun(day)
        return Weather(day, rain, detail, air, swing, clouds[0], clouds[1], sun, at_view)

    def _broad(self, which: int, length: float, lasting: float, time: float, octaves: int) -> Floats:
        """A broad field: `length` km, `lasting` days, drifting east at 250 km a day."""
        seed = field_seed(self.world, which)

        def at(lon: Floats, lat: Floats) -> Floats:
            x, y = self.world.plane(lon, lat)
            return noise.fbm_at((x - 250.0 * time) / length, y / length, time / lasting, seed, octaves)

        return self._lattice.interpolate(at)

    def _rain(self, number: int, half: int, regime: Floats, day: pd.Timestamp) -> Floats:
        """mm in one half-day, before the storms' fine structure."""
        world, land = self.world, self.land
        wet = world.rain * np.clip(1.0 + 0.7 * _season(day, land.lat), 0.2, None) / 1.5 / 2.0
        storms, wind = _storms(world, (land.lon.min(), land.lat.min(), land.lon.max(), land.lat.max()), number, half)
        out = np.zeros(land.lon.size)
        _add_storms(self.x.ravel(), self.y.ravel(), storms, out)
        light = (1.0 - _STORM_SHARE) / _LIGHT_MEAN * np.maximum(regime - _LIGHT_FROM, 0.0)
        lift = 1.0 + np.clip(1.2 * (wind[0] * land.east_slope + wind[1] * land.north_slope), -0.4, 0.6)
        return wet * (_STORM_SHARE * out.reshape(land.lon.shape) + light) * self._height * lift

    def _cloud(self, number: int, half: int, regime: Floats, rain: Floats) -> Floats:
        """Cloud index: cloudy above a threshold that the share of clouds sets."""
        broad = self._broad(SEED_CLOUD, 180.0, 1.5, number + half / 2, 2)
        seed = field_seed(self.world, SEED_CLOUD_DETAIL + 8 * (2 * number + half))
        fine = noise.fbm(self.x / 30.0, self.y / 30.0, seed, 4, 0.6)
        wet = np.minimum(rain / 2.0, 1.0)
        return 0.7 * broad + 0.5 * regime + 0.5 * wet + 0.35 * fine + 0.1 * half * self.land.position

    def _sun(self, day: pd.Timestamp) -> tuple[Floats, Floats]:
        """Clear-sky short waves on the slope, W m-2: mean of 24 hours, and at 13:30. Renewed every fourth day."""
        key = day.dayofyear // 4
        if key not in self._sun_cache:
            declination = solar_declination(4 * key + 2)
            hours = [clear_sky(self.land, declination, hour) for hour in _SUN_HOURS]
            mean = np.sum(hours, axis=0) * (_SUN_HOURS[1] - _SUN_HOURS[0]) / 24.0
            self._sun_cache = {key: (mean, clear_sky(self.land, declination, 13.5))}
        return self._sun_cache[key]


def solar_declination(day_of_year: float) -> float:
    """Radians (Cooper 1969, Solar Energy 12, 333)."""
    return float(np.deg2rad(23.45) * np.sin(2 * np.pi * (284 + day_of_year) / 365))


def clear_sky(land: Land, declination: float, hour: float) -> Floats:
    """Clear-sky short waves on the slope at a local solar hour, W m-2: direct beam on the tilted cell and scattered light."""
    lat, turn = np.deg2rad(land.lat), np.deg2rad(15.0 * (hour - 12.0))
    up = np.sin(lat) * np.sin(declination) + np.cos(lat) * np.cos(declination) * np.cos(turn)
    east = -np.cos(declination) * np.sin(turn)
    north = np.cos(lat) * np.sin(declination) - np.sin(lat) * np.cos(declination) * np.cos(turn)
    mass = np.exp(-land.elevation / SCALE_HEIGHT) / np.maximum(up, 0.05)
    through = TRANSMISSIVITY**mass
    facing = (up - east * land.east_slope - north * land.north_slope) / np.sqrt(
        1 + land.east_slope**2 + land.north_slope**2
    )
    high = up > 0
    direct = SOLAR * through * np.maximum(facing, 0.0) * high
    return direct + SCATTERED * SOLAR * (1 - through) * np.maximum(up, 0.0)


def _season(day: pd.Timestamp, lat: Floats) -> Floats:
    """1 in the height of summer, -1 in the depth of winter of the hemisphere (19 July in the north)."""
    return np.cos(2 * np.pi * (day.dayofyear - 200) / 365.25) * np.sign(lat)


def _storms(
    world: World, box: tuple[float, float, float, float], number: int, half: int
) -> tuple[Floats, tuple[float, float]]:
    """The storms of one half-day that can reach a box: (n, 7) for `_add_storms`, amounts of unit mean; and the wind's direction."""
    reach = _REACH * _ALONG[1] / KM_PER_DEGREE
    west, south, east, north = (
        box[0] - reach / world.origin[2],
        box[1] - reach,
        box[2] + reach / world.origin[2],
        box[3] + reach,
    )
    columns = np.arange(int(np.floor(west / _STORM_LATTICE)), int(np.floor(east / _STORM_LATTICE)) + 1)
    rows = np.arange(int(np.floor(south / _STORM_LATTICE)), int(np.floor(north / _STORM_LATTICE)) + 1)
    row, column, candidate = (a.ravel() for a in np.meshgrid(rows, columns, np.arange(_CANDIDATES), indexing="ij"))
    seed, when = field_seed(world, SEED_STORM), 2 * number + half

    def draw(what: int) -> Floats:
        return noise.uniform(seed + what, row, column, candidate, when)

    x, y = world.plane((column + draw(0)) * _STORM_LATTICE, (row + draw(1)) * _STORM_LATTICE)
    time = number + half / 2
    regime = noise.fbm_at((x - 250.0 * time) / 420.0, y / 420.0, time / 3.5, field_seed(world, SEED_REGIME), 2)
    formed = draw(2) < ndtr(1.2 * regime - 0.8)
    bearing = (
        np.deg2rad(20.0)
        + 0.6 * noise.normal(seed + 9, when)
        + 0.25 * noise.normal(seed + 8, row, column, candidate, when)
    )
    across = _ACROSS[0] + (_ACROSS[1] - _ACROSS[0]) * draw(3)
    along = _ALONG[0] + (_ALONG[1] - _ALONG[0]) * draw(4)
    amount = np.exp(_SPREAD * noise.normal(seed + 5, row, column, candidate, when) - _SPREAD**2 / 2)
    area = (_STORM_LATTICE * KM_PER_DEGREE) ** 2 * world.origin[2]
    share = ndtr(-0.8 / np.sqrt(1 + 1.2**2))
    unit = _CANDIDATES * share * 2 * np.pi * np.mean(_ACROSS) * np.mean(_ALONG) / area
    storms = np.column_stack([x, y, np.cos(bearing), np.sin(bearing), across, along, amount / unit])
    mean_bearing = np.deg2rad(20.0) + 0.6 * float(noise.normal(seed + 9, when))
    # Moist air comes in against the storms' drift (the monsoon's south-easterlies under the westerlies).
    return storms[formed], (-float(np.cos(mean_bearing)), float(np.sin(mean_bearing)))


@dataclass(frozen=True)
class _Lattice:
    """Nodes around some points at multiples of `_LATTICE` degrees, and the points' bilinear weights."""

    lon: Floats
    lat: Floats
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    down: Floats
    right: Floats
    shape: tuple[int, ...] = field(default=())

    @classmethod
    def over(cls, lon: Floats, lat: Floats) -> _Lattice:
        u, v = lon.ravel() / _LATTICE, lat.ravel() / _LATTICE
        column, row = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
        left, bottom = int(column.min()), int(row.min())
        columns, rows = np.arange(left, column.max() + 2), np.arange(bottom, row.max() + 2)
        nodes_lon, nodes_lat = np.meshgrid(columns * _LATTICE, rows * _LATTICE)
        return cls(nodes_lon, nodes_lat, row - bottom, column - left, v - row, u - column, lon.shape)

    def interpolate(self, function: Callable[[Floats, Floats], Floats]) -> Floats:
        """The function of the nodes' longitude and latitude, at the points."""
        nodes = function(self.lon, self.lat)
        r, c, v, u = self.row, self.column, self.down, self.right
        low = nodes[r, c] * (1 - u) + nodes[r, c + 1] * u
        high = nodes[r + 1, c] * (1 - u) + nodes[r + 1, c + 1] * u
        return (low * (1 - v) + high * v).reshape(self.shape)
