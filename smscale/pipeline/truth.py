"""A nature run's maps against its 1 km truth, block by block, by sums that merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from smscale import store
from smscale.blocks import Task
from smscale.errors import RecipeError
from smscale.evaluate import finalise_scores, merge_sums, score_sums
from smscale.grid import Grid
from smscale.pipeline.layout import Layout
from smscale.pipeline.run import Run
from smscale.places import Place
from smscale.workspace import Workspace


def truth_scores(run: Run, layout: Layout, truth: Place, names: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Scores of SMAP and every map against the 1 km truth: on each one's own cells, and on the cells that all share."""
    args = (str(run.workspace.root), str(truth), truth_window(truth, layout), names, layout.coarse)
    tasks = [
        Task(
            f"truth/{slab.start}-{rows.start}-{cols.start}",
            truth_block,
            (*args, layout.grid.window(rows, cols), (slab, rows, cols)),
            run.upstream("fuse"),
        )
        for slab in layout.slabs()
        for rows, cols in layout.tiles()
    ]
    results = run.blocks("evaluate", tasks, label="evaluate (truth)")
    tables = {}
    for kind in ("own_cells", "shared_cells"):
        rows = []
        for source in ("smap", *names):
            sums = merge_sums(np.array([results[task.key][kind][source] for task in tasks]))
            rows.append({"source": source, **finalise_scores(sums, extended=True)})
        tables[kind] = pd.DataFrame(rows)
    return tables


def truth_window(truth: Place, layout: Layout) -> tuple[int, int, int]:
    """First step, row and column of the run in the truth, which may cover more.

    Raises
    ------
    RecipeError
        if the truth does not hold the run's cells and steps.
    """
    held = store.open_group(str(truth), "fine")
    wanted = {"time": layout.steps["time"].values, "lat": layout.grid.lat, "lon": layout.grid.lon}
    first = []
    for name, values in wanted.items():
        start = int(np.abs(held[name].values - values[0]).argmin())
        found = held[name].values[start : start + values.size]
        tolerance = np.timedelta64(1, "h") if name == "time" else 1e-6
        if found.size != values.size or np.any(np.abs(found - values) > tolerance):
            raise RecipeError(
                f"region, period or grid: the recipe leaves the world's truth along {name}; keep them within the world's"
            )
        first.append(start)
    return first[0], first[1], first[2]


def truth_block(
    root: str,
    truth: str,
    first: tuple[int, int, int],
    names: Mapping[str, str],
    coarse_grid: Grid,
    grid: Grid,
    region: tuple[slice, slice, slice],
) -> dict[str, Any]:
    """Mergeable sums of one block."""
    workspace, slab = Workspace.at(root), region[0]
    there = tuple(slice(start + part.start, start + part.stop) for start, part in zip(first, region, strict=True))
    reference = store.read(truth, "fine", "soil_moisture", there)
    retrieved = store.read(workspace.cube, "coarse", "soil_moisture", (slab,))
    weight = store.read(workspace.cube, "coarse", "weight", (slab,))
    row, _ = coarse_grid.index(np.full(grid.shape[0], grid.lon[0]), grid.lat)
    _, col = coarse_grid.index(grid.lon, np.full(grid.shape[1], grid.lat[0]))
    fields = {"smap": np.where(weight > 0, retrieved, np.nan)[:, row[:, None], col[None, :]]}
    fields |= {source: store.read(workspace.maps_path, "", name, region) for source, name in names.items()}
    shared = np.logical_and.reduce([np.isfinite(f) for f in fields.values()])
    return {
        "own_cells": {s: score_sums(reference, f).tolist() for s, f in fields.items()},
        "shared_cells": {s: score_sums(np.where(shared, reference, np.nan), f).tolist() for s, f in fields.items()},
    }
