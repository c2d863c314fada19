"""The GABP network on a torch device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

if TYPE_CHECKING:
    from smscale.models.gabp.network import Network


class Forward:
    """A network's weights where they multiply, in float32: what `Network.predict` calculates, with the device's own tanh.

    row_bytes : of what a row holds while it is calculated, beside itself
    """

    def __init__(self, network: Network, device: torch.device):
        def there(values: ArrayLike) -> Tensor:
            return torch.tensor(np.asarray(values, np.float32), device=device)

        self.w1, self.b1, self.w2, self.linear = map(there, (network.w1, network.b1, network.w2, network.linear))
        self.b2, self.shift = there(network.b2), there(network.shift)
        self.lower, self.upper = there(network.lower - network.shift), there(network.upper - network.shift)
        predictors, hidden = network.w1.shape
        self.row_bytes = 4 * (predictors + max(predictors, hidden + 2))

    def __call__(self, rows: Tensor) -> Tensor:
        """(n,) float32 for rows (n, k) float32, in predictor units."""
        held = torch.clamp(rows - self.shift, self.lower, self.upper)
        hidden = torch.addmm(self.b1, held, self.w1).tanh_()
        return (held @ self.linear).add_(hidden @ self.w2).add_(self.b2)
