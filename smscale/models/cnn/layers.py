"""The shape of the convolutional network (Chen et al. 2023), and its prediction with NumPy alone.

Chen et al. 2023 (section 3.2) publish: four groups of two one-dimensional convolutions along the predictors, max pooling,
dropout. Our reading where they are silent: kernels of 3 with zero padding ("same"), ReLU, max pooling by 2 that keeps an
odd last element (ceil mode), so that any number of predictors works (12 -> 6 -> 3 -> 2 -> 1), then one dense linear output.

A patch network reads the cells around a cell as input channels of the first convolution: a convolution over rows,
columns and predictors whose kernel covers the patch and has one place to stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smscale.errors import InputError

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

GROUPS = 4
#: In each group; then max pooling and dropout.
CONVOLUTIONS = 2
#: Predictors that one convolution sees; not published, assumed.
KERNEL = 3
#: Rows that `CNNPredictor.predict` holds at once: the widest layer of the default networks is then 1 MB, inside L2.
ROWS = 512
#: Standardised predictors beyond this have no room in float32.
LARGEST = float(np.finfo(np.float32).max)


def pooled_length(predictors: int) -> int:
    """Positions that are left after the poolings of all groups."""
    return -(-predictors // 2**GROUPS)


@dataclass(frozen=True, eq=False)
class CNNPredictor:
    """Trained networks (m of them, whose outputs add up) as arrays; predicts with NumPy and its BLAS only.

    A row has c * k columns: k predictors of the centre, then of each other cell of the patch (c = 1 without a patch).

    mean, scale : (c * k,) the standardiser;  target : (2,) mean and scale of the target
    low, high : (c * k,) standardised values that predictors are held within
    linear : (c * k,) coefficients of the ridge that the networks add to, zero where there is none
    convolutions : weights (m, 3 * channels in, channels out) float32 and bias (m, 1, 1, channels out), in order
    dense : (m, positions * channels) and the constant
    """

    mean: Floats
    scale: Floats
    target: Floats
    low: Floats
    high: Floats
    linear: Floats
    cells: int
    convolutions: tuple[tuple[Singles, Singles], ...]
    dense: tuple[Singles, float]

    def predict(self, X: NDArray[np.floating[Any]]) -> Singles:
        """(n,) float32 for X (n, c * k) finite; memory is that of `ROWS` rows. Not finite where float32 does not reach.

        Sums are of X's own precision: float32 is the fast one, and float64 leaves no trace of a row's place among others.
        """
        out = np.empty(len(X), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(X), ROWS):
                standard = np.clip((X[start : start + ROWS] - self.mean) / self.scale, self.low, self.high)
                values = self.added(standard, X.dtype) + standard @ self.linear
                # An infinite predictor is nothing to a rectifier that it does not reach.
                values[np.abs(standard).max(axis=1) > LARGEST] = np.nan
                out[start : start + ROWS] = values * self.target[1] + self.target[0]
        return out

    def added(self, standard: Floats, precision: np.dtype[Any]) -> Floats:
        """What the networks add to the linear part, (n,) for standardised (n, c * k), in standardised units."""
        inside = standard.astype(precision)
        padded = _padded(inside.reshape(1, len(inside), self.cells, -1).swapaxes(2, 3))
        for number, (weight, bias) in enumerate(self.convolutions):
            padded = _convolve(padded, weight, bias, pool=number % CONVOLUTIONS == CONVOLUTIONS - 1)
        dense, constant = self.dense
        dense = dense.astype(precision)[:, :, None]
        each = padded[:, :, 1:-1].reshape(len(dense), len(inside), -1) @ dense
        return each[:, :, 0].sum(axis=0, dtype=np.float64) + constant


def _padded(values: NDArray[Any]) -> NDArray[Any]:
    """(m, n, length, channels) with a zero before and after, (m, n, length + 2, channels)."""
    members, rows, length, channels = values.shape
    out = np.zeros((members, rows, length + 2, channels), dtype=values.dtype)
    out[:, :, 1:-1] = values
    return out


def _convolve(padded: NDArray[Any], weight: Singles, bias: Singles, *, pool: bool) -> NDArray[Any]:
    """max(0, convolution + bias), pooled by 2 in ceil mode where asked; padded in, padded out.

    A window of three positions is contiguous in a row, so each position is one matrix product on a strided view: im2col
    without the copy. Pooling comes before the bias and the ReLU, which change no order.
    """
    before, rows, length, channels = padded.shape[0], padded.shape[1], padded.shape[2] - 2, padded.shape[3]
    out = np.zeros((len(weight), rows, length + 2, weight.shape[2]), dtype=padded.dtype)
    for position in range(length):
        window = padded[:, :, position : position + KERNEL].reshape(before, rows, KERNEL * channels)
        np.matmul(window, weight.astype(padded.dtype, copy=False), out=out[:, :, position + 1])
    inside = out[:, :, 1:-1]
    if pool and length > 1:
        even = length // 2 * 2
        np.maximum(inside[:, :, 0:even:2], inside[:, :, 1:even:2], out=inside[:, :, 0:even:2])
        out = _padded(inside[:, :, ::2])
        inside = out[:, :, 1:-1]
    inside += bias
    np.maximum(inside, 0, out=inside)
    return out


def cnn_from_arrays(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any] | None = None) -> CNNPredictor:
    """The predictor of the arrays of `cnn_to_arrays`; `meta` is not needed.

    weight_i (m, out, in, 3) and bias_i (m, out) of the eight convolutions, dense_weight (m, positions * channels), positions
    outermost, dense_bias (1,); mean, scale, low, high, linear (c * k,), target (2,).

    Raises
    ------
    InputError : an array is missing or its shape does not fit the others.
    """
    try:
        weights = [np.asarray(arrays[f"weight_{number}"], np.float32) for number in range(GROUPS * CONVOLUTIONS)]
        biases = [np.asarray(arrays[f"bias_{number}"], np.float32) for number in range(GROUPS * CONVOLUTIONS)]
        dense = np.asarray(arrays["dense_weight"], np.float32)
        constant = np.asarray(arrays["dense_bias"], np.float32)
        names = ("mean", "scale", "target", "low", "high", "linear")
        mean, scale, target, low, high, linear = (np.asarray(arrays[name], np.float64) for name in names)
    except KeyError as error:
        raise InputError(f"a cnn artefact lacks the array {error}; train and save it again") from None
    columns = (mean, scale, low, high, linear)
    if not _fit(weights, biases, dense, constant, target, [values.shape for values in columns]):
        raise InputError("the arrays of a cnn artefact do not fit one another; train and save it again")
    convolutions = tuple(
        # (m, out, in, 3) -> (m, 3 * in, out): a window of a row has its positions outermost
        (
            np.ascontiguousarray(weight.transpose(0, 3, 2, 1)).reshape(len(weight), -1, weight.shape[1]),
            bias[:, None, None],
        )
        for weight, bias in zip(weights, biases, strict=True)
    )
    cells = weights[0].shape[2]
    return CNNPredictor(mean, scale, target, low, high, linear, cells, convolutions, (dense, float(constant[0])))


def _fit(
    weights: list[Singles],
    biases: list[Singles],
    dense: Singles,
    constant: Singles,
    target: Floats,
    columns: list[tuple[int, ...]],
) -> bool:
    if any(weight.ndim != 4 for weight in weights) or len(set(columns)) != 1 or len(columns[0]) != 1:
        return False
    members, _, cells, _ = weights[0].shape
    outputs = [weight.shape[1] for weight in weights]
    inputs = [cells, *outputs[:-1]]
    shapes = [(members, after, before, KERNEL) for before, after in zip(inputs, outputs, strict=True)]
    predictors, rest = divmod(columns[0][0], max(cells, 1))
    return (
        [weight.shape for weight in weights] == shapes
        and [bias.shape for bias in biases] == [(members, after) for after in outputs]
        and predictors > 0
        and rest == 0
        and dense.shape == (members, pooled_length(predictors) * outputs[-1])
        and constant.shape == (1,)
        and target.shape == (2,)
    )
