"""What model.json says of a model beside its weights: features, standardiser, provenance, scores. Written and checked here."""

from __future__ import annotations

import functools
import importlib.metadata
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.models import booster
from smscale.schema import VARIABLES

Floats = NDArray[np.float64]

#: Where a model comes from: names that `provenance` has a meaning for. Others are kept as they are.
PROVENANCE = {
    "recipe": "fingerprint of the recipe's part that training depends on",
    "data": "fingerprint of the sample table",
    "fine_grid": "grid of the maps that the model is for, in words",
    "coarse_grid": "grid of the samples, in words",
    "period": "first and last local day of the samples",
    "split": "how the rows that validate were set apart",
    "rows": "how many rows trained",
    "seed": "of the random numbers",
    "engine": "what trained it: library and device",
    "precision": "float width of training",
}
#: What a fit may depend on: a model says them, and a finished fit of a search is not repeated as long as they stay.
LIBRARIES = ("smscale", "numpy", "scipy", "numba", "scikit-learn", "torch", "pytorch-lightning", "xgboost")
#: Array types of each kind of model.
DTYPES = {
    "gabp": {"float64"},
    "cnn": {"float32", "float64"},
    "rf": {"int32", "int64", "float32", "float64"},
    "xgb": {"uint8", "float64"},
}
#: Arrays of limits, in which an infinite one is none.
LIMITS = ("low", "high")
#: Share of the training rows below and above the quantiles that are kept.
TAILS = (0.01, 0.99)
#: Classes are kept up to this number: a product's classes are uint8 or uint16.
HIGHEST_CLASS = 65535
#: Models work in float32: a larger number is infinite there.
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Feature:
    """A feature as the model has seen it.

    low, below, above, high : least value, 1 % and 99 % quantile, greatest value of the training rows
    classes : those of the training rows where the feature is a class, else None
    """

    name: str
    units: str
    low: float
    below: float
    above: float
    high: float
    classes: tuple[int, ...] | None = None


def write(
    name: str,
    features: Sequence[str],
    rows: Floats,
    arrays: Mapping[str, NDArray[Any]],
    settings: Mapping[str, Any],
    units: Mapping[str, str],
    target: str,
    provenance: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a model that was trained on `rows` (n, k)."""
    return {
        "name": name,
        "features": [_as_json(_seen(*pair, units)) for pair in zip(features, rows.T, strict=True)],
        "target": target,
        "target_units": unit_of(target, units),
        "standardiser": standardiser(arrays, features),
        "model": settings,
        "provenance": {"rows": len(rows), **provenance},
        "scores": dict(scores),
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Of LIBRARIES; None where one is not installed."""
    return {library: _version(library) for library in LIBRARIES}


def unit_of(name: str, units: Mapping[str, str]) -> str:
    """A variable's unit: as given, the schema's, else "1"."""
    known = VARIABLES[name].units if name in VARIABLES else "1"
    return units.get(name, known)


def features_of(meta: Mapping[str, Any]) -> list[Feature]:
    """The features of a record.

    Raises
    ------
    InputError : there is none, names repeat, or a range is none
    """
    found = [_feature(entry) for entry in meta["features"]]
    names = [feature.name for feature in found]
    if not found or len(set(names)) != len(names):
        raise InputError(f"the record's features must be one or more, each named once; got {reprlib.repr(names)}")
    return found


def check(kind: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Refuse a record, or weights, that no training writes.

    Raises
    ------
    InputError : with what is wrong
    """
    names = [feature.name for feature in features_of(meta)]
    for key in ("name", "target", "target_units"):
        _text(meta[key], key)
    for key in ("model", "provenance", "scores", "versions"):
        if not isinstance(meta[key], Mapping):
            raise InputError(f"the record's {key} must be values by name; got {reprlib.repr(meta[key])}")
    if not all(isinstance(values, Mapping) and _are_numbers(values.values()) for values in meta["scores"].values()):
        raise InputError(
            'the record\'s scores must be numbers by name for each set of rows, as {"validation": {"rmse": 0.04}}'
        )
    for library, version in meta["versions"].items():
        if version is not None:
            _text(version, f"version of {library}")
    for name, values in arrays.items():
        if values.dtype.name not in DTYPES[kind]:
            wanted = ", ".join(sorted(DTYPES[kind]))
            raise InputError(f"the array {name!r} is {values.dtype.name}; a {kind} model has {wanted}")
        if values.dtype.kind == "f" and not _fits_float32(values[~np.isinf(values)] if name in LIMITS else values):
            raise InputError(f"the array {name!r} holds NaN, infinity or numbers beyond float32")
    if kind == "xgb":
        booster.check(arrays["ubj"].tobytes(), len(names))
    if meta["standardiser"] != standardiser(arrays, names):
        raise InputError("the record's standardiser is not that of the weights")


def standardiser(arrays: Mapping[str, NDArray[Any]], features: Sequence[str]) -> dict[str, Any] | None:
    """Means and scales that a model's arrays `mean`, `scale` (k,) and of the target hold; None for a model without them.

    Raises
    ------
    InputError : they are not one for each feature, or a scale is not positive
    """
    if not {"mean", "scale"} <= arrays.keys():
        return None
    mean, scale = arrays["mean"], arrays["scale"]
    if mean.shape != (len(features),) or scale.shape != (len(features),):
        raise InputError(
            f"the standardiser is of {mean.shape} means and {scale.shape} scales; {len(features)} features"
        )
    pair = arrays.get("target", np.array([arrays.get("target_mean", 0.0), arrays.get("target_scale", 1.0)]))
    if pair.shape != (2,) or not (scale > 0).all() or not pair[1] > 0:
        raise InputError("the standardiser's scales must be above 0, for each feature and the target")
    entries = zip(features, mean, scale, strict=True)
    return {
        "features": {name: {"mean": float(m), "scale": float(s)} for name, m, s in entries},
        "target": {"mean": float(pair[0]), "scale": float(pair[1])},
    }


def _seen(name: str, column: Floats, units: Mapping[str, str]) -> Feature:
    known = column[np.isfinite(column)]
    if not known.size:
        raise InputError(f"feature {name}: no training row has a value; leave it out")
    below, above = np.quantile(known, TAILS)
    classes = None
    if name in VARIABLES and VARIABLES[name].kind == "class":
        values = np.unique(known)
        if (values == np.trunc(values)).all() and values[0] >= 0 and values[-1] <= HIGHEST_CLASS:
            classes = tuple(int(value) for value in values)
    low, high = float(known.min()), float(known.max())
    return Feature(name, unit_of(name, units), low, float(below), float(above), high, classes)


def _as_json(feature: Feature) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": feature.name, "units": feature.units, "min": feature.low, "max": feature.high}
    entry |= {"q01": feature.below, "q99": feature.above}
    return entry if feature.classes is None else entry | {"classes": list(feature.classes)}


def _feature(entry: Mapping[str, Any]) -> Feature:
    name = _text(entry["name"], "feature")
    marks = [entry[key] for key in ("min", "q01", "q99", "max")]
    if not all(type(mark) in (int, float) and abs(mark) <= LARGEST for mark in marks) or marks != sorted(marks):
        raise InputError(f"feature {name}: its training range must be ascending numbers; got {reprlib.repr(marks)}")
    low, below, above, high = (float(mark) for mark in marks)
    classes = entry.get("classes")
    if classes is not None:
        whole = isinstance(classes, list) and bool(classes) and all(type(value) is int for value in classes)
        if not whole or sorted(set(classes)) != classes or classes[0] != low or classes[-1] != high:
            raise InputError(f"feature {name}: its classes must be integers from {low:g} to {high:g}")
        if low < 0 or high > HIGHEST_CLASS:
            raise InputError(f"feature {name}: its classes must lie in 0..{HIGHEST_CLASS}")
    return Feature(name, _text(entry["units"], f"unit of {name}"), low, below, above, high, classes and tuple(classes))


def _fits_float32(values: NDArray[Any]) -> bool:
    return not values.size or bool(values.min() >= -LARGEST and values.max() <= LARGEST)


def _are_numbers(values: Iterable[Any]) -> bool:
    """Whether each is a number, or None for one that is not finite."""
    return all(value is None or type(value) in (int, float) for value in values)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise InputError(f"the record's {what} must be one line of text; got {reprlib.repr(value)}")
    return value


@functools.cache
def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
