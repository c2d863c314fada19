"""Parts of an array that access patterns ask for: windows that cover it, a day, a place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product

import numpy as np

from smscale.bench import engines
from smscale.bench.strategies import Shape
from smscale.blocks import spans

#: Steps of a day: a morning and an evening.
DAY = 2


def windows(size: Shape, unit: Shape) -> Iterator[engines.Region]:
    """Regions of `unit` that cover an array."""
    yield from product(*(spans(n, u) for n, u in zip(size, unit, strict=True)))


def day_of(turn: int, steps: int) -> slice:
    """The steps of some day, another each turn."""
    day = int(np.random.default_rng(turn).integers(steps // DAY))
    return slice(day * DAY, day * DAY + DAY)


def place_of(turn: int, rows: int, cols: int) -> tuple[slice, slice]:
    """Some cell, another each turn."""
    row, col = (int(n) for n in np.random.default_rng(turn).integers((rows, cols)))
    return slice(row, row + 1), slice(col, col + 1)


def reads(array: engines.Array, regions: Iterable[engines.Region]) -> Iterator[Callable[[], int]]:
    """A call for each region, which says how many bytes it read."""
    for region in regions:
        yield lambda region=region: array.read(region).nbytes  # type: ignore[misc]
