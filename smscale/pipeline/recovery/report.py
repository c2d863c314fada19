"""evaluate: every map and every interpolation scored against the fine truth, and the page that says so."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from smscale import store
from smscale.config import Recipe
from smscale.evaluate import score_table, write_report
from smscale.pipeline.page import SCORES, provenance, recipe_values
from smscale.pipeline.plain import records
from smscale.pipeline.recovery.interpolation import BASELINES, KEYS, Floats, interpolate
from smscale.pipeline.recovery.plan import CLOSURE, TARGET, Variant
from smscale.pipeline.recovery.window import Window
from smscale.pipeline.run import Run
from smscale.pipeline.run_page import FROM_REPORT


def evaluate(run: Run, window: Window, variants: Mapping[str, Variant]) -> dict[str, Any]:
    """Score every map and every interpolation against the fine truth; write the report."""
    fingerprint = store.fingerprint("recovery-evaluate", 1, run.upstream("fuse"), run.recipe.part("name", "title"))

    def work() -> dict[str, Any]:
        reports = {stage: run.report(stage) for stage in ("ingest", "match", "train", "downscale", "fuse")}
        final = f"{reports['train']['best']}{CLOSURE}"
        fields = fields_of(run, window, variants)
        sources = [name for name in fields if name not in ("truth", "coarse")]
        table = pd.DataFrame({n: f.ravel() for n, f in fields.items() if n != "coarse"})
        table = table[np.isfinite(table["truth"]) & np.isfinite(table["nearest"])]
        scores = {
            "own_cells": score_table(table, "truth", sources),
            "shared_cells": score_table(table, "truth", sources, common=True),
        }
        fused = {**reports["fuse"], "final": f"soil_moisture_{final}"}
        with run.workspace.report_to_write() as folder:
            _write(run, folder, window, reports | {"fuse": fused}, fields, scores)
        rows = records(scores["shared_cells"][["source", *SCORES]])
        return {"scores": [], "truth": rows, "final": f"soil_moisture_{final}"}

    return run.stage("evaluate", fingerprint, lambda: None, work)


def fields_of(run: Run, window: Window, variants: Mapping[str, Variant]) -> dict[str, Floats]:
    """Truth, interpolations (where the coarse field has a value), maps and their closures, on the fine cells."""
    workspace = run.workspace
    coarse = store.read(workspace.cube, "coarse", TARGET)[0].astype(np.float64)
    known = interpolate(np.isfinite(coarse).astype(np.float64), window.coarse, window.grid, "nearest") > 0
    at = partial(interpolate, coarse, window.coarse, window.grid)
    fields: dict[str, Floats] = {"truth": store.read(workspace.cube, "fine/truth", TARGET)[0], "coarse": coarse}
    fields |= {how: np.where(known, at(how), np.nan) for how in BASELINES}
    names = [*variants, *(f"{name}{CLOSURE}" for name in variants)]
    return fields | {name: store.read(workspace.maps_path, "", f"soil_moisture_{name}")[0] for name in names}


def _write(
    run: Run,
    folder: Path,
    window: Window,
    reports: dict[str, Any],
    fields: Mapping[str, Floats],
    scores: Mapping[str, pd.DataFrame],
) -> None:
    from smscale.pipeline.recovery.drawing import draw  # matplotlib: not on workers

    recipe = run.recipe
    trained, counts, final = reports["train"], reports["ingest"], reports["fuse"]["final"].removeprefix(f"{TARGET}_")
    metrics = {
        "name": recipe.name,
        "truth": dict(scores),
        "models": {key: trained[key] for key in ("samples", "folds", "best", "chosen")},
        "samples": reports["match"]["flow"],
        "data": {k: v for k, v in counts.items() if k != "problems"},
        "status": {**reports["downscale"]["status"], **reports["fuse"]["status"]},
        "final": final,
    }
    write_report(
        folder,
        recipe.title or recipe.name,
        metrics,
        tables=_tables(scores, trained),
        figures=draw(folder / "figures", window, reports, fields, scores["shared_cells"], list(recipe.models), final),
        data_notes=counts["problems"],
        provenance=provenance(recipe),
        run_page=FROM_REPORT,
        summary=_summary(window, counts, trained),
        headline=_headline(scores["shared_cells"], trained["best"], final, counts),
        data_read=[{"what": k.replace("_", " "), "count": v} for k, v in counts.items() if k != "problems"],
        method=_method(recipe),
        recipe=yaml.safe_dump(recipe_values(recipe), sort_keys=False, allow_unicode=True),
    )


def _tables(scores: Mapping[str, pd.DataFrame], trained: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    shown = ["source", *SCORES, "kge"]
    tables = [
        ("The fine truth", "Cells that have the truth and every map: a fair comparison.", scores["shared_cells"][shown])
    ]
    if scores["own_cells"]["n"].nunique() > 1:
        tables.append(("The fine truth, own cells", "Each map where it has a value.", scores["own_cells"][shown]))
    note = f"Coarse cells of places that the model was not trained on. The best, {trained['best']}, was chosen by it."
    tables.append(("Models at 36 km, folds of space blocks", note, pd.DataFrame(trained["folds"])))
    return tables


def _headline(table: pd.DataFrame, best: str, final: str, counts: Mapping[str, int]) -> dict[str, Any]:
    rmse = table.set_index("source")["rmse"]
    names = {"nearest": "nearest", "bilinear": "bilinear", "cubic": "cubic", "best model": best, "its closure": final}
    return {"training cells": counts["coarse_cells_kept"], "best at 36 km": best.replace("_", " ")} | {
        f"RMSE, {label}": f"{rmse[name]:.4f}" for label, name in names.items()
    }


def _summary(window: Window, counts: Mapping[str, int], trained: Mapping[str, Any]) -> str:
    west, south, east, north = window.grid.bounds
    return (
        f"{window.period[0]}, {west:.1f} to {east:.1f}° E, {south:.1f} to {north:.1f}° N. {counts['fine_cells_valid']} valid fine cells; "
        f"{counts['coarse_cells_touched']} 36 km cells touch the field, {counts['coarse_cells_partial_dropped']} are cut by its edge and "
        f"dropped; of the others {counts['coarse_cells_whole']} are wholly valid, {counts['coarse_cells_kept']} valid enough to train on."
    )


def _method(recipe: Recipe) -> dict[str, str]:
    least = recipe.match.min_valid_fraction
    return {
        "coarsen": f"Area-weighted mean over the 36 km cell, where at least {least:g} of it is valid; cells that the edge cuts are dropped.",
        "train": "Each model on every coarse cell; chosen by folds of space blocks at 36 km, never by the fine truth.",
        "with temperature": "The same with the field's own surface temperature, which its model shares with the soil moisture.",
        "closure": "map + cubic(coarse - mean of the map over the coarse cell): the coarse field with the model's detail.",
        "interpolation": f"Gaps take the nearest value. cubic: Keys' convolution with a = {KEYS:g}; cubic spline: interpolating B-spline.",
    }
