"""HDF-EOS files of both generations, HDF4 (MODIS) and HDF5 (VIIRS), behind one small interface.

pyhdf reads HDF4: rasterio's wheels have none. A file is open only inside `opened`, which holds `HDF_LOCK` for so long.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray
from pyhdf import hdfext
from pyhdf.error import HDF4Error
from pyhdf.SD import SD, SDC

from smscale.errors import InputError
from smscale.sources.files import HDF_LOCK, Kind, check

#: Two slices of a data set (row, column), each from start to stop without a step.
Box = tuple[slice, slice]

_HDF4_TYPES = {SDC.INT8: "i1", SDC.UINT8: "u1", SDC.UCHAR8: "u1", SDC.INT16: "i2", SDC.UINT16: "u2"}
_GRIDS, _INFORMATION = "HDFEOS/GRIDS", "HDFEOS INFORMATION"


class EosFile(Protocol):
    """An open HDF-EOS file with one grid."""

    def text(self, name: str) -> str:
        """A metadata text, as "StructMetadata.0"; empty if absent."""

    def attribute(self, name: str) -> str:
        """An attribute of the whole file, as "ShortName"; empty if absent."""

    def shape_and_type(self, name: str) -> tuple[tuple[int, ...], np.dtype | None] | None:
        """Of a data set; its type is None where it is no integer of one or two bytes; None if there is no such data set."""

    def scale(self, name: str) -> float | None:
        """The scale_factor that a data set states, if it is a number."""

    def read(self, name: str, box: Box | None = None) -> NDArray:
        """A data set as stored, or a box of it."""


@contextmanager
def opened(path: Path, kind: Kind) -> Iterator[EosFile]:
    """The file, open; whatever the libraries cannot read of it becomes one InputError that names it."""
    check(path, kind)
    with HDF_LOCK:
        try:
            file = _Hdf4(path) if kind == "HDF4" else _Hdf5(path)
            try:
                yield file
            finally:
                file.close()
        except (HDF4Error, OSError, KeyError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            said = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: cannot be read as {kind} ({said}): download it again") from error


class _Hdf4:
    def __init__(self, path: Path) -> None:
        self._file = SD(str(path), SDC.READ)
        try:
            self._data_sets = self._file.datasets()
        except BaseException:
            self._file.end()
            raise

    def close(self) -> None:
        self._file.end()

    def text(self, name: str) -> str:
        # SDAttr.get makes a Python character of each byte: 30 ms for a tile's metadata, longer than its pixels take
        index = hdfext.SDfindattr(self._file._id, name)
        if index < 0:
            return ""
        status, _, kind, size = hdfext.SDattrinfo(self._file._id, index)
        buffer = hdfext.array_byte(max(size, 1))
        if status < 0 or kind != SDC.CHAR or hdfext.SDreadattr(self._file._id, index, buffer) < 0:
            return ""
        return ctypes.string_at(int(buffer.cast()), size).decode("latin-1")

    def attribute(self, name: str) -> str:
        return self.text(name)

    def shape_and_type(self, name: str) -> tuple[tuple[int, ...], np.dtype | None] | None:
        if name not in self._data_sets:
            return None
        _, shape, kind, _ = self._data_sets[name]
        return tuple(np.atleast_1d(shape).tolist()), np.dtype(_HDF4_TYPES[kind]) if kind in _HDF4_TYPES else None

    def scale(self, name: str) -> float | None:
        def stated(item: Any) -> float | None:
            index = hdfext.SDfindattr(item._id, "scale_factor")
            return None if index < 0 else _number(item.attr(index).get())

        return self._with(name, stated)

    def read(self, name: str, box: Box | None = None) -> NDArray:
        if box is None:
            return self._with(name, lambda item: item.get())
        start, count = [s.start for s in box], [s.stop - s.start for s in box]
        return self._with(name, lambda item: item.get(start=start, count=count).reshape(count))

    def _with(self, name: str, use: Any) -> Any:
        item = self._file.select(name)
        try:
            return use(item)
        finally:
            item.endaccess()


class _Hdf5:
    def __init__(self, path: Path) -> None:
        self._file = h5py.File(path, "r")
        try:
            grids = list(self._file[_GRIDS]) if _GRIDS in self._file else []
            if len(grids) != 1:
                holds = ", ".join(list(self._file)[:5]) or "nothing"
                raise InputError(f"{path}: holds {len(grids)} HDF-EOS grids, expected one (its groups: {holds})")
            self._fields = self._file[f"{_GRIDS}/{grids[0]}/Data Fields"]
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def text(self, name: str) -> str:
        path = f"{_INFORMATION}/{name}"
        return _string(self._file[path][()]) if path in self._file else ""

    def attribute(self, name: str) -> str:
        return _string(self._file.attrs[name]) if name in self._file.attrs else ""

    def shape_and_type(self, name: str) -> tuple[tuple[int, ...], np.dtype | None] | None:
        item = self._fields.get(name)
        if not isinstance(item, h5py.Dataset):
            return None
        return item.shape, item.dtype if item.dtype.kind in "iu" and item.dtype.itemsize <= 2 else None

    def scale(self, name: str) -> float | None:
        return _number(self._fields[name].attrs.get("scale_factor"))

    def read(self, name: str, box: Box | None = None) -> NDArray:
        return self._fields[name][box if box is not None else ()]


def _string(value: Any) -> str:
    """Text of an attribute, of whatever kind of string; a number as text."""
    first = np.asarray(value).ravel()
    found = first[0] if first.size else b""
    return found.decode("latin-1") if isinstance(found, bytes) else str(found)


def _number(value: Any) -> float | None:
    """The number in an attribute; None where there is none (some products write "n/a")."""
    try:
        return float(np.asarray(value).ravel()[0])
    except (TypeError, ValueError, IndexError):
        return None
