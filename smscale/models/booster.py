"""The bytes of an XGBoost model, read before XGBoost reads them: it trusts its input, and forged trees crash or hang it.

UBJSON as XGBoost writes it: objects {key value ...}, counted arrays [#n value ..., typed arrays [$type#n bytes, big-endian.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smscale.errors import InputError

#: UBJSON's numbers: marker -> NumPy type.
NUMBERS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
#: Arrays of a tree, one value for each node, and their types.
NODES = {
    "left_children": "i4",
    "right_children": "i4",
    "parents": "i4",
    "split_indices": "i4",
    "split_conditions": "f4",
    "base_weights": "f4",
    "loss_changes": "f4",
    "sum_hessian": "f4",
    "default_left": "u1",
    "split_type": "u1",
}
#: XGBoost nests eight levels.
DEEPEST = 32


#: Of a tree, what only categories need: a model of float32 features has none.
CATEGORIES = ("categories", "categories_nodes", "categories_segments", "categories_sizes")


def check(ubj: bytes, features: int) -> None:
    """Refuse bytes that are no booster of trees for one target, on which XGBoost could crash, never end or give NaN.

    Parameters
    ----------
    ubj : what `Booster.save_raw("ubj")` gave
    features : how many the model takes

    Raises
    ------
    InputError : with what is wrong
    """
    try:
        reader = _Reader(ubj)
        model = reader.value()
        if reader.at != len(ubj):
            raise ValueError("bytes follow the model")
        _check_learner(model["learner"], features)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"not a booster of trees for one target and {features} features ({reason})") from None


def _check_learner(learner: Mapping[str, Any], features: int) -> None:
    booster = learner["gradient_booster"]
    _expect(booster["name"] == "gbtree", f"booster {booster['name']!r}, only gbtree is kept")
    settings = learner["learner_model_param"]
    wanted = {"num_feature": str(features), "num_class": "0", "num_target": "1"}
    for name, value in wanted.items():
        _expect(settings[name] == value, f"{name} {settings[name]!r}, expected {value}")
    base = re.fullmatch(r"\[?([-+.0-9Ee]{1,40})\]?", settings["base_score"])
    _expect(base is not None and np.isfinite(np.float32(base[1])), "base_score is no number")
    for name in ("feature_names", "feature_types"):
        listed = learner[name]
        _expect(len(listed) in (0, features) and all(isinstance(item, str) for item in listed), f"{name} differ")
    _check_trees(booster["model"], features)


def _check_trees(model: Mapping[str, Any], features: int) -> None:
    trees, settings = model["trees"], model["gbtree_model_param"]
    count, parallel = len(trees), _whole(settings["num_parallel_tree"])
    _expect(settings["num_trees"] == str(count), "num_trees differs")
    _expect(parallel > 0 and count % parallel == 0, "num_parallel_tree does not divide the trees")
    _expect(list(model["iteration_indptr"]) == list(range(0, count + 1, parallel)), "the rounds do not fit the trees")
    _expect(list(model["tree_info"]) == [0] * count, "trees of several classes")
    _expect(not any(len(values) for values in model.get("cats", {}).values()), "categories")
    for number, tree in enumerate(trees):
        _expect(tree["id"] == number, f"tree {number} has another number")
        _check_tree(tree, features)


def _check_tree(tree: Mapping[str, Any], features: int) -> None:
    """Every walk from the root ends: children are nodes, the root is none's child, and no node is a child twice."""
    settings = tree["tree_param"]
    nodes = _whole(settings["num_nodes"])
    _expect(settings["num_feature"] == str(features), "a tree of another number of features")
    _expect(settings["size_leaf_vector"] in ("0", "1"), "leaves of several values")
    _expect(nodes > 0, "a tree without nodes")
    for name, kind in NODES.items():
        values = tree[name]
        _expect(isinstance(values, np.ndarray) and values.dtype.str[1:] == kind, f"{name} is of another type")
        _expect(values.size == nodes, f"{name} has {values.size} values for {nodes} nodes")
    _expect(not any(len(tree[name]) for name in CATEGORIES) and not tree["split_type"].any(), "splits by category")
    left, right = tree["left_children"], tree["right_children"]
    inner = np.flatnonzero(left != -1)
    _expect(bool((right[left == -1] == -1).all()), "a node of one child")
    children = np.concatenate([left[inner], right[inner]])
    _expect(bool(((children > 0) & (children < nodes)).all()), "a child is no node")
    _expect(bool((np.bincount(children, minlength=nodes) < 2).all()), "a node has two parents")
    _expect(bool((tree["parents"][children] == np.tile(inner, 2)).all()), "a parent differs")
    used = tree["split_indices"][inner]
    _expect(bool(((used >= 0) & (used < features)).all()), "a split on no feature")
    _expect(bool(np.isfinite(tree["split_conditions"]).all()), "a threshold or a leaf is NaN or infinite")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _whole(text: str) -> int:
    _expect(bool(re.fullmatch("[0-9]{1,9}", text)), f"{text[:20]!r} is no count")
    return int(text)


class _Reader:
    """A cursor over UBJSON; ValueError where it does not hold what XGBoost writes."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def value(self, depth: int = 0) -> Any:
        marker = self._take(1).decode("ascii")
        if depth > DEEPEST:
            raise ValueError("nested too deep")
        if marker in NUMBERS:
            return self._number(marker)
        if marker == "S":
            return self._text()
        if marker in "TFZ":
            return {"T": True, "F": False, "Z": None}[marker]
        if marker == "{":
            return self._object(depth)
        if marker == "[":
            return self._array(depth)
        raise ValueError(f"marker {marker!r} is unknown")

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._peek() != b"}":
            key = self._text()
            if key in found:
                raise ValueError(f"{key!r} stands twice")
            found[key] = self.value(depth + 1)
        self._take(1)
        return found

    def _array(self, depth: int) -> list[Any] | NDArray[Any]:
        kind = None
        if self._peek() == b"$":
            kind = self._take(2)[1:].decode("ascii")
        if self._take(1) != b"#":
            raise ValueError("an array without count")
        count = self._count()
        if kind is None:
            if count > len(self.data) - self.at:
                raise ValueError("an array longer than the data")
            return [self.value(depth + 1) for _ in range(count)]
        numbers = np.dtype(NUMBERS[kind])
        return np.frombuffer(self._take(count * numbers.itemsize), numbers)

    def _number(self, marker: str) -> int | float:
        return np.frombuffer(self._take(np.dtype(NUMBERS[marker]).itemsize), NUMBERS[marker])[0].item()

    def _text(self) -> str:
        return self._take(self._count()).decode()

    def _count(self) -> int:
        marker = self._take(1).decode("ascii")
        count = self._number(marker) if marker in "iUIlL" else -1
        if count < 0:
            raise ValueError("a count is none")
        return int(count)

    def _peek(self) -> bytes:
        return self.data[self.at : self.at + 1]

    def _take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        if len(found) != count:
            raise ValueError("the data end early")
        self.at += count
        return found
