"""Kriging and inverse distance weighting: fitted once to the stations of all times, predicting anywhere.

Both give a cell the same value, to float64 rounding before the result is stored as float32, whatever tile or block the
cell is asked for with: every target is computed from its own coordinates, and only the order of sums inside a BLAS
product may differ with the shape of the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.fusion.coordinates import (
    as_grid,
    as_output,
    as_values,
    grid_points,
    places,
    row_tiles,
    station_points,
    target_points,
)
from smscale.fusion.variogram import Variogram, fit_points
from smscale.kernels import (
    idw,
    kriging,
    kriging_local,
    kriging_points,
    kriging_sets,
    kriging_variance,
    neighbours,
    node_tiles,
    smooth_sums,
)
from smscale.kernels.radial import Radial
from smscale.kernels.sphere import pair_distance

Floats = NDArray[np.float64]

#: Numbers in the largest working array of a tile: 32 MB in float64.
TILE_NUMBERS = 4_000_000
#: Neighbours up to which a grid is filled tile by tile; beyond, cells hardly share any work.
NEAR = 64
#: Solved systems of a variance that are kept for other grids at most.
SYSTEM_BYTES = 4 << 20


class _Interpolator:
    """What both share: points and grids in tiles. Subclasses give `_field` and `_width`."""

    vertical_scale: float | None
    points_: Floats
    values_: Floats
    single_: bool

    def _field(self, targets: Floats) -> Floats:
        """(t, m) float64 at (m, d) points."""
        raise NotImplementedError

    def _width(self) -> int:
        """Numbers that one target needs in the largest working array."""
        raise NotImplementedError

    def _check_fitted(self) -> None:
        if not hasattr(self, "points_"):
            raise InputError(f"{type(self).__name__} is not fitted: call fit(coords, values) first")

    def at_times(self, times: ArrayLike) -> Self:
        """The same fitted interpolator for some of its times only (indices, in that order); nothing is solved again."""
        self._check_fitted()
        times = np.asarray(times)
        if np.array_equal(times, np.arange(self.values_.shape[1])):
            return self
        return self._of_times(times)

    def _of_times(self, times: NDArray[np.int64]) -> Self:
        part = copy(self)
        part.values_ = self.values_[:, times]
        return part

    def _in_tiles(self, targets: Floats) -> Floats:
        out = np.empty((self.values_.shape[1], len(targets)))
        for part in row_tiles(len(targets), 1, self._width(), TILE_NUMBERS):
            out[:, part] = self._field(targets[part])
        return out

    def _shaped(self, table: Floats) -> Floats:
        """(m,) or (m, t) as `fit` was given values."""
        return table[0] if self.single_ else table.T

    def predict_grid(
        self,
        lon: ArrayLike,
        lat: ArrayLike,
        elevation: ArrayLike | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """The field on a grid, in row tiles: working memory beside the output does not grow with the grid.

        Parameters
        ----------
        lon : (n,) degrees; lat : (m,) degrees: cell centres
        elevation : (lat, lon) metres; needed with `vertical_scale`
        out : float32 array to fill, (lat, lon) or (t, lat, lon)

        Returns
        -------
        (lat, lon), or (t, lat, lon) if `fit` was given (n, t) values; float32, NaN at times without any station.
        """
        self._check_fitted()
        lon, lat, elevation = as_grid(lon, lat, elevation)
        shape = (lat.size, lon.size) if self.single_ else (self.values_.shape[1], lat.size, lon.size)
        out = as_output(out, shape)
        self._fill(out[None] if self.single_ else out, lon, lat, elevation)
        return out

    def fill_steps(
        self,
        out: NDArray[np.float32],
        steps: NDArray[np.int64],
        lon: ArrayLike,
        lat: ArrayLike,
        elevation: ArrayLike | None = None,
    ) -> None:
        """`predict_grid` of the times into some steps (t,), ascending, of `out` (s, lat, lon)."""
        if steps.size == len(out):
            self.predict_grid(lon, lat, elevation, out=out)
        else:
            out[steps] = self.predict_grid(lon, lat, elevation)

    def _fill(self, table: NDArray[np.float32], lon: Floats, lat: Floats, elevation: Floats | None) -> None:
        """The field into (t, lat, lon)."""
        for rows in row_tiles(lat.size, lon.size, self._width(), TILE_NUMBERS):
            targets = grid_points(lon, lat, elevation, rows, self.vertical_scale)
            table[:, rows] = self._in_tiles(targets).reshape(table[:, rows].shape)


class Kriging(_Interpolator):
    """Ordinary kriging of one or many times with one correlation model.

    Parameters
    ----------
    variogram : the model; or the name of one, which `fit` fits to pairs pooled over all times; None is "exponential"
    neighbours : how many nearest reporting stations each target uses; None uses all
    exact : False treats the nugget as measurement error, so the field is smooth and does not repeat noisy values; True
        treats it as variation below the station distance, so that the field honours every value at its station (gstat,
        PyKrige)
    vertical_scale : how many horizontal km one km of elevation counts; None: elevation, if given, does not count
    negative_weights : "keep"; or "zero" with `neighbours`: negative weights, and small ones further off, become zero and the rest
        are scaled to a sum of one (Deutsch 1996, Computers & Geosciences 22, 765-773), so that the field stays within the
        neighbours' values. The variance is that of the weights that are used, C(0) - 2 w'c + w'K w.

    Attributes
    ----------
    variogram_ : the model used
    place_ : (n,) int64, the row of `points_` that each station is. With `exact`, or without a nugget, stations at one
        place would contradict one another: they are averaged into one; else each keeps its own measurement error.
    mean_, coefficients_ : (t,), (p, t) float64 of the dual form (global only)
    jitter_ : share of the variance added to the diagonal to factor the worst system (global only); 0 as a rule

    Notes
    -----
    A time with one reporting station is that value everywhere, one with none is NaN.

    Examples
    --------
    >>> coords = [[100.0, 30.0], [100.5, 30.0], [100.0, 30.5]]
    >>> model = Kriging(Variogram("exponential", 1.0, 50.0), exact=True).fit(coords, [0.1, 0.2, 0.4])
    >>> model.predict(coords).round(6)
    array([0.1, 0.2, 0.4])
    """

    def __init__(
        self,
        variogram: Variogram | str | None = None,
        neighbours: int | None = None,
        exact: bool = False,
        vertical_scale: float | None = None,
        negative_weights: str = "keep",
    ) -> None:
        self.variogram = variogram
        self.neighbours = neighbours
        self.exact = exact
        self.vertical_scale = vertical_scale
        self.negative_weights = negative_weights

    def __repr__(self) -> str:
        settings = ("variogram", "neighbours", "exact", "vertical_scale", "negative_weights")
        return f"Kriging({', '.join(f'{name}={getattr(self, name)!r}' for name in settings)})"

    def fit(self, coords: ArrayLike, values: ArrayLike, solved: tuple[Floats, Floats] | None = None) -> Self:
        """Learn the stations.

        Parameters
        ----------
        coords : (n, 2) longitude, latitude in degrees, or (n, 3) with elevation in m
        values : (n,) or (n, t), NaN where a station is silent
        solved : `mean_` and `coefficients_` of an earlier fit to the same, which is then not solved again (global only)

        Raises
        ------
        InputError
            for wrong shapes, a variogram that cannot be fitted, or a system that cannot be factored.
        """
        _check_neighbours(self.neighbours)
        self._check_negative_weights()
        points, table = _stations(coords, values, self.vertical_scale)
        return self._fit_points(points, table, np.ndim(values) == 1, solved)

    def _fit_points(
        self, points: Floats, table: Floats, single: bool = False, solved: tuple[Floats, Floats] | None = None
    ) -> Self:
        wanted = self.variogram or "exponential"
        self.variogram_ = fit_points(points, table, wanted) if isinstance(wanted, str) else wanted
        self.noise_ = 0.0 if self.exact else self.variogram_.nugget
        self._covariance = self.variogram_.covariance_with_nugget if self.exact else self.variogram_.covariance
        self.place_ = places(points) if self.noise_ == 0.0 else np.arange(len(points))
        self.points_, self.values_ = _average_places(points, table, self.place_)
        self.reported_, self.single_ = np.isfinite(table), single
        self.patterns_ = list(neighbours.silence_patterns(self.values_))
        self._system: kriging_variance.System | None = None
        if self.neighbours is None and solved is not None:
            (self.mean_, self.coefficients_), self.jitter_ = solved, 0.0
        elif self.neighbours is None:
            with self._solvable():
                self.mean_, self.coefficients_, self.jitter_ = kriging_sets.solve_dual(self._matrix(), self.values_)
        return self

    def _check_negative_weights(self) -> None:
        if self.negative_weights not in ("keep", "zero"):
            raise InputError(f"negative_weights must be keep or zero; got {self.negative_weights!r}")
        if self.negative_weights == "zero" and self.neighbours is None:
            raise InputError("negative_weights 'zero' needs neighbours, such as 12: with all stations weights are kept")

    @contextmanager
    def _solvable(self) -> Iterator[None]:
        try:
            yield
        except kriging.SingularSystemError as error:
            raise InputError(
                f"{error} under {self.variogram_}: give the variogram a nugget, or another model"
            ) from None

    def _of_times(self, times: NDArray[np.int64]) -> Self:
        part = super()._of_times(times)
        part._system = None
        part.reported_ = self.reported_[:, times]
        part.patterns_ = list(neighbours.silence_patterns(part.values_))
        if self.neighbours is None:
            part.mean_, part.coefficients_ = self.mean_[times], self.coefficients_[:, times]
        return part

    def _matrix(self) -> Floats:
        """(p, p) float64: covariance among the points, measurement error on the diagonal."""
        k = self._covariance(pair_distance(self.points_, self.points_))
        k[np.diag_indices_from(k)] = self.variogram_.partial_sill + self.variogram_.nugget
        return k

    def _width(self) -> int:
        n, t = self.values_.shape
        return max(n, t) if self.neighbours is None else max(t, min(self.neighbours, n) ** 2)

    def _field(self, targets: Floats) -> Floats:
        if self.neighbours is None:
            cross = self._covariance(pair_distance(self.points_, targets))
            return self.coefficients_.T @ cross + self.mean_[:, None]
        with self._solvable():
            return kriging_points.field_at(self.points_, self.values_, self.patterns_, targets, self._rule())

    def _prior(self) -> float:
        """Variance of the signal that is predicted."""
        return self.variogram_.partial_sill + (self.variogram_.nugget if self.exact else 0.0)

    def _kink(self) -> float:
        """Distance at which the covariance is not smooth, beside 0; km."""
        return self.variogram_.range if self.variogram_.model == "spherical" else np.inf

    def _radial(self) -> Radial:
        """The covariance, and where it is not smooth: a nugget of the signal is a jump at 0."""
        jump = (0.0,) if self.exact and self.variogram_.nugget > 0.0 else ()
        return Radial(self._covariance, self.variogram_.partial_sill + self.variogram_.nugget, (self._kink(), *jump))

    def _rule(self) -> kriging_points.Rule:
        near = min(self.neighbours or len(self.points_), len(self.points_))
        return kriging_points.Rule(self._radial(), self._prior(), self.noise_, near, self.negative_weights == "zero")

    def _fill(self, table: NDArray[np.float32], lon: Floats, lat: Floats, elevation: Floats | None) -> None:
        if self.neighbours is not None and self.neighbours <= NEAR:
            cells = _cells(lon, lat, elevation, self.vertical_scale)
            with self._solvable():
                kriging_local.fill_field(table, cells, self.points_, self.values_, self._rule())
            return
        if self._by_nodes(lon, lat):
            smooth_sums.fill(table, lon, lat, self._sources())
        else:
            super()._fill(table, lon, lat, elevation)

    def _by_nodes(self, lon: Floats, lat: Floats) -> bool:
        """Whether fields and variances on a grid are computed at the nodes of its tiles."""
        return self.neighbours is None and self.vertical_scale is None and node_tiles.suits(lon, lat)

    def _sources(self) -> smooth_sums.Sources:
        scale = float(np.nanmax(np.abs(self.values_), initial=0.0))
        return smooth_sums.Sources(self.points_, self.coefficients_, self.mean_, self._covariance, self._kink(), scale)

    def fill_steps(
        self,
        out: NDArray[np.float32],
        steps: NDArray[np.int64],
        lon: ArrayLike,
        lat: ArrayLike,
        elevation: ArrayLike | None = None,
    ) -> None:
        """`predict_grid` of the times into some steps (t,), ascending, of `out` (s, lat, lon)."""
        self._check_fitted()
        axes = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
        if steps.size < len(out) and self._by_nodes(*axes):
            smooth_sums.fill(out, *axes, self._sources(), steps)
        else:
            super().fill_steps(out, steps, lon, lat, elevation)

    def fill_variance(
        self,
        out: NDArray[np.float32],
        steps: NDArray[np.int64],
        lon: ArrayLike,
        lat: ArrayLike,
        elevation: ArrayLike | None = None,
    ) -> None:
        """`variance_grid` of the times into some steps (t,), ascending, of `out` (s, lat, lon)."""
        self._check_fitted()
        axes = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
        if self._by_nodes(*axes):
            kriging_variance.fill_grid(out, *axes, self._variance_system(), self._kink(), steps)
        else:
            out[steps] = self.variance_grid(lon, lat, elevation)

    def predict(self, coords: ArrayLike, return_variance: bool = False) -> Any:
        """The field at points.

        Parameters
        ----------
        coords : (m, 2 | 3) as in `fit`
        return_variance : also give the variance of the predicted signal. Without `exact` that signal is free of
            measurement error: add the nugget to compare with tools whose variance includes it.

        Returns
        -------
        (m,) or (m, t) float64, or a pair (field, variance) of that shape.
        """
        self._check_fitted()
        targets = target_points(coords, self.vertical_scale)
        field = self._shaped(self._in_tiles(targets))
        if not return_variance:
            return field
        variance = np.empty((self.values_.shape[1], len(targets)))
        for part in row_tiles(len(targets), 1, self._width(), TILE_NUMBERS):
            variance[:, part] = self._variance(targets[part])
        return field, self._shaped(variance)

    def variance_grid(
        self, lon: ArrayLike, lat: ArrayLike, elevation: ArrayLike | None = None, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Variance of the predicted signal on a grid (see `predict`); parameters and shape as `predict_grid`."""
        self._check_fitted()
        lon, lat, elevation = as_grid(lon, lat, elevation)
        shape = (lat.size, lon.size) if self.single_ else (self.values_.shape[1], lat.size, lon.size)
        out = as_output(out, shape)
        table = out[None] if self.single_ else out

        def targets(rows: slice, columns: slice) -> Floats:
            height = None if elevation is None else elevation[:, columns]
            return grid_points(lon[columns], lat, height, rows, self.vertical_scale)

        if self.neighbours is not None and self.neighbours <= NEAR:
            cells = _cells(lon, lat, elevation, self.vertical_scale)
            with self._solvable():
                kriging_local.fill_variance(table, cells, self.points_, self.values_, self._rule())
        elif self.neighbours is not None:
            for rows in row_tiles(lat.size, lon.size, self._width(), TILE_NUMBERS):
                table[:, rows] = self._variance(targets(rows, slice(None))).reshape(table[:, rows].shape)
        else:
            system = self._variance_system()
            if self._by_nodes(lon, lat):
                kriging_variance.fill_grid(table, lon, lat, system, self._kink())
            else:
                kriging_variance.fill(table, targets, system)
        return out

    @property
    def nbytes(self) -> int:
        """Of what is kept for the variance of other places."""
        return 0 if self._system is None else self._system.nbytes

    def _variance_system(self) -> kriging_variance.System:
        """What the variance needs that does not depend on the place; kept for the next grid where that is small."""
        if self._system is not None:
            return self._system
        with self._solvable():
            system = kriging_variance.solve(
                self.points_, self._covariance, self._matrix(), self._prior(), self.patterns_
            )
        if system.nbytes <= SYSTEM_BYTES:
            self._system = system
        return system

    def _variance(self, targets: Floats) -> Floats:
        """(t, m) float64, NaN at times without any station and at targets without a place."""
        times = self.values_.shape[1]
        with self._solvable():
            if self.neighbours is not None:
                return kriging_points.variance_at(self.points_, self.patterns_, targets, times, self._rule())
            out = np.full((times, len(targets)), np.nan)
            known = np.flatnonzero(np.isfinite(targets).all(axis=1))
            matrix, cross = self._matrix(), self._covariance(pair_distance(self.points_, targets[known]))
            for points, columns in self.patterns_:
                k = matrix[np.ix_(points, points)]
                out[np.ix_(columns, known)] = kriging.prediction_variance(k, cross[points], self._prior())
        return out

    def leave_one_out(self) -> Floats:
        """Each station's values predicted from the other places, with the same variogram.

        Closed form with all stations, refitted with `neighbours`. Stations averaged into one place are left out together.

        Returns
        -------
        (n,) or (n, t) float64 as `fit` was given; NaN where the station is silent or no other place reports.
        """
        prediction, _ = self.left_out()
        return prediction[:, 0] if self.single_ else prediction

    def left_out(self) -> tuple[Floats, Floats]:
        """(n, t) predictions of `leave_one_out`, and the variance of their errors, those of the measurements included.

        The closed form knows the variance; with `neighbours` it is NaN.
        """
        self._check_fitted()
        with self._solvable():
            if self.neighbours is None:
                found = kriging_sets.leave_one_out(self._matrix(), self.values_)
            else:
                rule, points = self._rule(), self.points_
                prediction = kriging_points.field_at(points, self.values_, self.patterns_, points, rule, others=True).T
                found = prediction, np.full(prediction.shape, np.nan)
        prediction, variance = (np.where(self.reported_, table[self.place_], np.nan) for table in found)
        return prediction, variance


class InverseDistance(_Interpolator):
    """Inverse distance weighting of the nearest reporting stations (Shepard 1968).

    Parameters
    ----------
    neighbours : how many nearest reporting stations each target uses, at each time; None uses all
    power : weight = distance ** -power
    vertical_scale : how many horizontal km one km of elevation counts; None: elevation, if given, does not count

    Notes
    -----
    At a station that reports the field is its value (the mean of those at one place).

    Examples
    --------
    >>> model = InverseDistance().fit([[100.0, 30.0], [101.0, 30.0]], [0.1, 0.3])
    >>> model.predict([[100.5, 30.0]]).round(6)
    array([0.2])
    """

    def __init__(self, neighbours: int | None = 12, power: float = 2.0, vertical_scale: float | None = None) -> None:
        self.neighbours = neighbours
        self.power = power
        self.vertical_scale = vertical_scale

    def __repr__(self) -> str:
        return (
            f"InverseDistance(neighbours={self.neighbours}, power={self.power}, vertical_scale={self.vertical_scale})"
        )

    def fit(self, coords: ArrayLike, values: ArrayLike) -> Self:
        """Learn the stations; parameters as `Kriging.fit`."""
        _check_neighbours(self.neighbours)
        if not self.power > 0:
            raise InputError(f"power must be above 0; got {self.power}")
        self.points_, self.values_ = _stations(coords, values, self.vertical_scale)
        self.single_ = np.ndim(values) == 1
        return self

    def _near(self) -> int:
        return len(self.points_) if self.neighbours is None else min(self.neighbours, len(self.points_))

    def _width(self) -> int:
        return max(self.values_.shape[1], 1)

    def _field(self, targets: Floats) -> Floats:
        return idw.inverse_distance(self.points_, self.values_, targets, self._near(), self.power)

    def _fill(self, table: NDArray[np.float32], lon: Floats, lat: Floats, elevation: Floats | None) -> None:
        self._fill_wanted(table, lon, lat, elevation, None)

    def _fill_wanted(
        self,
        table: NDArray[np.float32],
        lon: Floats,
        lat: Floats,
        elevation: Floats | None,
        wanted: NDArray[np.bool_] | None,
    ) -> None:
        if self._near() > NEAR:
            super()._fill(table, lon, lat, elevation)
            return
        cells = _cells(lon, lat, elevation, self.vertical_scale)
        idw.fill(table, cells, self.points_, self.values_, self._near(), self.power, wanted)

    def predict_wanted(self, lon: ArrayLike, lat: ArrayLike, wanted: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """`predict_grid` of (n, t) values where it is wanted: (d, lat, lon), of time t at t % d; elsewhere it may be NaN."""
        self._check_fitted()
        lon, lat, _ = as_grid(lon, lat, None)
        out = np.empty((self.values_.shape[1], lat.size, lon.size), np.float32)
        self._fill_wanted(out, lon, lat, None, wanted)
        return out

    def predict(self, coords: ArrayLike) -> Floats:
        """(m,) or (m, t) float64 at (m, 2 | 3) coords."""
        self._check_fitted()
        return self._shaped(self._in_tiles(target_points(coords, self.vertical_scale)))

    def leave_one_out(self) -> Floats:
        """Each station's values predicted from all others; NaN where it is silent or no other reports."""
        self._check_fitted()
        prediction = idw.leave_one_out(self.points_, self.values_, self._near(), self.power)
        return prediction[:, 0] if self.single_ else prediction


def stacked(models: Sequence[InverseDistance]) -> InverseDistance:
    """One inverse distance model for the times of several, which must share stations and settings."""
    one = copy(models[0])
    one.values_ = np.concatenate([model.values_ for model in models], axis=1)
    one.single_ = False
    return one


def _cells(lon: Floats, lat: Floats, elevation: Floats | None, vertical_scale: float | None) -> neighbours.Cells:
    if vertical_scale is None:
        return neighbours.Cells(lon, lat)
    if elevation is None:
        raise InputError(f"vertical_scale {vertical_scale} needs the elevation of every cell, (lat, lon) in m")
    return neighbours.Cells(lon, lat, elevation, vertical_scale)


def _check_neighbours(neighbours: int | None) -> None:
    if neighbours is not None and neighbours < 1:
        raise InputError(f"neighbours must be at least 1, or None for all; got {neighbours}")


def _stations(coords: ArrayLike, values: ArrayLike, vertical_scale: float | None) -> tuple[Floats, Floats]:
    """Points and values of at least one station, checked."""
    points, table = station_points(coords, vertical_scale), as_values(coords, values)
    if len(points) == 0:
        raise InputError("coords hold no station: a field needs at least one")
    return points, table


def _average_places(points: Floats, values: Floats, place: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """One point per place, and the mean of the values that are reported there."""
    _, first = np.unique(place, return_index=True)
    if first.size == len(points):
        return points, values
    present = np.isfinite(values)
    total, count = np.zeros((first.size, values.shape[1])), np.zeros((first.size, values.shape[1]))
    np.add.at(total, place, np.where(present, values, 0.0))
    np.add.at(count, place, present)
    return points[first], np.where(count > 0, total / np.maximum(count, 1.0), np.nan)
