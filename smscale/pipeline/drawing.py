"""The report's figures, from what the stages left."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from smscale import store
from smscale.evaluate import Figure
from smscale.features import match
from smscale.pipeline.fuse import fusion_names
from smscale.pipeline.fusion_drawing import draw_closure
from smscale.pipeline.layout import Layout
from smscale.pipeline.run import Run
from smscale.pipeline.stations import has_stations, observed_at_steps
from smscale.pipeline.truth import truth_window
from smscale.places import Place

#: What counts along a training curve, and what it measures.
TRACES = {
    "genetic algorithm": ("generation", "fitness, 1 / SSE"),
    "Levenberg-Marquardt": ("step", "mean square error"),
    "epochs": ("epoch", "mean square error"),
}


#: Why what a sieve leaves out is left out.
REASONS = match.REASONS | {
    "file": "no file of that day",
    "accepted": "cloud or low quality",
    "value": "no value, or no view time",
}


def lst_flow(ingest: Mapping[str, Any]) -> dict[str, int]:
    """Pixels of LST views: all that there could be, with a file, of accepted quality, with a value. Empty if not counted."""
    found = [counts for layer, counts in ingest.get("quality", {}).items() if layer.endswith((" day", " night"))]
    coverage = ingest.get("coverage", {}).get("overpass", {})
    if not found or not coverage:
        return {}
    accepted = sum(counts["accepted"] for counts in found)
    return {
        "all": coverage["cells"],
        "file": sum(sum(counts.values()) for counts in found),
        "accepted": accepted,
        "value": accepted - coverage["accepted_without_value"],
    }


def draw_training(trained: Mapping[str, Any], folder: Path, units: str = "m³ m⁻³") -> list[tuple[str, str, str]]:
    """Figures of a train report: (file, title, caption) of the splits compared, the importances and the training curves."""
    from smscale.evaluate import figures as draw

    drawn = []
    if trained.get("splits"):
        label = f"RMSE ({units})" if units else "RMSE"
        splits = pd.DataFrame(trained["splits"])
        draw.split_bars(splits, folder / "splits.png", label=label, title="Scores by split")
        caption = "A random split promises what no new place or time will hold; blocked splits say what a model knows."
        drawn.append(("splits.png", "Scores by split", caption))
    columns = {name: pd.Series(found["permutation"]) for name, found in trained["importances"].items()}
    table = pd.DataFrame(columns).astype(float)
    draw.importance_bars(
        table,
        folder / "importances.png",
        label=f"rise of the RMSE ({units})" if units else "rise of the RMSE",
        title="What the models lean on",
    )
    drawn.append(("importances.png", "Importances", "Loss of skill on validation rows when one predictor is shuffled."))
    return [*drawn, *draw_curves(trained["traces"], folder)]


def draw_curves(traces: Mapping[str, Any], folder: Path) -> list[tuple[str, str, str]]:
    """The figure of training curves, by model and title; none where no model kept any."""
    from smscale.evaluate import figures as draw

    panels = {}
    for model, found in traces.items():
        for title, curves in found.items():
            frame = pd.DataFrame(
                {name.removesuffix("_mse"): pd.Series(values, dtype=float) for name, values in curves.items()}
            )
            frame.index.name, frame.attrs["label"] = TRACES.get(title, ("epoch", "mean square error"))
            panels[f"{draw.label_of(model)}: {title}"] = frame.dropna(axis=1, how="all")
    if not panels:
        return []
    draw.training_curves(panels, folder / "training.png", title="Training")
    return [("training.png", "Training", "Fitness of the genetic algorithm by generation, error by step or epoch.")]


class Drawing:
    """The report's figures."""

    def __init__(self, run: Run, layout: Layout, folder: Path, reports: Mapping[str, Any], truth: Place | None) -> None:
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
            *draw_training(self.reports["train"], self.folder),
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
        step = self._best_covered_step
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
        panels = {"cells of 36 km": self.reports["match"]["flow"], "LST pixels": lst_flow(self.reports["ingest"])}
        self.draw.sample_flow(
            {name: flow for name, flow in panels.items() if flow},
            self.folder / "sample-flow.png",
            reasons=REASONS,
            title="What each step kept",
        )
        return (
            "sample-flow.png",
            "Sample flow",
            "Pairs of coarse cell and overpass step, and pixels of the LST views, that each sieve leaves.",
        )

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
        assert self.truth is not None
        held = store.open_group(self.truth, "fine")["soil_moisture"]
        sizes = (self.layout.steps.sizes["time"], *self.layout.grid.shape)
        first = truth_window(self.truth, self.layout)
        return held[tuple(slice(start, start + size) for start, size in zip(first, sizes, strict=True))]

    @cached_property
    def _best_covered_step(self) -> int:
        """The step at which both SMAP and the best model see most."""
        model = self.run.workspace.maps[f"soil_moisture_{self.best}"].notnull().mean(("lat", "lon")).values
        smap = self._retrievals().notnull().mean(("lat", "lon")).values
        return int(np.argmax(model * (smap + 1e-3)))

    def closure(self) -> list[Figure]:
        """The figure of the coarse-mean closure; none where the recipe closes nothing."""
        if "closure" not in self.reports["fuse"]:
            return []
        step = self._best_covered_step
        return [draw_closure(self.run, self.layout, self.best, step, self._retrievals(), self.folder)]

    def _panels(self, step: int) -> dict[str, xr.DataArray]:
        maps = self.run.workspace.maps.isel(time=step)
        panels = {"smap": self._retrievals().isel(time=step)}
        panels |= {m: maps[f"soil_moisture_{m}"].load() for m in self.run.recipe.models}
        if "closure" in self.reports["fuse"]:
            panels[f"{self.best}_closed"] = maps[f"soil_moisture_{self.best}_closed"].load()
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
