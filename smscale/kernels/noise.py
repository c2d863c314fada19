"""Random fields that can be asked anywhere: a counter hash instead of a generator with a state.

Every value is a function of (seed, lattice point), so a field has no tiles, no order and no worker count.
Gradient noise after Perlin (2002, doi:10.1145/566654.566636), quintic fade; fractal sums after Musgrave (in Ebert et al.,
Texturing and Modeling, 2003, chapter 16); the hash is the finaliser of splitmix64 (Steele et al. 2014,
doi:10.1145/2660193.2660195). Noise is scaled to unit variance.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]

_K1, _K2, _K3, _K4 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xC2B2AE3D27D4EB4F),
    np.uint64(0x165667B19E3779F9),
    np.uint64(0xD6E8FEB86659FD93),
)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)

#: Sixteen unit gradients in the plane.
_COS = np.cos((np.arange(16) + 0.5) * np.pi / 8)
_SIN = np.sin((np.arange(16) + 0.5) * np.pi / 8)
#: Twelve gradients in space (cube edges), four of them twice (Perlin 2002), scaled to unit length.
_G3 = (
    np.array(
        [
            [1, 1, 0], [-1, 1, 0], [1, -1, 0], [-1, -1, 0], [1, 0, 1], [-1, 0, 1], [1, 0, -1], [-1, 0, -1],
            [0, 1, 1], [0, -1, 1], [0, 1, -1], [0, -1, -1], [1, 1, 0], [-1, 1, 0], [0, -1, 1], [0, -1, -1],
        ],
        dtype=np.float64,
    )
    / np.sqrt(2)
)  # fmt: skip
#: Standard deviations over space of unscaled noise2 and noise3 (means over 4e5 random points; checked by the tests).
_STD2, _STD3 = 0.2159, 0.1926
#: Shift between octaves, so that their lattices do not share zeros.
_SHIFT = 17.37


@njit(cache=True, inline="always")
def _mix(h):  # type: ignore[no-untyped-def]
    h = (h ^ (h >> _S30)) * _M1
    h = (h ^ (h >> _S27)) * _M2
    return h ^ (h >> _S31)


@njit(cache=True, inline="always")
def _fade(t):  # type: ignore[no-untyped-def]
    return t * t * t * (t * (t * 6.0 - 15.0) + 10.0)


@njit(cache=True)
def _corner2(ix, iy, seed, dx, dy):  # type: ignore[no-untyped-def]
    g = _mix(np.uint64(ix) * _K1 + np.uint64(iy) * _K2 + np.uint64(seed) * _K4) & np.uint64(15)
    return _COS[g] * dx + _SIN[g] * dy


@njit(cache=True)
def noise2(x, y, seed):  # type: ignore[no-untyped-def]
    """Gradient noise of one point of the plane (lattice step 1), unit variance."""
    ix, iy = int(np.floor(x)), int(np.floor(y))
    dx, dy = x - ix, y - iy
    u, v = _fade(dx), _fade(dy)
    south = (1 - u) * _corner2(ix, iy, seed, dx, dy) + u * _corner2(ix + 1, iy, seed, dx - 1, dy)
    north = (1 - u) * _corner2(ix, iy + 1, seed, dx, dy - 1) + u * _corner2(ix + 1, iy + 1, seed, dx - 1, dy - 1)
    return ((1 - v) * south + v * north) / _STD2


@njit(cache=True)
def _corner3(ix, iy, iz, seed, dx, dy, dz):  # type: ignore[no-untyped-def]
    h = np.uint64(ix) * _K1 + np.uint64(iy) * _K2 + np.uint64(iz) * _K3 + np.uint64(seed) * _K4
    g = _mix(h) & np.uint64(15)
    return _G3[g, 0] * dx + _G3[g, 1] * dy + _G3[g, 2] * dz


@njit(cache=True)
def noise3(x, y, z, seed):  # type: ignore[no-untyped-def]
    """Gradient noise of one point of space (lattice step 1), unit variance."""
    ix, iy, iz = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    dx, dy, dz = x - ix, y - iy, z - iz
    u, v, w = _fade(dx), _fade(dy), _fade(dz)
    total = 0.0
    for k in range(2):
        wz = w if k else 1 - w
        for j in range(2):
            wy = v if j else 1 - v
            for i in range(2):
                wx = u if i else 1 - u
                total += wx * wy * wz * _corner3(ix + i, iy + j, iz + k, seed, dx - i, dy - j, dz - k)
    return total / _STD3


@njit(cache=True)
def fractal2(x, y, seed, octaves, gain):  # type: ignore[no-untyped-def]
    """Sum of octaves of `noise2` at one point, amplitudes `gain` ** octave, unit variance."""
    total, power, amplitude = 0.0, 0.0, 1.0
    for octave in range(octaves):
        total += amplitude * noise2(x + _SHIFT * octave, y - _SHIFT * octave, seed + octave)
        power += amplitude * amplitude
        amplitude *= gain
        x, y = x * 2.0, y * 2.0
    return total / np.sqrt(power)


@njit(cache=True)
def ridged2(x, y, seed, octaves, gain):  # type: ignore[no-untyped-def]
    """Ridged multifractal at one point, 0 (valley) to 1 (crest): Musgrave's, each octave weighted by the one before."""
    total, power, amplitude, weight = 0.0, 0.0, 1.0, 1.0
    for octave in range(octaves):
        crest = max(1.0 - 0.6 * abs(noise2(x + _SHIFT * octave, y - _SHIFT * octave, seed + octave)), 0.0)
        crest *= crest
        total += amplitude * weight * crest
        power += amplitude
        weight = min(crest * 1.6, 1.0)
        amplitude *= gain
        x, y = x * 2.0, y * 2.0
    return total / power


@njit(cache=True)
def _fractal2_many(x, y, seed, octaves, gain, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = fractal2(x[i], y[i], seed, octaves, gain)


@njit(cache=True)
def _fractal3_many(x, y, z, seed, octaves, gain, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        total, power, amplitude, scale = 0.0, 0.0, 1.0, 1.0
        for octave in range(octaves):
            shift = _SHIFT * octave
            total += amplitude * noise3(x[i] * scale + shift, y[i] * scale - shift, z * scale + shift, seed + octave)
            power += amplitude * amplitude
            amplitude *= gain
            scale *= 2.0
        out[i] = total / np.sqrt(power)


def fbm(x: ArrayLike, y: ArrayLike, seed: int, octaves: int = 1, gain: float = 0.5) -> Floats:
    """Fractal noise of unit variance in the plane.

    Parameters
    ----------
    x, y : broadcastable; coordinates in units of the first octave's wavelength
    seed : which field; octave k uses seed + k, so seeds of separate fields lie `octaves` apart or more
    octaves, gain : number of octaves (wavelength halves each time) and ratio of their amplitudes

    Returns
    -------
    float64 of the broadcast shape
    """
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    out = np.empty(x.size)
    _fractal2_many(x.ravel(), y.ravel(), seed, octaves, gain, out)
    return out.reshape(x.shape)


def fbm_at(x: ArrayLike, y: ArrayLike, z: float, seed: int, octaves: int = 1, gain: float = 0.5) -> Floats:
    """Fractal noise of unit variance in space, on the plane `z`: as `fbm`, with time for the third coordinate."""
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    out = np.empty(x.size)
    _fractal3_many(x.ravel(), y.ravel(), float(z), seed, octaves, gain, out)
    return out.reshape(x.shape)


def uniform(seed: int, *counters: ArrayLike) -> Floats:
    """Uniform deviates in (0, 1) of integer counters (broadcast against one another), one per counter tuple."""
    with np.errstate(over="ignore"):
        h = _scramble(np.asarray(seed, np.int64).astype(np.uint64) * _K4)
        for counter in counters:
            h = _scramble((h + np.asarray(counter, np.int64).astype(np.uint64)) * _K1)
        return ((h >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(seed: int, *counters: ArrayLike) -> Floats:
    """Standard normal deviates of integer counters: `uniform` through the inverse normal distribution."""
    return ndtri(uniform(seed, *counters))


def _scramble(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    h = (h ^ (h >> _S30)) * _M1
    h = (h ^ (h >> _S27)) * _M2
    return h ^ (h >> _S31)
