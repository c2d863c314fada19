"""Forests on cells: one tree, many cells at once.

Cells that have all predictors are taken piece by piece of the map and put in an order in which neighbours lie together; 64 of
them are a set, the bits of one integer. A tree is walked by sets instead of cells: one comparison of 64 cells splits a set in
two, an empty part is not followed, and where neighbours are alike few parts arise. (Bits for cells, where QuickScorer, Lucchese
et al. 2015, doi:10.1145/2766462.2767733, has bits for leaves.) Many sets go down together, so that a node is visited once for
all of them. Before, each tree is pruned to what the cells at hand can reach: every predictor spans an interval, which decides
many splits for all.

Each cell adds its leaves in the order of the trees, in float64: the sum is that of a plain walk, bit by bit. Rows of a table are
cells, too: even where none is like its neighbour, sets are faster than walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic as _intrinsic
from numpy.typing import NDArray

from smscale.kernels.planes import trailing_zeros
from smscale.kernels.threads import in_threads

Singles = NDArray[np.float32]
Integers = NDArray[np.int64]
Part = tuple[slice, ...]

LEAF = -1
#: Cells of a set, and sets that follow a tree together: a bit each in 64.
CELLS = SETS = 64
#: Days, rows and columns of a piece, in which cells are put in order.
PIECE = (16, 32, 32)
#: Cells that are run together, of as many pieces as have so many: they share what pruning costs; their numbers should not be far
#: beyond a second-level cache. Found by trial, as PIECE (benchmarks/forest.py).
TOGETHER = 1 << 15
#: Shapes of pieces, of which few are at borders, whose order is kept.
ORDERS = 64
#: Compiled, it takes no typing context; mypy does not know that.
intrinsic: Any = _intrinsic


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


def predict(X: Singles, trees: Trees, under: Under) -> Singles:
    """(n,) for the rows of a table X (n, k), finite; as many parts are run at once as BLAS has threads."""
    out = np.empty(len(X), np.float32)

    def run(start: int) -> None:
        rows = X[start : start + TOGETHER]
        numbers = _numbers(X.shape[1], len(rows))
        numbers[:, : len(rows)] = rows.T
        out[start : start + TOGETHER] = _predicted(numbers, len(rows), trees, under)

    in_threads(run, range(0, len(X), TOGETHER))
    return out


def fill(out: Singles, planes: Sequence[NDArray[Any]], trees: Trees, under: Under) -> None:
    """Fill `out` (t, m, n) from one plane (t or 1, m or 1, n or 1) for each predictor; NaN where one is not finite.

    As many groups of pieces are run at once as BLAS has threads.
    """
    known = np.ones(out.shape, np.bool_)
    for day, plane in product(range(len(out)), planes):
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            known[day] &= np.isfinite(plane[day % len(plane)].astype(np.float32, copy=False))
    out[...] = np.nan

    def run(parts: list[Part]) -> None:
        cells = [_in_order(known[part]) for part in parts]
        ends = np.cumsum([len(found) for found in cells])
        numbers = _numbers(len(planes), ends[-1])
        for row, plane in zip(numbers, planes, strict=True):
            for part, found, end in zip(parts, cells, ends, strict=True):
                row[end - len(found) : end] = _cut(plane, part, known[part].shape)[found]
        predicted = _predicted(numbers, ends[-1], trees, under)
        for part, found, end in zip(parts, cells, ends, strict=True):
            days, rows, columns = np.unravel_index(found, known[part].shape)
            out[part][days, rows, columns] = predicted[end - len(found) : end]

    in_threads(run, _groups(known))


def _groups(known: NDArray[np.bool_]) -> list[list[Part]]:
    """Pieces with known cells, one after another until they have TOGETHER of them."""
    cuts = [
        [slice(at, at + step) for at in range(0, size, step)] for size, step in zip(known.shape, PIECE, strict=True)
    ]
    groups: list[list[Part]] = []
    total = TOGETHER
    for part in product(*cuts):
        count = int(np.count_nonzero(known[part]))
        if count == 0:
            continue
        if total + count > TOGETHER:
            groups.append([])
            total = 0
        groups[-1].append(part)
        total += count
    return groups


def _in_order(known: NDArray[np.bool_]) -> Integers:
    """Where the known cells of a piece are, so that neighbours on a day lie together."""
    order = _order(known.shape)
    return order[known.reshape(-1)[order]]


@lru_cache(ORDERS)
def _order(shape: tuple[int, int, int]) -> Integers:
    """The cells of a piece, day by day, along a Z: quarters of quarters (Morton's order)."""
    days, rows, columns = np.indices(shape).reshape(3, -1)
    place = np.zeros(rows.size, np.int64)
    for bit in range(max(shape).bit_length()):
        place |= (columns >> bit & 1) << 2 * bit | (rows >> bit & 1) << (2 * bit + 1)
    return np.lexsort((place, days))


def _cut(plane: NDArray[Any], part: Part, shape: tuple[int, ...]) -> Singles:
    """A piece of a plane, of that shape, as a row of float32."""
    own = tuple(slice(0, 1) if size == 1 else cut for size, cut in zip(plane.shape, part, strict=True))
    with np.errstate(over="ignore"):
        return np.broadcast_to(plane[own].astype(np.float32, copy=False), shape).reshape(-1)


def _numbers(predictors: int, cells: int) -> Singles:
    """Room for the predictors of so many cells, one row each, in whole sets."""
    return np.empty((predictors, -(-cells // CELLS) * CELLS), np.float32)


def _predicted(numbers: Singles, cells: int, trees: Trees, under: Under) -> Singles:
    """(n,) for n cells; what is left of `numbers` takes after the last."""
    numbers[:, cells:] = numbers[:, cells - 1 : cells]
    out = np.empty(cells, np.float32)
    deepest = int(np.diff(trees.root).max()) // 2 + 1
    _means(out, numbers, trees, under, deepest)
    return out


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
def _means(out, numbers, trees, under, deepest):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Mean of the trees, and what lies under them, for the first cells (n,) of `numbers` (k, .)."""
    cells = numbers.shape[1]
    box, kept, pending = _box(numbers), _room(trees, cells), np.empty((2, deepest), np.int32)
    most = min(SETS, cells // CELLS)
    paths = (np.empty((deepest + 1, most), np.uint64), np.empty(deepest, np.int32), np.empty(deepest, np.uint64))
    found = (np.zeros(most * CELLS, np.uint16), np.empty(most * CELLS))
    sums, places = np.zeros(cells), numbers.reshape(-1)
    for tree in range(trees.root.size - 1):
        if _prune(trees, tree, box, kept, pending):
            _sum(sums, places, kept, 0, found, paths)
        else:
            _sum(sums, places, trees, trees.root[tree], found, paths)
    for i in range(out.size):
        level = under.intercept
        for c in range(under.coefficients.size):
            level += under.coefficients[c] * min(max(numbers[c, i], under.low[c]), under.high[c])
        out[i] = level + under.share * (sums[i] / (trees.root.size - 1))


@njit(nogil=True, cache=True)
def _box(numbers):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(2, k): the least and the greatest value of each predictor."""
    out = np.empty((2, len(numbers)), np.float32)
    for c in range(len(numbers)):
        out[0, c], out[1, c] = numbers[c].min(), numbers[c].max()
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
def _sum(sums, numbers, trees, root, found, paths):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Add a tree to each cell (n,); `numbers` (k * n,)."""
    marks, leaves = found
    for start in range(0, sums.size, SETS * CELLS):
        size = min(SETS * CELLS, sums.size - start)
        _follow(marks, leaves, start, size // CELLS, sums.size, numbers, trees, root, paths)
        for i in range(size):
            sums[start + i] += leaves[marks[i]]


@njit(nogil=True, cache=True)
def _follow(marks, leaves, start, count, cells, numbers, trees, node, paths):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The leaves of a tree that cells reach, and at each cell which.

    start, count : first cell of the first set, and how many sets;  cells : between predictors in `numbers`
    paths : room for the sets' cells (., s); for the nodes of parts that are still to be followed, and which sets have members there
    """
    sets, nodes, among = paths
    depth, leaf, one, none = 0, 0, np.uint64(1), np.uint64(0)
    some = ~none >> np.uint64(SETS - count)
    sets[0, :count] = ~none
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
        place, threshold = feature * cells + start, trees.threshold[node]
        some_low, some_high = none, none
        while left:
            j = np.int64(trailing_zeros(left))
            bit = one << np.uint64(j)
            left ^= bit
            low = sets[depth, j] & _at_most(numbers, place + j * CELLS, threshold)
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
