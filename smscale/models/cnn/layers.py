"""The shape of the convolutional network (Chen et al. 2023), and its prediction without torch.

Chen et al. 2023 (section 3.2) publish: four groups of two one-dimensional convolutions along the predictors, max pooling,
dropout. Our reading where they are silent: kernels of 3 with zero padding ("same"), ReLU, max pooling by 2 that keeps an
odd last element (ceil mode), so that any number of predictors works (12 -> 6 -> 3 -> 2 -> 1), then one dense linear output.

A patch network reads the cells around a cell as input channels of the first convolution: a convolution over rows,
columns and predictors whose kernel covers the patch and has one place to stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.kernels import cnn

if TYPE_CHECKING:
    import torch

    from smscale.models.cnn.forward import Forward

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

GROUPS = 4
#: In each group; then max pooling and dropout.
CONVOLUTIONS = 2
#: Predictors that one convolution sees; not published, assumed.
KERNEL = 3
#: Rows that are copied at once.
ROWS = 1 << 14


def pooled_length(predictors: int) -> int:
    """Positions that are left after the poolings of all groups."""
    return -(-predictors // 2**GROUPS)


@dataclass(frozen=True, eq=False)
class CNNPredictor:
    """Trained networks (m of them, whose outputs add up) as arrays; predicts without torch.

    A row has c * k columns: k predictors of the centre, then of each other cell of the patch (c = 1 without a patch).

    mean, scale : (c * k,) the standardiser;  target : (2,) mean and scale of the target
    low, high : (c * k,) standardised values that predictors are held within
    linear : (c * k,) coefficients of the ridge that the networks add to, zero where there is none
    plan, weights, biases, dense, constant : the networks as `kernels.cnn.predict` takes them
    """

    mean: Floats
    scale: Floats
    target: Floats
    low: Floats
    high: Floats
    linear: Floats
    cells: int
    plan: NDArray[np.int64]
    weights: Singles
    biases: Singles
    dense: Singles
    constant: float

    def predict(self, X: NDArray[np.floating[Any]]) -> Singles:
        """(n,) float32 for X (n, c * k) finite; memory is that of a tile. Not finite where float32 does not reach.

        Sums are of X's own precision, and the same wherever a row stands.
        """
        out = np.empty(len(X), np.float32)
        standard = np.stack([self.mean, self.scale, self.low, self.high])
        linear, target, plan = self.linear.copy(), self.target.copy(), self.plan.copy()
        weights, biases, dense = (part.astype(X.dtype) for part in (self.weights, self.biases, self.dense))
        for start in range(0, len(X), ROWS):
            # One layout, and copies of what may be read-only, that the kernel is compiled once.
            rows = np.array(X[start : start + ROWS], order="C")
            part = out[start : start + ROWS]
            cnn.predict(rows, standard, linear, target, self.cells, plan, weights, biases, dense, self.constant, part)
        return out

    def on_device(self, device: torch.device) -> Forward:
        """The networks with their weights on a torch device."""
        from smscale.models.cnn.forward import Forward

        return Forward(self, device)


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
    cells, predictors = weights[0].shape[2], mean.size // weights[0].shape[2]
    layers = _laid_out(weights, biases, dense, predictors)
    return CNNPredictor(mean, scale, target, low, high, linear, cells, *layers, float(constant[0]))


def _laid_out(
    weights: list[Singles], biases: list[Singles], dense: Singles, predictors: int
) -> tuple[NDArray[np.int64], Singles, Singles, Singles]:
    """plan (l, 5), weights (m, l, inputs, channels), biases (m, l, channels), dense (m, rows) of `kernels.cnn.predict`."""
    members, widest = len(dense), _fours(max(weight.shape[1] for weight in weights))
    most = _fours(KERNEL * max(widest, weights[0].shape[2]))
    packed = np.zeros((members, len(weights), most, widest), np.float32)
    bias = np.zeros((members, len(weights), widest), np.float32)
    plan, step, length = [], weights[0].shape[2], predictors
    for number, weight in enumerate(weights):
        _, channels, before, _ = weight.shape
        pooled = number % CONVOLUTIONS == CONVOLUTIONS - 1 and length > 1
        inputs, wide = _fours(KERNEL * step), _fours(channels)
        # (m, out, in, 3) -> (m, 3, in, out): a window has its positions outermost, `step` rows each
        window = np.zeros((members, KERNEL, step, wide), np.float32)
        window[:, :, :before, :channels] = weight.transpose(0, 3, 2, 1)
        packed[:, number, : KERNEL * step, :wide] = window.reshape(members, -1, wide)
        bias[:, number, :channels] = biases[number]
        plan.append((step, length, pooled, inputs, wide))
        step, length = wide, -(-length // 2) if pooled else length
    last = np.zeros((members, length, step), np.float32)
    last[:, :, :channels] = dense.reshape(members, length, channels)
    return np.array(plan, np.int64), packed, bias, last.reshape(members, -1)


def _fours(number: int) -> int:
    """Rounded up to a multiple of four."""
    return -(-number // 4) * 4


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
