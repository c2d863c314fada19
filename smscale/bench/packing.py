"""How values are rounded before they are compressed: nothing lost, fewer bits, or 16 bit integers.

Packing is done here with NumPy and not by a filter of the array, so that every Zarr engine can carry it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numcodecs.bitround import BitRound

#: Of MODIS' land surface temperature, K (MOD11 user guide); view times, in tenths of an hour, are multiples of it too.
SCALE = 0.02
#: What stands for a missing value among 16 bit integers.
MISSING = np.int16(-32768)
#: Bits kept of a mantissa: of a value between 256 and 512 K steps of 1/64 K.
KEPT_BITS = 14


@dataclass(frozen=True)
class Packing:
    """One way to store float32 values.

    error : the most that a value, in the units of the cube, may change; values are at most 512 (K)
    """

    name: str
    dtype: str
    fill: float
    error: float
    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], np.ndarray]


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _fewer_bits(values: np.ndarray) -> np.ndarray:
    return np.asarray(BitRound(keepbits=KEPT_BITS).encode(values.copy())).view(np.float32)


def _to_integers(values: np.ndarray) -> np.ndarray:
    missing = np.isnan(values)
    scaled = np.rint(np.where(missing, 0, values) / SCALE).astype(np.int16)
    scaled[missing] = MISSING
    return scaled


def _from_integers(stored: np.ndarray) -> np.ndarray:
    values = (stored * SCALE).astype(np.float32)
    values[stored == MISSING] = np.nan
    return values


PACKINGS = {
    p.name: p
    for p in (
        Packing("none", "float32", np.nan, 0.0, _same, _same),
        Packing("bitround", "float32", np.nan, 2.0 ** (8 - KEPT_BITS - 1), _fewer_bits, _same),
        # half a step, and what float32 rounds of 350 K
        Packing("int16", "int16", float(MISSING), SCALE / 2 + 2.0**-15, _to_integers, _from_integers),
    )
}
