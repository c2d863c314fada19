"""The one module that makes or joins a dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import psutil

from smscale.errors import RecipeError

if TYPE_CHECKING:
    from distributed import Client

#: Imports of torch, numba and their kin can take long on a cold disk.
WORKER_START_SECONDS = 120


@contextmanager
def connect(where: str = "local", workers: int | None = None, memory_per_worker: str = "1.5GiB") -> Iterator[Client]:
    """A client of a cluster on this machine (`local`) or of a running scheduler (`tcp://…`, `tls://…`).

    Local workers are processes of one thread each: NumPy's own threads are off, so that results and memory do not
    depend on how many there are. Their number defaults to the machine's cores, as far as memory goes.
    """
    import dask
    from distributed import Client, LocalCluster

    if where.startswith(("tcp://", "tls://")):
        try:
            client = Client(where, timeout="20s")
        except (OSError, TimeoutError) as error:
            raise RecipeError(f"--cluster {where}: no scheduler answers there ({error.__class__.__name__})") from None
        with client:
            yield client
        return
    if where != "local":
        raise RecipeError(f"--cluster {where}: expected local, tcp://host:port or tls://host:port")
    quiet = {
        "distributed.worker.daemon": False,
        "distributed.scheduler.worker-ttl": None,
        "distributed.comm.timeouts.connect": f"{WORKER_START_SECONDS}s",
        # Nothing lies in the cluster's memory that could be spilled: a worker told to wait until it has less waits for ever.
        **{f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause")},
        "distributed.admin.low-level-log-length": 0,
        "distributed.scheduler.allowed-failures": 2,  # as often as a block is tried again
        "logging.distributed": "critical",
    }
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=workers or default_workers(memory_per_worker),
            threads_per_worker=1,
            memory_limit=memory_per_worker,
            scheduler_kwargs={
                "dashboard": False,
                "dashboard_address": "127.0.0.1:0",
            },  # a free port: nobody looks there
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def when_needed(
    where: str | None, workers: int | None, memory_per_worker: str
) -> Iterator[Callable[[], Client | None]]:
    """A function that connects when it is first called; what it made ends with the context. None as `where`: no cluster."""
    with ExitStack() as stack:
        made: list[Client] = []

        def client() -> Client | None:
            if where is not None and not made:
                made.append(stack.enter_context(connect(where, workers, memory_per_worker)))
            return made[0] if made else None

        yield client


def default_workers(memory_per_worker: str) -> int:
    """One worker per usable core, as far as 80 % of the free memory goes; at least one."""
    from dask.utils import parse_bytes

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(cores, int(0.8 * psutil.virtual_memory().available / parse_bytes(memory_per_worker))))
