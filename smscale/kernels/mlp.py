"""A network of one hidden tanh layer and a linear output, beside a linear part, read in one fused pass.

y = b2 + sum_c linear_c x_c + sum_j w2_j tanh(b1_j + sum_c w1_cj x_c).

The product and the tanh cost about the same. Neurons go in fours: they share what is read of the predictors, and four rational
tanh one division. Samples go in blocks that stay in the first-level cache; nothing of the size (samples, neurons) is ever
written. A bit for each cell says whether it has all predictors: 64 cells without are passed over at once, and those that have
them move up side by side, 16 at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.kernels.planes import (
    BAND,
    ITEM,
    LANES,
    MOST_ROWS,
    SLAB,
    WORD,
    Index,
    find_known,
    find_rows,
    hold,
    hold_some,
    ones,
    slab,
    slabs,
    trailing_zeros,
    value,
    views_of,
)
from smscale.kernels.threads import in_threads

Floats32 = NDArray[np.float32]

#: As many bits as values are copied at once.
SOME = (1 << LANES) - 1
#: Samples in a block: 12 predictors and 5 work rows of float32 are 37 KiB, about a first-level cache.
BLOCK = 512

#: tanh x = x P(x^2) / Q(x^2) on |x| <= 7.8, where 1 - tanh x = 3.4e-7. Our own minimax fit (Loeb's linearised least squares
#: with Lawson's weights, 4 000 Chebyshev nodes): relative error 1.2e-7, and 4e-7 once evaluated in float32.
TANH_LIMIT = np.float32(7.8)
_P0, _P1, _P2, _P3 = (np.float32(c) for c in (9.99999884e-01, 1.29431402e-01, 2.96991276e-03, 1.16359258e-05))
_Q1, _Q2, _Q3, _Q4 = (np.float32(c) for c in (4.62763775e-01, 2.38925008e-02, 2.41357672e-04, 2.52629260e-07))
_ONE = np.float32(1.0)

#: Contraction and reordering, but NaN and infinity keep their meaning: a missing predictor must give a missing result.
_FAST = {"contract", "reassoc", "nsz"}


@numba.njit(inline="always", fastmath=_FAST, error_model="numpy")
def _numerator(x: np.float32, s: np.float32) -> np.float32:
    return x * (_P0 + s * (_P1 + s * (_P2 + s * _P3)))


@numba.njit(inline="always", fastmath=_FAST, error_model="numpy")
def _denominator(s: np.float32) -> np.float32:
    return _ONE + s * (_Q1 + s * (_Q2 + s * (_Q3 + s * _Q4)))


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def tanh(x: Floats32) -> Floats32:
    """tanh of (n,) float32 by the rational function that the network uses."""
    out = np.empty_like(x)
    for i in range(x.size):
        v = min(max(x[i], -TANH_LIMIT), TANH_LIMIT)
        s = v * v
        out[i] = _numerator(v, s) / _denominator(s)
    return out


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def add_products(planes: Floats32, start: int, size: int, weights: Floats32, out: Floats32) -> None:
    """out[:size] += weights @ planes[:, start:start + size]; planes (k, n), weights (k,)."""
    k = planes.shape[0]
    c = 0
    while c + 4 <= k:
        w0, w1, w2, w3 = weights[c], weights[c + 1], weights[c + 2], weights[c + 3]
        p0 = planes[c, start : start + size]
        p1 = planes[c + 1, start : start + size]
        p2 = planes[c + 2, start : start + size]
        p3 = planes[c + 3, start : start + size]
        for i in range(size):
            out[i] += w0 * p0[i] + w1 * p1[i] + w2 * p2[i] + w3 * p3[i]
        c += 4
    while c < k:
        w0 = weights[c]
        p0 = planes[c, start : start + size]
        for i in range(size):
            out[i] += w0 * p0[i]
        c += 1


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def forward_block(
    planes: Floats32,
    start: int,
    size: int,
    neurons: Floats32,
    bias: np.float32,
    linear: Floats32,
    work: Floats32,
) -> None:
    """Network of one block of samples, left in work[0, :size].

    Parameters
    ----------
    planes : (k, n) float32, one row per predictor
    start, size : the block's samples, size <= BLOCK
    neurons : (h, k + 2) float32; each row holds a neuron's k weights, its threshold, its output weight
    bias : output threshold
    linear : (k,) float32 weights of the linear part, or (0,) for none
    work : (3, BLOCK) float32, overwritten
    """
    h, k = neurons.shape[0], planes.shape[0]
    total, a, b = work[0], work[1], work[2]
    for i in range(size):
        total[i] = bias
    if linear.size > 0:
        add_products(planes, start, size, linear, total)
    j = 0
    while j < h:
        paired = j + 1 < h
        other = j + 1 if paired else j
        va = neurons[j, k + 1]
        vb = neurons[other, k + 1] if paired else np.float32(0.0)
        ta, tb = neurons[j, k], neurons[other, k]
        for i in range(size):
            a[i] = ta
            b[i] = tb
        add_products(planes, start, size, neurons[j], a)
        add_products(planes, start, size, neurons[other], b)
        for i in range(size):
            x = min(max(a[i], -TANH_LIMIT), TANH_LIMIT)
            y = min(max(b[i], -TANH_LIMIT), TANH_LIMIT)
            s, t = x * x, y * y
            p, q = _denominator(s), _denominator(t)
            total[i] += (va * _numerator(x, s) * q + vb * _numerator(y, t) * p) / (p * q)
        j += 2


@numba.njit(inline="always")
def _gather(planes, steps, first, size, chosen, bounds, block, filled):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Predictors of the chosen (bits) of cells [first, first + size) of a row, less their shift and within bounds, to block[:, filled :].

    What follows there, up to `filled` + 64, is overwritten.  bounds (3, k) : shift, lower, upper
    """
    every = chosen == ~np.uint64(0) >> np.uint64(WORD - size)
    for c in range(planes.size):
        shift, least, most = bounds[0, c], bounds[1, c], bounds[2, c]
        row, step, at = block[c], steps[c], planes[c] + first * steps[c]
        if step == 0:
            row[filled : filled + size] = min(max(value(at) - shift, least), most)
        elif step == ITEM and size == WORD:
            start, left = filled, chosen
            for i in range(0, WORD, LANES):
                if every:
                    hold(at + i * ITEM, shift, least, most, row, filled + i)
                elif left & np.uint64(SOME):
                    hold_some(at + i * ITEM, shift, least, most, row, start, left)
                    start += ones(left & np.uint64(SOME))
                left >>= np.uint64(LANES)
        else:
            for i in range(size):
                row[filled + i] = min(max(value(at + i * step) - shift, least), most)
            if not every:
                start, left = filled, chosen
                while left:
                    row[start] = row[filled + np.int64(trailing_zeros(left))]
                    start += 1
                    left &= left - np.uint64(1)


@numba.njit(inline="always")
def _network(block, neurons, bias, linear, work):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Network of the first BLOCK cells of a block (k, .), left in work[0]; work (5, BLOCK), neurons (h, k + 2), k and h multiples
    of four.

    Weights are named before a loop: LLVM would read them again in each step, as what is written might be one of them.
    """
    h, k = neurons.shape[0], block.shape[0]
    total, a, b, d, e = work[0], work[1], work[2], work[3], work[4]
    total[:] = bias
    for c in range(0, k, 4):
        p0, p1, p2, p3 = block[c], block[c + 1], block[c + 2], block[c + 3]
        l0, l1, l2, l3 = linear[c], linear[c + 1], linear[c + 2], linear[c + 3]
        for i in range(BLOCK):
            total[i] += l0 * p0[i] + l1 * p1[i] + l2 * p2[i] + l3 * p3[i]
    for j in range(0, h, 4):
        n0, n1, n2, n3 = neurons[j], neurons[j + 1], neurons[j + 2], neurons[j + 3]
        t0, t1, t2, t3 = n0[k], n1[k], n2[k], n3[k]
        for c in range(0, k, 4):
            p0, p1, p2, p3 = block[c], block[c + 1], block[c + 2], block[c + 3]
            a0, a1, a2, a3 = n0[c], n0[c + 1], n0[c + 2], n0[c + 3]
            b0, b1, b2, b3 = n1[c], n1[c + 1], n1[c + 2], n1[c + 3]
            d0, d1, d2, d3 = n2[c], n2[c + 1], n2[c + 2], n2[c + 3]
            e0, e1, e2, e3 = n3[c], n3[c + 1], n3[c + 2], n3[c + 3]
            if c == 0:
                for i in range(BLOCK):
                    x0, x1, x2, x3 = p0[i], p1[i], p2[i], p3[i]
                    a[i] = t0 + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                    b[i] = t1 + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
                    d[i] = t2 + d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
                    e[i] = t3 + e0 * x0 + e1 * x1 + e2 * x2 + e3 * x3
            else:
                for i in range(BLOCK):
                    x0, x1, x2, x3 = p0[i], p1[i], p2[i], p3[i]
                    a[i] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                    b[i] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
                    d[i] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
                    e[i] += e0 * x0 + e1 * x1 + e2 * x2 + e3 * x3
        v0, v1, v2, v3 = n0[k + 1], n1[k + 1], n2[k + 1], n3[k + 1]
        for i in range(BLOCK):
            w = min(max(a[i], -TANH_LIMIT), TANH_LIMIT)
            x = min(max(b[i], -TANH_LIMIT), TANH_LIMIT)
            y = min(max(d[i], -TANH_LIMIT), TANH_LIMIT)
            z = min(max(e[i], -TANH_LIMIT), TANH_LIMIT)
            ww, xx, yy, zz = w * w, x * x, y * y, z * z
            p, q, r, s = _denominator(ww), _denominator(xx), _denominator(yy), _denominator(zz)
            one = v0 * _numerator(w, ww) * q + v1 * _numerator(x, xx) * p
            two = v2 * _numerator(y, yy) * s + v3 * _numerator(z, zz) * r
            pq, rs = p * q, r * s
            total[i] += (one * rs + two * pq) / (pq * rs)


# It calls nothing compiled apart: such a caller rounds differently when it is loaded from numba's cache.
@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _fill(  # type: ignore[no-untyped-def]
    out, shape, addresses, strides, order, bounds, neurons, bias, linear
):  # pragma: no cover - compiled
    """Network of the cells of one slab; NaN where a predictor is none.

    Cells that have all predictors are gathered into whole blocks, so that a value does not depend on where it stands.

    Parameters
    ----------
    out : (n,) float32;  shape : (d,) of the slab, with n cells
    addresses : (k,) of the float32 of its first cell;  strides : (k, d) bytes
    order : (k,) in which planes are looked at for missing values;  bounds : (3, k) shift, lower, upper
    neurons, linear : of k rounded up to a multiple of four, as `_network`
    """
    k, axes = strides.shape
    steps, columns = strides[:, axes - 1].copy(), shape[axes - 1]
    band, words = max(1, min(BAND // columns, MOST_ROWS)), -(-columns // WORD)
    rows, known = np.empty((band, k), np.int64), np.empty((band, words), np.uint64)
    where, filled = np.empty(BLOCK + WORD, np.int64), 0
    block, work = np.zeros((linear.size, BLOCK + WORD), np.float32), np.empty((5, BLOCK), np.float32)
    last = out.size // columns * words
    for number in range(last + 1):  # the last is none: what is left over is computed
        row, first, left = number // words, number % words * WORD, np.uint64(0)
        if number < last:
            if row % band == 0 and first == 0:
                count = min(band, out.size // columns - row)
                find_rows(addresses, strides, shape, row, count, rows)
                find_known(rows, count, columns, steps, order, known)
            size, at, left = min(WORD, columns - first), row * columns + first, known[row % band, first // WORD]
            if left != ~np.uint64(0) >> np.uint64(WORD - size):
                out[at : at + size] = np.nan
        if left:
            before = WORD - size if columns >= WORD else 0  # what is beyond the end is read before
            _gather(
                rows[row % band], steps, first - before, size + before, left << np.uint64(before), bounds, block, filled
            )
            while left:
                where[filled] = at + np.int64(trailing_zeros(left))
                left &= left - np.uint64(1)
                filled += 1
        if filled >= BLOCK or (number == last and filled > 0):
            _network(block, neurons, bias, linear, work)
            done = min(filled, BLOCK)
            if where[done - 1] - where[0] == done - 1:
                out[where[0] : where[0] + done] = work[0, :done]
            else:
                for j in range(done):
                    out[where[j]] = work[0, j]
            filled -= done
            for j in range(filled):
                where[j] = where[BLOCK + j]
            for c in range(k):
                for j in range(filled):
                    block[c, j] = block[c, BLOCK + j]


def pack(w1: ArrayLike, b1: ArrayLike, w2: ArrayLike) -> Floats32:
    """(h, k + 2) float32 neurons of w1 (k, h), b1 (h,), w2 (h,)."""
    columns = [np.atleast_2d(np.asarray(w1)).T, np.asarray(b1).reshape(-1, 1), np.asarray(w2).reshape(-1, 1)]
    return np.ascontiguousarray(np.hstack(columns), dtype=np.float32)


def predict(
    x: ArrayLike,
    w1: ArrayLike,
    b1: ArrayLike,
    w2: ArrayLike,
    b2: float,
    shift: ArrayLike | None = None,
    linear: ArrayLike | None = None,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
) -> Floats32:
    """Network of a table of samples.

    Parameters
    ----------
    x : (n, k) floats
    w1 : (k, h) weights, b1 : (h,) thresholds, w2 : (h,) output weights, b2 : output threshold
    shift : (k,) subtracted from each predictor first (a standardiser's means, rounded to float32); 0 if None
    linear : (k,) weights of the linear part, which acts on what the shift leaves; no such part if None
    lower, upper : (k,), between which predictors are held, before the shift; None for no bound

    Returns
    -------
    (n,) float32; NaN where a predictor is NaN, infinite or beyond float32.

    Examples
    --------
    >>> predict([[0.0], [np.nan]], w1=[[1.0]], b1=[0.0], w2=[2.0], b2=0.5)
    array([0.5, nan], dtype=float32)
    """
    return predict_planes(list(np.asarray(x).T), w1, b1, w2, b2, shift, linear, lower, upper)


def predict_planes(
    planes: Sequence[ArrayLike],
    w1: ArrayLike,
    b1: ArrayLike,
    w2: ArrayLike,
    b2: float,
    shift: ArrayLike | None = None,
    linear: ArrayLike | None = None,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
) -> Floats32:
    """Network of separate predictor planes, never stacked: one cache-sized slab of cells is gathered at a time.

    Parameters
    ----------
    planes : k arrays or scalars, in the order of the rows of w1; they broadcast to a common shape
    w1, b1, w2, b2, shift, linear, lower, upper : as in `predict`

    Returns
    -------
    float32 of the common shape (at least 1-D); NaN where a predictor is NaN, infinite or beyond float32.
    """
    views, order = views_of([np.atleast_1d(plane) for plane in planes])
    out = np.empty(views[0].shape, np.float32)
    shifts = _per_plane(shift, len(views), 0.0)
    bounds = np.stack(
        [shifts, _per_plane(lower, len(views), -np.inf, shifts), _per_plane(upper, len(views), np.inf, shifts)]
    )
    straight = np.zeros(len(views)) if linear is None else np.asarray(linear)
    network = (_padded(pack(w1, b1, w2), len(views)), np.float32(b2), _fours(straight.astype(np.float32)))

    def work(index: Index) -> None:
        own = bounds.copy()
        part = slab(views, index, order, own[0])
        _fill(out[index].reshape(-1), *part[:-1], own, *network)

    in_threads(work, slabs(out.shape, SLAB))
    return out


def _fours(values: NDArray[Any]) -> NDArray[Any]:
    """With zeros along the first axis, up to a multiple of four."""
    return np.concatenate([values, np.zeros((-len(values) % 4, *values.shape[1:]), values.dtype)])


def _padded(neurons: Floats32, k: int) -> Floats32:
    """Neurons (h, k + 2) with zeros, h and k up to multiples of four."""
    return _fours(np.concatenate([_fours(neurons[:, :k].T), neurons[:, k:].T]).T.copy())


def _per_plane(values: ArrayLike | None, k: int, default: float, shift: Floats32 | float = 0.0) -> Floats32:
    """(k,) float32, less the shift; the default for None."""
    given = np.full(k, default) if values is None else np.asarray(values, np.float64)
    return np.ascontiguousarray(given - shift, dtype=np.float32)
