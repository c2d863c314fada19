"""fuse: station residuals of the best model, interpolated and merged into its map, four ways."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from smscale import blocks, store
from smscale.blocks import Task
from smscale.config import Fusion
from smscale.fusion.fuse import ResidualField, apply_residual_field, match_times, pooling_groups, solve_residual_field
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.residuals import as_residual, remove_systematic
from smscale.pipeline.downscale import map_template, status_counts
from smscale.pipeline.layout import Layout
from smscale.pipeline.run import Run, sealed
from smscale.schema import Status
from smscale.workspace import Workspace

#: The paper's names: geographical difference and ratio analysis.
PREFIX = {"difference": "gda", "ratio": "gra"}
#: Every fused map that a recipe can ask for.
FUSED = tuple(f"{prefix}_{how}" for prefix in PREFIX.values() for how in ("kriging", "idw"))


def fuse(run: Run, layout: Layout) -> dict[str, Any]:
    """Write {gda,gra}_{kriging,idw} with their status; the report says how, and which is best by leave-one-station-out."""
    recipe, workspace = run.recipe, run.workspace
    trained = workspace.finished("train") or {"report": {"best": None}}
    best = trained["report"]["best"]
    fingerprint = store.fingerprint("fuse", 1, run.upstream("downscale"), recipe.part("fusion", "bounds", "seed"), best)
    names = fusion_names(recipe.fusion)
    path = str(workspace.maps_path)

    fused = has_stations(workspace)

    def blocks_of(call: Callable[..., Any], *args: Any) -> list[dict[str, Any]]:
        regions = [(slab, *tile) for slab in layout.slabs() for tile in layout.tiles()]
        tasks = [
            Task(f"{s.start}-{r.start}-{c.start}", call, (*args, layout.grid.window(r, c), (s, r, c)), fingerprint)
            for s, r, c in regions
        ]
        results = list(run.blocks("fuse", tasks).values())
        store.publish(path, "")
        return results

    def work() -> dict[str, Any]:
        if not fused:
            blocks_of(unfused_block, str(workspace.root), best)
            why = "no station has values in the region and period"
            solved = {"background": best, "stations": 0, "final": f"soil_moisture_{best}", "why": why}
            return solved | {"files": sealed(workspace, "maps.zarr")}
        solved = _solve(run, layout, best)
        results = blocks_of(
            block, str(workspace.root), best, recipe.fusion, recipe.bounds, fingerprint, solved["final"]
        )
        return solved | {"status": _totals(names, results), "files": sealed(workspace, "maps.zarr")}

    def prepare() -> None:
        for name in ("status", *(f"{prefix}{other}" for other in FUSED for prefix in ("", "status_"))):
            store.remove(path, name)
        template = map_template(layout, names, {n: f"soil moisture of {best} fused with stations, {n}" for n in names})
        template["status"] = template[f"status_{names[0]}"].assign_attrs(
            long_name="why each cell of the final map is what it is"
        )
        store.create(path, "", template if fused else template[["status"]], layout.chunks, layout.shards)

    return run.stage("fuse", fingerprint, prepare, work)


def fusion_names(fusion: Fusion) -> list[str]:
    """Names of the fused maps, in the recipe's order."""
    return [f"{PREFIX[r]}_{i}" for r in fusion.residuals for i in fusion.interpolators]


def has_stations(workspace: Workspace) -> bool:
    return store.exists(workspace.cube, "stations") and workspace.stations.sizes.get("station", 0) > 0


def station_names(workspace: Workspace) -> list[str]:
    """The name of each series' station."""
    stations = workspace.stations
    return stations["station_name" if "station_name" in stations.coords else "station"].values.tolist()


def observed_at_steps(workspace: Workspace, steps: xr.Dataset, hours: float) -> np.ndarray:
    """(station, time) station values at the overpass steps, NaN where silent."""
    stations = workspace.stations.load()
    tolerance = np.timedelta64(int(hours * 60), "m")
    values = stations["soil_moisture"].transpose("station", "time").values
    return match_times(stations["time"].values, values, steps["time"].values, tolerance=tolerance)


def hold_out(observed: np.ndarray, names: Sequence[str], fusion: Fusion, seed: int) -> np.ndarray:
    """(station, time) bool: what scores and is not merged. By station, whole rows; by record, single values (it leaks).

    Series of one name (a station that moved, or whose sensor changed) are on one side.
    """
    rng = np.random.default_rng([seed, 4451])
    if fusion.holdout_unit == "record":
        return rng.random(observed.shape) < fusion.holdout
    station, unique = pd.factorize(np.asarray(names))
    n = len(unique)
    chosen = rng.permutation(n)[: max(1, round(fusion.holdout * n))] if n > 1 else np.array([], int)
    return np.isin(station, chosen)[:, None] & np.ones(observed.shape, bool)


def series_at(run: Run, layout: Layout, stage: str, names: Sequence[str], fingerprint: str) -> dict[str, np.ndarray]:
    """(station, time) values of maps at the stations' cells; NaN for a station outside the grid."""
    stations = run.workspace.stations
    row, col = layout.grid.index(stations["lon"].values, stations["lat"].values)
    args = (str(run.workspace.root), list(names), row.tolist(), col.tolist())
    tasks = [Task(f"series/{slab.start}", series_block, (*args, slab), fingerprint) for slab in layout.slabs()]
    results = run.blocks(stage, tasks, label=f"{stage} (stations)")
    return {name: np.concatenate([np.array(results[t.key][name], np.float32) for t in tasks]).T for name in names}


def series_block(
    root: str, names: Sequence[str], row: Sequence[int], col: Sequence[int], slab: slice
) -> dict[str, Any]:
    """Values of maps at some cells over some steps: name -> (time, station)."""
    maps = Workspace(Path(root)).maps_path
    inside = np.array(row) >= 0
    rows, cols = np.maximum(row, 0), np.maximum(col, 0)
    window = (slab, slice(int(rows.min()), int(rows.max()) + 1), slice(int(cols.min()), int(cols.max()) + 1))
    found = {}
    for name in names:
        values = store.read(maps, "", name, window)[:, rows - rows.min(), cols - cols.min()]
        found[name] = np.where(inside, values, np.nan).astype(np.float64).tolist()
    return found


# -- pass one: residuals at the stations --------------------------------------------------------


def _solve(run: Run, layout: Layout, best: str) -> dict[str, Any]:
    """Solve every day's residual system; keep what workers need to do the same."""
    recipe, workspace = run.recipe, run.workspace
    background = series_at(run, layout, "fuse", [f"soil_moisture_{best}"], run.upstream("downscale"))[
        f"soil_moisture_{best}"
    ]
    observed = observed_at_steps(workspace, layout.steps, recipe.fusion.tolerance_hours)
    held = hold_out(observed, station_names(run.workspace), recipe.fusion, recipe.seed)
    stations = workspace.stations
    coords = np.column_stack([stations["lon"].values, stations["lat"].values]).astype(np.float64)
    merged = np.where(held, np.nan, observed)
    groups = pooling_groups(layout.steps["time"].values, layout.steps["overpass"].values)
    arrays: dict[str, np.ndarray] = {"coords": coords, "groups": np.asarray(groups, dtype="U32")}
    facts: dict[str, Any] = {}
    for kind in recipe.fusion.residuals:
        residual = as_residual(kind)
        values, _ = remove_systematic(residual.residual(merged, background), recipe.fusion.systematic, residual)
        arrays[kind] = values
        facts[kind] = {k: int(v) for k, v in residual.counts(merged, background).items()}
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    blocks.write_bytes(workspace.root / "ledger" / "fuse" / "residuals.npz", content.getvalue())
    return {
        "background": best,
        "stations": int(coords.shape[0]),
        "held_out_stations": int(held.all(axis=1).sum()),
        "held_out": [str(s) for s in stations["station"].values[held.all(axis=1)]],
        "reporting_per_step": float(np.isfinite(arrays[recipe.fusion.residuals[0]]).sum(axis=0).mean()),
        "residual_counts": facts,
        **_compared(arrays, recipe.fusion, background, merged, recipe.bounds, f"soil_moisture_{best}"),
    }


def _compared(
    arrays: Mapping[str, np.ndarray],
    fusion: Fusion,
    background: np.ndarray,
    merged: np.ndarray,
    bounds: tuple[float, float],
    unfused: str,
) -> dict[str, Any]:
    """Leave-one-station-out error of each way, and of the map that it starts from, on the merged stations.

    The least decides which map is final: one that fusion makes worse stays as it is.
    """
    estimates, methods, variograms = {unfused: background}, {}, {}
    for kind in fusion.residuals:
        residual = as_residual(kind)
        for how in fusion.interpolators:
            name = f"{PREFIX[kind]}_{how}"
            field = _field(arrays, kind, how, fusion)
            estimates[name] = np.clip(residual.apply(background, field.leave_one_out()), *bounds)
            methods[name] = {k: int(v) for k, v in field.steps_by_method().items()}
            variograms[name] = field.to_dict()["variograms"]
    shared = np.logical_and.reduce([np.isfinite(e) for e in estimates.values()]) & np.isfinite(merged)
    errors = (
        {n: float(np.sqrt(np.mean((e - merged)[shared] ** 2))) for n, e in estimates.items()} if shared.any() else {}
    )
    return {
        "leave_one_out_rmse": errors,
        "leave_one_out_pairs": int(shared.sum()),
        "steps_by_method": methods,
        "variograms": variograms,
        "final": min(errors, key=lambda n: errors[n]) if errors else unfused,
    }


def _field(arrays: Mapping[str, np.ndarray], kind: str, how: str, fusion: Fusion) -> ResidualField:
    interpolator = (
        Kriging(variogram=fusion.variogram, neighbours=fusion.neighbours)
        if how == "kriging"
        else InverseDistance(fusion.idw_neighbours, fusion.idw_power)
    )
    return solve_residual_field(arrays["coords"], arrays[kind], interpolator=interpolator, groups=arrays["groups"])


# -- pass two: the maps -------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _fields(path: str, fusion: Fusion, fingerprint: str) -> dict[str, ResidualField]:
    """Every way's residual field, solved once by each worker from the same residuals."""
    with np.load(path, allow_pickle=False) as arrays:
        kept = dict(arrays)
    return {
        f"{PREFIX[k]}_{how}": _field(kept, k, how, fusion) for k in fusion.residuals for how in fusion.interpolators
    }


def block(
    root: str,
    best: str,
    fusion: Fusion,
    bounds: tuple[float, float],
    fingerprint: str,
    final: str,
    grid: Any,
    region: tuple[slice, slice, slice],
) -> dict[str, Any]:
    """All fused maps of one block."""
    workspace = Workspace(Path(root))
    fields = _fields(str(workspace.root / "ledger" / "fuse" / "residuals.npz"), fusion, fingerprint)
    background = store.read(workspace.maps_path, "", f"soil_moisture_{best}", region)
    why = store.read(workspace.maps_path, "", f"status_{best}", region)
    steps = region[0]
    written, counts = [], {}
    for kind in fusion.residuals:
        for how in fusion.interpolators:
            name = f"{PREFIX[kind]}_{how}"
            spread = fields[name].evaluate(grid.lon, grid.lat, steps=steps)
            values, status, _ = apply_residual_field(
                background, spread, fields[name].method[steps], as_residual(kind), bounds=bounds
            )
            status |= why
            written.append(store.write(workspace.maps_path, "", name, region, values))
            written.append(store.write(workspace.maps_path, "", f"status_{name}", region, status))
            if name == final:
                written.append(store.write(workspace.maps_path, "", "status", region, status))
            counts[name] = status_counts(status) | {"valid": int(np.isfinite(values).sum())}
    if final not in counts:
        written.append(store.write(workspace.maps_path, "", "status", region, why | np.uint32(Status.NOT_FUSED)))
    return {"written": written, "counts": counts}


def unfused_block(root: str, best: str, grid: Any, region: tuple[slice, slice, slice]) -> dict[str, Any]:
    """Without stations the best model's map is the final one: its status, and that it is not fused."""
    maps = Workspace(Path(root)).maps_path
    status = store.read(maps, "", f"status_{best}", region) | np.uint32(Status.NOT_FUSED)
    return {"written": [store.write(maps, "", "status", region, status)]}


def _totals(names: Sequence[str], results: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    totals = {name: Counter[str]() for name in names}
    for result in results:
        for name in names:
            totals[name].update(result["counts"][name])
    return {name: dict(sorted(c.items())) for name, c in totals.items()}
