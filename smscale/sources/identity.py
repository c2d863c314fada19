"""What a product file is, from its own metadata: for files whose names do not say.

HDF4 keeps CoreMetadata as plain text in an element of its own: it is found through the file's list of elements, without a
library. HDF5 attributes are read by h5py.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from smscale.sources.files import HDF_LOCK

#: Tag of an HDF4 vdata's values (HDF4 specification, table 9.A): attributes are stored in these.
_VDATA = 1963
#: CoreMetadata.0 is some 20 kB; HDF-EOS splits it at 65 535 bytes.
_LONGEST = 70_000
_CORE = b"INVENTORYMETADATA"


@dataclass(frozen=True)
class Identity:
    """Product, first day (ISO, UTC), tile (h, v) if it is one, collection ("061", "R18290"), production, part of the day."""

    product: str
    date: str
    tile: tuple[int, int] | None
    collection: str
    production: str
    part: str = ""
    local_name: str = ""


def identify(path: Path) -> Identity | None:
    """What the metadata of an HDF4-EOS, HDF-EOS5 or SMAP file say; None if they say nothing."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head.startswith(b"\x0e\x03\x13\x01"):
                return _of_core(_core_metadata(file))
        return _of_hdf5(path) if head.startswith(b"\x89HDF") else None
    except (OSError, ValueError, KeyError, struct.error):
        return None


# -- HDF4: CoreMetadata.0 ---------------------------------------------------------------------------


def _core_metadata(file: BinaryIO) -> str:
    """The text of CoreMetadata; empty without one."""
    for tag, offset, length in _elements(file):
        if tag == _VDATA and 200 <= length <= _LONGEST:
            file.seek(offset)
            text = file.read(length)
            if _CORE in text[:400]:
                return text.decode("latin-1")
    return ""


def _elements(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Tag, offset and length of every element (HDF4 specification, 2.3)."""
    block, seen = 4, set()
    while block and block not in seen:
        seen.add(block)
        file.seek(block)
        count, following = struct.unpack(">HI", file.read(6))
        for tag, _, offset, length in struct.iter_unpack(">HHII", file.read(12 * count)):
            if offset != 0xFFFFFFFF and length != 0xFFFFFFFF:
                yield tag, offset, length
        block = following


def _of_core(core: str) -> Identity | None:
    product, begin = _core_value(core, "SHORTNAME"), _core_value(core, "RANGEBEGINNINGDATE")
    if not product or not begin:
        return None
    local = _core_value(core, "LOCALGRANULEID")
    version = _core_value(core, "VERSIONID")
    tile = re.search(r"\.h(\d\d)v(\d\d)\.", local)
    return Identity(
        product=product,
        date=begin,
        tile=(int(tile[1]), int(tile[2])) if tile else _tile_attributes(core),
        collection={"6": "006", "61": "061", "5": "005"}.get(version, version.zfill(3)),
        production=_core_value(core, "PRODUCTIONDATETIME"),
        local_name=local,
    )


def _core_value(core: str, name: str) -> str:
    """The VALUE of one OBJECT of CoreMetadata (ODL text); empty if absent."""
    found = re.search(rf"OBJECT\s*=\s*{name}\s.*?VALUE\s*=\s*(\"[^\"]*\"|\S+)", core, re.DOTALL)
    return found[1].strip('"') if found else ""


def _tile_attributes(core: str) -> tuple[int, int] | None:
    """HORIZONTALTILENUMBER and VERTICALTILENUMBER of the additional attributes."""
    found = [
        re.search(rf'VALUE\s*=\s*"{name}TILENUMBER".*?PARAMETERVALUE.*?VALUE\s*=\s*"(\d+)"', core, re.DOTALL)
        for name in ("HORIZONTAL", "VERTICAL")
    ]
    return (int(found[0][1]), int(found[1][1])) if found[0] and found[1] else None


# -- HDF5: SMAP and VIIRS -----------------------------------------------------------------------------


def _of_hdf5(path: Path) -> Identity | None:
    with HDF_LOCK, h5py.File(path, "r") as file:
        if "ShortName" in file.attrs:
            return _of_viirs({name: _text(value) for name, value in file.attrs.items()})
        if "Metadata/DatasetIdentification" in file:
            groups = [f"Metadata/{g}" for g in ("Extent", "DatasetIdentification") if f"Metadata/{g}" in file]
            return _of_smap({name: _text(v) for group in groups for name, v in file[group].attrs.items()})
    return None


def _of_viirs(attributes: Mapping[str, str]) -> Identity | None:
    h, v = attributes.get("HORIZONTALTILENUMBER", ""), attributes.get("VERTICALTILENUMBER", "")
    begin = attributes.get("RangeBeginningDate", "")
    if not begin:
        return None
    return Identity(
        product=attributes["ShortName"],
        date=begin[:10],
        tile=(int(h), int(v)) if h and v else None,
        collection=attributes.get("VersionID", "").zfill(3),
        production=attributes.get("ProductionTime", ""),
        local_name=attributes.get("LocalGranuleID", ""),
    )


def _of_smap(attributes: Mapping[str, str]) -> Identity | None:
    product, begin = attributes.get("shortName", ""), attributes.get("rangeBeginningDateTime", "")
    if not product or not begin:
        return None
    return Identity(
        product=product,
        date=begin[:10],
        tile=None,
        collection=attributes.get("CompositeReleaseID", "")[:6],
        production=attributes.get("creationDate", ""),
        part="" if product.startswith("SPL3") else begin[10:19],
        local_name=attributes.get("fileName", ""),
    )


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
