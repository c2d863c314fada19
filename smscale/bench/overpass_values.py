"""The values that strategies are tried on: LST in MODIS' steps, its view times, holes where clouds were; and a map made from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smscale.bench.season_cube import elevation_of, lst_of
from smscale.grid import Grid

#: MODIS' steps (MOD11 user guide): K, hours.
LST_STEP, VIEW_STEP = 0.02, 0.1
#: A swath: how far its view times differ from side to side, hours, over so many degrees.
ACROSS_HOURS, SWATH_DEGREES = 1.6, 21.0
#: Of the retrieval itself, K: what makes neighbours differ beyond terrain and weather.
NOISE = 0.3
#: Of the map: m3 m-3 at 295 K, for each K, and what fills the last bits of a model's float32.
LEVEL, PER_KELVIN, ROUGHNESS = 0.25, -0.004, 0.01


def write_values(path: Path, grid: Grid, steps: int) -> None:
    """A NumPy file (steps, lat, lon, 2) float32 of LST, K, and view time, hours: NaN behind clouds."""
    y, x = np.meshgrid(grid.lat, grid.lon, indexing="ij")
    elevation = elevation_of(x, y)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(steps, *grid.shape, 2))
    for step in range(steps):
        rng = np.random.default_rng(step)
        lst = lst_of(x, y, elevation, step) + rng.normal(0, NOISE, x.shape)
        out[step, ..., 0] = (np.rint(lst / LST_STEP) * LST_STEP).astype(np.float32)
        view = (13.5 if step % 2 else 1.5) + ACROSS_HOURS * (((x + 7.3 * step) % SWATH_DEGREES) / SWATH_DEGREES - 0.5)
        view = np.where(np.isnan(lst), np.nan, view)
        out[step, ..., 1] = (np.rint(view / VIEW_STEP) * VIEW_STEP).astype(np.float32)
    out.flush()


def write_maps(path: Path, source: Path) -> None:
    """A NumPy file (steps, lat, lon, 1) float32 of soil moisture, m3 m-3, from a file of `write_values`: NaN where LST is."""
    lst = np.load(source, mmap_mode="r")[..., 0]
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(*lst.shape, 1))
    for step, plane in enumerate(lst):
        rough = np.random.default_rng(step).normal(0, ROUGHNESS, plane.shape)
        out[step, ..., 0] = LEVEL + PER_KELVIN * (plane - 295) + rough
    out.flush()
