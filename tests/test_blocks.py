"""The engine does each task once, wherever it runs, and goes on where it stopped."""

import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from sklearn.ensemble import RandomForestRegressor
from tqdm.std import tqdm as std_tqdm

from smscale import blocks, cluster, config
from smscale.blocks import Ledger, Task
from smscale.errors import InputError, StoreError, TaskError
from smscale.models import save_model
from smscale.pipeline.downscale import downscale
from smscale.pipeline.layout import layout_of
from smscale.pipeline.run import Run
from smscale.workspace import Workspace


class Enough(Exception):
    """What a test wanted to see has been seen."""


def square(x: int, folder: str = "") -> dict[str, int]:
    if folder:
        with (Path(folder) / f"calls-{x}").open("a") as calls:
            calls.write("x")
    return {"square": x * x}


def fail(x: int) -> None:
    raise InputError(f"number {x} is no good")


def break_(x: int) -> None:
    raise ZeroDivisionError(x)


def tasks(n: int, folder: Path, fingerprint: str = "f") -> list[Task]:
    return [Task(f"n/{i}", square, (i, str(folder)), fingerprint) for i in range(n)]


def test_second_run_does_nothing_and_changed_fingerprint_does_all(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    first = blocks.run(tasks(5, tmp_path), ledger, progress=False)
    second = blocks.run(tasks(5, tmp_path), ledger, progress=False)
    assert first.results == second.results == {f"n/{i}": {"square": i * i} for i in range(5)}
    assert (first.done_before, second.done_before) == (0, 5)
    blocks.run(tasks(5, tmp_path, "g"), ledger, progress=False)
    assert all((tmp_path / f"calls-{i}").read_text() == "xx" for i in range(5))


def test_failure_keeps_what_was_done(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    with pytest.raises(InputError, match="number 7 is no good"):
        blocks.run([*tasks(3, tmp_path), Task("bad", fail, (7,))], ledger, progress=False)
    assert blocks.run(tasks(3, tmp_path), ledger, progress=False).done_before == 3


def test_truncated_record_counts_as_not_done(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    blocks.run(tasks(2, tmp_path), ledger, progress=False)
    (tmp_path / "ledger" / "n.0.json").write_text('{"key": ')
    assert blocks.run(tasks(2, tmp_path), ledger, progress=False).done_before == 1


def test_two_tasks_of_one_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="share one key"):
        blocks.run([Task("a", square, (1,)), Task("a", square, (2,))], Ledger(tmp_path), progress=False)


def test_cluster_gives_the_same_and_its_errors_are_told(tmp_path: Path) -> None:
    with cluster.connect(workers=2, memory_per_worker="700MiB") as client:
        there = blocks.run(tasks(30, tmp_path), Ledger(tmp_path / "a"), client, progress=False)
        with pytest.raises(InputError, match="number 7"):
            blocks.run([Task("bad", fail, (7,))], Ledger(tmp_path / "b"), client, progress=False)
        with pytest.raises(TaskError, match="failed 3 times: ZeroDivisionError"):
            blocks.run([Task("broken", break_, (7,))], Ledger(tmp_path / "b"), client, progress=False)
    here = blocks.run(tasks(30, tmp_path), Ledger(tmp_path / "c"), progress=False)
    assert there.results == here.results


@pytest.mark.parametrize(
    ("size", "step", "expected"), [(10, 4, [(0, 4), (4, 8), (8, 10)]), (3, 5, [(0, 3)]), (0, 2, [])]
)
def test_spans_cover_every_cell_once(size: int, step: int, expected: list[tuple[int, int]]) -> None:
    assert [(s.start, s.stop) for s in blocks.spans(size, step)] == expected


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with cluster.connect(workers=2, memory_per_worker="700MiB") as client:
        yield client


@pytest.fixture(params=["here", "there"])
def workers(request: pytest.FixtureRequest) -> Client | None:
    """This process, then a cluster."""
    return None if request.param == "here" else request.getfixturevalue("client")


def fail_at_first(x: int, folder: str, times: int, how: str) -> int:
    """x; so many calls fail before."""
    calls = Path(folder) / f"failed-{x}"
    failed = calls.stat().st_size if calls.exists() else 0
    if failed < times:
        with calls.open("a") as file:
            file.write("x")
        if how == "exit":
            os._exit(1)
        raise {"disk": OSError(28, "No space left on device"), "input": InputError(f"number {x} is no good")}[how]
    return x


def sleep(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x


def finished(ledger: Ledger) -> set[str]:
    """Keys in the ledger; every file there is a whole record, also while a run writes others."""
    records = [json.loads(path.read_text()) for path in ledger.folder.glob("[!.]*")]
    return {record["key"] for record in records}


def when_begun(ledger: Ledger, act: Callable[[], object]) -> None:
    """Act from another thread as soon as three blocks are finished."""

    def wait() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and len(finished(ledger)) < 3:
            time.sleep(0.02)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_disk_that_is_full_for_a_moment_stops_nothing(tmp_path: Path, workers: Client | None) -> None:
    some = [Task(f"{x}", fail_at_first, (x, str(tmp_path), x % 2, "disk")) for x in range(6)]
    outcome = blocks.run(some, Ledger(tmp_path / "ledger"), workers, progress=False)
    assert outcome.results == {f"{x}": x for x in range(6)}


def test_block_that_fails_again_and_again_is_named_and_others_stay_done(tmp_path: Path, workers: Client | None) -> None:
    ledger = Ledger(tmp_path / "ledger")
    bad = Task("bad/block", fail_at_first, (7, str(tmp_path), 99, "disk"))
    with pytest.raises(TaskError, match=r"block bad/block failed 3 times: OSError.* No space left") as told:
        blocks.run([*tasks(5, tmp_path), bad], ledger, workers, progress=False)
    assert "\n" not in str(told.value)
    assert finished(ledger) == {f"n/{i}" for i in range(5)}


def test_wrong_input_is_not_tried_again(tmp_path: Path, workers: Client | None) -> None:
    bad = Task("bad", fail_at_first, (7, str(tmp_path), 99, "input"))
    with pytest.raises(InputError, match="number 7"):
        blocks.run([bad], Ledger(tmp_path / "ledger"), workers, progress=False)
    assert (tmp_path / "failed-7").read_text() == "x"


def test_full_disk_under_the_ledger_is_waited_for_then_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, replace, refusals = Ledger(tmp_path / "ledger"), os.replace, [1]

    def full(source: Path, target: Path) -> None:
        if refusals[0] > 0:
            refusals[0] -= 1
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(blocks, "RETRY_AFTER", (0.01, 0.01))
    monkeypatch.setattr(os, "replace", full)
    blocks.run(tasks(2, tmp_path), ledger, progress=False)
    assert finished(ledger) == {"n/0", "n/1"}
    refusals[0] = 3
    with pytest.raises(StoreError, match=r"record of block n/2 cannot be written \(No space left"):
        blocks.run(tasks(3, tmp_path), ledger, progress=False)
    assert {path.name for path in ledger.folder.iterdir()} == {"n.0.json", "n.1.json"}, "no half of a file"


def test_worker_that_dies_once_is_survived_and_guilty_block_is_named(tmp_path: Path) -> None:
    once = [Task(f"once/{x}", fail_at_first, (x, str(tmp_path), int(x == 3), "exit")) for x in range(12)]
    guilty = Task("guilty", fail_at_first, (99, str(tmp_path), 99, "exit"))
    ledger = Ledger(tmp_path / "ledger")
    with cluster.connect(workers=2, memory_per_worker="700MiB") as client:
        assert blocks.run(once, ledger, client, progress=False).results == {f"once/{x}": x for x in range(12)}
        client.cluster.scheduler.allowed_failures = 0  # so that the guilty one ends two workers, not eight
        with pytest.raises(TaskError, match="block guilty ended 1 worker"):
            blocks.run([guilty, *tasks(20, tmp_path)], ledger, client, progress=False)
    assert finished(ledger) == {f"once/{x}" for x in range(12)} | {f"n/{x}" for x in range(20)}, "all others went on"


def test_interrupt_cancels_what_flies_and_a_later_run_goes_on(tmp_path: Path, client: Client) -> None:
    ledger = Ledger(tmp_path / "ledger")
    slow = [Task(f"{x}", sleep, (x, 0.11)) for x in range(40)]
    when_begun(ledger, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        blocks.run(slow, ledger, client, progress=False)
    before = len(finished(ledger))
    assert 0 < before < 40
    time.sleep(0.5)
    assert not client.futures
    assert len(finished(ledger)) == before, "nothing is entered after the end"
    outcome = blocks.run(slow, ledger, client, progress=False)
    assert outcome.done_before == before
    assert outcome.results == {f"{x}": x for x in range(40)}


@pytest.mark.parametrize("what", ["client", "scheduler"])
def test_cluster_that_goes_away_is_told_in_one_line(tmp_path: Path, what: str) -> None:
    ledger = Ledger(tmp_path / "ledger")
    slow = [Task(f"{x}", sleep, (x, 0.11)) for x in range(200)]
    with cluster.connect(workers=1, memory_per_worker="700MiB") as client:
        when_begun(ledger, client.close if what == "client" else client.cluster.close)
        with pytest.raises(
            TaskError, match=r"the cluster was lost .* run again, finished blocks stay finished"
        ) as told:
            blocks.run(slow, ledger, client, progress=False)
    assert "\n" not in str(told.value)
    assert 0 < len(finished(ledger)) < 200


def test_window_bounds_what_is_in_flight(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[tuple[int, int]] = []
    submit = type(client).submit

    def counted(self: Client, *args: Any, **how: Any) -> Any:
        future = submit(self, *args, **how)
        alive.append((len(self.futures), len(self.cluster.scheduler.tasks)))
        return future

    monkeypatch.setattr(type(client), "submit", counted)
    monkeypatch.setattr(blocks, "PACK_MOST", 1)
    window = 2 * blocks.IN_FLIGHT_PER_THREAD
    outcome = blocks.run(tasks(300, tmp_path), Ledger(tmp_path / "ledger"), client, progress=False)
    assert outcome.results == {f"n/{i}": {"square": i * i} for i in range(300)}
    assert len(alive) == 300
    most = max(futures for futures, _ in alive), max(held for _, held in alive)
    assert window <= most[0] <= 2 * window  # some are let go by the client's other thread, a moment later
    assert most[1] <= 3 * window  # and the scheduler hears of it later still


def test_short_blocks_travel_together_and_long_ones_alone(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs: list[int] = []
    submit = type(client).submit

    def counted(self: Client, call: Any, calls: Any, *args: Any, **how: Any) -> Any:
        packs.append(len(calls))
        return submit(self, call, calls, *args, **how)

    monkeypatch.setattr(type(client), "submit", counted)
    blocks.run(tasks(1000, tmp_path), Ledger(tmp_path / "short"), client, progress=False)
    assert len(packs) < 100
    packs.clear()
    slow = [Task(f"{x}", sleep, (x, 1.2 * blocks.PACK_SECONDS)) for x in range(10)]
    blocks.run(slow, Ledger(tmp_path / "long"), client, progress=False)
    assert packs == [1] * 10


def test_pack_hands_back_what_time_or_an_error_left() -> None:
    late, _ = blocks._pack([sleep] * 4, [(0, 0.0), (1, 2 * blocks.PACK_SECONDS), (2, 0.0), (3, 0.0)])
    assert [result for result, _ in late] == [0, 1]
    broken, error = blocks._pack([square, break_, square], [(1,), (2,), (3,)])
    assert ([result for result, _ in broken], error) == ([{"square": 1}], None)
    refused, error = blocks._pack([square, fail, square], [(1,), (2,), (3,)])
    assert [result for result, _ in refused] == [{"square": 1}]
    assert isinstance(error, InputError)


def test_error_among_short_blocks_names_its_own(tmp_path: Path, client: Client) -> None:
    ledger = Ledger(tmp_path / "ledger")
    with pytest.raises(TaskError, match="block broken failed 3 times: ZeroDivisionError"):
        blocks.run([*tasks(100, tmp_path), Task("broken", break_, (7,))], ledger, client, progress=False)
    assert finished(ledger) == {f"n/{i}" for i in range(100)}


def test_wrong_input_among_short_blocks_is_met_once(tmp_path: Path, client: Client) -> None:
    ledger = Ledger(tmp_path / "ledger")
    bad = Task("bad", fail_at_first, (7, str(tmp_path), 99, "input"))
    with pytest.raises(InputError, match="number 7"):
        blocks.run([*tasks(100, tmp_path), bad, *tasks(200, tmp_path)[100:]], ledger, client, progress=False)
    assert (tmp_path / "failed-7").read_text() == "x"
    assert finished(ledger) >= {f"n/{i}" for i in range(8)}


def test_rate_counts_only_what_this_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Kept(std_tqdm):  # type: ignore[type-arg]
        def close(self) -> None:
            bars.append(self.format_dict)
            super().close()

    monkeypatch.setattr(blocks, "tqdm", Kept)
    ledger = Ledger(tmp_path / "ledger")
    blocks.run(tasks(500, tmp_path), ledger, progress=False)
    bars.clear()
    slow = [Task(f"{x}", sleep, (x, 0.05)) for x in range(10)]
    blocks.run([*tasks(500, tmp_path), *slow], ledger)
    bar = bars[0]
    assert (bar["initial"], bar["n"], bar["total"]) == (500, 510, 510)
    assert "0/510" in std_tqdm.format_meter(**bar)
    rate = bar["rate"] or (bar["n"] - bar["initial"]) / bar["elapsed"]
    assert 2 < rate <= 20, "ten blocks of 0.05 s, not five hundred and ten"


def test_bytes_of_a_task_do_not_grow_with_the_model(
    tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"lst": rng.normal(290, 10, 400), "ndvi": rng.random(400)})
    recipe = replace(
        config.read(tiny_recipe),
        models={"rf": {}},
        region=(100.0, 29.0, 101.0, 30.0),
        period=("2017-06-01", "2017-06-04"),
    )
    sent: dict[str, list[int]] = {"small": [], "large": []}
    stored = {}
    for size, trees in (("small", 1), ("large", 200)):
        workspace = Workspace(tmp_path / size)
        forest = RandomForestRegressor(trees, random_state=0).fit(table.to_numpy(np.float32), rng.random(400))
        folder = save_model(workspace.model("rf"), forest, list(table), table, {}, {})
        stored[size] = sum(path.stat().st_size for path in folder.rglob("*"))
        workspace.finish("train", "0123456789abcdef", {"best": "rf"})

        def weigh(todo: list[Task], *args: Any, size: str = size, **how: Any) -> None:
            sent[size] += [len(pickle.dumps((task.call, task.args))) for task in todo]
            raise Enough

        monkeypatch.setattr(blocks, "run", weigh)
        with pytest.raises(Enough):
            downscale(Run(recipe, workspace, ("train", "downscale")), layout_of(recipe))
    assert stored["large"] > 20 * stored["small"]
    assert sent["large"] == sent["small"]
    assert 0 < max(sent["large"]) < 5000
