"""A network of one hidden tanh layer and a linear output, beside a linear part, read in one fused pass.

y = b2 + sum_c linear_c x_c + sum_j w2_j tanh(b1_j + sum_c w1_cj x_c).

The tanh is what costs, not the product, so neurons go in pairs: two rational tanh share one division. Samples go in
blocks that stay in the first-level cache; nothing of the size (samples, neurons) is ever written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats32 = NDArray[np.float32]

#: Samples in a block: 12 predictors and 3 work rows of float32 fit 32 KiB of first-level cache.
BLOCK = 512
#: Cells gathered at once from separate planes; 12 predictors of float32 stay in a second-level cache of 1 MiB.
SLAB = 1 << 14

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


# Not cached: a caller of other compiled kernels rounds differently when it is loaded from numba's cache.
@numba.njit(nogil=True, error_model="numpy")
def _forward(
    planes: Floats32,
    neurons: Floats32,
    bias: np.float32,
    linear: Floats32,
    lower: Floats32,
    upper: Floats32,
    out: Floats32,
) -> None:
    """Whole blocks only, so that a cell's value does not depend on where it stands: planes (k, n), n a multiple of BLOCK.

    Planes are held within lower and upper (k,), in place. NaN where a predictor is missing: x - x is 0 or NaN, here without
    fast maths.
    """
    k, n = planes.shape
    work, missing = np.empty((3, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    for start in range(0, n, BLOCK):
        missing[:] = 0
        for c in range(k):
            plane, least, most = planes[c, start : start + BLOCK], lower[c], upper[c]
            for i in range(BLOCK):
                missing[i] += plane[i] - plane[i]
                plane[i] = min(max(plane[i], least), most)
        forward_block(planes, start, BLOCK, neurons, bias, linear, work)
        block = out[start : start + BLOCK]
        for i in range(BLOCK):
            block[i] = work[0, i] + missing[i]


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
    views = np.broadcast_arrays(*(np.atleast_1d(p) for p in planes))
    shifts = _per_plane(shift, len(views), 0.0)
    least = _per_plane(lower, len(views), -np.inf, shifts)
    most = _per_plane(upper, len(views), np.inf, shifts)
    out = np.empty(views[0].shape, np.float32)
    neurons, bias = pack(w1, b1, w2), np.float32(b2)
    straight = np.ascontiguousarray([] if linear is None else linear, dtype=np.float32)
    for index in slabs(out.shape, SLAB):
        part = out[index]
        whole = -(-part.size // BLOCK) * BLOCK
        gathered, flat = np.zeros((len(views), whole), np.float32), np.empty(whole, np.float32)
        with np.errstate(over="ignore"):  # beyond float32 is missing
            for c, view in enumerate(views):
                np.subtract(view[index], shifts[c], out=gathered[c, : part.size].reshape(part.shape), casting="unsafe")
        _forward(gathered, neurons, bias, straight, least, most, flat)
        part[...] = flat[: part.size].reshape(part.shape)
    return out


def _per_plane(values: ArrayLike | None, k: int, default: float, shift: Floats32 | float = 0.0) -> Floats32:
    """(k,) float32, less the shift; the default for None."""
    given = np.full(k, default) if values is None else np.asarray(values, np.float64)
    return np.ascontiguousarray(given - shift, dtype=np.float32)


def slabs(shape: tuple[int, ...], cells: int) -> list[tuple[int | slice, ...]]:
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
