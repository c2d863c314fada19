"""Memory of one worker by the system's account: ingest does not grow with the region, a map block keeps to its plan."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from smscale import config, schema, store
from smscale.block_plan import PROCESS_BYTES, TORCH_BYTES
from smscale.fusion.solve import pose
from smscale.grid import Grid
from smscale.pipeline.plan import SCRATCH, SYSTEM, cost_of, station_cost
from smscale.pipeline.solved import keep_posed
from smscale.simulate.modis_files import granule_name, write_lst
from smscale.workspace import Workspace

DAY, TILE = "2019-11-01", (14, 9)

PEAK = """
import sys
from pathlib import Path
import numpy as np, xarray as xr
from smscale import schema, store
from smscale.grid import Grid
from smscale.pipeline.ingest.fine import Source, overpass_block
from smscale.pipeline.layout import Layout
size, path, cube = float(sys.argv[1]), sys.argv[2], sys.argv[3]
grid = Grid.latlon(-35 - size / 2, -10 - size / 2, -35 + size / 2, -10 + size / 2)
days = [str(np.datetime64("2019-11-01") + i) for i in range(4)]
sizes, shards = {"time": 1, "lat": 300, "lon": 300, "variable": 1}, {"time": 8, "lat": 300, "lon": 300}
layout = Layout(grid, Grid.ease2(36, *grid.bounds), (days[0], days[-1]), sizes, shards)
labels = [(day, overpass) for day in days for overpass in schema.OVERPASSES]
values = store.empty((8, *grid.shape, 2), np.float32)
store.create(cube, "fine/overpass", xr.Dataset({"values": (("time", "lat", "lon", "variable"), values)}), sizes, shards)
tiles = {(h, v): (path,) for h in range(13, 17) for v in (8, 9, 10)}
for band in layout.bands().values():
    files, source = dict.fromkeys(days, tiles), Source("LST", "paper")
    overpass_block(cube, "fine/overpass", slice(0, 8), band, grid, labels, files, source)
status = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made LST tile with clouds."""
    rng = np.random.default_rng(0)
    lst = 290 + rng.normal(size=(1200, 1200)).cumsum(axis=0) * 0.02
    cloud = rng.random((12, 12)).repeat(100, 0).repeat(100, 1) < 0.4
    lst = np.where(cloud, np.nan, lst)
    path = tmp_path_factory.mktemp("tile") / granule_name("MYD11A1", DAY, *TILE)
    return write_lst(path, DAY, *TILE, lst + 8, lst - 6, 13.5, 1.5)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of resident memory is read from /proc")
def test_a_region_sixteen_times_as_large_needs_less_than_a_tenth_more_memory(tile: Path, tmp_path: Path) -> None:
    def peak(size: int) -> int:
        """KiB at the peak of a process that ingests four days of a square of `size` degrees at a corner of four tiles."""
        arguments = [sys.executable, "-c", PEAK, str(size), str(tile), str(tmp_path / f"{size}.zarr")]
        return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()[-1])

    small, large = peak(3), peak(12)
    assert small > 100_000, "a process with its libraries is larger than that"
    assert large < 1.1 * small


#: Of the enlarged cube, cells; its models, which are quick. Steps are those of the tiny run.
SIDE, STEPS, MODELS = 300, 12, ("gabp", "rf")
WEST, SOUTH = 102.8, 31.66

BLOCK = """
import json, sys
from pathlib import Path
import distributed.worker
from smscale.grid import Grid
from smscale.pipeline.downscale import predict_and_merge_block
from smscale.pipeline.fuse import FUSED
from smscale.pipeline.merging import Merging
from smscale.pipeline.prediction import Prediction

def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024

root, side, steps, grid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Grid.latlon(*map(float, sys.argv[5:]))
models = tuple(sys.argv[4].split(","))
prediction = Prediction(root, models, "", (17,), (0.0, 0.8), False, None, "")
merging = Merging(root, models[0], FUSED, False, (0.0, 0.8), "", FUSED[0], None)
few = slice(0, 10), slice(0, 10)
list(prediction.predict(models, grid.window(*few), (slice(0, steps), *few)))
before = peak()
predict_and_merge_block(prediction, merging, grid, (slice(0, steps), slice(0, side), slice(0, side)))
block = peak()
import torch
print(json.dumps({"before": before, "block": block - before, "torch": peak() - block}))
"""


def enlarged(run: Path, root: Path, grid: Grid) -> None:
    """A workspace with the models, steps and residuals of a run, whose cube is repeated over a larger grid."""
    old, new = Workspace(run), Workspace(root)
    for name in ("models", "ledger"):
        shutil.copytree(run / name, root / name)
    shape, shards = dict(zip(("lat", "lon"), grid.shape, strict=True)), {"time": STEPS, "lat": SIDE, "lon": SIDE}
    for url, group in [(old.cube, group) for group in store.groups(old.cube) if "fine" in group] + [
        (old.maps_path, "")
    ]:
        held = store.open_group(url, group)
        held = held.drop_vars(["spatial_ref", *(n for n in held.data_vars if "lat" not in held[n].dims)])
        coords = {n: c for n, c in held.coords.items() if not {*shape} & set(c.dims)} | schema.grid_coords(grid)
        sizes = {n: tuple({**v.sizes, **shape}.values()) for n, v in held.data_vars.items()}
        fills = {n: np.nan if v.dtype.kind == "f" else 0 for n, v in held.data_vars.items()}
        empty = {n: (v.dims, store.empty(sizes[n], v.dtype, fills[n]), v.attrs) for n, v in held.data_vars.items()}
        to = root / url.name
        store.create(to, group, xr.Dataset(empty, coords, held.attrs), {"time": 1, "lat": 150, "lon": 150}, shards)
        for name, values in held.data_vars.items() if group else ():
            lat, lon = (np.arange(n) % values.sizes[dim] for dim, n in shape.items())
            whole = tuple(slice(0, n) for n in sizes[name])
            store.write(to, group, str(name), whole, values.isel(lat=lat, lon=lon).values)
        if group:
            store.publish(new.cube, group)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of resident memory is read from /proc")
def test_block_of_maps_keeps_to_the_memory_that_was_planned(tiny_recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    box = WEST, SOUTH, WEST + SIDE / 100, SOUTH + SIDE / 100
    enlarged(tiny_run, tmp_path / "run", Grid.latlon(*box))
    numbers = [str(n) for n in (SIDE, STEPS, ",".join(MODELS), *box)]
    command = [sys.executable, "-c", BLOCK, str(tmp_path / "run"), *numbers]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    recipe = config.read(tiny_recipe)
    recipe = replace(recipe, models={name: recipe.models[name] for name in MODELS})
    planned = replace(cost_of(recipe), fixed=0).of(STEPS, SIDE, SIDE)  # the models of the test are nothing
    # An allocator gives back late, and other versions of the libraries are larger or smaller: a quarter. Networks hold less than is
    # planned, which is what trees need.
    assert 0.6 * planned < measured["block"] < 1.25 * planned + SCRATCH
    assert 0.7 * PROCESS_BYTES < measured["before"] < 1.05 * PROCESS_BYTES
    assert 0 < measured["torch"] < TORCH_BYTES
    assert measured["before"] + measured["block"] < PROCESS_BYTES + cost_of(recipe).of(STEPS, SIDE, SIDE)


STATIONS = """
import json, sys
from pathlib import Path
import numpy as np
from smscale.fusion.field import evaluate_each
from smscale.pipeline.solved import fields_at, solve_slab

WAYS = "gda_kriging", "gda_idw"

def resident(name):
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(name)).split()[1]) * 1024

def peak(work):
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before

def block(root, steps):
    fields = fields_at(root, WAYS, slice(0, steps), "")
    axes = np.linspace(100, 100.3, 30), np.linspace(31, 30.7, 30)
    for (name, field), _ in zip(fields.items(), evaluate_each(list(fields.values()), *axes)):
        if name.endswith("kriging"):
            field.variance(*axes)

few, many = sys.argv[1:]
for name in WAYS:
    solve_slab(few, name, 0, "")
block(few, 4)
solving = peak(lambda: solve_slab(many, WAYS[0], 0, ""))
solve_slab(many, WAYS[1], 0, "")
print(json.dumps({"solving": solving, "short": peak(lambda: block(many, 8)), "long": peak(lambda: block(many, 40))}))
"""


def posed_network(root: Path, stations: int, steps: int) -> None:
    """Differences of so many stations, half of them silent at a step, to be solved by kriging and by inverse distance."""
    rng = np.random.default_rng(0)
    coords = np.column_stack([rng.uniform(75, 130, stations), rng.uniform(20, 50, stations)])
    ground = np.where(rng.random((stations, steps)) < 0.5, np.nan, 0.25)
    seen = 0.25 + 0.03 * rng.normal(size=(stations, 1)) + 0.03 * rng.normal(size=(stations, steps))
    for interpolator in ("kriging", "idw"):
        keep_posed(root, f"gda_{interpolator}", pose(coords, seen, ground, "difference", interpolator))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of resident memory is read from /proc")
def test_stations_keep_to_the_memory_that_was_planned(tiny_recipe: Path, tmp_path: Path) -> None:
    posed_network(tmp_path / "few", 40, 4)
    posed_network(tmp_path / "many", 800, 40)
    command = [sys.executable, "-c", STATIONS, str(tmp_path / "few"), str(tmp_path / "many")]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    recipe = config.read(tiny_recipe, ["fusion.residuals=[difference]", "fusion.holdout_unit=record"])
    cost = station_cost(recipe, 800)
    # planned for factors in float64; those of a good condition are float32
    assert 0.5 * cost.per_step < (measured["long"] - measured["short"]) / 32 < 1.15 * cost.per_step
    assert 0.3 * SYSTEM * 800**2 < measured["solving"] < 1.1 * SYSTEM * 800**2
    assert measured["long"] < cost.of(40, 0, 0)
