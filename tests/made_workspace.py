"""A small workspace made by hand: one cube array, one map that two stages write, every block in the ledger.

Values encode their own place, so that a test can say what must lie where.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from smscale import schema, store
from smscale.blocks import Task, run
from smscale.grid import Grid
from smscale.workspace import Workspace

SHAPE = (6, 5, 7)
SHARDS = {"time": 2, "lat": 4, "lon": 4}
GRID = Grid.latlon(100.0, 29.95, 100.07, 30.0)
STEPS = schema.overpass_steps("2017-06-30", "2017-07-02", longitude=100.0)
Region = tuple[slice, slice, slice]


def field(name: str) -> np.ndarray:
    """(time, lat, lon) float32: values that tell where they are, with holes; the first block holds nothing."""
    t, i, j = np.indices(SHAPE)
    values = (t * 100 + i * 10 + j + (1000 if name == "gda_kriging" else 0)).astype(np.float32)
    values[(i + j + t) % 5 == 0] = np.nan
    values[:2, :4, :4] = np.nan
    return values


def status() -> np.ndarray:
    """(time, lat, lon) uint32."""
    missing = np.isnan(field("gda_kriging"))
    return np.where(missing, schema.Status.NO_LST, schema.Status.FUSED_KRIGING).astype(np.uint32)


def regions() -> Iterator[Region]:
    for t in range(0, SHAPE[0], 2):
        for i in range(0, SHAPE[1], 4):
            for j in range(0, SHAPE[2], 4):
                yield slice(t, min(t + 2, 6)), slice(i, min(i + 4, 5)), slice(j, min(j + 4, 7))


def write_block(path: str, group: str, names: list[str], region: Region) -> dict[str, object]:
    """One block: what every name holds there."""
    written = []
    for name in names:
        whole = status() if name.startswith("status") else field(name)
        values, place = whole[region], region
        if group:  # a cube's array has its variables along a last dimension
            values, place = values[..., None], (*region, slice(0, 1))
        written.append(store.write(path, group, "values" if group else name, place, values))
    return {"written": written}


def tasks(workspace: Workspace) -> dict[str, list[Task]]:
    """Blocks of each stage; fuse writes gda_kriging again, with its status."""
    plan = {
        "ingest": (str(workspace.cube), "fine/overpass", ["lst"]),
        "downscale": (str(workspace.maps_path), "", ["soil_moisture_rf", "gda_kriging"]),
        "fuse": (str(workspace.maps_path), "", ["gda_kriging", "status_gda_kriging"]),
    }
    return {
        stage: [
            Task(f"{stage}/{r[0].start}-{r[1].start}-{r[2].start}", write_block, (*what, r), stage) for r in regions()
        ]
        for stage, what in plan.items()
    }


def fill(workspace: Workspace) -> int:
    """Do the blocks that the ledger does not hold, in order; how many there were to do."""
    did = 0
    for stage, blocks in tasks(workspace).items():
        did += len(blocks) - run(blocks, workspace.ledger(stage), progress=False).done_before
        workspace.finish(stage, stage, {"final": "gda_kriging"})
    store.publish(workspace.cube, "fine/overpass")
    store.publish(workspace.maps_path, "")
    workspace.commit("made", "fuse", "fuse")
    return did


def make(root: Path, kind: str = "zarr") -> Workspace:
    """The workspace, finished."""
    workspace = Workspace(root)
    workspace.keep(kind)
    (root / "ledger").mkdir(parents=True)
    (root / "ledger" / "recipe.json").write_text(json.dumps({"name": "made", "title": "By hand", "models": {}}))
    coords = {**STEPS.coords, **schema.grid_coords(GRID)}
    dims, mapping = ("time", "lat", "lon"), {"grid_mapping": "spatial_ref"}
    cube = xr.Dataset(
        {"values": ((*dims, "variable"), store.empty((*SHAPE, 1), np.float32), mapping)},
        {**coords, "variable": ["lst"]},
        schema.grid_attrs(GRID),
    )
    chunks = {"time": 1, "lat": 2, "lon": 2}
    store.create(workspace.cube, "fine/overpass", cube, {**chunks, "variable": 1}, SHARDS)
    moisture = schema.VARIABLES["soil_moisture"].attrs
    fused = {**moisture, **mapping, "long_name": "fused", "ancillary_variables": "status_gda_kriging"}
    maps = xr.Dataset(
        {
            "soil_moisture_rf": (dims, store.empty(SHAPE, np.float32), {**moisture, **mapping}),
            "gda_kriging": (dims, store.empty(SHAPE, np.float32), fused),
            "status_gda_kriging": (dims, store.empty(SHAPE, np.uint32, 0), {**schema.status_attrs(), **mapping}),
        },
        coords,
        schema.grid_attrs(GRID),
    )
    store.create(workspace.maps_path, "", maps, chunks, SHARDS)
    fill(workspace)
    return workspace


def shard(workspace: Workspace, array: str, number: int = -1) -> Path:
    """One of an array's files."""
    return sorted(p for p in (workspace.root / array / "c").rglob("*") if p.is_file())[number]
