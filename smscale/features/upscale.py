"""Fine fields on coarse cells: exact area weighting, by the kind of the variable.

Continuous variables are averaged, classes go by majority of area (or are given as shares of it), directions are averaged on
the circle. `upscale` and `class_fractions` take a whole field, chunked or not; an `Upscaler` takes it tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from smscale import schema
from smscale.errors import InputError
from smscale.grid import Grid, coords_of, grid_of
from smscale.kernels import overlap as kernel

Floats = NDArray[np.float64]
Field = TypeVar("Field", xr.DataArray, xr.Dataset)

#: What counts as a whole cell: the coarse cell itself, or the part of it that the fine grid covers.
Whole = Literal["cell", "covered"]
#: By exact area weights, or from the one fine cell that holds the coarse cell's centre (Chen et al. 2023).
How = Literal["area", "nearest"]

#: Of a fine cell: a coarse centre this near to an edge lies on it (9 km and 36 km EASE-2 cells share edges to 1e-12).
_ON_EDGE = 1e-9

_DEGREES = {"degree", "degrees", "deg"}


def upscale(
    fine: Field, coarse_grid: Grid, min_valid_fraction: float = 0.5, whole: Whole = "cell", how: How = "area"
) -> Field:
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
    how : "area", or "nearest": the value of the fine cell that holds the coarse cell's centre (of cells that meet there the
        south-eastern one), whatever its kind; the valid fraction is then 1 or 0

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
    _check_fraction(min_valid_fraction)
    weights = _Weights.of(grid_of(fine), coarse_grid, whole, how)
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


def class_fractions(
    fine_classes: xr.DataArray, coarse_grid: Grid, min_valid_fraction: float = 0.5, whole: Whole = "cell"
) -> xr.DataArray:
    """Share of a coarse cell's valid area that each class has.

    Parameters
    ----------
    fine_classes : (..., lat, lon) classes, chunked or not: `land_cover`, or a variable with `flag_values`
    coarse_grid, min_valid_fraction, whole : as `upscale`

    Returns
    -------
    (igbp_class, ..., lat, lon) float32, 0 to 1 and 1 in sum, NaN where too little is valid; the first dimension is called
    NAME_class for another variable NAME and holds the classes' numbers. Coordinate `valid_fraction` (..., lat, lon). Lazy
    where `fine_classes` is.

    Raises
    ------
    InputError
        if it holds no classes, or does not say which; and as `upscale`.
    """
    _check_fraction(min_valid_fraction)
    name = str(fine_classes.name)
    if kind_of(fine_classes) != "class" or not (name in schema.VARIABLES or "flag_values" in fine_classes.attrs):
        raise InputError(f"{name} does not say which classes it holds; name it land_cover or set its flag_values")
    classes = _classes_of(fine_classes)
    weights = _Weights.of(grid_of(fine_classes), coarse_grid, whole, "area")
    data = fine_classes.transpose(..., "lat", "lon")
    shares, fraction = _reduce(data.data, weights, _class_shares(classes), min_valid_fraction)
    dim = "igbp_class" if name == "land_cover" else f"{name}_class"
    coords = _coords(data, coarse_grid) | {
        dim: (dim, classes, {"long_name": f"class of {name}"}),
        "valid_fraction": _fraction_of(data, fraction, coarse_grid),
    }
    attrs = {"long_name": f"share of the valid area by class of {name}", "units": "1"}
    attrs |= {"crs": coarse_grid.crs} if "crs" in data.attrs else {}
    return xr.DataArray(shares, coords, (dim, *data.dims), f"{name}_fraction", attrs)


class Upscaler:
    """`upscale`, for a field that comes tile by tile and is never held whole.

    Tiles may come in any order: another order changes only the rounding of float64 sums, the same order gives the same bytes.
    What is not added counts as missing. It holds the sums of the coarse cells that the fine grid touches, no more; upscalers
    of parts, from other workers, are added up by `merge`.

    Parameters
    ----------
    fine, coarse : the whole fine grid, the coarse grid
    kind : of the variable: continuous, class or direction
    classes : (k,) the classes that count, for kind class; by default IGBP's, 1 to 17
    whole, how : as `upscale`

    Examples
    --------
    >>> import numpy as np
    >>> fine, coarse = Grid.latlon(100, 30, 102, 31, step=0.25), Grid.latlon(100, 30, 102, 31, step=1)
    >>> lst = Upscaler(fine, coarse)
    >>> for cols in (slice(0, 4), slice(4, 8)):
    ...     lst.add(np.full((1, 4, 4), 290.0), cols=cols)
    >>> lst.result()[0]
    array([[[290., 290.]]], dtype=float32)
    """

    def __init__(
        self,
        fine: Grid,
        coarse: Grid,
        kind: schema.Kind = "continuous",
        classes: ArrayLike | None = None,
        whole: Whole = "cell",
        how: How = "area",
    ) -> None:
        if kind not in ("continuous", "class", "direction"):
            raise InputError(f"kind must be 'continuous', 'class' or 'direction'; got {kind!r}")
        self.classes = _igbp() if classes is None else np.unique(np.asarray(classes, dtype=np.uint8))
        self.kind, self.coarse = kind, coarse
        self._fine, self._weights = fine, _Weights.of(fine, coarse, whole, how)
        self._reduction = _reduction_of(kind, self.classes, how)
        self._part = kernel.overlap_of(self._weights.lat, self._weights.lon)
        self._state: Floats | None = None
        self._tiles: list[tuple[int, int, int, int]] = []

    def add(self, values: NDArray, rows: slice = slice(None), cols: slice = slice(None)) -> None:
        """Add one tile.

        Parameters
        ----------
        values : (t, m, n); floats NaN where missing, of classes uint8 or floats. t is the same in every tile
        rows, cols : where in the fine grid it lies

        Raises
        ------
        InputError
            if the shape is another, or the tile overlaps one that was added before.
        """
        values = np.asarray(values)
        tile = (*rows.indices(self._fine.shape[0])[:2], *cols.indices(self._fine.shape[1])[:2])
        if values.ndim != 3 or values.shape[1:] != (tile[1] - tile[0], tile[3] - tile[2]):
            raise InputError(
                f"a tile must be (t, {tile[1] - tile[0]}, {tile[3] - tile[2]}) for rows {tile[0]}:{tile[1]}, "
                f"columns {tile[2]}:{tile[3]}; got {values.shape}"
            )
        state = self._state_of(values.shape[0])
        self._enter([tile])
        weights = self._weights
        overlap = kernel.overlap_of(weights.lat[:, tile[0] : tile[1]], weights.lon[:, tile[2] : tile[3]])
        row, col = overlap.row0 - self._part.row0, overlap.col0 - self._part.col0
        m, n = overlap.shape
        if m and n:
            state[:, :, row : row + m, col : col + n] += _block_state(values, overlap, self._reduction)

    def merge(self, other: Upscaler) -> None:
        """Add what another upscaler of the same grids and kind was given."""
        if self._made_of() != other._made_of():
            raise InputError("upscalers of different grids, kinds, classes or manners do not merge")
        if other._state is not None:
            state = self._state_of(other._state.shape[1])
            self._enter(other._tiles)
            state += other._state

    def result(self, min_valid_fraction: float = 0.5) -> tuple[NDArray, NDArray[np.float32]]:
        """Values and valid fractions (t, M, N) on the coarse grid, as `upscale` gives them."""
        return self._finished(self._reduction, min_valid_fraction)

    def class_fractions(self, min_valid_fraction: float = 0.5) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Shares of the valid area (k, t, M, N), in the order of `classes`, and valid fractions (t, M, N)."""
        if self.kind != "class":
            raise InputError(f"only classes have class fractions; this upscaler is of kind {self.kind}")
        return self._finished(_class_shares(self.classes), min_valid_fraction)

    def _made_of(self) -> tuple[Any, ...]:
        weights = self._weights
        return self._fine, self.coarse, self.kind, weights.how, weights.area.tobytes(), self.classes.tobytes()

    def _state_of(self, steps: int) -> Floats:
        if self._state is None:
            self._state = np.zeros((self._reduction.sums, steps, *self._part.shape))
        if self._state.shape[1] != steps:
            raise InputError(f"tiles must have the same number of steps: {self._state.shape[1]} before, {steps} now")
        return self._state

    def _enter(self, tiles: list[tuple[int, int, int, int]]) -> None:
        for a in tiles:
            for b in self._tiles:
                if a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]:
                    raise InputError(
                        f"the tile of rows {a[0]}:{a[1]}, columns {a[2]}:{a[3]} overlaps rows {b[0]}:{b[1]}, "
                        f"columns {b[2]}:{b[3]}, added before: each fine cell may be added once"
                    )
        self._tiles.extend(tiles)

    def _finished(self, reduction: _Reduction, least: float) -> tuple[NDArray, NDArray[np.float32]]:
        _check_fraction(least)
        if self._state is None:
            raise InputError("nothing was added to this upscaler")
        merged = kernel.merge([self._state], [self._part], self.coarse.shape)
        return reduction.result(merged, self._weights.area, least)


def _check_fraction(least: float) -> None:
    if not 0 <= least <= 1:
        raise InputError(f"min_valid_fraction must lie within 0 and 1; got {least}")


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

    how: How

    @classmethod
    def of(cls, fine: Grid, coarse: Grid, whole: Whole, how: How) -> _Weights:
        if whole not in ("cell", "covered") or how not in ("area", "nearest"):
            raise InputError(
                f"whole must be 'cell' or 'covered', how 'area' or 'nearest'; got whole={whole!r}, how={how!r}"
            )
        lat, lon = fine.overlap(coarse) if how == "area" else _holding_centres(fine, coarse)
        lat, lon = kernel.without_slivers(lat), kernel.without_slivers(lon)
        if not (lat.any() and lon.any()):
            raise InputError(
                f"the grids do not meet: fine is {fine}, coarse is {coarse}; check longitudes (0..360?) and region"
            )
        if how == "nearest":
            area = np.ones(coarse.shape)
        elif whole == "cell":
            area = kernel.cell_areas(coarse.lat_edges, coarse.lon_edges)
        else:
            area = np.outer(lat.sum(axis=1), lon.sum(axis=1))
        return cls(coarse, lat, lon, area, how)


def _holding_centres(fine: Grid, coarse: Grid) -> tuple[Floats, Floats]:
    """What takes the place of overlaps for `how="nearest"`: 1 where the fine row or column holds the coarse centre."""

    def holds(edges: Floats, centres: Floats) -> Floats:
        centres = centres + _ON_EDGE * np.diff(edges).min()
        return ((edges[:-1] <= centres[:, None]) & (centres[:, None] < edges[1:])).astype(np.float64)

    return holds(-fine.lat_edges, -coarse.lat), holds(fine.lon_edges, coarse.lon)


@dataclass(frozen=True)
class _Reduction:
    """How one kind of variable becomes a mergeable state of `sums` sums, and the state a result.

    extra : lengths of the axes that the result has before the field's own
    """

    prepare: Callable[[NDArray], NDArray]
    state: Callable[[NDArray, kernel.Overlap], Floats]
    result: Callable[[Floats, Floats, float], tuple[NDArray, NDArray[np.float32]]]
    dtype: type
    sums: int
    extra: tuple[int, ...] = ()


def _reduction(data: xr.DataArray, how: How) -> _Reduction:
    kind = kind_of(data)
    if data.dtype.kind not in "biuf":
        raise InputError(f"{data.name} of type {data.dtype} has no area mean; leave it out or convert it to numbers")
    return _reduction_of(kind, _classes_of(data) if kind == "class" else _igbp(), how)


def _reduction_of(kind: schema.Kind, classes: NDArray[np.uint8], how: How) -> _Reduction:
    if kind == "class":
        majority = partial(kernel.majority_of, classes=classes)
        return replace(_class_shares(classes), result=majority, dtype=np.uint8, extra=())
    if kind == "direction" and how == "area":  # one cell's direction is its own mean
        return _Reduction(_as_float, kernel.direction_state, kernel.direction_of, np.float32, 3)
    return _Reduction(_as_float, kernel.mean_state, kernel.mean_of, np.float32, 2)


def _class_shares(classes: NDArray[np.uint8]) -> _Reduction:
    state = partial(kernel.class_state, classes=classes)
    return _Reduction(kernel.as_classes, state, kernel.shares_of, np.float32, classes.size, (classes.size,))


def _igbp() -> NDArray[np.uint8]:
    return np.arange(1, len(schema.IGBP) + 1, dtype=np.uint8)


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
    reduction = _reduction(data, weights.how)
    data = data.transpose(..., "lat", "lon")
    values, fraction = _reduce(data.data, weights, reduction, least)
    coords = _coords(data, weights.coarse)
    attrs = {**data.attrs, "crs": weights.coarse.crs} if "crs" in data.attrs else data.attrs
    upscaled = xr.DataArray(values, coords, data.dims, data.name, attrs)
    return upscaled, _fraction_of(data, fraction, weights.coarse)


def _fraction_of(data: xr.DataArray, fraction: Any, coarse: Grid) -> xr.DataArray:
    about = {"long_name": f"share of the cell's area with valid {data.name or 'values'}", "units": "1"}
    return xr.DataArray(fraction, _coords(data, coarse), data.dims, f"valid_fraction_{data.name}", about)


def _coords(data: xr.Dataset | xr.DataArray, coarse: Grid) -> dict[Hashable, Any]:
    gone = {"lat", "lon", "x", "y", "spatial_ref"}
    kept = {n: c.variable for n, c in data.coords.items() if n not in gone and not {"lat", "lon"} & set(c.dims)}
    return {**kept, **{str(n): c for n, c in coords_of(coarse).items()}}


def _reduce(values: Any, weights: _Weights, reduction: _Reduction, least: float) -> tuple[Any, Any]:
    reduce = _reduce_lazily if isinstance(values, da.Array) else _reduce_now
    return reduce(values, weights, reduction, least)


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
        means[(*at, 0, 0)] = da.from_delayed(both[0], (*reduction.extra, *whole), dtype=reduction.dtype)
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
    return values.reshape(*reduction.extra, *lead, *area.shape), fraction.reshape(*lead, *area.shape)
