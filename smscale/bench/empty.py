"""What a scheduler has to do for a run of many blocks: the same number of blocks, empty."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from smscale import blocks, cluster
from smscale.blocks import Ledger, Task

if TYPE_CHECKING:
    from distributed import Client

#: Two small workers: nothing is calculated.
WORKERS, MEMORY = 2, "700MiB"
#: Blocks at most: beyond, the file system of a temporary folder is what is measured.
MOST = 1_000_000
#: How often memory and tasks are looked at.
LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Empty:
    """So many blocks, of `planned`, took so many seconds; this process, client and scheduler, held `megabytes` at most, `before` before.

    held : tasks that the scheduler knew at once, at most
    """

    blocks: int
    planned: int
    seconds: float
    before: float
    megabytes: float
    held: int

    @property
    def line(self) -> str:
        of = f" (of {self.planned:,} planned)" if self.blocks < self.planned else ""
        return (
            f"scheduler: {self.blocks:,} empty blocks{of} with their ledger took {self.seconds:,.0f} s with {WORKERS} workers here; "
            f"client and scheduler held {self.megabytes:,.0f} MB at most, {self.before:,.0f} MB before, and {self.held} tasks at once"
        )


def empty_run(count: int, progress: bool = True) -> Empty:
    """Do so many blocks that do nothing, `MOST` at most, each entered in a ledger."""
    planned, count = count, min(count, MOST)
    tasks = [Task(f"{i // 1000}+1-{i % 1000}", nothing, (), "empty") for i in range(count)]
    with (
        tempfile.TemporaryDirectory(prefix="smscale-plan") as folder,
        cluster.connect("local", WORKERS, MEMORY) as client,
    ):
        blocks.run(tasks[:WORKERS], Ledger(Path(folder) / "first"), client, progress=False)
        with Held(client) as held:
            start = time.perf_counter()
            blocks.run(tasks, Ledger(Path(folder) / "ledger"), client, "empty blocks", progress, in_memory=False)
            seconds = time.perf_counter() - start
    return Empty(count, planned, seconds, held.before / 1e6, held.most / 1e6, held.tasks)


def nothing() -> dict[str, str]:
    """An empty block."""
    return {}


class Held:
    """What this process holds while it is both client and scheduler, looked at often: bytes before and at most, tasks at most."""

    def __init__(self, client: Client) -> None:
        assert client.cluster is not None
        self._scheduler, self.tasks = client.cluster.scheduler, 0

    def __enter__(self) -> Held:
        self.before = self.most = psutil.Process().memory_info().rss
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        process = psutil.Process()
        while not self._over.wait(LOOK_SECONDS):
            self.most = max(self.most, process.memory_info().rss)
            self.tasks = max(self.tasks, len(self._scheduler.tasks))
