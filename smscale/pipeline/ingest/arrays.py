"""The cube's empty arrays: laid out for a period, made longer when days are added, merged when enough have come.

Steps that come later lie first in a group of their own, `fine/overpass_newest`, one day to a shard, so that no finished
shard of `fine/overpass` is written again. When they fill a whole shard they move there (`compact`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from smscale import schema, store
from smscale.grid import Grid
from smscale.pipeline.ingest.inputs import COMPOSITES, Inputs
from smscale.pipeline.layout import Layout
from smscale.workspace import NEWEST, OVERPASS

#: Steps of one shard of the newest days: a morning and an evening.
DAY = 2

#: Arrays of the coarse group that ingest fills, and what they hold where nothing is observed; the others are match's.
RETRIEVALS = {
    "soil_moisture": np.float32(np.nan),
    "weight": np.float32(np.nan),
    "retrieval_quality": np.uint16(65534),
    "surface_flag": np.uint16(65534),
    "observation_time": np.datetime64("NaT", "ns"),
}


def lay_out(layout: Layout, inputs: Inputs, path: str) -> None:
    """Every array of the cube, empty, over whatever lay there."""
    store.remove(path, "")
    _create_overpass(layout, path, OVERPASS, slice(0, layout.steps.sizes["time"]), layout.shards["time"])
    for cadence in COMPOSITES:
        _create_fine(layout, path, f"fine/{cadence}", _composite_times(inputs.composites(cadence, layout)), 1)
    _create_fine(layout, path, "fine/static", xr.Dataset(), 1)
    _create_land_cover(layout, path, inputs.years)
    lay_out_coarse(layout, path)


def lay_out_coarse(layout: Layout, path: str) -> None:
    """The retrievals' arrays, empty, over whatever lay there."""
    store.remove(path, "coarse")
    store.create(path, "coarse", _coarse_template(layout), {"time": layout.shards["time"]}, None)


def make_longer(layout: Layout, inputs: Inputs, path: str) -> list[str] | None:
    """Make room for what is new, where that is possible without writing finished shards again.

    Returns
    -------
    prefixes of the blocks that must be done again, since their arrays had to be laid out anew (a composite that came late
    lies between others); None if nothing can be kept: the whole cube must be laid out anew
    """
    for group in store.groups(path):
        store.discard(path, group)
    if _moved(path):  # by a run that was killed before it removed them
        store.remove(path, NEWEST)
    steps = layout.steps.sizes["time"]
    main, newest = main_steps(path), newest_steps(path)
    held = store.shape(path, "coarse", "soil_moisture")
    if not main or not held or main + newest > steps or held[0] > steps or not _sound(path):
        return None
    if newest and main + newest < steps:
        tail = _overpass_template(layout, slice(main + newest, steps))
        store.extend(path, NEWEST, tail)
    elif main + newest < steps:
        _create_overpass(layout, path, NEWEST, slice(main, steps), DAY)
    if held[0] < steps:
        for name in store.arrays(path, "coarse"):
            if name not in RETRIEVALS and not _is_coordinate(name):
                store.remove(path, f"coarse/{name}")
        store.extend(path, "coarse", _coarse_template(layout).isel(time=slice(held[0], None)))
    again = [cadence for cadence in COMPOSITES if not _extend_composites(layout, inputs, path, cadence)]
    if not newest:
        again.append("overpass_newest")
    if _years(path) != inputs.years:
        store.remove(path, "fine/land_cover")
        _create_land_cover(layout, path, inputs.years)
        again.append("land_cover")
    return again


def _is_coordinate(name: str) -> bool:
    return name in ("time", "lat", "lon", "x", "y", "spatial_ref", *schema.STEP_COORDINATES)


def main_steps(path: str) -> int:
    """Steps in `fine/overpass`."""
    return (store.shape(path, OVERPASS, "values") or (0,))[0]


def newest_steps(path: str) -> int:
    """Steps in `fine/overpass_newest`."""
    return (store.shape(path, NEWEST, "values") or (0,))[0]


def _moved(path: str) -> bool:
    """Whether the newest days already lie among the others."""
    if not (main_steps(path) and newest_steps(path)):
        return False
    held, newest = (store.open_group(path, group, unfinished=True)["time"].values for group in (OVERPASS, NEWEST))
    return bool(newest[0] <= held[-1])


def _sound(path: str) -> bool:
    """Whether arrays that grow together are equally long: a run killed while it made them longer leaves them unequal."""
    pairs = [(OVERPASS, "values"), (NEWEST, "values"), ("coarse", "soil_moisture")]
    pairs += [(f"fine/{cadence}", "values") for cadence in COMPOSITES]
    return all((store.shape(path, g, n) or (0,))[0] == (store.shape(path, g, "time") or (0,))[0] for g, n in pairs)


def _extend_composites(layout: Layout, inputs: Inputs, path: str, cadence: str) -> bool:
    """Lay out composites that are new; False where they lie between those that are there, and all begin anew."""
    group, wanted = f"fine/{cadence}", inputs.composites(cadence, layout)
    times = _composite_times(wanted)
    count = (store.shape(path, group, "values") or (0,))[0]
    if count:
        known = store.open_group(path, group, unfinished=True)["first_day"].values
    if count and np.array_equal(known, times["first_day"].values[:count]):
        if count < len(wanted):
            store.extend(path, group, _fine_template(layout, group, times.isel(time=slice(count, None))))
        return True
    store.remove(path, group)
    _create_fine(layout, path, group, times, 1)
    return False


def _years(path: str) -> list[int]:
    return store.read(path, "fine/land_cover", "year").tolist()


# -- the newest days join the others ------------------------------------------------------------------


def compaction(layout: Layout, path: str) -> slice | None:
    """The steps of `fine/overpass` that must be written so that it holds the newest too; None while these fill no shard."""
    main, newest = main_steps(path), newest_steps(path)
    shard = layout.shards["time"]
    if not newest or (main + newest) // shard <= main // shard:
        return None
    return slice(main // shard * shard, main + newest)


def end_compaction(layout: Layout, path: str) -> bool:
    """Mend what a run left that was killed while the newest days moved; whether they have moved, and are no longer newest."""
    steps, newest = layout.steps.sizes["time"], newest_steps(path)
    if not newest or main_steps(path) + newest <= steps:
        return False
    moved = store.shape(path, OVERPASS, "values", unfinished=False)[:1] == (steps,)
    if moved:
        store.remove(path, NEWEST)
    else:
        store.discard(path, OVERPASS)
    return moved


def begin_compaction(layout: Layout, path: str, steps: slice) -> None:
    """Make `fine/overpass` longer, hidden until it is published."""
    main = main_steps(path)
    if main < steps.stop:
        store.extend(path, OVERPASS, _overpass_template(layout, slice(main, steps.stop)))


def compact_block(
    path: str, main: int, slab: slice, tiles: Sequence[tuple[slice, slice]], result: dict[str, Any]
) -> dict[str, Any]:
    """Steps of `fine/overpass` from what it held (`main` steps) and the newest; `result` is what their ingest reported."""
    written = []
    for rows, cols in tiles:
        parts = []
        if slab.start < main:
            parts.append(store.read(path, OVERPASS, "values", (slice(slab.start, min(slab.stop, main)), rows, cols)))
        if slab.stop > main:
            late = slice(max(slab.start, main) - main, slab.stop - main)
            parts.append(store.read(path, NEWEST, "values", (late, rows, cols)))
        region = (slab, rows, cols, slice(0, 2))
        written.append(store.write(path, OVERPASS, "values", region, np.concatenate(parts)))
    return {**result, "written": written}


# -- templates ----------------------------------------------------------------------------------------


def _create_overpass(layout: Layout, path: str, group: str, steps: slice, shard: int) -> None:
    store.remove(path, group)
    _create(layout, path, group, _overpass_template(layout, steps), shard)


def _overpass_template(layout: Layout, steps: slice) -> xr.Dataset:
    return _fine_template(layout, OVERPASS, layout.steps.isel(time=steps))


def _create_fine(layout: Layout, path: str, group: str, times: xr.Dataset, shard: int) -> None:
    _create(layout, path, group, _fine_template(layout, group, times), shard)


def _create(layout: Layout, path: str, group: str, template: xr.Dataset, shard: int) -> None:
    chunks = {**layout.chunks, "time": min(layout.chunks["time"], shard), "variable": 1}
    store.create(path, group, template, chunks, {**layout.shards, "time": shard})


def _fine_template(layout: Layout, group: str, times: xr.Dataset) -> xr.Dataset:
    """The (time, lat, lon, variable) array of one cadence, with its coordinates."""
    names = schema.CADENCES[group.rpartition("/")[2]]
    rows, cols = layout.grid.shape
    leading = (times.sizes["time"],) if "time" in times.sizes else ()
    units = " ".join(schema.VARIABLES[n].units for n in names)
    values = xr.DataArray(
        store.empty((*leading, rows, cols, len(names)), np.float32),
        dims=(*(("time",) if leading else ()), "lat", "lon", "variable"),
        attrs={"long_name": "predictors", "units": units, **_mapping(layout.grid)},
    )
    coords: dict[Any, Any] = {**times.coords, **schema.grid_coords(layout.grid), "variable": ("variable", list(names))}
    return xr.Dataset({"values": values}, coords, schema.grid_attrs(layout.grid))


def _composite_times(composites: Sequence[tuple[str, str]]) -> xr.Dataset:
    first, last = (np.array([days[i] for days in composites], dtype="datetime64[ns]") for i in (0, 1))
    middle = first + (last - first + np.timedelta64(1, "D")) // 2
    return xr.Dataset(
        coords={
            "time": ("time", middle, {"long_name": "middle of the composite, UTC", "standard_name": "time"}),
            "first_day": ("time", first, {"long_name": "first day of the composite"}),
            "last_day": ("time", last, {"long_name": "last day of the composite"}),
        }
    )


def _create_land_cover(layout: Layout, path: str, years: Sequence[int]) -> None:
    igbp = np.arange(1, len(schema.IGBP) + 1, dtype=np.uint8)
    meanings = " ".join(name.replace(" ", "_") for name in schema.IGBP)
    known = {"comment": f"{schema.LAND_COVER_FILL} where unknown", **_mapping(layout.grid)}
    classes = {"long_name": "IGBP land cover class", "flag_values": igbp, "flag_meanings": meanings, **known}
    share = {"long_name": "share of each IGBP class in the cell", "units": "percent", **known}
    fill, grid = schema.LAND_COVER_FILL, layout.grid.shape
    template = xr.Dataset(
        {
            "land_cover": (("year", "lat", "lon"), store.empty((len(years), *grid), np.uint8, fill), classes),
            "land_cover_fraction": (
                ("year", "igbp_class", "lat", "lon"),
                store.empty((len(years), igbp.size, *grid), np.uint8, fill),
                share,
            ),
        },
        {
            "year": ("year", np.array(years, np.int32)),
            "igbp_class": ("igbp_class", igbp, {"long_name": "IGBP class", "flag_meanings": meanings}),
            **schema.grid_coords(layout.grid),
        },
        schema.grid_attrs(layout.grid),
    )
    chunks, shards = {**layout.chunks, "year": 1, "igbp_class": 1}, {**layout.shards, "year": 1}
    store.create(path, "fine/land_cover", template, chunks, shards)


def _coarse_template(layout: Layout) -> xr.Dataset:
    shape = (layout.steps.sizes["time"], *layout.coarse.shape)
    dims = ("time", "lat", "lon")
    bits = {"comment": f"{RETRIEVALS['surface_flag']} where not observed"}
    weight = {"long_name": "weight of the retrieval, 0 where quality control refuses it", "units": "1"}
    attrs = {
        "soil_moisture": schema.VARIABLES["soil_moisture"].attrs,
        "weight": weight,
        "retrieval_quality": {"long_name": "SMAP retrieval quality bits", **bits},
        "surface_flag": {"long_name": "SMAP surface condition bits", **bits},
        "observation_time": {"long_name": "time of observation, UTC"},
    }
    data = {
        name: (dims, store.empty(shape, np.asarray(fill).dtype, fill), attrs[name]) for name, fill in RETRIEVALS.items()
    }
    coords: dict[Any, Any] = {**layout.steps.coords, **schema.grid_coords(layout.coarse)}
    return xr.Dataset(data, coords, schema.grid_attrs(layout.coarse))


def _mapping(grid: Grid) -> dict[str, str]:
    return {} if grid.x is not None else {"grid_mapping": "spatial_ref"}
