"""The catalogue of a folder: what names say, what is broken, double or missing."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from smscale.errors import InputError
from smscale.sources.catalogue import Requirement, degree_tiles, read_name, requirements, scan

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
        ("SMAP_L4_SM_aup_20200128T150000_Vv4030_001.h5", "SPL4SMAU", "2020-01-28", None, "Vv4030"),
        (LST, "MYD11A1", "2017-06-10", (26, 5), "061"),
        ("MOD16A2GF.A2016366.h08v11.006.2021296000000.hdf", "MOD16A2GF", "2016-12-31", (8, 11), "006"),
        ("MCD12Q1.A2017001.h26v05.061.2022146000000.hdf", "MCD12Q1", "2017-01-01", (26, 5), "061"),
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
    assert {g.product for g in found.granules} == {"SPL2SMP", "MOD11A1", "MOD13A2"}
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
    assert "earthaccess" in text
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
