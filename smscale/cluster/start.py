"""What kinds of cluster have in common: what a run needs of its workers, and the wait for the first of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smscale.cluster.profile import Profile, Workers, seconds, size
from smscale.errors import RecipeError

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

#: How often a starting cluster is looked at.
LOOK_SECONDS = 0.2
#: Of a worker's memory: what dask's text of a size may lose by rounding.
ROUNDING = 0.99
#: Main memory of CUDA's libraries and context: generous, since a worker that holds more than its limit is ended.
CUDA_BYTES = 2 * 2**30
#: dask's settings of a worker that holds nothing in the cluster's memory. There is nothing to spill: told to wait until it holds
#: less, it would wait for ever.
WORKER_MEMORY = {f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause")}


@dataclass(frozen=True)
class Need:
    """What the recipe asks of a cluster: a number of workers, if it says so, and the memory of each."""

    workers: int | None
    memory: str

    def with_gpu(self, given: str | None, gpu: bool = True) -> int:
        """Bytes of a worker that holds a GPU: as given, or with room for CUDA beside what every worker has."""
        return size(given) if given else size(self.memory) + (CUDA_BYTES if gpu else 0)


@dataclass(frozen=True)
class Started:
    """A cluster that was asked for.

    least : workers without which a run does not begin
    state : what the workers that are awaited do, in words; raises RecipeError where waiting is in vain
    """

    client: Client
    least: int
    state: Callable[[], str] = lambda: "none has come"


def wanted(profile: Profile, need: Need, default: Callable[[], int] = lambda: 1) -> Workers:
    """The profile's number of workers, or the recipe's, or the kind's own."""
    if profile.workers is not None:
        return profile.workers
    n = need.workers or default()
    return Workers(n, n)


def settings(profile: Profile) -> dict[str, Any]:
    """dask's settings of this process while it is joined to a cluster."""
    ttl = getattr(profile, "worker_ttl", None)
    return {
        **WORKER_MEMORY,
        "distributed.worker.daemon": False,
        "distributed.worker.profile.enabled": False,  # a hundredth of a worker's time
        "distributed.scheduler.worker-ttl": f"{seconds(ttl)}s" if ttl else None,
        "distributed.scheduler.allowed-failures": 2,  # as often as a block is tried again
        "distributed.admin.low-level-log-length": 0,
        "logging.distributed": "critical",
        "smscale.lost-timeout": seconds(profile.lost_timeout),
    }


def begin(profile: Profile, workers: dict[str, Any], **scheduler: Any) -> SpecCluster:
    """A scheduler in this process, with its workers.

    Raises
    ------
    RecipeError
        if it, or one of them, does not start.
    """
    from distributed import Scheduler, SpecCluster

    shown = getattr(profile, "dashboard", None)
    options = {"dashboard": bool(shown), "dashboard_address": shown or "127.0.0.1:0", **scheduler}
    made = {"cls": Scheduler, "options": options}
    security = scheduler.get("security")
    try:
        return SpecCluster(workers=workers, scheduler=made, security=security, silence_logs=50, name=profile.kind)
    except (RuntimeError, OSError, ValueError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"cluster {profile.name}: scheduler or workers do not start: {told}") from None


def await_workers(started: Started, profile: Profile, need: Need) -> int:
    """The number of workers, once there are enough for a start.

    Raises
    ------
    RecipeError
        if too few come within the profile's `start_timeout`, or one has less memory than the recipe says.
    """
    until = time.monotonic() + seconds(profile.start_timeout)
    while True:
        workers = started.client.scheduler_info(n_workers=-1)["workers"]
        if len(workers) >= started.least:
            break
        state = started.state()
        if time.monotonic() > until:
            found = f"{len(workers)} of {started.least} workers" if workers else "no worker"
            raise RecipeError(f"cluster {profile.name}: {found} within start_timeout {profile.start_timeout}: {state}")
        time.sleep(LOOK_SECONDS)
    for address, worker in workers.items():
        _require_memory(address, worker, profile, need)
    return len(workers)


def _require_memory(address: str, worker: dict[str, Any], profile: Profile, need: Need) -> None:
    """Each thread of a worker does a block of its own, planned for the recipe's memory."""
    limit, threads = worker.get("memory_limit"), worker["nthreads"]
    if limit and limit / threads < ROUNDING * size(need.memory):
        from dask.utils import format_bytes

        raise RecipeError(
            f"cluster {profile.name}: worker {address} has {format_bytes(limit)} for {threads} thread{'s' * (threads > 1)}, the recipe's "
            f"resources.memory_per_worker is {need.memory}: start it with --nthreads 1 --memory-limit {need.memory.replace(' ', '')}, or lower the recipe's"
        )
