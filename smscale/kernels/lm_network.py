"""Networks of one hidden tanh layer as least-squares problems in closed form, many at once, and their training.

r networks share one table; each has its own sample weights (its inner fold is its rows of weight zero), width and ridge.
The table and the form of J'WJ are in `lm_table`, the engines in `lm_numba` and `lm_torch`, the training in `lm_training`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from smscale.errors import InputError
from smscale.kernels import lm_numba
from smscale.kernels.ga import cpus
from smscale.kernels.lm import Floats
from smscale.kernels.lm_table import checked, parameter_count
from smscale.kernels.lm_training import (
    Stop,
    Training,
    advance,
    arrays,
    begin,
    finished,
    reasons,
    restored,
    to_numpy,
    train,
)

__all__ = [
    "DTYPES",
    "ENGINES",
    "Stop",
    "Training",
    "advance",
    "arrays",
    "begin",
    "finished",
    "forward",
    "join",
    "networks",
    "parameter_count",
    "reasons",
    "restored",
    "split",
    "to_numpy",
    "train",
]

ENGINES = ("numpy", "torch")
DTYPES = ("float64", "float32")


def networks(
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike,
    hidden: ArrayLike,
    decay: ArrayLike = 0.0,
    validation: ArrayLike | None = None,
    *,
    member: ArrayLike | None = None,
    linear: bool = False,
    dtype: str = "float32",
    engine: str = "numpy",
    device: str | None = None,
    threads: int | None = None,
) -> Any:
    """The problem of r networks on one table, for `lm.run` or `train`.

    The cost of a network is half of sum_i w_i (f(x_i) - y_i)^2 + decay |parameters without the output threshold|^2. The
    products of inputs are kept: about 4 (k + 1) (k + 2) / 2 bytes a sample in float32.

    Parameters
    ----------
    x : (n, k) predictors, standardised; y : (n,) target
    weight : (n,) or (g, n), weights of the samples in training, >= 0; 0 holds a sample out
    hidden : (r,) neurons of each network
    decay : ridge on the parameters, one or (r,)
    validation : (n,) or (g, n), weights of the samples that decide when to stop; None for none
    member : (r,) rows of weight and validation that the networks have; None where each has its own, g = r
    linear : y also gets a linear part in x
    dtype : "float32" or "float64", of the work per sample; sums and linear systems are float64, so that on standardised
        samples 80 steps in float32 end within 0.1 % of the errors of float64
    engine : "numpy" (compiled, on the CPU) or "torch"
    device : of torch; None takes "cuda" where there is one
    threads : of the CPU's engine, None for every CPU of the process; the result does not depend on it. Samples that are
        held out cost least where they stand together

    Raises
    ------
    InputError : shapes that do not fit, values that are not finite, a network without training samples, an unknown engine
    """
    table = checked(x, y, weight, hidden, decay, validation, member, linear)
    if engine not in ENGINES or dtype not in DTYPES:
        raise InputError(f"engine must be one of {ENGINES} and dtype one of {DTYPES}; got {engine!r}, {dtype!r}")
    if engine == "numpy":
        return lm_numba.Networks(table, dtype, threads or cpus())
    from smscale.kernels import lm_torch

    return lm_torch.Networks(table, dtype, device)


def join(
    w1: ArrayLike, b1: ArrayLike, w2: ArrayLike, b2: float, width: int | None = None, skip: ArrayLike | None = None
) -> Floats:
    """Parameters (p,) of a network w1 (k, h), b1 (h,), w2 (h,), b2, padded to `width` neurons; skip (k,) is the linear part."""
    neurons = np.hstack([np.asarray(w1, np.float64).T, np.asarray(b1)[:, None], np.asarray(w2)[:, None]])
    padding = np.zeros(((width or len(neurons)) - len(neurons), neurons.shape[1]))
    return np.concatenate([neurons.ravel(), padding.ravel(), [] if skip is None else np.asarray(skip), [b2]])


def split(parameters: Floats, k: int, linear: bool = False) -> tuple[Floats, Floats, Floats, float, Floats]:
    """w1 (k, h), b1 (h,), w2 (h,), b2, skip (k,) of a parameter vector, without the neurons that are padding."""
    alone = k + 1 if linear else 1
    neurons = parameters[:-alone].reshape(-1, k + 2)
    neurons = neurons[neurons.any(axis=1)]
    skip = parameters[-alone:-1] if linear else np.zeros(k)
    return neurons[:, :k].T, neurons[:, k], neurons[:, k + 1], float(parameters[-1]), skip


def forward(parameters: Floats, x: Floats, linear: bool = False) -> Floats:
    """Network of x (n, k) float64, (n,)."""
    w1, b1, w2, b2, skip = split(parameters, x.shape[1], linear)
    return np.tanh(x @ w1 + b1) @ w2 + x @ skip + b2
