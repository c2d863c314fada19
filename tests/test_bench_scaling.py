"""`smscale bench scaling`: cases, what a row says, and the pass itself on a tiny season."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smscale import blocks, cluster
from smscale.bench import scaling
from smscale.bench.scaling_report import Case, Counters, Pass, Report
from smscale.block_plan import Plan
from smscale.blocks import Task
from smscale.evaluate.bench_figures import scaling_figure


def tasks(n: int, steps: int = 8) -> list[Task]:
    return [
        Task(
            f"t{i}", int, ("settings", (slice(i * steps, (i + 1) * steps), slice(0, 5), slice(0, 4))), cells=steps * 20
        )
        for i in range(n)
    ]


def test_weak_cases_grow_with_the_workers_and_strong_ones_do_not() -> None:
    cases = scaling._cases(tasks(16), [1, 2, 4], 8, quick=True)
    blocks = {(c.kind, c.workers): len(c.tasks) for c in cases}
    assert blocks == {
        ("strong", 1): 16,
        ("strong", 2): 16,
        ("strong", 4): 16,
        ("weak", 1): 4,
        ("weak", 2): 8,
        ("weak", 4): 16,
    }
    assert [t.key for t in next(c for c in cases if (c.kind, c.workers) == ("weak", 1)).tasks] == [
        "t0",
        "t4",
        "t8",
        "t12",
    ]


def test_shorter_blocks_cover_the_same_cells() -> None:
    cases = scaling._cases(tasks(3), [1], 4, quick=False)
    assert {c.shape for c in cases} == {"8x5x4", "4x5x4"}
    assert {c.cells for c in cases} == {480}
    short = next(c for c in cases if c.shape == "4x5x4")
    steps = [s for t in short.tasks for s in range(t.args[-1][0].start, t.args[-1][0].stop)]
    assert steps == list(range(24))
    assert len({t.key for t in short.tasks}) == 6


@pytest.mark.parametrize(("steps", "shape"), [(64, (32, 300, 300)), (20, (20, 300, 300))])
def test_blocks_are_as_long_as_a_whole_season_has_them(steps: int, shape: tuple[int, int, int]) -> None:
    short = Plan((steps, 600, 900), (8, 300, 300), 1, 2, 3)
    assert scaling._as_of_a_season(short).shape == shape
    assert scaling._as_of_a_season(replace(short, sizes=(99, 600, 900), shape=(48, 300, 300))).shape == (48, 300, 300)


def made(case: Case, seconds: float) -> Pass:
    return Pass(seconds, Counters(1.5 * case.workers, 3_000, 8_000_000), Counters(0.02 * seconds, 1_000))


def test_rows_say_speed_up_efficiency_and_load() -> None:
    every = tuple(tasks(8))
    strong = [Case("strong", "8x5x4", n, every) for n in (1, 2)]
    weak = [Case("weak", "8x5x4", 1, every[:4]), Case("weak", "8x5x4", 2, every)]
    seconds = {strong[0]: [4.0, 4.0, 9.0], strong[1]: [2.5, 2.0, 1.0], weak[0]: [2.0], weak[1]: [2.5]}
    report = Report((64, 5, 4), 3, {case: [made(case, s) for s in all_of] for case, all_of in seconds.items()}, {})
    one, two, alone, both = report.rows
    assert (one["speed-up"], one["efficiency"], one["seconds"]) == (1, 1, 4)
    assert (two["speed-up"], two["efficiency"]) == (2, 1)
    assert (alone["efficiency"], both["efficiency"]) == (1, pytest.approx(0.8))
    assert two["busy %"] == pytest.approx(100 * 3 / 2 / 2)
    assert two["scheduler %"] == pytest.approx(2)
    assert two["messages MB"] == pytest.approx(0.004)
    assert two["kB a block"] == pytest.approx(0.5)
    assert "speed-up" in report.text


def test_one_worker_does_not_always_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    @contextmanager
    def warm(count: int, task: Task) -> Iterator[int]:
        yield count

    def once(case: Case, client: Any, folder: Path) -> Pass:
        assert case.workers == client
        seen.append((case.kind, client))
        return made(case, 1.0)

    monkeypatch.setattr(scaling, "_warm", warm)
    monkeypatch.setattr(scaling, "_pass", once)
    passes = scaling._passes(scaling._cases(tasks(4), [1, 2], 8, quick=True), [1, 2], 3, tmp_path, lambda text: None)
    assert [count for kind, count in seen if kind == "strong"] == [1, 2, 2, 1, 1, 2]
    assert {len(found) for found in passes.values()} == {3}


def test_what_passes_before_wrote_is_on_the_disk_when_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "sync", lambda: done.append("sync"))
    monkeypatch.setattr(scaling, "_workers", lambda client: Counters())
    monkeypatch.setattr(scaling, "_scheduler", lambda client: Counters())
    monkeypatch.setattr(blocks, "run", lambda *given, **more: done.append("run"))
    scaling._pass(Case("strong", "8x5x4", 1, tuple(tasks(2))), None, tmp_path)
    assert done == ["sync", "run"]


@contextmanager
def threads(where: str, workers: int, memory: str) -> Iterator[Any]:
    """A cluster in this process: workers are threads."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None) as made,
        Client(made) as client,
    ):
        yield client


def test_a_tiny_season_is_run_with_one_worker_and_with_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "connect", threads)
    folder = tmp_path / "made"
    small = {"members": 1, "repeats": 1, "generations": 2, "engine": "numpy", "population": 10}
    report = scaling.bench_scaling(
        (1, 2), (4, 30, 40), folder=str(folder), out=str(tmp_path / "out"), quick=True, model=small
    )
    assert report.size == (8, 30, 40)
    assert [(row["kind"], row["workers"]) for row in report.rows] == [
        ("strong", 1),
        ("weak", 1),
        ("strong", 2),
        ("weak", 2),
    ]
    assert {c.cells for c in report.passes if c.kind == "strong"} == {8 * 30 * 40}
    for row in report.rows:
        assert row["seconds"] > 0
        assert row["efficiency"] == pytest.approx(row["speed-up"] / row["workers"])
        assert row["messages MB"] > 0
        assert np.isfinite(row["scheduler %"])
    assert not list(folder.iterdir())
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".csv", ".md", ".json", ".txt", ".png"}


def test_the_figure_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        scaling_figure([], tmp_path / "none.png")
