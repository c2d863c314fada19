"""Which rows train a network, which stop it and which judge it: inner folds, and the networks that each of them starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smscale.models.samples import Fold, Labels, Rows, Samples, inner_folds, inner_split


class Partitions(NamedTuple):
    """How rows are set aside, see `GABPRegressor`; `judges`: whether some of the rows held out must judge, as something is
    chosen."""

    members: int
    repeats: int
    restarts: int
    fraction: float
    judges: bool


class Member(NamedTuple):
    """A network to train: rows that train it, rows that stop it, rows that judge it; `seat` counts the judges of a row."""

    train: Rows
    stop: Rows
    judge: Rows
    seat: int
    chromosome: NDArray[np.floating[Any]]


def folds_of(group: Labels, partitions: Partitions, seed: int) -> list[Fold]:
    """Training and held-out rows, one partition after the other."""
    found = []
    members, groups = partitions.members, np.unique(group).size
    if partitions.judges and members > 1 and groups > 1:
        # A fold of two groups at least: one stops training, the other judges.
        members = min(members, max(2, groups // 2))
    for repeat in range(partitions.repeats):
        rng = np.random.default_rng([seed, repeat])
        if partitions.members == 1:
            found.append(inner_split(group, partitions.fraction, rng))
        else:
            found += inner_folds(group, members, rng)
    return found


def fold_by_fold(samples: Samples, folds: Sequence[Fold]) -> tuple[Samples, list[Fold]]:
    """Rows put in the order of the folds that hold them out: they cost a network least where they stand together."""
    place = np.concatenate([held for _, held in folds])
    place = place[np.sort(np.unique(place, return_index=True)[1])]
    place = np.append(place, np.setdiff1d(np.arange(len(samples.y)), place))
    where = np.argsort(place)
    return Samples(*(array[place] for array in samples)), [(np.sort(where[a]), np.sort(where[b])) for a, b in folds]


def members_of(
    group: Labels,
    folds: Sequence[Fold],
    starts: Sequence[NDArray[np.floating[Any]]],
    partitions: Partitions,
    seed: int,
) -> list[Member]:
    """The networks of one decay: of each fold those that go on from its starts (restarts, g)."""
    found = []
    for number, ((train, held), chromosomes) in enumerate(zip(folds, starts, strict=True)):
        halves = [held, held]
        if partitions.judges and held.size > 1:
            rng = np.random.default_rng([seed, number, 1])
            halves = [held[half] for _, half in inner_folds(group[held], 2, rng)]
        repeat = number * partitions.repeats // len(folds)
        for restart, chromosome in enumerate(chromosomes):
            side = (number + restart) % 2
            seat = repeat * partitions.restarts + restart
            found.append(Member(train, halves[side], halves[1 - side], seat, chromosome))
    return _judged_apart(found, group) if partitions.judges else found


def _judged_apart(members: Sequence[Member], group: Labels) -> list[Member]:
    """Without the judges that share a group with the rows that stop: they judge too kindly. All stay where all do."""
    apart = [not np.isin(group[member.judge], group[member.stop]).any() for member in members]
    none = np.empty(0, np.intp)
    return [
        member if alone or not any(apart) else member._replace(judge=none)
        for member, alone in zip(members, apart, strict=True)
    ]
