"""Slope and aspect of elevation on a regular grid, by Horn's 3 x 3 differences.

Horn (1981), Proc. IEEE 69, 14-47, doi:10.1109/PROC.1981.11918; the same weights as gdaldem's default:
with the window a b c / d e f / g h i (rows north to south),
dz/d(east) = ((c + 2 f + i) - (a + 2 d + g)) / (8 dx), dz/d(south) = ((g + 2 h + i) - (a + 2 b + c)) / (8 dy).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from smscale.grid import WGS84_A, WGS84_F

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
    slope, aspect = _bordered(elevation), _bordered(elevation)
    _horn_angles(elevation, east, south, slope, aspect)
    return slope, aspect


def slope_facing(
    elevation: NDArray, dx: ArrayLike, dy: ArrayLike
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Slope, and aspect as a unit vector: what averages need.

    Parameters
    ----------
    elevation, dx, dy : as `slope_aspect`

    Returns
    -------
    slope : (m, n) float32, degrees, as `slope_aspect`
    east, north : (m, n) float32, sine and cosine of aspect, NaN where it is
    """
    elevation, east, south = _prepared(elevation, dx, dy)
    slope, to_east, to_north = _bordered(elevation), _bordered(elevation), _bordered(elevation)
    _horn_vectors(elevation, east, south, slope, to_east, to_north)
    return slope, to_east, to_north


def _prepared(elevation: NDArray, dx: ArrayLike, dy: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Contiguous float32 elevation and Horn's factors 1 / (8 dx), 1 / (8 dy) of each row."""
    factors = [1 / (8 * np.broadcast_to(np.asarray(d, np.float64), elevation.shape[:1])) for d in (dx, dy)]
    east, south = (np.ascontiguousarray(f, dtype=np.float32) for f in factors)
    return np.ascontiguousarray(elevation, dtype=np.float32), east, south


def _bordered(elevation: NDArray) -> NDArray[np.float32]:
    layer = np.empty_like(elevation)
    layer[:1] = layer[-1:] = layer[:, :1] = layer[:, -1:] = np.nan
    return layer


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
def _degrees_of(g):  # type: ignore[no-untyped-def]
    # atan(g), folded into 0..1.
    steep = g > _ONE
    angle = _atan(_ONE / g if steep else g)
    return (_HALF_PI - angle if steep else angle) * _DEGREES


@njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _horn_angles(z, east, south, slope, aspect):  # type: ignore[no-untyped-def]
    for i in range(1, z.shape[0] - 1):
        up, mid, down = z[i - 1], z[i], z[i + 1]
        for j in range(1, z.shape[1] - 1):
            to_east, to_south = _gradient(up, mid, down, j, east[i], south[i])
            slope[i, j] = _degrees_of(np.sqrt(to_east * to_east + to_south * to_south))
            # atan2(downhill east, downhill north) = atan2(-to_east, to_south).
            ax, ay = abs(to_east), abs(to_south)
            wide = ax > ay
            angle = _atan((ay if wide else ax) / (ax if wide else ay))
            angle = (_HALF_PI - angle if wide else angle) * _DEGREES
            angle = _HALF_TURN - angle if to_south < _ZERO else angle
            angle = _TURN - angle if to_east > _ZERO else angle
            aspect[i, j] = angle - _TURN if angle >= _TURN else angle


@njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _horn_vectors(z, east, south, slope, facing_east, facing_north):  # type: ignore[no-untyped-def]
    for i in range(1, z.shape[0] - 1):
        up, mid, down = z[i - 1], z[i], z[i + 1]
        for j in range(1, z.shape[1] - 1):
            to_east, to_south = _gradient(up, mid, down, j, east[i], south[i])
            g = np.sqrt(to_east * to_east + to_south * to_south)
            slope[i, j] = _degrees_of(g)
            facing_east[i, j] = -to_east / g
            facing_north[i, j] = to_south / g
