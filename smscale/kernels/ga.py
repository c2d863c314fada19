"""A genetic algorithm over whole networks: weights, thresholds and the number of hidden neurons, all individuals at once.

Operators: roulette selection with elitism on fitness 1/SSE, arithmetic crossover, non-uniform mutation (Michalewicz 1996,
Genetic Algorithms + Data Structures = Evolution Programs, ch. 6), crossover and mutation probabilities that fall as an
individual's fitness rises above the mean (Srinivas & Patnaik 1994, doi:10.1109/21.286385, equations 3 and 4, with their
least mutation rate for every individual).

Two engines compute the same from the same draws, up to rounding: compiled code on the CPU (`ga_numba`), torch on CUDA
(`ga_torch`). A population that collapses, all individuals alike, is stirred: every individual then mutates at the full
rate of a below-average one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
from numpy.typing import ArrayLike

from smscale.errors import InputError
from smscale.kernels.ga_numba import Numba
from smscale.kernels.ga_rules import (
    DTYPES,
    Draws,
    Engine,
    Floats,
    Reals,
    Result,
    Settings,
    Trace,
    bounds,
    check_settings,
    cpus,
    cut,
    drawn_ahead,
    first_population,
    gene_count,
    hidden_count,
    network,
    room_for_draws,
    samples,
)

__all__ = [
    "DTYPES",
    "ENGINES",
    "Draws",
    "Result",
    "Settings",
    "Trace",
    "bounds",
    "cpus",
    "evolve",
    "first_population",
    "gene_count",
    "hidden_count",
    "network",
]

ENGINES = ("numba", "torch")

Progress = Callable[[int, float], None]


def evolve(
    x: ArrayLike,
    y: ArrayLike,
    settings: Settings,
    rng: np.random.Generator,
    weight: ArrayLike | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    *,
    engine: str = "numba",
    device: str | None = None,
    dtype: str = "float32",
) -> Result:
    """Evolve networks until the generations are over or the best SSE stands still.

    Parameters
    ----------
    x : (n, k) predictors, standardised
    y : (n,) target
    settings : sizes and rates
    rng : seeds the evolution's own random numbers; it moves on by the same amount however the evolution ends
    weight : (n,) weights of the samples, 1 if None
    threads : CPU threads of the numba engine (the machine's by default); the result does not depend on it
    progress : called with (generation, best SSE); by the torch engine after each block of generations
    engine : "numba" (CPU) or "torch"
    device : of the torch engine, as torch names it; None takes "cuda" where there is one, else "cpu"
    dtype : "float32" or "float64", of chromosomes and networks; SSE and fitness are float64 in both

    Returns
    -------
    Result, without NaN or infinity; `stopped` is "generations" or "plateau" (the best SSE fell by no more than
    `tolerance`, relative, in `plateau` generations).

    Raises
    ------
    InputError : a setting out of range; NaN, infinite or too large values; no weight above 0; a device that is not there

    Examples
    --------
    >>> x = np.linspace(-1, 1, 50)[:, None]
    >>> found = evolve(x, x[:, 0] ** 2, Settings(generations=5), np.random.default_rng(0))
    >>> found.population.shape, found.trace.sse.shape, found.stopped
    ((100, 62), (6,), 'generations')
    """
    check_settings(settings)
    data = samples(x, y, weight, settings, dtype)
    own = np.random.default_rng(rng.integers(2**32, size=4, dtype=np.uint32))
    first = first_population(own, len(data[0]), settings)
    if engine == "torch":
        # torch is heavy, and most callers have no use for it.
        from smscale.kernels import ga_torch

        with ga_torch.exact():
            return _evolved(ga_torch.Torch(data, first, settings, device), first.shape[1], settings, own, progress)
    if engine != "numba":
        raise InputError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
    if device not in (None, "cpu"):
        raise InputError(f"the numba engine runs on the CPU, not on {device!r}; take engine='torch'")
    with ThreadPoolExecutor(threads or cpus()) as pool:
        return _evolved(Numba(data, first, settings, pool, threads or cpus()), first.shape[1], settings, own, progress)


def _evolved(
    engine: Engine, genes: int, settings: Settings, rng: np.random.Generator, progress: Progress | None
) -> Result:
    history = np.empty((settings.generations + 1, 4))
    history[0] = engine.summary()
    done, stopped = 0, "generations"
    size = max(1, min(engine.block, settings.generations))
    rooms = tuple(room_for_draws(size, settings.children, genes, engine.empty) for _ in range(2))
    with closing(drawn_ahead(rng, (rooms[0], rooms[1]), settings.generations)) as blocks:
        for draws in blocks:
            before, count = engine.state, len(draws.parents)
            shares = [(done + i) / settings.generations for i in range(count)]
            history[done + 1 : done + 1 + count] = engine.advance(draws, shares)
            still = _stands_still(history[: done + 1 + count, 2], done + 1, settings)
            reached = done + count if still is None else still
            if reached < done + count:  # the block ran past the plateau: from its start again, that far
                engine.state = before
                engine.advance(cut(draws, slice(0, reached - done)), shares[: reached - done])
            if progress is not None:
                for generation in range(done + 1, reached + 1):
                    progress(generation, float(history[generation, 2]))
            done = reached
            if still is not None:
                stopped = "plateau"
                break
    return _result(engine.result(), history[: done + 1], stopped)


def _stands_still(sse: Floats, start: int, settings: Settings) -> int | None:
    """The first generation from `start` on at which the best SSE has not fallen for `plateau` generations."""
    for generation in range(max(start, settings.plateau), len(sse)):
        if sse[generation] >= sse[generation - settings.plateau] * (1 - settings.tolerance):
            return generation
    return None


def _result(last: tuple[Reals, Floats], history: Floats, stopped: str) -> Result:
    population, sse = last
    order = np.argsort(sse, kind="stable")
    best, mean, errors, hidden = history.T.copy()
    return Result(population[order], sse[order], Trace(best, mean, errors, hidden.astype(np.int64)), stopped)
