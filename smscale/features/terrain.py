"""Slope and aspect of a digital elevation model."""

from __future__ import annotations

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from smscale import schema
from smscale.errors import InputError
from smscale.kernels.terrain import even_step, metres_per_degree, slope_aspect

Floats = NDArray[np.float64]


def terrain(dem: xr.DataArray) -> xr.Dataset:
    """Slope and aspect of an elevation model, by Horn's 3 x 3 differences.

    On a geographic grid every row has its own metres per degree (WGS84 radii of curvature), in both directions. On a projected
    one they are those of the map, as gdaldem's: aspect counts from the map's north, and slope is stretched with its scale (0.04 % in
    a UTM zone); `cube.static_layers` turns both to the ground.

    Parameters
    ----------
    dem : elevation in metres, NaN where missing, chunked or not: (lat, lon) in degrees, or (y, x) in the units of
        `attrs["crs"]` (or of rioxarray's `spatial_ref`; metres if neither is there). Rows run north to south.

    Returns
    -------
    Dataset slope, aspect on the coordinates of `dem`, float32 degrees, lazy where `dem` is; aspect is clockwise from north, the
    direction that the ground faces (as gdaldem), NaN where it is flat. A cell needs all nine cells of its window: the
    outermost rows and columns and the neighbours of missing cells are NaN, so that a tile with a halo of one cell gives
    what the whole gives.

    Raises
    ------
    InputError
        if the dimensions are not those, fewer than 3 rows or columns, unevenly spaced, or rows run south to north.
    """
    north, east = _dims(dem)
    rows, cols = _axis(dem, north), _axis(dem, east)
    if rows[0] < rows[-1]:
        raise InputError(f"{north} ascends; rows must run north to south: use dem.sortby('{north}', ascending=False)")
    if cols[0] > cols[-1]:
        raise InputError(f"{east} descends; columns must run west to east: use dem.sortby('{east}')")
    dy, dx = even_step(rows), even_step(cols)
    scale_x, scale_y = _metres_per_unit(dem, rows, geographic=north == "lat")
    both = _slope_aspect(dem.data, dx * scale_x, dy * scale_y)
    layers = {
        name: xr.DataArray(data, dem.coords, dem.dims, attrs=schema.VARIABLES[name].attrs)
        for name, data in zip(("slope", "aspect"), both, strict=True)
    }
    crs = {"crs": dem.attrs["crs"]} if "crs" in dem.attrs else {}
    return xr.Dataset(layers, attrs=crs)


def _dims(dem: xr.DataArray) -> tuple[str, str]:
    if dem.dims in (("lat", "lon"), ("y", "x")):
        return str(dem.dims[0]), str(dem.dims[1])
    raise InputError(
        f"an elevation model has dimensions (lat, lon) or (y, x), got {dem.dims}; rename or transpose it, drop a band"
    )


def _axis(dem: xr.DataArray, name: str) -> Floats:
    if name not in dem.coords:
        raise InputError(
            f"the elevation model lacks the coordinate {name}: cell centres, in degrees or in units of its CRS"
        )
    centres = np.asarray(dem.coords[name].values, dtype=np.float64)
    if centres.size < 3:
        raise InputError(f"terrain needs at least 3 rows and 3 columns; {name} has {centres.size}")
    even = np.linspace(centres[0], centres[-1], centres.size)
    steps = np.diff(centres)
    if not np.abs(centres - even).max() < 0.02 * abs(steps.mean()):
        raise InputError(f"{name} must be evenly spaced; steps range from {steps.min():.6g} to {steps.max():.6g}")
    return centres


def _metres_per_unit(dem: xr.DataArray, rows: Floats, geographic: bool) -> tuple[Floats, Floats]:
    crs = dem.attrs.get("crs")
    if crs is None and "spatial_ref" in dem.coords:
        crs = dem.coords["spatial_ref"].attrs.get("crs_wkt")
    if geographic or crs is None:
        return metres_per_degree(rows) if geographic else (np.ones(rows.size), np.ones(rows.size))
    from pyproj import CRS

    known = CRS.from_user_input(crs)
    if known.is_geographic:
        return metres_per_degree(rows)
    unit = known.axis_info[0].unit_conversion_factor if known.axis_info else 1.0
    return np.full(rows.size, unit), np.full(rows.size, unit)


def _slope_aspect(
    elevation: NDArray | da.Array, dx: Floats, dy: Floats
) -> tuple[NDArray | da.Array, NDArray | da.Array]:
    if not isinstance(elevation, da.Array):
        return slope_aspect(elevation, dx, dy)
    steps = da.from_array(np.stack([dx, dy], axis=1), chunks=(elevation.chunks[0], 2))
    both = da.map_overlap(
        _stacked,
        elevation[:, :, None],
        steps[:, None, :],
        depth=[{0: 1, 1: 1, 2: 0}, {0: 1, 1: 0, 2: 0}],
        boundary=np.nan,
        trim=False,
        align_arrays=False,
        dtype=np.float32,
        chunks=(*elevation.chunks, (2,)),
        meta=np.empty((0, 0, 0), dtype=np.float32),
    )
    return both[..., 0], both[..., 1]


def _stacked(elevation: NDArray, steps: NDArray) -> NDArray[np.float32]:
    slope, aspect = slope_aspect(elevation[:, :, 0], steps[:, 0, 0], steps[:, 0, 1])
    return np.stack([slope[1:-1, 1:-1], aspect[1:-1, 1:-1]], axis=-1)
