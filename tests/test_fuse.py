"""Residuals, the ladder, and stations merged into maps."""

import json
import pickle

import numpy as np
import pytest
import xarray as xr
from fields import field_of
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale.errors import InputError
from smscale.fusion.apply import apply_residual_field
from smscale.fusion.at_stations import cells_of_points, match_times
from smscale.fusion.fuse import fuse
from smscale.fusion.interpolators import InverseDistance, Kriging
from smscale.fusion.ladder import pooling_groups
from smscale.fusion.residuals import Difference, Ratio, remove_systematic
from smscale.fusion.variogram import Variogram, fit_variogram
from smscale.schema import Status

VARIOGRAM = Variogram("exponential", 0.003, 40.0, 0.0005)
LON, LAT = np.round(np.arange(100.05, 102, 0.1), 2), np.round(np.arange(30.95, 29.5, -0.1), 2)
TIME = np.datetime64("2017-06-10T22:51", "ns") + np.arange(6) * np.timedelta64(12, "h")


def network(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(100, 102, n), rng.uniform(29.5, 31, n)])


def correlated(coords, t, seed=0):
    from smscale.kernels.sphere import chord_points, pair_distance

    points = chord_points(*coords.T)
    root = np.linalg.cholesky(VARIOGRAM.covariance(pair_distance(points, points)) + 1e-10 * np.eye(len(coords)))
    return root @ np.random.default_rng(seed).normal(size=(len(coords), t))


def stations(coords, values, time=TIME, **extra):
    return xr.Dataset(
        {"soil_moisture": (("station", "time"), values)},
        coords={
            "time": time,
            "lon": ("station", coords[:, 0]),
            "lat": ("station", coords[:, 1]),
            **{name: ("station", column) for name, column in extra.items()},
        },
    )


def background(value=0.25, time=TIME):
    field = np.broadcast_to(np.asarray(value, np.float32), (len(time), LAT.size, LON.size)).copy()
    return xr.DataArray(field, dims=("time", "lat", "lon"), coords={"time": time, "lat": LAT, "lon": LON})


# -- residuals ---------------------------------------------------------------------------------


@given(observed=st.floats(0, 0.6), ground=st.floats(0, 0.6))
@settings(max_examples=50, deadline=None)
def test_residual_applied_at_its_station_gives_the_observation(observed, ground):
    o, b = np.array([observed]), np.array([ground])
    for kind in (Difference(), Ratio(cap=(0.0, 1e9))):
        assert kind.apply(b, kind.residual(o, b)) == pytest.approx(o, abs=1e-12)


def test_ratio_is_the_quotient_above_its_floor_and_counts_its_limits():
    kind = Ratio(floor=0.02, cap=(0.2, 5.0))
    observed, ground = np.array([0.3, 0.05, 0.4, 0.01, np.nan]), np.array([0.2, 0.01, 0.05, 0.3, 0.3])
    assert kind.residual(observed, ground) == pytest.approx([1.5, 3.0, 5.0, 0.2, np.nan], nan_ok=True)
    assert kind.counts(observed, ground) == {"floored": 1, "capped": 2}
    assert kind.apply(np.array([0.2, 0.0]), np.array([1.5, 3.0])) == pytest.approx([0.3, 0.04])
    assert kind.apply(np.array([0.2, 0.0]), np.array([np.nan, 1.0])) == pytest.approx([0.2, 0.0])


def test_systematic_parts_by_hand():
    residuals = np.array([[0.1, 0.3, 0.2, 0.2], [-0.1, np.nan, np.nan, np.nan], [np.nan] * 4])
    left, removed = remove_systematic(residuals, "network-mean")
    assert removed == pytest.approx([0.05] * 3)  # mean of 0.2 and -0.1
    assert left[0] == pytest.approx([0.05, 0.25, 0.15, 0.15])
    left, removed = remove_systematic(residuals, "station-mean")
    assert removed == pytest.approx([0.2, 0.05, 0.05])  # too few values for a mean of their own
    assert left[0] == pytest.approx([-0.1, 0.1, 0, 0])
    left, _ = remove_systematic(1 + residuals, "station-mean", Ratio())
    assert np.nanmean(left[0]) == pytest.approx(1.0)
    assert remove_systematic(residuals, "none")[0] is residuals
    with pytest.raises(InputError, match="systematic"):
        remove_systematic(residuals, "cdf")  # no mean


# -- the ladder --------------------------------------------------------------------------------


def silent_to(residuals, counts):
    out = residuals.copy()
    for step, count in enumerate(counts):
        out[count:, step] = np.nan
    return out


def test_ladder_steps_down_with_the_stations_that_report():
    coords = network()
    residuals = silent_to(correlated(coords, 6), [20, 8, 7, 3, 1, 0])
    field = field_of(coords, residuals, Kriging(VARIOGRAM))
    expected = [Status.FUSED_KRIGING] * 2 + [Status.FUSED_IDW] * 2 + [Status.FUSED_MEAN_RESIDUAL, Status.NOT_FUSED]
    assert field.method.dtype == np.uint32
    assert field.method.tolist() == [int(bit) for bit in expected]
    assert field.counts.tolist() == [20, 8, 7, 3, 1, 0]
    assert field.steps_by_method() == {"kriging": 2, "idw": 2, "mean": 1, "none": 1}
    grid = field.evaluate(LON, LAT)
    assert grid.dtype == np.float32
    assert grid[:2] == pytest.approx(Kriging(VARIOGRAM).fit(coords, residuals[:, :2]).predict_grid(LON, LAT), abs=1e-8)
    assert np.array_equal(grid[2:4], InverseDistance().fit(coords, residuals[:, 2:4]).predict_grid(LON, LAT))
    assert np.all(grid[4] == np.float32(residuals[0, 4]))
    assert np.isnan(grid[5]).all()


def test_correlation_is_pooled_within_groups_then_over_all_steps():
    coords = network(40)
    rough, smooth = correlated(coords, 30), 3 * correlated(coords, 30, 1)
    lonely = silent_to(correlated(coords, 1, 2), [9])
    residuals = np.hstack([rough, smooth, np.zeros((40, 2)), lonely])
    groups = ["JJA AM"] * 30 + ["SON AM"] * 30 + ["constant"] * 2 + ["lonely"]
    field = field_of(coords, residuals, "kriging", groups)
    fitted = field.variograms
    assert fitted["JJA AM"]["pooled"] == "group"
    assert fitted["JJA AM"]["range"] == pytest.approx(fit_variogram(coords, rough).range, rel=1e-6)
    assert fitted["SON AM"]["partial_sill"] > 4 * fitted["JJA AM"]["partial_sill"]
    assert fitted["constant"]["pooled"] == fitted["lonely"]["pooled"] == "all steps"
    assert (field.method == Status.FUSED_KRIGING).all()
    own = Kriging(fit_variogram(coords, smooth)).fit(coords, smooth).predict_grid(LON, LAT)
    assert field.evaluate(LON, LAT)[30:60] == pytest.approx(own, abs=1e-7)
    json.dumps(field.to_dict())


def test_constant_residuals_fall_to_inverse_distance_and_stay_constant():
    field = field_of(network(), np.full((20, 3), 0.04))
    assert (field.method == Status.FUSED_IDW).all()
    assert "do not vary" in field.variograms["all"]["reason"]
    assert field.evaluate(LON, LAT) == pytest.approx(np.full((3, LAT.size, LON.size), 0.04), abs=1e-7)


def test_no_station_at_all_leaves_every_step_unfused():
    field = field_of(np.empty((0, 2)), np.empty((0, 4)))
    assert (field.method == Status.NOT_FUSED).all()
    assert np.isnan(field.evaluate(LON, LAT)).all()


@pytest.mark.parametrize("interpolator", ["kriging", "idw", Kriging(VARIOGRAM, neighbours=6)])
def test_field_is_the_same_for_any_block_and_after_pickling(interpolator):
    coords = network(30)
    residuals = silent_to(correlated(coords, 8), [30, 25, 5, 2, 0, 30, 12, 9])
    field = field_of(coords, residuals, interpolator, ["a", "b"] * 4)
    whole = field.evaluate(LON, LAT)
    again = pickle.loads(pickle.dumps(field))
    assert np.array_equal(again.evaluate(LON, LAT), whole, equal_nan=True)
    block = again.evaluate(LON[4:9], LAT[2:5], slice(1, 7))
    assert block == pytest.approx(whole[1:7, 2:5, 4:9], abs=6e-9, nan_ok=True)
    assert again.evaluate(LON, LAT, [6, 0]) == pytest.approx(whole[[6, 0]], abs=6e-9)
    points = field.evaluate_points([[LON[4], LAT[2]], [LON[7], LAT[9]]])
    assert points == pytest.approx(np.stack([whole[:, 2, 4], whole[:, 9, 7]], axis=1), abs=6e-9, nan_ok=True)


def test_leave_one_out_takes_each_step_s_own_method():
    coords = network()
    residuals = silent_to(correlated(coords, 5), [20, 5, 2, 1, 0])
    left = field_of(coords, residuals, Kriging(VARIOGRAM)).leave_one_out()
    assert left[:, 0] == pytest.approx(Kriging(VARIOGRAM).fit(coords, residuals[:, 0]).leave_one_out(), abs=1e-12)
    idw = InverseDistance().fit(coords, residuals[:, 1]).leave_one_out()
    assert left[:, 1] == pytest.approx(idw, abs=1e-12, nan_ok=True)
    assert left[:2, 2] == pytest.approx(residuals[[1, 0], 2])
    assert np.isnan(left[:, 3:]).all()


def test_apply_keeps_bounds_and_gives_every_cell_its_reason():
    ground = np.array([0.2, 0.55, 0.1, np.nan, 0.3]).reshape(1, 1, 5)
    field = np.array([0.1, 0.1, -0.2, 0.1, np.nan], np.float32).reshape(1, 1, 5)
    method = np.array([int(Status.FUSED_IDW)], np.uint32)
    fused, status, counts = apply_residual_field(ground, field, method)
    assert fused.ravel() == pytest.approx([0.3, 0.6, 0.0, np.nan, 0.3], nan_ok=True)
    idw, none, clipped = int(Status.FUSED_IDW), int(Status.NOT_FUSED), int(Status.CLIPPED)
    assert status.ravel().tolist() == [idw, idw | clipped, idw | clipped, none, none]
    assert (fused.dtype, status.dtype) == (np.float32, np.uint32)
    assert counts == {"fused": 3, "not_fused": 1, "clipped": 2}


@pytest.mark.parametrize("kind", [Difference(), Ratio(), Ratio(floor=0.2, cap=(0.5, 2.0))])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_block_is_corrected_as_the_residual_says_cell_by_cell(kind, dtype):
    rng = np.random.default_rng(0)
    ground = rng.uniform(-0.02, 0.7, (4, 9, 13)).astype(dtype)
    field = (kind.nothing + rng.normal(0, 0.3, ground.shape)).astype(np.float32)
    ground[rng.random(ground.shape) < 0.2] = np.nan
    ground[0, 0, :2] = np.inf, -np.inf
    field[rng.random(field.shape) < 0.2] = np.nan
    method = np.array([int(Status.FUSED_KRIGING), int(Status.FUSED_IDW)] * 2, np.uint32)
    fused, status, counts = apply_residual_field(ground[:, ::2], field[:, ::2], method, kind, (0.05, 0.5))
    ground, field = ground[:, ::2], field[:, ::2]
    with np.errstate(invalid="ignore"):
        raw = kind.apply(ground.astype(float), field.astype(float))
    known, given = np.isfinite(ground), np.isfinite(field)
    outside = known & ((raw < 0.05) | (raw > 0.5))
    assert fused == pytest.approx(np.where(known, np.clip(raw, 0.05, 0.5), np.nan), abs=1e-7, nan_ok=True)
    assert np.array_equal((status & int(Status.CLIPPED)) > 0, outside)
    expected = np.where(known & given, method[:, None, None], int(Status.NOT_FUSED))
    assert np.array_equal(status & ~np.uint32(Status.CLIPPED), expected)
    assert list(counts.values()) == [(known & given).sum(), (known & ~given).sum(), outside.sum()]


# -- times, cells, groups ----------------------------------------------------------------------


def test_nearest_reported_value_within_the_tolerance():
    hours = np.datetime64("2017-06-10T00:00", "ns") + np.array([2, 0, 1, 3, 9]) * np.timedelta64(1, "h")
    values = np.array([[12.0, 10.0, 11.0, 13.0, 19.0], [np.nan, 20.0, np.nan, 23.0, np.nan]])
    wanted = np.datetime64("2017-06-10T01:20", "ns") + np.array([0, 40, 300, 470]) * np.timedelta64(1, "m")
    matched = match_times(hours, values, wanted)
    assert matched[0] == pytest.approx([11.0, 12.0, np.nan, 19.0], nan_ok=True)
    assert matched[1] == pytest.approx([20.0, 23.0, np.nan, np.nan], nan_ok=True)
    assert np.isnan(match_times(hours[:0], values[:, :0], wanted)).all()


def test_cells_of_points_and_those_outside():
    row, col = cells_of_points(LON, LAT, [100.01, 101.99, 99.9, 100.5], [30.99, 29.51, 30.0, 31.2])
    assert cells_of_points(LON, LAT, [100.01 - 360], [30.99])[1] == 0
    assert row.tolist() == [0, LAT.size - 1, -1, -1]
    assert col.tolist() == [0, LON.size - 1, -1, -1]


def test_pooling_groups():
    time = np.array(["2017-06-10", "2017-11-30", "2017-12-01"], "datetime64[ns]")
    assert pooling_groups(time, ["AM", "PM", "AM"]).tolist() == ["JJA AM", "SON PM", "DJF AM"]
    assert pooling_groups(time).tolist() == ["JJA", "SON", "DJF"]
    assert pooling_groups(time, by="all").tolist() == ["all"] * 3
    assert len(set(pooling_groups(time, by="step"))) == 3
    with pytest.raises(InputError, match="pooling"):
        pooling_groups(time, by="month")


# -- the whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["difference", "ratio"])
@pytest.mark.parametrize("interpolator", [Kriging(VARIOGRAM), InverseDistance(), None])
def test_uniform_disagreement_is_put_right_everywhere(residual, interpolator):
    coords = network()
    ground = background(np.linspace(0.15, 0.25, LON.size)) if residual == "difference" else background(0.2)
    row, col = cells_of_points(LON, LAT, *coords.T)
    values = ground.values[:, row, col].T + 0.05
    fused = fuse(ground, stations(coords, values), residual, interpolator)
    assert fused["soil_moisture"].values == pytest.approx(ground.values + 0.05, abs=1e-6)
    assert fused["station_count"].values.tolist() == [20] * 6
    assert fused["soil_moisture"].dims == ("time", "lat", "lon")
    assert fused["status"].attrs["flag_masks"].dtype == np.uint32
    assert fused.attrs["cells_not_fused"] == 0


@pytest.mark.parametrize("residual", ["difference", "ratio"])
def test_exact_fusion_honours_stations_at_their_cells(residual):
    row, col = np.arange(10), np.arange(10) + 3
    coords = np.column_stack([LON[col], LAT[row]])
    values = np.random.default_rng(0).uniform(0.1, 0.4, (10, 6))
    fused = fuse(background(), stations(coords, values), residual, Kriging(VARIOGRAM, exact=True))
    at_stations = fused["soil_moisture"].values[:, row, col].T
    assert at_stations == pytest.approx(values, abs=1e-6)
    assert (fused["status"] == int(Status.FUSED_KRIGING)).all()


def test_masked_silent_late_and_outside_stations_are_counted_not_used():
    coords = network(12)
    coords[0] = [110.0, 30.0]
    values = np.full((12, 6), 0.35)
    values[1] = np.nan
    ground = background()
    row, col = cells_of_points(LON, LAT, *coords.T)
    ground.values[:, row[2], col[2]] = np.nan
    fused = fuse(ground, stations(coords, values), interpolator="idw")
    assert fused.attrs["stations"] == 11
    assert fused.attrs["stations_outside_grid"] == 1
    shared = int(((row == row[2]) & (col == col[2])).sum())
    assert fused.attrs["stations_never_compared"] == 1 + shared
    assert fused["station_count"].values.tolist() == [10 - shared] * 6
    hole = fused.isel(lat=row[2], lon=col[2])
    assert np.isnan(hole["soil_moisture"]).all()
    assert (hole["status"] == int(Status.NOT_FUSED)).all()
    delayed = stations(coords, values, TIME + np.timedelta64(2, "h"))
    wide = fuse(ground, delayed, interpolator="idw", tolerance="150min")
    assert np.array_equal(wide["station_count"], fused["station_count"])
    late = fuse(ground, delayed, interpolator="idw")
    assert (late["status"] == int(Status.NOT_FUSED)).all()
    assert np.array_equal(late["soil_moisture"], ground, equal_nan=True)


def test_dry_background_under_ratio_is_floored_capped_clipped_and_counted():
    coords = network(10)
    fused = fuse(background(0.0), stations(coords, np.full((10, 6), 0.3)), "ratio", "idw")
    assert fused.attrs["residuals_floored"] == fused.attrs["residuals_capped"] == 60
    assert fused["soil_moisture"].values == pytest.approx(np.full((6, LAT.size, LON.size), 0.08), abs=1e-6)
    wet = fuse(background(0.5), stations(coords, np.full((10, 6), 0.9)), "difference", "idw")
    assert wet.attrs["cells_clipped"] == wet["soil_moisture"].size
    assert (wet["status"] == int(Status.FUSED_IDW | Status.CLIPPED)).all()
    assert wet["soil_moisture"].values == pytest.approx(np.full(wet["soil_moisture"].shape, 0.6), abs=1e-6)


def test_station_mean_removed_leaves_only_the_changing_part():
    coords = network(10)
    bias = np.linspace(-0.1, 0.1, 10)[:, None]
    wave = np.array([0.02, -0.02, 0.02, -0.02, 0.02, -0.02])
    given = stations(coords, 0.25 + bias + wave)
    fused = fuse(background(), given, interpolator="idw", systematic="station-mean")
    assert fused["soil_moisture"].values == pytest.approx(
        np.broadcast_to(0.25 + wave[:, None, None], fused["soil_moisture"].shape), abs=1e-6
    )
    assert fused.attrs["mean_systematic_removed"] == pytest.approx(0.0, abs=1e-7)


def test_elevation_is_used_with_a_vertical_scale_and_asked_for():
    coords = network(10)
    values = np.full((10, 6), 0.3)
    height = xr.DataArray(np.full((LAT.size, LON.size), 500.0), dims=("lat", "lon"))
    high = stations(coords, values, elevation=np.full(10, 500.0))
    fused = fuse(background(), high, interpolator=InverseDistance(vertical_scale=20.0), elevation=height)
    assert fused["soil_moisture"].values == pytest.approx(np.full(fused["soil_moisture"].shape, 0.3), abs=1e-6)
    with pytest.raises(InputError, match="no elevation"):
        fuse(background(), stations(coords, values), interpolator=InverseDistance(vertical_scale=20.0))


def test_wrong_inputs_are_named():
    coords = network(4)
    given = stations(coords, np.full((4, 6), 0.3))
    with pytest.raises(InputError, match="dims"):
        fuse(background().isel(time=0), given)
    with pytest.raises(InputError, match="soil_moisture"):
        fuse(background(), given.drop_vars("soil_moisture"))
    with pytest.raises(InputError, match="residual must be"):
        fuse(background(), given, "quotient")
    with pytest.raises(InputError, match="interpolator must be"):
        fuse(background(), given, interpolator="spline")
    with pytest.raises(InputError, match="groups"):
        fuse(background(), given, groups=["a"])
    with pytest.raises(InputError, match="floor"):
        Ratio(floor=0.0)


def test_correlated_map_error_is_reduced_at_held_out_stations_and_most_by_kriging():
    coords = network(90, seed=4)
    error = correlated(coords, 40, seed=4)
    noisy = error + np.random.default_rng(1).normal(0, np.sqrt(VARIOGRAM.nugget), error.shape)
    train, held = slice(0, 60), slice(60, 90)
    rmse = {"before": np.sqrt((error[held] ** 2).mean())}
    for name in ("kriging", "idw"):
        field = field_of(coords[train], noisy[train], name)
        rmse[name] = np.sqrt(((error[held] - field.evaluate_points(coords[held]).T) ** 2).mean())
    assert rmse["kriging"] < rmse["idw"] < 0.8 * rmse["before"]


def test_raw_and_debiased_scores_stand_side_by_side_before_and_after():
    coords = network(60, seed=4)
    error = correlated(coords, 6, seed=4) + 0.1
    ground = background()
    fused = fuse(ground, stations(coords, 0.25 + error), interpolator=Kriging(VARIOGRAM))
    scores = json.loads(fused.attrs["scores"])
    assert set(scores) == {"raw", "debiased"}
    for which in scores.values():
        assert set(which) == {"before", "after"}
        assert {"rmse", "mae", "cc", "bias", "ubrmse", "n"} <= set(which["after"])
        assert which["after"]["n"] == 360
    assert scores["raw"]["before"]["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert scores["raw"]["before"]["bias"] == pytest.approx(-error.mean())
    left = Kriging(VARIOGRAM).fit(coords, error).leave_one_out()
    assert scores["raw"]["after"]["rmse"] == pytest.approx(np.sqrt(((left - error) ** 2).mean()), rel=1e-4)
    assert scores["raw"]["after"]["rmse"] < 0.6 * scores["raw"]["before"]["rmse"]
    assert scores["debiased"]["before"]["rmse"] < 0.6 * scores["raw"]["before"]["rmse"]
    assert scores["raw"]["before"]["cc"] is None  # the background is constant
    assert "scores" not in fuse(ground, stations(coords, 0.25 + error), leave_one_out=False).attrs


def test_variance_is_a_layer_in_the_unit_of_the_map():
    coords = network(20)
    values = 0.25 + correlated(coords, 6)
    values[4:, 2] = np.nan
    ground = background(0.2)
    ground.values[:, 3, 4] = np.nan
    fused = {kind: fuse(ground, stations(coords, values), kind, Kriging(VARIOGRAM), variance=True) for kind in
             ("difference", "ratio")}  # fmt: skip
    plain = fused["difference"]["soil_moisture_variance"].values
    assert plain.dtype == np.float32
    expected = field_of(coords, values, Kriging(VARIOGRAM)).variance(LON, LAT)
    hole = np.isnan(ground.values)
    assert np.array_equal(np.isnan(plain), hole | np.isnan(expected))
    assert plain[~hole] == pytest.approx(expected[~hole], rel=1e-5, nan_ok=True)
    assert fused["ratio"]["soil_moisture_variance"].values == pytest.approx(plain * 0.04, rel=1e-5, nan_ok=True)
    assert "soil_moisture_variance" not in fuse(ground, stations(coords, values), leave_one_out=False)


def test_words_for_pooling_are_worked_out_from_the_time():
    coords = network(30)
    given = stations(coords, 0.25 + correlated(coords, 6))
    ground = background()
    labelled = ground.assign_coords(overpass=("time", ["AM", "PM"] * 3))
    for field, words, labels in (
        (ground, "all", {"all"}),
        (ground, "season-overpass", {"JJA"}),
        (labelled, "season-overpass", {"JJA AM", "JJA PM"}),
    ):
        fused = fuse(field, given, groups=words, leave_one_out=False)
        assert set(json.loads(fused.attrs["variograms"])) == labels
    assert len(json.loads(fuse(ground, given, groups="step", leave_one_out=False).attrs["variograms"])) == 6
    with pytest.raises(InputError, match="pooling"):
        fuse(ground, given, groups="monthly")


# -- bad input ---------------------------------------------------------------------------------


def reasons_everywhere(fused):
    """Every missing cell has a reason, and every cell is fused or says that it is not."""
    methods = sum(int(bit) for bit in (Status.FUSED_KRIGING, Status.FUSED_IDW, Status.FUSED_MEAN_RESIDUAL))
    status, values = fused["status"].values, fused["soil_moisture"].values
    assert np.isfinite(values[(status & methods) > 0]).all()
    assert ((status & (methods | int(Status.NOT_FUSED))) > 0).all()
    assert (status[np.isnan(values)] == int(Status.NOT_FUSED)).all()
    assert not np.isinf(values).any()


SYSTEMATICS = ("none", "network-mean", "station-mean", "cdf", "spatial-bias")


@pytest.mark.parametrize("systematic", SYSTEMATICS)
@pytest.mark.parametrize("residual", ["difference", "ratio"])
@pytest.mark.parametrize("interpolator", ["kriging", "idw"])
def test_days_without_stations_and_no_station_at_all(systematic, residual, interpolator):
    coords = network(12)
    values = np.random.default_rng(0).uniform(0.1, 0.4, (12, 6))
    values[:, 2] = np.nan
    ground = background()
    fused = fuse(ground, stations(coords, values), residual, interpolator, systematic)
    reasons_everywhere(fused)
    assert fused["station_count"].values.tolist() == [12, 12, 0, 12, 12, 12]
    silent = fused.isel(time=2)
    if systematic == "spatial-bias":
        assert (silent["status"] != int(Status.NOT_FUSED)).all()
    else:
        assert (silent["status"] == int(Status.NOT_FUSED)).all()
        assert np.array_equal(silent["soil_moisture"], ground[2])
    for none in (stations(coords, values * np.nan), stations(coords[:0], values[:0])):
        empty = fuse(ground, none, residual, interpolator, systematic, taper_km=50.0, variance=True)
        reasons_everywhere(empty)
        assert np.array_equal(empty["soil_moisture"], ground)
        assert json.loads(empty.attrs["scores"])["raw"]["after"]["n"] == 0


@pytest.mark.parametrize("systematic", SYSTEMATICS)
@pytest.mark.parametrize("interpolator", ["kriging", "idw", Kriging(VARIOGRAM), Kriging(VARIOGRAM, exact=True)])
def test_all_stations_on_one_point_are_one(systematic, interpolator):
    coords = np.tile([[100.6, 30.2]], (10, 1))
    values = np.random.default_rng(0).uniform(0.1, 0.4, (10, 6))
    fused = fuse(background(), stations(coords, values), "difference", interpolator, systematic)
    reasons_everywhere(fused)
    assert fused.attrs["stations_sharing_a_place"] == 9
    assert fused["station_count"].values.tolist() == [1] * 6
    if systematic == "none":
        expected = values.mean(axis=0)[:, None, None]
        assert fused["soil_moisture"].values == pytest.approx(
            np.broadcast_to(expected, fused["status"].shape), abs=1e-6
        )
        assert (fused["status"] == int(Status.FUSED_MEAN_RESIDUAL)).all()


def test_a_station_listed_twice_counts_once_and_does_not_predict_itself():
    coords = network(20)
    values = 0.25 + correlated(coords, 6)
    names = [f"s{i}" for i in range(20)]
    once = fuse(background(), stations(coords, values, station=names), interpolator=Kriging(VARIOGRAM))
    twice = np.append(np.arange(20), [3, 4])
    given = stations(coords[twice], values[twice], station=[names[i] for i in twice])
    fused = fuse(background(), given, interpolator=Kriging(VARIOGRAM))
    assert fused.attrs["stations_sharing_a_place"] == fused.attrs["station_names_repeated"] == 2
    assert fused["soil_moisture"].values == pytest.approx(once["soil_moisture"].values, abs=1e-6)
    assert once.attrs["station_names_repeated"] == 0
    after = [json.loads(f.attrs["scores"])["raw"]["after"] for f in (once, fused)]
    assert after[1]["n"] == after[0]["n"] + 12
    assert after[1]["rmse"] == pytest.approx(after[0]["rmse"], rel=0.1)


def test_nan_coordinates_infinite_values_and_masked_cells_are_counted():
    coords = network(12)
    coords[0, 0], coords[1, 1] = np.nan, np.inf
    values = np.full((12, 6), 0.35)
    values[2, :2] = np.inf
    ground = background()
    row, col = cells_of_points(LON, LAT, *coords[3:].T)
    ground.values[:, row[0], col[0]] = np.nan
    ground.values[1, 0, 0] = np.inf
    ground.values[2, 0, 1] = -np.inf
    masked = int(((row == row[0]) & (col == col[0])).sum())
    fused = fuse(ground, stations(coords, values), interpolator="idw")
    reasons_everywhere(fused)
    assert fused.attrs["stations_without_coordinates"] == 2
    assert fused.attrs["stations_on_masked_cells"] == masked
    assert fused.attrs["stations"] == 10
    assert fused.attrs["observations_infinite"] == 2
    assert np.isnan(fused["soil_moisture"].values[[1, 2], 0, [0, 1]]).all()


@pytest.mark.parametrize("residual", ["difference", "ratio"])
@pytest.mark.parametrize("systematic", SYSTEMATICS)
def test_constant_residuals_and_a_background_of_zero(residual, systematic):
    coords = network(12)
    for ground, values in ((background(0.25), np.full((12, 6), 0.3)), (background(0.0), np.full((12, 6), 0.3)),
                           (background(0.25), np.zeros((12, 6)))):  # fmt: skip
        fused = fuse(ground, stations(coords, values), residual, "kriging", systematic)
        reasons_everywhere(fused)
        assert np.isfinite(fused["soil_moisture"]).all()
        assert fused["soil_moisture"].values.std(axis=(1, 2)).max() < 1e-6


@pytest.mark.parametrize("turned", [{"lat": -1}, {"lon": -1}, {"lat": -1, "lon": -1}])
def test_axes_may_run_either_way(turned):
    coords = network(20)
    given = stations(coords, 0.25 + correlated(coords, 6), elevation=np.full(20, 400.0))
    ground = background(np.linspace(0.15, 0.35, LON.size))
    height = xr.DataArray(np.random.default_rng(0).uniform(0, 900, (LAT.size, LON.size)), dims=("lat", "lon"))
    index = {name: slice(None, None, step) for name, step in turned.items()}
    model = Kriging(VARIOGRAM, vertical_scale=20.0)
    usual = fuse(ground, given, interpolator=model, elevation=height)
    other = fuse(ground.isel(index), given, interpolator=model, elevation=height.isel(index))
    assert np.array_equal(other["soil_moisture"], usual["soil_moisture"].isel(index))
    assert other["lat"].values.tolist() == ground.isel(index)["lat"].values.tolist()
    shuffled = ground.isel(lat=[3, 1, 2, *range(4, LAT.size), 0])
    with pytest.raises(InputError, match="sortby"):
        fuse(shuffled, given)


@pytest.mark.parametrize("chunks", [(1, 15, 20), (6, 4, 7), (4, 1, 20), (2, 7, 3)])
def test_a_dask_background_is_read_chunk_by_chunk_once_for_the_stations_and_once_for_the_map(chunks):
    import dask.array as da

    coords = network(20)
    given = stations(coords, 0.25 + correlated(coords, 6))
    ground = background(np.linspace(0.15, 0.35, LON.size))
    reads = []

    def load(block, block_info=None):
        reads.append(block_info[0]["chunk-location"])
        return block

    lazy = da.map_blocks(load, da.from_array(ground.values, chunks=chunks), dtype=np.float32, meta=np.empty((0, 0, 0)))
    fused = fuse(ground.copy(data=lazy), given, interpolator=Kriging(VARIOGRAM))
    assert max(reads.count(place) for place in set(reads)) <= 2
    whole = fuse(ground, given, interpolator=Kriging(VARIOGRAM))
    assert fused["soil_moisture"].values == pytest.approx(whole["soil_moisture"].values, abs=1e-6)
    assert np.array_equal(fused["status"], whole["status"])


def test_working_memory_beside_input_and_result_does_not_grow_with_the_grid(monkeypatch):
    import tracemalloc

    from smscale.fusion import fuse as module

    monkeypatch.setattr(module, "TILE_NUMBERS", 30_000)
    given = stations(network(20), 0.25 + correlated(network(20), 6))
    extra = []
    for rows in (100, 100, 400):
        lat = np.linspace(31, 29.5, rows)
        ground = xr.DataArray(np.full((6, rows, 80), 0.25, np.float32), dims=("time", "lat", "lon"),
                              coords={"time": TIME, "lat": lat, "lon": np.linspace(100, 102, 80)})  # fmt: skip
        tracemalloc.start()
        fused = fuse(ground, given, interpolator=Kriging(VARIOGRAM), taper_km=60.0, variance=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        extra.append(peak - sum(fused[name].nbytes for name in ("soil_moisture", "status", "soil_moisture_variance")))
    assert extra[2] < 1.3 * extra[1]  # the first run compiles


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"background": np.full((6, 15, 20), 0.2)}, "DataArray.*got ndarray"),
        ({"background": None}, "DataArray.*got NoneType"),
        ({"background": background().to_dataset(name="x")}, "DataArray.*got Dataset"),
        ({"background": background().drop_vars("lat")}, "no coordinates lat"),
        ({"background": background().astype(str)}, "must hold numbers"),
        ({"background": background().assign_coords(time=np.arange(6))}, "datetime64"),
        ({"background": background().assign_coords(time=np.append(TIME[:5], np.datetime64("NaT")))}, "missing"),
        ({"background": background().isel(lon=[0])}, "at least 2 cells"),
        ({"stations": np.full((4, 6), 0.3)}, "Dataset.*got ndarray"),
        ({"stations": stations(network(4), np.full((4, 6), 0.3))["soil_moisture"]}, "Dataset.*got DataArray"),
        ({"stations": stations(network(4), np.full((4, 6), 30.0))}, "per cent"),
        ({"stations": stations(network(4), np.full((4, 6), "wet"))}, "numbers"),
        ({"stations": stations(network(4), np.full((4, 6), 0.3)).assign_coords(time=np.arange(6))}, "datetime64"),
        ({"stations": stations(network(4), np.full((4, 6), 0.3)).assign_coords(lon=100.0)}, "lon of stations"),
        ({"bounds": (0.6, 0.0)}, "bounds"),
        ({"bounds": None}, "bounds"),
        ({"tolerance": "soon"}, "tolerance"),
        ({"tolerance": np.timedelta64(-1, "h")}, "tolerance"),
        ({"taper_km": -5.0}, "taper_km"),
        ({"systematic": "median"}, "systematic must be"),
        ({"elevation": np.zeros((15, 20))}, "elevation must be"),
        ({"elevation": xr.DataArray(np.zeros((5, 20)), dims=("lat", "lon"))}, "elevation must lie"),
        ({"residual": None}, "residual must be"),
        ({"interpolator": "spline"}, "interpolator must be"),
    ],
)
def test_wrong_types_and_values_are_one_clear_line(given, words):
    usual = {"background": background(), "stations": stations(network(4), np.full((4, 6), 0.3))}
    with pytest.raises(InputError, match=words) as caught:
        fuse(**{**usual, **given})
    assert "\n" not in str(caught.value)
