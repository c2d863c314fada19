"""What a station residual is and how a residual field corrects a map; systematic error and how it is removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smscale.errors import InputError

Floats = NDArray[np.float64]

#: A station with fewer residuals than this has no mean of its own under "station-mean": the network's is used.
MIN_STATION_RESIDUALS = 3

#: Systematic parts that are one number a station; `smscale.fusion.systematic` has the others.
CONSTANT = ("none", "network-mean", "station-mean")


@dataclass(frozen=True)
class Difference:
    """Additive residual: F + (observed - F)^, the paper's GDA."""

    name: str = "difference"
    #: The residual of a map that is right.
    nothing = 0.0

    def residual(self, observed: Floats, background: Floats) -> Floats:
        """observed - background."""
        return observed - background

    def apply(self, background: NDArray, field: NDArray) -> NDArray:
        """background + field; background where the field is NaN."""
        return background + np.where(np.isnan(field), 0, field)

    def without(self, residuals: Floats, systematic: Floats) -> Floats:
        """residuals - systematic."""
        return residuals - systematic

    def joined(self, systematic: NDArray, rest: NDArray) -> NDArray:
        """systematic + rest."""
        return systematic + rest

    def tapered(self, field: NDArray, weight: NDArray) -> NDArray:
        """weight * field."""
        return weight * field

    def map_variance(self, background: NDArray, variance: NDArray) -> NDArray:
        """The variance itself, NaN where the map is."""
        return np.where(np.isfinite(background), variance, np.nan)

    def counts(self, observed: Floats, background: Floats) -> dict[str, int]:
        """Nothing is floored or capped."""
        return {"floored": 0, "capped": 0}


@dataclass(frozen=True)
class Ratio:
    """Multiplicative residual: F * (observed / F)^, the paper's GRA, made safe for dry backgrounds.

    Where F falls below `floor`, the departure from F is counted in units of the floor: r = 1 + (observed - F) / floor
    and F + (r - 1) * floor. That is observed / F and F * r above the floor, joins it there, leaves F as it is for r = 1,
    and is still inverted by `apply`. Ratios are then capped.

    Parameters
    ----------
    floor : m3 m-3
    cap : smallest and largest ratio
    """

    floor: float = 0.02
    cap: tuple[float, float] = (0.2, 5.0)
    name: str = "ratio"
    #: The residual of a map that is right.
    nothing = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.floor) and self.floor > 0 and 0 <= self.cap[0] < 1 < self.cap[1]):
            raise InputError(f"a ratio needs floor > 0 and a cap around 1; got floor {self.floor}, cap {self.cap}")

    def _raw(self, observed: Floats, background: Floats) -> Floats:
        return 1.0 + (observed - background) / np.maximum(background, self.floor)

    def residual(self, observed: Floats, background: Floats) -> Floats:
        """observed / background, floored and capped."""
        return np.clip(self._raw(observed, background), *self.cap)

    def apply(self, background: NDArray, field: NDArray) -> NDArray:
        """background * field (from the floor up); background where the field is NaN."""
        return background + (np.where(np.isnan(field), 1, field) - 1) * np.maximum(background, self.floor)

    def without(self, residuals: Floats, systematic: Floats) -> Floats:
        """residuals / systematic; NaN for a station that a cap of 0 lets be 0 throughout."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(systematic > 0, residuals / systematic, np.nan)

    def joined(self, systematic: NDArray, rest: NDArray) -> NDArray:
        """systematic * rest."""
        return systematic * rest

    def tapered(self, field: NDArray, weight: NDArray) -> NDArray:
        """1 + weight * (field - 1)."""
        return 1 + weight * (field - 1)

    def map_variance(self, background: NDArray, variance: NDArray) -> NDArray:
        """variance * background**2 (from the floor up)."""
        return variance * np.where(np.isfinite(background), np.maximum(background, self.floor), np.nan) ** 2

    def counts(self, observed: Floats, background: Floats) -> dict[str, int]:
        """Residuals whose background was below the floor, and those that the cap changed."""
        raw = self._raw(observed, background)
        known = np.isfinite(raw)
        low, high = self.cap
        return {
            "floored": int((known & (background < self.floor)).sum()),
            "capped": int((known & ((raw < low) | (raw > high))).sum()),
        }


#: How stations and map are compared, and the map corrected.
Residual = Difference | Ratio


def as_residual(residual: str | Residual) -> Residual:
    """ "difference" and "ratio" as objects; an object as it is."""
    known: dict[str, Residual] = {"difference": Difference(), "ratio": Ratio()}
    if isinstance(residual, Difference | Ratio):
        return residual
    if not isinstance(residual, str) or residual not in known:
        raise InputError(f"residual must be one of {', '.join(known)}, Difference() or Ratio(...); got {residual!r}")
    return known[residual]


def remove_systematic(residuals: Floats, how: str = "none", residual: Residual | None = None) -> tuple[Floats, Floats]:
    """Residuals without their systematic part, which is thereby not spread into the map.

    What is removed is taken as the disagreement of station and map in kind (depth, footprint, calibration), not as an
    error of the map. An error that the map really has at a station, all through the period, is removed with it.
    Fit it on training stations only: an unseen station has none.

    Parameters
    ----------
    residuals : (n, t) float64, NaN where silent
    how : "none"; "network-mean": one value, the mean over stations of their means over time; "station-mean": each
        station's own mean over time (the network's where it has fewer than `MIN_STATION_RESIDUALS`)
    residual : what the residuals are: differences (the default) are reduced by subtraction, ratios by division

    Returns
    -------
    residuals : (n, t) float64
    removed : (n,) float64, in the unit of the residuals; NaN with "none"
    """
    if how not in CONSTANT:
        raise InputError(f"a systematic part to remove must be one of {', '.join(CONSTANT)}; got {how!r}")
    present = np.isfinite(residuals)
    count = present.sum(axis=1)
    if how == "none" or not present.any():
        return residuals, np.full(len(residuals), np.nan)
    mean = np.where(present, residuals, 0.0).sum(axis=1) / np.maximum(count, 1)
    network = mean[count > 0].mean()
    own = how == "station-mean"
    removed = np.where(count >= MIN_STATION_RESIDUALS, mean, network) if own else np.full(len(residuals), network)
    return (residual or Difference()).without(residuals, removed[:, None]), removed
