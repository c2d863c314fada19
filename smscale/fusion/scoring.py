"""Raw and debiased scores at stations, before and after a fusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.fusion.field import ResidualField
from smscale.fusion.residuals import MIN_STATION_RESIDUALS
from smscale.kernels.score_sums import finalise_scores, merge_sums, score_sums

Floats = NDArray[np.float64]

#: Values of some stations that are scored at once: bounds memory.
PAIRS = 1_000_000


def raw_and_debiased(reference: ArrayLike, estimates: Mapping[str, ArrayLike]) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of several estimates on the pairs that all of them share.

    Raw counts everything, the persistent error of the map at a station among it. Debiased takes each station's own mean
    difference off first, and so says only how well the changes are followed: a fusion that removes persistent errors
    gains in the first, not in the second.

    Parameters
    ----------
    reference : (n, t) station values; NaN is missing
    estimates : name -> (n, t); asked for twice, one after the other, so that a mapping may read them

    Returns
    -------
    {"raw": {name: scores}, "debiased": {name: scores}}, as `smscale.scores`; debiased ones of stations with at least
    `MIN_STATION_RESIDUALS` shared pairs, whose number is their n.
    """
    seen = np.asarray(reference, np.float64)
    shared = np.isfinite(seen)
    for name in estimates:
        table = np.asarray(estimates[name])
        if table.shape != seen.shape or seen.ndim != 2:
            raise InputError(
                f"reference and estimates must be (stations, steps) alike; got {seen.shape} and {name} {table.shape}"
            )
        shared &= np.isfinite(table)
    out: dict[str, dict[str, dict[str, Any]]] = {"raw": {}, "debiased": {}}
    for name in estimates:
        raw, debiased = zip(*_sums(seen, np.asarray(estimates[name]), shared), strict=True)
        out["raw"][name] = finalise_scores(merge_sums(raw))
        out["debiased"][name] = finalise_scores(merge_sums(debiased))
    return out


def standardised_left_out(field: ResidualField) -> Floats:
    """(k,) errors of leaving out one station after the other over their standard deviation, in the steps by kriging from all stations.

    Empty where kriging has neighbours or a spatial bias: the closed form holds for neither.
    """
    if field.bias is not None:
        return np.empty(0)
    prediction, variance = field.daily.left_out
    errors = (field.daily.values - prediction) / np.sqrt(variance)
    return np.asarray(errors[np.isfinite(errors)])


def error_sums(errors: NDArray) -> dict[str, float]:
    """Of standardised errors: how many, the sum of their squares, and how many are within 1; sums of parts are the whole's."""
    known = errors[np.isfinite(errors)]
    return {"n": known.size, "squares": float((known * known).sum()), "within": int((np.abs(known) <= 1).sum())}


def score_pairs(reference: NDArray, estimate: NDArray, pairs: NDArray[np.bool_]) -> dict[str, Any]:
    """Scores, as `smscale.scores`, of the (n, t) pairs that are chosen and not missing; some stations after others."""
    parts = (score_sums(reference[rows][pairs[rows]], estimate[rows][pairs[rows]]) for rows in _rows(reference.shape))
    return finalise_scores(merge_sums(parts))


def _rows(shape: tuple[int, ...]) -> Iterator[slice]:
    """Some stations after others, so that working memory does not grow with the network."""
    step = max(1, PAIRS // max(1, shape[1]))
    for start in range(0, max(shape[0], 1), step):
        yield slice(start, start + step)


def _sums(seen: NDArray, table: NDArray, shared: NDArray[np.bool_]) -> Iterator[tuple[Floats, Floats]]:
    """Raw and debiased sums of some stations after others."""
    for rows in _rows(seen.shape):
        reference, estimate, pairs = seen[rows].astype(np.float64), table[rows].astype(np.float64), shared[rows]
        count = pairs.sum(axis=1)
        difference = np.where(pairs, estimate - reference, 0.0).sum(axis=1) / np.maximum(count, 1)
        enough = pairs & (count >= MIN_STATION_RESIDUALS)[:, None]
        yield (
            score_sums(reference[pairs], estimate[pairs]),
            score_sums(reference[enough], (estimate - difference[:, None])[enough]),
        )
