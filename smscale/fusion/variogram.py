"""Variogram models and how they are fitted to pooled pairs of stations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from smscale.errors import InputError
from smscale.fusion.coordinates import as_values, station_points
from smscale.kernels.covariance import MODELS, bin_pairs, correlation, pooled_pairs
from smscale.kernels.sphere import COLOCATED

Floats = NDArray[np.float64]

#: Lags up to the cutoff, and the cutoff as a share of the longest distance (gstat's defaults are 15 and 1/3 of the diagonal).
N_LAGS = 15
CUTOFF_SHARE = 1 / 3
#: A fit needs at least this many lags that hold pairs: three parameters.
MIN_LAGS = 3
#: The range may be fitted up to this multiple of the longest distance among the pairs.
MAX_RANGE_FACTOR = 2.0
#: Trial ranges, log-spaced, among which the best is then refined.
TRIAL_RANGES = 48
#: A fitted range this near to a bound, in log km, stands at it; a partial sill this share of the mean semivariance is none.
AT_BOUND = 1e-4
#: Of more stations, this many drawn at random (the same every time) make the pairs: their matrices are 0.1 GB.
MAX_STATIONS = 3000


@dataclass(frozen=True)
class Variogram:
    """A stationary, isotropic variogram in gstat's parametrisation.

    Parameters
    ----------
    model : "exponential" 1 - exp(-h/a), "spherical" 1.5 h/a - 0.5 (h/a)**3 up to a, "gaussian" 1 - exp(-(h/a)**2),
        "matern" 1 - (h/a)**k K_k(h/a) / (2**(k-1) Gamma(k))
    partial_sill : variance of the spatially correlated part, unit of the values squared
    range : a, km: the model's own parameter, not the practical range
    nugget : variance of measurement error and of what varies below the station distance
    smoothness : k of "matern", else unused

    Examples
    --------
    >>> float(Variogram("exponential", partial_sill=2.0, range=10.0, nugget=0.5).semivariance(10.0).round(4))
    1.7642
    """

    model: str
    partial_sill: float
    range: float
    nugget: float = 0.0
    smoothness: float = 1.5

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"variogram model must be one of {', '.join(MODELS)}; got {self.model!r}")
        numbers = (self.partial_sill, self.range, self.nugget, self.smoothness)
        possible = self.partial_sill >= 0 and self.nugget >= 0 and self.partial_sill + self.nugget > 0
        if not np.all(np.isfinite(numbers)) or not possible or self.range <= 0 or self.smoothness <= 0:
            raise InputError(
                "a variogram needs partial_sill >= 0 and nugget >= 0, not both 0, and range > 0, smoothness > 0; "
                f"got partial_sill {self.partial_sill}, range {self.range}, nugget {self.nugget}, smoothness {self.smoothness}"
            )

    def covariance(self, h: ArrayLike) -> Floats:
        """Covariance of the correlated part at distances `h` (km): partial_sill at 0, the nugget left out."""
        scaled = np.asarray(h, np.float64) / self.range
        return self.partial_sill * correlation(self.model, scaled, self.smoothness)

    def covariance_with_nugget(self, h: ArrayLike) -> Floats:
        """Covariance that counts the nugget as variation at scales below `COLOCATED`: sill at 0."""
        h = np.asarray(h, np.float64)
        return self.covariance(h) + self.nugget * (h <= COLOCATED)

    def semivariance(self, h: ArrayLike) -> Floats:
        """Semivariance at distances `h` (km): 0 at 0, nugget + partial_sill far away."""
        h = np.asarray(h, np.float64)
        return np.where(h > 0, self.nugget + self.partial_sill - self.covariance(h), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for reports and JSON."""
        return asdict(self)


def empirical_variogram(
    coords: ArrayLike,
    values: ArrayLike,
    n_lags: int = N_LAGS,
    cutoff: float | None = None,
    vertical_scale: float | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Matheron's estimator over all pairs of stations, pooled over time.

    Parameters
    ----------
    coords : (n, 2) or (n, 3) degrees, degrees, metres
    values : (n,) or (n, t), NaN where silent; only differences within one column count
    cutoff : longest distance, km; a third of the longest between reporting stations if not given

    Returns
    -------
    lag, gamma, count : (<= n_lags,) float64: mean distance (km), semivariance and number of pairs x times of each lag
        that holds any. Co-located stations form no pair.
    """
    lag, gamma, count, _ = _lags(station_points(coords, vertical_scale), as_values(coords, values), n_lags, cutoff)
    return lag, gamma, count


def _lags(
    points: Floats, values: Floats, n_lags: int, cutoff: float | None
) -> tuple[Floats, Floats, Floats, tuple[float, float]]:
    """Lags of Euclidean points, and the shortest and longest distance among their pairs."""
    if len(points) > MAX_STATIONS:
        drawn = np.sort(np.random.default_rng(MAX_STATIONS).permutation(len(points))[:MAX_STATIONS])
        points, values = points[drawn], values[drawn]
    distance, summed, count = pooled_pairs(points, values)
    if distance.size == 0:
        raise InputError("no two stations at different places report at one time: a variogram has no pairs; give one")
    longest = float(distance.max())
    width = (longest * CUTOFF_SHARE if cutoff is None else cutoff) / n_lags
    return *bin_pairs(distance, summed, count, width, n_lags), (float(distance.min()), longest)


def fit_variogram(
    coords: ArrayLike,
    values: ArrayLike,
    model: str = "exponential",
    n_lags: int = N_LAGS,
    cutoff: float | None = None,
    vertical_scale: float | None = None,
    smoothness: float = 1.5,
) -> Variogram:
    """Weighted least-squares fit to pairs pooled over all columns; see `fit_lags`.

    Parameters as `empirical_variogram`; the range is bounded by the shortest distance between two stations and
    `MAX_RANGE_FACTOR` times the longest.

    Raises
    ------
    InputError
        if stations form no pairs, fewer than `MIN_LAGS` lags hold pairs, or the values do not vary.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> coords = np.column_stack([rng.uniform(100, 102, 40), rng.uniform(30, 32, 40)])
    >>> fit_variogram(coords, rng.normal(size=(40, 30))).model
    'exponential'
    """
    points, table = station_points(coords, vertical_scale), as_values(coords, values)
    return fit_points(points, table, model, n_lags, cutoff, smoothness)


@dataclass(frozen=True)
class Fit:
    """A fitted variogram and how sure it is.

    Parameters
    ----------
    variogram : the fit
    at_bound : why the data do not settle it, as "range at its upper bound" or "no partial sill"; "" if they do
    pairs : pairs x times within the cutoff
    """

    variogram: Variogram
    at_bound: str
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for reports and JSON."""
        return {**self.variogram.to_dict(), "at_bound": self.at_bound, "pairs": self.pairs}


def fit_points(
    points: Floats,
    values: Floats,
    model: str = "exponential",
    n_lags: int = N_LAGS,
    cutoff: float | None = None,
    smoothness: float = 1.5,
    min_pairs: int = 0,
) -> Variogram:
    """`fit_variogram` on Euclidean (n, d) points and (n, t) values, refused with fewer than `min_pairs` pairs x times."""
    return fit_recorded(points, values, model, n_lags, cutoff, smoothness, min_pairs).variogram


def fit_recorded(
    points: Floats,
    values: Floats,
    model: str = "exponential",
    n_lags: int = N_LAGS,
    cutoff: float | None = None,
    smoothness: float = 1.5,
    min_pairs: int = 0,
) -> Fit:
    """`fit_points`, and whether the fit ended at a bound."""
    lag, gamma, count, (shortest, longest) = _lags(points, values, n_lags, cutoff)
    if count.sum() < min_pairs:
        raise InputError(
            f"a pooled variogram needs {min_pairs} pairs x times within the cutoff; found {int(count.sum())}"
        )
    bounds = (shortest, MAX_RANGE_FACTOR * longest)
    fitted = fit_lags(lag, gamma, count, model, bounds, smoothness)
    return Fit(fitted, _at_bound(fitted, bounds, float(np.average(gamma, weights=count))), int(count.sum()))


def _at_bound(fitted: Variogram, bounds: tuple[float, float], scale: float) -> str:
    if fitted.partial_sill <= AT_BOUND * scale:
        return "no partial sill"
    if np.log(bounds[1] / fitted.range) <= AT_BOUND:
        return "range at its upper bound"
    if np.log(fitted.range / bounds[0]) <= AT_BOUND:
        return "range at its lower bound"
    return ""


def fit_lags(
    lag: Floats,
    gamma: Floats,
    count: Floats,
    model: str = "exponential",
    range_bounds: tuple[float, float] | None = None,
    smoothness: float = 1.5,
) -> Variogram:
    """Weighted least squares with weights N / h**2 (gstat's default, fit.method 7), nugget and partial sill >= 0.

    For a given range the model is linear in nugget and partial sill: those two come from non-negative least squares, and
    the range from a bounded search over what is left: log-spaced trials, then Brent's method around the best.

    Parameters
    ----------
    lag, gamma, count : (l,) float64 as `empirical_variogram` returns
    range_bounds : km; the shortest lag and `MAX_RANGE_FACTOR` times the longest if not given
    """
    if model not in MODELS:
        raise InputError(f"variogram model must be one of {', '.join(MODELS)}; got {model!r}")
    if lag.size < MIN_LAGS:
        raise InputError(
            f"a variogram fit needs pairs in at least {MIN_LAGS} lags; found {lag.size}: give one, or pool more"
        )
    scale = float(np.average(gamma, weights=count))
    if not scale > 0:
        raise InputError("the values do not vary between stations: no variogram can be fitted; give one")
    weight, height = count / lag**2 / np.sum(count / lag**2), gamma / scale

    def solve(log_range: ArrayLike) -> tuple[Floats, Floats, Floats]:
        reach = np.exp(np.atleast_1d(np.asarray(log_range, np.float64)))
        return _nugget_and_sill(1.0 - correlation(model, lag / reach[:, None], smoothness), height, weight)

    low, high = np.log(range_bounds or (float(lag.min()), MAX_RANGE_FACTOR * float(lag.max())))
    trials = np.linspace(low, high, TRIAL_RANGES)
    left = solve(trials)[2]
    best = int(np.argmin(left))
    bracket = (trials[max(best - 1, 0)], trials[min(best + 1, TRIAL_RANGES - 1)])
    found = minimize_scalar(lambda a: float(solve(a)[2][0]), bounds=bracket, method="bounded", options={"xatol": 1e-9})
    log_range = found.x if found.fun < left[best] else trials[best]
    nugget, partial_sill, _ = solve(log_range)
    return Variogram(
        model, float(partial_sill[0]) * scale, float(np.exp(log_range)), float(nugget[0]) * scale, smoothness
    )


def _nugget_and_sill(rise: Floats, height: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Non-negative least squares of height = nugget + sill * rise, in closed form for many rises at once.

    Parameters
    ----------
    rise : (r, l); height, weight : (l,), the weights sum to 1

    Returns
    -------
    nugget, sill, squares : (r,) float64, the weighted sum of squares that is left
    """
    mean, level = rise @ weight, float(height @ weight)
    departure = rise - mean[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (departure * (height - level)) @ weight / (departure**2 @ weight)
        through = (rise * height) @ weight / (rise**2 @ weight)
    slope = np.where(np.isfinite(slope), np.maximum(slope, 0.0), 0.0)
    nugget = level - slope * mean
    outside = nugget < 0
    sill = np.where(outside, np.where(np.isfinite(through), through, 0.0), slope)
    nugget = np.where(outside, 0.0, nugget)
    return nugget, sill, (height - nugget[:, None] - sill[:, None] * rise) ** 2 @ weight
