"""SMAP quality control: flags decoded bit by bit (tables: smap_tables.json), and three policies by name.

Every policy leaves out what is no retrieval (not attempted, not successful, impossible value) and frozen ground, snow, ice,
open water and uncorrected radio interference. Then

strict : only retrievals that SMAP recommends (this empties high mountains)
paper : every successful retrieval without precipitation; bare ground is left to whoever has the land cover
weighted : every successful retrieval, weighted by the inverse of its error variance

`quality` counts each retrieval that goes once, under the first reason that holds; `flag_counts` counts every bit that is set.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.schema import VARIABLES
from smscale.sources.smap import FLAG_FILL, TABLES

Policy = Literal["strict", "paper", "weighted"]
Mask = NDArray[np.bool_]

#: Error of a retrieval, m3 m-3: SMAP's requirement (0.04) for recommended ones, twice that otherwise.
DEFAULT_ERRORS = {"recommended": 0.04, "not_recommended": 0.08}
#: SMAP sets its static water flag above this share of the cell; where the flag is missing the fraction decides.
WATER_FRACTION = 0.05

#: Our flag variables, and the table of their bits.
_TABLE_OF = {
    "retrieval_quality": "retrieval_quality",
    "surface_flag": "surface_flag",
    "tb_quality_h": "tb_quality",
    "tb_quality_v": "tb_quality",
}

_SNOW_ICE = ("snow_or_ice", "permanent_snow_or_ice")
_FROZEN = ("frozen_ground_radiometer", "frozen_ground_model")
_WATER = ("static_water", "radar_water")


def flag_set(flags: xr.DataArray | NDArray[np.uint16], table: str, *names: str) -> Mask:
    """Where any of the named bits is set; never where the flag is missing (65534).

    Parameters
    ----------
    flags : uint16, any shape
    table : "retrieval_quality", "surface_flag" or "tb_quality"
    names : bits of that table, as "snow_or_ice"
    """
    values = np.asarray(flags)
    bits = 0
    for name in names:
        if name not in TABLES[table]:
            raise InputError(f"{table} has no bit {name!r}; known are {', '.join(TABLES[table])}")
        bits |= TABLES[table][name]
    return ((values & np.uint16(bits)) != 0) & (values != FLAG_FILL)


def quality(
    ds: xr.Dataset,
    policy: Policy = "strict",
    errors: Mapping[str, float] = DEFAULT_ERRORS,
) -> tuple[xr.DataArray, xr.DataArray, dict[str, int]]:
    """Which retrievals of an `open_smap` Dataset to keep, their weights, and why the rest went.

    Parameters
    ----------
    ds : as `open_smap` gives it, any dimensions; a flag that it lacks (SPL4SM has none) is not applied
    policy : see the module
    errors : m3 m-3, for `weighted`: the error of `recommended` and of `not_recommended` retrievals, and of those with any further
        named bit set, as {"dense_vegetation": 0.10, "mountains": 0.09}; of all that apply to a retrieval the largest counts

    Returns
    -------
    keep : bool, the shape of soil_moisture
    weight : float32, 0 where not kept; 1 / error^2 for `weighted`, else 1
    counts : cells, retrieved, kept, and per reason the retrieved cells that went, each under the first reason that holds, so that
        retrieved = kept + the sum of the reasons

    Raises
    ------
    InputError
        for a policy, or an error's name or value, that is none.
    """
    if policy not in get_args(Policy):
        raise InputError(f"quality policy must be one of {', '.join(get_args(Policy))}, got {policy!r}")
    errors = checked_errors(errors)
    soil_moisture = ds["soil_moisture"]
    retrieved = np.isfinite(soil_moisture.values)
    keep = retrieved.copy()
    counts = {"cells": retrieved.size, "retrieved": int(retrieved.sum())}
    for reason, bad in _reasons(ds, policy):
        counts[reason] = int((keep & bad).sum())
        keep &= ~bad
    counts["kept"] = int(keep.sum())
    weight = np.where(keep, _weights(ds, policy, errors), 0.0).astype(np.float32)
    lift = soil_moisture.copy
    kept = lift(data=keep).rename("keep")
    weighted = lift(data=weight).rename("weight")
    kept.attrs = {"long_name": "kept by quality control", "policy": policy}
    weighted.attrs = {"long_name": "weight of the retrieval", "policy": policy}
    return kept, weighted, counts


def recommended(ds: xr.Dataset) -> Mask:
    """Where SMAP recommends the retrieval (bit 0 of retrieval_quality clear); everywhere if the product has no such flag."""
    if "retrieval_quality" not in ds:
        return np.ones(ds["soil_moisture"].shape, dtype=bool)
    known = ds["retrieval_quality"].values != FLAG_FILL
    return known & ~flag_set(ds["retrieval_quality"], "retrieval_quality", "not_recommended")


def _reasons(ds: xr.Dataset, policy: Policy) -> list[tuple[str, Mask]]:
    """Each reason to leave a cell out, in the order in which cells are counted."""
    reasons = []
    values = ds["soil_moisture"].values
    limits = VARIABLES["soil_moisture"]
    if "retrieval_quality" in ds:
        flag = ds["retrieval_quality"]
        reasons += [
            ("no_quality_flag", flag.values == FLAG_FILL),
            ("not_successful", flag_set(flag, "retrieval_quality", "not_attempted", "not_successful")),
        ]
    with np.errstate(invalid="ignore"):
        reasons.append(("impossible_value", (values < limits.valid_min) | (values > limits.valid_max)))
    if "surface_flag" in ds:
        flag = ds["surface_flag"]
        reasons += [
            ("snow_or_ice", flag_set(flag, "surface_flag", *_SNOW_ICE)),
            ("frozen_ground", flag_set(flag, "surface_flag", *_FROZEN)),
        ]
    reasons.append(("open_water", _open_water(ds)))
    if "tb_quality_h" in ds and "tb_quality_v" in ds:
        reasons.append(("radio_interference", _uncorrected(ds["tb_quality_h"]) | _uncorrected(ds["tb_quality_v"])))
    if policy == "paper" and "surface_flag" in ds:
        reasons.append(("precipitation", flag_set(ds["surface_flag"], "surface_flag", "precipitation")))
    if policy == "strict":
        reasons.append(("not_recommended", ~recommended(ds)))
    return reasons


def _open_water(ds: xr.Dataset) -> Mask:
    """By the flag where there is one, else by the static water fraction."""
    flagged = np.zeros(ds["soil_moisture"].shape, dtype=bool)
    known = flagged
    if "surface_flag" in ds:
        flagged = flag_set(ds["surface_flag"], "surface_flag", *_WATER)
        known = ds["surface_flag"].values != FLAG_FILL
    if "static_water_body_fraction" not in ds:
        return flagged
    with np.errstate(invalid="ignore"):
        return flagged | (~known & (ds["static_water_body_fraction"].values > WATER_FRACTION))


def _uncorrected(flag: xr.DataArray) -> Mask:
    """Radio interference was found and could not be corrected."""
    return flag_set(flag, "tb_quality", "rfi_detected") & flag_set(flag, "tb_quality", "rfi_not_corrected")


def _weights(ds: xr.Dataset, policy: Policy, errors: Mapping[str, float]) -> NDArray[np.float64]:
    """1 / variance, where a retrieval's variance is the largest of those that apply to it."""
    shape = ds["soil_moisture"].shape
    if policy != "weighted":
        return np.ones(shape)
    error = np.where(recommended(ds), errors["recommended"], errors["not_recommended"])
    for name in set(errors) - set(DEFAULT_ERRORS):
        for flag in _flags_with(name):
            if flag in ds:
                error = np.where(flag_set(ds[flag], _TABLE_OF[flag], name), np.maximum(error, errors[name]), error)
    return error**-2.0


def _flags_with(name: str) -> list[str]:
    """Flag variables that have a bit of that name."""
    return [flag for flag, table in _TABLE_OF.items() if name in TABLES[table]]


# -- what a recipe says, what a report shows ------------------------------------------------------


def checked_errors(errors: Mapping[str, Any]) -> dict[str, float]:
    """Errors per flag, m3 m-3, as `quality` takes them; a name or value that is none is refused in one line.

    Example
    -------
    >>> checked_errors({"recommended": 0.04, "not_recommended": 0.08, "mountains": 0.09})["mountains"]
    0.09
    """
    known = [
        *DEFAULT_ERRORS,
        *(n for t in dict.fromkeys(_TABLE_OF.values()) for n in TABLES[t] if n not in DEFAULT_ERRORS),
    ]
    for name, value in errors.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"errors has no flag {name!r}; {hint}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise InputError(f"errors needs positive numbers up to 1 m3 m-3; {name} is {value!r}")
    lacking = [name for name in DEFAULT_ERRORS if name not in errors]
    if lacking:
        raise InputError(
            f"errors needs positive {', '.join(DEFAULT_ERRORS)} in m3 m-3, got {dict(errors)}: add {', '.join(lacking)}"
        )
    return {name: float(value) for name, value in errors.items()}


def flag_counts(ds: xr.Dataset) -> dict[str, dict[str, int]]:
    """How many retrieved cells have each bit set: a cell with three bits counts three times, unlike in `quality`.

    Parameters
    ----------
    ds : as `open_smap` or `smap_steps` gives it

    Returns
    -------
    flag variable -> `retrieved` (cells with a finite soil moisture), `missing` (of those without this flag), then every bit by
    name, also those that no cell has; `flag_meanings` says what each means. Counts of parts of a period add up.
    """
    retrieved = np.isfinite(ds["soil_moisture"].values)
    counts: dict[str, dict[str, int]] = {}
    for flag, table in _TABLE_OF.items():
        if flag not in ds:
            continue
        values = ds[flag].values[retrieved]
        known = values[values != FLAG_FILL]
        bits = {name: int(np.count_nonzero(known & np.uint16(bit))) for name, bit in TABLES[table].items()}
        counts[flag] = {"retrieved": values.size, "missing": values.size - known.size, **bits}
    return counts


def flag_meanings(flag: str) -> dict[str, str]:
    """What each bit of a flag variable says, by its name.

    Parameters
    ----------
    flag : "retrieval_quality", "surface_flag", "tb_quality_h" or "tb_quality_v"
    """
    if flag not in _TABLE_OF:
        raise InputError(f"no flag is called {flag!r}; known are {', '.join(_TABLE_OF)}")
    return dict(TABLES["meanings"][_TABLE_OF[flag]])
