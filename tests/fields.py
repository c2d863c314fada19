"""Residuals as they are, solved: what most tests of a field start from."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from smscale.fusion.field import ResidualField
from smscale.fusion.solve import pose


def field_of(coords: ArrayLike, residuals: ArrayLike, interpolator: Any = None, groups: Any = None) -> ResidualField:
    """Of stations that differ by `residuals` (n, t) from a map of zeros."""
    ground = np.zeros(np.shape(residuals))
    return pose(coords, residuals, ground, "difference", interpolator, groups=groups).solve()
