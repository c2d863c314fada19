"""Predictors as separate planes that broadcast to one shape: read where they lie, never stacked, cells without values skipped.

A plane of float32 is read by address and strides, whatever its layout; others are converted slab by slab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.cpython.unsafe.numbers import trailing_zeros as _trailing_zeros
from numba.extending import intrinsic as _intrinsic
from numpy.typing import NDArray

from smscale.kernels.threads import in_threads

Floats32 = NDArray[np.float32]
Integers = NDArray[np.int64]
Index = tuple[int | slice, ...]
#: What says which values of a plane are strange; None where nothing is.
Strange = Callable[[Floats32], NDArray[np.bool_]] | None

#: Cells of a slab, which one thread works on; and values of a table of rows that is gathered from one (2 MiB).
SLAB, TABLE = 1 << 17, 1 << 19
#: Cells of a band, in which missing ones are looked for at once, and its most rows: 12 predictors stay in a second-level cache.
BAND, MOST_ROWS = 1 << 13, 64
#: Cells along each axis that are looked at to find which planes have gaps.
SAMPLED = 16
#: Bytes of a float32, and the largest; cells that have a bit each in an integer.
ITEM, LARGEST, WORD = 4, np.finfo(np.float32).max, 64
#: Values that are copied at once.
LANES = 16
#: The bits of an infinite float32 without its sign, moved up by one: those of finite ones are less.
INFINITE = 0xFF000000
#: Bytes of a line of cache, and how far ahead lines are asked for: planes change too often for the processor to foresee it.
LINE, AHEAD = 64, 4096
#: Compiled, they take no typing context; mypy does not know that.
intrinsic: Any = _intrinsic
trailing_zeros: Any = _trailing_zeros


class Slab(NamedTuple):
    """A part of k planes as compiled code reads it; `parts` keeps them alive.

    shape (d,) of the part;  addresses (k,) of the float32 of its first cell;  strides (k, d) bytes;  order (k,) in which planes
    are looked at for missing values
    """

    shape: Integers
    addresses: Integers
    strides: Integers
    order: Integers
    parts: list[Floats32]


def views_of(planes: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], Integers]:
    """The planes broadcast, and the order in which to look at them: first those that lack most of a sample, then the largest."""
    shape = np.broadcast_shapes(*(plane.shape for plane in planes))
    views = [np.broadcast_to(plane, shape) for plane in planes]
    sample = tuple(slice(None, None, -(-size // SAMPLED)) if size else slice(None) for size in shape)
    lacking = [int(np.count_nonzero(np.isnan(view[sample]))) for view in views]
    order = sorted(range(len(views)), key=lambda c: (-lacking[c], -planes[c].size))
    return views, np.array(order, np.int64)


def slab(
    views: Sequence[NDArray[Any]], index: Index, order: Integers, shift: NDArray[np.float32] | None = None
) -> Slab:
    """A part of the views. From those that are no float32 the shift (k,) is taken before they are rounded, and set to 0."""
    parts = []
    for c, view in enumerate(views):
        part = view[index]
        if view.dtype != np.float32:
            with np.errstate(over="ignore"):  # beyond float32 is infinite
                wide = part.astype(np.result_type(part, np.float32), copy=False)
                part = (wide if shift is None else wide - shift[c]).astype(np.float32)
            if shift is not None:
                shift[c] = 0.0
        parts.append(part)
    addresses = np.array([part.__array_interface__["data"][0] for part in parts], np.int64)
    strides = np.array([part.strides for part in parts], np.int64)
    return Slab(np.array(parts[0].shape, np.int64), addresses, strides, order, parts)


def slabs(shape: tuple[int, ...], cells: int) -> list[Index]:
    """Indices that cut an array into parts of about `cells` items: whole leading items, then runs along one axis."""
    size = int(np.prod(shape))
    if size == 0:
        return []
    axis = 0
    while axis < len(shape) - 1 and size // int(np.prod(shape[: axis + 1])) > cells:
        axis += 1
    step = max(1, cells // max(1, size // int(np.prod(shape[: axis + 1]))))
    runs = [slice(i, min(i + step, shape[axis])) for i in range(0, shape[axis], step)]
    return [(*lead, run) for lead in np.ndindex(*shape[:axis]) for run in runs]


def by_rows(planes: Sequence[NDArray[Any]], predict: Callable[[Floats32], Floats32]) -> Floats32:
    """Give `predict` the cells that have all predictors as tables (n, k), and put what it returns (n,) in their places.

    As many tables are predicted at once as BLAS has threads, each of at most `TABLE` values.

    Returns
    -------
    float32 of the planes' common shape (at least 1-D); NaN where a predictor is NaN, infinite or beyond float32.
    """
    views, order = views_of([np.atleast_1d(plane) for plane in planes])
    out = np.empty(views[0].shape, np.float32)

    def work(index: Index) -> None:
        part = out[index].reshape(-1)
        table, cells = rows_of(slab(views, index, order), part.size)
        part[...] = np.nan
        if len(table):
            part[cells] = predict(table)

    in_threads(work, slabs(out.shape, max(1, TABLE // len(views))))
    return out


def rows_of(given: Slab, size: int) -> tuple[Floats32, Integers]:
    """The cells of a slab of `size` cells that have all predictors: values (n, k) and places (n,)."""
    table, cells = np.empty((size, len(given.parts)), np.float32), np.empty(size, np.int64)
    found = _collect(table, cells, *given[:-1])
    return table[:found], cells[:found]


def outside(
    planes: Sequence[NDArray[Any]],
    low: Floats32,
    high: Floats32,
    strange: Sequence[Strange],
) -> NDArray[np.bool_]:
    """Whether some plane is below its `low` or above its `high` (k,), or its `strange`, if it has one, says so; not where it is NaN.

    Returns
    -------
    bool of the planes' common shape (at least 1-D)
    """
    given = [np.atleast_1d(plane) for plane in planes]
    low, high = low.copy(), high.copy()
    given, low, high, strange = _still_judged(given, low, high, strange)
    for c, says in enumerate(strange):
        if says is not None and given[c].size < SLAB:  # judged at its own size, not at the common one
            with np.errstate(over="ignore"):
                given[c] = says(given[c].astype(np.float32)).astype(np.float32)
            low[c] = high[c] = 0.0
    views, order = views_of(given)
    out = np.empty(views[0].shape, np.bool_)

    def work(index: Index) -> None:
        part = slab(views, index, order)
        marks = out[index].reshape(-1)
        _outside(marks.view(np.uint8), *part[:-2], low, high)
        for c, says in enumerate(strange):
            if says is not None and given[c].size >= SLAB:
                marks |= says(part.parts[c]).reshape(-1)

    in_threads(work, slabs(out.shape, SLAB))
    return out


def _still_judged(
    given: list[NDArray[Any]], low: Floats32, high: Floats32, strange: Sequence[Strange]
) -> tuple[list[NDArray[Any]], Floats32, Floats32, Sequence[Strange]]:
    """Planes that stay along the first axis judged once for all of it: one plane, 1 where one of them is outside, in place of them."""
    shape = np.broadcast_shapes(*(plane.shape for plane in given))
    still = [c for c, plane in enumerate(given) if plane.ndim < len(shape) or len(plane) == 1]
    moving = [c for c in range(len(given)) if c not in still]
    if len(still) < 2 or not moving or len(shape) < 2 or 0 in shape:
        return given, low, high, strange
    found = outside([given[c] for c in still], low[still], high[still], [strange[c] for c in still])
    zero = np.zeros(1, np.float32)
    return (
        [found.astype(np.float32), *(given[c] for c in moving)],
        np.concatenate([zero, low[moving]]),
        np.concatenate([zero, high[moving]]),
        [None, *(strange[c] for c in moving)],
    )


@intrinsic
def pointer(typing, address):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """An address as a pointer to float32."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(address), code


@intrinsic
def value(typing, address):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The float32 at an address."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(arguments[0], ir.FloatType().as_pointer()), align=1)

    return types.float32(address), code


@intrinsic
def hold(typing, address, shift, least, most, row, start):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The 16 float32 from an address on, less a shift and then within bounds, to row[start : start + 16]."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _put(context, builder, signature.args[4], arguments[4:], _held(builder, *arguments[:4]))
        return context.get_dummy_value()

    return types.void(address, shift, least, most, row, start), code


@intrinsic
def hold_some(typing, address, shift, least, most, row, start, chosen):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """As `hold`, of those values whose bit is set: side by side from row[start] on; the rest of the 16 is overwritten, too.

    One instruction with AVX-512; elsewhere LLVM (from 19 on) makes a loop of it.
    """

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        lanes, bits = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(1), LANES)
        kind = ir.FunctionType(lanes, [lanes, bits, lanes])
        compress = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.experimental.vector.compress.v{LANES}f32"
        )
        mask = builder.bitcast(builder.trunc(arguments[6], ir.IntType(LANES)), bits)
        found = builder.call(compress, [_held(builder, *arguments[:4]), mask, ir.Constant(lanes, ir.Undefined)])
        _put(context, builder, signature.args[4], arguments[4:6], found)
        return context.get_dummy_value()

    return types.void(address, shift, least, most, row, start, chosen), code


def _held(builder: Any, address: Any, shift: Any, least: Any, most: Any) -> Any:
    """16 float32 from an address on, less a shift and then within bounds."""
    lanes = ir.VectorType(ir.FloatType(), LANES)
    found = builder.load(builder.inttoptr(address, lanes.as_pointer()), align=1)
    found = builder.fsub(found, _spread(builder, shift))
    for sign, bound in ((">", _spread(builder, least)), ("<", _spread(builder, most))):
        found = builder.select(builder.fcmp_ordered(sign, found, bound), found, bound)
    return found


def _put(context: Any, builder: Any, kind: Any, place: Any, found: Any) -> None:
    """Write 16 float32 to a place: an array and an index."""
    array = context.make_array(kind)(context, builder, place[0])
    builder.store(found, builder.bitcast(builder.gep(array.data, [place[1]]), found.type.as_pointer()), align=4)


@intrinsic
def ones(typing, bits):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """How many bits of an uint64 are set."""
    return types.int64(types.uint64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


def _fetch(builder: Any, address: Any, size: int) -> None:
    """Ask for so many bytes from an address on, wherever that is, to be in cache soon."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    read, keep, data = (ir.Constant(number, given) for given in (0, 3, 1))
    for line in range(0, size, LINE):
        at = builder.inttoptr(builder.add(address, ir.Constant(address.type, line)), byte)
        builder.call(fetch, [at, read, keep, data])


def _spread(builder: Any, number: Any) -> Any:
    """A number in all 16 lanes."""
    lanes, first = ir.VectorType(number.type, LANES), ir.IntType(32)
    alone = builder.insert_element(ir.Constant(lanes, ir.Undefined), number, ir.Constant(first, 0))
    return builder.shuffle_vector(alone, alone, ir.Constant(ir.VectorType(first, LANES), [0] * LANES))


@numba.njit(inline="always")
def find_rows(addresses, strides, shape, first, count, rows):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Addresses (count, k) of the first cells of rows; a row is what lies along the last axis of `shape` (d,)."""
    for i in range(count):
        rows[i] = addresses
        rest = first + i
        for axis in range(shape.size - 2, -1, -1):
            place = rest % shape[axis]
            rest //= shape[axis]
            for c in range(addresses.size):
                rows[i, c] += place * strides[c, axis]


@intrinsic
def _finite(typing, address):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """A bit for each of the 64 float32 from an address on: whether it is a number, and finite."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        lanes = ir.VectorType(ir.IntType(32), WORD)
        bits = builder.load(builder.inttoptr(arguments[0], lanes.as_pointer()), align=1)
        _fetch(builder, builder.add(arguments[0], ir.Constant(arguments[0].type, AHEAD)), WORD * ITEM)
        twice = builder.shl(bits, ir.Constant(lanes, [1] * WORD))
        found = builder.icmp_unsigned("<", twice, ir.Constant(lanes, [INFINITE] * WORD))
        return builder.bitcast(found, ir.IntType(WORD))

    return types.uint64(address), code


@numba.njit(inline="always")
def find_known(rows, count, columns, steps, order, known):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Set in known (count, w) uint64 the bits of the cells whose predictors are all finite; 64 columns have a word.

    Plane by plane through all rows: memory is fast where what is read next lies next. Words without cells are not read on.

    rows (count, k) addresses, steps (k,) bytes from cell to cell
    """
    none, last = np.uint64(0), known.shape[1] - 1
    short = (last + 1) * WORD - columns
    for i in range(count):
        known[i] = ~none
        known[i, last] = ~none >> np.uint64(short)
    for c in order:
        step = steps[c]
        for i in range(count):
            start, words = rows[i, c], known[i]
            if step == 0:
                if not abs(value(start)) <= LARGEST:
                    words[:] = none
                continue
            for w in range(last + 1):
                if words[w] == none:
                    continue
                beyond, at = short if w == last else 0, start + w * WORD * step
                if step == ITEM and columns >= WORD:  # what is beyond the end is read before
                    words[w] &= _finite(at - beyond * ITEM) >> np.uint64(beyond)
                else:
                    found = none
                    for j in range(WORD - beyond):
                        found |= np.uint64(abs(value(at + j * step)) <= LARGEST) << np.uint64(j)
                    words[w] &= found


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _collect(table, cells, shape, addresses, strides, order):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Fill the table (n, k) and the places (n,) of the cells of a slab that have all predictors; how many they are."""
    steps, columns, found = strides[:, shape.size - 1].copy(), shape[shape.size - 1], 0
    band = max(1, min(BAND // columns, MOST_ROWS))
    rows, known = np.empty((band, steps.size), np.int64), np.empty((band, -(-columns // WORD)), np.uint64)
    total = cells.size // columns
    for top in range(0, total, band):
        count = min(band, total - top)
        find_rows(addresses, strides, shape, top, count, rows)
        find_known(rows, count, columns, steps, order, known)
        for i in range(count):
            for w in range(known.shape[1]):
                left = known[i, w]
                while left:
                    j = w * WORD + np.int64(trailing_zeros(left))
                    left &= left - np.uint64(1)
                    cells[found] = (top + i) * columns + j
                    for c in range(steps.size):
                        table[found, c] = value(rows[i, c] + j * steps[c])
                    found += 1
    return found


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _outside(marks, shape, addresses, strides, low, high):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Mark (n,) uint8 the cells of a slab where some plane is below its `low` or above its `high` (k,)."""
    steps, columns = strides[:, shape.size - 1].copy(), shape[shape.size - 1]
    band = max(1, min(BAND // columns, MOST_ROWS))
    rows = np.empty((band, steps.size), np.int64)
    marks[:] = 0
    total = marks.size // columns
    for top in range(0, total, band):
        count = min(band, total - top)
        find_rows(addresses, strides, shape, top, count, rows)
        for c in range(steps.size):
            least, most = low[c], high[c]
            for i in range(count):
                row, start = marks[(top + i) * columns : (top + i + 1) * columns], rows[i, c]
                if steps[c] == 0:
                    level = value(start)
                    if level < least or level > most:
                        row[:] = 1
                elif steps[c] == ITEM:
                    plane = numba.carray(pointer(start), columns)
                    for j in range(columns):
                        row[j] |= np.uint8((plane[j] < least) | (plane[j] > most))
                else:
                    for j in range(columns):
                        level = value(start + j * steps[c])
                        row[j] |= np.uint8((level < least) | (level > most))
