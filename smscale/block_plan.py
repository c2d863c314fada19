"""What a pass over the cube does at once: blocks of whole shards, as large as the memory of a worker allows.

A plan is integers: it follows from sizes, shards, what the work holds per cell, and the limit. It does not ask how many
workers there are, so that every run of a recipe has the same blocks, the same ledger keys and the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from smscale.blocks import spans
from smscale.errors import RecipeError

#: Bytes of a worker with what a map block needs of libraries and compiled kernels, before its first block; and what is added
#: where it trained before (torch, Lightning, XGBoost, scikit-learn, none of which is given back). Measured on Linux, 459 and
#: 331 MiB; tests/test_memory.py holds the first.
PROCESS_BYTES, TORCH_BYTES = 470 * 2**20, 340 * 2**20
#: Of a worker's limit, what a plan may use: dask ends a worker at 0.95 of it, and an allocator does not give back all at once.
USABLE = 0.9
#: Steps of a block at most: what days share (pruned trees, kriging weights) is paid by then, and a lost block costs little.
MOST_STEPS = 32
#: Blocks at least, where there are so many shards: enough for workers to share, and for a rate that can be shown.
LEAST_BLOCKS = 64

_MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Bytes that the work on a block holds at its peak.

    Parameters
    ----------
    per_cell_step : for each cell (lat, lon) at each step: planes, maps, status
    per_cell : for each cell: what does not change in time
    per_step : for each step
    fixed : for each worker: models, tables
    """

    per_cell_step: float = 0
    per_cell: float = 0
    per_step: float = 0
    fixed: float = 0

    def of(self, steps: int, rows: int, cols: int) -> int:
        """Bytes of a block of so many steps, rows and columns."""
        cells = rows * cols
        return round(steps * cells * self.per_cell_step + cells * self.per_cell + steps * self.per_step + self.fixed)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.per_cell_step + other.per_cell_step,
            self.per_cell + other.per_cell,
            self.per_step + other.per_step,
            self.fixed + other.fixed,
        )


@dataclass(frozen=True)
class Block:
    """A part of a (time, lat, lon) array in whole shards."""

    steps: slice
    rows: slice
    cols: slice

    @property
    def region(self) -> tuple[slice, slice, slice]:
        return self.steps, self.rows, self.cols

    @property
    def key(self) -> str:
        """Start and extent along each axis: a block of another extent has another name in the ledger."""
        return "-".join(f"{part.start}+{part.stop - part.start}" for part in self.region)

    @property
    def shape(self) -> tuple[int, int, int]:
        steps, rows, cols = (part.stop - part.start for part in self.region)
        return steps, rows, cols

    @property
    def cells(self) -> int:
        """Of the cube: cells of the map times steps."""
        steps, rows, cols = self.shape
        return steps * rows * cols


@dataclass(frozen=True)
class Plan:
    """Blocks of (time, lat, lon) arrays of `sizes`, `shape` cells each where the edge does not cut them.

    `block_bytes` is what a block holds at its peak, `predicted` what a worker does, of the `memory` that it has.
    """

    sizes: tuple[int, int, int]
    shape: tuple[int, int, int]
    block_bytes: int
    predicted: int
    memory: int

    @property
    def slabs(self) -> list[slice]:
        """Runs of steps, the same for every tile."""
        return spans(self.sizes[0], self.shape[0])

    @property
    def tiles(self) -> list[tuple[slice, slice]]:
        """Windows (rows, columns), the same for every slab."""
        _, rows, cols = self.shape
        return [(r, c) for r in spans(self.sizes[1], rows) for c in spans(self.sizes[2], cols)]

    @property
    def count(self) -> int:
        """How many blocks there are; none is made."""
        return math.prod(_count(n, step) for n, step in zip(self.sizes, self.shape, strict=True))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Tile by tile, the slabs of a tile one after another: a worker that keeps what a tile's days share meets it again."""
        return tuple(Block(slab, rows, cols) for rows, cols in self.tiles for slab in self.slabs)

    def summary(self) -> str:
        """One line for people."""
        return f"{self.count} blocks of {_shape(self.shape)} cells, {_mib(self.predicted)} of {_mib(self.memory)} in each worker"


def plan(
    sizes: Mapping[str, int],
    chunks: Mapping[str, int],
    shards: Mapping[str, int],
    cost: Cost,
    memory: int,
    *,
    process: int = PROCESS_BYTES,
    most_steps: int = MOST_STEPS,
    least_blocks: int = LEAST_BLOCKS,
    what: str = "a block",
) -> Plan:
    """Blocks for a pass over arrays of (time, lat, lon).

    A block is one shard, or several along time: days share what depends on the place alone. The runs of days are about
    equally long.

    Parameters
    ----------
    sizes, chunks, shards : cells along "time", "lat" and "lon": of the arrays, of a chunk, of a shard
    cost : of the work on a block
    memory : bytes that a worker has
    process : bytes of a worker before the first block
    most_steps, least_blocks : where more shards along time would fit, a block still has at most so many steps (one shard's at
        least), and there are still so many blocks
    what : names the work in the refusal

    Raises
    ------
    RecipeError
        where a single shard does not fit; it names the limit, the need, and chunks that fit.
    """
    size = sizes["time"], sizes["lat"], sizes["lon"]
    one = _whole(size, shards)
    tiles = _count(size[1], one[1]) * _count(size[2], one[2])
    along = _count(size[0], one[0])
    if not _fits(cost, one, memory, process):
        raise RecipeError(_refusal(size, one, chunks, cost, memory, process, what))
    shape = one
    for several in range(max(most_steps // one[0], 1), 1, -1):
        slabs = _count(along, several)
        larger = (min(_count(along, slabs) * one[0], size[0]), one[1], one[2])
        if slabs * tiles >= least_blocks and _fits(cost, larger, memory, process):
            shape = larger
            break
    held = cost.of(*shape)
    return Plan(size, shape, held, process + held, memory)


def _whole(size: tuple[int, int, int], shards: Mapping[str, int]) -> tuple[int, int, int]:
    """Cells of a shard as far as the arrays reach."""
    time, lat, lon = (min(shards[name], n) for name, n in zip(("time", "lat", "lon"), size, strict=True))
    return time, lat, lon


def _count(size: int, step: int) -> int:
    return -(-size // step)


def _fits(cost: Cost, shape: tuple[int, int, int], memory: int, process: int) -> bool:
    return process + cost.of(*shape) <= USABLE * memory


def _smaller(shape: tuple[int, int, int], chunks: Mapping[str, int]) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Chunks, and chunks per shard, from the shape at hand to a single cell: as large in space as can be, then as long in time."""
    (time, *space), (each, *side) = (
        shape,
        (min(chunks[name], n) for name, n in zip(("time", "lat", "lon"), shape, strict=True)),
    )
    number = [_count(n, c) for n, c in zip(space, side, strict=True)]
    while True:
        for steps in _halves(_count(time, each)):
            yield {"time": each, "lat": side[0], "lon": side[1]}, [steps, *number]
        if max(number) > 1:
            number = [_count(n, 2) for n in number]
        elif max(side) > 1:
            side = [_count(n, 2) for n in side]
        elif each > 1:
            each, side = 1, list(space)
        else:
            return


def _halves(n: int) -> Iterator[int]:
    while True:
        yield n
        if n == 1:
            return
        n = _count(n, 2)


def _refusal(
    size: tuple[int, int, int],
    one: tuple[int, int, int],
    chunks: Mapping[str, int],
    cost: Cost,
    memory: int,
    process: int,
    what: str,
) -> str:
    need = process + cost.of(*one)
    told = (
        f"resources.memory_per_worker: {_mib(memory)} given, but {what} needs {_mib(need)} in a worker "
        f"({_mib(process)} before its first block, {_mib(need - process)} for a shard of {_shape(one)} cells); "
        f"give {_mib(need / USABLE + _MIB)}"
    )
    for chunk, number in _smaller(one, chunks):
        shape = [min(c * n, s) for c, n, s in zip(chunk.values(), number, size, strict=True)]
        if _fits(cost, (shape[0], shape[1], shape[2]), memory, process):
            text = ", ".join(f"{name}: {cells}" for name, cells in chunk.items())
            return f"{told}, or set chunks: {{{text}, shard: {number}}}, which fits"
    return f"{told}: no smaller chunks would fit"


def _shape(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def _mib(count: float) -> str:
    return f"{round(count / _MIB)} MiB"
