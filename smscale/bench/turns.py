"""Strategies take turns: all are written, then each pattern is run on all of them, every turn in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from smscale.bench import measure
from smscale.bench.chunk_report import Tried
from smscale.bench.measure import Cost, files_and_bytes
from smscale.bench.trials import PATTERNS, Trial

Say = Callable[[str], Any]

#: The pattern that is written with the cube, before anything is read.
WRITTEN = "maps"


@dataclass(frozen=True)
class _Running:
    trial: Trial
    tried: Tried
    process: ProcessPoolExecutor

    def do(self, name: str, call: Callable[..., Cost], *args: Any) -> None:
        """Once, in the strategy's own process."""
        self.tried.costs[name].append(self.process.submit(call, *args).result())


def in_turns(trials: Iterable[tuple[Trial, str]], repeats: int, say: Say = lambda text: None) -> list[Tried]:
    """Costs of every trial; beside each stands why it cannot serve every pattern, or nothing.

    What was written is on the disk before anything is read: no strategy is read while the system still writes those before it.
    """
    with ExitStack() as stack:
        running = [_Running(trial, _untried(trial, why), stack.enter_context(process())) for trial, why in trials]
        for each in running:
            each.process.submit(each.trial.run, "append", 0).result()  # what a process does the first time
        for turn in range(repeats):
            say(f"turn {turn + 1} of {repeats}: writes and reads {len(running)} strategies\n")
            _turn(turned(running, turn, repeats), turn)
    return [_counted(each.tried, each.trial.folder) for each in running]


def turned(given: Sequence[Any], turn: int, turns: int) -> list[Any]:
    """The same, begun elsewhere in each turn."""
    first = turn * len(given) // turns
    return [*given[first:], *given[:first]]


def _turn(running: Sequence[_Running], turn: int) -> None:
    for each in running:
        each.do("write", each.trial.write)
        if WRITTEN in each.trial.patterns:
            each.do(WRITTEN, each.trial.run, WRITTEN, turn)
    for each in running:
        measure.out_of_cache(each.trial.folder)
    for pattern in PATTERNS:
        for each in running:
            if pattern in each.trial.patterns and pattern != WRITTEN:
                each.do(pattern, each.trial.run, pattern, turn)


def _untried(trial: Trial, why: str) -> Tried:
    return Tried(trial.strategy, {name: [] for name in ("write", *trial.patterns)}, 0, 0, why)


def _counted(tried: Tried, folder: Path) -> Tried:
    files, size = files_and_bytes(folder)
    return replace(tried, files=files, size=size)


def process() -> ProcessPoolExecutor:
    """A process of its own, begun anew, on one core."""
    return ProcessPoolExecutor(1, get_context("spawn"), measure.on_one_core)
