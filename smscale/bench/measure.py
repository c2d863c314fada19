"""What one step costs: seconds, bytes asked of the system, memory at its peak, with the files out of the page cache before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smscale.progress import forget_peak, used


@dataclass(frozen=True)
class Cost:
    """Of one step.

    seconds : by the clock; cpu : of all threads of the process
    moved : bytes of values that were asked for; touched : bytes that were read from or written to files, 0 where the system does not tell
    peak : bytes of memory that a call gained at the most, what it returned included; 0 where the system does not tell
    """

    seconds: float
    cpu: float
    moved: int
    touched: int
    peak: int

    @property
    def megabytes_per_second(self) -> float:
        return self.moved / 1e6 / max(self.seconds, 1e-9)


def cost_of(steps: Iterable[Callable[[], int]]) -> Cost:
    """What some calls cost together; each says how many bytes of values it moved. What comes between them does not count."""
    seconds = cpu = 0.0
    moved = touched = peak = 0
    for call in steps:
        known = forget_peak()
        before, clock, spent = used(), time.perf_counter(), time.process_time()
        moved += call()
        seconds += time.perf_counter() - clock
        cpu += time.process_time() - spent
        after = used().since(before)
        touched += after.read + after.written
        peak = max(peak, after.peak - before.peak if known else 0)
    return Cost(seconds, cpu, moved, touched, peak)


def write_out(folder: Path) -> int:
    """Have the system write every file of a folder to its disk; no bytes of values are moved."""
    for handle in _opened(folder):
        os.fsync(handle)
    return 0


def out_of_cache(folder: Path) -> None:
    """Write out and drop the pages of every file of a folder from the system's page cache; nothing where it has no such call."""
    if not hasattr(os, "posix_fadvise"):
        return
    for handle in _opened(folder):
        os.fsync(handle)  # only what is written out can be dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def _opened(folder: Path) -> Iterator[int]:
    """Every file of a folder, one after another."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                yield handle
            finally:
                os.close(handle)


def on_one_core() -> None:
    """Keep this process and the threads that it begins on one core: what a worker of one thread has."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def files_and_bytes(folder: Path) -> tuple[int, int]:
    """How many files a folder holds, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)
