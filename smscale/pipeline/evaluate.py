"""evaluate: every map against held-out stations and, for a nature run, against the 1 km truth; figures and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from smscale import store
from smscale.evaluate import score_table
from smscale.pipeline.fuse import fusion_names, has_stations, hold_out, observed_at_steps, series_at, station_names
from smscale.pipeline.layout import Layout
from smscale.pipeline.page import write_page
from smscale.pipeline.plain import records
from smscale.pipeline.run import Run
from smscale.pipeline.truth import truth_scores


def evaluate(run: Run, layout: Layout, truth: Path | None) -> dict[str, Any]:
    """Score, draw and write report/index.html and report/metrics.json."""
    recipe = run.recipe
    fingerprint = store.fingerprint(
        "evaluate",
        1,
        run.upstream("fuse"),
        run.report("ingest").get("problems"),
        recipe.part("fusion", "seed", "name", "title", "assumed"),
        truth is not None,
    )

    def work() -> dict[str, Any]:
        reports = {stage: run.report(stage) for stage in ("ingest", "match", "train", "downscale", "fuse")}
        table = station_table(run, layout, reports["fuse"]) if has_stations(run.workspace) else None
        against_truth = (
            truth_scores(run, layout, truth, map_names(run, bool(reports["fuse"]["stations"])))
            if truth is not None
            else None
        )
        metrics = _metrics(run, reports, table, against_truth)
        write_page(run, layout, reports, metrics, table, truth)
        return {
            "scores": records(metrics["stations"]["held_out"]) if "stations" in metrics else [],
            "truth": records(metrics["truth"]["own_cells"]) if "truth" in metrics else [],
            "final": reports["fuse"]["final"],
        }

    return run.stage("evaluate", fingerprint, lambda: None, work)


def map_names(run: Run, fused: bool) -> dict[str, str]:
    """Source -> array name of every map."""
    names = {model: f"soil_moisture_{model}" for model in run.recipe.models}
    return names | ({name: name for name in fusion_names(run.recipe.fusion)} if fused else {})


def station_table(run: Run, layout: Layout, fused: Mapping[str, Any]) -> pd.DataFrame:
    """One row per station and step with an observation: stations, smap and every map; which rows were held out."""
    workspace, recipe = run.workspace, run.recipe
    names = map_names(run, bool(fused["stations"]))
    observed = observed_at_steps(workspace, layout.steps, recipe.fusion.tolerance_hours)
    held = hold_out(observed, station_names(run.workspace), recipe.fusion, recipe.seed)
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


def _metrics(
    run: Run, reports: Mapping[str, Any], table: pd.DataFrame | None, truth: Mapping[str, pd.DataFrame] | None
) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "name": run.recipe.name,
        "models": {
            k: reports["train"][k]
            for k in ("rows", "validation", "training", "inner", "splits", "gap", "best", "chosen", "blocks")
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
