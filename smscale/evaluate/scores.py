"""Scores of an estimate against a reference, whole or from mergeable sums.

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

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from smscale.errors import InputError

if TYPE_CHECKING:
    import dask.array as da

Floats = NDArray[np.float64]

#: What the last axis of an array of sums holds.
SUMS = (
    "n", "mean_reference", "mean_estimate", "mean_difference",
    "m2_reference", "m2_estimate", "m2_difference", "comoment", "sum_abs_difference",
)  # fmt: skip

#: What `scores` returns, and what `extended_scores` adds.
SCORES = ("rmse", "mae", "cc", "bias", "ubrmse", "kge", "n")
EXTENDED_SCORES = (*SCORES, "r2", "sigma_ratio", "mean_reference", "mean_estimate")

LONG_NAMES = {
    "rmse": "root mean square error",
    "mae": "mean absolute error",
    "cc": "Pearson correlation coefficient",
    "bias": "mean of estimate - reference",
    "ubrmse": "unbiased root mean square error",
    "kge": "Kling-Gupta efficiency (2009)",
    "n": "number of pairs",
    "r2": "coefficient of determination (Nash-Sutcliffe efficiency)",
    "sigma_ratio": "standard deviation of the estimate over that of the reference",
    "mean_reference": "mean of the reference",
    "mean_estimate": "mean of the estimate",
}

#: Fewer pairs than this have no score.
MIN_PAIRS = 2


@overload
def scores(reference: xr.DataArray, estimate: xr.DataArray, dim: Hashable | Sequence[Hashable]) -> xr.Dataset: ...
@overload
def scores(reference: ArrayLike, estimate: ArrayLike, dim: None = None) -> dict[str, float]: ...
def scores(reference: Any, estimate: Any, dim: Any = None) -> dict[str, float] | xr.Dataset:
    """Root mean square error, mean absolute error, correlation, bias, unbiased error and Kling-Gupta efficiency.

    Parameters
    ----------
    reference, estimate : arrays of one shape, or DataArrays on the same coordinates (broadcast against each other);
        NaN is missing. Pairs where either is missing are left out.
    dim : dimension or dimensions to score over, for DataArrays. Without it, everything is scored at once.

    Returns
    -------
    dict of rmse, mae, cc, bias (estimate - reference), ubrmse, kge (float) and n (int);
    with `dim` a Dataset of them over the other dimensions, lazy where the input is.
    With fewer than 2 pairs every score but n is NaN.

    Raises
    ------
    InputError
        if the shapes or coordinates differ, or `dim` is not there.

    Examples
    --------
    >>> scores([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])["bias"].__round__(3)
    0.1
    """
    return _scores(reference, estimate, dim, SCORES)


def extended_scores(reference: Any, estimate: Any, dim: Any = None) -> dict[str, float] | xr.Dataset:
    """`scores` with r2, sigma_ratio and the two means."""
    return _scores(reference, estimate, dim, EXTENDED_SCORES)


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
    stacked = _score_values(values, names)
    if values.ndim > 1:
        return {name: _as_count(stacked[..., i]) if name == "n" else stacked[..., i] for i, name in enumerate(names)}
    return {name: int(stacked[i]) if name == "n" else float(stacked[i]) for i, name in enumerate(names)}


def score_table(
    table: pd.DataFrame,
    reference: str,
    estimates: Sequence[str],
    by: str | None = None,
    common: bool = False,
) -> pd.DataFrame:
    """Scores of several columns against one, whole or by group.

    Parameters
    ----------
    table : one row per pair; columns `reference`, `estimates` and `by`
    by : column to group by (month, season, station, fold ...); groups come sorted, rows without a group are left out
    common : keep only the rows where the reference and every estimate are there, so that all are scored on the same pairs

    Returns
    -------
    DataFrame with columns source, `by` where given, and `SCORES`; one row per source and group.
    """
    missing = [name for name in (reference, *estimates, *([by] if by else [])) if name not in table.columns]
    if missing:
        raise InputError(f"the table lacks the columns {missing}; it has {list(table.columns)}")
    if common:
        table = table.dropna(subset=[reference, *estimates])
    groups = [(None, table)] if by is None else list(table.groupby(by, sort=True, observed=True))
    rows = [
        {"source": source, **({} if by is None else {by: key}), **scores(group[reference], group[source])}
        for source in estimates
        for key, group in groups
    ]
    return pd.DataFrame(rows, columns=["source", *([by] if by else []), *SCORES])


def correlations(
    table: pd.DataFrame,
    target: str,
    predictors: Sequence[str],
    subsets: Mapping[str, ArrayLike] | None = None,
    series: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Pearson correlation of each predictor with the target and its two-sided p-value, in each subset.

    p is of Student's t with n - 2 degrees of freedom, t = cc sqrt((n - 2) / (1 - cc^2)); it takes samples as independent,
    which neighbours and neighbouring days are not: read it as a lower bound. With `series`, p_effective is that of
    n_effective = n (1 - r_x r_y) / (1 + r_x r_y) samples, r_x and r_y the lag-1 autocorrelations of predictor and target
    within the series (Bretherton et al. 1999, doi:10.1175/1520-0442(1999)012<1990:TENOSD>2.0.CO;2), from one sample to
    the next whatever the gap, and at most n. What neighbouring
    cells share it does not know, nor that a predictor which never changes says no more than once per cell.

    Parameters
    ----------
    table : the sample table
    subsets : name -> (rows,) bool; by default one, "all"
    series : columns whose values together name one time series, ("cell", "overpass"); needs a column `time`

    Returns
    -------
    DataFrame with columns predictor, subset, cc, p, n, with `series` n_effective and p_effective; subsets vary slowest. cc
    and p are NaN where either side is constant, p where there are fewer than 3 pairs.
    """
    subsets = {"all": np.ones(len(table), dtype=bool)} if subsets is None else subsets
    rows: list[dict[str, Any]] = []
    for subset, mask in subsets.items():
        part = table[np.asarray(mask, dtype=bool)]
        for predictor in predictors:
            score = scores(part[target], part[predictor])
            cc, n = score["cc"], score["n"]
            rows.append({"predictor": predictor, "subset": subset, "cc": cc, "p": _p_value(cc, n), "n": n})
            if series is not None:
                effective = _effective_size(part, target, predictor, series)
                rows[-1] |= {"n_effective": effective, "p_effective": _p_value(cc, effective)}
    columns = ["predictor", "subset", "cc", "p", "n"] + (["n_effective", "p_effective"] if series is not None else [])
    return pd.DataFrame(rows, columns=columns)


def _p_value(cc: float, n: float) -> float:
    """Of n pairs, or of as many as they are worth, which need be no whole number."""
    if np.isnan(cc) or n <= 2:
        return np.nan
    with np.errstate(divide="ignore"):
        t = abs(cc) * np.sqrt(np.divide(n - 2, 1 - cc * cc))
    return float(2 * stdtr(n - 2, -t))


def _effective_size(part: pd.DataFrame, target: str, predictor: str, series: Sequence[str]) -> float:
    pairs = part[[target, predictor]].notna().all(axis=1)
    part = part[pairs].sort_values([*series, "time"], kind="stable")
    same = np.logical_and.reduce([part[name].to_numpy()[1:] == part[name].to_numpy()[:-1] for name in series])
    shared = np.prod([_lag_1(part[name].to_numpy(np.float64), same) for name in (target, predictor)])
    shared = np.clip(shared, 0.0, 1.0)
    return float(len(part) * (1 - shared) / (1 + shared))


def _lag_1(values: Floats, same: NDArray[np.bool_]) -> float:
    """Autocorrelation of neighbours in order that are of one series (`same`), about the mean of all."""
    if not same.any():
        return 0.0
    deviations = values - values.mean()
    before, after = deviations[:-1][same], deviations[1:][same]
    scale = np.sqrt((before @ before) * (after @ after))
    return float(before @ after / scale) if scale > 0 else 0.0


def _scores(reference: Any, estimate: Any, dim: Any, names: tuple[str, ...]) -> dict[str, float] | xr.Dataset:
    labelled = isinstance(reference, xr.DataArray) and isinstance(estimate, xr.DataArray)
    if dim is not None and not labelled:
        raise InputError("scores over a named dimension need two DataArrays; leave dim out for plain arrays")
    if labelled:
        return _labelled_scores(reference, estimate, dim, names)
    if (
        isinstance(reference, pd.Series)
        and isinstance(estimate, pd.Series)
        and not reference.index.equals(estimate.index)
    ):
        raise InputError("reference and estimate are Series with different indexes: align them first")
    return finalise_scores(score_sums(reference, estimate), extended=names is EXTENDED_SCORES)


def _labelled_scores(
    reference: xr.DataArray, estimate: xr.DataArray, dim: Any, names: tuple[str, ...]
) -> dict[str, float] | xr.Dataset:
    try:
        reference, estimate = xr.broadcast(*xr.align(reference, estimate, join="exact"))
    except ValueError as error:
        raise InputError(
            f"reference and estimate must lie on the same coordinates: {str(error).splitlines()[0]}"
        ) from None
    dims = reference.dims if dim is None else (dim,) if isinstance(dim, str) else tuple(dim)
    absent = [name for name in dims if name not in reference.dims]
    if absent:
        raise InputError(f"cannot score over {absent}: the arrays have dimensions {list(reference.dims)}")
    kept = [name for name in reference.dims if name not in dims]
    reference = reference.transpose(*kept, *dims)
    stacked = _reduced(reference.data, estimate.transpose(*kept, *dims).data, len(kept), names)
    if dim is None:
        values = np.asarray(stacked)
        return {name: int(values[i]) if name == "n" else float(values[i]) for i, name in enumerate(names)}
    coords = {name: coord for name, coord in reference.coords.items() if set(coord.dims) <= set(kept)}
    variables = {
        name: xr.Variable(
            kept, _as_count(stacked[..., i]) if name == "n" else stacked[..., i], {"long_name": LONG_NAMES[name]}
        )
        for i, name in enumerate(names)
    }
    return xr.Dataset(variables, coords)


def _reduced(reference: Any, estimate: Any, kept: int, names: tuple[str, ...]) -> Any:
    """(kept axes, scores) of arrays whose axes after the first `kept` are scored over; dask arrays chunk by chunk."""
    if not (hasattr(reference, "dask") or hasattr(estimate, "dask")):
        return _score_values(score_sums(reference, estimate, tuple(range(kept, np.ndim(reference)))), names)
    import dask.array as da

    chunks = reference.chunks if hasattr(reference, "dask") else estimate.chunks
    return _reduced_chunks(da.asarray(reference).rechunk(chunks), da.asarray(estimate).rechunk(chunks), kept, names)


def _reduced_chunks(reference: da.Array, estimate: da.Array, kept: int, names: tuple[str, ...]) -> da.Array:
    import dask.array as da

    scored = tuple(range(kept, reference.ndim))

    def sums_of_chunk(ref: Any, est: Any) -> Any:
        return np.expand_dims(score_sums(ref, est, scored), scored)

    def scores_of_chunks(parts: Any) -> Any:
        return _score_values(merge_sums(parts.reshape(*parts.shape[:kept], -1, len(SUMS)), axis=kept), names)

    parts = da.map_blocks(
        sums_of_chunk,
        reference,
        estimate,
        dtype=np.float64,
        chunks=(*reference.chunks[:kept], *((1,) * len(c) for c in reference.chunks[kept:]), (len(SUMS),)),
        new_axis=[reference.ndim],
        meta=np.empty((0,) * (reference.ndim + 1)),
    )
    return da.map_blocks(
        scores_of_chunks,
        parts.rechunk(dict.fromkeys(scored, -1)),
        dtype=np.float64,
        chunks=(*reference.chunks[:kept], (len(names),)),
        drop_axis=list(scored),
        meta=np.empty((0,) * (kept + 1)),
    )


def _score_values(sums: Floats, names: tuple[str, ...]) -> Floats:
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


def _as_count(values: Any) -> Any:
    return values.astype(np.int64)
