"""Seconds per unit of work on this machine: a small made world, run with a recipe's own settings and timed.

Every part of a stage takes so long for each task, and so long per unit of work (`size.Work`): a line through two worlds. The smaller
one goes before, too, in which workers load and compile. A small world has too few samples to train on: models are timed on a made table. What a stage does beside its
tasks (figures, files) is taken as it was.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from scipy.optimize import nnls

from smscale import __version__, blocks, cluster, pipeline, store
from smscale.blocks import Ledger, Task
from smscale.config import Recipe
from smscale.models import selection
from smscale.models.cnn.patch import patch_columns
from smscale.observe import Observer, Sink, Stage, about_machine
from smscale.pipeline.surroundings import patch_of
from smscale.places import write_text
from smscale.planning.size import Size
from smscale.simulate import World
from smscale.workspace import Workspace

Say = Callable[[str], Any]

#: Sides in degrees, days, stations: of the world that warms up and is then timed, and of a larger one.
SMALL, LARGE = (0.9, 3, 12), (1.8, 12, 40)
#: Rows of the tables that models are timed on: a fit takes so long, and so long for each row.
ROWS = (500, 2000)
#: South-western corner of the worlds: the rim of the Sichuan basin.
CORNER = 102.0, 31.0
FIRST_DAY = np.datetime64("2017-07-10")
STAGES = ("ingest", "match", "train", "downscale", "fuse", "evaluate")
#: The ledger's key of one model on one fold of a split, without what stands before the slash: 3-space-block-0-rf.
SPLIT_KEY = re.compile(r"\d+-[a-z-]+?-\d+-(?P<model>.+)")
#: Share of pixel-days behind clouds where the recipe has no world that says it.
CLOUDS = 0.8


@dataclass(frozen=True)
class Rates:
    """What was measured.

    seconds : part of a stage -> seconds per unit
    each : part of a stage -> seconds per task beside that
    beside : stage -> seconds beside the tasks that are planned
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
    clouds = World.from_file(recipe.resolve(recipe.world)).cloud_share if recipe.world else CLOUDS
    path = _folder() / f"{_fingerprint(recipe, clouds)}.json"
    if not again:
        with suppress(FileNotFoundError, ValueError, TypeError):  # none yet, or a file that is damaged: measured anew
            return Rates(**json.loads(path.read_text()))
    say("calibrating with the recipe's settings: two small worlds and a table, some two minutes\n")
    found = measure(recipe, clouds, progress)
    write_text(path, json.dumps(asdict(found), indent=1))
    say(f"kept in {path}\n\n")
    return found


def measure(recipe: Recipe, clouds: float = CLOUDS, progress: bool = True) -> Rates:
    """Run the worlds on one worker, fit the models on one, and divide."""
    begun = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="smscale-plan") as folder,
        cluster.connect("local", 1, recipe.resources.memory_per_worker) as client,
    ):
        stand = time.perf_counter() - begun
        address = client.scheduler_info(n_workers=0)["address"]
        cold, small, large = (
            _run(recipe, Path(folder) / name, world, clouds, address, progress)
            for name, world in (("cold", SMALL), ("small", SMALL), ("large", LARGE))
        )
        fits = blocks.run(_fits(recipe), Ledger(Path(folder) / "fits"), client, "train", progress)
    return _divided(cold, small, large, dict(fits.results), stand, clouds)


def _fits(recipe: Recipe) -> list[Task]:
    """Fits of every model, alone and on inner folds, and of what models are compared with; each on two tables."""
    wanted = [*product(recipe.models, ("fit", "inner")), *product(selection.BASELINES, ("fit",))]
    return [
        Task(f"{how}/{name}/{rows}", _fit, (recipe, name, how, rows)) for (name, how), rows in product(wanted, ROWS)
    ]


@dataclass(frozen=True)
class _Timed:
    """One world: its size, seconds of tasks by part, seconds by stage, bytes on disk by store."""

    size: Size
    tasks: Mapping[str, float]
    walls: Mapping[str, float]
    disk: Mapping[str, int]

    def of(self, name: str) -> tuple[float, float, float] | None:
        """Tasks, units and seconds of a part, where there were any."""
        works = [work for work in self.size.work() if work.name == name]
        return (works[0].tasks, works[0].units, self.tasks[name]) if works and self.tasks.get(name) else None

    @property
    def beside(self) -> dict[str, float]:
        """Seconds of each stage beside the tasks that are planned."""
        known: dict[str, float] = defaultdict(float)
        for work in self.size.work():
            known[work.timed_in] += self.tasks.get(work.name, 0.0)
        return {stage: max(wall - known[stage], 0.0) for stage, wall in self.walls.items()}


class _Walls(Sink):
    """Seconds of each stage of the recipe."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def stage_ends(self, run: Observer, stage: Stage) -> None:
        if stage.name in STAGES:
            self.seconds[stage.name] = stage.seconds


def _run(
    recipe: Recipe, folder: Path, world: tuple[float, int, int], clouds: float, address: str, progress: bool
) -> _Timed:
    folder.mkdir()
    root, walls = folder / "run", _Walls()
    small, workspace = _small(recipe, folder / "world.yaml", world, clouds), Workspace(root)
    pipeline.run(small, workspace, cluster=address, progress=progress, sinks=[walls])
    size = Size(small, world[2], samples=len(workspace.samples))
    return _Timed(size, _seconds(root / "ledger"), walls.seconds, _on_disk(root))


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
        store="zarr",
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
    parts: dict[str, list[float]] = defaultdict(list)
    for stage in STAGES:
        for record in (ledger / stage).glob("*.json"):
            held = json.loads(record.read_text())
            parts[_part(stage, held["key"])].append(held["seconds"])
    return {part: _without_first(seconds) for part, seconds in parts.items()}


def _without_first(seconds: list[float]) -> float:
    """Sum, of three and more with the longest no more than twice the median: one of them read what all of a run need, which is left beside."""
    if len(seconds) < 3:
        return sum(seconds)
    *others, longest = sorted(seconds)
    return sum(others) + min(longest, 2 * median(others))


def _part(stage: str, key: str) -> str:
    """Which part of a stage (`size.Work`) a task belongs to, by its key."""
    kind, slash, rest = key.partition("/")
    if stage == "train":
        split = SPLIT_KEY.match(rest) if kind == "split" else None
        return f"train {kind}/{split['model'] if split else rest}"
    if not slash and kind[:1].isdigit():
        return f"{stage} blocks"
    return f"{stage} {kind}"


def _on_disk(root: Path) -> dict[str, int]:
    return {
        name: sum(p.stat().st_size for p in (root / name).rglob("*") if p.is_file())
        for name in ("cube.zarr", "maps.zarr")
    }


def _fit(recipe: Recipe, name: str, how: str, rows: int) -> float:
    """Seconds of a fit, or of the folds inside, on a table that means nothing but takes as long."""
    rng, settings = np.random.default_rng(0), recipe.models.get(name, {})
    columns = patch_columns(recipe.predictors, patch_of(name, settings))
    X = rng.normal(size=(rows, len(columns))).astype(np.float32)
    y = 0.25 + 0.05 * np.tanh(X[:, 0] + X[:, 1] * X[:, 2]) + rng.normal(0, 0.04, rows)
    groups = rng.integers(0, 40, rows)
    start = time.perf_counter()
    if how == "fit":
        selection.fit_fold(name, settings, X, y, groups, None, recipe.seed)
        return time.perf_counter() - start
    folds = recipe.split.inner_folds
    selection.inner_scores({name: settings}, X, y, groups, None, folds=folds, seed=recipe.seed)
    return time.perf_counter() - start


def _divided(
    cold: _Timed, small: _Timed, large: _Timed, fits: Mapping[str, float], stand: float, clouds: float
) -> Rates:
    """Seconds by tasks and units; the first world says how much longer workers took that had to load and compile.

    fits : seconds by "HOW/MODEL/ROWS"; stand : seconds until the worker stood
    """
    size = large.size
    each, seconds = {}, {}
    for work in size.work():
        each[work.name], seconds[work.name] = _shared(small.of(work.name), large.of(work.name))
    more = max(sum(cold.walls.values()) - sum(small.walls.values()), 0.0)
    each_fit, of_fits = _of_fits(size.recipe, fits)
    raw: dict[str, int] = defaultdict(int)
    for array in size.arrays():
        raw[array.store] += array.raw
    ratio = {name: large.disk[name] / raw[name] for name in raw}
    return Rates(
        seconds | of_fits,
        each | each_fit,
        large.beside,
        stand + more,
        ratio,
        size.cells,
        size.steps,
        clouds,
        ROWS[-1],
        _machine(),
    )


def _shared(*measured: tuple[float, float, float] | None) -> tuple[float, float]:
    """Seconds per task and per unit, neither below 0, that come nearest to the (tasks, units, seconds) that were measured."""
    known = np.array([one for one in measured if one is not None])
    if not len(known):
        return 0.0, 0.0
    if len(known) == 1:
        return 0.0, float(known[0, 2] / max(known[0, 1], 1))
    return tuple(nnls(known[:, :2] / known[:, 2:], np.ones(len(known)))[0].tolist())


def _of_fits(recipe: Recipe, fits: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds per task, and per unit, of everything that trains. A fold of a split is a fit like a fold inside."""
    each, seconds, folds = {}, {}, recipe.split.inner_folds
    for model in recipe.models:
        for how, share in (("fit", 1), ("inner", folds - 1)):
            name = f"train {how}/{model}"
            each[name], seconds[name] = _line(*((rows * share, fits[f"{how}/{model}/{rows}"]) for rows in ROWS))
        split = f"train split/{model}"
        each[split], seconds[split] = each[f"train inner/{model}"] / folds, seconds[f"train inner/{model}"]
    for model in selection.BASELINES:
        split = f"train split/{model}"
        each[split], seconds[split] = _line(*((rows, fits[f"fit/{model}/{rows}"]) for rows in ROWS))
    return each, seconds


def _line(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """Seconds without any unit and seconds per unit, through two (units, seconds); neither below 0."""
    slope = max((large[1] - small[1]) / (large[0] - small[0]), 0.0)
    return max(small[1] - slope * small[0], 0.0), slope


# -- where they are kept -----------------------------------------------------------------------------


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "smscale" / "rates"


def _fingerprint(recipe: Recipe, clouds: float) -> str:
    """Of machine, version, and everything that says how long a cell takes; one worker is measured, whatever the recipe has."""
    settings = recipe.part("predictors", "models", "split", "fusion", "closure", "chunks", "match", "modis", "smap")
    memory = recipe.resources.memory_per_worker
    return store.fingerprint(__version__, _machine(), settings, memory, clouds, (SMALL, LARGE, ROWS))


def _machine() -> str:
    """Processor and cores."""
    about = about_machine()
    return f"{about['processor']}, {about['cores']} cores"
