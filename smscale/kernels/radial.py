"""Functions of distance, taken for whole tiles of cells: short intervals of distance have a polynomial instead.

All cells of a small tile are about as far from a point as its middle is, give or take the tile's radius. On that interval
a covariance is a polynomial to rounding, through a few Chebyshev points (Trefethen 2013, Approximation Theory and
Approximation Practice, chapters 3 and 8); where the last coefficients are not small, the function itself must be taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Chebyshev points of an interval: coefficients of its polynomial.
NODES = 12
#: The last coefficients of a polynomial that is taken for the function, as a share of the function's size.
TOLERANCE = 1e-12
#: What rounding of a distance may be at most, km (1 mm).
SLACK = 1e-6
#: Numbers that a function is taken of at once: 128 kB.
PIECE = 16_384


class Radial(NamedTuple):
    """A function of distance (km) and the size of its values, None if it has no size; `kinks`: distances where it is not smooth,
    0 among them only if it jumps there."""

    function: Callable[[Floats], Floats]
    size: float | None
    kinks: tuple[float, ...] = ()

    def in_pieces(self, numbers: Floats) -> Floats:
        """function(numbers), piece by piece, so that what lies between its steps stays in the processor's cache."""
        out = np.empty_like(numbers)
        for start in range(0, numbers.size, PIECE):
            out[start : start + PIECE] = self.function(numbers[start : start + PIECE])
        return out


class Polynomials(NamedTuple):
    """Of intervals of distance: function(d) = sum over j of coefficients[:, j] x**j, x = (d - centre) * scale in -1 to 1.

    centre, scale : (r,); coefficients : (r, NODES); smooth : (r,) bool, where the function may be taken so.
    """

    centre: Floats
    scale: Floats
    coefficients: Floats
    smooth: NDArray[np.bool_]


def polynomials(radial: Radial, low: Floats, high: Floats) -> Polynomials:
    """Of the intervals low to high, (r,) km."""
    centre, half = (low + high) / 2.0, np.maximum((high - low) / 2.0, SLACK)
    if radial.size is None:
        return Polynomials(centre, 1.0 / half, np.zeros((low.size, NODES)), np.zeros(low.size, bool))
    values = radial.function(np.maximum(centre[:, None] + half[:, None] * _CHEBYSHEV_POINTS, 0.0))
    found = values @ _FIT
    last = np.abs(found[:, NODES:])
    smooth = (last[:, 0] <= TOLERANCE * radial.size) & (last[:, 1] <= TOLERANCE * radial.size)
    for kink in radial.kinks:
        smooth &= (kink < low - SLACK) | (kink > high + SLACK)
    return Polynomials(centre, 1.0 / half, found[:, :NODES], smooth)


def _chebyshev() -> tuple[Floats, Floats]:
    """Chebyshev points (NODES,); from values there to the powers' coefficients and the Chebyshev series' last two (NODES, NODES + 2)."""
    order = np.arange(NODES)
    angle = (order + 0.5) * np.pi / NODES
    series = 2.0 / NODES * np.cos(order * angle[:, None]) * np.where(order == 0, 0.5, 1.0)
    powers = np.zeros((NODES, NODES))
    for j in order:
        powers[j, : j + 1] = np.polynomial.chebyshev.cheb2poly(np.eye(NODES)[j])[: j + 1]
    return np.cos(angle), np.hstack([series @ powers, series[:, -2:]])


_CHEBYSHEV_POINTS, _FIT = _chebyshev()


@njit(nogil=True, cache=True, fastmath={"contract"})
def evaluate(out, distance, centre, scale, c):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """One polynomial at (m,) distances into `out` (m,), by Horner's rule."""
    c0, c1, c2, c3, c4, c5 = c[0], c[1], c[2], c[3], c[4], c[5]
    c6, c7, c8, c9, c10, c11 = c[6], c[7], c[8], c[9], c[10], c[11]
    for i in range(out.size):
        x = (distance[i] - centre) * scale
        upper = ((((c11 * x + c10) * x + c9) * x + c8) * x + c7) * x + c6
        out[i] = (((((upper * x + c5) * x + c4) * x + c3) * x + c2) * x + c1) * x + c0
