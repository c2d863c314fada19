"""Estimators to artefacts and back: a `Predictor` knows its features by name, order, unit and training range."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.kernels.mlp import slabs
from smscale.models import artefact
from smscale.schema import VARIABLES

if TYPE_CHECKING:
    import pandas as pd

Floats32 = NDArray[np.float32]

#: Cells that a model without planes of its own is given at once: 12 predictors of float32 are 12 MB.
SLAB = 1 << 18
#: Training rows on which a model must give finite values before it is saved.
TRIAL_ROWS = 256
LIBRARIES = ("smscale", "numpy", "numba", "scikit-learn", "torch", "pytorch-lightning", "xgboost")


class Model(Protocol):
    """What predicts once loaded.

    It may also have `predict_planes(planes)`, which takes broadcastable planes of any float type, missing values
    included, and gives NaN for those; it is then used for tables too.
    """

    def predict(self, x: Any) -> Floats32:
        """(n, k) float32, finite -> (n,) float32."""


class Kind(NamedTuple):
    """Where the functions of one kind of model live; `module` is imported when first needed."""

    module: str
    estimators: tuple[str, ...]

    def function(self, name: str) -> Any:
        return getattr(importlib.import_module(self.module), name)


KINDS = {
    "gabp": Kind("smscale.models.network", ("GABPRegressor",)),
    "cnn": Kind("smscale.models.cnn", ("CNNRegressor",)),
    "rf": Kind("smscale.models.forests", ("RandomForestRegressor", "TunedForest")),
    "xgb": Kind("smscale.models.forests", ("XGBRegressor", "StoppedXGBRegressor", "TunedXGB")),
}


@dataclass(frozen=True)
class Predictor:
    """A trained model that any process can use; pickles, so that dask sends it to each worker once.

    `training_range` is (k, 2) float64, least and greatest value of each feature; `meta` is the artefact's.
    """

    kind: str
    name: str
    features: tuple[str, ...]
    units: tuple[str, ...]
    target: str
    target_units: str
    training_range: NDArray[np.float64]
    meta: dict[str, Any]
    model: Model

    def predict(self, x: ArrayLike) -> Floats32:
        """(n, k) floats, features in order -> (n,) float32; a row with a missing or infinite feature gives NaN."""
        rows = np.asarray(x)
        if rows.ndim != 2 or rows.shape[1] != len(self.features):
            raise InputError(
                f"model {self.name}: needs (n, {len(self.features)}) values of {', '.join(self.features)}; got {rows.shape}"
            )
        own = getattr(self.model, "predict_planes", None)
        if own is not None:
            return np.asarray(own(list(rows.T)), np.float32)
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        known = np.isfinite(rows).all(axis=1)
        if known.all() and len(rows):
            return np.asarray(self.model.predict(rows), np.float32)
        out = np.full(len(rows), np.nan, np.float32)
        if known.any():
            out[known] = self.model.predict(rows[known])
        return out

    def predict_planes(self, planes: Sequence[ArrayLike]) -> Floats32:
        """One broadcastable array or scalar per feature, in order -> float32 of their common shape; NaN where one is missing."""
        if len(planes) != len(self.features):
            raise InputError(
                f"model {self.name}: needs {len(self.features)} planes ({', '.join(self.features)}); got {len(planes)}"
            )
        own = getattr(self.model, "predict_planes", None)
        if own is not None:
            return np.asarray(own(planes), np.float32)
        views = np.broadcast_arrays(*(np.atleast_1d(plane) for plane in planes))
        out = np.empty(views[0].shape, np.float32)
        for index in slabs(out.shape, SLAB):
            part = out[index]
            rows = np.stack([view[index].ravel().astype(np.float32) for view in views], axis=1)
            part[...] = self.predict(rows).reshape(part.shape)
        return out

    def predict_table(self, table: pd.DataFrame) -> Floats32:
        """Rows of a table -> (n,) float32. Columns that are no features are ignored.

        Raises
        ------
        InputError : a feature is missing, the features stand in another order, or `table.attrs["units"]` states another unit
        """
        self._check(table)
        return self.predict(table[list(self.features)].to_numpy(np.float64))

    def outside_range(self, x: ArrayLike) -> NDArray[np.bool_]:
        """(n, k) -> (n,) bool: some feature lies outside what the model was trained on (missing ones do not)."""
        rows = np.asarray(x)
        low, high = self.training_range.astype(np.float32).T
        return ((rows < low) | (rows > high)).any(axis=1)

    def _check(self, table: pd.DataFrame) -> None:
        columns = list(table.columns)
        missing = [name for name in self.features if name not in columns]
        if missing:
            raise InputError(
                f"model {self.name}: the table lacks {', '.join(missing)}; it needs {', '.join(self.features)}"
            )
        found = [name for name in columns if name in self.features]
        if found != list(self.features):
            raise InputError(
                f"model {self.name}: the table's features stand as {', '.join(found)}; expected {', '.join(self.features)}"
            )
        stated = table.attrs.get("units", {})
        for name, unit in zip(self.features, self.units, strict=True):
            if name in stated and stated[name] != unit:
                raise InputError(
                    f"model {self.name}: {name} is in {stated[name]!r}; the model was trained on {unit!r}: convert the column"
                )


def make_predictor(
    estimator: Any,
    features: Sequence[str],
    X_train: pd.DataFrame | NDArray[Any],
    extra_meta: Mapping[str, Any] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    target: str = "soil_moisture",
    target_units: str | None = None,
    name: str | None = None,
    kind: str | None = None,
) -> Predictor:
    """A fitted estimator as a `Predictor`, as if saved and loaded, but in memory. Parameters as `save_model`."""
    kind, arrays, meta = _describe(estimator, features, X_train, extra_meta, units, target, target_units, name, kind)
    return _tried(_predictor(kind, arrays, artefact.plain(meta)), X_train)


def save_model(
    folder: Path | str,
    estimator: Any,
    features: Sequence[str],
    X_train: pd.DataFrame | NDArray[Any],
    extra_meta: Mapping[str, Any] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    target: str = "soil_moisture",
    target_units: str | None = None,
    name: str | None = None,
    kind: str | None = None,
) -> Path:
    """Write a fitted estimator as an artefact.

    Parameters
    ----------
    folder : where
    estimator : fitted, of a class named in `KINDS`
    features : k names, in the order of the columns that it was fitted on
    X_train : (n, k) array, or a table that has the features; gives the training range
    extra_meta : scores, fingerprints, recipe ...; kept under meta["extra"]
    units : feature -> unit; the schema's for names that it knows, else "1"
    target, target_units : what is predicted
    name : what the model is called in messages; the kind by default
    kind : by the estimator's class unless given

    Raises
    ------
    InputError : the estimator's kind is unknown, shapes disagree, or it predicts NaN or infinity on its own training rows
    """
    kind, arrays, meta = _describe(estimator, features, X_train, extra_meta, units, target, target_units, name, kind)
    _tried(_predictor(kind, arrays, artefact.plain(meta)), X_train)
    return artefact.save(folder, kind, arrays, meta)


def load_model(folder: Path | str) -> Predictor:
    """The model that `save_model` wrote; InputError, one line, if it is absent, foreign, truncated or altered."""
    kind, arrays, meta = artefact.load(folder)
    if kind not in KINDS:
        raise InputError(f"{folder}: a model of kind {kind!r}; known kinds: {', '.join(KINDS)}")
    try:
        return _predictor(kind, arrays, meta)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{folder}: incomplete model record ({type(error).__name__}: {error}); train the model again"
        ) from None


def kind_of(estimator: Any) -> str:
    """The registry's kind of an estimator, by the names of its classes."""
    names = [base.__name__ for base in type(estimator).__mro__]
    for kind, entry in KINDS.items():
        if not set(entry.estimators).isdisjoint(names):
            return kind
    known = ", ".join(name for entry in KINDS.values() for name in entry.estimators)
    raise InputError(f"{type(estimator).__name__}: no artefact is known for this estimator; expected one of {known}")


def _describe(
    estimator: Any,
    features: Sequence[str],
    X_train: pd.DataFrame | NDArray[Any],
    extra_meta: Mapping[str, Any] | None,
    units: Mapping[str, str] | None,
    target: str,
    target_units: str | None,
    name: str | None,
    kind: str | None,
) -> tuple[str, dict[str, NDArray[Any]], dict[str, Any]]:
    kind = kind or kind_of(estimator)
    rows = _rows(X_train, features)
    arrays, model_meta = KINDS[kind].function(f"{kind}_to_arrays")(estimator)
    low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    meta = {
        "name": name or kind,
        "features": [
            {"name": feature, "units": _unit(feature, units), "min": float(a), "max": float(b)}
            for feature, a, b in zip(features, low, high, strict=True)
        ],
        "target": target,
        "target_units": target_units or _unit(target, units),
        "model": model_meta,
        "extra": dict(extra_meta or {}),
        "versions": {library: _version(library) for library in LIBRARIES},
    }
    return kind, dict(arrays), meta


def _predictor(kind: str, arrays: Mapping[str, NDArray[Any]], meta: dict[str, Any]) -> Predictor:
    features = meta["features"]
    return Predictor(
        kind=kind,
        name=meta["name"],
        features=tuple(feature["name"] for feature in features),
        units=tuple(feature["units"] for feature in features),
        target=meta["target"],
        target_units=meta["target_units"],
        training_range=np.array([[feature["min"], feature["max"]] for feature in features], np.float64),
        meta=meta,
        model=KINDS[kind].function(f"{kind}_from_arrays")(arrays, meta["model"]),
    )


def _tried(predictor: Predictor, X_train: pd.DataFrame | NDArray[Any]) -> Predictor:
    rows = _rows(X_train, predictor.features)
    rows = rows[np.isfinite(rows).all(axis=1)][:TRIAL_ROWS]
    if not np.isfinite(predictor.predict(rows)).all():
        raise InputError(
            f"model {predictor.name}: predicts NaN or infinity on its own training rows and is not saved; train it again"
        )
    return predictor


def _rows(X_train: pd.DataFrame | NDArray[Any], features: Sequence[str]) -> NDArray[np.float64]:
    table = X_train[list(features)] if hasattr(X_train, "columns") else X_train
    rows = np.asarray(table, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(features) or not len(rows):
        raise InputError(f"training rows must be (n, {len(features)}) for {', '.join(features)}; got {rows.shape}")
    return rows


def _unit(name: str, units: Mapping[str, str] | None) -> str:
    if units and name in units:
        return units[name]
    return VARIABLES[name].units if name in VARIABLES else "1"


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
