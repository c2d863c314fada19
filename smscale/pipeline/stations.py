"""Stations in a run: what they measured at the overpass steps, who is held out, and what maps say at their cells."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from smscale import store
from smscale.block_plan import Block
from smscale.blocks import Task, spans
from smscale.config import Fusion
from smscale.fusion.at_stations import match_times
from smscale.grid import Grid
from smscale.kernels.nans import one_nan
from smscale.pipeline.layout import Layout
from smscale.pipeline.prediction import Cells, Prediction, Region
from smscale.pipeline.run import Run
from smscale.workspace import Workspace

#: Steps whose stations are read at once: years of hourly values are not held.
STEPS_AT_ONCE = 128


def has_stations(workspace: Workspace) -> bool:
    """Whether any station has values in the region and period."""
    return station_count(workspace) > 0


def station_count(workspace: Workspace) -> int:
    """Stations of the cube; 0 where it has none, or none yet."""
    return workspace.stations.sizes.get("station", 0) if store.exists(workspace.cube, "stations") else 0


def station_names(workspace: Workspace) -> list[str]:
    """The name of each series' station."""
    stations = workspace.stations
    return stations["station_name" if "station_name" in stations.coords else "station"].values.tolist()


def observed_at_steps(workspace: Workspace, steps: xr.Dataset, hours: float) -> np.ndarray:
    """(station, time) station values at the overpass steps, NaN where silent."""
    stations = workspace.stations["soil_moisture"].transpose("station", "time")
    tolerance, clock, wanted = np.timedelta64(int(hours * 60), "m"), stations["time"].values, steps["time"].values
    out = np.full((stations.sizes["station"], wanted.size), np.nan)
    for part in spans(wanted.size, STEPS_AT_ONCE):
        first, last = wanted[part].min() - tolerance, wanted[part].max() + tolerance
        near = np.flatnonzero((clock >= first) & (clock <= last))
        if near.size:
            within = slice(near[0], near[-1] + 1)
            values = stations.isel(time=within).values
            out[:, part] = match_times(clock[within], values, wanted[part], tolerance=tolerance)
    return out


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


# -- what maps say at the stations' cells ---------------------------------------------------------


def predicted_series(
    run: Run, layout: Layout, blocks: Sequence[Block], prediction: Prediction, model: str, fingerprint: str
) -> np.ndarray:
    """(station, time) float32 of a model at the stations' cells, whether or not there is a map yet; NaN outside the grid."""
    return _series(run, layout, blocks, "fuse", predicted_block, (prediction, model), [model], fingerprint)[model]


def predicted_block(prediction: Prediction, model: str, grid: Grid, region: Region) -> dict[str, Any]:
    """A model at the cells of the stations that lie in a block."""
    station, cells = _stations_within(Workspace.at(prediction.root), grid)
    ((_, values, _),) = prediction.predict([model], grid, region, cells)
    return {"station": station.tolist(), "values": {model: packed(values[:, 0].T)}}


def mapped_series(
    run: Run, layout: Layout, blocks: Sequence[Block], stage: str, names: Sequence[str], fingerprint: str
) -> dict[str, np.ndarray]:
    """(station, time) float32 of maps at the stations' cells, by map; NaN for a station outside the grid."""
    return _series(run, layout, blocks, stage, mapped_block, (str(run.workspace.root), list(names)), names, fingerprint)


def mapped_block(root: str, names: Sequence[str], grid: Grid, region: Region) -> dict[str, Any]:
    """Maps at the cells of the stations that lie in a block."""
    workspace = Workspace.at(root)
    station, (row, col) = _stations_within(workspace, grid)
    values = {}
    for name in names:
        found = store.read(workspace.maps_path, "", name, region)[:, row, col]
        values[name] = packed(found.T)
    return {"station": station.tolist(), "values": values}


def station_cells(workspace: Workspace, grid: Grid) -> Cells:
    """Row and column of each station's cell; -1 outside the grid."""
    return grid.index(workspace.stations["lon"].values, workspace.stations["lat"].values)


def _stations_within(workspace: Workspace, grid: Grid) -> tuple[np.ndarray, Cells]:
    """Stations of a window, and their rows and columns in it."""
    row, col = station_cells(workspace, grid)
    station = np.flatnonzero(row >= 0)
    return station, (row[station], col[station])


def _series(
    run: Run,
    layout: Layout,
    blocks: Sequence[Block],
    stage: str,
    call: Callable[..., dict[str, Any]],
    args: tuple[Any, ...],
    names: Sequence[str],
    fingerprint: str,
) -> dict[str, np.ndarray]:
    """Tasks over the blocks that hold stations, put together."""
    row, col = station_cells(run.workspace, layout.grid)
    tasks = {}
    for block, grid in layout.windows(blocks):
        within = (
            (row >= block.rows.start) & (row < block.rows.stop) & (col >= block.cols.start) & (col < block.cols.stop)
        )
        if within.any():
            key = f"stations/{block.key}"
            tasks[key] = block, Task(key, call, (*args, grid, block.region), fingerprint)
    asked = [task for _, task in tasks.values()]
    results = run.blocks(stage, asked, label=f"{stage} (stations)", in_memory=False)
    shape = (row.size, layout.steps.sizes["time"])
    series = {name: np.full(shape, np.nan, np.float32) for name in names}
    for key, (block, _) in tasks.items():
        found = results[key]
        for name in names:
            series[name][found["station"], block.steps] = unpacked(found["values"][name], len(found["station"]))
    return series


def packed(values: np.ndarray) -> str:
    """The bytes of (k, t) float32 values, little-endian, as text for a record: 16 characters are three of them."""
    return base64.b64encode(one_nan(np.ascontiguousarray(values, np.float32)).astype("<f4").tobytes()).decode("ascii")


def unpacked(text: str, stations: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(stations, -1)
