"""Levenberg-Marquardt on torch tensors: the networks of `lm_network` in one batch, on CUDA or the CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from smscale.errors import InputError
from smscale.kernels import lm
from smscale.kernels.lm_table import Table, input_products, layout

#: Bytes of the Jacobians formed at once, of all networks of the batch together.
BUDGET = 1 << 28
#: Samples summed in one product before the float64 sum over chunks: as few for float32 as for the memory.
LARGEST_CHUNK = 4096


def device_of(name: str | None) -> torch.device:
    """The device of that name; None takes "cuda" where there is one."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} asked for, but torch sees no GPU here; use engine='numpy' or device='cpu'")
    return device


class DenseProblem(lm.DenseProblem):
    """`lm.DenseProblem` on torch; the residual function still gets and gives NumPy arrays."""

    def __init__(self, residual: lm.Residual, device: str | None = None) -> None:
        super().__init__(residual, torch)
        self.device = device_of(device)

    def array(self, values: ArrayLike) -> Tensor:
        return torch.as_tensor(np.asarray(values), device=self.device)

    def host(self, values: Tensor) -> NDArray:
        return values.cpu().numpy()


class Networks:
    """The problem of `lm_numba.Networks`, all networks at once, padded to the widest; those that have ended are left out."""

    xp = torch

    def __init__(self, table: Table, dtype: str, device: str | None = None) -> None:
        self.table, self.device, self.dtype = table, device_of(device), getattr(torch, dtype)
        self.form = layout(table.k, table.width, table.linear)
        self.planes, self.y = self._work(table.planes), self._work(table.y)
        self.products = self._work(input_products(table.planes))
        self.weight, self.validation = self.array(table.weight), self.array(table.validation)
        self.decay = self.array(table.decay)[:, None]
        self.index, self.along = self.array(self.form.matrix), self.array(self.form.gradient)
        self.first, self.second = self.array(self.form.pairs)
        count, p = len(table.hidden), table.parameters
        self.matrix = torch.zeros((count, p, p), dtype=torch.float64, device=self.device)
        self.gradient = torch.zeros((count, p), dtype=torch.float64, device=self.device)
        size = BUDGET // (count * (p + self.form.pairs.shape[1]) * self.planes.element_size())
        self.chunk = min(max(size, 256), LARGEST_CHUNK)

    def array(self, values: ArrayLike) -> Tensor:
        return torch.tensor(np.asarray(values), device=self.device)

    def _work(self, values: ArrayLike) -> Tensor:
        return torch.tensor(np.asarray(values), dtype=self.dtype, device=self.device)

    def cost(self, x: Tensor, which: Tensor) -> Tensor:
        rows = which.nonzero()[:, 0]
        squares = (self.weight[rows] * self._errors(x[rows]) ** 2).sum(-1)
        ridge = self.decay[rows, 0] * (x[rows, :-1] ** 2).sum(-1)
        return torch.full_like(x[:, 0], torch.nan).index_copy(0, rows, 0.5 * (squares + ridge))

    def mse(self, x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean squared errors (r,) on the training and on the validation samples; NaN where there are none."""
        rows = which.nonzero()[:, 0]
        squares = self._errors(x[rows]) ** 2
        nothing = torch.full_like(x[:, 0], torch.nan)
        first, second = (
            nothing.index_copy(0, rows, (weight[rows] * squares).sum(-1) / weight[rows].sum(-1))
            for weight in (self.weight, self.validation)
        )
        return first, second

    def linearise(self, x: Tensor, which: Tensor) -> Tensor:
        rows = which.nonzero()[:, 0]
        if rows.numel():
            self.matrix[rows], self.gradient[rows] = self.normal_equations(x[rows], rows)
        return self.gradient

    def step(self, damping: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        rows = which.nonzero()[:, 0]
        matrix, gradient, damp = self.matrix[rows], self.gradient[rows], damping[rows]
        matrix.diagonal(dim1=-2, dim2=-1).add_(damp[:, None])
        factor, failed = torch.linalg.cholesky_ex(matrix)
        found = torch.cholesky_solve(-gradient[:, :, None], factor)[:, :, 0]
        fall = 0.5 * (damp * (found * found).sum(-1) - (found * gradient).sum(-1))
        move = torch.zeros_like(self.gradient).index_copy(0, rows, found)
        return move, torch.full_like(damping, -1.0).index_copy(0, rows, torch.where(failed == 0, fall, -1.0))

    def normal_equations(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """J'WJ + decay (b, p, p) and the gradients (b, p) of the networks `rows` (b,) at parameters x (b, p)."""
        neurons, alone = self._split(x)
        batch, h, m = len(x), neurons.shape[1], len(self.planes)
        crossed = x.new_zeros((batch, x.shape[1], self.form.columns))
        slopes = x.new_zeros((batch, self.form.pairs.shape[1], len(self.products)))
        for start in range(0, len(self.y), self.chunk):
            part = slice(start, start + self.chunk)
            planes, weight = self.planes[:, part], self.weight[rows, part].to(self.dtype)[:, None]
            g = torch.tanh(neurons[:, :, :-1] @ planes)
            d = neurons[:, :, -1:] * (1 - g * g)
            ones = torch.ones_like(g[:, :1])
            error = (neurons[:, None, :, -1] @ g) + alone[:, None] @ planes[m - alone.shape[1] :] - self.y[part]
            own = torch.cat([d[:, :, None] * planes, g[:, :, None]], 2).reshape(batch, h * (m + 1), -1)
            jacobian = torch.cat([own, planes[m - alone.shape[1] :].expand(batch, -1, -1)], 1)
            crossed[..., : h + 2] += jacobian @ (weight * torch.cat([g, ones, error], 1)).mT
            factors = torch.cat([d, ones], 1) if self.table.linear else d
            slopes += ((weight * factors)[:, self.first] * factors[:, self.second]) @ self.products[:, part].mT
        flat = torch.cat([crossed.flatten(1), slopes.flatten(1)], 1)
        matrix, gradient = flat[:, self.index], flat[:, self.along]
        matrix.diagonal(dim1=-2, dim2=-1)[:, :-1].add_(self.decay[rows])
        gradient[:, :-1] += self.decay[rows] * x[:, :-1]
        return matrix, gradient

    def _errors(self, x: Tensor) -> Tensor:
        """f(x) - y (b, n), float64."""
        neurons, alone = self._split(x)
        found = x.new_empty((len(x), len(self.y)))
        for start in range(0, len(self.y), self.chunk):
            part = slice(start, start + self.chunk)
            planes = self.planes[:, part]
            values = neurons[:, None, :, -1] @ torch.tanh(neurons[:, :, :-1] @ planes)
            found[:, part] = values[:, 0] + alone @ planes[len(planes) - alone.shape[1] :] - self.y[part]
        return found

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Neurons (b, h, m + 1) and what stands alone (b, m) or (b, 1), in the dtype of the work."""
        cut = self.table.width * (self.table.k + 2)
        work = x.to(self.dtype)
        return work[:, :cut].reshape(len(x), self.table.width, self.table.k + 2), work[:, cut:]
