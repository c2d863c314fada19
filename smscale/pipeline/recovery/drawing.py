"""Figures of a recovery's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from smscale import schema
from smscale.blocks import spans
from smscale.evaluate import figures
from smscale.pipeline.drawing import draw_curves
from smscale.pipeline.recovery.interpolation import Floats
from smscale.pipeline.recovery.plan import WITH_TEMPERATURE
from smscale.pipeline.recovery.window import Window

Figure = tuple[str, str, str]

#: Rows and columns of coarse cells that the figures show close up.
CLOSE_UP = (24, 48)


def draw(
    folder: Path,
    window: Window,
    reports: Mapping[str, Any],
    fields: Mapping[str, Floats],
    table: pd.DataFrame,
    models: list[str],
    final: str,
) -> list[Figure]:
    """Draw into a folder; file name, title and caption of each figure, in the order of the page.

    fields : of `report.fields_of`;  table : scores on shared cells;  final : name of the final map
    """
    best = reports["train"]["best"]
    return [
        *_draw_maps(folder, window, fields, models, best, final),
        *_draw_scores(folder, fields, table, models, best, final),
        *_draw_training(folder, reports, models),
    ]


def _draw_maps(
    folder: Path, window: Window, fields: Mapping[str, Floats], models: list[str], best: str, final: str
) -> list[Figure]:
    maps = {name: _labelled(name, field, window) for name, field in fields.items()}
    chosen = ["truth", "coarse", "cubic", *models, *dict.fromkeys((best, final))]
    panels = {name: maps[name] for name in dict.fromkeys(chosen)}
    day = window.period[0]
    figures.maps(panels, folder / "maps.png", title=f"Soil moisture, {day}", columns=3)
    box = _busiest(fields, window)
    near = {name: _within(maps[name], box) for name in ("truth", "coarse", "cubic", best, final)}
    figures.maps(near, folder / "maps-detail.png", title=f"Close up, {day}", columns=3)
    errors = {n: near[n] - near["truth"] for n in ("cubic", best, final)}
    figures.maps(errors, folder / "errors.png", diverging=True, title="Estimate - truth", label="m³ m⁻³", columns=3)
    return [
        ("maps.png", "Maps", "The truth, what is left of it at 36 km, and what each model makes of that."),
        ("maps-detail.png", "Close up", "Where the truth varies most within coarse cells."),
        ("errors.png", "Errors", "The same part: estimate minus truth."),
    ]


def _labelled(name: str, field: Floats, window: Window) -> xr.DataArray:
    grid = window.coarse if name == "coarse" else window.grid
    return xr.DataArray(field, schema.grid_coords(grid), ("lat", "lon"), name)


def _draw_scores(
    folder: Path, fields: Mapping[str, Floats], table: pd.DataFrame, models: list[str], best: str, final: str
) -> list[Figure]:
    figures.score_bars(table.drop(columns="n"), folder / "scores.png", title="Against the fine truth")
    known = np.isfinite(fields["truth"]) & np.isfinite(fields["nearest"])
    pairs = {n: fields[n][known] for n in dict.fromkeys(("nearest", "cubic", best, final))}
    figures.scatter(fields["truth"][known], pairs, folder / "scatter.png", title="", reference_label="truth")
    spread = {n: fields[n][known] for n in dict.fromkeys(("truth", "nearest", "cubic", *models, final))}
    figures.box_plot(spread, folder / "box.png", title="Distributions")
    return [
        ("scores.png", "Scores", "On the same cells. The interpolations know the coarse field alone."),
        ("scatter.png", "Scatter", "Every fine cell."),
        ("box.png", "Distributions", "Whether a map keeps the truth's range."),
    ]


def _draw_training(folder: Path, reports: Mapping[str, Any], models: list[str]) -> list[Figure]:
    flow = "Coarse cells that each sieve leaves: observed have any valid fine cell, quality enough."
    figures.sample_flow(reports["match"]["flow"], folder / "sample-flow.png", title="From coarse cells to samples")
    correlations = pd.DataFrame(reports["match"]["correlations"]).query("subset == 'total'")
    figures.correlation_bars(correlations, folder / "correlations.png", title="At 36 km")
    found = reports["train"]["importances"]
    influence = pd.DataFrame(
        {n: pd.Series(found.get(f"{n}{WITH_TEMPERATURE}", found[n])["permutation"]) for n in models}
    )
    figures.importance_bars(influence, folder / "importances.png", label="rise of RMSE (m³ m⁻³)", title="Importances")
    traces = {name: reports["train"]["traces"][name] for name in models}
    return [
        ("sample-flow.png", "Samples", flow),
        ("correlations.png", "Correlations", "Of each predictor with the coarse field; black: p > 0.05."),
        ("importances.png", "Importances", "Rise of the error on training cells when one predictor is shuffled."),
        *draw_curves(traces, folder),
    ]


def _busiest(fields: Mapping[str, Floats], window: Window) -> tuple[float, float, float, float]:
    """West, south, east, north of the part (of `CLOSE_UP`) in which the truth varies most within coarse cells."""
    lost = np.nan_to_num(fields["truth"] - fields["nearest"]) ** 2
    sides = [
        n * round(fine / coarse) for n, fine, coarse in zip(CLOSE_UP, lost.shape, window.coarse.shape, strict=True)
    ]
    parts = [(r, c) for r in spans(lost.shape[0], sides[0]) for c in spans(lost.shape[1], sides[1])]
    return window.grid.window(*max(parts, key=lambda part: float(lost[part].sum()))).bounds


def _within(field: xr.DataArray, box: tuple[float, float, float, float]) -> xr.DataArray:
    """The cells of a map whose centres lie in a box."""
    west, south, east, north = box
    rows, cols = (field["lat"] > south) & (field["lat"] < north), (field["lon"] > west) & (field["lon"] < east)
    return field.isel(lat=rows.values, lon=cols.values)
