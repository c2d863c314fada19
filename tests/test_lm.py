"""The solver against certified values and scipy; the network's normal equations against its Jacobian."""

from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from smscale.kernels import lm

TIGHT = lm.Settings(max_steps=2000, gradient_tolerance=0.0, step_tolerance=1e-15)

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


@pytest.mark.parametrize(
    ("residual", "start", "certified", "sum_of_squares"),
    [
        (misra1a, [500, 0.0001], [2.3894212918e02, 5.5015643181e-04], 1.2455138894e-01),
        (misra1a, [250, 0.0005], [2.3894212918e02, 5.5015643181e-04], 1.2455138894e-01),
        (rat42, [100, 1, 0.1], [7.2462237576e01, 2.6180768402e00, 6.7359200066e-02], 8.0565229338e00),
        (
            thurber,
            [1000, 1000, 400, 40, 0.7, 0.3, 0.03],
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
        (
            thurber,
            [1300, 1500, 500, 75, 1, 0.4, 0.05],
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
    ],
)
def test_nist_certified_values_are_reached(
    residual: lm.Residual, start: list[float], certified: list[float], sum_of_squares: float
) -> None:
    found = lm.solve(residual, start, TIGHT)
    # NIST: a good solver agrees to some 6 digits or more; double precision allows this much on these problems.
    np.testing.assert_allclose(found.x, certified, rtol=1e-7)
    np.testing.assert_allclose(2 * found.cost, sum_of_squares, rtol=1e-9)


def test_rosenbrock_from_the_classical_start() -> None:
    found = lm.solve(rosenbrock, [-1.2, 1.0], TIGHT)
    np.testing.assert_allclose(found.x, [1, 1], rtol=1e-10)
    assert found.steps < 60
    assert np.all(np.diff(found.costs) <= 0)


@pytest.mark.parametrize(
    "residual_start", [(misra1a, [500, 0.0001]), (rat42, [100, 1, 0.1]), (rosenbrock, [-1.2, 1.0])]
)
def test_solution_agrees_with_scipy(residual_start: tuple[lm.Residual, list[float]]) -> None:
    residual, start = residual_start
    peer = scipy.optimize.least_squares(
        lambda b: residual(b)[0], start, jac=lambda b: residual(b)[1], method="lm", ftol=1e-15, xtol=1e-15, gtol=1e-15
    )
    np.testing.assert_allclose(lm.solve(residual, start, TIGHT).x, peer.x, rtol=1e-6)


def test_linear_problem_is_solved_in_few_steps() -> None:
    rng = np.random.default_rng(3)
    a, y = rng.normal(size=(30, 4)), rng.normal(size=30)
    found = lm.solve(lambda x: (a @ x - y, a), np.zeros(4), lm.Settings(damping=1e-9))
    np.testing.assert_allclose(found.x, np.linalg.lstsq(a, y, rcond=None)[0], rtol=1e-9)
    assert found.steps <= 3


def test_rank_deficient_problem_still_falls_to_the_minimum() -> None:
    a = np.array([[1.0, 1.0], [2.0, 2.0], [0.5, 0.5]])
    found = lm.solve(lambda x: (a @ x - np.array([1.0, 2.0, 0.5]), a), [0.0, 0.0], TIGHT)
    assert found.cost < 1e-20


def test_a_start_without_a_finite_cost_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="starting point"):
        lm.solve(lambda x: (np.array([np.nan]), np.ones((1, 1))), [0.0])


def network_jacobian(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """By hand, column by column."""
    w1, b1, w2, _ = lm.split(parameters, x.shape[1])
    g = np.tanh(x @ w1 + b1)
    d = w2 * (1 - g**2)
    columns = []
    for j in range(len(w2)):
        columns += [d[:, j] * x[:, c] for c in range(x.shape[1])] + [d[:, j], g[:, j]]
    return np.column_stack([*columns, np.ones(len(x))])


@given(n=st.integers(1, 40), k=st.integers(1, 5), h=st.integers(1, 6), seed=st.integers(0, 99))
@hypothesis_settings(max_examples=40, deadline=None)
def test_normal_equations_are_those_of_the_jacobian(n: int, k: int, h: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, weight = rng.normal(size=(n, k)), rng.normal(size=n), rng.uniform(0, 2, n)
    theta = rng.normal(size=h * (k + 2) + 1)
    matrix, gradient = lm.normal_equations(lm.NetworkProblem(x, y, weight, h), theta)
    jacobian = network_jacobian(theta, x)
    np.testing.assert_allclose(matrix, jacobian.T @ (weight[:, None] * jacobian), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(gradient, jacobian.T @ (weight * (lm.forward(theta, x) - y)), rtol=1e-10, atol=1e-10)


def test_normal_equations_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    problem = lm.NetworkProblem(rng.normal(size=(2500, 3)), rng.normal(size=2500), np.ones(2500), 4)
    theta = rng.normal(size=21)
    whole = lm.normal_equations(problem, theta)
    monkeypatch.setattr(lm, "CHUNK", 7)
    for a, b in zip(whole, lm.normal_equations(problem, theta), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_network_gradient_matches_differences_of_the_cost() -> None:
    rng = np.random.default_rng(1)
    problem = lm.NetworkProblem(rng.normal(size=(50, 2)), rng.normal(size=50), np.ones(50), 3, decay=0.7)
    theta = rng.normal(size=13)
    numeric = scipy.optimize.approx_fprime(theta, problem.cost, 1e-7)
    np.testing.assert_allclose(problem.linearise(theta).gradient, numeric, rtol=1e-4, atol=1e-4)


def test_network_reaches_scipys_minimum_from_the_same_start() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 2))
    y = np.sin(x[:, 0]) + 0.1 * rng.normal(size=200)
    problem = lm.NetworkProblem(x, y, np.ones(200), 1)
    theta = np.array([0.5, 0.1, 0.0, 0.5, 0.0])
    ours = lm.run(problem, theta, lm.Settings(max_steps=500, gradient_tolerance=1e-9))
    peer = scipy.optimize.least_squares(
        lambda t: lm.forward(t, x) - y, theta, jac=lambda t: network_jacobian(t, x), method="lm", max_nfev=5000
    )
    assert ours.cost == pytest.approx(peer.cost, rel=1e-9)


def make_watch(**kwargs: Any) -> tuple[lm.Watch, np.ndarray]:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 3))
    y = np.tanh(x[:, 0]) + 0.3 * rng.normal(size=80)
    validation = lm.Validation(x[60:], y[60:], np.ones(20))
    problem = lm.NetworkProblem(x[:60], y[:60], np.ones(60), 8)
    return lm.Watch(problem, kwargs.pop("validation", validation), **kwargs), 0.3 * rng.normal(size=41)


def test_training_stops_on_validation_and_keeps_its_best() -> None:
    watch, theta = make_watch(patience=5, max_steps=300)
    assert lm.train(watch, theta, lm.Settings()) == "validation"
    checked = [entry.validation_mse for entry in watch.trace]
    assert watch.best_mse == min(checked)
    assert watch.best is not None
    assert watch.validation is not None
    assert lm.mse(watch.best, *watch.validation) == min(checked)
    assert watch.trace[-1].mse <= watch.trace[0].mse


def test_training_stops_at_its_goal_or_its_steps() -> None:
    watch, theta = make_watch(goal=0.08, validation=None)
    assert lm.train(watch, theta, lm.Settings()) == "goal"
    assert watch.best_mse <= 0.08
    watch, theta = make_watch(max_steps=3, validation=None)
    assert lm.train(watch, theta, lm.Settings()) == "steps"


def test_join_and_split_are_inverse() -> None:
    theta = np.arange(11.0)
    np.testing.assert_array_equal(lm.join(*lm.split(theta, 3)), theta)
