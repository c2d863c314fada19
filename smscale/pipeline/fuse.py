"""fuse: the best model's map closed to the coarse means where asked, and station residuals merged into it, four ways.

The residuals at the stations come from a small pass of their own, so the maps can be fused in the same pass that predicts
them (`ahead`). Alone, the stage reads the model's map again; the bytes are the same.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from smscale import blocks, store
from smscale.block_plan import Plan
from smscale.blocks import Task
from smscale.config import Fusion
from smscale.fusion.field import ResidualField
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.ladder import pooling_levels
from smscale.fusion.residuals import Difference, Ratio, Residual
from smscale.fusion.scoring import raw_and_debiased
from smscale.fusion.solve import solve_fusion, to_arrays
from smscale.pipeline.closing import Closing, agreement, close
from smscale.pipeline.layout import Layout
from smscale.pipeline.maps import map_template, model_map, status_of, totals
from smscale.pipeline.merging import Merging, merge_block
from smscale.pipeline.prediction import Prediction
from smscale.pipeline.provenance import provenance
from smscale.pipeline.run import Run, sealed
from smscale.pipeline.stations import (
    has_stations,
    hold_out,
    observed_at_steps,
    predicted_series,
    station_cells,
    station_names,
)
from smscale.workspace import remove

#: The paper's names: geographical difference and ratio analysis.
PREFIX = {"difference": "gda", "ratio": "gra"}
#: Every fused map that a recipe can ask for.
FUSED = tuple(f"{prefix}_{how}" for prefix in PREFIX.values() for how in ("kriging", "idw"))
#: Variance layers of fused maps.
VARIANCES = tuple(f"{name}_variance" for name in FUSED if name.endswith("kriging"))


def fuse(run: Run, layout: Layout, plan: Plan) -> dict[str, Any]:
    """Write the closed and the fused maps with their status; the report says how, and which is best by leave-one-station-out."""
    stage = Merge(run, layout, plan, run.upstream("downscale"))
    return run.stage("fuse", stage.fingerprint, stage.prepare, stage.finish)


def fusion_names(fusion: Fusion) -> list[str]:
    """Names of the fused maps, in the recipe's order."""
    return [f"{PREFIX[r]}_{i}" for r in fusion.residuals for i in fusion.interpolators]


def variance_names(fusion: Fusion) -> list[str]:
    """Names of their variance layers: of those by kriging."""
    return [f"{name}_variance" for name in fusion_names(fusion) if fusion.variance and name.endswith("kriging")]


def residual_of(kind: str, fusion: Fusion) -> Residual:
    """How a recipe compares stations and map."""
    return Difference() if kind == "difference" else Ratio(fusion.ratio_floor, fusion.ratio_cap)


@dataclass(frozen=True)
class Merge:
    """The stage fuse of one run.

    downscaled : fingerprint of the maps that it starts from, made or about to be made
    """

    run: Run
    layout: Layout
    plan: Plan
    downscaled: str

    @cached_property
    def best(self) -> str:
        return str(self.run.report("train")["best"])

    @cached_property
    def stations(self) -> bool:
        return has_stations(self.run.workspace)

    @cached_property
    def names(self) -> list[str]:
        """The fused maps that there will be."""
        return fusion_names(self.run.recipe.fusion) if self.stations else []

    @cached_property
    def fingerprint(self) -> str:
        settings = self.run.recipe.part("fusion", "closure", "bounds", "seed")
        return store.fingerprint("fuse", 2, self.downscaled, settings, self.best)

    @cached_property
    def closing(self) -> Closing | None:
        run = self.run
        return Closing.of(run.recipe, self.layout, run.workspace.root, run.report("train"), self.fingerprint)

    @property
    def background(self) -> str:
        """The map that stations are merged into."""
        return self.closing.map if self.closing else model_map(self.best)

    # -- the arrays ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Remove what another fusion left and lay out this one's arrays."""
        path, workspace = str(self.run.workspace.maps_path), self.run.workspace
        for name in ("status", "station_count", *self._ever()):
            store.remove(path, name)
        maps = [*([self.background] if self.closing else []), *self.names]
        notes = {n: f"soil moisture of {self.best} fused with stations, {n}" for n in self.names}
        notes[self.background] = f"soil moisture of {self.best}, its coarse means brought to the retrievals"
        variance = {
            name: {
                "long_name": f"kriging variance of the correction in {name.removesuffix('_variance')}",
                "units": "m6 m-6",
            }
            for name in (variance_names(self.run.recipe.fusion) if self.stations else ())
        }
        template = map_template(self.layout, maps, notes, variance, provenance(self.run.recipe, workspace))
        final = map_template(self.layout, [model_map("")], {model_map(""): ""})[status_of(model_map(""))]
        template["status"] = final.assign_attrs(long_name="why each cell of the final map is what it is")
        if self.stations:
            count = store.empty((self.layout.steps.sizes["time"],), np.int32, 0)
            template["station_count"] = ("time", count, {"long_name": "stations merged at the step", "units": "1"})
        store.create(path, "", template, self.layout.chunks, self.layout.shards)

    def _ever(self) -> list[str]:
        """Every array that a fusion with other settings may have left."""
        maps = [*FUSED, *(f"{model_map(model)}_closed" for model in self.run.recipe.models)]
        return [*maps, *(status_of(name) for name in maps), *VARIANCES]

    # -- the work -----------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Whatever is not done: coarse means, residuals, maps."""
        solved = self.solve()
        tasks = [
            Task(b.key, merge_block, (self.merging(solved), grid, b.region), self.fingerprint, b.cells)
            for b, grid in self.layout.windows(self.plan.blocks)
        ]
        results = self.run.blocks("fuse", tasks, in_memory=False)
        if self.closing is not None:
            means = dict.fromkeys([self.background, solved["final"]])
            solved["closure"]["coarse_mean_errors"] = agreement(self.run, self.plan, self.closing, list(means))
        store.publish(str(self.run.workspace.maps_path), "")
        maps = [*([self.background] if self.closing else []), *self.names]
        report = solved | {"status": totals(results.values(), [name.removeprefix("soil_moisture_") for name in maps])}
        remove(self.run.workspace.root / "ledger" / "fuse" / "sums")
        kept = [name for name in ("residuals.npz", "closure") if (self._folder / name).exists()]
        return report | {"files": sealed(self.run.workspace, "maps.zarr", *(f"ledger/fuse/{name}" for name in kept))}

    def solve(self) -> dict[str, Any]:
        """Pass one: the closure, then every step's residual system; kept where every worker reads it."""
        self.run.workspace.ledger("fuse").keep_only(self._keys())
        self._forget_lost()
        closed = close(self.run, self.layout, self.plan, self.closing) if self.closing else None
        facts = self._residuals() if self.stations else self._nothing()
        return facts | ({"closure": closed} if closed else {})

    def _forget_lost(self) -> None:
        """Records of what was solved do not hold where its file was removed."""
        ledger = self.run.workspace.ledger("fuse")
        if not (self._folder / "residuals.npz").is_file():
            ledger.forget("solve")
        if self.closing is not None and not all(self.closing.file(steps).is_file() for steps in self.plan.slabs):
            ledger.forget("closure/")
            ledger.forget("sums/")

    def _keys(self) -> set[str]:
        """Keys of every task of the stage under this plan."""
        blocks = [prefix + b.key for prefix in ("", "stations/", "sums/") for b in self.plan.blocks]
        slabs = [f"{prefix}/{steps.start}" for prefix in ("closure", "agreement") for steps in self.plan.slabs]
        return {"solve", *blocks, *slabs}

    def merging(self, solved: Mapping[str, Any]) -> Merging:
        """What the blocks are told."""
        fusion = self.run.recipe.fusion
        return Merging(
            str(self.run.workspace.root),
            self.best,
            tuple(self.names),
            fusion.variance,
            self.run.recipe.bounds,
            self.fingerprint,
            str(solved["final"]),
            self.closing,
        )

    @property
    def _folder(self) -> Path:
        return self.run.workspace.root / "ledger" / "fuse"

    def _nothing(self) -> dict[str, Any]:
        why = "no station has values in the region and period"
        return {"background": self.best, "stations": 0, "final": self.background, "why": why}

    def _residuals(self) -> dict[str, Any]:
        series = predicted_series(
            self.run, self.layout, self.plan.blocks, Prediction.of(self.run), self.best, self.fingerprint
        )
        task = Task("solve", self._solve, (series,), self.fingerprint)
        return dict(self.run.here("fuse", [task], "fuse (residuals)")["solve"])

    def _solve(self, predicted: np.ndarray) -> dict[str, Any]:
        recipe, workspace, steps = self.run.recipe, self.run.workspace, self.layout.steps
        fusion, stations = recipe.fusion, workspace.stations
        background = self._closed(predicted)
        observed = observed_at_steps(workspace, steps, fusion.tolerance_hours)
        held = hold_out(observed, station_names(workspace), fusion, recipe.seed)
        merged = np.where(held, np.nan, observed)
        coords = np.column_stack([stations["lon"].values, stations["lat"].values]).astype(np.float64)
        groups = pooling_levels(steps["time"].values, steps["overpass"].values, fusion.pooling)
        fields = {
            f"{PREFIX[kind]}_{how}": solve_fusion(
                coords,
                merged,
                background,
                residual_of(kind, fusion),
                _interpolator(how, fusion),
                fusion.systematic,
                groups,
                fusion.taper_km,
            )
            for kind in fusion.residuals
            for how in fusion.interpolators
        }
        _keep(self._folder / "residuals.npz", fields)
        first = next(iter(fields.values()))
        whole = (slice(0, steps.sizes["time"]),)
        count = store.write(workspace.maps_path, "", "station_count", whole, first.counts.astype(np.int32))
        row, _ = station_cells(workspace, self.layout.grid)
        return {
            "written": [count],
            "background": self.best,
            "stations": len(coords),
            "stations_outside_grid": int((row < 0).sum()),
            "held_out_stations": int(held.all(axis=1).sum()),
            "held_out": [str(s) for s in stations["station"].values[held.all(axis=1)]],
            "reporting_per_step": float(first.counts.mean()),
            "fields": {name: field.to_dict() for name, field in fields.items()},
            **_compared(fields, background, merged, recipe.bounds, self.background),
        }

    def _closed(self, predicted: np.ndarray) -> np.ndarray:
        """(station, time) the map that is fused, at the stations' cells."""
        background = predicted.astype(np.float64)
        if self.closing is None:
            return background
        stations = self.run.workspace.stations
        for steps in self.plan.slabs:
            surface = self.closing.surface(steps)
            there = surface.points(self.layout.grid, stations["lon"].values, stations["lat"].values)
            background[:, steps] = np.clip(background[:, steps] + there.T, *self.run.recipe.bounds)
        return background


def ahead(run: Run, layout: Layout, plan: Plan, downscaled: str) -> Merge | None:
    """The fusion, laid out, where the pass that predicts the maps can fuse them as it goes.

    None where the stage is not wanted in this run, or where there is nothing to merge, or where a closure must first see the
    whole map.
    """
    if "fuse" not in run.wanted or run.recipe.closure != "none":
        return None
    merge = Merge(run, layout, plan, downscaled)
    if not merge.stations:
        return None
    run.begin("fuse", merge.fingerprint, merge.prepare)
    return merge


def _interpolator(how: str, fusion: Fusion) -> Kriging | InverseDistance:
    if how == "idw":
        return InverseDistance(fusion.idw_neighbours, fusion.idw_power)
    return Kriging(fusion.variogram, fusion.neighbours, fusion.exact, negative_weights=fusion.negative_weights)


def _compared(
    fields: Mapping[str, ResidualField],
    background: np.ndarray,
    merged: np.ndarray,
    bounds: tuple[float, float],
    unfused: str,
) -> dict[str, Any]:
    """Leave-one-station-out scores of each way, and of the map that it starts from, on the merged stations.

    The least RMSE decides which map is final: one that fusion makes worse stays as it is.
    """
    estimates = {unfused: background}
    for name, field in fields.items():
        estimates[name] = np.clip(field.residual.apply(background, field.leave_one_out()), *bounds)
    shared = np.logical_and.reduce([np.isfinite(e) for e in estimates.values()]) & np.isfinite(merged)
    scores = raw_and_debiased(merged, estimates) if shared.any() else {}
    errors = {name: float(found["rmse"]) for name, found in scores.get("raw", {}).items()}
    return {
        "leave_one_out": scores,
        "leave_one_out_rmse": errors,
        "leave_one_out_pairs": int(shared.sum()),
        "steps_by_method": {name: field.steps_by_method() for name, field in fields.items()},
        "final": min(errors, key=lambda n: errors[n]) if errors else unfused,
    }


def _keep(path: Path, fields: Mapping[str, ResidualField]) -> None:
    arrays = {f"{name}/{part}": array for name, field in fields.items() for part, array in to_arrays(field).items()}
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    blocks.write_bytes(path, content.getvalue())
