"""match: the cube brought to the coarse grid, and cells with everything made into the training table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from smscale import schema, store
from smscale.blocks import Task
from smscale.config import Match
from smscale.errors import InputError
from smscale.evaluate import correlations
from smscale.features.match import NOON, concat_samples, sample_table
from smscale.features.upscale import Upscaler
from smscale.grid import Grid
from smscale.pipeline.layout import Layout
from smscale.pipeline.plain import records
from smscale.pipeline.run import Run, sealed
from smscale.places import write_bytes, write_text
from smscale.workspace import COORDINATES, Workspace, field_planes, plane_index


@dataclass(frozen=True)
class Upscaling:
    """What the blocks share: where the cube is, its grids and windows, and how fields are brought to coarse cells.

    `made_from` differs from cube to cube: a worker that outlives a run would else look for shards where they no longer lie.
    """

    root: str
    made_from: str
    fine: Grid
    coarse: Grid
    tiles: tuple[tuple[slice, slice], ...]
    settings: Match
    never_later: bool

    @property
    def workspace(self) -> Workspace:
        """The workspace, opened once by each worker."""
        return _opened(self.root, self.made_from)

    def least(self, name: str) -> float:
        """Share of a cell that must be valid."""
        return self.settings.min_lst_valid_fraction if name.startswith("lst") else self.settings.min_valid_fraction


@lru_cache(maxsize=1)
def _opened(root: str, made_from: str) -> Workspace:
    return Workspace.at(root)


def match(run: Run, layout: Layout) -> dict[str, Any]:
    """Upscale every predictor, make samples.parquet and samples.csv; the report has the sample flow."""
    recipe = run.recipe
    fingerprint = store.fingerprint("match", 2, run.upstream("ingest"), recipe.part("match", "predictors", "modis"))
    path = str(run.workspace.cube)
    moving, fixed = _fields(recipe.predictors)
    tiles, never_later = tuple(layout.tiles()), recipe.modis.never_later
    made_from = str(run.workspace.entered("ingest"))
    how = Upscaling(str(run.workspace.root), made_from, layout.grid, layout.coarse, tiles, recipe.match, never_later)

    def work() -> dict[str, Any]:
        tasks = [Task("static", static_block, (how, fixed), fingerprint)]
        for slab in layout.slabs():
            tasks.append(Task(f"steps/{slab.start}", steps_block, (how, moving, slab), fingerprint))
        run.blocks("match", tasks)
        store.publish(path, "coarse")
        return _samples(run, layout)

    return run.stage("match", fingerprint, lambda: _lay_out(layout, path, moving, fixed), work)


def _fields(predictors: Sequence[str]) -> tuple[list[str], list[str]]:
    """Predictors that change from step to step, and those that do not (land cover is known by year)."""
    fields = [name for name in predictors if name not in COORDINATES]
    fields += [name for name in ("land_cover", "elevation") if name not in fields]  # for exclusion, for zones
    fields += ["lst_view_time"] if "lst" in fields else []  # for matching in time
    moving = [name for name in fields if schema.VARIABLES[name].cadence != "static"]
    return moving, [name for name in fields if name not in moving]


def _lay_out(layout: Layout, path: str, moving: Sequence[str], fixed: Sequence[str]) -> None:
    for name in (v.name for v in schema.VARIABLES.values() if v.cadence != "coordinate" and v.name != "soil_moisture"):
        store.remove(path, f"coarse/{name}")
        store.remove(path, f"coarse/valid_fraction_{name}")
    steps, cells = (layout.steps.sizes["time"],), layout.coarse.shape
    data: dict[str, Any] = {}
    for names, shape, dims in ((moving, (*steps, *cells), ("time", "lat", "lon")), (fixed, cells, ("lat", "lon"))):
        for name in names:
            variable = schema.VARIABLES[name]
            is_class = variable.kind == "class"
            fill = schema.LAND_COVER_FILL if is_class else np.nan
            attrs = {**variable.attrs, **({"comment": f"{fill} where unknown"} if is_class else {})}
            data[name] = (dims, store.empty(shape, np.uint8 if is_class else np.float32, fill), attrs)
            fraction = {"long_name": f"share of the cell's area with valid {name}", "units": "1"}
            data[f"valid_fraction_{name}"] = (dims, store.empty(shape, np.float32), fraction)
    template = xr.Dataset(
        data, {**layout.steps.coords, **schema.grid_coords(layout.coarse)}, schema.grid_attrs(layout.coarse)
    )
    store.create(path, "coarse", template, {"time": layout.shards["time"]}, None)


def static_block(how: Upscaling, names: Sequence[str]) -> dict[str, Any]:
    """Upscale what does not change."""
    workspace, written = how.workspace, []
    for name in names:
        values, fraction = _upscaled(how, name, field_planes(workspace, name).expand_dims("time"), np.zeros(1, int))
        written += _write(workspace, name, values[0], fraction[0], ())
    return {"written": written}


def steps_block(how: Upscaling, names: Sequence[str], slab: slice) -> dict[str, Any]:
    """Upscale the predictors of some steps; what serves several of them is read and upscaled once."""
    workspace = how.workspace
    steps = workspace.steps.isel(time=slab)
    written = []
    for name in names:
        index = plane_index(workspace, name, steps, how.never_later)
        values, fraction = _upscaled(how, name, field_planes(workspace, name), index)
        written += _write(workspace, name, values, fraction, (slab,))
    return {"written": written}


def _upscaled(how: Upscaling, name: str, planes: xr.DataArray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The planes (t,) on the coarse grid, read window by window: (t, M, N) values and valid fractions."""
    kind = schema.VARIABLES[name].kind
    chosen, at = np.unique(index, return_inverse=True)
    known = chosen[chosen >= 0]
    fill = np.uint8(schema.LAND_COVER_FILL) if kind == "class" else np.float32(np.nan)
    values = np.full((chosen.size, *how.coarse.shape), fill)
    fraction = np.zeros(values.shape, np.float32)
    if known.size:
        upscaler = Upscaler(how.fine, how.coarse, kind, how=how.settings.space)
        wanted = planes.isel({planes.dims[0]: known})
        for rows, cols in how.tiles:
            tile = wanted.isel(lat=rows, lon=cols).values
            if name == "lst_view_time":
                tile = _hours_from_midnight(tile, wanted["overpass"].values)
            upscaler.add(tile, rows, cols)
        values[chosen >= 0], fraction[chosen >= 0] = upscaler.result(how.least(name))
    return values[at], fraction[at]


def _hours_from_midnight(hours: np.ndarray, overpass: np.ndarray) -> np.ndarray:
    """View times as they can be averaged: those of a night that lie before midnight are negative."""
    before = (overpass == "AM")[:, None, None] & (hours >= NOON)
    return np.where(before, hours - 24, hours)


def _write(
    workspace: Workspace, name: str, values: np.ndarray, fraction: np.ndarray, leading: tuple[slice, ...]
) -> list[store.Receipt]:
    region = (*leading, *(slice(0, size) for size in values.shape[-2:]))
    arrays: Mapping[str, np.ndarray] = {name: values, f"valid_fraction_{name}": fraction}
    return [store.write(workspace.cube, "coarse", n, region, v) for n, v in arrays.items()]


def _samples(run: Run, layout: Layout) -> dict[str, Any]:
    """Write the training table; refuses an empty one and says which sieve emptied it."""
    workspace, recipe = run.workspace, run.recipe
    coarse = store.open_group(workspace.cube, "coarse", unfinished=True)
    tolerance = recipe.match.tolerance_hours if "lst" in recipe.predictors else None
    settings = (recipe.predictors, recipe.match.exclude_land_cover, tolerance)
    table, flow = concat_samples([sample_table(coarse.isel(time=s).load(), *settings) for s in layout.slabs()])
    if table.empty:
        steps = " -> ".join(f"{name} {count}" for name, count in flow.items())
        raise InputError(f"no training sample is left ({steps}): {_advice(flow)}")
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    write_bytes(workspace.samples_path, content.getvalue())
    paper_form = table[[*recipe.predictors, "soil_moisture"]]
    write_text(workspace.root / "samples.csv", paper_form.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return {
        "flow": flow,
        "samples": len(table),
        "correlations": records(_correlations(table, recipe.predictors)),
        "files": sealed(workspace, f"{workspace.cube.name}/coarse", "samples.parquet", "samples.csv"),
    }


def _advice(flow: dict[str, int]) -> str:
    before = None
    for name, count in flow.items():
        if count == 0:
            break
        before = name
    if name == "time":
        return "every LST is too far in time from its retrieval; raise match.tolerance_hours"
    return {
        None: "the period is empty",
        "all": "SMAP observed no cell in the region and period; check region, period and the SMAP granules",
        "observed": "quality control refuses every retrieval; try smap.quality: weighted",
    }.get(
        before,
        "clouds or missing predictors hide every cell; lengthen the period or lower match.min_lst_valid_fraction",
    )


def _correlations(table: pd.DataFrame, predictors: Sequence[str]) -> pd.DataFrame:
    """Of each predictor with soil moisture: total, by season and by the paper's zones."""
    subsets = {"total": np.ones(len(table), bool)}
    subsets |= {str(s): (table["season"] == s).to_numpy() for s in table["season"].unique()}
    if "zone" in table:
        subsets |= {z: (table["zone"] == z).to_numpy() for z in ("NW", "SE")}
    return correlations(
        table,
        "soil_moisture",
        list(predictors),
        {k: m for k, m in subsets.items() if m.sum() > 2},
        series=("cell", "overpass"),
    )
