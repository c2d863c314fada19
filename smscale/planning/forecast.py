"""What runs need, reckoned from their sizes and from the rates of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from smscale.bench.empty import Empty, empty_run
from smscale.cluster import default_workers
from smscale.config import Recipe
from smscale.errors import RecipeError
from smscale.pipeline import with_region
from smscale.planning import words
from smscale.planning.rates import STAGES, Rates, Say, rates_of
from smscale.planning.size import Size, Work
from smscale.simulate import World

#: What each worker after the first adds, of one: `smscale bench scaling` on 2 cores (docs/chunks.md).
SHARING = 0.8
#: Memory that a worker is given, GiB, where the recipe's is too small for one of `WHAT_IF`.
MEMORIES = (2, 3, 4, 6, 8, 12, 16)
#: Stations that a recipe's files are taken to hold, where nothing says it.
STATIONS = 100
#: Rows that the time of training is told for: it is told from tables of 500 and 2 000, and not every model grows in proportion.
MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class Case:
    """A region and a period beyond the recipe. `land` is the share of its cells that is land."""

    region: tuple[float, float, float, float]
    period: tuple[str, str]
    land: float
    stations: int

    def of(self, recipe: Recipe) -> Size:
        """A run with a recipe's settings, and as much memory as one of so many stations asks for.

        Raises
        ------
        RecipeError
            where none of `MEMORIES` is enough.
        """
        there = replace(recipe, region=self.region, period=self.period, inputs="raw", products={})
        size = Size(replace(there, world=None, outline=None), self.stations, self.land)
        for gibibytes in MEMORIES:
            try:
                _ = size.plan
                return size
            except RecipeError:
                more = replace(recipe.resources, memory_per_worker=f"{gibibytes}GiB")
                size = replace(size, recipe=replace(size.recipe, resources=more))
        _ = size.plan
        return size


WHAT_IF = {
    "Sichuan, a season": Case((97.35, 26.05, 108.54, 34.31), ("2017-06-10", "2017-11-30"), 1.0, 156),
    "China, a year": Case((73.0, 18.0, 135.0, 54.0), ("2017-01-01", "2017-12-31"), 0.5, 2000),
    "global land, ten years": Case((-180.0, -60.0, 180.0, 84.0), ("2013-01-01", "2022-12-31"), 0.35, 4000),
}


@dataclass(frozen=True)
class Estimate:
    """One run: numbers as `smscale plan` prints them.

    memory_per_worker : bytes while maps are made; training_memory : while a model is fitted, at the least
    seconds : wall time by stage with `workers` workers; of a training that is not reckoned None, and `core_hours` is without it
    """

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
    training_memory: int
    memory_limit: int
    workers: int
    seconds: dict[str, float | None]
    core_hours: float

    @property
    def wall(self) -> float:
        """Of the stages that are reckoned."""
        return sum(seconds for seconds in self.seconds.values() if seconds is not None)


@dataclass(frozen=True)
class Forecast:
    """Estimates of several runs with what they rest on.

    refused : name -> why no plan of it can be made; scheduler : what so many empty blocks took
    """

    runs: tuple[Estimate, ...]
    rates: Rates
    scheduler: Empty | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def assumptions(self) -> list[str]:
        """What the numbers rest on."""
        shown = {name: case for name, case in WHAT_IF.items() if name in {run.name for run in self.runs}}
        lands = [
            f"{name}: {case.land:.0%} of the cells land, {case.stations:,} stations" for name, case in shown.items()
        ]
        return words.assumptions(self.rates, SHARING, MOST_ROWS, lands)

    @property
    def text(self) -> str:
        """For people."""
        notes = [*self.assumptions, *(f"{name}: {why}" for name, why in self.refused.items())]
        notes += [self.scheduler.line] if self.scheduler else []
        return "\n".join([words.table(self.runs, self.refused), "", *(f"- {note}" for note in notes), ""])

    @property
    def json(self) -> str:
        """For programs."""
        values: dict[str, Any] = {"runs": [asdict(run) for run in self.runs], "refused": dict(self.refused)}
        values["assumptions"] = self.assumptions
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
    samples: int | None = None,
) -> Forecast:
    """Estimates of a recipe's run, and of the same settings at the sizes of `WHAT_IF`.

    Parameters
    ----------
    stations, samples : how many there will be; the recipe's world's stations, or `STATIONS`, and the paper's share of the cells
    workers : the recipe's, or as many as this machine takes
    again : measure the machine anew
    scheduler : do the blocks of the largest of these runs, empty, `empty.MOST` at most, and say what that took

    Raises
    ------
    RecipeError
        for a recipe that makes no maps, and where a block of it does not fit into a worker.
    """
    if recipe.table is not None or recipe.recovery is not None:
        raise RecipeError(f"recipe {recipe.name}: it makes no maps; smscale plan is for recipes that do")
    for option, given, least in (("workers", workers, 1), ("stations", stations, 0), ("samples", samples, 1)):
        if given is not None and given < least:
            raise RecipeError(f"--{option} {given}: expected at least {least}")
    recipe = with_region(recipe)
    own = Size(recipe, _stations(recipe) if stations is None else stations, samples=samples)
    _ = own.plan  # refused before anything is measured
    others, refused = _cases(recipe) if what_if else ({}, {})
    measured = rates_of(recipe, again, progress, say)
    sizes = {recipe.name: own} | others
    runs = tuple(estimate(name, size, measured, _workers(size, own, workers)) for name, size in sizes.items())
    blocks = max(run.blocks for run in runs)
    return Forecast(runs, measured, empty_run(blocks, progress) if scheduler else None, refused)


def _stations(recipe: Recipe) -> int:
    return World.from_file(recipe.resolve(recipe.world)).stations if recipe.world else STATIONS


def _cases(recipe: Recipe) -> tuple[dict[str, Size], dict[str, str]]:
    """Those of `WHAT_IF` that can be run with a recipe's settings, and why the others cannot."""
    sizes, refused = {}, {}
    for name, case in WHAT_IF.items():
        try:
            sizes[name] = case.of(recipe)
        except RecipeError as error:
            refused[name] = str(error)
    return sizes, refused


def _workers(size: Size, own: Size, given: int | None) -> int:
    """As given; else the recipe's, as far as this machine has the memory for them where a size needs more."""
    recipe, memory = own.recipe.resources, size.recipe.resources.memory_per_worker
    if given is not None:
        return given
    if recipe.workers is None:
        return default_workers(memory)
    return recipe.workers if memory == recipe.memory_per_worker else min(recipe.workers, default_workers(memory))


def estimate(name: str, size: Size, rates: Rates, workers: int) -> Estimate:
    """What a run needs, by the rates of this machine."""
    works, trains = size.work(), size.rows <= MOST_ROWS
    reckoned = [work for work in works if trains or work.stage != "train"]
    alone = sum(rates.beside.values()) + rates.start * workers
    alone += sum(_alone(work, rates) for work in reckoned)
    seconds: dict[str, float | None] = {"start": rates.start, **_by_stage(reckoned, rates, workers)}
    if not trains:
        seconds["train"] = None
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
        size.training_memory,
        size.plan.memory,
        workers,
        seconds,
        alone / 3600,
    )


def _alone(work: Work, rates: Rates) -> float:
    """Seconds of one worker."""
    return rates.seconds.get(work.name, 0.0) * work.units + rates.each.get(work.name, 0.0) * work.tasks


def _by_stage(works: Sequence[Work], rates: Rates, workers: int) -> dict[str, float]:
    """Wall time of each stage: what workers share, no less than the longest task, and what is done beside it."""
    seconds = {stage: rates.beside.get(stage, 0.0) for stage in STAGES}
    goes: dict[tuple[str, str], list[Work]] = {}
    for work in works:
        goes.setdefault((work.timed_in, work.together), []).append(work)
    for (stage, _), parts in goes.items():
        alone = [_alone(part, rates) for part in parts]
        longest = max(whole / part.tasks for whole, part in zip(alone, parts, strict=True))
        seconds[stage] += max(sum(alone) / (1 + SHARING * (workers - 1)), longest)
    return seconds
