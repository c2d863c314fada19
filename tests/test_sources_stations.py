"""Station readers against the `ismn` package, and made files with what goes wrong in real ones."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smscale.errors import InputError
from smscale.sources.stations import open_stations

Real = Callable[[str], Path]


def problems(ds: xr.Dataset) -> dict[str, int]:
    """What was left out, by reason."""
    out: dict[str, int] = {}
    for entry in json.loads(ds.attrs["problems"]):
        out[entry["what"]] = out.get(entry["what"], 0) + entry["count"]
    return out


def write_stm(
    folder: Path,
    lines: list[str],
    station: str = "S1",
    network: str = "NET",
    lat: float = 30.5,
    depths: tuple[float, float] = (0.0, 0.1),
    end: str = "\n",
    name: str = "sm",
    sensor: str = "Probe",
    lon: str = "103.25",
) -> Path:
    """A file in ISMN's header+values layout."""
    header = f"{network} {network} {station} {lat:.5f} {lon} 500.00 {depths[0]:.2f} {depths[1]:.2f} {sensor}"
    path = (
        folder
        / network
        / station
        / f"{network}_{network}_{station}_{name}_{depths[0]:.6f}_{depths[1]:.6f}_{sensor}_20170601_20170630.stm"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join([header, *lines]) + end).encode())
    return path


def hours(values: list[float], flag: str = "G", start: str = "2017-06-10 00:00") -> list[str]:
    times = pd.date_range(start, periods=len(values), freq="h")
    return [f"{t:%Y/%m/%d %H:%M} {v:8.4f} {flag} M" for t, v in zip(times, values, strict=True)]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("archive", "stations", "flags", "depth"),
    [("ismn_header_values.zip", 8, ("U",), (0.0, 0.1)), ("ismn_ceop_sep.zip", 3, ("G",), (0.0, 0.3))],
)
def test_values_equal_those_of_the_ismn_package(
    real: Real, tmp_path: Path, archive: str, stations: int, flags: tuple[str, ...], depth: tuple[float, float]
) -> None:
    from ismn.filehandlers import DataFile

    with zipfile.ZipFile(real(f"stations/{archive}")) as content:
        content.extractall(tmp_path / "in")
    root = next(p.parents[2] for p in (tmp_path / "in").rglob("*.stm"))
    ds = open_stations(real(f"stations/{archive}"), depth=depth, flags=flags)
    assert ds.sizes["station"] == stations
    for path in (tmp_path / "in").rglob("*.stm"):
        theirs = DataFile(str(root), str(path.relative_to(root)), temp_root=tmp_path)
        table = theirs.read_data()
        ours = ds.sel(station=theirs.metadata["station"].val)
        good = table[table["soil_moisture_flag"].isin(flags) & table["soil_moisture"].between(0, 1)]["soil_moisture"]
        series = ours.soil_moisture.to_series().dropna()
        assert len(series) == good.index.nunique()
        np.testing.assert_array_equal(series.index, good.index.unique().sort_values())
        np.testing.assert_allclose(series, good.groupby(level=0).first(), atol=1e-6)
        for name, coordinate in (("latitude", "lat"), ("longitude", "lon"), ("elevation", "elevation")):
            assert float(ours[coordinate]) == pytest.approx(float(theirs.metadata[name].val))
        assert (float(ours.depth_from), float(ours.depth_to)) == (
            theirs.metadata["variable"].depth[0],
            theirs.metadata["variable"].depth[1],
        )
        assert str(ours.network.values) == theirs.metadata["network"].val


@pytest.mark.real_data
def test_zip_and_folder_are_alike(real: Real, tmp_path: Path) -> None:
    with zipfile.ZipFile(real("stations/ismn_header_values.zip")) as content:
        content.extractall(tmp_path)
    xr.testing.assert_identical(open_stations(tmp_path), open_stations(real("stations/ismn_header_values.zip")))


@pytest.mark.real_data
def test_an_archive_that_was_never_judged_is_kept_and_said_so(real: Real) -> None:
    ds = open_stations(real("stations/ismn_header_values.zip"))
    assert (ds.soil_moisture.count("time") > 0).all()
    assert sum("not judged" in what for what in problems(ds)) == 8
    assert int(open_stations(real("stations/ismn_header_values.zip"), flags=("G",)).soil_moisture.count()) == 0


@pytest.mark.real_data
def test_sensors_deeper_than_asked_are_named(real: Real) -> None:
    ds = open_stations(real("stations/ismn_ceop_sep.zip"))
    assert list(ds.station.values) == ["fraye"]
    assert sum("is outside 0 to 0.1 m" in what for what in problems(ds)) == 2


@pytest.mark.real_data
def test_a_malformed_file_is_named(real: Real) -> None:
    with pytest.raises(InputError, match=r"ismn_malformed\.txt.*neither of ISMN's layouts") as raised:
        open_stations(real("stations/ismn_malformed.txt"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", " \r\n"])
def test_any_line_end_is_read(tmp_path: Path, end: str) -> None:
    ds = open_stations(write_stm(tmp_path, hours([0.1, 0.2, 0.3]), end=end))
    np.testing.assert_allclose(ds.soil_moisture[0], [0.1, 0.2, 0.3], rtol=1e-6)
    assert problems(ds) == {}
    assert ds.time.values[0] == np.datetime64("2017-06-10T00:00", "ns")


def test_broken_lines_are_counted_and_the_rest_kept(tmp_path: Path) -> None:
    lines = hours([0.1, 0.2, 0.3])
    lines[1:1] = [
        "2017/06/10",
        "garbage in the middle of a file with many many words",
        "2017/13/40 25:00 0.2 G M",
        "2017/06/10 09:00 abc G M",
        "",
    ]
    ds = open_stations(write_stm(tmp_path, lines))
    np.testing.assert_allclose(ds.soil_moisture[0], [0.1, 0.2, 0.3], rtol=1e-6)
    assert problems(ds) == {"broken line": 4}


def test_impossible_values_missing_codes_and_flags_are_counted_apart(tmp_path: Path) -> None:
    lines = (
        hours([0.1, -99.0, 2.3, -0.05, 0.2, 0.3])
        + hours([0.4], "C03", "2017-06-11")
        + hours([0.5], "D01,D03", "2017-06-12")
    )
    ds = open_stations(write_stm(tmp_path, lines))
    np.testing.assert_allclose(ds.soil_moisture[0], [0.1, np.nan, np.nan, np.nan, 0.2, 0.3, np.nan, np.nan], rtol=1e-6)
    assert problems(ds) == {
        "station S1: missing-value code as value": 1,
        "station S1: impossible value, outside 0 to 1 m3 m-3": 2,
        "station S1: flag other than G (D01,D03 1, C03 1)": 2,
    }


def test_a_station_that_reports_percent_is_left_out_and_named(tmp_path: Path) -> None:
    write_stm(tmp_path, hours([0.1, 0.2]), "good")
    write_stm(tmp_path, hours([35.0, 34.0, 33.5]), "percent")
    ds = open_stations(tmp_path)
    assert list(ds.station.values) == ["good"]
    assert problems(ds) == {"station percent reports percent (median 34), expected m3 m-3: left out": 3}


def test_a_time_given_twice_keeps_its_first_value(tmp_path: Path) -> None:
    ds = open_stations(write_stm(tmp_path, hours([0.1, 0.2]) + hours([0.9], start="2017-06-10 01:00")))
    np.testing.assert_allclose(ds.soil_moisture[0], [0.1, 0.2], rtol=1e-6)
    assert problems(ds) == {"station S1: time given twice (the first value is kept)": 1}


def test_of_a_station_the_shallowest_sensor_is_taken(tmp_path: Path) -> None:
    write_stm(tmp_path, hours([0.4]), depths=(0.05, 0.1))
    write_stm(tmp_path, hours([0.1]), depths=(0.05, 0.05))
    write_stm(tmp_path, hours([0.2, 0.3]), depths=(0.05, 0.05), sensor="Longer")
    write_stm(tmp_path, hours([0.6]), depths=(0.2, 0.2))
    write_stm(tmp_path, hours([290.0]), name="ts")
    ds = open_stations(tmp_path)
    assert ds.sizes["station"] == 1
    assert str(ds.sensor.values[0]) == "Longer"
    np.testing.assert_allclose(ds.soil_moisture[0], [0.2, 0.3], rtol=1e-6)
    assert len(problems(ds)) == 3


def test_a_record_split_by_period_is_one_station(tmp_path: Path) -> None:
    write_stm(tmp_path / "a", hours([0.1]))
    write_stm(tmp_path / "b", hours([0.2], start="2018-01-01"))
    ds = open_stations(tmp_path)
    assert ds.soil_moisture.shape == (1, 2)
    assert int(ds.soil_moisture.count()) == 2


def test_a_station_in_an_ismn_file_and_in_a_csv_is_read_once(tmp_path: Path) -> None:
    write_stm(tmp_path, hours([0.1, 0.2]), "A", lat=30.1, lon="103.1")
    (tmp_path / "stations.csv").write_text(CSV)
    ds = open_stations(tmp_path)
    assert list(ds.station.values) == ["B", "A"]  # by network: B has none
    assert str(ds.network.sel(station="A").values) == "NET"
    assert sum("station A is already read" in what for what in problems(ds)) == 1


def test_a_relocated_station_is_another_one(tmp_path: Path) -> None:
    write_stm(tmp_path / "a", hours([0.1]), lat=30.5)
    write_stm(tmp_path / "b", hours([0.2]), lat=30.9)
    ds = open_stations(tmp_path)
    assert list(ds.station.values) == ["S1", "S1 (2)"]
    assert list(ds.station_name.values) == ["S1", "S1"]
    np.testing.assert_allclose(ds.lat, [30.5, 30.9])
    (what,) = problems(ds)
    assert (
        what
        == "station S1 (2) is S1 at another place (30.9000 N 103.2500 E, not 30.5000 N 103.2500 E), from 2017-06-10: kept apart"
    )


def test_a_station_without_coordinates_is_named(tmp_path: Path) -> None:
    write_stm(tmp_path, hours([0.1]), "good")
    write_stm(tmp_path, hours([0.1]), "lost", lat=-999.0)
    ds = open_stations(tmp_path)
    assert list(ds.station.values) == ["good"]
    assert "station lost has no coordinates" in next(iter(problems(ds)))


CSV = """station,time,lat,lon,elevation,depth_from,depth_to,soil_moisture,flag
A,2017-06-10T00:00:00Z,30.1,103.1,500,0,0.1,0.21,
A,2017-06-10T01:00:00Z,30.1,103.1,500,0,0.1,0.22,G
B,2017-06-10T08:00:00+08:00,30.2,103.2,600,0,0.1,0.31,G
B,2017-06-10T01:00:00Z,30.2,103.2,600,0,0.1,,G
B,2017-06-10T02:00:00Z,30.2,103.2,600,0,0.1,0.9,C01
"""


def test_csv_in_long_form(tmp_path: Path) -> None:
    path = tmp_path / "stations.csv"
    path.write_text(CSV)
    ds = open_stations(path)
    assert list(ds.station.values) == ["A", "B"]
    np.testing.assert_allclose(ds.soil_moisture, [[0.21, 0.22, np.nan], [0.31, np.nan, np.nan]], rtol=1e-6)
    assert ds.soil_moisture.dtype == np.float32
    assert ds.time.values[0] == np.datetime64("2017-06-10T00:00", "ns")
    np.testing.assert_array_equal(ds.elevation, [500, 600])
    assert problems(ds) == {"station B: flag other than G (C01 1)": 1}


def test_csv_problems_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "stations.csv"
    broken = "A,not a time,30.1,103.1,500,0,0.1,0.2,G\nA,2017-06-10T05:00:00Z,30.1,103.1,500,0,0.1,wet,G\na,b,c,d,e,f,g,h,i,j,k,l\n"
    path.write_text(
        CSV + broken + "C,2017-06-10T00:00:00Z,,,500,0,0.1,0.2,G\nD,2017-06-10T00:00:00Z,30,103,500,0,0.1,35,G\n"
    )
    ds = open_stations(path)
    assert list(ds.station.values) == ["A", "B", "D"]
    assert float(ds.soil_moisture.sel(station="D").max()) == pytest.approx(0.35)
    found = problems(ds)
    assert found["broken line"] == 3
    assert any(what.startswith("station C has no coordinates") for what in found)
    assert any(what.startswith("station D reports percent") for what in found)


def test_csv_that_lacks_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("name,when,sm\nA,2017-06-10,0.2\n")
    with pytest.raises(InputError, match="lacks the column station, time, lat, lon; found name, when, sm"):
        open_stations(path)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.stm or \.csv file found"):
        open_stations(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        open_stations(tmp_path / "none")
    with pytest.raises(InputError, match=r"no sensor lies within 0 to 0\.1 m; found 0\.5 to 0\.5 m"):
        open_stations(write_stm(tmp_path, hours([0.1]), depths=(0.5, 0.5)))
    bad = tmp_path / "x.zip"
    bad.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(InputError, match="cannot be read as a zip"):
        open_stations(bad)


def test_an_ismn_sensor_that_replaced_another_is_kept_apart(tmp_path: Path) -> None:
    write_stm(tmp_path, hours([0.1, 0.2, 0.3]), sensor="Theta")
    write_stm(tmp_path, hours([0.4, 0.5], start="2018-01-01"), sensor="Hydra")
    write_stm(tmp_path, hours([0.6, 0.7], start="2019-01-01"), sensor="Hydra", depths=(0.05, 0.05))
    write_stm(tmp_path, hours([0.9, 0.9, 0.9]), sensor="Beside")
    ds = open_stations(tmp_path)
    assert list(ds.station.values) == ["S1", "S1 (2)", "S1 (3)"]
    assert list(ds.sensor.values) == ["Beside", "Hydra", "Hydra"]
    np.testing.assert_allclose(ds.depth_to, [0.1, 0.1, 0.05])
    np.testing.assert_allclose(ds.soil_moisture.max("time"), [0.9, 0.5, 0.7], rtol=1e-6)
    assert int(ds.soil_moisture.count()) == 7
    found = problems(ds)
    assert found["station S1 (2) is S1 with another sensor (Hydra, 0 to 0.1 m, not Beside, 0 to 0.1 m), from 2018-01-01: kept apart"] == 2  # fmt: skip
    assert sum("(Theta, 0 to 0.1 m) left out" in what for what in found) == 1


def test_two_networks_may_use_one_name(tmp_path: Path) -> None:
    write_stm(tmp_path, hours([0.1]), network="NET", lat=30.5)
    write_stm(tmp_path, hours([0.2]), network="ORK", lat=40.5)
    ds = open_stations(tmp_path)
    assert list(ds.station.values) == ["NET:S1", "ORK:S1"]
    assert problems(ds) == {}


def test_an_ismn_file_with_folded_longitude_and_unknown_elevation(tmp_path: Path) -> None:
    path = write_stm(tmp_path, hours([0.1]), lon="255.5")
    path.write_text(path.read_text().replace(" 500.00 ", " NaN "))
    ds = open_stations(path)
    assert float(ds.lon[0]) == pytest.approx(-104.5)
    assert np.isnan(ds.elevation[0])


def test_a_map_of_tables_leaves_ismn_files_as_they_are(tmp_path: Path) -> None:
    path = write_stm(tmp_path, hours([0.1, 0.2]))
    xr.testing.assert_identical(open_stations(path, columns={"zone": "+08:00", "unit": "percent"}), open_stations(path))


def test_a_file_with_nothing_below_its_header_is_named(tmp_path: Path) -> None:
    write_stm(tmp_path, hours([0.1]), "good")
    write_stm(tmp_path, [], "empty")
    ds = open_stations(tmp_path)
    assert list(ds.station.values) == ["good"]
    assert problems(ds) == {"station empty has no line that can be read": 1}
    with pytest.raises(InputError, match="no station could be read"):
        open_stations(tmp_path / "NET" / "empty")
