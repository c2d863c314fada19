"""LST views of UTC-day files on local overpass steps: the traps of 89.9, 90.1, 103 and 179 degrees east."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale import sinusoidal
from smscale.cube import LocalViews, lst_file_dates, lst_local_day_offset, tile_window
from smscale.errors import InputError
from smscale.grid import Grid
from smscale.kernels.lookup import Coded

KELVIN = np.where(np.arange(65536) > 0, np.arange(65536) * np.float32(0.02), np.nan).astype(np.float32)
HOURS = np.where(np.arange(256) <= 240, np.arange(256) * np.float32(0.1), np.nan).astype(np.float32)
GOOD = np.arange(256) == 0


def cell(lon):
    """A window of one cell around a longitude, a tenth of a degree wide, in the tropics."""
    return tile_window(Grid.latlon(lon - 0.05, 9.9, lon + 0.05, 10.0, step=0.1), 1200)


def layers(lst, hours, quality=0):
    """A tile that holds one value everywhere."""
    shape = (1200, 1200)
    raw = np.full(shape, 0 if np.isnan(lst) else round(lst / 0.02), np.uint16)
    view = np.full(shape, 255 if np.isnan(hours) else round(hours * 10), np.uint8)
    words = np.full(shape, quality, np.uint8)
    return Coded(raw, KELVIN, words, GOOD), Coded(view, HOURS, words, GOOD)


def views(lon, steps, overpass, files):
    """LST and view time (t,) of the steps at a longitude, from {date: (lst, hours)}."""
    window = cell(lon)
    found = LocalViews(window, steps)
    for date, (lst, hours) in files.items():
        for tile in window.tiles:
            found.add(tile, date, overpass, *layers(lst, hours))
    result = found.result()[:, 0, 0]
    return result[:, 0].tolist(), result[:, 1].tolist()


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


@pytest.mark.parametrize(
    ("lon", "night"), [(-120.0, 282.0), (-0.1, 282.0), (89.9, 281.0), (90.1, 281.0), (103.0, 281.0), (179.0, 281.0)]
)
def test_the_night_of_a_step_comes_from_the_file_of_its_utc_day(lon, night):
    """Local morning of 2 July: east of about 22.5 E the file of 1 July, west of it the file of 2 July."""
    values = {"2017-07-01": 281.0, "2017-07-02": 282.0, "2017-07-03": 283.0}
    step = [("2017-07-02", "AM")]
    assert views(lon, step, "AM", {d: (v, 1.5) for d, v in values.items()}) == ([pytest.approx(night)], [1.5])
    step = [("2017-07-02", "PM")]
    assert views(lon, step, "PM", {d: (v, 13.5) for d, v in values.items()}) == ([pytest.approx(282.0)], [13.5])


@settings(max_examples=60, deadline=None)
@given(tenths=st.integers(1, 239), lon=st.floats(-179.9, 179.9), night=st.booleans())
def test_every_view_lands_on_the_step_that_the_calendar_says(tenths, lon, night):
    """The kernel against `lst_local_day_offset`, evening views of a night one morning later."""
    overpass, hours = ("AM", tenths / 10) if night else ("PM", tenths / 10)
    window = cell(lon)
    steps = [(f"2017-07-{d:02d}", overpass) for d in range(1, 8)]
    found = LocalViews(window, steps)
    for tile in window.tiles:
        found.add(tile, "2017-07-04", overpass, *layers(300.0, hours))
    seen = np.isfinite(found.result()[:, 0, 0, 0])
    centre = window.grid.lon[0]
    day = 4 + int(lst_local_day_offset(np.float32(hours), centre)) + (night and hours >= 12)
    assert [i + 1 for i in np.flatnonzero(seen)] == [day]


def test_a_view_before_midnight_serves_the_morning_that_follows():
    steps = [("2017-07-01", "AM"), ("2017-07-02", "AM")]
    lst, hours = views(0.0, steps, "AM", {"2017-07-01": (280.0, 23.8)})
    np.testing.assert_allclose(lst, [np.nan, 280.0])
    np.testing.assert_allclose(hours, [np.nan, 23.8])


def test_of_two_views_the_one_nearer_to_the_overpass_wins_and_gaps_are_filled_from_the_other():
    step = [("2017-07-02", "AM")]
    early, late = (280.0, 23.9), (281.0, 1.4)
    assert views(0.0, step, "AM", {"2017-07-01": early, "2017-07-02": late})[0] == [pytest.approx(281.0)]
    gap = {"2017-07-01": early, "2017-07-02": (np.nan, np.nan)}
    assert views(0.0, step, "AM", gap)[0] == [pytest.approx(280.0)]
    untimed = {"2017-07-02": (281.0, np.nan)}
    assert np.isnan(views(0.0, step, "AM", untimed)[0][0])


def test_files_of_other_days_do_not_matter_and_are_not_asked_for():
    assert np.isnan(views(103.0, [("2017-07-02", "AM")], "AM", {"2017-06-20": (300.0, 1.5)})[0][0])
    assert lst_file_dates("2017-07-02", "2017-07-03", [100.0, 105.0]) == ["2017-07-01", "2017-07-02", "2017-07-03"]
    assert lst_file_dates("2017-07-02", "2017-07-02", [-100.0]) == ["2017-07-01", "2017-07-02", "2017-07-03"]


@settings(max_examples=60, deadline=None)
@given(tenths=st.integers(0, 239), lon=st.floats(-180, 179.99), night=st.booleans())
def test_no_view_of_a_step_lies_in_a_file_that_is_not_asked_for(tenths, lon, night):
    offset = int(lst_local_day_offset(tenths / 10, lon)) + (night and tenths >= 120)
    file = np.datetime64("2017-07-02") - offset
    assert str(file) in lst_file_dates("2017-07-02", "2017-07-02", [lon])


def test_quality_words_are_counted_by_overpass_and_margin_days_are_not():
    window = cell(103.0)
    found = LocalViews(window, [("2017-07-02", "PM")])
    (tile,) = window.tiles
    found.add(tile, "2017-07-02", "PM", *layers(300.0, 13.5, quality=65))
    found.add(tile, "2017-07-01", "PM", *layers(300.0, 13.5, quality=65), counted=False)
    assert found.words["PM"][65] == found.words["PM"].sum() == window.flat.size
    assert found.words["AM"].sum() == 0
    assert np.isnan(found.result()).all()


def test_windows_with_sub_points_and_unknown_overpasses_are_refused():
    grid = Grid.latlon(103, 30, 103.1, 30.1, step=0.1)
    with pytest.raises(InputError, match="cell centres"):
        LocalViews(tile_window(grid, 1200, 2), [])
    with pytest.raises(InputError, match="NOON"):
        LocalViews(tile_window(grid, 1200), [("2017-07-02", "NOON")])


def test_views_of_different_encoding_do_not_mix():
    window = cell(103.0)
    found = LocalViews(window, [("2017-07-02", "PM")])
    (tile,) = window.tiles
    lst, time = layers(300.0, 13.5)
    found.add(tile, "2017-07-02", "PM", lst, time)
    with pytest.raises(InputError, match="do not mix"):
        found.add(tile, "2017-07-02", "PM", lst._replace(values=lst.values * 2), time)


def test_the_seam_of_the_sinusoidal_tiles_is_where_the_cells_say():
    assert sinusoidal.tiles_of_box(102.95, 9.9, 103.05, 10.0) == list(cell(103.0).tiles)
