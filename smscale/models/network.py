"""A trained network as plain arrays: what an artefact holds and what predicts. Needs neither scikit-learn nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.kernels import mlp

Floats = NDArray[np.float64]

#: Arrays of a network's artefact: the network in standardised units, and the two standardisers.
ARRAYS = ("w1", "b1", "w2", "b2", "mean", "scale", "target_mean", "target_scale")


@dataclass(frozen=True)
class Network:
    """One hidden tanh layer between two standardisers, folded into weights that act on x - shift.

    w1 (k, h), b1 (h,), w2 (h,) float64, b2; shift (k,) float32.
    """

    w1: Floats
    b1: Floats
    w2: Floats
    b2: float
    shift: NDArray[np.float32]

    def predict(self, x: ArrayLike) -> NDArray[np.float32]:
        """(n, k) in predictor units -> (n,) float32 in target units; NaN where a predictor is missing."""
        return mlp.predict(x, self.w1, self.b1, self.w2, self.b2, self.shift)

    def predict_planes(self, planes: Sequence[ArrayLike]) -> NDArray[np.float32]:
        """k broadcastable planes -> float32 of their common shape; NaN where a predictor is missing."""
        return mlp.predict_planes(planes, self.w1, self.b1, self.w2, self.b2, self.shift)


def fold(arrays: Mapping[str, NDArray[Any]]) -> Network:
    """The network that acts on plain units, from the arrays named in `ARRAYS`.

    y = target_mean + target_scale (b2 + w2 tanh(b1 + w1 (x - mean) / scale)). The mean is taken off in float32, exactly
    for float32 predictors; what rounding it leaves goes into the thresholds.
    """
    a = {name: np.asarray(arrays[name], np.float64) for name in ARRAYS}
    shift = a["mean"].astype(np.float32)
    w1 = a["w1"] / a["scale"][:, None]
    b1 = a["b1"] + (shift.astype(np.float64) - a["mean"]) @ w1
    factor = float(a["target_scale"])
    return Network(w1, b1, a["w2"] * factor, float(a["b2"]) * factor + float(a["target_mean"]), shift)


def gabp_to_arrays(estimator: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and settings of a fitted GABPRegressor."""
    arrays = {name: np.asarray(value, np.float64) for name, value in estimator.network_.items()}
    if not all(np.isfinite(value).all() for value in arrays.values()):
        raise InputError("the GABP network holds NaN or infinity and is not saved; train it again on clean samples")
    settings = {key: value for key, value in estimator.get_params().items() if key != "random_state"}
    return arrays, {"parameters": settings, "n_hidden": int(estimator.n_hidden_), "stopped": list(estimator.stopped_)}


def gabp_from_arrays(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Network:
    """The network of an artefact."""
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise InputError(f"a GABP artefact needs the arrays {', '.join(ARRAYS)}; missing: {', '.join(missing)}")
    k, h = arrays["w1"].shape
    wanted = {"b1": (h,), "w2": (h,), "b2": (), "mean": (k,), "scale": (k,), "target_mean": (), "target_scale": ()}
    wrong = [f"{name} {arrays[name].shape}" for name, shape in wanted.items() if arrays[name].shape != shape]
    if wrong:
        raise InputError(
            f"a GABP artefact of {k} predictors and {h} neurons has arrays of other shapes: {', '.join(wrong)}"
        )
    return fold(arrays)
