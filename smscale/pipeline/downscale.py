"""downscale: every model over the fine cube, block by block; each map with the reason of every missing cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from smscale import schema, store
from smscale.blocks import Task
from smscale.grid import Grid
from smscale.models import Predictor, load_model
from smscale.models.cnn.patch import own_name
from smscale.pipeline.layout import Layout
from smscale.pipeline.run import Run
from smscale.pipeline.surroundings import Surroundings
from smscale.schema import Status
from smscale.sources.outline import inside, read_outline
from smscale.workspace import Workspace, predictor_plane

#: Bits without a value, by predictor: LST is missing under cloud, all else for want of data.
MISSING = {"lst": Status.NO_LST}


def downscale(run: Run, layout: Layout) -> dict[str, Any]:
    """Write soil_moisture_<model>, status_<model> and the models' spread; the report counts cells by status."""
    recipe = run.recipe
    models = list(recipe.models)
    outline = str(recipe.resolve(recipe.outline)) if recipe.outline else None
    drawn = store.fingerprint(read_outline(outline)) if outline else ""
    fingerprint = store.fingerprint(
        "downscale",
        1,
        run.upstream("train"),
        recipe.part("models", "predictors", "match", "modis", "bounds"),
        drawn,
    )
    path = str(run.workspace.maps_path)

    def work() -> dict[str, Any]:
        settings = (recipe.match.exclude_land_cover, recipe.bounds, recipe.modis.never_later, outline, drawn)
        args = (str(run.workspace.root), models, settings, run.upstream("train"))
        tasks = [
            Task(
                f"{slab.start}-{rows.start}-{cols.start}",
                block,
                (*args, layout.grid.window(rows, cols), (slab, rows, cols)),
                fingerprint,
            )
            for slab in layout.slabs()
            for rows, cols in layout.tiles()
        ]
        results = run.blocks("downscale", tasks)
        store.publish(path, "")
        return _report(models, list(results.values()))

    return run.stage("downscale", fingerprint, lambda: _lay_out(layout, path, models), work)


def map_template(layout: Layout, names: Sequence[str], notes: dict[str, str]) -> xr.Dataset:
    """Empty maps with their status layers."""
    shape = (layout.steps.sizes["time"], *layout.grid.shape)
    dims = ("time", "lat", "lon")
    mapping: dict[str, Any] = {} if layout.grid.x is not None else {"grid_mapping": "spatial_ref"}
    data: dict[str, Any] = {}
    for name in names:
        status = f"status_{name.removeprefix('soil_moisture_')}"
        attrs: dict[str, Any] = {
            **schema.VARIABLES["soil_moisture"].attrs,
            "long_name": notes[name],
            "ancillary_variables": status,
            **mapping,
        }
        data[name] = (dims, store.empty(shape, np.float32), attrs)
        data[status] = (dims, store.empty(shape, np.uint32, 0), {**schema.status_attrs(), **mapping})
    coords: dict[Any, Any] = {**layout.steps.coords, **schema.grid_coords(layout.grid)}
    return xr.Dataset(data, coords, {**schema.grid_attrs(layout.grid), "title": "smscale soil moisture maps"})


def _lay_out(layout: Layout, path: str, models: Sequence[str]) -> None:
    store.remove(path, "")
    template = map_template(
        layout, [f"soil_moisture_{m}" for m in models], {f"soil_moisture_{m}": f"soil moisture by {m}" for m in models}
    )
    spread = {"long_name": "standard deviation among the models' maps", "units": "m3 m-3"}
    if layout.grid.x is None:
        spread["grid_mapping"] = "spatial_ref"
    template["uncertainty"] = (
        ("time", "lat", "lon"),
        store.empty(tuple(template.sizes[d] for d in ("time", "lat", "lon")), np.float32),
        spread,
    )
    store.create(path, "", template, layout.chunks, layout.shards)


@lru_cache(maxsize=8)
def _model(folder: str, fingerprint: str) -> Predictor:
    """A trained model, read once by each worker."""
    return load_model(folder)


@lru_cache(maxsize=2)
def _polygons(outline: str, drawn: str) -> list[dict[str, Any]]:
    """The region's outline, read once by each worker."""
    return read_outline(outline)


def block(
    root: str,
    models: Sequence[str],
    settings: tuple[tuple[int, ...], tuple[float, float], bool, str | None, str],
    trained: str,
    grid: Grid,
    region: tuple[slice, slice, slice],
) -> dict[str, Any]:
    """Every model on one block."""
    excluded, bounds, never_later, outline, drawn = settings
    slab, rows, cols = region
    workspace = Workspace(Path(root))
    steps = workspace.steps.isel(time=slab)
    predictors = {name: _model(str(workspace.model(name)), trained) for name in models}
    names = list(dict.fromkeys(own_name(n) for p in predictors.values() for n in (*p.features, "land_cover")))
    shape = (steps.sizes["time"], rows.stop - rows.start, cols.stop - cols.start)
    planes = {name: _plane(workspace, name, steps, never_later, rows, cols) for name in names}
    missing = _missing(planes, shape, excluded)
    if outline is not None:
        missing[:, ~inside(_polygons(outline, drawn), grid)] |= np.uint32(Status.OUTSIDE_REGION)
    maps, counts, written = [], {}, []
    for name, predictor in predictors.items():
        around = _surroundings(workspace, steps, grid, predictor)
        values, status = _predict(predictor, planes, missing, bounds, around)
        written.append(store.write(workspace.maps_path, "", f"soil_moisture_{name}", region, values))
        written.append(store.write(workspace.maps_path, "", f"status_{name}", region, status))
        counts[name] = status_counts(status) | {"valid": int(np.isfinite(values).sum())}
        maps.append(values)
    spread = np.full(shape, np.nan, np.float32)
    if len(maps) > 1:  # one model alone has no spread: unknown, not zero
        spread = np.std(np.stack(maps).astype(np.float64), axis=0).astype(np.float32)
    written.append(store.write(workspace.maps_path, "", "uncertainty", region, spread))
    return {"written": written, "cells": int(np.prod(shape)), "counts": counts}


def _plane(
    workspace: Workspace, name: str, steps: xr.Dataset, never_later: bool, rows: slice, cols: slice
) -> np.ndarray:
    """One predictor on a block, broadcastable to (time, lat, lon)."""
    plane = predictor_plane(workspace, name, steps, never_later)
    window = {dim: part for dim, part in (("lat", rows), ("lon", cols)) if dim in plane.dims}
    values = plane.isel(window).transpose("time", "lat", "lon", missing_dims="ignore").values
    index = tuple(slice(None) if dim in plane.dims else None for dim in ("time", "lat", "lon"))
    return np.asarray(values[index], np.float32)


def _missing(planes: dict[str, np.ndarray], shape: tuple[int, ...], excluded: Sequence[int]) -> np.ndarray:
    """Status bits (time, lat, lon) of what keeps a model from having a value."""
    status = np.zeros(shape, np.uint32)
    if excluded:
        status |= np.where(
            np.isin(planes["land_cover"], list(excluded)), np.uint32(Status.WATER_ICE_URBAN), np.uint32(0)
        )
    for name, plane in planes.items():
        bit = np.uint32(MISSING.get(name, Status.PREDICTOR_MISSING))
        status |= np.where(np.isfinite(plane), np.uint32(0), bit)
    return status


def _surroundings(workspace: Workspace, steps: xr.Dataset, grid: Grid, predictor: Predictor) -> Surroundings | None:
    """The coarse cells around a block's, for a model that looks at them."""
    own = list(dict.fromkeys(map(own_name, predictor.features)))
    patch = math.isqrt(len(predictor.features) // len(own))
    return None if patch == 1 else Surroundings(workspace, steps, grid, own, patch)


def _predict(
    predictor: Predictor,
    planes: dict[str, np.ndarray],
    missing: np.ndarray,
    bounds: tuple[float, float],
    around: Surroundings | None,
) -> tuple[np.ndarray, np.ndarray]:
    """A model's values, NaN where something is missing, and their status."""
    hide = np.where(missing != 0, np.float32(np.nan), np.float32(0))
    given = [
        planes[name] + hide if i == 0 else planes[name] for i, name in enumerate(predictor.features) if name in planes
    ]
    if around is None:
        values, outside = predictor.predict_planes(given), predictor.outside_planes(given)
    else:
        values, outside = _predict_patches(
            predictor, [np.broadcast_to(plane, missing.shape) for plane in given], around
        )
    status = missing.copy()
    valid = np.isfinite(values)
    status[outside & valid] |= np.uint32(Status.OUTSIDE_TRAINING_RANGE)
    clipped = valid & ((values < bounds[0]) | (values > bounds[1]))
    status[clipped] |= np.uint32(Status.CLIPPED)
    return np.clip(values, *bounds).astype(np.float32), status


def _predict_patches(
    predictor: Predictor, given: list[np.ndarray], around: Surroundings
) -> tuple[np.ndarray, np.ndarray]:
    """Step by step, since a patch multiplies the planes: values, and whether a predictor is outside its training range."""
    found = []
    for step in range(len(given[0])):
        own = [plane[step] for plane in given]
        seen = [*own, *around.at(step, own)]
        found.append((predictor.predict_planes(seen), predictor.outside_planes(seen)))
    values, outside = (np.stack(parts) for parts in zip(*found, strict=True))
    return values, outside


def status_counts(status: np.ndarray) -> dict[str, int]:
    """How many cells carry each status bit."""
    return {str(flag.name).lower(): int(n) for flag in Status if (n := np.count_nonzero(status & np.uint32(flag)))}


def _report(models: Sequence[str], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    totals = {name: Counter[str]() for name in models}
    for result in results:
        for name in models:
            totals[name].update(result["counts"][name])
    return {
        "cells": sum(r["cells"] for r in results),
        "status": {name: dict(sorted(c.items())) for name, c in totals.items()},
    }
