"""The paper's network: `estimator` fits, `network` predicts and is what an artefact holds. Names are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smscale.models.gabp.estimator import Entry, GABPRegressor

__all__ = ["Entry", "GABPRegressor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The estimator needs scikit-learn; who only predicts does not load it.
    from smscale.models.gabp import estimator

    return getattr(estimator, name)
