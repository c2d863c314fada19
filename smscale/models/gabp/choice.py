"""What is made of trained networks: the decay that rows unseen approve, and how far its mean may depart from a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from smscale.errors import InputError
from smscale.kernels import lm_network
from smscale.models.blend import Blend, blend
from smscale.models.gabp.folds import Member
from smscale.models.ridge import PENALTIES, held_out_lines
from smscale.models.samples import LARGEST, Floats, Fold, Rows, Samples


class Chosen(NamedTuple):
    """A decay, its networks (numbers among all trained) and what is made of them."""

    decay: float
    networks: Rows
    blend: Blend


class Bench(NamedTuple):
    """Who judges: the members of one decay, with judges' seats in all; what a line says of rows unseen (n,), for `ridge`."""

    members: Sequence[Member]
    seats: int
    line: Floats
    ridge: bool
    judges: bool


def choose(samples: Samples, bench: Bench, trained: lm_network.Training, decays: Sequence[float]) -> Chosen:
    """The decay whose networks and ridge together do best where they are judged; the larger of equals.

    Networks number i * members + j are of decay i and member j.

    Raises
    ------
    InputError : no network has a finite error
    """
    members, found = bench.members, []
    for number in np.argsort(decays)[::-1]:
        networks = number * len(members) + np.arange(len(members))
        networks = networks[np.isfinite(trained.best_mse[networks])]
        if any(members[i % len(members)].judge.size for i in networks):
            found.append(Chosen(float(decays[number]), networks, judged(samples, bench, trained, networks)))
    if not found:
        raise InputError(
            "no network reached a finite error on the inner folds; look for extreme values in the predictors"
        )
    return min(found, key=lambda chosen: chosen.blend.mse)


def judged(samples: Samples, bench: Bench, trained: lm_network.Training, networks: Rows) -> Blend:
    """How much of the mean of some networks is to be taken, and the error that it then has."""
    if not bench.judges:
        return Blend(1.0, float(np.mean(trained.best_mse[networks])))
    X, y, weight, group = samples
    estimates = np.full((bench.seats, len(y)), np.nan)
    for i in networks:
        member = bench.members[i % len(bench.members)]
        judge = member.judge
        estimates[member.seat, judge] = lm_network.forward(trained.best[i], X[judge])
    rows = np.isfinite(estimates).any(axis=0)
    share = None if bench.ridge else 1.0
    return blend(estimates[:, rows], bench.line[rows], y[rows], weight[rows], group[rows], len(networks), share)


def held_out_line(samples: Samples, folds: Sequence[Fold], shares: Floats) -> Floats:
    """What ridge regressions of the folds' training rows say of the rows held out; NaN for rows always trained on.

    shares : of each of `PENALTIES` in what they say together
    """
    total, times = np.zeros((2, len(samples.y)))
    lines = held_out_lines(samples.X, samples.y, samples.weight, folds, PENALTIES)
    for (_, held), line in zip(folds, lines, strict=True):
        total[held] += line.at(samples.X[held]) @ shares
        times[held] += 1
    return np.where(times > 0, total / np.maximum(times, 1), np.nan)


def mean_network(parameters: Floats, k: int, share: float, coefficients: Floats) -> dict[str, Floats]:
    """`share` of the mean of several networks, one whose hidden layer holds all their neurons, beside the rest of a line."""
    parts = [lm_network.split(p, k) for p in parameters]
    return {
        "w1": np.ascontiguousarray(np.hstack([part[0] for part in parts])),
        "b1": np.concatenate([part[1] for part in parts]),
        "w2": np.concatenate([part[2] for part in parts]) * (share / len(parts)),
        "b2": np.asarray(share * np.mean([part[3] for part in parts])),
        "linear": (1.0 - share) * coefficients,
    }


def check_finite(network: Mapping[str, Floats]) -> None:
    """Refuse a network that would predict NaN."""
    if not all(np.isfinite(values).all() and np.abs(values).max(initial=0) < LARGEST for values in network.values()):
        raise InputError("training ended in a network that is not finite; take a larger decay or fewer neurons")
