"""Slope and aspect against analytic surfaces, a naive Horn in float64, and SAGA's own layers."""

import shutil
import subprocess

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from smscale.errors import InputError
from smscale.features.terrain import terrain
from smscale.grid import Grid, coords_of
from smscale.kernels import terrain as kernel


def projected(z, step=30.0):
    m, n = z.shape
    return xr.DataArray(z, {"y": 1e6 - step * np.arange(m), "x": 5e5 + step * np.arange(n)}, ("y", "x"), "elevation")


def rough(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (1500 + np.cumsum(np.cumsum(rng.normal(size=shape), 0), 1) * 0.3).astype(np.float32)


def horn(z, dx, dy):
    """Horn (1981) as printed, in float64, without borders."""
    z = z.astype(np.float64)
    a, b, c = z[:-2, :-2], z[:-2, 1:-1], z[:-2, 2:]
    d, f = z[1:-1, :-2], z[1:-1, 2:]
    g, h, i = z[2:, :-2], z[2:, 1:-1], z[2:, 2:]
    p = ((c + 2 * f + i) - (a + 2 * d + g)) / (8 * dx)
    q = ((g + 2 * h + i) - (a + 2 * b + c)) / (8 * dy)
    return np.rad2deg(np.arctan(np.hypot(p, q))), np.rad2deg(np.arctan2(-p, q)) % 360


def turn(a, b):
    """Angle between directions, degrees."""
    return np.abs((a - b + 180) % 360 - 180)


@pytest.mark.parametrize("aspect", [0.0, 17.0, 45.0, 90.0, 135.0, 180.0, 200.0, 270.0, 315.0, 359.0])
@pytest.mark.parametrize("slope", [0.5, 30.0, 45.0, 60.0, 88.0])
def test_a_plane_has_its_own_slope_and_faces_downhill(slope, aspect):
    x, y = np.meshgrid(30.0 * np.arange(9), -30.0 * np.arange(7))
    downhill = x * np.sin(np.deg2rad(aspect)) + y * np.cos(np.deg2rad(aspect))
    found = terrain(projected(2000 - np.tan(np.deg2rad(slope)) * downhill))
    inner = found.isel(x=slice(1, -1), y=slice(1, -1))
    # Elevations are float32: 2000 m to 1e-4 m, over 30 m cells.
    np.testing.assert_allclose(inner.slope, slope, atol=5e-4)
    assert turn(inner.aspect, aspect).max() < 5e-2 if slope < 1 else turn(inner.aspect, aspect).max() < 1e-3


def test_a_cone_faces_away_from_its_top():
    x, y = np.meshgrid(10.0 * np.arange(-100, 101), -10.0 * np.arange(-100, 101))
    found = terrain(projected(3000 - 0.5 * np.hypot(x, y), 10.0))
    away = np.hypot(x, y) > 300  # the curvature error falls with (cell / radius)^2
    inner = away & np.isfinite(found.slope.values)
    assert np.abs(found.slope.values - np.rad2deg(np.arctan(0.5)))[inner].max() < 0.02
    assert turn(found.aspect.values, np.rad2deg(np.arctan2(x, y)) % 360)[inner].max() < 0.03


def test_flat_ground_has_slope_zero_and_no_aspect():
    found = terrain(projected(np.full((5, 5), 12.0))).isel(x=slice(1, -1), y=slice(1, -1))
    assert (found.slope == 0).all()
    assert found.aspect.isnull().all()


def test_kernel_equals_horn_in_float64_on_rough_ground():
    z = rough((300, 411))
    dx, dy = np.linspace(25, 27, 300), np.full(300, 30.9)
    slope, aspect = kernel.slope_aspect(z, dx, dy)
    expected = horn(z, dx[1:-1, None], dy[1:-1, None])
    assert np.abs(slope[1:-1, 1:-1] - expected[0]).max() < 1e-4  # gdaldem is held to the same
    assert turn(aspect[1:-1, 1:-1], expected[1]).max() < 1e-4
    assert aspect[1:-1, 1:-1].min() >= 0
    assert aspect[1:-1, 1:-1].max() < 360


def test_slope_of_a_ramp_is_its_arctangent_to_three_units_of_float32():
    """A ramp with gradient t has slope atan(t), for t on both sides of 1."""
    for t in np.concatenate([np.linspace(0.001, 1, 97), np.linspace(1, 50, 53)]):
        z = np.outer(np.ones(3), np.array([0.0, t, 2 * t]))
        slope, _ = kernel.slope_aspect(z, 1.0, 1.0)
        assert slope[1, 1] == pytest.approx(np.rad2deg(np.arctan(np.float32(t))), abs=2.4e-5)


def test_a_geographic_plane_slopes_by_the_metres_of_its_own_latitude():
    """z = r (lat - lat0) in metres: the gradient northward is r / (metres per degree), everywhere."""
    grid = Grid.latlon(100, 29, 100.2, 31, step=0.01)
    rise = 5000.0
    found = terrain(xr.DataArray(rise * (grid.lat[:, None] - 29) + 0 * grid.lon, coords_of(grid), ("lat", "lon")))
    metres = kernel.metres_per_degree(grid.lat)[1]
    np.testing.assert_allclose(
        found.slope[1:-1, 5], np.rad2deg(np.arctan(rise / metres))[1:-1], atol=2e-4
    )  # float32 elevations of 5 km over 1.1 km
    assert turn(found.aspect[1:-1, 1:-1], 180).max() < 1e-2
    east = terrain(
        xr.DataArray(rise * (grid.lon[None, :] - 100) + 0 * grid.lat[:, None], coords_of(grid), ("lat", "lon"))
    )
    metres = kernel.metres_per_degree(grid.lat)[0]
    np.testing.assert_allclose(east.slope[1:-1, 5], np.rad2deg(np.arctan(rise / metres))[1:-1], atol=2e-4)
    assert turn(east.aspect[1:-1, 1:-1], 270).max() < 1e-2


@pytest.mark.parametrize("lat", [-60.0, 0.0, 30.0, 85.0])
def test_metres_per_degree_equal_the_ellipsoid_of_pyproj(lat):
    geod = pytest.importorskip("pyproj").Geod(ellps="WGS84")
    per_lon, per_lat = kernel.metres_per_degree(lat)
    assert per_lat == pytest.approx(geod.inv(0, lat - 5e-4, 0, lat + 5e-4)[2] * 1e3, rel=1e-6)
    assert per_lon == pytest.approx(geod.inv(0, lat, 1e-3, lat)[2] * 1e3, rel=1e-6)


def test_geographic_coordinates_named_y_and_x_are_told_by_the_crs():
    grid = Grid.latlon(100, 30, 100.1, 30.1, step=0.01)
    dem = xr.DataArray(rough(grid.shape), coords_of(grid), ("lat", "lon"))
    named = xr.DataArray(dem.values, {"y": grid.lat, "x": grid.lon}, ("y", "x"), attrs={"crs": "EPSG:4326"})
    np.testing.assert_array_equal(terrain(named).slope.values, terrain(dem).slope.values)


def test_border_and_neighbours_of_missing_cells_are_missing():
    z = rough((8, 9))
    z[4, 5] = np.nan
    found = terrain(projected(z))
    expected = np.zeros(z.shape, dtype=bool)
    expected[[0, -1]] = expected[:, [0, -1]] = True
    expected[3:6, 4:7] = True
    np.testing.assert_array_equal(found.slope.isnull(), expected)
    np.testing.assert_array_equal(found.aspect.isnull(), expected)


@pytest.mark.parametrize("chunks", [(7, 11), (50, 4), (1, 60)])
def test_chunked_equals_plain_and_stays_lazy(chunks):
    grid = Grid.latlon(100, 30, 100.6, 30.5, step=0.01)
    plain = xr.DataArray(rough(grid.shape), coords_of(grid), ("lat", "lon"), attrs={"crs": "EPSG:4326"})
    lazy = terrain(plain.copy(data=da.from_array(plain.values, chunks=chunks)))
    assert isinstance(lazy.slope.data, da.Array)
    assert lazy.attrs == {"crs": "EPSG:4326"}
    xr.testing.assert_identical(lazy.compute(scheduler="synchronous"), terrain(plain))


def test_a_tile_with_a_halo_of_one_cell_equals_the_whole_bit_for_bit():
    grid = Grid.latlon(100, 30, 100.6, 30.5, step=0.01)
    dem = xr.DataArray(rough(grid.shape), coords_of(grid), ("lat", "lon"))
    whole, part = terrain(dem), terrain(dem[9:31, 19:42])
    for name in ("slope", "aspect"):
        np.testing.assert_array_equal(part[name][1:-1, 1:-1], whole[name][10:30, 20:41])


@pytest.mark.parametrize(
    ("dem", "words"),
    [
        (projected(rough((5, 5))).expand_dims("band"), "dimensions"),
        (projected(rough((2, 5))), "at least 3 rows"),
        (projected(rough((5, 5))).sortby("y"), "y ascends"),
        (projected(rough((5, 5))).sortby("x", ascending=False), "x descends"),
        (projected(rough((5, 5))).drop_vars("x"), "lacks the coordinate x"),
        (projected(rough((5, 5))).assign_coords(x=[0, 1, 2, 4, 5]), "evenly spaced"),
    ],
)
def test_bad_elevation_models_are_refused(dem, words):
    with pytest.raises(InputError, match=words):
        terrain(dem)


gdal = pytest.mark.skipif(shutil.which("gdaldem") is None, reason="gdaldem is not installed (Debian: gdal-bin)")


def write_tif(path, z, step, crs, nodata=-9999.0):
    rasterio = pytest.importorskip("rasterio")
    where = rasterio.transform.Affine(step, 0, 4e5, 0, -step, 3.4e6)
    profile = {"driver": "GTiff", "height": z.shape[0], "width": z.shape[1], "count": 1, "dtype": "float32"}
    with rasterio.open(path, "w", crs=crs, transform=where, nodata=nodata, **profile) as file:
        file.write(np.where(np.isnan(z), nodata, z).astype(np.float32), 1)
    return path


def gdaldem(what, path, *options):
    """Horn's layer as gdaldem computes it (3.6.2 was looked at); NaN where it has none."""
    rasterio = pytest.importorskip("rasterio")
    out = path.with_name(f"{what}.tif")
    subprocess.run(["gdaldem", what, "-q", "-alg", "Horn", *options, path, out], check=True, capture_output=True)
    with rasterio.open(out) as file:
        return file.read(1, masked=True).astype(np.float64).filled(np.nan)


def assert_as_gdaldem(dem, path, *scale):
    """Slope and aspect to 1e-4 degrees, missing and flat cells alike."""
    found = terrain(dem)
    slope, aspect = gdaldem("slope", path, *scale), gdaldem("aspect", path)
    np.testing.assert_array_equal(found.slope.isnull(), np.isnan(slope))
    both = np.isfinite(slope)
    assert both.sum() > 1000
    assert np.abs(found.slope.values - slope)[both].max() < 1e-4
    np.testing.assert_array_equal(found.aspect.isnull(), np.isnan(aspect))
    assert turn(found.aspect.values, aspect)[np.isfinite(aspect)].max() < 1e-4


@gdal
def test_a_made_projected_model_in_whole_metres_equals_gdaldem(tmp_path):
    z = np.rint(rough((200, 301)))
    z[50:53, 70:90] = np.nan
    z[120:140, 10:40] = 800.0  # a lake
    path = write_tif(tmp_path / "a.tif", z, 30.0, "EPSG:32648")
    dem = projected(z).assign_attrs(crs="EPSG:32648")
    assert_as_gdaldem(dem, path)
    assert_as_gdaldem(dem, path, "-s", "1.0")


@gdal
def test_a_model_in_feet_equals_gdaldem_told_how_long_a_foot_is(tmp_path):
    z = np.rint(rough((150, 160)))
    path = write_tif(tmp_path / "feet.tif", z, 100.0, "EPSG:2264")
    assert_as_gdaldem(projected(z, 100.0).assign_attrs(crs="EPSG:2264"), path, "-s", repr(1200 / 3937))


@gdal
@pytest.mark.real_data
@pytest.mark.parametrize("whole_metres", [True, False])
@pytest.mark.parametrize("name", ["spDataLarge_nz_elev", "AST_L1A_00303182012144228_Z"])
def test_a_genuine_projected_model_equals_gdaldem(real, tmp_path, name, whole_metres):
    """In whole metres to 1e-4; with fractions gdaldem's float32 sums of four elevations lose digits that differences keep."""
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(real(f"dem/{name}.tif")) as file:
        z = file.read(1, masked=True).astype(np.float32).filled(np.nan)
        step, crs = file.transform.a, file.crs.to_wkt()
    z = np.rint(z) if whole_metres else z
    dem, path = projected(z, step).assign_attrs(crs=crs), write_tif(tmp_path / "copy.tif", z, step, crs)
    if whole_metres:
        assert_as_gdaldem(dem, path)
        return
    slope, aspect = horn(z, step, step)
    found = terrain(dem).isel(x=slice(1, -1), y=slice(1, -1))
    for ours, theirs, exact in (
        (found.slope.values, gdaldem("slope", path)[1:-1, 1:-1], slope),
        (found.aspect.values, gdaldem("aspect", path)[1:-1, 1:-1], aspect),
    ):
        known = np.isfinite(ours) & np.isfinite(theirs)
        assert known.sum() > 200_000
        off, gdal_off = turn(ours, exact)[known], turn(theirs, exact)[known]
        assert off.max() < 1e-4
        assert gdal_off.max() > off.max()


@gdal
def test_a_geographic_model_is_where_gdaldem_is_wrong(tmp_path):
    """One scale for both axes: at 60 N gdaldem takes a degree of longitude for one of latitude, twice its length."""
    grid = Grid.latlon(100, 60, 100.5, 60.5, step=0.01)
    rise = 20_000.0 * (grid.lon[None, :] - 100) + 0 * grid.lat[:, None]
    path = tmp_path / "degrees.tif"
    rasterio = pytest.importorskip("rasterio")
    where = rasterio.transform.Affine(0.01, 0, 100, 0, -0.01, 60.5)
    with rasterio.open(
        path, "w", driver="GTiff", height=50, width=50, count=1, dtype="float32", crs="EPSG:4326", transform=where
    ) as file:
        file.write(rise.astype(np.float32), 1)
    truth = np.rad2deg(np.arctan(20_000.0 / kernel.metres_per_degree(grid.lat)[0]))[1:-1]
    found = terrain(xr.DataArray(rise, coords_of(grid), ("lat", "lon")))
    np.testing.assert_allclose(found.slope[1:-1, 20], truth, atol=2e-3)
    theirs = gdaldem("slope", path, "-s", "111120")[1:-1, 20]
    assert (theirs < 0.6 * truth).all()


@pytest.mark.real_data
def test_slope_of_a_real_elevation_model_is_that_of_saga(real):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(real("dem/spDataLarge_ta.tif")) as file:
        names = list(file.descriptions)
        layers = file.read(masked=True).astype(np.float64).filled(np.nan)
        step, crs = abs(file.transform.a), file.crs
    assert not crs.is_geographic
    z, theirs = layers[names.index("elev")], layers[names.index("slope")]
    found = terrain(projected(z, step)).slope.values
    both = np.isfinite(found) & np.isfinite(theirs)
    # SAGA's default is Zevenbergen & Thorne's 4-neighbour slope: the same field, not the same stencil.
    assert np.corrcoef(found[both], theirs[both])[0, 1] > 0.98
    assert abs(found[both].mean() - theirs[both].mean()) < 1.5


@pytest.mark.real_data
def test_a_real_srtm_tile_with_voids_equals_horn_on_the_ellipsoid(real):
    rasterio = pytest.importorskip("rasterio")
    pyproj = pytest.importorskip("pyproj")
    with rasterio.open(real("dem/SRTM_N46E008.tif")) as file:
        z = file.read(1).astype(np.float64)
        left, top, step = file.transform.c, file.transform.f, file.transform.a
    z[z == -32767] = np.nan
    lat, lon = top - step * (np.arange(z.shape[0]) + 0.5), left + step * (np.arange(z.shape[1]) + 0.5)
    found = terrain(xr.DataArray(z, {"lat": lat, "lon": lon}, ("lat", "lon")))
    geod = pyproj.Geod(ellps="WGS84")
    dx = np.array([geod.inv(8, y, 8 + step, y)[2] for y in lat[1:-1]])[:, None]
    dy = np.array([geod.inv(8, y - step / 2, 8, y + step / 2)[2] for y in lat[1:-1]])[:, None]
    slope, aspect = horn(z, dx, dy)
    inner = found.isel(lat=slice(1, -1), lon=slice(1, -1))
    windows = np.lib.stride_tricks.sliding_window_view(np.isnan(z), (3, 3)).any(axis=(2, 3))
    np.testing.assert_array_equal(inner.slope.isnull(), windows)
    assert np.isnan(z).any()
    valid = ~windows
    assert np.abs(inner.slope.values - slope)[valid].max() < 1e-4
    sloped = valid & (slope > 0)
    assert turn(inner.aspect.values, aspect)[sloped].max() < 1e-3  # the geodesic along a row is not quite the parallel
    assert inner.aspect.isnull().values[valid & (slope == 0)].all()
