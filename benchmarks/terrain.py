"""Slope and aspect of a 1 degree tile of 1 second, alone and reduced to 1 km, against xarray-spatial, gdaldem and Horn in NumPy.

Everything runs on one thread: a dask worker has one, and none of these kernels starts more. gdaldem reads and writes its files
(uncompressed, from the page cache), as whoever uses it must.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from benchmarks.timing import medians, missing, report
from smscale.cube import static_layers
from smscale.features.terrain import terrain
from smscale.features.upscale import upscale
from smscale.grid import Grid, coords_of, grid_of

SIZE = 3601
REPEATS = 15


def tile() -> xr.DataArray:
    """(3601, 3601) float32 metres: a sum of random steps, with slopes of some degrees."""
    rng = np.random.default_rng(0)
    rough = rng.normal(size=(SIZE, SIZE)).cumsum(axis=0).cumsum(axis=1)
    lat, lon = 31 - np.arange(SIZE) / 3600, 102 + np.arange(SIZE) / 3600
    dem = xr.DataArray(np.zeros((SIZE, SIZE)), {"lat": lat, "lon": lon}, ("lat", "lon"))
    z = (2000 + 0.05 * rough).astype(np.float32)
    return xr.DataArray(z, coords_of(grid_of(dem)), ("lat", "lon"), "elevation")


def numpy_horn(z: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Horn's differences with NumPy in float32."""
    a, b, c = z[:-2, :-2], z[:-2, 1:-1], z[:-2, 2:]
    d, f = z[1:-1, :-2], z[1:-1, 2:]
    g, h, i = z[2:, :-2], z[2:, 1:-1], z[2:, 2:]
    scale = np.float32(1 / (8 * step))
    p = ((c + 2 * f + i) - (a + 2 * d + g)) * scale
    q = ((g + 2 * h + i) - (a + 2 * b + c)) * scale
    return np.rad2deg(np.arctan(np.hypot(p, q))), np.rad2deg(np.arctan2(-p, q)) % 360


def planar(dem: xr.DataArray, step: float = 30.0) -> xr.DataArray:
    """The same elevations on a plane in metres."""
    axes = {"y": -step * np.arange(SIZE), "x": step * np.arange(SIZE)}
    return xr.DataArray(dem.values, axes, ("y", "x"), "elevation", {"res": (step, step)})


def gdaldem_run(dem: xr.DataArray, folder: Path) -> Callable[[], object]:
    """Both layers by gdaldem, files in and files out."""
    import rasterio

    path = folder / "dem.tif"
    profile = {"height": SIZE, "width": SIZE, "count": 1, "dtype": "float32", "crs": "EPSG:32648"}
    where = rasterio.transform.Affine(30, 0, 4e5, 0, -30, 3.4e6)
    with rasterio.open(path, "w", driver="GTiff", transform=where, **profile) as file:
        file.write(dem.values, 1)
    commands = [["gdaldem", what, "-q", "-alg", "Horn", path, folder / f"{what}.tif"] for what in ("slope", "aspect")]
    return lambda: [subprocess.run(command, check=True, capture_output=True) for command in commands]


def main() -> None:
    """Time and print."""
    dem = tile()
    plane = planar(dem)
    fine = Grid.latlon(102, 30, 103, 31)
    fused, ours = "smscale fused to 0.01 degree means", "smscale slope and aspect"
    absent = missing("xrspatial")
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[], object]] = {
            ours: lambda: terrain(plane),
            "smscale the same on the ellipsoid": lambda: terrain(dem),
            fused: lambda: static_layers(dem, fine),
            "numpy Horn, planar": lambda: numpy_horn(dem.values, 30.0),
        }
        if not absent:
            import xrspatial

            runs["xarray-spatial slope and aspect, planar"] = lambda: (xrspatial.slope(plane), xrspatial.aspect(plane))
        seconds = medians(runs, REPEATS)
        seconds |= medians({"smscale terrain, then upscale": lambda: upscale(terrain(dem), fine)}, REPEATS)
        # By itself: its files push the others' memory out of the caches.
        if shutil.which("gdaldem"):
            seconds |= medians({"gdaldem slope and aspect, with files": gdaldem_run(dem, Path(folder))}, 5)
        else:
            absent.append("gdaldem")
    alone = {name: value for name, value in seconds.items() if name not in (fused, "smscale terrain, then upscale")}
    report(f"Slope and aspect of {SIZE} x {SIZE} float32, one thread", alone, ours, 3 * dem.nbytes, absent)
    reduced = {name: seconds[name] for name in (fused, "smscale terrain, then upscale", ours)}
    report(f"Terrain of {SIZE} x {SIZE} reduced to 1 km, one thread", reduced, fused, dem.nbytes, [])


if __name__ == "__main__":
    main()
