"""report/index.html and report/metrics.json: what is said about a run, and in what order."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import smscale
from smscale.evaluate import Table, write_report
from smscale.evaluate.palette import label_of
from smscale.evaluate.report import SOIL_MOISTURE
from smscale.pipeline.drawing import Drawing
from smscale.pipeline.fusion_drawing import draw_fusion
from smscale.pipeline.fusion_page import closure_section, fusion_section, status_section
from smscale.pipeline.fusion_scores import Findings
from smscale.pipeline.layout import Layout
from smscale.pipeline.run import Run, values_of
from smscale.pipeline.run_page import FROM_REPORT
from smscale.places import Place

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
PAPER_LABELS = {"paper_rmse": "RMSE", "paper_mae": "MAE", "paper_cc": "CC", "paper_r2": "R²"}
SCORES = ["rmse", "mae", "cc", "bias", "ubrmse", "n"]


def write_page(
    run: Run,
    layout: Layout,
    reports: Mapping[str, Any],
    metrics: Mapping[str, Any],
    found: Findings | None,
    truth: Place | None,
    folder: Path,
) -> None:
    """Draw the figures and write the page into a folder; `found` is what there is to say of stations."""
    recipe, fused = run.recipe, reports["fuse"]
    draw = Drawing(run, layout, folder / "figures", reports, truth)
    figures = draw.all(None if found is None else found.table, metrics)
    merged = {} if found is None else draw_fusion(run, layout, found, fused["final"], folder / "figures")
    write_report(
        folder,
        recipe.title or recipe.name,
        metrics,
        tables=_tables(metrics) + _quality_tables(reports["ingest"]),
        sections=[
            fusion_section(recipe, fused, metrics.get("stations"), merged),
            closure_section(recipe, fused, draw.closure()),
            status_section(reports["downscale"], fused),
        ],
        figures=figures,
        data_notes=reports["ingest"]["problems"],
        provenance=provenance(recipe),
        summary=_summary(run, layout, reports),
        headline=_headline(metrics, fused["final"]),
        data_read=_data_read(reports["ingest"]),
        method=_method(recipe, reports),
        recipe=yaml.safe_dump(recipe_values(recipe), sort_keys=False, allow_unicode=True),
        run_page=FROM_REPORT,
    )


def _tables(metrics: Mapping[str, Any]) -> list[Table | tuple[str, str, Any]]:
    tables: list[Table | tuple[str, str, Any]] = []
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
    tables += model_tables(metrics["models"])
    return tables


def model_tables(models: Mapping[str, Any], units: str = SOIL_MOISTURE) -> list[Table]:
    """What a train report says of its models: validation, inner folds, splits."""
    note = f"Rows that chose nothing ({models['rows']['validation']} of {sum(models['rows'].values())} samples)."
    inner = f"What the best model ({label_of(models['best'])}) was chosen by."
    tables = [
        Table("Models, validation", note, pd.DataFrame(models["validation"]), None, units),
        Table("Models, inner folds", inner, pd.DataFrame(models["inner"]), None, units),
    ]
    if models["splits"]:
        splits = pd.DataFrame(models["splits"])
        note = (
            "A random split leaks: neighbours and neighbouring days sit on both sides. Blocked splits say what a model knows of "
            "new places and times. Ridge regression and the mean are there to compare with." + _unseen(splits)
        )
        tables.append(Table("Models by split", note, _with_paper(splits), "split", units))
    if models["gap"]:
        note = f"RMSE of each split as a multiple of the random one's, which leaks. Sizes: {models['blocks']}."
        tables.append(Table("How far a random split flatters", note, pd.DataFrame(models["gap"])))
    return tables


def _with_paper(splits: pd.DataFrame) -> pd.DataFrame:
    """The scores by split, and in one last column what the paper states of a model."""
    stated = [name for name in map(str, splits) if name.startswith("paper_")]
    shown = splits.drop(columns=[*stated, "folds", "unseen"], errors="ignore")
    if not stated:
        return shown
    words = [
        ", ".join(f"{PAPER_LABELS[name]} {row[name]:.4g}" for name in stated if np.isfinite(row[name]))
        for _, row in splits[stated].astype(float).iterrows()
    ]
    return shown.assign(paper=pd.Series(words, splits.index).replace("", None))


def _unseen(splits: pd.DataFrame) -> str:
    """A sentence on rows of a class that their fold did not train on; nothing where there are none."""
    counts = splits.groupby("split", sort=False)["unseen"].max() if "unseen" in splits else pd.Series(dtype=int)
    found = ", ".join(f"{count} ({split})" for split, count in counts.items() if count)
    return f" Rows of a class that their fold did not train on, predicted all the same: {found}." if found else ""


def _quality_tables(ingest: Mapping[str, Any]) -> list[Table | tuple[str, str, Any]]:
    """What quality control took, of SMAP's cells and of the fine products' pixels."""
    smap = dict(ingest["smap"]["quality"])
    total = smap.pop("retrieved", 0)
    rows = [
        {"reason": reason.replace("_", " "), "retrievals": count, "share": _share(count, total)}
        for reason, count in smap.items()
        if count and reason != "cells"
    ]
    tables: list[Table | tuple[str, str, Any]] = []
    if total:
        note = f"Each of {total} retrievals under the first reason that holds; kept ones are the rest."
        tables.append(("Quality control of SMAP", note, pd.DataFrame(rows)))
    pixels = [
        {"layer": layer, "pixels are": reason, "pixels": count, "share": _share(count, sum(counts.values()))}
        for layer, counts in ingest.get("quality", {}).items()
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    if pixels:
        note = "Pixels under the cells of the fine grid, each view counted once, by the first quality field that rejects them."
        tables.append(("Quality control of the fine products", note, pd.DataFrame(pixels)))
    return tables


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else ""


def _short(table: pd.DataFrame) -> pd.DataFrame:
    return table[["source", *SCORES, "sigma_ratio"]]


def _headline(metrics: Mapping[str, Any], final: str) -> dict[str, Any]:
    tiles: dict[str, Any] = {
        "best model": label_of(metrics["models"]["best"]),
        "final map": label_of(final.removeprefix("soil_moisture_")),
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
        f"{layout.steps.sizes['time']} overpass steps. The best model on inner data is {label_of(reports['train']['best'])}; "
        f"{reports['fuse']['stations']} stations, of which {reports['fuse'].get('held_out_stations', 0)} were held out."
    )


def _method(recipe: Any, reports: Mapping[str, Any]) -> dict[str, str]:
    method = {
        "ingest": f"SMAP quality policy {recipe.smap.quality}, algorithm {', '.join(reports['ingest']['smap']['algorithm']) or 'unknown'}; MODIS quality {recipe.modis.quality}.",
        "match": f"Area-weighted upscaling to EASE-Grid 2.0 36 km; at least {recipe.match.min_valid_fraction:g} of a cell valid, {recipe.match.min_lst_valid_fraction:g} for LST; land cover classes {list(recipe.match.exclude_land_cover)} left out.",
        "train": f"{', '.join(recipe.models)} on {reports['train']['rows']['training']} samples; {recipe.split.validation} split, {reports['train']['rows']['validation']} for validation.",
        "downscale": "Every model on every 1 km cell; a cell without a value says why in its status.",
        "fuse": _fusion_words(recipe),
    }
    if recipe.assumed:
        method["assumed"] = "Not published by the paper, assumed here: " + "; ".join(recipe.assumed) + "."
    return method


def _fusion_words(recipe: Any) -> str:
    fusion = recipe.fusion
    closed = f"closure to the coarse means: {recipe.closure}; " if recipe.closure != "none" else ""
    kriging = f"variogram {fusion.variogram}, pooled by {fusion.pooling}" if "kriging" in fusion.interpolators else ""
    idw = (
        f"inverse distance: {fusion.idw_neighbours} neighbours, power {fusion.idw_power:g}"
        if "idw" in fusion.interpolators
        else ""
    )
    parts = [
        f"{closed}{', '.join(fusion.residuals)} × {', '.join(fusion.interpolators)}",
        *filter(None, (kriging, idw)),
        f"systematic error: {fusion.systematic}",
        f"{fusion.holdout:g} of the {fusion.holdout_unit}s held out",
    ]
    return "; ".join(parts) + "."


def provenance(recipe: Any) -> dict[str, Any]:
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


def recipe_values(recipe: Any) -> dict[str, Any]:
    return json.loads(json.dumps(values_of(recipe)))
