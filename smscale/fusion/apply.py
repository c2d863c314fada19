"""A residual field applied to a block of a map, within physical bounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smscale.fusion.residuals import Ratio, Residual, as_residual
from smscale.kernels import correction

#: Physical bounds of fused soil moisture, m3 m-3. Porosity is 0.34-0.48 by texture class (Cosby et al. 1984, Water
#: Resources Research 20, 682-690); 0.6 leaves room for loose and organic topsoil. Give wider bounds for peat.
BOUNDS = (0.0, 0.6)


def apply_residual_field(
    background: NDArray,
    field: NDArray[np.float32],
    method: NDArray[np.uint32],
    residual: str | Residual = "difference",
    bounds: tuple[float, float] = BOUNDS,
) -> tuple[NDArray[np.float32], NDArray[np.uint32], dict[str, int]]:
    """A block of the background corrected by its residual field, within physical bounds.

    Parameters
    ----------
    background : (t, lat, lon), NaN where missing
    field : (t, lat, lon) float32 from `ResidualField.evaluate`; NaN leaves the background as it is
    method : (t,) uint32, the steps' `Status` bits
    bounds : m3 m-3, lowest and highest result

    Returns
    -------
    fused : (t, lat, lon) float32, NaN where the background is, or is infinite
    status : (t, lat, lon) uint32: the step's method where a value was fused; NOT_FUSED elsewhere, cells without
        background included; and CLIPPED
    counts : cells "fused", "not_fused" (of those with a background) and "clipped": sums over blocks are the whole's
    """
    kind = as_residual(residual)
    floor = kind.floor if isinstance(kind, Ratio) else None
    bits = np.asarray(method, np.uint32)
    fused, status, counts = correction.correct(np.asarray(background), np.asarray(field), bits, floor, bounds)
    return fused, status, dict(zip(("fused", "not_fused", "clipped"), counts.tolist(), strict=True))
