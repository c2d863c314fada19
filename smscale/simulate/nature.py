"""The truth: soil moisture, vegetation and surface temperature of cells, stepped from day to day.

A surface layer (0 to 5 cm) over a root zone (5 to 50 cm), both buckets; equations, units and sources in docs/nature-run.md.
Everything here is point by point: a cell knows its land, its weather and its own past.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smscale.kernels import noise
from smscale.schema import SNOW_ICE, URBAN, WATER
from smscale.simulate.spec import World
from smscale.simulate.terrain import SEED_COVER, Land, field_seed
from smscale.simulate.weather import CLOUD_TAKES, SCALE_HEIGHT, Sky, Weather

Floats = NDArray[np.float64]

#: Depths of the two layers, mm.
SURFACE_MM, ROOT_MM = 50.0, 450.0
#: Residual water, m3 m-3 (Rawls et al. 1982, doi:10.13031/2013.33720: 0.02 to 0.09).
RESIDUAL = 0.03
#: Clapp and Hornberger (1978, doi:10.1029/WR014i004p00601), loam: porosity, exponent b, saturated conductivity (mm per day).
POROSITY, EXPONENT, CONDUCTIVITY = 0.451, 5.4, 600.0
#: Field capacity and wilting point of a loam, m3 m-3 (Saxton and Rawls 2006, doi:10.2136/sssaj2005.0117).
FIELD_CAPACITY, WILTING = 0.28, 0.12
#: Soil moisture over field capacity at which evaporation is no longer limited by water (Seneviratne et al. 2010, 0.5 to 0.8).
CRITICAL = 0.75
#: Priestley-Taylor coefficient (1972); psychrometric constant at sea level, kPa K-1; mm of water that 1 W m-2 evaporates in a day.
PRIESTLEY_TAYLOR, PSYCHROMETRIC, MM_PER_WATT = 1.26, 0.066, 0.0353
#: Steps of one half-day.
SUBSTEPS = 4
#: Days by which leaves lag what water and warmth allow.
LEAF_LAG = 12.0
#: Largest leaf area of the classes 1 to 17, m2 m-2 (after Myneni et al. 2002, doi:10.1016/S0034-4257(02)00074-3).
LEAF_AREA = np.array([0, 4.6, 5.4, 4.4, 4.8, 4.6, 2.4, 1.4, 3.6, 2.4, 2.1, 2.8, 3.3, 0.9, 3.6, 0.05, 0.2, 0.0])
#: Transpiration against Priestley-Taylor's of the classes (crop coefficients after Allen et al. 1998, FAO-56, table 12).
CROP = np.array([0, 0.85, 0.95, 0.9, 0.95, 0.9, 0.75, 0.6, 0.85, 0.8, 0.8, 1.05, 1.0, 0.6, 0.95, 0.2, 0.3, 1.0])
#: Albedo of the classes (Houldcroft et al. 2009, doi:10.1175/2008JHM1021.1).
ALBEDO = np.array(
    [0, 0.10, 0.13, 0.11, 0.14, 0.13, 0.17, 0.20, 0.15, 0.18, 0.19, 0.14, 0.17, 0.17, 0.16, 0.55, 0.25, 0.06]
)
#: Extinction of light in leaves (Beer's law).
EXTINCTION = 0.5
#: Seed of the vigour of the leaves.
SEED_VIGOUR = SEED_COVER + 60


@dataclass(frozen=True)
class Tuning:
    """What the calibration sets: weight of terrain in the truth, weight of what is hidden, index above which it is cloudy."""

    explained: float = 1.0
    hidden: float = 1.0
    cloud_threshold: float = 0.0


@dataclass(frozen=True)
class Soil:
    """Hidden properties of the soil, each of the shape of the land."""

    porosity: Floats
    field_capacity: Floats
    wilting: Floats
    exponent: Floats
    conductivity: Floats


@dataclass(frozen=True)
class State:
    """What one day hands to the next: surface and root-zone moisture (m3 m-3), leaf area, rain of the days before (mm)."""

    surface: Floats
    root: Floats
    leaves: Floats
    recent_rain: Floats


@dataclass(frozen=True)
class Day:
    """What one local day shows."""

    moisture_am: Floats
    moisture_pm: Floats
    temperature_am: Floats
    temperature_pm: Floats
    lst_night: Floats
    lst_day: Floats
    cloudy_night: NDArray[np.bool_]
    cloudy_day: NDArray[np.bool_]
    evapotranspiration: Floats
    demand: Floats
    rain: Floats
    leaves: Floats
    ndvi: Floats
    evi: Floats


def soil_of(land: Land, tuning: Tuning) -> Soil:
    """The soil of some land: hidden texture and layering shift a loam's properties (positive texture is fine, clayey)."""
    h = tuning.hidden
    t, s = np.clip(land.texture, -2.5, 2.5), np.clip(land.layering, -2.5, 2.5)
    porosity = POROSITY + 0.02 * h * t
    field_capacity = np.clip(FIELD_CAPACITY + 0.045 * h * t + 0.03 * h * s, 0.10, porosity - 0.06)
    return Soil(
        porosity=porosity,
        field_capacity=field_capacity,
        wilting=np.clip(WILTING + 0.02 * h * t, 0.05, field_capacity - 0.04),
        exponent=np.clip(EXPONENT + 1.2 * h * t, 2.8, 11.0),
        conductivity=CONDUCTIVITY * np.exp(-0.8 * h * t - 0.3 * h * s),
    )


class Nature:
    """The living land under the weather, for the cells of one piece of land."""

    def __init__(self, world: World, land: Land, tuning: Tuning) -> None:
        self.land, self.tuning = land, tuning
        self.soil = soil_of(land, tuning)
        cover = land.land_cover
        x, y = world.plane(land.lon, land.lat)
        vigour = noise.fbm(x / 20.0, y / 20.0, field_seed(world, SEED_VIGOUR), 4, 0.6)
        greener = np.clip(1.0 + 0.18 * vigour + 0.12 * land.wetness_index, 0.5, 1.5)
        self.most_leaves = LEAF_AREA[cover] * greener
        self.crop, self.albedo = CROP[cover], ALBEDO[cover]
        # What a cell holds after drainage: TOPMODEL's index (Beven and Kirkby 1979), water of ridges and slopes gathers below;
        # shaded slopes and soils under dense leaves hold more (organic matter: Saxton and Rawls 2006).
        shaded = np.clip(-land.north_slope * np.sign(land.lat) / 0.2, -2.0, 2.0)
        gathers = (
            0.4 * land.wetness_index
            + 1.2 * (0.6 - np.tanh(land.slope / 15.0))
            + 0.3 * shaded
            + 0.5 * (self.most_leaves - 3.0) / 1.5
        )
        held = self.soil.field_capacity + 0.04 * tuning.explained * gathers
        self.held = np.clip(held, self.soil.wilting + 0.03, self.soil.porosity - 0.04)
        self.infiltration = np.exp(-0.04 * tuning.explained * land.slope)
        self.sealed = np.where(cover == URBAN, 0.5, 1.0)
        self.open_water = (cover == WATER) | (cover == SNOW_ICE)

    def start(self) -> State:
        """A mean state, to be forgotten in the spin-up."""
        held = self.held
        return State(0.75 * held, 0.9 * held, 0.7 * self.most_leaves, np.full(held.shape, 5.0))

    def step(self, state: State, weather: Weather) -> tuple[State, Day]:
        """One local day: night half, morning value, day half, evening value."""
        rain = self._storm_structure(weather)
        clouds = [self._cover(weather.cloud_night), self._cover(weather.cloud_day)]
        swing = weather.swing * (1.0 - 0.45 * clouds[1])
        demand = self._demand(weather, clouds[1])
        morning = self._half_day(state, rain[0], 0.05 * demand)
        evening = self._half_day(morning, rain[1], 0.95 * demand)
        leaves = self._leaves(evening, weather.air)
        recent = 0.8 * evening.recent_rain + rain.sum(axis=0)
        after = dataclasses.replace(evening, leaves=leaves, recent_rain=recent)
        lst_night = self._night(morning, weather, clouds[0], swing)
        lst_day = self._noon(evening, weather, clouds[1], swing)
        greenness = 1.0 - np.exp(-0.55 * leaves)
        missing = np.where(self.open_water, np.nan, 0.0)
        return after, Day(
            moisture_am=morning.surface + missing,
            moisture_pm=evening.surface + missing,
            temperature_am=weather.air - 0.75 * swing,
            temperature_pm=weather.air + 0.55 * swing,
            lst_night=lst_night,
            lst_day=lst_day,
            cloudy_night=weather.cloud_night > self.tuning.cloud_threshold,
            cloudy_day=weather.cloud_day > self.tuning.cloud_threshold,
            evapotranspiration=self._seen_evapotranspiration(after, demand),
            demand=demand,
            rain=rain.sum(axis=0),
            leaves=leaves,
            ndvi=0.08 + 0.84 * greenness,
            evi=0.05 + 0.72 * (1.0 - np.exp(-0.33 * leaves)),
        )

    # -- water ----------------------------------------------------------------------------------

    def _storm_structure(self, weather: Weather) -> Floats:
        """mm in each half-day, with the storms' 1 km structure: log-normal, mean kept."""
        spread = 0.75 * self.tuning.hidden
        return weather.rain * np.exp(spread * weather.detail - spread**2 / 2)

    def _cover(self, index: Floats) -> Floats:
        """Share of the sky under cloud, a smooth step of the index about the threshold."""
        return 1.0 / (1.0 + np.exp(-(index - self.tuning.cloud_threshold) / 0.35))

    def _demand(self, weather: Weather, cover: Floats) -> Floats:
        """Priestley-Taylor evaporation of a wet surface, mm per day."""
        sun = weather.sun * (1.0 - CLOUD_TAKES * cover)
        net = np.maximum((1.0 - self.albedo) * sun - 70.0 * (1.0 - 0.6 * cover), 5.0)
        return PRIESTLEY_TAYLOR * _energy_share(weather.air, self.land.elevation) * net * MM_PER_WATT

    def _stress(self, root: Floats) -> Floats:
        """0 at the wilting point, 1 from the critical moisture on, of the root zone."""
        soil = self.soil
        return np.clip((root - soil.wilting) / (CRITICAL * self.held - 0.7 * soil.wilting), 0.0, 1.0)

    def _dryness(self, surface: Floats) -> Floats:
        """Soil evaporation over its demand: 0 at the residual, 1 from the critical moisture on."""
        return np.clip((surface - RESIDUAL) / (CRITICAL * self.held - RESIDUAL), 0.0, 1.0)

    def _half_day(self, state: State, rain: Floats, demand: Floats) -> State:
        """Half a day in `SUBSTEPS` steps; rain and demand in mm of the half-day."""
        soil = self.soil
        dt = 0.5 / SUBSTEPS
        through = np.maximum(rain - 0.2 * state.leaves, 0.3 * rain) * self.sealed / SUBSTEPS
        covered = 1.0 - np.exp(-EXTINCTION * state.leaves)
        surface, root = state.surface, state.root
        for _ in range(SUBSTEPS):
            filled = np.clip((surface - RESIDUAL) / (soil.porosity - RESIDUAL), 0.0, 1.0)
            enters = np.minimum(through, self.infiltration * soil.conductivity * (1.2 - filled) * dt)
            surface = np.minimum(surface + enters / SURFACE_MM, soil.porosity)
            filled = np.clip((surface - RESIDUAL) / (soil.porosity - RESIDUAL), 0.0, 1.0)
            excess = np.maximum(surface - self.held, 0.0) * SURFACE_MM
            drained = np.minimum(
                soil.conductivity * filled ** (2 * soil.exponent + 3) * dt + 0.5 * excess * dt, 0.6 * excess
            )
            bare = demand / SUBSTEPS * (1.0 - covered) * self._dryness(surface)
            leaf = demand / SUBSTEPS * covered * self.crop * self._stress(root)
            # Capillary exchange: 4 mm a day for a full difference in relative wetness.
            exchange = 4.0 * dt * (root - surface) / self.held
            surface = surface + (exchange - drained - bare - 0.2 * leaf) / SURFACE_MM
            deep = np.maximum(root - self.held, 0.0) * ROOT_MM * (1.0 - np.exp(-dt / 4.0))
            root = np.minimum(root + (drained - exchange - 0.8 * leaf - deep) / ROOT_MM, soil.porosity)
            surface = np.clip(surface, RESIDUAL, soil.porosity)
            root = np.maximum(root, 0.7 * soil.wilting)
        return dataclasses.replace(state, surface=surface, root=root)

    # -- leaves and what sensors see -----------------------------------------------------------

    def _leaves(self, state: State, air: Floats) -> Floats:
        """Leaf area: what water and warmth allow, with a lag."""
        warmth = np.clip((air - 273.15 + 2.0) / 14.0, 0.15, 1.0)
        allowed = self.most_leaves * warmth * (0.45 + 0.55 * self._stress(state.root))
        return state.leaves + (allowed - state.leaves) / LEAF_LAG

    def _seen_evapotranspiration(self, state: State, demand: Floats) -> Floats:
        """mm per day as a satellite's algorithm has it: weather, leaves and cover; soil water through the rain of the days before."""
        covered = 1.0 - np.exp(-EXTINCTION * state.leaves)
        damp = state.recent_rain / (state.recent_rain + 12.0)
        return demand * (covered * self.crop * (0.3 + 0.7 * self._stress(state.root)) + (1.0 - covered) * damp)

    def _noon(self, state: State, weather: Weather, cover: Floats, swing: Floats) -> Floats:
        """Surface temperature at 13:30, K: the sun's energy that does not evaporate water heats the surface above the air."""
        sun = weather.sun_at_view * (1.0 - CLOUD_TAKES * np.minimum(cover, 0.5))
        net = np.maximum((1.0 - self.albedo) * sun - 90.0, 20.0)
        covered = 1.0 - np.exp(-EXTINCTION * state.leaves)
        wet = covered * self.crop * self._stress(state.root) + (1.0 - covered) * self._dryness(state.surface)
        share = 0.9 * np.minimum(PRIESTLEY_TAYLOR * _energy_share(weather.air, self.land.elevation), 1.0)
        heating = (1.0 - 0.1 * covered - 0.25 * (1.0 - covered)) * net * (1.0 - share * wet)
        resistance = 22.0 * covered + 55.0 * (1.0 - covered)
        density_heat = 1200.0 * np.exp(-self.land.elevation / SCALE_HEIGHT)
        return weather.air + 0.95 * swing + np.where(self.open_water, 0.0, heating * resistance / density_heat)

    def _night(self, state: State, weather: Weather, cover: Floats, swing: Floats) -> Floats:
        """Surface temperature at 01:30, K: clear skies cool it, wet soil holds warmth, cold air pools in hollows."""
        holds = 2.5 * self._dryness(state.surface)
        cooling = (3.5 + 1.2 * np.maximum(-self.land.position, 0.0)) * (1.0 - cover)
        return weather.air - 0.7 * swing - cooling + np.where(self.open_water, 2.5, holds)


def _energy_share(air: Floats, elevation: Floats) -> Floats:
    """Delta / (Delta + gamma): share of the energy that a wet surface evaporates; Delta of Murray (1967), FAO-56 equation 13."""
    celsius = air - 273.15
    saturation = 0.6108 * np.exp(17.27 * celsius / (celsius + 237.3))
    delta = 4098.0 * saturation / (celsius + 237.3) ** 2
    return delta / (delta + PSYCHROMETRIC * np.exp(-elevation / SCALE_HEIGHT))


# -- how much the predictors can explain ---------------------------------------------------------


class Explained:
    """Sums for the share of variance inside coarse cells that the predictors explain, over any number of overpasses.

    Least squares of the truth's anomaly from its cell's mean on the predictors' anomalies and their squares; R^2 of the fit.
    The predictors are those of a recipe that vary inside a coarse cell: elevation, slope, northness, eastness, land cover
    class, and what is passed with the truth (LST, NDVI, EVI, ET).

    Parameters
    ----------
    land : of (n,) points
    cell : (n,) int, the coarse cell of each, ascending
    """

    def __init__(self, land: Land, cell: NDArray[np.int64]) -> None:
        self.cell = cell
        aspect = np.arctan2(-land.east_slope, -land.north_slope)
        rise = np.tan(np.deg2rad(land.slope))
        self.continuous = np.stack(
            [land.elevation / 500.0, land.slope / 10.0, rise * np.sin(aspect), rise * np.cos(aspect)]
        )
        self.classes = np.stack([land.land_cover == k for k in range(1, 18) if np.any(land.land_cover == k)]).astype(
            np.float64
        )
        self.gram: Floats | None = None
        self.count = 0

    def add(self, truth: Floats, varying: Sequence[Floats]) -> None:
        """Add one overpass: truth (n,) with NaN where there is none, and the predictors that vary in time, (n,) each."""
        shown = np.stack([truth, *varying])
        valid = np.isfinite(shown).all(axis=0)
        if not valid.any():
            return
        cell = self.cell[valid]
        linear = _anomalies(np.concatenate([shown[:, valid], self.continuous[:, valid]]), cell)
        squares = _anomalies(linear[1:] ** 2, cell)
        rows = np.concatenate([linear, squares, _anomalies(self.classes[:, valid], cell)])
        # einsum, not BLAS: the same sums whatever the number of threads.
        gram = np.einsum("in,jn->ij", rows, rows)
        self.gram = gram if self.gram is None else self.gram + gram
        self.count += int(valid.sum())

    @property
    def share(self) -> float:
        """Share of the variance, 0 to 1."""
        return share_of(self.gram)

    @property
    def spread(self) -> float:
        """Standard deviation of the truth inside coarse cells, m3 m-3."""
        return float(np.sqrt(self.gram[0, 0] / self.count)) if self.gram is not None else float("nan")


def _anomalies(rows: Floats, cell: NDArray[np.int64]) -> Floats:
    """(k, n) rows less their means over equal values of `cell` (ascending)."""
    starts = np.flatnonzero(np.r_[True, np.diff(cell) > 0])
    counts = np.diff(np.r_[starts, cell.size])
    return rows - np.repeat(np.add.reduceat(rows, starts, axis=1) / counts, counts, axis=1)


def share_of(gram: Floats | None) -> float:
    """R^2 of the first column on the others, from their (k, k) sums of products; NaN without any."""
    if gram is None or gram[0, 0] <= 0:
        return float("nan")
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-12))
    scaled = gram / np.outer(scale, scale)
    coefficients = np.linalg.lstsq(scaled[1:, 1:], scaled[1:, 0], rcond=1e-9)[0]
    return float(np.clip(coefficients @ scaled[1:, 0], 0.0, 1.0))


def calibrate(
    world: World, land: Land, cell: NDArray[np.int64], days: pd.DatetimeIndex, spin_up: int
) -> tuple[Tuning, dict[str, float]]:
    """The tuning that gives the world its share of clouds and of explainable variance, on sampled cells.

    land : of (n,) points; cell : (n,) which coarse cell each is in
    days : local days, of which the first `spin_up` are not scored

    Bisection on how much of what shapes the truth is hidden; deterministic.
    """
    sky = Sky(world, land)
    weather = [sky.day(day) for day in days]
    seen = weather[spin_up:]
    threshold = float(np.quantile(np.stack([[w.cloud_night, w.cloud_day] for w in seen]), 1.0 - world.cloud_share))
    low, high = 0.02, 0.98
    for _ in range(7):
        mix = (low + high) / 2
        share, spread = _pilot(world, land, cell, weather, spin_up, _tuning(mix, threshold))
        low, high = (mix, high) if share > world.explainable_share else (low, mix)
    mix = (low + high) / 2
    share, spread = _pilot(world, land, cell, weather, spin_up, _tuning(mix, threshold))
    return _tuning(mix, threshold), {"pilot_share": share, "pilot_spread": spread, "hidden_mix": mix}


def _tuning(mix: float, threshold: float) -> Tuning:
    return Tuning(2.2 * (1.0 - mix), 2.0 * mix, threshold)


def _pilot(
    world: World, land: Land, cell: NDArray[np.int64], weather: Sequence[Weather], spin_up: int, tuning: Tuning
) -> tuple[float, float]:
    nature = Nature(world, land, tuning)
    state, explained = nature.start(), Explained(land, cell)
    for number, today in enumerate(weather):
        state, day = nature.step(state, today)
        if number >= spin_up:
            explained.add(day.moisture_am, (day.lst_night, day.ndvi, day.evi, day.evapotranspiration))
            explained.add(day.moisture_pm, (day.lst_day, day.ndvi, day.evi, day.evapotranspiration))
    return explained.share, explained.spread
