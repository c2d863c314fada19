"""What a nature run is asked to be: a `World`, read from a file of values and checked key by key."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

from smscale import schema
from smscale.errors import InputError, RecipeError
from smscale.grid import EARTH_RADIUS_KM, Grid

#: km of one degree of latitude on the sphere.
KM_PER_DEGREE = np.pi / 180 * EARTH_RADIUS_KM
#: Half a coarse cell and the reach of the antenna pattern, km: how far outside the region a coarse cell still looks.
MARGIN_KM = 18.1 + 36.0
#: Posts of a 3 arc-second DEM per degree.
POSTS = 1200
#: Cells on a side of one spatial unit of work.
TILE = 100


@dataclass(frozen=True)
class World:
    """A seeded world over a region and a period.

    Parameters
    ----------
    region : west, south, east, north, degrees
    start, end : ISO dates, first and last local solar day
    name : of the world, for titles and station networks
    seed : of everything random
    step : degrees of the truth's grid ("1 km" is 0.01)
    stations : how many
    cloud_share : share of LST pixels that clouds hide, averaged over region and period
    explainable_share : share of the truth's variance inside 36 km cells that the predictors can explain
    retrieval_error : standard deviation of the SMAP error over low vegetation, m3 m-3
    rain : mean rain, mm per day
    basin_elevation, plateau_elevation : m; the two levels
    front : where the rise from basin to plateau stands, as a share of the region's extent from its low side (0 to 1)
    front_width : km over which it rises
    plateau_azimuth : degrees clockwise from north, towards the plateau
    relief : factor on the height of ridges and the depth of valleys
    dem : raster files that take the place of the made terrain (any CRS; must cover region and margin)
    land_cover : a raster file of IGBP classes that takes the place of the made land cover
    """

    region: tuple[float, float, float, float]
    start: str
    end: str
    name: str = "world"
    seed: int = 2017
    step: float = 0.01
    stations: int = 60
    cloud_share: float = 0.8
    explainable_share: float = 0.6
    retrieval_error: float = 0.04
    rain: float = 5.0
    basin_elevation: float = 450.0
    plateau_elevation: float = 3800.0
    front: float = 0.25
    front_width: float = 120.0
    plateau_azimuth: float = 300.0
    relief: float = 1.0
    dem: tuple[str, ...] = ()
    land_cover: str | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "world") -> World:
        """A checked world of the values of a file; paths in it are relative to that file.

        Raises
        ------
        RecipeError
            one line: the key, what was found, what is expected.
        """
        if not isinstance(values, Mapping):
            raise RecipeError(f"{where}: a world is a list of `key: value`; got {type(values).__name__}")
        known = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise RecipeError(f"{where}: unknown key {key}; {hint}")
        for key in ("region", "start", "end"):
            if key not in values:
                raise RecipeError(f"{where}: {key} is missing; expected {_EXPECTED[key]}")
        clean = {key: _typed(key, value, where) for key, value in values.items()}
        folder = Path(where).parent
        if clean.get("dem"):
            clean["dem"] = tuple(_file("dem", folder / path, where) for path in clean["dem"])
        if clean.get("land_cover"):
            clean["land_cover"] = _file("land_cover", folder / clean["land_cover"], where)
        world = cls(**clean)
        world._check(where)
        return world

    @classmethod
    def from_file(cls, path: str | Path) -> World:
        """A checked world of a YAML file."""
        try:
            values = yaml.safe_load(Path(path).read_text())
        except FileNotFoundError:
            raise RecipeError(f"{path}: no such world file") from None
        except yaml.YAMLError as error:
            raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
        return cls.from_mapping(values, str(path))

    def __reduce__(self) -> tuple[type[World], tuple[Any, ...]]:
        """Travel light: the values alone, not what is worked out from them."""
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as they stand in a world file."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def _check(self, where: str) -> None:
        for key, low, high in _RANGES:
            if not low <= getattr(self, key) <= high:
                raise RecipeError(f"{where}: {key}: found {getattr(self, key)}, expected {low} to {high}")
        first, last = (_date(key, getattr(self, key), where) for key in ("start", "end"))
        if last < first:
            raise RecipeError(
                f"{where}: end: the period is empty: it starts {self.start} and ends {self.end}; end must not be before start"
            )
        try:
            region, grid = self.region_grid, self.grid
        except InputError as error:
            raise RecipeError(f"{where}: region: {error}") from None
        if region.bounds[2] - region.bounds[0] > 360 or abs(grid.bounds[1]) > 85 or abs(grid.bounds[3]) > 85:
            raise RecipeError(
                f"{where}: region: found {list(self.region)}, expected at most 360 degrees wide, within 84 S to 84 N"
            )
        if POSTS % round(1 / self.step):
            raise RecipeError(
                f"{where}: step: found {self.step}, expected a whole number of 3 arc-second posts, as 0.01, 0.02 or 0.05"
            )

    # -- grids and days -------------------------------------------------------------------------

    @cached_property
    def region_grid(self) -> Grid:
        """The truth's grid: the region."""
        return Grid.latlon(*self.region, step=self.step)

    @cached_property
    def grid(self) -> Grid:
        """The simulated grid: the region and a margin, so that coarse cells on its edge see a true world."""
        west, south, east, north = self.region_grid.bounds
        dlat = MARGIN_KM / KM_PER_DEGREE
        dlon = dlat / max(np.cos(np.deg2rad(max(abs(south), abs(north)) + dlat)), 0.05)
        return Grid.latlon(
            max(west - dlon, -180), max(south - dlat, -90), min(east + dlon, 360), min(north + dlat, 90), step=self.step
        )

    @cached_property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the region in the simulated grid."""
        row, col = self.region_grid.row0 - self.grid.row0, self.region_grid.col0 - self.grid.col0
        rows, cols = self.region_grid.shape
        return slice(row, row + rows), slice(col, col + cols)

    @cached_property
    def days(self) -> pd.DatetimeIndex:
        """The local solar days of the period."""
        return pd.date_range(self.start, self.end, freq="D")

    @cached_property
    def shown_days(self) -> pd.DatetimeIndex:
        """The local days that granules cut by UTC day can show: one more on each side."""
        return pd.date_range(self.days[0] - pd.Timedelta(days=1), self.days[-1] + pd.Timedelta(days=1), freq="D")

    @cached_property
    def shown_steps(self) -> xr.Dataset:
        """The overpass steps of `shown_days`; `day_sequence` counts from the period's first day."""
        steps = schema.overpass_steps(str(self.shown_days[0].date()), str(self.shown_days[-1].date()), self.longitude)
        sequence = steps["day_sequence"]
        return steps.assign_coords(day_sequence=(sequence.dims, sequence.to_numpy() - np.int32(1), sequence.attrs))

    @cached_property
    def utc_days(self) -> pd.DatetimeIndex:
        """The UTC days that observations of the period fall on."""
        west, east = self.region[0] / 15.0, self.region[2] / 15.0
        first = (self.days[0] - pd.Timedelta(hours=east)).floor("D")
        last = (self.days[-1] + pd.Timedelta(hours=24 - west)).ceil("D") - pd.Timedelta(days=1)
        return pd.date_range(first, last, freq="D")

    @property
    def longitude(self) -> float:
        """The region's central meridian, degrees east."""
        return (self.region[0] + self.region[2]) / 2

    @cached_property
    def origin(self) -> tuple[float, float, float]:
        """Longitude and latitude of the region's middle and the cosine of that latitude: the plane that noise lives on."""
        lat = (self.region[1] + self.region[3]) / 2
        return self.longitude, lat, float(np.cos(np.deg2rad(lat)))

    def plane(self, lon: Any, lat: Any) -> tuple[Any, Any]:
        """km east and north on a plane true to scale at the region's middle latitude, from longitude and latitude 0."""
        return np.asarray(lon) * (KM_PER_DEGREE * self.origin[2]), np.asarray(lat) * KM_PER_DEGREE


#: Kinds of the keys and what a message says of them.
_EXPECTED = {
    "region": "four numbers: west, south, east, north in degrees",
    "start": "an ISO date, as 2017-07-10",
    "end": "an ISO date, as 2017-07-29",
    "name": "a word of letters, digits and hyphens",
    "seed": "a whole number",
    "stations": "a whole number",
    "dem": "a list of raster files",
    "land_cover": "a raster file",
}
_RANGES = (
    ("seed", 0, 2**31 - 1),
    ("stations", 0, 100_000),
    ("cloud_share", 0.0, 0.95),
    ("explainable_share", 0.05, 0.95),
    ("retrieval_error", 0.0, 0.2),
    ("rain", 0.0, 50.0),
    ("basin_elevation", -400, 8000),
    ("plateau_elevation", -400, 8000),
    ("front", 0.0, 1.0),
    ("front_width", 10.0, 2000.0),
    ("plateau_azimuth", 0.0, 360.0),
    ("relief", 0.0, 2.0),
)


def _typed(key: str, value: Any, where: str) -> Any:
    """The value as the key's type, or a RecipeError."""
    expected = _EXPECTED.get(key, "a number")
    wrong = RecipeError(f"{where}: {key}: found {value!r}, expected {expected}")
    if key == "region":
        if not isinstance(value, list | tuple) or len(value) != 4 or not all(_is_number(v) for v in value):
            raise wrong
        return tuple(float(v) for v in value)
    if key in ("start", "end"):
        if isinstance(value, bool | int | float) or value is None:
            raise wrong
        return _date(key, value, where).strftime("%Y-%m-%d")
    if key in ("seed", "stations"):
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong
        return value
    if key == "dem":
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
            raise wrong
        return tuple(paths)
    if key in ("name", "land_cover"):
        if not isinstance(value, str) and not (key == "land_cover" and value is None):
            raise wrong
        if key == "name" and not str(value).replace("-", "").isalnum():
            raise wrong
        return value
    if not _is_number(value):
        raise wrong
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _date(key: str, value: Any, where: str) -> pd.Timestamp:
    try:
        return pd.Timestamp(value if isinstance(value, date) else date.fromisoformat(value))
    except (ValueError, TypeError):
        raise RecipeError(f"{where}: {key}: found {value!r}, expected {_EXPECTED[key]}") from None


def _file(key: str, path: Path, where: str) -> str:
    if not path.is_file():
        raise RecipeError(f"{where}: {key}: found no file {path}, expected {_EXPECTED[key]}")
    return str(path)
