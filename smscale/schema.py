"""What the variables are: names, units, ranges, kinds, cadences; the status bits; the overpass steps in time.

Rooms meet through Datasets that satisfy this module. Sources of the ranges stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS

from smscale.errors import InputError
from smscale.grid import Grid, coords_of

Kind = Literal["continuous", "class", "direction"]
Cadence = Literal["overpass", "eight_day", "sixteen_day", "static", "annual", "coordinate"]


@dataclass(frozen=True)
class Variable:
    """One variable of the cube."""

    name: str
    long_name: str
    units: str
    valid_min: float
    valid_max: float
    kind: Kind = "continuous"
    cadence: Cadence = "overpass"
    standard_name: str | None = None

    @property
    def attrs(self) -> dict[str, object]:
        """CF attributes."""
        attrs: dict[str, object] = {
            "long_name": self.long_name,
            "units": self.units,
            "valid_min": self.valid_min,
            "valid_max": self.valid_max,
        }
        if self.standard_name:
            attrs["standard_name"] = self.standard_name
        return attrs


VARIABLES: dict[str, Variable] = {
    v.name: v
    for v in (
        # 0.02 to porosity: SPL3SMP's own valid range (0.02 to 0.5) does not hold in its files, so 0 to 1 is what is possible.
        Variable(
            "soil_moisture",
            "volumetric soil moisture",
            "m3 m-3",
            0.0,
            1.0,
            standard_name="volume_fraction_of_condensed_water_in_soil",
        ),
        Variable("longitude", "longitude", "degrees_east", -180, 360, cadence="coordinate", standard_name="longitude"),
        Variable("latitude", "latitude", "degrees_north", -90, 90, cadence="coordinate", standard_name="latitude"),
        Variable(
            "elevation",
            "elevation above sea level",
            "m",
            -500,
            9000,
            cadence="static",
            standard_name="surface_altitude",
        ),
        Variable("slope", "terrain slope (Horn)", "degree", 0, 90, cadence="static"),
        Variable(
            "aspect",
            "terrain aspect, clockwise from north; flat is missing",
            "degree",
            0,
            360,
            kind="direction",
            cadence="static",
        ),
        Variable("northness", "cosine of aspect, averaged by area", "1", -1, 1, cadence="static"),
        Variable("eastness", "sine of aspect, averaged by area", "1", -1, 1, cadence="static"),
        Variable("land_cover", "IGBP land cover class", "1", 1, 17, kind="class", cadence="annual"),
        Variable("forest_fraction", "share of forest (IGBP 1 to 5)", "1", 0, 1, cadence="annual"),
        Variable("shrub_fraction", "share of shrubland (IGBP 6, 7)", "1", 0, 1, cadence="annual"),
        Variable("grass_fraction", "share of savanna and grassland (IGBP 8 to 10)", "1", 0, 1, cadence="annual"),
        Variable("crop_fraction", "share of cropland (IGBP 12, 14)", "1", 0, 1, cadence="annual"),
        Variable("bare_fraction", "share of bare ground (IGBP 16)", "1", 0, 1, cadence="annual"),
        # MOD11 user guide: valid LST 7500..65535 x 0.02 K; 200..350 K is what the land surface reaches.
        Variable("lst", "land surface temperature", "K", 200, 350, standard_name="surface_temperature"),
        Variable("lst_view_time", "local solar time of the LST view", "hour", 0, 24),
        Variable(
            "ndvi",
            "normalized difference vegetation index",
            "1",
            -0.2,
            1,
            cadence="sixteen_day",
            standard_name="normalized_difference_vegetation_index",
        ),
        Variable("evi", "enhanced vegetation index", "1", -0.2, 1, cadence="sixteen_day"),
        Variable("et", "evapotranspiration over 8 days", "kg m-2", 0, 200, cadence="eight_day"),
        Variable("day_sequence", "days since the first day of the period, from 1", "day", 1, 1e6, cadence="coordinate"),
        Variable("day_of_year_sin", "sine of the day of year as an angle", "1", -1, 1, cadence="coordinate"),
        Variable("day_of_year_cos", "cosine of the day of year as an angle", "1", -1, 1, cadence="coordinate"),
        Variable(
            "overpass",
            "0 descending (AM, 06:00), 1 ascending (PM, 18:00)",
            "1",
            0,
            1,
            kind="class",
            cadence="coordinate",
        ),
    )
}

#: The paper's twelve predictors, in its order.
PAPER_PREDICTORS = (
    "longitude", "latitude", "elevation", "slope", "aspect", "land_cover",
    "lst", "ndvi", "evi", "et", "day_sequence", "overpass",
)  # fmt: skip

#: Fine-grid groups of the cube: cadence -> variables, in the order in which they lie in the cube.
CADENCES: dict[str, tuple[str, ...]] = {
    "overpass": ("lst", "lst_view_time"),
    "eight_day": ("et",),
    "sixteen_day": ("ndvi", "evi"),
    "static": ("elevation", "slope", "aspect", "northness", "eastness"),
}

#: IGBP classes of each land cover fraction.
FRACTIONS: dict[str, tuple[int, ...]] = {
    "forest_fraction": (1, 2, 3, 4, 5),
    "shrub_fraction": (6, 7),
    "grass_fraction": (8, 9, 10),
    "crop_fraction": (12, 14),
    "bare_fraction": (16,),
}

#: IGBP classes of MCD12Q1 (MCD12 user guide, table 3), 1 to 17.
IGBP = (
    "evergreen needleleaf forest", "evergreen broadleaf forest", "deciduous needleleaf forest",
    "deciduous broadleaf forest", "mixed forest", "closed shrubland", "open shrubland", "woody savanna", "savanna",
    "grassland", "permanent wetland", "cropland", "urban", "cropland and natural vegetation", "snow and ice",
    "barren", "water",
)  # fmt: skip
URBAN, SNOW_ICE, BARREN, WATER = 13, 15, 16, 17
LAND_COVER_FILL = 255

OVERPASSES = ("AM", "PM")
#: Coordinates of the overpass steps beside time.
STEP_COORDINATES = ("overpass", "local_date", "day_sequence", "day_of_year")
#: Local solar hours of SMAP's equator crossings.
OVERPASS_HOURS = {"AM": 6.0, "PM": 18.0}


class Status(IntFlag):
    """Why a cell of a map is what it is (CF flag_masks, uint32)."""

    OUTSIDE_REGION = 1 << 0
    WATER_ICE_URBAN = 1 << 1
    NO_LST = 1 << 2
    LST_FILLED = 1 << 3
    PREDICTOR_MISSING = 1 << 4
    OUTSIDE_TRAINING_RANGE = 1 << 5
    MODEL_WITHOUT_LST = 1 << 6
    CLIMATOLOGICAL_DETAIL = 1 << 7
    FUSED_KRIGING = 1 << 8
    FUSED_IDW = 1 << 9
    FUSED_MEAN_RESIDUAL = 1 << 10
    NOT_FUSED = 1 << 11
    CLIPPED = 1 << 12
    CLOSURE_NOT_APPLIED = 1 << 13
    NEIGHBOURS_FILLED = 1 << 14


#: Bits that leave a cell of a model map without a value.
MISSING_BITS = Status.OUTSIDE_REGION | Status.WATER_ICE_URBAN | Status.NO_LST | Status.PREDICTOR_MISSING


def status_attrs() -> dict[str, object]:
    """CF attributes of a status layer."""
    return {
        "long_name": "why each cell is what it is",
        "standard_name": "status_flag",
        "flag_masks": np.array([int(flag) for flag in Status], dtype=np.uint32),
        "flag_meanings": " ".join(str(flag.name).lower() for flag in Status),
    }


def overpass_steps(start: str, end: str, longitude: float) -> xr.Dataset:
    """Every (local solar date, AM | PM) of a period, first and last day included.

    Parameters
    ----------
    start, end : ISO dates, local solar days
    longitude : degrees east, the region's central meridian

    Returns
    -------
    Dataset without data variables; coordinates along `time` (datetime64[ns], UTC of 06:00 and 18:00 local solar
    time at `longitude`): overpass "AM" | "PM", local_date, day_sequence (1 on the first day), day_of_year.
    """
    try:
        days = pd.date_range(pd.Timestamp(start), pd.Timestamp(end), freq="D")
    except ValueError as error:
        raise InputError(f"a period needs two ISO dates, as 2017-06-10; got {start!r}, {end!r} ({error})") from None
    if days.empty:
        raise InputError(f"the period is empty: it starts {start} and ends {end}")
    local_date = days.repeat(2)
    overpass = np.tile(np.array(OVERPASSES), days.size)
    hours = np.array([OVERPASS_HOURS[o] for o in overpass]) - longitude / 15.0
    time = local_date + pd.to_timedelta(np.round(hours * 3600), unit="s")
    return xr.Dataset(
        coords={
            "time": (
                "time",
                time.to_numpy("datetime64[ns]"),
                {"long_name": "06:00 or 18:00 local solar time, in UTC", "standard_name": "time"},
            ),
            "overpass": ("time", overpass, {"long_name": "SMAP overpass: AM descending, PM ascending"}),
            "local_date": ("time", local_date.to_numpy("datetime64[ns]"), {"long_name": "local solar date"}),
            "day_sequence": (
                "time",
                np.arange(1, days.size + 1, dtype=np.int32).repeat(2),
                {"long_name": "days since the period's first day, from 1"},
            ),
            "day_of_year": ("time", local_date.dayofyear.to_numpy(np.int32), {"long_name": "day of year"}),
        }
    )


def season_angle(day_of_year: ArrayLike) -> dict[str, NDArray[np.float32]]:
    """Sine and cosine of days of year (n,) on a circle of 365.25 days: 31 December lies beside 1 January."""
    angle = 2 * np.pi * np.asarray(day_of_year, np.float64) / 365.25
    return {
        "day_of_year_sin": np.sin(angle).astype(np.float32),
        "day_of_year_cos": np.cos(angle).astype(np.float32),
    }


def local_step(utc: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The overpass step that observations belong to.

    SPL3SMP is cut by UTC day; the local solar day is what a step is (DESIGN: the UTC-day trap).

    Parameters
    ----------
    utc : datetime64, any shape; observation times (NaT allowed)
    longitude : degrees east, broadcast against `utc`

    Returns
    -------
    local_date : datetime64[D], NaT where `utc` is
    is_pm : bool, True from local solar noon on
    """
    utc = np.asarray(utc, dtype="datetime64[ns]")
    wrapped = (np.asarray(longitude, dtype=np.float64) + 180.0) % 360.0 - 180.0
    local = utc + np.round(wrapped * 240.0e9).astype("timedelta64[ns]")  # 240 s of solar time per degree
    local_date = local.astype("datetime64[D]")
    return local_date, (local - local_date) >= np.timedelta64(12, "h")


def grid_coords(grid: Grid) -> dict[str, xr.DataArray]:
    """CF coordinates of a grid: lat, lon; x and y in metres on EASE grids; `spatial_ref` on longitude-latitude ones.

    An EASE cube lies on its longitudes and latitudes, which are no axes of EPSG:6933: its CRS stands in `attrs["crs"]`
    of the Dataset (see `grid_attrs`), and x, y beside lon, lat.
    """
    coords = {
        name: xr.DataArray(values, dims=dim, attrs=attrs) for name, (dim, values, attrs) in coords_of(grid).items()
    }
    if grid.x is None:
        west, _, east, north = grid.bounds
        step = (east - west) / grid.shape[1]
        reference = CRS.from_user_input(grid.crs).to_cf()
        reference["GeoTransform"] = f"{west} {step} 0.0 {north} 0.0 {-step}"
        coords["spatial_ref"] = xr.DataArray(np.int32(0), attrs=reference)
    return coords


def grid_attrs(grid: Grid) -> dict[str, str]:
    """Attributes of a Dataset on a grid."""
    return {"crs": grid.crs, "Conventions": "CF-1.11"}


def nearest_index(times: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(t,) int: which of `times` (ascending datetime64) is nearest to each step; of two equally near the earlier.

    Raises
    ------
    InputError
        if there is none to choose from.
    """
    times, steps = np.asarray(times, "datetime64[ns]"), np.asarray(steps, "datetime64[ns]")
    if not times.size:
        raise InputError("there is nothing to match with the overpass steps in time")
    return np.abs((times[None, :] - steps[:, None]).astype(np.int64)).argmin(axis=1)


def composite_index(composites: xr.Dataset | xr.DataArray, steps: np.ndarray, never_later: bool = False) -> np.ndarray:
    """(t,) int: which composite serves each overpass step.

    Parameters
    ----------
    composites : with coordinates `time` (middle of the composite), `first_day` and `last_day` along time, ascending
    steps : (t,) datetime64
    never_later : only composites that ended before the step: for runs that must not look ahead

    Returns
    -------
    the composite nearest in time; with `never_later` the last one that had ended. -1 where that is further from the step
    (its middle, or its end) than the longest is long: the step's own composite and its neighbour are missing. (A year's last
    8-day composite is shorter, and must last until the new year's first is over.)
    """
    steps = np.asarray(steps, "datetime64[ns]")
    ends = composites["last_day"].values.astype("datetime64[ns]") + np.timedelta64(1, "D")
    longest = (ends - composites["first_day"].values.astype("datetime64[ns]")).max(initial=np.timedelta64(0, "ns"))
    if never_later:
        pick, marks = np.searchsorted(ends, steps, side="right") - 1, ends
    else:
        marks = composites["time"].values.astype("datetime64[ns]")
        pick = nearest_index(marks, steps)
    near = (pick >= 0) & (np.abs(steps - marks[pick]) <= longest)
    return np.where(near, pick, -1)
