"""The part of a fine field that whole coarse cells make up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from smscale import schema
from smscale.config import Recipe
from smscale.errors import InputError
from smscale.grid import Grid, authalic_q
from smscale.pipeline.layout import COARSE_KM, Layout
from smscale.sources.smap import open_smap


@dataclass(frozen=True)
class Window(Layout):
    """The part of the fine field that whole coarse cells make up, at its one step; `counts` says what was left out."""

    overpass: str
    counts: dict[str, Any]

    @cached_property
    def steps(self) -> xr.Dataset:
        west, _, east, _ = self.grid.bounds
        both = schema.overpass_steps(*self.period, longitude=(west + east) / 2)
        return both.isel(time=both["overpass"].values == self.overpass)


def window_of(recipe: Recipe, file: Path) -> Window:
    """Whole coarse cells within the fine field (within the recipe's region, where it has one)."""
    field = open_smap(file)
    row0, col0 = field.attrs["row0"], field.attrs["col0"]
    rows, cols = slice(row0, row0 + field.sizes["lat"]), slice(col0, col0 + field.sizes["lon"])
    grid = Grid.ease2(field.attrs["resolution_km"]).window(rows, cols)
    if recipe.region is not None:
        grid = _cut(grid, recipe.region)
    touched = Grid.ease2(COARSE_KM, *grid.bounds)
    coarse, (rows, cols) = whole_cells(grid, touched)
    valid = np.isfinite(field["soil_moisture"].values)
    inside = grid.window(rows, cols)
    r0, c0 = inside.row0 - row0, inside.col0 - col0
    kept = valid[r0 : r0 + inside.shape[0], c0 : c0 + inside.shape[1]]
    counts = {
        "fine_cells": valid.size,
        "fine_cells_valid": int(valid.sum()),
        "fine_cells_dropped": valid.size - kept.size,
        "fine_cells_valid_dropped": int(valid.sum() - kept.sum()),
        "coarse_cells_touched": int(np.prod(touched.shape)),
        "coarse_cells_partial_dropped": int(np.prod(touched.shape) - np.prod(coarse.shape)),
    }
    time = field["observation_time"].values.ravel()[0]
    local_date, is_pm = schema.local_step(time, np.array(np.mean(inside.lon)))
    day = str(local_date)
    overpass = "PM" if is_pm else "AM"
    return Window(inside, coarse, (day, day), recipe.chunks.sizes, recipe.chunks.shards, overpass, counts)


def _cut(grid: Grid, region: tuple[float, float, float, float]) -> Grid:
    """Cells of a grid whose centres lie in a region."""
    west, south, east, north = region
    rows = np.flatnonzero((grid.lat > south) & (grid.lat < north))
    cols = np.flatnonzero((grid.lon > west) & (grid.lon < east))
    if not rows.size or not cols.size:
        raise InputError(f"region {list(region)} does not meet the fine field, which covers {grid}")
    return grid.window(slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))


def whole_cells(fine: Grid, coarse: Grid) -> tuple[Grid, tuple[slice, slice]]:
    """The coarse cells that lie wholly within a fine grid, and the fine rows and columns that these are made of.

    Raises
    ------
    InputError
        if there is none.
    """
    parts = []
    own = (-np.diff(authalic_q(coarse.lat_edges)), np.diff(coarse.lon_edges))
    for overlap, size in zip(fine.overlap(coarse), own, strict=True):
        whole = np.flatnonzero(overlap.sum(axis=1) > size * (1 - 1e-6))
        if not whole.size:
            raise InputError(f"no coarse cell lies wholly within {fine}: give a larger field or region")
        chosen = slice(int(whole[0]), int(whole[-1]) + 1)
        inside = np.flatnonzero(overlap[chosen].sum(axis=0) > 1e-6 * overlap.max())
        parts.append((chosen, slice(int(inside[0]), int(inside[-1]) + 1)))
    return coarse.window(parts[0][0], parts[1][0]), (parts[0][1], parts[1][1])
