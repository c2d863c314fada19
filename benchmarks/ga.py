"""The genetic algorithm on 12-20-1 networks and 6 069 samples: time a generation, error reached, a whole training.

Every network keeps all 20 neurons, so that all do the same sums; float32 throughout; each peer in its own best way.
Peers: deap and pygad (in the `bench` extra) and evotorch, which brings ray and is left to be installed by hand:
`pip install -c constraints.txt evotorch`.
Run: python -m benchmarks ga
"""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.timing import medians, missing
from smscale.kernels import ga
from smscale.models.gabp import GABPRegressor

SAMPLES, PREDICTORS, HIDDEN = 6069, 12, 20
GENERATIONS, LONG = 262, 4000
SETTINGS = ga.Settings(generations=GENERATIONS, max_hidden=HIDDEN, min_hidden=HIDDEN, plateau=10**6)
#: Generations of one turn when times are compared.
OUR_TURN, PEER_TURN, TURNS = 60, 6, 5
#: Errors reached are compared on fewer samples, from so many seeds.
FEWER, SEEDS = 1500, 7
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
#: Samples of a minibatch; seconds after which Adam is given up.
BATCH, PATIENCE = 256, 10.0

Reals = NDArray[Any]


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Standardised predictors and a target of which a line explains about two thirds."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, PREDICTORS))
    y = np.tanh(x[:, 0] + 0.5 * x[:, 1]) - 0.7 * np.tanh(x[:, 2] * x[:, 3]) + 0.3 * x[:, 5]
    y += 0.3 * rng.normal(size=SAMPLES)
    return x, (y - y.mean()) / y.std()


def soil_moisture_scene() -> tuple[np.ndarray, np.ndarray]:
    """The paper's twelve predictors over made mountains, correlated as real ones are; soil moisture; all standardised."""
    rng = np.random.default_rng(4)
    lon, lat = rng.uniform(97.35, 108.54, SAMPLES), rng.uniform(26.05, 34.31, SAMPLES)
    day, overpass = rng.integers(1, 174, SAMPLES), rng.integers(0, 2, SAMPLES)
    noise = rng.normal(size=(6, SAMPLES))
    elevation = np.clip(4500 - 420 * (lon - 98) + 300 * np.sin(3 * lat) + 400 * noise[0], 200, 6000)
    slope = np.clip(rng.gamma(2, 4, SAMPLES) * (1 + elevation / 6000), 0, 60)
    season = np.cos(2 * np.pi * (day - 30) / 365)
    ndvi = np.clip(0.75 - 9e-5 * elevation + 0.12 * season + 0.08 * noise[1], 0, 0.95)
    evi, et = 0.6 * ndvi + 0.03 * noise[2], np.clip(25 * ndvi * (1 + 0.6 * season) + 3 * noise[3], 0, None)
    lst = 300 - 5.5e-3 * elevation + 8 * season + 6 * overpass + 2.5 * noise[4]
    wet = 0.22 + 0.1 * np.tanh(4 * (ndvi - 0.45)) + 0.06 * season * np.tanh((elevation - 2500) / 900)
    wet += -0.004 * (lst - 292) + 0.02 * np.sin(1.3 * lon) * np.cos(1.7 * lat)
    y = np.clip(wet + 0.035 * noise[5], 0.02, 0.55)
    aspect, cover = rng.uniform(0, 360, SAMPLES), rng.integers(1, 17, SAMPLES)
    x = np.column_stack([lon, lat, elevation, slope, aspect, cover, lst, ndvi, evi, et, day, overpass])
    return (x - x.mean(axis=0)) / x.std(axis=0), (y - y.mean()) / y.std()


def ours(x: Reals, y: Reals, generations: int, seed: int = 1, **options: Any) -> ga.Result:
    """An evolution of so many generations."""
    return ga.evolve(x, y, replace(SETTINGS, generations=generations), np.random.default_rng(seed), **options)


def one_fitness(x: Reals, y: Reals) -> Callable[[Any], float]:
    """1/SSE of one chromosome without its last gene, in NumPy."""
    single, target = x.astype(np.float32), y.astype(np.float32)

    def fitness(net: Any) -> float:
        neurons = net[:-1].reshape(HIDDEN, PREDICTORS + 2)
        hidden = np.tanh(single @ neurons[:, :PREDICTORS].T + neurons[:, PREDICTORS])
        error = hidden @ neurons[:, PREDICTORS + 1] + net[-1] - target
        return 1.0 / float(error @ error)

    return fitness


def start(seed: int) -> Reals:
    """The peers' first population, (p, g) float32: our kind of chromosome without the number of neurons."""
    return ga.first_population(np.random.default_rng(seed), PREDICTORS, SETTINGS)[:, :-1]


def deap_sse(
    x: Reals, y: Reals, generations: int, of: int = GENERATIONS, seed: int = 1, adaptive: bool = False
) -> float:
    """SSE that deap reaches: NumPy individuals, its roulette and elite; arithmetic crossover, non-uniform mutation.

    Rates are constant, or adapted to each individual's fitness as ours are.
    """
    from deap import base, creator, tools

    if not hasattr(creator, "Net"):
        creator.create("Fit", base.Fitness, weights=(1.0,))
        creator.create("Net", np.ndarray, fitness=creator.Fit)
    random.seed(seed)
    rng, evaluate = np.random.default_rng([seed, 1]), one_fitness(x, y)

    def born(genes: Reals, fitness: float) -> Any:
        net = creator.Net(genes)
        net.fitness.values = (fitness,)
        return net

    def rates(fitness: list[float], low: float, high: float, least: float) -> Reals:
        values = np.array(fitness)
        if not adaptive:
            return np.full(len(values), low)
        best, mean = (
            max(net.fitness.values[0] for net in population),
            np.mean([n.fitness.values[0] for n in population]),
        )
        return np.where(values < mean, low, np.maximum(least, high * (best - values) / max(best - mean, 1e-300)))

    population = [born(genes, evaluate(genes)) for genes in start(seed)]
    for generation in range(generations):
        elite = tools.selBest(population, SETTINGS.elite)
        parents = tools.selRoulette(population, SETTINGS.population - SETTINGS.elite)
        fitness = [net.fitness.values[0] for net in parents]
        mutation = rates(fitness, SETTINGS.mutation, SETTINGS.mutation_fit, SETTINGS.mutation_least)
        pairs = [max(two) for two in zip(fitness[::2], fitness[1::2], strict=False)]
        crossover = rates(pairs, SETTINGS.crossover, SETTINGS.crossover_fit, 0.0)
        chosen = [creator.Net(net) for net in parents]
        power = (1 - generation / of) ** SETTINGS.shrink
        for a, b, rate in zip(chosen[::2], chosen[1::2], crossover, strict=False):
            if rng.random() < rate:
                blend = np.float32(rng.random())
                a[:], b[:] = (1 - blend) * a + blend * b, blend * a + (1 - blend) * b
        for net, rate in zip(chosen, mutation, strict=True):
            touched = rng.random(net.size) < rate
            reach = 1 - rng.random(touched.sum()) ** power
            bound = np.where(rng.random(touched.sum()) < 0.5, SETTINGS.bound, -SETTINGS.bound)
            net[touched] += (bound - net[touched]) * reach
            net.fitness.values = (evaluate(net),)
        population = elite + chosen
    return 1.0 / max(net.fitness.values[0] for net in population)


def many_sse(x: Reals, y: Reals) -> Callable[[Any], Any]:
    """SSE (p,) of chromosomes (p, g) without their last gene, in torch: one product, then one per network."""
    import torch

    planes, target = torch.from_numpy(x.T.astype(np.float32)).contiguous(), torch.from_numpy(y.astype(np.float32))

    def errors(nets: Any) -> Any:
        neurons = nets[:, :-1].reshape(len(nets), HIDDEN, PREDICTORS + 2)
        inner, threshold = neurons[..., :PREDICTORS].reshape(-1, PREDICTORS), neurons[..., PREDICTORS].reshape(-1, 1)
        hidden = torch.addmm(threshold, inner, planes).tanh_().view(len(nets), HIDDEN, -1)
        return (torch.bmm(neurons[:, None, :, -1], hidden)[:, 0] + nets[:, -1:] - target).square().sum(1)

    return errors


def pygad_run(x: Reals, y: Reals, generations: int, batch: bool) -> Any:
    """pygad with roulette, elite and random mutation; fitness of one individual, or of all at once by torch."""
    import pygad
    import torch

    single, together = one_fitness(x, y), many_sse(x, y)

    def fitness(_: Any, nets: Any, __: Any) -> Any:
        if batch:
            return 1.0 / together(torch.from_numpy(np.asarray(nets, np.float32))).numpy()
        return single(np.asarray(nets, np.float32))

    quiet = logging.getLogger("pygad-quiet")
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = pygad.GA(
            num_generations=generations, num_parents_mating=SETTINGS.population // 2, fitness_func=fitness,
            fitness_batch_size=SETTINGS.population if batch else None, initial_population=start(1), gene_type=np.float32,
            parent_selection_type="rws", keep_elitism=SETTINGS.elite, crossover_probability=SETTINGS.crossover,
            mutation_probability=SETTINGS.mutation, random_seed=1, suppress_warnings=True, logger=quiet,
        )  # fmt: skip
        run.run()
    return run


def evotorch_run(x: Reals, y: Reals, generations: int) -> Any:
    """evotorch with a vectorised problem, one-point crossover and sparse Gaussian mutation; only children are evaluated."""
    import torch
    from evotorch import Problem
    from evotorch.algorithms import GeneticAlgorithm
    from evotorch.decorators import vectorized
    from evotorch.operators import GaussianMutation, OnePointCrossOver

    logging.getLogger("evotorch").setLevel(logging.WARNING)
    problem = Problem(
        "min",
        vectorized(many_sse(x, y)),
        solution_length=HIDDEN * (PREDICTORS + 2) + 1,
        initial_bounds=(-SETTINGS.spread, SETTINGS.spread),
        dtype=torch.float32,
        seed=1,
    )
    operators = [
        OnePointCrossOver(problem, tournament_size=4),
        GaussianMutation(problem, stdev=SETTINGS.spread, mutation_probability=SETTINGS.mutation),
    ]
    searcher = GeneticAlgorithm(problem, operators=operators, popsize=SETTINGS.population, re_evaluate=False)
    searcher.run(generations)
    return searcher


def alone(run: Callable[[], object]) -> Callable[[], object]:
    """Without BLAS threads: on the small product of one individual they gain little, and lose much on a busy machine."""

    def limited() -> object:
        with threadpool_limits(1):
            return run()

    return limited


def generations_a_second() -> None:
    """Every tool in turns; the first population's evaluation counts as a generation."""
    x, y = scene()
    runs: dict[str, tuple[Callable[[], object], int]] = {"smscale": (lambda: ours(x, y, OUR_TURN), OUR_TURN + 1)}
    if not missing("deap"):
        runs["deap"] = (alone(lambda: deap_sse(x, y, PEER_TURN)), PEER_TURN + 1)
    if not missing("pygad"):
        runs["pygad"] = (alone(lambda: pygad_run(x, y, PEER_TURN, False)), PEER_TURN + 1)
        runs["pygad, batch fitness by torch"] = (lambda: pygad_run(x, y, PEER_TURN, True), PEER_TURN + 1)
    if not missing("evotorch", "ray"):
        runs["evotorch, vectorised"] = (lambda: evotorch_run(x, y, PEER_TURN), PEER_TURN + 1)
    seconds = medians({name: run for name, (run, _) in runs.items()}, TURNS)
    each = {name: seconds[name] / count for name, (_, count) in runs.items()}
    for name, value in each.items():
        print(f"  {name:34s} {1 / value:8.1f} generations a second   {value / each['smscale']:6.2f} x")
    for name, how in (("deap", ".[bench]"), ("pygad", ".[bench]"), ("evotorch", "evotorch (brings ray)")):
        if missing(*((name, "ray") if name == "evotorch" else (name,))):
            print(f"  not installed, so not measured: {name}; pip install -c constraints.txt '{how}'")


def whole_evolutions() -> None:
    """Seconds of the paper's numbers of generations, in both precisions and on both engines."""
    x, y = scene()
    seconds = medians(
        {dtype: lambda dtype=dtype: ours(x, y, GENERATIONS, dtype=dtype) for dtype in ga.DTYPES},  # type: ignore[misc]
        repeats=3,
    )
    for dtype, value in seconds.items():
        print(f"  {f'{GENERATIONS} generations, {dtype}':34s} {value:8.2f} s")
    print(f"  {f'{LONG} generations, float32':34s} {timed(lambda: ours(x, y, LONG)):8.2f} s")
    turn = timed(lambda: ours(x, y, PEER_TURN, engine="torch", device="cpu"))
    print(f"  {'torch engine on the CPU':34s} {(PEER_TURN + 1) / turn:8.1f} generations a second")
    import torch

    if not torch.cuda.is_available():
        print("  torch engine on CUDA: no GPU: not measured")
        return
    ours(x, y, OUR_TURN, engine="torch", device="cuda")
    for dtype in ga.DTYPES:
        value = timed(lambda dtype=dtype: ours(x, y, LONG, engine="torch", device="cuda", dtype=dtype))  # type: ignore[misc]
        print(f"  {LONG} generations, {dtype}, {torch.cuda.get_device_name()}: {value:.2f} s")


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def errors_reached() -> None:
    """Median SSE after equal generations, over seeds that share first populations' kind."""
    if missing("deap"):
        return
    print(f"  SSE after {GENERATIONS} generations, {FEWER} samples, medians (least, most) of {SEEDS} seeds")
    for name, (x, y) in (("benchmark", scene()), ("soil moisture", soil_moisture_scene())):
        x, y = x[:FEWER], y[:FEWER]
        found = {
            "smscale": [float(ours(x, y, GENERATIONS, seed).sse[0]) for seed in range(SEEDS)],
            "deap": [deap_sse(x, y, GENERATIONS, seed=seed) for seed in range(SEEDS)],
            "deap, adapted rates": [deap_sse(x, y, GENERATIONS, seed=seed, adaptive=True) for seed in range(SEEDS)],
        }
        said = "; ".join(f"{tool} {median(v):.0f} ({min(v):.0f}, {max(v):.0f})" for tool, v in found.items())
        print(f"    {name}: {said}")


def adam_seconds(
    x: Reals, y: Reals, held: tuple[Reals, Reals], goal: float, rate: float, batch: int, limit: float
) -> float:
    """Seconds in which Adam brings the same network's RMSE on the held-out rows down to a goal; infinite after a limit."""
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(PREDICTORS, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 1))
    inputs, target, x_held, y_held = (torch.from_numpy(a.astype(np.float32)) for a in (x, y, *held))
    optimizer = torch.optim.Adam(net.parameters(), rate)
    begun = time.perf_counter()
    while time.perf_counter() - begun < limit:
        for rows in torch.randperm(len(y)).split(batch):
            optimizer.zero_grad()
            (net(inputs[rows])[:, 0] - target[rows]).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            if float((net(x_held)[:, 0] - y_held).square().mean().sqrt()) <= goal:
                return time.perf_counter() - begun
    return float("inf")


def training() -> None:
    """Whole GABP trainings, and Adam from scratch to the validation error that the paper's reaches."""
    x, y = scene()
    held = np.random.default_rng(0).random(SAMPLES) < 0.3
    rest, validation = (x[~held], y[~held]), (x[held], y[held])
    goal = 0.0
    for name, model in (
        ("GABPRegressor()", GABPRegressor(random_state=0)),
        (
            f"GABPRegressor.paper(), {GENERATIONS} generations",
            GABPRegressor.paper(0).set_params(generations=GENERATIONS),
        ),
    ):
        model.fit(x[:100], y[:100])
        seconds = timed(lambda model=model: model.fit(*rest))  # type: ignore[misc]
        goal = float(np.sqrt(np.mean((model.predict(validation[0]) - validation[1]) ** 2)))
        print(f"  {name:42s} {seconds:6.2f} s; validation RMSE {goal:.3f}")
    for name, batch in (("full batch", SAMPLES), (f"minibatches of {BATCH}", BATCH)):
        best, rate = float("inf"), LEARNING_RATES[0]
        for tried in LEARNING_RATES:
            best, rate = min(
                (best, rate), (adam_seconds(*rest, validation, goal, tried, batch, min(best, PATIENCE)), tried)
            )
        took = f"{best:6.2f} s at rate {rate:g}" if np.isfinite(best) else f"not in {PATIENCE:.0f} s"
        print(f"  {f'Adam to that RMSE, {name}':42s} {took}, best of {LEARNING_RATES}")


def main() -> None:
    """Print medians, rates, errors reached and whole trainings."""
    print(f"\nGA, population {SETTINGS.population}, {PREDICTORS}-{HIDDEN}-1, {SAMPLES} samples, {ga.cpus()} CPUs")
    generations_a_second()
    whole_evolutions()
    errors_reached()
    training()


if __name__ == "__main__":
    main()
