"""Grids: EASE-Grid 2.0 against NSIDC and pyproj, lat-lon lattices, overlaps, grids told from coordinates."""

import h5py
import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale.errors import InputError
from smscale.grid import EASE2_GRIDS, Grid, authalic_q, coords_of, ease2_forward, ease2_inverse, grid_of

SICHUAN = (97.35, 26.05, 108.54, 34.31)


def on(grid):
    return xr.DataArray(np.zeros(grid.shape), coords_of(grid), ("lat", "lon"), attrs={"crs": grid.crs})


# -- EASE-Grid 2.0 ------------------------------------------------------------------------------


@pytest.mark.real_data
def test_ease2_36km_centres_are_those_of_nsidc(real):
    grid = Grid.ease2(36)
    with h5py.File(real("smap/NSIDC0772_LatLon_EASE2_M36km_v1.0.nc")) as file:
        np.testing.assert_allclose(grid.lat, file["latitude"][:, 0], atol=1e-5)
        np.testing.assert_allclose(grid.lon, file["longitude"][0], atol=1e-5)
        np.testing.assert_allclose(grid.x, file["x"][:], atol=1e-3)
        np.testing.assert_allclose(grid.y, file["y"][:], atol=1e-3)


@pytest.mark.real_data
def test_real_smap_cells_lie_at_their_ease2_rows_and_columns(real):
    grid = Grid.ease2(36)
    name = "smap/SMAP_L2_SM_P_02801_A_20150811T013002_R18290_001.h5"
    with h5py.File(real(name)) as file:
        group = file["Soil_Moisture_Retrieval_Data"]
        row, col = group["EASE_row_index"][:], group["EASE_column_index"][:]
        lat, lon = group["latitude_centroid"][:], group["longitude_centroid"][:]
        centre_lat, centre_lon = group["latitude"][:], group["longitude"][:]
    there = row < 406
    np.testing.assert_allclose(grid.lat[row[there]], centre_lat[there], atol=1e-4)
    np.testing.assert_allclose(grid.lon[col[there]], centre_lon[there], atol=1e-4)
    known = there & (lat > -90)
    found = grid.index(lon[known], lat[known])
    assert (found[0] == row[known]).mean() > 0.99
    assert (found[1] == col[known]).mean() > 0.99


@pytest.mark.parametrize("resolution", sorted(EASE2_GRIDS))
def test_ease2_grids_span_180_degrees_of_longitude_and_85_04_of_latitude(resolution):
    columns, rows, size = EASE2_GRIDS[resolution]
    lon, lat = ease2_inverse([-columns * size / 2, columns * size / 2], [-rows * size / 2, rows * size / 2])
    np.testing.assert_allclose(lon, [-180, 180], atol=1e-5)
    if resolution != 25:  # 584 rows of 25 km end a little earlier
        np.testing.assert_allclose(lat, [-85.0445664, 85.0445664], atol=2e-4)


def test_projection_equals_pyproj():
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 500), rng.uniform(-89, 89, 500)
    theirs = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True).transform(lon, lat)
    np.testing.assert_allclose(ease2_forward(lon, lat), theirs, atol=1e-3)


@settings(max_examples=200, deadline=None)
@given(lon=st.floats(-180, 180), lat=st.floats(-90, 90))
def test_projection_inverts_itself(lon, lat):
    back = ease2_inverse(*ease2_forward(lon, lat))
    assert float(back[0]) == pytest.approx(lon, abs=1e-9)
    # At the poles the projection is singular: latitude goes with the square root of y.
    assert float(back[1]) == pytest.approx(lat, abs=1e-8 if abs(lat) < 89 else 2e-6)


def test_ease2_cells_are_equal_in_area():
    area = Grid.ease2(36).cell_area
    np.testing.assert_allclose(area, 36.032220840584**2, rtol=1e-9)


def test_cell_area_equals_pyproj_geodesic_polygons():
    grid = Grid.latlon(100, 30, 101, 31, step=0.5)
    geod = pyproj.Geod(ellps="WGS84")
    for i, (north, south) in enumerate(zip(grid.lat_edges[:-1], grid.lat_edges[1:], strict=True)):
        along = np.linspace(100, 100.5, 200)  # parallels are no geodesics: many short pieces
        area = geod.polygon_area_perimeter(np.r_[along, along[::-1]], np.r_[np.full(200, south), np.full(200, north)])[
            0
        ]
        assert grid.cell_area[i] == pytest.approx(abs(area) / 1e6, rel=1e-6)


def test_ease2_window_is_cut_from_the_globe():
    globe, part = Grid.ease2(36), Grid.ease2(36, *SICHUAN)
    m, n = part.shape
    assert part == globe.window(slice(part.row0, part.row0 + m), slice(part.col0, part.col0 + n))
    w, s, e, n_ = part.bounds
    assert w <= SICHUAN[0] < w + 0.374
    assert s <= SICHUAN[1]
    assert e >= SICHUAN[2]
    assert n_ >= SICHUAN[3]


def test_nine_km_cells_tile_the_36_km_cell():
    coarse = Grid.ease2(36, *SICHUAN)
    w, s, e, n = coarse.bounds
    fine = Grid.ease2(9, w + 1e-6, s + 1e-6, e - 1e-6, n - 1e-6)
    assert fine.shape == (coarse.shape[0] * 4, coarse.shape[1] * 4)
    np.testing.assert_allclose(fine.lon_edges[::4], coarse.lon_edges, atol=1e-9)
    np.testing.assert_allclose(fine.lat_edges[::4], coarse.lat_edges, atol=1e-6)


def test_a_box_beyond_the_last_row_touches_no_cell():
    with pytest.raises(InputError, match="touches no EASE-Grid"):
        Grid.ease2(36, 0, 86, 10, 89)
    with pytest.raises(InputError, match="resolution"):
        Grid.ease2(10)


# -- lat-lon ------------------------------------------------------------------------------------


def test_latlon_windows_share_edges_bit_for_bit():
    whole = Grid.latlon(97, 26, 109, 35)
    part = Grid.latlon(100.3, 28.7, 101.1, 30.3)
    rows = slice(part.row0 - whole.row0, part.row0 - whole.row0 + part.shape[0])
    cols = slice(part.col0 - whole.col0, part.col0 - whole.col0 + part.shape[1])
    assert whole.window(rows, cols) == part
    assert hash(whole.window(rows, cols)) == hash(part)


@settings(max_examples=100, deadline=None)
@given(west=st.floats(-180, 179), south=st.floats(-90, 89), width=st.floats(0.02, 1), height=st.floats(0.02, 1))
def test_latlon_covers_its_box_with_less_than_a_cell_to_spare(west, south, width, height):
    w, s, e, n = Grid.latlon(west, south, west + width, south + height).bounds
    assert w <= west + 1e-7
    assert w > west - 0.0101
    assert n >= south + height - 1e-7
    assert n < south + height + 0.0101
    assert s <= south + 1e-7
    assert e >= west + width - 1e-7


@pytest.mark.parametrize("box", [(100, 30, 100, 31), (100, 31, 101, 30), (100, 30, 400, 31), (np.nan, 30, 101, 31)])
def test_an_empty_or_impossible_box_is_refused(box):
    with pytest.raises(InputError, match="region"):
        Grid.latlon(*box)


def test_a_step_that_does_not_divide_a_degree_is_refused():
    with pytest.raises(InputError, match="step"):
        Grid.latlon(100, 30, 101, 31, step=0.03)


def test_index_finds_every_cell_centre_and_nothing_outside():
    grid = Grid.ease2(36, *SICHUAN)
    row, col = grid.index(grid.lon[None, :], grid.lat[:, None])
    np.testing.assert_array_equal(row, np.broadcast_to(np.arange(grid.shape[0])[:, None], grid.shape))
    np.testing.assert_array_equal(col, np.broadcast_to(np.arange(grid.shape[1]), grid.shape))
    assert [int(i) for i in grid.index(0.0, 0.0)] == [-1, -1]
    assert [int(i) for i in grid.index(np.nan, 30.0)] == [-1, -1]


def test_a_cell_owns_its_western_and_northern_edge():
    grid = Grid.latlon(100, 30, 101, 31, step=0.5)
    assert [int(i) for i in grid.index(100.5, 30.5)] == [1, 1]
    assert [int(i) for i in grid.index(100.0, 31.0)] == [0, 0]
    assert [int(i) for i in grid.index(101.0, 30.5)] == [-1, -1]


def test_edges_must_run_north_to_south():
    with pytest.raises(InputError, match="descending"):
        Grid(np.array([0.0, 1]), np.array([0.0, 1]))


# -- overlap ------------------------------------------------------------------------------------


def test_overlap_sums_to_the_common_area():
    fine, coarse = Grid.latlon(100, 29, 103, 32, step=0.25), Grid.ease2(36, 100.9, 29.9, 102.1, 31.1)
    lat, lon = fine.overlap(coarse)
    assert lat.shape == (coarse.shape[0], fine.shape[0])
    assert lon.shape == (coarse.shape[1], fine.shape[1])
    np.testing.assert_allclose(lat.sum(axis=1), -np.diff(authalic_q(coarse.lat_edges)), rtol=1e-12)
    np.testing.assert_allclose(lon.sum(axis=1), np.diff(coarse.lon_edges), rtol=1e-12)


def test_overlap_of_a_grid_with_itself_is_diagonal():
    grid = Grid.latlon(100, 29, 101, 30, step=0.25)
    lat, lon = grid.overlap(grid)
    assert np.count_nonzero(lat) == np.count_nonzero(lon) == 4
    np.testing.assert_allclose(np.diag(lon), 0.25)


# -- the grid of labelled data ------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid",
    [
        Grid.latlon(*SICHUAN, step=0.05),
        Grid.latlon(-10, -5, 10, 5, step=0.5),
        Grid.latlon(100, 30, 100.1, 30.1),
        Grid.latlon(0, -90, 360, 90, step=1),
        Grid.latlon(100, 30, 100.05, 30.01),
        Grid.ease2(36, *SICHUAN),
        Grid.ease2(9, *SICHUAN),
        Grid.ease2(1, 100, 30, 100.1, 30.1),
        Grid.ease2(36, 100, 30, 100.01, 30.01),
        Grid.ease2(36),
    ],
    ids=repr,
)
def test_grid_of_data_on_a_grid_is_that_grid(grid):
    found = grid_of(on(grid))
    assert found == grid
    assert hash(found) == hash(grid)
    assert (found.row0, found.col0) == (grid.row0, grid.col0)


def test_grid_of_float32_coordinates_is_exact_again():
    grid = Grid.latlon(*SICHUAN)
    rough = on(grid).assign_coords(lat=grid.lat.astype(np.float32), lon=grid.lon.astype(np.float32))
    assert grid_of(rough) == grid


def test_srtm_pixels_are_centred_on_whole_seconds():
    lat, lon = 47 - np.arange(1201) / 1200, 8 + np.arange(1201) / 1200
    found = grid_of(xr.DataArray(np.zeros((1201, 1201)), {"lat": lat, "lon": lon}, ("lat", "lon")))
    np.testing.assert_allclose(found.bounds, (8 - 1 / 2400, 46 - 1 / 2400, 9 + 1 / 2400, 47 + 1 / 2400), rtol=1e-14)
    part = grid_of(xr.DataArray(np.zeros((5, 7)), {"lat": lat[100:105], "lon": lon[300:307]}, ("lat", "lon")))
    assert part == found.window(slice(100, 105), slice(300, 307))


def test_a_lattice_of_no_simple_step_keeps_its_centres():
    lat, lon = 40 - 0.0123 * np.arange(50), 7.77 + 0.0123 * np.arange(60)
    found = grid_of(xr.DataArray(np.zeros((50, 60)), {"lat": lat, "lon": lon}, ("lat", "lon")))
    np.testing.assert_allclose(found.lat, lat, rtol=1e-14)
    np.testing.assert_allclose(np.diff(found.lon_edges), 0.0123, rtol=1e-9)


def test_unequal_steps_of_rows_and_columns():
    lat, lon = 31 - 0.125 - 0.25 * np.arange(4), 100.25 + 0.5 * np.arange(3)
    found = grid_of(xr.DataArray(np.zeros((4, 3)), {"lat": lat, "lon": lon}, ("lat", "lon")))
    assert found.bounds == (100, 30, 101.5, 31)


@pytest.mark.parametrize(
    ("lat", "lon", "words"),
    [
        ([30.0, 31.0], [100.0, 101.0], "lat ascends"),
        ([31.0, 30.0], [101.0, 100.0], "west to east"),
        ([31.0, 30.0, 28.0], [100.0, 101.0], "lat must be evenly spaced"),
        ([31.0], [100.0], "one cell alone"),
    ],
)
def test_data_on_no_grid_are_refused(lat, lon, words):
    with pytest.raises(InputError, match=words):
        grid_of(xr.DataArray(np.zeros((len(lat), len(lon))), {"lat": lat, "lon": lon}, ("lat", "lon")))


def test_ease2_data_off_the_lattice_are_refused():
    grid = Grid.ease2(36, *SICHUAN)
    with pytest.raises(InputError, match="not centres of consecutive cells"):
        grid_of(on(grid).assign_coords(lon=grid.lon + 0.18))
    with pytest.raises(InputError, match="1-D coordinate lon"):
        grid_of(xr.DataArray(np.zeros((2, 2)), dims=("y", "x")))
