"""Workers on this machine: processes of one thread each, and one for each GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from smscale.cluster.profile import Local, seconds, size
from smscale.cluster.start import Need, Started, begin, wanted
from smscale.errors import RecipeError

#: nvidia-smi answers within a second, unless its driver hangs.
NVIDIA_SECONDS = 10


@contextmanager
def make(profile: Local, need: Need) -> Iterator[Started]:
    """Start them; they end with the context.

    NumPy's own threads are off, so that results and memory do not depend on how many workers there are.
    """
    import dask
    from distributed import Client, Nanny

    gpus = _gpus_of(profile)
    each = need.with_gpu(profile.gpu_memory)
    taken = len(gpus) * each
    number = wanted(profile, need, lambda: default_workers(need.memory, taken)).max
    _require_room(number * size(need.memory) + taken, profile, number, need)
    plain = {"host": "127.0.0.1", "nthreads": 1, "silence_logs": 50, "dashboard": False}
    workers: dict[str, Any] = {
        f"cpu-{i}": {
            "cls": Nanny,
            "options": {**plain, "memory_limit": need.memory, "env": {"CUDA_VISIBLE_DEVICES": ""}},
        }
        for i in range(number)
    }
    for gpu in gpus:
        held = {"memory_limit": each, "resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": gpu}}
        workers[f"gpu-{gpu}"] = {"cls": Nanny, "options": {**plain, **held}}
    with (
        # That long may a worker import: on a cold disk torch, numba and their kin take a minute.
        dask.config.set({"distributed.comm.timeouts.connect": f"{seconds(profile.start_timeout)}s"}),
        begin(profile, workers, host="127.0.0.1", port=0) as cluster,
        Client(cluster) as client,
    ):
        yield Started(client, len(workers))


def default_workers(memory_per_worker: str, taken: int = 0) -> int:
    """One worker per usable core, as far as 80 % of the free memory goes that is not `taken` (bytes); at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    free = psutil.virtual_memory().available - taken
    return max(1, min(cores, int(0.8 * free / size(memory_per_worker))))


def gpus() -> list[str]:
    """Identifiers of the NVIDIA GPUs that PyTorch could use here, as CUDA_VISIBLE_DEVICES names them."""
    if not _torch_has_cuda():
        return []
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [gpu for gpu in allowed.replace(" ", "").split(",") if gpu and gpu != "-1"]
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if not done.returncode else []


def _torch_has_cuda() -> bool:
    """By its version's label: to import it takes seconds."""
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def _gpus_of(profile: Local) -> list[str]:
    if profile.gpus == 0:
        return []
    found = gpus()
    if profile.gpus is not None and len(found) < profile.gpus:
        raise RecipeError(
            f"cluster {profile.name}: key gpus: found {profile.gpus}, this machine has {len(found)} that PyTorch can use"
        )
    return found[: profile.gpus]


def _require_room(asked: int, profile: Local, number: int, need: Need) -> None:
    """More than the machine has would end it, or be cut down by dask without a word."""
    from dask.utils import format_bytes
    from distributed.system import MEMORY_LIMIT

    if asked > MEMORY_LIMIT:
        raise RecipeError(
            f"cluster {profile.name}: {number} worker{'s' * (number > 1)} of resources.memory_per_worker {need.memory} need {format_bytes(asked)}, "
            f"this machine has {format_bytes(MEMORY_LIMIT)}: take fewer workers, or less memory for each"
        )
