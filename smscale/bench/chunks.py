"""`smscale bench chunks`: the overpass cube and a map under several named layouts, and which of them a recipe should ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from smscale import config
from smscale.bench import engines, season_cube, tables
from smscale.bench.chunk_report import Report, keep
from smscale.bench.overpass_values import write_maps, write_values
from smscale.bench.regions import DAY
from smscale.bench.scratch import scratch_folder, writable
from smscale.bench.screen import screen
from smscale.bench.strategies import Shape, Strategy, layouts, of_chunks
from smscale.bench.trials import Trial
from smscale.bench.turns import in_turns, process
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
#: Files of the values: the cube's, and a map's.
VALUES, MAPS = "values.npy", "maps.npy"
#: Strategies that the screen may add.
LEFT_IN = 2
#: The recipes' own chunks, and memory of a worker, for a made cube.
CHUNKS, MEMORY = "{time: 8, lat: 100, lon: 100, shard: [1, 3, 3]}", "1.5GiB"
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
    values = 1.5 * math.prod(size) * 4  # of the cube, and of a map
    with scratch_folder(folder, values * (1 + SHARE_ON_DISK * (len(strategies) + LEFT_IN))) as made:
        say(f"makes {values / 1e6:.0f} MB of values\n")
        _make(made, layout, size)
        say("screens codecs, packings and engines\n")
        with process() as one:
            screened = one.submit(screen, made / VALUES, made / "screen", 2 * repeats - 1).result()
        tried = in_turns(_trials([*strategies, *screened.strategies(size)], asked, layout, made), repeats, say)
    title, absent = asked.name if recipe else "a made cube", engines.installed()[2]
    report = Report(title, size, own, repeats, screened, tried, absent, tables.machine(PACKAGES))
    if target:
        keep(report, target)
        say(f"table and figure in {target}\n")
    return report


def _make(folder: Path, layout: Layout, size: Shape) -> None:
    """What is written and read."""
    write_values(folder / VALUES, layout.grid.window(slice(0, size[1]), slice(0, size[2])), size[0])
    write_maps(folder / MAPS, folder / VALUES)
    (folder / "screen").mkdir()


def _trials(
    strategies: Sequence[Strategy], recipe: Recipe, layout: Layout, folder: Path
) -> Iterator[tuple[Trial, str]]:
    """Each strategy in a folder of its own; and why no block of it fits a worker."""
    for i, strategy in enumerate(strategies):
        block, refused = block_of(strategy, recipe, layout)
        yield Trial(strategy, folder / VALUES, folder / f"s{i}", block, folder / MAPS), refused


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


def block_of(strategy: Strategy, recipe: Recipe, layout: Layout) -> tuple[tuple[int, int, int] | None, str]:
    """Steps, rows and columns of the blocks of `downscale` under a strategy; or None, and why none fits a worker."""
    names = ("time", "lat", "lon")
    chunks, shards = (dict(zip(names, s[:3], strict=True)) for s in (strategy.chunk, strategy.unit))
    try:
        return plan_of(recipe, replace(layout, chunks=chunks, shards=shards)).shape, ""
    except RecipeError as error:
        return None, str(error)
