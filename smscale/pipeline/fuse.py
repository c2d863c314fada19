"""fuse: the best model's map closed to the coarse means where asked, and station residuals merged into it, four ways.

The residuals at the stations come from a small pass of their own, so the maps can be fused in the same pass that predicts
them (`ahead`). Alone, the stage reads the model's map again; the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from smscale import store
from smscale.block_plan import Plan
from smscale.blocks import Task
from smscale.config import Fusion
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.ladder import pooling_levels
from smscale.fusion.residuals import Difference, Ratio, Residual
from smscale.fusion.scoring import raw_and_debiased
from smscale.fusion.solve import pose
from smscale.pipeline.closing import Closing, agreement, close
from smscale.pipeline.layout import Layout
from smscale.pipeline.maps import map_template, model_map, status_of, totals
from smscale.pipeline.merging import Merging, merge_block
from smscale.pipeline.prediction import Prediction
from smscale.pipeline.provenance import provenance
from smscale.pipeline.run import Run, sealed
from smscale.pipeline.solved import files, folder, keep_posed, left_out, slabs, solve_slab
from smscale.pipeline.stations import (
    has_stations,
    hold_out,
    observed_at_steps,
    predicted_series,
    station_cells,
    station_names,
)
from smscale.places import Place
from smscale.workspace import remove

#: The paper's names: geographical difference and ratio analysis.
PREFIX = {"difference": "gda", "ratio": "gra"}
#: Every fused map that a recipe can ask for.
FUSED = tuple(f"{prefix}_{how}" for prefix in PREFIX.values() for how in ("kriging", "idw"))
#: Variance layers of fused maps.
VARIANCES = tuple(f"{name}_variance" for name in FUSED if name.endswith("kriging"))
#: What a variance layer says of itself, without and with a spatial bias.
VARIANCE_COMMENT = (
    "missing at steps that are not by kriging",
    "of the spatial bias and of the anomalies together; missing where either is not by kriging",
)


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
        return store.fingerprint("fuse", 3, self.downscaled, settings, self.best)

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
        run, workspace = self.run, self.run.workspace
        path = str(workspace.maps_path)
        for name in ("status", "station_count", *self._ever()):
            store.remove(path, name)
        maps = [*([self.background] if self.closing else []), *self.names]
        notes = {n: f"soil moisture of {self.best} fused with stations, {n}" for n in self.names}
        notes[self.background] = f"soil moisture of {self.best}, its coarse means brought to the retrievals"
        variance = {
            name: {
                "long_name": f"kriging variance of the correction in {name.removesuffix('_variance')}",
                "units": "m6 m-6",
                "comment": VARIANCE_COMMENT[run.recipe.fusion.systematic == "spatial-bias"],
            }
            for name in (variance_names(run.recipe.fusion) if self.stations else ())
        }
        template = map_template(self.layout, maps, notes, variance, provenance(run.recipe, workspace))
        for name in self.names if run.recipe.fusion.variance else ():
            if name.endswith("idw"):
                template[name].attrs["comment"] = "no variance: inverse distance weighting states none"
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
        workspace = self.run.workspace
        solved = self.solve()
        tasks = [
            Task(b.key, merge_block, (self.merging(solved), grid, b.region), self.fingerprint, b.cells)
            for b, grid in self.layout.windows(self.plan.blocks)
        ]
        results = self.run.blocks("fuse", tasks, in_memory=False)
        if self.closing is not None:
            means = dict.fromkeys([self.background, solved["final"]])
            solved["closure"]["coarse_mean_errors"] = agreement(self.run, self.plan, self.closing, list(means))
        store.publish(str(workspace.maps_path), "")
        maps = [*([self.background] if self.closing else []), *self.names]
        report = solved | {"status": totals(results.values(), [name.removeprefix("soil_moisture_") for name in maps])}
        remove(workspace.root / "ledger" / "fuse" / "sums")
        kept = [name for name in ("fields", "closure") if (self._folder / name).exists()]
        parts = (workspace.maps_path.name, *(f"ledger/fuse/{name}" for name in kept))
        return report | {"files": sealed(workspace, *parts)}

    def solve(self) -> dict[str, Any]:
        """Pass one: the closure, then every step's residual system, slab by slab; kept where every worker reads its own."""
        self.run.workspace.ledger("fuse").keep_only(self._keys())
        self._forget_lost()
        closed = close(self.run, self.layout, self.plan, self.closing) if self.closing else None
        facts = self._residuals() if self.stations else self._nothing()
        return facts | ({"closure": closed} if closed else {})

    def _forget_lost(self) -> None:
        """Records of what was solved do not hold where its file was removed."""
        ledger, root = self.run.workspace.ledger("fuse"), self.run.workspace.root
        if not set(files(root, self.names, self._steps)) <= set(folder(root).rglob("*.npz")):
            ledger.forget("pose")
            ledger.forget("solve")
        if self.closing is not None and not all(self.closing.file(steps).is_file() for steps in self.plan.slabs):
            ledger.forget("closure/")
            ledger.forget("sums/")

    def _keys(self) -> set[str]:
        """Keys of every task of the stage under this plan."""
        blocks = [prefix + b.key for prefix in ("", "stations/", "sums/") for b in self.plan.blocks]
        closing = [f"{prefix}/{steps.start}" for prefix in ("closure", "agreement") for steps in self.plan.slabs]
        solved = [f"solve/{name}/{start}" for name in self.names for start in self._starts]
        return {"pose", "solve", *solved, *blocks, *closing}

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
    def _folder(self) -> Place:
        return self.run.workspace.root / "ledger" / "fuse"

    def _nothing(self) -> dict[str, Any]:
        why = "no station has values in the region and period"
        return {"background": self.best, "stations": 0, "final": self.background, "why": why}

    @property
    def _steps(self) -> int:
        return int(self.layout.steps.sizes["time"])

    def _residuals(self) -> dict[str, Any]:
        def here(key: str, call: Any, *args: Any, label: str) -> Any:
            return self.run.here("fuse", [Task(key, call, args, self.fingerprint)], label)[key]

        posed, root = here("pose", self._pose, label="fuse (stations)"), str(self.run.workspace.root)
        tasks = [
            Task(f"solve/{name}/{start}", solve_slab, (root, name, start, self.fingerprint), self.fingerprint)
            for name in self.names
            for start in self._starts
        ]
        told = self.run.blocks("fuse", tasks, label="fuse (residuals)")
        return dict(here("solve", self._solved, posed, told, label="fuse (scores)"))

    @property
    def _starts(self) -> list[int]:
        """First steps of the slabs that are solved together."""
        return [steps.start for steps in slabs(self._steps)]

    def _pose(self) -> dict[str, Any]:
        """What all steps share, fitted to all of them, way by way."""
        fusion, stations, steps = self.run.recipe.fusion, self.run.workspace.stations, self.layout.steps
        background, observed, held = self._at_stations()
        merged = np.where(held, np.nan, observed)
        unseen = _held_unseen(held, observed, background)
        coords = np.column_stack([stations["lon"].values, stations["lat"].values]).astype(np.float64)
        groups = pooling_levels(steps["time"].values, steps["overpass"].values, fusion.pooling)
        facts = {}
        for name, (kind, how) in self._ways():
            posed = pose(
                coords,
                merged,
                background,
                residual_of(kind, fusion),
                _interpolator(how, fusion),
                fusion.systematic,
                groups,
                fusion.taper_km,
            )
            keep_posed(self.run.workspace.root, name, posed)
            told = posed.to_dict()
            facts[name] = told | {"left_out": {what: n - unseen.get(what, 0) for what, n in told["left_out"].items()}}
        return facts

    def _ways(self) -> Iterator[tuple[str, tuple[str, str]]]:
        """Each fused map: how it compares stations with the map, and how it spreads that."""
        fusion = self.run.recipe.fusion
        pairs = [(kind, how) for kind in fusion.residuals for how in fusion.interpolators]
        return zip(fusion_names(fusion), pairs, strict=True)

    def _at_stations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(station, time) each: the map that is fused, what stations measured, and what of that is held out."""
        run, fusion = self.run, self.run.recipe.fusion
        series = predicted_series(run, self.layout, self.plan.blocks, Prediction.of(run), self.best, self.fingerprint)
        observed = observed_at_steps(run.workspace, self.layout.steps, fusion.tolerance_hours)
        return self._closed(series), observed, hold_out(observed, station_names(run.workspace), fusion, run.recipe.seed)

    def _solved(self, posed: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
        """What the slabs say together, and the scores of leaving one station out."""
        workspace, stations = self.run.workspace, self.run.workspace.stations
        background, observed, held = self._at_stations()
        observed[held] = np.nan
        row = station_cells(workspace, self.layout.grid)[0]
        ways = {name: [told[f"solve/{name}/{start}"] for start in self._starts] for name in self.names}
        counts = np.concatenate([slab["counts"] for slab in ways[self.names[0]]]).astype(np.int32)
        count = store.write(workspace.maps_path, "", "station_count", (slice(0, counts.size),), counts)
        left_out = _LeftOut(self, background.astype(np.float32))
        return {
            "written": [count],
            "background": self.best,
            "stations": row.size,
            "stations_outside_grid": int((row < 0).sum()),
            "held_out_stations": int(held.all(axis=1).sum()),
            "held_out": [str(s) for s in stations["station"].values[held.all(axis=1)]],
            "reporting_per_step": float(counts.mean()),
            "fields": {name: _described(parts, posed[name]) for name, parts in ways.items()},
            **_scores(left_out, observed, self.background),
            "steps_by_method": {name: _summed(parts, "steps") for name, parts in ways.items()},
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


def _held_unseen(held: np.ndarray, observed: np.ndarray, background: np.ndarray) -> dict[str, int]:
    """Stations that were merged nowhere for no other reason than to be held out: they are not silent."""
    whole, seen = held.all(axis=1), np.isfinite(observed)
    return {
        "stations_silent": int((whole & seen.any(axis=1)).sum()),
        "stations_never_compared": int((whole & (seen & np.isfinite(background)).any(axis=1)).sum()),
    }


class _LeftOut(Mapping[str, np.ndarray]):
    """The map that is fused, and what each way makes of it at every station from the others; (station, time), read when asked for."""

    def __init__(self, merge: Merge, background: np.ndarray) -> None:
        self._merge, self._background = merge, background
        self._ways = dict(merge._ways())

    def __getitem__(self, name: str) -> np.ndarray:
        if name == self._merge.background:
            return self._background
        kind, _ = self._ways[name]
        recipe = self._merge.run.recipe
        found = left_out(self._merge.run.workspace.root, name, self._background.shape[1])
        residual = residual_of(kind, recipe.fusion)
        estimate: np.ndarray = np.clip(residual.apply(self._background, found), *recipe.bounds)
        return estimate

    def __iter__(self) -> Iterator[str]:
        return iter([self._merge.background, *self._ways])

    def __len__(self) -> int:
        return 1 + len(self._ways)


def _scores(estimates: Mapping[str, np.ndarray], merged: np.ndarray, unfused: str) -> dict[str, Any]:
    """Leave-one-station-out scores of each way, and of the map that it starts from, on the merged stations.

    The least RMSE decides which map is final: one that fusion makes worse stays as it is.
    """
    scores = raw_and_debiased(merged, estimates)
    pairs = int(scores["raw"][unfused]["n"])
    errors = {name: float(found["rmse"]) for name, found in scores["raw"].items()} if pairs else {}
    return {
        "leave_one_out": scores if pairs else {},
        "leave_one_out_rmse": errors,
        "leave_one_out_pairs": pairs,
        "final": min(errors, key=lambda n: errors[n]) if errors else unfused,
    }


def _described(told: Sequence[Mapping[str, Any]], posed: Mapping[str, Any]) -> dict[str, Any]:
    """A way's field in the report: what its slabs say, and what was fitted before."""
    return {
        "steps": _summed(told, "steps"),
        "interpolators": sorted({name for slab in told for name in slab["interpolators"]}),
        **posed,
        "standardised": _summed(told, "standardised"),
    }


def _summed(told: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {key: sum(slab[name][key] for slab in told) for key in told[0][name]}
