"""Mosaics of elevation tiles: laziness, registration, overlaps, holes, longitudes, Copernicus' column spacings, broken files."""

from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.transform import Affine

from smscale.errors import InputError
from smscale.features.terrain import terrain
from smscale.grid import Grid
from smscale.sources import dem as module
from smscale.sources.dem import open_dem

STEP = 1 / 120


def write(
    path: Path, values: NDArray, left: float, top: float, dx: float = STEP, dy: float = STEP, **more: object
) -> Path:
    """A GeoTIFF whose first pixel's upper left corner is (left, top)."""
    profile = {
        "driver": "GTiff",
        "height": values.shape[0],
        "width": values.shape[1],
        "count": 1,
        "dtype": values.dtype,
    }
    crs = more.pop("crs", "EPSG:4326")
    with rasterio.open(path, "w", crs=crs, transform=Affine(dx, 0, left, 0, -dy, top), **profile, **more) as file:
        file.write(values, 1)
    return path


def height(lon: NDArray, lat: NDArray) -> NDArray[np.float32]:
    return (1000 + 40 * (lon - 100) + 25 * (lat - 30)).astype(np.float32)


def centred(folder: Path, west: int, south: int, shared: bool, dx: float = STEP, name: str = "") -> Path:
    """A tile of 1 degree whose values lie on the degree lines: 121 x 121 with shared edges (SRTM), 120 x 120 without (Copernicus)."""
    columns, rows = round(1 / dx) + shared, 120 + shared
    lon, lat = west + dx * np.arange(columns), south + 1 - STEP * np.arange(rows)
    path = folder / (name or f"N{south}E{west}.tif")
    return write(path, height(*np.meshgrid(lon, lat)), west - dx / 2, south + 1 + STEP / 2, dx)


class Reads:
    """Pixels that were asked of files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pixels, self.files = 0, set()
        inner = module._read

        def counted(tile, rows, cols):
            self.pixels += (rows.stop - rows.start) * (cols.stop - cols.start)
            self.files.add(tile.path.name)
            return inner(tile, rows, cols)

        monkeypatch.setattr(module, "_read", counted)


def test_a_mosaic_of_a_hundred_tiles_opens_without_reading_a_pixel(tmp_path, monkeypatch):
    paths = [centred(tmp_path, 100 + i, 30 + j, shared=False) for i in range(10) for j in range(10)]
    reads = Reads(monkeypatch)
    dem = open_dem(paths)
    assert isinstance(dem.data, da.Array)
    assert (dem.shape, dem.attrs["tiles"], dem.attrs["holes"], reads.pixels) == ((1200, 1200), 100, 0, 0)
    assert "voids" not in dem.attrs  # nobody has looked yet
    part = dem.sel(lat=slice(35.0, 34.9), lon=slice(104.95, 105.2))
    np.testing.assert_allclose(part.values, height(*np.meshgrid(part.lon, part.lat)), atol=1e-3)
    assert reads.pixels == part.size
    assert reads.files == {"N34E104.tif", "N34E105.tif"}  # 35 N itself is the first row of N34


def test_terrain_of_a_lazy_mosaic_stays_lazy(tmp_path, monkeypatch):
    paths = [centred(tmp_path, 100 + i, 30, shared=True) for i in range(3)]
    monkeypatch.setattr(module, "_CHUNK", 100)
    reads = Reads(monkeypatch)
    layers = terrain(open_dem(paths))
    assert reads.pixels == 0
    expected = terrain(open_dem(paths, lazy=False))
    np.testing.assert_array_equal(layers.slope.compute(scheduler="synchronous"), expected.slope)
    assert np.isfinite(expected.slope[1:-1, 1:-1]).all()


def test_a_box_reads_only_its_window(tmp_path, monkeypatch):
    paths = [centred(tmp_path, 100 + i, 30, shared=True) for i in range(4)]
    reads = Reads(monkeypatch)
    dem = open_dem(paths, box=(101.5, 30.2, 102.25, 30.4))
    assert isinstance(dem.data, np.ndarray)
    assert reads.files == {"N30E101.tif", "N30E102.tif"}
    assert reads.pixels <= dem.size + dem.sizes["lat"]  # the shared column twice
    assert dem.attrs["voids"] == dem.attrs["holes"] == dem.attrs["overlap_conflicts"] == 0
    lazy = open_dem(paths, box=(101.5, 30.2, 102.25, 30.4), lazy=True)
    assert isinstance(lazy.data, da.Array)
    np.testing.assert_array_equal(lazy.values, dem.values)
    np.testing.assert_array_equal(lazy.lon, dem.lon)


@pytest.mark.parametrize("shared", [True, False])
def test_values_lie_where_their_registration_says(tmp_path, shared):
    """SRTM's tiles share their edges, Copernicus' do not: both have values on whole degrees."""
    dem = open_dem([centred(tmp_path, w, s, shared) for w in (100, 101) for s in (30, 31)])
    assert dem.shape == (240 + shared, 240 + shared)
    np.testing.assert_allclose(dem.values, height(*np.meshgrid(dem.lon, dem.lat)), atol=1e-3)
    assert float(abs(dem.lon - 101.0).min()) < 1e-9
    assert dem.attrs["holes"] == 0


def test_tiles_with_and_without_shared_edges_fit_each_other(tmp_path):
    dem = open_dem([centred(tmp_path, 100, 30, shared=True), centred(tmp_path, 101, 30, shared=False)], lazy=False)
    known = np.isfinite(dem.values)
    np.testing.assert_allclose(dem.values[known], height(*np.meshgrid(dem.lon, dem.lat))[known], atol=1e-3)
    # The last row belongs to the tile with shared edges alone: the other ends one row earlier, which is a hole.
    assert dem.attrs["holes"] == dem.attrs["voids"] == 119
    assert dem.attrs["overlap_conflicts"] == 0


def test_an_edge_registered_tile_is_refused_beside_a_centred_one(tmp_path):
    centred(tmp_path, 100, 30, shared=True)
    write(tmp_path / "edges.tif", np.ones((120, 120), np.int16), 101, 31)
    with pytest.raises(
        InputError, match=r"edges\.tif: its pixels are shifted by 0\.500, 0\.500 of a pixel against N30E100\.tif"
    ):
        open_dem(sorted(tmp_path.glob("*.tif")))


def test_conflicts_are_counted_beyond_their_tolerance_and_the_first_name_wins(tmp_path):
    flat = np.full((10, 10), 500, np.float32)
    b, a, c = (write(tmp_path / f"{n}.tif", flat + d, 100, 30) for n, d in (("b", 0.0), ("a", 0.05), ("c", 3.0)))
    assert open_dem([b, a], lazy=False).attrs["overlap_conflicts"] == 0
    found = open_dem([c, b, a], lazy=False)
    assert found.attrs["overlap_conflicts"] == 100
    assert (found.values == np.float32(500.05)).all()
    grid = Grid.latlon(100, 29.95, 100.08, 30, 0.01)  # six of the ten rows
    assert open_dem([c, b, a], grid=grid).attrs["overlap_conflicts"] == 60


def test_a_void_is_filled_from_the_tile_below(tmp_path):
    upper = np.full((10, 10), 500, np.int16)
    upper[3, 4] = -32768
    paths = [
        write(tmp_path / "a.tif", upper, 100, 30, nodata=-32768),
        write(tmp_path / "b.tif", np.full((10, 10), 510, np.int16), 100, 30),
    ]
    dem = open_dem(paths, lazy=False)
    assert (dem.values[3, 4], dem.attrs["voids"], dem.attrs["overlap_conflicts"]) == (510, 0, 99)


def test_zero_is_an_elevation_and_nodata_is_not(tmp_path):
    values = np.array([[0, 7], [-32768, 3]], np.int16)
    dem = open_dem(write(tmp_path / "sea.tif", values, 100, 30, nodata=-32768), lazy=False)
    np.testing.assert_array_equal(dem.values, [[0, 7], [np.nan, 3]])


def test_scaled_integers_are_metres(tmp_path):
    path = write(tmp_path / "decimetres.tif", np.array([[12345, -9999], [0, 1]], np.int16), 100, 30, nodata=-9999)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.1,), (100.0,)
    np.testing.assert_allclose(open_dem(path).values, [[1334.5, np.nan], [100, 100.1]], rtol=1e-6)


def test_holes_are_missing_counted_and_named(tmp_path):
    paths = [centred(tmp_path, w, 30, shared=False) for w in (100, 102, 103)]
    dem = open_dem(paths)
    assert dem.attrs["holes"] == 120 * 120
    # Values on the degree lines: the hole begins half a pixel west of 101 and north of 31.
    numbers = [float(word) for word in dem.attrs["hole_boxes"].split()[1::2]]
    np.testing.assert_allclose(numbers, [101 - STEP / 2, 30 + STEP / 2, 102 - STEP / 2, 31 + STEP / 2], rtol=2e-4)
    assert np.isnan(dem.values).sum() == dem.attrs["holes"]
    assert open_dem(paths, box=(102.2, 30.2, 103.1, 30.3)).attrs["holes"] == 0


def test_longitudes_of_either_convention_meet(tmp_path):
    west = write(tmp_path / "a.tif", np.full((120, 120), 1, np.int16), 287.0, -32)
    east = write(tmp_path / "b.tif", np.full((120, 120), 2, np.int16), -72.0, -32)
    both = open_dem([west, east])
    np.testing.assert_allclose(both.lon[[0, -1]], [-73 + STEP / 2, -71 - STEP / 2])
    np.testing.assert_array_equal(both.values[0, [0, 119, 120, 239]], [1, 1, 2, 2])
    for shift in (0, 360):
        part = open_dem([west, east], box=(-72.1 + shift, -32.5, -71.9 + shift, -32.4))
        np.testing.assert_array_equal(np.unique(part.values), [1, 2])
        assert -72.1 + shift - STEP <= float(part.lon[0]) <= -72.1 + shift + STEP


def test_a_box_may_cross_the_date_line_and_the_seam_of_a_0_to_360_raster(tmp_path):
    fiji = [
        write(tmp_path / f"{n}.tif", np.full((120, 120), v, np.int16), left, -16)
        for n, v, left in (("E179", 1, 179.0), ("W180", 2, -180.0))
    ]
    part = open_dem(fiji, box=(179.5, -16.5, 180.5, -16.4))
    np.testing.assert_array_equal(part.values[0], np.repeat([1, 2], part.sizes["lon"] // 2))
    world = np.tile(np.arange(360, dtype=np.int16), (180, 1))
    part = open_dem(write(tmp_path / "world.tif", world, 0.0, 90.0, 1.0, 1.0), box=(-3, 10, 2, 12))
    np.testing.assert_array_equal(part.values[0], [357, 358, 359, 0, 1])
    np.testing.assert_allclose(part.lon, [-2.5, -1.5, -0.5, 0.5, 1.5])


def test_copernicus_columns_across_50_north_are_interpolated_to_the_narrowest(tmp_path):
    wide = 1.5 * STEP
    paths = [centred(tmp_path, w, 49, shared=False) for w in (100, 101)]
    paths += [centred(tmp_path, w, 50, shared=False, dx=wide) for w in (100, 101)]
    dem = open_dem(paths, lazy=False)
    assert dem.shape == (240, 240)
    assert dem.attrs["holes"] == 0
    # A plane: interpolation along rows is exact; beyond the last wide column it repeats the nearest, half a degree-step.
    expected = height(*np.meshgrid(dem.lon, dem.lat))
    np.testing.assert_allclose(dem.values[:, :-1], expected[:, :-1], atol=1e-3)
    np.testing.assert_allclose(dem.values[:, -1], expected[:, -1], atol=40 * STEP)
    part = open_dem(paths, box=(100.8, 50.2, 101.3, 50.4))
    np.testing.assert_array_equal(part, dem.sel(lat=part.lat, lon=part.lon, method="nearest"))
    alone = open_dem(paths[2:])
    assert alone.shape == (120, 160)


def test_a_void_of_wide_columns_stays_within_half_a_column(tmp_path):
    wide = np.full((4, 8), 100, np.float32)
    wide[1, 3] = np.nan
    paths = [
        write(tmp_path / "a.tif", np.full((4, 12), 50, np.float32), 100, 30),
        write(tmp_path / "b.tif", wide, 100, 30 + 4 * STEP, 1.5 * STEP),
    ]
    dem = open_dem(paths, lazy=False)
    # Centres 4.5 and 5.5 (of a narrow column) lie in wide column 3 (4.5 to 6.0); 5.5 no nearer to its neighbour's centre at 6.75.
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(dem.values[1])), [4, 5])
    assert dem.attrs["voids"] == 2


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32648"])
def test_another_resolution_is_refused_and_both_are_named(tmp_path, crs):
    first = write(tmp_path / "a.tif", np.ones((9, 9), np.int16), 0, 0, 0.5, 0.5, crs=crs)
    for dx, dy in ((0.25, 0.25), (0.5, 0.25)):
        with pytest.raises(InputError, match=r"b\.tif: pixels of .* do not fit those of a\.tif, 0\.5 x 0\.5") as error:
            open_dem([first, write(tmp_path / "b.tif", np.ones((9, 9), np.int16), 4.5, 0, dx, dy, crs=crs)])
        assert "\n" not in str(error.value)


def test_another_crs_is_refused_and_both_are_named(tmp_path):
    first = write(tmp_path / "a.tif", np.ones((9, 9), np.int16), 0, 0, 30, 30, crs="EPSG:32648")
    other = write(tmp_path / "b.tif", np.ones((9, 9), np.int16), 0, 0, 30, 30, crs="EPSG:32647")
    with pytest.raises(InputError, match=r"b\.tif: its CRS differs from that of a\.tif: EPSG:32647, not EPSG:32648"):
        open_dem([first, other])


@pytest.mark.parametrize("compress", [None, "deflate"])
@pytest.mark.parametrize("driver", ["GTiff", "COG"])
def test_a_file_cut_in_its_middle_is_named_before_its_pixels_are_read(tmp_path, compress, driver):
    values = np.random.default_rng(0).integers(0, 4000, (512, 512)).astype(np.int16)
    whole = write(tmp_path / "a.tif", values, 100, 30)
    cut = tmp_path / "b.tif"
    rasterio.shutil.copy(whole, cut, driver=driver, compress=compress or "NONE")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    with pytest.raises(
        InputError, match=r"b\.tif: is truncated: it holds \d+ of at least \d+ bytes: download it again"
    ):
        open_dem(cut)


def test_a_file_that_is_damaged_inside_is_named_when_its_pixels_are_read(tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (512, 512)).astype(np.int16)
    whole = write(tmp_path / "a.tif", values, 100, 30)
    damaged = write(tmp_path / "b.tif", values, 100 + 512 * STEP, 30, compress="deflate")
    content = damaged.read_bytes()
    half = len(content) // 2
    damaged.write_bytes(content[:half] + bytes(10_000) + content[half + 10_000 :])
    dem = open_dem([whole, damaged])
    np.testing.assert_array_equal(dem[:, :512].values, values)
    with pytest.raises(InputError, match=r"b\.tif: cannot be read .* download it again") as error:
        dem.load()
    assert "\n" not in str(error.value)


def test_a_south_up_and_an_east_first_raster_come_out_alike(tmp_path):
    values = np.arange(12, dtype=np.int16).reshape(3, 4)
    up = tmp_path / "up.tif"
    with rasterio.open(
        up, "w", driver="GTiff", height=3, width=4, count=1, dtype="int16", crs="EPSG:4326",
        transform=Affine(-STEP, 0, 100 + 4 * STEP, 0, STEP, 30 - 3 * STEP),
    ) as file:  # fmt: skip
        file.write(values[::-1, ::-1], 1)
    normal = open_dem(write(tmp_path / "normal.tif", values, 100, 30))
    np.testing.assert_array_equal(open_dem(up).values, normal.values)
    np.testing.assert_array_equal(open_dem(up)[1:, 2:].values, normal[1:, 2:].values)
    np.testing.assert_allclose(open_dem(up).lon, normal.lon)


@pytest.mark.real_data
def test_two_real_tiles_far_apart_open_as_one_lazy_mosaic(real):
    paths = [real("dem/SRTM_S33W071.tif"), real("dem/SRTM_N46E008.tif")]
    with pytest.raises(InputError, match="mostly empty"):
        open_dem(paths, lazy=False)
    far = open_dem(paths)
    alps = open_dem(paths, box=(8.2, 46.2, 8.6, 46.5))
    np.testing.assert_array_equal(far.sel(lat=alps.lat, lon=alps.lon, method="nearest").values, alps.values)
    assert far.attrs["holes"] == far.size - 2 * 1201**2
