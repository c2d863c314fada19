"""The order in which a nature run comes to be: phases of independent tasks over fixed tiles and slabs.

More region or period means more tasks and files; what one task holds stays the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml
from numpy.typing import NDArray

from smscale import schema, sinusoidal, store
from smscale.blocks import Task, spans
from smscale.grid import Grid
from smscale.places import place, write_text
from smscale.places.copies import local_copies
from smscale.simulate import modis_files, products
from smscale.simulate.dem_files import dem_name
from smscale.simulate.nature import Explained, Nature, Tuning, calibrate
from smscale.simulate.products import (
    COARSE,
    DAILY,
    EIGHT_DAY,
    FINE,
    LAND,
    OVERPASS,
    SIXTEEN_DAY,
    coarse_grid,
    truth_path,
)
from smscale.simulate.spec import TILE, World
from smscale.simulate.terrain import STATIC, Land, dem_corners, land_window
from smscale.simulate.weather import Sky

#: Version of the made world: a change of its equations changes it, and with it every fingerprint.
VERSION = 2
#: Local days before the period's first shown day that the state needs to forget its start (root zone and leaves: some 30 days).
SPIN_UP = 30
#: Planes in one shard, along time.
SLABS = {OVERPASS: 16, DAILY: 8, EIGHT_DAY: 4, SIXTEEN_DAY: 2, FINE: 16, COARSE: products.COARSE_SLAB}
#: Sampled coarse cells, points on a side of each, and days of the calibration and of the report.
_SAMPLE_CELLS, _SAMPLE_SIDE, _SAMPLE_DAYS, _REPORT_DAYS = 36, 7, 40, 20

Window = tuple[int, int, int, int]


def phases(world: World, out: str) -> list[tuple[str, list[Task]]]:
    """Every task of a nature run into the folder `out`, by phases.

    Phases run in order; the tasks of one phase do not need one another, and give the same bytes in any order and process.
    """
    print_of = store.fingerprint(
        VERSION, world.to_mapping(), [_stat(path) for path in (*world.dem, *filter(None, [world.land_cover]))]
    )

    def task(key: str, call: Any, *args: Any) -> Task:
        return Task(key, call, (world, out, *args), print_of)

    tiles = [(f"{w[0]:05d}-{w[2]:05d}", w) for w in _windows(world.grid.shape)]
    dem = [task(f"dem/{dem_name(*corner)}", products.write_dem, *corner) for corner in dem_corners(world)]
    return [
        ("terrain", [task("prepare", prepare), *dem]),
        ("land", [task(f"land/{name}", make_land, window) for name, window in tiles]),
        ("calibration", [task("calibration", make_calibration)]),
        ("nature", [task(f"nature/{name}", make_nature, window) for name, window in tiles]),
        ("files", _file_tasks(world, task)),
        ("smap", [task(f"smap/{day:%Y%m%d}", products.write_smap, day.date()) for day in world.utc_days]),
        ("report", [task("report", make_report)]),
    ]


def _file_tasks(world: World, task: Any) -> list[Task]:
    """Tasks that only need the stepped world: MODIS granules, stations, the truth, footprint means."""
    tasks = [
        task(f"stations/{part.start:05d}", products.write_stations, part.start, part.stop)
        for part in spans(world.stations, products.STATIONS_PER_TASK)
    ]
    sixteen = sixteen_days(world)
    leaves_of = [_composite_of(day, sixteen) for day in world.shown_days.repeat(2)]
    rows, cols = coarse_grid(world).shape
    for row, block in product(range(rows), spans(cols, products.COARSE_BLOCK)):
        key, columns = f"coarse/{row:04d}-{block.start:04d}", (block.start, block.stop)
        tasks.append(task(key, products.write_coarse, row, columns, leaves_of))
    tasks += [task(f"truth/{w[0]:05d}-{w[2]:05d}", make_truth, w) for w in _windows(world.region_grid.shape)]
    for h, v in sinusoidal.tiles_of_box(*world.region_grid.bounds):
        name = f"h{h:02d}v{v:02d}"
        tasks += [task(f"modis/MCD12Q1-{year}-{name}", products.write_land_cover, year, h, v) for year in _years(world)]
        for k, day in enumerate(eight_days(world)):
            tasks.append(task(f"modis/MOD16A2-{day}-{name}", products.write_et, day, k, h, v))
        for k, day in enumerate(sixteen):
            tasks.append(task(f"modis/MOD13A2-{day}-{name}", products.write_vegetation, day, k, h, v))
        for day in world.utc_days:
            tasks.append(task(f"modis/MYD11A1-{day.date()}-{name}", products.write_lst, day.date(), h, v))
    return tasks


def _stat(path: str) -> list[Any]:
    found = Path(path).stat()
    return [path, found.st_size, found.st_mtime_ns]


def _windows(shape: tuple[int, int]) -> list[Window]:
    """Tiles of a grid: first and last (exclusive) row and column."""
    return [(r.start, r.stop, c.start, c.stop) for r in spans(shape[0], TILE) for c in spans(shape[1], TILE)]


def _years(world: World) -> list[int]:
    return sorted({int(day.year) for day in world.days})


def eight_days(world: World) -> list[date]:
    """First days of the ET sums that touch the period."""
    return modis_files.composite_dates("MOD16A2", world.days[0].date(), world.days[-1].date())


def sixteen_days(world: World) -> list[date]:
    """First days of the vegetation composites that touch the period."""
    return modis_files.composite_dates("MOD13A2", world.days[0].date(), world.days[-1].date())


def _composite_of(day: pd.Timestamp, starts: list[date]) -> int:
    """The composite that a day falls in, or the nearest."""
    return max(int(np.searchsorted([s.toordinal() for s in starts], day.toordinal(), side="right")) - 1, 0)


def stepped_days(world: World) -> pd.DatetimeIndex:
    """Every local day that is stepped: the spin-up, the period, and what the last ET sum needs after it."""
    first = min(world.shown_days[0] - pd.Timedelta(days=SPIN_UP), pd.Timestamp(sixteen_days(world)[0]))
    last = eight_days(world)[-1]
    end = pd.Timestamp(min(date.fromordinal(last.toordinal() + 7), date(last.year, 12, 31)))
    return pd.date_range(first, max(end, world.shown_days[-1]), freq="D")


# -- the store ----------------------------------------------------------------------------------


def prepare(world: World, out: str) -> None:
    """Write the world as used, and lay out truth.zarr, unfinished."""
    write_text(place(out) / "world.yaml", yaml.safe_dump(world.to_mapping(), sort_keys=False))
    steps = world.shown_steps
    days = xr.Dataset(
        coords={"time": ("time", world.shown_days.to_numpy("datetime64[ns]"), {"long_name": "local solar date"})}
    )
    moisture = {"soil_moisture": ("true volumetric soil moisture, 0 to 5 cm", "m3 m-3")}
    _lay_out(world, out, LAND, world.grid, xr.Dataset(), STATIC)
    _lay_out(
        world,
        out,
        OVERPASS,
        world.grid,
        steps,
        moisture | {"surface_temperature": ("surface temperature at the overpass", "K")},
    )
    _lay_out(world, out, DAILY, world.grid, days, _DAILY_FIELDS)
    _lay_out(world, out, EIGHT_DAY, world.grid, _starts(eight_days(world)), _EIGHT_DAY_FIELDS)
    _lay_out(world, out, SIXTEEN_DAY, world.grid, _starts(sixteen_days(world)), _SIXTEEN_DAY_FIELDS)
    _lay_out(
        world,
        out,
        FINE,
        world.region_grid,
        schema.overpass_steps(world.start, world.end, world.longitude),
        moisture,
        STATIC,
    )
    coarse = moisture | {
        "surface_temperature": ("surface temperature, footprint mean", "K"),
        "frozen_fraction": ("share of the footprint below 273.15 K", "1"),
        "leaf_area": ("leaf area, footprint mean", "m2 m-2"),
    }
    land = {"elevation": ("elevation, footprint mean", "m"), "slope": ("slope, footprint mean", "degree")}
    _lay_out(world, out, COARSE, coarse_grid(world), steps, coarse, land)


_DAILY_FIELDS = {
    "lst_night": ("clear-sky surface temperature at 01:30 local solar time", "K"),
    "lst_day": ("clear-sky surface temperature at 13:30 local solar time", "K"),
    "clouds": ("cloudy at 01:30 (1) and at 13:30 (2)", "1"),
    "rain": ("rain from 18:00 of the day before to 18:00", "mm"),
}
_EIGHT_DAY_FIELDS = {
    "et": ("evapotranspiration of 8 days", "kg m-2"),
    "pet": ("potential evapotranspiration of 8 days", "kg m-2"),
}
_SIXTEEN_DAY_FIELDS = {
    "ndvi": ("normalized difference vegetation index", "1"),
    "evi": ("enhanced vegetation index", "1"),
    "leaf_area": ("leaf area index", "m2 m-2"),
}


def _starts(days: list[date]) -> xr.Dataset:
    return xr.Dataset(coords={"time": ("time", np.array(days, dtype="datetime64[ns]"), {"long_name": "first day"})})


def _lay_out(
    world: World,
    out: str,
    group: str,
    grid: Grid,
    steps: xr.Dataset,
    fields: Mapping[str, tuple[str, str]],
    static: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """One group: `fields` along time where there are steps, `static` without it."""
    coords = schema.grid_coords(grid)
    dims = ("time", "lat", "lon") if "time" in steps.sizes else ("lat", "lon")
    variables = {
        name: _variable(dims, (*steps.sizes.values(), *grid.shape), name, about) for name, about in fields.items()
    }
    for name, about in (static or {}).items():
        variables[name] = _variable(("lat", "lon"), grid.shape, name, about)
    if "texture" in variables:
        attrs = {"long_name": "IGBP land cover class", "units": "1", "valid_min": 1, "valid_max": 17}
        cover = store.empty(grid.shape, np.uint8, schema.LAND_COVER_FILL)
        variables["land_cover"] = xr.Variable(("lat", "lon"), cover, attrs, {"_FillValue": schema.LAND_COVER_FILL})
    if group == COARSE:
        about = ("share of the IGBP classes 1 to 17 in the footprint", "1")
        variables["class_fraction"] = _variable(("class", "lat", "lon"), (17, *grid.shape), "class_fraction", about)
    if "spatial_ref" in coords:
        for variable in variables.values():
            variable.attrs["grid_mapping"] = "spatial_ref"
    attrs = {"title": f"nature run {world.name}", **schema.grid_attrs(grid), "seed": world.seed}
    template = xr.Dataset(variables, coords | dict(steps.coords), attrs)
    time = SLABS.get(group, 1)
    rows, cols = (1, products.COARSE_BLOCK) if group == COARSE else (TILE, TILE)
    whole = {"time": time, "lat": rows, "lon": cols}
    store.create(truth_path(out), group, template, whole | {"time": 1 if group != COARSE else time}, whole)


def _variable(dims: tuple[str, ...], shape: tuple[int, ...], name: str, about: tuple[str, str]) -> xr.Variable:
    attrs = {"long_name": about[0], "units": about[1]}
    if name == "clouds":
        return xr.Variable(dims, store.empty(shape, np.uint8, 0), attrs)
    if name == "soil_moisture":
        attrs |= {"standard_name": schema.VARIABLES[name].standard_name or "", "valid_min": 0.0, "valid_max": 1.0}  # type: ignore[dict-item]
    return xr.Variable(dims, store.empty(shape, np.float32), attrs)


def _slices(window: Window) -> tuple[slice, slice]:
    return slice(window[0], window[1]), slice(window[2], window[3])


# -- land and calibration -----------------------------------------------------------------------


def make_land(world: World, out: str, window: Window) -> None:
    """The land of one tile, from the DEM files."""
    rows, cols = _slices(window)
    paths = [place(out) / "dem" / dem_name(*corner) for corner in dem_corners(world, rows, cols)]
    with local_copies(paths) as files:
        land = land_window(world, list(map(str, files)), rows, cols)
    for name in (*STATIC, "land_cover"):
        store.write(truth_path(out), LAND, name, (rows, cols), getattr(land, name))


def read_land(world: World, out: str, rows: slice, cols: slice) -> Land:
    """The land of a window of the simulated grid."""
    lon, lat = np.meshgrid(world.grid.lon[cols], world.grid.lat[rows])
    fields = {name: store.read(truth_path(out), LAND, name, (rows, cols)).astype(np.float64) for name in STATIC}
    return Land(lon=lon, lat=lat, land_cover=store.read(truth_path(out), LAND, "land_cover", (rows, cols)), **fields)


def sample_windows(world: World) -> list[tuple[slice, slice]]:
    """Strided windows of the simulated grid inside coarse cells, spread over the region: what the share is estimated on."""
    coarse, grid, (inner_rows, inner_cols) = coarse_grid(world), world.grid, world.inner
    windows = []
    for row in range(coarse.shape[0]):
        rows = _inside(grid.lat[inner_rows], coarse.lat_edges[row + 1], coarse.lat_edges[row])
        for col in range(coarse.shape[1]):
            cols = _inside(grid.lon[inner_cols], coarse.lon_edges[col], coarse.lon_edges[col + 1])
            if rows.size >= _SAMPLE_SIDE and cols.size >= _SAMPLE_SIDE:
                windows.append((_strided(rows + inner_rows.start), _strided(cols + inner_cols.start)))
    if not windows:
        return [(inner_rows, inner_cols)]
    count = min(_SAMPLE_CELLS, len(windows))
    return [windows[k * (len(windows) - 1) // max(count - 1, 1)] for k in range(count)]


def _inside(centres: NDArray, low: float, high: float) -> NDArray[np.int64]:
    return np.flatnonzero((centres >= low) & (centres < high))


def _strided(indices: NDArray[np.int64]) -> slice:
    return slice(int(indices[0]), int(indices[-1]) + 1, max(1, indices.size // _SAMPLE_SIDE))


def _sampled_land(world: World, out: str) -> tuple[Land, NDArray[np.int64]]:
    """The land of the sample, flat, and the number of the sampled cell of each point."""
    lands = [read_land(world, out, *window) for window in sample_windows(world)]
    flat = {f.name: np.concatenate([getattr(land, f.name).ravel() for land in lands]) for f in dataclasses.fields(Land)}
    return Land(**flat), np.repeat(np.arange(len(lands)), [land.lon.size for land in lands])


def make_calibration(world: World, out: str) -> dict[str, float]:
    """Set the tuning that the world's shares ask for; it is kept in calibration.json."""
    land, cell = _sampled_land(world, out)
    middle = world.days[len(world.days) // 2]
    half = pd.Timedelta(days=min(len(world.days), _SAMPLE_DAYS) // 2)
    first = max(world.days[0], middle - half)
    days = pd.date_range(first - pd.Timedelta(days=SPIN_UP), min(world.days[-1], middle + half), freq="D")
    tuning, found = calibrate(world, land, cell, days, SPIN_UP)
    record = {**dataclasses.asdict(tuning), **{name: round(value, 6) for name, value in found.items()}}
    write_text(place(out) / "calibration.json", json.dumps(record, indent=1) + "\n")
    return record


def read_tuning(out: str) -> Tuning:
    record = json.loads((place(out) / "calibration.json").read_text())
    return Tuning(**{field.name: record[field.name] for field in dataclasses.fields(Tuning)})


# -- the stepped world --------------------------------------------------------------------------


class _Slab:
    """Planes of one tile, written as whole shards as they come."""

    def __init__(self, out: str, group: str, window: tuple[slice, slice], size: int) -> None:
        self.out, self.group, self.window, self.size = out, group, window, size
        self.start = 0
        self.planes: dict[str, list[NDArray]] = {}

    def add(self, fields: Mapping[str, NDArray]) -> None:
        """The next plane of every variable of the group."""
        for name, plane in fields.items():
            self.planes.setdefault(name, []).append(plane)
        held = len(next(iter(self.planes.values())))
        if held == SLABS[self.group] or self.start + held == self.size:
            for name, planes in self.planes.items():
                store.write(
                    truth_path(self.out),
                    self.group,
                    name,
                    (slice(self.start, self.start + held), *self.window),
                    np.stack(planes),
                )
            self.start, self.planes = self.start + held, {}


def make_nature(world: World, out: str, window: Window) -> dict[str, float]:
    """Step one tile through all days; every plane goes to truth.zarr as its shard fills."""
    part = _slices(window)
    land = read_land(world, out, *part)
    sky, nature = Sky(world, land), Nature(world, land, read_tuning(out))
    eight, sixteen = eight_days(world), sixteen_days(world)
    shown = set(world.shown_days)
    overpasses, daily = _Slab(out, OVERPASS, part, 2 * len(shown)), _Slab(out, DAILY, part, len(shown))
    sums, composites = _Slab(out, EIGHT_DAY, part, len(eight)), _Slab(out, SIXTEEN_DAY, part, len(sixteen))
    days = stepped_days(world)
    picks = [first.toordinal() + 7 for first in sixteen]
    ends = {date.fromordinal(min(first.toordinal() + 7, date(first.year, 12, 31).toordinal())) for first in eight}
    state = nature.start()
    et = pet = np.zeros(land.lon.shape)
    for day in days:
        state, today = nature.step(state, sky.day(day))
        if day in shown:
            overpasses.add({"soil_moisture": today.moisture_am, "surface_temperature": today.temperature_am})
            overpasses.add({"soil_moisture": today.moisture_pm, "surface_temperature": today.temperature_pm})
            clouds = today.cloudy_night.astype(np.uint8) + 2 * today.cloudy_day.astype(np.uint8)
            daily.add({"lst_night": today.lst_night, "lst_day": today.lst_day, "clouds": clouds, "rain": today.rain})
        if day.date() >= eight[0]:
            et, pet = et + today.evapotranspiration, pet + today.demand
            if day.date() in ends:
                sums.add({"et": et, "pet": pet})
                et = pet = np.zeros(land.lon.shape)
        if day.toordinal() in picks:
            composites.add({"ndvi": today.ndvi, "evi": today.evi, "leaf_area": today.leaves})
    return {"days": len(days), "cells": int(land.lon.size)}


def make_truth(world: World, out: str, window: Window) -> None:
    """One tile of the published truth, cut from the simulated grid."""
    part, truth = _slices(window), truth_path(out)
    shift = [s.start for s in world.inner]
    source = tuple(slice(p.start + d, p.stop + d) for p, d in zip(part, shift, strict=True))
    for name in (*STATIC, "land_cover"):
        store.write(truth, FINE, name, part, store.read(truth, LAND, name, source))
    for steps in spans(2 * len(world.days), SLABS[FINE]):
        moved = slice(steps.start + 2, steps.stop + 2)
        store.write(
            truth, FINE, "soil_moisture", (steps, *part), store.read(truth, OVERPASS, "soil_moisture", (moved, *source))
        )


# -- the report ---------------------------------------------------------------------------------


def make_report(world: World, out: str) -> dict[str, Any]:
    """Publish the truth, and say what the world came out as in report.json."""
    found = {
        "world": world.name,
        "tuning": json.loads((place(out) / "calibration.json").read_text()),
        **_realised(world, out),
    }
    for group in (LAND, OVERPASS, DAILY, EIGHT_DAY, SIXTEEN_DAY, FINE, COARSE):
        store.publish(truth_path(out), group)
    write_text(place(out) / "report.json", json.dumps(found, indent=1) + "\n")
    return found


def _sampled(out: str, group: str, name: str, time: int, windows: list[tuple[slice, slice]]) -> NDArray:
    """One plane at the sample, flat."""
    box = tuple(slice(min(w[k].start for w in windows), max(w[k].stop for w in windows)) for k in (0, 1))
    plane = store.read(truth_path(out), group, name, (slice(time, time + 1), *box))[0]
    shifted = [
        tuple(slice(s.start - b.start, s.stop - b.start, s.step) for s, b in zip(w, box, strict=True)) for w in windows
    ]
    return np.concatenate([plane[s].ravel() for s in shifted]).astype(np.float64)


def _realised(world: World, out: str) -> dict[str, Any]:
    """Shares and moments of the stepped world on the sample: what the noise-free predictors explain, clouds, soil moisture."""
    windows = sample_windows(world)
    explained = Explained(*_sampled_land(world, out))
    eight, sixteen = eight_days(world), sixteen_days(world)
    n = len(world.days)
    positions = sorted(
        {1 + k * (n - 1) // max(_REPORT_DAYS - 1, 1) for k in range(_REPORT_DAYS)} & set(range(1, n + 1))
    )
    clouds, moistures = [], []

    @lru_cache(maxsize=6)
    def slow(group: str, name: str, index: int) -> NDArray:
        return _sampled(out, group, name, index, windows)

    for position in positions:
        day = world.shown_days[position]
        late, early = _composite_of(day, sixteen), _composite_of(day, eight)
        seen = slow(SIXTEEN_DAY, "ndvi", late), slow(SIXTEEN_DAY, "evi", late), slow(EIGHT_DAY, "et", early)
        clouds.append(_sampled(out, DAILY, "clouds", position, windows).astype(int))
        for half, name in enumerate(("lst_night", "lst_day")):
            moistures.append(_sampled(out, OVERPASS, "soil_moisture", 2 * position + half, windows))
            explained.add(moistures[-1], (_sampled(out, DAILY, name, position, windows), *seen))
    share = {
        "wanted": world.explainable_share,
        "realised": explained.share,
        "spread_inside_coarse_cells": explained.spread,
    }
    cloudy = {
        "wanted": world.cloud_share,
        "night": np.mean(np.array(clouds) & 1),
        "day": np.mean(np.array(clouds) >> 1),
    }
    known = np.array(moistures)[np.isfinite(moistures)]
    moments = {name: f(known) for name, f in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max))}
    sections = {"explainable_share": share, "cloud_share": cloudy, "soil_moisture": moments}
    rounded = {
        title: {name: round(float(value), 4) for name, value in part.items()} for title, part in sections.items()
    }
    return rounded | {"samples": explained.count, "sampled_days": len(positions)}
