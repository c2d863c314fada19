"""The MODIS sinusoidal grid against a genuine file's corners and pyproj."""

import re

import numpy as np
import pyproj
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale import sinusoidal as sinu


def corners(path):
    """Upper left and lower right of the first grid, as StructMetadata.0 states them."""
    hdf = pytest.importorskip("pyhdf.SD")
    file = hdf.SD(str(path))
    text = file.attributes()["StructMetadata.0"]
    file.end()
    pair = r"\(([-\d.]+),([-\d.]+)\)"
    left, top = re.search(f"UpperLeftPointMtrs={pair}", text).groups()
    right, bottom = re.search(f"LowerRightMtrs={pair}", text).groups()
    return [float(v) for v in (left, top, right, bottom)]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "h", "v"),
    [
        ("MOD11A1.A2019305.h14v09.006.2019306084028.hdf", 14, 9),
        ("MOD13A2.A2025113.h18v09.061.2025148085150.hdf", 18, 9),
        ("MOD09GA.A2008296.h14v17.006.2015181011753.hdf", 14, 17),
    ],
)
def test_tile_corners_are_those_of_genuine_files(real, name, h, v):
    np.testing.assert_allclose(sinu.tile_corners(h, v), corners(real(f"modis/{name}")), atol=1e-5)


def test_projection_equals_pyproj():
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 500), rng.uniform(-89.9, 89.9, 500)
    theirs = pyproj.Transformer.from_crs(
        pyproj.CRS.from_proj4("+proj=longlat +R=6371007.181 +no_defs"), sinu.CRS, always_xy=True
    )
    np.testing.assert_allclose(sinu.forward(lon, lat), theirs.transform(lon, lat), atol=1e-5)
    np.testing.assert_allclose(sinu.inverse(*theirs.transform(lon, lat)), (lon, lat), atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(lon=st.floats(-179.999, 179.999), lat=st.floats(-89, 89))
def test_projection_inverts_itself(lon, lat):
    back = sinu.inverse(*sinu.forward(lon, lat))
    assert float(back[0]) == pytest.approx(lon, abs=1e-9)
    assert float(back[1]) == pytest.approx(lat, abs=1e-12)


def test_corners_of_the_map_are_off_the_globe():
    lon, lat = sinu.inverse(*sinu.tile_corners(0, 0)[:2])
    assert np.isnan(lon)
    assert np.isnan(lat)


@pytest.mark.parametrize("pixels", [1200, 2400])
@pytest.mark.parametrize(("h", "v"), [(26, 5), (14, 9), (18, 17), (35, 8)])
def test_pixel_index_finds_the_pixel_of_its_own_centre(h, v, pixels):
    x, y = sinu.pixel_centres(h, v, pixels)
    rows, cols = np.array([0, 1, pixels // 2, pixels - 1]), np.array([0, 7, pixels // 3, pixels - 1])
    lon, lat = sinu.inverse(x[cols][None, :], y[rows][:, None])
    row, col = sinu.pixel_index(np.where(np.isnan(lon), 0, lon), np.where(np.isnan(lat), 0, lat), pixels)
    on_globe = np.isfinite(lon)
    expected_row = np.broadcast_to(v * pixels + rows[:, None], lon.shape)
    expected_col = np.broadcast_to(h * pixels + cols, lon.shape)
    np.testing.assert_array_equal(row[on_globe], expected_row[on_globe])
    np.testing.assert_array_equal(col[on_globe], expected_col[on_globe])


def test_longitudes_beyond_180_wrap():
    np.testing.assert_array_equal(sinu.pixel_index(190.0, 30.0, 1200), sinu.pixel_index(-170.0, 30.0, 1200))


def test_tiles_of_sichuan_are_the_known_ones():
    """By hand: lon cos(lat) / 10 + 18 runs from 26.04 (97.35 E 34.31 N) to 27.75 (108.54 E 26.05 N)."""
    assert sinu.tiles_of_box(97.35, 26.05, 108.54, 34.31) == [(26, 5), (26, 6), (27, 5), (27, 6)]


def test_a_box_that_ends_on_a_tile_edge_does_not_touch_the_next():
    assert sinu.tiles_of_box(0.0, 0.0, 5.0, 10.0) == [(18, 8)]


@settings(max_examples=50, deadline=None)
@given(west=st.floats(-179, 170), south=st.floats(-80, 75), width=st.floats(0.1, 5), height=st.floats(0.1, 4))
def test_tiles_of_a_box_hold_every_point_of_it(west, south, width, height):
    tiles = set(sinu.tiles_of_box(west, south, west + width, south + height))
    lon, lat = np.meshgrid(np.linspace(west, west + width, 23)[1:-1], np.linspace(south, south + height, 23)[1:-1])
    row, col = sinu.pixel_index(lon, lat, 1200)
    assert set(zip((col // 1200).ravel().tolist(), (row // 1200).ravel().tolist(), strict=True)) <= tiles
