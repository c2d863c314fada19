"""Workers that declare a GPU do what can use one; the others help, and do what fails there. (The GPU is declared, not there.)"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client, Scheduler, SpecCluster, Worker

from smscale import blocks
from smscale.blocks import Ledger, Task
from smscale.errors import InputError

running = threading.Semaphore(1)


@contextmanager
def workers(*gpus: int) -> Iterator[Client]:
    """One worker of one thread in this process for each number: the GPUs that it declares."""
    some = {
        i: {"cls": Worker, "options": {"nthreads": 1, "resources": {"GPU": n} if n else {}}} for i, n in enumerate(gpus)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    with SpecCluster(workers=some, scheduler=scheduler, silence_logs=50) as cluster, Client(cluster) as client:
        yield client


def where(x: int) -> str:
    """The device of the task; two at once on the only GPU are refused."""
    here = blocks.device()
    if here == "cuda" and not running.acquire(blocking=False):
        raise InputError("two tasks hold one GPU")
    time.sleep(0.02)
    if here == "cuda":
        running.release()
    return here


def full_gpu(x: int) -> int:
    if blocks.device() == "cuda":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
    return x


def some(call: Callable[[int], object], n: int, gpu: bool = True) -> list[Task]:
    return [Task(f"{call.__name__}-{gpu}-{i}", call, (i,), gpu=gpu) for i in range(n)]


def test_gpu_and_cpus_share_what_can_use_a_gpu_and_the_rest_stays_on_cpus(tmp_path: Path) -> None:
    with workers(1, 0) as client:
        both = blocks.run(some(where, 40), Ledger(tmp_path / "a"), client, progress=False).results.values()
        plain = blocks.run(some(where, 10, gpu=False), Ledger(tmp_path / "b"), client, progress=False).results.values()
        held = client.run(lambda dask_worker: dict(dask_worker.state.available_resources))
    assert min(list(both).count(device) for device in ("cuda", "cpu")) > 5
    assert set(plain) == {"cpu"}
    assert sorted(n for worker in held.values() for n in worker.values()) == [1], "the GPU is free again"


def test_cluster_of_gpus_alone_does_everything(tmp_path: Path) -> None:
    todo = [*some(where, 10), *some(where, 5, gpu=False)]
    with workers(1) as client:
        results = blocks.run(todo, Ledger(tmp_path), client, progress=False).results
    assert list(results.values()) == ["cuda"] * 10 + ["cpu"] * 5


@pytest.mark.parametrize("gpus", [(1, 0), (1,)])
def test_what_fails_on_a_gpu_is_done_on_a_cpu_and_told(
    tmp_path: Path, gpus: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "RETRY_AFTER", (0.01, 0.01))
    with workers(*gpus) as client:
        outcome = blocks.run(some(full_gpu, 12), Ledger(tmp_path), client, progress=False)
    assert list(outcome.results.values()) == list(range(12))
    assert outcome.retried
    assert all("on a GPU: RuntimeError: CUDA out of memory" in why for why in outcome.retried.values())


def test_gpu_that_leaves_for_good_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "GPU_BACK_SECONDS", 0.3)
    ledger = Ledger(tmp_path)
    with workers(1, 0) as client:

        def leave() -> None:
            until = time.monotonic() + 30
            while time.monotonic() < until and len(list(tmp_path.glob("*.json"))) < 5:
                time.sleep(0.01)
            gpu = next(a for a, w in client.scheduler_info()["workers"].items() if w["resources"])
            client.retire_workers([gpu])

        threading.Thread(target=leave, daemon=True).start()
        results = blocks.run(some(where, 60), ledger, client, progress=False).results
    assert set(results.values()) == {"cuda", "cpu"}


def test_no_gpu_declared_means_cpu(tmp_path: Path) -> None:
    assert set(blocks.run(some(where, 3), Ledger(tmp_path / "a"), None, progress=False).results.values()) == {"cpu"}
    with workers(0) as client:
        assert set(blocks.run(some(where, 3), Ledger(tmp_path / "b"), client, progress=False).results.values()) == {
            "cpu"
        }
