"""Coarse-mean closure: exact means over whole and gappy footprints, any blocks in any order, a smooth and bounded surface."""

import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale.errors import InputError
from smscale.fusion import closure as c
from smscale.fusion.closure import CLOSED, LIMITED, NO_RETRIEVAL, TOO_LITTLE_VALID, errors, solve
from smscale.fusion.closure_sums import Sums, block_sums, merge
from smscale.grid import Grid, coords_of
from smscale.kernels.overlap import cell_areas
from smscale.schema import Status

FINE = Grid.latlon(100.0, 29.0, 102.0, 31.0, step=0.05)
COARSE = Grid.ease2(36, 100.0, 29.0, 102.0, 31.0)
#: 9 km cells of which 4 x 4 make up a coarse cell.
WHOLE = Grid.ease2(36).window(slice(100, 108), slice(700, 709))
NINE = Grid.ease2(9).window(slice(400, 432), slice(2800, 2836))
APART, CLIPPED = int(Status.CLOSURE_NOT_APPLIED), int(Status.CLIPPED)
#: float32 maps about 0.3, and a solution stopped at 1e-10 of the residuals.
ROUNDING = 1e-6


def background(grid=FINE, steps=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.15, 0.35, (steps, *grid.shape)).astype(np.float32)


def clouds(shape, kind, rng):
    """Cells that are missing: scattered, the western halves of the coarse cells, bands of rows, or none."""
    if kind == "scattered":
        return rng.random(shape) < 0.5
    gone = np.zeros(shape, bool)
    if kind == "halves":
        inner = (FINE.lon - COARSE.lon_edges[0]) % np.diff(COARSE.lon_edges)[0]
        gone[:, :, inner < np.diff(COARSE.lon_edges)[0] / 2] = True
    if kind == "bands":
        gone[:, np.arange(shape[1]) % 7 < 5] = True
    return gone


def retrievals(sums, seed=1, spread=0.02, silent=0.3):
    """Coarse values near the map's own means; some cells have none."""
    rng = np.random.default_rng(seed)
    mean = np.where(np.isfinite(sums.mean()), sums.mean(), 0.25)
    smap = mean + rng.normal(0, spread, mean.shape)
    smap[rng.random(mean.shape) < silent] = np.nan
    return smap


def dense_mean(field, grid, coarse):
    """Area-weighted means over the valid parts, and valid shares of the whole coarse cells, by dense products."""
    lat, lon = grid.overlap(coarse)
    valid = np.isfinite(field)
    area = np.einsum("tyx,my,nx->tmn", valid.astype(float), lat, lon, optimize=True)
    total = np.einsum("tyx,my,nx->tmn", np.where(valid, field, 0).astype(float), lat, lon, optimize=True)
    with np.errstate(invalid="ignore"):
        return np.where(area > 0, total / area, np.nan), area / cell_areas(coarse.lat_edges, coarse.lon_edges)


def closed_of(field, smap, grid=FINE, coarse=COARSE, **kwargs):
    sums = merge([block_sums(field, grid, coarse)], coarse)
    found = solve(sums, smap, coarse, **kwargs)
    return found, *found.apply(field, grid, bounds=(-9.0, 9.0))


def flat(value, grid=FINE, steps=1):
    return np.full((steps, *grid.shape), value, np.float32)


# -- means --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "grid", "coarse"),
    [(kind, FINE, COARSE) for kind in ("none", "scattered", "halves", "bands")]
    + [(kind, NINE, WHOLE) for kind in ("none", "scattered", "bands")],
    ids=lambda value: value if isinstance(value, str) else value.crs,
)
def test_exact_closure_gives_the_means_of_the_valid_parts(kind, grid, coarse):
    field = background(grid)
    field[clouds(field.shape, kind, np.random.default_rng(3))] = np.nan
    smap = retrievals(merge([block_sums(field, grid, coarse)], coarse))
    found, closed, _, _ = closed_of(field, smap, grid, coarse, least=0.2, limit=1.0)
    np.testing.assert_array_equal(np.isnan(closed), np.isnan(field))
    mean, share = dense_mean(closed, grid, coarse)
    np.testing.assert_array_equal(found.closed, np.isfinite(smap) & (share > 0.2))
    assert 0.2 < found.closed.mean() < 0.8
    np.testing.assert_allclose(mean[found.closed], smap[found.closed], atol=ROUNDING)


@settings(max_examples=40, deadline=None)
@given(
    west=st.floats(100.0, 100.3),
    north=st.floats(30.7, 31.0),
    per_degree=st.sampled_from([7, 10, 30]),
    share=st.floats(0.0, 0.6),
    seed=st.integers(0, 999),
)
def test_means_are_exact_on_any_fine_grid(west, north, per_degree, share, seed):
    """Fine cells of any size and place: each coarse edge cuts them elsewhere."""
    grid = Grid(west + np.arange(per_degree + 1) / per_degree, north - np.arange(per_degree + 1) / per_degree)
    field = background(grid, 2, seed)
    field[np.random.default_rng(seed).random(field.shape) < share] = np.nan
    smap = retrievals(merge([block_sums(field, grid, COARSE)], COARSE), seed)
    found, closed, _, _ = closed_of(field, smap, grid, least=0.3, limit=2.0)
    mean, _ = dense_mean(closed, grid, COARSE)
    exact = found.state == CLOSED
    np.testing.assert_allclose(mean[exact], smap[exact], atol=2 * ROUNDING)
    assert not exact[:, [0, -1]].all()


def test_one_row_of_valid_cells_is_closed_where_asked():
    field = flat(np.nan)
    row = int(np.abs(FINE.lat - COARSE.lat[2]).argmin())
    field[:, row] = 0.2
    _, share = dense_mean(field, FINE, COARSE)
    found, closed, _, _ = closed_of(field, np.full((1, *COARSE.shape), 0.25), least=0.05)
    assert found.counts()["closed"] == (share >= 0.05).sum() > 3
    mean, _ = dense_mean(closed, FINE, COARSE)
    np.testing.assert_allclose(mean[found.closed], 0.25, atol=ROUNDING)
    assert not closed_of(field, np.full((1, *COARSE.shape), 0.25))[0].closed.any()


def test_one_residual_everywhere_is_added_everywhere_within():
    """Inside a wide field of equal residuals the surface is that residual."""
    found, closed, _, _ = closed_of(flat(0.2, NINE), np.full((1, *WHOLE.shape), 0.25), NINE, WHOLE)
    assert found.closed.all()
    np.testing.assert_allclose(closed[0, 12:20, 12:24], 0.25, atol=1e-3)
    np.testing.assert_allclose(dense_mean(closed, NINE, WHOLE)[0], 0.25, atol=ROUNDING)


def test_one_closed_cell_by_hand():
    """M has one row m = (1, 4, 1) x (1, 4, 1) / 36, |m|^2 = 0.25: a = 4 m r, at the centre S = 4 r (3/4 4/6 + 2/8 1/6)^2."""
    smap = np.full((1, *WHOLE.shape), np.nan)
    smap[0, 4, 4] = 0.25
    grid = Grid.ease2(1).window(slice(36 * 100, 36 * 108), slice(36 * 700, 36 * 709))
    found = closed_of(flat(0.2, grid), smap, grid, WHOLE)[0]
    m = np.outer([1, 4, 1], [1, 4, 1]) / 36
    # M takes the splines at the centres of 36 x 36 cells: 1e-4 from their integrals
    np.testing.assert_allclose(found.coefficients[0, 4:7, 4:7], 4 * m * 0.05, rtol=1e-3)
    assert np.count_nonzero(found.coefficients) == 9
    middle = found.surface(grid)[0, 36 * 4 + 17 : 36 * 4 + 19, 36 * 4 + 17 : 36 * 4 + 19]
    np.testing.assert_allclose(middle, 4 * 0.05 * (0.75 * 4 / 6 + 0.25 / 6) ** 2, rtol=2e-3)


# -- where it is not closed ---------------------------------------------------------------------


def test_far_from_any_residual_nothing_is_added_and_the_status_says_so():
    smap = np.full((1, *WHOLE.shape), np.nan)
    smap[0, 4, 1] = 0.3
    found, closed, status, counts = closed_of(flat(0.2, NINE), smap, NINE, WHOLE)
    assert found.counts() == {"no_retrieval": 71, "too_little_valid": 0, "closed": 1, "limited": 0}
    own = np.zeros(NINE.shape, bool)
    own[16:20, 4:8] = True
    np.testing.assert_array_equal(status[0] == APART, ~own)
    np.testing.assert_array_equal(closed[0, :, 16:], np.float32(0.2))
    assert (closed[0, 8:28, :12] != np.float32(0.2)).all()
    assert counts == {"closed": 16, "closure_not_applied": own.size - 16, "limited": 0, "clipped": 0}


def test_missing_cells_get_no_bits_and_given_bits_stay():
    field = flat(0.2)
    field[0, :5] = np.nan
    status = np.full(field.shape, int(Status.LST_FILLED), np.uint32)
    found = solve(
        merge([block_sums(field, FINE, COARSE)], COARSE), np.full((1, *COARSE.shape), np.nan), COARSE
    )  # no retrieval at all
    closed, same, counts = found.apply(field, FINE, status=status, out=field)
    assert closed is field
    assert same is status
    assert (status[0, :5] == int(Status.LST_FILLED)).all()
    assert (status[0, 5:] == int(Status.LST_FILLED) | APART).all()
    np.testing.assert_array_equal(field[0, 5:], np.float32(0.2))
    assert counts["closed"] == 0


def test_a_cell_cut_by_the_border_counts_whole():
    """What lies outside the fine grid is not valid, though SMAP sees it."""
    field = flat(0.2)
    sums = merge([block_sums(field, FINE, COARSE)], COARSE)
    _, share = dense_mean(field, FINE, COARSE)
    np.testing.assert_allclose(sums.area(), share, atol=1e-12)
    assert share[0].min() < 0.5 < share[0, 2, 2]
    state = solve(sums, np.full(share.shape, 0.25), COARSE).state
    np.testing.assert_array_equal(state == TOO_LITTLE_VALID, share < 0.5)
    np.testing.assert_array_equal(state == CLOSED, share >= 0.5)
    assert solve(sums, np.full(share.shape, np.nan), COARSE).counts()["no_retrieval"] == share.size


def test_steps_do_not_touch_one_another():
    field = background()
    smap = retrievals(merge([block_sums(field, FINE, COARSE)], COARSE))
    found = closed_of(field, smap)[0]
    alone = [closed_of(field[i : i + 1], smap[i : i + 1])[0] for i in range(3)]
    for name in ("coefficients", "residual", "damping", "state"):
        np.testing.assert_array_equal(getattr(c.join(alone), name), getattr(found, name))
    np.testing.assert_array_equal(found.surface(FINE, [2, 0]), found.surface(FINE)[[2, 0]])


# -- damping, limits, bounds --------------------------------------------------------------------


def test_weighted_closure_by_hand():
    """Model variance 0.0025, retrieval variance 0.0075: a quarter of 0.08 is closed."""
    field = flat(0.2, NINE)
    smap = np.full((1, *WHOLE.shape), 0.28)
    found, closed, _, _ = closed_of(
        field, smap, NINE, WHOLE, kind="weighted", model_variance=0.0025, smap_variance=0.0075
    )
    np.testing.assert_allclose(found.damping, 0.25)
    np.testing.assert_allclose(found.residual, 0.08, rtol=1e-6)
    np.testing.assert_allclose(dense_mean(closed, NINE, WHOLE)[0], 0.22, atol=ROUNDING)
    np.testing.assert_allclose(found.target(merge([block_sums(field, NINE, WHOLE)], WHOLE)), 0.22, atol=ROUNDING)


def test_variances_of_cells_and_steps():
    field = flat(0.2, NINE, 2)
    smap_variance = np.full(WHOLE.shape, 0.01)
    smap_variance[0] = np.nan
    found, closed, _, _ = closed_of(
        field, np.full((2, *WHOLE.shape), 0.28), NINE, WHOLE, kind="weighted",
        model_variance=np.array([0.01, 0.03])[:, None, None], smap_variance=smap_variance,
    )  # fmt: skip
    assert (found.state[:, 0] == NO_RETRIEVAL).all()
    mean = dense_mean(closed, NINE, WHOLE)[0]
    np.testing.assert_allclose(mean[0, 1:], 0.24, atol=ROUNDING)
    np.testing.assert_allclose(mean[1, 1:], 0.26, atol=ROUNDING)


def test_the_limit_bites_and_is_counted():
    field, smap = flat(0.2, NINE), np.full((1, *WHOLE.shape), 0.21)
    smap[0, 4, 4] = 0.6
    found, closed, _, counts = closed_of(field, smap, NINE, WHOLE, limit=0.15)
    assert found.state[0, 4, 4] == LIMITED
    assert found.residual[0, 4, 4] == pytest.approx(0.4)
    lift = closed - field
    assert np.abs(lift).max() == pytest.approx(0.15, abs=1e-7)
    assert counts["limited"] == np.count_nonzero(np.abs(lift) > 0.15 - 1e-6) > 3
    np.testing.assert_allclose(lift, found.surface(NINE), atol=1e-7)
    mean = dense_mean(closed, NINE, WHOLE)[0]
    assert 0.3 < mean[0, 4, 4] < 0.35
    exact = found.state == CLOSED
    assert exact.sum() > 50
    np.testing.assert_allclose(mean[exact], smap[exact], atol=ROUNDING)


def test_bounds_clip_and_are_counted():
    field, smap = flat(0.02, NINE), np.full((1, *WHOLE.shape), 0.0)
    sums = merge([block_sums(field, NINE, WHOLE)], WHOLE)
    closed, status, counts = solve(sums, smap - 0.02, WHOLE).apply(field, NINE, bounds=(0.01, 0.6))
    assert closed.min() == np.float32(0.01)
    np.testing.assert_array_equal(status[0] & CLIPPED > 0, closed[0] == np.float32(0.01))
    assert counts["clipped"] == (status & CLIPPED > 0).sum() > 100


def test_half_empty_neighbours_of_opposite_residuals_stay_within_the_limit():
    """Valid strips on both sides of one edge ask for opposite corrections: what no smooth surface can do is held back."""
    grid = Grid.ease2(3).window(slice(1200, 1296), slice(8400, 8508))
    field = flat(np.nan, grid)
    field[:, :, 47:49] = 0.3
    smap = np.full((1, *WHOLE.shape), 0.2)
    smap[:, :, 4] = 0.4
    found, closed, _, counts = closed_of(field, smap, grid, WHOLE, least=0.05, limit=0.15)
    assert found.closed.sum() == 16
    assert found.counts()["limited"] == 16
    assert counts["limited"] == 0  # the limit bites where nothing is valid
    surface = found.surface(grid)
    assert np.abs(surface).max() == np.float32(0.15)
    error = errors(merge([block_sums(closed, grid, WHOLE)], WHOLE), smap, found.closed).report()
    assert error["rmse"] < 0.05


# -- smoothness ---------------------------------------------------------------------------------


def test_the_surface_is_smooth_across_coarse_edges():
    """Neither steps nor kinks: differences, and differences of those, are no larger at the edges of coarse cells than within."""
    grid = Grid.latlon(100.0, 29.0, 102.0, 31.0, step=0.01)
    field = background(grid, 2)
    smap = retrievals(merge([block_sums(field, grid, COARSE)], COARSE), spread=0.03)
    surface = closed_of(field, smap, grid)[0].surface(grid).astype(np.float64)
    for axis, (fine, edges) in {1: (-grid.lat, -COARSE.lat_edges), 2: (grid.lon, COARSE.lon_edges)}.items():
        slope = np.moveaxis(np.abs(np.diff(surface, axis=axis)), axis, 0)
        crossing = np.searchsorted(edges, fine[1:]) != np.searchsorted(edges, fine[:-1])
        assert crossing.sum() >= 4
        # beside an edge the surface is read up to half a fine cell away: 1.5 steps in one
        assert slope[crossing].max() < 1.6 * slope[~crossing].max()
        assert slope[~crossing].max() < 0.1 * np.abs(surface).max()


# -- blocks -------------------------------------------------------------------------------------


def cut(rng, n):
    at = np.unique(rng.integers(1, n, 3))
    return [slice(int(a), int(b)) for a, b in zip([0, *at], [*at, n], strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_any_blocks_in_any_order_give_the_same(seed):
    rng = np.random.default_rng(seed)
    field = background(steps=5)
    field[rng.random(field.shape) < 0.3] = np.nan
    whole = merge([block_sums(field, FINE, COARSE)], COARSE)
    places = [(t, y, x) for t in cut(rng, 5) for y in cut(rng, FINE.shape[0]) for x in cut(rng, FINE.shape[1])]
    parts = [block_sums(field[p], FINE.window(*p[1:]), COARSE, p[0].start) for p in places]
    merged = merge(parts, COARSE)
    np.testing.assert_allclose(merged.values, whole.values, rtol=1e-12, atol=1e-14)
    shuffled = merge((parts[i] for i in rng.permutation(len(parts))), COARSE)
    assert shuffled.values.tobytes() == merged.values.tobytes()

    smap = retrievals(whole)
    found = solve(merged, smap, COARSE)
    np.testing.assert_allclose(found.coefficients, solve(whole, smap, COARSE).coefficients, atol=1e-7)
    closed, status, counts = found.apply(field, FINE)
    for (t, y, x), count in zip(places, map(found.apply, *zip(*blocks(field, places), strict=True)), strict=True):
        assert count[0].tobytes() == closed[t, y, x].tobytes()
        assert count[1].tobytes() == status[t, y, x].tobytes()
        near = found.window(FINE.window(y, x), t)
        assert near.apply(field[t, y, x], FINE.window(y, x))[0].tobytes() == closed[t, y, x].tobytes()
    assert sum(counts[name] for name in ("closed", "closure_not_applied")) == np.isfinite(field).sum()


def blocks(field, places):
    return [(field[p], FINE.window(*p[1:]), p[0]) for p in places]


def test_sums_without_splines_give_the_same_means():
    field = background()
    field[:, 10:20] = np.nan
    plain, full = (block_sums(field, FINE, COARSE, spline=s) for s in (False, True))
    assert plain.values.nbytes * 5 == full.values.nbytes
    np.testing.assert_allclose(plain.mean(), full.mean(), rtol=1e-12)
    np.testing.assert_allclose(plain.area(), full.area(), atol=1e-12)


def test_points_are_the_surface_at_their_cells():
    field = background()
    smap = retrievals(merge([block_sums(field, FINE, COARSE)], COARSE))
    found, *_ = closed_of(field, smap)
    found = replace(found, limit=0.02)  # so that it bites
    rng = np.random.default_rng(5)
    lon, lat = rng.uniform(100, 102, 300), rng.uniform(29, 31, 300)
    row, col = FINE.index(lon, lat)
    np.testing.assert_array_equal(found.points(FINE, lon, lat), found.surface(FINE)[:, row, col])
    assert (np.abs(found.points(FINE, lon, lat)) == np.float32(0.02)).any()
    assert found.points(FINE, [99.0, np.nan], [30.0, 30.0], slice(0, 2)).tolist() == [[0, 0], [0, 0]]


def test_what_a_block_needs_does_not_grow_with_the_region():
    def carried(coarse):
        shape = (40, *coarse.shape)
        ring = np.zeros((40, coarse.shape[0] + 2, coarse.shape[1] + 2), np.float32)
        layers = (np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.uint8))
        return len(pickle.dumps(c.Closure(coarse, ring, *layers, 0.2).window(FINE, slice(8, 16))))

    wide = Grid.ease2(36, 60.0, 0.0, 140.0, 60.0)
    assert carried(wide) == carried(COARSE) < 10_000


def test_solutions_and_sums_travel_as_plain_arrays():
    field = background()
    sums = block_sums(field, FINE, COARSE, 7)
    found = closed_of(field, retrievals(merge([sums], COARSE)))[0]
    for value, kind in ((sums, Sums), (found, c.Closure)):
        buffer = io.BytesIO()
        np.savez(buffer, **value.to_arrays())
        buffer.seek(0)
        again = kind.from_arrays(dict(np.load(buffer, allow_pickle=False)))
        for name, array in value.to_arrays().items():
            np.testing.assert_array_equal(again.to_arrays()[name], array)
    assert again.surface(FINE).tobytes() == found.surface(FINE).tobytes()


# -- errors -------------------------------------------------------------------------------------


def test_errors_by_hand_add_up():
    sums = merge([block_sums(flat(0.2, NINE), NINE, WHOLE)], WHOLE)
    reference = np.full((1, *WHOLE.shape), np.nan)
    reference[0, 0, :2] = 0.1, 0.4
    found = errors(sums, reference)
    assert found.report() == pytest.approx({"n": 2, "rmse": np.sqrt(0.025), "bias": -0.05, "max": 0.2}, abs=1e-7)
    only = np.zeros(reference.shape, bool)
    only[0, 0, :3] = True, False, True
    first = errors(sums, reference, only)
    assert first.report() == pytest.approx({"n": 1, "rmse": 0.1, "bias": 0.1, "max": 0.1}, abs=1e-7)
    assert first + errors(sums, reference, ~only) == found
    assert errors(sums, reference * np.nan).report()["n"] == 0


def test_fusion_after_closure_is_seen_in_the_errors():
    field = background()
    sums = merge([block_sums(field, FINE, COARSE)], COARSE)
    smap = retrievals(sums)
    found, closed, _, _ = closed_of(field, smap)
    before, after, fused = (
        errors(merge([block_sums(f, FINE, COARSE, spline=False)], COARSE), smap, found.closed).report()
        for f in (field, closed, closed + np.float32(0.01))
    )
    assert before["rmse"] > 0.015
    assert after["max"] < ROUNDING
    assert fused["bias"] == pytest.approx(0.01, abs=ROUNDING)


# -- labels -------------------------------------------------------------------------------------


def labelled(values, grid, **coords):
    return xr.DataArray(
        values, {**coords_of(grid), **coords}, ("time", "lat", "lon"), "soil_moisture", {"crs": grid.crs}
    )


def test_labelled_fields_are_closed_whatever_the_order_of_their_dimensions():
    field = background()
    smap = retrievals(merge([block_sums(field, FINE, COARSE)], COARSE))
    fine, coarse = labelled(field, FINE), labelled(smap, COARSE)
    found = c.close(fine.transpose("lat", "lon", "time"), coarse.transpose("lon", "time", "lat"), limit=0.2)
    expected = solve(merge([block_sums(field, FINE, COARSE)], COARSE), smap, COARSE, limit=0.2).apply(field, FINE)
    np.testing.assert_array_equal(found.soil_moisture, expected[0])
    np.testing.assert_array_equal(found.status, expected[1])
    assert found.soil_moisture.dims == ("time", "lat", "lon")
    assert found.soil_moisture.attrs["units"] == "m3 m-3"


def bad(**changed):
    sums = merge([block_sums(flat(0.2), FINE, COARSE)], COARSE)
    given = {"sums": sums, "smap": np.full((1, *COARSE.shape), 0.2), "coarse": COARSE, **changed}
    return lambda: solve(given.pop("sums"), given.pop("smap"), given.pop("coarse"), **given)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (bad(kind="soft"), "'exact' or 'weighted'"),
        (bad(kind="weighted"), "needs model_variance"),
        (bad(kind="weighted", model_variance=-1.0), "not be negative"),
        (bad(kind="weighted", model_variance=0.0, smap_variance=0.0), "nor both zero"),
        (bad(kind="weighted", model_variance=np.ones(2)), "broadcast to"),
        (bad(least=50), "least must lie"),
        (bad(limit=0), "limit must be above 0"),
        (bad(smap=np.zeros((2, *COARSE.shape))), "smap must be"),
        (bad(sums=block_sums(flat(0.2, NINE), NINE, WHOLE)), "merge them first"),
        (bad(sums=block_sums(flat(0.2), FINE, COARSE, spline=False)), "spline=True"),
        (lambda: merge([], COARSE), "no sums to merge"),
        (lambda: merge([block_sums(flat(0.2), FINE, COARSE)] * 2, COARSE), "given twice"),
        (lambda: block_sums(flat(0.2)[0], FINE, COARSE), "a block must be"),
        (lambda: block_sums(flat(0.2), FINE, COARSE.window(slice(0, 3), slice(0, 3))), "covers the fine one"),
        (lambda: block_sums(flat(0.2, WHOLE), WHOLE, NINE), "smaller than the coarse"),
        (lambda: bad()().apply(flat(0.2, steps=2), FINE), "field must be float32"),
        (lambda: bad()().apply(flat(0.2), FINE, status=np.zeros((1, *FINE.shape), np.int64)), "status must be uint32"),
        (lambda: c.join([bad()(), bad(limit=0.3)()]), "do not join"),
        (
            lambda: c.close(
                labelled(flat(0.2), FINE, time=np.array(["2017-06-10"], "M8[ns]")),
                labelled(np.full((1, *COARSE.shape), 0.2), COARSE, time=np.array(["2017-06-11"], "M8[ns]")),
            ),
            "same times",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_one_clear_line(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


# -- a real field -------------------------------------------------------------------------------


@pytest.mark.real_data
def test_closure_brings_interpolated_maps_nearer_to_the_real_field(real):
    """SMAP L4 at 9 km, coarsened with a third of its cells hidden: the closed map is nearer to what was hidden from it, too."""
    import h5py

    with h5py.File(real("smap/SMAP_L4_SM_aup_input.h5")) as file:
        truth = file["Analysis_Data/sm_surface_analysis"][:, 1:1121].astype(np.float32)
    truth[truth == -9999] = np.nan
    fine, coarse = (
        Grid.ease2(9).window(slice(40, 548), slice(88, 1208)),
        Grid.ease2(36).window(slice(10, 137), slice(22, 302)),
    )
    target = merge([block_sums(truth[None], fine, coarse)], coarse).mean()
    flat_map = np.where(np.isfinite(truth), np.float32(0.25), np.nan).astype(np.float32)[None]
    rng = np.random.default_rng(0)
    hidden = np.kron(rng.random((254, 560)) < 1 / 3, np.ones((2, 2))) > 0
    clouded = np.where(hidden, np.nan, flat_map).astype(np.float32)
    sums = merge([block_sums(clouded, fine, coarse)], coarse)
    found = solve(sums, target, coarse, limit=1.0)
    closed = found.apply(flat_map, fine, bounds=(0.0, 0.9))[0][0]
    inside = np.isfinite(truth) & np.kron(found.closed[0], np.ones((4, 4))).astype(bool)

    def rmse(cells):
        return float(np.sqrt(np.mean((closed[cells] - truth[cells]) ** 2)))

    # nearest interpolation of the coarse field has 0.0463, cubic 0.0434 (docs/smap-l4-recovery.md)
    assert rmse(inside) < 0.0463
    assert rmse(inside & hidden) < 0.0463
    assert (
        errors(
            merge([block_sums(np.where(hidden, np.nan, closed[None]), fine, coarse)], coarse), target, found.closed
        ).report()["max"]
        < 1e-5
    )
