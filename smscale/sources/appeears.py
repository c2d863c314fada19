"""GeoTIFF layers as AppEEARS delivers them: one file a layer and date, stored integers, any box, geographic or sinusoidal.

Names say what a layer is, as MYD11A1.061_LST_Day_1km_doy2017161_aid0001.tif; its quality words are a layer of their own
(..._QC_Day_doy...). Integers mean what they mean in the products: `smscale.sources.codes`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window
from xarray.backends import BackendArray
from xarray.core import indexing

from smscale import sinusoidal
from smscale.errors import InputError
from smscale.kernels.lookup import Coded, decode, missing
from smscale.schema import VARIABLES
from smscale.sources import codes
from smscale.sources.codes import Family, Policy
from smscale.sources.files import check
from smscale.sources.hdf_eos import Box
from smscale.sources.modis import cached, composite_days, contiguous, layer_attrs

# the date has 7 digits, or 13 where hours, minutes and seconds follow; a UTM zone may follow the area
_NAME = re.compile(
    r"(?P<product>[A-Z][A-Z0-9]+)\.(?P<collection>\d{3})_(?P<data_set>.+)_doy(?P<day>\d{7})(?:\d{6})?"
    r"_(?P<area>aid\d+)(?:_\w+)?\.tiff?",
    re.IGNORECASE,
)
#: How far two grids that are one may lie apart, in pixels.
_SAME_GRID = 1e-3

Transform = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Layer:
    """What one file is, as its name tells.

    `layer` is the variable ("lst_day"), or the data set's own name where it holds quality words ("QC_Day"); `quality` names the
    data set of quality words that a variable goes with; `date` is an ISO day, of a composite its first.
    """

    product: str
    collection: str
    family: str
    data_set: str
    layer: str
    is_quality: bool
    quality: str
    date: str
    area: str


@dataclass(frozen=True)
class _Raster:
    """Where a GeoTIFF lies and what it stores."""

    path: Path
    shape: tuple[int, int]
    transform: Transform
    crs: str
    geographic: bool


@dataclass(frozen=True)
class _Series:
    """One variable: of each date the file of its values and of its quality words; None where there is none."""

    family: str
    layer: str
    qc: str
    files: tuple[tuple[Path, Path | None] | None, ...]


def parse_layer(name: str | Path) -> Layer | None:
    """What a layer's name says; None if it is no such name, or of a layer that is not read here (angles, emissivities, ...)."""
    found = _NAME.fullmatch(Path(name).name)
    family = codes.family_of(found["product"]) if found else None
    if found is None or family is None:
        return None
    try:
        day = datetime.strptime(found["day"], "%Y%j").date().isoformat()
    except ValueError:
        return None
    product, wanted = found["product"], _plain(found["data_set"])
    facts = {
        "product": product,
        "collection": found["collection"],
        "family": family.name,
        "date": day,
        "area": found["area"],
    }
    for layer in family.layers_of(product).values():
        if _plain(layer.data_set) == wanted:
            return Layer(**facts, data_set=layer.data_set, layer=layer.name, is_quality=False, quality=layer.quality)
        if layer.quality and _plain(layer.quality) == wanted:
            return Layer(**facts, data_set=layer.quality, layer=layer.quality, is_quality=True, quality="")
    return None


def _plain(data_set: str) -> str:
    """A data set's name as file names write it: AppEEARS puts "_" for blanks, and before a digit."""
    return data_set.replace(" ", "_").lstrip("_").lower()


def open_appeears(
    source: str | Path | Iterable[str | Path], qc: Policy = "strict", product: str | None = None
) -> xr.Dataset:
    """Layers of one product over all their dates, decoded; values are read when they are asked for.

    Parameters
    ----------
    source : a folder (with what lies below it), one file, or files; in a folder layers that are not read here are passed over
    qc : which quality bits are accepted (see `smscale.sources.codes`); other than with "none" each layer needs the quality
        layer that belongs to it, of every date
    product : as "MYD11A1", where the source holds several

    Returns
    -------
    Dataset (time, lat, lon), or (time, y, x) where the layers are projected, north first, with the variables of `open_modis`;
    time is the (first) day, a layer that lacks a date is missing there and says so in its attribute missing_dates.
    Attributes product, sensor, collection, composite_days (of each date, along time), crs, transform, qc.

    Raises
    ------
    InputError
        if there is no layer that is read here, a quality layer lacks, files are broken or twice there, or products,
        collections, areas or grids are mixed.
    """
    codes.check_policy(qc)
    found = _of_one_product(_collect(source), product)
    family = codes.FAMILIES[next(iter(found.values())).family]
    series = _series(found, family, qc)
    grid = _common_grid(found)
    days = sorted({facts.date for facts in found.values()})
    dims = ("time", "lat", "lon") if grid.geographic else ("time", "y", "x")
    data = {
        name: xr.Variable(
            dims, cached(indexing.LazilyIndexedArray(_LazySeries(one, grid))), _series_attrs(family, one, days)
        )
        for name, one in series.items()
    }
    facts = next(iter(found.values()))
    return xr.Dataset(data, _coords(grid, days, family, dims), _attrs(facts, family, grid, qc))


def read_coded_layers(
    paths: Mapping[str, str | Path], qc: Policy = "strict"
) -> tuple[dict[str, Coded], Transform, str, dict[str, Any]]:
    """Layers of one product and date as stored, with the tables that decode them.

    Parameters
    ----------
    paths : file of each layer, by `Layer.layer`: {"lst_day": ..., "QC_Day": ...}
    qc : as `open_appeears`

    Returns
    -------
    layers : by variable; layers of one quality data set share its array
    transform : (a, b, c, d, e, f): x = a column + b row + c, y = d column + e row + f of a pixel's upper left corner
    crs : "EPSG:4326", or a PROJ text
    attrs : product, sensor, collection, date, composite_days, qc, ...
    """
    codes.check_policy(qc)
    found = _of_one_product(_collect(paths.values()), None)
    facts = next(iter(found.values()))
    for name, path in paths.items():
        if found[Path(path)].layer != name:
            raise InputError(f"{path}: is {found[Path(path)].layer!r} by its name, not {name!r}")
        if found[Path(path)].date != facts.date:
            raise InputError(f"{path}: is of {found[Path(path)].date}, other layers of {facts.date}; give one date")
    family = codes.FAMILIES[facts.family]
    series = _series(found, family, qc)
    grid = _common_grid(found)
    words: dict[Path, NDArray] = {}
    layers = {name: _read(one, 0, None, words) for name, one in series.items()}
    days = composite_days(facts.date, family.composite_days)
    attrs = _attrs(facts, family, grid, qc) | {"date": facts.date, "composite_days": days}
    return {name: coded for name, coded in layers.items() if coded}, grid.transform, grid.crs, attrs


def lattice_of(path: str | Path) -> tuple[Transform, str, tuple[int, int]]:
    """Transform, projection and shape of one layer's pixels, from its header."""
    layer = parse_layer(Path(path).name)
    if layer is None:
        raise InputError(f"{path}: is no AppEEARS layer that is read here")
    header = _header(Path(path), layer)
    return header.transform, header.crs, header.shape


# -- which files -----------------------------------------------------------------------------------


def _collect(source: str | Path | Iterable[str | Path]) -> dict[Path, Layer]:
    """The layers of a folder, file or files. Those that are named one by one must be layers that are read here."""
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        files = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in (".tif", ".tiff"))
        found = {path: facts for path in files if (facts := parse_layer(path))}
        if not found:
            raise InputError(
                f"{source}: holds no AppEEARS layer that is read here ({len(files)} GeoTIFFs); expected names as "
                "MYD11A1.061_LST_Day_1km_doy2017161_aid0001.tif"
            )
        return found
    named = [Path(source)] if isinstance(source, (str, Path)) else [Path(p) for p in source]
    if not named:
        raise InputError("no AppEEARS layers were given; give a folder or files")
    found = {}
    for path in named:
        facts = parse_layer(path)
        if facts is None:
            check(path, "TIFF")
            raise InputError(
                f"{path}: its name is not that of an AppEEARS layer that is read here, as "
                "MYD11A1.061_LST_Day_1km_doy2017161_aid0001.tif"
            )
        found[path] = facts
    return found


def _of_one_product(found: Mapping[Path, Layer], product: str | None) -> dict[Path, Layer]:
    """The layers of one product, collection and area, none of them twice."""
    products = sorted({facts.product for facts in found.values()})
    if product is None and len(products) > 1:
        raise InputError(f"AppEEARS layers of {', '.join(products)} are mixed: say which one to read with product=")
    kept = {path: facts for path, facts in found.items() if product in (None, facts.product)}
    if not kept:
        raise InputError(f"no AppEEARS layer of {product} is there, only of {', '.join(products)}")
    for what in ("collection", "area"):
        mixed = {getattr(facts, what): path for path, facts in kept.items()}
        if len(mixed) > 1:
            some = ", ".join(f"{value} ({path.name})" for value, path in sorted(mixed.items()))
            raise InputError(f"AppEEARS layers of more than one {what} are mixed: {some}; keep one")
    seen: dict[tuple[str, str], Path] = {}
    for path, facts in kept.items():
        if (first := seen.setdefault((facts.layer, facts.date), path)) != path:
            raise InputError(f"{path}: is {facts.layer} of {facts.date} again, as {first}; remove one")
    return kept


def _series(found: Mapping[Path, Layer], family: Family, qc: str) -> dict[str, _Series]:
    """Each variable's files by date, with their quality layers."""
    by_layer: dict[str, dict[str, Path]] = defaultdict(dict)
    for file, facts in found.items():
        by_layer[facts.layer][facts.date] = file
    days = sorted({facts.date for facts in found.values()})
    names = [name for name in family.layers if name in by_layer]
    if not names:
        raise InputError(f"{next(iter(found))}: only layers of quality words are there, none with values")
    out = {}
    for name in names:
        quality = family.layers[name].quality if family.accept[qc] else ""
        files: list[tuple[Path, Path | None] | None] = []
        for day in days:
            path = by_layer[name].get(day)
            words = by_layer[quality].get(day) if quality else None
            if path and quality and words is None:
                raise InputError(
                    f"{path}: lacks its quality layer {quality!r} of {day} beside it, which qc={qc!r} needs: "
                    "order it from AppEEARS too, or pass qc='none' to read it without"
                )
            files.append((path, words) if path else None)
        out[name] = _Series(family.name, name, qc, tuple(files))
    return out


# -- grids -----------------------------------------------------------------------------------------


def _common_grid(found: Mapping[Path, Layer]) -> _Raster:
    """The grid that all files lie on; reads their headers."""
    first: _Raster | None = None
    for path, facts in found.items():
        raster = _header(path, facts)
        first = first or raster
        apart = np.abs(np.subtract(raster.transform, first.transform)).max() / abs(first.transform[0])
        if raster.shape != first.shape or raster.crs != first.crs or apart > _SAME_GRID:
            raise InputError(
                f"{path}: lies on another grid ({_show(raster)}) than {first.path.name} ({_show(first)}): "
                "layers of one request, area and projection belong together"
            )
    assert first is not None
    return first


def _header(path: Path, facts: Layer) -> _Raster:
    check(path, "TIFF")
    try:
        with rasterio.open(path) as file:
            a, b, c, d, e, f = tuple(file.transform)[:6]
            if file.count != 1 or np.dtype(file.dtypes[0]).kind not in "iu" or np.dtype(file.dtypes[0]).itemsize > 2:
                raise InputError(
                    f"{path}: holds {file.count} bands of {file.dtypes[0]}, expected one of stored integers (8 or 16 bits): "
                    "take the layer as AppEEARS delivers it, not scaled"
                )
            if file.crs is None or b or d or a <= 0 or e >= 0:
                raise InputError(f"{path}: lacks a projection, or its rows do not run from north to south")
            _check_scale(path, facts, file.scales[0])
            return _Raster(path, file.shape, (a, b, c, d, e, f), _crs_text(file.crs), file.crs.is_geographic)
    except RasterioError as error:
        raise InputError(f"{path}: cannot be read as a GeoTIFF ({_one_line(error)}): download it again") from error


def _crs_text(crs: CRS) -> str:
    """A projection as text: MODIS' own as `sinusoidal.CRS` writes it, whatever the file calls its sphere."""
    facts = crs.to_dict()
    radius = facts.get("R", facts.get("a", 0))
    if facts.get("proj") == "sinu" and abs(radius - sinusoidal.RADIUS) < 0.01 and not facts.get("lon_0"):
        return sinusoidal.CRS
    return crs.to_string() if crs.to_epsg() else crs.to_proj4()


def _check_scale(path: Path, facts: Layer, stated: float) -> None:
    """A scale that the file states must be the product's: the tables apply it."""
    scale = None if facts.is_quality else codes.FAMILIES[facts.family].layers[facts.layer].scale
    if scale and stated != 1 and not np.isclose(stated, scale) and not np.isclose(stated, 1 / scale):
        raise InputError(f"{path}: states the scale {stated}, expected {scale} (or its inverse)")


def _show(raster: _Raster) -> str:
    a, _, c, _, e, f = raster.transform
    return f"{raster.shape[0]} x {raster.shape[1]} from {c:.6g}, {f:.6g} by {a:.6g}, {-e:.6g}, {raster.crs}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


# -- values ----------------------------------------------------------------------------------------


def _read(series: _Series, step: int, box: Box | None, words: dict[Path, NDArray] | None = None) -> Coded | None:
    """One date of a variable with its tables; `words` keeps quality layers that others need too."""
    files = series.files[step]
    if files is None:
        return None
    family = codes.FAMILIES[series.family]
    quality = None
    if files[1] is not None:
        kept = words if words is not None else {}
        if files[1] not in kept:
            kept[files[1]] = _pixels(files[1], box)
        quality = kept[files[1]]
    return codes.code(family.layers[series.layer], family, _pixels(files[0], box), quality, series.qc)


def _pixels(path: Path, box: Box | None) -> NDArray:
    check(path, "TIFF")
    try:
        with rasterio.open(path) as file:
            return file.read(1, window=None if box is None else Window.from_slices(*box))
    except RasterioError as error:
        raise InputError(f"{path}: cannot be read as a GeoTIFF ({_one_line(error)}): download it again") from error


class _LazySeries(BackendArray):
    """One variable over its dates, read and decoded where it is indexed."""

    def __init__(self, series: _Series, grid: _Raster) -> None:
        self._series = series
        self.shape = (len(series.files), *grid.shape)
        self.dtype = codes.FAMILIES[series.family].layers[series.layer].dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._values)

    def _values(self, key: tuple[int | slice, ...]) -> NDArray:
        (rows, inner_rows), (columns, inner_columns) = (
            contiguous(k, n) for k, n in zip(key[1:], self.shape[1:], strict=True)
        )
        steps = np.atleast_1d(np.arange(self.shape[0])[key[0]])
        out = np.empty((steps.size, rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        for i, step in enumerate(steps.tolist()):
            coded = _read(self._series, step, (rows, columns)) if out[i].size else None
            out[i] = _missing_of(self.dtype) if coded is None else decode(coded)
        inner = out[:, inner_rows, inner_columns]
        return inner if isinstance(key[0], slice) else inner[0]


def _missing_of(dtype: np.dtype) -> float | int:
    nothing = np.empty(0, np.uint8)
    return missing(Coded(nothing, np.empty(0, dtype)))


# -- labels ----------------------------------------------------------------------------------------


def _series_attrs(family: Family, series: _Series, days: list[str]) -> dict[str, Any]:
    lacking = [day for day, files in zip(days, series.files, strict=True) if files is None]
    return layer_attrs(family.layers[series.layer]) | ({"missing_dates": lacking} if lacking else {})


def _coords(grid: _Raster, days: list[str], family: Family, dims: tuple[str, str, str]) -> dict[str, Any]:
    a, _, c, _, e, f = grid.transform
    rows, columns = (np.arange(n, dtype=np.float64) + 0.5 for n in grid.shape)
    if grid.geographic:
        attrs = [VARIABLES["latitude"].attrs, VARIABLES["longitude"].attrs]
    else:
        attrs = [{"units": "m", "standard_name": f"projection_{axis}_coordinate"} for axis in "yx"]
    lengths = np.array([composite_days(day, family.composite_days) for day in days], np.int32)
    return {
        "time": ("time", np.array(days, "datetime64[ns]"), {"long_name": "day, of a composite its first"}),
        "composite_days": ("time", lengths, {"long_name": "days that a composite covers", "units": "day"}),
        dims[1]: (dims[1], f + e * rows, attrs[0]),
        dims[2]: (dims[2], c + a * columns, attrs[1]),
    }


def _attrs(facts: Layer, family: Family, grid: _Raster, qc: str) -> dict[str, Any]:
    return {
        "title": family.title,
        "product": facts.product,
        "family": family.name,
        **codes.sensor_attrs(facts.product),
        "collection": facts.collection,
        "area": facts.area,
        "crs": grid.crs,
        "transform": list(grid.transform),
        "qc": qc,
    }
