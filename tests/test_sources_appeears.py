"""AppEEARS layers against rasterio and hand arithmetic; files are made as AppEEARS names and stores them."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from pyhdf.SD import SD, SDC
from rasterio.transform import from_origin

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.kernels.lookup import decode
from smscale.sources.appeears import open_appeears, parse_layer, read_coded_layers
from smscale.sources.modis import open_modis

Real = Callable[[str], Path]
#: A degree in 1/120: AppEEARS' grid of 1 km products in longitude and latitude.
GEOGRAPHIC = from_origin(100.0, 30.0, 1 / 120, 1 / 120)


def write_layer(
    folder: Path,
    name: str,
    values: np.ndarray,
    transform: object = GEOGRAPHIC,
    crs: str = "EPSG:4326",
    scale: float = 1.0,
) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = values.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=rows,
        width=columns,
        count=1,
        dtype=values.dtype,
        transform=transform,
        crs=crs,
        compress="deflate",
    ) as file:
        file.write(values, 1)
        file.scales = (scale,)
    return path


def lst_name(layer: str, day: str, area: str = "aid0001", collection: str = "061") -> str:
    return f"MYD11A1.{collection}_{layer}_doy{day}_{area}.tif"


def request(folder: Path, days: tuple[str, ...] = ("2017161", "2017162")) -> dict[tuple[str, str], np.ndarray]:
    """Layers of MYD11A1 over some days, of 5 x 4 pixels that all differ; what was written, by layer and day."""
    rng = np.random.default_rng(5)
    written = {}
    for day in days:
        for layer, values in (
            ("LST_Day_1km", rng.integers(14000, 16000, (5, 4)).astype(np.uint16)),
            ("LST_Night_1km", rng.integers(13000, 15000, (5, 4)).astype(np.uint16)),
            ("Day_view_time", rng.integers(120, 140, (5, 4)).astype(np.uint8)),
            ("QC_Day", rng.choice([0, 2, 0b10010001, 0b01000001], (5, 4)).astype(np.uint8)),
            ("QC_Night", rng.choice([0, 3, 0b00000001], (5, 4)).astype(np.uint8)),
        ):
            if layer.startswith("LST"):
                values[0, 0] = 0
            write_layer(folder, lst_name(layer, day), values)
            written[layer, day] = values
    return written


@pytest.mark.parametrize(
    ("name", "product", "layer", "quality", "date"),
    [
        ("MYD11A1.061_LST_Day_1km_doy2017161_aid0001.tif", "MYD11A1", "lst_day", "QC_Day", "2017-06-10"),
        ("MYD11A1.061_QC_Night_doy2017161_aid0001.tif", "MYD11A1", "QC_Night", "", "2017-06-10"),
        ("MYD11A1.061_Day_view_time_doy2017161_aid0001.tif", "MYD11A1", "lst_view_time_day", "QC_Day", "2017-06-10"),
        (
            "MOD13A2.061__1_km_16_days_NDVI_doy2016145_aid0001.tif",
            "MOD13A2",
            "ndvi",
            "1 km 16 days pixel reliability",
            "2016-05-24",
        ),
        (
            "MOD13A2.006__1_km_16_days_pixel_reliability_doy2016145000000_aid0012.tif",
            "MOD13A2",
            "1 km 16 days pixel reliability",
            "",
            "2016-05-24",
        ),
        ("MOD16A2GF.061_ET_500m_doy2017001_aid0001.tif", "MOD16A2GF", "et", "ET_QC_500m", "2017-01-01"),
        ("MCD12Q1.061_LC_Type1_doy2011001_aid0001.tif", "MCD12Q1", "land_cover", "", "2011-01-01"),
        ("VNP21A1N.002_LST_1KM_doy2020161_aid0001.tif", "VNP21A1N", "lst_night", "QC", "2020-06-09"),
        ("VNP21A1D.002_QC_doy2020161_aid0001.tif", "VNP21A1D", "QC", "", "2020-06-09"),
    ],
)
def test_names_say_what_a_layer_is(name: str, product: str, layer: str, quality: str, date: str) -> None:
    facts = parse_layer(Path("some/folder") / name)
    assert facts is not None
    assert (facts.product, facts.layer, facts.quality, facts.date) == (product, layer, quality, date)
    assert facts.is_quality == (not quality and product != "MCD12Q1")
    assert (facts.collection, facts.area) == (name.split(".")[1][:3], name.split("_")[-1][:7])


@pytest.mark.parametrize(
    "name",
    [
        "MYD11A1.061_Emis_31_doy2017161_aid0001.tif",
        "MOD09GA.061_sur_refl_b01_1_doy2017161_aid0001.tif",
        "MYD11A1.061_LST_Day_1km_doy2017400_aid0001.tif",
        "MYD11A1.A2017161.h26v05.061.2021000000000.hdf",
        "MYD11A1-061-Statistics.csv",
        "N30E103.tif",
    ],
)
def test_other_names_are_no_layers(name: str) -> None:
    assert parse_layer(name) is None


def test_a_request_is_one_dataset_over_its_dates(tmp_path: Path) -> None:
    written = request(tmp_path / "request")
    write_layer(tmp_path / "request", "MYD11A1.061_Emis_31_doy2017161_aid0001.tif", np.ones((9, 9), np.uint8))
    for qc in ("none", "paper", "strict"):
        ds = open_appeears(tmp_path / "request", qc=qc)  # type: ignore[arg-type]
        assert ds.lst_day.dims == ("time", "lat", "lon")
        assert ds.sizes == {"time": 2, "lat": 5, "lon": 4}
        assert list(ds.data_vars) == ["lst_day", "lst_night", "lst_view_time_day"]
        for i, day in enumerate(("2017161", "2017162")):
            word = written["QC_Day", day]
            keep = {
                "none": np.ones((5, 4), bool),
                "strict": (word & 3) == 0,
                "paper": ((word & 3) <= 1) & (word >> 6 <= 1),
            }[qc]
            dn = written["LST_Day_1km", day]
            np.testing.assert_array_equal(
                ds.lst_day.values[i], np.where(keep & (dn > 0), dn * 0.02, np.nan).astype(np.float32)
            )
            time = written["Day_view_time", day]
            np.testing.assert_allclose(ds.lst_view_time_day.values[i], np.where(keep, time / 10, np.nan), rtol=1e-6)
    np.testing.assert_array_equal(ds.time, np.array(["2017-06-10", "2017-06-11"], "datetime64[ns]"))
    np.testing.assert_allclose(ds.lat, 30 - (np.arange(5) + 0.5) / 120)
    np.testing.assert_allclose(ds.lon, 100 + (np.arange(4) + 0.5) / 120)
    assert (ds.attrs["sensor"], ds.attrs["crs"], ds.attrs["collection"]) == ("MODIS Aqua", "EPSG:4326", "061")


def test_a_series_is_lazy_and_pickles(tmp_path: Path) -> None:
    request(tmp_path)
    ds = open_appeears(tmp_path)
    whole = open_appeears(tmp_path).load()
    for window in ({"time": 1}, {"time": [1, 0], "lat": slice(None, None, -2)}, {"lat": 3, "lon": slice(1, 1)}):
        xr.testing.assert_identical(open_appeears(tmp_path).isel(window).load(), whole.isel(window))
    again = pickle.loads(pickle.dumps(ds)).chunk(time=1, lat=2)
    xr.testing.assert_identical(again.compute(scheduler="threads"), whole)
    lazy = open_appeears(tmp_path)
    (tmp_path / lst_name("LST_Day_1km", "2017162")).unlink()
    assert float(lazy.lst_day.isel(time=0).max()) > 280
    with pytest.raises(InputError, match=r"doy2017162_aid0001\.tif: there is no such file"):
        lazy.lst_day.isel(time=1).load()


def test_vegetation_evapotranspiration_and_land_cover(tmp_path: Path) -> None:
    ndvi = np.array([[5000, -3000], [10000, -2001]], np.int16)
    rank = np.array([[0, -1], [1, 0]], np.int8)
    write_layer(tmp_path / "vi", "MOD13A2.061__1_km_16_days_NDVI_doy2017353_aid0001.tif", ndvi, scale=0.0001)
    write_layer(tmp_path / "vi", "MOD13A2.061__1_km_16_days_pixel_reliability_doy2017353_aid0001.tif", rank)
    ds = open_appeears(tmp_path / "vi", "paper")
    np.testing.assert_allclose(ds.ndvi[0], [[0.5, np.nan], [1.0, np.nan]], rtol=1e-6)
    np.testing.assert_allclose(open_appeears(tmp_path / "vi").ndvi[0], [[0.5, np.nan], [np.nan, np.nan]], rtol=1e-6)
    assert ds.composite_days.values.tolist() == [13]
    et = np.array([[100, 32766], [200, 32761]], np.int16)
    write_layer(tmp_path / "et", "MOD16A2.061_ET_500m_doy2017361_aid0001.tif", et)
    write_layer(tmp_path / "et", "MOD16A2.061_ET_QC_500m_doy2017361_aid0001.tif", np.zeros((2, 2), np.uint8))
    ds = open_appeears(tmp_path / "et")
    np.testing.assert_allclose(ds.et[0], [[10, np.nan], [20, np.nan]], rtol=1e-6)
    assert ds.composite_days.values.tolist() == [5]
    classes = np.array([[0, 17], [10, 255]], np.uint8)
    path = write_layer(tmp_path / "lc", "MCD12Q1.061_LC_Type1_doy2017001_aid0001.tif", classes)
    ds = open_appeears(path)
    np.testing.assert_array_equal(ds.land_cover[0], [[17, 17], [10, 255]])
    assert ds.land_cover.dtype == np.uint8


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_ranks_of_reliability_are_read_in_whatever_type_they_come(tmp_path: Path, dtype: str) -> None:
    rank = np.array([[0, 1], [2, 255 if dtype == "uint8" else -1]]).astype(dtype)
    write_layer(tmp_path, "MYD13A2.061__1_km_16_days_EVI_doy2017009_aid0001.tif", np.full((2, 2), 4000, np.int16))
    write_layer(tmp_path, "MYD13A2.061__1_km_16_days_pixel_reliability_doy2017009_aid0001.tif", rank)
    ds = open_appeears(tmp_path, "paper")
    np.testing.assert_array_equal(ds.evi.notnull()[0], [[True, True], [False, False]])
    assert ds.composite_days.values.tolist() == [16]


@pytest.mark.real_data
def test_a_real_tile_delivered_as_layers_decodes_as_the_tile(real: Real, tmp_path: Path) -> None:
    source = real("modis/MOD11A1.A2019305.h14v09.006.2019306084028.hdf")
    left, top, _, _ = sinusoidal.tile_corners(14, 9)
    step = sinusoidal.TILE_SIZE / 1200
    file = SD(str(source), SDC.READ)
    paths = {}
    for layer, data_set in (("lst_day", "LST_Day_1km"), ("lst_view_time_day", "Day_view_time"), ("QC_Day", "QC_Day")):
        values = file.select(data_set).get()[300:700, 100:900]
        paths[layer] = write_layer(
            tmp_path,
            f"MOD11A1.006_{data_set}_doy2019305_aid0001.tif",
            values,
            from_origin(left + 100 * step, top - 300 * step, step, step),
            sinusoidal.CRS,
        )
    file.end()
    tile = open_modis(source, "paper").isel(y=slice(300, 700), x=slice(100, 900))
    ds = open_appeears(tmp_path, "paper")
    assert ds.lst_day.dims == ("time", "y", "x")
    for name in ("lst_day", "lst_view_time_day"):
        np.testing.assert_array_equal(ds[name].values[0], tile[name].values)
    np.testing.assert_allclose(ds.x, tile.x, atol=1e-6)
    np.testing.assert_allclose(ds.y, tile.y, atol=1e-6)
    assert ds.attrs["crs"] == sinusoidal.CRS
    layers, transform, crs, attrs = read_coded_layers(paths, "paper")
    assert set(layers) == {"lst_day", "lst_view_time_day"}
    assert layers["lst_day"].quality is layers["lst_view_time_day"].quality
    np.testing.assert_array_equal(decode(layers["lst_day"]), tile.lst_day.values)
    np.testing.assert_allclose(transform, (step, 0, left + 100 * step, 0, -step, top - 300 * step), atol=1e-6)
    assert crs == ds.attrs["crs"]
    assert (attrs["product"], attrs["date"], attrs["sensor"]) == ("MOD11A1", "2019-11-01", "MODIS Terra")


def test_a_layer_without_its_quality_is_named(tmp_path: Path) -> None:
    request(tmp_path)
    (tmp_path / lst_name("QC_Day", "2017162")).unlink()
    with pytest.raises(
        InputError, match=r"LST_Day_1km_doy2017162.*lacks its quality layer 'QC_Day' of 2017-06-11.*qc='none'"
    ):
        open_appeears(tmp_path)
    assert open_appeears(tmp_path, "none").sizes["time"] == 2
    with pytest.raises(InputError, match="lacks its quality layer 'QC_Night'"):
        read_coded_layers({"lst_night": tmp_path / lst_name("LST_Night_1km", "2017161")})


def test_a_date_that_one_layer_lacks_is_missing_and_said(tmp_path: Path) -> None:
    written = request(tmp_path)
    (tmp_path / lst_name("LST_Night_1km", "2017161")).unlink()
    ds = open_appeears(tmp_path, "none")
    assert ds.lst_night.attrs["missing_dates"] == ["2017-06-10"]
    assert "missing_dates" not in ds.lst_day.attrs
    assert ds.lst_night.values[0].size == 20
    assert np.isnan(ds.lst_night.values[0]).all()
    dn = written["LST_Night_1km", "2017162"]
    np.testing.assert_allclose(ds.lst_night.values[1], np.where(dn > 0, dn * 0.02, np.nan), rtol=1e-6)


def test_what_is_twice_or_mixed_is_named(tmp_path: Path) -> None:
    request(tmp_path)
    again = write_layer(
        tmp_path / "again", lst_name("QC_Day", "2017161").replace("7161", "7161000000"), np.zeros((5, 4), np.uint8)
    )
    with pytest.raises(InputError, match=r"is QC_Day of 2017-06-10 again, as .*; remove one"):
        open_appeears(tmp_path)
    again.unlink()
    for name, what in (
        (
            lst_name("QC_Day", "2017163", collection="006"),
            r"more than one collection are mixed: 006 \(.*\), 061 \(.*\)",
        ),
        (lst_name("QC_Day", "2017163", area="aid0002"), r"more than one area are mixed: aid0001 .*, aid0002 "),
        ("MCD12Q1.061_LC_Type1_doy2017001_aid0001.tif", "layers of MCD12Q1, MYD11A1 are mixed.*product="),
    ):
        other = write_layer(tmp_path, name, np.zeros((5, 4), np.uint8))
        with pytest.raises(InputError, match=what):
            open_appeears(tmp_path)
        if "product" not in what:
            other.unlink()
    assert set(open_appeears(tmp_path, product="MCD12Q1").data_vars) == {"land_cover"}
    assert "lst_day" in open_appeears(tmp_path, product="MYD11A1")
    with pytest.raises(InputError, match="no AppEEARS layer of MOD13A2 is there, only of MCD12Q1, MYD11A1"):
        open_appeears(tmp_path, product="MOD13A2")


@pytest.mark.parametrize(
    ("shape", "transform", "crs"),
    [
        ((5, 5), GEOGRAPHIC, "EPSG:4326"),
        ((5, 4), from_origin(100.0 + 1 / 240, 30.0, 1 / 120, 1 / 120), "EPSG:4326"),
        ((5, 4), from_origin(100.0, 30.0, 1 / 240, 1 / 240), "EPSG:4326"),
        ((5, 4), GEOGRAPHIC, sinusoidal.CRS),
    ],
)
def test_mixed_grids_are_named(tmp_path: Path, shape: tuple[int, int], transform: object, crs: str) -> None:
    request(tmp_path)
    for layer in ("LST_Day_1km", "QC_Day", "QC_Night"):
        write_layer(tmp_path, lst_name(layer, "2017163"), np.zeros(shape, np.uint8), transform, crs)
    with pytest.raises(InputError, match=r"doy2017163_aid0001\.tif: lies on another grid \("):
        open_appeears(tmp_path)


def test_layers_that_are_not_as_delivered_are_refused(tmp_path: Path) -> None:
    name = lst_name("LST_Day_1km", "2017161")
    path = write_layer(tmp_path, name, np.full((5, 4), 290.0, np.float32))
    with pytest.raises(InputError, match=r"1 bands of float32.*not scaled"):
        open_appeears(path, "none")
    path = write_layer(tmp_path, name, np.full((5, 4), 14500, np.uint16), scale=0.01)
    with pytest.raises(InputError, match=r"states the scale 0\.01, expected 0\.02"):
        open_appeears(path, "none")
    path = write_layer(tmp_path, name, np.full((5, 4), 14500, np.uint16), from_origin(100.0, 30.0, 1 / 120, -1 / 120))
    with pytest.raises(InputError, match="from north to south"):
        open_appeears(path, "none")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"<html>login", "web page"), (b"II*\x00\x08\x00", "is truncated")],
)
def test_broken_layers_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / lst_name("LST_Day_1km", "2017161")
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        open_appeears(path, "none")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_layer_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(14000, 16000, (300, 300)).astype(np.uint16)
    path = write_layer(tmp_path, lst_name("LST_Day_1km", "2017161"), values)
    ds = open_appeears(path, "none")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="is truncated: it holds"):
        ds.load()


def test_what_is_no_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no AppEEARS layer that is read here \(0 GeoTIFFs\)"):
        open_appeears(tmp_path)
    path = write_layer(tmp_path, "N30E103.tif", np.ones((2, 2), np.int16))
    with pytest.raises(InputError, match="not that of an AppEEARS layer"):
        open_appeears([path])
    with pytest.raises(InputError, match="there is no such file"):
        open_appeears(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no AppEEARS layers were given"):
        open_appeears([])
    words = write_layer(tmp_path, lst_name("QC_Day", "2017161"), np.zeros((5, 4), np.uint8))
    with pytest.raises(InputError, match="only layers of quality words"):
        open_appeears(words)
    with pytest.raises(InputError, match="is 'QC_Day' by its name, not 'lst_day'"):
        read_coded_layers({"lst_day": words})
    with pytest.raises(InputError, match="qc must be one of"):
        open_appeears(words, qc="best")  # type: ignore[arg-type]
