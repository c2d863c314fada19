"""What a scheduler has to do for a run of many blocks: the same number of blocks, empty."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from smscale import blocks, cluster
from smscale.blocks import Ledger, Task

#: Two small workers: nothing is calculated.
WORKERS, MEMORY = 2, "700MiB"
#: Blocks at most: beyond, the file system of a temporary folder is what is measured.
MOST = 1_000_000


@dataclass(frozen=True)
class Empty:
    """So many blocks, of `planned`, took so many seconds; this process, client and scheduler, held `megabytes` at most, `before` before."""

    blocks: int
    planned: int
    seconds: float
    before: float
    megabytes: float

    @property
    def line(self) -> str:
        of = f" (of {self.planned:,} planned)" if self.blocks < self.planned else ""
        return (
            f"scheduler: {self.blocks:,} empty blocks{of} with their ledger took {self.seconds:,.0f} s with {WORKERS} workers here; "
            f"client and scheduler held {self.megabytes:,.0f} MB at most, {self.before:,.0f} MB before"
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
        with _Peak() as peak:
            start = time.perf_counter()
            blocks.run(tasks, Ledger(Path(folder) / "ledger"), client, "empty blocks", progress, in_memory=False)
            seconds = time.perf_counter() - start
    return Empty(count, planned, seconds, peak.before / 1e6, peak.most / 1e6)


def nothing() -> dict[str, str]:
    """An empty block."""
    return {}


class _Peak:
    """Bytes that this process holds, looked at ten times a second."""

    def __enter__(self) -> _Peak:
        self.before = self.most = psutil.Process().memory_info().rss
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, psutil.Process().memory_info().rss)
