"""Granules on overpass steps, coarse cells as training samples."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale import schema
from smscale.errors import InputError
from smscale.features.match import concat_samples, left_out, lst_utc, sample_table, season, smap_steps, zone

LON = np.array([89.9, 90.1, 103.0, 179.0])
LAT = np.array([31.0, 30.5])
FILL = 65534


def utc(local, lon):
    """UTC of a local solar time."""
    return np.datetime64(local, "ns") - np.timedelta64(round(lon * 240), "s")


def granule(day, lon=LON, value=0.2, am="06:00:00", pm="18:00:00"):
    """What SPL3SMP's file of one UTC day holds: the overpasses whose UTC lies within it."""
    shape = (2, LAT.size, lon.size)
    time = np.full(shape, np.datetime64("NaT"), dtype="datetime64[ns]")
    sm = np.full(shape, np.nan, np.float32)
    quality = np.full(shape, FILL, np.uint16)
    for i, clock in enumerate((am, pm)):
        for j, x in enumerate(lon):
            for date in pd.date_range(pd.Timestamp(day) - pd.Timedelta(days=1), periods=3):
                seen = utc(f"{date.date()}T{clock}", x)
                if seen.astype("datetime64[D]") == np.datetime64(day):
                    time[i, :, j] = seen
                    sm[i, :, j] = value + date.day / 1000
                    quality[i, :, j] = 8
    dims = ("overpass", "lat", "lon")
    return xr.Dataset(
        {
            "soil_moisture": (dims, sm, {"units": "m3 m-3"}),
            "observation_time": (dims, time),
            "retrieval_quality": (dims, quality, {"missing_value": FILL}),
        },
        {"overpass": ["AM", "PM"], "lat": LAT, "lon": lon},
        {"crs": "EPSG:6933", "algorithm": "DCA", "date": day},
    )


STEPS = schema.overpass_steps("2017-07-01", "2017-07-03", 103.0)


def files(first="2017-06-30", days=4):
    return [granule(str(d.date())) for d in pd.date_range(first, periods=days)]


# -- steps --------------------------------------------------------------------------------------


def test_a_file_holds_the_local_morning_of_the_next_day_east_of_90():
    """The trap itself: the AM field of the file dated 1 July."""
    am = granule("2017-07-01").observation_time.sel(overpass="AM").values[0]
    date, _ = schema.local_step(am, LON)
    assert date.astype(str).tolist() == ["2017-07-01", "2017-07-02", "2017-07-02", "2017-07-02"]
    pm = granule("2017-07-01").observation_time.sel(overpass="PM").values[0]
    date, _ = schema.local_step(pm, LON)
    assert date.astype(str).tolist() == ["2017-07-01"] * 4


@pytest.mark.parametrize("column", range(LON.size), ids=[str(x) for x in LON])
def test_every_local_day_gets_its_own_observations(column):
    found = smap_steps(files(), STEPS)
    assert found.soil_moisture.dims == ("time", "lat", "lon")
    days = found.soil_moisture.values[:, 0, column] - 0.2
    np.testing.assert_allclose(days, np.array([1, 1, 2, 2, 3, 3]) / 1000, atol=1e-6)
    date, is_pm = schema.local_step(found.observation_time.values[:, 0, column], LON[column])
    np.testing.assert_array_equal(date, STEPS.local_date.values.astype("datetime64[D]"))
    np.testing.assert_array_equal(is_pm, STEPS.overpass.values == "PM")


def test_counts_add_up():
    found = smap_steps(files(), STEPS)
    cells = LAT.size * LON.size
    assert found.attrs["observations"] == 6 * cells
    assert found.attrs["duplicates"] == 0
    assert found.attrs["overpass_disagrees"] == 0
    given = sum(int(f.observation_time.notnull().sum()) for f in files())
    assert found.attrs["observations"] + found.attrs["outside_period"] == given


def test_flags_stay_integers_and_unobserved_cells_hold_their_fill():
    found = smap_steps([granule("2017-07-01")], STEPS)
    assert found.retrieval_quality.dtype == np.uint16
    seen = found.observation_time.notnull().values
    assert (found.retrieval_quality.values[seen] == 8).all()
    assert (found.retrieval_quality.values[~seen] == FILL).all()
    assert np.isnan(found.soil_moisture.values[~seen]).all()
    assert found.attrs["algorithm"] == "DCA"
    assert found.attrs["crs"] == "EPSG:6933"
    assert found.day_sequence.values.tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_observations_the_one_nearer_to_six_wins_in_any_order(order):
    days = ["2017-06-30", "2017-07-01", "2017-07-02", "2017-07-03"]
    near = [granule(day, value=0.3) for day in days]
    far = [granule(day, value=0.1, am="07:10:00", pm="16:00:00") for day in days]
    found = smap_steps([*near, *far][::order], STEPS)
    assert float(found.soil_moisture.min()) > 0.29
    assert found.attrs["observations"] == found.attrs["duplicates"] == 48


def test_a_duplicated_file_changes_nothing_and_is_counted():
    once, twice = smap_steps(files(), STEPS), smap_steps(files() + files(), STEPS)
    xr.testing.assert_equal(once, twice)
    assert twice.attrs["duplicates"] == once.attrs["observations"]


def test_granules_without_overpass_dimension_are_laid_too():
    parts = [f.isel(overpass=i, drop=True) for f in files() for i in (0, 1)]
    xr.testing.assert_equal(smap_steps(parts, STEPS), smap_steps(files(), STEPS))


def test_granules_may_come_one_after_another():
    xr.testing.assert_identical(smap_steps(iter(files()), STEPS), smap_steps(files(), STEPS))


def test_granules_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="no SMAP granule"):
        smap_steps([], STEPS)
    with pytest.raises(InputError, match="different grids"):
        smap_steps([granule("2017-07-01"), granule("2017-07-02", lon=LON + 1)], STEPS)
    with pytest.raises(InputError, match="observation_time"):
        smap_steps([granule("2017-07-01").drop_vars("observation_time")], STEPS)
    with pytest.raises(InputError, match="DCA and SCA-V"):
        smap_steps([granule("2017-07-01"), granule("2017-07-02").assign_attrs(algorithm="SCA-V")], STEPS)


# -- samples ------------------------------------------------------------------------------------


def coarse(seed=0):
    rng = np.random.default_rng(seed)
    shape = (STEPS.sizes["time"], 2, 4)
    dims = ("time", "lat", "lon")

    def plane(low, high):
        return dims, rng.uniform(low, high, shape).astype(np.float32)

    static = {
        n: (dims[1:], rng.uniform(*r, shape[1:]).astype(np.float32))
        for n, r in {"elevation": (500, 5000), "slope": (0, 40), "aspect": (0, 360)}.items()
    }
    ds = xr.Dataset(
        {
            "soil_moisture": plane(0.05, 0.45),
            "weight": (dims, np.ones(shape, np.float32)),
            "retrieval_quality": (dims, np.full(shape, 8, np.uint16)),
            "observation_time": (dims, np.broadcast_to(STEPS.time.values[:, None, None], shape).copy()),
            "land_cover": (dims[1:], np.full(shape[1:], 10, np.uint8)),
            "lst": plane(270, 310), "ndvi": plane(0, 1), "evi": plane(0, 1), "et": plane(0, 40),
            "valid_fraction_lst": plane(0.5, 1),
            "valid_fraction_elevation": (dims[1:], np.ones(shape[1:], np.float32)),
            **static,
        },
        {"lat": LAT, "lon": LON, **STEPS.coords},
    )  # fmt: skip
    return ds


def test_a_full_cube_gives_every_cell_and_step_once():
    ds = coarse()
    table, flow = sample_table(ds)
    assert list(table.columns[:12]) == list(schema.PAPER_PREDICTORS)
    assert len(table) == 48
    assert set(flow.values()) == {48}
    assert list(flow) == ["all", "observed", "quality", "land_cover", "lst", "predictors", "samples"]
    row = table.iloc[17]
    t, r, c = 17 // 8, row["row"], row["col"]
    assert row["cell"] == r * 4 + c == 17 % 8
    assert row["lst"] == ds.lst.values[t, r, c]
    assert row["soil_moisture"] == ds.soil_moisture.values[t, r, c]
    assert row["elevation"] == ds.elevation.values[r, c]
    assert (row["longitude"], row["latitude"]) == (LON[c], LAT[r])
    assert row["overpass"] == 0
    assert row["day_sequence"] == 2
    assert row["time"] == pd.Timestamp(STEPS.time.values[t])
    assert row["valid_fraction_lst"] == ds.valid_fraction_lst.values[t, r, c]
    assert row["season"] == "summer"
    assert table["cell"].dtype == np.int64
    assert table["land_cover"].dtype.kind == "i"


def test_flow_counts_each_sieve_in_turn():
    ds = coarse()
    ds["observation_time"][0, 0, 0] = np.datetime64("NaT", "ns")
    ds["observation_time"][0, 0, 1] = np.datetime64("NaT", "ns")
    ds["weight"][1, 0, :3] = [0, np.nan, 0]
    ds["soil_moisture"][1, 1, 0] = np.nan
    ds["land_cover"][1, 3] = schema.WATER  # six steps
    ds["land_cover"][1, 2] = schema.LAND_COVER_FILL  # not water: a missing predictor, six steps
    ds["lst"][2, 0] = np.nan  # four cells
    ds["ndvi"][3, 0, 0] = np.nan
    table, flow = sample_table(ds)
    assert flow == {
        "all": 48, "observed": 46, "quality": 42, "land_cover": 36, "lst": 32, "predictors": 25, "samples": 25,
    }  # fmt: skip
    assert len(table) == 25
    assert not (table["land_cover"] == schema.LAND_COVER_FILL).any()


def test_predictors_of_another_recipe_and_no_quality_fields():
    ds = coarse().drop_vars(["weight", "retrieval_quality", "observation_time", "land_cover"])
    ds["soil_moisture"][0, 0, 0] = np.nan
    table, flow = sample_table(ds, ("longitude", "latitude", "elevation", "day_of_year"))
    assert list(flow) == ["all", "observed", "quality", "predictors", "samples"]
    assert flow["observed"] == 47
    assert (table["weight"] == 1).all()
    assert (table["day_of_year"].isin([182, 183, 184])).all()


def test_table_is_sorted_by_time_row_and_column_whatever_the_layout():
    ds = coarse()
    plain, _ = sample_table(ds)
    turned, _ = sample_table(ds.transpose("lon", "time", "lat"))
    pd.testing.assert_frame_equal(plain, turned)
    lazy, _ = sample_table(ds.chunk(time=1))
    pd.testing.assert_frame_equal(plain, lazy)
    assert plain.equals(plain.sort_values(["time", "row", "col"], ignore_index=True))


def test_an_unknown_predictor_is_refused():
    with pytest.raises(InputError, match="predictor rain is not in the coarse cube"):
        sample_table(coarse(), ("lst", "rain"))


def test_no_sample_at_all_is_an_empty_table_and_a_flow_that_says_where():
    ds = coarse()
    ds["lst"][:] = np.nan
    table, flow = sample_table(ds)
    assert len(table) == 0
    assert flow["land_cover"] == 48
    assert flow["lst"] == flow["samples"] == 0


def test_a_recipe_without_overpass_or_elevation_still_tells_them():
    table, _ = sample_table(coarse(), ("lst", "ndvi"))
    assert table["overpass"].tolist() == ([0] * 8 + [1] * 8) * 3
    assert set(table["zone"]) <= {"NW", "SE"}


def test_reasons_and_samples_sum_to_all():
    ds = timed()
    ds["observation_time"][0, 0, 0] = np.datetime64("NaT", "ns")
    ds["weight"][1, 0, :3] = 0
    ds["land_cover"][1, 3] = schema.WATER
    ds["lst"][2, 0] = np.nan
    ds["ndvi"][5, 0, 0] = np.nan
    table, flow = sample_table(ds, tolerance_hours=4.6)
    reasons = left_out(flow)
    assert list(reasons) == [
        "not seen by SMAP", "retrieval refused or missing", "land cover left out", "no LST (cloud)",
        "LST too far in time", "another predictor missing",
    ]  # fmt: skip
    assert sum(reasons.values()) + len(table) == flow["all"] == 48
    assert reasons["no LST (cloud)"] == 4
    assert all(count > 0 for count in reasons.values())


# -- times --------------------------------------------------------------------------------------


def test_lst_time_of_night_and_day_by_hand():
    """103 E is 6 h 52 min ahead of UTC."""
    found = lst_utc([[1.5, 23.5, -0.5, 13.5]], "2017-07-02", [["AM", "AM", "AM", "PM"]], 103.0)
    assert found.astype("datetime64[m]").astype(str).tolist() == [
        ["2017-07-01T18:38", "2017-07-01T16:38", "2017-07-01T16:38", "2017-07-02T06:38"]
    ]


def test_lst_time_without_a_view_is_not_a_time():
    assert np.isnat(lst_utc([np.nan, 1.5], "2017-07-02", "AM", 103.0)).tolist() == [True, False]


@pytest.mark.parametrize("lon", [-179.9, -30.0, 89.9, 90.1, 103.0, 179.0, 190.0])
@pytest.mark.parametrize(("overpass", "hour"), [("AM", 1.5), ("AM", 11.9), ("PM", 12.1), ("PM", 13.5)])
def test_lst_time_lies_on_its_own_local_step(lon, overpass, hour):
    utc = lst_utc(hour, "2017-07-02", overpass, lon)
    date, is_pm = schema.local_step(utc, lon)
    assert (str(date), bool(is_pm)) == ("2017-07-02", overpass == "PM")


@given(hour=st.floats(12, 24), lon=st.floats(-180, 180))
def test_the_evening_before_and_its_negative_hour_are_one_time(hour, lon):
    evening, negative = lst_utc([hour, hour - 24], "2017-07-02", "AM", lon)
    assert evening == negative < lst_utc(0.0, "2017-07-02", "AM", lon) + np.timedelta64(1, "s")


def timed():
    """SMAP at 06:00 and 18:00, LST at 01:30 and 13:30 local solar time: 4.5 hours away, but for two cells."""
    ds = coarse()
    shape = ds.lst.shape
    hours = np.where(ds.overpass.values == "PM", 13.5, 1.5)[:, None, None]
    ds["lst_view_time"] = (ds.lst.dims, np.broadcast_to(hours, shape).astype(np.float32).copy())
    local = STEPS.local_date.values + np.where(STEPS.overpass.values == "PM", 18, 6) * np.timedelta64(1, "h")
    solar = np.round(LON * 240).astype("timedelta64[s]")
    ds["observation_time"] = (ds.lst.dims, np.broadcast_to(local[:, None, None] - solar, shape).copy())
    ds["lst_view_time"][4, 1, 1] = 23.5  # the evening before: 6.5 hours
    ds["lst_view_time"][4, 1, 2] = np.nan
    return ds


def test_hours_between_lst_and_soil_moisture_stand_in_the_table():
    table, flow = sample_table(timed())
    assert "time" not in flow
    at = table.set_index(["time", "row", "col"])
    fifth = pd.Timestamp(STEPS.time.values[4])
    assert at.loc[(fifth, 1, 1), "lst_hours_away"] == pytest.approx(6.5, abs=1e-3)
    assert np.isnan(at.loc[(fifth, 1, 2), "lst_hours_away"])
    assert pd.isna(at.loc[(fifth, 1, 2), "lst_time"])
    rest = at.drop([(fifth, 1, 1), (fifth, 1, 2)])
    np.testing.assert_allclose(rest["lst_hours_away"], 4.5, atol=1e-3)
    np.testing.assert_allclose((rest["observation_time"] - rest["lst_time"]) / pd.Timedelta("1h"), 4.5, atol=1e-3)


@pytest.mark.parametrize(("tolerance", "left"), [(7.0, 47), (6.0, 46), (4.0, 0)])
def test_lst_beyond_the_tolerance_is_sieved_and_counted(tolerance, left):
    table, flow = sample_table(timed(), tolerance_hours=tolerance)
    assert list(flow) == ["all", "observed", "quality", "land_cover", "lst", "time", "predictors", "samples"]
    assert flow["lst"] == 48
    assert flow["time"] == len(table) == left  # of an LST without a time nobody knows


def test_a_tolerance_without_times_is_refused():
    with pytest.raises(InputError, match="lst_view_time and observation_time"):
        sample_table(coarse(), tolerance_hours=3)


def test_a_tolerance_means_nothing_to_a_recipe_without_lst():
    _, flow = sample_table(timed(), ("ndvi",), tolerance_hours=1)
    assert "time" not in flow
    assert flow["samples"] == 48


# -- slabs --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 5)), seed=st.integers(0, 20))
def test_slabs_put_together_equal_the_whole(cuts, seed):
    ds = timed()
    rng = np.random.default_rng(seed)
    for name in ("soil_moisture", "lst", "ndvi"):
        ds[name] = ds[name].where(rng.random(ds[name].shape) > 0.2)
    ds["lst"][2] = np.nan  # a step without samples
    stops = [0, *sorted(cuts), 6]
    slabs = [sample_table(ds.isel(time=slice(a, b)), tolerance_hours=5) for a, b in pairwise(stops)]
    table, flow = concat_samples(slabs)
    expected, expected_flow = sample_table(ds, tolerance_hours=5)
    pd.testing.assert_frame_equal(table, expected)
    assert flow == expected_flow


def test_slabs_without_any_sample_make_an_empty_table_with_its_columns():
    ds = timed()
    ds["lst"][:] = np.nan
    table, flow = concat_samples([sample_table(ds.isel(time=[i])) for i in range(6)])
    pd.testing.assert_frame_equal(table, sample_table(ds)[0])
    assert (len(table), flow["samples"], flow["land_cover"]) == (0, 0, 48)


def test_slabs_of_different_sieves_do_not_mix():
    with pytest.raises(InputError, match="same fields and settings"):
        concat_samples([sample_table(timed()), sample_table(timed(), tolerance_hours=5)])
    with pytest.raises(InputError, match="at least one"):
        concat_samples([])


# -- groups -------------------------------------------------------------------------------------


def test_seasons_and_zones():
    dates = [f"2017-{m:02d}-15" for m in range(1, 13)]
    assert season(dates).tolist() == ["winter"] * 2 + ["spring"] * 3 + ["summer"] * 3 + ["autumn"] * 3 + ["winter"]
    assert zone([2999.9, 3000.0, np.nan]).tolist() == ["SE", "NW", ""]
