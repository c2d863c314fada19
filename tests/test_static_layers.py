"""Terrain reduced to a fine grid: against `terrain` and `upscale`, against surfaces whose slopes are known, window by window."""

import os
import subprocess
import sys
import tracemalloc
from typing import ClassVar

import dask.array as da
import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from smscale.cube import static_layers
from smscale.cube import terrain as module
from smscale.errors import InputError
from smscale.features.terrain import terrain
from smscale.features.upscale import upscale
from smscale.grid import Grid, coords_of
from smscale.kernels.terrain import metres_per_degree
from smscale.sources.dem import open_dem

NAMES = ("elevation", "slope", "aspect", "northness", "eastness")
#: Waves of the analytic surface: height in metres, radians per degree of longitude and of latitude, phase.
WAVES = ((700.0, 720.0, -480.0, 0.3), (300.0, -1260.0, 1980.0, 1.1), (60.0, 3600.0, 3000.0, 2.0))


def mountains(west, south, east, north, per_degree=400):
    """An elevation model of its own coordinates: ridges that do not depend on the window."""
    grid = Grid.latlon(west, south, east, north, step=1 / per_degree)
    lon, lat = np.meshgrid(grid.lon, grid.lat)
    z = 2000 + 900 * np.sin(lon * 37.0) * np.cos(lat * 53.0) + 150 * np.sin(lon * 311 + lat * 207)
    return xr.DataArray(z.astype(np.float32), coords_of(grid), ("lat", "lon"), "elevation")


GRID = Grid.latlon(102.0, 30.0, 102.6, 30.4)
DEM = mountains(101.9, 29.9, 102.7, 30.5)


def phase(wave, lon, lat):
    _, a, b, c = wave
    return a * np.deg2rad(lon) + b * np.deg2rad(lat) + c


def surface(lon, lat):
    """Elevation in metres."""
    return 2500 + sum(wave[0] * np.sin(phase(wave, lon, lat)) for wave in WAVES)


def true_layers(grid, points=40):
    """Cell means of the analytic surface's layers on the WGS84 ellipsoid, from points x points in each cell, and the mean vector's length."""
    share = (np.arange(points) + 0.5) / points
    lon = (grid.lon_edges[:-1, None] + share * np.diff(grid.lon_edges)[:, None]).ravel()
    lat = (grid.lat_edges[:-1, None] + share * np.diff(grid.lat_edges)[:, None]).ravel()
    lon, lat = np.meshgrid(lon, lat)
    per_lon, per_lat = metres_per_degree(lat)
    swing = [np.deg2rad(wave[0]) * np.cos(phase(wave, lon, lat)) for wave in WAVES]
    east = sum(s * wave[1] for s, wave in zip(swing, WAVES, strict=True)) / per_lon
    north = sum(s * wave[2] for s, wave in zip(swing, WAVES, strict=True)) / per_lat
    steep = np.hypot(east, north)

    def mean(values):
        shape = (grid.shape[0], points, grid.shape[1], points)
        area = np.cos(np.deg2rad(lat)).reshape(shape)
        return (values.reshape(shape) * area).mean((1, 3)) / area.mean((1, 3))

    to_east, to_north = mean(-east / steep), mean(-north / steep)
    layers = {
        "elevation": mean(surface(lon, lat)),
        "slope": mean(np.rad2deg(np.arctan(steep))),
        "eastness": to_east,
        "northness": to_north,
        "aspect": np.rad2deg(np.arctan2(to_east, to_north)) % 360,
    }
    return layers, np.hypot(to_east, to_north)


def projected_surface(crs, grid, step, pad=0.03):
    """The analytic surface at the pixel centres of a projected model that encloses the grid."""
    to_crs = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    w, s, e, n = grid.bounds
    side = np.linspace(0, 1, 9)
    lon, lat = np.meshgrid(w - pad + side * (e - w + 2 * pad), s - pad + side * (n - s + 2 * pad))
    x, y = to_crs.transform(lon, lat)
    x = (np.arange(np.floor(x.min() / step), np.ceil(x.max() / step)) + 0.5) * step
    y = (np.arange(np.floor(y.min() / step), np.ceil(y.max() / step)) + 0.5)[::-1] * step
    lon, lat = to_crs.transform(*np.meshgrid(x, y), direction="INVERSE")
    return xr.DataArray(surface(lon, lat).astype(np.float32), {"y": y, "x": x}, ("y", "x"), attrs={"crs": crs})


def turn(a, b):
    return np.abs((a - b + 180) % 360 - 180)


# -- longitude and latitude -----------------------------------------------------------------------


def test_layers_are_terrain_first_then_averages():
    found = static_layers(DEM, GRID)
    fine = terrain(DEM)
    assert set(found.data_vars) == set(NAMES)
    # Sums of 25 float32 slopes and heights above the first, then float64: a few units of float32.
    np.testing.assert_allclose(found.slope, upscale(fine.slope, GRID), rtol=1e-6)
    np.testing.assert_allclose(found.elevation, upscale(DEM, GRID), rtol=2e-7)
    angle = np.deg2rad(fine.aspect.astype(np.float64))
    for name, component in (("northness", np.cos(angle)), ("eastness", np.sin(angle))):
        expected = upscale(component.astype(np.float32).rename("ndvi"), GRID)  # a continuous variable of range -1..1
        np.testing.assert_allclose(found[name], expected, atol=5e-7)
    # Where directions nearly cancel, float32 unit vectors move their mean a little.
    assert turn(found.aspect, upscale(fine.aspect, GRID)).max() < 2e-3
    assert found.slope.dims == ("lat", "lon")
    assert found.attrs["crs"] == "EPSG:4326"
    assert found.northness.attrs["valid_min"] == -1


def test_aspect_is_the_direction_of_northness_and_eastness():
    found = static_layers(DEM, GRID)
    direction = np.rad2deg(np.arctan2(found.eastness, found.northness)) % 360
    sure = np.hypot(found.eastness, found.northness) > 0.05
    assert turn(found.aspect, direction).where(sure).max() < 1e-3


@pytest.mark.parametrize(("box", "per_degree"), [((102, 30, 102.3, 30.2), 3600), ((-70.2, -62.1, -70, -62), 3600)])
def test_a_geographic_model_of_a_known_surface(box, per_degree):
    """Horn over 31 m of waves of 3 km and more, on the ellipsoid: 0.02 degrees of slope."""
    grid = Grid.latlon(*box)
    fine = Grid.latlon(box[0] - 0.01, box[1] - 0.01, box[2] + 0.01, box[3] + 0.01, 1 / per_degree)
    z = surface(*np.meshgrid(fine.lon, fine.lat)).astype(np.float32)
    found = static_layers(xr.DataArray(z, coords_of(fine), ("lat", "lon")), grid)
    expected, length = true_layers(grid)
    np.testing.assert_allclose(found.elevation, expected["elevation"], atol=0.01)
    np.testing.assert_allclose(found.slope, expected["slope"], atol=0.02)
    np.testing.assert_allclose(found.northness, expected["northness"], atol=3e-3)
    np.testing.assert_allclose(found.eastness, expected["eastness"], atol=3e-3)
    assert turn(found.aspect, expected["aspect"]).values[length > 0.3].max() < 0.3


def test_mean_of_fine_slopes_is_not_the_slope_of_the_mean():
    coarse = terrain(static_layers(DEM, GRID).elevation)
    assert float(static_layers(DEM, GRID).slope.mean()) > 1.5 * float(coarse.slope.mean())


@settings(deadline=None, max_examples=25)
@given(
    st.tuples(st.integers(0, 39), st.integers(1, 20)),
    st.tuples(st.integers(0, 59), st.integers(1, 30)),
    st.integers(1, 9),
)
def test_any_window_equals_the_whole_bit_for_bit(rows, cols, beyond):
    """Whatever the elevations around it: the window's own cells and one more on each side decide."""
    part = slice(rows[0], min(rows[0] + rows[1], 40)), slice(cols[0], min(cols[0] + cols[1], 60))
    block = GRID.window(*part)
    w, s, e, n = block.bounds
    pad = beyond / 400 + 1e-4
    halo = DEM.sel(lat=slice(n + pad, s - pad), lon=slice(w - pad, e + pad))
    whole = static_layers(DEM, GRID).isel(lat=part[0], lon=part[1])
    xr.testing.assert_equal(static_layers(halo, block), whole)


@pytest.mark.parametrize("cells", [300, 3000, 20_000])
def test_blocks_of_a_lazy_model_equal_the_whole_bit_for_bit(monkeypatch, cells):
    whole = static_layers(DEM, GRID)
    monkeypatch.setattr(module, "_DEM_CELLS_AT_ONCE", cells)
    xr.testing.assert_identical(static_layers(DEM.chunk(lat=50, lon=77), GRID), whole)
    xr.testing.assert_identical(static_layers(DEM.astype(np.float64), GRID), whole)


class Watched:
    """The model, and how many cells were asked of it at a time."""

    shape, dtype, ndim = DEM.shape, DEM.dtype, 2
    asked: ClassVar[list[int]] = []

    def __getitem__(self, key):
        Watched.asked.append(DEM.values[key].size)
        return DEM.values[key]


def test_a_lazy_model_is_read_in_blocks_of_bounded_size(monkeypatch):
    lazy = DEM.copy(data=da.from_array(Watched(), chunks=10_000, asarray=False, meta=np.empty((0, 0), np.float32)))
    monkeypatch.setattr(module, "_DEM_CELLS_AT_ONCE", 2000)
    Watched.asked.clear()
    xr.testing.assert_identical(static_layers(lazy, GRID), static_layers(DEM, GRID))
    assert max(Watched.asked) <= (np.sqrt(2000) + 4) ** 2  # and up to two cells more on each side
    assert sum(Watched.asked) < 1.3 * DEM.size


@pytest.mark.parametrize("edge", [0.0, 0.5])
def test_a_mosaic_of_tiles_has_no_seam(tmp_path, edge):
    """2 x 2 files that share their edges (values on the degree lines) or not, bit for bit as one big file."""
    import rasterio

    step, size = 1 / 240, 241 if edge else 240
    west, north = 102 - edge * step, 32 + edge * step

    def write(name, values, row, col):
        path = tmp_path / name
        where = Affine(step, 0, west + col * step, 0, -step, north - row * step)
        profile = {"height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": "float32"}
        with rasterio.open(path, "w", driver="GTiff", crs="EPSG:4326", transform=where, **profile) as file:
            file.write(values, 1)
        return path

    side = 480 + (1 if edge else 0)
    lon, lat = np.meshgrid(west + step * (np.arange(side) + 0.5), north - step * (np.arange(side) + 0.5))
    z = surface(lon, lat).astype(np.float32)
    z[100:130, 230:250] = np.nan
    tiles = [write(f"{i}{j}.tif", z[i : i + size, j : j + size], i, j) for i in (0, 240) for j in (0, 240)]
    grid = Grid.latlon(102.02, 30.02, 103.98, 31.98)
    whole = static_layers(open_dem(write("whole.tif", z, 0, 0), lazy=False), grid)
    assert np.isfinite(whole.slope).mean() > 0.99
    xr.testing.assert_equal(static_layers(open_dem(tiles), grid), whole)
    block = grid.window(slice(80, 120), slice(70, 130))  # over the corner where all four meet
    w, s, e, n = block.bounds
    dem = open_dem(tiles, box=(w - 0.01, s - 0.01, e + 0.01, n + 0.01))
    xr.testing.assert_equal(static_layers(dem, block), whole.isel(lat=slice(80, 120), lon=slice(70, 130)))


@pytest.mark.slow
@pytest.mark.parametrize("projected", [False, True])
def test_memory_is_that_of_a_block_whatever_the_model(projected, monkeypatch):
    """Peak of NumPy's memory over a lazy model of 16 million cells (64 MB)."""
    side, at_once = 4000, 200_000
    data = da.random.random((side, side), chunks=250).astype(np.float32) * 100
    if projected:
        axes = {"y": 3.4e6 - 30.0 * np.arange(side), "x": 4e5 + 30.0 * np.arange(side)}
        dem, grid = (
            xr.DataArray(data, axes, ("y", "x"), attrs={"crs": "EPSG:32648"}),
            Grid.latlon(104.0, 29.7, 105.2, 30.7),
        )
    else:
        axes = {"lat": 31 - np.arange(side) / 3600, "lon": 102 + np.arange(side) / 3600}
        dem, grid = xr.DataArray(data, axes, ("lat", "lon")), Grid.latlon(102, 30, 103, 31)
    monkeypatch.setattr(module, "_DEM_CELLS_AT_ONCE", at_once)
    static_layers(dem[:300, :300], grid.window(slice(0, 6), slice(0, 6)))  # compile
    tracemalloc.start()
    found = static_layers(dem, grid)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.isfinite(found.slope).mean() > 0.9
    assert peak < 16e6  # a quarter: blocks of 0.8 MB in a few copies, dask's chunks around them, and the result


def test_cells_beyond_the_elevation_model_are_missing():
    found = static_layers(DEM, Grid.latlon(102.5, 30.0, 103.0, 30.4))
    assert np.isfinite(found.slope[:, :19]).all()
    for name in NAMES:
        assert np.isnan(found[name][:, 21:]).all()
    with pytest.raises(InputError, match="does not meet"):
        static_layers(DEM, Grid.latlon(10, 10, 11, 11))


def test_flat_ground_has_elevation_and_slope_but_no_direction():
    found = static_layers(DEM * 0 + 500, GRID)
    assert (found.elevation == 500).all()
    for name in ("slope", "northness", "eastness"):
        assert (found[name] == 0).all()
    assert found.aspect.isnull().all()


def test_flat_ground_in_a_cell_weakens_northness_and_leaves_aspect():
    """A cell half of which is a plane that rises southward, half a terrace: it faces north, and northness is a half."""
    grid = Grid.latlon(0, 0, 0.01, 0.01)
    fine = Grid.latlon(-0.01, -0.01, 0.02, 0.02, 1 / 1000)
    z = np.maximum(np.arange(30) - 14.5, 0)[:, None] * 50.0 + 0 * fine.lon
    found = static_layers(xr.DataArray(z.astype(np.float32), coords_of(fine), ("lat", "lon")), grid)
    assert float(found.northness[0, 0]) == pytest.approx(0.6, abs=1e-3)  # Horn sees the break in six rows of ten
    assert float(found.aspect[0, 0]) % 360 == pytest.approx(0, abs=1e-4)
    assert float(found.eastness[0, 0]) == pytest.approx(0, abs=1e-6)


def test_missing_elevations_leave_their_neighbours_slopes_out():
    z = DEM.copy()
    z[60, 55] = np.nan  # alone: its elevation is missing, and the slopes of nine
    found, expected = static_layers(z, GRID), terrain(z)
    np.testing.assert_allclose(found.slope, upscale(expected.slope, GRID), rtol=1e-6)
    np.testing.assert_allclose(found.elevation, upscale(z, GRID), rtol=2e-7)
    z, one = DEM.copy(), GRID.window(slice(5, 6), slice(3, 4))
    box = {"lat": slice(one.bounds[3], one.bounds[1]), "lon": slice(one.bounds[0], one.bounds[2])}
    z.loc[box] = z.loc[box].where(np.arange(z.loc[box].sizes["lon"]) < 2)
    assert z.loc[box].notnull().mean() == 0.5
    assert np.isfinite(static_layers(z, one).elevation).all()  # exactly half
    assert np.isnan(static_layers(z, one).slope).all()  # a quarter
    assert np.isfinite(static_layers(z, one, 0.25).slope).all()


def test_longitudes_beyond_180_meet_the_grid():
    east = DEM.assign_coords(lon=DEM.lon - 180 + 360)  # 281.9 to 282.7
    west = DEM.assign_coords(lon=DEM.lon - 180)
    grid = Grid.latlon(-78, 30, -77.4, 30.4)
    found, expected = static_layers(east, grid), static_layers(west, grid)
    assert np.isfinite(found.slope).all()
    np.testing.assert_allclose(found.slope, expected.slope, rtol=1e-5)


def test_coarse_ease2_cells_wider_than_a_strip():
    """9 km cells of columns of 1/12 000 degree: more than are added at a time."""
    coarse = Grid.ease2(9, 102.0, 30.0, 102.15, 30.1)
    w, s, e, n = coarse.bounds
    fine = Grid(
        w - 0.01 + np.arange(round((e - w + 0.02) * 12_000) + 1) / 12_000,
        n + 0.01 - np.arange(round((n - s + 0.02) * 600) + 1) / 600,
    )
    lon, lat = np.meshgrid(fine.lon, fine.lat)
    dem = xr.DataArray(surface(lon, lat).astype(np.float32), coords_of(fine), ("lat", "lon"), "elevation")
    assert 12_000 * np.diff(coarse.lon_edges).min() > 1040
    found = static_layers(dem, coarse)
    assert found.sizes["lon"] >= 2
    assert np.isfinite(found.aspect).all()
    np.testing.assert_allclose(found.slope, upscale(terrain(dem).slope, coarse), rtol=1e-5)
    np.testing.assert_allclose(found.elevation, upscale(dem, coarse), rtol=1e-6)


# -- projections ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "box", "step"),
    [
        ("EPSG:32648", (102.1, 30.0, 102.3, 30.15), 30.0),  # 3 degrees from its meridian: north turns by 1.4 degrees
        ("EPSG:32648", (108.2, 60.0, 108.5, 60.15), 30.0),
        ("EPSG:3413", (-60.3, 75.0, -60.0, 75.1), 30.0),  # polar: the map's north is 15 degrees off
        ("EPSG:3857", (102.1, 50.0, 102.3, 50.15), 50.0),  # Web Mercator: a metre of the map is 0.64 m
        ("EPSG:2264", (-80.0, 35.0, -79.9, 35.1), 100.0),  # feet
    ],
)
def test_a_projected_model_of_a_known_surface(crs, box, step):
    """Sums over pixels, turned to true north: elevation to 0.05 m, slope to 0.01 degrees."""
    grid = Grid.latlon(*box)
    found = static_layers(projected_surface(crs, grid, step), grid)
    expected, length = true_layers(grid)
    np.testing.assert_allclose(found.elevation, expected["elevation"], atol=0.05)
    np.testing.assert_allclose(found.slope, expected["slope"], atol=0.01)
    np.testing.assert_allclose(found.northness, expected["northness"], atol=0.01)
    np.testing.assert_allclose(found.eastness, expected["eastness"], atol=0.01)
    # On a summit or in a pass directions turn within a pixel.
    assert turn(found.aspect, expected["aspect"]).values[length > 0.5].max() < 1.0
    # True north matters: in these projections the map's own direction is off by degrees or nothing, its mean error tells.
    signed = (found.aspect - expected["aspect"] + 180).values % 360 - 180
    assert abs(signed[length > 0.3].mean()) < 0.02


def test_both_paths_agree_where_the_projection_is_longitude_and_latitude():
    """A plate carree in metres has the pixels of a geographic model: the same common areas, found in two ways."""
    crs = "+proj=eqc +lat_ts=0 +datum=WGS84"
    per_degree = 6378137.0 * np.pi / 180
    plate = xr.DataArray(DEM.values, {"y": DEM.lat.values * per_degree, "x": DEM.lon.values * per_degree}, ("y", "x"))
    found, expected = static_layers(plate.assign_attrs(crs=crs), GRID), static_layers(DEM, GRID)
    # Here a pixel counts by its area on the map, there by that on the ground, which changes by 1e-4 over a cell.
    np.testing.assert_allclose(found.slope, expected.slope, atol=2e-3)
    np.testing.assert_allclose(found.elevation, expected.elevation, atol=0.02)
    np.testing.assert_allclose(found.northness, expected.northness, atol=1e-4)


@pytest.mark.parametrize("cells", [500, 40_000])
def test_windows_and_blocks_of_a_projected_model_equal_the_whole_bit_for_bit(monkeypatch, cells):
    grid = Grid.latlon(102.1, 30.0, 102.3, 30.15)
    dem = projected_surface("EPSG:32648", grid, 60.0)
    whole = static_layers(dem, grid)
    part = slice(4, 11), slice(6, 17)
    xr.testing.assert_equal(static_layers(dem, grid.window(*part)), whole.isel(lat=part[0], lon=part[1]))
    cut = dem[21:-40, 30:-55]  # another first pixel
    inner = static_layers(cut, grid.window(*part))
    xr.testing.assert_equal(inner, whole.isel(lat=part[0], lon=part[1]))
    monkeypatch.setattr(module, "_DEM_CELLS_AT_ONCE", cells)
    xr.testing.assert_identical(static_layers(dem, grid), whole)
    xr.testing.assert_identical(static_layers(dem.chunk(100), grid), whole)


def test_a_covered_cell_counts_as_whole_and_a_half_covered_one_as_half():
    grid = Grid.latlon(102.1, 30.0, 102.2, 30.1)
    dem = projected_surface("EPSG:32648", grid, 60.0)
    assert np.isfinite(static_layers(dem, grid, 1.0).slope).all()
    middle = dem.sizes["x"] // 2
    half = static_layers(dem[:, :middle], grid, 0.01)
    assert np.isfinite(half.elevation[:, 0]).all()
    assert np.isnan(half.elevation[:, -1]).all()
    strict = static_layers(dem[:, :middle], grid, 0.99).elevation.notnull().sum()
    assert strict < half.elevation.notnull().sum()


def test_flat_projected_ground_is_flat():
    grid = Grid.latlon(102.1, 30.0, 102.15, 30.05)
    found = static_layers(projected_surface("EPSG:32648", grid, 90.0) * 0 + 37, grid)
    np.testing.assert_allclose(found.elevation, 37, rtol=1e-6)
    assert (found.slope == 0).all()
    assert (found.northness == 0).all()
    assert found.aspect.isnull().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.drop_attrs(), "has no CRS"),
        (lambda d: d.sortby("y"), "y ascends"),
        (lambda d: d.sortby("x", ascending=False), "x descends"),
        (lambda d: d.expand_dims("band"), "dimensions"),
        (lambda d: d[:2], "at least 3 rows"),
        (lambda d: d.assign_coords(x=d.x + 20 * (np.arange(d.x.size) == 5)), "evenly spaced"),
        (lambda d: d.assign_coords(x=d.x + 3e6), "does not meet"),
    ],
)
def test_bad_projected_models_are_refused(change, words):
    grid = Grid.latlon(102.1, 30.0, 102.12, 30.02)
    with pytest.raises(InputError, match=words) as error:
        static_layers(change(projected_surface("EPSG:32648", grid, 90.0)), grid)
    assert "\n" not in str(error.value)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "rows", "cols", "step"),
    [("AST_L1A_00303182012144228_Z", 150, 160, 0.01), ("spDataLarge_nz_elev", 60, 60, 0.05)],
)
def test_a_genuine_projected_model_equals_its_own_pixels_put_in_cells(real, name, rows, cols, step):
    """Against 20 x 20 points of every pixel, each sent through pyproj and averaged where it falls."""
    k = 20
    whole = open_dem(real(f"dem/{name}.tif"))
    middle = [(size - part) // 2 for size, part in zip(whole.shape, (rows, cols), strict=True)]
    dem = whole[middle[0] : middle[0] + rows, middle[1] : middle[1] + cols].load()
    pixel = float(dem.x[1] - dem.x[0])
    offsets = ((np.arange(k) + 0.5) / k - 0.5) * pixel
    x = (dem.x.values[:, None] + offsets).ravel()
    y = (dem.y.values[:, None] - offsets).ravel()
    to_degrees = pyproj.Transformer.from_crs(dem.attrs["crs"], "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*np.meshgrid(x, y))
    grid = Grid.latlon(*(float(v) for v in (lon.min(), lat.min(), lon.max(), lat.max())), step=step)
    found = static_layers(dem, grid, 0.99)
    row, col = grid.index(lon, lat)
    cell = (row * grid.shape[1] + col).ravel()
    for layer, values, unit in (("elevation", dem.values, 1.0), ("slope", terrain(dem).slope.values, 0.05)):
        fine = np.repeat(np.repeat(values, k, 0), k, 1).ravel()
        valid = np.isfinite(fine)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(cell[valid], fine[valid], row.max() * grid.shape[1] + grid.shape[1])
            mean = (mean / np.bincount(cell[valid], minlength=mean.size)).reshape(-1, grid.shape[1])
        ours = found[layer].values[: mean.shape[0]]
        known = np.isfinite(ours)
        assert known.sum() > 8
        # A twentieth of a pixel at the cells' edges, which steps by some hundred metres at 1 km; the slope is the ground's, not the map's.
        assert np.abs(ours - mean)[known].max() < unit * (0.2 if pixel < 100 else 2)


# -- bytes ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cold_and_warm_cache_give_the_same_bytes(tmp_path):
    """Compiled afresh or loaded from numba's cache: a restarted run must end as an undisturbed one."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    code = """
import hashlib, numpy as np
from smscale.kernels.overlap import Bands
from smscale.kernels.terrain import Places, sums_over_bands, sums_over_pixels
z = np.cumsum(np.random.default_rng(0).normal(size=(301, 411)), 0).astype(np.float32)
first = np.arange(9, dtype=np.int64) * 31 + 3
bands = Bands(first, first + 33, np.linspace(0.2, 1, 9 * 33).reshape(9, 33))
nodes = np.zeros((6, 12, 15))
nodes[0], nodes[1] = np.arange(15) * 0.01, -np.arange(12)[:, None] * 0.01
nodes[2], nodes[5], nodes[4] = 1.0, 1.0, 0.1
edges = np.linspace(0.01, 0.1, 7)
made = [sums_over_bands(z, 30.0, 31.0, bands, bands), *sums_over_pixels(z, 30.0, 30.0, Places(nodes, 32, 0, 0), edges, -edges)]
print(hashlib.md5(b"".join(m.tobytes() for m in made)).hexdigest(), made[0].sum() > 0, made[1].sum() > 0)
"""
    said = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1]
    assert said[0].split()[1:] == ["True", "True"]
