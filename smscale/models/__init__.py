"""Models: fitted on the sample table, kept as artefacts, used anywhere. Names are imported when first used."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "GABPRegressor": "smscale.models.gabp",
    "CNNRegressor": "smscale.models.cnn",
    "Predictor": "smscale.models.table",
    "load_model": "smscale.models.table",
    "make_predictor": "smscale.models.table",
    "save_model": "smscale.models.table",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
