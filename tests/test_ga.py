"""The genetic algorithm: its sums of squares against NumPy, each operator against its definition, and reproducibility."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from smscale.kernels import ga

SMALL = ga.Settings(population=20, generations=15, max_hidden=5, elite=2)


def samples(n: int = 700, k: int = 3) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, k))
    return x, np.tanh(2 * x[:, 0]) - 0.5 * x[:, 1] + 0.1 * rng.normal(size=n)


def reference_sse(
    chromosome: NDArray[np.float32], x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]
) -> float:
    w1, b1, w2, b2 = ga.network(chromosome, x.shape[1])
    return float(np.sum(weight * (np.tanh(x @ w1 + b1) @ w2 + b2 - y) ** 2))


def planes_of(x: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(x.T, dtype=np.float32)


@pytest.mark.parametrize("tasks", [1, 3, 50])
def test_sums_of_squares_agree_with_numpy_whatever_the_threads(tasks: int) -> None:
    x, y = samples()
    weight = np.random.default_rng(1).uniform(0, 2, y.size)
    population = ga.first_population(np.random.default_rng(2), 3, SMALL)
    plain = ga.population_sse(planes_of(x), y.astype(np.float32), weight.astype(np.float32), population, 5)
    with ThreadPoolExecutor(2) as pool:
        found = ga.population_sse(
            planes_of(x), y.astype(np.float32), weight.astype(np.float32), population, 5, pool, tasks
        )
    np.testing.assert_array_equal(found, plain)
    # float32 errors of 1e-6, summed over 700 samples
    np.testing.assert_allclose(found, [reference_sse(c, x, y, weight) for c in population], rtol=2e-5)


def test_masked_neurons_do_not_count() -> None:
    x, y = samples()
    population = ga.first_population(np.random.default_rng(2), 3, SMALL)
    population[:, -1] = 2.7
    spoiled = population.copy()
    spoiled[:, 2 * 5 : -2] = 1.9
    single, ones = y.astype(np.float32), np.ones(y.size, np.float32)
    assert ga.hidden_count(population, 5).tolist() == [2] * 20
    np.testing.assert_array_equal(
        ga.population_sse(planes_of(x), single, ones, population, 5),
        ga.population_sse(planes_of(x), single, ones, spoiled, 5),
    )
    assert ga.network(population[0], 3)[0].shape == (3, 2)


def test_first_population_keeps_its_bounds_and_covers_all_widths() -> None:
    population = ga.first_population(np.random.default_rng(0), 3, replace(SMALL, population=500))
    assert set(ga.hidden_count(population, 5)) == {2, 3, 4, 5}
    assert np.abs(population[:, :-1]).max() <= SMALL.bound


def draws(children: int, genes: int, **fixed: float) -> ga.Draws:
    made = ga.draw(np.random.default_rng(7), children, genes)
    return made._replace(**{name: np.full_like(getattr(made, name), value) for name, value in fixed.items()})


def test_selection_is_proportional_to_fitness() -> None:
    """Without crossover and mutation children are copies of those whom the wheel chose."""
    settings = replace(SMALL, population=4002, elite=2, crossover=0, crossover_fit=0, mutation=0, mutation_fit=0)
    population = ga.first_population(np.random.default_rng(0), 3, settings)
    sse = np.full(4002, 1e9)
    sse[:3] = [1.0, 0.5, 0.25]  # shares 1/7, 2/7, 4/7
    after = ga.next_population(population, sse, ga.draw(np.random.default_rng(1), 4000, 27), 0.0, 3, settings)
    shares = [np.mean((after[2:] == population[i]).all(axis=1)) for i in range(3)]
    np.testing.assert_allclose(shares, [1 / 7, 2 / 7, 4 / 7], atol=0.03)


def test_elite_is_kept_best_first() -> None:
    population = ga.first_population(np.random.default_rng(0), 3, SMALL)
    sse = np.random.default_rng(1).uniform(1, 2, 20)
    after = ga.next_population(population, sse, ga.draw(np.random.default_rng(1), 18, 27), 0.3, 3, SMALL)
    np.testing.assert_array_equal(after[:2], population[np.argsort(sse)[:2]])


def test_crossover_is_arithmetic_and_keeps_the_sum_of_a_pair() -> None:
    settings = replace(SMALL, mutation=0, mutation_fit=0, crossover=1, crossover_fit=1)
    population = ga.first_population(np.random.default_rng(0), 3, settings)
    sse = np.ones(20)  # a population without differences crosses at the full rate
    given = draws(18, 27, blend=0.25)
    after = ga.next_population(population, sse, given, 0.0, 3, settings)[2:]
    chosen = np.searchsorted(np.cumsum(np.ones(20)), given.parents * 20, side="right")
    a, b = population[chosen[0::2]], population[chosen[1::2]]
    np.testing.assert_allclose(after[0::2], 0.75 * a + 0.25 * b, atol=1e-6)
    np.testing.assert_allclose(after[0::2] + after[1::2], a + b, atol=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.9])
def test_mutation_follows_michalewicz_and_shrinks(progress: float) -> None:
    settings = replace(SMALL, mutation=1, mutation_fit=1, crossover=0, crossover_fit=0, shrink=2.0)
    population = ga.first_population(np.random.default_rng(0), 3, settings)
    given = draws(18, 27)
    after = ga.next_population(population, np.ones(20), given, progress, 3, settings)[2:]
    chosen = np.searchsorted(np.cumsum(np.ones(20)), given.parents * 20, side="right")
    before = population[chosen].astype(np.float64)
    lower, upper = ga.bounds(3, settings)
    up = given.step < 0.5
    r = np.where(up, 2.0 * given.step, 2.0 * given.step - 1.0)
    reach = 1 - r ** ((1 - progress) ** 2)
    np.testing.assert_allclose(
        after, np.where(up, before + (upper - before) * reach, before - (before - lower) * reach), atol=1e-5
    )


def test_rates_fall_from_the_mean_to_the_best() -> None:
    """Srinivas & Patnaik, equations 3 and 4, with k = 0.8: 0 for the best, 0.4 half-way, 0.5 given below the mean."""
    assert ga._adapted(10.0, 10.0, 6.0, 0.5, 0.8) == 0.0
    assert ga._adapted(8.0, 10.0, 6.0, 0.5, 0.8) == pytest.approx(0.4)
    assert ga._adapted(5.9, 10.0, 6.0, 0.5, 0.8) == 0.5
    assert ga._adapted(3.0, 3.0, 3.0, 0.5, 0.8) == 0.5  # a collapsed population is stirred, not divided by zero


def test_evolution_improves_is_reproducible_and_ignores_threads() -> None:
    x, y = samples()
    one, two, other = (
        ga.evolve(x, y, SMALL, np.random.default_rng(seed), threads=threads)
        for seed, threads in ((3, 1), (3, 2), (4, 1))
    )
    np.testing.assert_array_equal(one.population, two.population)
    assert not np.array_equal(one.population, other.population)
    assert np.all(np.diff(one.trace.sse) <= 0)
    assert one.trace.sse[-1] < 0.7 * one.trace.sse[0]
    assert one.sse[0] == one.trace.sse[-1] == pytest.approx(1 / one.trace.best[-1])
    assert one.sse[0] == pytest.approx(reference_sse(one.population[0], x, y, np.ones(y.size)), rel=2e-5)
    assert len(one.trace.best) == SMALL.generations + 1
    assert one.stopped == "generations"


def test_evolution_stops_on_a_plateau() -> None:
    x, y = samples(50)
    still = replace(SMALL, generations=500, plateau=3, mutation=0, mutation_fit=0, crossover=0, crossover_fit=0)
    found = ga.evolve(x, y, still, np.random.default_rng(0))
    assert found.stopped == "plateau"
    assert len(found.trace.best) == 4


def test_progress_is_told_each_generation() -> None:
    x, y = samples(50)
    seen: list[tuple[int, float]] = []
    ga.evolve(x, y, SMALL, np.random.default_rng(0), progress=lambda g, sse: seen.append((g, sse)))
    assert [g for g, _ in seen] == list(range(1, 16))


def test_perfect_fit_has_finite_fitness() -> None:
    x = np.zeros((10, 2))
    found = ga.evolve(x, np.zeros(10), replace(SMALL, spread=0.0), np.random.default_rng(0))
    assert np.isfinite(found.trace.best).all()
