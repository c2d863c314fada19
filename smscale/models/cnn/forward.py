"""The convolutional networks on a torch device, each convolution a product of two matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from smscale.kernels.cnn import LARGEST
from smscale.models.cnn.layers import KERNEL

if TYPE_CHECKING:
    from smscale.models.cnn.layers import CNNPredictor


class Layer(NamedTuple):
    """A convolution: weight (3 * step, channels) of a window of three positions of `step` rows each, bias (channels,)."""

    weight: Tensor
    bias: Tensor
    pooled: bool


class Forward:
    """The networks' weights where they multiply: what `CNNPredictor.predict` calculates, member by member.

    Standardiser and ridge in float64, as there: float32 would round away what is left of large means. Networks in float32.

    row_bytes : of what a row holds while it is calculated, beside itself
    """

    def __init__(self, model: CNNPredictor, device: torch.device):
        def there(values: NDArray[np.floating]) -> Tensor:
            return torch.tensor(values, device=device)

        self.mean, self.scale, self.low, self.high = map(there, (model.mean, model.scale, model.low, model.high))
        self.linear, self.constant, self.target = there(model.linear), model.constant, model.target.tolist()
        self.cells, self.dense = model.cells, there(model.dense)
        self.members = [
            [
                Layer(there(weight[: KERNEL * step, :wide]), there(bias[:wide]), bool(pooled))
                for (step, _, pooled, _, wide), weight, bias in zip(model.plan.tolist(), *member, strict=True)
            ]
            for member in zip(model.weights, model.biases, strict=True)
        ]
        columns, (_, length, *_) = model.mean.size, model.plan[0]
        standard = 8 * (columns + 2) + 4 * (length + 2) * model.cells
        self.row_bytes = int(standard + max(8 * columns, 4 * max(_held(*row) for row in model.plan)))

    def __call__(self, rows: Tensor) -> Tensor:
        """(n,) float32 for rows (n, c * k) float32, in predictor units; NaN where float32 does not reach."""
        standard = rows.double().sub_(self.mean).div_(self.scale).clamp_(self.low, self.high)
        total = (standard @ self.linear).add_(self.constant)
        within = standard.abs().amax(1) <= LARGEST
        first = standard.reshape(len(rows), self.cells, -1).transpose(1, 2)
        first = pad(first.float(), (0, 0, 1, 1))
        for layers, dense in zip(self.members, self.dense, strict=True):
            total += _network(first, layers) @ dense
        mean, scale = self.target
        return total.mul_(scale).add_(mean).float().masked_fill_(~within, torch.nan)


def _network(x: Tensor, layers: list[Layer]) -> Tensor:
    """(n, positions * channels) of the last layer, for x (n, positions + 2, channels): a position of zeros at either end."""
    for layer in layers:
        x = _convolved(x, *layer)
    return x[:, 1:-1].flatten(1)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, pooled: bool) -> Tensor:
    """max(0, convolution + bias), the larger of two positions where the layer pools; zeros at either end, as of x."""
    rows, positions, step = x.shape
    windows = x.flatten(1).unfold(1, KERNEL * step, step).reshape(-1, KERNEL * step)
    found = torch.addmm(bias, windows, weight).relu_().view(rows, positions - 2, -1)
    del windows
    if pooled:
        even = pad(found, (0, 0, 0, 1)) if positions % 2 else found  # an odd last one stays: nothing is below zero
        found = torch.maximum(even[:, ::2], even[:, 1::2])
        del even
    return pad(found, (0, 0, 1, 1))


def _held(step: int, length: int, pooled: int, inputs: int, wide: int) -> int:
    """Numbers that a layer holds for each row: what it reads, its windows and what it writes, or three copies of the last."""
    written = (length + 2) * wide
    return (length + 2) * step + max(KERNEL * length * step + length * wide, 3 * written if pooled else 2 * written)
