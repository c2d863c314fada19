"""match: the cube brought to the coarse grid, and cells with everything made into the training table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from smscale import blocks, schema, store
from smscale.blocks import Task
from smscale.errors import InputError
from smscale.evaluate import correlations
from smscale.features.match import sample_table
from smscale.features.upscale import upscale
from smscale.grid import Grid
from smscale.pipeline.layout import Layout
from smscale.pipeline.plain import records
from smscale.pipeline.run import Run
from smscale.workspace import Workspace, predictor_plane

#: Predictors that are no fields: they come from the cells and the steps themselves.
COORDINATES = ("longitude", "latitude", "day_sequence", "overpass")


def match(run: Run, layout: Layout) -> dict[str, Any]:
    """Upscale every predictor, make samples.parquet and samples.csv; the report has the sample flow."""
    recipe = run.recipe
    fingerprint = store.fingerprint("match", 1, run.upstream("ingest"), recipe.part("match", "predictors", "modis"))
    path = str(run.workspace.cube)
    moving, fixed = _fields(recipe.predictors)

    def work() -> dict[str, Any]:
        settings = (recipe.match.min_valid_fraction, recipe.match.min_lst_valid_fraction, recipe.modis.never_later)
        root = str(run.workspace.root)
        tasks = [Task("static", static_block, (root, fixed, layout.coarse, settings), fingerprint)]
        for slab in layout.slabs():
            tasks.append(
                Task(f"steps/{slab.start}", steps_block, (root, moving, slab, layout.coarse, settings), fingerprint)
            )
        run.blocks("match", tasks)
        store.publish(path, "coarse")
        return _samples(run)

    return run.stage("match", fingerprint, lambda: _lay_out(layout, path, moving, fixed), work)


def _fields(predictors: Sequence[str]) -> tuple[list[str], list[str]]:
    """Predictors that change from step to step, and those that do not (land cover is known by year)."""
    fields = [name for name in predictors if name not in COORDINATES]
    fields += [name for name in ("land_cover", "elevation") if name not in fields]  # for exclusion, for zones
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


def static_block(root: str, names: Sequence[str], coarse: Grid, settings: tuple[float, float, bool]) -> dict[str, Any]:
    """Upscale what does not change."""
    workspace = Workspace(Path(root))
    fine = workspace.fine["static"][list(names)].load()
    return {"written": _write(workspace, upscale(fine, coarse, settings[0]), names, ())}


def steps_block(
    root: str, names: Sequence[str], slab: slice, coarse: Grid, settings: tuple[float, float, bool]
) -> dict[str, Any]:
    """Upscale the predictors of some steps."""
    least, least_lst, never_later = settings
    workspace = Workspace(Path(root))
    steps = workspace.steps.isel(time=slab)
    written: list[store.Receipt] = []
    crs = store.open_group(workspace.cube, "fine/static").attrs["crs"]  # an EASE grid is known by it
    for name in names:
        plane = predictor_plane(workspace, name, steps, never_later).load()
        if name == "land_cover":
            plane = plane.fillna(schema.LAND_COVER_FILL).astype(np.uint8)
        plane = plane.transpose("time", "lat", "lon").rename(name)
        fraction = least_lst if name == "lst" else least
        coarsened = upscale(plane.to_dataset().assign_attrs(crs=crs), coarse, fraction)
        written += _write(workspace, coarsened, [name], (slab,))
    return {"written": written}


def _write(
    workspace: Workspace, coarse: xr.Dataset, names: Sequence[str], leading: tuple[slice, ...]
) -> list[store.Receipt]:
    receipts = []
    for name in (n for given in names for n in (given, f"valid_fraction_{given}")):
        values = coarse[name].values
        region = (*leading, *(slice(0, size) for size in values.shape[-2:]))
        receipts.append(store.write(workspace.cube, "coarse", name, region, values))
    return receipts


def _samples(run: Run) -> dict[str, Any]:
    """Write the training table; refuses an empty one and says which sieve emptied it."""
    workspace, recipe = run.workspace, run.recipe
    coarse = store.open_group(workspace.cube, "coarse").load()
    table, flow = sample_table(coarse, recipe.predictors, recipe.match.exclude_land_cover)
    if table.empty:
        steps = " -> ".join(f"{name} {count}" for name, count in flow.items())
        raise InputError(f"no training sample is left ({steps}): {_advice(flow)}")
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    blocks.write_bytes(workspace.samples_path, content.getvalue())
    paper_form = table[[*recipe.predictors, "soil_moisture"]]
    blocks.write_text(
        workspace.root / "samples.csv", paper_form.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    )
    return {"flow": flow, "samples": len(table), "correlations": records(_correlations(table, recipe.predictors))}


def _advice(flow: dict[str, int]) -> str:
    before = None
    for name, count in flow.items():
        if count == 0:
            break
        before = name
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
    return correlations(table, "soil_moisture", list(predictors), {k: m for k, m in subsets.items() if m.sum() > 2})
