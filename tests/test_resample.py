"""MODIS tiles on the fine grid, local days of LST views, composites nearest in time."""

import numpy as np
import pyproj
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale import sinusoidal
from smscale.cube import (
    lst_file_dates,
    lst_local_day_offset,
    sample_tiles,
    select_lst,
    tile_window,
)
from smscale.errors import InputError
from smscale.grid import Grid

SEAM = Grid.latlon(103.4, 29.8, 104.2, 30.2)  # around a tile corner
TILES = ((26, 5), (26, 6), (27, 5), (27, 6))  # 103.92 cos(30) = 90: four tiles meet at 103.92 E 30 N
PIXELS = 1200


def tile_of(h, v, function, pixels=PIXELS):
    """A tile whose pixels hold `function(lon, lat)` of their own centres."""
    x, y = sinusoidal.pixel_centres(h, v, pixels)
    return function(*sinusoidal.inverse(x[None, :], y[:, None])).astype(np.float32)


def tiles_with(window, function):
    return {t: tile_of(*t, function, window.pixels) for t in window.tiles}


# -- sinusoidal to the fine grid ----------------------------------------------------------------


def test_a_window_around_a_tile_corner_needs_four_tiles():
    assert tile_window(SEAM, PIXELS).tiles == TILES


@pytest.mark.parametrize("pixels", [1200, 2400])
def test_pixels_that_hold_their_own_latitude_land_on_it(pixels):
    window = tile_window(SEAM, pixels)
    found, lost = sample_tiles(tiles_with(window, lambda lon, lat: lat), window)
    assert lost == 0
    assert np.abs(found - SEAM.lat[:, None]).max() <= 5.01 / pixels  # half a pixel: 10 degrees over 2 x pixels


def test_pixels_that_hold_their_own_longitude_land_on_it():
    window = tile_window(SEAM, PIXELS)
    found, _ = sample_tiles(tiles_with(window, lambda lon, lat: lon), window)
    half = 5.0 / PIXELS / np.cos(np.deg2rad(30.2))
    slant = (
        0.5 * 10 / PIXELS * 104.2 * np.tan(np.deg2rad(30.2)) * np.pi / 180
    )  # x is taken at the point, not at the pixel's row
    assert np.abs(found - SEAM.lon).max() <= half + slant


def test_each_cell_takes_the_pixel_that_pyproj_finds():
    window = tile_window(SEAM, PIXELS)
    numbers = {t: np.arange(PIXELS**2, dtype=np.float64).reshape(PIXELS, PIXELS) for t in window.tiles}
    found, _ = sample_tiles(numbers, window, "nearest")
    to_sinu = pyproj.Transformer.from_crs(
        pyproj.CRS.from_proj4("+proj=longlat +R=6371007.181 +no_defs"), sinusoidal.CRS, always_xy=True
    )
    lon, lat = np.meshgrid(SEAM.lon, SEAM.lat)
    x, y = to_sinu.transform(lon, lat)
    step = sinusoidal.TILE_SIZE / PIXELS
    row = np.floor((sinusoidal.TOP - y) / step).astype(int) % PIXELS
    col = np.floor((x - sinusoidal.LEFT) / step).astype(int) % PIXELS
    np.testing.assert_array_equal(found, row * PIXELS + col)


def test_sub_points_average_toward_the_cell():
    one, three = tile_window(SEAM, 2400, 1), tile_window(SEAM, 2400, 3)
    tiles = tiles_with(one, lambda lon, lat: lat)
    errors = [np.abs(sample_tiles(tiles, w)[0] - SEAM.lat[:, None]).mean() for w in (one, three)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_constant_in_is_constant_out_and_missing_pixels_are_left_out(k):
    window = tile_window(SEAM, 2400, k)
    rng = np.random.default_rng(0)
    tiles = {t: np.where(rng.random((2400, 2400)) < 0.5, np.nan, np.float32(7.25)) for t in window.tiles}
    found, lost = sample_tiles(tiles, window)
    assert lost == 0
    assert np.unique(found[np.isfinite(found)]).tolist() == [7.25]
    assert np.isnan(found).mean() == pytest.approx(0.5 if k == 1 else 0.05, abs=0.1)


def test_majority_ignores_missing_pixels_and_takes_the_lowest_of_equals():
    grid = Grid.latlon(100, 5, 100.2, 5.1, step=0.1)
    window = tile_window(grid, 1200, 2)
    (tile,) = window.tiles
    assert np.unique(window.flat[:2, :2]).size == 4
    for values, expected in (([9, 9, 4, 255], 9), ([9, 4, 4, 9], 4), ([255, 255, 255, 12], 12), ([255] * 4, 255)):
        data = np.full((1200, 1200), 255, np.uint8)
        flat = window.flat[:2, :2].ravel()
        data.ravel()[flat] = values
        found, _ = sample_tiles({tile: data}, window, "majority")
        assert found.dtype == np.uint8
        assert found[0, 0] == expected


def test_classes_given_as_floats_stay_classes():
    window = tile_window(SEAM, PIXELS)
    tiles = {t: np.full((PIXELS, PIXELS), np.nan, np.float32) for t in window.tiles}
    tiles[window.tiles[0]][:] = 10.0
    found, _ = sample_tiles(tiles, window, "majority")
    assert sorted(np.unique(found).tolist()) == [10, 255]


def test_a_missing_tile_leaves_its_cells_missing_and_counts_them():
    window = tile_window(SEAM, PIXELS)
    tiles = tiles_with(window, lambda lon, lat: lat)
    north = {t: a for t, a in tiles.items() if t[1] == 5}
    found, lost = sample_tiles(north, window)
    assert lost == np.isnan(found).sum() == SEAM.shape[1] * 20
    assert np.isnan(found[20:]).all()
    assert np.isfinite(found[:20]).all()
    nothing, lost = sample_tiles({}, window)
    assert np.isnan(nothing).all()
    assert lost == nothing.size


def test_a_part_of_the_window_gives_the_same_cells():
    whole, part = tile_window(SEAM, 2400, 3), tile_window(SEAM.window(slice(10, 30), slice(5, 44)), 2400, 3)
    tiles = tiles_with(whole, lambda lon, lat: lon + lat)
    np.testing.assert_array_equal(sample_tiles(tiles, part)[0], sample_tiles(tiles, whole)[0][10:30, 5:44])


def test_a_window_across_the_date_line():
    grid = Grid.latlon(179.5, 10, 180.5, 10.5)
    window = tile_window(grid, PIXELS)
    assert window.tiles == ((0, 7), (35, 7))
    found, lost = sample_tiles(tiles_with(window, lambda lon, lat: lat), window)
    assert lost == 0
    assert np.isnan(found).sum() <= grid.shape[0]  # the last pixels of a row have their centres off the globe
    assert np.nanmax(np.abs(found - grid.lat[:, None])) <= 5.01 / PIXELS


def test_a_tile_of_the_wrong_size_is_refused():
    window = tile_window(SEAM, PIXELS)
    with pytest.raises(InputError, match="h26v05 must be 1200 x 1200"):
        sample_tiles({(26, 5): np.zeros((2400, 2400))}, window)
    with pytest.raises(InputError, match="kind"):
        sample_tiles({}, window, "median")


@pytest.mark.real_data
def test_a_genuine_lst_tile_lands_on_the_fine_grid(real):
    hdf = pytest.importorskip("pyhdf.SD")
    file = hdf.SD(str(real("modis/MOD11A1.A2019305.h14v09.006.2019306084028.hdf")))
    raw = file.select("LST_Day_1km").get()
    file.end()
    lst = np.where(raw == 0, np.nan, raw * np.float32(0.02))
    grid = Grid.latlon(-38.5, -7.5, -37.5, -6.5)
    window = tile_window(grid, 1200)
    assert window.tiles == ((14, 9),)
    found, lost = sample_tiles({(14, 9): lst}, window)
    assert lost == 0
    lon, lat = np.meshgrid(grid.lon, grid.lat)
    row, col = sinusoidal.pixel_index(lon, lat, 1200)
    expected = lst[row - 9 * 1200, col - 14 * 1200]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isfinite(found).any()


# -- local days of LST --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lon", "night", "day"),
    [
        (103.0, 1, 0),
        (89.9, 1, 0),
        (90.1, 1, 0),
        (179.0, 1, 0),
        (0.0, 0, 0),
        (-38.0, 0, 0),
        (-120.0, 0, 0),
        (20.0, 0, 0),
        (30.0, 1, 0),
    ],
)
def test_aqua_views_of_a_utc_day_belong_to_local_days(lon, night, day):
    assert lst_local_day_offset(1.5, lon) == night
    assert lst_local_day_offset(13.5, lon) == day


def test_terra_night_in_the_far_west_belongs_to_the_day_before():
    assert lst_local_day_offset(22.3, -120.0) == -1


@settings(max_examples=200, deadline=None)
@given(view_time=st.floats(0, 23.99), lon=st.floats(-180, 179.99))
def test_offset_equals_the_calendar(view_time, lon):
    """The definition, with datetimes: UTC time within the file's day, then the local date."""
    utc_hour = (view_time - lon / 15) % 24
    day = np.datetime64("2017-07-01T00:00:00", "ns")
    to_ns = 3600e9
    local = day + np.timedelta64(round((utc_hour + lon / 15) * to_ns) + 500_000, "ns")
    at_seam = abs((view_time % 24) - 24) < 1e-5 or view_time < 1e-5 or abs(utc_hour - 24) < 1e-6
    expected = (local.astype("datetime64[D]") - np.datetime64("2017-07-01")).astype(int)
    assert at_seam or lst_local_day_offset(view_time, lon) == expected


def test_a_missing_view_has_offset_zero():
    assert lst_local_day_offset(np.array([np.nan, 1.5]), 103.0).tolist() == [0, 1]


def fields(lon, values, view_time):
    shape = (1, len(lon))
    return {
        np.datetime64(date): (np.full(shape, value, np.float32), np.full(shape, view_time, np.float32))
        for date, value in values.items()
    }


def test_the_night_of_a_step_comes_from_the_file_of_its_utc_day():
    """Local morning of 2 July: east of about 22.5 E the file of 1 July, west of it the file of 2 July."""
    lon = np.array([-120.0, 0.0, 89.9, 103.0, 179.0])
    values = {"2017-07-01": 281.0, "2017-07-02": 282.0, "2017-07-03": 283.0}
    lst, view = select_lst("2017-07-02", "AM", fields(lon, values, 1.5), lon)
    assert lst[0].tolist() == [282.0, 282.0, 281.0, 281.0, 281.0]
    assert (view == 1.5).all()
    lst, _ = select_lst("2017-07-02", "PM", fields(lon, values, 13.5), lon)
    assert lst[0].tolist() == [282.0] * 5


def test_a_view_before_midnight_serves_the_morning_that_follows():
    lon = np.array([0.0])
    lst, _ = select_lst("2017-07-02", "AM", fields(lon, {"2017-07-01": 280.0}, 23.8), lon)
    assert lst[0, 0] == 280.0
    lst, _ = select_lst("2017-07-01", "AM", fields(lon, {"2017-07-01": 280.0}, 23.8), lon)
    assert np.isnan(lst[0, 0])


def test_of_two_views_the_one_nearer_to_the_overpass_wins_and_gaps_are_filled_from_the_other():
    lon = np.array([0.0, 0.0, 0.0])
    early = (np.array([[280.0, 280.0, np.nan]], np.float32), np.array([[23.9, 23.9, np.nan]], np.float32))
    late = (np.array([[281.0, np.nan, np.nan]], np.float32), np.array([[1.4, np.nan, np.nan]], np.float32))
    both = {np.datetime64("2017-07-01"): early, np.datetime64("2017-07-02"): late}
    lst, view = select_lst("2017-07-02", "AM", both, lon)
    np.testing.assert_array_equal(lst, [[281.0, 280.0, np.nan]])
    np.testing.assert_array_equal(view, np.array([[1.4, 23.9, np.nan]], np.float32))


def test_files_of_other_days_do_not_matter():
    lon = np.array([103.0])
    lst, _ = select_lst("2017-07-02", "AM", fields(lon, {"2017-06-20": 1.0}, 1.5), lon)
    assert np.isnan(lst).all()
    assert [str(d) for d in lst_file_dates("2017-07-02")] == ["2017-07-01", "2017-07-02", "2017-07-03"]
    with pytest.raises(InputError, match="overpass"):
        select_lst("2017-07-02", "NOON", fields(lon, {"2017-07-02": 1.0}, 1.5), lon)
    with pytest.raises(InputError, match="no LST field"):
        select_lst("2017-07-02", "AM", {}, lon)
