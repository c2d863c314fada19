"""Every time step on the highest rung of the ladder that it reaches: kriging, inverse distance, mean residual, none.

Which rung depends on the stations that report and on whether a correlation model is found for the step: its own where
asked for, its season's and overpass's, or that of all steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.fusion.coordinates import station_points
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.variogram import Fit, Variogram, fit_recorded
from smscale.schema import Status

Floats = NDArray[np.float64]
Interpolator = Kriging | InverseDistance
#: Means (t,) and coefficients (p, t) of kriging in its dual form.
Dual = tuple[Floats, Floats]

#: Fewest reporting stations of a step for kriging and for inverse distance weighting; below, their mean residual.
MIN_KRIGING = 8
MIN_IDW = 3
#: Fewest pairs x times within the cutoff for a pooled variogram (Journel & Huijbregts 1978: 30 pairs a lag, here in all).
MIN_POOLED_PAIRS = 30

METHODS = {
    "kriging": Status.FUSED_KRIGING,
    "idw": Status.FUSED_IDW,
    "mean": Status.FUSED_MEAN_RESIDUAL,
    "none": Status.NOT_FUSED,
}

#: What steps can share a correlation model by, and the labels' levels from the finest on; "all steps" always follows.
POOLING = {"season-overpass": ("season-overpass",), "all": (), "step": ("step", "season-overpass")}


def as_interpolator(interpolator: str | Interpolator | None) -> Interpolator:
    """ "kriging" (also None) and "idw" as objects with default settings; an object as it is."""
    if interpolator is None or (isinstance(interpolator, str) and interpolator == "kriging"):
        return Kriging()
    if isinstance(interpolator, str) and interpolator == "idw":
        return InverseDistance()
    if not isinstance(interpolator, Kriging | InverseDistance):
        raise InputError(f"interpolator must be kriging, idw or an interpolator; got {interpolator!r}")
    return interpolator


def pooling_groups(time: ArrayLike, overpass: ArrayLike | None = None, by: str = "season-overpass") -> NDArray[np.str_]:
    """(t,) labels of the steps that share one correlation model.

    Parameters
    ----------
    time : (t,) datetime64; overpass : (t,) "AM" | "PM", if known
    by : "season-overpass" (DJF, MAM, JJA, SON x overpass), "all", or "step" (a model for every step)
    """
    stamps = pd.DatetimeIndex(np.asarray(time))
    if by not in POOLING:
        raise InputError(f"pooling must be one of {', '.join(POOLING)}; got {by!r}")
    if by == "all":
        return np.full(len(stamps), "all")
    if by == "step":
        return np.array([stamp.isoformat() for stamp in stamps], dtype=np.str_)
    season = np.array(["DJF", "MAM", "JJA", "SON"])[stamps.month.to_numpy() % 12 // 3]
    if overpass is None:
        return season
    return np.array([f"{s} {o}" for s, o in zip(season, np.asarray(overpass), strict=True)], dtype=np.str_)


def pooling_levels(time: ArrayLike, overpass: ArrayLike | None = None, by: str = "season-overpass") -> NDArray[np.str_]:
    """(levels, t) labels, the finest pooling first: what a step falls back to where it has no model of its own.

    "step" is the step itself, then its season and overpass. All steps together are always the last resort.
    """
    if by not in POOLING:
        raise InputError(f"pooling must be one of {', '.join(POOLING)}; got {by!r}")
    rows = [pooling_groups(time, overpass, level) for level in POOLING[by]]
    return np.array(rows, dtype=np.str_).reshape(len(rows), np.size(np.asarray(time)))


# -- correlation models ------------------------------------------------------------------------


@dataclass(frozen=True)
class StepModels:
    """The correlation model of each step.

    Parameters
    ----------
    variograms : the distinct ones
    index : (t,) int64, which of them a step has; -1 for none
    records : for each label of the finest level, the variogram and what it was pooled over, or why there is none
    mean_variance : of anomalies, the variance of a step's mean; 0 where that is not known
    """

    variograms: tuple[Variogram, ...]
    index: NDArray[np.int64]
    records: dict[str, dict[str, Any]]
    mean_variance: float = 0.0

    def prior(self) -> Floats:
        """(t,) float64: variance of anomalies in steps without stations, NaN without a model."""
        sills = np.array([*(v.partial_sill + self.mean_variance for v in self.variograms), np.nan])
        return sills[self.index]


def as_levels(groups: Sequence[Hashable] | NDArray | None, t: int) -> NDArray[np.str_]:
    """(levels, t) labels of `groups`: none, (t,) labels, or levels of them."""
    if groups is None:
        return np.empty((0, t), dtype=np.str_)
    table = np.asarray(groups)
    table = (
        table.astype(np.str_) if table.dtype != object else np.array([[str(g) for g in row] for row in table.tolist()])
    )
    levels = table[None] if table.ndim == 1 else table
    if levels.ndim != 2 or levels.shape[1] != t:
        raise InputError(f"groups must label the {t} steps, as (steps,) or (levels, steps); got shape {table.shape}")
    return levels


def no_models(t: int) -> StepModels:
    """Of an interpolator that has none."""
    return StepModels((), np.full(t, -1, np.int64), {})


def step_models(points: Floats, table: Floats, levels: NDArray[np.str_], wanted: Kriging) -> StepModels:
    """A variogram for every step, fitted to the pairs of its finest group that gives one.

    A step's own fit (the first of two levels) counts only where the data settle it: at a bound of the range, or without a
    partial sill, it steps down, and the record says so. Pooled fits are used as they are; theirs is recorded too.
    """
    t = table.shape[1]
    if isinstance(wanted.variogram, Variogram):
        record = {"pooled": "given", **wanted.variogram.to_dict()}
        names = sorted(set(levels[0].tolist())) if len(levels) else ["all"]
        return StepModels((wanted.variogram,), np.zeros(t, np.int64), dict.fromkeys(names, record))
    fitter = _Fitter(points, table, wanted.variogram or "exponential")
    names = ["group", "all steps"] if len(levels) < 2 else ["step", *["group"] * (len(levels) - 1), "all steps"]
    ladder = [*levels, np.full(t, "all")]
    names = names[-len(ladder) :]
    found: dict[Variogram, int] = {}
    index, records = np.full(t, -1, np.int64), {}
    for label in sorted(set(ladder[0].tolist())):
        own = np.flatnonzero(ladder[0] == label)
        chosen, records[label] = fitter.first(own[0], ladder, names)
        if chosen is not None:
            index[own] = found.setdefault(chosen, len(found))
    return StepModels(tuple(found), index, records)


@dataclass
class _Fitter:
    """Fits of groups of steps, each made once."""

    points: Floats
    table: Floats
    family: str

    def __post_init__(self) -> None:
        self.done: dict[tuple[int, str], Fit | str] = {}

    def first(
        self, step: np.int64, ladder: Sequence[NDArray[np.str_]], names: Sequence[str]
    ) -> tuple[Variogram | None, dict[str, Any]]:
        """The variogram of the finest group of a step that has one, and how it came about."""
        passed: list[str] = []
        for rung, (labels, name) in enumerate(zip(ladder, names, strict=True)):
            fit = self.fit(rung, labels, str(labels[step]), name == "step")
            if isinstance(fit, Fit) and not (name == "step" and fit.at_bound):
                record = {"pooled": name, **fit.to_dict()}
                return fit.variogram, record | ({"passed_over": passed} if passed else {})
            passed.append(f"{name}: {fit if isinstance(fit, str) else fit.at_bound}")
        return None, {"pooled": "none", "reason": "; ".join(passed)}

    def fit(self, rung: int, labels: NDArray[np.str_], label: str, single: bool) -> Fit | str:
        """The fit of one group, or why there is none."""
        if (rung, label) not in self.done:
            steps = labels == label
            values = self.table[:, steps]
            try:
                if single and np.isfinite(values).sum() < MIN_KRIGING:
                    raise InputError(f"fewer than {MIN_KRIGING} stations report")
                self.done[rung, label] = fit_recorded(self.points, values, self.family, min_pairs=MIN_POOLED_PAIRS)
            except InputError as error:
                self.done[rung, label] = str(error)
        return self.done[rung, label]


def fit_summary(records: dict[str, dict[str, Any]]) -> dict[str, int]:
    """How many groups have a model of which pooling, how many of those stand at a bound, and how many passed one over."""
    pooled = Counter(record["pooled"] for record in records.values())
    bound = sum(bool(record.get("at_bound")) for record in records.values())
    return {**pooled, "at_bound": bound, "stepped_down": sum("passed_over" in record for record in records.values())}


# -- solved steps ------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldPart:
    """Time steps that share one fitted interpolator: `steps` (p,) int64, indices into all steps."""

    steps: NDArray[np.int64]
    interpolator: Interpolator


@dataclass(frozen=True)
class SolvedSteps:
    """Values of stations at every step, solved, each step by its own method.

    Parameters
    ----------
    method : (t,) uint32, one of the four `Status` bits of fusion
    counts : (t,) int64, reporting stations
    mean : (t,) float64, their mean value, NaN without any
    parts : the steps by kriging and by inverse distance
    values : (n, t) float64, NaN where silent
    models : the steps' variograms
    """

    method: NDArray[np.uint32]
    counts: NDArray[np.int64]
    mean: Floats
    parts: tuple[FieldPart, ...]
    values: Floats
    models: StepModels

    def selected(self, steps: slice | ArrayLike) -> NDArray[np.int64]:
        """Indices of the steps that a slice, an index, indices or a mask asks for."""
        every = np.arange(self.method.size, dtype=np.int64)
        return np.atleast_1d(every[steps if isinstance(steps, slice) else np.asarray(steps)])

    def pieces(self, steps: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], Interpolator]]:
        """Positions in `steps`, and the interpolator of just those times, part by part."""
        pieces = []
        for part in self.parts:
            place = np.full(self.method.size, -1)
            place[part.steps] = np.arange(part.steps.size)
            positions = np.flatnonzero(place[steps] >= 0)
            if positions.size:
                pieces.append((positions, part.interpolator.at_times(place[steps[positions]])))
        return pieces

    def _level(self, steps: NDArray[np.int64]) -> Floats:
        """(steps,) mean values where those are the method, NaN elsewhere."""
        return np.where(self.method[steps] == Status.FUSED_MEAN_RESIDUAL, self.mean[steps], np.nan)

    def evaluate(
        self, lon: ArrayLike, lat: ArrayLike, steps: NDArray[np.int64], elevation: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """(steps, lat, lon) float32; NaN in steps without a method and in cells without a needed elevation."""
        out = np.empty((steps.size, np.size(lat), np.size(lon)), np.float32)
        pieces = self.pieces(steps)
        others = np.setdiff1d(np.arange(steps.size), np.concatenate([np.empty(0, int), *(at for at, _ in pieces)]))
        out[others] = self._level(steps[others])[:, None, None]
        for positions, interpolator in pieces:
            interpolator.fill_steps(out, positions, lon, lat, elevation)
        return out

    def filled(self, steps: NDArray[np.int64], positions: NDArray[np.int64], part: NDArray) -> NDArray[np.float32]:
        """(steps, lat, lon) float32 from the part (p, lat, lon) of some positions; the others stand at their level."""
        out = np.empty((steps.size, *part.shape[1:]), np.float32)
        out[:] = self._level(steps)[:, None, None]
        out[positions] = part
        return out

    def evaluate_points(self, coords: ArrayLike, steps: NDArray[np.int64]) -> Floats:
        """(steps, m) float64 at (m, 2 | 3) coords; NaN in steps without a method."""
        out = np.empty((steps.size, len(np.asarray(coords))))
        out[:] = self._level(steps)[:, None]
        for positions, interpolator in self.pieces(steps):
            out[positions] = interpolator.predict(coords).T
        return out

    def variance(
        self, lon: ArrayLike, lat: ArrayLike, steps: NDArray[np.int64], elevation: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """(steps, lat, lon) float32: kriging variance, NaN in steps by other methods."""
        out = np.empty((steps.size, np.size(lat), np.size(lon)), np.float32)
        others = np.ones(steps.size, bool)
        for positions, interpolator in self.pieces(steps):
            if isinstance(interpolator, Kriging):
                interpolator.fill_variance(out, positions, lon, lat, elevation)
                others[positions] = False
        out[others] = np.nan
        return out

    def leave_one_out(self) -> Floats:
        """(n, t) float64: each station's values from the others, by the step's own method and variogram.

        NaN where the station is silent or no other reports.
        """
        return self.left_out[0].copy()

    @cached_property
    def left_out(self) -> tuple[Floats, Floats]:
        """(n, t) each: `leave_one_out`, and the variance of those errors, NaN but in steps by kriging from all stations."""
        others = np.maximum(self.counts - 1, 0)
        total = np.where(np.isfinite(self.values), self.values, 0.0).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            out = np.where(others > 0, (total - self.values) / others, np.nan)
        variance = np.full(out.shape, np.nan)
        for part in self.parts:
            if isinstance(part.interpolator, Kriging):
                out[:, part.steps], variance[:, part.steps] = part.interpolator.left_out()
            else:
                out[:, part.steps] = part.interpolator.leave_one_out()
        return out, variance

    def dual(self) -> Dual:
        """What was solved of the steps by kriging from all stations: means, NaN in others, and coefficients, 0 there."""
        kriged = [
            (part.steps, part.interpolator)
            for part in self.parts
            if isinstance(part.interpolator, Kriging) and part.interpolator.neighbours is None
        ]
        rows = max((len(model.coefficients_) for _, model in kriged), default=0)
        mean, coefficients = np.full(self.method.size, np.nan), np.zeros((rows, self.method.size))
        for steps, model in kriged:
            mean[steps], coefficients[:, steps] = model.mean_, model.coefficients_
        return mean, coefficients


def solve_steps(
    coords: ArrayLike,
    values: Floats,
    wanted: Interpolator,
    models: StepModels,
    min_kriging: int = MIN_KRIGING,
    kriging: Callable[[Kriging, Variogram], Kriging] | None = None,
    dual: Dual | None = None,
) -> SolvedSteps:
    """Solve all steps, each on the highest rung that it reaches with these models.

    Kriging (unfitted from `kriging`, if not what was asked for) needs `min_kriging` reporting stations and a model.
    Inverse distance (with its default settings, if kriging was asked for) needs `MIN_IDW`. One station is enough for a
    mean; none leaves the step without. `dual` is `SolvedSteps.dual` of the same steps: they are not solved again.
    """
    make = kriging or with_variogram
    counts = np.isfinite(values).sum(axis=0)
    by_kriging = (models.index >= 0) & (counts >= min_kriging)
    by_idw = ~by_kriging & (counts >= MIN_IDW)
    method = np.select([by_kriging, by_idw, counts > 0], list(METHODS.values())[:3], Status.NOT_FUSED)
    parts = [
        _part(coords, values, make(wanted, variogram), np.flatnonzero(by_kriging & (models.index == number)), dual)
        for number, variogram in enumerate(models.variograms)
        if isinstance(wanted, Kriging)
    ]
    parts.append(_part(coords, values, inverse_distance(wanted), np.flatnonzero(by_idw)))
    total = np.where(np.isfinite(values), values, 0.0).sum(axis=0)
    mean = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    kept = tuple(part for part in parts if part is not None)
    return SolvedSteps(method.astype(np.uint32), counts, mean, kept, values, models)


def _part(
    coords: ArrayLike, values: Floats, model: Interpolator, steps: NDArray[np.int64], dual: Dual | None = None
) -> FieldPart | None:
    if not steps.size:
        return None
    if dual is None or not isinstance(model, Kriging) or model.neighbours is not None:
        return FieldPart(steps, model.fit(coords, values[:, steps]))
    mean, coefficients = dual
    return FieldPart(steps, model.fit(coords, values[:, steps], (mean[steps], coefficients[:, steps])))


def with_variogram(wanted: Kriging, variogram: Variogram) -> Kriging:
    """The same settings with this variogram, not fitted."""
    model = copy(wanted)
    model.variogram = variogram
    return model


def inverse_distance(wanted: Interpolator) -> InverseDistance:
    """What was asked for, if that; else the default with the same count of elevation; not fitted."""
    return (
        copy(wanted) if isinstance(wanted, InverseDistance) else InverseDistance(vertical_scale=wanted.vertical_scale)
    )


def models_for(coords: ArrayLike, values: Floats, levels: NDArray[np.str_], wanted: Interpolator) -> StepModels:
    """`step_models` of kriging; none of inverse distance."""
    if not isinstance(wanted, Kriging):
        return no_models(values.shape[1])
    return step_models(station_points(coords, wanted.vertical_scale), values, levels, wanted)
