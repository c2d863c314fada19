"""The residual field of a fusion: solved once from small arrays, evaluated anywhere.

A field is what stations say of the map, step by step (`ladder`); with a spatial bias, a static field of their mean
residuals beside the daily one of their anomalies; and, where asked, tapered to nothing far from any station that reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from smscale.fusion.interpolators import InverseDistance, stacked
from smscale.fusion.ladder import METHODS, Interpolator, SolvedSteps, fit_summary
from smscale.fusion.residuals import Ratio, Residual
from smscale.kernels import correction, taper
from smscale.kernels.sphere import chord_points
from smscale.schema import Status

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """Residuals at stations, and how they are to be spread.

    Parameters
    ----------
    coords : (n, 2 | 3) of the stations as given; residuals : (n, t) float64 after what was removed as systematic, NaN
        where silent or left out
    residual : how map and stations are compared
    interpolator : what was asked for, not fitted
    taper_km : full correction up to this distance from a reporting station, none from twice it on; None: everywhere
    left_out : counts of what was not used as it came
    systematic : what was done about systematic error, plain values
    """

    coords: Floats
    residuals: Floats
    residual: Residual
    interpolator: Interpolator
    taper_km: float | None
    left_out: dict[str, int]
    systematic: dict[str, Any]


@dataclass(frozen=True)
class ResidualField(Asked):
    """Residuals of every time step, solved: small arrays that can be sent to workers and evaluated anywhere.

    Parameters
    ----------
    place : (n,) int64, the row of the solved steps that each station is; -1 where it was left out. Stations at one place
        are one there: the mean of what they report.
    daily : the steps: residuals of places, or with a spatial bias their anomalies
    bias : the static field of the places' mean residuals, as one step; None without
    """

    place: NDArray[np.int64]
    daily: SolvedSteps
    bias: SolvedSteps | None = None

    @property
    def method(self) -> NDArray[np.uint32]:
        """(t,) uint32: the step's `Status` bit of fusion; the bias field's where no station reports."""
        if self.bias is None:
            return self.daily.method
        return np.where(self.daily.method == Status.NOT_FUSED, self.bias.method[0], self.daily.method).astype(np.uint32)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(t,) int64: places that report, and are compared with the map, at each step."""
        reported = np.isfinite(self.residuals) & (self.place >= 0)[:, None]
        heard = np.zeros((len(self.daily.values), reported.shape[1]), bool)
        np.logical_or.at(heard, self.place[self.place >= 0], reported[self.place >= 0])
        return heard.sum(axis=0)

    @property
    def mean(self) -> Floats:
        """(t,) float64: mean of what is interpolated at each step, NaN without any station."""
        return self.daily.mean

    @property
    def nbytes(self) -> int:
        """What it holds, about: residuals, values, coefficients and their copies, and what is kept for variances."""
        solved = sum(getattr(part.interpolator, "nbytes", 0) for part in self.daily.parts)
        return 5 * self.residuals.nbytes + solved

    @property
    def variograms(self) -> dict[str, dict[str, Any]]:
        """For each pooling group, the fitted variogram and what it was pooled over, or why there is none."""
        return self.daily.models.records

    def evaluate(
        self,
        lon: ArrayLike,
        lat: ArrayLike,
        steps: slice | ArrayLike = slice(None),
        elevation: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """The residual field of some steps on a grid.

        A cell's value does not depend on the block or tile it is asked for with, beyond float32 rounding.

        Parameters
        ----------
        lon : (n,), lat : (m,) degrees, cell centres; elevation : (lat, lon) metres, if the interpolator counts it
        steps : which time steps, as an index into the steps

        Returns
        -------
        (steps, lat, lon) float32; NaN in steps that are not fused, where the taper leaves nothing, and in cells without
        a needed elevation
        """
        steps, none = self.daily.selected(steps), np.zeros(1, np.int64)
        out = self.daily.evaluate(lon, lat, steps, elevation)
        self._taper(out, self.daily, lon, lat, steps)
        if self.bias is not None:
            persistent = self.bias.evaluate(lon, lat, none, elevation)
            self._taper(persistent, self.bias, lon, lat, none)
            correction.join(out, persistent[0], isinstance(self.residual, Ratio))
        return out

    def _taper(
        self, field: NDArray[np.float32], solved: SolvedSteps, lon: ArrayLike, lat: ArrayLike, steps: NDArray[np.int64]
    ) -> None:
        """Draw a field (steps, lat, lon) to no correction far from its stations, in place; NaN where none is left."""
        if self.taper_km is None:
            return
        axes = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
        weight = taper.weights(*axes, self._points(), np.isfinite(solved.values[:, steps]), self.taper_km)
        correction.draw_in(field, weight, np.float32(self.residual.nothing))

    def _join(self, persistent: NDArray, layer: NDArray) -> None:
        """The bias field into anomalies at points, in place; either alone where the other is missing."""
        layer[:] = np.where(
            np.isnan(layer),
            persistent,
            np.where(np.isnan(persistent), layer, self.residual.joined(persistent, layer)),
        )

    def _points(self) -> Floats:
        """(p, 3) of the places, without elevation."""
        return chord_points(*self._place_coords()[:, :2].T)

    def _place_coords(self) -> Floats:
        return first_rows(self.coords, self.place)

    def evaluate_points(self, coords: ArrayLike, steps: slice | ArrayLike = slice(None)) -> NDArray[np.float32]:
        """(steps, m) float32 at (m, 2 | 3) coords; NaN where `evaluate` is."""
        steps, none = self.daily.selected(steps), np.zeros(1, np.int64)
        out = self._tapered_points(self.daily.evaluate_points(coords, steps), self.daily, coords, steps)
        if self.bias is not None:
            persistent = self.bias.evaluate_points(coords, none)
            persistent = self._tapered_points(persistent, self.bias, coords, none)
            for layer in out:
                self._join(persistent[0], layer)
        return out.astype(np.float32)

    def _tapered_points(
        self, table: Floats, solved: SolvedSteps, coords: ArrayLike, steps: NDArray[np.int64]
    ) -> Floats:
        if self.taper_km is None:
            return table
        targets = chord_points(*np.asarray(coords, np.float64)[:, :2].T)
        share = taper.weights_at(targets, self._points(), np.isfinite(solved.values[:, steps]), self.taper_km)
        return np.where(share > 0, self.residual.tapered(table, share), np.nan)

    def variance(
        self,
        lon: ArrayLike,
        lat: ArrayLike,
        steps: slice | ArrayLike = slice(None),
        elevation: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """Kriging variance of the residual, free of measurement error, in its unit squared.

        With a spatial bias it is that of the bias and that of the anomalies together (of their product for ratios), taken as
        independent; in a step without stations the anomalies have the variance of all of them. A taper changes the
        correction, not what is known of the residual; where it leaves nothing the variance is missing too.

        Parameters as `evaluate`.

        Returns
        -------
        (steps, lat, lon) float32; NaN where the field is not by kriging
        """
        steps, none = self.daily.selected(steps), np.zeros(1, np.int64)
        out = self.daily.variance(lon, lat, steps, elevation)
        if self.bias is not None:
            persistent = self.bias.variance(lon, lat, none, elevation)[0]
            silent = self.daily.method[steps] == Status.NOT_FUSED
            out[silent] = self.daily.models.prior()[steps][silent].astype(np.float32)[:, None, None]
            self._add_variance(out, persistent, lon, lat, steps, elevation)
        if self.taper_km is not None:
            # where every part's weight is 0, as in `evaluate`
            reporting = [np.isfinite(s.values[:, i]) for s, i in self._layers(steps)]
            axes = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
            reached = [taper.weights(*axes, self._points(), r, self.taper_km) > 0 for r in reporting]
            out[~np.logical_or(reached[0], reached[-1])] = np.nan
        return out

    def _layers(self, steps: NDArray[np.int64]) -> list[tuple[SolvedSteps, NDArray[np.int64]]]:
        daily = [(self.daily, steps)]
        return daily if self.bias is None else [*daily, (self.bias, np.zeros(1, np.int64))]

    def _add_variance(
        self,
        out: NDArray[np.float32],
        persistent: NDArray[np.float32],
        lon: ArrayLike,
        lat: ArrayLike,
        steps: NDArray[np.int64],
        elevation: ArrayLike | None,
    ) -> None:
        """The bias field's variance into that of the anomalies, in place."""
        if not isinstance(self.residual, Ratio):
            out += persistent
            return
        level = self.bias.evaluate(lon, lat, np.zeros(1, np.int64), elevation)[0] if self.bias is not None else 1.0
        anomaly = self.daily.evaluate(lon, lat, steps, elevation)
        for layer, own in zip(out, anomaly, strict=True):
            layer[:] = level**2 * layer + np.where(np.isnan(own), 1.0, own) ** 2 * persistent + layer * persistent

    def leave_one_out(self) -> Floats:
        """Each station's residuals predicted from the other places, by the step's own method and variogram.

        The bias field and the anomalies both leave the place out, and the taper counts the distance to the others.

        Returns
        -------
        (n, t) float64; NaN where the station is silent, or nothing is left to predict it from
        """
        out = self._others_tapered(self._daily_left_out(), self.daily)
        if self.bias is not None:
            persistent = self._others_tapered(self._left_out_or_predicted(self.bias), self.bias)
            self._join(np.broadcast_to(persistent, out.shape), out)
        given = np.full(self.residuals.shape, np.nan)
        known = self.place >= 0
        given[known] = out[self.place[known]]
        return np.where(np.isfinite(self.residuals), given, np.nan)

    def _daily_left_out(self) -> Floats:
        return self.daily.leave_one_out() if self.bias is None else self._left_out_or_predicted(self.daily)

    def _left_out_or_predicted(self, solved: SolvedSteps) -> Floats:
        """(p, t): left out where a place has values; one that has none at all is predicted as any other point."""
        out = solved.leave_one_out()
        rows = np.flatnonzero(~np.isfinite(solved.values).any(axis=1))
        if rows.size:
            out[rows] = solved.evaluate_points(self._place_coords()[rows], solved.selected(slice(None))).T
        return out

    def _others_tapered(self, table: Floats, solved: SolvedSteps) -> Floats:
        if self.taper_km is None:
            return table
        points, reporting = self._points(), np.isfinite(solved.values)
        share = np.zeros(table.shape)
        for i, near in enumerate(cKDTree(points).query_ball_point(points, 2 * self.taper_km)):
            others = np.array([j for j in near if j != i], dtype=np.int64)
            weight = taper.taper(np.linalg.norm(points[others] - points[i], axis=1), self.taper_km)
            share[i] = (weight[:, None] * reporting[others]).max(axis=0, initial=0.0)
        return np.where(share > 0, self.residual.tapered(table, share), np.nan)

    def steps_by_method(self) -> dict[str, int]:
        """How many steps stand on each rung of the ladder."""
        method = self.method
        return {name: int((method == bit).sum()) for name, bit in METHODS.items()}

    def to_dict(self) -> dict[str, Any]:
        """What was fitted and decided, as plain values."""
        parts = [*self.daily.parts, *(self.bias.parts if self.bias is not None else ())]
        return {
            "steps": self.steps_by_method(),
            "interpolators": sorted({repr(part.interpolator) for part in parts}),
            "variograms": self.variograms,
            "variogram_fits": fit_summary(self.variograms),
            "systematic": self.systematic,
            "taper_km": self.taper_km,
            "left_out": self.left_out,
        }


def evaluate_each(
    fields: Sequence[ResidualField],
    lon: ArrayLike,
    lat: ArrayLike,
    steps: slice | ArrayLike = slice(None),
    wanted: NDArray[np.bool_] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """`evaluate` of several fields, one after another; those whose weights are the same are weighed once for all.

    Inverse distance weights of differences and of ratios are: the same stations report.

    Parameters
    ----------
    wanted : (steps, lat, lon), cells that are needed; a field may be NaN elsewhere; None: all are
    """
    known: dict[int, NDArray[np.float32]] = {}
    for i, field in enumerate(fields):
        if i not in known:
            twins = [j for j in range(i, len(fields)) if _same_weights(field, fields[j])]
            if not twins:
                known[i] = field.evaluate(lon, lat, steps)
            else:
                known |= dict(zip(twins, _together([fields[j] for j in twins], lon, lat, steps, wanted), strict=True))
        yield known.pop(i)


def _same_weights(a: ResidualField, b: ResidualField) -> bool:
    """Whether both are of one inverse distance weighting without elevation, and nothing else."""
    for field in (a, b):
        plain = field.bias is None and field.taper_km is None and len(field.daily.parts) == 1
        if not plain or not isinstance(field.daily.parts[0].interpolator, InverseDistance):
            return False
    one, other = a.daily.parts[0], b.daily.parts[0]
    same = repr(one.interpolator) == repr(other.interpolator) and np.array_equal(one.steps, other.steps)
    flat = one.interpolator.vertical_scale is None
    return flat and same and np.array_equal(one.interpolator.points_, other.interpolator.points_)


def _together(
    fields: Sequence[ResidualField],
    lon: ArrayLike,
    lat: ArrayLike,
    steps: slice | ArrayLike,
    wanted: NDArray[np.bool_] | None,
) -> list[NDArray[np.float32]]:
    chosen = fields[0].daily.selected(steps)
    pieces = [field.daily.pieces(chosen) for field in fields]
    if not pieces[0]:
        return [field.evaluate(lon, lat, steps) for field in fields]
    positions = pieces[0][0][0]
    whole = positions.size == chosen.size
    one = stacked([model for ((_, model),) in pieces if isinstance(model, InverseDistance)])
    found = np.split(
        one.predict_wanted(lon, lat, wanted if wanted is None or whole else wanted[positions]), len(fields)
    )
    return [
        part if whole else field.daily.filled(chosen, positions, part)
        for field, part in zip(fields, found, strict=True)
    ]


def first_rows(table: Floats, place: NDArray[np.int64]) -> Floats:
    """(p, k): the first row of each place of a (n, k) table."""
    number, first = np.unique(place, return_index=True)
    return table[first[number >= 0]]
