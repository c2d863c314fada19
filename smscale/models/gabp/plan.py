"""A GABP training from first to last, over standardised samples: folds, genetic search, Levenberg-Marquardt, choice.

Knows nothing of scikit-learn: `learn` takes samples and a plan and gives arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smscale.kernels import ga, lm, lm_network
from smscale.models.gabp import kept as gabp_kept
from smscale.models.gabp.choice import Bench, check_finite, choose, held_out_line, mean_network
from smscale.models.gabp.folds import Member, Partitions, fold_by_fold, folds_of, members_of
from smscale.models.gabp.genetics import Evolved, Search, evolve
from smscale.models.gabp.kept import Kept, kept_in
from smscale.models.gabp.machine import Machine
from smscale.models.gabp.restarts import Restarts
from smscale.models.ridge import PENALTIES, penalty_shares, ridge_coefficients
from smscale.models.samples import Floats, Fold, Samples

#: Why a network ended that Lightning did not let go on: `max_time`, or a callback.
CUT_SHORT = "trainer"


class Entry(NamedTuple):
    """A step in a training trace; mse in target units squared."""

    step: int
    mse: float
    validation_mse: float
    damping: float


class Plan(NamedTuple):
    """What is done, see `GABPRegressor`; `stop.goal` in units of the standardised target squared."""

    partitions: Partitions
    search: Search
    decays: Sequence[float]
    ridge: bool
    steps: lm.Settings
    stop: lm_network.Stop
    machine: Machine
    checkpoint: Path | None


class Learned(NamedTuple):
    """The network's arrays (standardised), and what `GABPRegressor` tells of it under the same names."""

    network: dict[str, Floats]
    decay: float
    shrinkage: float
    inner_score: float
    members_hidden: list[int]
    ga_trace: list[ga.Trace]
    lm_trace: list[list[Entry]]
    stopped: list[str]


def learn(samples: Samples, deviation: float, plan: Plan, seed: int) -> Learned:
    """Train on standardised samples; `deviation` is that of the target, in its units, for scores and traces.

    Raises
    ------
    InputError : no finite network; a checkpoint that cannot be used
    """
    variance = deviation**2
    k, constant = samples.X.shape[1], is_constant(samples.y)
    samples, folds = fold_by_fold(samples, folds_of(samples.group, plan.partitions, seed))
    kept = _kept(samples, folds, plan, seed)
    evolved = _evolved(samples, folds, plan, seed, kept)
    members = members_of(samples.group, folds, [result.starts for result in evolved], plan.partitions, seed)
    trained = _trained(_restarts(samples, members, plan), variance, plan.machine, kept)
    shares = penalty_shares(*samples, seed) if plan.ridge else np.zeros(PENALTIES.size)
    line = held_out_line(samples, folds, shares)
    seats = plan.partitions.repeats * plan.partitions.restarts
    bench = Bench(members, seats, line, plan.ridge, plan.partitions.judges)
    chosen = choose(samples, bench, trained, plan.decays)
    share = 0.0 if constant else chosen.blend.share
    coefficients = ridge_coefficients(samples.X, samples.y, samples.weight, PENALTIES) @ shares
    network = mean_network(trained.best[chosen.networks], k, share, coefficients)
    network["w1"][is_constant(samples.X)] = 0.0
    check_finite(network)
    reasons = lm_network.reasons(trained)
    return Learned(
        network,
        chosen.decay,
        share,
        float(np.sqrt(chosen.blend.mse * variance)),
        [len(ga.network(members[i % len(members)].chromosome, k)[1]) for i in chosen.networks],
        [result.trace for result in evolved],
        [_entries(trained.trace[i], variance) for i in chosen.networks],
        [reasons[i] or CUT_SHORT for i in chosen.networks],
    )


def is_constant(standard: Floats) -> Any:
    """Whether standardised values do not vary: those that do have a standard deviation of 1."""
    return np.ptp(standard, axis=0) < 1e-6


def _kept(samples: Samples, folds: Sequence[Fold], plan: Plan, seed: int) -> Kept | None:
    told = plan._replace(machine=plan.machine.told, checkpoint=None)  # type: ignore[arg-type]
    return kept_in(plan.checkpoint, (told, seed), [*samples, *(held for _, held in folds)])


def _evolved(samples: Samples, folds: Sequence[Fold], plan: Plan, seed: int, kept: Kept | None) -> list[Evolved]:
    found = gabp_kept.load(kept, len(folds)) if kept else None
    if found is None:
        found = evolve(samples, folds, plan.search, seed, plan.machine)
        if kept:
            gabp_kept.save(kept, found)
    return found


def _restarts(samples: Samples, members: Sequence[Member], plan: Plan) -> Restarts:
    """All networks: those of the first decay, then those of the next."""
    parts = [ga.network(member.chromosome, samples.X.shape[1]) for member in members]
    hidden = np.array([len(b1) for _, b1, _, _ in parts])
    start = np.array([lm_network.join(*part, width=int(hidden.max())) for part in parts])
    weight, validation = np.zeros((2, len(members), len(samples.y)))
    for i, member in enumerate(members):
        weight[i, member.train] = samples.weight[member.train]
        validation[i, member.stop] = samples.weight[member.stop]
    times = len(plan.decays)
    return Restarts(
        samples.X,
        samples.y,
        weight,
        validation,
        np.tile(np.arange(len(members)), times),
        np.tile(hidden, times),
        np.repeat(np.asarray(plan.decays, float), len(members)),
        np.tile(start, (times, 1)),
        plan.steps,
        plan.stop,
        plan.search.dtype,
    )


def _trained(restarts: Restarts, variance: float, machine: Machine, kept: Kept | None) -> lm_network.Training:
    threads = machine.threads(len(restarts.y))
    if machine.engine == "numpy":
        return restarts.trained(threads)
    from smscale.models.gabp import lightning

    return lightning.train(restarts, variance, threads, machine.accelerator, machine.devices, machine.options, kept)


def _entries(trace: Floats, variance: float) -> list[Entry]:
    """The steps of one network from its part of the batch's trace (max_steps + 1, 3)."""
    steps = trace[~np.isnan(trace[:, 2])]
    return [Entry(i, float(m) * variance, float(v) * variance, float(d)) for i, (m, v, d) in enumerate(steps)]
