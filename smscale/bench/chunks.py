"""`smscale bench chunks`: the overpass cube under several named layouts, and which of them a recipe should ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from smscale import config
from smscale.bench import engines, measure, season_cube, tables
from smscale.bench.chunk_report import Report, Tried, keep
from smscale.bench.measure import Cost, files_and_bytes
from smscale.bench.overpass_values import write_values
from smscale.bench.scratch import scratch_folder, writable
from smscale.bench.screen import screen
from smscale.bench.strategies import Shape, Strategy, layouts, of_chunks
from smscale.bench.trials import DAY, PATTERNS, Trial
from smscale.config import Recipe
from smscale.errors import RecipeError
from smscale.pipeline import with_region
from smscale.pipeline.layout import Layout, layout_of
from smscale.pipeline.plan import plan_of

Say = Callable[[str], Any]

#: Days, rows and columns of a cube that is made where no recipe is given; and the most of a quick one.
SHAPE, QUICK = (64, 600, 900), (16, 300, 300)
#: Turns of every pattern; their median counts.
REPEATS, QUICK_REPEATS = 3, 1
#: Of the bytes of values, what a strategy takes on disk at most: 15 % are valid.
SHARE_ON_DISK = 0.3
#: Strategies that the screen may add.
LEFT_IN = 2
#: The recipes' own chunks, and memory of a worker, for a made cube.
CHUNKS, MEMORY = "{time: 1, lat: 300, lon: 300, shard: [8, 1, 1]}", "1.5GiB"
#: What the numbers depend on.
PACKAGES = ("smscale", "zarr", "numcodecs", "pcodec", "zarrs", "tensorstore", "numpy")


def bench_chunks(
    recipe: str | None = None,
    shape: tuple[int, int, int] | None = None,
    *,
    folder: str | None = None,
    out: str | None = None,
    quick: bool = False,
    repeats: int | None = None,
    settings: Sequence[str] = (),
    say: Say = lambda text: None,
) -> Report:
    """Measure the layouts for a recipe, or for a cube of so many days, rows and columns.

    Parameters
    ----------
    folder : where cubes are written and removed again; out : where the table and the figure go
    quick : a part of the cube, one turn

    Raises
    ------
    InputError, RecipeError
        in one line: a shape of nothing, a folder that cannot be written, too little room.
    """
    with scratch_folder(folder, 0) as made:
        asked = _recipe(recipe, shape, settings, made)
    target = writable(out, "--out") if out else None
    layout = layout_of(asked)
    size = _size(layout, quick)
    own, strategies = _strategies(asked, size)
    repeats = repeats or (QUICK_REPEATS if quick else REPEATS)
    values = math.prod(size) * 4
    with scratch_folder(folder, values * (1 + SHARE_ON_DISK * (len(strategies) + LEFT_IN))) as made:
        say(f"makes {values / 1e6:.0f} MB of values\n")
        source = made / "values.npy"
        write_values(source, layout.grid.window(slice(0, size[1]), slice(0, size[2])), size[0])
        say("screens codecs, packings and engines\n")
        (made / "screen").mkdir()
        with _process() as process:
            screened = process.submit(screen, source, made / "screen", 2 * repeats - 1).result()
        results = _try([*strategies, *screened.strategies(size)], asked, layout, source, made, repeats, say)
    _, _, absent = engines.installed()
    title = asked.name if recipe else "a made cube"
    report = Report(title, size, own, repeats, screened, results, absent, tables.machine(PACKAGES))
    if target:
        keep(report, target)
        say(f"table and figure in {target}\n")
    return report


def _strategies(recipe: Recipe, size: Shape) -> tuple[str, list[Strategy]]:
    """The name of the recipe's own layout, and the named layouts, with its own first where it has none of their names."""
    own, named = of_chunks("recipe", recipe.chunks, size), layouts(size)
    same = [s.name for s in named if (s.chunk, s.shard) == (own.chunk, own.shard)]
    return (same[0], named) if same else (own.name, [own, *named])


def _recipe(recipe: str | None, shape: tuple[int, int, int] | None, settings: Sequence[str], folder: Path) -> Recipe:
    if recipe is None:
        return season_cube.recipe_of(folder, shape or SHAPE, CHUNKS, MEMORY)
    if shape is not None:
        raise RecipeError("--shape: not beside a recipe, whose region and period give the shape")
    found = config.read(recipe, settings)
    if found.table is not None or found.recovery is not None:
        raise RecipeError(f"{recipe}: it makes no cube; name a recipe with inputs or a world")
    return with_region(found)


def _size(layout: Layout, quick: bool) -> Shape:
    """Of the array that is measured."""
    steps, (rows, cols) = layout.steps.sizes["time"], layout.grid.shape
    if quick:
        days, most_rows, most_cols = QUICK
        steps, rows, cols = min(steps, days * DAY), min(rows, most_rows), min(cols, most_cols)
    return steps, rows, cols, 2


def _try(
    strategies: Sequence[Strategy],
    recipe: Recipe,
    layout: Layout,
    source: Path,
    folder: Path,
    repeats: int,
    say: Say,
) -> list[Tried]:
    """Every strategy in a process of its own; they take turns, pattern by pattern."""
    with ExitStack() as stack:
        running = []
        for i, strategy in enumerate(strategies):
            block, refused = block_of(strategy, recipe, layout)
            trial = Trial(strategy, source, folder / f"s{i}", block)
            costs: dict[str, list[Cost]] = {name: [] for name in ("write", *trial.patterns)}
            process = stack.enter_context(_process())
            running.append((trial, Tried(strategy, costs, 0, 0, refused), process))
        for trial, _, process in running:
            process.submit(trial.run, "append", 0).result()  # what a process does the first time is not measured
        for turn in range(repeats):
            say(f"turn {turn + 1} of {repeats}: writes and reads {len(strategies)} strategies\n")
            for trial, tried, process in running:
                tried.costs["write"].append(process.submit(trial.write).result())
            for pattern in PATTERNS:
                for trial, tried, process in running:
                    if pattern in trial.patterns:
                        tried.costs[pattern].append(process.submit(trial.run, pattern, turn).result())
        return [_counted(tried, trial.path) for trial, tried, _ in running]


def _counted(tried: Tried, path: Path) -> Tried:
    files, size = files_and_bytes(path)
    return replace(tried, files=files, size=size)


def block_of(strategy: Strategy, recipe: Recipe, layout: Layout) -> tuple[tuple[int, int, int] | None, str]:
    """Steps, rows and columns of the blocks of `downscale` under a strategy; or None, and why none fits a worker."""
    names = ("time", "lat", "lon")
    chunks, shards = (dict(zip(names, s[:3], strict=True)) for s in (strategy.chunk, strategy.unit))
    try:
        return plan_of(recipe, replace(layout, chunks=chunks, shards=shards)).shape, ""
    except RecipeError as error:
        return None, str(error)


def _process() -> ProcessPoolExecutor:
    """A process of its own, begun anew, on one core."""
    return ProcessPoolExecutor(1, get_context("spawn"), measure.on_one_core)
