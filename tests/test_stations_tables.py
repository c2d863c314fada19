"""Tables of national networks: column maps, units, zones, layouts, and what goes wrong in them."""

import json
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smscale.errors import InputError, RecipeError
from smscale.sources.stations import ColumnMap, is_station_csv, open_stations

Real = Callable[[str], Path]

CMA = {
    "columns": {
        "station": "区站号",
        "time": "资料时间",
        "lat": "纬度",
        "lon": "经度",
        "elevation": "海拔高度",
        "value": "10cm土壤体积含水量",
        "flag": "质控码",
    },
    "unit": "percent",
    "zone": "Asia/Shanghai",
    "missing": [999999, 999998],
    "good": ["0"],
    "depth": [0.0, 0.1],
}
CMA_TABLE = """区站号,省份,资料时间,纬度,经度,海拔高度,10cm土壤体积含水量,质控码
56187,四川,2017-06-10 08:00,30.75,103.87,547.7,23.5,0
56187,四川,2017-06-10 09:00,30.75,103.87,547.7,999999,8
56187,四川,2017-06-10 10:00,30.75,103.87,547.7,24.5,2
56187,四川,2017-06-10 11:00,30.75,103.87,547.7,24.0,0
56171,四川,2017-06-10 08:00,32.90,101.70,3275.1,41.0,0
"""


def problems(ds: xr.Dataset) -> dict[str, int]:
    out: dict[str, int] = {}
    for entry in json.loads(ds.attrs["problems"]):
        out[entry["what"]] = out.get(entry["what"], 0) + entry["count"]
    return out


def written(folder: Path, text: str, name: str = "a.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def table(*rows: str, header: str = "station,time,lat,lon,soil_moisture") -> str:
    return "\n".join([header, *rows]) + "\n"


# -- the map --------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_national_table_is_read_by_its_map(tmp_path: Path, encoding: str, separator: str) -> None:
    path = written(tmp_path, CMA_TABLE.replace(",", separator), encoding=encoding)
    ds = open_stations(path, columns=CMA)
    assert list(ds.station.values) == ["56171", "56187"]
    assert ds.time.values[0] == np.datetime64("2017-06-10T00:00", "ns")  # 08:00 in Shanghai
    chengdu = ds.sel(station="56187")
    np.testing.assert_allclose(chengdu.soil_moisture, [0.235, np.nan, np.nan, 0.24], rtol=1e-6)
    assert (float(chengdu.lat), float(chengdu.lon), float(chengdu.elevation)) == (30.75, 103.87, 547.7)
    assert (float(chengdu.depth_from), float(chengdu.depth_to)) == (0.0, 0.1)
    assert problems(ds) == {
        "station 56187: missing-value code as value": 1,
        "station 56187: flag other than G ('2' 1)": 1,
    }


def test_a_map_may_be_flat_and_usual_names_need_none(tmp_path: Path) -> None:
    path = written(tmp_path, "ID,Latitude,LON,datetime,theta\nA,30,103,2017-06-10,0.2\n")
    ds = open_stations(path, columns={"value": "Theta", "zone": "+08:00"})
    assert list(ds.station.values) == ["A"]
    assert ds.time.values[0] == np.datetime64("2017-06-09T16:00", "ns")


def test_times_cut_into_columns(tmp_path: Path) -> None:
    rows = [
        "A,30,103,2017,6,30,23,0.1",
        "A,30,103,2017,6,30,24,0.2",
        "A,30,103,2017,7,1,1,0.3",
        "A,30,103,2017,13,1,1,0.4",
        "A,30,103,2017,7,1,noon,0.5",
        "A,30,103,2017,7,1,,0.5",
    ]
    path = written(tmp_path, table(*rows, header="station,lat,lon,Y,M,D,H,soil_moisture"))
    ds = open_stations(path, columns={"columns": {"time": {"year": "Y", "month": "M", "day": "D", "hour": "H"}}})
    expected = pd.to_datetime(["2017-06-30 23:00", "2017-07-01 00:00", "2017-07-01 01:00"])
    np.testing.assert_array_equal(ds.time, expected)
    np.testing.assert_allclose(ds.soil_moisture[0], [0.1, 0.2, 0.3], rtol=1e-6)
    assert problems(ds) == {"broken line": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2017-06-10T08:00:00Z", "2017-06-10T08:00"),
        ("2017-06-10 08:00:00.500", "2017-06-10T08:00"),
        ("2017/6/1 8:00", "2017-06-01T08:00"),
        ("2017.06.01 08:30", "2017-06-01T08:30"),
        ("2017年6月10日8时", "2017-06-10T08:00"),
        ("20170610", "2017-06-10"),
        ("2017061008", "2017-06-10T08:00"),
        ("201706100830", "2017-06-10T08:30"),
        ("20170610T083000Z", "2017-06-10T08:30"),
        ("2017-06-10 24:00", "2017-06-11T00:00"),
        ("2017-06-10T08:00:00+08:00", "2017-06-10T00:00"),
        ("2017-06-10T08:00:00-0530", "2017-06-10T13:30"),
        ("2017-06-10", "2017-06-10"),
    ],
)
def test_times_written_year_first(tmp_path: Path, text: str, expected: str) -> None:
    ds = open_stations(written(tmp_path, table(f"A,{text},30,103,0.2")))
    assert ds.time.values[0] == np.datetime64(expected, "ns")


@pytest.mark.parametrize(
    "text", ["2017-02-30", "2017-06-10 25:00", "2017-06-10 24:30", "10.06.17", "2017061", "20171310", ""]
)
def test_what_is_no_time_is_a_broken_line(tmp_path: Path, text: str) -> None:
    ds = open_stations(written(tmp_path, table("A,2017-06-10,30,103,0.2", f"A,{text},30,103,0.3")))
    assert ds.sizes["time"] == 1
    assert problems(ds) == {"broken line": 1}


def test_times_of_another_order_need_a_format(tmp_path: Path) -> None:
    path = written(tmp_path, table("A,10/06/2017 08:00,30,103,0.2"))
    with pytest.raises(InputError, match=r"not one of its times can be read \(the first is '10/06/2017 08:00'\)"):
        open_stations(path)
    ds = open_stations(path, columns={"time_format": "%d/%m/%Y %H:%M"})
    assert ds.time.values[0] == np.datetime64("2017-06-10T08:00", "ns")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"colums": {}}, "unknown key colums; did you mean columns"),
        ({"columns": {"statoin": "a"}}, "columns: unknown key statoin; did you mean station"),
        ({"columns": {"time": {"yaer": "a"}}}, "columns: time: unknown key yaer; did you mean year"),
        ({"columns": {"station": ["a"]}}, "station expects the name of a column"),
        ({"columns": ["station"]}, "columns expects role: column"),
        ({"unit": "inches"}, "unit expects one of m3 m-3, percent, mm; found 'inches'"),
        ({"zone": "Asia/Chengdu"}, "no offset as .*Asia/Shanghai"),
        ({"zone": 8}, "zone expects text; found 8"),
        ({"missing": ["x"]}, "missing expects numbers"),
        ({"good": {}}, "good expects a list of flags"),
        ({"depth": [0.1]}, "depth expects the upper and the lower depth"),
        ({"depth": [0.2, 0.1]}, r"depth needs the upper and the lower depth in metres.*\[0.2, 0.1\]"),
        ({"separator": "||"}, "separator must be one character"),
        ({"layout": "broad"}, "layout expects one of long, wide; found 'broad'"),
        ({"layout": "wide"}, "need a table of the stations' coordinates"),
        ({"table_columns": {"ends": "a"}}, "table_columns: unknown key ends; did you mean end"),
    ],
)
def test_a_wrong_map_is_refused_in_one_line(values: dict, says: str) -> None:
    with pytest.raises(RecipeError, match=f"^recipe.yaml: stations: .*{says}") as raised:
        ColumnMap.from_mapping(values, "recipe.yaml: stations")
    assert "\n" not in str(raised.value)


def test_a_map_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected keys and values"):
        ColumnMap.from_mapping(["station"])  # type: ignore[arg-type]


def test_a_column_that_the_map_names_and_the_file_lacks_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, CMA_TABLE)
    wrong = {**CMA, "columns": {**CMA["columns"], "value": "20cm土壤体积含水量"}}  # type: ignore[dict-item]
    with pytest.raises(InputError, match="no column '20cm土壤体积含水量' for value; did you mean 10cm土壤体积含水量"):
        open_stations(path, columns=wrong)
    assert is_station_csv(path, ColumnMap.from_mapping(CMA))
    assert not is_station_csv(path, ColumnMap.from_mapping(wrong))
    assert not is_station_csv(path)


def test_a_map_of_a_recipe_is_that_of_the_constructor() -> None:
    made = ColumnMap.from_mapping(
        {"station": "ID", "unit": "%", "depth": "d", "depth_unit": "cm", "good": 0, "missing": -1}
    )
    assert made == ColumnMap(
        columns={"station": "ID", "depth": "d"}, unit="percent", depth_unit="cm", good=("0",), missing=(-1.0,)
    )


# -- units ----------------------------------------------------------------------------------------


def test_percent_is_recognised_converted_and_counted(tmp_path: Path) -> None:
    rows = [f"{s},2017-06-10 {h:02d}:00,30,{103 + i},{v}" for i, (s, values) in enumerate({"A": (12.5, 30, 0), "B": (0.2, 0.3, 0.4)}.items()) for h, v in enumerate(values)]  # fmt: skip
    ds = open_stations(written(tmp_path, table(*rows)))
    np.testing.assert_allclose(ds.soil_moisture, [[0.125, 0.3, 0], [0.2, 0.3, 0.4]], rtol=1e-6)
    assert problems(ds) == {"station A reports percent (median 12.5): converted to m3 m-3": 3}


def test_a_stated_unit_is_believed_and_a_contradiction_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, table("A,2017-06-10,30,103,0.5", "B,2017-06-10,30,104,35"))
    by_percent = open_stations(path, columns={"unit": "percent"})
    np.testing.assert_allclose(by_percent.soil_moisture[:, 0], [0.005, 0.35], rtol=1e-6)
    assert problems(by_percent) == {}
    by_fraction = open_stations(path, columns={"unit": "m3/m3"})
    assert list(by_fraction.station.values) == ["A"]
    assert problems(by_fraction) == {"station B reports percent (median 35), expected m3 m-3: left out": 1}


def test_percent_that_stays_below_one_is_believed_and_named(tmp_path: Path) -> None:
    rows = [f"A,2017-06-10 {h:02d}:00,30,103,0.3" for h in range(10)]
    ds = open_stations(written(tmp_path, table(*rows)), columns={"unit": "percent"})
    np.testing.assert_allclose(ds.soil_moisture, np.full((1, 10), 0.003), rtol=1e-6)
    assert problems(ds) == {"station A is said to report percent, but reaches only 0.3: believed; see unit": 10}


def test_a_station_delivered_under_two_names_is_named(tmp_path: Path) -> None:
    rows = [f"{s},2017-06-10 {h:02d}:00,30,{lon},{0.2 + h / 100}" for s, lon in (("A", 103), ("B", 103), ("C", 104)) for h in range(5)]  # fmt: skip
    ds = open_stations(written(tmp_path, table(*rows)))
    assert list(ds.station.values) == ["A", "B", "C"]
    assert problems(ds) == {"station B stands where A does and says the same: kept, leave one out": 5}


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [("time_format", "%Q", "is none of strptime"), ("encoding", "utf-99", "is not known; use one as utf-8")],
)
def test_what_no_table_can_be_read_with_is_refused_in_one_line(key: str, value: str, what: str) -> None:
    with pytest.raises(RecipeError, match=f"r.yaml: stations: {key} .* {what}") as error:
        ColumnMap.from_mapping({key: value}, where="r.yaml: stations")
    assert "\n" not in str(error.value)


def test_a_station_that_changes_its_unit_is_left_out(tmp_path: Path) -> None:
    rows = [f"A,2017-06-10 {h:02d}:00,30,103,{v}" for h, v in enumerate([30, 31, 32, 0.31, 0.32])]
    ds = open_stations(written(tmp_path, table(*rows, "B,2017-06-10,31,103,0.2")))
    assert list(ds.station.values) == ["B"]
    assert "percent (median 30) and fractions by turns" in next(iter(problems(ds)))


def test_millimetres_are_of_their_layer(tmp_path: Path) -> None:
    path = written(tmp_path, table("A,2017-06-10,30,103,25,10", header="station,time,lat,lon,soil_moisture,bottom"))
    columns = {"columns": {"depth_to": "bottom"}, "depth": [0, 0], "depth_unit": "cm", "unit": "mm"}
    ds = open_stations(path, columns=columns)
    assert float(ds.soil_moisture[0, 0]) == pytest.approx(0.25)  # 25 mm in 100 mm
    assert float(ds.depth_to[0]) == pytest.approx(0.1)
    with pytest.raises(InputError, match="its layer has no thickness"):
        open_stations(written(tmp_path, table("A,2017-06-10,30,103,25"), "b.csv"), columns={"unit": "mm"})


# -- zones ----------------------------------------------------------------------------------------


def test_hours_that_come_twice_or_not_at_all_are_told_apart_and_counted(tmp_path: Path) -> None:
    """Berlin: 2017-03-26 02:00-03:00 did not exist; 2017-10-29 02:00-03:00 came twice."""
    local = ["2017-03-26 01:30", "2017-03-26 02:30", "2017-03-26 03:30"]
    local += ["2017-10-29 01:30", "2017-10-29 02:30", "2017-10-29 02:30", "2017-10-29 03:30"]
    rows = [f"A,{t},50,10,0.{i + 1}" for i, t in enumerate(local)] + ["B,2017-10-29 02:30,51,10,0.5"]
    ds = open_stations(written(tmp_path, table(*rows)), columns={"zone": "Europe/Berlin"})
    a = ds.soil_moisture.sel(station="A").to_series().dropna()
    utc = ["2017-03-26 00:30", "2017-03-26 01:30", "2017-10-28 23:30", "2017-10-29 00:30", "2017-10-29 01:30", "2017-10-29 02:30"]  # fmt: skip
    np.testing.assert_array_equal(a.index, pd.to_datetime(utc))
    np.testing.assert_allclose(a, [0.1, 0.3, 0.4, 0.5, 0.6, 0.7], rtol=1e-6)
    b = ds.soil_moisture.sel(station="B").to_series().dropna()
    assert list(b.index) == [pd.Timestamp("2017-10-29 01:30")]
    found = problems(ds)
    assert found["local time that Europe/Berlin skips: left out"] == 1
    assert sum(n for what, n in found.items() if "came twice in Europe/Berlin" in what) == 3


@given(st.sampled_from(["Asia/Shanghai", "America/Denver", "Australia/Lord_Howe", "+05:45", "-03:30"]), st.data())
@settings(max_examples=12, deadline=None)
def test_any_series_in_local_time_comes_back_in_utc(
    tmp_path_factory: pytest.TempPathFactory, zone: str, data: st.DataObject
) -> None:
    """Half-hourly values by what the clock showed, in the order in which it did, through changes of the clock."""
    changes = {"America/Denver": "2017-11-05", "Australia/Lord_Howe": "2017-04-02"}.get(zone, "2017-06-10")
    start = pd.Timestamp(changes, tz="UTC") - pd.Timedelta(minutes=30 * data.draw(st.integers(0, 199)))
    utc = pd.date_range(start, periods=200, freq="30min")
    assume(
        not ("/" in zone and (_twice(zone, utc[0]) or _twice(zone, utc[-1])))
    )  # half of a doubled hour cannot be told
    shown = utc.tz_convert(zone if "/" in zone else f"UTC{zone}").strftime("%Y-%m-%d %H:%M")
    values = 0.001 * (np.arange(200) + 1)
    rows = [f"A,{t},30,103,{v:.3f}" for t, v in zip(shown, values, strict=True)]
    ds = open_stations(written(tmp_path_factory.mktemp("zone"), table(*rows)), columns={"zone": zone})
    np.testing.assert_array_equal(ds.time, utc.tz_localize(None))
    np.testing.assert_allclose(ds.soil_moisture[0], values, rtol=1e-5)


def _twice(zone: str, when: pd.Timestamp) -> bool:
    """Whether the clock shows that time twice."""
    local = when.tz_convert(zone).to_pydatetime().replace(tzinfo=None)
    first, second = (local.replace(fold=fold, tzinfo=ZoneInfo(zone)).utcoffset() for fold in (0, 1))
    return first != second


def test_a_zone_in_the_text_goes_before_the_stated_one(tmp_path: Path) -> None:
    path = written(tmp_path, table("A,2017-06-10T08:00Z,30,103,0.1", "A,2017-06-10T10:00,30,103,0.2"))
    ds = open_stations(path, columns={"zone": "+08:00"})
    np.testing.assert_allclose(ds.soil_moisture.sel(time="2017-06-10T08:00").item(), 0.1, rtol=1e-6)
    np.testing.assert_allclose(ds.soil_moisture.sel(time="2017-06-10T02:00").item(), 0.2, rtol=1e-6)


# -- wide -----------------------------------------------------------------------------------------

STATIONS = (
    "id,name,lat,lon,elev\n056187,Wenjiang,30.75,103.87,547\n56171,Aba,32.9,101.7,3275\n56004,Tuotuohe,34.2,92.4,4533\n"
)


def test_the_wide_form_takes_places_from_its_table(tmp_path: Path) -> None:
    written(tmp_path, STATIONS, "where.csv")
    rows = "date;56187;56171;99999\n2017-06-10 00:00;23,5;41\n2017-06-10 01:00;;42,5;1\n2017-06-10 02:00;wet;43;1\n"
    path = written(tmp_path, rows)
    columns = {
        "columns": {"time": "date"},
        "layout": "wide",
        "table": "where.csv",
        "table_columns": {"station": "id"},
        "depth": [0.05, 0.05],
    }
    ds = open_stations(path, columns=columns)
    assert list(ds.station.values) == ["056187", "56171"]
    np.testing.assert_allclose(ds.lat, [30.75, 32.9])
    np.testing.assert_allclose(ds.elevation, [547, 3275])
    np.testing.assert_allclose(ds.depth_from, 0.05)
    np.testing.assert_allclose(ds.soil_moisture, [[0.235, np.nan, np.nan], [0.41, 0.425, 0.43]], rtol=1e-6)
    found = problems(ds)
    assert found["column 99999 is no station of where.csv: left out"] == 1
    assert found["station 56004 of where.csv has no column"] == 1
    assert found["station 056187: text that is no value"] == 1
    assert found["decimal commas read as decimal points"] == 1
    assert sum("reports percent" in what for what in found) == 2
    xr.testing.assert_identical(
        open_stations(tmp_path, columns=columns), ds
    )  # the table beside it is not one of values


@pytest.mark.real_data
def test_wide_and_long_of_a_real_network_are_alike(real: Real, tmp_path: Path) -> None:
    """USCRN's daily 5 cm soil moisture of 2020: 155 stations, as one table of each form."""
    source = pd.read_parquet(real("stations/uscrn_daily_2020.parquet"))
    source = source.rename(columns={"wban": "station", "lst_date": "time", "latitude": "lat", "longitude": "lon"})
    source["soil_moisture"] = source["soil_moisture_5_daily"]
    source["depth_from"] = source["depth_to"] = 0.05
    names = ["station", "time", "lat", "lon", "depth_from", "depth_to", "soil_moisture"]
    source[names].to_csv(tmp_path / "long.csv", index=False)
    wide = source.pivot(index="time", columns="station", values="soil_moisture")
    (tmp_path / "wide").mkdir()
    wide.to_csv(tmp_path / "wide" / "values.tsv", sep="\t")
    source.groupby("station")[["lat", "lon", "depth_from", "depth_to"]].first().to_csv(tmp_path / "wide" / "where.csv")
    by_long = open_stations(tmp_path / "long.csv")
    by_wide = open_stations(tmp_path / "wide" / "values.tsv", columns={"layout": "wide", "table": "where.csv"})
    xr.testing.assert_identical(by_long.drop_attrs(), by_wide.drop_attrs())
    assert int(by_long.soil_moisture.count()) == 33924
    assert by_long.sizes["station"] == source["station"].nunique()
    expected = wide[list(by_long.station.values)].T.to_numpy(np.float32)
    np.testing.assert_array_equal(by_long.soil_moisture, expected)


def test_the_wide_form_without_its_table_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "time,A\n2017-06-10,0.2\n")
    with pytest.raises(InputError, match=r"its table of stations where\.csv is not there"):
        open_stations(path, columns={"layout": "wide", "table": "where.csv"})
    written(tmp_path, "station,lat\nA,30\n", "where.csv")
    with pytest.raises(InputError, match=r"where\.csv: lacks the column lon"):
        open_stations(path, columns={"layout": "wide", "table": "where.csv"})


def test_the_long_form_may_take_places_from_a_table_and_moves_with_it(tmp_path: Path) -> None:
    """A station that was moved: the table says when; values outside every period are counted."""
    where = "station,lat,lon,start,end\nA,30.0,103.0,2017-01-01,2017-06-10\nA,30.2,103.0,2017-06-11,2017-06-12\nB,31,103,,\n"
    written(tmp_path, where, "where.csv")
    rows = [f"{s},2017-06-{d:02d} 12:00,0.{d}" for s in "AB" for d in (9, 10, 11, 12, 13)] + ["C,2017-06-09 12:00,0.1"]
    path = written(tmp_path, table(*rows, header="station,time,soil_moisture"))
    ds = open_stations(path, columns={"table": "where.csv"})
    assert list(ds.station.values) == ["A", "A (2)", "B"]
    np.testing.assert_allclose(ds.lat, [30.0, 30.2, 31])
    np.testing.assert_allclose(ds.soil_moisture[0].dropna("time"), [0.9, 0.10], rtol=1e-6)
    np.testing.assert_allclose(ds.soil_moisture[1].dropna("time"), [0.11, 0.12], rtol=1e-6)
    found = problems(ds)
    assert found["station A: time outside every start and end: left out"] == 1
    assert found["station C is not in the table of stations: left out"] == 1
    assert any(what.startswith("station A (2) is A at another place") for what in found)


def test_a_station_described_twice_without_dates_is_named(tmp_path: Path) -> None:
    written(tmp_path, "station,lat,lon\nA,30.0,103.0\nA,30.2,103.0\nA,30.0,103.0\n", "where.csv")
    path = written(tmp_path, table("A,2017-06-10,0.2", header="station,time,soil_moisture"))
    ds = open_stations(path, columns={"table": "where.csv"})
    assert float(ds.lat[0]) == 30.0
    found = problems(ds)
    assert found["station A is described 2 times without start and end: the first description is used"] == 1
    assert found["station described twice in the same words"] == 1


# -- what goes wrong ------------------------------------------------------------------------------


def test_longitudes_to_360_are_folded_and_swapped_coordinates_put_right(tmp_path: Path) -> None:
    rows = [
        "A,2017-06-10,40,255.5,0.1",
        "B,2017-06-10,103.8,30.7,0.2",
        "C,2017-06-10,-999,-999,0.3",
        "D,2017-06-10,0,0,0.4",
    ]
    ds = open_stations(written(tmp_path, table(*rows)))
    assert list(ds.station.values) == ["A", "B"]
    np.testing.assert_allclose(ds.lon, [-104.5, 103.8])
    np.testing.assert_allclose(ds.lat, [40, 30.7])
    assert problems(ds) == {
        "station A: longitude 255.5 is counted from 0 to 360: folded to -104.5": 1,
        "station B: lat 103.8 and lon 30.7 are swapped: read the other way round": 1,
        "station C has no coordinates (lat -999, lon -999)": 1,
        "station D has no coordinates (lat 0, lon 0)": 1,
    }


def test_rubbish_comments_and_empty_lines_do_not_stop_a_table(tmp_path: Path) -> None:
    good = ["A,2017-06-10 00:00,30,103,0.1", "A,2017-06-10 01:00,30,103,0.2"]
    text = "# made by hand\n#\n" + table(good[0], "", "\x00\x01§$%", "A,2017-06-10 02:00", "a,b,c,d,e,f,g,h,i", good[1])
    path = written(tmp_path, text)
    assert is_station_csv(path)
    ds = open_stations(path)
    np.testing.assert_allclose(ds.soil_moisture[0].dropna("time"), [0.1, 0.2], rtol=1e-6)
    found = problems(ds)
    assert sum(n for what, n in found.items() if "broken line" in what or "no coordinates" in what) == 3


def test_unknown_elevation_is_none(tmp_path: Path) -> None:
    path = written(
        tmp_path, table("A,2017-06-10,30,103,-9999,0.1", header="station,time,lat,lon,elevation,soil_moisture")
    )
    assert np.isnan(open_stations(path).elevation[0])


def test_leading_zeros_are_part_of_a_name(tmp_path: Path) -> None:
    path = written(tmp_path, table("056187,2017-06-10,30,103,0.1", "56187,2017-06-10,31,104,0.2"))
    assert list(open_stations(path).station.values) == ["056187", "56187"]


def test_a_station_in_two_files_is_merged_and_counted(tmp_path: Path) -> None:
    a = written(tmp_path, table(*(f"A,2017-06-{d:02d},30,103,0.{d}" for d in (10, 11, 12))), "a.csv")
    rows = ["A,2017-06-11,30.0004,103,0.11", "A,2017-06-12,30.0004,103,0.5", "A,2017-06-13,30.0004,103,0.13"]
    b = written(tmp_path, table(*rows), "b.csv")
    ds = open_stations([a, b])
    assert ds.sizes["station"] == 1
    np.testing.assert_allclose(ds.soil_moisture[0], [0.10, 0.11, 0.12, 0.13], rtol=1e-6)
    assert problems(ds) == {
        "station A: coordinates differ by less than 100 m: taken as one place": 1,
        "station A is also in a.csv: merged, times in both counted, 1 of them with another value (the first is kept)": 2,
    }


def test_stations_of_one_name_far_apart_are_two(tmp_path: Path) -> None:
    rows = ["A,2017-06-10,30,103,0.1", "A,2017-06-10,35,110,0.2", "A,2017-06-11,30,103,0.3"]
    ds = open_stations(written(tmp_path, table(*rows)))
    assert list(ds.station.values) == ["A", "A (2)"]
    np.testing.assert_allclose(ds.soil_moisture, [[0.1, 0.3], [0.2, np.nan]], rtol=1e-6)
    assert any(what.startswith("station A (2) is A at another place (35.0000 N 110.0000 E") for what in problems(ds))


def test_a_sensor_that_replaced_another_is_a_series_of_its_own(tmp_path: Path) -> None:
    header = "station,time,lat,lon,soil_moisture,sensor,depth_from,depth_to"
    rows = [f"A,2017-{m:02d}-01,30,103,{0.1 * m:.1f},old,0.05,0.05" for m in (1, 2, 3)]
    rows += [f"A,2017-{m:02d}-01,30,103,{0.1 * m:.1f},new,0.05,0.05" for m in (4, 5)]
    rows += ["A,2017-08-01,30,103,0.8,new,0.1,0.1"]  # the same sensor, set deeper
    rows += [f"A,2017-{m:02d}-01,30,103,0.9,beside,0.05,0.05" for m in (2, 4)]
    ds = open_stations(written(tmp_path, table(*rows, header=header)))
    assert list(ds.station.values) == ["A", "A (2)", "A (3)"]
    assert list(ds.sensor.values) == ["old", "new", "new"]
    assert list(ds.station_name.values) == ["A"] * 3
    values = [row[np.isfinite(row)] for row in ds.soil_moisture.values]
    for found, expected in zip(values, ([0.1, 0.2, 0.3], [0.4, 0.5], [0.8]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    what = problems(ds)
    assert what["station A (2) is A with another sensor (new, 0.05 to 0.05 m, not old, 0.05 to 0.05 m), from 2017-04-01: kept apart"] == 2  # fmt: skip
    assert sum("(beside, 0.05 to 0.05 m) left out" in w for w in what) == 1


def test_sensors_side_by_side_are_not_averaged(tmp_path: Path) -> None:
    header = "station,time,lat,lon,soil_moisture,sensor"
    rows = [f"A,2017-06-{d:02d},30,103,0.{s}{d},{s}" for s in (1, 2) for d in range(10, 20)]
    ds = open_stations(written(tmp_path, table(*rows[:-1], header=header)))
    assert list(ds.sensor.values) == ["1"]
    np.testing.assert_allclose(ds.soil_moisture[0], [float(f"0.1{d}") for d in range(10, 20)], rtol=1e-6)


def test_a_silent_sensor_does_not_stand_before_one_with_values(tmp_path: Path) -> None:
    header = "station,time,lat,lon,soil_moisture,depth_from,depth_to"
    rows = ["A,2017-06-10,30,103,nan,0,0.05", "A,2017-06-10,30,103,0.2,0,0.1", "A,2018-06-10,30,103,nan,0.02,0.02"]
    ds = open_stations(written(tmp_path, table(*rows, header=header)))
    assert ds.sizes["station"] == 1
    assert float(ds.soil_moisture.max()) == pytest.approx(0.2)


def test_order_of_lines_and_files_does_not_matter(tmp_path: Path) -> None:
    rows = [f"{s},2017-06-{d:02d} {h:02d}:00,{30 + i},103,{0.01 * d + 0.1 * i:.3f}" for i, s in enumerate("ABC") for d in (10, 11) for h in (0, 12)]  # fmt: skip
    whole = open_stations(written(tmp_path, table(*rows)))
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    xr.testing.assert_identical(open_stations(written(tmp_path, table(*mixed), "b.csv")), whole)
    parts = [written(tmp_path, table(*rows[i::3]), f"part{i}.csv") for i in (2, 0, 1)]
    xr.testing.assert_identical(open_stations(parts), whole)


def test_one_rubbish_value_far_down_a_long_table_costs_only_its_line(tmp_path: Path) -> None:
    """Parsers guess types by pieces of a file: text in a later piece must not change what the earlier ones hold."""
    n = 60_000
    times = pd.date_range("2010-01-01", periods=n, freq="h").strftime("%Y-%m-%d %H:%M")
    rows = [f"007,{t},30,103,{0.1 + i % 7 / 100:.2f},0" for i, t in enumerate(times)]
    rows[n - 9] = rows[n - 9].replace(",30,", ",thirty,")
    rows[n - 5] = f"007,{times[n - 5]},30,103,wet,0"
    path = written(tmp_path, table(*rows, header="station,time,lat,lon,soil_moisture,flag"))
    ds = open_stations(path, columns={"good": [0]})
    assert list(ds.station.values) == ["007"]
    assert int(ds.soil_moisture.count()) == n - 2
    found = problems(ds)
    assert found["broken line"] == 1
    assert found["station 007 has no coordinates (lat nan, lon 103)"] == 1


@pytest.mark.parametrize(
    "text", ["", "\n\n", "station,time,lat,lon,soil_moisture\n", '"station,time\n', "#\n# nothing"]
)
def test_a_table_without_lines_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    is_station_csv(path)
    with pytest.raises(InputError, match=r"a\.csv") as raised:
        open_stations(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("0.05", "m", (0.05, 0.05)),
        ("10", "cm", (0.1, 0.1)),
        ("0-10", "cm", (0.0, 0.1)),
        ("0-10cm", "m", (0.0, 0.1)),
        ("0 cm - 10 cm", "m", (0.0, 0.1)),
        ("0~0.1m", "cm", (0.0, 0.1)),
        ("", "m", (0.02, 0.07)),
    ],
)
def test_depths_as_tables_write_them(tmp_path: Path, text: str, unit: str, expected: tuple[float, float]) -> None:
    path = written(tmp_path, table(f"A,2017-06-10,30,103,0.2,{text}", header="station,time,lat,lon,sm,depth"))
    ds = open_stations(path, columns={"depth_unit": unit, "columns": {"depth": "depth"}, "depth": [0.02, 0.07]})
    assert (float(ds.depth_from[0]), float(ds.depth_to[0])) == pytest.approx(expected)


def test_what_is_no_depth_is_not_taken_for_the_surface(tmp_path: Path) -> None:
    rows = ["A,2017-06-10,30,103,0.2,shallow", "B,2017-06-10,30,104,0.2,0-10cm", "C,2017-06-10,30,105,0.2,40cm"]
    ds = open_stations(written(tmp_path, table(*rows, header="station,time,lat,lon,sm,depth")))
    assert list(ds.station.values) == ["B"]
    assert problems(ds) == {
        "sensor at nan to nan m is outside 0 to 0.1 m": 1,
        "sensor at 0.4 to 0.4 m is outside 0 to 0.1 m": 1,
    }
