"""`smscale export`: variables of a workspace as GeoTIFF, CF NetCDF or tables.

Here a name becomes a layer; the room `export` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from smscale import schema, store
from smscale.errors import InputError, RecipeError, StoreError
from smscale.export import Exported, Layer, Step, cut, write_geotiffs, write_netcdf, write_points, write_polygons
from smscale.export.layer import Kind
from smscale.grid import grid_of
from smscale.receipts import read_receipts, stages
from smscale.workspace import NEWEST, OVERPASS, Workspace, field_planes

FORMATS = ("geotiff", "netcdf", "csv")
#: Integers that mean "unknown".
FILLS = {"land_cover": 255, "retrieval_quality": 65534, "surface_flag": 65534}
#: What `--what` calls the map that the fusion chose.
FINAL = "final"

Period = tuple[str, str]
Region = tuple[float, float, float, float]


def export(
    workspace: Workspace,
    what: str,
    form: str = "geotiff",
    out: Path | None = None,
    period: Period | str | None = None,
    region: Region | str | None = None,
    points: str | Path | None = None,
    polygons: str | Path | None = None,
    progress: bool = False,
) -> Exported:
    """Write one variable of a workspace as files; what is there already, of the same data, is not written again.

    Parameters
    ----------
    what : as `available` lists them, or "final"
    form : geotiff (one file a step), netcdf (one a month), csv (one table; needs points or polygons)
    out : folder; W/exports/WHAT if not given, of an object store under the current folder
    period : first and last local day, or "A,B"
    region : west, south, east, north in degrees, or "W,S,E,N": the cells that it touches
    points : CSV with id, lon, lat
    polygons : GeoJSON

    Raises
    ------
    InputError, RecipeError, StoreError
        in one line: an unknown name, an empty selection, unfinished maps, a folder that cannot be written.
    """
    if form not in FORMATS:
        raise RecipeError(f"--format {form}: expected {', '.join(FORMATS)}")
    if (form == "csv") != (points is not None or polygons is not None) or (points is not None and polygons is not None):
        raise RecipeError("--format csv needs one of --points FILE and --polygons FILE; other formats take neither")
    chosen = cut(layer(workspace, what), _period(period), _region(region))
    beside = workspace.root if isinstance(workspace.root, Path) else Path(workspace.root.name)
    folder = out or beside / "exports" / chosen.name.replace("/", "_")
    if form == "geotiff":
        return write_geotiffs(chosen, folder, progress)
    if form == "netcdf":
        return write_netcdf(chosen, folder, progress)
    if points is not None:
        return write_points(chosen, Path(points), folder, progress)
    return write_polygons(chosen, Path(str(polygons)), folder, progress)


def available(workspace: Workspace) -> dict[str, str]:
    """Every name that can be exported, with what it is."""
    found = {name: str(data.attrs.get("long_name", name)) for name, data, _ in _variables(workspace)}
    final = (workspace.finished("fuse") or {}).get("report", {}).get("final")
    return found | ({FINAL: f"the final map, {final}"} if final in found else {})


def layer(workspace: Workspace, what: str) -> Layer:
    """A variable of a workspace, lazy, with its steps.

    Raises
    ------
    InputError
        if there is none of that name.
    """
    name = what
    if what == FINAL:
        name = str((workspace.finished("fuse") or {}).get("report", {}).get("final", FINAL))
    for found, data, array in _variables(workspace):
        if found == name:
            return _layer(workspace, name, data, array)
    names = [n for n in available(workspace) if not n.rpartition("/")[2].startswith(("status_", "valid_fraction_"))]
    there = ", ".join(names) or "nothing yet: run the recipe first"
    raise InputError(f"--what {what}: {workspace.root} has no such variable; it has {there}")


def _variables(workspace: Workspace) -> Iterator[tuple[str, xr.DataArray, tuple[str, str]]]:
    """Name, data and place (store, array) of everything that can be exported."""
    maps: Mapping[Any, xr.DataArray] = _or_nothing(lambda: workspace.maps)
    for name in sorted(maps):
        if {"lat", "lon"} <= set(maps[name].dims):
            yield str(name), _with_crs(maps[name], workspace.maps), (workspace.maps_path.name, str(name))
    for cadence, cube in _or_nothing(lambda: workspace.fine).items():
        for name in cube.data_vars:
            yield str(name), _with_crs(cube[name], cube), (workspace.cube.name, f"fine/{cadence}/values")
    if store.exists(workspace.cube, "fine/land_cover"):
        cover = workspace.land_cover
        yield "land_cover", cover, (workspace.cube.name, "fine/land_cover/land_cover")
    if store.exists(workspace.cube, "fine/land_cover", "land_cover_fraction"):
        for name in schema.FRACTIONS:
            shares = field_planes(workspace, name).assign_attrs(schema.VARIABLES[name].attrs)
            yield name, shares, (workspace.cube.name, "fine/land_cover/land_cover_fraction")
    coarse: Mapping[Any, xr.DataArray] = _or_nothing(lambda: workspace.coarse)
    for name in sorted(coarse):
        if {"lat", "lon"} <= set(coarse[name].dims) and coarse[name].dtype.kind in "fiu":
            yield f"coarse/{name}", _with_crs(coarse[name], workspace.coarse), (workspace.cube.name, f"coarse/{name}")


def _or_nothing(contents: Any) -> Any:
    """What is there of an unfinished workspace."""
    try:
        return contents()
    except StoreError:
        return {}


def _with_crs(data: xr.DataArray, cube: xr.Dataset) -> xr.DataArray:
    return data.assign_attrs(crs=cube.attrs["crs"]) if "crs" in cube.attrs else data


def _layer(workspace: Workspace, name: str, data: xr.DataArray, array: tuple[str, str]) -> Layer:
    short = name.rpartition("/")[2]
    grid = grid_of(data)
    values = data if data.ndim == 3 else data.expand_dims("step")
    values = values.transpose(*(d for d in values.dims if d not in ("lat", "lon")), "lat", "lon").rename(short)
    if short in FILLS and values.dtype.kind in "iu":
        values = values.assign_attrs(_FillValue=np.array(FILLS[short], values.dtype)[()])
    if short == "land_cover" and "flag_values" not in values.attrs:
        codes = np.arange(1, len(schema.IGBP) + 1, dtype=values.dtype)
        texts = " ".join(text.replace(" ", "_") for text in schema.IGBP)
        values = values.assign_attrs(flag_values=codes, flag_meanings=texts)
    status = data.attrs.get("ancillary_variables")
    flags = workspace.maps[status] if status and array[0] == workspace.maps_path.name else None
    places = [array] + ([(array[0], str(status))] if flags is not None else [])
    steps = _steps(data, _versions(workspace, places, values.shape[0], data.ndim == 3))
    title = str(workspace.recipe.get("name") or workspace.root.name)
    return Layer(name, title, values, flags, grid, _kind(short, values), tuple(steps))


def _kind(short: str, values: xr.DataArray) -> Kind:
    if values.dtype == np.uint32 or short in ("retrieval_quality", "surface_flag"):
        return "flags"
    return schema.VARIABLES[short].kind if short in schema.VARIABLES else "continuous"


def _steps(data: xr.DataArray, versions: list[str]) -> list[Step]:
    """The steps of a variable: overpasses, composites, years, or one that never changes."""
    never = np.datetime64("NaT", "s")
    if data.ndim == 2:
        return [Step(0, "", "", never, never.astype("datetime64[D]"), version=versions[0])]
    if "year" in data.dims:
        return [_year(i, int(year), versions[i]) for i, year in enumerate(data["year"].values)]
    times = data["time"].values.astype("datetime64[ns]")
    if "first_day" in data.coords:
        first, last = (data[n].values.astype("datetime64[D]") for n in ("first_day", "last_day"))
        return [
            Step(i, str(a), str(a)[:7], times[i], a, bounds=(a.astype("datetime64[s]"), _after(b)), version=versions[i])
            for i, (a, b) in enumerate(zip(first, last, strict=True))
        ]
    days, passes = data["local_date"].values.astype("datetime64[D]"), data["overpass"].values.tolist()
    return [
        Step(i, f"{day}_{which}", str(day)[:7], times[i], day, str(which), version=versions[i])
        for i, (day, which) in enumerate(zip(days, passes, strict=True))
    ]


def _year(index: int, year: int, version: str) -> Step:
    first, last = np.datetime64(f"{year}-01-01", "D"), np.datetime64(f"{year}-12-31", "D")
    start, end = first.astype("datetime64[s]"), _after(last)
    return Step(index, str(year), str(year), start + (end - start) // 2, first, "", (start, end), version)


def _after(day: np.datetime64) -> np.datetime64:
    return (day + np.timedelta64(1, "D")).astype("datetime64[s]")


def _versions(workspace: Workspace, arrays: list[tuple[str, str]], steps: int, moves: bool) -> list[str]:
    """(steps,) fingerprints of what lies in the cube at each step, from the ledger's checksums.

    A step that no receipt covers takes that of the whole run: its file is then written anew whenever a stage is.
    """
    receipts = read_receipts(workspace)
    whole = store.fingerprint([(workspace.finished(s) or {}).get("fingerprint") for s in stages(workspace)])
    found: list[list[tuple[Any, ...]]] = [[] for _ in range(steps)]
    for name, path in arrays:
        entries = [(0, written) for written in receipts.of(name, path)]
        if path == f"{OVERPASS}/values":  # the newest days come after the others
            late = receipts.of(name, f"{NEWEST}/values")
            first = steps - max((written.region[0][1] for written in late), default=0)
            entries += [(first, written) for written in late]
        for first, written in entries:
            start, stop = written.region[0] if moves else (0, steps)
            for i in range(max(first + start, 0), min(first + stop, steps)):
                found[i].append((written.array, written.region, written.checksum))
    return [store.fingerprint(sorted(parts)) if parts else whole for parts in found]


def _period(period: Period | str | None) -> Period | None:
    if period is None:
        return None
    parts = period.split(",") if isinstance(period, str) else list(period)
    try:
        first, last = (str(date.fromisoformat(part.strip())) for part in parts)
    except ValueError:
        shown = period if isinstance(period, str) else ",".join(period)
        raise RecipeError(f"--period {shown}: expected two ISO dates, as 2017-06-10,2017-06-30") from None
    return first, last


def _region(region: Region | str | None) -> Region | None:
    if region is None:
        return None
    parts = region.split(",") if isinstance(region, str) else list(region)
    try:
        west, south, east, north = (float(part) for part in parts)
    except ValueError:
        raise RecipeError(f"--region {region}: expected W,S,E,N in degrees, as 102.8,31.7,103.2,32.1") from None
    return west, south, east, north
