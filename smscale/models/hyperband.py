"""Hyperband by dask-ml, for estimators with partial_fit, its held-out rows whole groups; it goes on bracket by bracket.

dask-ml's own class holds rows out at random and keeps nothing when it is killed. Here its brackets, which are independent,
run one after another as dask-ml plans them, and each is recorded when done.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin, clone
from tqdm import tqdm

from smscale.errors import InputError
from smscale.models.samples import Floats, Fold, Labels
from smscale.models.search import (
    Space,
    active_client,
    fingerprint,
    in_a_task,
    loaded_distributed,
    named,
    one_thread,
    versions,
    write_record,
)

#: Each rung of a bracket keeps one of so many settings (Li et al. 2018, JMLR 18, 1-52).
AGGRESSIVENESS = 3
#: What a setting scores that cannot be fitted: dask-ml sorts scores, so that it must be a number.
FAILED = -np.inf


def hyperband(
    estimator: BaseEstimator,
    space: Space,
    X: Floats,
    y: Floats,
    fold: Fold,
    groups: Labels | None = None,
    weight: Floats | None = None,
    calls: int = 27,
    records: Path | str | None = None,
    progress: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Settings drawn from `space`, the better ones trained longer, scored on the fold's held-out rows.

    A call of partial_fit gets all training rows: what one call does (an epoch, a pass) is the estimator's. Bad settings are
    stopped early by dask-ml's successive halving; the scores compare settings, they are no estimate of an error.

    Parameters
    ----------
    calls : of partial_fit, for the longest run; others as in `search.search`

    Returns
    -------
    DataFrame, a row per setting: its columns, `bracket`, `calls` it got, `rmse` (units of y), `seconds`, `failure` and
    `chosen`.

    Raises
    ------
    InputError : the estimator has no partial_fit, there is no dask client, or no setting could be fitted
    """
    if not hasattr(estimator, "partial_fit"):
        raise InputError(f"hyperband needs an estimator with partial_fit; {type(estimator).__name__} has none")
    weight = np.ones(len(y)) if weight is None else weight
    rows: Floats = np.column_stack([y, weight, np.zeros(len(y)) if groups is None else groups]).astype(np.float64)
    partial = _Partial(estimator, grouped=groups is not None)
    names = {name: list(values) if not hasattr(values, "rvs") else values for name, values in space.items()}
    parts = []
    with _client(), tqdm(desc="hyperband", unit="bracket", disable=not progress) as bar:
        brackets = _brackets(partial, {f"estimator__{name}": values for name, values in names.items()}, calls, seed)
        bar.total = len(brackets)
        for bracket in brackets:
            parts.append(_bracket(partial, names, X, rows, fold, bracket, records))
            bar.update()
    table = pd.concat(parts, ignore_index=True)
    if not np.isfinite(table["rmse"]).any():
        raise InputError(
            f"none of {len(table)} settings could be fitted on {len(fold[0])} rows: {table['failure'].iloc[0]}"
        )
    longest = table["rmse"].where(table["calls"] == table["calls"].max())
    best = longest if np.isfinite(longest).any() else table["rmse"]
    table["chosen"] = np.arange(len(table)) == np.nanargmin(best.to_numpy(np.float64))
    return table


@contextmanager
def _client() -> Iterator[None]:
    """dask-ml's Hyperband works on a client alone: the active one, or, inside a task, the worker's own while it waits."""
    with ExitStack() as stack:
        client = active_client()
        if in_a_task():
            client = stack.enter_context(loaded_distributed().worker_client())
        if client is None:
            raise InputError("hyperband needs a dask client; start one, or search at random")
        # dask-ml calls dask.persist from the client's own event loop, which dask refuses for the client but not for its method
        stack.enter_context(dask.config.set(scheduler=client.get))
        yield


def _brackets(estimator: Any, space: Space, calls: int, seed: int) -> list[dict[str, Any]]:
    """Arguments of dask-ml's SuccessiveHalvingSearchCV for each bracket, the most adaptive first."""
    from dask_ml.model_selection import HyperbandSearchCV

    whole = HyperbandSearchCV(
        estimator, space, max_iter=calls, aggressiveness=AGGRESSIVENESS, random_state=seed % 2**31
    )
    planned = [bracket["SuccessiveHalvingSearchCV params"] for bracket in whole.metadata["brackets"]]
    return [
        {"number": number} | {name: value for name, value in arguments.items() if name not in ("scoring", "verbose")}
        for number, arguments in reversed(list(enumerate(planned)))
    ]


def _bracket(
    partial: _Partial,
    space: Space,
    X: Floats,
    rows: Floats,
    fold: Fold,
    bracket: Mapping[str, Any],
    records: Path | str | None,
) -> pd.DataFrame:
    """One bracket, run or read."""
    record = None
    if records is not None:
        parts = {
            "estimator": [type(partial.estimator).__qualname__, partial.estimator.get_params()],
            "space": space,
            "bracket": bracket,
            "grouped": partial.grouped,
            "versions": versions(),
            "data": [fingerprint(part) for part in (X, rows, *fold)],
        }
        record = Path(records) / f"{named(parts)}.json"
        if record.exists():
            return _table(json.loads(record.read_text())["rows"], space)
    found = _halved(partial, {f"estimator__{name}": values for name, values in space.items()}, X, rows, fold, bracket)
    if record is not None:
        write_record(record, {"rows": found})
    return _table(found, space)


def _halved(
    partial: _Partial, space: Space, X: Floats, rows: Floats, fold: Fold, bracket: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of the table for one bracket, settings by number in `space`'s lists where they are lists."""
    from dask_ml.model_selection import SuccessiveHalvingSearchCV

    train, held = fold

    class OnGroups(SuccessiveHalvingSearchCV):
        """Held-out rows are the fold's."""

        def _get_train_test_split(self, X: Any, y: Any, **_: Any) -> tuple[Any, Any, Any, Any]:
            return X[train].rechunk(-1), X[held], y[train].rechunk(-1), y[held]

    arguments = {name: value for name, value in bracket.items() if name != "number"}
    found = OnGroups(partial, dict(space), scoring=_score, **arguments).fit(X, rows)
    entries = []
    for entry in found.model_history_.values():
        last = entry[-1]
        entries.append(
            {
                "setting": {name.removeprefix("estimator__"): value for name, value in last["params"].items()},
                "bracket": bracket["number"],
                "calls": int(last["partial_fit_calls"]),
                "rmse": float(np.sqrt(-last["score"])) if np.isfinite(last["score"]) else None,
                "seconds": float(sum(step["partial_fit_time"] + step["score_time"] for step in entry)),
            }
        )
    return entries


def _table(entries: Sequence[Mapping[str, Any]], space: Space) -> pd.DataFrame:
    table = pd.DataFrame([{**entry["setting"], **entry} for entry in entries]).drop(columns="setting")
    table["rmse"] = table["rmse"].astype(np.float64)
    table["failure"] = np.where(np.isfinite(table["rmse"]), "", "it could not be fitted, or predicts no finite values")
    return table[[*space, *(name for name in table if name not in space)]]


class _Partial(RegressorMixin, BaseEstimator):
    """What dask-ml trains: `rows` (n, 3) are target, weight and label; one thread; a setting that fails is left as it is."""

    def __init__(self, estimator: BaseEstimator, grouped: bool = False):
        self.estimator = estimator
        self.grouped = grouped

    def fit(self, X: Floats, rows: Floats) -> _Partial:
        """One call, from the beginning: dask-ml asks for a fit and never uses it."""
        return clone(self).partial_fit(X, rows)

    def partial_fit(self, X: Floats, rows: Floats) -> _Partial:
        """One call."""
        if getattr(self, "failure_", ""):
            return self
        self.failure_ = ""
        if not hasattr(self, "estimator_"):
            self.estimator_ = clone(self.estimator)
        extra: dict[str, Any] = {}
        if self.grouped and _takes(self.estimator_.partial_fit, "groups"):
            extra["groups"] = rows[:, 2].astype(np.int64)
        if _takes(self.estimator_.partial_fit, "sample_weight"):
            extra["sample_weight"] = rows[:, 1]
        try:
            with one_thread():
                self.estimator_.partial_fit(X, rows[:, 0], **extra)
        except Exception as error:  # whatever an estimator raises, the other settings go on
            self.failure_ = str(error) or type(error).__name__
        return self


def _takes(method: Any, name: str) -> bool:
    return name in inspect.signature(method).parameters


def _score(partial: _Partial, X: Floats, rows: Floats) -> float:
    """Minus the weighted mean squared error; FAILED where there is none."""
    if partial.failure_:
        return FAILED
    try:
        with one_thread():
            error = np.asarray(partial.estimator_.predict(X), np.float64).ravel() - rows[:, 0]
    except Exception:
        return FAILED
    squares = float(rows[:, 1] @ error**2 / rows[:, 1].sum())
    return -squares if np.isfinite(squares) else FAILED
