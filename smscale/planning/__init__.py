"""`smscale plan`: what a run will need, before it is begun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from smscale.cluster import default_workers
from smscale.config import Recipe
from smscale.errors import RecipeError
from smscale.pipeline import with_region
from smscale.planning.empty import Empty, empty_run
from smscale.planning.rates import Rates, Say, rates_of
from smscale.planning.size import SAMPLED, Size
from smscale.simulate import World

__all__ = ["Estimate", "Forecast", "estimate", "plan"]

#: What a second worker adds: workers share the memory and the disk of a machine (`smscale bench scaling`).
SHARING = 0.9


@dataclass(frozen=True)
class Case:
    """A region and a period beyond the recipe. `land` is the share of its cells that is land."""

    region: tuple[float, float, float, float]
    period: tuple[str, str]
    land: float
    stations: int

    def of(self, recipe: Recipe) -> Size:
        """A run with a recipe's settings, and as much memory as one of so many stations asks for."""
        there = replace(recipe, region=self.region, period=self.period, inputs="raw", products={})
        size = Size(replace(there, world=None, outline=None), self.stations, self.land)
        for gibibytes in MEMORIES:
            try:
                _ = size.plan
                break
            except RecipeError:
                more = replace(recipe.resources, memory_per_worker=f"{gibibytes}GiB")
                size = replace(size, recipe=replace(size.recipe, resources=more))
        return size


WHAT_IF = {
    "Sichuan, a season": Case((97.35, 26.05, 108.54, 34.31), ("2017-06-10", "2017-11-30"), 1.0, 156),
    "China, a year": Case((73.0, 18.0, 135.0, 54.0), ("2017-01-01", "2017-12-31"), 0.5, 2000),
    "global land, ten years": Case((-180.0, -60.0, 180.0, 84.0), ("2013-01-01", "2022-12-31"), 0.35, 4000),
}
#: Memory that a worker is given, GiB, where the recipe's is too small for one of these.
MEMORIES = (2, 3, 4, 6, 8, 12, 16)
#: Stations that a recipe's files are taken to hold, where nothing says it.
STATIONS = 100
STAGES = ("ingest", "match", "train", "downscale", "fuse", "evaluate")


@dataclass(frozen=True)
class Estimate:
    """One run: numbers as `smscale plan` prints them. Seconds are wall time by stage with `workers` workers."""

    name: str
    cells: int
    overpasses: int
    samples: int
    blocks: int
    tasks: int
    files: int
    bytes_in: float
    files_in: int
    bytes_out: float
    memory_per_worker: int
    memory_limit: int
    workers: int
    seconds: dict[str, float]
    core_hours: float

    @property
    def wall(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Forecast:
    """Estimates of several runs with what they rest on; `scheduler` is what so many empty blocks took."""

    runs: tuple[Estimate, ...]
    rates: Rates
    scheduler: Empty | None = None

    @property
    def text(self) -> str:
        """For people."""
        notes = assumptions(self.rates) + ([self.scheduler.line] if self.scheduler else [])
        return "\n".join([*_table(self.runs), "", *(f"- {note}" for note in notes), ""])

    @property
    def json(self) -> str:
        """For programs."""
        values: dict[str, Any] = {"runs": [asdict(run) for run in self.runs], "assumptions": assumptions(self.rates)}
        if self.scheduler:
            values["scheduler"] = asdict(self.scheduler)
        return json.dumps(values, indent=1) + "\n"


def plan(
    recipe: Recipe,
    stations: int | None = None,
    workers: int | None = None,
    what_if: bool = True,
    again: bool = False,
    scheduler: bool = False,
    progress: bool = True,
    say: Say = lambda text: None,
) -> Forecast:
    """Estimates of a recipe's run, and of the same settings at the sizes of `WHAT_IF`.

    Parameters
    ----------
    stations : how many there will be; the recipe's world's, or `STATIONS`
    workers : the recipe's, or as many as this machine takes
    again : measure the machine anew
    scheduler : do the blocks of the largest of these runs, empty, and say what that took

    Raises
    ------
    RecipeError
        for a recipe that makes no maps, and where a block does not fit into a worker.
    """
    if recipe.table is not None or recipe.recovery is not None:
        raise RecipeError(f"recipe {recipe.name}: it makes no maps; smscale plan is for recipes that do")
    if workers is not None and workers < 1:
        raise RecipeError(f"--workers {workers}: expected at least 1")
    if stations is not None and stations < 0:
        raise RecipeError(f"--stations {stations}: expected at least 0")
    recipe = with_region(recipe)
    size = Size(recipe, _stations(recipe) if stations is None else stations)
    sizes = {recipe.name: size} | ({name: case.of(recipe) for name, case in WHAT_IF.items()} if what_if else {})
    for each in sizes.values():
        _ = each.plan  # refused before anything is measured
    measured = rates_of(recipe, again, progress, say)
    count = workers or recipe.resources.workers or default_workers(recipe.resources.memory_per_worker)
    runs = tuple(estimate(name, each, measured, count) for name, each in sizes.items())
    return Forecast(runs, measured, empty_run(max(run.blocks for run in runs), progress) if scheduler else None)


def _stations(recipe: Recipe) -> int:
    return World.from_file(recipe.resolve(recipe.world)).stations if recipe.world else STATIONS


def estimate(name: str, size: Size, rates: Rates, workers: int) -> Estimate:
    """What a run needs, by the rates of this machine."""
    effective = 1 + SHARING * (workers - 1)
    works = size.work()
    alone = dict.fromkeys(STAGES, 0.0)
    seconds = {stage: rates.beside.get(stage, 0.0) for stage in STAGES}
    for work in works:
        whole = rates.seconds.get(work.name, 0.0) * work.units + rates.each.get(work.name, 0.0) * work.tasks
        alone[work.stage] += whole
        seconds[work.stage] += max(whole / effective, whole / max(work.tasks, 1))
    files_in, bytes_in = size.inputs
    return Estimate(
        name,
        size.cells,
        size.steps,
        size.rows,
        size.plan.count,
        sum(work.tasks for work in works),
        size.files,
        bytes_in,
        files_in,
        sum(array.raw * rates.ratio[array.store] for array in size.arrays()),
        size.plan.predicted,
        size.plan.memory,
        workers,
        {"start": rates.start, **seconds},
        (sum(alone.values()) + sum(rates.beside.values()) + rates.start * workers) / 3600,
    )


# -- words ---------------------------------------------------------------------------------------------


def _table(found: Sequence[Estimate]) -> list[str]:
    """Lines: a row for each number, a column for each run."""
    rows = [
        ("fine cells", [f"{e.cells:,}" for e in found]),
        ("overpasses", [f"{e.overpasses:,}" for e in found]),
        ("training samples", [f"{e.samples:,}" for e in found]),
        ("blocks of the maps", [f"{e.blocks:,}" for e in found]),
        ("tasks", [f"{e.tasks:,}" for e in found]),
        ("raw files", [f"{e.files_in:,}" for e in found]),
        ("raw bytes", [_bytes(e.bytes_in) for e in found]),
        ("shards and records, at most", [f"{e.files:,}" for e in found]),
        ("bytes written", [_bytes(e.bytes_out) for e in found]),
        ("memory of a worker", [f"{_bytes(e.memory_per_worker)} of {_bytes(e.memory_limit)}" for e in found]),
        *((f"time: {stage}", [_time(e.seconds.get(stage, 0.0)) for e in found]) for stage in ("start", *STAGES)),
        (f"time, {found[0].workers} workers", [_time(e.wall) for e in found]),
        ("core-hours", [f"{e.core_hours:,.2f}" if e.core_hours < 10 else f"{e.core_hours:,.0f}" for e in found]),
    ]
    widths = [max(len(e.name), *(len(cells[i]) for _, cells in rows)) for i, e in enumerate(found)]
    first = max(len(label) for label, _ in rows)
    lines = [" " * first + "".join(f"  {e.name:>{w}}" for e, w in zip(found, widths, strict=True))]
    lines += [
        f"{label:<{first}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        for label, cells in rows
    ]
    return lines


def assumptions(rates: Rates) -> list[str]:
    """What the numbers rest on."""
    return [
        f"rates measured here ({rates.machine}) on a made world of {rates.cells:,} cells x {rates.overpasses} overpasses, "
        f"{rates.clouds:.0%} of the LST behind clouds, and models on {rates.rows} rows; every part grows in proportion to its units",
        f"each worker after the first adds {SHARING:.0%} of one",
        f"samples: {SAMPLED:.1%} of the coarse land cells and overpasses (the paper's share); training grows in proportion to them",
        f"bytes on disk: {rates.ratio['cube.zarr']:.2f} of the cube's values and {rates.ratio['maps.zarr']:.2f} of the maps', as measured; "
        "raw files by their products' typical sizes; shards that hold nothing are not written",
        *(f"{name}: {case.land:.0%} of the cells land, {case.stations:,} stations" for name, case in WHAT_IF.items()),
        "a size that the recipe's memory_per_worker is too small for is reckoned with more, as the row of memory says",
        "downloads and the making of a nature run are not counted",
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} PB" if count >= 10 else f"{count:.3g} PB"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.0f} days"
