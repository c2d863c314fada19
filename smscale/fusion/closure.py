"""Maps brought to agree with the coarse retrievals: coarse-mean closure, in pieces that a block can call.

The residual of a coarse cell at a step is its retrieval less the area-weighted mean of the fine map over the *valid* part of
its footprint. It is closed wholly (`exact`) or damped by model variance / (model variance + retrieval variance)
(`weighted`: the weight of a scalar Kalman update), and spread by a smooth surface whose mean over that valid part is the
(damped) residual; see `smscale.kernels.closure`. Cells without a retrieval, or with too little of them valid, are not closed:
the surface falls smoothly to zero there, and their fine cells carry `Status.CLOSURE_NOT_APPLIED`. Means are exact but for the
rounding of float32 maps, except where the limit of the correction or the bounds of the map bite: both are counted.

Pass one: `block_sums` of each block of the map, `merge`, `solve`. Pass two: `Closure.apply` on each block. `close` is both at
once for arrays in memory. Steps are independent of one another: long periods are merged and solved slab by slab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.fusion.apply import BOUNDS
from smscale.fusion.closure_sums import TIE, Sums, block_sums, frame_of, merge
from smscale.grid import Grid, grid_of
from smscale.kernels import closure as kernel
from smscale.schema import VARIABLES, Status, status_attrs

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Kind = Literal["exact", "weighted"]
Steps = slice | ArrayLike

#: Share of a coarse cell that must hold valid values; as for upscaling.
LEAST = 0.5
#: Variance of a retrieval, (m3 m-3)^2: SMAP's required accuracy is 0.04 m3 m-3 (Entekhabi et al. 2010, Proc. IEEE 98, 704-716).
SMAP_VARIANCE = 0.04**2
#: The largest correction, m3 m-3: three times the residuals' likely spread of 0.064, which is 0.04 of the retrieval and 0.05 of a
#: model at 36 km. What lies beyond is rather an error of one of them than news about the soil.
LIMIT = 0.2

#: States of a coarse cell at a step.
NO_RETRIEVAL, TOO_LITTLE_VALID, CLOSED, LIMITED = 0, 1, 2, 3
#: What a closure holds by step.
_BY_STEP = ("coefficients", "residual", "damping", "state")


# -- the solution -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Closure:
    """The correction of every step, solved: small arrays that can be sent to workers and evaluated anywhere.

    Parameters
    ----------
    coarse : the coarse grid, (r, c) cells
    coefficients : (t, r + 2, c + 2) float32, m3 m-3, of the splines of the cells and of a ring around them
    residual : (t, r, c) float32, retrieval less mean of the map over the valid part; NaN where a cell is not closed
    damping : (t, r, c) float32, share of the residual that is closed; NaN where a cell is not closed
    state : (t, r, c) uint8: NO_RETRIEVAL, TOO_LITTLE_VALID, CLOSED, or LIMITED: the surface may reach the
        limit within the cell, whose mean is then closed as far as that lets it be
    limit : the largest correction, m3 m-3
    """

    coarse: Grid
    coefficients: Singles
    residual: Singles
    damping: Singles
    state: NDArray[np.uint8]
    limit: float

    @property
    def closed(self) -> NDArray[np.bool_]:
        """(t, r, c) whether a coarse cell is closed, in part at least."""
        return self.state >= CLOSED

    def counts(self) -> dict[str, int]:
        """Coarse cells x steps by their state."""
        names = ("no_retrieval", "too_little_valid", "closed", "limited")
        return {name: int(np.count_nonzero(self.state == i)) for i, name in enumerate(names)}

    def target(self, sums: Sums) -> Floats:
        """(t, r, c) the means that the closed map should have, from the sums that were solved; NaN where not closed."""
        return sums.mean() + self.residual.astype(np.float64) * self.damping

    def window(self, grid: Grid, steps: Steps = slice(None)) -> Closure:
        """The part that some steps of a block need: what its task should carry."""
        rows, cols = frame_of(grid, self.coarse).window
        chosen = self._selected(steps)
        return Closure(
            self.coarse.window(rows, cols),
            self.coefficients[chosen, rows.start : rows.stop + 2, cols.start : cols.stop + 2],
            self.residual[chosen, rows, cols],
            self.damping[chosen, rows, cols],
            self.state[chosen, rows, cols],
            self.limit,
        )

    def surface(self, grid: Grid, steps: Steps = slice(None)) -> Singles:
        """(t, m, n) float32, m3 m-3: the correction on a fine grid; zero from two cells beyond the last closed one."""
        chosen = self._selected(steps)
        out = np.zeros((chosen.size, *grid.shape), np.float32)
        self.apply(out, grid, chosen, (-np.inf, np.inf), out=out)
        return out

    def points(self, grid: Grid, lon: ArrayLike, lat: ArrayLike, steps: Steps = slice(None)) -> Singles:
        """(t, p) float32: the correction of the cells of `grid` that hold the points, as `surface`; zero outside it."""
        frame, (row, col) = frame_of(grid, self.coarse), grid.index(lon, lat)
        cell = frame.rows.cell[row], frame.cols.cell[col]
        offset = frame.rows.offset[row], frame.cols.offset[col]
        found = kernel.at_points(self.coefficients[self._selected(steps)], cell, offset)
        limit = np.float32(self.limit)
        return np.where(row >= 0, np.clip(found, -limit, limit), np.float32(0))

    def apply(
        self,
        field: NDArray,
        grid: Grid,
        steps: Steps = slice(None),
        bounds: tuple[float, float] = BOUNDS,
        status: NDArray[np.uint32] | None = None,
        out: Singles | None = None,
    ) -> tuple[Singles, NDArray[np.uint32], dict[str, int]]:
        """A block of the map with the correction added.

        Parameters
        ----------
        field : (t, m, n) float32, m3 m-3, NaN where missing; grid : its part of the fine grid
        steps : which of the closure's steps they are
        bounds : what the closed map is clipped to, m3 m-3
        status : (t, m, n) uint32 of the block: the bits are added to it, in place; a new one if not given
        out : (t, m, n) float32, where the closed map goes; may be `field`

        Returns
        -------
        closed : (t, m, n) float32
        status : with CLOSURE_NOT_APPLIED and CLIPPED where they hold; nothing is added where `field` is missing
        counts : valid cells that are closed, closure_not_applied, limited (held by the limit), clipped
        """
        chosen = self._selected(steps)
        shape = (chosen.size, *grid.shape)
        field = np.asarray(field, np.float32)
        status = np.zeros(shape, np.uint32) if status is None else status
        out = np.empty(shape, np.float32) if out is None else out
        for name, array, dtype in (("field", field, "float32"), ("status", status, "uint32"), ("out", out, "float32")):
            if array.shape != shape or array.dtype != dtype:
                raise InputError(f"{name} must be {dtype} {shape} (steps, lat, lon); got {array.dtype} {array.shape}")
        frame = frame_of(grid, self.coarse)
        counts = kernel.add(
            field,
            self.coefficients[chosen],
            frame.rows,
            frame.cols,
            self.closed[chosen],
            self.limit,
            bounds,
            (int(Status.CLOSURE_NOT_APPLIED), int(Status.CLIPPED)),
            out,
            status,
        )
        names = ("closed", "closure_not_applied", "limited", "clipped")
        return out, status, dict(zip(names, map(int, counts), strict=True))

    def to_arrays(self) -> dict[str, NDArray]:
        """Plain arrays that `from_arrays` takes back; an .npz of them needs no pickle."""
        return {
            "lon_edges": self.coarse.lon_edges,
            "lat_edges": self.coarse.lat_edges,
            "crs": np.array(self.coarse.crs),
            "coefficients": self.coefficients,
            "residual": self.residual,
            "damping": self.damping,
            "state": self.state,
            "limit": np.array(self.limit),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Closure:
        coarse = Grid(arrays["lon_edges"], arrays["lat_edges"], str(arrays["crs"]))
        coefficients, residual, damping, state = (np.asarray(arrays[name]) for name in _BY_STEP)
        return cls(coarse, coefficients, residual, damping, state, float(arrays["limit"]))

    def _selected(self, steps: Steps) -> NDArray[np.int64]:
        every = np.arange(len(self.state), dtype=np.int64)
        return np.atleast_1d(every[steps if isinstance(steps, slice) else np.asarray(steps)])


def solve(
    sums: Sums,
    smap: ArrayLike,
    coarse: Grid,
    kind: Kind = "exact",
    *,
    model_variance: ArrayLike | None = None,
    smap_variance: ArrayLike = SMAP_VARIANCE,
    least: float = LEAST,
    limit: float = LIMIT,
) -> Closure:
    """The correction that gives the map the coarse means.

    Parameters
    ----------
    sums : of `merge`, with splines; its steps are those of `smap`
    smap : (t, r, c) retrievals on the coarse grid, m3 m-3, NaN where there is none
    kind : "exact", or "weighted": residuals damped by model_variance / (model_variance + smap_variance)
    model_variance, smap_variance : error variances of the map's coarse mean and of the retrievals, (m3 m-3)^2; numbers, or
        arrays that broadcast to (t, r, c). Where one is NaN there is no retrieval to close to. A model's mean squared error
        against retrievals it was not trained on is the sum of the two
    least : share of a coarse cell that must hold valid values
    limit : the largest correction, m3 m-3: the surface is cut off there, which cells LIMITED may feel

    Raises
    ------
    InputError
        if shapes do not fit, or a setting lies outside its range.
    """
    _check(sums, np.shape(smap), coarse, kind, least, limit)
    retrieval = np.asarray(smap, np.float64)
    residual = retrieval - sums.mean()
    damping = _damping(kind, model_variance, smap_variance, retrieval.shape)
    area = sums.area()
    known = np.isfinite(retrieval) & np.isfinite(damping)
    closed = known & (area > 0) & (area >= least - TIE)
    wanted = np.where(closed, residual * damping, np.nan)
    weights = np.divide(sums.values[1:], area, out=np.zeros(sums.values[1:].shape), where=closed)
    coefficients, highest = kernel.solve(weights, np.clip(wanted, -limit, limit))
    limited = (highest > limit) | (np.abs(wanted) > limit)
    state = np.select([~known, ~closed, limited], [NO_RETRIEVAL, TOO_LITTLE_VALID, LIMITED], CLOSED)
    return Closure(
        coarse,
        coefficients.astype(np.float32),
        np.where(closed, residual, np.nan).astype(np.float32),
        np.where(closed, damping, np.nan).astype(np.float32),
        state.astype(np.uint8),
        float(limit),
    )


def _check(sums: Sums, shape: tuple[int, ...], coarse: Grid, kind: str, least: float, limit: float) -> None:
    if len(sums.values) != 10:
        raise InputError("a closure needs sums with splines: block_sums(..., spline=True)")
    if sums.values.shape[2:] != coarse.shape:
        raise InputError(f"sums of {sums.values.shape[2:]} coarse cells are not of {coarse}: merge them first")
    if shape != sums.values.shape[1:]:
        raise InputError(f"smap must be {sums.values.shape[1:]} (steps, lat, lon) as the sums; got {shape}")
    if kind not in ("exact", "weighted"):
        raise InputError(f"kind must be 'exact' or 'weighted'; got {kind!r}")
    if not 0 <= least <= 1:
        raise InputError(f"least must lie within 0 and 1; got {least}")
    if not 0 < limit < np.inf:
        raise InputError(f"limit must be above 0 m3 m-3; got {limit}")


def _damping(kind: str, model: ArrayLike | None, smap: ArrayLike, shape: tuple[int, ...]) -> Floats:
    """(t, r, c) share of the residual that is closed."""
    if kind == "exact":
        return np.ones(shape)
    if model is None:
        raise InputError("a weighted closure needs model_variance, the error variance of the map's coarse mean")
    try:
        own, other = (np.broadcast_to(np.asarray(v, np.float64), shape) for v in (model, smap))
    except ValueError:
        raise InputError(
            f"variances must be numbers or broadcast to {shape}; got shapes {np.shape(model)} and {np.shape(smap)}"
        ) from None
    if ((own < 0) | (other < 0) | (own + other == 0)).any():
        raise InputError("model_variance and smap_variance must not be negative, nor both zero")
    return own / (own + other)


def join(closures: Sequence[Closure]) -> Closure:
    """Closures of successive steps as one."""
    first = closures[0]
    if any(c.coarse != first.coarse or c.limit != first.limit for c in closures):
        raise InputError("closures of different coarse grids or limits do not join")
    coefficients, residual, damping, state = (np.concatenate([getattr(c, name) for c in closures]) for name in _BY_STEP)
    return Closure(first.coarse, coefficients, residual, damping, state, first.limit)


# -- how well it closes -------------------------------------------------------------------------


@dataclass(frozen=True)
class ClosureError:
    """Coarse mean of a map less its reference, over some cells and steps, as sums that add up.

    n : cells x steps; total, squares : sums of the errors, m3 m-3, and of their squares; largest : of their absolute values
    """

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    def __add__(self, other: ClosureError) -> ClosureError:
        return ClosureError(
            self.n + other.n,
            self.total + other.total,
            self.squares + other.squares,
            max(self.largest, other.largest),
        )

    def report(self) -> dict[str, float]:
        """n, rmse, bias, max; NaN where n is 0."""
        if not self.n:
            return {"n": 0, "rmse": np.nan, "bias": np.nan, "max": np.nan}
        return {
            "n": self.n,
            "rmse": float(np.sqrt(self.squares / self.n)),
            "bias": self.total / self.n,
            "max": self.largest,
        }


def errors(sums: Sums, reference: ArrayLike, where: NDArray[np.bool_] | None = None) -> ClosureError:
    """How far the coarse means of a map are from a reference.

    Parameters
    ----------
    sums : merged, of the model's, the closed or the fused map
    reference : (t, r, c) m3 m-3: the retrievals, or `Closure.target`; NaN where there is none
    where : (t, r, c) which cells count, as `Closure.closed`; by default all that have both
    """
    error = sums.mean() - np.asarray(reference, np.float64)
    error = error[np.isfinite(error) if where is None else where & np.isfinite(error)]
    return ClosureError(
        error.size, float(error.sum()), float((error * error).sum()), float(np.abs(error).max(initial=0.0))
    )


# -- all at once --------------------------------------------------------------------------------


def close(
    background: xr.DataArray,
    smap: xr.DataArray,
    kind: Kind = "exact",
    *,
    model_variance: ArrayLike | None = None,
    smap_variance: ArrayLike = SMAP_VARIANCE,
    least: float = LEAST,
    limit: float = LIMIT,
    bounds: tuple[float, float] = BOUNDS,
) -> xr.Dataset:
    """A map in memory brought to agree with coarse retrievals.

    Parameters
    ----------
    background : (time, lat, lon) soil moisture, m3 m-3, NaN where missing
    smap : (time, lat, lon) retrievals of the same steps, on a coarse grid that covers the map
    kind, model_variance, smap_variance, least, limit : as `solve`; bounds : as `Closure.apply`

    Returns
    -------
    Dataset on the map's coordinates: soil_moisture, status (CLOSURE_NOT_APPLIED, CLIPPED)

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from smscale.grid import Grid, coords_of
    >>> def field(value, grid):
    ...     return xr.DataArray(np.full((1, *grid.shape), value), coords_of(grid), ("time", "lat", "lon"))
    >>> fine, coarse = Grid.latlon(100, 30, 102, 31, step=0.25), Grid.latlon(100, 30, 102, 31, step=1)
    >>> closed = close(field(0.2, fine), field(0.25, coarse))
    >>> round(float(closed.soil_moisture.mean()), 4)
    0.25
    """
    dims = ("time", "lat", "lon")
    background, smap = background.transpose(*dims), smap.transpose(*dims)
    if "time" in background.coords and "time" in smap.coords and not background.time.equals(smap.time):
        raise InputError("background and smap must have the same times: select or reindex smap to the background's")
    grid, coarse = grid_of(background), grid_of(smap)
    field = np.asarray(background.values, np.float32)
    sums = merge([block_sums(field, grid, coarse)], coarse)
    settings: dict[str, Any] = {"model_variance": model_variance, "smap_variance": smap_variance}
    closure = solve(sums, smap.values, coarse, kind, **settings, least=least, limit=limit)
    closed, status, _ = closure.apply(field, grid, bounds=bounds)
    data: dict[str, Any] = {
        "soil_moisture": (dims, closed, {**VARIABLES["soil_moisture"].attrs, "ancillary_variables": "status"}),
        "status": (dims, status, status_attrs()),
    }
    return xr.Dataset(data, background.coords, background.attrs)
