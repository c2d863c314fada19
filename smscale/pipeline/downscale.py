"""downscale: every model over the fine cube, block by block, each map written once with the reason of every missing cell.

Where the run goes on to fuse, a block is fused while it is at hand: one pass over the cube makes all maps of both stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from smscale import store
from smscale.block_plan import Plan
from smscale.blocks import Task
from smscale.grid import Grid
from smscale.pipeline.fuse import Merge, ahead
from smscale.pipeline.layout import Layout
from smscale.pipeline.maps import map_template, model_map, status_of, tally, totals
from smscale.pipeline.merging import Merging, merge_block
from smscale.pipeline.prediction import Prediction, Region
from smscale.pipeline.provenance import provenance
from smscale.pipeline.run import Run
from smscale.workspace import Workspace

#: The models' spread.
UNCERTAINTY = "uncertainty"


def downscale(run: Run, layout: Layout, plan: Plan, fusing: bool = True) -> dict[str, Any]:
    """Write soil_moisture_<model>, status_<model> and the models' spread; the report counts cells by status.

    With `fusing` also what the stage fuse makes of them, as far as it can be made in the same pass.
    """
    recipe, path = run.recipe, str(run.workspace.maps_path)
    prediction = Prediction.of(run)
    models = list(prediction.models)
    fingerprint = store.fingerprint(
        "downscale",
        2,
        run.upstream("train"),
        recipe.part("models", "predictors", "match", "modis", "bounds"),
        prediction.drawn,
    )
    template = _template(run, layout, models)

    def prepare() -> None:
        store.remove(path, "")
        store.create(path, "", template, layout.chunks, layout.shards)

    def work() -> dict[str, Any]:
        run.workspace.ledger("downscale").keep_only([b.key for b in plan.blocks])
        merge = ahead(run, layout, plan, fingerprint) if fusing else None
        if merge is not None:
            _both(run, layout, plan, prediction, fingerprint, merge)
        tasks = [
            Task(b.key, predict_block, (prediction, grid, b.region), fingerprint, b.cells, prediction.gpu)
            for b, grid in layout.windows(plan.blocks)
        ]
        results = run.blocks("downscale", tasks, in_memory=False)
        store.publish(path, "", [str(name) for name in template.variables])
        return {"cells": math.prod(plan.sizes), "plan": plan.summary(), "status": totals(results.values(), models)}

    return run.stage("downscale", fingerprint, prepare, work)


def _both(run: Run, layout: Layout, plan: Plan, prediction: Prediction, fingerprint: str, merge: Merge) -> None:
    """Predict and fuse every block that is not predicted yet."""
    ledger = run.workspace.ledger("downscale")
    merging = merge.merging(merge.solve())
    tasks = [
        Task(b.key, predict_and_merge_block, (prediction, merging, grid, b.region), cells=b.cells, gpu=prediction.gpu)
        for b, grid in layout.windows(plan.blocks)
        if ledger.record(Task(b.key, predict_block, (), fingerprint)) is None
    ]
    run.jointly({"downscale": fingerprint, "fuse": merge.fingerprint}, tasks, "downscale, fuse")


def _template(run: Run, layout: Layout, models: Sequence[str]) -> Any:
    notes = {model_map(m): f"soil moisture by {m}" for m in models}
    spread = {"long_name": "standard deviation among the models' maps", "units": "m3 m-3"}
    return map_template(layout, list(notes), notes, {UNCERTAINTY: spread}, provenance(run.recipe, run.workspace))


def predict_block(prediction: Prediction, grid: Grid, region: Region) -> dict[str, Any]:
    """Every model on one block."""
    return _predicted(prediction, grid, region, "")[0]


def predict_and_merge_block(
    prediction: Prediction, merging: Merging, grid: Grid, region: Region
) -> dict[str, dict[str, Any]]:
    """Every model on one block, and the fused maps of the best: the records of two stages."""
    result, kept = _predicted(prediction, grid, region, merging.model)
    assert kept is not None
    return {"downscale": result, "fuse": merge_block(merging, grid, region, kept)}


def _predicted(
    prediction: Prediction, grid: Grid, region: Region, wanted: str
) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray] | None]:
    """What is written of a block, and the values and status of one model."""
    maps = Workspace.at(prediction.root).maps_path
    counts, written, made, kept = {}, [], [], None
    for name, values, status in prediction.predict(prediction.models, grid, region):
        written.append(store.write(maps, "", model_map(name), region, values))
        written.append(store.write(maps, "", status_of(model_map(name)), region, status))
        counts[name] = tally(values, status)
        made.append(values)
        if name == wanted:
            kept = values, status
    written.append(store.write(maps, "", UNCERTAINTY, region, spread(made)))
    return {"written": written, "counts": counts}, kept


def spread(maps: Sequence[np.ndarray]) -> np.ndarray:
    """(t, m, n) float32 standard deviation of maps among one another; unknown, not zero, of one alone."""
    out = np.full(maps[0].shape, np.nan, np.float32)
    if len(maps) > 1:
        for step, layer in enumerate(out):  # step by step: float64 of one at a time
            layer[...] = np.std([values[step] for values in maps], axis=0, dtype=np.float64)
    return out
