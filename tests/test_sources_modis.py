"""MODIS readers against pyhdf and hand arithmetic; tiles are made where no real file shows a case."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from pyhdf.SD import SD, SDC

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.sources.modis import open_modis, quality_fields

Real = Callable[[str], Path]
LST = "modis/MOD11A1.A2019305.h14v09.006.2019306084028.hdf"
VI = "modis/MOD13A2.A2025113.h18v09.061.2025148085150.hdf"
CROP = "modis/MOD13A2.A2016145.h18v04.006.2016166145124.hdf"
TYPES = {np.dtype(t): getattr(SDC, t.upper()) for t in ("uint8", "int8", "uint16", "int16")}


def write_tile(
    path: Path,
    layers: dict[str, np.ndarray],
    tile: tuple[int, int] = (26, 5),
    scales: dict[str, float] | None = None,
    grids: int = 1,
    product: str = "",
) -> Path:
    """An HDF4-EOS tile with the given data sets; its grid is that of `tile`, whatever the name says."""
    rows, columns = next(iter(layers.values())).shape
    left, top, right, bottom = sinusoidal.tile_corners(*tile)
    struct = "GROUP=GridStructure\n" + "".join(
        f"\tGROUP=GRID_{i}\n\t\tXDim={columns}\n\t\tYDim={rows}\n\t\tUpperLeftPointMtrs=({left:.6f},{top:.6f})\n"
        f"\t\tLowerRightMtrs=({right:.6f},{bottom:.6f})\n\t\tProjection=GCTP_SNSOID\n\tEND_GROUP=GRID_{i}\n"
        for i in range(1, grids + 1)
    )
    file = SD(str(path), SDC.WRITE | SDC.CREATE)
    for name, values in layers.items():
        item = file.create(name, TYPES[values.dtype], values.shape)
        item[:] = values
        if name in (scales or {}):
            item.attr("scale_factor").set(SDC.FLOAT64, (scales or {})[name])
        item.endaccess()
    file.attr("StructMetadata.0").set(SDC.CHAR, struct)
    if product:
        core = f'OBJECT = SHORTNAME\n NUM_VAL = 1\n VALUE = "{product}"\nEND_OBJECT = SHORTNAME\n'
        file.attr("CoreMetadata.0").set(SDC.CHAR, core)
    file.end()
    return path


def raw(path: Path, name: str) -> np.ndarray:
    file = SD(str(path), SDC.READ)
    values = file.select(name).get()
    file.end()
    return values


@pytest.mark.real_data
def test_lst_equals_pyhdf(real: Real) -> None:
    ds = open_modis(real(LST), qc="none")
    for ours, theirs, fill, scale in (
        ("lst_day", "LST_Day_1km", 0, 0.02),
        ("lst_night", "LST_Night_1km", 0, 0.02),
        ("lst_view_time_day", "Day_view_time", 255, 0.1),
        ("lst_view_time_night", "Night_view_time", 255, 0.1),
    ):
        dn = raw(real(LST), theirs)
        expected = np.where(dn == fill, np.nan, dn * scale).astype(np.float32)
        np.testing.assert_array_equal(ds[ours].values, expected)
        assert ds[ours].attrs["pixels_fill"] == (dn == fill).sum()
    assert float(ds.lst_day.min()) > 250
    assert float(ds.lst_view_time_day.mean()) == pytest.approx(10.35, abs=0.1)  # Terra crosses at 10:30
    assert (ds.attrs["product"], ds.attrs["collection"], ds.attrs["date"]) == ("MOD11A1", "006", "2019-11-01")
    assert (ds.attrs["tile"], ds.attrs["h"], ds.attrs["v"]) == ("h14v09", 14, 9)


@pytest.mark.real_data
def test_lst_quality_policies_follow_the_bits(real: Real) -> None:
    dn, qc = raw(real(LST), "LST_Day_1km"), raw(real(LST), "QC_Day")
    mandatory, error = qc & 0b11, qc >> 6
    accepted = {"strict": mandatory == 0, "paper": (mandatory <= 1) & (error <= 1)}
    for policy, keep in accepted.items():
        ds = open_modis(real(LST), qc=policy)  # type: ignore[arg-type]
        np.testing.assert_array_equal(ds.lst_day.notnull(), keep & (dn != 0))
        assert ds.lst_day.attrs["pixels_rejected"] == ((dn != 0) & ~keep).sum()
        np.testing.assert_array_equal(ds.lst_view_time_day.notnull(), ds.lst_day.notnull())


@pytest.mark.real_data
@pytest.mark.parametrize("name", [LST, VI])
def test_whole_tiles_lie_where_their_metadata_say(real: Real, name: str) -> None:
    ds = open_modis(real(name))
    file = SD(str(real(name)), SDC.READ)
    struct = file.attributes()["StructMetadata.0"]
    file.end()
    left, top = (float(v) for v in struct.split("UpperLeftPointMtrs=(")[1].split(")")[0].split(","))
    right, bottom = (float(v) for v in struct.split("LowerRightMtrs=(")[1].split(")")[0].split(","))
    half = (right - left) / 2400
    np.testing.assert_allclose([ds.x[0] - half, ds.x[-1] + half], [left, right], atol=0.01)
    np.testing.assert_allclose([ds.y[0] + half, ds.y[-1] - half], [top, bottom], atol=0.01)
    assert ds.attrs["whole_tile"] == 1


@pytest.mark.real_data
def test_vegetation_indices_equal_pyhdf(real: Real) -> None:
    reliability = raw(real(VI), "1 km 16 days pixel reliability")
    for qc, keep in (
        ("none", reliability > -9),
        ("paper", (reliability == 0) | (reliability == 1)),
        ("strict", reliability == 0),
    ):
        ds = open_modis(real(VI), qc=qc)  # type: ignore[arg-type]
        for name in ("ndvi", "evi"):
            dn = raw(real(VI), f"1 km 16 days {name.upper()}")
            expected = np.where((dn != -3000) & keep, dn / 10000, np.nan)
            np.testing.assert_allclose(ds[name].values, expected, atol=1e-7)
    assert ds.attrs["collection"] == "061"


@pytest.mark.real_data
def test_a_cropped_tile_without_core_metadata_keeps_its_own_corners(real: Real) -> None:
    ds = open_modis(real(CROP), qc="none")
    assert set(ds.data_vars) == {"ndvi"}
    assert ds.ndvi.shape == (185, 219)
    np.testing.assert_allclose(ds.ndvi.values, raw(real(CROP), "1 km 16 days NDVI") / 10000, atol=1e-7)
    step = (873048.877134 - 670117.907295) / 219
    np.testing.assert_allclose([ds.x[0], ds.x[-1]], [670117.907295 + step / 2, 873048.877134 - step / 2], atol=1e-6)
    np.testing.assert_allclose([ds.y[0], ds.y[-1]], [5608858.446491 - step / 2, 5437432.741376 + step / 2], atol=0.1)
    assert ds.attrs["whole_tile"] == 0
    assert (ds.attrs["product"], ds.attrs["date"]) == ("MOD13A2", "2016-05-24")


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["MOD09GA.A2008296.h14v17.006.2015181011753.hdf", "VNP13A2.A2025009.h18v09.002.2025031192612.h5"]
)
def test_products_that_are_not_read_are_refused_with_those_that_are(real: Real, name: str) -> None:
    with pytest.raises(InputError, match="supported are MOD11A1"):
        open_modis(real(f"modis/{name}"))


@pytest.mark.real_data
def test_a_real_tile_under_another_tiles_name_is_refused(real: Real, tmp_path: Path) -> None:
    path = tmp_path / "MOD11A1.A2019305.h26v05.006.2019306084028.hdf"
    path.write_bytes(real(LST).read_bytes())
    with pytest.raises(InputError, match="not that of the tile in its name, h26v05"):
        open_modis(path)


@pytest.mark.real_data
def test_a_real_tile_cut_short_is_named(real: Real, tmp_path: Path) -> None:
    path = tmp_path / real(LST).name
    content = real(LST).read_bytes()
    for share in (0.999, 0.5, 0.01):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match="truncated"):
            open_modis(path)


@pytest.mark.real_data
def test_xarray_engine_is_open_modis(real: Real) -> None:
    xr.testing.assert_identical(
        xr.open_dataset(real(VI), engine="modis-hdf4", qc="paper"), open_modis(real(VI), "paper")
    )


ET_NAME = "MOD16A2.A2017161.h26v05.061.2017170000000.hdf"


def test_evapotranspiration_special_fills_are_missing(tmp_path: Path) -> None:
    et = np.full((1200, 1200), 100, np.int16)
    et[0, :7] = np.arange(32761, 32768)
    et[1, :2] = (-5, 32700)
    qc = np.zeros((1200, 1200), np.uint8)
    qc[2, :4] = (0b00000001, 0b00001000, 0b00011000, 0b10000000)  # back-up, cloudy, assumed clear, not produced
    path = write_tile(tmp_path / ET_NAME, {"ET_500m": et, "ET_QC_500m": qc}, scales={"ET_500m": 0.1})
    ds = open_modis(path, qc="none")
    assert np.isnan(ds.et.values[0, :7]).all()
    np.testing.assert_allclose(ds.et.values[1, :3], [-0.5, 3270.0, 10.0], rtol=1e-6)
    assert ds.et.attrs["pixels_fill"] == 7
    assert ds.attrs["composite_days"] == 8
    kept = open_modis(path, qc="strict").et.notnull().values[2, :5]
    np.testing.assert_array_equal(kept, [False, False, True, False, True])
    np.testing.assert_array_equal(
        open_modis(path, qc="paper").et.notnull().values[2, :5], [True, False, True, False, True]
    )


def test_the_last_composite_of_a_year_is_shorter(tmp_path: Path) -> None:
    et = np.zeros((1200, 1200), np.int16)
    for day, days in (("2017361", 5), ("2016361", 6), ("2017353", 8)):
        path = write_tile(tmp_path / ET_NAME.replace("2017161", day), {"ET_500m": et})
        assert open_modis(path, qc="none").attrs["composite_days"] == days


def test_land_cover_is_igbp_1_to_17(tmp_path: Path) -> None:
    classes = np.full((2400, 2400), 10, np.uint8)
    classes[0, :4] = (0, 17, 255, 200)
    path = write_tile(tmp_path / "MCD12Q1.A2017001.h26v05.061.2022146000000.hdf", {"LC_Type1": classes})
    ds = open_modis(path)
    assert ds.land_cover.dtype == np.uint8
    np.testing.assert_array_equal(ds.land_cover.values[0, :5], [17, 17, 255, 255, 10])
    x, y = sinusoidal.pixel_centres(26, 5, 2400)
    np.testing.assert_array_equal(ds.x, x)
    np.testing.assert_array_equal(ds.y, y)


def test_a_grid_that_is_not_the_tile_of_the_name_is_refused(tmp_path: Path) -> None:
    path = write_tile(tmp_path / ET_NAME, {"ET_500m": np.zeros((1200, 1200), np.int16)}, tile=(27, 5))
    with pytest.raises(InputError, match="h26v05"):
        open_modis(path)


def test_two_grids_or_none_are_refused(tmp_path: Path) -> None:
    layers = {"ET_500m": np.zeros((1200, 1200), np.int16)}
    with pytest.raises(InputError, match="2 grids"):
        open_modis(write_tile(tmp_path / ET_NAME, layers, grids=2))
    with pytest.raises(InputError, match="0 grids"):
        open_modis(write_tile(tmp_path / ET_NAME.replace("h26", "h27"), layers, grids=0))


def test_missing_data_sets_and_wrong_scales_are_refused(tmp_path: Path) -> None:
    other = write_tile(tmp_path / ET_NAME, {"LE_500m": np.zeros((1200, 1200), np.int16)})
    with pytest.raises(InputError, match=r"none of MOD16A2's data sets \(ET_500m\)"):
        open_modis(other)
    bare = write_tile(
        tmp_path / ET_NAME.replace("161.", "169."),
        {"ET_500m": np.zeros((1200, 1200), np.int16)},
        scales={"ET_500m": 0.01},
    )
    with pytest.raises(InputError, match=r"'ET_QC_500m'.*qc='none'"):
        open_modis(bare)
    with pytest.raises(InputError, match=r"scale_factor 0\.01, expected 0\.1"):
        open_modis(bare, qc="none")


def test_metadata_and_name_must_agree_on_the_product(tmp_path: Path) -> None:
    path = write_tile(tmp_path / ET_NAME, {"ET_500m": np.zeros((1200, 1200), np.int16)}, product="MYD11A1")
    with pytest.raises(InputError, match="metadata say MYD11A1 but its name MOD16A2"):
        open_modis(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\n<html><head>Earthdata Login", "web page"),
        (b"\x89HDF\r\n\x1a\n", "not HDF4"),
        (b"\x0e\x03\x13\x01\x00", "truncated"),
    ],
)
def test_what_is_no_hdf4_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / ET_NAME).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        open_modis(tmp_path / ET_NAME)


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="qc must be one of strict, paper, none"):
        open_modis(tmp_path / ET_NAME, qc="best")  # type: ignore[arg-type]


def test_quality_bytes_are_spelled_out() -> None:
    said = quality_fields("MYD11A1", 0b10010001)
    assert said == {
        "mandatory": "other quality",
        "data_quality": "good",
        "emissivity_error": "at most 0.02",
        "lst_error": "at most 3 K",
    }
    with pytest.raises(InputError, match="no quality table"):
        quality_fields("MOD09GA", 0)
