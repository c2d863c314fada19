"""Stored tiles on the fine grid: pixels that tell where they are, missing tiles, quality words, classes."""

import numpy as np
import pyproj
import pytest

from smscale import cube, sinusoidal
from smscale.cube import tile_window
from smscale.errors import InputError
from smscale.grid import Grid
from smscale.kernels.lookup import Coded, decode

SEAM = Grid.latlon(103.4, 29.8, 104.2, 30.2)  # around a tile corner
TILES = ((26, 5), (26, 6), (27, 5), (27, 6))  # 103.92 cos(30) = 90: four tiles meet at 103.92 E 30 N
PIXELS = 1200
#: What a coded pixel resolves, degrees: a third of a pixel of 1 km.
STEP = 0.003


def coded(values, quality=None, accepted=None):
    """Values as 16-bit codes of `STEP`, code 0 missing."""
    low = np.nanmin(values) if np.isfinite(values).any() else 0.0
    codes = np.where(np.isnan(values), 0, np.rint((values - low) / STEP) + 1).astype(np.uint16)
    table = (low + (np.arange(65536) - 1) * STEP).astype(np.float32)
    table[0] = np.nan
    return Coded(codes, table, quality, accepted)


def tile_of(h, v, function, pixels=PIXELS):
    """A tile whose pixels hold `function(lon, lat)` of their own centres."""
    x, y = sinusoidal.pixel_centres(h, v, pixels)
    return coded(np.asarray(function(*sinusoidal.inverse(x[None, :], y[:, None]))))


def tiles_with(window, function):
    return {t: tile_of(*t, function, window.shape[0]) for t in window.tiles}


def mean(tiles, window):
    """The mean on the window's cells, and the cells without a tile."""
    gathered = cube.Mean(window)
    for tile in window.tiles:
        if tile in tiles:
            gathered.add(tile, tiles[tile])
    return gathered.result(), window.cells_without(gathered.came)


def test_a_window_around_a_tile_corner_needs_four_tiles():
    assert tile_window(SEAM, PIXELS).tiles == TILES


@pytest.mark.parametrize("pixels", [1200, 2400])
def test_pixels_that_hold_their_own_latitude_land_on_it(pixels):
    window = tile_window(SEAM, pixels)
    found, lost = mean(tiles_with(window, lambda lon, lat: lat + 0 * lon), window)
    assert lost == 0
    half = 5.01 / pixels  # half a pixel: 10 degrees over 2 x pixels
    assert np.abs(found - SEAM.lat[:, None]).max() <= half + STEP / 2


def test_pixels_that_hold_their_own_longitude_land_on_it():
    window = tile_window(SEAM, PIXELS)
    found, _ = mean(tiles_with(window, lambda lon, lat: lon), window)
    half = 5.0 / PIXELS / np.cos(np.deg2rad(30.2))
    slant = (
        0.5 * 10 / PIXELS * 104.2 * np.tan(np.deg2rad(30.2)) * np.pi / 180
    )  # x is taken at the point, not at the row
    assert np.abs(found - SEAM.lon).max() <= half + slant + STEP / 2


def test_each_cell_takes_the_pixel_that_pyproj_finds():
    window = tile_window(SEAM, PIXELS)
    to_sinu = pyproj.Transformer.from_crs(
        pyproj.CRS.from_proj4("+proj=longlat +R=6371007.181 +no_defs"), sinusoidal.CRS, always_xy=True
    )
    lon, lat = np.meshgrid(SEAM.lon, SEAM.lat)
    x, y = to_sinu.transform(lon, lat)
    step = sinusoidal.TILE_SIZE / PIXELS
    row = np.floor((sinusoidal.TOP - y) / step).astype(int)
    col = np.floor((x - sinusoidal.LEFT) / step).astype(int)
    slot = [
        TILES.index((int(h), int(v))) for h, v in zip((col // PIXELS).ravel(), (row // PIXELS).ravel(), strict=True)
    ]
    expected = np.reshape(slot, row.shape) * PIXELS**2 + row % PIXELS * PIXELS + col % PIXELS
    np.testing.assert_array_equal(window.flat, expected)


def test_sub_points_average_toward_the_cell():
    one, three = tile_window(SEAM, 2400, 1), tile_window(SEAM, 2400, 3)
    tiles = tiles_with(one, lambda lon, lat: lat + 0 * lon)
    errors = [np.abs(mean(tiles, w)[0] - SEAM.lat[:, None]).mean() for w in (one, three)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_constant_in_is_constant_out_and_missing_pixels_are_left_out(k):
    window = tile_window(SEAM, 2400, k)
    rng = np.random.default_rng(0)
    tiles = {t: coded(np.where(rng.random((2400, 2400)) < 0.5, np.nan, 7.25)) for t in window.tiles}
    found, lost = mean(tiles, window)
    assert lost == 0
    assert np.unique(found[np.isfinite(found)]).tolist() == [7.25]
    assert np.isnan(found).mean() == pytest.approx(0.5 if k == 1 else 0.05, abs=0.1)


def test_rejected_pixels_are_missing_and_every_quality_word_is_counted_once():
    window = tile_window(SEAM, 2400, 3)
    rng = np.random.default_rng(1)
    accepted = np.zeros(256, bool)
    accepted[[0, 17]] = True
    tiles = {}
    for tile in window.tiles:
        words = rng.choice(np.array([0, 17, 65], np.uint8), (2400, 2400))
        tiles[tile] = coded(np.where(rng.random((2400, 2400)) < 0.2, np.nan, words.astype(float)), words, accepted)
    gathered = cube.Mean(window)
    for tile, pixels in tiles.items():
        gathered.add(tile, pixels)
    laid = np.concatenate([tiles[t].quality.ravel() for t in window.tiles])[window.flat]
    values = np.concatenate([decode(tiles[t]).ravel() for t in window.tiles])[window.flat]
    assert {word: gathered.words[word] for word in (0, 17, 65)} == {w: (laid == w).sum() for w in (0, 17, 65)}
    assert gathered.words.sum() == window.flat.size
    assert gathered.empty == (np.isnan(values) & (laid != 65)).sum()
    parts = values.reshape(40, 3, 80, 3)
    with np.errstate(invalid="ignore"):
        expected = np.nansum(parts, axis=(1, 3)) / np.isfinite(parts).sum(axis=(1, 3))
    np.testing.assert_allclose(gathered.result(), expected, rtol=1e-6)
    assert np.nanmax(gathered.result()) < 17 + STEP  # 65 is rejected


def test_majority_ignores_missing_pixels_and_takes_the_lowest_of_equals():
    grid = Grid.latlon(100, 5, 100.2, 5.1, step=0.1)
    window = tile_window(grid, 1200, 2)
    (tile,) = window.tiles
    assert np.unique(window.flat[:2, :2]).size == 4
    table = np.arange(256, dtype=np.uint8)
    cases = (
        ([9, 9, 4, 255], 9, {9: 67, 4: 33}),
        ([9, 4, 4, 9], 4, {9: 50, 4: 50}),
        ([255, 255, 255, 12], 12, {12: 100}),
        ([255] * 4, 255, {}),
    )
    for values, expected, shares in cases:
        data = np.full((1200, 1200), 255, np.uint8)
        data.ravel()[window.flat[:2, :2].ravel()] = values
        gathered = cube.Classes(window, 18)
        gathered.add(tile, Coded(data, table))
        assert gathered.majority().dtype == np.uint8
        assert gathered.majority()[0, 0] == expected
        percent = gathered.percent()[:, 0, 0]
        known = percent if shares else np.zeros(18)
        assert {int(c): int(known[c]) for c in np.flatnonzero(known)} == shares
        assert shares or (percent == 255).all()


def test_a_missing_tile_leaves_its_cells_missing_and_counts_them():
    window = tile_window(SEAM, PIXELS)
    tiles = tiles_with(window, lambda lon, lat: lat + 0 * lon)
    found, lost = mean({t: a for t, a in tiles.items() if t[1] == 5}, window)
    assert lost == np.isnan(found).sum() == SEAM.shape[1] * 20
    assert np.isnan(found[20:]).all()
    assert np.isfinite(found[:20]).all()
    nothing, lost = mean({}, window)
    assert np.isnan(nothing).all()
    assert lost == nothing.size


def test_a_part_of_the_window_gives_the_same_cells():
    whole, part = tile_window(SEAM, 2400, 3), tile_window(SEAM.window(slice(10, 30), slice(5, 44)), 2400, 3)
    tiles = tiles_with(whole, lambda lon, lat: lon + lat)
    np.testing.assert_array_equal(mean(tiles, part)[0], mean(tiles, whole)[0][10:30, 5:44])


def test_a_window_across_the_date_line():
    grid = Grid.latlon(179.5, 10, 180.5, 10.5)
    window = tile_window(grid, PIXELS)
    assert window.tiles == ((0, 7), (35, 7))
    found, lost = mean(tiles_with(window, lambda lon, lat: lat + 0 * lon), window)
    assert lost == 0
    assert np.isnan(found).sum() <= grid.shape[0]  # the last pixels of a row have their centres off the globe
    assert np.nanmax(np.abs(found - grid.lat[:, None])) <= 5.01 / PIXELS + STEP / 2


def test_a_tile_of_the_wrong_size_is_refused():
    window = tile_window(SEAM, PIXELS)
    with pytest.raises(InputError, match="h26v05 must be 1200 x 1200"):
        cube.Mean(window).add((26, 5), coded(np.zeros((2400, 2400))))
    with pytest.raises(InputError, match="at least 1"):
        tile_window(SEAM, 0)


@pytest.mark.real_data
def test_a_genuine_lst_tile_lands_on_the_fine_grid(real):
    from pyhdf.SD import SD

    from smscale.sources.modis import read_coded

    path = real("modis/MOD11A1.A2019305.h14v09.006.2019306084028.hdf")
    file = SD(str(path))
    raw = file.select("LST_Day_1km").get()
    file.end()
    lst = np.where(raw == 0, np.nan, raw * np.float32(0.02))
    grid = Grid.latlon(-38.5, -7.5, -37.5, -6.5)
    window = tile_window(grid, 1200)
    assert window.tiles == ((14, 9),)
    found, lost = mean({(14, 9): read_coded(path, ["lst_day"], "none").layers["lst_day"]}, window)
    assert lost == 0
    lon, lat = np.meshgrid(grid.lon, grid.lat)
    row, col = sinusoidal.pixel_index(lon, lat, 1200)
    np.testing.assert_allclose(found, lst[row - 9 * 1200, col - 14 * 1200], rtol=1e-6)
    assert np.isfinite(found).any()
