"""The engine: independent units of work, each done once, wherever there is a worker.

A `Task` is a module-level function and small arguments; what is large (a model, a station table) lies in the workspace
and is read by reference, once per worker. Tasks go out in a moving window, so a million of them is no larger a graph than
a thousand; short ones travel in packs, so that the scheduler costs them little. What is finished stands in the ledger,
one record per task, and is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from tqdm.auto import tqdm

from smscale.errors import SmscaleError, StoreError, TaskError

if TYPE_CHECKING:
    from distributed import Client, Future

#: Packs in flight per worker thread: enough to hide the scheduler's round trip, few enough to keep it small.
IN_FLIGHT_PER_THREAD = 4
#: Short tasks travel together, as many as a worker does in this time; what is left over then comes back undone.
PACK_SECONDS = 0.1
#: Tasks in a pack at most.
PACK_MOST = 64
#: A failed task is tried again before the run stops; after so many seconds where a disk or a network refused (full for a moment).
RETRY_AFTER = (0.5, 2.0)
RETRIES = len(RETRY_AFTER)


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
        if a task failed more than `RETRIES` times otherwise, ended its workers, or the cluster was lost.
    StoreError
        if the ledger cannot be written.
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
    workers = _client(client) if todo else None
    finished = _here(todo) if workers is None else _Window(todo, workers).finished()
    with (
        closing(finished),  # also where the record of a block fails, or the user stops: what flies is cancelled
        tqdm(
            total=len(tasks), initial=outcome.done_before, desc=label, unit="block", disable=not progress or not todo
        ) as bar,
    ):
        for task, result, seconds in finished:
            outcome.results[task.key] = _entered(ledger, task, result, seconds)
            bar.update()
    return outcome


def _client(given: Client | Callable[[], Client | None] | None) -> Client | None:
    return given() if callable(given) else given


def _timed(call: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, float]:
    """Call, and the seconds it took; lazy arrays inside are read where the task runs, not sent round the cluster."""
    start = time.perf_counter()
    with dask.config.set(scheduler="synchronous"):
        result = call(*args)
    return result, time.perf_counter() - start


def _persistent(call: Callable[..., Any], *args: Any) -> Any:
    """Call, and again where it fails; not where an error of ours says what is wrong, for it would be wrong again."""
    for pause in RETRY_AFTER:
        try:
            return call(*args)
        except SmscaleError:
            raise
        except Exception as error:
            time.sleep(pause if isinstance(error, OSError) else 0)
    return call(*args)


def _pack(
    calls: Sequence[Callable[..., Any]], args: Sequence[tuple[Any, ...]]
) -> tuple[list[tuple[Any, float]], SmscaleError | None]:
    """The first of several calls, and as many more as the time of a pack allows and no error stops; an error of ours, if any."""
    until = time.perf_counter() + PACK_SECONDS
    done: list[tuple[Any, float]] = []
    for work in zip(calls, args, strict=True):
        if done and time.perf_counter() > until:
            break
        try:
            done.append(_timed(*work) if done else _persistent(_timed, *work))
        except SmscaleError as error:
            return done, error
        except Exception:
            if not done:
                raise
            break  # it comes back undone and is tried as the first of another pack
    return done, None


def _here(tasks: Sequence[Task]) -> Generator[tuple[Task, Any, float], None, None]:
    for task in tasks:
        try:
            result, seconds = _persistent(_timed, task.call, task.args)
        except SmscaleError:
            raise
        except Exception as error:
            raise _failure(task, error) from error
        yield task, result, seconds


class _Window:
    """A moving window of packs on a client's workers.

    A worker that dies is blamed on every task that waited on it. Those blamed too often are therefore done once more at
    the end, one by one: the guilty one fails again, and is named.
    """

    def __init__(self, tasks: Sequence[Task], client: Client) -> None:
        from distributed import as_completed

        self.client = client
        self.waiting = deque(tasks)
        self.suspects: deque[Task] = deque()
        self.suspected: set[str] = set()
        self.guilty: list[TaskError] = []
        self.refusal: SmscaleError | None = None
        self.flying: dict[str, tuple[Future, list[Task]]] = {}
        self.completed = as_completed()
        self.most = max(2, IN_FLIGHT_PER_THREAD * sum(client.nthreads().values() or [1]))
        self.pack = 1

    def finished(self) -> Generator[tuple[Task, Any, float], None, None]:
        """Tasks with their results and seconds, as they finish."""
        try:
            self._fill()
            while self.flying:
                future, tasks = self.flying.pop(str(next(self.completed).key))
                landed = list(zip(tasks, self._landed(future, tasks), strict=False))
                if self.refusal is None:
                    self._fill()  # before the records are written: workers need not wait for a disk
                for task, (result, seconds) in landed:
                    yield task, result, seconds
                if self.refusal is not None:
                    raise self.refusal
            if self.guilty:
                raise self.guilty[0]
        except SmscaleError:
            raise
        except Exception as error:
            if not self._lost(error):
                raise
            raise TaskError(
                f"the cluster was lost ({type(error).__name__}): run again, finished blocks stay finished"
            ) from error
        finally:
            if self.flying and self.client.status == "running":
                self.client.cancel([future for future, _ in self.flying.values()])

    def _fill(self) -> None:
        while self.waiting and len(self.flying) < self.most:
            self._submit([self.waiting.popleft() for _ in range(min(self.pack, len(self.waiting)))])
        if self.suspects and not self.flying:
            self._submit([self.suspects.popleft()])

    def _submit(self, tasks: list[Task]) -> None:
        work = [task.call for task in tasks], [task.args for task in tasks]
        future = self.client.submit(_pack, *work, pure=False, key=f"{tasks[0].key}-{os.urandom(6).hex()}")
        self.flying[str(future.key)] = future, tasks
        self.completed.add(future)

    def _landed(self, future: Future, tasks: list[Task]) -> list[tuple[Any, float]]:
        """Results of a pack's first tasks; the others wait again."""
        from distributed import KilledWorker

        try:
            done, self.refusal = future.result()
        except KilledWorker as error:
            if tasks[0].key in self.suspected:
                self.guilty.append(_killed(tasks[0], error))
            else:
                self.suspected.update(task.key for task in tasks)
                self.suspects.extend(tasks)
            return []
        except Exception as error:
            if self._lost(error):
                raise
            raise _failure(tasks[0], error) from error
        finally:
            future.release()  # now, whoever keeps an error with its frames
        self.waiting.extendleft(reversed(tasks[len(done) :]))
        mean = sum(seconds for _, seconds in done) / max(len(done), 1)
        self.pack = int(min(max(PACK_SECONDS / max(mean, 1e-6), 1), PACK_MOST))
        return done

    def _lost(self, error: Exception) -> bool:
        return self.client.status != "running" or isinstance(error, CancelledError)


def _failure(task: Task, error: Exception) -> TaskError:
    return TaskError(
        f"block {task.key} failed {RETRIES + 1} times: {type(error).__name__}: {' '.join(str(error).split())}"
    )


def _killed(task: Task, error: Any) -> TaskError:
    return TaskError(
        f"block {task.key} ended {error.allowed_failures + 1} workers, alone on each: give workers more memory, "
        "or see their log; finished blocks stay finished"
    )


def _entered(ledger: Ledger, task: Task, result: Any, seconds: float) -> Any:
    try:
        return _persistent(ledger.enter, task, result, seconds)
    except OSError as error:
        raise StoreError(
            f"{ledger.folder}: the record of block {task.key} cannot be written ({error.strerror or error}): free the disk and run again"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{hashlib.blake2b(content, digest_size=4).hexdigest()}")
    try:
        try:
            temporary.write_bytes(content)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def spans(size: int, step: int) -> list[slice]:
    """Consecutive slices of `step` that cover `size`; the last may be shorter."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
