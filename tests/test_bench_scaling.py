"""`smscale bench scaling`: cases, what a row says, and the pass itself on a tiny season."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smscale import cluster
from smscale.bench import scaling
from smscale.bench.scaling import Case, Counters, Pass, Report
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
