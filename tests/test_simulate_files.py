"""The nature run's files as a stranger's readers see them: pyhdf, h5py, rasterio, the ismn package; and the orbit."""

import datetime as dt
import io
import re
import sys
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyhdf.V  # noqa: F401
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from pyhdf.HDF import HDF
from pyhdf.SD import SD

from smscale import schema, sinusoidal
from smscale.errors import InputError
from smscale.grid import Grid
from smscale.simulate import atomic, dem_files, modis_files, orbit, smap_files, station_files

Real = Callable[[str], Path]
DAP = "{http://xml.opendap.org/ns/DAP/4.0#}"
SICHUAN = Grid.ease2(36, 97.35, 26.05, 108.54, 34.31)
#: numpy types of pyhdf's type numbers.
HDF4_TYPES = {20: "int8", 21: "uint8", 22: "int16", 23: "uint16"}


def gradient(pixels: int, low: float, high: float) -> np.ndarray:
    """Values that tell their own place: rising along the diagonal."""
    i = np.arange(pixels)
    return low + (high - low) * np.add.outer(i, i) / (2 * (pixels - 1))


def sds_facts(path: Path) -> dict[str, tuple[str, list[tuple[str, int, Any]]]]:
    sd = SD(str(path))
    facts: dict[str, tuple[str, list[tuple[str, int, Any]]]] = {}
    for number in range(sd.info()[0]):
        sds = sd.select(number)
        name, _, _, kind, _ = sds.info()
        # The legends are worded in our own way.
        attrs: list[tuple[str, int, Any]] = [
            (k, v[2], "" if k == "Legend" else v[0]) for k, v in sds.attributes(full=1).items()
        ]
        facts[name] = (HDF4_TYPES[kind], sorted(attrs))
    sd.end()
    return facts


def hdf_text(path: Path, name: str) -> str:
    sd = SD(str(path))
    text = sd.attributes()[name]
    sd.end()
    return text


def read_sds(path: Path, name: str) -> np.ndarray:
    sd = SD(str(path))
    values = sd.select(name).get()
    sd.end()
    return values


@contextmanager
def frames_held() -> Iterator[None]:
    """Every frame, with what it holds, outlives its call: as now and then under a profiler that samples, which dask's workers have."""
    frames: list[FrameType] = []
    sys.setprofile(lambda frame, event, arg: frames.append(frame))
    try:
        yield
    finally:
        sys.setprofile(None)


# -- MODIS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lst_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    day, night = gradient(1200, 280, 320), gradient(1200, 260, 290)
    day[:600, :600] = np.nan
    folder = tmp_path_factory.mktemp("modis")
    name = modis_files.granule_name("MYD11A1", "2017-06-10", 26, 6)
    return modis_files.write_lst(folder / name, "2017-06-10", 26, 6, day, night, 13.5, gradient(1200, 1.0, 2.0))


@pytest.fixture(scope="module")
def vegetation_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ndvi = gradient(1200, -0.2, 0.95)
    ndvi[0] = np.nan
    reliability = np.zeros((1200, 1200), int)
    reliability[1], reliability[2], reliability[3] = 1, 2, 3
    path = tmp_path_factory.mktemp("modis") / modis_files.granule_name("MOD13A2", "2017-06-10", 26, 6)
    return modis_files.write_vegetation(path, "2017-06-10", 26, 6, ndvi, ndvi * 0.6, reliability)


@pytest.fixture(scope="module")
def et_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    et = gradient(2400, 0, 60)
    et[5] = np.nan
    classes = np.full((2400, 2400), 10)
    for row, igbp in enumerate((17, 16, 15, 11, 13)):
        classes[row] = igbp
    path = tmp_path_factory.mktemp("modis") / modis_files.granule_name("MOD16A2", "2017-06-10", 26, 6)
    return modis_files.write_et(path, "2017-06-10", 26, 6, et, et + 10, classes)


@pytest.fixture(scope="module")
def land_cover_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = np.resize(np.r_[np.arange(1, 18), 255], (2400, 2400))
    path = tmp_path_factory.mktemp("modis") / modis_files.granule_name("MCD12Q1", "2017-01-01", 26, 6)
    return modis_files.write_land_cover(path, 2017, 26, 6, classes)


def test_granule_names_are_nasas() -> None:
    assert modis_files.granule_name("MYD11A1", "2017-06-10", 26, 6) == "MYD11A1.A2017161.h26v06.061.2017163120000.hdf"
    assert modis_files.granule_name("MCD12Q1", dt.date(2017, 1, 1), 27, 5).startswith(
        "MCD12Q1.A2017001.h27v05.061.2018"
    )
    pattern = r"M[OYC]D\w+\.A\d{7}\.h\d\dv\d\d\.061\.\d{13}\.hdf"
    assert all(re.fullmatch(pattern, modis_files.granule_name(p, "2017-01-01", 1, 17)) for p in modis_files.schema())


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("product", "genuine"),
    [
        ("MYD11A1", "modis/MOD11A1.A2019305.h14v09.006.2019306084028.hdf"),
        ("MOD13A2", "modis/MOD13A2.A2025113.h18v09.061.2025148085150.hdf"),
    ],
)
def test_data_sets_are_those_of_the_genuine_file(
    product: str, genuine: str, real: Real, lst_file: Path, vegetation_file: Path
) -> None:
    ours = {"MYD11A1": lst_file, "MOD13A2": vegetation_file}[product]
    assert sds_facts(ours) == sds_facts(real(genuine))


@pytest.mark.real_data
def test_land_cover_data_sets_are_those_of_the_genuine_schema(real: Real, land_cover_file: Path) -> None:
    root = ET.parse(real("modis/MCD12Q1.A2022001.h10v06.061.2023243073808.hdf.dmr")).getroot()
    genuine = {str(e.get("name")): e for e in root.iter(f"{DAP}Byte") if len(e.findall(f"{DAP}Dim")) == 2}
    ours = sds_facts(land_cover_file)
    assert set(ours) == set(genuine)
    for name, element in genuine.items():
        known = {a.get("name") for a in element.findall(f"{DAP}Attribute")} - {"dmr_sds_ref"}
        assert {key for key, _, _ in ours[name][1]} == known


@pytest.mark.real_data
def test_et_data_sets_are_those_of_the_genuine_schema(real: Real, et_file: Path) -> None:
    text = real("modis/MOD16A2-1.hdf.das.baseline").read_text()
    genuine = re.findall(r"^    (\w+_500m) \{", text, re.MULTILINE)
    ours = sds_facts(et_file)
    assert sorted(ours) == sorted(genuine)
    for name in genuine:
        attrs = {key: value for key, _, value in ours[name][1]}
        body = re.search(rf"^    {name} \{{(.*?)^    \}}", text, re.MULTILINE | re.DOTALL).group(1)  # type: ignore[union-attr]
        assert attrs["_FillValue"] == int(re.search(r"_FillValue (\d+)", body).group(1))  # type: ignore[union-attr]
        assert f'"{attrs["units"]}"' in body
        if "scale_factor " in body:
            assert attrs["scale_factor"] == float(re.search(r"scale_factor ([\d.]+)", body).group(1))  # type: ignore[union-attr]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("product", "genuine", "h", "v"),
    [
        ("MYD11A1", "modis/MOD11A1.A2019305.h14v09.006.2019306084028.hdf", 14, 9),
        ("MOD13A2", "modis/MOD13A2.A2025113.h18v09.061.2025148085150.hdf", 18, 9),
    ],
)
def test_struct_metadata_is_the_genuine_files_text(product: str, genuine: str, h: int, v: int, real: Real) -> None:
    theirs = hdf_text(real(genuine), "StructMetadata.0")
    assert modis_files.struct_metadata(product, h, v) == theirs


@pytest.mark.real_data
def test_struct_metadata_of_land_cover_is_the_genuine_schemas(real: Real) -> None:
    root = ET.parse(real("modis/MCD12Q1.A2022001.h10v06.061.2023243073808.hdf.dmr")).getroot()
    values = {a.get("name"): a.findtext(f"{DAP}Value") for a in root.findall(f"{DAP}Attribute")}
    theirs = [line.strip() for line in str(values["StructMetadata_0"]).splitlines() if line.strip()]
    ours = modis_files.struct_metadata("MCD12Q1", 10, 6).rstrip("\0").splitlines()
    assert [line.strip() for line in ours if line.strip()] == theirs


@pytest.mark.parametrize("product", ["MYD11A1", "MOD13A2", "MOD16A2", "MCD12Q1"])
def test_tile_corners_lie_on_the_sinusoidal_grid(product: str) -> None:
    # The products round the tile size in their own ways: 0.1 mm a tile, 1.8 mm at most.
    for h, v in ((26, 6), (0, 8), (35, 9)):
        assert modis_files.corners(product, h, v) == pytest.approx(sinusoidal.tile_corners(h, v), abs=2e-3)


def test_hdf_eos_finds_the_grid_by_its_vgroups(lst_file: Path) -> None:
    file = HDF(str(lst_file))
    groups = file.vgstart()
    grid = groups.attach(groups.find("MODIS_Grid_Daily_1km_LST"))
    fields = groups.attach(groups.find("Data Fields"))
    assert (grid._class, fields._class) == ("GRID", "GRID Vgroup")
    assert [tag for tag, _ in fields.tagrefs()] == [720] * 12
    sd = SD(str(lst_file))
    names = [sd.select(sd.reftoindex(ref)).info()[0] for _, ref in fields.tagrefs()]
    assert names == [field["name"] for field in modis_files.schema()["MYD11A1"]["fields"]]
    sd.end()
    for group in (grid, fields):
        group.detach()
    groups.end()
    file.close()


def test_core_metadata_names_the_granule_its_day_and_its_tile(lst_file: Path, et_file: Path) -> None:
    def value(path: Path, name: str) -> str:
        text = hdf_text(path, "CoreMetadata.0")
        return re.search(rf"= {name}\n(?:.*\n){{1,3}}?\s+VALUE\s+= (.*)\n", text).group(1).strip('"')  # type: ignore[union-attr]

    assert value(lst_file, "LOCALGRANULEID") == lst_file.name
    assert value(lst_file, "SHORTNAME") == "MYD11A1"
    assert value(lst_file, "VERSIONID") == "61"
    assert (value(lst_file, "RANGEBEGINNINGDATE"), value(lst_file, "RANGEENDINGDATE")) == ("2017-06-10", "2017-06-10")
    assert (value(et_file, "RANGEBEGINNINGDATE"), value(et_file, "RANGEENDINGDATE")) == ("2017-06-10", "2017-06-17")
    core = hdf_text(lst_file, "CoreMetadata.0")
    pairs = re.findall(
        r'ADDITIONALATTRIBUTENAME\n(?:.*\n){2}\s+VALUE\s+= "(.*)"\n(?:.*\n)+?.*PARAMETERVALUE\n(?:.*\n){2}\s+VALUE\s+= "(.*)"',
        core,
    )
    assert dict(pairs)["HORIZONTALTILENUMBER"] == "26"
    assert dict(pairs)["VERTICALTILENUMBER"] == "06"
    opened, closed = (
        re.findall(rf"^\s*{word}\s+= (\w+)", core, re.MULTILINE)
        for word in ("(?:GROUP|OBJECT)", "END_(?:GROUP|OBJECT)")
    )
    assert sorted(opened) == sorted(closed)


def test_lst_decodes_to_what_was_given(lst_file: Path) -> None:
    stored = read_sds(lst_file, "LST_Day_1km")
    assert stored.dtype == np.uint16
    assert np.all(stored[:600, :600] == 0)
    # Half of the scale factor, and float32's own 2e-5 K.
    assert np.max(np.abs(stored[600:] * 0.02 - gradient(1200, 280, 320)[600:])) <= 0.0101
    assert np.all(read_sds(lst_file, "QC_Day")[:600, :600] == 2)
    assert np.all(read_sds(lst_file, "QC_Day")[600:] == 0)
    assert np.all(read_sds(lst_file, "Day_view_time")[:600, :600] == 255)
    assert np.all(read_sds(lst_file, "Day_view_time")[600:] == 135)
    assert np.max(np.abs(read_sds(lst_file, "Night_view_time") * 0.1 - gradient(1200, 1, 2))) <= 0.0501
    assert np.all(read_sds(lst_file, "Emis_31") * 0.002 + 0.49 == pytest.approx(0.984))
    assert np.all(read_sds(lst_file, "Day_view_angl")[600:] - 65.0 == 20.0)


def test_lst_quality_sets_the_documented_bits() -> None:
    lst = np.array([300.0, 300.0, 300.0, np.nan, np.nan])
    cloud = np.array([False, False, False, True, False])
    error = np.array([0.5, 1.5, 4.0, 0.5, 0.5])
    # 0b01_00_01_01: LST error up to 2 K, other data quality, other quality; 0b11_... above 3 K.
    assert modis_files.lst_quality(lst, cloud, error).tolist() == [0, 0b01000101, 0b11000101, 2, 3]
    assert modis_files.lst_quality(300.0, False, 0.5, 0.03) == 0b00100101


def test_vegetation_decodes_to_what_was_given(vegetation_file: Path) -> None:
    ndvi = read_sds(vegetation_file, "1 km 16 days NDVI")
    assert np.all(ndvi[0] == -3000)
    # The stored number is divided by 10 000; half a step, and the clip at -0.2.
    assert np.max(np.abs(ndvi[1:] / 10000 - gradient(1200, -0.2, 0.95)[1:])) <= 5.1e-5
    assert [int(read_sds(vegetation_file, "1 km 16 days pixel reliability")[row, 0]) for row in range(5)] == [
        -1,
        1,
        2,
        3,
        0,
    ]
    quality = read_sds(vegetation_file, "1 km 16 days VI Quality")
    assert quality[0, 0] == 65535
    assert [int(quality[row, 0]) & 3 for row in (1, 2, 3, 4)] == [1, 1, 2, 0]
    assert np.all((quality[1:] >> 11) & 7 == 1)
    assert np.all((quality[2] >> 14) & 1 == 1)
    red, near = (
        read_sds(vegetation_file, f"1 km 16 days {band} reflectance")[600:].astype(float) for band in ("red", "NIR")
    )
    # Reflectances are rounded to 1e-4 of about 0.1 to 0.4.
    assert np.max(np.abs((near - red) / (near + red) - ndvi[600:] / 10000)) < 5e-4
    assert np.all(read_sds(vegetation_file, "1 km 16 days composite day of the year")[1:] == 168)


def test_et_keeps_the_special_fills_of_its_classes(et_file: Path) -> None:
    stored = read_sds(et_file, "ET_500m")
    assert [int(stored[row, 7]) for row in range(6)] == [32766, 32765, 32764, 32763, 32762, 32767]
    # Half of the scale factor 0.1.
    assert np.max(np.abs(stored[6:] * 0.1 - gradient(2400, 0, 60)[6:])) <= 0.0501
    # Latent heat flux: 40 kg m-2 over 8 days is 40 * 2.45e6 / 8 J m-2 a day, stored in units of 1e4.
    at = np.unravel_index(np.argmin(np.abs(gradient(2400, 0, 60) - 40)), (2400, 2400))
    assert read_sds(et_file, "LE_500m")[at] * 1e4 == pytest.approx(40 * 2.45e6 / 8, rel=1e-3)
    assert np.all(read_sds(et_file, "ET_QC_500m")[:6] == 255)


def test_land_cover_writes_water_as_17_and_stays_in_every_legend(land_cover_file: Path) -> None:
    igbp = read_sds(land_cover_file, "LC_Type1")
    assert igbp[0, :18].tolist() == [*range(1, 18), 255]
    assert read_sds(land_cover_file, "LW")[0, 15:18].tolist() == [2, 1, 255]
    for name, (_, attrs) in sds_facts(land_cover_file).items():
        legend = {value for key, _, value in attrs if not isinstance(value, list) and key != "long_name"}
        if len(legend) > 1:
            assert set(np.unique(read_sds(land_cover_file, name)).tolist()) <= legend
    with pytest.raises(InputError, match="1 to 17"):
        modis_files.write_land_cover(land_cover_file.with_name("x.hdf"), 2017, 26, 6, np.zeros((2400, 2400), int))


def test_composite_dates_start_anew_each_year() -> None:
    dates = modis_files.composite_dates("MOD16A2", "2016-12-20", "2017-01-10")
    assert dates == [dt.date(2016, 12, 18), dt.date(2016, 12, 26), dt.date(2017, 1, 1), dt.date(2017, 1, 9)]
    # The last 16-day composite of a year reaches into the next.
    assert modis_files.composite_dates("MOD13A2", "2017-01-02", "2017-01-02") == [
        dt.date(2016, 12, 18),
        dt.date(2017, 1, 1),
    ]
    assert modis_files.composite_dates("MCD12Q1", "2016-12-20", "2017-01-10") == [
        dt.date(2016, 1, 1),
        dt.date(2017, 1, 1),
    ]
    assert len(modis_files.composite_dates("MYD11A1", "2017-06-10", "2017-11-30")) == 174


def test_wrong_modis_arguments_are_named() -> None:
    with pytest.raises(InputError, match="day 162"):
        modis_files.write_vegetation("x.hdf", "2017-06-11", 26, 6, np.zeros((1200, 1200)), np.zeros((1200, 1200)))
    with pytest.raises(InputError, match=r"expected \(1200, 1200\)"):
        modis_files.write_lst("x.hdf", "2017-06-11", 26, 6, np.zeros((3, 3)), np.zeros((3, 3)), 13, 1)
    with pytest.raises(InputError, match="MOD09"):
        modis_files.composite_dates("MOD09", "2017-06-11", "2017-06-11")


def test_modis_bytes_do_not_depend_on_place(lst_file: Path, tmp_path: Path) -> None:
    day, night = gradient(1200, 280, 320), gradient(1200, 260, 290)
    day[:600, :600] = np.nan
    target = tmp_path / "a" / "much" / "longer" / "folder" / lst_file.name
    with frames_held():
        modis_files.write_lst(target, "2017-06-10", 26, 6, day, night, 13.5, gradient(1200, 1.0, 2.0))
    assert target.read_bytes() == lst_file.read_bytes()
    assert list(target.parent.iterdir()) == [target]
    assert b"/tmp" not in target.read_bytes()


# -- SMAP ---------------------------------------------------------------------------------------


def granule(overpass: str, grid: Grid, day: str = "2017-06-11") -> dict[str, Any]:
    time = orbit.observation_times(day, grid)[overpass]
    moisture = np.add.outer(np.arange(grid.shape[0]) * 0.01, np.arange(grid.shape[1]) * 0.001) + 0.1
    moisture[0] = np.nan
    return {
        "time": time,
        "soil_moisture": moisture,
        "surface_temperature": np.full(grid.shape, 290.0),
        "surface_flag": smap_files.surface_flag(grid.shape, mountainous_terrain=True),
        "retrieval_qual_flag": smap_files.retrieval_qual_flag(np.isfinite(moisture)),
        "landcover_class": np.full((*grid.shape, 3), 10),
    }


@pytest.fixture(scope="module")
def smap_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    day = "2017-06-11"
    path = tmp_path_factory.mktemp("smap") / smap_files.granule_name(day)
    return smap_files.write_spl3smp(path, day, granule("AM", SICHUAN), granule("PM", SICHUAN), SICHUAN)


@pytest.mark.real_data
def test_spl3smp_holds_every_data_set_of_the_real_schema(real: Real, smap_file: Path) -> None:
    types = {"Float32": "f4", "Float64": "f8", "UInt16": "u2", "Byte": "u1", "String": "S24"}
    root = ET.parse(real("smap/SC_SPL3SMP_008.dmr")).getroot()
    with h5py.File(smap_file) as file:
        for group in root.findall(f"{DAP}Group"):
            elements = {e.get("name"): e for e in group if e.tag.removeprefix(DAP) in types}
            if not elements:
                continue
            ours = file[str(group.get("name"))]
            assert set(ours) == set(elements)
            for name, element in elements.items():
                shape = tuple(int(d.get("size", 0)) for d in element.findall(f"{DAP}Dim"))
                assert ours[name].shape == shape
                assert ours[name].dtype == np.dtype(types[element.tag.removeprefix(DAP)])
                for attribute in element.findall(f"{DAP}Attribute"):
                    key, value = str(attribute.get("name")), attribute.findtext(f"{DAP}Value")
                    if key == "HDF5_HARDLINK":
                        assert ours[name] == file[str(value)]
                    elif attribute.get("type") == "String":
                        assert ours[name].attrs[key].decode() == str(value).replace("&apos;", "'")
                    else:
                        assert float(ours[name].attrs[key]) == pytest.approx(float(str(value)), rel=1e-6)


def test_spl3smp_values_lie_in_their_global_cells(smap_file: Path) -> None:
    for overpass, group, suffix in (
        ("AM", "Soil_Moisture_Retrieval_Data_AM", ""),
        ("PM", "Soil_Moisture_Retrieval_Data_PM", "_pm"),
    ):
        given = granule(overpass, SICHUAN)
        seen = ~np.isnat(given["time"])
        window = np.s_[SICHUAN.row0 : SICHUAN.row0 + SICHUAN.shape[0], SICHUAN.col0 : SICHUAN.col0 + SICHUAN.shape[1]]
        with h5py.File(smap_file) as file:
            data = file[group]
            moisture = data[f"soil_moisture{suffix}"][:]
            assert moisture.shape == (406, 964)
            expected = np.where(seen & np.isfinite(given["soil_moisture"]), given["soil_moisture"], -9999.0)
            assert np.array_equal(moisture[window], expected.astype("f4"))
            assert (moisture != -9999).sum() == (seen & np.isfinite(given["soil_moisture"])).sum()
            assert np.array_equal(data[f"soil_moisture_dca{suffix}"][:], moisture)
            assert np.all(data[f"surface_flag{suffix}"][window][seen] == 512)
            assert np.all(data[f"surface_flag{suffix}"][window][~seen] == 65534)
            row, col = np.nonzero(data[f"EASE_row_index{suffix}"][:] != 65534)
            assert np.array_equal(data[f"EASE_row_index{suffix}"][:][row, col], row)
            assert np.array_equal(data[f"EASE_column_index{suffix}"][:][row, col], col)
            # float32 of degrees: 4e-6.
            assert data[f"latitude{suffix}"][:][row, col] == pytest.approx(Grid.ease2(36).lat[row], abs=1e-5)
            assert data[f"longitude{suffix}"][:][row, col] == pytest.approx(Grid.ease2(36).lon[col], abs=1e-5)
            text = data[f"tb_time_utc{suffix}"][window]
            assert np.all(text[~seen] == b"N/A")
            stamps = np.array([t.decode().rstrip("Z") for t in text[seen]], dtype="datetime64[ms]")
            assert np.array_equal(stamps, given["time"][seen].astype("datetime64[ms]"))
            seconds = data[f"tb_time_seconds{suffix}"][window][seen]
            assert seconds == pytest.approx(
                (stamps - np.datetime64("2000-01-01T12:00:00")) / np.timedelta64(1, "s"), abs=1e-6
            )
            assert np.all(data[f"landcover_class{suffix}"][window][seen] == 10)
            assert np.all(data[f"albedo_scav{suffix}"][:] == -9999)
            assert np.all(data[f"tb_qual_flag_v{suffix}"][window][seen] == 0)


@pytest.mark.real_data
def test_tb_time_seconds_count_as_in_the_genuine_granule(real: Real) -> None:
    with h5py.File(real("smap/SMAP_L2_SM_P_02801_A_20150811T013002_R18290_001.h5")) as file:
        group = file["Soil_Moisture_Retrieval_Data"]
        time = np.datetime64(group["tb_time_utc"][0].decode().rstrip("Z"))
        # The text is cut to a millisecond.
        assert (time - smap_files.EPOCH) / np.timedelta64(1, "s") == pytest.approx(
            group["tb_time_seconds"][0], abs=2e-3
        )


def test_spl3smp_names_its_day_and_is_the_same_bytes_anywhere(smap_file: Path, tmp_path: Path) -> None:
    assert smap_file.name == "SMAP_L3_SM_P_20170611_R18290_001.h5"
    path = tmp_path / "deep" / smap_file.name
    am, pm = granule("AM", SICHUAN), granule("PM", SICHUAN)
    with frames_held():
        again = smap_files.write_spl3smp(path, dt.date(2017, 6, 11), am, pm, SICHUAN)
    assert again.read_bytes() == smap_file.read_bytes()
    with h5py.File(smap_file) as file:
        assert file["Metadata/Extent"].attrs["rangeBeginningDateTime"] == "2017-06-11T00:00:00.000Z"
        assert file["Metadata/DatasetIdentification"].attrs["ECSVersionID"] == "008"
        assert file["Metadata/DatasetIdentification"].attrs["fileName"] == smap_file.name


def test_smap_flags_are_the_real_bits() -> None:
    assert smap_files.SURFACE_BITS["mountainous_terrain"] == 512
    assert smap_files.SURFACE_BITS["nadir_region"] == 2048
    assert int(smap_files.surface_flag((), snow_or_ice=True, dense_vegetation=True)) == 32 + 1024
    recommended, attempted, successful = [True, False, True, True], [True, True, True, False], [True, True, False, True]
    # The values that genuine granules hold: 0, 1, 5, 7.
    assert smap_files.retrieval_qual_flag(recommended, attempted, successful).tolist() == [0, 1, 5, 7]
    with pytest.raises(InputError, match="no surface condition"):
        smap_files.surface_flag((), swamp=True)


def test_wrong_smap_arguments_are_named_and_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    good = granule("AM", SICHUAN)
    for wrong, words in (
        (good | {"moisture": good["soil_moisture"]}, "no data set 'moisture'"),
        (good | {"soil_moisture": np.zeros((2, 2))}, "has shape"),
        ({"soil_moisture": good["soil_moisture"]}, "`time` is missing"),
        (good | {"time": good["time"] + np.timedelta64(1, "D")}, "outside the UTC day"),
    ):
        with pytest.raises(InputError, match=words):
            smap_files.write_spl3smp(path, "2017-06-11", wrong, granule("PM", SICHUAN), SICHUAN)
    assert list(tmp_path.iterdir()) == []


# -- orbit --------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_orbit_meets_the_times_and_the_swath_of_a_genuine_half_orbit(real: Real) -> None:
    with h5py.File(real("smap/SMAP_L2_SM_P_02801_A_20150811T013002_R18290_001.h5")) as file:
        group = file["Soil_Moisture_Retrieval_Data"]
        row, col = group["EASE_row_index"][:], group["EASE_column_index"][:]
        time = smap_files.EPOCH + (group["tb_time_seconds"][:] * 1e3).astype("timedelta64[ms]")
    ours = orbit.observation_times("2015-08-11")["PM"][row, col]
    off = (ours - time) / np.timedelta64(1, "s")
    same_pass = np.abs(off) < 1000
    # Other cells are seen nearer to 18:00 by the pass before or after.
    assert same_pass.mean() > 0.85
    assert np.isnan(off).mean() < 0.01
    assert np.max(np.abs(off[same_pass])) < 12
    assert abs(np.median(off[same_pass])) < 1


@pytest.mark.real_data
def test_orbit_covers_what_a_genuine_global_day_covers(real: Real) -> None:
    with h5py.File(real("smap/SC_SPL3SMP_009_prefetch.nc4")) as file:
        theirs = {
            "AM": file["Soil_Moisture_Retrieval_Data_AM/latitude"][:] > -9000,
            "PM": file["Soil_Moisture_Retrieval_Data_PM/latitude_pm"][:] > -9000,
        }
    # The file does not tell its day: one of the eight of the repeat must fit, and no other.
    agreement = []
    for day in range(8):
        ours = orbit.observation_times(np.datetime64("2022-01-01") + day)
        agreement.append([np.mean(~np.isnat(ours[o]) == theirs[o]) for o in ("AM", "PM")])
    best = np.array(agreement)
    assert np.sort(best.min(axis=1))[-1] > 0.96
    assert np.sort(best.max(axis=1))[-2] < 0.8


def test_orbit_repeats_after_eight_days_and_a_window_is_a_part_of_the_globe() -> None:
    globe = orbit.observation_times("2017-06-10")
    later = orbit.observation_times(dt.date(2017, 6, 18), SICHUAN)
    window = np.s_[SICHUAN.row0 : SICHUAN.row0 + SICHUAN.shape[0], SICHUAN.col0 : SICHUAN.col0 + SICHUAN.shape[1]]
    for overpass in ("AM", "PM"):
        a, b = globe[overpass][window], later[overpass]
        assert np.array_equal(np.isnat(a), np.isnat(b))
        assert np.all(np.abs((b - a)[~np.isnat(a)] - np.timedelta64(8, "D")) <= np.timedelta64(2, "ms"))
        share = np.mean(~np.isnat(globe[overpass]))
        assert 0.5 < share < 0.57
    with pytest.raises(InputError, match="36 km"):
        orbit.observation_times("2017-06-10", Grid.latlon(100, 26, 102, 28, 0.1))


def local_hours(time: np.ndarray, lon: np.ndarray) -> np.ndarray:
    seconds = (time - time.astype("datetime64[D]")) / np.timedelta64(1, "s")
    return (seconds / 3600 + lon / 15) % 24


def test_orbit_passes_near_six_and_eighteen_local_solar_time() -> None:
    grid = Grid.ease2(36)
    middle = np.abs(grid.lat) < 50
    for overpass, hour in (("AM", 6.0), ("PM", 18.0)):
        time = orbit.observation_times("2017-06-10")[overpass]
        hours = local_hours(time, grid.lon[None, :])[middle]
        hours = hours[np.isfinite(hours)]
        # Half the swath is 4.7 degrees of longitude at the equator, 7.3 at 50 degrees, and the track leans by 8.
        assert np.max(np.abs(hours - hour)) < 1.2
        assert np.mean(np.abs(hours - hour)) < 0.4
        # The two overpasses of a granule never share their half of the local day.
        local_date, pm = schema.local_step(time[middle], grid.lon[None, :])
        assert np.all(pm[~np.isnat(local_date)] == (overpass == "PM"))


def test_orbit_revisits_every_two_to_three_days_over_sichuan() -> None:
    days = np.arange("2017-06-10", "2017-07-12", dtype="datetime64[D]")
    for overpass in ("AM", "PM"):
        times = np.array([orbit.observation_times(d, SICHUAN)[overpass] for d in days]).reshape(days.size, -1)
        gaps = np.concatenate([np.diff(cell[~np.isnat(cell)]) for cell in times.T]) / np.timedelta64(1, "D")
        assert gaps.max() < 3.1
        assert 2.0 < gaps.mean() < 3.0


@pytest.mark.parametrize("lon", [89.9, 90.1, 103.0, 179.0, -179.0])
def test_utc_day_cut_puts_each_pass_into_the_file_of_its_utc_day(lon: float) -> None:
    grid = Grid.ease2(36)
    row, col = (int(i) for i in grid.index(lon, 30.0))
    cell = grid.window(slice(row, row + 1), slice(col, col + 1))
    days = np.arange("2017-06-10", "2017-06-26", dtype="datetime64[D]")
    steps = []
    for day in days:
        for overpass, time in orbit.observation_times(day, cell).items():
            if np.isnat(time[0, 0]):
                continue
            assert time[0, 0].astype("datetime64[D]") == day
            local_date, _ = schema.local_step(time, cell.lon)
            ahead = (local_date[0, 0] - day) / np.timedelta64(1, "D")
            steps.append((local_date[0, 0], overpass))
            if overpass == "AM" and 95 < lon < 180:
                assert ahead == 1
            elif overpass == "PM" and lon > 0:
                assert ahead == 0
    # No local half day is seen twice, and none is lost: two exact repeats see the cell alike.
    assert len(set(steps)) == len(steps)
    assert 10 <= len(steps) <= 16
    both = [[d for d, o in steps if o == overpass] for overpass in ("AM", "PM")]
    assert all(np.diff(np.sort(d)).max() <= np.timedelta64(3, "D") for d in both)


def test_am_field_of_a_file_comes_after_its_pm_field_over_sichuan() -> None:
    fields = [orbit.observation_times(d, SICHUAN) for d in np.arange("2017-06-10", "2017-06-18", dtype="datetime64[D]")]
    am, pm = (np.array([f[o] for f in fields]) for o in ("AM", "PM"))
    both = ~np.isnat(am) & ~np.isnat(pm)
    assert both.sum() > 100
    # West of 100 E the swath's western edge is passed after midnight UTC, and so in the next file.
    assert np.all((am > pm)[both & (SICHUAN.lon > 100)])
    am = am[:, :, SICHUAN.lon > 100]
    hours = (am[~np.isnat(am)] - am[~np.isnat(am)].astype("datetime64[D]")) / np.timedelta64(1, "m") / 60
    # 06:00 solar is 22:46 to 23:31 UTC over the region; the swath's width adds half an hour either way.
    assert hours.min() > 22.1
    assert np.median(hours) == pytest.approx(23.15, abs=0.25)


def test_retrieval_error_is_correlated_in_time_and_independent_of_who_asks() -> None:
    row, col = np.indices((40, 40))
    days = np.arange("2017-06-10", "2017-07-10", dtype="datetime64[D]")
    series = np.array([orbit.retrieval_error(7, d, "AM", row, col, 0.36, 290.0, 500.0) for d in days])
    assert series.std() == pytest.approx(0.040, abs=0.001)
    assert abs(series.mean()) < 0.001
    lag = np.corrcoef(series[1:].ravel(), series[:-1].ravel())[0, 1]
    assert lag == pytest.approx(orbit.ERROR_CORRELATION, abs=0.02)
    far = np.corrcoef(series[20:].ravel(), series[:-20].ravel())[0, 1]
    assert abs(far) < 0.03
    alone = orbit.retrieval_error(7, "2017-06-25", "AM", 17, 23, 0.36, 290.0, 500.0)
    assert alone == series[15, 17, 23]
    assert alone != orbit.retrieval_error(8, "2017-06-25", "AM", 17, 23, 0.36, 290.0, 500.0)
    pm = np.array([orbit.retrieval_error(7, d, "PM", row, col, 0.36, 290.0, 500.0) for d in days])
    assert abs(np.corrcoef(series.ravel(), pm.ravel())[0, 1]) < 0.03


def test_retrieval_error_grows_with_vegetation_and_dries_where_cold_and_high() -> None:
    row, col = np.indices((100, 100))
    bare, forest = (orbit.retrieval_error(7, "2017-06-10", "AM", row, col, tau, 290.0, 500.0) for tau in (0.0, 1.0))
    assert forest.std() / bare.std() == pytest.approx(np.exp(0.8))
    cold = orbit.retrieval_error(7, "2017-06-10", "AM", row, col, 0.0, 263.0, 4500.0)
    assert np.mean(cold - bare) == pytest.approx(-0.04)
    assert np.isfinite(orbit.retrieval_error(7, "2017-06-10", "PM", 3, 4, np.nan, np.nan, 0.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40))
def test_hashed_normal_depends_on_the_keys_alone(seed: int, key: int) -> None:
    keys = np.array([key, key + 1, key])
    values = orbit.hashed_normal(seed, keys, 3)
    assert np.all(np.isfinite(values))
    assert values[0] == values[2] == orbit.hashed_normal(seed, key, 3)
    assert values[0] != values[1]


def test_hashed_normal_is_standard_normal() -> None:
    values = orbit.hashed_normal(1, np.arange(200_000), 5)
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)
    assert np.mean(np.abs(values) > 1.959964) == pytest.approx(0.05, abs=0.003)
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.01


# -- DEM ----------------------------------------------------------------------------------------


@pytest.fixture
def dem_pair(tmp_path: Path) -> list[Path]:
    paths = []
    for west in (101, 102):
        lon, lat = dem_files.tile_centres(west, 30)
        z = 1000 * (lon[None, :] - 101) + 500 * (lat[:, None] - 30)
        if west == 101:
            z[3, 4] = np.nan
        paths.append(dem_files.write_dem_tile(tmp_path / dem_files.dem_name(west, 30), z, west, 30))
    return paths


def test_dem_tile_is_georeferenced_by_its_pixel_centres(dem_pair: list[Path]) -> None:
    assert sorted(dem_pair[0].parent.iterdir()) == dem_pair
    again = dem_files.write_dem_tile(dem_pair[0].with_name("again.tif"), rasterio.open(dem_pair[1]).read(1), 102, 30)
    assert again.read_bytes() == dem_pair[1].read_bytes()
    with rasterio.open(dem_pair[0]) as file:
        assert (file.crs.to_string(), file.dtypes[0], file.nodata, file.shape) == (
            "EPSG:4326",
            "int16",
            -32767,
            (1201, 1201),
        )
        assert file.bounds == pytest.approx((101 - 1 / 2400, 30 - 1 / 2400, 102 + 1 / 2400, 31 + 1 / 2400))
        # The values encode their own coordinates.
        for lon, lat in ((101.0, 30.0), (101.5, 30.25), (102.0, 31.0)):
            (value,) = next(file.sample([(lon, lat)]))
            assert value == round(1000 * (lon - 101) + 500 * (lat - 30))
        assert file.read(1)[3, 4] == -32767
        assert np.ma.count_masked(file.read(1, masked=True)) == 1


def test_neighbouring_dem_tiles_share_their_edge(dem_pair: list[Path]) -> None:
    left, right = (rasterio.open(p).read(1) for p in dem_pair)
    assert np.array_equal(left[:, -1], right[:, 0])
    assert np.array_equal(dem_files.tile_centres(101, 30)[0][-1:], dem_files.tile_centres(102, 30)[0][:1])


@pytest.mark.real_data
def test_dem_tile_lies_as_genuine_srtm_does(real: Real, tmp_path: Path) -> None:
    ours = dem_files.write_dem_tile(tmp_path / "x.tif", np.zeros((1201, 1201)), 8, 46)
    assert dem_files.dem_name(8, 46) == "N46E008.tif"
    assert dem_files.dem_name(-71, -33) == "S33W071.tif"
    with rasterio.open(real("dem/SRTM_N46E008.tif")) as theirs, rasterio.open(ours) as mine:
        assert tuple(mine.transform) == pytest.approx(tuple(theirs.transform), abs=1e-9)
        assert (mine.shape, mine.dtypes, mine.nodata) == (theirs.shape, theirs.dtypes, theirs.nodata)


def test_dem_tiles_cover_a_box() -> None:
    assert dem_files.dem_tiles(101.5, 30, 103, 31.2) == [(101, 30), (101, 31), (102, 30), (102, 31)]
    assert dem_files.dem_tiles(-71, -33, -70, -32) == [(-71, -33)]
    with pytest.raises(InputError, match="1201"):
        dem_files.write_dem_tile("x.tif", np.zeros((10, 10)), 0, 0)


# -- stations -----------------------------------------------------------------------------------

HOURS = np.arange("2017-06-10", "2017-09-10", dtype="datetime64[h]").astype("datetime64[ns]")
DAYS = np.arange("2017-06-09", "2017-09-12", dtype="datetime64[D]")


def truth(seed: int = 1) -> np.ndarray:
    """Dry-down with storms, 0.1 to 0.4."""
    rng = np.random.default_rng(seed)
    value, out = 0.25, []
    for _ in DAYS:
        value = 0.12 + (value - 0.12) * 0.9 + (0.15 if rng.random() < 0.2 else 0.0) * rng.random()
        out.append(min(value, 0.42))
    return np.array(out)


@pytest.fixture(scope="module")
def series() -> pd.DataFrame:
    return station_files.station_series(3, "S001", HOURS, DAYS, truth())


def test_station_layer_is_wetter_and_smoother_than_the_surface() -> None:
    surface = np.repeat(truth(), 24)
    layer = station_files.layer_mean(surface)
    assert layer.mean() == pytest.approx(surface.mean() + station_files.LOWER_WETTER / 2, abs=0.005)
    assert np.abs(np.diff(layer)).sum() < 0.7 * np.abs(np.diff(surface)).sum()
    # A constant stays constant, and a step is half followed after ln 2 of the filter's time.
    assert np.allclose(station_files.layer_mean(np.full(50, 0.2)), 0.2 + 0.015)
    step = station_files.layer_mean(np.r_[np.zeros(1), np.ones(24 * 10)])
    lower = 2 * (step[1:] - 0.5) - station_files.LOWER_WETTER
    half = int(np.argmax(lower > 0.5))
    assert half / 24 == pytest.approx(station_files.FILTER_DAYS * np.log(2), abs=0.06)


def test_station_series_has_gaps_noise_and_flagged_spikes(series: pd.DataFrame) -> None:
    assert 0.85 < len(series) / HOURS.size < 0.995
    assert series["time"].is_monotonic_increasing
    spiky = station_files.station_series(3, "S001", HOURS, DAYS, truth(), spike_share=0.02)
    spikes = spiky["flag"].str.contains("D06")
    assert spikes.mean() == pytest.approx(0.02, abs=0.01)
    assert spiky.loc[~spikes, "soil_moisture"].diff().abs().max() < 0.1
    neighbours = spiky["soil_moisture"].rolling(5, center=True, min_periods=1).median()
    assert (spiky["soil_moisture"] - neighbours).abs()[spikes].min() > 0.1
    assert set("".join(series["flag"] + ",").strip(",").split(",")) <= {"G", "D06", "C01", "C02"}
    assert (series["flag"] == "G").mean() > 0.98
    layer = station_files.layer_mean(
        np.interp(HOURS.astype(float), DAYS.astype("datetime64[ns]").astype(float), truth())
    )
    good = series[series["flag"] == "G"].set_index("time")["soil_moisture"]
    expected = pd.Series(layer, HOURS)[good.index]
    assert np.corrcoef(good, expected)[0, 1] > 0.9


def test_station_errors_have_the_stated_spread() -> None:
    offsets = []
    for number in range(150):
        one = station_files.station_series(3, f"S{number}", HOURS[:240], DAYS, np.full(DAYS.size, 0.3), spike_share=0)
        offsets.append(one["soil_moisture"].mean() - 0.315)
    # Constant offset and the drift's level together; 150 stations give the spread to 6 %.
    expected = np.hypot(station_files.REPRESENTATIVENESS_STD, station_files.DRIFT_STD)
    assert np.std(offsets) == pytest.approx(expected, rel=0.18)
    assert abs(np.mean(offsets)) < 3 * expected / np.sqrt(150)


def test_station_series_is_the_same_whatever_other_stations_there_are(series: pd.DataFrame) -> None:
    station_files.station_series(3, "S002", HOURS, DAYS, truth())
    again = station_files.station_series(3, "S001", HOURS, DAYS, truth())
    pd.testing.assert_frame_equal(series, again)
    other = station_files.station_series(3, "S002", HOURS, DAYS, truth())
    assert not np.allclose(other["soil_moisture"].iloc[:100], series["soil_moisture"].iloc[:100])


def test_station_flags_frozen_and_impossible_values() -> None:
    frozen = np.zeros(HOURS.size, bool)
    frozen[:100] = True
    wet = station_files.station_series(
        3, "S001", HOURS, DAYS, np.full(DAYS.size, 0.7), frozen=frozen, gap_share=0.0, spike_share=0.0,
        representativeness_std=0.0, drift_std=0.0, noise_std=0.0,
    )  # fmt: skip
    assert set(wet["flag"][:100]) == {"C02,D03"}
    assert set(wet["flag"][100:]) == {"C02"}
    holes = truth()
    holes[10:20] = np.nan
    assert len(station_files.station_series(3, "S001", HOURS, DAYS, holes, gap_share=0.0)) < HOURS.size - 9 * 24


def test_stations_stand_in_lowland_clusters_and_never_on_water_towns_or_ice() -> None:
    lon, lat = np.arange(100, 103, 0.01), np.arange(33, 30, -0.01)
    elevation = np.broadcast_to(np.linspace(4500, 400, lon.size), (lat.size, lon.size))
    land_cover = np.full(elevation.shape, 10)
    land_cover[:, 250:] = 17
    land_cover[100:120], land_cover[150:160], land_cover[0:5] = 13, 15, 255
    places = station_files.place_stations(5, 60, lon, lat, elevation, land_cover)
    assert len(places) == 60
    assert not places.duplicated(["row", "col"]).any()
    assert np.all(land_cover[places["row"], places["col"]] == 10)
    assert np.allclose(lon[places["col"]], places["lon"])
    assert np.allclose(elevation[places["row"], places["col"]], places["elevation"])
    assert (places["elevation"] < 2500).mean() > 0.7
    # Clustered: nearest neighbours are nearer than those of as many points strewn over the same lowland.
    xy = places[["lon", "lat"]].to_numpy()
    gap = np.sort(np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)), axis=1)[:, 1].mean()
    assert gap < 0.5 * np.sqrt(2.5 * 3.0 / 60)
    pd.testing.assert_frame_equal(places, station_files.place_stations(5, 60, lon, lat, elevation, land_cover))
    with pytest.raises(InputError, match="cells can bear one"):
        station_files.place_stations(5, 60, lon, lat, elevation, np.full(elevation.shape, 17))


def test_ismn_package_reads_the_folder(series: pd.DataFrame, tmp_path: Path) -> None:
    interface = pytest.importorskip("ismn.interface")
    root = tmp_path / "stations"
    for number, station in enumerate(("S001", "S002")):
        station_files.write_ismn(
            root,
            "NATURE",
            station,
            31.0 + number,
            102.25,
            1234.5,
            series,
            texture=(20.0, 40.0, 40.0),
            land_cover="grassland",
        )
    with redirect_stdout(io.StringIO()):
        data = interface.ISMN_Interface(root, meta_path=tmp_path / "meta")
    assert list(data.networks) == ["NATURE"]
    assert [str(s.name) for s in data.networks["NATURE"].stations.values()] == ["S001", "S002"]
    station = data.networks["NATURE"].stations["S002"]
    assert (station.lat, station.lon, station.elev) == (32.0, 102.25, 1234.5)
    (sensor,) = station.sensors.values()
    assert (sensor.variable, sensor.depth.start, sensor.depth.end) == ("soil_moisture", 0.0, 0.1)
    read = sensor.read_data()
    assert np.array_equal(read.index.to_numpy().astype("datetime64[ns]"), series["time"].to_numpy())
    assert read["soil_moisture"].to_numpy() == pytest.approx(series["soil_moisture"].to_numpy(), abs=5.1e-5)
    assert read["soil_moisture_flag"].tolist() == series["flag"].tolist()
    meta = sensor.metadata.to_dict()
    assert meta["clay_fraction"][0][0] == 20.0
    assert meta["lc_insitu"][0][0] == "grassland"


@pytest.mark.real_data
def test_ismn_header_and_rows_are_the_genuine_files(real: Real, tmp_path: Path) -> None:
    with zipfile.ZipFile(real("stations/ismn_header_values.zip")) as archive:
        name = next(n for n in archive.namelist() if "Abrams" in n and n.endswith(".stm"))
        genuine = archive.read(name).decode().splitlines()
    values = pd.DataFrame(
        {
            "time": pd.to_datetime(["2007-01-01 00:00", "2007-01-01 01:00"]),
            "soil_moisture": [0.154, 0.156],
            "flag": ["D02", "U"],
        }
    )
    path = station_files.write_ismn(
        tmp_path,
        "SCAN",
        "Abrams",
        37.133,
        -97.083,
        363.93,
        values,
        sensor="Hydraprobe-Analog-(2.5-Volt)",
        depth_from=0.05,
        depth_to=0.05,
    )
    assert path.read_text().splitlines() == genuine[:3]
    stem = "SCAN_SCAN_Abrams_sm_{0}_{0}_Hydraprobe-Analog-(2.5-Volt)_"
    assert path.name.startswith(stem.format("0.050000"))
    assert Path(name).name.startswith(stem.format("0.050800"))


def test_station_names_without_a_place_in_a_file_name_are_refused(series: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="underscore"):
        station_files.write_ismn(tmp_path, "NATURE", "S_1", 31, 102, 0, series)
    with pytest.raises(InputError, match="empty"):
        station_files.write_ismn(tmp_path, "NATURE", "S1", 31, 102, 0, series.iloc[:0])


def test_station_csv_is_one_long_table(series: pd.DataFrame, tmp_path: Path) -> None:
    places = pd.DataFrame(
        {"station": ["S001", "S002"], "lat": [31.0, 32.0], "lon": [102.0, 103.0], "elevation": [500.0, 4000.0]}
    )
    path = station_files.write_station_csv(tmp_path / "s.csv", places, {"S001": series, "S002": series.iloc[:10]})
    read = pd.read_csv(path, parse_dates=["time"])
    assert tuple(read.columns) == station_files.CSV_COLUMNS
    assert read.groupby("station").size().to_dict() == {"S001": len(series), "S002": 10}
    assert str(read["time"].dt.tz) == "UTC"
    first = read[read["station"] == "S001"]
    assert np.array_equal(
        first["time"].dt.tz_localize(None).to_numpy().astype("datetime64[ns]"), series["time"].to_numpy()
    )
    assert first["soil_moisture"].to_numpy() == pytest.approx(series["soil_moisture"].to_numpy(), abs=5.1e-5)
    assert set(read["depth_to"]) == {0.1}


# -- whole files --------------------------------------------------------------------------------


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = atomic.write_text(tmp_path / "new" / "a.txt", "old\n")

    def fail() -> None:
        with atomic.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old\n"
    assert list(path.parent.iterdir()) == [path]
