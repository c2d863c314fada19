"""Terrain of a finer elevation model on the cells of a fine grid, block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.enums import TransformDirection

from smscale import schema
from smscale.errors import ElsewhereError, InputError
from smscale.grid import Grid, authalic_q, coords_of, grid_of
from smscale.kernels.overlap import MIN_RESULTANT, Bands, cell_areas
from smscale.kernels.terrain import Places, even_step, metres_per_degree, sums_over_bands, sums_over_pixels

Floats = NDArray[np.float64]

#: What `static_layers` gives.
LAYERS = ("elevation", "slope", "aspect", "northness", "eastness")
#: Elevation cells of a lazy or projected model that `static_layers` holds at once (16 MB).
_DEM_CELLS_AT_ONCE = 4_000_000
#: Overlaps below this share of an elevation cell are rounding of its edges.
_SLIVER = 1e-9
#: Shares of area are sums of some thousand float32 products: what differs by less is a tie.
_TIE = 1e-6
#: Metres between the points of a projected model of which longitude and latitude are computed, at most. Bilinear between them they
#: are off by L^2 / 8 x tan(lat) / R in the transverse Mercator projection: 0.02 m at 45 degrees, 0.1 m at 80.
_NODE_METRES, _NODE_PIXELS = 1000.0, 32
#: Points along each side of a block whose place in the projection bounds the block's.
_OUTLINE = 21


def static_layers(dem: xr.DataArray, grid: Grid, min_valid_fraction: float = 0.5) -> xr.Dataset:
    """Elevation, slope, aspect, northness and eastness of a finer elevation model on the cells of `grid`.

    Slope and aspect are those of the model's own cells (Horn, as `terrain`), added to the cells of `grid` as they are computed.
    Elevation and slope are averaged by area, aspect on the circle; northness and eastness are the means of its cosine and sine.
    Flat ground has no direction: it adds nothing to these sums, but its area counts, so that a flat cell has northness and
    eastness 0 and no aspect.

    A geographic model is weighted by exact common areas on WGS84. In a projected one each pixel goes to the cells that it lies
    in, by its common area with each as placed to 0.1 m; slope and aspect are turned and stretched to metres on the
    ground and to true north (a UTM slope changes by up to 0.04 %, one of Web Mercator by much more: `terrain` gives the map's).
    The result for a part of the grid is that for the whole, bit for bit; a lazy model is read in blocks with their halo.

    Parameters
    ----------
    dem : metres, NaN where missing, lazy or not: (lat, lon) in degrees on any evenly spaced grid or EASE-2 grid, longitudes in
        -180..180 or 0..360; or (y, x) of `attrs["crs"]` (or rioxarray's `spatial_ref`). Rows run north to south. It should
        cover `grid` and one cell more on each side: slope and aspect are missing on its outermost cells.
    grid : the fine grid or a window of it
    min_valid_fraction : share of a cell's area that must be valid

    Returns
    -------
    Dataset elevation, slope, aspect, northness, eastness (lat, lon) float32

    Raises
    ------
    InputError
        if the model has other dimensions, is projected without a CRS, unevenly spaced, or does not meet the grid.
    """
    projection = _projection(dem)
    if projection is None:
        sums, whole = _of_geographic(_geographic(dem), grid)
    else:
        sums, whole = _of_projected(dem, projection, grid)
    layers = _finished(sums, whole, min_valid_fraction)
    data = {name: (("lat", "lon"), layers[name], schema.VARIABLES[name].attrs) for name in LAYERS}
    return xr.Dataset(data, coords_of(grid), {"crs": grid.crs})


def _finished(sums: Floats, whole: Floats, least: float) -> dict[str, NDArray[np.float32]]:
    """Means of `SUMS` where enough of a cell's area is valid."""
    height, slope, east, north, known, sloped = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        has_height, has_slope = ((area > 0) & (area >= (least - _TIE) * whole) for area in (known, sloped))
        turned = has_slope & (np.hypot(east, north) > MIN_RESULTANT * sloped)
        layers = {
            "elevation": np.where(has_height, height / known, np.nan),
            "slope": np.where(has_slope, np.rad2deg(slope / sloped), np.nan),
            "northness": np.where(has_slope, north / sloped, np.nan),
            "eastness": np.where(has_slope, east / sloped, np.nan),
            "aspect": np.where(turned, np.rad2deg(np.arctan2(east, north)) % 360.0, np.nan),
        }
    found = {name: values.astype(np.float32) for name, values in layers.items()}
    found["aspect"][found["aspect"] >= 360] = 0.0
    return found


def _stranger(dem: object, grid: Grid) -> ElsewhereError:
    return ElsewhereError(f"the elevation model does not meet the grid: it covers {dem}, the grid is {grid}")


def _projection(dem: xr.DataArray) -> CRS | None:
    """The CRS of a (y, x) model; None if the model is one of longitude and latitude."""
    if set(dem.dims) == {"lat", "lon"}:
        return None
    if set(dem.dims) != {"y", "x"}:
        raise InputError(
            f"an elevation model has dimensions (lat, lon) or (y, x), got {dem.dims}; rename or transpose it, drop a band"
        )
    crs = dem.attrs.get("crs")
    if crs is None and "spatial_ref" in dem.coords:
        crs = dem.coords["spatial_ref"].attrs.get("crs_wkt")
    if crs is None:
        raise InputError("the elevation model (y, x) has no CRS: set dem.attrs['crs'], as 'EPSG:32648'")
    known = CRS.from_user_input(crs)
    return None if known.is_geographic else known


def _blocks(grid: Grid, cells: float) -> list[tuple[slice, slice]]:
    """Blocks of `grid` that lie over no more than `_DEM_CELLS_AT_ONCE` elevation cells, of which `cells` lie in one of its own."""
    side = max(int(np.sqrt(_DEM_CELLS_AT_ONCE / max(cells, 1.0))), 1)
    m, n = grid.shape
    return [
        (slice(i, min(i + side, m)), slice(j, min(j + side, n))) for i in range(0, m, side) for j in range(0, n, side)
    ]


# -- longitude and latitude -----------------------------------------------------------------------


def _geographic(dem: xr.DataArray) -> xr.DataArray:
    dem = dem if "lat" in dem.dims else dem.rename({"y": "lat", "x": "lon"})
    return dem.transpose("lat", "lon")


def _of_geographic(dem: xr.DataArray, grid: Grid) -> tuple[Floats, Floats]:
    """`SUMS` on the cells of `grid`, and the cells' areas."""
    source = grid_of(dem)
    turns = round((sum(grid.bounds[::2]) - sum(source.bounds[::2])) / 720.0)
    rows = _bands(-authalic_q(source.lat_edges), -authalic_q(grid.lat_edges))
    cols = _bands(source.lon_edges, grid.lon_edges - 360.0 * turns)
    if not (rows.stop > rows.start).any() or not (cols.stop > cols.start).any():
        raise _stranger(source, grid)
    dx, dy = _steps(source)
    whole = cell_areas(grid.lat_edges, grid.lon_edges)
    held = dem.variable._data
    if isinstance(held, np.ndarray) and held.dtype == np.float32:
        return sums_over_bands(held, dx, dy, rows, cols), whole
    sums = np.zeros((6, *grid.shape))
    shares = [np.diff(g.lat_edges).mean() * np.diff(g.lon_edges).mean() for g in (grid, source)]
    for block in _blocks(grid, shares[0] / shares[1]):
        across, along = (_part(bands, part) for bands, part in zip((rows, cols), block, strict=True))
        used = _span(across, source.shape[0]), _span(along, source.shape[1])
        if any(span.start >= span.stop for span in used):
            continue
        tile = np.asarray(dem[used].values, dtype=np.float32)
        across, along = (_shifted(b, s.start) for b, s in zip((across, along), used, strict=True))
        sums[:, *block] = sums_over_bands(tile, dx[used[0]], dy[used[0]], across, along)
    return sums, whole


def _steps(source: Grid) -> tuple[Floats, Floats]:
    """Metres between columns and between rows, at each row."""
    per_lon, per_lat = metres_per_degree(source.lat)
    dy = even_step(source.lat_edges) if source.x is None else -np.diff(source.lat_edges)
    return np.multiply(even_step(source.lon_edges), per_lon), np.multiply(dy, per_lat)


def _bands(fine: Floats, coarse: Floats) -> Bands:
    """Which intervals of ascending `fine` edges each interval of ascending `coarse` edges touches, and the length in common."""
    sliver = _SLIVER * np.diff(fine).min()
    start = np.clip(np.searchsorted(fine, coarse[:-1] + sliver, side="right") - 1, 0, fine.size - 1)
    stop = np.clip(np.searchsorted(fine, coarse[1:] - sliver, side="left"), start, fine.size - 1)
    at = start[:, None] + np.arange(max(int((stop - start).max()), 1))
    inside = at < stop[:, None]
    at = np.minimum(at, fine.size - 2)
    common = np.minimum(fine[at + 1], coarse[1:, None]) - np.maximum(fine[at], coarse[:-1, None])
    return Bands(start, stop, np.where(inside, common, 0.0))


def _part(bands: Bands, part: slice) -> Bands:
    return Bands(bands.start[part], bands.stop[part], bands.weights[part])


def _shifted(bands: Bands, first: int) -> Bands:
    """Bands counted from the fine interval `first`."""
    return Bands(np.maximum(bands.start - first, 0), np.maximum(bands.stop - first, 0), bands.weights)


def _span(bands: Bands, size: int) -> slice:
    """Fine intervals that the bands touch, and one more on each side."""
    touched = bands.stop > bands.start
    if not touched.any():
        return slice(0, 0)
    return slice(max(int(bands.start[touched].min()) - 1, 0), min(int(bands.stop[touched].max()) + 1, size))


# -- projections ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """Pixels along one axis: centre = (first + i + phase) x step, `step` negative where they descend.

    The integer `first` counts from the projection's origin, so that nodes lie at the same places for every window.
    """

    step: float
    first: int
    phase: float
    size: int

    @classmethod
    def of(cls, dem: xr.DataArray, name: str, descends: bool) -> _Axis:
        centres = np.asarray(dem.coords[name].values, dtype=np.float64) if name in dem.coords else np.zeros(0)
        if centres.size < 3:
            raise InputError(f"terrain needs at least 3 rows and 3 columns of cell centres; {name} has {centres.size}")
        if (centres[-1] < centres[0]) != descends:
            raise InputError(
                f"{name} {'ascends' if descends else 'descends'}; rows must run north to south and columns west to east: "
                f"use dem.sortby('{name}', ascending={not descends})"
            )
        step = even_step(centres)
        if np.abs(np.abs(np.diff(centres)) - step).max() > 0.02 * step:
            raise InputError(f"{name} must be evenly spaced; its mean step is {step:g}")
        step = -step if descends else step
        # Centres lie on whole or half steps from the origin: a quarter keeps both from the brink of rounding.
        first = int(np.floor(centres[0] / step + 0.25))
        return cls(step, first, round(centres[0] / step - first, 6), centres.size)

    def centre(self, pixel: NDArray[np.int64]) -> Floats:
        return np.multiply(self.first + pixel + self.phase, self.step)

    def pixels(self, low: float, high: float) -> slice:
        """Pixels whose centres lie between two places, and two more on each side; they may lie beyond the model."""
        ends = sorted(place / self.step - self.phase - self.first for place in (low, high))
        return slice(int(np.floor(ends[0])) - 2, int(np.ceil(ends[1])) + 3)


def _of_projected(dem: xr.DataArray, crs: CRS, grid: Grid) -> tuple[Floats, Floats]:
    """`SUMS` on the cells of `grid`, in pixels, and the cells' areas in pixels."""
    dem = dem.transpose("y", "x")
    y, x = _Axis.of(dem, "y", descends=True), _Axis.of(dem, "x", descends=False)
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    metres = (crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0) * max(-y.step, x.step)
    step = int(np.clip(_NODE_METRES // metres, 1, _NODE_PIXELS))
    sums, whole, met = np.zeros((6, *grid.shape)), np.zeros(grid.shape), False
    for rows, cols in _blocks(grid, float(grid.cell_area.max()) * 1e6 / metres**2):
        block = grid.window(rows, cols)
        used = _pixels_under(block, to_degrees, y, x)
        tile = _tile(dem, *used)
        if tile is None:
            continue
        met = True
        places = _places(to_degrees, y, x, used, step, (block.bounds[0] + block.bounds[2]) / 2)
        sums[:, rows, cols], whole[rows, cols] = sums_over_pixels(
            tile, x.step, -y.step, places, block.lon_edges, block.lat_edges
        )
    if not met:
        raise _stranger(f"{dem.sizes['y']} x {dem.sizes['x']} pixels of {crs.name}", grid)
    return sums, whole


def _pixels_under(block: Grid, to_degrees: Transformer, y: _Axis, x: _Axis) -> tuple[slice, slice]:
    """Pixels that may touch the block, from the places of its outline."""
    west, south, east, north = block.bounds
    lon, lat = np.linspace(west, east, _OUTLINE), np.linspace(south, north, _OUTLINE)
    ring = np.concatenate([lon, lon, np.full(_OUTLINE, west), np.full(_OUTLINE, east)])
    sides = np.concatenate([np.full(_OUTLINE, south), np.full(_OUTLINE, north), lat, lat])
    at_x, at_y = to_degrees.transform(ring, sides, direction=TransformDirection.INVERSE)
    if not (np.isfinite(at_x).all() and np.isfinite(at_y).all()):
        raise InputError(
            f"the elevation model's projection does not hold the grid's cells of {block}: warp the model (gdalwarp)"
        )
    return y.pixels(at_y.min(), at_y.max()), x.pixels(at_x.min(), at_x.max())


def _tile(dem: xr.DataArray, rows: slice, cols: slice) -> NDArray[np.float32] | None:
    """Pixels of the model, NaN beyond it; None where it has none."""
    inside = tuple(
        slice(max(part.start, 0), min(part.stop, size)) for part, size in zip((rows, cols), dem.shape, strict=True)
    )
    if any(part.start >= part.stop for part in inside):
        return None
    tile = np.full((rows.stop - rows.start, cols.stop - cols.start), np.nan, dtype=np.float32)
    target = tuple(slice(i.start - w.start, i.stop - w.start) for i, w in zip(inside, (rows, cols), strict=True))
    tile[target] = dem[inside].values
    return tile


def _places(
    to_degrees: Transformer, y: _Axis, x: _Axis, used: tuple[slice, slice], step: int, meridian: float
) -> Places:
    """Longitude, latitude (longitudes on the side of `meridian`) and the map's axes on the ground at every `step`-th pixel."""
    nodes = [_nodes(axis.first, part, step) for axis, part in zip((y, x), used, strict=True)]
    at = [axis.centre(node - axis.first) for axis, node in zip((y, x), nodes, strict=True)]
    lon, lat = to_degrees.transform(*np.meshgrid(at[1], at[0]))
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise InputError(
            f"the elevation model's projection has no longitudes and latitudes near {meridian:g} E: warp it (gdalwarp)"
        )
    lon = lon + 360.0 * np.round((meridian - lon) / 360.0)
    ground = _ground(lon, lat, step * y.step, step * x.step)
    inner = (slice(1, -1), slice(1, -1))
    return Places(
        np.stack([lon[inner], lat[inner], *ground]),
        step,
        int(nodes[0][1]) - y.first - used[0].start,
        int(nodes[1][1]) - x.first - used[1].start,
    )


def _nodes(first: int, part: slice, step: int) -> NDArray[np.int64]:
    """Multiples of `step` that enclose the pixels of a part, and one more on each side, counted from the projection's origin."""
    low, high = (first + part.start) // step - 1, (first + part.stop) // step + 2
    return np.arange(low, high + 1, dtype=np.int64) * step


def _ground(lon: Floats, lat: Floats, dy: float, dx: float) -> list[Floats]:
    """dx/dE, dx/dN, dy/dE, dy/dN at the inner nodes, by central differences over the nodes `dy`, `dx` apart.

    The inverse of the matrix of metres east and north per map unit along x and y.
    """
    per_lon, per_lat = metres_per_degree(lat[1:-1, 1:-1])
    east_x, east_y = (
        per_lon * (lon[1:-1, 2:] - lon[1:-1, :-2]) / (2 * dx),
        per_lon * (lon[2:, 1:-1] - lon[:-2, 1:-1]) / (2 * dy),
    )
    north_x, north_y = (
        per_lat * (lat[1:-1, 2:] - lat[1:-1, :-2]) / (2 * dx),
        per_lat * (lat[2:, 1:-1] - lat[:-2, 1:-1]) / (2 * dy),
    )
    determinant = east_x * north_y - east_y * north_x
    return [north_y / determinant, -east_y / determinant, -north_x / determinant, east_x / determinant]
