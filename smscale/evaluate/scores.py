"""Scores of an estimate against a reference, whole or from mergeable sums.

What they are and how they are summed: `kernels.score_sums`. A map scored block by block equals the map scored whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from smscale.errors import InputError
from smscale.kernels.score_sums import (
    EXTENDED_SCORES,
    SCORES,
    SUMS,
    as_count,
    finalise_scores,
    merge_sums,
    score_sums,
    score_values,
)

if TYPE_CHECKING:
    import dask.array as da

Floats = NDArray[np.float64]

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
            kept, as_count(stacked[..., i]) if name == "n" else stacked[..., i], {"long_name": LONG_NAMES[name]}
        )
        for i, name in enumerate(names)
    }
    return xr.Dataset(variables, coords)


def _reduced(reference: Any, estimate: Any, kept: int, names: tuple[str, ...]) -> Any:
    """(kept axes, scores) of arrays whose axes after the first `kept` are scored over; dask arrays chunk by chunk."""
    if not (hasattr(reference, "dask") or hasattr(estimate, "dask")):
        return score_values(score_sums(reference, estimate, tuple(range(kept, np.ndim(reference)))), names)
    import dask.array as da

    chunks = reference.chunks if hasattr(reference, "dask") else estimate.chunks
    return _reduced_chunks(da.asarray(reference).rechunk(chunks), da.asarray(estimate).rechunk(chunks), kept, names)


def _reduced_chunks(reference: da.Array, estimate: da.Array, kept: int, names: tuple[str, ...]) -> da.Array:
    import dask.array as da

    scored = tuple(range(kept, reference.ndim))

    def sums_of_chunk(ref: Any, est: Any) -> Any:
        return np.expand_dims(score_sums(ref, est, scored), scored)

    def scores_of_chunks(parts: Any) -> Any:
        return score_values(merge_sums(parts.reshape(*parts.shape[:kept], -1, len(SUMS)), axis=kept), names)

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
