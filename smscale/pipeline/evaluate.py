"""evaluate: every map against held-out stations and, for a nature run, against the 1 km truth; figures and the report."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

import smscale
from smscale import store
from smscale.blocks import Task
from smscale.errors import RecipeError
from smscale.evaluate import finalise_scores, merge_sums, score_sums, score_table, write_report
from smscale.grid import Grid
from smscale.pipeline.fuse import fusion_names, has_stations, hold_out, observed_at_steps, series_at
from smscale.pipeline.layout import Layout
from smscale.pipeline.run import Run
from smscale.workspace import Workspace

#: Libraries whose versions decide the numbers.
LIBRARIES = (
    "numpy",
    "scipy",
    "numba",
    "pandas",
    "xarray",
    "zarr",
    "dask",
    "scikit-learn",
    "xgboost",
    "torch",
    "pytorch-lightning",
)
SCORES = ["rmse", "mae", "cc", "bias", "ubrmse", "n"]


def evaluate(run: Run, layout: Layout, truth: Path | None) -> dict[str, Any]:
    """Score, draw and write report/index.html and report/metrics.json."""
    recipe = run.recipe
    fingerprint = store.fingerprint(
        "evaluate",
        1,
        run.upstream("fuse"),
        recipe.part("fusion", "seed", "name", "title", "assumed"),
        truth is not None,
    )

    def work() -> dict[str, Any]:
        reports = {stage: run.report(stage) for stage in ("ingest", "match", "train", "downscale", "fuse")}
        table = station_table(run, layout, reports["fuse"]) if has_stations(run.workspace) else None
        against_truth = truth_scores(run, layout, truth, reports["fuse"]) if truth is not None else None
        metrics = _metrics(run, reports, table, against_truth)
        _write(run, layout, reports, metrics, table, truth)
        return {
            "scores": _records(metrics["stations"]["held_out"]) if "stations" in metrics else [],
            "truth": _records(metrics["truth"]["own_cells"]) if "truth" in metrics else [],
            "final": reports["fuse"]["final"],
        }

    return run.stage("evaluate", fingerprint, lambda: None, work)


def map_names(run: Run, fused: bool) -> dict[str, str]:
    """Source -> array name of every map."""
    names = {model: f"soil_moisture_{model}" for model in run.recipe.models}
    return names | ({name: name for name in fusion_names(run.recipe.fusion)} if fused else {})


# -- against stations ---------------------------------------------------------------------------


def station_table(run: Run, layout: Layout, fused: Mapping[str, Any]) -> pd.DataFrame:
    """One row per station and step with an observation: stations, smap and every map; which rows were held out."""
    workspace, recipe = run.workspace, run.recipe
    names = map_names(run, bool(fused["stations"]))
    observed = observed_at_steps(workspace, layout.steps, recipe.fusion.tolerance_hours)
    held = hold_out(observed, recipe.fusion, recipe.seed)
    series = series_at(run, layout, "evaluate", list(names.values()), run.upstream("fuse"))
    stations = workspace.stations
    coarse = workspace.coarse[["soil_moisture", "weight"]].load()
    retrieved = coarse["soil_moisture"].where(coarse["weight"] > 0).transpose("time", "lat", "lon").values
    row, col = layout.coarse.index(stations["lon"].values, stations["lat"].values)
    smap = np.where(row >= 0, retrieved[:, np.maximum(row, 0), np.maximum(col, 0)], np.nan).T
    n, t = observed.shape
    columns = {
        "station": np.repeat(stations["station"].values, t),
        "time": np.tile(layout.steps["time"].values, n),
        "local_date": np.tile(layout.steps["local_date"].values, n),
        "overpass": np.tile(layout.steps["overpass"].values, n),
        "held_out": held.ravel(),
        "stations": observed.ravel(),
        "smap": smap.ravel(),
        **{source: series[name].ravel() for source, name in names.items()},
    }
    table = pd.DataFrame(columns)
    return table[np.isfinite(table["stations"])].reset_index(drop=True)


# -- against the truth --------------------------------------------------------------------------


def truth_scores(run: Run, layout: Layout, truth: Path, fused: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Scores of SMAP and every map against the 1 km truth: on each one's own cells, and on the cells that all share."""
    names = map_names(run, bool(fused["stations"]))
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


def truth_window(truth: Path, layout: Layout) -> tuple[int, int, int]:
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
    workspace, slab = Workspace(Path(root)), region[0]
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


# -- metrics ------------------------------------------------------------------------------------


def _metrics(
    run: Run, reports: Mapping[str, Any], table: pd.DataFrame | None, truth: Mapping[str, pd.DataFrame] | None
) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "name": run.recipe.name,
        "models": {
            k: reports["train"][k] for k in ("rows", "validation", "training", "inner", "splits", "best", "chosen")
        },
        "fusion": {k: v for k, v in reports["fuse"].items() if k != "status"},
        "samples": reports["match"]["flow"],
        "data": reports["ingest"],
        "status": {**reports["downscale"]["status"], **reports["fuse"].get("status", {})},
    }
    if table is not None and len(table):
        sources = [
            c for c in table.columns if c not in ("station", "time", "local_date", "overpass", "held_out", "stations")
        ]
        unseen = table[table["held_out"]]
        metrics["stations"] = {
            "held_out": score_table(unseen, "stations", sources),
            "held_out_shared": score_table(unseen, "stations", sources, common=True),
            "all": score_table(table, "stations", sources),
        }
    if truth is not None:
        metrics["truth"] = dict(truth)
    return metrics


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


# -- report -------------------------------------------------------------------------------------


def _write(
    run: Run,
    layout: Layout,
    reports: Mapping[str, Any],
    metrics: Mapping[str, Any],
    table: pd.DataFrame | None,
    truth: Path | None,
) -> None:
    recipe, folder = run.recipe, run.workspace.report
    final = reports["fuse"]["final"]
    draw = _Drawing(run, layout, folder / "figures", reports, truth)
    figures = draw.all(table, metrics)
    write_report(
        folder,
        recipe.title or recipe.name,
        metrics,
        tables=_tables(metrics),
        figures=figures,
        data_notes=reports["ingest"]["problems"],
        provenance=_provenance(recipe),
        summary=_summary(run, layout, reports),
        headline=_headline(metrics, final),
        data_read=_data_read(reports["ingest"]),
        method=_method(recipe, reports),
        recipe=yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True),
    )


def _tables(metrics: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    tables: list[tuple[str, str, Any]] = []
    if "stations" in metrics:
        stations = metrics["stations"]
        tables.append(
            (
                "Held-out stations",
                "Each map at stations that were merged into none; n differs, because SMAP and clouds leave different gaps.",
                stations["held_out"],
            )
        )
        tables.append(
            (
                "Held-out stations, the same moments",
                "Only station values for which every map has a value: a fair comparison.",
                stations["held_out_shared"],
            )
        )
    if "truth" in metrics:
        tables.append(
            (
                "The 1 km truth of the nature run",
                "Each map on the cells where it has a value.",
                _short(metrics["truth"]["own_cells"]),
            )
        )
        tables.append(
            (
                "The 1 km truth, the same cells",
                "Only cells where SMAP and every map have a value.",
                _short(metrics["truth"]["shared_cells"]),
            )
        )
    models = metrics["models"]
    note = f"Rows that chose nothing ({models['rows']['validation']} of {sum(models['rows'].values())} samples)."
    tables.append(("Models at 36 km, validation", note, pd.DataFrame(models["validation"])))
    tables.append(
        (
            "Models at 36 km, inner folds",
            f"What the best model ({models['best']}) was chosen by.",
            pd.DataFrame(models["inner"]),
        )
    )
    if models["splits"]:
        tables.append(
            (
                "Models at 36 km, by split",
                "A random split leaks: neighbours and neighbouring days sit on both sides. Blocked splits say what a model knows of new places and times.",
                pd.DataFrame(models["splits"]),
            )
        )
    if metrics["fusion"].get("leave_one_out_rmse"):
        rows = [
            {"source": k.removeprefix("soil_moisture_"), "leave-one-station-out rmse": v}
            for k, v in metrics["fusion"]["leave_one_out_rmse"].items()
        ]
        tables.append(
            (
                "Fusion, leave one station out",
                "On the merged stations, where every way has an estimate; the least decides which map is final.",
                pd.DataFrame(rows),
            )
        )
    return tables


def _short(table: pd.DataFrame) -> pd.DataFrame:
    return table[["source", *SCORES, "sigma_ratio"]]


def _headline(metrics: Mapping[str, Any], final: str) -> dict[str, Any]:
    tiles: dict[str, Any] = {
        "best model": metrics["models"]["best"],
        "final map": final,
        "training samples": metrics["samples"]["samples"],
    }
    if "stations" in metrics:
        scores = metrics["stations"]["held_out"].set_index("source")["rmse"]
        tiles["RMSE at held-out stations, SMAP"] = _rounded(scores.get("smap"))
        tiles["RMSE at held-out stations, final"] = _rounded(scores.get(final.removeprefix("soil_moisture_")))
    if "truth" in metrics:
        scores = metrics["truth"]["shared_cells"].set_index("source")["rmse"]
        tiles["RMSE against 1 km truth, SMAP"] = _rounded(scores.get("smap"))
        tiles["RMSE against 1 km truth, final"] = _rounded(scores.get(final.removeprefix("soil_moisture_")))
    return tiles


def _rounded(value: Any) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.4f}"


def _summary(run: Run, layout: Layout, reports: Mapping[str, Any]) -> str:
    west, south, east, north = layout.grid.bounds
    rows, cols = layout.grid.shape
    return (
        f"{west:g}–{east:g}° E, {south:g}–{north:g}° N, {layout.period[0]} to {layout.period[1]}: {rows} × {cols} cells, "
        f"{layout.steps.sizes['time']} overpass steps. The best model on inner data is {reports['train']['best']}; "
        f"{reports['fuse']['stations']} stations, of which {reports['fuse'].get('held_out_stations', 0)} were held out."
    )


def _method(recipe: Any, reports: Mapping[str, Any]) -> dict[str, str]:
    fusion = recipe.fusion
    method = {
        "ingest": f"SMAP quality policy {recipe.smap.quality}, algorithm {', '.join(reports['ingest']['smap']['algorithm']) or 'unknown'}; MODIS quality {recipe.modis.quality}.",
        "match": f"Area-weighted upscaling to EASE-Grid 2.0 36 km; at least {recipe.match.min_valid_fraction:g} of a cell valid, {recipe.match.min_lst_valid_fraction:g} for LST; land cover classes {list(recipe.match.exclude_land_cover)} left out.",
        "train": f"{', '.join(recipe.models)} on {reports['train']['rows']['training']} samples; {recipe.split.validation} split, {recipe.split.fraction:g} for validation.",
        "downscale": "Every model on every 1 km cell; a cell without a value says why in its status.",
        "fuse": f"{', '.join(fusion.residuals)} × {', '.join(fusion.interpolators)}; {fusion.holdout:g} of the {fusion.holdout_unit}s held out.",
    }
    if recipe.assumed:
        method["assumed"] = "Not published by the paper, assumed here: " + "; ".join(recipe.assumed) + "."
    return method


def _provenance(recipe: Any) -> dict[str, Any]:
    return {
        "smscale": smscale.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "seed": recipe.seed,
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _data_read(ingest: Mapping[str, Any]) -> list[dict[str, Any]]:
    cadence = {"LST": "overpass", "VI": "sixteen_day", "ET": "eight_day", "LC": "land_cover", "DEM": "static"}
    rows = []
    for family, files in ingest["granules"].items():
        cover = ingest["coverage"].get(cadence.get(family, ""), {})
        share = f"{cover['valid'] / cover['cells']:.1%}" if cover.get("cells") else ""
        rows.append(
            {
                "product": family,
                "files": files,
                "valid 1 km cells": share,
                "cells without a tile": cover.get("cells_without_tile", ""),
            }
        )
    return rows


def _plain(recipe: Any) -> dict[str, Any]:
    import json

    values = recipe.part(*(f for f in recipe.__dataclass_fields__ if f != "path"))
    return json.loads(json.dumps(values))


class _Drawing:
    """The report's figures."""

    def __init__(self, run: Run, layout: Layout, folder: Path, reports: Mapping[str, Any], truth: Path | None) -> None:
        from smscale.evaluate import figures

        self.run, self.layout, self.folder, self.reports, self.truth = run, layout, folder, reports, truth
        self.draw = figures
        self.best = reports["train"]["best"]
        self.final = reports["fuse"]["final"]

    def all(self, table: pd.DataFrame | None, metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        """Draw everything that there are data for: (file, title, caption)."""
        figures = [
            self._maps(),
            self._mean_maps(),
            self._flow(),
            self._correlations(),
            self._importances(),
            *self._training(),
        ]
        if table is not None and len(table):
            figures += [
                self._boxes(table),
                self._pdfs(table),
                self._daily(table),
                self._scatter(table),
                self._bars(metrics),
            ]
        return figures

    def _maps(self) -> tuple[str, str, str]:
        step = self._best_covered_step()
        panels = self._panels(step)
        label = f"{str(panels['smap']['local_date'].values)[:10]} {panels['smap']['overpass'].values}"
        points = self._points(step)
        self.draw.maps(panels, self.folder / "maps.png", points=points, title=f"Soil moisture, {label}")
        return (
            "maps.png",
            f"Maps of {label}",
            "The step with the most LST. Grey: no value (its reason is in the map's status). Circles: stations.",
        )

    def _mean_maps(self) -> tuple[str, str, str]:
        maps = self.run.workspace.maps
        names = {self.best: f"soil_moisture_{self.best}", self.final.removeprefix("soil_moisture_"): self.final}
        panels = {"smap": self._retrievals().mean("time")} | {
            source: maps[name].mean("time") for source, name in names.items()
        }
        if self.truth is not None:
            panels["truth"] = self._truth().mean("time")
        self.draw.maps(
            {k: v.compute() for k, v in panels.items()},
            self.folder / "mean-maps.png",
            title="Mean soil moisture of the period",
        )
        return (
            "mean-maps.png",
            "Mean maps",
            "Mean over the steps at which each has a value: SMAP, the best model and the final map see different days.",
        )

    def _flow(self) -> tuple[str, str, str]:
        self.draw.sample_flow(
            self.reports["match"]["flow"], self.folder / "sample-flow.png", title="From retrievals to training samples"
        )
        return "sample-flow.png", "Sample flow", "Pairs of coarse cell and overpass step that each sieve leaves."

    def _correlations(self) -> tuple[str, str, str]:
        found = pd.DataFrame(self.reports["match"]["correlations"])
        self.draw.correlation_bars(
            found, self.folder / "correlations.png", title="Predictors and soil moisture at 36 km"
        )
        return (
            "correlations.png",
            "Correlations",
            "Pearson correlation of each predictor with SMAP soil moisture; black: p > 0.05.",
        )

    def _importances(self) -> tuple[str, str, str]:
        columns = {
            name: pd.Series(found["permutation"]) for name, found in self.reports["train"]["importances"].items()
        }
        table = pd.DataFrame(columns).astype(float)
        self.draw.importance_bars(
            table, self.folder / "importances.png", label="permutation importance", title="What the models lean on"
        )
        return "importances.png", "Importances", "Loss of skill on validation rows when one predictor is shuffled."

    def _training(self) -> list[tuple[str, str, str]]:
        panels = {}
        for model, traces in self.reports["train"]["traces"].items():
            for title, curves in traces.items():
                frame = pd.DataFrame({name: pd.Series(values, dtype=float) for name, values in curves.items()})
                frame.index.name, frame.attrs["label"] = TRACES.get(title, ("epoch", "mean square error"))
                panels[f"{self.draw.label_of(model)}: {title}"] = frame.dropna(axis=1, how="all")
        if not panels:
            return []
        self.draw.training_curves(panels, self.folder / "training.png", title="Training")
        return [("training.png", "Training", "Fitness of the genetic algorithm by generation, error by step or epoch.")]

    def _boxes(self, table: pd.DataFrame) -> tuple[str, str, str]:
        self.draw.box_plot(self._series(table), self.folder / "box.png", title="Distribution at the stations")
        return "box.png", "Distributions", "Values at all stations: whether a map keeps the dynamic range."

    def _pdfs(self, table: pd.DataFrame) -> tuple[str, str, str]:
        self.draw.pdf_curves(self._series(table), self.folder / "pdf.png", title="Probability density at the stations")
        return "pdf.png", "Probability density", "The same values as curves."

    def _daily(self, table: pd.DataFrame) -> tuple[str, str, str]:
        means = table.groupby("local_date")[list(self._series(table))].mean()
        self.draw.daily_curves(means, self.folder / "daily.png", title="Daily mean over the stations")
        return "daily.png", "Daily means", "Mean over the stations that have a value on the day."

    def _scatter(self, table: pd.DataFrame) -> tuple[str, str, str]:
        unseen = table[table["held_out"]] if table["held_out"].any() else table
        chosen = [c for c in ("smap", self.best, self.final.removeprefix("soil_moisture_")) if c in unseen]
        estimates = {c: unseen[c].to_numpy() for c in dict.fromkeys(chosen)}
        self.draw.scatter(
            unseen["stations"].to_numpy(), estimates, self.folder / "scatter.png", title="Held-out stations"
        )
        return "scatter.png", "Held-out stations", "Each estimate against stations that were merged into no map."

    def _bars(self, metrics: Mapping[str, Any]) -> tuple[str, str, str]:
        self.draw.score_bars(
            metrics["stations"]["held_out"], self.folder / "scores.png", title="Scores at held-out stations"
        )
        return "scores.png", "Scores", "At held-out stations, before and after fusion."

    def _series(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        return {
            c: table[c].to_numpy()
            for c in table.columns
            if c not in ("station", "time", "local_date", "overpass", "held_out")
        }

    def _retrievals(self) -> xr.DataArray:
        coarse = self.run.workspace.coarse[["soil_moisture", "weight"]].load()
        return coarse["soil_moisture"].where(coarse["weight"] > 0)

    def _truth(self) -> xr.DataArray:
        held = store.open_group(str(self.truth), "fine")["soil_moisture"]
        sizes = (self.layout.steps.sizes["time"], *self.layout.grid.shape)
        first = truth_window(Path(str(self.truth)), self.layout)
        return held[tuple(slice(start, start + size) for start, size in zip(first, sizes, strict=True))]

    def _best_covered_step(self) -> int:
        """The step at which both SMAP and the best model see most."""
        model = self.run.workspace.maps[f"soil_moisture_{self.best}"].notnull().mean(("lat", "lon")).values
        smap = self._retrievals().notnull().mean(("lat", "lon")).values
        return int(np.argmax(model * (smap + 1e-3)))

    def _panels(self, step: int) -> dict[str, xr.DataArray]:
        maps = self.run.workspace.maps.isel(time=step)
        panels = {"smap": self._retrievals().isel(time=step)}
        panels |= {m: maps[f"soil_moisture_{m}"].load() for m in self.run.recipe.models}
        panels |= {n: maps[n].load() for n in fusion_names(self.run.recipe.fusion) if n in maps}
        if self.truth is not None:
            panels["truth"] = self._truth().isel(time=step).load()
        return panels

    def _points(self, step: int) -> pd.DataFrame | None:
        if not has_stations(self.run.workspace):
            return None
        stations = self.run.workspace.stations
        observed = observed_at_steps(self.run.workspace, self.layout.steps, self.run.recipe.fusion.tolerance_hours)
        return pd.DataFrame({"lon": stations["lon"].values, "lat": stations["lat"].values, "value": observed[:, step]})


#: What counts along a training curve, and what it measures.
TRACES = {
    "genetic algorithm": ("generation", "fitness, 1 / SSE"),
    "Levenberg-Marquardt": ("step", "mean square error"),
    "epochs": ("epoch", "mean square error"),
}
