"""MODIS readers against pyhdf and hand arithmetic; tiles are made where no real file shows a case."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr
from pyhdf.SD import SD, SDC

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.kernels.lookup import decode
from smscale.sources import codes, hdf_eos
from smscale.sources.codes import quality_meaning
from smscale.sources.files import HDF_LOCK
from smscale.sources.modis import (
    composite_days,
    open_modis,
    pixel_counts,
    read_coded,
    rejected_by,
)

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
    period: tuple[str, str] | None = None,
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
        for name, day in zip(("BEGINNING", "ENDING"), period or (), strict=False):
            core += f'OBJECT = RANGE{name}DATE\n NUM_VAL = 1\n VALUE = "{day}"\nEND_OBJECT = RANGE{name}DATE\n'
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
        valid = int((dn != fill).sum())
        counts = pixel_counts(real(LST), "none")[ours]
        assert counts == {"pixels": dn.size, "fill": dn.size - valid, "kept": valid}
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
        counts = pixel_counts(real(LST), policy)["lst_day"]  # type: ignore[arg-type]
        assert counts["kept"] == ((dn != 0) & keep).sum()
        assert counts["fill"] == (dn == 0).sum()
        assert counts["pixels"] == sum(n for name, n in counts.items() if name != "pixels")
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
def test_a_product_that_is_not_read_is_refused_with_those_that_are(real: Real) -> None:
    with pytest.raises(InputError, match=r"MOD09GA.*supported are MOD11A1[^\n]*$"):
        open_modis(real("modis/MOD09GA.A2008296.h14v17.006.2015181011753.hdf"))


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
    fills = {"unclassified": 1, "urban": 1, "wetland": 1, "snow or ice": 1, "barren": 1, "water": 1}
    counts = {"pixels": et.size, "fill": 1} | {f"fill: {meaning}": n for meaning, n in fills.items()}
    assert pixel_counts(path, "none")["et"] == counts | {"kept": et.size - 7}
    assert ds.attrs["composite_days"] == 8
    strict = open_modis(path, qc="strict").et.notnull().values
    assert not strict[1, :2].any()  # no sum over 8 days is negative, or 3270 kg m-2
    assert pixel_counts(path, "strict")["et"] == counts | {
        "modland: other: back-up algorithm or fill": 1,
        "cloud: cloudy": 1,
        "confidence: not produced": 1,
        "outside limits": 2,
        "kept": et.size - 12,
    }
    kept = strict[2, :5]
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
        (b"\x89HDF\r\n\x1a\n", "not HDF4 but HDF5"),
        (b"PK\x03\x04", "not HDF4 but a zip archive"),
        (b"\x1f\x8b\x08", "not HDF4 but gzip-compressed"),
        (b"HTTP Basic: Access denied.", "server's answer"),
        (b"\x00\x00\x00\x00", "not HDF4 \\(it starts with"),
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
    said = quality_meaning("MYD11A1", 0b10010001)
    assert said == {
        "mandatory": "other quality",
        "data_quality": "good",
        "emissivity_error": "at most 0.02",
        "lst_error": "at most 3 K",
    }
    with pytest.raises(InputError, match="no quality table"):
        quality_meaning("MOD09GA", 0)


def test_an_undefined_value_of_a_bit_field_says_so() -> None:
    assert quality_meaning("MOD16A2GF", 0b11100000)["confidence"] == "undefined (7)"


# -- as stored -------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize("name", [LST, VI, CROP])
@pytest.mark.parametrize("qc", ["strict", "paper", "none"])
def test_coded_layers_decode_to_what_open_modis_gives(real: Real, name: str, qc: str) -> None:
    tile, ds = read_coded(real(name), qc=qc), open_modis(real(name), qc=qc)  # type: ignore[arg-type]
    assert set(tile.layers) == set(ds.data_vars)
    for layer, coded in tile.layers.items():
        assert coded.raw.dtype.kind == "u"
        np.testing.assert_array_equal(decode(coded), ds[layer].values)
    assert dict(tile.attrs) == ds.attrs
    np.testing.assert_array_equal(tile.x, ds.x)
    np.testing.assert_array_equal(tile.y, ds.y)


@pytest.mark.real_data
def test_no_more_is_read_than_the_names_need(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = hdf_eos._Hdf4.read

    def noting(self: hdf_eos._Hdf4, name: str, box: hdf_eos.Box | None = None) -> np.ndarray:
        read.append(name)
        return plain(self, name, box)

    monkeypatch.setattr(hdf_eos._Hdf4, "read", noting)
    tile = read_coded(real(LST), ("lst_night", "lst_view_time_night"))
    assert sorted(read) == ["LST_Night_1km", "Night_view_time", "QC_Night"]
    assert tile.layers["lst_night"].quality is tile.layers["lst_view_time_night"].quality
    read.clear()
    ds = open_modis(real(LST), qc="none")
    assert read == []
    np.testing.assert_array_equal(ds.lst_day.values, ds.lst_day.values)
    assert read == ["LST_Day_1km"]
    with pytest.raises(InputError, match="has no 'et'; MOD11A1 here has lst_day, lst_night"):
        read_coded(real(LST), ["et"])


@pytest.mark.real_data
@pytest.mark.parametrize("name", [LST, VI, CROP])
def test_metadata_texts_are_those_of_pyhdf(real: Real, name: str) -> None:
    file = SD(str(real(name)), SDC.READ)
    attributes = file.attributes()
    file.end()
    with hdf_eos.opened(real(name), "HDF4") as ours:
        for text in ("StructMetadata.0", "CoreMetadata.0", "ArchiveMetadata.0"):
            assert ours.text(text) == attributes.get(text, "")


@pytest.mark.real_data
def test_a_tile_says_what_it_is(real: Real) -> None:
    attrs = read_coded(real(VI)).attrs
    assert {name: attrs[name] for name in ("product", "family", "sensor", "platform", "composite_days", "date")} == {
        "product": "MOD13A2",
        "family": "MxD13A2",
        "sensor": "MODIS Terra",
        "platform": "Terra",
        "composite_days": 16,
        "date": "2025-04-23",
    }


@pytest.mark.parametrize(
    ("name", "sensor"),
    [
        ("MYD16A2.A2017161.h26v05.061.2017170000000.hdf", "MODIS Aqua"),
        ("MOD16A2GF.A2017161.h26v05.061.2017170000000.hdf", "MODIS Terra"),
        ("MYD16A2.A2017161.h26v05.006.2017170000000.hdf", "MODIS Aqua"),
    ],
)
def test_the_sensor_follows_the_product(tmp_path: Path, name: str, sensor: str) -> None:
    attrs = open_modis(write_tile(tmp_path / name, {"ET_500m": np.zeros((1200, 1200), np.int16)}), "none").attrs
    assert (attrs["sensor"], attrs["collection"]) == (sensor, name.split(".")[3])


def test_composites_of_aqua_run_over_the_new_year_and_others_end_with_it(tmp_path: Path) -> None:
    assert [composite_days(day, 16) for day in ("2017-12-19", "2017-12-27", "2017-01-09")] == [13, 16, 16]
    assert [composite_days(day, 8) for day in ("2016-12-26", "2017-12-27")] == [6, 5]
    path = write_tile(
        tmp_path / ET_NAME,
        {"ET_500m": np.zeros((1200, 1200), np.int16)},
        product="MOD16A2",
        period=("2017-06-10", "2017-06-15"),
    )
    assert open_modis(path, "none").attrs["composite_days"] == 6


# -- why pixels are missing ------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize("qc", ["strict", "paper"])
def test_reasons_partition_the_pixels(real: Real, qc: str) -> None:
    words = raw(real(LST), "QC_Night")
    found = rejected_by("MOD11A1", np.bincount(words.ravel(), minlength=256), qc)  # type: ignore[arg-type]
    assert sum(found.values()) == words.size
    mandatory, error = words & 3, words >> 6
    assert found["mandatory: not produced: cloud"] == (mandatory == 2).sum()
    if qc == "strict":
        assert found["accepted"] == (mandatory == 0).sum()
        assert found["mandatory: other quality"] == (mandatory == 1).sum()
    else:
        assert found["accepted"] == ((mandatory <= 1) & (error <= 1)).sum()
        assert found["lst_error: at most 3 K"] == ((mandatory <= 1) & (error == 2)).sum()
    tile = read_coded(real(LST), ["lst_night"], qc)  # type: ignore[arg-type]
    assert rejected_by(tile, np.bincount(tile.layers["lst_night"].quality.ravel())) == found  # type: ignore[union-attr]


@pytest.mark.parametrize("family", list(codes.FAMILIES))
@pytest.mark.parametrize("qc", ["strict", "paper", "none"])
def test_every_quality_word_is_accepted_or_has_its_reason(family: str, qc: str) -> None:
    spec = codes.FAMILIES[family]
    which, names = codes.reasons(family, qc, 2)
    for word in range(0, 1 << 16, 37):
        fails = [
            name
            for name, allowed in spec.accept[qc].items()
            if (word >> spec.fields[name].shift) & ((1 << spec.fields[name].bits) - 1) not in allowed
        ]
        assert names[which[word]].split(":")[0] == (fails[0] if fails else "accepted")
    assert sum(rejected_by(family, np.ones(1 << 16, int), qc).values()) == 1 << 16  # type: ignore[arg-type]


def test_a_histogram_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="at most 65536 bins"):
        rejected_by("MOD11A1", np.ones((2, 2)))
    with pytest.raises(InputError, match="no quality table for 'MOD09GA'"):
        rejected_by("MOD09GA", np.ones(4))


# -- lazy ------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_values_are_read_where_they_are_indexed(real: Real) -> None:
    whole = open_modis(real(LST)).load()
    for window in (
        {"y": slice(700, 20, -3), "x": [5, 9, 1100]},
        {"y": 5, "x": slice(3, 3)},
        {"y": slice(1199, None), "x": -1},
        {"y": xr.DataArray([1, 2, 600], dims="point"), "x": xr.DataArray([3, 4, 700], dims="point")},
    ):
        xr.testing.assert_identical(open_modis(real(LST)).isel(window).load(), whole.isel(window))


@pytest.mark.real_data
def test_a_lazy_tile_pickles_small_and_its_chunks_load_in_threads(real: Real) -> None:
    ds = open_modis(real(LST), qc="paper")
    pickled = pickle.dumps(ds)
    assert len(pickled) < 40_000  # coordinates 19 kB: no pixels, no open file
    chunked = pickle.loads(pickled).chunk(y=500, x=700)
    assert chunked.lst_day.chunks == ((500, 500, 200), (700, 500))
    xr.testing.assert_identical(chunked.compute(scheduler="threads", num_workers=4), ds.load())


@pytest.mark.real_data
def test_engine_drops_variables_and_chunks(real: Real) -> None:
    ds = xr.open_dataset(real(VI), engine="modis-hdf4", drop_variables=["evi"], chunks={})
    assert set(ds.data_vars) == {"ndvi"}
    assert ds.ndvi.chunks == ((1200,), (1200,))
    assert "x" not in xr.open_dataset(real(VI), engine="modis-hdf4", drop_variables="x").coords
    np.testing.assert_array_equal(ds.ndvi, open_modis(real(VI)).ndvi)


@pytest.mark.real_data
def test_pixels_that_are_broken_only_within_are_named_when_read(real: Real, tmp_path: Path) -> None:
    content = bytearray(real(LST).read_bytes())
    # the compressed LST_Day_1km lies in the file's first half: spoil some of it, keep every header
    content[200_000:200_400] = bytes(400)
    path = tmp_path / real(LST).name
    path.write_bytes(content)
    ds = open_modis(path)
    with pytest.raises(InputError, match=r"cannot be read as HDF4 \([^\n]*\): download it again$") as caught:
        _ = ds.lst_day.values
    assert str(caught.value).startswith(str(path))
    assert ds.lst_view_time_night.shape == (1200, 1200)
    path.unlink()
    with pytest.raises(InputError, match="there is no such file"):
        _ = ds.lst_night.values


@pytest.mark.real_data
def test_no_file_stays_open_after_a_failure(real: Real, tmp_path: Path) -> None:
    path = tmp_path / "MOD11A1.A2019305.h26v05.006.2019306084028.hdf"
    path.write_bytes(real(LST).read_bytes())
    with pytest.raises(InputError, match="h26v05"):
        read_coded(path)
    assert str(path) not in [file.path for file in psutil.Process().open_files()]
    assert HDF_LOCK.acquire(blocking=False)
    HDF_LOCK.release()


# -- more bad input --------------------------------------------------------------------------------


def test_data_sets_of_another_type_or_shape_are_refused(tmp_path: Path) -> None:
    TYPES[np.dtype("float32")] = SDC.FLOAT32
    path = write_tile(tmp_path / ET_NAME, {"ET_500m": np.zeros((1200, 1200), np.float32)})
    with pytest.raises(InputError, match="ET_500m holds no integers"):
        open_modis(path, "none")
    layers = {"ET_500m": np.zeros((1200, 1200), np.int16), "ET_QC_500m": np.zeros((600, 600), np.uint8)}
    path = write_tile(tmp_path / ET_NAME.replace("161.", "169."), layers)
    with pytest.raises(InputError, match=r"ET_QC_500m has shape \(600, 600\), its grid \(1200, 1200\)"):
        open_modis(path)


def test_a_day_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write_tile(tmp_path / ET_NAME.replace("2017161", "2017400"), {"ET_500m": np.zeros((1200, 1200), np.int16)})
    with pytest.raises(InputError, match="holds no calendar date"):
        open_modis(path, "none")
