"""MODIS tiles as NASA writes them: HDF4-EOS on the sinusoidal grid, with the real data-set names, scales, fills and QC bits.

MYD11A1 (daily land surface temperature), MOD13A2 (16-day vegetation indices), MOD16A2 (8-day evapotranspiration) and
MCD12Q1 (yearly land cover). The scale conventions differ and are kept as they are: in MOD13A2 the stored number is
*divided* by scale_factor, in the others it is multiplied. Nothing in a file tells when or where it was written.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
import tempfile
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyhdf.V  # noqa: F401  (HDF.vgstart needs it imported)
from numpy.typing import ArrayLike, NDArray
from pyhdf.HDF import HC, HDF
from pyhdf.SD import SD, SDC

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.places import Place, place
from smscale.simulate.atomic import replacing

COLLECTION = "061"
#: HDF4 is not thread-safe.
_HDF4 = threading.Lock()
#: HDF4 stores the path under which a file is made, so every path is made this long and then overwritten in the bytes.
_PATH_LENGTH = 160
_TYPES = {
    "int8": SDC.INT8, "uint8": SDC.UINT8, "int16": SDC.INT16, "uint16": SDC.UINT16, "int32": SDC.INT32,
    "float64": SDC.FLOAT64, "char": SDC.CHAR,
}  # fmt: skip
_STRUCT_LENGTH = 32000

#: Latent heat of vaporisation, J kg-1 (MOD16 user guide, section 2).
LATENT_HEAT = 2.45e6
#: MOD16A2 fills by IGBP class (MOD16 user guide, table 3): nothing is retrieved there.
ET_FILL = 32767
ET_CLASS_FILLS = {17: 32766, 16: 32765, 15: 32764, 11: 32763, 13: 32762}

#: MxD11A1 QC: bits 0-1 (0 good, 1 other quality, 2 cloud, 3 not produced for another reason), 2-3 data quality (1 other),
#: 4-5 emissivity error (<= 0.01, 0.02, 0.04, above), 6-7 LST error (<= 1, 2, 3 K, above).
LST_GOOD, LST_OTHER, LST_CLOUD, LST_NOT_PRODUCED = 0, 1, 2, 3


@lru_cache(maxsize=1)
def schema() -> dict[str, dict[str, Any]]:
    """Product -> grid name, pixels, tile size, fields with their types and attributes (from the genuine files)."""
    return json.loads(files("smscale.simulate").joinpath("modis.json").read_text(encoding="utf-8"))


def _product(product: str) -> dict[str, Any]:
    if product not in schema():
        raise InputError(f"no MODIS product {product!r} is simulated; expected one of {', '.join(schema())}")
    return schema()[product]


# -- names and dates ----------------------------------------------------------------------------


def _as_date(date: object) -> dt.date:
    return np.datetime64(date, "D").astype(object)  # type: ignore[call-overload]


def _last_day(product: str, date: dt.date) -> dt.date:
    """Last day of the period that starts on `date`: composites start anew on 1 January."""
    year_end = dt.date(date.year, 12, 31)
    if product == "MCD12Q1":
        return year_end
    last = date + dt.timedelta(days=_product(product)["days"] - 1)
    return last if product == "MOD13A2" else min(last, year_end)


def _production(product: str, date: dt.date) -> dt.datetime:
    """When the granule says that it was made: noon, two days after its period, whenever it really was."""
    return dt.datetime.combine(_last_day(product, date) + dt.timedelta(days=2), dt.time(12))


def granule_name(product: str, date: object, h: int, v: int, collection: str = COLLECTION) -> str:
    """NASA's file name, as MYD11A1.A2017161.h26v06.061.2017163120000.hdf; the last stamp follows from the date."""
    day = _as_date(date)
    return f"{product}.A{day:%Y%j}.h{h:02d}v{v:02d}.{collection}.{_production(product, day):%Y%j%H%M%S}.hdf"


def composite_dates(product: str, start: object, end: object) -> list[dt.date]:
    """First days of the product's periods (1, 8 or 16 days, a year) that touch the days `start` to `end`."""
    first, last, length = _as_date(start), _as_date(end), _product(product)["days"]
    dates = []
    for year in range(first.year - 1, last.year + 1):
        day = dt.date(year, 1, 1)
        while day.year == year:
            if day <= last and _last_day(product, day) >= first:
                dates.append(day)
            day += dt.timedelta(days=length) if product != "MCD12Q1" else dt.timedelta(days=366)
    return dates


def _check_start(product: str, date: dt.date) -> None:
    length = _product(product)["days"]
    since = date.timetuple().tm_yday - 1
    if (since % length and product != "MCD12Q1") or (product == "MCD12Q1" and since):
        raise InputError(f"{product} periods start every {length} days from 1 January; {date} is day {since + 1}")


# -- quality ------------------------------------------------------------------------------------


def lst_quality(
    lst: ArrayLike, cloud: ArrayLike, lst_error: ArrayLike = 0.5, emissivity_error: ArrayLike = 0.005
) -> NDArray[np.uint8]:
    """QC of MxD11A1.

    Parameters
    ----------
    lst : float, K; NaN where none
    cloud : bool; tells a missing LST under cloud (2) from one missing for another reason (3)
    lst_error : K; up to 1 K together with an emissivity error up to 0.01 is good (0), else other quality
    emissivity_error : 1
    """
    temperature, error = (
        np.digitize(np.asarray(lst_error), (1, 2, 3), right=True),
        np.digitize(np.asarray(emissivity_error), (0.01, 0.02, 0.04), right=True),
    )
    other = (temperature > 0) | (error > 0)
    produced = other * (LST_OTHER | 1 << 2) | error << 4 | temperature << 6
    missing = np.where(np.asarray(cloud, dtype=bool), LST_CLOUD, LST_NOT_PRODUCED)
    return np.where(np.isnan(np.asarray(lst, dtype=np.float32)), missing, produced).astype(np.uint8)


def vegetation_quality(reliability: ArrayLike, water: ArrayLike = False) -> NDArray[np.uint16]:
    """`VI Quality` of MxD13 from the pixel reliability (0 good, 1 marginal, 2 snow or ice, 3 cloudy, -1 none).

    Bits 0-1 MODLAND QA, 2-5 usefulness, 6-7 aerosol (1 low), 8 adjacent cloud, 9 BRDF, 10 mixed cloud, 11-13 land (1) or
    shallow inland water (3), 14 snow or ice, 15 shadow.
    """
    r = np.asarray(reliability)
    modland = np.choose(np.clip(r, 0, 3), (0, 1, 1, 2))
    usefulness = np.choose(np.clip(r, 0, 3), (0, 2, 4, 10))
    surface = np.where(np.asarray(water, dtype=bool), 3, 1)
    bits = modland | usefulness << 2 | 1 << 6 | (r == 3) << 8 | (r == 3) << 10 | surface << 11 | (r == 2) << 14
    return np.where(r < 0, 65535, bits).astype(np.uint16)


# -- products -----------------------------------------------------------------------------------


def write_lst(
    path: str | os.PathLike[str] | Place,
    date: object,
    h: int,
    v: int,
    lst_day: ArrayLike,
    lst_night: ArrayLike,
    view_time_day: ArrayLike,
    view_time_night: ArrayLike,
    qc_day: ArrayLike | None = None,
    qc_night: ArrayLike | None = None,
    *,
    view_angle_day: ArrayLike = 20.0,
    view_angle_night: ArrayLike = -20.0,
    emissivity_31: ArrayLike = 0.984,
    emissivity_32: ArrayLike = 0.986,
) -> Place:
    """MYD11A1: one day of one tile.

    Parameters
    ----------
    path : of the file; its last part is what `granule_name` says
    date : UTC day
    h, v : tile
    lst_day, lst_night : (1200, 1200), K; NaN where missing
    view_time_day, view_time_night : (1200, 1200) or one number, local solar hours, about 13.5 and 1.5
    qc_day, qc_night : (1200, 1200) uint8, see `lst_quality`; without them what is missing counts as cloud
    view_angle_day, view_angle_night : degrees from nadir, -65 to 65
    emissivity_31, emissivity_32 : 0.49 to 1
    """
    out: dict[str, NDArray[Any]] = {}
    for part, lst, time, angle, qc in (
        ("Day", lst_day, view_time_day, view_angle_day, qc_day),
        ("Night", lst_night, view_time_night, view_angle_night, qc_night),
    ):
        lst = _plane("MYD11A1", f"lst_{part.lower()}", lst)
        seen = ~np.isnan(lst)
        out[f"LST_{part}_1km"] = _packed(lst / np.float32(0.02), 0, np.uint16, (7500, 65535))
        out[f"QC_{part}"] = lst_quality(lst, cloud=True) if qc is None else _plane("MYD11A1", "qc", qc).astype(np.uint8)
        out[f"{part}_view_time"] = _where(seen, np.asarray(time) * 10.0, 255, np.uint8, (0, 240))
        out[f"{part}_view_angl"] = _where(seen, np.asarray(angle) + 65.0, 255, np.uint8, (0, 130))
        # A view that passed the cloud screen is clear over the whole of its pixel: 1 / 0.0005.
        out[f"Clear_{part.lower()}_cov"] = _where(seen, 2000.0, 0, np.uint16, (1, 65535))
    either = (out["LST_Day_1km"] > 0) | (out["LST_Night_1km"] > 0)
    out["Emis_31"] = _where(either, (np.asarray(emissivity_31) - 0.49) / 0.002, 0, np.uint8, (1, 255))
    out["Emis_32"] = _where(either, (np.asarray(emissivity_32) - 0.49) / 0.002, 0, np.uint8, (1, 255))
    good = float(np.mean(out["QC_Day"] & 3 == LST_GOOD))
    return _write(path, "MYD11A1", _as_date(date), h, v, out, good)


def write_vegetation(
    path: str | os.PathLike[str] | Place,
    date: object,
    h: int,
    v: int,
    ndvi: ArrayLike,
    evi: ArrayLike,
    reliability: ArrayLike | None = None,
    composite_day: ArrayLike | None = None,
    water: ArrayLike = False,
) -> Place:
    """MOD13A2: one 16-day composite of one tile.

    Parameters
    ----------
    date : first day of the composite (day of year 1, 17, 33, …)
    ndvi, evi : (1200, 1200), -0.2 to 1; NaN where missing
    reliability : (1200, 1200) int, 0 good, 1 marginal, 2 snow or ice, 3 cloudy; without it all is good
    composite_day : (1200, 1200) or one number, day of year that a pixel was taken from; the middle of the period without it
    water : (1200, 1200) bool
    """
    day = _as_date(date)
    _check_start("MOD13A2", day)
    ndvi, evi = _plane("MOD13A2", "ndvi", ndvi), _plane("MOD13A2", "evi", evi)
    seen = ~np.isnan(ndvi)
    rank = np.where(seen, 0 if reliability is None else np.asarray(reliability), -1).astype(np.int8)
    middle = (day + dt.timedelta(days=7)).timetuple().tm_yday
    # Reflectances that make this NDVI: near infrared rises from bare soil (0.24) to canopy (0.38).
    near = np.clip(0.24 + 0.16 * ndvi, 0.02, 1.0)
    red = near * (1 - ndvi) / (1 + np.maximum(ndvi, -0.9))
    fields = {
        "NDVI": _packed(ndvi * 10000, -3000, np.int16, (-2000, 10000)),
        "EVI": _packed(evi * 10000, -3000, np.int16, (-2000, 10000)),
        "VI Quality": vegetation_quality(rank, water),
        "red reflectance": _packed(red * 10000, -1000, np.int16, (0, 10000)),
        "NIR reflectance": _packed(near * 10000, -1000, np.int16, (0, 10000)),
        "blue reflectance": _packed(red * 5000, -1000, np.int16, (0, 10000)),
        "MIR reflectance": _packed((0.25 - 0.15 * ndvi) * 10000, -1000, np.int16, (0, 10000)),
        "view zenith angle": _where(seen, 2000.0, -10000, np.int16, (0, 18000)),
        "sun zenith angle": _where(seen, 3000.0, -10000, np.int16, (0, 18000)),
        "relative azimuth angle": _where(seen, 4000.0, -4000, np.int16, (-18000, 18000)),
        "composite day of the year": _where(
            seen, middle if composite_day is None else composite_day, -1, np.int16, (1, 366)
        ),
        "pixel reliability": rank,
    }
    out = {f"1 km 16 days {name}": values for name, values in fields.items()}
    return _write(path, "MOD13A2", day, h, v, out, float(np.mean(rank == 0)))


def write_et(
    path: str | os.PathLike[str] | Place,
    date: object,
    h: int,
    v: int,
    et: ArrayLike,
    pet: ArrayLike,
    land_cover: ArrayLike | None = None,
    qc: ArrayLike | None = None,
) -> Place:
    """MOD16A2: one 8-day sum of one tile (the last of a year sums 5 or 6 days).

    Parameters
    ----------
    date : first day of the sum (day of year 1, 9, 17, …)
    et, pet : (2400, 2400), actual and potential evapotranspiration, kg m-2 over the period; NaN where missing
    land_cover : (2400, 2400) IGBP 1 to 17; a missing pixel of water, barren, snow, wetland, urban gets its own fill,
        also where `et` holds a number, since the product retrieves nothing there
    qc : (2400, 2400) uint8 ET_QC_500m; 0 without it
    """
    day = _as_date(date)
    _check_start("MOD16A2", day)
    days = (_last_day("MOD16A2", day) - day).days + 1
    et, pet = _plane("MOD16A2", "et", et), _plane("MOD16A2", "pet", pet)
    fill = np.full(et.shape, ET_FILL, dtype=np.int16)
    if land_cover is not None:
        classes = _plane("MOD16A2", "land_cover", land_cover).astype(np.uint8)
        lookup = np.full(256, ET_FILL, dtype=np.int16)
        for igbp, value in ET_CLASS_FILLS.items():
            lookup[igbp] = value
        fill = lookup[classes]
    known = ~np.isnan(et) & (fill == ET_FILL)
    flux = LATENT_HEAT / days / 10000.0
    out: dict[str, NDArray[Any]] = {
        "ET_500m": _where(known, et * 10, fill, np.int16, (-32767, 32700)),
        "LE_500m": _where(known, et * flux, fill, np.int16, (-32767, 32700)),
        "PET_500m": _where(known, pet * 10, fill, np.int16, (-32767, 32700)),
        "PLE_500m": _where(known, pet * flux, fill, np.int16, (-32767, 32700)),
        "ET_QC_500m": np.where(known, 0 if qc is None else np.asarray(qc), 255).astype(np.uint8),
    }
    return _write(path, "MOD16A2", day, h, v, out, float(np.mean(known)))


#: IGBP 1 to 17 -> the nearest class of each legend of MCD12Q1 (UMD, LAI, BGC, PFT and the three of FAO LCCS).
_LEGENDS = {
    "LC_Type1": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17),
    "LC_Type2": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 12, 13, 12, 15, 15, 0),
    "LC_Type3": (7, 5, 8, 6, 6, 2, 2, 4, 4, 1, 1, 3, 10, 3, 9, 9, 0),
    "LC_Type4": (1, 2, 3, 4, 4, 2, 4, 4, 6, 6, 6, 5, 8, 5, 7, 7, 0),
    "LC_Type5": (1, 2, 3, 4, 4, 5, 5, 4, 6, 6, 6, 7, 9, 7, 10, 11, 0),
    "LC_Prop1": (11, 12, 13, 14, 15, 41, 43, 21, 22, 31, 31, 31, 1, 31, 2, 1, 3),
    "LC_Prop2": (10, 10, 10, 10, 10, 40, 40, 20, 20, 30, 30, 36, 9, 35, 2, 1, 3),
    "LC_Prop3": (10, 10, 10, 10, 10, 40, 40, 20, 20, 30, 50, 30, 1, 30, 2, 1, 3),
}


def write_land_cover(path: str | os.PathLike[str] | Place, year: int, h: int, v: int, igbp: ArrayLike) -> Place:
    """MCD12Q1: the land cover of one year and tile; `igbp` is (2400, 2400), 1 to 17 (water 17), 255 unclassified."""
    classes = _plane("MCD12Q1", "igbp", igbp).astype(np.uint8)
    known = (classes >= 1) & (classes <= 17)
    if np.any(~known & (classes != 255)):
        raise InputError("MCD12Q1: igbp must hold classes 1 to 17, or 255 where unclassified")
    out: dict[str, NDArray[Any]] = {}
    for name, legend in _LEGENDS.items():
        lookup = np.full(256, 255, dtype=np.uint8)
        lookup[1:18] = legend
        out[name] = lookup[classes]
    for number in (1, 2, 3):
        out[f"LC_Prop{number}_Assessment"] = np.where(known, 80, 255).astype(np.uint8)
    # 0 classified land, 2 classified water (MCD12 user guide, table 10).
    out["QC"] = np.where(known, np.where(classes == 17, 2, 0), 255).astype(np.uint8)
    out["LW"] = np.where(known, np.where(classes == 17, 1, 2), 255).astype(np.uint8)
    return _write(path, "MCD12Q1", dt.date(year, 1, 1), h, v, out, float(np.mean(known)))


# -- packing ------------------------------------------------------------------------------------


def _plane(product: str, name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    pixels = _product(product)["pixels"]
    if array.shape != (pixels, pixels):
        raise InputError(f"{product}: {name} has shape {array.shape}, expected ({pixels}, {pixels})")
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _packed(values: NDArray[Any], fill: int, dtype: Any, valid: tuple[int, int]) -> NDArray[Any]:
    return _where(~np.isnan(values), values, fill, dtype, valid)


def _where(
    known: NDArray[np.bool_], values: ArrayLike, fill: ArrayLike, dtype: Any, valid: tuple[int, int]
) -> NDArray[Any]:
    """Rounded and clipped to the valid range where known and finite, `fill` elsewhere."""
    number = np.asarray(values, dtype=np.float32)
    known = known & np.isfinite(number)
    stored = np.rint(np.clip(np.where(known, number, valid[0]), *valid))
    return np.where(known, stored, np.asarray(fill, dtype=np.float32)).astype(dtype)


# -- HDF4-EOS -----------------------------------------------------------------------------------


def _write(
    path: str | os.PathLike[str] | Place,
    product: str,
    date: dt.date,
    h: int,
    v: int,
    out: Mapping[str, NDArray[Any]],
    good: float,
) -> Place:
    name = granule_name(product, date, h, v)
    texts = {
        "HDFEOSVersion": "HDFEOS_V2.19",
        "StructMetadata.0": struct_metadata(product, h, v),
        "identifier_product_doi": f"10.5067/MODIS/{product}.{COLLECTION}",
        "identifier_product_doi_authority": "http://dx.doi.org",
        "CoreMetadata.0": core_metadata(product, date, h, v, good),
        "ArchiveMetadata.0": archive_metadata(product, h, v),
    }
    with replacing(path) as temporary:
        temporary.write_bytes(_hdf4_bytes(name, _product(product), texts, out))
    return place(path)


def _hdf4_bytes(
    name: str, facts: Mapping[str, Any], texts: Mapping[str, str], out: Mapping[str, NDArray[Any]]
) -> bytes:
    """The file's bytes; the scratch path, which HDF4 stores, is replaced by the granule's name."""
    with tempfile.TemporaryDirectory(prefix="smscale-") as folder:
        scratch = _long_path(folder)
        with _HDF4:
            references = _write_sds(scratch, facts, texts, out)
            _write_grid_group(scratch, facts["grid"], references)
        data = Path(scratch).read_bytes()
    return data.replace(scratch.encode(), name.encode().ljust(len(scratch), b" "))


def _long_path(folder: str) -> str:
    length = max(_PATH_LENGTH - len(folder) - 1, 16)
    return os.path.join(folder, secrets.token_hex(length // 2 + 1)[:length])


def _write_sds(
    scratch: str, facts: Mapping[str, Any], texts: Mapping[str, str], out: Mapping[str, NDArray[Any]]
) -> list[int]:
    sd = SD(scratch, SDC.WRITE | SDC.CREATE | SDC.TRUNC)
    references = []
    for field in facts["fields"]:
        sds = sd.create(field["name"], _TYPES[field["type"]], (facts["pixels"], facts["pixels"]))
        sds.dim(0).setname(f"YDim:{facts['grid']}")
        sds.dim(1).setname(f"XDim:{facts['grid']}")
        for key, kind, value in field["attrs"]:
            sds.attr(key).set(_TYPES[kind], value)
        sds.setcompress(SDC.COMP_DEFLATE, 1)
        sds[:] = np.ascontiguousarray(out[field["name"]])
        references.append(sds.ref())
        sds.endaccess()
    for key, text in texts.items():
        sd.attr(key).set(SDC.CHAR, text)
    sd.end()
    return references


def _write_grid_group(scratch: str, grid: str, references: Iterable[int]) -> None:
    """The Vgroups by which HDF-EOS finds a grid: the grid, with its data fields and its attributes."""
    file = HDF(scratch, HC.WRITE)
    vgroups = file.vgstart()
    groups = {}
    for name, kind in ((grid, "GRID"), ("Data Fields", "GRID Vgroup"), ("Grid Attributes", "GRID Vgroup")):
        groups[name] = vgroups.create(name)
        groups[name]._class = kind
    for reference in references:
        groups["Data Fields"].add(HC.DFTAG_NDG, reference)
    groups[grid].insert(groups["Data Fields"])
    groups[grid].insert(groups["Grid Attributes"])
    for group in groups.values():
        group.detach()
    vgroups.end()
    file.close()


# -- metadata -----------------------------------------------------------------------------------


def corners(product: str, h: int, v: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a tile in metres, with the tile size as the product rounds it."""
    size = _product(product)["tile_size"]
    left, top = (h - 18) * size, (9 - v) * size
    return left, top, left + size, top - size


def struct_metadata(product: str, h: int, v: int) -> str:
    """StructMetadata.0: the grid as HDF-EOS describes it, padded with NUL to the 32 000 characters of the library."""
    facts = _product(product)
    left, top, right, bottom = corners(product, h, v)
    lines = [
        "GROUP=SwathStructure", "END_GROUP=SwathStructure", "GROUP=GridStructure", "\tGROUP=GRID_1",
        f'\t\tGridName="{facts["grid"]}"', f"\t\tXDim={facts['pixels']}", f"\t\tYDim={facts['pixels']}",
        f"\t\tUpperLeftPointMtrs=({left:.6f},{top:.6f})", f"\t\tLowerRightMtrs=({right:.6f},{bottom:.6f})",
        "\t\tProjection=GCTP_SNSOID", f"\t\tProjParams=(6371007.181000,0,0,0,0,0,0,0,{facts['projparams']})",
        "\t\tSphereCode=-1",
    ]  # fmt: skip
    if facts["grid_origin"]:
        lines.append("\t\tGridOrigin=HDFE_GD_UL")
    lines += ["\t\tGROUP=Dimension", "\t\tEND_GROUP=Dimension", "\t\tGROUP=DataField"]
    for number, field in enumerate(facts["fields"], start=1):
        lines += [
            f"\t\t\tOBJECT=DataField_{number}", f'\t\t\t\tDataFieldName="{field["name"]}"',
            f"\t\t\t\tDataType=DFNT_{field['type'].upper()}", '\t\t\t\tDimList=("YDim","XDim")',
            f"\t\t\tEND_OBJECT=DataField_{number}",
        ]  # fmt: skip
    lines += [
        "\t\tEND_GROUP=DataField", "\t\tGROUP=MergedFields", "\t\tEND_GROUP=MergedFields", "\tEND_GROUP=GRID_1",
        "END_GROUP=GridStructure", "GROUP=PointStructure", "END_GROUP=PointStructure", "END", "",
    ]  # fmt: skip
    return "\n".join(lines).ljust(_STRUCT_LENGTH, "\0")


def core_metadata(product: str, date: dt.date, h: int, v: int, good: float = 1.0) -> str:
    """CoreMetadata.0 (ODL): what the granule is, which days and tile it holds; `good` is the share of good pixels."""
    facts = _product(product)
    percent = round(100 * good)
    tile = {
        "HORIZONTALTILENUMBER": f"{h:02d}", "VERTICALTILENUMBER": f"{v:02d}", "TileID": f"51{h:03d}{v:03d}",
        "QAPERCENTGOODQUALITY": str(percent), "identifier_product_doi": f"10.5067/MODIS/{product}.{COLLECTION}",
        "identifier_product_doi_authority": "http://dx.doi.org",
    }  # fmt: skip
    lon, lat = _ring(h, v)
    tree: list[Any] = [
        ("ECSDATAGRANULE", [
            ("REPROCESSINGPLANNED", "none"), ("REPROCESSINGACTUAL", "processed once"),
            ("LOCALGRANULEID", granule_name(product, date, h, v)), ("DAYNIGHTFLAG", facts["day_night"]),
            ("PRODUCTIONDATETIME", f"{_production(product, date):%Y-%m-%dT%H:%M:%S}.000Z"),
            ("LOCALVERSIONID", "smscale nature run"),
        ]),
        ("MEASUREDPARAMETER", [("MEASUREDPARAMETERCONTAINER", "1", [
            ("PARAMETERNAME", facts["parameter"]),
            ("QAFLAGS", [("AUTOMATICQUALITYFLAG", "Passed"), ("SCIENCEQUALITYFLAG", "Not Investigated")]),
            ("QASTATS", [("QAPERCENTMISSINGDATA", 100 - percent)]),
        ])]),
        ("COLLECTIONDESCRIPTIONCLASS", [("SHORTNAME", product), ("VERSIONID", int(COLLECTION))]),
        ("INPUTGRANULE", [("INPUTPOINTER", "simulated")]),
        ("SPATIALDOMAINCONTAINER", [("HORIZONTALSPATIALDOMAINCONTAINER", [("GPOLYGON", [("GPOLYGONCONTAINER", "1", [
            ("GRINGPOINT", [
                ("GRINGPOINTLONGITUDE", lon), ("GRINGPOINTLATITUDE", lat), ("GRINGPOINTSEQUENCENO", (1, 2, 3, 4)),
            ]),
            ("GRING", [("EXCLUSIONGRINGFLAG", "N")]),
        ])])])]),
        ("RANGEDATETIME", [
            ("RANGEBEGINNINGDATE", date.isoformat()), ("RANGEBEGINNINGTIME", "00:00:00"),
            ("RANGEENDINGDATE", _last_day(product, date).isoformat()), ("RANGEENDINGTIME", "23:59:59"),
        ]),
        ("PGEVERSIONCLASS", [("PGEVERSION", "6.1.0")]),
        ("ASSOCIATEDPLATFORMINSTRUMENTSENSOR", [
            ("ASSOCIATEDPLATFORMINSTRUMENTSENSORCONTAINER", str(number), [
                ("ASSOCIATEDSENSORSHORTNAME", "MODIS"), ("ASSOCIATEDPLATFORMSHORTNAME", platform),
                ("ASSOCIATEDINSTRUMENTSHORTNAME", "MODIS"),
            ])
            for number, platform in enumerate(facts["platform"], start=1)
        ]),
        ("ADDITIONALATTRIBUTES", [
            ("ADDITIONALATTRIBUTESCONTAINER", str(number), [
                ("ADDITIONALATTRIBUTENAME", key), ("INFORMATIONCONTENT", [("PARAMETERVALUE", value)]),
            ])
            for number, (key, value) in enumerate(tile.items(), start=1)
        ]),
    ]  # fmt: skip
    return _odl("INVENTORYMETADATA", tree)


def archive_metadata(product: str, h: int, v: int) -> str:
    """ArchiveMetadata.0 (ODL): the tile's bounding rectangle and the global grid."""
    facts = _product(product)
    lon, lat = _ring(h, v)
    pixels = facts["pixels"]
    tree: list[Any] = [
        ("LONGNAME", facts["long_name"]), ("INSTRUMENTNAME", "Moderate-Resolution Imaging SpectroRadiometer"),
        ("PROCESSINGCENTER", "smscale nature run"),
        ("BOUNDINGRECTANGLE", [
            ("NORTHBOUNDINGCOORDINATE", max(lat)), ("SOUTHBOUNDINGCOORDINATE", min(lat)),
            ("EASTBOUNDINGCOORDINATE", max(lon)), ("WESTBOUNDINGCOORDINATE", min(lon)),
        ]),
        ("CHARACTERISTICBINANGULARSIZE", 36000.0 / pixels), ("CHARACTERISTICBINSIZE", facts["tile_size"] / pixels),
        ("DATACOLUMNS", pixels), ("DATAROWS", pixels),
        ("GLOBALGRIDCOLUMNS", 36 * pixels), ("GLOBALGRIDROWS", 18 * pixels),
        ("TILEINFO", [("HORIZONTALTILENUMBER", f"{h:02d}"), ("VERTICALTILENUMBER", f"{v:02d}")]),
    ]  # fmt: skip
    return _odl("ARCHIVEDMETADATA", tree)


def _ring(h: int, v: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Longitudes and latitudes of a tile's corners, lower left first and clockwise; off the globe, its edge."""
    lat = np.array([80 - 10 * v, 90 - 10 * v, 90 - 10 * v, 80 - 10 * v], dtype=np.float64)
    x = np.array([h - 18, h - 18, h - 17, h - 17]) * sinusoidal.TILE_SIZE
    radius = sinusoidal.RADIUS * np.cos(np.deg2rad(np.clip(lat, -89.999, 89.999)))
    lon = np.clip(np.rad2deg(x / radius), -180, 180)
    return tuple(np.round(lon, 9).tolist()), tuple(lat.tolist())


def _odl(master: str, tree: list[Any]) -> str:
    lines = ["", f"{'GROUP':<22} = {master}", f"  {'GROUPTYPE':<20} = MASTERGROUP", ""]
    for node in tree:
        _odl_node(node, 1, "", lines)
    return "\n".join([*lines, f"{'END_GROUP':<22} = {master}", "", "END", ""])


def _odl_node(node: tuple[Any, ...], depth: int, container: str, lines: list[str]) -> None:
    """One group (name, [children]), container object (name, class, [children]) or value object (name, value)."""
    pad = "  " * depth

    def line(key: str, value: str, indent: str = pad) -> None:
        lines.append(f"{indent}{key:<{22 - len(indent)}} = {value}")

    name, content = node[0], node[-1]
    container = node[1] if len(node) == 3 else container
    kind = "GROUP" if isinstance(content, list) and len(node) == 2 else "OBJECT"
    line(kind, name)
    if container:
        line("CLASS", f'"{container}"', pad + "  ")
    if isinstance(content, list):
        for child in content:
            _odl_node(child, depth + 1, container, lines)
    else:
        line("NUM_VAL", str(len(content)) if isinstance(content, tuple) else "1", pad + "  ")
        line("VALUE", _odl_value(content), pad + "  ")
    line(f"END_{kind}", name)
    lines.append("")


def _odl_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(_odl_value(v) for v in value) + ")"
    return f'"{value}"' if isinstance(value, str) else repr(value)
