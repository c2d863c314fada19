"""What a recipe fixes before any file is read: grids, overpass steps, chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property

import xarray as xr

from smscale import schema, sinusoidal
from smscale.block_plan import Block
from smscale.blocks import spans
from smscale.config import Recipe
from smscale.errors import RecipeError
from smscale.grid import Grid

#: SMAP's grid, km.
COARSE_KM = 36


@dataclass(frozen=True)
class Layout:
    """The fine grid, the coarse grid and the steps of one recipe."""

    grid: Grid
    coarse: Grid
    period: tuple[str, str]
    chunks: dict[str, int]
    shards: dict[str, int]

    @cached_property
    def steps(self) -> xr.Dataset:
        west, _, east, _ = self.grid.bounds
        return schema.overpass_steps(*self.period, longitude=(west + east) / 2)

    def tiles(self) -> list[tuple[slice, slice]]:
        """Shard-aligned windows (rows, columns) that cover the fine grid."""
        rows, cols = self.grid.shape
        return [(r, c) for r in spans(rows, self.shards["lat"]) for c in spans(cols, self.shards["lon"])]

    def windows(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Grid]]:
        """Each block with the grid of its cells, one for all blocks of a tile."""
        grids: dict[tuple[int, int], Grid] = {}
        for block in blocks:
            tile = block.rows.start, block.cols.start
            if tile not in grids:
                grids[tile] = self.grid.window(block.rows, block.cols)
            yield block, grids[tile]

    def bands(self) -> dict[str, list[tuple[slice, slice]]]:
        """The windows of `tiles`, by the row of MODIS tiles that holds their middle: "v05" -> windows, west to east.

        A band is one unit of work, since its tiles can be read one after another, each once.
        """
        bands: dict[str, list[tuple[slice, slice]]] = {}
        for rows, cols in self.tiles():
            middle = (self.grid.lat_edges[rows.start] + self.grid.lat_edges[rows.stop]) / 2
            v, _ = sinusoidal.pixel_index(0.0, middle, 1)
            bands.setdefault(f"v{int(v):02d}", []).append((rows, cols))
        return {name: sorted(tiles, key=lambda tile: tile[1].start) for name, tiles in bands.items()}

    def widened(self, days: int) -> tuple[str, str]:
        """The period and so many days more on each side (ISO)."""
        start, end = (date.fromisoformat(day) for day in self.period)
        return str(start - timedelta(days)), str(end + timedelta(days))

    def slabs(self) -> list[slice]:
        """Shard-aligned runs of steps that cover the period."""
        return spans(self.steps.sizes["time"], self.shards["time"])


def layout_of(recipe: Recipe) -> Layout:
    """Grids and steps of a recipe whose region and period are known."""
    if recipe.region is None or recipe.period is None:
        raise RecipeError("a run needs a region and a period: set both in the recipe")
    spec = recipe.grid
    grid = (
        Grid.latlon(*recipe.region, step=spec.step)
        if spec.kind == "latlon"
        else Grid.ease2(spec.resolution, *recipe.region)
    )
    if min(grid.shape) < 2:
        raise RecipeError(
            f"key region: found {list(recipe.region)}, {grid.shape[0]} x {grid.shape[1]} cells; expected at least 2 x 2 cells of the fine grid"
        )
    return Layout(grid, Grid.ease2(COARSE_KM, *grid.bounds), recipe.period, recipe.chunks.sizes, recipe.chunks.shards)
