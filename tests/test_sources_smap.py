"""SMAP readers against h5py, pyproj and Python's own datetime; made files for what no real one here shows."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from smscale.errors import InputError
from smscale.grid import Grid
from smscale.schema import local_step
from smscale.sources.smap import FLAG_FILL, open_smap, parse_utc

Real = Callable[[str], Path]
L2 = "smap/SMAP_L2_SM_P_02801_A_20150811T013002_R18290_001.h5"
L4 = "smap/SMAP_L4_SM_aup_input.h5"
ROWS, COLUMNS = 406, 964


def write_l3(
    path: Path,
    version: str = "008",
    observed: dict[tuple[str, int, int], tuple[float, str]] | None = None,
    flip: bool = False,
    extra: dict[str, float] | None = None,
    text: bool = False,
) -> Path:
    """A SPL3SMP granule; `observed` maps (overpass, row, column) to (soil moisture, UTC string)."""
    grid = Grid.ease2(36)
    with h5py.File(path, "w") as file:
        identity = file.create_group("Metadata/DatasetIdentification")
        identity.attrs["ECSVersionID"], identity.attrs["shortName"] = version, "SPL3SMP"
        file.create_group("Metadata/Extent").attrs["rangeBeginningDateTime"] = "2017-06-10T00:00:00.000Z"
        for overpass, end in (("AM", ""), ("PM", "_pm")):
            group = file.create_group(f"Soil_Moisture_Retrieval_Data_{overpass}")
            floats = {"soil_moisture": np.nan, "latitude": np.nan} | dict.fromkeys(extra or {}, np.nan)
            fields = {name: np.full((ROWS, COLUMNS), -9999.0, np.float32) for name in floats}
            flags = {
                name: np.full((ROWS, COLUMNS), FLAG_FILL, np.uint16) for name in ("retrieval_qual_flag", "surface_flag")
            }
            times = np.full((ROWS, COLUMNS), b"N/A", dtype="S24")
            for (which, row, column), (value, when) in (observed or {}).items():
                if which != overpass:
                    continue
                fields["soil_moisture"][row, column] = value
                fields["latitude"][row, column] = grid.lat[ROWS - 1 - row if flip else row]
                for name, offset in (extra or {}).items():
                    fields[name][row, column] = value + offset
                for flag in flags.values():
                    flag[row, column] = 0
                times[row, column] = when.encode()
            for name, values in (fields | flags).items():
                item = group.create_dataset(name + end, data=values, compression=1)
                item.attrs["_FillValue"] = values.dtype.type(-9999.0 if values.dtype.kind == "f" else FLAG_FILL)
            if text:
                group.create_dataset("tb_time_utc" + end, data=times.astype(object), dtype=h5py.string_dtype("ascii"))
            else:
                group.create_dataset("tb_time_utc" + end, data=times, compression=1)
    return path


NAME = "SMAP_L3_SM_P_20170610_R18290_001.h5"
ONE = {("AM", 100, 700): (0.25, "2017-06-10T22:55:01.500Z"), ("PM", 100, 700): (0.30, "2017-06-10T10:30:00.000Z")}


@pytest.mark.real_data
def test_l2_equals_h5py_cell_by_cell(real: Real) -> None:
    ds = open_smap(real(L2))
    with h5py.File(real(L2)) as file:
        group = {name: item[:] for name, item in file["Soil_Moisture_Retrieval_Data"].items()}
    row, col = group["EASE_row_index"].astype(int), group["EASE_column_index"].astype(int)
    row, col = row - row.min(), col - col.min()
    for ours, theirs in (
        ("soil_moisture", "soil_moisture"),
        ("static_water_body_fraction", "static_water_body_fraction"),
        ("vegetation_opacity", "vegetation_opacity"),
    ):
        expected = np.where(group[theirs] == -9999, np.nan, group[theirs])
        np.testing.assert_array_equal(ds[ours].values[row, col], expected)
        assert np.isfinite(ds[ours].values).sum() == np.isfinite(expected).sum()
    for ours, theirs in (("retrieval_quality", "retrieval_qual_flag"), ("surface_flag", "surface_flag")):
        assert ds[ours].dtype == np.uint16
        np.testing.assert_array_equal(ds[ours].values[row, col], group[theirs])
        assert (ds[ours].values != FLAG_FILL).sum() == (group[theirs] != FLAG_FILL).sum()
    assert int(ds.soil_moisture.notnull().sum()) == 1333
    assert float(ds.soil_moisture.max()) > 0.5  # the stated valid range does not hold, and QC is not applied here
    np.testing.assert_allclose(ds.lat.values[row], group["latitude"], atol=1e-4)
    np.testing.assert_allclose(ds.lon.values[col], group["longitude"], atol=1e-4)
    assert ds.attrs["product"] == "SPL2SMP"
    assert (ds.attrs["version"], ds.attrs["algorithm"], ds.attrs["date"], ds.attrs["overpass"]) == (
        8,
        "dca",
        "2015-08-11",
        "PM",
    )


@pytest.mark.real_data
def test_l2_times_agree_with_its_seconds_and_with_datetime(real: Real) -> None:
    with h5py.File(real(L2)) as file:
        text = file["Soil_Moisture_Retrieval_Data/tb_time_utc"][:]
        seconds = file["Soil_Moisture_Retrieval_Data/tb_time_seconds"][:]
    ours = parse_utc(text)
    from_seconds = np.datetime64("2000-01-01T12:00:00", "ns") + np.round(seconds * 1e9).astype("timedelta64[ns]")
    assert np.abs(ours - from_seconds).max() <= np.timedelta64(2, "ms")  # also where NASA wrote *** for milliseconds
    assert sum(b"***" in t for t in text) == 10
    for raw, time in zip(text[:200], ours[:200], strict=True):
        if b"***" not in raw:
            expected = datetime.strptime(raw.decode(), "%Y-%m-%dT%H:%M:%S.%fZ")
            assert time == np.datetime64(expected, "ns")


@pytest.mark.real_data
def test_l2_other_algorithms_are_read_by_name(real: Real) -> None:
    with h5py.File(real(L2)) as file:
        group = file["Soil_Moisture_Retrieval_Data"]
        row, col = group["EASE_row_index"][:].astype(int), group["EASE_column_index"][:].astype(int)
        raw = group["soil_moisture_option2"][:]
    ds = open_smap(real(L2), algorithm="scav")
    np.testing.assert_array_equal(ds.soil_moisture.values[row, col], np.where(raw == -9999, np.nan, raw))
    assert ds.attrs["algorithm"] == "scav"
    assert ds.attrs["default_algorithm"] == "dca"


@pytest.mark.real_data
def test_l2_window_equals_the_same_cells_of_the_whole(real: Real) -> None:
    whole = open_smap(real(L2))
    grid = Grid.ease2(36, -130, 40, -110, 60)
    ds = open_smap(real(L2), grid=grid)
    assert (ds.sizes["lat"], ds.sizes["lon"]) == grid.shape
    assert int(ds.soil_moisture.notnull().sum()) > 50
    xr.testing.assert_identical(ds.drop_attrs(), whole.sel(lat=ds.lat, lon=ds.lon).drop_attrs())


@pytest.mark.real_data
def test_l4_equals_h5py_on_its_window_of_the_9_km_grid(real: Real) -> None:
    ds = open_smap(real(L4))
    with h5py.File(real(L4)) as file:
        for ours, theirs in (
            ("soil_moisture", "sm_surface_analysis"),
            ("surface_temperature", "surface_temp_analysis"),
        ):
            raw = file["Analysis_Data"][theirs][:]
            np.testing.assert_array_equal(ds[ours].values, np.where(raw == -9999, np.nan, raw))
        x, y, column = file["x"][:], file["y"][:], file["cell_column"][:]
    assert int(ds.soil_moisture.notnull().sum()) == 246473
    assert ds.attrs["col0"] == column[0, 0] == 87
    assert ds.attrs["row0"] == 40
    np.testing.assert_allclose(ds.x, x, atol=1.0)  # the file's x and y are 0.6 m off the grid's own
    np.testing.assert_allclose(ds.y, y, atol=1.0)
    lon, lat = pyproj.Transformer.from_crs("EPSG:6933", "EPSG:4326", always_xy=True).transform(x, np.full_like(x, y[0]))
    np.testing.assert_allclose(ds.lon, lon, atol=1e-5)
    np.testing.assert_allclose(ds.lat[0], lat[0], atol=1e-5)
    assert (ds.observation_time == np.datetime64("2020-01-28T15:00:00", "ns")).all()


@pytest.mark.real_data
def test_l4_window_reads_and_pads(real: Real) -> None:
    whole = open_smap(real(L4))
    ds = open_smap(real(L4), grid=Grid.ease2(9, -100, 15, -90, 30))  # the file ends at 19 N
    inside = ds.sel(lat=whole.lat[whole.lat < 30.0])
    np.testing.assert_array_equal(inside.soil_moisture, whole.soil_moisture.sel(lat=inside.lat, lon=inside.lon))
    assert ds.soil_moisture.where(ds.lat < 18.9).isnull().all()


@pytest.mark.real_data
def test_latitude_and_longitude_of_a_genuine_spl3smp_granule_are_the_grids(real: Real) -> None:
    grid = Grid.ease2(36)
    with h5py.File(real("smap/SC_SPL3SMP_009_prefetch.nc4")) as file:
        lat = file["Soil_Moisture_Retrieval_Data_AM/latitude"][:]
        lon = file["Soil_Moisture_Retrieval_Data_AM/longitude"][:]
    seen = lat != -9999
    np.testing.assert_allclose(lat[seen], np.broadcast_to(grid.lat[:, None], lat.shape)[seen], atol=1e-4)
    np.testing.assert_allclose(lon[seen], np.broadcast_to(grid.lon, lon.shape)[seen], atol=1e-4)


@pytest.mark.real_data
def test_a_smap_file_without_soil_moisture_is_refused(real: Real) -> None:
    with pytest.raises(InputError, match="no soil_moisture"):
        open_smap(real("smap/SC_SPL3SMP_009_prefetch.nc4"))


@pytest.mark.real_data
def test_xarray_engine_is_open_smap(real: Real) -> None:
    xr.testing.assert_identical(xr.open_dataset(real(L2), engine="smap"), open_smap(real(L2)))


@pytest.mark.parametrize("text", [False, True], ids=["fixed", "variable"])
def test_l3_lies_on_the_grid_with_both_overpasses(tmp_path: Path, text: bool) -> None:
    ds = open_smap(write_l3(tmp_path / NAME, observed=ONE, text=text))
    assert dict(ds.sizes) == {"overpass": 2, "lat": ROWS, "lon": COLUMNS}
    grid = Grid.ease2(36)
    am = ds.sel(overpass="AM").isel(lat=100, lon=700)
    assert float(am.soil_moisture) == pytest.approx(0.25)
    assert float(am.lat) == grid.lat[100]
    assert am.observation_time.values == np.datetime64("2017-06-10T22:55:01.500", "ns")
    assert float(ds.sel(overpass="PM").soil_moisture[100, 700]) == pytest.approx(0.30)
    assert int(ds.soil_moisture.notnull().sum()) == 2
    assert int(ds.observation_time.notnull().sum()) == 2
    assert int((ds.retrieval_quality != FLAG_FILL).sum()) == 2
    assert ds.attrs["date"] == "2017-06-10"
    assert ds.attrs["crs"] == "EPSG:6933"


def test_l3_window_equals_the_same_cells_of_the_whole(tmp_path: Path) -> None:
    path = write_l3(tmp_path / NAME, observed=ONE)
    grid = Grid.ease2(36).window(slice(95, 110), slice(690, 705))
    part, whole = open_smap(path, grid=grid), open_smap(path)
    xr.testing.assert_identical(part.drop_attrs(), whole.isel(lat=slice(95, 110), lon=slice(690, 705)).drop_attrs())
    assert (part.attrs["row0"], part.attrs["col0"]) == (95, 690)


def test_a_window_of_another_resolution_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no window"):
        open_smap(write_l3(tmp_path / NAME), grid=Grid.ease2(9, 100, 30, 104, 34))


@pytest.mark.parametrize(("version", "default"), [("005", "scav"), ("007", "scav"), ("008", "dca"), ("009", "dca")])
def test_default_algorithm_follows_the_version(tmp_path: Path, version: str, default: str) -> None:
    ds = open_smap(write_l3(tmp_path / NAME, version=version, observed=ONE))
    assert ds.attrs["algorithm"] == default


@pytest.mark.parametrize(
    ("release", "default"), [("R14010", "scav"), ("R17000", "scav"), ("R18290", "dca"), ("R19240", "dca")]
)
def test_default_algorithm_follows_the_release_where_no_version_is_stated(
    tmp_path: Path, release: str, default: str
) -> None:
    path = write_l3(tmp_path / NAME.replace("R18290", release), version="", observed=ONE)
    assert open_smap(path).attrs["algorithm"] == default


def test_algorithm_is_chosen_by_name_and_an_absent_one_is_refused(tmp_path: Path) -> None:
    path = write_l3(tmp_path / NAME, observed=ONE, extra={"soil_moisture_scav": 0.05})
    with h5py.File(path, "a") as file:
        for overpass, end in (("AM", ""), ("PM", "_pm")):
            group = file[f"Soil_Moisture_Retrieval_Data_{overpass}"]
            group["retrieval_qual_flag_scav" + end] = group["retrieval_qual_flag" + end][:]
    ds = open_smap(path, algorithm="SCA-V")
    assert ds.attrs["algorithm"] == "scav"
    assert float(ds.soil_moisture[0, 100, 700]) == pytest.approx(0.30)
    with pytest.raises(InputError, match="holds no scah"):
        open_smap(path, algorithm="scah")
    with pytest.raises(InputError, match="algorithm must be one of"):
        open_smap(path, algorithm="best")


def test_a_flipped_granule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="flipped or shifted"):
        open_smap(write_l3(tmp_path / NAME, observed=ONE, flip=True))


def test_a_date_that_disagrees_with_the_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2017-06-10 but its name 2017-07-01"):
        open_smap(write_l3(tmp_path / NAME.replace("0610", "0701"), observed=ONE))


def test_the_am_field_of_a_utc_day_is_the_next_local_morning_east_of_90(tmp_path: Path) -> None:
    """SPL3SMP is cut by UTC day: 06:00 solar is 00:00 UTC at 90 E, so the local date jumps there."""
    grid = Grid.ease2(36)
    local_six = datetime(2017, 6, 11, 6)
    observed = {}
    expected = {}
    for longitude in (89.9, 90.1, 103.0, 179.0):
        _, column = grid.index(longitude, 30.0)
        utc = local_six - timedelta(hours=float(grid.lon[column]) / 15)
        utc = utc.replace(day=10)  # what the granule of 10 June holds
        observed["AM", 100, int(column)] = (0.2, utc.strftime("%Y-%m-%dT%H:%M:%S.000Z"))
        expected[int(column)] = "2017-06-11" if grid.lon[column] > 90 else "2017-06-10"
    ds = open_smap(write_l3(tmp_path / NAME, observed=observed)).sel(overpass="AM").isel(lat=100)
    local_date, is_pm = local_step(ds.observation_time.values, ds.lon.values)
    assert {column: str(local_date[column]) for column in expected} == expected
    assert len(expected) == 4
    assert not is_pm[list(expected)].any()


@given(st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 31)))
def test_parse_utc_is_the_inverse_of_writing(when: datetime) -> None:
    when = when.replace(microsecond=when.microsecond // 1000 * 1000)
    text = when.replace(tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z"
    assert parse_utc(np.array([text.encode()], dtype="S24"))[0] == np.datetime64(when, "ns")


def test_parse_utc_of_anything_else_is_nat() -> None:
    text = np.array(
        [[b"", b"N/A", b"-9999"], [b"2017-06-10T22:55:01.***Z", b"2017-06-10T22:55:01Z", b"garbage-and-moreT12345678"]],
        dtype="S24",
    )
    parsed = parse_utc(text)
    assert parsed.shape == (2, 3)
    assert np.isnat(parsed[0]).all()
    assert np.isnat(parsed[1, 2])
    assert parsed[1, 0] == np.datetime64("2017-06-10T22:55:02", "ns")
    assert parsed[1, 1] == np.datetime64("2017-06-10T22:55:01", "ns")


def test_a_truncated_granule_is_named(tmp_path: Path) -> None:
    path = write_l3(tmp_path / NAME, observed=ONE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"20170610.*truncated") as raised:
        open_smap(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Login", "web page"),
        (b"\x0e\x03\x13\x01 HDF4", "not HDF5"),
        (None, "no such file"),
    ],
)
def test_what_is_no_hdf5_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / NAME
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        open_smap(path)


def test_an_hdf5_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["temperature"] = np.zeros(3)
    with pytest.raises(InputError, match=r"no SMAP soil moisture group \(found temperature\)"):
        open_smap(tmp_path / "x.h5")
    with pytest.raises(InputError, match="is a folder"):
        open_smap(tmp_path)


def test_an_l4_file_off_its_grid_is_refused(tmp_path: Path) -> None:
    grid = Grid.ease2(9, 100, 30, 101, 31)
    assert grid.x is not None
    assert grid.y is not None
    for name, shift in (("half.h5", 4504.0), ("good.h5", 0.5)):
        with h5py.File(tmp_path / name, "w") as file:
            file["Analysis_Data/sm_surface_analysis"] = np.full(grid.shape, 0.3, np.float32)
            file["x"], file["y"] = grid.x + shift, grid.y
            file.create_group("Metadata/Extent").attrs.update(
                rangeBeginningDateTime="2020-01-28T13:30:00.000Z", rangeEndingDateTime="2020-01-28T16:30:00.000Z"
            )
    np.testing.assert_array_equal(open_smap(tmp_path / "good.h5").lon, grid.lon)
    with pytest.raises(InputError, match="off the EASE-Grid"):
        open_smap(tmp_path / "half.h5")
