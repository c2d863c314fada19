"""The report's figures of a fusion and a closure, from what the stages left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.evaluate import Figure
from smscale.evaluate.report import spelled
from smscale.fusion.field import ResidualField, first_rows
from smscale.fusion.ladder import METHODS, pooling_levels
from smscale.fusion.residuals import Ratio
from smscale.fusion.variogram import Variogram, empirical_variogram
from smscale.pipeline.fusion_scores import AtStations, Findings
from smscale.pipeline.layout import Layout
from smscale.pipeline.maps import model_map
from smscale.pipeline.run import Run
from smscale.schema import Status

#: Variograms shown of one map, those with most pairs.
MAX_PANELS = 8
#: Steps by kriging with most stations, among which the best covered is shown.
CANDIDATES = 8
#: Points along a fitted variogram.
CURVE = 200
#: What a variogram is of, in its unit.
SEMIVARIANCE = {"difference": "semivariance ((m³ m⁻³)²)", "ratio": "semivariance of the ratio (1)"}


def step_label(steps: xr.Dataset, step: int) -> str:
    """Date and overpass of a step."""
    return f"{str(steps['local_date'].values[step])[:10]} {steps['overpass'].values[step]}"


def draw_fusion(run: Run, layout: Layout, found: Findings, final: str, folder: Path) -> dict[str, list[Figure]]:
    """Figures by subject: "stations", "variograms", "variance"; none of a subject where there is nothing to show."""
    if not found.fields:
        return {}
    shown = final if final in found.fields else next(iter(found.fields))
    return {
        "stations": [draw_reporting(layout, found.fields[shown], shown, folder)],
        "variograms": draw_variograms(run, layout, found.fields, folder),
        "variance": draw_variance(run, layout, found, final, folder),
    }


def draw_reporting(layout: Layout, field: ResidualField, name: str, folder: Path) -> Figure:
    """How many stations report at each step, and how it was fused."""
    from smscale.evaluate import fusion_figures as draw
    from smscale.evaluate.palette import label_of

    words = {int(bit): "mean residual" if how == "mean" else how for how, bit in METHODS.items()}
    method = [words[int(bit)] for bit in field.method]
    title = "Stations that are compared with the map, by step"
    draw.reporting_stations(
        layout.steps["time"].values, field.counts, method, folder / "fusion-stations.png", title=title
    )
    caption = (
        f"Places whose stations report and whose cell has a value, and by what the step was fused in the map “{label_of(name)}”. "
        "Crosses: no station."
    )
    return Figure("fusion-stations.png", title, caption)


# -- variograms ---------------------------------------------------------------------------------


def draw_variograms(run: Run, layout: Layout, fields: Mapping[str, ResidualField], folder: Path) -> list[Figure]:
    """One figure for each way of comparing stations and map that has a variogram."""
    from smscale.evaluate import fusion_figures as draw
    from smscale.evaluate.palette import label_of

    figures = []
    levels = pooling_levels(layout.steps["time"].values, layout.steps["overpass"].values, run.recipe.fusion.pooling)
    for name, field in fields.items():
        panels = variogram_panels(field, levels)
        if not panels:
            continue
        kind = "ratio" if isinstance(field.residual, Ratio) else "difference"
        file, title = f"variograms-{name.replace('_', '-')}.png", f"Variograms, {label_of(name)}"
        draw.variograms(panels, folder / file, label=SEMIVARIANCE[kind], title=title)
        more = f" The {MAX_PANELS} with most pairs." if len(panels) == MAX_PANELS else ""
        if "persistent bias" in panels:
            more += " The persistent bias is of the stations' means; the errors of those are taken off the nugget that was fitted."
        caption = (
            "Half the mean square difference of two stations' residuals at one step, by their distance, over all steps that "
            f"share a model; larger dots hold more pairs. Red: a bound of the fit was hit.{more}"
        )
        figures.append(Figure(file, title, caption))
    return figures


def variogram_panels(field: ResidualField, levels: NDArray[np.str_]) -> dict[str, Any]:
    """Title -> `fusion_figures.Variogram` of each pool of steps that a model was fitted to, and of the spatial bias."""
    where = first_rows(field.coords, field.place)
    found = {}
    if field.bias is not None and "model" in field.bias.models.records.get("bias", {}):
        found["persistent bias"] = _panel(where, field.bias.values, field.bias.models.records["bias"])
    pools: dict[bytes, list[str]] = {}
    for label, record in sorted(field.variograms.items()):
        if "model" in record:
            pools.setdefault(pooled_steps(label, str(record["pooled"]), levels).tobytes(), []).append(label)
    shown = sorted(pools.values(), key=lambda labels: (-field.variograms[labels[0]].get("pairs", 0), labels))
    for labels in sorted(shown[: MAX_PANELS - len(found)]):
        record = field.variograms[labels[0]]
        steps = pooled_steps(labels[0], str(record["pooled"]), levels)
        found[_pool_title(labels, record, levels, steps)] = _panel(where, field.daily.values[:, steps], record)
    return found


def _pool_title(
    labels: Sequence[str], record: Mapping[str, Any], levels: NDArray[np.str_], steps: NDArray[np.bool_]
) -> str:
    """What a pool is called, and for whom it stands in where it is not their own."""
    pooled = str(record["pooled"])
    name = str(levels[-1][steps][0]) if pooled == "group" else labels[0] if pooled == "step" else pooled
    if [name] == list(labels) or pooled == "given" or labels == ["all"]:
        return name
    return f"{name} (for {labels[0] if len(labels) == 1 else f'{len(labels)} groups'})"


def pooled_steps(label: str, pooled: str, levels: NDArray[np.str_]) -> NDArray[np.bool_]:
    """(t,) the steps whose pairs a group's variogram was fitted to.

    Parameters
    ----------
    label : of the finest level; pooled : "step", "group", "all steps", or "given"; levels : (levels, t) of `pooling_levels`
    """
    own = levels[0] == label if len(levels) else np.ones(levels.shape[1], bool)
    if pooled == "step" or (pooled == "group" and len(levels) == 1):
        return own
    if pooled == "group":
        return levels[1] == levels[1][own][0]
    return np.ones(levels.shape[1], bool)


def _panel(where: NDArray, values: NDArray, record: Mapping[str, Any]) -> Any:
    from smscale.evaluate import fusion_figures as draw

    model = Variogram(**{k: record[k] for k in ("model", "partial_sill", "range", "nugget", "smoothness")})
    try:
        lag, gamma, count = empirical_variogram(where, values)
    except InputError:  # a variogram that was given needs no pairs
        lag = gamma = count = np.empty(0)
    reach = 1.05 * float(lag.max()) if lag.size else 3 * model.range
    h = np.linspace(reach / CURVE, reach, CURVE)
    pairs = f", {spelled(record['pairs'])} pairs" if "pairs" in record else ""
    words = (
        f"{model.model}, range {model.range:.3g} km{pairs}\n"
        f"nugget {model.nugget:.2g}, partial sill {model.partial_sill:.2g}"
    )
    warning = str(record.get("at_bound", ""))
    return draw.Variogram(lag, gamma, count, h, model.semivariance(h), model.nugget, words, warning)


# -- maps ---------------------------------------------------------------------------------------


def draw_variance(run: Run, layout: Layout, found: Findings, final: str, folder: Path) -> list[Figure]:
    """The final map, or the first by kriging, at one step, and the standard deviation that kriging states of it."""
    from smscale.evaluate import fusion_figures as draw
    from smscale.evaluate.palette import label_of

    if not found.at.variances:
        return []
    name = final if final in found.at.variances else next(iter(found.at.variances))
    step = _well_known_step(run, found.fields[name], name)
    if step is None:
        return []
    maps = run.workspace.maps.isel(time=step)
    spread: xr.DataArray = maps[f"{name}_variance"].load() ** 0.5
    points = _points(run, found.at, step)
    title = f"Fused by {label_of(name)}, {step_label(layout.steps, step)}"
    panels = [
        draw.Panel("fused map", maps[name].load(), points=points),
        draw.Panel("kriging standard deviation", spread, "spread", "standard deviation (m³ m⁻³)", None, points),
    ]
    draw.maps_side_by_side(panels, folder / "fusion-variance.png", title=title)
    caption = (
        "How far the fused map may be off where kriging is all that errs: small near stations that report, the model's own spread "
        "far from any. Of the signal, without the error of a measurement. Among the steps by kriging with most stations, that with most cells."
    )
    return [
        Figure(
            "fusion-variance.png",
            f"The map and its kriging standard deviation, {step_label(layout.steps, step)}",
            caption,
        )
    ]


def _well_known_step(run: Run, field: ResidualField, name: str) -> int | None:
    """Of the steps by kriging with most stations, the one with most cells that have a variance; None where none has."""
    kriged = np.flatnonzero(field.method == Status.FUSED_KRIGING)
    chosen = kriged[np.argsort(-field.counts[kriged], kind="stable")][:CANDIDATES]
    if not chosen.size:
        return None
    known = run.workspace.maps[f"{name}_variance"].isel(time=np.sort(chosen)).notnull().sum(("lat", "lon")).values
    return int(np.sort(chosen)[np.argmax(known)]) if known.max() else None


def _points(run: Run, at: AtStations, step: int) -> pd.DataFrame:
    """Where the stations lie, and what each did at a step."""
    stations = run.workspace.stations
    seen, mapped = np.isfinite(at.observed[:, step]), np.isfinite(at.series[at.background][:, step])
    kind = np.select(
        [at.held[:, step], seen & mapped], ["held out", "merged at this step"], "silent, or no map value at this step"
    )
    points = pd.DataFrame({"lon": stations["lon"].values, "lat": stations["lat"].values, "kind": kind})
    return points[at.within].sort_values("kind", ascending=False, kind="stable", ignore_index=True)


def draw_closure(run: Run, layout: Layout, model: str, step: int, retrieved: xr.DataArray, folder: Path) -> Figure:
    """Retrievals, the model's map, the closed one and what was added to it, at one step."""
    from smscale.evaluate import fusion_figures as draw
    from smscale.evaluate.canvas import limits_of
    from smscale.evaluate.palette import label_of

    maps = run.workspace.maps.isel(time=step)
    before, after = maps[model_map(model)].load(), maps[f"{model_map(model)}_closed"].load()
    coarse = retrieved.isel(time=step)
    values = np.concatenate([np.asarray(panel.values, np.float64).ravel() for panel in (before, after)])
    limits = limits_of(values, diverging=False)
    panels = [
        draw.Panel("SMAP 36 km", coarse, limits=limits),
        draw.Panel(f"{label_of(model)}, before", before, limits=limits),
        draw.Panel(f"{label_of(model)}, closed", after, limits=limits),
        draw.Panel("correction", after - before, "difference", "closed − before (m³ m⁻³)"),
    ]
    when = step_label(layout.steps, step)
    draw.maps_side_by_side(panels, folder / "closure.png", title=f"Coarse-mean closure, {when}")
    caption = (
        "A smooth surface brings the map's mean over the valid part of each 36 km cell towards its retrieval; it falls to nothing "
        "where there is no retrieval or too little of a cell is valid. The step at which SMAP and the model see most."
    )
    return Figure("closure.png", f"Before and after closure, {when}", caption)
