"""Hyperband by dask-ml, for estimators with partial_fit, its held-out rows whole groups; it goes on bracket by bracket.

dask-ml's own class holds rows out at random and keeps nothing when it is killed. Here its brackets, which are independent,
run one after another as dask-ml plans them, and each is recorded when done.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin, clone
from tqdm import tqdm

from smscale.errors import InputError, TaskError
from smscale.models.record import versions
from smscale.models.samples import Floats, Fold, Labels
from smscale.models.search.records import (
    active_client,
    checked_folder,
    fingerprint,
    in_a_task,
    loaded_distributed,
    named,
    one_thread,
    read_record,
    report_spoiled,
    write_record,
)
from smscale.models.search.trials import Setting, Space, candidates, lost_to_the_machine
from smscale.places import place

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
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Settings drawn from `space`, the better ones trained longer, scored on the fold's held-out rows.

    A call of partial_fit gets all training rows: what one call does (an epoch, a pass) is the estimator's. Bad settings are
    stopped early by dask-ml's successive halving; the scores compare settings, they are no estimate of an error.

    Parameters
    ----------
    calls : of partial_fit, for the longest run; others as in `search.search`

    Returns
    -------
    settings, in the types of `space` (a table's columns have one type each)
    DataFrame, a row per setting: its columns, `bracket`, `calls` it got, `rmse` (units of y), `seconds`, `failure` and
    `chosen`.

    Raises
    ------
    InputError : the estimator has no partial_fit, there is no dask client, or no setting could be fitted
    TaskError : a fit was lost for want of memory or disk
    """
    if not hasattr(estimator, "partial_fit"):
        raise InputError(f"hyperband needs an estimator with partial_fit; {type(estimator).__name__} has none")
    checked_folder(records)
    weight = np.ones(len(y)) if weight is None else weight
    rows: Floats = np.column_stack([y, weight, np.zeros(len(y)) if groups is None else groups]).astype(np.float64)
    partial = _Partial(estimator, grouped=groups is not None)
    settings: list[dict[str, Any]] = []
    parts, spoiled = [], 0
    with _client(), tqdm(desc="hyperband", unit="bracket", disable=not progress) as bar:
        brackets = _brackets(partial, calls, seed)
        bar.total = len(brackets)
        for bracket in brackets:
            drawn = candidates(space, "random", bracket["n_initial_parameters"], bracket["random_state"])
            entries, anew = _bracket(partial, drawn, X, rows, fold, bracket, records)
            parts.append(_table(entries, drawn, list(space)))
            settings, spoiled = settings + drawn, spoiled + anew
            bar.update()
    report_spoiled(spoiled, len(brackets), records)
    table = pd.concat(parts, ignore_index=True)
    if not np.isfinite(table["rmse"]).any():
        raise InputError(
            f"none of {len(table)} settings could be fitted on {len(fold[0])} rows: {table['failure'].iloc[0]}"
        )
    longest = table["rmse"].where(table["calls"] == table["calls"].max())
    best = longest if np.isfinite(longest).any() else table["rmse"]
    table["chosen"] = np.arange(len(table)) == np.nanargmin(best.to_numpy(np.float64))
    return settings, table


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


def _brackets(estimator: Any, calls: int, seed: int) -> list[dict[str, Any]]:
    """Arguments of dask-ml's SuccessiveHalvingSearchCV for each bracket, the most adaptive first; settings are drawn here."""
    from dask_ml.model_selection import HyperbandSearchCV

    whole = HyperbandSearchCV(
        estimator, {"number": [0]}, max_iter=calls, aggressiveness=AGGRESSIVENESS, random_state=seed % 2**31
    )
    planned = [bracket["SuccessiveHalvingSearchCV params"] for bracket in whole.metadata["brackets"]]
    return [
        {"number": number} | {name: value for name, value in arguments.items() if name not in ("scoring", "verbose")}
        for number, arguments in reversed(list(enumerate(planned)))
    ]


def _bracket(
    partial: _Partial,
    settings: list[dict[str, Any]],
    X: Floats,
    rows: Floats,
    fold: Fold,
    bracket: Mapping[str, Any],
    records: Path | str | None,
) -> tuple[list[dict[str, Any]], bool]:
    """One bracket, run or read: an entry for each setting, in their order; and whether its record was spoiled."""
    record = None
    if records is not None:
        parts = {
            "estimator": [type(partial.estimator).__qualname__, partial.estimator.get_params()],
            "settings": settings,  # not the space: the repr of a distribution differs from process to process
            "bracket": bracket,
            "grouped": partial.grouped,
            "versions": versions(),
            "data": [fingerprint(part) for part in (X, rows, *fold)],
        }
        record = place(records) / f"{named(parts)}.json"
    found, spoiled = read_record(record, lambda kept: _entries_of(kept, len(settings)))
    if found is None:
        found = _halved(clone(partial).set_params(settings=settings), X, rows, fold, bracket)
        if record is not None:
            write_record(record, {"rows": found, "settings": settings})
    return found, spoiled


def _halved(partial: _Partial, X: Floats, rows: Floats, fold: Fold, bracket: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries of one bracket; dask-ml sees no settings but their numbers."""
    from dask_ml.model_selection import SuccessiveHalvingSearchCV

    train, held = fold

    class OnGroups(SuccessiveHalvingSearchCV):
        """Held-out rows are the fold's."""

        def _get_train_test_split(self, X: Any, y: Any, **_: Any) -> tuple[Any, Any, Any, Any]:
            return X[train].rechunk(-1), X[held], y[train].rechunk(-1), y[held]

        def _get_params(self) -> list[dict[str, int]]:
            return [{"number": number} for number in range(len(partial.settings))]

    arguments = {name: value for name, value in bracket.items() if name != "number"}
    found = OnGroups(partial, {"number": [0]}, scoring=_score, **arguments).fit(X, rows)
    entries = []
    for entry in found.model_history_.values():
        last = entry[-1]
        entries.append(
            {
                "number": int(last["params"]["number"]),
                "bracket": bracket["number"],
                "calls": int(last["partial_fit_calls"]),
                "rmse": float(np.sqrt(-last["score"])) if np.isfinite(last["score"]) else None,
                "seconds": float(sum(step["partial_fit_time"] + step["score_time"] for step in entry)),
            }
        )
    return sorted(entries, key=lambda entry: entry["number"])


def _entries_of(kept: Any, count: int) -> list[dict[str, Any]]:
    """Those of a record; one of ours has an entry for each of `count` settings."""
    entries = [
        {
            "number": int(entry["number"]),
            "bracket": int(entry["bracket"]),
            "calls": int(entry["calls"]),
            "rmse": None if entry["rmse"] is None else float(entry["rmse"]),
            "seconds": float(entry["seconds"]),
        }
        for entry in kept["rows"]
    ]
    if [entry["number"] for entry in entries] != list(range(count)):
        raise ValueError("not an entry for each setting")
    return entries


def _table(entries: list[dict[str, Any]], settings: list[dict[str, Any]], names: list[str]) -> pd.DataFrame:
    columns = ["bracket", "calls", "rmse", "seconds"]
    table = pd.DataFrame(settings, columns=names).join(pd.DataFrame(entries, columns=columns))
    table["rmse"] = table["rmse"].astype(np.float64)
    table["failure"] = np.where(np.isfinite(table["rmse"]), "", "it could not be fitted, or predicts no finite values")
    return table


class _Partial(RegressorMixin, BaseEstimator):
    """What dask-ml trains: `rows` (n, 3) are target, weight and label; one thread; a setting that fails is left as it is.

    A setting goes by its `number` in `settings`, so that dask-ml, which makes arrays of values, leaves its types alone.
    """

    def __init__(
        self, estimator: BaseEstimator, grouped: bool = False, settings: Sequence[Setting] = (), number: int = 0
    ):
        self.estimator = estimator
        self.grouped = grouped
        self.settings = settings
        self.number = number

    def fit(self, X: Floats, rows: Floats) -> _Partial:
        """One call, from the beginning: dask-ml asks for a fit and never uses it."""
        return clone(self).partial_fit(X, rows)

    def partial_fit(self, X: Floats, rows: Floats) -> _Partial:
        """One call."""
        if getattr(self, "failure_", ""):
            return self
        self.failure_ = ""
        if not hasattr(self, "estimator_"):
            self.estimator_ = clone(self.estimator).set_params(**self.settings[self.number])
        y, weight, _ = np.ascontiguousarray(rows.T)
        extra: dict[str, Any] = {}
        if self.grouped and _takes(self.estimator_.partial_fit, "groups"):
            extra["groups"] = rows[:, 2].astype(np.int64)
        if _takes(self.estimator_.partial_fit, "sample_weight"):
            extra["sample_weight"] = weight
        try:
            with one_thread():
                self.estimator_.partial_fit(np.ascontiguousarray(X), y, **extra)
        except TaskError:
            raise
        except (MemoryError, OSError) as error:
            raise lost_to_the_machine(f"the fit of {self.settings[self.number]}", error) from error
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
            rest = np.asarray(partial.estimator_.predict(X), np.float64).ravel() - rows[:, 0]
    except (MemoryError, OSError) as error:
        raise lost_to_the_machine(f"the fit of {partial.settings[partial.number]}", error) from error
    except Exception:
        return FAILED
    squares = float(rows[:, 1] @ rest**2 / rows[:, 1].sum())
    return -squares if np.isfinite(squares) else FAILED
