"""Raw and debiased scores at stations, before and after a fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.fusion.residuals import MIN_STATION_RESIDUALS
from smscale.kernels.score_sums import finalise_scores, score_sums

Floats = NDArray[np.float64]


def raw_and_debiased(reference: ArrayLike, estimates: Mapping[str, ArrayLike]) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of several estimates on the pairs that all of them share.

    Raw counts everything, the persistent error of the map at a station among it. Debiased takes each station's own mean
    difference off first, and so says only how well the changes are followed: a fusion that removes persistent errors
    gains in the first, not in the second.

    Parameters
    ----------
    reference : (n, t) station values; estimates : name -> (n, t); NaN is missing

    Returns
    -------
    {"raw": {name: scores}, "debiased": {name: scores}}, as `smscale.scores`; debiased ones of stations with at least
    `MIN_STATION_RESIDUALS` shared pairs, whose number is their n.
    """
    seen = np.asarray(reference, np.float64)
    tables = {name: np.asarray(estimate, np.float64) for name, estimate in estimates.items()}
    odd = {name: table.shape for name, table in tables.items() if table.shape != seen.shape}
    if odd or seen.ndim != 2:
        raise InputError(f"reference and estimates must be (stations, steps) alike; got {seen.shape} and {odd}")
    shared = np.logical_and.reduce([np.isfinite(seen), *(np.isfinite(table) for table in tables.values())])
    count = shared.sum(axis=1)
    enough = shared & (count >= MIN_STATION_RESIDUALS)[:, None]
    out: dict[str, dict[str, dict[str, Any]]] = {"raw": {}, "debiased": {}}
    for name, table in tables.items():
        difference = np.where(shared, table - seen, 0.0).sum(axis=1) / np.maximum(count, 1)
        out["raw"][name] = _scores(seen, table, shared)
        out["debiased"][name] = _scores(seen, table - difference[:, None], enough)
    return out


def _scores(reference: Floats, estimate: Floats, pairs: NDArray[np.bool_]) -> dict[str, Any]:
    return finalise_scores(score_sums(reference[pairs], estimate[pairs]))
