"""A trained network as plain arrays: what an artefact holds and what predicts. Needs neither scikit-learn nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.kernels import mlp

if TYPE_CHECKING:
    import torch

    from smscale.models.gabp.forward import Forward

Floats = NDArray[np.float64]

#: Arrays of a network's artefact: the network in standardised units, the two standardisers, and the bounds of predictors.
ARRAYS = ("w1", "b1", "w2", "b2", "linear", "mean", "scale", "lower", "upper", "target_mean", "target_scale")
#: What stands for no bound: artefacts hold finite numbers only.
UNBOUNDED = float(np.finfo(np.float32).max)
#: Settings of GABPRegressor that say where it trained; equal networks have equal bytes.
MACHINE = ("random_state", "n_jobs", "devices", "accelerator", "engine", "checkpoint", "trainer_options")


@dataclass(frozen=True)
class Network:
    """One hidden tanh layer beside a linear part, between two standardisers, folded into weights that act on x - shift.

    w1 (k, h), b1 (h,), w2 (h,) float64, b2, linear (k,) float64; shift (k,) float32; lower and upper (k,) float64, between
    which predictors are held, in their units.
    """

    w1: Floats
    b1: Floats
    w2: Floats
    b2: float
    linear: Floats
    shift: NDArray[np.float32]
    lower: Floats
    upper: Floats

    def predict(self, x: ArrayLike) -> NDArray[np.float32]:
        """(n, k) in predictor units -> (n,) float32 in target units; NaN where a predictor is missing."""
        return mlp.predict(x, *self._arguments)

    def predict_planes(self, planes: Sequence[ArrayLike]) -> NDArray[np.float32]:
        """k broadcastable planes -> float32 of their common shape; NaN where a predictor is missing."""
        return mlp.predict_planes(planes, *self._arguments)

    def on_device(self, device: torch.device) -> Forward:
        """The network with its weights on a torch device."""
        from smscale.models.gabp.forward import Forward

        return Forward(self, device)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        return self.w1, self.b1, self.w2, self.b2, self.shift, self.linear, self.lower, self.upper


def fold(arrays: Mapping[str, NDArray[Any]]) -> Network:
    """The network that acts on plain units, from the arrays named in `ARRAYS`.

    With z = (x - mean) / scale, x held between lower and upper, y = target_mean + target_scale (b2 + linear z + w2 tanh(b1 + w1 z)). The mean is taken off
    in float32, exactly for float32 predictors; what rounding it leaves goes into the thresholds.

    Raises
    ------
    InputError : a scale so small, or a weight so large, that a weight is not finite
    """
    a = {name: np.asarray(arrays[name], np.float64) for name in ARRAYS}
    shift = a["mean"].astype(np.float32)
    rounded = shift.astype(np.float64) - a["mean"]
    factor = float(a["target_scale"])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        w1, linear = a["w1"] / a["scale"][:, None], a["linear"] / a["scale"] * factor
    if not (np.isfinite(w1).all() and np.isfinite(linear).all()):
        raise InputError(
            f"a network's weights are not finite in the predictors' units; the least scale is {a['scale'].min():.3g}; "
            "train it again on rescaled predictors"
        )
    b2 = float(a["b2"]) * factor + float(a["target_mean"]) + float(rounded @ linear)
    return Network(w1, a["b1"] + rounded @ w1, a["w2"] * factor, b2, linear, shift, a["lower"], a["upper"])


def gabp_to_arrays(estimator: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and settings of a fitted GABPRegressor."""
    arrays = {name: np.asarray(value, np.float64) for name, value in estimator.network_.items()}
    if not all(np.isfinite(value).all() for value in arrays.values()):
        raise InputError("the GABP network holds NaN or infinity and is not saved; train it again on clean samples")
    settings = {key: value for key, value in estimator.get_params().items() if key not in MACHINE}
    found = {"n_hidden": int(estimator.n_hidden_), "stopped": list(estimator.stopped_)}
    chosen = {"decay": float(estimator.decay_), "shrinkage": float(estimator.shrinkage_)}
    return arrays, {"parameters": settings, **found, **chosen}


def gabp_from_arrays(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Network:
    """The network of an artefact."""
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise InputError(f"a GABP artefact needs the arrays {', '.join(ARRAYS)}; missing: {', '.join(missing)}")
    k, h = arrays["w1"].shape
    wanted = {"b1": (h,), "w2": (h,), "b2": (), "linear": (k,)}
    wanted |= dict.fromkeys(("mean", "scale", "lower", "upper"), (k,))
    wanted |= {"target_mean": (), "target_scale": ()}
    wrong = [f"{name} {arrays[name].shape}" for name, shape in wanted.items() if arrays[name].shape != shape]
    if wrong:
        raise InputError(
            f"a GABP artefact of {k} predictors and {h} neurons has arrays of other shapes: {', '.join(wrong)}"
        )
    return fold(arrays)
