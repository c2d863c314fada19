"""One variable to export: its values by step, its status, its grid as other programs know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from affine import Affine
from pyproj import CRS

from smscale.errors import InputError
from smscale.grid import EASE2_GRIDS, Grid, ease2_forward
from smscale.store import fingerprint

#: What a layer's values are: how they are averaged, and how an overview is made of them.
Kind = Literal["continuous", "class", "direction", "flags"]
#: Enters every fingerprint: a file of an older form is written anew.
FORM = 1


@dataclass(frozen=True)
class Step:
    """One step of a layer.

    Parameters
    ----------
    index : position along the layer's first dimension
    label : in file names, as 2017-06-10_AM; empty where the layer does not change
    month : as 2017-06; empty where the layer does not change
    time : datetime64[ns], UTC; NaT where the layer does not change
    date : local solar date, datetime64[D]; of composites and years the first day
    overpass : AM, PM or nothing
    bounds : start and end in time, of composites and years
    version : fingerprint of the values that lie in the cube
    """

    index: int
    label: str
    month: str
    time: np.datetime64
    date: np.datetime64
    overpass: str = ""
    bounds: tuple[np.datetime64, np.datetime64] | None = None
    version: str = ""

    @property
    def last(self) -> np.datetime64:
        """Its last local day."""
        return self.date if self.bounds is None else (self.bounds[1] - np.timedelta64(1, "s")).astype("datetime64[D]")


@dataclass(frozen=True)
class Layer:
    """A variable on a grid, lazy.

    Parameters
    ----------
    name : as the workspace calls it, as gda_kriging or coarse/soil_moisture
    title : of the run; file names begin with it
    values : (step, lat, lon), CF attributes
    status : (step, lat, lon) uint32 CF flags; None where the layer has none
    steps : one for each entry of the first dimension
    """

    name: str
    title: str
    values: xr.DataArray
    status: xr.DataArray | None
    grid: Grid
    kind: Kind
    steps: tuple[Step, ...]

    @property
    def stem(self) -> str:
        """Start of the file names."""
        return f"{self.title}_{self.name.replace('/', '_')}"

    @property
    def short(self) -> str:
        """The variable's own name, without its group."""
        return self.name.rpartition("/")[2]

    @property
    def fill(self) -> float | int | None:
        """What stands for missing: NaN, or an integer layer's fill; None where every value means something."""
        if np.issubdtype(self.values.dtype, np.floating):
            return float("nan")
        return None if self.kind == "flags" and self.values.dtype == np.uint32 else self.values.attrs.get("_FillValue")

    def version(self, steps: Sequence[Step], *extra: Any) -> str:
        """Fingerprint of what a file of these steps is made from."""
        grid = self.grid
        place = (grid.crs, grid.shape, [repr(b) for b in grid.bounds])
        return fingerprint(FORM, self.name, self.title, place, [(s.label, s.version) for s in steps], extra)

    def rows(self, step: Step, rows: slice, status: bool = False) -> np.ndarray:
        """(rows, lon) values, or status, of some rows of one step."""
        data = self.status if status and self.status is not None else self.values
        return np.asarray(data[step.index, rows].values)


def cut(layer: Layer, period: tuple[str, str] | None, region: tuple[float, float, float, float] | None) -> Layer:
    """The steps of a period (local days, both included) and the cells that a region (W, S, E, N) touches.

    Raises
    ------
    InputError
        if nothing is left.
    """
    steps = layer.steps
    if period is not None and any(step.label for step in steps):
        try:
            first, last = (np.datetime64(day, "D") for day in period)
        except ValueError:
            raise InputError(f"--period {','.join(period)}: expected two ISO dates, as 2017-06-10,2017-06-30") from None
        steps = tuple(step for step in steps if step.date <= last and step.last >= first)
        if not steps:
            days = f"{layer.steps[0].date} to {layer.steps[-1].last}"
            raise InputError(f"--period {first},{last}: {layer.name} has no step in it; it covers {days}")
    rows, cols = _window(layer, region)
    kept = [step.index for step in steps]
    renumbered = tuple(replace(step, index=i) for i, step in enumerate(steps))
    chosen = slice(kept[0], kept[-1] + 1) if kept == list(range(kept[0], kept[-1] + 1)) else kept
    return replace(
        layer,
        values=layer.values[chosen, rows, cols],
        status=None if layer.status is None else layer.status[chosen, rows, cols],
        grid=layer.grid.window(rows, cols),
        steps=renumbered,
    )


def _window(layer: Layer, region: tuple[float, float, float, float] | None) -> tuple[slice, slice]:
    grid = layer.grid
    if region is None:
        return slice(0, grid.shape[0]), slice(0, grid.shape[1])
    west, south, east, north = region
    if not (west < east and south < north):
        raise InputError(f"--region {','.join(f'{b:g}' for b in region)}: expected W,S,E,N with W < E and S < N")
    # A box that only shares an edge with a cell does not touch it; 1e-9 degrees is 0.1 mm.
    rows = np.flatnonzero((grid.lat_edges[:-1] > south + 1e-9) & (grid.lat_edges[1:] < north - 1e-9))
    cols = np.flatnonzero((grid.lon_edges[1:] > west + 1e-9) & (grid.lon_edges[:-1] < east - 1e-9))
    if not rows.size or not cols.size:
        box = ",".join(f"{b:g}" for b in grid.bounds)
        raise InputError(f"--region {','.join(f'{b:g}' for b in region)}: outside {layer.name}, which covers {box}")
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def transform(grid: Grid) -> Affine:
    """Of pixels to the grid's own CRS, north up: degrees, or metres on EASE grids."""
    west, _, east, north = grid.bounds
    if grid.x is None or grid.y is None:
        step_x = _even((east - west) / grid.shape[1])
        step_y = _even((north - grid.bounds[1]) / grid.shape[0])
        return Affine(step_x, 0.0, west, 0.0, -step_y, north)
    (left, right), _ = ease2_forward([west, east], [0.0, 0.0])
    size = min((s for *_, s in EASE2_GRIDS.values()), key=lambda s: abs(s - (right - left) / grid.shape[1]))
    return Affine(size, 0.0, float(grid.x[0]) - size / 2, 0.0, -size, float(grid.y[0]) + size / 2)


def _even(step: float) -> float:
    """A step that divides a degree, without what subtracting edges left of rounding."""
    per_degree = round(1 / step) if step < 1 else 0
    return 1 / per_degree if per_degree and abs(per_degree * step - 1) < 1e-9 else step


def mapping(grid: Grid) -> dict[str, Any]:
    """CF attributes of a grid mapping variable, with GDAL's GeoTransform beside them."""
    attrs = CRS.from_user_input(grid.crs).to_cf()
    attrs["spatial_ref"] = attrs["crs_wkt"]
    t = transform(grid)
    attrs["GeoTransform"] = " ".join(repr(float(v)) for v in (t.c, t.a, t.b, t.f, t.d, t.e))
    return attrs


def iso(time: np.datetime64) -> str:
    """UTC time to the second, as 2017-06-09T23:08:00Z; empty for NaT."""
    return "" if np.isnat(time) else f"{np.datetime_as_string(time, unit='s')}Z"
