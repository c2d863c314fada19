"""What GABPRegressor refuses of its settings, in one line, before anything is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from smscale.errors import InputError
from smscale.kernels import ga, ga_rules
from smscale.models.setting_kinds import are_devices, is_real, is_whole

ENGINES = ("lightning", "numpy")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
VALIDATIONS = ("blocks", "rows")
CHOICES = {"engine": ENGINES, "accelerator": ACCELERATORS, "validation": VALIDATIONS, "dtype": tuple(ga.DTYPES)}
#: The least of each whole number.
WHOLE = {
    "population": 4, "generations": 1, "min_hidden": 1, "max_hidden": 1, "members": 1, "repeats": 1, "restarts": 1,
    "max_steps": 1, "patience": 1, "plateau": 1,
}  # fmt: skip
#: The most of those that say how long a trace may be: it is kept whole.
MOST = {"generations": 1_000_000, "max_steps": 100_000}
#: Settings of the genetic algorithm that have no name of their own among the estimator's.
GENETICS = tuple(name for name in ga.Settings.__dataclass_fields__ if name not in WHOLE)


def check(given: Mapping[str, Any]) -> None:
    """Raise InputError, in one line, for settings (`get_params()`) that cannot be."""
    wrong = [*_numbers(given), *_choices(given), *_others(given)]
    if not wrong:
        wrong += _together(given)
    if wrong:
        raise InputError("GABPRegressor: " + "; ".join(wrong))
    ga_rules.check_settings(genetics(given))


def genetics(given: Mapping[str, Any]) -> ga.Settings:
    """The genetic algorithm's settings."""
    names = ("population", "generations", "max_hidden", "min_hidden", "plateau")
    return ga.Settings(**{name: given[name] for name in names}, **(given["genetics"] or {}))


def _numbers(given: Mapping[str, Any]) -> Iterable[str]:
    for name, least in WHOLE.items():
        if not is_whole(given[name]):
            yield f"{name} must be a whole number, got {given[name]!r}"
        elif given[name] < least:
            yield f"{name} must be at least {least}, got {given[name]!r}"
        elif given[name] > MOST.get(name, np.inf):
            yield f"{name} must be at most {MOST[name]}, got {given[name]!r}"
    if not is_real(given["mse_goal"]) or given["mse_goal"] < 0:
        yield f"mse_goal must be a number of at least 0, got {given['mse_goal']!r}"
    if not is_real(given["damping"]) or not given["damping"] > 0:
        yield f"damping must be a number above 0, got {given['damping']!r}"
    if not is_real(given["validation_fraction"]) or not 0 < given["validation_fraction"] < 1:
        yield f"validation_fraction must lie between 0 and 1, got {given['validation_fraction']!r}"
    if given["clip"] not in (None, np.inf) and not (is_real(given["clip"]) and given["clip"] > 0):
        yield f"clip must be above 0 or None, got {given['clip']!r}"


def _choices(given: Mapping[str, Any]) -> Iterable[str]:
    for name, known in CHOICES.items():
        if not isinstance(given[name], str) or given[name] not in known:
            yield f"{name} must be one of {', '.join(known)}, got {given[name]!r}"
    if not isinstance(given["ridge"], bool | np.bool_):
        yield f"ridge must be True or False, got {given['ridge']!r}"


def _others(given: Mapping[str, Any]) -> Iterable[str]:
    decays, jobs, checkpoint = given["decays"], given["n_jobs"], given["checkpoint"]
    listed = isinstance(decays, Sequence | np.ndarray) and not isinstance(decays, str) and np.ndim(decays) == 1
    if not listed or not len(decays) or not all(is_real(decay) and decay >= 0 for decay in decays):
        yield f"decays must be one or more numbers >= 0, got {decays!r}"
    if jobs is not None and (not is_whole(jobs) or jobs == 0):
        yield f"n_jobs must be None, at least 1, or below 0 to count from the last CPU; got {jobs!r}"
    if not are_devices(given["devices"]):
        yield f"devices must be a number of at least 1, 'auto' or a list of device numbers, got {given['devices']!r}"
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        yield f"checkpoint must be a folder or None, got {checkpoint!r}"
    for name in ("genetics", "trainer_options"):
        if given[name] is not None and not isinstance(given[name], Mapping):
            yield f"{name} must be a mapping or None, got {given[name]!r}"
    if isinstance(given["genetics"], Mapping) and (unknown := sorted(map(str, set(given["genetics"]) - set(GENETICS)))):
        yield f"genetics has no {', '.join(unknown)}; it takes {', '.join(GENETICS)}"


def _together(given: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong of settings that are sound one by one."""
    if given["max_hidden"] < given["min_hidden"]:
        yield f"max_hidden must be at least {given['min_hidden']}, got {given['max_hidden']}"
    if given["restarts"] > given["population"]:
        yield f"restarts must not exceed population, got {given['restarts']} of {given['population']}"
    if given["trainer_options"] and given["engine"] == "lightning":
        from smscale.models.gabp import lightning

        yield from lightning.refused(given["trainer_options"])
