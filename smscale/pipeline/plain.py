"""Values as JSON holds them: NaN is null, NumPy scalars are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


def plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """A mapping of scalars."""
    found = {}
    for key, value in values.items():
        value = value.item() if isinstance(value, np.generic) else value
        found[str(key)] = None if isinstance(value, float) and not np.isfinite(value) else value
    return found


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [plain(row) for row in table.to_dict("records")]
