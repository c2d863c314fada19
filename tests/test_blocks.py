"""The engine does each task once, wherever it runs, and goes on where it stopped."""

import importlib.metadata
import json
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from tqdm.std import tqdm as std_tqdm

from smscale import block_task, block_window, blocks, cluster
from smscale.blocks import Ledger, Task
from smscale.errors import InputError, RecipeError, StoreError, TaskError
from smscale.progress import Part, Unwatched


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
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Client | None:
    """This process, then a cluster; neither waits long before it tries again, yet so long that others finish meanwhile."""
    monkeypatch.setattr(block_task, "RETRY_AFTER", (0.01, 0.01))
    if request.param == "here":
        return None
    client: Client = request.getfixturevalue("client")
    client.run(setattr, blocks, "RETRY_AFTER", (0.4, 0.4))
    return client


def fail_at_first(x: int, folder: str, times: int, how: str) -> int:
    """x; so many calls fail before."""
    calls = Path(folder) / f"failed-{x}"
    failed = calls.stat().st_size if calls.exists() else 0
    if failed < times:
        with calls.open("a") as file:
            file.write("x")
        if how == "exit":
            os._exit(1)
        raise {
            "disk": OSError(28, "No space left on device"),
            "device": OSError(5, "Input/output error"),
            "refused": OSError(30, "Read-only file system", f"{folder}/map"),
            "input": InputError(f"number {x} is no good"),
        }[how]
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
    said: list[str] = []
    outcome = blocks.run(some, Ledger(tmp_path / "ledger"), workers, "maps", False, said.append)
    assert outcome.results == {f"{x}": x for x in range(6)}
    why = "OSError: [Errno 28] No space left on device"
    assert outcome.retried == {f"{x}": f"1 time, {why}" for x in (1, 3, 5)}
    assert said == [f"maps       3 blocks tried again (the last: {next(reversed(outcome.retried))}, 1 time, {why})\n"]
    record = json.loads((tmp_path / "ledger" / "3.json").read_text())
    assert (record["failures"], record["failure"]) == (1, why)
    assert "failures" not in json.loads((tmp_path / "ledger" / "2.json").read_text())


def test_block_that_fails_again_and_again_is_named_and_others_stay_done(tmp_path: Path, workers: Client | None) -> None:
    ledger = Ledger(tmp_path / "ledger")
    bad = Task("bad/block", fail_at_first, (7, str(tmp_path), 99, "device"))
    parts: list[Part] = []

    class Watching(Unwatched):
        def ends(self, part: Part) -> None:
            parts.append(part)

    with pytest.raises(TaskError, match=r"block bad/block failed 3 times: OSError.* Input/output error") as told:
        blocks.run([*tasks(5, tmp_path), bad], ledger, workers, progress=False, watch=Watching())
    assert "\n" not in str(told.value)
    assert finished(ledger) == {f"n/{i}" for i in range(5)}
    (part,) = parts
    assert (part.done, part.failed, part.here) == (5, 1, workers is None)
    assert part.failures == [("bad/block", "OSError: [Errno 5] Input/output error")]
    assert part.peak > 50e6 or not Path("/proc/self/status").exists()


def test_disk_that_stays_full_is_told_with_its_path_after_the_tries(tmp_path: Path, workers: Client | None) -> None:
    bad = Task("bad", fail_at_first, (7, str(tmp_path), 99, "disk"))
    with pytest.raises(StoreError, match=r"No space left on device\): free the disk and run again") as told:
        blocks.run([*tasks(3, tmp_path), bad], Ledger(tmp_path / "ledger"), workers, progress=False)
    assert str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 2
    assert (tmp_path / "failed-7").read_text() == "xxx"
    assert finished(Ledger(tmp_path / "ledger")) == {f"n/{i}" for i in range(3)}


def test_read_only_store_is_told_at_once(tmp_path: Path, workers: Client | None) -> None:
    bad = Task("bad", fail_at_first, (7, str(tmp_path), 99, "refused"))
    expected = rf"{tmp_path}/map: cannot be written \(Read-only file system\): .*name another --workspace"
    with pytest.raises(StoreError, match=expected) as told:
        blocks.run([bad], Ledger(tmp_path / "ledger"), workers, progress=False)
    assert told.value.exit_code == 2
    assert (tmp_path / "failed-7").read_text() == "x", "what cannot heal is not tried again"


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

    monkeypatch.setattr(block_task, "RETRY_AFTER", (0.01, 0.01))
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
        survived = blocks.run(once, ledger, client, progress=False)
        assert survived.results == {f"once/{x}": x for x in range(12)}
        assert survived.workers_lost == 1
        assert "1 worker lost, blocks done by others" in survived.trouble
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
    monkeypatch.setattr(block_window, "PACK_MOST", 1)
    window = 2 * block_window.IN_FLIGHT_PER_THREAD
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
    slow = [Task(f"{x}", sleep, (x, 1.2 * block_task.PACK_SECONDS)) for x in range(10)]
    blocks.run(slow, Ledger(tmp_path / "long"), client, progress=False)
    assert packs == [1] * 10


def pack(*calls: tuple[Callable[..., Any], Any]) -> tuple[list[Any], Exception | None]:
    done, error = block_task.pack([pickle.dumps((call, args)) for call, *args in calls])
    return [one.result for one in done], error


def test_pack_hands_back_what_time_or_an_error_left() -> None:
    late = pack((sleep, 0, 0.0), (sleep, 1, 2 * block_task.PACK_SECONDS), (sleep, 2, 0.0), (sleep, 3, 0.0))
    assert late == ([0, 1], None)
    assert pack((square, 1), (break_, 2), (square, 3)) == ([{"square": 1}], None)
    refused, error = pack((square, 1), (fail, 2), (square, 3))
    assert refused == [{"square": 1}]
    assert isinstance(error, InputError)


def test_worker_without_a_module_is_told_not_waited_for(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def same(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    same = importlib.import_module("only_here").same
    with pytest.raises(TaskError, match="block a failed 3 times: ModuleNotFoundError: No module named 'only_here'"):
        blocks.run([Task("a", same, (1,))], Ledger(tmp_path / "ledger"), client, progress=False)


def test_worker_of_another_version_is_refused(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = block_window.version("smscale")
    monkeypatch.setattr(block_window, "version", Version("9.9"))
    with pytest.raises(RecipeError, match=rf"worker tcp://.* has smscale {theirs}, this process 9.9: install the same"):
        blocks.run([Task("a", square, (1,))], Ledger(tmp_path / "ledger"), client, progress=False)


class Version:
    """Says one version here; in another process it is the genuine function."""

    def __init__(self, here: str) -> None:
        self.here = here

    def __call__(self, name: str) -> str:
        return self.here

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (importlib.metadata, "version")


def test_error_among_short_blocks_names_its_own_and_costs_no_finished_one(tmp_path: Path, client: Client) -> None:
    ledger = Ledger(tmp_path / "ledger")
    with pytest.raises(TaskError, match="block broken failed 3 times: ZeroDivisionError"):
        blocks.run([*tasks(100, tmp_path), Task("broken", break_, (7,))], ledger, client, progress=False)
    before = finished(ledger)
    assert before
    assert before <= {f"n/{i}" for i in range(100)}
    again = blocks.run(tasks(100, tmp_path), ledger, client, progress=False)
    assert again.done_before == len(before)
    assert finished(ledger) == {f"n/{i}" for i in range(100)}
    assert {(tmp_path / key.replace("n/", "calls-")).read_text() for key in before} == {"x"}


def test_wrong_input_among_short_blocks_is_met_once(tmp_path: Path, client: Client) -> None:
    ledger = Ledger(tmp_path / "ledger")
    bad = Task("bad", fail_at_first, (7, str(tmp_path), 99, "input"))
    with pytest.raises(InputError, match="number 7"):
        blocks.run([*tasks(100, tmp_path), bad, *tasks(200, tmp_path)[100:]], ledger, client, progress=False)
    assert (tmp_path / "failed-7").read_text() == "x"
    assert finished(ledger) >= {f"n/{i}" for i in range(8)}


def test_rate_counts_only_what_this_run_did_and_time_left_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    class Kept(std_tqdm):  # type: ignore[type-arg]
        def close(self) -> None:
            bars.append(self.format_dict)
            super().close()

    monkeypatch.setattr(blocks, "tqdm", Kept)
    ledger = Ledger(tmp_path / "ledger")
    blocks.run(tasks(500, tmp_path), ledger, progress=False)
    bars.clear()
    slow = [Task(f"{x}", sleep, (x, 0.05), cells=50_000) for x in range(9)]
    slow.append(Task("once", fail_at_first, (9, str(tmp_path), 1, "disk"), cells=50_000))
    blocks.run([*tasks(500, tmp_path), *slow], ledger)
    bar = bars[0]
    assert (bar["initial"], bar["n"], bar["total"]) == (500, 510, 510)
    assert "0/510" in std_tqdm.format_meter(**bar)
    rate = bar["rate"] or (bar["n"] - bar["initial"]) / bar["elapsed"]
    assert 2 < rate <= 20, "ten blocks of 0.05 s, not five hundred and ten"
    shown = re.search(r"([\d.]+)kcells/s, 1 tried again$", bar["postfix"])
    assert shown is not None
    assert 50 < float(shown[1]) <= 1000, "ten blocks of 50 000 cells in half a second, and half a second lost"
    half = std_tqdm.format_meter(**bar | {"n": 505, "elapsed": 1.0, "rate": 5.0})
    assert "<00:01, " in half, "five blocks left at five a second"
