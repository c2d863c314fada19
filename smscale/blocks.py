"""The engine: independent units of work, each done once, wherever there is a worker.

A `Task` is a module-level function and small arguments; what is large (a model, a station table) lies in the workspace
and is read by reference, once per worker. Tasks go out in a moving window, so a million of them is no larger a graph than
a thousand; short ones travel in packs, so that the scheduler costs them little. What is finished stands in the ledger,
one record per task, and is not done again. What failed and was tried again is told, with the reason.
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import dask
from tqdm.auto import tqdm

from smscale import claims, disk, heap
from smscale.errors import RecipeError, SmscaleError, StoreError, TaskError
from smscale.ledger import Joint, Ledger, Recorded
from smscale.places import together
from smscale.progress import Part, Receipted, Unwatched, Used, Watch, forget_peak, used
from smscale.redaction import redacted

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Joint", "Ledger", "Outcome", "Task", "device", "run", "spans"]

#: Packs in flight per worker thread: enough to hide the scheduler's round trip, few enough to keep it small.
IN_FLIGHT_PER_THREAD = 4
#: Packs in flight per GPU: one that runs and one that waits, so that the others stay free for the CPUs.
IN_FLIGHT_PER_GPU = 2
#: Short tasks travel together, as many as a worker does in this time; what is left over then comes back undone.
PACK_SECONDS = 0.1
#: Tasks in a pack at most.
PACK_MOST = 64
#: A failed task is tried again before the run stops; after so many seconds where a disk or a network refused (full for a moment).
RETRY_AFTER = (0.5, 2.0)
RETRIES = len(RETRY_AFTER)
#: Where a task failed for good, what flies may still land for so long, and is entered; then it is cancelled.
GRACE_SECONDS = 2.0
#: Of dask's resources: what a worker declares that holds a GPU (`dask worker --resources "GPU=1"`).
GPU = "GPU"
#: A GPU's worker that ended may come back so soon; then the CPUs do what waits for it.
GPU_BACK_SECONDS = 30.0
#: While nothing lands, the workers are looked at so often.
LOOK_SECONDS = 2.0
#: Where no worker is left, others are waited for so long, unless the cluster's profile says otherwise (`smscale.lost-timeout`).
LOST_SECONDS = 120.0

#: In this process, what blocks used is looked at so often.
LOOK_HERE_SECONDS = 1.0

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
            said.append(f"{_some(len(self.retried), 'block')} tried again (the last: {key}, {why})")
        if self.workers_lost:
            said.append(f"{_some(self.workers_lost, 'worker')} lost, blocks done by others")
        return "; ".join(said)


@dataclass(frozen=True)
class _Done:
    """A task's result, the seconds of the try that succeeded, the tries that failed before, and why the last of them did.

    `used` is what its worker used for it and for those of its pack before it.
    """

    result: Any
    seconds: float
    failures: int = 0
    failure: str = ""
    used: Used | None = None


_Finished = Generator[tuple[Task, _Done], None, None]


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
        finished = _Window(todo, workers, ledger, outcome).finished()
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
                outcome.retried[task.key] = f"{_some(done.failures, 'time')}, {done.failure}"
            _count(part, task, done, receipted.bytes_of(result), outcome)
            watch.moved(part)
            bar.set_postfix_str(_postfix(part), refresh=False)
            bar.update()
    if say is not None and outcome.trouble:
        say(f"{label:<10} {outcome.trouble}\n")
    return outcome


def device() -> str:
    """Where the running task may calculate: "cuda" if it holds its worker's GPU, else "cpu"."""
    return _DEVICE.get()


def _client(given: Client | Callable[[], Client | None] | None) -> Client | None:
    return given() if callable(given) else given


def _some(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' if n != 1 else ''}"


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


def _count(part: Part, task: Task, done: _Done, values: int, outcome: Outcome) -> None:
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
    parts += [f"{_some(part.workers_lost, 'worker')} lost"] if part.workers_lost else []
    return ", ".join(parts)


# -- in a worker ----------------------------------------------------------------------------------


def _timed(call: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, float]:
    """Call, and the seconds it took; lazy arrays inside are read where the task runs, not sent round the cluster."""
    start = time.perf_counter()
    with dask.config.set(scheduler="synchronous"):
        result = call(*args)
    return result, time.perf_counter() - start


def _persistent(call: Callable[..., Any], *args: Any) -> tuple[Any, int, str]:
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
            why = _reason(error)
            time.sleep(pause if isinstance(error, OSError) else 0)
    return call(*args), RETRIES, why


def _done(call: Callable[..., Any], args: tuple[Any, ...]) -> _Done:
    (result, seconds), failures, why = _persistent(_timed, call, args)
    return _Done(result, seconds, failures, why)


def _reason(error: BaseException) -> str:
    """Kind and message of an error in one line."""
    told = redacted(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return told if len(told) <= 300 else f"{told[:297]}..."


def _pack(work: Sequence[bytes], where: str = "cpu", part: str = "") -> tuple[list[_Done], SmscaleError | None]:
    """The first of several calls, and as many more as the time of a pack allows and no error stops; an error of ours, if any.

    They come pickled: a worker that lacks a module then fails in the task, which is told. In dask's own message it would
    break the worker's line to the scheduler, and all would wait.
    """
    heap.keep_small_arrays()
    _begin(part)
    until, before = time.perf_counter() + PACK_SECONDS, used()
    done: list[_Done] = []
    refusal = None
    held = _DEVICE.set(where)
    try:
        for one in work:
            if done and time.perf_counter() > until:
                break
            try:
                call, given = pickle.loads(one)
                done.append(_Done(*_timed(call, given)) if done else _done(call, given))
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


# -- in the process that asks -----------------------------------------------------------------------


def _here(tasks: Sequence[Task], ledger: Ledger | Joint, outcome: Outcome, part: Part) -> _Finished:
    before, looked = used(), time.monotonic()
    try:
        for task in tasks:
            claims.require_held()
            try:
                done = _done(task.call, task.args)
            except SmscaleError as error:
                outcome.failed[task.key] = _reason(error)
                raise
            except Exception as error:
                outcome.failed[task.key] = _reason(error)
                raise _failure(task, error, ledger) from error
            yield task, done
            if time.monotonic() - looked > LOOK_HERE_SECONDS:
                now, looked = used(), time.monotonic()
                part.uses(now.since(before))
                before = now
    finally:
        part.uses(used().since(before))


@dataclass
class _Lane:
    """Workers of one kind: where their packs run, how they are asked for, and how many may fly."""

    device: str
    how: dict[str, Any]
    most: int
    flying: int = 0


def _require_same(client: Client, workers: list[str]) -> None:
    """Refuse workers without this package, or with another version: they would break at the first task, or write other bytes."""
    try:
        ours = version("smscale")
    except PackageNotFoundError:  # from a folder of sources: nothing to compare
        return
    for address, theirs in client.run(version, "smscale", workers=workers, on_error="return").items():
        if theirs != ours and isinstance(theirs, str | PackageNotFoundError):  # one that is gone says nothing
            told = f"smscale {theirs}" if isinstance(theirs, str) else "no smscale"
            raise RecipeError(f"worker {address} has {told}, this process {ours}: install the same there")


def _gpus(workers: Mapping[str, Any]) -> dict[str, int]:
    """GPUs of each worker, by address."""
    return {address: int(w.get("resources", {}).get(GPU, 0)) for address, w in workers.items()}


class _Window:
    """A moving window of packs on a client's workers.

    A worker that dies is blamed on every task that waited on it. Those blamed too often are therefore done once more at
    the end, one by one: the guilty one fails again, and is named. What fails on a GPU, or waits for one that is gone, is
    done on a CPU. Workers may come and go: the window is as wide as they can use. Where none is left, or the line to the
    scheduler broke, it waits for a while for others, and for the line.
    """

    def __init__(self, tasks: Sequence[Task], client: Client, ledger: Ledger | Joint, outcome: Outcome) -> None:
        self.client, self.ledger, self.outcome = client, ledger, outcome
        self.part = os.urandom(6).hex()
        #: Workers with a GPU; and those without, or all where every one has a GPU.
        self.cuda, self.cpu = _Lane("cuda", {}, 0), _Lane("cpu", {}, 2)
        self.known: set[str] = set()
        #: Whether workers came or went, or the line to the scheduler broke, since the last look.
        self.changed, self.broke = True, False
        #: Since when no worker is there, or no line to the scheduler; and since when no GPU is.
        self.alone = self.gpus_gone = math.inf
        #: Tasks that wait, by the device that they ask for; a CPU may do all of them where it has workers of its own.
        self.waiting = {"cpu": deque(t for t in tasks if not t.gpu), "cuda": deque(t for t in tasks if t.gpu)}
        self.suspects: deque[Task] = deque()
        self.suspected: set[str] = set()
        self.guilty: list[TaskError] = []
        self.failed: dict[str, str] = {}
        self.refusal: SmscaleError | None = None
        self.until = math.inf
        self.flying: dict[str, tuple[Future, list[Task], _Lane]] = {}
        self.ready: SimpleQueue[str] = SimpleQueue()
        self.pack = {"cpu": 1, "cuda": 1}

    def finished(self) -> _Finished:
        """Tasks as they finish."""
        self.client.subscribe_topic("all", self._heard)
        try:
            self._look()
            while self.flying and (key := self._awaited()) is not None:
                if key not in self.flying:
                    continue
                future, tasks, lane = self.flying.pop(key)
                lane.flying -= 1
                landed = list(zip(tasks, self._landed(future, tasks, lane), strict=False))
                if self.refusal is None:
                    self._fill()  # before the records are written: workers need not wait for a disk
                for task, done in landed:
                    yield task, self._with_earlier(task, done)
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
            if self.client.status == "running":
                self.client.unsubscribe_topic("all")
                self.client.cancel([future for future, _, _ in self.flying.values()])

    def _awaited(self) -> str | None:
        """The next pack that lands; None where a refusal has waited long enough."""
        while True:
            if self.changed:
                self._look()
            wait = min(LOOK_SECONDS, max(self.until - time.monotonic(), 0))
            try:
                return self.ready.get(timeout=wait) if wait else self.ready.get_nowait()
            except Empty:
                if time.monotonic() >= self.until:
                    return None
                self.changed = True

    def _refuse(self, task: Task, error: SmscaleError, why: Exception | None = None) -> None:
        """Begin nothing more: the first error is the one that is told."""
        self.outcome.failed[task.key] = _reason(why or error)
        if self.refusal is None:
            self.refusal, self.until = error, time.monotonic() + GRACE_SECONDS

    def _heard(self, event: tuple[float, Any]) -> None:
        """A worker came, or one ended that had work; the scheduler tells it to every client."""
        _, told = event
        action = told.get("action") if isinstance(told, dict) else None
        if action == "remove-worker":
            self.outcome.workers_lost += any(key in self.flying for key in told.get("processing-tasks", ()))
        if action in ("add-worker", "remove-worker"):
            self.changed = True

    def _look(self) -> None:
        """Who is there: new workers are checked, the window fits itself to all, and does not wait for ever for any."""
        self.changed = False
        try:
            workers = self._workers()
        except OSError:  # the line broke just now
            workers = {}
        now = time.monotonic()
        self.alone = min(self.alone, now) if not workers else math.inf
        patience = float(dask.config.get("smscale.lost-timeout", LOST_SECONDS))
        if now - self.alone > patience:
            raise TaskError(
                f"no worker is left, and none came within {patience:g} s: see their log; run again, finished blocks stay finished"
            )
        if workers:
            self._widen(workers)
        self.gpus_gone = min(self.gpus_gone, now) if not self.cuda.most else math.inf
        gone = now - self.gpus_gone > GPU_BACK_SECONDS
        self._call_back([key for key, (_, _, lane) in self.flying.items() if gone and lane is self.cuda])
        if self.refusal is None:
            self._fill()

    def _workers(self) -> Mapping[str, Any]:
        """Those that the scheduler knows, checked; none while the line to it is broken."""
        if self.client.status == "connecting":
            return {}
        if self.client.status != "running":
            raise CancelledError
        found: Mapping[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        if new := [address for address in found if address not in self.known]:
            _require_same(self.client, new)
        self.known = set(found)
        if self.broke:  # the scheduler, maybe another one, knows neither who listens nor what was asked for
            self.broke = False
            self.client.subscribe_topic("all", self._heard)
            self._call_back([key for key in self.flying if key not in self.client.futures])
        return found

    def _widen(self, workers: Mapping[str, Any]) -> None:
        """As many packs in flight as these workers can use."""
        gpus = _gpus(workers)
        plain = [address for address, n in gpus.items() if not n]
        threads = sum(w["nthreads"] for address, w in workers.items() if address in plain or not plain)
        self.cpu.most = max(2, IN_FLIGHT_PER_THREAD * threads)
        self.cuda.most = IN_FLIGHT_PER_GPU * sum(gpus.values())
        self.cuda.how = {"resources": {GPU: 1}}
        # A wish, no must: these may end and others come.
        self.cpu.how = {"workers": plain, "allow_other_workers": True} if plain and self.cuda.most else {}

    def _call_back(self, keys: Sequence[str]) -> None:
        """Packs that nobody will do wait again."""
        for key in keys:
            future, tasks, lane = self.flying.pop(key)
            lane.flying -= 1
            self._wait_again(tasks, lane)
            self.client.cancel([future])

    def _wait_again(self, tasks: Sequence[Task], lane: _Lane) -> None:
        """First in the queue that they came from: suspects are never packed with others."""
        suspect = len(tasks) == 1 and tasks[0].key in self.suspected
        (self.suspects if suspect else self.waiting[lane.device]).extendleft(reversed(tasks))

    def _fill(self) -> None:
        claims.require_held()
        for lane in (self.cuda, self.cpu):
            while lane.flying < lane.most and (queue := self._queue(lane)):
                self._submit([queue.popleft() for _ in range(min(self.pack[lane.device], len(queue)))], lane)
        if self.suspects and not self.flying:
            self._submit([self.suspects.popleft()], self.cpu)

    def _queue(self, lane: _Lane) -> deque[Task]:
        """Where a lane takes its next tasks from."""
        own, other = self.waiting[lane.device], self.waiting["cuda"]
        return other if not own and (lane.how.get("workers") or not self.cuda.most) else own

    def _submit(self, tasks: list[Task], lane: _Lane) -> None:
        from distributed.protocol.pickle import dumps

        work = [dumps((task.call, task.args)) for task in tasks]
        key = f"{tasks[0].key}-{os.urandom(6).hex()}"
        future = self.client.submit(_pack, work, lane.device, self.part, pure=False, key=key, **lane.how)
        self.flying[key] = future, tasks, lane
        lane.flying += 1
        future.add_done_callback(lambda done: self.ready.put(str(done.key)))

    def _landed(self, future: Future, tasks: list[Task], lane: _Lane) -> list[_Done]:
        """Results of a pack's first tasks; the others wait again."""
        from distributed import KilledWorker

        try:
            done, refusal = future.result()
            if refusal is not None:
                self._refuse(tasks[len(done)], refusal)
        except KilledWorker as error:
            if tasks[0].key in self.suspected:
                self.guilty.append(_killed(tasks[0], error))
                self.outcome.failed[tasks[0].key] = "ended its workers"
            else:
                self.suspected.update(task.key for task in tasks)
                self.suspects.extend(tasks)
                self.failed.update((task.key, "its worker ended") for task in tasks)
            return []
        except CancelledError:  # the line to the scheduler broke
            self._wait_again(tasks, lane)
            self.changed = self.broke = True
            return []
        except Exception as error:
            if self._lost(error):
                raise
            if isinstance(error, OSError) and future.status != "error":  # done, but the line broke under its result
                self._wait_again(tasks, lane)
                self.changed = self.broke = True
                return []
            if lane.device == "cpu":
                told = _failure(tasks[0], error, self.ledger)
                told.__cause__ = error
                self._refuse(tasks[0], told, error)
                return []
            self.failed[tasks[0].key] = f"on a GPU: {_reason(error)}"
            self.waiting["cpu"].append(tasks[0])
            self.waiting["cuda"].extendleft(reversed(tasks[1:]))
            return []
        finally:
            future.release()  # now, whoever keeps an error with its frames
        self.waiting[lane.device].extendleft(reversed(tasks[len(done) :]))
        mean = sum(one.seconds for one in done) / max(len(done), 1)
        self.pack[lane.device] = int(min(max(PACK_SECONDS / max(mean, 1e-6), 1), PACK_MOST))
        return done

    def _with_earlier(self, task: Task, done: _Done) -> _Done:
        """With the failures that the worker which succeeded does not know of."""
        why = self.failed.get(task.key)
        if why is None:
            return done
        return _Done(done.result, done.seconds, done.failures + 1, done.failure or why)

    def _lost(self, error: Exception) -> bool:
        return self.client.status not in ("running", "connecting") or isinstance(error, CancelledError)


def _failure(task: Task, error: Exception, ledger: Ledger | Joint) -> SmscaleError:
    number = disk.refusal(error)
    if number is not None:
        where = getattr(error, "filename", None) or f"what block {task.key} writes (ledger {ledger.folder})"
        return StoreError(f"{where}: {disk.cure(number)} (block {task.key}; finished blocks stay finished)")
    return TaskError(f"block {task.key} failed {RETRIES + 1} times: {_reason(error)}")


def _killed(task: Task, error: Any) -> TaskError:
    return TaskError(
        f"block {task.key} ended {error.allowed_failures + 1} workers, alone on each: give workers more memory, "
        "or see their log; finished blocks stay finished"
    )


def _entered(ledger: Ledger | Joint, task: Task, done: _Done) -> Any:
    claims.require_held()
    try:
        return _persistent(ledger.enter, task, done.result, done.seconds, done.failures, done.failure)[0]
    except OSError as error:
        raise StoreError(f"{ledger.folder}: the record of block {task.key} {disk.cure(error.errno)}") from error


def spans(size: int, step: int) -> list[slice]:
    """Consecutive slices of `step` that cover `size`; the last may be shorter."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
