"""MODIS land tiles (HDF4-EOS): LST, vegetation indices, evapotranspiration and land cover, on their sinusoidal pixels.

pyhdf reads them: rasterio's wheels have no HDF4. Names, fills, scales and quality bits: modis_tables.json. What each
policy accepts:

========  ==========================================  =====================================================
product   strict                                      paper
========  ==========================================  =====================================================
MxD11A1   mandatory QA 00                             mandatory QA 00 or 01 with LST error at most 2 K
MxD13A2   pixel reliability 0 (good)                  0 or 1 (marginal)
MxD16A2   main algorithm, clear                       any algorithm, not under significant cloud
MCD12Q1   every class                                 every class
========  ==========================================  =====================================================

The paper says only that cloud, rain and low quality were left out: the `paper` rules are our reading of that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyhdf.error import HDF4Error
from pyhdf.SD import SD, SDC
from xarray.backends import BackendEntrypoint

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.schema import LAND_COVER_FILL, VARIABLES, WATER
from smscale.sources.files import HDF_LOCK, check

Policy = Literal["strict", "paper", "none"]
TABLES: dict[str, dict[str, Any]] = json.loads((files("smscale.sources") / "modis_tables.json").read_text())

#: Pixels along one side of a whole tile.
_TILE_PIXELS = (1200, 2400, 4800)
#: How far the corners of StructMetadata may lie from the tile's, in pixels (they are rounded to micrometres, or to decimetres).
_CORNER_TOLERANCE = 0.01

_NAME = re.compile(
    r"(?P<product>[A-Z]{3}\d{2}[A-Z0-9]+)\.A(?P<day>\d{7})\.h(?P<h>\d\d)v(?P<v>\d\d)\.(?P<collection>\d{3})"
)
_SUPPORTED = "MOD11A1, MYD11A1, MOD13A2, MYD13A2, MOD16A2, MYD16A2 (and GF), MCD12Q1, collections 6 and 6.1"


@dataclass(frozen=True)
class _Facts:
    """What a granule is, from its metadata and its name."""

    product: str
    family: str
    date: str
    tile: tuple[int, int] | None
    collection: str
    production: str


def open_modis(path: str | Path, qc: Policy = "strict") -> xr.Dataset:
    """One MODIS land tile, decoded, on its sinusoidal pixels.

    Parameters
    ----------
    path : MxD11A1, MxD13A2, MxD16A2 (GF) or MCD12Q1 file (HDF4-EOS), collection 6 or 6.1; a cropped one is taken as it is
    qc : which quality bits are accepted (see the module); "none" keeps every value that is not fill

    Returns
    -------
    Dataset (y, x), y descending, with those of these that the file has:

    lst_day, lst_night : float32, K; lst_view_time_day, lst_view_time_night : float32, local solar hours
    ndvi, evi : float32, 1
    et : float32, kg m-2 over the composite (8 days; the year's last has 5 or 6, see the attribute composite_days)
    land_cover : uint8, IGBP 1 to 17, 255 where unknown

    Fill and rejected pixels are NaN, counted in each variable's attributes (pixels_fill, pixels_rejected). Coordinates x, y: pixel
    centres in metres. Attributes product, collection, date (ISO, first day), tile ("h14v09"), h, v, crs, qc.

    Raises
    ------
    InputError
        if the file is broken, of another product, or its grid disagrees with the tile in its name.
    """
    if qc not in get_args(Policy):
        raise InputError(f"qc must be one of {', '.join(get_args(Policy))}, got {qc!r}")
    path = Path(path)
    if path.suffix.lower() in (".h5", ".nc") or path.name.startswith(("VNP", "VJ1")):
        raise InputError(f"{path}: is not a MODIS HDF4 tile; supported are {_SUPPORTED}")
    check(path, "HDF4")
    with HDF_LOCK:
        try:
            return _read(path, qc)
        except (HDF4Error, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read as HDF4 ({error}): download it again") from error


def _read(path: Path, qc: str) -> xr.Dataset:
    file = SD(str(path), SDC.READ)
    try:
        attributes = file.attributes()
        facts = _identify(attributes, path)
        table = TABLES[facts.family]
        x, y, whole = _pixels(str(attributes.get("StructMetadata.0", "")), facts, path)
        present = file.datasets()
        layers = {name: layer for name, layer in table["layers"].items() if layer["data_set"] in present}
        if not layers:
            wanted = ", ".join(layer["data_set"] for layer in table["layers"].values())
            raise InputError(f"{path}: holds none of {facts.product}'s data sets ({wanted})")
        accepted = _accepted(file, layers, table, qc, path)
        data = {
            name: _decode(
                file.select(layer["data_set"]), layer, accepted.get(layer.get("quality")), (y.size, x.size), path
            )
            for name, layer in layers.items()
        }
    finally:
        file.end()
    coords = {
        "y": ("y", y, {"units": "m", "standard_name": "projection_y_coordinate"}),
        "x": ("x", x, {"units": "m", "standard_name": "projection_x_coordinate"}),
    }
    return xr.Dataset(data, coords, _attrs(facts, table, qc, whole, path))


def _attrs(facts: _Facts, table: dict[str, Any], qc: str, whole: bool, path: Path) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "title": table["title"],
        "product": facts.product,
        "collection": facts.collection,
        "production": facts.production,
        "date": facts.date,
        "composite_days": _composite_days(facts.date, table["composite_days"]),
        "crs": sinusoidal.CRS,
        "qc": qc,
        "whole_tile": int(whole),
        "source": path.name,
    }
    if facts.tile:
        h, v = facts.tile
        attrs |= {"tile": f"h{h:02d}v{v:02d}", "h": h, "v": v}
    return attrs


# -- what a file is -------------------------------------------------------------------------------


def _identify(attributes: dict[str, Any], path: Path) -> _Facts:
    """Product, date, tile and collection: from CoreMetadata where present, else from the file's name; both must agree."""
    core = str(attributes.get("CoreMetadata.0", ""))
    named = _NAME.match(path.name) or _NAME.search(_core_value(core, "LOCALGRANULEID"))
    product = _core_value(core, "SHORTNAME") or (named["product"] if named else "")
    if not product:
        raise InputError(
            f"{path}: neither CoreMetadata nor its name say what it is; expected a name as MYD11A1.A2017161.h26v05.061.….hdf"
        )
    in_name = _NAME.match(path.name)
    if in_name and in_name["product"] != product:
        raise InputError(
            f"{path}: its metadata say {product} but its name {in_name['product']}: rename or replace the file"
        )
    family = next((f for f, table in TABLES.items() if re.fullmatch(table["names"], product)), None)
    if family is None:
        raise InputError(f"{path}: {product} is not a product that is read here; supported are {_SUPPORTED}")
    begin = _core_value(core, "RANGEBEGINNINGDATE")
    day = _day_of(named["day"]) if named else begin
    version = _core_value(core, "VERSIONID")
    return _Facts(
        product=product,
        family=family,
        date=day,
        tile=(int(named["h"]), int(named["v"])) if named else None,
        collection=named["collection"] if named else {"6": "006", "61": "061"}.get(version, version),
        production=_core_value(core, "PRODUCTIONDATETIME"),
    )


def _core_value(core: str, name: str) -> str:
    """The VALUE of one OBJECT of CoreMetadata (ODL text); empty if absent."""
    found = re.search(
        rf"OBJECT\s*=\s*{name}\s.*?VALUE\s*=\s*(\"[^\"]*\"|\S+).*?END_OBJECT\s*=\s*{name}", core, re.DOTALL
    )
    return found[1].strip('"') if found else ""


def _day_of(year_and_day: str) -> str:
    return (date(int(year_and_day[:4]), 1, 1) + timedelta(int(year_and_day[4:]) - 1)).isoformat()


def _composite_days(day: str, length: int) -> int:
    """Days that a composite covers: the last of a year ends with the year."""
    if not day:
        return length
    first = date.fromisoformat(day)
    return min(length, (date(first.year + 1, 1, 1) - first).days)


def _pixels(struct: str, facts: _Facts, path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """x and y of the pixel centres, and whether the file is a whole tile."""
    grids = re.findall(r"(?<!END_)GROUP=GRID_\d+\s", struct)
    size = re.search(r"XDim=(\d+)\s+YDim=(\d+)", struct)
    corners = re.search(r"UpperLeftPointMtrs=\(([-\d.]+),([-\d.]+)\)\s+LowerRightMtrs=\(([-\d.]+),([-\d.]+)\)", struct)
    if len(grids) != 1:
        raise InputError(f"{path}: StructMetadata describes {len(grids)} grids, expected one")
    if size is None or corners is None or "GCTP_SNSOID" not in struct:
        raise InputError(
            f"{path}: StructMetadata.0 lacks a sinusoidal grid's size or corners: it is no MODIS land tile"
        )
    columns, rows = int(size[1]), int(size[2])
    left, top, right, bottom = (float(c) for c in corners.groups())
    step = (right - left) / columns
    whole = columns == rows and columns in _TILE_PIXELS
    if facts.tile:
        tile = sinusoidal.tile_corners(*facts.tile)
        apart = max(abs(a - b) for a, b in zip((left, top, right, bottom), tile, strict=True)) / step
        overlaps = left < tile[2] and right > tile[0] and top > tile[3] and bottom < tile[1]
        if (whole and apart > _CORNER_TOLERANCE) or not overlaps:
            raise InputError(
                f"{path}: its grid (upper left {left:.0f}, {top:.0f} m) is not that of the tile in its name, "
                f"h{facts.tile[0]:02d}v{facts.tile[1]:02d} (upper left {tile[0]:.0f}, {tile[1]:.0f} m)"
            )
        if whole:
            xs, ys = sinusoidal.pixel_centres(*facts.tile, columns)
            return xs, ys, True
    xs = left + (np.arange(columns, dtype=np.float64) + 0.5) * step
    ys = top - (np.arange(rows, dtype=np.float64) + 0.5) * (top - bottom) / rows
    return xs, ys, whole


# -- values ---------------------------------------------------------------------------------------


def _accepted(
    file: Any, layers: dict[str, dict], table: dict[str, Any], qc: str, path: Path
) -> dict[str, NDArray[np.bool_]]:
    """For each quality data set, which pixels the policy accepts."""
    if qc == "none" or not table["accept"][qc]:
        return {}
    out = {}
    for name in sorted({layer["quality"] for layer in layers.values()}):
        if name not in file.datasets():
            raise InputError(
                f"{path}: has no quality data set {name!r} that qc={qc!r} needs; pass qc='none' to read it without"
            )
        bits = file.select(name).get().astype(np.uint8)
        table_of_bits = np.array([_accepts(value, table, qc) for value in range(256)])
        out[name] = table_of_bits[bits]
    return out


def _accepts(value: int, table: dict[str, Any], qc: str) -> bool:
    """Whether a policy accepts one quality byte."""
    for name, allowed in table["accept"][qc].items():
        field = table["bit_fields"][name]
        if (value >> field["shift"]) & ((1 << field["bits"]) - 1) not in allowed:
            return False
    return True


def quality_fields(product: str, value: int) -> dict[str, str]:
    """What one quality byte of a product (or family, as "MxD11A1") says: field name -> meaning."""
    family = next((f for f, t in TABLES.items() if f == product or re.fullmatch(t["names"], product)), None)
    if family is None:
        raise InputError(f"no quality table for {product!r}; supported are {_SUPPORTED}")
    out = {}
    for name, field in TABLES[family]["bit_fields"].items():
        bits = (value >> field["shift"]) & ((1 << field["bits"]) - 1)
        out[name] = field["meanings"].get(str(bits), f"undefined ({bits})")
    return out


def _decode(
    item: Any, layer: dict[str, Any], accepted: NDArray[np.bool_] | None, shape: tuple[int, int], path: Path
) -> tuple[tuple[str, str], NDArray, dict[str, Any]]:
    """Values in units, with fill, invalid and rejected pixels missing, and counts of these."""
    raw = item.get()
    if raw.shape != shape:
        raise InputError(f"{path}: {layer['data_set']} has shape {raw.shape}, its grid {shape}")
    low, high = layer["valid"]
    valid = (raw >= low) & (raw <= high)
    for fill in layer["fill"]:
        if low <= fill <= high:
            valid &= raw != fill
    keep = valid if accepted is None else valid & accepted
    attrs = dict(VARIABLES[layer["variable"]].attrs)
    attrs |= {"pixels_fill": int((~valid).sum()), "pixels_rejected": int((valid & ~keep).sum())}
    if "scale" not in layer:
        classes = np.where(raw == 0, WATER, raw).astype(np.uint8)
        attrs["missing_value"] = np.uint8(LAND_COVER_FILL)
        return ("y", "x"), np.where(keep, classes, np.uint8(LAND_COVER_FILL)), attrs
    scale = layer["scale"]
    stated = float(item.attributes().get("scale_factor", scale))
    if not (np.isclose(stated, scale) or np.isclose(stated, 1 / scale)):
        raise InputError(f"{path}: {layer['data_set']} has scale_factor {stated}, expected {scale} (or its inverse)")
    values = (raw * scale).astype(np.float32)
    values[~keep] = np.nan
    return ("y", "x"), values, attrs


class ModisBackend(BackendEntrypoint):
    """xarray engine "modis-hdf4": `xarray.open_dataset(path, engine="modis-hdf4")` is `open_modis(path)`."""

    description = "MODIS land tiles (MxD11A1, MxD13A2, MxD16A2, MCD12Q1), HDF4-EOS"
    open_dataset_parameters: ClassVar[tuple] = ("filename_or_obj", "drop_variables", "qc")  # type: ignore[misc]

    def open_dataset(  # type: ignore[override]
        self, filename_or_obj: Any, *, drop_variables: Iterable[str] | None = None, qc: Policy = "strict"
    ) -> xr.Dataset:
        """See `open_modis`."""
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return open_modis(filename_or_obj, qc).drop_vars(dropped, errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the name is that of a MODIS land tile that is read here."""
        name = Path(str(filename_or_obj)).name
        return name.endswith(".hdf") and any(re.match(table["names"] + r"\.A", name) for table in TABLES.values())
