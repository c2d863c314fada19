"""Levenberg-Marquardt: a solver that knows nothing of networks, for r problems at once.

A problem gives costs, forms its linear model where a point has moved, and solves it for a damping; `advance` makes one
trial of every problem that still goes on. All decisions are elementwise and written once, over NumPy or torch arrays (the
problem's `xp`); one problem is a batch of one. Costs are half sums of squares; everything here is float64.

A trial is accepted where the cost falls. The damping then follows the ratio of actual to predicted fall, else it grows ever
faster (Nielsen 1999, Damping parameter in Marquardt's method, IMM-REP-1999-05, equation 2.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Residual = Callable[[Floats], tuple[Floats, Floats]]
#: A NumPy array or a torch tensor.
Array = Any

#: What a code in `State.reason` means. "start": the cost there is not finite; "damping": no step helps.
REASONS = ("", "gradient", "step", "cost", "damping", "steps", "goal", "validation", "start")
GOES_ON, GRADIENT, STEP, COST, DAMPING, STEPS, GOAL, VALIDATION, START = range(len(REASONS))

#: Damping beyond which no step can help: steps are then 1e-16 of a gradient step. And the least, so that none divides by 0.
LARGEST_DAMPING, LEAST_DAMPING = 1e16, 1e-20


class Problem(Protocol):
    """r least-squares problems of p parameters each. `which` (r,) bool: rows of an answer outside it mean nothing."""

    xp: Any

    def array(self, values: ArrayLike) -> Array:
        """A NumPy array as one of the engine's."""

    def cost(self, x: Array, which: Array) -> Array:
        """Half the sum of squares (r,) at x (r, p); not finite where it overflows."""

    def linearise(self, x: Array, which: Array) -> Array:
        """Form and keep the linear models at x (r, p) of `which`; the gradients (r, p) of all kept models."""

    def step(self, damping: Array, which: Array) -> tuple[Array, Array]:
        """Damped steps (r, p) of the kept models and the falls of the cost (r,) that they predict; -1 where singular."""


@dataclass(frozen=True)
class Settings:
    """Starting damping and when to stop; tolerances are relative."""

    damping: float = 1e-3
    max_steps: int = 200
    gradient_tolerance: float = 1e-10
    step_tolerance: float = 1e-10
    cost_tolerance: float = 0.0


class State(NamedTuple):
    """The solver between two trials.

    x (r, p), cost (r,), damping (r,), its growth (r,), accepted steps (r,), reason (r,) a code of `REASONS`,
    moved (r,) whether the linear model is still to be formed.
    """

    x: Array
    cost: Array
    damping: Array
    growth: Array
    steps: Array
    reason: Array
    moved: Array


class Solution(NamedTuple):
    """x (p,), cost at x, steps made, cost after each step (first: the start), why it stopped."""

    x: Floats
    cost: float
    steps: int
    costs: Floats
    reason: str


def start(problem: Problem, x: ArrayLike, settings: Settings) -> State:
    """The state before the first trial, x (r, p); problems whose cost is not finite there have ended ("start")."""
    xp, point = problem.xp, np.array(x, np.float64)
    sound = problem.array(np.isfinite(point).all(axis=1))
    at = problem.array(np.where(np.isfinite(point), point, 0.0))
    with np.errstate(over="ignore", invalid="ignore"):
        cost = problem.cost(at, sound)
    ones = xp.ones_like(cost)
    steps = problem.array(np.zeros(len(point), np.int64))
    reason = xp.where(sound & xp.isfinite(cost), STEPS if settings.max_steps < 1 else GOES_ON, steps + START)
    return State(at, cost, ones * settings.damping, 2 * ones, steps, reason, reason == GOES_ON)


def advance(problem: Problem, state: State, settings: Settings) -> State:
    """One trial of every problem that goes on: a step where its cost falls, else a larger damping for the next trial."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _advance(problem, state, settings)


def _advance(problem: Problem, state: State, settings: Settings) -> State:
    xp = problem.xp
    active = state.reason == GOES_ON
    gradient = xp.amax(xp.abs(problem.linearise(state.x, active & state.moved)), -1)
    flat = active & (gradient <= settings.gradient_tolerance * xp.clip(state.cost, 1.0, None))
    trying = active & ~flat
    move, predicted = problem.step(state.damping, trying)
    sound = trying & xp.isfinite(gradient) & xp.isfinite(move).all(-1) & (predicted >= 0)
    move = xp.where(sound[:, None], move, 0.0)
    reached = state.x + move
    cost = problem.cost(reached, sound)
    fall = xp.where(sound & xp.isfinite(cost), state.cost - cost, -1.0)
    better = (fall > 0) & (predicted > 0)
    worse = trying & ~better
    x = xp.where(better[:, None], reached, state.x)
    # Beyond twice the predicted fall the damping falls by its most anyway.
    gain = xp.clip(xp.where(better, fall, 0.0) / xp.where(better, predicted, 1.0), None, 2.0)
    lower = xp.clip(state.damping * xp.clip(1 - (2 * gain - 1) ** 3, 1 / 3, None), LEAST_DAMPING, None)
    damping = xp.where(better, lower, xp.where(worse, state.damping * state.growth, state.damping))
    growth = xp.where(better, 2.0, xp.where(worse, state.growth * 2, state.growth))
    steps = xp.where(better, state.steps + 1, state.steps)
    short = _length(xp, move) <= settings.step_tolerance * _length(xp, x)
    reason = state.reason
    for code, ended in (
        (STEPS, better & (steps >= settings.max_steps)),
        (DAMPING, worse & (damping > LARGEST_DAMPING)),
        (COST, better & (fall <= settings.cost_tolerance * state.cost)),
        (STEP, sound & short),
        (GRADIENT, flat),
    ):
        reason = xp.where(ended, code, reason)
    moved = xp.where(active, better, state.moved)
    return State(x, xp.where(better, cost, state.cost), damping, growth, steps, reason, moved)


def _length(xp: Any, x: Array) -> Array:
    return xp.sqrt((x * x).sum(-1))


def goes_on(state: State) -> bool:
    """Whether any problem has not ended."""
    return bool((state.reason == GOES_ON).any())


def run(problem: Problem, x: ArrayLike, settings: Settings) -> State:
    """Advance from x (r, p) until every problem has converged or made `max_steps` steps."""
    state = start(problem, x, settings)
    while goes_on(state):
        state = advance(problem, state, settings)
    return state


@dataclass
class DenseProblem:
    """r problems that share one residual function, from their points; steps are scaled by the largest column norms so far
    (More 1978).

    The scaled Jacobian is factored once per point, U S V', so any damping is then two small products: never the normal
    equations, whose condition is the square.
    """

    residual: Residual
    xp: Any = np
    kept: dict[str, Floats] = field(default_factory=dict, repr=False)

    def array(self, values: ArrayLike) -> Array:
        return np.asarray(values)

    def host(self, values: Array) -> NDArray[Any]:
        """One of the engine's arrays as a NumPy array."""
        return np.asarray(values)

    def cost(self, x: Array, which: Array) -> Array:
        found = np.zeros(len(x))
        for i in np.flatnonzero(self.host(which)):
            r = np.asarray(self.residual(self.host(x)[i])[0], np.float64)
            found[i] = 0.5 * float(r @ r)
        return self.array(found)

    def linearise(self, x: Array, which: Array) -> Array:
        rows = np.flatnonzero(self.host(which))
        both = [self.residual(self.host(x)[i]) for i in rows]
        if both:
            r, jacobian = (np.stack([np.asarray(pair[side], np.float64) for pair in both]) for side in (0, 1))
            for name, values in self._factored(r, jacobian, rows, len(x)).items():
                self.kept.setdefault(name, np.zeros((len(x), *values.shape[1:])))[rows] = values
        return self.array(self.kept["gradient"]) if self.kept else self.xp.zeros_like(x)

    def _factored(self, r: Floats, jacobian: Floats, rows: NDArray[np.intp], count: int) -> dict[str, Floats]:
        """A Jacobian that is not finite counts as zero with an infinite gradient: no step from there helps."""
        sound = np.asarray(np.isfinite(jacobian).all(axis=(1, 2)))
        jacobian = np.where(sound[:, None, None], jacobian, 0.0)
        norms = np.linalg.norm(jacobian, axis=1)
        scale = np.maximum(self.kept.get("scale", np.zeros((count, norms.shape[1])))[rows], norms)
        scale = np.where(scale > 0, scale, 1.0)
        left, values, right = self._svd(jacobian / scale[:, None])
        gradient = np.where(sound[:, None], np.einsum("rmp,rm->rp", jacobian, r), np.inf)
        along = np.einsum("rmq,rm->rq", left, r)
        return {"scale": scale, "values": values, "right": right, "along": along, "gradient": gradient}

    def _svd(self, jacobian: Floats) -> tuple[Floats, Floats, Floats]:
        found = self.xp.linalg.svd(self.array(jacobian), full_matrices=False)
        return self.host(found[0]), self.host(found[1]), self.host(found[2])

    def step(self, damping: Array, which: Array) -> tuple[Array, Array]:
        if not self.kept:
            return self.xp.zeros_like(damping)[:, None], self.xp.zeros_like(damping) - 1
        values, right, along, scale = (self.array(self.kept[name]) for name in ("values", "right", "along", "scale"))
        damped = values * values + damping[:, None]
        move = -((values / damped * along)[:, None, :] @ right)[:, 0] / scale
        predicted = 0.5 * ((values * along) ** 2 * (damping[:, None] / damped + 1) / damped).sum(-1)
        return move, predicted


def solve(residual: Residual, x0: ArrayLike, settings: Settings | None = None) -> Solution:
    """Least squares of a general function.

    Parameters
    ----------
    residual : x (p,) -> (residuals (m,), Jacobian (m, p))
    x0 : (p,) start
    settings : damping and tolerances

    Raises
    ------
    FloatingPointError : the sum of squares at x0 is not finite

    Examples
    --------
    >>> line = lambda x: (np.array([x[0] - 1, 2 * x[1]]), np.array([[1.0, 0], [0, 2]]))
    >>> solve(line, [0.0, 5.0]).x.round(6)
    array([1., 0.])
    """
    settings = settings or Settings()
    problem = DenseProblem(residual)
    state = start(problem, np.atleast_2d(np.asarray(x0, np.float64)), settings)
    if state.reason[0] == START:
        raise FloatingPointError(f"the sum of squares at the starting point is {state.cost[0]}")
    costs = [state.cost[0]]
    while goes_on(state):
        before, state = state, advance(problem, state, settings)
        if state.steps[0] > before.steps[0]:
            costs.append(state.cost[0])
    return Solution(state.x[0], float(state.cost[0]), int(state.steps[0]), np.array(costs), REASONS[state.reason[0]])
