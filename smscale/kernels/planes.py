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
from numba.extending import intrinsic as _intrinsic
from numpy.typing import NDArray

from smscale.kernels.threads import in_threads

Floats32 = NDArray[np.float32]
Integers = NDArray[np.int64]
Index = tuple[int | slice, ...]

#: Cells of a slab, which one thread works on; and values of a table of rows that is gathered from one (2 MiB).
SLAB, TABLE = 1 << 17, 1 << 19
#: Cells of a band, in which missing ones are looked for at once, and its most rows: 12 predictors stay in a second-level cache.
BAND, MOST_ROWS = 1 << 13, 64
#: Cells along each axis that are looked at to find which planes have gaps.
SAMPLED = 16
#: Bytes of a float32, and the largest.
ITEM, LARGEST = 4, np.finfo(np.float32).max
#: Compiled, it takes no typing context; mypy does not know that.
intrinsic: Any = _intrinsic


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
    strange: Sequence[Callable[[Floats32], NDArray[np.bool_]] | None],
) -> NDArray[np.bool_]:
    """Whether some plane is below its `low` or above its `high` (k,), or its `strange`, if it has one, says so; not where it is NaN.

    Returns
    -------
    bool of the planes' common shape (at least 1-D)
    """
    given = [np.atleast_1d(plane) for plane in planes]
    low, high = low.copy(), high.copy()
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


@numba.njit(inline="always")
def find_known(rows, count, steps, order, known):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Mark in known (count, n) uint8 the cells whose predictors are all finite.

    Plane by plane through all rows: memory is fast where what is read next lies next. A row without cells is not read on.

    rows (count, k) addresses, steps (k,) bytes from cell to cell
    """
    known[:] = 1
    for c in order:
        for i in range(count):
            start, marks, left = rows[i, c], known[i], np.uint8(0)
            for j in range(marks.size):
                left |= marks[j]
            if not left:
                continue
            if steps[c] == 0:
                if not abs(value(start)) <= LARGEST:
                    marks[:] = 0
            elif steps[c] == ITEM:
                plane = numba.carray(pointer(start), marks.size)
                for j in range(marks.size):
                    marks[j] &= np.uint8(abs(plane[j]) <= LARGEST)
            else:
                for j in range(marks.size):
                    marks[j] &= np.uint8(abs(value(start + j * steps[c])) <= LARGEST)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _collect(table, cells, shape, addresses, strides, order):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Fill the table (n, k) and the places (n,) of the cells of a slab that have all predictors; how many they are."""
    steps, columns, found = strides[:, shape.size - 1].copy(), shape[shape.size - 1], 0
    band = max(1, min(BAND // columns, MOST_ROWS))
    rows, known = np.empty((band, steps.size), np.int64), np.empty((band, columns), np.uint8)
    total = cells.size // columns
    for top in range(0, total, band):
        count = min(band, total - top)
        find_rows(addresses, strides, shape, top, count, rows)
        find_known(rows, count, steps, order, known[:count])
        for i in range(count):
            for j in range(columns):
                if known[i, j]:
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
