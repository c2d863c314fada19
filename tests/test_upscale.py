"""Upscaling: area-weighted means, majorities, class fractions and circular means, on any chunking, whole or tile by tile."""

import pickle

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale.errors import InputError
from smscale.features.upscale import Upscaler, class_fractions, kind_of, upscale
from smscale.grid import Grid, authalic_q, coords_of
from smscale.kernels import overlap as kernel

FINE = Grid.latlon(101.0, 29.0, 103.0, 31.0, step=0.05)
COARSE = Grid.ease2(36, 101.0, 29.0, 103.0, 31.0)


def field(values, name="lst", grid=FINE, **attrs):
    lead = [f"d{i}" for i in range(np.ndim(values) - 2)]
    return xr.DataArray(values, coords_of(grid), (*lead, "lat", "lon"), name, attrs)


def gapped(shape, seed=0, share=0.3):
    rng = np.random.default_rng(seed)
    values = rng.normal(290, 5, shape).astype(np.float32)
    values[rng.random(shape) < share] = np.nan
    return values


def dense_mean(values, fine, coarse):
    """Mean and valid area by dense matrix products in float64."""
    lat, lon = fine.overlap(coarse)
    valid = np.isfinite(values)
    sums = np.einsum("...yx,my,nx->...mn", np.where(valid, values, 0).astype(float), lat, lon, optimize=True)
    return sums, np.einsum("...yx,my,nx->...mn", valid.astype(float), lat, lon, optimize=True)


# -- kernels ------------------------------------------------------------------------------------


def test_mean_state_equals_dense_products():
    values = gapped((3, *FINE.shape))
    part = kernel.overlap_of(*FINE.overlap(COARSE))
    state = kernel.merge([kernel.mean_state(values, part)], [part], COARSE.shape)
    sums, areas = dense_mean(values, FINE, COARSE)
    np.testing.assert_allclose(state[0], sums, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(state[1], areas, rtol=1e-12, atol=1e-15)


edges = st.lists(st.floats(0.02, 3.0), min_size=1, max_size=14).map(lambda widths: np.cumsum([0.0, *widths]))


@settings(max_examples=60, deadline=None)
@given(fine_x=edges, fine_y=edges, coarse_x=edges, coarse_y=edges, seed=st.integers(0, 99), single=st.booleans())
def test_mean_state_equals_dense_products_on_any_grids(fine_x, fine_y, coarse_x, coarse_y, seed, single):
    """Cells of any width, grids that only partly meet: every number of fine rows in a coarse one occurs."""
    fine, coarse = Grid(100 + fine_x, 40 - fine_y), Grid(101 + coarse_x, 39.5 - coarse_y)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, *fine.shape)).astype(np.float32 if single else np.float64)
    values[rng.random(values.shape) < 0.3] = np.nan
    part = kernel.overlap_of(*fine.overlap(coarse))
    state = kernel.merge([kernel.mean_state(values, part)], [part], coarse.shape)
    for found, expected in zip(state, dense_mean(values, fine, coarse), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_an_infinite_value_reaches_its_own_coarse_cell_only():
    values = np.ones((1, *FINE.shape), np.float32)
    values[0, 20, 20] = np.inf
    part = kernel.overlap_of(*FINE.overlap(COARSE))
    sums = kernel.mean_state(values, part)[0, 0]
    row, col = COARSE.index(FINE.lon[20], FINE.lat[20])
    assert np.isinf(sums[row - part.row0, col - part.col0])
    assert np.isinf(sums).sum() <= 4  # a fine cell on a corner touches four
    assert not np.isnan(sums).any()


def test_bands_hold_every_nonzero_entry():
    matrix = np.array([[0, 1.0, 2], [0, 0, 0], [3, 0, 4]])
    found = kernel.bands(matrix)
    assert found.start.tolist() == [1, 0, 0]
    assert found.stop.tolist() == [3, 0, 3]
    assert found.weights.tolist() == [[1, 2, 0], [0, 0, 0], [3, 0, 4]]


def test_overlap_areas_of_a_covered_cell_sum_to_its_area():
    inner = Grid.ease2(36, 101.5, 29.5, 102.5, 30.5)
    lat, lon = Grid.latlon(100, 28, 104, 32, step=0.1).overlap(inner)
    np.testing.assert_allclose(
        np.outer(lat.sum(1), lon.sum(1)), kernel.cell_areas(inner.lat_edges, inner.lon_edges), rtol=1e-12
    )


def test_class_areas_equal_one_mean_per_class():
    classes = np.arange(1, 18, dtype=np.uint8)
    values = np.random.default_rng(1).choice([1, 2, 10, 17, 255], (2, *FINE.shape)).astype(np.uint8)
    part = kernel.overlap_of(*FINE.overlap(COARSE))
    state = kernel.class_state(values, part, classes)
    for i, c in enumerate(classes):
        single = kernel.mean_state((values == c).astype(np.float32), part)[0]
        np.testing.assert_allclose(state[i], single, rtol=1e-12, atol=1e-15)


def test_a_block_outside_the_coarse_grid_adds_nothing():
    away = Grid.latlon(0, 0, 1, 1, step=0.5)
    part = kernel.overlap_of(*away.overlap(COARSE))
    assert part.shape == (0, 0)
    assert kernel.merge([kernel.mean_state(np.ones((1, 2, 2), np.float32), part)], [part], COARSE.shape).sum() == 0


# -- hand-computed ------------------------------------------------------------------------------

HALVES = Grid.latlon(100, 30, 101, 31, step=0.5)
ONE = Grid.latlon(100, 30, 101, 31, step=1)
NORTH = float((authalic_q(31) - authalic_q(30.5)) / (authalic_q(31) - authalic_q(30)))


def test_mean_of_two_by_two_cells_is_weighted_by_latitude_band():
    found = upscale(field([[1.0, 2.0], [3.0, 6.0]], grid=HALVES), ONE)
    assert found.item() == pytest.approx(1.5 * NORTH + 4.5 * (1 - NORTH), rel=1e-7)
    assert found.valid_fraction.item() == pytest.approx(1.0)


def test_missing_cells_lower_the_valid_fraction_and_are_left_out_of_the_mean():
    found = upscale(field([[1.0, np.nan], [3.0, 6.0]], grid=HALVES), ONE)
    area = NORTH / 2 + (1 - NORTH)
    assert found.valid_fraction.item() == pytest.approx(area, rel=1e-6)
    assert found.item() == pytest.approx((1.0 * NORTH / 2 + 4.5 * (1 - NORTH)) / area, rel=1e-6)


@pytest.mark.parametrize(("least", "missing"), [(0.0, False), (0.25, False), (0.26, True), (1.0, True)])
def test_a_cell_needs_the_minimum_valid_fraction(least, missing):
    found = upscale(field([[np.nan, np.nan], [np.nan, 6.0]], grid=HALVES), ONE, least)
    share = (1 - NORTH) / 2  # 0.2513: the southern cells are the larger ones
    assert 0.25 < share < 0.26
    assert np.isnan(found.item()) == missing


def test_a_cell_without_any_valid_value_is_missing_even_at_fraction_zero():
    assert np.isnan(upscale(field(np.full((2, 2), np.nan), grid=HALVES), ONE, 0.0).item())


def test_whole_covered_counts_only_what_the_fine_grid_reaches():
    half = field([[1.0], [3.0]], grid=HALVES.window(slice(0, 2), slice(0, 1)))
    assert upscale(half, ONE, 0.0).valid_fraction.item() == pytest.approx(0.5)
    assert upscale(half, ONE, 0.9, whole="covered").valid_fraction.item() == pytest.approx(1.0)
    assert np.isnan(upscale(half, ONE, 0.9).item())


def test_majority_of_equal_areas_is_the_lowest_class():
    assert upscale(field(np.array([[9, 4], [9, 4]], np.uint8), "land_cover", HALVES), ONE).item() == 4


def test_majority_goes_by_area_not_by_count():
    mixed = Grid(np.array([100, 100.2, 100.4, 101]), np.array([31.0, 30]))
    ds = xr.DataArray(np.array([[[1, 1, 2]]], np.uint8), dims=("t", "y", "x"))
    part = kernel.overlap_of(*mixed.overlap(ONE))
    state = kernel.class_state(ds.values, part, np.array([1, 2], np.uint8))
    area = kernel.cell_areas(ONE.lat_edges, ONE.lon_edges)
    winner, fraction = kernel.majority_of(state, area, 0.5, np.array([1, 2], np.uint8))
    assert winner.item() == 2
    assert fraction.item() == pytest.approx(1)


def test_majority_of_missing_classes_is_the_fill():
    found = upscale(field(np.array([[255, 255], [255, 4]], np.uint8), "land_cover", HALVES), ONE)
    assert found.dtype == np.uint8
    assert found.item() == 255


def test_directions_average_across_north():
    band = HALVES.window(slice(0, 1), slice(0, 2))
    found = upscale(field([[350.0, 20.0]], "aspect", band), ONE, 0.4)
    assert found.item() == pytest.approx(5.0, abs=1e-4)


def test_opposite_directions_have_no_mean():
    band = HALVES.window(slice(0, 1), slice(0, 2))
    found = upscale(field([[90.0, 270.0]], "aspect", band), ONE, 0.4)
    assert np.isnan(found.item())
    assert found.valid_fraction.item() > 0.4


# -- identities and properties ------------------------------------------------------------------


def test_constant_in_is_constant_out_whatever_is_missing():
    values = np.where(np.isnan(gapped(FINE.shape, share=0.4)), np.nan, np.float32(287.3)).astype(np.float32)
    found = upscale(field(values), COARSE, 0.0).values
    assert np.unique(found[np.isfinite(found)]).tolist() == [np.float32(287.3)]


def test_a_field_of_its_own_longitude_has_the_centre_of_the_coarse_cell():
    """Longitude is linear across columns: its exact mean over a cell is the cell's middle."""
    wide = Grid.latlon(100, 28, 104, 32, step=0.01)
    lon = np.broadcast_to(wide.lon, wide.shape).astype(np.float64)
    found = upscale(field(lon, "longitude", wide), COARSE, 1.0)
    # Within a fine column cut by the cell's edge the field is a step: at most 0.01 / 8 of a cell from linear.
    np.testing.assert_allclose(found, np.broadcast_to(COARSE.lon, COARSE.shape), atol=5e-5)


def test_a_field_of_its_own_latitude_has_the_area_mean_latitude_of_the_coarse_cell():
    wide = Grid.latlon(100, 28, 104, 32, step=0.01)
    lat = np.broadcast_to(wide.lat[:, None], wide.shape).astype(np.float64)
    found = upscale(field(lat, "latitude", wide), COARSE, 1.0)
    q = np.linspace(authalic_q(COARSE.lat_edges[:-1]), authalic_q(COARSE.lat_edges[1:]), 2001)
    fine_lat = np.linspace(27, 33, 600_001)
    expected = np.interp(q, authalic_q(fine_lat), fine_lat).mean(axis=0)
    np.testing.assert_allclose(found[:, 0], expected, atol=5e-5)


def test_upscaling_to_the_same_grid_changes_nothing():
    values = gapped(FINE.shape)
    np.testing.assert_array_equal(upscale(field(values), FINE), values)


def test_rounding_of_equal_edges_reaches_no_neighbour():
    """16 cells of 9 km are one 36 km cell; the cells around it share edges with them, up to rounding."""
    coarse = Grid.ease2(36, 100, 29, 101, 30)
    w, s, e, n = coarse.window(slice(1, 2), slice(1, 2)).bounds
    fine = Grid.ease2(9, w + 1e-6, s + 1e-6, e - 1e-6, n - 1e-6)
    assert fine.shape == (4, 4)
    found = upscale(field(np.arange(16.0).reshape(4, 4), grid=fine), coarse, 0.0)
    assert np.argwhere(np.isfinite(found.values)).tolist() == [[1, 1]]
    assert found.values[1, 1] == pytest.approx(7.5)
    assert found.valid_fraction.values[1, 1] == pytest.approx(1, abs=1e-7)


chunk_sizes = st.tuples(st.integers(1, 3), st.integers(7, 40), st.integers(7, 40))


@settings(max_examples=15, deadline=None)
@given(chunks=chunk_sizes, name=st.sampled_from(["lst", "aspect", "land_cover"]))
def test_any_chunking_gives_the_same(chunks, name):
    rng = np.random.default_rng(3)
    if name == "land_cover":
        values = rng.choice([1, 4, 4, 10, 255], (3, *FINE.shape)).astype(np.uint8)
    else:
        values = gapped((3, *FINE.shape)) % 360
    plain = upscale(field(values, name), COARSE)
    lazy = upscale(field(da.from_array(values, chunks=chunks), name), COARSE)
    assert isinstance(lazy.data, da.Array)
    assert isinstance(lazy.valid_fraction.data, da.Array)
    assert lazy.dtype == plain.dtype
    computed = lazy.compute(scheduler="synchronous")
    if name == "land_cover":
        np.testing.assert_array_equal(computed, plain)
    else:
        np.testing.assert_allclose(computed, plain, rtol=3e-7)
    np.testing.assert_allclose(computed.valid_fraction, plain.valid_fraction, rtol=3e-7)


# -- class fractions ----------------------------------------------------------------------------


def classes_of(shape, seed=4):
    return np.random.default_rng(seed).choice([1, 4, 4, 10, 17, 255], shape).astype(np.uint8)


def test_class_fractions_are_shares_of_the_valid_area():
    found = class_fractions(field(np.array([[4, 9], [255, 4]], np.uint8), "land_cover", HALVES), ONE)
    north, south = NORTH / 2, (1 - NORTH) / 2
    valid = 2 * north + south
    assert found.dims == ("igbp_class", "lat", "lon")
    assert found.dtype == np.float32
    assert found.sel(igbp_class=4).item() == pytest.approx((north + south) / valid, rel=1e-6)
    assert found.sel(igbp_class=9).item() == pytest.approx(north / valid, rel=1e-6)
    assert float(found.sum()) == pytest.approx(1, rel=1e-6)
    assert found.valid_fraction.item() == pytest.approx(valid, rel=1e-6)


def test_class_fractions_need_the_minimum_valid_fraction():
    cover = field(np.array([[4, 255], [255, 255]], np.uint8), "land_cover", HALVES)
    assert class_fractions(cover, ONE, 0.3).isnull().all()
    assert class_fractions(cover, ONE, 0.2).sel(igbp_class=4).item() == 1


def test_class_fractions_equal_the_upscaled_indicator_of_each_class():
    values = classes_of((2, *FINE.shape))
    found = class_fractions(field(values, "land_cover"), COARSE, 0.3)
    for c in (1, 4, 10, 17):
        indicator = np.where(values == 255, np.nan, values == c)
        np.testing.assert_allclose(found.sel(igbp_class=c), upscale(field(indicator), COARSE, 0.3), atol=1e-7)


def test_class_fractions_of_another_variable_are_named_for_it():
    found = class_fractions(
        field(np.array([[7.0, 7.0], [np.nan, 200.0]]), "texture", HALVES, flag_values=[7, 200]), ONE
    )
    assert found.dims == ("texture_class", "lat", "lon")
    assert found.texture_class.values.tolist() == [7, 200]


@pytest.mark.parametrize("name", ["lst", "aspect"])
def test_class_fractions_of_what_holds_no_classes_are_refused(name):
    with pytest.raises(InputError, match="which classes it holds"):
        class_fractions(field(np.zeros(FINE.shape), name), COARSE)


@settings(max_examples=10, deadline=None)
@given(chunks=chunk_sizes)
def test_class_fractions_of_any_chunking_are_the_same(chunks):
    values = classes_of((3, *FINE.shape))
    plain = class_fractions(field(values, "land_cover"), COARSE)
    lazy = class_fractions(field(da.from_array(values, chunks=chunks), "land_cover"), COARSE)
    assert isinstance(lazy.data, da.Array)
    computed = lazy.compute(scheduler="synchronous")
    np.testing.assert_allclose(computed, plain, rtol=3e-7)
    np.testing.assert_allclose(computed.valid_fraction, plain.valid_fraction, rtol=3e-7)


# -- nearest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lst", "aspect"])
def test_nearest_takes_the_fine_cell_whose_centre_is_nearest(name):
    """Every fine cell says which it is."""
    values = np.arange(FINE.shape[0] * FINE.shape[1], dtype=np.float32).reshape(FINE.shape) / 10
    found = upscale(field(values, name), COARSE, how="nearest")
    for i, j in np.argwhere(np.isfinite(found.values)):
        row = np.abs(FINE.lat - COARSE.lat[i]).argmin()
        col = np.abs(FINE.lon - COARSE.lon[j]).argmin()
        assert found.values[i, j] == values[row, col]
    inside = (FINE.index(COARSE.lon[None, :], COARSE.lat[:, None])[0] >= 0).sum()
    assert np.isfinite(found.values).sum() == inside > 20
    np.testing.assert_array_equal(found.valid_fraction, np.isfinite(found))


def test_nearest_of_a_missing_cell_is_missing_whatever_lies_around():
    band = Grid.latlon(100, 30, 101, 31, step=0.2)
    values = np.ones(band.shape, np.float32)
    values[2, 2] = np.nan
    found = upscale(field(values, grid=band), ONE, 0.0, how="nearest")
    assert np.isnan(found.item())
    assert found.valid_fraction.item() == 0


def test_nearest_of_classes_stays_uint8():
    band = Grid.latlon(100, 30, 101, 31, step=0.2)
    values = np.full(band.shape, 4, np.uint8)
    values[2, 2] = 9
    found = upscale(field(values, "land_cover", band), ONE, how="nearest")
    assert (found.dtype, found.item()) == (np.uint8, 9)


def test_nearest_on_the_corner_of_four_cells_takes_the_south_eastern_one_everywhere():
    """Centres of 36 km cells are corners of 9 km cells, up to rounding."""
    coarse = Grid.ease2(36, 100, 29, 103, 32)
    w, s, e, n = coarse.bounds
    fine = Grid.ease2(9, w + 1e-6, s + 1e-6, e - 1e-6, n - 1e-6)
    rows, cols = np.indices(fine.shape)
    found = upscale(field((1000 * rows + cols).astype(np.float32), grid=fine), coarse, how="nearest")
    i, j = np.indices(coarse.shape)
    np.testing.assert_array_equal(found, 1000 * (4 * i + 2) + 4 * j + 2)


# -- tile by tile -------------------------------------------------------------------------------

KINDS = {"continuous": "lst", "direction": "aspect", "class": "land_cover"}


def values_of(kind, steps=2):
    return classes_of((steps, *FINE.shape)) if kind == "class" else gapped((steps, *FINE.shape)) % 360


def tiles_of(grid, height, width):
    return [
        (slice(i, min(i + height, grid.shape[0])), slice(j, min(j + width, grid.shape[1])))
        for i in range(0, grid.shape[0], height)
        for j in range(0, grid.shape[1], width)
    ]


def streamed(kind, values, tiles, how="area", whole="cell"):
    upscaler = Upscaler(FINE, COARSE, kind, how=how, whole=whole)
    for rows, cols in tiles:
        upscaler.add(values[:, rows, cols], rows, cols)
    return upscaler


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)), how=st.sampled_from(["area", "nearest"]), whole=st.sampled_from(["cell", "covered"]),
    size=st.tuples(st.integers(5, 40), st.integers(5, 40)), seed=st.integers(0, 99),
)  # fmt: skip
def test_tiles_of_any_size_in_any_order_give_what_the_whole_gives(kind, how, whole, size, seed):
    values = values_of(kind)
    tiles = tiles_of(FINE, *size)
    shuffled = [tiles[i] for i in np.random.default_rng(seed).permutation(len(tiles))]
    expected = upscale(field(values, KINDS[kind]), COARSE, 0.4, whole, how)
    found, fraction = streamed(kind, values, shuffled, how, whole).result(0.4)
    assert found.dtype == expected.dtype
    if kind == "class" or how == "nearest":
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-4 if kind == "direction" else 0)
    np.testing.assert_allclose(fraction, expected.valid_fraction, rtol=3e-7)


def test_tiles_in_the_same_order_give_the_same_bytes():
    values, tiles = values_of("continuous"), tiles_of(FINE, 11, 13)
    once, again = (streamed("continuous", values, tiles).result() for _ in range(2))
    assert [a.tobytes() for a in once] == [a.tobytes() for a in again]


def test_streamed_class_fractions_equal_those_of_the_whole():
    values = values_of("class")
    found, fraction = streamed("class", values, tiles_of(FINE, 9, 17)).class_fractions(0.3)
    expected = class_fractions(field(values, "land_cover"), COARSE, 0.3)
    np.testing.assert_allclose(found, expected, rtol=3e-7)
    np.testing.assert_allclose(fraction, expected.valid_fraction, rtol=3e-7)


@pytest.mark.parametrize("kind", list(KINDS))
def test_upscalers_of_parts_travel_and_merge(kind):
    values, tiles = values_of(kind), tiles_of(FINE, 20, 20)
    west, east = (pickle.loads(pickle.dumps(streamed(kind, values, part))) for part in (tiles[::2], tiles[1::2]))
    west.merge(east)
    west.merge(Upscaler(FINE, COARSE, kind))
    whole = streamed(kind, values, tiles).result()
    for found, expected in zip(west.result(), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=3e-7)


def test_tiles_that_are_not_added_are_missing():
    found, fraction = streamed("continuous", values_of("continuous"), [(slice(0, 20), slice(0, 40))]).result(0.0)
    south = COARSE.lat_edges[:-1] < FINE.lat_edges[20]
    assert np.isnan(found[:, south]).all()
    assert (fraction[:, south] == 0).all()
    assert np.isfinite(found[:, ~south]).any()


def test_an_upscaler_does_not_grow_with_the_fine_grid():
    fine = Grid.latlon(101, 29, 103, 31, step=0.01)
    upscaler = Upscaler(fine, COARSE)
    upscaler.add(np.ones((1, *fine.shape), np.float32))
    sums = 2 * COARSE.shape[0] * COARSE.shape[1] * 8
    overlaps = (COARSE.shape[0] + COARSE.shape[1]) * fine.shape[0] * 8
    assert len(pickle.dumps(upscaler)) < sums + 3 * overlaps < fine.shape[0] * fine.shape[1] * 4


def test_what_does_not_fit_an_upscaler_is_refused():
    upscaler = Upscaler(FINE, COARSE)
    with pytest.raises(InputError, match="nothing was added"):
        upscaler.result()
    upscaler.add(np.ones((2, 20, 40)), slice(0, 20))
    with pytest.raises(InputError, match=r"a tile must be \(t, 20, 40\)"):
        upscaler.add(np.ones((2, 20, 20)), slice(20, 40))
    with pytest.raises(InputError, match="overlaps rows 0:20"):
        upscaler.add(np.ones((2, 21, 40)), slice(19, 40))
    with pytest.raises(InputError, match="same number of steps: 2 before, 3 now"):
        upscaler.add(np.ones((3, 20, 40)), slice(20, 40))
    with pytest.raises(InputError, match="overlaps"):
        upscaler.merge(upscaler)
    for other in ({"kind": "direction"}, {"how": "nearest"}, {"whole": "covered"}, {"classes": [1, 2]}):
        with pytest.raises(InputError, match="do not merge"):
            upscaler.merge(Upscaler(FINE, COARSE, **other))
    with pytest.raises(InputError, match="only classes"):
        upscaler.class_fractions()
    with pytest.raises(InputError, match="min_valid_fraction"):
        upscaler.result(50)
    upscaler.add(np.ones((2, 20, 40)), slice(20, 40))
    assert np.nanmax(upscaler.result(0.0)[0]) == 1  # what was refused left nothing behind


@pytest.mark.parametrize(
    ("given", "words"), [({"kind": "mean"}, "kind must be"), ({"how": "bilinear"}, "how 'area' or 'nearest'")]
)
def test_an_upscaler_of_unknown_manner_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        Upscaler(FINE, COARSE, **given)


# -- labels -------------------------------------------------------------------------------------


def dataset():
    return xr.Dataset(
        {
            "lst": (("time", "lat", "lon"), gapped((2, *FINE.shape)), {"units": "K"}),
            "land_cover": (("lat", "lon"), np.full(FINE.shape, 4, np.uint8)),
            "note": ("time", [1.0, 2.0]),
        },
        {
            **coords_of(FINE),
            "time": np.array(["2017-06-10", "2017-06-11"], "datetime64[ns]"),
            "overpass": ("time", ["AM", "PM"]),
        },
        {"crs": "EPSG:4326", "title": "kept"},
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_dataset_keeps_names_dims_coords_and_attrs(chunked):
    fine = dataset().chunk(lat=17, lon=13) if chunked else dataset()
    found = upscale(fine, COARSE)
    assert set(found.data_vars) == {"lst", "valid_fraction_lst", "land_cover", "valid_fraction_land_cover", "note"}
    assert found.lst.dims == ("time", "lat", "lon")
    assert found.lst.attrs["units"] == "K"
    assert found.attrs == {"crs": "EPSG:6933", "title": "kept"}
    assert found.overpass.values.tolist() == ["AM", "PM"]
    np.testing.assert_array_equal(found.lat, COARSE.lat)
    np.testing.assert_array_equal(found.x, COARSE.x)
    assert found.land_cover.dtype == np.uint8
    assert (found.lst.chunks is not None) == chunked


def test_lead_dimensions_of_any_number_and_order():
    values = gapped((2, 3, *FINE.shape))
    plain = upscale(field(values), COARSE)
    turned = upscale(field(values).transpose("lat", "d1", "lon", "d0"), COARSE)
    np.testing.assert_array_equal(turned.transpose(*plain.dims), plain)
    lazy = upscale(field(da.from_array(values, chunks=(1, 2, 15, 40))), COARSE).compute(scheduler="synchronous")
    np.testing.assert_allclose(lazy, plain, rtol=3e-7)


@pytest.mark.parametrize(
    ("name", "attrs", "kind"),
    [
        ("land_cover", {}, "class"),
        ("aspect", {}, "direction"),
        ("lst", {"flag_values": [1]}, "continuous"),
        ("soil_texture", {"flag_values": [1, 2], "flag_meanings": "sand clay"}, "class"),
        ("wd", {"units": "degree", "standard_name": "wind_from_direction"}, "direction"),
        ("tilt", {"units": "degree"}, "continuous"),
    ],
)
def test_kind_is_told_by_schema_name_then_cf_attributes(name, attrs, kind):
    assert kind_of(xr.DataArray(0.0, name=name, attrs=attrs)) == kind


def test_classes_by_flag_values_stay_uint8():
    found = upscale(field(np.array([[7.0, 7.0], [np.nan, 200.0]]), "texture", HALVES, flag_values=[7, 200]), ONE)
    assert found.dtype == np.uint8
    assert found.item() == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.sortby("lat"), "lat ascends"),
        (lambda f: f.assign_coords(lon=f.lon - 200), "do not meet"),
        (lambda f: f.astype("datetime64[ns]"), "no area mean"),
        (lambda f: f.rename("x_flag").assign_attrs(flag_masks=[1]), "bit field"),
        (lambda f: f.rename(lat="y"), "1-D coordinate lat"),
        (lambda f: f.assign_coords(lon=100 + (f.lon - 100) ** 2), "evenly spaced"),
    ],
)
def test_bad_input_is_refused_with_one_clear_line(change, words):
    with pytest.raises(InputError, match=words) as error:
        upscale(change(field(np.zeros(FINE.shape))), COARSE)
    assert "\n" not in str(error.value)


def test_a_minimum_fraction_outside_zero_to_one_is_refused():
    with pytest.raises(InputError, match="min_valid_fraction"):
        upscale(field(np.zeros(FINE.shape)), COARSE, 50)
