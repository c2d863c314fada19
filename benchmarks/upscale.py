"""Fine fields to EASE-2 36 km cells, 30 % missing: against flox, xarray-regrid and a bincount, and against reading the store.

Only smscale and xarray-regrid weight by area; flox and the bincount give each fine cell to the coarse cell of its centre. Plain
arrays are one thread for all; chunked ones have two threads of dask's threaded scheduler, smscale's one thread per worker.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from benchmarks.timing import medians, missing, report
from smscale import store
from smscale.features.upscale import upscale
from smscale.grid import Grid, coords_of
from smscale.kernels import overlap

SLICES = 240
FINE = Grid.latlon(97, 26, 109.5, 35)
COARSE = Grid.ease2(36, 97, 26, 109.5, 35)
#: Steps of one dask chunk; cells of a Zarr chunk and of a shard, as the Sichuan recipes have them.
STEPS = 30
CHUNKS = {"time": 1, "lat": 100, "lon": 100}
SHARDS = {"time": 8, "lat": 300, "lon": 300}
THREADS = 2
#: Bytes that must be read and written at least.
MOVED = 4 * SLICES * (FINE.shape[0] * FINE.shape[1] + 2 * COARSE.shape[0] * COARSE.shape[1])
#: xarray-regrid without opt_einsum takes minutes for what it does in seconds.
PEERS = ("flox", "numbagg", "xarray_regrid", "opt_einsum")


def field() -> xr.DataArray:
    """(240, 900, 1250) float32 with 30 % NaN, scattered: the worst case for a branch."""
    rng = np.random.default_rng(0)
    values = np.empty((SLICES, *FINE.shape), dtype=np.float32)
    for plane in values:
        plane[:] = rng.random(FINE.shape, dtype=np.float32)
        plane[rng.random(FINE.shape, dtype=np.float32) < 0.3] = np.nan
    return xr.DataArray(values, coords_of(FINE), ("time", "lat", "lon"), "lst")


def cloudy_field() -> xr.DataArray:
    """The same size, as MYD11A1 is: in steps of 0.02 K, and missing in clouds of 25 cells; it is compressed as such fields are."""
    rng = np.random.default_rng(0)
    values = np.empty((SLICES, *FINE.shape), dtype=np.float32)
    block = np.ones((25, 25), dtype=np.float32)
    for plane in values:
        warm = np.kron(rng.normal(295, 5, (36, 50)).astype(np.float32), block)
        plane[:] = np.round((warm + rng.normal(0, 0.3, FINE.shape)) * 50) / 50
        plane[np.kron(rng.random((36, 50)) < 0.3, block) > 0] = np.nan
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


def peers(data: xr.DataArray) -> dict[str, Callable[[], Any]]:
    """What flox and xarray-regrid do with the same array, lazily where it is chunked."""
    runs: dict[str, Callable[[], Any]] = {}
    cells = labels()
    expected = np.arange(COARSE.shape[0] * COARSE.shape[1])
    if find_spec("flox"):
        import flox

        engine = "numbagg" if find_spec("numbagg") else "flox"
        runs[f"flox ({engine}), nearest cell"] = lambda: flox.groupby_reduce(
            data.data, cells, func="nanmean", engine=engine, expected_groups=expected
        )[0]
    if find_spec("xarray_regrid") and find_spec("opt_einsum"):
        import xarray_regrid  # noqa: F401

        fine = data.rename(lat="latitude", lon="longitude")
        target = xr.Dataset(coords={"latitude": COARSE.lat, "longitude": COARSE.lon})
        runs["xarray-regrid conservative"] = lambda: fine.regrid.conservative(
            target, latitude_coord="latitude", skipna=True
        )
    return runs


def computed(make: Callable[[], Any]) -> Callable[[], object]:
    """Make something lazy and compute it on two threads."""
    return lambda: dask.compute(make(), scheduler="threads", num_workers=THREADS)


def laid_out(folder: str, data: xr.DataArray) -> Callable[[], xr.DataArray]:
    """Write a field as a run lays its cube out; what opens it with one dask chunk a shard comes back."""
    url = Path(folder) / "cube.zarr"
    template = xr.Dataset({"lst": (data.dims, store.empty(data.shape, np.float32))}, data.coords)
    store.create(url, "fine", template, CHUNKS, SHARDS)
    for start in range(0, SLICES, SHARDS["time"]):
        part = slice(start, start + SHARDS["time"])
        store.write(url, "fine", "lst", (part, slice(0, FINE.shape[0]), slice(0, FINE.shape[1])), data.values[part])
    store.publish(url, "fine")
    return lambda: xr.open_zarr(url, group="fine", consolidated=False, chunks=SHARDS)["lst"]


def read_alone(data: xr.DataArray) -> Any:
    """A lazy count of bytes that reads every chunk and keeps none."""
    sizes = [dask.delayed(np.size)(chunk) for chunk in data.data.to_delayed().ravel()]
    return dask.delayed(sum)(sizes)


def in_memory() -> None:
    """Plain arrays, one thread; then chunked ones, two."""
    data = field()
    lazy = data.chunk(time=STEPS)
    part = overlap.overlap_of(*FINE.overlap(COARSE))
    cells = labels()
    ours = "smscale upscale, exact area weights"
    what = f"{data.shape} float32, 30 % NaN, to {COARSE.shape} cells of 36 km"
    plain = {
        ours: lambda: upscale(data, COARSE),
        "smscale kernel alone": lambda: overlap.mean_state(data.values, part),
        "numpy sum of the values": lambda: data.values.sum(),
        "numpy bincount, nearest cell": lambda: bincount(data.values, cells),
    }
    report(f"Upscaling {what}: one thread", medians(plain | peers(data)), ours, MOVED, missing(*PEERS))
    chunked = {ours: lambda: upscale(lazy, COARSE)} | peers(lazy)
    seconds = medians({name: computed(make) for name, make in chunked.items()})
    report(f"Upscaling {what}: {THREADS} threads, chunks of {STEPS} steps", seconds, ours, MOVED, missing(*PEERS))


def from_store() -> None:
    """A store read, and read and upscaled."""
    with tempfile.TemporaryDirectory() as folder:
        opened = laid_out(folder, cloudy_field())
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        runs = {
            "reading the store alone": computed(lambda: read_alone(opened())),
            "open and upscale": computed(lambda: upscale(opened(), COARSE)),
        }
        title = f"From Zarr, {stored / 1e6:.0f} MB in shards of {tuple(SHARDS.values())}: {THREADS} threads"
        report(title, medians(runs, repeats=3), "reading the store alone", MOVED, [])


def main() -> None:
    """Time and print."""
    in_memory()
    from_store()


if __name__ == "__main__":
    main()
