"""Networks and planes of random numbers, and a model as the devices see it: for tests of prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smscale.kernels.planes import by_rows
from smscale.models.cnn.layers import GROUPS, CNNPredictor, cnn_from_arrays, pooled_length
from smscale.models.gabp.network import Network, fold

#: Maps of two devices differ by no more, m3/m3 (docs/performance.md).
TOLERANCE = 1e-5
#: What a target spreads, m3/m3.
SPREAD = 0.08


@dataclass
class Model:
    """What `on_device` reads of a `Predictor`."""

    model: Any
    fingerprint: str = "one"
    name: str = "made"

    def predict_planes(self, planes: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        own = getattr(self.model, "predict_planes", None)
        return own(planes) if own else by_rows(planes, self.model.predict)


def gabp_arrays(rng: np.random.Generator, weight: float = 0.7, clip: float = 2.5) -> dict[str, NDArray[Any]]:
    """Arrays of a network of 12 predictors of any size and 20 neurons, whose weights have that standard deviation."""
    k, h = 12, 20
    mean = rng.uniform(-1, 1, k) * 10.0 ** rng.integers(0, 4, k)
    scale = np.abs(mean) * 10.0 ** rng.uniform(-3, 0, k) + 1e-3
    return {
        "w1": rng.normal(0, weight, (k, h)),
        "b1": rng.normal(0, weight, h),
        "w2": rng.normal(0, 0.5, h),
        "b2": np.array(0.1),
        "linear": rng.normal(0, 0.2, k),
        "mean": mean,
        "scale": scale,
        "lower": mean - clip * scale,
        "upper": mean + clip * scale,
        "target_mean": np.array(0.25),
        "target_scale": np.array(SPREAD),
    }


def gabp(rng: np.random.Generator, weight: float = 0.7) -> tuple[Network, dict[str, NDArray[Any]]]:
    """A network, and the arrays that it is made of."""
    arrays = gabp_arrays(rng, weight)
    return fold(arrays), arrays


def cnn_arrays(
    rng: np.random.Generator,
    predictors: int = 12,
    cells: int = 1,
    filters: tuple[int, ...] = (8, 8, 16, 16),
    members: int = 5,
    clip: float = 2.5,
) -> dict[str, NDArray[Any]]:
    """Arrays of convolutional networks on predictors of any size."""
    columns, before = cells * predictors, cells
    arrays: dict[str, NDArray[Any]] = {}
    for number in range(2 * GROUPS):
        width = filters[number // 2]
        spread = np.sqrt(2 / (3 * before))
        arrays[f"weight_{number}"] = rng.normal(0, spread, (members, width, before, 3)).astype(np.float32)
        arrays[f"bias_{number}"] = rng.normal(0, 0.2, (members, width)).astype(np.float32)
        before = width
    dense = rng.normal(0, 0.5 / members, (members, pooled_length(predictors) * before))
    mean = rng.uniform(-1, 1, columns) * 10.0 ** rng.integers(0, 4, columns)
    return arrays | {
        "dense_weight": dense.astype(np.float32),
        "dense_bias": np.array([0.1], np.float32),
        "mean": mean,
        "scale": np.abs(mean) * 10.0 ** rng.uniform(-3, 0, columns) + 1e-3,
        "target": np.array([0.25, SPREAD]),
        "low": np.full(columns, -clip),
        "high": np.full(columns, clip),
        "linear": rng.normal(0, 0.1, columns),
    }


def cnn(rng: np.random.Generator, **options: Any) -> tuple[CNNPredictor, dict[str, NDArray[Any]]]:
    """Networks, and the arrays that they are made of."""
    arrays = cnn_arrays(rng, **options)
    return cnn_from_arrays(arrays), arrays


def planes_of(
    rng: np.random.Generator, arrays: dict[str, NDArray[Any]], shape: tuple[int, int, int] = (5, 20, 31)
) -> list[NDArray[np.float32]]:
    """Planes (t | 1, m | 1, n | 1) around the means, some of them beyond the bounds; gaps in the first, an infinite cell."""
    steps, rows, cols = shape
    kinds = [shape, (1, rows, cols), shape, (1, rows, 1), (1, 1, cols), (steps, 1, 1)]
    planes = []
    for c, (mean, scale) in enumerate(zip(arrays["mean"], arrays["scale"], strict=True)):
        values = mean + scale * rng.normal(0, 2, kinds[c % len(kinds)])
        planes.append(values.astype(np.float32))
    planes[0][rng.random(shape) < 0.6] = np.nan
    planes[2][1, 2, 3] = np.inf
    planes[0] = np.asfortranarray(planes[0])
    return planes
