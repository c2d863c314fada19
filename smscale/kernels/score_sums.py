"""Scores of an estimate against a reference from sums that merge.

With d = estimate - reference, means over the n pairs in which neither is NaN, and population moments:

- bias = mean(d); rmse = sqrt(mean(d^2)); mae = mean(|d|)
- ubrmse = sqrt(mean((d - bias)^2)), so rmse^2 = bias^2 + ubrmse^2 (Entekhabi et al. 2010, doi:10.1175/2010JHM1223.1, equation 5)
- cc = comoment / sqrt(m2_reference m2_estimate), Pearson's correlation; NaN where either side is constant
- kge = 1 - sqrt((cc - 1)^2 + (sigma_ratio - 1)^2 + (mean_ratio - 1)^2) (Gupta et al. 2009, doi:10.1016/j.jhydrol.2009.08.003, equation 9)
- r2 = 1 - sum(d^2) / m2_reference, the Nash-Sutcliffe efficiency (1970, doi:10.1016/0022-1694(70)90255-6)

The sums are counts, means and second central moments, merged as Chan, Golub and LeVeque (1983,
doi:10.1080/00031305.1983.10483115) do: a map scored block by block equals the map scored whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError

Floats = NDArray[np.float64]

#: What the last axis of an array of sums holds.
SUMS = (
    "n", "mean_reference", "mean_estimate", "mean_difference",
    "m2_reference", "m2_estimate", "m2_difference", "comoment", "sum_abs_difference",
)  # fmt: skip

#: What `scores` returns, and what `extended_scores` adds.
SCORES = ("rmse", "mae", "cc", "bias", "ubrmse", "kge", "n")
EXTENDED_SCORES = (*SCORES, "r2", "sigma_ratio", "mean_reference", "mean_estimate")

#: Fewer pairs than this have no score.
MIN_PAIRS = 2


def score_sums(reference: ArrayLike, estimate: ArrayLike, axis: int | Sequence[int] | None = None) -> Floats:
    """The mergeable sums of which scores are made.

    Parameters
    ----------
    reference, estimate : arrays of one shape; NaN is missing
    axis : the axes summed over; all by default

    Returns
    -------
    (..., 9) float64, the kept axes and then the values named in `SUMS`; all zero without pairs. Merge with `merge_sums`.
    """
    ref, est = _float64(reference), _float64(estimate)
    if ref.shape != est.shape:
        raise InputError(f"reference and estimate must have one shape; got {ref.shape} and {est.shape}")
    ref, est = _axes_last(ref, axis), _axes_last(est, axis)
    valid = ~(np.isnan(ref) | np.isnan(est))
    n = valid.sum(axis=-1).astype(np.float64)
    difference = est - ref
    mean_ref, dev_ref = _mean_and_deviations(ref, valid, n)
    mean_est, dev_est = _mean_and_deviations(est, valid, n)
    mean_dif, dev_dif = _mean_and_deviations(difference, valid, n)
    return np.stack(
        [
            n, mean_ref, mean_est, mean_dif,
            _dot(dev_ref, dev_ref), _dot(dev_est, dev_est), _dot(dev_dif, dev_dif), _dot(dev_ref, dev_est),
            np.abs(np.where(valid, difference, 0.0)).sum(axis=-1),
        ],
        axis=-1,
    )  # fmt: skip


def merge_sums(sums: ArrayLike | Iterable[ArrayLike], axis: int = 0) -> Floats:
    """The sums of everything together, from the sums of the parts.

    Parameters
    ----------
    sums : (..., k, ..., 9) float64, or k arrays (..., 9); as `score_sums` gives them
    axis : the axis of the parts, not the last

    Returns
    -------
    (..., 9) float64. The order of the parts changes the result by rounding only; no parts give zeros.
    """
    parts = np.asarray(sums if isinstance(sums, np.ndarray) else list(sums), dtype=np.float64)  # type: ignore[arg-type]
    if parts.size == 0 and parts.ndim < 2:
        return np.zeros(len(SUMS))
    if parts.ndim < 2 or parts.shape[-1] != len(SUMS):
        raise InputError(
            f"sums must end in {len(SUMS)} values and have an axis of parts before them; got {parts.shape}"
        )
    parts = np.moveaxis(parts, axis, -2)
    n = parts[..., 0]
    total = n.sum(axis=-1)
    filled = n > 0
    means, deviations = zip(*(_mean_and_deviations(parts[..., i], filled, total, n) for i in (1, 2, 3)), strict=True)
    ref, est, dif = deviations
    m2 = [
        parts[..., 4 + i].sum(axis=-1) + _dot(n * a, b)
        for i, (a, b) in enumerate([(ref, ref), (est, est), (dif, dif), (ref, est)])
    ]
    return np.stack([total, *means, *m2, parts[..., 8].sum(axis=-1)], axis=-1)


def finalise_scores(sums: ArrayLike, extended: bool = False) -> dict[str, Any]:
    """Scores of (merged) sums.

    Parameters
    ----------
    sums : (..., 9) float64, as `score_sums` and `merge_sums` give them
    extended : with r2, sigma_ratio and the two means

    Returns
    -------
    dict of floats and the int n for (9,), else of arrays (...).
    """
    values = np.asarray(sums, dtype=np.float64)
    names = EXTENDED_SCORES if extended else SCORES
    stacked = score_values(values, names)
    if values.ndim > 1:
        return {name: as_count(stacked[..., i]) if name == "n" else stacked[..., i] for i, name in enumerate(names)}
    return {name: int(stacked[i]) if name == "n" else float(stacked[i]) for i, name in enumerate(names)}


def score_values(sums: Floats, names: tuple[str, ...]) -> Floats:
    """(..., names) float64 of (..., 9) sums."""
    n, mean_ref, mean_est, bias, m2_ref, m2_est, m2_dif, comoment, abs_dif = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma_ratio = np.where(m2_ref > 0, np.sqrt(m2_est) / np.sqrt(m2_ref), np.nan)
        cc = np.clip(comoment / (np.sqrt(m2_ref) * np.sqrt(m2_est)), -1.0, 1.0)
        cc = np.where((m2_ref > 0) & (m2_est > 0), cc, np.nan)
        mean_ratio = np.where(mean_ref != 0, mean_est / mean_ref, np.nan)
        found = {
            "rmse": np.sqrt(m2_dif / n + bias * bias),
            "mae": abs_dif / n,
            "cc": cc,
            "bias": bias,
            "ubrmse": np.sqrt(m2_dif / n),
            "kge": 1 - np.sqrt((cc - 1) ** 2 + (sigma_ratio - 1) ** 2 + (mean_ratio - 1) ** 2),
            "r2": np.where(m2_ref > 0, 1 - (m2_dif + n * bias * bias) / m2_ref, np.nan),
            "sigma_ratio": sigma_ratio,
            "mean_reference": mean_ref,
            "mean_estimate": mean_est,
        }
    enough = n >= MIN_PAIRS
    return np.stack([n if name == "n" else np.where(enough, found[name], np.nan) for name in names], axis=-1)


def _float64(values: ArrayLike) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"scores need arrays of numbers; got {type(values).__name__} of {np.asarray(values).dtype}"
        ) from None


def _axes_last(values: Floats, axis: int | Sequence[int] | None) -> Floats:
    """(kept axes, everything else flattened)."""
    if axis is None:
        return values.reshape(-1)
    axes = np.lib.array_utils.normalize_axis_tuple(axis, values.ndim)
    kept = [values.shape[i] for i in range(values.ndim) if i not in axes]
    count = int(np.prod([values.shape[i] for i in axes]))
    return np.moveaxis(values, axes, range(-len(axes), 0)).reshape(*kept, count)


def _mean_and_deviations(
    values: Floats, valid: NDArray[np.bool_], total: Floats, weight: Floats | None = None
) -> tuple[Floats, Floats]:
    """Weighted mean over the last axis and deviations from it, zero where not valid.

    Values are first shifted by the first valid one: a constant has exactly that mean and no deviation.
    """
    if values.shape[-1] == 0:
        return np.zeros(values.shape[:-1]), np.zeros(values.shape)
    first = np.take_along_axis(values, valid.argmax(axis=-1)[..., None], axis=-1)
    with np.errstate(invalid="ignore"):
        shifted = np.where(valid, values - first, 0.0)
    sums = shifted.sum(axis=-1) if weight is None else _dot(weight, shifted)
    offset = sums / np.maximum(total, 1.0)
    deviations = np.where(valid, shifted - offset[..., None], 0.0)
    return np.where(total > 0, first[..., 0] + offset, 0.0), deviations


def _dot(a: Floats, b: Floats) -> Floats:
    """Sum of products over the last axis."""
    return np.einsum("...k,...k->...", a, b)


def as_count(values: Any) -> Any:
    return values.astype(np.int64)
