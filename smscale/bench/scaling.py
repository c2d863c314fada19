"""`smscale bench scaling`: the pass that predicts and fuses, with one worker and with several.

A season is made (`season_cube`), and `downscale` runs over it once, as in a run. The tasks of that run are then done again, by
fresh clusters of so many workers: all of them (strong scaling), or a share of them that grows with the workers (weak).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from dask.utils import parse_bytes

from smscale import blocks, cluster
from smscale.bench import season_cube, tables
from smscale.bench.scaling_report import Case, Counters, Pass, Report, keep
from smscale.bench.scratch import scratch_folder, writable
from smscale.block_plan import Plan
from smscale.blocks import Joint, Ledger, Task, spans
from smscale.config import Recipe
from smscale.errors import InputError
from smscale.pipeline.downscale import downscale
from smscale.pipeline.layout import Layout, layout_of
from smscale.pipeline.plan import plan_of
from smscale.pipeline.run import Run, inscribe
from smscale.progress import used
from smscale.workspace import Workspace

if TYPE_CHECKING:
    from distributed import Client

Say = Callable[[str], Any]

#: Days, rows and columns of the season, and of a quick one.
SHAPE, QUICK = (32, 600, 900), (8, 200, 300)
#: Its chunks, the recipes' own, and of a quick one.
CHUNKS, QUICK_CHUNKS = (
    "{time: 1, lat: 300, lon: 300, shard: [8, 1, 1]}",
    "{time: 1, lat: 100, lon: 100, shard: [4, 1, 1]}",
)
#: Steps of a block, as a whole season has them: so short a one would be cut finer, to have enough of them.
STEPS = 32
MEMORY = "1.5GiB"
REPEATS, QUICK_REPEATS = 3, 1
#: Bytes on disk of a cell at a step: cube and maps (25 in the season of benchmarks/season.py).
BYTES_PER_CELL = 30
STEPS_A_DAY = 2
PACKAGES = ("smscale", "distributed", "numpy", "numba")
STAGES = ("downscale", "fuse")


def bench_scaling(
    workers: Sequence[int] = (1, 2),
    shape: tuple[int, int, int] | None = None,
    *,
    folder: str | None = None,
    out: str | None = None,
    quick: bool = False,
    repeats: int | None = None,
    model: Mapping[str, Any] | None = None,
    say: Say = lambda text: None,
) -> Report:
    """Strong and weak scaling on this machine.

    Parameters
    ----------
    workers : how many; one worker is always among them
    shape : days, rows and columns of the season
    folder : where the season is made and removed again; out : where the table and the figure go
    model : settings of the GABP network that is fitted first

    Raises
    ------
    InputError
        in one line: workers or a shape of nothing, a folder that cannot be written, too little room or memory.
    """
    counts = _counts(workers)
    target = writable(out, "--out") if out else None
    shape = shape or (QUICK if quick else SHAPE)
    repeats = repeats or (QUICK_REPEATS if quick else REPEATS)
    with scratch_folder(folder, BYTES_PER_CELL * STEPS_A_DAY * math.prod(shape)) as made:
        recipe = season_cube.recipe_of(made, shape, QUICK_CHUNKS if quick else CHUNKS, MEMORY)
        layout = layout_of(recipe)
        tasks = _tasks(made, recipe, layout, counts[-1], model or {}, say)
        passes = _passes(_cases(tasks, counts, layout.shards["time"], quick), counts, repeats, made / "ledgers", say)
    report = Report((STEPS_A_DAY * shape[0], *shape[1:]), repeats, passes, tables.machine(PACKAGES))
    if target:
        keep(report, target)
        say(f"table and figure in {target}\n")
    return report


def _counts(workers: Sequence[int]) -> list[int]:
    counts = sorted({1, *workers})
    if not workers or counts[0] < 1:
        raise InputError(f"--workers {','.join(map(str, workers))}: expected whole numbers from 1, as 1,2,4")
    needed, there = counts[-1] * parse_bytes(MEMORY), psutil.virtual_memory().total
    if needed > there:
        raise InputError(
            f"--workers {counts[-1]}: they need {needed / 2**30:.1f} GiB, this machine has {there / 2**30:.1f} GiB"
        )
    return counts


# -- the tasks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Watched(Run):
    """A run that keeps the tasks of its one pass over predicting and fusing."""

    seen: list[Task] = field(default_factory=list)

    def jointly(self, parts: Mapping[str, str], tasks: Sequence[Task], label: str) -> Mapping[str, Any]:
        self.seen.extend(tasks)
        return super().jointly(parts, tasks, label)


def _tasks(
    folder: Path, recipe: Recipe, layout: Layout, workers: int, model: Mapping[str, Any], say: Say
) -> list[Task]:
    """Make a season and run over it once; the tasks that predicted and fused it."""
    workspace = Workspace(folder / "run")
    (workspace.root / "ledger").mkdir(parents=True)
    inscribe(recipe, workspace)
    with cluster.connect("local", workers, MEMORY) as client:
        say("makes a season\n")
        season_cube.make_cube(workspace, layout, client, progress=False)
        workspace = Workspace(workspace.root)
        season_cube.make_model(workspace, recipe, **model)
        say("runs over it once\n")
        run = _Watched(recipe, workspace, ("ingest", "match", "train", *STAGES), STAGES, client, progress=False)
        downscale(run, layout, _as_of_a_season(plan_of(recipe, layout)))
    return run.seen


def _as_of_a_season(plan: Plan) -> Plan:
    """The plan with blocks of `STEPS` steps, where it has shorter ones."""
    steps, rows, cols = plan.shape
    return replace(plan, shape=(max(steps, min(STEPS, plan.sizes[0])), rows, cols))


def _cases(tasks: Sequence[Task], counts: Sequence[int], shard: int, quick: bool) -> list[Case]:
    """Whole and shorter blocks; all of them, and a share that grows with the workers, from all over the cube."""
    cut = [] if quick else [part for task in tasks for part in _cut(task, shard)]
    cases = []
    for several in (tasks, cut) if len(cut) > len(tasks) else (tasks,):
        shape = _spelled(several[0])
        for count in counts:
            share = tuple(task for i, task in enumerate(several) if i % counts[-1] < count)
            cases += [Case("strong", shape, count, tuple(several)), Case("weak", shape, count, share)]
    return cases


def _cut(task: Task, steps: int) -> Iterator[Task]:
    """The block of a task in runs of so many steps."""
    *given, (slab, rows, cols) = task.args
    for part in spans(slab.stop - slab.start, steps):
        inside = slice(slab.start + part.start, slab.start + part.stop)
        cells = task.cells * (part.stop - part.start) // (slab.stop - slab.start)
        yield replace(task, key=f"{task.key}/{inside.start}", args=(*given, (inside, rows, cols)), cells=cells)


def _spelled(task: Task) -> str:
    return "x".join(str(part.stop - part.start) for part in task.args[-1])


# -- passes ---------------------------------------------------------------------------------------


def _passes(
    cases: Sequence[Case], counts: Sequence[int], repeats: int, ledgers: Path, say: Say
) -> dict[Case, list[Pass]]:
    """Every case in every turn; each turn begins at the other end of the numbers of workers, so that none is always the first."""
    passes: dict[Case, list[Pass]] = {case: [] for case in cases}
    for turn in range(repeats):
        for count in counts if turn % 2 == 0 else reversed(counts):
            say(f"turn {turn + 1} of {repeats}: {count} worker{'s' if count > 1 else ''}\n")
            with _warm(count, cases[0].tasks[0]) as client:
                for i, case in enumerate(cases):
                    if case.workers == count:
                        passes[case].append(_pass(case, client, ledgers / f"{turn}-{i}"))
    return passes


@contextmanager
def _warm(workers: int, task: Task) -> Iterator[Client]:
    """A fresh cluster whose workers have done a block: what a worker loads the first time is not measured."""
    with cluster.connect("local", workers, MEMORY) as client:
        there = client.scheduler_info(n_workers=-1)["workers"]
        first = [client.submit(_done, task, workers=[w], allow_other_workers=False, pure=False) for w in there]
        client.gather(first)
        yield client


def _done(task: Task) -> None:
    task.call(*task.args)


def _pass(case: Case, client: Client, folder: Path) -> Pass:
    ledgers = Joint({stage: (Ledger(folder / stage), "bench") for stage in STAGES})
    os.sync()  # what passes before wrote is not written out during this one
    before = _workers(client), _scheduler(client)
    start = time.perf_counter()
    blocks.run(case.tasks, ledgers, client, progress=False, in_memory=False)
    seconds = time.perf_counter() - start
    after = _workers(client), _scheduler(client)
    return Pass(seconds, after[0] - before[0], after[1] - before[1])


def _workers(client: Client) -> Counters:
    """Of all workers together."""
    return sum(client.run(_of_worker).values(), Counters())


def _scheduler(client: Client) -> Counters:
    """Of the scheduler's loop, which in this process is the client's too."""
    told, line = client.run_on_scheduler(_of_scheduler), client.scheduler_comm
    return told + Counters(sent=line.byte_count if line is not None else 0)


def _of_worker(dask_worker: Any) -> Counters:
    sent = dask_worker.batched_stream.byte_count + dask_worker.transfer_outgoing_bytes_total
    account = used()
    return Counters(time.process_time(), sent, account.read + account.written)


def _of_scheduler(dask_scheduler: Any) -> Counters:
    lines = [*dask_scheduler.stream_comms.values(), *dask_scheduler.client_comms.values()]
    return Counters(time.thread_time(), sum(line.byte_count for line in lines))
