"""SMAP readers against h5py, pyproj and Python's own datetime; made files for what no real one here shows."""

import pickle
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given, settings
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


# -- versions, products and grids -----------------------------------------------------------------

#: Composite releases by version (version history of the products at NSIDC): at 9 km versions lag three behind.
RELEASES_36 = {4: "R14010", 5: "R16010", 6: "R16510", 7: "R17000", 8: "R18290", 9: "R19240"}


#: tb_time_seconds of noon of 7 June 2017: seconds since noon of 1 January 2000 (long_name in the genuine version 4 schema).
SECONDS = (datetime(2017, 6, 7) - datetime(2000, 1, 1)).total_seconds()


def write_schema(
    path: Path,
    product: str,
    version: int,
    suffixes: dict[str, float],
    plain: bool = True,
    link: str | None = None,
    shape: tuple[int, int] = (ROWS, COLUMNS),
    fill_value: float = 0.2,
) -> Path:
    """A granule whose algorithms have their own data sets: suffix -> what it adds to `fill_value`; `link` is what the plain name links to."""
    km = 36 if shape == (ROWS, COLUMNS) else 9
    grid = Grid.ease2(km)
    with h5py.File(path, "w") as file:
        identity = file.create_group("Metadata/DatasetIdentification")
        identity.attrs["ECSVersionID"], identity.attrs["shortName"] = f"{version:03d}", product
        for overpass, end in (("AM", ""), ("PM", "_pm")):
            group = file.create_group(f"Soil_Moisture_Retrieval_Data_{overpass}")

            def put(
                name: str, value: float | np.ndarray, dtype: str, group: h5py.Group = group, end: str = end
            ) -> None:
                fill = np.dtype(dtype).type(FLAG_FILL if dtype == "u2" else -9999.0)
                chunks = (shape[0] // 2, shape[1] // 4)
                item = group.create_dataset(name + end, shape, dtype, chunks=chunks, fillvalue=fill, compression=1)
                item.attrs["_FillValue"] = fill
                item[100:110, 200:220] = value

            block = np.broadcast_to(grid.lat[100:110, None], (10, 20)), np.broadcast_to(grid.lon[200:220], (10, 20))
            put("latitude", block[0], "f4")
            put("longitude", block[1], "f4")
            put("tb_time_seconds", SECONDS, "f8")
            put("surface_flag", 0, "u2")
            for suffix, add in suffixes.items():
                put(f"soil_moisture_{suffix}", fill_value + add, "f4")
                put(f"retrieval_qual_flag_{suffix}", round(100 * add), "u2")
                put(f"vegetation_opacity_{suffix}", add, "f4")
            if link:
                for name in ("soil_moisture", "retrieval_qual_flag", "vegetation_opacity"):
                    group[name + end] = group[f"{name}_{link}{end}"]
            elif plain:
                put("soil_moisture", fill_value, "f4")
                put("retrieval_qual_flag", 1, "u2")
                put("vegetation_opacity", 0.5, "f4")
                put("soil_moisture_error", 0.03, "f4")
            if version >= 9 or (km == 9 and version >= 6):
                polar = file.create_group(f"Soil_Moisture_Retrieval_Data_Polar_{overpass}")
                polar[f"soil_moisture{end}"] = np.zeros((5, 5), np.float32)
    return path


SCA_DCA = {"scah": 0.01, "scav": 0.02, "dca": 0.03}


@pytest.mark.parametrize(
    ("product", "version", "suffixes", "link", "default"),
    [
        ("SPL3SMP", 4, {}, None, "scav"),
        ("SPL3SMP", 5, {}, None, "scav"),
        ("SPL3SMP", 6, {"option1": 0.01, "option2": 0.02, "option3": 0.03}, None, "scav"),
        ("SPL3SMP", 7, SCA_DCA, "scav", "scav"),
        ("SPL3SMP", 8, SCA_DCA, "dca", "dca"),
        ("SPL3SMP", 9, SCA_DCA, "dca", "dca"),
        ("SPL3SMP_E", 3, {}, None, "scav"),
        ("SPL3SMP_E", 4, SCA_DCA, None, "scav"),
        ("SPL3SMP_E", 5, SCA_DCA, None, "dca"),
        ("SPL3SMP_E", 6, SCA_DCA, "dca", "dca"),
    ],
)
def test_every_version_gives_its_default_and_each_algorithm_that_it_holds(
    tmp_path: Path, product: str, version: int, suffixes: dict[str, float], link: str | None, default: str
) -> None:
    nine = product.endswith("_E")
    shape = (1624, 3856) if nine else (ROWS, COLUMNS)
    part = "L3_SM_P_E" if nine else "L3_SM_P"
    release = RELEASES_36[version + 3 * nine]
    path = write_schema(
        tmp_path / f"SMAP_{part}_20170607_{release}_001.h5", product, version, suffixes, True, link, shape
    )
    window = Grid.ease2(9 if nine else 36).window(slice(95, 115), slice(195, 225))
    ds = open_smap(path, grid=window)
    facts = ("product", "version", "release", "algorithm", "default_algorithm", "date", "resolution_km")
    assert [ds.attrs[n] for n in facts] == [
        product,
        version,
        release,
        default,
        default,
        "2017-06-07",
        9 if nine else 36,
    ]
    seen = ds.isel(lat=slice(5, 15), lon=slice(5, 25))
    own = next(
        (add for s, add in suffixes.items() if s in {"scav": ("scav", "option2"), "dca": ("dca",)}[default]), None
    )
    np.testing.assert_allclose(seen.soil_moisture, 0.2 if own is None else 0.2 + own, rtol=1e-6)
    assert int(ds.soil_moisture.count()) == 2 * 10 * 20
    assert (seen.observation_time == np.datetime64("2017-06-07T12:00", "ns")).all()
    assert int(ds.observation_time.notnull().sum()) == 2 * 10 * 20
    for name, (suffix, option) in {
        "scah": ("scah", "option1"),
        "scav": ("scav", "option2"),
        "dca": ("dca", "option3"),
    }.items():
        add = suffixes.get(suffix, suffixes.get(option))
        if add is None and name != default:
            with pytest.raises(InputError, match=f"holds no {name} soil_moisture; it has {default}"):
                open_smap(path, algorithm=name, grid=window)
        elif add is not None:
            chosen = open_smap(path, algorithm=name, grid=window).isel(lat=slice(5, 15), lon=slice(5, 25))
            np.testing.assert_allclose(chosen.soil_moisture, 0.2 + add, rtol=1e-6)
            np.testing.assert_allclose(chosen.vegetation_opacity, add, rtol=1e-6)
            assert (chosen.retrieval_quality == round(100 * add)).all()
            assert ("soil_moisture_error" in chosen) == (name == default and link is None)
    assert ("groups_not_read" in ds.attrs) == (version >= (6 if nine else 9))


def test_the_files_own_link_says_which_algorithm_is_the_default(tmp_path: Path) -> None:
    path = write_schema(tmp_path / "SMAP_L3_SM_P_20170607_R18290_001.h5", "SPL3SMP", 8, SCA_DCA, link="scav")
    assert open_smap(path).attrs["default_algorithm"] == "scav"


def test_a_file_without_the_plain_names_is_read_by_its_default_algorithms(tmp_path: Path) -> None:
    path = write_schema(tmp_path / "SMAP_L3_SM_P_20170607_R18290_001.h5", "SPL3SMP", 8, SCA_DCA, plain=False)
    np.testing.assert_allclose(open_smap(path).soil_moisture[:, 105, 210], 0.23, rtol=1e-6)


@pytest.mark.real_data
def test_default_of_the_genuine_half_orbit_is_what_its_link_says(real: Real) -> None:
    with h5py.File(real(L2)) as file:
        group = file["Soil_Moisture_Retrieval_Data"]
        assert [group["soil_moisture"] == group[f"soil_moisture_option{i}"] for i in (1, 2, 3)] == [False, False, True]
    ds = open_smap(real(L2))
    assert (ds.attrs["default_algorithm"], ds.attrs["release"]) == ("dca", "R18290")


@pytest.mark.real_data
def test_every_variable_of_the_genuine_version_4_and_8_schemas_has_a_place(real: Real, tmp_path: Path) -> None:
    """Files with exactly the names of the genuine granules are read, with the variables that those names give."""
    header = real("smap/SMAP_L3_SM_P_20150406_R14010_001.h5.bescmd.baseline.header").read_text()
    dmr = real("smap/SC_SPL3SMP_008.dmr").read_text()
    names = {
        4: set(re.findall(r"\b\w+ Soil_Moisture_Retrieval_Data_[AP]M_(\w+)\(FakeDim0", header)),
        8: set(re.findall(r"<(?:Float32|Float64|UInt16|String|Byte) name=\"(\w+)\"", dmr)),
    }
    opened = {}
    for version, found in names.items():
        path = tmp_path / f"SMAP_L3_SM_P_20170610_{RELEASES_36[version]}_001.h5"
        grid = Grid.ease2(36)
        with h5py.File(path, "w") as file:
            for overpass in ("AM", "PM"):
                group = file.create_group(f"Soil_Moisture_Retrieval_Data_{overpass}")
                for name in found:
                    if name.endswith("_pm") == (overpass == "PM"):
                        flag = "flag" in name or "status" in name
                        group[name] = np.full((ROWS, COLUMNS), 0 if flag else 0.25, np.uint16 if flag else np.float32)
                for name, values in (("latitude", grid.lat[:, None]), ("longitude", grid.lon)):
                    if name + ("_pm" if overpass == "PM" else "") in group:
                        group[name + ("_pm" if overpass == "PM" else "")][...] = values
                    end = "_pm" if overpass == "PM" else ""
                    if "tb_time_utc" + end in group:
                        del group["tb_time_utc" + end]
                        group["tb_time_utc" + end] = np.full((ROWS, COLUMNS), b"2017-06-10T10:00:00.000Z")
        opened[version] = open_smap(path)
    assert {4: len(names[4]) > 50, 8: len(names[8]) > 80} == {4: True, 8: True}
    wanted = {"soil_moisture", "retrieval_quality", "surface_flag", "observation_time", "vegetation_opacity"}
    wanted |= {"vegetation_water_content", "static_water_body_fraction", "soil_moisture_error", "surface_temperature"}
    wanted |= {"freeze_thaw_fraction", "tb_quality_h", "tb_quality_v"}
    assert set(opened[4].data_vars) == set(opened[8].data_vars) == wanted
    assert [opened[v].attrs["algorithm"] for v in (4, 8)] == ["scav", "dca"]
    with pytest.raises(InputError, match="holds no dca soil_moisture; it has scav"):
        open_smap(tmp_path / f"SMAP_L3_SM_P_20170610_{RELEASES_36[4]}_001.h5", algorithm="dca")
    assert (
        open_smap(tmp_path / f"SMAP_L3_SM_P_20170610_{RELEASES_36[8]}_001.h5", algorithm="scah").attrs["algorithm"]
        == "scah"
    )


@pytest.mark.real_data
def test_cells_lie_where_nsidc_says(real: Real, tmp_path: Path) -> None:
    ds = open_smap(write_l3(tmp_path / NAME, observed=ONE))
    with xr.open_dataset(real("smap/NSIDC0772_LatLon_EASE2_M36km_v1.0.nc"), decode_cf=False) as known:
        np.testing.assert_allclose(ds.lat, known["latitude"].values[:, 0], atol=1e-9)
        np.testing.assert_allclose(ds.lon, known["longitude"].values[0], atol=1e-9)
        np.testing.assert_allclose(ds.x, known["x"].values, atol=1e-6)
        np.testing.assert_allclose(ds.y, known["y"].values, atol=1e-6)


@pytest.mark.parametrize("axis", ["lat", "lon"])
def test_a_shifted_granule_is_refused(tmp_path: Path, axis: str) -> None:
    path = write_schema(tmp_path / "SMAP_L3_SM_P_20170607_R18290_001.h5", "SPL3SMP", 8, SCA_DCA)
    name = {"lat": "latitude", "lon": "longitude"}[axis]
    with h5py.File(path, "a") as file:
        item = file[f"Soil_Moisture_Retrieval_Data_PM/{name}_pm"]
        item[100:110, 200:220] += 0.37
    with pytest.raises(InputError, match=f"its {name} in grid row 100 .*flipped or shifted"):
        open_smap(path)


def test_a_9_km_granule_that_is_flipped_is_refused_without_reading_all_of_it(tmp_path: Path) -> None:
    grid = Grid.ease2(9)
    path = tmp_path / "SMAP_L3_SM_P_E_20170607_R18290_001.h5"
    write_schema(path, "SPL3SMP_E", 5, SCA_DCA, shape=(1624, 3856))
    with h5py.File(path, "a") as file:
        file["Soil_Moisture_Retrieval_Data_AM/latitude"][:, :100] = grid.lat[::-1, None]
    with pytest.raises(InputError, match="flipped or shifted"):
        open_smap(path)


def write_l2(path: Path, km: int, cells: list[tuple[int, int, float]], short_name: str) -> Path:
    grid = Grid.ease2(km)
    row, col, value = (np.array(x) for x in zip(*cells, strict=True))
    with h5py.File(path, "w") as file:
        identity = file.create_group("Metadata/DatasetIdentification")
        identity.attrs["ECSVersionID"], identity.attrs["shortName"] = "005", short_name
        group = file.create_group("Soil_Moisture_Retrieval_Data")
        group["EASE_row_index"], group["EASE_column_index"] = row.astype(np.uint16), col.astype(np.uint16)
        group["latitude"], group["longitude"] = grid.lat[row].astype(np.float32), grid.lon[col].astype(np.float32)
        group["soil_moisture"] = value.astype(np.float32)
        for name in ("retrieval_qual_flag", "surface_flag"):
            group[name] = np.zeros(row.size, np.uint16)
        group["tb_time_seconds"] = np.full(row.size, SECONDS)
        file.create_group("Soil_Moisture_Retrieval_Data_Polar")["soil_moisture"] = np.zeros(3, np.float32)
    return path


def test_9_km_half_orbits_are_laid_on_the_9_km_grid(tmp_path: Path) -> None:
    cells = [(400, 3000, 0.11), (402, 3003, 0.22), (401, 3001, -9999.0)]
    path = write_l2(tmp_path / "SMAP_L2_SM_P_E_02801_D_20170607T013002_R18290_001.h5", 9, cells, "SPL2SMP_E")
    ds = open_smap(path)
    assert (ds.attrs["resolution_km"], ds.attrs["row0"], ds.attrs["col0"]) == (9, 400, 3000)
    assert (ds.attrs["product"], ds.attrs["algorithm"], ds.attrs["overpass"]) == ("SPL2SMP_E", "dca", "AM")
    assert ds.attrs["groups_not_read"] == "Soil_Moisture_Retrieval_Data_Polar"
    assert ds.soil_moisture.shape == (3, 4)
    assert float(ds.soil_moisture[2, 3]) == pytest.approx(0.22)
    assert int(ds.soil_moisture.count()) == 2
    with h5py.File(path, "a") as file:  # 9 km cells under a 36 km product's name
        file["Metadata/DatasetIdentification"].attrs["shortName"] = "SPL2SMP"
        file["Soil_Moisture_Retrieval_Data/EASE_row_index"][:] = [300, 301, 302]
        file["Soil_Moisture_Retrieval_Data/EASE_column_index"][:] = [700, 701, 702]
    with pytest.raises(InputError, match="cell 0 of its list says latitude"):
        open_smap(path)


@pytest.mark.parametrize("placed", [True, False], ids=["x and y", "shape alone"])
def test_spl4smgp_is_read_at_the_middle_of_its_three_hours(tmp_path: Path, placed: bool) -> None:
    grid = Grid.ease2(9)
    path = tmp_path / "SMAP_L4_SM_gph_20200128T013000_Vv7032_001.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("Geophysical_Data")
        for name, value in (("sm_surface", 0.25), ("sm_rootzone", 0.3), ("soil_temp_layer1", 290.0)):
            item = group.create_dataset(name, grid.shape, "f4", fillvalue=-9999.0, chunks=(203, 482), compression=1)
            item[800:810, 3000:3020] = value
            item.attrs["units"], item.attrs["long_name"] = np.bytes_("m3 m-3"), np.bytes_(name)
        if placed:
            file["x"], file["y"] = grid.x, grid.y
    ds = open_smap(path, grid=grid.window(slice(795, 815), slice(2990, 3030)))
    assert dict(ds.sizes) == {"lat": 20, "lon": 40}
    assert {"soil_moisture", "root_zone_soil_moisture", "soil_temperature_layer1"} <= set(ds.data_vars)
    assert int(ds.soil_moisture.count()) == 200
    assert (ds.observation_time == np.datetime64("2020-01-28T01:30", "ns")).all()
    assert (ds.attrs["product"], ds.attrs["release"], ds.attrs["date"]) == ("SPL4SMGP", "Vv7032", "2020-01-28")


# -- laziness -------------------------------------------------------------------------------------


def test_values_are_read_when_touched_and_kept(tmp_path: Path) -> None:
    path = write_l3(tmp_path / NAME, observed=ONE)
    ds = open_smap(path)
    assert float(ds.soil_moisture[0, 100, 700]) == pytest.approx(0.25)
    assert int(ds.surface_flag.sel(overpass="AM").values[100, 700]) == 0
    ds["retrieval_quality"].load()
    path.unlink()  # it is not open
    assert int(ds["retrieval_quality"].values[0, 100, 700]) == 0
    with pytest.raises(InputError, match="cannot be read as SMAP HDF5") as raised:
        ds["observation_time"].load()
    assert "\n" not in str(raised.value)


def test_a_pickle_is_small_and_reads_for_itself(tmp_path: Path) -> None:
    ds = open_smap(write_l3(tmp_path / NAME, observed=ONE))
    packed = pickle.dumps(ds)
    assert len(packed) < 100_000  # coordinates only: the values of one float layer are 3 MB
    xr.testing.assert_identical(pickle.loads(packed).load(), ds.load())


@pytest.mark.real_data
@pytest.mark.parametrize("file", [L2, L4])
def test_chunked_reading_in_threads_equals_plain(real: Real, file: str) -> None:
    plain, chunked = open_smap(real(file)).load(), open_smap(real(file)).chunk({"lat": 37, "lon": 100})
    assert chunked.soil_moisture.chunks is not None
    xr.testing.assert_identical(chunked.compute(scheduler="threads", num_workers=4), plain)
    by_xarray = xr.open_dataset(real(file), engine="smap", chunks={})
    xr.testing.assert_identical(by_xarray.isel(lat=slice(3, 9)).compute(), plain.isel(lat=slice(3, 9)))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_indexing_equals_that_of_the_loaded_array(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / NAME
    if not path.exists():
        observed = {(o, r, c): (0.1 + r / 1000 + c / 1e5, "2017-06-10T22:55:01.500Z") for o in ("AM", "PM") for r in range(98, 106) for c in range(690, 702)}  # fmt: skip
        write_l3(path, observed=observed)
    window = Grid.ease2(36).window(slice(97, 107), slice(688, 704))
    whole = open_smap(path, grid=window).soil_moisture.load()
    keys = {}
    for dim, size in whole.sizes.items():
        slices = st.builds(slice, *(st.one_of(st.none(), st.integers(-size - 2, size + 2)) for _ in range(2)), st.sampled_from([None, 1, 2, 3, -1, -2]))  # fmt: skip
        listed = st.lists(st.integers(-size, size - 1), min_size=1, max_size=4)
        slices = slices.filter(
            lambda key, size=size: len(range(size)[key]) > 0
        )  # xarray fails on some empty ones itself
        keys[dim] = data.draw(st.one_of(st.integers(-size, size - 1), slices, listed))
    xr.testing.assert_identical(open_smap(path, grid=window).soil_moisture.isel(keys), whole.isel(keys))


def test_a_window_touches_only_its_own_chunks_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = write_schema(tmp_path / "SMAP_L3_SM_P_20170607_R18290_001.h5", "SPL3SMP", 8, SCA_DCA, link="dca")
    with h5py.File(path, "a") as file:
        item = file["Soil_Moisture_Retrieval_Data_AM/soil_moisture"]
        item[300:310, 900:910] = 0.4
    with h5py.File(path, "r") as file:
        spot = file["Soil_Moisture_Retrieval_Data_AM/soil_moisture"].id.get_chunk_info_by_coord((203, 723))
    content = bytearray(path.read_bytes())
    content[spot.byte_offset : spot.byte_offset + spot.size] = b"\xff" * spot.size
    path.write_bytes(content)
    window = Grid.ease2(36).window(slice(95, 115), slice(195, 225))
    assert int(open_smap(path, grid=window).soil_moisture.count()) == 400
    whole = open_smap(path)
    assert int(whole.surface_flag.sel(overpass="AM").values[105, 210]) == 0
    with pytest.raises(InputError, match=r"R18290_001\.h5: cannot be read as SMAP HDF5") as raised:
        whole.load()
    assert "\n" not in str(raised.value)


def test_a_file_replaced_after_opening_is_noticed(tmp_path: Path) -> None:
    path = write_schema(tmp_path / "SMAP_L3_SM_P_20170607_R18290_001.h5", "SPL3SMP", 8, SCA_DCA)
    ds = open_smap(path)
    write_schema(path, "SPL3SMP_E", 5, SCA_DCA, shape=(1624, 3856))
    with pytest.raises(InputError, match="open it again"):
        ds.soil_moisture.load()
