"""DEM tiles as SRTM's: 1 x 1 degree GeoTIFF at 3 arc-seconds, 1201 x 1201 values whose centres lie on the degree lines."""

from __future__ import annotations

import os

import numpy as np
import rasterio
from numpy.typing import ArrayLike
from rasterio.transform import Affine

from smscale.errors import InputError
from smscale.grid import Floats
from smscale.places import Place, place
from smscale.simulate.atomic import replacing

#: Values along a tile's side; neighbours share the outer row or column.
SIZE = 1201
STEP_DEG = 1 / 1200
NODATA = -32767


def dem_name(west: int, south: int) -> str:
    """File name of the tile whose lower left value lies on (west, south), as N30E101.tif."""
    return f"{'S' if south < 0 else 'N'}{abs(south):02d}{'W' if west < 0 else 'E'}{abs(west):03d}.tif"


def tile_centres(west: int, south: int) -> tuple[Floats, Floats]:
    """Longitudes (1201,) ascending and latitudes (1201,) descending of a tile's values, degrees.

    They are integers over 1200, so that neighbouring tiles agree on their shared edge to the last bit.
    """
    steps = np.arange(SIZE)
    return (west * 1200 + steps) / 1200, ((south + 1) * 1200 - steps) / 1200


def dem_tiles(west: float, south: float, east: float, north: float) -> list[tuple[int, int]]:
    """(west, south) of every tile that a box touches, from west to east and south to north."""
    return [
        (w, s)
        for w in range(int(np.floor(west)), max(int(np.ceil(east)), int(np.floor(west)) + 1))
        for s in range(int(np.floor(south)), max(int(np.ceil(north)), int(np.floor(south)) + 1))
    ]


def write_dem_tile(path: str | os.PathLike[str] | Place, elevation: ArrayLike, west: int, south: int) -> Place:
    """Write one tile, whole or not at all; the same arguments give the same bytes.

    Parameters
    ----------
    path : of the file; its last part is what `dem_name` says
    elevation : (1201, 1201), m, row 0 north, values at `tile_centres`; NaN where void
    west, south : degrees, of the tile's lower left value
    """
    z = np.asarray(elevation, dtype=np.float64)
    if z.shape != (SIZE, SIZE):
        raise InputError(f"a DEM tile holds {SIZE} x {SIZE} values; got {z.shape}")
    stored = np.where(np.isnan(z), NODATA, np.clip(np.rint(np.nan_to_num(z)), -32766, 32767)).astype(np.int16)
    origin = Affine(STEP_DEG, 0, west - STEP_DEG / 2, 0, -STEP_DEG, south + 1 + STEP_DEG / 2)
    with (
        replacing(path) as temporary,
        rasterio.open(
            temporary, "w", driver="GTiff", width=SIZE, height=SIZE, count=1, dtype="int16", crs="EPSG:4326",
            transform=origin, nodata=NODATA, compress="deflate", predictor=2, tiled=True, blockxsize=256, blockysize=256,
        ) as file,
    ):  # fmt: skip
        file.write(stored, 1)
        file.update_tags(1, units="m")
    return place(path)
