"""Layers as their files store them: small integers, and tables that say what each integer means.

A table has one entry for every value that the integer can take, so that scale, fill, valid range and quality are worked out
once for 256 or 65 536 values, not for every pixel; and only pixels that are used are decoded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Coded(NamedTuple):
    """One layer and its tables.

    raw : (m, n) uint8 or uint16, as stored (signed integers viewed as unsigned ones)
    values : (256,) or (65536,) what each raw value means: float32 with NaN, or uint8 classes with 255, where it is a fill or
        outside the valid range
    quality : (m, n) uint8 or uint16, the quality word of each pixel; None where the policy asks for none
    accepted : (256,) or (65536,) bool, whether a quality word is accepted; None with `quality`
    """

    raw: NDArray
    values: NDArray
    quality: NDArray | None = None
    accepted: NDArray[np.bool_] | None = None


def decode(layer: Coded) -> NDArray:
    """(m, n) values, missing where the pixel is a fill, invalid, or of rejected quality."""
    values = layer.values[layer.raw]
    if layer.quality is not None and layer.accepted is not None:
        values[~layer.accepted[layer.quality]] = missing(layer)
    return values


def missing(layer: Coded) -> float | int:
    """What a missing value of a layer is written as."""
    return np.nan if layer.values.dtype.kind == "f" else 255
