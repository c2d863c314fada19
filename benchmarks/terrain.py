"""Slope and aspect of a 1 degree tile of 1 second, against xarray-spatial and Horn in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import xarray as xr

from benchmarks.timing import medians, missing, report
from smscale.cube import static_layers
from smscale.features.terrain import terrain
from smscale.grid import Grid, coords_of, grid_of

SIZE = 3601


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


def main() -> None:
    """Time and print."""
    dem = tile()
    fine = Grid.latlon(102, 30, 103, 31)
    runs: dict[str, Callable[[], object]] = {
        "smscale terrain": lambda: terrain(dem),
        "smscale terrain, then 0.01 degree means": lambda: static_layers(dem, fine),
        "numpy Horn": lambda: numpy_horn(dem.values, 30.0),
    }
    if find_spec("xrspatial"):
        import xrspatial

        plane = xr.DataArray(dem.values, {"y": -30.0 * np.arange(SIZE), "x": 30.0 * np.arange(SIZE)}, ("y", "x"))
        plane.attrs["res"] = (30.0, 30.0)
        runs["xarray-spatial slope and aspect, planar"] = lambda: (xrspatial.slope(plane), xrspatial.aspect(plane))
    title = f"Slope and aspect of {SIZE} x {SIZE} float32"
    report(title, medians(runs), "smscale terrain", 3 * dem.nbytes, missing("xrspatial"))


if __name__ == "__main__":
    main()
