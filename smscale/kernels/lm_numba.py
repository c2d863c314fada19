"""Levenberg-Marquardt of networks on the CPU: normal equations from compiled code and BLAS, one network one task."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController

from smscale.kernels.lm import Floats
from smscale.kernels.lm_table import Table, input_products, layout

#: Samples whose products are formed at once: of 20 neurons and 12 predictors they fill 1 MB in float32, a second-level cache.
CHUNK = 512


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _form(planes, y, weight, start, neurons, alone, linear, rows, right, pairs):  # type: ignore[no-untyped-def]
    """From g, left in right[:h]: J' in rows (p, c); [g, 1, error] weighted in right; the weighted pairs of d in pairs.

    No other kernel is called, so that it rounds alike compiled afresh or loaded from numba's cache.
    """
    h, m, size = neurons.shape[0], planes.shape[0], rows.shape[1]
    factors = h + 1 if linear else h
    d = np.ones((h + 1, size), rows.dtype)
    weighted = np.empty(size, rows.dtype)
    for i in range(size):
        right[h + 1, i] = alone[alone.size - 1] - y[start + i]
    for a in range(alone.size - 1):
        for i in range(size):
            right[h + 1, i] += alone[a] * planes[a, start + i]
    for j in range(h):
        v, first = neurons[j, m], j * (m + 1)
        for i in range(size):
            g = right[j, i]
            rows[first + m, i] = g
            d[j, i] = v - v * g * g
            right[h + 1, i] += v * g
            right[j, i] = weight[start + i] * g
        for a in range(m):
            for i in range(size):
                rows[first + a, i] = d[j, i] * planes[a, start + i]
    for a in range(m - alone.size, m):
        for i in range(size):
            rows[rows.shape[0] - m + a, i] = planes[a, start + i]
    for i in range(size):
        right[h, i] = weight[start + i]
        right[h + 1, i] *= weight[start + i]
    q = 0
    for j in range(factors):
        for i in range(size):
            weighted[i] = weight[start + i] * d[j, i]
        for other in range(j, factors):
            for i in range(size):
                pairs[q, i] = weighted[i] * d[other, i]
            q += 1


class Networks:
    """The problem on the CPU: one network is one task, with its own width, so a result depends on no other and no thread.

    `dtype` is that of the work per sample; sums over chunks of samples, the linear systems and the costs are float64.
    """

    xp = np

    def __init__(self, table: Table, dtype: str, threads: int) -> None:
        self.table, self.threads = table, threads
        self.planes, self.y, self.weight = (np.asarray(a, dtype) for a in (table.planes, table.y, table.weights))
        self.products = input_products(self.planes)
        starts = np.arange(0, len(table.y), CHUNK)
        self.starts = [starts[np.add.reduceat(weight, starts) > 0].tolist() for weight in table.weights]
        self.totals = [[weight.sum() for weight in side] for side in (table.weights, table.validations)]
        self.own = [table.own(int(hidden)) for hidden in table.hidden]
        self.matrices: dict[int, Floats] = {}
        self.last: dict[int, tuple[Floats, tuple[float, float]]] = {}
        self.gradient = np.zeros((len(table.hidden), table.parameters))

    def array(self, values: ArrayLike) -> NDArray[Any]:
        return np.asarray(values)

    def cost(self, x: Floats, which: NDArray[np.bool_]) -> Floats:
        found = np.full(len(x), np.nan)

        def one(i: int) -> None:
            # Without the padding: how a product of zeros is summed depends on the widest network of the batch.
            own = x[i, self.own[i][:-1]]
            found[i] = 0.5 * (self._squares(x[i], i)[0] + self.table.decay[i] * (own @ own))

        self._each(one, which)
        return found

    def mse(self, x: Floats, which: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Weighted mean squared errors (r,) on the training and on the validation samples; NaN where there are none."""
        found = np.full((2, len(x)), np.nan)

        def one(i: int) -> None:
            for side, squares in enumerate(self._squares(x[i], i)):
                total = self.totals[side][self.table.member[i]]
                if total > 0:
                    found[side, i] = squares / total

        self._each(one, which)
        return found[0], found[1]

    def linearise(self, x: Floats, which: NDArray[np.bool_]) -> Floats:
        def one(i: int) -> None:
            self.matrices[i], self.gradient[i, self.own[i]] = self.normal_equations(x[i], i)

        self._each(one, which)
        return self.gradient

    def step(self, damping: Floats, which: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        move, predicted = np.zeros_like(self.gradient), np.full(len(damping), -1.0)

        def one(i: int) -> None:
            matrix, gradient = self.matrices[i].copy(), self.gradient[i, self.own[i]]
            matrix.flat[:: len(matrix) + 1] += damping[i]
            try:
                factor = np.linalg.cholesky(matrix)  # leaves the interpreter to the other threads, as scipy's does not
            except np.linalg.LinAlgError:
                return
            found = -scipy.linalg.cho_solve((factor, True), gradient, check_finite=False)
            move[i, self.own[i]] = found
            predicted[i] = 0.5 * (damping[i] * (found @ found) - found @ gradient)

        self._each(one, which)
        return move, predicted

    def normal_equations(self, parameters: Floats, i: int) -> tuple[Floats, Floats]:
        """J'WJ + decay and the gradient of network i at parameters (p,): (q, q) and (q,) of its own q parameters."""
        table, own = self.table, self.own[i]
        form = layout(table.k, int(table.hidden[i]), table.linear)
        neurons, alone = self._split(parameters, i)
        crossed, slopes = np.zeros((own.size, form.columns)), np.zeros((form.pairs.shape[1], len(self.products)))
        count = own.size + form.columns + len(slopes)
        work = np.empty(count * min(CHUNK, len(self.y)), self.planes.dtype)
        weight = self.weight[table.member[i]]
        for start in self.starts[table.member[i]]:
            part = slice(start, start + CHUNK)
            size = len(self.y[part])
            block = work[: count * size].reshape(count, size)
            rows, right, pairs = block[: own.size], block[own.size : -len(slopes)], block[-len(slopes) :]
            hidden = right[: len(neurons)]
            np.tanh(np.matmul(neurons[:, :-1], self.planes[:, part], out=hidden), out=hidden)
            right[len(neurons) + 2 :] = 0
            _form(self.planes, self.y, weight, start, neurons, alone, table.linear, rows, right, pairs)
            crossed += rows @ right.T
            slopes += pairs @ self.products[:, part].T
        flat = np.concatenate([crossed.ravel(), slopes.ravel()])
        matrix, gradient = flat.take(form.matrix), flat.take(form.gradient)
        matrix.flat[: -1 : own.size + 1] += table.decay[i]
        gradient[:-1] += table.decay[i] * parameters[own[:-1]]
        return matrix, gradient

    def _squares(self, parameters: Floats, i: int) -> tuple[float, float]:
        """Weighted sums of (f(x) - y)^2 of network i over the training and over the validation samples.

        Kept, as a step's cost and its errors are asked for one after the other.
        """
        last = self.last.get(i)
        if last is not None and np.array_equal(last[0], parameters):
            return last[1]
        squares, member = self._errors(parameters, i) ** 2, self.table.member[i]
        sums = float(self.table.weights[member] @ squares), float(self.table.validations[member] @ squares)
        self.last[i] = parameters.copy(), sums
        return sums

    def _errors(self, parameters: Floats, i: int) -> Floats:
        neurons, alone = self._split(parameters, i)
        found = np.empty(len(self.y))
        for start in range(0, found.size, CHUNK):
            planes = self.planes[:, start : start + CHUNK]
            values = neurons[:, -1] @ np.tanh(neurons[:, :-1] @ planes) + alone @ planes[-alone.size :]
            found[start : start + CHUNK] = values - self.y[start : start + CHUNK]
        return found

    def _split(self, parameters: Floats, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Neurons (h, m + 1) and what stands alone (m,) or (1,), in the dtype of the work."""
        own = parameters[self.own[i]].astype(self.planes.dtype)
        cut = int(self.table.hidden[i]) * (self.table.k + 2)
        return own[:cut].reshape(-1, self.table.k + 2), own[cut:]

    def _each(self, task: Callable[[int], None], which: NDArray[np.bool_]) -> None:
        """Do a task for every network of `which`; BLAS on one thread, as more would change the order of its sums.

        Threads, this one among them, take networks off one list: a task is too short for a queue.
        """
        numbers = np.flatnonzero(which).tolist()
        waiting = iter(numbers)

        def work() -> None:
            with np.errstate(over="ignore", invalid="ignore"):
                for number in waiting:
                    task(number)

        others = min(self.threads, len(numbers)) - 1
        with _blas().limit(limits=1, user_api="blas"):
            if others < 1:
                work()
                return
            with ThreadPoolExecutor(others) as pool:
                helpers = [pool.submit(work) for _ in range(others)]
                work()
                for helper in helpers:
                    helper.result()


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
