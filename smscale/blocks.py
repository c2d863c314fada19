"""The engine: independent units of work, each done once, wherever there is a worker.

A `Task` is a module-level function and small arguments; what is large (a model, a station table) lies in the workspace
and is read by reference, once per worker. Tasks go out in a moving window, so a million of them is no larger a graph than
a thousand; short ones travel in packs, so that the scheduler costs them little. What is finished stands in the ledger,
one record per task, and is not done again. What failed and was tried again is told, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from smscale import claims, disk
from smscale.block_task import Done, Finished, Outcome, Task, attempt, device, failure, persistent, reason, some
from smscale.block_window import Window
from smscale.errors import SmscaleError, StoreError
from smscale.ledger import Joint, Ledger, Recorded
from smscale.places import together
from smscale.progress import Part, Receipted, Unwatched, Watch, used

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Joint", "Ledger", "Outcome", "Task", "device", "run", "spans"]

#: In this process, what blocks used is looked at so often.
LOOK_HERE_SECONDS = 1.0


def run(
    tasks: Sequence[Task],
    ledger: Ledger | Joint,
    client: Client | Callable[[], Client | None] | None = None,
    label: str = "",
    progress: bool = True,
    say: Callable[[str], Any] | None = None,
    in_memory: bool = True,
    watch: Watch | None = None,
) -> Outcome:
    """Do what the ledger does not hold, on the client's workers or in this process.

    Parameters
    ----------
    ledger : of one stage, or of several (`Joint`) whose work one task does
    client : or a function that makes one: it is called only where there is something to do
    say : is given a line at the end where tasks had to be tried again, or workers were lost
    in_memory : without it the results are read from the ledger when asked: for stages of very many tasks
    watch : is told how far the tasks are

    Raises
    ------
    SmscaleError
        the first that a task raised; what other tasks finished stays finished.
    TaskError
        if a task failed more than `RETRIES` times otherwise, ended its workers, or the cluster was lost.
    StoreError
        if the ledger, or what a task writes, cannot be written: at once where it is read-only, after the tries where it is full.
    """
    if len({task.key for task in tasks}) != len(tasks):
        raise StoreError(f"{label}: two tasks share one key")
    held: dict[str, Any] = {}
    todo = []
    for task, record in ledger.records(tasks):
        if in_memory:
            held[task.key] = None if record is None else record["result"]
        if record is None:
            todo.append(task)
    outcome = Outcome(held if in_memory else Recorded(tasks, ledger), len(tasks) - len(todo))
    workers = _client(client) if todo else None
    part = Part(label, len(tasks), outcome.done_before, here=workers is None)
    if workers is None:
        finished = _here(todo, ledger, outcome, part)
    else:
        finished = Window(todo, workers, ledger, outcome).finished()
    watch, receipted = watch or Unwatched(), Receipted(ledger.folder.parent.parent)
    with (
        _told(watch, part, outcome),
        closing(finished),  # also where the record of a block fails, or the user stops: what flies is cancelled
        tqdm(
            total=len(tasks), initial=outcome.done_before, desc=label, unit="block", disable=not progress or not todo
        ) as bar,
    ):
        entered = together(lambda one: (*one, _entered(ledger, *one)), finished, ledger.folder)
        for task, done, result in entered:
            if in_memory:
                held[task.key] = result
            if done.failures:
                outcome.retried[task.key] = f"{some(done.failures, 'time')}, {done.failure}"
            _count(part, task, done, receipted.bytes_of(result), outcome)
            watch.moved(part)
            bar.set_postfix_str(_postfix(part), refresh=False)
            bar.update()
    if say is not None and outcome.trouble:
        say(f"{label:<10} {outcome.trouble}\n")
    return outcome


def _client(given: Client | Callable[[], Client | None] | None) -> Client | None:
    return given() if callable(given) else given


@contextmanager
def _told(watch: Watch, part: Part, outcome: Outcome) -> Iterator[None]:
    """Tell a watch when a part begins and when it ends, however that is."""
    watch.begins(part)
    try:
        yield
    finally:
        part.ended, part.failed, part.workers_lost = time.monotonic(), len(outcome.failed), outcome.workers_lost
        for key, why in outcome.failed.items():
            part.fails(key, why)
        watch.ends(part)


def _count(part: Part, task: Task, done: Done, values: int, outcome: Outcome) -> None:
    """Count a finished task, with the bytes of values that it wrote."""
    part.done, part.cells, part.values = part.done + 1, part.cells + task.cells, part.values + values
    part.workers_lost = outcome.workers_lost
    if done.used is not None:
        part.uses(done.used)
    if done.failures:
        part.retried += 1
        part.fails(task.key, outcome.retried[task.key])


def _postfix(part: Part) -> str:
    """What stands behind blocks, rate and time left: bytes of values, the rate in cells of the cube, and troubles."""
    parts = [f"{tqdm.format_sizeof(part.values)}B"] if part.values else []
    parts += [f"{tqdm.format_sizeof(part.cells_per_second)}cells/s"] if part.cells else []
    parts += [f"{part.retried} tried again"] if part.retried else []
    parts += [f"{some(part.workers_lost, 'worker')} lost"] if part.workers_lost else []
    return ", ".join(parts)


def _here(tasks: Sequence[Task], ledger: Ledger | Joint, outcome: Outcome, part: Part) -> Finished:
    before, looked = used(), time.monotonic()
    try:
        for task in tasks:
            claims.require_held()
            try:
                done = attempt(task.call, task.args)
            except SmscaleError as error:
                outcome.failed[task.key] = reason(error)
                raise
            except Exception as error:
                outcome.failed[task.key] = reason(error)
                raise failure(task, error, ledger) from error
            yield task, done
            if time.monotonic() - looked > LOOK_HERE_SECONDS:
                now, looked = used(), time.monotonic()
                part.uses(now.since(before))
                before = now
    finally:
        part.uses(used().since(before))


def _entered(ledger: Ledger | Joint, task: Task, done: Done) -> Any:
    claims.require_held()
    try:
        return persistent(ledger.enter, task, done.result, done.seconds, done.failures, done.failure)[0]
    except OSError as error:
        raise StoreError(f"{ledger.folder}: the record of block {task.key} {disk.cure(error.errno)}") from error


def spans(size: int, step: int) -> list[slice]:
    """Consecutive slices of `step` that cover `size`; the last may be shorter."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
