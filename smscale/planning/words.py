"""What `smscale plan` prints: the table, and what its numbers rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dask.utils import format_bytes

from smscale.bench import tables
from smscale.planning.rates import STAGES, Rates
from smscale.planning.size import SAMPLED

if TYPE_CHECKING:
    from smscale.planning.forecast import Estimate


def table(found: Sequence[Estimate], refused: Mapping[str, str]) -> str:
    """A row for each number, a column for each run; of one that is refused nothing is known."""
    columns = {e.name: _column(e) for e in found}
    rows = [
        {"": label, **{name: column[label] for name, column in columns.items()}, **dict.fromkeys(refused, "refused")}
        for label in next(iter(columns.values()))
    ]
    return tables.text(rows, right=[*columns, *refused])


def _column(e: Estimate) -> dict[str, str]:
    times = {f"time: {stage}": _time(e.seconds[stage]) for stage in ("start", *STAGES)}
    short = "" if all(seconds is not None for seconds in e.seconds.values()) else " without training"
    return {
        "fine cells": f"{e.cells:,}",
        "overpasses": f"{e.overpasses:,}",
        "training samples": f"{e.samples:,}",
        "blocks of the maps": f"{e.blocks:,}",
        "tasks": f"{e.tasks:,}",
        "raw files": f"{e.files_in:,}",
        "raw bytes": _bytes(e.bytes_in),
        "shards and records, at most": f"{e.files:,}",
        "bytes written": _bytes(e.bytes_out),
        "memory of a worker: maps": f"{_bytes(e.memory_per_worker)} of {_bytes(e.memory_limit)}",
        "memory of a worker: training": _training(e),
        "workers": f"{e.workers:,}",
        **times,
        "time": _time(e.wall) + short,
        "core-hours": (f"{e.core_hours:,.2f}" if e.core_hours < 10 else f"{e.core_hours:,.0f}") + short,
    }


def _training(e: Estimate) -> str:
    """What the samples take, and that it is too much."""
    needs = f"{_bytes(e.training_memory)} of {_bytes(e.memory_limit)}"
    return needs if e.training_memory <= e.memory_limit else f"{needs}: too little"


def assumptions(rates: Rates, sharing: float, most_rows: int, cases: Sequence[str]) -> list[str]:
    """What the numbers rest on; `cases` in words."""
    return [
        f"rates measured here ({rates.machine}) on two made worlds, the larger of {rates.cells:,} cells x {rates.overpasses} overpasses, "
        f"{rates.clouds:.0%} of the LST behind clouds, and models on {rates.rows} rows; every part grows in proportion to its units",
        "what a stage does beside its tasks (figures, tables, scores) takes as long as in that world",
        f"each worker after the first adds {sharing:.0%} of one (2 cores; `smscale bench scaling` measures it here)",
        f"samples, where their number is not given: {SAMPLED:.1%} of the coarse land cells and overpasses (the paper's share)",
        f"training grows in proportion to the samples; it has all of them in a worker's memory, and beyond {most_rows:,} it is not reckoned",
        f"bytes on disk: {rates.ratio['cube.zarr']:.2f} of the cube's values and {rates.ratio['maps.zarr']:.2f} of the maps', as measured; "
        "raw files by their products' typical sizes; shards that hold nothing are not written",
        *cases,
        "a size that the recipe's memory_per_worker is too small for is reckoned with more, as the row of memory says",
        "downloads and the making of a nature run are not counted",
    ]


def _bytes(count: float) -> str:
    return format_bytes(int(count))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not reckoned"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.0f} days"
