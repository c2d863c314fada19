"""What the engine adds to each block: empty blocks with their ledger, against a bare `client.map` of as many empty tasks.

Both in turns on one cluster of two workers with one thread each. The bare peer keeps nothing: no record, no window, no
second try. Then the memory of a run: resident memory of this process (client and scheduler), and the most that the scheduler
holds, for few and for very many blocks. Last what a ledger of many records costs the run that goes on from it.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.timing import medians
from smscale import blocks, cluster
from smscale.bench.empty import Empty, Held, empty_run
from smscale.blocks import Ledger, Task

if TYPE_CHECKING:
    from distributed import Client

BLOCKS = 10_000
REPEATS = 5
COUNTS = 1_000, 10_000, 100_000
#: Of the peer, which holds them all: enough to see the slope.
PEER_COUNTS = 1_000, 10_000
RECORDS = 20_000
PEER = "client.map + gather"


def nothing(i: int) -> int:
    """An empty block."""
    return i


def tasks(n: int) -> list[Task]:
    """Empty blocks with keys and fingerprints as a stage's."""
    return [Task(f"{i // 100}-{i % 100}-0", nothing, (i,), "0123456789abcdef0123456789abcdef") for i in range(n)]


def ours(n: int, client: Client | None, in_memory: bool = True) -> Callable[[], None]:
    """All blocks into a fresh ledger."""

    todo = tasks(n)

    def once() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder) / "ledger")
            outcome = blocks.run(todo, ledger, client, progress=False, in_memory=in_memory)
            assert sum(outcome.results.values()) == n * (n - 1) // 2

    return once


def bare(n: int, client: Client) -> Callable[[], None]:
    """All tasks at once, no records."""

    def once() -> None:
        results = client.gather(client.map(nothing, range(n), pure=False))
        assert sum(results) == n * (n - 1) // 2

    return once


def memory(n: int, peer: bool) -> None:
    """Print what one run holds in a fresh process: MB at most, and the most tasks that the scheduler held."""
    found = held_by_peer(n) if peer else empty_run(n, progress=False)
    print(
        f"{found.megabytes - found.before:6.1f} MB gained at most, {found.megabytes:6.1f} MB in all, "
        f"{found.held:6d} tasks held by the scheduler, {found.seconds / n * 1e6:5.0f} us a block"
    )


def held_by_peer(n: int) -> Empty:
    """The same of a bare map."""
    with cluster.connect(workers=2, memory_per_worker="700MiB") as client:
        bare(100, client)()
        with Held(client) as held:
            began = time.perf_counter()
            bare(n, client)()
            seconds = time.perf_counter() - began
    return Empty(n, n, seconds, held.before / 1e6, held.most / 1e6, held.tasks)


def result() -> dict[str, Any]:
    """What a block of four models and four fusions returns: sixteen receipts and counts."""
    receipt = {"store": "maps.zarr", "array": "soil_moisture", "region": [[0, 32], [0, 300], [300, 600]]}
    written = [{**receipt, "checksum": f"{i:024x}"} for i in range(16)]
    return {
        "written": written,
        "cells": 2_880_000,
        "counts": {f"m{i}": {f"bit{j}": j for j in range(8)} for i in range(4)},
    }


def records(n: int, in_memory: bool) -> None:
    """Print what a run costs that finds all its blocks done."""
    with tempfile.TemporaryDirectory() as folder:
        ledger, todo, one = Ledger(Path(folder) / "ledger"), tasks(n), result()
        for task in todo:
            ledger.enter(task, one, 1.0)
        gc.collect()
        before, began = psutil.Process().memory_info().rss, time.perf_counter()
        outcome = blocks.run(todo, ledger, None, progress=False, in_memory=in_memory)
        read = time.perf_counter() - began
        cells = sum(found["cells"] for found in outcome.results.values())
        folded, gained = time.perf_counter() - began - read, psutil.Process().memory_info().rss - before
        assert (outcome.done_before, cells) == (n, n * one["cells"])
    print(f"start {read:6.2f} s, sums over all results {folded:6.2f} s, {gained / 1e6:6.1f} MB gained")


def main(n: int = BLOCKS, repeats: int = REPEATS) -> None:
    """Print both tables."""
    with cluster.connect(workers=2, memory_per_worker="700MiB") as client:
        runs = {"smscale": ours(n, client), PEER: bare(n, client), "smscale, in process": ours(n, None)}
        seconds = medians(runs, repeats)
    print(f"{n} empty blocks, 2 workers of one thread, medians of {repeats} in turns")
    for name, value in seconds.items():
        print(f"  {name:20s} {value:8.3f} s  {value / n * 1e6:7.0f} us a block  {value / seconds[PEER]:6.2f} x")
    for peer, counts in ((False, COUNTS), (True, PEER_COUNTS)):
        for count in counts:
            print(f"  {PEER if peer else 'smscale':20s} {count:6d} blocks: ", end="", flush=True)
            _alone(f"memory({count}, {peer})")
    for in_memory in (False, True):
        where = "held in memory" if in_memory else "left in the ledger"
        print(f"  {RECORDS} finished blocks, results {where:18s}: ", end="", flush=True)
        _alone(f"records({RECORDS}, {in_memory})")


def _alone(call: str) -> None:
    """In a process of its own, whose memory nothing else has touched."""
    subprocess.run([sys.executable, "-c", f"import benchmarks.engine as e; e.{call}"], check=True)
