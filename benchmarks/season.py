"""A paper season from cube to maps: GABP, four fusions, kriging variance, against reading and writing the same bytes.

The cube is made first: 900 x 1250 cells of 0.01 degrees, 348 overpass steps, LST behind clouds (`CLOUDS` of the pixel-days hidden, in
fields of weather), composites, terrain, land cover; 156 stations, a tenth of their values missing. A GABP network is fitted to
samples of it. Then the stages downscale and fuse run as `smscale run` runs them, on a LocalCluster of two workers, and twice:
once in one pass, once as two stages (`--only`). Beside it, on the same cluster and blocks: every array that the pass reads is
read, and every array that it wrote is written again, with nothing in between.
Run: python -m benchmarks season   (about 10 GB under the temporary folder; SMSCALE_SEASON_STEPS=64 for a short one, in blocks as
long as those of a whole season)
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from smscale import cluster, config, schema, store
from smscale.bench.season_cube import make_cube, make_model, recipe_of
from smscale.block_plan import Plan
from smscale.blocks import Ledger, Task, run
from smscale.pipeline import downscale as stage_downscale
from smscale.pipeline import fuse as stage_fuse
from smscale.pipeline.layout import Layout, layout_of
from smscale.pipeline.plan import MOST_STEPS, plan_of
from smscale.pipeline.run import Run, inscribe
from smscale.workspace import Workspace

SEASON = 348
STEPS = int(os.environ.get("SMSCALE_SEASON_STEPS", str(SEASON)))


# -- what is timed ------------------------------------------------------------------------------------


def blocks_of(recipe: config.Recipe, layout: Layout) -> Plan:
    """The stages' plan; a short season has few blocks, not short ones, since days share work."""
    plan = plan_of(recipe, layout)
    return plan if STEPS >= SEASON else replace(plan, shape=(min(MOST_STEPS, STEPS), *plan.shape[1:]))


def do(
    recipe: config.Recipe, workspace: Workspace, layout: Layout, client: Any, stages: tuple[tuple[str, ...], ...]
) -> float:
    """Seconds of downscale and fuse, as several runs of some stages each."""
    plan = blocks_of(recipe, layout)
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
        recipe = recipe_of(Path(folder), (STEPS // 2, 900, 1250))
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
    blocks = blocks_of(recipe, layout).blocks
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
