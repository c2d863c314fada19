"""Elevation readers against rasterio and brute force; tiles are made from one surface so that seams would show."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.warp import transform

from smscale.errors import InputError
from smscale.grid import Grid, authalic_q
from smscale.sources.dem import describe, open_altitude, open_dem, open_land_cover_tif

Real = Callable[[str], Path]
STEP = 1 / 120  # made tiles: 30", 121 x 121, edges shared as SRTM's are


def write_tif(
    path: Path,
    values: NDArray,
    left: float,
    top: float,
    step: float = STEP,
    crs: str = "EPSG:4326",
    nodata: float | None = -32767,
) -> Path:
    profile = {
        "driver": "GTiff",
        "height": values.shape[0],
        "width": values.shape[1],
        "count": 1,
        "dtype": values.dtype,
        "nodata": nodata,
    }
    with rasterio.open(path, "w", crs=crs, transform=Affine(step, 0, left, 0, -step, top), **profile) as file:
        file.write(values, 1)
    return path


def surface(rows: int, columns: int) -> NDArray[np.int16]:
    r, c = np.mgrid[0:rows, 0:columns]
    return (1000 + 7 * r + 3 * c + (r * c) % 13).astype(np.int16)


def four_tiles(folder: Path) -> tuple[list[Path], NDArray[np.int16]]:
    """2 x 2 tiles of 1 degree with corner at 30 N 102 E, each sharing its edge rows and columns, and the whole surface."""
    whole = surface(241, 241)
    paths = []
    for i, lat in enumerate((31, 30)):
        for j, lon in enumerate((102, 103)):
            part = whole[120 * i : 120 * i + 121, 120 * j : 120 * j + 121]
            path = folder / f"N{lat}E{lon}.tif"
            paths.append(write_tif(path, part, lon - STEP / 2, lat + 1 + STEP / 2))
    return paths, whole


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "voids"), [("SRTM_S33W071", 0), ("SRTM_N46E008", 103743)])
def test_srtm_equals_rasterio(real: Real, name: str, voids: int) -> None:
    dem = open_dem(real(f"dem/{name}.tif"))
    with rasterio.open(real(f"dem/{name}.tif")) as file:
        raw = file.read(1)
        lon, lat = file.xy(np.array([0, 1200]), np.array([0, 1200]))
    assert dem.dims == ("lat", "lon")
    assert dem.dtype == np.float32
    np.testing.assert_array_equal(dem.values, np.where(raw == -32767, np.nan, raw))
    np.testing.assert_allclose(dem.lat[[0, -1]], lat, atol=1e-9)
    np.testing.assert_allclose(dem.lon[[0, -1]], lon, atol=1e-9)
    assert open_dem(real(f"dem/{name}.tif"), lazy=False).attrs["voids"] == voids


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["AST_L1A_00303182012144228_Z", "spDataLarge_nz_elev"])
def test_projected_dems_keep_their_metres(real: Real, name: str) -> None:
    path = real(f"dem/{name}.tif")
    dem = open_dem(path)
    with rasterio.open(path) as file:
        raw = file.read(1, masked=True).filled(np.nan)
        x, y = file.xy(np.array([0, 5]), np.array([0, 7]))
    assert dem.dims == ("y", "x")
    np.testing.assert_array_equal(dem.values, raw)
    np.testing.assert_allclose(dem.x[[0, 7]], x, atol=1e-6)
    np.testing.assert_allclose(dem.y[[0, 5]], y, atol=1e-6)


@pytest.mark.real_data
def test_elevation_is_found_among_described_bands(real: Real) -> None:
    path = real("dem/spDataLarge_ta.tif")
    with rasterio.open(path) as file:
        raw = file.read(4)
    np.testing.assert_array_equal(open_dem(path).values, raw)


@pytest.mark.real_data
def test_box_of_a_projected_dem_holds_the_point(real: Real) -> None:
    path = real("dem/spDataLarge_nz_elev.tif")
    with rasterio.open(path) as file:
        x, y = transform("EPSG:4326", file.crs, [171.75], [-43.0])
        expected = next(file.sample([(x[0], y[0])]))[0]
    part = open_dem(path, box=(171.7, -43.05, 171.8, -42.95))
    assert part.sizes["x"] < 15
    assert float(part.sel(x=x[0], y=y[0], method="nearest")) == expected


@pytest.mark.real_data
def test_altitude_equals_h5py_and_finds_everest_and_cities(real: Real) -> None:
    path = real("global/pvlib_Altitude.h5")
    with h5py.File(path) as file:
        raw = file["Altitude"][:]
    whole = open_altitude(path)
    np.testing.assert_array_equal(whole.values, np.where(raw == 255, np.nan, raw * 28.0 - 450.0))
    assert float(open_altitude(path, (86.5, 27.5, 87.5, 28.5)).max()) > 6000
    # city elevations: within half a step of the encoding and what a 5' cell blurs
    for lat, lon, elevation in ((30.66, 104.07, 500), (39.74, -104.99, 1609), (55.75, 37.62, 150), (46.5, 50.0, -25)):
        assert float(whole.sel(lat=lat, lon=lon, method="nearest")) == pytest.approx(elevation, abs=30)
    box = open_altitude(path, (97.35, 26.05, 108.54, 34.31))
    np.testing.assert_array_equal(box, whole.sel(lat=box.lat, lon=box.lon))


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "box"), [("SRTM_S33W071", (-71, -33, -70, -32)), ("SRTM_N46E008", (8, 46, 9, 47))])
def test_altitude_has_the_scale_of_srtm(real: Real, name: str, box: tuple[float, float, float, float]) -> None:
    """Its steps of 28 m: another scale (35 m is sometimes stated) would change the slope of SRTM against it by a quarter."""
    coarse = open_altitude(real("global/pvlib_Altitude.h5"), box).values
    srtm = open_dem(real(f"dem/{name}.tif"), grid=Grid.latlon(*box, step=1 / 12)).values
    known = np.isfinite(srtm) & np.isfinite(coarse)
    slope, _ = np.polyfit(coarse[known], srtm[known], 1)
    assert slope == pytest.approx(1.0, abs=0.1)


@pytest.mark.real_data
def test_land_cover_tif_equals_rasterio(real: Real) -> None:
    path = real("global/MCD12C1.A2019001.006.2020220162300.tif")
    with rasterio.open(path) as file:
        raw = file.read(1)
    box = open_land_cover_tif(path, (100.0, 26.0, 108.0, 34.0))
    part = raw[1120:1280, 5600:5760]
    np.testing.assert_array_equal(box.values, np.where(part == 0, 17, part))
    assert (float(box.lat[0]), float(box.lon[0])) == (pytest.approx(33.975), pytest.approx(100.025))
    assert int(open_land_cover_tif(path, (-30.0, 0.0, -29.0, 1.0)).values.max()) == 17


def test_a_mosaic_of_tiles_is_the_big_tile_bit_for_bit(tmp_path: Path) -> None:
    paths, whole = four_tiles(tmp_path)
    big = open_dem(write_tif(tmp_path / "whole.tif", whole, 102 - STEP / 2, 32 + STEP / 2))
    for order in (paths, paths[::-1]):
        mosaic = open_dem(order)
        np.testing.assert_array_equal(mosaic.values, big.values)
        np.testing.assert_allclose(mosaic.lat, big.lat, atol=1e-12)
        np.testing.assert_allclose(mosaic.lon, big.lon, atol=1e-12)
    assert (mosaic.attrs["tiles"], mosaic.attrs["holes"]) == (4, 0)
    assert open_dem(paths, lazy=False).attrs["overlap_conflicts"] == 0


def test_box_reads_the_same_pixels_as_cutting(tmp_path: Path) -> None:
    paths, _ = four_tiles(tmp_path)
    whole, part = open_dem(paths), open_dem(paths, box=(102.9, 30.8, 103.2, 31.3))
    np.testing.assert_array_equal(part, whole.sel(lat=part.lat, lon=part.lon, method="nearest"))
    half = STEP / 2
    assert part.lon[0] - half <= 102.9 <= part.lon[0] + half
    assert part.lat[-1] - half <= 30.8 <= part.lat[-1] + half
    assert open_dem(paths, box=(102.1, 30.1, 102.2, 30.2)).attrs["tiles"] == 1


def test_a_hole_between_tiles_is_missing_and_a_conflict_is_counted(tmp_path: Path) -> None:
    paths, whole = four_tiles(tmp_path)
    hole = open_dem(paths[:3], lazy=False)
    assert np.isnan(hole.values[122:, 122:]).all()
    assert (hole.attrs["voids"], hole.attrs["holes"]) == (120 * 120, 120 * 120)
    assert hole.attrs["hole_boxes"] == "W 103 S 30 E 104 N 31"
    write_tif(paths[3], whole[120:, 120:] + np.int16(1), 103 - STEP / 2, 31 + STEP / 2)
    assert open_dem(paths, lazy=False).attrs["overlap_conflicts"] == 241


def test_voids_are_missing_also_where_nodata_is_not_declared(tmp_path: Path) -> None:
    values = surface(121, 121)
    values[3, 4], values[5, 6] = -32768, -9999
    path = write_tif(tmp_path / "a.tif", values, 102, 31, nodata=None)
    assert sorted(map(tuple, np.argwhere(np.isnan(open_dem(path).values)))) == [(3, 4), (5, 6)]


def test_grid_average_is_the_area_weighted_mean(tmp_path: Path) -> None:
    paths, whole = four_tiles(tmp_path)
    values = whole.astype(float)
    values[50:60, 50:90] = np.nan
    path = write_tif(
        tmp_path / "holes.tif",
        np.where(np.isnan(values), -32767, values).astype(np.int16),
        102 - STEP / 2,
        32 + STEP / 2,
    )
    grid = Grid.latlon(102.2, 30.4, 103.1, 31.7, 0.1)
    ours = open_dem(path, grid=grid)
    assert paths
    lat_edges = 32 + STEP / 2 - np.arange(242) * STEP
    lon_edges = 102 - STEP / 2 + np.arange(242) * STEP
    for row, col in ((0, 0), (4, 3), (7, 5), (12, 8)):
        north, south = grid.lat_edges[row], grid.lat_edges[row + 1]
        west, east = grid.lon_edges[col], grid.lon_edges[col + 1]
        height = np.clip(
            authalic_q(np.minimum(lat_edges[:-1], north)) - authalic_q(np.maximum(lat_edges[1:], south)), 0, None
        )
        width = np.clip(np.minimum(lon_edges[1:], east) - np.maximum(lon_edges[:-1], west), 0, None)
        area = np.outer(height, width) * np.isfinite(values)
        expected = np.nansum(values * area) / area.sum() if area.sum() > 0 else np.nan
        np.testing.assert_allclose(float(ours[row, col]), expected, rtol=1e-6)
    np.testing.assert_array_equal(ours.lat, grid.lat)


def test_grid_average_of_a_projected_plane(tmp_path: Path) -> None:
    """GDAL's average of a tilted plane is the plane at the cell centre."""
    _, c = np.mgrid[0:400, 0:400]
    path = write_tif(
        tmp_path / "utm.tif", (1000 + c * 0.5).astype(np.float32), 400000, 3400000, step=100.0, crs="EPSG:32648"
    )
    grid = Grid.latlon(104.1, 30.5, 104.2, 30.6)
    ours = open_dem(path, grid=grid)
    lon, lat = np.meshgrid(grid.lon, grid.lat)
    x, _ = transform("EPSG:4326", "EPSG:32648", lon.ravel(), lat.ravel())
    expected = 1000 + ((np.array(x) - 400000) / 100 - 0.5) * 0.5
    np.testing.assert_allclose(ours.values.ravel(), expected, atol=0.5)  # half a pixel of GDAL's own choosing


def test_longitudes_beyond_180_and_south_up_rasters_come_out_alike(tmp_path: Path) -> None:
    values = surface(121, 121)
    normal = open_dem(write_tif(tmp_path / "a.tif", values, 102, 31))
    with rasterio.open(
        tmp_path / "up.tif", "w", driver="GTiff", height=121, width=121, count=1, dtype="int16", crs="EPSG:4326",
        transform=Affine(STEP, 0, 102, 0, STEP, 31 - 121 * STEP),
    ) as file:  # fmt: skip
        file.write(values[::-1], 1)
    up = open_dem(tmp_path / "up.tif")
    np.testing.assert_array_equal(up.values, normal.values)
    np.testing.assert_allclose(up.lat, normal.lat, atol=1e-9)
    assert describe(write_tif(tmp_path / "east.tif", values, 288.0, 31)).box[0] == pytest.approx(-72.0)


def test_tiles_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    values = surface(121, 121)
    first = write_tif(tmp_path / "a.tif", values, 102, 31)
    with pytest.raises(InputError, match=r"shifted by 0\.300"):
        open_dem([first, write_tif(tmp_path / "b.tif", values, 103 + 0.3 * STEP, 31)])
    with pytest.raises(InputError, match="one resolution"):
        open_dem([first, write_tif(tmp_path / "c.tif", values, 103, 31, step=STEP / 2)])
    with pytest.raises(InputError, match="CRS differs"):
        open_dem([first, write_tif(tmp_path / "d.tif", values, 400000, 3400000, step=30, crs="EPSG:32648")])
    with pytest.raises(InputError, match="no elevation tile lies in the box"):
        open_dem(first, box=(10, 10, 11, 11))
    with pytest.raises(InputError, match="at least one file"):
        open_dem([])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_broken_rasters_are_named(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", surface(121, 121), 102, 31)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"a\.tif.*download it again"):
        open_dem(path).load()
    bare = tmp_path / "bare.tif"
    with rasterio.open(bare, "w", driver="GTiff", height=2, width=2, count=1, dtype="int16") as file:
        file.write(np.ones((2, 2), np.int16), 1)
    with pytest.raises(InputError, match="no coordinate reference system"):
        open_dem(bare)
    with rasterio.open(
        bare,
        "w",
        driver="GTiff",
        height=2,
        width=2,
        count=2,
        dtype="int16",
        crs="EPSG:4326",
        transform=Affine(1, 0, 0, 0, -1, 0),
    ) as file:
        file.write(np.ones((2, 2, 2), np.int16))
    with pytest.raises(InputError, match="2 bands and none is described"):
        open_dem(bare)
