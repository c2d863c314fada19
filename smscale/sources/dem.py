"""Elevation of GeoTIFF tiles of any CRS, and two global fields (5' elevation, 0.05 degree land cover).

Tiles of one mosaic share CRS, row spacing and pixel registration: pixels are placed by integers counted from the first
tile, so that a mosaic of tiles is the same array as one big tile. Only headers are read to open one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
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
from scipy import ndimage

from smscale.errors import ElsewhereError, InputError
from smscale.grid import Grid
from smscale.kernels import overlap
from smscale.places import Place
from smscale.schema import LAND_COVER_FILL, VARIABLES, WATER
from smscale.sources.files import HDF_LOCK, check

Box = tuple[float, float, float, float]

#: Elevations below this are voids, whatever the file declares (the Dead Sea's shore lies at -430 m).
LOWEST, HIGHEST = VARIABLES["elevation"].valid_min, VARIABLES["elevation"].valid_max
#: How far the pixels of two tiles may be off one common lattice, in pixels.
_REGISTRATION_TOLERANCE = 0.01
#: Elevations of one place in two tiles that differ by less agree, metres.
_AGREE = 0.1
#: Pixels that are averaged onto a `Grid` at a time, and along each side of a lazy mosaic's chunks.
_PIXELS_AT_ONCE, _CHUNK = 4_000_000, 2048
#: Holes of a mosaic that are named.
_NAMED_HOLES = 8

#: pvlib's Altitude.h5: metres = value * 28 - 450, 255 is no data, 5 arc minutes (pvlib.location.lookup_altitude; 28 is also the
#: slope of SRTM on its values: 28.2 over S33W071, and Chengdu comes out at 502 m, the northern Caspian shore at -30 m).
_ALTITUDE_STEP, _ALTITUDE_SCALE, _ALTITUDE_OFFSET, _ALTITUDE_FILL = 1 / 12, 28.0, -450.0, 255


#: A mosaic may hold this many times the cells of its tiles.
MOST_EMPTY = 50


@dataclass(frozen=True)
class DemTile:
    """One raster of elevation: where it lies, and which band holds the elevation."""

    path: Place
    crs: str
    transform: tuple[float, float, float, float, float, float]
    shape: tuple[int, int]
    band: int
    scale: float = 1.0
    offset: float = 0.0

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
            scale, offset = file.scales[band - 1], file.offsets[band - 1]
            return DemTile(path, file.crs.to_wkt(), numbers, file.shape, band, scale, offset)
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
    paths: str | Path | Iterable[str | Path],
    grid: Grid | None = None,
    box: Box | None = None,
    lazy: bool | None = None,
) -> xr.DataArray:
    """Elevation of one or several GeoTIFF tiles; voids, nodata and holes between tiles are NaN.

    Parameters
    ----------
    paths : a GeoTIFF or several of one CRS, row spacing and pixel registration (any order: where tiles overlap, the first
        in order of name that has a value wins; neighbours may share edge rows and columns, as SRTM's, or not, as
        Copernicus'). Geographic tiles may have wider columns than others (Copernicus north of 50 N): these are interpolated
        linearly along their rows to the narrowest.
    grid : average onto its cells: each pixel weighted by its exact share of the cell (geographic tiles) or GDAL's `average`
        (projected tiles); a cell with no valid pixel is NaN
    box : west, south, east, north in degrees: only the pixels that it touches
    lazy : a dask array whose chunks read what is asked of them; without `grid` and `box` the default. Else the pixels are
        read at once

    Returns
    -------
    DataArray `elevation`, float32, metres: (lat, lon) in degrees for a geographic CRS or with `grid`, (y, x) in metres else;
    rows run north to south, longitudes are -180..180 or continue those of the box. Attributes crs, tiles (number that it
    meets), holes (pixels inside its outline that no tile covers), hole_boxes (W S E N of the first of them), and where the pixels were
    read voids (pixels without a value, holes included) and overlap_conflicts (pixels of which two tiles differ by more than 0.1 m).

    Raises
    ------
    InputError
        if a file is broken (a body cut short: when its pixels are read), tiles do not fit each other, or nothing lies in the box.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    tiles = sorted((describe(path) for path in listed), key=lambda tile: (tile.path.name, str(tile.path)))
    if not tiles:
        raise InputError("open_dem needs at least one file, got none")
    if grid is not None and lazy:
        raise InputError("open_dem averages onto a grid at once: leave out lazy=True, or grid=")
    if box is None and grid is not None:
        box = _padded(grid.bounds)
    mosaic = _mosaic(tiles, box)
    if grid is not None and mosaic.geographic:
        return _onto_grid(mosaic, grid)
    if grid is None and (lazy or (lazy is None and box is None)):
        return mosaic.lazy()
    dem = mosaic.read()
    return dem if grid is None else _warp_onto_grid(dem, grid)


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

    def place(self, tile: DemTile, first: DemTile, turns: int = 0) -> tuple[int, int]:
        """Row and column of the first pixel of a tile, which is moved by so many turns of 360 degrees."""
        left, _, _, top = tile.bounds
        row, col = (self.top - top) / self.dy, (left + 360.0 * turns - self.left) / self.dx
        # Of a tile with other columns, the rows alone must fit.
        col = col if _alike(tile.transform[0], self.dx) else 0.0
        if max(abs(row - round(row)), abs(col - round(col))) > _REGISTRATION_TOLERANCE:
            raise InputError(
                f"{tile.path}: its pixels are shifted by {col - math.floor(col):.3f}, {row - math.floor(row):.3f} of a pixel "
                f"against {first.path.name}: resample one of them"
            )
        return round(row), round(col)


class _Placed(NamedTuple):
    """A tile and the row and column of its first pixel."""

    row: int
    col: int
    tile: DemTile

    def part(self, rows: slice, cols: slice) -> tuple[slice, slice]:
        """What of these rows and columns the tile covers (empty slices run backwards)."""
        m, n = self.tile.shape
        return (
            slice(max(self.row, rows.start), min(self.row + m, rows.stop)),
            slice(max(self.col, cols.start), min(self.col + n, cols.stop)),
        )


def _empty(*parts: slice) -> bool:
    return any(part.start >= part.stop for part in parts)


def _shift(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


@dataclass(frozen=True)
class _Group:
    """Tiles of one spacing on one lattice, in order of name."""

    lattice: _Lattice
    placed: tuple[_Placed, ...]

    @property
    def extent(self) -> Box:
        """Left, bottom, right, top of the outermost edges, in units of the CRS."""
        rows = [p.row for p in self.placed] + [p.row + p.tile.shape[0] for p in self.placed]
        cols = [p.col for p in self.placed] + [p.col + p.tile.shape[1] for p in self.placed]
        at = self.lattice
        return (
            at.left + min(cols) * at.dx,
            at.top - max(rows) * at.dy,
            at.left + max(cols) * at.dx,
            at.top - min(rows) * at.dy,
        )

    def read(self, rows: slice, cols: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Elevations, and how many pixels of each row two tiles dispute."""
        out = np.full((rows.stop - rows.start, cols.stop - cols.start), np.nan, dtype=np.float32)
        conflicts = np.zeros(out.shape[0], dtype=np.int64)
        for placed in self.placed:
            part = placed.part(rows, cols)
            if _empty(*part):
                continue
            values = _read(placed.tile, _shift(part[0], -placed.row), _shift(part[1], -placed.col))
            inside = _shift(part[0], -rows.start), _shift(part[1], -cols.start)
            conflicts[inside[0]] += _fill(out[inside], values)
        return out, conflicts

    def read_columns(self, rows: slice, centres: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Elevations at other columns than its own, linear between the two that enclose each; missing where the nearest is."""
        at = (centres - self.lattice.left) / self.lattice.dx - 0.5
        before = np.floor(at + _REGISTRATION_TOLERANCE).astype(int)
        share = np.clip(at - before, 0.0, 1.0).astype(np.float32)
        first = int(before[0])
        values, conflicts = self.read(rows, slice(first, int(before[-1]) + 2))
        left, right = values[:, before - first], values[:, before - first + 1]
        between = left + share * (right - left)
        nearest = np.where(share < 0.5, left, right)
        return np.where(np.isnan(between), nearest, between), conflicts


def _fill(target: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Put `values` where `target` has none; how many of each row the two dispute."""
    empty = np.isnan(target)
    with np.errstate(invalid="ignore"):
        disputed = np.abs(target - values) > _AGREE
    target[empty] = values[empty]
    return disputed.sum(axis=1)


@dataclass(frozen=True)
class _Mosaic:
    """A window of the tiles' common lattice, which is that of the narrowest columns; indexed by slices, as dask does."""

    lattice: _Lattice
    groups: tuple[_Group, ...]
    rows: slice
    cols: slice
    crs: str
    geographic: bool

    ndim = 2
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start

    @property
    def x(self) -> NDArray[np.float64]:
        return self.lattice.left + (np.arange(self.cols.start, self.cols.stop) + 0.5) * self.lattice.dx

    @property
    def y(self) -> NDArray[np.float64]:
        return self.lattice.top - (np.arange(self.rows.start, self.rows.stop) + 0.5) * self.lattice.dy

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[np.float32]:
        return self.window(*(slice(*part.indices(size)) for part, size in zip(key, self.shape, strict=True)))[0]

    def window(self, rows: slice, cols: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Elevations of rows and columns counted from the mosaic's first, and how many pixels of each row two tiles dispute."""
        if _empty(rows, cols):
            height, width = (max(part.stop - part.start, 0) for part in (rows, cols))
            return np.empty((height, width), np.float32), np.zeros(height, np.int64)
        own = _shift(rows, self.rows.start)
        out = np.full((rows.stop - rows.start, cols.stop - cols.start), np.nan, dtype=np.float32)
        conflicts = np.zeros(out.shape[0], dtype=np.int64)
        for group in self.groups:
            theirs = _shift(own, self._down(group))
            if _alike(group.lattice.dx, self.lattice.dx):
                values, inner = group.read(theirs, _shift(cols, self.cols.start))
            else:
                values, inner = group.read_columns(theirs, self.x[cols])
            conflicts += inner + _fill(out, values)
        return out, conflicts

    def _down(self, group: _Group) -> int:
        """Rows of the group's lattice above the mosaic's."""
        return round((group.lattice.top - self.lattice.top) / self.lattice.dy)

    @cached_property
    def covered(self) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Which parts tiles cover, between rows and columns of tile edges (ascending, from the mosaic's first)."""
        m, n = self.shape
        outlines = [self._outline(group, placed) for group in self.groups for placed in group.placed]
        rows = np.unique(np.clip([r for outline in outlines for r in outline[:2]] + [0, m], 0, m))
        cols = np.unique(np.clip([c for outline in outlines for c in outline[2:]] + [0, n], 0, n))
        covered = np.zeros((rows.size - 1, cols.size - 1), dtype=bool)
        for r0, r1, c0, c1 in outlines:
            covered[(rows[:-1] >= r0)[:, None] & (rows[1:] <= r1)[:, None] & (cols[:-1] >= c0) & (cols[1:] <= c1)] = (
                True
            )
        return covered, rows, cols

    def _outline(self, group: _Group, placed: _Placed) -> tuple[int, int, int, int]:
        """First row, last row, first column, last column of a tile (ends excluded), counted from the mosaic's first."""
        at, main = group.lattice, self.lattice
        row = placed.row - self._down(group) - self.rows.start
        left = at.left + placed.col * at.dx
        # Of a group of wider columns: those whose centres it encloses.
        cols = [
            math.ceil((edge - main.left) / main.dx - 0.5 - _REGISTRATION_TOLERANCE)
            for edge in (left, left + placed.tile.shape[1] * at.dx)
        ]
        return row, row + placed.tile.shape[0], cols[0] - self.cols.start, cols[1] - self.cols.start

    def attrs(self) -> dict[str, Any]:
        """What the headers tell: tiles met, holes between them."""
        covered, rows, cols = self.covered
        found = {"tiles": len(self._met()), "holes": int((~covered * np.outer(np.diff(rows), np.diff(cols))).sum())}
        return found | ({"hole_boxes": "; ".join(self._holes())} if found["holes"] else {})

    def _met(self) -> set[Place]:
        """Tiles that the window meets."""
        outlines = (
            (self._outline(group, placed), placed.tile.path) for group in self.groups for placed in group.placed
        )
        m, n = self.shape
        return {path for (r0, r1, c0, c1), path in outlines if r0 < m and r1 > 0 and c0 < n and c1 > 0}

    def _holes(self) -> Iterator[str]:
        covered, rows, cols = self.covered
        lattice = self.lattice
        for part in ndimage.find_objects(ndimage.label(~covered)[0])[:_NAMED_HOLES]:
            top, bottom = (
                lattice.top - (self.rows.start + rows[r]) * lattice.dy for r in (part[0].start, part[0].stop)
            )
            left, right = (
                lattice.left + (self.cols.start + cols[c]) * lattice.dx for c in (part[1].start, part[1].stop)
            )
            yield _show((left, bottom, right, top))

    def lazy(self) -> xr.DataArray:
        """Dask chunks that read themselves."""
        data = da.from_array(
            self, chunks=_CHUNK, asarray=False, inline_array=False, name=False, meta=np.empty((0, 0), np.float32)
        )
        return _labelled(data, self.y, self.x, self.crs, self.geographic, self.attrs())

    def read(self) -> xr.DataArray:
        """All of it, now."""
        held = sum(placed.tile.shape[0] * placed.tile.shape[1] for group in self.groups for placed in group.placed)
        m, n = self.shape
        if m * n > max(MOST_EMPTY * held, 10**8):
            raise InputError(
                f"{self.groups[0].placed[0].tile.path}: the {len(self._met())} elevation tiles lie so far apart that their mosaic of {m} x {n} cells would be "
                f"mostly empty: give grid= or box=, or fewer tiles"
            )
        out, conflicts = self.window(slice(0, m), slice(0, n))
        counts = {"voids": int(np.isnan(out).sum()), "overlap_conflicts": int(conflicts.sum())}
        return _labelled(out, self.y, self.x, self.crs, self.geographic, self.attrs() | counts)


def _mosaic(tiles: Sequence[DemTile], box: Box | None) -> _Mosaic:
    first = tiles[0]
    crs = CRS.from_user_input(first.crs)
    for tile in tiles[1:]:
        if tile.crs != first.crs and CRS.from_user_input(tile.crs) != crs:
            raise InputError(
                f"{tile.path}: its CRS differs from that of {first.path.name}: {_crs_name(tile)}, not {_crs_name(first)}: give tiles of one CRS"
            )
    if box is not None and (box[0] >= box[2] or box[1] >= box[3]):
        raise InputError(f"box must be west, south, east, north with west < east and south < north; got {box}")
    lattice, groups = _groups(tiles, box, crs.is_geographic)
    if not groups:
        raise _nothing_in(box, first)
    extents = [group.extent for group in groups]
    whole = (
        min(e[0] for e in extents),
        min(e[1] for e in extents),
        max(e[2] for e in extents),
        max(e[3] for e in extents),
    )
    rows, cols = _window(lattice, whole, 0.5)
    if box is not None:
        edges = box if crs.is_geographic else transform_bounds(CRS.from_epsg(4326), crs, *box)
        inside = _window(lattice, edges, 1e-6)
        rows, cols = (
            slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip((rows, cols), inside, strict=True)
        )
    mosaic = _Mosaic(lattice, tuple(groups), rows, cols, first.crs, crs.is_geographic)
    if _empty(rows, cols) or not mosaic._met():
        raise _nothing_in(box, first)
    return mosaic


def _nothing_in(box: Box | None, first: DemTile) -> ElsewhereError:
    shown = _show(box) if box else "None"
    return ElsewhereError(
        f"no elevation tile lies in the box {shown}; the first is {first.path.name}, {_show(first.box)}"
    )


def _crs_name(tile: DemTile) -> str:
    crs = CRS.from_user_input(tile.crs)
    return f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else crs.to_wkt()[:40]


def _groups(tiles: Sequence[DemTile], box: Box | None, geographic: bool) -> tuple[_Lattice, list[_Group]]:
    """The lattice of the narrowest columns, and tiles of equal columns together, the narrowest first; those only that meet the box."""
    first = tiles[0]
    leaders: list[DemTile] = []
    for tile in tiles:
        _check_spacing(tile, first, geographic)
        if not any(_alike(tile.transform[0], leader.transform[0]) for leader in leaders):
            leaders.append(tile)
    leaders.sort(key=lambda tile: abs(tile.transform[0]))
    main, groups = _Lattice.of(leaders[0]), []
    for leader in leaders:
        main.place(leader, leaders[0])
        lattice = _Lattice.of(leader)
        placed = tuple(
            _Placed(*lattice.place(tile, leader, turns), tile)
            for tile in tiles
            if _alike(tile.transform[0], leader.transform[0])
            for turns in (_turns(tile, first, box) if geographic else [0])
        )
        if placed:
            groups.append(_Group(lattice, placed))
    return main, groups


def _alike(a: float, b: float) -> bool:
    return math.isclose(abs(a), abs(b), rel_tol=1e-6)


def _check_spacing(tile: DemTile, first: DemTile, geographic: bool) -> None:
    (dx, dy), (dx0, dy0) = ((abs(t.transform[0]), abs(t.transform[4])) for t in (tile, first))
    if not _alike(dy, dy0) or not (geographic or _alike(dx, dx0)):
        raise InputError(
            f"{tile.path}: pixels of {dx:g} x {dy:g} do not fit those of {first.path.name}, {dx0:g} x {dy0:g}: "
            f"give tiles of one resolution"
        )


def _turns(tile: DemTile, first: DemTile, box: Box | None) -> list[int]:
    """Turns of 360 degrees that bring a tile into the box, or next to the first tile."""
    west, south, east, north = tile.bounds
    if box is not None:
        return [
            turns
            for turns in (-1, 0, 1)
            if west + 360 * turns < box[2] and east + 360 * turns > box[0] and south < box[3] and north > box[1]
        ]
    middle = sum(first.bounds[::2]) / 2
    middle -= 360.0 * math.ceil((middle - 180.0) / 360.0)
    return [round((middle - (west + east) / 2) / 360.0)]


def _window(lattice: _Lattice, edges: Box, tolerance: float) -> tuple[slice, slice]:
    """Rows and columns that lie between edges, those included that an edge cuts by more than `tolerance`."""
    w, s, e, n = edges
    return (
        slice(
            math.floor((lattice.top - n) / lattice.dy + tolerance),
            math.ceil((lattice.top - s) / lattice.dy - tolerance),
        ),
        slice(
            math.floor((w - lattice.left) / lattice.dx + tolerance),
            math.ceil((e - lattice.left) / lattice.dx - tolerance),
        ),
    )


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
            raw = file.read(tile.band, window=window, masked=True)
    except RasterioError as error:
        raise InputError(
            f"{tile.path}: cannot be read ({_one_line(error.__cause__ or error)}): download it again"
        ) from error
    with np.errstate(over="ignore"):
        values = raw.astype(np.float32).filled(np.nan)
    if (tile.scale, tile.offset) != (1.0, 0.0):
        values = values * np.float32(tile.scale) + np.float32(tile.offset)
    with np.errstate(invalid="ignore"):
        values[~((values >= LOWEST) & (values <= HIGHEST))] = np.nan
    return values[:: -1 if tile.transform[4] > 0 else 1, :: -1 if tile.transform[0] < 0 else 1]


def _labelled(
    values: NDArray | da.Array, y: NDArray, x: NDArray, crs: str, geographic: bool, attrs: dict[str, Any]
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


def _onto_grid(mosaic: _Mosaic, grid: Grid) -> xr.DataArray:
    """Exact area-weighted mean: rows and columns overlap separately (`Grid.overlap`)."""
    pixels = Grid(_edges(mosaic.x), _edges(mosaic.y))
    out = np.full(grid.shape, np.nan, dtype=np.float32)
    disputed, counted = 0, np.zeros(mosaic.shape[0], dtype=np.int64)
    columns = _within(pixels.lon_edges, grid.lon_edges[[0, -1]])
    rows_at_once = max(int(_PIXELS_AT_ONCE / mosaic.shape[1] * grid.shape[0] / mosaic.shape[0]), 1)
    for start in range(0, grid.shape[0], rows_at_once):
        band = grid.window(slice(start, start + rows_at_once), slice(None))
        rows = _within(-pixels.lat_edges, -band.lat_edges[[0, -1]])
        if _empty(rows, columns):
            continue
        values, conflicts = mosaic.window(rows, columns)
        counted[rows] = np.maximum(counted[rows], conflicts)
        lat, lon = (overlap.without_slivers(matrix) for matrix in pixels.window(rows, columns).overlap(band))
        part = overlap.overlap_of(lat, lon)
        state = overlap.merge([overlap.mean_state(values[None], part)], [part], band.shape)
        area = overlap.cell_areas(band.lat_edges, band.lon_edges)
        out[start : start + rows_at_once] = overlap.mean_of(state, area, 0.0)[0][0]
    disputed = int(counted.sum())
    return _on_grid(out, grid, mosaic.attrs() | {"overlap_conflicts": disputed})


def _within(edges: NDArray[np.float64], ends: NDArray[np.float64]) -> slice:
    """Cells between ascending edges that lie between the ends, in part or whole."""
    return slice(
        max(int(np.searchsorted(edges, ends[0], side="right")) - 1, 0),
        min(int(np.searchsorted(edges, ends[1], side="left")), edges.size - 1),
    )


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
    return _on_grid(out, grid, dem.attrs)


def _transform(grid: Grid) -> Affine:
    if grid.x is not None and grid.y is not None:
        x, y = _edges(grid.x), _edges(grid.y)
    else:
        x, y = grid.lon_edges, grid.lat_edges
    return from_bounds(x[0], y[-1], x[-1], y[0], grid.shape[1], grid.shape[0])


def _on_grid(values: NDArray[np.float32], grid: Grid, told: Mapping[str, Any]) -> xr.DataArray:
    kept = ("tiles", "holes", "hole_boxes", "overlap_conflicts")
    attrs = {name: told[name] for name in kept if name in told} | {"voids": int(np.isnan(values).sum())}
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
