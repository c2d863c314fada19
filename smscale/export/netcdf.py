"""CF NetCDF, one file a month."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from smscale import __version__
from smscale.blocks import spans
from smscale.export.files import Exported, claimed, whole
from smscale.export.layer import Layer, Step, mapping
from smscale.grid import Grid, ease2_forward

#: Cells along a chunk's side; one step a chunk: a map is read whole, and a cell's series not from single bytes.
CHUNK = 512
#: Values that are in memory at once while one file is written.
VALUES_AT_ONCE = 16 * 1024 * 1024
#: zlib level: 4 is netCDF4's own default; with shuffling, more costs time and gains a percent.
LEVEL = 4
EPOCH = np.datetime64("1970-01-01T00:00:00", "s")
FINGERPRINT = "smscale_fingerprint"
#: CF attributes that are handed on.
HANDED_ON = ("long_name", "standard_name", "units", "comment", "flag_meanings")
#: Attributes that have the type of the data.
OF_DATA = ("valid_min", "valid_max", "flag_values", "flag_masks")


def write_netcdf(layer: Layer, folder: Path, progress: bool = False) -> Exported:
    """Write TITLE_NAME_MONTH.nc for each month of local dates: the variable, its status, CF coordinates and grid mapping.

    Longitude-latitude grids have dimensions time, lat, lon; EASE grids time, y, x in metres with lat, lon (y, x) beside
    them. A file that is there already, of the same data, is skipped.
    """
    months = {
        month: [s for s in layer.steps if s.month == month] for month in dict.fromkeys(s.month for s in layer.steps)
    }
    written, skipped = [], 0
    with (
        claimed(folder, layer.stem),
        tqdm(total=len(layer.steps), desc=f"export {layer.name}", unit="step", disable=not progress) as bar,
    ):
        for month, steps in months.items():
            path = folder / f"{layer.stem}{f'_{month}' if month else ''}.nc"
            version = layer.version(steps, "netcdf")
            if _is_there(path, version):
                skipped += 1
                bar.update(len(steps))
                continue
            with whole(path) as temporary, netCDF4.Dataset(temporary, "w", format="NETCDF4") as file:
                _lay_out(file, layer, steps, version)
                for i, step in enumerate(steps):
                    _fill(file, layer, i, step)
                    bar.update()
            written.append(path)
    return Exported(folder, tuple(written), skipped)


def _lay_out(file: netCDF4.Dataset, layer: Layer, steps: Sequence[Step], version: str) -> None:
    """Dimensions, coordinates, attributes and the empty variables."""
    moving = any(step.label for step in steps)
    rows, cols = layer.grid.shape
    y, x = _axes(layer.grid)
    if moving:
        file.createDimension("time", len(steps))
    for name, size in ((y, rows), (x, cols), ("bounds", 2)):
        file.createDimension(name, size)
    beside = _write_space(file, layer.grid)
    if moving:
        beside += _write_time(file, steps)
    reference = file.createVariable("spatial_ref", "i4")
    reference.setncatts(mapping(layer.grid))
    dims = (*(("time",) if moving else ()), y, x)
    chunks = (*((1,) if moving else ()), min(CHUNK, rows), min(CHUNK, cols))
    for name, data in _fields(layer).items():
        fill = data.attrs.get("_FillValue") if name == "status" else layer.fill
        variable = file.createVariable(  # type: ignore[call-overload]
            name,
            data.dtype,
            dims,
            compression="zlib",
            complevel=LEVEL,
            shuffle=True,
            chunksizes=chunks,
            fill_value=False if fill is None else fill,
        )
        variable.setncatts(_attrs(data))
        if data.attrs.get("units") == "K":
            variable.units_metadata = "temperature: on_scale"
        variable.grid_mapping = "spatial_ref"
        variable.set_auto_maskandscale(False)
        if beside:
            variable.coordinates = " ".join(beside)
    if layer.status is not None:
        file[layer.short].ancillary_variables = "status"
    _write_bounds(file, layer.grid, steps)
    file.setncatts(
        {
            "Conventions": "CF-1.11",
            "title": f"{layer.title}: {layer.values.attrs.get('long_name', layer.short)}",
            "source": f"smscale {__version__}",
            "history": f"exported by smscale {__version__} from the workspace of recipe {layer.title}",
            FINGERPRINT: version,
        }
    )


def _fields(layer: Layer) -> dict[str, xr.DataArray]:
    """Variables of a file by name."""
    return {layer.short: layer.values} | ({} if layer.status is None else {"status": layer.status})


def _attrs(data: xr.DataArray) -> dict[str, Any]:
    """CF attributes, ranges and flags in the type of the data."""
    attrs = {name: str(data.attrs[name]) for name in HANDED_ON if data.attrs.get(name)}
    return attrs | {name: np.asarray(data.attrs[name], dtype=data.dtype) for name in OF_DATA if name in data.attrs}


def _axes(grid: Grid) -> tuple[str, str]:
    return ("lat", "lon") if grid.x is None else ("y", "x")


def _write_space(file: netCDF4.Dataset, grid: Grid) -> list[str]:
    """Coordinates of the cells; names of those that are no dimension."""
    if grid.x is None or grid.y is None:
        _write_axis(file, "lat", grid.lat, "latitude", "degrees_north", "Y")
        _write_axis(file, "lon", grid.lon, "longitude", "degrees_east", "X")
        return []
    _write_axis(file, "y", grid.y, "projection_y_coordinate", "m", "Y")
    _write_axis(file, "x", grid.x, "projection_x_coordinate", "m", "X")
    # In two dimensions, though one would do: programs that reproject leave such coordinates behind, and trip over others.
    for name, values in zip(("lat", "lon"), np.meshgrid(grid.lat, grid.lon, indexing="ij"), strict=True):
        variable = file.createVariable(name, "f8", ("y", "x"), compression="zlib", shuffle=True)
        variable.setncatts({"standard_name": {"lat": "latitude", "lon": "longitude"}[name]})
        variable.units = {"lat": "degrees_north", "lon": "degrees_east"}[name]
        variable[:] = values
    return ["lat", "lon"]


def _write_axis(
    file: netCDF4.Dataset, name: str, centres: np.ndarray, standard_name: str, units: str, axis: str
) -> None:
    variable = file.createVariable(name, "f8", (name,))
    variable.setncatts({"standard_name": standard_name, "units": units, "axis": axis, "bounds": f"{name}_bounds"})
    variable[:] = centres


def _write_bounds(file: netCDF4.Dataset, grid: Grid, steps: Sequence[Step]) -> None:
    """Edges of cells and steps, after the data: GDAL lists variables in the order of the file."""
    edges = {"lat": grid.lat_edges, "lon": grid.lon_edges}
    if grid.x is not None:
        edges = {"y": ease2_forward(0.0, grid.lat_edges)[1], "x": ease2_forward(grid.lon_edges, 0.0)[0]}
    for name, values in edges.items():
        bounds = file.createVariable(f"{name}_bounds", "f8", (name, "bounds"))
        bounds[:] = np.column_stack([values[:-1], values[1:]])
    if "time" in file.variables and "bounds" in file["time"].ncattrs():
        times = [[_seconds(t) for t in step.bounds or ()] for step in steps]
        file.createVariable("time_bounds", "f8", ("time", "bounds"))[:] = times


def _write_time(file: netCDF4.Dataset, steps: Sequence[Step]) -> list[str]:
    """Time, and local date and overpass beside it; names of what is no dimension."""
    time = file.createVariable("time", "f8", ("time",))
    time.setncatts(
        {
            "standard_name": "time",
            "long_name": "time, UTC",
            "units": "seconds since 1970-01-01 00:00:00",
            "calendar": "standard",
            "units_metadata": "leap_seconds: none",
            "axis": "T",
        }
    )
    time[:] = [_seconds(step.time) for step in steps]
    if all(step.bounds for step in steps):
        time.bounds = "time_bounds"
    if not all(step.overpass for step in steps):
        return []
    local = file.createVariable("local_date", "i4", ("time",))
    local.setncatts({"long_name": "local solar date", "units": "days since 1970-01-01", "calendar": "standard"})
    local[:] = [int(step.date.astype(np.int64)) for step in steps]
    overpass = file.createVariable("overpass", "i1", ("time",))
    overpass.setncatts(
        {
            "long_name": "SMAP overpass",
            "flag_values": np.array([0, 1], np.int8),
            "flag_meanings": "AM_descending PM_ascending",
        }
    )
    overpass[:] = [int(step.overpass == "PM") for step in steps]
    return ["local_date", "overpass"]


def _seconds(time: np.datetime64) -> float:
    return float((time.astype("datetime64[s]") - EPOCH).astype(np.int64))


def _fill(file: netCDF4.Dataset, layer: Layer, i: int, step: Step) -> None:
    """Write one step, some rows at a time."""
    rows, cols = layer.grid.shape
    for name in _fields(layer):
        variable = file[name]
        for part in spans(rows, max(CHUNK, VALUES_AT_ONCE // cols // CHUNK * CHUNK)):
            where = (i, part) if variable.ndim == 3 else (part,)
            variable[where] = layer.rows(step, part, name == "status")


def _is_there(path: Path, version: str) -> bool:
    """Whether a file is there, whole, of the same data."""
    try:
        with netCDF4.Dataset(path) as file:
            return getattr(file, FINGERPRINT, None) == version
    except OSError:
        return False
