"""From the simulated world to the files that a user would download: what each granule shows, and when it saw it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smscale import schema, sinusoidal, store
from smscale.blocks import spans
from smscale.grid import EARTH_RADIUS_KM, Grid
from smscale.kernels import noise
from smscale.places import Place, place
from smscale.simulate import modis_files, orbit, smap_files, station_files
from smscale.simulate.dem_files import dem_name, write_dem_tile
from smscale.simulate.spec import KM_PER_DEGREE, TILE, World
from smscale.simulate.terrain import VOID, dem_tile, field_seed
from smscale.simulate.weather import EPOCH

Floats = NDArray[np.float64]

#: Groups of truth.zarr on the simulated grid (region and margin).
LAND, OVERPASS, DAILY, EIGHT_DAY, SIXTEEN_DAY = (
    f"margin/{n}" for n in ("land", "overpass", "daily", "eight_day", "sixteen_day")
)
FINE, COARSE = "fine", "coarse"

#: Width at half power of SMAP's antenna pattern on the ground, km (Piepmeier et al. 2017, doi:10.1109/TGRS.2016.2628349: 39 x 47).
FOOTPRINT_KM = 40.0
#: km at which the main lobe is cut.
FOOTPRINT_REACH_KM = 36.0
#: Coarse cells of one row, and steps, that one task holds.
COARSE_BLOCK, COARSE_SLAB = 32, 64
#: Cells that stations are placed on, at most: of a larger region every second, third, … row and column.
_STATION_CELLS = 1_500_000
#: Stations of one file.
STATIONS_PER_TASK = 200
#: Aqua: degrees between neighbouring tracks, revolutions a day (233 in 16 days), height (km), local solar hours of its nodes.
_TRACK_SPACING, _REVOLUTIONS_A_DAY, _HEIGHT_KM = 24.721, 233 / 16, 705.0
_VIEW_HOUR = {"night": 1.5, "day": 13.5}
#: K: noise of the LST at nadir, and what 60 degrees of view angle add (Wan 2014, doi:10.1016/j.rse.2013.08.027: below 1 K).
_LST_NOISE, _LST_NOISE_SLANT = 0.5, 0.5
#: Noise of the vegetation indices (Vermote and Kotchenova 2008: some 0.02 + 2 %), relative noise of ET, of 8 days.
_NDVI_NOISE, _EVI_NOISE, _ET_NOISE = 0.015, 0.012, 0.08
_SEED_LST, _SEED_VEGETATION, _SEED_ET = 600_000, 610_000, 620_000
#: Opacity per water content (b of Jackson and Schmugge 1991, doi:10.1016/0034-4257(91)90057-D: 0.12 at L band) and kg m-2 of
#: water per leaf area and in full stems of forest (SMAP ATBD, stem factors of 5 to 16).
_OPACITY, _LEAF_WATER, _STEM_WATER = 0.11, 0.5, 6.0
_FORESTS = (1, 2, 3, 4, 5)


def truth_path(out: str) -> str:
    return str(place(out) / "truth.zarr")


def write_dem(world: World, out: str, west: int, south: int) -> dict[str, int]:
    """One DEM tile."""
    elevation = dem_tile(world, west, south)
    write_dem_tile(
        place(out) / "dem" / dem_name(west, south), np.where(elevation == VOID, np.nan, elevation), west, south
    )
    return {"voids": int(np.sum(elevation == VOID))}


# -- MODIS --------------------------------------------------------------------------------------


class _Pixels:
    """Where a tile's pixels lie in the simulated grid, and their nearest cells."""

    def __init__(self, world: World, h: int, v: int, pixels: int) -> None:
        x, y = sinusoidal.pixel_centres(h, v, pixels)
        west, south, _, north = world.grid.bounds
        self.shape = pixels, pixels
        lat = np.asarray(sinusoidal.inverse(np.zeros(1), y)[1])
        band = np.flatnonzero((lat < north) & (lat > south))
        lon = np.asarray(sinusoidal.inverse(x[None, :], y[band, None])[0], np.float64)
        with np.errstate(invalid="ignore"):
            east_of = np.mod(lon - west, 360.0) / world.step
            inside = east_of < world.grid.shape[1]
        row_of, col_of = np.nonzero(inside)
        self.key = band[row_of] * pixels + col_of
        self.lon = lon[inside]
        row = ((north - lat[band]) / world.step).astype(np.int64)[row_of]
        col = east_of[inside].astype(np.int64)
        if row.size:
            self.window = slice(int(row.min()), int(row.max()) + 1), slice(int(col.min()), int(col.max()) + 1)
            self.row, self.col = row - self.window[0].start, col - self.window[1].start

    def __bool__(self) -> bool:
        return bool(self.key.size)

    def sample(self, out: str, group: str, name: str, time: int | None = None) -> NDArray:
        """(n,) values of an array at the pixels inside."""
        region = self.window if time is None else (slice(time, time + 1), *self.window)
        values = store.read(truth_path(out), group, name, region)
        return (values if time is None else values[0])[self.row, self.col]

    def plane(self, values: NDArray, fill: float = np.nan) -> NDArray:
        """The whole tile, with the fill outside of the simulated grid."""
        out = np.full(self.shape, fill, dtype=np.asarray(values).dtype)
        out.ravel()[self.key] = values
        return out


def _modis_path(out: str, product: str, day: date, h: int, v: int) -> Place:
    return place(out) / "modis" / product / modis_files.granule_name(product, day, h, v)


def aqua_view(day_number: NDArray | int, lon: Floats, part: str) -> tuple[Floats, Floats]:
    """Local solar hour and view angle (degrees) of Aqua's nearest pass on a local day: tracks shift from day to day."""
    turn = 0.0 if part == "day" else 0.5
    phase = np.mod(lon / _TRACK_SPACING + np.asarray(day_number) * (_REVOLUTIONS_A_DAY % 1) + turn, 1.0) - 0.5
    arc = phase * _TRACK_SPACING * KM_PER_DEGREE / EARTH_RADIUS_KM
    angle = np.arctan2(EARTH_RADIUS_KM * np.sin(arc), _HEIGHT_KM + EARTH_RADIUS_KM * (1 - np.cos(arc)))
    return _VIEW_HOUR[part] + phase * _TRACK_SPACING / 15.0, np.clip(np.rad2deg(angle), -64.0, 64.0)


def write_lst(world: World, out: str, utc_day: date, h: int, v: int) -> dict[str, int]:
    """One MYD11A1 granule: every view whose UTC day it is, day or night, of whatever local day; pixel counts."""
    pixels = _Pixels(world, h, v, 1200)
    if not pixels:
        return {}
    first, last = world.shown_days[0], world.shown_days[-1]
    fields: dict[str, NDArray] = {}
    counts: dict[str, int] = {}
    for part, bit in (("night", 1), ("day", 2)):
        lst, view, angle, cloud = (np.full(pixels.key.size, fill) for fill in (np.nan, _VIEW_HOUR[part], 0.0, 0.0))
        for shift in (-1, 0, 1):
            local = pd.Timestamp(utc_day) + pd.Timedelta(days=shift)
            number = (local - EPOCH).days
            hour, tilt = aqua_view(number, pixels.lon, part)
            mine = np.floor((hour - pixels.lon / 15.0) / 24.0) == -shift
            if not mine.any() or not first <= local <= last:
                continue
            step = (local - first).days
            seen = pixels.sample(out, DAILY, f"lst_{part}", step)
            hidden = (pixels.sample(out, DAILY, "clouds", step) & bit) > 0
            spread = _LST_NOISE + _LST_NOISE_SLANT * np.abs(tilt) / 60.0
            error = spread * noise.normal(field_seed(world, _SEED_LST), 2 * number + bit, h, v, pixels.key)
            lst[mine] = np.where(hidden, np.nan, seen + error)[mine]
            view[mine], angle[mine], cloud[mine] = hour[mine], tilt[mine], hidden[mine]
        error = np.where(np.abs(angle) > 55.0, 1.5, 0.5)
        quality = modis_files.lst_quality(lst, cloud > 0, error)
        fields |= {
            f"lst_{part}": pixels.plane(lst),
            f"view_time_{part}": pixels.plane(view),
            f"view_angle_{part}": pixels.plane(angle),
        }
        fields[f"qc_{part}"] = pixels.plane(quality, 3)
        counts |= {f"{part}_pixels": int(np.isfinite(lst).sum()), f"{part}_cloudy": int(cloud.sum())}
    fields |= {name: np.nan_to_num(fields[name]) for name in fields if name.startswith("view")}
    modis_files.write_lst(_modis_path(out, "MYD11A1", utc_day, h, v), utc_day, h, v, **fields)
    return counts


def write_vegetation(world: World, out: str, first: date, index: int, h: int, v: int) -> dict[str, int]:
    """One MOD13A2 granule."""
    pixels = _Pixels(world, h, v, 1200)
    if not pixels:
        return {}
    cover = pixels.sample(out, LAND, "land_cover")
    key = (date.toordinal(first), h, v, pixels.key)
    seed = field_seed(world, _SEED_VEGETATION)
    water, ice = cover == schema.WATER, cover == schema.SNOW_ICE
    ndvi = pixels.sample(out, SIXTEEN_DAY, "ndvi", index) + _NDVI_NOISE * noise.normal(seed, *key)
    evi = pixels.sample(out, SIXTEEN_DAY, "evi", index) + _EVI_NOISE * noise.normal(seed + 1, *key)
    ndvi, evi = np.where(water, -0.05, np.clip(ndvi, -0.2, 1.0)), np.where(water, -0.03, np.clip(evi, -0.2, 1.0))
    # A composite of 16 days still finds haze or cloud in every pixel of some; the share grows with the cloudiness.
    hazy = noise.uniform(seed + 2, *key) < 0.25 * world.cloud_share
    rank = np.where(ice, 2, np.where(hazy, 1, 0)).astype(np.int8)
    planes = (pixels.plane(ndvi), pixels.plane(evi), pixels.plane(rank, -1))
    modis_files.write_vegetation(
        _modis_path(out, "MOD13A2", first, h, v), first, h, v, *planes, water=pixels.plane(water, 0)
    )
    return {"pixels": int(pixels.key.size)}


def write_et(world: World, out: str, first: date, index: int, h: int, v: int) -> dict[str, int]:
    """One MOD16A2 granule."""
    pixels = _Pixels(world, h, v, 2400)
    if not pixels:
        return {}
    factor = np.exp(_ET_NOISE * noise.normal(field_seed(world, _SEED_ET), date.toordinal(first), h, v, pixels.key))
    et = pixels.sample(out, EIGHT_DAY, "et", index) * factor
    pet = np.maximum(pixels.sample(out, EIGHT_DAY, "pet", index), et)
    cover = pixels.plane(pixels.sample(out, LAND, "land_cover"), schema.LAND_COVER_FILL)
    path = _modis_path(out, "MOD16A2", first, h, v)
    modis_files.write_et(path, first, h, v, pixels.plane(et), pixels.plane(pet), cover)
    return {"pixels": int(pixels.key.size)}


def write_land_cover(world: World, out: str, year: int, h: int, v: int) -> dict[str, int]:
    """One MCD12Q1 granule."""
    pixels = _Pixels(world, h, v, 2400)
    if not pixels:
        return {}
    cover = pixels.plane(pixels.sample(out, LAND, "land_cover"), schema.LAND_COVER_FILL)
    modis_files.write_land_cover(_modis_path(out, "MCD12Q1", date(year, 1, 1), h, v), year, h, v, cover)
    return {"pixels": int(pixels.key.size)}


# -- SMAP ---------------------------------------------------------------------------------------


def coarse_grid(world: World) -> Grid:
    """The 36 km cells that the region touches."""
    return Grid.ease2(36, *world.region_grid.bounds)


def antenna(grid: Grid, lon: float, lat: float) -> tuple[slice, slice, Floats]:
    """The window of a grid that a footprint covers, and the weights (m, n) of its cells: Gaussian in distance, times area."""
    dlat = FOOTPRINT_REACH_KM / KM_PER_DEGREE
    dlon = dlat / np.cos(np.deg2rad(lat))
    rows = np.flatnonzero(np.abs(grid.lat - lat) <= dlat)
    cols = np.flatnonzero(np.abs(grid.lon - lon) <= dlon)
    if not rows.size or not cols.size:
        return slice(0, 0), slice(0, 0), np.zeros((0, 0))
    window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
    y = (grid.lat[window[0]] - lat)[:, None] * KM_PER_DEGREE
    x = (grid.lon[window[1]] - lon)[None, :] * KM_PER_DEGREE * np.cos(np.deg2rad(grid.lat[window[0]]))[:, None]
    r2 = x**2 + y**2
    weights = np.exp(-4 * np.log(2.0) * r2 / FOOTPRINT_KM**2) * np.cos(np.deg2rad(grid.lat[window[0]]))[:, None]
    return *window, np.where(r2 <= FOOTPRINT_REACH_KM**2, weights, 0.0)


def footprint_mean(values: NDArray, weights: Floats) -> Floats:
    """Weighted means over the last two axes; NaN cells carry no weight, NaN where more than half of the weight is lost."""
    known = np.isfinite(values)
    total = np.sum(known * weights, axis=(-2, -1))
    mean = np.sum(np.where(known, values, 0.0) * weights, axis=(-2, -1)) / np.maximum(total, 1e-300)
    return np.where(total >= 0.5 * weights.sum(), mean, np.nan)


def write_coarse(world: World, out: str, row: int, block: tuple[int, int], leaves_of: list[int]) -> dict[str, int]:
    """Footprint means of some coarse cells of one row (columns `block`, last exclusive), for every step.

    leaves_of : which vegetation composite each step sees
    """
    whole, truth = coarse_grid(world), truth_path(out)
    grid = whole.window(slice(row, row + 1), slice(*block))
    footprints = [antenna(world.grid, float(lon), float(grid.lat[0])) for lon in grid.lon]
    filled = [f for f in footprints if f[2].size]
    rows = slice(min(f[0].start for f in filled), max(f[0].stop for f in filled))
    cols = slice(min(f[1].start for f in filled), max(f[1].stop for f in filled))

    def means(values: NDArray) -> Floats:
        parts = [np.full(values.shape[:-2], np.nan)] * len(footprints)
        for k, (f_rows, f_cols, weights) in enumerate(footprints):
            if weights.size:
                window = (
                    slice(f_rows.start - rows.start, f_rows.stop - rows.start),
                    slice(f_cols.start - cols.start, f_cols.stop - cols.start),
                )
                parts[k] = footprint_mean(values[(..., *window)], weights)
        return np.stack(parts, axis=-1)

    here = slice(row, row + 1), slice(*block)
    for name in ("elevation", "slope"):
        store.write(truth, COARSE, name, here, means(store.read(truth, LAND, name, (rows, cols)))[None, :])
    cover = store.read(truth, LAND, "land_cover", (rows, cols))
    classes = means(np.stack([cover == k for k in range(1, 18)]).astype(float))
    store.write(truth, COARSE, "class_fraction", (slice(None), *here), classes[:, None, :])
    leaves = {
        k: means(store.read(truth, SIXTEEN_DAY, "leaf_area", (slice(k, k + 1), rows, cols))[0])
        for k in sorted(set(leaves_of))
    }
    for part in spans(len(leaves_of), COARSE_SLAB):
        moisture = store.read(truth, OVERPASS, "soil_moisture", (part, rows, cols))
        warm = store.read(truth, OVERPASS, "surface_temperature", (part, rows, cols))
        fields = {
            "soil_moisture": means(moisture),
            "surface_temperature": means(warm),
            "frozen_fraction": means((warm < 273.15).astype(np.float32)),
            "leaf_area": np.stack([leaves[k] for k in leaves_of[part]]),
        }
        for name, values in fields.items():
            store.write(truth, COARSE, name, (part, *here), values[:, None, :])
    return {"cells": len(footprints), "steps": len(leaves_of)}


def smap_pass(world: World, out: str, utc_day: date, overpass: str) -> dict[str, NDArray]:
    """What one pass group of a granule holds on the coarse cells."""
    grid = coarse_grid(world)
    time = orbit.observation_times(utc_day, grid)[overpass]
    local, is_pm = schema.local_step(time, grid.lon[None, :])
    rows, cols = np.indices(grid.shape)
    steps, first = 2 * len(world.shown_days), world.shown_days[0].to_datetime64().astype("datetime64[D]")
    with np.errstate(invalid="ignore"):
        index = 2 * (local - first).astype(np.int64) + is_pm
    known = ~np.isnat(time) & (index >= 0) & (index < steps)
    time = np.where(known, time, np.datetime64("NaT", "ns"))
    fields: dict[str, NDArray] = {"time": time}
    low, high = (int(index[known].min()), int(index[known].max()) + 1) if known.any() else (0, 1)
    position = np.where(known, index - low, 0)
    for name in ("soil_moisture", "surface_temperature", "frozen_fraction", "leaf_area"):
        values = store.read(truth_path(out), COARSE, name, (slice(low, high), slice(None), slice(None)))
        fields[name] = np.where(known, values[position, rows, cols], np.nan)
    classes = store.read(truth_path(out), COARSE, "class_fraction")
    elevation = store.read(truth_path(out), COARSE, "elevation")
    slope = store.read(truth_path(out), COARSE, "slope")
    return fields | _retrieval(world, utc_day, overpass, grid, fields, classes, elevation, slope, rows, cols)


def _retrieval(
    world: World,
    utc_day: date,
    overpass: str,
    grid: Grid,
    fields: Mapping[str, NDArray],
    classes: Floats,
    elevation: Floats,
    slope: Floats,
    rows: NDArray,
    cols: NDArray,
) -> dict[str, NDArray]:
    """Retrieved soil moisture and flags of the cells of one pass."""
    share = {k: classes[k - 1] for k in range(1, 18)}
    forest = np.sum([share[k] for k in _FORESTS], axis=0)
    vegetation = _LEAF_WATER * fields["leaf_area"] + _STEM_WATER * forest
    opacity = _OPACITY * vegetation
    error = orbit.retrieval_error(
        world.seed,
        utc_day,
        overpass,
        rows + grid.row0,
        cols + grid.col0,
        opacity,
        fields["surface_temperature"],
        elevation,
    ) * (world.retrieval_error / 0.04)
    frozen, water, ice = fields["frozen_fraction"], share[schema.WATER], share[schema.SNOW_ICE]
    limits = smap_files.FLAG_THRESHOLDS
    truth = fields["soil_moisture"]
    attempted = np.isfinite(truth) & (water < limits["water_fraction"][1]) & (ice < limits["ice_fraction"][1])
    attempted &= (frozen < limits["frozen_fraction"][1]) & (vegetation < limits["vegetation_water_content"][1])
    # 0.02 m3 m-3 is the retrieval's lower bound (SMAP L2 ATBD).
    moisture = np.where(attempted, np.maximum(truth + error, 0.02), np.nan)
    conditions = {
        "static_water_body": water > limits["water_fraction"][0],
        "urban_area": share[schema.URBAN] > limits["urban_fraction"][0],
        "permanent_snow_or_ice": ice > limits["ice_fraction"][0],
        "radiometer_frozen_ground": frozen > limits["frozen_fraction"][0],
        "model_frozen_ground": frozen > limits["frozen_fraction"][0],
        "mountainous_terrain": slope > limits["mountain_slope"][0],
        "dense_vegetation": vegetation > limits["vegetation_water_content"][0],
    }
    doubtful = np.any(list(conditions.values()), axis=0)
    order = np.argsort(-classes, axis=0, kind="stable")[:3]
    flag = smap_files.retrieval_qual_flag(~doubtful, attempted)
    return {
        "soil_moisture": moisture,
        "soil_moisture_dca": moisture,
        "soil_moisture_error": np.where(attempted, world.retrieval_error * np.exp(0.8 * opacity), np.nan),
        "retrieval_qual_flag": flag,
        "retrieval_qual_flag_dca": flag,
        "surface_flag": smap_files.surface_flag(grid.shape, **conditions),
        "vegetation_opacity": opacity,
        "vegetation_water_content": vegetation,
        "freeze_thaw_fraction": frozen,
        "static_water_body_fraction": water,
        "radar_water_body_fraction": water,
        "landcover_class": np.moveaxis(order + 1, 0, -1).astype(np.uint8),
        "landcover_class_fraction": np.moveaxis(np.take_along_axis(classes, order, axis=0), 0, -1),
        "truth": truth,
    }


def write_smap(world: World, out: str, utc_day: date) -> dict[str, int]:
    """One SPL3SMP granule; counts of cells."""
    passes = {overpass: smap_pass(world, out, utc_day, overpass) for overpass in schema.OVERPASSES}
    counts = {"observed": 0, "retrieved": 0, "recommended": 0}
    for fields in passes.values():
        observed = ~np.isnat(fields["time"])
        counts["observed"] += int(observed.sum())
        counts["retrieved"] += int((observed & np.isfinite(fields["soil_moisture"])).sum())
        counts["recommended"] += int((observed & (fields["retrieval_qual_flag"] & 1 == 0)).sum())
    extra = ("truth", "frozen_fraction", "leaf_area")
    am, pm = ({n: v for n, v in passes[o].items() if n not in extra} for o in schema.OVERPASSES)
    smap_files.write_spl3smp(
        place(out) / "smap" / smap_files.granule_name(utc_day), utc_day, am, pm, coarse_grid(world)
    )
    return counts


# -- stations -----------------------------------------------------------------------------------


def _histories(world: World, out: str, rows: NDArray, cols: NDArray) -> tuple[Floats, Floats]:
    """True soil moisture and surface temperature of cells, (cells, steps) each; whole tiles are read, each once."""
    steps = 2 * len(world.shown_days)
    found = np.full((2, rows.size, steps), np.nan)
    tiles = np.stack([rows // TILE, cols // TILE])
    for row, col in np.unique(tiles, axis=1).T:
        here = np.flatnonzero((tiles[0] == row) & (tiles[1] == col))
        window = slice(row * TILE, (row + 1) * TILE), slice(col * TILE, (col + 1) * TILE)
        for part in spans(steps, 16):
            for k, name in enumerate(("soil_moisture", "surface_temperature")):
                values = store.read(truth_path(out), OVERPASS, name, (part, *window))
                found[k, here, part] = values[:, rows[here] - window[0].start, cols[here] - window[1].start].T
    return found[0], found[1]


def write_stations(world: World, out: str, first: int, last: int) -> dict[str, int]:
    """Stations `first` to `last` (exclusive) as ISMN files, and one CSV of them."""
    truth = truth_path(out)
    grid = world.region_grid
    stride = int(np.ceil(np.sqrt(grid.lat.size * grid.lon.size / _STATION_CELLS)))
    strided = tuple(slice(part.start, part.stop, stride) for part in world.inner)
    land = {n: store.read(truth, LAND, n, strided) for n in ("elevation", "land_cover")}
    axes = grid.lon[::stride], grid.lat[::stride]
    places = station_files.place_stations(world.seed, world.stations, *axes, land["elevation"], land["land_cover"])
    places = places.iloc[first:last].reset_index(drop=True)
    time = world.shown_steps["time"].to_numpy()
    steps = schema.overpass_steps(world.start, world.end, world.longitude)["time"].to_numpy()
    hours = pd.date_range(
        pd.Timestamp(steps[0]).floor("D"), pd.Timestamp(steps[-1]).ceil("D"), freq="h", inclusive="left"
    )
    series: dict[str, pd.DataFrame] = {}
    histories = _histories(
        world,
        out,
        stride * places["row"].to_numpy() + strided[0].start,
        stride * places["col"].to_numpy() + strided[1].start,
    )
    for (_, site), moisture, warmth in zip(places.iterrows(), *histories, strict=True):
        name, row, col = str(site["station"]), int(site["row"]), int(site["col"])
        frozen = np.interp(hours.to_numpy("datetime64[ns]").astype(np.int64), time.astype(np.int64), warmth) < 273.15
        series[name] = station_files.station_series(world.seed, name, hours, time, moisture, frozen=frozen)
        station_files.write_ismn(
            place(out) / "stations" / "ismn",
            world.name.upper(),
            name,
            float(site["lat"]),
            float(site["lon"]),
            float(site["elevation"]),
            series[name],
            start=hours[0],
            end=hours[-1],
            land_cover=schema.IGBP[int(land["land_cover"][row, col]) - 1],
        )
    station_files.write_station_csv(place(out) / "stations" / "csv" / f"stations-{first:05d}.csv", places, series)
    return {"stations": len(places), "values": int(sum(len(s) for s in series.values()))}
