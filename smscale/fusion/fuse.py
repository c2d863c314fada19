"""Stations merged into maps that are in memory, or in chunks that are read one by one.

Pass one (tiny): the background at the stations' cells gives residuals, and `solve.pose(...).solve()` solves every time step.
Pass two: for each block of the grid, `ResidualField.evaluate` and `apply_residual_field`.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.fusion.apply import BOUNDS, apply_residual_field
from smscale.fusion.at_stations import TOLERANCE, cells_of_points, match_times
from smscale.fusion.field import ResidualField
from smscale.fusion.ladder import Interpolator, as_interpolator, pooling_levels
from smscale.fusion.residuals import Residual, as_residual
from smscale.fusion.scoring import raw_and_debiased
from smscale.fusion.solve import pose
from smscale.fusion.systematic import check_systematic
from smscale.schema import STEP_COORDINATES, VARIABLES, status_attrs

Floats = NDArray[np.float64]

#: Numbers of a tile that `fuse` corrects at once: some 40 bytes each of working memory.
TILE_NUMBERS = 2_000_000


def fuse(
    background: xr.DataArray,
    stations: xr.Dataset,
    residual: str | Residual = "difference",
    interpolator: str | Interpolator | None = None,
    systematic: str = "none",
    groups: str | Sequence[Hashable] | NDArray | None = None,
    bounds: tuple[float, float] = BOUNDS,
    tolerance: np.timedelta64 | timedelta | str = TOLERANCE,
    elevation: xr.DataArray | None = None,
    taper_km: float | None = None,
    variance: bool = False,
    leave_one_out: bool = True,
) -> xr.Dataset:
    """Station measurements merged into a soil-moisture map, step by step.

    Each station is compared with the background cell that it lies in, at the nearest time; the residuals are interpolated
    (`solve.pose`) and applied to every cell that has a background. Beside input and result the working memory
    does not grow with the grid; a background of dask chunks is read chunk by chunk.

    Parameters
    ----------
    background : (time, lat, lon) m3 m-3, NaN where missing; degrees, both axes in order
    stations : (station, time) `soil_moisture`, m3 m-3, with `lat`, `lon` (and `elevation`, m) along station
    residual : "difference", "ratio", or an object such as `Ratio(floor=0.05)`
    interpolator : "kriging", "idw", `Kriging(...)`, `InverseDistance(...)`; None is `Kriging()`
    systematic, taper_km : see `solve.pose`
    groups : labels of steps that share a variogram: "season-overpass", "step" or "all"; or (time,) or (levels, time) of
        them; None pools all
    bounds : lowest and highest result, m3 m-3
    tolerance : how far a station's time may be from the background's
    elevation : (lat, lon) m; needed with `vertical_scale`
    variance : also give the kriging variance of the result
    leave_one_out : score by leaving out one station after the other

    Returns
    -------
    Dataset: soil_moisture (time, lat, lon) float32; status (time, lat, lon) uint32, CF flags; station_count (time) int32;
    with `variance`, soil_moisture_variance (time, lat, lon) float32, NaN where not by kriging. In its attributes: counts of
    what was left out, capped and clipped, the steps by method, and as JSON the variograms, what was done about systematic
    error, and the leave-one-station-out `scores` {"raw" | "debiased": {"before" | "after": ...}} (`raw_and_debiased`).

    Raises
    ------
    InputError
        for wrong types, missing dimensions or variables, or axes out of order.
    """
    _check_background(background)
    _check_stations(stations)
    _check_bounds(bounds)
    check_systematic(systematic)
    kind, wanted = as_residual(residual), as_interpolator(interpolator)
    flipped = _flips(background)
    ground = background.isel(flipped)
    height = _heights(elevation, background, flipped)
    reach = _as_reach(tolerance)
    observed, at_cells, coords, report = _compared(ground, stations, wanted.vertical_scale, reach, bounds)
    field = pose(
        coords, observed, at_cells, kind, wanted, systematic, _levels(groups, background), taper_km=taper_km
    ).solve()
    layers, counts = _merge(ground, field, bounds, height, variance)
    report |= _report(field, counts, bounds)
    if leave_one_out:
        after = np.clip(kind.apply(at_cells, field.leave_one_out()), *bounds)
        scores = raw_and_debiased(observed, {"before": at_cells, "after": after})
        report["scores"] = _json(scores)
    return _as_dataset(ground, layers, field.counts, report).isel(flipped)


def _compared(
    background: xr.DataArray,
    stations: xr.Dataset,
    vertical_scale: float | None,
    tolerance: np.timedelta64,
    bounds: tuple[float, float],
) -> tuple[Floats, Floats, Floats, dict[str, Any]]:
    """Values, background and coordinates of the stations inside the grid, and counts of the others."""
    coords = _station_coords(stations, vertical_scale)
    somewhere = np.isfinite(coords).all(axis=1)
    row, col = cells_of_points(background["lon"].values, background["lat"].values, *coords[somewhere, :2].T)
    inside = np.flatnonzero(somewhere)[row >= 0]
    values = np.asarray(stations["soil_moisture"].transpose("station", "time").values, np.float64)
    _check_unit(values, bounds)
    observed = match_times(stations["time"].values, values[inside], background["time"].values, tolerance)
    place = {"lat": xr.DataArray(row[row >= 0], dims="station"), "lon": xr.DataArray(col[row >= 0], dims="station")}
    at_cells = background.isel(place).transpose("station", "time").values.astype(np.float64)
    names = _station_names(stations)
    counts = {
        "stations": int(inside.size),
        "stations_without_coordinates": int((~somewhere).sum()),
        "stations_outside_grid": int((row < 0).sum()),
        "stations_on_masked_cells": int((~np.isfinite(at_cells).any(axis=1)).sum()),
        "station_names_repeated": len(names) - len(set(names)),
    }
    return observed, at_cells, coords[inside], counts


def _report(field: ResidualField, counts: dict[str, int], bounds: tuple[float, float]) -> dict[str, Any]:
    """What a fusion did, as attributes that any file format takes."""
    limits = ("floored", "capped")
    report: dict[str, Any] = {
        "residual": field.residual.name,
        "systematic": field.systematic["name"],
        # those without coordinates were counted before
        **{name: n for name, n in field.left_out.items() if name not in (*limits, "stations_without_coordinates")},
        **{f"residuals_{name}": field.left_out[name] for name in limits},
        **{f"cells_{name}": count for name, count in counts.items()},
        **{f"steps_{name}": count for name, count in field.steps_by_method().items()},
        "lowest": bounds[0],
        "highest": bounds[1],
        "variograms": _json(field.variograms),
        "systematic_record": _json(field.systematic),
    }
    if field.taper_km is not None:
        report["taper_km"] = float(field.taper_km)
    removed = field.systematic.get("mean_removed")
    return report if removed is None else report | {"mean_systematic_removed": removed}


def _json(values: Any) -> str:
    """Strict JSON: a score that there is none of is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return json.dumps(plain(values), sort_keys=True, allow_nan=False)


# -- the map, tile by tile ---------------------------------------------------------------------


def _merge(
    background: xr.DataArray,
    field: ResidualField,
    bounds: tuple[float, float],
    height: NDArray | None,
    variance: bool,
) -> tuple[dict[str, NDArray], dict[str, int]]:
    """`apply_residual_field` over the whole background, a tile at a time."""
    lon, lat = background["lon"].values, background["lat"].values
    layers: dict[str, NDArray] = {
        "soil_moisture": np.empty(background.shape, np.float32),
        "status": np.empty(background.shape, np.uint32),
    }
    if variance:
        layers["soil_moisture_variance"] = np.empty(background.shape, np.float32)
    totals = dict.fromkeys(("fused", "not_fused", "clipped"), 0)
    for steps, rows, ground in _tiles(background):
        part = None if height is None else height[rows]
        correction = field.evaluate(lon, lat[rows], steps, part)
        fused, status, counts = apply_residual_field(ground, correction, field.method[steps], field.residual, bounds)
        layers["soil_moisture"][steps, rows], layers["status"][steps, rows] = fused, status
        totals = {name: n + counts[name] for name, n in totals.items()}
        if variance:
            known = field.variance(lon, lat[rows], steps, part)
            layers["soil_moisture_variance"][steps, rows] = field.residual.map_variance(ground, known)
    return layers, totals


def _tiles(background: xr.DataArray) -> Iterator[tuple[slice, slice, NDArray]]:
    """Steps, rows and values of tiles of some `TILE_NUMBERS`, all of one chunk before the next."""
    _, _, cols = background.shape
    for slab, band in _chunks(background):
        chunk = background.isel(time=slab, lat=band).values
        t, n, _ = chunk.shape
        rows = max(1, TILE_NUMBERS // max(1, cols * t))
        for first in range(0, n, rows):
            part = slice(first, min(first + rows, n))
            yield slab, slice(band.start + part.start, band.start + part.stop), chunk[:, part]


def _chunks(background: xr.DataArray) -> Iterator[tuple[slice, slice]]:
    """(time, lat) slices of the chunks of a lazy background; small ones together; one of all otherwise."""
    t, n, cols = background.shape
    chunks = background.chunks
    if chunks is None:
        yield slice(0, t), slice(0, n)
        return
    for band in _joined(chunks[1], max(1, TILE_NUMBERS // max(1, max(chunks[0], default=1) * cols))):
        for slab in _joined(chunks[0], max(1, TILE_NUMBERS // max(1, (band.stop - band.start) * cols))):
            yield slab, band


def _joined(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Neighbouring chunks along an axis, together no longer than `most` unless one is."""
    start = stop = 0
    for size in sizes:
        if stop > start and stop + size - start > most:
            yield slice(start, stop)
            start = stop
        stop += size
    if stop > start:
        yield slice(start, stop)


def _as_dataset(
    background: xr.DataArray, layers: dict[str, NDArray], counts: NDArray, report: dict[str, Any]
) -> xr.Dataset:
    dims = ("time", "lat", "lon")
    attrs: dict[str, dict[str, Any]] = {
        "soil_moisture": VARIABLES["soil_moisture"].attrs,
        "status": status_attrs(),
        "soil_moisture_variance": {
            "long_name": "kriging variance of soil moisture, free of measurement error; missing where not by kriging",
            "units": "m6 m-6",
        },
    }
    heard = ("time", counts.astype(np.int32), {"long_name": "places of stations compared with the background"})
    return xr.Dataset(
        {**{name: (dims, values, attrs[name]) for name, values in layers.items()}, "station_count": heard},
        coords=background.coords,
        attrs=report,
    )


# -- what is given -----------------------------------------------------------------------------


def _check_background(background: xr.DataArray) -> None:
    if not isinstance(background, xr.DataArray):
        raise InputError(f"background must be a DataArray of dims (time, lat, lon); got {type(background).__name__}")
    if background.dims != ("time", "lat", "lon"):
        raise InputError(
            f"background must have dims (time, lat, lon); got {background.dims}: transpose it, or expand time"
        )
    lacking = [name for name in ("time", "lat", "lon") if name not in background.coords]
    if lacking:
        raise InputError(f"background has no coordinates {', '.join(lacking)}: assign them")
    if background.dtype.kind not in "fiu":
        raise InputError(f"background must hold numbers, m3 m-3; got dtype {background.dtype}")
    _check_times(background["time"], "background")


def _check_stations(stations: xr.Dataset) -> None:
    if not isinstance(stations, xr.Dataset):
        raise InputError(
            f"stations must be a Dataset of (station, time) soil_moisture with lat and lon; got {type(stations).__name__}"
        )
    lacking = [name for name in ("soil_moisture", "lat", "lon", "time") if name not in stations.variables]
    if lacking or set(stations["soil_moisture"].dims) != {"station", "time"}:
        raise InputError(
            f"stations must hold (station, time) soil_moisture with lat, lon and time; lacking: {lacking or 'dims'}"
        )
    if stations["soil_moisture"].dtype.kind not in "fiu":
        raise InputError(f"stations' soil_moisture must hold numbers; got dtype {stations['soil_moisture'].dtype}")
    _check_times(stations["time"], "stations")


def _check_times(time: xr.DataArray, whose: str) -> None:
    if time.dtype.kind != "M":
        raise InputError(f"time of {whose} must be datetime64; got {time.dtype}: decode it")
    missing = int(np.isnat(time.values).sum())
    if missing:
        raise InputError(f"time of {whose} holds {missing} missing values: leave those steps out")


def _check_bounds(bounds: tuple[float, float]) -> None:
    if np.size(bounds) != 2 or not np.all(np.diff(np.asarray(bounds, np.float64)) > 0):
        raise InputError(f"bounds must be lowest < highest, m3 m-3; got {bounds}")


def _as_reach(tolerance: Any) -> np.timedelta64:
    """A duration in whatever form pandas knows."""
    try:
        reach: Any = pd.Timedelta(tolerance)
    except (ValueError, TypeError):
        reach = pd.NaT
    if reach is pd.NaT or reach < pd.Timedelta(0):
        raise InputError(f"tolerance must be a duration, such as np.timedelta64(90, 'm') or '90min'; got {tolerance!r}")
    return reach.to_timedelta64()


def _check_unit(values: Floats, bounds: tuple[float, float]) -> None:
    """Refuse per cent: every cell would be clipped."""
    known = values[np.isfinite(values)]
    if known.size and bounds[1] <= 1 and np.median(known) > 1:
        raise InputError(
            f"stations' soil_moisture must be m3 m-3; its median is {np.median(known):.3g}: divide per cent by 100"
        )


def _flips(background: xr.DataArray) -> dict[str, slice]:
    """The index that makes lat run north to south and lon west to east."""
    turns = {}
    for name, up in (("lat", False), ("lon", True)):
        values = np.asarray(background[name].values, np.float64)
        step = np.diff(values)
        if not np.isfinite(values).all() or not (np.all(step > 0) or np.all(step < 0)):
            raise InputError(f"{name} of background must rise or fall throughout: sort it with sortby({name!r})")
        if step.size and (step[0] > 0) != up:
            turns[name] = slice(None, None, -1)
    return turns


def _heights(elevation: xr.DataArray | None, background: xr.DataArray, flipped: dict[str, slice]) -> NDArray | None:
    if elevation is None:
        return None
    if not isinstance(elevation, xr.DataArray) or set(elevation.dims) != {"lat", "lon"}:
        raise InputError("elevation must be a DataArray of dims (lat, lon), in m")
    shape = (background.sizes["lat"], background.sizes["lon"])
    height = elevation.transpose("lat", "lon")
    same = all(n not in height.coords or np.array_equal(height[n], background[n]) for n in ("lat", "lon"))
    if height.shape != shape or not same:
        raise InputError(f"elevation must lie on the background's lat and lon {shape}; got {height.shape}")
    return height.isel(flipped).values


def _levels(groups: Any, background: xr.DataArray) -> Any:
    """Labels of steps; a word is worked out from the time and, where there is one, the overpass."""
    if not isinstance(groups, str):
        return groups
    overpass = background.coords.get(STEP_COORDINATES[0])
    words = None if overpass is None or overpass.dims != ("time",) else overpass.values
    return pooling_levels(background["time"].values, words, groups)


def _station_names(stations: xr.Dataset) -> list[Any]:
    for name in ("station_name", "station"):
        if name in stations.variables and stations[name].dims == ("station",):
            return stations[name].values.tolist()
    return []


def _station_coords(stations: xr.Dataset, vertical_scale: float | None) -> Floats:
    names = ["lon", "lat"] + (["elevation"] if vertical_scale is not None else [])
    if "elevation" in names and "elevation" not in stations.variables:
        raise InputError(f"vertical_scale {vertical_scale} needs station elevations: stations has no elevation")
    columns = []
    for name in names:
        if stations[name].dims != ("station",) or stations[name].dtype.kind not in "fiu":
            raise InputError(f"{name} of stations must be numbers along station; got {stations[name].dims}")
        columns.append(np.asarray(stations[name].values, np.float64))
    return np.column_stack(columns)
