"""A genetic algorithm over whole networks: weights, thresholds and the number of hidden neurons, all individuals at once.

A chromosome holds the largest network that is allowed, neuron after neuron (k weights, threshold, output weight), then
the output threshold, then the number of neurons as a real gene: neurons beyond it are masked, and cost nothing.
Operators: roulette selection with elitism on fitness 1/SSE, arithmetic crossover, non-uniform mutation (Michalewicz 1996,
Genetic Algorithms + Data Structures = Evolution Programs, ch. 6), crossover and mutation probabilities that fall as an
individual's fitness rises above the mean (Srinivas & Patnaik 1994, doi:10.1109/21.286385, equations 3 and 4).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from smscale.kernels.mlp import BLOCK, forward_block

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

#: SSE below this counts as this: the fitness of a perfect network stays finite.
SMALLEST_SSE = 1e-30


@dataclass(frozen=True)
class Settings:
    """What the algorithm may choose from, and how long it may take.

    Probabilities are those of Srinivas & Patnaik: `crossover` and `mutation` are k3 and k4 (below-average individuals),
    `crossover_fit` and `mutation_fit` are k1 and k2 (scaled by how far below the best an individual is).
    """

    population: int = 100
    generations: int = 300
    max_hidden: int = 20
    min_hidden: int = 2
    bound: float = 2.0
    spread: float = 0.2
    crossover: float = 0.9
    crossover_fit: float = 0.9
    mutation: float = 0.05
    mutation_fit: float = 0.02
    shrink: float = 2.0
    elite: int = 5
    plateau: int = 100
    tolerance: float = 1e-3


class Draws(NamedTuple):
    """The random numbers of one generation, uniform in [0, 1): m children, g genes."""

    parents: Floats
    crossover: Floats
    blend: Floats
    mutation: Floats32
    step: Floats32


class Trace(NamedTuple):
    """One entry per generation, the first population's included."""

    best: Floats
    mean: Floats
    sse: Floats
    hidden: NDArray[np.int64]


class Result(NamedTuple):
    """The last population, best individual first; fitness is 1/SSE."""

    population: Floats32
    sse: Floats
    trace: Trace
    stopped: str


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gene_count(k: int, max_hidden: int) -> int:
    """Length of a chromosome for k predictors."""
    return max_hidden * (k + 2) + 2


def hidden_count(population: Floats32, max_hidden: int) -> NDArray[np.int64]:
    """Number of neurons of each chromosome: its last gene, rounded down."""
    return np.clip(np.floor(population[:, -1]).astype(np.int64), 1, max_hidden)


def network(chromosome: Floats32, k: int) -> tuple[Floats, Floats, Floats, float]:
    """w1 (k, h), b1 (h,), w2 (h,), b2 of one chromosome, float64, without its masked neurons."""
    max_hidden = (chromosome.size - 2) // (k + 2)
    h = int(hidden_count(chromosome[None], max_hidden)[0])
    neurons = chromosome[: h * (k + 2)].reshape(h, k + 2).astype(np.float64)
    return neurons[:, :k].T.copy(), neurons[:, k].copy(), neurons[:, k + 1].copy(), float(chromosome[-2])


# Not cached, as mlp._forward: a caller of other compiled kernels rounds differently when it is loaded from numba's cache.
@numba.njit(nogil=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def _sse_range(
    planes: Floats32,
    y: Floats32,
    weight: Floats32,
    population: Floats32,
    hidden: NDArray[np.int64],
    start: int,
    stop: int,
    out: Floats,
) -> None:
    k, n = planes.shape
    genes = population.shape[1]
    work = np.empty((3, BLOCK), np.float32)
    for p in range(start, stop):
        chromosome = population[p]
        neurons = chromosome[: hidden[p] * (k + 2)].reshape(hidden[p], k + 2)
        total = 0.0
        for first in range(0, n, BLOCK):
            size = min(BLOCK, n - first)
            forward_block(planes, first, size, neurons, chromosome[genes - 2], work)
            part = np.float32(0.0)
            for i in range(size):
                error = work[0, i] - y[first + i]
                part += weight[first + i] * error * error
            total += float(part)
        out[p] = total


def population_sse(
    planes: Floats32,
    y: Floats32,
    weight: Floats32,
    population: Floats32,
    max_hidden: int,
    pool: ThreadPoolExecutor | None = None,
    tasks: int = 1,
) -> Floats:
    """Weighted sum of squared errors of every network.

    Parameters
    ----------
    planes : (k, n) float32, C order, predictors
    y, weight : (n,) float32
    population : (p, g) float32, C order
    pool, tasks : threads that share the individuals; an individual is never split, so results do not depend on them

    Returns
    -------
    (p,) float64
    """
    hidden = hidden_count(population, max_hidden)
    out = np.empty(len(population))
    if pool is None or tasks < 2:
        _sse_range(planes, y, weight, population, hidden, 0, len(population), out)
        return out
    cuts = np.searchsorted(np.cumsum(hidden), np.linspace(0, hidden.sum(), tasks + 1)[1:-1])
    edges = [0, *cuts.tolist(), len(population)]
    futures = [
        pool.submit(_sse_range, planes, y, weight, population, hidden, a, b, out) for a, b in pairwise(edges) if b > a
    ]
    for future in futures:
        future.result()
    return out


def draw(rng: np.random.Generator, children: int, genes: int) -> Draws:
    """All random numbers of one generation."""
    pairs = (children + 1) // 2
    return Draws(
        rng.random(2 * pairs),
        rng.random(pairs),
        rng.random(pairs),
        rng.random((2 * pairs, genes), dtype=np.float32),
        rng.random((2 * pairs, genes), dtype=np.float32),
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _adapted(fitness: float, best: float, mean: float, low: float, high: float) -> float:
    """Srinivas & Patnaik, equations 3 and 4: `low` below the mean, falling from `high` to 0 from the mean to the best."""
    if fitness < mean or best - mean <= 1e-12 * best:
        return low
    return high * (best - fitness) / (best - mean)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mutated(value: np.float32, lower: np.float32, upper: np.float32, step: np.float32, power: float) -> np.float32:
    """Non-uniform mutation: a step to either bound whose reach, 1 - r^power, shrinks with `power` (1 to 0)."""
    if step < np.float32(0.5):
        reach = 1.0 - (2.0 * step) ** power
        return np.float32(value + (upper - value) * reach)
    reach = 1.0 - (2.0 * step - 1.0) ** power
    return np.float32(value - (value - lower) * reach)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _breed(
    parents: Floats32,
    fitness: Floats,
    chosen: NDArray[np.int64],
    draws: Draws,
    lower: Floats32,
    upper: Floats32,
    crossover: tuple[float, float],
    mutation: tuple[float, float],
    power: float,
    children: Floats32,
) -> None:
    count, genes = children.shape
    best, mean = fitness.max(), fitness.mean()
    for pair in range((count + 1) // 2):
        a, b = chosen[2 * pair], chosen[2 * pair + 1]
        fitter = max(fitness[a], fitness[b])
        blend = 0.0
        if draws.crossover[pair] < _adapted(fitter, best, mean, crossover[0], crossover[1]):
            blend = draws.blend[pair]
        for side in range(2):
            child = 2 * pair + side
            if child >= count:
                break
            own, other = (a, b) if side == 0 else (b, a)
            rate = _adapted(fitness[own], best, mean, mutation[0], mutation[1])
            for g in range(genes):
                value = np.float32((1.0 - blend) * parents[own, g] + blend * parents[other, g])
                if draws.mutation[child, g] < rate:
                    value = _mutated(value, lower[g], upper[g], draws.step[child, g], power)
                children[child, g] = min(max(value, lower[g]), upper[g])


def bounds(k: int, settings: Settings) -> tuple[Floats32, Floats32]:
    """Lower and upper bound of each gene, (g,) float32."""
    upper = np.full(gene_count(k, settings.max_hidden), settings.bound, np.float32)
    lower = -upper
    lower[-1] = settings.min_hidden
    upper[-1] = np.nextafter(np.float32(settings.max_hidden + 1), np.float32(0))
    return lower, upper


def first_population(rng: np.random.Generator, k: int, settings: Settings) -> Floats32:
    """(p, g) float32: weights normal with standard deviation `spread`, numbers of neurons uniform, all within bounds."""
    lower, upper = bounds(k, settings)
    genes = rng.standard_normal((settings.population, lower.size), dtype=np.float32) * np.float32(settings.spread)
    genes[:, -1] = lower[-1] + rng.random(settings.population, dtype=np.float32) * (upper[-1] - lower[-1])
    return np.clip(genes, lower, upper)


def next_population(
    population: Floats32, sse: Floats, draws: Draws, progress: float, k: int, settings: Settings
) -> Floats32:
    """One generation: the elite first, then children.

    Parameters
    ----------
    population : (p, g) float32; sse : (p,)
    draws : of p - elite children
    progress : 0 to 1, share of the generations that are over
    """
    fitness = 1.0 / np.maximum(sse, SMALLEST_SSE)
    order = np.argsort(sse, kind="stable")
    wheel = np.cumsum(fitness)
    chosen = np.minimum(np.searchsorted(wheel, draws.parents * wheel[-1], side="right"), len(population) - 1)
    out = np.empty_like(population)
    out[: settings.elite] = population[order[: settings.elite]]
    lower, upper = bounds(k, settings)
    rates = (settings.crossover, settings.crossover_fit), (settings.mutation, settings.mutation_fit)
    power = (1.0 - progress) ** settings.shrink
    _breed(population, fitness, chosen, draws, lower, upper, *rates, power, out[settings.elite :])
    return out


def evolve(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    settings: Settings,
    rng: np.random.Generator,
    weight: NDArray[np.floating] | None = None,
    threads: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Result:
    """Evolve networks until the generations are over or the best SSE stands still.

    Parameters
    ----------
    x : (n, k) predictors, standardised
    y : (n,) target
    settings : sizes and rates
    rng : the only source of randomness; a generation's numbers are drawn before it is computed
    weight : (n,) weights of the samples, 1 if None
    threads : CPU threads (the machine's by default); the result does not depend on it
    progress : called with (generation, best SSE)

    Returns
    -------
    Result; `stopped` is "generations" or "plateau" (the best SSE fell by less than `tolerance`, relative, in `plateau`
    generations).
    """
    planes = np.ascontiguousarray(np.asarray(x, np.float32).T)
    target = np.ascontiguousarray(y, dtype=np.float32)
    weights = np.ones_like(target) if weight is None else np.ascontiguousarray(weight, dtype=np.float32)
    threads = threads or cpus()
    with ThreadPoolExecutor(threads) as pool:
        return _evolve(planes, target, weights, settings, rng, pool, 4 * threads if threads > 1 else 1, progress)


def _evolve(
    planes: Floats32,
    y: Floats32,
    weight: Floats32,
    settings: Settings,
    rng: np.random.Generator,
    pool: ThreadPoolExecutor,
    tasks: int,
    progress: Callable[[int, float], None] | None,
) -> Result:
    k = len(planes)
    population = first_population(rng, k, settings)
    sse = population_sse(planes, y, weight, population, settings.max_hidden, pool, tasks)
    history = [_summary(population, sse, settings)]
    stopped = "generations"
    for generation in range(settings.generations):
        draws = draw(rng, settings.population - settings.elite, population.shape[1])
        order = np.argsort(sse, kind="stable")[: settings.elite]
        population = next_population(population, sse, draws, generation / settings.generations, k, settings)
        children = population_sse(planes, y, weight, population[settings.elite :], settings.max_hidden, pool, tasks)
        sse = np.concatenate([sse[order], children])
        history.append(_summary(population, sse, settings))
        if progress is not None:
            progress(generation + 1, history[-1][2])
        if _stands_still(history, settings):
            stopped = "plateau"
            break
    order = np.argsort(sse, kind="stable")
    best, mean, errors, hidden = zip(*history, strict=True)
    trace = Trace(np.array(best), np.array(mean), np.array(errors), np.array(hidden))
    return Result(population[order], sse[order], trace, stopped)


def _summary(population: Floats32, sse: Floats, settings: Settings) -> tuple[float, float, float, int]:
    fitness = 1.0 / np.maximum(sse, SMALLEST_SSE)
    best = int(np.argmin(sse))
    hidden = hidden_count(population[best : best + 1], settings.max_hidden)
    return float(fitness[best]), float(fitness.mean()), float(sse[best]), int(hidden[0])


def _stands_still(history: list[tuple[float, float, float, int]], settings: Settings) -> bool:
    if len(history) <= settings.plateau:
        return False
    return history[-1][2] > history[-1 - settings.plateau][2] * (1 - settings.tolerance)
