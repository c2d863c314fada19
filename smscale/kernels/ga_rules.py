"""What both engines of the genetic algorithm share: settings, chromosomes, random numbers, results, and what is refused.

A chromosome holds the largest network that is allowed, neuron after neuron (k weights, threshold, output weight), then
the output threshold, then the number of neurons as a real gene: neurons beyond it are masked, and cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
#: float32 or float64: planes, targets, weights and populations of one evolution have the same.
Reals = NDArray[Any]

#: SSE below this counts as this: the fitness of a perfect network stays finite.
SMALLEST_SSE = 1e-30
#: The fittest individual's slots on the roulette wheel. Slots are integers, so that their sums depend on no order of
#: addition; 2^40 of them let populations up to 2^13 turn the wheel without rounding.
SLOTS = float(2**40)
#: Best fitness above the mean, relative, below which a population counts as collapsed.
COLLAPSED = 1e-12
DTYPES = {"float32": np.float32, "float64": np.float64}


@dataclass(frozen=True)
class Settings:
    """What the algorithm may choose from, and how long it may take.

    Probabilities are those of Srinivas & Patnaik: `crossover` and `mutation` are k3 and k4 (below-average individuals),
    `crossover_fit` and `mutation_fit` are k1 and k2 (scaled by how far below the best an individual is), `mutation_least`
    is the rate that they leave to every individual, the best too.
    """

    population: int = 100
    generations: int = 300
    max_hidden: int = 20
    min_hidden: int = 2
    bound: float = 2.0
    spread: float = 0.2
    crossover: float = 0.9
    crossover_fit: float = 0.9
    mutation: float = 0.02
    mutation_fit: float = 0.02
    mutation_least: float = 0.005
    shrink: float = 2.0
    elite: int = 5
    plateau: int = 100
    tolerance: float = 1e-3

    @property
    def elites(self) -> int:
        """Individuals that live on: `elite`, and never more than half of the population."""
        return min(self.elite, self.population // 2)

    @property
    def children(self) -> int:
        """Individuals that are new in a generation."""
        return self.population - self.elites


class Draws(NamedTuple):
    """The random numbers of one generation, uniform in [0, 1): m children, g genes. A block has generations in front.

    Those of genes are float32 whatever the precision of the population, so that every evolution of a seed has the same.
    """

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

    population: Reals
    sse: Floats
    trace: Trace
    stopped: str


class Engine(Protocol):
    """What turns populations into the next ones.

    `state` is (population, SSE) on the engine's device: it is replaced, never written to, so that one that was kept is a
    way back. `block` is how many generations it likes to be asked for at once.
    """

    block: int
    state: Any

    def empty(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """Memory for draws that is quick to upload."""

    def advance(self, draws: Draws, progress: Sequence[float]) -> Floats:
        """As many generations as `progress` has entries; their `summary`."""

    def summary(self) -> Floats:
        """(1, 4) of the present population: best fitness, mean fitness, least SSE, neurons of the best."""

    def result(self) -> tuple[Reals, Floats]:
        """Population (p, g) and SSE (p,) as NumPy arrays."""


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gene_count(k: int, max_hidden: int) -> int:
    """Length of a chromosome for k predictors."""
    return max_hidden * (k + 2) + 2


def hidden_count(population: Reals, max_hidden: int) -> NDArray[np.int64]:
    """Number of neurons of each chromosome: its last gene, rounded down."""
    return np.clip(np.floor(population[:, -1]).astype(np.int64), 1, max_hidden)


def network(chromosome: Reals, k: int) -> tuple[Floats, Floats, Floats, float]:
    """w1 (k, h), b1 (h,), w2 (h,), b2 of one chromosome, float64, without its masked neurons."""
    max_hidden = (chromosome.size - 2) // (k + 2)
    h = int(hidden_count(chromosome[None], max_hidden)[0])
    neurons = chromosome[: h * (k + 2)].reshape(h, k + 2).astype(np.float64)
    return neurons[:, :k].T.copy(), neurons[:, k].copy(), neurons[:, k + 1].copy(), float(chromosome[-2])


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


def room_for_draws(generations: int, children: int, genes: int, empty: Any = np.empty) -> Draws:
    """An unfilled block."""
    pairs = (children + 1) // 2
    single, each = (generations, pairs), (generations, 2 * pairs, genes)
    return Draws(
        empty((generations, 2 * pairs), np.float64),
        empty(single, np.float64),
        empty(single, np.float64),
        empty(each, np.float32),
        empty(each, np.float32),
    )


def cut(draws: Draws, part: int | slice) -> Draws:
    """One generation of a block, or some."""
    parents, crossover, blend, mutation, step = draws
    return Draws(parents[part], crossover[part], blend[part], mutation[part], step[part])


def draw(rng: np.random.Generator, room: Draws, generations: int) -> Draws:
    """Fill the first generations of a block, one after the other: the numbers do not depend on how blocks are cut."""
    for generation in range(generations):
        for numbers in room:
            rng.random(out=numbers[generation], dtype=numbers.dtype.type)
    return cut(room, slice(0, generations))


def drawn_ahead(rng: np.random.Generator, rooms: tuple[Draws, Draws], generations: int) -> Generator[Draws, None, None]:
    """Blocks of draws, the next one filled by a thread while the present one is used; two rooms take turns."""
    size = len(rooms[0].parents)
    sizes = [min(size, generations - start) for start in range(0, generations, size)]
    with ThreadPoolExecutor(1) as pool:
        following = [pool.submit(draw, rng, rooms[0], count) for count in sizes[:1]]
        for number in range(len(sizes)):
            block = following.pop().result()
            if number + 1 < len(sizes):
                following.append(pool.submit(draw, rng, rooms[(number + 1) % 2], sizes[number + 1]))
            yield block


def check_settings(settings: Settings) -> None:
    """Raise InputError, in one line, for settings that cannot be."""
    whole = {"population", "generations", "max_hidden", "min_hidden", "elite", "plateau"}
    alien = [
        f"{name} must be a {'whole ' if name in whole else ''}number, got {value!r}"
        for name, value in vars(settings).items()
        if isinstance(value, bool) or not isinstance(value, Integral if name in whole else Real)
    ]
    if alien:
        raise InputError("genetic algorithm: " + "; ".join(alien))
    least = {"population": 2, "generations": 0, "min_hidden": 1, "elite": 0, "plateau": 1, "spread": 0, "tolerance": 0}
    wrong = [
        f"{name} must be at least {value}, got {getattr(settings, name)!r}"
        for name, value in least.items()
        if not getattr(settings, name) >= value
    ]
    if settings.max_hidden < settings.min_hidden:
        wrong.append(f"max_hidden must be at least min_hidden ({settings.min_hidden}), got {settings.max_hidden}")
    for name in ("crossover", "crossover_fit", "mutation", "mutation_fit", "mutation_least"):
        if not 0 <= getattr(settings, name) <= 1:
            wrong.append(f"{name} is a probability, 0 to 1; got {getattr(settings, name)!r}")
    for name in ("bound", "shrink"):
        if not 0 < getattr(settings, name) < np.inf:
            wrong.append(f"{name} must be above 0 and finite, got {getattr(settings, name)!r}")
    if wrong:
        raise InputError("genetic algorithm: " + "; ".join(wrong))


def samples(
    x: ArrayLike, y: ArrayLike, weight: ArrayLike | None, settings: Settings, dtype: str
) -> tuple[Reals, Reals, Reals]:
    """Planes (k, n), target (n,) and weights (n,) of the type asked for, such that no sum can overflow.

    Raises
    ------
    InputError : other shapes, no samples, NaN, infinite or too large values, a weight below 0, no weight above 0
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    with np.errstate(over="ignore"):
        table = np.asarray(x, DTYPES[dtype])
        target = np.ascontiguousarray(y, DTYPES[dtype])
        weights = np.ones_like(target) if weight is None else np.ascontiguousarray(weight, DTYPES[dtype])
    if table.ndim != 2 or not table.size or target.shape != (len(table),) or weights.shape != (len(table),):
        raise InputError(
            f"x must be (n, k) and y and weight (n,), n and k above 0; got {table.shape}, {target.shape}, {weights.shape}"
        )
    for name, values in (("x", table), ("y", target), ("weight", weights)):
        lost = values.size - int(np.isfinite(values).sum())
        if lost:
            raise InputError(f"{name} has {lost} NaN, infinite or too large values for {dtype}; drop those samples")
    if weights.min() < 0 or not weights.max() > 0:
        raise InputError(f"weights must be at least 0, and one above; got {weights.min():g} to {weights.max():g}")
    _refuse_overflow(table, target, weights, settings)
    return np.ascontiguousarray(table.T), target, weights


def _refuse_overflow(table: Reals, target: Reals, weights: Reals, settings: Settings) -> None:
    """Bounded genes bound every sum: what passes here gives a finite SSE for each individual of each generation."""
    largest = float(np.finfo(table.dtype).max)
    with np.errstate(over="ignore"):
        inner = settings.bound * (table.shape[1] * np.float64(np.abs(table).max()) + 1)
        error = np.float64(np.abs(target).max()) + settings.bound * (settings.max_hidden + 1)
        total = error**2 * weights.sum(dtype=np.float64)
    if not inner < largest:
        raise InputError(
            f"x reaches {np.abs(table).max():g}, and {table.dtype} overflows in the networks; standardise x"
        )
    if not (error < largest and np.isfinite(total)):
        raise InputError(f"y reaches {np.abs(target).max():g}, and its squared errors overflow; standardise y")


def fitness_of(sse: Floats) -> Floats:
    """1/SSE; 0 for a network whose SSE is infinite or NaN."""
    return 1.0 / np.maximum(np.where(np.isnan(sse), np.inf, sse), SMALLEST_SSE)
