"""A paper season from cube to maps: GABP, four fusions, kriging variance, against reading and writing the same bytes.

The cube is made first: 900 x 1250 cells of 0.01 degrees, 348 overpass steps, LST behind clouds (`CLOUDS` of the pixel-days hidden, in
fields of weather), composites, terrain, land cover; 156 stations, a tenth of their values missing. A GABP network is fitted to
samples of it. Then the stages downscale and fuse run as `smscale run` runs them, on a LocalCluster of two workers, and twice:
once in one pass, once as two stages (`--only`). Beside it, on the same cluster and blocks: every array that the pass reads is
read, and every array that it wrote is written again, with nothing in between.
Run: python -m benchmarks season   (about 10 GB under the temporary folder; SMSCALE_SEASON_STEPS=48 for a short one)
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import xarray as xr
from threadpoolctl import threadpool_limits

from smscale import cluster, config, schema, store
from smscale.blocks import Ledger, Task, run
from smscale.kernels.noise import fbm
from smscale.models import GABPRegressor, save_model
from smscale.pipeline import downscale as stage_downscale
from smscale.pipeline import fuse as stage_fuse
from smscale.pipeline.ingest import arrays
from smscale.pipeline.layout import Layout, layout_of
from smscale.pipeline.plan import plan_of
from smscale.pipeline.run import Run, inscribe
from smscale.workspace import Workspace

#: Share of the pixel-days that clouds hide.
CLOUDS = 0.85
STATIONS, SILENT = 156, 0.1
SAMPLES = 6069
FIRST_DAY = "2017-06-10"
STEPS = int(os.environ.get("SMSCALE_SEASON_STEPS", "348"))


@dataclass(frozen=True)
class Composites:
    """What `arrays.lay_out` asks of the inputs."""

    years: tuple[int, ...] = (2017,)

    def composites(self, cadence: str, layout: Layout) -> list[tuple[str, str]]:
        """First and last days that cover the period."""
        days = {"eight_day": 8, "sixteen_day": 16}[cadence]
        first, last = (np.datetime64(day) for day in layout.period)
        starts = np.arange(first, last + 1, days)
        return [(str(start), str(start + days - 1)) for start in starts]


def recipe_of(folder: Path) -> config.Recipe:
    """The recipe of the benchmark."""
    last = np.datetime64(FIRST_DAY) + STEPS // 2 - 1
    path = folder / "season.yaml"
    path.write_text(
        "name: season\nworld: none\nregion: [97.0, 25.0, 109.5, 34.0]\n"
        f"period: [{FIRST_DAY}, {last}]\n"
        "chunks: {time: 1, lat: 300, lon: 313, shard: [8, 1, 1]}\nmodels: {gabp: {}}\n"
        "fusion: {holdout: 0.3}\nresources: {workers: 2, memory_per_worker: 3GiB}\n"
    )
    return config.read(path)


# -- the cube -----------------------------------------------------------------------------------------


def ground(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """What does not change: elevation, slope, aspect, northness, eastness, land cover, green."""
    elevation = 2500 + 1500 * fbm(x / 2, y / 2, 1, 8, 0.6)
    dy, dx = np.gradient(elevation, 1000.0)
    aspect = np.arctan2(dx, dy)
    cover = np.digitize(fbm(x / 0.4, y / 0.4, 2, 6, 0.6), [-0.8, -0.2, 0.4, 1.0, 2.2])
    return {
        "elevation": elevation,
        "slope": np.degrees(np.arctan(np.hypot(dx, dy))),
        "aspect": np.degrees(aspect) % 360,
        "northness": np.cos(aspect),
        "eastness": np.sin(aspect),
        "land_cover": np.array([10, 5, 8, 12, 14, 17])[cover],
        "green": 0.5 + 0.15 * fbm(x / 0.5, y / 0.5, 3, 6, 0.6),
    }


def lst_of(x: np.ndarray, y: np.ndarray, elevation: np.ndarray, step: int) -> np.ndarray:
    """LST of one overpass, NaN behind clouds."""
    weather = fbm(x / 1.5, y / 1.5, 100 + step, 4, 0.6)
    cloud = fbm(x / 0.8, y / 0.8, 10_000 + step, 5, 0.6)
    lst = 300 - 0.0055 * (elevation - 2500) + 2.5 * weather + (8 if step % 2 else -4)
    return np.where(cloud < np.quantile(cloud[::7, ::7], CLOUDS), np.nan, lst).astype(np.float32)


def fill_tile(cube: str, layout: Layout, tile: tuple[slice, slice]) -> dict[str, Any]:
    """Every array of the fine cube on one tile."""
    rows, cols = tile
    y, x = np.meshgrid(layout.grid.lat[rows], layout.grid.lon[cols], indexing="ij")
    found = ground(x, y)
    static = np.stack([found[n] for n in schema.CADENCES["static"]], axis=-1).astype(np.float32)
    store.write(cube, "fine/static", "values", (rows, cols, slice(0, static.shape[-1])), static)
    store.write(
        cube, "fine/land_cover", "land_cover", (slice(0, 1), rows, cols), found["land_cover"][None].astype(np.uint8)
    )
    for cadence, amount in (("eight_day", 10.0), ("sixteen_day", 1.0)):
        count, names = store.shape(cube, f"fine/{cadence}", "values")[0], schema.CADENCES[cadence]
        for k in range(count):
            values = np.stack([amount * found["green"] * (1 - 0.3 * i) for i in range(len(names))], axis=-1)
            values = (values + 0.01 * amount * np.sin(k + x)[..., None]).astype(np.float32)
            store.write(
                cube, f"fine/{cadence}", "values", (slice(k, k + 1), rows, cols, slice(0, len(names))), values[None]
            )
    for slab in layout.slabs():
        lst = np.stack([lst_of(x, y, found["elevation"], step) for step in range(slab.start, slab.stop)])
        view = np.where(np.isnan(lst), np.nan, 13.5).astype(np.float32)
        store.write(cube, "fine/overpass", "values", (slab, rows, cols, slice(0, 2)), np.stack([lst, view], axis=-1))
    return {}


def make_cube(workspace: Workspace, layout: Layout, client: Any) -> None:
    """The fine cube and the stations."""
    cube = str(workspace.cube)
    arrays.lay_out(layout, Composites(), cube)  # type: ignore[arg-type]
    tasks = [Task(f"{r.start}-{c.start}", fill_tile, (cube, layout, (r, c))) for r, c in layout.tiles()]
    run(tasks, Ledger(workspace.root / "made"), client, "make the cube")
    for group in ("fine/overpass", "fine/eight_day", "fine/sixteen_day", "fine/static", "fine/land_cover", "coarse"):
        store.publish(cube, group)
    rng = np.random.default_rng(1)
    west, south, east, north = layout.grid.bounds
    lon, lat = rng.uniform(west, east, STATIONS), rng.uniform(south, north, STATIONS)
    values = 0.25 + 0.05 * rng.normal(size=(STATIONS, 1)) + 0.04 * rng.normal(size=(STATIONS, STEPS))
    values[rng.random(values.shape) < SILENT] = np.nan
    stations = xr.Dataset(
        {"soil_moisture": (("station", "time"), values.astype(np.float32))},
        {
            "station": [f"s{i:03d}" for i in range(STATIONS)],
            "time": layout.steps["time"].values,
            "lon": ("station", lon),
            "lat": ("station", lat),
        },
    )
    store.create(cube, "stations", stations, {}, None)
    store.publish(cube, "stations")


def make_model(workspace: Workspace, recipe: config.Recipe) -> None:
    """A GABP fitted to samples whose soil moisture follows some predictors, and the records of the stages before."""
    rng = np.random.default_rng(2)
    held = workspace.predictors(workspace.steps["time"].values[: min(STEPS, 32)])
    parts = []
    for step in range(held.sizes["time"]):
        plane = held.isel(time=step).values.reshape(-1, held.sizes["variable"])
        parts.append(plane[rng.choice(len(plane), 4000, replace=False)])
    rows = np.concatenate(parts)
    rows = rows[np.isfinite(rows).all(axis=1)][:SAMPLES]
    table = pd.DataFrame(rows, columns=list(recipe.predictors)).astype(np.float32)
    wet = 0.25 + 0.2 * (table["ndvi"] - 0.5) - 0.004 * (table["lst"] - 295) + 0.02 * rng.normal(size=len(table))
    model = GABPRegressor(generations=20, random_state=0).fit(table.to_numpy(), wet.to_numpy())
    save_model(workspace.model("gabp"), model, list(table), table, {}, {})
    inner = [{"model": "gabp", "rmse": 0.03}]
    workspace.finish("ingest", "made", {})
    workspace.finish("match", "made", {})
    workspace.finish("train", "made", {"best": "gabp", "inner": inner})


# -- what is timed ------------------------------------------------------------------------------------


def do(
    recipe: config.Recipe, workspace: Workspace, layout: Layout, client: Any, stages: tuple[tuple[str, ...], ...]
) -> float:
    """Seconds of downscale and fuse, as several runs of some stages each."""
    plan = plan_of(recipe, layout)
    for stage in ("downscale", "fuse"):
        workspace.forget(stage)
    start = time.perf_counter()
    for wanted in stages:
        going = Run(recipe, workspace, ("ingest", "match", "train", "downscale", "fuse"), wanted, client)
        if "downscale" in wanted:
            stage_downscale.downscale(going, layout, plan)
        if "fuse" in wanted:
            stage_fuse.fuse(going, layout, plan)
    return time.perf_counter() - start


def copy_block(cube: str, maps: str, out: str, names: list[str], region: tuple[slice, slice, slice]) -> dict[str, Any]:
    """Read what a block of the pass reads, write what it writes."""
    slab, rows, cols = region
    store.read(cube, "fine/overpass", "values", (*region, slice(0, 1)))
    for cadence, days in (("eight_day", 8), ("sixteen_day", 16)):
        count = len(schema.CADENCES[cadence])
        first, last = slab.start // 2 // days, (slab.stop - 1) // 2 // days
        store.read(cube, f"fine/{cadence}", "values", (slice(first, last + 1), rows, cols, slice(0, count)))
    store.read(cube, "fine/static", "values", (rows, cols, slice(0, 3)))
    store.read(cube, "fine/land_cover", "land_cover", (slice(0, 1), rows, cols))
    for name in names:
        store.write(out, "", name, region, store.read(maps, "", name, region))
    return {}


def peak_of(client: Any) -> int:
    """MiB: the most that a worker has held."""

    def high() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024

    return max(client.run(high).values())


def main() -> None:
    """Make the cube, run, print."""
    with tempfile.TemporaryDirectory(prefix="season") as folder, threadpool_limits(1):
        recipe = recipe_of(Path(folder))
        layout = layout_of(recipe)
        workspace = Workspace(Path(folder) / "run")
        (workspace.root / "ledger").mkdir(parents=True)
        inscribe(recipe, workspace)
        with cluster.connect("local", 2, recipe.resources.memory_per_worker) as client:
            make_cube(workspace, layout, client)
        workspace = Workspace(workspace.root)
        make_model(workspace, recipe)
        with cluster.connect("local", 2, recipe.resources.memory_per_worker) as client:
            once = do(recipe, workspace, layout, client, (("downscale", "fuse"),))
            peak = peak_of(client)
        report = (workspace.finished("downscale") or {})["report"]
        print(f"plan: {report['plan']}")
        print(
            f"one pass: {once:.1f} s, {np.prod(layout.grid.shape) * STEPS / once / 1e6:.1f} M cells/s, worker peak {peak} MiB"
        )
        print(json.dumps(report["status"]))
        names = [n for n in store.arrays(workspace.maps_path, "") if len(store.shape(workspace.maps_path, "", n)) == 3]
        with cluster.connect("local", 2, recipe.resources.memory_per_worker) as client:
            twice = do(recipe, workspace, layout, client, (("downscale",), ("fuse",)))
        print(f"two stages, one after the other: {twice:.1f} s")
        bare = copied(recipe, workspace, layout, names)
        print(f"reading and writing the same bytes: {bare:.1f} s; one pass takes {once / bare:.2f} times that")
        print(f"memory of the machine: {psutil.virtual_memory().total >> 30} GiB")


def copied(recipe: config.Recipe, workspace: Workspace, layout: Layout, names: list[str]) -> float:
    """Seconds to read what the pass reads and write what it wrote, less the seconds to read the maps again."""
    out = str(workspace.root / "copy.zarr")
    store.create(out, "", store.open_group(workspace.maps_path, "")[names], layout.chunks, layout.shards)
    blocks = plan_of(recipe, layout).blocks
    seconds = {}
    with cluster.connect("local", 2, recipe.resources.memory_per_worker) as client:
        for what, call in (("maps read", read_block), ("both", copy_block)):
            args = (str(workspace.cube), str(workspace.maps_path), out, names)
            tasks = [Task(b.key, call, (*args, b.region)) for b in blocks]
            start = time.perf_counter()
            run(tasks, Ledger(workspace.root / f"timed {what}"), client, what)
            seconds[what] = time.perf_counter() - start
    return seconds["both"] - seconds["maps read"]


def read_block(cube: str, maps: str, out: str, names: list[str], region: tuple[slice, slice, slice]) -> dict[str, Any]:
    """Read the maps of a block."""
    for name in names:
        store.read(maps, "", name, region)
    return {}


if __name__ == "__main__":
    main()
