"""The engine: independent units of work, each done once, wherever there is a worker.

A `Task` is a module-level function and small arguments; what is large (a model, a station table) lies in the workspace
and is read by reference, once per worker. Tasks go out in a moving window, so a million of them is no larger a graph than
a thousand. What is finished stands in the ledger, one record per task, and is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from tqdm.auto import tqdm

from smscale.errors import SmscaleError, StoreError, TaskError

if TYPE_CHECKING:
    from distributed import Client

#: Tasks in flight per worker thread: enough to hide the scheduler's round trip, few enough to keep it small.
IN_FLIGHT_PER_THREAD = 4
#: A failed task (a lost worker, a full disk for a moment) is tried this often again before the run stops.
RETRIES = 2


@dataclass(frozen=True)
class Task:
    """One unit of work.

    Parameters
    ----------
    key : unique within its stage; names the ledger record
    call : module-level function; what it returns is JSON-able (counts, checksums) and stands in the ledger
    args : small and picklable
    fingerprint : of what the task is made from; another fingerprint means that it must be done again
    """

    key: str
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True)
class Ledger:
    """What is finished in one stage: a JSON record per task in a folder."""

    folder: Path

    def record(self, task: Task) -> dict[str, Any] | None:
        """The record of a finished task; None where it is not finished, or was made from something else."""
        try:
            record = json.loads(self._path(task.key).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return record if record.get("fingerprint") == task.fingerprint else None

    def enter(self, task: Task, result: Any, seconds: float) -> Any:
        """Enter a finished task; the record appears whole or not at all. The result comes back as a later run will read it."""
        record = {"key": task.key, "fingerprint": task.fingerprint, "seconds": round(seconds, 3), "result": result}
        text = json.dumps(record)
        write_text(self._path(task.key), text)
        return json.loads(text)["result"]

    def forget(self, prefix: str = "") -> None:
        """Remove the records of all tasks whose keys begin so."""
        if not prefix:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.folder.is_dir():
            for record in self.folder.glob(f"{prefix.replace('/', '.')}*.json"):
                record.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key.replace('/', '.')}.json"


@dataclass
class Outcome:
    """What a stage's tasks returned, in the order of the tasks, and how many were already finished."""

    results: dict[str, Any] = field(default_factory=dict)
    done_before: int = 0


def run(
    tasks: Sequence[Task],
    ledger: Ledger,
    client: Client | Callable[[], Client | None] | None = None,
    label: str = "",
    progress: bool = True,
) -> Outcome:
    """Do what the ledger does not hold, on the client's workers or in this process.

    `client` may be a function that makes one: it is called only where there is something to do.

    Raises
    ------
    SmscaleError
        the first that a task raised; what other tasks finished stays finished.
    TaskError
        if a task failed more than `RETRIES` times otherwise.
    """
    if len({task.key for task in tasks}) != len(tasks):
        raise StoreError(f"{label}: two tasks share one key")
    outcome = Outcome()
    todo = []
    for task in tasks:
        record = ledger.record(task)
        outcome.results[task.key] = None if record is None else record["result"]
        if record is None:
            todo.append(task)
    outcome.done_before = len(tasks) - len(todo)
    client = client() if todo and callable(client) else client
    finished = _on_client(todo, client) if todo and client is not None and not callable(client) else _here(todo)
    with tqdm(
        total=len(tasks), initial=outcome.done_before, desc=label, unit="block", disable=not progress or not todo
    ) as bar:
        for task, result, seconds in finished:
            outcome.results[task.key] = ledger.enter(task, result, seconds)
            bar.update()
    return outcome


def _timed(call: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, float]:
    """Call, and the seconds it took; lazy arrays inside are read where the task runs, not sent round the cluster."""
    start = time.perf_counter()
    with dask.config.set(scheduler="synchronous"):
        result = call(*args)
    return result, time.perf_counter() - start


def _here(tasks: Sequence[Task]) -> Iterator[tuple[Task, Any, float]]:
    for task in tasks:
        yield (task, *_timed(task.call, task.args))


def _on_client(tasks: Sequence[Task], client: Client) -> Iterator[tuple[Task, Any, float]]:
    """Submit in a moving window; results come as they finish."""
    from distributed import as_completed

    queue = iter(tasks)
    flying: dict[str, Task] = {}
    completed = as_completed()

    def submit() -> bool:
        task = next(queue, None)
        if task is None:
            return False
        future = client.submit(
            _timed, task.call, task.args, pure=False, retries=RETRIES, key=f"{task.key}-{os.urandom(6).hex()}"
        )
        flying[str(future.key)] = task
        completed.add(future)
        return True

    window = max(2, IN_FLIGHT_PER_THREAD * sum(client.nthreads().values() or [1]))
    while len(flying) < window and submit():
        pass
    try:
        for future in completed:
            task = flying.pop(str(future.key))
            result, seconds = _result(future, task)
            submit()
            yield task, result, seconds
    finally:
        client.cancel(list(completed.futures))


def _result(future: Any, task: Task) -> tuple[Any, float]:
    try:
        return future.result()
    except SmscaleError:
        raise
    except Exception as error:
        raise TaskError(f"block {task.key} failed {RETRIES + 1} times: {type(error).__name__}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{hashlib.blake2b(content, digest_size=4).hexdigest()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def spans(size: int, step: int) -> list[slice]:
    """Consecutive slices of `step` that cover `size`; the last may be shorter."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
