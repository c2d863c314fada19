"""What estimators that search refuse of their settings, in one line, before anything is done; and the seed that is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from smscale.errors import InputError
from smscale.models.setting_kinds import is_whole

#: scikit-learn's and NumPy's old generator take seeds below.
SEEDS = 2**32


def plain_seed(random_state: Any) -> int:
    """What seeds a fit: a whole number is itself; a RandomState, or None for NumPy's own, draws one.

    Raises
    ------
    InputError : it is none of these
    """
    if is_whole(random_state) and 0 <= random_state < SEEDS:
        return int(random_state)
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31 - 1))
    raise InputError(
        f"random_state must be None, a RandomState or a whole number from 0 to {SEEDS - 1}; got {random_state!r}"
    )


def misfits(settings: Any, least: Mapping[str, int], words: Mapping[str, Sequence[Any]]) -> list[str]:
    """A phrase for each of an object's settings that is no whole number of at least its `least`, or none of its `words`."""
    wrong = []
    for name, lowest in least.items():
        value = getattr(settings, name)
        if not is_whole(value) or value < lowest:
            wrong.append(f"{name} must be a whole number of at least {lowest}, got {value!r}")
    for name, known in words.items():
        value = getattr(settings, name)
        if not any(type(value) is type(word) and value == word for word in known):
            wrong.append(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
    return wrong


def spaces(space: Any, known: Sequence[str], what: str, distributions: bool = False) -> list[str]:
    """A phrase for what is wrong with a `space` to search: lists of values by the names of `known` settings."""
    if not isinstance(space, Mapping) or not space:
        return [f"{what} must have at least one value for each of one or more names, got {space!r}"]
    wrong = []
    for name, values in space.items():
        if name not in known:
            wrong.append(f"{what}: {name} is unknown; expected among {', '.join(known)}")
        elif hasattr(values, "rvs"):
            wrong += [] if distributions else [f"{what}: {name} is a distribution; how must be random to draw from it"]
        elif isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or not len(values):
            wrong.append(f"{what} must have at least one value for {name}, as a list, got {values!r}")
    return wrong
