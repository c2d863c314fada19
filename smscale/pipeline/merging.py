"""What one block of the fusion does: its maps closed and fused, from the residual fields that were solved before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from smscale import store
from smscale.block_plan import Block
from smscale.fusion.field import evaluate_each
from smscale.fusion.residuals import Ratio
from smscale.grid import Grid
from smscale.kernels import correction
from smscale.pipeline.closing import Closing, keep_means
from smscale.pipeline.maps import model_map, status_counts, status_of
from smscale.pipeline.prediction import Region
from smscale.pipeline.solved import fields_at
from smscale.schema import Status
from smscale.workspace import Workspace

Maps = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Merging:
    """What a block of the fusion knows; the solved residuals and closures are read by each worker, by reference.

    solved : fingerprint of them; final : the map whose status is `status`
    """

    root: str
    model: str
    names: tuple[str, ...]
    variance: bool
    bounds: tuple[float, float]
    solved: str
    final: str
    closing: Closing | None


def merge_block(merging: Merging, grid: Grid, region: Region, predicted: Maps | None = None) -> dict[str, Any]:
    """All closed and fused maps of one block, from the model's values and status, read where they are not given."""
    maps = Workspace.at(merging.root).maps_path
    name = model_map(merging.model)
    if predicted is None:
        predicted = store.read(maps, "", name, region), store.read(maps, "", status_of(name), region)
    background, why = predicted
    closing, written, counts = merging.closing, [], {}
    means: dict[str, np.ndarray] = {}

    def keep(name: str, values: np.ndarray, status: np.ndarray, valid: int) -> None:
        written.append(store.write(maps, "", name, region, values))
        written.append(store.write(maps, "", status_of(name), region, status))
        counts[name.removeprefix("soil_moisture_")] = status_counts(status) | {"valid": valid}
        if name == merging.final:
            written.append(store.write(maps, "", "status", region, status))
        if closing is not None and name in (closing.map, merging.final):
            means[name] = values

    if closing is not None:
        why = why.copy()
        background, why, cells = closing.surface(region[0]).apply(background, grid, bounds=merging.bounds, status=why)
        valid = int(np.count_nonzero(np.isfinite(background)))
        keep(closing.map, background, why | np.uint32(Status.NOT_FUSED), valid)
        counts[closing.map.removeprefix("soil_moisture_")]["held_by_limit"] = cells["limited"]
    fields = fields_at(merging.root, merging.names, region[0], merging.solved)
    spreads = evaluate_each(list(fields.values()), grid.lon, grid.lat, wanted=np.isfinite(background))
    status = np.empty(background.shape, np.uint32)
    for (name, field), spread in zip(fields.items(), spreads, strict=True):
        floor = field.residual.floor if isinstance(field.residual, Ratio) else None
        fused, left, _ = correction.correct_in_place(
            background, spread, field.method, floor, merging.bounds, status, why
        ).tolist()
        keep(name, spread, status, fused + left)
        if merging.variance and name.endswith("kriging"):
            variance = field.variance(grid.lon, grid.lat)
            correction.vary_in_place(background, variance, floor)
            written.append(store.write(maps, "", f"{name}_variance", region, variance))
    if merging.final == model_map(merging.model):
        written.append(store.write(maps, "", "status", region, why | np.uint32(Status.NOT_FUSED)))
    if closing is not None:
        keep_means(closing, grid, region, Block(*region).key, means)
    return {"written": written, "counts": counts}
