"""Residuals of stations, interpolated and merged into maps, in pieces that a block can call.

Pass one (tiny): the background at the stations' cells gives residuals; `solve_residual_field` decides for every time
step which rung of the ladder it stands on (kriging, inverse distance, mean residual, none) and solves it. Pass two: for
each block of the grid, `ResidualField.evaluate` and `apply_residual_field`. `fuse` is both at once for arrays in memory.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.fusion.coordinates import as_values, row_tiles, station_points
from smscale.fusion.interpolators import TILE_NUMBERS, InverseDistance, Kriging
from smscale.fusion.residuals import Residual, as_residual, remove_systematic
from smscale.fusion.variogram import Variogram, fit_points
from smscale.grid import Grid
from smscale.schema import VARIABLES, Status, status_attrs

Floats = NDArray[np.float64]
Interpolator = Kriging | InverseDistance

#: Fewest reporting stations of a step for kriging and for inverse distance weighting; below, their mean residual.
MIN_KRIGING = 8
MIN_IDW = 3
#: Fewest pairs x times within the cutoff for a pooled variogram (Journel & Huijbregts 1978: 30 pairs a lag, here in all).
MIN_POOLED_PAIRS = 30
#: Physical bounds of fused soil moisture, m3 m-3. Porosity is 0.34-0.48 by texture class (Cosby et al. 1984, Water
#: Resources Research 20, 682-690); 0.6 leaves room for loose and organic topsoil. Give wider bounds for peat.
BOUNDS = (0.0, 0.6)
#: A station value belongs to a background time if it is no further away than this.
TOLERANCE = np.timedelta64(90, "m")

METHODS = {
    "kriging": Status.FUSED_KRIGING,
    "idw": Status.FUSED_IDW,
    "mean": Status.FUSED_MEAN_RESIDUAL,
    "none": Status.NOT_FUSED,
}


@dataclass(frozen=True)
class FieldPart:
    """Time steps that share one fitted interpolator: `steps` (p,) int64, indices into the field's steps."""

    steps: NDArray[np.int64]
    interpolator: Interpolator


@dataclass(frozen=True)
class ResidualField:
    """Residuals of every time step, solved: small arrays that can be sent to workers and evaluated anywhere.

    Parameters
    ----------
    method : (t,) uint32, one of the four `Status` bits of fusion
    counts : (t,) int64, reporting stations
    mean : (t,) float64, their mean residual, NaN without any
    parts : the steps by kriging and by inverse distance
    residuals : (n, t) float64, what was given
    variograms : for each pooling group, the fitted variogram and what it was pooled over, or why there is none
    """

    method: NDArray[np.uint32]
    counts: NDArray[np.int64]
    mean: Floats
    parts: tuple[FieldPart, ...]
    residuals: Floats
    variograms: dict[str, dict[str, Any]]

    def _selected(self, steps: slice | ArrayLike) -> NDArray[np.int64]:
        every = np.arange(self.method.size, dtype=np.int64)
        return np.atleast_1d(every[steps if isinstance(steps, slice) else np.asarray(steps)])

    def _pieces(self, steps: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], Interpolator]]:
        """Positions in `steps`, and the interpolator of just those times, part by part."""
        pieces = []
        for part in self.parts:
            place = np.full(self.method.size, -1)
            place[part.steps] = np.arange(part.steps.size)
            positions = np.flatnonzero(place[steps] >= 0)
            if positions.size:
                pieces.append((positions, part.interpolator.at_times(place[steps[positions]])))
        return pieces

    def _start(self, steps: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Mean residuals where those are the method, NaN elsewhere."""
        level = np.where(self.method[steps] == Status.FUSED_MEAN_RESIDUAL, self.mean[steps], np.nan)
        return np.broadcast_to(level.astype(np.float32)[(..., *[None] * len(shape))], (steps.size, *shape)).copy()

    def evaluate(
        self,
        lon: ArrayLike,
        lat: ArrayLike,
        steps: slice | ArrayLike = slice(None),
        elevation: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """The residual field of some steps on a grid.

        A cell's value does not depend on the block or tile it is asked for with, beyond float32 rounding.

        Parameters
        ----------
        lon : (n,), lat : (m,) degrees, cell centres; elevation : (lat, lon) metres, if the interpolator counts it
        steps : which time steps, as an index into the steps

        Returns
        -------
        (steps, lat, lon) float32; NaN in steps that are not fused, and in cells without a needed elevation
        """
        steps = self._selected(steps)
        out = self._start(steps, (np.size(lat), np.size(lon)))
        for positions, interpolator in self._pieces(steps):
            out[positions] = interpolator.predict_grid(lon, lat, elevation)
        return out

    def evaluate_points(self, coords: ArrayLike, steps: slice | ArrayLike = slice(None)) -> NDArray[np.float32]:
        """(steps, m) float32 at (m, 2 | 3) coords; NaN in steps that are not fused."""
        steps = self._selected(steps)
        out = self._start(steps, (len(np.asarray(coords)),))
        for positions, interpolator in self._pieces(steps):
            out[positions] = interpolator.predict(coords).T
        return out

    def leave_one_out(self) -> Floats:
        """Each station's residuals predicted from the other stations by the step's own method and variogram.

        Returns
        -------
        (n, t) float64; NaN where the station is silent or no other reports
        """
        others = np.maximum(self.counts - 1, 0)
        total = np.where(np.isfinite(self.residuals), self.residuals, 0.0).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            out = np.where(others > 0, (total - self.residuals) / others, np.nan)
        for part in self.parts:
            out[:, part.steps] = part.interpolator.leave_one_out()
        return out

    def steps_by_method(self) -> dict[str, int]:
        """How many steps stand on each rung of the ladder."""
        return {name: int((self.method == bit).sum()) for name, bit in METHODS.items()}

    def to_dict(self) -> dict[str, Any]:
        """What was fitted and decided, as plain values."""
        return {
            "steps": self.steps_by_method(),
            "interpolators": sorted({repr(part.interpolator) for part in self.parts}),
            "variograms": self.variograms,
        }


def as_interpolator(interpolator: str | Interpolator | None) -> Interpolator:
    """ "kriging" (also None) and "idw" as objects with default settings; an object as it is."""
    if interpolator is None or interpolator == "kriging":
        return Kriging()
    if interpolator == "idw":
        return InverseDistance()
    if isinstance(interpolator, str):
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
    if by == "all":
        return np.full(len(stamps), "all")
    if by == "step":
        return np.array([stamp.isoformat() for stamp in stamps], dtype=np.str_)
    if by != "season-overpass":
        raise InputError(f"pooling must be season-overpass, all or step; got {by!r}")
    season = np.array(["DJF", "MAM", "JJA", "SON"])[stamps.month.to_numpy() % 12 // 3]
    if overpass is None:
        return season
    return np.array([f"{s} {o}" for s, o in zip(season, np.asarray(overpass), strict=True)])


def solve_residual_field(
    coords: ArrayLike,
    residuals: ArrayLike,
    interpolator: str | Interpolator | None = None,
    groups: Sequence[Hashable] | NDArray | None = None,
    min_kriging: int = MIN_KRIGING,
    min_idw: int = MIN_IDW,
) -> ResidualField:
    """Solve all time steps, each on the highest rung of the ladder that it reaches.

    Kriging needs `min_kriging` reporting stations and a correlation model: the interpolator's own variogram, or one
    fitted to the pairs of the step's group, or else of all steps. Inverse distance (with its default settings, if kriging
    was asked for) needs `min_idw`. One station is enough for a mean residual; none leaves the step unfused.

    Parameters
    ----------
    coords : (n, 2 | 3) longitude, latitude, elevation
    residuals : (n, t) NaN where silent
    interpolator : "kriging", "idw", or an unfitted interpolator; None is kriging
    groups : (t,) labels of the steps that share one correlation model; None pools all steps
    """
    wanted = as_interpolator(interpolator)
    table = as_values(coords, residuals)
    counts = np.isfinite(table).sum(axis=0)
    labels = [str(g) for g in groups] if groups is not None else ["all"] * table.shape[1]
    if len(labels) != table.shape[1]:
        raise InputError(f"groups must label the {table.shape[1]} steps; got {len(labels)} labels")
    models: dict[str, Variogram] = {}
    variograms: dict[str, dict[str, Any]] = {}
    if isinstance(wanted, Kriging):
        models, variograms = _correlation_models(station_points(coords, wanted.vertical_scale), table, labels, wanted)
    modelled = np.array([label in models for label in labels], bool)
    by_kriging = modelled & (counts >= min_kriging)
    by_idw = ~by_kriging & (counts >= min_idw)
    method = np.select([by_kriging, by_idw, counts > 0], list(METHODS.values())[:3], Status.NOT_FUSED)
    parts = _kriging_parts(coords, table, wanted, models, labels, by_kriging) + _idw_parts(
        coords, table, wanted, by_idw
    )
    total = np.where(np.isfinite(table), table, 0.0).sum(axis=0)
    mean = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    return ResidualField(method.astype(np.uint32), counts, mean, tuple(parts), table, variograms)


def _correlation_models(
    points: Floats, table: Floats, labels: list[str], wanted: Kriging
) -> tuple[dict[str, Variogram], dict[str, dict[str, Any]]]:
    """The variogram of each group, and a record of how it came about; a group without one is absent from the first."""
    groups = sorted(set(labels))
    if isinstance(wanted.variogram, Variogram):
        record = {"pooled": "given", **wanted.variogram.to_dict()}
        return dict.fromkeys(groups, wanted.variogram), dict.fromkeys(groups, record)
    family = wanted.variogram or "exponential"
    models, records = {}, {}
    for group in groups:
        own = np.array([label == group for label in labels])
        reason = ""
        for pooled, steps in (("group", own), ("all steps", np.ones(len(labels), bool))):
            try:
                models[group] = fit_points(points, table[:, steps], family, min_pairs=MIN_POOLED_PAIRS)
            except InputError as error:
                reason = reason or str(error)
                continue
            records[group] = {"pooled": pooled, **models[group].to_dict()}
            break
        else:
            records[group] = {"pooled": "none", "reason": reason}
    return models, records


def _kriging_parts(
    coords: ArrayLike,
    table: Floats,
    wanted: Interpolator,
    models: dict[str, Variogram],
    labels: list[str],
    chosen: NDArray[np.bool_],
) -> list[FieldPart]:
    """One part per distinct variogram."""
    parts = []
    if not isinstance(wanted, Kriging):
        return []
    for variogram in dict.fromkeys(models[label] for label, use in zip(labels, chosen, strict=True) if use):
        steps = np.array([i for i in np.flatnonzero(chosen) if models[labels[i]] == variogram], dtype=np.int64)
        model = Kriging(variogram, wanted.neighbours, wanted.exact, wanted.vertical_scale)
        parts.append(FieldPart(steps, model.fit(coords, table[:, steps])))
    return parts


def _idw_parts(coords: ArrayLike, table: Floats, wanted: Interpolator, chosen: NDArray[np.bool_]) -> list[FieldPart]:
    steps = np.flatnonzero(chosen)
    if steps.size == 0:
        return []
    if isinstance(wanted, InverseDistance):
        model = InverseDistance(wanted.neighbours, wanted.power, wanted.vertical_scale)
    else:
        model = InverseDistance(vertical_scale=wanted.vertical_scale)
    return [FieldPart(steps, model.fit(coords, table[:, steps]))]


def apply_residual_field(
    background: NDArray,
    field: NDArray[np.float32],
    method: NDArray[np.uint32],
    residual: str | Residual = "difference",
    bounds: tuple[float, float] = BOUNDS,
) -> tuple[NDArray[np.float32], NDArray[np.uint32], dict[str, int]]:
    """A block of the background corrected by its residual field, within physical bounds.

    Parameters
    ----------
    background : (t, lat, lon), NaN where missing
    field : (t, lat, lon) float32 from `ResidualField.evaluate`; NaN leaves the background as it is
    method : (t,) uint32, the steps' `Status` bits
    bounds : m3 m-3, lowest and highest result

    Returns
    -------
    fused : (t, lat, lon) float32, NaN where the background is
    status : (t, lat, lon) uint32: the step's method where a value was fused; NOT_FUSED elsewhere, cells without
        background included; and CLIPPED
    counts : cells "fused", "not_fused" (of those with a background) and "clipped": sums over blocks are the whole's
    """
    raw = as_residual(residual).apply(np.asarray(background, np.float64), field)
    fused = np.clip(raw, *bounds).astype(np.float32)
    known = np.isfinite(raw)
    corrected = known & np.isfinite(field)
    clipped = known & ((raw < bounds[0]) | (raw > bounds[1]))
    status = np.where(corrected, np.asarray(method, np.uint32)[:, None, None], np.uint32(Status.NOT_FUSED))
    status |= np.where(clipped, np.uint32(Status.CLIPPED), np.uint32(0))
    counts = {
        "fused": int(corrected.sum()),
        "not_fused": int((known & ~corrected).sum()),
        "clipped": int(clipped.sum()),
    }
    return fused, status, counts


def match_times(
    station_time: ArrayLike, values: Floats, time: ArrayLike, tolerance: np.timedelta64 = TOLERANCE
) -> Floats:
    """Each station's reported value nearest to each time, the earlier of two equally near; NaN beyond the tolerance.

    Parameters
    ----------
    station_time : (s,) datetime64, in any order; values : (n, s) NaN where silent; time : (t,) datetime64

    Returns
    -------
    (n, t) float64
    """
    station_time = np.asarray(station_time, "datetime64[ns]")
    order = np.argsort(station_time, kind="stable")
    clock, table = station_time[order], np.asarray(values, np.float64)[:, order]
    out = np.full((len(table), np.size(time)), np.nan)
    for step, moment in enumerate(np.atleast_1d(np.asarray(time, "datetime64[ns]"))):
        first, last = (
            np.searchsorted(clock, moment - tolerance, "left"),
            np.searchsorted(clock, moment + tolerance, "right"),
        )
        near = first + np.argsort(np.abs(clock[first:last] - moment), kind="stable")
        if near.size:
            window = table[:, near]
            out[:, step] = window[np.arange(len(table)), np.isfinite(window).argmax(axis=1)]
    return out


def cells_of_points(lon: ArrayLike, lat: ArrayLike, x: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
    """Row and column of points (x, y degrees) among cell centres lon ascending, lat descending; -1, -1 outside.

    A longitude of another turn (-100 for 260) is the same place.
    """
    grid = Grid(_edges(lon), _edges(lat))
    x = np.asarray(x, np.float64)
    middle = (grid.lon_edges[0] + grid.lon_edges[-1]) / 2
    return grid.index(x + 360.0 * np.round((middle - x) / 360.0), y)


def _edges(centres: ArrayLike) -> Floats:
    """Edges midway between centres; the outer ones as far out as the next edge is in."""
    centres = np.asarray(centres, np.float64)
    if centres.size < 2:
        raise InputError(f"a grid needs at least 2 cells along lat and lon to know their size; got {centres.size}")
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def fuse(
    background: xr.DataArray,
    stations: xr.Dataset,
    residual: str | Residual = "difference",
    interpolator: str | Interpolator | None = None,
    systematic: str = "none",
    groups: Sequence[Hashable] | NDArray | None = None,
    bounds: tuple[float, float] = BOUNDS,
    tolerance: np.timedelta64 = TOLERANCE,
    elevation: xr.DataArray | None = None,
) -> xr.Dataset:
    """Station measurements merged into a soil-moisture map, step by step.

    Each station is compared with the background cell that it lies in, at the nearest time; the residuals are interpolated
    (`solve_residual_field`) and applied to every cell that has a background.

    Parameters
    ----------
    background : (time, lat, lon) m3 m-3, NaN where missing; lon ascending, lat descending, degrees
    stations : (station, time) `soil_moisture` with `lat`, `lon` (and `elevation`, m) along station
    residual : "difference", "ratio", or an object such as `Ratio(floor=0.05)`
    interpolator : "kriging", "idw", `Kriging(...)`, `InverseDistance(...)`; None is `Kriging()`
    systematic : see `remove_systematic`
    groups : (time,) labels of steps that share a variogram; None pools all
    bounds : lowest and highest result, m3 m-3
    tolerance : how far a station's time may be from the background's
    elevation : (lat, lon) m; needed with `vertical_scale`

    Returns
    -------
    Dataset: soil_moisture (time, lat, lon) float32; status (time, lat, lon) uint32, CF flags; station_count (time) int32;
    counts of what was left out, capped and clipped, the steps by method and the variograms are in its attributes.

    Raises
    ------
    InputError
        for missing dimensions or variables, or unordered axes.
    """
    _check_inputs(background, stations)
    kind, wanted = as_residual(residual), as_interpolator(interpolator)
    observed = match_times(
        stations["time"].values,
        stations["soil_moisture"].transpose("station", "time").values,
        background["time"].values,
        tolerance,
    )
    row, col = cells_of_points(
        background["lon"].values, background["lat"].values, stations["lon"].values, stations["lat"].values
    )
    inside = row >= 0
    cells = background.isel(lat=xr.DataArray(row, dims="station"), lon=xr.DataArray(col, dims="station"))
    at_cells = np.where(inside[:, None], cells.transpose("station", "time").values.astype(np.float64), np.nan)
    residuals, removed = remove_systematic(kind.residual(observed, at_cells), systematic, kind)
    coords = _station_coords(stations, wanted.vertical_scale)
    field = solve_residual_field(coords[inside], residuals[inside], wanted, groups)
    fused, status, counts = _merge(background, field, kind, bounds, elevation)
    report = {
        "residual": kind.name,
        "systematic": systematic,
        "stations": int(inside.sum()),
        "stations_outside_grid": int((~inside).sum()),
        "stations_never_compared": int((inside & ~np.isfinite(residuals).any(axis=1)).sum()),
        **{f"residuals_{name}": count for name, count in kind.counts(observed, at_cells).items()},
        **{f"cells_{name}": count for name, count in counts.items()},
        **{f"steps_{name}": count for name, count in field.steps_by_method().items()},
        "lowest": bounds[0],
        "highest": bounds[1],
        "variograms": json.dumps(field.variograms, sort_keys=True),
    }
    if systematic != "none":
        report["mean_systematic_removed"] = float(np.nanmean(removed)) if np.isfinite(removed).any() else float("nan")
    return _as_dataset(background, fused, status, field.counts, report)


def _merge(
    background: xr.DataArray,
    field: ResidualField,
    residual: Residual,
    bounds: tuple[float, float],
    elevation: xr.DataArray | None,
) -> tuple[NDArray[np.float32], NDArray[np.uint32], dict[str, int]]:
    """`apply_residual_field` over the whole background, some rows at a time."""
    lon, lat = background["lon"].values, background["lat"].values
    height = None if elevation is None else elevation.transpose("lat", "lon").values
    fused, status = np.empty(background.shape, np.float32), np.empty(background.shape, np.uint32)
    counts: dict[str, int] = {}
    for rows in row_tiles(lat.size, lon.size, len(field.method), TILE_NUMBERS):
        part = None if height is None else height[rows]
        correction = field.evaluate(lon, lat[rows], elevation=part)
        ground = background.isel(lat=rows).values
        fused[:, rows], status[:, rows], tile = apply_residual_field(ground, correction, field.method, residual, bounds)
        counts = {name: counts.get(name, 0) + count for name, count in tile.items()}
    return fused, status, counts


def _as_dataset(
    background: xr.DataArray,
    fused: NDArray[np.float32],
    status: NDArray[np.uint32],
    counts: NDArray[np.int64],
    report: dict[str, Any],
) -> xr.Dataset:
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {
            "soil_moisture": (dims, fused, VARIABLES["soil_moisture"].attrs),
            "status": (dims, status, status_attrs()),
            "station_count": ("time", counts.astype(np.int32), {"long_name": "stations compared with the background"}),
        },
        coords=background.coords,
        attrs=report,
    )


def _check_inputs(background: xr.DataArray, stations: xr.Dataset) -> None:
    if background.dims != ("time", "lat", "lon"):
        raise InputError(
            f"background must have dims (time, lat, lon); got {background.dims}: transpose it, or expand time"
        )
    lacking = [name for name in ("soil_moisture", "lat", "lon", "time") if name not in stations.variables]
    if lacking or set(stations["soil_moisture"].dims) != {"station", "time"}:
        raise InputError(
            f"stations must hold (station, time) soil_moisture with lat, lon and time; lacking: {lacking or 'dims'}"
        )


def _station_coords(stations: xr.Dataset, vertical_scale: float | None) -> Floats:
    columns = [stations["lon"].values, stations["lat"].values]
    if vertical_scale is not None:
        if "elevation" not in stations.variables:
            raise InputError(f"vertical_scale {vertical_scale} needs station elevations: stations has no elevation")
        columns.append(stations["elevation"].values)
    return np.column_stack([np.asarray(column, np.float64) for column in columns])
