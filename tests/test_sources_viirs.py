"""VIIRS tiles against h5py and hand arithmetic; LST files are made to the layout of their file specification."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import smscale
from smscale import sinusoidal
from smscale.errors import InputError
from smscale.kernels.lookup import decode
from smscale.sources.codes import quality_meaning
from smscale.sources.modis import open_modis, pixel_counts, read_coded, rejected_by
from smscale.sources.viirs import open_viirs

Real = Callable[[str], Path]
VI = "modis/VNP13A2.A2025009.h18v09.002.2025031192612.h5"
FIELDS = "HDFEOS/GRIDS/VIIRS_Grid_16Day_VI_1km/Data Fields"
DAY = "VNP21A1D.A2020161.h26v05.002.2023170000000.h5"
NIGHT = "VJ121A1N.A2020161.h26v05.002.2023170000000.h5"


def write_lst(
    path: Path,
    lst: np.ndarray,
    qc: np.ndarray,
    time: np.ndarray,
    tile: tuple[int, int] = (26, 5),
    product: str = "",
    grids: int = 1,
    version: str = "002",
) -> Path:
    """A daily LST file as HDF-EOS5: one grid, metadata beside it, scale "n/a" on the quality words as genuine files have it."""
    rows, columns = lst.shape
    left, top, right, bottom = sinusoidal.tile_corners(*tile)
    struct = "GROUP=SwathStructure\nEND_GROUP=SwathStructure\nGROUP=GridStructure\n" + "".join(
        f'\tGROUP=GRID_{i}\n\t\tGridName="VIIRS_Grid_Daily_1km_LST21"\n\t\tXDim={columns}\n\t\tYDim={rows}\n'
        f"\t\tUpperLeftPointMtrs=({left:.6f},{top:.6f})\n\t\tLowerRightMtrs=({right:.6f},{bottom:.6f})\n"
        f"\t\tProjection=HE5_GCTP_SNSOID\n\tEND_GROUP=GRID_{i}\n"
        for i in range(1, grids + 1)
    )
    with h5py.File(path, "w") as file:
        file.attrs["ShortName"] = np.bytes_(product or path.name.split(".")[0])
        file.attrs["VersionID"] = np.bytes_(version)
        file.attrs["ProductionTime"] = np.bytes_("2023-06-19 00:00:00.000")
        file["HDFEOS INFORMATION/StructMetadata.0"] = np.bytes_(struct.ljust(32000, "\0"))
        group = file.create_group("HDFEOS/GRIDS/VIIRS_Grid_Daily_1km_LST21/Data Fields")
        for name, values, fill, scale in (
            ("LST_1KM", lst, 0, np.array([0.02])),
            ("QC", qc, None, np.bytes_("n/a")),
            ("View_Time", time, 255, np.array([0.1])),
            ("Emis_14", np.zeros(lst.shape, np.uint8), 0, np.array([0.002])),
        ):
            item = group.create_dataset(name, data=values, compression="gzip", chunks=(1, columns))
            item.attrs["scale_factor"] = scale
            if fill is not None:
                item.attrs["_FillValue"] = np.array([fill], values.dtype)
    return path


def made(path: Path, **change: object) -> Path:
    """A tile of 290 K seen at 13.2 h, with one pixel of each case in its first row."""
    lst = np.full((1200, 1200), 14500, np.uint16)
    qc = np.full((1200, 1200), 0b11_11_00_00_00_00_00_00, np.uint16)
    time = np.full((1200, 1200), 132, np.uint8)
    lst[0, 0], time[0, 0], qc[0, 0] = 0, 255, 0b10  # cloud: not produced
    qc[0, 1] = 0b10_00_00_00_00_00_00_01  # unreliable, clear, error 1 to 1.5 K
    qc[0, 2] = 0b00_00_00_00_00_00_00_01  # unreliable, clear, error more than 2 K
    qc[0, 3] = 0b11_00_00_00_00_10_00_01  # unreliable, near a cloud
    qc[0, 6] = 0b11_00_00_00_00_01_00_00  # good, yet under thin cirrus
    lst[0, 4] = 7499  # below the valid range
    lst[0, 5] = 18000  # 360 K: no land surface
    return write_lst(path, lst, qc, time, **change)  # type: ignore[arg-type]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("qc", "ranks"), [("strict", (0, 1)), ("paper", (0, 1, 2, 3)), ("none", tuple(range(-128, 128)))]
)
def test_vegetation_indices_equal_h5py(real: Real, qc: str, ranks: tuple[int, ...]) -> None:
    ds = open_modis(real(VI), qc=qc)  # type: ignore[arg-type]
    assert set(ds.data_vars) == {"ndvi", "evi"}
    with h5py.File(real(VI)) as file:
        fields = file[FIELDS]
        rank = fields["1 km 16 days pixel reliability"][:]
        for name in ("ndvi", "evi"):
            dn = fields[f"1 km 16 days {name.upper()}"][:].astype(int)
            keep = (dn >= -10000) & (dn <= 10000) & np.isin(rank, ranks)
            if qc != "none":
                keep &= (dn >= -2000) & (dn <= 10000)
            np.testing.assert_array_equal(ds[name].values, np.where(keep, dn * 0.0001, np.nan).astype(np.float32))
            assert pixel_counts(real(VI), qc)[name]["kept"] == keep.sum()  # type: ignore[arg-type]


@pytest.mark.real_data
def test_a_tile_lies_where_its_coordinates_say(real: Real) -> None:
    ds = open_viirs(real(VI))
    with h5py.File(real(VI)) as file:
        grid = file["HDFEOS/GRIDS/VIIRS_Grid_16Day_VI_1km"]
        half = sinusoidal.TILE_SIZE / 2400
        # the file's own XDim and YDim are the pixels' upper left corners
        np.testing.assert_allclose(ds.x - half, grid["XDim"][:], atol=0.01)
        np.testing.assert_allclose(ds.y + half, grid["YDim"][:], atol=0.01)
    attrs = {name: ds.attrs[name] for name in ("product", "sensor", "collection", "date", "tile", "composite_days")}
    assert attrs == {
        "product": "VNP13A2",
        "sensor": "VIIRS Suomi-NPP",
        "collection": "002",
        "date": "2025-01-09",
        "tile": "h18v09",
        "composite_days": 16,
    }
    assert ds.attrs["production"] == "2025-01-31 19:26:12.000"


@pytest.mark.real_data
def test_the_reasons_of_a_real_tile_partition_its_pixels(real: Real) -> None:
    tile = read_coded(real(VI), ["ndvi"])
    words = tile.layers["ndvi"].quality
    assert words is not None
    found = rejected_by(tile, np.bincount(words.ravel(), minlength=256))
    with h5py.File(real(VI)) as file:
        rank = file[FIELDS]["1 km 16 days pixel reliability"][:]
    assert sum(found.values()) == rank.size
    assert found["accepted"] == np.isin(rank, (0, 1)).sum()
    assert found["reliability: water"] == (rank == -4).sum()
    assert found["reliability: cloud shadow"] == (rank == 7).sum()


@pytest.mark.real_data
def test_engine_viirs_is_open_modis(real: Real) -> None:
    opened = xr.open_dataset(real(VI), engine="viirs", qc="paper")
    xr.testing.assert_identical(opened, smscale.open_modis(real(VI), "paper"))
    assert set(xr.open_dataset(real(VI), engine="viirs", drop_variables="evi").data_vars) == {"ndvi"}


@pytest.mark.real_data
def test_a_real_tile_cut_short_is_named(real: Real, tmp_path: Path) -> None:
    content = real(VI).read_bytes()
    for share in (0.999, 0.5, 0.001):
        (tmp_path / real(VI).name).write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"truncated: it holds \d+ of at least \d+ bytes"):
            open_modis(tmp_path / real(VI).name)


@pytest.mark.real_data
def test_pixels_that_are_broken_only_within_are_named_when_read(real: Real, tmp_path: Path) -> None:
    with h5py.File(real(VI)) as file:
        place = file[FIELDS]["1 km 16 days NDVI"].id.get_chunk_info(600)
    content = bytearray(real(VI).read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path = tmp_path / real(VI).name
    path.write_bytes(content)
    ds = open_modis(path)
    np.testing.assert_array_equal(ds.evi.values, open_modis(real(VI)).evi.values)
    row = place.chunk_offset[0]
    np.testing.assert_array_equal(ds.ndvi[: row - 1], open_modis(real(VI)).ndvi[: row - 1])
    with pytest.raises(InputError, match=r"cannot be read as HDF5 \([^\n]*\): download it again$"):
        _ = ds.ndvi[row].values


@pytest.mark.parametrize("name", [DAY, NIGHT])
def test_lst_is_decoded_by_its_own_quality_bits(tmp_path: Path, name: str) -> None:
    path = made(tmp_path / name)
    when = "day" if "D." in name else "night"
    rows = {
        "none": [np.nan, 290, 290, 290, np.nan, 360, 290, 290],
        "strict": [np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, 290],
        "paper": [np.nan, 290, np.nan, np.nan, np.nan, np.nan, np.nan, 290],
    }
    for qc, row in rows.items():
        ds = open_modis(path, qc=qc)  # type: ignore[arg-type]
        assert set(ds.data_vars) == {f"lst_{when}", f"lst_view_time_{when}"}
        np.testing.assert_allclose(ds[f"lst_{when}"].values[0, :8], row, rtol=1e-6)
        np.testing.assert_allclose(ds[f"lst_view_time_{when}"].values[1], 13.2, rtol=1e-6)
    assert pixel_counts(path, "paper")[f"lst_{when}"] == {
        "pixels": 1440000,
        "fill": 2,
        "cloud: within 2 pixels of a cloud": 1,
        "cloud: thin cirrus": 1,
        "lst_error: more than 2 K": 1,
        "outside limits": 1,
        "kept": 1440000 - 6,
    }
    coded = read_coded(path, [f"lst_{when}"]).layers[f"lst_{when}"]
    assert (coded.raw.dtype, coded.values.shape) == (np.uint16, (65536,))
    assert coded.accepted is not None
    assert coded.accepted.shape == (65536,)
    np.testing.assert_array_equal(decode(coded), open_modis(path)[f"lst_{when}"].values)


def test_the_sensor_follows_the_product(tmp_path: Path) -> None:
    for name, sensor, platform in (
        (DAY, "VIIRS Suomi-NPP", "Suomi-NPP"),
        (NIGHT, "VIIRS NOAA-20", "NOAA-20"),
        (NIGHT.replace("VJ1", "VJ2").replace(".002.", ".001."), "VIIRS NOAA-21", "NOAA-21"),
    ):
        attrs = open_viirs(made(tmp_path / name)).attrs
        assert (attrs["sensor"], attrs["platform"], attrs["tile"]) == (sensor, platform, "h26v05")
        assert (attrs["date"], attrs["collection"]) == ("2020-06-09", name.split(".")[3])


def test_quality_words_are_spelled_out() -> None:
    said = quality_meaning("VJ121A1D", 0b10_01_00_00_00_01_00_01)
    assert (said["mandatory"], said["cloud"]) == ("unreliable quality", "thin cirrus")
    assert (said["emissivity_error"], said["lst_error"]) == ("0.015 to 0.02", "1 to 1.5 K")
    assert quality_meaning("VNP13A2", 252) == {"reliability": "water"}  # -4 in a signed byte


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><title>Earthdata Login", "web page"),
        (b'{"error": "invalid_token"}', "server's answer"),
        (b"\x0e\x03\x13\x01", "is not HDF5 but HDF4"),
        (b"\x89HDF\r\n\x1a\n\x00", "truncated"),
        # a superblock of version 2 that promises its own 48 bytes, with a wrong checksum
        (
            b"\x89HDF\r\n\x1a\n\x02\x08\x08\x00" + bytes(16) + (48).to_bytes(8, "little") + bytes(12),
            "cannot be read as HDF5",
        ),
    ],
)
@pytest.mark.parametrize("name", [DAY, "some.h5"])
def test_what_is_no_hdf5_is_named(tmp_path: Path, content: bytes, reason: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        open_modis(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "HDF4 tile" not in str(caught.value)


def test_files_that_are_not_what_their_name_says_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not that of the tile in its name, h26v05"):
        open_modis(made(tmp_path / DAY, tile=(27, 5)))
    with pytest.raises(InputError, match="metadata say VNP21A1N but its name VNP21A1D"):
        open_modis(made(tmp_path / DAY, product="VNP21A1N"))
    with pytest.raises(InputError, match="describes 2 grids"):
        open_modis(made(tmp_path / DAY, grids=2))
    with pytest.raises(InputError, match="VNP09GA is not a product that is read here"):
        open_modis(made(tmp_path / DAY.replace("VNP21A1D", "VNP09GA")))
    with pytest.raises(InputError, match="is HDF5, but MYD11A1 comes as HDF4"):
        open_modis(made(tmp_path / "renamed.h5", product="MYD11A1"))


def test_hdf5_without_an_eos_grid_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "soil.h5", "w") as file:
        file["Soil_Moisture_Retrieval_Data_AM/soil_moisture"] = np.zeros(3)
    with pytest.raises(InputError, match=r"holds 0 HDF-EOS grids.*Soil_Moisture_Retrieval_Data_AM"):
        open_modis(tmp_path / "soil.h5")


def test_a_file_without_quality_is_read_only_without_policy(tmp_path: Path) -> None:
    path = made(tmp_path / DAY)
    with h5py.File(path, "a") as file:
        del file["HDFEOS/GRIDS/VIIRS_Grid_Daily_1km_LST21/Data Fields/QC"]
    with pytest.raises(InputError, match=r"'QC'.*pass qc='none'"):
        open_modis(path)
    assert int(open_modis(path, "none").lst_day.notnull().sum()) == 1440000 - 2


@pytest.mark.real_data
def test_open_viirs_wants_viirs(real: Real) -> None:
    with pytest.raises(InputError, match=r"is MOD13A2 of MODIS Terra, expected VIIRS"):
        open_viirs(real("modis/MOD13A2.A2025113.h18v09.061.2025148085150.hdf"))
