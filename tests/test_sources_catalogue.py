"""The catalogue of a folder: what names say, what is broken, double or missing."""

import shutil
import time
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from smscale.errors import InputError
from smscale.sources.catalogue import read_name, scan
from smscale.sources.needs import Requirement, degree_tiles, requirements
from smscale.sources.products import FAMILIES, SERIES, calendar, flying

Real = Callable[[str], Path]
HDF4 = b"\x0e\x03\x13\x01\x00\x01\x00\x00\x00\x00" + b"\x00\x01\x00\x00" + b"\x00" * 8  # one empty descriptor


def touch_hdf4(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(HDF4)
    return folder / name


def touch_hdf5(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / name, "w") as file:
        file["x"] = np.zeros(2000)
    return folder / name


def touch_dem(folder: Path, name: str, left: float, top: float, dtype: str = "int16") -> Path:
    profile = {"driver": "GTiff", "height": 11, "width": 11, "count": 1, "dtype": dtype, "crs": "EPSG:4326"}
    with rasterio.open(
        folder / name, "w", transform=Affine(0.1, 0, left - 0.05, 0, -0.1, top + 0.05), **profile
    ) as file:
        file.write(np.ones((11, 11), dtype), 1)
    return folder / name


LST = "MYD11A1.A2017161.h26v05.061.2021296000000.hdf"


@pytest.mark.parametrize(
    ("name", "product", "day", "tile", "collection"),
    [
        ("SMAP_L3_SM_P_20170610_R18290_001.h5", "SPL3SMP", "2017-06-10", None, "R18290"),
        ("SMAP_L3_SM_P_E_20170610_R19240_002.h5", "SPL3SMP_E", "2017-06-10", None, "R19240"),
        ("SMAP_L2_SM_P_02801_A_20150811T013002_R18290_001.h5", "SPL2SMP", "2015-08-11", None, "R18290"),
        ("SMAP_L2_SM_P_E_02801_D_20150811T013002_R19240_001.h5", "SPL2SMP_E", "2015-08-11", None, "R19240"),
        ("SMAP_L4_SM_aup_20200128T150000_Vv4030_001.h5", "SPL4SMAU", "2020-01-28", None, "Vv4030"),
        (LST, "MYD11A1", "2017-06-10", (26, 5), "061"),
        ("MOD16A2GF.A2016366.h08v11.006.2021296000000.hdf", "MOD16A2GF", "2016-12-31", (8, 11), "006"),
        ("MCD12Q1.A2017001.h26v05.061.2022146000000.hdf", "MCD12Q1", "2017-01-01", (26, 5), "061"),
        ("MYD13A2.A2017009.h26v05.061.2022146000000.hdf", "MYD13A2", "2017-01-09", (26, 5), "061"),
        ("VNP21A1D.A2017161.h26v05.002.2022146000000.h5", "VNP21A1D", "2017-06-10", (26, 5), "002"),
        ("VJ121A1N.A2020161.h26v05.002.2022146000000.h5", "VJ121A1N", "2020-06-09", (26, 5), "002"),
        ("VJ221A1D.A2024161.h26v05.002.2024165000000.h5", "VJ221A1D", "2024-06-09", (26, 5), "002"),
        ("VNP13A2.A2025009.h18v09.002.2025031192612.h5", "VNP13A2", "2025-01-09", (18, 9), "002"),
    ],
)
def test_names_say_product_date_tile_and_collection(
    name: str, product: str, day: str, tile: tuple | None, collection: str
) -> None:
    granule = read_name(Path(name))
    assert granule is not None
    assert (granule.product, granule.date, granule.tile, granule.collection) == (product, day, tile, collection)


@pytest.mark.parametrize(
    "name", ["MOD09GA.A2008296.h14v17.006.2015181011753.hdf", "MYD11A1.hdf", "readme.txt", "SMAP_L3_SM_P_20170610.h5"]
)
def test_other_names_say_nothing(name: str) -> None:
    assert read_name(Path(name)) is None


@pytest.mark.real_data
def test_the_real_files_are_found(real: Real) -> None:
    found = scan(real("README.md").parent)
    assert {g.product for g in found.granules} == {"SPL2SMP", "SPL4SMAU", "MOD11A1", "MOD13A2", "VNP13A2"}
    assert len(found.dem_tiles) == 5
    assert {p.name for p in found.station_files} == {"ismn_ceop_sep.zip", "ismn_header_values.zip"}
    assert not found.problems
    assert any(p.name.startswith("MOD09GA") for p in found.unknown)
    assert [p.name for p in found.dem_covering((8.2, 46.2, 8.4, 46.4))] == ["SRTM_N46E008.tif"]


def test_a_mixed_folder_is_sorted_out(tmp_path: Path) -> None:
    touch_hdf4(tmp_path / "modis/deep", LST)
    touch_hdf4(tmp_path / "modis", LST.replace("MYD", "MOD"))
    touch_hdf5(tmp_path / "smap", "SMAP_L3_SM_P_20170610_R18290_001.h5")
    touch_dem(tmp_path, "N30E103.tif", 103, 31)
    touch_dem(tmp_path, "ASTGTMV003_N30E103_num.tif", 103, 31)
    touch_dem(tmp_path, "classes.tif", 103, 31, dtype="uint8")
    (tmp_path / "stations.csv").write_text("station,time,lat,lon,soil_moisture\nA,2017-06-10,30,103,0.2\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with zipfile.ZipFile(tmp_path / "ismn.zip", "w") as archive:
        archive.writestr("N/S/N_N_S_sm_0.05_0.05_P_1_2.stm", "x")
    (tmp_path / "notes.txt").write_text("hello")
    found = scan(tmp_path)
    assert [g.product for g in found.select("LST")] == ["MOD11A1", "MYD11A1"]
    assert [g.product for g in found.select("LST", product="MYD11A1")] == ["MYD11A1"]
    assert found.select("LST", dates=["2017-06-11"]) == ()
    assert len(found.select("MYD11A1", dates=["2017-06-10"], tiles=[(26, 5)])) == 1
    assert [p.name for p in found.dem_covering((103.2, 30.2, 103.4, 30.4))] == ["N30E103.tif"]
    assert found.dem_covering((110, 30, 111, 31)) == ()
    assert {p.name for p in found.station_files} == {"stations.csv", "ismn.zip"}
    assert {p.name for p in found.unknown} == {"ASTGTMV003_N30E103_num.tif", "classes.tif", "other.csv", "notes.txt"}
    assert found.counts == {
        "MOD11A1": 1, "MYD11A1": 1, "SPL3SMP": 1, "DEM": 1, "STATIONS": 2, "duplicates": 0, "unknown": 4, "broken": 0,
    }  # fmt: skip


def test_of_repeated_productions_the_newest_is_kept(tmp_path: Path) -> None:
    for name in (LST, LST.replace("2021296", "2022001"), LST.replace("061.2021", "006.2023")):
        touch_hdf4(tmp_path, name)
    touch_hdf5(tmp_path, "SMAP_L3_SM_P_20170610_R18290_001.h5")
    touch_hdf5(tmp_path, "SMAP_L3_SM_P_20170610_R18290_002.h5")
    found = scan(tmp_path)
    assert [g.path.name for g in found.granules] == [
        "SMAP_L3_SM_P_20170610_R18290_002.h5",
        LST.replace("2021296", "2022001"),
    ]
    assert len(found.duplicates) == 3
    assert found.collections("LST") == {"061": 1}


def test_broken_files_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / LST).write_bytes(b"")
    (tmp_path / LST.replace("h26", "h27")).write_bytes(b"<html>login")
    whole = touch_hdf5(tmp_path, "SMAP_L3_SM_P_20170610_R18290_001.h5")
    whole.write_bytes(whole.read_bytes()[:2500])
    (tmp_path / "N30E103.tif").write_bytes(b"II*\x00rest")
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "SMAP_L3_SM_P_20171310_R18290_001.h5").write_bytes(b"x")
    found = scan(tmp_path)
    reasons = {path.name: reason for path, reason in found.problems}
    assert found.granules == ()
    assert "empty" in reasons[LST]
    assert "web page" in reasons[LST.replace("h26", "h27")]
    assert "truncated" in reasons["SMAP_L3_SM_P_20170610_R18290_001.h5"]
    assert "download it again" in reasons["N30E103.tif"]
    assert "zip" in reasons["a.zip"]
    assert len(reasons) == 6
    assert found.counts["broken"] == 6


def test_what_is_missing_is_said_with_where_to_get_it(tmp_path: Path) -> None:
    touch_hdf4(tmp_path, LST)
    touch_dem(tmp_path, "N30E103.tif", 103, 31)
    found = scan(tmp_path)
    lacks = found.missing(
        [
            Requirement("LST", ("2017-06-10", "2017-06-11"), ("h26v05",)),
            Requirement("SPL3SMP", ("2017-06-10",)),
            Requirement("DEM", tiles=("N30E103", "N30E104")),
            Requirement("LC"),
            Requirement("STATIONS"),
        ]
    )
    assert {m.family: (len(m.absent), m.wanted) for m in lacks} == {
        "LST": (1, 2),
        "SPL3SMP": (1, 1),
        "DEM": (1, 2),
        "LC": (1, 1),
        "STATIONS": (1, 1),
    }
    text = str(lacks[0])
    assert "2017-06-11 h26v05" in text
    assert "smscale fetch" in text
    assert all("\n" not in str(m) for m in lacks)
    assert (
        found.missing([Requirement("LST", ("2017-06-10",), ("h26v05",)), Requirement("DEM", tiles=("N30E103",))]) == ()
    )
    with pytest.raises(InputError, match="unknown family"):
        found.missing([Requirement("RAIN")])


def test_requirements_of_the_papers_region_and_period() -> None:
    needed = {r.family: r for r in requirements("2017-06-10", "2017-11-30", (97.35, 26.05, 108.54, 34.31))}
    assert needed["LST"].tiles == ("h26v05", "h26v06", "h27v05", "h27v06")
    assert needed["SPL3SMP"].dates[0] == "2017-06-09"  # 06:00 of 10 June in Sichuan is still 9 June in UTC
    assert needed["SPL3SMP"].dates[-1] == "2017-11-30"
    assert needed["LC"].dates == ("2017-01-01",)
    assert len(needed["DEM"].tiles) == 9 * 12
    assert requirements("2017-06-10", "2017-06-11", (-100, 30, -99, 31))[0].dates == (
        "2017-06-10",
        "2017-06-11",
        "2017-06-12",
    )


def test_degree_tiles_are_named_by_their_south_western_corner() -> None:
    assert degree_tiles((103.5, 30.2, 104.0, 31.5)) == ("N30E103", "N31E103")
    assert degree_tiles((-70.5, -33.0, -70.0, -32.0)) == ("S33W071",)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        scan(tmp_path / "none")
    assert scan(tmp_path).granules == ()


# -- series, calendars, what existed when -------------------------------------------------------------


def touch(folder: Path, product: str, day: str, tile: str = "h26v05", collection: str = "061") -> Path:
    """A granule that is whole as far as its first bytes say, named as the archive would."""
    name = f"{product}.A{date.fromisoformat(day):%Y%j}.{tile}.{collection}.2022001000000"
    return touch_hdf5(folder, f"{name}.h5") if product.startswith("V") else touch_hdf4(folder, f"{name}.hdf")


def test_of_viirs_day_and_night_are_wanted_and_the_absent_one_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "VNP21A1D", "2017-06-10", collection="002")
    touch(tmp_path, "VNP21A1D", "2017-06-11", collection="002")
    touch(tmp_path, "VNP21A1N", "2017-06-11", collection="002")
    found = scan(tmp_path)
    need = Requirement("LST", ("2017-06-10", "2017-06-11"), ("h26v05",), "VNP21A1")
    (lack,) = found.missing([need])
    assert lack.absent == ("2017-06-10 h26v05 VNP21A1N",)
    assert lack.wanted == 4
    assert [g.product for g in found.of_one_series("LST", ["2017-06-11"])] == ["VNP21A1D", "VNP21A1N"]
    assert {g.sensor for g in found.granules} == {"VIIRS Suomi-NPP"}
    assert {g.series for g in found.select("LST", product="VNP21A1")} == {"VNP21A1"}


def test_one_series_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    for product in ("MOD11A1", "MYD11A1"):
        touch(tmp_path, product, "2017-06-10")
    touch(tmp_path, "VJ121A1D", "2017-06-10", collection="002")
    found = scan(tmp_path)
    assert [g.product for g in found.of_one_series("LST")] == ["MYD11A1"]
    (line,) = found.rivals
    assert line.startswith("LST: MYD11A1 (1 files) is taken")
    assert "VJ121A1 (1 files), MOD11A1 (1 files)" in line


def test_mixed_collections_are_counted_with_their_dates(tmp_path: Path) -> None:
    touch(tmp_path, "MYD11A1", "2017-06-10", collection="006")
    touch(tmp_path, "MYD11A1", "2017-06-11", collection="006")
    touch(tmp_path, "MYD11A1", "2017-06-12")
    for name in ("20170610_R18290_001", "20170611_R18240_001"):  # one major release, twice produced: no mixture
        touch_hdf5(tmp_path, f"SMAP_L3_SM_P_{name}.h5")
    assert scan(tmp_path).mixtures == (
        "MYD11A1: collections are mixed: 006 (2 files, 2017-06-10 to 2017-06-11), 061 (1 files, 2017-06-12)",
    )
    touch_hdf5(tmp_path, "SMAP_L3_SM_P_20170612_R19240_001.h5")
    assert (
        "SPL3SMP: collections are mixed: R18 (2 files, 2017-06-10 to 2017-06-11), R19 (1 files, 2017-06-12)"
        in scan(tmp_path).mixtures
    )


def test_needs_follow_the_calendar_of_what_the_folder_holds(tmp_path: Path) -> None:
    touch(tmp_path, "MYD13A2", "2017-06-02")
    need = {r.family: r for r in scan(tmp_path).needs("2017-06-10", "2017-06-30", (103, 30, 104, 31))}
    assert need["VI"].product == "MYD13A2"
    assert need["VI"].dates == ("2017-06-02", "2017-06-18")  # days 153 and 169: Aqua's phase
    assert need["LST"].product == "MYD11A1"
    (lack,) = scan(tmp_path).missing([need["VI"]])
    assert lack.absent == ("2017-06-02 h27v05", "2017-06-18 h26v05", "2017-06-18 h27v05")


def test_a_series_that_is_none_is_refused() -> None:
    for products, said in [({"LST": "MYD11A2"}, "expected one of MYD11A1"), ({"RAIN": "x"}, "no family")]:
        with pytest.raises(InputError, match=said):
            requirements("2017-06-10", "2017-06-11", (103, 30, 104, 31), products=products)


def days_of_year(series: str, start: str, end: str) -> list[int]:
    return [
        first.timetuple().tm_yday for first, _ in calendar(series, date.fromisoformat(start), date.fromisoformat(end))
    ]


def test_composites_start_on_the_days_that_the_archives_have() -> None:
    assert days_of_year("MOD13A2", "2017-01-01", "2017-12-31") == [
        353,
        *range(1, 354, 16),
    ]  # 353 of 2016 reaches 2017-01-02
    assert days_of_year("MYD13A2", "2017-01-20", "2017-12-31") == list(range(9, 362, 16))
    assert days_of_year("VNP13A2", "2017-06-10", "2017-06-10") == [153, 161]  # two phases of 16 days
    assert days_of_year("MOD16A2GF", "2017-12-20", "2018-01-03") == [353, 361, 1]
    (last,) = calendar("MOD16A2GF", date(2016, 12, 31), date(2016, 12, 31))
    assert last == (date(2016, 12, 26), date(2016, 12, 31))  # the year's last is shorter


@pytest.mark.real_data
def test_the_phases_of_viirs_are_those_of_a_real_granule(real: Real) -> None:
    with h5py.File(real("modis/VNP13A2.A2025009.h18v09.002.2025031192612.h5")) as file:
        first, last = (date.fromisoformat(file.attrs[f"Range{k}Date"].decode()) for k in ("Beginning", "Ending"))
        phases = file.attrs["ProductionType"].decode()
    assert (first, last) in calendar("VNP13A2", first, first)
    assert "361-10/11" in phases  # the composite from day 361 goes on to 10 or 11 January
    assert (date(2025, 12, 27), date(2026, 1, 11)) in calendar("VNP13A2", date(2026, 1, 5), date(2026, 1, 5))


def test_what_existed_then_is_chosen() -> None:
    def chosen(start: str, end: str) -> dict[str, str]:
        return {f: s.name for f, s in flying(date.fromisoformat(start), date.fromisoformat(end)).items()}

    paper = chosen("2017-06-09", "2017-11-30")
    # Collection 6.1 of MOD16A2 begins in 2021: the gap-filled product is what there is of 2017.
    assert paper == {"SPL3SMP": "SPL3SMP", "LST": "MYD11A1", "VI": "MOD13A2", "ET": "MOD16A2GF", "LC": "MCD12Q1"}
    assert chosen("2026-05-01", "2026-12-31")["LST"] == "VJ121A1"  # Aqua ends on the way
    assert chosen("2026-02-01", "2026-03-01")["ET"] == "MOD16A2"
    assert chosen("2027-02-01", "2027-03-01").get("ET") is None
    assert "SPL3SMP" not in chosen("2014-01-01", "2014-12-31")


def test_the_product_tables_hold_together() -> None:
    listed = {name for entry in FAMILIES.values() for name in entry["products"]} - {"DEM", "STATIONS"}
    assert listed <= set(SERIES)
    for series in SERIES.values():
        assert series.megabytes > 0
        assert date.fromisoformat(series.start) < date.fromisoformat(series.end or "2100-01-01")
        assert series.page.startswith("https://")


# -- files whose names do not say ----------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("source", "name", "product", "day", "tile"),
    [
        ("modis/MOD11A1.A2019305.h14v09.006.2019306084028.hdf", "lst.hdf", "MOD11A1", "2019-11-01", (14, 9)),
        ("modis/MOD13A2.A2025113.h18v09.061.2025148085150.hdf", "vi (1).hdf", "MOD13A2", "2025-04-23", (18, 9)),
        ("modis/VNP13A2.A2025009.h18v09.002.2025031192612.h5", "download.h5", "VNP13A2", "2025-01-09", (18, 9)),
        ("smap/SMAP_L2_SM_P_02801_A_20150811T013002_R18290_001.h5", "orbit.h5", "SPL2SMP", "2015-08-11", None),
        ("smap/SMAP_L4_SM_aup_input.h5", "l4.h5", "SPL4SMAU", "2020-01-28", None),
    ],
)
def test_a_renamed_file_says_what_it_is(
    real: Real, tmp_path: Path, source: str, name: str, product: str, day: str, tile: tuple | None
) -> None:
    (tmp_path / name).symlink_to(real(source))
    (granule,) = scan(tmp_path).granules
    assert (granule.product, granule.date, granule.tile, granule.path.name) == (product, day, tile, name)
    original = read_name(Path(source))
    if original is not None:  # the name that the archive gave it stands in its metadata
        assert (granule.collection, granule.production) == (original.collection, original.production)


@pytest.mark.real_data
def test_a_renamed_copy_is_a_duplicate(real: Real, tmp_path: Path) -> None:
    source = real("modis/MOD11A1.A2019305.h14v09.006.2019306084028.hdf")
    shutil.copy(source, tmp_path / source.name)
    shutil.copy(source, tmp_path / "copy.hdf")
    found = scan(tmp_path)
    assert len(found.granules) == len(found.duplicates) == 1


@pytest.mark.real_data
def test_a_renamed_file_without_metadata_is_reported(real: Real, tmp_path: Path) -> None:
    (tmp_path / "crop.hdf").symlink_to(real("modis/MOD13A2.A2016145.h18v04.006.2016166145124.hdf"))
    (tmp_path / "other.hdf").symlink_to(real("modis/MOD09GA.A2008296.h14v17.006.2015181011753.hdf"))
    found = scan(tmp_path)
    ((path, reason),) = found.problems
    assert path.name == "crop.hdf"
    assert "no CoreMetadata" in reason
    assert [p.name for p in found.unknown] == ["other.hdf"]


def test_an_unfinished_download_is_named(tmp_path: Path) -> None:
    (tmp_path / f"{LST}.part").write_bytes(HDF4)
    ((_, reason),) = scan(tmp_path).problems
    assert "smscale fetch" in reason


def test_twenty_thousand_files_are_scanned_in_seconds(tmp_path: Path) -> None:
    for i in range(20_000):
        day = date.fromordinal(date(2016, 1, 1).toordinal() + i // 4)
        (tmp_path / f"MYD11A1.A{day:%Y%j}.h{26 + i % 2}v0{5 + i // 2 % 2}.061.2022001000000.hdf").write_bytes(HDF4)
    start = time.process_time()
    found = scan(tmp_path)
    needs = found.needs("2016-01-02", "2020-12-31", (97.35, 26.05, 108.54, 34.31), stations_too=False)
    lacks = {lack.family for lack in found.missing(needs)}
    took = time.process_time() - start
    assert len(found.granules) == 20_000
    assert "LST" not in lacks
    assert took < 10, f"{took:.1f} s"  # 1.3 s of one core (2.1 GHz) when this was written


def test_the_layers_of_one_appeears_date_are_one_granule(tmp_path: Path) -> None:
    for day in ("2017161", "2017162"):
        for layer in ("LST_Day_1km", "QC_Day", "LST_Night_1km", "QC_Night"):
            touch_dem(tmp_path, f"MYD11A1.061_{layer}_doy{day}_aid0001.tif", 103, 31, dtype="uint16")
    (tmp_path / "MYD11A1.061_LST_Day_1km_doy2017163_aid0001.tif").write_bytes(b"<html>login")
    found = scan(tmp_path)
    assert [(g.product, g.date, g.tile, g.collection, len(g.files)) for g in found.granules] == [
        ("MYD11A1", "2017-06-10", None, "061", 4),
        ("MYD11A1", "2017-06-11", None, "061", 4),
    ]
    assert found.dem_tiles == ()
    assert [reason for _, reason in found.problems] == [
        "is a web page (a login or error page?), expected TIFF: log in and download it again"
    ]
    days, tiles = ("2017-06-10", "2017-06-11", "2017-06-12"), ("h26v05", "h26v06")
    (lack,) = found.missing([Requirement("LST", days, tiles, "MYD11A1")])
    assert lack.absent == ("2017-06-12 h26v05", "2017-06-12 h26v06")  # an area stands for every tile
    assert len(found.of_one_series("LST", days, [(26, 5)])) == 2
