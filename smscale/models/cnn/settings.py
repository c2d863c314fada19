"""What CNNRegressor refuses of its settings, in one line, before anything is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from smscale.errors import InputError
from smscale.models.cnn.layers import GROUPS
from smscale.models.setting_kinds import are_devices, is_real, is_whole

VALIDATIONS = ("blocks", "rows")


def check(given: Mapping[str, Any]) -> None:
    """Raise InputError, in one line, for settings (`get_params()`) that cannot be."""
    wrong = [
        f"{name} must be {expected}, got {given[name]!r}" for name, expected in (*_numbers(given), *_others(given))
    ]
    if not wrong and given["trainer_options"]:
        from smscale.models import lightning_run

        wrong += lightning_run.refused(given["trainer_options"])
    if wrong:
        raise InputError("CNNRegressor: " + "; ".join(wrong))


def _numbers(given: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Name and expectation of each setting that is no number, or not in its range."""
    for name in ("epochs", "members"):
        if not _at_least_one(given[name]):
            yield name, "a whole number of at least 1"
    for name in ("batch_size", "patience"):
        if given[name] is not None and not _at_least_one(given[name]):
            yield name, "None or a whole number of at least 1"
    if not _at_least_one(given["patch"]) or given["patch"] % 2 == 0:
        yield "patch", "an odd whole number"
    for name in ("dropout", "averaging"):
        if not is_real(given[name]) or not 0 <= given[name] < 1:
            yield name, "a number, 0 or more and below 1"
    if not is_real(given["learning_rate"]) or not given["learning_rate"] > 0:
        yield "learning_rate", "a number above 0"
    if not is_real(given["weight_decay"]) or given["weight_decay"] < 0:
        yield "weight_decay", "a number of at least 0"
    if not is_real(given["validation_fraction"]) or not 0 < given["validation_fraction"] < 1:
        yield "validation_fraction", "a number between 0 and 1"
    if given["clip"] is not None and not (is_real(given["clip"]) and given["clip"] > 0):
        yield "clip", "None or a number above 0"


def _others(given: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    filters = given["filters"]
    listed = isinstance(filters, Sequence | np.ndarray) and not isinstance(filters, str)
    if not listed or len(filters) != GROUPS or not all(_at_least_one(width) for width in filters):
        yield "filters", f"{GROUPS} whole numbers of at least 1"
    if not isinstance(given["ridge"], bool | np.bool_):
        yield "ridge", "True or False"
    if not isinstance(given["validation"], str) or given["validation"] not in VALIDATIONS:
        yield "validation", f"one of {', '.join(VALIDATIONS)}"
    if not isinstance(given["accelerator"], str):
        yield "accelerator", "'auto' or a name of Lightning's"
    if not are_devices(given["devices"]):
        yield "devices", "a number of at least 1, 'auto' or a list of device numbers"
    if given["checkpoint"] is not None and not isinstance(given["checkpoint"], str | os.PathLike):
        yield "checkpoint", "None or a folder"
    if given["trainer_options"] is not None and not isinstance(given["trainer_options"], Mapping):
        yield "trainer_options", "None or a mapping"


def _at_least_one(value: Any) -> bool:
    return is_whole(value) and value >= 1
