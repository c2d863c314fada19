"""Seconds per unit of work on this machine: a small made world, run with a recipe's own settings and timed.

Every part of a stage takes so long per unit of work (`size.Work`). A still smaller world goes before, in which workers load
and compile. A small world has too few samples to train on: models are timed on a made table. What a stage does beside its
tasks (figures, files) is taken as it was.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from smscale import __version__, blocks, cluster, pipeline, store
from smscale.blocks import Ledger, Task, write_text
from smscale.config import Recipe
from smscale.models import selection
from smscale.planning.size import Size
from smscale.simulate import World
from smscale.workspace import Workspace

Say = Callable[[str], Any]

#: Sides in degrees, days, stations: of the world that warms up, and of the one that is timed.
FIRST, TIMED = (0.9, 3, 12), (1.8, 12, 40)
#: Rows of the tables that models are timed on: a fit takes so long, and so long for each row.
ROWS = (500, 2000)
#: South-western corner of the worlds: the rim of the Sichuan basin.
CORNER = 102.0, 31.0
FIRST_DAY = np.datetime64("2017-07-10")
#: Share of pixel-days behind clouds where the recipe has no world that says it.
CLOUDS = 0.8


@dataclass(frozen=True)
class Rates:
    """What was measured.

    seconds : part of a stage -> seconds per unit
    each : part of a stage -> seconds per task beside that; of fits alone
    beside : stage -> seconds beside its tasks
    start : seconds until workers stand and have loaded what they need
    ratio : store -> bytes on disk by bytes of its values
    cells, overpasses, clouds : of the world; rows : of the larger table
    """

    seconds: Mapping[str, float]
    each: Mapping[str, float]
    beside: Mapping[str, float]
    start: float
    ratio: Mapping[str, float]
    cells: int
    overpasses: int
    clouds: float
    rows: int
    machine: str


def rates_of(recipe: Recipe, again: bool = False, progress: bool = True, say: Say = lambda text: None) -> Rates:
    """Measured before on this machine with these settings, or measured now (minutes), and kept."""
    path = _folder() / f"{_fingerprint(recipe)}.json"
    if not again:
        with suppress(FileNotFoundError, ValueError, TypeError):  # none yet, or a file that is damaged: measured anew
            return Rates(**json.loads(path.read_text()))
    say("calibrating with the recipe's settings: two small worlds and a table, some two minutes\n")
    found = measure(recipe, progress)
    write_text(path, json.dumps(asdict(found), indent=1))
    say(f"kept in {path}\n\n")
    return found


def measure(recipe: Recipe, progress: bool = True) -> Rates:
    """Run the worlds on one worker, fit the models on one, and divide."""
    clouds = World.from_file(recipe.resolve(recipe.world)).cloud_share if recipe.world else CLOUDS
    with (
        tempfile.TemporaryDirectory(prefix="smscale-plan") as folder,
        cluster.connect("local", 1, recipe.resources.memory_per_worker) as client,
    ):
        address = client.scheduler_info(n_workers=0)["address"]
        first = _run(recipe, Path(folder) / "first", FIRST, clouds, address, progress)
        timed = _run(recipe, Path(folder) / "timed", TIMED, clouds, address, progress)
        fits = blocks.run(
            [
                Task(f"{how}/{name}/{rows}", _fit, (recipe, name, how, rows))
                for name in recipe.models
                for how in ("fit", "inner")
                for rows in ROWS
            ],
            Ledger(Path(folder) / "fits"),
            client,
            "train",
            progress,
        )
    return _divided(first, timed, dict(fits.results), clouds)


@dataclass(frozen=True)
class _Timed:
    """One world: its size, seconds of tasks by part, seconds by stage, bytes on disk by store."""

    size: Size
    tasks: Mapping[str, float]
    walls: Mapping[str, float]
    disk: Mapping[str, int]


def _run(
    recipe: Recipe, folder: Path, world: tuple[float, int, int], clouds: float, address: str, progress: bool
) -> _Timed:
    folder.mkdir()
    root = folder / "run"
    small, workspace = _small(recipe, folder / "world.yaml", world, clouds), Workspace(root)
    marks = [(time.perf_counter(), "")]

    def say(text: str) -> None:
        marks.append((time.perf_counter(), text))

    pipeline.run(small, workspace, cluster=address, progress=progress, say=say)
    walls, last = {}, marks[0][0]
    for moment, text in marks:
        if found := re.match(r"(\w+)\s+done in ", text):
            walls[found[1]], last = moment - last, moment
    size = Size(small, world[2], samples=len(workspace.samples))
    return _Timed(size, _seconds(root / "ledger"), walls, _on_disk(root))


def _small(recipe: Recipe, file: Path, world: tuple[float, int, int], clouds: float) -> Recipe:
    """The recipe's settings on a small made world; sieves let pass what a small world has, so that there are samples."""
    side, days, stations = world
    west, south = CORNER
    region = west, south, west + side, south + side
    period = str(FIRST_DAY), str(FIRST_DAY + days - 1)
    values = {"region": list(region), "start": period[0], "end": period[1], "stations": stations, "cloud_share": clouds}
    file.write_text(yaml.safe_dump(values))
    return replace(
        recipe,
        name="calibration",
        world=str(file),
        inputs=None,
        outline=None,
        region=region,
        period=period,
        products={},
        stations=None,
        split=replace(recipe.split, validation="random", inner="random", compare=()),  # a small world has no blocks
        match=replace(recipe.match, min_valid_fraction=0.05, min_lst_valid_fraction=0.02),
        path=str(file),
    )


def _seconds(ledger: Path) -> dict[str, float]:
    """Seconds of tasks by part."""
    parts: dict[str, float] = defaultdict(float)
    for stage in ledger.iterdir():
        for record in stage.glob("*.json") if stage.is_dir() else ():
            held = json.loads(record.read_text())
            parts[_part(stage.name, held["key"])] += held["seconds"]
    return dict(parts)


def _part(stage: str, key: str) -> str:
    """Which part of a stage (`size.Work`) a task belongs to, by its key."""
    kind, slash, rest = key.partition("/")
    if stage == "train":
        return f"train {kind}/{rest}"
    if not slash and kind[:1].isdigit():
        return "downscale blocks" if stage in ("downscale", "fuse") else f"{stage} {kind}"
    return f"{stage} {kind}"


def _on_disk(root: Path) -> dict[str, int]:
    return {
        name: sum(p.stat().st_size for p in (root / name).rglob("*") if p.is_file())
        for name in ("cube.zarr", "maps.zarr")
    }


def _fit(recipe: Recipe, name: str, how: str, rows: int) -> float:
    """Seconds of a fit, or of the folds inside, on a table that means nothing but takes as long."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, len(recipe.predictors))).astype(np.float32)
    y = 0.25 + 0.05 * np.tanh(X[:, 0] + X[:, 1] * X[:, 2]) + rng.normal(0, 0.04, rows)
    groups = rng.integers(0, 40, rows)
    start = time.perf_counter()
    if how == "fit":
        selection.fit_fold(name, recipe.models[name], X, y, groups, None, recipe.seed)
        return time.perf_counter() - start
    folds = recipe.split.inner_folds
    selection.inner_scores({name: recipe.models[name]}, X, y, groups, None, folds=folds, seed=recipe.seed)
    return time.perf_counter() - start


def _divided(first: _Timed, timed: _Timed, fits: dict[str, float], clouds: float) -> Rates:
    """Seconds by units; the first world says how much longer workers took that had to load and compile."""
    seconds = {work.name: timed.tasks.get(work.name, 0.0) / max(work.units, 1) for work in timed.size.work()}
    known = {stage: sum(s for part, s in timed.tasks.items() if part.split()[0] == stage) for stage in timed.walls}
    beside = {stage: max(wall - known[stage], 0.0) for stage, wall in timed.walls.items() if stage != "simulate"}
    warm = sum(seconds[work.name] * work.units for work in first.size.work()) + sum(beside.values())
    cold = sum(wall for stage, wall in first.walls.items() if stage != "simulate") - warm
    each, folds = {}, timed.size.recipe.split.inner_folds
    for model in timed.size.recipe.models:
        for how, share in (("fit", 1), ("inner", folds - 1)):
            name = f"train {how}/{model}"
            each[name], seconds[name] = _line(*((rows * share, fits[f"{how}/{model}/{rows}"]) for rows in ROWS))
        # A fold of a split is a fit like a fold inside.
        each[f"train split/{model}"], seconds[f"train split/{model}"] = each[name] / folds, seconds[name]
    raw: dict[str, int] = defaultdict(int)
    for array in timed.size.arrays():
        raw[array.store] += array.raw
    ratio = {name: timed.disk[name] / raw[name] for name in raw}
    size = timed.size
    return Rates(seconds, each, beside, max(cold, 0.0), ratio, size.cells, size.steps, clouds, ROWS[-1], _machine())


def _line(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """Seconds without any unit and seconds per unit, through two (units, seconds); neither below 0."""
    slope = max((large[1] - small[1]) / (large[0] - small[0]), 0.0)
    return max(small[1] - slope * small[0], 0.0), slope


# -- where they are kept -----------------------------------------------------------------------------


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "smscale" / "rates"


def _fingerprint(recipe: Recipe) -> str:
    """Of machine, version, and everything that says how long a cell takes."""
    settings = recipe.part(
        "predictors", "models", "split", "fusion", "closure", "chunks", "match", "modis", "smap", "resources"
    )
    return store.fingerprint(__version__, _machine(), settings, (FIRST, TIMED, ROWS, CLOUDS))


def _machine() -> str:
    """Processor and cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"
