"""Workers that go and come, a scheduler that goes and comes back: the engine waits so long as it was told, then says so."""

import importlib.metadata
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
from dask_here import Dask, dask_here
from distributed import Client
from tqdm import tqdm

from smscale import block_window, blocks
from smscale.blocks import Ledger, Task
from smscale.errors import RecipeError, TaskError
from smscale.models.search import trials

DONE = {f"{x}": x for x in range(60)}


def slowly(x: int) -> int:
    time.sleep(0.03)
    return x


def tasks() -> list[Task]:
    return [Task(f"{x}", slowly, (x,)) for x in range(60)]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dask]:
    monkeypatch.setattr(block_window, "LOOK_SECONDS", 0.1)
    with dask_here() as here:
        yield here


def once_begun(ledger: Ledger, act: Callable[[], object]) -> None:
    """Act from another thread when some blocks are finished."""

    def wait() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and len(list(ledger.folder.glob("*.json"))) < 5:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_all_workers_lost_is_one_line_after_the_stated_time(tmp_path: Path, here: Dask) -> None:
    scheduler = here.scheduler()
    worker, ledger = here.worker(scheduler), Ledger(tmp_path)
    once_begun(ledger, lambda: here.end(worker))
    with (
        Client(scheduler.address) as client,
        dask.config.set({"smscale.lost-timeout": 0.5}),
        pytest.raises(
            TaskError, match=r"no worker is left, and none came within 0.5 s: .*; run again, finished blocks"
        ),
    ):
        blocks.run(tasks(), ledger, client, progress=False)
    assert 5 <= len(list(tmp_path.glob("*.json"))) < 60


def test_workers_that_come_later_go_on(tmp_path: Path, here: Dask) -> None:
    scheduler = here.scheduler()
    worker, ledger = here.worker(scheduler), Ledger(tmp_path)

    def replace() -> None:
        here.end(worker)
        time.sleep(0.5)
        here.worker(scheduler)

    once_begun(ledger, replace)
    with Client(scheduler.address) as client:
        assert blocks.run(tasks(), ledger, client, progress=False).results == DONE


def test_window_widens_for_workers_that_join(tmp_path: Path, here: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_window, "PACK_MOST", 1)
    scheduler = here.scheduler()
    here.worker(scheduler)
    ledger, flying = Ledger(tmp_path), []
    once_begun(ledger, lambda: [here.worker(scheduler) for _ in range(2)])
    fill = block_window.Window._fill

    def counted(self: block_window.Window) -> None:
        fill(self)
        flying.append(len(self.flying))

    monkeypatch.setattr(block_window.Window, "_fill", counted)
    with Client(scheduler.address) as client:
        assert blocks.run(tasks(), ledger, client, progress=False).results == DONE
    assert flying[1] == block_window.IN_FLIGHT_PER_THREAD
    assert max(flying) == 3 * block_window.IN_FLIGHT_PER_THREAD


def test_scheduler_that_comes_back_at_its_address_goes_on(tmp_path: Path, here: Dask) -> None:
    scheduler = here.scheduler()
    here.worker(scheduler)
    ledger, port = Ledger(tmp_path), int(scheduler.address.rpartition(":")[2])

    def restart() -> None:
        while here.running:
            here.end(here.running[-1])
        time.sleep(0.5)
        here.worker(here.scheduler(port=port))

    once_begun(ledger, restart)
    with Client(scheduler.address, timeout=20) as client:
        outcome = blocks.run(tasks(), ledger, client, progress=False)
    assert outcome.results == DONE
    assert not here.running[0].tasks, "nothing stays behind with the other scheduler"


def test_worker_of_another_version_that_joins_later_is_refused(
    tmp_path: Path, here: Dask, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, ledger = here.scheduler(), Ledger(tmp_path)
    here.worker(scheduler)
    versions = {True: importlib.metadata.version("smscale"), False: "0.0.1"}

    def joins() -> None:
        known = dict.fromkeys(scheduler.workers, True)
        monkeypatch.setattr(
            Client,
            "run",
            lambda self, call, *args, workers=(), on_error="": {w: versions[w in known] for w in workers},
        )
        here.worker(scheduler)

    once_begun(ledger, joins)
    with (
        Client(scheduler.address) as client,
        pytest.raises(RecipeError, match=r"worker tcp://.* has smscale 0.0.1, this process .*: install the same there"),
    ):
        blocks.run(tasks(), ledger, client, progress=False)


def slow_sum(rows: np.ndarray) -> float:
    time.sleep(0.5)
    return float(rows.sum())


def test_search_whose_rows_went_with_their_worker_is_sent_again(here: Dask) -> None:
    scheduler = here.scheduler()
    worker = here.worker(scheduler)

    def replace() -> None:
        time.sleep(0.3)
        here.end(worker)
        here.worker(scheduler)

    with Client(scheduler.address) as client, tqdm(disable=True) as bar:
        threading.Thread(target=replace, daemon=True).start()
        assert trials._on(client, {"rows": np.arange(3.0), "fit": (slow_sum, "rows")}, ["fit"], bar) == [3.0]


def test_search_that_no_worker_comes_back_to_is_one_line(here: Dask) -> None:
    scheduler = here.scheduler()
    worker = here.worker(scheduler)

    def end() -> None:
        time.sleep(0.3)
        here.end(worker)

    with (
        Client(scheduler.address) as client,
        tqdm(disable=True) as bar,
        dask.config.set({"smscale.lost-timeout": 0.3}),
    ):
        threading.Thread(target=end, daemon=True).start()
        with pytest.raises(TaskError, match=r"the search lost, .*: no worker is left, and none came within 0.3 s;"):
            trials._on(client, {"rows": np.arange(3.0), "fit": (slow_sum, "rows")}, ["fit"], bar)
