"""LST tile-days from HDF4 to the cube, against reading and decoding it with pyhdf; and memory as the region grows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from pyhdf.SD import SD, SDC

from benchmarks.timing import medians, report
from smscale import schema, store
from smscale.blocks import spans
from smscale.grid import Grid
from smscale.pipeline.ingest.fine import Source, overpass_block
from smscale.pipeline.layout import Layout
from smscale.progress import used
from smscale.workspace import OVERPASS

REAL = Path(os.environ.get("SMSCALE_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
GENUINE = REAL / "modis" / "MOD11A1.A2019305.h14v09.006.2019306084028.hdf"
DAY, TILE = "2019-11-01", (14, 9)
#: Days of one block: shards of eight steps.
DAYS = 4
#: Within h14v09, where a tile of 10 degrees of latitude is widest.
REGION = (-39.9, -10.0, -30.6, 0.0)
SHARD = 300

SETS = {
    "LST_Day_1km": ("QC_Day", 0, 0.02),
    "LST_Night_1km": ("QC_Night", 0, 0.02),
    "Day_view_time": ("QC_Day", 255, 0.1),
    "Night_view_time": ("QC_Night", 255, 0.1),
}


def granule(folder: Path) -> Path:
    """A genuine tile where there is one, else a made one with clouds."""
    if GENUINE.exists():
        return GENUINE
    from smscale.simulate.modis_files import granule_name, write_lst

    rng = np.random.default_rng(0)
    lst = 290 + rng.normal(size=(1200, 1200)).cumsum(axis=0) * 0.02
    cloud = rng.random((12, 12)).repeat(100, 0).repeat(100, 1) < 0.4
    lst = np.where(cloud, np.nan, lst)
    return write_lst(folder / granule_name("MYD11A1", DAY, *TILE), DAY, *TILE, lst + 8, lst - 6, 13.5, 1.5)


def with_pyhdf(path: Path) -> None:
    """Four days, one after another: the four layers in units, rejected pixels missing, as a user writes it."""
    for _ in range(DAYS):
        file = SD(str(path), SDC.READ)
        raw = {name: file.select(name).get() for name in (*SETS, "QC_Day", "QC_Night")}
        file.end()
        for name, (quality, fill, scale) in SETS.items():
            good = (raw[quality] & 3 <= 1) & (raw[quality] >> 6 <= 1)
            np.where((raw[name] != fill) & good, raw[name] * np.float32(scale), np.float32(np.nan))


def template(grid: Grid, steps: int) -> xr.Dataset:
    values = store.empty((steps, *grid.shape, 2), np.float32)
    return xr.Dataset({"values": (("time", "lat", "lon", "variable"), values)})


def windows(grid: Grid) -> list[tuple[slice, slice]]:
    return [(r, c) for c in spans(grid.shape[1], SHARD) for r in spans(grid.shape[0], SHARD)]


def with_smscale(path: Path, cube: str, grid: Grid) -> dict[str, object]:
    """Four days as one block: read, quality controlled, laid on local steps and on the grid, written as shards."""
    days = [str(np.datetime64(DAY) + i) for i in range(DAYS)]
    labels = [(day, overpass) for day in days for overpass in schema.OVERPASSES]
    files = {day: {TILE: (str(path),)} for day in days}
    source = Source("LST", "paper")
    return overpass_block(cube, OVERPASS, slice(0, 2 * DAYS), windows(grid), grid, labels, files, source)


def peak(size: int) -> float:
    """MiB at the peak of a process that ingests four days of a square of `size` degrees."""
    code = f"import benchmarks.ingest as b; b.many({size})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def many(size: int) -> None:
    """Ingest four days of a region of four tiles' corner; print the peak of resident memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = granule(Path(folder))
        grid = Grid.latlon(-35 - size / 2, -10 - size / 2, -35 + size / 2, -10 + size / 2)
        days = [str(np.datetime64(DAY) + i) for i in range(4)]
        labels = [(day, overpass) for day in days for overpass in schema.OVERPASSES]
        cube = str(Path(folder) / "cube.zarr")
        chunks = {"time": 1, "lat": SHARD, "lon": SHARD, "variable": 1}
        store.create(cube, OVERPASS, template(grid, 8), chunks, {"time": 8, "lat": SHARD, "lon": SHARD})
        layout = Layout(grid, Grid.ease2(36, *grid.bounds), (days[0], days[-1]), chunks, {"lat": SHARD, "lon": SHARD})
        tiles = {(h, v): (str(path),) for h in range(13, 17) for v in (8, 9, 10)}
        for places in layout.bands().values():
            overpass_block(
                cube, OVERPASS, slice(0, 8), places, grid, labels, dict.fromkeys(days, tiles), Source("LST", "paper")
            )
        print(used().peak / 2**20)


def main() -> None:
    """Time and print."""
    grid, repeats = Grid.latlon(*REGION), 9
    with tempfile.TemporaryDirectory() as folder:
        path = granule(Path(folder))
        chunks = {"time": 1, "lat": SHARD, "lon": SHARD, "variable": 1}
        empty = []  # a cube for each run: ingest writes new files, over old ones the file system is slower
        for i in range(repeats + 1):
            empty.append(str(Path(folder) / f"cube-{i}.zarr"))
            store.create(
                empty[-1], OVERPASS, template(grid, 2 * DAYS), chunks, {"time": 2 * DAYS, "lat": SHARD, "lon": SHARD}
            )
        runs: dict[str, Callable[[], object]] = {
            "smscale, HDF4 to shards of the cube": lambda: with_smscale(path, empty.pop(), grid),
            "pyhdf, read and decoded": lambda: with_pyhdf(path),
        }
        seconds = medians(runs, repeats)
        moved = DAYS * (path.stat().st_size + 8 * 1200**2 + 2 * 2 * grid.shape[0] * grid.shape[1] * 4)
        kind = "genuine" if path == GENUINE else "made"
        report(
            f"{DAYS} LST tile-days ({kind}), {grid.shape} cells",
            seconds,
            "smscale, HDF4 to shards of the cube",
            moved,
            [],
        )
    small, large = peak(3), peak(12)
    print(
        f"\nPeak memory of a worker, four days: {small:.0f} MiB for 3 x 3 degrees, {large:.0f} MiB for 12 x 12: "
        f"{large / small - 1:+.1%}"
    )
