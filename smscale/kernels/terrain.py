"""Slope and aspect of elevation on a regular grid, by Horn's 3 x 3 differences.

Horn (1981), Proc. IEEE 69, 14-47, doi:10.1109/PROC.1981.11918; the same weights as gdaldem's default:
with the window a b c / d e f / g h i (rows north to south),
dz/d(east) = ((c + 2 f + i) - (a + 2 d + g)) / (8 dx), dz/d(south) = ((g + 2 h + i) - (a + 2 b + c)) / (8 dy).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from smscale.grid import WGS84_A, WGS84_F
from smscale.kernels.overlap import Bands

Floats = NDArray[np.float64]

#: atan(t) / t on 0..1 as a polynomial in t^2: interpolation at the Chebyshev nodes of degree 8, rounded to float32.
#: Its error is below 1e-7 rad (6e-6 degrees); a test holds it there.
_C0 = np.float32(0.9999999817886541)
_C1 = np.float32(-0.33333036709275443)
_C2 = np.float32(0.19991872028912389)
_C3 = np.float32(-0.14197797792604977)
_C4 = np.float32(0.10618370631313427)
_C5 = np.float32(-0.07456854814158088)
_C6 = np.float32(0.04213762345019933)
_C7 = np.float32(-0.015731249036827034)
_C8 = np.float32(0.002766283480395766)
_HALF_PI = np.float32(np.pi / 2)
_DEGREES = np.float32(180 / np.pi)
#: Squared gradients below this are flat ground.
_FLAT = np.float32(1e-30)
#: Fine columns that are added at a time: seven rows of them fit the first-level cache, and do not lie whole pages apart,
#: where they would drive each other out of it (1024 takes twice as long).
_STRIP = 1040
#: Of which one on each side is left for the neighbours.
_IN_STRIP = _STRIP - 2
#: What `sums_over_bands` adds up.
SUMS = ("elevation", "slope", "eastness", "northness", "known", "sloped")
#: Corners of a pixel from its centre: columns and rows.
_CORNERS = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
_ZERO, _ONE, _HALF_TURN, _TURN = np.float32(0), np.float32(1), np.float32(180), np.float32(360)


def metres_per_degree(lat: ArrayLike) -> tuple[Floats, Floats]:
    """Metres of one degree of longitude and of latitude on WGS84 at latitudes in degrees.

    From the radii of curvature in the prime vertical, N = a / w, and in the meridian, M = a (1 - e^2) / w^3,
    with w^2 = 1 - e^2 sin^2(lat) (Snyder 1987, equations 4-20 and 4-18).
    """
    lat = np.deg2rad(np.asarray(lat, dtype=np.float64))
    e2 = WGS84_F * (2 - WGS84_F)
    w2 = 1 - e2 * np.sin(lat) ** 2
    return np.deg2rad(WGS84_A / np.sqrt(w2) * np.cos(lat)), np.deg2rad(WGS84_A * (1 - e2) / w2**1.5)


def even_step(centres: Floats) -> float:
    """Step of evenly spaced centres, ascending or not, to 12 digits: the same for every window of one grid."""
    return float(f"{abs(centres[-1] - centres[0]) / (centres.size - 1):.12g}")


def slope_aspect(elevation: NDArray, dx: ArrayLike, dy: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Slope and aspect of each cell.

    Parameters
    ----------
    elevation : (m, n), metres, rows north to south, NaN where missing; computed in float32
    dx, dy : scalar or (m,), metres between columns and between rows, at each row

    Returns
    -------
    slope : (m, n) float32, degrees from horizontal
    aspect : (m, n) float32, degrees clockwise from north of the direction that the cell faces (downhill), 0 <= a < 360

    Both are NaN on the outermost rows and columns and wherever one of the nine cells is missing (the one in the middle
    included); aspect is NaN where the ground is flat.
    """
    elevation, east, south = _prepared(elevation, dx, dy)
    # One allocation: for a tile of 3601 x 3601 the operating system's part of it is a third of the time.
    slope, aspect = layers = np.empty((2, *elevation.shape), np.float32)
    layers[:, :1] = layers[:, -1:] = layers[:, :, :1] = layers[:, :, -1:] = np.nan
    _horn_angles(elevation, east, south, slope, aspect)
    return slope, aspect


def sums_over_bands(elevation: NDArray, dx: ArrayLike, dy: ArrayLike, rows: Bands, cols: Bands) -> Floats:
    """Area-weighted sums of elevation, slope and facing over the cells of a coarser grid, in one pass.

    No layer of slopes is kept: each coarse row adds the fine rows that it touches, column by column in a strip that fits the
    cache, then adds the columns of each cell. A cell's sum is added in an order that only its own fine cells decide, so any window of
    the coarse grid, and any window of the elevation that holds it and one cell more on each side, gives the same bits.

    Parameters
    ----------
    elevation, dx, dy : as `slope_aspect`
    rows : for each of m coarse rows, the fine rows that it touches, and the share of each, in any measure
    cols : for each of n coarse columns, the fine columns that it touches, and the share of each, in any measure; starts and
        stops ascend, those of columns that touch none included

    Returns
    -------
    (6, m, n) float64, `SUMS`: elevation (m), slope (radians), east and north component of the unit vector that faces downhill,
    each times area; the area of known elevation, and that of known slope. Flat ground has no direction: it adds nothing to
    the vector, its area counts.
    """
    elevation, east, south = _prepared(elevation, dx, dy)
    sums = np.zeros((len(SUMS), rows.start.size, cols.start.size))
    row_weights = rows.weights.astype(np.float32)
    _add_bands(elevation, east, south, rows.start, rows.stop, row_weights, *cols, _groups(cols), sums)
    return sums


def _groups(cols: Bands) -> NDArray[np.int64]:
    """First columns of runs of coarse columns that together fit a strip; the number of columns ends the list."""
    groups = [0]
    for c in range(1, cols.start.size):
        if cols.stop[c] - cols.start[groups[-1]] > _IN_STRIP:
            groups.append(c)
    return np.array([*groups, cols.start.size], dtype=np.int64)


class Places(NamedTuple):
    """Where the pixels of an elevation model lie that is no longitude-latitude grid: known at every `step`-th pixel, bilinear between.

    nodes : (6, p, q) float64: longitude, latitude (degrees); dx/dE, dx/dN, dy/dE, dy/dN, map units per metre east and north
    step : pixels from node to node
    row0, col0 : pixel row and column of the first node, not after the first pixel
    """

    nodes: Floats
    step: int
    row0: int
    col0: int


def sums_over_pixels(
    elevation: NDArray, dx: float, dy: float, places: Places, lon_edges: Floats, lat_edges: Floats
) -> tuple[Floats, Floats]:
    """`sums_over_bands` for an elevation model in any projection: each pixel goes to the cells that it lies in.

    A pixel counts by its area on the map; one that cell edges cut is shared out by area, as the parallelogram that it is in
    longitude and latitude. The gradient along the map's axes is turned and stretched to metres east and north on the ground.
    Pixels are added in order of rows, then columns: a cell's sum does not depend on the window.

    Parameters
    ----------
    elevation : (m, n), metres, rows from the largest y down, NaN where missing; its outermost rows and columns are halo and are not added
    dx, dy : map units between columns and between rows
    lon_edges : (c + 1,) degrees, ascending
    lat_edges : (r + 1,) degrees, descending

    Returns
    -------
    sums : (6, r, c) float64, `SUMS`
    pixels : (r, c) float64, the area in pixels, of known and unknown ground
    """
    elevation, east, south = _prepared(elevation, dx, dy)
    sums = np.zeros((len(SUMS) + 1, lat_edges.size - 1, lon_edges.size - 1))
    _add_pixels(elevation, east[0], south[0], *places, lon_edges, -lat_edges, sums)
    return sums[:-1], sums[-1]


def _prepared(elevation: NDArray, dx: ArrayLike, dy: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Contiguous float32 elevation and Horn's factors 1 / (8 dx), 1 / (8 dy) of each row."""
    factors = [1 / (8 * np.broadcast_to(np.asarray(d, np.float64), elevation.shape[:1])) for d in (dx, dy)]
    east, south = (np.ascontiguousarray(f, dtype=np.float32) for f in factors)
    return np.ascontiguousarray(elevation, dtype=np.float32), east, south


@njit(inline="always")
def _atan(t):  # type: ignore[no-untyped-def]
    u = t * t
    low = ((_C3 * u + _C2) * u + _C1) * u + _C0
    high = (((_C8 * u + _C7) * u + _C6) * u + _C5) * u + _C4
    square = u * u
    return (high * (square * square) + low) * t


@njit(inline="always")
def _gradient(up, mid, down, j, east, south):  # type: ignore[no-untyped-def]
    # Differences first: neighbouring elevations subtract exactly, sums of eight would round.
    corner = down[j + 1] - up[j - 1]
    other = up[j + 1] - down[j - 1]
    across = mid[j + 1] - mid[j - 1]
    along = down[j] - up[j]
    hole = mid[j] - mid[j]
    to_east = (corner + other + across + across + hole) * east
    to_south = (corner - other + along + along + hole) * south
    return to_east, to_south


@njit(inline="always")
def _radians_of(g):  # type: ignore[no-untyped-def]
    # atan(g), folded into 0..1.
    steep = g > _ONE
    angle = _atan(_ONE / g if steep else g)
    return _HALF_PI - angle if steep else angle


@njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _horn_angles(z, east, south, slope, aspect):  # type: ignore[no-untyped-def]
    for i in range(1, z.shape[0] - 1):
        up, mid, down = z[i - 1], z[i], z[i + 1]
        for j in range(1, z.shape[1] - 1):
            to_east, to_south = _gradient(up, mid, down, j, east[i], south[i])
            slope[i, j] = _radians_of(np.sqrt(to_east * to_east + to_south * to_south)) * _DEGREES
            # atan2(downhill east, downhill north) = atan2(-to_east, to_south).
            ax, ay = abs(to_east), abs(to_south)
            wide = ax > ay
            angle = _atan((ay if wide else ax) / (ax if wide else ay))
            angle = (_HALF_PI - angle if wide else angle) * _DEGREES
            angle = _HALF_TURN - angle if to_south < _ZERO else angle
            angle = _TURN - angle if to_east > _ZERO else angle
            aspect[i, j] = angle - _TURN if angle >= _TURN else angle


@njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _add_row(up, mid, down, weight, east, south, strip):  # type: ignore[no-untyped-def]
    # One array with constant offsets, and positions from 1: what the compiler needs to see to use vector instructions.
    for j in range(1, mid.size - 1):
        to_east, to_south = _gradient(up, mid, down, j, east, south)
        square = to_east * to_east + to_south * to_south
        sloped, known = square == square, mid[j] == mid[j]
        inverse = _ONE / np.sqrt(square if square > _FLAT else _FLAT)
        g = square * inverse
        steep = g > _ONE
        angle = _atan(inverse if steep else g)
        angle = _HALF_PI - angle if steep else angle
        strip[j] += weight * (mid[j] - strip[j + 6 * _STRIP] if known else _ZERO)
        strip[j + _STRIP] += weight * (angle if sloped else _ZERO)
        strip[j + 2 * _STRIP] -= weight * ((to_east if sloped else _ZERO) * inverse)
        strip[j + 3 * _STRIP] += weight * ((to_south if sloped else _ZERO) * inverse)
        strip[j + 4 * _STRIP] += weight if known else _ZERO
        strip[j + 5 * _STRIP] += weight if sloped else _ZERO


@njit(nogil=True, cache=True, error_model="numpy")
def _add_border(z, weight, j, strip):  # type: ignore[no-untyped-def]
    # The outermost cells have an elevation and no slope.
    if z == z:
        strip[j] += weight * (z - strip[j + 6 * _STRIP])
        strip[j + 4 * _STRIP] += weight


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_strip(z, first, last, row_start, row_stop, row_weights, east, south, strip):  # type: ignore[no-untyped-def]
    """Sums down the columns `first` to `last`; elevations are counted from the band's first row, so that their sums lose no digits."""
    strip[:] = _ZERO
    inner, outer = max(first, 1), min(last, z.shape[1] - 1)
    for j in range(first, last):
        height = z[row_start, j]
        strip[1 + j - first + 6 * _STRIP] = height if height == height else _ZERO
    for i in range(row_start, row_stop):
        weight = row_weights[i - row_start]
        if 0 < i < z.shape[0] - 1:
            part = slice(inner - 1, outer + 1)
            _add_row(z[i - 1, part], z[i, part], z[i + 1, part], weight, east[i], south[i], strip[inner - first :])
            if first < inner:
                _add_border(z[i, first], weight, 1, strip)
            if outer < last:
                _add_border(z[i, last - 1], weight, last - first, strip)
        else:
            for j in range(first, last):
                _add_border(z[i, j], weight, 1 + j - first, strip)


@njit(nogil=True, cache=True, error_model="numpy")
def _add_bands(z, east, south, row_start, row_stop, row_weights, col_start, col_stop, col_weights, groups, sums):  # type: ignore[no-untyped-def]
    strip = np.empty(7 * _STRIP + 2, dtype=np.float32)
    for k in range(row_start.size):
        if row_start[k] == row_stop[k]:
            continue
        for group in range(groups.size - 1):
            begin, end = groups[group], groups[group + 1]
            # A single cell may be wider than a strip: it comes in pieces.
            for first in range(col_start[begin], col_stop[end - 1], _IN_STRIP):
                last = min(first + _IN_STRIP, col_stop[end - 1])
                _fill_strip(z, first, last, row_start[k], row_stop[k], row_weights[k], east, south, strip)
                for c in range(begin, end):
                    _add_columns(strip, first, last, col_start[c], col_stop[c], col_weights[c], sums[:, k, c])


@njit(nogil=True, cache=True, error_model="numpy")
def _add_columns(strip, first, last, start, stop, weights, sums):  # type: ignore[no-untyped-def]
    for j in range(max(start, first), min(stop, last)):
        weight, at = weights[j - start], 1 + j - first
        area = np.float64(strip[at + 4 * _STRIP])
        sums[0] += weight * (np.float64(strip[at]) + area * np.float64(strip[at + 6 * _STRIP]))
        for s in range(1, 4):
            sums[s] += weight * np.float64(strip[at + s * _STRIP])
        sums[4] += weight * area
        sums[5] += weight * np.float64(strip[at + 5 * _STRIP])


@njit(nogil=True, cache=True, error_model="numpy")
def _interval(edges, value, near):  # type: ignore[no-untyped-def]
    """The interval of ascending `edges` that holds `value`, or the outermost, sought from the interval `near`."""
    while near > 0 and value < edges[near]:
        near -= 1
    while near < edges.size - 2 and value >= edges[near + 1]:
        near += 1
    return near


@njit(nogil=True, cache=True, error_model="numpy")
def _cut(polygon, corners, axis, bound, side, kept):  # type: ignore[no-untyped-def]
    """The part of a convex polygon on one side (+1 above, -1 below) of a bound along an axis (Sutherland & Hodgman 1974)."""
    count = 0
    for k in range(corners):
        before = (k if k > 0 else corners) - 1
        out, here = side * (polygon[axis, before] - bound), side * (polygon[axis, k] - bound)
        if (out >= 0) != (here >= 0):
            t = out / (out - here)
            for s in range(2):
                kept[s, count] = polygon[s, before] + t * (polygon[s, k] - polygon[s, before])
            count += 1
        if here >= 0:
            kept[0, count], kept[1, count] = polygon[0, k], polygon[1, k]
            count += 1
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _area(polygon, corners):  # type: ignore[no-untyped-def]
    twice = 0.0
    for k in range(corners):
        before = (k if k > 0 else corners) - 1
        twice += polygon[0, before] * polygon[1, k] - polygon[0, k] * polygon[1, before]
    return abs(twice) / 2


@njit(nogil=True, cache=True, error_model="numpy")
def _across(nodes, step, row):  # type: ignore[no-untyped-def]
    """Node values on one pixel row, and what longitude and latitude change to the next row: (8, q)."""
    r = row // step
    t = (row - r * step) / step
    line = np.empty((8, nodes.shape[2]))
    for s in range(6):
        for c in range(nodes.shape[2]):
            line[s, c] = nodes[s, r, c] * (1 - t) + nodes[s, r + 1, c] * t
    for s in range(2):
        for c in range(nodes.shape[2]):
            line[6 + s, c] = (nodes[s, r + 1, c] - nodes[s, r, c]) / step
    return line


@njit(nogil=True, cache=True, error_model="numpy")
def _add_to(sums, i, j, weight, values, known, sloped):  # type: ignore[no-untyped-def]
    sums[6, i, j] += weight
    if known:
        sums[0, i, j] += weight * values[0]
        sums[4, i, j] += weight
    if sloped:
        for s in range(1, 4):
            sums[s, i, j] += weight * values[s]
        sums[5, i, j] += weight


@njit(nogil=True, cache=True, error_model="numpy")
def _add_pixels(z, east, south, nodes, step, row0, col0, lon_edges, south_edges, sums):  # type: ignore[no-untyped-def]
    values = np.empty(4)
    # A parallelogram cut by four lines has at most eight corners.
    pixel, half, band, part = np.empty((2, 4)), np.empty((2, 8)), np.empty((2, 8)), np.empty((2, 8))
    row = column = 0
    for i in range(1, z.shape[0] - 1):
        line = _across(nodes, step, i - row0)
        up, mid, down = z[i - 1], z[i], z[i + 1]
        for j in range(1, z.shape[1] - 1):
            c = (j - col0) // step
            t = (j - col0 - c * step) / step
            # Longitude and degrees southward of the centre; what they change along a row and down a column.
            lon_j, lat_j = (line[0, c + 1] - line[0, c]) / step, (line[1, c] - line[1, c + 1]) / step
            lon_i, lat_i = line[6, c], -line[7, c]
            lon = line[0, c] * (1 - t) + line[0, c + 1] * t
            lat = -(line[1, c] * (1 - t) + line[1, c + 1] * t)
            wide, high = (abs(lon_j) + abs(lon_i)) / 2, (abs(lat_j) + abs(lat_i)) / 2
            if (
                lon + wide < lon_edges[0]
                or lon - wide > lon_edges[-1]
                or lat + high < south_edges[0]
                or lat - high > south_edges[-1]
            ):
                continue
            p, q = _gradient(up, mid, down, j, east, south)
            to_east = p * (line[2, c] * (1 - t) + line[2, c + 1] * t) - q * (line[4, c] * (1 - t) + line[4, c + 1] * t)
            to_north = p * (line[3, c] * (1 - t) + line[3, c + 1] * t) - q * (line[5, c] * (1 - t) + line[5, c + 1] * t)
            square = to_east * to_east + to_north * to_north
            known, sloped = mid[j] == mid[j], square == square
            inverse = 1 / np.sqrt(max(square, 1e-30))
            values[0] = mid[j]
            values[1] = _radians_of(np.float32(square * inverse))
            values[2], values[3] = -to_east * inverse, -to_north * inverse
            row, column = _interval(south_edges, lat, row), _interval(lon_edges, lon, column)
            if (
                lon - wide >= lon_edges[column]
                and lon + wide <= lon_edges[column + 1]
                and lat - high >= south_edges[row]
                and lat + high <= south_edges[row + 1]
            ):
                _add_to(sums, row, column, 1.0, values, known, sloped)
                continue
            for k in range(4):
                right, below = _CORNERS[k]
                pixel[0, k] = right * lon_j + below * lon_i
                pixel[1, k] = right * lat_j + below * lat_i
            whole = _area(pixel, 4)
            a, first = _interval(south_edges, lat - high, row), _interval(lon_edges, lon - wide, column)
            while a < sums.shape[1] and south_edges[a] < lat + high:
                corners = _cut(pixel, 4, 1, south_edges[a] - lat, 1.0, half)
                corners = _cut(half, corners, 1, south_edges[a + 1] - lat, -1.0, band)
                b = first
                while corners > 0 and b < sums.shape[2] and lon_edges[b] < lon + wide:
                    inner = _cut(band, corners, 0, lon_edges[b] - lon, 1.0, half)
                    inner = _cut(half, inner, 0, lon_edges[b + 1] - lon, -1.0, part)
                    share = _area(part, inner) / whole
                    if share > 0:
                        _add_to(sums, a, b, share, values, known, sloped)
                    b += 1
                a += 1
