"""The genetic algorithm on 12-20-1 networks and 6 069 samples, against deap with the same operators.

Every network keeps all 20 neurons, so that both do the same sums. Peer: deap (`pip install deap`).
Run: python -m benchmarks ga
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np

from benchmarks.timing import medians, missing
from smscale.kernels import ga
from smscale.models.gabp import GABPRegressor

SAMPLES, PREDICTORS, HIDDEN = 6069, 12, 20
GENERATIONS, PEER_GENERATIONS = 262, 10
SETTINGS = ga.Settings(generations=GENERATIONS, max_hidden=HIDDEN, min_hidden=HIDDEN, plateau=10**6)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Standardised predictors and a target of which a line explains about two thirds."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, PREDICTORS))
    y = np.tanh(x[:, 0] + 0.5 * x[:, 1]) - 0.7 * np.tanh(x[:, 2] * x[:, 3]) + 0.3 * x[:, 5]
    y += 0.3 * rng.normal(size=SAMPLES)
    return x, (y - y.mean()) / y.std()


def ours(x: np.ndarray, y: np.ndarray) -> ga.Result:
    """All generations."""
    return ga.evolve(x, y, SETTINGS, np.random.default_rng(1))


def deap_best(x: np.ndarray, y: np.ndarray, generations: int) -> float:
    """SSE that deap reaches: NumPy individuals, roulette, arithmetic crossover, non-uniform mutation, the same elite."""
    from deap import base, creator, tools

    if not hasattr(creator, "Net"):
        creator.create("Fit", base.Fitness, weights=(1.0,))
        creator.create("Net", np.ndarray, fitness=creator.Fit)
    random.seed(1)
    rng = np.random.default_rng(1)
    single, target = x.astype(np.float32), y.astype(np.float32)
    start = ga.first_population(rng, PREDICTORS, SETTINGS)[:, :-1]
    population: list[Any] = [creator.Net(s.shape, np.float32, s.copy()) for s in start]

    def evaluate(net: Any) -> tuple[float]:
        neurons = net[:-1].reshape(HIDDEN, PREDICTORS + 2)
        hidden = np.tanh(single @ neurons[:, :PREDICTORS].T + neurons[:, PREDICTORS])
        error = hidden @ neurons[:, PREDICTORS + 1] + net[-1] - target
        return (1.0 / float(error @ error),)

    def score() -> None:
        for net in population:
            if not net.fitness.valid:
                net.fitness.values = evaluate(net)

    def copied(net: Any) -> Any:
        child = creator.Net(net.shape, np.float32, net.copy())
        child.fitness.values = net.fitness.values
        return child

    score()
    for generation in range(generations):
        elite = [copied(net) for net in tools.selBest(population, SETTINGS.elite)]
        chosen = [copied(net) for net in tools.selRoulette(population, SETTINGS.population - SETTINGS.elite)]
        power = (1 - generation / GENERATIONS) ** SETTINGS.shrink
        for a, b in zip(chosen[::2], chosen[1::2], strict=False):
            if rng.random() < SETTINGS.crossover:
                blend = np.float32(rng.random())
                a[:], b[:] = (1 - blend) * a + blend * b, blend * a + (1 - blend) * b
        for net in chosen:
            reach = 1 - rng.random(net.size) ** power
            bound = np.where(rng.random(net.size) < 0.5, SETTINGS.bound, -SETTINGS.bound)
            touched = rng.random(net.size) < SETTINGS.mutation_fit
            net[:] = np.where(touched, net + (bound - net) * reach, net)
            del net.fitness.values
        population = elite + chosen
        score()
    return 1.0 / max(net.fitness.values[0] for net in population)


def main() -> None:
    """Print medians, rates and the errors reached."""
    x, y = scene()
    print(f"\nGA, population {SETTINGS.population}, {PREDICTORS}-{HIDDEN}-1, {SAMPLES} samples, {ga.cpus()} CPUs")
    seconds = medians({"ours": lambda: ours(x, y)}, 3)["ours"]
    print(f"  {'smscale':34s} {seconds:8.2f} s for {GENERATIONS} generations, {GENERATIONS / seconds:7.1f} a second")
    if missing("deap"):
        print("  not installed, so not measured: deap")
    else:
        peer = medians({"deap": lambda: deap_best(x, y, PEER_GENERATIONS)}, 3)["deap"] / PEER_GENERATIONS
        print(f"  {'deap, the same operators':34s} {1 / peer:8.1f} generations a second")
        few = ga.evolve(x, y, SETTINGS, np.random.default_rng(1)).trace.sse[GENERATIONS]
        print(f"  SSE after {GENERATIONS} generations: {few:.0f}; deap {deap_best(x, y, GENERATIONS):.0f}")
    for name, model in (
        ("GABPRegressor()", GABPRegressor(random_state=0)),
        (
            f"GABPRegressor.paper(), {GENERATIONS} generations",
            GABPRegressor.paper(0).set_params(generations=GENERATIONS),
        ),
    ):
        model.fit(x[:100], y[:100])
        start = time.perf_counter()
        model.fit(x, y)
        print(f"  {name:42s} {time.perf_counter() - start:6.2f} s; inner RMSE {model.inner_score_:.3f}")


if __name__ == "__main__":
    main()
