"""What every reader needs to know of a raw file before a library opens it: is it whole, is it what its name says.

HDF4 and HDF5 libraries are not thread-safe: whoever opens such a file holds `HDF_LOCK` from opening to closing.
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import BinaryIO, Literal

from smscale.errors import InputError
from smscale.places import Place

HDF_LOCK = threading.RLock()

Kind = Literal["HDF4", "HDF5", "TIFF"]

#: First bytes of each kind (HDF4 specification 2.2; HDF5 file format 3.0, section II.A; TIFF 6.0 and BigTIFF).
_SIGNATURES: dict[Kind, tuple[bytes, ...]] = {
    "HDF4": (b"\x0e\x03\x13\x01",),
    "HDF5": (b"\x89HDF\r\n\x1a\n",),
    "TIFF": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
}
#: Tags of the places of strips and tiles, and of their sizes (TIFF 6.0, sections 8 and 15).
_TIFF_PLACES, _TIFF_SIZES = (273, 324), (279, 325)
#: Bytes of a directory beyond which a TIFF is taken as no such file.
_LONGEST_DIRECTORY = 1 << 20
#: Bytes of the shortest superblock of HDF5 (version 2, with the signature).
_SHORTEST_SUPERBLOCK = 48
#: What else may lie under a data file's name.
_OTHERS: dict[str, tuple[bytes, ...]] = {
    "netCDF-3": (b"CDF\x01", b"CDF\x02", b"CDF\x05"),
    "a zip archive": (b"PK\x03\x04",),
    "gzip-compressed": (b"\x1f\x8b",),
}
_AGAIN = "download it again"


def defect(path: Place, kind: Kind) -> str | None:
    """Why a file cannot be a whole `kind` file, or None. Reads a few hundred bytes.

    Finds missing and empty files, folders, web pages saved under a data file's name, other formats, and files that are
    shorter than they say of themselves.
    """
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return f"is a folder, expected one {kind} file"
    size = path.stat().st_size
    if size == 0:
        return f"is empty (0 bytes): {_AGAIN}"
    try:
        file = path.open("rb")
    except OSError as error:
        return f"cannot be opened ({error.strerror}): see who may read it"
    with file:
        head = file.read(512)
        if not head.startswith(_SIGNATURES[kind]):
            return _another(head, kind)
        needed = {"HDF4": _hdf4_length, "HDF5": _hdf5_length, "TIFF": _tiff_length}[kind](file)
    if needed > size:
        return f"is truncated: it holds {size} of at least {needed} bytes: {_AGAIN}"
    return None


def _another(head: bytes, kind: Kind) -> str:
    """What a file is that is not of the kind, by its first bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"is a web page (a login or error page?), expected {kind}: log in and {_AGAIN}"
    if text.startswith((b"{", b"http basic", b"access denied", b"unauthorized")):
        return f"is a server's answer ({head[:40]!r}), expected {kind}: log in and {_AGAIN}"
    for other, signatures in (_SIGNATURES | _OTHERS).items():
        if head.startswith(signatures):
            return f"is not {kind} but {other}: {_AGAIN}"
    return f"is not {kind} (it starts with {head[:4]!r}): {_AGAIN}"


def check(path: str | Path, kind: Kind) -> Path:
    """The path, if it is a whole `kind` file as far as `defect` can tell; else InputError."""
    path = Path(path)
    reason = defect(path, kind)
    if reason:
        raise InputError(f"{path}: {reason}")
    return path


def _tiff_length(file: BinaryIO) -> int:
    """Largest end of any strip or tile that the directories list (TIFF 6.0, section 2; BigTIFF).

    Cloud-optimised files have their directories first: half of one opens, and lacks pixels.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    big = head[2:4] in (b"+\x00", b"\x00+")
    offset, counter, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    where = 8 if big else 4
    width, step = struct.calcsize(order + offset), struct.calcsize(order + entry)
    if len(head) < where + width:
        return where + width
    (place,) = struct.unpack_from(order + offset, head, where)
    end, seen = 0, set()
    while place and place not in seen:
        seen.add(place)
        file.seek(place)
        count = file.read(struct.calcsize(order + counter))
        if len(count) < struct.calcsize(order + counter):
            return max(end, place + len(count) + 1)
        (entries,) = struct.unpack(order + counter, count)
        table = file.read(min(entries * step, _LONGEST_DIRECTORY))
        following = file.read(width)
        if len(following) < width:
            return max(end, place + len(count) + entries * step + width)
        lists = {}
        for tag, kind, number, value in struct.iter_unpack(order + entry, table):
            if tag in _TIFF_PLACES or tag in _TIFF_SIZES:
                lists[tag], ends = _tiff_numbers(file, order, kind, number, value, offset)
                end = max(end, ends)
        for places, sizes in zip(_TIFF_PLACES, _TIFF_SIZES, strict=True):
            for start, size in zip(lists.get(places, ()), lists.get(sizes, ()), strict=False):
                end = max(end, start + size)  # of a block that was never written both are 0
        (place,) = struct.unpack(order + offset, following)
    return end


def _tiff_numbers(
    file: BinaryIO, order: str, kind: int, number: int, value: bytes, offset: str
) -> tuple[tuple[int, ...], int]:
    """The numbers of one entry of a directory, in its last bytes or where these point; and where they end there."""
    letter = {3: "H", 4: "I", 16: "Q"}.get(kind)
    if letter is None:
        return (), 0
    size, end = struct.calcsize(f"{order}{letter}") * number, 0
    if size > len(value):
        (start,) = struct.unpack(order + offset, value)
        end = start + size
        file.seek(start)
        value = file.read(size)
    return struct.unpack_from(f"{order}{number}{letter}", value) if len(value) >= size else (), end


def _hdf5_length(file: BinaryIO) -> int:
    """Bytes that the superblock promises (HDF5 file format, II.A: end-of-file address; versions 0 to 3)."""
    file.seek(8)
    block = file.read(88)
    if len(block) < _SHORTEST_SUPERBLOCK - 8:
        return _SHORTEST_SUPERBLOCK
    version = block[0]
    if version in (0, 1):
        start, width = 16 + 4 * version, block[5]
        position = start + 2 * width
    elif version in (2, 3):
        width = block[1]
        position = 4 + 2 * width
    else:
        return 0
    return int.from_bytes(block[position : position + width], "little")


def _hdf4_length(file: BinaryIO) -> int:
    """Largest end of any data element that the descriptor blocks list (HDF4 specification, 2.3)."""
    end, block, seen = 0, 4, set()
    while block and block not in seen:
        seen.add(block)
        file.seek(block)
        header = file.read(6)
        if len(header) < 6:
            return block + 6
        count, following = struct.unpack(">HI", header)
        table = file.read(12 * count)
        end = max(end, block + 6 + 12 * count)
        if len(table) < 12 * count:
            return end
        for tag, _, offset, length in struct.iter_unpack(">HHII", table):
            if tag != 1 and offset != 0xFFFFFFFF and length != 0xFFFFFFFF:  # tag 1: an empty descriptor
                end = max(end, offset + length)
        block = following
    return end
