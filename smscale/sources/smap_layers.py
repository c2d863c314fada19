"""Layers of SMAP granules that are read and decoded where they are touched: no file stays open, and they pickle.

A layer is one variable of one granule on a window of its grid. Files hold it as a plane (levels 3 and 4) or as a list of cells
(level 2): floats with a fill, bit fields, or times as text or as seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from smscale.errors import InputError
from smscale.sources.files import HDF_LOCK

#: Fill of SMAP's floats and of its 16-bit flags (product specification D-72551, table of fill values).
FLOAT_FILL = -9999.0
FLAG_FILL = 65534
#: tb_time_seconds counts from here; established from SPL2SMP files that hold both (their strings agree to 1 ms, leap seconds left out).
J2000_UTC = np.datetime64("2000-01-01T12:00:00", "ns")

Kind = Literal["float", "flag", "utc", "seconds"]
_TIME = np.dtype("datetime64[ns]")
_DTYPES: dict[Kind, np.dtype] = {
    "float": np.dtype(np.float32),
    "flag": np.dtype(np.uint16),
    "utc": _TIME,
    "seconds": _TIME,
}


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, alone in this process; what HDF5 cannot read in it is one line."""
    with HDF_LOCK:
        try:
            with h5py.File(path, "r") as file:
                yield file
        except (OSError, KeyError, RuntimeError) as error:
            what = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: cannot be read as SMAP HDF5 ({what}): download it again") from error


# -- where a file keeps a layer -------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A data set of a file, and how its values are decoded."""

    name: str
    kind: Kind

    @property
    def dtype(self) -> np.dtype:
        """Of the decoded values."""
        return _DTYPES[self.kind]


class Place(Protocol):
    """How the cells of a window lie in a data set."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns of the window."""

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of the data set."""

    def read(self, item: h5py.Dataset, kind: Kind, rows: slice, cols: slice) -> NDArray:
        """Decoded values of consecutive rows and columns of the window."""


@dataclass(frozen=True)
class Plane:
    """A window of a plane; cells that the plane lacks are missing.

    Parameters
    ----------
    shape : rows, columns of the window
    offset : row and column of the window's first cell in the plane; negative where the window begins before it
    stored : rows, columns of the plane
    """

    shape: tuple[int, int]
    offset: tuple[int, int]
    stored: tuple[int, int]

    def read(self, item: h5py.Dataset, kind: Kind, rows: slice, cols: slice) -> NDArray:
        """Decoded values of consecutive rows and columns of the window."""
        wanted = [(s.start + o, s.stop + o) for s, o in zip((rows, cols), self.offset, strict=True)]
        held = [(max(a, 0), min(b, n)) for (a, b), n in zip(wanted, self.stored, strict=True)]
        if held == wanted:
            return decode(item[slice(*held[0]), slice(*held[1])], item, kind)
        out = np.full([b - a for a, b in wanted], missing(_DTYPES[kind]), _DTYPES[kind])
        if all(a < b for a, b in held):
            target = tuple(slice(a - w, b - w) for (a, b), (w, _) in zip(held, wanted, strict=True))
            out[target] = decode(item[slice(*held[0]), slice(*held[1])], item, kind)
        return out


@dataclass(frozen=True, eq=False)
class Cells:
    """A list of cells laid on a window; of a cell listed twice the last is taken.

    Parameters
    ----------
    shape : rows, columns of the window
    entries : (n,) int, positions in the list
    cells : (n,) int, flat positions in the window
    listed : length of the list
    """

    shape: tuple[int, int]
    entries: NDArray[np.int64]
    cells: NDArray[np.int64]
    listed: int

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of the data set."""
        return (self.listed,)

    def read(self, item: h5py.Dataset, kind: Kind, rows: slice, cols: slice) -> NDArray:
        """Decoded values of consecutive rows and columns of the window."""
        field = np.full(self.shape, missing(_DTYPES[kind]), _DTYPES[kind])
        field.ravel()[self.cells] = decode(item[:], item, kind)[self.entries]
        return field[rows, cols]


# -- lazy arrays ----------------------------------------------------------------------------------


class Layer(BackendArray):
    """One variable of a granule: (lat, lon), or (overpass, lat, lon) where `stacked`.

    Parameters
    ----------
    path : of the file
    sources : one, or one an overpass
    place : where the window's cells lie in the data sets
    stacked : whether the overpasses are a dimension
    """

    def __init__(self, path: Path, sources: Sequence[Source], place: Place, stacked: bool = False) -> None:
        self.path, self.sources, self.place, self.stacked = path, tuple(sources), place, stacked
        self.shape = ((len(self.sources),) if stacked else ()) + tuple(place.shape)
        self.dtype = self.sources[0].dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> NDArray:
        """Values of one basic key: a whole number drops its dimension."""
        bounds, picks = zip(*(_bounds(k, n) for k, n in zip(key, self.shape, strict=True)), strict=True)
        layers = range(len(self.sources))[bounds[0]] if self.stacked else range(1)
        rows, cols = bounds[-2:]
        with opened(self.path) as file:
            planes = [self._plane(file, self.sources[i], rows, cols) for i in layers]
        values = np.stack(planes) if self.stacked else planes[0]
        return values[picks]

    def _plane(self, file: h5py.File, source: Source, rows: slice, cols: slice) -> NDArray:
        item = file[source.name]
        if item.shape != self.place.stored:
            raise InputError(
                f"{self.path}: {source.name} is {item.shape}, it was {self.place.stored} when the file was opened: open it again"
            )
        return self.place.read(item, source.kind, rows, cols)


class Constant(BackendArray):
    """One value for every cell."""

    def __init__(self, value: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self.value, self.dtype, self.shape = value, dtype, shape

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> NDArray:
        return np.array(np.broadcast_to(np.array(self.value, self.dtype), self.shape)[key])


def lazy(array: BackendArray) -> indexing.LazilyIndexedArray:
    """For the data of a Variable: indexing reads nothing, and every touch reads anew."""
    return indexing.LazilyIndexedArray(array)


def _bounds(key: int | slice, length: int) -> tuple[slice, int | slice]:
    """The consecutive part of a dimension that a key touches, and the key within that part."""
    if not isinstance(key, slice):
        at = int(key) % length
        return slice(at, at + 1), 0
    start, stop, step = key.indices(length)
    return slice(start, max(start, stop)), slice(None, None, step)


# -- decoding -------------------------------------------------------------------------------------


def decode(values: NDArray, item: h5py.Dataset, kind: Kind) -> NDArray:
    """Values as stored -> float32 with NaN, uint16 bit field, or datetime64[ns] UTC with NaT."""
    if kind == "float":
        return _floats(values, item)
    if kind == "flag":
        return values.astype(np.uint16)
    if kind == "utc":
        return parse_utc(values)
    time = np.full(values.shape, np.datetime64("NaT"), _TIME)
    known = np.isfinite(values) & (values != FLOAT_FILL)
    time[known] = J2000_UTC + np.round(values[known] * 1e9).astype("timedelta64[ns]")
    return time


def _floats(values: NDArray, item: h5py.Dataset) -> NDArray[np.float32]:
    """float32 with NaN for the fill that the data set states (or -9999)."""
    fill = np.float32(np.ravel(item.attrs.get("_FillValue", FLOAT_FILL))[0])
    values = values.astype(np.float32)
    values[(values == fill) | (values == np.float32(FLOAT_FILL))] = np.nan
    return values


def missing(dtype: np.dtype) -> Any:
    """What stands for a cell without a value."""
    if dtype.kind == "f":
        return np.nan
    return np.datetime64("NaT") if dtype.kind == "M" else FLAG_FILL


def parse_utc(text: NDArray) -> NDArray[np.datetime64]:
    """Times of strings such as b"2015-08-11T02:21:22.474Z"; anything else is NaT.

    Parameters
    ----------
    text : any shape, bytes (fixed length) or objects

    Returns
    -------
    datetime64[ns], the same shape. Milliseconds written as `***` (a rounding overflow of NASA's writer) are 1000.
    """
    text = np.asarray(text)
    if text.dtype.kind != "S":
        flat = [t if isinstance(t, bytes) else str(t).encode() for t in text.ravel()]
        text = np.array(flat, dtype="S24").reshape(text.shape)
    out = np.full(text.shape, np.datetime64("NaT"), _TIME).ravel()
    padded = np.ascontiguousarray(text.astype("S24")).view(np.uint8).reshape(-1, 24)
    digits = padded.astype(np.int16) - ord("0")
    plain = (digits >= 0) & (digits <= 9)
    places = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]
    good = plain[:, places].all(axis=1) & (padded[:, 4] == ord("-")) & (padded[:, 10] == ord("T"))
    if not good.any():
        return out.reshape(text.shape)
    d = digits[good].astype(np.int64)

    def number(columns: Iterable[int]) -> NDArray[np.int64]:
        value = np.zeros(len(d), np.int64)
        for column in columns:
            value = value * 10 + d[:, column]
        return value

    months = (number(range(4)) - 1970) * 12 + number((5, 6)) - 1
    seconds = (number((8, 9)) - 1) * 86400 + number((11, 12)) * 3600 + number((14, 15)) * 60 + number((17, 18))
    overflow = (padded[good][:, 20:23] == ord("*")).all(axis=1)
    thousandths = plain[good][:, 20:23].all(axis=1) & (padded[good][:, 19] == ord("."))
    milliseconds = np.where(overflow, 1000, np.where(thousandths, number((20, 21, 22)), 0))
    time = months.astype("datetime64[M]").astype("datetime64[ms]") + (seconds * 1000 + milliseconds).astype(
        "timedelta64[ms]"
    )
    out[good] = time.astype(_TIME)
    return out.reshape(text.shape)
