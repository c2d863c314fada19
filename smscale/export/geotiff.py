"""GeoTIFFs, one a step: cloud-optimised, tiled, with overviews, deflated; the status as a second file."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import xarray as xr
from rasterio.errors import RasterioError
from tqdm.auto import tqdm

from smscale import __version__
from smscale.blocks import spans
from smscale.export.files import Exported, claimed, scratch, whole
from smscale.export.layer import Kind, Layer, Step, iso, transform

#: Pixels along a tile's side, and rows that are in memory at once in multiples of it.
TILE = 512
#: Values that are in memory at once while one file is written.
VALUES_AT_ONCE = 16 * 1024 * 1024
#: Files that are written at the same time: GDAL compresses without the interpreter.
THREADS = 2
FINGERPRINT = "SMSCALE_FINGERPRINT"
#: How an overview's pixel is made of finer ones. Flags and directions have no mean.
RESAMPLING: dict[Kind, str] = {"continuous": "AVERAGE", "class": "MODE", "direction": "NEAREST", "flags": "NEAREST"}


def write_geotiffs(layer: Layer, folder: Path, progress: bool = False) -> Exported:
    """Write TITLE_NAME_STEP.tif for each step, and TITLE_NAME_status_STEP.tif where the layer has a status.

    Files are COGs in the grid's own CRS, north up, pixels are areas; missing is NaN (or the layer's fill). Tags hold time,
    local date, overpass, unit. A file that is there already, of the same data, is skipped.
    """
    jobs = list(_jobs(layer, folder))
    written, skipped = [], 0
    with (
        claimed(folder, layer.stem),
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(jobs), desc=f"export {layer.name}", unit="file", disable=not progress) as bar,
    ):
        for path, new in pool.map(lambda job: _write(layer, *job), jobs):
            written += [path] if new else []
            skipped += not new
            bar.update()
    return Exported(folder, tuple(written), skipped)


def _jobs(layer: Layer, folder: Path) -> Iterator[tuple[Step, Path, bool]]:
    """Every file: its step, its path, whether it is the status."""
    for step in layer.steps:
        label = f"_{step.label}" if step.label else ""
        yield step, folder / f"{layer.stem}{label}.tif", False
        if layer.status is not None:
            yield step, folder / f"{layer.stem}_status{label}.tif", True


def _write(layer: Layer, step: Step, path: Path, is_status: bool) -> tuple[Path, bool]:
    """Write one file unless it is there; whether it was written."""
    version = layer.version([step], "geotiff", is_status)
    if _is_there(path, version):
        return path, False
    data = layer.status if is_status and layer.status is not None else layer.values
    fill = None if is_status else layer.fill
    kind: Kind = "flags" if is_status else layer.kind
    rows, cols = layer.grid.shape
    profile = {
        "driver": "GTiff",
        "width": cols,
        "height": rows,
        "count": 1,
        "dtype": data.dtype.name,
        "crs": layer.grid.crs,
        "transform": transform(layer.grid),
        "nodata": fill,
        "bigtiff": "if_safer",
        **({"tiled": True, "blockxsize": TILE, "blockysize": TILE} if min(rows, cols) >= TILE else {}),
    }
    with whole(path) as temporary, scratch(path, "plain") as plain:  # a COG is made of a whole raster
        with rasterio.open(plain, "w", **profile) as raster:
            band = max(TILE, VALUES_AT_ONCE // cols // TILE * TILE)
            for part in spans(rows, band):
                raster.write(layer.rows(step, part, is_status), 1, window=((part.start, part.stop), (0, cols)))
            raster.set_band_description(1, _description(data, step))
            raster.units = (_unit(data),)
            raster.update_tags(**_tags(layer, data, step, version))
            raster.update_tags(1, **_band_tags(data))
        rasterio.shutil.copy(plain, temporary, **_creation(kind))
    return path, True


def _creation(kind: Kind) -> dict[str, Any]:
    """Creation options of GDAL's COG driver."""
    return {
        "driver": "COG",
        "blocksize": TILE,
        "compress": "DEFLATE",
        "predictor": "YES",
        "overviews": "AUTO",
        "overview_resampling": RESAMPLING[kind],
        "bigtiff": "IF_SAFER",
    }


def _description(data: xr.DataArray, step: Step) -> str:
    """Of a band: what it is, and when."""
    about = str(data.attrs.get("long_name") or data.name)
    return f"{about}, {step.label.replace('_', ' ')}" if step.label else about


def _unit(data: xr.DataArray) -> str:
    unit = str(data.attrs.get("units", ""))
    return "" if unit == "1" else unit


def _tags(layer: Layer, data: xr.DataArray, step: Step, version: str) -> dict[str, str]:
    """Tags of a file: when, of what, by what."""
    tags = {
        "VARIABLE": str(data.name),
        "LONG_NAME": str(data.attrs.get("long_name", data.name)),
        "UNITS": str(data.attrs.get("units", "1")),
        "TITLE": layer.title,
        "TIFFTAG_SOFTWARE": f"smscale {__version__}",
        FINGERPRINT: version,
    }
    if not np.isnat(step.time):
        tags |= {"TIME": iso(step.time), "LOCAL_DATE": str(step.date)}
        tags["TIFFTAG_DATETIME"] = iso(step.time)[:19].replace("-", ":").replace("T", " ")
    if step.overpass:
        tags["OVERPASS"] = step.overpass
    if step.bounds:
        tags |= {"TIME_START": iso(step.bounds[0]), "TIME_END": iso(step.bounds[1])}
    return tags


def _band_tags(data: xr.DataArray) -> dict[str, str]:
    """Tags of a band: CF's names of flags, the valid range."""
    names = ("standard_name", "valid_min", "valid_max", "flag_masks", "flag_values", "flag_meanings", "comment")
    return {name: _text(data.attrs[name]) for name in names if name in data.attrs}


def _text(value: Any) -> str:
    return " ".join(map(str, np.asarray(value).tolist())) if np.ndim(value) else str(value)


def _is_there(path: Path, version: str) -> bool:
    """Whether a file is there, whole, of the same data."""
    try:
        with rasterio.open(path) as raster:
            return raster.tags().get(FINGERPRINT) == version
    except RasterioError:
        return False
