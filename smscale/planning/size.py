"""How large a run is: its tasks, units of work, files and bytes, from the recipe alone. Nothing is read and nothing is timed.

The same numbers serve twice: a small run that was timed gives seconds per unit (`rates`), and these give the units of any
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property

from smscale import schema
from smscale.block_plan import PROCESS_BYTES, TORCH_BYTES, Plan
from smscale.config import Recipe
from smscale.models.selection import BASELINES
from smscale.pipeline.fuse import fusion_names, variance_names
from smscale.pipeline.layout import Layout, layout_of
from smscale.pipeline.plan import plan_of
from smscale.pipeline.solved import slabs
from smscale.sources.needs import Requirement, requirements, utc_days
from smscale.sources.products import SERIES, TABLES, flying

#: Pixels of one MODIS tile, by family.
TILE_PIXELS = {"LST": 1200**2, "VI": 1200**2, "ET": 2400**2, "LC": 2400**2}
#: The ledger's name for what is read of a family.
PARTS = {"LST": "overpass", "ET": "eight_day", "VI": "sixteen_day", "LC": "land_cover"}
#: Share of the coarse cells and overpasses of a region that become samples: the paper's 8 670 of the 26 x 31 cells that its region
#: touches, and 348 overpasses.
SAMPLED = 8670 / (26 * 31 * 348)
#: Bytes of a sample in a worker that trains: the table as it is read, the rows of both sides cut from it, predictors as a matrix
#: (measured at 0.4 and 1.5 million rows).
ROW_BYTES = 530


@dataclass(frozen=True)
class Work:
    """One kind of task of one stage: how many tasks there are, and how many units of work they do together.

    during : the stage in whose time they are done, where it is another
    """

    stage: str
    part: str
    tasks: int
    units: float
    unit: str
    during: str = ""

    @property
    def name(self) -> str:
        return f"{self.stage} {self.part}"

    @property
    def timed_in(self) -> str:
        return self.during or self.stage

    @property
    def together(self) -> str:
        """Tasks of one such name are given to the workers in one go: none waits until those of another part are done."""
        if self.stage == "train":
            return "train fit" if self.part.startswith("fit/") else "train folds"
        return self.stage if self.stage == "ingest" else self.name


@dataclass(frozen=True)
class Arrays:
    """Zarr arrays of one shape and type: `count` of them, `files` shards and `raw` bytes together."""

    store: str
    what: str
    count: int
    files: int
    raw: int


@dataclass(frozen=True)
class Size:
    """A run of a recipe over a region and a period.

    land : share of the fine cells that are land: the others hold nothing, and cost their passing over
    stations : how many there are; samples : rows that models train on, or None for `SAMPLED` of the coarse cells and steps
    """

    recipe: Recipe
    stations: int
    land: float = 1.0
    samples: int | None = None

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.recipe)

    @cached_property
    def plan(self) -> Plan:
        return plan_of(self.recipe, self.layout, self.stations)

    @property
    def cells(self) -> int:
        return math.prod(self.layout.grid.shape)

    @property
    def steps(self) -> int:
        return int(self.layout.steps.sizes["time"])

    @property
    def cell_steps(self) -> int:
        return self.cells * self.steps

    @property
    def rows(self) -> int:
        """Training samples."""
        if self.samples is not None:
            return self.samples
        return round(SAMPLED * self.land * math.prod(self.layout.coarse.shape) * self.steps)

    @property
    def training_memory(self) -> int:
        """Bytes of a worker that fits a model, at the least: the model's own copies of the samples come on top."""
        return PROCESS_BYTES + TORCH_BYTES + self.rows * ROW_BYTES

    @cached_property
    def needs(self) -> tuple[Requirement, ...]:
        """Dates and tiles of every family of products."""
        start, end = self.layout.period
        return requirements(start, end, self.layout.grid.bounds, products=self.recipe.products)

    # -- files in --------------------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple[int, float]:
        """Raw files, and their bytes by the products' typical sizes; tiles that are all sea do not exist."""
        files, size = 0, 0.0
        existing = flying(*utc_days(*self._days, self.layout.grid.bounds))
        for need in self.needs:
            if need.family == "STATIONS":
                continue
            count = self._tiles(need) * max(len(need.dates), 1)
            if need.family == "DEM":
                megabytes = TABLES["dem"]["copernicus"]["megabytes"]
            else:
                series = SERIES[need.product] if need.product else existing[need.family]
                megabytes, count = series.megabytes, count * len(series.members)
            files += count
            size += count * megabytes * 1e6
        return files, size

    @property
    def _days(self) -> tuple[date, date]:
        start, end = self.layout.period
        return date.fromisoformat(start), date.fromisoformat(end)

    def _tiles(self, need: Requirement) -> int:
        return max(1, math.ceil(self.land * len(need.tiles))) if need.tiles else 1

    # -- work ------------------------------------------------------------------------------------------

    def work(self) -> list[Work]:
        """Every kind of task of the run that it has."""
        every = (*self._ingest(), *self._match(), *self._train(), *self._maps(), *self._evaluate())
        return [work for work in every if work.tasks]

    def _ingest(self) -> Iterator[Work]:
        slabs, tiles, bands = len(self.layout.slabs()), self._tile_count, self._band_count
        yield Work("ingest", "smap", slabs, self.steps, "overpasses")
        for need in self.needs:
            if need.family in PARTS:
                dates, part = len(need.dates), PARTS[need.family]
                read = self._tiles(need) * TILE_PIXELS[need.family] * dates
                blocks = slabs if part == "overpass" else dates
                yield Work("ingest", part, blocks * bands, read + self.cells * dates, "pixels and cells")
        yield Work("ingest", "static", tiles, self.cells * self.land, "cells")
        yield Work("ingest", "stations", 1, self.stations * self.steps, "station overpasses")

    def _match(self) -> Iterator[Work]:
        yield Work("match", "static", 1, self.cells, "cells")
        yield Work("match", "steps", len(self.layout.slabs()), self.cell_steps, "cells x overpasses")

    def _train(self) -> Iterator[Work]:
        split = self.recipe.split
        known = (1 - split.fraction) * self.rows
        for model in self.recipe.models:
            yield Work("train", f"fit/{model}", 1, known, "samples")
            yield Work("train", f"inner/{model}", 1, known * (split.inner_folds - 1), "samples x folds")
        once = split.compare.count("random")  # it draws its rows once; the others deal them to folds
        dealt = len(split.compare) - once
        fitted = once * (1 - split.fraction) + dealt * (split.folds - 1)
        for model in (*self.recipe.models, *BASELINES):
            yield Work("train", f"split/{model}", once + dealt * split.folds, self.rows * fitted, "samples x folds")

    def _maps(self) -> Iterator[Work]:
        blocks, series = self.plan.count, self.stations * self.steps
        yield Work("downscale", "blocks", blocks, self.cell_steps, "cells x overpasses")
        if self.stations:
            ways, during = len(fusion_names(self.recipe.fusion)), "downscale" if self._jointly else ""
            solving, unit = ways * len(slabs(self.steps)) + 1, "station overpasses"
            yield Work("fuse", "stations", self._with_stations, series, unit, during)
            yield Work("fuse", "pose", 1, series * ways, unit, during)
            yield Work("fuse", "solve", solving, series * ways, unit, during)
        if not self._jointly:
            yield Work("fuse", "blocks", blocks, self.cell_steps, "cells x overpasses")
        if self.recipe.closure != "none":
            coarse = math.prod(self.layout.coarse.shape) * self.steps
            yield Work("fuse", "sums", blocks, self.cell_steps, "cells x overpasses")
            yield Work("fuse", "closure", len(self.plan.slabs), coarse, "coarse cells x overpasses")
            yield Work("fuse", "agreement", len(self.plan.slabs), coarse, "coarse cells x overpasses")

    @property
    def _jointly(self) -> bool:
        """Whether a block is fused while it is predicted (`pipeline.fuse.ahead`)."""
        return bool(self.stations) and self.recipe.closure == "none"

    @property
    def _with_stations(self) -> int:
        """Blocks that hold a station."""
        return min(self.stations, self.plan.count // len(self.plan.slabs)) * len(self.plan.slabs)

    def _evaluate(self) -> Iterator[Work]:
        yield Work("evaluate", "stations", self._with_stations, self.stations * self.steps, "station overpasses")
        if self.recipe.world:
            yield Work("evaluate", "truth", self.plan.count, self.cell_steps, "cells x overpasses")

    @property
    def _tile_count(self) -> int:
        """Shard-aligned windows of the fine grid."""
        rows, cols = self.layout.grid.shape
        return math.ceil(rows / self.layout.shards["lat"]) * math.ceil(cols / self.layout.shards["lon"])

    @cached_property
    def _band_count(self) -> int:
        """Rows of MODIS tiles that windows are read by: the windows of one column are in all of them."""
        rows, _ = self.layout.grid.shape
        column = self.layout.grid.window(slice(0, rows), slice(0, self.layout.shards["lon"]))
        return len(replace(self.layout, grid=column).bands())

    # -- files out -------------------------------------------------------------------------------------

    def arrays(self) -> list[Arrays]:
        """Every array that the run writes on the fine grid; the others are small."""
        slabs, tiles = len(self.layout.slabs()), self._tile_count
        dates = {need.family: len(need.dates) for need in self.needs}
        found = [self._array("cube.zarr", "overpass", "overpass", self.steps, slabs * tiles)]
        for family, cadence in (("ET", "eight_day"), ("VI", "sixteen_day")):
            found.append(self._array("cube.zarr", cadence, cadence, dates[family], dates[family] * tiles))
        found.append(self._array("cube.zarr", "static", "static", 1, tiles))
        years = max(dates.get("LC", 1), 1)
        found.append(
            Arrays("cube.zarr", "land cover", 2, 2 * years * tiles, years * self.cells * (1 + len(schema.IGBP)))
        )
        count = self._map_count
        found.append(Arrays("maps.zarr", "maps", count, count * slabs * tiles, 4 * count * self.cell_steps))
        return found

    def _array(self, store: str, what: str, cadence: str, times: int, files: int) -> Arrays:
        return Arrays(store, what, 1, files, 4 * times * self.cells * len(schema.CADENCES[cadence]))

    @property
    def _map_count(self) -> int:
        """Arrays of maps.zarr on the fine grid: every map with its status, their spread, variances, the final map's status."""
        recipe = self.recipe
        fused = len(fusion_names(recipe.fusion)) if self.stations else 0
        closed = recipe.closure != "none"
        variances = len(variance_names(recipe.fusion)) if self.stations else 0
        return 2 * (len(recipe.models) + fused + closed) + 1 + variances + 1

    @property
    def files(self) -> int:
        """Files of the workspace: shards and the ledger's records."""
        return sum(a.files for a in self.arrays()) + sum(w.tasks for w in self.work())
