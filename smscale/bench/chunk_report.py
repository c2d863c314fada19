"""What `smscale bench chunks` found: costs by strategy, the table, the recommendation in words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from smscale.bench import choose, tables
from smscale.bench.choose import Choice, Measured
from smscale.bench.measure import Cost
from smscale.bench.regions import DAY
from smscale.bench.screen import Screened
from smscale.bench.strategies import Shape, Strategy
from smscale.bench.trials import PATTERNS

COLD = (
    "Writing ends when the files are on the disk (fsync). Reading begins when every strategy is written, its files dropped from the system's "
    "page cache (posix_fadvise); directories stay known, and the disk may have a cache of its own. Each strategy runs in a process of its "
    "own, all on one core, in turns that begin each with another; medians."
)

#: Columns that the terminal shows together.
WHOLE = ("chunk", "shard", "codec", "engine", "files", "MB", "MiB", "slow-down", "of CPU")
CUBE = ("write MB/s", "map ms", "season ms", "upscale MB/s", "inference MB/s", "append ms")
MAP = ("maps MB/s", "maps day ms", "maps season ms")


@dataclass(frozen=True)
class Tried:
    """A strategy and the costs of its turns, by pattern and "write"; files and bytes of cube and map, why no block fits."""

    strategy: Strategy
    costs: dict[str, list[Cost]]
    files: int
    size: int
    refused: str = ""

    def seconds(self, pattern: str, steps: int, cpu: bool = False) -> float | None:
        """Median by the clock, or of CPU time; of an appended day with its share of being moved later."""
        if pattern not in self.costs:
            return None
        taken = {name: median(c.cpu if cpu else c.seconds for c in costs) for name, costs in self.costs.items()}
        moves = pattern == "append" and self.strategy.unit[0] > DAY
        return taken[pattern] + (taken["write"] * DAY / steps if moves else 0.0)

    def rate(self, pattern: str) -> float | None:
        """MB of values a second, median."""
        return median(c.megabytes_per_second for c in self.costs[pattern]) if pattern in self.costs else None

    @property
    def peak(self) -> int:
        """Bytes that one read or write gained at the most."""
        return max(c.peak for costs in self.costs.values() for c in costs)


@dataclass(frozen=True)
class Report:
    """What `bench chunks` found.

    size : steps, rows, columns, variables; own : the strategy that the recipe has; absent : codecs and engines that are not installed
    """

    name: str
    size: Shape
    own: str
    repeats: int
    screened: Screened
    tried: list[Tried]
    absent: list[str]
    machine: dict[str, str]

    @property
    def values(self) -> int:
        """Bytes of the values: of the cube's two variables, of a map and of its status."""
        return 2 * math.prod(self.size) * 4

    def measured(self, cpu: bool = False) -> list[Measured]:
        """What the rule asks of each strategy."""
        return [
            Measured(
                t.strategy.name,
                {p: t.seconds(p, self.size[0], cpu) for p in PATTERNS},
                t.files / max(self.values / 1e9, 1.0),  # of less than a GB nobody minds the number
                t.size,
                t.strategy.settable,
                t.strategy.lossless,
            )
            for t in self.tried
        ]

    @cached_property
    def choice(self) -> Choice | None:
        """Of what a recipe can ask for."""
        return choose.recommend(self.measured(), self.own)

    @cached_property
    def beyond(self) -> Choice | None:
        """Of everything that loses no value."""
        return choose.recommend(self.measured(), self.choice.name if self.choice else "", settable=False)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The table."""
        ratios, of_cpu = (choose.slow_downs(self.measured(cpu)) for cpu in (False, True))
        rows = []
        for t, m in zip(self.tried, self.measured(), strict=True):
            s = t.strategy
            ms = {p: None if m.seconds[p] is None else float(m.seconds[p] or 0) * 1e3 for p in PATTERNS}
            rows.append(
                {
                    "strategy": s.name + (" *" if s.name == self.own else ""),
                    "chunk": _spelled(s.chunk),
                    "shard": _spelled(s.shard) if s.shard else "",
                    "codec": s.codec if s.lossless else f"{s.packing} {s.codec}",
                    "engine": s.engine,
                    "files": t.files,
                    "MB": t.size / 1e6,
                    "write MB/s": t.rate("write"),
                    "map ms": ms["map"],
                    "season ms": ms["season"],
                    "upscale MB/s": t.rate("upscale"),
                    "inference MB/s": t.rate("inference"),
                    "append ms": ms["append"],
                    "maps MB/s": t.rate("maps"),
                    "maps day ms": ms["maps day"],
                    "maps season ms": ms["maps season"],
                    "MiB": t.peak / 2**20,
                    "slow-down": ratios.get(s.name, {}).get("mean"),
                    "of CPU": of_cpu.get(s.name, {}).get("mean"),
                }
            )
        return rows

    @property
    def text(self) -> str:
        """All of it for a terminal."""
        parts = [
            f"{self.name}: {_spelled(self.size)} (time, lat, lon, variable) and a map, {self.values / 1e6:.0f} MB of values\n"
            f"{', '.join(f'{k} {v}' for k, v in self.machine.items())}\n{COLD}",
            f"Screen on one tile, in CPU seconds: mean ratio: geometric mean of bytes, write, read and season against ours; under {1 - choose.MARGIN:.1f} the best stays in\n"
            f"{tables.text(self.screened.rows)}",
            f"Strategies ({self.repeats} turns; * the recipe's own; MB/s of values; MiB that one read or write gains;\n"
            f"slow-down: weighted geometric mean of the times against the best of each pattern, weights {_weights()};\n"
            f"of CPU: the same of CPU seconds, which other work on the machine disturbs less)\n"
            f"{tables.text(self._columns(WHOLE))}",
            f"of the cube\n{tables.text(self._columns(CUBE))}",
            f"of a map and its status\n{tables.text(self._columns(MAP))}",
            "\n".join(f"  {name:11} {what}" for name, what in PATTERNS.items()),
            "\n".join(self.conclusions),
        ]
        if self.absent:
            parts.append(f"not installed, so not measured: {', '.join(self.absent)}")
        return "\n\n".join(parts) + "\n"

    def _columns(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The table's first column and some others: all of them are too wide for a terminal."""
        return [{name: row[name] for name in ("strategy", *names)} for row in self.rows]

    @property
    def conclusions(self) -> list[str]:
        """What is recommended, why, and whether the recipe has it."""
        if self.choice is None:
            return ["no layout fits the memory of a worker: raise resources.memory_per_worker"]
        strategy = {t.strategy.name: t.strategy for t in self.tried}[self.choice.name]
        told = [f"recommended  {self.choice.name}, {strategy.recipe_text}", f"because      {self.choice.reason}"]
        kept = (
            "keep them: they are what would be chosen" if self.choice.keeps_own else "they are not what would be chosen"
        )
        told.append(f"own chunks   {kept}")
        by_cpu = choose.recommend(self.measured(cpu=True), self.own)
        if by_cpu and by_cpu.name != self.choice.name:
            told.append(f"by CPU       it would be {by_cpu.name}: measure again where the machine has no other work")
        if self.beyond and self.beyond.name != self.choice.name:
            told.append(f"beyond       {self.beyond.name}, which no recipe can ask for yet: {self.beyond.reason}")
        told += [f"left out     {name}: {why}" for name, why in self.choice.excluded.items()]
        return told

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the table, the screen, every turn, the recommendation."""
        turns = {t.strategy.name: {p: [asdict(c) for c in costs] for p, costs in t.costs.items()} for t in self.tried}
        return {
            "name": self.name,
            "size": list(self.size),
            "bytes_of_values": self.values,
            "machine": self.machine,
            "method": COLD,
            "screen": self.screened.rows,
            "strategies": self.rows,
            "turns": turns,
            "refused": {t.strategy.name: t.refused for t in self.tried if t.refused},
            "recommended": asdict(self.choice) if self.choice else None,
            "beyond": asdict(self.beyond) if self.beyond else None,
            "not_installed": self.absent,
        }


def keep(report: Report, folder: Path) -> None:
    """chunks.csv, chunks.md, chunks.json, chunks.txt and chunks.png."""
    from smscale.evaluate.bench_figures import chunk_figure

    (folder / "chunks.csv").write_text(tables.as_csv(report.rows))
    (folder / "chunks.md").write_text(tables.markdown(report.rows))
    (folder / "chunks.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    (folder / "chunks.txt").write_text(report.text)
    chosen = report.choice.name if report.choice else ""
    chunk_figure(report.rows, choose.slow_downs(report.measured()), folder / "chunks.png", chosen)


def _weights() -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in choose.WEIGHTS.items())


def _spelled(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
