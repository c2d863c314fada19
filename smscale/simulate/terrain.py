"""The land: fractal elevation, what follows from it at 1 km, land cover, and a soil that no predictor sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import rasterio
from numba import njit
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from scipy.ndimage import distance_transform_edt, uniform_filter

from smscale.errors import InputError
from smscale.kernels import noise
from smscale.kernels.noise import fractal2, ridged2
from smscale.kernels.terrain import metres_per_degree, slope_aspect
from smscale.schema import BARREN, SNOW_ICE, URBAN, WATER
from smscale.simulate.dem_files import dem_tiles, tile_centres
from smscale.simulate.spec import POSTS, World

Floats = NDArray[np.float64]

#: Seeds of the fields, spaced by more than the octaves that each uses.
SEED_TERRAIN, SEED_COVER, SEED_SOIL = 1_000, 2_000, 3_000
#: Wavelengths, km: warping, ridges, main valleys, side valleys, envelope of the relief.
_WARP, _RIDGES, _VALLEYS, _TRIBUTARIES, _ENVELOPE = 110.0, 30.0, 75.0, 19.0, 160.0
#: Metres: height of ridges above their valleys on the front, on the plateau and in the basin; depth of main and of side valleys.
_RELIEF_FRONT, _RELIEF_PLATEAU, _RELIEF_BASIN = 3300.0, 2300.0, 160.0
_INCISION, _SIDE_INCISION = 800.0, 450.0
#: Nodes per degree of what varies over tens of km; between them it runs straight.
_NODES = 50
#: Halo of a land tile, degrees: the reach of the widest neighbourhood mean.
HALO = 0.16
#: Void of the DEM files (SRTM's).
VOID = -32767


def field_seed(world: World, which: int) -> int:
    """The seed of one field of a world."""
    return world.seed * 1_000_003 + which


@njit(cache=True, nogil=True)
def _broad(x, y, seed, along, basin, rise, width, cos_az, sin_az, out):  # type: ignore[no-untyped-def]
    """What varies over tens of km, at the nodes x (n,), y (m,) km; out (5, m, n): warp east and north, base, relief, level."""
    for i in range(y.size):
        for j in range(x.size):
            wx = fractal2(x[j] / _WARP, y[i] / _WARP, seed, 3, 0.5)
            wy = fractal2(x[j] / _WARP, y[i] / _WARP, seed + 10, 3, 0.5)
            distance = (x[j] * sin_az + y[i] * cos_az - along + 22.0 * wx) / width
            level = 0.5 + 0.5 * np.tanh(2.0 * distance)
            front = np.exp(-((distance - 0.15) ** 2) * 2.0)
            height = _RELIEF_BASIN * (1 - level) + (_RELIEF_PLATEAU + (_RELIEF_FRONT - _RELIEF_PLATEAU) * front) * level
            height *= 1.0 + 0.3 * fractal2(x[j] / _ENVELOPE, y[i] / _ENVELOPE, seed + 20, 2, 0.5)
            out[0, i, j], out[1, i, j] = 9.0 * wx, 9.0 * wy
            out[2, i, j], out[3, i, j], out[4, i, j] = basin + rise * level, height, level


@njit(cache=True, nogil=True)
def _elevation(x, y, row, col, down, right, broad, seed, relief, out):  # type: ignore[no-untyped-def]
    """Metres at the posts x (n,), y (m,) km; row, down and col, right place them between the nodes of `broad`; out (m, n)."""
    at = np.empty(5)
    for i in range(y.size):
        r, v = row[i], down[i]
        for j in range(x.size):
            c, u = col[j], right[j]
            for k in range(5):
                low = broad[k, r, c] * (1 - u) + broad[k, r, c + 1] * u
                high = broad[k, r + 1, c] * (1 - u) + broad[k, r + 1, c + 1] * u
                at[k] = low * (1 - v) + high * v
            east, north = x[j] + at[0], y[i] + at[1]
            ridge = ridged2(east / _RIDGES, north / _RIDGES, seed + 30, 8, 0.6)
            line = fractal2(east / _VALLEYS, north / _VALLEYS, seed + 50, 4, 0.45)
            side = fractal2(east / _TRIBUTARIES, north / _TRIBUTARIES, seed + 60, 4, 0.5)
            cut = _INCISION * np.exp(-((line / 0.18) ** 2)) + _SIDE_INCISION * np.exp(-abs(side) / 0.25)
            out[i, j] = at[2] + relief * (at[3] * (ridge - 0.42) - at[4] * cut)


def _between(degrees: Floats) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Nodes that enclose some coordinates, and each one's node before it and share of the way to the next."""
    place = degrees * _NODES
    before = np.floor(place).astype(np.int64)
    first = int(before.min())
    return np.arange(first, int(before.max()) + 2) / _NODES, before - first, place - before


def made_elevation(world: World, lon: Floats, lat: Floats) -> Floats:
    """Elevation of the made terrain, (m, n) metres, on lon (n,) x lat (m,) degrees: any points, the same value from any tile."""
    azimuth = np.deg2rad(world.plateau_azimuth)
    west, south, east, north = world.region
    corners = [world.plane(a, b) for a in (west, east) for b in (south, north)]
    reach = [float(cx * np.sin(azimuth) + cy * np.cos(azimuth)) for cx, cy in corners]
    along = min(reach) + world.front * (max(reach) - min(reach))
    rise, seed = world.plateau_elevation - world.basin_elevation, field_seed(world, SEED_TERRAIN)
    (nodes_lon, col, right), (nodes_lat, row, down) = _between(lon), _between(lat)
    broad = np.empty((5, nodes_lat.size, nodes_lon.size))
    direction = np.cos(azimuth), np.sin(azimuth)
    _broad(
        *world.plane(nodes_lon, nodes_lat),
        seed,
        along,
        world.basin_elevation,
        rise,
        world.front_width,
        *direction,
        broad,
    )
    out = np.empty((lat.size, lon.size))
    _elevation(*world.plane(lon, lat), row, col, down, right, broad, seed, world.relief, out)
    return out


def dem_tile(world: World, west: int, south: int) -> NDArray[np.int16]:
    """(1201, 1201) int16 metres of one 1-degree tile, rows north to south: made, or resampled from the user's DEM."""
    if world.dem:
        values = _resample(
            world.dem,
            west - 0.5 / POSTS,
            south + 1 + 0.5 / POSTS,
            1 / POSTS,
            (POSTS + 1, POSTS + 1),
            Resampling.bilinear,
        )
        return np.where(np.isfinite(values), np.rint(values), VOID).astype(np.int16)
    return np.clip(np.rint(made_elevation(world, *tile_centres(west, south))), -400, 8848).astype(np.int16)


def dem_corners(world: World, rows: slice = slice(None), cols: slice = slice(None)) -> list[tuple[int, int]]:
    """West and south of every 1-degree tile that a window of the simulated grid and its halo touch."""
    west, south, east, north = world.grid.window(rows, cols).bounds
    return dem_tiles(west - HALO, south - HALO, east + HALO, north + HALO)


def _resample(
    paths: Sequence[str], west: float, north: float, step: float, shape: tuple[int, int], how: Resampling
) -> Floats:
    """Rasters on one longitude-latitude window; the first that has a value gives it, NaN where none has."""
    out = np.full(shape, np.nan)
    transform = from_origin(west, north, step, step)
    for path in paths:
        try:
            with rasterio.open(path) as source:
                options = {
                    "crs": "EPSG:4326",
                    "transform": transform,
                    "height": shape[0],
                    "width": shape[1],
                    "resampling": how,
                }
                # Degrees are degrees: the sphere that some products name is not worth a datum shift.
                crs = "EPSG:4326" if source.crs is None or source.crs.is_geographic else source.crs
                with WarpedVRT(source, src_crs=crs, **options) as view:
                    values = view.read(1, masked=True).astype(np.float64).filled(np.nan)
        except rasterio.errors.RasterioError as error:
            raise InputError(f"{path}: cannot be read as a raster: {error}") from None
        out = np.where(np.isnan(out), values, out)
    return out


# -- from the DEM files to 1 km -----------------------------------------------------------------


@dataclass(frozen=True)
class Land:
    """What does not change, at the cells of one window (any shape; units as the truth's attributes say)."""

    lon: Floats
    lat: Floats
    elevation: Floats
    slope: Floats
    east_slope: Floats
    north_slope: Floats
    wetness_index: Floats
    position: Floats
    land_cover: NDArray[np.uint8]
    texture: Floats
    layering: Floats


#: Name -> long name, units of the stored static fields.
STATIC = {
    "elevation": ("elevation above sea level, mean over the cell", "m"),
    "slope": ("mean of the 3 arc-second slopes (Horn)", "degree"),
    "east_slope": ("mean rise towards the east", "1"),
    "north_slope": ("mean rise towards the north", "1"),
    "wetness_index": ("topographic wetness: low against its neighbourhood and flat is wet, zero mean", "1"),
    "position": ("height above the mean of 5 km around, over local relief", "1"),
    "texture": ("hidden soil texture: fine (positive) to coarse (negative), unit variance", "1"),
    "layering": ("hidden soil layering, unit variance", "1"),
}


def read_posts(paths: Sequence[str], west: float, north: float, posts: tuple[int, int]) -> Floats:
    """(m, n) metres, posts of the DEM tiles from a north-western one on; NaN in voids and where there is no tile.

    west, north : degrees of the first post, multiples of 1 / 1200
    """
    out = np.full(posts, np.nan)
    row0, col0 = round(-north * POSTS), round(west * POSTS)
    for path in paths:
        with rasterio.open(path) as tile:
            corner = tile.transform
            top, left = round(-(corner.f + corner.e / 2) * POSTS), round((corner.c + corner.a / 2) * POSTS)
            r0, r1 = max(row0, top), min(row0 + posts[0], top + tile.height)
            c0, c1 = max(col0, left), min(col0 + posts[1], left + tile.width)
            if r1 <= r0 or c1 <= c0:
                continue
            values = tile.read(1, window=((r0 - top, r1 - top), (c0 - left, c1 - left))).astype(np.float64)
            values[values == VOID] = np.nan
            out[r0 - row0 : r1 - row0, c0 - col0 : c1 - col0] = values
    return out


def _block_mean(values: NDArray, factor: int) -> Floats:
    """Means of cells of `factor` x `factor` from posts that stand on the cells' edges: those belong half to each side."""
    values = (values[:-1, :-1] + values[1:, :-1] + values[:-1, 1:] + values[1:, 1:]) / 4
    rows, cols = values.shape[0] // factor, values.shape[1] // factor
    return values.reshape(rows, factor, cols, factor).mean(axis=(1, 3))


def _fill_voids(posts: Floats, what: str) -> Floats:
    missing = np.isnan(posts)
    if not missing.any():
        return posts
    if missing.all():
        raise InputError(f"the DEM has no value around {what}: it must cover the region and its margin")
    rows, cols = distance_transform_edt(missing, return_distances=False, return_indices=True)
    return posts[rows, cols]


def land_window(world: World, paths: Sequence[str], rows: slice, cols: slice) -> Land:
    """The land of a window of the simulated grid, from the DEM tiles at `paths` (those that the window and its halo touch)."""
    grid = world.grid.window(rows, cols)
    factor = round(POSTS * world.step)
    halo = int(np.ceil(HALO / world.step))
    west, north = grid.lon_edges[0] - halo * world.step, grid.lat_edges[0] + halo * world.step
    shape = ((grid.shape[0] + 2 * halo) * factor + 1, (grid.shape[1] + 2 * halo) * factor + 1)
    posts = _fill_voids(read_posts(paths, west, north, shape), f"{grid.lon[0]:.2f} E, {grid.lat[0]:.2f} N")
    fine_lat = north - np.arange(shape[0]) / POSTS
    dx, dy = metres_per_degree(fine_lat)
    slope, aspect = slope_aspect(posts, dx / POSTS, dy / POSTS)
    inner = (slice(halo, halo + grid.shape[0]), slice(halo, halo + grid.shape[1]))
    trim = (slice(halo * factor, -halo * factor), slice(halo * factor, -halo * factor))
    slope, aspect = slope[trim].astype(np.float64), np.deg2rad(np.nan_to_num(aspect[trim].astype(np.float64)))
    rise = np.tan(np.deg2rad(slope))
    wide = _block_mean(posts, factor)
    wetness, position = _wetness(wide, world.step)
    mean_slope = _block_mean(slope, factor)
    lon, lat = np.meshgrid(grid.lon, grid.lat)
    x, y = world.plane(lon, lat)
    elevation = wide[inner]
    wetness_index = wetness[inner] + 0.5 * (0.5 - np.tanh(mean_slope / 15.0))
    return Land(
        lon=lon,
        lat=lat,
        elevation=elevation,
        slope=mean_slope,
        east_slope=_block_mean(-rise * np.sin(aspect), factor),
        north_slope=_block_mean(-rise * np.cos(aspect), factor),
        wetness_index=wetness_index,
        position=position[inner],
        land_cover=_land_cover(world, x, y, elevation, mean_slope, wetness_index, grid.bounds),
        texture=noise.fbm(x / 40.0, y / 40.0, field_seed(world, SEED_SOIL), 6, 0.75),
        layering=noise.fbm(x / 25.0, y / 25.0, field_seed(world, SEED_SOIL + 20), 5, 0.75),
    )


def _wetness(elevation: Floats, step: float) -> tuple[Floats, Floats]:
    """Relative depth below the neighbourhood at about 5 and 15 km (positive is low), and relative height at 5 km."""
    out = []
    for degrees in (0.05, 0.15):
        size = max(3, 2 * round(degrees / step / 2) + 1)
        mean = uniform_filter(elevation, size, mode="nearest")
        spread = np.sqrt(np.maximum(uniform_filter((elevation - mean) ** 2, size, mode="nearest"), 0.0)) + 25.0
        out.append(np.clip((mean - elevation) / spread, -2.5, 2.5))
    return 0.55 * out[0] + 0.45 * out[1], -out[0]


def _land_cover(
    world: World,
    x: Floats,
    y: Floats,
    elevation: Floats,
    slope: Floats,
    wetness: Floats,
    bounds: tuple[float, float, float, float],
) -> NDArray[np.uint8]:
    """IGBP class by elevation zone, slope and noise, or the nearest class of the user's raster."""
    if world.land_cover:
        west, _, _, north = bounds
        values = _resample([world.land_cover], west, north, world.step, (x.shape[0], x.shape[1]), Resampling.nearest)
        classes = np.where(np.isnan(values), WATER, values)
        return np.where(classes == 0, WATER, np.clip(classes, 0, 17)).astype(np.uint8)
    seed = field_seed(world, SEED_COVER)
    patches = noise.fbm(x / 12.0, y / 12.0, seed, 4, 0.65)
    wide = noise.fbm(x / 60.0, y / 60.0, seed + 10, 3, 0.5)
    towns = noise.fbm(x / 7.0, y / 7.0, seed + 20, 3, 0.6)
    z = elevation + 180.0 * patches + 150.0 * wide
    steep = slope > 12.0
    choices = [
        ((wetness > 1.15) & (slope < 9.0) & (patches > 0.75), WATER),
        ((wetness > 0.6) & (slope < 3.0) & (wide > 1.2) & (patches > 0.9), WATER),
        (z > 5250.0, SNOW_ICE),
        (z > 4850.0, BARREN),
        ((towns > 1.75) & (slope < 10.0) & (elevation < 3600.0), URBAN),
        ((z > 3500.0) & (wetness > 0.9) & (slope < 8.0) & (patches > 0.3), 11),
        ((z > 3900.0) & (patches > 1.0), 7),
        (z > 3900.0, 10),
        ((z > 3000.0) & steep & (patches > -0.2), 1),
        ((z > 3000.0) & (patches > 0.5), 9),
        (z > 3000.0, 10),
        ((z > 2100.0) & (patches > -0.1), 5),
        ((z > 2100.0) & steep, 8),
        (z > 2100.0, 6),
        ((z > 1100.0) & (patches > 0.0), 4),
        ((z > 1100.0) & steep, 8),
        (z > 1100.0, 14),
        (steep & (patches > -0.5), 2),
        (patches > 0.9, 14),
    ]
    return np.select([c for c, _ in choices], [k for _, k in choices], default=12).astype(np.uint8)
