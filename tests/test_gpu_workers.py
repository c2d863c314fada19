"""Workers that declare a GPU do what can use one; the others help, and do what fails there.

The GPU is declared, not there: torch's CPU stands in for it, but where there is one.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client, Scheduler, SpecCluster, Worker
from made_networks import TOLERANCE

from smscale import block_task, block_window, blocks, config, pipeline, store
from smscale.blocks import Ledger, Task
from smscale.errors import InputError
from smscale.models import load_model, on_device
from smscale.pipeline.downscale import downscale
from smscale.pipeline.fuse import fuse
from smscale.pipeline.layout import layout_of
from smscale.pipeline.plan import plan_of
from smscale.pipeline.prediction import GPU_MODELS
from smscale.pipeline.run import Run
from smscale.verify import verify
from smscale.workspace import Workspace

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
    monkeypatch.setattr(block_task, "RETRY_AFTER", (0.01, 0.01))
    with workers(*gpus) as client:
        outcome = blocks.run(some(full_gpu, 12), Ledger(tmp_path), client, progress=False)
    assert list(outcome.results.values()) == list(range(12))
    assert outcome.retried
    assert all("on a GPU: RuntimeError: CUDA out of memory" in why for why in outcome.retried.values())


def test_gpu_that_leaves_for_good_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_window, "GPU_BACK_SECONDS", 0.3)
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


def test_models_that_send_blocks_to_gpus_are_those_that_predict_there(tiny_run: Path) -> None:
    workspace = Workspace(tiny_run)
    models = {name: load_model(workspace.model(name)).model for name in ("gabp", "cnn", "rf", "xgb")}
    assert {name for name, model in models.items() if hasattr(model, "on_device")} == GPU_MODELS


def assert_same_maps(found: Path, expected: Path) -> None:
    """Every model's map and every fused one, to the stated tolerance; what trees say, and every status, exactly."""
    names = [f"soil_moisture_{name}" for name in ("gabp", "cnn", "rf", "xgb")]
    for name in [*names, "uncertainty", "gda_kriging", "gra_kriging", "gda_idw", "gra_idw"]:
        exactly = name.endswith(("_rf", "_xgb"))
        values, held = (store.read(run / "maps.zarr", "", name, (slice(None),) * 3) for run in (found, expected))
        np.testing.assert_allclose(values, held, rtol=0, atol=0 if exactly else TOLERANCE, err_msg=name)
        assert np.isfinite(values).any(), name
    for name in (*names, "gda_kriging"):
        name = "status_" + name.removeprefix("soil_moisture_")
        values, held = (store.read(run / "maps.zarr", "", name, (slice(None),) * 3) for run in (found, expected))
        np.testing.assert_array_equal(values, held, name)


def test_a_run_on_gpu_and_cpu_gives_the_maps_of_a_cpu_and_goes_on_without_the_gpu(
    tmp_path: Path, tiny_run: Path, tiny_recipe: Path, copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, asked, placed = copy_run(tiny_run, tmp_path / "run"), [], on_device.placed

    def stand_in(device: str) -> torch.device | None:
        asked.append(device)
        return placed(device) if torch.cuda.is_available() else torch.device("cpu")

    monkeypatch.setattr(on_device, "placed", stand_in)
    workspace, recipe = Workspace(root), pipeline.with_region(config.read(tiny_recipe))
    layout = layout_of(recipe)
    plan = plan_of(recipe, layout)
    order = ("ingest", "match", "train", "downscale", "fuse", "evaluate")

    def make_maps(client: Client | None) -> None:
        run = Run(recipe, workspace, order, ("downscale", "fuse"), client, progress=False)
        downscale(run, layout, plan)
        fuse(run, layout, plan)

    keys = [block.key for block in plan.blocks]
    workspace.forget("fuse")
    workspace.forget("downscale")
    with workers(1, 0) as client:
        make_maps(client)
    assert 2 <= len(asked) < 2 * len(keys), "both took part: a block asks for each of its two networks"
    assert set(asked) == {"cuda"}
    assert_same_maps(root, tiny_run)

    ledger = workspace.ledger("downscale")
    assert ledger.keep_only(keys[::2])
    for stage in ("fuse", "downscale"):
        workspace.unfinish(stage)
    asked.clear()
    make_maps(None)
    assert not asked
    assert_same_maps(root, tiny_run)
    assert not verify(workspace).defects
