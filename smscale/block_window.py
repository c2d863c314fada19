"""Packs of tasks on a cluster's workers, in a moving window: workers may come, go and be lost, and so may the line to the scheduler."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import dask

from smscale import claims
from smscale.block_task import PACK_SECONDS, Done, Finished, Outcome, Task, failure, pack, reason
from smscale.errors import RecipeError, SmscaleError, TaskError
from smscale.ledger import Joint, Ledger

if TYPE_CHECKING:
    from distributed import Client, Future

#: Packs in flight per worker thread: enough to hide the scheduler's round trip, few enough to keep it small.
IN_FLIGHT_PER_THREAD = 4
#: Packs in flight per GPU: one that runs and one that waits, so that the others stay free for the CPUs.
IN_FLIGHT_PER_GPU = 2
#: Tasks in a pack at most.
PACK_MOST = 64
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


@dataclass
class Lane:
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


class Window:
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
        self.cuda, self.cpu = Lane("cuda", {}, 0), Lane("cpu", {}, 2)
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
        self.flying: dict[str, tuple[Future, list[Task], Lane]] = {}
        self.ready: SimpleQueue[str] = SimpleQueue()
        self.pack = {"cpu": 1, "cuda": 1}

    def finished(self) -> Finished:
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
        self.outcome.failed[task.key] = reason(why or error)
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

    def _wait_again(self, tasks: Sequence[Task], lane: Lane) -> None:
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

    def _queue(self, lane: Lane) -> deque[Task]:
        """Where a lane takes its next tasks from."""
        own, other = self.waiting[lane.device], self.waiting["cuda"]
        return other if not own and (lane.how.get("workers") or not self.cuda.most) else own

    def _submit(self, tasks: list[Task], lane: Lane) -> None:
        from distributed.protocol.pickle import dumps

        work = [dumps((task.call, task.args)) for task in tasks]
        key = f"{tasks[0].key}-{os.urandom(6).hex()}"
        future = self.client.submit(pack, work, lane.device, self.part, pure=False, key=key, **lane.how)
        self.flying[key] = future, tasks, lane
        lane.flying += 1
        future.add_done_callback(lambda done: self.ready.put(str(done.key)))

    def _landed(self, future: Future, tasks: list[Task], lane: Lane) -> list[Done]:
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
                told = failure(tasks[0], error, self.ledger)
                told.__cause__ = error
                self._refuse(tasks[0], told, error)
                return []
            self.failed[tasks[0].key] = f"on a GPU: {reason(error)}"
            self.waiting["cpu"].append(tasks[0])
            self.waiting["cuda"].extendleft(reversed(tasks[1:]))
            return []
        finally:
            future.release()  # now, whoever keeps an error with its frames
        self.waiting[lane.device].extendleft(reversed(tasks[len(done) :]))
        mean = sum(one.seconds for one in done) / max(len(done), 1)
        self.pack[lane.device] = int(min(max(PACK_SECONDS / max(mean, 1e-6), 1), PACK_MOST))
        return done

    def _with_earlier(self, task: Task, done: Done) -> Done:
        """With the failures that the worker which succeeded does not know of."""
        why = self.failed.get(task.key)
        if why is None:
            return done
        return Done(done.result, done.seconds, done.failures + 1, done.failure or why)

    def _lost(self, error: Exception) -> bool:
        return self.client.status not in ("running", "connecting") or isinstance(error, CancelledError)


def _killed(task: Task, error: Any) -> TaskError:
    return TaskError(
        f"block {task.key} ended {error.allowed_failures + 1} workers, alone on each: give workers more memory, "
        "or see their log; finished blocks stay finished"
    )
