"""Regression trees as flat arrays: taken from a fitted forest, checked, and followed without scikit-learn."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

from smscale.errors import InputError
from smscale.kernels import forest_tiles
from smscale.kernels.planes import by_rows

Arrays = dict[str, NDArray[Any]]

LEAF = -1
#: Arrays of a forest: one value for each node of all trees, and each tree's first node.
NODES = {
    "feature": np.int32,
    "threshold": np.float32,
    "left": np.int32,
    "right": np.int32,
    "value": np.float64,
    "root": np.int64,
}
#: What an artefact may say; far more than any table has.
MOST_PREDICTORS = 1 << 20


@dataclass(frozen=True, eq=False)
class Linear:
    """The part under the trees: `intercept` + clipped X @ `coefficients` (k,), units of y; and the `share` of the trees.

    Each predictor is clipped to [`low`, `high`] (k,) first: what a slope says ends where it was learnt.
    """

    intercept: float
    coefficients: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    share: float = 1.0

    @staticmethod
    def none(predictors: int) -> Linear:
        """Nothing under the trees."""
        return Linear.flat(0.0, predictors, 1.0)

    @staticmethod
    def flat(level: float, predictors: int, share: float) -> Linear:
        """The same `level` everywhere."""
        zeros = np.zeros(predictors)
        return Linear(level, zeros, zeros, zeros, share)

    def under(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) for X (n, k) float32, C-contiguous: the same for a row whatever rows are beside it."""
        out = np.empty(len(X))
        _linear(X, self.intercept, self.coefficients, self.low, self.high, out)
        return out

    def arrays(self) -> Arrays:
        """For an artefact; `from_arrays` takes it back."""
        return {
            "intercept": np.array([self.intercept]),
            "coefficients": self.coefficients,
            "low": self.low,
            "high": self.high,
            "share": np.array([self.share]),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]], predictors: int, kind: str) -> Linear:
        """The linear part of an artefact, or none where it has none; InputError where sizes or values are wrong."""
        names = {"intercept": 1, "coefficients": predictors, "low": predictors, "high": predictors, "share": 1}
        if not set(names) & set(arrays):
            return Linear.none(predictors)
        if lacking := sorted(set(names) - set(arrays)):
            raise InputError(f"an {kind} artefact lacks '{lacking[0]}'; train and save it again")
        parts = {name: arrays[name] for name in names}
        right = all(
            part.shape == (names[name],) and part.dtype == np.float64 and np.isfinite(part).all()
            for name, part in parts.items()
        )
        if not right or not 0 <= parts["share"][0] <= 1 or (parts["low"] > parts["high"]).any():
            raise InputError(f"the linear part of an {kind} artefact is not one; train and save it again")
        slopes = (parts["coefficients"], parts["low"], parts["high"])
        return Linear(float(parts["intercept"][0]), *slopes, share=float(parts["share"][0]))


@numba.njit(nogil=True, cache=True)
def _linear(
    X: NDArray[np.float32],
    intercept: float,
    coefficients: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    for row in range(X.shape[0]):
        total = intercept
        for column in range(coefficients.size):
            total += coefficients[column] * min(max(X[row, column], low[column]), high[column])
        out[row] = total


@dataclass(frozen=True, eq=False)
class ForestPredictor:
    """A forest as arrays, all trees in a row: feature (-1 at a leaf), threshold, left, right, value; root of each tree.

    `linear` lies under it: what is predicted is linear part + share x mean of the trees.
    """

    predictors: int
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    root: NDArray[np.int64]
    linear: Linear

    def predict(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """(n,) float32 for X (n, k) finite."""
        return forest_tiles.predict(as_planes(X, self.predictors, "forest"), *self._parts)

    def predict_planes(self, planes: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """One broadcastable array of real numbers per predictor -> float32 of their common shape, as `predict`, bit by bit.

        NaN where a predictor is missing or infinite. The last three axes are taken as time, latitude and longitude: the
        more alike neighbours are, the faster; planes of one axis are rows.
        """
        if len(planes) != self.predictors:
            raise InputError(f"the forest was trained on {self.predictors} predictors; got {len(planes)} planes")
        given = [np.asarray(plane) for plane in planes]
        out = np.empty(np.broadcast_shapes(*(plane.shape for plane in given)), np.float32)
        if out.ndim < 2:
            return by_rows(given, self.predict).reshape(out.shape)
        axes = max(3, out.ndim)
        given = [plane[(None,) * (axes - plane.ndim)] for plane in given]
        whole = out.reshape((1,) * (axes - out.ndim) + out.shape)
        for index in np.ndindex(whole.shape[:-3]):
            parts = [
                plane[tuple(i % size for i, size in zip(index, plane.shape, strict=False))] for plane in given
            ]  # an axis of one plane stands for all: i % 1 is 0
            forest_tiles.fill(whole[index], parts, *self._parts)
        return out

    @property
    def _parts(self) -> tuple[forest_tiles.Trees, forest_tiles.Under]:
        """As compiled code takes them."""
        trees = forest_tiles.Trees(*(getattr(self, name) for name in forest_tiles.Trees._fields))
        return trees, forest_tiles.Under(*(getattr(self.linear, name) for name in forest_tiles.Under._fields))


def as_planes(X: NDArray[np.floating[Any]], predictors: int, name: str) -> NDArray[np.float32]:
    """X (n, predictors) as C-contiguous float32; InputError where it has another shape."""
    X = np.ascontiguousarray(X, dtype=np.float32)
    if X.ndim != 2 or X.shape[1] != predictors:
        raise InputError(f"the {name} was trained on {predictors} predictors; got an array of shape {X.shape}")
    return X


def flattened(forest: RandomForestRegressor, columns: NDArray[np.intp] | None = None) -> Arrays:
    """Arrays of a fitted forest of one target; `columns` (c,) are the predictors that its own numbers stand for.

    scikit-learn compares float32 values with float64 thresholds; the largest float32 that does not exceed a threshold
    decides the same, so that is what is kept.
    """
    if forest.n_outputs_ != 1:
        raise InputError(f"a forest artefact holds one target; this forest has {forest.n_outputs_}")
    columns = np.arange(forest.n_features_in_) if columns is None else columns
    trees = [tree.tree_ for tree in forest.estimators_]
    root = np.concatenate([[0], np.cumsum([tree.node_count for tree in trees])]).astype(np.int64)
    leaf = np.concatenate([tree.children_left for tree in trees]) == LEAF

    def children(name: str) -> NDArray[np.int32]:
        nodes = np.concatenate([getattr(tree, name) + at for tree, at in zip(trees, root, strict=False)])
        return np.where(leaf, LEAF, nodes).astype(np.int32)

    feature = np.where(leaf, 0, np.concatenate([tree.feature for tree in trees]))
    return {
        "feature": np.where(leaf, LEAF, columns[feature]).astype(np.int32),
        "threshold": _float32_below(np.concatenate([tree.threshold for tree in trees])),
        "left": children("children_left"),
        "right": children("children_right"),
        "value": np.concatenate([tree.value[:, 0, 0] for tree in trees]).astype(np.float64),
        "root": root,
    }


def _float32_below(threshold: NDArray[np.float64]) -> NDArray[np.float32]:
    single = threshold.astype(np.float32)
    return np.where(single > threshold, np.nextafter(single, np.float32(-np.inf)), single)


def forest_from(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> ForestPredictor:
    """The predictor of an artefact's arrays.

    Raises
    ------
    InputError : arrays are missing, do not describe trees, or the linear part is none
    """
    try:
        parts: dict[str, Any] = {name: arrays[name] for name in NODES}
        predictors = meta["predictors"]
    except KeyError as error:
        raise InputError(f"an rf artefact lacks {error}; train and save it again") from None
    if type(predictors) is not int or not 0 < predictors <= MOST_PREDICTORS:
        raise InputError(f"an rf artefact has the predictors {reprlib.repr(predictors)}; train and save it again")
    wrong = [name for name, dtype in NODES.items() if parts[name].dtype != dtype or parts[name].ndim != 1]
    if wrong:  # another number of dimensions would be compiled for, which takes minutes
        raise InputError(f"{', '.join(wrong)} of an rf artefact is of another type or shape; train and save it again")
    parts = {name: np.ascontiguousarray(values) for name, values in parts.items()}
    forest = ForestPredictor(predictors, **parts, linear=Linear.from_arrays(arrays, predictors, "rf"))
    if not _are_trees(forest):
        raise InputError("the arrays of an rf artefact do not describe trees; train and save it again")
    return forest


def _are_trees(forest: ForestPredictor) -> bool:
    """Every node but a root is the child of one node before it in its own tree; values are finite."""
    nodes = forest.feature.size
    if {forest.threshold.size, forest.left.size, forest.right.size, forest.value.size} != {nodes}:
        return False
    if forest.root.size < 2 or forest.root[0] != 0 or forest.root[-1] != nodes:
        return False
    if (forest.root < 0).any() or (forest.root > nodes).any():  # else the differences may wrap round
        return False
    if (np.diff(forest.root) < 1).any():
        return False
    if not (np.isfinite(forest.value).all() and np.isfinite(forest.threshold).all()):
        return False
    inner = np.flatnonzero(forest.feature != LEAF)
    end = np.repeat(forest.root[1:], np.diff(forest.root))[inner]
    used = forest.feature[inner]
    children = (forest.left[inner], forest.right[inner])
    if not all(((child > inner) & (child < end)).all() for child in children):
        return False
    parents = np.ones(nodes, np.int64)
    parents[forest.root[:-1]] = 0
    once = np.array_equal(np.bincount(np.concatenate(children), minlength=nodes), parents)
    return once and bool(((used >= 0) & (used < forest.predictors)).all())


def is_plain(value: Any) -> bool:
    """Whether JSON takes it."""
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and np.isfinite(value))
