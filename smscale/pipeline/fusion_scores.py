"""What a fusion did in numbers: before and after at held-out stations, whom it left out, whether its variance holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smscale.block_plan import Plan
from smscale.fusion.field import ResidualField
from smscale.fusion.interpolators import Kriging
from smscale.fusion.residuals import Ratio
from smscale.fusion.scoring import error_sums, raw_and_debiased, score_pairs
from smscale.kernels.score_sums import SCORES
from smscale.pipeline.fuse import fusion_names, variance_names
from smscale.pipeline.layout import Layout
from smscale.pipeline.maps import model_map
from smscale.pipeline.run import Run
from smscale.pipeline.stations import hold_out, mapped_series, observed_at_steps, station_cells, station_names
from smscale.workspace import Workspace

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

#: RMSE and MAE at held-out data, m3 m-3, before and after each fusion: Table 2 of Chen et al. (2023), doi:10.3390/rs15184451.
PAPER = {
    "before": (0.0980, 0.0784),
    "gda_kriging": (0.0950, 0.0761),
    "gda_idw": (0.0944, 0.0757),
    "gra_kriging": (0.0960, 0.0769),
    "gra_idw": (0.0946, 0.0758),
}
#: What the paper calls them.
PAPER_NAMES = {name: name.upper().replace("KRIGING", "Kriging") for name in PAPER if name != "before"}
#: Scores that are shown raw and debiased.
SIDE_BY_SIDE = ("rmse", "mae", "cc", "n")


@dataclass(frozen=True)
class AtStations:
    """Stations and maps at the stations' cells.

    Parameters
    ----------
    names : (n,) of the stations; observed : (n, t), NaN where silent; held : (n, t) bool, what scores and is not merged
    within : (n,) bool, whether the station lies in the fine grid
    smap : (n, t) retrieval of the coarse cell
    series : map -> (n, t), in the order of the report; variances : fused map -> (n, t), (m3 m-3)^2
    background : the map that stations were merged into; model : the best model's, unclosed
    """

    names: list[str]
    observed: Floats
    held: NDArray[np.bool_]
    within: NDArray[np.bool_]
    smap: Floats
    series: dict[str, Singles]
    variances: dict[str, Singles]
    background: str
    model: str

    @cached_property
    def fused(self) -> list[str]:
        """The fused maps."""
        return [name for name in self.series if name in PAPER_NAMES]

    @cached_property
    def compared(self) -> list[str]:
        """The model's map, its closed one if there is one, and the fused maps."""
        return [*dict.fromkeys([self.model, self.background]), *self.fused]


@dataclass(frozen=True)
class Findings:
    """What the report says of stations: maps at their cells, the same as one row a value, and the solved residual fields by map."""

    at: AtStations
    table: pd.DataFrame
    fields: Mapping[str, ResidualField]


def map_names(run: Run, fused: Mapping[str, Any]) -> dict[str, str]:
    """Source -> array name of every map."""
    names = {model: model_map(model) for model in run.recipe.models}
    if "closure" in fused:
        names[f"{fused['background']}_closed"] = f"{model_map(fused['background'])}_closed"
    return names | ({name: name for name in fusion_names(run.recipe.fusion)} if fused["stations"] else {})


def at_stations(run: Run, layout: Layout, plan: Plan, fused: Mapping[str, Any]) -> AtStations:
    """Read every map at the stations' cells."""
    workspace, fusion = run.workspace, run.recipe.fusion
    names = map_names(run, fused)
    layers = variance_names(fusion) if fused["stations"] else []
    series = mapped_series(run, layout, plan.blocks, "evaluate", [*names.values(), *layers], run.upstream("fuse"))
    observed = observed_at_steps(workspace, layout.steps, fusion.tolerance_hours)
    model = str(fused["background"])
    return AtStations(
        [str(name) for name in workspace.stations["station"].values],
        observed,
        hold_out(observed, station_names(workspace), fusion, run.recipe.seed),
        station_cells(workspace, layout.grid)[0] >= 0,
        _retrieved(workspace, layout),
        {source: series[name] for source, name in names.items()},
        {name.removesuffix("_variance"): series[name] for name in layers},
        f"{model}_closed" if "closure" in fused else model,
        model,
    )


def _retrieved(workspace: Workspace, layout: Layout) -> Floats:
    """(n, t) SMAP at the stations, NaN where there is no retrieval that holds."""
    stations = workspace.stations
    coarse = workspace.coarse[["soil_moisture", "weight"]].load()
    retrieved = coarse["soil_moisture"].where(coarse["weight"] > 0).transpose("time", "lat", "lon").values
    row, col = layout.coarse.index(stations["lon"].values, stations["lat"].values)
    return np.where(row >= 0, retrieved[:, np.maximum(row, 0), np.maximum(col, 0)], np.nan).T


# -- before and after ---------------------------------------------------------------------------


def held_out_scores(at: AtStations) -> dict[str, dict[str, dict[str, Any]]]:
    """Raw and debiased scores of the model, the closed and the fused maps at what was held out, on the pairs that all share."""
    return raw_and_debiased(np.where(at.held, at.observed, np.nan), {name: at.series[name] for name in at.compared})


def station_scores(at: AtStations, rows: NDArray[np.bool_], shared: bool = False) -> pd.DataFrame:
    """A row a source, the retrieval first: its scores against what stations measured.

    Parameters
    ----------
    rows : (n, t) which values count; shared : of them only those for which every source has a value
    """
    sources: dict[str, NDArray] = {"smap": at.smap, **at.series}
    if shared:
        rows = np.logical_and.reduce([rows, *(np.isfinite(values) for values in sources.values())])
    found = [{"source": name, **score_pairs(at.observed, values, rows)} for name, values in sources.items()]
    return pd.DataFrame(found, columns=["source", *SCORES])


def before_and_after(raw: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """RMSE and MAE before and after each fusion with their gains in %, as the paper's Table 2, beside the paper's own.

    Parameters
    ----------
    raw : map -> scores; the first is before fusion
    """
    before, rows = next(iter(raw)), []
    for name, found in raw.items():
        own = "before" if name == before else name
        row: dict[str, Any] = {
            "source": name,
            "paper_name": PAPER_NAMES.get(name, "before fusion" if name == before else ""),
        }
        for i, score in enumerate(("rmse", "mae")):
            row |= {score: found[score], f"{score}_gain": _gain(raw[before][score], found[score], name == before)}
            stated = PAPER.get(own, (np.nan, np.nan))[i]
            row |= {f"paper_{score}": stated, f"paper_{score}_gain": _gain(PAPER["before"][i], stated, name == before)}
        rows.append(row | {"n": found["n"]})
    scores = [f"{prefix}{score}" for prefix in ("", "paper_") for score in ("rmse", "rmse_gain", "mae", "mae_gain")]
    return pd.DataFrame(rows)[["source", "paper_name", *scores[:4], "n", *scores[4:]]]


def _gain(before: float, after: float, first: bool) -> float:
    """How much smaller an error became, %."""
    return np.nan if first or not before > 0 else 100 * (1 - after / before)


def side_by_side(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """A row a map: its scores raw, and debiased."""
    rows = [
        {"source": name.removeprefix(model_map(""))}
        | {score: found[score] for score in SIDE_BY_SIDE}
        | {f"debiased_{score}": scores["debiased"][name][score] for score in SIDE_BY_SIDE}
        for name, found in scores["raw"].items()
    ]
    return pd.DataFrame(rows)


# -- what was left out --------------------------------------------------------------------------


def left_out(at: AtStations) -> pd.DataFrame:
    """Stations and their values at overpass steps, each under the first reason that holds; the last row is what was merged.

    Columns reason, stations, values.
    """
    ground = at.series[at.background]
    seen, mapped = np.isfinite(at.observed), np.isfinite(ground)
    inside = at.within[:, None]
    kept = seen & inside & ~at.held
    silent, held = ~seen.any(axis=1), at.held.all(axis=1)
    compared, blank = (kept & mapped).any(axis=1), np.array(~mapped.any(axis=1))
    reasons = [
        ("outside the grid", ~at.within, seen & ~inside),
        ("silent at every overpass", silent, np.zeros_like(seen)),
        ("held out to score", held, seen & inside & at.held),
        ("on a cell that never has a value", blank, kept & ~mapped & blank[:, None]),
        ("the map has no value at the time", ~compared, kept & ~mapped & ~blank[:, None]),
    ]
    rows: list[dict[str, Any]] = [{"reason": "all", "stations": len(seen), "values": int(seen.sum())}]
    rest = np.ones(len(seen), bool)
    for reason, stations, values in reasons:
        rows.append({"reason": reason, "stations": int((rest & stations).sum()), "values": int(values.sum())})
        rest &= ~stations
    rows.append({"reason": "merged", "stations": int(rest.sum()), "values": int((kept & mapped).sum())})
    return pd.DataFrame(rows)


# -- calibration --------------------------------------------------------------------------------


def calibration(
    at: AtStations, fields: Mapping[str, ResidualField], left_out: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """Errors over the standard deviation that kriging states of them, at held-out stations and leaving out merged ones.

    An error's variance is the kriging variance and the nugget, the error of the measurement itself. Columns source, stations,
    standardised (root mean square), within (% no larger than one standard deviation) and n; no row where there is no pair.

    Parameters
    ----------
    left_out : map -> `error_sums` of its merged stations, as the stage fuse counted them
    """
    rows = []
    for name, variance in at.variances.items():
        field = fields[name]
        ratio, ground = field.residual, at.series[at.background]
        scale = np.maximum(ground, ratio.floor) ** 2 if isinstance(ratio, Ratio) else 1.0
        spread = np.sqrt(variance + measurement_variance(field) * scale)
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = ((at.observed - at.series[name]) / spread)[at.held]
        for which, sums in (("held out", error_sums(errors)), ("merged, left out one by one", left_out[name])):
            if sums["n"]:
                rows.append(
                    {
                        "source": name,
                        "stations": which,
                        "standardised": float(np.sqrt(sums["squares"] / sums["n"])),
                        "within": 100 * sums["within"] / sums["n"],
                        "n": int(sums["n"]),
                    }
                )
    return pd.DataFrame(rows)


def measurement_variance(field: ResidualField) -> Floats:
    """(t,) variance of a measurement's own error in the unit of the residual squared, NaN in steps without a variogram.

    With a spatial bias also what is particular to a station all through the period; with `exact` 0, as the kriging variance holds
    it.
    """
    interpolator, models = field.interpolator, field.daily.models
    nuggets = np.array([*(v.nugget for v in models.variograms), np.nan])[models.index]
    if isinstance(interpolator, Kriging) and interpolator.exact:
        return np.where(np.isfinite(nuggets), 0.0, np.nan)
    bias = field.bias.models.variograms if field.bias is not None else ()
    return nuggets + sum(v.nugget for v in bias)
