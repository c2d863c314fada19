"""Training of networks by Levenberg-Marquardt: goals, early stops, the best so far and the trace, over either engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from smscale.errors import InputError
from smscale.kernels import lm
from smscale.kernels.lm import Array, Settings, State


@dataclass(frozen=True)
class Stop:
    """When training ends before the solver does.

    goal : mean squared training error, units of y squared
    patience : steps without a better validation error, where there are validation samples
    """

    goal: float = 0.0
    patience: int = 12


class Training(NamedTuple):
    """r networks in training: the solver's state, and what was best so far.

    best (r, p), best_mse (r,), best_step (r,) : on the validation samples, on those of training where there are none.
        Never NaN: a start without a finite error leaves zeros and an infinite best_mse
    trace (r, max_steps + 1, 3) : mse, validation_mse (units of y squared) and damping after each step; NaN after the last
    """

    state: State
    best: Array
    best_mse: Array
    best_step: Array
    trace: Array


def begin(problem: Any, parameters: ArrayLike, settings: Settings, stop: Stop) -> Training:
    """Training before its first trial, from parameters (r, p)."""
    given = np.asarray(parameters, np.float64)
    expected = (len(problem.table.hidden), problem.table.parameters)
    if given.shape != expected:
        raise InputError(f"parameters must be (networks, parameters) {expected}; got {given.shape}")
    state = lm.start(problem, given, settings)
    xp = problem.xp
    trace = problem.array(np.full((len(given), settings.max_steps + 1, 3), np.nan))
    empty = Training(state, xp.zeros_like(state.x), xp.zeros_like(state.cost) + np.inf, state.steps, trace)
    return _seen(problem, empty, state, state.reason != lm.START, stop)


def advance(problem: Any, training: Training, settings: Settings, stop: Stop) -> Training:
    """One trial of every network that goes on; those whose error falls have made a step."""
    state = lm.advance(problem, training.state, settings)
    return _seen(problem, training, state, state.steps > training.state.steps, stop)


def _seen(problem: Any, before: Training, state: State, new: Array, stop: Stop) -> Training:
    """Record those that have made a step, and end those at their goal or past their patience."""
    xp = problem.xp
    training, validation = problem.mse(state.x, new)
    table = problem.table
    watched = problem.array(table.validations.any(axis=1)[table.member])
    score = xp.where(watched, validation, training)
    better = new & (score < before.best_mse)
    best = xp.where(better[:, None], state.x, before.best)
    best_mse = xp.where(better, score, before.best_mse)
    best_step = xp.where(better, state.steps, before.best_step)
    slots = problem.array(np.arange(before.trace.shape[1])) == state.steps[:, None]
    entry = xp.stack([training, validation, state.damping], -1)
    trace = xp.where((slots & new[:, None])[..., None], entry[:, None], before.trace)
    waited = watched & (state.steps - best_step >= stop.patience)
    reason = xp.where(new & waited, lm.VALIDATION, state.reason)
    reason = xp.where(new & (training <= stop.goal), lm.GOAL, reason)
    return Training(state._replace(reason=reason), best, best_mse, best_step, trace)


def train(problem: Any, parameters: ArrayLike, settings: Settings, stop: Stop | None = None) -> Training:
    """Train r networks from parameters (r, p) until every one has ended."""
    stop = stop or Stop()
    training = begin(problem, parameters, settings, stop)
    while not finished(training):
        training = advance(problem, training, settings, stop)
    return training


def finished(training: Training) -> bool:
    """Whether every network has ended."""
    return not lm.goes_on(training.state)


def reasons(training: Training) -> list[str]:
    """Why each network ended, see `lm.REASONS`."""
    return [lm.REASONS[int(code)] for code in training.state.reason]


def arrays(training: Training) -> dict[str, Array]:
    """Every array by its name, for a checkpoint."""
    return {**training.state._asdict(), **{name: getattr(training, name) for name in Training._fields[1:]}}


def restored(arrays: Mapping[str, Array]) -> Training:
    """Training from its arrays, to go on with; the linear models of a fresh problem are formed again."""
    training = _named(arrays)
    state = training.state
    return training._replace(state=state._replace(moved=state.reason == lm.GOES_ON))


def to_numpy(training: Training) -> Training:
    """With NumPy arrays, whatever the engine."""
    return _named({name: a if isinstance(a, np.ndarray) else a.cpu().numpy() for name, a in arrays(training).items()})


def _named(arrays: Mapping[str, Array]) -> Training:
    state = State(*(arrays[name] for name in State._fields))
    return Training(state, *(arrays[name] for name in Training._fields[1:]))
