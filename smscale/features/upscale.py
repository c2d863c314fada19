"""Fine fields on coarse cells: exact area weighting, by the kind of the variable.

Continuous variables are averaged, classes go by majority of area, directions are averaged on the circle.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from smscale import schema
from smscale.errors import InputError
from smscale.grid import Grid, coords_of, grid_of
from smscale.kernels import overlap as kernel

Floats = NDArray[np.float64]
Field = TypeVar("Field", xr.DataArray, xr.Dataset)

#: What counts as a whole cell: the coarse cell itself, or the part of it that the fine grid covers.
Whole = Literal["cell", "covered"]

_DEGREES = {"degree", "degrees", "deg"}


def upscale(fine: Field, coarse_grid: Grid, min_valid_fraction: float = 0.5, whole: Whole = "cell") -> Field:
    """Bring fields from a fine grid to a coarse one by exact area weights.

    How a variable is reduced is told by its name in `smscale.schema`, else by its CF attributes: `flag_values` or
    `flag_meanings` make it a class (majority of area, the lowest class of equals; 255 is missing), units of degrees with
    "direction" in its name a direction (mean on the circle, clockwise from north), all else is averaged.

    Parameters
    ----------
    fine : (..., lat, lon), any leading dimensions, chunked or not; NaN where missing
    coarse_grid : any grid; a cell that `fine` does not reach is missing
    min_valid_fraction : share of a cell's area that must hold valid values
    whole : "cell": the share is of the coarse cell; "covered": of the part of the cell within the fine grid

    Returns
    -------
    The same on `coarse_grid`, float32 (classes uint8), coordinates and attributes kept, lazy where `fine` is. A DataArray
    gains the coordinate `valid_fraction`, a Dataset a variable `valid_fraction_<name>` for each. Variables without lat and
    lon pass unchanged. Another chunking gives the same up to the rounding of float64 sums.

    Raises
    ------
    InputError
        if `fine` lies on no grid, does not meet `coarse_grid`, or holds what has no area mean (times, bit fields).

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from smscale.grid import Grid, coords_of
    >>> fine, coarse = Grid.latlon(100, 30, 102, 31, step=0.25), Grid.latlon(100, 30, 102, 31, step=1)
    >>> lst = xr.DataArray(np.full(fine.shape, 290.0), coords_of(fine), ("lat", "lon"), "lst")
    >>> upscale(lst, coarse).values
    array([[290., 290.]], dtype=float32)
    """
    if not 0 <= min_valid_fraction <= 1:
        raise InputError(f"min_valid_fraction must lie within 0 and 1; got {min_valid_fraction}")
    weights = _Weights.between(grid_of(fine), coarse_grid, whole)
    if isinstance(fine, xr.DataArray):
        values, fraction = _upscale_one(fine, weights, min_valid_fraction)
        return values.assign_coords(valid_fraction=fraction)
    kept: dict[Hashable, xr.DataArray] = {}
    for name, data in fine.data_vars.items():
        if not {"lat", "lon"} <= set(data.dims):
            kept[name] = data.drop_vars([c for c in data.coords if {"lat", "lon"} & set(data.coords[c].dims)])
            continue
        kept[name], kept[f"valid_fraction_{name}"] = _upscale_one(data, weights, min_valid_fraction)
    coords = _coords(fine, coarse_grid)
    return xr.Dataset(kept, coords, {**fine.attrs, "crs": coarse_grid.crs})


def kind_of(data: xr.DataArray) -> schema.Kind:
    """Whether a variable is continuous, a class or a direction: by its name in the schema, else by its CF attributes."""
    known = schema.VARIABLES.get(str(data.name))
    if known:
        return known.kind
    if "flag_masks" in data.attrs:
        raise InputError(f"{data.name} is a bit field (flag_masks): it has no area mean; select one flag of it first")
    if {"flag_values", "flag_meanings"} & set(data.attrs):
        return "class"
    words = " ".join(str(w) for w in (data.name, data.attrs.get("long_name"), data.attrs.get("standard_name")))
    is_direction = str(data.attrs.get("units", "")).lower() in _DEGREES and "direction" in words.lower()
    return "direction" if is_direction else "continuous"


# -- one variable -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weights:
    """Overlap of a fine and a coarse grid; `area` (m, n) is what counts as a whole cell."""

    coarse: Grid
    lat: Floats
    lon: Floats
    area: Floats

    @classmethod
    def between(cls, fine: Grid, coarse: Grid, whole: Whole) -> _Weights:
        lat, lon = (kernel.without_slivers(matrix) for matrix in fine.overlap(coarse))
        if not (lat.any() and lon.any()):
            raise InputError(
                f"the grids do not meet: fine is {fine}, coarse is {coarse}; check longitudes (0..360?) and region"
            )
        if whole not in ("cell", "covered"):
            raise InputError(f"whole must be 'cell' or 'covered'; got {whole!r}")
        covered = np.outer(lat.sum(axis=1), lon.sum(axis=1))
        return cls(
            coarse, lat, lon, kernel.cell_areas(coarse.lat_edges, coarse.lon_edges) if whole == "cell" else covered
        )


@dataclass(frozen=True)
class _Reduction:
    """How one kind of variable becomes a mergeable state, and the state a result."""

    prepare: Callable[[NDArray], NDArray]
    state: Callable[[NDArray, kernel.Overlap], Floats]
    result: Callable[[Floats, Floats, float], tuple[NDArray, NDArray[np.float32]]]
    dtype: type


def _reduction(data: xr.DataArray) -> _Reduction:
    kind = kind_of(data)
    if data.dtype.kind not in "biuf":
        raise InputError(f"{data.name} of type {data.dtype} has no area mean; leave it out or convert it to numbers")
    if kind == "class":
        classes = _classes_of(data)
        return _Reduction(
            kernel.as_classes,
            partial(kernel.class_state, classes=classes),
            partial(kernel.majority_of, classes=classes),
            np.uint8,
        )
    if kind == "direction":
        return _Reduction(_as_float, kernel.direction_state, kernel.direction_of, np.float32)
    return _Reduction(_as_float, kernel.mean_state, kernel.mean_of, np.float32)


def _classes_of(data: xr.DataArray) -> NDArray[np.uint8]:
    known = schema.VARIABLES.get(str(data.name))
    if known:
        return np.arange(int(known.valid_min), int(known.valid_max) + 1, dtype=np.uint8)
    if "flag_values" not in data.attrs:
        return np.arange(kernel.CLASS_FILL, dtype=np.uint8)
    values = np.unique(np.atleast_1d(data.attrs["flag_values"]))
    if values.min() < 0 or values.max() >= kernel.CLASS_FILL:
        raise InputError(
            f"classes of {data.name} must lie within 0 and 254; flag_values run from {values.min()} to {values.max()}"
        )
    return values.astype(np.uint8)


def _as_float(values: NDArray) -> NDArray:
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def _upscale_one(data: xr.DataArray, weights: _Weights, least: float) -> tuple[xr.DataArray, xr.DataArray]:
    reduction = _reduction(data)
    data = data.transpose(..., "lat", "lon")
    reduce = _reduce_lazily if isinstance(data.data, da.Array) else _reduce_now
    values, fraction = reduce(data.data, weights, reduction, least)
    coords = _coords(data, weights.coarse)
    attrs = {**data.attrs, "crs": weights.coarse.crs} if "crs" in data.attrs else data.attrs
    about = {"long_name": f"share of the cell's area with valid {data.name or 'values'}", "units": "1"}
    return (
        xr.DataArray(values, coords, data.dims, data.name, attrs),
        xr.DataArray(fraction, coords, data.dims, f"valid_fraction_{data.name}", about),
    )


def _coords(data: xr.Dataset | xr.DataArray, coarse: Grid) -> dict[Hashable, Any]:
    gone = {"lat", "lon", "x", "y", "spatial_ref"}
    kept = {n: c.variable for n, c in data.coords.items() if n not in gone and not {"lat", "lon"} & set(c.dims)}
    return {**kept, **{str(n): c for n, c in coords_of(coarse).items()}}


def _reduce_now(values: NDArray, weights: _Weights, reduction: _Reduction, least: float) -> tuple[NDArray, NDArray]:
    overlap = kernel.overlap_of(weights.lat, weights.lon)
    state = _block_state(values, overlap, reduction)
    return _finish([state], [overlap], weights.area, reduction, least, values.shape[:-2])


def _reduce_lazily(
    values: da.Array, weights: _Weights, reduction: _Reduction, least: float
) -> tuple[da.Array, da.Array]:
    """One task per chunk makes its state; one per chunk of the leading dimensions merges and finishes them."""
    overlaps = {
        (i, j): kernel.overlap_of(weights.lat[:, rows], weights.lon[:, cols])
        for i, rows in enumerate(_slices(values.chunks[-2]))
        for j, cols in enumerate(_slices(values.chunks[-1]))
    }
    touched = {where: overlap for where, overlap in overlaps.items() if overlap.shape != (0, 0)}
    shipped = {where: dask.delayed(overlap, traverse=False) for where, overlap in touched.items()}
    area = dask.delayed(weights.area, traverse=False)
    blocks = values.to_delayed()
    lead = blocks.shape[:-2]
    means = np.empty((*lead, 1, 1), dtype=object)
    fractions = np.empty((*lead, 1, 1), dtype=object)
    for at in np.ndindex(*lead):
        shape = tuple(chunks[i] for chunks, i in zip(values.chunks, at, strict=False))
        states = [dask.delayed(_block_state)(blocks[at + where], shipped[where], reduction) for where in touched]
        both = dask.delayed(_finish, nout=2)(states, list(shipped.values()), area, reduction, least, shape)
        whole = (*shape, *weights.area.shape)
        means[(*at, 0, 0)] = da.from_delayed(both[0], whole, dtype=reduction.dtype)
        fractions[(*at, 0, 0)] = da.from_delayed(both[1], whole, dtype=np.float32)
    return da.block(means.tolist()), da.block(fractions.tolist())


def _slices(chunks: tuple[int, ...]) -> list[slice]:
    stops = np.cumsum(chunks)
    return [slice(int(stop) - size, int(stop)) for stop, size in zip(stops, chunks, strict=True)]


def _block_state(values: NDArray, overlap: kernel.Overlap, reduction: _Reduction) -> Floats:
    values = np.asarray(values)
    return reduction.state(reduction.prepare(values.reshape(-1, *values.shape[-2:])), overlap)


def _finish(
    states: list[Floats],
    overlaps: list[kernel.Overlap],
    area: Floats,
    reduction: _Reduction,
    least: float,
    lead: tuple[int, ...],
) -> tuple[NDArray, NDArray]:
    merged = kernel.merge(states, overlaps, (area.shape[0], area.shape[1]))
    values, fraction = reduction.result(merged, area, least)
    return values.reshape(*lead, *area.shape), fraction.reshape(*lead, *area.shape)
