"""The engine does each task once, wherever it runs, and goes on where it stopped."""

from pathlib import Path

import pytest

from smscale import blocks, cluster
from smscale.blocks import Ledger, Task
from smscale.errors import InputError, StoreError, TaskError


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
