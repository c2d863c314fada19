"""Estimators to artefacts and back: a `Predictor` knows its features by name, order, unit and training range."""

from __future__ import annotations

import importlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from smscale.errors import InputError
from smscale.kernels import planes as plane_kernels
from smscale.models import artefact, record
from smscale.models.artefact import one_line
from smscale.models.card import card

Floats32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

#: Training rows on which a model must give finite values before it is saved.
TRIAL_ROWS = 256


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
    "gabp": Kind("smscale.models.gabp.network", ("GABPRegressor",)),
    "cnn": Kind("smscale.models.cnn", ("CNNRegressor",)),
    "rf": Kind("smscale.models.forests", ("RandomForestRegressor", "TunedForest")),
    "xgb": Kind("smscale.models.boosting", ("XGBRegressor", "BoostedTrees", "TunedXGB")),
}


@dataclass(frozen=True, eq=False, repr=False)
class Predictor:
    """A trained model that any process can use; pickles as little more than its weights.

    Two are equal, to dask too, when their fingerprints are.

    seen : of each feature its unit, range, quantiles and classes in training
    meta : the artefact's
    """

    kind: str
    seen: tuple[record.Feature, ...]
    meta: Mapping[str, Any]
    model: Model
    fingerprint: str

    @property
    def name(self) -> str:
        return str(self.meta["name"])

    @property
    def features(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(feature.name for feature in self.seen)

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(feature.units for feature in self.seen)

    @property
    def target(self) -> str:
        return str(self.meta["target"])

    @property
    def target_units(self) -> str:
        return str(self.meta["target_units"])

    @property
    def training_range(self) -> NDArray[np.float64]:
        """(k, 2), least and greatest value of each feature in training."""
        return np.array([[feature.low, feature.high] for feature in self.seen])

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the model comes from; names as in `record.PROVENANCE`."""
        return dict(self.meta["provenance"])

    @property
    def scores(self) -> Mapping[str, Mapping[str, Any]]:
        """Set of rows ("training", "inner", "validation") -> metric -> number."""
        return dict(self.meta["scores"])

    def predict(self, x: ArrayLike) -> Floats32:
        """(n, k) real numbers, features in order -> (n,) float32; a row with a missing or infinite feature gives NaN.

        What is beyond float32 counts as infinite. Of a table the columns are checked, as `predict_table` does.
        """
        rows = self._matrix(x)
        own = getattr(self.model, "predict_planes", None)
        with np.errstate(over="ignore"):
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
        given = self._planes(planes)
        own = getattr(self.model, "predict_planes", None)
        with np.errstate(over="ignore"):
            if own is not None:
                return np.asarray(own(given), np.float32)
            return plane_kernels.by_rows(given, self.model.predict)

    def predict_table(self, table: pd.DataFrame) -> Floats32:
        """Rows of a table -> (n,) float32. Columns that are no features are ignored.

        Raises
        ------
        InputError : a feature is missing or no number, the features stand in another order, or `table.attrs["units"]`
            states another unit
        """
        return self.predict(self._matrix(table))

    def predict_dataset(self, planes: xr.Dataset | xr.DataArray) -> xr.DataArray:
        """Labelled planes -> labelled float32 prediction; lazy where the planes are, and then the graph holds the model once.

        Parameters
        ----------
        planes : Dataset with a variable or coordinate for each feature, in any order, or a DataArray with the dimension
            `variable`, as `Workspace.predictors` gives. Units are compared where they are stated.

        Raises
        ------
        InputError : a feature is missing or no number, or states another unit
        """
        if isinstance(planes, xr.DataArray) and "variable" not in planes.dims:
            raise InputError(
                f"model {self.name}: planes in one array need the dimension 'variable'; it has {planes.dims}"
            )
        given = planes.to_dataset("variable") if isinstance(planes, xr.DataArray) else planes
        self._check_names([str(name) for name in given.variables], "the Dataset")
        fields = [given[name] for name in self.features]
        self._check_units({name: field.attrs.get("units") for name, field in zip(self.features, fields, strict=True)})
        dims = tuple(dict.fromkeys(dim for field in sorted(fields, key=lambda f: -f.ndim) for dim in field.dims))
        parts = [field.variable.set_dims(dims).data for field in fields]
        labels = {name: coord for name, coord in given.coords.items() if set(coord.dims) <= set(dims)}
        attrs = {"long_name": f"{self.target} by {self.name}", "units": self.target_units}
        return xr.DataArray(_lazily(self, parts), labels, dims, self.target, attrs)

    def outside_range(self, x: ArrayLike) -> Bools:
        """(n, k) -> (n,) bool: some feature lies outside what the model was trained on (missing ones do not).

        A class that was not in training is outside, also between others that were.
        """
        return self.outside_planes(list(self._matrix(x).T))

    def outside_planes(self, planes: Sequence[ArrayLike]) -> Bools:
        """As `outside_range`, for one broadcastable array or scalar per feature -> bool of their common shape."""
        low, high = self.training_range.astype(np.float32).T
        strange = [None if feature.classes is None else partial(_outside, feature) for feature in self.seen]
        return plane_kernels.outside(self._planes(planes), low, high, strange)

    def describe(self) -> str:
        """The model on one page: features with units and ranges, scores, provenance."""
        return card(self.kind, self.fingerprint, self.seen, self.meta)

    def __repr__(self) -> str:
        return f"<Predictor {self.name} ({self.kind}): {self.target} from {', '.join(self.features)}>"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.describe())}</pre>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Predictor) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return int(self.fingerprint[:15], 16)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "smscale.Predictor", self.fingerprint

    def _matrix(self, x: ArrayLike | pd.DataFrame) -> NDArray[Any]:
        if isinstance(x, pd.DataFrame):
            self._check_table(x)
            x = x[list(self.features)].to_numpy(np.float64, na_value=np.nan)
        rows = self._numbers(x, "rows")
        if rows.ndim != 2 or rows.shape[1] != len(self.seen):
            raise InputError(
                f"model {self.name}: needs (n, {len(self.seen)}) values of {', '.join(self.features)}; got {rows.shape}"
            )
        return rows

    def _planes(self, planes: Sequence[ArrayLike]) -> list[NDArray[Any]]:
        if len(planes) != len(self.seen):
            raise InputError(
                f"model {self.name}: needs {len(self.seen)} planes ({', '.join(self.features)}); got {len(planes)}"
            )
        pairs = zip(self.features, planes, strict=True)
        given = [np.atleast_1d(self._numbers(plane, name)) for name, plane in pairs]
        try:
            np.broadcast_shapes(*(plane.shape for plane in given))
        except ValueError:
            shapes = ", ".join(f"{name} {plane.shape}" for name, plane in zip(self.features, given, strict=True))
            raise InputError(f"model {self.name}: the planes do not broadcast to one shape: {shapes}") from None
        return given

    def _numbers(self, values: ArrayLike, what: str) -> NDArray[Any]:
        """An array of real numbers; what is masked in it is NaN."""
        array = np.asanyarray(values)
        if array.dtype.kind not in "biuf":
            raise InputError(f"model {self.name}: {what} must be real numbers; got {array.dtype}")
        if isinstance(array, np.ma.MaskedArray):
            floats = array.astype(np.result_type(array.dtype, np.float32))
            return np.asarray(np.ma.filled(floats, np.nan))
        return np.asarray(array)

    def _check_table(self, table: pd.DataFrame) -> None:
        columns = list(table.columns)
        self._check_names(columns, "the table")
        found = [name for name in columns if name in self.features]
        if found != list(self.features):
            raise InputError(
                f"model {self.name}: the table's features stand as {', '.join(found)}; expected {', '.join(self.features)}"
            )
        types = {name: table.dtypes[name] for name in self.features}
        text = [f"{name} ({dtype})" for name, dtype in types.items() if getattr(dtype, "kind", "O") not in "biuf"]
        if text:
            raise InputError(f"model {self.name}: {', '.join(text)} must be real numbers: convert the columns")
        stated = table.attrs.get("units", {})
        if not isinstance(stated, Mapping):
            raise InputError(
                f'model {self.name}: table.attrs["units"] must be units by column; got {type(stated).__name__}'
            )
        self._check_units(stated)

    def _check_names(self, found: Sequence[str], where: str) -> None:
        missing = [name for name in self.features if name not in found]
        if missing:
            raise InputError(
                f"model {self.name}: {where} lacks {', '.join(missing)}; it needs {', '.join(self.features)}"
            )

    def _check_units(self, stated: Mapping[str, Any]) -> None:
        for feature in self.seen:
            unit = stated.get(feature.name)
            if unit is not None and unit != feature.units:
                raise InputError(
                    f"model {self.name}: {feature.name} is in {unit!r}; the model was trained on {feature.units!r}: convert it"
                )


def make_predictor(
    estimator: Any,
    features: Sequence[str],
    X_train: pd.DataFrame | NDArray[Any],
    provenance: Mapping[str, Any] | None = None,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    target: str = "soil_moisture",
    target_units: str | None = None,
    name: str | None = None,
    kind: str | None = None,
) -> Predictor:
    """A fitted estimator as a `Predictor`, as if saved and loaded, but in memory. Parameters as `save_model`."""
    return _made(estimator, features, X_train, provenance, scores, units, target, target_units, name, kind)[0]


def save_model(
    folder: Path | str,
    estimator: Any,
    features: Sequence[str],
    X_train: pd.DataFrame | NDArray[Any],
    provenance: Mapping[str, Any] | None = None,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
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
    X_train : (n, k) array, or a table that has the features; gives what the model has seen
    provenance : where the model comes from, under the names of `record.PROVENANCE`: fingerprints, grids, period, seed ...
    scores : set of rows ("training", "inner", "validation") -> metric -> number
    units : feature -> unit; the schema's for names that it knows, else "1"
    target, target_units : what is predicted
    name : what the model is called in messages; the kind by default
    kind : by the estimator's class unless given

    Raises
    ------
    InputError : the estimator's kind is unknown, shapes disagree, it predicts NaN or infinity on its own training rows,
        or the folder cannot be written
    """
    predictor, arrays = _made(estimator, features, X_train, provenance, scores, units, target, target_units, name, kind)
    return artefact.save(folder, predictor.kind, arrays, predictor.meta)


def load_model(folder: Path | str) -> Predictor:
    """The model that `save_model` wrote.

    Raises
    ------
    InputError : one line, if it is absent, foreign, truncated or altered, or holds what no training writes
    """
    found = artefact.load(folder)
    if found.kind not in KINDS:
        raise InputError(f"{folder}: a model of kind {reprlib.repr(found.kind)}; known kinds: {', '.join(KINDS)}")
    try:
        return _predictor(found)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    except Exception as error:  # checksums cannot tell a forged record, and what it provokes has no one type
        raise InputError(
            f"{folder}: record and weights do not fit one another ({type(error).__name__}: {one_line(error)}); train the model again"
        ) from None


def kind_of(estimator: Any) -> str:
    """The registry's kind of an estimator, by the names of its classes."""
    names = [base.__name__ for base in type(estimator).__mro__]
    for kind, entry in KINDS.items():
        if not set(entry.estimators).isdisjoint(names):
            return kind
    known = ", ".join(name for entry in KINDS.values() for name in entry.estimators)
    raise InputError(f"{type(estimator).__name__}: no artefact is known for this estimator; expected one of {known}")


def _made(
    estimator: Any,
    features: Sequence[str],
    X_train: pd.DataFrame | NDArray[Any],
    provenance: Mapping[str, Any] | None,
    scores: Mapping[str, Mapping[str, Any]] | None,
    units: Mapping[str, str] | None,
    target: str,
    target_units: str | None,
    name: str | None,
    kind: str | None,
) -> tuple[Predictor, Mapping[str, NDArray[Any]]]:
    """A predictor that passed every check, and the arrays that it was made from."""
    kind = kind or kind_of(estimator)
    rows = _rows(X_train, features)
    arrays, settings = KINDS[kind].function(f"{kind}_to_arrays")(estimator)
    known = {**(units or {}), **({target: target_units} if target_units else {})}
    meta = record.write(name or kind, features, rows, arrays, settings, known, target, provenance or {}, scores or {})
    meta = artefact.plain(meta)
    _, packed = artefact.pack(kind, arrays, meta)
    predictor = _predictor(artefact.Artefact(kind, arrays, meta, packed["record_sha256"]))
    trained_on = rows[np.isfinite(rows).all(axis=1)][:TRIAL_ROWS]
    if not np.isfinite(predictor.predict(trained_on)).all():
        raise InputError(
            f"model {predictor.name}: predicts NaN or infinity on its own training rows and is not saved; train it again"
        )
    return predictor, arrays


def _predictor(found: artefact.Artefact) -> Predictor:
    """The predictor of an artefact, after every check that holds for every kind.

    Raises
    ------
    InputError : the record or the weights are none that training writes; also whatever a kind's own reader raises
    """
    record.check(found.kind, found.arrays, found.meta)
    seen = tuple(record.features_of(found.meta))
    with np.errstate(all="ignore"):  # what a forged number does is seen in what is predicted
        model = KINDS[found.kind].function(f"{found.kind}_from_arrays")(found.arrays, found.meta["model"])
        predictor = Predictor(found.kind, seen, found.meta, model, found.fingerprint)
        values = predictor.predict(_trial_rows(seen, found.meta["standardiser"]))
    if not np.isfinite(values).all():
        raise InputError(f"model {predictor.name}: predicts NaN or infinity within its training range; train it again")
    return predictor


def _trial_rows(seen: Sequence[record.Feature], standardiser: Mapping[str, Any] | None) -> Floats32:
    """Corners and middle of what the model has seen, and the means, where a wrong scale divides zero by zero."""
    rows = [[f.low, f.below, f.low / 2 + f.high / 2, f.above, f.high] for f in seen]
    if standardiser is not None:
        means = standardiser["features"]
        rows = [[*marks, means[f.name]["mean"]] for marks, f in zip(rows, seen, strict=True)]
    return np.array(rows, np.float32).T


def _outside(feature: record.Feature, plane: Floats32) -> Bools:
    """Whether a plane is of no class that the model has seen; not where it is NaN."""
    assert feature.classes is not None
    low, high = np.float32(feature.low), np.float32(feature.high)
    seen = np.zeros(feature.classes[-1] - feature.classes[0] + 1, np.bool_)
    seen[np.array(feature.classes) - feature.classes[0]] = True
    within = (plane >= low) & (plane <= high)
    place = np.where(within, plane - low, np.float32(0))
    index = place.astype(np.intp)
    return (plane < low) | (plane > high) | (within & ~(seen[index] & (index == place)))


def _predict_block(*planes: NDArray[Any], predictor: Predictor) -> Floats32:
    return predictor.predict_planes(planes)


def _lazily(predictor: Predictor, parts: Sequence[Any]) -> Any:
    """A prediction of arrays of one number of dimensions; a dask array where one of them is."""
    if not any(hasattr(part, "dask") for part in parts):
        values = predictor.predict_planes(parts)
        return values if parts[0].ndim else values[0]
    import dask
    import dask.array as da

    lazy = da.broadcast_arrays(*(da.asarray(part) for part in parts))
    model = dask.delayed(predictor, name=f"predictor-{predictor.fingerprint[:16]}")  # one key: sent to a worker once
    empty = np.empty((0,) * lazy[0].ndim, np.float32)
    return da.map_blocks(_predict_block, *lazy, predictor=model, dtype=np.float32, meta=empty)


def _rows(X_train: pd.DataFrame | NDArray[Any], features: Sequence[str]) -> NDArray[np.float64]:
    if isinstance(X_train, pd.DataFrame):
        if missing := [name for name in features if name not in X_train.columns]:
            raise InputError(f"the training table lacks {', '.join(missing)}")
        X_train = X_train[list(features)].to_numpy(np.float64)
    rows = np.asarray(X_train, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(features) or not len(rows):
        raise InputError(f"training rows must be (n, {len(features)}) for {', '.join(features)}; got {rows.shape}")
    return rows
