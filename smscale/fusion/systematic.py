"""Systematic error of stations against a map: what is removed before a fusion, and what is spread as a field of its own.

"none", "network-mean" and "station-mean" are numbers that are removed (`residuals.remove_systematic`). "cdf" rescales each
station's values to the distribution that the map has at its cell. "spatial-bias" keeps the persistent error of the map:
the stations' mean residuals are kriged into a static field, and only the anomalies about them are interpolated by day. As the
mean of anomalies is known to be 0, few stations are enough for a day.

All are fitted on the records that are merged, never on held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from smscale.errors import InputError
from smscale.fusion.interpolators import Kriging
from smscale.fusion.residuals import CONSTANT, MIN_STATION_RESIDUALS, Residual, remove_systematic
from smscale.fusion.variogram import Fit, Variogram, fit_recorded
from smscale.kernels.sphere import pair_distance

Floats = NDArray[np.float64]

SYSTEMATIC = (*CONSTANT, "cdf", "spatial-bias")

#: Quantiles that two distributions are matched at; those with fewer than `MIN_TAIL` pairs beyond them are left out, as a
#: quantile of so few is noise. Between them the match is linear, beyond them a line through the tail's pairs (Moesinger et
#: al. 2020, doi:10.5194/essd-12-177-2020: the outermost values alone would decide the tails).
QUANTILES = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
MIN_TAIL = 5
#: A station with fewer pairs has no distribution of its own: the network's mean residual is removed.
MIN_CDF_PAIRS = 20
#: Pairs of neighbouring steps needed to estimate their correlation; with fewer, records count as independent.
MIN_LAG_PAIRS = 30
#: Where a point is too far away to be correlated with any other, km; and the least variance of a mean that is taken as
#: known, as a share of the sill: none at all would make the system singular.
NOWHERE = 1e9
LEAST_VARIANCE = 1e-6
#: Steps whose expected means are computed at once: bounds memory.
STEPS = 512


def check_systematic(how: str) -> None:
    """Refuse an unknown name."""
    if how not in SYSTEMATIC:
        raise InputError(f"systematic must be one of {', '.join(SYSTEMATIC)}; got {how!r}")


def systematic_residuals(
    observed: Floats, background: Floats, how: str, residual: Residual
) -> tuple[Floats, dict[str, Any], dict[str, int]]:
    """Residuals after what is removed of them; "spatial-bias" removes nothing here.

    Parameters
    ----------
    observed, background : (n, t) float64, NaN where silent or missing
    how : one of `SYSTEMATIC`

    Returns
    -------
    residuals : (n, t) float64
    record : what was done, plain values
    limits : residuals "floored" and "capped"
    """
    check_systematic(how)
    if how == "cdf":
        return _cdf_residuals(observed, background, residual)
    residuals, limits = residual.residual(observed, background), residual.counts(observed, background)
    if how in ("none", "spatial-bias"):
        return residuals, {"name": how}, limits
    count = np.isfinite(residuals).sum(axis=1)
    residuals, removed = remove_systematic(residuals, how, residual)
    record = {"name": how, "mean_removed": _mean_or_none(removed)}
    if how == "station-mean":
        few = int(((count > 0) & (count < MIN_STATION_RESIDUALS)).sum())
        record |= {"stations_of_their_own": int((count > 0).sum()) - few, "stations_by_network_mean": few}
    return residuals, record, limits


def _mean_or_none(values: Floats) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _cdf_residuals(
    observed: Floats, background: Floats, residual: Residual
) -> tuple[Floats, dict[str, Any], dict[str, int]]:
    raw = residual.residual(observed, background)
    pairs = np.isfinite(raw)
    enough = pairs.sum(axis=1) >= MIN_CDF_PAIRS
    residuals, network = remove_systematic(raw, "network-mean", residual)
    residuals, limits = residuals.copy(), residual.counts(observed[~enough], background[~enough])
    for i in np.flatnonzero(enough):
        source, target = match_quantiles(observed[i, pairs[i]], background[i, pairs[i]])
        matched = apply_quantiles(observed[i], source, target)
        residuals[i] = residual.residual(matched, background[i])
        limits = {name: n + residual.counts(matched, background[i])[name] for name, n in limits.items()}
    few = pairs.any(axis=1) & ~enough
    record = {
        "name": "cdf",
        "stations_by_cdf": int(enough.sum()),
        "stations_by_network_mean": int(few.sum()),
        "mean_removed": _mean_or_none(network),
    }
    return residuals, record, limits


def match_quantiles(values: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Nodes of a rising piecewise linear map from the distribution of `values` to that of `reference`.

    Parameters
    ----------
    values, reference : (k,) float64, pairs, all finite

    Returns
    -------
    source, target : (q,) float64; the source rises strictly, and the first and last pair of nodes carry the tails' lines.
        One node where the values do not vary: a shift.
    """
    ordered, wanted = np.sort(values), np.sort(reference)
    shares = [q for q in QUANTILES if min(q, 1 - q) * values.size >= MIN_TAIL] or [0.5]
    source, which = np.unique(np.quantile(ordered, shares), return_inverse=True)
    target = np.bincount(which, np.quantile(wanted, shares)) / np.bincount(which)
    if ordered[0] == ordered[-1]:
        return ordered[:1], np.array([wanted.mean()])
    low, high = ordered <= source[0], ordered >= source[-1]
    first = (source[0] - 1.0, target[0] - _slope(ordered[low] - source[0], wanted[low] - target[0]))
    last = (source[-1] + 1.0, target[-1] + _slope(ordered[high] - source[-1], wanted[high] - target[-1]))
    return np.array([first[0], *source, last[0]]), np.array([first[1], *target, last[1]])


def _slope(x: Floats, y: Floats) -> float:
    """Least-squares slope of a line through the origin, never falling; 1, a shift, where x does not vary."""
    spread = float(x @ x)
    return max(float(x @ y) / spread, 0.0) if spread > 0 else 1.0


def apply_quantiles(values: Floats, source: Floats, target: Floats) -> Floats:
    """Values through the nodes of `match_quantiles`, its outer segments continued; NaN stays NaN."""
    if source.size == 1:
        return values - source[0] + target[0]
    piece = np.clip(np.searchsorted(source, values) - 1, 0, source.size - 2)
    rise = np.diff(target) / np.diff(source)
    return target[piece] + rise[piece] * (values - source[piece])


# -- spatial bias ------------------------------------------------------------------------------


@dataclass(frozen=True)
class StationMeans:
    """Persistent part of each station's residuals.

    Parameters
    ----------
    mean : (n,) float64, NaN without any residual
    error : (n,) float64, variance of that mean about the station's true one, from its number of records
    records : (n,) int64
    correlation : between one step and the next, of the anomalies
    """

    mean: Floats
    error: Floats
    records: NDArray[np.int64]
    correlation: float


def station_means(residuals: Floats) -> StationMeans:
    """Means over time and the variance of their errors.

    The anomalies of all stations are taken as one first-order autoregressive process of variance s2 and correlation rho
    from step to step, observed with gaps: var(mean) = s2 / n**2 * sum over pairs of records of rho**lag. Consecutive days
    are nearly one record, and count so.

    Parameters
    ----------
    residuals : (n, t) float64, NaN where silent; the steps in order of time
    """
    present = np.isfinite(residuals)
    n = present.sum(axis=1)
    mean = np.where(n > 0, np.where(present, residuals, 0.0).sum(axis=1) / np.maximum(n, 1), np.nan)
    anomaly = np.where(present, residuals - mean[:, None], 0.0)
    rho = _lag_correlation(anomaly, present)
    weight = present.astype(np.float64)
    reach = lfilter([1.0], [1.0, -rho], weight, axis=1) if residuals.shape[1] else weight
    inflation = (2.0 * (weight * reach).sum(axis=1) - n) / np.maximum(n, 1)
    freedom = float((n - inflation)[n > 1].sum())
    variance = float((anomaly[n > 1] ** 2).sum()) / freedom if freedom > 0 else 0.0
    error = np.where(n > 0, variance * inflation / np.maximum(n, 1), np.nan)
    return StationMeans(mean, error, n, rho)


def _lag_correlation(anomaly: Floats, present: NDArray[np.bool_]) -> float:
    both = present[:, 1:] & present[:, :-1]
    if both.sum() < MIN_LAG_PAIRS:
        return 0.0
    before, after = anomaly[:, :-1][both], anomaly[:, 1:][both]
    scale = float(np.sqrt((before @ before) * (after @ after)))
    return float(np.clip(before @ after / scale, 0.0, 0.99)) if scale > 0 else 0.0


def fit_means(points: Floats, means: StationMeans, family: str, min_pairs: int) -> Fit:
    """The variogram of the persistent part: fitted to the means, less the part of its nugget that is error of the means.

    Raises
    ------
    InputError
        as `fit_points`.
    """
    known = means.records > 0
    fit = fit_recorded(points[known], means.mean[known, None], family, min_pairs=min_pairs)
    nugget = max(fit.variogram.nugget - float(means.error[known].mean()), 0.0)
    if nugget + fit.variogram.partial_sill <= 0:
        return fit
    return replace(fit, variogram=replace(fit.variogram, nugget=nugget))


def mean_variance(
    points: Floats, anomalies: Floats, variograms: Sequence[Variogram], index: NDArray[np.int64]
) -> float:
    """Variance, from step to step, of what all anomalies of a step have in common.

    By moments: the mean square of the steps' means, less what their variograms make of so few stations. Variograms see
    differences within a step only; this is what they cannot see.

    Parameters
    ----------
    points : (n, 3 | 4) km; anomalies : (n, t) about 0, NaN where silent; index : (t,) which variogram a step has, -1 for none
    """
    present = np.isfinite(anomalies)
    count = present.sum(axis=0)
    total = np.where(present, anomalies, 0.0).sum(axis=0)
    excess, weight = 0.0, 0
    for number, model in enumerate(variograms):
        own = np.flatnonzero((index == number) & (count > 0))
        shared = model.covariance(pair_distance(points, points)) + model.nugget * np.eye(len(points))
        for steps in np.split(own, np.arange(STEPS, own.size, STEPS)):
            mask = present[:, steps].astype(np.float64)
            expected = np.einsum("nt,nt->t", mask, shared @ mask)
            excess += float(((total[steps] ** 2 - expected) / count[steps]).sum())
        weight += int(count[own].sum())
    return max(excess / weight, 0.0) if weight else 0.0


class KrigingOfAnomalies(Kriging):
    """Kriging of values whose mean over the steps is `level_`: a step's own is drawn from N(level_, `mean_variance_`).

    Ordinary kriging takes the mean of a step for unknown, which few stations estimate badly. A known one is a station that
    is correlated with nothing, reports that mean at every step, and errs by `mean_variance_`: it stands last among the points. A
    variance of 0 makes it simple kriging, an endless one ordinary kriging (Omre & Halvorsen 1989, Mathematical Geology 21,
    767-786).
    """

    level_: float
    mean_variance_: float

    def _fit_points(
        self, points: Floats, table: Floats, single: bool = False, solved: tuple[Floats, Floats] | None = None
    ) -> Self:
        away = np.zeros((1, points.shape[1]))
        away[0, 0] = NOWHERE
        level = np.full((1, table.shape[1]), self.level_)
        return super()._fit_points(np.vstack([points, away]), np.vstack([table, level]), single, solved)

    def _matrix(self) -> Floats:
        k = super()._matrix()
        k[-1, -1] = self.mean_variance_
        return k

    def left_out(self) -> tuple[Floats, Floats]:
        """(n, t) float64 each, as `Kriging.left_out`."""
        prediction, variance = super().left_out()
        return prediction[:-1], variance[:-1]


def anomaly_interpolator(wanted: Kriging, variogram: Variogram, level: float, variance: float) -> Kriging:
    """The unfitted kriging of anomalies from all stations, a step's mean known to be `level` up to a variance."""
    model = KrigingOfAnomalies()
    model.__dict__.update(wanted.__dict__)
    model.variogram, model.level_ = variogram, level
    model.mean_variance_ = max(variance, LEAST_VARIANCE * (variogram.partial_sill + variogram.nugget))
    return model


class KrigingOfMeans(Kriging):
    """Kriging of values that each have an error variance of their own on top of the nugget (from all stations).

    The least of the errors joins the nugget, so that stations at one place keep their own errors; the rest of each stands
    on the diagonal of the system.
    """

    def _matrix(self) -> Floats:
        k = super()._matrix()
        k[np.diag_indices_from(k)] += self.extra_
        return k

    extra_: Floats


def bias_interpolator(wanted: Kriging, variogram: Variogram, error: Floats) -> Kriging:
    """The unfitted kriging of station means whose error variances are (n,) `error`, NaN without a mean.

    With `exact` there is no measurement error; from the nearest stations only, all have the mean error variance.
    """
    model, v, known = copy(wanted), variogram, np.isfinite(error)
    if wanted.exact or not error[known].any():
        model.variogram = v
        return model
    if wanted.neighbours is not None:
        model.variogram = replace(v, nugget=v.nugget + float(error[known].mean()))
        return model
    noisy, least = KrigingOfMeans(), float(error[known].min())
    noisy.__dict__.update(model.__dict__)
    noisy.variogram = replace(v, nugget=v.nugget + least)
    noisy.extra_ = np.where(known, error - least, 0.0)
    return noisy
