"""The stages of a run, what each of them counted, and who is told."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from smscale.progress import Part, used
from smscale.redaction import redacted
from smscale.run_record import RUNNING

if TYPE_CHECKING:
    from distributed import Client

#: A scheduler that shows its pages answers in so long.
PAGES_SECONDS = 1.0
#: Counts of blocks and bytes of a part that a stage adds up.
SUMS = ("planned", "skipped", "done", "retried", "failed", "workers_lost", "cells", "values", "read", "written")


@dataclass
class Stage:
    """One stage of a run: its parts are what the engine did in one go each.

    state : "running", "done", "nothing to do", "failed" or "interrupted"
    """

    name: str
    parts: list[Part] = field(default_factory=list)
    state: str = RUNNING
    began: float = field(default_factory=time.monotonic)
    ended: float = math.nan

    @property
    def seconds(self) -> float:
        """Since it began, or that it took; what lies between its parts included."""
        return (time.monotonic() if math.isnan(self.ended) else self.ended) - self.began

    def sum(self, name: str) -> int:
        """One of `SUMS` over the parts."""
        return sum(getattr(part, name) for part in self.parts)

    @property
    def peak(self) -> int:
        """Bytes resident at the most in one worker process; in this one where no worker did anything."""
        workers = max((part.peak for part in self.parts if not part.here), default=0)
        return workers or max((part.peak for part in self.parts), default=0)

    @property
    def cells_per_second(self) -> float:
        """While blocks with cells were done."""
        seconds = sum(part.seconds for part in self.parts if part.cells)
        return self.sum("cells") / seconds if seconds else 0.0

    @property
    def failures(self) -> list[tuple[str, str]]:
        """The first few blocks of each part that failed, each with the reason."""
        return [failure for part in self.parts for failure in part.failures]


class Sink:
    """Who is told of a run: this one does nothing; others say what they want to hear."""

    def begins(self, run: Observer) -> None:
        """The run begins."""

    def joined(self, run: Observer) -> None:
        """A cluster was made or joined: `run.cluster`."""

    def stage_begins(self, run: Observer, stage: Stage) -> None:
        """A stage begins."""

    def works(self, run: Observer, stage: Stage) -> None:
        """A stage is about to change the workspace: from here on the run has done something."""

    def part_begins(self, stage: Stage, part: Part) -> None:
        """A part of a stage begins."""

    def moved(self, stage: Stage, part: Part) -> None:
        """A block was finished; called for each: it must cost next to nothing."""

    def part_ends(self, stage: Stage, part: Part) -> None:
        """A part of a stage ended, well or not."""

    def stage_ends(self, run: Observer, stage: Stage) -> None:
        """A stage ended, well or not."""

    def ends(self, run: Observer) -> None:
        """The run ended, well or not."""


class Observer:
    """A run as it goes: its stages and what they counted. It tells its sinks; it is the engine's watch.

    Parameters
    ----------
    about : what else a record says of the run: versions, machine, recipe; without secrets

    Attributes
    ----------
    id : of the run, by which records sort in time
    state : "running", "finished", "failed" or "interrupted"; `ending` says why, in one line
    cluster : workers of the cluster that was joined; empty where there is none
    """

    def __init__(self, sinks: Sequence[Sink] = (), about: Mapping[str, Any] | None = None) -> None:
        self.sinks, self.about = tuple(sinks), dict(about or {})
        self.began = datetime.now(UTC)
        self.id = f"{self.began:%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}"
        self.clock, self.ended = time.monotonic(), math.nan
        self.state, self.ending = RUNNING, ""
        self.cluster: dict[str, Any] = {}
        self.stages: list[Stage] = []
        self.peak = 0
        #: Blocks that parts of this run have finished or found finished, by what they call them.
        self._finished: Counter[str] = Counter()

    @property
    def seconds(self) -> float:
        """Since it began, or that it took."""
        return (time.monotonic() if math.isnan(self.ended) else self.ended) - self.clock

    @contextmanager
    def running(self) -> Iterator[None]:
        """The run; how the block ends is how it ended."""
        self._tell("begins", self)
        try:
            yield
            self.state = "finished"
        except BaseException as error:
            self.state, self.ending = _ended_by(error)
            raise
        finally:
            self.ended, self.peak = time.monotonic(), used().peak
            self._tell("ends", self)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """A stage of the run: "done" where the block does not say otherwise."""
        stage = Stage(name)
        self.stages.append(stage)
        self._tell("stage_begins", self, stage)
        try:
            yield stage
            stage.state = "done" if stage.state == RUNNING else stage.state
        except BaseException as error:
            stage.state, _ = _ended_by(error)
            raise
        finally:
            stage.ended = time.monotonic()
            self._tell("stage_ends", self, stage)

    def works(self) -> None:
        """Tell that the stage is about to change the workspace."""
        if self.stages:
            self._tell("works", self, self.stages[-1])

    def connecting(self, connect: Callable[[], Client | None]) -> Callable[[], Client | None]:
        """What connects to a cluster, and tells of it the first time."""

        def client() -> Client | None:
            found = connect()
            if found is not None and not self.cluster:
                self.cluster = _cluster(found)
                self._tell("joined", self)
            return found

        return client

    # -- the engine's watch -----------------------------------------------------------------------

    def begins(self, part: Part) -> None:
        if not self.stages:
            return
        self.stages[-1].parts.append(part)
        part.again = min(part.before, self._finished[part.label])
        if part.before < part.total:
            self.works()
        self._tell("part_begins", self.stages[-1], part)

    def moved(self, part: Part) -> None:
        if self.stages:
            self._tell("moved", self.stages[-1], part)

    def ends(self, part: Part) -> None:
        for label in part.label.split(", "):  # of several stages that are done in one go
            self._finished[label] += part.skipped + part.done
        if self.stages:
            self._tell("part_ends", self.stages[-1], part)

    def _tell(self, what: str, *told: Any) -> None:
        for sink in self.sinks:
            getattr(sink, what)(*told)


def _ended_by(error: BaseException) -> tuple[str, str]:
    """State and reason of what an exception ended."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", str(error) or "SIGINT"
    if isinstance(error, Exception):
        return "failed", redacted(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return "interrupted", type(error).__name__


def _cluster(client: Client) -> dict[str, Any]:
    """Workers of a cluster, and the address of its pages where it shows them."""
    found = client.scheduler_info(n_workers=-1)
    workers = found["workers"].values()
    facts: dict[str, Any] = {
        "workers": len(workers),
        "threads": sum(int(worker["nthreads"]) for worker in workers),
        "memory_bytes": max((int(worker.get("memory_limit") or 0) for worker in workers), default=0),
    }
    link = str(client.dashboard_link or "")
    if "dashboard" in (found.get("services") or {}) and link.startswith("http") and _answers(link):
        facts["dashboard"] = redacted(link)
    return facts


def _answers(link: str) -> bool:
    """Whether a scheduler shows its pages: it has an address for them also where they are turned off."""
    try:
        with urlopen(link, timeout=PAGES_SECONDS):
            return True
    except (OSError, ValueError, HTTPException):
        return False
