"""Rectilinear grids in longitude and latitude, EASE-Grid 2.0 among them, and how they overlap.

A `Grid` is two arrays of cell edges. That covers the fine grid (0.01 degrees) and the coarse
one (EASE-Grid 2.0 global cylindrical, EPSG:6933), so one cube layout (time, lat, lon) serves both.

EASE-Grid 2.0 (Brodzik et al. 2012, doi:10.3390/ijgi1010032; corrected 2014, doi:10.3390/ijgi3031154)
is the cylindrical equal-area projection of WGS84 with true scale at 30 degrees:
x = a k0 lon, y = a q(lat) / (2 k0), with q of Snyder (1987), equation 3-12.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]

#: WGS84 (EPSG:4326): semi-major axis in metres, flattening.
WGS84_A = 6378137.0
WGS84_F = 1 / 298.257223563
_E2 = WGS84_F * (2 - WGS84_F)
_E = np.sqrt(_E2)

#: Radius of the sphere on which distances are measured, km (IUGG mean radius R1).
EARTH_RADIUS_KM = 6371.0088

#: Latitude of true scale of EASE-Grid 2.0 global, degrees.
_EASE2_TRUE_LAT = np.deg2rad(30.0)
_K0 = np.cos(_EASE2_TRUE_LAT) / np.sqrt(1 - _E2 * np.sin(_EASE2_TRUE_LAT) ** 2)

#: EASE-Grid 2.0 global: nominal km -> (columns, rows, cell size in metres), NSIDC's grid parameter definitions.
#: All but the 25 km grid share the 36 km grid's outer edges.
EASE2_GRIDS = {
    36: (964, 406, 36032.220840584),
    25: (1388, 584, 25025.2600081),
    9: (3856, 1624, 9008.055210146),
    3: (11568, 4872, 3002.6850700487),
    1: (34704, 14616, 1000.89502334956),
}


def authalic_q(lat: ArrayLike) -> Floats:
    """Snyder's q of geodetic latitudes in degrees (equation 3-12): areas on WGS84 are proportional to its differences."""
    s = np.sin(np.deg2rad(np.asarray(lat, dtype=np.float64)))
    return (1 - _E2) * (s / (1 - _E2 * s * s) + np.arctanh(_E * s) / _E)


_Q_POLE = float(authalic_q(90.0))


def _lat_of_q(q: ArrayLike) -> Floats:
    """Geodetic latitude in degrees of Snyder's q: Newton steps from the authalic latitude (equation 3-16)."""
    q = np.clip(np.asarray(q, dtype=np.float64), -_Q_POLE, _Q_POLE)
    lat = np.arcsin(q / _Q_POLE)
    for _ in range(8):
        s = np.sin(lat)
        w = 1 - _E2 * s * s
        residual = q / (1 - _E2) - s / w - np.arctanh(_E * s) / _E
        cos = np.cos(lat)
        lat = lat + np.where(cos > 1e-12, w * w / (2 * np.maximum(cos, 1e-12)) * residual, 0.0)
    return np.rad2deg(lat)


def ease2_forward(lon: ArrayLike, lat: ArrayLike) -> tuple[Floats, Floats]:
    """EPSG:6933 coordinates x, y in metres of longitudes and latitudes in degrees."""
    x = WGS84_A * _K0 * np.deg2rad(np.asarray(lon, dtype=np.float64))
    return x, WGS84_A * authalic_q(lat) / (2 * _K0)


def ease2_inverse(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Longitudes and latitudes in degrees of EPSG:6933 coordinates in metres."""
    lon = np.rad2deg(np.asarray(x, dtype=np.float64) / (WGS84_A * _K0))
    return lon, _lat_of_q(2 * _K0 * np.asarray(y, dtype=np.float64) / WGS84_A)


@dataclass(frozen=True, eq=False)
class Grid:
    """A rectilinear grid of longitude-latitude cells; rows run north to south.

    Parameters
    ----------
    lon_edges : (n + 1,) float64, degrees east, ascending
    lat_edges : (m + 1,) float64, degrees north, descending
    crs : the grid's own coordinate reference system, for those who ask
    lon, lat : (n,), (m,) float64, degrees; cell centres in the grid's own projection. The middle of the edges if not given.
    x, y : (n,), (m,) float64, metres; projected cell centres of EASE grids, else None
    row0, col0 : position of the first cell in the global grid that this one is cut from
    """

    lon_edges: Floats
    lat_edges: Floats
    crs: str = "EPSG:4326"
    lon: Floats = field(default=None)  # type: ignore[assignment,arg-type]
    lat: Floats = field(default=None)  # type: ignore[assignment,arg-type]
    x: Floats | None = None
    y: Floats | None = None
    row0: int = 0
    col0: int = 0

    def __post_init__(self) -> None:
        for name in ("lon_edges", "lat_edges"):
            edges = np.asarray(getattr(self, name), dtype=np.float64)
            steps = np.diff(edges) if name == "lon_edges" else -np.diff(edges)
            if edges.ndim != 1 or edges.size < 2 or not np.all(steps > 0):
                order = "ascending" if name == "lon_edges" else "descending (north first)"
                raise InputError(f"{name} must be 1-D, strictly {order}, with at least 2 values")
            object.__setattr__(self, name, edges)
        for name, edges in (("lon", self.lon_edges), ("lat", self.lat_edges)):
            centres = getattr(self, name)
            centres = (edges[1:] + edges[:-1]) / 2 if centres is None else np.asarray(centres, dtype=np.float64)
            if centres.shape != (edges.size - 1,):
                raise InputError(f"{name} must hold one centre per cell: expected {edges.size - 1}, got {centres.size}")
            object.__setattr__(self, name, centres)

    # -- makers ---------------------------------------------------------------------------------

    @classmethod
    def latlon(cls, west: float, south: float, east: float, north: float, step: float = 0.01) -> Grid:
        """The cells of the global `step`-degree grid (edges at multiples of `step`) that the box covers.

        Cell edges are integers over `1 / step`, so that two grids of one step always share their edges.

        Raises
        ------
        InputError
            if the box is empty, leaves -180..360 or -90..90, or `step` does not divide one degree evenly.
        """
        _check_box(west, south, east, north)
        per_degree = round(1 / step) if step > 0 else 0
        if per_degree < 1 or abs(per_degree * step - 1) > 1e-9:
            raise InputError(f"step must divide one degree evenly, as 0.01 or 0.25; got {step}")
        tolerance = 1e-6  # of a cell: 30.3 / 0.01 is not an integer in floating point
        col0 = int(np.floor(west * per_degree + tolerance))
        col1 = int(np.ceil(east * per_degree - tolerance))
        row0 = int(np.floor(-north * per_degree + tolerance))
        row1 = int(np.ceil(-south * per_degree - tolerance))
        return cls(
            lon_edges=np.arange(col0, col1 + 1) / per_degree,
            lat_edges=-np.arange(row0, row1 + 1) / per_degree,
            lon=(np.arange(col0, col1) + 0.5) / per_degree,
            lat=-(np.arange(row0, row1) + 0.5) / per_degree,
            row0=row0 + 90 * per_degree,
            col0=col0 + 180 * per_degree,
        )

    @classmethod
    def ease2(
        cls,
        resolution: int,
        west: float = -180.0,
        south: float = -90.0,
        east: float = 180.0,
        north: float = 90.0,
    ) -> Grid:
        """Every cell of the global EASE-Grid 2.0 of `resolution` km (36, 25, 9, 3, 1) that the box touches.

        Without a box, the whole globe (36 km: 406 rows, 964 columns; its rows end at 85.04 degrees).
        A box that only shares an edge with a cell does not touch it.
        """
        if resolution not in EASE2_GRIDS:
            raise InputError(f"EASE-Grid 2.0 resolution must be one of {sorted(EASE2_GRIDS)} km, got {resolution}")
        _check_box(west, south, east, north)
        columns, rows, _ = EASE2_GRIDS[resolution]
        size = EASE2_GRIDS[resolution][2]
        (x0, x1), (y0, y1) = ease2_forward([west, east], [south, north])
        left, top = -columns * size / 2, rows * size / 2
        tolerance = 1e-6
        col0 = max(int(np.floor((x0 - left) / size + tolerance)), 0)
        col1 = min(int(np.ceil((x1 - left) / size - tolerance)), columns)
        row0 = max(int(np.floor((top - y1) / size + tolerance)), 0)
        row1 = min(int(np.ceil((top - y0) / size - tolerance)), rows)
        if col1 <= col0 or row1 <= row0:
            raise InputError(
                f"the box {west}, {south}, {east}, {north} touches no EASE-Grid 2.0 cell: "
                f"the grid spans 180 W to 180 E and 85.04 S to 85.04 N"
            )
        return cls._ease2_window(resolution, row0, row1, col0, col1)

    @classmethod
    def _ease2_window(cls, resolution: int, row0: int, row1: int, col0: int, col1: int) -> Grid:
        columns, rows, size = EASE2_GRIDS[resolution]
        x: Floats = (np.arange(col0, col1, dtype=np.float64) + 0.5 - columns / 2) * size
        y: Floats = (rows / 2 - np.arange(row0, row1, dtype=np.float64) - 0.5) * size
        lon_edges, _ = ease2_inverse((np.arange(col0, col1 + 1) - columns / 2) * size, 0.0)
        _, lat_edges = ease2_inverse(0.0, (rows / 2 - np.arange(row0, row1 + 1)) * size)
        lon, lat = ease2_inverse(x, 0.0)[0], ease2_inverse(0.0, y)[1]
        return cls(lon_edges, lat_edges, "EPSG:6933", lon, lat, x, y, row0, col0)

    # -- facts ----------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (lat), columns (lon)."""
        return self.lat.size, self.lon.size

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north of the outermost edges, degrees."""
        return (
            float(self.lon_edges[0]),
            float(self.lat_edges[-1]),
            float(self.lon_edges[-1]),
            float(self.lat_edges[0]),
        )

    @cached_property
    def cell_area(self) -> Floats:
        """(m,) float64, km^2: area on WGS84 of one cell of each row, where columns are equally wide; else of the first column."""
        width = np.deg2rad(self.lon_edges[1] - self.lon_edges[0])
        return WGS84_A**2 * width * -np.diff(authalic_q(self.lat_edges)) / 2 / 1e6

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and self.crs == other.crs
            and np.array_equal(self.lon_edges, other.lon_edges)
            and np.array_equal(self.lat_edges, other.lat_edges)
        )

    def __hash__(self) -> int:
        return hash((self.crs, self.lon_edges.tobytes(), self.lat_edges.tobytes()))

    def __repr__(self) -> str:
        w, s, e, n = self.bounds
        return f"Grid({self.crs}, {self.shape[0]} x {self.shape[1]} cells, {w:.4f} {s:.4f} {e:.4f} {n:.4f})"

    # -- doings ---------------------------------------------------------------------------------

    def window(self, rows: slice, cols: slice) -> Grid:
        """The part of this grid in the given rows and columns."""
        r0, r1, _ = rows.indices(self.shape[0])
        c0, c1, _ = cols.indices(self.shape[1])
        return Grid(
            self.lon_edges[c0 : c1 + 1],
            self.lat_edges[r0 : r1 + 1],
            self.crs,
            self.lon[c0:c1],
            self.lat[r0:r1],
            None if self.x is None else self.x[c0:c1],
            None if self.y is None else self.y[r0:r1],
            self.row0 + r0,
            self.col0 + c0,
        )

    def index(self, lon: ArrayLike, lat: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of the cells that hold the points; -1, -1 outside.

        A cell owns its western and its northern edge. NaN points are outside.
        """
        lon, lat = np.broadcast_arrays(np.asarray(lon, np.float64), np.asarray(lat, np.float64))
        col = np.searchsorted(self.lon_edges, lon, side="right") - 1
        row = np.searchsorted(-self.lat_edges, -lat, side="right") - 1
        inside = (col >= 0) & (col < self.shape[1]) & (row >= 0) & (row < self.shape[0])
        return np.where(inside, row, -1), np.where(inside, col, -1)

    def overlap(self, other: Grid) -> tuple[Floats, Floats]:
        """Share of this grid's rows and columns in each row and column of `other`.

        Returns
        -------
        lat_overlap : (m_other, m_self) float64, area measure (differences of authalic q) of the common latitude band
        lon_overlap : (n_other, n_self) float64, degrees of the common longitude band

        Their outer product is, up to one constant, the exact common area on WGS84 of any two cells.
        """
        lat = _band_overlap(authalic_q(other.lat_edges[::-1]), authalic_q(self.lat_edges[::-1]))[::-1, ::-1]
        return lat, _band_overlap(other.lon_edges, self.lon_edges)


def _band_overlap(a: Floats, b: Floats) -> Floats:
    """(len(a) - 1, len(b) - 1): length of the intersection of the intervals between ascending edges."""
    top = np.minimum(a[1:, None], b[None, 1:])
    bottom = np.maximum(a[:-1, None], b[None, :-1])
    return np.maximum(top - bottom, 0.0)


def _check_box(west: float, south: float, east: float, north: float) -> None:
    box = f"west {west}, south {south}, east {east}, north {north}"
    if not all(np.isfinite([west, south, east, north])):
        raise InputError(f"a region needs four finite numbers; got {box}")
    if west >= east or south >= north:
        raise InputError(f"a region needs west < east and south < north; got {box}")
    if west < -180 or east > 360 or south < -90 or north > 90:
        raise InputError(f"a region must lie within -180..360 east and -90..90 north; got {box}")


def grid_of(data: xr.Dataset | xr.DataArray) -> Grid:
    """The grid on which labelled data lie, from their cell centres.

    Parameters
    ----------
    data : with 1-D coordinates `lat` (descending) and `lon` (ascending), cell centres in degrees. EASE-Grid 2.0 windows
        are known by `attrs["crs"]` (EPSG:6933) or by coordinates `x`, `y` in metres; all else must be evenly spaced.

    Raises
    ------
    InputError
        if there is no such lat and lon, latitude ascends, the spacing is uneven, or the centres are those of no
        EASE-Grid 2.0.
    """
    lon, lat = _centres(data, "lon"), _centres(data, "lat")
    if lat.size > 1 and lat[0] < lat[-1]:
        raise InputError("lat ascends; rows must run north to south: use data.sortby('lat', ascending=False)")
    if str(data.attrs.get("crs", "")).upper() == "EPSG:6933" or {"x", "y"} <= set(data.coords):
        return _ease2_grid_of(lon, lat)
    step = _step_of(lon, "lon") if lon.size > 1 else None
    lat_step = -_step_of(-lat, "lat") if lat.size > 1 else None
    if step is None and lat_step is None:
        raise InputError(
            "one cell alone does not tell its size: give at least two values of lat or lon, or EASE-2 coordinates"
        )
    step = step if step is not None else abs(lat_step or 0.0)
    lat_step = lat_step if lat_step is not None else -step
    lon_edges, lon = _even_edges(lon, step)
    lat_edges, lat = _even_edges(-lat, -lat_step)
    per_degree = 1 / step
    return Grid(
        lon_edges,
        0.0 - lat_edges,
        lon=lon,
        lat=0.0 - lat,
        row0=round((lat_edges[0] + 90) * per_degree),
        col0=round((lon_edges[0] + 180) * per_degree),
    )


def _centres(data: xr.Dataset | xr.DataArray, name: str) -> Floats:
    if name not in data.coords or data.coords[name].ndim != 1 or data.coords[name].size == 0:
        found = ", ".join(str(n) for n in data.coords) or "none"
        raise InputError(
            f"data on a grid need a 1-D coordinate {name} of cell centres in degrees; coordinates are: {found}"
        )
    return np.asarray(data.coords[name].values, dtype=np.float64)


def _step_of(centres: Floats, name: str) -> float:
    """Step of evenly spaced ascending centres; 2 % of a step allows for coordinates kept as float32."""
    step = float(centres[-1] - centres[0]) / (centres.size - 1)
    away = np.abs(centres - (centres[0] + step * np.arange(centres.size))).max()
    if not (step > 0 and away < 0.02 * step):
        steps = np.diff(centres)
        raise InputError(
            f"{name} must be evenly spaced and run {'west to east' if name == 'lon' else 'north to south'}; "
            f"steps range from {steps.min():.6g} to {steps.max():.6g} degrees"
        )
    return step


def _even_edges(centres: Floats, step: float) -> tuple[Floats, Floats]:
    """Edges and centres of evenly spaced ascending cells; exact fractions of a degree where they fit one (SRTM, 0.01 degrees)."""
    per_degree = round(1 / step) if step < 0.75 else 1
    halves = centres[0] * 2 * per_degree  # centres of global lattices lie on whole or half cells
    n = centres.size
    if abs(step * per_degree - 1) * n < 0.01 and abs(halves - round(halves)) < 0.02:
        first = round(halves)
        return (first - 1 + 2 * np.arange(n + 1)) / (2 * per_degree), (first + 2 * np.arange(n)) / (2 * per_degree)
    return centres[0] + step * (np.arange(n + 1) - 0.5), centres


def _ease2_grid_of(lon: Floats, lat: Floats) -> Grid:
    x, y = ease2_forward(lon, lat)
    for resolution, (columns, rows, size) in EASE2_GRIDS.items():
        col, row = x / size + columns / 2 - 0.5, rows / 2 - y / size - 0.5
        on_lattice = all(np.all(np.abs(p - (round(p[0]) + np.arange(p.size))) < 0.01) for p in (col, row))
        if on_lattice:
            row0, col0 = round(row[0]), round(col[0])
            return Grid._ease2_window(resolution, row0, row0 + lat.size, col0, col0 + lon.size)
    raise InputError(
        f"lat and lon are not centres of consecutive cells of EASE-Grid 2.0 at {', '.join(map(str, EASE2_GRIDS))} km "
        f"(first cell {lat[0]:.5f} N {lon[0]:.5f} E)"
    )


def coords_of(grid: Grid) -> dict[str, tuple[str, Floats, dict[str, str]]]:
    """Coordinates of data on `grid`, for xarray: lat, lon, and on EASE grids x(lon), y(lat) in metres."""
    coords = {
        "lat": ("lat", grid.lat, {"units": "degrees_north", "standard_name": "latitude", "axis": "Y"}),
        "lon": ("lon", grid.lon, {"units": "degrees_east", "standard_name": "longitude", "axis": "X"}),
    }
    if grid.x is not None and grid.y is not None:
        coords["x"] = ("lon", grid.x, {"units": "m", "standard_name": "projection_x_coordinate"})
        coords["y"] = ("lat", grid.y, {"units": "m", "standard_name": "projection_y_coordinate"})
    return coords
