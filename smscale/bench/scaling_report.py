"""What `smscale bench scaling` found: passes by case, the table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from smscale.bench import tables
from smscale.blocks import Task


@dataclass(frozen=True)
class Counters:
    """What a process has done so far: CPU seconds, bytes sent to the others, bytes of files read and written."""

    cpu: float = 0.0
    sent: int = 0
    files: int = 0

    def __sub__(self, other: Counters) -> Counters:
        return Counters(self.cpu - other.cpu, self.sent - other.sent, self.files - other.files)

    def __add__(self, other: Counters) -> Counters:
        return Counters(self.cpu + other.cpu, self.sent + other.sent, self.files + other.files)


@dataclass(frozen=True)
class Pass:
    """One pass over some blocks: seconds, and what workers together and the scheduler's loop did meanwhile."""

    seconds: float
    workers: Counters
    scheduler: Counters


@dataclass(frozen=True)
class Case:
    """Some of the run's tasks with so many workers.

    kind : "strong" or "weak"; shape : of a block, in words
    """

    kind: str
    shape: str
    workers: int
    tasks: tuple[Task, ...] = field(repr=False, compare=False)

    @property
    def cells(self) -> int:
        return sum(task.cells for task in self.tasks)


@dataclass(frozen=True)
class Report:
    """What `bench scaling` found."""

    size: tuple[int, int, int]
    repeats: int
    passes: Mapping[Case, list[Pass]]
    machine: Mapping[str, str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table: medians of the passes."""
        alone = {(c.kind, c.shape): _rate(c, found) for c, found in self.passes.items() if c.workers == 1}
        return [_row(case, found, alone[case.kind, case.shape]) for case, found in self.passes.items()]

    @property
    def text(self) -> str:
        """All of it for a terminal."""
        steps, rows, cols = self.size
        return (
            f"inference and fusion of a made season: {steps} steps of {rows} x {cols} cells, GABP, four fusions, two variances\n"
            f"{', '.join(f'{k} {v}' for k, v in self.machine.items())}\n"
            f"Medians of {self.repeats} passes, each by workers that had done a block before. speed-up: cells a second against one worker; "
            "busy: CPU seconds of the workers by the clock's; scheduler: CPU of the loop that scheduler and client share; "
            "messages: bytes that scheduler, client and workers sent one another\n\n"
            f"{tables.text(self.rows)}\n"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the table and every pass."""
        return {
            "size": list(self.size),
            "machine": dict(self.machine),
            "runs": self.rows,
            "seconds": [[p.seconds for p in found] for found in self.passes.values()],
        }


def _rate(case: Case, passes: Sequence[Pass]) -> float:
    """Cells a second."""
    return case.cells / median(p.seconds for p in passes)


def _row(case: Case, passes: Sequence[Pass], alone: float) -> dict[str, Any]:
    """`alone` : cells a second of one worker."""
    seconds = median(p.seconds for p in passes)
    cpu = median(p.workers.cpu for p in passes)
    loop = median(p.scheduler.cpu for p in passes)
    sent = median(p.workers.sent + p.scheduler.sent for p in passes)
    speed_up = _rate(case, passes) / alone
    return {
        "kind": case.kind,
        "workers": case.workers,
        "blocks": len(case.tasks),
        "blocks of": case.shape,
        "seconds": seconds,
        "M cells/s": case.cells / seconds / 1e6,
        "speed-up": speed_up,
        "efficiency": speed_up / case.workers,
        "busy %": 100 * cpu / seconds / case.workers,
        "files MB": median(p.workers.files for p in passes) / 1e6,
        "messages MB": sent / 1e6,
        "kB a block": sent / 1e3 / len(case.tasks),
        "scheduler %": 100 * loop / seconds,
        "ms a block": 1e3 * loop / len(case.tasks),
    }


def keep(report: Report, folder: Path) -> None:
    """scaling.csv, scaling.md, scaling.json, scaling.txt and scaling.png."""
    from smscale.evaluate.bench_figures import scaling_figure

    (folder / "scaling.csv").write_text(tables.as_csv(report.rows))
    (folder / "scaling.md").write_text(tables.markdown(report.rows))
    (folder / "scaling.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    (folder / "scaling.txt").write_text(report.text)
    scaling_figure(report.rows, folder / "scaling.png")
