"""The recovery experiment: a real fine field is coarsened to 36 km, downscaled again, and scored against itself.

Its stages have the names and the manner of the others, and share `match` and `downscale` with them. Every model is fitted on
all coarse cells; which one is best is chosen by folds of space blocks at 36 km, never by the fine truth. Beside each model's
map stands its closure, map + cubic(coarse - upscaled map), which agrees with the coarse field again; nearest, bilinear and
cubic interpolation of the coarse field are what all of them must be compared with.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
import yaml
from numpy.typing import NDArray
from scipy import ndimage

from smscale import schema, store
from smscale.blocks import Task, spans
from smscale.config import Recipe, with_environment
from smscale.cube import static_layers
from smscale.errors import InputError, RecipeError
from smscale.evaluate import score_table, write_report
from smscale.features.upscale import upscale
from smscale.grid import EASE2_GRIDS, Grid, authalic_q, ease2_forward
from smscale.models import save_model, selection, splits, zoo
from smscale.pipeline.downscale import downscale, map_template, status_counts
from smscale.pipeline.drawing import draw_curves
from smscale.pipeline.layout import COARSE_KM, Layout
from smscale.pipeline.match import match
from smscale.pipeline.page import SCORES, provenance, recipe_values
from smscale.pipeline.plain import records
from smscale.pipeline.run import Run, files_fingerprint
from smscale.pipeline.train import Training, predictions_of, split_task, told, training_of
from smscale.schema import Status
from smscale.sources.dem import open_altitude, open_land_cover_tif
from smscale.sources.smap import open_smap
from smscale.workspace import Workspace

Floats = NDArray[np.float64]
TARGET = "soil_moisture"
Stage = Callable[[Run], dict[str, Any]]

#: Interpolations of the coarse field that every map is compared with.
BASELINES = ("nearest", "bilinear", "cubic", "cubic_spline")
#: What a model is called that was also given the fine field's own surface temperature.
WITH_TEMPERATURE = "_with_temperature"
CLOSURE = "_closure"
#: Second derivative of the cubic convolution kernel at its first zero (Keys 1981 finds -0.5 for smooth fields; torch and OpenCV take -0.75).
KEYS = -0.75
#: Degrees beyond the window that slope and coastlines need: three cells of the 5' elevation.
HALO = 0.25
#: Rows and columns of coarse cells that the figures show close up.
CLOSE_UP = (24, 48)
WHAT_FILES = {
    "file": "a SMAP L4 granule (SPL4SMAU or SPL4SMGP, from NSIDC DAAC)",
    "elevation": "the global 5' elevation Altitude.h5 (from the pvlib package)",
    "land_cover": "global IGBP land cover as GeoTIFF (MCD12C1, from LP DAAC)",
}


class Files(NamedTuple):
    """Paths of the fine field and of the predictors."""

    file: Path
    elevation: Path
    land_cover: Path


class Variant(NamedTuple):
    """One model on one set of predictors."""

    model: str
    settings: Mapping[str, Any]
    predictors: tuple[str, ...]


@dataclass(frozen=True)
class Window(Layout):
    """The part of the fine field that whole coarse cells make up, at its one step; `counts` says what was left out."""

    overpass: str
    counts: dict[str, Any]

    @cached_property
    def steps(self) -> xr.Dataset:
        west, _, east, _ = self.grid.bounds
        both = schema.overpass_steps(*self.period, longitude=(west + east) / 2)
        return both.isel(time=both["overpass"].values == self.overpass)


def stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recovery recipe, in order.

    Raises
    ------
    RecipeError, InputError
        in one line, where files are missing or the window holds no whole coarse cell.
    """
    files = files_of(recipe)
    window = window_of(recipe, files.file)
    variants = variants_of(recipe)

    def widened(run: Run) -> Run:
        """The run as the shared stages see it: each variant a model, temperature a predictor."""
        names = tuple(dict.fromkeys(n for v in variants.values() for n in v.predictors))
        return replace(
            run, recipe=replace(recipe, models={n: v.settings for n, v in variants.items()}, predictors=names)
        )

    return {
        "ingest": lambda run: ingest(run, window, files),
        "match": lambda run: match(widened(run), window),
        "train": lambda run: train(run, variants),
        "downscale": lambda run: downscale(widened(run), window),
        "fuse": lambda run: close(run, window, list(variants)),
        "evaluate": lambda run: evaluate(run, window, variants),
    }


def files_of(recipe: Recipe) -> Files:
    """The files of a recovery recipe; one line says which are missing and where they come from."""
    spec = recipe.recovery
    if spec is None:
        raise RecipeError(f"{recipe.path}: key recovery is missing")
    wanted = {key: getattr(spec, key) for key in Files._fields}
    needs = "; ".join(f"{name}, {WHAT_FILES[key]}" for key, name in wanted.items())
    folder, unset = with_environment(spec.folder)
    if unset:
        raise RecipeError(
            f"recovery.folder is {spec.folder} but {unset[0]} is not set: set it in the environment, or --set recovery.folder=PATH, "
            f"to the folder that holds {needs}"
        )
    paths = {key: recipe.resolve(folder) / name for key, name in wanted.items()}
    missing = [f"{wanted[key]}, {WHAT_FILES[key]}" for key, path in paths.items() if not path.is_file()]
    if missing:
        raise InputError(f"{recipe.resolve(folder)} lacks {'; '.join(missing)}: put it there, or set recovery.folder")
    return Files(**paths)


def variants_of(recipe: Recipe) -> dict[str, Variant]:
    """Every model without, and where the recipe asks for it with the field's own surface temperature."""
    assert recipe.recovery is not None
    found = {name: Variant(name, dict(s), recipe.predictors) for name, s in recipe.models.items()}
    if recipe.recovery.with_surface_temperature:
        warm = (*recipe.predictors, "lst")
        found |= {f"{name}{WITH_TEMPERATURE}": Variant(name, dict(s), warm) for name, s in recipe.models.items()}
    return found


# -- the window ---------------------------------------------------------------------------------


def window_of(recipe: Recipe, file: Path) -> Window:
    """Whole coarse cells within the fine field (within the recipe's region, where it has one)."""
    field = open_smap(file)
    row0, col0 = field.attrs["row0"], field.attrs["col0"]
    rows, cols = slice(row0, row0 + field.sizes["lat"]), slice(col0, col0 + field.sizes["lon"])
    grid = Grid.ease2(field.attrs["resolution_km"]).window(rows, cols)
    if recipe.region is not None:
        grid = _cut(grid, recipe.region)
    touched = Grid.ease2(COARSE_KM, *grid.bounds)
    coarse, (rows, cols) = whole_cells(grid, touched)
    valid = np.isfinite(field["soil_moisture"].values)
    inside = grid.window(rows, cols)
    r0, c0 = inside.row0 - row0, inside.col0 - col0
    kept = valid[r0 : r0 + inside.shape[0], c0 : c0 + inside.shape[1]]
    counts = {
        "fine_cells": valid.size,
        "fine_cells_valid": int(valid.sum()),
        "fine_cells_dropped": valid.size - kept.size,
        "fine_cells_valid_dropped": int(valid.sum() - kept.sum()),
        "coarse_cells_touched": int(np.prod(touched.shape)),
        "coarse_cells_partial_dropped": int(np.prod(touched.shape) - np.prod(coarse.shape)),
    }
    time = field["observation_time"].values.ravel()[0]
    local_date, is_pm = schema.local_step(time, np.array(np.mean(inside.lon)))
    day = str(local_date)
    overpass = "PM" if is_pm else "AM"
    return Window(inside, coarse, (day, day), recipe.chunks.sizes, recipe.chunks.shards, overpass, counts)


def _cut(grid: Grid, region: tuple[float, float, float, float]) -> Grid:
    """Cells of a grid whose centres lie in a region."""
    west, south, east, north = region
    rows = np.flatnonzero((grid.lat > south) & (grid.lat < north))
    cols = np.flatnonzero((grid.lon > west) & (grid.lon < east))
    if not rows.size or not cols.size:
        raise InputError(f"region {list(region)} does not meet the fine field, which covers {grid}")
    return grid.window(slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))


def whole_cells(fine: Grid, coarse: Grid) -> tuple[Grid, tuple[slice, slice]]:
    """The coarse cells that lie wholly within a fine grid, and the fine rows and columns that these are made of.

    Raises
    ------
    InputError
        if there is none.
    """
    parts = []
    own = (-np.diff(authalic_q(coarse.lat_edges)), np.diff(coarse.lon_edges))
    for overlap, size in zip(fine.overlap(coarse), own, strict=True):
        whole = np.flatnonzero(overlap.sum(axis=1) > size * (1 - 1e-6))
        if not whole.size:
            raise InputError(f"no coarse cell lies wholly within {fine}: give a larger field or region")
        chosen = slice(int(whole[0]), int(whole[-1]) + 1)
        inside = np.flatnonzero(overlap[chosen].sum(axis=0) > 1e-6 * overlap.max())
        parts.append((chosen, slice(int(inside[0]), int(inside[-1]) + 1)))
    return coarse.window(parts[0][0], parts[1][0]), (parts[0][1], parts[1][1])


# -- ingest -------------------------------------------------------------------------------------


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


GROUPS = ("fine/static", "fine/overpass", "fine/land_cover", "fine/truth", "coarse")


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


# -- train --------------------------------------------------------------------------------------


def train(run: Run, variants: Mapping[str, Variant]) -> dict[str, Any]:
    """Fit every variant on all coarse cells, and score each on folds of space blocks: what the best is chosen by."""
    recipe = run.recipe
    fingerprint = store.fingerprint(
        "recovery-train", 2, run.upstream("match"), recipe.part("predictors", "recovery", "split", "models", "seed")
    )
    blocked = replace(recipe, split=replace(recipe.split, compare=("space-block",)))

    def work() -> dict[str, Any]:
        table = run.workspace.samples
        shared, line = training_of(blocked, run.workspace, run.upstream("match"))
        fits, folds = [], {}
        for name, variant in variants.items():
            how = replace(shared, models={variant.model: variant.settings}, predictors=variant.predictors)
            fits.append(Task(f"fit/{name}", fit_task, (how, name, variant.model), fingerprint))
            for i, fold in enumerate(how.compared(table)):
                if fold.model == variant.model:
                    folds[name, i] = (fold, Task(f"fold/{name}-{i}", split_task, (how, i), fingerprint))
        results = run.blocks("train", [*(task for _, task in folds.values()), *fits])
        found = [(fold._replace(model=name), results[task.key]) for (name, _), (fold, task) in folds.items()]
        scored = selection.score_table(predictions_of(shared, table, found))
        return {
            "samples": len(table),
            "blocks": line,
            "folds": records(scored.drop(columns="fit_seconds")),
            "best": selection.choose_best(scored),
            **{k: {name: results[f"fit/{name}"][k] for name in variants} for k in ("traces", "importances", "chosen")},
        }

    def prepare() -> None:
        shutil.rmtree(run.workspace.root / "models", ignore_errors=True)

    return run.stage("train", fingerprint, prepare, work)


def fit_task(how: Training, name: str, model: str) -> dict[str, Any]:
    """Fit one variant on every coarse cell and keep it as an artefact."""
    workspace = how.workspace
    table = workspace.samples
    X, y = how.matrix(table), how.values(table)
    groups = splits.inner_groups(table, "space-block", **how.blocks)
    fitted, _ = selection.fit_fold(model, how.models[model], X, y, groups, how.weights(table), how.seed)
    names = list(how.predictors)
    save_model(
        workspace.model(name),
        zoo.fitted(fitted),
        names,
        table[names],
        {**how.provenance, "rows": len(table), "split": "none"},
        target=how.target,
        name=name,
        kind=model,
    )
    return told(fitted, X, y, how, repeats=2, rows=2000)


# -- interpolation and closure ------------------------------------------------------------------


def interpolate(values: Floats, coarse: Grid, fine: Grid, how: str) -> Floats:
    """A coarse field at the centres of fine cells.

    Parameters
    ----------
    values : (m, n) on an EASE-Grid 2.0 window; gaps take the nearest value first
    how : "nearest", "bilinear", "cubic" (cubic convolution, Keys 1981, doi:10.1109/TASSP.1981.1163711, equation 4 with his a as
        `KEYS`) or "cubic_spline" (interpolating cubic B-spline); the outermost cells are repeated outwards

    Returns
    -------
    (M, N) float64
    """
    row, col = _positions(coarse, fine)
    filled = _filled(values)
    if how == "cubic_spline":
        places = np.meshgrid(row, col, indexing="ij")
        return ndimage.map_coordinates(filled, places, order=3, mode="nearest")
    return _weights(row, values.shape[0], how) @ filled @ _weights(col, values.shape[1], how).T


def _positions(coarse: Grid, fine: Grid) -> tuple[Floats, Floats]:
    """Rows and columns of the coarse grid, as real numbers, at which fine centres lie."""
    if coarse.x is None or coarse.y is None:
        raise InputError(f"interpolation needs a coarse EASE-Grid 2.0, got {coarse}")
    size = EASE2_GRIDS[COARSE_KM][2]
    x, y = ease2_forward(fine.lon, np.zeros(fine.shape[1]))[0], ease2_forward(np.zeros(fine.shape[0]), fine.lat)[1]
    return (coarse.y[0] - y) / size, (x - coarse.x[0]) / size


def _filled(values: Floats) -> Floats:
    """Gaps filled with the nearest value."""
    missing = ~np.isfinite(values)
    nearest = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
    return np.asarray(values[tuple(nearest)], np.float64)


def _weights(positions: Floats, size: int, how: str) -> Floats:
    """(k, size): weights of the cells along one axis at k positions; each row sums to one."""
    weights = np.zeros((positions.size, size))
    first = np.floor(positions).astype(int)
    for shift in range(-1, 3):
        cell = first + shift
        np.add.at(
            weights, (np.arange(positions.size), np.clip(cell, 0, size - 1)), _KERNELS[how](np.abs(positions - cell))
        )
    return weights


def _keys(d: Floats, a: float = KEYS) -> Floats:
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


_KERNELS: dict[str, Callable[[Floats], Floats]] = {
    "nearest": lambda d: (d < 0.5).astype(np.float64),
    "bilinear": lambda d: np.maximum(1 - d, 0.0),
    "cubic": _keys,
}


def close(run: Run, window: Window, names: Sequence[str]) -> dict[str, Any]:
    """Write soil_moisture_<variant>_closure: each map brought back to agree with the coarse field."""
    path = str(run.workspace.maps_path)
    arrays = [f"soil_moisture_{name}{CLOSURE}" for name in names]
    fingerprint = store.fingerprint("recovery-close", 1, run.upstream("downscale"), run.recipe.part("bounds", "match"))

    def prepare() -> None:
        notes = {a: f"{a.removesuffix(CLOSURE)} + cubic(coarse - its mean over the coarse cell)" for a in arrays}
        store.create(path, "", map_template(window, arrays, notes), window.chunks, None)

    def work() -> dict[str, Any]:
        args = (window, run.recipe.match.min_valid_fraction, run.recipe.bounds)
        tasks = [Task(name, close_block, (str(run.workspace.root), name, *args), fingerprint) for name in names]
        results = run.blocks("fuse", tasks)
        store.publish(path, "")
        return {"status": {f"{name}{CLOSURE}": results[name]["counts"] for name in names}}

    return run.stage("fuse", fingerprint, prepare, work)


def close_block(root: str, name: str, window: Window, least: float, bounds: tuple[float, float]) -> dict[str, Any]:
    """The closure of one map; where the coarse field has no value the map stays as it is, with that status."""
    workspace = Workspace(Path(root))
    values = store.read(workspace.maps_path, "", f"soil_moisture_{name}")[0].astype(np.float64)
    status = store.read(workspace.maps_path, "", f"status_{name}")[0]
    target = store.read(workspace.cube, "coarse", TARGET)[0]
    labelled = xr.DataArray(values, schema.grid_coords(window.grid), ("lat", "lon"), TARGET, {"crs": window.grid.crs})
    lack = target - upscale(labelled, window.coarse, least).values
    known = interpolate(np.isfinite(lack).astype(np.float64), window.coarse, window.grid, "nearest") > 0
    closed = np.where(known, values + interpolate(lack, window.coarse, window.grid, "cubic"), values)
    valid = np.isfinite(closed)
    status = status & ~np.uint32(Status.CLIPPED)
    status[valid & ~known] |= np.uint32(Status.CLOSURE_NOT_APPLIED)
    status[valid & ((closed < bounds[0]) | (closed > bounds[1]))] |= np.uint32(Status.CLIPPED)
    region = (slice(0, 1), *(slice(0, n) for n in values.shape))
    clipped = np.clip(closed, *bounds).astype(np.float32)[None]
    receipts = [
        store.write(workspace.maps_path, "", f"soil_moisture_{name}{CLOSURE}", region, clipped),
        store.write(workspace.maps_path, "", f"status_{name}{CLOSURE}", region, status[None]),
    ]
    return {"written": receipts, "counts": status_counts(status) | {"valid": int(valid.sum())}}


# -- evaluate -----------------------------------------------------------------------------------


def evaluate(run: Run, window: Window, variants: Mapping[str, Variant]) -> dict[str, Any]:
    """Score every map and every interpolation against the fine truth; write the report."""
    fingerprint = store.fingerprint("recovery-evaluate", 1, run.upstream("fuse"), run.recipe.part("name", "title"))

    def work() -> dict[str, Any]:
        reports = {stage: run.report(stage) for stage in ("ingest", "match", "train", "downscale", "fuse")}
        final = f"{reports['train']['best']}{CLOSURE}"
        fields = fields_of(run, window, variants)
        sources = [name for name in fields if name not in ("truth", "coarse")]
        table = pd.DataFrame({n: f.ravel() for n, f in fields.items() if n != "coarse"})
        table = table[np.isfinite(table["truth"]) & np.isfinite(table["nearest"])]
        scores = {
            "own_cells": score_table(table, "truth", sources),
            "shared_cells": score_table(table, "truth", sources, common=True),
        }
        _write(run, window, reports | {"fuse": {**reports["fuse"], "final": f"soil_moisture_{final}"}}, fields, scores)
        rows = records(scores["shared_cells"][["source", *SCORES]])
        return {"scores": [], "truth": rows, "final": f"soil_moisture_{final}"}

    return run.stage("evaluate", fingerprint, lambda: None, work)


def fields_of(run: Run, window: Window, variants: Mapping[str, Variant]) -> dict[str, Floats]:
    """Truth, interpolations (where the coarse field has a value), maps and their closures, on the fine cells."""
    workspace = run.workspace
    coarse = store.read(workspace.cube, "coarse", TARGET)[0].astype(np.float64)
    known = interpolate(np.isfinite(coarse).astype(np.float64), window.coarse, window.grid, "nearest") > 0
    at = partial(interpolate, coarse, window.coarse, window.grid)
    fields: dict[str, Floats] = {"truth": store.read(workspace.cube, "fine/truth", TARGET)[0], "coarse": coarse}
    fields |= {how: np.where(known, at(how), np.nan) for how in BASELINES}
    names = [*variants, *(f"{name}{CLOSURE}" for name in variants)]
    return fields | {name: store.read(workspace.maps_path, "", f"soil_moisture_{name}")[0] for name in names}


def _write(
    run: Run,
    window: Window,
    reports: dict[str, Any],
    fields: Mapping[str, Floats],
    scores: Mapping[str, pd.DataFrame],
) -> None:
    recipe, folder = run.recipe, run.workspace.report
    trained, counts, final = reports["train"], reports["ingest"], reports["fuse"]["final"].removeprefix(f"{TARGET}_")
    metrics = {
        "name": recipe.name,
        "truth": dict(scores),
        "models": {key: trained[key] for key in ("samples", "folds", "best", "chosen")},
        "samples": reports["match"]["flow"],
        "data": {k: v for k, v in counts.items() if k != "problems"},
        "status": {**reports["downscale"]["status"], **reports["fuse"]["status"]},
        "final": final,
    }
    write_report(
        folder,
        recipe.title or recipe.name,
        metrics,
        tables=_tables(scores, trained),
        figures=_figures(run, window, reports, fields, scores["shared_cells"], final),
        data_notes=counts["problems"],
        provenance=provenance(recipe),
        summary=_summary(window, counts, trained),
        headline=_headline(scores["shared_cells"], trained["best"], final, counts),
        data_read=[{"what": k.replace("_", " "), "count": v} for k, v in counts.items() if k != "problems"],
        method=_method(recipe),
        recipe=yaml.safe_dump(recipe_values(recipe), sort_keys=False, allow_unicode=True),
    )


def _tables(scores: Mapping[str, pd.DataFrame], trained: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    shown = ["source", *SCORES, "kge"]
    tables = [
        ("The fine truth", "Cells that have the truth and every map: a fair comparison.", scores["shared_cells"][shown])
    ]
    if scores["own_cells"]["n"].nunique() > 1:
        tables.append(("The fine truth, own cells", "Each map where it has a value.", scores["own_cells"][shown]))
    note = f"Coarse cells of places that the model was not trained on. The best, {trained['best']}, was chosen by it."
    tables.append(("Models at 36 km, folds of space blocks", note, pd.DataFrame(trained["folds"])))
    return tables


def _headline(table: pd.DataFrame, best: str, final: str, counts: Mapping[str, int]) -> dict[str, Any]:
    rmse = table.set_index("source")["rmse"]
    names = {"nearest": "nearest", "bilinear": "bilinear", "cubic": "cubic", "best model": best, "its closure": final}
    return {"training cells": counts["coarse_cells_kept"], "best at 36 km": best.replace("_", " ")} | {
        f"RMSE, {label}": f"{rmse[name]:.4f}" for label, name in names.items()
    }


def _summary(window: Window, counts: Mapping[str, int], trained: Mapping[str, Any]) -> str:
    west, south, east, north = window.grid.bounds
    return (
        f"{window.period[0]}, {west:.1f} to {east:.1f}° E, {south:.1f} to {north:.1f}° N. {counts['fine_cells_valid']} valid fine cells; "
        f"{counts['coarse_cells_touched']} 36 km cells touch the field, {counts['coarse_cells_partial_dropped']} are cut by its edge and "
        f"dropped; of the others {counts['coarse_cells_whole']} are wholly valid, {counts['coarse_cells_kept']} valid enough to train on."
    )


def _method(recipe: Recipe) -> dict[str, str]:
    least = recipe.match.min_valid_fraction
    return {
        "coarsen": f"Area-weighted mean over the 36 km cell, where at least {least:g} of it is valid; cells that the edge cuts are dropped.",
        "train": "Each model on every coarse cell; chosen by folds of space blocks at 36 km, never by the fine truth.",
        "with temperature": "The same with the field's own surface temperature, which its model shares with the soil moisture.",
        "closure": "map + cubic(coarse - mean of the map over the coarse cell): the coarse field with the model's detail.",
        "interpolation": f"Gaps take the nearest value. cubic: Keys' convolution with a = {KEYS:g}; cubic spline: interpolating B-spline.",
    }


def _figures(
    run: Run,
    window: Window,
    reports: dict[str, Any],
    fields: Mapping[str, Floats],
    table: pd.DataFrame,
    final: str,
) -> list[tuple[str, str, str]]:
    from smscale.evaluate import figures

    folder, best = run.workspace.report / "figures", reports["train"]["best"]
    coords = schema.grid_coords(window.grid)
    maps = {
        name: xr.DataArray(
            field, schema.grid_coords(window.coarse) if name == "coarse" else coords, ("lat", "lon"), name
        )
        for name, field in fields.items()
    }
    models = list(run.recipe.models)
    chosen = ["truth", "coarse", "cubic", *models, *dict.fromkeys((best, final))]
    panels = {name: maps[name] for name in dict.fromkeys(chosen)}
    day = window.period[0]
    figures.maps(panels, folder / "maps.png", title=f"Soil moisture, {day}", columns=3)
    box = _busiest(fields, window)
    near = {name: _within(maps[name], box) for name in ("truth", "coarse", "cubic", best, final)}
    figures.maps(near, folder / "maps-detail.png", title=f"Close up, {day}", columns=3)
    errors = {n: near[n] - near["truth"] for n in ("cubic", best, final)}
    figures.maps(errors, folder / "errors.png", diverging=True, title="Estimate - truth", label="m³ m⁻³", columns=3)
    figures.score_bars(table.drop(columns="n"), folder / "scores.png", title="Against the fine truth")
    known = np.isfinite(fields["truth"]) & np.isfinite(fields["nearest"])
    pairs = {n: fields[n][known] for n in dict.fromkeys(("nearest", "cubic", best, final))}
    figures.scatter(fields["truth"][known], pairs, folder / "scatter.png", title="", reference_label="truth")
    spread = {n: fields[n][known] for n in dict.fromkeys(("truth", "nearest", "cubic", *models, final))}
    figures.box_plot(spread, folder / "box.png", title="Distributions")
    figures.sample_flow(reports["match"]["flow"], folder / "sample-flow.png", title="From coarse cells to samples")
    correlations = pd.DataFrame(reports["match"]["correlations"]).query("subset == 'total'")
    figures.correlation_bars(correlations, folder / "correlations.png", title="At 36 km")
    found = reports["train"]["importances"]
    influence = pd.DataFrame(
        {n: pd.Series(found.get(f"{n}{WITH_TEMPERATURE}", found[n])["permutation"]) for n in models}
    )
    figures.importance_bars(influence, folder / "importances.png", label="rise of RMSE (m³ m⁻³)", title="Importances")
    traces = {name: reports["train"]["traces"][name] for name in models}
    return [
        ("maps.png", "Maps", "The truth, what is left of it at 36 km, and what each model makes of that."),
        ("maps-detail.png", "Close up", "Where the truth varies most within coarse cells."),
        ("errors.png", "Errors", "The same part: estimate minus truth."),
        ("scores.png", "Scores", "On the same cells. The interpolations know the coarse field alone."),
        ("scatter.png", "Scatter", "Every fine cell."),
        ("box.png", "Distributions", "Whether a map keeps the truth's range."),
        (
            "sample-flow.png",
            "Samples",
            "Coarse cells that each sieve leaves: observed have any valid fine cell, quality enough.",
        ),
        ("correlations.png", "Correlations", "Of each predictor with the coarse field; black: p > 0.05."),
        ("importances.png", "Importances", "Rise of the error on training cells when one predictor is shuffled."),
        *draw_curves(traces, folder),
    ]


def _busiest(fields: Mapping[str, Floats], window: Window) -> tuple[float, float, float, float]:
    """West, south, east, north of the part (of `CLOSE_UP`) in which the truth varies most within coarse cells."""
    lost = np.nan_to_num(fields["truth"] - fields["nearest"]) ** 2
    sides = [
        n * round(fine / coarse) for n, fine, coarse in zip(CLOSE_UP, lost.shape, window.coarse.shape, strict=True)
    ]
    parts = [(r, c) for r in spans(lost.shape[0], sides[0]) for c in spans(lost.shape[1], sides[1])]
    return window.grid.window(*max(parts, key=lambda part: float(lost[part].sum()))).bounds


def _within(field: xr.DataArray, box: tuple[float, float, float, float]) -> xr.DataArray:
    """The cells of a map whose centres lie in a box."""
    west, south, east, north = box
    rows, cols = (field["lat"] > south) & (field["lat"] < north), (field["lon"] > west) & (field["lon"] < east)
    return field.isel(lat=rows.values, lon=cols.values)
