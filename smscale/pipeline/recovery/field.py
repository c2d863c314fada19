"""ingest: the fine field as truth, its predictors on the same cells, and the field coarsened to 36 km."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from smscale import schema, store
from smscale.blocks import Task
from smscale.cube import static_layers
from smscale.features.upscale import upscale
from smscale.pipeline.recovery.plan import TARGET, Files
from smscale.pipeline.recovery.window import Window
from smscale.pipeline.run import Run, files_fingerprint
from smscale.sources.dem import open_altitude, open_land_cover_tif
from smscale.sources.smap import open_smap

#: Degrees beyond the window that slope and coastlines need: three cells of the 5' elevation.
HALO = 0.25
GROUPS = ("fine/static", "fine/overpass", "fine/land_cover", "fine/truth", "coarse")


def ingest(run: Run, window: Window, files: Files) -> dict[str, Any]:
    """Write predictors and truth on the fine cells and the coarsened target; the report counts cells kept and left out."""
    recipe, path = run.recipe, str(run.workspace.cube)
    fingerprint = store.fingerprint(
        "recovery-ingest", 1, recipe.part("recovery", "region", "chunks", "match"), files_fingerprint(list(files))
    )

    def work() -> dict[str, Any]:
        args = (path, files, window, recipe.match.min_valid_fraction)
        written = run.blocks("ingest", [Task("field", ingest_block, args, fingerprint)])["field"]
        for group in GROUPS:
            store.publish(path, group)
        return window.counts | written["counts"] | {"problems": _problems(window.counts | written["counts"])}

    return run.stage("ingest", fingerprint, lambda: _lay_out(window, files, path), work)


def _lay_out(window: Window, files: Files, path: str) -> None:
    store.remove(path, "")
    fine, coarse = window.grid.shape, window.coarse.shape
    space, moment = ("lat", "lon"), ("time", "lat", "lon")
    sm = schema.VARIABLES[TARGET].attrs
    cubes = {"fine/static": ((), schema.CADENCES["static"]), "fine/overpass": ((1,), schema.CADENCES["overpass"])}
    data: dict[str, dict[str, Any]] = {}
    for group, (leading, names) in cubes.items():
        attrs = {"long_name": "predictors", "units": " ".join(schema.VARIABLES[n].units for n in names)}
        values = store.empty((*leading, *fine, len(names)), np.float32)
        data[group] = {"values": ((*(moment if leading else space), "variable"), values, attrs)}
    classes = {**schema.VARIABLES["land_cover"].attrs, "missing_value": np.uint8(schema.LAND_COVER_FILL)}
    covers = store.empty((1, *fine), np.uint8, schema.LAND_COVER_FILL)
    data["fine/land_cover"] = {"land_cover": (("year", *space), covers, classes)}
    data["fine/truth"] = {TARGET: (moment, store.empty((1, *fine), np.float32), sm)}
    weight = {"long_name": "1 where enough of the cell is valid, else 0", "units": "1"}
    times = store.empty((1, *coarse), "datetime64[ns]", np.datetime64("NaT", "ns"))
    data["coarse"] = {
        TARGET: (moment, store.empty((1, *coarse), np.float32), sm),
        "weight": (moment, store.empty((1, *coarse), np.float32), weight),
        "observation_time": (moment, times, {"long_name": "time of analysis, UTC"}),
    }
    for group, variables in data.items():
        grid = window.coarse if group == "coarse" else window.grid
        coords: dict[str, Any] = dict(schema.grid_coords(grid))
        if group in cubes:
            coords["variable"] = ("variable", list(cubes[group][1]))
        if group == "fine/land_cover":
            coords["year"] = ("year", np.array([_year(files, window)], np.int32))
        if any("time" in dims for dims, *_ in variables.values()):
            coords |= {str(n): c for n, c in window.steps.coords.items()}
        chunks = {} if group == "coarse" else {**window.chunks, "variable": 1}
        store.create(path, group, xr.Dataset(variables, coords, schema.grid_attrs(grid)), chunks, None)


def _year(files: Files, window: Window) -> int:
    """Year of the land cover: of its file name, else of the field."""
    named = re.search(r"\.A(\d{4})\d{3}\.", files.land_cover.name)
    return int(named[1] if named else window.period[0][:4])


def ingest_block(path: str, files: Files, window: Window, least: float) -> dict[str, Any]:
    """Read, bring to the fine cells, coarsen, write."""
    grid = window.grid
    field = open_smap(files.file, grid=grid)
    truth, temperature = field[TARGET].values, field["surface_temperature"].values
    west, south, east, north = grid.bounds
    box = (max(west - HALO, -180.0), max(south - HALO, -90.0), min(east + HALO, 180.0), min(north + HALO, 90.0))
    altitude = open_altitude(files.elevation, box)
    layers = static_layers(altitude.fillna(0.0), grid)
    cover = upscale(open_land_cover_tif(files.land_cover, box), grid, 0.0)
    coarse = upscale(field[[TARGET]], window.coarse, least)
    fraction, target = coarse[f"valid_fraction_{TARGET}"].values, coarse[TARGET].values
    time = field["observation_time"].values
    hours = (time - time.astype("datetime64[D]")) / np.timedelta64(1, "h")
    view = np.where(np.isfinite(temperature), (hours + grid.lon / 15.0) % 24.0, np.nan)
    observed = np.where(fraction > 0, time.ravel()[0], np.datetime64("NaT", "ns"))
    arrays = {
        "fine/static/values": np.stack([layers[n].values for n in schema.CADENCES["static"]], axis=-1),
        "fine/overpass/values": np.stack([temperature, view.astype(np.float32)], axis=-1)[None],
        "fine/land_cover/land_cover": cover.values[None],
        f"fine/truth/{TARGET}": truth[None],
        f"coarse/{TARGET}": target[None],
        "coarse/weight": np.isfinite(target).astype(np.float32)[None],
        "coarse/observation_time": observed[None],
    }
    receipts = []
    for where, values in arrays.items():
        group, _, name = where.rpartition("/")
        receipts.append(store.write(path, group, name, tuple(slice(0, n) for n in values.shape), values))
    unknown = upscale(altitude, grid, 0.0).isnull().values
    counts = {
        "coarse_cells": target.size,
        "coarse_cells_whole": int((fraction > 1 - 1e-6).sum()),
        "coarse_cells_kept": int(np.isfinite(target).sum()),
        "coarse_cells_too_little": int(((fraction > 0) & ~np.isfinite(target)).sum()),
        "coarse_cells_empty": int((fraction == 0).sum()),
        "fine_cells_at_sea_level": int((unknown & np.isfinite(truth)).sum()),
    }
    return {"written": receipts, "counts": counts}


def _problems(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """What was left out or filled, for the report's data section."""
    texts = {
        "coarse_cells_partial_dropped": "36 km cells that the field's edge cuts, dropped",
        "fine_cells_valid_dropped": "valid fine cells in those",
        "coarse_cells_too_little": "36 km cells with too little valid (match.min_valid_fraction), not used",
        "fine_cells_at_sea_level": "valid fine cells without elevation, taken as 0 m",
    }
    return [{"file": "", "what": text, "count": counts[key]} for key, text in texts.items() if counts[key]]
