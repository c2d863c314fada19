"""Coarse-mean closure of the model map that stations are merged into: sums of every block, solved slab by slab of time.

The files of it lie beside the ledger of the fuse stage: sums/ of the blocks, removed when the stage is done, and closure/ with
the solved surfaces, which every worker reads by reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from smscale import store
from smscale.block_plan import Block, Plan
from smscale.blocks import Task
from smscale.config import Recipe
from smscale.fusion.closure import CLOSED, Closure, ClosureError, errors, solve
from smscale.fusion.closure_sums import Sums, block_sums, merge
from smscale.grid import Grid
from smscale.pipeline.archives import read_arrays, write_arrays
from smscale.pipeline.layout import Layout
from smscale.pipeline.maps import model_map
from smscale.pipeline.prediction import Region
from smscale.pipeline.run import Run
from smscale.places import Place, place
from smscale.workspace import Workspace

#: Error of a retrieval where its weight does not say it, m3 m-3: what the SMAP mission set out to reach.
RETRIEVAL_ERROR = 0.04


@dataclass(frozen=True)
class Closing:
    """How a map is closed: small, the same for every block.

    model_error : m3 m-3, of the model at 36 km on samples that it was not fitted to
    weighted : whether the weights of the retrievals are 1 / error^2
    """

    root: str
    model: str
    coarse: Grid
    kind: Literal["exact", "weighted"]
    least: float
    model_error: float
    weighted: bool
    fingerprint: str

    @property
    def map(self) -> str:
        """The closed map."""
        return f"{model_map(self.model)}_closed"

    @property
    def folder(self) -> Place:
        return place(self.root) / "ledger" / "fuse"

    @classmethod
    def of(
        cls, recipe: Recipe, layout: Layout, root: Place, trained: Mapping[str, Any], fingerprint: str
    ) -> Closing | None:
        """That of a recipe, whose training report says how far the best model is off; None where it asks for none."""
        if recipe.closure == "none":
            return None
        best = trained["best"]
        error = next(row["rmse"] for row in trained["inner"] if row["model"] == best)
        least, weighted = recipe.match.min_valid_fraction, recipe.smap.quality == "weighted"
        return cls(str(root), best, layout.coarse, recipe.closure, least, float(error), weighted, fingerprint)

    def retrieved(self, steps: slice) -> tuple[np.ndarray, np.ndarray]:
        """(t, lat, lon) of the coarse grid: retrievals, NaN where there is none that holds, and their error variance."""
        cube = Workspace.at(self.root).cube
        values = store.read(cube, "coarse", "soil_moisture", (steps,)).astype(np.float64)
        weight = store.read(cube, "coarse", "weight", (steps,)).astype(np.float64)
        variance = 1 / np.where(weight > 0, weight, 1.0) if self.weighted else np.full(values.shape, RETRIEVAL_ERROR**2)
        return np.where(weight > 0, values, np.nan), variance

    def model_variance(self, retrieval: np.ndarray) -> float:
        """Error variance of the model alone, of the mean square of its misses, in which that of the retrievals is too.

        At least half of that mean square: retrievals said to be worse than they prove to be leave none for the model.
        """
        both = self.model_error**2
        return max(both - float(retrieval.mean()), both / 2) if retrieval.size else both

    def surface(self, steps: slice) -> Closure:
        """The solved closure of a slab of time."""
        return _surface(str(self.file(steps)), self.fingerprint)

    def file(self, steps: slice) -> Place:
        """Where that lies."""
        return self.folder / "closure" / f"{steps.start}.npz"


@lru_cache(maxsize=2)
def _surface(path: str, fingerprint: str) -> Closure:
    return Closure.from_arrays(read_arrays(place(path)))


def close(run: Run, layout: Layout, plan: Plan, closing: Closing) -> dict[str, Any]:
    """Sum the model's map over the coarse cells and solve every step; how many coarse cells are closed, and why not."""
    tasks = [
        Task(f"sums/{b.key}", sums_block, (closing, grid, b.region, b.key), closing.fingerprint, b.cells)
        for b, grid in layout.windows(plan.blocks)
    ]
    run.blocks("fuse", tasks, label="fuse (coarse means)")
    slabs = _by_slab(plan.blocks)
    solving = [
        Task(f"closure/{start}", solve_slab, (closing, steps, keys), closing.fingerprint)
        for start, (steps, keys) in slabs.items()
    ]
    counts: dict[str, int] = {}
    for found in run.blocks("fuse", solving, label="fuse (closure)").values():
        for name, count in found["counts"].items():
            counts[name] = counts.get(name, 0) + count
    return {"kind": closing.kind, "model_error": closing.model_error, "coarse_cells": counts}


def _by_slab(planned: Sequence[Block]) -> dict[int, tuple[slice, list[str]]]:
    """First step -> steps and keys of the blocks that share them."""
    slabs: dict[int, tuple[slice, list[str]]] = {}
    for block in planned:
        slabs.setdefault(block.steps.start, (block.steps, []))[1].append(block.key)
    return slabs


def sums_block(closing: Closing, grid: Grid, region: Region, key: str) -> dict[str, Any]:
    """Coarse sums of the model's map on a block, kept beside the ledger."""
    field = store.read(Workspace.at(closing.root).maps_path, "", model_map(closing.model), region)
    sums = block_sums(field, grid, closing.coarse, region[0].start)
    write_arrays(closing.folder / "sums" / f"{key}.npz", sums.to_arrays())
    return {"valid": int(np.count_nonzero(np.isfinite(field)))}


def solve_slab(closing: Closing, steps: slice, keys: Sequence[str]) -> dict[str, Any]:
    """Solve the closure of some steps from the sums of their blocks."""
    sums = _merged(closing, "sums", keys)
    retrieved, variance = closing.retrieved(steps)
    closure = solve(
        sums,
        retrieved,
        closing.coarse,
        closing.kind,
        model_variance=closing.model_variance(variance[np.isfinite(retrieved)]),
        smap_variance=variance,
        least=closing.least,
    )
    write_arrays(closing.file(steps), closure.to_arrays())
    return {"counts": {name: int(n) for name, n in closure.counts().items()}}


def keep_means(closing: Closing, grid: Grid, region: Region, key: str, fields: Mapping[str, np.ndarray]) -> None:
    """Coarse means of the closed and the fused map on a block, for `agreement`."""
    kept: dict[str, np.ndarray] = {}
    for name, field in fields.items():
        sums = block_sums(field, grid, closing.coarse, region[0].start, spline=False)
        kept |= {f"{name}/{part}": array for part, array in sums.to_arrays().items()}
    write_arrays(closing.folder / "sums" / f"after-{key}.npz", kept)


def agreement(run: Run, plan: Plan, closing: Closing, names: Sequence[str]) -> dict[str, Any]:
    """How far coarse means of the maps are from the retrievals, m3 m-3, on the cells that were closed.

    `model` and each of `names` against the retrievals; `aim`: the closed map against the means that it should have, where the
    limit of the correction did not stop it.
    """
    slabs = _by_slab(plan.blocks)
    tasks = [
        Task(f"agreement/{start}", agreement_slab, (closing, steps, keys, list(names)), closing.fingerprint)
        for start, (steps, keys) in slabs.items()
    ]
    total: dict[str, ClosureError] = {}
    for found in run.blocks("fuse", tasks, label="fuse (agreement)").values():
        for name, parts in found.items():
            error = ClosureError(*parts)
            total[name] = total[name] + error if name in total else error
    return {name: error.report() for name, error in total.items()}


def agreement_slab(closing: Closing, steps: slice, keys: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Of some steps, as sums that add up."""
    model, closure = _merged(closing, "sums", keys), closing.surface(steps)
    retrieved, _ = closing.retrieved(steps)
    found = {"model": errors(model, retrieved, closure.closed)}
    for name in names:
        sums = _merged(closing, "sums", [f"after-{key}" for key in keys], f"{name}/")
        found[name] = errors(sums, retrieved, closure.closed)
        if name == closing.map:
            found["aim"] = errors(sums, closure.target(model), closure.state == CLOSED)
    return {name: [int(e.n), float(e.total), float(e.squares), float(e.largest)] for name, e in found.items()}


def _merged(closing: Closing, folder: str, keys: Sequence[str], prefix: str = "") -> Sums:
    """Sums of blocks, put together over the coarse grid."""

    def parts() -> Any:
        for key in keys:
            arrays = read_arrays(closing.folder / folder / f"{key}.npz")
            yield Sums.from_arrays({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})

    return merge(parts(), closing.coarse)
