"""The solver against certified values and scipy; networks against their Jacobian; every test on every engine."""

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from smscale.errors import InputError
from smscale.kernels import lm, lm_network, lm_numba, lm_torch
from smscale.kernels.lm_network import Stop

TIGHT = lm.Settings(max_steps=2000, gradient_tolerance=0.0, step_tolerance=1e-15)
ENGINES = [
    "numpy",
    "torch-cpu",
    pytest.param("torch-cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")),
]
every_engine = pytest.mark.parametrize("engine", ENGINES)


def dense(engine: str, residual: lm.Residual) -> lm.DenseProblem:
    return lm.DenseProblem(residual) if engine == "numpy" else lm_torch.DenseProblem(residual, engine[6:])


def networks(engine: str, *args: Any, dtype: str = "float64", **kwargs: Any) -> Any:
    name, _, device = engine.partition("-")
    return lm_network.networks(*args, engine=name, device=device or None, dtype=dtype, **kwargs)


def numpy(values: Any) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


# NIST StRD nonlinear regression, https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml: data, starts, certified values.
MISRA1A = np.array(
    [
        [10.07, 77.6], [14.73, 114.9], [17.94, 141.1], [23.93, 190.8], [29.61, 239.9], [35.18, 289.0], [40.02, 332.8],
        [44.82, 378.4], [50.76, 434.8], [55.05, 477.3], [61.01, 536.8], [66.40, 593.1], [75.47, 689.1], [81.78, 760.0],
    ]
)  # fmt: skip
THURBER = np.array(
    [
        [80.574, -3.067], [84.248, -2.981], [87.264, -2.921], [87.195, -2.912], [89.076, -2.840], [89.608, -2.797],
        [89.868, -2.702], [90.101, -2.699], [92.405, -2.633], [95.854, -2.481], [100.696, -2.363], [101.060, -2.322],
        [401.672, -1.501], [390.724, -1.460], [567.534, -1.274], [635.316, -1.212], [733.054, -1.100], [759.087, -1.046],
        [894.206, -0.915], [990.785, -0.714], [1090.109, -0.566], [1080.914, -0.545], [1122.643, -0.400],
        [1178.351, -0.309], [1260.531, -0.109], [1273.514, -0.103], [1288.339, 0.010], [1327.543, 0.119],
        [1353.863, 0.377], [1414.509, 0.790], [1425.208, 0.963], [1421.384, 1.006], [1442.962, 1.115], [1464.350, 1.572],
        [1468.705, 1.841], [1447.894, 2.047], [1457.628, 2.200],
    ]
)  # fmt: skip
RAT42 = np.array(
    [[8.93, 9], [10.8, 14], [18.59, 21], [22.33, 28], [39.35, 42], [56.11, 57], [61.73, 63], [64.62, 70], [67.08, 79]]
)
BOXBOD = np.array([[1.0, 2, 3, 5, 7, 10], [109, 149, 149, 191, 213, 224]])
MGH09 = np.array(
    [
        [4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625],
        [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246],
    ]
)
MGH10 = np.array(
    [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872]
)


def misra1a(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = MISRA1A.T
    decay = np.exp(-b[1] * x)
    return b[0] * (1 - decay) - y, np.column_stack([1 - decay, b[0] * x * decay])


def rat42(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = RAT42.T
    e = np.exp(b[1] - b[2] * x)
    slope = b[0] * e / (1 + e) ** 2
    return b[0] / (1 + e) - y, np.column_stack([1 / (1 + e), -slope, x * slope])


def thurber(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = THURBER.T
    top = b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3
    bottom = 1 + b[4] * x + b[5] * x**2 + b[6] * x**3
    powers = x[:, None] ** np.arange(4)
    return top / bottom - y, np.hstack([powers / bottom[:, None], -(top / bottom**2)[:, None] * powers[:, 1:]])


def rosenbrock(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]]), np.array([[-20 * x[0], 10.0], [-1.0, 0.0]])


def boxbod(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = BOXBOD
    decay = np.exp(-b[1] * x)
    return b[0] * (1 - decay) - y, np.column_stack([1 - decay, b[0] * x * decay])


def mgh09(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = MGH09
    top, bottom = x * x + x * b[1], x * x + x * b[2] + b[3]
    f = b[0] * top / bottom
    return f - y, np.column_stack([top / bottom, b[0] * x / bottom, -f * x / bottom, -f / bottom])


def mgh10(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.arange(50.0, 126.0, 5.0), MGH10
    shifted = x + b[2]
    e = np.exp(b[1] / shifted)
    return b[0] * e - y, np.column_stack([e, b[0] * e / shifted, -b[0] * e * b[1] / shifted**2])


#: Residuals, NIST's starts, certified parameters and residual sum of squares. BoxBOD and MGH10 are rated "higher" difficulty,
#: as MGH09 and Thurber; of those two NIST's far starts lead any plain Levenberg-Marquardt, scipy's too, away.
CERTIFIED: dict[str, tuple[lm.Residual, list[list[float]], list[float], float]] = {
    "misra1a": (misra1a, [[500, 0.0001], [250, 0.0005]], [2.3894212918e02, 5.5015643181e-04], 1.2455138894e-01),
    "rat42": (
        rat42,
        [[100, 1, 0.1], [75, 2.5, 0.07]],
        [7.2462237576e01, 2.6180768402e00, 6.7359200066e-02],
        8.0565229338e00,
    ),
    "thurber": (
        thurber,
        [[1000, 1000, 400, 40, 0.7, 0.3, 0.03], [1300, 1500, 500, 75, 1, 0.4, 0.05]],
        [
            1.2881396800e03,
            1.4910792535e03,
            5.8323836877e02,
            7.5416644291e01,
            9.6629502864e-01,
            3.9797285797e-01,
            4.9727297349e-02,
        ],
        5.6427082397e03,
    ),
    "boxbod": (boxbod, [[100, 0.75]], [2.1380940889e02, 5.4723748542e-01], 1.1680088766e03),
    "mgh09": (
        mgh09,
        [[25, 39, 41.5, 39], [0.25, 0.39, 0.415, 0.39]],
        [1.9280693458e-01, 1.9128232873e-01, 1.2305650693e-01, 1.3606233068e-01],
        3.0750560385e-04,
    ),
    "mgh10": (mgh10, [[0.02, 4000, 250]], [5.6096364710e-03, 6.1813463463e03, 3.4522363462e02], 8.7945855171e01),
}


@every_engine
@pytest.mark.parametrize("name", CERTIFIED)
def test_nist_certified_values_are_reached_from_every_start_in_one_batch(name: str, engine: str) -> None:
    residual, starts, certified, sum_of_squares = CERTIFIED[name]
    found = lm.run(dense(engine, residual), starts, TIGHT)
    # NIST: a good solver agrees to some 6 digits or more; double precision allows this much on these problems.
    np.testing.assert_allclose(numpy(found.x), np.tile(certified, (len(starts), 1)), rtol=1e-7)
    np.testing.assert_allclose(2 * numpy(found.cost), sum_of_squares, rtol=1e-9)


@every_engine
def test_rosenbrock_from_the_classical_start(engine: str) -> None:
    found = lm.run(dense(engine, rosenbrock), [[-1.2, 1.0]], TIGHT)
    np.testing.assert_allclose(numpy(found.x)[0], [1, 1], rtol=1e-10)
    assert int(found.steps[0]) < 60


def test_cost_falls_with_every_step() -> None:
    found = lm.solve(rosenbrock, [-1.2, 1.0], TIGHT)
    assert np.all(np.diff(found.costs) < 0)
    assert len(found.costs) == found.steps + 1


@pytest.mark.parametrize(
    "residual_start", [(misra1a, [500, 0.0001]), (rat42, [100, 1, 0.1]), (rosenbrock, [-1.2, 1.0])]
)
def test_solution_agrees_with_scipy(residual_start: tuple[lm.Residual, list[float]]) -> None:
    residual, start = residual_start
    peer = scipy.optimize.least_squares(
        lambda b: residual(b)[0], start, jac=lambda b: residual(b)[1], method="lm", ftol=1e-15, xtol=1e-15, gtol=1e-15
    )
    np.testing.assert_allclose(lm.solve(residual, start, TIGHT).x, peer.x, rtol=1e-6)


def test_a_problem_ends_the_same_alone_and_in_a_batch() -> None:
    starts = [[-1.2, 1.0], [1.0, 1.0], [40.0, -7.0], [np.nan, 0.0]]
    together = lm.run(lm.DenseProblem(rosenbrock), starts, TIGHT)
    for i, x in enumerate(starts[:3]):
        alone = lm.solve(rosenbrock, x, TIGHT)
        np.testing.assert_array_equal(together.x[i], alone.x)
        assert (together.steps[i], lm.REASONS[together.reason[i]]) == (alone.steps, alone.reason)
    assert lm.REASONS[together.reason[3]] == "start"
    assert np.isfinite(together.x).all()


def test_linear_problem_is_solved_in_few_steps() -> None:
    rng = np.random.default_rng(3)
    a, y = rng.normal(size=(30, 4)), rng.normal(size=30)
    found = lm.solve(lambda x: (a @ x - y, a), np.zeros(4), lm.Settings(damping=1e-12))
    np.testing.assert_allclose(found.x, np.linalg.lstsq(a, y, rcond=None)[0], rtol=1e-9)
    assert found.steps <= 3


@every_engine
def test_rank_deficient_problem_still_falls_to_the_minimum(engine: str) -> None:
    a = np.array([[1.0, 1.0], [2.0, 2.0], [0.5, 0.5]])
    found = lm.run(dense(engine, lambda x: (a @ x - np.array([1.0, 2.0, 0.5]), a)), [[0.0, 0.0]], TIGHT)
    assert float(found.cost[0]) < 1e-20


def test_a_start_without_a_finite_cost_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="starting point"):
        lm.solve(lambda x: (np.array([np.nan]), np.ones((1, 1))), [0.0])


def test_a_jacobian_that_is_not_finite_ends_where_it_started() -> None:
    found = lm.solve(lambda x: (x - 1, np.full((2, 2), np.nan)), [0.0, 3.0])
    assert found.reason == "damping"
    np.testing.assert_array_equal(found.x, [0, 3])


def test_trials_that_overflow_are_steps_not_made() -> None:
    # The first, undamped step from 2 goes to e^8: e^x overflows there.
    found = lm.solve(lambda x: (np.exp(x) - np.exp(10.0), np.exp(x)[None]), [2.0], lm.Settings(damping=1e-9))
    np.testing.assert_allclose(found.x, [10], rtol=1e-9)


def network_jacobian(parameters: np.ndarray, x: np.ndarray, linear: bool = False) -> np.ndarray:
    """By hand, column by column."""
    w1, b1, w2, _, _ = lm_network.split(parameters, x.shape[1], linear)
    g = np.tanh(x @ w1 + b1)
    d = w2 * (1 - g**2)
    columns = []
    for j in range(len(w2)):
        columns += [d[:, j] * x[:, c] for c in range(x.shape[1])] + [d[:, j], g[:, j]]
    return np.column_stack([*columns, *(x.T if linear else []), np.ones(len(x))])


def equations(problem: Any, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if problem.xp is np:
        return problem.normal_equations(parameters, 0)
    matrix, gradient = problem.normal_equations(problem.array(parameters[None]), problem.array([0]))
    return numpy(matrix[0]), numpy(gradient[0])


@every_engine
@given(
    n=st.integers(1, 40), k=st.integers(1, 5), h=st.integers(1, 6), linear=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@hypothesis_settings(max_examples=30, deadline=None)
def test_normal_equations_are_those_of_the_jacobian(
    engine: str, n: int, k: int, h: int, linear: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, y, weight = rng.normal(size=(n, k)), rng.normal(size=n), rng.uniform(0.01, 2, n)
    theta = rng.normal(size=lm_network.parameter_count(k, h, linear))
    jacobian = network_jacobian(theta, x, linear)
    expected = jacobian.T @ (weight[:, None] * jacobian)
    slope = jacobian.T @ (weight * (lm_network.forward(theta, x, linear) - y))
    # Rounding of the sums over samples: of 1e-16 in float64, 1e-7 in float32, times terms of at most a few hundred.
    for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-3)):
        matrix, gradient = equations(networks(engine, x, y, weight, [h], linear=linear, dtype=dtype), theta)
        np.testing.assert_allclose(matrix, expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gradient, slope, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_normal_equations_do_not_depend_on_chunks(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    args = (rng.normal(size=(1300, 3)), rng.normal(size=1300), np.ones(1300), [4])
    theta = rng.normal(size=21)
    whole = equations(networks("numpy", *args, dtype=dtype), theta)
    monkeypatch.setattr(lm_numba, "CHUNK", 7)
    tolerance = 1e-9 if dtype == "float64" else 1e-3
    for a, b in zip(whole, equations(networks("numpy", *args, dtype=dtype), theta), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    pieces = networks("torch-cpu", *args, dtype=dtype)
    pieces.chunk = 7
    for a, b in zip(whole, equations(pieces, theta), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@every_engine
@pytest.mark.parametrize("linear", [False, True])
def test_network_gradient_matches_differences_of_the_cost(engine: str, linear: bool) -> None:
    rng = np.random.default_rng(1)
    problem = networks(engine, rng.normal(size=(50, 2)), rng.normal(size=50), np.ones(50), [3], 0.7, linear=linear)
    theta = rng.normal(size=problem.table.parameters)
    which = problem.array([True])

    def cost(t: np.ndarray) -> float:
        return float(problem.cost(problem.array(t[None]), which)[0])

    numeric = scipy.optimize.approx_fprime(theta, cost, 1e-7)
    exact = numpy(problem.linearise(problem.array(theta[None]), which))[0]
    np.testing.assert_allclose(exact, numeric, rtol=1e-4, atol=1e-4)


@every_engine
def test_network_reaches_scipys_minimum_from_the_same_start(engine: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 2))
    y = np.sin(x[:, 0]) + 0.1 * rng.normal(size=200)
    theta = np.array([0.5, 0.1, 0.0, 0.5, 0.0])
    problem = networks(engine, x, y, np.ones(200), [1])
    ours = lm.run(problem, theta[None], lm.Settings(max_steps=500, gradient_tolerance=1e-9))
    peer = scipy.optimize.least_squares(
        lambda t: lm_network.forward(t, x) - y, theta, jac=lambda t: network_jacobian(t, x), method="lm", max_nfev=5000
    )
    assert float(ours.cost[0]) == pytest.approx(peer.cost, rel=1e-9)


HIDDEN = [3, 8, 1, 5]


def scene(seed: int = 2, n: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three predictors, a target, and the four inner folds' rows (4, n)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = np.tanh(x[:, 0] * x[:, 1]) + 0.3 * x[:, 2] + 0.3 * rng.normal(size=n)
    return x, y, np.arange(n) * 4 // n == np.arange(4)[:, None]


def batch(engine: str, **kwargs: Any) -> tuple[Any, np.ndarray]:
    """Four networks of different widths, ridges and folds, and their starts."""
    x, y, held = scene()
    decay = [0.0, 1.0, 0.1, 10.0]
    problem = networks(engine, x, y, np.where(held, 0.0, 1.5), HIDDEN, decay, held * 2.0, **kwargs)
    rng = np.random.default_rng(7)
    starts = np.zeros((4, problem.table.parameters))
    for i, hidden in enumerate(HIDDEN):
        own = problem.table.own(hidden)
        starts[i, own] = 0.5 * rng.normal(size=own.size)
    return problem, starts


@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("linear", [False, True])
def test_engines_agree_step_by_step(engine: str, linear: bool) -> None:
    settings, stop = lm.Settings(0.1, max_steps=40), Stop()
    (one, starts), (other, _) = batch("numpy", linear=linear), batch(engine, linear=linear)
    a, b = lm_network.begin(one, starts, settings, stop), lm_network.begin(other, starts, settings, stop)
    for _ in range(12):
        a, b = lm_network.advance(one, a, settings, stop), lm_network.advance(other, b, settings, stop)
        for name, theirs in lm_network.arrays(lm_network.to_numpy(b)).items():
            # Both round at 1e-16; what a solve adds is the condition of the damped system, here at most some 1e6.
            np.testing.assert_allclose(lm_network.arrays(a)[name], theirs, rtol=1e-8, atol=1e-8, err_msg=name)
    assert a.state.steps.min() > 3


@every_engine
def test_float32_makes_the_same_steps(engine: str) -> None:
    settings = lm.Settings(0.1, max_steps=8)
    errors = []
    for dtype in ("float64", "float32"):
        problem, starts = batch(engine, dtype=dtype)
        errors.append(lm_network.to_numpy(lm_network.train(problem, starts, settings)).trace[:, :, :2])
    # Eight steps let 1e-7 of float32 grow no further than this.
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-3)


@every_engine
def test_padding_changes_nothing_and_stays_zero(engine: str) -> None:
    settings = lm.Settings(max_steps=6)
    problem, starts = batch(engine)
    found = lm_network.to_numpy(lm_network.train(problem, starts, settings))
    x, y, held = scene()
    for i, hidden in enumerate(HIDDEN):
        own = problem.table.own(hidden)
        assert not np.delete(found.state.x[i], own).any()
        alone = networks(engine, x, y, np.where(held[i], 0, 1.5), [hidden], problem.table.decay[i], held[i] * 2.0)
        single = lm_network.to_numpy(lm_network.train(alone, starts[i : i + 1, own], settings))
        if engine == "numpy":
            np.testing.assert_array_equal(found.state.x[i, own], single.state.x[0])
        # torch sums in another order when other networks stand beside it.
        np.testing.assert_allclose(found.best_mse[i], single.best_mse[0], rtol=1e-7)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_result_does_not_depend_on_threads(dtype: str) -> None:
    found = []
    for threads in (1, 3):
        problem, starts = batch("numpy", dtype=dtype, threads=threads)
        found.append(lm_network.train(problem, starts, lm.Settings(max_steps=10)))
    for a, b in zip(lm_network.arrays(found[0]).values(), lm_network.arrays(found[1]).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@every_engine
def test_samples_of_weight_zero_teach_nothing(engine: str) -> None:
    x, y, held = scene()
    rng = np.random.default_rng(0)
    start, weight = rng.normal(size=(1, 11)), np.where(held[1], 0.0, 1.0)
    spoiled = np.where(held[1], 1e3, y)
    first, second = (
        lm_network.to_numpy(
            lm_network.train(networks(engine, x, target, weight, [2]), start, lm.Settings(max_steps=10))
        )
        for target in (y, spoiled)
    )
    np.testing.assert_array_equal(first.state.x, second.state.x)
    direct = networks(engine, x[~held[1]], y[~held[1]], 1.0, [2])
    third = lm_network.to_numpy(lm_network.train(direct, start, lm.Settings(max_steps=10)))
    np.testing.assert_allclose(third.best_mse, first.best_mse, rtol=1e-7)


@pytest.mark.parametrize("engine", ["numpy", "torch-cpu"])
def test_networks_that_share_their_weights_train_as_with_copies_of_them(engine: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 3)), rng.normal(size=90)
    held = np.arange(90) % 3 == np.arange(3)[:, None]
    # The third row of weights is nobody's, as where another process trains its networks.
    member = np.array([1, 0, 1, 0])
    start = rng.normal(size=(4, lm_network.parameter_count(3, 2)))
    shared, copied = (
        lm_network.to_numpy(lm_network.train(problem, start, lm.Settings(max_steps=8)))
        for problem in (
            networks(engine, x, y, ~held, [2] * 4, 0.1, held, member=member),
            networks(engine, x, y, ~held[member], [2] * 4, 0.1, held[member]),
        )
    )
    for name, values in lm_network.arrays(shared).items():
        np.testing.assert_array_equal(values, lm_network.arrays(copied)[name])
    with pytest.raises(InputError, match="one of the 3 rows of weight"):
        networks(engine, x, y, ~held, [2] * 4, 0.1, held, member=[0, 1, 2, 3])


@every_engine
def test_training_stops_on_validation_and_keeps_its_best(engine: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 3))
    y = np.tanh(x[:, 0]) + 0.3 * rng.normal(size=80)
    held = np.arange(80) >= 60
    problem = networks(engine, x, y, ~held, [8], 0.0, held)
    training = lm_network.train(problem, 0.3 * rng.normal(size=(1, 41)), lm.Settings(max_steps=300), Stop(patience=5))
    found = lm_network.to_numpy(training)
    assert lm_network.reasons(found) == ["validation"]
    steps = int(found.state.steps[0])
    trace = found.trace[0, : steps + 1]
    assert np.isnan(found.trace[0, steps + 1 :]).all()
    assert found.best_mse[0] == trace[:, 1].min() == trace[found.best_step[0], 1]
    assert steps == found.best_step[0] + 5
    error = lm_network.forward(found.best[0], x) - y
    assert np.mean(error[60:] ** 2) == pytest.approx(found.best_mse[0], rel=1e-9)
    assert np.mean(error[:60] ** 2) == pytest.approx(trace[found.best_step[0], 0], rel=1e-9)
    assert (np.diff(trace[:, 0]) < 0).all()


@every_engine
def test_each_network_stops_at_its_own_end(engine: str) -> None:
    x, y, _ = scene()
    starts = np.zeros((3, 21))
    starts[:2] = 0.5 * np.random.default_rng(0).normal(size=(2, 21))
    starts[2, 0] = np.inf
    problem = networks(engine, x, y, 1.0, [4, 4, 4])
    found = lm_network.to_numpy(lm_network.train(problem, starts, lm.Settings(max_steps=4), Stop(goal=1e-9)))
    assert lm_network.reasons(found) == ["steps", "steps", "start"]
    assert found.best_mse[2] == np.inf
    assert np.isfinite(found.best).all()
    goal = float(found.trace[0, 2, 0])
    again = lm_network.to_numpy(lm_network.train(problem, starts, lm.Settings(max_steps=4), Stop(goal=goal)))
    assert lm_network.reasons(again)[0] == "goal"
    assert again.state.steps[0] == 2
    assert lm_network.reasons(lm_network.train(problem, starts, lm.Settings(max_steps=0)))[0] == "steps"


@every_engine
def test_training_goes_on_from_its_arrays_as_if_never_stopped(engine: str) -> None:
    settings, stop = lm.Settings(1e-3, max_steps=12), Stop(patience=30)
    problem, starts = batch(engine)
    whole = lm_network.train(problem, starts, settings, stop)
    for cut in (1, 4, 7):
        part = lm_network.begin(problem, starts, settings, stop)
        for _ in range(cut):
            part = lm_network.advance(problem, part, settings, stop)
        part = lm_network.restored(lm_network.arrays(part))
        fresh, _ = batch(engine)
        while not lm_network.finished(part):
            part = lm_network.advance(fresh, part, settings, stop)
        for name, values in lm_network.arrays(whole).items():
            # Linear models are formed again side by side with others, and torch's rounding may depend on those.
            again, tolerance = numpy(lm_network.arrays(part)[name]), 0.0 if engine == "numpy" else 1e-8
            np.testing.assert_allclose(again, numpy(values), rtol=tolerance, atol=tolerance, err_msg=name)


@every_engine
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_hard_samples_never_leave_nan(engine: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    copied = np.repeat(rng.normal(size=(5, 1)), 6, axis=1)
    copied[:, 5] = 0.0
    for scale, damping in ((1.0, 1e-3), (1.0, 1e-18), (1e18, 1e-3), (1e200, 1e-3)):
        problem = networks(engine, copied, rng.normal(size=5), np.ones(5), [7, 7], dtype=dtype)
        starts = scale * rng.normal(size=(2, problem.table.parameters))
        found = lm_network.to_numpy(lm_network.train(problem, starts, lm.Settings(damping, max_steps=30)))
        assert np.isfinite(found.state.x).all()
        assert np.isfinite(found.best).all()
        assert not np.isnan(found.best_mse).any()
        if scale == 1.0:
            assert found.best_mse.max() < 1e-3


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"x": [[np.nan, 1.0]] * 4}, "NaN or infinite"),
        ({"y": [1.0, 2.0]}, "got x \\(4, 2\\), y \\(2,\\)"),
        ({"weight": [0.0] * 4}, "training sample"),
        ({"weight": [-1.0] * 4}, "not negative"),
        ({"weight": [1.0] * 3}, "weight must broadcast"),
        ({"decay": [1.0, 2.0]}, "decay must broadcast"),
        ({"hidden": [0]}, "at least one neuron"),
        ({"engine": "abacus"}, "engine must be one of"),
        ({"dtype": "float16"}, "dtype one of"),
    ],
)
def test_a_table_that_cannot_be_learnt_is_refused_in_a_line(change: dict[str, Any], line: str) -> None:
    given: dict[str, Any] = {"x": np.ones((4, 2)), "y": np.ones(4), "weight": np.ones(4), "hidden": [2], **change}
    with pytest.raises(InputError, match=line) as raised:
        lm_network.networks(**given)
    assert "\n" not in str(raised.value)


def test_parameters_of_another_shape_and_an_absent_gpu_are_refused() -> None:
    problem = networks("numpy", np.ones((4, 2)), np.ones(4), np.ones(4), [2])
    with pytest.raises(InputError, match="parameters must be"):
        lm_network.train(problem, np.zeros((1, 5)), lm.Settings())
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no GPU"):
            lm_torch.device_of("cuda")


def test_join_and_split_are_inverse_and_drop_padding() -> None:
    theta = np.arange(11.0)
    np.testing.assert_array_equal(lm_network.join(*lm_network.split(theta, 3)[:4]), theta)
    w1, b1, w2, b2, skip = lm_network.split(np.arange(1.0, 15.0), 3, linear=True)
    wide = lm_network.join(w1, b1, w2, b2, 4, skip)
    assert wide.size == lm_network.parameter_count(3, 4, linear=True)
    for a, b in zip(lm_network.split(wide, 3, linear=True), (w1, b1, w2, b2, skip), strict=True):
        np.testing.assert_array_equal(a, b)
