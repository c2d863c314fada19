"""What kind of value a setting is: what the estimators' checks of their settings share."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, and no truth."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a finite number, and no truth."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(float(value)))


def are_devices(devices: Any) -> bool:
    """Whether a value is a number of devices (-1: all) or "auto", either as text too, or the numbers of some."""
    if isinstance(devices, str):
        return devices in ("auto", "-1") or (
            all(part.strip().isdigit() for part in devices.split(",")) and devices != "0"
        )
    if isinstance(devices, list | tuple):
        return len(devices) > 0 and all(is_whole(device) and device >= 0 for device in devices)
    return is_whole(devices) and (devices >= 1 or devices == -1)
