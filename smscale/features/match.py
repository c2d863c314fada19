"""What belongs together in time and space: granules to overpass steps, coarse cells to training samples."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from smscale import schema
from smscale.errors import InputError

Mask = NDArray[np.bool_]

#: Elevation that parts the mountains (NW) from the lowlands (SE) of Sichuan, m (Chen et al. 2023).
ZONE_ELEVATION = 3000.0

#: Classes that the paper leaves out: snow and ice, bare ground, water.
EXCLUDED_CLASSES = (schema.SNOW_ICE, schema.BARREN, schema.WATER)

#: What each sieve of `sample_table` leaves out.
REASONS = {
    "observed": "not seen by SMAP",
    "quality": "retrieval refused or missing",
    "land_cover": "land cover left out",
    "lst": "no LST (cloud)",
    "time": "LST too far in time",
    "predictors": "another predictor missing",
}

#: Hours of local solar time: a night view from here on belongs to the evening before its overpass step's date.
NOON = 12.0

_SEASONS = ("winter", "spring", "summer", "autumn")
_KEYS = ["time", "row", "col"]


# -- granules to steps --------------------------------------------------------------------------


def smap_steps(granules: Iterable[xr.Dataset], steps: xr.Dataset) -> xr.Dataset:
    """Lay the observations of UTC-day granules on overpass steps, by each cell's own observation time.

    SPL3SMP is cut by UTC day: over Sichuan the AM field of the file dated D is the local morning of D + 1. The step of an
    observation is the local solar date and half-day of its `observation_time` at its cell's longitude, whatever the file and
    the group it comes from. Of two observations of one cell and step the one nearer to 06:00 or 18:00 local solar time is
    kept; of equally near ones the first given.

    Parameters
    ----------
    granules : Datasets (overpass, lat, lon) or (lat, lon) on one grid, with `observation_time` (datetime64 UTC, NaT where not
        observed); read one after another
    steps : from `schema.overpass_steps`

    Returns
    -------
    Dataset (time, lat, lon) with the variables of the granules that lie on their grid: floats NaN and times NaT where not
    observed, integers their `missing_value` (or `_FillValue`, or the type's largest value). Attributes count `observations`
    kept, `duplicates` that lost, observations `outside_period`, and those whose group said the other overpass than their time
    (`overpass_disagrees`); `algorithm`, `product` and `version` name all that were met.

    Raises
    ------
    InputError
        if there is no granule, one lacks `observation_time`, they lie on different grids, or their retrieval algorithms differ.
    """
    slots: _Slots | None = None
    for granule in granules:
        slots = slots or _Slots(granule, steps)
        slots.add(granule)
    if slots is None:
        raise InputError("no SMAP granule to match with the period; check inputs and period")
    return slots.dataset()


class _Slots:
    """The growing (time, lat, lon) cube of `smap_steps`."""

    def __init__(self, first: xr.Dataset, steps: xr.Dataset) -> None:
        self.steps = steps
        self.lat, self.lon = first["lat"], first["lon"]
        self.template = first
        self.names = [n for n, v in first.data_vars.items() if {"lat", "lon"} <= set(v.dims)]
        shape = (steps.sizes["time"], self.lat.size, self.lon.size)
        self.data = {n: np.full(shape, _fill(first[n]), dtype=first[n].dtype) for n in self.names}
        self.away = np.full(shape, np.inf)
        dates = steps["local_date"].values.astype("datetime64[D]")
        self.day0, self.days = dates.min(), int((dates.max() - dates.min()).astype(int)) + 1
        self.step = np.full((self.days, 2), -1)
        is_pm = (steps["overpass"].values == "PM").astype(int)
        self.step[(dates - self.day0).astype(int), is_pm] = np.arange(dates.size)
        self.facts: dict[str, set[str]] = {"algorithm": set(), "product": set(), "version": set()}
        self.counts = {"observations": 0, "duplicates": 0, "outside_period": 0, "overpass_disagrees": 0}

    def add(self, granule: xr.Dataset) -> None:
        if "observation_time" not in granule:
            raise InputError("a granule lacks observation_time: without it its cells cannot be given a local day")
        same = granule["lat"].size == self.lat.size and granule["lon"].size == self.lon.size
        if not (same and np.allclose(granule["lat"], self.lat) and np.allclose(granule["lon"], self.lon)):
            raise InputError("granules lie on different grids; open them all with the same grid window")
        self._note(granule.attrs)
        parts = (
            [granule.isel(overpass=i) for i in range(granule.sizes["overpass"])]
            if "overpass" in granule.dims
            else [granule]
        )
        for part in parts:
            self._add_field(part)

    def _note(self, attrs: Mapping[Any, Any]) -> None:
        for name, found in self.facts.items():
            found.add(str(attrs.get(name, "")))
        if len(self.facts["algorithm"]) > 1:
            both = " and ".join(sorted(self.facts["algorithm"]))
            raise InputError(
                f"granules of different retrieval algorithms ({both}) do not mix: open all with the same one"
            )

    def _add_field(self, field: xr.Dataset) -> None:
        time = field["observation_time"].transpose("lat", "lon").values.astype("datetime64[ns]")
        row, col = np.nonzero(~np.isnat(time))
        time = time[row, col]
        date, is_pm = schema.local_step(time, self.lon.values[col])
        if "overpass" in field.coords:
            self.counts["overpass_disagrees"] += int((is_pm != (str(field["overpass"].values) == "PM")).sum())
        day = (date - self.day0).astype(int)
        inside = (day >= 0) & (day < self.days)
        step = np.where(inside, self.step[np.where(inside, day, 0), is_pm.astype(int)], -1)
        self.counts["outside_period"] += int((step < 0).sum())
        keep = step >= 0
        row, col, step, time = row[keep], col[keep], step[keep], time[keep]
        away = _hours_away(time, self.lon.values[col], is_pm[keep])
        before = self.away[step, row, col]
        self.counts["duplicates"] += int(np.isfinite(before).sum())
        self.counts["observations"] += int((~np.isfinite(before)).sum())
        nearer = away < before
        at = (step[nearer], row[nearer], col[nearer])
        self.away[at] = away[nearer]
        for name in self.names:
            if name in field:
                self.data[name][at] = field[name].transpose("lat", "lon").values[row[nearer], col[nearer]]
            else:
                self.data[name][at] = _fill(self.template[name])

    def dataset(self) -> xr.Dataset:
        gone = {"time", "overpass"}
        spatial = {n: c for n, c in self.template.coords.items() if n not in gone and "overpass" not in c.dims}
        data: dict[Hashable, Any] = {
            n: (("time", "lat", "lon"), values, self.template[n].attrs) for n, values in self.data.items()
        }
        attrs = {name: ", ".join(sorted(found)) for name, found in self.facts.items() if found != {""}}
        attrs |= {"crs": self.template.attrs["crs"]} if "crs" in self.template.attrs else {}
        return xr.Dataset(data, {**spatial, **self.steps.coords}, {**attrs, **self.counts})


def _fill(data: xr.DataArray) -> Any:
    if data.dtype.kind == "f":
        return np.nan
    if data.dtype.kind in "mM":
        return np.datetime64("NaT") if data.dtype.kind == "M" else np.timedelta64("NaT")
    if data.dtype.kind == "b":
        return False
    return data.attrs.get("missing_value", data.attrs.get("_FillValue", np.iinfo(data.dtype).max))


def _hours_away(utc: NDArray, lon: NDArray, is_pm: Mask) -> NDArray[np.float64]:
    """Hours between observations and 06:00 or 18:00 local solar time of their own half-day."""
    nominal = np.where(is_pm, schema.OVERPASS_HOURS["PM"], schema.OVERPASS_HOURS["AM"])
    hour = (utc - utc.astype("datetime64[D]")) / np.timedelta64(1, "h")
    return np.abs((hour + lon / 15.0) % 24.0 - nominal)


def lst_utc(view_time: ArrayLike, local_date: ArrayLike, overpass: ArrayLike, lon: ArrayLike) -> NDArray[np.datetime64]:
    """When the LST of an overpass step was seen.

    UTC = local date + view time - lon / 15 hours (MOD11 user guide: view times are local solar). The night that serves an AM
    step began in the evening before: of an AM step, view times from 12 on are of that evening, and so are negative ones, as
    averages of a night need them (23.9 and 0.1 lie at midnight, not at noon).

    Parameters
    ----------
    view_time : hours of local solar time; NaN where there is no LST
    local_date : datetime64, the step's local solar date
    overpass : "AM" or "PM", the step's
    lon : degrees east; all four broadcast against one another

    Returns
    -------
    datetime64[ns] to the second, NaT where there is no view time

    Examples
    --------
    >>> str(lst_utc(23.5, "2017-07-02", "AM", 105.0))[:16]
    '2017-07-01T16:30'
    """
    hours = np.asarray(view_time, dtype=np.float64)
    hours = np.where((np.asarray(overpass) == "AM") & (hours >= NOON), hours - 24.0, hours)
    wrapped = (np.asarray(lon, dtype=np.float64) + 180.0) % 360.0 - 180.0
    seconds = np.round(hours * 3600.0 - wrapped * 240.0)
    since = np.where(np.isnan(seconds), 0.0, seconds).astype("timedelta64[s]")
    utc = np.asarray(local_date, dtype="datetime64[D]") + since
    return np.where(np.isnan(seconds), np.datetime64("NaT"), utc).astype("datetime64[ns]")


# -- cells to samples ---------------------------------------------------------------------------


def sample_table(
    coarse: xr.Dataset,
    predictors: Sequence[str] = schema.PAPER_PREDICTORS,
    exclude_classes: Sequence[int] = EXCLUDED_CLASSES,
    tolerance_hours: float | None = None,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The matched training table: one row for each coarse cell and step that has everything.

    Parameters
    ----------
    coarse : Dataset with `soil_moisture` (time, lat, lon), NaN where missing; where present `observation_time` (UTC), `weight`
        (0 or NaN: rejected by quality control; 1 if absent), `retrieval_quality`, `lst_view_time` (hours, see `lst_utc`); the
        predictors as (time, lat, lon) or (lat, lon), and their `valid_fraction_<name>`; coordinates overpass, day_sequence,
        local_date along time. It may be a slab of steps: see `concat_samples`
    predictors : names; longitude and latitude come from the cell centres, overpass is 0 (AM) or 1 (PM), anything along
        time alone (day_sequence) is taken as it is
    exclude_classes : land cover classes to leave out
    tolerance_hours : how far the LST may lie from the soil moisture in time; however far, if None

    Returns
    -------
    table : DataFrame sorted by time, row, col. The predictors by name, soil_moisture, weight, retrieval_quality, cell (row x
        columns + col), row, col, time, local_date, overpass, observation_time, lst_time (UTC) and lst_hours_away from the
        observation, season, zone (where there is an elevation), and valid_fraction_<name>
    flow : how many (cell, step) pairs are left after each sieve, in order: all, observed, quality, land_cover, lst, time,
        predictors, samples. A sieve that does not apply is left out. `left_out` says why the rest went.

    Raises
    ------
    InputError
        if a predictor is not there, or times are to be compared that are not there.
    """
    shape = (coarse.sizes["time"], coarse.sizes["lat"], coarse.sizes["lon"])
    target = _plane(coarse["soil_moisture"], shape)
    weight = _plane(coarse["weight"], shape) if "weight" in coarse else np.ones(shape, dtype=np.float32)
    planes = {name: coarse_field(coarse, name, shape) for name in predictors}
    times = _times(coarse, shape)
    if tolerance_hours is not None and "lst_hours_away" not in times:
        raise InputError(
            "a time tolerance needs lst_view_time and observation_time in the coarse cube; add them or leave "
            "match.tolerance_hours out"
        )
    away = None if tolerance_hours is None else times["lst_hours_away"] <= tolerance_hours
    kept, flow = _sieve(coarse, target, weight, planes, exclude_classes, away)
    step, row, col = np.nonzero(kept)
    columns: dict[str, Any] = {name: _column(name, plane[kept]) for name, plane in planes.items()}
    columns |= {"soil_moisture": target[kept].astype(np.float32), "weight": weight[kept].astype(np.float32)}
    if "retrieval_quality" in coarse:
        columns["retrieval_quality"] = _plane(coarse["retrieval_quality"], shape)[kept].astype(np.int32)
    else:
        columns["retrieval_quality"] = np.zeros(step.size, dtype=np.int32)
    columns |= {"cell": row.astype(np.int64) * shape[2] + col, "row": row.astype(np.int32), "col": col.astype(np.int32)}
    columns |= {"time": coarse["time"].values[step], "local_date": coarse["local_date"].values[step]}
    if "overpass" not in columns:
        columns["overpass"] = _column("overpass", (coarse["overpass"].values == "PM")[step])
    columns |= {name: plane[kept] for name, plane in times.items()}
    columns["season"] = season(columns["local_date"])
    if "elevation" in coarse:
        columns["zone"] = zone(_plane(coarse["elevation"], shape)[kept])
    for name in predictors:
        if f"valid_fraction_{name}" in coarse:
            columns[f"valid_fraction_{name}"] = _plane(coarse[f"valid_fraction_{name}"], shape)[kept].astype(np.float32)
    return pd.DataFrame(columns).sort_values(_KEYS, kind="stable", ignore_index=True), flow


def concat_samples(parts: Iterable[tuple[pd.DataFrame, dict[str, int]]]) -> tuple[pd.DataFrame, dict[str, int]]:
    """One table and flow of those of slabs of steps: what `sample_table` gives for all steps at once.

    Raises
    ------
    InputError
        if there is no slab, or they went through different sieves.
    """
    slabs = list(parts)
    tables, flows = [table for table, _ in slabs], [flow for _, flow in slabs]
    if not slabs or any(list(flow) != list(flows[0]) for flow in flows):
        raise InputError("slabs of samples must be at least one, all made with the same fields and settings")
    filled = [table for table in tables if len(table)] or tables[:1]
    table = pd.concat(filled, ignore_index=True).sort_values(_KEYS, kind="stable", ignore_index=True)
    return table, {name: sum(flow[name] for flow in flows) for name in flows[0]}


def left_out(flow: Mapping[str, int]) -> dict[str, int]:
    """How many pairs went at each sieve of a sample flow, by reason; with the samples they sum to all."""
    names = list(flow)
    return {REASONS[b]: flow[a] - flow[b] for a, b in pairwise(names) if b in REASONS}


def _times(coarse: xr.Dataset, shape: tuple[int, ...]) -> dict[str, NDArray]:
    """When the soil moisture was observed, when the LST was, and the hours between, as far as they are known."""
    if "observation_time" not in coarse:
        return {}
    observed = _plane(coarse["observation_time"], shape)
    if "lst_view_time" not in coarse:
        return {"observation_time": observed}
    date, overpass = (coarse[name].values[:, None, None] for name in ("local_date", "overpass"))
    seen = lst_utc(_plane(coarse["lst_view_time"], shape), date, overpass, coarse["lon"].values)
    hours = np.abs((seen - observed) / np.timedelta64(1, "h")).astype(np.float32)
    return {"observation_time": observed, "lst_time": seen, "lst_hours_away": hours}


def _sieve(
    coarse: xr.Dataset,
    target: NDArray,
    weight: NDArray,
    planes: Mapping[str, NDArray],
    exclude_classes: Sequence[int],
    in_time: Mask | None,
) -> tuple[Mask, dict[str, int]]:
    kept = np.ones(target.shape, dtype=bool)
    flow = {"all": kept.size}
    observed = (
        ~np.isnat(_plane(coarse["observation_time"], target.shape))
        if "observation_time" in coarse
        else np.isfinite(target)
    )
    sieves = {"observed": observed, "quality": np.isfinite(target) & (weight > 0)}
    if exclude_classes and "land_cover" in coarse:
        sieves["land_cover"] = ~np.isin(_plane(coarse["land_cover"], target.shape), list(exclude_classes))
    if "lst" in planes:
        sieves["lst"] = np.isfinite(planes["lst"])
        sieves |= {} if in_time is None else {"time": in_time}
    sieves["predictors"] = np.logical_and.reduce([_valid(n, p) for n, p in planes.items()], axis=0)
    for name, sieve in sieves.items():
        kept = kept & sieve
        flow[name] = int(kept.sum())
    return kept, {**flow, "samples": int(kept.sum())}


def _predictor(coarse: xr.Dataset, name: str) -> xr.DataArray:
    if name == "overpass":
        return xr.DataArray((coarse["overpass"].values == "PM").astype(np.int8), dims="time")
    if name in ("day_of_year_sin", "day_of_year_cos") and name not in coarse:
        return xr.DataArray(schema.season_angle(coarse["day_of_year"].values)[name], dims="time")
    alias = {"longitude": "lon", "latitude": "lat"}.get(name, name)
    for found in (name, alias):
        if found in coarse:
            return coarse[found]
    there = ", ".join(str(n) for n in coarse.data_vars)
    raise InputError(f"predictor {name} is not in the coarse cube; it holds {there}")


def coarse_field(coarse: xr.Dataset, name: str, shape: tuple[int, ...]) -> NDArray:
    """A predictor of the coarse cube as (time, lat, lon), in the units of the sample table; classes keep their fill."""
    return _plane(_predictor(coarse, name), shape)


def _plane(data: xr.DataArray, shape: tuple[int, ...]) -> NDArray:
    """(time, lat, lon) values, without a copy where one variable serves every step."""
    values = data.transpose("time", "lat", "lon", missing_dims="ignore").values
    index = tuple(slice(None) if dim in data.dims else None for dim in ("time", "lat", "lon"))
    return np.broadcast_to(values[index], shape)


def _valid(name: str, plane: NDArray) -> Mask:
    if name == "land_cover" and plane.dtype.kind in "iu":
        return plane != schema.LAND_COVER_FILL
    return np.isfinite(plane)


def _column(name: str, values: NDArray) -> NDArray:
    if name in ("longitude", "latitude"):
        return values.astype(np.float64)
    known = schema.VARIABLES.get(name)
    if known and (known.kind == "class" or name == "day_sequence"):
        return values.astype(np.int32)
    return values.astype(np.float32)


# -- groups ---------------------------------------------------------------------------------


def season(dates: ArrayLike) -> NDArray[np.str_]:
    """Meteorological season of the northern hemisphere: winter (DJF), spring, summer (JJA) or autumn (SON)."""
    month = np.asarray(dates, dtype="datetime64[M]").astype(np.int64) % 12 + 1
    return np.array(_SEASONS)[month % 12 // 3]


def zone(elevation: ArrayLike, threshold: float = ZONE_ELEVATION) -> NDArray[np.str_]:
    """The paper's zones by elevation in m: "NW" from the threshold on, "SE" below; "" where it is NaN."""
    elevation = np.asarray(elevation)
    return np.where(np.isnan(elevation), "", np.where(elevation >= threshold, "NW", "SE"))
