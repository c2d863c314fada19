"""One unit of work: what it is, and how a process does it, alone or in a pack with others."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import dask

from smscale import disk, heap
from smscale.errors import SmscaleError, StoreError, TaskError
from smscale.ledger import Joint, Ledger
from smscale.progress import Used, forget_peak, used
from smscale.redaction import redacted

#: Short tasks travel together, as many as a worker does in this time; what is left over then comes back undone.
PACK_SECONDS = 0.1
#: A failed task is tried again before the run stops; after so many seconds where a disk or a network refused (full for a moment).
RETRY_AFTER = (0.5, 2.0)
RETRIES = len(RETRY_AFTER)

_DEVICE: ContextVar[str] = ContextVar("device", default="cpu")
#: Of a worker: the part whose blocks it does, from the first of which on its peak of memory counts.
_PART = ""


@dataclass(frozen=True)
class Task:
    """One unit of work.

    Parameters
    ----------
    key : unique within its stage; names the ledger record
    call : module-level function; what it returns is JSON-able (counts, checksums) and stands in the ledger
    args : small and picklable
    fingerprint : of what the task is made from; another fingerprint means that it must be done again
    cells : of the cube that it makes, for the rate that is shown; 0 where there are none
    gpu : whether it can use a GPU: it then goes to workers that have one, and to the others as well
    """

    key: str
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    fingerprint: str = ""
    cells: int = 0
    gpu: bool = False


@dataclass
class Outcome:
    """What a stage's tasks returned, in the order of the tasks, and how it went.

    `done_before` counts tasks that were already finished; `retried` says of each that failed at first how often and why
    the last time, `failed` of each that failed for good why; `workers_lost` counts workers that ended while tasks ran on them.
    """

    results: Mapping[str, Any] = field(default_factory=dict)
    done_before: int = 0
    retried: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    workers_lost: int = 0

    @property
    def trouble(self) -> str:
        """One line of what was survived; empty where nothing was."""
        said = []
        if self.retried:
            key, why = next(reversed(self.retried.items()))
            said.append(f"{some(len(self.retried), 'block')} tried again (the last: {key}, {why})")
        if self.workers_lost:
            said.append(f"{some(self.workers_lost, 'worker')} lost, blocks done by others")
        return "; ".join(said)


@dataclass(frozen=True)
class Done:
    """A task's result, the seconds of the try that succeeded, the tries that failed before, and why the last of them did.

    `used` is what its worker used for it and for those of its pack before it.
    """

    result: Any
    seconds: float
    failures: int = 0
    failure: str = ""
    used: Used | None = None


Finished = Generator[tuple[Task, Done], None, None]


def device() -> str:
    """Where the running task may calculate: "cuda" if it holds its worker's GPU, else "cpu"."""
    return _DEVICE.get()


def timed(call: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, float]:
    """Call, and the seconds it took; lazy arrays inside are read where the task runs, not sent round the cluster."""
    start = time.perf_counter()
    with dask.config.set(scheduler="synchronous"):
        result = call(*args)
    return result, time.perf_counter() - start


def persistent(call: Callable[..., Any], *args: Any) -> tuple[Any, int, str]:
    """Call, and again where it fails; not where it would fail again: an error of ours says so, and a disk that refuses.

    The value comes back with the tries that failed before, and the reason of the last.
    """
    why = ""
    for failures, pause in enumerate(RETRY_AFTER):
        try:
            return call(*args), failures, why
        except SmscaleError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in disk.REFUSED:
                raise
            why = reason(error)
            time.sleep(pause if isinstance(error, OSError) else 0)
    return call(*args), RETRIES, why


def attempt(call: Callable[..., Any], args: tuple[Any, ...]) -> Done:
    (result, seconds), failures, why = persistent(timed, call, args)
    return Done(result, seconds, failures, why)


def reason(error: BaseException) -> str:
    """Kind and message of an error in one line."""
    told = redacted(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return told if len(told) <= 300 else f"{told[:297]}..."


def pack(work: Sequence[bytes], where: str = "cpu", part: str = "") -> tuple[list[Done], SmscaleError | None]:
    """The first of several calls, and as many more as the time of a pack allows and no error stops; an error of ours, if any.

    They come pickled: a worker that lacks a module then fails in the task, which is told. In dask's own message it would
    break the worker's line to the scheduler, and all would wait.
    """
    heap.keep_small_arrays()
    _begin(part)
    until, before = time.perf_counter() + PACK_SECONDS, used()
    done: list[Done] = []
    refusal = None
    held = _DEVICE.set(where)
    try:
        for one in work:
            if done and time.perf_counter() > until:
                break
            try:
                call, given = pickle.loads(one)
                done.append(Done(*timed(call, given)) if done else attempt(call, given))
            except SmscaleError as error:
                refusal = error
                break
            except Exception:
                if not done:
                    raise
                break  # it comes back undone and is tried as the first of another pack
    finally:
        _DEVICE.reset(held)
    if done:
        done[-1] = replace(done[-1], used=used().since(before))
    return done, refusal


def _begin(part: str) -> None:
    """Let the peak of this worker's memory begin anew with a part's first blocks."""
    global _PART
    if part != _PART:
        _PART = part
        forget_peak()


def failure(task: Task, error: Exception, ledger: Ledger | Joint) -> SmscaleError:
    number = disk.refusal(error)
    if number is not None:
        where = getattr(error, "filename", None) or f"what block {task.key} writes (ledger {ledger.folder})"
        return StoreError(f"{where}: {disk.cure(number)} (block {task.key}; finished blocks stay finished)")
    return TaskError(f"block {task.key} failed {RETRIES + 1} times: {reason(error)}")


def some(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' if n != 1 else ''}"
