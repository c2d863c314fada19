"""Solving a fusion: stations and map in, a `ResidualField` out; and the parts of it as plain arrays, for workers.

What all steps share comes first (`pose`): the systematic part, the correlation models, the spatial bias. The steps are then solved
all at once or some at a time (`Posed.at`), wherever there is a worker; each step is the same whichever others it is solved with,
to float64 rounding.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.fusion.coordinates import places, station_points
from smscale.fusion.field import Asked, ResidualField, first_rows
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.ladder import (
    METHODS,
    MIN_KRIGING,
    MIN_POOLED_PAIRS,
    Dual,
    FieldPart,
    Interpolator,
    SolvedSteps,
    StepModels,
    as_interpolator,
    as_levels,
    fit_summary,
    models_for,
    no_models,
    solve_steps,
)
from smscale.fusion.residuals import MIN_STATION_RESIDUALS, Difference, Ratio, Residual, as_residual
from smscale.fusion.systematic import (
    StationMeans,
    anomaly_interpolator,
    bias_interpolator,
    fit_means,
    mean_variance,
    station_means,
    systematic_residuals,
)
from smscale.fusion.variogram import Variogram
from smscale.schema import Status

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Posed(Asked):
    """A fusion of which everything is known that steps share; the steps wait to be solved.

    Parameters
    ----------
    models : variograms of the daily field
    means : of the places' residuals, with a spatial bias
    bias : the static field of those, solved
    """

    models: StepModels
    means: StationMeans | None = None
    bias: SolvedSteps | None = None

    def at(self, steps: slice) -> Posed:
        """The same for some of the steps."""
        return self.given(self.residuals[:, steps], self.models.index[steps])

    def given(self, residuals: Floats, index: NDArray[np.int64]) -> Posed:
        """The same for other steps: their residuals (n, t), and which variogram each has."""
        return replace(self, residuals=residuals, models=replace(self.models, index=index))

    def solve(self, dual: Dual | None = None) -> ResidualField:
        """Solve the steps; with `dual` (`SolvedSteps.dual` of them) they are restored, not solved again."""
        place, merged = _merged_places(self.coords, self.residuals)
        where = first_rows(self.coords, place)
        if self.means is None:
            daily = solve_steps(where, merged, self.interpolator, self.models, dual=dual)
        else:
            daily = _solved_anomalies(where, _anomalies(merged, self.means, self.residual), self, self.models, dual)
        return ResidualField(**_asked(self), place=place, daily=daily, bias=self.bias)

    def to_dict(self) -> dict[str, Any]:
        """What was fitted and decided, as plain values, as far as it does not take the steps."""
        return {
            "variograms": self.models.records,
            "variogram_fits": fit_summary(self.models.records),
            "systematic": self.systematic,
            "taper_km": self.taper_km,
            "left_out": self.left_out,
        }


def _asked(posed: Asked) -> dict[str, Any]:
    return {f.name: getattr(posed, f.name) for f in fields(Asked)}


def pose(
    coords: ArrayLike,
    observed: ArrayLike,
    background: ArrayLike,
    residual: str | Residual = "difference",
    interpolator: str | Interpolator | None = None,
    systematic: str = "none",
    groups: Sequence[Hashable] | NDArray | None = None,
    taper_km: float | None = None,
) -> Posed:
    """Stations against the map at their cells: everything that the steps share, fitted to all of them.

    Parameters
    ----------
    coords : (n, 2 | 3) longitude, latitude in degrees, elevation in m
    observed : (n, t) station values that are merged (never held-out ones), m3 m-3, NaN where silent
    background : (n, t) the map at the stations' cells, NaN where missing
    residual : "difference", "ratio", or an object such as `Ratio(floor=0.05)`
    interpolator : "kriging", "idw", or an unfitted interpolator; None is kriging
    systematic : "none"; "network-mean", "station-mean": removed as means (`residuals.remove_systematic`); "cdf": each
        station's values first get the distribution of the map at its cell; "spatial-bias": the mean residuals of the
        stations are a static field of their own, applied to every step, and their anomalies, whose mean is 0, the daily
        one; then any station that reports is enough for kriging, unless only the nearest are used
    groups : labels of steps that share a variogram, (t,) or (levels, t) (`ladder.pooling_levels`); None pools all
    taper_km : full correction up to this distance from a station that reports, none from twice it on

    Returns
    -------
    `Posed`; its `left_out` counts what was not used as it came. Stations without coordinates and infinite numbers
    are left out. Stations at one place are merged into their mean.
    """
    kind, wanted = as_residual(residual), as_interpolator(interpolator)
    _check_taper(taper_km)
    points = _as_coords(coords, wanted.vertical_scale)
    seen, ground, left_out = _finite_pairs(points, observed, background)
    levels = as_levels(groups, seen.shape[1])
    residuals, record, limits = systematic_residuals(seen, ground, systematic, kind)
    return _posed(Asked(points, residuals, kind, wanted, taper_km, left_out | limits, record), levels)


def _check_taper(taper_km: float | None) -> None:
    if taper_km is not None and not (np.isfinite(taper_km) and taper_km > 0):
        raise InputError(f"taper_km must be above 0 km, or None for no taper; got {taper_km}")


def _as_coords(coords: ArrayLike, vertical_scale: float | None) -> Floats:
    """(n, 2 | 3) float64; rows that are not finite become NaN, and the others are checked."""
    points = np.array(coords, np.float64, ndmin=2)
    if points.size == 0:
        points = np.empty((0, 2 if vertical_scale is None else 3))
    needed = points[:, :2] if vertical_scale is None else points
    points[~np.isfinite(needed).all(axis=1)] = np.nan
    station_points(points[np.isfinite(points[:, 0])], vertical_scale)
    return points


def _finite_pairs(coords: Floats, observed: ArrayLike, background: ArrayLike) -> tuple[Floats, Floats, dict[str, int]]:
    """Observations and background without infinite numbers and stations without coordinates, and their counts."""
    seen, ground = np.array(observed, np.float64), np.array(background, np.float64)
    if seen.ndim != 2 or seen.shape != ground.shape or len(seen) != len(coords):
        raise InputError(
            f"observed and background must both be ({len(coords)}, steps), one row per station of coords; "
            f"got {seen.shape} and {ground.shape}"
        )
    nowhere = np.isnan(coords[:, 0])
    left_out = {
        "stations_without_coordinates": int(nowhere.sum()),
        "observations_infinite": int(np.isinf(seen).sum()),
        "background_infinite": int(np.isinf(ground).sum()),
    }
    seen[np.isinf(seen)], ground[np.isinf(ground)] = np.nan, np.nan
    seen[nowhere] = np.nan
    compared = np.isfinite(seen) & np.isfinite(ground)
    left_out |= {
        "stations_silent": int((~nowhere & ~np.isfinite(seen).any(axis=1)).sum()),
        "stations_never_compared": int((~nowhere & ~compared.any(axis=1)).sum()),
        "observations_without_background": int((np.isfinite(seen) & ~compared).sum()),
    }
    return seen, ground, left_out


def _bias_models(coords: Floats, means: StationMeans, wanted: Interpolator) -> StepModels:
    """The variogram of the persistent part, fitted to the means; the one that was given, if any, where that fails."""
    if not isinstance(wanted, Kriging):
        return no_models(1)
    given = wanted.variogram if isinstance(wanted.variogram, Variogram) else None
    family = wanted.variogram.model if isinstance(wanted.variogram, Variogram) else wanted.variogram or "exponential"
    try:
        points = station_points(coords, wanted.vertical_scale)
        fit = fit_means(points, means, family, MIN_POOLED_PAIRS)
    except InputError as error:
        record: dict[str, Any] = {"pooled": "none", "reason": str(error)}
        if given is None:
            return replace(no_models(1), records={"bias": record})
        return StepModels((given,), np.zeros(1, np.int64), {"bias": {**record, "pooled": "given", **given.to_dict()}})
    return StepModels((fit.variogram,), np.zeros(1, np.int64), {"bias": {"pooled": "stations", **fit.to_dict()}})


def _posed(asked: Asked, levels: NDArray[np.str_]) -> Posed:
    place, merged = _merged_places(asked.coords, asked.residuals)
    where, wanted = first_rows(asked.coords, place), asked.interpolator
    left_out = {**asked.left_out, "stations_sharing_a_place": int((place >= 0).sum()) - len(where)}
    if asked.systematic["name"] != "spatial-bias":
        return Posed(**vars(asked) | {"left_out": left_out}, models=models_for(where, merged, levels, wanted))
    means = station_means(merged)
    values = _anomalies(merged, means, asked.residual)
    left_out["stations_without_anomalies"] = int((means.records > 0).sum() - np.isfinite(values).any(axis=1).sum())
    bias = _solved_bias(where, means, wanted, _bias_models(where, means, wanted))
    models = models_for(where, values, levels, wanted)
    if isinstance(wanted, Kriging) and wanted.neighbours is None:
        points = station_points(where, wanted.vertical_scale)
        variance = mean_variance(points, values - asked.residual.nothing, models.variograms, models.index)
        models = replace(models, mean_variance=variance)
    systematic = {**asked.systematic, **_bias_record(bias, means), "mean_variance": models.mean_variance}
    given = vars(asked) | {"left_out": left_out, "systematic": systematic}
    return Posed(**given, models=models, means=means, bias=bias)


def _anomalies(merged: Floats, means: StationMeans, residual: Residual) -> Floats:
    """(p, t) what is left of the places' residuals; NaN of one with too few for a mean of its own."""
    enough = means.records >= MIN_STATION_RESIDUALS
    return np.where(enough[:, None], residual.without(merged, means.mean[:, None]), np.nan)


def _merged_places(coords: Floats, residuals: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The place of each station, -1 without coordinates, and the mean residual of each place."""
    place = np.full(len(coords), -1, np.int64)
    known = np.flatnonzero(np.isfinite(coords[:, 0]))
    place[known] = places(station_points(np.nan_to_num(coords[known]), 1.0 if coords.shape[1] == 3 else None))
    size = int(place.max(initial=-1)) + 1
    if size == len(coords):
        return place, residuals
    present = np.isfinite(residuals[known])
    total, count = np.zeros((size, residuals.shape[1])), np.zeros((size, residuals.shape[1]))
    np.add.at(total, place[known], np.where(present, residuals[known], 0.0))
    np.add.at(count, place[known], present)
    return place, np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def _solved_bias(coords: Floats, means: StationMeans, wanted: Interpolator, models: StepModels) -> SolvedSteps:
    """The static field as one step: kriging with the means' own errors; lower rungs take means of enough records only."""
    every = means.mean[:, None]
    if not isinstance(wanted, Kriging) or models.index[0] < 0 or (means.records > 0).sum() < MIN_KRIGING:
        enough = np.where(means.records >= MIN_STATION_RESIDUALS, means.mean, np.nan)[:, None]
        values = enough if np.isfinite(enough).any() else every
        return replace(solve_steps(coords, values, wanted, no_models(1)), models=replace(models, index=np.full(1, -1)))
    model = bias_interpolator(wanted, models.variograms[0], means.error)
    part = FieldPart(np.zeros(1, np.int64), model.fit(coords, every))
    mean, count = np.array([np.nanmean(every)]), np.isfinite(every).sum(axis=0)
    return SolvedSteps(np.array([Status.FUSED_KRIGING], np.uint32), count, mean, (part,), every, models)


def _solved_anomalies(
    coords: Floats, values: Floats, asked: Asked, models: StepModels, dual: Dual | None
) -> SolvedSteps:
    """The daily field: their mean is known, so kriging from all stations needs one that reports; else the usual ladder."""
    wanted, nothing = asked.interpolator, asked.residual.nothing
    if not isinstance(wanted, Kriging) or wanted.neighbours is not None:
        return solve_steps(coords, values, wanted, models)

    def kriging(settings: Kriging, variogram: Variogram) -> Kriging:
        return anomaly_interpolator(settings, variogram, nothing, models.mean_variance)

    return solve_steps(coords, values, wanted, models, min_kriging=1, kriging=kriging, dual=dual)


def _bias_record(bias: SolvedSteps, means: StationMeans) -> dict[str, Any]:
    known = np.isfinite(means.mean)
    by = next(name for name, bit in METHODS.items() if bit == bias.method[0])
    return {
        "by": by,
        "stations": int(bias.counts[0]),
        "mean": float(means.mean[known].mean()) if known.any() else None,
        "step_correlation": means.correlation,
        "mean_error_variance": float(means.error[known].mean()) if known.any() else None,
        "variogram": bias.models.records.get("bias"),
    }


# -- as plain arrays ---------------------------------------------------------------------------


def shared_arrays(posed: Posed) -> dict[str, NDArray]:
    """What all steps share, without objects: for an .npz that each worker reads once."""
    models = {"daily": posed.models, **({"bias": posed.bias.models} if posed.bias is not None else {})}
    facts = {
        "interpolator": _interpolator_settings(posed.interpolator),
        "residual": _residual_settings(posed.residual),
        "taper_km": posed.taper_km,
        "left_out": posed.left_out,
        "systematic": posed.systematic,
        "variograms": {name: [v.to_dict() for v in m.variograms] for name, m in models.items()},
        "records": {name: m.records for name, m in models.items()},
        "mean_variance": posed.models.mean_variance,
    }
    arrays = {"coords": posed.coords, "facts": np.array(json.dumps(facts))}
    if posed.means is not None and posed.bias is not None:
        arrays |= {f"means_{name}": np.asarray(values) for name, values in vars(posed.means).items()}
        arrays["bias_model"] = posed.bias.models.index
    return arrays


def from_shared(arrays: Mapping[str, NDArray]) -> Posed:
    """The fusion of `shared_arrays`, of no step yet: `Posed.given` has them. No variogram is fitted again."""
    facts = json.loads(str(arrays["facts"]))

    def models(name: str, index: NDArray[np.int64], variance: float = 0.0) -> StepModels:
        found = tuple(Variogram(**v) for v in facts["variograms"][name])
        return StepModels(found, index, facts["records"][name], variance)

    coords = np.asarray(arrays["coords"])
    asked = Asked(
        coords,
        np.empty((len(coords), 0)),
        _residual_of(facts["residual"]),
        _interpolator_of(facts["interpolator"]),
        facts["taper_km"],
        facts["left_out"],
        facts["systematic"],
    )
    daily = models("daily", np.empty(0, np.int64), facts["mean_variance"])
    if "means_mean" not in arrays:
        return Posed(**vars(asked), models=daily)
    means = StationMeans(
        arrays["means_mean"], arrays["means_error"], arrays["means_records"], float(arrays["means_correlation"])
    )
    where = first_rows(coords, _merged_places(coords, asked.residuals)[0])
    bias = _solved_bias(where, means, asked.interpolator, models("bias", arrays["bias_model"]))
    return Posed(**vars(asked), models=daily, means=means, bias=bias)


def _interpolator_settings(interpolator: Interpolator) -> dict[str, Any]:
    kind = Kriging if isinstance(interpolator, Kriging) else InverseDistance
    settings = {name: getattr(interpolator, name) for name in signature(kind).parameters}
    if isinstance(settings.get("variogram"), Variogram):
        settings["variogram"] = settings["variogram"].to_dict()
    return {"kind": kind.__name__, **settings}


def _interpolator_of(settings: dict[str, Any]) -> Interpolator:
    given = dict(settings)
    if given.pop("kind") == "InverseDistance":
        return InverseDistance(**given)
    if isinstance(given["variogram"], dict):
        given["variogram"] = Variogram(**given["variogram"])
    return Kriging(**given)


def _residual_settings(residual: Residual) -> dict[str, Any]:
    if isinstance(residual, Ratio):
        return {"name": "ratio", "floor": residual.floor, "cap": list(residual.cap)}
    return {"name": "difference"}


def _residual_of(settings: dict[str, Any]) -> Residual:
    if settings["name"] == "difference":
        return Difference()
    return Ratio(settings["floor"], (settings["cap"][0], settings["cap"][1]))
