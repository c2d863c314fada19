"""MODIS and VIIRS land tiles: LST, vegetation indices, evapotranspiration and land cover, on their sinusoidal pixels.

`read_coded` gives layers as stored, with the tables that decode them (the fast path of ingest); `open_modis` gives them
decoded and lazy. What the integers mean and what each quality policy accepts: `smscale.sources.codes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.kernels.lookup import Coded, decode
from smscale.schema import LAND_COVER_FILL, VARIABLES
from smscale.sources import codes
from smscale.sources.codes import SUPPORTED, Family, Layer, Policy
from smscale.sources.files import Kind
from smscale.sources.hdf_eos import Box, EosFile, opened

#: Pixels along one side of a whole tile.
_TILE_PIXELS = (1200, 2400, 4800)
#: How far the corners of StructMetadata may lie from the tile's, in pixels (they are rounded to micrometres, or to decimetres).
_CORNER_TOLERANCE = 0.01

_NAME = re.compile(
    r"(?P<product>(?:M[A-Z]{2}|V[A-Z][A-Z0-9])\d{2}[A-Z0-9]+)\.A(?P<day>\d{7})\.h(?P<h>\d\d)v(?P<v>\d\d)\.(?P<collection>\d{3})"
)


@dataclass(frozen=True)
class CodedTile:
    """Layers of one tile as stored, with their tables.

    layers : by variable name; layers of one quality data set share its array
    attrs : product, family, sensor, platform, collection, production, date, composite_days, tile, h, v, whole_tile, crs, qc, ...
    x, y : (n,), (m,) pixel centres, metres; y descends
    """

    layers: Mapping[str, Coded]
    attrs: Mapping[str, Any]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True)
class _Facts:
    """What a granule is, from its metadata and its name."""

    product: str
    family: Family
    date: str
    days: int
    tile: tuple[int, int] | None
    collection: str
    production: str


@dataclass(frozen=True)
class _Tile:
    """What an open file holds of what is wanted; nothing of it is read yet."""

    path: Path
    kind: Kind
    facts: _Facts
    layers: Mapping[str, Layer]
    qc: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    whole: bool

    @property
    def attrs(self) -> dict[str, Any]:
        facts = self.facts
        attrs: dict[str, Any] = {
            "title": facts.family.title,
            "product": facts.product,
            "family": facts.family.name,
            **codes.sensor_attrs(facts.product),
            "collection": facts.collection,
            "production": facts.production,
            "date": facts.date,
            "composite_days": facts.days,
            "crs": sinusoidal.CRS,
            "qc": self.qc,
            "whole_tile": int(self.whole),
            "source": self.path.name,
        }
        if facts.tile:
            h, v = facts.tile
            attrs |= {"tile": f"h{h:02d}v{v:02d}", "h": h, "v": v}
        return attrs

    def quality_of(self, layer: Layer) -> str:
        """The quality data set that the policy needs for a layer; empty if none."""
        return layer.quality if self.facts.family.accept[self.qc] else ""

    def read(self, file: EosFile, box: Box | None = None) -> dict[str, tuple[NDArray, NDArray | None]]:
        """Stored values and quality words of the layers; each data set is read once."""
        words = {
            name: codes.unsigned(file.read(name, box))
            for name in sorted({self.quality_of(layer) for layer in self.layers.values()} - {""})
        }
        return {
            name: (file.read(layer.data_set, box), words.get(self.quality_of(layer)))
            for name, layer in self.layers.items()
        }

    def code(self, file: EosFile, box: Box | None = None) -> dict[str, Coded]:
        """The layers with their tables."""
        return {
            name: codes.code(self.layers[name], self.facts.family, raw, quality, self.qc)
            for name, (raw, quality) in self.read(file, box).items()
        }


# -- public ---------------------------------------------------------------------------------------


def read_coded(path: str | Path, names: Sequence[str] | None = None, qc: Policy = "strict") -> CodedTile:
    """Layers of one MODIS or VIIRS land tile as stored, with the tables that decode them; reads no more than they need.

    Parameters
    ----------
    path : as `open_modis`
    names : variables, as ("lst_night", "lst_view_time_night"); None reads all that the file has
    qc : as `open_modis`

    Raises
    ------
    InputError
        as `open_modis`, or if the file lacks one of the names.
    """
    codes.check_policy(qc)
    path = Path(path)
    kind = _kind(path)
    with opened(path, kind) as file:
        tile = _describe(file, path, kind, names, qc)
        return CodedTile(tile.code(file), tile.attrs, tile.x, tile.y)


def open_modis(path: str | Path, qc: Policy = "strict") -> xr.Dataset:
    """One MODIS or VIIRS land tile, decoded, on its sinusoidal pixels; values are read when they are asked for.

    Parameters
    ----------
    path : MxD11A1, MxD13A2, MxD16A2 (GF) or MCD12Q1 file (HDF4-EOS), collection 6 or 6.1, or VNP21A1D, VNP21A1N, VNP13A2 (also of
        VJ1 and VJ2; HDF-EOS5); a cropped one is taken as it is
    qc : which quality bits are accepted (see `smscale.sources.codes`); "none" keeps every value that is not fill

    Returns
    -------
    Dataset (y, x), y descending, with those of these that the file has:

    lst_day, lst_night : float32, K; lst_view_time_day, lst_view_time_night : float32, local solar hours
    ndvi, evi : float32, 1
    et : float32, kg m-2 over the composite (8 days; the year's last has 5 or 6, see the attribute composite_days)
    land_cover : uint8, IGBP 1 to 17, 255 where unknown

    Fill and rejected pixels are NaN (`pixel_counts` says how many and why). Coordinates x, y: pixel centres in metres.
    Attributes product, sensor ("MODIS Aqua"), collection, date (ISO, first day), tile ("h14v09"), h, v, crs, qc.
    The file is open only while something is read of it: the Dataset pickles, and its chunks load in any thread or process.

    Raises
    ------
    InputError
        if the file is broken, of another product, or its grid disagrees with the tile in its name; also on access to values,
        if only these are broken.
    """
    ds = _lazy(path, qc)
    for variable in ds.data_vars.values():
        variable.variable._data = cached(variable.variable._data)
    return ds


def pixel_counts(path: str | Path, qc: Policy = "strict") -> dict[str, dict[str, int]]:
    """What became of the pixels of each variable of a tile under a policy.

    Returns
    -------
    variable -> counts: pixels; fill (and outside the product's valid range), "fill: water" and the like where fills have
    meanings; one per reason of rejection, as "mandatory: other quality"; "outside limits" (the schema's, under a policy);
    kept. pixels is the sum of all the others.
    """
    codes.check_policy(qc)
    path = Path(path)
    kind = _kind(path)
    with opened(path, kind) as file:
        tile = _describe(file, path, kind, None, qc)
        found = tile.read(file)
    family = tile.facts.family
    return {name: codes.counts_of(tile.layers[name], family, raw, words, qc) for name, (raw, words) in found.items()}


def rejected_by(product: str | CodedTile, histogram: ArrayLike, qc: Policy = "strict") -> dict[str, int]:
    """How many pixels are accepted and why the others are not; see `smscale.sources.codes.rejected_by`.

    A tile stands for its product and its policy.
    """
    if isinstance(product, CodedTile):
        return codes.rejected_by(product.attrs["product"], histogram, product.attrs["qc"])
    return codes.rejected_by(product, histogram, qc)


# -- lazy -----------------------------------------------------------------------------------------


class _LazyLayer(BackendArray):
    """One layer of a tile, read and decoded where it is indexed."""

    def __init__(self, tile: _Tile, name: str) -> None:
        # only this layer: what is pickled into a task stays small
        self._tile = replace(tile, layers={name: tile.layers[name]}, x=tile.x[:0], y=tile.y[:0])
        self._name = name
        self.shape = (tile.y.size, tile.x.size)
        self.dtype = tile.layers[name].dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._values)

    def _values(self, key: tuple[int | slice, ...]) -> NDArray:
        (rows, inner_rows), (columns, inner_columns) = (contiguous(k, n) for k, n in zip(key, self.shape, strict=True))
        if rows.stop == rows.start or columns.stop == columns.start:
            return np.empty((rows.stop - rows.start, columns.stop - columns.start), self.dtype)[
                inner_rows, inner_columns
            ]
        whole = (rows.stop - rows.start, columns.stop - columns.start) == self.shape
        with opened(self._tile.path, self._tile.kind) as file:
            coded = self._tile.code(file, None if whole else (rows, columns))[self._name]
        return decode(coded)[inner_rows, inner_columns]


def cached(array: Any) -> Any:
    """A lazy array that keeps what was read of it."""
    return indexing.MemoryCachedArray(indexing.CopyOnWriteArray(array))


def contiguous(key: int | slice, size: int) -> tuple[slice, int | slice]:
    """The contiguous run that an index lies in, and the index within it."""
    if not isinstance(key, slice):
        place = int(key) % size
        return slice(place, place + 1), 0
    taken = range(*key.indices(size))
    if not taken:
        return slice(0, 0), slice(None)
    first = min(taken[0], taken[-1])
    return slice(first, max(taken[0], taken[-1]) + 1), slice(None, None, taken.step)


def _lazy(path: str | Path, qc: Policy, without: Iterable[str] = ()) -> xr.Dataset:
    codes.check_policy(qc)
    path = Path(path)
    kind = _kind(path)
    with opened(path, kind) as file:
        tile = _describe(file, path, kind, None, qc)
    dropped = set(without)
    data = {
        name: xr.Variable(("y", "x"), indexing.LazilyIndexedArray(_LazyLayer(tile, name)), layer_attrs(layer))
        for name, layer in tile.layers.items()
        if name not in dropped
    }
    coords = {
        "y": ("y", tile.y, {"units": "m", "standard_name": "projection_y_coordinate"}),
        "x": ("x", tile.x, {"units": "m", "standard_name": "projection_x_coordinate"}),
    }
    return xr.Dataset(data, coords, tile.attrs)


def layer_attrs(layer: Layer) -> dict[str, Any]:
    """CF attributes of a decoded layer."""
    attrs = dict(VARIABLES[layer.variable].attrs)
    if layer.scale is None:
        attrs["missing_value"] = np.uint8(LAND_COVER_FILL)
    return attrs


# -- what a file is -------------------------------------------------------------------------------


def _kind(path: Path) -> Kind:
    """HDF4 or HDF5: what the name promises, else what the file begins like."""
    named = _NAME.match(path.name)
    family = codes.family_of(named["product"]) if named else None
    if family:
        return family.kind
    try:
        with path.open("rb") as file:
            return "HDF5" if file.read(4) == b"\x89HDF" or path.suffix.lower() in (".h5", ".he5", ".nc") else "HDF4"
    except OSError:
        return "HDF4"


def _describe(file: EosFile, path: Path, kind: Kind, names: Sequence[str] | None, qc: str) -> _Tile:
    """What the file is and where it lies; refuses what is not as its product has it."""
    facts = _identify(file, path)
    if facts.family.kind != kind:
        raise InputError(f"{path}: is {kind}, but {facts.product} comes as {facts.family.kind}: {_AGAIN}")
    x, y, whole = _pixels(file.text("StructMetadata.0"), facts, path)
    used = {name for layer in facts.family.layers.values() for name in (layer.data_set, layer.quality) if name}
    present = {name: found for name in sorted(used) if (found := file.shape_and_type(name))}
    layers = _layers(facts, present, names, path)
    tile = _Tile(path, kind, facts, layers, qc, x, y, whole)
    for layer in layers.values():
        _check_data_set(layer.data_set, present, (y.size, x.size), path)
        quality = tile.quality_of(layer)
        if quality and quality not in present:
            raise InputError(
                f"{path}: has no quality data set {quality!r} that qc={qc!r} needs; pass qc='none' to read it without"
            )
        if quality:
            _check_data_set(quality, present, (y.size, x.size), path)
        _check_scale(layer, file, path)
    return tile


_AGAIN = "download it again"


def _layers(facts: _Facts, present: Mapping[str, Any], names: Sequence[str] | None, path: Path) -> dict[str, Layer]:
    """The wanted layers, all of which the file has."""
    known = facts.family.layers_of(facts.product)
    found = {name: layer for name, layer in known.items() if layer.data_set in present}
    if not found:
        wanted = ", ".join(dict.fromkeys(layer.data_set for layer in known.values()))
        raise InputError(f"{path}: holds none of {facts.product}'s data sets ({wanted})")
    for name in names or ():
        if name not in found:
            raise InputError(f"{path}: has no {name!r}; {facts.product} here has {', '.join(found)}")
    return found if names is None else {name: found[name] for name in names}


def _check_data_set(name: str, present: Mapping[str, Any], shape: tuple[int, int], path: Path) -> None:
    found, dtype = present[name]
    if found != shape:
        raise InputError(f"{path}: {name} has shape {found}, its grid {shape}")
    if dtype is None:
        raise InputError(f"{path}: {name} holds no integers of one or two bytes, as its product does: {_AGAIN}")


def _check_scale(layer: Layer, file: EosFile, path: Path) -> None:
    """Files state the scale or its inverse; another one means another product version than the tables describe."""
    stated = None if layer.scale is None else file.scale(layer.data_set)
    if layer.scale is None or stated is None:
        return
    if not (np.isclose(stated, layer.scale) or np.isclose(stated, 1 / layer.scale)):
        raise InputError(f"{path}: {layer.data_set} has scale_factor {stated}, expected {layer.scale} (or its inverse)")


def _identify(file: EosFile, path: Path) -> _Facts:
    """Product, date, tile and collection: from CoreMetadata where present, else from the file's name; both must agree."""
    core = file.text("CoreMetadata.0")
    granule = _core_value(core, "LOCALGRANULEID") or file.attribute("LocalGranuleID")
    named = _NAME.match(path.name) or _NAME.search(granule)
    product = _core_value(core, "SHORTNAME") or file.attribute("ShortName") or (named["product"] if named else "")
    if not product:
        raise InputError(
            f"{path}: neither CoreMetadata nor its name say what it is; expected a name as MYD11A1.A2017161.h26v05.061.….hdf"
        )
    in_name = _NAME.match(path.name)
    if in_name and in_name["product"] != product:
        raise InputError(
            f"{path}: its metadata say {product} but its name {in_name['product']}: rename or replace the file"
        )
    family = codes.family_of(product)
    if family is None:
        raise InputError(f"{path}: {product} is not a product that is read here; supported are {SUPPORTED}")
    begin, end = (_core_value(core, f"RANGE{which}DATE") for which in ("BEGINNING", "ENDING"))
    day = _day_of(named["day"], path) if named else begin
    version = _core_value(core, "VERSIONID") or file.attribute("VersionID")
    return _Facts(
        product=product,
        family=family,
        date=day,
        days=_stated_days(begin, end, family.composite_days) or composite_days(day, family.composite_days),
        tile=(int(named["h"]), int(named["v"])) if named else None,
        collection=named["collection"] if named else {"6": "006", "61": "061"}.get(version, version),
        # genuine VIIRS files have a garbled PRODUCTIONDATETIME in CoreMetadata, and a whole one among their attributes
        production=file.attribute("ProductionTime") or _core_value(core, "PRODUCTIONDATETIME"),
    )


def _core_value(core: str, name: str) -> str:
    """The VALUE of one OBJECT of CoreMetadata (ODL text); empty if absent."""
    found = re.search(
        rf"OBJECT\s*=\s*{name}\s.*?VALUE\s*=\s*(\"[^\"]*\"|\S+).*?END_OBJECT\s*=\s*{name}", core, re.DOTALL
    )
    return found[1].strip('"') if found else ""


def _day_of(year_and_day: str, path: Path) -> str:
    try:
        return datetime.strptime(year_and_day, "%Y%j").date().isoformat()
    except ValueError:
        raise InputError(f"{path}: its name holds no calendar date (A{year_and_day}: year and day of year)") from None


def _stated_days(begin: str, end: str, length: int) -> int:
    """Days from the first to the last that the metadata state; 0 where they do not, or not sensibly."""
    try:
        days = (date.fromisoformat(end) - date.fromisoformat(begin)).days + 1
    except ValueError:
        return 0
    return days if 1 <= days <= length else 0


def composite_days(day: str, length: int) -> int:
    """Days that the composite of `length` days covers that starts on an ISO day.

    Those that are counted from 1 January end with the year; those of Aqua and VIIRS that start on 9 January run on.
    """
    if not day:
        return length
    first = date.fromisoformat(day)
    in_phase = (first - date(first.year, 1, 1)).days % length == 0
    return min(length, (date(first.year + 1, 1, 1) - first).days) if in_phase else length


def _pixels(struct: str, facts: _Facts, path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """x and y of the pixel centres, and whether the file is a whole tile."""
    grids = re.findall(r"(?<!END_)GROUP=GRID_\d+\s", struct)
    size = re.search(r"XDim=(\d+)\s+YDim=(\d+)", struct)
    number = r"([-+\d.eE]+)"
    corners = re.search(rf"UpperLeftPointMtrs=\({number},{number}\)\s+LowerRightMtrs=\({number},{number}\)", struct)
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


# -- engine ---------------------------------------------------------------------------------------


def open_lazily(path: Any, qc: Policy, drop_variables: str | Iterable[str] | None) -> xr.Dataset:
    """What an xarray engine hands over: lazy, uncached (xarray caches), without the dropped variables."""
    dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
    ds = _lazy(path, qc, dropped)
    return ds.drop_vars([name for name in dropped if name in ds.coords])


class ModisBackend(BackendEntrypoint):
    """xarray engine "modis-hdf4": `xarray.open_dataset(path, engine="modis-hdf4")` is `open_modis(path)`."""

    description = "MODIS land tiles (MxD11A1, MxD13A2, MxD16A2, MCD12Q1), HDF4-EOS"
    open_dataset_parameters: ClassVar[tuple] = ("filename_or_obj", "drop_variables", "qc")  # type: ignore[misc]

    def open_dataset(  # type: ignore[override]
        self, filename_or_obj: Any, *, drop_variables: Iterable[str] | None = None, qc: Policy = "strict"
    ) -> xr.Dataset:
        """See `open_modis`."""
        return open_lazily(filename_or_obj, qc, drop_variables)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the name is that of a MODIS land tile that is read here."""
        return names_kind(filename_or_obj, "HDF4")


def names_kind(filename_or_obj: Any, kind: Kind) -> bool:
    """Whether a name is that of a tile that is read here and comes as `kind`."""
    found = _NAME.match(Path(str(filename_or_obj)).name)
    family = codes.family_of(found["product"]) if found else None
    suffix = {"HDF4": ".hdf", "HDF5": ".h5"}.get(kind)
    return family is not None and family.kind == kind and str(filename_or_obj).endswith(str(suffix))
