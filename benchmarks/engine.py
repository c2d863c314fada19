"""What the engine adds to each block: empty blocks with their ledger, against a bare `client.map` of as many empty tasks.

Both in turns on one cluster of two workers with one thread each. The bare peer keeps nothing: no record, no window, no
second try. Then the memory of a run: resident memory that this process (client and scheduler) gains, and the most that
the scheduler holds, for few and for many blocks.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.timing import medians
from smscale import blocks, cluster
from smscale.blocks import Ledger, Task

if TYPE_CHECKING:
    from distributed import Client

BLOCKS = 10_000
REPEATS = 5
FEW, MANY = 1_000, 20_000
PEER = "client.map + gather"


def nothing(i: int) -> int:
    """An empty block."""
    return i


def tasks(n: int) -> list[Task]:
    """Empty blocks with keys and fingerprints as a stage's."""
    return [Task(f"{i // 100}-{i % 100}-0", nothing, (i,), "0123456789abcdef0123456789abcdef") for i in range(n)]


def ours(n: int, client: Client | None) -> Callable[[], None]:
    """All blocks into a fresh ledger."""

    todo = tasks(n)

    def once() -> None:
        with tempfile.TemporaryDirectory() as folder:
            outcome = blocks.run(todo, Ledger(Path(folder) / "ledger"), client, progress=False)
            assert sum(outcome.results.values()) == n * (n - 1) // 2

    return once


def bare(n: int, client: Client) -> Callable[[], None]:
    """All tasks at once, no records."""

    def once() -> None:
        results = client.gather(client.map(nothing, range(n), pure=False))
        assert sum(results) == n * (n - 1) // 2

    return once


def memory(n: int, peer: bool) -> None:
    """Print what one run gains in a fresh process: MB at the end, and the most tasks that the scheduler held."""
    with cluster.connect(workers=2, memory_per_worker="700MiB") as client:
        bare(100, client)()
        run = (bare if peer else ours)(n, client)
        gc.collect()
        before, held, most = psutil.Process().memory_info().rss, [0], [0]

        def look() -> None:
            held[0] = max(held[0], len(client.cluster.scheduler.tasks))
            most[0] = max(most[0], psutil.Process().memory_info().rss)

        from tornado.ioloop import PeriodicCallback

        async def start() -> PeriodicCallback:
            callback = PeriodicCallback(look, 20)
            callback.start()
            return callback

        client.sync(start)
        run()
    print(f"{(most[0] - before) / 1e6:6.1f} MB gained at most, {held[0]:6d} tasks held by the scheduler")


def main(n: int = BLOCKS, repeats: int = REPEATS) -> None:
    """Print both tables."""
    with cluster.connect(workers=2, memory_per_worker="700MiB") as client:
        runs = {"smscale": ours(n, client), PEER: bare(n, client), "smscale, in process": ours(n, None)}
        seconds = medians(runs, repeats)
    print(f"{n} empty blocks, 2 workers of one thread, medians of {repeats} in turns")
    for name, value in seconds.items():
        print(f"  {name:20s} {value:8.3f} s  {value / n * 1e6:7.0f} us a block  {value / seconds[PEER]:6.2f} x")
    for peer in (False, True):
        for count in (FEW, MANY):
            print(f"  {PEER if peer else 'smscale':20s} {count:6d} blocks: ", end="", flush=True)
            subprocess.run(
                [sys.executable, "-m", "benchmarks.engine", "--memory", str(count), str(int(peer))], check=True
            )


if __name__ == "__main__":
    if "--memory" in sys.argv:
        memory(int(sys.argv[2]), sys.argv[3] == "1")
    else:
        main(*(int(a) for a in sys.argv[1:]))
