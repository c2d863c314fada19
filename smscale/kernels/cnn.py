"""Convolutions along the predictors for many cells at once: all layers of a network in one fused pass, tile by tile.

A tile is `TILE` cells wide; what a layer reads and writes lies as rows of a tile, one for each position and channel, in a
second-level cache. A row of the next layer is a sum of rows times weights, four of them by four at a time: every number
that is loaded is used four times, so that multiplying is the limit, for narrow layers too, where a library's matrix
product is not (benchmarks/cnn.py). No cell sees its neighbours: a value does not depend on where it stands.
"""

from __future__ import annotations

import numba
import numpy as np

#: Cells of a tile. Fewer give short loops, more leave the cache: found by trial (benchmarks/cnn.py).
TILE = 512
#: Standardised predictors beyond this have no room in float32.
LARGEST = float(np.finfo(np.float32).max)
#: Contraction and reordering of sums alone: NaN and infinity keep their meaning.
_FAST = {"contract", "reassoc", "nsz"}


@numba.njit(inline="always")
def _convolve(x, after, weight, bias, layer, sums):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """max(0, convolution + bias), the larger of two positions where the layer pools; an odd last one stays.

    x, after : (rows, TILE), position by position, a position of zeros before and after, `channels` rows each
    weight : (inputs, channels), of a window of three positions; both numbers are multiples of four
    layer : rows of a position of x, length, pooled;  sums : (4, TILE), overwritten
    """
    inputs, channels = weight.shape
    step, length, pooled = layer[0], layer[1], layer[2]
    a, b, c, d = sums[0], sums[1], sums[2], sums[3]
    last = (length + 1) // 2 if pooled else length
    after[:channels] = 0
    after[(last + 1) * channels : (last + 2) * channels] = 0
    for position in range(length):
        at = (position // 2 + 1 if pooled else position + 1) * channels
        for o in range(0, channels, 4):
            a[:], b[:], c[:], d[:] = bias[o], bias[o + 1], bias[o + 2], bias[o + 3]
            for q in range(0, inputs, 4):
                row = position * step + q
                x0, x1, x2, x3 = x[row], x[row + 1], x[row + 2], x[row + 3]
                w0, w1, w2, w3 = weight[q], weight[q + 1], weight[q + 2], weight[q + 3]
                for i in range(TILE):
                    y0, y1, y2, y3 = x0[i], x1[i], x2[i], x3[i]
                    a[i] += w0[o] * y0 + w1[o] * y1 + w2[o] * y2 + w3[o] * y3
                    b[i] += w0[o + 1] * y0 + w1[o + 1] * y1 + w2[o + 1] * y2 + w3[o + 1] * y3
                    c[i] += w0[o + 2] * y0 + w1[o + 2] * y1 + w2[o + 2] * y2 + w3[o + 2] * y3
                    d[i] += w0[o + 3] * y0 + w1[o + 3] * y1 + w2[o + 3] * y2 + w3[o + 3] * y3
            for j in range(4):
                target, found = after[at + o + j], sums[j]
                if pooled and position % 2:
                    for i in range(TILE):
                        target[i] = max(target[i], found[i])
                else:
                    for i in range(TILE):
                        target[i] = max(found[i], bias.dtype.type(0))


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def predict(  # type: ignore[no-untyped-def]
    rows, standard, linear, target, cells, layers, weights, biases, dense, constant, out
):  # pragma: no cover - compiled
    """Fill out (n,) float32 with the networks' sum, what lies under it, in the target's units.

    Parameters
    ----------
    rows : (n, cells x k), cell by cell
    standard : (4, cells x k) float64: mean, scale, and what a standardised value is held within;  linear : (cells x k,)
    target : mean and scale, of what networks and line give together
    layers : (l, 5) int64: rows of a position of the input, length, pooled or not, inputs, channels
    weights : (m, l, most inputs, most channels), biases : (m, l, most channels), of the type that is calculated in;  inputs and
        channels are filled up with zeros to multiples of four
    dense : (m, rows of the last layer);  constant : float64
    """
    n, columns = rows.shape
    k, most = columns // cells, 0
    for number in range(layers.shape[0]):
        most = max(most, (layers[number, 1] + 2) * layers[number, 4])
    first = np.zeros((columns + 2 * cells + 3, TILE), weights.dtype)
    one, two = np.zeros((most + 3, TILE), weights.dtype), np.zeros((most + 3, TILE), weights.dtype)
    sums, total, beyond = np.empty((4, TILE), weights.dtype), np.empty(TILE), np.empty(TILE)
    for start in range(0, n, TILE):
        size = min(TILE, n - start)
        total[:], beyond[:] = constant, 0
        for column in range(columns):
            row = first[(column % k + 1) * cells + column // k]
            mean, scale, low, high = standard[0, column], standard[1, column], standard[2, column], standard[3, column]
            for i in range(size):
                x = min(max((rows[start + i, column] - mean) / scale, low), high)
                total[i] += linear[column] * x
                beyond[i] = max(beyond[i], abs(x))
                row[i] = x
        for member in range(weights.shape[0]):
            x = first
            for number in range(layers.shape[0]):
                layer, after = layers[number], one if number % 2 == 0 else two
                inputs, channels = layer[3], layer[4]
                weight, bias = weights[member, number, :inputs, :channels], biases[member, number]
                _convolve(x, after, weight, bias, layer, sums)
                x = after
            given = sums[0]
            given[:] = 0
            for row in range(dense.shape[1]):
                factor, values = dense[member, row], x[channels + row]
                for i in range(TILE):
                    given[i] += factor * values[i]
            for i in range(TILE):
                total[i] += given[i]
        for i in range(size):
            # An infinite predictor is nothing to a rectifier that it does not reach.
            out[start + i] = total[i] * target[1] + target[0] if beyond[i] <= LARGEST else np.nan
