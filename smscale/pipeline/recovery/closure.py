"""fuse: each map brought back to agree with the coarse field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from smscale import schema, store
from smscale.blocks import Task
from smscale.features.upscale import upscale
from smscale.pipeline.maps import map_template, tally
from smscale.pipeline.recovery.interpolation import interpolate
from smscale.pipeline.recovery.plan import CLOSURE, TARGET
from smscale.pipeline.recovery.window import Window
from smscale.pipeline.run import Run
from smscale.schema import Status
from smscale.workspace import Workspace


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
    workspace = Workspace.at(root)
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
    return {"written": receipts, "counts": tally(clipped[0], status)}
