"""evaluate: every map against held-out stations and, for a nature run, against the 1 km truth; figures and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from smscale import store
from smscale.block_plan import Plan
from smscale.pipeline.fusion_scores import (
    AtStations,
    Findings,
    at_stations,
    before_and_after,
    calibration,
    held_out_scores,
    left_out,
    map_names,
    side_by_side,
    station_scores,
)
from smscale.pipeline.layout import Layout
from smscale.pipeline.page import write_page
from smscale.pipeline.plain import records
from smscale.pipeline.run import Run
from smscale.pipeline.solved import SolvedFields
from smscale.pipeline.stations import has_stations
from smscale.pipeline.truth import truth_scores
from smscale.places import Place


def evaluate(run: Run, layout: Layout, plan: Plan, truth: Place | None) -> dict[str, Any]:
    """Score, draw and write report/index.html and report/metrics.json."""
    recipe = run.recipe
    fingerprint = store.fingerprint(
        "evaluate",
        3,
        run.upstream("fuse"),
        run.report("ingest").get("problems"),
        recipe.part("fusion", "closure", "seed", "name", "title", "assumed"),
        truth is not None,
    )

    def work() -> dict[str, Any]:
        reports = {stage: run.report(stage) for stage in ("ingest", "match", "train", "downscale", "fuse")}
        found = _find(run, layout, plan, reports["fuse"])
        against_truth = truth_scores(run, layout, truth, map_names(run, reports["fuse"])) if truth is not None else None
        metrics = _metrics(run, reports, found, against_truth)
        with run.workspace.report_to_write() as folder:
            write_page(run, layout, reports, metrics, found, truth, folder)
        return {
            "scores": records(metrics["stations"]["held_out"]) if "stations" in metrics else [],
            "truth": records(metrics["truth"]["own_cells"]) if "truth" in metrics else [],
            "final": reports["fuse"]["final"],
        }

    return run.stage("evaluate", fingerprint, lambda: None, work)


def _find(run: Run, layout: Layout, plan: Plan, fused: Mapping[str, Any]) -> Findings | None:
    """Stations and what maps say there; None without stations, or without any value at an overpass."""
    if not has_stations(run.workspace):
        return None
    at = at_stations(run, layout, plan, fused)
    table = station_table(at, layout)
    return (
        Findings(at, table, SolvedFields(run.workspace.root, at.fused, layout.steps.sizes["time"]))
        if len(table)
        else None
    )


def station_table(at: AtStations, layout: Layout) -> pd.DataFrame:
    """One row per station and step with an observation: stations, smap and every map; its date; whether it was held out."""
    seen = np.isfinite(at.observed)
    sources: dict[str, np.ndarray] = {"stations": at.observed, "smap": at.smap, **at.series}
    columns = {
        "local_date": np.broadcast_to(layout.steps["local_date"].values, seen.shape)[seen],
        "held_out": at.held[seen],
        **{source: values[seen].astype(np.float32, copy=False) for source, values in sources.items()},
    }
    return pd.DataFrame(columns, copy=False)


def _metrics(
    run: Run, reports: Mapping[str, Any], found: Findings | None, truth: Mapping[str, pd.DataFrame] | None
) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "name": run.recipe.name,
        "models": {
            k: reports["train"][k]
            for k in ("rows", "validation", "training", "inner", "splits", "gap", "best", "chosen", "blocks")
        },
        "fusion": {k: v for k, v in reports["fuse"].items() if k not in ("status", "files", "written")},
        "samples": reports["match"]["flow"],
        "data": reports["ingest"],
        "status": {**reports["downscale"]["status"], **reports["fuse"].get("status", {})},
    }
    if found is not None:
        metrics["stations"] = _station_metrics(found, reports["fuse"])
    if truth is not None:
        metrics["truth"] = dict(truth)
    return metrics


def _station_metrics(found: Findings, fused: Mapping[str, Any]) -> dict[str, Any]:
    at, scores = found.at, held_out_scores(found.at)
    return {
        "held_out": station_scores(at, at.held),
        "held_out_shared": station_scores(at, at.held, shared=True),
        "all": station_scores(at, np.ones_like(at.held)),
        "before_and_after": before_and_after(scores["raw"]),
        "raw_and_debiased": side_by_side(scores),
        "left_out": left_out(at),
        "calibration": calibration(
            at, found.fields, {name: field["standardised"] for name, field in fused.get("fields", {}).items()}
        ),
    }
