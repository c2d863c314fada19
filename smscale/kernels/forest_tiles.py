"""Forests on planes: one tree, many cells at once.

Trees are pruned to what the cells of a block can reach: within it every predictor spans an interval, which decides many
splits for all. Then a tree is walked by sets of cells instead of cells. A set is the bits of one integer, for a tile of
neighbouring cells on one day: one comparison of the whole tile splits it in two, an empty part is not followed, and where
neighbours are alike few parts arise. Days of a tile, or tiles beside one another, go down together, so that a node is
visited once for all of them. (Bits for cells, where QuickScorer, Lucchese et al. 2015, doi:10.1145/2766462.2767733, has bits
for leaves.) All of a block follow a tree while it is in cache.

Each cell adds its leaves in the order of the trees, in float64: the sum is that of a plain walk, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.cpython.unsafe.numbers import trailing_zeros as _trailing_zeros
from numba.extending import intrinsic as _intrinsic
from numpy.typing import NDArray

from smscale.kernels.threads import in_threads

Singles = NDArray[np.float32]
Part = tuple[slice, ...]

LEAF = -1
#: Cells along each side of a tile: a tile has a bit for each in 64.
TILE = 8
CELLS = TILE * TILE
#: Days of a block, and cells along each side of one of so many days; fewer days take twice the side. What pruning costs is
#: shared by a block, what it leaves should fit a second-level cache: found by trial (benchmarks/forest.py).
DAYS, SIDE, FEW_DAYS = 16, 64, 4
#: Sets of cells, each of one tile and day, that follow a tree together: they have a bit each in 64.
SETS = 64
#: Compiled, they take no typing context; mypy does not know that.
intrinsic: Any = _intrinsic
trailing_zeros: Any = _trailing_zeros
LARGEST = np.finfo(np.float32).max


class Trees(NamedTuple):
    """All trees in a row, as `smscale.models.tree_arrays.ForestPredictor` has them; those pruned lie in preorder."""

    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    root: NDArray[np.int64]


class Under(NamedTuple):
    """What lies under the trees, as `smscale.models.tree_arrays.Linear`: arrays (k,) and scalars."""

    intercept: float
    coefficients: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    share: float


class Tiled(NamedTuple):
    """A block of all predictors, tile by tile: where in `numbers` each begins, and how far apart its days are (0: all one)."""

    numbers: Singles
    start: NDArray[np.int64]
    stride: NDArray[np.int64]


def fill(out: Singles, planes: Sequence[NDArray[Any]], trees: Trees, under: Under) -> None:
    """Fill `out` (t, m, n) from one plane (t or 1, m or 1, n or 1) for each predictor; NaN where one is not finite.

    As many blocks are run at once as BLAS has threads.
    """
    steps = block_of(len(out))
    cuts = [[slice(at, at + step) for at in range(0, size, step)] for size, step in zip(out.shape, steps, strict=True)]
    parts = list(product(*cuts))
    deepest = int(np.diff(trees.root).max()) // 2 + 1

    def run(part: Part) -> None:
        block = np.empty(out[part].shape, np.float32)  # of one layout whatever `out` is: compiled once
        _block(block, _tiled(planes, part, block.shape), trees, under, deepest)
        out[part] = block

    in_threads(run, parts)


def block_of(days: int) -> tuple[int, int, int]:
    """Days, rows and columns of the blocks that so many days are cut into."""
    side = SIDE if days > FEW_DAYS else 2 * SIDE
    return min(max(days, 1), DAYS), side, side


def _tiled(planes: Sequence[NDArray[Any]], part: Part, shape: tuple[int, ...]) -> Tiled:
    """A part of the planes; cells of tiles beyond its border are NaN."""
    down, across = (-(-size // TILE) for size in shape[1:])
    rows = []
    for plane in planes:
        cut = plane[tuple(slice(0, 1) if size == 1 else cut for size, cut in zip(plane.shape, part, strict=True))]
        row = np.full((len(cut), down * TILE, across * TILE), np.nan, np.float32)
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            row[:, : shape[1], : shape[2]] = cut
        rows.append(row.reshape(-1, down, TILE, across, TILE).swapaxes(2, 3).reshape(len(cut), -1))
    sizes = np.array([row.size for row in rows])
    stride = np.array([row.shape[1] if len(row) > 1 else 0 for row in rows])
    return Tiled(np.concatenate(rows, axis=None), np.cumsum(sizes) - sizes, stride)


@intrinsic
def _at_most(typing, numbers, start, threshold):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """A bit for each of the 64 float32 from `start` on: whether it is at most the threshold."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        block = ir.VectorType(ir.FloatType(), CELLS)
        at = builder.bitcast(builder.gep(array.data, [arguments[1]]), block.as_pointer())
        level = _spread(builder, arguments[2])
        found = builder.fcmp_ordered("<=", builder.load(at, align=4), level)
        return builder.bitcast(found, ir.IntType(CELLS))

    return types.uint64(numbers, types.int64, types.float32), code


@intrinsic
def _mark(typing, marks, start, mark, members):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write an uint16 to those of the 64 from `start` on whose bit is set."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        lanes = ir.VectorType(ir.IntType(16), CELLS)
        at = builder.bitcast(builder.gep(array.data, [arguments[1]]), lanes.as_pointer())
        level = _spread(builder, arguments[2])
        chosen = builder.bitcast(arguments[3], ir.VectorType(ir.IntType(1), CELLS))
        builder.store(builder.select(chosen, level, builder.load(at, align=2)), at, align=2)
        return context.get_dummy_value()

    return types.void(marks, types.int64, types.uint16, types.uint64), code


def _spread(builder: Any, value: Any) -> Any:
    """A value in all 64 lanes."""
    lanes, first = ir.VectorType(value.type, CELLS), ir.IntType(32)
    alone = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.Constant(first, 0))
    return builder.shuffle_vector(alone, alone, ir.Constant(ir.VectorType(first, CELLS), [0] * CELLS))


@njit(nogil=True, cache=True)
def _block(out, tiled, trees, under, deepest):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Fill a block (t, m, n)."""
    days, rows, columns = out.shape
    tiles = -(-rows // TILE) * -(-columns // TILE)
    known = _known(tiled, days, tiles)
    sums = np.zeros(days * tiles * CELLS)
    kept, pending = _room(trees, days * rows * columns), np.empty((2, deepest), np.int32)
    box = _box(tiled, days, tiles * CELLS)
    room = _paths(days, deepest)
    for tree in range(trees.root.size - 1):
        if _prune(trees, tree, box, kept, pending):
            _sum(sums, known, -(-columns // TILE), tiled, kept, 0, room)
        else:
            _sum(sums, known, -(-columns // TILE), tiled, trees, trees.root[tree], room)
    _write(out, sums, known, tiled, under, trees.root.size - 1)


@njit(nogil=True, cache=True)
def _known(tiled, days, tiles):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(days, tiles) sets of cells of which every predictor is finite."""
    known = np.full((days, tiles), ~np.uint64(0))
    for day in range(days):
        for tile in range(tiles):
            members = known[day, tile]
            for c in range(tiled.start.size):
                start = tiled.start[c] + tiled.stride[c] * day + tile * CELLS
                members &= _at_most(tiled.numbers, start, LARGEST)
                members &= ~_at_most(tiled.numbers, start, -np.float32(np.inf))
            known[day, tile] = members
    return known


@njit(nogil=True, cache=True)
def _box(tiled, days, cells):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(2, k): the least and the greatest finite value of each predictor."""
    out = np.empty((2, tiled.start.size), np.float32)
    for c in range(tiled.start.size):
        least, most = np.float32(np.inf), np.float32(-np.inf)
        for day in range(days if tiled.stride[c] else 1):
            start = tiled.start[c] + tiled.stride[c] * day
            for value in tiled.numbers[start : start + cells]:
                if np.isfinite(value):
                    least, most = min(least, value), max(most, value)
        out[0, c], out[1, c] = least, most
    return out


@njit(nogil=True, cache=True)
def _room(trees, cells):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Arrays for a pruned tree. Where more nodes than cells are left, following the whole tree is cheaper than pruning it."""
    size = min(np.diff(trees.root).max(), cells)
    return Trees(
        np.empty(size, np.int32),
        np.empty(size, np.float32),
        np.empty(size, np.int32),
        np.empty(size, np.int32),
        np.empty(size, np.float64),
        np.zeros(2, np.int64),
    )


@njit(nogil=True, cache=True)
def _prune(trees, tree, box, kept, pending):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Copy to `kept`, in preorder, what of a tree cells in the box can reach; False where it has no room for that."""
    low, high = box[0], box[1]
    count, waiting = 0, 0
    node = trees.root[tree]
    while True:
        feature = trees.feature[node]
        while feature != LEAF:
            threshold = trees.threshold[node]
            if high[feature] <= threshold:
                node = np.int64(trees.left[node])
            elif low[feature] > threshold:
                node = np.int64(trees.right[node])
            else:
                break
            feature = trees.feature[node]
        if count == kept.feature.size:
            return False
        kept.feature[count] = feature
        if feature != LEAF:
            kept.threshold[count] = threshold
            kept.left[count] = count + 1
            pending[0, waiting], pending[1, waiting] = trees.right[node], count
            waiting += 1
            node = np.int64(trees.left[node])
        else:
            kept.value[count] = trees.value[node]
            if waiting == 0:
                return True
            waiting -= 1
            node = np.int64(pending[0, waiting])
            kept.right[pending[1, waiting]] = count + 1
        count += 1


@njit(nogil=True, cache=True)
def _side(days):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Tiles along each side of a square of them, which are alike, that with all their days are few enough sets."""
    side = 1
    while 4 * side * side * days <= SETS:
        side *= 2
    return side


@njit(nogil=True, cache=True)
def _paths(days, deepest):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Room for `_sum`: marks and leaves; day, first cell and cells of the sets; nodes that wait and the sets there."""
    most = _side(days) ** 2 * days
    found = (np.zeros(most * CELLS, np.uint16), np.empty(most * CELLS))
    members = (np.empty(most, np.int64), np.empty(most, np.int64), np.empty((deepest + 1, most), np.uint64))
    return found, members, (np.empty(deepest, np.int32), np.empty(deepest, np.uint64))


@njit(nogil=True, cache=True)
def _sum(sums, known, across, tiled, trees, root, room):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Add a tree to each cell; `across` tiles lie beside one another."""
    days, tiles = known.shape
    (marks, leaves), members, waiting = room
    side = _side(days)
    for first in range(tiles):
        row, column = first // across, first % across
        if row % side or column % side:
            continue
        count = 0
        for i in range(row, min(row + side, tiles // across)):
            for j in range(column, min(column + side, across)):
                for day in range(days):
                    if known[day, i * across + j]:
                        members[0][count], members[1][count] = day, (i * across + j) * CELLS
                        members[2][0, count] = known[day, i * across + j]
                        count += 1
        if count == 0:
            continue
        _follow(marks, leaves, count, members, tiled, trees, root, waiting)
        for j in range(count):
            at = members[0][j] * tiles * CELLS + members[1][j]
            for i in range(CELLS):
                sums[at + i] += leaves[marks[j * CELLS + i]]


@njit(nogil=True, cache=True)
def _follow(marks, leaves, count, members, tiled, trees, node, waiting):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The leaves of a tree that cells reach, and at each cell which.

    members : day (s,), first cell of the tile (s,) and cells (., s) of `count` sets in row 0; further rows are room for parts
    waiting : room for the nodes of parts that are still to be followed, and which sets have members there
    """
    day, place, sets = members
    nodes, among = waiting
    depth, leaf, one, none = 0, 0, np.uint64(1), np.uint64(0)
    some = ~none >> np.uint64(SETS - count)
    while True:
        feature = trees.feature[node]
        left = some
        if feature == LEAF:
            leaves[leaf] = trees.value[node]
            while left:
                j = np.int64(trailing_zeros(left))
                left &= left - one
                _mark(marks, j * CELLS, leaf, sets[depth, j])
            leaf += 1
            if depth == 0:
                return
            depth -= 1
            node, some = np.int64(nodes[depth]), among[depth]
            continue
        start, stride, threshold = tiled.start[feature], tiled.stride[feature], trees.threshold[node]
        some_low, some_high = none, none
        while left:
            j = np.int64(trailing_zeros(left))
            bit = one << np.uint64(j)
            left ^= bit
            low = sets[depth, j] & _at_most(tiled.numbers, start + stride * day[j] + place[j], threshold)
            some_low |= bit if low else none
            some_high |= bit if low != sets[depth, j] else none
            sets[depth + 1, j] = low
        if some_high == 0:
            node = np.int64(trees.left[node])
        elif some_low == 0:
            node = np.int64(trees.right[node])
        else:
            left = some_high
            while left:
                j = np.int64(trailing_zeros(left))
                left &= left - one
                sets[depth, j] ^= sets[depth + 1, j]
            nodes[depth], among[depth] = trees.right[node], some_high
            depth += 1
            node, some = np.int64(trees.left[node]), some_low


@njit(nogil=True, cache=True)
def _write(out, sums, known, tiled, under, trees_count):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Mean of the trees, and what lies under them, in the places of `out` (t, m, n); NaN where something is missing."""
    days, rows, columns = out.shape
    across = -(-columns // TILE)
    for day in range(days):
        for row in range(rows):
            for column in range(columns):
                tile = row // TILE * across + column // TILE
                cell = row % TILE * TILE + column % TILE
                if not (known[day, tile] >> np.uint64(cell)) & np.uint64(1):
                    out[day, row, column] = np.nan
                    continue
                level = under.intercept
                for c in range(under.coefficients.size):
                    x = tiled.numbers[tiled.start[c] + tiled.stride[c] * day + tile * CELLS + cell]
                    level += under.coefficients[c] * min(max(x, under.low[c]), under.high[c])
                total = sums[(day * known.shape[1] + tile) * CELLS + cell]
                out[day, row, column] = level + under.share * (total / trees_count)
