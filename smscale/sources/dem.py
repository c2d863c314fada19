"""Elevation of GeoTIFF tiles of any CRS, and two global fields (5' elevation, 0.05 degree land cover).

Tiles of one mosaic share CRS, resolution and pixel registration: pixels are placed by integers counted from the first
tile, so that a mosaic of tiles is the same array as one big tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
import xarray as xr
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine, from_bounds
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from smscale.errors import InputError
from smscale.grid import Grid
from smscale.schema import LAND_COVER_FILL, VARIABLES, WATER
from smscale.sources.files import HDF_LOCK, check

Box = tuple[float, float, float, float]

#: Elevations below this are voids, whatever the file declares (the Dead Sea's shore lies at -430 m).
LOWEST, HIGHEST = VARIABLES["elevation"].valid_min, VARIABLES["elevation"].valid_max
#: How far the pixels of two tiles may be off one common lattice, in pixels.
_REGISTRATION_TOLERANCE = 0.01
#: Rows of a `Grid` that are averaged at a time.
_GRID_ROWS = 64

#: pvlib's Altitude.h5: metres = value * 28 - 450, 255 is no data, 5 arc minutes (pvlib.location.lookup_altitude; 28 is also the
#: slope of SRTM on its values: 28.2 over S33W071, and Chengdu comes out at 502 m, the northern Caspian shore at -30 m).
_ALTITUDE_STEP, _ALTITUDE_SCALE, _ALTITUDE_OFFSET, _ALTITUDE_FILL = 1 / 12, 28.0, -450.0, 255


#: A mosaic may hold this many times the cells of its tiles.
MOST_EMPTY = 50


@dataclass(frozen=True)
class DemTile:
    """One raster of elevation: where it lies, and which band holds the elevation."""

    path: Path
    crs: str
    transform: tuple[float, float, float, float, float, float]
    shape: tuple[int, int]
    band: int
    nodata: float | None
    dtype: str

    @property
    def bounds(self) -> Box:
        """West, south, east, north of the outer pixel edges, in the tile's CRS."""
        a, _, c, _, e, f = self.transform
        rows, columns = self.shape
        return min(c, c + a * columns), min(f, f + e * rows), max(c, c + a * columns), max(f, f + e * rows)

    @property
    def box(self) -> Box:
        """West, south, east, north in degrees."""
        crs = CRS.from_user_input(self.crs)
        if crs.is_geographic:
            west, south, east, north = self.bounds
            shift = 360.0 if west >= 180.0 else 0.0
            return west - shift, south, east - shift, north
        west, south, east, north = transform_bounds(crs, CRS.from_epsg(4326), *self.bounds)
        return west, south, east, north


def describe(path: str | Path) -> DemTile:
    """Header of one elevation raster.

    Raises
    ------
    InputError
        if it is no readable GeoTIFF, has no CRS, is rotated, or does not say which band is elevation.
    """
    path = check(path, "TIFF")
    try:
        with rasterio.open(path) as file:
            if file.crs is None:
                raise InputError(f"{path}: has no coordinate reference system: set one (gdal_edit.py -a_srs)")
            transform = file.transform
            if abs(transform.b) + abs(transform.d) > 0:
                raise InputError(f"{path}: is rotated; warp it north up (gdalwarp) first")
            band = _band(file, path)
            numbers = (transform.a, transform.b, transform.c, transform.d, transform.e, transform.f)
            return DemTile(path, file.crs.to_wkt(), numbers, file.shape, band, file.nodata, file.dtypes[band - 1])
    except RasterioError as error:
        raise InputError(f"{path}: cannot be read as a GeoTIFF ({_one_line(error)}): download it again") from error


def _band(file: Any, path: Path) -> int:
    named = [
        i for i, text in enumerate(file.descriptions, 1) if text and text.lower().startswith(("elev", "dem", "height"))
    ]
    if named:
        return named[0]
    if file.count == 1:
        return 1
    raise InputError(f"{path}: has {file.count} bands and none is described as elevation; give a one-band raster")


def open_dem(
    paths: str | Path | Iterable[str | Path], grid: Grid | None = None, box: Box | None = None
) -> xr.DataArray:
    """Elevation of one or several GeoTIFF tiles; voids, nodata and holes between tiles are NaN.

    Parameters
    ----------
    paths : a GeoTIFF or several of one CRS, resolution and pixel registration (any order: where tiles overlap, the first
        in order of name that has a value wins)
    grid : average onto its cells: each pixel weighted by its exact share of the cell (geographic tiles) or GDAL's `average`
        (projected tiles); a cell with no valid pixel is NaN
    box : west, south, east, north in degrees: read only the pixels that it touches

    Returns
    -------
    DataArray `elevation`, float32, metres: (lat, lon) in degrees for a geographic CRS or with `grid`, (y, x) in metres else;
    rows run north to south. Attributes crs, tiles (number read), voids (pixels without a value), overlap_conflicts (pixels of
    which two tiles differ).

    Raises
    ------
    InputError
        if a file is broken, tiles do not fit each other, or nothing lies in the box.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    tiles = sorted((describe(path) for path in listed), key=lambda tile: (tile.path.name, str(tile.path)))
    if not tiles:
        raise InputError("open_dem needs at least one file, got none")
    if box is None and grid is not None:
        box = _padded(grid.bounds)
    geographic = CRS.from_user_input(tiles[0].crs).is_geographic
    dem = _mosaic(tiles, box, geographic)
    if grid is None:
        return dem
    return _onto_grid(dem, grid) if geographic else _warp_onto_grid(dem, grid)


def _padded(bounds: Box) -> Box:
    w, s, e, n = bounds
    return w - 1e-3, max(s - 1e-3, -90.0), e + 1e-3, min(n + 1e-3, 90.0)


# -- mosaic ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lattice:
    """Pixel lattice: origin (left, top) and steps (both positive) of the first tile."""

    left: float
    top: float
    dx: float
    dy: float

    @classmethod
    def of(cls, tile: DemTile) -> _Lattice:
        left, _, _, top = tile.bounds
        return cls(left, top, abs(tile.transform[0]), abs(tile.transform[4]))

    def place(self, tile: DemTile, first: DemTile) -> tuple[int, int]:
        """Row and column of a tile's first pixel."""
        left, _, _, top = tile.bounds
        if not (
            math.isclose(abs(tile.transform[0]), self.dx, rel_tol=1e-6)
            and math.isclose(abs(tile.transform[4]), self.dy, rel_tol=1e-6)
        ):
            raise InputError(
                f"{tile.path}: pixels of {abs(tile.transform[0]):g} x {abs(tile.transform[4]):g} do not fit those of "
                f"{first.path.name}, {self.dx:g} x {self.dy:g}: give tiles of one resolution"
            )
        row, col = (self.top - top) / self.dy, (left - self.left) / self.dx
        if max(abs(row - round(row)), abs(col - round(col))) > _REGISTRATION_TOLERANCE:
            raise InputError(
                f"{tile.path}: its pixels are shifted by {col - math.floor(col):.3f}, {row - math.floor(row):.3f} of a pixel "
                f"against {first.path.name}: resample one of them"
            )
        return round(row), round(col)


def _mosaic(tiles: Sequence[DemTile], box: Box | None, geographic: bool) -> xr.DataArray:
    first = tiles[0]
    for tile in tiles[1:]:
        if CRS.from_user_input(tile.crs) != CRS.from_user_input(first.crs):
            raise InputError(f"{tile.path}: its CRS differs from that of {first.path.name}: give tiles of one CRS")
    lattice = _Lattice.of(first)
    places = [(*lattice.place(tile, first), tile) for tile in tiles]
    r0 = min(r for r, _, _ in places)
    c0 = min(c for _, c, _ in places)
    r1 = max(r + t.shape[0] for r, _, t in places)
    c1 = max(c + t.shape[1] for _, c, t in places)
    if box is not None:
        r0, r1, c0, c1 = _clip(lattice, box, (r0, r1, c0, c1), first, geographic)
    held = sum(tile.shape[0] * tile.shape[1] for tile in tiles)
    if box is None and (r1 - r0) * (c1 - c0) > max(MOST_EMPTY * held, 10**8):
        raise InputError(
            f"{first.path}: the {len(tiles)} elevation tiles lie so far apart that their mosaic of {r1 - r0} x {c1 - c0} cells would be mostly empty: "
            f"give grid= or box=, or fewer tiles"
        )
    out = np.full((r1 - r0, c1 - c0), np.nan, dtype=np.float32)
    read = conflicts = 0
    for row, col, tile in places:
        rows = slice(max(row, r0), min(row + tile.shape[0], r1))
        cols = slice(max(col, c0), min(col + tile.shape[1], c1))
        if rows.start >= rows.stop or cols.start >= cols.stop:
            continue
        values = _read(tile, slice(rows.start - row, rows.stop - row), slice(cols.start - col, cols.stop - col))
        target = out[rows.start - r0 : rows.stop - r0, cols.start - c0 : cols.stop - c0]
        empty = np.isnan(target)
        conflicts += int((~empty & ~np.isnan(values) & (target != values)).sum())
        target[empty] = values[empty]
        read += 1
    if read == 0:
        raise InputError(
            f"none of the {len(tiles)} elevation tiles lies in the box {box}; the first is {first.path.name}, {_show(first.box)}"
        )
    x = lattice.left + (np.arange(c0, c1) + 0.5) * lattice.dx
    y = lattice.top - (np.arange(r0, r1) + 0.5) * lattice.dy
    attrs = {"tiles": read, "voids": int(np.isnan(out).sum()), "overlap_conflicts": conflicts}
    return _labelled(out, y, x, first.crs, geographic, attrs)


def _clip(
    lattice: _Lattice, box: Box, extent: tuple[int, int, int, int], first: DemTile, geographic: bool
) -> tuple[int, int, int, int]:
    """Rows and columns of the mosaic that the box touches."""
    w, s, e, n = box
    if w >= e or s >= n:
        raise InputError(f"box must be west, south, east, north with west < east and south < north; got {box}")
    if not geographic:
        w, s, e, n = transform_bounds(CRS.from_epsg(4326), CRS.from_user_input(first.crs), w, s, e, n)
    elif lattice.left >= 180.0:
        w, e = w + 360.0, e + 360.0
    r0, r1, c0, c1 = extent
    r0 = max(r0, math.floor((lattice.top - n) / lattice.dy + 1e-6))
    r1 = min(r1, math.ceil((lattice.top - s) / lattice.dy - 1e-6))
    c0 = max(c0, math.floor((w - lattice.left) / lattice.dx + 1e-6))
    c1 = min(c1, math.ceil((e - lattice.left) / lattice.dx - 1e-6))
    if r0 >= r1 or c0 >= c1:
        raise InputError(
            f"no elevation tile lies in the box {_show(box)}; the first is {first.path.name}, {_show(first.box)}"
        )
    return r0, r1, c0, c1


def _read(tile: DemTile, rows: slice, cols: slice) -> NDArray[np.float32]:
    """Part of a tile, north up and west first, with everything that is no elevation NaN."""
    height, width = tile.shape
    if tile.transform[4] > 0:
        rows = slice(height - rows.stop, height - rows.start)
    if tile.transform[0] < 0:
        cols = slice(width - cols.stop, width - cols.start)
    window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)  # type: ignore[call-arg]
    try:
        with rasterio.open(tile.path) as file:
            raw = file.read(tile.band, window=window)
    except RasterioError as error:
        raise InputError(f"{tile.path}: cannot be read ({_one_line(error)}): download it again") from error
    values = raw.astype(np.float32)
    if tile.nodata is not None and not math.isnan(tile.nodata):
        values[raw == tile.nodata] = np.nan
    with np.errstate(invalid="ignore"):
        values[~((values >= LOWEST) & (values <= HIGHEST))] = np.nan
    return values[:: -1 if tile.transform[4] > 0 else 1, :: -1 if tile.transform[0] < 0 else 1]


def _labelled(
    values: NDArray, y: NDArray, x: NDArray, crs: str, geographic: bool, attrs: dict[str, Any]
) -> xr.DataArray:
    if geographic:
        dims, coords = (
            ("lat", "lon"),
            {"lat": ("lat", y, VARIABLES["latitude"].attrs), "lon": ("lon", x, VARIABLES["longitude"].attrs)},
        )
    else:
        dims = ("y", "x")
        coords = {
            "y": ("y", y, {"units": "m", "standard_name": "projection_y_coordinate"}),
            "x": ("x", x, {"units": "m", "standard_name": "projection_x_coordinate"}),
        }
    return xr.DataArray(values, coords, dims, "elevation", VARIABLES["elevation"].attrs | {"crs": crs} | attrs)


# -- onto a Grid ----------------------------------------------------------------------------------


def _onto_grid(dem: xr.DataArray, grid: Grid) -> xr.DataArray:
    """Exact area-weighted mean: rows and columns overlap separately (`Grid.overlap`)."""
    pixels = Grid(_edges(dem.lon.values), _edges(dem.lat.values))
    out = np.full(grid.shape, np.nan, dtype=np.float32)
    for start in range(0, grid.shape[0], _GRID_ROWS):
        band = grid.window(slice(start, start + _GRID_ROWS), slice(None))
        top, bottom = band.lat_edges[0], band.lat_edges[-1]
        rows = np.flatnonzero((pixels.lat_edges[:-1] > bottom) & (pixels.lat_edges[1:] < top))
        if rows.size == 0:
            continue
        part = slice(rows[0], rows[-1] + 1)
        by_row, by_column = pixels.window(part, slice(None)).overlap(band)
        values = dem.values[part].astype(np.float64)
        valid = np.isfinite(values)
        sums = by_row @ np.where(valid, values, 0.0) @ by_column.T
        area = by_row @ valid.astype(np.float64) @ by_column.T
        with np.errstate(invalid="ignore", divide="ignore"):
            out[start : start + _GRID_ROWS] = np.where(area > 0, sums / area, np.nan)
    return _on_grid(out, grid, dem)


def _edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    step = (centres[-1] - centres[0]) / (centres.size - 1) if centres.size > 1 else 1.0
    return np.append(centres - step / 2, centres[-1] + step / 2)


def _warp_onto_grid(dem: xr.DataArray, grid: Grid) -> xr.DataArray:
    """GDAL's area-weighted average from a projected DEM."""
    x, y = _edges(dem.x.values), _edges(dem.y.values)
    source = from_bounds(x[0], y[-1], x[-1], y[0], dem.x.size, dem.y.size)
    out = np.full(grid.shape, np.nan, dtype=np.float32)
    reproject(
        dem.values,
        out,
        src_transform=source,
        src_crs=CRS.from_user_input(dem.attrs["crs"]),
        src_nodata=np.nan,
        dst_transform=_transform(grid),
        dst_crs=CRS.from_user_input(grid.crs),
        dst_nodata=np.nan,
        resampling=Resampling.average,
    )
    return _on_grid(out, grid, dem)


def _transform(grid: Grid) -> Affine:
    if grid.x is not None and grid.y is not None:
        x, y = _edges(grid.x), _edges(grid.y)
    else:
        x, y = grid.lon_edges, grid.lat_edges
    return from_bounds(x[0], y[-1], x[-1], y[0], grid.shape[1], grid.shape[0])


def _on_grid(values: NDArray[np.float32], grid: Grid, dem: xr.DataArray) -> xr.DataArray:
    attrs = {
        "tiles": dem.attrs["tiles"],
        "voids": int(np.isnan(values).sum()),
        "overlap_conflicts": dem.attrs["overlap_conflicts"],
    }
    out = _labelled(values, grid.lat, grid.lon, grid.crs, True, attrs)
    if grid.x is not None:
        out = out.assign_coords(y=("lat", grid.y, {"units": "m"}), x=("lon", grid.x, {"units": "m"}))
    return out


# -- global fields --------------------------------------------------------------------------------


def open_altitude(path: str | Path, box: Box | None = None) -> xr.DataArray:
    """Elevation of pvlib's global 5 arc minute file.

    Parameters
    ----------
    path : Altitude.h5 (data set `Altitude`, 2160 x 4320 uint8, north first from 90 N, 180 W)
    box : west, south, east, north in degrees (within -180..180); None reads the globe

    Returns
    -------
    DataArray `elevation` (lat, lon), float32, metres, in steps of 28 m; NaN where the file has no data (255: open sea).
    """
    path = check(path, "HDF5")
    window = Grid.latlon(*(box or (-180.0, -90.0, 180.0, 90.0)), step=_ALTITUDE_STEP)
    with HDF_LOCK:
        try:
            with h5py.File(path, "r") as file:
                if "Altitude" not in file or file["Altitude"].shape != (2160, 4320):
                    raise InputError(f"{path}: has no data set Altitude of 2160 x 4320; expected pvlib's Altitude.h5")
                raw = file["Altitude"][_rows(window), _columns(window)]
        except OSError as error:
            raise InputError(f"{path}: cannot be read as HDF5 ({_one_line(error)}): download it again") from error
    values = np.where(raw == _ALTITUDE_FILL, np.nan, raw * _ALTITUDE_SCALE + _ALTITUDE_OFFSET).astype(np.float32)
    attrs = {"tiles": 1, "voids": int(np.isnan(values).sum()), "overlap_conflicts": 0}
    return _labelled(values, window.lat, window.lon, window.crs, True, attrs)


def open_land_cover_tif(path: str | Path, box: Box | None = None) -> xr.DataArray:
    """IGBP land cover of a global latitude-longitude GeoTIFF (MCD12C1 at 0.05 degrees).

    Parameters
    ----------
    path : GeoTIFF of classes 0 to 17; its datum is taken as WGS84, whatever it states
    box : west, south, east, north in degrees (within -180..180); None reads the globe

    Returns
    -------
    DataArray `land_cover` (lat, lon), uint8, classes 1 to 17 (water, 0 in the file, is 17), 255 where unknown.
    """
    path = check(path, "TIFF")
    try:
        with rasterio.open(path) as file:
            step = 360.0 / file.width
            if tuple(np.round(file.bounds, 6)) != (-180.0, -90.0, 180.0, 90.0) or file.height * 2 != file.width:
                raise InputError(f"{path}: covers {tuple(file.bounds)}, expected a global latitude-longitude raster")
            window = Grid.latlon(*(box or (-180.0, -90.0, 180.0, 90.0)), step=step)
            part = Window.from_slices(_rows(window), _columns(window))
            raw = file.read(1, window=part)
    except RasterioError as error:
        raise InputError(f"{path}: cannot be read as a GeoTIFF ({_one_line(error)}): download it again") from error
    classes = np.where(raw == 0, WATER, raw)
    classes = np.where(classes <= WATER, classes, LAND_COVER_FILL).astype(np.uint8)
    attrs = VARIABLES["land_cover"].attrs | {"crs": window.crs, "missing_value": np.uint8(LAND_COVER_FILL)}
    coords = {
        "lat": ("lat", window.lat, VARIABLES["latitude"].attrs),
        "lon": ("lon", window.lon, VARIABLES["longitude"].attrs),
    }
    return xr.DataArray(classes, coords, ("lat", "lon"), "land_cover", attrs)


def _rows(window: Grid) -> slice:
    return slice(window.row0, window.row0 + window.shape[0])


def _columns(window: Grid) -> slice:
    return slice(window.col0, window.col0 + window.shape[1])


def _show(box: Box) -> str:
    return "W {:.4g} S {:.4g} E {:.4g} N {:.4g}".format(*box)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
