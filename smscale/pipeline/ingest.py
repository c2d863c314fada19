"""ingest: raw product files -> the cube. One block is one run of steps over one tile of the grid."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from smscale import cube, schema, sinusoidal, store
from smscale.blocks import Task
from smscale.errors import InputError
from smscale.features.match import smap_steps
from smscale.grid import Grid
from smscale.pipeline.layout import Layout, composite_days
from smscale.pipeline.run import Run, files_fingerprint
from smscale.sources.catalogue import FAMILIES, Catalogue, Granule, requirements, scan
from smscale.sources.dem import open_dem
from smscale.sources.modis import open_modis
from smscale.sources.quality import quality
from smscale.sources.smap import open_smap
from smscale.sources.stations import open_stations

#: MODIS products by cadence: pixels along a tile's side, sub-points along a fine cell's side.
PIXELS = {"LST": (1200, 1), "VI": (1200, 1), "ET": (2400, 3), "LC": (2400, 3)}
COMPOSITES = {"eight_day": ("ET", 8), "sixteen_day": ("VI", 16)}
#: Elevation cells beyond a block that slope and aspect need, degrees (SRTM's 3 arc-seconds, three of them).
DEM_HALO = 0.0025

#: date -> tile -> path of the granules of one product.
Files = Mapping[str, Mapping[tuple[int, int], str]]
Region = tuple[slice, ...]


@dataclass(frozen=True)
class Inputs:
    """The files of one run: granules of each family, elevation tiles, stations, and what was set aside and why."""

    granules: Mapping[str, tuple[Granule, ...]]
    dem: tuple[str, ...]
    dem_boxes: tuple[tuple[float, float, float, float], ...]
    stations: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]

    @property
    def files(self) -> list[str]:
        """Every file that is read."""
        return [str(g.path) for found in self.granules.values() for g in found] + [*self.dem, *self.stations]

    def dem_touching(self, grid: Grid) -> tuple[str, ...]:
        """Elevation tiles that a window and its halo touch."""
        west, south, east, north = grid.bounds
        return tuple(
            path
            for path, (w, s, e, n) in zip(self.dem, self.dem_boxes, strict=True)
            if w < east + DEM_HALO and e > west - DEM_HALO and s < north + DEM_HALO and n > south - DEM_HALO
        )


def ingest(run: Run, layout: Layout, folder: Path) -> dict[str, Any]:
    """Fill the cube from the raw files; the report counts what was read and what was left out."""
    inputs = _inputs(folder, layout)
    settings = run.recipe.part("region", "period", "grid", "chunks", "smap", "modis")
    world = run.recipe.resolve(run.recipe.world).read_text() if run.recipe.world else ""
    fingerprint = store.fingerprint("ingest", 1, settings, files_fingerprint(inputs.files), inputs.problems, world)
    path = str(run.workspace.cube)

    def work() -> dict[str, Any]:
        results = run.blocks("ingest", _tasks(run, layout, inputs, path, fingerprint))
        _refuse_mixed([kind for result in results.values() for kind in result.get("kinds", [])])
        for group in _groups(inputs):
            store.publish(path, group)
        return _report(inputs, results)

    return run.stage("ingest", fingerprint, lambda: _lay_out(layout, inputs, path), work)


def _inputs(folder: Path, layout: Layout) -> Inputs:
    """What the run takes from a folder; refuses where one family is not there at all."""
    catalogue = scan(folder) if folder.is_dir() else Catalogue(folder, (), (), (), (), (), ())
    bounds, (start, end) = layout.grid.bounds, layout.period
    tiles = set(sinusoidal.tiles_of_box(*bounds))
    days = [str(d) for d in np.arange(np.datetime64(start) - 1, np.datetime64(end) + 2)]
    dates: dict[str, list[str] | None] = {"SPL3SMP": days, "LST": days, "LC": None}
    dates |= {
        family: [str(first) for first, _ in composite_days(start, end, length)]
        for family, length in COMPOSITES.values()
    }
    granules = {f: _of_one_product(catalogue, f, d, None if f == "SPL3SMP" else tiles) for f, d in dates.items()}
    covering = set(catalogue.dem_covering(bounds))
    tiles_of_dem = [tile for tile in catalogue.dem_tiles if tile.path in covering]
    dem = tuple(str(tile.path) for tile in tiles_of_dem)
    absent = [family for family in REQUIRED if not (dem if family == "DEM" else granules[family])]
    if absent:
        where = (
            f"{folder}: " if folder.is_dir() else f"inputs: there is no folder {folder}; it should hold the raw files. "
        )
        raise InputError(where + _what_is_missing(catalogue, layout, absent))
    aside = [(g.path.name, "an older production of a granule that is there twice") for g in catalogue.duplicates]
    used = {g.path for found in granules.values() for g in found}
    aside += [
        (g.path.name, "outside the region or period, or of another product")
        for g in catalogue.granules
        if g.path not in used
    ]
    aside += [(p.name, "not a file that is read here") for p in catalogue.unknown if not p.name.endswith(IGNORED)]
    aside += [(p.name, reason) for p, reason in catalogue.problems]
    aside += [(lack.family, str(lack)) for lack in catalogue.missing(requirements(start, end, bounds))]
    for family in granules:
        mixed = catalogue.collections(family)
        if len(mixed) > 1:
            aside.append(
                (
                    family,
                    f"collections are mixed: {', '.join(f'{name} ({n} files)' for name, n in sorted(mixed.items()))}",
                )
            )
    stations = _station_files(catalogue)
    aside += [
        (p.name, "stations as CSV beside ISMN files: not read") for p in catalogue.station_files if p not in stations
    ]
    return Inputs(granules, dem, tuple(t.box for t in tiles_of_dem), tuple(str(p) for p in stations), tuple(aside))


def _of_one_product(
    catalogue: Catalogue, family: str, dates: Sequence[str] | None, tiles: set[tuple[int, int]] | None
) -> tuple[Granule, ...]:
    """Granules of a family's first product that is there: Aqua's and Terra's views are not mixed."""
    for product in FAMILIES[family]["products"]:
        if found := catalogue.select(family, dates, tiles, product):
            return found
    return ()


def _station_files(catalogue: Catalogue) -> list[Path]:
    """ISMN files where there are some (a nature run has the same stations as CSV beside them), else all there are."""
    ismn = [p for p in catalogue.station_files if p.suffix in (".stm", ".zip")]
    return ismn or list(catalogue.station_files)


def _what_is_missing(catalogue: Catalogue, layout: Layout, absent: Sequence[str]) -> str:
    lacks = catalogue.missing(requirements(*layout.period, layout.grid.bounds, stations_too=False))
    named = "; ".join(str(m) for m in lacks if m.family in absent)
    return named or f"nothing for the region and period of {', '.join(absent)}"


#: Families without which there is no map.
REQUIRED = ("SPL3SMP", "LST", "VI", "ET", "LC", "DEM")
#: Companions of product files that nobody reads: documentation, previews, metadata, station descriptions.
IGNORED = (".xml", ".txt", ".md", ".yaml", ".json", ".jpg", ".png", "static_variables.csv", ".qml", ".pdf")


# -- templates ----------------------------------------------------------------------------------


def _lay_out(layout: Layout, inputs: Inputs, path: str) -> None:
    store.remove(path, "")
    rows, cols = layout.grid.shape
    coords, attrs = schema.grid_coords(layout.grid), schema.grid_attrs(layout.grid)
    for cadence, names in schema.CADENCES.items():
        times = _times(cadence, layout, inputs)
        leading = (times.sizes["time"],) if "time" in times.sizes else ()
        values = xr.DataArray(
            store.empty((*leading, rows, cols, len(names)), np.float32),
            dims=(*(("time",) if leading else ()), "lat", "lon", "variable"),
            attrs={
                "long_name": "predictors",
                "units": " ".join(schema.VARIABLES[n].units for n in names),
                **_mapping(layout.grid),
            },
        )
        template = xr.Dataset(
            {"values": values}, {**times.coords, **coords, "variable": ("variable", list(names))}, attrs
        )
        slab = layout.shards["time"] if cadence == "overpass" else 1
        store.create(
            path,
            f"fine/{cadence}",
            template,
            {**layout.chunks, "time": 1, "variable": 1},
            {**layout.shards, "time": slab},
        )
    _lay_out_land_cover(layout, inputs, path)
    _lay_out_coarse(layout, path)


def _lay_out_land_cover(layout: Layout, inputs: Inputs, path: str) -> None:
    years = sorted({int(g.date[:4]) for g in inputs.granules["LC"]})
    classes = {
        "long_name": "IGBP land cover class",
        "flag_values": np.arange(1, 18, dtype=np.uint8),
        "flag_meanings": " ".join(name.replace(" ", "_") for name in schema.IGBP),
        "comment": f"{schema.LAND_COVER_FILL} where unknown",
        **_mapping(layout.grid),
    }
    values = store.empty((len(years), *layout.grid.shape), np.uint8, schema.LAND_COVER_FILL)
    template = xr.Dataset(
        {"land_cover": (("year", "lat", "lon"), values, classes)},
        {"year": ("year", np.array(years, np.int32)), **schema.grid_coords(layout.grid)},
        schema.grid_attrs(layout.grid),
    )
    store.create(path, "fine/land_cover", template, {**layout.chunks, "year": 1}, {**layout.shards, "year": 1})


def _lay_out_coarse(layout: Layout, path: str) -> None:
    shape = (layout.steps.sizes["time"], *layout.coarse.shape)
    dims = ("time", "lat", "lon")
    bits = {"comment": "65534 where not observed"}
    data = {
        "soil_moisture": (dims, store.empty(shape, np.float32), schema.VARIABLES["soil_moisture"].attrs),
        "weight": (
            dims,
            store.empty(shape, np.float32),
            {"long_name": "weight of the retrieval, 0 where quality control refuses it", "units": "1"},
        ),
        "retrieval_quality": (
            dims,
            store.empty(shape, np.uint16, 65534),
            {"long_name": "SMAP retrieval quality bits", **bits},
        ),
        "surface_flag": (
            dims,
            store.empty(shape, np.uint16, 65534),
            {"long_name": "SMAP surface condition bits", **bits},
        ),
        "observation_time": (
            dims,
            store.empty(shape, "datetime64[ns]", np.datetime64("NaT", "ns")),
            {"long_name": "time of observation, UTC"},
        ),
    }
    template = xr.Dataset(
        data, {**layout.steps.coords, **schema.grid_coords(layout.coarse)}, schema.grid_attrs(layout.coarse)
    )
    store.create(path, "coarse", template, {"time": layout.shards["time"]}, None)


def _mapping(grid: Grid) -> dict[str, str]:
    return {} if grid.x is not None else {"grid_mapping": "spatial_ref"}


def _times(cadence: str, layout: Layout, inputs: Inputs) -> xr.Dataset:
    """Time coordinates of one fine cube."""
    if cadence == "overpass":
        return layout.steps
    if cadence == "static":
        return xr.Dataset()
    family, length = COMPOSITES[cadence]
    days = _composites(family, length, layout, inputs)
    first = np.array([d for d, _ in days], dtype="datetime64[ns]")
    last = np.array([d for _, d in days], dtype="datetime64[ns]")
    middle = first + (last - first + np.timedelta64(1, "D")) // 2
    return xr.Dataset(
        coords={
            "time": ("time", middle, {"long_name": "middle of the composite, UTC"}),
            "first_day": ("time", first, {"long_name": "first day of the composite"}),
            "last_day": ("time", last, {"long_name": "last day of the composite"}),
        }
    )


def _composites(family: str, length: int, layout: Layout, inputs: Inputs) -> list[tuple[date, date]]:
    """Composites of the period (and next to it) of which there is a granule."""
    there = {g.date for g in inputs.granules[family]}
    return [days for days in composite_days(*layout.period, length) if str(days[0]) in there]


def _groups(inputs: Inputs) -> list[str]:
    groups = [f"fine/{cadence}" for cadence in schema.CADENCES] + ["fine/land_cover", "coarse"]
    return [*groups, "stations"] if inputs.stations else groups


# -- tasks --------------------------------------------------------------------------------------


def _tasks(run: Run, layout: Layout, inputs: Inputs, path: str, fingerprint: str) -> list[Task]:
    quality_of = run.recipe.modis.quality
    tasks: list[Task] = []
    tiles = [(window, layout.grid.window(*window)) for window in layout.tiles()]
    lst = _by_date(inputs.granules["LST"])
    for slab in layout.slabs():
        steps = layout.steps.isel(time=slab)
        days = steps["local_date"].values.astype("datetime64[D]")
        needed = {str(d): lst[str(d)] for d in np.arange(days[0] - 1, days[-1] + 2) if str(d) in lst}
        labels = list(zip(map(str, days), steps["overpass"].values.tolist(), strict=True))
        for (rows, cols), grid in tiles:
            args = (path, (slab, rows, cols), grid, labels, needed, quality_of)
            tasks.append(Task(f"overpass/{slab.start}-{rows.start}-{cols.start}", overpass_block, args, fingerprint))
        files = _smap_files(inputs, days)
        smap_args = (path, slab, layout.coarse, steps, files, run.recipe.smap.quality, run.recipe.smap.algorithm)
        tasks.append(Task(f"smap/{slab.start}", smap_block, smap_args, fingerprint))
    for cadence, (family, length) in COMPOSITES.items():
        by_date = _by_date(inputs.granules[family])
        for i, (first, _) in enumerate(_composites(family, length, layout, inputs)):
            for (rows, cols), grid in tiles:
                given = (path, cadence, (slice(i, i + 1), rows, cols), grid, by_date[str(first)], quality_of)
                tasks.append(Task(f"{cadence}/{first}-{rows.start}-{cols.start}", composite_block, given, fingerprint))
    by_year = _by_date(inputs.granules["LC"])
    for i, first_day in enumerate(sorted(by_year)):
        for (rows, cols), grid in tiles:
            classes = (path, (slice(i, i + 1), rows, cols), grid, by_year[first_day])
            tasks.append(
                Task(f"land_cover/{first_day[:4]}-{rows.start}-{cols.start}", land_cover_block, classes, fingerprint)
            )
    for (rows, cols), grid in tiles:
        tasks.append(
            Task(
                f"static/{rows.start}-{cols.start}",
                static_block,
                (path, (rows, cols), grid, inputs.dem_touching(grid)),
                fingerprint,
            )
        )
    if inputs.stations:
        tasks.append(Task("stations", stations_block, (path, inputs.stations, layout.grid, layout.steps), fingerprint))
    return tasks


def _by_date(granules: Sequence[Granule]) -> dict[str, dict[tuple[int, int], str]]:
    found: dict[str, dict[tuple[int, int], str]] = {}
    for granule in granules:
        if granule.tile is not None:
            found.setdefault(granule.date, {})[granule.tile] = str(granule.path)
    return found


def _smap_files(inputs: Inputs, local_days: np.ndarray) -> list[str]:
    """Granules (by UTC day) that can hold observations of these local days."""
    wanted = {str(d) for d in np.arange(local_days[0] - 1, local_days[-1] + 2)}
    return [str(g.path) for g in inputs.granules["SPL3SMP"] if g.date in wanted]


# -- blocks -------------------------------------------------------------------------------------


def overpass_block(
    path: str, region: Region, grid: Grid, labels: list[tuple[str, str]], files: Files, qc: str
) -> dict[str, Any]:
    """LST and its view time of some steps on one tile of the grid."""
    window = cube.tile_window(grid, *PIXELS["LST"])
    problems: list[dict[str, Any]] = []
    fields: dict[str, dict[np.datetime64, tuple[np.ndarray, np.ndarray]]] = {"AM": {}, "PM": {}}
    without_tile = 0
    for day, tiles in files.items():
        opened = _open_tiles(tiles, window.tiles, qc, problems)
        for overpass, view in (("AM", "night"), ("PM", "day")):
            lst, without = cube.sample_tiles({t: ds[f"lst_{view}"].values for t, ds in opened.items()}, window, "mean")
            time, _ = cube.sample_tiles(
                {t: ds[f"lst_view_time_{view}"].values for t, ds in opened.items()}, window, "nearest"
            )
            fields[overpass][np.datetime64(day)] = (lst, time.astype(np.float32))
        without_tile += without
    values = np.full((len(labels), *grid.shape, 2), np.nan, np.float32)
    for i, (local_date, overpass) in enumerate(labels):
        if fields[overpass]:
            values[i, ..., 0], values[i, ..., 1] = cube.select_lst(local_date, overpass, fields[overpass], grid.lon)
    receipt = store.write(path, "fine/overpass", "values", (*region, slice(0, 2)), values)
    return {
        "written": [receipt],
        "problems": problems,
        "cells_without_tile": int(without_tile),
        "valid": int(np.isfinite(values[..., 0]).sum()),
        "cells": values[..., 0].size,
    }


def composite_block(
    path: str, cadence: str, region: Region, grid: Grid, files: Mapping[tuple[int, int], str], qc: str
) -> dict[str, Any]:
    """The variables of one composite on one tile of the grid."""
    family, length = COMPOSITES[cadence]
    window = cube.tile_window(grid, *PIXELS[family])
    problems: list[dict[str, Any]] = []
    opened = _open_tiles(files, window.tiles, qc, problems)
    layers = [
        cube.sample_tiles({t: _per_full_composite(ds, name, length) for t, ds in opened.items()}, window, "mean")
        for name in schema.CADENCES[cadence]
    ]
    values = np.stack([layer for layer, _ in layers], axis=-1)[None]
    receipt = store.write(path, f"fine/{cadence}", "values", (*region, slice(0, values.shape[-1])), values)
    return {
        "written": [receipt],
        "problems": problems,
        "cells_without_tile": layers[0][1],
        "valid": int(np.isfinite(values[..., 0]).sum()),
        "cells": values[..., 0].size,
    }


def _per_full_composite(tile: xr.Dataset, name: str, length: int) -> np.ndarray:
    """A sum over the year's last, shorter composite as a sum over a full one: et is per 8 days in every one."""
    if name != "et":
        return tile[name].values
    return tile[name].values * np.float32(length / int(tile.attrs["composite_days"]))


def land_cover_block(path: str, region: Region, grid: Grid, files: Mapping[tuple[int, int], str]) -> dict[str, Any]:
    """Majority class of one year on one tile of the grid."""
    window = cube.tile_window(grid, *PIXELS["LC"])
    problems: list[dict[str, Any]] = []
    opened = _open_tiles(files, window.tiles, "none", problems)
    values, without = cube.sample_tiles({t: ds["land_cover"].values for t, ds in opened.items()}, window, "majority")
    receipt = store.write(path, "fine/land_cover", "land_cover", region, values[None])
    return {
        "written": [receipt],
        "problems": problems,
        "cells_without_tile": without,
        "valid": int((values != schema.LAND_COVER_FILL).sum()),
        "cells": values.size,
    }


def static_block(path: str, region: Region, grid: Grid, dem: Sequence[str]) -> dict[str, Any]:
    """Elevation, slope and aspect on one tile of the grid."""
    west, south, east, north = grid.bounds
    values = np.full((*grid.shape, len(schema.CADENCES["static"])), np.nan, np.float32)
    counts = {"voids": 0, "overlap_conflicts": 0}
    if dem:
        elevation = open_dem(dem, box=(west - DEM_HALO, south - DEM_HALO, east + DEM_HALO, north + DEM_HALO))
        layers = cube.static_layers(elevation, grid)
        counts = {
            "voids": int(elevation.attrs["voids"]),
            "overlap_conflicts": int(elevation.attrs["overlap_conflicts"]),
        }
        values = np.stack([layers[name].values for name in schema.CADENCES["static"]], axis=-1)
    receipt = store.write(path, "fine/static", "values", (*region, slice(0, values.shape[-1])), values)
    return {
        "dem": counts,
        "written": [receipt],
        "valid": int(np.isfinite(values[..., 0]).sum()),
        "cells": values[..., 0].size,
    }


def smap_block(
    path: str, slab: slice, grid: Grid, steps: xr.Dataset, files: Sequence[str], policy: str, algorithm: str | None
) -> dict[str, Any]:
    """Retrievals of some steps on the coarse grid, with their weights."""
    problems: list[dict[str, Any]] = []
    granules = []
    for file in files:
        try:
            granules.append(open_smap(file, algorithm=algorithm, grid=grid))
        except InputError as error:
            problems.append(_problem(file, error))
    if not granules:
        return {"problems": problems, "counts": {}, "observed": 0}
    kinds = sorted({(str(g.attrs["algorithm"]), str(g.attrs["version"])) for g in granules})
    _refuse_mixed(kinds)
    observed = smap_steps(granules, steps)
    keep, weight, counts = quality(observed, policy)  # type: ignore[arg-type]
    observed["weight"] = xr.where(keep, weight, 0.0).astype(np.float32)
    region = (slab, slice(0, grid.shape[0]), slice(0, grid.shape[1]))
    names = ("soil_moisture", "weight", "retrieval_quality", "surface_flag", "observation_time")
    receipts = [
        store.write(path, "coarse", name, region, observed[name].transpose("time", "lat", "lon").values)
        for name in names
    ]
    return {
        "written": receipts,
        "problems": problems,
        "kinds": kinds,
        "counts": {k: int(v) for k, v in counts.items()},
        "observed": int(observed.attrs["observations"]),
        "duplicates": int(observed.attrs["duplicates"]),
        "overpass_disagrees": int(observed.attrs["overpass_disagrees"]),
    }


def _refuse_mixed(kinds: Sequence[Sequence[str]]) -> None:
    """Refuse retrievals of two algorithms or two versions (algorithm, version): they differ by more than the soil does."""
    algorithms, versions = (sorted({str(kind[i]) for kind in kinds}) for i in (0, 1))
    if len(algorithms) > 1:
        raise InputError(
            f"SMAP granules hold different default algorithms ({', '.join(algorithms)}): set smap.algorithm in the recipe"
        )
    if len(versions) > 1:
        raise InputError(
            f"SMAP granules are of versions {' and '.join(versions)}, which do not mix: keep those of one version in the folder"
        )


def stations_block(path: str, files: Sequence[str], grid: Grid, steps: xr.Dataset) -> dict[str, Any]:
    """Station values of the period within the region."""
    found, problems = _open_stations(files)
    if found is None:  # the maps can be made without stations
        return {"problems": problems, "stations": 0, "values": 0}
    row, _ = grid.index(found["lon"].values, found["lat"].values)
    for name in found["station"].values[row < 0].tolist():
        problems.append({"file": name, "what": "station outside the region", "count": 1})
    margin = np.timedelta64(1, "D")
    time = found["time"].values
    within = (time >= steps["time"].values[0] - margin) & (time <= steps["time"].values[-1] + margin)
    kept = found.isel(station=row >= 0, time=within)
    silent = ~kept["soil_moisture"].notnull().any("time").values
    for name in kept["station"].values[silent].tolist():
        problems.append({"file": name, "what": "station without a value in the period", "count": 1})
    kept = kept.isel(station=~silent)
    if not kept.sizes["station"]:
        problems.append(
            {"file": Path(files[0]).parent.name, "what": "no station with values in the region and period", "count": 1}
        )
    store.create(path, "stations", kept.load(), {}, None)
    return {
        "problems": problems,
        "stations": int(kept.sizes["station"]),
        "values": int(np.isfinite(kept["soil_moisture"]).sum()),
    }


def _open_stations(files: Sequence[str]) -> tuple[xr.Dataset | None, list[dict[str, Any]]]:
    """All stations of the files that can be read, and what was left out."""
    try:
        found = open_stations(files)
        return found, json.loads(found.attrs.pop("problems", "[]"))
    except InputError as error:
        if len(files) == 1:
            return None, [_problem(files[0], error)]
    problems, readable = [], []
    for file in files:
        one, left_out = _open_stations([file])
        if one is None:
            problems += left_out
        else:
            readable.append(file)
    found_rest, left_out = _open_stations(readable) if readable and problems else (None, [])
    return found_rest, problems + left_out


def _open_tiles(
    files: Mapping[tuple[int, int], str], wanted: Sequence[tuple[int, int]], qc: str, problems: list[dict[str, Any]]
) -> dict[tuple[int, int], xr.Dataset]:
    """The tiles that a window touches; one that cannot be read is missing, and is named."""
    opened = {}
    for tile in wanted:
        if tile not in files:
            continue
        try:
            opened[tile] = open_modis(files[tile], qc=qc)  # type: ignore[arg-type]
        except InputError as error:
            problems.append(_problem(files[tile], error))
    return opened


def _problem(file: str, error: Exception) -> dict[str, Any]:
    """A problem without the machine's own folders in it."""
    what = str(error).removeprefix(f"{file}: ").replace(f"{Path(file).parent}/", "")
    return {"file": Path(file).name, "what": what, "count": 1}


# -- report -------------------------------------------------------------------------------------


def _report(inputs: Inputs, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What was read and what was left out, by family."""
    problems: Counter[tuple[str, str]] = Counter()
    problems.update(inputs.problems)
    for result in results.values():
        seen = {(p["file"], p["what"]): p["count"] for p in result.get("problems", [])}
        for problem, count in seen.items():
            problems[problem] = max(problems[problem], count)  # one file is read by several blocks
    counts: Counter[str] = Counter()
    coverage: dict[str, list[int]] = {}
    for key, result in results.items():
        counts.update(result.get("counts", {}))
        if "valid" in result:
            valid = coverage.setdefault(key.split("/")[0], [0, 0, 0])
            for i, name in enumerate(("valid", "cells", "cells_without_tile")):
                valid[i] += int(result.get(name, 0))
    kinds = [kind for result in results.values() for kind in result.get("kinds", [])]
    return {
        "granules": {f: len(g) for f, g in inputs.granules.items()}
        | {"DEM": len(inputs.dem), "STATIONS": len(inputs.stations)},
        "problems": [{"file": f, "what": w, "count": n} for (f, w), n in sorted(problems.items())],
        "smap": {
            "algorithm": sorted({algorithm for algorithm, _ in kinds}),
            "version": sorted({release for _, release in kinds}),
            "quality": dict(sorted(counts.items())),
            **{n: sum(r.get(n, 0) for r in results.values()) for n in ("observed", "duplicates", "overpass_disagrees")},
        },
        "coverage": {
            name: {"valid": v, "cells": c, "cells_without_tile": w} for name, (v, c, w) in sorted(coverage.items())
        },
        "dem": {
            name: sum(r["dem"][name] for r in results.values() if "dem" in r) for name in ("voids", "overlap_conflicts")
        },
        "stations": int(results.get("stations", {}).get("stations", 0)),
        "station_values": int(results.get("stations", {}).get("values", 0)),
    }
