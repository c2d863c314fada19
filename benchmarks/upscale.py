"""Fine fields to EASE-2 36 km cells, 30 % missing, against flox, xarray-regrid and a bincount."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import xarray as xr

from benchmarks.timing import medians, missing, report
from smscale.features.upscale import upscale
from smscale.grid import Grid, coords_of
from smscale.kernels import overlap

SLICES = 60
FINE = Grid.latlon(97, 26, 109.5, 35)
COARSE = Grid.ease2(36, 97, 26, 109.5, 35)


def field() -> xr.DataArray:
    """(60, 900, 1250) float32 with 30 % NaN: a quarter of the year that DESIGN's figure is for."""
    rng = np.random.default_rng(0)
    values = rng.random((SLICES, *FINE.shape), dtype=np.float32)
    values[rng.random(values.shape, dtype=np.float32) < 0.3] = np.nan
    return xr.DataArray(values, coords_of(FINE), ("time", "lat", "lon"), "lst")


def labels() -> np.ndarray:
    """Coarse cell of each fine cell's centre: nearest-cell means, as the peers without area weights compute."""
    row, col = COARSE.index(FINE.lon[None, :], FINE.lat[:, None])
    return row * COARSE.shape[1] + col


def bincount(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Means by label with NumPy alone."""
    size = COARSE.shape[0] * COARSE.shape[1]
    out = np.empty((values.shape[0], size))
    for i, plane in enumerate(values):
        valid = np.isfinite(plane)
        at = cells[valid]
        with np.errstate(invalid="ignore"):
            out[i] = np.bincount(at, plane[valid], size) / np.bincount(at, minlength=size)
    return out


def main() -> None:
    """Time and print."""
    data = field()
    cells = labels()
    part = overlap.overlap_of(*FINE.overlap(COARSE))
    runs: dict[str, Callable[[], object]] = {
        "smscale upscale, exact area weights": lambda: upscale(data, COARSE),
        "smscale kernel alone": lambda: overlap.mean_state(data.values, part),
        "numpy bincount, nearest cell": lambda: bincount(data.values, cells),
    }
    if find_spec("flox"):
        import flox

        engine = "numbagg" if find_spec("numbagg") else "flox"
        runs[f"flox ({engine}), nearest cell"] = lambda: flox.groupby_reduce(
            data.values, cells, func="nanmean", engine=engine
        )
    if find_spec("xarray_regrid"):
        import xarray_regrid  # noqa: F401

        fine = data.rename(lat="latitude", lon="longitude")
        target = xr.Dataset(coords={"latitude": COARSE.lat, "longitude": COARSE.lon})
        runs["xarray-regrid conservative"] = lambda: fine.regrid.conservative(
            target, latitude_coord="latitude", skipna=True
        )
    moved = data.nbytes + 2 * SLICES * COARSE.shape[0] * COARSE.shape[1] * 4
    ours = "smscale upscale, exact area weights"
    title = f"Upscaling {data.shape} float32, 30 % NaN, to {COARSE.shape} cells of 36 km"
    report(title, medians(runs), ours, moved, missing("flox", "numbagg", "xarray_regrid"))


if __name__ == "__main__":
    main()
