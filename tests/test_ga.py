"""The genetic algorithm: sums of squares against NumPy, operators against their definitions, two engines, odd input."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.kernels import ga, ga_numba, ga_rules
from smscale.kernels.ga_numba import adapted, next_population, population_sse

SMALL = ga.Settings(population=20, generations=15, max_hidden=5, elite=2)
STILL = dict.fromkeys(("crossover", "crossover_fit", "mutation", "mutation_fit", "mutation_least"), 0)
DTYPES = ("float32", "float64")
#: Relative rounding of a sum of squares: 700 squares of errors that are good to about 1e-6, or 1e-15.
ROUNDING = {"float32": 2e-5, "float64": 1e-13}


def table(n: int = 700, k: int = 3) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, k))
    return x, np.tanh(2 * x[:, 0]) - 0.5 * x[:, 1] + 0.1 * rng.normal(size=n)


def data(dtype: str, n: int = 700, weight: NDArray[np.float64] | None = None) -> tuple[Any, Any, Any]:
    x, y = table(n)
    return ga_rules.samples(x, y, weight, SMALL, dtype)


def people(dtype: str = "float32", settings: ga.Settings = SMALL, seed: int = 2) -> NDArray[Any]:
    return ga.first_population(np.random.default_rng(seed), 3, settings).astype(dtype)


def reference_sse(
    chromosome: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]
) -> float:
    w1, b1, w2, b2 = ga.network(chromosome, x.shape[1])
    return float(np.sum(weight * (np.tanh(x @ w1 + b1) @ w2 + b2 - y) ** 2))


def draws(settings: ga.Settings = SMALL, generations: int = 1, seed: int = 7) -> ga.Draws:
    room = ga_rules.room_for_draws(generations, settings.children, ga.gene_count(3, settings.max_hidden))
    return ga_rules.draw(np.random.default_rng(seed), room, generations)


def one(settings: ga.Settings = SMALL, seed: int = 7, **fixed: float) -> ga.Draws:
    made = ga_rules.cut(draws(settings, seed=seed), 0)
    return made._replace(**{name: np.full_like(getattr(made, name), value) for name, value in fixed.items()})


def children(
    population: NDArray[Any], sse: NDArray[np.float64], given: ga.Draws, progress: float, settings: ga.Settings
):
    return next_population(population, sse, given, progress, 3, settings)[0][settings.elites :]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tasks", [1, 3, 50])
def test_sums_of_squares_agree_with_numpy_whatever_the_threads(tasks: int, dtype: str) -> None:
    weight = np.random.default_rng(1).uniform(0, 2, 700)
    planes, target, weights = data(dtype, weight=weight)
    population = people(dtype)
    plain = population_sse(planes, target, weights, population, 5)
    with ThreadPoolExecutor(3) as pool:
        found = population_sse(planes, target, weights, population, 5, pool, tasks)
    np.testing.assert_array_equal(found, plain)
    x, y = table()
    np.testing.assert_allclose(found, [reference_sse(c, x, y, weight) for c in population], rtol=ROUNDING[dtype])


@pytest.mark.parametrize("scale", [1e-8, 0.1, 3.0, 40.0])
def test_float64_network_has_the_accuracy_of_numpys_tanh(scale: float) -> None:
    """One neuron without output weights elsewhere: the error of a sample is tanh itself."""
    x = scale * np.linspace(-1, 1, 2001)
    neurons, work = np.array([[1.0, 0.0, 1.0]]), np.empty((3, 2001))
    ga_numba.forward_block64(x[None], 0, 2001, neurons, 0.0, work)
    # Seven doublings, a rounding of 1.1e-16 in each.
    np.testing.assert_allclose(work[0], np.tanh(x), rtol=2e-15, atol=1e-22)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_neurons_do_not_count(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from smscale.kernels import ga_torch

    population = people(dtype)
    population[:, -1] = 2.7
    spoiled = population.copy()
    spoiled[:, 2 * 5 : -2] = 1.9
    given = data(dtype)
    assert ga.hidden_count(population, 5).tolist() == [2] * 20
    np.testing.assert_array_equal(population_sse(*given, population, 5), population_sse(*given, spoiled, 5))
    there = [torch.from_numpy(a) for a in (given[0], given[1], given[2].astype(np.float64))]
    plain, other = (ga_torch.population_sse(*there, torch.from_numpy(p), 5) for p in (population, spoiled))
    assert torch.equal(plain, other)
    assert ga.network(population[0], 3)[0].shape == (3, 2)


def test_first_population_keeps_its_bounds_and_covers_all_widths() -> None:
    population = people(settings=replace(SMALL, population=500))
    assert set(ga.hidden_count(population, 5)) == {2, 3, 4, 5}
    assert np.abs(population[:, :-1]).max() <= SMALL.bound


def test_draws_do_not_depend_on_how_blocks_are_cut() -> None:
    whole = draws(generations=7)
    for size in (1, 3, 7, 10):
        rooms = tuple(ga_rules.room_for_draws(size, SMALL.children, whole.step.shape[2]) for _ in range(2))
        parts = [
            ga.Draws(*(a.copy() for a in block))
            for block in ga_rules.drawn_ahead(np.random.default_rng(7), rooms, 7)  # type: ignore[arg-type]
        ]
        for name in ga.Draws._fields:
            np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name))


def test_selection_is_proportional_to_fitness() -> None:
    """Without crossover and mutation children are copies of those whom the wheel chose."""
    settings = replace(SMALL, population=4002, elite=2, **STILL)  # type: ignore[arg-type]
    population = people(settings=settings)
    sse = np.full(4002, 1e9)
    sse[:3] = [1.0, 0.5, 0.25]  # shares 1/7, 2/7, 4/7
    after = children(population, sse, one(settings, seed=1), 0.0, settings)
    shares = [np.mean((after == population[i]).all(axis=1)) for i in range(3)]
    np.testing.assert_allclose(shares, [1 / 7, 2 / 7, 4 / 7], atol=0.03)


def test_elite_is_kept_best_first_and_is_at_most_half() -> None:
    population, sse = people(), np.random.default_rng(1).uniform(1, 2, 20)
    after, kept = next_population(population, sse, one(), 0.3, 3, SMALL)
    np.testing.assert_array_equal(after[:2], population[np.argsort(sse)[:2]])
    np.testing.assert_array_equal(kept[:2], np.sort(sse)[:2])
    assert replace(SMALL, population=4, elite=5).elites == 2


def test_an_error_is_known_of_exact_copies_alone() -> None:
    """What is not computed again is what a computation would give, to the last bit."""
    given = data("float32")
    population = people()
    sse = population_sse(*given, population, 5)
    settings = replace(SMALL, mutation=0.03, mutation_fit=0.03, crossover=0.3)
    after, known = next_population(population, sse, one(settings), 0.0, 3, settings)
    found = np.isfinite(known)
    copies = (after[:, None] == population[None]).all(axis=2).any(axis=1)
    np.testing.assert_array_equal(found, copies)
    assert 2 < found.sum() < 20
    np.testing.assert_array_equal(known[found], population_sse(*given, after, 5)[found])


def test_crossover_is_arithmetic_and_keeps_the_sum_of_a_pair() -> None:
    settings = replace(SMALL, mutation=0, mutation_fit=0, mutation_least=0, crossover=1, crossover_fit=1)
    population = people(settings=settings)
    given = one(blend=0.25)
    # A population without differences crosses at the full rate.
    after = children(population, np.ones(20), given, 0.0, settings)
    chosen = np.searchsorted(np.cumsum(np.ones(20)), given.parents * 20, side="right")
    a, b = population[chosen[0::2]], population[chosen[1::2]]
    np.testing.assert_allclose(after[0::2], 0.75 * a + 0.25 * b, atol=1e-6)
    np.testing.assert_allclose(after[0::2] + after[1::2], a + b, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.9])
def test_mutation_follows_michalewicz_and_shrinks(progress: float, dtype: str) -> None:
    settings = replace(SMALL, mutation=1, mutation_fit=1, crossover=0, crossover_fit=0, shrink=2.0)
    population = people(dtype)
    given = one()
    after = children(population, np.ones(20), given, progress, settings)
    chosen = np.searchsorted(np.cumsum(np.ones(20)), given.parents * 20, side="right")
    before = population[chosen].astype(np.float64)
    lower, upper = ga.bounds(3, settings)
    step = given.step.astype(np.float64)
    up = step < 0.5
    r = np.where(up, 2.0 * step, 2.0 * step - 1.0)
    reach = 1 - r ** ((1 - progress) ** 2)
    expected = np.where(up, before + (upper - before) * reach, before - (before - lower) * reach)
    # One rounding of a gene of size 2; one of 5 for the number of neurons.
    np.testing.assert_allclose(after, expected, atol={"float32": 1e-6, "float64": 1e-14}[dtype])


def test_rates_fall_from_the_mean_to_the_best() -> None:
    """Srinivas & Patnaik, equations 3 and 4, with k = 0.8: least for the best, 0.4 half-way, 0.5 given below the mean."""
    assert adapted(10.0, 10.0, 6.0, 0.5, 0.8, 0.01) == 0.01
    assert adapted(8.0, 10.0, 6.0, 0.5, 0.8, 0.01) == pytest.approx(0.4)
    assert adapted(5.9, 10.0, 6.0, 0.5, 0.8, 0.01) == 0.5
    assert adapted(3.0, 3.0, 3.0, 0.5, 0.8, 0.01) == 0.5  # a collapsed population is stirred, not divided by zero


def test_evolution_improves_is_reproducible_and_ignores_threads() -> None:
    x, y = table()
    settings = replace(SMALL, generations=60)
    found, two, other = (
        ga.evolve(x, y, settings, np.random.default_rng(seed), threads=threads)
        for seed, threads in ((3, 1), (3, 2), (4, 1))
    )
    np.testing.assert_array_equal(found.population, two.population)
    assert not np.array_equal(found.population, other.population)
    assert np.all(np.diff(found.trace.sse) <= 0)
    assert found.trace.sse[-1] < 0.7 * found.trace.sse[0]
    assert found.sse[0] == found.trace.sse[-1] == pytest.approx(1 / found.trace.best[-1])
    assert found.sse[0] == pytest.approx(reference_sse(found.population[0], x, y, np.ones(y.size)), rel=2e-5)
    assert np.all(np.diff(found.sse) >= 0)
    assert len(found.trace.best) == settings.generations + 1
    assert found.stopped == "generations"


def test_evolution_in_float64_starts_from_the_same_population_and_is_float64_throughout() -> None:
    x, y = table()
    single, double = (ga.evolve(x, y, SMALL, np.random.default_rng(3), dtype=dtype) for dtype in DTYPES)
    assert single.population.dtype == np.float32
    assert double.population.dtype == np.float64
    assert double.sse[0] == pytest.approx(reference_sse(double.population[0], x, y, np.ones(y.size)), rel=1e-13)
    np.testing.assert_allclose(single.trace.sse[0], double.trace.sse[0], rtol=2e-5)


# --- two engines ---------------------------------------------------------------------------------------------------------


def devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def engines(dtype: str, device: str, settings: ga.Settings, pool: ThreadPoolExecutor) -> tuple[Any, Any]:
    from smscale.kernels import ga_torch

    first = people(settings=settings)
    given = data(dtype)
    return ga_numba.Numba(given, first, settings, pool, 2), ga_torch.Torch(given, first, settings, device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_generation_is_the_same_on_both_engines_to_rounding(dtype: str, device: str) -> None:
    if device not in devices():
        pytest.skip(f"no torch on {device} here")
    import torch

    from smscale.kernels import ga_torch

    # An odd number of children, some neurons masked.
    settings = replace(SMALL, population=41, generations=60, elite=4)
    given = draws(settings, settings.generations)
    # A gene is up to 5 and comes of some five roundings.
    genes = {"float32": 3e-6, "float64": 1e-14}[dtype]
    with ThreadPoolExecutor(2) as pool, ga_torch.exact():
        ours, theirs = engines(dtype, device, settings, pool)
        np.testing.assert_allclose(theirs.summary(), ours.summary(), rtol=ROUNDING[dtype])
        for generation in range(settings.generations):
            share = [generation / settings.generations]
            part = ga_rules.cut(given, slice(generation, generation + 1))
            theirs.state = tuple(torch.tensor(a, device=theirs.device) for a in ours.state)
            expected, found = ours.advance(part, share), theirs.advance(part, share)
            np.testing.assert_allclose(theirs.result()[0], ours.result()[0], atol=genes)
            np.testing.assert_allclose(theirs.result()[1], ours.result()[1], rtol=ROUNDING[dtype])
            np.testing.assert_allclose(found, expected, rtol=ROUNDING[dtype])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_evolutions_on_both_engines_reach_about_the_same(dtype: str, device: str) -> None:
    if device not in devices():
        pytest.skip(f"no torch on {device} here")
    x, y = table()
    settings = replace(SMALL, generations=150, population=30)
    ours, theirs = (
        ga.evolve(x, y, settings, np.random.default_rng(5), engine=engine, device=where, dtype=dtype)
        for engine, where in (("numba", None), ("torch", device))
    )
    # Selection amplifies one rounding, so that later generations may differ: what is reached may not, by much.
    np.testing.assert_allclose(theirs.trace.sse[:10], ours.trace.sse[:10], rtol=1e-4)
    assert theirs.sse[0] == pytest.approx(ours.sse[0], rel=0.3)
    assert theirs.population.dtype == ours.population.dtype == np.dtype(dtype)
    assert theirs.sse[0] == pytest.approx(reference_sse(theirs.population[0], x, y, np.ones(y.size)), rel=2e-5)


@pytest.mark.parametrize("block", [1, 4, 64])
def test_torch_blocks_of_any_length_end_at_the_generation_of_the_plateau(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that ran past the plateau is taken back: population, trace and the caller's rng are as if it had not."""
    ga_torch = pytest.importorskip("smscale.kernels.ga_torch")
    x, y = table(200)
    settings = replace(SMALL, generations=400, plateau=9, tolerance=0.05)
    expected_rng, found_rng = np.random.default_rng(1), np.random.default_rng(1)
    expected = ga.evolve(x, y, settings, expected_rng, dtype="float64")
    monkeypatch.setattr(ga_torch, "BLOCK", block)
    seen: list[int] = []
    found = ga.evolve(
        x, y, settings, found_rng, engine="torch", device="cpu", dtype="float64", progress=lambda g, _: seen.append(g)
    )
    assert found.stopped == expected.stopped == "plateau"
    assert len(found.trace.sse) == len(expected.trace.sse)
    assert len(found.trace.sse) % 64 not in (0, 1), "the plateau must fall inside a block"
    assert seen == list(range(1, len(found.trace.sse)))
    np.testing.assert_allclose(found.population, expected.population, atol=1e-12)
    np.testing.assert_allclose(found.trace.sse, expected.trace.sse, rtol=1e-12)
    assert found.sse[0] == found.trace.sse[-1]
    assert found_rng.random() == expected_rng.random()


def test_torch_fitness_in_pieces_is_that_in_one_piece_and_keeps_its_memory() -> None:
    torch = pytest.importorskip("torch")
    from smscale.kernels import ga_torch

    planes, y, weight = (torch.from_numpy(a) for a in data("float64"))
    population = torch.from_numpy(people("float64"))
    whole = ga_torch.population_sse(planes, y, weight, population, 5, limit=2**30)
    seen: list[int] = []
    plain = torch.addmm

    def watched(*tensors: Any) -> Any:
        made = plain(*tensors)
        seen.append(made.nbytes)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "addmm", watched)
        pieces = ga_torch.population_sse(planes, y, weight, population, 5, limit=100_000)
    assert len(seen) == 6  # 700 samples of 20 x 5 x 8 bytes, 125 at once
    assert max(seen) <= 100_000
    np.testing.assert_allclose(pieces, whole, rtol=1e-13)


def test_a_generation_reads_nothing_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's meta device tensors have shapes and no values: whatever asks for one raises."""
    torch = pytest.importorskip("torch")
    from smscale.kernels import ga_torch

    monkeypatch.setitem(ga_torch.HIDDEN_BYTES, "meta", 100_000)
    engine = ga_torch.Torch(data("float32"), people(), SMALL, "cpu")
    engine.data, engine.state = (tuple(t.to("meta") for t in part) for part in (engine.data, engine.state))
    engine.lower, engine.upper = engine.lower.to("meta"), engine.upper.to("meta")
    given = [torch.from_numpy(a).to("meta") for a in one()]
    for _ in range(2):
        engine.state = engine._next(*engine.state, ga.Draws(*given), engine._genes(given[-1]), 0.5)
    assert engine.state[0].shape == (20, 27)
    with pytest.raises(RuntimeError):
        float(engine.state[1][0])


def test_no_generation_waits_for_cuda() -> None:
    if "cuda" not in devices():
        pytest.skip("no torch on cuda here")
    import torch

    from smscale.kernels import ga_torch

    engine = ga_torch.Torch(data("float32"), people(), SMALL, "cuda")
    given: Any = ga.Draws(*(torch.from_numpy(a).cuda() for a in one()))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.state = engine._next(*engine.state, given, engine._genes(given.step), 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(engine.state[1]).all()


def test_torch_engine_computes_in_full_float32_and_leaves_the_callers_setting() -> None:
    torch = pytest.importorskip("torch")
    from smscale.kernels import ga_torch

    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with ga_torch.exact():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        torch.set_float32_matmul_precision("highest")
        if hasattr(matmul, "fp32_precision"):  # the newer setting
            matmul.fp32_precision = "tf32"
            with ga_torch.exact():
                assert matmul.fp32_precision == "ieee"
                assert torch.get_float32_matmul_precision() == "highest"
            assert matmul.fp32_precision == "tf32"
            matmul.fp32_precision = "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


# --- ends, collapse and odd input ----------------------------------------------------------------------------------------


def test_evolution_stops_on_a_plateau() -> None:
    x, y = table(50)
    settings = replace(SMALL, generations=500, plateau=3, **STILL)  # type: ignore[arg-type]
    found = ga.evolve(x, y, settings, np.random.default_rng(0))
    assert found.stopped == "plateau"
    assert len(found.trace.best) == 4


def test_progress_is_told_each_generation() -> None:
    x, y = table(50)
    seen: list[tuple[int, float]] = []
    found = ga.evolve(x, y, SMALL, np.random.default_rng(0), progress=lambda g, sse: seen.append((g, sse)))
    assert seen == [(g, found.trace.sse[g]) for g in range(1, 16)]


def finite(found: ga.Result) -> bool:
    return all(np.isfinite(a).all() for a in (found.population, found.sse, *found.trace))


@pytest.mark.parametrize("engine", ga.ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_collapsed_population_is_stirred(engine: str, dtype: str) -> None:
    """All individuals alike: their children differ, and the error falls again."""
    pytest.importorskip("torch")
    from smscale.kernels import ga_torch

    settings = replace(SMALL, generations=40)
    first = np.repeat(people()[:1], 20, axis=0)
    with ThreadPoolExecutor(1) as pool:
        made: Any = (
            ga_numba.Numba(data(dtype), first, settings, pool, 1)
            if engine == "numba"
            else ga_torch.Torch(data(dtype), first, settings, "cpu")
        )
        before = made.summary()[0]
        assert before[0] == pytest.approx(before[1])
        made.advance(draws(settings, seed=8), [0.0])
        # A child of 27 genes stays as it was with a probability of 0.98^27 = 0.58.
        assert len(np.unique(made.result()[0], axis=0)) > 4
        rows = made.advance(draws(settings, 40), [g / 40 for g in range(40)])
    population, sse = made.result()
    assert rows[-1, 2] < 0.9 * before[2]
    assert np.isfinite(population).all()
    assert np.isfinite(sse).all()


@pytest.mark.parametrize("engine", ga.ENGINES)
@pytest.mark.parametrize("bad", [[np.inf] * 20, [np.nan] * 20, [np.nan, np.inf] * 9 + [2.0, 3.0]])
def test_networks_without_a_finite_error_are_chosen_only_where_there_are_no_others(
    bad: list[float], engine: str
) -> None:
    sse = np.array(bad)
    places = np.linspace(0, 1, 400, endpoint=False)
    if engine == "torch":
        torch = pytest.importorskip("torch")
        from smscale.kernels import ga_torch

        there = ga_torch.fitness_of(torch.from_numpy(sse))
        fitness, chosen = there.numpy(), ga_torch.chosen_parents(there, torch.from_numpy(places)).numpy()
    else:
        fitness = ga_rules.fitness_of(sse)
        chosen = ga_numba.chosen_parents(fitness, places)
    share = np.bincount(chosen, minlength=20) / 400
    expected = np.full(20, 0.05) if not np.isfinite(sse).any() else np.r_[np.zeros(18), 0.6, 0.4]
    np.testing.assert_allclose(share, expected, atol=0.005)  # one draw of 400, twice
    assert np.isfinite(fitness).all()


CASES: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "population of 4": (*table(60), None, {"population": 4, "elite": 5}),
    "population of 2": (*table(60), None, {"population": 2, "elite": 5}),
    "no generations": (*table(60), None, {"generations": 0}),
    "one sample": (np.ones((1, 3)), np.ones(1), None, {}),
    "one weight": (*table(60), np.eye(1, 60)[0], {}),
    "constant target": (table(60)[0], np.full(60, 3.0), None, {}),
    "perfect": (np.zeros((10, 2)), np.zeros(10), None, {"spread": 0.0, "plateau": 3}),
    "no spread": (*table(60), None, {"spread": 0.0, "min_hidden": 5}),
    "one neuron": (*table(60), None, {"min_hidden": 1, "max_hidden": 1}),
    "large values": (1e10 * table(60)[0], 1e18 * table(60)[1], None, {}),
    "rates of 1": (*table(60), None, dict.fromkeys(("crossover", "crossover_fit", "mutation", "mutation_fit"), 1.0)),
}


@pytest.mark.parametrize("engine", ga.ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_results_are_finite_for_odd_but_valid_input(case: str, dtype: str, engine: str) -> None:
    x, y, weight, changed = CASES[case]
    settings = replace(SMALL, **changed)
    found = ga.evolve(x, y, settings, np.random.default_rng(0), weight, engine=engine, dtype=dtype)
    assert finite(found)
    assert len(found.population) == settings.population
    assert np.all(np.diff(found.trace.sse) <= 0)
    if case == "perfect":
        assert found.stopped == "plateau"
        assert found.trace.best[-1] == pytest.approx(1 / ga_rules.SMALLEST_SSE)


def test_a_sample_without_weight_changes_nothing() -> None:
    x, y = table(60)
    moved = x.copy()
    moved[0], weight = 3.0, np.r_[0.0, np.ones(59)]
    plain, other = (ga.evolve(a, y, SMALL, np.random.default_rng(0), weight) for a in (x, moved))
    np.testing.assert_array_equal(plain.population, other.population)


X, Y = table(30)
HOLE = np.where(np.arange(30) == 4, np.nan, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X * HOLE[:, None], Y), r"x has 3 NaN, infinite or too large values"),
        ((X, Y * HOLE), r"y has 1 NaN, infinite"),
        ((1e39 * X, Y), r"x has .* too large values for float32"),
        ((5e37 * X, Y), r"float32 overflows in the networks; standardise x"),
        ((X, Y, -np.ones(30)), r"weights must be at least 0"),
        ((X, Y, np.zeros(30)), r"weights must be at least 0, and one above; got 0 to 0"),
        ((X, Y, HOLE), r"weight has 1 NaN"),
        ((X[:0], Y[:0]), r"n and k above 0; got \(0, 3\)"),
        ((X, Y[:9]), r"y and weight \(n,\)"),
    ],
)
def test_unusable_samples_are_refused_in_one_line(arguments: tuple[Any, ...], message: str) -> None:
    x, y, *weight = arguments
    with pytest.raises(InputError, match=message) as caught:
        ga.evolve(x, y, SMALL, np.random.default_rng(0), *weight)
    assert "\n" not in str(caught.value)


def test_a_target_whose_squares_overflow_is_refused() -> None:
    with pytest.raises(InputError, match="squared errors overflow; standardise y"):
        ga.evolve(X, 1e200 * Y, SMALL, np.random.default_rng(0), dtype="float64")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"population": 1}, "population must be at least 2, got 1"),
        ({"generations": -1}, "generations must be at least 0"),
        ({"max_hidden": 1}, r"max_hidden must be at least min_hidden \(2\), got 1"),
        ({"mutation": 1.5, "bound": 0.0}, "mutation is a probability, 0 to 1; got 1.5; bound must be above 0"),
        ({"spread": np.nan}, "spread must be at least 0, got nan"),
        (
            {"elite": 2.5, "population": True},
            "population must be a whole number, got True; elite must be a whole number",
        ),
        ({"shrink": "x"}, "shrink must be a number, got 'x'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ga.evolve(X, Y, replace(SMALL, **changed), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "jax"}, "engine must be one of numba, torch; got 'jax'"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64; got 'float16'"),
        ({"device": "cuda"}, "the numba engine runs on the CPU"),
        ({"engine": "torch", "device": "cuda:99"}, "'cuda:99' asked for, but torch sees"),
        ({"engine": "torch", "device": "meta"}, "runs on 'cpu' or 'cuda'"),
        ({"engine": "torch", "device": "nowhere"}, "torch knows no device 'nowhere'"),
    ],
)
def test_engines_that_are_not_there_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ga.evolve(X, Y, SMALL, np.random.default_rng(0), **options)  # type: ignore[arg-type]
