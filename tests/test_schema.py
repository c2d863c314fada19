"""Variables, status bits, overpass steps and the local day of an observation."""

import numpy as np
import pytest
import xarray as xr

from smscale import schema
from smscale.errors import InputError


def test_paper_predictors_are_the_twelve_in_order():
    assert schema.PAPER_PREDICTORS == (
        "longitude", "latitude", "elevation", "slope", "aspect", "land_cover",
        "lst", "ndvi", "evi", "et", "day_sequence", "overpass",
    )  # fmt: skip
    assert set(schema.PAPER_PREDICTORS) <= set(schema.VARIABLES)


def test_every_cadence_names_known_variables_of_that_cadence():
    for cadence, names in schema.CADENCES.items():
        assert {schema.VARIABLES[n].cadence for n in names} == {cadence}


def test_every_variable_has_units_and_a_range():
    for variable in schema.VARIABLES.values():
        assert variable.attrs["units"]
        assert variable.valid_min < variable.valid_max


def test_igbp_has_seventeen_classes_and_the_named_ones_are_right():
    assert len(schema.IGBP) == 17
    assert schema.IGBP[schema.URBAN - 1] == "urban"
    assert schema.IGBP[schema.SNOW_ICE - 1] == "snow and ice"
    assert schema.IGBP[schema.BARREN - 1] == "barren"
    assert schema.IGBP[schema.WATER - 1] == "water"


def test_status_bits_are_one_each_in_the_contract_order():
    attrs = schema.status_attrs()
    np.testing.assert_array_equal(attrs["flag_masks"], [1 << n for n in range(15)])
    meanings = attrs["flag_meanings"].split()
    assert meanings[0] == "outside_region"
    assert meanings[2] == "no_lst"
    assert meanings[13] == "closure_not_applied"


def test_steps_are_both_overpasses_of_every_local_day():
    steps = schema.overpass_steps("2017-06-10", "2017-06-12", 103.0)
    assert steps.sizes["time"] == 6
    assert steps.overpass.values.tolist() == ["AM", "PM"] * 3
    assert steps.day_sequence.values.tolist() == [1, 1, 2, 2, 3, 3]
    assert steps.day_of_year.values.tolist() == [161, 161, 162, 162, 163, 163]
    # 06:00 at 103 E is 6 h - 103/15 h = -0 h 52 min UTC.
    assert steps.time.values[0] == np.datetime64("2017-06-09T23:08:00", "ns")
    assert steps.time.values[1] == np.datetime64("2017-06-10T11:08:00", "ns")
    assert np.all(np.diff(steps.time.values) == np.timedelta64(12, "h"))


@pytest.mark.parametrize(("start", "end"), [("2017-06-12", "2017-06-10"), ("soon", "2017-06-10")])
def test_an_empty_or_unreadable_period_is_refused(start, end):
    with pytest.raises(InputError, match="period"):
        schema.overpass_steps(start, end, 103.0)


@pytest.mark.parametrize(
    ("utc", "lon", "date", "is_pm"),
    [
        # 06:00 local at 90 E is midnight UTC: on either side of that seam the local morning is the same day.
        ("2017-07-01T00:00:24", 89.9, "2017-07-01", False),
        ("2017-06-30T23:59:36", 90.1, "2017-07-01", False),
        ("2017-06-30T23:08:00", 103.0, "2017-07-01", False),
        ("2017-07-01T11:08:00", 103.0, "2017-07-01", True),
        ("2017-06-30T18:04:00", 179.0, "2017-07-01", False),
        ("2017-07-01T06:04:00", 179.0, "2017-07-01", True),
        ("2017-07-01T14:00:00", -120.0, "2017-07-01", False),
        ("2017-07-02T02:00:00", -120.0, "2017-07-01", True),
        ("2017-07-02T02:00:00", 240.0, "2017-07-01", True),
        ("2017-07-01T12:00:00", 0.0, "2017-07-01", True),
        ("2017-07-01T11:59:59", 0.0, "2017-07-01", False),
    ],
)
def test_an_observation_belongs_to_its_local_solar_day(utc, lon, date, is_pm):
    found, pm = schema.local_step(np.array(utc, "datetime64[ns]"), np.array(lon))
    assert found == np.datetime64(date)
    assert bool(pm) == is_pm


def test_every_step_finds_itself_again():
    for lon in (89.9, 90.1, 103.0, 179.0, -120.0):
        steps = schema.overpass_steps("2017-06-10", "2017-06-20", lon)
        date, is_pm = schema.local_step(steps.time.values, np.full(steps.sizes["time"], lon))
        np.testing.assert_array_equal(date, steps.local_date.values.astype("datetime64[D]"))
        np.testing.assert_array_equal(is_pm, steps.overpass.values == "PM")


def test_missing_times_have_no_local_day():
    date, _ = schema.local_step(np.array(["NaT"], "datetime64[ns]"), np.array([103.0]))
    assert np.isnat(date[0])


# -- composites ---------------------------------------------------------------------------------

TIMES = np.array(["2017-06-01", "2017-06-09", "2017-06-17"], "datetime64[ns]")
DAY = np.timedelta64(1, "D")


@pytest.mark.parametrize(
    ("step", "nearest", "ended"),
    [
        ("2017-05-23", -1, -1),  # further away than a composite lasts
        ("2017-05-25", 0, -1),
        ("2017-06-05", 0, 0),  # equally near: the earlier
        ("2017-06-05T01", 1, 0),
        ("2017-06-12T23", 1, 0),
        ("2017-06-13", 1, 1),
        ("2017-06-25", 2, 2),
        ("2017-06-28", -1, 2),
        ("2017-12-01", -1, -1),
    ],
)
def test_each_step_takes_the_nearest_composite_or_the_last_that_has_ended(step, nearest, ended):
    bounds = {"first_day": ("time", TIMES - 4 * DAY), "last_day": ("time", TIMES + 3 * DAY)}
    held = xr.Dataset(coords={"time": TIMES, **bounds})
    steps = np.array([step], "datetime64[ns]")
    assert schema.composite_index(held, steps).tolist() == [nearest]
    assert schema.composite_index(held, steps, never_later=True).tolist() == [ended]


def test_the_short_composite_of_the_old_year_serves_until_the_first_of_the_new_year_is_over():
    first = np.array(["2017-12-19", "2017-12-27", "2018-01-01"], "datetime64[ns]")
    last = np.array(["2017-12-26", "2017-12-31", "2018-01-08"], "datetime64[ns]")
    bounds = {"first_day": ("time", first), "last_day": ("time", last)}
    held = xr.Dataset(coords={"time": first + (last - first + DAY) // 2, **bounds})
    steps = np.arange("2018-01-01T22", "2018-01-10T22", 24, "datetime64[h]").astype("datetime64[ns]")
    assert schema.composite_index(held, steps, never_later=True).tolist() == [1] * 8 + [2]


def test_nothing_to_match_is_refused():
    with pytest.raises(InputError, match="nothing to match"):
        schema.nearest_index(TIMES[:0], TIMES)
