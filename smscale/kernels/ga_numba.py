"""The genetic algorithm's compiled engine: sums of squares and breeding on the CPU.

An individual is never split between threads, so results do not depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from smscale.kernels.ga_rules import (
    COLLAPSED,
    SLOTS,
    Draws,
    Floats,
    Floats32,
    Reals,
    Settings,
    bounds,
    cut,
    fitness_of,
    hidden_count,
)
from smscale.kernels.mlp import BLOCK, forward_block

_FAST = {"contract", "reassoc", "nsz"}

#: 1 - tanh 19.1 is below half a float64 rounding of 1.
TANH64_LIMIT = 19.1
#: exp(2x) - 1 is taken by a series at x / 64 and doubled so many times: |2x / 2^7| < 0.3.
DOUBLINGS = 7
#: Taylor coefficients 1/2! ... 1/12! of exp; the next term is below 3e-17 of the first at 0.3.
_E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12 = (
    float(1.0 / c) for c in np.cumprod(np.arange(1.0, 13.0))[1:]
)


@numba.njit(inline="always", fastmath={"contract"}, error_model="numpy")
def _tanh64(x: float) -> float:
    """tanh from expm1(2x) = e and expm1(2a) = expm1(a) (expm1(a) + 2): no branch, no table, so that it vectorises."""
    a = min(max(x, -TANH64_LIMIT), TANH64_LIMIT) * (2.0 / 2**DOUBLINGS)
    low = _E2 + a * (_E3 + a * (_E4 + a * (_E5 + a * (_E6 + a * _E7))))
    high = _E8 + a * (_E9 + a * (_E10 + a * (_E11 + a * _E12)))
    square = a * a
    e = a + square * (low + square * square * square * high)
    for _ in range(DOUBLINGS):
        e = e * (e + 2.0)
    return e / (e + 2.0)


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def forward_block64(planes: Floats, start: int, size: int, neurons: Floats, bias: float, work: Floats) -> None:
    """`mlp.forward_block` in float64, without a linear part: network of one block of samples, left in work[0, :size]."""
    h, k = neurons.shape[0], planes.shape[0]
    total, a = work[0], work[1]
    for i in range(size):
        total[i] = bias
    for j in range(h):
        for i in range(size):
            a[i] = neurons[j, k]
        for c in range(k):
            w, plane = neurons[j, c], planes[c, start : start + size]
            for i in range(size):
                a[i] += w * plane[i]
        v = neurons[j, k + 1]
        for i in range(size):
            total[i] += v * _tanh64(a[i])


@numba.njit(inline="always", fastmath=_FAST, error_model="numpy")
def _forward_block32(
    planes: Floats32, start: int, size: int, neurons: Floats32, bias: np.float32, work: Floats32
) -> None:
    """`mlp.forward_block` without its linear part."""
    forward_block(planes, start, size, neurons, bias, neurons[0, :0], work)


def _compiled(forward: Any, real: type) -> Any:
    """The sums of squares of some individuals, for one precision.

    Not cached, as mlp._forward: a caller of other compiled kernels rounds differently when it is loaded from numba's cache.
    """

    @numba.njit(nogil=True, fastmath=_FAST, error_model="numpy")
    def sse_range(
        planes: Reals,
        y: Reals,
        weight: Reals,
        population: Reals,
        hidden: NDArray[np.int64],
        start: int,
        stop: int,
        out: Floats,
    ) -> None:
        k, n = planes.shape
        genes = population.shape[1]
        work: Any = np.empty((3, BLOCK), real)
        for p in range(start, stop):
            chromosome = population[p]
            neurons = chromosome[: hidden[p] * (k + 2)].reshape(hidden[p], k + 2)
            total = 0.0
            for first in range(0, n, BLOCK):
                size = min(BLOCK, n - first)
                forward(planes, first, size, neurons, chromosome[genes - 2], work)
                for i in range(size):
                    error = float(work[0, i] - y[first + i])
                    total += weight[first + i] * error * error
            out[p] = total

    return sse_range


_SSE_RANGE = {
    np.dtype(np.float32): _compiled(_forward_block32, np.float32),
    np.dtype(np.float64): _compiled(forward_block64, np.float64),
}


def population_sse(
    planes: Reals,
    y: Reals,
    weight: Reals,
    population: Reals,
    max_hidden: int,
    pool: ThreadPoolExecutor | None = None,
    tasks: int = 1,
) -> Floats:
    """Weighted sum of squared errors of every network.

    Parameters
    ----------
    planes : (k, n) float32 or float64, C order, predictors
    y, weight : (n,) of the same type
    population : (p, g) of the same type, C order
    pool, tasks : threads that share the individuals

    Returns
    -------
    (p,) float64
    """
    hidden = hidden_count(population, max_hidden)
    out = np.empty(len(population))
    sse_range = _SSE_RANGE[population.dtype]
    if pool is None or tasks < 2:
        sse_range(planes, y, weight, population, hidden, 0, len(population), out)
        return out
    cuts = np.searchsorted(np.cumsum(hidden), np.linspace(0, hidden.sum(), tasks + 1)[1:-1])
    edges = [0, *cuts.tolist(), len(population)]
    futures = [
        pool.submit(sse_range, planes, y, weight, population, hidden, a, b, out) for a, b in pairwise(edges) if b > a
    ]
    for future in futures:
        future.result()
    return out


@numba.njit(nogil=True, cache=True, error_model="numpy")
def adapted(fitness: float, best: float, mean: float, low: float, high: float, least: float) -> float:
    """Srinivas & Patnaik, equations 3 and 4: `low` below the mean, from `high` at the mean to `least` at the best.

    `low` for all of a collapsed population, so that mutation stirs it.
    """
    if fitness < mean or best - mean <= COLLAPSED * best:
        return low
    return max(least, high * (best - fitness) / (best - mean))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mutated(value: float, lower: float, upper: float, step: float, power: float) -> float:
    """Non-uniform mutation: a step to either bound whose reach, 1 - r^power, shrinks with `power` (1 to 0)."""
    if step < 0.5:
        return value + (upper - value) * (1.0 - (2.0 * step) ** power)
    return value + (lower - value) * (1.0 - (2.0 * step - 1.0) ** power)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _breed(
    parents: Reals,
    fitness: Floats,
    chosen: NDArray[np.int64],
    draws: Draws,
    lower: Floats32,
    upper: Floats32,
    crossover: tuple[float, float],
    mutation: tuple[float, float, float],
    power: float,
    children: Reals,
    twin: NDArray[np.int64],
) -> None:
    """Children (m, g), and of which parent each is an exact copy (-1: of none)."""
    count, genes = children.shape
    best, mean = fitness.max(), fitness.mean()
    for child in range(count):
        pair = child // 2
        own, other = chosen[child], chosen[child ^ 1]
        fitter = max(fitness[own], fitness[other])
        blend = 0.0
        if draws.crossover[pair] < adapted(fitter, best, mean, crossover[0], crossover[1], 0.0):
            blend = draws.blend[pair]
        rate = adapted(fitness[own], best, mean, mutation[0], mutation[1], mutation[2])
        same = True
        for g in range(genes):
            value = parents[own, g] + blend * (parents[other, g] - parents[own, g])
            if draws.mutation[child, g] < rate:
                value = _mutated(value, lower[g], upper[g], float(draws.step[child, g]), power)
            children[child, g] = min(max(value, lower[g]), upper[g])
            same = same and children[child, g] == parents[own, g]
        twin[child] = own if same else -1


def chosen_parents(fitness: Floats, parents: Floats) -> NDArray[np.int64]:
    """Roulette: the individual at each draw, with a share of the wheel in proportion to its fitness.

    Equal shares where no fitness is above 0.
    """
    with np.errstate(invalid="ignore"):
        slots = np.nan_to_num(fitness / fitness.max() * SLOTS, nan=1.0).astype(np.int64)
    wheel = np.cumsum(slots)
    places = (parents * wheel[-1]).astype(np.int64)
    return np.minimum(np.searchsorted(wheel, places, side="right"), len(fitness) - 1)


def next_population(
    population: Reals, sse: Floats, draws: Draws, progress: float, k: int, settings: Settings
) -> tuple[Reals, Floats]:
    """One generation: the elite first, then children.

    Parameters
    ----------
    population : (p, g) float32 or float64; sse : (p,)
    draws : of one generation
    progress : 0 to 1, share of the generations that are over

    Returns
    -------
    (p, g) the population; (p,) the SSE of its elite and of exact copies of parents, NaN for all others
    """
    fitness = fitness_of(sse)
    elite = np.argsort(sse, kind="stable")[: settings.elites]
    out, twin = np.empty_like(population), np.empty(settings.children, np.int64)
    out[: len(elite)] = population[elite]
    _breed(
        population,
        fitness,
        chosen_parents(fitness, draws.parents),
        draws,
        *bounds(k, settings),
        (settings.crossover, settings.crossover_fit),
        (settings.mutation, settings.mutation_fit, settings.mutation_least),
        (1.0 - progress) ** settings.shrink,
        out[len(elite) :],
        twin,
    )
    return out, np.concatenate([sse[elite], np.where(twin < 0, np.nan, sse[twin])])


class Numba:
    """The engine: one generation at a time, its individuals shared by threads."""

    block = 1

    def __init__(
        self,
        data: tuple[Reals, Reals, Reals],
        first: Floats32,
        settings: Settings,
        pool: ThreadPoolExecutor,
        threads: int,
    ):
        self.data = data
        self.settings = settings
        self.pool = pool
        # Four tasks a thread even out networks of different size.
        self.tasks = 4 * threads if threads > 1 else 1
        population = first.astype(data[0].dtype)
        self.state = population, self._sse(population)

    def empty(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def advance(self, draws: Draws, progress: Sequence[float]) -> Floats:
        rows = np.empty((len(progress), 4))
        for i, share in enumerate(progress):
            population, sse = next_population(*self.state, cut(draws, i), share, len(self.data[0]), self.settings)
            unknown = np.isnan(sse)
            sse[unknown] = self._sse(population[unknown])
            self.state = population, sse
            rows[i] = self.summary()
        return rows

    def summary(self) -> Floats:
        population, sse = self.state
        fitness = fitness_of(sse)
        best = int(np.argmin(sse))
        hidden = hidden_count(population[best : best + 1], self.settings.max_hidden)
        return np.array([[fitness[best], fitness.mean(), sse[best], hidden[0]]])

    def result(self) -> tuple[Reals, Floats]:
        return self.state

    def _sse(self, population: Reals) -> Floats:
        return population_sse(*self.data, population, self.settings.max_hidden, self.pool, self.tasks)
