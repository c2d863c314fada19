"""Levenberg-Marquardt: a solver that knows nothing of networks, and the normal equations of a network in closed form.

A problem answers `cost(x)` and `linearise(x)`; `advance` makes one step. Steps are accepted when the cost falls; the
damping follows the ratio of actual to predicted fall (Nielsen 1999, Damping parameter in Marquardt's method,
IMM-REP-1999-05, equation 2.5). Cost is half the weighted sum of squares, everything float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Residual = Callable[[Floats], tuple[Floats, Floats]]

#: Damping beyond which no step can help: steps are then 1e-16 of a gradient step.
LARGEST_DAMPING = 1e16
#: Samples whose products are formed at once: 210 pairs of 20 neurons in float64 are 1.7 MB, a second-level cache.
CHUNK = 1024


class Linear(Protocol):
    """A problem linearised at one point."""

    @property
    def gradient(self) -> Floats:
        """(p,)."""

    def step(self, damping: float) -> tuple[Floats, float]:
        """The damped step (p,) and the fall of the cost that the linear model predicts; raises LinAlgError if singular."""


class Problem(Protocol):
    """What the solver needs to know."""

    def cost(self, x: Floats) -> float:
        """Half the sum of squares at x (p,)."""

    def linearise(self, x: Floats) -> Linear:
        """The linear model at x (p,)."""


@dataclass(frozen=True)
class Settings:
    """Starting damping and when to stop; tolerances are relative."""

    damping: float = 1e-3
    max_steps: int = 200
    gradient_tolerance: float = 1e-10
    step_tolerance: float = 1e-10
    cost_tolerance: float = 0.0


@dataclass(frozen=True)
class State:
    """The solver between two steps; `reason` says why it stopped, None while it may go on."""

    x: Floats
    cost: float
    damping: float
    growth: float = 2.0
    steps: int = 0
    reason: str | None = None


class Solution(NamedTuple):
    """x (p,), cost at x, steps made, cost after each step (first: the start), why it stopped."""

    x: Floats
    cost: float
    steps: int
    costs: Floats
    reason: str


def start(problem: Problem, x: ArrayLike, settings: Settings) -> State:
    """The state before the first step; raises FloatingPointError where the cost is not finite."""
    x = np.array(x, np.float64)
    cost = problem.cost(x)
    if not np.isfinite(cost):
        raise FloatingPointError(f"the sum of squares at the starting point is {cost}")
    return State(x, cost, settings.damping)


def advance(problem: Problem, state: State, settings: Settings) -> State:
    """One accepted step, or the reason why there is none ("gradient", "step", "cost", "damping")."""
    model = problem.linearise(state.x)
    if np.max(np.abs(model.gradient), initial=0.0) <= settings.gradient_tolerance * max(1.0, state.cost):
        return replace(state, reason="gradient")
    damping, growth = state.damping, state.growth
    while damping <= LARGEST_DAMPING:
        move, predicted, cost = _trial(problem, model, state.x, damping)
        gain = (state.cost - cost) / predicted if predicted > 0 else -1.0
        if gain > 0:
            damping *= max(1 / 3, 1 - (2 * gain - 1) ** 3)
            reached = State(state.x + move, cost, max(damping, 1e-20), 2.0, state.steps + 1)
            return replace(reached, reason=_converged(state, reached, move, settings))
        if predicted >= 0 and np.linalg.norm(move) <= settings.step_tolerance * np.linalg.norm(state.x):
            return replace(state, reason="step")
        damping, growth = damping * growth, growth * 2
    return replace(state, reason="damping")


def _trial(problem: Problem, model: Linear, x: Floats, damping: float) -> tuple[Floats, float, float]:
    """Step, predicted fall and cost there; a singular system or a cost that is not finite is a step that fails."""
    try:
        move, predicted = model.step(damping)
    except np.linalg.LinAlgError:
        return np.full_like(x, np.inf), -1.0, np.inf
    with np.errstate(over="ignore", invalid="ignore"):
        cost = problem.cost(x + move)
    return move, predicted, cost if np.isfinite(cost) else np.inf


def _converged(before: State, after: State, move: Floats, settings: Settings) -> str | None:
    if np.linalg.norm(move) <= settings.step_tolerance * np.linalg.norm(after.x):
        return "step"
    if before.cost - after.cost <= settings.cost_tolerance * before.cost:
        return "cost"
    return None


def run(problem: Problem, x: ArrayLike, settings: Settings) -> Solution:
    """Step until converged or `max_steps` are made (reason "steps")."""
    state = start(problem, x, settings)
    costs = [state.cost]
    while state.reason is None:
        if state.steps >= settings.max_steps:
            state = replace(state, reason="steps")
            break
        state = advance(problem, state, settings)
        costs.append(state.cost)
    return Solution(state.x, state.cost, state.steps, np.array(costs), state.reason or "steps")


@dataclass
class DenseProblem:
    """Residuals and their Jacobian from a function; steps are scaled by the largest column norms so far (More 1978).

    Steps solve the stacked system [J; sqrt(damping) D] d = [-r; 0] by orthogonal factors, never the normal equations.
    """

    residual: Residual
    scale: Floats | None = field(default=None, repr=False)

    def cost(self, x: Floats) -> float:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            r = np.asarray(self.residual(x)[0], np.float64)
            return 0.5 * float(r @ r)

    def linearise(self, x: Floats) -> Linear:
        r, jacobian = (np.asarray(a, np.float64) for a in self.residual(x))
        norms = np.linalg.norm(jacobian, axis=0)
        self.scale = np.where(norms > 0, norms, 1.0) if self.scale is None else np.maximum(self.scale, norms)
        return _DenseModel(r, jacobian, self.scale.copy(), jacobian.T @ r)


@dataclass(frozen=True)
class _DenseModel:
    r: Floats
    jacobian: Floats
    scale: Floats
    gradient: Floats

    def step(self, damping: float) -> tuple[Floats, float]:
        scaled = self.jacobian / self.scale
        p = scaled.shape[1]
        stacked = np.vstack([scaled, np.sqrt(damping) * np.eye(p)])
        move, *_ = scipy.linalg.lstsq(stacked, -np.concatenate([self.r, np.zeros(p)]), lapack_driver="gelsy")
        predicted = 0.5 * (damping * move @ move - move @ (self.gradient / self.scale))
        return move / self.scale, float(predicted)


def solve(residual: Residual, x0: ArrayLike, settings: Settings | None = None) -> Solution:
    """Least squares of a general function.

    Parameters
    ----------
    residual : x (p,) -> (residuals (m,), Jacobian (m, p))
    x0 : (p,) start
    settings : damping and tolerances

    Examples
    --------
    >>> line = lambda x: (np.array([x[0] - 1, 2 * x[1]]), np.array([[1.0, 0], [0, 2]]))
    >>> solve(line, [0.0, 5.0]).x.round(6)
    array([1., 0.])
    """
    return run(DenseProblem(residual), x0, settings or Settings())


@dataclass(frozen=True)
class NetworkProblem:
    """One-hidden-layer tanh network with linear output, against one target.

    Parameters are neuron after neuron (k weights, threshold, output weight), then the output threshold: p = h (k + 2) + 1.
    Cost is half of sum_i w_i (f(x_i) - y_i)^2 + decay |parameters without the output threshold|^2.

    Every Jacobian column is an input (or 1) times d_j = w2_j (1 - g_j^2), or g_j = tanh(a_j), so J'J splits into
    (products of inputs)' (products of d and g): with m = k + 1 inputs the m (m + 1) / 2 input products are formed once.

    Parameters
    ----------
    x : (n, k) float64; y : (n,) float64; weight : (n,) float64; hidden : h; decay : ridge on the parameters
    """

    x: Floats
    y: Floats
    weight: Floats
    hidden: int
    decay: float = 0.0
    inputs: Floats = field(init=False, repr=False)
    products: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        inputs = np.hstack([self.x, np.ones((len(self.x), 1))])
        a, b = np.triu_indices(inputs.shape[1])
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "products", self.weight[:, None] * inputs[:, a] * inputs[:, b])

    def cost(self, x: Floats) -> float:
        error = forward(x, self.x) - self.y
        return 0.5 * float(np.sum(self.weight * error * error) + self.decay * (x[:-1] @ x[:-1]))

    def mse(self, x: Floats) -> float:
        """Weighted mean squared error."""
        return mse(x, self.x, self.y, self.weight)

    def linearise(self, x: Floats) -> Linear:
        matrix, gradient = normal_equations(self, x)
        index = np.arange(len(x) - 1)
        matrix[index, index] += self.decay
        gradient[:-1] += self.decay * x[:-1]
        return _NormalModel(matrix, gradient)


@dataclass(frozen=True)
class _NormalModel:
    matrix: Floats
    gradient: Floats

    def step(self, damping: float) -> tuple[Floats, float]:
        damped = self.matrix.copy()
        damped.flat[:: len(damped) + 1] += damping
        factor = scipy.linalg.cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
        move = -scipy.linalg.cho_solve(factor, self.gradient, check_finite=False)
        return move, 0.5 * float(damping * move @ move - move @ self.gradient)


def split(parameters: Floats, k: int) -> tuple[Floats, Floats, Floats, float]:
    """w1 (k, h), b1 (h,), w2 (h,), b2 of a parameter vector."""
    neurons = parameters[:-1].reshape(-1, k + 2)
    return neurons[:, :k].T, neurons[:, k], neurons[:, k + 1], float(parameters[-1])


def join(w1: ArrayLike, b1: ArrayLike, w2: ArrayLike, b2: float) -> Floats:
    """Parameter vector (h (k + 2) + 1,) of a network."""
    neurons = np.hstack([np.asarray(w1, np.float64).T, np.asarray(b1)[:, None], np.asarray(w2)[:, None]])
    return np.append(neurons.ravel(), b2)


def forward(parameters: Floats, x: Floats) -> Floats:
    """Network of x (n, k) float64, (n,)."""
    w1, b1, w2, b2 = split(parameters, x.shape[1])
    return np.tanh(x @ w1 + b1) @ w2 + b2


def mse(parameters: Floats, x: Floats, y: Floats, weight: Floats) -> float:
    """Weighted mean squared error of a network."""
    error = forward(parameters, x) - y
    return float(np.sum(weight * error * error) / np.sum(weight))


def normal_equations(problem: NetworkProblem, parameters: Floats) -> tuple[Floats, Floats]:
    """J'WJ (p, p) and J'Wr (p,) of a network, without its Jacobian."""
    n, m = problem.inputs.shape
    h = problem.hidden
    w1, b1, w2, b2 = split(parameters, m - 1)
    starts = np.cumsum([0, *range(h, 0, -1)])
    slopes = np.zeros((h * (h + 1) // 2, m * (m + 1) // 2))
    mixed = np.zeros((h * (h + 1), m))
    outputs = np.zeros((h + 1, h + 1))
    slope_gradient, output_gradient = np.zeros((h, m)), np.zeros(h + 1)
    for begin in range(0, n, CHUNK):
        rows = slice(begin, begin + CHUNK)
        inputs, weight = problem.inputs[rows], problem.weight[rows]
        g = np.ones((h + 1, len(inputs)))
        np.tanh(w1.T @ inputs[:, :-1].T + b1[:, None], out=g[:h])
        d = w2[:, None] * (1.0 - g[:h] ** 2)
        error = w2 @ g[:h] + b2 - problem.y[rows]
        weighted = weight[:, None] * inputs
        pairs, crossed = np.empty((len(slopes), len(inputs))), np.empty((h, h + 1, len(inputs)))
        for j in range(h):
            np.multiply(d[j:], d[j], out=pairs[starts[j] : starts[j + 1]])
            np.multiply(g, d[j], out=crossed[j])
        slopes += pairs @ problem.products[rows]
        mixed += crossed.reshape(len(mixed), -1) @ weighted
        outputs += (weight * g) @ g.T
        slope_gradient += (d * error) @ weighted
        output_gradient += g @ (weight * error)
    gradient = np.append(np.hstack([slope_gradient, output_gradient[:h, None]]).ravel(), output_gradient[h])
    return _assemble(slopes.T, mixed.reshape(h, h + 1, m).transpose(2, 0, 1), outputs), gradient


def _assemble(slopes: Floats, mixed: Floats, outputs: Floats) -> Floats:
    """Put the factorised blocks into the order of the parameters."""
    m, h = mixed.shape[:2]
    pair = np.zeros((m, m), np.int64)
    pair[np.triu_indices(m)] = np.arange(len(slopes))
    pair = np.maximum(pair, pair.T)
    couple = np.zeros((h, h), np.int64)
    couple[np.triu_indices(h)] = np.arange(slopes.shape[1])
    couple = np.maximum(couple, couple.T)
    blocks = np.empty((h, m + 1, h, m + 1))
    blocks[:, :m, :, :m] = slopes[pair[:, :, None, None], couple[None, None]].transpose(2, 0, 3, 1)
    blocks[:, :m, :, m] = mixed[:, :, :h].transpose(1, 0, 2)
    blocks[:, m, :, :m] = mixed[:, :, :h].transpose(2, 1, 0)
    blocks[:, m, :, m] = outputs[:h, :h]
    size = h * (m + 1)
    matrix = np.empty((size + 1, size + 1))
    matrix[:size, :size] = blocks.reshape(size, size)
    edge = np.vstack([mixed[:, :, h], outputs[:h, h][None]]).T.ravel()
    matrix[:size, size] = matrix[size, :size] = edge
    matrix[size, size] = outputs[h, h]
    return matrix


class Validation(NamedTuple):
    """Samples that only decide when to stop."""

    x: Floats
    y: Floats
    weight: Floats


class Entry(NamedTuple):
    """One line of a training trace; mse in target units squared, validation_mse NaN without validation samples."""

    step: int
    mse: float
    validation_mse: float
    damping: float


@dataclass
class Watch:
    """Watches a network being trained: keeps the parameters that are best on validation, says when to stop.

    Reasons beside the solver's: "goal" (mse <= goal), "validation" (no better for `patience` steps), "steps".
    """

    problem: NetworkProblem
    validation: Validation | None
    goal: float = 0.0
    patience: int = 12
    max_steps: int = 200
    trace: list[Entry] = field(default_factory=list)
    best: Floats | None = None
    best_mse: float = np.inf
    best_step: int = 0

    def see(self, state: State) -> str | None:
        """Record a state; the reason to stop, or None."""
        training = self.problem.mse(state.x)
        checked = mse(state.x, *self.validation) if self.validation is not None else np.nan
        self.trace.append(Entry(state.steps, training, checked, state.damping))
        score = training if self.validation is None else checked
        if score < self.best_mse:
            self.best, self.best_mse, self.best_step = state.x, score, state.steps
        if training <= self.goal:
            return "goal"
        if self.validation is not None and state.steps - self.best_step >= self.patience:
            return "validation"
        if state.steps >= self.max_steps:
            return "steps"
        return state.reason


@dataclass
class Training:
    """A network in training, one step at a time; `reason` is None while it goes on, the result lies in `watch`."""

    watch: Watch
    settings: Settings
    state: State
    reason: str | None = None

    @classmethod
    def begin(cls, watch: Watch, parameters: ArrayLike, settings: Settings) -> Training:
        """From a parameter vector (p,)."""
        state = start(watch.problem, parameters, settings)
        return cls(watch, settings, state, watch.see(state))

    def advance(self) -> None:
        """One step, unless training is over."""
        if self.reason is None:
            self.state = advance(self.watch.problem, self.state, self.settings)
            self.reason = self.watch.see(self.state)


def train(watch: Watch, parameters: ArrayLike, settings: Settings) -> str:
    """Train a network until its watch says stop; why it stopped. The result is in `watch.best` and `watch.trace`."""
    training = Training.begin(watch, parameters, settings)
    while training.reason is None:
        training.advance()
    return training.reason
